"""How fast cold rows come, for `benchmarks.cold`: each engine beside fio and another project's store, in turn, on a
packed table in four shards; `cold_latency` has the small batches.

Owns what is compared and the bars; the tables are the caller's. Rows are drawn anew for every batch, uniformly: a
bound, since real text asks for some rows again. The smaller the table, the better fares what reads ahead through the
page cache: 65,536 rows lie in 6 % of the pages of 4 GiB, and in 0.1 % of those of a whole model. The bytes that each
one fetched from the device say which it was.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cold_latency
from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import Table
from engram_tables.measure.residency import evict
from engram_tables.measure.timing import Case, Samples, interleave
from engram_tables.units import PAGE_BYTES

BATCH_ROWS = 65_536
SHARDS = 4
FIO_DEPTH = 64
FIO = "fio"
PEER = "engramdb"
PEER_VERSION = "0.3.0"
ENGINES = ("uring", "aio", "direct", "willneed", "pread")
# Those that leave what they read in the page cache, which is emptied before each of their batches.
CACHED = ("willneed", "pread", PEER)
_CHECKED_ROWS = 4096
_COPY_BYTES = 64 << 20


def measure_speed(table: Table, scratch: Path, options: Any) -> dict[str, Any]:
    """Rows a second and CPU a row in batches of 65,536."""
    rng = np.random.default_rng()
    runs, waived, wrong = _engines(table, ENGINES, rng)
    peer = open_peer(table, scratch / PEER, rng)
    if isinstance(peer, str):
        waived[PEER] = peer
    else:
        runs[PEER] = peer
    if wrong or not runs:
        return {"status": "mismatch" if wrong else "waived", "reason": wrong or str(waived)}
    paths = [file.path for file in table.stored.files]
    fio: list[dict[str, Any]] = []
    left: dict[str, list[int]] = {name: [] for name in runs}
    cases = {FIO: Case(prepare=lambda: fio.append(run_fio(paths, options.seconds)), run=lambda _: None)}
    own_bytes: dict[str, list[int]] = {name: [] for name in runs}
    for name, run in runs.items():
        prepare = partial(_draw, name, rng, table, scratch, left)
        cases[name] = Case(prepare=prepare, run=partial(_counted, run, own_bytes[name]))
    samples = interleave(cases, repeats=options.repeats, warm_ups=1)
    figures = {name: _figures(samples[name], left[name], own_bytes[name][1:]) for name in runs}
    return {
        "status": "measured",
        "file_bytes": sum(file.file_bytes for file in table.stored.files),
        "shards": len(paths),
        "rows": "uniform",
        "rows_per_batch": BATCH_ROWS,
        # The first run of each warmed up.
        "fio": _fio_figures(fio[1:]),
        "engines": figures,
        "waived_engines": waived,
        "bars": _speed_bars(fio[1:], figures),
    }


def measure_latency(table: Table, options: Any) -> dict[str, Any]:
    """Time of a batch of 48 rows, which is one token of V4.1; see `cold_latency`."""
    runs, waived, wrong = _engines(table, cold_latency.ENGINES, np.random.default_rng())
    if wrong or not runs:
        return {"status": "mismatch" if wrong else "waived", "reason": wrong or str(waived)}
    timed = cold_latency.latency_runs(table, tuple(runs))
    return {
        "status": "measured", "rows": "uniform", "rows_per_batch": cold_latency.TOKEN_ROWS,
        **cold_latency.time_small_batches(table, timed, options.tokens), "waived_engines": waived,
    }  # fmt: skip


def _engines(
    table: Table, names: tuple[str, ...], rng: np.random.Generator
) -> tuple[dict[str, Callable[[Any], object]], dict[str, str], str | None]:
    """What runs each engine, why others do not run, and which bytes were wrong."""
    rows = rng.integers(0, table.spec.n_rows, _CHECKED_ROWS)
    expected = read_rows(table.stored, 0, rows)
    out = np.full((BATCH_ROWS, table.row_bytes), 1, np.uint8)
    runs: dict[str, Callable[[Any], object]] = {}
    waived: dict[str, str] = {}

    def fetch(engine: str, rows: Any) -> None:
        table.fetch_rows(0, rows, out[: rows.size], engine=engine)

    for name in names:
        try:
            if not np.array_equal(table.fetch_rows(0, rows, engine=name), expected):
                return runs, waived, f"{name}: bytes differ from a slow reading; nothing was timed"
        except BackendUnavailable as error:
            waived[name] = str(error)
        else:
            runs[name] = partial(fetch, name)
    return runs, waived, None


def _draw(name: str, rng: np.random.Generator, table: Table, scratch: Path, left: dict[str, list[int]]) -> Any:
    """Rows of the next batch, after the page cache was emptied of what an engine may find there."""
    if name in CACHED:
        of_peer = sorted((scratch / PEER).iterdir()) if name == PEER else None
        left[name].append(evict(of_peer or table.stored.files))
    rows = rng.integers(0, table.spec.n_rows, BATCH_ROWS)
    return rows.tolist() if name == PEER else rows


def _counted(run: Callable[[Any], object], own_bytes: list[int], rows: Any) -> None:
    """Run, and keep what the system fetched from devices for this process; asking takes microseconds."""
    before = own_read_bytes()
    run(rows)
    after = own_read_bytes()
    if before is not None and after is not None:
        own_bytes.append(after - before)


def own_read_bytes() -> int | None:
    """Bytes that the system has fetched from devices for this process; None where it does not say."""
    counters = Path("/proc/self/io")
    lines = counters.read_text().splitlines() if counters.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)


def _figures(samples: Samples, left: list[int], own_bytes: list[int]) -> dict[str, Any]:
    return {
        "own_bytes_per_row": [n_bytes / BATCH_ROWS for n_bytes in own_bytes],
        "rows_per_s": [BATCH_ROWS * 1e9 / elapsed_ns for elapsed_ns in samples.elapsed_ns],
        "cpu_us_per_row": [cpu_ns / BATCH_ROWS / 1e3 for cpu_ns in samples.cpu_ns],
        # Engines that pass the page cache by are not asked.
        "resident_bytes_before": max(left, default=None),
        **samples.summary(),
    }


# What the engines are held against.


def run_fio(paths: list[Path], seconds: float) -> dict[str, Any]:
    """fio's io_uring at depth 64 on the same files, 4 KiB direct reads: reads a second, and CPU of its job."""
    program = shutil.which("fio")
    if program is None:
        return {"status": "waived", "reason": "fio is not installed"}
    # fio runs elsewhere, and takes a colon for the end of a name.
    names = ":".join(str(path.resolve()).replace(":", "\\:") for path in paths)
    command = [
        program, "--name=reads", f"--filename={names}", "--readonly", "--rw=randread", f"--bs={PAGE_BYTES}",
        "--direct=1", "--ioengine=io_uring", f"--iodepth={FIO_DEPTH}", "--time_based",
        f"--runtime={max(seconds, 1):g}", "--randrepeat=0", "--norandommap", "--output-format=json",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        ended = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
    try:
        job = json.loads(ended.stdout)["jobs"][0]
        n_reads, runtime_us = int(job["read"]["total_ios"]), float(job["read"]["runtime"]) * 1e3
        cpu_us = (float(job["usr_cpu"]) + float(job["sys_cpu"])) / 100 * runtime_us
        reads_per_s = float(job["read"]["iops"])
    except (ValueError, LookupError):
        n_reads = 0
    if ended.returncode != 0 or n_reads == 0:
        last = (ended.stderr.strip() or "no output").splitlines()[-1]
        return {"status": "waived", "reason": f"fio ended with status {ended.returncode}: {last}"}
    return {
        "status": "measured", "command": command[1:], "reads_per_s": reads_per_s, "cpu_us_per_read": cpu_us / n_reads,
    }  # fmt: skip


def _fio_figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    refused = next((run for run in runs if run["status"] != "measured"), None)
    if refused is not None:
        return refused
    figures = {name: [run[name] for run in runs] for name in ("reads_per_s", "cpu_us_per_read")}
    return {"status": "measured", "command": runs[0]["command"], **figures}


def open_peer(table: Table, directory: Path, rng: np.random.Generator) -> Callable[[Any], object] | str:
    """EngramDB's fetch of the same rows in four files of its own form, which has no header; or why there is none."""
    try:
        module = importlib.import_module("engramdb")
    except ImportError as error:
        return f"engramdb-python {PEER_VERSION} is not installed ({error})"
    if module.__version__ != PEER_VERSION:
        return f"engramdb-python {module.__version__} is installed, expected {PEER_VERSION}"
    n_rows = table.spec.n_rows
    if n_rows % SHARDS:
        return f"{n_rows} rows do not divide by {SHARDS} files"
    _write_peer(table, directory)
    fetch: Callable[[Any], bytes] = module.Store(str(directory), SHARDS, n_rows // SHARDS, table.row_bytes).fetch
    rows = rng.integers(0, n_rows, _CHECKED_ROWS)
    if fetch(rows.tolist()) != read_rows(table.stored, 0, rows).tobytes():
        return "its bytes differ from a slow reading; it was not timed"
    return fetch


def _write_peer(table: Table, directory: Path) -> None:
    directory.mkdir()
    n_rows, row_bytes = table.spec.n_rows, table.row_bytes
    step = n_rows // SHARDS
    for shard in range(SHARDS):
        with (directory / f"shard_{shard:03}.bin").open("xb") as file:
            stop = (shard + 1) * step
            for start in range(shard * step, stop, _COPY_BYTES // row_bytes):
                rows = np.arange(start, min(start + _COPY_BYTES // row_bytes, stop))
                file.write(table.fetch_rows(0, rows, engine="pread").data)


def _speed_bars(fio: list[dict[str, Any]], figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The best engine against fio and the peer, round by round; the middle round counts.

    The best is the one that spends least CPU among those within 5 % of the fastest.
    """
    ours = {name: found for name, found in figures.items() if name in ENGINES}
    per_s = {name: float(np.median(found["rows_per_s"])) for name, found in ours.items()}
    near = [name for name in ours if per_s[name] >= 0.95 * max(per_s.values())]
    best = min(near, key=lambda name: float(np.median(ours[name]["cpu_us_per_row"])))
    bars = []
    if all(run["status"] == "measured" for run in fio):
        reads_per_s = np.array([run["reads_per_s"] for run in fio])
        cpu_us = np.array([run["cpu_us_per_read"] for run in fio])
        for name in dict.fromkeys((best, *ours)):
            ratio = float(np.median(np.array(ours[name]["rows_per_s"]) / reads_per_s))
            cpu_ratio = float(np.median(np.array(ours[name]["cpu_us_per_row"]) / cpu_us))
            is_best = name == best
            bars.append(_bar(f"rows/s of {name} against fio's reads", ratio, least=0.95 if is_best else None))
            bars.append(_bar(f"CPU a row of {name} against fio's a read", cpu_ratio, most=1.1 if is_best else None))
    if PEER in figures:
        ratio = float(np.median(np.array(ours[best]["rows_per_s"]) / np.array(figures[PEER]["rows_per_s"])))
        bars.append(_bar(f"rows/s of {best} against EngramDB's", ratio, least=2.5))
    return bars


def _bar(about: str, found: float, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    is_met = None
    if least is not None or most is not None:
        is_met = (least is None or found >= least) and (most is None or found <= most)
    return {"about": about, "found": found, "least": least, "most": most, "is_met": is_met}


# On a terminal.


def show_speed(speed: dict[str, Any], latency: dict[str, Any]) -> None:
    """Both measurements."""
    if speed["status"] != "measured":
        print(f"rows a second: {speed['status']}: {speed['reason']}")
    else:
        print(f"packed, {speed['shards']} shards, {speed['file_bytes']:,} bytes, {BATCH_ROWS:,} uniform rows a batch")
        fio = speed["fio"]
        if fio["status"] == "measured":
            _show_line(f"fio io_uring 4 KiB, depth {FIO_DEPTH}", fio["reads_per_s"], fio["cpu_us_per_read"])
        else:
            print(f"  fio: {fio['status']}: {fio['reason']}")
        for name, found in speed["engines"].items():
            _show_line(name, found["rows_per_s"], found["cpu_us_per_row"], found["own_bytes_per_row"])
    if latency["status"] != "measured":
        print(f"a token's rows: {latency['status']}: {latency['reason']}")
    else:
        cold_latency.show_latency(latency)
    for part in (speed, latency):
        for name, why in part.get("waived_engines", {}).items():
            print(f"  without {name}: {why}")
        for bar in part.get("bars", ()):
            wanted = f"at least {bar['least']:.2f}" if bar["least"] is not None else ""
            wanted = f"at most {bar['most']:.2f}" if bar["most"] is not None else wanted
            verdict = "" if bar["is_met"] is None else f"; {wanted}: {'met' if bar['is_met'] else 'NOT met'}"
            print(f"  {bar['about']}: {bar['found']:.2f}{verdict}")


def _show_line(name: str, per_s: list[float], cpu_us: list[float], own_bytes: list[float] | None = None) -> None:
    fetched = f", {np.median(own_bytes):,.0f} bytes from the device" if own_bytes else ""
    print(
        f"  {name:30} {np.median(per_s):9,.0f} a second ({min(per_s):,.0f} to {max(per_s):,.0f}), "
        f"{np.median(cpu_us):5.1f} µs of CPU each{fetched}"
    )
