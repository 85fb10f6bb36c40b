"""What a plan says would help does help, at the figure it names; and figures that are slips are refused in words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, settings
from hypothesis import given as given_values
from hypothesis import strategies as st

from engram_tables.errors import InvalidInput
from engram_tables.measure.planning.allocate import Budget, TableShape, allocate
from engram_tables.measure.planning.disk import Burst, Disk, disk_by_hand
from engram_tables.measure.planning.figures import LEAST_FIGURE, MOST_FIGURE, USUAL, Figure, Origin, given
from engram_tables.measure.planning.hit_curve import constant_curve, curve_of_record
from engram_tables.measure.planning.load import Load, make_load
from engram_tables.measure.planning.machine import make_machine
from engram_tables.measure.planning.placements import Placement, Setting, place
from engram_tables.measure.planning.plan import make_plan
from engram_tables.measure.planning.sizes import sizes_of_preset
from engram_tables.measure.planning.verdict import Limit, Status, judge

V41 = sizes_of_preset("deepseek-v4.1-flash")
SPACES = {
    name: given(1e13, name) for name in ("dram_bytes", "gpu_memory_bytes", "shm_bytes", "cxl_bytes", "disk_bytes")
}


def setting_of(reads_per_s: float, latency_us: float = 100.0, *, hit_ratio: float = 0.0, **rates: float) -> Setting:
    machine = make_machine(
        spaces=SPACES, rates={name: given(value, name) for name, value in rates.items()},
        disk_reads_per_s=given(reads_per_s, "-"), disk_latency_us=given(latency_us, "-"),
    )  # fmt: skip
    return Setting(table=V41, machine=machine, curve=constant_curve(given(hit_ratio, "-")))


def limits_of(setting: Setting, placement: Placement, load: Load) -> dict[str, Limit]:
    return {limit.name: limit for limit in judge(place(setting, placement), load).limits}


def number(pattern: str, relief: tuple[str, ...]) -> float | None:
    found = [re.match(pattern, each) for each in relief]
    return next((float(match[1].replace(",", "")) for match in found if match), None)


@settings(deadline=None)
@given_values(st.floats(1e2, 1e6), st.floats(20, 1e4), st.floats(0.5, 5e3), st.floats(0.1, 200), st.integers(1, 64))
def test_a_disk_is_relieved_by_what_is_said(
    reads_per_s: float, latency_us: float, tokens_per_s: float, step_ms: float, streams: int
) -> None:
    load = make_load(table_name=V41.name, tokens_per_s=tokens_per_s, step_ms=step_ms, streams=streams)
    setting = setting_of(reads_per_s, latency_us)
    verdict = judge(place(setting, Placement.NVME_PACKED), load)
    for limit in verdict.limits:
        if limit.holds is not False:
            continue
        # Of this limit alone, so that it is clear what each sentence is about.
        of_limit = _relief_of(setting, load, limit)
        if (per_cent := number(r"a cache that answers ([\d.]+)%", of_limit)) is not None:
            better = limits_of(
                setting_of(reads_per_s, latency_us, hit_ratio=per_cent / 100), Placement.NVME_PACKED, load
            )
            assert better.get(limit.name, replace(limit, needed=0)).holds
        if (n_disks := number(r"(\d+) such disks", of_limit)) is not None:
            assert limits_of(setting_of(reads_per_s * n_disks * (1 + 1e-9), latency_us), Placement.NVME_PACKED, load)[
                limit.name
            ].holds
        if (less := number(r"bearing with ([\d.]+)% less", of_limit)) is not None:
            bears = replace(load, most_loss=less / 100)
            assert limits_of(setting, Placement.NVME_PACKED, bears)[limit.name].holds
        if (most_ms := number(r"a step of ([\d.,]+) ms at most", of_limit)) is not None:
            quicker = make_load(table_name=V41.name, tokens_per_s=tokens_per_s, step_ms=most_ms, streams=streams)
            assert quicker.step_us is not None
            assert streams * 1e6 / quicker.step_us.value >= tokens_per_s
        assert of_limit or not limit.name.startswith("tokens of all")


def _relief_of(setting: Setting, load: Load, limit: Limit) -> tuple[str, ...]:
    from engram_tables.measure.planning.verdict import _relief

    return tuple(_relief(place(setting, Placement.NVME_PACKED), load, limit, 1.0))


def test_a_step_that_is_too_long_is_said_to_be_so() -> None:
    load = make_load(table_name=V41.name, tokens_per_s=60, step_ms=50)
    for placement in (Placement.DRAM, Placement.GPU, Placement.NVME_PACKED):
        verdict = judge(place(setting_of(1e6), placement), load)
        assert verdict.relief == ("a step of 16.6 ms at most: this one is too long wherever the rows lie",)
        assert "times as much of tokens" not in str(verdict)


@pytest.mark.parametrize("placement", [Placement.DRAM, Placement.PINNED, Placement.SHM])
def test_memory_says_by_what_factor_rows_have_to_come_faster(placement: Placement) -> None:
    load = make_load(table_name=V41.name, prefill_tokens_per_s=3e6)
    failing = [limit for limit in limits_of(setting_of(1e6), placement, load).values() if limit.holds is False]
    relief = judge(place(setting_of(1e6), placement), load).relief
    assert len(failing) == 2
    for limit in failing:
        factor = number(rf"for {limit.name}: rows that come ([\d.,]+) times as fast$", relief)
        assert factor is not None
        assert limit.share is not None
        assert limit.share <= factor <= limit.share * 1.02


def test_of_several_limits_each_relief_names_its_own() -> None:
    load = make_load(table_name=V41.name, tokens_per_s=60, prefill_tokens_per_s=4000, streams=4)
    verdict = judge(place(setting_of(8000.0), Placement.NVME_PACKED), load)
    failing = [limit.name for limit in verdict.limits if limit.holds is False]
    assert len(failing) == 3
    assert len(verdict.relief) > 3
    assert {relief.split(":")[0] for relief in verdict.relief} == {f"for {name}" for name in failing}
    alone = judge(place(setting_of(8000.0), Placement.NVME_PACKED), Load(tokens_per_s=200.0))
    assert [limit.name for limit in alone.limits if limit.holds is False] == ["disk reads"]
    assert alone.relief[0].startswith("a cache that answers")


def test_a_machine_that_is_known_to_have_no_gpu_needs_one() -> None:
    none = Figure(value=0, origin=Origin.MEASURED, where="GPU: found no driver")
    for placement in Placement:
        for to_gpu in (False, True):
            machine = make_machine(spaces={**SPACES, "gpu_memory_bytes": none}, disk_reads_per_s=given(1e6, "-"))
            setting = Setting(table=V41, machine=machine, to_gpu=to_gpu, bundle_reads=given(20.0, "-"))
            verdict = judge(place(setting, placement), Load(tokens_per_s=1.0))
            needs_one = to_gpu or placement in (Placement.GPU, Placement.PINNED)
            assert (verdict.status is Status.NO_GPU) == needs_one
            assert ("found no driver" in verdict.summary) == needs_one


@pytest.mark.parametrize("value", [LEAST_FIGURE, MOST_FIGURE])
@pytest.mark.parametrize("name", [*USUAL, "tokens_per_s", "step_ms", "disk", "latency", "prefill_tokens_per_s"])
def test_a_plan_of_extremes_is_still_json(name: str, value: float) -> None:
    asked: dict[str, Any] = {"tokens_per_s": 60.0, "prefill_tokens_per_s": 100.0}
    rates = {name: value} if name in USUAL else {}
    if name in ("tokens_per_s", "prefill_tokens_per_s"):
        asked[name] = value
    if name == "step_ms":
        asked[name] = max(LEAST_FIGURE, value / 1e3)
    disk = {"disk": (value, 100.0), "latency": (1e5, value)}.get(name, (1e5, 100.0))
    try:
        load = make_load(table_name=V41.name, **asked)
    except InvalidInput as error:
        assert "step time" in str(error)  # noqa: PT017
        return
    for to_gpu in (False, True):
        plan = make_plan(replace(setting_of(*disk, **rates), to_gpu=to_gpu), load)
        assert json.loads(json.dumps(plan, allow_nan=False)) == plan


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0, -1.0, 1e300, 1e-300])
def test_slips_are_refused(value: float) -> None:
    for name in USUAL:
        with pytest.raises(InvalidInput, match="expected"):
            setting_of(1e5, **{name: value})
    for figures in ((value, 100.0), (1e5, value)):
        with pytest.raises(InvalidInput, match="expected"):
            setting_of(*figures)
    for name in ("tokens_per_s", "step_ms", "prefill_tokens_per_s", "compute_flops"):
        with pytest.raises(InvalidInput, match="expected"):
            make_load(table_name=V41.name, **{name: value})
    for bursts in ((Burst(1, value),), (Burst(1, 10.0), Burst(2, 9.0)), (Burst(1, 1.0), Burst(1, 1.0))):
        with pytest.raises(InvalidInput, match="expected"):
            Disk(bursts=bursts, reads_per_s=given(1.0, "-"), serial_read_us=given(1.0, "-"),
                 sequential_bytes_per_s=None, origin=Origin.MEASURED, where="-")  # fmt: skip


def test_a_latency_that_nobody_gave_is_not_said_to_be_given() -> None:
    machine = make_machine(disk_reads_per_s=given(1e5, "--disk-reads-per-s"))
    assert machine.disk is not None
    assert machine.disk.origin is Origin.ASSUMED
    by_hand = disk_by_hand(reads_per_s=given(1e5, "a"), latency_us=given(10.0, "b"))
    assert by_hand.origin is Origin.GIVEN


@settings(deadline=None)
@given_values(
    st.sampled_from(list(Placement)[:-1]), st.integers(1, 300), st.floats(1, 10), st.floats(0.01, 1),
    st.sampled_from(["disk", "latency", *USUAL]),
)  # fmt: skip
def test_a_better_machine_is_never_slower(
    placement: Placement, n_tokens: int, factor: float, hit_ratio: float, what: str
) -> None:
    better_when_less = what in ("latency", "next_line_ns", "dependent_load_ns", "call_us", "gpu_call_us") or (
        what.endswith("slowdown")
    )
    before = {"disk": 1e5, "latency": 100.0}.get(what) or USUAL[what].value
    after = before / factor if better_when_less else before * factor
    assume(what != "copy_scaling" or after >= 1)

    def placed(value: float, hits: float) -> Any:
        rates = {what: value} if what in USUAL else {}
        disk = value if what == "disk" else 1e5
        return place(setting_of(disk, value if what == "latency" else 100.0, hit_ratio=hits, **rates), placement)

    worse, better, cached = placed(before, 0.0), placed(after, 0.0), placed(before, hit_ratio)
    for other in (better, cached):
        assert other.fetch_us(n_tokens) <= worse.fetch_us(n_tokens) * (1 + 1e-12)
        assert other.serial_us() <= worse.serial_us() * (1 + 1e-12)
    assert better.tokens_per_s_at_most()[1] >= worse.tokens_per_s_at_most()[1] * (1 - 1e-12)


def _record(**changes: Any) -> dict[str, Any]:
    points = [{"cache_bytes": 1000 * k, "hit_ratio": ratio, "misses_a_token_p99": 40.0}
              for k, ratio in ((1, 0.5), (2, 0.4), (3, 0.6))]  # fmt: skip
    curve = {"policy": "tiered", "unit": "row", "n_streams": 1, "tokens_a_step": 1, "is_prefill": False,
             "state": "steady", "points": points}  # fmt: skip
    return {"schema": "engram.simulate/1", "spec": "another", "fingerprint": "f", "row_bytes": 264,
            "rows_per_token": 48, "curves": [curve], **changes}  # fmt: skip


def test_curves_of_another_table_are_refused_where_only_sizes_are_known() -> None:
    curve_of_record("r", _record(), n_streams=1, row_bytes=264, rows_per_token=48)
    with pytest.raises(InvalidInput, match="row_bytes 264, expected 512"):
        curve_of_record("r", _record(), n_streams=1, row_bytes=512, rows_per_token=48)
    with pytest.raises(InvalidInput, match="rows_per_token 48, expected 16"):
        curve_of_record("r", _record(), n_streams=1, row_bytes=264, rows_per_token=16)
    with pytest.raises(InvalidInput, match="the table another, expected"):
        curve_of_record("r", _record(), n_streams=1, fingerprint="g")


def test_more_cache_answers_no_less() -> None:
    curve = curve_of_record("r", _record(), n_streams=1)
    assert [curve.at(n).hit_ratio for n in (1000, 2000, 3000)] == [0.5, 0.5, 0.6]


@pytest.mark.parametrize(
    "damage",
    [
        {"hit_ratio": 1.5}, {"hit_ratio": float("nan")}, {"hit_ratio": "x"}, {"cache_bytes": -5}, {"cache_bytes": "x"},
        {"misses_a_token_p99": float("inf")}, {"cache_bytes": float("inf")},
    ],
)  # fmt: skip
def test_records_that_no_simulation_wrote_are_refused(damage: dict[str, Any]) -> None:
    record = _record()
    record["curves"][0]["points"][0] |= damage
    with pytest.raises(InvalidInput, match="r: found"):
        curve_of_record("r", record, n_streams=1)


def test_allocations_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(InvalidInput, match="total - active"):
        allocate(Budget(table_parameters=10**9, total_parameters=10**9, active_parameters=10**8), TableShape())
    for orders in ((2, 2), (3, 2), ()):
        with pytest.raises(InvalidInput, match="ascend"):
            allocate(Budget(table_parameters=10**9), TableShape(orders=orders))
