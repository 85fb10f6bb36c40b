"""A table with bundles gives the bytes that it gives without them, whoever reads."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bundle_tables import SPECS, add_bundles, counts_of, made_spec, made_table, plain_records, plan_for, some_text
from hypothesis import given, settings
from hypothesis import strategies as st
from made_checkpoints import make_deepseek

from engram_tables.address.spec import Addresses, AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import BackendUnavailable, CorruptTable, IncompleteTable, InvalidInput, SpecMismatch
from engram_tables.fetch.bundles import READERS, BundledTable
from engram_tables.fetch.bundling import plan_table_bundles, write_table_bundles
from engram_tables.fetch.table import ENGINE_NAMES, Table, open_table
from engram_tables.fetch.tiers.budget import MemoryTier, TierPlan
from engram_tables.measure.residency import evict
from engram_tables.storage.bundles.bundle_manifest import MANIFEST_NAME
from engram_tables.storage.bundles.writing import RowsToBundle
from engram_tables.storage.sources.opening import open_rows
from engram_tables.storage.table.reader import StoredTable

BUDGET = 20_000


class Made:
    """A table, its bundles, and what it must give for a text."""

    def __init__(self, root: Path, name: str) -> None:
        self.spec: AddressSpec = SPECS[name]
        self.path = made_table(root / "table", self.spec)
        add_bundles(self.path, counts_of(root / "counts", [some_text(self.spec, 1)], self.spec), budget_bytes=BUDGET)
        self.addresses = self.spec.address(some_text(self.spec, 2, 40))
        with StoredTable(self.path) as table:
            self.expected = plain_records(table, self.addresses)

    def open(self) -> BundledTable:
        return BundledTable(StoredTable(self.path), self.path / "bundles")

    def cool(self) -> None:
        """Nothing of it in memory, where the filesystem lets go of files."""
        evict(list(self.path.rglob("*.safetensors")))


@pytest.fixture(scope="module")
def all_made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return {name: Made(tmp_path_factory.mktemp("made"), name) for name in SPECS}


@pytest.fixture
def made(all_made: dict[str, Made]) -> Made:
    return all_made["equal heads"]


def engine_of(table: Table, name: str) -> str:
    try:
        table.engine(name)
    except BackendUnavailable as why:
        pytest.skip(str(why))
    return name


def some(addresses: Addresses, start: int, stop: int) -> Addresses:
    return Addresses(np.ascontiguousarray(addresses.rows[start:stop]), np.ascontiguousarray(addresses.keys[start:stop]))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    "engine",
    [
        name if name in {"auto", "gather", "uring"} else pytest.param(name, marks=pytest.mark.slow)
        for name in ENGINE_NAMES
    ],
)
def test_every_engine_gives_the_bytes_of_the_rows(name: str, engine: str, all_made: dict[str, Made]) -> None:
    made = all_made[name]
    made.cool()
    with made.open() as table:
        engine_of(table, engine)
        for start, stop in ((0, 40), (0, 1), (5, 5), (3, 20), (0, 40)):
            asked, expected = some(made.addresses, start, stop), made.expected[start:stop]
            assert (table.fetch(asked, None, engine) == expected).all()
            out = np.full_like(expected, 1)
            table.begin(asked, out, engine).finish()
            assert (out == expected).all()
        n_found = table.bundles.counts().n_found
        assert (n_found > 0) == (engine in (*READERS, "auto"))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_batch_gives_the_bytes_of_the_rows(data: st.DataObject, all_made: dict[str, Made]) -> None:
    """Positions in any order and number, keys that are those of the rows, of other rows, or none."""
    made = all_made[data.draw(st.sampled_from(list(SPECS)))]
    places = data.draw(st.lists(st.integers(0, 39), max_size=12))
    rows, keys = made.addresses.rows[places], made.addresses.keys[places].copy()
    kind = data.draw(st.sampled_from(["its own", "others", "none"]))
    if kind == "others" and keys.size:
        keys = keys[data.draw(st.permutations(range(len(places))))]
    if kind == "none":
        keys = keys[:0]
    with made.open() as table:
        engine = data.draw(st.sampled_from(["pread", "uring", "auto"]))
        engine_of(table, engine)
        assert (table.fetch(Addresses(rows, keys), None, engine) == made.expected[places]).all()


def test_what_is_found_is_counted(made: Made) -> None:
    """As often as a search of the chosen n-grams finds, by their keys."""
    from engram_tables.storage.bundles.choosing import ChosenIndex

    counts = counts_of(made.path.with_name("counts-again"), [some_text(made.spec, 1)], made.spec)
    chosen = plan_for(made.path, counts, budget_bytes=BUDGET).chosen
    n_found = sum(
        int((ChosenIndex(chosen, made.spec, layer_id=layer_id).ranks(made.addresses.keys[:, layer]) >= 0).sum())
        for layer, layer_id in enumerate(made.spec.layer_ids)
    )
    with made.open() as table:
        table.fetch(made.addresses, None, "pread")
        assert table.bundles.counts() == (made.addresses.keys.size, n_found)
        assert 0 < n_found < made.addresses.keys.size
        table.fetch_rows(1, np.arange(50), None, "pread")
        assert table.bundles.counts() == (made.addresses.keys.size, n_found)


def test_rows_by_themselves_are_read_as_ever(made: Made) -> None:
    with made.open() as table, Table(StoredTable(made.path)) as plain:
        rows = np.arange(made.spec.layers[0].n_rows)
        assert (table.fetch_rows(1, rows, None, "pread") == plain.fetch_rows(1, rows, None, "pread")).all()


def test_keys_of_another_kind_are_refused(made: Made) -> None:
    rows, keys = made.addresses
    with made.open() as table:
        for wrong in (keys[:3], keys.astype(np.int64), keys[:, :1]):
            with pytest.raises(SpecMismatch, match="found keys"):
                table.fetch(Addresses(rows, wrong), None, "pread")
        bad = rows.copy()
        bad[3, 1, 2] = made.spec.layers[1].n_rows
        with pytest.raises(InvalidInput, match="found row"):
            table.fetch(Addresses(bad, keys), None, "pread")


@pytest.mark.parametrize("name", ["equal heads", "lengths that do not divide"])
@pytest.mark.parametrize("behind", [pytest.param("pread", marks=pytest.mark.slow), "auto"])
def test_tiers_read_what_they_miss_with_bundles(name: str, behind: str, all_made: dict[str, Made]) -> None:
    made = all_made[name]
    made.cool()
    plan = TierPlan(tiers=(MemoryTier(budget_bytes=1 << 18),), behind=behind)
    with made.open() as table, Table(StoredTable(made.path)) as plain:
        tiers, without = table.add_tiers(plan), plain.add_tiers(plan)
        with pytest.raises(InvalidInput, match="has tiers already"):
            table.add_tiers(plan)
        for start, stop in ((0, 10), (0, 40), (20, 40), (0, 1)):
            asked, expected = some(made.addresses, start, stop), made.expected[start:stop]
            assert (table.fetch(asked) == expected).all()
            plain.fetch(asked)
            out = np.empty_like(expected)
            table.begin(asked, out).finish()
            assert (out == expected).all()
            plain.begin(asked, out).finish()
        assert tiers.counts() == without.counts()
        # `auto` faults in what a batch misses of a few pages, and this table has a few.
        assert behind == "auto" or table.bundles.counts().n_found > 0


def test_many_threads_at_once(made: Made) -> None:
    with made.open() as table, ThreadPoolExecutor(8) as pool:
        engines = ["pread", "auto", engine_of(table, "direct")]

        def fetch(k: int) -> bool:
            start = k % 30
            found = table.fetch(some(made.addresses, start, start + 10), None, engines[k % len(engines)])
            return bool((found == made.expected[start : start + 10]).all())

        assert all(pool.map(fetch, range(200)))


@pytest.mark.parametrize(
    "engine", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("pread", "aio")), "uring", "auto"]
)
def test_a_child_of_fork_reads_and_its_parent_too(engine: str, made: Made) -> None:
    with made.open() as table:
        engine_of(table, engine)
        out = np.zeros_like(made.expected)
        pending = table.begin(made.addresses, out, engine)
        child = os.fork()
        if child == 0:
            is_equal = False
            try:
                pending.finish()
                is_equal = bool((out == made.expected).all())
                is_equal &= bool((table.fetch(made.addresses, None, engine) == made.expected).all())
            finally:
                os._exit(0 if is_equal else 1)
        pending.finish()
        assert (out == made.expected).all()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (table.fetch(made.addresses, None, engine) == made.expected).all()


@pytest.mark.parametrize("engine", ["pread", "uring", "auto"])
def test_closing_waits_for_what_is_under_way(engine: str, made: Made) -> None:
    n_open = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208
    table = made.open()
    try:
        engine_of(table, engine)
    except BaseException:
        table.close()
        raise
    out = np.zeros_like(made.expected)
    pending = table.begin(made.addresses, out, engine)
    table.close()
    pending.finish()
    assert (out == made.expected).all()
    with pytest.raises(InvalidInput, match="finished already"):
        pending.finish()
    with pytest.raises(InvalidInput, match="closed"):
        table.fetch(made.addresses, None, engine)
    table.close()
    if n_open:
        del table, pending
        assert len(os.listdir("/proc/self/fd")) <= n_open + 1  # noqa: PTH208


def test_a_read_that_fails_is_told(made: Made, tmp_path: Path) -> None:
    """A bundle file that is cut after it was opened: the error names it, and the next read is refused as well."""
    copy = Path(shutil.copytree(made.path, tmp_path / "copy"))
    with BundledTable(StoredTable(copy), copy / "bundles") as table:
        for file in (copy / "bundles").glob("layer-*/*"):
            os.truncate(file, 4096)
        for _ in range(2):
            with pytest.raises(IncompleteTable, match=r"order-\d\.safetensors"):
                table.fetch(made.addresses, None, "pread")


def test_stale_bundles_are_refused(made: Made, tmp_path: Path) -> None:
    other = made_table(tmp_path / "other", made.spec, seed=6)
    shutil.copytree(made.path / "bundles", other / "bundles")
    stored = StoredTable(other)
    with pytest.raises(SpecMismatch, match="found bundles of the table"):
        BundledTable(stored, other / "bundles")
    stored.close()
    another = made_table(tmp_path / "another", made_spec((3, 3)))
    stored = StoredTable(another)
    with pytest.raises(SpecMismatch, match="bundles of addressing"):
        BundledTable(stored, made.path / "bundles")
    stored.close()


def test_a_damaged_index_gives_no_other_rows(made: Made, tmp_path: Path) -> None:
    """Any word of the index changed: what is found may be less, and is never of another n-gram."""
    copy = Path(shutil.copytree(made.path, tmp_path / "copy"))
    index = copy / "bundles" / "index.safetensors"
    data = bytearray(index.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(40):
        changed = bytearray(data)
        for place in rng.integers(4096, len(data), 30).tolist():
            changed[place] ^= 1 << int(rng.integers(8))
        index.write_bytes(changed)
        with BundledTable(StoredTable(copy), copy / "bundles") as table:
            assert (table.fetch(made.addresses, None, "pread") == made.expected).all()


def test_a_library_call_writes_what_the_writer_writes(made: Made, tmp_path: Path) -> None:
    counts = counts_of(tmp_path / "counts", [some_text(made.spec, 1)], made.spec)
    with Table(StoredTable(made.path)) as table:
        plan = plan_table_bundles(RowsToBundle.of(table.stored), counts, budget_bytes=BUDGET)
        write_table_bundles(plan, table, tmp_path / "bundles")
    for path in (made.path / "bundles").rglob("*.safetensors"):
        if path.name.startswith("order-"):
            name = path.relative_to(made.path / "bundles")
            # The headers name the counts, which have another name there.
            assert (tmp_path / "bundles" / name).read_bytes()[4096:] == path.read_bytes()[4096:]
    assert (tmp_path / "bundles" / MANIFEST_NAME).is_file()


def test_bundles_of_a_checkpoint(v4_vocabulary: Vocabulary, tmp_path: Path) -> None:
    """A checkpoint has no digest: its bundles are held against some of its rows when they are opened."""
    made = make_deepseek(tmp_path / "checkpoint")
    with open_table(made.path) as table:
        spec = table.spec
        text = some_text(spec, 1)
        counts = counts_of(tmp_path / "counts", [text], spec, v4_vocabulary)
        plan = plan_table_bundles(RowsToBundle.of(table.stored), counts, budget_bytes=1 << 20)
        write_table_bundles(plan, table, tmp_path / "bundles")
        addresses = spec.address(v4_vocabulary.canonical(text[:40]))
        expected = table.fetch(addresses, None, "pread")
    with BundledTable(open_rows(made.path), tmp_path / "bundles") as bundled:
        assert (bundled.fetch(addresses, None, "pread") == expected).all()
        assert bundled.bundles.counts().n_found > 0
    for file in made.files:
        data = np.fromfile(file, np.uint8)
        data[8 + int.from_bytes(data[:8].tobytes(), "little") :] ^= 1
        data.tofile(file)
    rows = open_rows(made.path)
    with pytest.raises(CorruptTable, match="differ from the rows"):
        BundledTable(rows, tmp_path / "bundles")
    rows.close()
