"""What the rounds of an overlap measurement say: throughput, losses, exposed waits; and the lines that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engram_tables.measure.overlap_rounds import Rounds
from engram_tables.measure.overlap_ways import NO_TABLE, RESIDENT, Way
from engram_tables.measure.workload import Step, StepKind, Workload

COLUMNS = ("rows", "blocks", "tokens/s", "lost", "vs no table", "wait µs", "prefill µs", "decode ms")


def judge(
    ways: Sequence[Way], runs: Mapping[str, Rounds], workload: Workload, steps: Sequence[Step]
) -> list[dict[str, Any]]:
    """An entry for every way of one load, those that were waived included.

    A round's rates are those of the whole workload, from the steps that were run: its answers' tokens over the time of
    all steps. Losses are medians over the rounds, each against the other way's round beside it.
    """
    n_answer_tokens = int(workload.answer_lengths.sum())
    rates = {
        name: [n_answer_tokens * 1e9 / workload.whole_ns(steps, elapsed) for elapsed in run.elapsed_ns]
        for name, run in runs.items()
    }
    return [
        {"way": way.name, "engine": way.engine, "status": "waived", "reason": way.reason}
        if way.reason is not None
        else _entry(way, runs[way.name], rates, steps)
        for way in ways
    ]


def _entry(way: Way, run: Rounds, rates: Mapping[str, list[float]], steps: Sequence[Step]) -> dict[str, Any]:
    own = rates[way.name]
    n_rounds = len(own)
    prefilled = sum(n_tokens for kind, n_tokens in steps if kind is StepKind.PREFILL)
    decoded = sum(kind is StepKind.DECODE for kind, _ in steps)
    medians = {kind: float(np.median([sample.get(kind, 0) for sample in run.elapsed_ns])) for kind in StepKind}
    slack = None if way.reader is None else run.meter.summary()
    return {
        "way": way.name,
        "engine": way.engine,
        "depth": way.depth,
        "status": "measured",
        "tokens_per_s": float(np.median(own)),
        "tokens_per_s_mad": float(np.median(np.abs(np.array(own) - np.median(own)))),
        "loss_against_resident": _loss(own, rates.get(RESIDENT)) if way.name not in (RESIDENT, NO_TABLE) else None,
        "loss_against_no_table": _loss(own, rates.get(NO_TABLE)) if way.name != NO_TABLE else None,
        "prefill_us_per_token": medians[StepKind.PREFILL] / prefilled / 1e3 if prefilled else None,
        "decode_us_per_step": medians[StepKind.DECODE] / decoded / 1e3 if decoded else None,
        "exposed_us_per_step": None if slack is None else slack["exposed_ns"] / n_rounds / len(steps) / 1e3,
        "exposed_share": None
        if slack is None
        else slack["exposed_ns"] / sum(sum(sample.values()) for sample in run.elapsed_ns),
        "slack": slack,
        "cpu_s_per_round": sum(run.cpu_ns) / n_rounds / 1e9,
        "resident_bytes_before": run.resident_bytes or None,
        "samples": [{str(kind): elapsed for kind, elapsed in sample.items()} for sample in run.elapsed_ns],
        "tokens_per_s_samples": own,
    }


def _loss(own: Sequence[float], other: Sequence[float] | None) -> dict[str, float] | None:
    """The share of throughput that is lost, with its spread; negative where it is gained."""
    if other is None:
        return None
    losses = 1 - np.array(own) / np.array(other)
    middle = float(np.median(losses))
    return {
        "median": middle,
        "mad": float(np.median(np.abs(losses - middle))),
        "min": float(losses.min()),
        "max": float(losses.max()),
    }


def summary_lines(record: Mapping[str, Any]) -> list[str]:
    """What stands beside the table; nothing where nothing was measured."""
    if record["status"] == "waived":
        return []
    model, work, rows = record["model"], record["workload"], record["rows"]
    scaled = f", widths divided by {model['width_divisor']}: NOT the model's own size" if model["is_scaled"] else ""
    lines = [
        f"{model['name']} on {record['side']['name']} ({record['side']['dtype']}{scaled})",
        f"{model['flop_per_token'] / 1e9:.3f} GFLOP a token in all {model['blocks']} blocks; left out: "
        f"{model['left_out'].split(',')[0]} and more",
        f"{work['sequences']} sequences, prompts and answers of {work['shortest_tokens']} to {work['longest_tokens']} "
        f"tokens; {len(work['sampled_steps'])} steps a round",
        f"{rows['n_bytes']:,} bytes of rows, {rows['bytes_per_token']:,} bytes a token ({rows['codec']})",
        "lost: throughput, against the resident table; wait and decode: of a step; prefill: of a token",
    ]
    if not record["trace"]["is_real_text"]:
        lines.append("uniform random rows: a bound, not real text")
    if record["status"] == "mismatch":
        wrong = ", ".join(mismatch["way"] for mismatch in record["mismatches"])
        return [*lines, f"mismatch: {record['reason']}: {wrong}"]
    waived = {way["way"]: way["reason"] for way in record["loads"][0]["ways"] if way["status"] == "waived"}
    return [*lines, *(f"{name}: waived: {reason}" for name, reason in waived.items())]


def table_rows(record: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """All loads' ways as `COLUMNS` and rows of text, the lightest load first; waived ways are in `summary_lines`."""
    return COLUMNS, [
        (
            way["way"],
            str(load["blocks"]),
            f"{way['tokens_per_s']:,.0f}",
            _percent(way["loss_against_resident"]),
            _percent(way["loss_against_no_table"]),
            _number(way["exposed_us_per_step"], 0),
            _number(way["prefill_us_per_token"], 2),
            _number(None if way["decode_us_per_step"] is None else way["decode_us_per_step"] / 1e3, 2),
        )
        for load in sorted(record["loads"], key=lambda load: load["blocks"])
        for way in load["ways"]
        if way["status"] == "measured"
    ]


def _percent(loss: Mapping[str, float] | None) -> str:
    return "" if loss is None else f"{loss['median']:+.1%} ±{loss['mad']:.1%}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
