"""The same kernels on a GPU, where there is one: the bits of the references again, through CuPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable
from engram_tables.fetch import fusing
from engram_tables.fetch.gpu.gates import GateKernels
from engram_tables.fetch.gpu.kernels import CudaLauncher, Kernels
from engram_tables.fetch.gpu.programs import padded_stride
from engram_tables.fetch.gpu.runtime import why_no_gpu
from engram_tables.storage.codecs.codec import CODEC_NAMES, get_codec

COPIED = {"f32", "f16", "bf16"}


@pytest.fixture(scope="module")
def cuda() -> CudaLauncher:
    try:
        return CudaLauncher()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cupy(cuda: CudaLauncher) -> Any:
    return pytest.importorskip("cupy")


def bits(values: NDArray) -> NDArray:
    if values.dtype == np.uint16:
        return np.where(np.isnan(fusing.bfloat16_values(values)), np.uint16(0x7FC0), values)
    return np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))


def test_without_a_gpu_the_launcher_says_why() -> None:
    if why_no_gpu() is None:
        assert CudaLauncher().multiprocessors > 0
    else:
        with pytest.raises(BackendUnavailable, match=r"^GPU.*: found .*, expected "):
            CudaLauncher()


@pytest.mark.parametrize("name", CODEC_NAMES)
@pytest.mark.parametrize("row_width", [32, 256, 1280])
def test_records_on_a_gpu(cuda: CudaLauncher, cupy: Any, name: str, row_width: int) -> None:
    codec = get_codec(name, scale_bits=0x39510000 if name == "fp8-e4m3-scalar" else None)
    row_bytes, rng = codec.row_bytes(row_width), np.random.default_rng(row_width)
    stride_bytes = padded_stride(row_bytes)
    memory = rng.integers(0, 256, (5003, stride_bytes), np.uint8)
    positions = rng.integers(-1, 5004, 20011)
    there = (positions >= 0) & (positions < 5003)
    kernels = Kernels(codec, row_bytes=row_bytes, stride_bytes=stride_bytes, launcher=cuda)
    kernels.prepare()
    on_device, at = cupy.asarray(memory), cupy.asarray(positions)
    records = cupy.full((20011, stride_bytes), 0xAA, cupy.uint8)
    refused = cupy.zeros(1, cupy.uint32)
    kernels.gather(on_device.data.ptr, at, records, n_rows=5003, refused=refused)
    assert int(refused[0]) == (positions == 5003).sum()
    gathered = records.get()
    assert np.array_equal(gathered[there], memory[positions[there]])
    assert (gathered[~there] == 0xAA).all()
    expected = codec.decode(np.ascontiguousarray(memory[positions[there], :row_bytes]))
    packed = cupy.asarray(np.ascontiguousarray(memory[:, :row_bytes]))
    for dtype in (np.float32, np.uint16):
        out, whole = cupy.zeros((20011, row_width), dtype), cupy.zeros((5003, row_width), dtype)
        kernels.gather_decode(on_device.data.ptr, at, out, n_rows=5003)
        kernels.decode(packed, whole)
        wanted = expected if dtype == np.float32 else fusing.bfloat16_bits(expected)
        found = out.get()
        assert np.array_equal(bits(found[there]), bits(wanted))
        assert (found[~there] == 0).all()
        assert np.array_equal(bits(whole.get()[positions[there]]), bits(wanted))


@pytest.mark.parametrize("rule", ["fuse_release", "fuse_paper"])
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(257, 4, 5120), (33, 2, 300), (1, 1, 1)])
def test_gates_on_a_gpu(cuda: CudaLauncher, cupy: Any, rule: str, bfloat16: bool, shape: tuple[int, int, int]) -> None:
    n_tokens, n_branches, width = shape
    rng = np.random.default_rng(width)
    drawn = rng.standard_normal((n_tokens, (2 * n_branches + 1) * width)).astype(np.float32)
    values = fusing.bfloat16_bits(drawn) if bfloat16 else drawn
    hidden = np.ascontiguousarray(values[:, : n_branches * width]).reshape(shape)
    projected = np.ascontiguousarray(values[:, n_branches * width :])
    weights = rng.standard_normal((2, n_branches, width)).astype(np.float32)
    dead = rng.random(n_tokens) < 0.1
    key, value = projected[:, : n_branches * width].reshape(shape), projected[:, n_branches * width :]
    expected, expected_gates = getattr(fusing, rule)(hidden, key, value, *weights, eps=1e-6, dead=dead)
    on_device = cupy.asarray(projected)
    strides = (on_device.strides[0], width * values.itemsize, values.itemsize)
    keys = cupy.lib.stride_tricks.as_strided(on_device, shape, strides)
    out, gates = cupy.empty(shape, values.dtype), cupy.empty((n_tokens, n_branches), np.float32)
    kernels = GateKernels(n_branches=n_branches, width=width, launcher=cuda)
    getattr(kernels, rule)(
        cupy.asarray(hidden), keys, on_device[:, n_branches * width :], *map(cupy.asarray, weights), out, eps=1e-6,
        gates=gates, dead=cupy.asarray(dead),
    )  # fmt: skip
    assert np.array_equal(bits(out.get()), bits(expected))
    assert np.array_equal(bits(gates.get()), bits(expected_gates))


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_the_convolution_on_a_gpu(cuda: CudaLauncher, cupy: Any, bfloat16: bool) -> None:
    rng = np.random.default_rng(1)
    drawn = rng.standard_normal((50, 4, 1024)).astype(np.float32)
    values = fusing.bfloat16_bits(drawn) if bfloat16 else drawn
    norm, taps = rng.standard_normal((4, 1024)).astype(np.float32), rng.standard_normal((4, 1024, 4)).astype(np.float32)
    out, inverse = cupy.empty((41, 4, 1024), values.dtype), cupy.empty((50, 4), np.float32)
    kernels = GateKernels(n_branches=4, width=1024, launcher=cuda)
    on_device = [cupy.asarray(each) for each in (values, norm, taps)]
    kernels.short_convolution(*on_device, inverse, out, dilation=3, n_history=9)
    expected = fusing.short_convolution(values, norm, taps, dilation=3, n_history=9)
    assert np.array_equal(bits(out.get()), bits(expected))
