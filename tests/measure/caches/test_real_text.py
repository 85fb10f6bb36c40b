"""Real text through a real table: the tiered reader counts what was predicted, and policies are their twins."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from test_policies import expected, lists_of

from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.address.spec import Addresses, AddressSpec
from engram_tables.fetch.table import Table, open_table
from engram_tables.fetch.tiers.budget import MemoryTier, TierPlan
from engram_tables.fetch.tiers.hot_list import HotList
from engram_tables.measure.caches import reference
from engram_tables.measure.caches.accesses import Accesses, State
from engram_tables.measure.caches.policies import Policy, simulate
from engram_tables.measure.caches.tiered import tier_shape
from engram_tables.storage.building.writer import build_table, plan_table

MODULES = ("argparse.py", "json/decoder.py", "textwrap.py", "heapq.py")
N_BYTES = 1500


class Replay(NamedTuple):
    """A table, and the lookups of text in it; a token is a byte."""

    path: Path
    spec: AddressSpec
    rows: NDArray[np.int64]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Replay:
    recipe = DeepSeekRecipe(
        name="bytes", provenance="made for a test", canonical_size=256, orders=(2, 3, 4), heads=4,
        bases=(2000, 4000, 4000), layer_ids=(1, 7), n_layers=2, fill_id=0, row_width=64,
    )  # fmt: skip
    spec = recipe.resolve()
    path = tmp_path_factory.mktemp("simulate") / "table"
    build_table(plan_table(spec, codec="fp8-e4m3-e8m0", layout="packed", init="normal"), path)
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    documents = [np.frombuffer((stdlib / name).read_bytes()[:N_BYTES], np.uint8).astype(np.int64) for name in MODULES]
    return Replay(path, spec, np.concatenate([spec.address(document).rows for document in documents]))


def accesses_of(text: Replay, step_tokens: int) -> Accesses:
    """Keys counted through the layers, in the order in which a fetch has them; a class for each layer and order."""
    rows, n_rows = text.rows, [layer.n_rows for layer in text.spec.layers]
    first_keys = np.cumsum([0, *n_rows[:-1]])
    items = (rows + first_keys[:, None]).astype(np.uint64)
    classes = np.empty(rows.shape, np.uint8)
    classes[:] = (np.arange(2)[:, None] * 3 + np.arange(12) // 4).astype(np.uint8)
    n_tokens, per_token = len(rows), rows[0].size
    starts = np.append(np.arange(0, n_tokens, step_tokens), n_tokens) * per_token
    return Accesses(
        items=items.reshape(-1), classes=classes.reshape(-1), step_starts=starts, n_items=sum(n_rows), n_classes=6
    )


def fetched(table: Table, text: Replay, step_tokens: int) -> Iterator[None]:
    """Fetch step after step."""
    keys = np.zeros((len(text.rows), 2, 3), np.uint64)
    for start in range(0, len(text.rows), step_tokens):
        part = slice(start, start + step_tokens)
        table.fetch(Addresses(rows=text.rows[part], keys=keys[part]), threads=1)
        yield


@pytest.mark.parametrize(
    ("step_tokens", "budget_bytes", "is_hot"),
    [(1, 100_000, False), (16, 400_000, True), (512, 100_000, False), (512, 400_000, True)],
)
def test_the_tiered_reader_counts_what_was_predicted(
    text: Replay, step_tokens: int, budget_bytes: int, is_hot: bool
) -> None:
    """To the last hit, cold and steady, with and without a hot list, and with rows that a batch has twice."""
    accesses = accesses_of(text, step_tokens)
    n_rows = [layer.n_rows for layer in text.spec.layers]
    hot, hot_items = None, None
    if is_hot:
        rows = text.rows[:2000].swapaxes(0, 1).reshape(-1)
        layers = np.repeat([1, 7], rows.size // 2)
        (of_list, first) = np.unique(np.stack([layers, rows]), axis=1), np.array([0, n_rows[0]])
        weights = np.random.default_rng(0).random(of_list.shape[1])
        hot = HotList.of(of_list[0], of_list[1], weights, fingerprint=text.spec.fingerprint)
        hot_items = (hot.rows + first[(hot.layer_ids == 7).astype(int)]).astype(np.uint64)
    tier = MemoryTier(budget_bytes=budget_bytes, huge_pages=False)
    with open_table(text.path) as table:
        engine = table.add_tiers(TierPlan(tiers=(tier,), hot_list=hot, behind="pread"))
        shape = tier_shape(tier, n_rows=n_rows, row_bytes=table.row_bytes, has_hot_list=is_hot)
        assert shape.n_sets == engine.shape.n_sets
        counts = [engine.counts()]
        first_steady = accesses.n_steps // 3
        for step, _ in enumerate(fetched(table, text, step_tokens), start=1):
            if step in (first_steady, accesses.n_steps):
                counts.append(engine.counts())
    (curve,) = simulate(
        accesses, [shape.n_slots], policies=["tiered"], first_steady_step=first_steady, hot=hot_items,
        tier_shapes=[shape],
    )  # fmt: skip
    for state, before, after in zip(State, counts[:-1], counts[1:], strict=True):
        hits = after.hits_pinned + after.hits_cached - before.hits_pinned - before.hits_cached
        assert int(curve.n_hits[state].sum()) == hits
        assert int(curve.n_accesses[state].sum()) - hits == after.misses - before.misses
    assert 0.05 < curve.hit_ratios(State.STEADY)[0] < 0.99


@pytest.mark.parametrize("step_tokens", [1, 64])
def test_policies_are_their_twins_on_text(text: Replay, step_tokens: int) -> None:
    """All but the bound, whose twin is slow; it is compared with what it bounds."""
    accesses = accesses_of(text._replace(rows=text.rows[:1200]), step_tokens)
    steps, sizes = lists_of(accesses), [500, 4000]
    first = accesses.n_steps // 2
    curves = {curve.policy: curve for curve in simulate(accesses, sizes, first_steady_step=first)}
    for policy in (Policy.LRU, Policy.LRU_16, Policy.STATIC, Policy.S3_FIFO, Policy.TIERED):
        for k, size in enumerate(sizes):
            found = expected(steps, policy, size, None, first)
            assert int(curves[policy].n_hits[:, k].sum()) == sum(map(sum, found)), policy
            if policy != Policy.TIERED:
                assert (curves[policy].n_hits[:, k].sum() <= curves[Policy.BELADY].n_hits[:, k].sum()).all()


def test_the_bound_is_its_twin_on_text(text: Replay) -> None:
    accesses = accesses_of(text._replace(rows=text.rows[:250]), 16)
    (curve,) = simulate(accesses, [300, 1500], policies=["belady"], first_steady_step=0)
    for k, size in enumerate((300, 1500)):
        assert int(curve.n_hits[:, k].sum()) == sum(map(sum, reference.belady(lists_of(accesses), size)))
