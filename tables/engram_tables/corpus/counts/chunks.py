"""Stretches of tokenised text as sequences of canonical ids, ready to be counted.

Owns the way from stored token ids to canonical ones, chunk by chunk within a memory budget. Knows token stores, and
no n-gram.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engram_tables.address.vocabulary import Vocabulary
from engram_tables.corpus.counts import kernels
from engram_tables.corpus.counts.counting import Sequences, Workspace
from engram_tables.corpus.tokens.token_store import DEAD, TokenStore
from engram_tables.errors import InvalidInput
from engram_tables.threads import run_slices
from engram_tables.units import ProgressHook

_GRAIN_TOKENS = 1 << 18


class TokenSource:
    """Several token stores as one stream; no document goes on from one into the next."""

    def __init__(self, stores: Sequence[TokenStore]) -> None:
        self.stores = tuple(stores)
        self._firsts = list(itertools.accumulate((store.n_tokens for store in stores), initial=0))

    @property
    def n_tokens(self) -> int:
        """Positions of all stores, dead ones counted."""
        return self._firsts[-1]

    @property
    def n_dead(self) -> int:
        """Dead positions."""
        return sum(store.n_dead for store in self.stores)

    @property
    def n_documents(self) -> int:
        """Documents, empty ones counted."""
        return sum(store.n_documents for store in self.stores)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise `SpecMismatch` unless the ids are those of the vocabulary's tokenizer."""
        for store in self.stores:
            store.check_tokenizer(vocabulary.tokenizer_sha256)

    def verify(self, *, threads: int, progress: ProgressHook) -> None:
        """Hold every byte of every store against its digest; `progress` is called with bytes."""
        total_bytes = sum(store.file_bytes for store in self.stores)
        before = 0
        for store in self.stores:
            store.verify(threads=threads, progress=_further(progress, before, total_bytes))
            before += store.file_bytes

    def read(self, start: int, stop: int, *, into: npt.NDArray[np.uint32], threads: int) -> npt.NDArray[np.int64]:
        """Ids [start, stop) into `into`; int64 starts of the sequences they form, as `TokenStore.read` gives them."""
        begins = []
        place = start
        while place < stop:
            which = bisect_right(self._firsts, place) - 1
            first, end = self._firsts[which], min(self._firsts[which + 1], stop)
            part = self.stores[which].read(
                place - first, end - first, into=into[place - start : end - start], threads=threads
            )
            begins.append(part.document_starts[:-1] + (place - start))
            place = end
        return np.concatenate([*begins, [stop - start]]).astype(np.int64)

    def begins_document(self, position: int) -> bool:
        """Whether a document starts at `position`, which must be one of the stream's."""
        which = bisect_right(self._firsts, position) - 1
        local = position - self._firsts[which]
        return local == 0 or 1 in self.stores[which].read(local - 1, local + 1).document_starts[:-1]


def _further(progress: ProgressHook, before: int, total: int) -> ProgressHook:
    return lambda done, _total: progress(before + done, total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Sequences of canonical ids, and whether each begins a document (bool (n_sequences,))."""

    sequences: Sequences
    is_start: npt.NDArray[np.bool_]


def read_chunk(
    source: TokenSource,
    start: int,
    stop: int,
    *,
    vocabulary: Vocabulary,
    ahead: int,
    has_following: bool,
    workspace: Workspace,
    threads: int,
) -> Chunk:
    """Positions [start, stop) as sequences, and `ahead` positions more, at which no window begins.

    A dead position belongs to no sequence, and the one before it ends there.

    Raises
    ------
    InvalidInput
        A token id that the vocabulary does not have, with its position.
    """
    n_read = min(stop + ahead, source.n_tokens) - start
    raw = workspace.ids("raw ids", n_read)
    starts = source.read(start, start + n_read, into=raw, threads=threads)
    is_start = np.ones(len(starts) - 1, dtype=bool)
    if len(is_start):
        # The first of several sequences at one place that holds no token may be an empty document.
        first = int(np.searchsorted(starts, 0, side="right")) - 1
        is_start[first] = source.begins_document(start)
    n_windows = stop - start
    if source.n_dead:
        raw, starts, is_start, n_windows = _without_dead(raw, starts, is_start, n_windows)
    ids = workspace.ids("ids", len(raw)) if has_following else raw
    _map(raw, ids, vocabulary, start, threads)
    return Chunk(
        sequences=Sequences(ids=ids, starts=starts, n_windows=n_windows, following=raw if has_following else None),
        is_start=is_start,
    )


def _without_dead(
    raw: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64], is_start: npt.NDArray[np.bool_], n_windows: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.bool_], int]:
    alive = raw != DEAD
    places = np.concatenate([[0], np.cumsum(alive)])
    # A sequence begins where one did, and at every living position behind a dead one of its document.
    resumed = np.setdiff1d(np.flatnonzero(alive[1:] & ~alive[:-1]) + 1, starts)
    begins = np.concatenate([starts[:-1], resumed])
    order = np.argsort(begins, kind="stable")
    first = np.concatenate([is_start, np.zeros(len(resumed), dtype=bool)])[order]
    # A document whose first positions are dead begins at none: what is left of it is a continuation.
    begun = begins[order]
    first &= (begun >= len(raw)) | alive[np.minimum(begun, len(raw) - 1)]
    return (
        raw[alive],
        np.append(places[begun], places[-1]).astype(np.int64),
        first,
        int(places[n_windows]),
    )


def _map(
    raw: npt.NDArray[np.uint32], ids: npt.NDArray[np.uint32], vocabulary: Vocabulary, start: int, threads: int
) -> None:
    if len(raw) and int(raw.max()) >= vocabulary.token_count:
        position = int(np.argmax(raw >= vocabulary.token_count))
        raise InvalidInput(
            f"token id {raw[position]:,} near position {start + position:,}: found one beyond the "
            f"{vocabulary.token_count:,} ids of the vocabulary of {vocabulary.source}; was it made with another "
            "tokenizer?"
        )
    run_slices(
        lambda low, high: kernels.map_ids(raw[low:high], vocabulary.canonical_ids, ids[low:high]),
        len(raw),
        threads=threads,
        grain=_GRAIN_TOKENS,
    )
