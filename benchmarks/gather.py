"""Warm rows: the table's fetch against a loop in C, EngramDB and NumPy's take, on the same rows in memory.

    python -m benchmarks.gather [--gib 2] [--repeats 9] [--seconds 1] [--batches 48] [--directory DIR] [--record FILE]

A file of records of 264 bytes, of two layers with eight columns, is written and read once, so that all of it is in the
page cache. Batches of 48, 4,096 and 65,536 rows, drawn uniformly and never used twice, are fetched from

- private memory with and without huge pages (engine `memory`),
- mappings of the file (engines `gather` and `auto`).

Timed: `Table.fetch` and `Table.fetch_rows` into a buffer that has been written before, which looks at every row id.
Beside them, in turn, on the very same memory: `gather.c`, compiled with the system's compiler and called through ctypes
with addresses that were made before, which looks at none (for `fetch_rows` with the rows of that layer, which lie in
half of the memory); NumPy's take; a copy of as many bytes in one piece; and EngramDB's `Store.fetch` of the same file
with a list that was made before. The first records of every method, 4,096 at most, are compared with a slow reading
before anything is timed. By default a batch of 65,536 is shared by as many threads as there are CPUs, in C as well;
beside it stand one-thread runs of both.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.gather_peers import (
    COLUMNS,
    LAYERS,
    ROW_BYTES,
    CGather,
    RawRows,
    compile_c,
    flat_rows,
    open_engramdb,
    write_rows,
)
from engram_tables.address.spec import Addresses
from engram_tables.fetch.engines.copying import MemoryEngine
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.reference import read_batch, read_rows
from engram_tables.fetch.table import Table
from engram_tables.measure.ceilings import memory_ceilings
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.residency import huge_page_bytes, resident_bytes
from engram_tables.measure.timing import Case, interleave
from engram_tables.threads import resolve_threads, run_slices

BATCHES = (48, 4096, 65_536)
# From here on a batch is worth a second thread.
SHARED = 65_536
GOAL_OF_C, GOAL_OF_ENGRAMDB = 0.9, 30.0
# Rows of a layer for which its bytes are whole pages.
_ROWS_A_STEP = 512


class Batch(NamedTuple):
    """What is fetched, made before it is timed."""

    addresses: Addresses
    rows: NDArray[np.int64]
    """The same row ids as (n,)"""
    positions: NDArray[np.int64]
    """Of the records in the file, (n,)"""
    rows_at: int
    positions_at: int
    """Where the two lie in memory"""
    as_list: list[int]
    """For EngramDB; empty for the others"""


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if a method's bytes are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="GiB of rows")
    parser.add_argument("--repeats", type=int, default=9, help="rounds at least")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each method at each point, at least")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="rows, multiples of 16")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where the file is made")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    n_rows = int(options.gib * 2**30) // (LAYERS * ROW_BYTES) // _ROWS_A_STEP * _ROWS_A_STEP
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        path = Path(scratch) / "shard_000.bin"
        write_rows(path, LAYERS * n_rows)
        record = run(path, n_rows, options)
    if record is None:
        print("check failed: a method's bytes differ from a slow reading; nothing more was timed", file=sys.stderr)
        return 6
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def run(path: Path, n_rows: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """All points; None if bytes are wrong."""
    c, engramdb = compile_c(path.parent), open_engramdb(path.parent, LAYERS * n_rows)
    record: dict[str, Any] = {
        "schema": "engram.benchmark-gather/2",
        "command": command_line(),
        "environment": describe(path),
        "row_bytes": ROW_BYTES,
        "n_rows": LAYERS * n_rows,
        "c": {"status": "waived", "reason": c} if isinstance(c, str) else {"status": "measured", "compiled": c[1]},
        "engramdb": {"status": "waived", "reason": engramdb} if isinstance(engramdb, str) else {"status": "measured"},
        "goals": {"share_of_c": GOAL_OF_C, "times_engramdb": GOAL_OF_ENGRAMDB},
        "ceilings": memory_ceilings(),
        "points": [],
    }
    bench = Bench(
        path, n_rows, None if isinstance(c, str) else c[0], None if isinstance(engramdb, str) else engramdb, options
    )
    with Table(RawRows(path, n_rows)) as table:
        for memory in ("huge pages", "4 KiB pages", "file"):
            points = bench.measure_memory(table, memory)
            if points is None:
                return None
            record["points"] += points
    return record


class Bench:
    """The methods and what they run on."""

    def __init__(
        self, path: Path, n_rows: int, c: CGather | None, engramdb: Callable[[Any], bytes] | None,
        options: argparse.Namespace,
    ) -> None:  # fmt: skip
        self.path, self.n_rows, self.c, self.engramdb, self.options = path, n_rows, c, engramdb, options
        self.rng = np.random.default_rng(0)

    def measure_memory(self, table: Table, memory: str) -> list[dict[str, Any]] | None:
        """One kind of memory; None if bytes are wrong."""
        engines: dict[str, str | Engine] = {"gather": "gather", "auto": "auto"}
        private: MemoryEngine | None = None
        if memory != "file":
            private = MemoryEngine(table.stored, table.places, huge_pages=memory == "huge pages")
            engines = {"memory": private}
        gather = table.engine("gather")
        base = int((private or gather).placed.bases[0])  # type: ignore[attr-defined]
        for engine in engines.values():
            # The first touch of a page is no part of what is compared.
            for rows in np.array_split(np.arange(self.n_rows), 64):
                for layer in range(LAYERS):
                    table.fetch_rows(layer, rows, engine=engine)
        points = []
        for n_items in self.options.batches:
            point = self.measure_batch(table, memory, engines, base, n_items)
            if point is None:
                return None
            if private is not None:
                point["huge_page_bytes"] = huge_page_bytes(private.blocks)
            points.append(point)
            show(point)
        if private is not None:
            private.close()
        return points

    def measure_batch(
        self, table: Table, memory: str, engines: dict[str, str | Engine], base: int, n_items: int
    ) -> dict[str, Any] | None:
        """One batch size; None if bytes are wrong."""
        out = np.full((n_items // (LAYERS * COLUMNS), LAYERS, COLUMNS, ROW_BYTES), 1, np.uint8)
        methods = self.methods(table, memory, engines, base, out)
        batch = self.draw(n_items, as_list=True)
        n_checked = min(4096, n_items)
        of_all = read_batch(table.stored, batch.addresses.rows[: n_checked // (LAYERS * COLUMNS)])
        of_one = read_rows(table.stored, 0, batch.rows[:n_checked])
        for name, method in methods.items():
            out.fill(1)
            found = method(batch)
            records = np.frombuffer(found, np.uint8) if isinstance(found, bytes) else out
            expected = of_one if "one layer" in name or name.startswith("fetch_rows") else of_all
            # A copy in one piece is of no row in particular.
            if name != "copy" and not np.array_equal(records.reshape(-1)[: expected.size], expected.reshape(-1)):
                print(f"{memory}, {n_items:,} rows: {name} is wrong", file=sys.stderr)
                return None
        samples = interleave(
            {
                name: Case(prepare=lambda: self.draw(n_items, as_list=name == "engramdb"), run=method)  # noqa: B023
                for name, method in methods.items()
            },
            repeats=self.options.repeats,
            seconds=self.options.seconds,
            most=2000,
            warm_ups=3,
        )
        median_ns = {name: found.median_ns for name, found in samples.items()}
        return {
            "memory": memory,
            "rows_per_batch": n_items,
            "resident_bytes": resident_bytes([self.path]),
            "file_bytes": self.path.stat().st_size,
            "ratios": ratios(median_ns),
            "cases": {name: found.summary() for name, found in samples.items()},
        }

    def draw(self, n_items: int, *, as_list: bool = False) -> Batch:
        """A new batch."""
        rows = self.rng.integers(0, self.n_rows, (n_items // (LAYERS * COLUMNS), LAYERS, COLUMNS))
        flat = flat_rows(rows, self.n_rows)
        addresses = Addresses(rows=rows, keys=np.zeros((*rows.shape[:2], 1), np.uint64))
        return Batch(
            addresses, rows.reshape(-1), flat, rows.ctypes.data, flat.ctypes.data, flat.tolist() if as_list else []
        )

    def methods(
        self, table: Table, memory: str, engines: dict[str, str | Engine], base: int, out: NDArray[np.uint8]
    ) -> dict[str, Callable[[Batch], object]]:
        """What is timed, by name."""
        records, address, n_items = out.reshape(-1, ROW_BYTES), out.ctypes.data, out.size // ROW_BYTES
        found: dict[str, Callable[[Batch], object]] = {}
        if self.c is not None:
            c = self.c
            found["c"] = lambda batch: c(base, batch.positions_at, 0, n_items, address)
            found["c, one layer"] = lambda batch: c(base, batch.rows_at, 0, n_items, address)
            if n_items >= SHARED:
                found["c shared"] = lambda batch: share(
                    lambda start, stop: c(base, batch.positions_at, start, stop, address), n_items
                )
                found["c shared, one layer"] = lambda batch: share(
                    lambda start, stop: c(base, batch.rows_at, start, stop, address), n_items
                )
        for name, engine in engines.items():
            found[f"fetch {name}"] = lambda batch, engine=engine: table.fetch(batch.addresses, out, engine)  # type: ignore[misc]
            if n_items >= SHARED:
                found[f"fetch {name}, 1 thread"] = lambda batch, engine=engine: table.fetch(  # type: ignore[misc]
                    batch.addresses, out, engine, threads=1
                )
            found[f"fetch_rows {name}"] = lambda batch, engine=engine: table.fetch_rows(  # type: ignore[misc]
                0, batch.rows, records, engine
            )
        if n_items >= SHARED:
            source = table.stored.mapping(0)[: LAYERS * self.n_rows * ROW_BYTES].reshape(-1, ROW_BYTES)
            found["take"] = lambda batch: np.take(source, batch.positions, axis=0, out=records, mode="clip")
            found["copy"] = lambda batch: np.copyto(
                records, source[batch.positions[0] % (len(source) - n_items) :][:n_items]
            )
        if self.engramdb is not None and memory == "file":
            engramdb = self.engramdb
            found["engramdb"] = lambda batch: engramdb(batch.as_list)
        return found


def share(gather: Callable[[int, int], None], n_items: int) -> None:
    """C in as many threads as there are CPUs, by the same pool as the table's."""
    run_slices(gather, n_items, threads=resolve_threads(None), grain=1)


def ratios(median_ns: dict[str, int]) -> dict[str, dict[str, float]]:
    """Of every fetch: how fast it is beside C with as many threads, and beside EngramDB."""
    found: dict[str, dict[str, float]] = {}
    for name, elapsed_ns in median_ns.items():
        if not name.startswith("fetch"):
            continue
        c = "c" if name.endswith("1 thread") or "c shared" not in median_ns else "c shared"
        # Rows of one layer lie in half of the memory.
        c += ", one layer" if name.startswith("fetch_rows") else ""
        found[name] = {
            label: median_ns[peer] / elapsed_ns
            for label, peer in (("of_c", c), ("times_engramdb", "engramdb"), ("times_take", "take"))
            if peer in median_ns
        }
    return found


def show(point: dict[str, Any]) -> None:
    """One point on a terminal."""
    n_items = point["rows_per_batch"]
    print(f"{point['memory']}, {n_items:,} rows a batch ({os.cpu_count()} CPUs)")
    for name, case in point["cases"].items():
        notes = "".join(
            f", {value:.2f} {label.replace('_', ' ')}" for label, value in point["ratios"].get(name, {}).items()
        )
        print(
            f"  {name:22} {case['median_ns'] / 1e3:10.2f} µs  {case['median_ns'] / n_items:7.1f} ns a row  "
            f"{n_items * 1e3 / case['median_ns']:7.2f} M rows/s (MAD {case['mad_ns'] / case['median_ns']:.1%}, "
            f"n {case['n']}){notes}"
        )


if __name__ == "__main__":
    sys.exit(main())
