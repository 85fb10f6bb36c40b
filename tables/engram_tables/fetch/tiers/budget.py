"""How much memory a tier may take, of what kind, and the sets that fit into it. It takes no memory itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engram_tables.errors import InvalidInput
from engram_tables.fetch.tiers.cache_kernels import EMPTY, HEADER_BYTES, WAYS
from engram_tables.fetch.tiers.hot_list import HotList

_MOST_SETS = 2**32 - 1
_MOST_ROWS = 2**53 - 1
_SLOT_UNIT_BYTES = 8

Register = Callable[[int, int], Callable[[], None]]
"""Told the address and bytes of a tier's memory once it is filled with zeros; gives what undoes it. GPU code registers
the memory with its driver in this way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTier:
    """One tier of host memory.

    Attributes
    ----------
    budget_bytes
        The most that it takes, tags included; less if the whole table fits.
    pinned_bytes
        The most that rows of the hot list take for good. None: half the budget. The rest of the list goes into what is
        free, where rows compete.
    node
        The NUMA node whose memory it is; a node without CPUs is how CXL memory shows. None: the system's choice.
    is_locked
        Never paged out (mlock).
    huge_pages
        Ask for transparent huge pages.
    register
        See `Register`.
    """

    budget_bytes: int
    pinned_bytes: int | None = None
    node: int | None = None
    is_locked: bool = False
    huge_pages: bool = True
    register: Register | None = None

    def __post_init__(self) -> None:
        if self.budget_bytes < 1:
            raise InvalidInput(
                f"tier: found a budget of {self.budget_bytes} bytes, expected 1 or more; leave the tier out"
            )
        if self.pinned_bytes is not None and not 0 <= self.pinned_bytes <= self.budget_bytes:
            raise InvalidInput(
                f"tier: found {self.pinned_bytes} bytes for pinned rows, expected 0 to the budget of "
                f"{self.budget_bytes}; make the budget larger"
            )
        if self.node is not None and self.node < 0:
            raise InvalidInput(f"tier: found memory node {self.node}, expected 0 or more; name one that is here")

    @property
    def most_pinned_bytes(self) -> int:
        """`pinned_bytes`, or its default."""
        return self.budget_bytes // 2 if self.pinned_bytes is None else self.pinned_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPlan:
    """Tiers in front of an engine.

    Attributes
    ----------
    tiers
        The nearest one first: a row that one does not have is asked of the next, and of `behind` in the end.
    hot_list
        Rows to begin with, or a file with them; the nearest tier takes the first ones.
    behind
        The name of the table's engine that reads what no tier has.
    """

    tiers: tuple[MemoryTier, ...]
    hot_list: HotList | Path | None = None
    behind: str = "auto"

    def __post_init__(self) -> None:
        if not self.tiers:
            raise InvalidInput("tiers: found none, expected one or more; give the plan a MemoryTier")


class CacheShape(NamedTuple):
    """Sets of 16 rows, and the bytes of each row's slot."""

    n_sets: int
    slot_bytes: int

    @property
    def n_slots(self) -> int:
        """Rows that fit."""
        return self.n_sets * WAYS

    @property
    def header_bytes(self) -> int:
        """Bytes of all tags and counters."""
        return self.n_sets * HEADER_BYTES

    @property
    def total_bytes(self) -> int:
        """Bytes of everything; the slots follow the headers."""
        return self.header_bytes + self.n_slots * self.slot_bytes


def shape_for(
    budget_bytes: int, *, n_rows: Sequence[int], row_bytes: int, slot_unit_bytes: int = _SLOT_UNIT_BYTES
) -> CacheShape:
    """The sets that a budget holds, for layers of `n_rows` rows; no more than hold all of them.

    Slots are multiples of `slot_unit_bytes`: 8 keeps 264-byte records in five cache lines each, GPU memory wants 16.

    Raises
    ------
    InvalidInput
        A budget under one set for every 65,535 rows of the table, which a tag of 16 bits tells apart.
    """
    all_rows = sum(n_rows)
    slot_bytes = -(-row_bytes // slot_unit_bytes) * slot_unit_bytes
    set_bytes = HEADER_BYTES + WAYS * slot_bytes
    fewest = max(1, -(-all_rows // EMPTY))
    n_sets = min(budget_bytes // set_bytes, max(fewest, -(-all_rows // WAYS)), _MOST_SETS)
    if n_sets < fewest or all_rows > _MOST_ROWS:
        raise InvalidInput(
            f"tier: found a budget of {budget_bytes} bytes, expected {fewest * set_bytes} or more for {all_rows} rows "
            f"of {row_bytes} bytes; make it larger, or leave the tier out"
        )
    return CacheShape(n_sets=n_sets, slot_bytes=slot_bytes)
