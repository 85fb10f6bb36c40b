"""Compiled loops of streams: who fetches which token when, and what each token's rows are called in a cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engram_tables.units import PAGE_BYTES

_PAGE_SHIFT = PAGE_BYTES.bit_length() - 1
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_HALF = np.uint64(33)


class UnitArrays(NamedTuple):
    """How rows become items, for kernels.

    Attributes
    ----------
    is_page
        Whether an item is a page rather than a row.
    first_items
        int64 (parts, layers): the item with which a part of a layer begins.
    n_bytes, cell_rows, cell_bytes
        int64 (parts,), as in `storage.extents.Part`; unused where an item is a row.
    """

    is_page: bool
    first_items: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    cell_rows: NDArray[np.int64]
    cell_bytes: NDArray[np.int64]


@njit(cache=True, nogil=True)
def assign_documents(n_live: Any, n_streams: Any, streams: Any) -> None:
    """Give each document to the stream that is free first; of several the first one.

    `n_live` int64 (documents,): tokens that look something up. `streams` int64 (documents,) is filled.
    """
    busy_until = np.zeros(n_streams, np.int64)
    for document in range(n_live.shape[0]):
        first = 0
        for stream in range(1, n_streams):
            if busy_until[stream] < busy_until[first]:
                first = stream
        streams[document] = first
        busy_until[first] += n_live[document]


@njit(cache=True, nogil=True)
def interleave(
    document_starts: Any, documents: Any, bounds: Any, turn_tokens: Any, own_steps: Any, is_dead: Any, order: Any,
    step_starts: Any,
) -> Any:  # fmt: skip
    """Let streams take turns of `turn_tokens` tokens; the number of steps.

    Parameters
    ----------
    documents, bounds
        int64: documents by stream, and where each stream's begin, then the end.
    own_steps
        Whether each turn is a step, rather than one turn of every stream.
    is_dead
        bool (tokens,)
    order
        int64 (live tokens,): filled with the tokens as they are fetched.
    step_starts
        int64 (live tokens + 1,): filled with the place in `order` at which each step starts, then the end.
    """
    n_streams = bounds.shape[0] - 1
    at_document = bounds[:-1].copy()
    at_token = np.full(n_streams, np.int64(-1))
    n_placed, n_steps = np.int64(0), np.int64(0)
    step_starts[0] = 0
    while True:
        n_before = n_placed
        for stream in range(n_streams):
            n_at_turn = n_placed
            while n_placed - n_at_turn < turn_tokens and at_document[stream] < bounds[stream + 1]:
                document = documents[at_document[stream]]
                if at_token[stream] < 0:
                    at_token[stream] = document_starts[document]
                if at_token[stream] >= document_starts[document + 1]:
                    at_document[stream] += 1
                    at_token[stream] = -1
                    continue
                if not is_dead[at_token[stream]]:
                    order[n_placed] = at_token[stream]
                    n_placed += 1
                at_token[stream] += 1
            if own_steps and n_placed > n_at_turn:
                n_steps += 1
                step_starts[n_steps] = n_placed
        if n_placed == n_before:
            return n_steps
        if not own_steps:
            n_steps += 1
            step_starts[n_steps] = n_placed


@njit(cache=True, nogil=True, inline="always")
def _pages_of(row: Any, part: Any, unit: Any) -> Any:
    """The first and the last page, within its part of its layer, that a row lies in."""
    cell = row // unit.cell_rows[part]
    first_byte = cell * unit.cell_bytes[part] + (row - cell * unit.cell_rows[part]) * unit.n_bytes[part]
    return first_byte >> _PAGE_SHIFT, (first_byte + unit.n_bytes[part] - 1) >> _PAGE_SHIFT


@njit(cache=True, nogil=True)
def count_pages(rows: Any, places: Any, start: Any, stop: Any, unit: Any, counts: Any) -> None:
    """Pages of the tokens at places[start:stop] into `counts` int64 (tokens + 1,), each token's after its place.

    `rows` int64 (rows' tokens, layers, columns); `places` int64 (tokens,): which of them each token is.
    """
    for token in range(start, stop):
        n_pages = np.int64(0)
        for layer in range(rows.shape[1]):
            for column in range(rows.shape[2]):
                for part in range(unit.first_items.shape[0]):
                    first, last = _pages_of(rows[places[token], layer, column], part, unit)
                    n_pages += last - first + 1
        counts[token + 1] = n_pages


@njit(cache=True, nogil=True)
def place_pages(
    rows: Any, places: Any, start: Any, stop: Any, unit: Any, classes_of: Any, bounds: Any, items: Any, classes: Any
) -> None:
    """Pages into `items` uint64 and their classes into `classes` uint8.

    `bounds` int64: where each token's begin. `classes_of` uint8 (layers, columns). The rest as `count_pages`.
    """
    for token in range(start, stop):
        at = bounds[token]
        for layer in range(rows.shape[1]):
            for column in range(rows.shape[2]):
                for part in range(unit.first_items.shape[0]):
                    first, last = _pages_of(rows[places[token], layer, column], part, unit)
                    for page in range(first, last + 1):
                        items[at] = np.uint64(unit.first_items[part, layer] + page)
                        classes[at] = classes_of[layer, column]
                        at += 1


@njit(cache=True, nogil=True)
def place_rows(
    rows: Any, places: Any, start: Any, stop: Any, unit: Any, classes_of: Any, items: Any, classes: Any
) -> None:
    """Rows into `items` and `classes`, as many of each token; the arguments as `place_pages`."""
    n_layers, n_columns = rows.shape[1], rows.shape[2]
    for token in range(start, stop):
        at = token * n_layers * n_columns
        for layer in range(n_layers):
            for column in range(n_columns):
                items[at] = np.uint64(unit.first_items[0, layer] + rows[places[token], layer, column])
                classes[at] = classes_of[layer, column]
                at += 1


@njit(cache=True, nogil=True)
def count_rows(rows: Any, alive: Any, layer: Any, first_row: Any, counters: Any) -> None:
    """Add the lookups of one layer to counters uint32 (n,) of the rows from `first_row` on; others are left out."""
    n_rows = counters.shape[0]
    for token in range(rows.shape[0]):
        if not alive[token]:
            continue
        for column in range(rows.shape[2]):
            at = rows[token, layer, column] - first_row
            if 0 <= at < n_rows:
                counters[at] += np.uint32(1)


@njit(cache=True, nogil=True)
def name_ngrams(rows: Any, columns: Any, names: Any) -> None:
    """One number for each token's n-gram of an order, uint64 (tokens,), from its rows of all heads of layer 0.

    Different n-grams have rows that differ in some head, and so different numbers but for a hash's accidents.
    """
    for token in range(rows.shape[0]):
        mixed = np.uint64(0x9E3779B97F4A7C15)
        for at in range(columns.shape[0]):
            mixed ^= np.uint64(rows[token, 0, columns[at]])
            mixed *= _MIX
            mixed ^= mixed >> _HALF
        names[token] = mixed
