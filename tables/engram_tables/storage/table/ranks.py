"""Which rows a rank owns where one table is divided among several, and the proof that a set of ranks is whole.

Rows keep the numbers that they have in the undivided table.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engram_tables.address.spec import AddressSpec, LayerAddressing
from engram_tables.errors import InvalidInput
from engram_tables.storage.extents import Ranges
from engram_tables.storage.table.layout import MANIFEST_NAME

RANK_NAME = re.compile(r"rank-(0|[1-9][0-9]{0,8})-of-([1-9][0-9]{0,8})")


class RankBy(StrEnum):
    """What is divided: columns, rows or layers."""

    HEAD = "head"
    ROWS = "rows"
    LAYER = "layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One of `n_ranks` owners, numbered from 0."""

    by: str
    rank: int
    n_ranks: int

    def __post_init__(self) -> None:
        if self.by not in tuple(RankBy):
            raise InvalidInput(f"ranks by {self.by!r}: not known, expected one of {', '.join(RankBy)}; choose one")
        if not 0 <= self.rank < self.n_ranks:
            raise InvalidInput(
                f"rank: found {self.rank} of {self.n_ranks}, expected 0 to {self.n_ranks - 1}; ranks count from 0"
            )

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.n_ranks} by {self.by}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Rows of a layer that `n_owners` own, other than one."""

    layer_id: int
    start: int
    stop: int
    owners: tuple[int, ...]

    def __str__(self) -> str:
        who = f"owned by {', '.join(map(str, self.owners))}" if self.owners else "owned by none"
        return f"layer {self.layer_id}, rows {self.start} to {self.stop - 1}: {who}"


def owned_rows(spec: AddressSpec, *, by: str, rank: int, n_ranks: int) -> dict[int, Ranges]:
    """The rows of every layer that a rank owns; a layer may own none.

    Parameters
    ----------
    by
        `head`: ceil(columns / n_ranks) consecutive columns a rank, as vLLM divides them, each with the spare rows
        that follow it. `rows`: ceil(rows / n_ranks) consecutive rows of each layer. `layer`: ceil(layers / n_ranks)
        layers in the spec's order.

    Raises
    ------
    InvalidInput
        An unknown `by`, a rank that is not one of `n_ranks`, or `head` where columns share rows.
    """
    Rank(by=by, rank=rank, n_ranks=n_ranks)
    if by == RankBy.LAYER:
        start, stop = _share(len(spec.layers), rank, n_ranks)
        return {
            layer.layer_id: ((0, layer.n_rows),) if start <= layer_idx < stop else ()
            for layer_idx, layer in enumerate(spec.layers)
        }
    if by == RankBy.HEAD:
        start, stop = _share(spec.n_columns, rank, n_ranks)
        return {layer.layer_id: _joined(_column_rows(spec, layer)[start:stop]) for layer in spec.layers}
    return {layer.layer_id: _joined([_share(layer.n_rows, rank, n_ranks)]) for layer in spec.layers}


def check_ranks(spec: AddressSpec, owned: Sequence[Mapping[int, Ranges]]) -> list[Gap]:
    """Where a set of owners is not disjoint and complete; empty if every row has exactly one owner.

    Parameters
    ----------
    owned
        For each owner the ranges of every layer; a `Gap` names owners by their position here.
    """
    found: list[Gap] = []
    for layer in spec.layers:
        ends = [(0, -1), (layer.n_rows, -1)]
        for owner, of_owner in enumerate(owned):
            ends.extend((edge, owner) for edges in of_owner[layer.layer_id] for edge in edges)
        ends.sort()
        owners: set[int] = set()
        for (start, owner), (stop, _) in itertools.pairwise(ends):
            if owner >= 0:
                # The ranges of one owner do not touch, so every second end of it closes a range.
                owners ^= {owner}
            if start < stop and len(owners) != 1:
                found.append(Gap(layer_id=layer.layer_id, start=start, stop=stop, owners=tuple(sorted(owners))))
    return found


def rank_directories(path: Path) -> list[Path]:
    """The tables of ranks in a directory that `build_tables` made of several, in the order of the ranks."""
    named = [(match, entry) for entry in _entries(path) if (match := RANK_NAME.fullmatch(entry.name)) is not None]
    return [entry for _, entry in sorted(named, key=lambda item: (int(item[0][2]), int(item[0][1])))]


def with_ranks(paths: Sequence[Path]) -> list[Path]:
    """The same paths, each directory of ranks' tables replaced by these tables."""
    return [
        table
        for path in paths
        for table in ([path] if (path / MANIFEST_NAME).exists() else rank_directories(path) or [path])
    ]


def refuse_ranks(path: Path) -> None:
    """Raise InvalidInput where one table or checkpoint is wanted, and `path` is a directory of ranks' tables."""
    ranks = rank_directories(path)
    if ranks and not (path / MANIFEST_NAME).exists():
        raise InvalidInput(
            f"{path}: found the tables of {len(ranks)} ranks in it ({ranks[0].name} to {ranks[-1].name}), expected one "
            f"table or checkpoint; give {path}/rank-*, or one of them"
        )


def _entries(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if (entry / MANIFEST_NAME).is_file()] if path.is_dir() else []


def _share(n_items: int, rank: int, n_ranks: int) -> tuple[int, int]:
    """Half-open range of a rank's items; the last ranks may have fewer or none."""
    each = -(-n_items // n_ranks)
    return min(rank * each, n_items), min((rank + 1) * each, n_items)


def _column_rows(spec: AddressSpec, layer: LayerAddressing) -> list[tuple[int, int]]:
    """Every column's rows, with the spare rows up to the next column's; those before the first belong to it."""
    starts = sorted(set(layer.offsets))
    if len(starts) < len(layer.offsets):
        raise InvalidInput(
            f"ranks by head: found columns of layer {layer.layer_id} of {spec.name} that share their rows, expected "
            "rows of their own for each; divide by rows or layer"
        )
    stops = dict(zip(starts, [*starts[1:], layer.n_rows], strict=True))
    moduli = [modulus for of_order in layer.moduli for modulus in of_order]
    for offset, modulus in zip(layer.offsets, moduli, strict=True):
        if offset + modulus > stops[offset]:
            raise InvalidInput(
                f"ranks by head: found rows {offset} to {offset + modulus - 1} of a column of layer {layer.layer_id} "
                f"of {spec.name}, expected it to end before row {stops[offset]} where the next begins; divide by rows "
                "or layer"
            )
    return [(offset if offset != starts[0] else 0, stops[offset]) for offset in layer.offsets]


def _joined(ranges: list[tuple[int, int]]) -> Ranges:
    """The same rows, ascending, without empty or touching ranges."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if start == stop:
            continue
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return tuple(joined)
