"""`engram.plan/1` as charts: how much of each limit a placement takes, what a token reads, and what remains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from engram_tables.measure.report.charts import Axis, Charts, Row
from engram_tables.measure.report.elements import Child, listed, side_by_side, table, tag
from engram_tables.measure.report.figures import (
    MISSING,
    microseconds,
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


def draw(entries: Sequence[Entry], charts: Charts) -> list[Child]:
    """The section's content."""
    shares = [_shares(entry, entries, charts) for entry in entries]
    return [
        listed(_headline(entry) for entry in entries),
        side_by_side(shares),
        side_by_side([_reads(entries, charts), _speeds(entries, charts)]),
        _placements(entries),
        *_figures(entries),
    ]


def _headline(entry: Entry) -> Element:
    record, load = entry.record, entry.record["load"]
    best = "no placement is fine" if record["best"] is None else f"{words(record['best'])} is the first that is fine"
    asked = "" if load["tokens_per_s"] is None else f"{whole(load['tokens_per_s'])} tokens/s asked for, "
    return tag(
        "span", tag("strong", entry.name),
        f": {words(record['table']['name'])}, {size(record['table']['table_bytes'])}, "
        f"{whole(record['table']['rows_per_token'])} rows a token; {asked}{whole(load['streams'])} streams; {best}",
    )  # fmt: skip


def _judged(entry: Entry) -> list[Mapping[str, Any]]:
    """Placements whose times could be told."""
    return [each for each in entry.record["placements"] if "limits" in each]


def _shares(entry: Entry, entries: Sequence[Entry], charts: Charts) -> Element | None:
    """The limit that each placement is nearest to, of those whose both sides are known."""
    rows = []
    for each in _judged(entry):
        known = [limit for limit in each["limits"] if limit["share"] is not None]
        if known:
            worst = max(known, key=lambda limit: number(limit["share"]))
            holds = "holds" if worst["holds"] else "fails"
            rows.append(
                Row(
                    name=f"{words(each['placement'])}: {words(worst['name'])}", value=number(worst["share"]),
                    note=f"({holds})", colour=0 if worst["holds"] else 1,
                )
            )  # fmt: skip
    values = [number(limit["share"]) for e in entries for p in _judged(e) for limit in p["limits"] if limit["share"]]
    most = max([value for value in values if value > 0] or [1.0])
    axis = Axis(label="needed over available", spell=tick_percent, exactly=percent, within=(0.0, max(1.0, most) * 1.05))
    return charts.rows(
        f"{entry.name}: the tightest known limit of each placement", rows, axis=axis, is_bar=True, reference=1.0,
        columns=("placement and limit", "share"), note="The dashed line: all that is available.",
    )  # fmt: skip


def _reads(entries: Sequence[Entry], charts: Charts) -> Element | None:
    rows = [
        Row(
            name=f"{entry.label}: {words(each['placement'])}", value=number(each["reads_per_token_behind_cache"]),
            note=f"of {short(each['reads_per_token'])}", colour=at,
        )
        for at, entry in enumerate(entries) for each in _judged(entry) if number(each["reads_per_token"])
    ]  # fmt: skip
    axis = Axis(label="reads of the disk a token, behind the cache", spell=short)
    return charts.rows("Reads a token", rows, axis=axis, is_bar=True, columns=("placement", "reads behind the cache"))


def _speeds(entries: Sequence[Entry], charts: Charts) -> Element | None:
    rows = [
        Row(
            name=f"{entry.label}: {words(each['placement'])}", value=number_or_none(each["tokens_per_s"]),
            note="" if each["loss"] is None else f"({percent(each['loss'])} lost)", colour=at,
        )
        for at, entry in enumerate(entries) for each in _judged(entry)
    ]  # fmt: skip
    axis = Axis(label="tokens/s of all streams that remain", spell=whole)
    return charts.rows("Speed that remains", rows, axis=axis, is_bar=True, columns=("placement", "tokens/s"))


def _placements(entries: Sequence[Entry]) -> Element:
    rows: list[list[Child]] = []
    for entry in entries:
        for each in entry.record["placements"]:
            times = [each.get(key) for key in ("batched_ms_per_token", "step_fetch_ms", "exposed_ms")]
            spelled = [MISSING if ms is None else microseconds(1000 * number(ms)) for ms in times]
            rows.append(
                [f"{entry.label}: {words(each['placement'])}", words(each["status"]), *spelled, words(each["summary"])]
            )
    columns = ("placement", "verdict", "a token's rows", "a step's rows", "waited for", "summary")
    return table(columns, rows, caption="Placements", n_left=2, is_wide=True)


def _figures(entries: Sequence[Entry]) -> list[Child]:
    """What was added up, and where each figure is from."""
    rows: list[list[Child]] = [
        [f"{entry.label}: {name}", short(of["value"]), words(of["origin"]), words(of["where"])]
        for entry in entries for name, of in _machine(entry.record["machine"])
    ]  # fmt: skip
    if not rows:
        return []
    figures = table(("figure", "value", "origin", "where from"), rows, caption="Figures of the machine", is_wide=True)
    return [tag("details", tag("summary", "Figures of the machine, and where each is from"), figures)]


def _machine(machine: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for held in (machine["spaces"], machine["rates"], machine["disk"] or {}):
        for name, of in held.items():
            if isinstance(of, dict):
                yield words(name), of
