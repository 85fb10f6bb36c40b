"""Compiled look-ups of the page cache, and the map of resident pages that they fill. It reads no record.

Pages are numbered in one region of memory into which all files are mapped, `(address - region start) // page bytes`.
In a map of pages, bit `p & 7` of byte `p >> 3` is page p's. Several threads write maps without a lock, so that a bit
may be lost: whoever reads one takes it for an estimate.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]

from engram_tables.fetch.kernels import locate
from engram_tables.memory import pointer_to

WAITING, MISSING, AGAIN = 0, 1, 2
"""In memory; out of it; out of it in a page that was missed before."""
_CACHESTAT = 451
_WILLNEED = 3
_ONE = np.uint64(1)

_external: Any = types.ExternalFunction
_madvise = _external("madvise", types.int32(types.uint64, types.uint64, types.int32))
_mincore = _external("mincore", types.int32(types.uint64, types.uint64, types.uint64))
_syscall = _external("syscall", types.int64(types.int64, types.int64, types.uint64, types.uint64, types.uint64))
_HAS_CACHESTAT = sys.platform.startswith("linux")


@njit(cache=True, nogil=True)
def cached_pages(fd: Any, first_byte: Any, n_bytes: Any) -> Any:
    """Pages of a range of a file that the page cache holds, by `cachestat`; -1 where the system does not say."""
    if not _HAS_CACHESTAT:
        return np.int64(-1)
    asked = np.empty(2, np.uint64)
    asked[0], asked[1] = np.uint64(first_byte), np.uint64(n_bytes)
    found = np.zeros(5, np.uint64)
    code = _syscall(
        np.int64(_CACHESTAT), np.int64(fd), np.uint64(asked.ctypes.data), np.uint64(found.ctypes.data), np.uint64(0)
    )
    return np.int64(found[0]) if code == 0 else np.int64(-1)


@njit(cache=True, nogil=True)
def fill(pages: Any, first_page: Any, n_pages: Any, is_set: Any) -> None:
    """Set or clear the bits of `n_pages` pages from `first_page`, a multiple of 8."""
    first_byte, n_whole = first_page >> 3, n_pages >> 3
    pages[first_byte : first_byte + n_whole] = np.uint8(255 * is_set)
    if n_pages & 7:
        pages[first_byte + n_whole] = np.uint8(((1 << (n_pages & 7)) - 1) * is_set)


@njit(cache=True, nogil=True)
def refresh_file(
    fd: Any, address: Any, first_page: Any, n_pages: Any, page_bytes: Any, pages: Any, stop: Any, found: Any,
    states: Any,
) -> Any:  # fmt: skip
    """Write what is in memory of one mapped file into the map; False if the system did not say or `stop[0]` was set.

    `address` is where the file's byte 0 is mapped, `first_page` (a multiple of 8) that page's number. Chunks that are
    wholly in memory or wholly out are known by one `cachestat`; pages of others are looked up by `mincore`. `found`
    int64 (2,): pages in memory, and pages looked up by `mincore`, are added. `states` is scratch, uint8, as long as a
    chunk has pages, a multiple of 8.
    """
    chunk_pages = states.shape[0]
    for start in range(0, n_pages, chunk_pages):
        if stop[0]:
            return False
        n = min(chunk_pages, n_pages - start)
        n_in = cached_pages(fd, start * page_bytes, n * page_bytes)
        if n_in == 0 or n_in == n:
            fill(pages, first_page + start, n, np.int64(n_in == n))
            found[0] += n_in
            continue
        at = address + np.uint64(start) * np.uint64(page_bytes)
        if _mincore(at, np.uint64(n) * np.uint64(page_bytes), np.uint64(states.ctypes.data)) != 0:
            return False
        found[1] += n
        byte = (first_page + start) >> 3
        for first in range(0, n, 8):
            bits = np.uint8(0)
            for k in range(first, min(first + 8, n)):
                bit = states[k] & np.uint8(1)
                bits |= np.uint8(bit << np.uint8(k - first))
                found[0] += np.int64(bit)
            pages[byte] = bits
            byte += 1
    return True


@njit(cache=True, nogil=True, inline="always")
def _bit(pages: Any, page: Any) -> Any:
    return (pages[page >> np.uint64(3)] >> np.uint8(page & np.uint64(7))) & np.uint8(1)


@njit(cache=True, nogil=True, inline="always")
def _set_bit(pages: Any, page: Any) -> None:
    pages[page >> np.uint64(3)] |= np.uint8(1) << np.uint8(page & np.uint64(7))


@njit(cache=True, nogil=True)
def look_up(addresses: Any, part_bytes: Any, region_start: Any, page_bytes: Any, pages: Any, states: Any) -> Any:
    """Ask `mincore` about every page of some mapped records and correct the map; returns (pages that were believed in
    memory and are not, pages that were believed out and are in).

    Part p of record k is the `part_bytes[p]` bytes at `addresses[p, k]`, both uint64. `states` is scratch, uint8, an
    element for each page that a part may touch. Where the system does not answer, the map stays.
    """
    size = np.uint64(page_bytes)
    n_gone, n_come = np.int64(0), np.int64(0)
    for k in range(addresses.shape[1]):
        for part in range(addresses.shape[0]):
            first = (addresses[part, k] - region_start) // size
            last = (addresses[part, k] - region_start + part_bytes[part] - _ONE) // size
            n = last - first + _ONE
            if _mincore(region_start + first * size, n * size, np.uint64(states.ctypes.data)) != 0:
                continue
            for nth in range(n):
                page = first + np.uint64(nth)
                is_in, was_in = states[nth] & np.uint8(1), _bit(pages, page)
                if is_in != was_in:
                    pages[page >> np.uint64(3)] ^= np.uint8(1) << np.uint8(page & np.uint64(7))
                    n_come += np.int64(is_in)
                    n_gone += np.int64(was_in)
    return n_gone, n_come


@njit(cache=True, nogil=True)
def n_absent(
    rows: Any, n_columns: Any, place: Any, region_start: Any, page_bytes: Any, pages: Any, seed: Any, n_samples: Any,
    states: Any,
) -> Any:  # fmt: skip
    """How many of `n_samples` records of a batch, drawn by `seed`, are believed in memory and are not.

    The batch is as in `gather`, `place` where one part of it is mapped; the other arguments as in `look_up`.
    """
    size, n_layers = np.uint64(page_bytes), place.extents.shape[0]
    n_together = 1 if n_layers == 1 else n_layers * n_columns
    addresses = np.empty(n_together, np.uint64)
    state, absent = np.uint64(seed), np.int64(0)
    for _ in range(n_samples):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        item = np.int64((state >> np.uint64(11)) % np.uint64(rows.shape[0]))
        start = item - item % n_together
        locate(rows[start : start + n_together], 1 if n_layers == 1 else n_columns, place, addresses)
        offset = addresses[item - start] - region_start
        first, last = offset // size, (offset + np.uint64(place.part_bytes) - _ONE) // size
        n = last - first + _ONE
        if _mincore(region_start + first * size, n * size, np.uint64(states.ctypes.data)) != 0:
            continue
        is_gone = np.int64(0)
        for nth in range(n):
            page = first + np.uint64(nth)
            is_gone |= np.int64(_bit(pages, page) == 1) & np.int64(states[nth] & np.uint8(1) == 0)
        absent += is_gone
    return absent


@njit(cache=True, nogil=True)
def mark(addresses: Any, part_bytes: Any, region_start: Any, page_bytes: Any, pages: Any) -> Any:
    """Set the bits of every page of some records; returns how many were not set. Arguments as in `look_up`."""
    size = np.uint64(page_bytes)
    n_new = np.int64(0)
    for k in range(addresses.shape[1]):
        for part in range(addresses.shape[0]):
            first = (addresses[part, k] - region_start) // size
            last = (addresses[part, k] - region_start + part_bytes[part] - _ONE) // size
            for nth in range(last - first + _ONE):
                page = first + np.uint64(nth)
                n_new += np.int64(_bit(pages, page) == 0)
                _set_bit(pages, page)
    return n_new


@njit(cache=True, nogil=True)
def part(
    addresses: Any, part_bytes: Any, region_start: Any, page_bytes: Any, pages: Any, missed: Any, kinds: Any
) -> Any:  # fmt: skip
    """Set `kinds`, uint8 (n,), to WAITING, MISSING or AGAIN, and set the bits in `missed` of all pages that are out;
    returns how many records are not in memory, and how many of those are AGAIN. Other arguments as in `look_up`.

    A page that two records of the batch share is no second miss: bits are read before any is set.
    """
    size = np.uint64(page_bytes)
    n_missing, n_again = np.int64(0), np.int64(0)
    for k in range(addresses.shape[1]):
        kind = np.uint8(WAITING)
        for p in range(addresses.shape[0]):
            first = (addresses[p, k] - region_start) // size
            last = (addresses[p, k] - region_start + part_bytes[p] - _ONE) // size
            for nth in range(last - first + _ONE):
                page = first + np.uint64(nth)
                if _bit(pages, page) == 0:
                    kind = max(kind, np.uint8(MISSING) + _bit(missed, page))
        kinds[k] = kind
        n_missing += np.int64(kind != WAITING)
        n_again += np.int64(kind == AGAIN)
    if n_missing:
        _remember(addresses, part_bytes, region_start, size, pages, missed)
    return n_missing, n_again


@njit(cache=True, nogil=True)
def are_first_misses(maps: Any, first_pages: Any, page_shift: Any, windows: Any, n_reads: Any) -> Any:
    """Whether all pages of some reads are believed out of memory and none was missed before.

    `maps` are the addresses of `pages` and `missed`, the bytes of each, and the region's start; `first_pages` int64
    (files,) has the number of each file's first page. `windows` is that of `queue_kernels.group_reads`, whose reads
    have the pages of their records and no other. Kernels of other files that call it are compiled anew by a change of
    their own file alone.
    """
    pages = carray(pointer_to(maps[0]), (maps[2],), np.uint8)
    missed = carray(pointer_to(maps[1]), (maps[2],), np.uint8)
    for read in range(n_reads):
        file, offset, needed_bytes = windows[read]
        first, start = first_pages[file], offset >> page_shift
        for page in range(first + start, first + (offset + needed_bytes - 1 >> page_shift) + 1):
            if _bit(pages, np.uint64(page)) | _bit(missed, np.uint64(page)):
                return False
    return True


@njit(cache=True, nogil=True)
def note_first_misses(maps: Any, first_pages: Any, page_shift: Any, windows: Any, n_reads: Any) -> Any:
    """Set the bits in `missed` of the pages of some reads; whether the first page of one of them is in memory after
    all. Arguments as in `are_first_misses`."""
    missed = carray(pointer_to(maps[1]), (maps[2],), np.uint8)
    for read in range(n_reads):
        file, offset, needed_bytes = windows[read]
        first, start = first_pages[file], offset >> page_shift
        for page in range(first + start, first + (offset + needed_bytes - 1 >> page_shift) + 1):
            _set_bit(missed, np.uint64(page))
    # Any one will do, if only it is not always the first.
    file, offset, _ = windows[(windows[0, 1] >> page_shift) % n_reads]
    address = maps[3] + np.uint64(first_pages[file] + (offset >> page_shift) << page_shift)
    found, size = np.zeros(1, np.uint8), np.uint64(1) << np.uint64(page_shift)
    code = _mincore(address, size, np.uint64(found.ctypes.data))
    return code == 0 and found[0] & 1 == 1


@njit(cache=True, nogil=True)
def fetch_pages(
    addresses: Any, part_bytes: Any, region_start: Any, page_bytes: Any, pages: Any, kinds: Any
) -> None:  # fmt: skip
    """madvise WILLNEED for the pages of records that are not WAITING, and set their bits. Arguments as in `part`."""
    size = np.uint64(page_bytes)
    for k in range(addresses.shape[1]):
        if kinds[k] == WAITING:
            continue
        for p in range(addresses.shape[0]):
            first = (addresses[p, k] - region_start) // size
            last = (addresses[p, k] - region_start + part_bytes[p] - _ONE) // size
            for nth in range(last - first + _ONE):
                page = first + np.uint64(nth)
                if _bit(pages, page) == 0:
                    _madvise(region_start + page * size, size, np.int32(_WILLNEED))
                    _set_bit(pages, page)


@njit(cache=True, nogil=True)
def _remember(addresses: Any, part_bytes: Any, region_start: Any, size: Any, pages: Any, missed: Any) -> None:
    for k in range(addresses.shape[1]):
        for p in range(addresses.shape[0]):
            first = (addresses[p, k] - region_start) // size
            last = (addresses[p, k] - region_start + part_bytes[p] - _ONE) // size
            for nth in range(last - first + _ONE):
                page = first + np.uint64(nth)
                if _bit(pages, page) == 0:
                    _set_bit(missed, page)
