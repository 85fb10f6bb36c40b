"""Worker processes: what they say arrives, and whatever becomes of them is an error that names the job."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from engram_tables.corpus.tokens.worker_pool import Finished, JobFailed, Reported, WorkerLost, WorkerPool
from engram_tables.errors import InvalidInput


class Awkward(Exception):
    """Cannot be unpickled: its arguments are not what it was made with."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@dataclass(frozen=True)
class Echo:
    """Does what its jobs say."""

    broken: bool = False

    def start(self) -> Callable[[Any, Callable[[Any], None]], Any]:
        if self.broken:
            raise InvalidInput("echo: found it broken, expected it whole; repair it")
        return self.run

    def run(self, job: Any, report: Callable[[Any], None]) -> Any:
        match job:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "leave":
                os._exit(7)
            case "stumble":
                raise Awkward(1, 2)
            case "refuse":
                error = InvalidInput("job: refused")
                error.add_note("and a note")
                raise error
        report(f"at {job}")
        print("noise that nobody waits for")  # noqa: T201
        return job * 2


def test_every_job_is_done_once_and_heard_of() -> None:
    with WorkerPool(Echo(), 2, environment={}) as pool:
        events = list(pool.run((key, key) for key in range(7)))
        again = list(pool.run([(0, "x")]))
    assert sorted(event for event in events if isinstance(event, Finished)) == [(key, key * 2) for key in range(7)]
    assert sorted(event for event in events if isinstance(event, Reported)) == [(key, f"at {key}") for key in range(7)]
    assert again == [Reported(0, "at x"), Finished(0, "xx")]


@pytest.mark.parametrize(
    ("job", "status", "how"),
    [("kill", -9, "was killed by signal 9 (SIGKILL)"), ("leave", 7, "ended by itself with exit status 7")],
)
def test_a_worker_that_ends_names_its_job(job: str, status: int, how: str) -> None:
    with WorkerPool(Echo(), 1, environment={}) as pool, pytest.raises(WorkerLost) as lost:
        list(pool.run([(4, 1), (5, job)]))
    assert (lost.value.key, lost.value.status, lost.value.how) == (5, status, how)


def test_errors_arrive_with_their_notes_and_others_as_text() -> None:
    with WorkerPool(Echo(), 1, environment={}) as pool:
        with pytest.raises(JobFailed) as refused:
            list(pool.run([(1, "refuse")]))
        with pytest.raises(JobFailed) as stumbled:
            list(pool.run([(2, "stumble")]))
        assert list(pool.run([(3, 1)]))[-1] == Finished(3, 2)
    assert (refused.value.key, type(refused.value.error)) == (1, InvalidInput)
    assert refused.value.error.__notes__ == ["and a note"]
    assert str(stumbled.value.error) == "Awkward: 1 and 2"
    assert "in a worker process:\nTraceback" in stumbled.value.error.__notes__[0]


def test_a_task_that_cannot_start_fails_its_first_job() -> None:
    with WorkerPool(Echo(broken=True), 1, environment={}) as pool, pytest.raises(JobFailed) as failed:
        list(pool.run([(8, 1)]))
    assert failed.value.key == 8
    assert "found it broken" in str(failed.value.error)
