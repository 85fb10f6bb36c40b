"""`engram build-table`: a spec to a table directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import emit, progress, say, show, show_table
from engram_cli.options import DryRun, Eos, Force, JsonFlag, LayerIds, ModelPath, Preset, SpecFile, Threads, VocabFile

if TYPE_CHECKING:
    from engram_tables.storage.writer import TablePlan


def build_table(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory of the table to be.")],
    codec: Annotated[str, typer.Option("--codec", help="How values are stored: f32, bf16 or fp8-e4m3-e8m0.")],
    init: Annotated[str, typer.Option("--init", help="First values: normal or zeros.")] = "normal",
    layout: Annotated[
        str, typer.Option("--layout", help="packed: no gaps between records. page: no record crosses 4096 bytes.")
    ] = "packed",
    preset: Preset = None,
    spec: SpecFile = None,
    model: ModelPath = None,
    eos: Eos = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    seed: Annotated[int, typer.Option("--seed", help="Of --init normal; the same seed gives the same bytes.")] = 0,
    std: Annotated[
        str | None,
        typer.Option(
            "--std", metavar="DECIMAL", help="Standard deviation of --init normal; 1/sqrt(row width) if unset."
        ),
    ] = None,
    row_width: Annotated[
        int | None, typer.Option("--row-width", min=1, help="Values of a row, where the spec does not say.")
    ] = None,
    shard_bytes: Annotated[
        str, typer.Option("--shard-bytes", metavar="SIZE", help="Largest size of one file.")
    ] = "4GiB",
    dry_run: DryRun = False,
    force: Force = False,
    threads: Threads = None,
    json: JsonFlag = False,
) -> None:
    """Build a table: one row for every row id of the spec, in safetensors shards with a manifest.

    The same inputs give the same bytes on any machine and with any --threads, and a row's bytes do not depend on
    --shard-bytes. The directory appears under its name when it is whole. With --vocab the vocabulary is copied into
    the table, and a spec that belongs to another one is refused.

    \b
    Examples:
      engram build-table --preset deepseek-v4.1-flash --codec fp8-e4m3-e8m0 -o flash --dry-run
      engram build-table --spec my.json --vocab v4.vocab.parquet --codec bf16 --layout page -o my-table
      engram build-table --spec my.json --codec f32 --init zeros --row-width 64 --shard-bytes 512MiB -o zeros
    """
    from engram_cli.spec_source import resolve_spec
    from engram_tables.storage import writer
    from engram_tables.units import parse_bytes

    plan = writer.plan_table(
        resolve_spec(preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocab=vocab),
        codec=codec,
        layout=layout,
        init=init,
        seed=seed,
        std=std,
        row_width=row_width,
        shard_bytes=parse_bytes(shard_bytes),
        vocabulary_file=vocab,
    )
    if not dry_run:
        with progress("building", "B") as hook:
            writer.build_table(plan, output, force=force, threads=threads, progress=hook)
    record = _record(plan, output, dry_run=dry_run)
    if json:
        emit(record)
    else:
        _print(record)
    if not dry_run:
        say(f"wrote {output}, {plan.total_bytes:,} bytes")


def _record(plan: TablePlan, output: Path, *, dry_run: bool) -> dict[str, Any]:
    manifest = plan.manifest
    return {
        "schema": "engram.build-table/1",
        "path": str(output),
        "dry_run": dry_run,
        "spec": manifest.spec.name,
        "fingerprint": manifest.spec.fingerprint,
        "vocab_sha256": manifest.spec.vocab_sha256,
        "codec": manifest.codec,
        "layout": manifest.layout,
        "row_width": manifest.row_width,
        "row_bytes": manifest.row_bytes,
        "init": dict(manifest.init),
        "n_rows": plan.n_rows,
        "total_bytes": plan.total_bytes,
        "files": [{"path": file.path, "file_bytes": file.file_bytes} for file in plan.files],
    }


def _print(record: dict[str, Any]) -> None:
    from engram_tables.units import format_bytes

    init = record["init"]
    show(f"table         {record['path']}{' (planned, nothing is written)' if record['dry_run'] else ''}")
    show(f"spec          {record['spec']}, fingerprint {record['fingerprint']}")
    show(f"vocabulary    {record['vocab_sha256'] or 'none'}")
    show(f"rows          {record['n_rows']:,} of {record['row_width']} values, {record['row_bytes']} bytes each")
    show(f"stored        {record['codec']}, layout {record['layout']}")
    show(f"first values  {', '.join(f'{key} {value}' for key, value in init.items())}")
    show(f"in all        {format_bytes(record['total_bytes'])} in {len(record['files'])} files")
    files = [(file["path"], f"{file['file_bytes']:,}") for file in record["files"]]
    show_table("", ("file", "bytes"), files)
