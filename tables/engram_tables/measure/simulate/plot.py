"""A picture of a record: hit ratios by size, a panel for each way of fetching. It draws, and simulates nothing.

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
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b08900", "#1a1d21")
_INCHES = (6.0, 4.2)
_RUN_KEYS = ("unit", "layout", "n_streams", "tokens_a_step", "is_prefill")


def write_plot(path: Path, record: Mapping[str, Any], *, force: bool = False) -> None:
    """Draw an `engram.simulate/1`: the cold state left, the steady one right.

    Raises
    ------
    InvalidInput, BackendUnavailable
        As `check_plot`.
    """
    check_plot(path, force=force)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    runs = record["runs"]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "engram"}):
        figure = Figure(figsize=(2 * _INCHES[0], len(runs) * _INCHES[1]), layout="constrained")
        axes = figure.subplots(len(runs), 2, squeeze=False, sharey=True)
        corpus, verdict = record["corpus"], record["representative"]["verdict"]
        figure.suptitle(
            f"{record['spec']}, {corpus['n_tokens']:,} tokens of {', '.join(corpus['paths'])} ({verdict})",
            x=0.01, ha="left", fontsize=10,
        )  # fmt: skip
        for run, pair in zip(runs, axes, strict=True):
            for axis, state in zip(pair, ("cold", "steady"), strict=True):
                _draw(axis, run, [curve for curve in record["curves"] if _belongs(curve, run, state)], state)
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    with new_file(path, force=force) as file:
        file.write(content.getvalue())


def _belongs(curve: Mapping[str, Any], run: Mapping[str, Any], state: str) -> bool:
    return curve["state"] == state and all(curve[key] == run[key] for key in _RUN_KEYS)


def _draw(axes: Axes, run: Mapping[str, Any], curves: list[Mapping[str, Any]], state: str) -> None:
    step = f"chunks of {run['tokens_a_step']:,}" if run["is_prefill"] else f"{run['tokens_a_step']:,} tokens a step"
    axes.set_title(f"{run['unit']}s, {run['n_streams']} streams, {step}, {state}", loc="left", fontsize=9)
    axes.set(xscale="log", xlabel="bytes of cache", ylabel="hit ratio")
    axes.set_ylim(0, 1)
    axes.grid(visible=True, which="major", color="#dfe2e6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    for nth, curve in enumerate(curves):
        points = [point for point in curve["points"] if point["hit_ratio"] is not None]
        axes.errorbar(
            [point["cache_bytes"] for point in points], [point["hit_ratio"] for point in points],
            yerr=[point["error"] or 0.0 for point in points], label=curve["policy"], linewidth=1.5, marker="o",
            markersize=3, color=_COLOURS[nth % len(_COLOURS)], linestyle=":" if curve["policy"] == "belady" else "-",
        )  # fmt: skip
    if curves:
        axes.legend(fontsize=7, frameon=False)
