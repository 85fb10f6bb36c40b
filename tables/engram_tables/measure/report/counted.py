"""Counts as charts: `engram.count/2`, `engram.counts/2` and `engram.counts-merge/1`, and `engram.counts-stats/1`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from engram_tables.corpus.counts.counts_plot import binned_counts
from engram_tables.corpus.counts.counts_stats import CountsOfCounts
from engram_tables.measure.report.charts import Axis, Charts, Point, Series
from engram_tables.measure.report.elements import Child, listed, side_by_side, table, tag
from engram_tables.measure.report.figures import number, percent, scaled, short, tick_percent, whole, words
from engram_tables.measure.report.reading import Entry

_STATISTICS = "engram.counts-stats/1"


def draw(entries: Sequence[Entry], charts: Charts) -> list[Child]:
    """The section's content."""
    counts = [entry for entry in entries if entry.schema != _STATISTICS]
    statistics = [entry for entry in entries if entry.schema == _STATISTICS]
    shown = [_distinct(counts, charts), _mean(counts, charts), _often(statistics, charts), _held(statistics, charts)]
    return [
        listed(_headline(entry) for entry in counts),
        side_by_side(shown),
        _orders_table(counts),
        _statistics_table(statistics),
        *_most_frequent(counts),
    ]


def _headline(entry: Entry) -> Element:
    record = entry.record
    corpus, least = record["corpus"], number(record["min_count"])
    left_out = "" if least <= 1 else f"; n-grams of less than {whole(least)} occurrences were left out"
    next_tokens = "" if record["next"] is None else "; with the tokens that follow"
    return tag(
        "span", tag("strong", entry.name),
        f": {whole(corpus['n_tokens'])} tokens of {whole(corpus['n_documents'])} documents{next_tokens}{left_out}",
    )  # fmt: skip


def _orders(entry: Entry) -> list[tuple[int, Mapping[str, Any]]]:
    """Order and figures: a manifest keeps them by order, a command's record in a list."""
    orders = entry.record["orders"]
    pairs = orders.items() if isinstance(orders, dict) else [(of["order"], of) for of in orders]
    return sorted(((int(order), of) for order, of in pairs), key=lambda pair: pair[0])


def _order_axis(entries: Sequence[Entry]) -> Axis:
    values = sorted({order for entry in entries for order, _ in _orders(entry)})
    return Axis(label="order (tokens of an n-gram)", spell=whole, values=values)


def _distinct(entries: Sequence[Entry], charts: Charts) -> Element | None:
    series = [
        Series(name=e.name, points=[Point(x=order, y=number(of["n_distinct"])) for order, of in _orders(e)])
        for e in entries
    ]
    y = Axis(label="distinct n-grams", spell=scaled, exactly=whole, is_log=True)
    return charts.lines("Distinct n-grams by order", series, x=_order_axis(entries), y=y)


def _mean(entries: Sequence[Entry], charts: Charts) -> Element | None:
    series = [
        Series(
            name=e.name,
            points=[
                Point(x=order, y=number(of["n_total"]) / number(of["n_distinct"]))
                for order, of in _orders(e)
                if of["n_distinct"]
            ],
        )
        for e in entries
    ]
    y = Axis(label="occurrences of an n-gram, mean", spell=scaled, exactly=short, is_log=True)
    return charts.lines("How often an n-gram occurs", series, x=_order_axis(entries), y=y)


def _often(entries: Sequence[Entry], charts: Charts) -> Element | None:
    """Share of the occurrences that the most frequent n-grams hold."""
    series = []
    for entry in entries:
        held = [each for each in entry.record["coverage"] if each["n_ngrams"] is not None]
        points = [Point(x=number(each["n_ngrams"]), y=number(each["percent"]) / 100) for each in held]
        series.append(Series(name=_of_order(entry), points=points))
    x = Axis(label="n-grams, the most frequent first", spell=scaled, exactly=whole, is_log=True)
    y = Axis(
        label="share of all occurrences",
        spell=tick_percent,
        exactly=percent,
        within=(0.0, 1.0),
        values=(0, 0.25, 0.5, 0.75, 1),
    )
    return charts.lines("How many n-grams hold most occurrences", series, x=x, y=y)


def _held(entries: Sequence[Entry], charts: Charts) -> Element | None:
    """Counts of counts, in bins where n-grams grow rare."""
    series = []
    for entry in entries:
        pairs = [(int(number(count)), int(number(n_ngrams))) for count, n_ngrams in entry.record["counts_of_counts"]]
        points = []
        if pairs:
            counts, n_ngrams = np.array(sorted(pairs), dtype=np.int64).T
            binned = binned_counts(CountsOfCounts(counts=counts, n_ngrams=n_ngrams))
            points = [Point(x=float(at), y=float(mean)) for at, mean in zip(*binned, strict=True)]
        series.append(Series(name=_of_order(entry), points=points))
    x = Axis(label="occurrences", spell=scaled, exactly=short, is_log=True)
    y = Axis(label="n-grams that occur so often", spell=scaled, exactly=short, is_log=True)
    note = "From 10 occurrences on the mean over a bin of them."
    return charts.lines("Counts of counts", series, x=x, y=y, note=note)


def _of_order(entry: Entry) -> str:
    return f"{entry.label}: order {whole(entry.record['order'])}"


def _orders_table(entries: Sequence[Entry]) -> Element | None:
    rows: list[list[Child]] = [
        [f"{entry.name}, order {order}", whole(of["n_distinct"]), whole(of["n_total"]), whole(of["n_rows"]),
         whole(of["dropped_distinct"]), whole(of["dropped_total"])]
        for entry in entries for order, of in _orders(entry)
    ]  # fmt: skip
    columns = ("counts", "distinct n-grams", "occurrences", "rows", "left out", "their occurrences")
    return table(columns, rows, caption="N-grams by order") if rows else None


def _statistics_table(entries: Sequence[Entry]) -> Element | None:
    rows: list[list[Child]] = []
    for entry in entries:
        record, law = entry.record, entry.record["power_law"]
        fit = (
            ["–"] * 3
            if law is None
            else [short(law["rank_exponent"]), short(law["ks_distance"]), words(law["verdict"])]
        )
        rows.append(
            [f"{entry.name}, order {whole(record['order'])}", whole(record["n_distinct"]), whole(record["n_total"]),
             percent(record["singleton_share"]), percent(record["unseen_mass"]), *fit]
        )  # fmt: skip
    columns = ("record", "distinct", "occurrences", "occur once", "unseen mass", "rank exponent", "distance", "fit")
    return table(columns, rows, caption="Statistics by order, with the fit of a power law") if rows else None


def _most_frequent(entries: Sequence[Entry]) -> list[Child]:
    """The n-grams that a command's record names."""
    rows: list[list[Child]] = [
        [f"{entry.label}, order {order}", " ".join(words(form) for form in each["forms"]) or words(each["ids"]),
         whole(each["count"])]
        for entry in entries for order, of in _orders(entry) for each in of.get("top", ())
    ]  # fmt: skip
    if not rows:
        return []
    figures = table(("counts", "n-gram", "occurrences"), rows, caption="Most frequent n-grams", n_left=2)
    return [tag("details", tag("summary", "Most frequent n-grams"), figures)]
