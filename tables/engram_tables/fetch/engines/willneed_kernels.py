"""Compiled advice: which pages some mapped records lie in, and MADV_WILLNEED for them. It reads no record."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

_MADV_WILLNEED = 3

_external: Any = types.ExternalFunction
_madvise = _external("madvise", types.int32(types.uint64, types.uint64, types.int32))


@njit(cache=True, nogil=True)
def pages_of(addresses: Any, part_bytes: Any, page_bytes: Any, pages: Any) -> Any:
    """Write the address of every page of every part of some mapped records; returns how many, duplicates included.

    Part p of record k is the `part_bytes[p]` bytes at `addresses[p, k]`, both uint64. `pages`, uint64, has an element
    for each page that a part may touch, for every part of every record.
    """
    size = np.uint64(page_bytes)
    n_pages = 0
    for part in range(addresses.shape[0]):
        for k in range(addresses.shape[1]):
            page = addresses[part, k] // size * size
            while page < addresses[part, k] + part_bytes[part]:
                pages[n_pages] = page
                n_pages += 1
                page += size
    return n_pages


@njit(cache=True, nogil=True)
def advise(pages: Any, start: Any, stop: Any, page_bytes: Any) -> Any:
    """Advise MADV_WILLNEED for `pages[start:stop]`, ascending, duplicates welcome: neighbours in one call. Returns the
    number of calls that the system refused."""
    size = np.uint64(page_bytes)
    n_refused = np.int64(0)
    k = start
    while k < stop:
        first = last = pages[k]
        while k < stop and pages[k] <= last + size:
            last = pages[k]
            k += 1
        n_refused += np.int64(_madvise(first, last + size - first, np.int32(_MADV_WILLNEED)) != 0)
    return n_refused
