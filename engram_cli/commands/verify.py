"""`engram verify`: every byte of a table against its manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from engram_cli.console import check_found, emit, progress, show, show_table
from engram_cli.options import JsonFlag, Threads
from engram_tables.errors import InvalidInput


def verify(
    table: Annotated[Path, typer.Argument(help="Directory of a table, a token store or counts.")],
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, metavar="N", help="Read N blocks, chosen at random, not all.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the blocks of --sample.")] = 0,
    threads: Threads = None,
    json: JsonFlag = False,
) -> None:
    """Read a table's blocks and compare their SHA-256 with the manifest; token stores and counts are read whole.

    Every byte of every shard is covered: headers, records and the spare bytes of the page layout. Exit code 6 means
    that damage was found, and the output says in which bytes and rows; 4 that the directory does not open as a table.

    \b
    Examples:
      engram verify my-table
      engram verify my-table --sample 100 --seed 7
      engram verify my-table --json | jq .damaged
      engram verify tokens
      engram verify counts
    """
    if _verify_corpus(table, threads=threads, json=json):
        return
    from engram_tables.storage.verify import verify_table
    from engram_tables.units import format_bytes

    with progress("verifying", "B") as hook:
        report = verify_table(table, sample=sample, seed=seed, threads=threads, progress=hook)
    if json:
        emit({"schema": "engram.verify/1", **dataclasses.asdict(report), "is_whole": report.is_whole})
    else:
        show(f"table    {report.path}")
        show(f"read     {report.n_blocks_read:,} of {report.n_blocks:,} blocks, {format_bytes(report.bytes_read)}")
        show(f"damaged  {len(report.damaged):,}")
        rows = [
            (b.path, b.block_idx, f"{b.start_byte:,}-{b.stop_byte:,}", f"{b.start_row:,}-{b.stop_row:,}", b.found[:16])
            for b in report.damaged
        ]
        if rows:
            show_table("Damaged blocks (ranges without their end)", ("file", "block", "bytes", "rows", "found"), rows)
    if not report.is_whole:
        check_found(
            f"{table}: {len(report.damaged)} of {report.n_blocks_read} blocks differ from their digests; "
            "copy those files again or build the table again"
        )


def _verify_corpus(path: Path, *, threads: int | None, json: bool) -> bool:
    """Verify a token store or counts, if that is what is there; their errors name the damaged file."""
    from engram_tables.corpus.counts.counts_manifest import MANIFEST_NAME
    from engram_tables.corpus.counts.counts_store import open_counts
    from engram_tables.corpus.tokens.token_store import is_token_store, open_tokens

    kind = "token store" if is_token_store(path) else "counts" if (path / MANIFEST_NAME).is_file() else None
    if kind is None:
        return False
    found = None
    try:
        with progress("verifying", "B") as hook:
            if kind == "counts":
                with open_counts(path) as counts:
                    counts.verify()
            else:
                with open_tokens(path) as tokens:
                    tokens.verify(threads=threads, progress=hook)
    except InvalidInput as error:
        found = str(error)
    if json:
        emit({"schema": "engram.verify-corpus/1", "path": str(path), "kind": kind, "damage": found})
    elif found is None:
        show(f"{kind} {path}: every file equals its digest")
    if found is not None:
        check_found(found)
    return True
