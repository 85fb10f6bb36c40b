"""What is looked up, in steps; and where the cold part of a trace ends. It knows items, not what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput

MOST_CLASSES = 256


class State(IntEnum):
    """Which part of a trace a number is about: the axis of that name in every array of a `Curve`."""

    COLD = 0
    """Steps before `first_steady_step`, from empty caches on"""
    STEADY = 1
    """The steps from it on"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Accesses:
    """A trace: items that are looked up, step by step.

    A step is one fetch: a decoded token, a batch or a chunk. All of its items are looked up before any of them is
    taken into a cache.

    Attributes
    ----------
    items
        uint64 (n,): what is looked up: a row, numbered through all layers (the layer's first row + row), or a page.
    classes
        uint8 (n,): the curve that an access counts for, such as its layer and order.
    step_starts
        int64 (n_steps + 1,): step k has the accesses step_starts[k] … step_starts[k + 1] - 1.
    n_items
        All items are below it.
    n_classes
        All classes are below it; 256 at most.
    sample_rate
        The share of all items that is left in the trace (see `sampling.Sampler`). 1: the trace is whole.
    n_whole
        int64 (2, 2, n_classes): accesses of the whole trace, of which this one is a sample: items of one step counted
        once, and as they come; by `State` and class. None where that is not known, or the trace is whole.
    step_tokens
        int64 (n_steps,), 1 or more: tokens that each step fetches, by which its misses are divided. None: not known,
        and every step counts as one.

    Raises
    ------
    InvalidInput
        Arrays of other types or lengths, steps that do not cover the accesses in order, an item, class or rate out of
        its range.
    """

    items: NDArray[np.uint64]
    classes: NDArray[np.uint8]
    step_starts: NDArray[np.int64]
    n_items: int
    n_classes: int
    sample_rate: float = 1.0
    n_whole: NDArray[np.int64] | None = None
    step_tokens: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        starts, n = self.step_starts, self.items.size
        if self.classes.size != n:
            raise InvalidInput(f"accesses: found {self.classes.size} classes, expected {n}, one an item; give as many")
        if starts.size < 1 or starts[0] != 0 or starts[-1] != n or np.any(starts[1:] < starts[:-1]):
            raise InvalidInput(
                f"accesses: found {starts.size} step starts that do not rise from 0 to {n}, expected those of every "
                "step and the end; count the accesses before each step"
            )
        if not 1 <= self.n_classes <= MOST_CLASSES:
            raise InvalidInput(f"accesses: found {self.n_classes} classes, expected 1 to {MOST_CLASSES}; join some")
        if n and int(self.items.max()) >= self.n_items:
            raise InvalidInput(
                f"accesses: found item {int(self.items.max())}, expected less than {self.n_items}; raise n_items"
            )
        if n and int(self.classes.max()) >= self.n_classes:
            raise InvalidInput(
                f"accesses: found class {int(self.classes.max())}, expected less than {self.n_classes}; raise n_classes"
            )
        if not 0 < self.sample_rate <= 1:
            raise InvalidInput(
                f"accesses: found a sample rate of {self.sample_rate}, expected more than 0, 1 at most; choose another"
            )

    @property
    def n_steps(self) -> int:
        """Fetches."""
        return self.step_starts.size - 1

    def __len__(self) -> int:
        return self.items.size


def check_first_steady_step(accesses: Accesses, first_steady_step: int) -> None:
    """Raise InvalidInput unless it is 0 to `n_steps`."""
    if not 0 <= first_steady_step <= accesses.n_steps:
        raise InvalidInput(
            f"first steady step: found {first_steady_step}, expected 0 to {accesses.n_steps}; choose one of the trace"
        )


def _check_types(accesses: Accesses) -> None:
    wanted = {"items": np.uint64, "classes": np.uint8, "step_starts": np.int64}
    for name, dtype in wanted.items():
        array = getattr(accesses, name)
        if array.dtype != dtype or array.ndim != 1 or not array.flags.c_contiguous:
            raise InvalidInput(
                f"accesses: found {name} of {array.dtype} and {array.ndim} dimensions, expected contiguous "
                f"{np.dtype(dtype).name} and 1; convert it"
            )
    n_whole = accesses.n_whole
    if n_whole is not None and (n_whole.shape != (2, 2, accesses.n_classes) or n_whole.dtype != np.int64):
        raise InvalidInput(
            f"accesses: found n_whole of {n_whole.dtype} {n_whole.shape}, expected int64 "
            f"{(2, 2, accesses.n_classes)}; count them again"
        )
    tokens = accesses.step_tokens
    if tokens is not None and (tokens.shape != (accesses.n_steps,) or tokens.min(initial=1) < 1):
        raise InvalidInput(
            f"accesses: found tokens of {tokens.size} steps, {tokens.min(initial=1)} the fewest, expected 1 or more of "
            f"each of {accesses.n_steps}; leave empty steps out"
        )
