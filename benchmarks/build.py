"""Building a table against SHA-256 alone, against making the rows alone, and against a plain write of the same bytes.

    python -m benchmarks.build [--directory DIR] [--bytes 1GiB] [--codec fp8-e4m3-e8m0] [--repeats 5] [--record FILE]

Timed: `build_table` from its call to its return, files flushed and directory renamed; for the ceilings the same
number of threads hash, make or write (reserved, flushed) as many bytes, in blocks of the same size. Not timed:
removing what the run before left. Before anything is timed one table is built, every block is verified and rows are
compared with the plain reference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.timing import Case, interleave
from engram_tables.storage.building.initialise import Init, RowFiller
from engram_tables.storage.building.makers import InitMaker
from engram_tables.storage.building.writer import TablePlan, build_table, plan_table
from engram_tables.storage.checking.verify import verify_table
from engram_tables.storage.codecs import reference
from engram_tables.storage.codecs.codec import FRESH_CODEC_NAMES, get_codec
from engram_tables.storage.table.layout import LAYOUT_NAMES
from engram_tables.storage.table.manifest import BLOCK_BYTES
from engram_tables.storage.table.reader import StoredTable
from engram_tables.threads import resolve_threads
from engram_tables.units import format_bytes, parse_bytes

ROW_WIDTH = 256
LAYER_ID = 1


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if the table is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk to write to")
    parser.add_argument("--bytes", type=parse_bytes, default=2**30, help="size of the table")
    parser.add_argument("--codec", choices=FRESH_CODEC_NAMES, default="fp8-e4m3-e8m0")
    parser.add_argument("--layout", choices=LAYOUT_NAMES, default="packed")
    parser.add_argument("--init", choices=("normal", "zeros"), default="normal")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    n_threads = resolve_threads(options.threads)
    plan = make_plan(options.bytes, codec=options.codec, layout=options.layout, init=options.init)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-build-") as directory:
        target = Path(directory) / "table"
        build_table(plan, target, threads=n_threads)
        wrong = find_fault(plan, target)
        if wrong is not None:
            print(f"check failed: {wrong}; nothing was timed", file=sys.stderr)
            return 6
        samples = interleave(cases(plan, target, n_threads), repeats=options.repeats, warm_ups=1)
        environment = describe(Path(directory))
    record = {
        "schema": "engram.benchmark-build/1",
        "command": command_line(),
        "environment": environment,
        "threads": n_threads,
        "codec": options.codec,
        "layout": options.layout,
        "init": init_of(plan).record(),
        "row_bytes": plan.manifest.row_bytes,
        "block_bytes": plan.manifest.block_bytes,
        "total_bytes": plan.total_bytes,
        "cases": {
            name: {"bytes_per_s": plan.total_bytes * 1e9 / found.median_ns, **found.summary()}
            for name, found in samples.items()
        },
    }
    show(record)
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def make_plan(n_bytes: int, *, codec: str, layout: str, init: str) -> TablePlan:
    """A table of one layer with about `n_bytes`."""
    n_rows = max(n_bytes // get_codec(codec).row_bytes(ROW_WIDTH), 2)
    layer = LayerAddressing(
        layer_id=LAYER_ID, multipliers=(1, 3), moduli=((n_rows,),), offsets=(0,), n_rows=n_rows
    )  # fmt: skip
    spec = AddressSpec(
        name="bench", provenance="benchmark", canonical_size=1000, history=HistoryRule(fill_id=2), orders=(2,),
        layers=(layer,),
        row_width=ROW_WIDTH,
    )  # fmt: skip
    return plan_table(spec, codec=codec, layout=layout, init=init)


def init_of(plan: TablePlan) -> Init:
    """The first values of a plan that has them."""
    assert isinstance(plan.maker, InitMaker)
    return plan.maker.init


def find_fault(plan: TablePlan, target: Path) -> str | None:
    """What is wrong with the table, if anything."""
    if not verify_table(target).is_whole:
        return "blocks differ from their digests"
    init, n_rows = init_of(plan), plan.n_rows
    with StoredTable(target) as table:
        rows = np.unique(np.linspace(0, n_rows - 1, 50).astype(np.int64))
        for row, file_idx, offset in zip(rows.tolist(), *table.locate(LAYER_ID, rows), strict=True):
            values = [0.0] * ROW_WIDTH
            if init.std is not None:
                values = [
                    reference.normal_value(init.seed, LAYER_ID, row, column, row_width=ROW_WIDTH, std=init.std)
                    for column in range(ROW_WIDTH)
                ]
            record = table.mapping(int(file_idx))[offset : offset + table.row_bytes]
            if bytes(record) != reference.encode_row(plan.manifest.codec, values):
                return f"row {row} differs from the reference"
    return None


def cases(plan: TablePlan, target: Path, n_threads: int) -> dict[str, Case]:
    """The build and its three ceilings, each over as many bytes."""
    aside = target.with_name("plain")
    n_blocks = -(-plan.total_bytes // BLOCK_BYTES)
    blocks = [np.random.default_rng(k).integers(0, 256, BLOCK_BYTES, np.uint8) for k in range(n_threads)]

    def clear() -> None:
        shutil.rmtree(target, ignore_errors=True)
        aside.unlink(missing_ok=True)

    def over_blocks(work: Callable[[int, int, int], object]) -> None:
        """Call `work(thread, block, bytes of the block)` for every block, spread over the threads."""

        def run(thread: int) -> None:
            for block in range(thread, n_blocks, n_threads):
                work(thread, block, min(BLOCK_BYTES, plan.total_bytes - block * BLOCK_BYTES))

        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(run, range(n_threads)))

    def hash_blocks(_: object) -> None:
        over_blocks(lambda thread, _block, n_bytes: hashlib.sha256(memoryview(blocks[thread])[:n_bytes]).digest())

    row_bytes = plan.manifest.row_bytes
    fillers = [RowFiller(init_of(plan), get_codec(plan.manifest.codec), ROW_WIDTH) for _ in range(n_threads)]
    records = [np.zeros((BLOCK_BYTES // row_bytes, row_bytes), np.uint8) for _ in range(n_threads)]

    def fill_blocks(_: object) -> None:
        def fill(thread: int, block: int, n_bytes: int) -> None:
            fillers[thread].fill(LAYER_ID, block * len(records[0]), records[thread][: n_bytes // row_bytes])

        over_blocks(fill)

    def write_blocks(_: object) -> None:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, plan.total_bytes)
            over_blocks(
                lambda thread, block, n_bytes: os.pwrite(fd, memoryview(blocks[thread])[:n_bytes], block * BLOCK_BYTES)
            )
            os.fsync(fd)
        finally:
            os.close(fd)

    def build(_: object) -> None:
        build_table(plan, target, threads=n_threads)

    return {
        "build": Case(prepare=clear, run=build),
        "sha256": Case(prepare=clear, run=hash_blocks),
        "fill": Case(prepare=clear, run=fill_blocks),
        "write": Case(prepare=clear, run=write_blocks),
    }


def show(record: dict[str, Any]) -> None:
    """The result on a terminal."""
    found = record["cases"]
    build = found["build"]["bytes_per_s"]
    print(
        f"{format_bytes(record['total_bytes'])}, {record['codec']}, {record['layout']}, init {record['init']['kind']}, "
        f"{record['threads']} threads"
    )
    labels = {
        "build": "build_table, flushed",
        "sha256": "SHA-256 alone",
        "fill": "making records alone",
        "write": "plain write, flushed",
    }
    for name, label in labels.items():
        case = found[name]
        share = "" if name == "build" else f"  the build reaches {build / case['bytes_per_s']:.0%} of it"
        print(
            f"  {label:22} {case['bytes_per_s'] / 1e9:6.2f} GB/s  (MAD {case['mad_ns'] / case['median_ns']:.1%}, "
            f"n {case['n']}){share}"
        )
    cpu = 1 / (1 / found["sha256"]["bytes_per_s"] + 1 / found["fill"]["bytes_per_s"])
    bound = min(cpu, found["write"]["bytes_per_s"])
    print(
        f"  making and hashing take the same threads: {cpu / 1e9:.2f} GB/s; with the disk beside them the bound is "
        f"{bound / 1e9:.2f} GB/s, of which the build reaches {build / bound:.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())
