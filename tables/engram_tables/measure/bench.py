"""Lookups in a table, from memory and from disk: verified, then timed, and held against the machine's
ceilings.

The timed window of a sample is one `Table.fetch` of a batch into a buffer that has been written before:
checking row ids, locating, reading or copying. Making the batch, evicting files and asking for residency lie
outside of it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.fetch.engines.copying import GatherEngine, MemoryEngine
from engram_tables.fetch.table import Table, open_table
from engram_tables.measure.ceilings import disk_ceilings, memory_ceilings
from engram_tables.measure.environment import command_line, describe, read_meminfo
from engram_tables.measure.kernels import touch_pages
from engram_tables.measure.lookups import (
    DISK,
    DRAM,
    BenchPlan,
    Drawn,
    Fetcher,
    Run,
    make_case,
    make_point,
    touched_buffer,
    verified,
)
from engram_tables.measure.residency import evict, huge_page_bytes, preload, resident_bytes
from engram_tables.measure.timing import Case, interleave
from engram_tables.measure.trace import text_trace, uniform_trace
from engram_tables.storage.table.reader import StoredTable
from engram_tables.units import PAGE_BYTES, ProgressHook

SCHEMA = "engram.bench-offload/1"
_MEMORY_SHARE = 0.6
_COLD_RESIDENT_SHARE = 0.01
_FAULT_ROWS = 96
_MARGIN = 1.05


def bench_offload(
    table_path: str | Path,
    *,
    corpus: Sequence[str | Path] = (),
    glob: str = "*",
    exclude: Sequence[str] = (),
    vocabulary: Vocabulary | None = None,
    plan: BenchPlan | None = None,
    progress: ProgressHook | None = None,
) -> dict[str, Any]:
    """Measure lookups in a table and give the record, `engram.bench-offload/1`.

    Parameters
    ----------
    table_path
        A table, or a checkpoint of this machine, which is read where it lies.
    corpus
        Files and directories whose text makes the trace; without any, rows are uniform and the record says
        so.
    vocabulary
        Turns the text into rows; the table's own by default.
    progress
        Called with (points done, points in all).

    Returns
    -------
    The record. `mismatches` names every engine whose bytes differed from the slow reading; it was not timed.

    Raises
    ------
    TableError, InvalidInput
        The table or the corpus cannot be used.
    """
    plan = plan or BenchPlan()
    path = Path(table_path)
    n_done = 0
    n_all = len(plan.sources) * (len(plan.rows_per_batch) + 1)

    def advance() -> None:
        nonlocal n_done
        n_done += 1
        if progress is not None:
            progress(min(n_done, n_all), n_all)

    with open_table(table_path) as table:
        _refuse_part(table)
        trace = (
            text_trace(table, corpus, vocabulary=vocabulary, glob=glob, exclude=exclude, seed=plan.seed)
            if corpus
            else uniform_trace(table.spec, seed=plan.seed)
        )
        run = Run(path, table, trace, plan, advance, np.random.default_rng(plan.seed))
        for n_rows in plan.rows_per_batch:
            run.n_tokens(n_rows)
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "command": command_line(),
            "environment": describe(path),
            "table": _describe_table(table),
            "trace": trace.description,
        }
        if DRAM in plan.sources:
            record[DRAM] = _measure_dram(run)
    # The table is closed by now: pages that a mapping has touched could not be evicted.
    if DISK in plan.sources:
        with open_table(path) as run.table:
            record[DISK] = _measure_disk(run)
    record["gpu"] = {"status": "waived", "reason": _why_no_gpu()}
    record["mismatches"] = run.mismatches
    if progress is not None:
        progress(n_all, n_all)
    parts = [record[source] for source in plan.sources]
    record["flags"] = [flag for part in parts for point in part.get("points", ()) for flag in point["flags"]]
    return record


def _refuse_part(table: Table) -> None:
    for layer in table.spec.layers:
        if table.stored.owned(layer.layer_id) != ((0, layer.n_rows),):
            raise InvalidInput(
                f"{table.path}: found a part of the rows of layer {layer.layer_id}, expected all of them, since a "
                "token's rows are drawn from all; measure a whole table, or read a part with fetch_rows"
            )


def _describe_table(table: Table) -> dict[str, Any]:
    stored = table.stored
    return {
        "path": str(table.path),
        "spec": table.spec.name,
        "spec_fingerprint": table.spec.fingerprint,
        "layers": len(table.spec.layers),
        "columns": table.spec.n_columns,
        "rows_per_token": len(table.spec.layers) * table.spec.n_columns,
        "n_rows": table.spec.n_rows,
        "row_bytes": table.row_bytes,
        "codec": stored.codec.name,
        "layout": stored.layout.name if isinstance(stored, StoredTable) else None,
        "parts": [part.name for part in stored.parts],
        "has_digests": isinstance(stored, StoredTable),
        "shards": len(stored.files),
        "file_bytes": sum(file.file_bytes for file in stored.files),
    }


def _measure_dram(run: Run) -> dict[str, Any]:
    available = read_meminfo().get("MemAvailable")
    resident = resident_bytes(run.files)
    if available is not None and run.file_bytes - resident > available * _MEMORY_SHARE:
        run.progress()
        return {
            "status": "waived",
            "reason": f"the table's files have {run.file_bytes} bytes, and {available} bytes of memory are free",
        }
    preload(run.files)
    ceilings = memory_ceilings(threads=run.plan.threads)
    run.progress()
    gather = run.table.engine("gather")
    assert isinstance(gather, GatherEngine)
    for view in (*gather.views(), *(run.table.stored.mapping(k) for k in range(len(run.files)))):
        touch_pages(view, PAGE_BYTES)
    fetchers: dict[str, Fetcher] = {
        "mapping": Fetcher(run.table, "mapping", 1),
        "gather, 1 thread": Fetcher(run.table, "gather", 1),
        "gather, all threads": Fetcher(run.table, "gather", run.plan.threads),
    }
    huge: dict[str, Any] = {"status": "waived", "reason": "not enough memory for a copy of the table"}
    copied: MemoryEngine | None = None
    if available is not None and run.file_bytes < available * _MEMORY_SHARE:
        copied = MemoryEngine(run.table.stored, run.table.places)
        huge = {"status": "measured", "huge_page_bytes": huge_page_bytes(copied.blocks)}
        fetchers["copy in huge pages, 1 thread"] = Fetcher(run.table, copied, 1)
        fetchers["copy in huge pages, all threads"] = Fetcher(run.table, copied, run.plan.threads)
    points: list[dict[str, Any]] = []
    before = resident_bytes(run.files)
    for n_rows in run.plan.rows_per_batch:
        points += _dram_points(run, fetchers, n_rows, ceilings)
        run.progress()
    if copied is not None:
        copied.close()
    return {
        "status": "measured",
        "ceilings": ceilings,
        "state": {
            "file_bytes": run.file_bytes,
            "resident_bytes_before": before,
            "resident_bytes_after": resident_bytes(run.files),
            "huge_page_bytes": huge_page_bytes(gather.views()),
        },
        "huge_page_copy": huge,
        "points": points,
    }


def _dram_points(run: Run, fetchers: dict[str, Fetcher], n_rows: int, ceilings: dict[str, Any]) -> list[dict[str, Any]]:
    n_tokens = run.n_tokens(n_rows)
    out = touched_buffer(run, n_tokens)
    sound = verified(run, fetchers, run.draw(n_tokens), DRAM)
    drawn = Drawn()
    cases = {name: make_case(run, n_tokens, fetcher, out, drawn) for name, fetcher in sound.items()}
    samples = interleave(cases, repeats=run.plan.repeats, seconds=run.plan.seconds, warm_ups=2)
    points = []
    for name, found in samples.items():
        point = make_point(run, name, n_rows, drawn, found)
        one = fetchers[name].threads == 1
        link = ceilings["memcpy_1_thread_bytes_per_s" if one else "memcpy_all_threads_bytes_per_s"]
        point["touched_bytes_per_batch"] = drawn.mean("line_bytes")
        point["ceiling"] = {"name": "memcpy, 1 thread" if one else "memcpy, all threads", "bytes_per_s": link}
        point["share_of_ceiling"] = point["useful_bytes_per_s"] / link
        if point["useful_bytes_per_s"] > _MARGIN * link:
            point["flags"].append(
                f"dram, {name}, {point['rows_per_batch']} rows: {point['useful_bytes_per_s'] / 1e9:.2f} GB/s "
                f"is more than memory's {link / 1e9:.2f} GB/s; the rows came from the CPU's caches"
            )
        points.append(point)
    return points


def _measure_disk(run: Run) -> dict[str, Any]:
    largest = max(run.table.stored.files, key=lambda file: file.file_bytes).path
    try:
        left = evict(run.files)
        ceilings = disk_ceilings(largest, seconds=max(run.plan.seconds, 0.3))
    except BackendUnavailable as error:
        run.progress()
        return {"status": "waived", "reason": str(error)}
    run.progress()
    points: list[dict[str, Any]] = []
    for n_rows in run.plan.rows_per_batch:
        points += _disk_points(run, n_rows, ceilings)
        run.progress()
    points += _fault_points(run, ceilings)
    return {
        "status": "measured",
        "ceilings": ceilings,
        "state": {"file_bytes": run.file_bytes, "resident_bytes_after_first_eviction": left},
        "points": points,
    }


def _disk_points(run: Run, n_rows: int, ceilings: dict[str, Any]) -> list[dict[str, Any]]:
    n_tokens = run.n_tokens(n_rows)
    out = touched_buffer(run, n_tokens)
    fetchers = {name: Fetcher(run.table, name, run.plan.read_threads) for name in ("direct", "pread")}
    points = []
    for name, fetcher in verified(run, fetchers, run.draw(n_tokens), DISK).items():
        run.start_over()
        drawn = Drawn(cold_files=run.files)
        case = make_case(run, n_tokens, fetcher, out, drawn)
        points.append(_cold_point(run, name, n_rows, case, drawn, ceilings, seconds=run.plan.seconds))
    return points


def _fault_points(run: Run, ceilings: dict[str, Any]) -> list[dict[str, Any]]:
    """Cold faults by one thread, a few rows: what a plain mapping does, with default advice and with MADV_RANDOM."""
    n_rows = min(_FAULT_ROWS, *run.plan.rows_per_batch)
    out = touched_buffer(run, run.n_tokens(n_rows))
    points = []
    for engine, name in (("mapping", "mapping, default advice"), ("gather", "mapping, MADV_RANDOM")):
        faults = _Faults(run, engine, run.n_tokens(n_rows))
        case = Case(prepare=faults.prepare, run=partial(faults.read, out=out))
        try:
            if verified(run, {name: faults.read}, faults.prepare(), DISK):
                run.start_over()
                faults.restart()
                points.append(_cold_point(run, name, n_rows, case, faults.drawn, ceilings, seconds=0.0))
        finally:
            faults.close()
    return points


class _Faults:
    """A table opened anew for each batch: a mapping must be gone before the pages it touched can be evicted."""

    def __init__(self, run: Run, engine: str, n_tokens: int) -> None:
        self._run, self._engine, self._n_tokens = run, engine, n_tokens
        self._table: Table | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the batches drawn so far."""
        self.drawn = Drawn(cold_files=self._run.files)

    def prepare(self) -> Addresses:
        """Close, evict, open, and map every file; then see what opening has left in memory."""
        self.close()
        addresses = self.drawn.prepare(self._run, self._n_tokens)
        self._table = open_table(self._run.path)
        self._table.engine(self._engine)
        for file_idx in range(len(self._run.files)):
            self._table.stored.mapping(file_idx)
        self.drawn.resident_before[-1] = resident_bytes(self._run.files)
        return addresses

    def read(self, addresses: Addresses, out: NDArray[np.uint8]) -> None:
        """The timed window."""
        assert self._table is not None
        self._table.fetch(addresses, out, self._engine, threads=1)

    def close(self) -> None:
        """Let go of the table of the last batch, and note what the device has read for it."""
        self.drawn.count_device(self._run.path)
        if self._table is not None:
            self._table.close()
            self._table = None


def _cold_point(
    run: Run, name: str, n_rows: int, case: Case, drawn: Drawn, ceilings: dict[str, Any], *, seconds: float
) -> dict[str, Any]:
    samples = interleave({name: case}, repeats=run.plan.repeats, seconds=seconds, warm_ups=0)[name]
    drawn.count_device(run.path)
    point = make_point(run, name, n_rows, drawn, samples)
    device = drawn.device_bytes(len(samples.elapsed_ns))
    point["resident_bytes_before_batch_max"] = max(drawn.resident_before)
    point["touched_bytes_per_batch"] = device
    # A row asked for twice is read once, and rows that share a page share a read: reads, not rows, meet the
    # ceiling.
    pages_per_s = drawn.mean("unique_pages") * 1e9 / point["median_ns"]
    point["pages_per_s"] = pages_per_s
    point["ceiling"] = {"name": "random 4 KiB direct reads", "reads_per_s": ceilings["best_reads_per_s"]}
    point["share_of_ceiling"] = pages_per_s / ceilings["best_reads_per_s"]
    where = f"disk, {name}, {point['rows_per_batch']} rows"
    if max(drawn.resident_before) > _COLD_RESIDENT_SHARE * run.file_bytes:
        point["flags"].append(
            f"{where}: not cold, up to {max(drawn.resident_before)} of {run.file_bytes} bytes were in memory"
        )
    unique_bytes = drawn.mean("unique_bytes")
    if device is not None and device < 0.9 * unique_bytes:
        point["flags"].append(
            f"{where}: the device read {device:.0f} bytes a batch for {unique_bytes:.0f} bytes of distinct "
            "rows; the rest came from a cache"
        )
    per_s = unique_bytes * 1e9 / point["median_ns"]
    if per_s > _MARGIN * ceilings["sequential_bytes_per_s"]:
        point["flags"].append(
            f"{where}: {per_s / 1e9:.2f} GB/s is more than the device's sequential "
            f"{ceilings['sequential_bytes_per_s'] / 1e9:.2f} GB/s; it was not the device that answered"
        )
    return point


def _why_no_gpu() -> str:
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed, and this version has no GPU path"
    return "CuPy is installed, but this version has no GPU path"
