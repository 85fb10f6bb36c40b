"""Beside the counts that it was made of, a next-token table's moved and swapped heads are named, and a sound one is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from bundle_tables import SPECS, counts_of, made_spec, made_table
from numpy.typing import NDArray
from small_tables import lay_table
from typer.testing import CliRunner

from engram_cli.app import app
from engram_tables.address.spec import AddressSpec
from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.corpus.counts.ngram_counts import NO_NEXT
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.fetch.table import open_table
from engram_tables.inspect import stats_counts
from engram_tables.inspect.stats import StatsReport, table_stats
from engram_tables.inspect.stats_counts import Verdict, draw_pairs
from engram_tables.inspect.stats_findings import Severity
from engram_tables.inspect.stats_record import stats_record
from engram_tables.storage.building.next_token import plan_next_token
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.table.ranks import Rank, owned_rows

SPEC = made_spec((3, 3))
STEPS = (1,) * 16 + (2,) * 3 + (5,)
Rows = NDArray[np.uint8]


def made(place: Path, spec: AddressSpec, n_tokens: int, *, steps: Sequence[int] = STEPS) -> tuple[Path, Counts]:
    """A table of width 32 and its counts; the more `steps` differ, the more tokens follow each."""
    rng = np.random.default_rng(1)
    ids = [0]
    for step in rng.choice(steps, n_tokens).tolist():
        ids.append((3 * ids[-1] + step) % 47)
    spec = replace(spec, row_width=32)
    counts = counts_of(place / "counts", [np.array(ids, np.uint32)], spec, next_raw=True)
    plan = plan_next_token(spec, counts, codec="bf16", layout="packed", seed=5, block_bytes=4096)
    build_table(plan, place / "table", threads=1)
    return place / "table", counts


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counts]:
    return made(tmp_path_factory.mktemp("right"), SPEC, 250)


def laid(source: Path, path: Path, change: Callable[[dict[tuple[int, int, int], Rows]], None]) -> Path:
    """The table again, its heads' rows changed: by layer id, order and head, views of the records."""
    with open_table(source) as table:
        spec, empty = table.spec, replace(table.stored.manifest, shards=())  # type: ignore[attr-defined]
        records = {layer.layer_id: table.fetch_rows(layer.layer_id, np.arange(layer.n_rows)) for layer in spec.layers}
    heads = {
        (layer.layer_id, *column): records[layer.layer_id][offset : offset + modulus]
        for layer in spec.layers
        for column, offset, modulus in zip(spec.columns, layer.offsets, chain.from_iterable(layer.moduli), strict=True)
    }
    change(heads)
    return lay_table(path, empty, records)


def stats_of(path: Path, counts: Counts, seed: int = 0) -> StatsReport:
    with open_table(path) as table:
        return table_stats(table, sample=64, seed=seed, counts=counts)


@pytest.mark.parametrize("kind", ["equal heads", "one head has no bundle", "salted", "narrow and lagged", "boundaries"])
def test_a_sound_table_has_no_finding(tmp_path: Path, kind: str) -> None:
    path, counts = made(tmp_path, SPECS[kind], 200)
    for seed in range(2):
        report = stats_of(path, counts, seed)
        assert report.findings == ()
        assert report.counted is not None
        assert {head.verdict for head in report.counted} == {Verdict.HOLDS}
        assert len(report.counted) == 2 * len(SPECS[kind].columns)
        assert all(head.share > 0.8 > 0.4 > head.share_at_random for head in report.counted)


@pytest.mark.parametrize("by", [1, -1, 3])
def test_a_shifted_head_is_named(right: tuple[Path, Counts], tmp_path: Path, by: int) -> None:
    source, counts = right

    def shift(heads: dict[tuple[int, int, int], Rows]) -> None:
        for where in ((1, 2, 2), (14, 3, 0)):
            heads[where][:] = np.roll(heads[where], by, axis=0)

    path = laid(source, tmp_path / "t", shift)
    with open_table(path) as table:
        assert table_stats(table, sample=64).findings == ()
    report = stats_of(path, counts)
    (finding,) = report.findings
    assert (finding.check, finding.severity) == ("shifted-head", Severity.FAULT)
    assert finding.where == "2 heads (layer 1, order 2, head 2; … layer 14, order 3, head 0)"
    words = {1: "by one: the rows of their n-grams lie one id further", -1: "by one: the rows of their n-grams lie one "
             "id before", 3: "by 3: the rows of their n-grams lie 3 ids further"}[by]  # fmt: skip
    assert words in finding.found
    assert not report.is_sound
    wrong = [head for head in stats_record(report)["counted"] or [] if head["verdict"] != "holds"]
    assert [(head["layer_id"], head["order"], head["head"]) for head in wrong] == [(1, 2, 2), (14, 3, 0)]
    assert all(head["moved_by"] == by and head["n_explained"] > 0.8 * head["n_tried"] for head in wrong)


def test_swapped_and_copied_heads_are_named(right: tuple[Path, Counts], tmp_path: Path) -> None:
    source, counts = right

    def swap(heads: dict[tuple[int, int, int], Rows]) -> None:
        left, other = heads[1, 3, 0], heads[1, 3, 2]
        n = min(len(left), len(other))
        left[:n], other[:n] = other[:n].copy(), left[:n].copy()
        n = min(len(heads[14, 2, 1]), len(heads[14, 2, 0]))
        heads[14, 2, 1][:n] = heads[14, 2, 0][:n]

    found = {finding.check: finding for finding in stats_of(laid(source, tmp_path / "t", swap), counts).findings}
    swapped, filled = found["swapped-heads"], found["filled-as-other-head"]
    assert "heads 0 and 2 are swapped" in swapped.found
    assert swapped.where == "layer 1, order 3, head 0 and layer 1, order 3, head 2"
    assert "filled as head 0" in filled.found
    assert filled.where == "layer 14, order 2, head 1"


def test_other_rows_are_named_but_not_explained(right: tuple[Path, Counts], tmp_path: Path) -> None:
    source, counts = right

    def mix(heads: dict[tuple[int, int, int], Rows]) -> None:
        whole, part = heads[1, 2, 0], heads[14, 3, 1]
        whole[:] = whole[np.random.default_rng(3).permutation(len(whole))]
        # Rows that may lie anywhere: what is left of the head still holds more than half of its n-grams.
        some = part[: len(part) // 5 * 2]
        some[:] = np.roll(some, 13, axis=0)

    whole, part = stats_of(laid(source, tmp_path / "t", mix), counts).findings
    assert {whole.check, part.check} == {"unlike-counts"}
    assert whole.where == "layer 1, order 2, head 0"
    assert part.where == "layer 14, order 3, head 1"
    assert "a part of its rows is not" in part.found


def test_a_crowded_table_is_not_judged(tmp_path: Path) -> None:
    path, counts = made(tmp_path, SPEC, 20_000, steps=range(47))
    for table in (path, laid(path, tmp_path / "t", lambda heads: heads[1, 2, 0].__setitem__(slice(None), 0))):
        report = stats_of(table, counts)
        assert report.counted is not None
        verdicts = {(head.layer_id, head.order, head.head): head.verdict for head in report.counted}
        # Rows of zeros are told from right ones however full those are.
        zeroed = verdicts.pop((1, 2, 0))
        assert zeroed is (Verdict.CROWDED if table == path else Verdict.UNLIKE)
        assert set(verdicts.values()) <= {Verdict.CROWDED, Verdict.HOLDS}
        assert Verdict.CROWDED in verdicts.values()


def test_few_n_grams_are_not_enough(tmp_path: Path) -> None:
    path, counts = made(tmp_path, SPEC, 12)
    report = stats_of(path, counts)
    assert {head.verdict for head in report.counted or ()} == {Verdict.CROWDED}
    assert report.findings == ()


@pytest.mark.parametrize("by", ["rows", "head"])
def test_a_rank_is_judged_by_its_own_rows(right: tuple[Path, Counts], tmp_path: Path, by: str) -> None:
    source, counts = right
    owned = owned_rows(SPEC, by=by, rank=1, n_ranks=2)
    with open_table(source) as table:
        records = {layer_id: table.fetch_rows(layer_id, np.arange(SPEC.layer(layer_id).n_rows)) for layer_id in owned}
        whole = table.stored.manifest  # type: ignore[attr-defined]
    empty = replace(whole, shards=(), owned=owned, rank=Rank(by=by, rank=1, n_ranks=2))
    report = stats_of(lay_table(tmp_path / "rank", empty, records), counts)
    assert report.counted
    assert {head.verdict for head in report.counted} <= {Verdict.HOLDS, Verdict.CROWDED}
    assert Verdict.HOLDS in {head.verdict for head in report.counted}
    assert len(report.counted) < 2 * len(SPEC.columns)
    assert report.findings == ()


def test_what_does_not_belong_together_is_refused(right: tuple[Path, Counts], tmp_path: Path) -> None:
    path, _ = right
    _, other = made(tmp_path, SPEC, 251)
    with pytest.raises(SpecMismatch, match="found other counts"):
        stats_of(path, other)
    drawn = made_table(tmp_path / "drawn", SPEC)
    with pytest.raises(InvalidInput, match="found init normal, expected a next-token table"):
        stats_of(drawn, other)


def test_the_drawn_n_grams_are_frequent_and_go_on_as_said(
    right: tuple[Path, Counts], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, counts = right
    followed: dict[tuple[int, ...], dict[int, int]] = {}
    rows = counts.load(2)
    assert rows.next_tokens is not None
    for ngram, token, times in zip(rows.ngrams.tolist(), rows.next_tokens.tolist(), rows.counts.tolist(), strict=True):
        if token != NO_NEXT:
            followed.setdefault(tuple(ngram), {})[token] = times
    every = draw_pairs(counts, 2, seed=0)
    drawn = {tuple(ngram): token for ngram, token in zip(every.ngrams.tolist(), every.tokens.tolist(), strict=True)}
    assert drawn.keys() == followed.keys()
    for (ngram, token), times in zip(drawn.items(), every.counts.tolist(), strict=True):
        assert followed[ngram][token] == times == max(followed[ngram].values())
    assert all(before >= after for before, after in pairwise(every.counts.tolist()))
    monkeypatch.setattr(stats_counts, "N_NGRAMS", 20)
    monkeypatch.setattr(stats_counts, "_POOL_PAIRS", 60)
    some, others = draw_pairs(counts, 2, seed=1), draw_pairs(counts, 2, seed=2)
    assert len(some.tokens) == len(others.tokens) == 20
    assert some.ngrams.tolist() != others.ngrams.tolist()
    assert some.counts.min() >= np.sort(np.concatenate([list(f.values()) for f in followed.values()]))[-60]
    assert draw_pairs(counts, 2, seed=1).ngrams.tolist() == some.ngrams.tolist()


def test_the_command_says_so(right: tuple[Path, Counts], tmp_path: Path) -> None:
    source, counts = right

    def shift(heads: dict[tuple[int, int, int], Rows]) -> None:
        heads[1, 2, 2][:] = np.roll(heads[1, 2, 2], 1, axis=0)

    path = laid(source, tmp_path / "t", shift)
    ran = CliRunner().invoke(app, ["inspect", "stats", str(source), "--counts", str(counts.path)])
    assert ran.exit_code == 0
    assert "12 of 12 heads hold the rows of their n-grams" in ran.stdout
    ran = CliRunner().invoke(app, ["inspect", "stats", str(path), "--counts", str(counts.path)])
    assert ran.exit_code == 6
    assert "layer 1, order 2, head 2" in ran.stdout
    assert "shifted by one: the rows of its n-grams lie one id further" in " ".join(ran.stdout.split())
    assert "11 of 12 heads hold" in ran.stdout
    assert "shifted +1" in ran.stdout
    assert CliRunner().invoke(app, ["inspect", "stats", str(path)]).exit_code == 0
