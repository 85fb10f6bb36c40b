"""Worker processes that take one job at a time, and whose death is an error that names the job.

Owns processes and the pipes to them. Knows neither text nor tokens: a task is whatever can be pickled and started.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, NamedTuple, Protocol, Self

from engram_tables.errors import EngramError

_GRACE_S = 1.0
"""How long a worker without a job has to end by itself; one with a job is killed."""

Report = Callable[[Any], None]
"""Called by a running job with what it has to say before its end."""


class Task(Protocol):
    """What every worker does; it is pickled and sent to each."""

    def start(self) -> Callable[[Any, Report], Any]:
        """Called once in the worker: the function that every job is given to."""


class Reported(NamedTuple):
    """What a job has said before its end."""

    key: int
    report: Any


class Finished(NamedTuple):
    """A job's result."""

    key: int
    result: Any


class WorkerLost(Exception):
    """A worker ended in the middle of the job `key`: `status` is its exit status, negative for a signal."""

    def __init__(self, key: int, status: int) -> None:
        super().__init__(key, status)
        self.key = key
        self.status = status

    @property
    def how(self) -> str:
        """The end in words."""
        if self.status < 0:
            return f"was killed by signal {-self.status} ({signal.Signals(-self.status).name})"
        return f"ended by itself with exit status {self.status}"


class JobFailed(Exception):
    """The job `key` raised `error`."""

    def __init__(self, key: int, error: BaseException) -> None:
        super().__init__(key, error)
        self.key = key
        self.error = error


class WorkerPool:
    """Fresh interpreters, not forks: a fork would inherit the locks of threads that it does not have.

    A worker ends when its pipe does, so that none outlives this process, however that ends. It ignores Ctrl-C, which
    a terminal sends to all of them: what happens then is decided here. Nothing but leaving the block ends them.
    """

    def __init__(self, task: Task, n_workers: int, *, environment: dict[str, str]) -> None:
        self._workers: list[_Worker] = []
        self._task = task
        self._n_workers = n_workers
        self._environment = os.environ | environment

    def __enter__(self) -> Self:
        try:
            for _ in range(self._n_workers):
                with _signals_blocked():
                    self._workers.append(_Worker(self._environment))
            for worker in self._workers:
                worker.send(self._task)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, jobs: Iterable[tuple[int, Any]]) -> Iterator[Reported | Finished]:
        """Give out jobs in their order; what they say and give, as it comes.

        Raises
        ------
        JobFailed, WorkerLost
            The first that is met; other jobs are still running then.
        """
        waiting = iter(jobs)
        busy = {worker.connection: worker for worker in self._workers if worker.take(next(waiting, None))}
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                event = worker.receive()
                if isinstance(event, Finished) and not worker.take(next(waiting, None)):
                    del busy[worker.connection]
                yield event

    def _stop(self) -> None:
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.end()
        self._workers = []


class _Worker:
    """One process and what it is at."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.connection, theirs = Pipe()
        self._key: int | None = None
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main({theirs.fileno()})"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()

    def send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            # It is gone: reading from it says so, and how.
            return

    def take(self, job: tuple[int, Any] | None) -> bool:
        """Begin `job`; False if there is none."""
        if job is None:
            self._key = None
            return False
        self._key = job[0]
        self.send(job[1])
        return True

    def receive(self) -> Reported | Finished:
        """What the worker says next about its job."""
        assert self._key is not None
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            # Its pipe is closed, so it is dead or about to be.
            raise WorkerLost(self._key, self._process.wait()) from None
        if kind == "failed":
            raise JobFailed(self._key, content)
        return Finished(self._key, content) if kind == "finished" else Reported(self._key, content)

    def hang_up(self) -> None:
        self.connection.close()
        if self._key is not None:
            self._process.kill()

    def end(self) -> None:
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process started here inherits the mask, so that Ctrl-C never reaches it, not even while it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(handle: int) -> None:
    """The worker's side: jobs from the pipe with this descriptor until it ends."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    connection = Connection(handle)
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages), daemon=True).start()

    def say(kind: str, content: Any) -> None:
        try:
            connection.send((kind, content))
        except OSError:
            os._exit(1)

    run: Callable[[Any, Report], Any] | None = None
    while True:
        message = messages.get()
        try:
            if isinstance(message, _Unreadable):
                raise message.error
            if run is None:
                run = message.start()
                continue
            say("finished", run(message, lambda report: say("reported", report)))
        except BaseException as error:
            say("failed", _portable(error))


class _Unreadable(NamedTuple):
    error: BaseException


def _receive(connection: Connection, messages: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            messages.put(connection.recv())
        except (EOFError, OSError):
            # Whoever started us has gone, or has no more use for us: half-done work is nobody's.
            os._exit(1)
        except Exception as error:
            messages.put(_Unreadable(error))


def _portable(error: BaseException) -> BaseException:
    """`error`, or its text where it does not survive pickling; with its traceback where it is nobody's input."""
    if not isinstance(error, EngramError | OSError | MemoryError):
        error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        if isinstance(pickle.loads(pickle.dumps(error)), type(error)):
            return error
    except Exception:
        pass
    plain = RuntimeError(f"{type(error).__name__}: {error}")
    for note in getattr(error, "__notes__", ()):
        plain.add_note(note)
    return plain
