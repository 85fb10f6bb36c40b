"""The positions of a text that a prediction is made at: what stands before each, and the token that follows.

Owns which positions there are, drawing some of them, and the edges of documents. Knows no table and no counts.

A *sequence* is what counting calls one: a document, or a part of it between dead positions. A position is judged where
a token of its own sequence follows; nothing is predicted across an edge, nor that a document ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.tokens.token_store import DEAD
from engram_tables.corpus.tokens.token_stream import TokenStream
from engram_tables.corpus.traffic.token_addresses import TokenSource
from engram_tables.errors import InvalidInput
from engram_tables.units import ProgressHook

CHUNK_TOKENS = 1 << 19
"""Tokens that are looked at together."""

Bools = npt.NDArray[np.bool_]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Some positions of a text, in its order.

    Attributes
    ----------
    contexts
        uint32 (n, reach): raw ids up to and with each position, oldest first; DEAD before its sequence began.
    n_back
        int64 (n,): how many of them there are, `reach` at most.
    is_opening
        bool (n,): whether a document begins fewer than `reach` ids ago, so that padding may stand in for the others.
    following
        uint32 (n,): the raw token after each.
    documents
        int64 (n,): the document each lies in, by its place in the text.
    """

    contexts: U32
    n_back: I64
    is_opening: Bools
    following: U32
    documents: I64

    def __len__(self) -> int:
        return len(self.following)

    def part(self, start: int, stop: int) -> Positions:
        """Positions start … stop - 1, as views."""
        return Positions(
            contexts=self.contexts[start:stop],
            n_back=self.n_back[start:stop],
            is_opening=self.is_opening[start:stop],
            following=self.following[start:stop],
            documents=self.documents[start:stop],
        )

    def has_ngram(self, order: int, *, is_padded: bool) -> Bools:
        """bool (n,): where counting finds an n-gram of `order` that ends at the position."""
        whole: Bools = self.n_back >= order
        return whole | self.is_opening if is_padded else whole


class _Chunk(NamedTuple):
    """Tokens with what they look back to, and for each which judgement it allows."""

    ids: U32
    n_back: I64
    is_opening: Bools
    documents: I64
    judged: I64
    """Places in `ids` that are judged."""


class JudgedText:
    """The judged positions of a text, counted once and then drawn from.

    Parameters
    ----------
    reach
        Ids that a position looks back to, its own among them.
    token_size
        Bound of the ids.
    n_tokens
        Read no more than the first so many tokens; all if None.
    progress
        Called with tokens.

    Raises
    ------
    InvalidInput
        An id that the vocabulary does not have, with its position.
    """

    def __init__(
        self, tokens: TokenSource, *, reach: int, token_size: int, n_tokens: int | None = None,
        progress: ProgressHook | None = None,
    ) -> None:  # fmt: skip
        self.reach = reach
        self.n_tokens = tokens.n_tokens if n_tokens is None else min(n_tokens, tokens.n_tokens)
        self._tokens, self._lead = tokens, max(1, reach - 1)
        self._bounds = [*range(0, self.n_tokens, CHUNK_TOKENS), self.n_tokens]
        n_judged, n_documents = [0], [0]
        for start, stop in zip(self._bounds, self._bounds[1:], strict=False):
            stream, before = self._read(start, stop)
            _check_ids(stream.ids, token_size, start - before)
            begins = _begins(stream, before)
            n_documents.append(n_documents[-1] + len(begins[begins < before + stop - start]))
            n_judged.append(n_judged[-1] + len(self._chunk(start, stop, 0).judged))
            if progress is not None:
                progress(stop, self.n_tokens)
        self._firsts, self._documents_before = np.array(n_judged, dtype=np.int64), n_documents

    @property
    def n_judged(self) -> int:
        """Positions that a token of the same sequence follows."""
        return int(self._firsts[-1])

    def draw(self, n_wanted: int | None, *, seed: int) -> I64:
        """int64, ascending: `n_wanted` of the judged positions by number, each as likely as any; all if None."""
        if n_wanted is None or n_wanted >= self.n_judged:
            return np.arange(self.n_judged, dtype=np.int64)
        chosen = np.random.default_rng(seed).choice(self.n_judged, n_wanted, replace=False, shuffle=False)
        return np.sort(chosen).astype(np.int64)

    def positions(self, chosen: I64) -> Positions:
        """The judged positions of these numbers, which ascend; memory goes with them, 4 x reach + 21 bytes each."""
        parts = [self._some(chunk, chosen) for chunk in range(len(self._bounds) - 1)]
        parts = [part for part in parts if len(part)] or [self._none()]
        return Positions(
            contexts=np.concatenate([part.contexts for part in parts]),
            n_back=np.concatenate([part.n_back for part in parts]),
            is_opening=np.concatenate([part.is_opening for part in parts]),
            following=np.concatenate([part.following for part in parts]),
            documents=np.concatenate([part.documents for part in parts]),
        )

    def blocks(self, chosen: I64, n_positions: int) -> Iterator[Positions]:
        """The same, so many at a time."""
        for start in range(0, len(chosen), n_positions):
            yield self.positions(chosen[start : start + n_positions])

    def _some(self, chunk: int, chosen: I64) -> Positions:
        low, high = np.searchsorted(chosen, self._firsts[chunk : chunk + 2]).tolist()
        if low == high:
            return self._none()
        here = self._chunk(self._bounds[chunk], self._bounds[chunk + 1], self._documents_before[chunk])
        places = here.judged[chosen[low:high] - self._firsts[chunk]]
        return _gathered(here, places, self.reach)

    def _none(self) -> Positions:
        empty = np.empty(0, dtype=np.int64)
        return Positions(
            contexts=np.empty((0, self.reach), dtype=np.uint32), n_back=empty, is_opening=empty.astype(bool),
            following=empty.astype(np.uint32), documents=empty,
        )  # fmt: skip

    def _read(self, start: int, stop: int) -> tuple[TokenStream, int]:
        """Tokens start … stop - 1 with what they look back to and the one after, and how many come before."""
        before = min(start, self._lead)
        return self._tokens.read(start - before, min(stop + 1, self.n_tokens)), before

    def _chunk(self, start: int, stop: int, n_documents_before: int) -> _Chunk:
        stream, before = self._read(start, stop)
        ids = stream.ids
        is_live = ids != DEAD
        is_first = np.zeros(len(ids) + 1, dtype=bool)
        is_first[stream.document_starts[:-1]] = True
        is_first = is_first[:-1]
        # A sequence begins where a document does, and after a dead position.
        begins_sequence = is_first.copy()
        begins_sequence[1:] |= ~is_live[:-1]
        places = np.arange(len(ids), dtype=np.int64)
        sequence = np.maximum.accumulate(np.where(begins_sequence, places, 0))
        is_judged = np.zeros(len(ids), dtype=bool)
        is_judged[:-1] = is_live[:-1] & is_live[1:] & ~is_first[1:]
        judged = np.flatnonzero(is_judged)
        documents = n_documents_before - 1 + np.searchsorted(_begins(stream, before), places, side="right")
        n_back = places - sequence + 1
        return _Chunk(
            ids=ids,
            n_back=np.minimum(n_back, self.reach),
            is_opening=is_first[sequence] & (n_back < self.reach),
            documents=documents,
            judged=judged[(judged >= before) & (judged < before + stop - start)],
        )


def _begins(stream: TokenStream, before: int) -> I64:
    """Where documents begin among the tokens after those that are only looked back to."""
    # What is cut begins the slice without being a beginning; with a token before it nothing else can.
    starts = stream.document_starts[:-1]
    return starts[starts >= before]


def _gathered(chunk: _Chunk, places: I64, reach: int) -> Positions:
    n_back = chunk.n_back[places]
    contexts = np.full((len(places), reach), DEAD, dtype=np.uint32)
    for back in range(reach):
        there = n_back > back
        contexts[there, reach - 1 - back] = chunk.ids[places[there] - back]
    return Positions(
        contexts=contexts,
        n_back=n_back,
        is_opening=chunk.is_opening[places],
        following=chunk.ids[places + 1],
        documents=chunk.documents[places],
    )


def _check_ids(ids: U32, token_size: int, first: int) -> None:
    outside = (ids >= token_size) & (ids != DEAD)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise InvalidInput(
            f"token id at position {first + at:,}: found {ids[at]:,}, expected 0 to {token_size - 1:,}; were the "
            "tokens made with another tokenizer?"
        )
