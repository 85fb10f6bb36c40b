"""A device in host memory: streams are threads with a queue, events are flags, kernels are NumPy.

What the paths do on a GPU they do here in earnest: work is done later, by another thread, and a path that forgets to
wait gives wrong bytes. It serves machines without a GPU, and it is slow.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from engram_tables.fetch.gpu.device import flat_bytes
from engram_tables.memory import aligned_bytes
from engram_tables.storage.codecs.codec import Codec

_ALIGNMENT = 256


class HostEvent:
    """See `Event`."""

    def __init__(self) -> None:
        self.mark: _Mark | None = None

    def synchronize(self) -> None:
        """See `Event`; raises what the stream's work has raised before the event."""
        if self.mark is not None:
            self.mark.wait()


class _Mark:
    """One record of an event."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.error: BaseException | None = None

    def wait(self) -> None:
        self.reached.wait()
        if self.error is not None:
            raise self.error


class HostStream:
    """See `Stream`. After an error no more work is done; it is raised by whoever waits."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engram-host-stream", daemon=True)
        self._thread.start()

    def put(self, work: Callable[[], None]) -> None:
        """Do `work` when all that was put here before is done."""
        self._work.put(lambda: self._do(work))

    def record(self, event: HostEvent) -> HostEvent:
        """See `Stream`."""
        mark = event.mark = _Mark()

        def reach() -> None:
            mark.error = self._error
            mark.reached.set()

        self._work.put(reach)
        return event

    def wait_event(self, event: HostEvent) -> None:
        """See `Stream`."""
        if event.mark is not None:
            self.put(event.mark.wait)

    def synchronize(self) -> None:
        """See `Stream`."""
        self.record(HostEvent()).synchronize()

    def end(self) -> None:
        """Wait for the work and end the thread; no error is raised."""
        self._work.put(None)
        self._thread.join()

    def _do(self, work: Callable[[], None]) -> None:
        if self._error is None:
            try:
                work()
            except BaseException as error:
                self._error = error

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


class CallerStream:
    """The calling thread as a stream: what it did is done, and to wait is to block."""

    def record(self, event: HostEvent) -> HostEvent:
        """See `Stream`."""
        event.mark = None
        return event

    def wait_event(self, event: HostEvent) -> None:
        """See `Stream`."""
        event.synchronize()

    def synchronize(self) -> None:
        """See `Stream`."""


class HostDevice:
    """See `Device`.

    Parameters
    ----------
    memory_bytes
        What `empty` may give away in all, as a device's memory is bounded; None is no bound.
    lockable_bytes
        The most that one `register` may take, and all of them together; None is no bound.
    """

    def __init__(self, *, memory_bytes: int | None = None, lockable_bytes: int | None = None) -> None:
        self._memory_bytes, self._lockable_bytes = memory_bytes, lockable_bytes
        self._taken_bytes = 0
        self._pid = os.getpid()
        self.registered: dict[int, int] = {}

    @property
    def name(self) -> str:
        """See `Device`."""
        return "host memory"

    @property
    def n_processors(self) -> int:
        """See `Device`."""
        return 1

    @contextmanager
    def active(self) -> Iterator[None]:
        """See `Device`."""
        if os.getpid() != self._pid:
            raise BackendUnavailable(
                f"{self.name}: found a process that was forked from the one that opened it, expected the same process; "
                "make another in a process that is spawned"
            )
        yield

    def free_bytes(self) -> int:
        """See `Device`."""
        return 2**62 if self._memory_bytes is None else self._memory_bytes - self._taken_bytes

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """See `Device`. What was given away is never counted as free again."""
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if n_bytes > self.free_bytes():
            raise CapacityError(
                f"{self.name}: found {self.free_bytes():,} bytes free, expected {n_bytes:,}; take a smaller budget"
            )
        self._taken_bytes += n_bytes
        return aligned_bytes(n_bytes, _ALIGNMENT).view(dtype).reshape(tuple(shape))

    def stream(self) -> HostStream:
        """See `Device`."""
        return HostStream()

    def end(self, stream: HostStream) -> None:
        """See `Device`."""
        stream.end()

    def consumer(self) -> CallerStream:
        """See `Device`."""
        return CallerStream()

    def event(self, *, sleeps: bool = False) -> HostEvent:
        """See `Device`."""
        return HostEvent()

    def upload(self, target: NDArray[Any], source: NDArray[Any], stream: HostStream) -> None:
        """See `Device`."""
        address = source.ctypes.data
        if source.nbytes and not any(a <= address < a + n for a, n in self.registered.items()):
            raise BackendUnavailable(
                f"{self.name}: found a copy from memory at {address:#x} that is not registered, expected registered "
                "memory; register it first"
            )
        self._copy(target, source, stream)

    def copy_columns(self, target: NDArray[Any], source: NDArray[Any], stream: HostStream) -> None:
        """See `Device`."""
        stream.put(lambda: np.copyto(target, source))

    def copy_from(self, other: Any, target: NDArray[Any], source: NDArray[Any], stream: HostStream) -> None:
        """See `Device`."""
        self._copy(target, source, stream)

    def _copy(self, target: NDArray[Any], source: NDArray[Any], stream: HostStream) -> None:
        stream.put(lambda: np.copyto(flat_bytes(target), flat_bytes(source)))

    def address(self, array: NDArray[Any]) -> int:
        """See `Device`."""
        return int(array.ctypes.data)

    def register(self, address: int, n_bytes: int) -> int:
        """See `Device`."""
        locked_bytes = sum(self.registered.values()) + n_bytes
        if address in self.registered:
            raise BackendUnavailable(f"{self.name}: found memory at {address:#x} registered twice, expected once")
        if self._lockable_bytes is not None and locked_bytes > self._lockable_bytes:
            raise BackendUnavailable(
                f"{self.name}: found {locked_bytes:,} bytes to register, expected {self._lockable_bytes:,} at most; "
                "register less"
            )
        self.registered[address] = n_bytes
        return address

    def unregister(self, address: int) -> None:
        """See `Device`."""
        if self.registered.pop(address, None) is None:
            raise BackendUnavailable(f"{self.name}: found no registered memory at {address:#x}, expected some")

    def kernels(self, codec: Codec | None, row_bytes: int, stride_bytes: int) -> HostKernels:
        """See `Device`."""
        return HostKernels(codec, row_bytes, stride_bytes)


class HostKernels:
    """See `KernelSet`; the codecs' own decoders."""

    def __init__(self, codec: Codec | None, row_bytes: int, stride_bytes: int) -> None:
        self._codec, self._row_bytes, self._stride_bytes = codec, row_bytes, stride_bytes

    def gather(
        self, base_address: int, positions: Any, out: Any, *, n_rows: int, stream: HostStream,
        blocks: int | None = None,
    ) -> None:  # fmt: skip
        """See `KernelSet`."""

        def work() -> None:
            chosen = _inside(positions, n_rows)
            out[chosen] = self._block(base_address, n_rows)[positions[chosen]]

        stream.put(work)

    def gather_decode(
        self, base_address: int, positions: Any, out: Any, *, n_rows: int, stream: HostStream,
        blocks: int | None = None,
    ) -> None:  # fmt: skip
        """See `KernelSet`."""
        self._check_decodes()

        def work() -> None:
            chosen = _inside(positions, n_rows)
            out[chosen] = self._values(self._block(base_address, n_rows)[positions[chosen]], out.dtype)

        stream.put(work)

    def scatter(self, records: Any, positions: Any, base_address: int, *, n_rows: int, stream: HostStream) -> None:
        """See `KernelSet`."""

        def work() -> None:
            chosen = _inside(positions, n_rows)
            self._block(base_address, n_rows)[positions[chosen]] = records[chosen]

        stream.put(work)

    def decode(self, records: Any, out: Any, *, stream: HostStream) -> None:
        """See `KernelSet`."""
        self._check_decodes()
        stream.put(lambda: np.copyto(out, self._values(records, out.dtype)))

    def _block(self, base_address: int, n_rows: int) -> NDArray[np.uint8]:
        memory: Any = (ctypes.c_uint8 * (n_rows * self._stride_bytes)).from_address(base_address)
        block: NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        return block.reshape(n_rows, self._stride_bytes)

    def _values(self, records: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
        assert self._codec is not None
        values = self._codec.decode(records[:, : self._row_bytes])
        return values if dtype == np.float32 else bfloat16_bits(values)

    def _check_decodes(self) -> None:
        if self._codec is None or not self._codec.can_decode:
            name = "none" if self._codec is None else self._codec.name
            raise InvalidInput(f"codec {name}: found a request to decode, expected to copy only; ask for records")


def _inside(positions: NDArray[np.int64], n_rows: int) -> NDArray[np.int64]:
    return np.flatnonzero((positions >= 0) & (positions < n_rows))


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32 values, rounded to nearest, ties to even; of a NaN its quiet payload, as uint16."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, ((bits >> 16) | 0x40).astype(np.uint16), rounded)
