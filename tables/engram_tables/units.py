"""Numbers as people write and read them: byte sizes, position lists, exact JSON integers, canonical JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from engram_tables.errors import InvalidInput

ProgressHook = Callable[[int, int], None]
"""Called with (done, total) in the unit that the function taking it names. It may be called from any thread."""

Stage = Callable[[str, str], AbstractContextManager[ProgressHook]]
"""Called with the name of a stage and its unit; the progress hook it gives lives as long as the stage."""

PAGE_BYTES = 4096
EXACT_IN_DOUBLE = 2**53

_SUFFIX_BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_INTEGERS = re.compile(r"\s*(-?\d+)(?:-(\d+))?\s*")
_LONGEST_RANGE = 10_000_000
_LONGEST_INTEGER = 18
# A key of sixteen 32-bit ids, the longest integer that any file here holds.
_MOST_BITS = 512
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


@contextmanager
def unwatched(_task: str, _unit: str) -> Iterator[ProgressHook]:
    """The stage of a run that nobody watches."""
    yield lambda _done, _total: None


def parse_bytes(text: str) -> int:
    """Bytes from `512MiB`, `4GB` or `4096`.

    >>> parse_bytes("1.5KiB"), parse_bytes("4GB"), parse_bytes("4096")
    (1536, 4000000000, 4096)
    """
    match = _BYTES.fullmatch(text)
    if match is None or match[2].lower() not in _SUFFIX_BYTES:
        raise InvalidInput(
            f"size {text!r}: not a number with one of {', '.join(s for s in _SUFFIX_BYTES if s)}; "
            "write for instance 512MiB, 4GB or 4096"
        )
    scale = _SUFFIX_BYTES[match[2].lower()]
    whole, _, fraction = match[1].partition(".")
    denominator = int(10 ** len(fraction))
    scaled, remainder = divmod(int(whole + fraction) * scale, denominator)
    if remainder:
        raise InvalidInput(f"size {text!r}: {scaled} bytes and a fraction; give a whole number of bytes")
    return scaled


def format_bytes(n_bytes: int) -> str:
    """Rounded binary form with the exact count beside it.

    >>> format_bytes(264), format_bytes(1536)
    ('264 B', '1.50 KiB (1,536 B)')
    """
    for suffix, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.2f} {suffix} ({n_bytes:,} B)"
    return f"{n_bytes:,} B"


def parse_integers(text: str) -> list[int]:
    """Integers from a list with ranges.

    >>> parse_integers("3,7-9,-1")
    [3, 7, 8, 9, -1]
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = _INTEGERS.fullmatch(part)
        if match is None:
            raise InvalidInput(f"list {text!r}: found {part!r}, expected integers and ranges such as 3,7-9")
        if max(len(match[1]), len(match[2] or "")) > _LONGEST_INTEGER:
            raise InvalidInput(f"list {text[:40]!r}: found a number of {len(match[1])} digits, expected less than 2^63")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= _LONGEST_RANGE:
            raise InvalidInput(f"list {text!r}: range {part!r} runs backwards or past {_LONGEST_RANGE:,} numbers")
        numbers.extend(range(first, last + 1))
    return numbers


def json_int(value: int) -> int | str:
    """`value` itself, or its decimal string where a JSON double would not hold it exactly."""
    return value if abs(value) < EXACT_IN_DOUBLE else str(value)


def int_from_json(value: Any, where: str) -> int:
    """The exact integer behind a JSON number or decimal string.

    Raises
    ------
    InvalidInput
        For anything else, floats above all: a constant that has been through a float is wrong in silence.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > _MOST_BITS:
            raise InvalidInput(f"{where}: found an integer of {value.bit_length()} bits, expected {_MOST_BITS} at most")
        return value
    if isinstance(value, str) and re.fullmatch(r"-?(0|[1-9]\d{0,159})", value):
        return int(value)
    raise InvalidInput(
        f"{where}: found {value!r} ({type(value).__name__}), expected an integer or its decimal string; "
        "write the constant again from its source, exactly"
    )


def canonical_json(value: Any) -> bytes:
    """Sorted keys, ASCII, no white space, no floats: one spelling for one value, so that it can be hashed."""
    _refuse_floats(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float):
        raise TypeError(f"a float in canonical JSON: {value!r}")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item)
