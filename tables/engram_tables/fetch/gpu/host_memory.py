"""Host memory that a device may read: anonymous huge pages, registered in chunks. It knows no rows.

Checkpoints' mappings are never registered: read-only registration is refused by several cards, and a refusal of half
a terabyte in one call comes late. Rows are copied into memory of our own.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable, CapacityError
from engram_tables.fetch.gpu.device import Device
from engram_tables.memory import HUGE_PAGE_BYTES, anonymous_bytes
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import format_bytes

CHUNK_BYTES = 64 << 30
_TOUCH_GRAIN = 64
_MEMORY_INFO = Path("/proc/meminfo")


class Chunk(NamedTuple):
    """Bytes of a block that are registered in one call."""

    start: int
    n_bytes: int


def chunks(n_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> tuple[Chunk, ...]:
    """A block of `n_bytes`, a multiple of a huge page, in chunks of at most `chunk_bytes` and whole huge pages each.

    >>> chunks(5 << 21, 2 << 21)
    (Chunk(start=0, n_bytes=4194304), Chunk(start=4194304, n_bytes=4194304), Chunk(start=8388608, n_bytes=2097152))
    """
    step = max(chunk_bytes // HUGE_PAGE_BYTES, 1) * HUGE_PAGE_BYTES
    return tuple(Chunk(start, min(step, n_bytes - start)) for start in range(0, n_bytes, step))


def free_host_bytes() -> int | None:
    """Memory that programs may take without swapping, as Linux estimates it; None where it says nothing."""
    try:
        lines = _MEMORY_INFO.read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


class HostMemory:
    """Anonymous memory with huge pages where the system gives them; a child of `fork` does not have it.

    Memory that a device holds is copied page by page into every forked child otherwise, and later writes of this
    process would go to pages that the device does not see. A child that touches it ends with SIGSEGV.

    Attributes
    ----------
    bytes
        uint8 (n_bytes,), zeros, on a huge-page boundary.

    Raises
    ------
    CapacityError
        The system has less memory left. It is taken when first touched, so this is an estimate.
    """

    def __init__(self, n_bytes: int) -> None:
        whole_bytes = max(-(-n_bytes // HUGE_PAGE_BYTES), 1) * HUGE_PAGE_BYTES
        free_bytes = free_host_bytes()
        if free_bytes is not None and whole_bytes > free_bytes:
            raise CapacityError(
                f"host memory: found {format_bytes(free_bytes)} free, expected {format_bytes(whole_bytes)}; give the "
                "rows to fewer columns or layers a machine, or fetch with staged"
            )
        self._whole = anonymous_bytes(whole_bytes, huge_pages=True)
        _keep_from_children(self._whole)
        self.bytes: NDArray[np.uint8] = self._whole[:n_bytes]

    @property
    def address(self) -> int:
        """Of the first byte."""
        return int(self._whole.ctypes.data)

    @property
    def whole_bytes(self) -> int:
        """Bytes with the last huge page's rest."""
        return self._whole.size

    def touch(self, threads: int | None = None) -> None:
        """Have the system give every page now, in parallel; registering does so in one thread otherwise."""
        pages = self._whole.reshape(-1, mmap.PAGESIZE)

        def write(start: int, stop: int) -> None:
            # A page that was written already keeps its byte.
            pages[start:stop, 0] |= 0

        run_slices(write, len(pages), threads=resolve_threads(threads), grain=_TOUCH_GRAIN)


class Registered:
    """A host memory that one device reads. Close it when nothing is under way; the memory stays.

    Attributes
    ----------
    base_address
        Of the first byte, on the device.

    Raises
    ------
    BackendUnavailable
        The device refused a chunk, or has the chunks at addresses that do not follow each other. Nothing is
        registered then.
    """

    def __init__(self, memory: HostMemory, device: Device, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.memory, self._device = memory, device
        self._held: list[int] = []
        self.base_address = 0
        with device.active():
            try:
                self._register(chunk_bytes)
            except BaseException:
                self._unregister()
                raise

    def close(self) -> None:
        """Unregister, the last chunk first."""
        with self._device.active():
            self._unregister()

    def _register(self, chunk_bytes: int) -> None:
        start_address = self.memory.address
        for chunk in chunks(self.memory.whole_bytes, chunk_bytes):
            try:
                mapped = self._device.register(start_address + chunk.start, chunk.n_bytes)
            except Exception as error:
                stop = chunk.start + chunk.n_bytes
                raise BackendUnavailable(
                    f"{self._device.name}: found bytes {chunk.start:,} to {stop:,} of {self.memory.whole_bytes:,} "
                    f"of host memory refused ({error}), expected them to be registered; raise the limit on locked "
                    "memory, or fetch with staged"
                ) from error
            self._held.append(start_address + chunk.start)
            if not self.base_address:
                self.base_address = mapped
            if mapped != self.base_address + chunk.start:
                raise BackendUnavailable(
                    f"{self._device.name}: found byte {chunk.start:,} of registered memory at {mapped:#x}, expected "
                    f"{self.base_address + chunk.start:#x}, right after the chunk before it; fetch with staged"
                )

    def _unregister(self) -> None:
        while self._held:
            self._device.unregister(self._held.pop())


def registered_bytes(n_bytes: int, device: Device) -> Registered:
    """New memory that is touched and registered: what copies to the device start from."""
    memory = HostMemory(n_bytes)
    memory.touch(1)
    return Registered(memory, device)


def _keep_from_children(block: NDArray[np.uint8]) -> None:
    advice = getattr(mmap, "MADV_DONTFORK", None)
    if advice is None:
        return
    madvise: Any = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if madvise(block.ctypes.data, block.size, advice):
        error = ctypes.get_errno()
        raise OSError(error, f"madvise of {block.size} bytes of host memory")
