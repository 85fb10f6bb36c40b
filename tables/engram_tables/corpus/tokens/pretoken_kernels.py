"""Compiled loops from UTF-8 bytes to token ids. Callers validate: nothing here checks a bound.

A *segment* is a stretch of the text between two added tokens, or an added token. A *piece* is what the pre-tokenizer
leaves; pieces are looked up in two caches (up to 15 bytes, 16 to 64 bytes) and merged by byte-pair encoding when
they are in neither. What a cache holds decides the time and never the result: keys are compared whole.

`text` ends with `PADDING` bytes that belong to no segment, since keys are read eight bytes at a time. Numba's cache
watches this file alone: touch it when a constant or an intrinsic that it imports changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from engram_tables.corpus.tokens.pretokens import MATCH, PAGE_BITS, SKIPS, STOP, Scanner
from engram_tables.corpus.tokens.scan_memory import (
    BLOCK_PIECES,
    BLOCK_WORDS,
    LONG_BYTES,
    LONG_ENTRY_WORDS,
    LONG_IDS,
    SCAN_SYMBOLS,
    SHORT_BYTES,
    SHORT_IDS,
    SHORT_SET_WORDS,
    Caches,
    Model,
)
from engram_tables.memory import prefetch

DONE, MORE_SCRATCH = 0, 1
AT_SEGMENT, AT_BYTE, AT_RUN, AT_OUT, NEEDED, N_PIECES, N_MISSES = range(7)
STATE_WORDS = 8
Int = Any
Word = Any
"""int64 and uint64 inside compiled code."""
U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[Word]
I64 = npt.NDArray[np.int64]

# Every call between kernels would count references to some twenty arrays, which made a piece five times slower
# (2026-11): nothing here makes or keeps an array, so that the counts are left out.
_options: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_kernel: Any = njit(**_options)
_inlined: Any = njit(**_options, forceinline=True)

_NONE = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW = np.uint64(0xFFFFFFFF)
_K1 = np.uint64(0x9E3779B97F4A7C15)
_K2 = np.uint64(0xC2B2AE3D27D4EB4F)
_MATCH, _SKIPS, _STOP, _STATE = (np.uint64(value) for value in (MATCH, SKIPS, STOP, SKIPS - 1))
_SIX = np.uint64(0x3F)
_0, _1, _8, _29, _32, _56, _64 = (np.uint64(value) for value in (0, 1, 8, 29, 32, 56, 64))


def _type_load_word(_typing: Any, _address: Any) -> Any:
    """The eight bytes at an address of any alignment, the first in the lowest place."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        load = builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))
        load.align = 1
        return load

    return types.uint64(types.uint64), emit


_load_word: Any = intrinsic(_type_load_word)


def _type_trailing_zeros(_typing: Any, _word: Any) -> Any:
    """Zeros below the lowest one; 64 for zero."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), emit


_trailing_zeros: Any = intrinsic(_type_trailing_zeros)


@_inlined
def _mask(n_bytes: Word) -> Word:
    """Ones in the lowest `n_bytes` bytes, 1 to 8."""
    return _NONE >> (_64 - (n_bytes << np.uint64(3)))


@_kernel
def hash_piece(address: Word, n_bytes: Word) -> Word:
    """Hash of 1 byte or more; never all ones."""
    value = n_bytes * _K1
    at = _0
    while n_bytes - at > _8:
        value = (value ^ _load_word(address + at)) * _K2
        value ^= value >> _29
        at += _8
    value = (value ^ (_load_word(address + at) & _mask(n_bytes - at))) * _K2
    value ^= value >> _32
    value *= _K1
    return value & ~_1


@_kernel
def _same_bytes(left: Word, right: Word, n_bytes: Word) -> Any:
    at = _0
    while n_bytes - at > _8:
        if _load_word(left + at) != _load_word(right + at):
            return False
        at += _8
    return (_load_word(left + at) ^ _load_word(right + at)) & _mask(n_bytes - at) == _0


@_kernel
def find_whole(address: Word, n_bytes: Word, model: Model) -> Int:
    """Id of the token that is the piece itself, −1 if there is none."""
    if model.whole_shift == 64:
        return np.int64(-1)
    hashed = hash_piece(address, n_bytes)
    slot_mask = np.uint64(len(model.whole) // 2 - 1)
    slot = hashed >> np.uint64(model.whole_shift)
    base = np.uint64(model.whole_bytes.ctypes.data)
    while model.whole[slot << _1] != _NONE:
        if model.whole[slot << _1] == hashed:
            value = model.whole[(slot << _1) + _1]
            entry = np.int64(value & _LOW)
            start = np.int64(value >> _32)
            if np.uint64(model.whole_stops[entry] - start) == n_bytes and _same_bytes(
                base + np.uint64(start), address, n_bytes
            ):
                return np.int64(model.whole_ids[entry])
        slot = (slot + _1) & slot_mask
    return np.int64(-1)


@_inlined
def _find_merge(left: Int, right: Int, model: Model) -> Word:
    """Rank << 32 | merged id of a pair, all ones if it does not merge."""
    key = np.uint64(left) << _32 | np.uint64(right)
    slot_mask = np.uint64(len(model.merges) // 2 - 1)
    slot = (key * _K1) >> np.uint64(model.merge_shift)
    while True:
        found = model.merges[slot << _1]
        if found == key:
            return model.merges[(slot << _1) + _1]
        if found == _NONE:
            return _NONE
        slot = (slot + _1) & slot_mask


@_kernel
def fill_merges(keys: U64, values: U64, table: U64, shift: Int) -> None:
    """Enter pairs, each once, into an empty table of `Model.merges`."""
    slot_mask = np.uint64(len(table) // 2 - 1)
    for at in range(len(keys)):
        slot = (keys[at] * _K1) >> np.uint64(shift)
        while table[slot << _1] != _NONE:
            slot = (slot + _1) & slot_mask
        table[slot << _1] = keys[at]
        table[(slot << _1) + _1] = values[at]


@_kernel
def fill_whole(whole_bytes: U8, stops: I64, table: U64, shift: Int) -> None:
    """Enter pieces, each once and none empty, into an empty table of `Model.whole`."""
    slot_mask = np.uint64(len(table) // 2 - 1)
    base = np.uint64(whole_bytes.ctypes.data)
    start = np.int64(0)
    for entry in range(len(stops)):
        hashed = hash_piece(base + np.uint64(start), np.uint64(stops[entry] - start))
        slot = hashed >> np.uint64(shift)
        while table[slot << _1] != _NONE:
            slot = (slot + _1) & slot_mask
        table[slot << _1] = hashed
        table[(slot << _1) + _1] = np.uint64(start) << _32 | np.uint64(entry)
        start = stops[entry]


@_inlined
def _set_pair(left: Int, right: Int, model: Model, caches: Caches) -> None:
    """Note how two neighbours merge: rank << 32 | place, and the merged id."""
    found = _find_merge(caches.symbols[left], caches.symbols[right], model)
    caches.heap[left] = _NONE if found == _NONE else (found & ~_LOW) | np.uint64(left)
    caches.merged[left] = np.uint32(found & _LOW)


@_kernel
def _merge_by_search(n_symbols: Int, model: Model, caches: Caches) -> Int:
    """Merge the best pair, leftmost first, until none is left; the number of symbols that remain."""
    symbols, before, after, pairs = caches.symbols, caches.before, caches.after, caches.heap
    for at in range(n_symbols):
        before[at] = at - 1
        after[at] = at + 1
    for at in range(n_symbols - 1):
        _set_pair(at, at + 1, model, caches)
    while True:
        best = _NONE
        # Places keep their number until the end: nothing to move, and a plain minimum, which compiles to vectors.
        for at in range(n_symbols - 1):
            best = min(best, pairs[at])
        if best == _NONE:
            break
        left = np.int64(best & _LOW)
        right = np.int64(after[left])
        symbols[left] = caches.merged[left]
        before[right] = -2
        pairs[left] = _NONE
        if right < n_symbols - 1:
            pairs[right] = _NONE
        follower = np.int64(after[right])
        after[left] = follower
        if follower < n_symbols:
            before[follower] = left
            _set_pair(left, follower, model, caches)
        if before[left] >= 0:
            _set_pair(np.int64(before[left]), left, model, caches)
    return _close_up(n_symbols, symbols, before)


@_kernel
def _close_up(n_symbols: Int, symbols: U32, before: I32) -> Int:
    """Move what is left together; the number of symbols."""
    n_left = 0
    for at in range(n_symbols):
        if before[at] > -2:
            symbols[n_left] = symbols[at]
            n_left += 1
    return n_left


@_kernel
def _push(heap: U64, n_heap: Int, value: Word) -> Int:
    at = n_heap
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] <= value:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = value
    return n_heap + 1


@_kernel
def _pop(heap: U64, n_heap: Int) -> Int:
    """Remove the least value, which is `heap[0]`."""
    n_heap -= 1
    value = heap[n_heap]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= n_heap:
            break
        if child + 1 < n_heap and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value
    return n_heap


@_kernel
def _merge_by_heap(n_symbols: Int, model: Model, caches: Caches) -> Int:
    """The same for long pieces: pairs wait in a heap by rank, then place; an outdated one is dropped when it comes."""
    symbols, before, after, heap = caches.symbols, caches.before, caches.after, caches.heap
    n_heap = 0
    for at in range(n_symbols):
        before[at] = at - 1
        after[at] = at + 1
        if at + 1 < n_symbols:
            found = _find_merge(symbols[at], symbols[at + 1], model)
            if found != _NONE:
                n_heap = _push(heap, n_heap, (found & ~_LOW) | np.uint64(at))
    while n_heap > 0:
        top = heap[0]
        n_heap = _pop(heap, n_heap)
        left = np.int64(top & _LOW)
        right = np.int64(after[left])
        if before[left] < -1 or right >= n_symbols:
            continue
        found = _find_merge(symbols[left], symbols[right], model)
        if found == _NONE or found >> _32 != top >> _32:
            continue
        symbols[left] = np.uint32(found & _LOW)
        before[right] = -2
        follower = np.int64(after[right])
        after[left] = follower
        if follower < n_symbols:
            before[follower] = left
            found = _find_merge(symbols[left], symbols[follower], model)
            if found != _NONE:
                n_heap = _push(heap, n_heap, (found & ~_LOW) | np.uint64(left))
        ahead = np.int64(before[left])
        if ahead >= 0:
            found = _find_merge(symbols[ahead], symbols[left], model)
            if found != _NONE:
                n_heap = _push(heap, n_heap, (found & ~_LOW) | np.uint64(ahead))
    return _close_up(n_symbols, symbols, before)


@_kernel
def _merge_piece(text: U8, start: Int, stop: Int, model: Model, caches: Caches) -> Int:
    """Ids of a piece, into `caches.symbols`; their number."""
    symbols = caches.symbols
    whole = find_whole(np.uint64(text.ctypes.data) + np.uint64(start), np.uint64(stop - start), model)
    if whole >= 0:
        symbols[0] = np.uint32(whole)
        return 1
    for at in range(stop - start):
        symbols[at] = model.byte_ids[text[start + at]]
    if stop - start <= SCAN_SYMBOLS:
        return _merge_by_search(stop - start, model, caches)
    return _merge_by_heap(stop - start, model, caches)


@_inlined
def _note_piece(address: Word, n_bytes: Word, short: U64, block: U64, number: Int) -> None:
    """Write a piece of up to 15 bytes into the block: its key and its set, which is fetched meanwhile."""
    n_low = min(n_bytes, _8)
    low = _load_word(address) & _mask(n_low)
    high = _load_word(address + _8) & ((_1 << ((n_bytes - n_low) << np.uint64(3))) - _1) | n_bytes << _56
    hashed = low * _K1 + high * _K2
    hashed = (hashed ^ (hashed >> _32)) * _K1
    line = ((hashed >> _32) & np.uint64(len(short) // SHORT_SET_WORDS - 1)) * np.uint64(SHORT_SET_WORDS)
    prefetch(np.uint64(short.ctypes.data) + (line << np.uint64(3)))
    place = np.uint64(number * BLOCK_WORDS)
    block[place + _1] = low
    block[place + np.uint64(2)] = high
    block[place + np.uint64(3)] = line


@_inlined
def _encode_short(
    text: U8, start: Int, stop: Int, model: Model, caches: Caches, number: Int, out: U32, n_out: Int, state: I64
) -> Int:
    """Write the ids of a piece of up to 15 bytes that stands in the block; the new number of ids."""
    short, block = caches.short, caches.block
    place = np.uint64(number * BLOCK_WORDS)
    low, high, line = block[place + _1], block[place + np.uint64(2)], block[place + np.uint64(3)]
    if short[line] != low or short[line + _1] != high:
        second = line + np.uint64(4)
        if short[second] != low or short[second + _1] != high:
            state[N_MISSES] += 1
            n_ids = _merge_piece(text, start, stop, model, caches)
            for at in range(n_ids):
                out[n_out + at] = caches.symbols[at]
            if n_ids <= SHORT_IDS:
                short[second] = low
                short[second + _1] = high
                short[second + np.uint64(2)] = np.uint64(out[n_out]) | np.uint64(out[n_out + 1]) << _32
                short[second + np.uint64(3)] = np.uint64(out[n_out + 2]) | np.uint64(n_ids) << _32
            return n_out + n_ids
        for word in range(4):
            first_place, second_place = line + np.uint64(word), second + np.uint64(word)
            short[first_place], short[second_place] = short[second_place], short[first_place]
    first_ids = short[line + np.uint64(2)]
    last_id = short[line + np.uint64(3)]
    # All three places are written, whatever the number: the next piece writes over what is too much.
    target = np.uint64(n_out)
    out[target] = np.uint32(first_ids & _LOW)
    out[target + _1] = np.uint32(first_ids >> _32)
    out[target + np.uint64(2)] = np.uint32(last_id & _LOW)
    return n_out + np.int64(last_id >> _32)


@_inlined
def _note_long_piece(address: Word, n_bytes: Word, long: U64, block: U64, number: Int) -> None:
    """The same for a piece of 16 to 64 bytes: its hash, and the two lines of its entry."""
    hashed = hash_piece(address, n_bytes)
    entry = ((hashed >> _32) & np.uint64(len(long) // LONG_ENTRY_WORDS - 1)) * np.uint64(LONG_ENTRY_WORDS)
    place = np.uint64(number * BLOCK_WORDS)
    block[place + _1] = hashed
    block[place + np.uint64(2)] = entry
    line = np.uint64(long.ctypes.data) + (entry << np.uint64(3))
    prefetch(line)
    prefetch(line + _64)


@_kernel
def _encode_long(
    text: U8, start: Int, stop: Int, model: Model, caches: Caches, number: Int, out: U32, n_out: Int, state: I64
) -> Int:
    """Write the ids of a piece of 16 bytes or more, in the block if it has up to 64; the new number of ids."""
    n_bytes = stop - start
    if n_bytes > LONG_BYTES:
        n_ids = _merge_piece(text, start, stop, model, caches)
        for at in range(n_ids):
            out[n_out + at] = caches.symbols[at]
        return n_out + n_ids
    long = caches.long
    address = np.uint64(text.ctypes.data) + np.uint64(start)
    hashed = caches.block[number * BLOCK_WORDS + 1]
    entry = np.int64(caches.block[number * BLOCK_WORDS + 2])
    sizes = long[entry + 1]
    if (
        long[entry] == hashed
        and np.int64(sizes & _LOW) == n_bytes
        and _same_bytes(np.uint64(long.ctypes.data) + np.uint64(8 * (entry + 2)), address, np.uint64(n_bytes))
    ):
        n_ids = np.int64(sizes >> _32)
        for at in range((n_ids + 1) >> 1):
            two = long[entry + 10 + at]
            out[n_out + 2 * at] = np.uint32(two & _LOW)
            out[n_out + 2 * at + 1] = np.uint32(two >> _32)
        return n_out + n_ids
    state[N_MISSES] += 1
    n_ids = _merge_piece(text, start, stop, model, caches)
    for at in range(n_ids):
        out[n_out + at] = caches.symbols[at]
    if n_ids <= LONG_IDS:
        long[entry] = hashed
        long[entry + 1] = np.uint64(n_bytes) | np.uint64(n_ids) << _32
        for word in range((n_bytes + 7) >> 3):
            long[entry + 2 + word] = _load_word(address + np.uint64(8 * word))
        for at in range((n_ids + 1) >> 1):
            long[entry + 10 + at] = np.uint64(out[n_out + 2 * at]) | np.uint64(out[n_out + 2 * at + 1]) << _32
    return n_out + n_ids


@_kernel
def _wide_atom_at(text: U8, at: Word, scanner: Scanner) -> tuple[Word, Word]:
    """The same for a character of several bytes."""
    lead = np.uint64(text[at])
    point = np.uint64(text[at + _1]) & _SIX
    if lead < np.uint64(0xE0):
        point |= (lead & np.uint64(0x1F)) << np.uint64(6)
        n_bytes = np.uint64(2)
    elif lead < np.uint64(0xF0):
        point = (lead & np.uint64(0x0F)) << np.uint64(12) | point << np.uint64(6)
        point |= np.uint64(text[at + np.uint64(2)]) & _SIX
        n_bytes = np.uint64(3)
    else:
        point = (lead & np.uint64(0x07)) << np.uint64(18) | point << np.uint64(12)
        point |= (np.uint64(text[at + np.uint64(2)]) & _SIX) << np.uint64(6)
        point |= np.uint64(text[at + np.uint64(3)]) & _SIX
        n_bytes = np.uint64(4)
    page = np.uint64(scanner.page_of[point >> np.uint64(PAGE_BITS)])
    return np.uint64(scanner.pages[page << np.uint64(PAGE_BITS) | point & _SIX]), n_bytes


@_inlined
def _atom_at(text: U8, at: Word, scanner: Scanner) -> Any:
    """Atom of the character that starts at a byte, and its number of bytes."""
    lead = text[at]
    if lead < 0x80:
        return np.uint64(scanner.ascii_atoms[lead]), _1
    return _wide_atom_at(text, at, scanner)


@_inlined
def _small_letters(word: Word) -> Word:
    """How many bytes of a word, from the lowest, are a to z before the first that is not."""
    # Per byte, without carries: the top bit is set where the low seven bits are below "a", past "z", or it was set.
    low = word & np.uint64(0x7F7F7F7F7F7F7F7F)
    from_a = low + np.uint64(0x1F1F1F1F1F1F1F1F)
    past_z = low + np.uint64(0x0505050505050505)
    other = (~from_a | past_z | word) & np.uint64(0x8080808080808080)
    return _trailing_zeros(other) >> np.uint64(3)


@_inlined
def _match_at(text: U8, start: Word, stop: Word, run: Word, scanner: Scanner) -> tuple[Word, Word]:
    """End of the match that starts at a byte, `start` if there is none; and the run state at that end."""
    state = np.uint64(scanner.start_of[run])
    base = np.uint64(text.ctypes.data)
    end, end_state = start, state
    at = start
    while at < stop:
        atom, n_bytes = _atom_at(text, at, scanner)
        step = np.uint64(scanner.steps[state + atom])
        if step & _MATCH:
            end, end_state = at, state
        state = step & _STATE
        if state == _STOP:
            return end, np.uint64(scanner.run_of[end_state >> np.uint64(scanner.shift)])
        at += n_bytes
        # Words are short: eight letters at a time leave no loop whose end cannot be foretold.
        while step & _SKIPS:
            skipped = min(_small_letters(_load_word(base + at)), stop - at)
            if skipped > _0:
                at += skipped
                end, end_state = at - _1, state
            if skipped < _8:
                break
    if scanner.steps[state + np.uint64(scanner.n_atoms)] & _MATCH:
        end, end_state = at, state
    return end, np.uint64(scanner.run_of[end_state >> np.uint64(scanner.shift)])


@_kernel
def _next_gap(text: U8, start: Word, stop: Word, run: Word, scanner: Scanner) -> tuple[Word, Word]:
    """End of the piece without a match that starts at a byte, and the run state there: the next match or cut."""
    at = start
    while True:
        atom, n_bytes = _atom_at(text, at, scanner)
        run = np.uint64(scanner.next_run[run * np.uint64(scanner.n_atoms) + atom])
        at += n_bytes
        if at >= stop:
            return at, run
        atom, n_bytes = _atom_at(text, at, scanner)
        if scanner.cuts[run * np.uint64(scanner.n_atoms) + atom] or _match_at(text, at, stop, run, scanner)[0] > at:
            return at, run


@_kernel
def encode_segments(
    text: U8,
    starts: I64,
    stops: I64,
    added_ids: I64,
    scanner: Scanner,
    model: Model,
    caches: Caches,
    out: U32,
    counts: I64,
    state: I64,
) -> Int:
    """Ids of segments, from where `state` says to the end or until a piece is larger than the scratch memory.

    Parameters
    ----------
    starts, stops
        int64 (n_segments,): bytes of each segment in `text`, none empty or inside a character.
    added_ids
        int64 (n_segments,): id of an added token, −1 for text.
    out
        uint32, one place a byte of the segments and 16 more.
    counts
        int64 (n_segments,): ids of each segment, written.
    state
        int64 (8,): segment, byte (−1: its start), run state and ids so far; the scratch needed; pieces and those
        that were in no cache, added up.

    Returns
    -------
    `DONE`, or `MORE_SCRATCH`: call again with caches of `state[NEEDED]` bytes of scratch.
    """
    base = np.uint64(text.ctypes.data)
    n_out = state[AT_OUT]
    first = state[AT_SEGMENT]
    for segment in range(first, len(starts)):
        if added_ids[segment] >= 0:
            out[n_out] = np.uint32(added_ids[segment])
            n_out += 1
            counts[segment] = 1
            continue
        at, run, stop = np.uint64(starts[segment]), _0, np.uint64(stops[segment])
        if segment == first and state[AT_BYTE] >= 0:
            at, run = np.uint64(state[AT_BYTE]), np.uint64(state[AT_RUN])
        else:
            counts[segment] = 0
        out_before = n_out
        while at < stop:
            start, n_pieces, longest = at, 0, _0
            while at < stop and n_pieces < BLOCK_PIECES:
                end, end_run = _match_at(text, at, stop, run, scanner)
                if end == at:
                    end, end_run = _next_gap(text, at, stop, run, scanner)
                n_bytes = end - at
                if n_bytes <= np.uint64(SHORT_BYTES):
                    _note_piece(base + at, n_bytes, caches.short, caches.block, n_pieces)
                elif n_bytes <= np.uint64(LONG_BYTES):
                    _note_long_piece(base + at, n_bytes, caches.long, caches.block, n_pieces)
                elif n_bytes > np.uint64(len(caches.symbols)):
                    longest = n_bytes
                    break
                caches.block[n_pieces * BLOCK_WORDS] = end
                n_pieces += 1
                at, run = end, end_run
            for number in range(n_pieces):
                end = caches.block[number * BLOCK_WORDS]
                if end - start <= np.uint64(SHORT_BYTES):
                    n_out = _encode_short(
                        text, np.int64(start), np.int64(end), model, caches, number, out, n_out, state
                    )
                else:
                    n_out = _encode_long(text, np.int64(start), np.int64(end), model, caches, number, out, n_out, state)
                start = end
            state[N_PIECES] += n_pieces
            if longest > _0:
                counts[segment] += n_out - out_before
                state[AT_SEGMENT], state[AT_BYTE], state[AT_RUN] = segment, np.int64(at), np.int64(run)
                state[AT_OUT], state[NEEDED] = n_out, np.int64(longest)
                return MORE_SCRATCH
        counts[segment] += n_out - out_before
    state[AT_OUT] = n_out
    return DONE
