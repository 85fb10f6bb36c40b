"""Rows to host memory: every engine of a section, brought into its state, verified, timed by turns.

It owns the order of things: state first, bytes compared before anything is timed, residency looked up around it. Where
the state is to be kept as it is, comparing comes last, since it reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.engines.auto import AutoEngine
from engram_tables.fetch.engines.copying import GatherEngine, MemoryEngine
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.ladder import ENGINES, Rung, probe
from engram_tables.fetch.engines.reading import ReadEngine
from engram_tables.fetch.table import AUTO, Table
from engram_tables.measure.contention import Counters, contention, own_read_bytes
from engram_tables.measure.environment import read_meminfo
from engram_tables.measure.kernels import touch_pages
from engram_tables.measure.offload.lookups import Asked, Fetch, Lookups, expected_records, fetcher
from engram_tables.measure.offload.plan import BenchPlan, Section, Source, State
from engram_tables.measure.offload.points import hold_against, make_point
from engram_tables.measure.offload.rounds import Case, mismatch, take_turns, touched_buffers
from engram_tables.measure.residency import evict, huge_page_bytes, preload, resident_bytes
from engram_tables.storage.row_files import RowFile
from engram_tables.units import PAGE_BYTES

MEMORY_SHARE = 0.6
_WARM_SHARE, _CHANGED_SHARE = 0.999, 0.01


class Contender(NamedTuple):
    """An engine as it is measured; `threads` None is its own default."""

    name: str
    engine: str | Engine
    threads: int | None
    fetch: Fetch

    @property
    def engine_name(self) -> str:
        """As the ladder has it."""
        return self.engine if isinstance(self.engine, str) else self.engine.name


@dataclass(slots=True, kw_only=True)
class Bench:
    """One benchmark under way.

    Attributes
    ----------
    lookups
        By the name of their trace: what the benchmark is about first, bounds after it.
    batches
        Tokens of each batch length.
    ceilings
        `memory` and `disk`, as far as they have been measured.
    mismatches
        Engines whose bytes differed, as the record has them.
    """

    path: Path
    table: Table
    plan: BenchPlan
    lookups: dict[str, Lookups]
    batches: tuple[int, ...]
    ceilings: dict[str, Any]
    advance: Callable[[], None]
    mismatches: list[dict[str, Any]] = field(default_factory=list)

    @property
    def files(self) -> list[RowFile]:
        return list(self.table.stored.files)

    @property
    def file_bytes(self) -> int:
        return sum(file.file_bytes for file in self.table.stored.files)


def measure_section(bench: Bench, section: Section) -> dict[str, Any]:
    """One source in one state, as a record has it: `waived` with the reason, or its points."""
    head = {"source": section.source, "state": section.state}
    try:
        bring_into(bench, section)
    except BackendUnavailable as error:
        return {**head, "status": "waived", "reason": str(error)}
    before = resident_bytes(bench.files)
    counters, start = Counters.now(bench.path), time.perf_counter_ns()
    with ExitStack() as stack:
        contenders, ladder, notes = _contenders(bench, section, stack)
        points, left_out = _measure_batches(bench, section, contenders, ladder)
        ladder += [rung._asdict() for rung in _tried_by_auto(bench.table, contenders)]
    elapsed_ns = time.perf_counter_ns() - start
    after = resident_bytes(bench.files)
    return {
        **head,
        "status": "measured",
        "residency": {
            "file_bytes": bench.file_bytes,
            "resident_bytes_before": before,
            "resident_bytes_after": after,
            "is_as_asked": is_as_asked(section, bench.file_bytes, before, after, points),
            **notes,
        },
        "ladder": ladder,
        "contention": contention(counters, Counters.now(bench.path), elapsed_ns=elapsed_ns),
        "left_out": left_out,
        "points": points,
    }


def bring_into(bench: Bench, section: Section) -> None:
    """Evict or read the files, as the section's state wants it; `BackendUnavailable` where the system cannot."""
    if section.state is State.COLD:
        evict(bench.files)
    if section.state is State.WARM:
        available = read_meminfo().get("MemAvailable")
        missing = bench.file_bytes - resident_bytes(bench.files)
        if available is not None and missing > available * MEMORY_SHARE:
            raise BackendUnavailable(
                f"the table's files have {bench.file_bytes} bytes, {missing} of them not in memory, and {available} "
                "bytes of memory are free"
            )
        preload(bench.files)


def is_as_asked(section: Section, file_bytes: int, before: int, after: int, points: list[dict[str, Any]]) -> bool:
    """Whether what was in memory was what the state says, and as it was found stayed so."""
    if section.state is State.WARM:
        return min(before, after) >= _WARM_SHARE * file_bytes
    if section.state is State.AS_IS:
        return abs(after - before) <= _CHANGED_SHARE * file_bytes
    return not any("not cold" in flag for point in points for flag in point["flags"])


def _contenders(
    bench: Bench, section: Section, stack: ExitStack
) -> tuple[list[Contender], list[dict[str, Any]], dict[str, Any]]:
    """The engines of a section, the ladder of those that were tried, and what a record says of their memory."""
    plan, table = bench.plan, bench.table
    names: Iterable[str] = (plan.engine,) if plan.engine else ((AUTO,) if section.source is Source.AUTO else ENGINES)
    contenders: list[Contender] = []
    ladder: list[dict[str, Any]] = []
    notes: dict[str, Any] = {}
    for rung in probe(table.stored, table.engine, names):
        ladder.append(rung._asdict())
        if not rung.is_usable:
            continue
        name, engine = rung.engine, table.engine(rung.engine)
        threads = plan.read_threads if isinstance(engine, ReadEngine) else None
        several = name == GatherEngine.name and section.source is Source.DRAM
        contenders += _variants(table, name, name, plan.threads) if several else [_one(table, name, name, threads)]
        if section.state is State.WARM:
            notes |= _fill_page_tables(bench, engine)
    if section.source is Source.DRAM and plan.engine is None and section.state is State.WARM:
        contenders += _private_copy(bench, stack, ladder, notes)
    return contenders, ladder, notes


def _tried_by_auto(table: Table, contenders: list[Contender]) -> tuple[Rung, ...]:
    """What `auto` tried for missing rows."""
    engine = table.engine(AUTO) if any(contender.engine == AUTO for contender in contenders) else None
    return engine.rungs if isinstance(engine, AutoEngine) else ()


def settler(table: Table, name: str | Engine) -> Callable[[], None]:
    """Lets `auto` see that files were evicted behind its back; its refresh is its own, and not timed here."""
    engine = table.engine(name) if isinstance(name, str) else name

    def settle() -> None:
        if isinstance(engine, AutoEngine) and engine.residency is not None and engine.residency.is_answered:
            engine.residency.refresh()

    return settle


def warm_ups_of(state: State) -> int:
    """Rounds before the timed ones. One of them would change what is to be left as it is."""
    return {State.WARM: 2, State.COLD: 3, State.AS_IS: 0}[state]


def _one(table: Table, name: str, engine: str | Engine, threads: int | None) -> Contender:
    return Contender(name, engine, threads, fetcher(table, engine, threads))


def _variants(table: Table, name: str, engine: str | Engine, threads: int | None) -> list[Contender]:
    """One thread, and as many as the plan asks for."""
    return [_one(table, f"{name}, 1 thread", engine, 1), _one(table, f"{name}, all threads", engine, threads)]


def _fill_page_tables(bench: Bench, engine: Engine) -> dict[str, Any]:
    """Touch every page that the engine copies from, so that a batch pays for no page fault: it did before."""
    mapped: list[Any] = [bench.table.stored.mapping(k) for k in range(len(bench.files))]
    views: list[Any] = list(engine.views()) if hasattr(engine, "views") else []
    for view in mapped + views:
        touch_pages(view, PAGE_BYTES)
    # Views are second mappings of the same files: counted together they would be more than the files.
    return {"huge_page_bytes": huge_page_bytes(views or mapped)}


def _private_copy(
    bench: Bench, stack: ExitStack, ladder: list[dict[str, Any]], notes: dict[str, Any]
) -> list[Contender]:
    """A copy of the table in private huge pages: what memory gives without files."""
    name, available = MemoryEngine.name, read_meminfo().get("MemAvailable")
    if available is None or bench.file_bytes > available * MEMORY_SHARE:
        reason = f"a private copy takes {bench.file_bytes} bytes, and {available or 'an unknown number of'} are free"
        ladder.append({"engine": name, "is_usable": False, "reason": reason})
        return []
    copied = MemoryEngine(bench.table.stored, bench.table.places)
    stack.callback(copied.close)
    ladder.append({"engine": name, "is_usable": True, "reason": None})
    notes["private_huge_page_bytes"] = huge_page_bytes(copied.blocks)
    return _variants(bench.table, name, copied, bench.plan.threads)


def _measure_batches(
    bench: Bench, section: Section, contenders: list[Contender], ladder: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    points: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    us_per_row: dict[str, float] = {}
    main, *bounds = bench.lookups
    for n_tokens in bench.batches:
        usable = {rung["engine"] for rung in ladder if rung["is_usable"]}
        contenders = [contender for contender in contenders if contender.engine_name in usable]
        able = _able(bench, contenders, n_tokens, us_per_row, left_out)
        found = _measure(bench, section, able, main, n_tokens, ladder)
        us_per_row |= {point["engine"]: point["us_per_row"] for point in found if point["streams"] == 1}
        points += found
        alone = [point for point in found if point["streams"] == 1]
        if alone and bounds:
            best = max(alone, key=lambda point: float(point["rows_per_s"]))["engine"]
            quickest = [contender for contender in able if contender.name == best]
            for bound in bounds:
                points += _measure(bench, section, quickest, bound, n_tokens, ladder)
        bench.advance()
    return points, left_out


def _able(
    bench: Bench, contenders: list[Contender], n_tokens: int, us_per_row: dict[str, float],
    left_out: list[dict[str, Any]],
) -> list[Contender]:  # fmt: skip
    """Those that a batch is not expected to keep too long."""
    n_rows = next(iter(bench.lookups.values())).n_rows(n_tokens)
    able = []
    for contender in contenders:
        expected_s = us_per_row.get(contender.name, 0.0) * n_rows / 1e6
        if expected_s <= bench.plan.batch_seconds:
            able.append(contender)
        else:
            left_out.append(
                {
                    "engine": contender.name,
                    "rows_per_batch": n_rows,
                    "reason": f"a batch would take about {expected_s:.0f} s, more than --batch-seconds "
                    f"{bench.plan.batch_seconds:g}",
                }
            )
    return able


def _measure(
    bench: Bench, section: Section, contenders: list[Contender], trace: str, n_tokens: int,
    ladder: list[dict[str, Any]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Points of one trace and one batch length: every engine with one stream, then with each number of them."""
    lookups, as_is = bench.lookups[trace], section.state is State.AS_IS
    sound = contenders if as_is else _verified(bench, section, contenders, lookups, n_tokens, ladder)
    points: list[dict[str, Any]] = []
    n_rows = lookups.n_rows(n_tokens)
    cold = bench.files if section.state is State.COLD else None
    for n_streams in bench.plan.streams if trace == next(iter(bench.lookups)) else (1,):
        outs = touched_buffers(n_streams, n_rows, bench.table.row_bytes)
        cases = {
            contender: Case(
                bench.path, lookups, contender.fetch, outs, n_tokens=n_tokens, turn=turn, cold_files=cold,
                settle=settler(bench.table, contender.engine),
            )
            for turn, contender in enumerate(sound)
        }  # fmt: skip
        take_turns(
            list(cases.values()), repeats=bench.plan.repeats, seconds=bench.plan.seconds,
            warm_ups=warm_ups_of(section.state),
        )  # fmt: skip
        for contender, case in cases.items():
            point = make_point(
                case, section=section, engine=contender.name, threads=contender.threads, trace=trace,
                row_bytes=bench.table.row_bytes, n_rows=n_rows,
            )  # fmt: skip
            hold_against(point, case, bench.ceilings, section=section, file_bytes=bench.file_bytes)
            points.append(point)
    if as_is:
        same = {each.name for each in _verified(bench, section, contenders, lookups, n_tokens, ladder)}
        points = [point for point in points if point["engine"] in same]
    return points


def _verified(
    bench: Bench, section: Section, contenders: list[Contender], lookups: Lookups, n_tokens: int,
    ladder: list[dict[str, Any]],
) -> list[Contender]:  # fmt: skip
    """The engines whose bytes for a batch are those of the slow reading, and that read from where the section says."""
    asked = lookups.draw(n_tokens, lookups.rng())
    expected = expected_records(bench.table, asked)
    found = np.empty_like(expected)
    sound = []
    for contender in contenders:
        found.fill(0)
        try:
            contender.fetch(asked, found)
        except BackendUnavailable as error:
            _refuse(ladder, contender, str(error))
            continue
        wrong = mismatch(found, expected)
        if wrong is not None:
            bench.mismatches.append(
                {
                    "section": str(section),
                    "engine": contender.name,
                    "n_records": wrong[0],
                    "first_position": wrong[1],
                }
            )
        elif section.source is Source.DRAM and section.state is State.WARM and _reads_device(contender, asked, found):
            _refuse(ladder, contender, "reads past the page cache, so not from memory")
        else:
            sound.append(contender)
    return sound


def _reads_device(contender: Contender, asked: Asked, out: NDArray[np.uint8]) -> bool:
    """Whether a batch that is in memory is read from the device all the same, twice: once may have been another
    file."""
    for _ in range(2):
        before = own_read_bytes()
        contender.fetch(asked, out)
        if before is None or own_read_bytes() == before:
            return False
    return True


def _refuse(ladder: list[dict[str, Any]], contender: Contender, reason: str) -> None:
    for rung in ladder:
        if rung["engine"] == contender.engine_name:
            rung |= {"is_usable": False, "reason": reason}
