"""What a device is to the paths that bring records to it: memory, queues of work, events, kernels. It knows no vendor.

`runtime.CudaDevice` is one, by CuPy; `host_device.HostDevice` is another, in host memory. Streams and events are a
part of CuPy's own interface, so that CuPy's objects are passed on as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engram_tables.storage.codecs.codec import Codec

DeviceArray = Any
"""A CuPy array, or a NumPy array of a `HostDevice`."""


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Block the caller until the last `Stream.record` of this event has been reached; at once if there is none."""


class Stream(Protocol):
    """Work that is done in the order in which it was put there, behind the caller's back."""

    def record(self, event: Any) -> Any:
        """Put the event after what is in the stream now."""

    def wait_event(self, event: Any) -> None:
        """Hold later work until the event's last record has been reached."""

    def synchronize(self) -> None:
        """Block the caller until all work is done."""


class KernelSet(Protocol):
    """The kernels of one codec and geometry; all of them only put work into `stream`.

    `positions` is int64 (n,), row numbers in a block of `n_rows` records at `base_address`; a record whose position is
    negative or too large is left as it is. Values are float32 or bfloat16 as uint16, by the dtype of `out`.
    """

    def gather(
        self, base_address: int, positions: DeviceArray, out: DeviceArray, *, n_rows: int, stream: Any,
        blocks: int | None = None,
    ) -> None:  # fmt: skip
        """Copy records of the block into `out`, uint8 (n, stride)."""

    def gather_decode(
        self, base_address: int, positions: DeviceArray, out: DeviceArray, *, n_rows: int, stream: Any,
        blocks: int | None = None,
    ) -> None:  # fmt: skip
        """The values of records of the block, (n, width)."""

    def scatter(
        self, records: DeviceArray, positions: DeviceArray, base_address: int, *, n_rows: int, stream: Any
    ) -> None:
        """Copy `records`, uint8 (n, stride), into the block; no position twice."""

    def decode(self, records: DeviceArray, out: DeviceArray, *, stream: Any) -> None:
        """The values of `records`, uint8 (n, row bytes or more), (n, width)."""


class Device(Protocol):
    """One device. Its methods are called inside `with device.active():`.

    Attributes
    ----------
    name
        As the vendor calls it.
    """

    @property
    def name(self) -> str: ...

    @property
    def n_processors(self) -> int:
        """Multiprocessors, or what else runs one block of a kernel."""

    def active(self) -> AbstractContextManager[None]:
        """Makes the device this thread's own for a while, and names its errors: `CapacityError` where its memory is
        spent, `BackendUnavailable` for every other refusal and after a fork."""

    def free_bytes(self) -> int:
        """Memory that nobody holds."""

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """Uninitialised memory of the device, in C order, on a multiple of 256 bytes."""

    def stream(self) -> Any:
        """A new stream, which waits for no other; `end` it."""

    def end(self, stream: Any) -> None:
        """Wait for a stream's work, then give it back."""

    def consumer(self) -> Any:
        """The stream in which the calling thread uses what is brought to it."""

    def event(self, *, sleeps: bool = False) -> Any:
        """A new event without a time stamp. Whoever waits for it turns in a loop, which is quick, or `sleeps`, which
        leaves the CPU to the threads that read."""

    def upload(self, target: DeviceArray, source: NDArray[Any], stream: Any) -> None:
        """Copy as many bytes from registered host memory into the device's, both in C order."""

    def copy_columns(self, target: DeviceArray, source: DeviceArray, stream: Any) -> None:
        """Copy uint8 (n, k) inside the device, where the rows of either side may lie further apart than k bytes."""

    def copy_from(self, other: Any, target: DeviceArray, source: DeviceArray, stream: Any) -> None:
        """Copy as many bytes from the memory of device `other`, both in C order."""

    def address(self, array: DeviceArray) -> int:
        """Where a device array begins."""

    def register(self, address: int, n_bytes: int) -> int:
        """Pin host memory so that the device reads it; the device's address of its first byte."""

    def unregister(self, address: int) -> None:
        """Undo `register` of this host address."""

    def kernels(self, codec: Codec | None, row_bytes: int, stride_bytes: int) -> KernelSet:
        """Kernels for records of `row_bytes` at `stride_bytes`; without a codec they gather alone."""


def flat_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of a host array in C order, without a copy."""
    return array.reshape(-1).view(np.uint8)
