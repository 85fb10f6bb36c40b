"""`engram export`: a table as the files of others."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import emit, progress, say, show, show_table
from engram_cli.options import DryRun, Force, JsonFlag, Threads

if TYPE_CHECKING:
    from engram_tables.storage.export.exporting import ExportPlan


def export(
    tables: Annotated[
        list[Path],
        typer.Argument(metavar="TABLE...", help="A table's directory; those of all ranks, or the one that holds them."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PATH", help="Directory of the files; the file itself with --to gguf-…."
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FORM",
            help="source (the files that the table was made from; the default), deepseek, qwen, mlx, longcat, "
            "engram-peft, raw, gguf-row264 or gguf-q8_0.",
        ),
    ] = None,
    codec: Annotated[
        str | None, typer.Option("--codec", help="Re-encode the rows; by default they stay as they are.")
    ] = None,
    parts: Annotated[
        int, typer.Option("--parts", min=1, metavar="N", help="qwen, mlx: tensors that the table is cut into.")
    ] = 128,
    file_bytes: Annotated[
        str, typer.Option("--file-bytes", metavar="SIZE", help="Begin another file before one passes this size.")
    ] = "5GB",
    row_stride: Annotated[
        int | None,
        typer.Option("--row-stride", min=1, metavar="BYTES", help="raw: from one row to the next, zeros between."),
    ] = None,
    dry_run: DryRun = False,
    force: Force = False,
    threads: Threads = None,
    json: JsonFlag = False,
) -> None:
    """Write a table as the files that other programs read: a checkpoint's layout, GGUF, or raw rows.

    A table that was repacked comes out as the files it was made from, byte for byte where these held nothing else.
    Every form has codecs that it can hold; another one is refused unless --codec re-encodes the rows. The tables of
    several ranks are joined. The output appears under its name when it is whole.

    \b
    Examples:
      engram export ./table -o ./checkpoint
      engram export ./table --to gguf-row264 -o engram.gguf
      engram export ./table --to raw --row-stride 512 -o ./rows
      engram export rank-*/ --to qwen --codec bf16 -o ./checkpoint --dry-run
    """
    from engram_tables.files import refuse_existing
    from engram_tables.storage.export.exporting import export_table, plan_export
    from engram_tables.storage.export.targets import Form
    from engram_tables.storage.table.ranks import with_ranks
    from engram_tables.storage.table.reader import StoredTable
    from engram_tables.units import format_bytes, parse_bytes

    form = Form(n_parts=parts, file_bytes=parse_bytes(file_bytes), row_stride=row_stride)
    with ExitStack() as opened:
        held = []
        for path in with_ranks(tables):
            held.append(StoredTable(path))
            opened.callback(held[-1].close)
        plan = plan_export(held, to=to, codec=codec, form=form)
        record = _record(plan, output, dry_run=dry_run)
        if not dry_run:
            refuse_existing(output, force=force)
        # What is to be written is known before an hour of copying; the record says that it is there.
        if not json:
            _print(record)
        if not dry_run:
            with progress("exporting", "B") as hook:
                export_table(plan, output, force=force, threads=threads, progress=hook)
    if json:
        emit(record)
    if not dry_run:
        say(f"wrote {output}, {format_bytes(plan.total_bytes)}")


def _record(plan: ExportPlan, output: Path, *, dry_run: bool) -> dict[str, Any]:
    return {
        "schema": "engram.export/1",
        "path": str(output),
        "dry_run": dry_run,
        "tables": [str(table.path) for table in plan.tables],
        "form": plan.target,
        "spec": plan.tables[0].spec.name,
        "fingerprint": plan.tables[0].spec.fingerprint,
        "table_codec": plan.tables[0].codec.name,
        "codec": plan.codec.name,
        "n_rows": plan.n_rows,
        "total_bytes": plan.total_bytes,
        "left_out": plan.left_out,
        "files": [
            {
                "path": output.name if plan.is_file else file.name,
                "file_bytes": file.file_bytes,
                "tensors": [
                    {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "offset": offset, "n_bytes": t.n_bytes}
                    for t, offset in file.tensors
                ],
            }
            for file in plan.files
        ],
    }


def _print(record: dict[str, Any]) -> None:
    from engram_tables.units import format_bytes

    codec, table_codec = record["codec"], record["table_codec"]
    show(f"output   {record['path']}{' (planned, nothing is written)' if record['dry_run'] else ''}")
    show(f"form     {record['form']}")
    show(f"spec     {record['spec']}, fingerprint {record['fingerprint']}")
    recoded = "" if codec == table_codec else f", re-encoded from {table_codec}"
    show(f"rows     {record['n_rows']:,} in {codec}{recoded}")
    show(f"in all   {format_bytes(record['total_bytes'])} in {len(record['files'])} files")
    if record["left_out"]:
        show(f"without  {record['left_out']} tensors of the source's files that held no rows")
    tensors = [
        (file["path"], t["name"], t["dtype"], " × ".join(f"{n:,}" for n in t["shape"]), f"{t['n_bytes']:,}")
        for file in record["files"]
        for t in file["tensors"] or [{"name": "", "dtype": "", "shape": [], "n_bytes": file["file_bytes"]}]
    ]
    show_table("", ("file", "tensor", "dtype", "shape", "bytes"), tensors, left=3)
