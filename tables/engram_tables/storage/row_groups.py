"""Which head a row belongs to: the rows of a layer as groups that reports speak of. Knows no bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import NamedTuple

from engram_tables.address.spec import AddressSpec


class RowGroup(NamedTuple):
    """Consecutive rows of a layer that the same head owns.

    `order` and `head` are None for rows that no head owns (padding), and for all rows of a layer whose heads share
    them.
    """

    layer_id: int
    order: int | None
    head: int | None
    start: int
    stop: int

    @property
    def label(self) -> str:
        """For people: layer, order and head."""
        owner = "no single head" if self.order is None else f"order {self.order}, head {self.head}"
        return f"layer {self.layer_id}, {owner}"


def row_groups(spec: AddressSpec, layer_id: int) -> tuple[RowGroup, ...]:
    """The groups of a layer, in row order; together they are all its rows."""
    layer = spec.layer(layer_id)
    moduli = chain.from_iterable(layer.moduli)
    owned = sorted(
        (offset, offset + modulus, column)
        for column, (offset, modulus) in enumerate(zip(layer.offsets, moduli, strict=True))
    )
    if any(before[1] > after[0] for before, after in pairwise(owned)):
        return (RowGroup(layer_id, None, None, 0, layer.n_rows),)
    groups: list[RowGroup] = []
    done = 0
    for start, stop, column in owned:
        if done < start:
            groups.append(RowGroup(layer_id, None, None, done, start))
        groups.append(RowGroup(layer_id, *spec.columns[column], start, stop))
        done = stop
    if done < layer.n_rows:
        groups.append(RowGroup(layer_id, None, None, done, layer.n_rows))
    return tuple(groups)


def split_by_group(groups: tuple[RowGroup, ...], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(position in `groups`, start, stop) of the pieces of the rows `start` to `stop`, in order."""
    first = bisect_right(groups, start, key=lambda group: group.start) - 1
    for position in range(first, len(groups)):
        group = groups[position]
        if group.start >= stop:
            return
        yield position, max(start, group.start), min(stop, group.stop)
