"""Numba kernels of every hash family. Unchecked: `hashing.py` validates, `reference.py` is the slow twin.

Where the heads of an order share one mix x (xor-multiply, identity), eight columns at a time reduce that x. Where every
column has a sum of its own (polynomial, salted affine), eight sums at a time are made in one vector and reduced there;
`vectors.py` has both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from engram_tables.address.vectors import (
    BLOCK,
    LANES,
    copy_line_past_cache,
    fence,
    reduce_eight,
    reduce_eight_past_cache,
    sum_eight,
    sum_eight_narrow,
    sum_eight_narrow_past_cache,
)

_WHOLE_WORD = np.uint64(2**64 - 1)
# How a kernel takes remainders: see `hash_tokens`.
DIVIDE, DIVIDE_SIGNED, REDUCE, REDUCE_PAST_CACHE = 0, 1, 2, 3


class HashConstants(NamedTuple):
    """The arrays a kernel reads; columns are held in groups of eight.

    Where an order's heads share a mix, a group never spans two orders. Arrays that the family has no use for are empty.

    Attributes
    ----------
    fill
        uint64: id where the history is missing.
    boundaries
        int64 (boundaries,).
    visible, closed
        int64, 0 or 1: whether a boundary is seen by its successor, and whether it sees nothing before itself.
    replaced
        int64 (ranges, 2): half-open, ascending ranges of ids that become `replacement` (int64).
    max_order
        int64: length of a window.
    multipliers
        uint64 (layers, orders, max_order): of a shared mix, by look-back.
    first_back, stop_back
        int64 (orders,): the look-backs that an order adds to its mix.
    extends
        bool (orders,): whether it adds them to the mix of the order before it, rather than to nothing.
    word_mask
        uint64: bits of a mix that are kept.
    coefficients
        uint64 (layers · groups · max_order · 8,): of sums per column, by look-back.
    narrow
        bool: whether they are all below 2^32.
    id_bits, key_words
        int64: of keys that hold ids.
    orders
        int64 (orders,), ascending.
    group_order, group_column, group_valid
        int64 (groups,): index of the group's order, its first column, and how many of the eight lanes are columns.
    moduli
        uint64 (layers · groups · 8,), unused lanes 1.
    reciprocals
        float64 (layers · groups · 8,): 1 / modulus.
    offsets
        int64 (layers · groups · 8,).
    """

    fill: np.uint64
    boundaries: npt.NDArray[np.int64]
    visible: np.int64
    closed: np.int64
    replaced: npt.NDArray[np.int64]
    replacement: np.int64
    max_order: np.int64
    multipliers: npt.NDArray[np.uint64]
    first_back: npt.NDArray[np.int64]
    stop_back: npt.NDArray[np.int64]
    extends: npt.NDArray[np.bool_]
    word_mask: np.uint64
    coefficients: npt.NDArray[np.uint64]
    narrow: np.bool_
    id_bits: np.int64
    key_words: np.int64
    orders: npt.NDArray[np.int64]
    group_order: npt.NDArray[np.int64]
    group_column: npt.NDArray[np.int64]
    group_valid: npt.NDArray[np.int64]
    moduli: npt.NDArray[np.uint64]
    reciprocals: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def hash_tokens(ids, dead, history, start, stop, constants, n_columns, form, rows, keys):  # type: ignore[no-untyped-def]
    """Rows and keys of positions start … stop of a run of tokens.

    Parameters
    ----------
    ids
        uint32 or int64 (tokens,).
    dead
        bool (tokens,), or empty where no token is dead.
    history
        int64 (max_order - 1,): what stands before the tokens, -1 where dead or before the sequence.
    start, stop
        Positions among the tokens, `start` a multiple of `BLOCK`; look-backs read before it, so any split
        gives the same result.
    form
        `DIVIDE` for moduli of any size, `DIVIDE_SIGNED` for mixes of 32 bits, `REDUCE` where all moduli are within the
        bounds above, `REDUCE_PAST_CACHE` where besides every group is full, coefficients are narrow, and `rows` and
        `keys` begin on a 64-byte line.
    rows
        int64 (tokens · layers · columns,), written for these positions alone.
    keys
        uint64 (tokens · layers · orders · words,), likewise, least significant word first.
    """
    max_order = constants.max_order
    lead = max_order - 1
    stream = np.empty(lead + BLOCK, dtype=np.int64)
    windows = np.empty((max_order, BLOCK), dtype=np.uint64)
    mixes, doubles = _block_buffers(constants)
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        n_before = max(0, lead - first)
        stream[:n_before] = history[lead - n_before :]
        for place in range(n_before, lead + n):
            position = first - lead + place
            stream[place] = -1 if dead.size and dead[position] else np.int64(ids[position])
        if constants.replaced.size:
            _replace_ids(stream, lead + n, constants.replaced, constants.replacement)
        _fill_windows(stream, n, constants, windows)
        _hash_block(windows, n, first, constants, n_columns, form, mixes, doubles, rows, keys)
    fence()


@njit(cache=True, nogil=True)
def hash_ids(ids, dead, start, stop, fill, low, high, replacement, modulus, offset, rows, keys):  # type: ignore[no-untyped-def]
    """Rows and keys of positions start … stop where a row is the id itself modulo `modulus`: one layer, one column.

    Parameters
    ----------
    ids
        uint32 or int64 (tokens,); those from `low` to `high` - 1 become `replacement`.
    dead
        bool (tokens,), or empty; the dead become `fill`.
    rows, keys
        int64 and uint64 (tokens,).
    """
    for position in range(start, stop):
        token = np.int64(ids[position])
        if low <= token < high:
            token = replacement
        if dead.size and dead[position]:
            token = fill
        keys[position] = token
        # Nearly always the id is a row as it is, and a division costs more than all the rest.
        rows[position] = (token if token < modulus else token % modulus) + offset


@njit(cache=True, nogil=True)
def hash_ngrams(ngrams, start, stop, constants, n_columns, form, rows, keys):  # type: ignore[no-untyped-def]
    """Rows and keys of n-grams that stand by themselves; `constants` are those of one layer and one order.

    Parameters
    ----------
    ngrams
        uint32 (n, order), oldest token first.
    rows
        int64 (n · n_columns,), written for start … stop alone.
    keys
        uint64 (n · words,), likewise.
    """
    order = ngrams.shape[1]
    windows = np.empty((order, BLOCK), dtype=np.uint64)
    mixes, doubles = _block_buffers(constants)
    literal = constants.boundaries.size == 0 and constants.replaced.size == 0
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        if literal:
            for back in range(order):
                for i in range(n):
                    windows[back, i] = ngrams[first + i, order - 1 - back]
        else:
            _fill_ngram_windows(ngrams, first, n, constants, windows)
        _hash_block(windows, n, first, constants, n_columns, form, mixes, doubles, rows, keys)


@njit(cache=True, nogil=True)
def _block_buffers(constants):  # type: ignore[no-untyped-def]
    """Mixes, which are the keys, and the same as doubles; packed ids in their place where columns have own sums."""
    n_layers = constants.moduli.size // (LANES * constants.group_order.size)
    n_keys = constants.orders.size * constants.key_words
    mixes = np.empty((n_layers, n_keys, BLOCK), dtype=np.uint64)
    doubles = np.empty((n_layers, 0 if constants.coefficients.size else n_keys, BLOCK), dtype=np.float64)
    return mixes, doubles


@njit(cache=True, nogil=True)
def _replace_ids(stream, n, replaced, replacement):  # type: ignore[no-untyped-def]
    """Put `replacement` where one of the ascending ranges holds the id; dead ids (-1) lie in none."""
    n_ranges = replaced.shape[0]
    for place in range(n):
        token = stream[place]
        low, high = 0, n_ranges
        while low < high:
            middle = (low + high) // 2
            if replaced[middle, 1] <= token:
                low = middle + 1
            else:
                high = middle
        if low < n_ranges and replaced[low, 0] <= token:
            stream[place] = replacement


@njit(cache=True, nogil=True)
def _fill_windows(stream, n, constants, windows):  # type: ignore[no-untyped-def]
    """windows[back, i]: the id `back` before token i of the stream, or the fill where that is out of sight."""
    lead = windows.shape[0] - 1
    fill, boundaries, visible, closed = constants.fill, constants.boundaries, constants.visible, constants.closed
    # How many ids, its own included, the token at hand sees; and how many its successor sees besides its own.
    live = np.empty(BLOCK, dtype=np.int64)
    run = 0
    if boundaries.size == 0:
        for place in range(lead):
            run = run + 1 if stream[place] >= 0 else 0
        for i in range(n):
            run = run + 1 if stream[lead + i] >= 0 else 0
            live[i] = run
    else:
        for place in range(lead + n):
            token = stream[place]
            run = run + 1 if token >= 0 else 0
            seen = run
            for which in range(boundaries.size):
                if token == boundaries[which]:
                    seen = 1 if closed else run
                    run = visible
                    break
            if place >= lead:
                live[place - lead] = seen
    for back in range(lead + 1):
        shifted, seen_ids = stream[lead - back :], windows[back]
        for i in range(n):
            token_id = np.uint64(shifted[i])
            seen_ids[i] = token_id if back < live[i] else fill


@njit(cache=True, nogil=True)
def _fill_ngram_windows(ngrams, first, n, constants, windows):  # type: ignore[no-untyped-def]
    """The same for n-grams that stand by themselves, oldest token first."""
    order = ngrams.shape[1]
    fill, boundaries, visible, closed = constants.fill, constants.boundaries, constants.visible, constants.closed
    stream = np.empty(order, dtype=np.int64)
    for i in range(n):
        for back in range(order):
            stream[back] = ngrams[first + i, order - 1 - back]
        _replace_ids(stream, order, constants.replaced, constants.replacement)
        is_open = True
        for back in range(order):
            token, is_boundary = stream[back], False
            for which in range(boundaries.size):
                is_boundary |= token == boundaries[which]
            hidden = not is_open or (back > 0 and is_boundary and not visible)
            windows[back, i] = fill if hidden else np.uint64(token)
            is_open = is_open and not (is_boundary and (back > 0 or closed))


@njit(cache=True, nogil=True)
def _hash_block(windows, n, first, constants, n_columns, form, mixes, doubles, rows, keys):  # type: ignore[no-untyped-def]
    """Mix, then reduce, `n` windows whose results stand from `first` on."""
    past_cache = form == REDUCE_PAST_CACHE
    if constants.coefficients.size:
        for layer in range(mixes.shape[0]):
            _pack_ids(windows, n, constants, mixes[layer])
        _store_keys(mixes, n, first, past_cache, keys)
        if form == DIVIDE:
            _divide_sums(windows, n, first, constants, n_columns, rows)
        else:
            _reduce_sums(windows, n, first, constants, n_columns, past_cache, rows)
        return
    for layer in range(mixes.shape[0]):
        _mix_windows(windows, n, constants, constants.multipliers[layer], mixes[layer], doubles[layer])
    _store_keys(mixes, n, first, past_cache, keys)
    if form in (DIVIDE, DIVIDE_SIGNED):
        _divide_block(mixes, n, first, constants, n_columns, form == DIVIDE_SIGNED, rows)
    else:
        _reduce_block(mixes, doubles, n, first, constants, n_columns, past_cache, rows)


@njit(cache=True, nogil=True)
def _pack_ids(windows, n, constants, packed):  # type: ignore[no-untyped-def]
    """packed[order · words + word, i]: the ids of an n-gram, newest in the lowest bits."""
    id_bits, n_words = constants.id_bits, constants.key_words
    for order_idx in range(constants.orders.size):
        words = packed[order_idx * n_words : (order_idx + 1) * n_words]
        words[:, :n] = 0
        for back in range(constants.orders[order_idx]):
            seen = windows[back]
            word, shift = back * id_bits // 64, np.uint64(back * id_bits % 64)
            low = words[word]
            for i in range(n):
                low[i] |= seen[i] << shift
            if shift + np.uint64(id_bits) > np.uint64(64):
                high, unshift = words[word + 1], np.uint64(64) - shift
                for i in range(n):
                    high[i] |= seen[i] >> unshift


@njit(cache=True, nogil=True)
def _store_keys(mixes, n, first, past_cache, keys):  # type: ignore[no-untyped-def]
    """Transpose `n` mixes per layer and order into keys, position by position."""
    n_keys = mixes.shape[0] * mixes.shape[1]
    by_position = np.empty(n_keys * BLOCK, dtype=np.uint64)
    flat = mixes.reshape(-1)
    for column in range(n_keys):
        mixed = flat[column * BLOCK : (column + 1) * BLOCK]
        place = column
        for i in range(n):
            by_position[place] = mixed[i]
            place += n_keys
    start, stop = first * n_keys, (first + n) * n_keys
    if past_cache:
        source, out = by_position.ctypes.data, keys.ctypes.data + start * 8
        for line in range(n_keys * n // LANES):
            copy_line_past_cache(source + line * (LANES * 8), out + line * (LANES * 8))
        start += n_keys * n // LANES * LANES
    for place in range(start, stop):
        keys[place] = by_position[place - first * n_keys]


@njit(cache=True, nogil=True)
def _mix_windows(windows, n, constants, multipliers, mixes, doubles):  # type: ignore[no-untyped-def]
    """mixes[order, i]: the exclusive-or of id times multiplier over an order's look-backs, and the same as a double."""
    for order in range(constants.orders.size):
        mixed, as_double = mixes[order], doubles[order]
        back = constants.first_back[order]
        seen, multiplier = windows[back], multipliers[order, back]
        if constants.extends[order]:
            before = mixes[order - 1]
            for i in range(n):
                mixed[i] = before[i] ^ (seen[i] * multiplier)
        else:
            for i in range(n):
                mixed[i] = seen[i] * multiplier
        for later in range(back + 1, constants.stop_back[order]):
            seen, multiplier = windows[later], multipliers[order, later]
            for i in range(n):
                mixed[i] ^= seen[i] * multiplier
        if constants.word_mask != _WHOLE_WORD:
            for i in range(n):
                mixed[i] &= constants.word_mask
        for i in range(n):
            as_double[i] = np.float64(np.int64(mixed[i]))


@njit(cache=True, nogil=True)
def _reduce_block(mixes, doubles, n, first, constants, n_columns, past_cache, rows):  # type: ignore[no-untyped-def]
    """Rows of `n` mixes per layer and order, eight columns at a time, without a division, in the order of memory.

    A group that is not full is written whole, and what spills over is written again by the next one: only where the
    last positions would spill out of this block are its columns copied one by one.
    """
    n_layers, n_orders, _ = mixes.shape
    n_groups = constants.group_order.size
    mix_rows = np.empty(n_layers * n_groups, dtype=np.uint64)
    for flat in range(mix_rows.size):
        mix_rows[flat] = (flat // n_groups * n_orders + constants.group_order[flat % n_groups]) * (BLOCK * 8)
    mixes_at, doubles_at = np.uint64(mixes.ctypes.data), np.uint64(doubles.ctypes.data)
    moduli_at, offsets_at = np.uint64(constants.moduli.ctypes.data), np.uint64(constants.offsets.ctypes.data)
    reciprocals_at = np.uint64(constants.reciprocals.ctypes.data)
    out_at = np.uint64(rows.ctypes.data + first * n_layers * n_columns * 8)
    word, line = np.uint64(8), np.uint64(LANES * 8)
    if past_cache:
        for i in range(np.uint64(n)):
            shift = np.uint64(0)
            for flat in range(np.uint64(mix_rows.size)):
                at = mix_rows[flat] + i * word
                reduce_eight_past_cache(
                    mixes_at + at, doubles_at + at, moduli_at + shift, reciprocals_at + shift, offsets_at + shift,
                    out_at + shift,
                )  # fmt: skip
                shift += line
            out_at += shift
        return
    if n_columns == n_groups * LANES:
        for i in range(np.uint64(n)):
            shift = np.uint64(0)
            for flat in range(np.uint64(mix_rows.size)):
                at = mix_rows[flat] + i * word
                reduce_eight(
                    mixes_at + at, doubles_at + at, moduli_at + shift, reciprocals_at + shift, offsets_at + shift,
                    out_at + shift,
                )  # fmt: skip
                shift += line
            out_at += shift
        return
    steps = _group_bytes(constants, n_layers)
    n_direct = _n_direct(constants, n, n_layers * n_columns)
    for i in range(np.uint64(n_direct)):
        shift = np.uint64(0)
        for flat in range(np.uint64(mix_rows.size)):
            at = mix_rows[flat] + i * word
            reduce_eight(
                mixes_at + at, doubles_at + at, moduli_at + shift, reciprocals_at + shift, offsets_at + shift, out_at
            )
            shift += line
            out_at += steps[flat]
    scratch = np.empty(LANES, dtype=np.int64)
    column = (first + n_direct) * n_layers * n_columns
    for i in range(np.uint64(n_direct), np.uint64(n)):
        shift = np.uint64(0)
        for flat in range(mix_rows.size):
            at = mix_rows[flat] + i * word
            reduce_eight(
                mixes_at + at, doubles_at + at, moduli_at + shift, reciprocals_at + shift, offsets_at + shift,
                np.uint64(scratch.ctypes.data),
            )  # fmt: skip
            for lane in range(constants.group_valid[flat % n_groups]):
                rows[column] = scratch[lane]
                column += 1
            shift += line


@njit(cache=True, nogil=True)
def _group_bytes(constants, n_layers):  # type: ignore[no-untyped-def]
    """Bytes of rows of each group, layer by layer."""
    n_groups = constants.group_valid.size
    steps = np.empty(n_layers * n_groups, dtype=np.uint64)
    for flat in range(steps.size):
        steps[flat] = constants.group_valid[flat % n_groups] * 8
    return steps


@njit(cache=True, nogil=True)
def _n_direct(constants, n, n_rows):  # type: ignore[no-untyped-def]
    """How many of `n` positions, of `n_rows` rows each, may write whole groups without leaving the block."""
    n_spilled = LANES - constants.group_valid[-1]
    return max(0, n - (n_spilled + n_rows - 1) // n_rows)


@njit(cache=True, nogil=True)
def _divide_block(mixes, n, first, constants, n_columns, is_signed, rows):  # type: ignore[no-untyped-def]
    """The same for moduli of any size, with the processor's division; `is_signed` mixes are 32-bit words."""
    n_layers, n_groups = mixes.shape[0], constants.group_order.size
    for i in range(n):
        for layer in range(n_layers):
            for group in range(n_groups):
                mix = mixes[layer, constants.group_order[group], i]
                column = ((first + i) * n_layers + layer) * n_columns + constants.group_column[group]
                for lane in range(constants.group_valid[group]):
                    flat = (layer * n_groups + group) * LANES + lane
                    if is_signed:
                        remainder = np.int64(np.int32(mix)) % np.int64(constants.moduli[flat])
                    else:
                        remainder = np.int64(mix % constants.moduli[flat])
                    rows[column + lane] = remainder + constants.offsets[flat]


@njit(cache=True, nogil=True)
def _reduce_sums(windows, n, first, constants, n_columns, past_cache, rows):  # type: ignore[no-untyped-def]
    """Rows of `n` windows whose columns have sums of their own, eight columns at a time, without a division."""
    n_groups = constants.group_order.size
    n_flat = constants.moduli.size // LANES
    n_layers = n_flat // n_groups
    n_back = np.uint64(constants.max_order)
    windows_at, coefficients_at = np.uint64(windows.ctypes.data), np.uint64(constants.coefficients.ctypes.data)
    moduli_at, offsets_at = np.uint64(constants.moduli.ctypes.data), np.uint64(constants.offsets.ctypes.data)
    reciprocals_at = np.uint64(constants.reciprocals.ctypes.data)
    out_at = np.uint64(rows.ctypes.data + first * n_layers * n_columns * 8)
    word, line = np.uint64(8), np.uint64(LANES * 8)
    steps = _group_bytes(constants, n_layers)
    narrow = constants.narrow
    n_direct = n if past_cache else _n_direct(constants, n, n_layers * n_columns)
    for i in range(np.uint64(n_direct)):
        shift, coefficient_shift = np.uint64(0), np.uint64(0)
        for flat in range(np.uint64(n_flat)):
            if past_cache:
                sum_eight_narrow_past_cache(
                    windows_at + i * word, n_back, coefficients_at + coefficient_shift,
                    moduli_at + shift, reciprocals_at + shift, offsets_at + shift, out_at,
                )  # fmt: skip
            elif narrow:
                sum_eight_narrow(
                    windows_at + i * word, n_back, coefficients_at + coefficient_shift,
                    moduli_at + shift, reciprocals_at + shift, offsets_at + shift, out_at,
                )  # fmt: skip
            else:
                sum_eight(
                    windows_at + i * word, n_back, coefficients_at + coefficient_shift,
                    moduli_at + shift, reciprocals_at + shift, offsets_at + shift, out_at,
                )  # fmt: skip
            shift += line
            coefficient_shift += n_back * line
            out_at += steps[flat]
    scratch = np.empty(LANES, dtype=np.int64)
    column = (first + n_direct) * n_layers * n_columns
    for i in range(np.uint64(n_direct), np.uint64(n)):
        shift, coefficient_shift = np.uint64(0), np.uint64(0)
        for flat in range(n_flat):
            sum_eight(
                windows_at + i * word, n_back, coefficients_at + coefficient_shift,
                moduli_at + shift, reciprocals_at + shift, offsets_at + shift, np.uint64(scratch.ctypes.data),
            )  # fmt: skip
            for lane in range(constants.group_valid[flat % n_groups]):
                rows[column] = scratch[lane]
                column += 1
            shift += line
            coefficient_shift += n_back * line


@njit(cache=True, nogil=True)
def _divide_sums(windows, n, first, constants, n_columns, rows):  # type: ignore[no-untyped-def]
    """The same for moduli of any size, with the processor's division."""
    n_groups = constants.group_order.size
    n_layers, max_order = constants.moduli.size // (LANES * n_groups), constants.max_order
    for i in range(n):
        for layer in range(n_layers):
            for group in range(n_groups):
                column = ((first + i) * n_layers + layer) * n_columns + constants.group_column[group]
                for lane in range(constants.group_valid[group]):
                    flat = layer * n_groups + group
                    total = np.uint64(0)
                    for back in range(max_order):
                        at = (flat * max_order + back) * LANES + lane
                        total += windows[back, i] * constants.coefficients[at]
                    at = flat * LANES + lane
                    rows[column + lane] = np.int64(total % constants.moduli[at]) + constants.offsets[at]
