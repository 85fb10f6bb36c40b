"""The counted next tokens of every n-gram of an order, in mapped files: read once from counts, then found by number.

Owns the reading of counts and the files' form. Knows no rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.corpus.counts.ngram_counts import NO_NEXT
from engram_tables.errors import InvalidInput

I64 = npt.NDArray[np.int64]


class FollowedNgrams(NamedTuple):
    """The n-grams of one order, numbered as they are sorted, and what follows each.

    Attributes
    ----------
    ngrams
        uint32 (n, order): canonical ids, oldest first.
    starts
        int64 (n + 1,): where the pairs of each n-gram begin.
    next_tokens, counts
        uint32 and int64 (pairs,): raw tokens that follow; ends of documents are left out.
    """

    ngrams: npt.NDArray[np.uint32]
    starts: I64
    next_tokens: npt.NDArray[np.uint32]
    counts: I64


def write_followed(counts: Counts, order: int, directory: Path, add_progress: Callable[[int], None]) -> FollowedNgrams:
    """Read an order of `counts` into files below `directory`, and map them.

    Raises
    ------
    InvalidInput
        A file of the counts is damaged.
    """
    n_ngrams, n_rows = counts.n_distinct(order), counts.n_rows(order)
    ngrams = _mapped(directory / f"ngrams-{order}", np.uint32, (n_ngrams, order))
    starts = _mapped(directory / f"starts-{order}", np.int64, (n_ngrams + 1,))
    tokens = _mapped(directory / f"tokens-{order}", np.uint32, (n_rows,))
    times = _mapped(directory / f"counts-{order}", np.int64, (n_rows,))
    n_found = n_pairs = n_read = 0
    last = None
    for batch in counts.batches(order):
        columns, following = batch.columns, batch.next_tokens
        if not len(batch.counts):
            continue
        assert following is not None
        n_read += len(batch.counts)
        begins = np.ones(len(batch.counts), np.bool_)
        begins[1:] = (columns[:, 1:] != columns[:, :-1]).any(axis=0)
        begins[0] = last is None or bool((columns[:, 0] != last).any())
        last = columns[:, -1].copy()
        is_kept = following != NO_NEXT
        firsts = np.flatnonzero(begins)
        if n_found + len(firsts) > n_ngrams or n_read > n_rows:
            break
        ngrams[n_found : n_found + len(firsts)] = columns[:, firsts].T
        starts[n_found : n_found + len(firsts)] = n_pairs + (np.cumsum(is_kept) - is_kept)[firsts]
        kept = following[is_kept]
        if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < counts.subject.next_size:
            raise _damaged(counts, order, f"the raw token {int(kept.max()):,}", f"under {counts.subject.next_size:,}")
        tokens[n_pairs : n_pairs + len(kept)], times[n_pairs : n_pairs + len(kept)] = kept, batch.counts[is_kept]
        n_found, n_pairs = n_found + len(firsts), n_pairs + len(kept)
        add_progress(len(batch.counts))
    if (n_found, n_read) != (n_ngrams, n_rows):
        raise _damaged(counts, order, f"{n_found:,} n-grams in {n_read:,} rows", f"{n_ngrams:,} in {n_rows:,}")
    starts[n_ngrams] = n_pairs
    return FollowedNgrams(ngrams, starts, tokens[:n_pairs], times[:n_pairs])


def _damaged(counts: Counts, order: int, found: str, expected: str) -> InvalidInput:
    return InvalidInput(f"{counts.path}: found {found} of order {order}, expected {expected}; count again")


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A plain array over a new file; nothing can be mapped of an empty one."""
    if 0 in shape:
        return np.empty(shape, dtype)
    with path.open("wb") as file:
        # A page of a mapped file for which the disk has no room ends the process, without a word.
        os.posix_fallocate(file.fileno(), 0, prod(shape) * np.dtype(dtype).itemsize)
    return np.asarray(np.memmap(path, dtype, mode="r+", shape=shape))
