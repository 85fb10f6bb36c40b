"""`engram.bench-offload/2` as charts: rates, latency distributions, shares of ceilings, depth, bundles, tiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from engram_tables.measure.report.charts import Axis, Charts, Row, Series, points_of
from engram_tables.measure.report.elements import Child, listed, side_by_side, table, tag
from engram_tables.measure.report.figures import (
    MISSING,
    microseconds,
    number,
    number_or_none,
    percent,
    scaled,
    short,
    size,
    tick_percent,
    whole,
    words,
)
from engram_tables.measure.report.reading import Entry

_Key = tuple[str, str, str]


def draw(entries: Sequence[Entry], charts: Charts) -> list[Child]:
    """The section's content."""
    content: list[Child] = [listed(_headline(entry) for entry in entries), *_warnings(entries)]
    for key in dict.fromkeys(key for entry in entries for key, _ in _sections(entry)):
        content += _section(key, entries, charts)
    others = [_depths(entries, charts), _disk(entries, charts), _bundles(entries, charts), _tiers(entries, charts)]
    if any(other is not None for other in others):
        content += [tag("h3", "Depth, bundles and caches"), side_by_side(others)]
    return [*content, _summary(entries), _ceilings(entries), _waived(entries)]


def _headline(entry: Entry) -> Element:
    held, traces = entry.record["table"], entry.record["traces"]
    real = ", ".join(words(trace["name"]) for trace in traces if trace["is_real_text"]) or "no real text"
    return tag(
        "span", tag("strong", entry.name),
        f": {words(held['path'])}, {whole(held['n_rows_here'])} rows of {size(held['row_bytes'])}, "
        f"{words(held['codec'])}, {whole(held['rows_per_token'])} a token; lookups of {real}",
    )  # fmt: skip


def _warnings(entries: Sequence[Entry]) -> list[Child]:
    told: list[Child] = []
    for entry in entries:
        for found in entry.record["mismatches"]:
            told.append(f"{entry.name}: bytes of {words(found['engine'])} differed; it was not timed.")
        told += [f"{entry.name}: {words(flag)}" for flag in entry.record["flags"]]
    return [tag("h3", "Remarks of the benchmark"), listed(told)] if told else []


def _sections(entry: Entry) -> Iterator[tuple[_Key, Mapping[str, Any]]]:
    """Measured sections by source, state and device."""
    for section in entry.record["sections"]:
        if section["status"] == "measured":
            device = words(section["device"]) if section.get("device") is not None else ""
            yield (words(section["source"]), words(section["state"]), device), section


def _spell(key: _Key) -> str:
    return f"from {key[0]}, {key[1]}{f', to {key[2]}' if key[2] else ''}"


def _section(key: _Key, entries: Sequence[Entry], charts: Charts) -> list[Child]:
    held = [(entry, section) for entry in entries for own, section in _sections(entry) if own == key]
    rates = [_rates(entry, section, key, held, charts) for entry, section in held]
    lengths = sorted({number(point["rows_per_batch"]) for _, section in held for point in section["points"]})
    latencies = [_latency(entry, section, n_rows, held, charts) for n_rows in lengths for entry, section in held]
    shares = [_shares(entry, section, held, charts) for entry, section in held]
    return [tag("h3", f"Rows {_spell(key)}"), side_by_side([*rates, *latencies, *shares])]


def _rates(
    entry: Entry, section: Mapping[str, Any], key: _Key, held: Sequence[tuple[Entry, Mapping[str, Any]]], charts: Charts
) -> Element | None:
    main = entry.record["traces"][0]["name"]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for point in section["points"]:
        lines.setdefault(_named(point, main), []).append(point)
    series = [
        Series(name=name, points=points_of(points, "rows_per_batch", "rows_per_s"), is_bound=points[0]["trace"] != main)
        for name, points in lines.items()
    ]
    every = [point for _, other in held for point in other["points"]]
    rates = [number(point["rows_per_s"]) for point in every]
    x = Axis(
        label="rows of a batch", spell=scaled, exactly=whole, is_log=True,
        values=sorted({number(point["rows_per_batch"]) for point in every}),
    )  # fmt: skip
    y = Axis(label="rows/s", spell=scaled, exactly=whole, is_log=True, within=(min(rates) / 1.2, max(rates) * 1.2))
    return charts.lines(f"{entry.name}: rows a second, {_spell(key)}", series, x=x, y=y)


def _named(point: Mapping[str, Any], main: Any) -> str:
    streams = f", {whole(point['streams'])} streams" if number(point["streams"]) > 1 else ""
    bound = "" if point["trace"] == main else f" (bound: {words(point['trace'])} rows)"
    return f"{words(point['engine'])}{streams}{bound}"


def _latency(
    entry: Entry, section: Mapping[str, Any], n_rows: float, held: Sequence[tuple[Entry, Mapping[str, Any]]],
    charts: Charts,
) -> Element | None:  # fmt: skip
    """Every engine's batches of one length: all of them, the middle half, the median, and 99 of 100 where told."""
    main = entry.record["traces"][0]["name"]
    rows = [
        _spread(point, _named(point, main)) for point in section["points"] if number(point["rows_per_batch"]) == n_rows
    ]
    same = [p for _, other in held for p in other["points"] if number(p["rows_per_batch"]) == n_rows]
    least, most = min(number(p["min_ns"]) for p in same), max(number(p["max_ns"]) for p in same)
    within = (least / 1200, most / 1000 * 1.2) if least > 0 else None
    return charts.rows(
        f"{entry.name}: time of a batch of {whole(n_rows)} rows", rows,
        axis=Axis(label="time of a batch", spell=microseconds, is_log=True, within=within),
        columns=("engine", "median", "least to most", "middle half", "99 of 100 take less"),
        note="Line: least to most. Box: the middle half. Upright mark: the median. Dot: 99 of 100 take less, of 100 "
        "batches and more.",
    )  # fmt: skip


def _spread(point: Mapping[str, Any], name: str) -> Row:
    samples = [number(ns) / 1000 for ns in point["samples_ns"]]
    box = tuple(map(float, np.percentile(samples, (25, 75)))) if len(samples) > 3 else None
    return Row(
        name=name, value=number(point["median_ns"]) / 1000,
        interval=(number(point["min_ns"]) / 1000, number(point["max_ns"]) / 1000),
        box=None if box is None else (box[0], box[1]), dot=number_or_none(point["batch_p99_us"]),
    )  # fmt: skip


def _shares(
    entry: Entry, section: Mapping[str, Any], held: Sequence[tuple[Entry, Mapping[str, Any]]], charts: Charts
) -> Element | None:
    """Shares of the ceilings that were measured in the same run."""
    main = entry.record["traces"][0]["name"]
    rows = [
        Row(
            name=f"{_named(point, main)}, {whole(point['rows_per_batch'])} rows{_ceiling(point)}",
            value=number_or_none(point["share_of_ceiling"]),
        )
        for point in section["points"] if point["trace"] == main
    ]  # fmt: skip
    shares = [number_or_none(point["share_of_ceiling"]) or 0.0 for _, other in held for point in other["points"]]
    most = max([1.0, *shares]) * 1.05
    axis = Axis(label="share of the ceiling", spell=tick_percent, exactly=percent, within=(0.0, most))
    return charts.rows(
        f"{entry.name}: share of the ceiling", rows, axis=axis, is_bar=True, reference=1.0, columns=("engine", "share"),
        note="The dashed line: the ceiling, measured in the same run.",
    )  # fmt: skip


def _ceiling(point: Mapping[str, Any]) -> str:
    return "" if point["ceiling"] is None else f" (of {words(point['ceiling']['name'])})"


def _depths(entries: Sequence[Entry], charts: Charts) -> Element | None:
    series = [
        Series(
            name=f"{entry.label}: {words(sweep['engine'])}, {whole(sweep['rows_per_batch'])} rows",
            points=points_of(sweep["points"], "depth", "rows_per_s"),
        )
        for entry in entries for sweep in entry.record["depths"] if sweep["status"] == "measured"
    ]  # fmt: skip
    return charts.lines("Cold rows by reads in flight", series, x=_depth_axis(series), y=_rate_axis("rows/s"))


def _disk(entries: Sequence[Entry], charts: Charts) -> Element | None:
    series = []
    for entry in entries:
        disk = entry.record["ceilings"].get("disk")
        if not disk or disk["status"] != "measured":
            continue
        sweeps = [("a thread for each", disk["threads"]), *((words(e["engine"]), e) for e in disk["engines"])]
        for name, sweep in sweeps:
            if "points" in sweep:
                points = points_of(sweep["points"], "depth", "reads_per_s")
                series.append(Series(name=f"{entry.label}: {name}", points=points))
    title = "The disk's own limit: random reads of a block by depth"
    return charts.lines(title, series, x=_depth_axis(series), y=_rate_axis("reads/s"))


def _depth_axis(series: Sequence[Series]) -> Axis:
    values = sorted({point.x for each in series for point in each.points})
    return Axis(label="reads in flight", spell=whole, is_log=True, values=values)


def _rate_axis(label: str) -> Axis:
    return Axis(label=label, spell=scaled, exactly=whole)


def _bundles(entries: Sequence[Entry], charts: Charts) -> Element | None:
    rows = []
    for at, entry, key, point in _parts(entries, "bundles"):
        which = "with bundles" if point["has_bundles"] else "without"
        name = f"{entry.label}: {_spell(key)}, {whole(point['tokens_per_batch'])} tokens, {which}"
        rows.append(Row(name=name, value=number(point["reads_per_token"]), colour=at))
    axis = Axis(label="reads a token", spell=short)
    return charts.rows("Reads a token with bundles", rows, axis=axis, is_bar=True, columns=("batches", "reads a token"))


def _tiers(entries: Sequence[Entry], charts: Charts) -> Element | None:
    rows = []
    for at, entry, key, point in _parts(entries, "tiers"):
        if point["tier"] is not None:
            name = f"{entry.label}: {words(point['tier'])}, {_spell(key)}, {whole(point['rows_per_batch'])} rows"
            faster = point["rows_per_s_over_alone"]
            note = "" if faster is None else f"({short(faster)} times the engine alone)"
            rows.append(Row(name=name, value=number_or_none(point["hit_ratio"]), note=note, colour=at))
    axis = Axis(label="hit ratio", spell=tick_percent, exactly=percent, within=(0.0, 1.0))
    return charts.rows("Memory in front of an engine", rows, axis=axis, is_bar=True, columns=("memory", "hit ratio"))


def _parts(entries: Sequence[Entry], part: str) -> Iterator[tuple[int, Entry, _Key, Mapping[str, Any]]]:
    for at, entry in enumerate(entries):
        for key, section in _sections(entry):
            held = section.get(part)
            if held and held["status"] == "measured":
                for point in held["points"]:
                    yield at, entry, key, point


def _summary(entries: Sequence[Entry]) -> Element | None:
    """The fastest engine of each section and batch length, record by record, against the first record's."""
    best: dict[tuple[str, float], dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        main = entry.record["traces"][0]["name"]
        for key, section in _sections(entry):
            for point in section["points"]:
                if point["trace"] != main:
                    continue
                held = best.setdefault((_spell(key), number(point["rows_per_batch"])), {})
                known = held.get(entry.label)
                if known is None or number(point["rows_per_s"]) > number(known["rows_per_s"]):
                    held[entry.label] = point
    rows: list[list[Child]] = []
    for (where, n_rows), held in best.items():
        cells = [_best(held.get(entry.label), held.get(entries[0].label)) for entry in entries]
        rows.append([f"{where}, {whole(n_rows)} rows", *cells])
    columns = ["batches", *(entry.name for entry in entries)]
    return table(columns, rows, caption="The fastest engine of each, rows a second") if rows else None


def _best(point: Mapping[str, Any] | None, first: Mapping[str, Any] | None) -> str:
    if point is None:
        return MISSING
    told = f"{whole(point['rows_per_s'])} ({words(point['engine'])})"
    if first is None or first is point or not number(first["rows_per_s"]):
        return told
    return f"{told}, {number(point['rows_per_s']) / number(first['rows_per_s']):.2f} times"


_CEILINGS: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (
    ("memory", "memcpy_1_thread_bytes_per_s", "copy by one thread", lambda value: f"{size(value)}/s"),
    ("memory", "memcpy_all_threads_bytes_per_s", "copy by all threads", lambda value: f"{size(value)}/s"),
    ("memory", "random_lines_per_s", "random cache lines", lambda value: f"{whole(value)}/s"),
    ("memory", "dependent_load_ns", "a load that waits for the last", lambda value: f"{short(value)} ns"),
    ("disk", "best_reads_per_s", "random reads of a block", lambda value: f"{whole(value)}/s"),
    ("disk", "sequential_bytes_per_s", "reads in a row", lambda value: f"{size(value)}/s"),
    ("bus", "host_to_device_memcpy_ce_bytes_per_s", "host to device", lambda value: f"{size(value)}/s"),
    ("upload", "bytes_per_s", "copies of pinned memory to the device", lambda value: f"{size(value)}/s"),
)


def _ceilings(entries: Sequence[Entry]) -> Element | None:
    rows: list[list[Child]] = []
    for part, key, name, spell in _CEILINGS:
        values = [(entry.record["ceilings"].get(part) or {}).get(key) for entry in entries]
        if any(value is not None for value in values):
            rows.append([f"{part}: {name}", *(MISSING if value is None else spell(value) for value in values)])
    columns = ["ceiling", *(entry.name for entry in entries)]
    return table(columns, rows, caption="Ceilings, measured in the same run") if rows else None


def _waived(entries: Sequence[Entry]) -> Element | None:
    rows: list[list[Child]] = []
    for entry in entries:
        parts = [
            *((f"{words(s['source'])}, {words(s['state'])}", s) for s in entry.record["sections"]),
            *((f"ceiling: {name}", of) for name, of in entry.record["ceilings"].items() if isinstance(of, dict)),
        ]
        rows += [[f"{entry.label}: {name}", words(of["reason"])] for name, of in parts if of.get("status") == "waived"]
    return table(("part", "why"), rows, caption="Not measured", n_left=2, is_wide=True) if rows else None
