"""How likely a uniform hash makes so many collisions. Pairs of n-grams collide independently of each other, two by two,
so that their number has the mean and the variance of Poisson's."""

from __future__ import annotations

import math

DEVIATIONS = 6.0
"""So far from its mean, a figure is no chance."""
NO_CHANCE = 1e-9
"""What happens by chance less often than this is none: about `DEVIATIONS` of a normal one."""


def chance_of_so_many(found: int, mean: float) -> float:
    """Probability that a Poisson variable of this mean is `found` or more.

    >>> round(chance_of_so_many(2, 1.0), 6), chance_of_so_many(0, 3.0)
    (0.264241, 1.0)
    """
    if found <= 0:
        return 1.0
    if mean <= 0:
        return 0.0
    if found <= mean:
        # Not the tail that anybody asks about; one minus the other one.
        return 1.0 - sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(found))
    term = math.exp(found * math.log(mean) - mean - math.lgamma(found + 1))
    total, k = 0.0, found
    while term > total * 1e-17:
        total += term
        k += 1
        term *= mean / k
    return min(1.0, total)
