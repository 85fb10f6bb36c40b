"""First contents of a table: every value a pure function of (seed, layer, row, column).

So neither shards nor threads nor the machine change a byte. Values go through a codec here; files are the
writer's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.storage.codecs.codec import BF16, F32, FP8, Codec
from engram_tables.units import json_int

NORMAL = "normal"
ZEROS = "zeros"
INIT_NAMES = (NORMAL, ZEROS)
VALUES_PER_WORD = 4

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_TILE_VALUES = 2**16
_LARGEST_STD = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """What a fresh table holds: `kind`, and for `normal` a seed and a standard deviation as decimal text.

    Notes
    -----
    `normal`: with w = ceil(row_width / 4), the value of (layer, row, column) takes 16 bits, number `column % 4` from
    the low end, of word `row * w + column // 4` of the layer's SplitMix64 stream. Bits 0 to 12 choose one of 8,192
    equally likely quantiles of the upper half of the normal distribution (4.01 standard deviations at most), which
    is multiplied by float32(std) in single precision; bit 15 is the sign. The stream's state is
    `layer_state(seed, layer_id)`.
    """

    kind: str
    seed: int = 0
    std: str | None = None

    @classmethod
    def make(cls, kind: str, *, row_width: int, seed: int = 0, std: str | None = None) -> Self:
        """A checked `Init`; `std` defaults to 1 / sqrt(row_width), so that rows have a length near 1."""
        if kind not in INIT_NAMES:
            raise InvalidInput(f"init {kind!r}: not known, expected one of {', '.join(INIT_NAMES)}; choose one of them")
        if not 0 <= seed <= _MASK:
            raise InvalidInput(f"seed: found {seed}, expected 0 to {_MASK}; choose another")
        if kind == ZEROS:
            if std is not None:
                raise InvalidInput(f"std: found {std!r} with init zeros, expected none; drop one of the two")
            return cls(kind=kind)
        return cls(kind=kind, seed=seed, std=_decimal(str(1 / math.sqrt(row_width)) if std is None else std))

    def record(self) -> dict[str, str | int]:
        """What the manifest keeps of it."""
        if self.kind == ZEROS:
            return {"kind": self.kind}
        return {"kind": self.kind, "seed": json_int(self.seed), "std": str(self.std)}


class RowFiller:
    """Makes records of one `Init`; keeps its working memory, so each thread has one of its own.

    Raises `InvalidInput` when made for a codec that is only read, or that a value of this `Init` would be too large
    for.
    """

    def __init__(self, init: Init, codec: Codec, row_width: int) -> None:
        self._init = init
        self._codec = codec
        codec.check_can_encode()
        if init.kind == ZEROS:
            self._zero = codec.encode(np.zeros((1, row_width), dtype=np.float32))
            return
        from engram_tables.storage.codecs import kernels

        n_rows = max(1, _TILE_VALUES // row_width)
        self._row_words = -(-row_width // VALUES_PER_WORD)
        self._std = np.float32(float(str(init.std)))
        largest = np.float32(kernels.LARGEST_NORMAL * self._std)
        if int(largest.view(np.uint32)) >= codec.limit_bits:
            raise InvalidInput(
                f"std: found {init.std}, with which values reach {largest:.6g}, expected values that codec "
                f"{codec.name} can hold; choose a smaller std or another codec"
            )
        words = np.empty((n_rows, self._row_words), dtype=np.uint64)
        values = np.empty((n_rows, row_width), dtype=np.float32)
        groups = values.reshape(-1, 32) if codec.name == FP8 else values[:0]
        self._tile = kernels.Tile(
            words=words.reshape(-1),
            quarters=words.view(np.uint16),
            values=values,
            bits=values.view(np.uint32),
            groups=groups.view(np.uint32),
        )

    def fill(self, layer_id: int, first_row: int, out: NDArray[np.uint8]) -> None:
        """Records of the rows from `first_row` on into `out` uint8 (n, row_bytes), C-contiguous."""
        if self._init.kind == ZEROS:
            out[:] = self._zero
            return
        from engram_tables.storage.codecs import kernels

        state = np.uint64(layer_state(self._init.seed, layer_id))
        arguments = (state, np.uint64(first_row * self._row_words), self._std, self._tile)
        if self._codec.name == FP8:
            kernels.normal_fp8(*arguments, out)
        elif self._codec.name == BF16:
            kernels.normal_bf16(*arguments, out.view(np.uint16))
        elif self._codec.name == F32:
            kernels.normal_f32(*arguments, out.view(np.float32))
        else:
            self._fill_by_tiles(*arguments, out)

    def _fill_by_tiles(
        self, state: np.uint64, first_word: np.uint64, std: np.float32, tile: Any, out: NDArray[np.uint8]
    ) -> None:
        from engram_tables.storage.codecs import kernels

        for start in range(0, len(out), len(tile.values)):
            values = tile.values[: len(out) - start]
            kernels.fill_words(state, first_word, tile.words.size, tile.words)
            kernels.fill_normal(tile.quarters, std, len(values), tile.values, 0)
            self._codec.encode(values, out[start : start + len(values)])
            first_word += np.uint64(tile.words.size)


def layer_state(seed: int, layer_id: int) -> int:
    """State of a layer's stream: `mix(mix(seed) + (layer_id + 1) * gamma)` modulo 2**64."""
    return mix((mix(seed) + (layer_id + 1) * _GAMMA) & _MASK)


def mix(word: int) -> int:
    """The finaliser of SplitMix64."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)


def _decimal(std: str) -> str:
    """The shortest text of the same double, so that two spellings of one number give one manifest."""
    try:
        value = float(std)
    except ValueError:
        value = math.nan
    if not 0 < value <= _LARGEST_STD or np.float32(value) == 0:
        raise InvalidInput(
            f"std: found {std!r}, expected a positive decimal number up to {_LARGEST_STD:g}; write for instance 0.02"
        )
    return repr(value)
