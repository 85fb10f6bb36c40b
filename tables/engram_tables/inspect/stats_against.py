"""Heads of a table held against those of a table that is right: equal, moved by some rows, or something else.

A row says nothing of its own number, so a head whose rows are all moved looks sound by itself; beside a right one it
does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.inspect.stats_findings import Finding, Place, Severity, name_places
from engram_tables.inspect.stats_sample import BLOCK_ROWS, HeadRows
from engram_tables.storage.checking.compare_reports import common_rows
from engram_tables.storage.row_groups import RowGroup

if TYPE_CHECKING:
    from engram_tables.fetch.table import Table

MOST_MOVED = 8
"""Rows by which a head may be moved and still be known."""
_MOST_ROWS = 512
_SAME_COSINE = 0.9
_KNOWN_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstHead:
    """One group of rows beside the reference's.

    Attributes
    ----------
    n_rows
        Rows that were compared: of the sample, with values, and in both tables at every move.
    n_equal
        Those that are the reference's row of the same number: the same bytes, or where codecs differ the same
        direction (a cosine of 0.9 or more).
    moved_by
        The k other than 0 at which most rows are the reference's row + k.
    n_moved
        How many are.
    """

    group: RowGroup
    n_rows: int
    n_equal: int
    moved_by: int
    n_moved: int
    first_rows: tuple[int, ...]


def compare_with(table: Table, reference: Table, heads: Sequence[HeadRows]) -> Iterator[AgainstHead]:
    """Each group of `heads` whose rows both tables have; raises as `stats.table_stats`."""
    mine, other = table.stored, reference.stored
    if mine.spec.fingerprint != other.spec.fingerprint:
        raise SpecMismatch(
            f"{reference.path}: found the addressing {other.spec.fingerprint}, expected {mine.spec.fingerprint} as "
            f"{table.path} has; hold the table against one of its own addressing"
        )
    is_bytes = mine.codec == other.codec and mine.row_bytes == other.row_bytes
    if not is_bytes and not (mine.codec.can_decode and other.codec.can_decode):
        raise InvalidInput(
            f"{reference.path}: found rows of {other.row_bytes} bytes in codec {other.codec.name}, expected "
            f"{mine.codec.name}, or two codecs that are read; take a reference in this table's codec"
        )
    for head in heads:
        rows = _in_both(reference, head)
        if len(rows):
            yield _compare_head(table, reference, head.group, rows, is_bytes=is_bytes)


def _in_both(reference: Table, head: HeadRows) -> NDArray[np.int64]:
    """Rows of the sample whose every move stays within the group and the rows of the reference."""
    chosen = head.rows
    if chosen is None:
        chosen = np.concatenate([np.arange(start, stop) for start, stop in _some(head)])
    inner = [
        (max(start, head.group.start) + MOST_MOVED, min(stop, head.group.stop) - MOST_MOVED)
        for start, stop in common_rows(head.ranges, reference.stored.owned(head.group.layer_id))
    ]
    is_inner = np.zeros(len(chosen), np.bool_)
    for start, stop in inner:
        is_inner |= (chosen >= start) & (chosen < stop)
    rows: NDArray[np.int64] = chosen[is_inner]
    return rows[:: max(1, -(-len(rows) // _MOST_ROWS))]


def _some(head: HeadRows) -> list[tuple[int, int]]:
    """Blocks of a group that is read whole: all of it, or so many spread over it."""
    n_blocks = _MOST_ROWS // BLOCK_ROWS
    return [
        (first, min(first + BLOCK_ROWS, stop))
        for start, stop in head.ranges
        for first in range(start, stop, max(BLOCK_ROWS, (stop - start) // n_blocks))
    ]


def _compare_head(
    table: Table, reference: Table, group: RowGroup, rows: NDArray[np.int64], *, is_bytes: bool
) -> AgainstHead:
    records = table.fetch_rows(group.layer_id, rows)
    usable = records.any(axis=1)
    values = None
    if table.stored.codec.can_decode:
        values = table.decode(records)
        with np.errstate(invalid="ignore"):
            spread = values.max(axis=1) - values.min(axis=1)
        usable &= np.isfinite(values).all(axis=1) & (spread > 0)
    rows, records = rows[usable], records[usable]
    moves = list(range(-MOST_MOVED, MOST_MOVED + 1))
    same = {}
    for move in moves:
        theirs = reference.fetch_rows(group.layer_id, rows + move)
        if is_bytes or values is None:
            same[move] = (theirs == records).all(axis=1)
        else:
            same[move] = _cosines(values[usable], reference.decode(theirs)) >= _SAME_COSINE
    others = [move for move in moves if move]
    moved_by = max(others, key=lambda move: (int(same[move].sum()), -abs(move), move))
    return AgainstHead(
        group=group,
        n_rows=len(rows),
        n_equal=int(same[0].sum()),
        moved_by=moved_by,
        n_moved=int((same[moved_by] & ~same[0]).sum()),
        first_rows=tuple(rows[~same[0]][:8].tolist()),
    )


def _cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    def dots(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
        products: NDArray[np.float64] = np.einsum("ij,ij->i", a, b, dtype=np.float64)
        return products

    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = dots(left, right) / np.sqrt(dots(left, left) * dots(right, right))
    known: NDArray[np.float64] = np.nan_to_num(cosines, nan=-1.0)
    return known


def findings_against(held: Sequence[AgainstHead], where: str) -> list[Finding]:
    """Heads that are not the reference's; one finding for all that are moved alike, and one for the others."""
    found = []
    unlike = [head for head in held if head.n_equal < head.n_rows]
    moved = [head for head in unlike if head.n_moved >= max(_KNOWN_SHARE * head.n_rows, 2)]
    for by in sorted({head.moved_by for head in moved}):
        places = [_place(head, head.n_moved) for head in moved if head.moved_by == by]
        found.append(
            Finding(
                check="shifted-head",
                severity=Severity.FAULT,
                where=name_places(places),
                found=f"row r is row r {'+' if by > 0 else '-'} {abs(by)} of {where}: {_of(places)}",
                expected="row r to be row r",
                remedy="the rows were written one head too early or late, or counted from another first row: build the "
                "table again, and check the offsets of its spec with `engram golden check`",
                places=tuple(places),
            )
        )
    places = [_place(head, head.n_rows - head.n_equal) for head in unlike if head not in moved]
    if places:
        found.append(
            Finding(
                check="unlike-reference",
                severity=Severity.FAULT,
                where=name_places(places),
                found=f"rows that are not those of {where}: {_of(places)}, and no move of up to {MOST_MOVED} rows "
                "explains them",
                expected="the same rows",
                remedy="`engram diff` compares all of them and names the first byte that differs; or name another "
                "reference",
                places=tuple(places),
            )
        )
    return found


def _place(head: AgainstHead, n_rows: int) -> Place:
    group = head.group
    return Place(group.layer_id, group.order, group.head, n_rows, head.n_rows, head.first_rows)


def _of(places: Sequence[Place]) -> str:
    return f"{sum(place.n_rows for place in places):,} of {sum(place.n_rows_read for place in places):,} compared"
