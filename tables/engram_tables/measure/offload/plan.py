"""What a benchmark of lookups is asked for, checked. It measures nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engram_tables.errors import InvalidInput
from engram_tables.fetch.tiers.budget import MemoryTier

BATCH_TOKENS = (1, 8, 512, 8192)
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FILL_TOKENS = 16_384


class Source(StrEnum):
    """Where rows come from: memory, the device, or wherever the engine `auto` finds them."""

    DRAM = "dram"
    NVME = "nvme"
    AUTO = "auto"


class State(StrEnum):
    """What of the files is in memory before a batch."""

    COLD = "cold"
    WARM = "warm"
    AS_IS = "as-is"


class Target(StrEnum):
    """Whose memory the rows are brought to."""

    HOST = "host"
    GPU = "gpu"


def _listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words)) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One source in one state."""

    source: Source
    state: State

    def __str__(self) -> str:
        return f"{self.source}, {self.state}"


# Memory first: what was read once stays for the next section, and the cold ones evict it in the end.
_USUAL = (
    Section(source=Source.DRAM, state=State.WARM),
    Section(source=Source.AUTO, state=State.WARM),
    Section(source=Source.NVME, state=State.COLD),
    Section(source=Source.AUTO, state=State.COLD),
)
_NEVER = (
    (Source.DRAM, State.COLD, "rows that come from memory are there; ask for --from nvme or auto"),
    (Source.NVME, State.WARM, "rows that are in memory do not come from the device; ask for --from dram or auto"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What to measure.

    Attributes
    ----------
    sources
        None: those that the state allows, all of them without a state.
    state
        None: memory is warm, the device cold, and `auto` is measured in both.
    engine
        The only engine to measure: of `dram` and `nvme` it is picked, in `auto` it takes the place of `auto`.
    tokens
        Tokens of a batch.
    rows_per_batch
        Rows wanted in a batch, in place of `tokens`; a batch is whole tokens, so it holds the nearest number that is.
    streams
        Batches that are asked for at the same time by threads of their own.
    depths
        Reads in flight of the sweeps; they go on past saturation.
    bounds
        Whether uniform rows and one repeated token are measured beside real text.
    repeats, seconds
        Fewest timed batches a point; more follow until `seconds` of timed work.
    batch_seconds
        A batch that is expected to take longer, by what a smaller one took, is left out with that reason.
    threads
        Threads of the engines that copy; None means all usable CPUs.
    read_threads
        Threads of the engines that read with threads; None means their default.
    tiers
        Host memory to measure in front of an engine, beside that engine without it. Each entry is one measured plan:
        its tiers, the nearest one first.
    gpu_caches
        Bytes of the GPU's memory to measure in front of an engine in the same way; with `to` GPU alone.
    hot_list
        Rows to begin with, for each of them.
    fill_tokens
        Tokens looked up before measuring, so that use fills the memory. None: 16,384 without a hot list, 0 with one.
    bundles
        As `open_table` takes it. Where there are some, the table is measured with and without them.
    """

    sources: tuple[Source, ...] | None = None
    to: Target = Target.HOST
    state: State | None = None
    engine: str | None = None
    tokens: tuple[int, ...] = BATCH_TOKENS
    rows_per_batch: tuple[int, ...] = ()
    streams: tuple[int, ...] = (1,)
    depths: tuple[int, ...] = DEPTHS
    bounds: bool = True
    repeats: int = 5
    seconds: float = 0.4
    batch_seconds: float = 3.0
    threads: int | None = None
    read_threads: int | None = None
    tiers: tuple[tuple[MemoryTier, ...], ...] = ()
    gpu_caches: tuple[int, ...] = ()
    hot_list: Path | None = None
    fill_tokens: int | None = None
    bundles: Path | bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_fronts()
        for name, figures in (
            ("tokens", self.tokens),
            ("rows per batch", self.rows_per_batch or (1,)),
            ("streams", self.streams),
            ("depths", self.depths),
        ):
            if not figures or min(figures) < 1:
                raise InvalidInput(f"{name}: found {_listed(figures)}, expected numbers from 1 up; leave others out")
        if self.repeats < 1:
            raise InvalidInput(f"repeats: found {self.repeats}, expected 1 or more; ask for at least one batch")
        for name, seconds in (("seconds", self.seconds), ("batch seconds", self.batch_seconds)):
            if not 0 <= seconds < math.inf:
                raise InvalidInput(f"{name}: found {seconds}, expected a finite number from 0 up; name another")
        for name, figures, most in (("streams", self.streams, 1024), ("depths", self.depths, 4096)):
            if max(figures) > most:
                raise InvalidInput(f"{name}: found {max(figures)}, expected {most} at most; ask for fewer")
        for name, words in (("streams", self.streams), ("sources", self.sources or ())):
            if len(set(words)) < len(words):
                raise InvalidInput(f"{name}: found {_listed(words)}, expected each once; it is measured once anyway")
        for source, state, instead in _NEVER:
            if self.state is state and source in (self.sources or ()):
                raise InvalidInput(f"source {source}, state {state}: found both, expected one of them; {instead}")

    def _check_fronts(self) -> None:
        if not all(self.tiers):
            raise InvalidInput("tiers: found an entry of none, expected one tier or more in each; leave it out")
        if self.gpu_caches and (self.to is not Target.GPU or min(self.gpu_caches) < 1):
            found = f"{_listed(self.gpu_caches)} bytes to {self.to}"
            raise InvalidInput(f"gpu caches: found {found}, expected 1 byte or more, to a gpu; mend them or leave out")
        for name, entries in (("tiers", self.tiers), ("gpu caches", self.gpu_caches)):
            if len(set(entries)) < len(entries):
                raise InvalidInput(f"{name}: found one of them twice, expected each once; leave the second out")
        for option, given in (("hot list", self.hot_list), ("fill tokens", self.fill_tokens)):
            if given is not None and not self.has_fronts:
                raise InvalidInput(f"{option}: found no tier and no cache to fill, expected one; name its bytes")
        if self.fill_tokens is not None and self.fill_tokens < 0:
            raise InvalidInput(f"fill tokens: found {self.fill_tokens}, expected 0 or more; name another number")

    @property
    def has_fronts(self) -> bool:
        """Whether memory in front of engines is measured."""
        return bool(self.tiers or self.gpu_caches)

    @property
    def sections(self) -> tuple[Section, ...]:
        """Every source in every state it is to be measured in."""
        if self.state is None:
            return tuple(section for section in _USUAL if section.source in (self.sources or tuple(Source)))
        never = {(source, state) for source, state, _ in _NEVER}
        return tuple(
            Section(source=source, state=self.state)
            for source in self.sources or tuple(Source)
            if (source, self.state) not in never
        )
