"""`engram.inspect-stats/1` and `engram.inspect-coverage/1` as charts: norms by head, rows touched, findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from engram_tables.measure.report.charts import Axis, Charts, Row
from engram_tables.measure.report.elements import Child, listed, side_by_side, table, tag
from engram_tables.measure.report.figures import MISSING, number, percent, scaled, short, tick_percent, whole, words
from engram_tables.measure.report.reading import Entry

_STATS = "engram.inspect-stats/1"


def draw(entries: Sequence[Entry], charts: Charts) -> list[Child]:
    """The section's content."""
    stats = [entry for entry in entries if entry.schema == _STATS]
    coverage = [entry for entry in entries if entry.schema != _STATS]
    shown = [*(_norms(entry, charts) for entry in stats), *(_touched(entry, charts) for entry in coverage)]
    headlines = [*map(_of_stats, stats), *map(_of_coverage, coverage)]
    return [listed(headlines), side_by_side(shown), _findings(stats), _verdicts(coverage)]


def _of_stats(entry: Entry) -> Element:
    record = entry.record
    sound = "no fault was found" if record["is_sound"] else "faults were found"
    told = (
        f"{words(record['path'])}, {whole(record['n_rows_read'])} of {whole(record['n_rows_here'])} rows read; {sound}"
    )
    return tag("span", tag("strong", entry.name), f": {told}")


def _of_coverage(entry: Entry) -> Element:
    record = entry.record
    told = (
        f"{words(record['spec'])}, {whole(record['n_tokens'])} tokens; {whole(record['n_faults'])} heads with a fault, "
        f"{whole(record['n_undecided'])} undecided"
    )
    return tag("span", tag("strong", entry.name), f": {told}")


def _head(of: Mapping[str, Any]) -> str:
    if of["head"] is None:
        return f"layer {words(of['layer_id'])}, {'padding' if of.get('is_padding') else 'no single head'}"
    return f"layer {words(of['layer_id'])}, order {words(of['order'])}, head {words(of['head'])}"


def _norms(entry: Entry, charts: Charts) -> Element | None:
    rows = []
    for group in entry.record["groups"]:
        norms = group["norms"]
        if norms is not None:
            at = {key: number(value) for key, value in norms.items()}
            rows.append(
                Row(name=_head(group), value=at["p50"], interval=(at["p5"], at["p95"]), box=(at["p25"], at["p75"]))
            )
    return charts.rows(
        f"{entry.name}: norms of rows", rows, axis=Axis(label="norm of a row", spell=short),
        columns=("head", "median", "5 to 95 of 100", "middle half"),
        note="Line: 5 to 95 of 100 rows. Box: the middle half. Upright mark: the median.",
    )  # fmt: skip


def _touched(entry: Entry, charts: Charts) -> Element | None:
    rows = [
        Row(
            name=_head(of), value=number(of["n_touched"]) / number(of["n_rows"]), note=f"({words(of['verdict'])})",
            dot=number(of["n_touched_expected"]) / number(of["n_rows"]),
        )
        for of in entry.record["heads"]
    ]  # fmt: skip
    axis = Axis(label="rows touched", spell=tick_percent, exactly=percent, within=(0.0, 1.0))
    return charts.rows(
        f"{entry.name}: rows touched by the text", rows, axis=axis, is_bar=True,
        columns=("head", "touched", "under a uniform hash"), note="Dot: the mean under a uniform hash.",
    )  # fmt: skip


def _findings(entries: Sequence[Entry]) -> Element | None:
    rows: list[list[Child]] = [
        [f"{entry.label}: {words(of['check'])}", words(of["severity"]), words(of["where"]), words(of["found"]),
         words(of["expected"]), words(of["remedy"])]
        for entry in entries for of in entry.record["findings"]
    ]  # fmt: skip
    columns = ("check", "severity", "where", "found", "expected", "remedy")
    return table(columns, rows, caption="Findings", n_left=6, is_wide=True) if rows else None


def _verdicts(entries: Sequence[Entry]) -> Element | None:
    rows: list[list[Child]] = [
        [f"{entry.label}: {_head(of)}", words(of["verdict"]), scaled(of["n_ngrams"]), short(of["load"]),
         whole(of["n_touched"]), short(of["n_touched_z"]),
         MISSING if of["n_dead_rows"] is None else whole(of["n_dead_rows"])]
        for entry in entries for of in entry.record["heads"]
    ]  # fmt: skip
    columns = ("head", "verdict", "n-grams", "load", "touched", "deviations", "dead rows")
    return table(columns, rows, caption="Coverage by head", n_left=2) if rows else None
