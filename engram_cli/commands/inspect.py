"""`engram inspect`: tables, and the headers of any form of table."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engram_cli.console import check_found, emit, show, show_table, spell_vocabulary
from engram_cli.options import Eos, JsonFlag, Opaque, RawRows, Revision, SpecFile, VocabFile
from engram_cli.raw_rows import parse_raw_rows
from engram_tables.errors import InvalidInput
from engram_tables.units import format_bytes

TablePath = Annotated[
    str, typer.Argument(metavar="TABLE", help="A table's directory, or a checkpoint read where it lies.")
]


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
