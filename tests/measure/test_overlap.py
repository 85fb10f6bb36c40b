"""The overlap measurement: shapes, steps, waits and losses by arithmetic; and small real runs of every way."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import Items
from engram_tables.fetch.gpu.host_device import HostDevice
from engram_tables.fetch.gpu.runtime import why_no_gpu
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.reference import read_batch
from engram_tables.fetch.schedule import Event, EventKind
from engram_tables.fetch.table import Table
from engram_tables.measure import generated_rows
from engram_tables.measure.generated_rows import GeneratedRows, generated_block, generated_spec
from engram_tables.measure.model_shapes import MODEL_SHAPES, Load
from engram_tables.measure.overlap import OVERLAP_SCHEMA, OverlapPlan, measure, overlap
from engram_tables.measure.overlap_report import COLUMNS, summary_lines, table_rows
from engram_tables.measure.overlap_ways import Side, expected_records, host_side
from engram_tables.measure.slack import HostClock, SlackMeter
from engram_tables.measure.trace import uniform_trace
from engram_tables.measure.workload import StepKind, Workload, draw_rows
from engram_tables.storage.building.writer import build_table, plan_table

QUICK = OverlapPlan(
    width_divisor=64, n_sequences=3, shortest_tokens=3, longest_tokens=9, chunk_tokens=8, load_shares=(0.1,),
    repeats=2, steps=3, generated_bytes=1 << 20, source="dram",
)  # fmt: skip
WAYS = ["no table", "resident", "gather, in pass", "gather, ahead"]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    with Table(GeneratedRows(generated_spec(1 << 20, (1, 14)))) as made:
        yield made


# Shapes.


@pytest.mark.parametrize(
    ("name", "parameters", "embedded"),
    [
        # As published: 4.0 and 8.2 billion parameters, of which the second has embeddings apart from its head.
        ("engram-paper-4b", 4.0e9, 0),
        ("engram-paper-8b", 8.2e9, 151_936 * 4096),
        # 16 billion are active in decoding.
        ("deepseek-v4.1-flash", 16e9, 0),
    ],
)
def test_a_named_model_has_its_published_number_of_parameters(name: str, parameters: float, embedded: int) -> None:
    multiplied = MODEL_SHAPES[name].flop_per_token / 2
    assert multiplied + embedded == pytest.approx(parameters, rel=0.025)


@pytest.mark.parametrize("divisor", [2, 16])
def test_a_narrowed_model_says_so_and_keeps_its_blocks(divisor: int) -> None:
    shape = MODEL_SHAPES["engram-paper-4b"]
    narrow = shape.narrowed(divisor)
    assert narrow.blocks == shape.blocks
    assert narrow.flop_per_token * divisor**2 == pytest.approx(shape.flop_per_token, rel=0.05)
    assert narrow.describe()["is_scaled"]
    assert narrow.describe()["width_divisor"] == divisor
    assert not shape.describe()["is_scaled"]
    assert shape.narrowed(1) is shape


def test_a_cut_model_still_reads_every_layer_of_the_table() -> None:
    shape = MODEL_SHAPES["deepseek-v4.1-flash"]
    assert shape.cut(1.0) == shape
    assert shape.cut(0.25).memory_blocks == (1, 9)
    assert shape.cut(0.001).memory_blocks == (0, 0)
    for share in (0, -1, 1.01):
        with pytest.raises(InvalidInput, match="load share"):
            shape.cut(share)


def test_a_model_reads_as_many_layers_as_the_table_has() -> None:
    shape = MODEL_SHAPES["deepseek-v4.1-flash"]
    assert shape.reading((0,)).memory_blocks == (1,)
    assert shape.reading((1, 14)).memory_blocks == (1, 14)
    assert shape.reading((3, 7, 11, 99)).memory_blocks == (1, 14, 11, 39)


def test_a_loads_products_are_those_of_numpy() -> None:
    shape = MODEL_SHAPES["deepseek-v4.1-flash"].narrowed(64).cut(0.1)
    load = Load(np, shape, max_tokens=3, memory_inputs=20, dtype="float32")
    for nth in range(shape.blocks):
        load.block(nth, 2)
        last, weights = shape.products[-1], load._weights[nth % 2][-1]
        rows = 2 * last.per_token
        expected = load._inputs[: rows * last.inputs].reshape(rows, last.inputs) @ weights
        assert np.allclose(load._outputs[: rows * last.outputs].reshape(rows, last.outputs), expected)
    load.head(3)
    values = np.random.default_rng(1).standard_normal((2, 20), "float32")
    load.remember(values)
    assert np.allclose(load._remembered[:2], values @ load._memory)


# Steps.


@settings(deadline=None)
@given(
    n_sequences=st.integers(1, 20), shortest=st.integers(1, 30), extra=st.integers(0, 30), chunk=st.integers(1, 50),
    n_steps=st.integers(1, 40), seed=st.integers(0, 9),
)  # fmt: skip
def test_steps_hold_every_token_once(
    n_sequences: int, shortest: int, extra: int, chunk: int, n_steps: int, seed: int
) -> None:
    work = Workload.draw(
        n_sequences=n_sequences, shortest=shortest, longest=shortest + extra, chunk_tokens=chunk, seed=seed
    )
    lengths = np.concatenate([work.prompt_lengths, work.answer_lengths])
    assert shortest <= lengths.min() <= lengths.max() <= shortest + extra
    assert work.prefill_tokens.sum() == work.prompt_lengths.sum()
    assert set(work.prefill_tokens[:-1]) <= {chunk}
    assert 0 < work.prefill_tokens[-1] <= chunk
    # The first token of an answer comes out of the prompt's last step.
    assert work.decode_tokens.sum() == (work.answer_lengths - 1).sum()
    assert len(work.decode_tokens) == work.answer_lengths.max() - 1
    assert list(work.decode_tokens) == sorted(work.decode_tokens, reverse=True)
    steps = work.sample(n_steps)
    for kind, tokens in ((StepKind.PREFILL, work.prefill_tokens), (StepKind.DECODE, work.decode_tokens)):
        chosen = [n for k, n in steps if k is kind]
        assert len(chosen) == min(n_steps, len(tokens))
        assert set(chosen) <= set(tokens.tolist())
    assert [kind for kind, _ in steps] == sorted((kind for kind, _ in steps), reverse=True)
    assert max(n for _, n in steps) <= work.largest_step


def test_the_whole_time_is_the_sampled_time_if_all_was_sampled() -> None:
    work = Workload.draw(n_sequences=5, shortest=2, longest=9, chunk_tokens=7, seed=3)
    everything = work.sample(10**6)
    elapsed = {StepKind.PREFILL: 700, StepKind.DECODE: 90}
    assert work.whole_ns(everything, elapsed) == pytest.approx(790)
    some = work.sample(1)
    n_prefilled = some[0][1]
    assert work.whole_ns(some, elapsed) == pytest.approx(
        700 / n_prefilled * work.prompt_lengths.sum() + 90 * len(work.decode_tokens)
    )


@pytest.mark.parametrize(
    "wrong", [{"n_sequences": 0}, {"shortest": 0}, {"shortest": 9, "longest": 8}, {"chunk_tokens": 0}]
)
def test_a_workload_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    given = {"n_sequences": 1, "shortest": 1, "longest": 9, "chunk_tokens": 1, "seed": 0} | wrong
    with pytest.raises(InvalidInput, match="workload"):
        Workload.draw(**given)


def test_drawn_rows_are_the_traces(table: Table) -> None:
    trace = uniform_trace(table.spec, n_tokens=50)
    steps = [(StepKind.PREFILL, 60), (StepKind.DECODE, 7)]
    chunk, decoded = draw_rows(trace, steps, np.random.default_rng(1))
    assert len(chunk.rows) == 60
    known = {row.tobytes(): nth for nth, row in enumerate(trace.addresses.rows)}
    positions = [known[row.tobytes()] for row in chunk.rows]
    assert all((later - earlier) % 50 == 1 for earlier, later in pairwise(positions))
    assert all(row.tobytes() in known for row in decoded.rows)


# Waits.


class ScriptedClock(HostClock):
    """Gives the times that it was told."""

    def __init__(self, times: list[int], *, sees_arrivals: bool = True) -> None:
        self._times = iter(times)
        self.sees_arrivals = sees_arrivals

    def mark(self) -> int:
        return next(self._times)


EVENTS = [
    (10, Event(EventKind.ISSUED, 0, None, 5)),
    (15, Event(EventKind.ISSUED, 1, None, 3)),
    (30, Event(EventKind.READY, 0, None, 5)),
    # Layer 0 of step 0 is early by 20, layer 1 by 70; layer 0 of step 1 waits from 110 to 140.
    (50, Event(EventKind.WANTED, 0, 0, 5)),
    (51, Event(EventKind.TAKEN, 0, 0, 5)),
    (100, Event(EventKind.WANTED, 0, 1, 5)),
    (100, Event(EventKind.TAKEN, 0, 1, 5)),
    (105, Event(EventKind.RELEASED, 0, None, 5)),
    (110, Event(EventKind.WANTED, 1, 0, 3)),
    (135, Event(EventKind.READY, 1, None, 3)),
    (140, Event(EventKind.TAKEN, 1, 0, 3)),
    (150, Event(EventKind.ISSUED, 2, None, 4)),
    (160, Event(EventKind.REJECTED, 2, None, 4)),
]


def metered(*, sees_arrivals: bool) -> SlackMeter:
    meter = SlackMeter(ScriptedClock([time for time, _ in EVENTS], sees_arrivals=sees_arrivals))
    for _, event in EVENTS:
        meter(event)
    return meter


def test_waits_and_slack_are_what_the_events_say() -> None:
    found = metered(sees_arrivals=True).summary()
    assert found["exposed_ns"] == 31
    assert (found["steps_issued"], found["steps_taken"], found["steps_rejected"]) == (3, 2, 1)
    assert (found["tokens_issued"], found["tokens_taken"]) == (12, 8)
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    first, second = found["layers"]
    assert (first["exposed_ns"]["min_ns"], first["exposed_ns"]["max_ns"]) == (1, 30)
    assert (first["slack_ns"]["min_ns"], first["slack_ns"]["max_ns"]) == (-25, 20)
    assert second["exposed_ns"]["total_ns"] == 0
    assert second["slack_ns"]["total_ns"] == 70
    assert (found["fetch_ns"]["min_ns"], found["fetch_ns"]["max_ns"]) == (20, 120)


def test_a_clock_that_sees_no_arrivals_claims_no_slack() -> None:
    found = metered(sees_arrivals=False).summary()
    assert found["exposed_ns"] == 31
    assert found["fetch_ns"] is None
    assert all(layer["slack_ns"] is None for layer in found["layers"])


def test_a_meter_forgets_a_warm_up() -> None:
    meter = metered(sees_arrivals=True)
    meter.clear()
    assert meter.exposed_ns == 0
    assert meter.summary()["layers"] == []


# Rows that no disk holds.


def test_generated_rows_are_the_same_from_files_and_in_a_block(table: Table) -> None:
    rows = uniform_trace(table.spec, n_tokens=40).addresses.rows
    expected = read_batch(table.stored, rows)
    block = generated_block(table.spec)
    assert np.array_equal(expected_records(block, rows), expected)
    assert np.array_equal(table.fetch(uniform_trace(table.spec, n_tokens=40).addresses), expected)
    # Every row is another one, and one that can be read.
    for layer in range(2):
        of_layer = expected[:, layer].reshape(-1, 264)
        assert len(np.unique(of_layer, axis=0)) == len(np.unique(rows[:, layer]))
    assert np.isfinite(table.decode(expected)).all()
    with Table(GeneratedRows(table.spec, seed=1)) as other:
        assert not np.array_equal(read_batch(other.stored, rows), expected)


def test_generated_rows_take_what_they_are_given() -> None:
    assert generated_spec(264 * 24 * 10 + 5, (1,)).n_rows == 240
    with pytest.raises(InvalidInput, match="expected 12672 or more"):
        generated_spec(12671, (1, 14))


def test_more_generated_rows_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_rows, "read_meminfo", lambda: {"MemAvailable": 1 << 20})
    with pytest.raises(CapacityError, match="expected 838860 at most"):
        GeneratedRows(generated_spec(1 << 20, (1,)))
    record = overlap(None, plan=QUICK)
    assert record["status"] == "waived"
    assert "ask for fewer" in record["reason"]
    assert summary_lines(record) == []


# Runs.


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    done: list[tuple[int, int]] = []
    made = overlap(None, plan=QUICK, progress=lambda n, of: done.append((n, of)))
    assert done == [(1, 2), (2, 2)]
    return made


def test_a_run_on_the_host_measures_every_way(record: dict[str, Any]) -> None:
    assert json.loads(json.dumps(record)) == json.loads(json.dumps(record))
    assert record["schema"] == OVERLAP_SCHEMA
    assert record["status"] == "measured"
    assert record["model"]["is_scaled"]
    assert record["mismatches"] == []
    (load,) = record["loads"]
    assert [way["way"] for way in load["ways"]] == WAYS
    n_steps = len(record["workload"]["sampled_steps"])
    assert n_steps == 6
    for way in load["ways"]:
        assert way["status"] == "measured"
        assert len(way["samples"]) == 2
        assert way["tokens_per_s"] > 0
        assert way["decode_us_per_step"] > 0
        if way["way"] == "no table":
            assert way["slack"] is None
            assert way["loss_against_resident"] is None
            continue
        # Two rounds of every step, and the table's one layer of each.
        assert way["slack"]["steps_taken"] == n_steps
        assert way["slack"]["layers"][0]["exposed_ns"]["n"] == 2 * n_steps
        assert 0 <= way["exposed_share"] < 1
        low, high = way["loss_against_no_table"]["min"], way["loss_against_no_table"]["max"]
        assert low <= way["loss_against_no_table"]["median"] <= high < 1
        own, bare = way["tokens_per_s_samples"], load["ways"][0]["tokens_per_s_samples"]
        assert sorted(1 - a / b for a, b in zip(own, bare, strict=True)) == pytest.approx([low, high])


def test_what_is_shown_fits_a_hundred_columns(record: dict[str, Any]) -> None:
    record = copy.deepcopy(record)
    for way in record["loads"][0]["ways"]:
        # As on a machine that does nothing else.
        for name in ("loss_against_resident", "loss_against_no_table"):
            way[name] = way[name] and {"median": -0.0192, "mad": 0.0123}
        way |= {"tokens_per_s": 98_765.4, "prefill_us_per_token": 1234.56, "decode_us_per_step": 98_765.4}
        way["exposed_us_per_step"] = way["exposed_us_per_step"] and 12_345.6
    columns, rows = table_rows(record)
    assert columns == COLUMNS
    widths = [max(len(row[k]) for row in [columns, *rows]) for k in range(len(columns))]
    assert sum(widths) + 2 * len(widths) <= 100
    assert [row[0] for row in rows] == WAYS
    lines = summary_lines(record)
    assert any("NOT the model's own size" in line for line in lines)
    assert any("a bound" in line for line in lines)
    assert all(len(line) <= 100 for line in lines), [line for line in lines if len(line) > 100]


def test_a_table_on_a_disk_is_read_cold_by_an_engine_that_works(tmp_path: Path) -> None:
    spec = generated_spec(1 << 18, (1,))
    build_table(plan_table(spec, codec="fp8-e4m3-e8m0", layout="packed", init="normal"), tmp_path / "table")
    plan = OverlapPlan(
        source="nvme", engine="pread", width_divisor=64, n_sequences=2, shortest_tokens=2, longest_tokens=4,
        chunk_tokens=4, load_shares=(0.1, 0.2), repeats=1, steps=1, depth=2,
    )  # fmt: skip
    record = overlap(tmp_path / "table", plan=plan)
    assert record["status"] == "measured"
    assert [load["blocks"] for load in record["loads"]] == [4, 7]
    ways = {way["way"]: way for way in record["loads"][0]["ways"]}
    assert list(ways) == ["no table", "resident", "pread, in pass", "pread, ahead"]
    assert ways["pread, ahead"]["depth"] == 2
    # What stayed in memory was measured; filesystems in memory keep everything.
    assert len(ways["pread, ahead"]["resident_bytes_before"]) == 1
    assert ways["resident"]["resident_bytes_before"] is None


class WrongEngine(GatherEngine):
    """Flips a bit of the last record."""

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        super()._read(batch, out, threads, items)
        out[-1, -1] ^= 1


def test_wrong_bytes_stop_the_run(table: Table) -> None:
    with Table(GeneratedRows(table.spec)) as broken:
        broken._engines["gather"] = WrongEngine(broken.stored, broken.places)
        part = measure(broken, uniform_trace(broken.spec, n_tokens=20), host_side(), QUICK)
    assert part["status"] == "mismatch"
    assert [wrong["way"] for wrong in part["mismatches"]] == WAYS[2:]
    assert "loads" not in part


@pytest.mark.parametrize("is_block", [True, False])
def test_the_ways_of_a_device_run_on_one_that_lies_in_host_memory(table: Table, is_block: bool) -> None:
    device = HostDevice()
    clock = HostClock()
    clock.sees_arrivals = False
    side = Side(
        name="host memory", xp=np, dtype="float32", clock=clock, to_host=np.asarray, device=device,
        after_take=lambda: device.consumer().synchronize(),
    )  # fmt: skip
    rows: Any = generated_block(table.spec) if is_block else table
    plan = OverlapPlan(
        source="dram", model="deepseek-v4.1-flash", width_divisor=64, n_sequences=2, shortest_tokens=2,
        longest_tokens=5, chunk_tokens=4, load_shares=(0.1,), repeats=1, steps=2, depth=2,
    )  # fmt: skip
    part = measure(rows, uniform_trace(table.spec, n_tokens=64), side, plan)
    assert part["status"] == "measured", part
    (load,) = part["loads"]
    staged = "staged" if is_block else "staged (gather)"
    assert [way["way"] for way in load["ways"]] == [
        "no table", "resident", "zero-copy, in pass", "zero-copy, ahead", f"{staged}, in pass",
        f"{staged}, ahead",
    ]  # fmt: skip
    for way in load["ways"]:
        assert way["status"] == "measured", way
        if way["slack"] is not None:
            assert [layer["layer"] for layer in way["slack"]["layers"]] == [0, 1]
            assert way["slack"]["layers"][0]["slack_ns"] is None
    json.dumps(part)


def test_without_a_gpu_the_figures_are_waived_with_the_reason() -> None:
    reason = why_no_gpu()
    if reason is None:
        pytest.skip("there is a GPU: tests/gpu run on it")
    record = overlap(None, plan=OverlapPlan(to="gpu", generated_bytes=1 << 20))
    assert record["status"] == "waived"
    assert record["reason"] == reason


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"to": "tpu"}, "to: found 'tpu', expected one of host, gpu"),
        ({"source": "tape"}, "source: found 'tape', expected one of dram, nvme, auto"),
        ({"engine": "steam"}, "engine: found 'steam'"),
        ({"model": "gpt"}, "model: found 'gpt', expected one of engram-paper-4b"),
        ({"depth": 0}, "depth: found 0, expected 1 or more"),
        ({"load_shares": ()}, "load shares"),
        ({"load_shares": (1.5,)}, "load shares"),
    ],
)
def test_a_wrong_plan_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        OverlapPlan(**wrong)


@pytest.mark.parametrize("without", [{"plan": OverlapPlan(source="nvme")}, {"corpus": ["text"]}, {"trace_path": "t"}])
def test_what_needs_a_table_asks_for_one(without: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="found no table"):
        overlap(None, **without)


def test_an_engine_that_cannot_work_here_is_waived_by_name(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise BackendUnavailable(f"engine {name}: refused in this test")

    monkeypatch.setattr(table, "engine", refuse)
    plan = OverlapPlan(
        engine="direct", width_divisor=64, n_sequences=1, longest_tokens=100, chunk_tokens=50, load_shares=(0.1,),
        repeats=1, steps=1,
    )  # fmt: skip
    part = measure(table, uniform_trace(table.spec, n_tokens=64), host_side(), plan)
    ways = {way["way"]: way for way in part["loads"][0]["ways"]}
    assert ways["direct, ahead"]["status"] == "waived"
    assert "refused in this test" in ways["direct, ahead"]["reason"]
    assert ways["resident"]["status"] == "measured"
    shown = summary_lines({**part, "to": "host"})
    assert "direct, ahead: waived: direct: engine direct: refused in this test" in shown
