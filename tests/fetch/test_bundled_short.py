"""Bundles in the compiled short way of `uring` and `aio`: the bytes, reads and counts of the long way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_tables import SPECS, add_bundles, counts_of, made_table, plain_records, some_text
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses
from engram_tables.errors import BackendUnavailable, IncompleteTable, InvalidInput, SpecMismatch
from engram_tables.fetch.bundles import BundledTable
from engram_tables.fetch.engines import queue_kernels
from engram_tables.fetch.engines.queue_kernels import FAILED, find_bundles
from engram_tables.fetch.engines.queue_memory import Bundled
from engram_tables.fetch.engines.queued import SHORT_ROWS, QueueEngine, ShortReads
from engram_tables.fetch.kernels import DONE, LARGE, MISFIT, OUTSIDE
from engram_tables.storage.bundles import index_kernels
from engram_tables.storage.bundles.index import n_slots_of
from engram_tables.storage.table.reader import StoredTable

ENGINES = pytest.mark.parametrize("engine", ["uring", "aio"])


class Made:
    """A table with bundles, open, and what it must give for a text."""

    def __init__(self, root: Path, name: str) -> None:
        self.spec = SPECS[name]
        self.path = made_table(root / "table", self.spec)
        add_bundles(self.path, counts_of(root / "counts", [some_text(self.spec, 1)], self.spec), budget_bytes=20_000)
        self.addresses = self.spec.address(some_text(self.spec, 2, 40))
        with StoredTable(self.path) as table:
            self.expected = plain_records(table, self.addresses)
        self.table = self.open()

    def open(self, path: Path | None = None) -> BundledTable:
        path = path or self.path
        return BundledTable(StoredTable(path), path / "bundles")

    def some(self, places: Any) -> tuple[Addresses, NDArray[np.uint8]]:
        return Addresses(self.addresses.rows[places], self.addresses.keys[places].copy()), self.expected[places]

    def n_found(self, addresses: Addresses) -> int:
        """By a lookup of the long way's, in a table of its own."""
        with self.open() as other:
            other.fetch(addresses, None, "pread")
            return other.bundles.counts().n_found


@pytest.fixture(scope="module")
def all_made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Made]]:
    all_made = {name: Made(tmp_path_factory.mktemp("made"), name) for name in SPECS}
    yield all_made
    for made in all_made.values():
        made.table.close()


@pytest.fixture
def made(all_made: dict[str, Made]) -> Made:
    return all_made["equal heads"]


def short_of(table: BundledTable, engine: str) -> ShortReads:
    try:
        made = table.engine(engine)
    except BackendUnavailable as why:
        pytest.skip(str(why))
    assert isinstance(made, QueueEngine)
    assert isinstance(made.warm, ShortReads)
    return made.warm


@ENGINES
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_batch_gives_the_bytes_of_the_rows(engine: str, data: st.DataObject, all_made: dict[str, Made]) -> None:
    """Positions in any order and number, keys that are those of the rows, of other rows, or of nothing."""
    made = all_made[data.draw(st.sampled_from(list(SPECS)))]
    asked, expected = made.some(data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=12)))
    kind = data.draw(st.sampled_from(["its own", "others", "of nothing"]))
    if kind == "others":
        asked.keys[:] = asked.keys[data.draw(st.permutations(range(len(asked.keys))))]
    if kind == "of nothing":
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        asked.keys.view(np.uint64)[:] = rng.integers(0, 2**64, asked.keys.view(np.uint64).shape, np.uint64)
    short, before = short_of(made.table, engine), made.table.bundles.counts()
    out = np.full_like(expected, 1)
    assert short.fetch_keyed(*asked, out) == (DONE if asked.rows.size <= SHORT_ROWS else LARGE)
    if asked.rows.size <= SHORT_ROWS:
        assert np.array_equal(out, expected)
        after = made.table.bundles.counts()
        assert after.n_lookups - before.n_lookups == asked.keys.size
        assert after.n_found - before.n_found == made.n_found(asked)
    else:
        assert (out == 1).all()
        assert made.table.bundles.counts() == before
    assert np.array_equal(made.table.fetch(asked, None, engine), expected)


@ENGINES
def test_as_many_reads_as_the_long_way(engine: str, made: Made) -> None:
    """A slot for each."""
    short, reader = short_of(made.table, engine), made.table.engine(engine)
    assert isinstance(reader, QueueEngine)
    for k in range(40):
        asked, expected = made.some([k])
        batch, _ = made.table._keyed(asked, None)
        n_reads = reader._plan(batch, None).n_reads
        out = np.empty_like(expected)
        (queue,) = reader._idle
        queue.slots.done[:] = 0
        assert short.fetch_keyed(*asked, out) == DONE
        assert int((queue.slots.done > 0).sum()) == n_reads


@given(data=st.data())
@settings(max_examples=70, deadline=None)
def test_both_copies_of_the_look_up_agree(data: st.DataObject) -> None:
    """`find_bundles` and `look_up` with `redirect`, on indexes that are sound, full, empty or damaged anywhere."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n_layers, n_words = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    heads = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    n_orders, columns = len(heads), np.concatenate(([0], np.cumsum(heads))).astype(np.int64)
    row_bytes, n_tokens = data.draw(st.sampled_from([1, 64, 264])), data.draw(st.integers(0, 12))
    key_span = data.draw(st.sampled_from([3, 20, 2**64 - 1]))
    spans, pieces = np.zeros((n_layers, n_orders, 3), np.int64), []
    known: list[list[tuple[Any, Any]]] = []
    for layer, order in np.ndindex(n_layers, n_orders):
        n_keys = data.draw(st.integers(0, 8))
        keys = rng.integers(0, key_span, (n_keys, n_words), np.uint64)
        rows = rng.integers(0, 2**40, (n_keys, heads[order]))
        slots = np.zeros((n_slots_of(n_keys), n_words + 1), np.uint64)
        n_bundles = index_kernels.insert(
            keys.reshape(-1), rows.reshape(-1), heads[order], 0, slots, np.empty(n_keys, np.int64)
        )
        spans[layer, order] = sum(map(len, pieces)), len(slots), n_bundles
        pieces.append(slots)
        known.append(list(zip(keys, rows, strict=True)))
    slots = np.concatenate(pieces)
    for _ in range(data.draw(st.integers(0, 4))):
        slots.reshape(-1)[rng.integers(slots.size)] ^= np.uint64(1) << np.uint64(rng.integers(64))
    if data.draw(st.booleans()) and data.draw(st.booleans()):
        # No slot is free.
        slots[:, -1] |= np.uint64(1)
    rows = rng.integers(0, 2**40, (n_tokens, n_layers, int(columns[-1])))
    keys = rng.integers(0, key_span, (n_tokens, n_layers, n_orders, n_words), np.uint64)
    for token, layer, order in np.ndindex(n_tokens, n_layers, n_orders):
        entered = known[layer * n_orders + order]
        if entered and rng.random() < 0.7:
            keys[token, layer, order], of_key = entered[rng.integers(len(entered))]
            rows[token, layer, columns[order] : columns[order + 1]] = of_key
    bases = rng.integers(0, 2**50, (n_layers, n_orders), np.uint64)
    spots = rng.integers(0, 2**50, rows.size, np.uint64)
    numbers, expected = np.empty(n_tokens * n_layers * n_orders, np.int64), spots.copy()
    n_found = index_kernels.look_up(rows.reshape(-1), keys.reshape(-1), columns, spans, slots, numbers)
    index_kernels.redirect(numbers, columns, bases, row_bytes, np.zeros(1, np.uint64), expected.reshape(1, -1))
    bundled = Bundled(columns=columns, spans=spans, slots=slots, bases=bases, counts=np.zeros(2, np.int64))
    assert find_bundles(rows.reshape(-1), keys.reshape(-1), bundled, row_bytes, spots) == n_found
    assert np.array_equal(spots, expected)
    # And in plain Python, one n-gram by itself.
    plain = queue_kernels._bundle_of.py_func
    with np.errstate(over="ignore"):
        for place in range(min(len(numbers), 4)):
            order, layer = place % n_orders, place // n_orders % n_layers
            first = place // n_orders * int(columns[-1]) + int(columns[order])
            flat = rows.reshape(-1), first, heads[order], keys.reshape(-1), place * n_words
            assert plain(*flat, slots, tuple(spans[layer, order].tolist())) == numbers[place]


@ENGINES
def test_what_is_unusual_is_declined(engine: str, made: Made) -> None:
    short = short_of(made.table, engine)
    (rows, keys), expected = made.some(range(4))
    out, before = np.full_like(expected, 7), made.table.bundles.counts()
    for wrong in (keys[:3], keys[:, :1], keys.astype(np.int64), np.zeros((4, 2, 4), np.uint64)):
        assert short.fetch_keyed(rows, np.ascontiguousarray(wrong), out) == MISFIT
        with pytest.raises(SpecMismatch, match="found keys"):
            made.table.fetch(Addresses(rows, wrong), out, engine)
    for odd in (keys[..., ::-1], keys[::2], np.zeros(4, np.uint64)):
        with pytest.raises(TypeError):
            short.fetch_keyed(rows, odd, out)
    bad = rows.copy()
    bad[3, 1, 2] = made.spec.layers[1].n_rows
    assert short.fetch_keyed(bad, keys, out) == OUTSIDE
    with pytest.raises(InvalidInput, match="found row"):
        made.table.fetch(Addresses(bad, keys), out, engine)
    assert (out == 7).all()
    assert made.table.bundles.counts() == before
    assert short.fetch_tokens(rows, out) == DONE
    assert np.array_equal(out, expected)
    assert made.table.bundles.counts() == before
    # Keys in another order in memory go the long way, and find what they name.
    turned = np.asfortranarray(keys)
    assert np.array_equal(made.table.fetch(Addresses(rows, turned), None, engine), expected)
    assert made.table.bundles.counts().n_found > before.n_found


@ENGINES
def test_keys_of_two_words_that_lie_apart(engine: str, all_made: dict[str, Made]) -> None:
    made = all_made["keys of two words"]
    short_of(made.table, engine)
    (rows, keys), expected = made.some(range(4))
    assert np.array_equal(made.table.fetch(Addresses(rows, np.asfortranarray(keys)), None, engine), expected)
    assert np.array_equal(made.table.fetch(Addresses(rows, keys[::-1][::-1]), None, engine), expected)


@ENGINES
def test_fetch_goes_the_short_way(engine: str, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name from the second read on, and with an engine of the table; not with threads, nor for a layer's rows."""
    asked, expected = made.some(range(3))
    with made.open() as table:
        short = short_of(table, engine)
        answers: list[int] = []
        real = ShortReads.fetch_keyed

        def spied(self: ShortReads, rows: Any, keys: Any, out: Any) -> int:
            answers.append(real(self, rows, keys, out))
            return answers[-1]

        monkeypatch.setattr(ShortReads, "fetch_keyed", spied)
        for which in (engine, table.engine(engine)):
            assert np.array_equal(table.fetch(asked, None, which), expected)
        assert answers == [DONE, DONE]
        assert np.array_equal(table.fetch(asked, None, engine, threads=2), expected)
        assert np.array_equal(table.fetch(Addresses(asked.rows, asked.keys[:0]), None, engine), expected)
        assert answers == [DONE, DONE]
        found, before = table.fetch_rows(1, np.arange(50), None, engine), table.bundles.counts()
        for _ in range(2):
            assert np.array_equal(table.fetch_rows(1, np.arange(50), None, engine), found)
        assert np.array_equal(found, table.fetch_rows(1, np.arange(50), None, "pread"))
        assert table.bundles.counts() == before
        table.engine(engine).close()
        assert short.fetch_keyed(*asked, np.empty_like(expected)) not in (DONE, FAILED)
        with pytest.raises(InvalidInput, match="closed"):
            table.fetch(asked, None, engine)


@ENGINES
def test_a_damaged_index_gives_no_other_rows(engine: str, made: Made, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made.path, tmp_path / "copy"))
    index = copy / "bundles" / "index.safetensors"
    data, rng = index.read_bytes(), np.random.default_rng(0)
    for _ in range(20):
        changed = bytearray(data)
        for place in rng.integers(4096, len(data), 30).tolist():
            changed[place] ^= 1 << int(rng.integers(8))
        index.write_bytes(changed)
        with made.open(copy) as table:
            short = short_of(table, engine)
            for start in range(0, 40, 10):
                asked, expected = made.some(slice(start, start + 10))
                out = np.full_like(expected, 1)
                assert short.fetch_keyed(*asked, out) == DONE
                assert np.array_equal(out, expected)


@ENGINES
def test_a_read_that_fails_is_named(engine: str, made: Made, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made.path, tmp_path / "copy"))
    with made.open(copy) as table:
        short = short_of(table, engine)
        asked, expected = made.some(range(10))
        for file in (copy / "bundles").glob("layer-*/*"):
            os.truncate(file, 4096)
        before = table.bundles.counts()
        assert short.fetch_keyed(*asked, np.empty_like(expected)) == FAILED
        assert table.bundles.counts() == before
        for _ in range(2):
            with pytest.raises(IncompleteTable, match=r"order-\d\.safetensors"):
                table.fetch(asked, None, engine)
        # Rows themselves are whole.
        assert np.array_equal(table.fetch(Addresses(asked.rows, asked.keys[:0]), None, engine), expected)


@ENGINES
def test_many_threads_and_a_child_of_fork(engine: str, made: Made) -> None:
    with made.open() as table:
        short_of(table, engine)
        before = table.bundles.counts()

        def fetch(k: int) -> bool:
            asked, expected = made.some(slice(k % 30, k % 30 + 5))
            return np.array_equal(table.fetch(asked, None, engine), expected)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(fetch, range(300)))
        n_keys = made.addresses.keys[:5].size
        assert table.bundles.counts().n_lookups - before.n_lookups == 300 * n_keys
        child = os.fork()
        if child == 0:
            is_equal = False
            try:
                is_equal = fetch(3) and fetch(4)
            finally:
                os._exit(0 if is_equal else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert fetch(5)
