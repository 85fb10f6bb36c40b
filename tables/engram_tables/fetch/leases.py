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
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._closed = False
        self._gate: NDArray[np.int64] | None = None
        self._forget_threads()
        _all.add(self)

    def _forget_threads(self) -> None:
        self._idle = threading.Condition()
        self._n_in_flight = 0
        if self._gate is not None:
            self._gate[0] = SHUT if self._closed else 0

    def gate(self) -> NDArray[np.int64]:
        """int64 (1,), always the same array: kernels add one when they come, and take it away when they go; from SHUT
        on they turn round."""
        with self._idle:
            if self._gate is None:
                self._gate = np.full(1, SHUT if self._closed else 0, np.int64)
            return self._gate

    def __enter__(self) -> Self:
        with self._idle:
            self.check()
            self._n_in_flight += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._idle:
            self._n_in_flight -= 1
            if self._n_in_flight == 0:
                self._idle.notify_all()

    def check(self) -> None:
        """Raise `InvalidInput` once closed; costs next to nothing, and promises nothing for the next moment."""
        if self._closed:
            raise InvalidInput(f"{self._what}: closed already, expected an open one; open it again")

    def close(self) -> bool:
        """Refuse new calls and wait for those in flight; False if it was closed before."""
        with self._idle:
            first, self._closed = not self._closed, True
            self._idle.wait_for(lambda: self._n_in_flight == 0)
            # Kernels tell nobody when they go, so as to be quick.
            while self._gate is not None and shut_gate(np.uint64(self._gate.ctypes.data)):
                self._idle.wait(_LOOK_AGAIN_S)
        return first


_all: weakref.WeakSet[Leases] = weakref.WeakSet()


def _after_fork() -> None:
    for leases in list(_all):
        leases._forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
