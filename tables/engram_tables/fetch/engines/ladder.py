"""The engines by name, and which of them this machine allows for a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.engines.aio import AioEngine
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.mapping import MappingEngine
from engram_tables.fetch.engines.reading import CachedReadEngine, DirectReadEngine
from engram_tables.fetch.engines.uring import UringEngine
from engram_tables.fetch.engines.willneed import WillneedEngine
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.fetch.reference import read_rows
from engram_tables.storage.row_files import RowFiles

ENGINES: dict[str, Callable[[RowFiles, Placements], Engine]] = {
    engine.name: engine
    for engine in (
        GatherEngine,
        CachedReadEngine,
        UringEngine,
        AioEngine,
        DirectReadEngine,
        WillneedEngine,
        MappingEngine,
    )
}


class Rung(NamedTuple):
    """One engine, tried: whether it reads this table on this machine, and if not, why."""

    engine: str
    is_usable: bool
    reason: str | None


def probe(stored: RowFiles, engine_of: Callable[[str], Engine], names: Iterable[str] | None = None) -> tuple[Rung, ...]:
    """Read a record of each file with each engine, in the order given, and hold the bytes against a plain reading.

    Parameters
    ----------
    stored, engine_of
        The table's files, and `Table.engine`; engines that work stay open there.
    names
        All of `ENGINES` if None.

    Raises
    ------
    TableError
        The files themselves cannot be read: no engine is at fault.
    OSError
        Likewise.
    """
    samples = _samples(stored)
    return tuple(_try(engine_of, name, samples) for name in (ENGINES if names is None else names))


def first_usable(stored: RowFiles, engine_of: Callable[[str], Engine], names: Iterable[str]) -> tuple[Rung, ...]:
    """As `probe`, but stop at the first engine that reads: it is the last rung if any is usable."""
    samples = _samples(stored)
    rungs: list[Rung] = []
    for name in names:
        rungs.append(_try(engine_of, name, samples))
        if rungs[-1].is_usable:
            break
    return tuple(rungs)


class _Sample(NamedTuple):
    batch: Batch
    records: NDArray[np.uint8]
    """(rows, row_bytes), by the slow twin"""


def _samples(stored: RowFiles) -> list[_Sample]:
    """The first row of an extent of each file, layer by layer."""
    seen: set[int] = set()
    samples = []
    for layer, layer_id in enumerate(stored.layer_ids):
        rows = []
        for extent in stored.extents:
            if extent.layer_id == layer_id and extent.file_idx not in seen:
                seen.add(extent.file_idx)
                rows.append(extent.first_row)
        if rows:
            found = np.array(rows, np.int64)
            batch = Batch(rows=found, n_columns=found.size, first_layer=layer, n_layers=1)
            samples.append(_Sample(batch, read_rows(stored, layer_id, found)))
    return samples


def _try(engine_of: Callable[[str], Engine], name: str, samples: list[_Sample]) -> Rung:
    try:
        engine = engine_of(name)
        for batch, records in samples:
            # Bytes of which none is right, so that a record that is not written is seen.
            found = ~records
            engine.read(batch, found, None)
            wrong = np.flatnonzero((found != records).any(axis=1))
            if wrong.size:
                return Rung(
                    name, False, f"engine {name}: gave other bytes than a plain reading of {_where(wrong, batch)}"
                )
    except (BackendUnavailable, OSError) as error:
        return Rung(name, False, str(error))
    return Rung(name, True, None)


def _where(wrong: NDArray[np.int64], batch: Batch) -> str:
    return f"row {batch.rows[wrong[0]]} ({wrong.size} of {batch.rows.size} rows tried)"
