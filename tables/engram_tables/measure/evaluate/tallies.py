"""Sums by document, and the shares and ratios of sums with what drawing other documents would change of them.

Positions of one document resemble one another, so that an interval which took each for a draw of its own would be far
too narrow. Documents are the draws here: a share is a ratio of two sums over them, and its error is that of such a
ratio.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_CLUSTERS = 4096
"""More documents than that are taken together with their neighbours, which only widens an interval."""
CONFIDENCE = 0.95

I64 = npt.NDArray[np.int64]


class Tallies:
    """Named sums over positions, document by document.

    Parameters
    ----------
    n_documents
        Of the text, those without a position among them.
    """

    def __init__(self, n_documents: int) -> None:
        self._n_documents = max(n_documents, 1)
        self.n_clusters = min(self._n_documents, MOST_CLUSTERS)
        self._sums: dict[Hashable, npt.NDArray[np.float64]] = {}

    def clusters(self, documents: I64) -> I64:
        """int64 (n,): the draw that each document belongs to."""
        return documents * self.n_clusters // self._n_documents

    def add(self, name: Hashable, clusters: I64, values: npt.NDArray[Any]) -> None:
        """Add numbers or truths of positions, (n,), to a sum."""
        part = np.bincount(clusters, weights=values, minlength=self.n_clusters).astype(np.float64)
        self._sums[name] = self._sums[name] + part if name in self._sums else part

    def sums(self, name: Hashable) -> npt.NDArray[np.float64]:
        """float64 (n_clusters,): a sum, draw by draw; 0 where nothing was added."""
        return self._sums.get(name, np.zeros(self.n_clusters))

    def n_clusters_with(self, name: Hashable) -> int:
        """Draws whose sum is not 0."""
        return int(np.count_nonzero(self.sums(name)))

    def ratio(self, above: Hashable, below: Hashable) -> dict[str, float | None]:
        """One sum over another: `value`, and `low` and `high`, between which it lies with `CONFIDENCE`.

        All are None where the sum below is 0, the bounds where it stands in one document only.

        Notes
        -----
        The variance of a ratio of sums, linearised, with whole documents as the draws (Cochran, Sampling Techniques,
        section 6.3, without a finite population), and Student's t with one degree of freedom less than documents.
        """
        one, other = self.sums(above), self.sums(below)
        if not other.sum():
            return {"value": None, "low": None, "high": None}
        value = float(one.sum() / other.sum())
        counts = int(np.count_nonzero((one != 0) | (other != 0)))
        if counts < 2:
            return {"value": value, "low": None, "high": None}
        residuals = one - value * other
        variance = float((residuals**2).sum()) * counts / (counts - 1) / float(other.sum()) ** 2
        half = student_t(counts - 1) * math.sqrt(variance)
        return {"value": value, "low": value - half, "high": value + half}


def student_t(degrees: int, confidence: float = CONFIDENCE) -> float:
    """How many standard errors an interval extends to either side.

    >>> round(student_t(10), 3), round(student_t(1000), 3)
    (2.228, 1.962)

    Notes
    -----
    Exact for 1 and 2 degrees of freedom, from 3 on the expansion of Abramowitz and Stegun 26.7.5, which is right to
    within 0.01.
    """
    if degrees == 1:
        return math.tan(math.pi * confidence / 2)
    if degrees == 2:
        return confidence * math.sqrt(2 / (1 - confidence**2))
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / degrees**power for power, term in enumerate(terms))
