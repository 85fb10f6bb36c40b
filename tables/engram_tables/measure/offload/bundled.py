"""A table with bundles beside the same table without them: reads, bytes and milliseconds a token, by turns.

The engine is the pinned one, or `auto`, or the first that reads the device, by the section's source.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.bundles import BundledTable
from engram_tables.fetch.engines.auto import READ_ORDER
from engram_tables.fetch.engines.ladder import first_usable
from engram_tables.fetch.engines.reading import ReadEngine
from engram_tables.fetch.table import AUTO, Table, open_table
from engram_tables.measure.offload.host import Bench, settler, warm_ups_of
from engram_tables.measure.offload.lookups import Lookups, expected_records, fetcher, is_whole
from engram_tables.measure.offload.plan import Section, Source, State
from engram_tables.measure.offload.points import hold_against, make_point
from engram_tables.measure.offload.rounds import Case, mismatch, take_turns, touched_buffers
from engram_tables.storage.bundles.bundle_manifest import INDEX_NAME
from engram_tables.storage.row_files import RowFile

_COUNTED_BATCHES = 64


def describe_bundles(table: Table) -> dict[str, Any] | None:
    """What a record says of a table's bundles; None without any."""
    if not isinstance(table, BundledTable):
        return None
    manifest = table.bundles.directory.manifest
    return {
        "path": str(table.bundles.directory.path),
        "budget_bytes": manifest.budget_bytes,
        "least_count": manifest.least_count,
        "counts_sha256": manifest.counts_sha256,
        "orders": [
            {"order": order, "heads": heads, "n_ngrams": n_ngrams}
            for order, heads, n_ngrams in zip(manifest.orders, manifest.heads, manifest.n_ngrams, strict=True)
        ],
        "file_bytes": sum(file.file_bytes for file in manifest.files),
    }


def measure_bundles(bench: Bench, section: Section) -> dict[str, Any]:
    """With and without bundles, as a record has it."""
    if not isinstance(bench.table, BundledTable) or not is_whole(bench.table):
        reason = f"{bench.table.path}: found a part of the rows, expected all: bundles go by keys of whole tokens"
        return {"status": "waived", "reason": reason}
    with ExitStack() as stack:
        without = stack.enter_context(open_table(bench.path, bundles=False))
        try:
            engine = _engine(bench, without, section)
        except BackendUnavailable as error:
            return {"status": "waived", "reason": str(error)}
        tables = {False: without, True: bench.table}
        lookups = next(iter(bench.lookups.values()))
        is_as_is = section.state is State.AS_IS
        # Comparing reads, so it comes last where memory is to stay as it is.
        if not is_as_is and not _is_sound(bench, section, tables, engine, lookups):
            return {"status": "measured", "engine": engine, "points": []}
        points = []
        for n_tokens in bench.batches:
            for n_streams in bench.plan.streams:
                points += _measure_shape(bench, section, tables, engine, lookups, n_tokens, n_streams)
        if is_as_is and not _is_sound(bench, section, tables, engine, lookups):
            points = []
        return {"status": "measured", "engine": engine, "points": points}


def _engine(bench: Bench, without: Table, section: Section) -> str:
    wanted = bench.plan.engine
    if wanted is None and section.source is Source.AUTO:
        wanted = AUTO
    for table in (bench.table, without):
        *_, last = first_usable(table.stored, table.engine, READ_ORDER if wanted is None else (wanted,))
        if not last.is_usable:
            raise BackendUnavailable(f"engine {last.engine}: {last.reason}")
    return last.engine


def _is_sound(bench: Bench, section: Section, tables: dict[bool, Table], engine: str, lookups: Lookups) -> bool:
    """Whether both give the slow reading's bytes, the long way and the short one; what differs is noted."""
    is_sound = True
    for n_tokens in sorted({min(bench.batches), max(bench.batches)}):
        asked = lookups.draw(n_tokens, lookups.rng())
        expected = expected_records(tables[False], asked)
        for has_bundles, table in tables.items():
            # The short way is used from the third read on.
            for _ in range(3):
                out = np.zeros_like(expected)
                fetcher(table, engine, None)(asked, out)
                if (wrong := mismatch(out, expected)) is not None:
                    is_sound = False
                    name = f"{engine}, {'with' if has_bundles else 'without'} bundles"
                    bench.mismatches.append(
                        {"section": str(section), "engine": name, "n_records": wrong[0], "first_position": wrong[1]}
                    )
                    break
    return is_sound


def _measure_shape(
    bench: Bench, section: Section, tables: dict[bool, Table], engine: str, lookups: Lookups, n_tokens: int,
    n_streams: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Points of one batch length: without bundles first."""
    n_rows, row_bytes = lookups.n_rows(n_tokens), bench.table.row_bytes
    outs = touched_buffers(n_streams, n_rows, row_bytes)
    cold = [*bench.files, *_record_files(bench.table)] if section.state is State.COLD else None
    threads = bench.plan.read_threads if isinstance(bench.table.engine(engine), ReadEngine) else None
    cases = {
        has_bundles: Case(
            bench.path, lookups, fetcher(table, engine, threads), outs, n_tokens=n_tokens, turn=turn, cold_files=cold,
            settle=settler(table, engine),
        )
        for turn, (has_bundles, table) in enumerate(tables.items())
    }  # fmt: skip
    take_turns(
        list(cases.values()),
        repeats=bench.plan.repeats,
        seconds=bench.plan.seconds,
        warm_ups=warm_ups_of(section.state),
    )
    points: list[dict[str, Any]] = []
    for turn, (has_bundles, case) in enumerate(cases.items()):
        point = make_point(
            case, section=section, engine=engine, threads=threads, trace=next(iter(bench.lookups)), row_bytes=row_bytes,
            n_rows=n_rows,
        )  # fmt: skip
        if has_bundles:
            # Its reads are fewer than the pages of its rows, which the ceilings are held against.
            point["ceiling"], point["share_of_ceiling"] = None, None
        else:
            hold_against(point, case, bench.ceilings, section=section, file_bytes=bench.file_bytes)
        point |= {"has_bundles": has_bundles, "ms_per_token": 1e3 / point["tokens_per_s"]}
        point |= _pieces(tables[has_bundles], lookups, n_tokens, turn)
        for key in ("reads", "bytes"):
            of_batch = point[f"device_{key}_per_batch"]
            point[f"device_{key}_per_token"] = None if of_batch is None else of_batch / n_tokens
        point["rows_per_s_over_without"] = point["rows_per_s"] / (points or [point])[0]["rows_per_s"]
        points.append(point)
    return points


def _record_files(table: Table) -> list[RowFile]:
    assert isinstance(table, BundledTable)
    files = table.bundles.directory.files
    # The index is a mapped file, which is asked for in memory.
    return [file for path, file in files.items() if path != INDEX_NAME]


def _pieces(table: Table, lookups: Lookups, n_tokens: int, turn: int) -> dict[str, Any]:
    """Of the batches that were drawn first: what lies in one piece, a bundle or a row, before neighbours are merged."""
    heads = np.array(table.spec.heads, np.int64)
    rng, found, n_lookups = lookups.rng(turn), np.zeros(len(heads), np.int64), 0
    for _ in range(_COUNTED_BATCHES):
        addresses = lookups.draw(n_tokens, rng).addresses
        assert addresses is not None
        n_lookups += addresses.rows.shape[0] * addresses.rows.shape[1]
        if isinstance(table, BundledTable):
            found += table.bundles.found(addresses)
    n_layers = len(table.spec.layers)
    n_pieces = (n_lookups * heads - found * (heads - 1)).sum()
    return {
        "reads_per_token": float(n_pieces) * n_layers / n_lookups,
        "bytes_per_token": n_layers * table.spec.n_columns * table.row_bytes,
        "found": [
            {"order": order, "share": float(n / n_lookups)}
            for order, n in zip(table.spec.orders, found.tolist(), strict=True)
        ],
    }
