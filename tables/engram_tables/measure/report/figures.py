"""Figures as a page spells them: three digits or so, with their unit; what is missing is a dash.

A record's values come from outside: what is no finite number is refused here.
"""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"

_BINARY = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_DECIMAL = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
_MOST = 1e30
"""No quantity of a record comes near it, and axes may still be multiplied by a little."""


def number(value: Any) -> float:
    """A number of a record.

    Raises
    ------
    TypeError, ValueError
        Anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number where {str(value)[:40]!r} stands")
    # Written so that it is true of NaN too, and never makes a float of a long integer.
    if not -_MOST <= value <= _MOST:
        raise ValueError(f"a number up to {_MOST:g} where another stands")
    return float(value)


def number_or_none(value: Any) -> float | None:
    """As `number`, and None for None."""
    return None if value is None else number(value)


def words(value: Any) -> str:
    """A value of a record as it stands there: lists joined, numbers with their thousands, None as a dash."""
    match value:
        case None:
            return MISSING
        case bool():
            return "yes" if value else "no"
        case int():
            return whole(value)
        case float():
            return short(value)
        case list() | tuple():
            return ", ".join(words(each) for each in value) or MISSING
        case dict():
            return ", ".join(f"{key} {words(each)}" for key, each in value.items()) or MISSING
    return str(value)


def whole(value: Any) -> str:
    """1,234,567."""
    return MISSING if value is None else f"{number(value):,.0f}"


def short(value: Any) -> str:
    """Four significant digits, and thousands apart.

    >>> short(1234567.8), short(0.123456), short(12.0), short(None)
    ('1,234,568', '0.1235', '12', '–')
    """
    if value is None:
        return MISSING
    figure = number(value)
    if figure == 0 or abs(figure) >= 1000:
        return f"{figure:,.0f}"
    if abs(figure) < 1e-4:
        return f"{figure:.2e}"
    digits = max(0, 3 - math.floor(math.log10(abs(figure))))
    text = f"{figure:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def scaled(value: Any) -> str:
    """A figure for an axis.

    >>> scaled(12_000), scaled(3_400_000), scaled(0.25), scaled(7)
    ('12k', '3.4M', '0.25', '7')
    """
    if value is None:
        return MISSING
    figure = number(value)
    for prefix, scale in _PREFIXES:
        if abs(figure) >= scale:
            return f"{figure / scale:.3g}{prefix}"
    return f"{figure:.3g}"


def percent(value: Any) -> str:
    """A share as per cent: one digit below 10, none above 99.95."""
    if value is None:
        return MISSING
    share = 100 * number(value)
    return f"{share:.2f} %" if 0 < abs(share) < 1 else f"{share:.1f} %" if abs(share) < 1000 else f"{share:,.0f} %"


def tick_percent(value: Any) -> str:
    """A share on an axis."""
    return f"{100 * number(value):.4g} %"


def size(value: Any) -> str:
    """Bytes, in the units in which they are round.

    >>> size(512 * 2**20), size(4_000_000_000), size(264), size(1_234_567)
    ('512 MiB', '4 GB', '264 B', '1.23 MB')
    """
    if value is None:
        return MISSING
    n_bytes = number(value)
    units = _BINARY if n_bytes % 2**20 == 0 and n_bytes else _DECIMAL
    for unit, scale in units:
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}" if n_bytes / scale < 1000 else f"{n_bytes / scale:,.0f} {unit}"
    return f"{n_bytes:.0f} B"


def microseconds(value: Any) -> str:
    """A time given in µs.

    >>> microseconds(14.04), microseconds(207603.5), microseconds(3.2e6)
    ('14 µs', '208 ms', '3.2 s')
    """
    if value is None:
        return MISSING
    us = number(value)
    for unit, scale in (("s", 1e6), ("ms", 1e3)):
        if abs(us) >= scale:
            return f"{us / scale:.3g} {unit}"
    return f"{us:.3g} µs"
