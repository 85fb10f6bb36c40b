"""Direct reads through libaio's system calls, which are allowed where io_uring is not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.engines.queue_kernels import Work, drive_context
from engram_tables.fetch.engines.queued import Backend, Queue, QueueEngine
from engram_tables.fetch.engines.rings import AioContext


class AioEngine(QueueEngine):
    """Past the page cache (O_DIRECT), as `uring`, by two older system calls and without registered memory."""

    name = "aio"
    drives_ring = False

    def _make(self, memory: NDArray[np.uint8], fds: NDArray[np.int64]) -> Backend:
        del memory
        return AioContext(n_slots=self.depth, fds=fds)

    def _drive(self, queue: Queue, work: Work, at_once: int, *, may_wait: bool) -> None:
        drive_context(queue.backend.view, work, queue.slots, queue.state, at_once, may_wait)
