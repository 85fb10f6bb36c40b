"""A discrete power law fitted to counts of counts, by maximum likelihood and Kolmogorov–Smirnov distance.

Owns the fit and its zeta function. Knows no n-grams and no files: two arrays in, one law out.

The method is Clauset, Shalizi and Newman's ("Power-law distributions in empirical data", SIAM Review 51, 2009): for
every candidate cut-off the exponent by maximum likelihood, then the cut-off whose law lies closest to the tail it
describes. Their bootstrapped p-value is left out: with millions of n-grams it refuses every law.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

MIN_TAIL_NGRAMS = 50
"""Fewer observations than this fit any exponent."""
MAX_CUT_OFFS = 100
"""Cut-offs tried, spaced evenly in the logarithm of their rank among the distinct counts."""
CLOSE_DISTANCE = 0.05
"""Largest distance at which a law that the sample contradicts still tells where the tail lies."""
MIN_SPAN = 10.0
"""Largest over smallest count of the tail: a straight line seen over less than a decade tells nothing."""

_SMALLEST_ALPHA, _LARGEST_ALPHA = 1.001, 20.0
_AT_BOUND = 1e-3
_KOLMOGOROV_5_PERCENT = 1.358
_SHIFT = 32
# B_2j / (2j)! of Euler's and Maclaurin's formula.
_BERNOULLI = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000, 1 / 74724249600)
_GOLDEN = (5**0.5 - 1) / 2
_GOLDEN_STEPS = 60

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Verdict(StrEnum):
    """How well the law describes the counts from its cut-off on."""

    CONSISTENT = "consistent"
    """The distance is no larger than chance gives samples of such a law (5 % level, parameters taken as known)."""
    CLOSE = "close"
    """Larger than chance, yet at most `CLOSE_DISTANCE`: a description, no more."""
    POOR = "poor"
    """Larger than that, or the tail spans less than a decade: do not extrapolate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """The share of n-grams that occur x times is proportional to x^-alpha, for x from `xmin` on.

    Attributes
    ----------
    alpha
        Exponent of the frequency spectrum, above 1.
    alpha_stderr
        Its standard error, of the maximum-likelihood estimate at the given cut-off.
    rank_exponent
        1 / (alpha - 1): the count at rank r falls as r to the minus this (Zipf's law has 1).
    xmin
        Smallest count that the law describes.
    ks_distance
        Largest difference between the tail's cumulated shares and the law's, 0 to 1.
    ks_chance
        The distance that a sample of this size passes by chance in 5 of 100 cases (1.358 / sqrt(n_tail)).
    n_tail, tail_occurrences
        N-grams that occur `xmin` times or more, and their occurrences.
    verdict
        How far to trust it.
    """

    alpha: float
    alpha_stderr: float
    rank_exponent: float
    xmin: int
    ks_distance: float
    ks_chance: float
    n_tail: int
    tail_occurrences: int
    verdict: Verdict

    def n_from(self, counts: npt.ArrayLike) -> F64:
        """N-grams that occur at least so often by the law, for counts from `xmin` on: the rank that it gives them."""
        return self.n_tail * hurwitz_zeta(self.alpha, counts) / hurwitz_zeta(self.alpha, self.xmin)

    def n_at(self, counts: npt.ArrayLike) -> F64:
        """N-grams that occur exactly so often by the law, for counts from `xmin` on."""
        values = np.asarray(counts, dtype=np.float64)
        relative: F64 = (values / self.xmin) ** -self.alpha
        return self.n_tail * relative / _scaled_zeta(self.alpha, self.xmin)


def fit_power_law(counts: npt.ArrayLike, n_ngrams: npt.ArrayLike) -> PowerLaw | None:
    """The power law that describes counts of counts best, from the cut-off that suits it best.

    Parameters
    ----------
    counts
        Integers (n,), ascending, at least 1. Counts that are missing at the lower end (pruned) do no harm: each
        candidate looks only at what lies above it.
    n_ngrams
        Integers (n,): how many n-grams occur so often, at least 1.

    Returns
    -------
    None where no tail can be judged: fewer than `MIN_TAIL_NGRAMS` n-grams, equal counts, or an exponent that runs out
    of [1.001, 20] at every cut-off.

    Notes
    -----
    Costs at most `MAX_CUT_OFFS` passes over the distinct counts, of which N occurrences have no more than sqrt(2 N).
    """
    values = np.asarray(counts, dtype=np.float64)
    weights = np.asarray(n_ngrams, dtype=np.float64)
    n_tails = np.cumsum(weights[::-1])[::-1]
    # A cut-off needs a second count above it.
    usable = int(np.count_nonzero(n_tails[:-1] >= MIN_TAIL_NGRAMS))
    if not usable:
        return None
    cut_offs = np.unique(np.round(np.geomspace(1, usable, MAX_CUT_OFFS)).astype(np.int64)) - 1
    mean_logs = (np.cumsum((weights * np.log(values))[::-1])[::-1] / n_tails)[cut_offs]
    alphas = _most_likely(values[cut_offs], mean_logs)
    inside = (alphas > _SMALLEST_ALPHA + _AT_BOUND) & (alphas < _LARGEST_ALPHA - _AT_BOUND)
    if not inside.any():
        return None
    cut_offs, alphas = cut_offs[inside], alphas[inside]
    distances = [_distance(values[at:], n_tails[at:], alpha) for at, alpha in zip(cut_offs, alphas, strict=True)]
    best = int(np.argmin(distances))
    return _law(values, weights, int(cut_offs[best]), float(alphas[best]), distances[best])


def _law(values: F64, weights: F64, at: int, alpha: float, distance: float) -> PowerLaw:
    n_tail = float(weights[at:].sum())
    chance = _KOLMOGOROV_5_PERCENT / n_tail**0.5
    verdict = Verdict.CONSISTENT if distance <= chance else Verdict.CLOSE
    if (distance > chance and distance > CLOSE_DISTANCE) or values[-1] < MIN_SPAN * values[at]:
        verdict = Verdict.POOR
    return PowerLaw(
        alpha=alpha,
        alpha_stderr=_standard_error(alpha, float(values[at]), n_tail),
        rank_exponent=1 / (alpha - 1),
        xmin=int(values[at]),
        ks_distance=distance,
        ks_chance=chance,
        n_tail=int(n_tail),
        tail_occurrences=int((weights[at:] * values[at:]).sum()),
        verdict=verdict,
    )


def _distance(values: F64, n_tails: F64, alpha: float) -> float:
    """Largest difference between the shares of n-grams from each count on, sample against law.

    Between two counts of the sample its share stands still while the law's falls: both ends are compared.
    """
    at = (values / values[0]) ** -alpha
    law = _scaled_zeta(alpha, values) * at
    zeta = law[0]
    behind = (law - at) / zeta
    sample = n_tails / n_tails[0]
    ends = np.abs(sample - law / zeta).max(), np.abs(np.append(sample[1:], 0) - behind).max()
    return float(max(ends))


def _most_likely(xmin: F64, mean_logs: F64) -> F64:
    """The exponent (n,) of greatest likelihood for tails from `xmin` with these means of ln x: golden sections.

    The negative log-likelihood of one observation, ln zeta(alpha, xmin) + alpha × mean, is convex in alpha.
    """
    excess = mean_logs - np.log(xmin)

    def cost(alpha: F64) -> F64:
        loss: F64 = np.log(_scaled_zeta(alpha, xmin)) + alpha * excess
        return loss

    low, high = np.full_like(xmin, _SMALLEST_ALPHA), np.full_like(xmin, _LARGEST_ALPHA)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    cost_left, cost_right = cost(left), cost(right)
    for _ in range(_GOLDEN_STEPS):
        falls = cost_left > cost_right
        low, high = np.where(falls, left, low), np.where(falls, high, right)
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        cost_left, cost_right = cost(left), cost(right)
    return (low + high) / 2


def _standard_error(alpha: float, xmin: float, n_tail: float) -> float:
    """From the curvature of the log-likelihood, by a central difference."""
    step = 1e-3 * (alpha - 1)
    around = np.log(_scaled_zeta(np.array([alpha - step, alpha, alpha + step]), xmin))
    curvature = (around[0] - 2 * around[1] + around[2]) / step**2
    return float((n_tail * curvature) ** -0.5)


def hurwitz_zeta(s: npt.ArrayLike, q: npt.ArrayLike) -> F64:
    """Sum over k from 0 of (q + k)^-s, for s above 1 and q from 1 on; float64, inputs broadcast.

    Relative error below 1e-12 for s up to 20.

    >>> round(float(hurwitz_zeta(2, 1)), 12), round(float(hurwitz_zeta(2, 2)), 12)
    (1.644934066848, 0.644934066848)
    """
    bases = np.asarray(q, dtype=np.float64)
    values: F64 = _scaled_zeta(s, bases) * bases ** -np.asarray(s, dtype=np.float64)
    return values


def _scaled_zeta(s: npt.ArrayLike, q: npt.ArrayLike) -> F64:
    """The same times q^s, which neither underflows nor overflows: Euler's and Maclaurin's formula.

    Small q are summed term by term until the formula's remainder is negligible.
    """
    exponents, bases = np.broadcast_arrays(np.asarray(s, dtype=np.float64), np.asarray(q, dtype=np.float64))
    small = bases < _SHIFT
    direct = np.zeros(bases.shape)
    terms = 1 + np.arange(_SHIFT) / bases[small][:, None]
    direct[small] = (terms ** -exponents[small][:, None]).sum(axis=1)
    ends = np.asarray(np.where(small, bases + _SHIFT, bases))
    rest = ends / (exponents - 1) + 0.5
    factor = exponents / ends
    for order, bernoulli in enumerate(_BERNOULLI):
        rest += bernoulli * factor
        factor = factor * (exponents + 2 * order + 1) * (exponents + 2 * order + 2) / ends**2
    # The power is 1 where nothing was summed directly, and powers are what this costs.
    scale = np.ones(bases.shape)
    scale[small] = (ends[small] / bases[small]) ** -exponents[small]
    total: F64 = direct + scale * rest
    return total
