"""Compiled loops of row traffic: documents laid apart, keys partitioned and counted, weights added to rows.

Callers validate: nothing here checks a bound. All arithmetic on keys is uint64. The tests hold the
loops against a count in plain Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from engram_tables.address.vectors import LANES, copy_line_past_cache, fence

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

LIVE, DEAD_TOKEN, APART = 0, 1, 2
"""What stands at a place: a token that is looked up, a dead one, and neither (a separator or look-back)."""
DEAD_ID = np.uint32(0xFFFFFFFF)
WINDOW_BITS = 16
"""Rows of a window, as a power of two: their counters stay in the second-level cache while weights are added."""
MIX_PLACES = 512
WINDOW_ROWS = 1 << WINDOW_BITS
LINE_WORDS = LANES
TALLY_LANES = 8
FEW = 16
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_WORD_SPREAD = np.uint64(0xC2B2AE3D27D4EB4F)


@njit(cache=True, nogil=True)
def lay_out(tokens: U32, starts: I64, lookup: U32, bound: int, n_lead: int, ids: U32, kinds: U8) -> Any:
    """Canonical ids with one dead place between documents.

    Parameters
    ----------
    tokens
        uint32 (tokens,), `DEAD_ID` where dead.
    starts
        int64 (documents + 1,), ascending; equal ones (documents without a token) leave nothing behind.
    lookup
        uint32: canonical id by token id, or empty where token ids are hashed as they are.
    bound
        One more than the largest token id.
    n_lead
        Tokens at the beginning that are there to look back to.
    ids, kinds
        uint32, uint8 (2 * tokens,), written: `DEAD_ID` in dead places.

    Returns
    -------
    Places written, or -1 where a token id is out of range.
    """
    place = np.uint64(0)
    n_wrong = 0
    maps = lookup.size > 0
    most = np.uint32(min(bound, 0xFFFFFFFF))
    for document in range(starts.size - 1):
        begin, end = np.uint64(starts[document]), np.uint64(starts[document + 1])
        if begin == end:
            continue
        if place > np.uint64(0):
            ids[place], kinds[place] = DEAD_ID, APART
            place += np.uint64(1)
        shift = place - begin
        for position in range(begin, end):
            token = tokens[position]
            is_dead = token == DEAD_ID
            is_wrong = (token >= most) & (token != DEAD_ID)
            n_wrong += is_wrong
            known = np.uint32(0) if is_dead | is_wrong else token
            canonical = lookup[np.uint64(known)] if maps else known
            ids[shift + position] = DEAD_ID if is_dead else canonical
            kinds[shift + position] = np.uint8(APART) if position < np.uint64(n_lead) else np.uint8(is_dead)
        place = shift + end
    return -1 if n_wrong else np.int64(place)


@njit(cache=True, nogil=True)
def see_back(ids: U32, boundaries: I64, visible: int, closed: int, seen: U8) -> None:
    """How many ids, its own included, each place sees: at most 255, and 0 where dead.

    Parameters
    ----------
    ids
        uint32 (places,), `DEAD_ID` where dead, replacements made.
    boundaries, visible, closed
        As `HistoryRule` has them.
    seen
        uint8 (places,), written.
    """
    run = 0
    if boundaries.size == 0:
        for place in range(np.uint64(ids.size)):
            run = 0 if ids[place] == DEAD_ID else min(run + 1, 255)
            seen[place] = run
        return
    for place in range(np.uint64(ids.size)):
        token = ids[place]
        run = 0 if token == DEAD_ID else min(run + 1, 255)
        sees = run
        for which in range(boundaries.size):
            if np.int64(token) == boundaries[which]:
                sees = 1 if closed else run
                run = visible
                break
        seen[place] = sees


@njit(cache=True, nogil=True)
def mix_keys(ids: U32, seen: U8, multipliers: U64, lag: int, fill: Any, word_mask: Any, keys: U64) -> None:
    """Keys of one word: the exclusive-or over an n-gram of id times multiplier.

    Parameters
    ----------
    ids, seen
        uint32, uint8 (places,); `see_back` wrote `seen`.
    multipliers
        uint64 (order,), newest id first. Powers of two that keep ids apart pack them.
    lag
        How many places before its own a place's n-gram ends.
    fill
        Id where nothing is seen.
    keys
        uint64 (places,), written.
    """
    mask, filler = np.uint64(word_mask), np.uint64(fill)
    n_places: Any = np.uint64(ids.size)
    for first in range(np.uint64(0), n_places, np.uint64(MIX_PLACES)):
        stop: Any = min(first + np.uint64(MIX_PLACES), n_places)
        for place in range(first, stop):
            keys[place] = np.uint64(0)
        for which in range(multipliers.size):
            multiplier, back = multipliers[which], np.uint64(which + lag)
            filled = filler * multiplier
            whole: Any = max(first, min(back, stop))
            for place in range(first, whole):
                keys[place] ^= filled
            for place in range(whole, stop):
                sees = np.uint64(seen[place]) > back
                keys[place] ^= np.uint64(ids[place - back]) * multiplier if sees else filled
        if mask != np.uint64(0xFFFFFFFFFFFFFFFF):
            for place in range(first, stop):
                keys[place] &= mask


@njit(cache=True, nogil=True)
def spread_key(keys: U64, first_word: int, n_words: int) -> Any:
    """64 bits whose upper ones are even over keys: which partition a key of `n_words` words belongs to."""
    spread = keys[first_word] * _SPREAD
    for word in range(1, n_words):
        spread = (spread ^ (spread >> np.uint64(32)) ^ keys[first_word + word]) * _WORD_SPREAD
    return spread


@njit(cache=True, nogil=True)
def count_partitions(keys: U64, n_words: int, kinds: U8, shift: int, n_keys: I64) -> None:
    """Add to `n_keys` (n_partitions,) how many live keys each partition has.

    Parameters
    ----------
    keys
        uint64 (places * n_words,), least significant word of a key first.
    shift
        64 less the bits of a partition's number.
    """
    bits, one = np.uint64(shift), np.int64(1)
    if n_words == 1:
        for place in range(np.uint64(kinds.size)):
            n_keys[(keys[place] * _SPREAD) >> bits] += one if kinds[place] == LIVE else np.int64(0)
        return
    for place in range(kinds.size):
        if kinds[place] == LIVE:
            n_keys[spread_key(keys, place * n_words, n_words) >> bits] += one


@njit(cache=True, nogil=True)
def scatter_keys(
    keys: U64, kinds: U8, shift: int, first_partition: int, first: Any, cursors: U64, lines: U64, out: U64
) -> None:
    """Put each live key into its partition's next free place in `out`, partitions outside left out.

    Parameters
    ----------
    first
        uint64 (n_partitions,): the first place in each partition that is this caller's.
    cursors
        uint64 (n_partitions,): the next free one; advanced.
    lines
        uint64 (n_partitions * LINE_WORDS,), on a 64-byte line: keys gather here and leave eight at a time.
    out
        uint64, on a 64-byte line.
    """
    n_partitions = np.uint64(cursors.size)
    low_bits = np.uint64(LINE_WORDS - 1)
    one = np.uint64(1)
    begin = np.uint64(first_partition)
    out_at, lines_at = np.uint64(out.ctypes.data), np.uint64(lines.ctypes.data)
    for place in range(np.uint64(kinds.size)):
        if kinds[place] != LIVE:
            continue
        key = keys[place]
        partition = ((key * _SPREAD) >> np.uint64(shift)) - begin
        if partition >= n_partitions:
            continue
        cursor = cursors[partition]
        lane = cursor & low_bits
        line = partition * np.uint64(LINE_WORDS)
        lines[line + lane] = key
        cursors[partition] = cursor + one
        if lane == low_bits:
            begins = cursor - lane
            if begins >= first[partition]:
                copy_line_past_cache(lines_at + line * np.uint64(8), out_at + begins * np.uint64(8))
            else:
                for at in range(first[partition], cursor + one):
                    out[at] = lines[line + (at & low_bits)]
    fence()


@njit(cache=True, nogil=True)
def flush_keys(first: Any, cursors: U64, lines: U64, out: U64) -> None:
    """Write the keys that `scatter_keys` left in lines that are not full."""
    low_bits = np.uint64(LINE_WORDS - 1)
    for partition in range(cursors.size):
        cursor = cursors[partition]
        for at in range(max(cursor & ~low_bits, first[partition]), cursor):
            out[at] = lines[np.uint64(partition) * np.uint64(LINE_WORDS) + (at & low_bits)]


@njit(cache=True, nogil=True)
def gather_keys(
    keys: U64, n_words: int, kinds: U8, shift: int, first_partition: int, stop_partition: int, begin: int, out: U64,
    n_out: int,
) -> tuple[int, int]:  # fmt: skip
    """Copy the live keys of some partitions to `out` (keys * n_words,) from key `n_out` on, until it is full.

    Returns
    -------
    The place to go on from, and the keys in `out`.
    """
    room = out.size // n_words
    for place in range(begin, kinds.size):
        if kinds[place] != LIVE:
            continue
        partition = np.int64(spread_key(keys, place * n_words, n_words) >> np.uint64(shift))
        if first_partition <= partition < stop_partition:
            if n_out == room:
                return place, n_out
            for word in range(n_words):
                out[n_out * n_words + word] = keys[place * n_words + word]
            n_out += 1
    return kinds.size, n_out


@njit(cache=True, nogil=True)
def compact_runs(keys: U64, counts: Any) -> Any:
    """Leave each of the sorted `keys` once, in front, and how often it stood there in `counts`; returns how many."""
    one = np.uint64(1)
    last = np.uint64(keys.size) - one
    n_distinct, run_start = np.uint64(0), np.uint64(0)
    for place in range(np.uint64(0), last):
        key = keys[place]
        ends = key != keys[place + one]
        keys[n_distinct] = key
        counts[n_distinct] = place + one - run_start
        run_start = place + one if ends else run_start
        n_distinct += np.uint64(ends)
    keys[n_distinct] = keys[last]
    counts[n_distinct] = last + one - run_start
    return np.int64(n_distinct) + 1


@njit(cache=True, nogil=True)
def reduce_keys(keys: U64, modulus: int, is_fast: bool, is_signed: bool, rows: I64) -> None:
    """rows[i] = keys[i] mod modulus.

    Parameters
    ----------
    is_fast
        The modulus is above 2^13 and below 2^31 and keys are below 2^63: the quotient is then found in double
        precision, off by less than one, and the remainder is put right.
    is_signed
        Keys are 32-bit words with a sign, and remainders are not negative.
    """
    if is_fast:
        divisor, reciprocal = np.int64(modulus), 1.0 / np.float64(modulus)
        for place in range(np.uint64(keys.size)):
            key = np.int64(keys[place])
            row = key - np.int64(np.float64(key) * reciprocal) * divisor
            row = row + divisor if row < 0 else row
            rows[place] = row - divisor if row >= divisor else row
    elif is_signed:
        for place in range(np.uint64(keys.size)):
            rows[place] = np.int64(np.int32(keys[place])) % np.int64(modulus)
    else:
        for place in range(np.uint64(keys.size)):
            rows[place] = np.int64(keys[place] % np.uint64(modulus))


@njit(cache=True, nogil=True)
def scatter_weights(
    rows: I64, counts: Any, first_row: int, n_rows: int, page_bits: int, cursors: U64, lines: U64, previous: I64,
    n_pages: I64, pages: U64,
) -> None:  # fmt: skip
    """Put each row's weight into the pages of its window, as an entry: weight above, row within the window below.

    A window's entries fill page after page, each of which names the one before it, so that nothing need be counted
    first. Page 0 belongs to no window.

    Parameters
    ----------
    rows, counts
        int64 and uint32 or uint64 (n,): rows outside first_row … first_row + n_rows - 1 are left out.
    page_bits
        Entries of a page, as a power of two of 8 or more.
    cursors
        uint64 (n_windows,): the next free entry of each window, 0 before its first; advanced.
    lines
        uint64 (n_windows * LINE_WORDS,), on a 64-byte line.
    previous
        int64 (pages,): written for each new page, -1 at the first of its window.
    n_pages
        int64 (1,): pages in use, page 0 included; advanced.
    pages
        uint64 (pages * entries,), on a 64-byte line.
    """
    low_bits, in_window = np.uint64(LINE_WORDS - 1), np.uint64(WINDOW_ROWS - 1)
    one, bits, page_shift = np.uint64(1), np.uint64(WINDOW_BITS), np.uint64(page_bits)
    in_page = (one << page_shift) - one
    span, begin = np.uint64(n_rows), np.uint64(first_row)
    pages_at, lines_at = np.uint64(pages.ctypes.data), np.uint64(lines.ctypes.data)
    for place in range(np.uint64(rows.size)):
        row = np.uint64(rows[place]) - begin
        if row >= span:
            continue
        window = row >> bits
        cursor = cursors[window]
        if cursor & in_page == np.uint64(0):
            page = np.uint64(n_pages[0])
            n_pages[0] += 1
            previous[page] = -1 if cursor == np.uint64(0) else np.int64((cursor - one) >> page_shift)
            cursor = page << page_shift
        lane = cursor & low_bits
        line = window * np.uint64(LINE_WORDS)
        lines[line + lane] = (np.uint64(counts[place]) << bits) | (row & in_window)
        cursors[window] = cursor + one
        if lane == low_bits:
            copy_line_past_cache(lines_at + line * np.uint64(8), pages_at + (cursor - lane) * np.uint64(8))
    fence()


@njit(cache=True, nogil=True)
def flush_weights(cursors: Any, lines: U64, pages: U64) -> None:
    """Write the entries that `scatter_weights` left in lines that are not full."""
    low_bits = np.uint64(LINE_WORDS - 1)
    for window in range(cursors.size):
        cursor = cursors[window]
        for at in range(cursor & ~low_bits, cursor):
            pages[at] = lines[np.uint64(window) * np.uint64(LINE_WORDS) + (at & low_bits)]


@njit(cache=True, nogil=True)
def add_weights(pages: U64, previous: I64, cursors: U64, page_bits: int, window: int, counters: Any) -> None:
    """Add the entries of one window to its rows' counters.

    Parameters
    ----------
    counters
        uint32 or uint64 (2 * rows,): weights of the window's first row, then its n-grams, and so on.
    """
    cursor = cursors[window]
    if cursor == np.uint64(0):
        return
    one, page_shift, bits = np.uint64(1), np.uint64(page_bits), np.uint64(WINDOW_BITS)
    in_window = np.uint64(WINDOW_ROWS - 1)
    page = np.int64((cursor - one) >> page_shift)
    stop = cursor
    while page >= 0:
        for at in range(np.uint64(page) << page_shift, stop):
            entry = pages[at]
            row = (entry & in_window) << one
            counters[row] += entry >> bits
            counters[row + one] += one
        page = previous[page]
        stop = np.uint64(page + 1) << page_shift


@njit(cache=True, nogil=True)
def tally_rows(
    counters: Any, few: I64, by_hits: I64, by_ngrams: I64, large_hits: Any, large_ngrams: Any, n_large: I64,
    totals: U64,
) -> None:  # fmt: skip
    """Histograms and sums of rows' counters, which are set to 0.

    Parameters
    ----------
    counters
        As `add_weights` has them.
    few
        int64 (TALLY_LANES, FEW * FEW): rows by hits and n-grams together, for values below `FEW`; added to.
    by_hits, by_ngrams
        int64: all other rows by their hits, and by their n-grams; added to.
    large_hits, large_ngrams
        Values past those histograms, one a row.
    n_large
        int64 (2,): values in each of the two; advanced.
    totals
        uint64 (1,): hits of the rows that own two n-grams or more and are not among the few; added to.
    """
    one, lanes, least = np.uint64(1), np.uint64(TALLY_LANES - 1), np.uint64(FEW)
    for row in range(np.uint64(counters.size // 2)):
        at = row << one
        hits, n_ngrams = np.uint64(counters[at]), np.uint64(counters[at + one])
        if (hits | n_ngrams) < least:
            # Most rows have one of a few values: neighbours must not wait for each other's sum.
            few[row & lanes, hits * least + n_ngrams] += 1
            continue
        if hits < np.uint64(by_hits.size):
            by_hits[hits] += 1
        else:
            large_hits[n_large[0]] = hits
            n_large[0] += 1
        if n_ngrams < np.uint64(by_ngrams.size):
            by_ngrams[n_ngrams] += 1
        else:
            large_ngrams[n_large[1]] = n_ngrams
            n_large[1] += 1
        if n_ngrams > one:
            totals[0] += hits
    counters[:] = 0


@njit(cache=True, nogil=True)
def rows_of_keys(
    keys: U64, first_column: I64, moduli: I64, reciprocals: Any, offsets: I64, start: int, stop: int, rows: I64
) -> None:
    """Rows of tokens start … stop - 1 from their keys, for moduli as `reduce_keys` takes them for fast.

    Parameters
    ----------
    keys
        uint64 (tokens * places,): a place is a layer and order whose heads share the key.
    first_column
        int64 (places + 1,): where each place's columns begin, over all layers.
    moduli, reciprocals, offsets
        int64, float64, int64 (columns,).
    rows
        int64 (tokens * columns,), written for these tokens.
    """
    n_places, n_columns = first_column.size - 1, moduli.size
    for token in range(start, stop):
        mine = rows[token * n_columns : (token + 1) * n_columns]
        for place in range(n_places):
            key = np.int64(keys[token * n_places + place])
            as_double = np.float64(key)
            for column in range(np.uint64(first_column[place]), np.uint64(first_column[place + 1])):
                divisor = moduli[column]
                row = key - np.int64(as_double * reciprocals[column]) * divisor
                row = row + divisor if row < 0 else row
                mine[column] = (row - divisor if row >= divisor else row) + offsets[column]
