"""Memory of a chosen kind: on a named NUMA node, locked, of huge pages, touched before its first use. It knows no
rows."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engram_tables.errors import BackendUnavailable, CapacityError
from engram_tables.memory import HUGE_PAGE_BYTES
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import PAGE_BYTES

_NODES = Path("/sys/devices/system/node")
_MBIND = {"x86_64": 237, "aarch64": 235}
_MOVE_PAGES = {"x86_64": 279, "aarch64": 239}
_BIND = 2
_POPULATE_WRITE = 23
_TOUCHED_AT_ONCE_BYTES = 64 << 20
_MASK_BITS = 1024

_libc = ctypes.CDLL(None, use_errno=True)


class MemoryNode(NamedTuple):
    """One NUMA node that has memory."""

    number: int
    memory_bytes: int
    has_cpus: bool
    """False for memory that is attached without CPUs, as CXL memory is"""


def memory_nodes() -> tuple[MemoryNode, ...]:
    """The nodes of this machine that have memory; none where the system does not say."""
    try:
        with_memory = _numbers((_NODES / "has_memory").read_text())
        with_cpus = _numbers((_NODES / "has_cpu").read_text())
    except OSError:
        return ()
    return tuple(MemoryNode(number, _node_bytes(number), number in with_cpus) for number in with_memory)


class PlacedMemory:
    """Zeroed private memory that starts on a huge-page boundary. A child has its own copy after a fork, not locked.

    Every page is there before the constructor returns, so that no read pays for its first touch.

    Attributes
    ----------
    address, n_bytes
        Where it is.

    Raises
    ------
    BackendUnavailable
        No such node, no way to name one on this system, or a refused lock.
    CapacityError
        More than the node or the machine has free.
    """

    def __init__(
        self,
        n_bytes: int,
        *,
        node: int | None = None,
        is_locked: bool = False,
        huge_pages: bool = True,
        register: Callable[[int, int], Callable[[], None]] | None = None,
    ) -> None:
        self.n_bytes = n_bytes
        _check_free(n_bytes, node)
        self._undo: Callable[[], None] | None = None
        try:
            self._block = mmap.mmap(-1, n_bytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise CapacityError(f"tier: {n_bytes} bytes were refused ({error.strerror}); make it smaller") from None
        try:
            advice = getattr(mmap, "MADV_HUGEPAGE" if huge_pages else "MADV_NOHUGEPAGE", None)
            if advice is not None:
                # A kernel without huge pages does not know the advice.
                _ignoring_invalid(lambda: self._block.madvise(advice))
            start = _address(self._block)
            self.address = start + -start % HUGE_PAGE_BYTES
            if node is not None:
                _bind(self.address, n_bytes, node)
            self._touch()
            if is_locked:
                _lock(self.address, n_bytes)
            if register is not None:
                self._undo = register(self.address, n_bytes)
        except BaseException:
            self.close()
            raise

    def nodes(self, n_samples: int = 64) -> dict[int, int]:
        """How many of some pages, evenly spread, each node holds; empty where the system does not say."""
        number = _MOVE_PAGES.get(platform.machine()) if sys.platform == "linux" else None
        if number is None:
            return {}
        offsets = np.linspace(0, max(self.n_bytes - 1, 0), n_samples).astype(np.uint64) // PAGE_BYTES * PAGE_BYTES
        pages, states = offsets + np.uint64(self.address), np.full(n_samples, -1, np.int32)
        arguments = (0, n_samples, pages.ctypes.data, 0, states.ctypes.data, 0)
        if _libc.syscall(number, *map(ctypes.c_long, arguments)) != 0:
            return {}
        found, n_pages = np.unique(states[states >= 0], return_counts=True)
        return dict(zip(found.tolist(), n_pages.tolist(), strict=True))

    def close(self) -> None:
        """Undo the registration and give the memory back; called again, there is nothing left to give."""
        undo, self._undo = self._undo, None
        try:
            if undo is not None:
                undo()
        finally:
            self._block.close()

    def _touch(self) -> None:
        failures: list[int] = []

        def touch(first: int, last: int) -> None:
            for nth in range(first, last):
                start = nth * _TOUCHED_AT_ONCE_BYTES
                code = _populate(self.address + start, min(_TOUCHED_AT_ONCE_BYTES, self.n_bytes - start))
                if code:
                    failures.append(code)
                    return

        run_slices(touch, -(-self.n_bytes // _TOUCHED_AT_ONCE_BYTES), threads=resolve_threads(None), grain=1)
        if failures:
            reason = os.strerror(failures[0])
            raise CapacityError(f"tier: {self.n_bytes} bytes could not be had ({reason}); make the budget smaller")


def _address(block: mmap.mmap) -> int:
    return int(np.frombuffer(block, np.uint8).ctypes.data)


def _populate(address: int, n_bytes: int) -> int:
    """Have the pages made; 0 or an errno."""
    start = address // PAGE_BYTES * PAGE_BYTES
    span = -(-(address + n_bytes - start) // PAGE_BYTES) * PAGE_BYTES
    if sys.platform == "linux":
        if _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(span), _POPULATE_WRITE) == 0:
            return 0
        if ctypes.get_errno() != errno.EINVAL:
            return ctypes.get_errno()
    # Kernels before 5.14, and other systems: fresh memory is zero and stays so.
    ctypes.memset(start, 0, span)
    return 0


def _bind(address: int, n_bytes: int, node: int) -> None:
    number = _MBIND.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        raise BackendUnavailable(f"tier: memory node {node} was named, this system names none; leave the node out")
    known = [one.number for one in memory_nodes()]
    if node not in known:
        here = ", ".join(map(str, known)) or "none"
        raise BackendUnavailable(f"tier: memory node {node} is not here, expected one of {here}; name another")
    mask = np.zeros(_MASK_BITS // 64, np.uint64)
    mask[node // 64] = np.uint64(1) << np.uint64(node % 64)
    span = -(-n_bytes // PAGE_BYTES) * PAGE_BYTES
    arguments = (address, span, _BIND, mask.ctypes.data, _MASK_BITS, 0)
    if _libc.syscall(number, *map(ctypes.c_long, arguments)) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise BackendUnavailable(
            f"tier: binding {n_bytes} bytes to memory node {node} was refused ({reason}); is the node among those "
            "that this process may use (cpuset, container)?"
        )


def _lock(address: int, n_bytes: int) -> None:
    if _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(n_bytes)) == 0:
        return
    reason = os.strerror(ctypes.get_errno())
    import resource

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    allowed = "no limit" if limit == resource.RLIM_INFINITY else f"a limit of {limit} bytes"
    raise BackendUnavailable(
        f"tier: locking {n_bytes} bytes was refused ({reason}), with {allowed} on locked memory; raise it (ulimit -l) "
        "or leave the tier unlocked"
    )


def _check_free(n_bytes: int, node: int | None) -> None:
    """Refuse what cannot be had: touching it would end this process or another."""
    free, what = _available_bytes(), "this machine"
    of_node = [one.memory_bytes for one in memory_nodes() if one.number == node]
    if of_node and (free is None or of_node[0] < free):
        free, what = of_node[0], f"memory node {node}"
    if free is not None and n_bytes > free:
        raise CapacityError(f"tier: found {n_bytes} bytes, {what} has {free}; make the budget smaller")


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _node_bytes(number: int) -> int:
    for line in (_NODES / f"node{number}" / "meminfo").read_text().splitlines():
        words = line.split()
        if words[2] == "MemTotal:":
            return int(words[3]) * 1024
    return 0


def _numbers(text: str) -> list[int]:
    """The numbers of a list such as `0-2,5`."""
    found: list[int] = []
    for stretch in filter(None, text.strip().split(",")):
        first, _, last = stretch.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _ignoring_invalid(call: Callable[[], object]) -> None:
    try:
        call()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
