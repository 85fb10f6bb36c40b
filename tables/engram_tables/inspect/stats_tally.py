"""What a chunk of rows says, as sums that add up: chunks are merged in row order, so threads change nothing.

Knows records and their codec; which rows to read, and what is wrong with what is found, stands elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engram_tables.inspect.record_values import hash_records, mix_words, scales_of, sections_of
from engram_tables.inspect.stats_sample import BLOCK_ROWS
from engram_tables.storage.codecs.codec import Codec

N_FIRST = 8
LEAST_CONSTANT_WIDTH = 8
"""Rows of fewer values may hold one value throughout by chance."""
_NORM_SHIFT = 16
_LEAST_EXPONENT = -160
_MOST_PAIRS = 2048


@dataclass(slots=True)
class Marked:
    """Rows with something about them: how many, the first ones, and the last."""

    n_rows: int = 0
    first: list[int] = field(default_factory=list)
    last: int | None = None

    @classmethod
    def of(cls, rows: NDArray[np.int64]) -> Marked:
        """All of `rows`."""
        return cls(len(rows), rows[:N_FIRST].tolist(), int(rows[-1]) if len(rows) else None)

    def add(self, more: Marked) -> None:
        """Those that come after."""
        self.n_rows += more.n_rows
        self.first = (self.first + more.first)[:N_FIRST]
        self.last = self.last if more.last is None else more.last


@dataclass(slots=True)
class Cosines:
    """Cosines of pairs of rows."""

    n_pairs: int = 0
    total: float = 0.0
    squared: float = 0.0

    def add(self, more: Cosines) -> None:
        """Those that come after."""
        self.n_pairs += more.n_pairs
        self.total += more.total
        self.squared += more.squared

    @property
    def mean(self) -> float | None:
        """None without a pair."""
        return self.total / self.n_pairs if self.n_pairs else None

    @property
    def mean_error(self) -> float:
        """Standard error of the mean."""
        if self.n_pairs < 2:
            return float("inf")
        spread = max(self.squared / self.n_pairs - (self.total / self.n_pairs) ** 2, 0.0)
        return float(np.sqrt(spread / self.n_pairs))


@dataclass(slots=True, kw_only=True)
class Tally:
    """Sums over rows of one group.

    Attributes
    ----------
    zero, constant, nan, infinite, bad_scale
        Rows without a value other than 0; of one value otherwise; with a NaN or an infinity among the values though
        their scales are finite; with a scale that is not, whatever the codes beside it.
    zero_runs
        Rows that lie in `BLOCK_ROWS` or more consecutive rows of zeros.
    equal_neighbours
        Rows whose record is that of the row before, zeros and constants left out.
    n_neighbours
        Pairs of consecutive rows that were looked at.
    norms
        int64 (32768,): finite rows by the upper bits of their norm as float32; see `norm_quantiles`.
    section_bytes
        By section, int64 (256,): how often each byte stands there.
    scale_exponents
        int64 (320,): finite scales but 0 by the power of two at or below them, from 2**-160 on.
    hashes, hashed_rows
        uint64 and int64 (n,): of finite rows that are neither zero nor constant.
    kept
        uint8 (n, row_bytes): records for a compressor.
    """

    n_rows: int = 0
    zero: Marked = field(default_factory=Marked)
    constant: Marked = field(default_factory=Marked)
    nan: Marked = field(default_factory=Marked)
    infinite: Marked = field(default_factory=Marked)
    bad_scale: Marked = field(default_factory=Marked)
    zero_runs: Marked = field(default_factory=Marked)
    equal_neighbours: Marked = field(default_factory=Marked)
    n_nan_values: int = 0
    n_neighbours: int = 0
    norms: NDArray[np.int64] | None = None
    section_bytes: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    scale_exponents: NDArray[np.int64] | None = None
    n_zero_scales: int = 0
    n_negative_scales: int = 0
    n_bad_scales: int = 0
    neighbour_cosines: Cosines = field(default_factory=Cosines)
    random_cosines: Cosines = field(default_factory=Cosines)
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    hashed_rows: list[NDArray[np.int64]] = field(default_factory=list)
    kept: list[NDArray[np.uint8]] = field(default_factory=list)

    def add(self, more: Tally) -> None:
        """The rows of `more`, which come after those here."""
        for name in ("n_rows", "n_nan_values", "n_neighbours", "n_zero_scales", "n_negative_scales", "n_bad_scales"):
            setattr(self, name, getattr(self, name) + getattr(more, name))
        for name in ("zero", "constant", "nan", "infinite", "bad_scale", "zero_runs", "equal_neighbours"):
            getattr(self, name).add(getattr(more, name))
        self.neighbour_cosines.add(more.neighbour_cosines)
        self.random_cosines.add(more.random_cosines)
        self.norms = _sum(self.norms, more.norms)
        self.scale_exponents = _sum(self.scale_exponents, more.scale_exponents)
        for name, counts in more.section_bytes.items():
            self.section_bytes[name] = self.section_bytes.get(name, 0) + counts
        self.hashes += more.hashes
        self.hashed_rows += more.hashed_rows
        self.kept += more.kept


def tally_rows(
    records: NDArray[np.uint8],
    rows: NDArray[np.int64],
    codec: Codec,
    *,
    hash_shift: int = 0,
    kept_every: int = 1,
    seed: int = 0,
) -> Tally:
    """What `records`, uint8 (n, row_bytes), of `rows`, int64 (n,) ascending, say.

    Parameters
    ----------
    hash_shift
        Only hashes below 2**(64 - hash_shift) are kept: a choice by content, which keeps all copies of a record or
        none.
    kept_every
        Every so many-th record is kept.
    seed
        Chooses the random pairs.
    """
    tally = Tally(n_rows=len(rows), kept=[records[::kept_every].copy()])
    for name, section in sections_of(codec, records).items():
        tally.section_bytes[name] = np.bincount(section.reshape(-1), minlength=256)
    if codec.can_decode:
        usable = _tally_values(tally, records, rows, codec, seed)
    else:
        usable = _tally_bytes(tally, records, rows)
    is_next = np.diff(rows) == 1
    tally.n_neighbours = int(is_next.sum())
    hashes = hash_records(records)
    is_same = is_next & (hashes[1:] == hashes[:-1]) & usable[1:]
    same = np.flatnonzero(is_same) + 1
    same = same[(records[same] == records[same - 1]).all(axis=1)]
    tally.equal_neighbours = Marked.of(rows[same])
    wanted = usable if hash_shift == 0 else usable & (hashes >> np.uint64(64 - hash_shift) == 0)
    tally.hashes, tally.hashed_rows = [hashes[wanted]], [rows[wanted]]
    return tally


def _tally_values(
    tally: Tally, records: NDArray[np.uint8], rows: NDArray[np.int64], codec: Codec, seed: int
) -> NDArray[np.bool_]:
    """Everything that takes values; which rows are finite and neither zero nor constant."""
    values = codec.decode(records)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        squares = np.einsum("ij,ij->i", values, values, dtype=np.float64)
    finite: NDArray[np.bool_] = np.isfinite(squares)
    has_scales = _tally_scales(tally, records, rows, codec)
    wrong = np.flatnonzero(~finite & has_scales)
    tally.nan = Marked.of(rows[wrong[np.isnan(values[wrong]).any(axis=1)]])
    tally.infinite = Marked.of(rows[wrong[np.isinf(values[wrong]).any(axis=1)]])
    tally.n_nan_values = int(np.isnan(values[~finite]).sum())
    zero: NDArray[np.bool_] = finite & (squares == 0)
    constant = np.zeros(len(rows), np.bool_)
    if values.shape[1] >= LEAST_CONSTANT_WIDTH:
        constant = finite & ~zero & (values == values[:, :1]).all(axis=1)
    tally.zero, tally.constant = Marked.of(rows[zero]), Marked.of(rows[constant])
    tally.zero_runs = Marked.of(_in_runs(rows, zero))
    norms = np.minimum(np.sqrt(squares[finite]), np.finfo(np.float32).max).astype(np.float32)
    tally.norms = np.bincount(norms.view(np.uint32) >> np.uint32(_NORM_SHIFT), minlength=1 << 15)
    usable: NDArray[np.bool_] = finite & ~zero
    _tally_cosines(tally, values, np.sqrt(squares), rows, usable, seed)
    return usable & ~constant


def _tally_bytes(tally: Tally, records: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The same for records of unknown meaning: zeros and constants are those of bytes."""
    zero: NDArray[np.bool_] = np.array((records == 0).all(axis=1))
    constant: NDArray[np.bool_] = np.array((records == records[:, :1]).all(axis=1)) & ~zero
    if records.shape[1] < LEAST_CONSTANT_WIDTH:
        constant[:] = False
    tally.zero, tally.constant = Marked.of(rows[zero]), Marked.of(rows[constant])
    tally.zero_runs = Marked.of(_in_runs(rows, zero))
    return np.array(~zero & ~constant)


def _tally_scales(tally: Tally, records: NDArray[np.uint8], rows: NDArray[np.int64], codec: Codec) -> NDArray[np.bool_]:
    """The scales; of which rows all are finite."""
    scales = scales_of(codec, records)
    if scales is None:
        return np.ones(len(rows), np.bool_)
    finite = np.isfinite(scales)
    is_whole: NDArray[np.bool_] = np.array(finite.all(axis=1))
    tally.n_bad_scales = int((~finite).sum())
    tally.bad_scale = Marked.of(rows[~is_whole])
    known = scales[finite]
    tally.n_zero_scales = int((known == 0).sum())
    tally.n_negative_scales = int((known < 0).sum())
    exponents = np.frexp(known[known != 0])[1] - 1 - _LEAST_EXPONENT
    tally.scale_exponents = np.bincount(exponents, minlength=-2 * _LEAST_EXPONENT)
    return is_whole


def _tally_cosines(
    tally: Tally,
    values: NDArray[np.float32],
    norms: NDArray[np.float64],
    rows: NDArray[np.int64],
    usable: NDArray[np.bool_],
    seed: int,
) -> None:
    """Neighbours, and as many pairs of rows that lie apart."""
    follows = np.flatnonzero((np.diff(rows) == 1) & usable[1:] & usable[:-1])[:_MOST_PAIRS]
    tally.neighbour_cosines = _cosines(values, norms, follows, follows + 1)
    places = np.flatnonzero(usable)
    keys = mix_words(rows[places].astype(np.uint64) + mix_words(np.array([seed % 2**64], np.uint64)))
    shuffled = places[np.argsort(keys, kind="stable")[: _MOST_PAIRS + 1]]
    left, right = shuffled[:-1], shuffled[1:]
    apart = np.abs(rows[left] - rows[right]) > BLOCK_ROWS
    tally.random_cosines = _cosines(values, norms, left[apart], right[apart])


def _cosines(
    values: NDArray[np.float32], norms: NDArray[np.float64], left: NDArray[np.int64], right: NDArray[np.int64]
) -> Cosines:
    dots = np.einsum("ij,ij->i", values[left], values[right], dtype=np.float64)
    cosines = dots / (norms[left] * norms[right])
    return Cosines(len(cosines), float(cosines.sum()), float((cosines * cosines).sum()))


def _in_runs(rows: NDArray[np.int64], marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The marked rows that lie in `BLOCK_ROWS` or more consecutive marked rows."""
    found = rows[marked]
    if len(found) < BLOCK_ROWS:
        return found[:0]
    begins = np.flatnonzero(np.concatenate(([True], np.diff(found) != 1)))
    lengths = np.diff(np.append(begins, len(found)))
    long_runs: NDArray[np.int64] = found[np.repeat(lengths >= BLOCK_ROWS, lengths)]
    return long_runs


def norm_quantiles(norms: NDArray[np.int64] | None, shares: tuple[float, ...]) -> list[float] | None:
    """Norms at `shares` of the rows, each the exact one or up to 1/128 below it; None without a row."""
    if norms is None or not norms.any():
        return None
    up_to = np.cumsum(norms)
    ranks = np.minimum(np.array(shares) * up_to[-1], up_to[-1] - 1)
    bins = np.searchsorted(up_to, ranks, side="right").astype(np.uint32)
    quantiles: list[float] = (bins << np.uint32(_NORM_SHIFT)).view(np.float32).tolist()
    return quantiles


def scale_histogram(exponents: NDArray[np.int64] | None) -> dict[int, int] | None:
    """How many scales lie from each power of two up to the next; None for codecs without scales."""
    if exponents is None:
        return None
    return {int(bin_idx) + _LEAST_EXPONENT: int(exponents[bin_idx]) for bin_idx in np.flatnonzero(exponents)}


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Entropy of a byte in bits, by how often each stands there."""
    shares = counts[counts > 0] / counts.sum()
    return float(abs(-(shares * np.log2(shares)).sum()))


def _sum(left: NDArray[np.int64] | None, right: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right
