"""Counting on a Ray cluster: ranges of positions are tasks, and their runs are merged as a tree before they are saved.

Owns which task runs when, what is done about lost workers, and the local cluster where none is given. Knows no window
and no file: `ray_tasks` counts, and `CountWork` keeps what is finished, so that a stopped run goes on, with whichever
engine.

A task's result lies in Ray's object store until it is merged or saved. What a dead worker or node held is made again
by Ray, which knows every task that led to it; since a range has only one result, nothing but time is lost.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_tables import __version__
from engram_tables.corpus.counts import ray_tasks
from engram_tables.corpus.counts.count_work import BASE_BYTES, LEAST_CHUNK_TOKENS, CountWork
from engram_tables.corpus.counts.runs import save_run
from engram_tables.errors import BackendUnavailable, EngramError, InvalidInput
from engram_tables.threads import resolve_threads

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.counts.chunks import TokenSource
    from engram_tables.corpus.counts.count_work import Stage
    from engram_tables.units import ProgressHook

RANGE_TOKENS = 1 << 23
"""Tokens of a task at most: some 100 MB of keys and counts, and less than a second."""
RANGES_PER_CPU = 4
"""So that the last tasks end at about the same time."""
FAN_IN = 4
MAX_LEVEL = 3
"""Merges above one another: one saved run holds FAN_IN**MAX_LEVEL ranges at most."""
AHEAD_RANGES = 2 * FAN_IN**MAX_LEVEL
"""Ranges that may be counted or under way before the first of them is saved."""
RETRIES = 8
"""Times that a task is run again after its worker has died."""
CONNECT_TIMEOUT_S = 5.0
GOODBYE_TIMEOUT_S = 10.0
_STARTING = {
    # A cluster that we start reports nothing to Ray's makers.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray starts half a dozen Python processes at once; on a busy machine of few cores 30 seconds are not enough.
    "RAY_raylet_start_wait_time_s": "180",
}


def count_on_ray(
    work: CountWork,
    source: TokenSource,
    vocabulary: Vocabulary,
    *,
    address: str | None,
    memory_bytes: int,
    threads: int | None,
    stage: Stage,
) -> None:
    """Make the runs of the whole stream in tasks of one CPU, those that are finished already left alone.

    Parameters
    ----------
    address
        "HOST:PORT" of a running cluster, or "auto" for the one this machine is a node of. None: the one this process
        is connected to, or else a local one that ends with this call.
    memory_bytes
        Of each task; results wait in Ray's object store, which writes to disk what does not fit.
    threads
        CPUs of a local cluster; all usable ones by default.

    Raises
    ------
    BackendUnavailable
        Ray is not installed; no cluster answers; a worker has another version of this package; a task lost its
        worker again and again.
    InvalidInput
        An address of another form; a token store is not the same on every node; what `count_positions` refuses.
    CapacityError
        `memory_bytes` is too little to work in.
    """
    ray = _import_ray()
    most_tokens = min(work.chunk_tokens(memory_bytes, 1), RANGE_TOKENS)
    position = work.take_finished()
    with stage("counting", "tokens") as progress:
        if position == source.n_tokens:
            return
        with _connected(ray, address, threads) as is_shared, _own_errors(ray):
            even = -(-(source.n_tokens - position) // (RANGES_PER_CPU * _n_cpus(ray)))
            bounds = range(position, source.n_tokens, min(most_tokens, max(even, LEAST_CHUNK_TOKENS)))
            ranges = [(start, min(start + bounds.step, source.n_tokens)) for start in bounds]
            job = ray_tasks.CountJob.pickled(source, vocabulary, work.subject, work.strands)
            counting = _Counting(ray, work, ranges, job, merge_bytes=memory_bytes - BASE_BYTES)
            try:
                counting.run(lambda done, _: progress(position + done, source.n_tokens))
            except BaseException:
                if is_shared:
                    counting.await_end()
                raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Counts of the ranges [first, stop), in Ray's object store: occurrences, then one run for each strand."""

    level: int
    first: int
    stop: int
    parts: Sequence[Any]


_Child = tuple[_Piece, tuple[int, ...]]
"""A piece and its runs' numbers of windows."""


class _Counting:
    """The tasks of one count: a tree over the ranges, whose tops are saved in their order."""

    def __init__(
        self, ray: Any, work: CountWork, ranges: Sequence[tuple[int, int]], job: bytes, *, merge_bytes: int
    ) -> None:
        self._ray = ray
        self._work = work
        self._ranges = ranges
        self._job = ray.put(job)
        self._merge_bytes = merge_bytes
        options = {"num_cpus": 1, "num_returns": len(work.strands) + 2, "max_retries": RETRIES}
        self._count = ray.remote(**options, scheduling_strategy="SPREAD")(_on_worker("count_range", __version__))
        self._merge = ray.remote(**options)(_on_worker("merge_parts", __version__))
        self._pending: dict[Any, _Piece] = {}
        self._families: dict[tuple[int, int], list[_Child | None]] = {}
        self._tops: dict[int, _Piece] = {}
        self._n_begun = self._n_counted = self._n_saved = 0

    def run(self, progress: ProgressHook) -> None:
        """Count, merge and save until all ranges are saved."""
        n_tokens = self._ranges[-1][1] - self._ranges[0][0]
        done = 0
        while self._n_saved < len(self._ranges):
            self._begin()
            finished, _ = self._ray.wait(list(self._pending), num_returns=1)
            for reference in finished:
                n_windows = self._ray.get(reference)
                piece = self._pending.pop(reference)
                if not piece.level:
                    self._n_counted += 1
                    start, stop = self._ranges[piece.first]
                    done += stop - start
                    progress(done, n_tokens)
                self._settle(piece.level, piece.first // FAN_IN**piece.level, (piece, n_windows))
            self._save_tops()

    def await_end(self) -> None:
        """Let what is under way end, since the process goes on with this cluster."""
        # Not ray.cancel: where it meets a task that ends, Ray 2.60 aborts the whole process (2026-11).
        if self._pending:
            self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=GOODBYE_TIMEOUT_S)

    def _begin(self) -> None:
        """Keep every CPU busy and one task waiting for each; more would only fill the object store."""
        n_under_way = max(2 * _n_cpus(self._ray), FAN_IN)
        stop = min(len(self._ranges), self._n_counted + n_under_way, self._n_saved + AHEAD_RANGES)
        for nth in range(self._n_begun, stop):
            *parts, last = self._count.remote(self._job, *self._ranges[nth])
            self._pending[last] = _Piece(level=0, first=nth, stop=nth + 1, parts=parts)
            self._n_begun = nth + 1

    def _settle(self, level: int, nth: int, child: _Child | None) -> None:
        """A place in the tree is filled, or stays empty; its parent is begun with the last of its children."""
        if level == MAX_LEVEL:
            if child is not None:
                self._tops[child[0].first] = child[0]
            return
        parent = nth // FAN_IN
        family = self._families.setdefault((level + 1, parent), [])
        family.append(child)
        n_places = -(-len(self._ranges) // FAN_IN**level)
        if len(family) < min(FAN_IN, n_places - parent * FAN_IN):
            return
        del self._families[level + 1, parent]
        found = sorted((child for child in family if child is not None), key=lambda child: child[0].first)
        if len(found) < len(family) or not self._fits([n_windows for _, n_windows in found]):
            self._tops.update((piece.first, piece) for piece, _ in found)
            self._settle(level + 1, parent, None)
        elif len(found) == 1:
            self._settle(level + 1, parent, found[0])
        else:
            pieces = [piece for piece, _ in found]
            *parts, last = self._merge.remote(self._job, *(part for piece in pieces for part in piece.parts))
            self._pending[last] = _Piece(level=level + 1, first=pieces[0].first, stop=pieces[-1].stop, parts=parts)

    def _fits(self, n_windows: Sequence[tuple[int, ...]]) -> bool:
        """Whether a task has the memory to merge them: the runs lie in the object store, the result does not yet."""
        needed = [
            8 * (strand.form.n_words + 1) * sum(numbers)
            for strand, numbers in zip(self._work.strands, zip(*n_windows, strict=True), strict=False)
        ]
        return max(needed, default=0) <= self._merge_bytes

    def _save_tops(self) -> None:
        """Save in the order of positions, since a later run believes what reaches from the start without a gap."""
        while (piece := self._tops.pop(self._n_saved, None)) is not None:
            occurrences, *runs = piece.parts

            def save(number: int, prefix: Path, runs: list[Any] = runs) -> None:
                save_run(ray_tasks.arrived(self._work.strands[number], self._ray.get(runs[number])), prefix)

            start, stop = self._ranges[piece.first][0], self._ranges[piece.stop - 1][1]
            self._work.add_runs(start, stop, save, self._ray.get(occurrences))
            self._n_saved = piece.stop


def _on_worker(name: str, version: str) -> Any:
    """The function of `ray_tasks` of that name, behind a look at the worker's version.

    Being nested, it travels as code: what is wrong with a worker's own package cannot keep it from saying so.
    """

    def task(*arguments: Any) -> Iterator[Any]:
        import importlib
        import socket

        ray = importlib.import_module("ray")
        node = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
        try:
            import engram_tables

            found = f"engram-tables {engram_tables.__version__}"
        except ImportError:
            found = "no engram-tables"
        if found != f"engram-tables {version}":
            raise ImportError(
                f"Ray node {node}: found {found}, expected {version} as in this process; install the same version in "
                "the environment of every node",
                name="engram_tables",
            )
        from engram_tables.corpus.counts import ray_tasks

        try:
            yield from getattr(ray_tasks, name)(node, *arguments)
        except OSError as error:
            error.add_note(f"on the Ray node {node}")
            raise

    task.__qualname__ = task.__name__ = name
    return task


@contextmanager
def _own_errors(ray: Any) -> Iterator[None]:
    """What a task raised arrives as itself; what Ray could not do is a missing engine."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ImportError):
            raise BackendUnavailable(str(error.cause)) from None
        if isinstance(error.cause, EngramError | OSError | MemoryError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise BackendUnavailable(
            f"Ray: found {type(error).__name__} ({reason}), expected every task to end within {RETRIES} retries; look "
            "at the memory and the logs of its nodes, or give each task less --memory"
        ) from error


@contextmanager
def _connected(ray: Any, address: str | None, threads: int | None) -> Iterator[bool]:
    """This process connected to a cluster, and whether it was before: then it stays so.

    Otherwise it is disconnected afterwards, which ends its tasks wherever they run, and a cluster made here too.
    """
    if ray.is_initialized():
        found = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", found):
            raise InvalidInput(
                f"Ray address: found {address}, but this process is connected to {found} already; give no address, or "
                "call ray.shutdown() first"
            )
        yield True
        return
    directory = None
    told: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address is None:
        # Sockets, logs and spilled objects; Ray's own place would keep them. Its path must be short.
        directory = tempfile.mkdtemp(prefix="engram-ray-")
        told |= {"num_cpus": resolve_threads(threads), "include_dashboard": False, "_temp_dir": directory}
    else:
        _look_for(address)
    try:
        with _starting():
            try:
                ray.init(address="local" if address is None else address, **told)
            except Exception as error:
                # Ray raises a plain Exception too, where a machine is too busy to start it in time.
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise BackendUnavailable(_no_cluster(address, reason)) from error
        yield False
    finally:
        ray.shutdown()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _starting() -> Iterator[None]:
    """Ray's settings that are read from the environment; what the user has set there stays."""
    wanted = {name: value for name, value in _STARTING.items() if name not in os.environ}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)


def _look_for(address: str) -> None:
    """Whether anybody answers there: Ray itself tries for minutes, and tells more than one wants to read."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise InvalidInput(
            f"Ray address: found {address!r}, expected HOST:PORT of a cluster's head, as 10.0.0.1:6379, or auto on one "
            "of its nodes; the count itself must run on a node, so ray:// has no use here"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise BackendUnavailable(_no_cluster(address, str(error))) from None


def _no_cluster(address: str | None, reason: str) -> str:
    if address is None:
        return (
            f"Ray on this machine: found that a local cluster does not start ({reason}), expected one; try again when "
            "the machine is less busy, or use the engine local"
        )
    return (
        f"Ray at {address}: found no cluster that lets this process in ({reason}), expected its head; start one with "
        "`ray start --head`, set RAY_AUTH_MODE=token if the cluster asks for a token, or give no address for a local "
        "one"
    )


def _n_cpus(ray: Any) -> int:
    """CPUs of the cluster as it is now; 1 if it has none yet."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise BackendUnavailable(
            "Ray: found no package of that name, expected ray 2.40 or later for the engine ray; install it with "
            "pip install 'engram-tables[ray]'"
        ) from None
    return ray
