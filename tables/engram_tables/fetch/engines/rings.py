"""Setting up what the system needs to read behind a caller's back: io_uring's rings and libaio's contexts.

It makes the system calls that come before and after reading, and gives kernels their view of what they made. It reads
nothing, and knows neither rows nor tables.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.engines.queue_memory import Context, Ring

_SETUP, _ENTER, _REGISTER = 425, 426, 427
_GETEVENTS = 1
_IO_SETUP, _IO_DESTROY = (206, 207) if platform.machine() == "x86_64" else (0, 1)
_READ, _READ_FIXED = 22, 4
_FIXED_FILE = 1
_CLAMP, _SUBMIT_ALL, _COOP_TASKRUN, _SINGLE_ISSUER, _DEFER_TASKRUN = 1 << 4, 1 << 7, 1 << 8, 1 << 12, 1 << 13
_SINGLE_MMAP, _NODROP, _RW_CUR_POS = 1 << 0, 1 << 1, 1 << 3
_REGISTER_BUFFERS, _REGISTER_FILES = 0, 2
_RING_OFFSET, _ENTRIES_OFFSET = 0, 0x10000000
_ENTRY_BYTES, _COMPLETION_BYTES = 64, 16
# The most obliging answer to completions first: a thread that is not interrupted for each (Linux 5.19).
_FLAGS = (_SUBMIT_ALL | _COOP_TASKRUN, 0)
_INSTEAD = "use the engine aio or direct"


class _Parameters(ctypes.Structure):
    """`struct io_uring_params`; the offsets are bytes in the rings' shared memory."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("sq_entries", "cq_entries", "flags", "sq_cpu", "sq_idle", "features")),
        *((name, ctypes.c_uint32) for name in ("wq_fd", "reserved_0", "reserved_1", "reserved_2")),
        *(
            (f"sq_{name}", ctypes.c_uint32)
            for name in ("head", "tail", "mask", "n", "flags", "dropped", "array", "reserved")
        ),
        ("sq_address", ctypes.c_uint64),
        *(
            (f"cq_{name}", ctypes.c_uint32)
            for name in ("head", "tail", "mask", "n", "overflow", "cqes", "flags", "reserved")
        ),
        ("cq_address", ctypes.c_uint64),
    ]


class UringRing:
    """An io_uring with an entry for each of `n_slots` slots in `memory`, for direct reads of `fds`, int64 (files,).

    Files and memory are registered where the system lets them be: a limit on locked memory costs time, no reads.

    Attributes
    ----------
    view
        The kernels' view of it; None once closed.
    registered
        Which of "files" and "memory" the system knows already.

    Raises
    ------
    BackendUnavailable
        The system has no io_uring that is good enough, or does not let this process have one.
    """

    def __init__(self, *, n_slots: int, memory: NDArray[np.uint8], fds: NDArray[np.int64]) -> None:
        self._fd, made = _set_up(n_slots)
        self._finalize = weakref.finalize(self, os.close, self._fd)
        try:
            self.view: Ring | None = self._map(made)
            self.registered = self._register(memory, fds)
        except BaseException:
            self.close()
            raise

    def _map(self, made: Any) -> Ring:
        if made.features & (needed := _SINGLE_MMAP | _NODROP | _RW_CUR_POS) != needed:
            raise BackendUnavailable(
                f"io_uring: this kernel's has features {made.features:#x}, expected {needed:#x} and more (Linux 5.6); "
                f"{_INSTEAD}"
            )
        ring_bytes = max(made.sq_array + made.sq_entries * 4, made.cq_cqes + made.cq_entries * _COMPLETION_BYTES)
        rings = mmap.mmap(self._fd, ring_bytes, offset=_RING_OFFSET)
        entries = mmap.mmap(self._fd, made.sq_entries * _ENTRY_BYTES, offset=_ENTRIES_OFFSET)
        words = np.frombuffer(rings, np.uint32)
        # Entry k of the ring is always entry k of the array behind it.
        words[made.sq_array // 4 :][: made.sq_entries] = np.arange(made.sq_entries)
        return Ring(
            words=words,
            entries=np.frombuffer(entries, np.uint64).reshape(-1, 8),
            sq_tail=made.sq_tail // 4,
            cq_head=made.cq_head // 4,
            cq_tail=made.cq_tail // 4,
            cqes=made.cq_cqes // 4,
            sq_mask=words[made.sq_mask // 4],
            cq_mask=words[made.cq_mask // 4],
            fds=np.empty(0, np.int64),
            head=np.uint64(0),
            fd=self._fd,
        )

    def _register(self, memory: NDArray[np.uint8], fds: NDArray[np.int64]) -> frozenset[str]:
        registered = set()
        opcode, flags = _READ, 0
        if _call(_REGISTER, self._fd, _REGISTER_FILES, _pointer(fds.astype(np.int32)), fds.size) == 0:
            registered.add("files")
            fds, flags = np.arange(fds.size), _FIXED_FILE
        vector = np.array([memory.ctypes.data, memory.size], np.uint64)
        if _call(_REGISTER, self._fd, _REGISTER_BUFFERS, _pointer(vector), 1) == 0:
            registered.add("memory")
            opcode = _READ_FIXED
        assert self.view is not None
        self.view = self.view._replace(fds=fds, head=np.uint64(opcode | flags << 8))
        return frozenset(registered)

    def wait(self, n_in_flight: int) -> bool:
        """Wait until so many reads have ended, whose answers nobody wants; False if the system does not let it."""
        while (view := self.view) is not None:
            n_there = int(view.words[view.cq_tail]) - int(view.words[view.cq_head])
            if n_there % (1 << 32) >= n_in_flight:
                return True
            if _call(_ENTER, self._fd, 0, n_in_flight, _GETEVENTS, 0, 0) < 0 and ctypes.get_errno() != errno.EINTR:
                return False
        return False

    def close(self) -> None:
        """Give the ring back; called again, there is nothing left to give."""
        self._finalize()
        # The mappings, which hold descriptors of their own, go with the last view of them.
        self.view = None

    def forget(self) -> None:
        """In a child after a fork: let go of the parent's ring."""
        self.close()


def _set_up(n_slots: int) -> tuple[int, Any]:
    if not sys.platform.startswith("linux"):
        raise BackendUnavailable(f"io_uring: {sys.platform} has none; use the engine pread")
    for flags in _FLAGS:
        made = _Parameters(flags=flags | _CLAMP)
        fd = _call(_SETUP, n_slots, ctypes.byref(made))
        if fd >= 0:
            return fd, made
        if (code := ctypes.get_errno()) != errno.EINVAL:
            break
    reason = os.strerror(code)
    if code == errno.ENOSYS:
        reason = f"this kernel has none, or a filter of system calls hides it ({reason})"
    elif code in (errno.EPERM, errno.EACCES):
        reason = f"a filter of system calls or kernel.io_uring_disabled forbids it ({reason})"
    elif code == errno.ENOMEM:
        reason = f"no memory for its rings, which count as locked memory; see `ulimit -l` ({reason})"
    elif code in (errno.EMFILE, errno.ENFILE):
        reason = f"no file descriptor is left for it ({reason})"
    raise BackendUnavailable(f"io_uring: {reason}; {_INSTEAD}")


class AioContext:
    """A context of libaio for `n_slots` reads in flight of `fds`, int64 (files,).

    Attributes
    ----------
    view
        The kernels' view of it.

    Raises
    ------
    BackendUnavailable
        The system has no libaio, or its limit is reached.
    """

    def __init__(self, *, n_slots: int, fds: NDArray[np.int64]) -> None:
        if not sys.platform.startswith("linux"):
            raise BackendUnavailable(f"libaio: {sys.platform} has none; use the engine pread")
        context = ctypes.c_uint64(0)
        if _call(_IO_SETUP, n_slots, ctypes.byref(context)) != 0:
            code = ctypes.get_errno()
            reason = os.strerror(code)
            if code == errno.EAGAIN:
                reason = f"all that fs.aio-max-nr allows are in use ({reason})"
            elif code == errno.ENOSYS:
                reason = f"this kernel has none, or a filter of system calls hides it ({reason})"
            raise BackendUnavailable(f"libaio: {reason}; use the engine direct")
        self._finalize = weakref.finalize(self, _call, _IO_DESTROY, context.value)
        self.view = Context(
            fds=fds,
            blocks=np.zeros((n_slots, 8), np.uint64),
            pointers=np.zeros(n_slots, np.uint64),
            events=np.zeros((n_slots, 4), np.uint64),
            context=context.value,
        )

    def wait(self, n_in_flight: int) -> bool:
        """As `UringRing.wait`; the context is given back."""
        del n_in_flight
        self.close()
        return True

    def close(self) -> None:
        """Wait for what is in flight and give the context back; called again, there is nothing left to give."""
        self._finalize()

    def forget(self) -> None:
        """In a child after a fork: a context is its maker's alone, and one of the child's may have its number."""
        self._finalize.detach()


_libc: Any = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: Any) -> int:
    """A system call by its number; -1 and `ctypes.get_errno()` on an error."""
    whole = [ctypes.c_long(given) if isinstance(given, int) else given for given in arguments]
    return int(_libc.syscall(ctypes.c_long(number), *whole))


def _pointer(array: NDArray[Any]) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)
