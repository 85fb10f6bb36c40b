"""The record of `engram bench-offload`: states, engines, streams, parts of tables, devices, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from test_measure import SPEC, text_table
from typer.testing import CliRunner

from engram_cli.app import app
from engram_tables.address.spec import Addresses
from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.engines.mapping import MappingEngine
from engram_tables.fetch.gpu.host_device import HostDevice
from engram_tables.fetch.table import open_table
from engram_tables.measure import bench as bench_module
from engram_tables.measure.bench import bench_offload
from engram_tables.measure.ceilings import memory_ceilings
from engram_tables.measure.contention import Counters, contention
from engram_tables.measure.offload import host as host_module
from engram_tables.measure.offload.lookups import Asked, Lookups, expected_records, fetcher
from engram_tables.measure.offload.plan import BenchPlan, Section, Source, State, Target
from engram_tables.measure.offload.plot import write_plot
from engram_tables.measure.offload.points import hold_against, make_point
from engram_tables.measure.offload.rounds import Case, mismatch, take_turns, touched_buffers
from engram_tables.measure.trace import uniform_trace
from engram_tables.storage.building.writer import build_table, plan_table

QUICK = BenchPlan(tokens=(1, 12), repeats=2, seconds=0.0, depths=(1, 2))
"""The shortest run that passes through every step."""


@pytest.fixture(scope="module")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "table"
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


def _section(record: dict[str, Any], source: str, state: str) -> dict[str, Any]:
    (found,) = [each for each in record["sections"] if (each["source"], each["state"]) == (source, state)]
    return found


def test_the_record(table_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    record = bench_offload(table_path, plan=QUICK, progress=lambda done, total: calls.append((done, total)))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["schema"] == "engram.bench-offload/2"
    assert (record["mismatches"], calls[-1][0]) == ([], calls[-1][1])
    assert [trace["name"] for trace in record["traces"]] == ["uniform", "repeated"]
    assert not any(trace["is_real_text"] for trace in record["traces"])
    warm = _section(record, "dram", "warm")
    assert warm["status"] == "measured"
    assert warm["residency"]["is_as_asked"]
    assert warm["residency"]["resident_bytes_before"] >= warm["residency"]["file_bytes"]
    assert (warm["residency"]["huge_page_bytes"] or 0) < warm["residency"]["file_bytes"] + (2 << 20)
    seen = {point["engine"] for point in warm["points"]}
    assert seen >= {"mapping", "gather, 1 thread", "gather, all threads", "memory, 1 thread"}
    # Every engine is measured in memory, or it is said why not.
    refused = {rung["engine"]: rung["reason"] for rung in warm["ladder"] if not rung["is_usable"]}
    assert {name.split(",")[0] for name in seen} | set(refused) == {*ENGINES, "memory"}
    assert all(refused.values())
    for section in record["sections"]:
        for point in section.get("points", ()):
            _check_point(point)
    for source, state in (("nvme", "cold"), ("auto", "cold"), ("auto", "warm")):
        section = _section(record, source, state)
        if section["status"] == "measured":
            tried = {rung["engine"] for rung in section["ladder"] if rung["is_usable"]}
            assert {point["engine"] for point in section["points"]} | {
                entry["engine"] for entry in section["left_out"]
            } <= tried
    for sweep in record["depths"]:
        if sweep["status"] == "measured":
            assert [point["depth"] for point in sweep["points"]][:2] == [1, 2]


def _check_point(point: dict[str, Any]) -> None:
    assert point["rows_per_batch"] == point["tokens_per_batch"] * 8
    assert point["n"] == len(point["samples_ns"]) >= 2
    assert point["us_per_row"] * point["rows_per_s"] == pytest.approx(1e6)
    assert point["tokens_per_s"] * 8 == pytest.approx(point["rows_per_s"])
    assert 1 <= point["pages_per_row"] <= 2
    assert point["unique_bytes_per_batch"] <= point["useful_bytes_per_batch"]
    assert (point["batch_p99_us"] is None) == (point["n"] < 100)
    assert (point["batch_p999_us"] is None) == (point["n"] < 1000)
    if point["share_of_ceiling"] is not None:
        assert point["share_of_ceiling"] > 0


def test_rows_that_were_cold_came_from_the_device(table_path: Path) -> None:
    plan = replace(QUICK, sources=(Source.NVME,), bounds=False, engine="pread")
    section = _section(bench_offload(table_path, plan=plan), "nvme", "cold")
    if section["status"] != "measured" or not section["residency"]["is_as_asked"]:
        pytest.skip("files cannot be evicted here")
    for point in section["points"]:
        assert point["resident_bytes_before_batch_max"] <= 0.01 * section["residency"]["file_bytes"]
        if point["own_device_bytes_per_batch"] is not None:
            assert point["own_device_bytes_per_batch"] >= 0.9 * point["unique_bytes_per_batch"]


def test_as_is_neither_evicts_nor_reads_first(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> int:
        raise AssertionError("evicted, or read ahead")

    for name in ("evict", "preload"):
        monkeypatch.setattr(host_module, name, never)
    monkeypatch.setattr("engram_tables.measure.offload.rounds.evict", never)
    record = bench_offload(
        table_path, plan=replace(QUICK, state=State.AS_IS, sources=(Source.AUTO,), streams=(1, 3), tokens=(3,))
    )
    (section,) = record["sections"]
    assert {point["streams"] for point in section["points"]} == {1, 3}
    assert {point["engine"] for point in section["points"]} == {"auto"}
    assert record["depths"] == []


def test_streams_fetch_at_the_same_time(table_path: Path) -> None:
    with open_table(table_path) as table:
        lookups = Lookups(table, uniform_trace(SPEC, n_tokens=500), seed=1)
        plain, seen = fetcher(table, "gather", 1), set()
        # The slow reading seeks in descriptors that the threads share.
        one_at_a_time = Lock()

        def fetch(asked: Asked, out: Any) -> None:
            plain(asked, out)
            with one_at_a_time:
                assert mismatch(out, expected_records(table, asked)) is None
            seen.add(out.ctypes.data)

        case = Case(table.path, lookups, fetch, touched_buffers(4, 24, table.row_bytes), n_tokens=3, turn=0)
        take_turns([case], repeats=8, seconds=0.0)
        assert len(seen) == 4
        assert case.noted.n_batches == len(case.noted.batch_ns) >= 8
        assert case.noted.n_batches % (4 * len(case.noted.round_ns)) == 0
        assert max(case.noted.batch_ns) <= max(case.noted.round_ns)

        def fail(asked: Asked, out: Any) -> None:
            raise OSError("no such device")

        with pytest.raises(OSError, match="no such device"):
            take_turns(
                [Case(table.path, lookups, fail, touched_buffers(3, 8, 66), n_tokens=1, turn=0)], repeats=1, seconds=0
            )


def test_cases_take_turns_on_batches_of_their_own(table_path: Path) -> None:
    with open_table(table_path) as table:
        lookups = Lookups(table, uniform_trace(SPEC, n_tokens=500), seed=1)
        asked_of: dict[str, list[bytes]] = {"a": [], "b": []}
        order: list[str] = []

        def note(name: str) -> Any:
            def fetch(asked: Asked, out: Any) -> None:
                order.append(name)
                asked_of[name].append(b"".join(rows.tobytes() for _, rows in asked.by_layer))

            return fetch

        outs = touched_buffers(1, 16, table.row_bytes)
        cases = [
            Case(table.path, lookups, note(name), outs, n_tokens=2, turn=turn) for turn, name in enumerate(asked_of)
        ]
        take_turns(cases, repeats=3, seconds=0.0, warm_ups=2)
        assert order == ["a", "a", "b", "b"] + ["a", "b"] * 3
        # What one has just read lies in the processor's caches: the other must not be asked for it.
        assert not set(asked_of["a"]) & set(asked_of["b"])
        assert len(set(asked_of["a"])) > 1
        again = Lookups(table, uniform_trace(SPEC, n_tokens=500), seed=1)
        drawn = [again.draw(2, rng) for rng in [again.rng(1)] for _ in range(5)]
        assert asked_of["b"] == [b"".join(rows.tobytes() for _, rows in asked.by_layer) for asked in drawn]


def test_an_engine_with_wrong_bytes_is_not_timed(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = MappingEngine._read

    def wrong(self: Any, batch: Any, out: Any, threads: Any, items: Any) -> None:
        read(self, batch, out, threads, items)
        # The ladder's own trial of a few rows passes.
        if len(out) >= 8:
            out[-1, 5] ^= 1

    monkeypatch.setattr(MappingEngine, "_read", wrong)
    plan = BenchPlan(tokens=(1,), sources=(Source.DRAM,), repeats=1, seconds=0.0, bounds=False)
    record = bench_offload(table_path, plan=plan)
    assert "mapping" not in {point["engine"] for point in record["sections"][0]["points"]}
    assert record["mismatches"] == [
        {"section": "dram, warm", "engine": "mapping", "n_records": 1, "first_position": 7}
    ]  # fmt: skip


def test_what_cannot_be_evicted_or_held_is_waived(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(paths: Any) -> int:
        raise BackendUnavailable("no such advice")

    monkeypatch.setattr(bench_module, "evict", refuse)
    monkeypatch.setattr(host_module, "evict", refuse)
    record = bench_offload(table_path, plan=replace(QUICK, sources=(Source.NVME,), engine="direct"))
    assert record["sections"][0]["status"] == "waived"
    assert record["ceilings"]["disk"] == {"status": "waived", "reason": "no such advice"}
    monkeypatch.setattr(host_module, "read_meminfo", lambda: {"MemAvailable": 1000})
    monkeypatch.setattr(host_module, "resident_bytes", lambda paths: 0)
    record = bench_offload(table_path, plan=replace(QUICK, sources=(Source.DRAM,)))
    assert record["sections"][0]["status"] == "waived"
    assert "1000 bytes of memory" in record["sections"][0]["reason"]


def test_slow_batches_are_left_out_and_named(table_path: Path) -> None:
    plan = replace(QUICK, sources=(Source.DRAM,), engine="gather", batch_seconds=0.0, bounds=False)
    (section,) = bench_offload(table_path, plan=plan)["sections"]
    assert {point["tokens_per_batch"] for point in section["points"]} == {1}
    assert [entry["rows_per_batch"] for entry in section["left_out"]] == [96, 96]
    assert "--batch-seconds 0" in section["left_out"][0]["reason"]


def test_a_part_of_a_table_is_measured_on_the_rows_that_are_here(tmp_path: Path) -> None:
    from test_planar import make_deepseek

    from engram_tables.storage.building.repack import plan_repack
    from engram_tables.storage.sources.opening import open_source
    from engram_tables.storage.sources.source import closing
    from engram_tables.storage.table.ranks import Rank

    made = make_deepseek(tmp_path / "checkpoint")
    with closing(open_source(made.path)) as source:
        plans = {
            "by-head": plan_repack(source, layout="packed", rank=Rank(by="head", rank=1, n_ranks=2)),
            "by-rows": plan_repack(source, layout="page", rank=Rank(by="rows", rank=0, n_ranks=3)),
            "layer": plan_repack(source, layout="packed", layers=[source.spec.layer_ids[0]]),
        }
        for name, plan in plans.items():
            build_table(plan, tmp_path / name, threads=1)
    for name in plans:
        with open_table(tmp_path / name) as table:
            trace = uniform_trace(table.spec, n_tokens=600)
            lookups = Lookups(table, trace, seed=0)
            for n_tokens in (1, 7, 600):
                asked = lookups.draw(n_tokens, lookups.rng())
                assert asked.n_rows == lookups.n_rows(n_tokens) > 0
                out = np.zeros((asked.n_rows, table.row_bytes), np.uint8)
                fetcher(table, "auto", None)(asked, out)
                assert mismatch(out, expected_records(table, asked)) is None
        record = bench_offload(
            tmp_path / name, plan=replace(QUICK, sources=(Source.AUTO,), state=State.WARM, bounds=False)
        )
        assert record["mismatches"] == []
        assert record["table"]["n_rows_here"] < record["table"]["n_rows"]
        assert record["sections"][0]["status"] == "measured"
        part = record["traces"][0]["part"]
        assert 0 < part["lookups_here_share"] < 1
        assert part["uniform_layer_ids"] == []
    gpu = bench_offload(tmp_path / name, plan=replace(QUICK, sources=(Source.DRAM,), to=Target.GPU), device=HostDevice)
    assert "a part of the rows" in gpu["sections"][0]["reason"]


def test_layers_without_a_lookup_here_get_uniform_rows(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_table(table_path) as table:
        rows = np.full((5, 2, 4), 9, np.int64)
        trace = replace(
            uniform_trace(SPEC, n_tokens=5), addresses=Addresses(rows=rows, keys=np.zeros((5, 2, 2), np.uint64))
        )
        owned = {1: ((100, 102), (7000, 7003)), 2: ((0, 20),)}
        monkeypatch.setattr(table.stored, "owned", owned.__getitem__)
        lookups = Lookups(table, trace, seed=0)
        assert lookups.description["part"]["uniform_layer_ids"] == [1]
        assert lookups.description["part"]["lookups_here_share"] == 0.5
        drawn = [lookups.draw(5, np.random.default_rng(seed)).by_layer for seed in range(50)]
        assert {int(row) for (_, first), _ in drawn for row in first} == {100, 101, 7000, 7001, 7002} & {
            int(row) for (_, first), _ in drawn for row in first
        }
        assert all((second == 9).all() for _, (_, second) in drawn)


def test_rows_reach_a_device(table_path: Path) -> None:
    plan = replace(QUICK, to=Target.GPU)
    record = bench_offload(table_path, plan=plan, device=HostDevice)
    assert record["mismatches"] == []
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    warm = _section(record, "dram", "warm")
    assert {point["engine"] for point in warm["points"]} == {"resident", "zero-copy", "staged, gather"}
    for point in warm["points"]:
        assert point["pipelined_rows_per_s"] > 0
        assert ("share_of_link" in point) == (point["engine"] != "resident")
    assert {point["engine"] for point in _section(record, "auto", "warm")["points"]} == {"staged, auto"}
    cold = _section(record, "nvme", "cold")
    assert cold["status"] == "waived" or cold["points"][0]["engine"].startswith("staged, ")


def test_without_a_gpu_every_section_is_waived(table_path: Path) -> None:
    def refuse() -> HostDevice:
        raise BackendUnavailable("no device")

    record = bench_offload(table_path, plan=replace(QUICK, to=Target.GPU), device=refuse)
    assert [section["reason"] for section in record["sections"]] == ["no device"] * 4
    assert record["depths"] == []


def test_what_others_did_is_a_difference(tmp_path: Path) -> None:
    def counters(**changed: Any) -> Counters:
        usual: dict[str, Any] = {
            "stalled_us": {"cpu": 5, "io": None, "memory": 1}, "stolen_ns": 10, "device_read_bytes": 100,
            "device_written_bytes": 3, "own_read_bytes": 50, "involuntary_switches": None,
        }  # fmt: skip
        return Counters(**{**usual, **changed})

    later = counters(
        device_read_bytes=1100, own_read_bytes=850, stolen_ns=25, stalled_us={"cpu": 9, "io": 4, "memory": 1}
    )
    found = contention(counters(), later, elapsed_ns=7)
    assert found["others_read_bytes"] == 200
    assert (found["cpu_stalled_us"], found["io_stalled_us"], found["stolen_ns"]) == (4, None, 15)
    assert contention(counters(own_read_bytes=None), later, elapsed_ns=7)["others_read_bytes"] is None
    now = Counters.now(tmp_path)
    assert json.loads(json.dumps(contention(now, Counters.now(tmp_path), elapsed_ns=1)))["elapsed_ns"] == 1


def test_a_trace_and_a_corpus_are_not_both(table_path: Path) -> None:
    with pytest.raises(InvalidInput, match="found both"):
        bench_offload(table_path, corpus=["x"], trace="y")
    with pytest.raises(InvalidInput, match="not known"):
        bench_offload(table_path, plan=BenchPlan(engine="steam"))


@pytest.mark.slow
def test_a_picture_is_drawn(table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    record = bench_offload(table_path, plan=replace(QUICK, sources=(Source.AUTO,), streams=(1, 2)))
    write_plot(tmp_path / "run.svg", record)
    drawn = (tmp_path / "run.svg").read_text(encoding="utf-8")
    assert "auto, warm: rows a second" in drawn
    assert "bound: repeated rows" in drawn
    waived = {**record, "sections": [{"status": "waived"}], "depths": [], "ceilings": {}}
    write_plot(tmp_path / "run.png", waived)
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidInput):
        write_plot(tmp_path / "run.svg", record)
    with pytest.raises(InvalidInput, match="found the ending"):
        write_plot(tmp_path / "run.gif", record)
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match=r"engram-tables\[report\]"):
        write_plot(tmp_path / "other.svg", record)


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = text_table(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(f"word{k % 7}" for k in range(2000)))
    quickly = ["bench-offload", str(path), "--tokens", "1,5", "--repeats", "1", "--seconds", "0", "--depths", "1,2"]
    corpus = ["--corpus", str(tmp_path / "text.txt")]
    into = ["--json", "--record", str(tmp_path / "record.json"), "--from", "auto", "--state", "warm"]
    ran = CliRunner().invoke(app, [*quickly, *corpus, *into])
    assert ran.exit_code == 0, ran.output
    record = json.loads(ran.stdout)
    assert record["traces"][0]["tokens"] == 2000
    assert [trace["name"] for trace in record["traces"]] == ["text", "uniform", "repeated"]
    assert json.loads((tmp_path / "record.json").read_text()) == record
    whole = [*quickly, *corpus, "--tokens", "1", "--streams", "1,2", "--plot", str(tmp_path / "run.svg")]
    shown = CliRunner().invoke(app, whole)
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.replace(str(tmp_path), "").splitlines())) <= 100
    for words in ("From memory (warm)", "Engine auto", "2 streams at once", "uniform: ", "Depth sweep of direct"):
        assert words in shown.stdout
    assert (tmp_path / "run.svg").exists()
    ran = CliRunner().invoke(app, [*quickly, "--from", "dram", "--engine", "gather"])
    assert ran.exit_code == 0, ran.output
    assert "a bound, not real text" in ran.stdout
    gpu = CliRunner().invoke(app, [*quickly, "--from", "dram", "--to", "gpu"])
    assert gpu.exit_code == 0, gpu.output
    assert "waived" in gpu.stdout or "zero-copy" in gpu.stdout
    for wrong in (
        ["--from", "tape"], ["--from", "dram,"], ["--to", "moon"], ["--state", "lukewarm"], ["--engine", "steam"],
        ["--from", "dram", "--state", "cold"], ["--tokens", "4,x"], ["--tokens", "²"], ["--tokens", "٣"],
        ["--tokens", ""], ["--tokens", "9" * 400], ["--streams", "0"],
        ["--depths", "99999999"], ["--record", str(tmp_path / "record.json")], ["--corpus", str(tmp_path / "nothing")],
        ["--trace", str(tmp_path / "nothing")], ["--plot", "run.gif"],
    ):  # fmt: skip
        ran = CliRunner().invoke(app, [*quickly, *wrong])
        assert (ran.exit_code, "Traceback" in ran.output) == (3, False), (wrong, ran.output)
    assert CliRunner().invoke(app, ["bench-offload", str(tmp_path)]).exit_code == 4
    assert CliRunner().invoke(app, ["bench-offload"]).exit_code == 2
    assert CliRunner().invoke(app, [*quickly, "--rows-per-batch", "48"]).exit_code == 2
    read = GatherEngine._read

    def wrong_bytes(self: Any, batch: Any, out: Any, threads: Any, items: Any) -> None:
        read(self, batch, out, threads, items)
        out[0] ^= 1

    monkeypatch.setattr(GatherEngine, "_read", wrong_bytes)
    monkeypatch.setattr(GatherEngine, "warm_path", lambda *_, **__: None)
    monkeypatch.setattr(host_module, "probe", _no_trial)
    ran = CliRunner().invoke(app, [*quickly, "--from", "dram", "--engine", "gather"])
    assert ran.exit_code == 6, ran.output


def _no_trial(stored: Any, engine_of: Any, names: Any) -> Any:
    """A ladder that believes every engine."""
    from engram_tables.fetch.engines.ladder import Rung

    for name in names:
        assert isinstance(engine_of(name), Engine)
    return tuple(Rung(name, True, None) for name in names)


@pytest.mark.parametrize(
    "options",
    [
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": -1.0},
        {"batch_seconds": float("nan")},
        {"batch_seconds": float("inf")},
        {"streams": (1, 2, 1)},
        {"sources": (Source.AUTO, Source.AUTO)},
        {"streams": (4096,)},
        {"tokens": ()},
    ],
)
def test_a_plan_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"^[a-z ]+: found .*, expected .*; .*"):
        BenchPlan(**options)


@pytest.mark.parametrize(
    "options",
    [
        ["--tokens", "1"],
        ["--rows-per-batch", "8"],
        ["--state", "cold"],
        ["--streams", "2"],
        ["--depths", "1"],
        ["--no-bounds"],
        ["--repeats", "2"],
        ["--seconds", "1"],
        ["--batch-seconds", "1"],
        ["--read-threads", "2"],
        ["--plot", "x.svg"],
    ],
)
def test_options_that_an_overlap_does_not_look_at_are_refused(options: list[str]) -> None:
    ended = CliRunner().invoke(app, ["bench-offload", "--overlap", *options])
    assert ended.exit_code == 2, ended.output
    assert f"{options[0]} goes only without --overlap" in ended.stderr


def test_a_model_without_an_overlap_is_refused(table_path: Path) -> None:
    ended = CliRunner().invoke(app, ["bench-offload", str(table_path), "--model", "engram-paper-8b"])
    assert ended.exit_code == 2
    assert "--model goes only with --overlap" in ended.stderr


def test_a_record_and_a_picture_of_one_name(table_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    name = tmp_path / "x.svg"
    options = ["--record", str(name), "--plot", str(tmp_path / "." / "x.svg"), "--force"]
    ended = CliRunner().invoke(app, ["bench-offload", str(table_path), *options])
    assert ended.exit_code == 2
    assert "--record and --plot name one file" in ended.stderr
    assert not name.exists()


def test_what_was_measured_is_shown_though_it_cannot_be_written(
    table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    quick = ["--tokens", "1", "--repeats", "1", "--seconds", "0", "--from", "dram", "--engine", "gather", "--json"]
    monkeypatch.setattr("engram_tables.files.os.fsync", full)
    given = ["bench-offload", str(table_path), *quick, "--record", str(tmp_path / "run.json")]
    ended = CliRunner().invoke(app, given)
    assert ended.exit_code == 5
    assert "while writing the record" in ended.stderr
    assert json.loads(ended.stdout)["sections"][0]["status"] == "measured"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_closed_to_writing_is_refused_at_once(table_path: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write everywhere")
    ended = CliRunner().invoke(app, ["bench-offload", str(table_path), "--record", str(closed / "run.json")])
    assert ended.exit_code == 3
    assert "closed to writing" in ended.stderr


def test_a_section_without_an_engine_says_so(table_path: Path) -> None:
    quick = ["--tokens", "1", "--repeats", "1", "--seconds", "0", "--from", "dram", "--engine", "direct"]
    ended = CliRunner().invoke(app, ["bench-offload", str(table_path), *quick])
    assert ended.exit_code == 0, ended.output
    assert "not direct: " in ended.stdout
    assert "nothing was measured here: no engine was left" in ended.stdout


def test_streams_that_memory_cannot_hold(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "read_meminfo", lambda: {"MemAvailable": 1 << 16})
    with pytest.raises(CapacityError, match=r"^streams: found 64 .*, expected .*; ask for fewer"):
        bench_offload(table_path, plan=replace(QUICK, streams=(64,)))


def test_a_stream_that_cannot_start_keeps_no_other_waiting(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_before, start, n_started = threading.active_count(), threading.Thread.start, 0

    def start_two(thread: threading.Thread) -> None:
        nonlocal n_started
        n_started += 1
        if n_started > 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    with open_table(table_path) as table:
        lookups = Lookups(table, uniform_trace(SPEC, n_tokens=64), seed=0)
        outs = touched_buffers(4, lookups.n_rows(2), table.row_bytes)
        case = Case(table_path, lookups, fetcher(table, "gather", 1), outs, n_tokens=2, turn=0)
        monkeypatch.setattr(threading.Thread, "start", start_two)
        with pytest.raises(RuntimeError, match="can't start"):
            case.round()
    assert threading.active_count() == n_before


@pytest.mark.parametrize(("state", "why"), [(State.COLD, "read together"), (State.AS_IS, "was in memory")])
def test_no_share_of_the_device_over_one_goes_without_a_flag(table_path: Path, state: State, why: str) -> None:
    with open_table(table_path) as table:
        lookups = Lookups(table, uniform_trace(SPEC, n_tokens=64), seed=0)
        outs = touched_buffers(1, lookups.n_rows(2), table.row_bytes)
        case = Case(table_path, lookups, fetcher(table, "gather", 1), outs, n_tokens=2, turn=0)
        case.round()
        section = Section(source=Source.AUTO, state=state)
        point = make_point(
            case, section=section, engine="gather", threads=1, trace="uniform", row_bytes=table.row_bytes,
            n_rows=lookups.n_rows(2),
        )  # fmt: skip
    point["device_bytes_per_batch"] = point["own_device_bytes_per_batch"] = point["unique_bytes_per_batch"]
    ceilings = {"disk": {"status": "measured", "best_reads_per_s": 1e-3, "sequential_bytes_per_s": 1e18}}
    hold_against(point, case, ceilings, section=section, file_bytes=1 << 30)
    assert point["share_of_ceiling"] > 1.05
    assert [flag for flag in point["flags"] if "more than the ceiling's" in flag and why in flag]
