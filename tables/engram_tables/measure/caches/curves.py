"""What a replay tells: hits of one policy over cache sizes. It holds numbers and computes none but ratios."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_tables.measure.caches.accesses import State


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepMisses:
    """Misses of a step over its tokens, of the steps of a part: float64 (2, m) by `State` and size.

    Percentiles are nearest-rank: the least number that so many steps in a hundred do not pass; -1 where there are no
    steps.
    """

    p50: NDArray[np.float64]
    p99: NDArray[np.float64]
    most: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One policy over m sizes.

    Attributes
    ----------
    policy
        Its name.
    sizes_items
        int64 (m,): items that the cache holds. Of `tiered`, those of its shapes.
    n_hits
        int64 (2, m, n_classes), by `State`, size and class.
    n_accesses
        int64 (2, n_classes). Every policy but `tiered` counts an item once a step; `tiered` counts as its reader does.
    step_misses
        None where the trace is a sample: a sample of a step's items does not tell how many it misses.
    error
        float64 (2, m): half the width of a 95 % interval of the hit ratio over all classes; None where it is exact.
    n_slices
        Disjoint samples that the error comes from; 0 where it is exact.
    basis
        Of `static`: which items it holds, in words. None of the others.
    """

    policy: str
    sizes_items: NDArray[np.int64]
    n_hits: NDArray[np.int64]
    n_accesses: NDArray[np.int64]
    step_misses: StepMisses | None
    error: NDArray[np.float64] | None = None
    n_slices: int = 0
    basis: str | None = None

    def hit_ratios(self, state: State, class_idx: int | None = None) -> NDArray[np.float64]:
        """Hits of all accesses of a part, or of one class of them: float64 (m,); NaN where there are none."""
        hits, n = self.n_hits[state], self.n_accesses[state]
        n_hits = hits.sum(axis=1) if class_idx is None else hits[:, class_idx]
        n_accesses = int(n.sum()) if class_idx is None else int(n[class_idx])
        return n_hits / n_accesses if n_accesses else np.full(n_hits.shape, np.nan)


def step_misses(
    misses: NDArray[np.uint32], first_steady_step: int, step_tokens: NDArray[np.int64] | None = None
) -> StepMisses:
    """Percentiles of uint32 (m, n_steps), each step's divided by its tokens; None: by one."""
    found = np.full((3, 2, len(misses)), -1, np.float64)
    for state, steps in enumerate((slice(first_steady_step), slice(first_steady_step, None))):
        part = misses[:, steps]
        n = part.shape[1]
        if n:
            ranks = [-(-n * percent // 100) - 1 for percent in (50, 99, 100)]
            # A size at a time, so that one copy of a size's steps is all that it takes.
            for k, of_size in enumerate(part):
                of_token = of_size if step_tokens is None else of_size / step_tokens[steps]
                found[:, state, k] = np.partition(of_token, sorted(set(ranks)))[ranks]
    return StepMisses(p50=found[0], p99=found[1], most=found[2])
