"""What is bundled, and what stands in the files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_tables import (
    SPECS,
    add_bundles,
    counts_of,
    made_spec,
    made_table,
    plain_rows,
    plan_for,
    some_text,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from engram_tables.address.hashing import hash_ngrams
from engram_tables.errors import (
    CapacityError,
    CorruptTable,
    EngramError,
    IncompleteTable,
    InvalidInput,
    NotATable,
    SpecMismatch,
    UnsupportedTable,
)
from engram_tables.storage.bundles.bundle_manifest import MANIFEST_NAME
from engram_tables.storage.bundles.choosing import ChosenIndex, choose, entry_bytes
from engram_tables.storage.bundles.files import BundleDirectory
from engram_tables.storage.bundles.index import KeyIndex
from engram_tables.storage.bundles.writing import write_bundles
from engram_tables.storage.table.reader import StoredTable

ROW_BYTES = 64


@pytest.fixture(params=[False, True], ids=["counts", "counts of followers"])
def is_followed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def seen(spec: Any, documents: list[Any]) -> Counter[tuple[int, ...]]:
    """Every n-gram of every order of the spec, one at a time."""
    return Counter(
        tuple(document[start : start + order].tolist())
        for document in documents
        for order in spec.orders
        for start in range(len(document) - order + 1)
    )


@pytest.mark.parametrize("name", SPECS)
def test_chosen_are_the_ngrams_that_save_most_a_byte(name: str, is_followed: bool, tmp_path: Path) -> None:
    spec = SPECS[name]
    documents = [some_text(spec, seed) for seed in range(3)]
    counts = counts_of(tmp_path / "counts", documents, spec, next_raw=is_followed)
    costs, heads = entry_bytes(spec, row_bytes=ROW_BYTES), dict(zip(spec.orders, spec.heads, strict=True))
    ngrams = seen(spec, documents)
    worth = {
        ngram: count * len(spec.layers) * (heads[len(ngram)] - 1) / costs[len(ngram)] for ngram, count in ngrams.items()
    }
    ranked = sorted((n for n in ngrams if ngrams[n] > 1 and worth[n] > 0), key=lambda n: (-worth[n], len(n), n))
    for budget in (max(costs.values()), 5_000, 20_000, 1 << 30):
        chosen = choose(counts, spec, row_bytes=ROW_BYTES, budget_bytes=budget)
        nth = dict.fromkeys(spec.orders, 0)
        found = []
        for order in chosen.orders.tolist():
            found.append(tuple(chosen.ngrams[order][nth[order]].tolist()))
            nth[order] += 1
        assert all(nth[order] == len(chosen.ngrams[order]) for order in spec.orders)
        fitting, taken = [], 0
        for ngram in ranked:
            if taken + costs[len(ngram)] > budget:
                break
            fitting.append(ngram)
            taken += costs[len(ngram)]
        assert found == fitting
        assert chosen.counts.tolist() == [ngrams[ngram] for ngram in fitting]
        assert chosen.bytes_upto.tolist() == np.cumsum([costs[len(ngram)] for ngram in fitting]).tolist()
        assert chosen.n_looked_up == sum(ngrams.values())


def test_a_smaller_budget_is_a_prefix(tmp_path: Path) -> None:
    spec = SPECS["heads of two lengths"]
    counts = counts_of(tmp_path / "counts", [some_text(spec, 1)], spec)
    whole = choose(counts, spec, row_bytes=ROW_BYTES, budget_bytes=1 << 30)
    for n_ngrams in (1, 7, len(whole.orders)):
        budget = int(whole.bytes_upto[n_ngrams - 1])
        part, alone = whole.within(budget), choose(counts, spec, row_bytes=ROW_BYTES, budget_bytes=budget)
        assert whole.n_within(budget) == n_ngrams == len(part.orders)
        for name in ("orders", "counts", "bytes_upto"):
            assert getattr(part, name).tolist() == getattr(alone, name).tolist()
        assert {k: v.tolist() for k, v in part.ngrams.items()} == {k: v.tolist() for k, v in alone.ngrams.items()}


@pytest.mark.parametrize("name", SPECS)
def test_ranks_are_those_of_the_chosen_ngrams(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    text, other = some_text(spec, 1), some_text(spec, 2)
    counts = counts_of(tmp_path / "counts", [text], spec)
    chosen = choose(counts, spec, row_bytes=ROW_BYTES, budget_bytes=30_000)
    layer = len(spec.layers) - 1
    index = ChosenIndex(chosen, spec, layer_id=spec.layer_ids[layer])
    keys = spec.address(other).keys[:, layer]
    expected = np.full(keys.shape, -1)
    for place, order in enumerate(spec.orders):
        mine = hash_ngrams(spec, spec.layer_ids[layer], order, chosen.ngrams[order])[0].tolist()
        first = dict(reversed(list(zip(mine, np.flatnonzero(chosen.orders == order), strict=True))))
        expected[:, place] = [first.get(key, -1) for key in keys[:, place].tolist()]
    assert (expected >= 0).any()
    assert index.ranks(keys).tolist() == expected.tolist()


def test_what_cannot_be_chosen_is_refused(tmp_path: Path) -> None:
    spec = made_spec()
    counts = counts_of(tmp_path / "counts", [some_text(spec, 1)], spec)
    with pytest.raises(InvalidInput, match="expected 304 or more"):
        choose(counts, spec, row_bytes=ROW_BYTES, budget_bytes=303)
    with pytest.raises(InvalidInput, match="one head an order"):
        choose(counts, made_spec((1, 1)), row_bytes=ROW_BYTES, budget_bytes=10_000)
    with pytest.raises(InvalidInput, match=r"expected 4 among them"):
        choose(counts, made_spec(orders=(2, 4)), row_bytes=ROW_BYTES, budget_bytes=10_000)
    with pytest.raises(InvalidInput, match="canonical ids"):
        choose(counts, made_spec(size=51), row_bytes=ROW_BYTES, budget_bytes=10_000)
    with pytest.raises(InvalidInput, match="least count"):
        choose(counts, spec, row_bytes=ROW_BYTES, budget_bytes=10_000, least_count=0)
    with pytest.raises(CapacityError, match="expected 50 at most"):
        choose(counts, spec, row_bytes=ROW_BYTES, budget_bytes=10_000, memory_bytes=50)


@given(
    keys=st.lists(st.integers(0, 40), max_size=60),
    asked=st.lists(st.integers(0, 60), max_size=60),
    n_words=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_an_index_is_a_dictionary(keys: list[int], asked: list[int], n_words: int) -> None:
    def words(numbers: list[int]) -> Any:
        # Keys whose words are often equal, and often 0.
        flat = np.array([[n % 7, n // 7][:n_words] if n_words == 2 else [n] for n in numbers], np.uint64)
        dtype = np.dtype(np.uint64) if n_words == 1 else np.dtype([("word0", np.uint64), ("word1", np.uint64)])
        return np.ascontiguousarray(flat.reshape(-1, n_words)).view(dtype).reshape(-1)

    index = KeyIndex.empty(len(keys), n_words)
    first = len(keys) // 2
    rows = np.array(keys, np.int64).reshape(-1, 1)
    numbers = [index.insert(words(keys[:first]), rows[:first]), index.insert(words(keys[first:]), rows[first:])]
    plain: dict[int, int] = {}
    expected = []
    for key in keys:
        expected.append(-1 if key in plain else len(plain))
        plain.setdefault(key, len(plain))
    assert np.concatenate(numbers).tolist() == expected
    assert index.n_bundles == len(plain)
    assert index.find(words(asked)).tolist() == [plain.get(key, -1) for key in asked]


@pytest.mark.parametrize("name", SPECS)
def test_every_bundle_is_its_rows(name: str, tmp_path: Path) -> None:
    """Against the files alone, opened by the format's own reader."""
    spec = SPECS[name]
    counts = counts_of(tmp_path / "counts", [some_text(spec, 1)], spec)
    place = add_bundles(made_table(tmp_path / "table", spec), counts, budget_bytes=30_000)
    plan = plan_for(tmp_path / "table", counts, budget_bytes=30_000)
    with StoredTable(tmp_path / "table") as table, BundleDirectory(place) as bundles:
        assert sum(path.stat().st_size for path in place.rglob("*.safetensors")) == bundles.manifest.total_bytes
        assert plan.manifest.total_bytes == bundles.manifest.total_bytes
        n_bundles = 0
        for layer, layer_id in enumerate(spec.layer_ids):
            for nth, (order, n_heads) in enumerate(zip(spec.orders, spec.heads, strict=True)):
                ngrams, times = bundles.ngrams(order)
                assert ngrams.tolist() == plan.chosen.ngrams[order].tolist()
                assert times.tolist() == plan.chosen.counts[plan.chosen.orders == order].tolist()
                n_here = bundles.manifest.n_bundles[layer][nth]
                assert n_heads > 1 or n_here == 0
                if not n_here:
                    continue
                n_bundles += n_here
                keys, rows = hash_ngrams(spec, layer_id, order, ngrams)
                distinct = dict(zip(reversed(keys.tolist()), reversed(rows.tolist()), strict=True))
                sequence = sorted(distinct, key=keys.tolist().index)
                assert len(sequence) == n_here
                with safe_open(place / f"layer-{layer_id:02d}" / f"order-{order}.safetensors", "numpy") as file:
                    records = file.get_tensor("bundles")
                expected = [plain_rows(table, layer_id, np.array(distinct[key])).reshape(-1) for key in sequence]
                assert (records == np.array(expected)).all()
                with safe_open(place / "index.safetensors", "numpy") as file:
                    slots = file.get_tensor(f"layer-{layer_id:02d}.order-{order}")
                numbers = KeyIndex(slots, n_bundles=n_here).find(keys)
                assert numbers.tolist() == [sequence.index(key) for key in keys.tolist()]
        assert n_bundles == plan.n_bundles > 0


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    spec = SPECS["keys of two words"]
    counts = counts_of(tmp_path / "counts", [some_text(spec, 1)], spec)
    table = made_table(tmp_path / "table", spec)
    places = [add_bundles(table, counts, output=tmp_path / name) for name in ("a", "b")]
    contents = [{p.relative_to(place): p.read_bytes() for p in place.rglob("*.*")} for place in places]
    assert contents[0] == contents[1]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    spec = made_spec()
    counts = counts_of(tmp_path / "counts", [some_text(spec, 1)], spec)
    table = made_table(tmp_path / "table", spec)
    before = sorted(p.name for p in table.iterdir())
    calls = []

    def stop(layer_id: int, rows: Any, out: Any) -> None:
        calls.append(layer_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        out[:] = 0

    with pytest.raises(KeyboardInterrupt):
        write_bundles(plan_for(table, counts), table / "bundles", stop)
    assert len(calls) == 3
    assert sorted(p.name for p in table.iterdir()) == before
    add_bundles(table, counts)
    with pytest.raises(InvalidInput, match="exists already"):
        add_bundles(table, counts)
    add_bundles(table, counts, force=True, budget_bytes=2_000)
    assert sorted(p.name for p in table.iterdir()) == sorted([*before, "bundles"])
    with BundleDirectory(table / "bundles") as bundles:
        assert bundles.manifest.budget_bytes == 2_000


def test_rows_that_are_not_here_are_not_bundled(tmp_path: Path) -> None:
    """A part of a table has the bundles of the n-grams whose rows are all in it; by heads it has none."""
    from engram_tables.storage.building.repack import plan_ranks, plan_repack
    from engram_tables.storage.building.writer import build_table, build_tables
    from engram_tables.storage.sides import open_side

    spec = made_spec()
    counts = counts_of(tmp_path / "counts", [some_text(spec, 1)], spec)
    table = made_table(tmp_path / "table", spec)
    with open_side(table) as side:
        part = plan_repack(side.source, layout="packed", rows=(0, 250), origin=side.manifest)
        build_table(part, tmp_path / "part", threads=1)
        build_tables(
            plan_ranks(side.source, by="layer", n_ranks=2, layout="packed", origin=side.manifest),
            tmp_path / "ranks",
            threads=1,
        )
        build_tables(
            plan_ranks(side.source, by="head", n_ranks=4, layout="packed", origin=side.manifest),
            tmp_path / "heads",
            threads=1,
        )
    plan = plan_for(tmp_path / "part", counts)
    for layer, layer_id in enumerate(spec.layer_ids):
        rows = hash_ngrams(spec, layer_id, 2, plan.chosen.ngrams[2])[1]
        assert plan.manifest.n_bundles[layer][0] == int((rows < 250).all(axis=1).sum()) > 0
        assert plan.manifest.n_bundles[layer][1] == 0
    ranks = sorted((tmp_path / "ranks").iterdir())
    assert [[bool(sum(of)) for of in plan_for(rank, counts).manifest.n_bundles] for rank in ranks] == [
        [True, False],
        [False, True],
    ]
    with pytest.raises(InvalidInput, match="no n-gram of which every row is here"):
        plan_for(sorted((tmp_path / "heads").iterdir())[0], counts)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    spec = made_spec()
    counts = counts_of(root / "counts", [some_text(spec, 1)], spec)
    return add_bundles(made_table(root / "table", spec), counts, budget_bytes=9_000)


def test_any_changed_byte_of_manifest_and_headers_is_refused(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    for name, step in ((MANIFEST_NAME, 41), ("index.safetensors", 97), ("layer-01/order-2.safetensors", 97)):
        data = (copy / name).read_bytes()
        head = len(data) if name == MANIFEST_NAME else 4096
        for place in range(0, head, step):
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            (copy / name).write_bytes(changed)
            with pytest.raises(EngramError):
                BundleDirectory(copy)
        (copy / name).write_bytes(data)
    BundleDirectory(copy).close()


def test_files_of_another_length_or_kind_are_refused(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    file = copy / "layer-14" / "order-3.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(IncompleteTable, match="bytes, expected"):
        BundleDirectory(copy)
    file.write_bytes(data + b"x")
    with pytest.raises(CorruptTable):
        BundleDirectory(copy)
    file.unlink()
    with pytest.raises(IncompleteTable, match="no such file"):
        BundleDirectory(copy)
    (tmp_path / "elsewhere").write_bytes(data)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsupportedTable, match="symbolic link"):
        BundleDirectory(copy)
    (copy / MANIFEST_NAME).unlink()
    with pytest.raises(NotATable):
        BundleDirectory(copy)
    with pytest.raises(NotATable):
        BundleDirectory(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"schema": "engram.bundles/2"}, UnsupportedTable),
        ({"schema": "other"}, NotATable),
        ({"more": 1}, UnsupportedTable),
        ({"n_bundles": [[1, 1]]}, CorruptTable),
        ({"n_ngrams": [0, 0]}, CorruptTable),
        ({"row_bytes": 2**40}, CorruptTable),
        ({"key_words": 0}, CorruptTable),
        ({"orders": [3, 2]}, CorruptTable),
        ({"heads": [2]}, CorruptTable),
        ({"layer_ids": [1, 1]}, CorruptTable),
        ({"files": []}, CorruptTable),
        ({"counts_sha256": "x"}, CorruptTable),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    changes: dict[str, Any], kind: type[Exception], finished: Path, tmp_path: Path
) -> None:
    import hashlib

    from engram_tables.units import canonical_json

    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    body = json.loads((copy / MANIFEST_NAME).read_bytes()) | changes
    del body["manifest_sha256"]
    body["manifest_sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    (copy / MANIFEST_NAME).write_bytes(canonical_json(body))
    with pytest.raises(kind):
        BundleDirectory(copy)


def test_bundles_of_other_rows_are_refused_by_spec(finished: Path) -> None:
    with BundleDirectory(finished) as bundles:
        spec = made_spec()
        bundles.manifest.check_spec(spec, row_bytes=ROW_BYTES, codec="f32", path="here")
        for wrong in (
            {"spec": made_spec((3, 3)), "row_bytes": ROW_BYTES, "codec": "f32"},
            {"spec": spec, "row_bytes": 1, "codec": "f32"},
            {"spec": spec, "row_bytes": ROW_BYTES, "codec": "bf16"},
        ):
            with pytest.raises(SpecMismatch, match="build the bundles again"):
                bundles.manifest.check_spec(path="here", **wrong)  # type: ignore[arg-type]
