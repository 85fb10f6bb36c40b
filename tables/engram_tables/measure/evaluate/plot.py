"""A picture of a record: accuracy by the number of heads that are read, beside exact back-off. It draws, and judges
nothing.

matplotlib is imported here, when a picture is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_tables.files import new_file
from engram_tables.measure.offload.plot import check_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = {"top_1": "#0072b2", "top_5": "#d55e00"}
_ORDER_COLOURS = ("#009e73", "#cc79a7", "#b08900", "#1a1d21", "#0072b2")
_INCHES = (6.0, 4.2)


def write_plot(path: Path, record: Mapping[str, Any], *, force: bool = False) -> None:
    """Draw an `engram.evaluate/1`: all orders with back-off, raw and canonical, and each order alone.

    Raises
    ------
    InvalidInput, BackendUnavailable
        As `check_plot`.
    """
    check_plot(path, force=force)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "engram"}):
        figure = Figure(figsize=(3 * _INCHES[0], _INCHES[1]), layout="constrained")
        axes = figure.subplots(1, 3)
        table, sample = record["table"], record["sample"]
        figure.suptitle(
            f"{table['path']}: rows of {table['row_width']} values in {table['codec']}; {sample['n_positions']:,} "
            f"positions of {', '.join(record['corpus']['paths'])}",
            x=0.01, ha="left", fontsize=10,
        )  # fmt: skip
        for axis, way in zip(axes, ("raw", "canonical"), strict=False):
            _draw_back_off(axis, record, way)
        _draw_orders(axes[2], record)
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    with new_file(path, force=force) as file:
        file.write(content.getvalue())


def _draw_back_off(axes: Axes, record: Mapping[str, Any], way: str) -> None:
    _prepare(axes, f"all orders with back-off, {way}", record)
    for top, colour in _COLOURS.items():
        figures = [of_heads[top][way] for of_heads in record["heads"]]
        _line(axes, record, figures, f"table, {top.replace('_', '-')}", colour)
        if record["exact"] is not None:
            axes.axhline(
                record["exact"][top][way]["value"], color=colour, linestyle=":", linewidth=1.2,
                label=f"exact, {top.replace('_', '-')}",
            )  # fmt: skip
    axes.legend(fontsize=7, frameon=False)


def _draw_orders(axes: Axes, record: Mapping[str, Any]) -> None:
    among = "of_known" if record["exact"] is None else "of_seen"
    _prepare(axes, f"each order alone where it is {among[3:]}, top-1, raw", record)
    for nth, order in enumerate(record["table"]["orders"]):
        colour = _ORDER_COLOURS[nth % len(_ORDER_COLOURS)]
        figures = [
            of["top_1"]["raw"] for of_heads in record["heads"] for of in [_order(of_heads["orders"], order)[among]]
        ]
        _line(axes, record, figures, f"order {order}", colour)
        if record["exact"] is not None:
            value = _order(record["exact"]["orders"], order)["of_seen"]["top_1"]["raw"]["value"]
            if value is not None:
                axes.axhline(value, color=colour, linestyle=":", linewidth=1.2, label=f"exact, order {order}")
    axes.legend(fontsize=7, frameon=False)


def _order(orders: list[dict[str, Any]], order: int) -> dict[str, Any]:
    return next(of for of in orders if of["order"] == order)


def _prepare(axes: Axes, title: str, record: Mapping[str, Any]) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set(xlabel="heads read", ylabel="share right", xticks=[of_heads["n_heads"] for of_heads in record["heads"]])
    axes.set_ylim(0, 1)
    axes.grid(visible=True, which="major", color="#dfe2e6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes: Axes, record: Mapping[str, Any], figures: list[dict[str, Any]], label: str, colour: str) -> None:
    points = [
        (of_heads["n_heads"], figure) for of_heads, figure in zip(record["heads"], figures, strict=True)
        if figure["value"] is not None
    ]  # fmt: skip
    axes.errorbar(
        [n_heads for n_heads, _ in points], [figure["value"] for _, figure in points],
        yerr=[figure["high"] - figure["value"] if figure["high"] is not None else 0.0 for _, figure in points],
        label=label, color=colour, linewidth=1.5, marker="o", markersize=3,
    )  # fmt: skip
