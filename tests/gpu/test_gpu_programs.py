"""Every kernel compiles for every architecture, without a driver; and as it is told to."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.fetch.gpu import programs
from engram_tables.fetch.gpu.programs import (
    Program,
    compile_program,
    decoding_program,
    gates_program,
    moving_program,
    padded_stride,
    source_text,
)
from engram_tables.storage.codecs.codec import CODEC_NAMES, Codec, get_codec

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
NAMES_IN = {
    "moving.cu": (b"gather", b"scatter"),
    "decoding.cu": (b"decode_float32", b"decode_bfloat16"),
    "gates.cu": (b"gate_release", b"gate_paper", b"inverse_norms", b"convolve"),
}


def codec_of(name: str) -> Codec:
    return get_codec(name, scale_bits=0x3F800000 if name == "fp8-e4m3-scalar" else None)


def decoder(name: str, row_width: int, load_bytes: int = 16) -> Program:
    row_bytes = codec_of(name).row_bytes(row_width)
    stride_bytes = padded_stride(row_bytes) if load_bytes == 16 else row_bytes
    return decoding_program(codec_of(name), row_bytes=row_bytes, stride_bytes=stride_bytes, load_bytes=load_bytes)


def require_nvrtc() -> None:
    try:
        programs._nvrtc()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(k, marks=() if k == 120 else pytest.mark.slow) for k in ARCHITECTURES],
)
def test_every_kernel_compiles_for_every_architecture(architecture: int) -> None:
    require_nvrtc()
    # A short row is compiled faster, and by the same lines.
    all_programs = [
        moving_program(row_bytes=264, stride_bytes=272),
        gates_program(bfloat16=False),
        gates_program(bfloat16=True),
        *(decoder(name, 32) for name in CODEC_NAMES),
    ]
    with ThreadPoolExecutor(2) as threads:
        compiled = list(threads.map(lambda program: compile_program(program, architecture), all_programs))
    for program, code in zip(all_programs, compiled, strict=True):
        assert code.startswith(b"\x7fELF"), program
        for name in NAMES_IN[program.file]:
            assert b".text." + name + b"\0" in code, (program, name)


@pytest.mark.parametrize(
    "program",
    [
        decoder("fp8-e4m3-e8m0", 256),
        decoder("fp8-e4m3-e8m0", 256, load_bytes=8),
        decoder("int8-row", 161, load_bytes=1),
        decoder("f32", 16384),
        moving_program(row_bytes=1, stride_bytes=16),
        moving_program(row_bytes=100_000, stride_bytes=100_352),
    ],
    ids=["release", "packed", "odd", "not-staged", "one-byte", "long"],
)
def test_other_shapes_compile(program: Program) -> None:
    require_nvrtc()
    assert compile_program(program, 90).startswith(b"\x7fELF")


def test_a_device_newer_than_the_compiler_gets_text_for_its_driver_and_nothing_in_it_is_fused() -> None:
    require_nvrtc()
    newest = max(programs._nvrtc().getSupportedArchs())
    for program in (gates_program(bfloat16=True), decoder("int4-g32", 32)):
        text = compile_program(program, newest + 1)
        assert text.endswith(b"\0")
        assert f".target sm_{newest}".encode() in text
        for fused in (b"fma.", b"mad.f32", b".ftz", b".approx"):
            assert fused not in text, fused
        assert b"mul.f32" in text or b"mul.rn.f32" in text


def test_a_device_too_old_for_the_compiler_is_refused() -> None:
    require_nvrtc()
    with pytest.raises(BackendUnavailable, match=r"compute capability 2\.0, expected"):
        compile_program(moving_program(row_bytes=264, stride_bytes=272), 20)


def test_without_cupy_the_compiler_is_refused_with_what_to_install() -> None:
    check = (
        "import sys; sys.modules['cupy_backends'] = None\n"
        "from engram_tables.errors import BackendUnavailable\n"
        "from engram_tables.fetch.gpu.programs import compile_program, moving_program\n"
        "try: compile_program(moving_program(row_bytes=264, stride_bytes=272), 90)\n"
        "except BackendUnavailable as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert "found no usable NVRTC" in done.stdout
    assert "gpu-cuda12" in done.stdout


def test_sources_include_nothing_but_each_other() -> None:
    for name in ("machine.cuh", "numbers.cuh", "codecs.cuh", "moving.cu", "decoding.cu", "gates.cu"):
        included = {line.split('"')[1] for line in source_text(name).splitlines() if line.startswith("#include")}
        assert included <= set(programs._HEADERS)


def test_staging_fits_a_block_and_gives_way_to_long_rows() -> None:
    for row_bytes in (1, 16, 264, 272, 1024, 6000, 12288, 12289, 100_000):
        threads, rows_at_once = programs._stage_shape(row_bytes)
        assert threads in (32, 64, 128, 256)
        assert threads // 16 * rows_at_once * padded_stride(row_bytes) <= 48 * 1024
        assert (rows_at_once == 0) == (row_bytes > 12288)


def test_unusable_shapes_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"found a stride of 264, expected a multiple of 16 .* take 272"):
        moving_program(row_bytes=264, stride_bytes=264)
    with pytest.raises(InvalidInput, match="found a stride of 256"):
        moving_program(row_bytes=264, stride_bytes=256)
    codec = codec_of("fp8-e4m3-e8m0")
    for load_bytes, stride_bytes in ((16, 264), (3, 264), (32, 288), (8, 256)):
        with pytest.raises(InvalidInput, match=f"found loads of {load_bytes} at a stride of {stride_bytes}"):
            decoding_program(codec, row_bytes=264, stride_bytes=stride_bytes, load_bytes=load_bytes)
    with pytest.raises(InvalidInput, match="opaque-10: found a request to tell the width"):
        decoding_program(get_codec("opaque-10"), row_bytes=10, stride_bytes=16, load_bytes=16)
