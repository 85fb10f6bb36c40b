"""Compiled reading of records from files: native `pread` calls without the GIL, many threads at a time.

Records are named by *spots*: byte positions in one space in which the shards' files follow each other, so
that sorting spots sorts by file and by offset within it. Nothing is checked here but what the system answers.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numba import njit, types

from engram_tables.memory import claim, copy_bytes, load_int32

END_OF_FILE = -1
_EINTR = 4
_PAGE = np.uint64(4096)

_external: Any = types.ExternalFunction
_pread = _external("pread", types.int64(types.int32, types.uint64, types.uint64, types.int64))
_mincore = _external("mincore", types.int32(types.uint64, types.uint64, types.uint64))
_errno_address = _external("__errno_location" if sys.platform.startswith("linux") else "__error", types.uint64())


@njit(cache=True, nogil=True)
def group_reads(spots: Any, row_bytes: Any, unit: Any, limit_bytes: Any, starts: Any) -> Any:
    """Cut sorted spots into reads: what begins in a page that the read before touches joins that read.

    `spots` is uint64 (n,), ascending, duplicates welcome; `starts` int64 (n + 1,) gets where each read's
    records begin, and n at the end; returns the number of reads. No read is longer than `limit_bytes`.
    """
    unit, row_bytes = np.uint64(unit), np.uint64(row_bytes)
    n_reads = 0
    window, window_stop = np.uint64(0), np.uint64(0)
    for k in range(spots.shape[0]):
        start = spots[k] // unit * unit
        stop = (spots[k] + row_bytes + unit - np.uint64(1)) // unit * unit
        pages_stop = (window_stop + _PAGE - np.uint64(1)) // _PAGE * _PAGE
        if k == 0 or start >= pages_stop or stop - window > np.uint64(limit_bytes):
            starts[n_reads] = k
            n_reads += 1
            window, window_stop = start, stop
        else:
            window_stop = max(window_stop, stop)
    starts[n_reads] = spots.shape[0]
    return n_reads


@njit(cache=True, nogil=True)
def _read(fd: Any, buffer: Any, window_bytes: Any, needed_bytes: Any, file_offset: Any, unit: Any) -> Any:
    """Fill `buffer` from the file; 0, an errno, or END_OF_FILE if the file ends before `needed_bytes`.

    A window may reach past the end of the file, where a short answer is the right one.
    """
    done = np.int64(0)
    while done < needed_bytes:
        got = _pread(
            np.int32(fd),
            buffer + np.uint64(done),
            np.uint64(window_bytes - done),
            np.int64(file_offset + done),
        )
        if got < 0:
            code = np.int64(load_int32(_errno_address()))
            if code != _EINTR:
                return code
        elif got == 0:
            return np.int64(END_OF_FILE)
        else:
            done += got
            if done < needed_bytes:
                # Direct reads go on at a multiple of their unit only; the last bytes are read once more. A
                # short answer of less than a unit would repeat for ever: the file ended there.
                if got < unit:
                    return np.int64(END_OF_FILE)
                done -= done % unit
    return np.int64(0)


@njit(cache=True, nogil=True)
def read_groups(
    counter: Any, n_at_once: Any, starts: Any, n_reads: Any, spots: Any, order: Any, files: Any, plan: Any,
    output: Any, buffer: Any, failure: Any,
) -> None:  # fmt: skip
    """One worker: take `n_at_once` reads at a time until none is left, and copy out their records.

    `starts`, `n_reads` and `spots` are as `group_reads` left them; record k goes to `output + order[k] *
    row_bytes`.
    `files` is (spot of byte 0 uint64 (files,), file descriptors int64 (files,)); `plan` is (row_bytes, unit).
    On an error `failure` int64 (4,) gets code, file, offset and bytes asked for, and all workers stop.
    """
    file_spots, fds = files
    row_bytes, unit = np.uint64(plan[0]), np.uint64(plan[1])
    while True:
        first = claim(counter, np.int64(n_at_once))
        if first >= n_reads:
            return
        for read in range(first, min(first + n_at_once, n_reads)):
            start, stop = starts[read], starts[read + 1]
            file = np.searchsorted(file_spots, spots[start], side="right") - 1
            window = spots[start] // unit * unit
            needed_bytes = np.int64(spots[stop - 1] + row_bytes - window)
            window_bytes = (needed_bytes + plan[1] - 1) // plan[1] * plan[1]
            file_offset = np.int64(window - file_spots[file])
            code = _read(fds[file], buffer, window_bytes, needed_bytes, file_offset, plan[1])
            if code != 0:
                failure[0], failure[1], failure[2], failure[3] = code, file, file_offset, needed_bytes
                claim(counter, np.int64(n_reads))
                return
            for k in range(start, stop):
                target = output + np.uint64(order[k]) * row_bytes
                copy_bytes(target, buffer + (spots[k] - window), np.int64(row_bytes))


@njit(cache=True, nogil=True)
def count_resident(addresses: Any, n_bytes: Any, page_bytes: Any, states: Any) -> Any:
    """How many mapped records have all their pages in memory; -1 on an error.

    Record k is the `n_bytes` at `addresses[k]`. `states` is scratch, uint8, one element for each page that a
    range may touch.
    """
    page_bytes = np.uint64(page_bytes)
    n_resident = np.int64(0)
    for k in range(addresses.shape[0]):
        start = addresses[k] // page_bytes * page_bytes
        span = addresses[k] + np.uint64(n_bytes) - start
        if _mincore(start, span, np.uint64(states.ctypes.data)) != 0:
            return -1
        n_pages = (span + page_bytes - np.uint64(1)) // page_bytes
        n_in = np.int64(0)
        for page in range(n_pages):
            n_in += np.int64(states[page] & 1)
        n_resident += np.int64(n_in == np.int64(n_pages))
    return n_resident
