"""What this machine can do at best, measured beside whatever is compared with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables.errors import BackendUnavailable
from engram_tables.measure.kernels import chase, copy_block, read_blocks, sum_words
from engram_tables.memory import CACHE_LINE_BYTES, aligned_bytes, anonymous_bytes
from engram_tables.threads import resolve_threads, run_slices

_BLOCK_BYTES = 4096
_SEQUENTIAL_BYTES = 1 << 20
_DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128)
_MOST_DEPTH = 1024
_WORTH, _SATURATED = 1.03, 0.95
_FIO_DEPTH = 64
_BUS_TESTS = ("host_to_device_memcpy_ce", "host_to_device_memcpy_sm")


def memory_ceilings(*, threads: int | None = None, region_bytes: int = 512 << 20, repeats: int = 5) -> dict[str, Any]:
    """Sequential copies by one thread and by all, a dependent pointer chase, and independent random cache
    lines.

    Bytes a second count what was copied once, not read plus written. The region is anonymous memory with huge
    pages.
    """
    n_threads = resolve_threads(threads)
    region = anonymous_bytes(region_bytes, huge_pages=True)
    region.fill(1)
    half = region_bytes // 2
    start = region.ctypes.data

    def copy(first: int, stop: int) -> None:
        copy_block(start + half + first, start + first, stop - first)

    def copy_all() -> None:
        run_slices(copy, half, threads=n_threads, grain=1 << 20)

    one_ns = _median_ns(lambda: copy(0, half), repeats)
    all_ns = _median_ns(copy_all, repeats)
    rng = np.random.default_rng(0)
    words = region.view(np.uint64)
    n_lines = region_bytes // CACHE_LINE_BYTES
    places = rng.integers(0, n_lines, 1 << 20) * (CACHE_LINE_BYTES // 8)
    lines_ns = _median_ns(lambda: sum_words(words, places), repeats)
    links = region.view(np.int64)
    cycle = rng.permutation(n_lines)[: 1 << 20] * (CACHE_LINE_BYTES // 8)
    links[cycle] = np.roll(cycle, -1)
    chase_ns = _median_ns(lambda: chase(links, cycle[0], 1 << 18), repeats)
    return {
        "region_bytes": region_bytes,
        "memcpy_1_thread_bytes_per_s": half * 10**9 / one_ns,
        "memcpy_all_threads_bytes_per_s": half * 10**9 / all_ns,
        "threads": n_threads,
        "random_lines_per_s": places.size * 10**9 / lines_ns,
        "dependent_load_ns": chase_ns / (1 << 18),
    }


def _median_ns(run: Callable[[], object], repeats: int) -> float:
    run()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        run()
        samples.append(time.perf_counter_ns() - start)
    return float(np.median(samples))


def sweep_depths(measure: Callable[[int], float], depths: Sequence[int]) -> dict[str, Any]:
    """Reads a second by reads in flight: `measure(depth)` at each depth, then at doubled ones while that still helps.

    `saturation_depth` is the least that reaches 95 % of the best; where it is the last one, the sweep did not pass
    saturation.
    """
    found = {depth: measure(depth) for depth in sorted(depths)}
    while len(found) > 1:
        *earlier, last = found
        if last * 2 > _MOST_DEPTH or found[last] < _WORTH * max(found[depth] for depth in earlier):
            break
        found[last * 2] = measure(last * 2)
    best = max(found.values())
    saturation = min(depth for depth, per_s in found.items() if per_s >= _SATURATED * best)
    return {
        "points": [{"depth": depth, "reads_per_s": per_s} for depth, per_s in found.items()],
        "best_reads_per_s": best,
        "saturation_depth": saturation,
        "is_past_saturation": saturation < max(found),
    }


def disk_ceilings(
    path: Path, *, seconds: float = 0.4, fio_seconds: float = 2.0, depths: Sequence[int] = _DEPTHS
) -> dict[str, Any]:
    """Random 4 KiB direct reads of the file, and sequential ones, which no figure for random rows can pass.

    A sweep of reads in flight by threads of our own, past saturation, and fio's io_uring at depth 64 where fio is
    installed.
    """
    swept = sweep_depths(lambda depth: direct_reads(path, depth=depth, seconds=seconds), depths)
    fio = fio_random_reads(path, seconds=fio_seconds)
    best = swept["best_reads_per_s"]
    run_bytes = min(_SEQUENTIAL_BYTES, path.stat().st_size // _BLOCK_BYTES * _BLOCK_BYTES)
    sequential = direct_reads(path, depth=16, seconds=seconds, block_bytes=run_bytes, in_order=True)
    return {
        "file_bytes": path.stat().st_size,
        "block_bytes": _BLOCK_BYTES,
        "threads": swept,
        "fio": fio,
        "best_reads_per_s": max(best, fio.get("reads_per_s", 0.0)),
        "sequential_bytes_per_s": sequential * run_bytes,
    }


def direct_reads(
    path: Path, *, depth: int, seconds: float, block_bytes: int = _BLOCK_BYTES, in_order: bool = False
) -> float:
    """Reads a second of `depth` threads that each wait for one direct read at a time.

    Raises
    ------
    BackendUnavailable
        The file's system has no direct reads, or some of them failed.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (AttributeError, OSError) as error:
        raise BackendUnavailable(f"{path}: no direct reads here ({error}); its disk has no ceiling to hold") from None
    try:
        n_blocks = path.stat().st_size // block_bytes if block_bytes else 0
        if n_blocks == 0:
            raise BackendUnavailable(f"{path}: shorter than a block of {_BLOCK_BYTES} bytes, too small to measure")
        rng = np.random.default_rng()
        n_reads, per_s = 32 * depth, 0.0
        spent = 0.0
        # Reads are added until they have lasted long enough; the last and longest run is the answer.
        while spent < seconds * 0.7:
            nth = np.arange(n_reads) % n_blocks if in_order else rng.integers(0, n_blocks, n_reads)
            elapsed = _read_once(fd, nth * block_bytes, depth, block_bytes, path)
            spent += elapsed
            per_s = n_reads / elapsed
            n_reads = max(n_reads, int(per_s * (seconds - spent)))
        return per_s
    finally:
        os.close(fd)


def _read_once(fd: int, offsets: Any, depth: int, block_bytes: int, path: Path) -> float:
    counter = np.zeros(1, np.int64)
    buffers = aligned_bytes(depth * block_bytes, _BLOCK_BYTES)
    failed = np.zeros(depth, np.int64)

    def work(start: int, stop: int) -> None:
        for worker in range(start, stop):
            buffer = buffers.ctypes.data + worker * block_bytes
            failed[worker] = read_blocks(counter, fd, offsets, block_bytes, buffer)

    start = time.perf_counter()
    run_slices(work, depth, threads=depth, grain=1)
    elapsed = time.perf_counter() - start
    if failed.any():
        raise BackendUnavailable(f"{path}: {int(failed.sum())} of {offsets.size} direct reads failed or fell short")
    return elapsed


def fio_random_reads(path: Path, *, seconds: float, depth: int = _FIO_DEPTH) -> dict[str, Any]:
    """fio's own figure for random 4 KiB direct reads by io_uring, or why there is none."""
    program = shutil.which("fio")
    if program is None:
        return {"status": "waived", "reason": "fio is not installed"}
    # fio runs elsewhere, and takes a colon for the end of a name.
    name = str(path.resolve()).replace(":", "\\:")
    command = [
        program, "--name=reads", f"--filename={name}", "--readonly", "--rw=randread", f"--bs={_BLOCK_BYTES}",
        "--direct=1", "--ioengine=io_uring", f"--iodepth={depth}", "--time_based",
        f"--runtime={max(seconds, 1):g}", "--randrepeat=0", "--norandommap", "--output-format=json",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        ended = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
    try:
        reads_per_s = float(json.loads(ended.stdout)["jobs"][0]["read"]["iops"])
    except (ValueError, LookupError):
        reads_per_s = 0.0
    if ended.returncode != 0 or reads_per_s == 0:
        last = (ended.stderr.strip() or "no output").splitlines()[-1]
        return {"status": "waived", "reason": f"fio ended with status {ended.returncode}: {last}"}
    return {"status": "measured", "command": command[1:], "depth": depth, "reads_per_s": reads_per_s}


def bus_ceilings() -> dict[str, Any]:
    """nvbandwidth's figures for copies from host memory to the GPU, by copy engines and by kernels, or why there are
    none."""
    program = shutil.which("nvbandwidth")
    if program is None:
        return {"status": "waived", "reason": "nvbandwidth is not installed"}
    command = [program, "--json", "--testcase", *_BUS_TESTS]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        cases = json.loads(ended.stdout[ended.stdout.index("{") :])["nvbandwidth"]["testcases"]
        # nvbandwidth says GB/s and means 10^9.
        found = {
            f"{case['name']}_bytes_per_s": float(case["sum"] if "sum" in case else case["average"]) * 1e9
            for case in cases
            if case.get("status") == "Passed"
        }
    except (ValueError, LookupError, TypeError):
        found = {}
    if not found:
        last = (ended.stderr.strip() or ended.stdout.strip() or "no output").splitlines()[-1]
        return {"status": "waived", "reason": f"nvbandwidth ended with status {ended.returncode}: {last}"}
    return {"status": "measured", "command": command[1:], **found}
