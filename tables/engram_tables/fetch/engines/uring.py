"""Direct reads through io_uring."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.engines.queue_kernels import Work, drive_ring
from engram_tables.fetch.engines.queued import Backend, Queue, QueueEngine
from engram_tables.fetch.engines.rings import UringRing
from engram_tables.fetch.placement import Placements
from engram_tables.storage.row_files import RowFiles

_FUSE = 0x65735546


class UringEngine(QueueEngine):
    """Past the page cache (O_DIRECT), many reads asked for and many answers taken in one system call.

    Files of a filesystem in user space (FUSE) are refused: where such a one answers with fewer bytes than were asked
    for, io_uring goes on by itself, puts the rest in the wrong place and calls the read whole (seen with Linux 6.18).
    """

    name = "uring"
    drives_ring = True

    def __init__(self, table: RowFiles, places: Placements, **options: Any) -> None:
        for file in table.files:
            if _filesystem(file.fd) == _FUSE:
                raise BackendUnavailable(
                    f"engine uring: {file.path} is on a filesystem in user space (FUSE), whose short answers io_uring "
                    "puts together wrongly; use the engine aio or direct"
                )
        super().__init__(table, places, **options)

    def _make(self, memory: NDArray[np.uint8], fds: NDArray[np.int64]) -> Backend:
        return UringRing(n_slots=self.depth, memory=memory, fds=fds)

    def _drive(self, queue: Queue, work: Work, at_once: int, *, may_wait: bool) -> None:
        drive_ring(queue.backend.view, work, queue.slots, queue.state, at_once, may_wait)


def _filesystem(fd: int) -> int | None:
    """The number by which Linux names the kind of a file's filesystem, as in statfs(2)."""
    if not sys.platform.startswith("linux"):
        return None
    # The kind is the first word of a struct that is 120 bytes long or less.
    found = (ctypes.c_long * 64)()
    return int(found[0]) if ctypes.CDLL(None).fstatfs(fd, found) == 0 else None
