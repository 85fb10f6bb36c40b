"""What is asked for: batches of rows drawn from a trace, for a whole table or for the rows of it that are here.

It reads rows only through the table, and times nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses
from engram_tables.errors import InvalidInput
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import Table
from engram_tables.measure.trace import Trace
from engram_tables.units import PAGE_BYTES

_CACHE_LINE_BYTES = 64


class Asked(NamedTuple):
    """One batch: its rows layer by layer, and its addresses where the table holds every row of a token."""

    by_layer: tuple[tuple[int, NDArray[np.int64]], ...]
    """(layer id, int64 (n,)) each"""
    addresses: Addresses | None

    @property
    def n_rows(self) -> int:
        """Rows of all layers."""
        return sum(rows.size for _, rows in self.by_layer)


Fetch = Callable[[Asked, NDArray[np.uint8]], None]
"""Fills uint8 (rows, row_bytes) in C order; the rows of a whole table's batch are (tokens, layers, columns)."""


class Lookups:
    """Batches of one trace.

    Attributes
    ----------
    description
        Of the trace, for a record; `part` says what was drawn where the table holds a part of the rows.
    rows_per_token
        Rows of one token that are here, mean.
    """

    def __init__(self, table: Table, trace: Trace, *, seed: int) -> None:
        self._table, self._trace, self._seed = table, trace, seed
        self._n_tokens = trace.n_tokens
        self._facts: dict[tuple[int, int, int], dict[str, float]] = {}
        self._part = None if is_whole(table) else _part_of(table, trace, seed)
        self.description = {**trace.description, "part": None if self._part is None else self._part.description}
        shape = trace.addresses.rows.shape
        self.rows_per_token = float(shape[1] * shape[2] if self._part is None else self._part.rows_per_token)

    @property
    def n_tokens(self) -> int:
        """Of the trace."""
        return self._n_tokens

    def halves(self) -> tuple[Lookups, Lookups]:
        """The trace's beginning and its end, so that memory filled by one is measured on text that it has not seen."""
        middle = -(-self._n_tokens // 2)
        first, second = self._trace.batch(0, middle), self._trace.batch(middle, self._n_tokens - middle)
        of_half = partial(Lookups, self._table, seed=self._seed)
        return of_half(replace(self._trace, addresses=first)), of_half(replace(self._trace, addresses=second))

    def rng(self, turn: int = 0) -> np.random.Generator:
        """What batches are drawn by. Engines that take turns draw apart, each by its `turn`: of a batch that another
        one has just read, rows would lie in the processor's caches, or in those of the device."""
        return np.random.default_rng([self._seed, turn])

    def check(self, n_tokens: int) -> None:
        """Raise `InvalidInput` where the trace is shorter than a batch."""
        if n_tokens > self._n_tokens:
            raise InvalidInput(
                f"trace: found {self._n_tokens} tokens, expected {n_tokens} or more for a batch; give more text, or "
                "smaller batches (--tokens, --rows-per-batch)"
            )

    def n_rows(self, n_tokens: int) -> int:
        """Rows of a batch of so many tokens: the same in every batch."""
        if self._part is None:
            return n_tokens * int(self.rows_per_token)
        return sum(self._part.rows_of(layer, n_tokens) for layer in range(len(self._part.by_layer)))

    def facts(self, asked: Asked, n_tokens: int, turn: int, nth: int) -> dict[str, float]:
        """`batch_facts` of the `nth` batch that was drawn with the `rng` of a turn; counted once."""
        drawn = n_tokens, turn, nth
        if drawn not in self._facts:
            self._facts[drawn] = batch_facts(self._table, asked)
        return self._facts[drawn]

    def draw(self, n_tokens: int, rng: np.random.Generator) -> Asked:
        """A run of tokens from a random place of the trace."""
        return self.at(int(rng.integers(0, self._n_tokens - n_tokens + 1)), n_tokens)

    def at(self, start: int, n_tokens: int) -> Asked:
        """A run of tokens from position `start` of the trace, or nearest to it where a part of the rows is here."""
        if self._part is not None:
            return self._part.batch(start / self._n_tokens, n_tokens)
        addresses = self._trace.batch(start, n_tokens)
        layers = zip(self._table.spec.layer_ids, range(addresses.rows.shape[1]), strict=True)
        return Asked(tuple((layer_id, addresses.rows[:, k].reshape(-1)) for layer_id, k in layers), addresses)


@dataclass(frozen=True, slots=True)
class _Part:
    """The lookups of a trace that a rank's table answers: each layer's in the order of the tokens."""

    by_layer: tuple[tuple[int, NDArray[np.int64]], ...]
    n_tokens: int
    description: dict[str, Any]

    @property
    def rows_per_token(self) -> float:
        return sum(rows.size for _, rows in self.by_layer) / self.n_tokens

    def rows_of(self, layer: int, n_tokens: int) -> int:
        n_all = self.by_layer[layer][1].size
        return min(n_all, max(1, round(n_all * n_tokens / self.n_tokens)))

    def batch(self, place: float, n_tokens: int) -> Asked:
        drawn = []
        for layer, (layer_id, rows) in enumerate(self.by_layer):
            n_rows = self.rows_of(layer, n_tokens)
            start = min(int(place * rows.size), rows.size - n_rows)
            drawn.append((layer_id, rows[start : start + n_rows]))
        return Asked(tuple(drawn), None)


def is_whole(table: Table) -> bool:
    """Whether every row of the spec is here."""
    return all(table.stored.owned(layer.layer_id) == ((0, layer.n_rows),) for layer in table.spec.layers)


def _part_of(table: Table, trace: Trace, seed: int) -> _Part:
    """The trace's lookups of rows that are here; where a layer has none of them, uniform draws among its rows."""
    rng = np.random.default_rng(seed)
    by_layer, here, drawn = [], 0, []
    for k, layer in enumerate(table.spec.layers):
        bounds = np.array(table.stored.owned(layer.layer_id), np.int64).reshape(-1)
        if not bounds.size:
            continue
        rows = trace.addresses.rows[:, k].reshape(-1)
        found = rows[np.searchsorted(bounds, rows, side="right") % 2 == 1]
        here += found.size
        if not found.size:
            drawn.append(layer.layer_id)
            found = _uniform(bounds, trace.n_tokens, rng)
        by_layer.append((layer.layer_id, np.ascontiguousarray(found)))
    if not by_layer:
        raise InvalidInput(f"{table.path}: found no row of any layer, expected some; measure a table that holds rows")
    description = {
        "note": "the table holds a part of the rows: those lookups of the trace that it answers are drawn, one layer "
        "after the other",
        "layer_ids": [layer_id for layer_id, _ in by_layer],
        "lookups_here_share": here / trace.addresses.rows.size,
        "uniform_layer_ids": drawn,
    }
    return _Part(tuple(by_layer), trace.n_tokens, description)


def _uniform(bounds: NDArray[np.int64], n_rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows drawn evenly from half-open ranges, given as start, stop, start, stop, ..."""
    starts, stops = bounds[::2], bounds[1::2]
    ends: NDArray[np.int64] = np.cumsum(stops - starts)
    nth = rng.integers(0, ends[-1], n_rows)
    span: NDArray[np.intp] = np.searchsorted(ends, nth, side="right")
    rows: NDArray[np.int64] = (stops[span] - ends[span] + nth).astype(np.int64)
    return rows


def fetcher(table: Table, engine: str | Engine, threads: int | None) -> Fetch:
    """What is timed: `Table.fetch` of a batch, or `Table.fetch_rows` of each layer where a part of the rows is here."""

    def fetch(asked: Asked, out: NDArray[np.uint8]) -> None:
        if asked.addresses is not None:
            table.fetch(asked.addresses, out.reshape(*asked.addresses.rows.shape, -1), engine, threads=threads)
            return
        start = 0
        for layer_id, rows in asked.by_layer:
            table.fetch_rows(layer_id, rows, out[start : start + rows.size], engine, threads=threads)
            start += rows.size

    return fetch


def expected_records(table: Table, asked: Asked) -> NDArray[np.uint8]:
    """The batch's records by the slow reading, uint8 (rows, row_bytes) in the order in which `Fetch` gives them."""
    by_layer = []
    for layer_id, rows in asked.by_layer:
        distinct, inverse = np.unique(rows, return_inverse=True)
        by_layer.append(read_rows(table.stored, layer_id, distinct)[inverse])
    if asked.addresses is None:
        return np.concatenate(by_layer)
    n_tokens, n_layers, n_columns = asked.addresses.rows.shape
    records = np.empty((n_tokens, n_layers, n_columns, table.row_bytes), np.uint8)
    for layer, of_layer in enumerate(by_layer):
        records[:, layer] = of_layer.reshape(n_tokens, n_columns, -1)
    return records.reshape(-1, table.row_bytes)


def batch_facts(table: Table, asked: Asked) -> dict[str, float]:
    """Distinct rows, and the pages and cache lines that the parts of the records touch."""
    places = table.places
    placed = places.in_files(places.file_spots())
    n_parts_pages = line_bytes = n_distinct = 0.0
    pages = []
    for layer_id, rows in asked.by_layer:
        layer = table.spec.layer_ids.index(layer_id)
        distinct, times = np.unique(rows, return_counts=True)
        n_distinct += distinct.size
        batch = places.check(distinct, n_columns=max(distinct.size, 1), first_layer=layer, n_layers=1)
        for spots, part in zip(placed.addresses(batch).astype(np.int64), table.stored.parts, strict=True):
            last = spots + part.n_bytes - 1
            pages_a_part = last // PAGE_BYTES - spots // PAGE_BYTES + 1
            steps = np.arange(int(pages_a_part.max()))
            pages.append(np.minimum(spots[:, None] // PAGE_BYTES + steps, last[:, None] // PAGE_BYTES).reshape(-1))
            n_parts_pages += float(pages_a_part @ times)
            line_bytes += float((last // _CACHE_LINE_BYTES - spots // _CACHE_LINE_BYTES + 1) @ times)
    return {
        "unique_ratio": n_distinct / asked.n_rows,
        "unique_bytes": n_distinct * table.row_bytes,
        "unique_pages": float(np.unique(np.concatenate(pages)).size),
        "pages_per_row": n_parts_pages / asked.n_rows,
        "line_bytes": line_bytes * _CACHE_LINE_BYTES,
    }
