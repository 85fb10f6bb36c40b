"""Rows to GPU memory: each path of a section, verified on the host, timed to the moment the records are there.

The timed window of a batch is `begin`, `finish` and the wait for the slot's event: the host's and the device's part.
It knows devices by their protocol.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from engram_tables.fetch.engines.auto import READ_ORDER
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.ladder import first_usable
from engram_tables.fetch.gpu.device import Device
from engram_tables.fetch.gpu.device_reader import DevicePath, Shape
from engram_tables.fetch.gpu.host_memory import registered_bytes
from engram_tables.fetch.gpu.paths import ResidentPath, StagedPath, ZeroCopyPath
from engram_tables.fetch.table import AUTO
from engram_tables.measure.contention import Counters, contention
from engram_tables.measure.offload.host import Bench, bring_into, is_as_asked, settler
from engram_tables.measure.offload.lookups import Asked, expected_records, is_whole
from engram_tables.measure.offload.plan import Section, Source, State
from engram_tables.measure.offload.points import hold_against, make_point
from engram_tables.measure.offload.rounds import Case, mismatch, take_turns
from engram_tables.measure.residency import resident_bytes

_BUS_BYTES = 256 << 20
_BUS_REPEATS = 5
_PIPELINED_BATCHES = 16
_MARGIN = 1.05

MakePath = Callable[[Shape], DevicePath]


def measure_gpu_section(bench: Bench, section: Section, device: Device) -> dict[str, Any]:
    """One source in one state, brought to `device`, as a record has it."""
    head = {"source": section.source, "state": section.state, "device": device.name}
    if not is_whole(bench.table):
        reason = f"{bench.table.path}: found a part of the rows, expected all: a device's paths take whole tokens"
        return {**head, "status": "waived", "reason": reason}
    try:
        bring_into(bench, section)
        link = bench.ceilings.setdefault("upload", _upload_ceiling(device))
        paths = _paths(bench, section, device)
    except (BackendUnavailable, CapacityError) as error:
        return {**head, "status": "waived", "reason": str(error)}
    before = resident_bytes(bench.files)
    counters, start = Counters.now(bench.path), time.perf_counter_ns()
    points: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for n_tokens in bench.batches:
        points += _measure(bench, section, paths, n_tokens, link["bytes_per_s"], left_out)
        bench.advance()
    elapsed_ns, after = time.perf_counter_ns() - start, resident_bytes(bench.files)
    return {
        **head,
        "status": "measured",
        "residency": {
            "file_bytes": bench.file_bytes,
            "resident_bytes_before": before,
            "resident_bytes_after": after,
            "is_as_asked": is_as_asked(section, bench.file_bytes, before, after, points),
        },
        "contention": contention(counters, Counters.now(bench.path), elapsed_ns=elapsed_ns),
        "left_out": left_out,
        "points": points,
    }


def _paths(bench: Bench, section: Section, device: Device) -> dict[str, tuple[str, MakePath]]:
    """What a section measures by name: the engine that reads, and how the path is made."""
    table, wanted = bench.table, bench.plan.engine
    if section.source is Source.AUTO:
        engine = wanted or AUTO
        return {f"staged, {engine}": (engine, partial(StagedPath, table, device, engine=engine))}
    if section.source is Source.NVME:
        *_, last = first_usable(table.stored, table.engine, (wanted,) if wanted else READ_ORDER)
        if not last.is_usable:
            raise BackendUnavailable(f"engine {last.engine}: {last.reason}")
        return {f"staged, {last.engine}": (last.engine, partial(StagedPath, table, device, engine=last.engine))}
    engine = wanted or GatherEngine.name
    return {
        ResidentPath.name: (engine, partial(ResidentPath, table, device)),
        ZeroCopyPath.name: (engine, partial(ZeroCopyPath, table, device)),
        f"staged, {engine}": (engine, partial(StagedPath, table, device, engine=engine)),
    }


def _measure(
    bench: Bench, section: Section, paths: dict[str, tuple[str, MakePath]], n_tokens: int, link_bytes_per_s: float,
    left_out: list[dict[str, Any]],
) -> list[dict[str, Any]]:  # fmt: skip
    trace, lookups = next(iter(bench.lookups.items()))
    cold = bench.files if section.state is State.COLD else None
    n_rows = lookups.n_rows(n_tokens)
    points = []
    with ExitStack() as stack:
        cases: dict[str, tuple[Case, DevicePath]] = {}
        for name, (engine, make) in paths.items():
            try:
                path = make(Shape(n_slots=2, max_tokens=n_tokens))
            except (BackendUnavailable, CapacityError, InvalidInput) as error:
                left_out.append({"engine": name, "rows_per_batch": n_rows, "reason": str(error)})
                continue
            stack.callback(path.close)
            if not _is_verified(bench, section, name, path, n_tokens):
                continue
            case = Case(
                bench.path, lookups, partial(fetch_to_device, path), [np.empty(0, np.uint8)], n_tokens=n_tokens,
                turn=len(cases), cold_files=cold, settle=settler(bench.table, engine),
            )  # fmt: skip
            cases[name] = case, path
        take_turns([case for case, _ in cases.values()], repeats=bench.plan.repeats, seconds=bench.plan.seconds)
        for name, (case, path) in cases.items():
            point = make_point(
                case, section=section, engine=name, threads=None, trace=trace, row_bytes=bench.table.row_bytes,
                n_rows=n_rows,
            )  # fmt: skip
            hold_against(point, case, bench.ceilings, section=section, file_bytes=bench.file_bytes)
            point["pipelined_rows_per_s"] = None if cold else _pipelined(bench, path, n_tokens)
            if not isinstance(path, ResidentPath):
                _hold_against_link(point, link_bytes_per_s)
            points.append(point)
    return points


def fetch_to_device(path: DevicePath, asked: Asked, out: NDArray[np.uint8]) -> None:
    """One batch, until its records are on the device."""
    del out
    assert asked.addresses is not None
    arriving = path.begin(asked.addresses, 0)
    arriving.finish()
    arriving.wait()


def _pipelined(bench: Bench, path: DevicePath, n_tokens: int) -> float:
    """Rows a second where a batch is begun before the one before it is waited for."""
    lookups = next(iter(bench.lookups.values()))
    rng = lookups.rng()
    batches = [lookups.draw(n_tokens, rng).addresses for _ in range(_PIPELINED_BATCHES)]
    start = time.perf_counter_ns()
    before = None
    for nth, addresses in enumerate(batches):
        assert addresses is not None
        arriving = path.begin(addresses, nth % 2)
        if before is not None:
            before.finish()
            before.wait()
        before = arriving
    assert before is not None
    before.finish()
    before.wait()
    return lookups.n_rows(n_tokens) * len(batches) * 1e9 / (time.perf_counter_ns() - start)


def _hold_against_link(point: dict[str, Any], link_bytes_per_s: float) -> None:
    """A resident table passes no link; the other ways do, unless the device was the slower one."""
    point["share_of_link"] = point["useful_bytes_per_s"] / link_bytes_per_s
    if point["share_of_link"] > _MARGIN:
        point["flags"].append(
            f"gpu, {point['engine']}, {point['rows_per_batch']} rows: {point['useful_bytes_per_s'] / 1e9:.2f} GB/s is "
            f"more than the link's {link_bytes_per_s / 1e9:.2f} GB/s; the rows did not pass it"
        )


def _is_verified(bench: Bench, section: Section, name: str, path: DevicePath, n_tokens: int) -> bool:
    lookups = next(iter(bench.lookups.values()))
    asked = lookups.draw(n_tokens, lookups.rng())
    assert asked.addresses is not None
    arriving = path.begin(asked.addresses, 0)
    arrived = arriving.finish()
    arriving.wait()
    on_host = np.ascontiguousarray(arrived.get() if hasattr(arrived, "get") else arrived)
    wrong = mismatch(on_host.reshape(-1, bench.table.row_bytes), expected_records(bench.table, asked))
    if wrong is not None:
        bench.mismatches.append(
            {"section": str(section), "engine": name, "n_records": wrong[0], "first_position": wrong[1]}
        )
    return wrong is None


def _upload_ceiling(device: Device) -> dict[str, Any]:
    """Copies of pinned host memory to the device, 256 MiB each, median: what no way over the bus can pass."""
    source = np.full(_BUS_BYTES, 1, np.uint8)
    with closing(registered_bytes(_BUS_BYTES, device)) as registered, device.active():
        registered.memory.bytes[:] = source
        target, stream = device.empty((_BUS_BYTES,), np.uint8), device.stream()
        samples = []
        for _ in range(_BUS_REPEATS + 1):
            start = time.perf_counter_ns()
            device.upload(target, registered.memory.bytes[:_BUS_BYTES], stream)
            stream.synchronize()
            samples.append(time.perf_counter_ns() - start)
        device.end(stream)
    return {"n_bytes": _BUS_BYTES, "bytes_per_s": _BUS_BYTES * 1e9 / float(np.median(samples[1:]))}
