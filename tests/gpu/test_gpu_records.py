"""The record kernels' sources, run on the processor, against the plain-Python codecs: bit for bit."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from processor import ProcessorLauncher, compile_for_processor

from engram_tables.errors import InvalidInput
from engram_tables.fetch.fusing import bfloat16_bits
from engram_tables.fetch.gpu.kernels import Kernels
from engram_tables.fetch.gpu.programs import decoding_program, padded_stride, source_text
from engram_tables.memory import aligned_bytes
from engram_tables.storage.codecs import reference
from engram_tables.storage.codecs.codec import CODEC_NAMES, Codec, get_codec

QUIET_NAN = 0x7FC00000
# Codecs that widen codes and calculate nothing: a NaN keeps its payload.
COPIED = {"f32", "f16", "bf16"}
SCALE_BITS = 0x3951_0000
EDGE_HALVES = (0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01)
EDGE_BFLOATS = (0x0000, 0x8000, 0x0001, 0x007F, 0x0080, 0x3F80, 0xBF80, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0, 0x7F81)


def codec_of(name: str) -> Codec:
    return get_codec(name, scale_bits=SCALE_BITS if name == "fp8-e4m3-scalar" else None)


def aligned(shape: tuple[int, ...], dtype: type = np.uint8) -> NDArray:
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return aligned_bytes(n_bytes, 16).view(dtype).reshape(shape)


def expected_bits(codec: Codec, records: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """float32 bits by the plain-Python codec, NaN as the kernels promise them."""
    rows = [reference.decode_row(codec.name, record.tobytes(), scale=float(codec.scale)) for record in records]
    with np.errstate(over="ignore"):
        bits = np.array(rows, np.float64).astype(np.float32).view(np.uint32)
    found = codec.decode(records)
    if codec.name in COPIED:
        # Python's floats may lose a NaN's payload: the codec's own kernel is held to keep it.
        return found.view(np.uint32)
    return np.where(np.isnan(bits.view(np.float32)), np.uint32(QUIET_NAN), bits)


def decoded(launcher: ProcessorLauncher, codec: Codec, records: NDArray[np.uint8], dtype: type) -> NDArray:
    kernels = Kernels(
        codec, row_bytes=records.shape[1], stride_bytes=padded_stride(records.shape[1]), launcher=launcher
    )
    out = aligned((len(records), kernels.row_width), dtype)
    with launcher.shown(read=[records], written=[out]):
        kernels.decode(records, out)
    return out


def check_both_dtypes(launcher: ProcessorLauncher, codec: Codec, records: NDArray[np.uint8]) -> None:
    expected = expected_bits(codec, records)
    assert np.array_equal(decoded(launcher, codec, records, np.float32).view(np.uint32), expected)
    narrow = decoded(launcher, codec, records, np.uint16)
    if codec.name == "bf16":
        assert np.array_equal(narrow, records.view(np.uint16))
    else:
        assert np.array_equal(narrow, bfloat16_bits(expected.view(np.float32)))


def every_record(name: str) -> NDArray[np.uint8]:
    """Records of 32 values that together hold every code, beside every scale or the edges of scales."""
    codes = np.arange(256, dtype=np.uint8)
    match name:
        case "f32":
            edges = [0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0x7F800001]
            words = np.array([*edges, *(0x80000000 | edge for edge in edges), *([0x7FFFFFFF] * 12)], "<u4")
            return words.view(np.uint8).reshape(1, 128)
        case "f16" | "bf16":
            return np.arange(65536, dtype="<u2").view(np.uint8).reshape(-1, 64)
        case "fp8-e4m3-e8m0":
            rows = np.zeros((256, 8, 33), np.uint8)
            rows[:, :, :32], rows[:, :, 32] = codes.reshape(8, 32), codes[:, None]
            return rows.reshape(-1, 33)
        case "fp8-e4m3-scalar":
            return codes.reshape(8, 32)
        case "int8-row" | "q8_0":
            return scaled(codes.reshape(8, 32), EDGE_HALVES, scale_first=name == "q8_0")
        case "q4_0" | "iq4_nl":
            return scaled(codes.reshape(16, 16), EDGE_HALVES, scale_first=True)
    scales = [struct.pack("<HH", scale, bias) for scale in EDGE_BFLOATS for bias in EDGE_BFLOATS]
    return np.array(
        [list(nibbles.tobytes() + scale) for scale in scales for nibbles in codes.reshape(16, 16)[::5]], np.uint8
    )


def scaled(codes: NDArray[np.uint8], scales: tuple[int, ...], *, scale_first: bool) -> NDArray[np.uint8]:
    packed = [struct.pack("<H", scale) for scale in scales]
    rows = [(s + c.tobytes()) if scale_first else (c.tobytes() + s) for s in packed for c in codes]
    return np.array([list(row) for row in rows], np.uint8)


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_every_code_beside_every_edge_of_a_scale(launcher: ProcessorLauncher, name: str) -> None:
    check_both_dtypes(launcher, codec_of(name), every_record(name))


@pytest.mark.parametrize("name", CODEC_NAMES)
@given(data=st.data())
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes(launcher: ProcessorLauncher, name: str, data: st.DataObject) -> None:
    codec = codec_of(name)
    row_bytes = codec.row_bytes(32)
    n_rows = data.draw(st.integers(1, 40))
    drawn = data.draw(st.binary(min_size=row_bytes, max_size=row_bytes))
    rest = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, (n_rows - 1, row_bytes), np.uint8)
    check_both_dtypes(launcher, codec, np.concatenate([np.frombuffer(drawn, np.uint8)[None], rest]))


@pytest.mark.parametrize(
    ("name", "row_width", "start"),
    [
        ("fp8-e4m3-e8m0", 256, 0),
        ("fp8-e4m3-e8m0", 256, 1),
        ("int8-row", 161, 0),
        ("f32", 3, 4),
        ("f16", 12, 0),
        ("f32", 3076, 0),
        ("q8_0", 12288, 0),
    ],
)
def test_packed_records_of_other_shapes(launcher: ProcessorLauncher, name: str, row_width: int, start: int) -> None:
    codec = codec_of(name)
    row_bytes, n_rows = codec.row_bytes(row_width), 7
    block = aligned((start + n_rows * row_bytes,))
    block[:] = np.random.default_rng(row_width).integers(0, 256, block.shape)
    check_both_dtypes(launcher, codec, block[start:].reshape(n_rows, row_bytes))


class Memory:
    """Rows of V4.1 in memory that a device reads, their padding filled with something else."""

    def __init__(self, launcher: ProcessorLauncher, n_rows: int = 97) -> None:
        self.codec = codec_of("fp8-e4m3-e8m0")
        self.kernels = Kernels(self.codec, row_bytes=264, stride_bytes=272, launcher=launcher)
        self.rows = aligned((n_rows, 272))
        self.rows[:] = np.random.default_rng(5).integers(0, 256, self.rows.shape)
        self.address = self.rows.ctypes.data

    def values(self, positions: NDArray[np.int64]) -> NDArray[np.uint32]:
        return self.codec.decode(np.ascontiguousarray(self.rows[positions, :264])).view(np.uint32)


@pytest.mark.parametrize("n_items", [0, 1, 2, 15, 16, 17, 63, 64, 65, 251, 1009])
@pytest.mark.parametrize("blocks", [None, 1, 2])
def test_rows_are_gathered_and_decoded_at_any_number(
    launcher: ProcessorLauncher, n_items: int, blocks: int | None
) -> None:
    memory = Memory(launcher)
    positions = np.random.default_rng(n_items).integers(0, 97, n_items)
    positions[:1] = 96
    records, values = aligned((n_items, 272)), aligned((n_items, 256), np.float32)
    records[:], values[:] = 0xAA, 1.5
    before = len(launcher.launches)
    with launcher.shown(read=[memory.rows, positions], written=[records, values]):
        memory.kernels.gather(memory.address, positions, records, n_rows=97, blocks=blocks)
        memory.kernels.gather_decode(memory.address, positions, values, n_rows=97, blocks=blocks)
    assert np.array_equal(records, memory.rows[positions])
    assert np.array_equal(values.view(np.uint32), memory.values(positions))
    made = launcher.launches[before:]
    assert len(made) == (2 if n_items else 0)
    assert all(1 <= n_blocks <= (blocks or 12) for _, n_blocks in made)


def test_positions_left_out_and_positions_past_the_end_leave_rows_as_they_are(launcher: ProcessorLauncher) -> None:
    memory = Memory(launcher)
    positions = np.array([3, -1, 96, 97, -(2**63), 2**63 - 1, 0, 2**40], np.int64)
    kept = [0, 2, 6]
    left = [k for k in range(8) if k not in kept]
    records, values = aligned((8, 272)), aligned((8, 256), np.uint16)
    refused = np.array([7], np.uint32)
    records[:], values[:] = 0xAA, 0xBBBB
    with launcher.shown(read=[memory.rows, positions], written=[records, values, refused]):
        memory.kernels.gather(memory.address, positions, records, n_rows=97, refused=refused)
        assert refused[0] == 7 + 3
        memory.kernels.gather_decode(memory.address, positions, values, n_rows=97, refused=refused)
        assert refused[0] == 7 + 6
        memory.kernels.gather(memory.address, positions, records, n_rows=97)
    assert np.array_equal(records[kept], memory.rows[positions[kept]])
    assert (records[left] == 0xAA).all()
    assert (values[left] == 0xBBBB).all()
    assert np.array_equal(values[kept], (memory.values(positions[kept]) >> np.uint32(16)).astype(np.uint16))


def test_two_sources_fill_one_result(launcher: ProcessorLauncher) -> None:
    cached, staged = Memory(launcher, 31), Memory(launcher, 50)
    staged.rows[:] = np.roll(staged.rows, 1, axis=0)
    here = np.random.default_rng(2).random(200) < 0.4
    first = np.where(here, np.arange(200) % 31, -1)
    second = np.where(here, -1, np.arange(200) % 50)
    values = aligned((200, 256), np.float32)
    with launcher.shown(read=[cached.rows, staged.rows, first, second], written=[values]):
        cached.kernels.gather_decode(cached.address, first, values, n_rows=31)
        staged.kernels.gather_decode(staged.address, second, values, n_rows=50)
    assert np.array_equal(values[here].view(np.uint32), cached.values(first[here]))
    assert np.array_equal(values[~here].view(np.uint32), staged.values(second[~here]))


@pytest.mark.parametrize("row_bytes", [1, 10, 16, 160, 264, 2112, 5000])
def test_scattered_rows_are_gathered_again(launcher: ProcessorLauncher, row_bytes: int) -> None:
    stride_bytes = padded_stride(row_bytes) + 16 * (row_bytes == 160)
    codec = get_codec(f"opaque-{row_bytes}")
    kernels = Kernels(codec, row_bytes=row_bytes, stride_bytes=stride_bytes, launcher=launcher)
    rng = np.random.default_rng(row_bytes)
    memory, records, found = (aligned((n, stride_bytes)) for n in (83, 61, 61))
    records[:], memory[:], found[:] = rng.integers(0, 256, records.shape), 0xCC, 0xDD
    positions, refused = rng.permutation(83)[:61].astype(np.int64), np.zeros(1, np.uint32)
    positions[5:8] = -1, 83, 1000
    kept = (positions >= 0) & (positions < 83)
    with launcher.shown(read=[records, positions], written=[memory, found, refused]):
        kernels.scatter(records, positions, memory.ctypes.data, n_rows=83, refused=refused)
        kernels.gather(memory.ctypes.data, positions, found, n_rows=83)
    assert refused[0] == 2
    assert np.array_equal(found[kept, :row_bytes], records[kept, :row_bytes])
    untouched = np.setdiff1d(np.arange(83), positions[kept])
    assert (memory[untouched] == 0xCC).all()
    assert (found[~kept] == 0xDD).all()
    assert (memory[:, padded_stride(row_bytes) :] == 0xCC).all()


@pytest.mark.parametrize("seed", range(2, 6))
def test_the_order_of_threads_makes_no_difference(
    processor_folder: Path, launcher: ProcessorLauncher, seed: int
) -> None:
    other = ProcessorLauncher(processor_folder, seed=seed)
    other._libraries = launcher._libraries
    memory = Memory(other)
    positions = np.random.default_rng(seed).integers(0, 97, 500)
    values = aligned((500, 256), np.uint16)
    with other.shown(read=[memory.rows, positions], written=[values]):
        memory.kernels.gather_decode(memory.address, positions, values, n_rows=97, blocks=2)
    assert np.array_equal(values, (memory.values(positions) >> np.uint32(16)).astype(np.uint16))


@pytest.mark.parametrize(
    ("line", "instead", "complaint"),
    [
        ("        __syncwarp(worker.mask);\n#pragma unroll 1", "#pragma unroll 1", "wrong values"),
        (
            "        // The next rows go where these still stand for lanes that are behind.\n"
            "        __syncwarp(worker.mask);\n",
            "",
            "wrong values",
        ),
        ("at * LOAD_BYTES);", "at * LOAD_BYTES + 272);", "read out of bounds"),
        ("at * LOAD_BYTES);", "at * LOAD_BYTES + 8);", "access not aligned"),
        ("* ROW_WIDTH);", "* ROW_WIDTH + 4);", "write out of bounds"),
        ("#pragma unroll 1", "if (worker.lane == 3) return;\n#pragma unroll 1", "barrier that not all threads reach"),
    ],
)
def test_mistakes_in_a_kernel_are_seen(processor_folder: Path, line: str, instead: str, complaint: str) -> None:
    """What the tests here rest on: the processor notices what a device would."""
    text = source_text("decoding.cu")
    assert line in text
    program = decoding_program(codec_of("fp8-e4m3-e8m0"), row_bytes=264, stride_bytes=272, load_bytes=16)
    library = compile_for_processor(program, processor_folder, source=text.replace(line, instead, 1))
    complaints = set()
    for seed in range(1, 4):
        launcher = ProcessorLauncher(processor_folder, seed=seed)
        launcher.use(program, library)
        memory = Memory(launcher)
        positions = np.arange(700) % 97
        values = aligned((700, 256), np.float32)
        with launcher.shown(read=[memory.rows, positions], written=[values]):
            try:
                memory.kernels.gather_decode(memory.address, positions, values, n_rows=97, blocks=1)
            except AssertionError as error:
                complaints.add(str(error))
        if not np.array_equal(values.view(np.uint32), memory.values(positions)):
            complaints.add("wrong values")
    assert any(complaint in each for each in complaints), complaints


def test_unusable_arguments_are_refused(launcher: ProcessorLauncher) -> None:
    memory = Memory(launcher)
    kernels, positions, records = memory.kernels, np.zeros(3, np.int64), aligned((3, 272))
    values = aligned((3, 256), np.float32)
    before = len(launcher.launches)
    with pytest.raises(InvalidInput, match="expected a multiple of 16; allocate"):
        kernels.gather(memory.address + 8, positions, records, n_rows=97)
    with pytest.raises(InvalidInput, match=r"positions: found int32 \(3,\)"):
        kernels.gather(memory.address, positions.astype(np.int32), records, n_rows=97)
    with pytest.raises(InvalidInput, match="positions: found an array that is not in C order"):
        kernels.gather(memory.address, np.zeros(6, np.int64)[::2], records, n_rows=97)
    with pytest.raises(InvalidInput, match=r"records: found uint8 \(2, 272\), expected uint8 \(3, 272\)"):
        kernels.gather(memory.address, positions, records[:2], n_rows=97)
    with pytest.raises(InvalidInput, match=r"records: found address .*, expected a multiple of 16"):
        kernels.scatter(aligned((3 * 272 + 8,))[8:].reshape(3, 272), positions, memory.address, n_rows=97)
    with pytest.raises(InvalidInput, match="out: found float64"):
        kernels.gather_decode(memory.address, positions, np.zeros((3, 256)), n_rows=97)
    with pytest.raises(InvalidInput, match=r"records: found uint8 \(3, 263\), expected uint8 \(n, 264 or more\)"):
        kernels.decode(np.zeros((3, 263), np.uint8), values)
    with pytest.raises(InvalidInput, match="blocks: found 0"):
        kernels.gather(memory.address, positions, records, n_rows=97, blocks=0)
    with pytest.raises(InvalidInput, match="refused: found int64"):
        kernels.gather(memory.address, positions, records, n_rows=97, refused=np.zeros(1, np.int64))
    assert len(launcher.launches) == before


def test_rows_without_a_codec_are_moved_and_not_decoded(launcher: ProcessorLauncher) -> None:
    kernels = Kernels(get_codec("opaque-10"), row_bytes=10, stride_bytes=16, launcher=launcher)
    kernels.prepare()
    with pytest.raises(InvalidInput, match="opaque-10: found a request to tell the width of"):
        kernels.decode(np.zeros((1, 10), np.uint8), np.zeros((1, 10), np.float32))
    with pytest.raises(InvalidInput, match="opaque-10"):
        kernels.gather_decode(0, np.zeros(1, np.int64), np.zeros((1, 10), np.float32), n_rows=1)
