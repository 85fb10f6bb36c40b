"""A tier in a device's memory: the rows that are used often, within a byte budget, in front of any engine.

Which rows are here is decided on the host by the sets of `tiers.cache_kernels`, and so by the very policy of the tier
in host memory. The records themselves are on the device alone. All that touches them is put into one side stream in
the order of those decisions: a slot is read for a batch before a later one overwrites it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses
from engram_tables.errors import CapacityError
from engram_tables.fetch.engines.engine import Engine, Pending
from engram_tables.fetch.gpu.device import Device, DeviceArray
from engram_tables.fetch.gpu.device_reader import RECORDS, DevicePath, Shape, Slot, check_fits
from engram_tables.fetch.gpu.records import Layout
from engram_tables.fetch.gpu.staging import PieceRing
from engram_tables.fetch.table import AUTO, Table
from engram_tables.fetch.tiers.cache_kernels import (
    ADMIT,
    EMPTY,
    HEADER_BYTES,
    HITS_CACHED,
    LEFT_OUT,
    MISSES,
    N_COUNTS,
    PRELOAD,
    STORED,
    THROWN_OUT,
    WAYS,
    claim_slots,
    clear_sets,
    find_slots,
)
from engram_tables.memory import aligned_bytes
from engram_tables.units import format_bytes

_PIECE_BYTES = 4 << 20
_N_PIECES = 4
# So many tokens, and a piece's values begin on a multiple of 16 bytes, whatever their width.
_TOKENS_UNIT = 16
_ALIGNMENT = 16
_PRELOADED_ROWS = 4096
_ALL = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCounts:
    """What became of lookups so far. Rows of a batch that are missed twice count twice."""

    n_hits: int
    n_misses: int
    n_stored: int
    n_thrown_out: int
    n_left_out: int


class Directory:
    """Which rows are in which slots of a cache of `n_sets` sets. One thread at a time.

    Raises
    ------
    CapacityError
        Too few sets for the table's rows: their tags have 16 bits.
    """

    def __init__(self, n_rows: NDArray[np.int64], n_sets: int) -> None:
        total = int(n_rows.sum())
        if n_sets < 1 or total // n_sets >= EMPTY:
            least = total // EMPTY + 1
            raise CapacityError(
                f"cache: found room for {n_sets} sets of {WAYS} rows, expected {least} or more for {total:,} rows; "
                "give it a larger budget"
            )
        self.n_sets = n_sets
        self._headers = aligned_bytes(n_sets * HEADER_BYTES, HEADER_BYTES)
        self._counts = np.zeros(N_COUNTS, np.int64)
        first_keys = np.concatenate(([0], np.cumsum(n_rows)[:-1]))
        addresses = self._headers.ctypes.data, 0, n_sets, 0, self._counts.ctypes.data
        self._state = np.array([*addresses, *first_keys.tolist()], np.uint64)
        self.clear()

    def clear(self) -> None:
        """Nothing is here any more."""
        clear_sets(self._state, 0, self.n_sets)

    def find(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots of checked rows, int64 (tokens, layers, columns), as int64 (n,); -1 where a row is not here."""
        slots = np.empty(rows.size, np.int64)
        find_slots(rows.reshape(-1), _ALL, (rows.shape[2], 0, rows.shape[1]), self._state, slots)
        return slots

    def claim(self, rows: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Let `items` of those rows, in order, compete for slots; the slot that each is to be put in, or -1."""
        slots = np.empty(items.size, np.int64)
        claim_slots(rows.reshape(-1), items, (rows.shape[2], 0, rows.shape[1]), self._state, ADMIT, slots)
        return last_claims(slots)

    def preload(self, layer: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give free slots to checked rows of one layer, int64 (n,); -1 where none is free, or the row is here."""
        slots = np.empty(rows.size, np.int64)
        items = np.arange(rows.size)
        claim_slots(rows, items, (max(rows.size, 1), layer, 1), self._state, PRELOAD, slots)
        return last_claims(slots)

    def counts(self) -> CacheCounts:
        """A snapshot."""
        found = self._counts
        return CacheCounts(
            n_hits=int(found[HITS_CACHED]),
            n_misses=int(found[MISSES]),
            n_stored=int(found[STORED]),
            n_thrown_out=int(found[THROWN_OUT]),
            n_left_out=int(found[LEFT_OUT]),
        )


def last_claims(slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Slots, int64 (n,), with -1 for a claim that a later one of the same slot has undone.

    >>> last_claims(np.array([3, -1, 5, 3])).tolist()
    [-1, -1, 5, 3]
    """
    _, from_end = np.unique(slots[::-1], return_index=True)
    kept = np.full_like(slots, -1)
    last = slots.size - 1 - from_end
    kept[last] = slots[last]
    return kept


class Missed(NamedTuple):
    """Rows of a piece that are not on the device, each once and layer by layer.

    Attributes
    ----------
    rows
        For each layer int64 (k,), ascending.
    items
        int64 (m,): positions in the piece's flat rows, in order.
    records
        int64 (m,): which of all the rows each item is.
    """

    rows: list[NDArray[np.int64]]
    items: NDArray[np.int64]
    records: NDArray[np.int64]

    @property
    def n_records(self) -> int:
        """Of all layers."""
        return sum(of_layer.size for of_layer in self.rows)


def missed(rows: NDArray[np.int64], slots: NDArray[np.int64]) -> Missed:
    """What to read for rows, int64 (tokens, layers, columns), of which those with a negative slot are missing."""
    items = np.flatnonzero(slots < 0)
    layers = items // rows.shape[2] % rows.shape[1]
    values = rows.reshape(-1)[items]
    records, of_layers, n_before = np.empty(items.size, np.int64), [], 0
    for layer in range(rows.shape[1]):
        chosen = np.flatnonzero(layers == layer)
        unique, inverse = np.unique(values[chosen], return_inverse=True)
        records[chosen] = inverse + n_before
        of_layers.append(unique)
        n_before += unique.size
    return Missed(of_layers, items, records)


class CachedPath(DevicePath):
    """Rows that are in the device's cache are gathered there; the others are read, each once a piece, and may stay.

    Parameters
    ----------
    budget_bytes
        Of the device's memory for records. Beside it the host holds 64 bytes for every 16 of them.
    hot_rows
        Layer ids with rows, hottest first, which are put in while there is room. They compete like others then.

    Raises
    ------
    CapacityError
        The budget is larger than what is free, or too small for the table.
    """

    name = "cached"
    is_layer_major = False

    def __init__(
        self, table: Table, device: Device, shape: Shape, *, budget_bytes: int, engine: str | Engine = AUTO,
        threads: int | None = None, hot_rows: Iterable[tuple[int, NDArray[np.int64]]] = (),
    ) -> None:  # fmt: skip
        self._table, self._engine, self._threads, self._hot_rows = table, engine, threads, hot_rows
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="engram-cached")
        layout = Layout.of_stored(table.stored)
        n_rows = np.array([layer.n_rows for layer in table.spec.layers], np.int64)
        # More sets than rows would never be filled.
        n_sets = min(budget_bytes // (WAYS * layout.stride_bytes), -(-int(n_rows.sum()) // WAYS))
        self.directory = Directory(n_rows, n_sets)
        super().__init__(layout, device, shape, unit_bytes=layout.stride_bytes)

    @property
    def counts(self) -> CacheCounts:
        """Hits and misses so far."""
        return self.directory.counts()

    def _prepare(self) -> None:
        device, stride_bytes = self.device, self.layout.stride_bytes
        self._n_kept = self.directory.n_sets * WAYS
        kept_bytes = self._n_kept * stride_bytes
        check_fits(device, kept_bytes, f"a cache of {format_bytes(kept_bytes)}")
        self._kept = device.empty((self._n_kept, stride_bytes), np.uint8)
        self._held.callback(self._drop)
        row_bytes = self.layout.row_bytes + 3 * np.dtype(np.int64).itemsize
        n_tokens = max(_PIECE_BYTES // (row_bytes * self.rows_a_token) // _TOKENS_UNIT, 1) * _TOKENS_UNIT
        self._tokens_a_piece = min(n_tokens, self.max_tokens)
        n_rows = max(self._tokens_a_piece * self.rows_a_token, _PRELOADED_ROWS)
        piece_bytes = n_rows * row_bytes + 3 * _ALIGNMENT
        self._ring = PieceRing(piece_bytes, device, _N_PIECES)
        self._held.callback(self._ring.close)
        # One place for all pieces: the side stream is done with one before it copies the next.
        self._arrived = device.empty((piece_bytes,), np.uint8)
        self._strided = device.empty((n_rows, stride_bytes), np.uint8)
        for layer_id, rows in self._hot_rows:
            self._preload(layer_id, rows)

    def _bring(self, addresses: Addresses, slot: int, place: Slot) -> Future[None]:
        return self._worker.submit(self._bring_pieces, addresses, place)

    def _bring_pieces(self, addresses: Addresses, place: Slot) -> None:
        # The sets would find a place for any number.
        self.layout.check(addresses.rows)
        with self.device.active():
            self.side.wait_event(place.used)
            for start in range(0, len(addresses.rows), self._tokens_a_piece):
                rows = np.ascontiguousarray(addresses.rows[start : start + self._tokens_a_piece])
                first = start * self.rows_a_token
                flat = place.output[first * self.unit : (first + rows.size) * self.unit]
                self._bring_piece(rows, flat.reshape(rows.size, self.unit))
            self._record_ready(place)

    def _bring_piece(self, rows: NDArray[np.int64], out: DeviceArray) -> None:
        slots = self.directory.find(rows)
        wanted = missed(rows, slots)
        from_arrived = np.full(rows.size, -1, np.int64)
        from_arrived[wanted.items] = wanted.records
        with self._ring.next(self._piece_bytes(wanted.n_records, 2 * rows.size + wanted.n_records), self.side) as piece:
            n_bytes = wanted.n_records * self.layout.row_bytes
            self._read(wanted.rows, piece[:n_bytes].reshape(wanted.n_records, self.layout.row_bytes))
            to_kept = np.full(wanted.n_records, -1, np.int64)
            claims = self.directory.claim(rows, wanted.items)
            to_kept[wanted.records[claims >= 0]] = claims[claims >= 0]
            try:
                hits, misses, kept = self._upload(piece, wanted.n_records, (slots, from_arrived, to_kept))
                self._gather(self._kept, self._n_kept, hits, out)
                if wanted.n_records:
                    self._gather(self._strided, wanted.n_records, misses, out)
                    self._keep(kept, wanted.n_records)
            except BaseException:
                # The rows that were given slots are not in them.
                self.directory.clear()
                raise

    def _read(self, rows: list[NDArray[np.int64]], out: NDArray[np.uint8]) -> None:
        """Records of rows of every layer, all of them under way at once."""
        engine = self._table.engine(self._engine) if isinstance(self._engine, str) else self._engine
        pending: list[Pending] = []
        try:
            done = 0
            for layer, of_layer in enumerate(rows):
                if of_layer.size:
                    batch = self._table.places.check(of_layer, n_columns=of_layer.size, first_layer=layer, n_layers=1)
                    target = out[done : done + of_layer.size]
                    pending.append(engine.begin(batch, target, self._threads))
                    done += of_layer.size
        finally:
            _finish_all(pending)

    def _piece_bytes(self, n_records: int, n_positions: int) -> int:
        return _aligned(n_records * self.layout.row_bytes) + 8 * n_positions

    def _upload(
        self, piece: NDArray[np.uint8], n_records: int, positions: tuple[NDArray[np.int64], ...]
    ) -> list[DeviceArray]:
        """Send records and positions in one copy, and lay the records at their stride; the positions on the device."""
        start = _aligned(n_records * self.layout.row_bytes)
        joined = np.concatenate(positions)
        piece[start:].view(np.int64)[:] = joined
        arrived = self._arrived[: piece.size]
        self.device.upload(arrived, piece, self.side)
        if n_records:
            packed = arrived[: n_records * self.layout.row_bytes].reshape(n_records, self.layout.row_bytes)
            self.device.copy_columns(self._strided[:n_records, : self.layout.row_bytes], packed, self.side)
        on_device = arrived[start:].view(np.int64)
        stops = np.cumsum([array.size for array in positions]).tolist()
        return [on_device[stop - array.size : stop] for stop, array in zip(stops, positions, strict=True)]

    def _gather(self, block: DeviceArray, n_rows: int, positions: DeviceArray, out: DeviceArray) -> None:
        gather = self._kernels.gather if self.shape.output == RECORDS else self._kernels.gather_decode
        gather(self.device.address(block), positions, out, n_rows=n_rows, stream=self.side)

    def _keep(self, slots: DeviceArray, n_records: int) -> None:
        kept = self.device.address(self._kept)
        self._kernels.scatter(self._strided[:n_records], slots, kept, n_rows=self._n_kept, stream=self.side)

    def _preload(self, layer_id: int, rows: NDArray[np.int64]) -> None:
        checked = self._table.stored.check_rows(layer_id, rows)
        layer = self.layout.layer_ids.index(layer_id)
        for start in range(0, checked.size, _PRELOADED_ROWS):
            unique = np.array(list(dict.fromkeys(checked[start : start + _PRELOADED_ROWS].tolist())), np.int64)
            of_layers = [unique if k == layer else unique[:0] for k in range(self.n_layers)]
            with self._ring.next(self._piece_bytes(unique.size, unique.size), self.side) as piece:
                n_bytes = unique.size * self.layout.row_bytes
                self._read(of_layers, piece[:n_bytes].reshape(unique.size, self.layout.row_bytes))
                (slots,) = self._upload(piece, unique.size, (self.directory.preload(layer, unique),))
                self._keep(slots, unique.size)

    def _stop(self) -> None:
        self._worker.shutdown(wait=True)

    def _drop(self) -> None:
        self._kept = None


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def _finish_all(pending: list[Pending]) -> None:
    """Finish every read, then raise the first error."""
    errors = []
    for read in pending:
        try:
            read.finish()
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]
