"""Charts as inline SVG, with a legend and a table of the same figures: lines over an axis, and marks in rows.

Owns how figures look. Knows no record. Colours are classes, which the page's style gives for light and dark; a series
has a form of mark and of dash of its own too, so that none is told by its colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from xml.etree.ElementTree import Element

from engram_tables.measure.report.elements import Child, table, tag
from engram_tables.measure.report.figures import MISSING, number, short
from engram_tables.measure.report.scales import Scale, domain, spaced, ticks

N_COLOURS = 8
"""Series with a colour of their own; further ones begin again, with other dashes."""

_WIDTH, _HEIGHT = 440.0, 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 16.0, 28.0, 46.0
_ROWS_TOP = 6.0
_ROW_UNITS = 40.0
_EDGE = 22.0
"""Beside rows: half of the first and the last mark's words."""
_MARK_UNITS = 4.0
_LETTER_UNITS = 7.4
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 2", "6 2 2 2 2 2")

Spell = Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A value at a place of the horizontal axis; `low` and `high` are the ends of an interval around it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points that belong together, ascending in x; `is_bound` is drawn thin, as something that others are held to.

    `look` numbers its colour, mark and dash, where it should have the same in several charts; its place otherwise.
    """

    name: str
    points: Sequence[Point]
    is_bound: bool = False
    look: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What an axis shows.

    Attributes
    ----------
    label
        Quantity and unit.
    spell
        How a value reads on the axis.
    exactly
        How it reads in the table; as on the axis where there is none.
    values
        Marked values; round ones where there are none.
    within
        Ends that several charts share; those of the data where there are none.
    """

    label: str
    spell: Spell = short
    exactly: Spell | None = None
    is_log: bool = False
    values: Sequence[float] = ()
    within: tuple[float, float] | None = None

    def told(self, value: float | None) -> str:
        """A value for a table."""
        return MISSING if value is None else (self.exactly or self.spell)(value)

    def scale(self, values: Sequence[float], start: float, stop: float, *, from_zero: bool) -> Scale:
        """The axis for such values."""
        low, high = self.within or domain(values, is_log=self.is_log, from_zero=from_zero)
        return Scale(low=low, high=high, start=start, stop=stop, is_log=self.is_log)

    def marks(self, scale: Scale) -> list[float]:
        """Values that are marked on such a scale."""
        return list(self.values) or ticks(scale.low, scale.high, is_log=self.is_log)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a chart of marks: any of an interval, a box, a mark in the middle and dots, all along one axis."""

    name: str
    value: float | None
    interval: tuple[float, float] | None = None
    box: tuple[float, float] | None = None
    dot: float | None = None
    note: str = ""
    colour: int = 0


def points_of(points: Iterable[Mapping[str, Any]], x: str, y: str) -> list[Point]:
    """Of a record's points those that have a value of the key `y`."""
    return [Point(x=number(point[x]), y=number(point[y])) for point in points if point[y] is not None]


class Charts:
    """Makes the charts of one page: their ids are told apart."""

    def __init__(self) -> None:
        self._ids = count(1)

    def lines(self, title: str, series: Sequence[Series], *, x: Axis, y: Axis, note: str = "") -> Element | None:
        """Lines over an axis, with intervals where points have some; None without a point.

        Parameters
        ----------
        title
            What is shown.
        series
            Lines, in the legend's order; empty ones are left out.
        note
            Words below the chart.
        """
        held = [_positive(each, x, y) for each in series]
        drawn = [(at, each) for at, each in enumerate(held) if each.points]
        if not drawn:
            return None
        name = f"chart-{next(self._ids)}"
        svg = _svg(name, title, _told_lines(drawn, x, y), _HEIGHT, _draw_lines([each for _, each in drawn], x, y))
        shown = [(_swatch(_look(nth, each), each.is_bound), each.name) for nth, (_, each) in enumerate(drawn)]
        legend = tag("ul", *(tag("li", swatch, told) for swatch, told in shown), class_="legend")
        places = sorted({point.x for _, each in drawn for point in each.points})
        rows = [[x.told(place), *(_told_at(each, place, y) for _, each in drawn)] for place in places]
        figures = table([x.label, *(each.name for _, each in drawn)], rows, caption=f"{title}: {y.label}")
        return _figure(title, svg, figures, legend, note)

    def rows(
        self, title: str, rows: Sequence[Row], *, axis: Axis, columns: Sequence[str] = (), is_bar: bool = False,
        reference: float | None = None, note: str = "",
    ) -> Element | None:  # fmt: skip
        """Marks or bars in rows, each below its name; None without a row that has a value.

        Parameters
        ----------
        columns
            Headings of the table: name, value, and what interval, box and dot are, as far as any row has them.
        is_bar
            Bars from 0 on, in place of marks.
        reference
            A value that is drawn through all rows.
        """
        drawn = [row for row in rows if row.value is not None and (row.value > 0 or not axis.is_log)]
        if not drawn:
            return None
        name = f"chart-{next(self._ids)}"
        height = _ROWS_TOP + len(drawn) * _ROW_UNITS + _BOTTOM
        told = "; ".join(f"{row.name}: {axis.told(row.value)}" for row in drawn)
        marks = _draw_rows(drawn, axis, height, is_bar=is_bar, reference=reference)
        svg = _svg(name, title, f"{axis.label}. {told}", height, marks)
        cells = [_row_cells(row, axis, rows) for row in rows]
        figures = table(list(columns) or ["", axis.label], cells, caption=title)
        return _figure(title, svg, figures, None, note)


def _positive(series: Series, x: Axis, y: Axis) -> Series:
    """Without points that a logarithmic axis has no place for."""
    kept = [point for point in series.points if (point.x > 0 or not x.is_log) and (point.y > 0 or not y.is_log)]
    return replace(series, points=sorted(kept, key=lambda point: point.x))


def _figure(title: str, svg: Element, figures: Element, legend: Element | None, note: str) -> Element:
    folded = tag("details", tag("summary", "The same as a table"), figures)
    words = tag("p", note, class_="note") if note else None
    return tag("figure", tag("figcaption", title), svg, legend, words, folded)


def _svg(name: str, title: str, told: str, height: float, marks: Sequence[Element]) -> Element:
    return tag(
        "svg", tag("title", title, id=f"{name}-title"), tag("desc", told, id=f"{name}-desc"), *marks,
        viewBox=f"0 0 {_WIDTH:.0f} {height:.0f}", role="img", aria_labelledby=f"{name}-title {name}-desc",
    )  # fmt: skip


def _told_lines(drawn: Sequence[tuple[int, Series]], x: Axis, y: Axis) -> str:
    told = [
        f"{each.name}: {y.told(each.points[0].y)} at {x.told(each.points[0].x)}"
        + (f" to {y.told(each.points[-1].y)} at {x.told(each.points[-1].x)}" if len(each.points) > 1 else "")
        for _, each in drawn
    ]
    return f"{y.label} over {x.label}. {'; '.join(told)}"


def _told_at(series: Series, place: float, y: Axis) -> str:
    found = [point for point in series.points if point.x == place]
    if not found:
        return MISSING
    told = y.told(found[0].y)
    if found[0].low is None or found[0].high is None:
        return told
    return f"{told} ({y.told(found[0].low)} to {y.told(found[0].high)})"


def _draw_lines(series: Sequence[Series], x: Axis, y: Axis) -> list[Element]:
    points = [point for each in series for point in each.points]
    ends = [end for point in points for end in (point.low, point.high) if end is not None]
    across = x.scale([point.x for point in points], _LEFT + 8, _WIDTH - _RIGHT - 8, from_zero=False)
    up = y.scale([*(point.y for point in points), *ends], _HEIGHT - _BOTTOM, _TOP, from_zero=not y.is_log)
    marks = _grid(across, up, x, y)
    for nth, each in enumerate(series):
        marks.append(_line(_look(nth, each), each, across, up))
    return marks


def _grid(across: Scale, up: Scale, x: Axis, y: Axis) -> list[Element]:
    marks = [tag("text", y.label, x=6, y=14, class_="label")]
    for value in y.marks(up):
        at = up.at(value)
        marks.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, class_="gridline"))
        marks.append(tag("text", y.spell(value), x=_LEFT - 6, y=at + 4, class_="end"))
    floor = _HEIGHT - _BOTTOM
    marks.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=floor, y2=floor, class_="axis"))
    for value in spaced(x.marks(across), across, x.spell):
        at = across.at(value)
        marks.append(tag("line", x1=at, x2=at, y1=floor, y2=floor + 4, class_="axis"))
        marks.append(tag("text", x.spell(value), x=at, y=floor + 17, class_="middle"))
    marks.append(tag("text", x.label, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 8, class_="middle label"))
    return marks


def _line(nth: int, series: Series, across: Scale, up: Scale) -> Element:
    places = [(across.at(point.x), up.at(point.y)) for point in series.points]
    path = "M" + "L".join(f"{left:.1f} {top:.1f}" for left, top in places)
    parts = [_stroke(path, nth, is_bound=series.is_bound)]
    for point, (left, top) in zip(series.points, places, strict=True):
        if point.low is not None and point.high is not None:
            parts.append(tag("path", d=f"M{left:.1f} {up.at(point.low):.1f}V{up.at(point.high):.1f}", class_="whisker"))
        parts.append(_mark(nth, left, top))
    return tag("g", *parts, class_=f"series c{nth % N_COLOURS}")


def _look(nth: int, series: Series) -> int:
    return nth if series.look is None else series.look


def _stroke(path: str, nth: int, *, is_bound: bool) -> Element:
    stroke = tag("path", d=path, class_="stroke bound" if is_bound else "stroke")
    dash = _DASHES[(nth + nth // N_COLOURS) % len(_DASHES)]
    if dash:
        stroke.set("stroke-dasharray", dash)
    return stroke


def _mark(nth: int, left: float, top: float) -> Element:
    """A mark of the series' own form, by moves from its middle."""
    r = _MARK_UNITS
    forms = (
        f"m{-r} 0a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        f"m{-r} {-r}h{2 * r}v{2 * r}h{-2 * r}z",
        f"m0 {-r - 1}l{r + 1} {2 * r}h{-2 * r - 2}z",
        f"m0 {-r - 1}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z",
        f"m0 {r + 1}l{r + 1} {-2 * r}h{-2 * r - 2}z",
        f"m{-r} {-r}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}",
        f"m{-r - 1} 0h{2 * r + 2}m{-r - 1} {-r - 1}v{2 * r + 2}",
        f"m{-r} {-r}v{2 * r}m{r} 0v{-2 * r}m{r} 0v{2 * r}",
    )
    form = nth % len(forms)
    return tag("path", d=f"M{left:.1f} {top:.1f}{forms[form]}", class_="mark open" if form > 4 else "mark")


def _swatch(nth: int, is_bound: bool) -> Element:
    inside = tag(
        "g", _stroke("M2 8H34", nth, is_bound=is_bound), _mark(nth, 18, 8), class_=f"series c{nth % N_COLOURS}"
    )
    return tag("svg", inside, viewBox="0 0 36 16", class_="swatch", aria_hidden="true")


def _draw_rows(
    rows: Sequence[Row], axis: Axis, height: float, *, is_bar: bool, reference: float | None
) -> list[Element]:
    left, right, floor = _EDGE, _WIDTH - _EDGE, height - _BOTTOM
    values = [value for row in rows for value in _values(row) if value > 0 or not axis.is_log]
    along = axis.scale([*values, *([] if reference is None else [reference])], left, right, from_zero=not axis.is_log)
    marks = []
    for value in spaced(axis.marks(along), along, axis.spell):
        at = along.at(value)
        marks.append(tag("line", x1=at, x2=at, y1=_ROWS_TOP, y2=floor + 4, class_="gridline"))
        marks.append(tag("text", axis.spell(value), x=at, y=floor + 17, class_="middle"))
    if reference is not None:
        at = along.at(reference)
        marks.append(tag("line", x1=at, x2=at, y1=_ROWS_TOP, y2=floor, class_="reference"))
    marks.append(tag("text", axis.label, x=_WIDTH / 2, y=height - 8, class_="middle label"))
    for nth, row in enumerate(rows):
        marks.append(_row(row, axis, along, _ROWS_TOP + nth * _ROW_UNITS, is_bar=is_bar))
    return marks


def _row(row: Row, axis: Axis, along: Scale, top: float, *, is_bar: bool) -> Element:
    assert row.value is not None
    middle, at = top + 24, along.at(row.value)
    told = f"{axis.told(row.value)}{f' {row.note}' if row.note else ''}"
    room = max(8, int((_WIDTH - 10) / _LETTER_UNITS) - len(told) - 1)
    # The table below has the whole name.
    name = row.name if len(row.name) <= room else f"{row.name[: room - 1]}…"
    parts = [
        tag("text", name, x=4, y=top + 13, class_="halo"),
        tag("text", told, x=_WIDTH - 4, y=top + 13, class_="end halo strong"),
    ]
    if is_bar:
        width = max(at - along.start, 1.0)
        parts.append(tag("rect", x=along.start, y=middle - 5, width=width, height=11.0, class_="fill"))
    if row.interval is not None:
        low, high = map(along.at, row.interval)
        parts.append(tag("path", d=f"M{low:.1f} {middle}H{high:.1f}", class_="whisker"))
    if row.box is not None:
        low, high = map(along.at, row.box)
        parts.append(tag("rect", x=low, y=middle - 5, width=max(high - low, 1.0), height=10.0, class_="box"))
    if not is_bar:
        parts.append(tag("path", d=f"M{at:.1f} {middle - 7}v14", class_="stroke"))
    if row.dot is not None:
        dot = _mark(0, along.at(row.dot), middle)
        dot.set("class", "dot")
        parts.append(dot)
    return tag("g", *parts, class_=f"series c{row.colour % N_COLOURS}")


def _values(row: Row) -> list[float]:
    ends = [*(row.interval or ()), *(row.box or ()), row.value, row.dot]
    return [value for value in ends if value is not None]


def _row_cells(row: Row, axis: Axis, rows: Sequence[Row]) -> list[Child]:
    cells: list[Child] = [row.name, f"{axis.told(row.value)}{f' {row.note}' if row.note else ''}"]
    if any(other.interval is not None for other in rows):
        cells.append(_span(row.interval, axis))
    if any(other.box is not None for other in rows):
        cells.append(_span(row.box, axis))
    if any(other.dot is not None for other in rows):
        cells.append(axis.told(row.dot))
    return cells


def _span(ends: tuple[float, float] | None, axis: Axis) -> str:
    return MISSING if ends is None else f"{axis.told(ends[0])} to {axis.told(ends[1])}"
