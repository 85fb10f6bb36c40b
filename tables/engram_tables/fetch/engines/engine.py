"""What every engine is: checked row ids in, records in the caller's buffer. It knows no way of reading."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.leases import Leases
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.warm import WarmPath
from engram_tables.storage.row_files import RowFiles

Items = NDArray[np.int64]
"""int64 (n,): which records of a batch, as positions in its flat rows, in any order and each once at most."""


class Pending(Protocol):
    """A read that has begun. `finish` it exactly once, whatever else fails: until then files and memory are in use."""

    def finish(self) -> None:
        """Wait until every record is in `out`; raises what reading raised."""


class Engine(ABC):
    """Fill `out`, uint8 (items, row_bytes) in C order, with a batch's records. Safe from many threads, and after a
    fork.

    No read outlives the files and memory that it needs: `close` waits for those in flight.

    Attributes
    ----------
    name
        What `Table.fetch` calls it.
    warm
        A short way for batches that lie in memory, tried before `read`; or None.
    """

    name: ClassVar[str]
    warm: WarmPath | None = None

    def __init__(self, table: RowFiles) -> None:
        self._leases = Leases(f"engine {self.name} of table {table.path}")

    def read(
        self, batch: Batch, out: NDArray[np.uint8], threads: int | None = None, items: Items | None = None
    ) -> None:
        """Read the batch, or those of its records that `items` names; no other record of `out` is written.

        `threads` None is the engine's own default. `InvalidInput` once closed.
        """
        with self._leases:
            self._read(batch, out, threads, items)

    def begin(
        self, batch: Batch, out: NDArray[np.uint8], threads: int | None = None, items: Items | None = None
    ) -> Pending:
        """As `read`, but return as soon as the reads are under way. `batch`, `out` and `items` must stay as they are
        until `finish`. An engine that cannot read behind its caller's back has read by then."""
        lease = self._leases.__enter__()
        try:
            begun = self._begin(batch, out, threads, items)
        except BaseException:
            lease.__exit__()
            raise
        return _Leased(lease, begun)

    def close(self) -> None:
        """Refuse later reads, wait for those in flight, then give files and memory back."""
        if self._leases.close():
            self._release()

    @abstractmethod
    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        """Read; the engine stays open meanwhile."""

    def _begin(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> Pending:
        """Begin to read; the engine stays open until `finish`."""
        self._read(batch, out, threads, items)
        return DONE

    def _release(self) -> None:  # noqa: B027 (most engines hold nothing)
        """Give back what the engine holds."""


class _Done:
    def finish(self) -> None:
        """Nothing is left to wait for."""


DONE = _Done()


class _Leased:
    """A pending read and the lease that keeps its engine open."""

    def __init__(self, lease: Leases, pending: Pending) -> None:
        self._lease, self._pending = lease, pending
        self._process = os.getpid()

    def finish(self) -> None:
        """See `Pending`."""
        try:
            self._pending.finish()
        finally:
            # A child of fork begins with no lease taken: what its parent took is not the child's to give back.
            if os.getpid() == self._process:
                self._lease.__exit__()
