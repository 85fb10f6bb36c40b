"""Cold reads of 264-byte rows by the direct engine against fio's io_uring at depth 64, on the same file in turn.

    python -m benchmarks.cold [--size 4GiB] [--repeats 5] [--seconds 2] [--directory DIR] [--record FILE]

Timed: `Table.fetch_rows` of 65,536 uniform rows into a buffer that has been written before. The bytes are compared
with a slow reading first. Direct reads do not fill the page cache; what was resident is measured all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import Table, open_table
from engram_tables.measure.ceilings import fio_random_reads
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.residency import evict
from engram_tables.measure.timing import Case, interleave
from engram_tables.storage.writer import build_table, plan_table
from engram_tables.units import parse_bytes

BATCH_ROWS = 65_536
GOAL = 0.8


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, 5 without fio, or 6 if the bytes are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_bytes, default=parse_bytes("4GiB"), help="bytes of rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each fio run")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where the file is made; a disk, no tmpfs")
    parser.add_argument("--threads", type=int, help="of the direct engine; its default is 64")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        path = Path(scratch) / "table"
        build_table(
            plan_table(
                one_layer(options.size // 264),
                codec="fp8-e4m3-e8m0",
                layout="packed",
                init="normal",
                shard_bytes=2 * options.size,
            ),
            path,
        )
        with open_table(path) as table:
            record = measure(table, options)
    if record["status"] != "measured":
        print(f"{record['status']}: {record['reason']}", file=sys.stderr)
        return 6 if record["status"] == "mismatch" else 5
    show(record)
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def one_layer(n_rows: int) -> AddressSpec:
    """A spec of one order and one head with `n_rows` rows of 256 values."""
    layer = LayerAddressing(layer_id=0, multipliers=(1, 3), moduli=((n_rows,),), offsets=(0,), n_rows=n_rows)
    return AddressSpec(
        name="cold-benchmark", provenance="benchmarks/cold.py", canonical_size=1 << 20,
        history=HistoryRule(fill_id=0), orders=(2,),
        layers=(layer,), row_width=256,
    )  # fmt: skip


def measure(table: Table, options: argparse.Namespace) -> dict[str, Any]:
    """fio and the engine, one after the other, `repeats` times."""
    shard = table.stored.shards[0]
    rng = np.random.default_rng()
    rows = rng.integers(0, shard.n_rows, 4096)
    found = table.fetch_rows(0, rows, engine="direct", threads=options.threads)
    if not np.array_equal(found, read_rows(table.stored, 0, rows)):
        return {"status": "mismatch", "reason": "the engine's bytes differ from a slow reading; nothing was timed"}
    left = evict([shard.path])
    out = np.full((BATCH_ROWS, table.row_bytes), 1, np.uint8)
    fio: list[dict[str, Any]] = []

    def by_fio() -> Any:
        fio.append(fio_random_reads(shard.path, seconds=options.seconds))
        return rng.integers(0, shard.n_rows, BATCH_ROWS)

    def read(rows: Any) -> None:
        table.fetch_rows(0, rows, out, engine="direct", threads=options.threads)

    samples = interleave({"direct": Case(prepare=by_fio, run=read)}, repeats=options.repeats, warm_ups=1)["direct"]
    if any(run["status"] != "measured" for run in fio):
        return next(run for run in fio if run["status"] != "measured")
    # The first fio run warmed up beside the engine.
    fio_reads_per_s = [run["reads_per_s"] for run in fio[1:]]
    rows_per_s = [BATCH_ROWS * 1e9 / elapsed_ns for elapsed_ns in samples.elapsed_ns]
    return {
        "schema": "engram.benchmark-cold/1",
        "status": "measured",
        "command": command_line(),
        "environment": describe(shard.path),
        "file_bytes": shard.file_bytes,
        "resident_bytes_before": left,
        "rows_per_batch": BATCH_ROWS,
        "fio": {"command": fio[0]["command"], "reads_per_s": fio_reads_per_s},
        "direct": {
            "rows_per_s": rows_per_s,
            "cpu_us_per_row": sum(samples.cpu_ns) / len(samples.cpu_ns) / BATCH_ROWS / 1e3,
            **samples.summary(),
        },
        "ratio": float(np.median([ours / theirs for ours, theirs in zip(rows_per_s, fio_reads_per_s, strict=True)])),
        "ratio_goal": GOAL,
    }


def show(record: dict[str, Any]) -> None:
    """The record on a terminal."""
    print(f"{record['file_bytes']:,} bytes, {record['resident_bytes_before']:,} of them in memory before")
    for name, figures in (
        ("fio io_uring 4 KiB, depth 64", record["fio"]["reads_per_s"]),
        ("direct engine, 264-byte rows", record["direct"]["rows_per_s"]),
    ):
        print(f"  {name}: {np.median(figures):10,.0f} a second ({min(figures):,.0f} to {max(figures):,.0f})")
    cpu_us = record["direct"]["cpu_us_per_row"]
    print(f"  ratio {record['ratio']:.2f}, the goal is {record['ratio_goal']}; {cpu_us:.1f} µs of CPU a row")


if __name__ == "__main__":
    sys.exit(main())
