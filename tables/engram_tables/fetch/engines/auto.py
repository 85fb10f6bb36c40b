"""The engine that looks where the rows are before it reads them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import Engine, Items
from engram_tables.fetch.placement import Batch
from engram_tables.storage.row_files import RowFiles

SAMPLED_RECORDS = 32
ROWS_BETWEEN_SAMPLES = 65_536


class AutoEngine(Engine):
    """32 records of the batch itself are looked up in the page cache at the first call and again after every 65,536
    rows; if all of them are in memory `gather` reads, otherwise `pread`, which leaves them in memory.

    `engine_of` gives the table's engines by name; they are the table's to close.
    """

    name = "auto"

    def __init__(self, table: RowFiles, engine_of: Callable[[str], Engine]) -> None:
        super().__init__(table)
        self._engine_of = engine_of
        self._chosen: str | None = None
        self._rows_until_sample = 0

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        self._engine_of(self._choose(batch)).read(batch, out, threads, items)

    def _choose(self, batch: Batch) -> str:
        if self._chosen is None or self._rows_until_sample <= 0:
            gather = self._engine_of(GatherEngine.name)
            assert isinstance(gather, GatherEngine)
            all_in_memory = gather.resident_share(batch, SAMPLED_RECORDS) == 1.0
            self._chosen = "gather" if all_in_memory else "pread"
            self._rows_until_sample = ROWS_BETWEEN_SAMPLES
        self._rows_until_sample -= batch.rows.size
        return self._chosen
