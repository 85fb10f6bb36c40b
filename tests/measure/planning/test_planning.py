"""What placements take, and the verdicts on them, from figures that are easy to reckon with."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given as given_values
from hypothesis import settings
from hypothesis import strategies as st
from planning_cases import CURVE, DISK, V41, machine_with, simulated

from engram_tables.errors import InvalidInput
from engram_tables.measure.planning.disk import Burst
from engram_tables.measure.planning.figures import Figure, Origin, given
from engram_tables.measure.planning.hit_curve import Answered, HitCurve, constant_curve, curve_of_record
from engram_tables.measure.planning.load import Load, make_load
from engram_tables.measure.planning.placements import Placement, Setting, place
from engram_tables.measure.planning.plan import make_plan
from engram_tables.measure.planning.sizes import sizes_of_preset
from engram_tables.measure.planning.verdict import Status, exposed_us, judge

# Placements


def test_times_are_what_their_formulas_say() -> None:
    machine = machine_with()
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
    setting = Setting(table=V41, machine=machine_with(disk=planned))
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
        found = simulated(bundles={"points": [{"budget_bytes": 0, "reads_a_token": 48.0},
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
                table=V41, machine=machine_with(), curve=curve, cache_bytes=cache_bytes, bundle_bytes=1000,
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
    setting = Setting(table=V41, machine=machine_with(), bundle_reads=given(20.0, "-"))
    placed = place(setting, placement)
    # Several threads begin at 8,192 rows, and may be quicker than one below.
    if placed.rows_us(1) and setting.machine.rate("copy_scaling") == 1.0:
        assert placed.fetch_us(n_tokens + more) >= placed.fetch_us(n_tokens) - 1e-6
    assert placed.fetch_us(1) <= placed.serial_us() or placement is Placement.DRAM


def test_what_cannot_be_said_is_not_said() -> None:
    with pytest.raises(InvalidInput, match="disk: found no figures"):
        place(Setting(table=V41, machine=machine_with(disk=None)), Placement.NVME_PACKED)
    with pytest.raises(InvalidInput, match="bundles: found no figure"):
        place(Setting(table=V41, machine=machine_with()), Placement.NVME_BUNDLED)
    with pytest.raises(InvalidInput, match="6 to 48"):
        place(Setting(table=V41, machine=machine_with(), bundle_reads=given(5.0, "-")), Placement.NVME_BUNDLED)
    # Rows of one piece cannot lie in two.
    table = sizes_of_preset("qwen3.8-flash-next")
    plan = make_plan(Setting(table=table, machine=machine_with()), Load(tokens_per_s=1.0))
    planar = next(each for each in plan["placements"] if each["placement"] == "nvme-planar")
    assert planar["status"] == "unknown"
    assert "one piece" in planar["summary"]


# Verdicts


def _judged(placement: Placement, load: Load, **setting: Any) -> Any:
    machine = setting.pop("machine", None) or machine_with(dram_bytes=1e12, disk_bytes=1e12)
    return judge(place(Setting(table=V41, machine=machine, **setting), placement), load)


def _load(**changes: Any) -> Load:
    return make_load(table_name=V41.name, **{"tokens_per_s": 20.0, **changes})


def test_you_are_fine_and_what_is_nearest() -> None:
    verdict = _judged(Placement.DRAM, _load())
    assert verdict.status is Status.FINE
    assert verdict.summary.startswith("you are fine; nearest is host memory, 20%")
    assert verdict.relief == ()


def test_a_table_that_does_not_fit_has_no_other_verdict() -> None:
    verdict = _judged(Placement.DRAM, _load(tokens_per_s=1e9), machine=machine_with(dram_bytes=64e9))
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
    placed = place(Setting(table=V41, machine=machine_with(disk_bytes=1e12)), Placement.NVME_PACKED)
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
        table=V41, machine=machine_with(dram_bytes=3e11, disk_bytes=1e12, gpu_memory_bytes=1e10),
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
