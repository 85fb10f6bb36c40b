"""What a uniform hash would do: rows touched, rows shared, and how large a sample must be to call a row dead.

D distinct n-grams thrown independently and evenly into m rows: the occupancy problem. Knows neither hash nor corpus.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_DIGITS = 60
CHANCE_ROWS = 0.01
"""A row may be called dead where chance alone would leave fewer rows than this untouched, in the mean."""


class Occupancy(NamedTuple):
    """Mean and standard deviation of the rows that `n_ngrams` touch."""

    mean: float
    deviation: float

    def z_score(self, found: int) -> float | None:
        """How many deviations `found` lies from the mean; None where there is no deviation to speak of."""
        return (found - self.mean) / self.deviation if self.deviation > 1e-9 else None


def touched_rows(n_ngrams: int, n_rows: int) -> Occupancy:
    """Rows that `n_ngrams` distinct n-grams touch under a uniform hash into `n_rows`.

    >>> touched_rows(2, 4)
    Occupancy(mean=1.75, deviation=0.4330127018922193)

    Notes
    -----
    mean m(1 - q) with q = (1 - 1/m)^D; variance m(m - 1)(1 - 2/m)^D + mq - m²q². The terms cancel to the last digits
    of a double, hence decimals.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        m, d = Decimal(n_rows), Decimal(n_ngrams)
        untouched = _power(1 - 1 / m, d)
        both = _power(1 - 2 / m, d)
        variance = m * (m - 1) * both + m * untouched - (m * untouched) ** 2
        return Occupancy(float(m * (1 - untouched)), float(max(variance, Decimal(0)).sqrt()))


def _power(base: Decimal, exponent: Decimal) -> Decimal:
    if exponent == 0:
        return Decimal(1)
    return Decimal(0) if base <= 0 else (base.ln() * exponent).exp()


def rows_by_ngrams(n_ngrams: int, n_rows: int, up_to: int) -> npt.NDArray[np.float64]:
    """Rows that would own 0, 1, … `up_to` n-grams, in the mean: float64 (up_to + 1,), the binomial distribution."""
    if n_rows == 1:
        return np.array([float(k == n_ngrams) for k in range(up_to + 1)])
    expected = np.zeros(up_to + 1)
    log_hit, log_miss = -math.log(n_rows), math.log1p(-1 / n_rows)
    for k in range(min(up_to, n_ngrams) + 1):
        ways = math.lgamma(n_ngrams + 1) - math.lgamma(k + 1) - math.lgamma(n_ngrams - k + 1)
        expected[k] = n_rows * math.exp(ways + k * log_hit + (n_ngrams - k) * log_miss)
    return expected


def shared_share(n_ngrams: int, n_rows: int) -> float:
    """Probability that an n-gram's row belongs to another one too."""
    if n_ngrams < 2:
        return 0.0
    return 1.0 if n_rows == 1 else -math.expm1((n_ngrams - 1) * math.log1p(-1 / n_rows))


def untouched_by_chance(n_ngrams: int, n_rows: int) -> float:
    """Rows that chance leaves untouched, in the mean."""
    return n_rows - touched_rows(n_ngrams, n_rows).mean if n_rows > 1 else float(n_ngrams == 0)


def ngrams_needed(n_rows: int) -> int:
    """Distinct n-grams from which on an untouched row is no matter of chance: fewer than `CHANCE_ROWS` are expected.

    >>> ngrams_needed(16_000_057)
    339093577
    """
    return math.ceil(n_rows * math.log(n_rows / CHANCE_ROWS))


class Dispersion(NamedTuple):
    """Pearson's chi-square of n-grams a row, over its degrees of freedom, and how many deviations that lies from 1."""

    ratio: float
    z_score: float | None


def dispersion(sum_of_squares: int, n_ngrams: int, n_rows: int) -> Dispersion | None:
    """Evenness of n-grams over rows: 1 for a uniform hash, more where rows are crowded, less where they are spread.

    Parameters
    ----------
    sum_of_squares
        Of n-grams a row, over all rows.

    Returns
    -------
    None for a single row or no n-gram.
    """
    if n_rows < 2 or n_ngrams < 1:
        return None
    # Whole numbers up to the division: the two terms nearly cancel.
    chi_square = (sum_of_squares * n_rows - n_ngrams * n_ngrams) / n_ngrams
    degrees = n_rows - 1
    deviation = math.sqrt(2 * degrees * (n_ngrams - 1) / n_ngrams)
    return Dispersion(chi_square / degrees, (chi_square - degrees) / deviation if deviation > 0 else None)
