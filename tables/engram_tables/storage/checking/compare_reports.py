"""What a comparison of rows tells, and the sets of rows it speaks of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engram_tables.storage.extents import Ranges


class Measure(StrEnum):
    """What makes two rows equal."""

    BYTES = "bytes"
    """Their records."""
    RECODED = "recoded"
    """The right record, and the left one decoded by its codec and encoded by the right one's."""
    VALUES = "values"
    """Their values after decoding; two NaN are equal, and so are the two zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDifference:
    """One row that differs, and its first byte that does.

    Attributes
    ----------
    order, head
        None where no single head owns the row.
    byte
        From the start of the record.
    part
        Which section of the record that byte belongs to, as its codec names it.
    expected, found
        The byte on the left and on the right.
    """

    layer_id: int
    order: int | None
    head: int | None
    row: int
    byte: int
    part: str
    expected: int
    found: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDifference:
    """How many rows differ in one part of their records."""

    part: str
    n_rows_different: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDifference:
    """The rows of one head that were compared.

    Attributes
    ----------
    order, head
        None for rows that no single head owns.
    first_rows
        The lowest row ids that differ, some of them.
    parts
        By section of the record; empty where values were compared.
    max_abs
        The largest absolute difference of two finite values; None where nothing was decoded.
    relative_rms
        The root of the sum of squared differences over that of squared left values, of the rows that differ and
        where both are finite; None where nothing was decoded or all left values are zero.
    n_values_not_finite
        Pairs of values of the rows that differ that are in neither figure.
    """

    layer_id: int
    order: int | None
    head: int | None
    n_rows_compared: int
    n_rows_different: int
    first_rows: tuple[int, ...]
    parts: tuple[PartDifference, ...]
    max_abs: float | None
    relative_rms: float | None
    n_values_not_finite: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsReport:
    """What was compared; `groups` are those with a row in it, in row order; `first` the lowest rows that differ."""

    measure: Measure
    n_rows: int
    n_rows_compared: int
    n_rows_different: int
    bytes_read: int
    groups: tuple[GroupDifference, ...]
    first: tuple[RowDifference, ...]


def common_rows(left: Ranges, right: Ranges) -> Ranges:
    """The rows in both."""
    found: list[tuple[int, int]] = []
    nth_left = nth_right = 0
    while nth_left < len(left) and nth_right < len(right):
        start = max(left[nth_left][0], right[nth_right][0])
        stop = min(left[nth_left][1], right[nth_right][1])
        if start < stop:
            found.append((start, stop))
        if left[nth_left][1] <= right[nth_right][1]:
            nth_left += 1
        else:
            nth_right += 1
    return tuple(found)


def rows_without(ranges: Ranges, other: Ranges) -> Ranges:
    """The rows in `ranges` that are not in `other`."""
    found: list[tuple[int, int]] = []
    for start, stop in ranges:
        for taken_start, taken_stop in common_rows(((start, stop),), other):
            if start < taken_start:
                found.append((start, taken_start))
            start = taken_stop
        if start < stop:
            found.append((start, stop))
    return tuple(found)
