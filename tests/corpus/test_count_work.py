"""Counting within a memory budget: equal to the plain-Python twin, the same bytes for any division of the work."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_tables.address.vocabulary import Rule, Vocabulary
from engram_tables.corpus.counts import count_work, counts_writer, runs, unpacking
from engram_tables.corpus.counts.count_corpus import plan_count, run_count
from engram_tables.corpus.counts.counts_merge import merge_counts
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.corpus.counts.reference import count_followed_reference
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.corpus.tokens.token_store import DEAD
from engram_tables.errors import CapacityError, InvalidInput, SpecMismatch

Documents = list[list[int | None]]


def vocabulary_of(canonical_ids: list[int] | np.ndarray[Any, Any]) -> Vocabulary:
    return Vocabulary(
        rule=Rule.IDENTITY,
        canonical_ids=np.array(canonical_ids, dtype=np.uint32),
        tokens=[],
        tokenizer_json=b"{}",
        source="a test",
    )


def store(path: Path, documents: Documents, vocabulary: Vocabulary, shard_documents: int = 3) -> Path:
    stored = [[DEAD if token is None else token for token in document] for document in documents]
    write_tokens(
        path, stored, token_size=vocabulary.token_count, tokenizer_sha256=vocabulary.tokenizer_sha256,
        shard_documents=shard_documents,
    )  # fmt: skip
    return path


def rows_of(path: Path, order: int) -> dict[tuple[int, ...], int]:
    with open_counts(path) as counts:
        found = counts.load(order)
        ngrams = found.ngrams.tolist()
        if found.next_tokens is not None:
            ngrams = [[*ngram, token] for ngram, token in zip(ngrams, found.next_tokens.tolist(), strict=True)]
        return {tuple(ngram): n for ngram, n in zip(ngrams, found.counts.tolist(), strict=True)}


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@st.composite
def corpora(draw: st.DrawFn) -> tuple[Documents, list[int]]:
    n_classes = draw(st.sampled_from([1, 2, 3, 9, 300]))
    canonical_ids = [*range(n_classes), *draw(st.lists(st.integers(0, n_classes - 1), max_size=5))]
    few = draw(st.lists(st.integers(0, len(canonical_ids) - 1), min_size=1, max_size=5))
    token = st.sampled_from([*few, len(canonical_ids) - 1, None])
    return draw(st.lists(st.lists(token, max_size=9), max_size=9)), canonical_ids


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    corpus=corpora(),
    orders=st.sets(st.integers(1, 5), min_size=1),
    with_next=st.booleans(),
    is_padded=st.booleans(),
    chunk=st.integers(1, 12),
    share=st.sampled_from([2, 5, 32_768]),
    split=st.integers(0, 9),
    least=st.sampled_from([1, 1, 2, 3]),
)
def test_counts_equal_the_reference_for_any_memory_threads_and_split(
    tmp_path: Path,
    corpus: tuple[Documents, list[int]],
    orders: set[int],
    with_next: bool,
    is_padded: bool,
    chunk: int,
    share: int,
    split: int,
    least: int,
) -> None:
    documents, canonical_ids = corpus
    vocabulary = vocabulary_of(canonical_ids)
    for name in ("one", "two", "whole", "a", "b"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    whole = store(tmp_path / "whole", documents, vocabulary)
    parts = [
        store(tmp_path / "a", documents[:split], vocabulary),
        store(tmp_path / "b", documents[split:], vocabulary, shard_documents=1),
    ]
    options: dict[str, Any] = {
        "vocabulary": vocabulary,
        "orders": tuple(orders),
        "next_raw": with_next,
        "pad_token": 0 if is_padded else None,
    }
    rare = {"min_count": least}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts_writer, "PART_TOKENS", 7)
        patch.setattr(counts_writer, "ROW_GROUP_ROWS", 4)
        patch.setattr(count_work, "ROW_GROUP_ROWS", 4)
        run_count(plan_count([whole], output=tmp_path / "one", **options, **rare), threads=1)
        patch.setattr(count_work.CountWork, "chunk_tokens", lambda *_: chunk)
        patch.setattr(runs, "SLICE_WINDOWS", share)
        patch.setattr(unpacking, "STRETCH", 3)
        run_count(plan_count(parts, output=tmp_path / "two", **options, **rare), threads=3)
        separate = [tmp_path / "c0", tmp_path / "c1"]
        for tokens, output in zip(parts, separate, strict=True):
            shutil.rmtree(output, ignore_errors=True)
            run_count(plan_count([tokens], output=output, **options))
        shutil.rmtree(tmp_path / "merged", ignore_errors=True)
        merge_counts(separate[:: 1 if split % 2 else -1], output=tmp_path / "merged", threads=2, min_count=least)
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "merged")
    for order in orders | {1}:
        expected = count_followed_reference(
            documents, order, canonical_ids=canonical_ids, pad_id=canonical_ids[0] if is_padded else None,
            with_next=with_next,
        )  # fmt: skip
        totals: Counter[tuple[int, ...]] = Counter()
        for key, n in expected.items():
            totals[key[:order]] += n
        kept = {ngram: n for ngram, n in totals.items() if n >= least or order == 1}
        found = rows_of(tmp_path / "one", order)
        assert list(found.items()) == [(key, n) for key, n in expected.items() if key[:order] in kept]
        with open_counts(tmp_path / "one") as counts:
            assert counts.n_distinct(order) == len(kept)
            assert counts.n_total(order) == sum(kept.values())
            told = counts.manifest["orders"][str(order)]
            assert told["dropped_distinct"] == len(totals) - len(kept)
            assert told["dropped_total"] == sum(totals.values()) - sum(kept.values())
            if totals:
                assert counts.lookup(list(totals)).tolist() == [kept.get(ngram, 0) for ngram in totals]
            if with_next and kept:
                ngram = max(kept, key=lambda found: kept[found])
                tokens, n = counts.following(ngram)
                pairs = dict(zip(tokens.tolist(), n.tolist(), strict=True))
                assert pairs == {key[order]: n for key, n in expected.items() if key[:order] == ngram}


@pytest.mark.parametrize("orders", [(2, 3, 4), (5,), (2, 5)])
@pytest.mark.parametrize("with_next", [False, True])
def test_ids_at_the_top_of_the_largest_vocabulary(tmp_path: Path, orders: tuple[int, ...], with_next: bool) -> None:
    size = 2**20
    vocabulary = vocabulary_of(np.arange(size))
    generator = np.random.default_rng(5)
    pool = [size - 1, size - 2, size - 17, 0, 1, 2**19, 2**19 - 1, 2**16]
    documents: Documents = [
        [pool[at] for at in generator.integers(0, len(pool), n)] for n in (0, 1, 700, 0, 2, 3, 1500, 1)
    ]
    tokens = store(tmp_path / "tokens", documents, vocabulary)
    plan = plan_count([tokens], vocabulary=vocabulary, orders=orders, output=tmp_path / "c", next_raw=with_next)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(count_work.CountWork, "chunk_tokens", lambda *_: 400)
        run_count(plan, threads=2)
    for order in orders:
        expected = count_followed_reference(documents, order, canonical_ids=range(size), with_next=with_next)
        assert list(rows_of(tmp_path / "c", order).items()) == list(expected.items())


def test_rare_ngrams_are_left_out_and_counted(tmp_path: Path) -> None:
    vocabulary = vocabulary_of([0, 1, 2])
    documents: Documents = [[1, 2, 1, 2, 1], [0, 1, 2]]
    tokens = store(tmp_path / "tokens", documents, vocabulary)
    plan = plan_count([tokens], vocabulary=vocabulary, orders=(2, 3), output=tmp_path / "c", min_count=2)
    manifest = run_count(plan).manifest
    assert rows_of(tmp_path / "c", 1) == {(0,): 1, (1,): 4, (2,): 3}
    assert rows_of(tmp_path / "c", 2) == {(1, 2): 3, (2, 1): 2}
    assert manifest["orders"]["2"]["dropped_distinct"] == 1
    assert manifest["orders"]["2"]["dropped_total"] == 1
    assert manifest["orders"]["3"] == {
        "n_rows": 1, "n_distinct": 1, "n_total": 2, "dropped_distinct": 2, "dropped_total": 2
    }  # fmt: skip


def test_memory_that_is_too_little_is_refused_with_the_least(tmp_path: Path) -> None:
    vocabulary = vocabulary_of([0, 1])
    tokens = store(tmp_path / "tokens", [[0, 1]], vocabulary)
    plan = plan_count([tokens], vocabulary=vocabulary, orders=(2,), output=tmp_path / "c")
    with pytest.raises(CapacityError, match=r"memory: found 1.00 MiB .*, expected \d+"):
        run_count(plan, memory_bytes=1 << 20, threads=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens"]


def test_a_store_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    vocabulary = vocabulary_of([0, 1])
    write_tokens(tmp_path / "tokens", [[0, 1]], token_size=2, tokenizer_sha256="ab" * 32)
    plan = plan_count([tmp_path / "tokens"], vocabulary=vocabulary, orders=(2,), output=tmp_path / "c")
    with pytest.raises(SpecMismatch, match="tokenizer"):
        run_count(plan)


def test_a_run_goes_on_where_another_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = vocabulary_of(list(range(50)))
    generator = np.random.default_rng(1)
    documents: Documents = [generator.integers(0, 50, n).tolist() for n in (400, 0, 900, 1)]
    tokens = store(tmp_path / "tokens", documents, vocabulary)
    monkeypatch.setattr(counts_writer, "PART_TOKENS", 100)
    arguments: dict[str, Any] = {"vocabulary": vocabulary, "orders": (2, 3)}
    run_count(plan_count([tokens], output=tmp_path / "whole", **arguments))
    plan = plan_count([tokens], output=tmp_path / "c", **arguments)
    monkeypatch.setattr(count_work.CountWork, "chunk_tokens", lambda *_: 100)
    for step, stop_at in ((runs, 3), (runs, 4), (count_work, 2), (count_work, 5)):
        with monkeypatch.context() as patch:
            _interrupt_after(patch, step, stop_at)
            with pytest.raises(KeyboardInterrupt) as stopped:
                run_count(plan, threads=1)
        assert any("the same command goes on" in note for note in stopped.value.__notes__)
        assert not list(plan.work.glob("partial-*"))
        assert not plan.output.exists()
    with pytest.raises(InvalidInput, match=r"orders: 3 then, 2 now.*--restart"):
        run_count(plan_count([tokens], output=tmp_path / "c", vocabulary=vocabulary, orders=(2,)))
    done = run_count(plan, threads=2)
    assert done.n_reused > 7
    assert digests(tmp_path / "whole") == digests(tmp_path / "c")
    assert not plan.work.exists()


def _interrupt_after(patch: pytest.MonkeyPatch, where: Any, n_steps: int) -> None:
    name = "save_run" if where is runs else "publish_record"
    real, done = getattr(count_work, name), [0]

    def step(*arguments: Any) -> Any:
        if name == "publish_record" and "start" in arguments[2]:
            return real(*arguments)
        if done[0] == n_steps:
            raise KeyboardInterrupt
        done[0] += 1
        return real(*arguments)

    patch.setattr(count_work, name, step)
