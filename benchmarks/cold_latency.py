"""The time of a batch of 48 rows, one token of V4.1, for `benchmarks.cold`: each engine beside one thread's mapping.

Owns how small batches are timed and the bar; the tables are the caller's. Two figures stand side by side, because they
differ by half: in a *run*, where one batch follows another as fast as it can, and *paused*, where nothing happens for
10 ms before each, as between two tokens of a decode loop. Processor and device fall asleep in a pause, and the caches
are somebody else's afterwards; so does the device between two engines that take turns batch by batch, which would be
neither. Engines therefore take turns run by run, in an order drawn anew for every round. The first batches of a run
are thrown away: they are what the engine before has left.

Every batch has rows of its own. Files are evicted before each run of an engine that reads through the page cache, and
the share of the table that a run itself brings in is in the record: a run's last batch finds no more of its rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from engram_tables.fetch.table import Table
from engram_tables.measure.residency import evict, resident_bytes
from engram_tables.measure.timing import Case, Samples, interleave

TOKEN_ROWS = 48
# One thread that faults in one page at a time: the engine gather, asked for one thread.
MAPPING = "mapping, one thread"
ENGINES = ("uring", "aio", "direct", "willneed")
PAUSE_S = 0.01
# By kind of run: seconds of pause before each batch, and batches of a run.
KINDS = {"run": (0.0, 20), "paused": (PAUSE_S, 5)}
_THROWN_AWAY = {"run": 2, "paused": 1}
_CACHED = ("willneed", MAPPING)
_MOST = 1 / 3


def latency_runs(table: Table, engines: tuple[str, ...]) -> dict[str, Callable[[Any], object]]:
    """What reads a batch of `TOKEN_ROWS` rows with each of the engines, and by the mapping."""
    out = np.full((TOKEN_ROWS, table.row_bytes), 1, np.uint8)
    runs: dict[str, Callable[[Any], object]] = {
        name: partial(_fetch, table, out, engine=name, threads=None) for name in engines
    }
    runs[MAPPING] = partial(_fetch, table, out, engine="gather", threads=1)
    return runs


def time_small_batches(table: Table, runs: dict[str, Callable[[Any], object]], n_batches: int) -> dict[str, Any]:
    """`n_batches` or a few more of each of `runs`, of each kind."""
    rng = np.random.default_rng()
    kinds = {kind: _time_kind(table, runs, kind, n_batches, rng) for kind in KINDS}
    return {"kinds": kinds, "bars": [_bar(kind, found["engines"]) for kind, found in kinds.items()]}


def _fetch(table: Table, out: Any, rows: Any, *, engine: str, threads: int | None) -> None:
    table.fetch_rows(0, rows, out, engine=engine, threads=threads)


def _time_kind(
    table: Table, runs: dict[str, Callable[[Any], object]], kind: str, n_batches: int, rng: np.random.Generator
) -> dict[str, Any]:
    pause_s, n_timed = KINDS[kind]
    paths = [file.path for file in table.stored.files]
    found = {name: Samples() for name in runs}
    left: dict[str, list[int]] = {name: [] for name in runs}
    brought: dict[str, list[int]] = {name: [] for name in runs}

    def prepare(name: str) -> Any:
        if name in _CACHED:
            left[name].append(evict(paths))
        return rng.integers(0, table.spec.n_rows, (_THROWN_AWAY[kind] + n_timed, TOKEN_ROWS))

    def run(name: str, batches: Any) -> None:
        for nth, rows in enumerate(batches):
            if pause_s:
                time.sleep(pause_s)
            cpu, start = time.process_time_ns(), time.perf_counter_ns()
            runs[name](rows)
            elapsed = time.perf_counter_ns() - start
            if nth >= _THROWN_AWAY[kind]:
                found[name].elapsed_ns.append(elapsed)
                found[name].cpu_ns.append(time.process_time_ns() - cpu)
        if name in _CACHED:
            brought[name].append(resident_bytes(paths))

    cases = {name: Case(prepare=partial(prepare, name), run=partial(run, name)) for name in runs}
    n_runs = -(-n_batches // n_timed)
    interleave(cases, repeats=n_runs, warm_ups=1)
    for samples in found.values():
        # What is before them warmed up.
        samples.elapsed_ns, samples.cpu_ns = samples.elapsed_ns[n_timed:], samples.cpu_ns[n_timed:]
    table_bytes = sum(file.file_bytes for file in table.stored.files)
    return {
        "pause_s": pause_s,
        "batches_per_run": n_timed,
        "engines": {
            name: {
                "p50_us": samples.median_ns / 1e3,
                "p99_us": samples.summary()["p99_ns"] / 1e3,
                "cpu_us_per_row": sum(samples.cpu_ns) / len(samples.cpu_ns) / TOKEN_ROWS / 1e3,
                "resident_bytes_before": max(left[name], default=None),
                "resident_share_after": max(brought[name]) / table_bytes if brought[name] else None,
                "samples_ns": samples.elapsed_ns,
            }
            for name, samples in found.items()
        },
    }


def _bar(kind: str, engines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The best engine's middle batch against the mapping's."""
    best = min((name for name in engines if name != MAPPING), key=lambda name: float(engines[name]["p50_us"]))
    share = float(engines[best]["p50_us"]) / float(engines[MAPPING]["p50_us"])
    about = f"p50 of a token's rows ({kind}), {best} against one thread's mapping"
    return {"about": about, "found": share, "least": None, "most": _MOST, "is_met": share <= _MOST}


def show_latency(latency: dict[str, Any]) -> None:
    """Both kinds on a terminal."""
    for kind, found in latency["kinds"].items():
        pause = f", {found['pause_s'] * 1e3:.0f} ms of pause before each" if found["pause_s"] else ", one after another"
        print(f"{TOKEN_ROWS} uniform rows a batch ({kind}{pause})")
        for name, figures in found["engines"].items():
            print(
                f"  {name:30} p50 {figures['p50_us']:7,.0f} µs, p99 {figures['p99_us']:7,.0f} µs, "
                f"{figures['cpu_us_per_row']:5.1f} µs of CPU a row"
            )
