"""A table over several devices: each holds the rows of some columns (heads), and all columns meet on the first one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from engram_tables.address.spec import Addresses
from engram_tables.errors import InvalidInput
from engram_tables.fetch.gpu.device import Device, DeviceArray
from engram_tables.fetch.gpu.device_reader import DevicePath, Shape, Slot
from engram_tables.fetch.gpu.paths import BlockPath, ResidentPath, ZeroCopyPath
from engram_tables.fetch.gpu.records import Layout
from engram_tables.fetch.table import Table


def split_columns(n_columns: int, n_devices: int) -> tuple[range, ...]:
    """Near-equal consecutive columns for each device.

    >>> split_columns(16, 3)
    (range(0, 5), range(5, 10), range(10, 16))

    Raises
    ------
    InvalidInput
        More devices than columns.
    """
    if not 1 <= n_devices <= n_columns:
        raise InvalidInput(f"devices: found {n_devices}, expected 1 to {n_columns}, one column each; take fewer")
    bounds = [n_columns * k // n_devices for k in range(n_devices + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(bounds))


class SplitPath(DevicePath):
    """Every device gathers its own columns' records; they are copied to the first device and stand there as if it had
    held them all.

    Where all heads of a layer share their rows, as some families' do, every device holds all of them: nothing is
    saved then.

    Parameters
    ----------
    way
        `ResidentPath`, or `ZeroCopyPath` for rows in host memory that each device reads over its own bus.

    Raises
    ------
    CapacityError
        A device's part does not fit.
    """

    name = "split"

    def __init__(
        self, table: Table, devices: Sequence[Device], shape: Shape, *,
        way: type[ResidentPath] | type[ZeroCopyPath] = ResidentPath,
    ) -> None:  # fmt: skip
        whole = Layout.of_stored(table.stored)
        self.columns = split_columns(whole.n_columns, len(devices))
        self._table, self._devices, self._way = table, tuple(devices), way
        self.parts: list[BlockPath] = []
        super().__init__(whole, devices[0], shape, unit_bytes=whole.stride_bytes)

    def _prepare(self) -> None:
        self._held.callback(self._close_parts)
        for device, columns in zip(self._devices, self.columns, strict=True):
            layout = self.layout.of_columns(self._table.spec, columns)
            self.parts.append(self._way(self._table, device, self.shape, layout=layout))
        dtype = self._slots[0].output.dtype
        self._arrived = [
            self.device.empty((self.max_tokens * part.rows_a_token * part.unit,), dtype) for part in self.parts
        ]
        # After the copies of a slot's parts, from which on the parts may be written anew.
        self._copied = [self.device.event() for _ in range(self.n_slots)]

    def _bring(self, addresses: Addresses, slot: int, place: Slot) -> None:
        n_tokens = len(addresses.rows)
        # Before any device begins, and by the columns of the whole batch.
        self.layout.check(addresses.rows)
        self.side.wait_event(place.used)
        for part, columns, arrived in zip(self.parts, self.columns, self._arrived, strict=True):
            of_columns = slice(columns.start, columns.stop)
            rows = np.ascontiguousarray(addresses.rows[:, :, of_columns])
            part.side.wait_event(self._copied[slot])
            part.begin(Addresses(rows=rows, keys=addresses.keys), slot)
            of_part = part.slot(slot)
            self.side.wait_event(of_part.ready)
            source = part.flat(of_part, n_tokens)
            if part.device is not self.device:
                target = arrived[: source.size]
                self.device.copy_from(part.device, target, source, self.side)
                source = target
            self._place(source, columns, place, n_tokens)
        self.side.record(self._copied[slot])
        self._record_ready(place)

    def _place(self, source: DeviceArray, columns: range, place: Slot, n_tokens: int) -> None:
        """Lay one part's records, (layers, tokens, columns of the part, unit), between those of the others."""
        if not n_tokens:
            return
        n_groups, unit_bytes = self.n_layers * n_tokens, self.unit * place.output.itemsize
        target = _bytes(self.flat(place, n_tokens)).reshape(n_groups, self.n_columns * unit_bytes)
        stretch = target[:, columns.start * unit_bytes : columns.stop * unit_bytes]
        self.device.copy_columns(stretch, _bytes(source).reshape(n_groups, len(columns) * unit_bytes), self.side)

    def _close_parts(self) -> None:
        for part in self.parts:
            part.close()


def _bytes(flat: DeviceArray) -> Any:
    return flat.view(np.uint8)
