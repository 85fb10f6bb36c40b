"""Rows that stand at several places of the sample: within a head, in two heads, and heads that are moved copies.

Works on hashes; whoever names rows by them compares their bytes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engram_tables.storage.row_groups import RowGroup

N_FIRST_PAIRS = 8
# Of so many copies of one record only neighbours in the order are paired: their pairs grow with the square.
_MOST_PAIRED = 8
LEAST_COPY_PAIRS = 4
COPY_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedRows:
    """Rows of one group with the hashes of their records.

    Attributes
    ----------
    hashes, rows
        uint64 and int64 (n,).
    """

    group: RowGroup
    hashes: NDArray[np.uint64]
    rows: NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class Copies:
    """Rows of the sample, of one group, whose record stands in the sample before.

    Attributes
    ----------
    n_rows
        Rows beyond the first of each record.
    n_apart
        Those that do not directly follow the one before.
    first
        The first pairs of rows.
    """

    n_rows: int = 0
    n_apart: int = 0
    first: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRows:
    """Records that stand in two groups.

    Attributes
    ----------
    left, right
        Positions of the groups.
    n_pairs
        Pairs of rows, all shifts together.
    shift
        The commonest difference, right minus left, of the rows' places; counted from the heads' first rows, or from
        the layers' where `is_of_layers`.
    n_shifted, n_comparable
        Pairs at this shift; and pairs of rows of the sample that lie at it, equal or not.
    first
        Some pairs of rows, at this shift.
    """

    left: int
    right: int
    n_pairs: int
    shift: int
    is_of_layers: bool
    n_shifted: int
    n_comparable: int
    first: tuple[tuple[int, int], ...]

    @property
    def is_copy(self) -> bool:
        """Whether one group is the other one, moved by `shift`, as far as the sample goes."""
        return self.n_shifted >= LEAST_COPY_PAIRS and self.n_shifted >= COPY_SHARE * self.n_comparable


def find_copies(groups: Sequence[HashedRows]) -> tuple[list[Copies], list[SharedRows]]:
    """Equal hashes: within each group, and between any two.

    Notes
    -----
    One sort of all hashes.
    """
    hashes = np.concatenate([group.hashes for group in groups])
    rows = np.concatenate([group.rows for group in groups])
    owners = np.repeat(np.arange(len(groups)), [len(group.rows) for group in groups])
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    is_again = np.flatnonzero(ordered[1:] == ordered[:-1])
    within = [Copies() for _ in groups]
    between: dict[tuple[int, int], list[tuple[int, int]]] = {}
    if len(is_again):
        begins = is_again[np.concatenate(([True], np.diff(is_again) != 1))]
        ends = is_again[np.concatenate((np.diff(is_again) != 1, [True]))] + 2
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            _add_run(order[begin:end], rows, owners, within, between)
    shared = [_shared(groups, left, right, pairs) for (left, right), pairs in sorted(between.items())]
    return within, shared


def _add_run(
    places: NDArray[np.int64],
    rows: NDArray[np.int64],
    owners: NDArray[np.int64],
    within: list[Copies],
    between: dict[tuple[int, int], list[tuple[int, int]]],
) -> None:
    """Account for rows of one record; `places` ascend, so that a group's rows do too."""
    found = list(zip(owners[places].tolist(), rows[places].tolist(), strict=True))
    for (owner, row), (next_owner, next_row) in pairwise(found):
        if owner == next_owner:
            copies = within[owner]
            copies.n_rows += 1
            copies.n_apart += next_row - row > 1
            if len(copies.first) < N_FIRST_PAIRS:
                copies.first.append((row, next_row))
    paired = [(a, b) for k, a in enumerate(found) for b in found[k + 1 :]] if len(found) <= _MOST_PAIRED else []
    for (owner, row), (next_owner, next_row) in paired or pairwise(found):
        if owner != next_owner:
            between.setdefault((owner, next_owner), []).append((row, next_row))


def _shared(groups: Sequence[HashedRows], left: int, right: int, pairs: list[tuple[int, int]]) -> SharedRows:
    starts = groups[left].group.start, groups[right].group.start
    of_heads = Counter((b - starts[1]) - (a - starts[0]) for a, b in pairs)
    of_layers = Counter(b - a for a, b in pairs)
    is_of_layers = groups[left].group.layer_id != groups[right].group.layer_id and (
        max(of_layers.values()) > max(of_heads.values())
    )
    votes = of_layers if is_of_layers else of_heads
    # The smallest move of those that are as common.
    shift = min(votes, key=lambda move: (-votes[move], abs(move), move))
    by_rows = shift if is_of_layers else shift + starts[1] - starts[0]
    return SharedRows(
        left=left,
        right=right,
        n_pairs=len(pairs),
        shift=shift,
        is_of_layers=is_of_layers,
        n_shifted=votes[shift],
        n_comparable=len(np.intersect1d(groups[left].rows + by_rows, groups[right].rows)),
        first=tuple(pair for pair in pairs if pair[1] - pair[0] == by_rows)[:N_FIRST_PAIRS],
    )


def chance_of_equals(records: NDArray[np.uint8]) -> float:
    """How likely two rows are equal if each byte of a record were drawn by itself, as often as it stands in
    `records`, uint8 (n, row_bytes); 0 below 2**-200."""
    if not len(records):
        return 0.0
    chance = 1.0
    for column in records.T:
        shares = np.bincount(column, minlength=256) / len(records)
        chance *= float((shares * shares).sum())
        if chance < 2.0**-200:
            return 0.0
    return chance
