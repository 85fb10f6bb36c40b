"""Compiled search for added tokens in UTF-8 text. Callers validate: nothing here checks a bound."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


class AddedTokens(NamedTuple):
    """Contents to look for, in buckets by their first two bytes, longest first in each bucket.

    Attributes
    ----------
    first
        uint8 (256,): 1 where a content starts with that byte.
    bucket_of
        int32 (65536,): bucket by first byte × 256 + second byte, −1 for none. A content of one byte is in all 256.
    buckets
        int64 (n_buckets + 1,): where each bucket's entries start.
    starts, stops
        int64 (n_entries,): bytes of each content in `contents`.
    ids
        int64 (n_entries,).
    rounds
        int64 (n_entries,): 0 for tokens that are split out first, 1 for those looked for in what is left.
    contents
        uint8.
    """

    first: U8
    bucket_of: npt.NDArray[np.int32]
    buckets: I64
    starts: I64
    stops: I64
    ids: I64
    rounds: I64
    contents: U8


@njit(cache=True, nogil=True)
def _entry_at(text: U8, at: int, stop: int, tokens: AddedTokens, wanted: int) -> int:
    """The longest entry of a round (−1: of any) that stands at a byte and ends by `stop`; −1 if none does."""
    bucket = tokens.bucket_of[np.int64(text[at]) << 8 | np.int64(text[at + 1])]
    if bucket < 0:
        return -1
    for entry in range(tokens.buckets[bucket], tokens.buckets[bucket + 1]):
        n_bytes = tokens.stops[entry] - tokens.starts[entry]
        if at + n_bytes > stop or (wanted >= 0 and tokens.rounds[entry] != wanted):
            continue
        same = 0
        while same < n_bytes and text[at + same] == tokens.contents[tokens.starts[entry] + same]:
            same += 1
        if same == n_bytes:
            return entry
    return -1


@njit(cache=True, nogil=True)
def _next_at(text: U8, at: int, stop: int, tokens: AddedTokens, wanted: int) -> tuple[int, int]:
    """Place and entry of the first token of a round; `stop` and −1 if there is none."""
    while at < stop:
        if tokens.first[text[at]]:
            entry = _entry_at(text, at, stop, tokens, wanted)
            if entry >= 0:
                return at, entry
        at += 1
    return stop, -1


@njit(cache=True, nogil=True)
def count_added(text: U8, bounds: I64, tokens: AddedTokens, n_found: I64) -> None:
    """Places of each text at which an added token stands, overlapping ones counted.

    Parameters
    ----------
    bounds
        int64 (n_texts + 1,): bytes of each text; a byte that belongs to no text follows the last one.
    n_found
        int64 (n_texts,), written.
    """
    for number in range(len(n_found)):
        n_found[number] = 0
        at, stop = bounds[number], bounds[number + 1]
        while True:
            at, entry = _next_at(text, at, stop, tokens, -1)
            if entry < 0:
                break
            n_found[number] += 1
            at += 1


@njit(cache=True, nogil=True)
def split_at_added(
    text: U8, bounds: I64, tokens: AddedTokens, n_found: I64, starts: I64, stops: I64, ids: I64, owners: I64
) -> int:
    """Cut every text at its added tokens: leftmost, longest, first those of round 0, then round 1 between them.

    Parameters
    ----------
    n_found
        int64 (n_texts,), as `count_added` writes it.
    starts, stops, ids, owners
        int64, two places for each token found and one for each text: bytes, id (−1: text) and text of each segment,
        written; empty segments are left out.

    Returns
    -------
    The number of segments.
    """
    n_segments = 0
    for number in range(len(n_found)):
        left, stop = bounds[number], bounds[number + 1]
        while left < stop:
            place, entry = stop, -1
            if n_found[number]:
                place, entry = _next_at(text, left, stop, tokens, 0)
            while left < place:
                inner, inner_entry = place, -1
                if n_found[number]:
                    inner, inner_entry = _next_at(text, left, place, tokens, 1)
                if inner > left:
                    starts[n_segments], stops[n_segments] = left, inner
                    ids[n_segments], owners[n_segments] = -1, number
                    n_segments += 1
                left = inner
                if inner_entry >= 0:
                    left = inner + tokens.stops[inner_entry] - tokens.starts[inner_entry]
                    starts[n_segments], stops[n_segments] = inner, left
                    ids[n_segments], owners[n_segments] = tokens.ids[inner_entry], number
                    n_segments += 1
            if entry >= 0:
                left = place + tokens.stops[entry] - tokens.starts[entry]
                starts[n_segments], stops[n_segments] = place, left
                ids[n_segments], owners[n_segments] = tokens.ids[entry], number
                n_segments += 1
    return n_segments
