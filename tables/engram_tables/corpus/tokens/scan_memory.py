"""What the scan's kernels work on: the model's tables, the caches of pieces and their scratch memory.

Owns the layouts; `pretoken_kernels` reads and writes them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.errors import CapacityError

PADDING = 64
SHORT_BYTES = 15
"""Longest piece of the first cache: 15 bytes and their number fill two words."""
LONG_BYTES = 64
"""Longest piece of the second cache."""
SHORT_IDS = 3
LONG_IDS = 12
SHORT_SET_WORDS = 8
LONG_ENTRY_WORDS = 16
SCAN_SYMBOLS = 64
"""Pieces of at most so many bytes are merged by searching all pairs, longer ones with a heap."""
BLOCK_PIECES = 256
"""Pieces found before the first of them is looked up: so long the fetch of a cache's line may take."""
BLOCK_WORDS = 4

SHORT_CACHE_BYTES = 16 << 20
LONG_CACHE_BYTES = 16 << 20
"""Memory of the two caches of pieces, for each thread; once full, a new piece takes the place of an old one."""
SCRATCH_BYTES = 1 << 16
"""Pieces up to so many bytes need no further memory; a longer one takes 28 bytes a byte while it is merged."""


U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


class Model(NamedTuple):
    """A byte-pair encoding, as the kernels take it.

    Attributes
    ----------
    byte_ids
        uint32 (256,): id of each single byte.
    merges
        uint64 (2 × slots,): open-addressing table, left id << 32 | right id, then rank << 32 | merged id; slots a
        power of two, empty ones all ones.
    merge_shift
        64 − log2(slots).
    whole
        uint64 (2 × slots,): open-addressing table of the pieces that are a token without merging (`ignore_merges`):
        hash, then offset in `whole_bytes` << 32 | entry; empty ones all ones. One empty slot where there are none.
    whole_shift
        64 − log2(slots); 64 where there are none.
    whole_stops
        int64 (n_whole,): where each entry's bytes end.
    whole_ids
        uint32 (n_whole,).
    whole_bytes
        uint8, padded by `PADDING`.
    """

    byte_ids: U32
    merges: U64
    merge_shift: int
    whole: U64
    whole_shift: int
    whole_stops: I64
    whole_ids: U32
    whole_bytes: U8


class Caches(NamedTuple):
    """What one thread remembers of pieces, and its scratch memory.

    Attributes
    ----------
    short
        uint64 (8 × sets,), sets a power of two: two entries a set, each of two key words (bytes, number of bytes in
        the top one) and two value words (ids 0 and 1; id 2 and the number of ids). A new piece takes the second
        place of its set, a piece found there changes places with the first.
    long
        uint64 (16 × entries,), entries a power of two: hash, bytes | ids << 32, eight words of bytes, six of ids. A new
        piece takes its place from the one before.
    symbols, merged, before, after
        uint32, uint32, int32, int32 (n,): scratch for pieces of up to n bytes.
    heap
        uint64 (2 n,).
    block
        uint64 (4 × `BLOCK_PIECES`,): end, key words and set of the pieces found but not yet looked up.
    """

    short: U64
    long: U64
    symbols: U32
    merged: U32
    before: I32
    after: I32
    heap: U64
    block: U64


def new_caches() -> Caches:
    """Empty caches for one thread."""
    return Caches(
        short=_aligned_words(SHORT_CACHE_BYTES // 8),
        long=_aligned_words(LONG_CACHE_BYTES // 8),
        block=np.empty(BLOCK_PIECES * BLOCK_WORDS, dtype=np.uint64),
        **_scratch(SCRATCH_BYTES),
    )


def with_scratch(caches: Caches, n_symbols: int) -> Caches:
    """The same caches with scratch memory for a piece of so many bytes; CapacityError from 2 GiB on."""
    if n_symbols >= 1 << 31:
        raise CapacityError(f"text: found a piece of {n_symbols:,} bytes without a place to split, expected < 2^31")
    return caches._replace(**_scratch(n_symbols))


def _scratch(n_symbols: int) -> dict[str, npt.NDArray[Any]]:
    return {
        "symbols": np.empty(n_symbols, dtype=np.uint32),
        "merged": np.empty(min(n_symbols, SCRATCH_BYTES), dtype=np.uint32),
        "before": np.empty(n_symbols, dtype=np.int32),
        "after": np.empty(n_symbols, dtype=np.int32),
        "heap": np.empty(2 * n_symbols, dtype=np.uint64),
    }


def _aligned_words(n_words: int) -> npt.NDArray[np.uint64]:
    """Zeros that start on a cache line."""
    words = np.zeros(n_words + 8, dtype=np.uint64)
    skipped = -words.ctypes.data % 64 // 8
    return words[skipped : skipped + n_words]
