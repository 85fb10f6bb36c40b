"""One load and every way for its rows to come, in turn: steps run and timed, waits metered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from engram_tables.address.spec import Addresses
from engram_tables.fetch.schedule import Prefetch
from engram_tables.measure.model_shapes import Load
from engram_tables.measure.overlap_ways import Side, Way
from engram_tables.measure.slack import SlackMeter
from engram_tables.measure.timing import Case, interleave
from engram_tables.measure.trace import Trace
from engram_tables.measure.workload import Step, StepKind, draw_rows


@dataclass(slots=True)
class Rounds:
    """One way's rounds beside one load.

    Attributes
    ----------
    elapsed_ns
        By round: the time of its prefill steps and of its decoding steps.
    resident_bytes
        Of the files before each round, where the way is measured cold.
    """

    way: Way
    load: Load
    side: Side
    steps: Sequence[Step]
    meter: SlackMeter
    elapsed_ns: list[dict[StepKind, int]] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)

    def forget(self) -> None:
        """Begin to count anew, after a warm-up."""
        self.meter.clear()
        self.elapsed_ns.clear()
        self.resident_bytes.clear()

    def prepare(self, trace: Trace, rng: np.random.Generator) -> list[Addresses]:
        """What a round looks up, and the files as the way wants them."""
        resident = self.way.before_round()
        if resident is not None:
            self.resident_bytes.append(resident)
        return draw_rows(trace, self.steps, rng)

    def run(self, drawn: Sequence[Addresses]) -> None:
        """All steps once."""
        way = self.way
        if way.reader is None:
            self._run(drawn, None)
            return
        with Prefetch(way.reader, depth=way.depth, in_background=way.in_background, on_event=self.meter) as prefetch:
            self._run(drawn, prefetch)

    def _run(self, drawn: Sequence[Addresses], prefetch: Prefetch | None) -> None:
        clock, n_submitted = self.side.clock, 0
        spans: dict[StepKind, tuple[Any, Any]] = {}
        begin = clock.mark()
        for nth, (kind, n_tokens) in enumerate(self.steps):
            if prefetch is not None:
                n_submitted = self._submit_known(prefetch, drawn, nth, n_submitted)
            self._blocks(prefetch, nth, n_tokens)
            if kind is StepKind.DECODE:
                self.load.head(n_tokens)
                # The host reads the tokens that came out before it knows the next step's rows.
                clock.settle()
            if prefetch is not None:
                prefetch.release(nth)
            if nth + 1 == len(self.steps) or self.steps[nth + 1][0] is not kind:
                end = clock.mark()
                spans[kind], begin = (begin, end), end
        clock.settle()
        self.elapsed_ns.append({kind: clock.between_ns(*span) for kind, span in spans.items()})

    def _submit_known(self, prefetch: Prefetch, drawn: Sequence[Addresses], nth: int, n_submitted: int) -> int:
        """Prompts are known from the beginning, a decoded token when the step before has ended."""
        while n_submitted < len(self.steps):
            if n_submitted > nth and self.steps[n_submitted][0] is StepKind.DECODE:
                break
            prefetch.submit(drawn[n_submitted])
            n_submitted += 1
        return n_submitted

    def _blocks(self, prefetch: Prefetch | None, nth: int, n_tokens: int) -> None:
        for block in range(self.load.shape.blocks):
            for layer, reading in enumerate(self.load.shape.memory_blocks):
                if prefetch is None or reading != block:
                    continue
                records = prefetch.take(nth, layer)
                self.side.after_take()
                if self.way.values is not None:
                    self.load.remember(self.way.values(records))
            self.load.block(block, n_tokens)


def run_rounds(
    runs: Sequence[Rounds],
    trace: Trace,
    *,
    repeats: int,
    seconds: float,
    seed: int,
    advance: Callable[[], object],
) -> None:
    """Each way once a round, after a round that counts for nothing; every way has the same rows."""
    streams = {run.way.name: np.random.default_rng(seed) for run in runs}
    cases = {
        run.way.name: Case(prepare=partial(run.prepare, trace, streams[run.way.name]), run=run.run) for run in runs
    }
    for run in runs:
        run.run(run.prepare(trace, streams[run.way.name]))
        run.forget()
    samples = interleave(cases, repeats=repeats, seconds=seconds, warm_ups=0, progress=advance)
    for run in runs:
        run.cpu_ns = samples[run.way.name].cpu_ns
