"""What the ways of records to a device share: slots, the side stream, and whose turn it is. It knows no way itself.

A reader has one side stream, so that all it does happens in one order, and events for every slot: the consumer's
stream waits for the records of a slot, the side stream for the work that used the slot before. No host thread waits
for the device. It knows devices by their protocol alone, and holds no clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike

from engram_tables.address.spec import Addresses
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.fetch.gpu.device import Device, DeviceArray
from engram_tables.fetch.gpu.records import Layout
from engram_tables.units import format_bytes

RECORDS = "records"
_DTYPES: dict[str, DTypeLike] = {RECORDS: np.uint8, "float32": np.float32, "bfloat16": np.uint16}
OUTPUTS = tuple(_DTYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a reader brings.

    Attributes
    ----------
    n_slots, max_tokens
        Batches that may be under way or in use at once, and the tokens of each.
    output
        One of `OUTPUTS`: a batch's bytes, or its values decoded on the device. bfloat16 comes as its bits, uint16.
    """

    n_slots: int = 2
    max_tokens: int = 1
    output: str = RECORDS

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise InvalidInput(f"output {self.output!r}: not known, expected one of {', '.join(OUTPUTS)}")
        if self.n_slots < 1 or self.max_tokens < 1:
            found = f"{self.n_slots} slots of {self.max_tokens} tokens"
            raise InvalidInput(f"reader: found {found}, expected one or more of each; give larger numbers")


class Slot:
    """A batch's place on the device.

    Attributes
    ----------
    output
        All elements, flat, so that the records of a shorter batch lie together as well.
    used
        What the consumer had put into its stream when the slot was begun anew.
    ready, layers_ready
        All of the batch, and each layer of it.
    """

    def __init__(self, device: Device, n_elements: int, n_layers: int, dtype: DTypeLike) -> None:
        self.output = device.empty((n_elements,), dtype)
        self.used, self.ready = device.event(), device.event()
        self.layers_ready = [device.event() for _ in range(n_layers)]


class ArrivingOnDevice:
    """See `Arriving`. A batch on its way into a slot of a device."""

    def __init__(self, path: DevicePath, slot: Slot, n_tokens: int, bringing: Future[None] | None) -> None:
        self._path, self._slot, self._n_tokens, self._bringing = path, slot, n_tokens, bringing

    def finish(self) -> DeviceArray:
        """The records, (tokens, layers, columns, row_bytes), or values, (tokens, layers, columns, width).

        What the caller puts into its stream from now on sees them; the caller itself does not wait for the device,
        only for the host's part of the work, whose errors are raised here. The array speaks DLPack.
        """
        return self._after(self._slot.ready)

    def layer(self, layer: int) -> DeviceArray:
        """As `finish`, for the `layer`-th layer alone, (tokens, columns, row_bytes or width): a large batch's first
        layer may be there while later ones are on their way. `finish` is still to be called, once."""
        return self._after(self._slot.layers_ready[layer])[:, layer]

    def wait(self) -> None:
        """Block the caller until the records are there."""
        if self._bringing is not None:
            self._bringing.result()
        with self._path.device.active():
            self._slot.ready.synchronize()

    def _after(self, event: object) -> DeviceArray:
        if self._bringing is not None:
            self._bringing.result()
        with self._path.device.active():
            self._path.device.consumer().wait_event(event)
            return self._path.view(self._slot, self._n_tokens)


class DevicePath(ABC):
    """See `RecordReader`. Close it, or use it as a context manager. One thread at a time.

    A slot is written anew after the work that its consumer had put into its stream when `begin` was called: call
    `begin` with that stream current in which the records are used.

    Attributes
    ----------
    name
        For tables and records of measurements.
    layout
        Which rows there are.
    unit
        Elements of the output from one row to the next.
    """

    name: ClassVar[str]
    is_layer_major: ClassVar[bool] = True
    """Whether a slot holds all tokens of a layer before the next layer."""

    def __init__(self, layout: Layout, device: Device, shape: Shape, *, unit_bytes: int) -> None:
        self.layout, self.device, self.shape = layout, device, shape
        self.n_slots, self.max_tokens = shape.n_slots, shape.max_tokens
        self.n_layers, self.n_columns = len(layout.layer_ids), layout.n_columns
        self.rows_a_token = self.n_layers * self.n_columns
        self.unit = unit_bytes if shape.output == RECORDS else _row_width(layout)
        self._slots: list[Slot] = []
        self._held = ExitStack()
        self._is_closed = False
        with device.active():
            self.side = device.stream()
            try:
                n_elements = shape.max_tokens * self.rows_a_token * self.unit
                dtype = _DTYPES[shape.output]
                self._slots += [Slot(device, n_elements, self.n_layers, dtype) for _ in range(shape.n_slots)]
                self._kernels = device.kernels(layout.codec, layout.row_bytes, layout.stride_bytes)
                self._prepare()
            except BaseException:
                self.close()
                raise

    def begin(self, addresses: Addresses, slot: int) -> ArrivingOnDevice:
        """See `RecordReader`.

        Raises
        ------
        InvalidInput
            More tokens than `max_tokens`, a closed reader, or a row that is not here; the last one, like every error
            of reading, may come from `finish` instead.
        SpecMismatch
            Addresses of another number of layers or columns.
        """
        n_tokens = len(addresses.rows)
        if self._is_closed:
            raise InvalidInput(f"reader of {self.layout.name}: closed already, expected an open one; make another")
        if n_tokens > self.max_tokens:
            raise InvalidInput(f"batch: found {n_tokens} tokens, expected {self.max_tokens} at most; make it shorter")
        self.layout.check_shape(addresses.rows)
        place = self._slots[slot]
        with self.device.active():
            self.device.consumer().record(place.used)
            bringing = self._bring(addresses, slot, place)
        return ArrivingOnDevice(self, place, n_tokens, bringing)

    def slot(self, slot: int) -> Slot:
        """The `slot`-th place."""
        return self._slots[slot]

    def flat(self, slot: Slot, n_tokens: int) -> DeviceArray:
        """The elements of a slot's batch as they lie."""
        return slot.output[: n_tokens * self.rows_a_token * self.unit]

    def view(self, slot: Slot, n_tokens: int) -> DeviceArray:
        """The records or values of a slot's batch, (tokens, layers, columns, row_bytes or width)."""
        row = self.layout.row_bytes if self.shape.output == RECORDS else self.unit
        flat = self.flat(slot, n_tokens)
        if self.is_layer_major:
            by_layer = flat.reshape(self.n_layers, n_tokens, self.n_columns, self.unit)
            return by_layer.transpose(1, 0, 2, 3)[..., :row]
        return flat.reshape(n_tokens, self.n_layers, self.n_columns, self.unit)[..., :row]

    def close(self) -> None:
        """See `RecordReader`. What was under way is waited for."""
        if not self._is_closed:
            self._is_closed = True
            with self.device.active(), self._held:
                self._stop()
                self.device.end(self.side)
                self._slots.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the way needs; `_held` closes it after the side stream has ended."""

    @abstractmethod
    def _bring(self, addresses: Addresses, slot: int, place: Slot) -> Future[None] | None:
        """Put the work into the side stream, after `place.used`, and its events; or have it done in the background."""

    def _stop(self) -> None:  # noqa: B027 (most ways have no thread)
        """End what is done in the background."""

    def _record_ready(self, place: Slot) -> None:
        for event in (*place.layers_ready, place.ready):
            self.side.record(event)


def check_fits(device: Device, n_bytes: int, what: str) -> None:
    """Raise `CapacityError` where the device has less memory free."""
    free_bytes = device.free_bytes()
    if n_bytes > free_bytes:
        raise CapacityError(
            f"{device.name}: found {format_bytes(free_bytes)} free, expected {format_bytes(n_bytes)} for {what}; fetch "
            "with zero-copy, staged or a cache, or split the table over several devices"
        )


def _row_width(layout: Layout) -> int:
    if layout.codec is None:
        raise InvalidInput(f"{layout.name}: found no codec, expected one to decode with; ask for records")
    return layout.codec.row_width(layout.row_bytes)
