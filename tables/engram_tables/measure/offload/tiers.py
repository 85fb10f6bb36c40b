"""What memory in front of an engine brings: hits, rates, latencies and bytes held, beside the same engine without it.

The first half of the trace fills the memory where no hot list does, and the second half is measured, so that a hit is
not of the very text that the memory was filled with. All ways take turns on batches of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from engram_tables.errors import BackendUnavailable, CapacityError
from engram_tables.fetch.engines.auto import READ_ORDER
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.ladder import first_usable
from engram_tables.fetch.engines.reading import ReadEngine
from engram_tables.fetch.gpu.device import Device
from engram_tables.fetch.gpu.device_reader import Shape
from engram_tables.fetch.table import AUTO
from engram_tables.fetch.tiers.hot_list import HotList
from engram_tables.measure.offload.fronts import (
    Front,
    Level,
    device_cache,
    device_engine,
    device_tiers,
    host_engine,
    host_tiers,
    tier_name,
)
from engram_tables.measure.offload.host import Bench, settler, warm_ups_of
from engram_tables.measure.offload.lookups import Lookups, expected_records, is_whole
from engram_tables.measure.offload.plan import FILL_TOKENS, Section, Source, State
from engram_tables.measure.offload.points import hold_against, make_point
from engram_tables.measure.offload.rounds import Case, mismatch, take_turns, touched_buffers, warm_up

_FILL_BATCH_TOKENS = 512
_COUNTED = ("hits", "misses", "stored", "thrown_out", "left_out")


class _Ways(NamedTuple):
    """The engine alone, then each memory in front of it, and the memories that could not be had."""

    alone: Front
    fronts: list[Front]
    left_out: list[dict[str, Any]]

    @property
    def all(self) -> list[Front]:
        return [self.alone, *self.fronts]


def measure_tiers(
    bench: Bench, section: Section, *, hot: HotList | None = None, device: Device | None = None
) -> dict[str, Any]:
    """Every memory of the plan in front of the section's engine, as a record has it.

    The engine is the pinned one, or `auto`, `gather`, or the first that reads the device, by the section's source.
    """
    if device is not None and not is_whole(bench.table):
        reason = f"{bench.table.path}: found a part of the rows, expected all: a device's paths take whole tokens"
        return {"status": "waived", "reason": reason}
    first, second = next(iter(bench.lookups.values())).halves()
    with ExitStack() as stack:
        try:
            engine = _engine_behind(bench, section)
            ways = _make_ways(bench, engine, hot, device, stack)
        except (BackendUnavailable, CapacityError) as error:
            return {"status": "waived", "reason": str(error)}
        fill = _fill(bench, section, ways, first, hot)
        is_as_is = section.state is State.AS_IS
        sound = ways if is_as_is else _sound(bench, section, ways, first)
        points = _measure(bench, section, sound, second, engine)
        if is_as_is:
            # Comparing reads, so it comes last.
            told = {each.tier for each in _sound(bench, section, ways, first).all}
            points = [point for point in points if point["tier"] in told]
    return {"status": "measured", "behind": engine, "fill": fill, "left_out": sound.left_out, "points": points}


def _engine_behind(bench: Bench, section: Section) -> str:
    table, wanted = bench.table, bench.plan.engine
    if wanted is None and section.source is not Source.NVME:
        return AUTO if section.source is Source.AUTO else GatherEngine.name
    *_, last = first_usable(table.stored, table.engine, READ_ORDER if wanted is None else (wanted,))
    if not last.is_usable:
        raise BackendUnavailable(f"engine {last.engine}: {last.reason}")
    return last.engine


def _make_ways(bench: Bench, engine: str, hot: HotList | None, device: Device | None, stack: ExitStack) -> _Ways:
    table, plan = bench.table, bench.plan
    threads = plan.read_threads if isinstance(table.engine(engine), ReadEngine) else plan.threads
    shape = Shape(n_slots=2, max_tokens=max(*bench.batches, _FILL_BATCH_TOKENS))
    makers: list[tuple[str, Callable[[], Front]]] = []
    for tiers in plan.tiers:
        make: Callable[[], Front]
        if device is None:
            make = partial(host_tiers, table, engine, tiers, hot, threads, stack)
        else:
            make = partial(device_tiers, table, engine, tiers, hot, device, shape, stack)
        makers.append((tier_name(tiers), make))
    if device is None:
        alone = host_engine(table, engine, threads)
    else:
        alone = device_engine(table, engine, device, shape, stack)
        for budget_bytes in plan.gpu_caches:
            cache = partial(device_cache, table, engine, budget_bytes, hot, device, shape, stack)
            makers.append((f"GPU {budget_bytes:,} bytes", cache))
    ways = _Ways(alone, [], [])
    for name, make in makers:
        try:
            ways.fronts.append(make())
        except (BackendUnavailable, CapacityError) as error:
            ways.left_out.append({"tier": name, "rows_per_batch": None, "reason": str(error)})
    return ways


def _fill(bench: Bench, section: Section, ways: _Ways, lookups: Lookups, hot: HotList | None) -> dict[str, Any]:
    """Ask every memory for the last tokens of `lookups`, in order, and say what it holds now."""
    wanted = bench.plan.fill_tokens
    if wanted is None:
        # What was found in memory would not be as it was found.
        wanted = 0 if hot is not None or section.state is State.AS_IS else FILL_TOKENS
    n_tokens = min(wanted, lookups.n_tokens)
    starts = range(lookups.n_tokens - n_tokens, lookups.n_tokens, _FILL_BATCH_TOKENS)
    out = np.empty((lookups.n_rows(min(_FILL_BATCH_TOKENS, lookups.n_tokens)), bench.table.row_bytes), np.uint8)
    start_ns, n_rows = time.perf_counter_ns(), 0
    for front in ways.fronts:
        n_rows = 0
        for start in starts:
            asked = lookups.at(start, min(_FILL_BATCH_TOKENS, lookups.n_tokens - start))
            front.fetch(asked, out[: asked.n_rows])
            n_rows += asked.n_rows
    return {
        "hot_list_rows": 0 if hot is None else len(hot),
        "tokens": n_tokens,
        "batches": len(starts),
        "rows": n_rows,
        "elapsed_ns": time.perf_counter_ns() - start_ns,
        "note": "the tokens are the last of the trace's first half; batches are drawn from its second half",
    }


def _sound(bench: Bench, section: Section, ways: _Ways, lookups: Lookups) -> _Ways:
    """Without the ways whose bytes differ from the slow reading's, when rows are missing and when they are there."""
    n_tokens = max(bench.batches)
    asked = lookups.draw(n_tokens, lookups.rng())
    expected = expected_records(bench.table, asked)
    fronts = []
    for front in ways.all:
        wrong = None
        for _ in range(2):
            wrong = wrong or mismatch(front.read(asked), expected)
        if wrong is None:
            fronts.append(front)
        else:
            name = front.engine if front.tier is None else f"{front.engine}, tier {front.tier}"
            bench.mismatches.append(
                {"section": str(section), "engine": name, "n_records": wrong[0], "first_position": wrong[1]}
            )
    # Without an engine to compare with, nothing is timed.
    kept = fronts[1:] if fronts and fronts[0] is ways.alone else []
    return _Ways(ways.alone, kept, ways.left_out)


def _measure(bench: Bench, section: Section, ways: _Ways, lookups: Lookups, engine: str) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    asked_before = {front.tier: _asked(front.levels()) for front in ways.fronts}
    us_per_row = 0.0
    for n_tokens in bench.batches if ways.fronts else ():
        expected_s = us_per_row * lookups.n_rows(n_tokens) / 1e6
        if expected_s > bench.plan.batch_seconds:
            reason = f"a batch would take about {expected_s:.0f} s, more than --batch-seconds"
            n_rows = lookups.n_rows(n_tokens)
            ways.left_out.append({"tier": None, "rows_per_batch": n_rows, "reason": reason})
            continue
        # A device's paths take one batch after the other.
        for n_streams in bench.plan.streams if bench.plan.to == "host" else (1,):
            found = _measure_shape(bench, section, ways, lookups, engine, n_tokens, n_streams)
            for point in found[1:]:
                _say_how_new(point, lookups, asked_before[point["tier"]])
            us_per_row = found[0]["us_per_row"] if n_streams == 1 else us_per_row
            points += found
        bench.advance()
    return points


def _measure_shape(
    bench: Bench, section: Section, ways: _Ways, lookups: Lookups, engine: str, n_tokens: int, n_streams: int
) -> list[dict[str, Any]]:
    """Points of one batch length: the engine alone first."""
    n_rows, trace = lookups.n_rows(n_tokens), next(iter(bench.lookups))
    outs = touched_buffers(n_streams, n_rows, bench.table.row_bytes)
    cold = bench.files if section.state is State.COLD else None
    cases = [
        Case(
            bench.path, lookups, front.fetch, outs, n_tokens=n_tokens, turn=turn, cold_files=cold,
            settle=settler(bench.table, engine),
        )
        for turn, front in enumerate(ways.all)
    ]  # fmt: skip
    warm_up(cases, warm_ups_of(section.state))
    before = [front.levels() for front in ways.all]
    take_turns(cases, repeats=bench.plan.repeats, seconds=bench.plan.seconds, warm_ups=0)
    points: list[dict[str, Any]] = []
    for front, case, levels in zip(ways.all, cases, before, strict=True):
        point = make_point(
            case, section=section, engine=front.engine, threads=None, trace=trace, row_bytes=bench.table.row_bytes,
            n_rows=n_rows,
        )  # fmt: skip
        if front.tier is None:
            hold_against(point, case, bench.ceilings, section=section, file_bytes=bench.file_bytes)
        else:
            # What it does not read from the device it copies from memory: neither ceiling is its own.
            point["ceiling"], point["share_of_ceiling"] = None, None
        point["rows_per_s_over_alone"] = point["rows_per_s"] / (points or [point])[0]["rows_per_s"]
        points.append(point | {"tier": front.tier} | _hits(levels, front.levels()))
    return points


def _hits(before: list[Level], after: list[Level]) -> dict[str, Any]:
    """What the tiers did between two snapshots, and what they hold."""
    if not after:
        return {"hit_ratio": None, "held_bytes": 0, "rows_held": 0, "rows_asked_before": None, "levels": []}
    levels = [
        level | {key: level[key] - earlier[key] for key in _COUNTED}
        for earlier, level in zip(before, after, strict=True)
    ]
    n_asked = levels[0]["hits"] + levels[0]["misses"]
    return {
        "hit_ratio": (n_asked - levels[-1]["misses"]) / n_asked if n_asked else None,
        "held_bytes": sum(level["held_bytes"] for level in levels),
        "rows_held": sum(level["rows_held"] for level in levels),
        "rows_asked_before": _asked(before),
        "levels": levels,
    }


def _asked(levels: list[Level]) -> int:
    return int(levels[0]["hits"] + levels[0]["misses"])


def _say_how_new(point: dict[str, Any], lookups: Lookups, asked_first: int) -> None:
    """How often the measured text has passed through the memory: from the second time on it is no news."""
    n_asked = point["rows_asked_before"] - asked_first + sum(point["levels"][0][key] for key in ("hits", "misses"))
    point["passes_over_trace"] = n_asked / (lookups.n_tokens * lookups.rows_per_token)
    if point["passes_over_trace"] > 1:
        point["flags"].append(
            f"{point['source']}, {point['state']}, tier {point['tier']}, {point['rows_per_batch']} rows: the measured "
            f"text has been looked up {point['passes_over_trace']:.1f} times over, so hits are of rows seen before; a "
            "longer trace or fewer --seconds show new text"
        )
