"""The part of `engram build-table` that says what fresh rows hold, and makes them from counted next tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from engram_tables.storage.building.writer import TablePlan

_NEXT_TOKEN = "next-token"

FirstValues = Annotated[
    str | None,
    typer.Option(
        "--init",
        help="First values: normal (the default), zeros, or next-token: what followed each n-gram in a corpus, from "
        "--from-counts.",
    ),
]
FromCounts = Annotated[
    Path | None,
    typer.Option(
        "--from-counts",
        metavar="DIR",
        help="With --init next-token: counts of a corpus, made by `engram count --next raw` with this vocabulary and "
        "the orders of the spec.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Of --init normal and next-token, 0 by default; the same seed gives the same bytes."),
]


def check_next_token(init: str | None, from_counts: Path | None, std: str | None) -> None:
    """Refuse `--init next-token` and `--from-counts` without each other, and what goes with another `--init`."""
    if (init == _NEXT_TOKEN) != (from_counts is not None):
        raise typer.BadParameter("--init next-token and --from-counts go together")
    if from_counts is not None and std is not None:
        raise typer.BadParameter("--std goes only with --init normal")


def next_token_planner(stack: ExitStack, counts: Path, memory_bytes: int) -> Callable[..., TablePlan]:
    """What plans a table of a spec with the next tokens in `counts`, which stay open as long as `stack`."""
    from engram_tables.corpus.counts.counts_store import open_counts
    from engram_tables.storage.building.next_token import plan_next_token

    return partial(plan_next_token, counts=stack.enter_context(open_counts(counts)), memory_bytes=memory_bytes)
