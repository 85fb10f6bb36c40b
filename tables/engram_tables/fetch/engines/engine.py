"""What every engine is: checked row ids in, records in the caller's buffer. It knows no way of reading."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.fetch.leases import Leases
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.warm import ShortWay
from engram_tables.storage.row_files import RowFiles

Items = NDArray[np.int64]
"""int64 (n,): which records of a batch, as positions in its flat rows, in any order and each once at most."""


class Pending(Protocol):
    """A read that has begun. `finish` it exactly once: until then files and memory are in use. What nobody finishes is
    finished when its engine is closed."""

    def finish(self) -> None:
        """Wait until every record is in `out`; raises what reading raised, and `InvalidInput` the second time."""


class Engine(ABC):
    """Fill `out`, uint8 (items, row_bytes) in C order, with a batch's records. Safe from many threads, and after a
    fork.

    No read outlives the files and memory that it needs: `close` waits for those in flight.

    Attributes
    ----------
    name
        What `Table.fetch` calls it.
    stored
        The files that it reads.
    warm
        A short way for small batches, tried before `read`; or None.
    """

    name: ClassVar[str]
    warm: ShortWay | None = None

    def __init__(self, table: RowFiles) -> None:
        self.stored = table
        self._leases = Leases(f"engine {self.name} of table {table.path}")
        self._under_way: set[_Begun] = set()

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
        with self._leases:
            begun = _Begun(self._begin(batch, out, threads, items), self._leases, self._under_way)
            self._under_way.add(begun)
        return begun

    def close(self) -> None:
        """Refuse later reads, wait for those in flight, finishing those that were begun, then give files and memory
        back."""
        self._settle_all()
        self._leases.drain()
        # None begins any more.
        self._settle_all()
        if self._leases.close():
            self._release()

    def _settle_all(self) -> None:
        for begun in list(self._under_way):
            begun.settle()

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


class _Begun:
    """A read under way, which keeps its engine open: whoever comes first finishes it, its owner or `close`."""

    def __init__(self, pending: Pending, leases: Leases, under_way: set[_Begun]) -> None:
        self._pending, self._leases, self._under_way = pending, leases, under_way
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._is_settled = self._is_told = False
        self._error: BaseException | None = None

    def finish(self) -> None:
        """See `Pending`."""
        if self._is_told:
            raise InvalidInput("read under way: finished already, expected to be finished once; begin another one")
        self._is_told = True
        if os.getpid() != self._process:
            # A child of fork reads by itself, as any other call.
            with self._leases:
                self._pending.finish()
            return
        self.settle()
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Finish the read if nobody has, and keep the error for the owner; a child leaves its parent's reads alone."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._is_settled:
                return
            try:
                self._pending.finish()
            except BaseException as error:
                self._error = error
                if not isinstance(error, Exception):
                    raise
            finally:
                self._is_settled = True
                self._under_way.discard(self)
