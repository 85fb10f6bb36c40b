"""What a model does with fetched rows: project them, and let its hidden state decide how much of them to take.

The reference of the gate kernels, in NumPy, bit for bit: float32 operations of IEEE 754, one at a time, in one order.
It knows no table.

Sources
-------
Release V4.1, of which transcriptions are public: four keys and one value come out of one projection of all rows of a
token; `out = hidden + gate * value`. Paper (arXiv 2601.07372) and its demonstration program: RMS norms with weights
on keys and hidden state, a projection for each branch's key, no residual, and a short convolution over the result.
Transcriptions disagree about the release's epsilon, which the caller gives here, and none says where it rounds to
bfloat16: here only the result is rounded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput

Floats = NDArray[np.float32]
Elements = NDArray[np.float32] | NDArray[np.uint16]
"""float32, or bfloat16 as the bits of uint16."""

# torch's default where a norm names none: the distance from 1 to the next float32.
PAPER_EPS = float(np.finfo(np.float32).eps)
CONVOLUTION_EPS = 1e-5
_N_SUMS = 256
_LEAST_MAGNITUDE = np.float32(1e-6)
_ROUNDER = np.float64(1.5 * 2**52)
_LOG2_E = np.float64(1.4426950408889634)
# The upper part has so few bits that its product with a whole number is exact.
_LN2_UPPER, _LN2_LOWER = np.float64(0.6931471803691238), np.float64(1.9082149292705877e-10)
_TAYLOR = tuple(np.float64(1 / math.factorial(k)) for k in range(13, -1, -1))
_MOST_NEGATIVE_POWER = np.float64(700)


def project(rows: Any, weight: Any, bias: Any = None) -> Any:
    """Keys or values of rows: (tokens, columns * width) times `weight` (features, columns * width), plus `bias`.

    NumPy or CuPy arrays of floats. The library's own matrix product: its sums have no promised order.
    """
    product = rows @ weight.T
    return product if bias is None else product + bias


def fuse_release(
    hidden: Elements, key: Elements, value: Elements, query_weight: Floats, key_weight: Floats, *, eps: float,
    dead: NDArray[np.bool_] | None = None,
) -> tuple[Elements, Floats]:  # fmt: skip
    """The gate of V4.1: hidden states with what they took, and how much they took.

    Parameters
    ----------
    hidden, key
        float32 or uint16 (bfloat16) of one dtype, (tokens, branches, width).
    value
        The same dtype, (tokens, width); every branch takes of the same.
    query_weight, key_weight
        float32 (branches, width).
    eps
        The model's `rms_norm_eps`.
    dead
        bool (tokens,): these take nothing, and their hidden states go through as they are.

    Returns
    -------
    As `hidden`; and the gates, float32 (tokens, branches), 0 where dead.

    Notes
    -----
    dot = sum(h * (wq * wk) * k) * rsqrt(mean(h²) + eps) * rsqrt(mean(k²) + eps) * width**-0.5;
    gate = sigmoid(copysign(sqrt(max(|dot|, 1e-6)), dot)); out = h + gate * v.
    """
    _check(hidden, key, value, query_weight, key_weight)
    h, k, v, width = _widened(hidden), _widened(key), _widened(value), hidden.shape[-1]
    with np.errstate(all="ignore"):
        sums = ordered_sum(h * (query_weight * key_weight) * k)
        dots = sums * _inverse_root(h, eps) * _inverse_root(k, eps) * np.float32(width**-0.5)
        roots = np.copysign(np.sqrt(_at_least(np.abs(dots))), dots)
        gates = sigmoid(roots)
        fused = _narrowed(h + gates[..., None] * v[:, None], hidden.dtype)
    if dead is not None:
        gates[dead], fused[dead] = 0, hidden[dead]
    return fused, gates


def fuse_paper(
    hidden: Elements, key: Elements, value: Elements, query_weight: Floats, key_weight: Floats, *,
    eps: float = PAPER_EPS, dead: NDArray[np.bool_] | None = None,
) -> tuple[Elements, Floats]:  # fmt: skip
    """The gate of the paper's demonstration: the part of the value that each branch takes, without its hidden state.

    Arguments and results as for `fuse_release`; dead tokens get 0. The module's output is this plus the short
    convolution of it, which `short_convolution` gives together.

    Notes
    -----
    s = sum(RMS(k) wk * RMS(h) wq) / sqrt(width); gate = sigmoid(sign(s) * sqrt(max(|s|, 1e-6))); out = gate * v.
    `sign(0)` is 0, so a sum of exactly 0 gives one half, where V4.1 gives a little more or less.
    """
    _check(hidden, key, value, query_weight, key_weight)
    h, k, v, width = _widened(hidden), _widened(key), _widened(value), hidden.shape[-1]
    with np.errstate(all="ignore"):
        query = h * _inverse_root(h, eps)[..., None] * query_weight
        dots = ordered_sum(k * _inverse_root(k, eps)[..., None] * key_weight * query) / np.float32(math.sqrt(width))
        roots = np.copysign(np.sqrt(_at_least(np.abs(dots))), dots)
        gates = sigmoid(np.where(dots == 0, np.float32(0), roots))
        fused = _narrowed(gates[..., None] * v[:, None], hidden.dtype)
    if dead is not None:
        gates[dead], fused[dead] = 0, 0
    return fused, gates


def short_convolution(
    values: Elements, norm_weight: Floats, taps: Floats, *, dilation: int, n_history: int = 0,
    eps: float = CONVOLUTION_EPS,
) -> Elements:  # fmt: skip
    """`values` plus SiLU of their causal, depthwise, dilated convolution, the last step of the paper's module.

    Parameters
    ----------
    values
        (n_history + tokens, branches, width) of one sequence, oldest first; before it stands nothing.
    norm_weight
        float32 (branches, width), of the RMS norm that the convolution sees through.
    taps
        float32 (branches, width, n_taps), the newest last.
    dilation
        Tokens between taps; the demonstration takes its longest n-gram.
    n_history
        Tokens at the front that are only looked back at: (n_taps - 1) * dilation are enough.

    Returns
    -------
    As `values`, (tokens, branches, width).
    """
    x, n_taps = _widened(values), taps.shape[-1]
    with np.errstate(all="ignore"):
        normed = x * _inverse_root(x, eps)[..., None] * norm_weight
        sums = np.zeros_like(x)
        for tap in range(n_taps):
            back = (n_taps - 1 - tap) * dilation
            if back < len(x):
                sums[back:] += taps[..., tap] * normed[: len(x) - back]
        return _narrowed((x + sums * sigmoid(sums))[n_history:], values.dtype)


def ordered_sum(values: Floats) -> Floats:
    """Sums over the last axis in the order of the kernels: 256 running sums, each of every 256th value from its own
    number on, of which then halves are added."""
    width = values.shape[-1]
    sums = np.zeros((*values.shape[:-1], _N_SUMS), np.float32)
    for start in range(0, width, _N_SUMS):
        n_values = min(_N_SUMS, width - start)
        sums[..., :n_values] += values[..., start : start + n_values]
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e**-x), worked out in double precision by additions, products and one division, and rounded once.

    What is rounded is within a few units in the last place of a double, so the result is the rounded true value but
    for arguments that come that near to a tie.
    """
    with np.errstate(all="ignore"):
        negative = np.clip(-x.astype(np.float64), -_MOST_NEGATIVE_POWER, _MOST_NEGATIVE_POWER)
        found = (1.0 / (1.0 + _exponential(np.nan_to_num(negative)))).astype(np.float32)
    return np.where(np.isnan(x), x, found)


def bfloat16_bits(values: Floats) -> NDArray[np.uint16]:
    """float32 rounded to bfloat16, to nearest, ties to even; NaN become quiet and keep sign and upper payload."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), bits >> np.uint32(16) | np.uint32(0x40), rounded).astype(np.uint16)


def bfloat16_values(bits: NDArray[np.uint16]) -> Floats:
    """float32 of bfloat16."""
    values: Floats = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def _exponential(x: NDArray[np.float64]) -> NDArray[np.float64]:
    k = (x * _LOG2_E + _ROUNDER) - _ROUNDER
    r = (x - k * _LN2_UPPER) - k * _LN2_LOWER
    total = np.full_like(x, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        total = total * r + coefficient
    power: NDArray[np.float64] = ((k.astype(np.int64) + 1023) << 52).view(np.float64)
    return total * power


def _inverse_root(values: Floats, eps: float) -> Floats:
    mean = ordered_sum(values * values) / np.float32(values.shape[-1])
    inverse: Floats = np.float32(1) / np.sqrt(mean + np.float32(eps))
    return inverse


def _at_least(magnitudes: Floats) -> Floats:
    # Not np.maximum: with it a NaN's own bits would decide.
    return np.where(magnitudes < _LEAST_MAGNITUDE, _LEAST_MAGNITUDE, magnitudes)


def _widened(elements: Elements) -> Floats:
    return bfloat16_values(elements) if elements.dtype == np.uint16 else elements  # type: ignore[arg-type, return-value]


def _narrowed(values: Floats, dtype: np.dtype[Any]) -> Elements:
    return bfloat16_bits(values) if dtype == np.uint16 else values


def _check(hidden: Any, key: Any, value: Any, query_weight: Any, key_weight: Any) -> None:
    dtype = hidden.dtype
    if dtype not in (np.float32, np.uint16) or hidden.ndim != 3:
        raise InvalidInput(
            f"hidden: found {dtype} {hidden.shape}, expected (tokens, branches, width) of float32, or of uint16 for "
            "bfloat16; convert it"
        )
    n_tokens, n_branches, width = hidden.shape
    weights = (n_branches, width), np.dtype(np.float32)
    for name, array, (shape, expected) in (
        ("key", key, (hidden.shape, dtype)),
        ("value", value, ((n_tokens, width), dtype)),
        ("query_weight", query_weight, weights),
        ("key_weight", key_weight, weights),
    ):
        if tuple(array.shape) != tuple(shape) or array.dtype != expected:
            raise InvalidInput(
                f"{name}: found {array.dtype} {tuple(array.shape)}, expected {expected} {tuple(shape)} to fit hidden; "
                "reshape or convert it"
            )
