"""`engram inspect`: n-grams, tables, vocabularies, and the headers of any form of table."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import check_found, emit, say, show, show_table, spell_vocabulary
from engram_cli.options import Eos, JsonFlag, Opaque, RawRows, Revision, SpecFile, VocabFile
from engram_cli.raw_rows import parse_raw_rows
from engram_tables.errors import InvalidInput
from engram_tables.units import format_bytes, parse_integers

if TYPE_CHECKING:
    from engram_tables.inspect.ngram import NgramView, RowView, TokenView

TablePath = Annotated[
    str, typer.Argument(metavar="TABLE", help="A table's directory, or a checkpoint read where it lies.")
]


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
            rows = [{**asdict(row), "norm": _finite(row.norm)} for row in view.rows]
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
    show_table("", header, [cells for row in view.rows for cells in _row_cells(row)], left=0)


def _spell(token: TokenView) -> str:
    return "‹fill›" if token.token_id is None else f"[{token.text}]".replace("\n", "\\n")


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _row_cells(row: RowView) -> list[tuple[object, ...]]:
    """A line of the table for each part of the record."""
    places = [
        (
            part.file,
            f"{part.offset:,}",
            str(part.first_page) if part.n_pages == 1 else f"{part.first_page}-{part.first_page + part.n_pages - 1}",
        )
        for part in row.parts
    ] or [("not here", "", "")]
    norm = "" if row.norm is None else f"{row.norm:.4g}"
    first: tuple[object, ...] = (row.layer_id, row.head, f"{row.row:,}", *places[0], norm)
    if row.n_sharers is None:
        return [first, *(("", "", "", *place, "") for place in places[1:])]
    named = ", ".join(f"{' '.join(map(repr, s.forms))} ({s.occurrences:,}×)" for s in row.sharers)
    more = row.n_sharers - len(row.sharers)
    shared = (named + (f" and {more:,} more" if more else "")) or "nobody"
    return [(*first, shared), *(("", "", "", *place, "", "") for place in places[1:])]


def inspect_table(table: TablePath, json: JsonFlag = False) -> None:
    """Show what a table or a checkpoint is: addressing, codec, layout, sizes and shards. No row is read.

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
    show(f"vocabulary      {spell_vocabulary(facts)}")
    if not facts["has_digests"]:
        show(f"digests         none: a checkpoint ({facts['form']}) as it lies; `engram build-table` makes them")
    show(f"orders          {', '.join(map(str, facts['orders']))}, heads {', '.join(map(str, facts['heads']))}")
    show(f"rows            {facts['n_rows']:,} of {facts['row_width']} values")
    if facts["rank"] is not None:
        rank = facts["rank"]
        owner = f"rank {rank['rank']} of {rank['n_ranks']} by {rank['by']}"
        show(f"rows here       {facts['n_rows_here']:,} ({owner})")
    elif facts["n_rows_here"] != facts["n_rows"]:
        show(f"rows here       {facts['n_rows_here']:,}")
    layout = "" if facts["layout"] is None else f", layout {facts['layout']}"
    show(f"record          {facts['row_bytes']} bytes, codec {facts['codec']}{layout}")
    if len(facts["parts"]) > 1:
        parts = (f"{part['name']} ({part['n_bytes']} bytes)" for part in facts["parts"])
        show(f"lying apart     {', '.join(parts)}")
    show(f"a token reads   {facts['rows_per_token']} rows, {facts['bytes_per_token']:,} bytes")
    show(f"files           {format_bytes(facts['file_bytes'])}")
    if facts["bundles"] is not None:
        bundles = facts["bundles"]
        show(f"bundles         {bundles['n_bundles']:,}, {format_bytes(bundles['file_bytes'])} in {bundles['path']}")
    rows = [
        (
            shard["path"],
            layer["layer_id"] if len(facts["parts"]) == 1 else f"{layer['layer_id']} {shard['part']}",
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
    from engram_tables.storage.table.layout import VOCABULARY_NAME

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


def inspect_header(
    where: Annotated[
        str, typer.Argument(metavar="WHERE", help="A table, a checkpoint, a .gguf or rows: a path or a URL.")
    ],
    row: Annotated[
        list[str] | None,
        typer.Option("--row", metavar="LAYER:ID", help="Show where this row lies; may be repeated."),
    ] = None,
    spec: SpecFile = None,
    vocab: VocabFile = None,
    eos: Eos = None,
    revision: Revision = None,
    raw: RawRows = None,
    opaque: Opaque = False,
    json: JsonFlag = False,
) -> None:
    """Show what a table, a checkpoint, a GGUF or raw rows hold, from headers alone.

    What is inside, which addressing follows from it and whether the two agree, where rows lie, and how many pages of
    4096 bytes one costs on average. Of files behind a URL only headers are fetched, and the bytes read are shown.
    Exit code 6 means that tensors and addressing contradict each other; where no rows are known the reason is shown
    with the largest tensors, and the exit code is 0.

    \b
    Examples:
      engram inspect header ./table --row 1:1000000
      engram inspect header https://host/model-00047-of-00048.safetensors --json | jq .layers
      engram inspect header rows.bin --spec my.json --raw codec=bf16,row-stride=512
    """
    from engram_tables import load_spec, load_vocabulary
    from engram_tables.inspect.header import Asked
    from engram_tables.inspect.header import inspect_header as header_of

    asked = Asked(
        spec=None if spec is None else load_spec(spec),
        vocabulary=None if vocab is None else load_vocabulary(vocab),
        eos=eos,
        revision=revision,
        raw=parse_raw_rows(raw),
        opaque=opaque,
    )
    record = header_of(where, asked=asked, rows=[_parse_row(text) for text in row or ()])
    if json:
        emit(record)
    else:
        _show_header(record)
    if record["agrees"] is False:
        check_found(record["difference"])


def _parse_row(text: str) -> tuple[int, int]:
    numbers = text.split(":")
    if len(numbers) != 2 or not all(number.isdecimal() and len(number) < 19 for number in numbers):
        raise InvalidInput(f"--row {text!r}: expected a layer and a row, as 1:1000000; write it so")
    return int(numbers[0]), int(numbers[1])


def _show_header(record: dict[str, Any]) -> None:
    n_bytes = sum(file["file_bytes"] for file in record["files"])
    show(f"where        {record['where']}")
    show(f"read         {record['bytes_read']:,} bytes in {record['n_reads']} reads; its files hold {n_bytes:,}")
    if record["spec"] is None:
        if record["agrees"] is False:
            show("agrees       no: what the tensors say contradicts the addressing")
        else:
            show(f"rows         none known: {record['problem']}")
    else:
        spec = record["spec"]
        layout = "" if record["layout"] is None else f", layout {record['layout']}"
        parts = ", ".join(f"{part['n_bytes']} bytes of {part['name']}" for part in record["parts"])
        show(f"form         {record['form']} in {record['container']}{layout}")
        show(f"rows         {record['row_width']} values in {record['row_bytes']} bytes, codec {record['codec']}")
        show(f"a row is     {parts}")
        show(f"addressing   {spec['name']} ({spec['provenance']})")
        show(f"fingerprint  {spec['fingerprint']}")
        here = sum(layer["n_rows_here"] for layer in record["layers"]) * record["row_bytes"]
        whole = sum(layer["n_rows"] for layer in record["layers"]) * record["row_bytes"]
        show(f"all rows     {format_bytes(whole)}{'' if here == whole else f', {format_bytes(here)} of them here'}")
        if record["container"] == "raw":
            show("agrees       as told: rows without a container say nothing of their addressing")
        else:
            show("agrees       yes: what the tensors say is what the addressing derives")
    for note in record["notes"]:
        show(f"note         {note}")
    if record["n_left_out"]:
        show(f"besides      {record['n_left_out']:,} other tensors")
    tensors = [
        (
            _below(file["where"], record),
            t["name"],
            t["dtype"],
            " × ".join(f"{n:,}" for n in t["shape"]),
            f"{t['offset']:,}",
        )
        for file in record["files"]
        for t in file["tensors"]
    ]
    show_table("Tensors", ("file", "tensor", "dtype", "shape", "first byte"), tensors, left=2)
    if record["layers"]:
        layers = [
            (
                layer["layer_id"],
                f"{layer['n_rows']:,}",
                f"{layer['n_rows_here']:,}",
                layer["reads_per_row"],
                _pages(layer),
            )
            for layer in record["layers"]
        ]
        show_table("Layers", ("layer", "rows", "rows here", "reads a row", "pages a row"), layers)
    if record["rows"]:
        places = [
            (r["layer_id"], f"{r['row']:,}", p["part"], _below(p["file"], record), f"{p['offset']:,}", p["n_bytes"],
             p["first_page"], p["n_pages"])
            for r in record["rows"]
            for p in r["parts"]
        ]  # fmt: skip
        header = ("layer", "row", "part", "file", "first byte", "bytes", "first page", "pages")
        show_table("Where rows lie", header, places, left=0)


def _below(where: str, record: dict[str, Any]) -> str:
    """A file's path below the place that was asked about."""
    return where.removeprefix(record["where"]).lstrip("/") or where.rpartition("/")[2]


def _pages(layer: dict[str, Any]) -> str:
    return "" if layer["pages_per_row"] is None else f"{layer['pages_per_row']:.4f}"
