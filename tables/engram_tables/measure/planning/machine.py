"""A machine as figures: from records of benchmarks and probes, with what is given by hand before what is measured.

It reads records and measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_tables.errors import InvalidInput
from engram_tables.measure.planning.disk import Burst, Disk, bursts_from_sweep, disk_by_hand
from engram_tables.measure.planning.figures import USUAL, USUAL_DISK_LATENCY_US, Figure, Origin, check_figure

BENCH_SCHEMA = "engram.bench-offload/2"
PROBE_SCHEMA = "engram.plan-probe/1"
PLAN_SCHEMA = "engram.plan/1"
_SPACES = ("dram_bytes", "gpu_memory_bytes", "shm_bytes", "cxl_bytes", "disk_bytes")
_LONGEST_RECORD_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a plan knows of a machine.

    Attributes
    ----------
    spaces
        Bytes that a table may take, by name: `dram_bytes`, `gpu_memory_bytes`, `shm_bytes`, `cxl_bytes`, `disk_bytes`.
        What nobody said is not in it.
    rates
        Every name of `figures.USUAL`.
    disk
        None if unknown.
    """

    spaces: Mapping[str, Figure]
    rates: Mapping[str, Figure]
    disk: Disk | None

    def rate(self, name: str) -> float:
        """The figure itself."""
        return self.rates[name].value

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        return {
            "spaces": {name: figure.to_json() for name, figure in self.spaces.items()},
            "rates": {name: figure.to_json() for name, figure in self.rates.items()},
            "disk": None if self.disk is None else self.disk.to_json(),
        }


def make_machine(
    *,
    records: Sequence[tuple[str, Mapping[str, Any]]] = (),
    spaces: Mapping[str, Figure] | None = None,
    rates: Mapping[str, Figure] | None = None,
    disk_reads_per_s: Figure | None = None,
    disk_latency_us: Figure | None = None,
) -> Machine:
    """A machine of records and of figures by hand, which come first.

    Parameters
    ----------
    records
        (name, record) each: `engram.bench-offload/2`, `engram.plan-probe/1`, `engram.plan/1`. A later one comes before
        an earlier one.
    spaces, rates
        By the names that `Machine` has.

    Raises
    ------
    InvalidInput
        A record of another schema, or a figure that is not above 0.
    """
    found: dict[str, Figure] = dict(USUAL)
    known: dict[str, Figure] = {}
    disk: Disk | None = None
    for name, record in records:
        read = _READERS.get(str(record.get("schema")))
        if read is None:
            raise InvalidInput(
                f"{name}: found schema {record.get('schema')!r}, expected one of {', '.join(_READERS)}; give a record "
                "that bench-offload or plan wrote"
            )
        try:
            of_record = read(name, record)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InvalidInput(
                f"{name}: found a record without what its schema says ({type(error).__name__}: {error}), expected a "
                "whole one; write it again"
            ) from error
        known |= of_record.spaces
        found |= of_record.rates
        disk = of_record.disk or disk
    known |= spaces or {}
    found |= rates or {}
    for name, figure in [*known.items(), *found.items()]:
        if name not in (*_SPACES, *USUAL):
            raise InvalidInput(f"machine: found the figure {name!r}, expected one of {', '.join((*_SPACES, *USUAL))}")
        if name not in _SPACES or figure.value != 0:
            check_figure(figure.value, figure.where)
    return Machine(spaces=known, rates=found, disk=_with_given(disk, disk_reads_per_s, disk_latency_us))


def read_record(path: Path) -> tuple[str, dict[str, Any]]:
    """(name, record) of a JSON file; `InvalidInput` where it is none."""
    try:
        if path.stat().st_size > _LONGEST_RECORD_BYTES:
            raise InvalidInput(f"{path}: found {path.stat().st_size} bytes, expected a record; name another file")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{path}: found no JSON ({error}), expected a record; name another file") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"{path}: found JSON of another kind, expected a record; name another file")
    return str(path), record


def _with_given(disk: Disk | None, reads_per_s: Figure | None, latency_us: Figure | None) -> Disk | None:
    """The measured disk where nothing was given; else one of two figures, the other one measured or usual."""
    if reads_per_s is None and latency_us is None:
        return disk
    if reads_per_s is None and disk is None:
        raise InvalidInput("--disk-latency-us: found it alone, expected --disk-reads-per-s too; a latency is no rate")
    for figure in (reads_per_s, latency_us):
        if figure is not None:
            check_figure(figure.value, figure.where)
    if latency_us is None:
        latency_us = USUAL_DISK_LATENCY_US if disk is None else _first_burst(disk)
    serial_read_us = None if disk is None else _serial_of(disk, latency_us)
    return disk_by_hand(reads_per_s=reads_per_s or _rate_of(disk), latency_us=latency_us, serial_read_us=serial_read_us)


def _serial_of(disk: Disk, latency_us: Figure) -> Figure:
    """One read after the other on a device like `disk` of another latency: as before where that is no longer, slower in
    proportion where it is, and never slower than after a rest."""
    was_us = disk.bursts[0].us
    if latency_us.value >= disk.serial_read_us.value and latency_us.value <= was_us:
        return disk.serial_read_us
    serial_us = min(latency_us.value, disk.serial_read_us.value * max(1.0, latency_us.value / was_us))
    where = f"{disk.serial_read_us.where}, by the latency of {latency_us.where}"
    return Figure(value=serial_us, origin=Origin.COMPUTED, where=where)


def _first_burst(disk: Disk) -> Figure:
    return Figure(value=disk.bursts[0].us, origin=disk.origin, where=disk.where)


def _rate_of(disk: Disk | None) -> Figure:
    assert disk is not None
    return disk.reads_per_s


def _measured(value: Any, where: str) -> Figure:
    return Figure(value=float(value), origin=Origin.MEASURED, where=where)


def _of_bench(name: str, record: Mapping[str, Any]) -> Machine:
    ceilings = record["ceilings"]
    rates = _memory_rates(name, ceilings.get("memory") or {})
    cached: dict[int, float] = {}
    for section in record["sections"]:
        for point in section.get("points", ()):
            if (section["source"], point["trace"], point["streams"]) == ("dram", "repeated", 1):
                n_rows, us = int(point["rows_per_batch"]), float(point["batch_p50_us"])
                cached[n_rows] = min(us, cached.get(n_rows, us))
    if cached:
        call_us = call_of_line(sorted(cached.items())[:2])
        rates["call_us"] = _measured(call_us, f"{name}: batches of one repeated token, less their rows")
    upload = ceilings.get("upload") or {}
    if "bytes_per_s" in upload:
        rates["bus_bytes_per_s"] = _measured(upload["bytes_per_s"], f"{name}: copies of pinned memory to the GPU")
    disk = ceilings.get("disk") or {}
    known = {}
    if record["environment"].get("memory_available_bytes"):
        known["dram_bytes"] = _measured(record["environment"]["memory_available_bytes"], f"{name}: memory available")
    return Machine(
        spaces=known, rates=rates, disk=_swept_disk(name, disk) if disk.get("status") == "measured" else None
    )


def call_of_line(points: Sequence[tuple[int, float]]) -> float:
    """Microseconds of a call without its rows, from (rows, microseconds of a fetch) of the least and the most rows.

    Notes
    -----
    A fetch takes call + rows x row, whose rows a plan reckons by themselves: of rows that lie in the processor's caches
    the straight line is followed down to none. Noise may bend it; a tenth of the shorter fetch is the least. A single
    point is taken as it is.
    """
    (few, of_few), (many, of_many) = points[0], points[-1]
    if many == few:
        return of_few
    return max(of_few / 10, of_few - few * (of_many - of_few) / (many - few))


def _memory_rates(name: str, memory: Mapping[str, Any]) -> dict[str, Figure]:
    if memory.get("status", "measured") != "measured" or "random_lines_per_s" not in memory:
        return {}
    one, all_threads = memory["memcpy_1_thread_bytes_per_s"], memory["memcpy_all_threads_bytes_per_s"]
    # A copy reads a line and writes one.
    next_line = Figure(value=32e9 / one, origin=Origin.COMPUTED, where=f"{name}: half of what memcpy takes for a line")
    return {
        "next_line_ns": next_line,
        "copy_bytes_per_s": _measured(one, f"{name}: memcpy by one thread"),
        "copy_scaling": _measured(max(1.0, all_threads / one), f"{name}: memcpy by {memory['threads']} threads over 1"),
        "random_lines_per_s": _measured(memory["random_lines_per_s"], f"{name}: independent random cache lines"),
        "dependent_load_ns": _measured(memory["dependent_load_ns"], f"{name}: a pointer chase"),
    }


def _swept_disk(name: str, disk: Mapping[str, Any]) -> Disk:
    sweeps = [sweep for sweep in disk["engines"] if sweep["status"] == "measured"]
    engine, sweep = (sweeps[0]["engine"], sweeps[0]) if sweeps else ("threads", disk["threads"])
    where = f"{name}: depth sweep of 4 KiB reads, {engine}"
    bursts = bursts_from_sweep([(point["depth"], point["reads_per_s"]) for point in sweep["points"]])
    return Disk(
        bursts=bursts,
        reads_per_s=_measured(sweep["best_reads_per_s"], where),
        serial_read_us=_measured(
            1e6 / sweep["points"][0]["reads_per_s"], f"{where}, depth {sweep['points'][0]['depth']}"
        ),
        sequential_bytes_per_s=_measured(disk["sequential_bytes_per_s"], f"{name}: reads of 1 MiB in order"),
        origin=Origin.MEASURED,
        where=where,
    )


def _of_probe(name: str, record: Mapping[str, Any]) -> Machine:
    rates = _memory_rates(name, record["memory"])
    rates["call_us"] = _measured(record["call_us"], f"{name}: fetches of cached records, less their rows")
    short = record["short_runs"]
    rates["random_lines_per_s"] = _measured(1e9 / short["line_ns"], f"{name}: independent random cache lines")
    rates["next_line_ns"] = _measured(max(0.01, (short["run_ns"] - short["line_ns"]) / 4), f"{name}: runs of 5 lines")
    rates["copy_bytes_per_s"] = _measured(short["copy_bytes_per_s"], f"{name}: memcpy of 512 KiB by one thread")
    known = {"dram_bytes": _measured(record["memory_available_bytes"], f"{name}: memory available")}
    if record.get("disk_free_bytes") is not None:
        known["disk_bytes"] = _measured(record["disk_free_bytes"], f"{name}: free on the filesystem")
    if record.get("shm_free_bytes") is not None:
        known["shm_bytes"] = _measured(record["shm_free_bytes"], f"{name}: free in /dev/shm")
    if record.get("why_no_gpu") is not None:
        # What it says of the remedy is of reading now, not of a plan.
        found_none = str(record["why_no_gpu"]).partition(", expected")[0]
        known["gpu_memory_bytes"] = _measured(0, f"{name}: {found_none}")
    elif record.get("gpu_free_bytes") is not None:
        known["gpu_memory_bytes"] = _measured(record["gpu_free_bytes"], f"{name}: free on GPU 0")
    disk = record["disk"]
    if disk["status"] != "measured":
        return Machine(spaces=known, rates=rates, disk=None)
    where = f"{name}: 4 KiB reads by {disk['engine']}"
    best = _measured(disk["best_reads_per_s"], f"{where}, the best of the depth sweep")
    serial = _measured(1e6 / disk["points"][0]["reads_per_s"], f"{where}, one in flight")
    bursts, planned = (
        tuple(ascending([Burst(int(burst["n_reads"]), float(burst["median_us"])) for burst in disk.get(key, ())]))
        for key in ("bursts", "planned_bursts")
    )
    return Machine(
        spaces=known,
        rates=rates,
        disk=Disk(
            bursts=bursts, planned_bursts=planned, reads_per_s=best, serial_read_us=serial,
            sequential_bytes_per_s=_measured(disk["sequential_bytes_per_s"], f"{name}: reads of 1 MiB in order"),
            origin=Origin.MEASURED, where=f"{where}, bursts on an idle device",
        ),
    )  # fmt: skip


def ascending(bursts: Sequence[Burst]) -> list[Burst]:
    """The bursts by size, none quicker than a smaller one: such a sample is noise."""
    found: list[Burst] = []
    for burst in sorted(bursts):
        found.append(Burst(burst.n_reads, max(burst.us, found[-1].us if found else 0.0)))
    return found


def _of_plan(name: str, record: Mapping[str, Any]) -> Machine:
    machine = record["machine"]

    def figure(found: Mapping[str, Any]) -> Figure:
        return Figure(value=float(found["value"]), origin=Origin(found["origin"]), where=str(found["where"]))

    disk, rates = machine["disk"], {each: figure(found) for each, found in machine["rates"].items()}
    of_disk = None
    if disk is not None:
        sequential = disk["sequential_bytes_per_s"]
        bursts, planned = (
            tuple(Burst(int(burst["n_reads"]), float(burst["us"])) for burst in disk.get(key, ()))
            for key in ("bursts", "planned_bursts")
        )
        of_disk = Disk(
            bursts=bursts, planned_bursts=planned, reads_per_s=figure(disk["reads_per_s"]),
            serial_read_us=figure(disk["serial_read_us"]),
            sequential_bytes_per_s=None if sequential is None else figure(sequential),
            origin=Origin(disk["origin"]), where=str(disk["where"]),
        )  # fmt: skip
    return Machine(
        spaces={each: figure(found) for each, found in machine["spaces"].items()},
        rates={each: found for each, found in rates.items() if found.origin not in (Origin.ASSUMED, Origin.PUBLISHED)},
        disk=of_disk,
    )


_READERS = {BENCH_SCHEMA: _of_bench, PROBE_SCHEMA: _of_probe, PLAN_SCHEMA: _of_plan}
