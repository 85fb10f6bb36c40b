"""Compiled reading of records from files: native `pread` calls without the GIL, many threads at a time.

Parts of records are named by *spots*: byte positions in one space in which the files follow each other, so that
sorting spots sorts by file and by offset within it. All parts of a batch are sorted together: item `part * n_records +
record` is one part of one record. Nothing is checked here but what the system answers.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numba import njit, types

from engram_tables.memory import claim, copy_bytes, load_int32

END_OF_FILE = -1
_EINTR = 4

_external: Any = types.ExternalFunction
_pread = _external("pread", types.int64(types.int32, types.uint64, types.uint64, types.int64))
_mincore = _external("mincore", types.int32(types.uint64, types.uint64, types.uint64))
_errno_address = _external("__errno_location" if sys.platform.startswith("linux") else "__error", types.uint64())


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
    counter: Any, n_at_once: Any, reads: Any, fds: Any, plan: Any, output: Any, buffer: Any, failure: Any
) -> None:
    """One worker: take `n_at_once` reads at a time until none is left, and copy out what belongs to their records.

    `reads` is (starts, windows, n_reads, spots, order) as in `descriptors.Reads`, `fds` int64 (files,); `plan` is
    (n_records, row_bytes, unit, first byte of each part in its record uint64 (parts,), bytes of each part uint64
    (parts,)). On an error `failure` int64 (4,) gets code, file, offset and bytes asked for, and all workers stop.
    """
    starts, windows, n_reads, spots, order = reads
    n_records, row_bytes, unit_bytes, part_starts, part_bytes = plan
    unit = np.uint64(unit_bytes)
    while True:
        first = claim(counter, np.int64(n_at_once))
        if first >= n_reads:
            return
        for read in range(first, min(first + n_at_once, n_reads)):
            file, file_offset, needed_bytes = windows[read, 0], windows[read, 1], windows[read, 2]
            window_bytes = (needed_bytes + unit_bytes - 1) // unit_bytes * unit_bytes
            code = _read(fds[file], buffer, window_bytes, needed_bytes, file_offset, unit_bytes)
            if code != 0:
                failure[0], failure[1], failure[2], failure[3] = code, file, file_offset, needed_bytes
                claim(counter, np.int64(n_reads))
                return
            window = spots[starts[read]] // unit * unit
            for k in range(starts[read], starts[read + 1]):
                part = order[k] // n_records
                record = np.uint64(order[k] - part * n_records)
                target = output + record * np.uint64(row_bytes) + part_starts[part]
                copy_bytes(target, buffer + (spots[k] - window), np.int64(part_bytes[part]))


@njit(cache=True, nogil=True)
def count_resident(addresses: Any, part_bytes: Any, page_bytes: Any, states: Any) -> Any:
    """How many mapped records have all pages of all their parts in memory; -1 on an error.

    Part p of record k is the `part_bytes[p]` bytes at `addresses[p, k]`; both are uint64. `states` is scratch, uint8,
    one element for each page that a part may touch.
    """
    page_bytes = np.uint64(page_bytes)
    n_resident = np.int64(0)
    for k in range(addresses.shape[1]):
        n_out = np.int64(0)
        for part in range(addresses.shape[0]):
            start = addresses[part, k] // page_bytes * page_bytes
            span = addresses[part, k] + part_bytes[part] - start
            if _mincore(start, span, np.uint64(states.ctypes.data)) != 0:
                return -1
            for page in range((span + page_bytes - np.uint64(1)) // page_bytes):
                n_out += np.int64(states[page] & 1 == 0)
        n_resident += np.int64(n_out == 0)
    return n_resident
