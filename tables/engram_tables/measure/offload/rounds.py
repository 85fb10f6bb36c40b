"""Timed batches: cases that take turns, each by one stream or by several at the same time, and what was true of each.

The timed window of a batch is its `Fetch` alone: drawing it, evicting files and reading counters lie outside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.measure.contention import own_read_bytes
from engram_tables.measure.environment import device_reads
from engram_tables.measure.offload.lookups import Asked, Fetch, Lookups
from engram_tables.measure.residency import File, evict

MOST_ROUNDS = 1000
_DESCRIBED_BATCHES, _DESCRIBED_LARGE, _MANY_ROWS = 16, 4, 16_384
_ROUND_NS = 20_000_000
"""Streams that do not begin cold fetch as many batches a round as take about this long: starting them takes time."""
_MOST_IN_A_ROW = 64
_SLOW_ROUND_NS = 300_000_000


@dataclass(slots=True, kw_only=True)
class Noted:
    """What was seen of one case.

    Attributes
    ----------
    batch_ns
        Of every batch of every stream.
    round_ns
        From the first stream's start to the last one's end; with one stream the sum of its batches.
    n_batches
        Of all rounds.
    reads, read_bytes
        Of the device in the rounds, for whoever asked; None without counters. `own_read_bytes` were this process's.
    resident_before
        Bytes of the files in memory before each cold round.
    """

    batch_ns: list[int] = field(default_factory=list)
    round_ns: list[int] = field(default_factory=list)
    cpu_ns: int = 0
    n_batches: int = 0
    reads: int | None = 0
    read_bytes: int | None = 0
    own_read_bytes: int | None = 0
    resident_before: list[int] = field(default_factory=list)
    facts: list[dict[str, float]] = field(default_factory=list)

    def mean(self, fact: str) -> float:
        """Mean of a fact of the batches drawn first."""
        return float(np.mean([facts[fact] for facts in self.facts]))


def touched_buffers(n: int, n_rows: int, row_bytes: int) -> list[NDArray[np.uint8]]:
    """Buffers of uint8 (n_rows, row_bytes), written once, so that no batch pays for the memory's first touch."""
    return [np.full((n_rows, row_bytes), 1, np.uint8) for _ in range(n)]


class Case:
    """One engine's batches of one length, by a stream for each of `outs`, which cases that take turns may share.

    Cases that take turns have each a `turn` of their own, by which they draw from the trace. With `cold_files` these
    are evicted before every round, and `settle` is called then.

    Attributes
    ----------
    noted
        All rounds but the warm-ups.
    """

    def __init__(
        self, path: Path, lookups: Lookups, fetch: Fetch, outs: Sequence[NDArray[np.uint8]], *, n_tokens: int,
        turn: int, cold_files: Sequence[File] | None = None, settle: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.noted = Noted()
        self.n_tokens, self.n_streams = n_tokens, len(outs)
        self._path, self._lookups, self._fetch, self._outs = path, lookups, fetch, outs
        self._cold_files, self._settle = cold_files, settle
        self._in_a_row = 1
        self._turn, self._rng, self._n_drawn = turn, lookups.rng(turn), 0

    def warm_up(self) -> int:
        """A round that is thrown away; its nanoseconds."""
        kept, self.noted = self.noted, Noted()
        self.round()
        if self.n_streams > 1 and self._cold_files is None:
            batch_ns = max(1, int(np.median(self.noted.batch_ns)))
            self._in_a_row = max(1, min(_MOST_IN_A_ROW, _ROUND_NS // batch_ns))
        elapsed_ns, self.noted = self.noted.round_ns[0], kept
        return elapsed_ns

    def wants_more(self, repeats: int, seconds: float) -> bool:
        """Whether the case has had fewer than `repeats` batches, or less than `seconds` of timed work."""
        n_done = len(self.noted.batch_ns)
        spent = sum(self.noted.round_ns) < seconds * 1e9
        return len(self.noted.round_ns) < MOST_ROUNDS and (n_done < repeats or spent)

    def round(self) -> None:
        """One batch of each stream; of streams that do not begin cold several, one after the other."""
        noted = self.noted
        drawn = [[self._draw() for _ in range(self._in_a_row)] for _ in range(self.n_streams)]
        if self._cold_files is not None:
            noted.resident_before.append(evict(self._cold_files))
            self._settle()
        device, own, cpu = device_reads(self._path), own_read_bytes(), time.process_time_ns()
        times = [self._stream(0, drawn[0])] if self.n_streams == 1 else self._at_once(drawn)
        noted.cpu_ns += time.process_time_ns() - cpu
        after, own_after = device_reads(self._path), own_read_bytes()
        if device is None or after is None:
            noted.reads = noted.read_bytes = None
        elif noted.reads is not None and noted.read_bytes is not None:
            noted.reads += after[0] - device[0]
            noted.read_bytes += after[1] - device[1]
        if own is None or own_after is None:
            noted.own_read_bytes = None
        elif noted.own_read_bytes is not None:
            noted.own_read_bytes += own_after - own
        starts, stops = [start for start, _ in times[0]], [stop for of_one in times for _, stop in of_one]
        noted.batch_ns += [stop - start for of_one in times for start, stop in of_one]
        noted.round_ns.append(
            sum(stop - start for start, stop in times[0])
            if self.n_streams == 1
            else max(stops) - min([*starts, *(of_one[0][0] for of_one in times)])
        )
        noted.n_batches += len(stops)

    def _draw(self) -> Asked:
        asked = self._lookups.draw(self.n_tokens, self._rng)
        if len(self.noted.facts) < (_DESCRIBED_BATCHES if asked.n_rows < _MANY_ROWS else _DESCRIBED_LARGE):
            self.noted.facts.append(self._lookups.facts(asked, self.n_tokens, self._turn, self._n_drawn))
        self._n_drawn += 1
        return asked

    def _stream(self, stream: int, batches: list[Asked]) -> list[tuple[int, int]]:
        """(start, stop) of each batch."""
        fetch, out, times = self._fetch, self._outs[stream], []
        for asked in batches:
            start = time.perf_counter_ns()
            fetch(asked, out)
            times.append((start, time.perf_counter_ns()))
        return times

    def _at_once(self, drawn: list[list[Asked]]) -> list[list[tuple[int, int]]]:
        found: list[Any] = [None] * len(drawn)
        gate = threading.Barrier(len(drawn))

        def run(stream: int) -> None:
            try:
                gate.wait()
                found[stream] = self._stream(stream, drawn[stream])
            except BaseException as error:
                found[stream] = error
                gate.abort()

        threads = [threading.Thread(target=run, args=(stream,)) for stream in range(1, len(drawn))]
        try:
            for thread in threads:
                thread.start()
            run(0)
        except BaseException:
            # A thread too few, or Ctrl-C: those that wait for the others would wait for ever.
            gate.abort()
            raise
        finally:
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        errors = [each for each in found if isinstance(each, BaseException)]
        for error in sorted(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
            raise error
        return found


def take_turns(
    cases: Sequence[Case],
    *,
    repeats: int,
    seconds: float,
    warm_ups: int = 1,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Run the cases round by round, so that a slow minute of the machine falls on all of them.

    A case is done with `repeats` batches and `seconds` of timed work, or `MOST_ROUNDS`; the others go on.
    """
    warm_up(cases, warm_ups)
    while active := [case for case in cases if case.wants_more(repeats, seconds)]:
        for case in active:
            case.round()
        advance()


def warm_up(cases: Sequence[Case], times: int) -> None:
    """Rounds that are thrown away, `times` of each case, or until one takes long."""
    for case in cases:
        for _ in range(times):
            # What takes so long is not made noticeably quicker by another one.
            if case.warm_up() > _SLOW_ROUND_NS:
                break


def mismatch(records: NDArray[np.uint8], expected: NDArray[np.uint8]) -> tuple[int, int] | None:
    """How many records differ and the first one's position in the batch; None where all are equal."""
    wrong = np.flatnonzero((records != expected).any(axis=-1))
    return (len(wrong), int(wrong[0])) if wrong.size else None
