"""Records ahead of their use: which step's rows are fetched when, and into which of a reader's slots.

A step is one forward pass's batch of tokens: a chunk of prompts, one token of each sequence, a draft. Its addresses are
known before the pass reaches the layers that read its rows, so they are submitted as soon as they are known, and taken
when a layer wants them. What happens is told as events without a time: `measure.slack` has the clock. The schedule
knows neither engines nor devices.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from engram_tables.address.spec import Addresses
from engram_tables.errors import InvalidInput
from engram_tables.fetch.readers import Arriving, RecordReader
from engram_tables.threads import in_background


class EventKind(StrEnum):
    """What happened to a step."""

    ISSUED = "issued"
    """Its reads begin."""
    READY = "ready"
    """All of its records have arrived. Without a background thread that is noticed only when they are taken."""
    WANTED = "wanted"
    """The consumer asks for a layer's records, and waits from now on."""
    TAKEN = "taken"
    """The consumer has them."""
    ACCEPTED = "accepted"
    """A draft holds, with the first `n_tokens` of its tokens."""
    REJECTED = "rejected"
    """A draft does not hold; a step that had been issued was read in vain."""
    RELEASED = "released"
    """The consumer is done with the records."""


class Event(NamedTuple):
    """One thing that happened. `layer` is a position among the table's layers, None where all of them are meant."""

    kind: EventKind
    step: int
    layer: int | None
    n_tokens: int


@runtime_checkable
class ArrivingByLayer(Protocol):
    """An `Arriving` whose layers may be had one by one; `finish` is called in the end as well."""

    def finish(self) -> Any:
        """See `Arriving`."""

    def layer(self, layer: int) -> Any:
        """One layer's records, (tokens, columns, row_bytes)."""


OnEvent = Callable[[Event], object]


class _State(Enum):
    QUEUED = auto()
    BEGUN = auto()
    ARRIVED = auto()
    FAILED = auto()


@dataclass(slots=True, kw_only=True)
class _Step:
    number: int
    addresses: Addresses
    n_tokens: int
    is_draft: bool
    state: _State = _State.QUEUED
    slot: int | None = None
    arriving: Arriving | None = None
    records: Any = None
    error: BaseException | None = None
    is_wanted: bool = False
    is_dropped: bool = False


class Prefetch:
    """Steps fetched ahead of a consumer by one reader. One thread submits, takes and releases.

    A step holds a slot from the moment it is issued until it is released or rejected. Certain steps are issued in the
    order in which they became so, drafts after them and never into the last free slot, so that a draft keeps no
    certain step waiting for a slot.

    Parameters
    ----------
    reader
        Brings the records; it stays its owner's to close, after this schedule.
    depth
        Steps that may be issued and not yet taken; None is all of the reader's slots. With 0 nothing is read ahead: a
        step is issued when it is wanted, which is the baseline that reads inside the forward pass.
    in_background
        Whether a thread calls the reader, one step after the other. True for readers that block while they read, as
        host engines do. False for readers whose calls only put work into a device's queues, and which look at the
        calling thread's current stream.
    on_event
        Called with each `Event` as it happens, in the thread where it happens and outside of locks. What it raises in
        the background becomes the step's error.

    Raises
    ------
    InvalidInput
        A depth that the reader has no slots for.
    """

    def __init__(
        self,
        reader: RecordReader,
        *,
        depth: int | None = None,
        in_background: bool = True,
        on_event: OnEvent | None = None,
    ) -> None:
        self.depth = reader.n_slots if depth is None else depth
        if not 0 <= self.depth <= reader.n_slots:
            raise InvalidInput(f"depth: found {depth}, expected 0 to {reader.n_slots}, the reader's slots")
        self._reader, self._in_background = reader, in_background
        self._on_event = on_event
        self._changed = threading.Condition()
        self._steps: dict[int, _Step] = {}
        # Those not issued yet, in their order, and those that hold a slot.
        self._certain: dict[int, _Step] = {}
        self._drafts: dict[int, _Step] = {}
        self._held: dict[int, _Step] = {}
        self._free_slots = list(range(reader.n_slots))
        self._wanted: _Step | None = None
        self._n_submitted = 0
        self._is_working = self._is_closed = False
        self._process = os.getpid()

    def submit(self, addresses: Addresses, *, is_draft: bool = False) -> int:
        """The addresses of a coming step; gives its number. They must stay as they are until it is released.

        Raises
        ------
        InvalidInput
            More tokens than the reader's batches have, or a closed schedule.
        """
        self._check()
        n_tokens = len(addresses.rows)
        if n_tokens > self._reader.max_tokens:
            raise InvalidInput(
                f"step: found {n_tokens} tokens, expected {self._reader.max_tokens} at most; submit shorter chunks"
            )
        number = self._n_submitted
        self._n_submitted += 1
        step = _Step(number=number, addresses=addresses, n_tokens=n_tokens, is_draft=is_draft)
        with self._changed:
            self._steps[number] = step
            (self._drafts if is_draft else self._certain)[number] = step
        self._issue()
        return number

    def accept(self, step: int, n_tokens: int | None = None) -> None:
        """A draft holds: all of its tokens, or the first `n_tokens`; from now on it is a step like the others."""
        self._check()
        draft = self._draft(step)
        n_held = draft.n_tokens if n_tokens is None else n_tokens
        if not 0 <= n_held <= draft.n_tokens:
            raise InvalidInput(f"step {step}: accepted {n_held} tokens, expected 0 to {draft.n_tokens}")
        with self._changed:
            draft.is_draft, draft.n_tokens = False, n_held
            if self._drafts.pop(step, None) is not None:
                # What was not issued is not read in vain.
                rows, keys = draft.addresses
                draft.addresses = Addresses(rows=rows[:n_held], keys=keys[:n_held])
                self._certain[step] = draft
        self._emit(EventKind.ACCEPTED, step, None, n_held)
        self._issue()

    def reject(self, step: int) -> None:
        """A draft does not hold. Reads that have begun are waited for and thrown away, by the background thread if
        there is one; those that have not are never made."""
        self._check()
        draft = self._draft(step)
        self._drop(draft)
        self._emit(EventKind.REJECTED, step, None, draft.n_tokens)
        self._issue()

    def take(self, step: int, layer: int | None = None) -> Any:
        """A step's records once they have arrived: (tokens, layers, columns, row_bytes), or the `layer`-th of them,
        (tokens, columns, row_bytes). They stay as they are until `release`.

        Raises
        ------
        InvalidInput
            A step that is not there, or a draft that has not been accepted; or no slot is free for it, because every
            one holds a step that was not released.
        OSError, EngramError
            What reading it raised; release it then, too.
        """
        self._check()
        found = self._step(step)
        if found.is_draft:
            raise InvalidInput(f"step {step}: found a draft, expected one that was accepted; accept or reject it")
        n_layers = found.addresses.rows.shape[1]
        if layer is not None and not 0 <= layer < n_layers:
            raise InvalidInput(f"step {step}: asked for layer {layer}, expected 0 to {n_layers - 1}, its position")
        self._emit(EventKind.WANTED, step, layer, found.n_tokens)
        with self._changed:
            found.is_wanted, self._wanted = True, found
        if self._in_background:
            self._issue()
        elif found.state is _State.QUEUED and (next_step := self._next()) is not None:
            # Later steps are begun when this one has been taken: a reader that blocks would keep it waiting for them.
            self._begin(next_step)
        records = self._arrived(found, layer)
        self._emit(EventKind.TAKEN, step, layer, found.n_tokens)
        self._issue()
        return records[: found.n_tokens]

    def release(self, step: int) -> None:
        """The step's records are no longer used: its slot is the next step's, its number forgotten."""
        self._check()
        found = self._step(step)
        self._drop(found)
        self._emit(EventKind.RELEASED, step, None, found.n_tokens)
        self._issue()

    def close(self) -> None:
        """Wait for what is under way and forget all steps. Later calls raise `InvalidInput`."""
        if self._is_closed or os.getpid() != self._process:
            return
        self._is_closed = True
        for step in list(self._steps.values()):
            self._drop(step)
        with self._changed:
            self._changed.wait_for(lambda: not self._is_working)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the consumer's thread does.

    def _check(self) -> None:
        # The background thread does not live on in a child, and a lock that it held would never be free.
        if self._is_closed or os.getpid() != self._process:
            state = "closed already" if self._is_closed else "another process's"
            raise InvalidInput(f"prefetch: {state}, expected an open one; make one here")

    def _step(self, number: int) -> _Step:
        if number not in self._steps:
            raise InvalidInput(
                f"step {number}: not there, expected one that was submitted and not released or rejected"
            )
        return self._steps[number]

    def _draft(self, number: int) -> _Step:
        step = self._step(number)
        if not step.is_draft:
            raise InvalidInput(f"step {number}: found a certain one, expected a draft; submit it with is_draft")
        return step

    def _arrived(self, step: _Step, layer: int | None) -> Any:
        """The step's records, or one layer's of them, after the wait for what is asked for alone."""
        if self._in_background:
            self._wait_for(step)
        else:
            self._require_slot(step)
            if layer is not None and isinstance(step.arriving, ArrivingByLayer):
                return step.arriving.layer(layer)
            self._finish(step)
        if step.error is not None:
            raise step.error
        return step.records if layer is None else step.records[:, layer]

    def _wait_for(self, step: _Step) -> None:
        with self._changed:
            while step.state not in (_State.ARRIVED, _State.FAILED):
                if not self._is_working:
                    self._require_slot(step)
                self._changed.wait()

    def _require_slot(self, step: _Step) -> None:
        if step.state is _State.QUEUED:
            held = ", ".join(map(str, self._held))
            raise InvalidInput(
                f"step {step.number}: found all {self._reader.n_slots} slots in use by steps {held}, expected a free "
                "one; release a step first"
            )

    def _drop(self, step: _Step) -> None:
        """Forget a step; its slot is free at once, or when its reads have ended."""
        with self._changed:
            for kept in (self._steps, self._certain, self._drafts):
                kept.pop(step.number, None)
            step.is_dropped = True
            if step.state is not _State.BEGUN:
                self._free(step)
            elif self._in_background:
                return
        if step.state is _State.BEGUN:
            self._finish(step)

    def _issue(self) -> None:
        """Begin what may begin, here or in the background."""
        if not self._in_background:
            while (step := self._next()) is not None:
                self._begin(step)
            return
        with self._changed:
            if self._is_working or self._candidate() is None:
                return
            in_background(self._work)
            self._is_working = True

    def _emit(self, kind: EventKind, step: int, layer: int | None, n_tokens: int) -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, step, layer, n_tokens))

    # What whoever calls the reader does: the consumer's thread, or one in the background.

    def _work(self) -> None:
        """Read step after step until none may be read."""
        while True:
            with self._changed:
                step = self._next()
                if step is None:
                    self._is_working = False
                    self._changed.notify_all()
                    return
            self._begin(step)
            self._finish(step)

    def _candidate(self) -> _Step | None:
        """The step that may be issued now: what is wanted, then what is certain, then drafts."""
        if not self._free_slots:
            return None
        if self._wanted is not None and self._wanted.number in self._certain:
            return self._wanted
        if sum(not step.is_wanted for step in self._held.values()) >= self.depth:
            return None
        if self._certain:
            return next(iter(self._certain.values()))
        # The last slot is kept for what is certain.
        return next(iter(self._drafts.values()), None) if len(self._free_slots) > 1 else None

    def _next(self) -> _Step | None:
        """The step to issue now, with a slot, or None."""
        with self._changed:
            step = None if self._is_closed else self._candidate()
            if step is not None:
                step.state, step.slot = _State.BEGUN, self._free_slots.pop(0)
                (self._drafts if step.is_draft else self._certain).pop(step.number)
                self._held[step.number] = step
            return step

    def _begin(self, step: _Step) -> None:
        assert step.slot is not None
        try:
            self._emit(EventKind.ISSUED, step.number, None, len(step.addresses.rows))
            step.arriving = self._reader.begin(step.addresses, step.slot)
        except BaseException as error:
            self._fail(step, error)

    def _finish(self, step: _Step) -> None:
        """Wait for a step that has begun; nothing where it has ended."""
        if step.state is not _State.BEGUN:
            return
        assert step.arriving is not None
        arriving, step.arriving = step.arriving, None
        try:
            records = arriving.finish()
            self._emit(EventKind.READY, step.number, None, len(step.addresses.rows))
        except BaseException as error:
            self._fail(step, error)
            return
        self._settle(step, _State.ARRIVED, records)

    def _fail(self, step: _Step, error: BaseException) -> None:
        step.error = error
        self._settle(step, _State.FAILED, None)

    def _settle(self, step: _Step, state: _State, records: Any) -> None:
        with self._changed:
            step.state, step.records = state, records
            if step.is_dropped:
                self._free(step)
            self._changed.notify_all()

    def _free(self, step: _Step) -> None:
        if step.slot is not None:
            self._free_slots.append(step.slot)
            del self._held[step.number]
            step.slot = None
        step.records = None
