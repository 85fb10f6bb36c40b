"""`engram inspect ngram`: what the n-grams of texts are to a table."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import emit, progress, say, show
from engram_cli.inspected import HotListFile, TablePath, counts_if, finite, plural, searched_text
from engram_cli.options import JsonFlag, VocabFile
from engram_tables.units import parse_integers

if TYPE_CHECKING:
    from engram_tables.inspect.ngram import NgramsReport, NgramView


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
    expects next, from its rows alone. Of n-grams that begin before the text only those at its end are shown; --json has
    all of them.

    With --counts also how often the corpus holds the n-gram, which other n-grams of the corpus own the same row, and
    how much of the row's lookups is the n-gram's own.

    \b
    Examples:
      engram inspect ngram ./table "import numpy as"
      engram inspect ngram ./table "import numpy as" --counts ./counts --last
      engram inspect ngram ./table "import numpy as" "import torch as" "in order to" --counts ./counts
      engram inspect ngram ./table "of the" --orders 2 --json | jq .rows[].row
    """  # fmt: skip
    from engram_cli.commands.inspect_ngram_view import show_beside, show_each
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
        show_beside(report)
    else:
        show_each(report, has_hot_list=hot_list is not None)
    show()
    say(f"read {plural(report.n_rows_read, 'row')}, {report.bytes_read:,} bytes")
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
            "keys_hex": {str(layer_id): f"{key:016x}" for layer_id, key in view.keys.items()},
            "bytes_read": report.bytes_read,
            "n_ngrams_searched": report.n_ngrams_searched,
            "counts_bytes": report.counts_bytes,
        }
    )
    return record
