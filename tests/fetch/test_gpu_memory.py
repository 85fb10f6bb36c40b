"""Blocks of records lie where their layout says, and host memory is registered in chunks and given back."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_table import apart, make_files, one_part
from small_tables import small_spec

from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from engram_tables.fetch.gpu.host_device import HostDevice
from engram_tables.fetch.gpu.host_memory import Chunk, HostMemory, Registered, chunks
from engram_tables.fetch.gpu.position_kernels import place_rows
from engram_tables.fetch.gpu.records import HostRecords, Layout, fill
from engram_tables.fetch.reference import read_rows
from engram_tables.memory import HUGE_PAGE_BYTES
from engram_tables.storage.codecs.codec import get_codec

ANY_SIZE = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    ranges = []
    for _ in range(draw(st.integers(1, 3))):
        bounds = sorted(draw(st.sets(st.integers(0, 60), max_size=8)))
        ranges.append(tuple(zip(bounds[::2], bounds[1::2], strict=False)))
    return Layout(
        name="made", layer_ids=tuple(range(len(ranges))), ranges=tuple(ranges), n_columns=draw(st.integers(1, 4)),
        row_bytes=draw(st.sampled_from([1, 16, 264])), codec=None,
    )  # fmt: skip


@given(layout=layouts(), data=st.data())
@settings(deadline=None)
def test_positions_are_those_of_the_slow_twin(layout: Layout, data: st.DataObject) -> None:
    order = [
        (layer, row)
        for layer, ranges in enumerate(layout.ranges)
        for start, stop in ranges
        for row in range(start, stop)
    ]
    shape = data.draw(st.integers(0, 4)), len(layout.layer_ids), layout.n_columns
    size = int(np.prod(shape))
    rows = np.array(data.draw(st.lists(st.integers(-2, 62), min_size=size, max_size=size)), np.int64).reshape(shape)
    if order and data.draw(st.booleans()):
        for layer in range(shape[1]):
            here = [row for of_layer, row in order if of_layer == layer] or [0]
            rows[:, layer] = np.resize(here, rows[:, layer].shape)
    found = np.zeros((shape[1], shape[0], shape[2]), np.int64)
    bad = int(place_rows(rows, layout._arrays, found))
    twin = [(layer, int(rows[t, layer, c])) for t, layer, c in np.ndindex(shape)]
    missing = [k for k, row in enumerate(twin) if row not in order]
    assert bad == (missing[0] if missing else -1)
    assert layout.n_rows == len(order)
    if not missing:
        positions = np.array([order.index(row) for row in twin], np.int64).reshape(shape)
        assert np.array_equal(found, positions.transpose(1, 0, 2))
        assert [layout.position_of(*row) for row in order] == list(range(len(order)))
    else:
        with pytest.raises(InvalidInput, match=f"found row {twin[missing[0]][1]} at position"):
            layout.check(rows)


@given(data=st.data())
@ANY_SIZE
def test_a_block_is_filled_with_the_bytes_of_the_slow_twin(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["packed", "page", "aligned-512", "parts"]))
    row_bytes = data.draw(st.sampled_from([1, 8, 264, 1365]))
    parts = one_part(name, row_bytes) if name != "parts" else apart(256, 8, spare=data.draw(st.sampled_from([0, 3])))
    cuts = []
    n_rows = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=2))
    for n in n_rows:
        bounds = sorted({0, n, *data.draw(st.sets(st.integers(0, n), max_size=2))})
        kept = [(a, b - a) for a, b in pairwise(bounds)]
        if len(kept) > 1 and data.draw(st.booleans()):
            kept.pop(data.draw(st.integers(0, len(kept) - 1)))
        cuts.append([kept] * len(parts))
    with make_files(tmp_path_factory.mktemp("t"), n_rows=n_rows, parts=parts, cuts=cuts) as table:
        records = HostRecords.of_stored(table.stored, threads=data.draw(st.sampled_from([1, 3])))
        layout = records.layout
        assert records.array.shape == (layout.n_rows, -(-table.row_bytes // 16) * 16)
        for span in layout.spans:
            rows = np.arange(span.start, span.stop)
            found = records.array[span.first_position : span.first_position + rows.size, : table.row_bytes]
            assert np.array_equal(found, read_rows(table.stored, layout.layer_ids[span.layer], rows))
        # From the middle of a cell, as a piece may begin.
        span = layout.spans[0]
        start = data.draw(st.integers(span.start, span.stop - 1))
        piece = span._replace(start=start, first_position=7)
        some = np.zeros((span.stop - start, layout.stride_bytes), np.uint8)
        fill(table.stored, layout, some, (piece,), first_position=7)
        of_twin = read_rows(table.stored, layout.layer_ids[span.layer], np.arange(start, span.stop))
        assert np.array_equal(some[:, : table.row_bytes], of_twin)


def test_a_layout_of_columns_that_share_their_rows_holds_all() -> None:
    spec = small_spec(500, row_width=256)
    whole = Layout.of_spec(spec, get_codec("bf16"))
    shared = replace(spec, layers=tuple(replace(layer, offsets=(0, 0)) for layer in spec.layers))
    assert whole.of_columns(shared, [1]).ranges == (((0, 250),),) * 2
    assert whole.of_columns(spec, [1]).ranges == (((250, 500),),) * 2
    assert whole.of_columns(spec, [0, 1]).ranges == whole.ranges


# --- registered memory


@given(n_pages=st.integers(0, 50), chunk_bytes=st.integers(1, 20 * HUGE_PAGE_BYTES))
def test_chunks_cover_a_block_in_whole_huge_pages(n_pages: int, chunk_bytes: int) -> None:
    found = chunks(n_pages * HUGE_PAGE_BYTES, chunk_bytes)
    assert [byte for chunk in found for byte in (chunk.start, chunk.start + chunk.n_bytes)][1:-1:2] == [
        chunk.start for chunk in found[1:]
    ]
    assert sum(chunk.n_bytes for chunk in found) == n_pages * HUGE_PAGE_BYTES
    for chunk in found:
        assert chunk.start % HUGE_PAGE_BYTES == 0
        assert 0 < chunk.n_bytes <= max(chunk_bytes, HUGE_PAGE_BYTES)


def test_half_a_terabyte_is_registered_in_chunks_of_64_gib() -> None:
    found = chunks(200 << 30)
    assert found == (
        Chunk(0, 64 << 30), Chunk(64 << 30, 64 << 30), Chunk(128 << 30, 64 << 30), Chunk(192 << 30, 8 << 30)
    )  # fmt: skip


def test_memory_is_registered_chunk_by_chunk_and_given_back_from_the_end() -> None:
    given_back: list[int] = []

    class Noting(HostDevice):
        def unregister(self, address: int) -> None:
            super().unregister(address)
            given_back.append(address)

    device = Noting()
    memory = HostMemory(5 * HUGE_PAGE_BYTES - 1)
    assert memory.address % HUGE_PAGE_BYTES == 0
    assert not memory.bytes.any()
    registered = Registered(memory, device, chunk_bytes=2 * HUGE_PAGE_BYTES)
    starts = [memory.address + k * HUGE_PAGE_BYTES for k in (0, 2, 4)]
    assert device.registered == dict(zip(starts, (2 * HUGE_PAGE_BYTES,) * 2 + (HUGE_PAGE_BYTES,), strict=True))
    registered.close()
    registered.close()
    assert given_back == starts[::-1]


def test_chunks_that_a_device_sees_apart_are_refused() -> None:
    class Apart(HostDevice):
        def register(self, address: int, n_bytes: int) -> int:
            return super().register(address, n_bytes) + 4096 * len(self.registered)

    device = Apart()
    with pytest.raises(BackendUnavailable, match="right after the chunk before it"):
        Registered(HostMemory(2 * HUGE_PAGE_BYTES), device, chunk_bytes=HUGE_PAGE_BYTES)
    assert not device.registered


def test_a_refused_chunk_gives_back_those_before_it() -> None:
    device = HostDevice(lockable_bytes=3 * HUGE_PAGE_BYTES)
    with pytest.raises(BackendUnavailable, match=r"bytes 6,291,456 to 8,388,608 of 10,485,760"):
        Registered(HostMemory(5 * HUGE_PAGE_BYTES), device, chunk_bytes=HUGE_PAGE_BYTES)
    assert not device.registered


def test_more_host_memory_than_there_is_is_refused() -> None:
    with pytest.raises(CapacityError, match="host memory: found"):
        HostMemory(1 << 50)


def test_touching_keeps_what_is_there() -> None:
    memory = HostMemory(3 * HUGE_PAGE_BYTES)
    memory.bytes[::4096] = 7
    memory.touch(2)
    assert (memory.bytes[::4096] == 7).all()
    assert memory.bytes.sum(dtype=np.int64) == 7 * (3 * HUGE_PAGE_BYTES // 4096)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MADV_DONTFORK is Linux's")
def test_a_forked_child_has_no_registered_memory_and_no_device() -> None:
    program = """
import os, signal
from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.gpu.host_device import HostDevice
from engram_tables.fetch.gpu.host_memory import HostMemory
memory, device = HostMemory(4096), HostDevice()
memory.bytes[0] = 1
if (child := os.fork()) == 0:
    try:
        with device.active():
            os._exit(1)
    except BackendUnavailable:
        pass
    memory.bytes[0] = 2
    os._exit(2)
_, status = os.waitpid(child, 0)
assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV, status
assert memory.bytes[0] == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True)
