"""Which rows a look at a table reads: of every head some at random, and some blocks of neighbours. Reads no byte.

Blocks lie at the same places in all heads, counted from each head's first row, and in all layers, counted from each
layer's: so that a head or a layer that is a copy of another one, moved by a few rows, shows as equal records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import InvalidInput
from engram_tables.inspect.record_values import mix_words
from engram_tables.storage.building.initialise import layer_state
from engram_tables.storage.extents import Ranges
from engram_tables.storage.row_groups import RowGroup, row_groups

BLOCK_ROWS = 16
"""Neighbours that are read together."""
LEAST_SAMPLE = 4 * BLOCK_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRows:
    """The rows of one group that are here, and those of them that are looked at.

    Attributes
    ----------
    group
        A head's rows, or rows that no single head owns.
    is_padding
        Whether no head owns the rows though heads own others of the layer.
    ranges
        Half-open, the rows of the group that are here.
    rows
        int64 (n,), ascending and distinct, numbered within the layer; None for all of `ranges`.
    """

    group: RowGroup
    is_padding: bool
    ranges: Ranges
    rows: NDArray[np.int64] | None

    @property
    def n_here(self) -> int:
        """Rows of the group that are here."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def n_read(self) -> int:
        """Rows that are looked at."""
        return self.n_here if self.rows is None else len(self.rows)


def choose_rows(spec: AddressSpec, owned: Mapping[int, Ranges], *, sample: int | None, seed: int = 0) -> list[HeadRows]:
    """The rows to look at, one entry for every group of rows that has some here.

    Parameters
    ----------
    owned
        By layer id, the rows that are here.
    sample
        About how many of each head, at least `LEAST_SAMPLE`; a head with no more rows than that is taken whole, and
        None takes all. Half of them are random ones, half are blocks of `BLOCK_ROWS` neighbours, both ends of the head
        among them.

    Raises
    ------
    InvalidInput
        A sample that is too small.
    """
    if sample is not None and sample < LEAST_SAMPLE:
        raise InvalidInput(
            f"sample: found {sample}, expected {LEAST_SAMPLE} rows a head or more; blocks of neighbours need as many"
        )
    heads = []
    for layer_id in spec.layer_ids:
        groups = row_groups(spec, layer_id)
        for group in groups:
            ranges = tuple(
                (max(start, group.start), min(stop, group.stop))
                for start, stop in owned[layer_id]
                if start < group.stop and stop > group.start
            )
            is_padding = group.order is None and len(groups) > 1
            heads.append(HeadRows(group=group, is_padding=is_padding, ranges=ranges, rows=None))
    heads = [head for head in heads if head.ranges]
    if sample is None or not heads:
        return heads
    shared = _shared_blocks(spec, heads, sample, seed)
    return [_sampled(head, shared, sample, (seed, 2 + nth)) for nth, head in enumerate(heads)]


def scattered(seed: int, stream: int, n_numbers: int, below: int) -> NDArray[np.int64]:
    """Numbers from 0 to `below` - 1, int64 (n_numbers,), the same ones on every machine; some may be equal."""
    state = np.uint64(layer_state(seed % 2**64, stream))
    words = mix_words(state + np.arange(1, n_numbers + 1, dtype=np.uint64))
    # Remainders lean to small numbers by below / 2**64.
    return (words % np.uint64(below)).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """First rows of blocks: from the beginning of every head, and of every layer."""

    of_heads: NDArray[np.int64]
    of_layers: NDArray[np.int64]


def _shared_blocks(spec: AddressSpec, heads: list[HeadRows], sample: int, seed: int) -> _Shared:
    n_blocks = sample // 2 // BLOCK_ROWS
    shortest = min(head.group.stop - head.group.start for head in heads if not head.is_padding)
    has_layers = len(spec.layers) > 1
    n_of_heads = n_blocks // 2 if has_layers else n_blocks
    per_layer = max(sum(head.group.layer_id == layer_id for head in heads) for layer_id in spec.layer_ids)
    n_of_layers = (n_blocks - n_of_heads) * per_layer if has_layers else 0
    shortest_layer = min(layer.n_rows for layer in spec.layers)
    return _Shared(
        of_heads=scattered(seed, 0, n_of_heads, shortest),
        of_layers=scattered(seed, 1, n_of_layers, shortest_layer),
    )


def _sampled(head: HeadRows, shared: _Shared, sample: int, stream: tuple[int, int]) -> HeadRows:
    if head.n_here <= sample:
        return head
    group = head.group
    edges = [end for start, stop in (head.ranges[0], head.ranges[-1]) for end in (start, stop - BLOCK_ROWS)]
    firsts = np.concatenate((np.array(edges, np.int64), group.start + shared.of_heads, shared.of_layers))
    in_blocks = (firsts[:, None] + np.arange(BLOCK_ROWS)).reshape(-1)
    starts, stops = np.array(head.ranges, np.int64).T
    begins = np.concatenate(([0], np.cumsum(stops - starts)))
    numbers = scattered(*stream, sample // 2, head.n_here)
    nth = np.searchsorted(begins, numbers, side="right") - 1
    rows = np.sort(np.concatenate((in_blocks, starts[nth] + numbers - begins[nth])))
    rows = rows[np.concatenate(([True], np.diff(rows) > 0))]
    # Blocks may reach past the head, or into rows that are elsewhere.
    place = np.searchsorted(starts, rows, side="right") - 1
    is_here = (place >= 0) & (rows < stops[place])
    return HeadRows(group=group, is_padding=head.is_padding, ranges=head.ranges, rows=rows[is_here])
