"""Times a prefetch schedule's events: how early each layer's records were there, and how long a layer waited.

It has the clocks that `fetch.schedule` must not have: the host's, or a device's own, whose events lie on the stream
that consumes the records.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from engram_tables.fetch.schedule import Event, EventKind


class Clock(Protocol):
    """Marks in time, and the nanoseconds between two of them once `settle` has returned.

    Attributes
    ----------
    sees_arrivals
        Whether a mark made when records arrive says when they arrived. A device's clock marks the consumer's stream,
        which knows nothing of the stream that brings them.
    """

    sees_arrivals: bool

    def mark(self) -> Any:
        """Now."""

    def settle(self) -> None:
        """Wait until every mark has happened."""

    def between_ns(self, start: Any, stop: Any) -> int:
        """From one mark to a later one; negative where it is an earlier one."""


class HostClock:
    """Wall time of the host."""

    sees_arrivals = True

    def mark(self) -> int:
        """See `Clock`."""
        return time.perf_counter_ns()

    def settle(self) -> None:
        """See `Clock`."""

    def between_ns(self, start: int, stop: int) -> int:
        """See `Clock`."""
        return stop - start


class DeviceClock:
    """Events on the current stream of CuPy, `cupy` as `fetch.gpu.runtime` imported it."""

    sees_arrivals = False

    def __init__(self, cupy: Any) -> None:
        self._cuda = cupy.cuda

    def mark(self) -> Any:
        """See `Clock`."""
        event = self._cuda.Event()
        event.record()
        return event

    def settle(self) -> None:
        """See `Clock`."""
        self._cuda.get_current_stream().synchronize()

    def between_ns(self, start: Any, stop: Any) -> int:
        """See `Clock`; a device's events are half a microsecond fine."""
        milliseconds: float = self._cuda.get_elapsed_time(start, stop)
        return round(milliseconds * 1e6)


class SlackMeter:
    """Give it to a `Prefetch` as `on_event`; `summary` after the last step. It keeps every event."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: list[tuple[Event, Any]] = []

    def __call__(self, event: Event) -> None:
        # list.append is atomic: events come from two threads.
        self._seen.append((event, self._clock.mark()))

    def clear(self) -> None:
        """Forget what was seen, after a warm-up."""
        self._seen.clear()

    @property
    def exposed_ns(self) -> int:
        """Time in which the consumer waited, over all steps and layers."""
        self._clock.settle()
        return sum(waits for _, _, waits in self._waits())

    def summary(self) -> dict[str, Any]:
        """Counts of steps and tokens; fetch times; and by layer the exposed waits and the slack.

        The slack of a layer is the time from its records' arrival to the moment that it wants them; negative where
        it waited. It is None where the clock does not see arrivals.
        """
        self._clock.settle()
        marks = {(event.kind, event.step): mark for event, mark in self._seen if event.layer is None}
        waits = self._waits()
        by_layer: dict[int | None, list[int]] = {}
        slack: dict[int | None, list[int]] = {}
        for event, mark, wait in waits:
            by_layer.setdefault(event.layer, []).append(wait)
            ready = marks.get((EventKind.READY, event.step))
            if ready is not None and self._clock.sees_arrivals:
                slack.setdefault(event.layer, []).append(self._clock.between_ns(ready, mark))
        fetches = [
            self._clock.between_ns(marks[EventKind.ISSUED, step], mark)
            for (kind, step), mark in marks.items()
            if kind is EventKind.READY and (EventKind.ISSUED, step) in marks and self._clock.sees_arrivals
        ]
        return {
            **self._counts(),
            "exposed_ns": sum(wait for _, _, wait in waits),
            "fetch_ns": _spread(fetches),
            "layers": [
                {
                    "layer": layer,
                    "exposed_ns": _spread(of_layer),
                    "slack_ns": _spread(slack[layer]) if layer in slack else None,
                }
                for layer, of_layer in sorted(by_layer.items(), key=lambda item: -1 if item[0] is None else item[0])
            ],
        }

    def _waits(self) -> list[tuple[Event, Any, int]]:
        """Each wanted event, its mark, and how long it took until the records were taken."""
        waits = []
        open_wants: dict[tuple[int, int | None], tuple[Event, Any]] = {}
        for event, mark in self._seen:
            if event.kind is EventKind.WANTED:
                open_wants[event.step, event.layer] = event, mark
            elif event.kind is EventKind.TAKEN:
                wanted, since = open_wants.pop((event.step, event.layer))
                waits.append((wanted, since, self._clock.between_ns(since, mark)))
        return waits

    def _counts(self) -> dict[str, int]:
        steps: dict[EventKind, set[int]] = {kind: set() for kind in EventKind}
        tokens: dict[int, int] = {}
        held: dict[int, int] = {}
        for event, _ in self._seen:
            steps[event.kind].add(event.step)
            if event.kind is EventKind.ISSUED:
                tokens[event.step] = event.n_tokens
            elif event.kind is EventKind.TAKEN:
                held[event.step] = event.n_tokens
        return {
            "steps_issued": len(steps[EventKind.ISSUED]),
            "steps_taken": len(steps[EventKind.TAKEN]),
            "steps_rejected": len(steps[EventKind.REJECTED]),
            "tokens_issued": sum(tokens.values()),
            "tokens_taken": sum(held.values()),
        }


def _spread(samples_ns: Sequence[int]) -> dict[str, int] | None:
    """Quantiles that are samples themselves; None without samples."""
    if not samples_ns:
        return None
    low, middle, high = np.percentile(samples_ns, [1, 50, 99], method="nearest").astype(np.int64).tolist()
    return {
        "n": len(samples_ns), "total_ns": sum(samples_ns), "min_ns": min(samples_ns), "p1_ns": low, "p50_ns": middle,
        "p99_ns": high, "max_ns": max(samples_ns),
    }  # fmt: skip
