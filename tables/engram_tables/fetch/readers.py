"""How a batch's records reach the memory of whoever uses them, one call for host and device alike."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from engram_tables.address.spec import Addresses
from engram_tables.errors import InvalidInput
from engram_tables.fetch.engines.engine import Engine, Pending
from engram_tables.fetch.table import AUTO, Table


class Arriving(Protocol):
    """A batch's records on their way into a slot. `finish` exactly once, whatever else fails."""

    def finish(self) -> Any:
        """Wait, and give the records: (tokens, layers, columns, row_bytes), a NumPy or CuPy array that stays as it
        is until the slot is begun anew."""


class RecordReader(Protocol):
    """Brings batches of up to `max_tokens` tokens into `n_slots` buffers of its own. One thread at a time.

    Attributes
    ----------
    n_slots, max_tokens
        Batches that may be under way or in use at once, and the tokens of each.
    """

    n_slots: int
    max_tokens: int

    def begin(self, addresses: Addresses, slot: int) -> Arriving:
        """Start to bring a batch into `slot`, whose earlier records are gone from now on."""

    def close(self) -> None:
        """Give buffers back; nothing may be under way."""


class HostReader:
    """Records in host memory: a table's own engines, into buffers made once.

    Raises
    ------
    InvalidInput
        A batch of more tokens than `max_tokens`; and what `Table.begin` raises.
    """

    def __init__(
        self, table: Table, *, n_slots: int, max_tokens: int, engine: str | Engine = AUTO, threads: int | None = None
    ) -> None:
        self.n_slots, self.max_tokens = n_slots, max_tokens
        self._table, self._engine, self._threads = table, engine, threads
        shape = n_slots, max_tokens, len(table.spec.layers), table.spec.n_columns, table.row_bytes
        # Written once, so that no batch pays for the memory's first touch.
        self._slots = np.full(shape, 1, np.uint8)

    def begin(self, addresses: Addresses, slot: int) -> _ArrivingOnHost:
        """See `RecordReader`."""
        n_tokens = len(addresses.rows)
        if n_tokens > self.max_tokens:
            raise InvalidInput(f"batch: found {n_tokens} tokens, expected {self.max_tokens} at most; make it shorter")
        out = self._slots[slot, :n_tokens]
        return _ArrivingOnHost(self._table.begin(addresses, out, self._engine, threads=self._threads), out)

    def close(self) -> None:
        """See `RecordReader`. The table stays open."""
        self._slots = self._slots[:0]


class _ArrivingOnHost:
    def __init__(self, pending: Pending, records: Any) -> None:
        self._pending, self._records = pending, records

    def finish(self) -> Any:
        """See `Arriving`."""
        self._pending.finish()
        return self._records
