"""The engines by name, and which of them this machine allows for a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.mapping import MappingEngine
from engram_tables.fetch.engines.reading import CachedReadEngine, DirectReadEngine
from engram_tables.fetch.placement import Placements
from engram_tables.storage.row_files import RowFiles

ENGINES: dict[str, Callable[[RowFiles, Placements], Engine]] = {
    engine.name: engine for engine in (GatherEngine, CachedReadEngine, DirectReadEngine, MappingEngine)
}


class Rung(NamedTuple):
    """One engine, tried: whether it works for a table on this machine, and if not, why."""

    engine: str
    is_usable: bool
    reason: str | None


def probe(engine_of: Callable[[str], Engine], names: Iterable[str] = ENGINES) -> tuple[Rung, ...]:
    """Ask for each engine, in the order given; `engine_of` is `Table.engine`."""
    return tuple(_try(engine_of, name) for name in names)


def _try(engine_of: Callable[[str], Engine], name: str) -> Rung:
    try:
        engine_of(name)
    except (BackendUnavailable, OSError) as error:
        return Rung(name, False, str(error))
    return Rung(name, True, None)
