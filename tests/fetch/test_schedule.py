"""Steps fetched ahead: which are issued when, that their bytes are right, and that a fetch and its consumer overlap."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_table import make_table
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses, AddressSpec, HistoryRule, LayerAddressing
from engram_tables.errors import InvalidInput
from engram_tables.fetch.coming_tokens import ComingTokens, chunks
from engram_tables.fetch.readers import HostReader
from engram_tables.fetch.reference import read_batch
from engram_tables.fetch.schedule import ArrivingByLayer, Event, EventKind, Prefetch
from engram_tables.fetch.table import Table

MAX_TOKENS = 5
LONG = 60.0


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    with make_table(tmp_path_factory.mktemp("made")) as made:
        yield made


def addresses_of(seed: int, n_tokens: int = MAX_TOKENS) -> Addresses:
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.integers(0, n_rows, (n_tokens, 3)) for n_rows in (1000, 777)], axis=1)
    return Addresses(rows=rows, keys=np.zeros((n_tokens, 2, 1), np.uint64))


def a_reader(table: Table, *, n_slots: int = 2, engine: str = "gather") -> HostReader:
    return HostReader(table, n_slots=n_slots, max_tokens=MAX_TOKENS, engine=engine)


class GatedReader:
    """A table's records, each batch of which arrives when its gate is opened; counts what is under way."""

    def __init__(self, table: Table, n_slots: int) -> None:
        self.n_slots, self.max_tokens = n_slots, MAX_TOKENS
        self._table = table
        self.gates: dict[int, threading.Event] = {}
        self.begun: list[int] = []
        self.in_slots: dict[int, int] = {}
        self.error: Exception | None = None

    def begin(self, addresses: Addresses, slot: int) -> Any:
        name = id(addresses.rows)
        self.begun.append(name)
        self.in_slots[slot] = name
        if self.error is not None:
            raise self.error
        return _Gated(self, addresses, self.gates.setdefault(name, threading.Event()))

    def open(self, addresses: Addresses) -> None:
        self.gates.setdefault(id(addresses.rows), threading.Event()).set()

    def close(self) -> None:
        pass


class _Gated:
    def __init__(self, reader: GatedReader, addresses: Addresses, gate: threading.Event) -> None:
        self._reader, self._addresses, self._gate = reader, addresses, gate

    def finish(self) -> NDArray[np.uint8]:
        assert self._gate.wait(LONG)
        return read_batch(self._reader._table.stored, self._addresses.rows)


class Seen:
    """Events in their order, and a way to wait for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def kinds(self, step: int) -> list[EventKind]:
        return [event.kind for event in self.events if event.step == step]

    def wait_for(self, kind: EventKind, step: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: kind in self.kinds(step), LONG)


@pytest.mark.parametrize("in_background", [True, False])
@pytest.mark.parametrize("engine", ["gather", "pread", "mapping"])
def test_records_are_those_of_a_slow_reading(table: Table, engine: str, in_background: bool) -> None:
    reader = a_reader(table, n_slots=3, engine=engine)
    batches = [addresses_of(seed, n_tokens) for seed, n_tokens in enumerate([5, 1, 0, 3, 5, 2])]
    seen = Seen()
    with Prefetch(reader, in_background=in_background, on_event=seen) as prefetch:
        steps = [prefetch.submit(batch) for batch in batches]
        for step, batch in zip(steps, batches, strict=True):
            expected = read_batch(table.stored, batch.rows)
            assert np.array_equal(prefetch.take(step, 1), expected[:, 1])
            assert np.array_equal(prefetch.take(step, 0), expected[:, 0])
            assert np.array_equal(prefetch.take(step), expected)
            prefetch.release(step)
    for step in steps:
        taken = [EventKind.WANTED, EventKind.TAKEN]
        # In the background a step may have arrived before or after it was wanted for the first time.
        ours = [kind for kind in seen.kinds(step) if kind not in (EventKind.ISSUED, EventKind.READY)]
        assert ours == taken * 3 + [EventKind.RELEASED]
        kinds = seen.kinds(step)
        assert kinds.index(EventKind.ISSUED) < kinds.index(EventKind.READY) < kinds.index(EventKind.TAKEN)
    layers = [event.layer for event in seen.events if event.kind is EventKind.WANTED and event.step == 0]
    assert layers == [1, 0, None]
    reader.close()


def test_records_arrive_while_the_consumer_does_something_else(table: Table) -> None:
    seen = Seen()
    with Prefetch(a_reader(table), on_event=seen) as prefetch:
        step = prefetch.submit(addresses_of(1))
        seen.wait_for(EventKind.READY, step)
        assert EventKind.WANTED not in seen.kinds(step)
        prefetch.take(step)
        assert seen.kinds(step) == [EventKind.ISSUED, EventKind.READY, EventKind.WANTED, EventKind.TAKEN]


def test_submitting_returns_while_the_read_is_under_way(table: Table) -> None:
    reader, batch, seen = GatedReader(table, 2), addresses_of(1), Seen()
    with Prefetch(reader, on_event=seen) as prefetch:
        step = prefetch.submit(batch)
        seen.wait_for(EventKind.ISSUED, step)
        assert EventKind.READY not in seen.kinds(step)
        reader.open(batch)
        assert np.array_equal(prefetch.take(step), read_batch(table.stored, batch.rows))


@pytest.mark.parametrize("in_background", [True, False])
def test_without_depth_nothing_is_read_before_it_is_wanted(table: Table, in_background: bool) -> None:
    seen = Seen()
    with Prefetch(a_reader(table), depth=0, in_background=in_background, on_event=seen) as prefetch:
        steps = [prefetch.submit(addresses_of(seed)) for seed in range(3)]
        assert seen.events == []
        for step in steps:
            prefetch.take(step)
            prefetch.release(step)
            assert seen.kinds(step)[:4] == [EventKind.WANTED, EventKind.ISSUED, EventKind.READY, EventKind.TAKEN]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_more_steps_are_issued_ahead_than_the_depth(table: Table, depth: int) -> None:
    seen = Seen()
    with Prefetch(a_reader(table, n_slots=4), depth=depth, in_background=False, on_event=seen) as prefetch:
        steps = [prefetch.submit(addresses_of(seed)) for seed in range(8)]
        for nth, step in enumerate(steps):
            issued = {event.step for event in seen.events if event.kind is EventKind.ISSUED}
            assert issued == set(steps[: nth + depth])
            prefetch.take(step)
            prefetch.release(step)


def test_a_wanted_step_passes_those_before_it(table: Table) -> None:
    reader = GatedReader(table, 2)
    batches = [addresses_of(seed) for seed in range(4)]
    for batch in batches:
        reader.open(batch)
    with Prefetch(reader, depth=1, in_background=False) as prefetch:
        steps = [prefetch.submit(batch) for batch in batches]
        prefetch.take(steps[3])
        assert reader.begun == [id(batches[0].rows), id(batches[3].rows)]


def test_a_wanted_step_waits_for_no_later_one(table: Table) -> None:
    seen = Seen()
    with Prefetch(a_reader(table, n_slots=3), depth=1, in_background=False, on_event=seen) as prefetch:
        first, second = (prefetch.submit(addresses_of(seed)) for seed in range(2))
        prefetch.take(first)
        order = [(event.kind, event.step) for event in seen.events]
        assert order.index((EventKind.TAKEN, first)) < order.index((EventKind.ISSUED, second))


# Drafts.


def test_a_rejected_draft_that_was_not_issued_is_never_read(table: Table) -> None:
    reader = GatedReader(table, 1)
    batch, after = addresses_of(1), addresses_of(2)
    reader.open(after)
    seen = Seen()
    with Prefetch(reader, on_event=seen) as prefetch:
        draft = prefetch.submit(batch, is_draft=True)
        prefetch.reject(draft)
        prefetch.take(prefetch.submit(after))
        assert reader.begun == [id(after.rows)]
        assert seen.kinds(draft) == [EventKind.REJECTED]
        with pytest.raises(InvalidInput, match=f"step {draft}: not there"):
            prefetch.take(draft)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_rejected_draft_that_is_under_way_gives_its_slot_back(table: Table, in_background: bool) -> None:
    reader, draft_batch = GatedReader(table, 2), addresses_of(0)
    batches = [addresses_of(seed) for seed in range(1, 7)]
    seen = Seen()
    with Prefetch(reader, in_background=in_background, on_event=seen) as prefetch:
        draft = prefetch.submit(draft_batch, is_draft=True)
        seen.wait_for(EventKind.ISSUED, draft)
        if not in_background:
            reader.open(draft_batch)
        prefetch.reject(draft)
        reader.open(draft_batch)
        steps = [prefetch.submit(batch) for batch in batches]
        for batch in batches:
            reader.open(batch)
        for step, batch in zip(steps, batches, strict=True):
            assert np.array_equal(prefetch.take(step), read_batch(table.stored, batch.rows))
            prefetch.release(step)
    # The draft and the steps together have used both slots.
    assert set(reader.in_slots) == {0, 1}


def test_an_accepted_draft_holds_its_first_tokens(table: Table) -> None:
    batch = addresses_of(3)
    seen = Seen()
    with Prefetch(a_reader(table, n_slots=3), on_event=seen) as prefetch:
        draft = prefetch.submit(batch, is_draft=True)
        with pytest.raises(InvalidInput, match="found a draft"):
            prefetch.take(draft)
        with pytest.raises(InvalidInput, match="accepted 6 tokens, expected 0 to 5"):
            prefetch.accept(draft, 6)
        seen.wait_for(EventKind.ISSUED, draft)
        prefetch.accept(draft, 2)
        assert np.array_equal(prefetch.take(draft), read_batch(table.stored, batch.rows[:2]))
        assert np.array_equal(prefetch.take(draft, 1), read_batch(table.stored, batch.rows[:2])[:, 1])
        with pytest.raises(InvalidInput, match="expected a draft"):
            prefetch.reject(draft)
    issued = {event.kind: event.n_tokens for event in seen.events}
    assert issued[EventKind.ISSUED] == 5
    assert issued[EventKind.TAKEN] == issued[EventKind.ACCEPTED] == 2


def test_of_a_draft_that_was_not_issued_only_what_holds_is_read(table: Table) -> None:
    batch, seen = addresses_of(3), Seen()
    with Prefetch(a_reader(table, n_slots=1), on_event=seen) as prefetch:
        draft = prefetch.submit(batch, is_draft=True)
        prefetch.accept(draft, 2)
        assert np.array_equal(prefetch.take(draft), read_batch(table.stored, batch.rows[:2]))
    assert {event.n_tokens for event in seen.events if event.kind is EventKind.ISSUED} == {2}


def test_drafts_leave_a_slot_for_what_is_certain(table: Table) -> None:
    seen = Seen()
    with Prefetch(a_reader(table, n_slots=3), in_background=False, on_event=seen) as prefetch:
        drafts = [prefetch.submit(addresses_of(seed), is_draft=True) for seed in range(5)]
        assert {event.step for event in seen.events} == set(drafts[:2])
        certain = prefetch.submit(addresses_of(9))
        prefetch.take(certain)
        prefetch.release(certain)
        # Only by being accepted may the third draft have the last slot.
        prefetch.accept(drafts[4])
        assert EventKind.ISSUED in seen.kinds(drafts[4])
        assert EventKind.ISSUED not in seen.kinds(drafts[2])


# Misuse, errors, ends.


@pytest.mark.parametrize("in_background", [True, False])
def test_a_step_without_a_slot_is_refused_and_had_after_a_release(table: Table, in_background: bool) -> None:
    batches = [addresses_of(seed) for seed in range(3)]
    with Prefetch(a_reader(table), in_background=in_background) as prefetch:
        steps = [prefetch.submit(batch) for batch in batches]
        prefetch.take(steps[0])
        prefetch.take(steps[1])
        with pytest.raises(InvalidInput, match="found all 2 slots in use by steps 0, 1"):
            prefetch.take(steps[2])
        prefetch.release(steps[0])
        assert np.array_equal(prefetch.take(steps[2]), read_batch(table.stored, batches[2].rows))


@pytest.mark.parametrize("in_background", [True, False])
def test_an_error_comes_with_its_own_step(table: Table, in_background: bool) -> None:
    bad = addresses_of(1)
    bad.rows[2, 1, 0] = 777
    good = addresses_of(2)
    with Prefetch(a_reader(table), in_background=in_background) as prefetch:
        steps = [prefetch.submit(batch) for batch in (bad, good, good)]
        with pytest.raises(InvalidInput, match=r"found row 777 at position \(2, 1, 0\)"):
            prefetch.take(steps[0])
        assert np.array_equal(prefetch.take(steps[1]), read_batch(table.stored, good.rows))
        for step in steps[:2]:
            prefetch.release(step)
        prefetch.take(steps[2])


def test_what_a_hook_raises_is_the_steps_error(table: Table) -> None:
    def hook(event: Event) -> None:
        if event.kind is EventKind.READY:
            raise RuntimeError("from the hook")

    with Prefetch(a_reader(table), on_event=hook) as prefetch:
        step = prefetch.submit(addresses_of(1))
        with pytest.raises(RuntimeError, match="from the hook"):
            prefetch.take(step)


@pytest.mark.parametrize("in_background", [True, False])
def test_closing_waits_for_what_is_under_way(table: Table, in_background: bool) -> None:
    reader, batch, seen = GatedReader(table, 2), addresses_of(1), Seen()
    prefetch = Prefetch(reader, in_background=in_background, on_event=seen)
    step = prefetch.submit(batch)
    prefetch.submit(addresses_of(2), is_draft=True)
    seen.wait_for(EventKind.ISSUED, step)
    opener = threading.Timer(0.05, reader.open, (batch,))
    opener.start()
    prefetch.close()
    assert EventKind.READY in seen.kinds(step)
    prefetch.close()
    with pytest.raises(InvalidInput, match="closed already"):
        prefetch.submit(batch)
    opener.join()


def test_closing_reads_nothing_that_was_not_issued(table: Table) -> None:
    seen = Seen()
    with Prefetch(a_reader(table), depth=0, on_event=seen) as prefetch:
        prefetch.submit(addresses_of(1))
    assert seen.events == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda prefetch: prefetch.submit(addresses_of(0, MAX_TOKENS + 1)), "found 6 tokens, expected 5"),
        (lambda prefetch: prefetch.take(17), "step 17: not there"),
        (lambda prefetch: prefetch.take(prefetch.submit(addresses_of(0)), 2), "asked for layer 2, expected 0 to 1"),
        (lambda prefetch: prefetch.release(17), "step 17: not there"),
        (lambda prefetch: prefetch.accept(prefetch.submit(addresses_of(0))), "expected a draft"),
    ],
)
def test_misuse_is_refused(table: Table, call: Any, message: str) -> None:
    with Prefetch(a_reader(table)) as prefetch, pytest.raises(InvalidInput, match=message):
        call(prefetch)


@pytest.mark.parametrize("depth", [-1, 3])
def test_a_depth_without_slots_is_refused(table: Table, depth: int) -> None:
    with pytest.raises(InvalidInput, match="expected 0 to 2, the reader's slots"):
        Prefetch(a_reader(table), depth=depth)


def _use_in_child(prefetch: Prefetch, answers: Any) -> None:
    try:
        prefetch.submit(addresses_of(0))
    except InvalidInput as error:
        answers.put(str(error))
    prefetch.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_child_of_fork_is_refused_and_does_not_hang(table: Table) -> None:
    context = multiprocessing.get_context("fork")
    reader, batch = GatedReader(table, 2), addresses_of(1)
    seen = Seen()
    with Prefetch(reader, on_event=seen) as prefetch:
        step = prefetch.submit(batch)
        seen.wait_for(EventKind.ISSUED, step)
        answers = context.SimpleQueue()
        child = context.Process(target=_use_in_child, args=(prefetch, answers))
        child.start()
        child.join(LONG)
        assert child.exitcode == 0
        assert "another process's" in answers.get()
        reader.open(batch)
        prefetch.take(step)


class Layered:
    """Arrives layer by layer, as a device's batches do."""

    def __init__(self, records: NDArray[np.uint8], calls: list[object]) -> None:
        self._records, self._calls = records, calls

    def layer(self, layer: int) -> NDArray[np.uint8]:
        self._calls.append(layer)
        return self._records[:, layer]

    def finish(self) -> NDArray[np.uint8]:
        self._calls.append("finish")
        return self._records


def test_layers_that_arrive_one_by_one_are_had_one_by_one_and_finished_once(table: Table) -> None:
    calls: list[object] = []

    class Reader(GatedReader):
        def begin(self, addresses: Addresses, slot: int) -> Any:
            return Layered(read_batch(table.stored, addresses.rows), calls)

    batch = addresses_of(1)
    assert isinstance(Layered(np.empty(0, np.uint8), calls), ArrivingByLayer)
    with Prefetch(Reader(table, 2), in_background=False) as prefetch:
        step = prefetch.submit(batch)
        expected = read_batch(table.stored, batch.rows)
        assert np.array_equal(prefetch.take(step, 1), expected[:, 1])
        assert np.array_equal(prefetch.take(step, 0), expected[:, 0])
        assert calls == [1, 0]
        prefetch.release(step)
        assert calls == [1, 0, "finish"]


# Any use.


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_use_gives_right_bytes_and_no_slot_twice(table: Table, data: st.DataObject) -> None:
    n_slots = data.draw(st.integers(1, 4))
    depth = data.draw(st.integers(0, n_slots))
    in_background = data.draw(st.booleans())
    reader, seen = a_reader(table, n_slots=n_slots), Seen()
    certain: dict[int, tuple[Addresses, int]] = {}
    drafts: dict[int, Addresses] = {}
    held: dict[int, NDArray[np.uint8]] = {}
    with Prefetch(reader, depth=depth, in_background=in_background, on_event=seen) as prefetch:
        for seed in range(data.draw(st.integers(0, 25))):
            action = data.draw(st.sampled_from(["submit", "draft", "accept", "reject", "take", "release"]))
            if action in ("submit", "draft"):
                batch = addresses_of(seed, data.draw(st.integers(0, MAX_TOKENS)))
                step = prefetch.submit(batch, is_draft=action == "draft")
                if action == "draft":
                    drafts[step] = batch
                else:
                    certain[step] = batch, len(batch.rows)
            elif action in ("accept", "reject") and drafts:
                step = data.draw(st.sampled_from(sorted(drafts)))
                batch = drafts.pop(step)
                if action == "reject":
                    prefetch.reject(step)
                else:
                    n_tokens = data.draw(st.integers(0, len(batch.rows)))
                    prefetch.accept(step, n_tokens)
                    certain[step] = batch, n_tokens
            elif action == "take" and certain:
                step = data.draw(st.sampled_from(sorted(certain)))
                batch, n_tokens = certain[step]
                try:
                    held[step] = prefetch.take(step)
                except InvalidInput:
                    # Only where others hold every slot.
                    assert not in_background or len({*held, *certain, *drafts}) > n_slots
                    continue
            elif action == "release" and held:
                step = data.draw(st.sampled_from(sorted(held)))
                del held[step], certain[step]
                prefetch.release(step)
            for step, records in held.items():
                batch, n_tokens = certain[step]
                assert np.array_equal(records, read_batch(table.stored, batch.rows[:n_tokens]))
    issued = [event.step for event in seen.events if event.kind is EventKind.ISSUED]
    assert len(issued) == len(set(issued))
    reader.close()


# What comes next.


def a_spec(**history: Any) -> AddressSpec:
    layers = tuple(
        LayerAddressing(
            layer_id=layer_id, multipliers=(3, 5, 7), moduli=((401, 409), (419, 421)), offsets=(0, 401, 810, 1229),
            n_rows=1650,
        )
        for layer_id in (1, 2)
    )  # fmt: skip
    return AddressSpec(
        name="small", provenance="made for a test", canonical_size=50, history=HistoryRule(fill_id=0, **history),
        orders=(2, 3), layers=layers, row_width=64,
    )  # fmt: skip


SPECS = [a_spec(), a_spec(boundary_ids=(7,)), a_spec(boundary_ids=(7, 9), boundary_visible=True)]
TOKENS = st.lists(st.integers(-1, 49), max_size=30)


@settings(deadline=None)
@given(ids=TOKENS, spec=st.sampled_from(SPECS), data=st.data())
def test_a_sequence_in_pieces_has_the_addresses_of_the_whole(
    ids: list[int], spec: AddressSpec, data: st.DataObject
) -> None:
    tokens = np.array(ids, np.int64)
    whole = spec.address(tokens, dead=tokens < 0)
    coming, other = ComingTokens(spec), np.array([3, 1, 2])
    rows, start = [], 0
    while start < len(tokens):
        stop = data.draw(st.integers(start + 1, len(tokens)))
        piece = tokens[start:stop]
        if data.draw(st.booleans()):
            addresses = coming.extend({5: piece, 6: other})
            rows.append(addresses.rows[: len(piece)])
        else:
            # A draft of more tokens than hold, in two calls.
            wrong = data.draw(st.lists(st.integers(-1, 49), max_size=3))
            first = coming.draft({5: piece[:1]})
            second = coming.draft({5: np.array([*piece[1:], *wrong], np.int64)})
            rows.append(np.concatenate([first.rows, second.rows])[: len(piece)])
            coming.accept(5, len(piece))
        start = stop
    found = np.concatenate([np.empty((0, *whole.rows.shape[1:]), np.int64), *rows])
    assert np.array_equal(found, whole.rows)


def test_drafts_that_were_not_accepted_leave_no_trace() -> None:
    spec = a_spec()
    coming = ComingTokens(spec)
    coming.extend({0: [1, 2, 3]})
    coming.draft({0: [40, 41]})
    after = coming.extend({0: [4]})
    assert np.array_equal(after.rows, spec.address([1, 2, 3, 4]).rows[3:])
    coming.end(0)
    assert np.array_equal(coming.extend({0: [4]}).rows, spec.address([4]).rows)
    assert coming.extend({}).rows.shape == (0, 2, 4)


def test_wrong_ids_and_counts_are_named() -> None:
    coming = ComingTokens(a_spec())
    coming.draft({3: [1, 2]})
    with pytest.raises(InvalidInput, match="sequence 3: accepted 3 tokens, expected 0 to 2"):
        coming.accept(3, 3)
    with pytest.raises(InvalidInput, match="sequence 4: found float64"):
        coming.extend({4: [0.5]})
    with pytest.raises(InvalidInput, match="found 50, expected 0 to 49"):
        coming.extend({4: [50]})
    assert 4 not in coming._seen


@settings(deadline=None)
@given(n_tokens=st.integers(0, 20), max_tokens=st.integers(1, 9))
def test_chunks_are_the_prompt_in_order(n_tokens: int, max_tokens: int) -> None:
    addresses = addresses_of(1, n_tokens)
    pieces = list(chunks(addresses, max_tokens))
    assert all(0 < len(piece.rows) <= max_tokens for piece in pieces)
    assert all(len(piece.rows) == max_tokens for piece in pieces[:-1])
    whole = np.concatenate([addresses.rows[:0], *(piece.rows for piece in pieces)])
    assert np.array_equal(whole, addresses.rows)
    with pytest.raises(InvalidInput, match="expected 1 or more"):
        list(chunks(addresses, 0))


def test_the_schedule_reads_a_deleted_shard_or_says_so(tmp_path: Path) -> None:
    with make_table(tmp_path) as table, Prefetch(a_reader(table, engine="pread")) as prefetch:
        batch = addresses_of(4)
        expected = read_batch(table.stored, batch.rows)
        for file in table.stored.files:
            file.path.unlink()
        # The descriptors are open: the bytes are still there.
        assert np.array_equal(prefetch.take(prefetch.submit(batch)), expected)
