"""Bundles that are not what they say, places that they must not take, and choices that hold nothing."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_tables import SPECS, add_bundles, counts_of, made_spec, made_table, plain_rows, plan_for, some_text

from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.errors import (
    CapacityError,
    CorruptTable,
    EngramError,
    IncompleteTable,
    InvalidInput,
    NotATable,
    UnsupportedTable,
)
from engram_tables.fetch.bundles import BundledTable
from engram_tables.storage import sealed_files
from engram_tables.storage.bundles.bundle_manifest import MANIFEST_NAME, BundleManifest
from engram_tables.storage.bundles.checking import BundleCheck
from engram_tables.storage.bundles.choosing import Chosen, choose, entry_bytes
from engram_tables.storage.bundles.files import BundleDirectory
from engram_tables.storage.bundles.writing import RowsToBundle, plan_bundles, write_bundles
from engram_tables.storage.table.reader import StoredTable

BUDGET = 9_000


class Made:
    """A table, counts and bundles of it."""

    def __init__(self, root: Path) -> None:
        self.spec = made_spec()
        self.table = made_table(root / "table", self.spec)
        self.text = some_text(self.spec, 1)
        self.counts: Counts = counts_of(root / "counts", [self.text], self.spec)
        self.bundles = add_bundles(self.table, self.counts, output=root / "bundles", budget_bytes=BUDGET)

    def open(self, bundles: Path) -> BundledTable:
        stored = StoredTable(self.table)
        try:
            return BundledTable(stored, bundles)
        except BaseException:
            stored.close()
            raise


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("refused"))


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.bundles, tmp_path / "copy"))


def test_a_file_in_the_place_of_another_layers_is_refused(made: Made, copy: Path) -> None:
    """Both layers have as many bundles, so the files differ in nothing but rows."""
    one, other = copy / "layer-01" / "order-2.safetensors", copy / "layer-14" / "order-2.safetensors"
    assert one.stat().st_size == other.stat().st_size
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    with pytest.raises(CorruptTable, match="its header"):
        made.open(copy)


@pytest.mark.parametrize("name", ["layer-01/order-2.safetensors", "index.safetensors", "ngrams.safetensors"])
def test_a_file_of_bundles_by_other_counts_is_refused(made: Made, copy: Path, tmp_path: Path, name: str) -> None:
    """The same table and as many bundles of every order: of other n-grams."""
    counts = counts_of(tmp_path / "counts", [made.text[::-1].copy()], made.spec)
    plans = [plan_for(made.table, of, budget_bytes=BUDGET) for of in (made.counts, counts)]
    assert plans[0].manifest.n_bundles == plans[1].manifest.n_bundles
    assert plans[0].chosen.ngrams[2].tolist() != plans[1].chosen.ngrams[2].tolist()
    manifest = replace(plans[1].manifest, counts_sha256="d" * 64).with_files()
    with StoredTable(made.table) as table:

        def read_rows(layer_id: int, rows: Any, out: Any) -> None:
            out[:] = plain_rows(table, layer_id, rows)

        write_bundles(replace(plans[1], manifest=manifest), tmp_path / "other", read_rows, threads=1)
    shutil.copy(tmp_path / "other" / name, copy / name)
    with pytest.raises(CorruptTable, match="its header"):
        made.open(copy)


def lying(plan: Any, place: Path, **changes: Any) -> Path:
    """A directory that is whole by its own digests, and says something else of the table than is so."""
    manifest = replace(plan.manifest, **changes).with_files()
    finished = []
    for file in manifest.files:
        (place / file.path).parent.mkdir(parents=True, exist_ok=True)
        header = manifest.header(file)
        data = header + bytes(range(1, 252)) * (file.file_bytes // 251 + 1)
        data = data[: file.file_bytes]
        (place / file.path).write_bytes(data)
        n_bytes = manifest.block_bytes
        blocks = tuple(hashlib.sha256(data[k : k + n_bytes]).hexdigest() for k in range(0, len(data), n_bytes))
        finished.append(replace(file, header_sha256=hashlib.sha256(header).hexdigest(), block_sha256=blocks))
    (place / MANIFEST_NAME).write_bytes(replace(manifest, files=tuple(finished)).to_bytes())
    return place


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("heads", {"heads": (3, 2)}),
        ("key_words", {"key_words": 8}),
        ("layer_ids", {"layer_ids": (1,), "n_bundles": ((17, 12),)}),
        ("layer_ids", {"layer_ids": (14, 1)}),
        ("layer_ids", {"layer_ids": (1, 14, 20), "n_bundles": ((17, 12),) * 3}),
        ("orders", {"orders": (2, 4)}),
        ("orders", {"orders": (2,), "heads": (2,), "n_ngrams": (17,), "n_bundles": ((17,), (17,))}),
    ],
)
def test_shapes_that_are_not_the_specs_are_refused(
    name: str, changes: dict[str, Any], made: Made, tmp_path: Path
) -> None:
    """Where the fingerprint is the table's: kernels take the shapes from the manifest."""
    place = lying(plan_for(made.table, made.counts, budget_bytes=BUDGET), tmp_path / "lying", **changes)
    with pytest.raises(CorruptTable, match=f"found {name}"):
        made.open(place)
    with (
        BundleDirectory(place) as bundles,
        StoredTable(made.table) as table,
        pytest.raises(CorruptTable, match=f"found {name}"),
    ):
        BundleCheck(bundles, table)


def test_a_manifest_of_huge_files_takes_no_memory(made: Made) -> None:
    """Two files of 2^71 bytes in blocks of 4096: no list is made of what a manifest does not list itself."""
    plan = plan_for(made.table, made.counts, budget_bytes=BUDGET)
    most = 2**31 - 1
    manifest = replace(
        plan.manifest, heads=(2**16, 2**16), row_bytes=2**24, block_bytes=4096, n_ngrams=(most, most),
        n_bundles=((most, most), (most, most)),
    ).with_files()  # fmt: skip
    whole = replace(
        manifest, files=tuple(replace(f, header_sha256="a" * 64, block_sha256=("a" * 64,)) for f in manifest.files)
    )
    with pytest.raises(CorruptTable, match="blocks is 1, expected"):
        BundleManifest.from_bytes(whole.to_bytes(), path="here")


@pytest.mark.parametrize("changes", [{"budget_bytes": -1}, {"least_count": 0}])
def test_numbers_that_nobody_asks_for_are_refused(changes: dict[str, int], made: Made, tmp_path: Path) -> None:
    place = lying(plan_for(made.table, made.counts, budget_bytes=BUDGET), tmp_path / "lying", **changes)
    with pytest.raises(CorruptTable, match=next(iter(changes))):
        BundleDirectory(place)


def test_files_in_the_place_of_directories(copy: Path, tmp_path: Path) -> None:
    layer = copy / "layer-01"
    shutil.rmtree(layer)
    layer.write_bytes(b"")
    with pytest.raises(IncompleteTable, match="expected a directory"):
        BundleDirectory(copy)
    layer.unlink()
    layer.symlink_to(copy / "layer-14")
    with pytest.raises(UnsupportedTable, match="symbolic link"):
        BundleDirectory(copy)
    layer.unlink()
    layer.mkdir()
    os.mkfifo(layer / "order-2.safetensors")
    with pytest.raises(UnsupportedTable, match="no regular file"):
        BundleDirectory(copy)
    (tmp_path / "link").symlink_to(copy)
    (copy / MANIFEST_NAME).unlink()
    (copy / MANIFEST_NAME).mkdir()
    with pytest.raises(EngramError, match="no regular file"):
        BundleDirectory(tmp_path / "link")


def test_bundles_exchanged_while_they_are_opened(made: Made, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old files vanish after the manifest was read: the new directory is opened; only what stays broken is."""
    add = BundleDirectory._check_header
    n_left = 1

    def exchange(self: BundleDirectory, fd: int, entry: Any) -> None:
        nonlocal n_left
        add(self, fd, entry)
        if n_left:
            n_left -= 1
            add_bundles(made.table, made.counts, output=copy, force=True, budget_bytes=2_000 + n_left)

    monkeypatch.setattr(BundleDirectory, "_check_header", exchange)
    n_open = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208
    with BundleDirectory(copy) as bundles:
        assert bundles.manifest.budget_bytes == 2_000
        assert sorted(bundles.files) == sorted(file.path for file in bundles.manifest.files)
    n_left = sealed_files._OPEN_ATTEMPTS
    with pytest.raises(IncompleteTable, match="no such file"):
        BundleDirectory(copy)
    assert n_left == 0
    if n_open:
        assert len(os.listdir("/proc/self/fd")) == n_open  # noqa: PTH208


def test_force_replaces_bundles_and_nothing_else(made: Made, copy: Path, tmp_path: Path) -> None:
    """Not the table that they are of, and no directory with something of somebody's in it."""

    def add(place: Path) -> None:
        add_bundles(made.table, made.counts, output=place, force=True, budget_bytes=BUDGET)

    before = {path: path.read_bytes() for path in made.table.rglob("*") if path.is_file()}
    with pytest.raises(InvalidInput, match=r"no bundles\.json"):
        add(made.table)
    assert {path: path.read_bytes() for path in made.table.rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(InvalidInput, match="something else than a directory"):
        add(tmp_path / "file")
    (tmp_path / "link").symlink_to(copy)
    with pytest.raises(InvalidInput, match="something else than a directory"):
        add(tmp_path / "link")
    for name in ("notes.txt", "layer-01/notes.txt"):
        (copy / name).write_bytes(b"mine")
        with pytest.raises(InvalidInput, match="expected their own files alone"):
            add(copy)
        (copy / name).unlink()
    add(copy)
    (tmp_path / "empty").mkdir()
    add(tmp_path / "empty")
    assert (tmp_path / "empty" / MANIFEST_NAME).read_bytes() == (copy / MANIFEST_NAME).read_bytes()


def test_what_the_filesystem_refuses_names_the_place(made: Made, tmp_path: Path) -> None:
    """Files may be 8 KiB: the first one that is larger fails before a row is read, and nothing is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            add_bundles(made.table, made.counts, output=tmp_path / "bundles")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert any(str(tmp_path / "bundles") in note for note in caught.value.__notes__)
    assert not list(tmp_path.iterdir())


def test_choices_that_hold_nothing_say_why(tmp_path: Path) -> None:
    spec = made_spec((4, 2))
    none = counts_of(tmp_path / "none", [np.array([3], np.uint32)], spec)
    with pytest.raises(InvalidInput, match="no n-gram seen 2 times or more"):
        choose(none, spec, row_bytes=64, budget_bytes=1 << 20)
    costs = entry_bytes(spec, row_bytes=64)
    assert costs[3] < costs[2]
    counts = counts_of(tmp_path / "counts", [some_text(spec, 1)], spec)
    # Order 2 saves more a byte, and a bundle of it does not fit.
    with pytest.raises(InvalidInput, match=f"expected {costs[2]:,} or more"):
        choose(counts, spec, row_bytes=64, budget_bytes=costs[3])
    spec = SPECS["one head has no bundle"]
    costs = entry_bytes(spec, row_bytes=64)
    counts = counts_of(tmp_path / "worthless", [some_text(spec, 1)], spec)
    with pytest.raises(InvalidInput, match=f"expected {costs[3]:,} or more"):
        choose(counts, spec, row_bytes=64, budget_bytes=costs[1])


def test_a_damaged_directory_is_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    with pytest.raises(NotATable):
        BundleDirectory(tmp_path / "bundles")


@pytest.mark.parametrize("n_layers", [1, 8])
def test_memory_holds_for_the_plan_too(n_layers: int, tmp_path: Path) -> None:
    """Beyond the choice a plan has an index of every layer; what is measured is below what is asked for."""
    spec = made_spec((2, 2), size=50_000, layer_ids=tuple(range(1, n_layers + 1)))
    table = made_table(tmp_path / "table", spec)
    ids = np.arange(40_000, dtype=np.uint32)
    counts = counts_of(tmp_path / "counts", [ids, ids], spec)

    def plan(memory_bytes: int) -> Chosen:
        chosen = choose(counts, spec, row_bytes=64, budget_bytes=1 << 40, memory_bytes=memory_bytes)
        with StoredTable(table) as stored:
            plan_bundles(chosen, RowsToBundle.of(stored), counts_sha256="c" * 64, threads=1)
        return chosen

    n_ngrams = len(plan(1 << 40).orders)
    tracemalloc.start()
    try:
        plan(1 << 40)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    with pytest.raises(CapacityError) as caught:
        plan(1)
    needed = int(str(caught.value).split("which take ")[1].split(" bytes")[0].replace(",", ""))
    assert n_ngrams == 2 * 40_000 - 3
    # Beside what grows with the n-grams a batch of them is hashed.
    assert peak < needed + (1 << 20)
