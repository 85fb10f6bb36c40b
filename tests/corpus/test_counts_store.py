"""Counts on disk: same bytes, exact look-ups, and damage that is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_counts import contents, count_store, small_pieces, store, vocabulary_of

from engram_tables.corpus.counts import count_work, counts_writer
from engram_tables.corpus.counts.counting import count_ngrams
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.corpus.counts.counts_writer import RowWriter, _Sieve, part_starts
from engram_tables.corpus.counts.ngram_counts import NgramCounts
from engram_tables.corpus.counts.reference import count_followed_reference
from engram_tables.corpus.counts.unpacking import RowSink
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.units import canonical_json

VOCABULARY = vocabulary_of(range(50))
DIGEST = VOCABULARY.map_sha256
ORDERS = (1, 2, 3)


def ids_of(n_tokens: int = 5000, seed: int = 7) -> list[int]:
    found: list[int] = (np.random.default_rng(seed).zipf(1.3, n_tokens) % 50).tolist()
    return found


def sample(n_tokens: int = 5000, orders: tuple[int, ...] = ORDERS) -> dict[int, NgramCounts]:
    return count_ngrams(ids_of(n_tokens), [0, n_tokens], orders=orders, canonical_size=50)


def write(place: Path, n_tokens: int = 5000, orders: tuple[int, ...] = ORDERS, **options: Any) -> Path:
    """The same through a token store, as counts are made."""
    tokens = place / f"tokens-{n_tokens}"
    if not tokens.exists():
        store(tokens, [ids_of(n_tokens)], VOCABULARY)
    output = place / options.pop("name", "counts")
    count_store(tokens, output, VOCABULARY, orders=orders, **options)
    return output


def equal(one: NgramCounts, two: NgramCounts) -> bool:
    return np.array_equal(one.columns, two.columns) and np.array_equal(one.counts, two.counts)


@pytest.fixture(autouse=True, scope="module")
def _without_flushing() -> Iterator[None]:
    """Nothing here loses its power, and thousands of small files are written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain` in one part, `small` in many parts and row groups, `followed` with next tokens."""
    place = tmp_path_factory.mktemp("made")
    write(place, name="plain")
    with small_pieces(part_tokens=700, group_rows=64):
        write(place, name="small")
        write(place, 300, name="followed", next_raw=True)
    return place


@pytest.fixture
def written(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "plain", tmp_path / "counts"))


@pytest.fixture
def small(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "small", tmp_path / "counts"))


def test_what_is_written_is_read_back(written: Path) -> None:
    with open_counts(written) as counts:
        assert counts.orders == ORDERS
        assert (counts.vocab_sha256, counts.canonical_size, counts.total_tokens) == (DIGEST, 50, 5000)
        assert (counts.next, counts.min_count, counts.figures.n_documents) == (None, 1, 1)
        for order, expected in sample().items():
            assert equal(counts.load(order), expected)
            assert counts.n_rows(order) == counts.n_distinct(order) == expected.n_distinct
            assert counts.n_total(order) == expected.n_total == 5000 - order + 1
        counts.verify()


def test_order_1_is_always_there(tmp_path: Path) -> None:
    with open_counts(write(tmp_path, orders=(3,))) as counts:
        assert counts.orders == (1, 3)
        assert equal(counts.load(1), sample()[1])


def test_columns_are_the_documented_ones(small: Path, made: Path) -> None:
    for path in small.glob("order-3/*"):
        table = pq.read_table(path)
        assert table.column_names == ["back_2", "back_1", "back_0", "count"]
        assert [str(kind) for kind in table.schema.types] == ["uint32"] * 3 + ["uint64"]
        assert table.equals(table.sort_by([(name, "ascending") for name in table.column_names[:3]]))
    for path in (made / "followed").glob("order-1/*"):
        assert pq.read_table(path).column_names == ["back_0", "next_token", "count"]


def test_rows_ascend_over_all_parts_and_come_a_row_group_at_a_time(small: Path) -> None:
    with open_counts(small) as counts:
        assert len(counts.manifest["part_starts"]) > 3
        batches = list(counts.batches(3))
        assert len(batches) > 10
        assert max(len(batch.counts) for batch in batches) == 64
        columns = np.concatenate([batch.columns for batch in batches], axis=1)
        assert np.array_equal(columns, sample()[3].columns)
        # A part holds the n-grams that begin with its tokens.
        for entry in counts.manifest["files"]:
            starts = [*counts.manifest["part_starts"], 50]
            leading = pq.read_table(small / entry["name"])[0].to_numpy()
            assert (leading >= starts[entry["part"]]).all()
            assert (leading < starts[entry["part"] + 1]).all()


def test_same_counts_same_bytes_for_any_threads(tmp_path: Path) -> None:
    with small_pieces(part_tokens=100, group_rows=16) as patch:
        for threads in (1, 4):
            patch.setattr(count_work.CountWork, "chunk_tokens", lambda *_, threads=threads: 5000 // threads)
            write(tmp_path, name=f"{threads}", threads=threads)
    found = contents(tmp_path / "1")
    assert found == contents(tmp_path / "4")
    assert len([name for name in found if name.startswith("order-2/")]) > 1
    assert str(tmp_path).encode() not in b"".join(found.values())
    with open_counts(tmp_path / "4") as counts:
        assert equal(counts.load(2), sample()[2])


@given(
    st.integers(0, 400), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 7, 64]), st.sampled_from([5, 30, 1000])
)
@settings(deadline=None, max_examples=25)
def test_lookup_finds_exactly_what_was_counted(
    tmp_path_factory: pytest.TempPathFactory, n_tokens: int, order: int, group_rows: int, part_tokens: int
) -> None:
    generator = np.random.default_rng(n_tokens)
    ids = np.where(generator.random(n_tokens) < 0.5, 3, generator.integers(0, 50, n_tokens))
    found = count_ngrams(ids, [0, n_tokens], orders=[order], canonical_size=50)[order]
    place = tmp_path_factory.mktemp("lookup")
    store(place / "tokens", [ids.tolist()], VOCABULARY)
    with small_pieces(part_tokens=part_tokens, group_rows=group_rows):
        count_store(place / "tokens", place / "counts", VOCABULARY, orders=[order], threads=1)
    known = dict(zip(map(tuple, found.ngrams.tolist()), found.counts.tolist(), strict=True))
    wanted = np.concatenate([found.ngrams, generator.integers(0, 52, (50, order)), [[0] * order, [2**32 - 1] * order]])
    generator.shuffle(wanted)
    with open_counts(place / "counts") as counts:
        assert counts.lookup(wanted).tolist() == [known.get(tuple(ngram), 0) for ngram in wanted.tolist()]
    shutil.rmtree(place)


def test_lookup_reads_only_the_row_groups_that_matter(tmp_path: Path) -> None:
    with small_pieces(part_tokens=700, group_rows=16):
        write(tmp_path)
    with open_counts(tmp_path / "counts") as counts:
        assert counts.lookup(sample()[3].ngrams[-1:])[0] == sample()[3].counts[-1]
        assert 1 <= counts.row_groups_read <= 2
        # The footer of one file of dozens.
        assert len(counts._parts) == 1


def test_followers_are_found_where_they_go_on_in_the_next_row_group(made: Path) -> None:
    expected = count_followed_reference([ids_of(300)], 2, canonical_ids=range(50), with_next=True)
    followers: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for (*ngram, token), n in expected.items():
        followers.setdefault(tuple(ngram), []).append((token, n))
    with open_counts(made / "followed") as counts:
        assert counts.next == "raw"
        assert counts.n_distinct(2) == len(followers)
        assert counts.n_rows(2) == len(expected)
        for ngram, pairs in followers.items():
            tokens, n = counts.following(ngram)
            assert list(zip(tokens.tolist(), n.tolist(), strict=True)) == pairs
        assert counts.lookup(list(followers)).tolist() == [sum(n for _, n in pairs) for pairs in followers.values()]
        assert [len(found) for found in counts.following([49, 49, 49])] == [0, 0]


def test_followers_of_counts_without_them_are_refused(written: Path) -> None:
    with open_counts(written) as counts, pytest.raises(InvalidInput, match="--next raw"):
        counts.following([1, 2])


def test_an_empty_order_is_written_and_found_empty(tmp_path: Path) -> None:
    for n_tokens in (0, 2):
        with open_counts(write(tmp_path, n_tokens, orders=(3,), name=f"{n_tokens}")) as counts:
            assert counts.n_distinct(3) == counts.n_total(3) == counts.load(3).n_distinct == 0
            assert counts.n_total(1) == n_tokens
            assert counts.lookup([[1, 2, 3]]).tolist() == [0]


def test_lookup_of_another_order_or_shape_is_refused(written: Path) -> None:
    with open_counts(written) as counts:
        for read in (lambda: counts.lookup([[1, 2, 3, 4]]), lambda: counts.load(4), lambda: next(counts.batches(4))):
            with pytest.raises(InvalidInput, match=r"holds orders 1, 2, 3, expected 4; .*--orders 1,2,3,4"):
                read()
        with pytest.raises(InvalidInput, match="shape"):
            counts.lookup([1, 2])


def test_another_vocabulary_is_refused_with_both_digests(written: Path) -> None:
    with open_counts(written) as counts:
        counts.check_vocabulary(DIGEST)
        with pytest.raises(SpecMismatch, match=f"{DIGEST}.*{'cd' * 32}"):
            counts.check_vocabulary("cd" * 32)


def test_a_directory_that_holds_no_counts_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InvalidInput, match=r"no counts\.json"):
            open_counts(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"schema": "engram.counts/1"}',
     b'{"schema": "engram.counts/2"}', b'{"schema": "engram.counts/3"}', b'{"schema": "engram.counts/2", "x": NaN}'],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(written: Path, content: bytes) -> None:
    (written / "counts.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"counts\.json"):
        open_counts(written)


def test_every_value_of_the_manifest_is_covered_by_its_digest(written: Path) -> None:
    path = written / "counts.json"
    text = path.read_text()
    for old, new in (
        ("5000", "5001"), (DIGEST, "aa" * 32), ("part-00000", "part-00001"), (": 50,", ": 51,"),
        ('"next": null', '"next": "raw"'), ('"min_count": 1', '"min_count": 2'), ('"n_dead": 0', '"n_dead": 1'),
    ):  # fmt: skip
        assert old in text, old
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(InvalidInput, match=r"counts\.json: .*changed or damaged"):
            open_counts(written)


def test_a_cut_manifest_is_refused_at_every_length(written: Path) -> None:
    path = written / "counts.json"
    whole = path.read_bytes()
    for n_bytes in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(InvalidInput, match=r"counts\.json"):
            open_counts(written)


def test_a_flipped_bit_in_the_manifest_is_refused(written: Path) -> None:
    path = written / "counts.json"
    whole = path.read_bytes()
    manifest = json.loads(whole)
    for at in range(0, len(whole), 3):
        damaged = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
        path.write_bytes(damaged)
        try:
            with open_counts(written) as counts:
                assert counts.manifest == manifest  # white space and the like
        except InvalidInput as refusal:
            if "counts.json" not in str(refusal):
                raise


def test_a_cut_file_is_refused_at_every_length(written: Path) -> None:
    path = written / "order-2" / "part-00000.parquet"
    whole = path.read_bytes()
    for n_bytes in {0, 1, 4, 7, 8, len(whole) // 2, len(whole) - 8, len(whole) - 1}:
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(InvalidInput, match=r"part-00000\.parquet: .*damaged"):
            open_counts(written)
    path.unlink()
    with pytest.raises(InvalidInput, match=r"part-00000\.parquet: the file is missing"):
        open_counts(written)
    path.mkdir()
    with pytest.raises(InvalidInput, match=r"part-00000\.parquet: the file is missing"):
        open_counts(written)


def rewrite_manifest(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A manifest that agrees with itself, whatever it says."""
    path = directory / "counts.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    manifest.pop("manifest_sha256", None)
    manifest["manifest_sha256"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
    path.write_text(json.dumps(manifest))


def entry_of(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in manifest["files"] if entry["name"].startswith(name))
    return found


def tell(entry: dict[str, Any], path: Path) -> None:
    """What the manifest says of a file's bytes, as they are now."""
    content = path.read_bytes()
    found = {
        "file_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "footer_sha256": hashlib.sha256(content[max(0, footer_start(content)) :]).hexdigest(),
    }
    entry.update({name: value for name, value in found.items() if name in entry})


def read_all(directory: Path) -> None:
    with open_counts(directory) as counts:
        for order in counts.orders:
            counts.load(order)
            counts.lookup(np.zeros((1, order), dtype=np.uint32))


def test_a_cut_file_under_a_manifest_that_agrees_is_refused_when_it_is_used(written: Path) -> None:
    path = written / "order-2" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    rewrite_manifest(written, lambda manifest: tell(entry_of(manifest, "order-2"), path))
    with open_counts(written) as counts:
        assert equal(counts.load(3), sample()[3])
        for read in (lambda: counts.load(2), lambda: counts.lookup([[1, 2]])):
            with pytest.raises(InvalidInput, match=r"order-2/part-00000\.parquet: not a whole Parquet file"):
                read()


def test_a_file_of_another_order_is_refused(written: Path) -> None:
    path = written / "order-3" / "part-00000.parquet"
    shutil.copy(written / "order-2" / "part-00000.parquet", path)
    rewrite_manifest(written, lambda manifest: tell(entry_of(manifest, "order-3"), path))
    with (
        open_counts(written) as counts,
        pytest.raises(InvalidInput, match=r"order-3/part-00000.* rows of back_1, back_0, count; expected .*back_2"),
    ):
        counts.load(3)


def is_refusal(error: InvalidInput, name: str) -> bool:
    return name in str(error) and "damaged" in str(error)


def damage(path: Path, whole: bytes, at: int, bit: int) -> None:
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])


def footer_start(whole: bytes) -> int:
    return len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")


def test_a_flipped_bit_in_the_data_is_refused_when_read(written: Path) -> None:
    path = written / "order-3" / "part-00000.parquet"
    whole = path.read_bytes()
    expected = sample()[3]
    for at in range(0, footer_start(whole), 97):
        damage(path, whole, at, at % 8)
        with open_counts(written) as counts:
            with pytest.raises(InvalidInput, match=r"part-00000\.parquet: .*damaged"):
                counts.verify()
            # The flipped bit stands where nothing reads it, or reading says so; never another count.
            try:
                assert equal(counts.load(3), expected)
                assert counts.lookup(expected.ngrams).tolist() == expected.counts.tolist()
            except InvalidInput as refusal:
                if not is_refusal(refusal, "order-3/part-00000.parquet"):
                    raise


def test_a_flipped_bit_in_a_footer_is_refused_when_read(small: Path) -> None:
    path = sorted((small / "order-2").iterdir())[1]
    whole = path.read_bytes()
    expected = sample()[2]
    for at in range(footer_start(whole), len(whole), 3):
        damage(path, whole, at, at % 8)
        with open_counts(small) as counts:
            with pytest.raises(InvalidInput, match=f"{path.name}: .*damaged"):
                counts.verify()
            try:
                assert equal(counts.load(2), expected), at
                assert counts.lookup(expected.ngrams).tolist() == expected.counts.tolist(), at
            except InvalidInput as refusal:
                if not is_refusal(refusal, path.name):
                    raise


LIES: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    (name, change)
    for name, change in {
        "no vocabulary": lambda m: m.pop("vocabulary"),
        "vocabulary is a list": lambda m: m.update(vocabulary=[]),
        "canonical size is text": lambda m: m["vocabulary"].update(canonical_size="50"),
        "canonical size is negative": lambda m: m["vocabulary"].update(canonical_size=-1),
        "canonical size is huge": lambda m: m["vocabulary"].update(canonical_size=2**70),
        "map digest is a number": lambda m: m["vocabulary"].update(map_sha256=7),
        "no corpus": lambda m: m.pop("corpus"),
        "more figures": lambda m: m["corpus"].update(n_pages=3),
        "fewer figures": lambda m: m["corpus"].pop("n_tokens"),
        "no orders": lambda m: m.pop("orders"),
        "orders is a list": lambda m: m.update(orders=[1, 2]),
        "order is no number": lambda m: m["orders"].update(two=m["orders"]["2"]),
        "order 6": lambda m: m["orders"].update({"6": m["orders"]["2"]}),
        "order without files": lambda m: m["orders"].update({"4": m["orders"]["2"]}),
        "order without rows": lambda m: m["orders"]["2"].pop("n_rows"),
        "more rows than the files": lambda m: m["orders"]["2"].update(n_rows=m["orders"]["2"]["n_rows"] + 1),
        "fewer rows than the files": lambda m: m["orders"]["2"].update(n_rows=m["orders"]["2"]["n_rows"] - 1),
        "huge rows": lambda m: m["orders"]["2"].update(n_rows=2**62),
        "negative rows": lambda m: m["orders"]["2"].update(n_rows=-1),
        "no files": lambda m: m.pop("files"),
        "files is a number": lambda m: m.update(files=3),
        "a file is text": lambda m: m["files"].__setitem__(0, "order-1/part-00000.parquet"),
        "a file of no name": lambda m: m["files"][0].pop("name"),
        "a file elsewhere": lambda m: m["files"][0].update(name="../counts/order-1/part-00000.parquet"),
        "a file by its whole path": lambda m: m["files"][0].update(name="/etc/passwd"),
        "a name of another part": lambda m: m["files"][0].update(name=m["files"][1]["name"]),
        "a name with a zero byte": lambda m: m["files"][0].update(name="a\0b"),
        "a name that is too long": lambda m: m["files"][0].update(name="a" * 5000),
        "bytes as text": lambda m: m["files"][0].update(file_bytes="1"),
        "a part that is missing": lambda m: m["files"].pop(1),
        "a part twice": lambda m: m["files"].append(m["files"][0]),
        "a part beyond": lambda m: m["files"][0].update(part=999),
        "an order beyond": lambda m: m["files"][0].update(order=7),
        "no part starts": lambda m: m.update(part_starts=[]),
        "part starts as text": lambda m: m.update(part_starts="0"),
        "parts that do not begin at 0": lambda m: m["part_starts"].__setitem__(0, 1),
        "parts that go back": lambda m: m["part_starts"].__setitem__(1, 0),
        "parts that begin too late": lambda m: m["part_starts"].__setitem__(-1, 2**63),
        "fewer parts than files": lambda m: m["part_starts"].pop(),
        "more parts than files": lambda m: m["part_starts"].append(49),
        "next is something": lambda m: m.update(next="canonical"),
        "next without a size": lambda m: m.update(next="raw"),
        "next size is text": lambda m: m.update(next_size="7"),
        "min count is text": lambda m: m.update(min_count="x"),
        "no min count": lambda m: m.pop("min_count"),
        "a pad that is no id": lambda m: m.update(pad_id=50),
    }.items()
]


@pytest.mark.parametrize(("name", "change"), LIES, ids=[name for name, _ in LIES])
def test_a_lying_manifest_is_refused_with_its_name(
    small: Path, name: str, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite_manifest(small, change)
    with pytest.raises(InvalidInput, match=r"counts\.json|\.parquet"):
        read_all(small)


def test_a_manifest_that_is_rewritten_as_it_was_is_taken(small: Path) -> None:
    rewrite_manifest(small, lambda _: None)
    read_all(small)


def test_an_interrupted_write_leaves_its_work_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    tokens = store(tmp_path / "tokens", [ids_of()], VOCABULARY)
    for where, name in (
        (count_work, "count_tokens"),
        (count_work, "save_run"),
        (count_work, "part_starts"),
        (RowWriter, "write"),
        (RowWriter, "close"),
        (count_work, "build_manifest"),
        (count_work, "give_second_name"),
        (count_work, "manifest_bytes"),
    ):
        with small_pieces(part_tokens=700, group_rows=64, chunk_tokens=2000) as patch:
            patch.setattr(where, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                count_store(tokens, tmp_path / "c", VOCABULARY, orders=ORDERS, threads=1)
        left = {path.name for path in tmp_path.iterdir()}
        assert left in ({"tokens"}, {"tokens", "c.work"}), name
        assert not list(tmp_path.glob("c.work/partial-*"))
    # The parts of another version, cut elsewhere, are not taken for these.
    assert write(tmp_path, name="c").is_dir()
    assert not (tmp_path / "c.work").exists()
    with open_counts(tmp_path / "c") as counts:
        assert equal(counts.load(3), sample()[3])


def test_existing_counts_are_replaced_only_by_force(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(InvalidInput, match="exists"):
        write(tmp_path, 100)
    with open_counts(tmp_path / "counts") as old:
        assert old.lookup(sample()[3].ngrams[:1])[0]
        write(tmp_path, 100, force=True)
        assert equal(old.load(3), sample()[3])  # a reader keeps what it opened
    with open_counts(tmp_path / "counts") as new:
        assert equal(new.load(3), sample(100)[3])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 12))
@settings(deadline=None, max_examples=150)
def test_parts_begin_where_a_multiple_is_passed(occurrences: list[int], part_tokens: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts_writer, "PART_TOKENS", part_tokens)
        starts = part_starts(np.array(occurrences, dtype=np.int64)).tolist()
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < len(occurrences)
    before = 0
    passed = 0
    expected = [0]
    for token, n in enumerate(occurrences):
        # A token leads the part in which the occurrences before it lie.
        if n and before // part_tokens != passed:
            passed = before // part_tokens
            expected.append(token)
        before += n
    assert starts == ([0] if expected == [0] else sorted(set(expected)))
    for start, stop in zip(starts, [*starts[1:], len(occurrences)], strict=True):
        held = occurrences[start:stop]
        # Full but for the last token that leads, unless one token alone has more.
        assert sum(held) < part_tokens + max(held)
        assert start == 0 or occurrences[start]


@st.composite
def followed_rows(draw: st.DrawFn) -> list[tuple[tuple[int, int], int, int]]:
    ngrams = sorted(draw(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8)))
    return [(ngram, token, draw(st.integers(1, 3))) for ngram in ngrams for token in range(draw(st.integers(1, 5)))]


@given(followed_rows(), st.integers(2, 7), st.lists(st.integers(1, 6), max_size=12))
@settings(deadline=None, max_examples=200)
def test_a_sieve_leaves_out_rare_ngrams_wherever_it_is_asked(
    rows: list[tuple[tuple[int, int], int, int]], least: int, steps: list[int]
) -> None:
    sieve = _Sieve(least)
    sink = RowSink(np.empty((3, 100), dtype=np.uint32), np.empty(100, dtype=np.uint64))
    found: list[tuple[tuple[int, ...], int, int]] = []
    left = list(rows)

    def settle(*, is_last: bool) -> None:
        n_ready = sieve.settle(sink, 2, is_last=is_last)
        assert sink.row - n_ready < least
        # What is written leaves the sink, as `OrderFile.flush` does it.
        columns, totals = sink.columns[:, :n_ready].T.tolist(), sink.totals[:n_ready].tolist()
        found.extend(((a, b), token, n) for (a, b, token), n in zip(columns, totals, strict=True))
        n_left = sink.row - n_ready
        sink.columns[:, :n_left] = sink.columns[:, n_ready : sink.row].copy()
        sink.totals[:n_left] = sink.totals[n_ready : sink.row].copy()
        sink.row = n_left
        sieve.n_settled -= n_ready

    for step in [*steps, len(rows)]:
        for ngram, token, n in left[:step]:
            sink.columns[:, sink.row] = (*ngram, token)
            sink.totals[sink.row] = n
            sink.row += 1
        del left[:step]
        settle(is_last=False)
    settle(is_last=True)
    totals: Counter[tuple[int, int]] = Counter()
    for ngram, _, n in rows:
        totals[ngram] += n
    assert found == [row for row in rows if totals[row[0]] >= least]
    rare = [n for n in totals.values() if n < least]
    assert sink.dropped.tolist() == [len(rare), sum(rare)]
