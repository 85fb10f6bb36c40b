"""Three ways of a batch's records to a device, as `RecordReader`s: resident, zero-copy, staged.

The rows are a table's, or those of a block in host memory that no table has.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.gpu.device import Device, DeviceArray
from engram_tables.fetch.gpu.device_reader import OUTPUTS, RECORDS, DevicePath, Shape, Slot, check_fits
from engram_tables.fetch.gpu.host_memory import Registered
from engram_tables.fetch.gpu.records import HostRecords, Layout, Span, cut, fill
from engram_tables.fetch.gpu.staging import PieceRing, Positions
from engram_tables.fetch.table import AUTO, Table

__all__ = ["OUTPUTS", "RECORDS", "ResidentPath", "Rows", "Shape", "StagedPath", "ZeroCopyPath"]

Rows = Table | HostRecords
"""Where rows come from."""

# From this many rows of a layer on, each layer has a launch and an event of its own: launching costs microseconds.
_ROWS_A_LAUNCH = 4096
_STAGED_PIECE_BYTES = 4 << 20
_N_STAGED_PIECES = 4
# So many tokens, and a piece's values begin on a multiple of 16 bytes, whatever their width.
_TOKENS_UNIT = 16
_FILL_PIECE_BYTES = 64 << 20


class BlockPath(DevicePath):
    """A kernel gathers records out of one block that the device reads; subclasses say where it lies.

    Parameters
    ----------
    blocks
        The kernel's grid; None leaves it to the way.
    """

    def __init__(self, layout: Layout, device: Device, shape: Shape, *, blocks: int | None) -> None:
        self._blocks = blocks
        self._base_address = 0
        super().__init__(layout, device, shape, unit_bytes=layout.stride_bytes)

    def _prepare(self) -> None:
        self._positions = Positions(self.layout, self.device, n_slots=self.n_slots, max_tokens=self.max_tokens)
        self._held.callback(self._positions.close)

    def _bring(self, addresses: Addresses, slot: int, place: Slot) -> None:
        positions = self._positions.send(addresses.rows, slot, self.side)
        self.side.wait_event(place.used)
        rows_a_layer = len(addresses.rows) * self.n_columns
        layer_bytes = rows_a_layer * self.unit * place.output.itemsize
        if rows_a_layer < _ROWS_A_LAUNCH or layer_bytes % 16:
            self._gather(positions, place, 0, self.n_layers * rows_a_layer)
            self._record_ready(place)
            return
        for layer in range(self.n_layers):
            self._gather(positions, place, layer * rows_a_layer, (layer + 1) * rows_a_layer)
            self.side.record(place.layers_ready[layer])
        self.side.record(place.ready)

    def _gather(self, positions: DeviceArray, place: Slot, start: int, stop: int) -> None:
        out = place.output[start * self.unit : stop * self.unit].reshape(stop - start, self.unit)
        gather = self._kernels.gather if self.shape.output == RECORDS else self._kernels.gather_decode
        gather(
            self._base_address, positions[start:stop], out, n_rows=self.layout.n_rows, stream=self.side,
            blocks=self._blocks,
        )  # fmt: skip


class ResidentPath(BlockPath):
    """All rows lie in the device's memory: the baseline that every other way is held against.

    Raises
    ------
    CapacityError
        They do not fit.
    """

    name = "resident"

    def __init__(
        self, rows: Rows, device: Device, shape: Shape, *, layout: Layout | None = None, threads: int | None = None,
        blocks: int | None = None,
    ) -> None:  # fmt: skip
        self._rows: Rows | None = rows
        self._threads = threads
        super().__init__(layout or layout_of(rows), device, shape, blocks=blocks)

    def _prepare(self) -> None:
        super()._prepare()
        layout, device = self.layout, self.device
        check_fits(device, layout.n_bytes, f"all {layout.n_rows:,} rows of {layout.name}")
        self._block = device.empty((layout.n_rows, layout.stride_bytes), np.uint8)
        self._held.callback(self._drop)
        self._base_address = device.address(self._block)
        self._load()
        self._rows = None

    def _load(self) -> None:
        """A piece is read while the one before it is copied."""
        stride_bytes = self.layout.stride_bytes
        piece_rows = max(1, min(_FILL_PIECE_BYTES // stride_bytes, self.layout.n_rows))
        ring = PieceRing(piece_rows * stride_bytes, self.device, n_pieces=2)
        try:
            for span in cut(self.layout.spans, piece_rows):
                n_rows = span.stop - span.start
                with ring.next(n_rows * stride_bytes, self.side) as piece:
                    self._read(span, piece.reshape(n_rows, stride_bytes))
                    target = self._block[span.first_position : span.first_position + n_rows]
                    self.device.upload(target, piece, self.side)
        finally:
            self.side.synchronize()
            ring.close()

    def _read(self, span: Span, out: NDArray[np.uint8]) -> None:
        if isinstance(self._rows, Table):
            stored = self._rows.stored
            fill(stored, self.layout, out, (span,), first_position=span.first_position, threads=self._threads)
        elif self._rows is not None:
            start = self._rows.layout.position_of(span.layer, span.start)
            out[:] = self._rows.array[start : start + len(out)]

    def _drop(self) -> None:
        self._block = None


class ZeroCopyPath(BlockPath):
    """All rows lie in host memory, and a kernel reads them over the bus.

    By default the kernel's grid is as large as the device has multiprocessors: more does not help where the bus is
    the limit, and half leaves room for what else the device does.

    Raises
    ------
    CapacityError
        They do not fit into the memory that is left.
    BackendUnavailable
        The device does not register this much host memory.
    """

    name = "zero-copy"

    def __init__(
        self, rows: Rows, device: Device, shape: Shape, *, layout: Layout | None = None, threads: int | None = None,
        blocks: int | None = None,
    ) -> None:  # fmt: skip
        if isinstance(rows, Table):
            rows = HostRecords.of_stored(rows.stored, layout, threads)
        self._records: HostRecords | None = rows
        super().__init__(rows.layout, device, shape, blocks=blocks or device.n_processors)

    def _prepare(self) -> None:
        super()._prepare()
        assert self._records is not None
        registered = Registered(self._records.memory, self.device)
        self._held.callback(self._drop)
        self._held.callback(registered.close)
        self._base_address = registered.base_address

    def _drop(self) -> None:
        self._records = None


class StagedPath(DevicePath):
    """An engine reads into registered pieces of host memory, which are copied to the device one after the other.

    A thread of the reader's own reads, so that neither the caller nor the device waits for the disk: a piece is
    copied while the next one is read. Any engine of the table will do, from memory or from disk.
    """

    name = "staged"
    is_layer_major = False

    def __init__(
        self, rows: Rows, device: Device, shape: Shape, *, engine: str | Engine = AUTO, threads: int | None = None
    ) -> None:
        self._rows, self._engine, self._threads = rows, engine, threads
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="engram-staged")
        layout = layout_of(rows)
        super().__init__(layout, device, shape, unit_bytes=layout.row_bytes)

    def _prepare(self) -> None:
        token_bytes = self.rows_a_token * self.layout.row_bytes
        n_tokens = max(_STAGED_PIECE_BYTES // token_bytes // _TOKENS_UNIT, 1) * _TOKENS_UNIT
        self._tokens_a_piece = min(n_tokens, self.max_tokens)
        self._ring = PieceRing(self._tokens_a_piece * token_bytes, self.device, _N_STAGED_PIECES)
        self._held.callback(self._ring.close)
        self._packed = self.device.empty(
            (self._tokens_a_piece * token_bytes * (self.shape.output != RECORDS),), np.uint8
        )

    def _bring(self, addresses: Addresses, slot: int, place: Slot) -> Future[None]:
        return self._worker.submit(self._bring_pieces, addresses, place)

    def _bring_pieces(self, addresses: Addresses, place: Slot) -> None:
        with self.device.active():
            self.side.wait_event(place.used)
            for start in range(0, len(addresses.rows), self._tokens_a_piece):
                tokens = slice(start, start + self._tokens_a_piece)
                part = Addresses(rows=addresses.rows[tokens], keys=addresses.keys[tokens])
                n_rows = part.rows.size
                with self._ring.next(n_rows * self.layout.row_bytes, self.side) as piece:
                    self._read(part, piece.reshape(*part.rows.shape, self.layout.row_bytes))
                    self._send(piece, n_rows, place, start * self.rows_a_token)
            self._record_ready(place)

    def _read(self, addresses: Addresses, out: NDArray[np.uint8]) -> None:
        if isinstance(self._rows, Table):
            self._rows.fetch(addresses, out, self._engine, threads=self._threads)
            return
        n_tokens, n_layers, n_columns = addresses.rows.shape
        positions = np.empty((n_layers, n_tokens, n_columns), np.int64)
        self.layout.positions(addresses.rows, positions)
        out[:] = self._rows.array[positions.transpose(1, 0, 2), : self.layout.row_bytes]

    def _send(self, piece: NDArray[np.uint8], n_rows: int, place: Slot, first_row: int) -> None:
        target = place.output[first_row * self.unit : (first_row + n_rows) * self.unit]
        if self.shape.output == RECORDS:
            self.device.upload(target, piece, self.side)
            return
        # One place for all pieces: the side stream decodes one before it copies the next.
        packed = self._packed[: piece.size]
        self.device.upload(packed, piece, self.side)
        records = packed.reshape(n_rows, self.layout.row_bytes)
        self._kernels.decode(records, target.reshape(n_rows, self.unit), stream=self.side)

    def _stop(self) -> None:
        self._worker.shutdown(wait=True)


def layout_of(rows: Rows) -> Layout:
    """Which rows there are."""
    return Layout.of_stored(rows.stored) if isinstance(rows, Table) else rows.layout
