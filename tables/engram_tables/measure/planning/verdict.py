"""What a placement's figures mean for a load: each limit with what is needed and what is there, and what would help.

It computes no time of its own; `placements` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil, floor, log10
from typing import Any

from engram_tables.measure.planning.load import Load
from engram_tables.measure.planning.placements import Placed, Placement
from engram_tables.units import format_bytes

_SPACE_NAMES = {
    "dram_bytes": ("host memory", "--dram"),
    "gpu_memory_bytes": ("the GPU's memory", "--gpu-memory"),
    "shm_bytes": ("/dev/shm", "--shm"),
    "cxl_bytes": ("memory behind CXL", "--cxl"),
    "disk_bytes": ("the disk", "--disk"),
}
_BISECTIONS = 40
_GPU = "a GPU"
_FIRST_LAYER, _ALL_STEPS = "time before the first layer that reads", "tokens of all steps"


class Status(StrEnum):
    """What becomes of a load in a placement."""

    FINE = "fine"
    SLOWER = "slower"
    """It runs, but not at what was asked for."""
    TOO_SMALL = "too-small"
    """The table, or the cache, does not fit."""
    NO_GPU = "no-gpu"
    """It needs a GPU, and the machine is known to have none."""
    UNKNOWN = "unknown"
    """A figure is missing that decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One thing that may bind.

    Attributes
    ----------
    needed, available
        In `unit`; None if unknown.
    note
        What is missing where it is not known.
    """

    name: str
    unit: str
    needed: float
    available: float | None
    note: str | None = None

    @property
    def share(self) -> float | None:
        """Of what is there, how much is needed; None if unknown."""
        if self.available is None:
            return None
        return self.needed / self.available if self.available > 0 else float("inf") if self.needed > 0 else 0.0

    @property
    def holds(self) -> bool | None:
        """Whether it is enough; None if unknown."""
        return None if self.available is None else self.needed <= self.available

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        share = self.share
        return {
            "name": self.name,
            "unit": self.unit,
            "needed": self.needed,
            "available": self.available,
            "share": None if share is None or share == float("inf") else share,
            "holds": self.holds,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be said of one placement.

    Attributes
    ----------
    binding
        The limit that fails by most; where all hold, the one that is nearest; None where none is known.
    summary
        One sentence.
    relief
        What would help, computed; empty where nothing must.
    """

    status: Status
    binding: Limit | None
    limits: tuple[Limit, ...]
    summary: str
    relief: tuple[str, ...]


def judge(placed: Placed, load: Load, *, unique: float = 1.0) -> Verdict:
    """The verdict on a table in a place.

    Parameters
    ----------
    unique
        Share of a chunk's rows that are distinct, of prompts.
    """
    limits = (*_gpu(placed), *_spaces(placed), *_rates(placed, load, unique))
    failing = [limit for limit in limits if limit.holds is False]
    unknown = [limit for limit in limits if limit.holds is None]
    known = [limit for limit in limits if limit.share is not None]
    # Without a GPU its memory holds nothing either: one of them is said.
    no_gpu = [limit for limit in failing if limit.name == _GPU]
    failing = no_gpu or failing
    is_space = any(limit.unit == "bytes" for limit in failing)
    binding: Limit | None
    if failing:
        # A table that does not fit has no speed.
        among = [limit for limit in failing if (limit.unit == "bytes") == is_space]
        binding = max(among, key=lambda limit: limit.share or 0.0)
        status = Status.NO_GPU if no_gpu else Status.TOO_SMALL if is_space else Status.SLOWER
    elif unknown:
        status, binding = Status.UNKNOWN, unknown[0]
    else:
        status, binding = Status.FINE, max(known, key=lambda limit: limit.share or 0.0, default=None)
    # Of several limits each has its own: a cache for one of them need not do for the other. Bytes name their room.
    relief = tuple(
        f"for {limit.name}: {each}" if len(failing) > 1 and limit.unit != "bytes" else each
        for limit in failing
        for each in _relief(placed, load, limit, unique)
    )
    return Verdict(
        status=status, binding=binding, limits=limits, summary=_summary(status, binding, placed, load), relief=relief
    )


def exposed_us(placed: Placed, load: Load, *, misses_per_token: float | None = None) -> float | None:
    """Of a step, the time that its layers wait for rows; None if the step's time is unknown.

    Notes
    -----
    max(0, fetch - slack of the first layer that reads): one fetch brings all layers' rows, so the first to want them
    waits for all; later ones find theirs there.
    """
    slack = first_slack_us(placed, load)
    if slack is None:
        return None
    return max(0.0, placed.fetch_us(load.streams, misses_per_token=misses_per_token) - slack)


def first_slack_us(placed: Placed, load: Load) -> float | None:
    """Of the layer that wants its rows first; layers whose ids are not certain want them at once."""
    layer_ids = placed.setting.table.layer_ids
    return load.slack_us(min(layer_ids) if layer_ids else 0)


def _gpu(placed: Placed) -> list[Limit]:
    """That there is none, where the machine's record says so: of a machine by hand it is taken that there is."""
    memory = placed.setting.machine.spaces.get("gpu_memory_bytes")
    needs_one = placed.placement in (Placement.GPU, Placement.PINNED) or placed.setting.to_gpu
    if not needs_one or memory is None or memory.value > 0:
        return []
    return [Limit(name=_GPU, unit="GPUs", needed=1, available=0, note=memory.where)]


def _spaces(placed: Placed) -> list[Limit]:
    found = []
    for name, n_bytes in placed.needs.items():
        figure = placed.setting.machine.spaces.get(name)
        what, option = _SPACE_NAMES[name]
        found.append(
            Limit(
                name=what, unit="bytes", needed=n_bytes, available=None if figure is None else figure.value,
                note=f"how much of it there is is not known; give {option}" if figure is None else None,
            )
        )  # fmt: skip
    return found


def _rates(placed: Placed, load: Load, unique: float) -> list[Limit]:
    found = []
    name, most = placed.tokens_per_s_at_most()
    _, most_of_prompts = placed.tokens_per_s_at_most(unique=unique)
    # Shares of the same thing, in decoded tokens.
    wanted = (load.tokens_per_s or 0.0) + (load.prefill_tokens_per_s or 0.0) * most / most_of_prompts
    if wanted:
        found.append(Limit(name=name, unit="tokens/s", needed=wanted, available=most))
    slack, step = first_slack_us(placed, load), load.step_us
    if slack is not None and step is not None:
        allowed = slack + step.value * load.most_loss / (1 - load.most_loss)
        found.append(
            Limit(
                name=_FIRST_LAYER, unit="us", needed=placed.fetch_us(load.streams),
                available=allowed,
            )
        )  # fmt: skip
        if load.tokens_per_s is not None and step.where == "--step-ms":
            reached = reached_tokens_per_s(placed, load) or 0.0
            found.append(Limit(name=_ALL_STEPS, unit="tokens/s", needed=load.tokens_per_s, available=reached))
    if load.prefill_tokens_per_s is not None:
        chunk_us = placed.fetch_us(load.chunk_tokens, unique=unique)
        available = load.chunk_tokens / load.prefill_tokens_per_s * 1e6
        found.append(Limit(name="time of a prompt's chunk", unit="us", needed=chunk_us, available=available))
    return found


def reached_tokens_per_s(placed: Placed, load: Load) -> float | None:
    """streams / (step + exposed): what the steps make with the waiting; None if a step's time is unknown."""
    exposed = exposed_us(placed, load)
    if exposed is None or load.step_us is None:
        return None
    return load.streams * 1e6 / (load.step_us.value + exposed)


def _summary(status: Status, binding: Limit | None, placed: Placed, load: Load) -> str:
    if binding is None:
        return "nothing was asked for that could bind; give --tokens-per-s"
    if status is Status.UNKNOWN:
        return f"{binding.name}: {binding.note}"
    if status is Status.NO_GPU:
        return f"a GPU is needed, and there is none ({binding.note})"
    if status is Status.TOO_SMALL:
        return (
            f"{binding.name} holds {_amount(binding, binding.available)}; {_amount(binding, binding.needed)} are needed"
        )
    share = binding.share or 0.0
    if status is Status.FINE:
        given_that = ", with a GPU" if placed.placement in (Placement.GPU, Placement.PINNED) else ""
        return f"you are fine{given_that}; nearest is {binding.name}, {share:.0%} of what there is"
    reached = reached_tokens_per_s(placed, load)
    by_steps = f"; {reached:,.4g} tokens/s remain" if reached is not None and binding.unit == "us" else ""
    return (
        f"{binding.name}: {_amount(binding, binding.needed)} needed, {_amount(binding, binding.available)} there"
        f"{by_steps}"
    )


def _amount(limit: Limit, value: float | None) -> str:
    if value is None:
        return "an unknown amount"
    if limit.unit == "bytes":
        return format_bytes(round(value))
    return f"{value / 1e3:,.3g} ms" if limit.unit == "us" else f"{value:,.4g} {limit.unit}"


def _relief(placed: Placed, load: Load, limit: Limit, unique: float) -> Sequence[str]:
    """What makes the limit hold: figures are rounded so that it does, at what is said here."""
    if limit.name == _GPU:
        return ["a GPU; of another machine that has one --gpu-memory tells the memory"]
    if limit.unit == "bytes":
        missing = ceil(limit.needed - (limit.available or 0.0))
        found = [f"{format_bytes(missing)} more of {limit.name}"]
        if limit.available:
            found.append(f"{ceil(limit.needed / limit.available)} machines with a part of the rows each")
        return found
    if limit.name == _ALL_STEPS and (too_long := _step_too_long(load)) is not None:
        return [too_long]
    found = [] if placed.disk is None else [*_hits(placed, load, limit, unique), *_disks(limit)]
    if placed.disk is None and (times := _times_as_fast(placed, load, limit)) is not None:
        found.append(f"rows that come {times} times as fast")
    return [*found, *_bear_with_it(placed, load, limit)]


def _step_too_long(load: Load) -> str | None:
    """A step that takes longer than the rate allows, before any waiting; None where it does not."""
    if load.step_us is None or load.tokens_per_s is None:
        return None
    most_us = load.streams * 1e6 / load.tokens_per_s
    if load.step_us.value <= most_us:
        return None
    return f"a step of {_rounded(most_us / 1e3, up=False)} ms at most: this one is too long wherever the rows lie"


def _times_as_fast(placed: Placed, load: Load, limit: Limit) -> str | None:
    """By what factor rows have to come faster, rounded up; None where no factor is enough."""
    factor = limit.share
    if limit.name == _ALL_STEPS:
        slack, step = first_slack_us(placed, load), load.step_us
        if slack is None or step is None or load.tokens_per_s is None:
            return None
        allowed = slack + load.streams * 1e6 / load.tokens_per_s - step.value
        factor = placed.fetch_us(load.streams) / allowed if allowed > 0 else None
    return None if factor is None or factor == float("inf") else _rounded(factor, up=True)


def _rounded(value: float, *, up: bool) -> str:
    """Three significant digits, up or down."""
    if value <= 0:
        return f"{value:g}"
    unit = 10.0 ** (floor(log10(value)) - 2)
    return f"{(ceil if up else floor)(value / unit) * unit:,.6g}"


def _per_cent(share: float) -> str:
    """Rounded up to a tenth of a per cent."""
    return f"{min(ceil(share * 1000), 1000) / 10:.1f}%"


def _hits(placed: Placed, load: Load, limit: Limit, unique: float) -> list[str]:
    """The hit ratio at which the limit holds, and the cache that gives it, where bisection finds one."""

    def holds(hit_ratio: float) -> bool:
        better = replace(placed, answered=placed.answered._replace(hit_ratio=hit_ratio))
        again = next(each for each in _rates(better, load, unique) if _same(each, limit, better, placed))
        return again.holds is not False

    low, high = placed.answered.hit_ratio, 1.0
    if not holds(high):
        return []
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    if placed.placement is Placement.NVME_BUNDLED:
        reads = _rounded(placed.reads_per_token * (1 - high), up=False)
        return [f"{reads} reads a token, by more bytes of bundles or of a cache"]
    curve = placed.setting.curve
    if curve is None or not curve.has_sizes:
        return [f"a cache that answers {_per_cent(high)} of the rows"]
    cache_bytes = curve.bytes_for(high)
    if cache_bytes is None:
        return [f"a cache that answers {_per_cent(high)} of the rows, which the curve reaches at no size"]
    return [f"a cache of {format_bytes(ceil(cache_bytes))}, which answers {_per_cent(high)} of the rows"]


def _same(each: Limit, limit: Limit, better: Placed, placed: Placed) -> bool:
    """Whether it is the limit in question; the first one is named by what binds, which hits change."""
    first, was = better.tokens_per_s_at_most()[0], placed.tokens_per_s_at_most()[0]
    return each.name == limit.name or (limit.name == was and each.name == first)


def _disks(limit: Limit) -> list[str]:
    if limit.unit == "tokens/s" and limit.share is not None and limit.name == "disk reads":
        return [f"{ceil(limit.share)} such disks with the rows spread over them"]
    return []


def _bear_with_it(placed: Placed, load: Load, limit: Limit) -> list[str]:
    """What waiting costs, for whoever would rather have it than pay."""
    exposed = exposed_us(placed, load)
    if exposed is None or load.step_us is None or limit.name != _FIRST_LAYER:
        return []
    loss = exposed / (load.step_us.value + exposed)
    # A loss of all the time is none that --most-loss takes.
    return [f"bearing with {_per_cent(loss)} less (--most-loss)"] if ceil(loss * 1000) < 1000 else []
