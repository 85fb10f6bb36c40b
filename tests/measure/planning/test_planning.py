"""The arithmetic of a plan: sizes that were published, disks, hit curves, verdicts, and what each figure rests on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as given_values
from hypothesis import settings
from hypothesis import strategies as st

from engram_tables.address.presets import PRESETS
from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.errors import InvalidInput
from engram_tables.fetch.table import open_table
from engram_tables.measure.offload.lookups import Asked, batch_facts
from engram_tables.measure.planning.allocate import Budget, TableShape, allocate
from engram_tables.measure.planning.disk import Burst, Disk, bursts_from_sweep, disk_by_hand
from engram_tables.measure.planning.figures import Figure, Origin, given
from engram_tables.measure.planning.hit_curve import Answered, HitCurve, constant_curve, curve_of_record
from engram_tables.measure.planning.load import Load, make_load
from engram_tables.measure.planning.machine import Machine, ascending, call_of_line, make_machine, read_record
from engram_tables.measure.planning.placements import Placement, Setting, place
from engram_tables.measure.planning.plan import make_plan
from engram_tables.measure.planning.probing import probe
from engram_tables.measure.planning.sizes import mean_units, sizes_of_preset, sizes_of_spec
from engram_tables.measure.planning.verdict import Status, exposed_us, judge
from engram_tables.storage.building.writer import build_table, plan_table
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.extents import Part
from engram_tables.storage.table.layout import get_layout

ROOT = Path(__file__).resolve().parents[3]
V41 = sizes_of_preset("deepseek-v4.1-flash")
DISK = Disk(
    bursts=(Burst(1, 100.0), Burst(48, 600.0), Burst(128, 1600.0)),
    reads_per_s=given(100_000.0, "a test"), serial_read_us=given(50.0, "a test"),
    sequential_bytes_per_s=given(1e9, "a test"), origin=Origin.MEASURED, where="a test",
)  # fmt: skip


def _machine(disk: Disk | None = DISK, **spaces: float) -> Machine:
    machine = make_machine(spaces={name: given(value, name) for name, value in spaces.items()})
    return Machine(spaces=machine.spaces, rates=machine.rates, disk=disk)


# Sizes


def test_the_published_sizes_come_out() -> None:
    assert (V41.n_rows, V41.row_bytes, V41.table_bytes) == (768_022_850, 264, 202_758_032_400)
    assert V41.rows_per_table == (384_006_168, 384_016_682)
    assert (V41.rows_per_token, V41.lookups_per_token, V41.layer_ids) == (48, 6, (1, 14))
    qwen = sizes_of_preset("qwen3.8-flash-next")
    assert (qwen.n_rows, qwen.row_bytes, qwen.rows_per_token) == (320_001_536, 320, 16)
    assert sizes_of_preset("longcat-flash-lite").n_rows == 122_683_536
    assert sizes_of_preset("engram-27b").n_rows * 80 == 5_792_338_560
    assert sizes_of_preset("engram-40b").n_rows * 80 == 18_534_311_360


def test_pages_a_row_are_those_that_were_measured() -> None:
    packed, planar, page = (V41.row_cost(layout) for layout in ("packed", "split", "page"))
    # Of 512 rows in 33 pages 32 cross into the next one.
    assert (packed.reads, packed.pages) == (1, 1.0625)
    assert (planar.reads, planar.pages) == (2, 2.0)
    assert (page.reads, page.pages) == (1, 1.0)
    assert page.table_bytes == sum(-(-n // 15) * 4096 for n in V41.rows_per_table)
    assert packed.table_bytes == planar.table_bytes == V41.table_bytes


@settings(deadline=None)
@given_values(
    st.integers(1, 700), st.integers(1, 5), st.integers(0, 60), st.sampled_from([64, 512, 4096]), st.integers(0, 8)
)
def test_mean_units_are_those_of_every_row(n_bytes: int, cell_rows: int, spare: int, unit: int, start: int) -> None:
    part = Part(
        name="records", start=start, n_bytes=n_bytes, cell_rows=cell_rows, cell_bytes=cell_rows * n_bytes + spare
    )
    # A whole period, and it alone.
    first = part.offset(np.arange(cell_rows * unit))
    touched = (first + n_bytes - 1) // unit - first // unit + 1
    assert mean_units(part, unit) == pytest.approx(float(touched.mean()))


def test_row_costs_are_those_of_a_real_table(tmp_path: Path) -> None:
    spec = DeepSeekRecipe(
        name="small", provenance="a test", canonical_size=99, orders=(2, 3), heads=2, bases=(7000, 7000),
        layer_ids=(1,), n_layers=1, fill_id=0, row_width=256,
    ).resolve()  # fmt: skip
    for layout in ("packed", "page", "split"):
        build_table(plan_table(spec, codec="fp8-e4m3-e8m0", layout=layout, init="zeros"), tmp_path / layout)
        cost = sizes_of_spec(spec, codec="fp8-e4m3-e8m0").row_cost(layout)
        with open_table(tmp_path / layout) as table:
            rows = np.arange(spec.n_rows)
            facts = batch_facts(table, Asked(((1, rows),), None))
            data_bytes = sum(file.file_bytes for file in table.stored.files)
        assert facts["pages_per_row"] == pytest.approx(cost.pages, rel=0.002)
        assert facts["line_bytes"] / 64 / rows.size == pytest.approx(cost.lines, rel=0.002)
        # Headers of 4 KiB a shard stand before the rows.
        assert 0 <= data_bytes - cost.table_bytes <= 3 * 4096


def test_a_codec_comes_from_the_release_or_from_whoever_asks() -> None:
    spec = PRESETS["engram-demo"].resolve()
    assert sizes_of_spec(spec).codec == "f32"
    assert sizes_of_spec(spec, codec="bf16").row_bytes == 128
    opaque = sizes_of_spec(spec, row_bytes=100)
    assert (opaque.codec, opaque.row_bytes, opaque.row_cost("packed").table_bytes) == (
        "opaque-100",
        100,
        spec.n_rows * 100,
    )
    with pytest.raises(InvalidInput, match="expected one of them"):
        sizes_of_spec(spec, codec="bf16", row_bytes=100)
    with pytest.raises(InvalidInput, match="preset 'nobody'"):
        sizes_of_preset("nobody")


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

CURVE = HitCurve(
    points=((1000, Answered(0.5, 40.0)), (2000, Answered(0.6, 30.0)), (4000, Answered(0.6, 30.0))),
    origin=Origin.MEASURED, where="a test",
)  # fmt: skip


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


def _simulated(**changes: Any) -> dict[str, Any]:
    def curve(policy: str, n_streams: int, hit_ratio: float, **others: Any) -> dict[str, Any]:
        point = {"cache_bytes": 1000, "hit_ratio": hit_ratio, "error": None, "misses_a_token_p50": 1,
                 "misses_a_token_p99": 48}  # fmt: skip
        return {"policy": policy, "unit": "row", "n_streams": n_streams, "tokens_a_step": n_streams,
                "is_prefill": False, "state": "steady", "points": [point], **others}  # fmt: skip

    return {
        "schema": "engram.simulate/1",
        "fingerprint": "f",
        "curves": [
            curve("belady", 1, 0.9), curve("lru", 1, 0.5), curve("lru", 4, 0.4), curve("tiered", 1, 0.55),
            curve("tiered", 16, 0.3), curve("tiered", 1, 0.1, state="cold"), curve("tiered", 1, 0.2, unit="page"),
            curve("tiered", 1, 0.05, tokens_a_step=512, is_prefill=True),
        ],
        "unique_rows": [{"chunk_tokens": 8, "unique_ratio": 0.9}, {"chunk_tokens": 512, "unique_ratio": 0.6},
                        {"chunk_tokens": 4096, "unique_ratio": None}],
        **changes,
    }  # fmt: skip


def test_the_curve_of_a_record_suits_the_streams() -> None:
    def hit_ratio(**asked: Any) -> float:
        return curve_of_record("r", _simulated(), **asked).at(1000).hit_ratio

    assert hit_ratio(n_streams=1) == 0.55
    assert hit_ratio(n_streams=2) == hit_ratio(n_streams=64) == 0.3
    assert hit_ratio(n_streams=4, policy="lru") == 0.4
    assert hit_ratio(n_streams=1, policy="belady") == 0.9
    doubtful = curve_of_record("r", _simulated(representative={"verdict": "too-repetitive"}), n_streams=1)
    assert doubtful.where.endswith("; of a text that is too repetitive")
    found = curve_of_record("r", _simulated(), n_streams=1)
    assert found.unique_share(260) == pytest.approx(0.75)
    assert (found.unique_share(1), found.unique_share(9999), found.reads_with_bundles(1)) == (0.9, 0.6, None)


def test_a_curve_of_something_else_is_refused() -> None:
    for record, asked in (
        ({"schema": "engram.count/2"}, {}),
        (_simulated(), {"policy": "clock"}),
        (_simulated(), {"fingerprint": "another"}),
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


# Placements


def test_times_are_what_their_formulas_say() -> None:
    machine = _machine()
    dram = place(Setting(table=V41, machine=machine), Placement.DRAM)
    # A line at random, four behind it, and 264 bytes written: memcpy's 17.4 GB/s are read and written.
    row_ns = 1e9 / 63e6 + 4 * 6.0 + 264 / (2 * 17.4)
    assert dram.cost.lines == 5.0
    assert dram.fetch_us(1) == pytest.approx(3.0 + 48 * row_ns / 1e3)
    assert dram.serial_us() == pytest.approx(48 * (row_ns - 1e9 / 63e6 + 299.0) / 1e3)
    packed = place(Setting(table=V41, machine=machine), Placement.NVME_PACKED)
    assert packed.fetch_us(1) == pytest.approx(dram.fetch_us(1) + 600.0)
    planar = place(Setting(table=V41, machine=machine), Placement.NVME_PLANAR)
    assert planar.reads_per_token == 96
    assert planar.fetch_us(1) - planar.rows_us(48) == pytest.approx(1200.0)
    cached = place(Setting(table=V41, machine=machine, curve=CURVE, cache_bytes=1000), Placement.NVME_PACKED)
    assert cached.fetch_us(2) - cached.rows_us(96) == pytest.approx(DISK.burst_us(48))
    assert cached.fetch_us(1, misses_per_token=48.0) == pytest.approx(packed.fetch_us(1))
    assert cached.needs == {"disk_bytes": V41.table_bytes, "dram_bytes": 1000}
    bundled = place(
        Setting(table=V41, machine=machine, curve=CURVE, bundle_bytes=10, bundle_reads=given(20.0, "-")),
        Placement.NVME_BUNDLED,
    )
    assert (bundled.reads_per_token, bundled.needs["disk_bytes"]) == (20.0, V41.table_bytes + 10)
    pinned = place(Setting(table=V41, machine=machine), Placement.PINNED)
    assert pinned.fetch_us(4) == pytest.approx(3.7 + 4 * 12_672 / 20e9 * 1e6)
    gpu = place(Setting(table=V41, machine=machine, to_gpu=True), Placement.DRAM)
    assert gpu.fetch_us(1) == pytest.approx(dram.fetch_us(1) + pinned.fetch_us(1))


def test_batches_that_an_engine_plans_first_take_planned_bursts() -> None:
    planned = replace(DISK, planned_bursts=(Burst(1, 300.0), Burst(512, 6000.0)))
    setting = Setting(table=V41, machine=_machine(disk=planned))
    packed, planar = (place(setting, each) for each in (Placement.NVME_PACKED, Placement.NVME_PLANAR))
    # A token's 48 rows in one piece are asked for at once; in two pieces, or of three tokens, they are not.
    assert packed.fetch_us(1) - packed.rows_us(48) == pytest.approx(600.0)
    for placed, n_tokens, n_reads in ((planar, 1, 96), (packed, 3, 144)):
        us = 300.0 + (n_reads - 1) / 511 * 5700.0
        assert placed.fetch_us(n_tokens) - placed.rows_us(48 * n_tokens) == pytest.approx(us)
    # Further reads come at the device's rate.
    assert planned.burst_us(612, is_planned=True) == pytest.approx(6000.0 + 100 * 1e6 / DISK.reads_per_s.value)


def test_bundles_and_a_cache_work_together() -> None:
    def record(bundled: Any) -> dict[str, Any]:
        found = _simulated(bundles={"points": [{"budget_bytes": 0, "reads_a_token": 48.0},
                                               {"budget_bytes": 1000, "reads_a_token": 20.0}]})  # fmt: skip
        for curve in found["curves"]:
            curve["points"][0]["bundled"] = bundled
        return found

    behind = [{"budget_bytes": budget, "reads_a_token_least": 1.0, "reads_a_token_most": most}
              for budget, most in ((0, 21.6), (1000, 8.0))]  # fmt: skip

    def placed(bundled: Any, cache_bytes: int, reads: float | None = None) -> Any:
        curve = curve_of_record("r", record(bundled), n_streams=1)
        return place(
            Setting(
                table=V41, machine=_machine(), curve=curve, cache_bytes=cache_bytes, bundle_bytes=1000,
                bundle_reads=None if reads is None else given(reads, "-"),
            ),
            Placement.NVME_BUNDLED,
        )  # fmt: skip

    assert placed(behind, 0).misses_reads() == 20.0
    assert placed(behind, 1000).misses_reads() == 8.0
    assert placed(behind, 500).misses_reads() == pytest.approx(14.0)
    assert placed(behind, 1000).needs == {"disk_bytes": V41.table_bytes + 1000, "dram_bytes": 1000}
    # A record that does not know leaves the cache out.
    assert (placed(None, 1000).misses_reads(), "dram_bytes" in placed(None, 1000).needs) == (20.0, False)
    # By hand they are those behind the cache, which may answer more than every other lookup.
    assert placed(None, 1000, 2.5).misses_reads() == 2.5
    # A read moves no more than the rows of one lookup.
    assert placed(behind, 1000).bytes_per_read <= 8 * placed(behind, 0).cost.sectors * 512
    with pytest.raises(InvalidInput, match="6 to 48"):
        placed(None, 0, 2.5)
    with pytest.raises(InvalidInput, match="behind a cache"):
        placed([{**behind[0], "reads_a_token_most": -1}], 1000)


@settings(deadline=None)
@given_values(st.sampled_from(list(Placement)), st.floats(1, 5000), st.floats(0, 5000))
def test_more_tokens_take_no_less_time(placement: Placement, n_tokens: float, more: float) -> None:
    setting = Setting(table=V41, machine=_machine(), bundle_reads=given(20.0, "-"))
    placed = place(setting, placement)
    # Several threads begin at 8,192 rows, and may be quicker than one below.
    if placed.rows_us(1) and setting.machine.rate("copy_scaling") == 1.0:
        assert placed.fetch_us(n_tokens + more) >= placed.fetch_us(n_tokens) - 1e-6
    assert placed.fetch_us(1) <= placed.serial_us() or placement is Placement.DRAM


def test_what_cannot_be_said_is_not_said() -> None:
    with pytest.raises(InvalidInput, match="disk: found no figures"):
        place(Setting(table=V41, machine=_machine(disk=None)), Placement.NVME_PACKED)
    with pytest.raises(InvalidInput, match="bundles: found no figure"):
        place(Setting(table=V41, machine=_machine()), Placement.NVME_BUNDLED)
    with pytest.raises(InvalidInput, match="6 to 48"):
        place(Setting(table=V41, machine=_machine(), bundle_reads=given(5.0, "-")), Placement.NVME_BUNDLED)
    # Rows of one piece cannot lie in two.
    table = sizes_of_preset("qwen3.8-flash-next")
    plan = make_plan(Setting(table=table, machine=_machine()), Load(tokens_per_s=1.0))
    planar = next(each for each in plan["placements"] if each["placement"] == "nvme-planar")
    assert planar["status"] == "unknown"
    assert "one piece" in planar["summary"]


# Verdicts


def _judged(placement: Placement, load: Load, **setting: Any) -> Any:
    machine = setting.pop("machine", None) or _machine(dram_bytes=1e12, disk_bytes=1e12)
    return judge(place(Setting(table=V41, machine=machine, **setting), placement), load)


def _load(**changes: Any) -> Load:
    return make_load(table_name=V41.name, **{"tokens_per_s": 20.0, **changes})


def test_you_are_fine_and_what_is_nearest() -> None:
    verdict = _judged(Placement.DRAM, _load())
    assert verdict.status is Status.FINE
    assert verdict.summary.startswith("you are fine; nearest is host memory, 20%")
    assert verdict.relief == ()


def test_a_table_that_does_not_fit_has_no_other_verdict() -> None:
    verdict = _judged(Placement.DRAM, _load(tokens_per_s=1e9), machine=_machine(dram_bytes=64e9))
    assert (verdict.status, verdict.binding.name) == (Status.TOO_SMALL, "host memory")
    assert verdict.relief[:2] == (
        "129.23 GiB (138,758,032,400 B) more of host memory",
        "4 machines with a part of the rows each",
    )


def test_space_that_nobody_stated_is_unknown() -> None:
    verdict = _judged(Placement.GPU, _load())
    assert verdict.status is Status.UNKNOWN
    assert "give --gpu-memory" in verdict.summary


def test_reads_a_second_bind_and_a_cache_relieves() -> None:
    """100,000 reads a second and 48 a token: 2,083 tokens a second, whatever the steps allow."""
    load = _load(tokens_per_s=3000.0, streams=1000, most_loss=0.9)
    verdict = _judged(Placement.NVME_PACKED, load)
    limit = next(each for each in verdict.limits if each.name == "disk reads")
    assert limit.available == pytest.approx(100_000 / 48)
    assert limit.holds is False
    assert verdict.status is Status.SLOWER
    assert "2 such disks with the rows spread over them" in verdict.relief
    needed = 1 - 100_000 / 48 / 3000
    assert f"a cache that answers {needed:.1%} of the rows" in verdict.relief
    # And with that cache it holds.
    better = _judged(Placement.NVME_PACKED, load, curve=constant_curve(given(needed + 1e-6, "-")))
    assert next(each for each in better.limits if each.name == "disk reads").holds


def test_relief_by_a_curve_names_a_cache() -> None:
    load = _load(tokens_per_s=3000.0, streams=1000, most_loss=0.9)
    curve = HitCurve(
        points=((10**9, Answered(0.2, None)), (2 * 10**9, Answered(0.4, None))), origin=Origin.MEASURED, where="a test"
    )
    needed = 1 - 100_000 / 48 / 3000
    relief = _judged(Placement.NVME_PACKED, load, curve=curve).relief
    (cache,) = [each for each in relief if each.startswith("a cache of")]
    n_bytes = int(cache.partition("(")[2].partition(" B")[0].replace(",", ""))
    assert n_bytes == pytest.approx((1 + (needed - 0.2) / 0.2) * 1e9, rel=1e-6)
    assert f"{needed:.1%} of the rows" in cache
    poor = HitCurve(points=((10**9, Answered(0.2, None)),), origin=Origin.MEASURED, where="a test")
    assert any("at no size" in each for each in _judged(Placement.NVME_PACKED, load, curve=poor).relief)


def test_waiting_before_the_first_layer_binds() -> None:
    """A step of 16 ms at 40 layers leaves 0.4 ms before layer 1, and 48 reads take 0.6 ms."""
    load = _load(tokens_per_s=None, step_ms=16.0, most_loss=0.001)
    placed = place(Setting(table=V41, machine=_machine(disk_bytes=1e12)), Placement.NVME_PACKED)
    assert load.slack_us(1) == pytest.approx(400.0)
    assert load.slack_us(14) == pytest.approx(5600.0)
    assert exposed_us(placed, load) == pytest.approx(placed.fetch_us(1) - 400.0)
    verdict = judge(placed, load)
    assert verdict.status is Status.SLOWER
    assert verdict.binding is not None
    assert verdict.binding.name == "time before the first layer that reads"
    assert judge(placed, _load(tokens_per_s=None, step_ms=16.0, most_loss=0.05)).status is Status.FINE


def test_layers_of_nobody_knows_how_many_want_rows_at_once() -> None:
    load = make_load(table_name="mine", tokens_per_s=100.0)
    assert load.slack_us(5) == 0.0
    assert make_load(table_name="mine", tokens_per_s=100.0, model_layers=10).slack_us(5) == pytest.approx(5000.0)
    assert make_load(table_name="mine").slack_us(5) is None


def test_the_step_comes_from_the_best_source() -> None:
    assert _load(step_ms=3.0, compute_flops=1e15).step_us == Figure(
        value=3000.0, origin=Origin.GIVEN, where="--step-ms"
    )
    computed = _load(compute_flops=1e15, streams=4).step_us
    assert computed is not None
    assert computed.origin is Origin.COMPUTED
    twice = _load(compute_flops=2e15, streams=4).step_us
    assert twice is not None
    assert computed.value == pytest.approx(2 * twice.value)
    assert _load(streams=4).step_us.value == pytest.approx(4 / 20 * 1e6)  # type: ignore[union-attr]
    for wrong in ({"shape_name": "gpt"}, {"streams": 0}, {"step_ms": -1.0}, {"most_loss": 1.0}, {"chunk_tokens": 0}):
        with pytest.raises(InvalidInput):
            _load(**wrong)
    with pytest.raises(InvalidInput, match="--model-shape"):
        make_load(table_name="mine", compute_flops=1e15)


def test_prompts_take_their_part_of_the_disk() -> None:
    load = _load(prefill_tokens_per_s=1000.0, chunk_tokens=512)
    verdict = _judged(Placement.NVME_PACKED, load)
    limits = {each.name: each for each in verdict.limits}
    assert limits["disk reads"].needed == pytest.approx(1020.0)
    chunk = limits["time of a prompt's chunk"]
    assert (chunk.available, chunk.holds) == (pytest.approx(512_000.0), True)
    assert chunk.needed > 512 * 48 / 100_000 * 1e6


@settings(deadline=None)
@given_values(st.sampled_from(list(Placement)), st.floats(0.1, 1e5), st.integers(1, 64), st.floats(0, 1))
def test_a_plan_is_json_and_its_verdict_follows_from_its_limits(
    placement: Placement, tokens_per_s: float, streams: int, hit_ratio: float
) -> None:
    setting = Setting(
        table=V41, machine=_machine(dram_bytes=3e11, disk_bytes=1e12, gpu_memory_bytes=1e10),
        curve=constant_curve(given(hit_ratio, "-")), bundle_reads=given(20.0, "-"),
    )  # fmt: skip
    plan = make_plan(setting, _load(tokens_per_s=tokens_per_s, streams=streams), placements=[placement])
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    (found,) = plan["placements"]
    holds = [limit["holds"] for limit in found["limits"]]
    expected = "unknown" if None in holds else "fine"
    if False in holds:
        spaces = [limit["holds"] for limit in found["limits"] if limit["unit"] == "bytes"]
        expected = "too-small" if False in spaces else "slower"
    assert found["status"] == expected
    assert (plan["best"] == str(placement)) == (expected == "fine")
    assert bool(found["relief"]) == (False in holds)


# Allocation


def test_budgets_of_the_paper_buy_the_papers_tables() -> None:
    (exact,) = allocate(Budget(table_parameters=5_792_338_560), TableShape())["tables"]
    assert (exact["n_rows"], exact["rows_per_table"]) == (72_404_232, [36_199_972, 36_204_260])
    (v41,) = allocate(
        Budget(), TableShape(orders=(2, 3, 4), row_width=256), codecs=["fp8-e4m3-e8m0"], rows_per_head=16_000_000
    )["tables"]
    assert v41["rows_per_table"] == [384_006_168, 384_016_682]
    assert v41["codecs"][0]["table_bytes"] == 202_758_032_400
    assert v41["slots_against_sweep"] == "beyond"
    low, high = allocate(Budget(total_parameters=26_700_000_000, active_parameters=3_800_000_000), TableShape())[
        "tables"
    ]
    assert (low["budget_parameters"], high["budget_parameters"]) == (4_580_000_000, 5_725_000_000)
    assert high["slots_against_sweep"] == "inside"


@settings(deadline=None)
@given_values(st.integers(10_000, 10**9), st.integers(1, 4), st.integers(1, 3), st.sampled_from([8, 80, 256]))
def test_a_budget_is_never_passed_and_nearly_spent(parameters: int, heads: int, layers: int, width: int) -> None:
    shape = TableShape(heads=heads, n_layers=layers, row_width=width)
    try:
        (table,) = allocate(Budget(table_parameters=parameters), shape, codecs=())["tables"]
    except InvalidInput:
        assert parameters < 200 * shape.n_columns * width
        return
    assert table["parameters"] == table["n_rows"] * width <= parameters
    # Primes of so many heads lie within a few hundred of each other.
    assert parameters - table["parameters"] < 1000 * shape.n_columns * width


def test_budgets_that_say_too_little_or_too_much_are_refused() -> None:
    for budget in (
        Budget(), Budget(total_parameters=5), Budget(total_parameters=5, active_parameters=5),
        Budget(table_parameters=0), Budget(table_parameters=100),
        Budget(total_parameters=10**9, active_parameters=0, shares=(1.5,)),
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            allocate(budget, TableShape())


def test_layouts_and_codecs_stand_for_what_the_library_has() -> None:
    """The planar placement is the layout `split`, which some codecs do not have."""
    assert len(get_layout("split", get_codec("fp8-e4m3-e8m0"), 256).parts) == 2


def test_a_given_rate_over_a_measured_disk_makes_nothing_slower() -> None:
    records = [read_record(ROOT / "docs/measurements/bench-offload.json")]
    measured = make_machine(records=records).disk
    faster = make_machine(records=records, disk_reads_per_s=given(5_000_000.0, "--disk-reads-per-s")).disk
    assert measured is not None
    assert faster is not None
    assert faster.serial_us(48) == measured.serial_us(48)
    assert faster.burst_us(48) <= measured.burst_us(48)
    assert faster.rate(4096) > measured.rate(4096)
