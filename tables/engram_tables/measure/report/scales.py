"""Where a value lies along an axis, and which values are marked there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_MOST_TICKS = 6
_DIGIT_UNITS = 7.6
"""Width of a digit in the drawing's units, at the axis's letters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Values from `low` to `high`, laid from `start` to `stop` in the drawing's units.

    Attributes
    ----------
    is_log
        Equal steps are equal ratios; `low` is then above 0.
    """

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """The place of a value, held within the axis."""
        low, high, inside = self.low, self.high, min(max(value, self.low), self.high)
        if self.is_log:
            low, high, inside = math.log(low), math.log(high), math.log(inside)
        return self.start + (inside - low) / (high - low) * (self.stop - self.start)


def domain(values: Sequence[float], *, is_log: bool, from_zero: bool = False) -> tuple[float, float]:
    """Ends of an axis that holds all values with a little room, or from 0 on."""
    if is_log:
        above = [value for value in values if value > 0] or [1.0]
        low, high = min(above), max(above)
        return (low / 1.12, high * 1.12) if high > low else (low / 2, high * 2)
    low, high = min(values, default=0.0), max(values, default=1.0)
    if from_zero:
        low = min(low, 0.0)
    if high == low:
        high = low + (abs(low) or 1.0)
    return (low if low == 0 else low - 0.03 * (high - low)), high + 0.04 * (high - low)


def ticks(low: float, high: float, *, is_log: bool) -> list[float]:
    """Round values within an axis, ascending: powers of ten where there are several, else 1, 2 and 5 of each."""
    if is_log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = max(1, math.ceil((last - first) / _MOST_TICKS))
        powers = [10.0**at for at in range(first, last + 1, every) if low <= 10.0**at <= high]
        if len(powers) > 2:
            return powers
        fine = [part * 10.0**at for at in range(first, last + 1) for part in (1, 2, 5)]
        inside = [value for value in fine if low <= value <= high]
        if len(inside) > 1:
            return inside
    step = _round_step((high - low) / (_MOST_TICKS - 1))
    steps = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [at * step for at in steps]


def spaced(values: Sequence[float], scale: Scale, spell: Callable[[float], str]) -> list[float]:
    """Of the values those whose labels do not touch, the last among them."""
    kept: list[float] = []
    edge = math.inf
    for value in sorted(set(values), reverse=True):
        half = len(spell(value)) * _DIGIT_UNITS / 2
        if scale.at(value) + half < edge:
            kept.append(value)
            edge = scale.at(value) - half - _DIGIT_UNITS
    return kept[::-1]


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(part * power for part in (1, 2, 2.5, 5, 10) if part * power >= step * (1 - 1e-9))
