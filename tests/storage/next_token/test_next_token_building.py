"""Tables built from counted next tokens: every row against the plain twin, same bytes, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import NEXT_SIZE, NO_NEXT, Planted, planted_counts, planted_spec, random_counts
from small_tables import small_spec, small_table

from engram_tables.address.hashing import hash_ngrams
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.errors import CapacityError, InvalidInput, SpecMismatch, UnsupportedTable
from engram_tables.fetch.table import open_table
from engram_tables.storage.building.next_token import NextTokenMaker, plan_next_token
from engram_tables.storage.building.next_token_windows import LayerWindows
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.next_token import reference
from engram_tables.storage.next_token.reading import reader_of
from engram_tables.storage.sides import open_side
from engram_tables.storage.table.reader import StoredTable

PLANTED = random_counts(60)
SEED = 7


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_counts(tmp_path_factory.mktemp("planted") / "counts", PLANTED)


def build(counts: Path, path: Path, *, threads: int = 1, spec: Any = None, **options: Any) -> Path:
    chosen = {"codec": "f32", "layout": "packed", "seed": SEED, "block_bytes": 4096, **options}
    with open_counts(counts) as opened:
        build_table(plan_next_token(spec or planted_spec(), opened, **chosen), path, threads=threads)
    return path


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def expected_rows(planted: Planted, layer_id: int) -> np.ndarray:
    spec = planted_spec()
    rows = np.zeros((spec.layer(layer_id).n_rows, 32))
    for ngram, following in planted.items():
        raw = {token: times for token, times in following.items() if token != NO_NEXT}
        for head, row in enumerate(hash_ngrams(spec, layer_id, 2, [ngram])[1][0]):
            rows[row] += reference.sketch_row(SEED, layer_id, 2, head, 2, raw, 32)
    return rows


def test_every_row_holds_the_sum_of_its_n_grams(counts: Path, tmp_path: Path) -> None:
    with open_table(build(counts, tmp_path / "t")) as table:
        for layer_id in (1, 14):
            rows = table.decode(table.fetch_rows(layer_id, np.arange(101)))
            assert (rows == expected_rows(PLANTED, layer_id)).all()
            assert rows.any()


@pytest.mark.parametrize("layout", ["packed", "split"])
def test_the_same_bytes_for_any_memory_and_threads(
    counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    options = {"codec": "fp8-e4m3-e8m0", "layout": layout, "spec": planted_spec(1009)}
    whole = contents(build(counts, tmp_path / "whole", **options))
    made = []

    class Small(LayerWindows):
        def __init__(self, *arguments: Any, **given: Any) -> None:
            # Room for 25 of the 120 pairs of a row and an n-gram that a layer has.
            super().__init__(*arguments, **{**given, "room_bytes": 3 * 8 * 25})
            made.append(self)

    monkeypatch.setattr("engram_tables.storage.building.next_token.LayerWindows", Small)
    monkeypatch.setattr("engram_tables.storage.building.next_token._TILE_VALUES", 32 * 17)
    assert contents(build(counts, tmp_path / "cut", threads=3, **options)) == whole
    assert made[0].n_made >= 10


def test_an_interrupted_build_goes_on_to_the_same_bytes(
    counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(build(counts, tmp_path / "whole"))
    add, n_calls = NextTokenMaker.places, 0

    def stop_later(self: NextTokenMaker, layer_id: int, order: int) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 7:
            raise KeyboardInterrupt
        return add(self, layer_id, order)

    monkeypatch.setattr(NextTokenMaker, "places", stop_later)
    with pytest.raises(KeyboardInterrupt) as stopped:
        build(counts, tmp_path / "t")
    assert "blocks are finished and stay" in str(stopped.value.__notes__)
    monkeypatch.undo()
    with open_counts(counts) as opened:
        plan = plan_next_token(planted_spec(), opened, codec="f32", layout="packed", seed=SEED, block_bytes=4096)
        assert build_table(plan, tmp_path / "t", threads=1).n_blocks_reused > 0
    assert contents(tmp_path / "t") == whole


@pytest.mark.parametrize("codec", ["f16", "bf16", "fp8-e4m3-e8m0", "int8-row", "q8_0"])
def test_planted_tokens_are_read_back_from_the_rows_alone(tmp_path: Path, codec: str) -> None:
    planted: Planted = {(5, 6): {17: 90, 250: 40, 3: 2}, (7, 8): {299: 1}}
    counts = planted_counts(tmp_path / "counts", planted)
    with StoredTable(build(counts, tmp_path / "t", codec=codec, spec=planted_spec(10_007))) as stored:
        reader = reader_of(stored)
    with open_table(tmp_path / "t") as table:
        for layer_id in (1, 14):
            ids = hash_ngrams(table.spec, layer_id, 2, [(5, 6), (7, 8), (9, 9)])[1]
            rows = table.decode(table.fetch_rows(layer_id, ids.reshape(-1))).reshape(3, 2, 32)
            top = reader.top(rows, order=2, layer=layer_id, k=3)
            assert top.ids[0, :2].tolist() == [17, 250]
            assert top.ids[1].tolist() == [299, -1, -1]
            assert top.ids[2].tolist() == [-1, -1, -1]
            assert top.known.tolist() == [True, True, False]
            assert top.estimates[0, :2] == pytest.approx([90, 40], rel=0.1)


def test_the_manifest_says_all_that_reading_needs(counts: Path, tmp_path: Path) -> None:
    seed = 2**64 - 1
    with StoredTable(build(counts, tmp_path / "t", seed=seed)) as stored:
        with open_counts(counts) as opened:
            digest = opened.manifest["manifest_sha256"]
        assert stored.manifest.init == {
            "kind": "next-token",
            "seed": str(seed),
            "sketch": "count-sketch-8",
            "next_size": NEXT_SIZE,
            "counts_sha256": digest,
        }
        recipe = reader_of(stored).recipe
    assert (recipe.seed, recipe.next_size, recipe.counts_sha256) == (seed, NEXT_SIZE, digest)
    # Another layout keeps the bytes of rows and what is said of them.
    with open_side(str(tmp_path / "t")) as side:
        plan = plan_repack(side.source, origin=side.manifest, layout="page")
        assert plan.manifest.init == stored.manifest.init


def test_tables_of_another_origin_and_unknown_sketches_are_refused(counts: Path, tmp_path: Path) -> None:
    with (
        StoredTable(small_table(tmp_path / "normal")) as stored,
        pytest.raises(InvalidInput, match="init normal, expected a next-token table; build one with"),
    ):
        reader_of(stored)
    with StoredTable(build(counts, tmp_path / "t")) as stored:
        manifest = stored.manifest
    later = replace(manifest, init={**(manifest.init or {}), "sketch": "count-sketch-9"})
    with pytest.raises(UnsupportedTable, match="found the sketch 'count-sketch-9' of next tokens"):
        type(manifest).from_bytes(later.to_bytes(), path="m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "iq4_nl"}, "decode only"),
        ({"spec": planted_spec(row_width=3)}, "row width: found 3 values, expected 4 to"),
        ({"spec": planted_spec(row_width=None)}, "--row-width"),
        ({"seed": -1}, "seed: found -1"),
        ({"spec": replace(small_spec(), canonical_size=999)}, "found 1,000 canonical ids, expected 999"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_plan(
    counts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        build(counts, tmp_path / "t", **changes)
    assert not (tmp_path / "t").exists()


def test_counts_that_do_not_fit_are_refused(counts: Path, tmp_path: Path) -> None:
    without = planted_counts(tmp_path / "without", {(1, 2): {NO_NEXT: 5}}, next_size=0)
    with pytest.raises(InvalidInput, match="without next tokens, expected them; count again with --next raw"):
        build(without, tmp_path / "t")
    with pytest.raises(SpecMismatch, match="counted with the vocabulary 0000"):
        build(counts, tmp_path / "t", spec=small_spec(vocab="1" * 64))
    with pytest.raises(InvalidInput, match="which is read, expected a place apart"):
        build(counts, counts / "t")
    with open_counts(counts) as opened:
        plan = plan_next_token(planted_spec(), opened, codec="f32", layout="packed", memory_bytes=193 * 2**20)
        with pytest.raises(CapacityError, match="give more"):
            build_table(plan, tmp_path / "t", threads=2)


def test_ids_that_are_hashed_as_they_are_may_have_more_room(counts: Path, tmp_path: Path) -> None:
    spec = replace(planted_spec(), canonical_size=1024, folded=False)
    with open_table(build(counts, tmp_path / "t", spec=spec)) as table:
        rows = table.decode(table.fetch_rows(1, np.arange(101)))
    assert (rows == expected_rows(PLANTED, 1)).all()


def test_a_sum_too_large_for_the_codec_ends_the_build_with_its_place(tmp_path: Path) -> None:
    counts = planted_counts(tmp_path / "counts", {(5, 6): {17: 70_000}})
    with pytest.raises(InvalidInput, match=r"layer 1, of the rows from .* need a codec of a wide range"):
        build(counts, tmp_path / "t", codec="f16")


def test_counts_past_32_bits_are_added_exactly(tmp_path: Path) -> None:
    counts = planted_counts(tmp_path / "counts", {(5, 6): {17: 2**40}})
    with open_table(build(counts, tmp_path / "t")) as table:
        rows = table.decode(table.fetch_rows(1, np.arange(101)))
    assert sorted(set(np.abs(rows[rows != 0]).tolist())) == [2.0**40]
