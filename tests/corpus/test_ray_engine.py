"""Counting on Ray: the same bytes as the local engine, whatever happens to the workers, and nothing left behind."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_tables.corpus.counts import ray_engine, ray_tasks
from engram_tables.corpus.counts.chunks import TokenSource
from engram_tables.corpus.counts.count_corpus import CountPlan, Engine, plan_count, run_count
from engram_tables.corpus.counts.count_work import CountWork
from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from tests.corpus.test_count_work import digests, store, vocabulary_of

SIZE = 300
Hook = Callable[[int, int], None]


class Later:
    """A reference of the stand-in for Ray: a value, made when it is asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


class StandIn:
    """As much of Ray as the engine uses, in this process; tasks end in an order that the seed decides."""

    def __init__(self, seed: int, n_cpus: int) -> None:
        self.random = random.Random(seed)
        self.n_cpus = n_cpus
        self.n_tasks = {"count_range": 0, "merge_parts": 0}

    def put(self, value: Any) -> Later:
        return Later(lambda: value)

    def get(self, reference: Later) -> Any:
        return reference.make()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.n_cpus)} if self.n_cpus else {}

    def wait(self, references: list[Later], *, num_returns: int) -> tuple[list[Later], list[Later]]:
        assert num_returns == 1
        return [self.random.choice(references)], []

    def remote(self, *, num_returns: int, **_options: Any) -> Callable[[Any], Any]:
        def wrap(task: Any) -> Any:
            def begin(*arguments: Any) -> list[Later]:
                self.n_tasks[task.func.__name__] += 1
                results: list[Any] = []

                def result(nth: int) -> Any:
                    if not results:
                        given = [each.make() if isinstance(each, Later) else each for each in arguments]
                        # Ray copies each item before it asks for the next one.
                        results.extend(pickle.loads(pickle.dumps(item)) for item in task(*given))
                        assert len(results) == num_returns
                    return results[nth]

                return [Later(partial(result, nth)) for nth in range(num_returns)]

            task.remote = begin
            return task

        return wrap


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 9), max_size=9),
    orders=st.sampled_from([(1,), (2,), (2, 3), (5,)]),
    with_next=st.booleans(),
    is_padded=st.booleans(),
    range_tokens=st.sampled_from([1, 3, 7]),
    fan_in=st.sampled_from([2, 3, 4]),
    levels=st.integers(0, 3),
    merge_bytes=st.sampled_from([0, 600, 1 << 40]),
    seed=st.integers(0, 2**16),
)
def test_the_tree_gives_the_local_bytes_for_any_ranges_and_order_of_events(
    tmp_path: Path,
    lengths: list[int],
    orders: tuple[int, ...],
    with_next: bool,
    is_padded: bool,
    range_tokens: int,
    fan_in: int,
    levels: int,
    merge_bytes: int,
    seed: int,
) -> None:
    for name in ("tokens", "local", "ray"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    generator = np.random.default_rng(seed)
    vocabulary = vocabulary_of(np.arange(SIZE))
    documents = [[None if each == 9 else int(each) for each in generator.integers(0, 12, n)] for n in lengths]
    tokens = store(tmp_path / "tokens", documents, vocabulary)
    options: dict[str, Any] = {
        "vocabulary": vocabulary, "orders": orders, "next_raw": with_next, "pad_token": 0 if is_padded else None
    }  # fmt: skip
    run_count(plan_count([tokens], output=tmp_path / "local", **options), threads=1)
    stand_in = StandIn(seed, n_cpus=seed % 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_engine, "_on_worker", lambda name, _: partial(getattr(ray_tasks, name), "here"))
        patch.setattr(ray_engine, "FAN_IN", fan_in)
        patch.setattr(ray_engine, "MAX_LEVEL", levels)
        patch.setattr(ray_engine, "AHEAD_RANGES", fan_in**levels)
        patch.setattr(
            ray_engine, "count_on_ray", partial(_count_with, stand_in, range_tokens=range_tokens, most=merge_bytes)
        )
        run_count(plan_count([tokens], output=tmp_path / "ray", **options), engine=Engine.RAY)
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    assert stand_in.n_tasks["count_range"] == -(-sum(lengths) // range_tokens)
    if not merge_bytes and orders != (1,):
        assert stand_in.n_tasks["merge_parts"] == 0


def _count_with(
    stand_in: StandIn, work: CountWork, source: TokenSource, vocabulary: Any, *, range_tokens: int, most: int, **_: Any
) -> None:
    bounds = [*range(0, source.n_tokens, range_tokens), source.n_tokens]
    ranges = list(itertools.pairwise(bounds))
    job = ray_tasks.CountJob.pickled(source, vocabulary, work.subject, work.strands)
    seen: list[int] = []
    if ranges:
        counting = ray_engine._Counting(stand_in, work, ranges, job, merge_bytes=most)
        counting.run(lambda done, _: seen.append(done))
        assert seen == sorted(seen)
        assert seen[-1] == source.n_tokens


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", "local", ":6379", "10.0.0.1:0", "a:70000", ""])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match=r"expected HOST:PORT"):
        ray_engine._look_for(address)


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BackendUnavailable, match=rf"Ray at 127.0.0.1:{port}: found no cluster .*ray start --head"):
        ray_engine._look_for(f"127.0.0.1:{port}")


def test_without_ray_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'engram-tables\[ray\]'"):
        run_count(_plan(tmp_path, "c"), engine=Engine.RAY)
    assert not (tmp_path / "c.work").exists()


def _tokens(tmp_path: Path, n_tokens: int = 60_000) -> Path:
    if not (tmp_path / "tokens").exists():
        generator = np.random.default_rng(3)
        ids = (generator.zipf(1.3, n_tokens) % SIZE).tolist()
        documents = [ids[start : start + 1_000] for start in range(0, n_tokens, 1_000)]
        documents[5][7] = None
        store(tmp_path / "tokens", documents, vocabulary_of(np.arange(SIZE)), shard_documents=20)
    return tmp_path / "tokens"


def _plan(tmp_path: Path, name: str, *, n_tokens: int = 60_000, **options: Any) -> CountPlan:
    return plan_count(
        [_tokens(tmp_path, n_tokens)], output=tmp_path / name, vocabulary=vocabulary_of(np.arange(SIZE)),
        **{"orders": (2, 3), **options},
    )  # fmt: skip


def _watched(hook: Hook) -> Callable[[str, str], AbstractContextManager[Hook]]:
    @contextmanager
    def stage(task: str, unit: str) -> Iterator[Hook]:
        assert unit == ("B" if task == "checking" else "tokens")
        yield hook if task == "counting" else lambda _done, _total: None

    return stage


def _small_ranges(patch: pytest.MonkeyPatch, range_tokens: int) -> None:
    patch.setattr(ray_engine, "RANGE_TOKENS", range_tokens)


def _workers() -> dict[int, str]:
    """Title by process id of the Ray workers below this process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, todo = {}, [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        todo += below
        for process in below:
            title = _read(Path(f"/proc/{process}/cmdline"))
            if title.startswith(b"ray::"):
                found[process] = title.decode(errors="replace")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
class TestOneCluster:
    """All on one local cluster, since starting one takes seconds."""

    @pytest.fixture(scope="class", params=[2, 4])
    def ray(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        ray = pytest.importorskip("ray")
        with ray_engine._connected(ray, None, request.param):
            assert ray_engine._n_cpus(ray) == request.param
            yield ray
        assert not ray.is_initialized()

    @pytest.mark.parametrize(
        "options",
        [
            {"orders": (2, 3, 4)},
            {"orders": (5,), "next_raw": True},
            {"orders": (1, 2), "next_raw": True, "min_count": 3},
            {"orders": (2, 3), "pad_token": 0, "min_count": 2},
            {"orders": (1,)},
        ],
    )
    def test_the_bytes_are_those_of_the_local_engine(
        self, ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
    ) -> None:
        _small_ranges(monkeypatch, 3_001)
        run_count(_plan(tmp_path, "local", **options))
        seen: list[tuple[int, int]] = []
        done = run_count(
            _plan(tmp_path, "c", **options), engine=Engine.RAY, stage=_watched(lambda *told: seen.append(told))
        )
        assert digests(tmp_path / "c") == digests(tmp_path / "local")
        assert done.n_runs == 1
        assert [total for _, total in seen] == [60_000] * 20
        assert seen[-1] == (60_000, 60_000)
        assert ray.is_initialized()

    def test_a_killed_worker_changes_nothing(self, ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _small_ranges(monkeypatch, 500)
        run_count(_plan(tmp_path, "local"))
        killed: list[int] = []

        def kill(done: int, total: int) -> None:
            if not killed and done > total // 4:
                limit = time.monotonic() + 20
                found = _workers()
                while time.monotonic() < limit and not any("count_range" in title for title in found.values()):
                    found = _workers()
                killed.extend(process for process, title in found.items() if "count_range" in title)
                os.kill(killed[0], signal.SIGKILL)

        run_count(_plan(tmp_path, "c"), engine=Engine.RAY, stage=_watched(kill))
        assert killed
        assert killed[0] not in _workers()
        assert digests(tmp_path / "c") == digests(tmp_path / "local")

    @pytest.mark.parametrize("is_replaced", [False, True])
    def test_a_worker_that_sees_other_tokens_says_so(self, ray: Any, tmp_path: Path, is_replaced: bool) -> None:
        tokens = _tokens(tmp_path)
        vocabulary = vocabulary_of(np.arange(SIZE))
        plan = _plan(tmp_path, "c")

        @contextmanager
        def lose(task: str, _unit: str) -> Iterator[Hook]:
            # The driver has its store open and checked by then.
            if task == "counting":
                shutil.rmtree(tokens)
                if is_replaced:
                    store(tokens, [[1, 2]], vocabulary)
            yield lambda _done, _total: None

        what = "found the token store .* expected" if is_replaced else "found no token store"
        with pytest.raises(InvalidInput, match=rf"tokens: {what}") as refused:
            run_count(plan, engine=Engine.RAY, stage=lose)
        assert socket.gethostname() in str(refused.value)
        assert type(refused.value) is InvalidInput
        assert not plan.work.exists()

    def test_an_error_of_a_task_is_the_error_of_the_local_engine(self, ray: Any, tmp_path: Path) -> None:
        plan = plan_count(
            [_tokens(tmp_path)], output=tmp_path / "c", orders=(2,), vocabulary=vocabulary_of(np.arange(5))
        )
        with pytest.raises(InvalidInput) as local:
            run_count(plan)
        with pytest.raises(InvalidInput) as remote:
            run_count(plan, engine=Engine.RAY)
        assert type(remote.value) is InvalidInput
        assert str(remote.value).split(":")[1:] == str(local.value).split(":")[1:]
        with pytest.raises(CapacityError, match="expected"):
            run_count(plan, engine=Engine.RAY, memory_bytes=1 << 20)

    def test_a_worker_of_another_version_is_refused(
        self, ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ray_engine, "__version__", "999.0")
        with pytest.raises(BackendUnavailable, match=r"Ray node .*: found engram-tables \d.*, expected 999.0"):
            run_count(_plan(tmp_path, "c"), engine=Engine.RAY)

    def test_another_address_than_the_connected_one_is_refused(self, ray: Any, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="this process is connected to"):
            run_count(_plan(tmp_path, "c"), engine=Engine.RAY, ray_address="10.0.0.1:6379")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_node_that_is_lost_changes_nothing_and_the_cluster_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    _small_ranges(monkeypatch, 500)
    run_count(_plan(tmp_path, "local"))
    with ExitStack() as held:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        held.callback(cluster.shutdown)
        nodes = [cluster.add_node(num_cpus=1)]
        cluster.wait_for_nodes()

        def lose(done: int, total: int) -> None:
            if nodes and done > total // 2:
                cluster.remove_node(nodes.pop(), allow_graceful=False)

        run_count(_plan(tmp_path, "c"), engine=Engine.RAY, ray_address=cluster.address, stage=_watched(lose))
        assert not nodes
        assert not ray.is_initialized()
        ray_engine._look_for(cluster.address)
    assert digests(tmp_path / "c") == digests(tmp_path / "local")


SCRIPT = """
import sys
from pathlib import Path

from engram_tables.corpus.counts import ray_engine
from engram_tables.corpus.counts.count_corpus import Engine, run_count
from tests.corpus import test_ray_engine as tests

ray_engine.RANGE_TOKENS = 100
told = []

def tell(done, total):
    # Some runs are saved by then, and thousands of ranges are left.
    if done > 20_000 and not told:
        told.append(print("under way", flush=True))

run_count(
    tests._plan(Path(sys.argv[1]), "c", n_tokens=400_000), engine=Engine.RAY, threads=2, stage=tests._watched(tell)
)
"""


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_what_was_finished(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    _tokens(tmp_path, 400_000)
    mark = uuid.uuid4().hex
    root = Path(__file__).parents[2]
    environment = {**os.environ, "ENGRAM_TEST_MARK": mark, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)], env=environment, cwd=root, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        begun = child.stdout.readline()
        assert begun == "under way\n", child.communicate(timeout=60)[1]
        assert len(_marked(mark)) > 3
        # As a terminal does: the whole group is told.
        os.killpg(child.pid, signal.SIGINT)
        _, narrated = child.communicate(timeout=120)
    assert child.returncode == -signal.SIGINT, narrated
    assert "KeyboardInterrupt" in narrated
    assert "the same command goes on there" in narrated
    assert not list(Path(tempfile.gettempdir()).glob(f"engram-ray-*/session_*_{child.pid}"))
    limit = time.monotonic() + 30
    while _marked(mark) and time.monotonic() < limit:
        time.sleep(0.2)
    assert _marked(mark) == []
    done = run_count(_plan(tmp_path, "c", n_tokens=400_000), engine=Engine.LOCAL)
    assert done.n_reused > 0
    run_count(_plan(tmp_path, "whole", n_tokens=400_000))
    assert digests(tmp_path / "c") == digests(tmp_path / "whole")


def _marked(mark: str) -> list[str]:
    """Processes that inherited the mark, whoever their parent is now."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if mark.encode() in _read(entry / "environ"):
            found.append(_read(entry / "cmdline").decode(errors="replace"))
    return found
