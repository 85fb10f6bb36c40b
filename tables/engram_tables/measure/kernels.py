"""Compiled loops whose speed is a ceiling of the machine's, not of any engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from engram_tables.memory import claim, copy_bytes

_external: Any = types.ExternalFunction
_pread = _external("pread", types.int64(types.int32, types.uint64, types.uint64, types.int64))


@njit(cache=True, nogil=True)
def copy_block(target: Any, source: Any, n_bytes: Any) -> None:
    """memcpy between two addresses."""
    copy_bytes(np.uint64(target), np.uint64(source), np.int64(n_bytes))


@njit(cache=True, nogil=True)
def chase(links: Any, start: Any, n_steps: Any) -> Any:
    """Follow `links`, int64, from `start` for `n_steps`: each load waits for the one before."""
    position = np.int64(start)
    for _ in range(n_steps):
        position = links[position]
    return position


@njit(cache=True, nogil=True)
def sum_words(words: Any, places: Any) -> Any:
    """Sum of the words, uint64, at `places`, int64: loads that wait for nothing."""
    total = np.uint64(0)
    for k in range(places.shape[0]):
        total += words[places[k]]
    return total


@njit(cache=True, nogil=True)
def touch_pages(mapping: Any, page_bytes: Any) -> Any:
    """Read one byte of every page of uint8 (n,), so that a mapping's page table is filled."""
    total = np.int64(0)
    for k in range(0, mapping.shape[0], page_bytes):
        total += np.int64(mapping[k])
    return total


@njit(cache=True, nogil=True)
def read_blocks(counter: Any, fd: Any, offsets: Any, block_bytes: Any, buffer: Any) -> Any:
    """One worker of a disk sweep: read blocks at `offsets`, int64, until none is left; number of reads that
    failed."""
    n_failed = np.int64(0)
    while True:
        nth = claim(counter, np.int64(1))
        if nth >= offsets.shape[0]:
            return n_failed
        got = _pread(np.int32(fd), np.uint64(buffer), np.uint64(block_bytes), offsets[nth])
        n_failed += np.int64(got != block_bytes)
