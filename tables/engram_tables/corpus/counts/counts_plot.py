"""A picture of counts: rank against frequency and counts of counts with their power laws, as SVG or an HTML page.

Owns the drawing. Knows the statistics of `counts_stats` and no counts on disk. matplotlib is imported here and nowhere
else. Equal statistics give equal bytes for one release of matplotlib: no date, no random ids.
"""

from __future__ import annotations

import html
import importlib.util
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.counts_stats import CountsOfCounts, OrderStatistics
from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.files import new_file, refuse_existing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_SUFFIXES = (".svg", ".html")
POINTS_PER_DECADE = 40
"""Ranks drawn of each order: a line's bytes do not grow with the n-grams."""
BINS_PER_DECADE = 8

_EXACT_COUNTS = 10
"""Counts drawn one by one in the counts of counts; larger ones, where n-grams grow rare, are binned."""
_INK, _MUTED, _GRID, _PAPER = "#1a1d21", "#5c636b", "#dfe2e6", "#fefefe"
# Okabe and Ito's colours, told apart by colour-blind readers too; orders beyond the fifth begin again.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b08900")
_MARKERS = ("o", "s", "^", "D", "v")
_DARK = {
    _INK: "#e8eaed", _MUTED: "#a3abb5", _GRID: "#33383e", _PAPER: "#15181b",
    "#0072b2": "#4ba6e0", "#d55e00": "#f08a4b", "#009e73": "#2fc49b", "#cc79a7": "#dd9bc0", "#b08900": "#d9b44a",
}  # fmt: skip
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "engram",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "text.color": _INK,
}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_FALLBACK_FONTS = "'DejaVu Sans', Verdana, system-ui, sans-serif"

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


def check_plot(path: Path, *, force: bool = False) -> None:
    """Raise what `write_plot` would raise, before the counts are read.

    Raises
    ------
    InvalidInput
        Neither .svg nor .html, or `path` is taken and `force` is not set.
    BackendUnavailable
        matplotlib is not installed.
    """
    if path.suffix not in PLOT_SUFFIXES:
        raise InvalidInput(
            f"{path}: found the ending {path.suffix!r}, expected {' or '.join(PLOT_SUFFIXES)}; name a plot by one of "
            "these"
        )
    refuse_existing(path, force=force)
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendUnavailable(
            f"{path}: found no matplotlib, expected it for drawing; pip install 'engram-tables[report]'"
        )


def write_plot(path: Path, statistics: Sequence[OrderStatistics], *, title: str, force: bool = False) -> None:
    """Draw the statistics of some orders: .svg is dark on white, .html one page that follows the reader's dark mode.

    Parameters
    ----------
    title
        Names the counts.

    Raises
    ------
    InvalidInput, BackendUnavailable
        As `check_plot`.
    """
    check_plot(path, force=force)
    svg = draw_svg(statistics, title=title)
    content = svg if path.suffix == ".svg" else _page(svg, statistics, title=title)
    with new_file(path, force=force) as file:
        file.write(content.encode())


def draw_svg(statistics: Sequence[OrderStatistics], *, title: str) -> str:
    """The picture as the text of one SVG file, which names no other file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(11.5, 5.6), facecolor=_PAPER, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
        left, right = figure.subplots(1, 2)
        _draw_ranks(left, statistics)
        _draw_counts(right, statistics)
        handles = [
            Line2D([], [], color=_COLOURS[at], marker=_MARKERS[at], markersize=5, linewidth=1.8, label=_label(order))
            for at, order in _with_style(statistics)
        ]
        if handles:
            figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # The document type and the metadata name other places, and nothing needs them.
    svg = re.sub(r"\s*<metadata>.*?</metadata>|<!DOCTYPE.*?>\s*", "", buffer.getvalue(), flags=re.DOTALL)
    return svg.replace("'DejaVu Sans'", _FALLBACK_FONTS)


def _draw_ranks(axes: Axes, statistics: Sequence[OrderStatistics]) -> None:
    _prepare(
        axes,
        "Rank and frequency (dashed: power law, from the ring upwards)",
        "rank of the n-gram",
        "occurrences of the n-gram",
    )
    for at, order in _with_style(statistics):
        if not order.n_distinct:
            continue
        ranks = sampled_ranks(order.n_distinct)
        counts = order.counts_of_counts.count_at(ranks)
        colour = _COLOURS[at]
        axes.plot(ranks, counts, color=colour, linewidth=1.8, solid_joinstyle="round")
        law = order.power_law
        if law is not None:
            along = _along(law.xmin, order.max_count)
            axes.plot(law.n_from(along), along, color=colour, linewidth=1.1, linestyle=(0, (4, 2)), zorder=3)
            axes.plot([law.n_tail], [law.xmin], "o", color=colour, markersize=4.5, markerfacecolor=_PAPER, zorder=4)


def _draw_counts(axes: Axes, statistics: Sequence[OrderStatistics]) -> None:
    _prepare(
        axes,
        "Counts of counts (dashed: power law)",
        "occurrences x",
        "n-grams that occur x times (mean over a bin of x)",
    )
    lowest = 1.0
    for at, order in _with_style(statistics):
        if not order.n_distinct:
            continue
        colour, marker = _COLOURS[at], _MARKERS[at]
        counts, n_ngrams = binned_counts(order.counts_of_counts)
        lowest = min(lowest, float(n_ngrams.min()))
        axes.plot(counts, n_ngrams, marker, color=colour, markersize=3.6, alpha=0.9, markeredgewidth=0)
        law = order.power_law
        if law is not None:
            along = _along(law.xmin, order.max_count)
            axes.plot(along, law.n_at(along), color=colour, linewidth=1.1, linestyle=(0, (4, 2)), zorder=3)
    # A law goes on falling where no n-gram is left to be drawn beside it.
    axes.set_ylim(bottom=lowest / 3)


def _with_style(statistics: Sequence[OrderStatistics]) -> list[tuple[int, OrderStatistics]]:
    """Each order and the position of its colour and marker, the same in every picture."""
    return [((order.order - 1) % len(_COLOURS), order) for order in statistics]


def _prepare(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, facecolor=_PAPER)
    axes.xaxis.set_major_formatter(_tick_label)
    axes.yaxis.set_major_formatter(_tick_label)
    axes.grid(visible=True, which="major", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.minorticks_off()


def _tick_label(value: float, _: object) -> str:
    """10⁵ as characters: matplotlib would set it as a formula, which takes longer than all else in the picture."""
    exponent = round(np.log10(value))
    return f"10{str(exponent).translate(_RAISED)}" if np.isclose(value, 10.0**exponent) else f"{value:,g}"


def _label(order: OrderStatistics) -> str:
    law = order.power_law
    name = f"order {order.order}: {order.n_distinct:,} n-grams, {order.n_total:,} occurrences"
    if law is None:
        return f"{name}; no power law"
    return (
        f"{name}; law from {law.xmin:,} occurrences on: rank exponent s = {law.rank_exponent:.3f}, "
        f"α = {law.alpha:.3f}, distance {law.ks_distance:.4f}, {law.verdict}"
    )


def sampled_ranks(n_ngrams: int) -> I64:
    """Ranks from 1 to `n_ngrams`, both among them, spaced evenly in their logarithm: `POINTS_PER_DECADE`."""
    n_points = 2 + int(POINTS_PER_DECADE * np.log10(n_ngrams))
    return np.unique(np.round(np.geomspace(1, n_ngrams, n_points)).astype(np.int64))


def binned_counts(counts_of_counts: CountsOfCounts) -> tuple[F64, F64]:
    """Counts and mean number of n-grams that occur so often: one by one at first, then bins of growing width.

    The mean is over all whole numbers of a bin, those that no n-gram has among them; empty bins are left out.
    A bin stands at the geometric mean of its ends.
    """
    counts, n_ngrams = counts_of_counts.counts, counts_of_counts.n_ngrams
    decades = np.log10(max(counts_of_counts.max_count + 1, _EXACT_COUNTS + 1) / _EXACT_COUNTS)
    wide = np.geomspace(_EXACT_COUNTS, _EXACT_COUNTS * 10**decades, 2 + int(BINS_PER_DECADE * decades))
    edges = np.unique(np.concatenate([np.arange(1, _EXACT_COUNTS + 1), np.round(wide).astype(np.int64)]))
    edges[-1] = max(int(edges[-1]), counts_of_counts.max_count + 1)
    held = np.concatenate([[0], np.cumsum(n_ngrams)])[np.searchsorted(counts, edges)]
    starts, stops, found = edges[:-1], edges[1:], np.diff(held)
    some = found > 0
    return np.sqrt(starts[some] * (stops[some] - 1.0)), (found / (stops - starts))[some]


def _along(start: int, stop: int) -> F64:
    """Counts from `start` to `stop` to draw a law along."""
    return np.geomspace(start, max(stop, start), 2 + int(16 * np.log10(max(stop, start) / start)))


def _page(svg: str, statistics: Sequence[OrderStatistics], *, title: str) -> str:
    """One HTML file: the picture, and its figures as a table for those who cannot see it."""
    picture = svg[svg.index("<svg") :]
    for colour in _DARK:
        picture = picture.replace(colour, f"var(--c{colour[1:]})")
    picture = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img" aria-labelledby="title"', picture, count=1)
    light = " ".join(f"--c{colour[1:]}: {colour};" for colour in _DARK)
    dark = " ".join(f"--c{colour[1:]}: {other};" for colour, other in _DARK.items())
    name = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n"
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"body {{ margin: 2rem auto; max-width: 76rem; padding: 0 1rem; font: 16px/1.5 {_FALLBACK_FONTS}; "
        f"color: var(--c{_INK[1:]}); background: var(--c{_PAPER[1:]}); }}\n"
        "svg { width: 100%; height: auto; }\n"
        "div { overflow-x: auto; }\n"
        "table { border-collapse: collapse; font-size: 0.8rem; font-variant-numeric: tabular-nums; }\n"
        f"th, td {{ padding: 0.3rem 0.5rem; text-align: right; border-bottom: 1px solid var(--c{_GRID[1:]}); "
        "white-space: nowrap; }\n"
        "h1 { position: absolute; clip-path: inset(50%); }\n"
        f'</style>\n</head>\n<body>\n<h1 id="title">{name}</h1>\n{picture}\n<div>\n{_figures(statistics)}</div>\n'
        "</body>\n</html>\n"
    )


def _figures(statistics: Sequence[OrderStatistics]) -> str:
    header = ("order", "n-grams", "occurrences", "mean", "largest", "once", "unseen mass",
              *(f"hold {c.percent} %" for c in (statistics[0].coverage if statistics else ())),
              "s", "α", "from", "distance", "fit")  # fmt: skip
    lines = ["<table>", "<tr>" + "".join(f"<th>{cell}</th>" for cell in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in _cells(order)) + "</tr>" for order in statistics]
    return "\n".join([*lines, "</table>", ""])


def _cells(order: OrderStatistics) -> list[str]:
    law = order.power_law
    return [
        str(order.order),
        f"{order.n_distinct:,}",
        f"{order.n_total:,}",
        _or_dash(order.mean_count, ",.2f"),
        f"{order.max_count:,}",
        _or_dash(order.n_singletons, ","),
        _or_dash(order.unseen_mass, ".5f"),
        *(_or_dash(coverage.n_ngrams, ",") for coverage in order.coverage),
        *(
            ("–",) * 5
            if law is None
            else (
                f"{law.rank_exponent:.3f}",
                f"{law.alpha:.3f}",
                f"{law.xmin:,}",
                f"{law.ks_distance:.4f}",
                str(law.verdict),
            )
        ),
    ]


def _or_dash(value: Any, form: str) -> str:
    return "–" if value is None else format(value, form)
