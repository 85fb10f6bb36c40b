"""Disks, hit curves and machines: by hand, from records, and probed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as given_values
from hypothesis import settings
from hypothesis import strategies as st
from planning_cases import CURVE, DISK, V41, simulated

from engram_tables.errors import InvalidInput
from engram_tables.measure.planning.disk import Burst, Disk, bursts_from_sweep, disk_by_hand
from engram_tables.measure.planning.figures import Origin, given
from engram_tables.measure.planning.hit_curve import Answered, constant_curve, curve_of_record
from engram_tables.measure.planning.load import Load
from engram_tables.measure.planning.machine import ascending, call_of_line, make_machine, read_record
from engram_tables.measure.planning.placements import Setting
from engram_tables.measure.planning.plan import make_plan
from engram_tables.measure.planning.probing import probe

ROOT = Path(__file__).resolve().parents[3]

# Disks


def test_a_burst_lies_on_the_line_between_measured_ones() -> None:
    assert [DISK.burst_us(n) for n in (0, 0.5, 1, 48, 88, 128, 228)] == [
        0.0,
        50.0,
        100.0,
        600.0,
        1100.0,
        1600.0,
        2600.0,
    ]
    assert DISK.serial_us(48) == 2400.0
    assert DISK.rate(4096) == 100_000.0
    assert DISK.rate(100_000) == 10_000.0


@settings(deadline=None)
@given_values(st.floats(1, 5000), st.floats(0, 500))
def test_more_reads_take_no_less_time(n_reads: float, more: float) -> None:
    assert DISK.burst_us(n_reads + more) >= DISK.burst_us(n_reads) - 1e-9


@settings(deadline=None)
@given_values(st.integers(1, 400), st.floats(10, 1e4), st.floats(100, 1e6))
def test_a_disk_by_hand_is_latency_and_rate(n_reads: int, latency_us: float, per_s: float) -> None:
    disk = disk_by_hand(reads_per_s=given(per_s, "-"), latency_us=given(latency_us, "-"))
    assert disk.burst_us(n_reads) == pytest.approx(latency_us + (n_reads - 1) * 1e6 / per_s)


@settings(deadline=None)
@given_values(st.lists(st.floats(1e3, 1e6), min_size=1, max_size=6))
def test_bursts_of_a_sweep_are_the_drained_queue(rates: list[float]) -> None:
    points = [(2**k, per_s) for k, per_s in enumerate(rates)]
    bursts = bursts_from_sweep(points)
    assert [burst.n_reads for burst in bursts] == [depth for depth, _ in points]
    # One read after the other, slowly: what is left in flight decides when the next one is there.
    best = np.maximum.accumulate(rates)
    expected = sum(1e6 / np.interp(k, [2**j for j in range(len(rates))], best) for k in range(1, points[-1][0] + 1))
    assert bursts[-1].us == pytest.approx(expected)


def test_a_sweep_without_depth_one_begins_at_one_read_all_the_same() -> None:
    bursts = bursts_from_sweep([(4, 40_000.0), (8, 40_000.0)])
    assert bursts[0] == Burst(1, 100.0)
    with pytest.raises(InvalidInput, match="depth sweep"):
        bursts_from_sweep([])


def test_noise_makes_no_burst_quicker_than_a_smaller_one() -> None:
    assert ascending([Burst(2, 80.0), Burst(1, 90.0), Burst(4, 120.0)]) == [
        Burst(1, 90.0),
        Burst(2, 90.0),
        Burst(4, 120.0),
    ]


# Hit curves


def test_a_curve_is_read_between_its_points() -> None:
    assert CURVE.at(0) == Answered(0.0, None)
    assert CURVE.at(500) == Answered(0.25, None)
    assert CURVE.at(1000) == Answered(0.5, 40.0)
    assert CURVE.at(1500) == Answered(0.55, 40.0)
    assert CURVE.at(10**12) == Answered(0.6, 30.0)
    assert CURVE.bytes_for(0.55) == pytest.approx(1500)
    assert CURVE.bytes_for(0.25) == pytest.approx(500)
    assert CURVE.bytes_for(0.7) is None


@settings(deadline=None)
@given_values(st.floats(0.001, 0.6))
def test_the_cache_for_a_hit_ratio_gives_it(hit_ratio: float) -> None:
    needed = CURVE.bytes_for(hit_ratio)
    assert needed is not None
    assert CURVE.at(needed).hit_ratio == pytest.approx(hit_ratio, abs=1e-6)


def test_the_curve_of_a_record_suits_the_streams() -> None:
    def hit_ratio(**asked: Any) -> float:
        return curve_of_record("r", simulated(), **asked).at(1000).hit_ratio

    assert hit_ratio(n_streams=1) == 0.55
    assert hit_ratio(n_streams=2) == hit_ratio(n_streams=64) == 0.3
    assert hit_ratio(n_streams=4, policy="lru") == 0.4
    assert hit_ratio(n_streams=1, policy="belady") == 0.9
    doubtful = curve_of_record("r", simulated(representative={"verdict": "too-repetitive"}), n_streams=1)
    assert doubtful.where.endswith("; of a text that is too repetitive")
    found = curve_of_record("r", simulated(), n_streams=1)
    assert found.unique_share(260) == pytest.approx(0.75)
    assert (found.unique_share(1), found.unique_share(9999), found.reads_with_bundles(1)) == (0.9, 0.6, None)


def test_a_curve_of_something_else_is_refused() -> None:
    for record, asked in (
        ({"schema": "engram.count/2"}, {}),
        (simulated(), {"policy": "clock"}),
        (simulated(), {"fingerprint": "another"}),
        ({"schema": "engram.simulate/1"}, {}),
    ):
        with pytest.raises(InvalidInput, match="r: found"):
            curve_of_record("r", record, n_streams=1, **asked)
    with pytest.raises(InvalidInput, match="a share"):
        constant_curve(given(60.0, "--hit-ratio"))


# Machines


def test_a_record_of_the_benchmark_becomes_a_machine() -> None:
    path = ROOT / "docs" / "measurements" / "bench-offload.json"
    name, record = read_record(path)
    machine = make_machine(records=[(name, record)])
    assert machine.disk is not None
    sweep = next(each for each in record["ceilings"]["disk"]["engines"] if each["status"] == "measured")
    assert machine.disk.reads_per_s.value == sweep["best_reads_per_s"]
    assert machine.rate("random_lines_per_s") == record["ceilings"]["memory"]["random_lines_per_s"]
    origins = {name: figure.origin for name, figure in machine.rates.items()}
    assert origins["call_us"] is Origin.MEASURED
    assert origins["bus_bytes_per_s"] is Origin.PUBLISHED
    assert origins["cxl_slowdown"] is Origin.ASSUMED
    # What is given comes before what was measured.
    by_hand = make_machine(
        records=[(name, record)], rates={"call_us": given(9.0, "--figure")}, disk_latency_us=given(70.0, "-")
    )
    assert by_hand.rate("call_us") == 9.0
    assert by_hand.disk is not None
    assert by_hand.disk.burst_us(1) == 70.0
    assert by_hand.disk.reads_per_s == machine.disk.reads_per_s


def test_a_call_is_what_no_rows_take() -> None:
    # 48 cached rows of 15 ns each are in the shorter one: those are the plan's to reckon.
    assert call_of_line([(48, 3.0 + 48 * 0.015), (384, 3.0 + 384 * 0.015)]) == pytest.approx(3.0)
    assert call_of_line([(48, 5.0)]) == 5.0
    # Noise: the longer one three times as long a row.
    assert call_of_line([(48, 5.0), (384, 120.0)]) == 0.5


def test_another_disk_than_the_measured_one_is_as_good_as_it_is_said_to_be() -> None:
    record = {
        "schema": "engram.plan/1",
        "machine": {
            "spaces": {}, "rates": {},
            "disk": Disk(
                bursts=(Burst(1, 543.0), Burst(48, 2000.0)), reads_per_s=given(80_000.0, "-"),
                serial_read_us=given(56.0, "-"), sequential_bytes_per_s=None, origin=Origin.MEASURED, where="-",
            ).to_json(),
        },
    }  # fmt: skip

    def serial_us(reads_per_s: float | None, latency_us: float | None) -> float:
        disk = make_machine(
            records=[("r", record)],
            disk_reads_per_s=None if reads_per_s is None else given(reads_per_s, "-"),
            disk_latency_us=None if latency_us is None else given(latency_us, "-"),
        ).disk
        assert disk is not None
        return disk.serial_us(1)

    assert serial_us(None, None) == 56.0
    # Better in one figure or in both: never slower, one read after the other.
    assert serial_us(500_000.0, None) == serial_us(500_000.0, 80.0) == 56.0
    assert serial_us(500_000.0, 20.0) == 20.0
    # Twice the latency, twice the time; and never quicker than reads that do not wait for each other.
    assert serial_us(500_000.0, 1086.0) == pytest.approx(112.0)
    assert serial_us(1000.0, None) == pytest.approx(1000.0)


def test_figures_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="expected more than 0"):
        make_machine(rates={"call_us": given(0.0, "--figure call_us")})
    with pytest.raises(InvalidInput, match="found the figure 'speed'"):
        make_machine(rates={"speed": given(1.0, "--figure speed")})
    with pytest.raises(InvalidInput, match="a latency is no rate"):
        make_machine(disk_latency_us=given(80.0, "--disk-latency-us"))
    with pytest.raises(InvalidInput, match="expected more than 0"):
        make_machine(disk_reads_per_s=given(-1.0, "--disk-reads-per-s"))
    with pytest.raises(InvalidInput, match="found schema"):
        make_machine(records=[("r", {"schema": "engram.count/2"})])
    with pytest.raises(InvalidInput, match="without what its schema says"):
        make_machine(records=[("r", {"schema": "engram.bench-offload/2"})])
    for text in ("", "[1]", "[" * 100_000):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(InvalidInput, match="expected a record"):
            read_record(tmp_path / "r.json")


def test_a_given_rate_over_a_measured_disk_makes_nothing_slower() -> None:
    records = [read_record(ROOT / "docs/measurements/bench-offload.json")]
    measured = make_machine(records=records).disk
    faster = make_machine(records=records, disk_reads_per_s=given(5_000_000.0, "--disk-reads-per-s")).disk
    assert measured is not None
    assert faster is not None
    assert faster.serial_us(48) == measured.serial_us(48)
    assert faster.burst_us(48) <= measured.burst_us(48)
    assert faster.rate(4096) > measured.rate(4096)


def test_a_probe_is_a_machine_and_leaves_nothing_behind(tmp_path: Path) -> None:
    record = probe(tmp_path, seconds=0.01, burst_repeats=2, file_bytes=1 << 20, region_bytes=16 << 20)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert list(tmp_path.iterdir()) == []
    machine = make_machine(records=[("probe", record)])
    assert machine.rates["call_us"].origin is Origin.MEASURED
    assert set(machine.spaces) >= {"dram_bytes", "disk_bytes", "gpu_memory_bytes"}
    assert (record["why_no_gpu"] is None) == (machine.spaces["gpu_memory_bytes"].value > 0)
    assert [call["n_rows"] for call in record["calls"]] == [48, 384]
    assert 0 < record["call_us"] <= record["calls"][0]["median_us"]
    if record["disk"]["status"] == "waived":
        assert record["disk"]["reason"]
        assert machine.disk is None
    else:
        assert machine.disk is not None
        assert machine.disk.bursts[0].n_reads == 1
        # What a plan wrote down is the same machine again, but for what was only assumed.
        plan = make_plan(Setting(table=V41, machine=machine), Load(tokens_per_s=1.0))
        again = make_machine(records=[("plan", json.loads(json.dumps(plan)))])
        assert again.disk is not None
        assert again.disk.bursts == machine.disk.bursts
        assert again.disk.planned_bursts == machine.disk.planned_bursts
        assert again.to_json() == machine.to_json()
    with pytest.raises(InvalidInput, match="found no directory"):
        probe(tmp_path / "nothing")
