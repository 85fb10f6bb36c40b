"""Which n-grams lie in which rows of a layer, window by window within a bound of memory.

A window is a range of rows with every (row, n-gram) pair in it, sorted by row, for each head by itself; making one
hashes all n-grams of the layer's orders again. Knows no values.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import hash_ngrams
from engram_tables.address.spec import AddressSpec
from engram_tables.errors import CapacityError
from engram_tables.storage.building.next_token_pairs import FollowedNgrams
from engram_tables.threads import run_all
from engram_tables.units import format_bytes

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
_ENTRY_BYTES = 8
_CHUNK_NGRAMS = 1 << 16
_GRANULES = 1 << 12
_HELD = 2
"""Windows held at once: while some threads begin with one, others still need the one before."""
_COPIES = _HELD + 1
"""Times that a window's entries are in memory: those held, and the parts of one that is being made."""


class Entries(NamedTuple):
    """The n-grams of one order in the rows of one head.

    Attributes
    ----------
    order, head
        Whose rows.
    keys
        uint64, ascending: row, counted from the window's first one, above `ngram_bits`, the n-gram's number below.
    """

    order: int
    head: int
    ngram_bits: int
    keys: U64

    @property
    def rows(self) -> range:
        """From the first row with an n-gram to the last one, counted from the window's first."""
        return range(int(self.keys[0]) >> self.ngram_bits, (int(self.keys[-1]) >> self.ngram_bits) + 1)


class Window(NamedTuple):
    """Rows start … stop - 1 of a layer and the n-grams in them."""

    start: int
    stop: int
    entries: tuple[Entries, ...]


class LayerWindows:
    """The windows of every layer, each made when it is asked for; safe to use from several threads.

    Parameters
    ----------
    followed
        The n-grams of each order.
    room_bytes
        Bytes of entries held at once.

    Raises
    ------
    CapacityError
        A few rows alone have more entries than fit.
    """

    def __init__(
        self, spec: AddressSpec, followed: Mapping[int, FollowedNgrams], *, room_bytes: int, threads: int
    ) -> None:
        self._spec = spec
        self._followed = followed
        self._threads = threads
        self._room_entries = room_bytes // _COPIES // _ENTRY_BYTES
        self._lock = threading.Lock()
        self._bounds: dict[int, list[int]] = {}
        self._held: dict[tuple[int, int], Window] = {}
        self.n_made = 0

    def at(self, layer_id: int, row: int) -> Window:
        """The window that holds a row."""
        with self._lock:
            if layer_id not in self._bounds:
                self._bounds[layer_id] = self._plan(layer_id)
            bounds = self._bounds[layer_id]
            which = int(np.searchsorted(bounds, row, side="right")) - 1
            key = (layer_id, which)
            if key not in self._held:
                while len(self._held) >= _HELD:
                    self._held.pop(next(iter(self._held)))
                self._held[key] = self._make(layer_id, bounds[which], bounds[which + 1])
            return self._held[key]

    def _rows(self, layer_id: int, order: int) -> Iterator[tuple[int, I64]]:
        """Chunks of an order's n-grams: the number of the first, and int64 (n, heads) rows."""
        ngrams = self._followed[order].ngrams
        for first in range(0, len(ngrams), _CHUNK_NGRAMS):
            some = ngrams[first : first + _CHUNK_NGRAMS]
            yield first, hash_ngrams(self._spec, layer_id, order, some, threads=1)[1]

    def _plan(self, layer_id: int) -> list[int]:
        """Bounds of windows that have no more entries than there is room for."""
        n_rows = self._spec.layer(layer_id).n_rows
        granule_rows = -(-n_rows // _GRANULES)
        found = np.zeros((len(self._spec.orders), _GRANULES), np.int64)

        def count(which: int) -> None:
            for _, rows in self._rows(layer_id, self._spec.orders[which]):
                found[which] += np.bincount(rows.reshape(-1) // granule_rows, minlength=_GRANULES)

        run_all(count, range(len(found)), threads=self._threads)
        n_entries = found.sum(axis=0)
        if int(n_entries.max()) > self._room_entries:
            raise CapacityError(
                f"layer {layer_id}: found {int(n_entries.max()):,} n-grams in {granule_rows:,} rows, expected "
                f"{self._room_entries:,} at most within this memory; give some "
                f"{format_bytes(int(n_entries.max()) * _COPIES * _ENTRY_BYTES)} more --memory"
            )
        # An entry's row and n-gram share 64 bits.
        most_rows = 1 << (64 - max(_bits(each) for each in self._followed.values()))
        bounds, inside = [0], 0
        for granule, size in enumerate(n_entries.tolist()):
            first = granule * granule_rows
            if first and (inside + size > self._room_entries or first + granule_rows - bounds[-1] > most_rows):
                bounds.append(first)
                inside = 0
            inside += size
        return [*(bound for bound in bounds if bound < n_rows), n_rows]

    def _make(self, layer_id: int, start: int, stop: int) -> Window:
        spec = self._spec
        lists: dict[tuple[int, int], U64] = {}

        def collect(which: int) -> None:
            order = spec.orders[which]
            lists.update(self._collect(layer_id, order, spec.heads[which], start, stop))

        run_all(collect, range(len(spec.orders)), threads=self._threads)
        run_all(lambda keys: keys.sort(), lists.values(), threads=self._threads)
        self.n_made += 1
        entries = (
            Entries(order, head, _bits(self._followed[order]), keys)
            for (order, head), keys in sorted(lists.items(), key=lambda each: each[0])
        )
        return Window(start, stop, tuple(entries))

    def _collect(self, layer_id: int, order: int, n_heads: int, start: int, stop: int) -> dict[tuple[int, int], U64]:
        from engram_tables.storage.next_token.kernels import collect_entries

        # A chunk's room at a time: how many n-grams of a head lie in the window is not known before.
        parts: list[list[U64]] = [[] for _ in range(n_heads)]
        ngram_bits = _bits(self._followed[order])
        for first, rows in self._rows(layer_id, order):
            for head in range(n_heads):
                keys = np.empty(len(rows), np.uint64)
                n_keys = collect_entries(rows, head, first, start, stop, ngram_bits, keys, 0)
                if n_keys:
                    parts[head].append(keys if n_keys == len(keys) else keys[:n_keys].copy())
        return {(order, head): np.concatenate(mine) for head, mine in enumerate(parts) if mine}


def _bits(followed: FollowedNgrams) -> int:
    """Bits of an n-gram's number."""
    return max(len(followed.ngrams) - 1, 1).bit_length()
