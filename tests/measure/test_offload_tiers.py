"""Memory in front of engines as `engram bench-offload` measures it: hits, held-out text, bytes held, and refusals."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_measure import SPEC, text_table
from typer.testing import CliRunner

from engram_cli.app import app
from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput, SpecMismatch
from engram_tables.fetch.gpu.host_device import HostDevice
from engram_tables.fetch.table import open_table
from engram_tables.fetch.tiers.budget import MemoryTier, shape_for
from engram_tables.fetch.tiers.hot_list import HotList, write_hot_list
from engram_tables.fetch.tiers.tiered import TieredEngine
from engram_tables.measure import bench as bench_module
from engram_tables.measure.bench import bench_offload
from engram_tables.measure.ceilings import memory_ceilings
from engram_tables.measure.offload import fronts, tiers
from engram_tables.measure.offload.lookups import Lookups
from engram_tables.measure.offload.plan import BenchPlan, Source, State, Target
from engram_tables.measure.trace import uniform_trace
from engram_tables.storage.building.writer import build_table, plan_table

WHOLE = (MemoryTier(budget_bytes=8 << 20),)
SMALL = (MemoryTier(budget_bytes=64 << 10),)
QUICK = BenchPlan(
    tokens=(1, 12), repeats=2, seconds=0.0, depths=(1, 2), bounds=False, sources=(Source.AUTO,), state=State.WARM,
    engine="gather", tiers=(WHOLE, SMALL),
)  # fmt: skip


@pytest.fixture(scope="module")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiers") / "table"
    build_table(plan_table(SPEC, codec="fp8-e4m3-e8m0", layout="packed", init="normal", shard_bytes=1 << 20), path)
    return path


@pytest.fixture(autouse=True)
def _quick_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings in a moment: their figures are not what is tested."""
    disk = bench_module.disk_ceilings
    monkeypatch.setattr(bench_module, "_SWEEP_SECONDS", 0.005)
    monkeypatch.setattr("engram_tables.measure.ceilings._MOST_DEPTH", 4)
    monkeypatch.setattr(
        bench_module, "memory_ceilings", lambda threads: memory_ceilings(region_bytes=16 << 20, repeats=1)
    )
    monkeypatch.setattr(
        bench_module, "disk_ceilings", lambda path, seconds, depths: disk(path, seconds=0.01, depths=depths)
    )
    monkeypatch.setattr("engram_tables.measure.ceilings.shutil.which", lambda program: None)


def _measured(record: dict[str, Any]) -> dict[str, Any]:
    (section,) = record["sections"]
    assert section["status"] == section["tiers"]["status"] == "measured", section
    found: dict[str, Any] = section["tiers"]
    return found


def _hot_list(path: Path, *, fingerprint: str | None = SPEC.fingerprint) -> Path:
    """Every row of both layers: what is asked for is there from the start."""
    rows = np.tile(np.arange(16_024), 2)
    write_hot_list(
        path, HotList.of(np.repeat([1, 2], 16_024), rows, np.ones(rows.size), fingerprint=fingerprint), force=True
    )
    return path


@pytest.mark.slow
def test_each_budget_stands_beside_the_engine_alone(table_path: Path) -> None:
    record = bench_offload(table_path, plan=replace(QUICK, streams=(1, 2)))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["mismatches"] == []
    found = _measured(record)
    assert (found["behind"], found["left_out"]) == ("gather", [])
    names = [None, "8 MiB", "64 KiB"]
    assert [(each["tokens_per_batch"], each["streams"], each["tier"]) for each in found["points"]] == [
        (n_tokens, streams, name) for n_tokens in (1, 12) for streams in (1, 2) for name in names
    ]
    for point in found["points"]:
        alone = next(
            each for each in found["points"]
            if each["tier"] is None and (each["tokens_per_batch"], each["streams"])
            == (point["tokens_per_batch"], point["streams"])
        )  # fmt: skip
        assert point["rows_per_s_over_alone"] == pytest.approx(point["rows_per_s"] / alone["rows_per_s"])
        if point["tier"] is None:
            assert (point["held_bytes"], point["hit_ratio"], point["levels"]) == (0, None, [])
            assert point["share_of_ceiling"] > 0
            continue
        (level,) = point["levels"]
        assert level["hits"] + level["misses"] == point["rows_per_batch"] * point["n"]
        assert point["hit_ratio"] == level["hits"] / (level["hits"] + level["misses"])
        assert 0 < point["rows_held"] <= level["slots"]
        assert point["held_bytes"] <= level["budget_bytes"]
    last = {point["tier"]: point for point in found["points"]}
    assert last["8 MiB"]["rows_held"] > last["64 KiB"]["rows_held"]
    assert last["8 MiB"]["hit_ratio"] > last["64 KiB"]["hit_ratio"]
    with open_table(table_path) as table:
        whole = shape_for(8 << 20, n_rows=[16_024] * 2, row_bytes=table.row_bytes)
    assert last["8 MiB"]["held_bytes"] == whole.total_bytes


def test_the_first_half_fills_and_the_second_is_measured(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[np.ndarray[Any, Any]]] = {"fill": [], "measured": []}
    fill, at = tiers._fill, Lookups.at
    where = ["measured"]

    def noted(self: Lookups, start: int, n_tokens: int) -> Any:
        drawn = at(self, start, n_tokens)
        asked[where[0]].append(drawn.by_layer[0][1])
        return drawn

    def filling(*given: Any) -> Any:
        where[0] = "fill"
        try:
            return fill(*given)
        finally:
            where[0] = "measured"

    monkeypatch.setattr(Lookups, "at", noted)
    monkeypatch.setattr(tiers, "_fill", filling)
    # The bytes are compared on a batch of the first half, too.
    monkeypatch.setattr(tiers, "_sound", lambda bench, section, ways, lookups: ways)
    monkeypatch.setattr(bench_module, "measure_section", lambda bench, section: {"status": "measured"})
    trace = uniform_trace(SPEC, n_tokens=2_001, seed=0)
    monkeypatch.setattr(bench_module, "uniform_trace", lambda spec, seed: trace)
    found = _measured(bench_offload(table_path, plan=replace(QUICK, fill_tokens=700)))
    assert found["fill"] | {"elapsed_ns": 0, "note": ""} == {
        "hot_list_rows": 0, "tokens": 700, "batches": 2, "rows": 5_600, "elapsed_ns": 0, "note": ""
    }  # fmt: skip
    of_layer = trace.addresses.rows[:, 0]
    # For each of the two budgets.
    assert np.array_equal(np.concatenate(asked["fill"]), np.tile(of_layer[301:1001].reshape(-1), 2))
    known = {row.tobytes() for row in of_layer[1001:]}
    assert {rows.tobytes() for batch in asked["measured"] for rows in batch.reshape(-1, 4)} <= known


def test_a_hot_list_takes_the_place_of_the_first_pass(table_path: Path, tmp_path: Path) -> None:
    hot = _hot_list(tmp_path / "hot.parquet")
    found = _measured(bench_offload(table_path, plan=replace(QUICK, hot_list=hot)))
    assert (found["fill"]["hot_list_rows"], found["fill"]["tokens"]) == (32_048, 0)
    point = next(point for point in found["points"] if point["tier"] == "8 MiB")
    # Its few sets of 16 that are full leave a row or two out.
    assert point["hit_ratio"] > 0.95
    assert point["levels"][0]["rows_pinned"] > 0
    assert point["rows_asked_before"] == 2 * 12 * 8 + 2 * 8
    with pytest.raises(SpecMismatch, match="hot list: made for"):
        bench_offload(
            table_path, plan=replace(QUICK, hot_list=_hot_list(tmp_path / "other.parquet", fingerprint="0" * 64))
        )


def test_tiers_one_behind_the_other(table_path: Path) -> None:
    chain = (*SMALL, MemoryTier(budget_bytes=1 << 20))
    found = _measured(bench_offload(table_path, plan=replace(QUICK, tiers=(chain,), fill_tokens=512)))
    point = found["points"][-1]
    near, far = point["levels"]
    assert point["tier"] == "64 KiB + 1 MiB"
    assert near["misses"] == far["hits"] + far["misses"]
    assert point["hit_ratio"] == pytest.approx(1 - far["misses"] / (near["hits"] + near["misses"]))
    assert point["held_bytes"] == near["held_bytes"] + far["held_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("state", [State.COLD, State.AS_IS])
def test_the_other_states(table_path: Path, state: State) -> None:
    record = bench_offload(table_path, plan=replace(QUICK, state=state, engine=None, streams=(1, 2)))
    (section,) = record["sections"]
    if section["status"] != "measured":
        pytest.skip("files cannot be evicted here")
    found = _measured(record)
    assert found["behind"] == "auto"
    # What is to be left as it is, is not read before it is measured.
    assert (found["fill"]["tokens"] == 0) == (state is State.AS_IS)
    if state is State.AS_IS:
        assert found["points"][1]["rows_asked_before"] == 0
    assert len(found["points"]) == 12


def test_hits_that_are_no_news_are_flagged(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = uniform_trace(SPEC, n_tokens=40)
    monkeypatch.setattr(bench_module, "uniform_trace", lambda spec, seed: trace)
    record = bench_offload(table_path, plan=replace(QUICK, tiers=(WHOLE,)))
    point = _measured(record)["points"][-1]
    # Two warm-ups and two rounds of 1 and of 12 tokens, out of 20.
    assert point["passes_over_trace"] == pytest.approx((4 * 1 + 4 * 12) / 20)
    assert [flag for flag in record["flags"] if "tier 8 MiB, 96 rows: the measured text has been looked up 2.6" in flag]


def test_wrong_bytes_out_of_a_tier_are_found(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = TieredEngine._copy_hits

    def wrong(self: Any, batch: Any, out: Any, threads: Any, items: Any) -> Any:
        missing = copy(self, batch, out, threads, items)
        if missing.size < batch.rows.size:
            out[np.setdiff1d(np.arange(batch.rows.size), missing)[0], 3] ^= 1
        return missing

    monkeypatch.setattr(TieredEngine, "_copy_hits", wrong)
    record = bench_offload(table_path, plan=replace(QUICK, tiers=(WHOLE,)))
    assert _measured(record)["points"] == []
    assert [(each["engine"], each["n_records"]) for each in record["mismatches"]] == [("gather, tier 8 MiB", 1)]


def test_a_memory_that_is_refused_is_left_out(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: int, n_bytes: int) -> None:
        raise BackendUnavailable("tier: locking was refused")

    monkeypatch.setattr("engram_tables.fetch.tiers.placed_memory._lock", refuse)
    locked = (MemoryTier(budget_bytes=1 << 20, is_locked=True),)
    found = _measured(bench_offload(table_path, plan=replace(QUICK, tiers=(locked, WHOLE))))
    assert found["left_out"] == [
        {"tier": "1 MiB locked", "rows_per_batch": None, "reason": "tier: locking was refused"}
    ]
    assert {point["tier"] for point in found["points"]} == {None, "8 MiB"}


@pytest.mark.slow
def test_a_device_with_memory_in_front(table_path: Path, tmp_path: Path) -> None:
    hot = _hot_list(tmp_path / "hot.parquet")
    plan = replace(QUICK, to=Target.GPU, sources=(Source.DRAM,), tiers=(WHOLE,), gpu_caches=(8 << 20, 64 << 10))
    for hot_list in (None, hot):
        record = bench_offload(table_path, plan=replace(plan, hot_list=hot_list), device=HostDevice)
        assert record["mismatches"] == []
        found = _measured(record)
        by_tier = {point["tier"]: point for point in found["points"]}
        assert list(by_tier) == [None, "8 MiB", "GPU 8 MiB", "GPU 64 KiB"]
        assert by_tier["GPU 8 MiB"]["engine"] == "cached, gather"
        assert [level["memory"] for level in by_tier["GPU 8 MiB"]["levels"]] == ["gpu"]
        assert by_tier["GPU 8 MiB"]["held_bytes"] <= 8 << 20
        assert (by_tier["GPU 8 MiB"]["hit_ratio"] > 0.95) == (by_tier["8 MiB"]["hit_ratio"] > 0.95)
        assert by_tier["GPU 8 MiB"]["hit_ratio"] > by_tier["GPU 64 KiB"]["hit_ratio"]

    def refuse() -> HostDevice:
        raise BackendUnavailable("no device")

    (section,) = bench_offload(table_path, plan=plan, device=refuse)["sections"]
    assert (section["status"], section["reason"], "tiers" in section) == ("waived", "no device", False)


def test_a_hot_list_reaches_a_device_hottest_first() -> None:
    rows = np.arange(10_000)
    hot = HotList.of(rows % 2, rows, rows[::-1])
    runs = list(fronts.hot_runs(hot))
    assert [(layer_id, len(of_layer)) for layer_id, of_layer in runs] == [
        (layer_id, n) for n in (2048, 2048, 904) for layer_id in (0, 1)
    ]
    assert np.array_equal(np.sort(np.concatenate([of_layer for _, of_layer in runs])), rows)
    assert max(of_layer.max() for _, of_layer in runs[:2]) < 4096


def test_what_cannot_be_measured_is_refused_before_anything_is(
    table_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(bench_module, "memory_ceilings", never)
    with pytest.raises(InvalidInput, match=r"trace: found 131072 tokens, expected 140000 or more"):
        bench_offload(table_path, plan=replace(QUICK, tokens=(70_000,)))
    # Not even a trace is made.
    monkeypatch.setattr(bench_module, "uniform_trace", never)
    with pytest.raises(InvalidInput, match="tier: found a budget of 5 bytes"):
        bench_offload(table_path, plan=replace(QUICK, tiers=((MemoryTier(budget_bytes=5),),)))
    monkeypatch.setattr(bench_module, "read_meminfo", lambda: {"MemAvailable": 1 << 20})
    with pytest.raises(CapacityError, match=r"tiers: found \d+ bytes in all"):
        bench_offload(table_path, plan=QUICK)
    for wrong in (
        {"tiers": (WHOLE, WHOLE)}, {"tiers": ((),)}, {"gpu_caches": (1,)}, {"to": Target.GPU, "gpu_caches": (0,)},
        {"tiers": (), "hot_list": Path("x")}, {"tiers": (), "fill_tokens": 3}, {"fill_tokens": -1},
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=r"^[a-z ]+: found .*, expected .*; .*"):
            replace(QUICK, **wrong)


def test_a_part_of_a_table_has_tiers_too(tmp_path: Path) -> None:
    from test_planar import make_deepseek

    from engram_tables.storage.building.repack import plan_repack
    from engram_tables.storage.sources.opening import open_source
    from engram_tables.storage.sources.source import closing
    from engram_tables.storage.table.ranks import Rank

    with closing(open_source(make_deepseek(tmp_path / "checkpoint").path)) as source:
        rank = plan_repack(source, layout="packed", rank=Rank(by="head", rank=1, n_ranks=2))
        build_table(rank, tmp_path / "rank", threads=1)
    record = bench_offload(tmp_path / "rank", plan=replace(QUICK, engine="auto", tiers=(WHOLE,)))
    assert record["mismatches"] == []
    with ExitStack() as stack:
        table = stack.enter_context(open_table(tmp_path / "rank"))
        n_rows = Lookups(table, uniform_trace(table.spec), seed=0).n_rows(12)
    assert abs(_measured(record)["points"][-1]["rows_per_batch"] - n_rows) <= len(table.spec.layers)


def test_every_key_of_a_tier_is_documented(table_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "records.md").read_text(encoding="utf-8")
    part = page[page.index("## `engram.bench-offload/2`") : page.index("## `engram.overlap/1`")]
    plan = replace(QUICK, to=Target.GPU, sources=(Source.DRAM,), tokens=(1,), gpu_caches=(1 << 20,))
    record = bench_offload(table_path, plan=plan, device=HostDevice)
    found = _measured(record)
    keys = {*found, *found["fill"], *record["plan"], *record["plan"]["tiers"][0][0]}
    keys |= {key for point in found["points"] for each in (point, *point["levels"]) for key in each}
    assert [key for key in sorted(keys) if f"`{key}`" not in part] == []


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = text_table(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(f"word{k % 7}" for k in range(2000)))
    quickly = [
        "bench-offload", str(path), "--corpus", str(tmp_path / "text.txt"), "--tokens", "1,5", "--repeats", "1",
        "--seconds", "0", "--depths", "1,2", "--no-bounds",
    ]  # fmt: skip
    one = [*quickly, "--from", "auto", "--state", "warm"]
    ran = CliRunner().invoke(app, [*one, "--tier", "64KiB,1MiB", "--tier", "64KiB+1MiB", "--json"])
    assert ran.exit_code == 0, ran.output
    record = json.loads(ran.stdout)
    assert [[tier["budget_bytes"] for tier in entry] for entry in record["plan"]["tiers"]] == [
        [1 << 16], [1 << 20], [1 << 16, 1 << 20]
    ]  # fmt: skip
    tiers_of = {point["tier"] for point in record["sections"][0]["tiers"]["points"]}
    assert tiers_of == {None, "64 KiB", "1 MiB", "64 KiB + 1 MiB"}
    ran = CliRunner().invoke(
        app,
        [
            *quickly,
            "--from",
            "nvme",
            "--tier",
            "64KiB",
            "--tier",
            "64KiB+512KiB+1MiB+2MiB",
            "--fill-tokens",
            "100",
            "--streams",
            "1,2",
        ],
    )
    assert ran.exit_code == 0, ran.output
    assert max(map(len, ran.stdout.replace(str(tmp_path), "").splitlines())) <= 100
    assert "filled by a first pass of 1 batch, 100 tokens of the trace's first half" in " ".join(ran.stdout.split())
    assert "none: " in ran.stdout
    ran = CliRunner().invoke(app, [*one, "--to", "gpu", "--gpu-cache", "1MiB"])
    assert ran.exit_code == 0, ran.output
    for wrong, code, words in (
        (["--tier", "much"], 3, "size 'much'"),
        (["--tier", "1MiB:warm"], 3, "expected locked or node=N"),
        (["--tier", "1MiB:node=x"], 3, "expected locked or node=N"),
        (["--tier", "0"], 3, "budget of 0 bytes"),
        (["--tier", "1MiB,1MiB"], 3, "twice"),
        (["--tier", ""], 3, "size ''"),
        (["--gpu-cache", "1MiB"], 2, "goes only with --to gpu"),
        (["--hot-list", "x.parquet"], 2, "--hot-list goes only with"),
        (["--fill-tokens", "5"], 2, "--fill-tokens goes only with"),
        (["--tier", "1MiB", "--hot-list", str(tmp_path / "text.txt")], 3, "expected a hot list"),
        (["--tier", "1MiB", "--hot-list", str(tmp_path / "nothing")], 3, "nothing"),
    ):
        ran = CliRunner().invoke(app, [*one, *wrong])
        assert (ran.exit_code, "Traceback" in ran.output) == (code, False), (wrong, ran.output)
        assert words in ran.output, (wrong, ran.output)
