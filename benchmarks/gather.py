"""Warm gather against NumPy's take: one thread each, memory of the same page size, random rows never used twice.

    python -m benchmarks.gather [--gib 2] [--repeats 9] [--record FILE]

Timed: copying 65,536 records of 264 bytes from random rows into a buffer that has been written before; for the
gather the check of every row id as well. Not timed: drawing the rows. The bytes are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables.fetch.kernels import PREFETCH_DISTANCE, Placement, first_outside, gather_kernel
from engram_tables.measure.ceilings import memory_ceilings
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.residency import huge_page_bytes
from engram_tables.measure.timing import Case, interleave
from engram_tables.memory import anonymous_bytes

ROW_BYTES = 264
BATCH_ROWS = 65_536
GOALS = {True: 2.5, False: 1.5}


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if the gather's bytes are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="GiB of rows")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    n_rows = int(options.gib * 2**30) // ROW_BYTES
    record: dict[str, Any] = {
        "schema": "engram.benchmark-gather/1",
        "command": command_line(),
        "environment": describe(),
        "row_bytes": ROW_BYTES,
        "rows_per_batch": BATCH_ROWS,
        "n_rows": n_rows,
        "ceilings": memory_ceilings(),
        "points": [],
    }
    for huge_pages in (True, False):
        point = measure(n_rows, huge_pages=huge_pages, repeats=options.repeats)
        if point is None:
            print("check failed: the gather's bytes differ from take's; nothing was timed", file=sys.stderr)
            return 6
        record["points"].append(point)
        show(point, record["ceilings"])
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def measure(n_rows: int, *, huge_pages: bool, repeats: int) -> dict[str, Any] | None:
    """One page size; None if the bytes are wrong."""
    rng = np.random.default_rng(0)
    block = anonymous_bytes(n_rows * ROW_BYTES, huge_pages=huge_pages)
    table = block.reshape(n_rows, ROW_BYTES)
    for start in range(0, n_rows, 1 << 20):
        part = table[start : start + (1 << 20)]
        part[:] = rng.integers(0, 256, ROW_BYTES, np.uint8)
        # Each row holds its own number, so that a record from a wrong row is seen.
        part[:, :8] = np.arange(start, start + len(part)).view(np.uint8).reshape(-1, 8)
    out = np.full((BATCH_ROWS, ROW_BYTES), 1, np.uint8)
    kernel = gather_kernel(ROW_BYTES, ROW_BYTES)
    limits = np.array([n_rows], np.int64)
    place = Placement(
        extents=np.array([[0, 1]], np.int64),
        extent_rows=limits,
        first_rows=np.zeros(1, np.int64),
        bases=np.array([block.ctypes.data], np.uint64),
        cell_rows=1,
        cell_bytes=ROW_BYTES,
        part_bytes=ROW_BYTES,
    )

    def draw() -> Any:
        return rng.integers(0, n_rows, BATCH_ROWS)

    def take(rows: Any) -> None:
        np.take(table, rows, axis=0, out=out, mode="clip")

    def gather(rows: Any) -> None:
        if first_outside(rows, BATCH_ROWS, limits) >= 0:
            raise AssertionError("a row out of range")
        kernel(rows, 0, BATCH_ROWS, BATCH_ROWS, place, np.uint64(out.ctypes.data), PREFETCH_DISTANCE)

    def copy(start: int) -> None:
        np.copyto(out, table[start : start + BATCH_ROWS])

    rows = draw()
    gather(rows)
    if not np.array_equal(out, table[rows]):
        return None
    samples = interleave(
        {
            "take": Case(prepare=draw, run=take),
            "gather": Case(prepare=draw, run=gather),
            "memcpy": Case(prepare=lambda: int(rng.integers(0, n_rows - BATCH_ROWS)), run=copy),
        },
        repeats=repeats,
        warm_ups=2,
    )
    return {
        "huge_pages": huge_pages,
        "huge_page_bytes": huge_page_bytes([block]),
        "ratio": samples["take"].median_ns / samples["gather"].median_ns,
        "ratio_goal": GOALS[huge_pages],
        "cases": {
            name: {"bytes_per_s": out.nbytes * 1e9 / found.median_ns, **found.summary()}
            for name, found in samples.items()
        },
    }


def show(point: dict[str, Any], ceilings: dict[str, Any]) -> None:
    """One page size on a terminal."""
    pages = "huge pages" if point["huge_pages"] else "4 KiB pages"
    print(f"{pages}: one thread, {BATCH_ROWS:,} rows of {ROW_BYTES} bytes")
    for name, case in point["cases"].items():
        rows_per_s = BATCH_ROWS * 1e9 / case["median_ns"]
        share = case["bytes_per_s"] / ceilings["memcpy_1_thread_bytes_per_s"]
        print(
            f"  {name:7} {rows_per_s / 1e6:7.2f} M rows/s  {case['median_ns'] / BATCH_ROWS:7.2f} ns a row  "
            f"{case['bytes_per_s'] / 1e9:6.2f} GB/s  {share:5.0%} of memcpy  "
            f"(MAD {case['mad_ns'] / case['median_ns']:.1%}, n {case['n']})"
        )
    # Records of 264 bytes begin at multiples of 8, so each lies in five cache lines exactly.
    lines_per_s = 5 * BATCH_ROWS * 1e9 / point["cases"]["gather"]["median_ns"]
    print(
        f"  gather is {point['ratio']:.2f} times take; the goal is {point['ratio_goal']}. It reads "
        f"{lines_per_s / 1e6:.0f} M lines/s beside writing; independent random loads reach "
        f"{ceilings['random_lines_per_s'] / 1e6:.0f} M (huge pages)"
    )


if __name__ == "__main__":
    sys.exit(main())
