"""`engram inspect`: n-grams, tables and vocabularies."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.console import emit, say, show, show_table
from engram_cli.options import JsonFlag, VocabFile
from engram_tables.units import format_bytes, parse_integers

if TYPE_CHECKING:
    from engram_tables.inspect.ngram import NgramView, RowView, TokenView

TablePath = Annotated[Path, typer.Argument(metavar="TABLE", help="The table's directory.")]


def inspect_ngram(
    table: TablePath,
    text: Annotated[str, typer.Argument(help="Text; every n-gram that ends at each of its positions is shown.")],
    counts: Annotated[
        Path | None,
        typer.Option("--counts", metavar="DIR", help="Counts of a corpus: occurrences, and who shares a row."),
    ] = None,
    vocab: VocabFile = None,
    orders: Annotated[str | None, typer.Option("--orders", help="Only these orders.")] = None,
    last: Annotated[bool, typer.Option("--last", help="Only the n-grams that end with the text.")] = False,
    sharers: Annotated[int, typer.Option("--sharers", min=0, help="Sharers to name per row.")] = 3,
    json: JsonFlag = False,
) -> None:
    """Show what the n-grams of a text are to a table.

    For each n-gram: its tokens, what folds together with them, its key, and for every head the row, the file and byte
    it starts at, its page and the norm of its values. With --counts also how often the corpus holds the n-gram and
    which other n-grams of the corpus own the same row.

    \b
    Examples:
      engram inspect ngram ./table "import numpy as"
      engram inspect ngram ./table "import numpy as" --counts ./counts --last
      engram inspect ngram ./table "of the" --orders 2 --json | jq .rows[].row
    """
    from engram_tables import load_vocabulary, open_table
    from engram_tables.corpus.counts.counts_store import open_counts
    from engram_tables.inspect.ngram import inspect_ngrams

    with open_table(table) as opened:
        views = inspect_ngrams(
            opened,
            text,
            counts=None if counts is None else open_counts(counts),
            vocabulary=None if vocab is None else load_vocabulary(vocab),
            orders=None if orders is None else parse_integers(orders),
            last_only=last,
            n_sharers=sharers,
        )
    if json:
        for view in views:
            keys = {str(layer_id): str(key) for layer_id, key in view.keys.items()}
            rows = [{**asdict(row), "norm": row.norm if isfinite(row.norm) else None} for row in view.rows]
            emit({"schema": "engram.inspect-ngram/1", **asdict(view), "keys": keys, "rows": rows})
        return
    for view in views:
        _show_ngram(view)
    if counts is None:
        say("with --counts DIR (from `engram count`): how often each occurs, and which n-grams share its rows")


def _show_ngram(view: NgramView) -> None:
    show(f"position {view.position}, order {view.order}: {''.join(_spell(token) for token in view.tokens)}")
    for token in view.tokens:
        if token.token_id is None:
            show(f"  (out of sight)  canonical {token.canonical_id}, the fill")
            continue
        others = ", ".join(repr(text) for text in token.folds_with)
        more = token.n_folded - 1 - len(token.folds_with)
        folds = f"; also {others}{f' and {more} more' if more > 0 else ''}" if others else ""
        show(f"  {token.text!r}  token {token.token_id}, canonical {token.canonical_id} {token.form!r}{folds}")
    show("  key " + ", ".join(f"{key:016x} in layer {layer_id}" for layer_id, key in view.keys.items()))
    if view.occurrences is not None:
        show(f"  occurs {view.occurrences:,} times in the corpus")
    elif any(token.token_id is None for token in view.tokens):
        show("  begins before the text, so it is not counted")
    counted = view.rows[0].n_sharers is not None
    header = (
        "layer",
        "head",
        "row",
        "shard",
        "offset",
        "page",
        "norm",
        *(("row shared with",) if counted else ()),
    )
    show_table("", header, [_row_cells(row) for row in view.rows], left=0)


def _spell(token: TokenView) -> str:
    return "‹fill›" if token.token_id is None else f"[{token.text}]".replace("\n", "\\n")


def _row_cells(row: RowView) -> tuple[object, ...]:
    pages = str(row.first_page) if row.n_pages == 1 else f"{row.first_page}-{row.first_page + row.n_pages - 1}"
    cells = (row.layer_id, row.head, f"{row.row:,}", row.shard, f"{row.offset:,}", pages, f"{row.norm:.4g}")
    if row.n_sharers is None:
        return cells
    named = ", ".join(f"{' '.join(map(repr, s.forms))} ({s.occurrences:,}×)" for s in row.sharers)
    more = row.n_sharers - len(row.sharers)
    return (*cells, (named + (f" and {more:,} more" if more else "")) or "nobody")


def inspect_table(table: TablePath, json: JsonFlag = False) -> None:
    """Show what a table is: addressing, codec, layout, sizes and shards. No row is read.

    \b
    Examples:
      engram inspect table ./table
      engram inspect table ./table --json | jq .file_bytes
    """
    from engram_tables import open_table
    from engram_tables.inspect.table import inspect_table as facts_of

    with open_table(table) as opened:
        facts = facts_of(opened)
    if json:
        emit(facts)
        return
    show(f"name            {facts['name']} ({facts['provenance']})")
    show(f"fingerprint     {facts['fingerprint']}")
    show(f"vocabulary      {facts['vocab_sha256'] or 'none inside'}")
    show(f"orders          {', '.join(map(str, facts['orders']))}, heads {', '.join(map(str, facts['heads']))}")
    show(f"rows            {facts['n_rows']:,} of {facts['row_width']} values")
    show(f"record          {facts['row_bytes']} bytes, codec {facts['codec']}, layout {facts['layout']}")
    show(f"a token reads   {facts['rows_per_token']} rows, {facts['bytes_per_token']:,} bytes")
    show(f"files           {format_bytes(facts['file_bytes'])}")
    rows = [
        (
            shard["path"],
            layer["layer_id"],
            f"{shard['first_row']:,}",
            f"{shard['n_rows']:,}",
            f"{shard['file_bytes']:,}",
        )
        for layer in facts["layers"]
        for shard in layer["shards"]
    ]
    show_table("Shards", ("file", "layer", "first row", "rows", "bytes"), rows)


def inspect_vocab(
    vocab: Annotated[Path, typer.Argument(metavar="VOCAB", help="A vocabulary file, or a table that holds one.")],
    text: Annotated[str | None, typer.Option("--text", help="Show every token of this text.")] = None,
    token_id: Annotated[str | None, typer.Option("--token-id", help="Show these token ids.")] = None,
    canonical_id: Annotated[str | None, typer.Option("--canonical-id", help="Show these canonical ids.")] = None,
    groups: Annotated[
        int, typer.Option("--groups", min=0, help="Largest merged groups, if nothing is asked for.")
    ] = 20,
    json: JsonFlag = False,
) -> None:
    """Show what folds together in a vocabulary.

    \b
    Examples:
      engram inspect vocab v4.vocab.parquet --text "The THE the"
      engram inspect vocab ./table --canonical-id 237
    """
    from engram_tables import load_vocabulary
    from engram_tables.inspect.vocabulary import inspect_vocabulary
    from engram_tables.storage.layout import VOCABULARY_NAME

    vocabulary = load_vocabulary(vocab / VOCABULARY_NAME if vocab.is_dir() else vocab)
    canonical_ids = [] if canonical_id is None else parse_integers(canonical_id)
    token_ids = [] if token_id is None else parse_integers(token_id)
    if text is None and not token_ids and not canonical_ids:
        canonical_ids = [group.canonical_id for group in vocabulary.largest_groups(groups)]
        if json:
            emit(vocabulary.header())
        else:
            show(f"{vocabulary.source}, rule {vocabulary.rule}: {vocabulary.token_count:,} token ids, "
                 f"{vocabulary.n_classes:,} canonical ids, map SHA-256 {vocabulary.map_sha256}")  # fmt: skip
    records = inspect_vocabulary(vocabulary, text=text, token_ids=token_ids, canonical_ids=canonical_ids)
    if json:
        for record in records:
            emit(record)
        return
    rows = [
        (
            "" if record["token_id"] is None else f"{record['token_id']} {record['text']!r}",
            record["canonical_id"],
            repr(record["form"]),
            len(record["members"]),
            " ".join(repr(member[1]) for member in record["members"][:12]),
        )
        for record in records
    ]
    show_table("", ("token", "canonical id", "form", "tokens", "some of them"), rows, left=5)
