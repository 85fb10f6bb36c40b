"""Puts a plan together: sizes, times and a verdict for each placement, as a record `engram.plan/1`.

The arithmetic is in `placements`, what it means in `verdict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engram_tables.errors import InvalidInput
from engram_tables.measure.environment import command_line
from engram_tables.measure.planning.load import Load
from engram_tables.measure.planning.machine import PLAN_SCHEMA
from engram_tables.measure.planning.placements import Placed, Placement, Setting, place
from engram_tables.measure.planning.verdict import Status, exposed_us, first_slack_us, judge, reached_tokens_per_s


def make_plan(setting: Setting, load: Load, *, placements: Sequence[Placement] = tuple(Placement)) -> dict[str, Any]:
    """Judge every placement.

    Parameters
    ----------
    setting
        Table, machine, and what stands in front of a disk.
    load
        What is wanted.
    placements
        Those in question.

    Returns
    -------
    The record. `best` is the first placement in the order given that is fine; None where none is.
    """
    unique = setting.curve.unique_share(load.chunk_tokens) if setting.curve is not None else None
    judged = [_judged(setting, load, placement, 1.0 if unique is None else unique) for placement in placements]
    fine = [each for each in judged if each["status"] == Status.FINE]
    return {
        "schema": PLAN_SCHEMA,
        "command": command_line(),
        "table": setting.table.to_json(),
        "load": load.to_json(),
        "machine": setting.machine.to_json(),
        "to_gpu": setting.to_gpu,
        "cache_bytes": setting.cache_bytes,
        "bundle_bytes": setting.bundle_bytes,
        "bundle_reads": None if setting.bundle_reads is None else setting.bundle_reads.to_json(),
        "hit_curve": None if setting.curve is None else setting.curve.to_json(),
        "chunk_unique_ratio": unique,
        "placements": judged,
        "best": fine[0]["placement"] if fine else None,
    }


def _judged(setting: Setting, load: Load, placement: Placement, unique: float) -> dict[str, Any]:
    try:
        placed = place(setting, placement)
    except InvalidInput as error:
        return {"placement": str(placement), "status": str(Status.UNKNOWN), "summary": str(error)}
    verdict = judge(placed, load, unique=unique)
    limited_by, most = placed.tokens_per_s_at_most()
    return {
        "placement": str(placement),
        "status": str(verdict.status),
        "summary": verdict.summary,
        "relief": list(verdict.relief),
        "binding": None if verdict.binding is None else verdict.binding.name,
        "limits": [limit.to_json() for limit in verdict.limits],
        "needs": dict(placed.needs),
        "layout": placed.cost.layout,
        "pages_per_row": placed.cost.pages,
        "hit_ratio": placed.answered.hit_ratio if placed.disk is not None else None,
        "reads_per_token": placed.reads_per_token,
        "reads_per_token_behind_cache": placed.misses_reads(),
        **_rates(placed, load),
        "serial_ms_per_token": placed.serial_us() / 1e3,
        "batched_ms_per_token": placed.fetch_us(1) / 1e3,
        **_step(placed, load),
        "most_tokens_per_s": most,
        "limited_by": limited_by,
        "prefill_chunk_ms": placed.fetch_us(load.chunk_tokens, unique=unique) / 1e3,
        "slack": _slack(placed, load),
    }


def _rates(placed: Placed, load: Load) -> dict[str, Any]:
    """What the wanted rate asks for, a second."""
    tokens_per_s = (load.tokens_per_s or 0.0) + (load.prefill_tokens_per_s or 0.0)
    if not tokens_per_s:
        return {"rows_per_s": None, "reads_per_s": None}
    return {
        "rows_per_s": tokens_per_s * placed.setting.table.rows_per_token,
        "reads_per_s": tokens_per_s * placed.misses_reads(),
    }


def _step(placed: Placed, load: Load) -> dict[str, Any]:
    """One step of all streams, and the one token in a hundred whose rows the cache holds worst."""
    worst = placed.answered.misses_p99 if placed.disk is not None else None
    exposed, step = exposed_us(placed, load), load.step_us
    loss = None if exposed is None or step is None else exposed / (step.value + exposed)
    return {
        "step_fetch_ms": placed.fetch_us(load.streams) / 1e3,
        "step_fetch_p99_ms": None if worst is None else placed.fetch_us(load.streams, misses_per_token=worst) / 1e3,
        "exposed_ms": None if exposed is None else exposed / 1e3,
        "loss": loss,
        "tokens_per_s": reached_tokens_per_s(placed, load),
    }


def _slack(placed: Placed, load: Load) -> list[dict[str, Any]]:
    layer_ids = placed.setting.table.layer_ids
    if layer_ids is None:
        slack = first_slack_us(placed, load)
        return [{"layer_id": None, "slack_ms": None if slack is None else slack / 1e3}]
    found = []
    for layer_id in layer_ids:
        slack = load.slack_us(layer_id)
        found.append({"layer_id": layer_id, "slack_ms": None if slack is None else slack / 1e3})
    return found
