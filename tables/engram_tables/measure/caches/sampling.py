"""A sample of a trace's items for caches in proportion, and how far its answer may be off.

Every item whose hash is below a threshold is kept with all of its accesses, so that reuse stays as it is; a cache of so
many items is stood for by one in proportion (Waldspurger, Park, Garthwaite and Ahmad, "Efficient MRC construction with
SHARDS", FAST 2015). A sample that happens to have more or fewer accesses than its share owes that to the hottest
items, which every cache holds: so the difference is put to the hits (their SHARDS-adj).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.measure.caches.accesses import Accesses
from engram_tables.measure.caches.sampling_kernels import find_chosen, take_sample

N_SLICES = 8
"""Disjoint parts of a sample whose answers are compared."""
_STUDENT_975 = 2.3646
"""97.5 % of Student's t with N_SLICES - 1 degrees of freedom."""
_HASHES = 2**32


class Sampler:
    """Takes a sample of a trace that comes in parts and need not fit into memory.

    Parameters
    ----------
    rate
        The share of the items to keep, more than 0, 1 at most.
    n_items, n_classes
        As in `Accesses`.
    first_steady_step
        The first step of the steady part, counted in the whole trace.

    Raises
    ------
    InvalidInput
        A rate out of its range.

    Notes
    -----
    A few nanoseconds an access; 9 bytes an access that is kept, twice that while `accesses` runs.
    """

    def __init__(self, *, rate: float, n_items: int, n_classes: int, first_steady_step: int) -> None:
        if not 1 / _HASHES <= rate <= 1:
            raise InvalidInput(f"sample: found a rate of {rate}, expected more than 0, 1 at most; choose another")
        self.rate, self.n_items, self.n_classes = rate, n_items, n_classes
        self.first_steady_step = first_steady_step
        self.n_steps = self._n_kept = 0
        self._high = round(rate * _HASHES)
        self._items: list[NDArray[np.uint64]] = []
        self._classes: list[NDArray[np.uint8]] = []
        self._starts: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._n_whole = np.zeros((2, 2, n_classes), np.int64)

    def add(self, items: NDArray[np.uint64], classes: NDArray[np.uint8], step_starts: NDArray[np.int64]) -> None:
        """The next steps, whole ones, as in `Accesses`."""
        part = Accesses(
            items=items, classes=classes, step_starts=step_starts, n_items=self.n_items, n_classes=self.n_classes
        )
        kept, kept_classes, starts = _take(part, 0, self._high, self.n_steps, self.first_steady_step, self._n_whole)
        self._items.append(kept)
        self._classes.append(kept_classes)
        self._starts.append(starts[1:] + self._n_kept)
        self._n_kept += kept.size
        self.n_steps += part.n_steps

    def accesses(self) -> Accesses:
        """What has been kept of all parts."""
        return Accesses(
            items=np.concatenate([np.empty(0, np.uint64), *self._items]),
            classes=np.concatenate([np.empty(0, np.uint8), *self._classes]),
            step_starts=np.concatenate(self._starts), n_items=self.n_items, n_classes=self.n_classes,
            sample_rate=self._high / _HASHES, n_whole=self._n_whole.copy(),
        )  # fmt: skip


def sampled(accesses: Accesses, rate: float, *, first_steady_step: int) -> Accesses:
    """A sample of a whole trace. Raises as `Sampler`."""
    sampler = Sampler(
        rate=rate, n_items=accesses.n_items, n_classes=accesses.n_classes, first_steady_step=first_steady_step
    )
    sampler.add(accesses.items, accesses.classes, accesses.step_starts)
    return sampler.accesses()


def slice_bounds(sample: Accesses) -> list[tuple[int, int]]:
    """The hashes of each slice: the first, and the one after the last."""
    high = round(sample.sample_rate * _HASHES)
    return list(pairwise(high * k // N_SLICES for k in range(N_SLICES + 1)))


def chosen(items: NDArray[np.uint64], low: int, high: int) -> NDArray[np.uint64]:
    """The items whose hash is `low` … `high` - 1, in order: what a sample leaves of a hot list."""
    is_chosen = np.empty(items.size, np.bool_)
    find_chosen(items, np.uint64(low), np.uint64(high), is_chosen)
    return items[is_chosen]


def slices(sample: Accesses) -> list[Accesses]:
    """A sample's `N_SLICES` disjoint parts, each a sample itself."""
    parts = []
    for low, stop in slice_bounds(sample):
        ignored = np.zeros((2, 2, sample.n_classes), np.int64)
        items, classes, starts = _take(sample, low, stop, 0, 0, ignored)
        parts.append(
            Accesses(
                items=items, classes=classes, step_starts=starts, n_items=sample.n_items,
                n_classes=sample.n_classes, sample_rate=(stop - low) / _HASHES, n_whole=sample.n_whole,
            )
        )  # fmt: skip
    return parts


def adjusted(
    n_hits: NDArray[np.int64], n_accesses: NDArray[np.int64], n_expected: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hits (2, m, n_classes) and accesses (2, n_classes), had the sample as many accesses as its share of the whole."""
    expected = np.rint(n_expected).astype(np.int64)
    hits = np.clip(n_hits + (expected - n_accesses)[:, None], 0, expected[:, None])
    return hits, expected


def half_width(ratio: NDArray[np.float64], of_slices: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Half a 95 % interval around a ratio: Student's for the mean of the slices, and how far that is from the ratio.

    The second part is what a cache an eighth as large costs, a hint at what the sample's smaller caches cost.
    """
    stacked = np.stack(of_slices)
    spread = stacked.std(axis=0, ddof=1) / np.sqrt(len(of_slices))
    return np.asarray(_STUDENT_975 * spread + np.abs(ratio - stacked.mean(axis=0)), np.float64)


def _take(
    part: Accesses, low: int, high: int, first_step: int, first_steady_step: int, n_whole: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.int64]]:
    n = len(part)
    kept, classes, starts = np.empty(n, np.uint64), np.empty(n, np.uint8), np.empty(part.n_steps + 1, np.int64)
    longest = int(np.diff(part.step_starts).max(initial=1))
    n_slots = 1 << (2 * longest).bit_length()
    n_kept = take_sample(
        part.items, part.classes, part.step_starts, first_step, first_steady_step, np.uint64(low), np.uint64(high),
        kept, classes, starts, np.empty(n_slots, np.uint64), np.zeros(n_slots, np.int64), n_whole,
    )  # fmt: skip
    return kept[:n_kept].copy(), classes[:n_kept].copy(), starts
