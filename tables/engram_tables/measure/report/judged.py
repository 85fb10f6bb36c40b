"""`engram.evaluate/1` as charts: accuracy by heads and by order, beside exact back-off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from engram_tables.measure.report.charts import Axis, Charts, Point, Series
from engram_tables.measure.report.elements import Child, listed, side_by_side, table, tag
from engram_tables.measure.report.figures import MISSING, number, number_or_none, percent, tick_percent, whole, words
from engram_tables.measure.report.reading import Entry

_RIGHTS = (("top_1", "raw"), ("top_5", "raw"), ("top_1", "canonical"), ("top_5", "canonical"))
_VERDICTS = {
    "held-out": "was not counted",
    "partly-counted": "was counted in part: its figures flatter",
    "counted": "was counted itself: its figures flatter",
}


def draw(entries: Sequence[Entry], charts: Charts) -> list[Child]:
    """The section's content."""
    compared = [_compared(entries, charts, top) for top in ("top_1", "top_5")] if len(entries) > 1 else []
    return [
        listed(_headline(entry) for entry in entries),
        side_by_side(compared),
        side_by_side(_by_heads(entry, charts) for entry in entries),
        side_by_side(_by_order(entry, charts) for entry in entries),
        _summary(entries),
    ]


def _headline(entry: Entry) -> Element:
    record = entry.record
    held, sample, overlap = record["table"], record["sample"], record["overlap"]
    text = "without counts to compare with" if overlap is None else f"of a text that {_verdict(overlap['verdict'])}"
    return tag(
        "span", tag("strong", entry.name),
        f": {words(held['path'])}, rows of {whole(held['row_width'])} values; {whole(sample['n_positions'])} positions "
        f"of {whole(sample['n_judged'])}, in {whole(sample['n_clusters'])} documents, {text}",
    )  # fmt: skip


def _verdict(verdict: Any) -> str:
    return _VERDICTS.get(verdict, words(verdict))


def _share_axis(label: str) -> Axis:
    return Axis(label=label, spell=tick_percent, exactly=percent, within=(0.0, 1.0), values=(0, 0.2, 0.4, 0.6, 0.8, 1))


def _point(x: float, interval: Mapping[str, Any]) -> list[Point]:
    """An interval at a place; nothing where nothing was divided by."""
    value = number_or_none(interval["value"])
    if value is None:
        return []
    low, high = number_or_none(interval["low"]), number_or_none(interval["high"])
    within = (None, None) if low is None or high is None else (max(low, 0.0), min(high, 1.0))
    return [Point(x=x, y=value, low=within[0], high=within[1])]


def _named(top: str, how: str) -> str:
    of = "the token" if how == "raw" else "one that folds to the same"
    return f"{of} is the first" if top == "top_1" else f"{of} is among five"


def _n_heads(of: Mapping[str, Any]) -> str:
    return f"{whole(of['n_heads'])} head{'s' if of['n_heads'] != 1 else ''}"


def _heads(entry: Entry) -> Axis:
    return _heads_of([entry])


def _heads_of(entries: Sequence[Entry]) -> Axis:
    values = sorted({number(of["n_heads"]) for entry in entries for of in entry.record["heads"]})
    return Axis(label="heads read of each order", spell=whole, values=values)


def _by_heads(entry: Entry, charts: Charts) -> Element | None:
    record = entry.record
    series = []
    for top, how in _RIGHTS:
        points = [point for of in record["heads"] for point in _point(number(of["n_heads"]), of[top][how])]
        series.append(Series(name=_named(top, how), points=points))
    exact = record["exact"]
    places = [number(of["n_heads"]) for of in record["heads"]]
    if exact is not None and places:
        for top in ("top_1", "top_5"):
            value = number_or_none(exact[top]["raw"]["value"])
            points = [] if value is None else [Point(x=at, y=value) for at in sorted({min(places), max(places)})]
            series.append(Series(name=f"exact back-off: {_named(top, 'raw')}", points=points, is_bound=True))
    note = "Bars hold 95 of 100 times, were other documents drawn."
    return charts.lines(
        f"{entry.name}: accuracy by heads", series, x=_heads(entry), y=_share_axis("share of positions"), note=note
    )


def _by_order(entry: Entry, charts: Charts) -> Element | None:
    """At the most heads: of the n-grams that the rows, or the counts, know."""
    record = entry.record
    if not record["heads"]:
        return None
    most = max(record["heads"], key=lambda of: number(of["n_heads"]))
    key = "of_known" if record["exact"] is None else "of_seen"
    told = [of for of in most["orders"] if of[key] is not None]
    series = [
        Series(
            name=_named(top, how), points=[p for of in told for p in _point(number(of["order"]), of[key][top][how])]
        )
        for top, how in _RIGHTS
    ]  # fmt: skip
    known = [point for of in most["orders"] for point in _point(number(of["order"]), of["known"])]
    series.append(Series(name="n-grams that the rows know", points=known, is_bound=True))
    x = Axis(label="order (tokens of an n-gram)", spell=whole, values=sorted({p.x for s in series for p in s.points}))
    of_what = "n-grams that the rows know" if key == "of_known" else "n-grams that were counted"
    title = f"{entry.name}: accuracy by order, {_n_heads(most)}"
    return charts.lines(title, series, x=x, y=_share_axis(f"share of the {of_what}"))


def _compared(entries: Sequence[Entry], charts: Charts, top: str) -> Element | None:
    series = [
        Series(
            name=entry.name,
            points=[p for of in entry.record["heads"] for p in _point(number(of["n_heads"]), of[top]["raw"])],
        )
        for entry in entries
    ]
    title = f"All records: {_named(top, 'raw')}"
    return charts.lines(title, series, x=_heads_of(entries), y=_share_axis("share of positions"))


def _summary(entries: Sequence[Entry]) -> Element:
    rows: list[list[Child]] = []
    for entry in entries:
        for of in entry.record["heads"]:
            ratio = of["ratio_to_exact"]
            rows.append(
                [f"{entry.name}, {_n_heads(of)}", _interval(of["known"]),
                 *(_interval(of[top][how]) for top, how in _RIGHTS),
                 MISSING if ratio is None else _interval(ratio["top_1"]["raw"])]
            )  # fmt: skip
    columns = ("record", "known", "first", "among five", "first, folded", "among five, folded", "first over exact")
    return table(columns, rows, caption="Accuracy, with intervals of 95 %")


def _interval(of: Mapping[str, Any]) -> str:
    if of["value"] is None or of["low"] is None or of["high"] is None:
        return percent(of["value"])
    return f"{percent(of['value'])} ({100 * number(of['low']):.1f} to {100 * number(of['high']):.1f})"
