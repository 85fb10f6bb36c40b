"""Registered host memory that bytes pass through on their way to a device. It knows no tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.gpu.device import Device, DeviceArray
from engram_tables.fetch.gpu.host_memory import registered_bytes
from engram_tables.fetch.gpu.records import Layout
from engram_tables.units import PAGE_BYTES


class PieceRing:
    """Pieces that are used in turn; one is written again when its copy is over. One thread at a time."""

    def __init__(self, piece_bytes: int, device: Device, n_pieces: int) -> None:
        # Each on a page of its own, and so aligned for whatever reads into it.
        self._step = -(-piece_bytes // PAGE_BYTES) * PAGE_BYTES
        self._memory = registered_bytes(self._step * n_pieces, device)
        self._copied = [device.event(sleeps=True) for _ in range(n_pieces)]
        self._nth = 0

    def next(self, n_bytes: int, stream: Any) -> Piece:
        """The next piece, uint8 (n_bytes,), as a context: what copies it is put into `stream` inside."""
        nth, self._nth = self._nth, (self._nth + 1) % len(self._copied)
        start = nth * self._step
        return Piece(self._memory.memory.bytes[start : start + n_bytes], self._copied[nth], stream)

    def close(self) -> None:
        """Nothing may be under way."""
        self._memory.close()


class Piece:
    """See `PieceRing.next`."""

    def __init__(self, piece: NDArray[np.uint8], copied: Any, stream: Any) -> None:
        self._piece, self._copied, self._stream = piece, copied, stream

    def __enter__(self) -> NDArray[np.uint8]:
        self._copied.synchronize()
        return self._piece

    def __exit__(self, *_: object) -> None:
        self._stream.record(self._copied)


class Positions:
    """Where the rows of batches lie in a block: looked up, checked and sent to the device; a buffer a slot."""

    def __init__(self, layout: Layout, device: Device, *, n_slots: int, max_tokens: int) -> None:
        self._shape = len(layout.layer_ids), layout.n_columns
        n_rows = max_tokens * len(layout.layer_ids) * layout.n_columns
        self._layout, self._device = layout, device
        self._memory = registered_bytes(n_slots * n_rows * 8, device)
        self._host = self._memory.memory.bytes.view(np.int64).reshape(n_slots, n_rows)
        self._on_device = [device.empty((n_rows,), np.int64) for _ in range(n_slots)]
        self._sent = [device.event() for _ in range(n_slots)]

    def send(self, rows: NDArray[np.int64], slot: int, stream: Any) -> DeviceArray:
        """Positions, int64 (layers * tokens * columns,) on the device; raises as `Layout.positions`."""
        # The copy of this slot's last batch may still read the buffer.
        self._sent[slot].synchronize()
        n_layers, n_columns = self._shape
        n_rows = len(rows) * n_layers * n_columns
        host = self._host[slot, :n_rows]
        self._layout.positions(rows, host.reshape(n_layers, len(rows), n_columns))
        target = self._on_device[slot][:n_rows]
        self._device.upload(target, host, stream)
        stream.record(self._sent[slot])
        return target

    def close(self) -> None:
        """Nothing may be under way."""
        self._on_device.clear()
        self._memory.close()
