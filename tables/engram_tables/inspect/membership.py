"""Which n-grams a table's bundles hold, and which rows a hot list keeps: what is prepared for a fetch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engram_tables.fetch.bundles import BundledTable
from engram_tables.inspect.row_places import Stretch
from engram_tables.storage.bundles.index import KeyIndex

if TYPE_CHECKING:
    from engram_tables.fetch.table import Table
    from engram_tables.fetch.tiers.hot_list import HotList


@dataclass(frozen=True, slots=True, kw_only=True)
class HotView:
    """Where a row stands in a hot list.

    Attributes
    ----------
    rank
        From 1, the heaviest row first.
    pinned_bytes
        Bytes of the records up to and with this one: a tier that keeps so many for good (`MemoryTier.pinned_bytes`)
        keeps it.
    """

    rank: int
    weight: float
    pinned_bytes: int


class BundleIndex:
    """The bundles that a table was opened with; none where it has none."""

    def __init__(self, table: Table) -> None:
        self._directory = table.bundles.directory if isinstance(table, BundledTable) else None

    @property
    def is_there(self) -> bool:
        """Whether the table has bundles."""
        return self._directory is not None

    def find(self, layer_id: int, order: int, keys: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        """int64 (n,): the number of each key's bundle, or -1; `keys` (n,) of the spec's `key_dtype`."""
        nothing = np.full(len(keys), -1, np.int64)
        if self._directory is None:
            return nothing
        manifest, n_slots = self._directory.manifest, self._directory.n_slots
        if layer_id not in manifest.layer_ids or order not in manifest.orders:
            return nothing
        place = manifest.layer_ids.index(layer_id), manifest.orders.index(order)
        stop = int(n_slots.reshape(-1)[: place[0] * n_slots.shape[1] + place[1] + 1].sum())
        slots = self._directory.slots[stop - int(n_slots[place]) : stop]
        return KeyIndex(slots, n_bundles=manifest.n_bundles[place[0]][place[1]]).find(keys)

    def stretch(self, layer_id: int, order: int, number: int) -> Stretch:
        """The bytes of a bundle that there is."""
        assert self._directory is not None
        manifest = self._directory.manifest
        file = next(entry for entry in manifest.files if (entry.layer_id, entry.order) == (layer_id, order))
        n_bytes = manifest.heads[manifest.orders.index(order)] * manifest.row_bytes
        return Stretch(self._directory.files[file.path], file.data_offset + number * n_bytes, n_bytes)


class HotRows:
    """A hot list, to be asked for rows."""

    def __init__(self, hot: HotList, row_bytes: int) -> None:
        self._hot, self._row_bytes = hot, row_bytes

    def find(self, layer_id: int, row: int) -> HotView | None:
        """Where the row stands; None if it is not in the list. Cost: a look at every row of the list."""
        places = np.flatnonzero((self._hot.rows == row) & (self._hot.layer_ids == layer_id))
        if not len(places):
            return None
        rank = int(places[0]) + 1
        return HotView(rank=rank, weight=float(self._hot.weights[rank - 1]), pinned_bytes=rank * self._row_bytes)


def hot_rows_of(table: Table, hot: HotList | None) -> HotRows | None:
    """`hot` held against the table; None for None. Raises as `HotList.check_against`."""
    if hot is None:
        return None
    spec = table.spec
    n_rows = np.array([layer.n_rows for layer in spec.layers], np.int64)
    hot.check_against(layer_ids=spec.layer_ids, n_rows=n_rows, fingerprint=spec.fingerprint)
    return HotRows(hot, table.row_bytes)
