"""Lookups in a table, from memory, from the device and from wherever they are, to host or GPU memory: verified, then
timed, and held against the ceilings of the same run.

It puts a record together; what is asked for, timed and said of each point is in `measure.offload`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from engram_tables.fetch.bundles import BundledTable
from engram_tables.fetch.gpu.device import Device
from engram_tables.fetch.gpu.runtime import cuda_device
from engram_tables.fetch.table import ENGINE_NAMES, Table, open_table
from engram_tables.fetch.tiers.budget import MemoryTier, shape_for
from engram_tables.fetch.tiers.hot_list import HotList, read_hot_list
from engram_tables.measure.ceilings import bus_ceilings, disk_ceilings, memory_ceilings
from engram_tables.measure.environment import command_line, describe, read_meminfo
from engram_tables.measure.offload.blocks import block_reads, engines_with_depth
from engram_tables.measure.offload.bundled import describe_bundles, measure_bundles
from engram_tables.measure.offload.depth import depth_sweeps
from engram_tables.measure.offload.gpu import measure_gpu_section
from engram_tables.measure.offload.host import MEMORY_SHARE, Bench, measure_section
from engram_tables.measure.offload.lookups import Lookups
from engram_tables.measure.offload.plan import BenchPlan, Section, Source, State, Target
from engram_tables.measure.offload.tiers import measure_tiers
from engram_tables.measure.residency import evict
from engram_tables.measure.trace import Trace, repeated_trace, stored_trace, text_trace, uniform_trace
from engram_tables.storage.table.reader import StoredTable
from engram_tables.units import ProgressHook

SCHEMA = "engram.bench-offload/2"
_SWEEP_SECONDS = 0.2


def bench_offload(
    table_path: str | Path,
    *,
    corpus: Sequence[str | Path] = (),
    trace: str | Path | None = None,
    glob: str = "*",
    exclude: Sequence[str] = (),
    vocabulary: Vocabulary | None = None,
    plan: BenchPlan | None = None,
    device: Callable[[], Device] = cuda_device,
    progress: ProgressHook | None = None,
) -> dict[str, Any]:
    """Measure lookups in a table and give the record, `engram.bench-offload/2`.

    Parameters
    ----------
    table_path
        A table, or a checkpoint of this machine, which is read where it lies. Of a rank's table, or of any other that
        holds a part of the rows, the lookups are measured that it answers.
    corpus
        Files and directories whose text makes the lookups.
    trace
        A directory that `engram trace` wrote with the table's addressing, in place of a corpus. Without either, rows
        are uniform and the record says so.
    vocabulary
        Turns the text into rows; the table's own by default.
    device
        Makes the GPU that `plan.to` asks for.
    progress
        Called with (points done, points in all).

    Returns
    -------
    The record. `mismatches` names every engine whose bytes differed from the slow reading; it was not timed.

    Raises
    ------
    TableError, InvalidInput, SpecMismatch
        The table, the corpus or the trace cannot be used.
    """
    plan = plan or BenchPlan()
    if corpus and trace is not None:
        raise InvalidInput("corpus, trace: found both, expected one of them; which lookups are to be measured?")
    if plan.engine is not None and plan.engine not in ENGINE_NAMES:
        raise InvalidInput(f"engine {plan.engine!r}: not known, expected one of {', '.join(ENGINE_NAMES)}; name one")
    path = Path(table_path)
    with open_table(table_path, bundles=plan.bundles) as table:
        hot = _check_fronts(table, plan)
        main = _main_trace(table, corpus, trace, vocabulary, glob, exclude, plan.seed)
        bench = _prepare(path, table, main, plan, progress)
        if plan.has_fronts:
            _check_halves(main, max(bench.batches))
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "command": command_line(),
            "environment": describe(path),
            "table": _describe_table(table),
            "plan": _describe_plan(plan, bench),
            "traces": [{"name": name, **lookups.description} for name, lookups in bench.lookups.items()],
            "ceilings": bench.ceilings,
        }
        _measure_ceilings(bench)
        if plan.to is Target.GPU:
            record["sections"] = _gpu_sections(bench, hot, device)
        else:
            record["sections"] = [_section(bench, section, hot) for section in plan.sections]
        record["depths"] = _depths(bench)
    record["mismatches"] = bench.mismatches
    record["flags"] = [
        *(flag for section in record["sections"] for point in _all_points(section) for flag in point["flags"]),
        *_sweep_flags(record),
    ]
    if progress is not None:
        progress(1, 1)
    return record


def _main_trace(
    table: Table, corpus: Sequence[str | Path], trace: str | Path | None, vocabulary: Vocabulary | None, glob: str,
    exclude: Sequence[str], seed: int,
) -> Trace:  # fmt: skip
    if trace is not None:
        return stored_trace(table, trace, seed=seed)
    if corpus:
        return text_trace(table, corpus, vocabulary=vocabulary, glob=glob, exclude=exclude, seed=seed)
    return uniform_trace(table.spec, seed=seed)


def _prepare(path: Path, table: Table, main: Trace, plan: BenchPlan, progress: ProgressHook | None) -> Bench:
    traces = [main]
    if plan.bounds:
        n_tokens = min(main.n_tokens, 131_072)
        if main.description["is_real_text"]:
            traces.append(uniform_trace(table.spec, n_tokens=n_tokens, seed=plan.seed))
        traces.append(repeated_trace(table.spec, n_tokens=n_tokens, seed=plan.seed))
    lookups = {str(trace.description["kind"]): Lookups(table, trace, seed=plan.seed) for trace in traces}
    first = next(iter(lookups.values()))
    batches = tuple(max(1, round(n_rows / first.rows_per_token)) for n_rows in plan.rows_per_batch) or plan.tokens
    for each in lookups.values():
        each.check(max(batches))
    _check_room(plan, max(first.n_rows(n_tokens) for n_tokens in batches) * table.row_bytes)
    n_done, n_all = 0, len(plan.sections) * len(batches) * (1 + plan.has_fronts)

    def advance() -> None:
        nonlocal n_done
        n_done += 1
        if progress is not None:
            progress(min(n_done, n_all), n_all + 1)

    return Bench(
        path=path, table=table, plan=plan, lookups=lookups, batches=tuple(dict.fromkeys(batches)), ceilings={},
        advance=advance,
    )  # fmt: skip


def _check_room(plan: BenchPlan, batch_bytes: int) -> None:
    """Refuse streams whose batches do not fit into memory: touching them would end this process or another."""
    wanted, available = max(plan.streams) * batch_bytes, read_meminfo().get("MemAvailable")
    if available is not None and wanted > available * MEMORY_SHARE:
        raise CapacityError(
            f"streams: found {max(plan.streams)} with batches of up to {batch_bytes} bytes, {wanted} in all, expected "
            f"{int(available * MEMORY_SHARE)} at most, since {available} are free; ask for fewer streams or shorter "
            "batches"
        )


def _check_fronts(table: Table, plan: BenchPlan) -> HotList | None:
    """The plan's hot list, read; what a table or this machine cannot do for its tiers is raised here, at once."""
    n_rows = [layer.n_rows for layer in table.spec.layers]
    tiers = [tier for chain in plan.tiers for tier in chain]
    wanted = sum(shape_for(tier.budget_bytes, n_rows=n_rows, row_bytes=table.row_bytes).total_bytes for tier in tiers)
    available = read_meminfo().get("MemAvailable")
    if available is not None and wanted > available * MEMORY_SHARE:
        raise CapacityError(
            f"tiers: found {wanted} bytes in all, since they are measured by turns, expected "
            f"{int(available * MEMORY_SHARE)} at most of the {available} that are free; ask for fewer or smaller ones"
        )
    if plan.hot_list is None:
        return None
    hot = read_hot_list(plan.hot_list)
    hot.check_against(layer_ids=table.stored.layer_ids, n_rows=table.places.n_rows, fingerprint=table.spec.fingerprint)
    return hot


def _check_halves(main: Trace, n_tokens: int) -> None:
    """Refuse batches that are longer than the half of the trace that tiers are measured on."""
    if 2 * n_tokens > main.n_tokens:
        raise InvalidInput(
            f"trace: found {main.n_tokens} tokens, expected {2 * n_tokens} or more, since one half fills the tiers "
            "and batches are drawn from the other; give more text, or smaller batches (--tokens)"
        )


def _measure_ceilings(bench: Bench) -> None:
    """Before anything is timed, and of what the sections need alone. Direct reads leave the page cache as it is."""
    plan, states = bench.plan, {section.state for section in bench.plan.sections}
    if states - {State.COLD} or plan.to is Target.GPU:
        bench.ceilings["memory"] = {"status": "measured", **memory_ceilings(threads=plan.threads)}
    if states - {State.WARM}:
        bench.ceilings["disk"] = _disk_ceilings(bench, may_evict=State.AS_IS not in states)
    if plan.to is Target.GPU:
        bench.ceilings["bus"] = bus_ceilings()


def _disk_ceilings(bench: Bench, *, may_evict: bool) -> dict[str, Any]:
    largest = max(bench.table.stored.files, key=lambda file: file.file_bytes).path
    try:
        if may_evict:
            evict(bench.files)
        found = disk_ceilings(largest, seconds=max(bench.plan.seconds / 2, _SWEEP_SECONDS), depths=bench.plan.depths)
    except BackendUnavailable as error:
        return {"status": "waived", "reason": str(error)}
    engines = [
        {"engine": name, **block_reads(largest, name, depths=bench.plan.depths, seconds=_SWEEP_SECONDS)}
        for name in engines_with_depth()
    ]
    best = max(found["best_reads_per_s"], *(sweep.get("best_reads_per_s", 0.0) for sweep in engines), 0.0)
    return {"status": "measured", **found, "engines": engines, "best_reads_per_s": best}


def _depths(bench: Bench) -> list[dict[str, Any]]:
    """Sweeps of the table's own rows belong to a section that begins cold."""
    cold = Section(source=Source.NVME, state=State.COLD)
    return depth_sweeps(bench) if cold in bench.plan.sections and bench.plan.to is Target.HOST else []


def _section(bench: Bench, section: Section, hot: HotList | None) -> dict[str, Any]:
    found = measure_section(bench, section)
    if bench.plan.has_fronts and found["status"] == "measured":
        found["tiers"] = measure_tiers(bench, section, hot=hot)
    if found["status"] == "measured" and isinstance(bench.table, BundledTable) and section.source is not Source.DRAM:
        found["bundles"] = measure_bundles(bench, section)
    return found


def _all_points(section: dict[str, Any]) -> list[dict[str, Any]]:
    compared = [section.get(key, {}).get("points", ()) for key in ("tiers", "bundles")]
    return [*section.get("points", ()), *chain.from_iterable(compared)]


def _gpu_sections(bench: Bench, hot: HotList | None, device: Callable[[], Device]) -> list[dict[str, Any]]:
    try:
        made = device()
    except BackendUnavailable as error:
        return [
            {"source": section.source, "state": section.state, "status": "waived", "reason": str(error)}
            for section in bench.plan.sections
        ]
    sections = []
    for section in bench.plan.sections:
        found = measure_gpu_section(bench, section, made)
        if bench.plan.has_fronts and found["status"] == "measured":
            found["tiers"] = measure_tiers(bench, section, hot=hot, device=made)
        sections.append(found)
    return sections


def _sweep_flags(record: dict[str, Any]) -> list[str]:
    sweeps = list(record["depths"])
    disk = record["ceilings"].get("disk") or {}
    if disk.get("status") == "measured":
        sweeps += [{"engine": "threads", "status": "measured", **disk["threads"]}]
    return [
        f"depth sweep, {sweep['engine']}: the deepest was the best, so the device may give more; sweep on with --depths"
        for sweep in sweeps
        if sweep["status"] == "measured" and not sweep["is_past_saturation"]
    ]


def _describe_plan(plan: BenchPlan, bench: Bench) -> dict[str, Any]:
    return {
        "to": plan.to,
        "engine": plan.engine,
        "tokens_per_batch": list(bench.batches),
        "streams": list(plan.streams),
        "depths": list(plan.depths),
        "repeats": plan.repeats,
        "seconds": plan.seconds,
        "batch_seconds": plan.batch_seconds,
        "threads": plan.threads,
        "read_threads": plan.read_threads,
        "seed": plan.seed,
        "tiers": [[_describe_tier(tier) for tier in tiers] for tiers in plan.tiers],
        "gpu_caches": list(plan.gpu_caches),
        "hot_list": None if plan.hot_list is None else str(plan.hot_list),
        "fill_tokens": plan.fill_tokens,
        "bundles": str(plan.bundles) if isinstance(plan.bundles, Path) else plan.bundles,
    }


def _describe_tier(tier: MemoryTier) -> dict[str, Any]:
    return {
        "budget_bytes": tier.budget_bytes,
        "pinned_bytes": tier.most_pinned_bytes,
        "node": tier.node,
        "is_locked": tier.is_locked,
    }


def _describe_table(table: Table) -> dict[str, Any]:
    stored = table.stored
    owned = {layer_id: stored.owned(layer_id) for layer_id in stored.layer_ids}
    return {
        "path": str(table.path),
        "spec": table.spec.name,
        "spec_fingerprint": table.spec.fingerprint,
        "layers": len(table.spec.layers),
        "columns": table.spec.n_columns,
        "rows_per_token": len(table.spec.layers) * table.spec.n_columns,
        "n_rows": table.spec.n_rows,
        "n_rows_here": sum(stop - start for ranges in owned.values() for start, stop in ranges),
        "row_bytes": table.row_bytes,
        "codec": stored.codec.name,
        "layout": stored.layout.name if isinstance(stored, StoredTable) else None,
        "parts": [part.name for part in stored.parts],
        "has_digests": isinstance(stored, StoredTable),
        "shards": len(stored.files),
        "file_bytes": sum(file.file_bytes for file in stored.files),
        "bundles": describe_bundles(table),
    }
