"""How long a disk takes for so many small reads: asked for at once while it is idle, or one after the other.

It holds figures; `probing` measures them and `machine` takes them from records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from engram_tables.errors import InvalidInput
from engram_tables.measure.planning.figures import Figure, Origin, check_figure


class Burst(NamedTuple):
    """So many reads, asked for at once of a device that had nothing to do, and when the last one was there."""

    n_reads: int
    us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A device for random reads of a few hundred bytes to a page.

    Attributes
    ----------
    bursts
        Ascending in both; the first is one read. Of batches that the engine asks for in one compiled call.
    planned_bursts
        The same of batches that it plans first: more than `SHORT_ROWS` rows, or rows in two parts. Empty if unknown.
    reads_per_s
        With as many reads in flight as it can use.
    serial_read_us
        One read after the other, without a pause.
    sequential_bytes_per_s
        The most bytes it gives; None if unknown.
    """

    bursts: tuple[Burst, ...]
    reads_per_s: Figure
    serial_read_us: Figure
    sequential_bytes_per_s: Figure | None
    origin: Origin
    where: str
    planned_bursts: tuple[Burst, ...] = ()

    def __post_init__(self) -> None:
        for name, figure in (
            ("reads/s", self.reads_per_s), ("read latency", self.serial_read_us),
        ):  # fmt: skip
            check_figure(figure.value, f"{figure.where}, disk, {name}")
        if self.sequential_bytes_per_s is not None:
            check_figure(self.sequential_bytes_per_s.value, f"{self.sequential_bytes_per_s.where}, disk, bytes/s")
        for bursts in (self.bursts, self.planned_bursts or self.bursts):
            for burst in bursts:
                check_figure(burst.us, f"{self.where}, burst of {burst.n_reads} reads, us")
            if not bursts or bursts[0].n_reads != 1:
                raise InvalidInput("disk: found no burst of one read, expected one; measure it again")
            if any(more.n_reads <= few.n_reads or more.us < few.us for few, more in pairwise(bursts)):
                raise InvalidInput(f"{self.where}: found bursts that do not ascend, expected such; measure them again")

    def burst_us(self, n_reads: float, *, is_planned: bool = False) -> float:
        """Microseconds until the last of `n_reads` is there, which an idle device is asked for at once.

        Notes
        -----
        Between measured bursts it is a straight line; behind the largest one every further read takes
        1 / reads_per_s. No reads take no time; part of a read takes that part of one, since means of counts come here
        too.
        """
        bursts = self.planned_bursts if is_planned and self.planned_bursts else self.bursts
        if n_reads <= 1:
            return max(0.0, n_reads) * bursts[0].us
        last = bursts[-1]
        if n_reads >= last.n_reads:
            return last.us + (n_reads - last.n_reads) * 1e6 / self.reads_per_s.value
        for low, high in pairwise(bursts):
            if n_reads <= high.n_reads:
                share = (n_reads - low.n_reads) / (high.n_reads - low.n_reads)
                return low.us + share * (high.us - low.us)
        raise AssertionError("bursts ascend")

    def serial_us(self, n_reads: float) -> float:
        """Microseconds of `n_reads` that wait for each other."""
        return n_reads * self.serial_read_us.value

    def rate(self, bytes_per_read: float) -> float:
        """Reads a second that it sustains, when each moves so many bytes."""
        if self.sequential_bytes_per_s is None:
            return self.reads_per_s.value
        return min(self.reads_per_s.value, self.sequential_bytes_per_s.value / bytes_per_read)

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        sequential = self.sequential_bytes_per_s
        return {
            "bursts": [burst._asdict() for burst in self.bursts],
            "planned_bursts": [burst._asdict() for burst in self.planned_bursts],
            "reads_per_s": self.reads_per_s.to_json(),
            "serial_read_us": self.serial_read_us.to_json(),
            "sequential_bytes_per_s": None if sequential is None else sequential.to_json(),
            "origin": str(self.origin),
            "where": self.where,
        }


def disk_by_hand(*, reads_per_s: Figure, latency_us: Figure, serial_read_us: Figure | None = None) -> Disk:
    """A device of two figures: the first read after its latency, every further one 1 / reads_per_s later.

    Parameters
    ----------
    serial_read_us
        Where it is known that a device kept busy answers one read sooner than one that has rested.
    """
    step_us = 1e6 / reads_per_s.value if reads_per_s.value > 0 else math.inf
    bursts = (Burst(1, latency_us.value), Burst(2, latency_us.value + step_us))
    serial = serial_read_us or latency_us
    if serial.value < step_us < math.inf:
        # Reads that wait for each other are no more a second than those that do not.
        serial = Figure(value=step_us, origin=Origin.COMPUTED, where=f"1 / {reads_per_s.where}")
    return Disk(
        bursts=bursts, reads_per_s=reads_per_s, serial_read_us=serial,
        sequential_bytes_per_s=None,
        origin=latency_us.origin if reads_per_s.origin is Origin.GIVEN else reads_per_s.origin,
        where=f"{latency_us.where} (the first read); {reads_per_s.where} (the others)",
    )  # fmt: skip


def bursts_from_sweep(points: Sequence[tuple[int, float]]) -> tuple[Burst, ...]:
    """Bursts of a device of which only reads a second by depth are known, (depth, reads_per_s) each.

    Notes
    -----
    With k reads left a device of so many in flight completes the next one after 1 / X(k), X a straight line between the
    measured depths: n reads take the sum over k = 1..n. A sweep never lets its device rest, so what waking up costs is
    not in it: short bursts come out too quick. X is made monotone, since a slower point at a greater depth is noise.
    """
    swept = sorted((int(depth), float(per_s)) for depth, per_s in points)
    if not swept or swept[0][0] < 1 or min(per_s for _, per_s in swept) <= 0:
        raise InvalidInput(f"depth sweep: found {swept[:3]}, expected depths from 1 up with reads a second; sweep anew")
    best, rates = 0.0, {}
    for depth, per_s in swept:
        best = max(best, per_s)
        rates[depth] = best
    bursts, us = [], 0.0
    for n_reads in range(1, swept[-1][0] + 1):
        us += 1e6 / _at(rates, n_reads)
        if n_reads == 1 or n_reads in rates:
            bursts.append(Burst(n_reads, us))
    return tuple(bursts)


def _at(rates: dict[int, float], depth: int) -> float:
    """Reads a second at a depth, between measured ones on a straight line."""
    depths = list(rates)
    if depth <= depths[0]:
        return rates[depths[0]] * depth / depths[0]
    for low, high in pairwise(depths):
        if depth <= high:
            return rates[low] + (depth - low) / (high - low) * (rates[high] - rates[low])
    return rates[depths[-1]]
