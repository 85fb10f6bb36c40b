"""Who is using a thing that must not be closed under them."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.fetch.kernels import SHUT, shut_gate

_LOOK_AGAIN_S = 0.0005


class Leases:
    """Count the calls in flight: `with leases:` around each, `close()` waits for them and refuses later ones.

    Kernels that pass the `gate` by themselves are counted as well. After a fork the child starts with no call in
    flight: the parent's threads do not exist there.

    Calls are counted by thread. Ctrl-C may break a call off before it has given its lease back; a thread that closes is
    in no call of its own, so it waits for the others alone. For that reason nothing is closed in a signal's handler.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._closed = self._has_drained = False
        self._gate: NDArray[np.int64] | None = None
        self._forget_threads()
        _all.add(self)

    def _forget_threads(self) -> None:
        # A lock of C alone: one of Python's may be left locked by Ctrl-C between two of its lines.
        self._lock = threading.Lock()
        self._given_back = threading.Event()
        self._held: dict[int, int] = {}
        if self._gate is not None:
            self._gate[0] = SHUT if self._closed else 0

    def gate(self) -> NDArray[np.int64]:
        """int64 (1,), always the same array: kernels add one when they come, and take it away when they go; from SHUT
        on they turn round."""
        with self._lock:
            if self._gate is None:
                self._gate = np.full(1, SHUT if self._closed else 0, np.int64)
            return self._gate

    def __enter__(self) -> Self:
        thread = threading.get_ident()
        with self._lock:
            self.check()
            self._held[thread] = self._held.get(thread, 0) + 1
        return self

    def __exit__(self, *_: object) -> None:
        thread = threading.get_ident()
        with self._lock:
            n_left = self._held.get(thread, 0) - 1
            if n_left > 0:
                self._held[thread] = n_left
            else:
                self._held.pop(thread, None)
        if self._closed:
            self._given_back.set()

    def check(self) -> None:
        """Raise `InvalidInput` once closed; costs next to nothing, and promises nothing for the next moment."""
        if self._closed:
            raise InvalidInput(f"{self._what}: closed already, expected an open one; open it again")

    def drain(self) -> None:
        """Refuse new calls and wait for those in flight in other threads."""
        thread = threading.get_ident()
        with self._lock:
            self._closed = True
        while any(other != thread for other in list(self._held)):
            self._given_back.wait(_LOOK_AGAIN_S)
            self._given_back.clear()
        # Kernels tell nobody when they go, so as to be quick.
        while self._gate is not None and self._shut():
            self._given_back.wait(_LOOK_AGAIN_S)

    def _shut(self) -> int:
        assert self._gate is not None
        with self._lock:
            return int(shut_gate(np.uint64(self._gate.ctypes.data)))

    def close(self) -> bool:
        """As `drain`; True once, for whoever is to release what the calls used. A wait that was broken off is taken up
        again by another call."""
        self.drain()
        with self._lock:
            first, self._has_drained = not self._has_drained, True
        return first


_all: weakref.WeakSet[Leases] = weakref.WeakSet()


def _after_fork() -> None:
    for leases in list(_all):
        leases._forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
