"""Does `auto` read as fast as the best engine, whatever share of the table is in memory?

    python -m benchmarks.auto [--size 2GiB] [--repeats 9] [--directory DIR] [--record FILE]

A packed table of 264-byte rows is brought into four states: none, half, 90 % and all of its pages in memory, drawn at
random. In each state batches of 48, 4,096 and 65,536 uniform rows are read by every engine and by `auto`, in turn.
Timed: `Table.fetch_rows` into a buffer that has been written before. Before each timed batch, and outside its time, the
pages that reading brought in are evicted again, the share of the batch's rows in memory is measured by `mincore`, and
the map of `auto` is refreshed, as its background thread would have done; what it remembers of missed pages is dropped
with the pages. The bytes of every engine in every state are compared before anything is timed.

Beside that stands what the map costs, a refresh in each state, and how long it is wrong: the rows read, and the time,
from everything being evicted (or read into memory) behind its back until a refresh has put it right.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types

from benchmarks.cold import ROW_BYTES, one_layer, write_planar
from engram_tables.fetch.engines.auto import AutoEngine
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.ladder import ENGINES, probe
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import AUTO, Table, open_table
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.residency import evict, preload, resident_bytes
from engram_tables.measure.timing import Case, interleave
from engram_tables.memory import copy_bytes
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.source import closing
from engram_tables.units import PAGE_BYTES, parse_bytes

SHARES = (0.0, 0.5, 0.9, 1.0)
BATCH_ROWS = (48, 4096, 65_536)
GOAL = 0.9
# As many timed batches for each of `--repeats` as make the small ones last.
_BATCHES_A_REPEAT = {48: 12, 4096: 3, 65_536: 1}
_SAMPLED_ROWS = 1000
_MADV_DONTNEED, _FADV_DONTNEED = 4, 4

_madvise: Any = types.ExternalFunction("madvise", types.int32(types.uint64, types.uint64, types.int32))
_fadvise: Any = types.ExternalFunction("posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32))


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if an engine's bytes are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_bytes, default=parse_bytes("2GiB"), help="bytes of rows")
    parser.add_argument("--repeats", type=int, default=9, help="timed batches of 65,536 rows; more of smaller ones")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where files are made; a disk, no tmpfs")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory))
        table = stack.enter_context(open_table(build(Path(scratch), options.size)))
        record: dict[str, Any] = {
            "schema": "engram.benchmark-auto/1",
            "command": command_line(),
            "environment": describe(table.path),
            "table_bytes": sum(file.file_bytes for file in table.stored.files),
            "row_bytes": ROW_BYTES,
            "goal": GOAL,
            **measure(table, options.repeats),
        }
    if record["status"] == "mismatch":
        print(f"check failed: {record['reason']}; nothing was timed", file=sys.stderr)
        return 6
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def build(root: Path, n_bytes: int) -> Path:
    """A packed table of random rows."""
    spec = one_layer(n_bytes // ROW_BYTES)
    checkpoint = write_planar(root / "model.safetensors", spec.n_rows)
    with closing(open_source(checkpoint, spec=spec)) as source:
        build_table(plan_repack(source, layout="packed", shard_bytes=n_bytes), root / "packed")
    checkpoint.unlink()
    return root / "packed"


@dataclass
class State:
    """A table of which certain pages are in memory.

    `resident` is bool (pages of all files,), file after file; `regions` are the addresses at which engines map them.
    """

    table: Table
    share: float
    resident: Any
    rng: Any

    def __post_init__(self) -> None:
        self.paths = [file.path for file in self.table.stored.files]
        self.fds = np.array([file.fd for file in self.table.stored.files], np.int64)
        pages = [-(-file.file_bytes // PAGE_BYTES) for file in self.table.stored.files]
        self.first_pages = np.concatenate(([0], np.cumsum(pages)))
        found = [self.table.engine(name) for name in ENGINES if name in ("gather", "willneed")]
        engines = [engine for engine in found if isinstance(engine, GatherEngine)]
        starts = [np.uint64(engine.region.start) + engine.region.file_starts for engine in engines]
        self.regions = np.stack(starts)

    def establish(self) -> None:
        """Evict everything, read the pages that belong, and touch them in every mapping."""
        evict(self.paths)
        if self.share == 1.0:
            preload(self.paths)
        else:
            edges = np.flatnonzero(np.diff(np.concatenate(([False], self.resident, [False]))))
            for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                for file_idx in range(len(self.fds)):
                    low = max(start, int(self.first_pages[file_idx])) - int(self.first_pages[file_idx])
                    high = min(stop, int(self.first_pages[file_idx + 1])) - int(self.first_pages[file_idx])
                    if low < high:
                        n_bytes = (high - low) * PAGE_BYTES
                        fd = int(self.fds[file_idx])
                        os.posix_fadvise(fd, low * PAGE_BYTES, n_bytes, os.POSIX_FADV_WILLNEED)
            wanted = int(self.resident.sum()) * PAGE_BYTES
            while resident_bytes(self.paths) < wanted * 0.999:
                time.sleep(0.05)
        touch(self.regions, self.first_pages, self.resident)

    def restore(self, rows: Any) -> None:
        """Evict the pages of these rows that do not belong."""
        if self.share < 1.0 and rows is not None:
            spots = self.table.stored.locate(0, np.unique(rows))
            firsts = self.first_pages[spots.file_idx] + spots.offsets // PAGE_BYTES
            lasts = self.first_pages[spots.file_idx] + (spots.offsets + ROW_BYTES - 1) // PAGE_BYTES
            pages = np.unique(np.concatenate((firsts, lasts)))
            drop(self.fds, self.regions, self.first_pages, pages[~self.resident[pages]])
        auto = self.table.engine(AUTO)
        assert isinstance(auto, AutoEngine)
        if auto.residency is not None:
            auto.residency.refresh()
            auto.residency.forget_missed()


@njit(cache=True, nogil=True)
def touch(regions: Any, first_pages: Any, resident: Any) -> Any:
    """Bring the pages that are in memory into the page tables: a look at each costs a fault or none."""
    n_in = np.int64(0)
    states = np.empty(1, np.uint8)
    for engine in range(regions.shape[0]):
        for file in range(regions.shape[1]):
            for page in range(first_pages[file], first_pages[file + 1]):
                if resident[page]:
                    at = regions[engine, file] + np.uint64((page - first_pages[file]) * PAGE_BYTES)
                    copy_bytes(np.uint64(states.ctypes.data), at, np.int64(1))
                    n_in += np.int64(states[0])
    return n_in


@njit(cache=True, nogil=True)
def drop(fds: Any, regions: Any, first_pages: Any, pages: Any) -> None:
    """Take pages out of the page tables, then out of the page cache."""
    for nth in range(pages.shape[0]):
        page, file = pages[nth], 0
        while page >= first_pages[file + 1]:
            file += 1
        offset = (page - first_pages[file]) * PAGE_BYTES
        for engine in range(regions.shape[0]):
            _madvise(regions[engine, file] + np.uint64(offset), np.uint64(PAGE_BYTES), np.int32(_MADV_DONTNEED))
        _fadvise(np.int32(fds[file]), np.int64(offset), np.int64(PAGE_BYTES), np.int32(_FADV_DONTNEED))


def measure(table: Table, repeats: int) -> dict[str, Any]:
    """Every state, every batch size, every engine."""
    rungs = probe(table.stored, table.engine)
    engines = [rung.engine for rung in rungs if rung.is_usable and rung.engine != "mapping"]
    rng = np.random.default_rng(0)
    n_pages = sum(-(-file.file_bytes // PAGE_BYTES) for file in table.stored.files)
    points: list[dict[str, Any]] = []
    refreshes: list[dict[str, Any]] = []
    rows = rng.integers(0, table.spec.n_rows, 500)
    expected = read_rows(table.stored, 0, rows)
    for share in SHARES:
        state = State(table, share, rng.random(n_pages) < share, rng)
        state.establish()
        for engine in (*engines, AUTO):
            state.restore(rows)
            if not np.array_equal(table.fetch_rows(0, rows, engine=engine), expected):
                return {"status": "mismatch", "reason": f"{engine} at {share:.0%}: bytes differ from a slow reading"}
        state.restore(rows)
        refreshes.append(measure_refresh(table, share))
        show_refresh(refreshes[-1])
        for n_batch in BATCH_ROWS:
            points.append(measure_point(state, engines, n_batch, repeats))
            show(points[-1])
    staleness = [measure_staleness(table, n_batch, is_coming) for is_coming in (False, True) for n_batch in BATCH_ROWS]
    for point in staleness:
        show_staleness(point)
    auto = table.engine(AUTO)
    assert isinstance(auto, AutoEngine)
    return {
        "status": "measured",
        "ladder": [rung._asdict() for rung in rungs],
        "auto_reads_with": list(auto.engine_names),
        "points": points,
        "refreshes": refreshes,
        "staleness": staleness,
    }


def measure_point(state: State, engines: list[str], n_batch: int, repeats: int) -> dict[str, Any]:
    """One state and batch size: every engine in turn."""
    table, rng = state.table, state.rng
    out = np.full((n_batch, ROW_BYTES), 1, np.uint8)
    gather = table.engine("gather")
    assert isinstance(gather, GatherEngine)
    shares: dict[str, list[float]] = {}
    last: list[Any] = [None]

    def case(engine: str) -> Case:
        def prepare() -> Any:
            state.restore(last[0])
            rows = last[0] = rng.integers(0, table.spec.n_rows, n_batch)
            batch = table.places.check(rows, n_columns=n_batch, first_layer=0, n_layers=1)
            shares.setdefault(engine, []).append(gather.resident_share(batch, _SAMPLED_ROWS))
            return rows

        return Case(prepare=prepare, run=lambda rows: table.fetch_rows(0, rows, out, engine))

    cases = {engine: case(engine) for engine in (*engines, AUTO)}
    samples = interleave(cases, repeats=repeats * _BATCHES_A_REPEAT[n_batch], warm_ups=2)
    state.restore(last[0])
    best = min(engines, key=lambda engine: samples[engine].median_ns)
    return {
        "page_share": state.share,
        "rows_per_batch": n_batch,
        "best": best,
        "auto_of_best": samples[best].median_ns / samples[AUTO].median_ns,
        "engines": {
            engine: {
                "rows_per_s": n_batch * 1e9 / found.median_ns,
                "resident_row_share": [min(shares[engine]), float(np.median(shares[engine])), max(shares[engine])],
                **found.summary(),
            }
            for engine, found in samples.items()
        },
    }


def measure_refresh(table: Table, share: float) -> dict[str, Any]:
    """What a refresh of the map costs in this state, in the calling thread."""
    auto = table.engine(AUTO)
    assert isinstance(auto, AutoEngine)
    assert auto.residency is not None
    elapsed_ns = []
    for _ in range(5):
        start = time.perf_counter_ns()
        auto.residency.refresh()
        elapsed_ns.append(time.perf_counter_ns() - start)
    looked_up = auto.residency.n_looked_up
    return {
        "page_share": share, "elapsed_ns": elapsed_ns, "pages_looked_up": looked_up,
        "fewest_rows_between": auto.residency.rows_between,
    }  # fmt: skip


def measure_staleness(table: Table, n_batch: int, is_coming: bool) -> dict[str, Any]:
    """Evict everything, or read everything, behind the map's back; then read until it says so."""
    rng = np.random.default_rng(1)
    auto = table.engine(AUTO)
    assert isinstance(auto, AutoEngine)
    residency = auto.residency
    assert residency is not None
    paths = [file.path for file in table.stored.files]
    (evict if is_coming else preload)(paths)
    residency.refresh()
    residency.forget_missed()
    (preload if is_coming else evict)(paths)
    out = np.full((n_batch, ROW_BYTES), 1, np.uint8)
    n_refreshes, n_batches, start = residency.n_refreshes, 0, time.perf_counter_ns()
    while residency.n_refreshes == n_refreshes:
        table.fetch_rows(0, rng.integers(0, table.spec.n_rows, n_batch), out)
        n_batches += 1
    return {
        "change": "read into memory" if is_coming else "evicted",
        "rows_per_batch": n_batch,
        "rows_until_known": n_batches * n_batch,
        "elapsed_ns_until_known": time.perf_counter_ns() - start,
    }


def show(point: dict[str, Any]) -> None:
    """One state and batch size on a terminal."""
    print(f"{point['page_share']:.0%} of pages in memory, {point['rows_per_batch']:,} rows a batch")
    for engine, found in sorted(point["engines"].items(), key=lambda item: item[1]["median_ns"]):
        _, middle, _ = found["resident_row_share"]
        print(
            f"  {engine:9} {found['rows_per_s'] / 1e3:10.1f} k rows/s  median {found['median_ns'] / 1e3:10.1f} µs  "
            f"MAD {found['mad_ns'] / found['median_ns']:5.1%}  p99 {found['p99_ns'] / 1e3:10.1f} µs  "
            f"rows in memory {middle:.0%}"
        )
    print(f"  auto is {point['auto_of_best']:.2f} of {point['best']}; the goal is {GOAL}")


def show_refresh(point: dict[str, Any]) -> None:
    """A refresh on a terminal."""
    median = float(np.median(point["elapsed_ns"]))
    print(
        f"refresh at {point['page_share']:.0%}: {median / 1e6:.2f} ms, {point['pages_looked_up']:,} pages one by one; "
        f"at most once in {point['fewest_rows_between']:,} rows"
    )


def show_staleness(point: dict[str, Any]) -> None:
    """How long the map was wrong, on a terminal."""
    print(
        f"all {point['change']}, {point['rows_per_batch']:,} rows a batch: the map is right after "
        f"{point['rows_until_known']:,} rows, {point['elapsed_ns_until_known'] / 1e6:.1f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
