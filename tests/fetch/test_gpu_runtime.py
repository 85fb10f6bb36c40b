"""Records reach a device's memory byte for byte, whichever way they take; on host memory as a device, and on a GPU."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_table import make_files, one_part
from numpy.typing import NDArray
from small_tables import lay_table, random_records, small_manifest, small_spec

from engram_tables.address.spec import Addresses
from engram_tables.errors import BackendUnavailable, CapacityError, IncompleteTable, InvalidInput, SpecMismatch
from engram_tables.fetch.gpu import runtime
from engram_tables.fetch.gpu.cache import CachedPath, last_claims, missed
from engram_tables.fetch.gpu.device import Device
from engram_tables.fetch.gpu.device_reader import DevicePath
from engram_tables.fetch.gpu.host_device import HostDevice, HostStream, bfloat16_bits
from engram_tables.fetch.gpu.paths import OUTPUTS, RECORDS, ResidentPath, Shape, StagedPath, ZeroCopyPath
from engram_tables.fetch.gpu.records import HostRecords, Layout, fill
from engram_tables.fetch.gpu.split import SplitPath, split_columns
from engram_tables.fetch.gpu.staging import PieceRing
from engram_tables.fetch.table import Table, open_table
from engram_tables.fetch.tiers.reference import ReferenceCache
from engram_tables.memory import HUGE_PAGE_BYTES

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = runtime.why_no_gpu()
WAYS = ("resident", "zero-copy", "staged", "cached", "split")
ANY_SIZE = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU)))])
def device(request: pytest.FixtureRequest) -> Any:
    return HostDevice() if request.param == "host" else runtime.cuda_device()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """Two layers of 500 fp8 rows of 264 bytes, two columns."""
    with open_table(laid(tmp_path_factory.mktemp("table"), codec="fp8-e4m3-e8m0", row_width=256, n_rows=500)) as opened:
        yield opened


def laid(path: Path, *, codec: str, row_width: int, n_rows: int) -> Path:
    spec = small_spec(n_rows, row_width=row_width)
    manifest = small_manifest(spec, codec=codec)
    return lay_table(path, manifest, random_records(manifest), shard_bytes=2**15)


def batch(table: Table, n_tokens: int, seed: int, *, hot: bool = False) -> Addresses:
    """Rows as the spec would give them: each column in its own range; `hot` ones are often the same."""
    rng = np.random.default_rng(seed)
    rows = np.empty((n_tokens, len(table.spec.layers), table.spec.n_columns), np.int64)
    for layer, of_layer in enumerate(table.spec.layers):
        moduli = [modulus for heads in of_layer.moduli for modulus in heads]
        for column, (offset, modulus) in enumerate(zip(of_layer.offsets, moduli, strict=True)):
            drawn = rng.zipf(1.3, n_tokens) if hot else rng.integers(0, modulus, n_tokens)
            rows[:, layer, column] = offset + drawn % modulus
    return Addresses(rows=rows, keys=np.zeros((*rows.shape[:2], 1), np.uint64))


def reader(way: str, table: Table, device: Device, shape: Shape) -> DevicePath:
    match way:
        case "resident":
            return ResidentPath(table, device, shape)
        case "zero-copy":
            return ZeroCopyPath(table, device, shape)
        case "staged":
            return StagedPath(table, device, shape)
        case "cached":
            return CachedPath(table, device, shape, budget_bytes=200 * 272)
    return SplitPath(table, [device, device if isinstance(device, runtime.CudaDevice) else HostDevice()], shape)


def on_host(array: Any) -> NDArray[Any]:
    """A copy, taken in the stream in which the array is used."""
    return np.array(array.get() if hasattr(array, "get") else array)


def expected(table: Table, addresses: Addresses, output: str) -> NDArray[Any]:
    """What the host's own reader and decoder give, as bits."""
    records = table.fetch(addresses)
    if output == RECORDS:
        return records
    values = table.decode(records)
    return values.view(np.uint32) if output == "float32" else bfloat16_bits(values)


def as_bits(found: NDArray[Any]) -> NDArray[Any]:
    return found.view(np.uint32) if found.dtype == np.float32 else found


def assert_same(table: Table, addresses: Addresses, output: str, found: Any) -> None:
    wanted, got = expected(table, addresses, output), as_bits(on_host(found))
    assert got.dtype == wanted.dtype
    if output != RECORDS:
        # A NaN that arithmetic makes has no promised payload across processors.
        mask, infinity = (0x7FFFFFFF, 0x7F800000) if output == "float32" else (0x7FFF, 0x7F80)
        is_nan = (wanted & mask) > infinity
        assert np.array_equal(is_nan, (got & mask) > infinity)
        wanted, got = np.where(is_nan, 0, wanted), np.where(is_nan, 0, got)
    assert np.array_equal(got, wanted)


# --- the ways


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_brings_the_same_bytes(way: str, output: str, table: Table, device: Any) -> None:
    shape = Shape(n_slots=3, max_tokens=4200, output=output)
    with reader(way, table, device, shape) as path:
        # 4,200 tokens: several staged pieces, and a launch for each layer.
        for n_tokens, slot in ((1, 0), (4200, 1), (0, 2), (17, 0), (2, 1)):
            addresses = batch(table, n_tokens, seed=n_tokens)
            arriving = path.begin(addresses, slot)
            assert_same(table, addresses, output, arriving.finish())
            if n_tokens:
                assert np.array_equal(as_bits(on_host(arriving.layer(1))), as_bits(on_host(arriving.finish()))[:, 1])


@pytest.mark.parametrize("way", WAYS)
def test_batches_under_way_at_once_keep_to_their_slots(way: str, table: Table, device: Any) -> None:
    with reader(way, table, device, Shape(n_slots=4, max_tokens=64)) as path:
        under_way: list[tuple[Addresses, Any]] = []
        for step in range(40):
            addresses = batch(table, 1 + step % 64, seed=step, hot=True)
            under_way.append((addresses, path.begin(addresses, step % 4)))
            if len(under_way) == 4:
                before, arriving = under_way.pop(0)
                assert_same(table, before, RECORDS, arriving.finish())


@pytest.mark.parametrize("way", WAYS)
def test_a_slot_waits_for_whoever_uses_it_and_its_user_for_the_records(way: str, table: Table) -> None:
    class WithConsumer(HostDevice):
        """The caller works in a stream of the device, as one does on a GPU."""

        def __init__(self) -> None:
            super().__init__()
            self.stream_of_caller = HostStream()

        def consumer(self) -> Any:
            return self.stream_of_caller

    device = WithConsumer()
    consumer = device.stream_of_caller
    first, second = batch(table, 40, seed=1), batch(table, 40, seed=2)
    seen: list[NDArray[Any]] = []
    with reader(way, table, device, Shape(n_slots=1, max_tokens=40)) as path:
        gate, late = threading.Event(), threading.Event()
        path.side.put(late.wait)
        array = path.begin(first, 0)
        # The side stream stands still: who does not wait for it sees other bytes.
        threading.Timer(0.05, late.set).start()
        records = array.finish()
        consumer.put(gate.wait)
        consumer.put(lambda: seen.append(np.array(records)))
        again = path.begin(second, 0)
        # The consumer stands still: what is written now, before it has looked, is seen by it.
        threading.Timer(0.05, gate.set).start()
        records_again = again.finish()
        consumer.put(lambda: seen.append(np.array(records_again)))
        consumer.synchronize()
    consumer.end()
    assert np.array_equal(seen[0], table.fetch(first))
    assert np.array_equal(seen[1], table.fetch(second))


@pytest.mark.parametrize("way", WAYS)
def test_refusals_leave_a_reader_usable(way: str, table: Table, device: Any) -> None:
    with reader(way, table, device, Shape(max_tokens=8)) as path:
        outside = batch(table, 3, seed=0)
        outside.rows[2, 1, 0] = 500
        with pytest.raises(InvalidInput, match="found row 500"):
            path.begin(outside, 0).finish()
        with pytest.raises(InvalidInput, match="found 9 tokens, expected 8"):
            path.begin(batch(table, 9, seed=0), 0)
        with pytest.raises(SpecMismatch, match=r"2 layers, 2 columns"):
            path.begin(Addresses(rows=np.zeros((3, 2, 5), np.int64), keys=outside.keys), 0)
        addresses = batch(table, 8, seed=1)
        assert_same(table, addresses, RECORDS, path.begin(addresses, 0).finish())
    with pytest.raises(InvalidInput, match="closed already"):
        path.begin(batch(table, 1, seed=0), 0)
    path.close()


@pytest.mark.parametrize("way", WAYS)
def test_closing_gives_back_registered_memory_and_threads(way: str, table: Table) -> None:
    device = HostDevice()
    path = reader(way, table, device, Shape(max_tokens=8))
    path.begin(batch(table, 8, seed=0), 0)
    assert device.registered
    path.close()
    assert not device.registered
    assert not [
        t for t in threading.enumerate() if t.name.startswith(("engram-host", "engram-staged", "engram-cached"))
    ]


@pytest.mark.parametrize("way", ["resident", "cached", "split"])
def test_too_little_device_memory_is_refused_and_nothing_stays_registered(way: str, table: Table) -> None:
    device = HostDevice(memory_bytes=40_000)
    with pytest.raises(CapacityError, match="free, expected"):
        reader(way, table, device, Shape(max_tokens=8))
    assert not device.registered


def test_too_little_lockable_memory_is_refused_and_nothing_stays_registered(table: Table) -> None:
    device = HostDevice(lockable_bytes=HUGE_PAGE_BYTES)
    with pytest.raises(BackendUnavailable, match="refused"):
        ZeroCopyPath(table, device, Shape())
    assert not device.registered


@pytest.mark.parametrize("made", [ResidentPath, ZeroCopyPath, StagedPath])
def test_rows_that_no_disk_holds(made: Any, table: Table, device: Any) -> None:
    records = HostRecords(Layout.of_spec(table.spec, table.stored.codec))
    fill(table.stored, records.layout, records.array, records.layout.spans)
    with made(records, device, Shape(max_tokens=300)) as path:
        addresses = batch(table, 300, seed=3)
        assert_same(table, addresses, RECORDS, path.begin(addresses, 1).finish())


def test_results_leave_through_dlpack(table: Table, device: Any) -> None:
    with ResidentPath(table, device, Shape(max_tokens=5, output="float32")) as path:
        addresses = batch(table, 5, seed=0)
        array = path.begin(addresses, 0).finish()
        module = np if isinstance(array, np.ndarray) else runtime.require_cupy()
        taken = module.from_dlpack(array)
        assert taken.shape == (5, 2, 2, 256)
        assert_same(table, addresses, "float32", taken)


def test_what_reading_raises_comes_from_finish(tmp_path: Path) -> None:
    path = laid(tmp_path / "t", codec="bf16", row_width=32, n_rows=400)
    with open_table(path) as table, StagedPath(table, HostDevice(), Shape(max_tokens=50), engine="pread") as staged:
        addresses = batch(table, 50, seed=0)
        for file in table.stored.files:
            os.truncate(file.path, 100)
        with pytest.raises(IncompleteTable, match="cut after"):
            staged.begin(addresses, 0).finish()


def test_an_unknown_output_or_an_empty_reader_is_refused() -> None:
    with pytest.raises(InvalidInput, match="output 'float16'"):
        Shape(output="float16")
    with pytest.raises(InvalidInput, match="0 slots"):
        Shape(n_slots=0)


# --- the cache


def reference_hits(table: Table, budget_rows: int, batches: Sequence[Addresses]) -> tuple[int, int]:
    n_rows = [layer.n_rows for layer in table.spec.layers]
    cache = ReferenceCache(n_sets=budget_rows // 16, n_rows=n_rows)
    found: list[bool] = []
    for addresses in batches:
        layers = np.broadcast_to(np.arange(2)[None, :, None], addresses.rows.shape).reshape(-1)
        wanted = zip(layers.tolist(), addresses.rows.reshape(-1).tolist(), strict=True)
        found += cache.fetch(wanted)
    return sum(found), len(found) - sum(found)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_cache_under_pressure_gives_the_same_bytes_and_follows_the_reference_policy(
    output: str, table: Table, device: Any
) -> None:
    batches = [batch(table, 1 + seed % 33, seed=seed, hot=True) for seed in range(60)]
    shape = Shape(n_slots=2, max_tokens=33, output=output)
    with CachedPath(table, device, shape, budget_bytes=64 * 272) as path:
        for nth, addresses in enumerate(batches):
            assert_same(table, addresses, output, path.begin(addresses, nth % 2).finish())
        counts = path.counts
    assert (counts.n_hits, counts.n_misses) == reference_hits(table, 64, batches)
    assert counts.n_hits > 0
    assert counts.n_thrown_out > 0


def test_hot_rows_are_there_from_the_start(table: Table, device: Any) -> None:
    addresses = batch(table, 30, seed=5)
    hot = [(layer_id, addresses.rows[:, k].reshape(-1)) for k, layer_id in enumerate(table.spec.layer_ids)]
    with CachedPath(table, device, Shape(max_tokens=30), budget_bytes=1 << 20, hot_rows=hot) as path:
        assert_same(table, addresses, RECORDS, path.begin(addresses, 0).finish())
        assert path.counts.n_misses == 0
        assert path.counts.n_hits == addresses.rows.size


def test_a_budget_without_room_for_one_set_is_refused(table: Table) -> None:
    with pytest.raises(CapacityError, match="0 sets"):
        CachedPath(table, HostDevice(), Shape(), budget_bytes=15 * 272)


@given(slots=st.lists(st.integers(-1, 5)))
def test_of_equal_claims_the_last_one_stands(slots: list[int]) -> None:
    plain = [-1 if slot in slots[k + 1 :] else slot for k, slot in enumerate(slots)]
    assert last_claims(np.array(slots, np.int64)).tolist() == plain


@given(data=st.data())
def test_what_is_missed_is_read_once(data: st.DataObject) -> None:
    n_tokens, n_layers, n_columns = (data.draw(st.integers(1, 4)) for _ in range(3))
    size = n_tokens * n_layers * n_columns
    rows = np.array(data.draw(st.lists(st.integers(0, 6), min_size=size, max_size=size)), np.int64)
    slots = np.array(data.draw(st.lists(st.integers(-1, 1), min_size=size, max_size=size)), np.int64)
    found = missed(rows.reshape(n_tokens, n_layers, n_columns), slots)
    to_read = [(layer, int(row)) for layer, of_layer in enumerate(found.rows) for row in of_layer]
    assert len(set(to_read)) == len(to_read) == found.n_records
    wanted = [(k, (k // n_columns % n_layers, int(rows[k]))) for k in range(size) if slots[k] < 0]
    assert [(int(k), to_read[r]) for k, r in zip(found.items, found.records, strict=True)] == wanted
    assert set(to_read) == {row for _, row in wanted}


# --- several devices


def test_devices_hold_their_own_columns_alone(table: Table) -> None:
    devices = [HostDevice(), HostDevice()]
    with SplitPath(table, devices, Shape(max_tokens=4), way=ZeroCopyPath) as path:
        assert [part.layout.n_rows for part in path.parts] == [500, 500]
        assert [part.layout.ranges for part in path.parts] == [(((0, 250),),) * 2, (((250, 500),),) * 2]
        addresses = batch(table, 4, seed=1)
        assert_same(table, addresses, RECORDS, path.begin(addresses, 1).finish())
    assert not any(device.registered for device in devices)


def test_the_first_device_waits_for_the_others(table: Table) -> None:
    gate = threading.Event()
    with SplitPath(table, [HostDevice(), HostDevice()], Shape(max_tokens=4)) as path:
        path.parts[1].side.put(gate.wait)
        threading.Timer(0.05, gate.set).start()
        addresses = batch(table, 4, seed=1)
        assert_same(table, addresses, RECORDS, path.begin(addresses, 0).finish())


@given(n_columns=st.integers(1, 40), data=st.data())
def test_columns_are_split_evenly(n_columns: int, data: st.DataObject) -> None:
    parts = split_columns(n_columns, data.draw(st.integers(1, n_columns)))
    assert [column for part in parts for column in part] == list(range(n_columns))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_devices_than_columns_are_refused(table: Table) -> None:
    with pytest.raises(InvalidInput, match="devices: found 3, expected 1 to 2"):
        SplitPath(table, [HostDevice()] * 3, Shape())


def test_a_piece_is_written_again_only_after_its_copy() -> None:
    device, gate = HostDevice(), threading.Event()
    stream, ring = device.stream(), PieceRing(100, device, 2)
    targets = device.empty((6, 100), np.uint8)
    stream.put(gate.wait)
    threading.Timer(0.05, gate.set).start()
    for k in range(6):
        with ring.next(100, stream) as piece:
            piece[:] = k
            device.upload(targets[k], piece, stream)
    device.end(stream)
    ring.close()
    assert (targets == np.arange(6)[:, None]).all()


# --- what is not there


@pytest.mark.skipif(NO_GPU is None, reason="there is a GPU")
def test_without_a_gpu_the_reason_is_named() -> None:
    with pytest.raises(BackendUnavailable, match=r"^GPU: found .*, expected .*; "):
        runtime.cuda_device()


def test_without_cupy_the_extra_is_named() -> None:
    program = """
import sys
sys.modules["cupy"] = None  # as if it were not installed
from engram_tables.fetch.gpu.runtime import why_no_gpu
print(why_no_gpu())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "found no usable CuPy" in done.stdout
    assert "gpu-cuda12" in done.stdout


def test_cupy_is_imported_in_one_place_and_not_with_the_package() -> None:
    importing = set()
    for path in (ROOT / "tables" / "engram_tables").rglob("*.py"):
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)) if "import cupy" in source or "from cupy" in source else ():
            if isinstance(node, ast.Import):
                importing |= {path.name for alias in node.names if alias.name.split(".")[0] == "cupy"}
            elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "cupy":
                importing.add(path.name)
    assert importing == {"runtime.py"}
    program = (
        "import sys, engram_tables.fetch.gpu.paths, engram_tables.fetch.gpu.runtime; assert 'cupy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- the device in host memory


def test_a_stream_raises_what_its_work_raised_and_does_no_more() -> None:
    device = HostDevice()
    stream, done = device.stream(), []

    def fail() -> None:
        raise InvalidInput("broken")

    stream.put(fail)
    stream.put(lambda: done.append(1))
    event = stream.record(device.event())
    with pytest.raises(InvalidInput, match="broken"):
        event.synchronize()
    device.end(stream)
    assert done == []


def test_copies_from_memory_that_is_not_registered_are_refused() -> None:
    device = HostDevice()
    stream = device.stream()
    with pytest.raises(BackendUnavailable, match="not registered"):
        device.upload(device.empty((8,), np.uint8), np.zeros(8, np.uint8), stream)
    device.end(stream)


def test_decoding_what_has_no_codec_is_refused(tmp_path: Path) -> None:
    with (
        make_files(tmp_path, n_rows=[4], parts=one_part("packed", 16), cuts=[[[(0, 4)]]]) as table,
        pytest.raises(InvalidInput, match="found no codec"),
    ):
        ResidentPath(table, HostDevice(), Shape(output="float32"))


@given(bits=st.integers(0, 2**32 - 1))
def test_bfloat16_is_the_nearer_half(bits: int) -> None:
    value = np.array([bits], np.uint32).view(np.float32)
    found = int(bfloat16_bits(value)[0])
    if np.isnan(value[0]):
        assert found & 0x7FFF > 0x7F80
        return
    low, high = bits & 0xFFFF, bits >> 16
    up = low > 0x8000 or (low == 0x8000 and high & 1)
    assert found == high + int(up)
