"""`engram inspect row`: what a row is, and who hits it."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import HARD_BLANK, emit, progress, say, show, show_table, show_wrapped
from engram_cli.inspected import (
    CountsDir,
    HotListFile,
    TablePath,
    counts_if,
    finite,
    join,
    ngram_text,
    pages_text,
    percent,
    plural,
    searched_text,
    unbroken,
)
from engram_cli.options import JsonFlag, VocabFile

if TYPE_CHECKING:
    from engram_tables.inspect.row import RowReport, RowsReport, ValuesView

_INDENT = 10


def inspect_row(
    table: TablePath,
    layer: Annotated[int, typer.Argument(metavar="LAYER", help="Layer id.")],
    rows: Annotated[list[int], typer.Argument(metavar="ID...", help="Row ids, as `inspect ngram` and `hash` print.")],
    counts: CountsDir = None,
    vocab: VocabFile = None,
    hot_list: HotListFile = None,
    owners: Annotated[int, typer.Option("--owners", min=0, help="N-grams to name for each row.")] = 10,
    json: JsonFlag = False,
) -> None:
    """Show what a row is and who hits it.

    For each row: which n-gram length (order) and head it belongs to, where its bytes lie and whether they are in
    memory, and what its values are. With --counts the n-grams of that corpus whose hash leads to it, the most frequent
    first, each with its share of the row's lookups: a row learns from all of them, so a row of which one n-gram has
    nearly all lookups is nearly that n-gram's own.

    The rows themselves are all that is read of the table; --counts are searched once, for all rows together.

    \b
    Examples:
      engram inspect row ./table 1 1000000
      engram inspect row ./table 1 1000000 2000000 --counts ./counts
      engram inspect row ./table 1 1000000 --counts ./counts --json | jq .owners
    """
    from engram_tables import load_vocabulary, open_table
    from engram_tables.fetch.tiers.hot_list import read_hot_list
    from engram_tables.inspect.row import inspect_rows

    began = time.monotonic()
    with open_table(table) as opened, counts_if(counts) as counted, progress("searching", "n-grams") as hook:
        report = inspect_rows(
            opened,
            layer,
            rows,
            counts=counted,
            vocabulary=None if vocab is None else load_vocabulary(vocab),
            hot_list=None if hot_list is None else read_hot_list(hot_list),
            n_owners=owners,
            progress=hook,
        )
        row_bytes = opened.row_bytes
    if json:
        for row in report.rows:
            emit(_record(report, row))
        return
    for row in report.rows:
        _show_row(report, row, row_bytes)
        if len(row.owners) != (row.n_owners or 0) or not row.owners:
            show()
    say(f"read {report.bytes_read:,} bytes of rows")
    if counts is None:
        say("with --counts DIR (from `engram count`): the n-grams of a corpus that hit the row")
    else:
        say(searched_text(report.n_ngrams_searched, report.counts_bytes, time.monotonic() - began))
    if report.missing_orders:
        say(f"n-grams of order {join(report.missing_orders)} were not counted, so those that hit the row are not known")


def _record(report: RowsReport, row: RowReport) -> dict[str, Any]:
    found: dict[str, Any] = finite(
        {
            "schema": "engram.inspect-row/1",
            **asdict(row),
            "heads": [head._asdict() for head in row.heads],
            "bytes_read": report.bytes_read,
            "n_ngrams_searched": report.n_ngrams_searched,
            "counts_bytes": report.counts_bytes,
            "missing_orders": list(report.missing_orders),
        }
    )
    return found


def _show_row(report: RowsReport, row: RowReport, row_bytes: int) -> None:
    show(f"row {row.row:,} of layer {row.layer_id}")
    for head in row.heads:
        _line("hit by", f"n-grams of {head.order} tokens (order {head.order}), by head {head.head}: its row "
              f"{head.row_in_head:,} of {head.n_rows:,}")  # fmt: skip
    if not row.heads:
        _line("hit by", "nobody: it is padding behind the rows of the last head")
    for part in row.parts:
        what = "" if part.part == "records" else f"{part.part}: "
        _line("lies", f"{what}{part.n_bytes} bytes at byte {part.offset:,} of {part.file}")
    if row.cost is None:
        _line("lies", "not here: another rank holds it")
    else:
        _line("to read", f"{plural(row.cost.n_reads, 'read')} of {pages_text(row.cost)}")
    if row.values is not None:
        _show_values(row.values)
    elif row.cost is not None:
        _line("values", f"not shown: no codec here decodes these {row_bytes} bytes")
    if report.has_hot_list:
        _line("hot list", "not in it" if row.hot is None else f"rank {row.hot.rank:,}, weight {row.hot.weight:,.6g}; "
              f"kept by a tier that keeps {row.hot.pinned_bytes:,} bytes or more for good")  # fmt: skip
    if row.tokens_per_value is not None and row.values is not None and row.values.norm:
        _show_next(row, row.tokens_per_value)
    if row.n_owners is not None:
        _show_owners(row)


def _show_values(values: ValuesView) -> None:
    first = " ".join(f"{value:.4g}" for value in values.first)
    more = " …" if values.width > len(values.first) else ""
    _line("values", f"{values.width}, length (Euclidean norm) {values.norm:.5g}, largest {values.largest:.4g}; "
          f"the first {len(values.first)}: {first}{more}")  # fmt: skip
    if values.n_not_finite:
        _line("", f"{values.n_not_finite} of them are NaN or infinite")
    if values.n_zero == values.width:
        _line("", "all of them are zero")
    if values.scales:
        low, high = min(values.scales), max(values.scales)
        spread = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        _line("scales", f"{len(values.scales)}, each of a part of the values: {spread}")


def _show_next(row: RowReport, tokens_per_value: float) -> None:
    named = ", ".join(
        f"{unbroken(token.text)} {token.counted:,} (here ~{token.value:,.0f})".replace(" (", f"{HARD_BLANK}(")
        for token in row.next_tokens
    )
    if named:
        _line("next", f"its n-grams were followed by {named}")
    _line("" if named else "next", f"a value here counts any of some {tokens_per_value:,.0f} tokens: which, only the "
          "rows of all heads together say (`engram inspect ngram`)")  # fmt: skip


def _show_owners(row: RowReport) -> None:
    if not row.n_owners or row.n_lookups is None:
        _line("owners", "no n-gram of the corpus hits this row")
        return
    heaviest = row.owners[0].share if row.owners else None
    first = f"; the first makes {percent(heaviest)} of them" if heaviest is not None and row.n_owners > 1 else ""
    _line("owners", f"{plural(row.n_owners, 'n-gram')} of the corpus, {plural(row.n_lookups, 'lookup')}{first}")
    is_shared = len(row.heads) > 1
    is_bundled = any(owner.in_bundle is not None for owner in row.owners)
    before, behind = (["order", "head"] if is_shared else []), (["bundle"] if is_bundled else [])
    header = [*before, "n-gram", "occurs", "of the row", *behind]
    cells = []
    for owner in row.owners:
        home = [str(owner.order), str(owner.head)] if is_shared else []
        bundle = ["yes" if owner.in_bundle else "no"] if is_bundled else []
        text = ngram_text(owner.forms, most=56)
        cells.append([*home, text, f"{owner.occurrences:,}", percent(owner.share), *bundle])
    if cells:
        show_table("", header, cells, left=3 if is_shared else 1)
    if row.n_owners > len(row.owners):
        _line("", f"and {row.n_owners - len(row.owners):,} more; --owners N shows more of them")


def _line(head: str, text: str) -> None:
    show_wrapped(text, head=f"  {head}", indent=_INDENT + 2)
