"""`engram.simulate/1` as charts: hit ratios by size, misses of a token, distinct rows, reads with bundles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from engram_tables.measure.report.charts import Axis, Charts, Point, Series, points_of
from engram_tables.measure.report.elements import Child, listed, side_by_side, table, tag
from engram_tables.measure.report.figures import (
    number,
    number_or_none,
    percent,
    short,
    size,
    tick_percent,
    whole,
    words,
)
from engram_tables.measure.report.reading import Entry

_RUN_KEYS = ("unit", "layout", "n_streams", "tokens_a_step", "is_prefill")
_COMPARED = ("tiered", "lru-16", "s3-fifo", "lru", "static")
"""Policies in the order in which one is taken to compare records: the library's own cache first."""
_LOOKS = {"lru": 0, "lru-16": 1, "static": 2, "tiered": 3, "s3-fifo": 4, "belady": 5}
"""Every policy looks the same in all charts."""
_VERDICTS = {
    "representative": "repeats itself as code and prose do",
    "too-repetitive": "repeats itself more than code and prose do: its hit ratios flatter",
    "too-varied": "repeats itself less than code and prose do: its hit ratios are too low",
    "too-short": "is too short to tell whether it repeats itself as text does",
}


def draw(entries: Sequence[Entry], charts: Charts) -> list[Child]:
    """The section's content."""
    compared = _comparison(entries, charts) if len(entries) > 1 else []
    ways = dict.fromkeys(_key(run) for entry in entries for run in entry.record["runs"])
    # What is alike stands together: every record's curves of one way of fetching, then those of the next.
    curves = [
        _curves(entry, key, state, entries, charts) for key in ways for state in ("cold", "steady") for entry in entries
    ]
    others = [_misses(entries, charts), _unique(entries, charts), _bundles(entries, charts)]
    return [
        listed(_headline(entry) for entry in entries),
        side_by_side(compared),
        tag("h3", "Hit ratio by size of the cache") if any(chart is not None for chart in curves) else None,
        side_by_side(curves),
        tag("h3", "What a token still reads") if any(other is not None for other in others) else None,
        side_by_side(others),
        *_left_out(entries),
    ]


def _headline(entry: Entry) -> Element:
    record = entry.record
    corpus, verdict = record["corpus"], record["representative"]["verdict"]
    of = f" of {words(corpus['paths'])}" if corpus["paths"] else ""
    return tag(
        "span", tag("strong", entry.name),
        f": {words(record['spec'])}, rows of {size(record['row_bytes'])}, {whole(record['rows_per_token'])} a token; "
        f"{whole(corpus['n_tokens'])} tokens{of}, a text that "
        f"{_VERDICTS.get(verdict, words(verdict))}",
    )  # fmt: skip


def _sizes(entries: Sequence[Entry]) -> Axis:
    """One axis for all: charts that stand side by side are read against each other."""
    values = sorted(
        {number(p["cache_bytes"]) for entry in entries for curve in entry.record["curves"] for p in curve["points"]}
    )
    within = (values[0] / 1.1, values[-1] * 1.1) if values else None
    return Axis(label="bytes of cache", spell=size, is_log=True, values=values, within=within)


def _ratio_axis() -> Axis:
    return Axis(
        label="hit ratio", spell=tick_percent, exactly=percent, within=(0.0, 1.0), values=(0, 0.2, 0.4, 0.6, 0.8, 1)
    )


def _curves(entry: Entry, key: tuple[Any, ...], state: str, entries: Sequence[Entry], charts: Charts) -> Element | None:
    """A record's curves of one way of fetching in one state."""
    held = [curve for curve in entry.record["curves"] if curve["state"] == state and _key(curve) == key]
    series = [
        Series(
            name=words(curve["policy"]), points=_points(curve), is_bound=curve["policy"] == "belady",
            look=_LOOKS.get(words(curve["policy"]), 6),
        )
        for curve in held
    ]  # fmt: skip
    title = f"{entry.name}: {_way(dict(zip(_RUN_KEYS, key, strict=True)))}, {state}"
    return charts.lines(title, series, x=_sizes(entries), y=_ratio_axis(), note=_note(held, state))


def _key(of: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(of[key] for key in _RUN_KEYS)


def _way(run: Mapping[str, Any]) -> str:
    unit = f"{run['unit']}s" + (f" ({words(run['layout'])})" if run["layout"] is not None else "")
    step = f"{whole(run['tokens_a_step'])} token{'s' if run['tokens_a_step'] != 1 else ''}"
    streams = f"{whole(run['n_streams'])} stream{'s' if run['n_streams'] != 1 else ''}"
    return f"{unit}, {streams}, {'chunks' if run['is_prefill'] else 'steps'} of {step}"


def _points(curve: Mapping[str, Any]) -> list[Point]:
    found = []
    for point in curve["points"]:
        ratio, error = number_or_none(point["hit_ratio"]), number_or_none(point["error"])
        if ratio is None:
            continue
        around = (None, None) if error is None else (max(ratio - error, 0.0), min(ratio + error, 1.0))
        found.append(Point(x=number(point["cache_bytes"]), y=ratio, low=around[0], high=around[1]))
    return found


def _note(curves: Sequence[Mapping[str, Any]], state: str) -> str:
    told = []
    if any(curve["policy"] == "belady" for curve in curves):
        told.append("belady is the bound of every policy that begins empty.")
    if state == "steady":
        unfilled = sorted({number(p["cache_bytes"]) for c in curves for p in c["points"] if p["is_full"] is False})
        if unfilled:
            told.append(f"From {size(unfilled[0])} on a cache was not full; a longer text may raise it.")
    return " ".join(told)


def _comparison(entries: Sequence[Entry], charts: Charts) -> list[Element | None]:
    """One policy of every record in one chart, for each way of fetching that several records have."""
    found = []
    for key in _shared_ways(entries):
        per_entry = [[c for c in e.record["curves"] if c["state"] == "steady" and _key(c) == key] for e in entries]
        per_entry = [curves for curves in per_entry if curves]
        policy = next((p for p in _COMPARED if all(any(c["policy"] == p for c in cs) for cs in per_entry)), None)
        if policy is None:
            continue
        series = [
            Series(name=entry.name, points=_points(curve))
            for entry in entries
            for curve in entry.record["curves"]
            if curve["state"] == "steady" and _key(curve) == key and curve["policy"] == policy
        ]
        title = f"All records: {policy}, {_way(dict(zip(_RUN_KEYS, key, strict=True)))}, steady"
        found.append(charts.lines(title, series, x=_sizes(entries), y=_ratio_axis()))
    return found


def _shared_ways(entries: Sequence[Entry]) -> list[tuple[Any, ...]]:
    seen: dict[tuple[Any, ...], int] = {}
    for entry in entries:
        for key in dict.fromkeys(_key(run) for run in entry.record["runs"]):
            seen[key] = seen.get(key, 0) + 1
    return [key for key, n_records in seen.items() if n_records > 1]


def _misses(entries: Sequence[Entry], charts: Charts) -> Element | None:
    """Rows that a token misses, of the library's policy where it is there."""
    series = []
    for entry in entries:
        steady = [c for c in entry.record["curves"] if c["state"] == "steady" and not c["is_prefill"]]
        held = [c for c in steady if any(p["misses_a_token_p50"] is not None for p in c["points"])]
        curve = min(held, key=_preference, default=None)
        for key, share in (("misses_a_token_p50", "half of the tokens"), ("misses_a_token_p99", "99 of 100 tokens")):
            name = "" if curve is None else f"{entry.label} {words(curve['policy'])}: {share} miss no more"
            series.append(Series(name=name, points=points_of(curve["points"] if curve else (), "cache_bytes", key)))
    axis = Axis(label="rows missed a token", spell=short)
    return charts.lines("Misses of a token, steady", series, x=_sizes(entries), y=axis)


def _preference(curve: Mapping[str, Any]) -> tuple[int, bool]:
    policy = curve["policy"]
    return (_COMPARED.index(policy) if policy in _COMPARED else len(_COMPARED), curve["unit"] != "row")


def _unique(entries: Sequence[Entry], charts: Charts) -> Element | None:
    series = [
        Series(name=e.name, points=points_of(e.record["unique_rows"], "chunk_tokens", "unique_ratio")) for e in entries
    ]
    x = _own_values(series, "tokens of a chunk", whole)
    y = Axis(label="distinct rows over lookups", spell=tick_percent, exactly=percent)
    return charts.lines("Distinct rows among the lookups of a chunk", series, x=x, y=y)


def _own_values(series: Sequence[Series], label: str, spell: Callable[[float], str]) -> Axis:
    values = sorted({point.x for each in series for point in each.points if point.x > 0})
    return Axis(label=label, spell=spell, is_log=True, values=values)


def _bundles(entries: Sequence[Entry], charts: Charts) -> Element | None:
    series = []
    for entry in entries:
        bundles = entry.record["bundles"]
        points = points_of(bundles["points"], "budget_bytes", "reads_a_token") if bundles is not None else []
        # No bundles at all stand at the left edge: a logarithmic axis has no 0.
        above = [point.x for point in points if point.x > 0]
        none = [Point(x=min(above, default=2.0) / 2, y=point.y) for point in points if point.x == 0]
        series.append(Series(name=entry.name, points=[*none, *(point for point in points if point.x > 0)]))
    axis = _own_values(series, "bytes of bundles", size)
    firsts = {each.points[0].x for each in series if each.points}
    x = Axis(
        label=axis.label, spell=lambda value: "none" if value in firsts else size(value), is_log=True,
        values=axis.values,
    )  # fmt: skip
    y = Axis(label="reads a token", spell=short)
    return charts.lines("Reads a token with bundles of hot n-grams", series, x=x, y=y)


def _left_out(entries: Sequence[Entry]) -> list[Child]:
    rows: list[list[Child]] = [
        [entry.name, words(each["policy"]), f"{words(each['unit'])}s", "every size" if each["cache_bytes"] is None
         else size(each["cache_bytes"]), words(each["reason"])]
        for entry in entries for each in entry.record["left_out"]
    ]  # fmt: skip
    if not rows:
        return []
    columns = ("record", "policy", "unit", "cache", "why")
    return [table(columns, rows, caption="Not simulated", n_left=5, is_wide=True)]
