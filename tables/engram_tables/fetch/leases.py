"""Who is using a thing that must not be closed under them."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Self

from engram_tables.errors import InvalidInput


class Leases:
    """Count the calls in flight: `with leases:` around each, `close()` waits for them and refuses later ones.

    After a fork the child starts with no call in flight: the parent's threads do not exist there.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._closed = False
        self._forget_threads()
        _all.add(self)

    def _forget_threads(self) -> None:
        self._idle = threading.Condition()
        self._n_in_flight = 0

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
        return first


_all: weakref.WeakSet[Leases] = weakref.WeakSet()


def _after_fork() -> None:
    for leases in list(_all):
        leases._forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
