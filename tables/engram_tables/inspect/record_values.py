"""What stands in records beside their values: scales of every codec, sections of bytes, and a hash of the whole.

Plain numpy, over many records at once. Knows no table.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_tables.storage.codecs.codec import (
    BIASES,
    FP8,
    INT4_G32,
    INT8_ROW,
    IQ4_NL,
    Q4_0,
    Q8_0,
    RECORDS,
    SCALES,
    WEIGHTS,
    Codec,
)

CODES = "codes"
_BLOCK_BYTES = {Q8_0: 34, Q4_0: 18, IQ4_NL: 18}
_GAMMA = 0x9E3779B97F4A7C15
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def sections_of(codec: Codec, records: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """The bytes of records by what they hold: `codes` and `scales`, for `int4-g32` `biases` too; or `records` alone.

    Parameters
    ----------
    records
        uint8 (n, row_bytes).

    Returns
    -------
    uint8 (n, bytes of the section) each; views where the section is one stretch of the record.
    """
    if codec.name in _BLOCK_BYTES:
        blocks = records.reshape(len(records), -1, _BLOCK_BYTES[codec.name])
        flat = len(records), -1
        return {CODES: blocks[:, :, 2:].reshape(flat), SCALES: blocks[:, :, :2].reshape(flat)}
    if not codec.can_decode or len(codec.pieces) == 1:
        return {RECORDS: records}
    sections = codec.sections(codec.row_width(records.shape[1]))
    names = {WEIGHTS: CODES, SCALES: SCALES, BIASES: BIASES}
    return {names[s.name]: records[:, s.start : s.start + s.n_bytes] for s in sections}


def scales_of(codec: Codec, records: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """The scales that records carry, float32 (n, scales a record), biases behind them; None where there are none.

    A byte of E8M0 is 2**(byte - 127), and 255 NaN.
    """
    found = sections_of(codec, records)
    if SCALES not in found:
        return None
    scales = np.ascontiguousarray(found[SCALES])
    if codec.name == FP8:
        values = np.ldexp(np.float32(1), np.minimum(scales, 254).astype(np.int32) - 127).astype(np.float32)
        values[scales == 255] = np.nan
        return values
    if codec.name == INT4_G32:
        both = np.concatenate((scales, found[BIASES]), axis=1)
        return (both.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert codec.name in (INT8_ROW, *_BLOCK_BYTES), codec.name
    return scales.view("<f2").astype(np.float32)


def hash_records(records: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit hash of each record's bytes: uint8 (n, row_bytes) in, uint64 (n,) out.

    Every word of eight bytes is mixed with its place by SplitMix64's finaliser, the results are added, and the sum is
    mixed again. Not made to withstand anybody: equal hashes are compared byte for byte before they are named.
    """
    n_words = -(-records.shape[1] // 8)
    padded = np.zeros((len(records), n_words * 8), np.uint8)
    padded[:, : records.shape[1]] = records
    places = np.arange(1, n_words + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    mixed = mix_words(padded.view("<u8") + places)
    return mix_words(mixed.sum(axis=1, dtype=np.uint64) + np.uint64(records.shape[1]))


def mix_words(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64, word by word."""
    words = (words ^ (words >> np.uint64(30))) * _FACTORS[0]
    words = (words ^ (words >> np.uint64(27))) * _FACTORS[1]
    mixed: NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed
