"""Ctrl-C between asking for reads and waiting for them: the system writes nowhere once the memory is given back."""

from __future__ import annotations

import gc
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_table import apart, make_files

from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.engines.aio import AioEngine
from engram_tables.fetch.engines.queue_kernels import CODE, IN_FLIGHT, IS_BROKEN, Work
from engram_tables.fetch.engines.queued import Queue, QueueEngine, _abandon, _lost
from engram_tables.fetch.engines.uring import UringEngine
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.reference import read_rows

ENGINES = pytest.mark.parametrize("engine_of", [UringEngine, AioEngine])
# 128 reads of it take tens of milliseconds on any disk.
ROW_BYTES = 1_000_003
N_ROWS = 64


@ENGINES
def test_an_interrupt_after_the_reads_were_asked_for(
    engine_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_files(tmp_path, n_rows=[N_ROWS], parts=apart(ROW_BYTES), cuts=[[[(0, N_ROWS)]]]) as table:
        try:
            engine: QueueEngine = engine_of(table.stored, table.places, depth=N_ROWS)
        except BackendUnavailable as error:
            pytest.skip(str(error))
        asked: list[tuple[Any, Any, int]] = []
        drive = engine._drive

        def interrupted(queue: Queue, work: Work, at_once: int, *, may_wait: bool) -> None:
            drive(queue, work, at_once, may_wait=may_wait)
            asked.append((weakref.ref(queue), queue.memory, int(queue.state[IN_FLIGHT])))
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(engine, "_drive", interrupted)
        rows = np.arange(N_ROWS)
        out = np.full((N_ROWS, ROW_BYTES), 7, np.uint8)
        # What `pytest.raises` catches keeps the queue for longer.
        is_interrupted = False
        try:
            engine.begin(Batch(rows, N_ROWS, 0, 1), out)
        except KeyboardInterrupt:
            is_interrupted = True
        # The test's own look at the memory keeps it where it is: a word of each read, in the first page that it fills
        # and in the last.
        ((queue, memory, n_in_flight),) = asked
        words = memory.reshape(N_ROWS, -1)[:, [600, ROW_BYTES]]
        gc.collect()
        assert is_interrupted
        assert queue() is None
        time.sleep(0.3)
        assert np.array_equal(memory.reshape(N_ROWS, -1)[:, [600, ROW_BYTES]], words)
        assert words.any(axis=1).sum() > 0.9 * N_ROWS
        # Those that had come while it asked are delivered; the others never are.
        came = read_rows(table.stored, 1, rows)
        assert ((out == came).all(axis=1) | (out == 7).all(axis=1)).all()
        assert (out == 7).all(axis=1).sum() >= n_in_flight
        monkeypatch.undo()
        assert np.array_equal(table.fetch_rows(1, rows, engine=engine), read_rows(table.stored, 1, rows))
        engine.close()


class Deaf:
    """A backend that cannot be waited for."""

    view = None

    def wait(self, n_in_flight: int) -> bool:
        assert n_in_flight == 3
        return False

    def close(self) -> None: ...

    def forget(self) -> None: ...


@pytest.mark.parametrize(("n_in_flight", "is_broken", "n_lost"), [(0, 0, 0), (0, 1, 0), (3, 0, 1), (3, 1, 1)])
def test_memory_that_may_be_written_to_is_never_given_back(n_in_flight: int, is_broken: int, n_lost: int) -> None:
    state = np.zeros(max(IN_FLIGHT, IS_BROKEN, CODE) + 1, np.int64)
    state[[IN_FLIGHT, IS_BROKEN]] = n_in_flight, is_broken
    before, memory = len(_lost), np.zeros(1, np.uint8)
    _abandon(Deaf(), memory, state)
    assert len(_lost) == before + n_lost
    del _lost[before:]
