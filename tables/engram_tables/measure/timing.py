"""Timed repeats: what runs is warmed up, interleaved with what it is compared to, and summed up without
averages."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to time: `prepare()` is outside the timed window, `run(prepared)` is all of it."""

    prepare: Callable[[], Any]
    run: Callable[[Any], object]


@dataclass(slots=True, kw_only=True)
class Samples:
    """Wall and CPU time of each repeat, in nanoseconds; CPU is user and system time of all of the process's
    threads."""

    elapsed_ns: list[int] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Median, MAD, extremes, percentiles, and the raw samples."""
        return {
            **summarise(self.elapsed_ns),
            "p99_ns": int(np.percentile(self.elapsed_ns, 99, method="higher")),
            "cpu_ns_total": sum(self.cpu_ns),
            "samples_ns": list(self.elapsed_ns),
        }

    @property
    def median_ns(self) -> int:
        """The middle sample."""
        return int(np.median(self.elapsed_ns))


def summarise(samples_ns: Sequence[int]) -> dict[str, int]:
    """Median, median absolute deviation, minimum, maximum and number of samples.

    >>> summarise([5, 1, 3])
    {'median_ns': 3, 'mad_ns': 2, 'min_ns': 1, 'max_ns': 5, 'n': 3}
    """
    samples = np.asarray(samples_ns, np.int64)
    median = np.median(samples)
    return {
        "median_ns": int(median),
        "mad_ns": int(np.median(np.abs(samples - median))),
        "min_ns": int(samples.min()),
        "max_ns": int(samples.max()),
        "n": int(samples.size),
    }


def interleave(
    cases: Mapping[str, Case],
    *,
    repeats: int,
    seconds: float = 0.0,
    most: int = 1000,
    warm_ups: int = 1,
    progress: Callable[[], object] | None = None,
) -> dict[str, Samples]:
    """Run every case once a round, so that a slow minute of the machine falls on all of them.

    Each round has an order of its own, so that none always finds what the same other left in the processor's caches.

    Rounds go on until there are `repeats` and each case has been given `seconds` of timed work, but never
    beyond
    `most`. Warm-up rounds are run in full and thrown away.
    """
    found = {name: Samples() for name in cases}
    for warm_up in range(warm_ups):
        del warm_up
        for case in cases.values():
            case.run(case.prepare())
    budget_ns = seconds * 1e9 * len(cases)
    spent_ns = 0
    shuffle = random.Random(0)
    for done in range(most):
        if done >= repeats and spent_ns >= budget_ns:
            break
        order = list(cases.items())
        shuffle.shuffle(order)
        for name, case in order:
            prepared = case.prepare()
            cpu, start = time.process_time_ns(), time.perf_counter_ns()
            case.run(prepared)
            elapsed = time.perf_counter_ns() - start
            found[name].elapsed_ns.append(elapsed)
            found[name].cpu_ns.append(time.process_time_ns() - cpu)
            spent_ns += elapsed
        if progress is not None:
            progress()
    return found
