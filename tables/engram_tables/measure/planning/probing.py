"""The figures of this machine that a plan needs, measured in seconds: memory, one call, and a disk's short bursts.

What it reads are blocks of a file, whosever they are: no row of a table is looked up, so that what a plan predicts of
rows can be compared with a benchmark of them. It decides nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.gpu.runtime import cuda_device, why_no_gpu
from engram_tables.fetch.kernels import DONE as WARM_DONE
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.fetch.table import AUTO, open_table
from engram_tables.measure.ceilings import direct_reads, memory_ceilings
from engram_tables.measure.environment import command_line, describe, read_meminfo
from engram_tables.measure.kernels import copy_block, sum_words
from engram_tables.measure.offload.blocks import BlockFiles, block_reads, engine_at_depth, engines_with_depth
from engram_tables.measure.offload.lookups import Lookups, fetcher
from engram_tables.measure.offload.rounds import Case, touched_buffers
from engram_tables.measure.planning.machine import PROBE_SCHEMA, call_of_line
from engram_tables.measure.trace import repeated_trace
from engram_tables.memory import CACHE_LINE_BYTES, anonymous_bytes
from engram_tables.storage.building.writer import build_table, plan_table
from engram_tables.storage.row_files import RowFile
from engram_tables.storage.table.layout import MANIFEST_NAME
from engram_tables.units import PAGE_BYTES, ProgressHook

_BURSTS = (1, 2, 4, 8, 16, 32, 64, 128)
_PLANNED_BURSTS = (1, 8, 32, 64, 128, 256, 512)
_DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128)
_DEPTH = 128
_REST_S = 0.002
_MEGABYTE = 1 << 20
_CALLS = 300
_CALL_TOKENS = (1, 8)
_SHORT_READS, _LINES_A_ROW, _SHORT_RUNS, _COPY_BYTES = 2048, 5, 150, 512 << 10


def probe(
    path: Path,
    *,
    threads: int | None = None,
    seconds: float = 0.2,
    burst_repeats: int = 40,
    file_bytes: int = 1 << 30,
    region_bytes: int = 512 << 20,
    progress: ProgressHook | None = None,
) -> dict[str, Any]:
    """Measure memory, one call and the disk under `path`; the record is an `engram.plan-probe/1`.

    Parameters
    ----------
    path
        A table, whose largest file is read; or a directory, in which a file of `file_bytes` random bytes is written for
        the time of the measurement.
    seconds
        Of each depth of the sweep.
    burst_repeats
        Bursts of each size, interleaved. Before each the device rests 2 ms.

    Raises
    ------
    InvalidInput
        `path` is no directory.
    """
    if not path.is_dir():
        raise InvalidInput(
            f"--probe {path}: found no directory, expected a table or a directory on the disk in question"
        )
    steps = iter(range(1, 5))

    def advance() -> None:
        if progress is not None:
            progress(next(steps), 4)

    memory = memory_ceilings(threads=threads, region_bytes=region_bytes)
    short_runs = _short_runs(region_bytes)
    advance()
    calls = _calls()
    advance()
    with _file_on(path, file_bytes) as file:
        disk = _disk(file, seconds, burst_repeats, advance)
    shm, no_gpu = Path("/dev/shm"), why_no_gpu()
    return {
        "schema": PROBE_SCHEMA,
        "command": command_line(),
        "environment": describe(path),
        "path": str(path),
        "memory": memory,
        "short_runs": short_runs,
        "calls": calls,
        "call_us": call_of_line([(int(call["n_rows"]), call["median_us"]) for call in calls]),
        "memory_available_bytes": read_meminfo().get("MemAvailable", 0),
        "disk_free_bytes": shutil.disk_usage(path).free,
        "shm_free_bytes": shutil.disk_usage(shm).free if shm.is_dir() else None,
        "why_no_gpu": no_gpu,
        "gpu_free_bytes": None if no_gpu is not None else cuda_device().free_bytes(),
        "disk": disk,
    }


def _short_runs(region_bytes: int) -> dict[str, float]:
    """Random reads and a copy, by runs as long as a fetch is: medians of many.

    A ceiling's long run is interrupted on a busy machine, and most fetches are not. `line_ns` is an independent random
    cache line, `run_ns` five of them in a row at a random place, as a row of 264 bytes lies.
    """
    words = anonymous_bytes(region_bytes, huge_pages=True).view(np.uint64)
    words.fill(1)
    rng, per_line = np.random.default_rng(0), CACHE_LINE_BYTES // 8
    lines = np.arange(_LINES_A_ROW) * per_line
    n_lines, half_bytes = words.size // per_line, region_bytes // 2
    taken: dict[str, list[int]] = {"line": [], "run": [], "copy": []}

    def timed(name: str, run: Callable[[], object]) -> None:
        start = time.perf_counter_ns()
        run()
        taken[name].append(time.perf_counter_ns() - start)

    for _ in range(_SHORT_RUNS):
        places = rng.integers(0, n_lines, _SHORT_READS) * per_line
        timed("line", lambda places=places: sum_words(words, places))  # type: ignore[misc]
        starts = rng.integers(0, n_lines - _LINES_A_ROW, _SHORT_READS // _LINES_A_ROW)[:, None] * per_line
        rows = (starts + lines).reshape(-1)
        timed("run", lambda rows=rows: sum_words(words, rows))  # type: ignore[misc]
        source = words.ctypes.data + int(rng.integers(0, max(1, (half_bytes - _COPY_BYTES) // 4096))) * 4096
        timed("copy", lambda source=source: copy_block(source + half_bytes, source, _COPY_BYTES))  # type: ignore[misc]
    line, run, copy = (float(np.median(samples[_SHORT_RUNS // 3 :])) for samples in taken.values())
    return {
        "line_ns": line / _SHORT_READS,
        "run_ns": run / (_SHORT_READS // _LINES_A_ROW),
        "lines_a_run": _LINES_A_ROW,
        "copy_bytes_per_s": _COPY_BYTES * 1e9 / copy,
    }


def _calls() -> list[dict[str, float]]:
    """Median microseconds of fetches of 48 and of 384 records that lie in the processor's caches.

    In the benchmark's own loop, one length after the other: what it does between two batches leaves the caches as it
    leaves them there.
    """
    recipe = DeepSeekRecipe(
        name="probe", provenance="a table of a megabyte", canonical_size=100, orders=(2, 3, 4), heads=8,
        bases=(97, 97, 97), layer_ids=(0, 1), n_layers=2, fill_id=0, row_width=256,
    )  # fmt: skip
    calls = []
    with tempfile.TemporaryDirectory() as scratch:
        home, spec = Path(scratch) / "table", recipe.resolve()
        build_table(plan_table(spec, codec="fp8-e4m3-e8m0", layout="packed", init="zeros"), home)
        with open_table(home) as table:
            lookups = Lookups(table, repeated_trace(spec, n_tokens=64), seed=0)
            for n_tokens in _CALL_TOKENS:
                n_rows = lookups.n_rows(n_tokens)
                outs = touched_buffers(1, n_rows, table.row_bytes)
                case = Case(home, lookups, fetcher(table, AUTO, None), outs, n_tokens=n_tokens, turn=0)
                for _ in range(_CALLS):
                    case.round()
                median_us = float(np.median(case.noted.batch_ns[_CALLS // 3 :])) / 1e3
                calls.append({"n_rows": n_rows, "median_us": median_us})
    return calls


@contextmanager
def _file_on(path: Path, file_bytes: int) -> Iterator[Path]:
    """A large file on the disk that holds `path`: a table's own, or one that is removed afterwards."""
    if (path / MANIFEST_NAME).is_file():
        yield max((file for file in path.rglob("*.safetensors")), key=lambda file: file.stat().st_size)
        return
    with tempfile.NamedTemporaryFile(dir=path, prefix=".engram-probe-") as file:
        rng = np.random.default_rng(0)
        for _ in range(max(1, file_bytes // _MEGABYTE)):
            file.write(rng.bytes(_MEGABYTE))
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def _disk(path: Path, seconds: float, burst_repeats: int, advance: Any) -> dict[str, Any]:
    """Bursts and the sweep by the first engine that is told how many reads to keep in flight and that works here."""
    reasons = []
    for name in engines_with_depth():
        try:
            bursts = _bursts(path, name, burst_repeats)
            advance()
            swept = block_reads(path, name, depths=_DEPTHS, seconds=seconds)
            if swept["status"] != "measured":
                raise BackendUnavailable(swept["reason"])
            run_bytes = min(_MEGABYTE, path.stat().st_size // PAGE_BYTES * PAGE_BYTES)
            in_order = direct_reads(path, depth=16, seconds=seconds, block_bytes=run_bytes, in_order=True)
        except (BackendUnavailable, InvalidInput, OSError) as error:
            reasons.append(f"{name}: {error}")
            continue
        advance()
        return {
            "file_bytes": path.stat().st_size, "engine": name, **bursts,
            "sequential_bytes_per_s": in_order * run_bytes, **swept,
        }  # fmt: skip
    return {"status": "waived", "reason": "; ".join(reasons)}


def _bursts(path: Path, name: str, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Reads of random blocks that are asked for at once, after a rest; sizes take turns.

    `bursts` go the engine's short way, one compiled call, `planned_bursts` the way of large batches and of rows in two
    parts, which are sorted and put together as reads before the first one is asked for.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        files = BlockFiles(RowFile(path=path, file_bytes=os.fstat(fd).st_size, fd=fd))
        asked = [("bursts", size) for size in _BURSTS] + [("planned_bursts", size) for size in _PLANNED_BURSTS]
        taken: dict[tuple[str, int], list[int]] = {each: [] for each in asked if each[1] <= files.n_blocks}
        rng = np.random.default_rng()
        out = np.full((max(size for _, size in asked), PAGE_BYTES), 1, np.uint8)
        with closing(engine_at_depth(name, files, Placements(files), _DEPTH)) as engine:
            # What the first calls compile is thrown away.
            for turn in range(-1, repeats):
                for way, size in taken:
                    rows = rng.permutation(np.unique(rng.integers(0, files.n_blocks, size)))
                    time.sleep(_REST_S)
                    start = time.perf_counter_ns()
                    _read(engine, rows, out[: rows.size], is_planned=way == "planned_bursts")
                    if turn >= 0:
                        taken[way, size].append(time.perf_counter_ns() - start)
    finally:
        os.close(fd)
    found: dict[str, list[dict[str, Any]]] = {"bursts": [], "planned_bursts": []}
    for (way, size), samples in taken.items():
        found[way].append({"n_reads": size, "median_us": float(np.median(samples)) / 1e3, "samples_ns": samples})
    return found


def _read(engine: Engine, rows: NDArray[np.int64], out: NDArray[np.uint8], *, is_planned: bool) -> None:
    """The short way where the engine has one that takes them, as `Table.fetch_rows` goes; planned, the other one."""
    batch = Batch(rows=rows, n_columns=rows.size, first_layer=0, n_layers=1)
    if is_planned:
        # A choice of records, here all of them, is always planned.
        engine.read(batch, out, items=np.arange(rows.size))
    elif engine.warm is None or engine.warm.fetch_rows(0, rows, out) != WARM_DONE:
        engine.read(batch, out)
