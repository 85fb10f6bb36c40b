"""How `engram inspect` and `evaluate` spell what they have in common: n-grams, shares, legends, JSON without NaN."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import HARD_BLANK, show_table, show_wrapped
from engram_tables.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engram_tables.corpus.counts.counts_store import Counts
    from engram_tables.inspect.row_places import ReadCost

TablePath = Annotated[
    str, typer.Argument(metavar="TABLE", help="A table's directory, or a checkpoint read where it lies.")
]
SubjectPlace = Annotated[
    str,
    typer.Argument(
        metavar="TABLE|SPEC", help="A table, a checkpoint, a spec's .json or .npz, or a preset: whose hash to look at."
    ),
]
CountsDir = Annotated[
    Path | None,
    typer.Option("--counts", metavar="DIR", help="N-gram counts of a corpus, made by `engram count`."),
]
HotListFile = Annotated[
    Path | None,
    typer.Option("--hot-list", metavar="FILE", help="A hot list of `engram simulate --hot-list`: is the row in it?"),
]
OnlyOrders = Annotated[str | None, typer.Option("--orders", metavar="N,N", help="Only n-grams of these lengths.")]
OnlyLayers = Annotated[str | None, typer.Option("--layers", metavar="IDS", help="Only these layers.")]

_MOST_WIDE = 40


@contextmanager
def counts_if(counts: Path | None) -> Iterator[Counts | None]:
    """Open counts for a block, or none."""
    if counts is None:
        yield None
        return
    from engram_tables.corpus.counts.counts_store import open_counts

    with open_counts(counts) as opened:
        yield opened


def ngram_text(forms: Sequence[str], *, most: int | None = _MOST_WIDE) -> str:
    """The tokens or forms of an n-gram in quotes, cut at the end where they are long."""
    text = " ".join(map(repr, forms))
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def unbroken(text: str) -> str:
    """In quotes, and never broken by `show_wrapped`."""
    return repr(text).replace(" ", HARD_BLANK)


def plural(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def show_ending_in_words(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table of figures, flush right, whose last column holds words, flush left."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    padded = [
        [*(cell.rjust(width) for cell, width in zip(cells[:-1], widths, strict=False)), cells[-1]]
        for cells in (header, *lines)
    ]
    show_table("", padded[0], padded[1:], left=len(header))


def show_legend(entries: Mapping[str, str]) -> None:
    """What the words of the lines above mean, a paragraph each."""
    indent = max(12, *(len(name) + 4 for name in entries)) if entries else 0
    for name, text in entries.items():
        show_wrapped(text, head=f"  {name}", indent=indent)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as per cent; a dash for None, and never 0 or 100 for what is merely close."""
    if share is None:
        return "-"
    text = f"{100 * share:.{digits}f}"
    if share > 0 and float(text) == 0:
        return f"<{10**-digits:.{digits}f} %"
    if share < 1 and float(text) == 100:
        return f">{100 - 10**-digits:.{digits}f} %"
    return f"{text} %"


def pages_text(cost: ReadCost) -> str:
    """`3 pages, 1 of them in memory`."""
    pages = plural(cost.n_pages, "page")
    if cost.n_resident_pages is None:
        return f"{pages}, not known whether in memory"
    if cost.n_resident_pages == cost.n_pages:
        return f"{pages}, {'all ' if cost.n_pages > 1 else ''}in memory"
    return f"{pages}, {cost.n_resident_pages or 'none'} of them in memory" if cost.n_pages > 1 else f"{pages}, on disk"


def searched_text(n_ngrams: int, counts_bytes: int, seconds: float) -> str:
    """What a search of counts cost."""
    return f"searched {n_ngrams:,} counted n-grams ({format_bytes(counts_bytes)} of counts) in {seconds:.1f} s"


def finite(value: Any) -> Any:
    """JSON values in which NaN and infinities, which JSON lacks, are null."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


def join(numbers: Iterable[object]) -> str:
    """`2, 3, 4`."""
    return ", ".join(map(str, numbers))
