"""Prime moduli in exact arithmetic."""

from __future__ import annotations

from collections.abc import Container

# The first thirteen primes as Miller-Rabin witnesses decide every n below 3.3e24 (Sorenson and Webster, 2015).
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


def is_prime(n: int) -> bool:
    """Whether `n` is prime; exact below 3.3e24.

    >>> [n for n in range(16_000_050, 16_000_080) if is_prime(n)]
    [16000057, 16000079]
    """
    if n < 2:
        return False
    for prime in _WITNESSES:
        if n % prime == 0:
            return n == prime
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(n, witness, odd, twos) for witness in _WITNESSES)


def _passes(n: int, witness: int, odd: int, twos: int) -> bool:
    power = pow(witness, odd, n)
    if power in (1, n - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % n
        if power == n - 1:
            return True
    return False


def next_prime(after: int, *, unless_in: Container[int] = ()) -> int:
    """The smallest prime greater than `after` that `unless_in` does not hold."""
    candidate = after + 1
    while candidate in unless_in or not is_prime(candidate):
        candidate += 1
    return candidate
