"""Merging counts: any order and any steps give the bytes of one count of everything."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_counts import Documents, contents, count_store, small_pieces, store, vocabulary_of

from engram_tables.corpus.counts import count_work, counts_merge
from engram_tables.corpus.counts.count_corpus import CountedCorpus
from engram_tables.corpus.counts.counts_merge import merge_counts, pack_rows
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.corpus.counts.ngram_counts import NgramCounts
from engram_tables.corpus.counts.windows import WindowForm
from engram_tables.errors import InvalidInput, SpecMismatch

VOCABULARY = vocabulary_of([0, 1, 2, 3, 3, 2])
WIDE = vocabulary_of(np.arange(2**20) % 2**17)
"""Five of its canonical ids fill two words, and four with a follower."""


@pytest.fixture(autouse=True, scope="module")
def _without_flushing() -> Iterator[None]:
    """Nothing here loses its power, and thousands of small files are written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def documents_of(seed: int, n_documents: int = 6, size: int = 6) -> Documents:
    generator = np.random.default_rng(seed)
    return [
        [None if token == 0 else int(token) - 1 for token in generator.integers(0, size + 1, generator.integers(0, 30))]
        for _ in range(n_documents)
    ]


def counts_of(place: Path, name: str, documents: Documents, vocabulary: Any = VOCABULARY, **options: Any) -> Path:
    store(place / f"{name}.tokens", documents, vocabulary)
    options = {"orders": (2, 3), **options}
    count_store(place / f"{name}.tokens", place / name, vocabulary, threads=1, **options)
    return place / name


def merge(inputs: list[Path], output: Path, **options: Any) -> CountedCorpus:
    return merge_counts(inputs, output=output, threads=options.pop("threads", 1), **options)


@pytest.mark.parametrize(
    ("options", "vocabulary"),
    [
        ({}, VOCABULARY),
        ({"orders": (1,)}, VOCABULARY),
        ({"orders": (2, 5)}, WIDE),
        ({"next_raw": True, "orders": (1, 4)}, WIDE),
        ({"pad_token": 5}, VOCABULARY),
        ({"pad_token": 4, "next_raw": True, "orders": (5, 2)}, VOCABULARY),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_merging_is_associative_and_commutative_and_equals_one_count(
    tmp_path: Path, options: dict[str, Any], vocabulary: Any
) -> None:
    parts = [documents_of(1), documents_of(2, 1), documents_of(3, 9)]
    with small_pieces(part_tokens=40, group_rows=8):
        one, two, three = (counts_of(tmp_path, f"{nth}", part, vocabulary, **options) for nth, part in enumerate(parts))
        whole = contents(counts_of(tmp_path, "whole", [*parts[0], *parts[1], *parts[2]], vocabulary, **options))
        merge([one, two], tmp_path / "left")
        merge([tmp_path / "left", three], tmp_path / "left first")
        merge([two, three], tmp_path / "right")
        merge([one, tmp_path / "right"], tmp_path / "right first", threads=3)
        merge([three, one, two], tmp_path / "at once")
        merge([tmp_path / "at once"], tmp_path / "alone")
    for name in ("left first", "right first", "at once", "alone"):
        found = contents(tmp_path / name)
        # A token store's bytes read are the same however the documents are divided.
        assert found == whole, name
    assert not list(tmp_path.glob("*.work"))


@given(
    st.lists(st.lists(st.lists(st.none() | st.integers(0, 5), max_size=6), max_size=4), min_size=1, max_size=4),
    st.permutations(range(4)),
    st.integers(1, 3),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_division_in_any_order_gives_one_count(
    tmp_path: Path, parts: list[Documents], order: list[int], least: int
) -> None:
    for left in tmp_path.iterdir():
        shutil.rmtree(left)
    with small_pieces(part_tokens=20, slice_windows=2):
        inputs = [counts_of(tmp_path, f"{nth}", part) for nth, part in enumerate(parts)]
        whole = counts_of(tmp_path, "whole", list(itertools.chain.from_iterable(parts)), min_count=least)
        merge([inputs[nth] for nth in order if nth < len(inputs)], tmp_path / "merged", min_count=least)
    assert contents(tmp_path / "merged") == contents(whole)


def test_an_empty_part_adds_nothing(tmp_path: Path) -> None:
    one = counts_of(tmp_path, "one", documents_of(1))
    none = counts_of(tmp_path, "none", [])
    merge([none, one, counts_of(tmp_path, "blank", [[], []])], tmp_path / "merged")
    merge([none], tmp_path / "nothing")
    with open_counts(tmp_path / "merged") as merged, open_counts(one) as alone:
        assert merged.manifest["orders"] == alone.manifest["orders"]
        assert merged.figures.n_documents == alone.figures.n_documents + 2
    assert contents(tmp_path / "nothing") == contents(none)


def test_counts_beyond_32_bits_add_up(tmp_path: Path) -> None:
    """A count that was merged a dozen times over is larger than any run of tokens has."""
    last = counts_of(tmp_path, "0", [[1, 2] * 2**16], orders=(2,))
    for step in range(1, 5):
        shutil.copytree(last, tmp_path / "again")
        inputs = [last, tmp_path / "again"]
        for nth in range(14):
            inputs.append(tmp_path / f"copy-{nth}")
            shutil.copytree(last, inputs[-1])
        merge(inputs, tmp_path / f"{step}")
        last = tmp_path / f"{step}"
        for path in inputs[1:]:
            shutil.rmtree(path)
    with open_counts(last) as counts:
        assert counts.lookup([[1, 2]]).tolist() == [2**32]
        assert counts.lookup([[2, 1]]).tolist() == [2**32 - 2**16]
        assert counts.n_total(1) == counts.figures.n_tokens == 2**33


def refused(tmp_path: Path, inputs: list[Path], kind: type[Exception], message: str, **options: Any) -> None:
    before = contents(tmp_path)
    with pytest.raises(kind, match=message):
        merge(inputs, tmp_path / "merged", **options)
    assert contents(tmp_path) == before
    assert not (tmp_path / "merged.work").exists()


def test_counts_of_other_things_are_refused(tmp_path: Path) -> None:
    one = counts_of(tmp_path, "one", [[1, 2, 3]])
    documents: Documents = [[1, 2], [4, 5, 1]]
    for name, vocabulary, options, kind, message in (
        ("map", vocabulary_of([0, 1, 2, 3, 3, 3]), {}, SpecMismatch, "map: vocab_sha256 is .*, expected that of .*one"),
        ("size", vocabulary_of([0, 1, 2, 3, 4, 5]), {}, SpecMismatch, "size: .*expected that of .*one"),
        ("orders", VOCABULARY, {"orders": (2,)}, InvalidInput, r"orders: found orders \(1, 2\), expected .*--orders"),
        ("next", VOCABULARY, {"next_raw": True}, SpecMismatch, "next: next_size is 6, expected .*one, 0"),
        ("pad", VOCABULARY, {"pad_token": 0}, SpecMismatch, "pad: pad_id is 0, expected .*one, None"),
        ("rare", VOCABULARY, {"min_count": 2}, InvalidInput, "rare: found counts without the n-grams below 2"),
    ):
        other = counts_of(tmp_path, name, documents, vocabulary, **options)
        refused(tmp_path, [one, other], kind, message)
        if name not in ("rare",):
            refused(tmp_path, [other, one], kind, "one: ")
    refused(tmp_path, [tmp_path / "rare", one], InvalidInput, "rare: found counts without")
    refused(tmp_path, [tmp_path / "rare"], InvalidInput, "rare: found counts without")
    other_pad = counts_of(tmp_path, "pad 1", documents, pad_token=1)
    refused(tmp_path, [tmp_path / "pad", other_pad], SpecMismatch, "pad 1: pad_id is 1, expected .*pad, 0")


def test_inputs_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    one = counts_of(tmp_path, "one", [[1, 2, 3]])
    (tmp_path / "way").symlink_to("one")
    refused(tmp_path, [], InvalidInput, "found none to merge")
    refused(tmp_path, [one, one], InvalidInput, "one: found it twice")
    refused(tmp_path, [one, tmp_path / "way"], InvalidInput, "way: found it twice")
    refused(tmp_path, [one, tmp_path / "deep" / ".." / "one"], InvalidInput, "found it twice|no counts")
    refused(tmp_path, [one, tmp_path / "nowhere"], InvalidInput, r"nowhere: no counts\.json")
    refused(tmp_path, [one], InvalidInput, "min-count: found 0", min_count=0)
    with pytest.raises(InvalidInput, match="one"):
        merge([one], one, force=True)
    with pytest.raises(InvalidInput, match="one"):
        merge([one], one / "inside")
    with pytest.raises(InvalidInput, match="exists"):
        merge([one], tmp_path / "one.tokens")


def test_a_damaged_input_is_refused_with_its_file(tmp_path: Path) -> None:
    one = counts_of(tmp_path, "one", documents_of(1))
    two = counts_of(tmp_path, "two", documents_of(2))
    path = two / "order-3" / "part-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    with pytest.raises(InvalidInput, match=r"two/order-3/part-00000\.parquet: .*damaged"):
        merge([one, two], tmp_path / "merged")
    path.write_bytes(whole)
    assert merge([one, two], tmp_path / "merged").n_reused == 1


def test_a_merge_goes_on_where_another_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = vocabulary_of(range(40))
    inputs = [counts_of(tmp_path, f"{nth}", documents_of(nth, size=40), many) for nth in range(4)]
    with small_pieces(part_tokens=30):
        merge(inputs, tmp_path / "whole")
        for name, n_done, kept in (
            ("pack_rows", 3, "1 runs"), ("pack_rows", 4, "3 runs"), ("part", 2, "2 parts"), ("part", 3, "5 parts")
        ):  # fmt: skip
            with monkeypatch.context() as patch:
                interrupt_after(patch, name, n_done)
                with pytest.raises(KeyboardInterrupt) as stopped:
                    merge(inputs, tmp_path / "merged")
            notes = " ".join(getattr(stopped.value, "__notes__", ()))
            assert not (tmp_path / "merged").exists()
            assert kept in notes
            assert "merged.work; the same command goes on there" in notes
            assert not list((tmp_path / "merged.work").glob("partial-*"))
        with pytest.raises(InvalidInput, match=r"work of another run .*inputs: 4 then, 3 now"):
            merge(inputs[:3], tmp_path / "merged")
        with pytest.raises(InvalidInput, match=r"work of another run .*min_count was 1, now 2"):
            merge(inputs, tmp_path / "merged", min_count=2)
        done = merge(inputs, tmp_path / "merged", threads=2)
    assert done.n_runs == 4
    assert done.n_reused == 4 + 5
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    assert not (tmp_path / "merged.work").exists()


def interrupt_after(patch: pytest.MonkeyPatch, name: str, n_done: int) -> None:
    """Stop at the step that follows `n_done` packed batches, or finished parts."""
    where, attribute = (counts_merge, "pack_rows") if name == "pack_rows" else (count_work, "publish_record")
    real, done = getattr(where, attribute), [0]

    def step(*arguments: Any) -> Any:
        if attribute == "publish_record" and "start" in arguments[2]:
            return real(*arguments)
        if done[0] == n_done:
            raise KeyboardInterrupt
        done[0] += 1
        return real(*arguments)

    patch.setattr(where, attribute, step)


def test_restart_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [counts_of(tmp_path, f"{nth}", documents_of(nth)) for nth in range(2)]
    with monkeypatch.context() as patch:
        interrupt_after(patch, "part", 0)
        with pytest.raises(KeyboardInterrupt):
            merge(inputs, tmp_path / "merged")
    assert (tmp_path / "merged.work").is_dir()
    assert merge(inputs[:1], tmp_path / "merged", restart=True).n_reused == 0
    assert contents(tmp_path / "merged") == contents(inputs[0])


@pytest.mark.parametrize("damaged", ["keys", "counts", "blocks", "tokens"])
def test_a_damaged_run_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str) -> None:
    inputs = [counts_of(tmp_path, f"{nth}", documents_of(nth)) for nth in range(3)]
    merge(inputs, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, "part", 0)
        with pytest.raises(KeyboardInterrupt):
            merge(inputs, tmp_path / "merged")
    work = tmp_path / "merged.work"
    for path in sorted(work.glob(f"run-1-2*.{damaged}.npy")):
        path.write_bytes(path.read_bytes()[:-8])
    assert merge(inputs, tmp_path / "merged").n_reused == 1
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


@given(st.integers(1, 5), st.sampled_from([1, 2, 300, 2**17, 2**20]), st.sampled_from([0, 1, 300, 2**20]), st.data())
@settings(deadline=None, max_examples=80)
def test_rows_are_packed_as_windows_are(order: int, canonical_size: int, next_size: int, data: st.DataObject) -> None:
    form = WindowForm(order=order, canonical_size=canonical_size, next_size=next_size)
    token = st.sampled_from([0, canonical_size - 1, canonical_size // 2])
    rows = data.draw(st.lists(st.lists(token, min_size=order, max_size=order), min_size=1, max_size=5))
    following = data.draw(
        st.lists(st.sampled_from([-1, 0, max(next_size - 1, 0)]), min_size=len(rows), max_size=len(rows))
    )
    found = NgramCounts(
        order=order,
        columns=np.ascontiguousarray(np.array(rows, dtype=np.uint32).T),
        counts=np.ones(len(rows), dtype=np.uint64),
        next_tokens=np.array(following, dtype=np.int64) if next_size else None,
    )
    keys = pack_rows(found, form).reshape(len(rows), -1).tolist()
    for row, after, words in zip(rows, following, keys, strict=True):
        value = 0
        for token_id in row:
            value = value << form.token_bits | token_id
        if next_size:
            value = value << form.next_bits | (after if after >= 0 else 2**form.next_bits - 1)
        assert words == ([value >> 64, value % 2**64] if form.n_words == 2 else [value % 2**64])


def test_the_manifest_says_nothing_of_the_steps(tmp_path: Path) -> None:
    one, two = (counts_of(tmp_path, name, documents_of(nth)) for nth, name in enumerate(("one", "two")))
    merge([two, one], tmp_path / "merged")
    text = (tmp_path / "merged" / "counts.json").read_text()
    assert str(tmp_path) not in text
    manifest = json.loads(text)
    assert sorted(manifest) == sorted(json.loads((one / "counts.json").read_bytes()))
