"""The figures of this machine that a plan needs, measured in seconds: memory, one call, and a disk's short bursts.

What it reads are blocks of a file, whosever they are: no row of a table is looked up, so that what a plan predicts of
rows can be compared with a benchmark of them. It decides nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.kernels import DONE as WARM_DONE
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.fetch.table import open_table
from engram_tables.measure.ceilings import direct_reads, memory_ceilings
from engram_tables.measure.environment import command_line, describe, read_meminfo
from engram_tables.measure.kernels import copy_block, sum_words
from engram_tables.measure.offload.blocks import BlockFiles, block_reads, engine_at_depth, engines_with_depth
from engram_tables.measure.planning.machine import PROBE_SCHEMA
from engram_tables.measure.trace import repeated_trace
from engram_tables.memory import CACHE_LINE_BYTES, anonymous_bytes
from engram_tables.storage.building.writer import build_table, plan_table
from engram_tables.storage.row_files import RowFile
from engram_tables.storage.table.layout import MANIFEST_NAME
from engram_tables.units import PAGE_BYTES, ProgressHook

_BURSTS = (1, 2, 4, 8, 16, 32, 64, 128)
_DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128)
_DEPTH = 128
_REST_S = 0.002
_MEGABYTE = 1 << 20
_CALLS = 300
_SHORT_READS, _LINES_A_ROW, _SHORT_RUNS, _COPY_BYTES = 2048, 5, 150, 512 << 10
_OTHER_BYTES = 8 << 20


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
    call_us = _call_us()
    advance()
    with _file_on(path, file_bytes) as file:
        disk = _disk(file, seconds, burst_repeats, advance)
    shm = Path("/dev/shm")
    return {
        "schema": PROBE_SCHEMA,
        "command": command_line(),
        "environment": describe(path),
        "path": str(path),
        "memory": memory,
        "short_runs": short_runs,
        "call_us": call_us,
        "memory_available_bytes": read_meminfo().get("MemAvailable", 0),
        "disk_free_bytes": shutil.disk_usage(path).free,
        "shm_free_bytes": shutil.disk_usage(shm).free if shm.is_dir() else None,
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


def _call_us() -> float:
    """Median microseconds of one fetch of a token's 48 records, which lie in the caches of the CPU but not in the
    nearest one, since a program does something else between two calls."""
    recipe = DeepSeekRecipe(
        name="probe", provenance="a table of a megabyte", canonical_size=100, orders=(2, 3, 4), heads=8,
        bases=(97, 97, 97), layer_ids=(0, 1), n_layers=2, fill_id=0, row_width=256,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        spec = recipe.resolve()
        build_table(plan_table(spec, codec="fp8-e4m3-e8m0", layout="packed", init="zeros"), Path(scratch) / "table")
        with open_table(Path(scratch) / "table") as table:
            trace, rng = repeated_trace(spec, n_tokens=64), np.random.default_rng(0)
            out, other = np.full((1, 2, 24, table.row_bytes), 1, np.uint8), np.full(_OTHER_BYTES, 1, np.uint8)
            taken = []
            for _ in range(_CALLS):
                other += 1
                addresses = trace.batch(int(rng.integers(0, trace.n_tokens)), 1)
                start = time.perf_counter_ns()
                table.fetch(addresses, out, "gather")
                taken.append(time.perf_counter_ns() - start)
    return float(np.median(taken[_CALLS // 3 :])) / 1e3


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
            "file_bytes": path.stat().st_size, "engine": name, "bursts": bursts, "sequential_bytes_per_s":
            in_order * run_bytes, **swept,
        }  # fmt: skip
    return {"status": "waived", "reason": "; ".join(reasons)}


def _bursts(path: Path, name: str, repeats: int, sizes: Sequence[int] = _BURSTS) -> list[dict[str, Any]]:
    """Reads of random blocks that are asked for at once, after a rest; sizes take turns."""
    fd = os.open(path, os.O_RDONLY)
    try:
        files = BlockFiles(RowFile(path=path, file_bytes=os.fstat(fd).st_size, fd=fd))
        sizes = [size for size in sizes if size <= files.n_blocks]
        taken: dict[int, list[int]] = {size: [] for size in sizes}
        rng = np.random.default_rng()
        out = np.full((max(sizes), PAGE_BYTES), 1, np.uint8)
        with closing(engine_at_depth(name, files, Placements(files), _DEPTH)) as engine:
            # What the first calls compile is thrown away.
            for turn in range(-1, repeats):
                for size in sizes:
                    rows = rng.permutation(np.unique(rng.integers(0, files.n_blocks, size)))
                    time.sleep(_REST_S)
                    start = time.perf_counter_ns()
                    _read(engine, rows, out[: rows.size])
                    if turn >= 0:
                        taken[size].append(time.perf_counter_ns() - start)
    finally:
        os.close(fd)
    return [
        {"n_reads": size, "median_us": float(np.median(samples)) / 1e3, "samples_ns": samples}
        for size, samples in taken.items()
    ]


def _read(engine: Engine, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    """The short way where the engine has one that takes them, as `Table.fetch_rows` goes."""
    if engine.warm is None or engine.warm.fetch_rows(0, rows, out) != WARM_DONE:
        engine.read(Batch(rows=rows, n_columns=rows.size, first_layer=0, n_layers=1), out)
