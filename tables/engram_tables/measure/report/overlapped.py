"""`engram.overlap/1` as charts: what fetching rows costs a model whose steps are computed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from engram_tables.measure.report.charts import Axis, Charts, Point, Series, points_of
from engram_tables.measure.report.elements import Child, listed, side_by_side, table, tag
from engram_tables.measure.report.figures import (
    MISSING,
    microseconds,
    number,
    number_or_none,
    percent,
    short,
    tick_percent,
    whole,
    words,
)
from engram_tables.measure.report.reading import Entry


def draw(entries: Sequence[Entry], charts: Charts) -> list[Child]:
    """The section's content."""
    shown = [chart for entry in entries for chart in (_speeds(entry, charts), _losses(entry, charts))]
    return [listed(_headline(entry) for entry in entries), side_by_side(shown), _ways_table(entries)]


def _headline(entry: Entry) -> Element:
    record = entry.record
    if record["status"] != "measured":
        told = f"{words(record['status'])}: {words(record.get('reason'))}"
    else:
        rows, trace = record["rows"], record["trace"]
        text = "real text" if trace["is_real_text"] else f"{words(trace['kind'])} rows, not real text"
        told = (
            f"{words(record['model']['name'])}, from {words(record['from'])} to {words(record['to'])}, "
            f"{short(rows['bytes_per_token'])} bytes a token, {whole(record['depth'])} step ahead; lookups of {text}"
        )
    return tag("span", tag("strong", entry.name), f": {told}")


def _ways(entry: Entry) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Every load and a measured way of it."""
    for load in entry.record.get("loads") or ():
        for way in load["ways"]:
            if way["status"] == "measured":
                yield load, way


def _named(way: Mapping[str, Any]) -> str:
    return words(way["way"]) if way["engine"] is None else f"{words(way['way'])} ({words(way['engine'])})"


def _load_axis(entry: Entry) -> Axis:
    values = sorted({number(load["load_share"]) for load, _ in _ways(entry)})
    return Axis(label="share of the model's blocks that is computed", spell=tick_percent, values=values)


def _speeds(entry: Entry, charts: Charts) -> Element | None:
    lines: dict[str, list[Point]] = {}
    for load, way in _ways(entry):
        points = points_of([{**way, "load_share": load["load_share"]}], "load_share", "tokens_per_s")
        lines.setdefault(_named(way), []).extend(points)
    series = [Series(name=name, points=points, is_bound=name == "no table") for name, points in lines.items()]
    title = f"{entry.name}: tokens a second"
    return charts.lines(title, series, x=_load_axis(entry), y=Axis(label="tokens/s", spell=whole))


def _losses(entry: Entry, charts: Charts) -> Element | None:
    lines: dict[str, list[Point]] = {}
    for load, way in _ways(entry):
        loss = way["loss_against_resident"]
        if loss is not None:
            point = Point(
                x=number(load["load_share"]), y=number(loss["median"]), low=number(loss["min"]),
                high=number(loss["max"]),
            )  # fmt: skip
            lines.setdefault(_named(way), []).append(point)
    series = [Series(name=name, points=points) for name, points in lines.items()]
    y = Axis(label="loss against resident rows", spell=tick_percent, exactly=percent)
    note = "Bars: least and most of the rounds. Below 0: faster than with resident rows."
    return charts.lines(f"{entry.name}: loss against resident rows", series, x=_load_axis(entry), y=y, note=note)


def _ways_table(entries: Sequence[Entry]) -> Element | None:
    rows: list[list[Child]] = []
    for entry in entries:
        for load, way in _ways(entry):
            losses = [way["loss_against_resident"], way["loss_against_no_table"]]
            waits = number_or_none(way["exposed_us_per_step"])
            rows.append(
                [f"{entry.label}: {_named(way)}, {percent(load['load_share'])}", whole(way["tokens_per_s"]),
                 *(MISSING if loss is None else percent(loss["median"]) for loss in losses),
                 MISSING if waits is None else microseconds(waits), percent(way["exposed_share"])]
            )  # fmt: skip
    columns = ("way and load", "tokens/s", "loss: resident", "loss: no table", "waits a step", "share waited")
    return table(columns, rows, caption="Ways of fetching while a model computes") if rows else None
