"""A picture of a record: rates and latencies by batch length, and depth sweeps. It draws, and measures nothing.

matplotlib is imported here, when a picture is asked for.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.files import new_file, refuse_existing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_SUFFIXES = (".svg", ".png", ".pdf")
# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b08900", "#56b4e9", "#1a1d21", "#5c636b")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_INCHES = (6.0, 4.2)


def check_plot(path: Path, *, force: bool = False) -> None:
    """Raise what `write_plot` would raise, before anything is measured.

    Raises
    ------
    InvalidInput
        An ending other than `PLOT_SUFFIXES`, or `path` is taken and `force` is not set.
    BackendUnavailable
        matplotlib is not installed.
    """
    if path.suffix not in PLOT_SUFFIXES:
        raise InvalidInput(
            f"{path}: found the ending {path.suffix!r}, expected {' or '.join(PLOT_SUFFIXES)}; name a plot by one of "
            "these"
        )
    refuse_existing(path, force=force)
    try:
        found = importlib.util.find_spec("matplotlib")
    except ValueError:
        found = None
    if found is None:
        raise BackendUnavailable(
            f"{path}: found no matplotlib, expected it for drawing; pip install 'engram-tables[report]'"
        )


def write_plot(path: Path, record: Mapping[str, Any], *, force: bool = False) -> None:
    """Draw an `engram.bench-offload/2`: a row for each measured section, and one for depth sweeps.

    Raises
    ------
    InvalidInput, BackendUnavailable
        As `check_plot`.
    """
    check_plot(path, force=force)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    sections = [section for section in record["sections"] if section["status"] == "measured"]
    sweeps = dict(_sweeps(record))
    n_rows = len(sections) + bool(sweeps) or 1
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "engram"}):
        figure = Figure(figsize=(2 * _INCHES[0], n_rows * _INCHES[1]), layout="constrained")
        axes = figure.subplots(n_rows, 2, squeeze=False)
        figure.suptitle(f"{record['table']['path']}: rows of {record['table']['row_bytes']} bytes", x=0.01, ha="left")
        for (left, right), section in zip(axes, sections, strict=False):
            _draw_section(left, right, section, record["traces"][0]["name"])
        if sweeps:
            _draw_sweeps(axes[len(sections)], sweeps)
        elif not sections:
            for axis in axes.flat:
                axis.text(0.5, 0.5, "nothing could be measured here", ha="center")
        content = io.BytesIO()
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(content, format=path.suffix[1:], metadata=metadata)
    with new_file(path, force=force) as file:
        file.write(content.getvalue())


def _draw_section(left: Axes, right: Axes, section: Mapping[str, Any], main: str) -> None:
    where = f"{section['source']}, {section['state']}"
    _prepare(left, f"{where}: rows a second", "rows a batch", "rows/s")
    _prepare(right, f"{where}: time of a batch (dots: 99 %)", "rows a batch", "µs")
    for nth, (name, points) in enumerate(_lines(section, main)):
        style: dict[str, Any] = {
            "color": _COLOURS[nth % len(_COLOURS)],
            "marker": _MARKERS[nth % len(_MARKERS)],
            "markersize": 4,
        }
        rows = [point["rows_per_batch"] for point in points]
        dashes = "-" if points[0]["trace"] == main else ":"
        left.plot(rows, [point["rows_per_s"] for point in points], dashes, label=name, linewidth=1.5, **style)
        right.plot(rows, [point["batch_p50_us"] for point in points], dashes, linewidth=1.5, **style)
        told = [point for point in points if point["batch_p99_us"] is not None]
        right.plot(
            [point["rows_per_batch"] for point in told], [point["batch_p99_us"] for point in told], ".",
            color=style["color"], alpha=0.6,
        )  # fmt: skip
    left.legend(fontsize=7, frameon=False)


def _draw_sweeps(axes: Any, sweeps: Mapping[str, Mapping[str, Any]]) -> None:
    left, right = axes
    _prepare(left, "cold rows of the table by depth", "reads in flight", "rows/s")
    _prepare(right, "random 4 KiB reads by depth", "reads in flight", "reads/s")
    for axis, key in ((left, "rows_per_s"), (right, "reads_per_s")):
        held = [(name, sweep["points"]) for name, sweep in sweeps.items() if key in sweep["points"][0]]
        for nth, (name, points) in enumerate(held):
            axis.plot(
                [point["depth"] for point in points], [point[key] for point in points], label=name,
                color=_COLOURS[nth % len(_COLOURS)], marker=_MARKERS[nth % len(_MARKERS)], markersize=4,
            )  # fmt: skip
        if held:
            axis.legend(fontsize=7, frameon=False)


def _lines(section: Mapping[str, Any], main: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Points of one line each: an engine and a number of streams, and the bounds."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for point in section["points"]:
        streams = f", {point['streams']} streams" if point["streams"] > 1 else ""
        name = f"{point['engine']}{streams}" if point["trace"] == main else f"bound: {point['trace']} rows"
        lines.setdefault(name, []).append(point)
    return iter(lines.items())


def _sweeps(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for sweep in record["depths"]:
        if sweep["status"] == "measured":
            yield sweep["engine"], sweep
    disk = record["ceilings"].get("disk") or {}
    if disk.get("status") == "measured":
        yield "4 KiB by threads", disk["threads"]
        for sweep in disk["engines"]:
            if sweep["status"] == "measured":
                yield f"4 KiB by {sweep['engine']}", sweep


def _prepare(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.grid(visible=True, which="major", color="#dfe2e6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
