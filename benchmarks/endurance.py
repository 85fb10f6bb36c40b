"""Many days' lookups in small: every engine and tier, several threads, pages thrown out meanwhile, every byte checked.

    python -m benchmarks.endurance [--rows 1000000000] [--size 2GiB] [--threads 3] [--directory DIR] [--record FILE]

A file of records is written whose every 8 bytes follow from their layer, row and place, and read as a table of two
layers. Threads then take turns: a batch of random shape and rows (half of them from a small hot part), one engine or
tier, and a compiled comparison of every byte with what it must be. Meanwhile a thread throws random stretches of the
file out of memory, of the mappings (MADV_PAGEOUT) and of the page cache, and tables are opened, read and closed, in
this process and in a forked child. Rows from disk are a small share of all, since a row from there takes a thousand
times as long; the record has the rows of each way. Nothing is timed but the whole.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from engram_tables.address.spec import Addresses, AddressSpec, HistoryRule, LayerAddressing
from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.engines.copying import GatherEngine, MemoryEngine
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.table import AUTO, Table
from engram_tables.fetch.tiers.budget import MemoryTier
from engram_tables.fetch.tiers.tiered import TieredEngine
from engram_tables.measure.environment import command_line, describe
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.extents import Extent, Part
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.threads import run_slices
from engram_tables.units import parse_bytes

ROW_BYTES = 264
WORDS = ROW_BYTES // 8
COLUMNS = 4
# Of each layer, and of every batch about half.
HOT_SHARE = 0.01
WARM_BATCHES = (12, 48, 1200, 4096, 65_536)
COLD_BATCHES = (12, 48, 1200, 4096)
# Rows of a turn for which an engine may go to disk.
FROM_DISK = frozenset({"direct", "uring", "aio", "pread", "willneed", "mapping"})
_MADV_PAGEOUT = 21
_CHURN_BYTES = 16 << 20


@njit(cache=True, nogil=True)
def expected_word(layer: Any, row: Any, word: Any) -> Any:
    """splitmix64 of the place: 8 bytes of the record."""
    mixed = (np.uint64(layer) << np.uint64(56)) ^ (np.uint64(row) * np.uint64(WORDS) + np.uint64(word))
    mixed += np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@njit(cache=True, nogil=True)
def fill(records: Any, layer: Any, first_row: Any) -> None:
    """Write the records, uint64 (n, WORDS), of rows `first_row` and on."""
    for k in range(records.shape[0]):
        for word in range(records.shape[1]):
            records[k, word] = expected_word(layer, first_row + k, word)


@njit(cache=True, nogil=True)
def first_wrong(rows: Any, records: Any) -> Any:
    """Flat position of the first record that is not its row's, or -1; rows are (tokens, layers, columns)."""
    n_layers, n_columns = rows.shape[1], rows.shape[2]
    for token in range(rows.shape[0]):
        for layer in range(n_layers):
            for column in range(n_columns):
                for word in range(records.shape[3]):
                    if records[token, layer, column, word] != expected_word(layer, rows[token, layer, column], word):
                        return (token * n_layers + layer) * n_columns + column
    return -1


@dataclass(slots=True)
class Toll:
    """What the threads share."""

    n_rows_wanted: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    rows: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def add(self, way: str, n_rows: int) -> None:
        """Count one batch that was right."""
        with self.lock:
            self.rows[way] += n_rows
            self.batches[way] += 1
            if self.rows.total() >= self.n_rows_wanted:
                self.stopped.set()

    def fail(self, what: str) -> None:
        """Note what was wrong and stop everything."""
        self.wrong.append(what)
        self.stopped.set()


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if a byte was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e9)
    parser.add_argument("--size", type=parse_bytes, default=parse_bytes("2GiB"))
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where the file is made; a disk, no tmpfs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        path = Path(scratch) / "records"
        n_rows = options.size // (2 * ROW_BYTES)
        write_records(path, n_rows)
        record = endure(path, n_rows, options)
    show(record)
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 6 if record["wrong"] else 0


class MadeRecords(RowFiles):
    """Two layers in one file, one after the other."""

    def __init__(self, path: Path, n_rows: int) -> None:
        super().__init__()
        self.path = path
        layers = tuple(
            LayerAddressing(
                layer_id=k, multipliers=(1, 3), moduli=((n_rows // COLUMNS,) * COLUMNS,),
                offsets=tuple(n_rows // COLUMNS * c for c in range(COLUMNS)), n_rows=n_rows,
            )
            for k in (1, 2)
        )  # fmt: skip
        self.spec = AddressSpec(
            name="endurance", provenance="benchmarks/endurance.py", canonical_size=1 << 20,
            history=HistoryRule(fill_id=0), orders=(2,), layers=layers, row_width=ROW_BYTES - 8,
        )  # fmt: skip
        self.codec, self.row_bytes = get_codec("fp8-e4m3-e8m0"), ROW_BYTES
        self.parts = (Part(name="records", start=0, n_bytes=ROW_BYTES, cell_rows=1, cell_bytes=ROW_BYTES),)
        self._fd = os.open(path, os.O_RDONLY)
        self.files = [RowFile(path=path, file_bytes=2 * n_rows * ROW_BYTES, fd=self._fd)]
        self.extents = tuple(
            Extent(file_idx=0, layer_id=k, part_idx=0, first_row=0, n_rows=n_rows, offset=(k - 1) * n_rows * ROW_BYTES)
            for k in (1, 2)
        )

    def _close_files(self) -> None:
        os.close(self._fd)


def write_records(path: Path, n_rows: int) -> None:
    """The file, block by block."""
    block = np.empty((1 << 16, WORDS), np.uint64)
    with path.open("xb") as file:
        for layer in range(2):
            for first_row in range(0, n_rows, len(block)):
                part = block[: n_rows - first_row]
                run_slices(
                    lambda start, stop: fill(part[start:stop], layer, first_row + start),  # noqa: B023
                    len(part), threads=2, grain=1024,
                )  # fmt: skip
                file.write(part.tobytes())
        os.fsync(file.fileno())


def endure(path: Path, n_rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run all threads until the rows wanted were right, or one was not."""
    toll = Toll(n_rows_wanted=int(options.rows))
    start_ns = time.perf_counter_ns()
    with Table(MadeRecords(path, n_rows)) as table:
        ways, refused = ways_of(table)
        threads = [
            threading.Thread(target=guarded, args=(toll, lookups, table, ways, toll, options.seed + k))
            for k in range(options.threads)
        ]
        threads.append(threading.Thread(target=guarded, args=(toll, churn, table, toll)))
        threads.append(threading.Thread(target=guarded, args=(toll, come_and_go, path, n_rows, toll)))
        for thread in threads:
            thread.start()
        try:
            while not toll.stopped.wait(10):
                sys.stderr.write(f"{toll.rows.total():,} rows\n")
        finally:
            toll.stopped.set()
            for thread in threads:
                thread.join()
        counts = {}
        for name, (engine, _) in ways.items():
            if isinstance(engine, TieredEngine):
                counts[name] = engine.counts()._asdict()
            if isinstance(engine, Engine):
                engine.close()
    return {
        "schema": "engram.benchmark-endurance/1",
        "command": command_line(),
        "environment": describe(path.parent),
        "file_bytes": 2 * n_rows * ROW_BYTES,
        "threads": options.threads,
        "rows_checked": toll.rows.total(),
        "bytes_checked": toll.rows.total() * ROW_BYTES,
        "elapsed_ns": time.perf_counter_ns() - start_ns,
        "rows": dict(sorted(toll.rows.items())),
        "batches": dict(sorted(toll.batches.items())),
        "other": dict(sorted(toll.other.items())),
        "refused_engines": refused,
        "tier_counts": counts,
        "wrong": toll.wrong,
    }


def guarded(toll: Toll, work: Any, *arguments: Any) -> None:
    """A thread's work; an exception counts as wrong."""
    try:
        work(*arguments)
    except BaseException as error:
        toll.fail(f"{type(error).__name__}: {error}")
        raise


def ways_of(table: Table) -> tuple[dict[str, tuple[str | Engine, bool]], dict[str, str]]:
    """What rows are read through, and whether a turn may go to disk for all of its rows."""
    ways: dict[str, tuple[str | Engine, bool]] = {AUTO: (AUTO, False)}
    refused = {}
    for name in ENGINES:
        try:
            table.engine(name)
            ways[name] = name, name in FROM_DISK
        except BackendUnavailable as error:
            refused[name] = str(error)
    ways["memory"] = MemoryEngine(table.stored, table.places), False
    for share, name in ((0.002, "tiers, 0.2 %"), (0.05, "tiers, 5 %"), (1.2, "tiers, all")):
        ways[name] = tiered(table, share), False
    return ways, refused


def tiered(table: Table, share: float) -> TieredEngine:
    """A tier of `share` of the table's bytes, in front of auto."""
    budget_bytes = int(share * table.stored.files[0].file_bytes)
    tier = MemoryTier(budget_bytes=budget_bytes, huge_pages=False)
    return TieredEngine(table.stored, table.places, table.engine(AUTO), tier)


def lookups(table: Table, ways: dict[str, tuple[str | Engine, bool]], toll: Toll, seed: int) -> None:
    """Batches, one after the other, each through a way chosen at random."""
    rng = np.random.default_rng(seed)
    names = list(ways)
    out = np.empty((max(WARM_BATCHES) // (2 * COLUMNS), 2, COLUMNS, ROW_BYTES), np.uint8)
    while not toll.stopped.is_set():
        name = names[rng.integers(len(names))]
        engine, is_cold = ways[name]
        # From disk one small batch for many that are read from memory.
        for _ in range(1 if is_cold else 40):
            n_tokens = max(1, int(rng.choice(COLD_BATCHES if is_cold else WARM_BATCHES)) // (2 * COLUMNS))
            rows = draw(rng, table.spec.layers[0].n_rows, n_tokens)
            records = out[:n_tokens]
            records[:] = 0xA5
            read(table, rows, records, engine)
            position = int(first_wrong(rows, records.view(np.uint64)))
            if position >= 0:
                toll.fail(f"{name}: record {position} of {rows.size} is not that of row {rows.reshape(-1)[position]}")
                return
            toll.add(name, rows.size)


def draw(rng: np.random.Generator, n_rows: int, n_tokens: int) -> Any:
    """int64 (tokens, 2, COLUMNS): half of the rows from the hot part, so that tiers have something to keep."""
    shape = n_tokens, 2, COLUMNS
    hot = rng.integers(0, max(1, int(n_rows * HOT_SHARE)), shape)
    return np.where(rng.random(shape) < 0.5, hot, rng.integers(0, n_rows, shape))


def read(table: Table, rows: Any, out: Any, engine: str | Engine) -> None:
    """By `fetch`, as users do."""
    table.fetch(Addresses(rows=rows, keys=np.zeros((*rows.shape[:2], 1), np.uint64)), out, engine)


def churn(table: Table, toll: Toll) -> None:
    """Throw random stretches out of the mapping and of the page cache, until the end."""
    rng = np.random.default_rng(7)
    libc = ctypes.CDLL(None, use_errno=True)
    gather = table.engine("gather")
    assert isinstance(gather, GatherEngine)
    (view,) = gather.views()
    fd = table.stored.files[0].fd
    while not toll.stopped.wait(0.05):
        start = int(rng.integers(0, max(1, view.size - _CHURN_BYTES))) // 4096 * 4096
        n_bytes = min(_CHURN_BYTES, view.size - start)
        address = view.ctypes.data + start
        if address % 4096 == 0 and libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes), _MADV_PAGEOUT) == 0:
            toll.other["stretches paged out"] += 1
        os.posix_fadvise(fd, start, n_bytes, os.POSIX_FADV_DONTNEED)
        toll.other["stretches dropped"] += 1


def come_and_go(path: Path, n_rows: int, toll: Toll) -> None:
    """Tables that are opened, read and closed, and a child of this process that reads what its parent opened."""
    rng = np.random.default_rng(11)
    while not toll.stopped.wait(1.0):
        with Table(MadeRecords(path, n_rows)) as table:
            rows = draw(rng, n_rows, 64)
            out = np.zeros((*rows.shape, ROW_BYTES), np.uint8)
            for engine in (AUTO, "gather", "pread"):
                read(table, rows, out, engine)
                if first_wrong(rows, out.view(np.uint64)) >= 0:
                    toll.fail(f"a table just opened, engine {engine}: wrong bytes")
            toll.other["tables opened and closed"] += 1


def show(record: dict[str, Any]) -> None:
    """The record on a terminal."""
    for name, n_rows in record["rows"].items():
        print(f"  {name:14} {n_rows:15,} rows in {record['batches'][name]:9,} batches")
    for name, n in record["other"].items():
        print(f"  {n:,} {name}")
    print(
        f"{record['rows_checked']:,} rows ({record['bytes_checked']:,} bytes) checked in "
        f"{record['elapsed_ns'] / 1e9:,.0f} s; wrong: {record['wrong'] or 'none'}"
    )


if __name__ == "__main__":
    sys.exit(main())
