"""A system that answers reads in plain memory: io_uring's ring and libaio's blocks without a system call, in an order
and with answers that a test chooses. The bytes it serves are those of `files`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.engines.queue_kernels import (
    IN_FLIGHT,
    N_FREE,
    N_QUEUED,
    N_STATES,
    Work,
    group_reads,
    hand_over,
    queue_block,
    queue_entry,
    reap_events,
    reap_ring,
    take,
)
from engram_tables.fetch.engines.queue_memory import Context, Ring, Slots
from engram_tables.memory import aligned_bytes

UNIT = 512
ENTRIES = 16
# Heads and tails wrap at 2**32, three reads after a test began.
NEARLY_WRAPPED = np.uint32(2**32 - 3)
_SQ_HEAD, _SQ_TAIL, _CQ_HEAD, _CQ_TAIL, _CQES = 0, 1, 2, 3, 8

Answer = Callable[["Asked"], int]


class Asked(NamedTuple):
    """A read as the system sees it."""

    slot: int
    fd: int
    offset: int
    address: int
    n_bytes: int


class PlainWork:
    """Reads of one part a record at `offsets` (files' bytes, by file), with slots and an output of their own."""

    def __init__(
        self, files: list[NDArray[np.uint8]], wanted: list[tuple[int, int]], part_bytes: int, n_slots: int
    ) -> None:
        pages = [-(-file.size // 4096) + 1 for file in files]
        file_spots = (np.concatenate(([0], np.cumsum(pages)[:-1])) * 4096).astype(np.uint64)
        spots = np.array([int(file_spots[file]) + offset for file, offset in wanted], np.uint64)
        order = np.argsort(spots)
        spots = spots[order]
        starts, windows = np.empty(spots.size + 1, np.int64), np.empty((spots.size, 3), np.int64)
        part = np.array([part_bytes], np.uint64)
        slot_bytes = 8192
        limit = slot_bytes - 2 * UNIT
        n_reads = group_reads(spots, order, len(wanted), part, file_spots, UNIT, limit, starts, windows)
        self.out = np.full((len(wanted), part_bytes), 7, np.uint8)
        self.expected = np.stack([files[file][offset : offset + part_bytes] for file, offset in wanted])
        self.work = Work(
            starts=starts, windows=windows, spots=spots, order=order, n_reads=int(n_reads), n_records=len(wanted),
            row_bytes=part_bytes, unit=UNIT, part_starts=np.zeros(1, np.uint64), part_bytes=part,
            output=np.uint64(self.out.ctypes.data), counter=np.zeros(1, np.int64),
        )  # fmt: skip
        self.memory = aligned_bytes(n_slots * slot_bytes, 4096)
        self.slots = Slots(
            read=np.full(n_slots, -1, np.int64), done=np.zeros(n_slots, np.int64), tries=np.zeros(n_slots, np.int64),
            free=np.arange(n_slots), address=np.uint64(self.memory.ctypes.data), slot_bytes=slot_bytes,
        )  # fmt: skip
        self.state = np.zeros(N_STATES, np.int64)
        self.state[N_FREE] = n_slots


class PlainRing:
    """io_uring's shared memory, with this process on both sides of it."""

    def __init__(self, n_slots: int, n_files: int) -> None:
        assert n_slots <= ENTRIES
        self.words = np.zeros(_CQES + 4 * 2 * ENTRIES, np.uint32)
        self.words[: _CQ_TAIL + 1] = NEARLY_WRAPPED
        self.view = Ring(
            words=self.words, entries=np.full((ENTRIES, 8), 2**64 - 1, np.uint64), sq_tail=_SQ_TAIL, cq_head=_CQ_HEAD,
            cq_tail=_CQ_TAIL, cqes=_CQES, sq_mask=np.uint32(ENTRIES - 1), cq_mask=np.uint32(2 * ENTRIES - 1),
            fds=np.arange(n_files) + 100, head=np.uint64(4 | 1 << 8), fd=-1,
        )  # fmt: skip

    def queue(self, plain: PlainWork, slot: int) -> None:
        """Let the kernel write the slot's read down."""
        queue_entry(self.view, plain.work, plain.slots, plain.state, slot)

    def accept(self, plain: PlainWork) -> list[Asked]:
        """Take everything that was written down, as the system call would."""
        asked = []
        while self.words[_SQ_HEAD] != self.words[_SQ_TAIL]:
            entry = self.view.entries[int(self.words[_SQ_HEAD]) % ENTRIES].tolist()
            assert entry[0] & 0xFFFFFFFF == 4 | 1 << 8
            asked.append(Asked(entry[4], entry[0] >> 32, entry[1], entry[2], entry[3]))
            self.words[_SQ_HEAD] = (int(self.words[_SQ_HEAD]) + 1) % 2**32
        assert plain.state[N_QUEUED] == len(asked)
        plain.state[N_QUEUED] = 0
        plain.state[IN_FLIGHT] += len(asked)
        return asked

    def complete(self, plain: PlainWork, answers: list[tuple[int, int]]) -> None:
        """Post (slot, answer) and let the kernel see them."""
        for slot, answer in answers:
            word = _CQES + 4 * (int(self.words[_CQ_TAIL]) % (2 * ENTRIES))
            self.words[word : word + 4] = slot, 0, answer % 2**32, 0
            self.words[_CQ_TAIL] = (int(self.words[_CQ_TAIL]) + 1) % 2**32
        assert reap_ring(self.view, plain.work, plain.slots, plain.state) == len(answers)
        assert self.words[_CQ_HEAD] == self.words[_CQ_TAIL]


class PlainContext:
    """libaio's control blocks and events, with this process on both sides of them."""

    def __init__(self, n_slots: int, n_files: int) -> None:
        self.view = Context(
            fds=np.arange(n_files) + 100, blocks=np.full((n_slots, 8), 2**64 - 1, np.uint64),
            pointers=np.zeros(n_slots, np.uint64), events=np.zeros((n_slots, 4), np.uint64), context=0,
        )  # fmt: skip

    def queue(self, plain: PlainWork, slot: int) -> None:
        """As `PlainRing.queue`."""
        queue_block(self.view, plain.work, plain.slots, plain.state, slot)

    def accept(self, plain: PlainWork) -> list[Asked]:
        """Take half of what was written down, then the rest."""
        asked = []
        while n_queued := int(plain.state[N_QUEUED]):
            n_taken = -(-n_queued // 2)
            for pointer in self.view.pointers[:n_taken].tolist():
                slot = (pointer - self.view.blocks.ctypes.data) // 64
                data, key, opcode_and_fd, address, n_bytes, offset, *rest = self.view.blocks[slot].tolist()
                assert (data, key, opcode_and_fd & 0xFFFFFFFF, rest) == (slot, 0, 0, [0, 0])
                asked.append(Asked(slot, opcode_and_fd >> 32, offset, address, n_bytes))
            hand_over(self.view, plain.state, n_taken)
        return asked

    def complete(self, plain: PlainWork, answers: list[tuple[int, int]]) -> None:
        """As `PlainRing.complete`."""
        for nth, (slot, answer) in enumerate(answers):
            self.view.events[nth] = slot, 0, answer % 2**64, 0
        reap_events(self.view, plain.work, plain.slots, plain.state, len(answers))


def serve(files: list[NDArray[np.uint8]], asked: Asked, most_bytes: int) -> int:
    """Put `most_bytes` at most of what was asked for where it belongs; how many there were."""
    assert asked.offset % UNIT == asked.address % UNIT == asked.n_bytes % UNIT == 0
    found = files[asked.fd - 100][asked.offset : asked.offset + min(asked.n_bytes, most_bytes)].tobytes()
    ctypes.memmove(asked.address, found, len(found))
    return len(found)


def run(system: Any, plain: PlainWork, answer: Answer, rng: np.random.Generator, n_rounds: int = 10_000) -> None:
    """Take, ask and answer, in random order and numbers, until nothing is left to do."""
    waiting: list[Asked] = []
    for _ in range(n_rounds):
        for _ in range(rng.integers(0, 6)):
            slot = take(plain.work, plain.slots, plain.state)
            if slot >= 0:
                system.queue(plain, slot)
        waiting += system.accept(plain)
        assert plain.state[IN_FLIGHT] == len(waiting)
        if not waiting and plain.work.counter[0] >= plain.work.n_reads:
            break
        rng.shuffle(waiting)  # type: ignore[arg-type]
        answered, waiting = waiting[: (n := int(rng.integers(0, 6)))], waiting[n:]
        system.complete(plain, [(asked.slot, answer(asked)) for asked in answered])
    else:
        raise AssertionError("never came to an end")
    assert plain.state[IN_FLIGHT] == plain.state[N_QUEUED] == 0
    assert plain.state[N_FREE] == plain.slots.read.size
    assert (plain.slots.read == -1).all()
    assert sorted(plain.slots.free.tolist()) == list(range(plain.slots.free.size))
