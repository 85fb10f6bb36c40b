"""The slow twin of the sets: the same policy in plain Python, without memory or records. A simulator's rule book."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engram_tables.fetch.tiers.cache_kernels import (
    MISSES_BETWEEN_HALVINGS,
    MOST_USES,
    N_GHOSTS,
    TURN,
    USES_OF_A_PRELOADED_ROW,
    USES_OF_A_RETURNED_ROW,
    WAYS,
)


@dataclass(slots=True)
class ReferenceSet:
    """One set; `tags` has None where a way holds nothing, `ghosts` has the newest first."""

    tags: list[int | None] = field(default_factory=lambda: [None] * WAYS)
    uses: list[int] = field(default_factory=lambda: [0] * WAYS)
    pinned: list[bool] = field(default_factory=lambda: [False] * WAYS)
    ghosts: list[int] = field(default_factory=list)
    hand: int = 0
    n_misses: int = 0

    def use(self, way: int) -> None:
        """Count a hit, up to MOST_USES; pinned ways need none."""
        if not self.pinned[way]:
            self.uses[way] = min(MOST_USES, self.uses[way] + 1)

    def fill(self, way: int, tag: int, n_uses: int, *, pinned: bool) -> None:
        """Put a row into a way; the one that was there becomes the newest ghost."""
        before = self.tags[way]
        if before is not None:
            self.ghosts = [before, *self.ghosts][:N_GHOSTS]
        self.tags[way], self.uses[way], self.pinned[way] = tag, n_uses, pinned
        self.hand = (way + 1) % WAYS

    def victim(self) -> int | None:
        """An empty way, the lowest; or the unpinned one of fewest uses, the first from the hand on."""
        if None in self.tags:
            return self.tags.index(None)
        order = [(self.hand + step) % WAYS for step in range(WAYS)]
        free = [way for way in order if not self.pinned[way]]
        return min(free, key=lambda way: self.uses[way]) if free else None


class ReferenceCache:
    """Sets of rows of some layers.

    `fetch` is what a tiered engine does in one thread: it looks up all of a batch, and then lets those that it missed
    compete, in their order.
    """

    def __init__(self, *, n_sets: int, n_rows: Sequence[int]) -> None:
        self.sets = [ReferenceSet() for _ in range(n_sets)]
        self._first_keys = [sum(n_rows[:layer]) for layer in range(len(n_rows))]

    def fetch(self, batch: Iterable[tuple[int, int]]) -> list[bool]:
        """Whether each (layer, row) of a batch was here."""
        wanted = list(batch)
        found = [self.look_up(*row) for row in wanted]
        for row, is_here in zip(wanted, found, strict=True):
            if not is_here:
                self.admit(*row)
        return found

    def look_up(self, layer: int, row: int) -> bool:
        """Whether a row is here; if it is, that is a use."""
        of_row, tag = self._home(layer, row)
        if tag not in of_row.tags:
            return False
        of_row.use(of_row.tags.index(tag))
        return True

    def admit(self, layer: int, row: int) -> bool:
        """Let a row compete that has been missed; whether it is here afterwards."""
        of_row, tag = self._home(layer, row)
        if tag in of_row.tags:
            of_row.use(of_row.tags.index(tag))
            return True
        of_row.n_misses += 1
        if of_row.n_misses == MISSES_BETWEEN_HALVINGS:
            of_row.n_misses = 0
            of_row.uses = [n // 2 for n in of_row.uses]
        way = of_row.victim()
        if way is not None:
            of_row.fill(way, tag, USES_OF_A_RETURNED_ROW if tag in of_row.ghosts else 0, pinned=False)
        return way is not None

    def pin(self, layer: int, row: int) -> bool:
        """Keep a row for good; whether there was a way that is not pinned."""
        of_row, tag = self._home(layer, row)
        if tag in of_row.tags:
            of_row.pinned[of_row.tags.index(tag)] = True
            return True
        way = of_row.victim()
        if way is not None:
            of_row.fill(way, tag, USES_OF_A_PRELOADED_ROW, pinned=True)
        return way is not None

    def preload(self, layer: int, row: int) -> bool:
        """Put a row into an empty way; whether it is here afterwards."""
        of_row, tag = self._home(layer, row)
        if tag in of_row.tags:
            of_row.use(of_row.tags.index(tag))
        elif None in of_row.tags:
            of_row.fill(of_row.tags.index(None), tag, USES_OF_A_PRELOADED_ROW, pinned=False)
        return tag in of_row.tags

    def _home(self, layer: int, row: int) -> tuple[ReferenceSet, int]:
        n_sets = len(self.sets)
        tag, rest = divmod(self._first_keys[layer] + row, n_sets)
        turn = (tag * TURN % 2**64 >> 32) * n_sets >> 32
        return self.sets[(rest + turn) % n_sets], tag
