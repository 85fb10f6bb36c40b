"""Counts on disk: same bytes, exact look-ups, and damage that is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables.corpus import counts_store
from engram_tables.corpus.counting import count_ngrams
from engram_tables.corpus.counts_store import CountsProvenance, open_counts, write_counts
from engram_tables.corpus.ngram_counts import NgramCounts
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.units import canonical_json

PROVENANCE = CountsProvenance(vocab_sha256="ab" * 32, canonical_size=50, n_tokens=0, n_documents=1)


def sample(n_tokens: int = 5000, orders: tuple[int, ...] = (1, 2, 3), seed: int = 7) -> dict[int, NgramCounts]:
    ids = np.random.default_rng(seed).zipf(1.3, n_tokens) % 50
    return count_ngrams(ids, [0, n_tokens], orders=orders, canonical_size=50)


def equal(one: NgramCounts, two: NgramCounts) -> bool:
    return np.array_equal(one.columns, two.columns) and np.array_equal(one.counts, two.counts)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_counts(tmp_path / "counts", sample(), provenance=PROVENANCE)
    return tmp_path / "counts"


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_is_written_is_read_back(written: Path) -> None:
    with open_counts(written) as counts:
        assert counts.orders == (1, 2, 3)
        assert (counts.vocab_sha256, counts.canonical_size, counts.total_tokens) == ("ab" * 32, 50, 0)
        for order, expected in sample().items():
            assert equal(counts.load(order), expected)
            assert counts.n_distinct(order) == expected.n_distinct
            assert counts.n_total(order) == expected.n_total == 5000 - order + 1
        counts.verify()


def test_columns_are_the_documented_ones(written: Path) -> None:
    table = pq.read_table(written / "order-3" / "part-00000.parquet")
    assert table.column_names == ["back_2", "back_1", "back_0", "count"]
    assert [str(kind) for kind in table.schema.types] == ["uint32"] * 3 + ["uint64"]
    assert table.equals(table.sort_by([(name, "ascending") for name in table.column_names[:3]]))


def test_same_counts_same_bytes_for_any_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_store, "PART_ROWS", 100)
    for threads in (1, 4):
        write_counts(tmp_path / f"{threads}", sample(), provenance=PROVENANCE, threads=threads)
    found = bytes_of(tmp_path / "1")
    assert found == bytes_of(tmp_path / "4")
    assert len([name for name in found if name.startswith("order-2/")]) > 1
    assert str(tmp_path).encode() not in b"".join(found.values())
    with open_counts(tmp_path / "4") as counts:
        assert equal(counts.load(2), sample()[2])


@given(
    st.integers(0, 400), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 7, 64]), st.sampled_from([5, 30, 1000])
)
@settings(deadline=None, max_examples=40)
def test_lookup_finds_exactly_what_was_counted(
    tmp_path_factory: pytest.TempPathFactory, n_tokens: int, order: int, group_rows: int, part_rows: int
) -> None:
    generator = np.random.default_rng(n_tokens)
    ids = np.where(generator.random(n_tokens) < 0.5, 3, generator.integers(0, 50, n_tokens))
    found = count_ngrams(ids, [0, n_tokens], orders=[order], canonical_size=50)[order]
    directory = tmp_path_factory.mktemp("lookup") / "counts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts_store, "ROW_GROUP_ROWS", group_rows)
        patch.setattr(counts_store, "PART_ROWS", part_rows)
        write_counts(directory, {order: found}, provenance=PROVENANCE)
    known = dict(zip(map(tuple, found.ngrams.tolist()), found.counts.tolist(), strict=True))
    wanted = np.concatenate([found.ngrams, generator.integers(0, 52, (50, order)), [[0] * order, [2**32 - 1] * order]])
    generator.shuffle(wanted)
    with open_counts(directory) as counts:
        assert counts.lookup(wanted).tolist() == [known.get(tuple(ngram), 0) for ngram in wanted.tolist()]


def test_lookup_reads_only_the_row_groups_that_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_store, "ROW_GROUP_ROWS", 16)
    write_counts(tmp_path / "c", sample(), provenance=PROVENANCE)
    read: list[int] = []
    real = counts_store._Order._read
    monkeypatch.setattr(
        counts_store._Order, "_read", lambda self, which, group: (read.append(group), real(self, which, group))[1]
    )
    with open_counts(tmp_path / "c") as counts:
        assert counts.lookup(sample()[3].ngrams[-1:])[0] == sample()[3].counts[-1]
        assert len(read) <= 2


def test_an_empty_order_is_written_and_found_empty(tmp_path: Path) -> None:
    write_counts(tmp_path / "c", sample(2, orders=(3,)), provenance=PROVENANCE)
    with open_counts(tmp_path / "c") as counts:
        assert counts.n_distinct(3) == counts.n_total(3) == counts.load(3).n_distinct == 0
        assert counts.lookup([[1, 2, 3]]).tolist() == [0]


def test_lookup_of_another_order_or_shape_is_refused(written: Path) -> None:
    with open_counts(written) as counts:
        with pytest.raises(InvalidInput, match=r"holds orders 1, 2, 3, expected 4; .*--orders 1,2,3,4"):
            counts.lookup([[1, 2, 3, 4]])
        with pytest.raises(InvalidInput, match="shape"):
            counts.lookup([1, 2])


def test_another_vocabulary_is_refused_with_both_digests(written: Path) -> None:
    with open_counts(written) as counts:
        counts.check_vocabulary("ab" * 32)
        with pytest.raises(SpecMismatch, match=f"{'ab' * 32}.*{'cd' * 32}"):
            counts.check_vocabulary("cd" * 32)


def test_a_directory_that_holds_no_counts_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InvalidInput, match=r"no counts\.json"):
            open_counts(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"schema": "engram.counts/2"}', b'{"schema": "engram.counts/1"}']
)
def test_a_manifest_that_is_none_is_refused(written: Path, content: bytes) -> None:
    (written / "counts.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"counts\.json"):
        open_counts(written)


def test_every_value_of_the_manifest_is_covered_by_its_digest(written: Path) -> None:
    path = written / "counts.json"
    text = path.read_text()
    for old, new in (("5000", "5001"), ("ab" * 32, "aa" * 32), ("part-00000", "part-00001"), (": 50,", ": 51,")):
        if old in text:
            path.write_text(text.replace(old, new, 1))
            with pytest.raises(InvalidInput, match="changed or damaged"):
                open_counts(written)


def test_a_cut_file_is_refused_at_every_length(written: Path) -> None:
    path = written / "order-2" / "part-00000.parquet"
    whole = path.read_bytes()
    for n_bytes in {0, 1, 4, 7, 8, len(whole) // 2, len(whole) - 8, len(whole) - 1}:
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(InvalidInput, match=r"part-00000\.parquet: .*damaged"):
            open_counts(written)
    path.unlink()
    with pytest.raises(InvalidInput, match="missing"):
        open_counts(written)


def test_a_cut_file_under_a_manifest_that_agrees_is_refused(written: Path) -> None:
    path = written / "order-2" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    rewrite_manifest(written, lambda entry: entry.update(file_bytes=path.stat().st_size), "order-2")
    with pytest.raises(InvalidInput, match="not a whole Parquet file"):
        open_counts(written)


def test_a_flipped_bit_in_the_data_is_refused_when_read(written: Path) -> None:
    path = written / "order-3" / "part-00000.parquet"
    whole = bytearray(path.read_bytes())
    for at in range(30, len(whole) // 2, 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(InvalidInput, match=r"part-00000\.parquet: .*damaged"), open_counts(written) as counts:
            counts.verify()
        with open_counts(written) as counts:
            assert intact_or_refused(counts)


def intact_or_refused(counts: counts_store.Counts) -> bool:
    """The flipped bit stands where nothing reads it, or reading says so; never another count."""
    try:
        return equal(counts.load(3), sample()[3])
    except InvalidInput as error:
        return "damaged" in str(error)


def test_a_file_of_another_order_is_refused(written: Path) -> None:
    path = written / "order-3" / "part-00000.parquet"
    shutil.copy(written / "order-2" / "part-00000.parquet", path)
    rewrite_manifest(written, lambda entry: entry.update(file_bytes=path.stat().st_size), "order-3")
    with pytest.raises(InvalidInput, match=r"rows of back_1, back_0, count; expected .*back_2"):
        open_counts(written)


def rewrite_manifest(directory: Path, change: object, prefix: str) -> None:
    import hashlib

    path = directory / "counts.json"
    manifest = json.loads(path.read_bytes())
    for entry in manifest["files"]:
        if entry["name"].startswith(prefix):
            change(entry)  # type: ignore[operator]
    del manifest["manifest_sha256"]
    manifest["manifest_sha256"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
    path.write_text(json.dumps(manifest))


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("_write_part", "_manifest", "_write_flushed"):
        with monkeypatch.context() as patch:
            patch.setattr(counts_store, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                write_counts(tmp_path / "c", sample(), provenance=PROVENANCE)
        assert list(tmp_path.iterdir()) == []


def test_existing_counts_are_replaced_only_by_force(written: Path) -> None:
    with pytest.raises(InvalidInput, match="exists"):
        write_counts(written, sample(100), provenance=PROVENANCE)
    with open_counts(written) as old:
        write_counts(written, sample(100), provenance=PROVENANCE, force=True)
        assert equal(old.load(3), sample()[3])  # a reader keeps what it opened
    with open_counts(written) as new:
        assert equal(new.load(3), sample(100)[3])
