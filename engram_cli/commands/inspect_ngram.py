"""`engram inspect ngram`: what the n-grams of texts are to a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import emit, progress, say, show, show_table, show_wrapped
from engram_cli.inspected import (
    HotListFile,
    TablePath,
    counts_if,
    finite,
    join,
    ngram_text,
    pages_text,
    percent,
    searched_text,
)
from engram_cli.options import JsonFlag, VocabFile
from engram_tables.units import parse_integers

if TYPE_CHECKING:
    from engram_tables.inspect.next_tokens import NextToken, NextView
    from engram_tables.inspect.ngram import NgramsReport, NgramView, RowView
    from engram_tables.inspect.tokens import TokenView

_INDENT = 12
_BESIDE = 3
"""N-grams whose next tokens stand side by side in one table."""


def inspect_ngram(
    table: TablePath,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Texts; several are compared, by the n-grams they end with.")
    ],
    counts: Annotated[
        Path | None,
        typer.Option(
            "--counts", metavar="DIR",
            help="Counts of a corpus: occurrences, who shares a row, and with `count --next raw` what follows.",
        ),
    ] = None,
    vocab: VocabFile = None,
    orders: Annotated[str | None, typer.Option("--orders", help="Only these orders.")] = None,
    last: Annotated[
        bool | None,
        typer.Option(
            "--last/--every", help="Only the n-grams that end with a text, or those of every position. Of one text "
            "every one by default, of several the last.", show_default=False,
        ),
    ] = None,
    sharers: Annotated[
        int | None,
        typer.Option("--sharers", min=0, show_default=False, help="Sharers to name per row: 1 by default, 3 in JSON."),
    ] = None,
    next_tokens: Annotated[
        int, typer.Option("--next", min=0, metavar="K", help="Likeliest next tokens of a next-token table.")
    ] = 5,
    hot_list: HotListFile = None,
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """Show what the n-grams of a text are to a table.

    For each n-gram: its tokens and what folds together with them, its key, and for every head the row, the file and
    byte it starts at, its page and the length (norm) of its values. Then what fetching its rows costs now, with and
    without the table's bundles, and which pages are in memory already. A next-token table also says which tokens it
    expects next, from its rows alone.

    With --counts also how often the corpus holds the n-gram, which other n-grams of the corpus own the same row, and
    how much of the row's lookups is the n-gram's own.

    \b
    Examples:
      engram inspect ngram ./table "import numpy as"
      engram inspect ngram ./table "import numpy as" --counts ./counts --last
      engram inspect ngram ./table "import numpy as" "import torch as" "in order to" --counts ./counts
      engram inspect ngram ./table "of the" --orders 2 --json | jq .rows[].row
    """  # fmt: skip
    from engram_tables import load_vocabulary, open_table
    from engram_tables.fetch.tiers.hot_list import read_hot_list
    from engram_tables.inspect.ngram import Asked, inspect_texts

    began = time.monotonic()
    asked = Asked(
        orders=None if orders is None else parse_integers(orders),
        last_only=len(texts) > 1 if last is None else last,
        n_sharers=(3 if json else 1) if sharers is None else sharers,
        n_next=next_tokens,
    )
    with open_table(table) as opened, counts_if(counts) as counted, progress("searching", "n-grams") as hook:
        report = inspect_texts(
            opened,
            texts,
            counts=counted,
            vocabulary=None if vocab is None else load_vocabulary(vocab),
            hot_list=None if hot_list is None else read_hot_list(hot_list),
            asked=asked,
            progress=hook,
        )
    if json:
        for view in report.ngrams:
            emit(_record(report, view))
        return
    if len(texts) > 1:
        _show_beside(report)
    else:
        for view in report.ngrams:
            _show_ngram(view, has_hot_list=hot_list is not None)
    say(f"read {report.n_rows_read:,} rows, {report.bytes_read:,} bytes")
    if counts is None:
        say("with --counts DIR (from `engram count`): how often each occurs, and which n-grams share its rows")
    else:
        say(searched_text(report.n_ngrams_searched, report.counts_bytes, time.monotonic() - began))


def _record(report: NgramsReport, view: NgramView) -> dict[str, Any]:
    record: dict[str, Any] = finite(
        {
            "schema": "engram.inspect-ngram/1",
            **asdict(view),
            "keys": {str(layer_id): str(key) for layer_id, key in view.keys.items()},
            "bytes_read": report.bytes_read,
            "n_ngrams_searched": report.n_ngrams_searched,
            "counts_bytes": report.counts_bytes,
        }
    )
    return record


def _show_ngram(view: NgramView, *, has_hot_list: bool) -> None:
    show(f"position {view.position}, order {view.order}: {_spell_all(view)}")
    for token in view.tokens:
        if token.token_id is None:
            show(f"  (out of sight)  canonical {token.canonical_id}, the fill")
            continue
        others = ", ".join(repr(text) for text in token.folds_with)
        more = token.n_folded - 1 - len(token.folds_with)
        folds = f"; also {others}{f' and {more} more' if more > 0 else ''}" if others else ""
        show_wrapped(
            f"  {token.text!r}  token {token.token_id}, canonical {token.canonical_id} {token.form!r}{folds}".lstrip(),
            head="  ", indent=2,
        )  # fmt: skip
    show("  key " + ", ".join(f"{key:016x} in layer {layer_id}" for layer_id, key in view.keys.items()))
    if view.occurrences is not None:
        show(f"  occurs {view.occurrences:,} times in the corpus")
    elif any(token.token_id is None for token in view.tokens):
        show("  begins before the text, so it is not counted")
    _show_fetch(view)
    for said in view.next_tokens:
        _show_next(said)
    _show_rows(view, has_hot_list=has_hot_list)


def _spell_all(view: NgramView) -> str:
    return "".join(_spell(token) for token in view.tokens)


def _spell(token: TokenView) -> str:
    return "‹fill›" if token.token_id is None else f"[{token.text}]".replace("\n", "\\n")


def _show_fetch(view: NgramView) -> None:
    cost, bundled = view.fetch.rows, view.fetch.bundled
    if not cost.n_reads:
        _line("to fetch", "nothing: none of its rows is here")
        return
    reads = f"{cost.n_reads:,} read{'s' * (cost.n_reads != 1)}"
    _line("to fetch", f"{reads}, {cost.n_bytes:,} bytes in {pages_text(cost)}")
    if bundled is None or view.fetch.bundles is None:
        return
    if view.fetch.bundles:
        _line("bundle", f"of layer {join(view.fetch.bundles)}, so {bundled.n_reads:,} reads: {bundled.n_bytes:,} bytes "
              f"in {pages_text(bundled)}")  # fmt: skip
    else:
        _line("bundle", "none: this n-gram is not among those whose rows lie together")


def _show_next(said: NextView) -> None:
    has_counts = said.n_counted is not None
    counted = f"; the corpus has {said.n_distinct:,} different ones after it" if has_counts else ""
    show_wrapped(f"next tokens by the rows of layer {said.layer_id}{counted}", head="  ", indent=2)
    columns = ("next token", "token id", "rows say", "agree", "sure", *(("counted",) if has_counts else ()))
    show_table("", columns, [_next_cells(token, has_counts=has_counts) for token in said.tokens])
    show_wrapped("rows say: how often it follows, estimated from these rows alone (-: not among their likeliest); "
                 "agree: share of the token's places in these rows that speak for it; sure: whether that is more than "
                 "chance gives; counted: how often it followed in the corpus", head="  ", indent=2)  # fmt: skip


def _next_cells(token: NextToken, *, has_counts: bool) -> list[str]:
    return [
        "‹end of document›" if token.token_id is None else repr(token.text),
        "-" if token.token_id is None else str(token.token_id),
        "-" if token.estimate is None else f"{token.estimate:,.1f}",
        percent(token.agreement, 0),
        "" if token.is_convincing is None else "yes" if token.is_convincing else "guess",
        *([f"{token.counted:,}"] if has_counts and token.counted is not None else []),
    ]


def _show_rows(view: NgramView, *, has_hot_list: bool) -> None:
    header = ["layer", "head", "row", "shard", "offset", "page", "norm", *(["hot list"] if has_hot_list else [])]
    show_table("", header, [cells for row in view.rows for cells in _row_cells(row, has_hot_list=has_hot_list)], left=0)
    if view.rows[0].n_sharers is None:
        return
    cells = [
        [
            row.layer_id,
            row.head,
            f"{row.n_lookups or 0:,}",
            percent(row.own_share),
            f"{row.n_sharers or 0:,}",
            _named(row),
        ]
        for row in view.rows
    ]
    show("  who else owns these rows")
    show_table("", ["layer", "head", "lookups", "its own", "others", "row shared with"], cells,
               left=0)  # fmt: skip
    show_wrapped("lookups: times that the corpus looks the row up, for whatever n-gram; its own: the part of them that "
                 "is this n-gram's; others: further n-grams that own the row", head="  ", indent=2)  # fmt: skip


def _row_cells(row: RowView, *, has_hot_list: bool) -> list[list[object]]:
    """A line of the table for each part of the record."""
    places: list[tuple[str, str, str]] = [
        (
            part.file,
            f"{part.offset:,}",
            str(part.first_page) if part.n_pages == 1 else f"{part.first_page}-{part.first_page + part.n_pages - 1}",
        )
        for part in row.parts
    ] or [("not here", "", "")]
    norm = "" if row.norm is None else f"{row.norm:.4g}"
    hot = ["-" if row.hot is None else f"rank {row.hot.rank:,}"] if has_hot_list else []
    first: list[object] = [row.layer_id, row.head, f"{row.row:,}", *places[0], norm, *hot]
    rest: list[list[object]] = [[*[""] * 3, *place, *[""] * (1 + has_hot_list)] for place in places[1:]]
    return [first, *rest]


def _named(row: RowView) -> str:
    named = ", ".join(f"{ngram_text(s.forms, most=30)} ({s.occurrences:,}×)" for s in row.sharers)
    more = (row.n_sharers or 0) - len(row.sharers)
    return (named + (f" and {more:,} more" if more and named else "")) or ("nobody" if not row.n_sharers else "-")


def _show_beside(report: NgramsReport) -> None:
    """A line for each n-gram, and the next tokens of several beside one another."""
    views = report.ngrams
    has_counts = any(view.occurrences is not None for view in views)
    has_bundles = any(view.fetch.bundles is not None for view in views)
    header = ["n-gram", "order", *(["occurs", "its own"] if has_counts else []), "norm", "reads",
              *(["bundled"] if has_bundles else []), "pages", "in memory"]  # fmt: skip
    cells = [_beside_cells(view, has_counts=has_counts, has_bundles=has_bundles) for view in views]
    show_table("", header, cells)
    legend = {
        "its own": "share of its rows' lookups that is the n-gram's own, in the middle of its rows (median)",
        "norm": "length of its rows' values, in the middle of its rows (median)",
        "reads": "reads that fetch all its rows, one by one",
        "bundled": "reads with the table's bundles, which keep rows of frequent n-grams together",
        "pages": "4096-byte pages that hold the rows, and how many of them are in memory now",
    }
    for name, text in legend.items():
        if name in header:
            show_wrapped(text, head=f"  {name}", indent=_INDENT)
    followed = [view for view in views if view.next_tokens]
    for order in sorted({view.order for view in followed}):
        of_order = [view for view in followed if view.order == order]
        for first in range(0, len(of_order), _BESIDE):
            _show_next_beside(order, of_order[first : first + _BESIDE])


def _beside_cells(view: NgramView, *, has_counts: bool, has_bundles: bool) -> list[str]:
    from statistics import median

    cost, bundled = view.fetch.rows, view.fetch.bundled
    norms = [row.norm for row in view.rows if row.norm is not None]
    own = [row.own_share for row in view.rows if row.own_share is not None]
    return [
        _spell_all(view)[:40],
        str(view.order),
        *([f"{view.occurrences:,}" if view.occurrences is not None else "-", percent(median(own) if own else None)]
          if has_counts else []),
        f"{median(norms):.4g}" if norms else "-",
        f"{cost.n_reads:,}",
        *([f"{bundled.n_reads:,}" if bundled is not None else "-"] if has_bundles else []),
        f"{cost.n_pages:,}",
        "-" if cost.n_resident_pages is None else f"{cost.n_resident_pages:,}",
    ]  # fmt: skip


def _show_next_beside(order: int, views: Sequence[NgramView]) -> None:
    show()
    # A heading's brackets would be read as markup.
    columns = [_spell_all(view)[-26:].replace("[", r"\[") for view in views]
    said = [view.next_tokens[0].tokens for view in views]
    rows = [
        [_short_next(tokens[place]) if place < len(tokens) else "" for tokens in said]
        for place in range(max(map(len, said)))
    ]
    layer_id = views[0].next_tokens[0].layer_id
    counted = " / how often it was counted" if any(token.counted is not None for of in said for token in of) else ""
    title = (
        f"next tokens, order {order}, layer {layer_id}: how often the rows say (?: no more than chance gives){counted}"
    )
    show_wrapped(title, indent=2)
    show_table("", columns, rows, left=len(columns))


def _short_next(token: NextToken) -> str:
    name = "‹end›" if token.token_id is None else repr(token.text)
    estimate = "-" if token.estimate is None else f"{token.estimate:,.1f}"
    estimate += "" if token.is_convincing is not False else "?"
    return f"{name}  {estimate}" + ("" if token.counted is None else f" / {token.counted:,}")


def _line(head: str, text: str) -> None:
    show_wrapped(text, head=f"  {head}", indent=_INDENT)
