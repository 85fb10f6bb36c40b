"""The engines by name, and which of them this machine allows for a table."""

from __future__ import annotations

from collections.abc import Callable

from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.mapping import MappingEngine
from engram_tables.fetch.engines.reading import CachedReadEngine, DirectReadEngine
from engram_tables.fetch.placement import Placements
from engram_tables.storage.row_files import RowFiles

ENGINES: dict[str, Callable[[RowFiles, Placements], Engine]] = {
    engine.name: engine for engine in (GatherEngine, CachedReadEngine, DirectReadEngine, MappingEngine)
}
