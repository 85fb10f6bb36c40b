"""The kernels' sources with what is fixed before they are compiled, and their compilation by NVRTC.

It needs no driver and no device: NVRTC compiles for any architecture that it knows. It launches nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.storage.codecs.codec import Codec

# Each operation of a source is one of IEEE 754: nothing fused, nothing flushed, no approximate division or root.
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
ALIGNMENT_BYTES = 16
_HEADERS = ("machine.cuh", "numbers.cuh", "codecs.cuh")
_THREADS = 256
_LANES = 16
# Of the 48 KiB that a block may have without asking: several blocks share a multiprocessor.
_STAGE_BYTES_OF_BLOCK = 24 * 1024
_MOST_ROWS_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One source file and its constants.

    Attributes
    ----------
    file
        Its name among the sources.
    constants
        Names and values, as the preprocessor takes them.
    threads
        Threads of a block, which every kernel in it expects.
    rows_of_block
        Rows that a block handles at a time; 0 where that is not what it handles.
    """

    file: str
    constants: tuple[tuple[str, str], ...]
    threads: int
    rows_of_block: int = 0

    @property
    def definitions(self) -> str:
        """The constants as preprocessor lines, to stand before the source."""
        return "".join(f"#define {name} {value}\n" for name, value in self.constants)


def source_text(name: str) -> str:
    """A source file of this package."""
    return (files(__package__) / "sources" / name).read_text(encoding="utf-8")


def moving_program(*, row_bytes: int, stride_bytes: int) -> Program:
    """`gather` and `scatter` of records of `row_bytes` that lie `stride_bytes` apart.

    Raises
    ------
    InvalidInput
        The stride is no multiple of 16 or shorter than a row.
    """
    if stride_bytes % ALIGNMENT_BYTES or stride_bytes < row_bytes or row_bytes < 1:
        raise InvalidInput(
            f"records of {row_bytes} bytes: found a stride of {stride_bytes}, expected a multiple of "
            f"{ALIGNMENT_BYTES} that is not less; take {padded_stride(row_bytes)}"
        )
    constants = {"ROW_BYTES": row_bytes, "STRIDE_BYTES": stride_bytes, "ROWS_AT_ONCE": _MOST_ROWS_AT_ONCE}
    rows_of_block = _THREADS // _LANES * _MOST_ROWS_AT_ONCE
    return Program(file="moving.cu", constants=_texts(constants), threads=_THREADS, rows_of_block=rows_of_block)


def decoding_program(codec: Codec, *, row_bytes: int, stride_bytes: int, load_bytes: int) -> Program:
    """`decode_float32` and `decode_bfloat16` of records that lie `stride_bytes` apart, read `load_bytes` at a time.

    Raises
    ------
    InvalidInput
        `opaque-N`; or records of a length that the codec does not have.
    """
    row_width = codec.row_width(row_bytes)
    if load_bytes not in (1, 2, 4, 8, 16) or stride_bytes % load_bytes or stride_bytes < row_bytes:
        raise InvalidInput(
            f"records of {row_bytes} bytes: found loads of {load_bytes} at a stride of {stride_bytes}, expected a "
            "power of two up to 16 that divides a stride not less than a record; take a smaller load or a larger stride"
        )
    threads, rows_at_once = _stage_shape(row_bytes)
    constants = {
        "CODEC": codec.name.replace("-", "_"),
        "ROW_WIDTH": row_width,
        "ROW_BYTES": row_bytes,
        "STRIDE_BYTES": stride_bytes,
        "LOAD_BYTES": load_bytes,
        "THREADS": threads,
        "ROWS_AT_ONCE": max(rows_at_once, 1),
        "STAGED": int(rows_at_once > 0),
    }
    rows_of_block = threads // _LANES * max(rows_at_once, 1)
    return Program(file="decoding.cu", constants=_texts(constants), threads=threads, rows_of_block=rows_of_block)


def gates_program(*, bfloat16: bool) -> Program:
    """The gates and the short convolution over float32 or bfloat16; one program for every width."""
    constants = {"THREADS": _THREADS, "ELEMENT": "Bfloat16" if bfloat16 else "Float32"}
    return Program(file="gates.cu", constants=_texts(constants), threads=_THREADS)


def padded_stride(row_bytes: int) -> int:
    """The least stride that records in memory read by `gather` can have: 272 for rows of 264 bytes."""
    return -(-row_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@cache
def compile_program(program: Program, architecture: int) -> bytes:
    """Machine code for compute capability `architecture` (90 is 9.0), kept for the process.

    Where NVRTC does not know a device so new, the newest virtual architecture below it: the driver does the rest.
    Costs 0.1 to 0.5 s.

    Raises
    ------
    BackendUnavailable
        No CuPy, no NVRTC, or an NVRTC that knows nothing for this device.
    """
    nvrtc = _nvrtc()
    target = _target(architecture, nvrtc.getSupportedArchs())
    handle = nvrtc.createProgram(
        program.definitions + source_text(program.file),
        program.file,
        [source_text(name).encode() for name in _HEADERS],
        [name.encode() for name in _HEADERS],
    )
    try:
        try:
            nvrtc.compileProgram(handle, [*OPTIONS, f"--gpu-architecture={target}"])
        except nvrtc.NVRTCError as error:
            raise AssertionError(f"{program} for {target}: {nvrtc.getProgramLog(handle)}") from error
        # A module is loaded from either; the text of a virtual architecture must end with a zero.
        if target.startswith("sm_"):
            return bytes(nvrtc.getCUBIN(handle))
        return bytes(nvrtc.getPTX(handle)).rstrip(b"\0") + b"\0"
    finally:
        nvrtc.destroyProgram(handle)


def _nvrtc() -> Any:
    try:
        nvrtc = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        raise BackendUnavailable(
            f"GPU kernels: found no usable NVRTC ({error}), expected CuPy 14 or later and NVIDIA's compiler library; "
            "install the extra gpu-cuda12 or gpu-cuda13"
        ) from error
    return nvrtc


def _target(architecture: int, known: tuple[int, ...]) -> str:
    if architecture in known:
        return f"sm_{architecture}"
    below = [each for each in known if each < architecture]
    if not below:
        raise BackendUnavailable(
            f"GPU kernels: found a device of compute capability {architecture / 10}, expected {min(known) / 10} or "
            "later; use an older NVRTC, or another device"
        )
    return f"compute_{max(below)}"


def _stage_shape(row_bytes: int) -> tuple[int, int]:
    """Threads of a block and rows that each worker stages at once; no rows where staging does not fit."""
    stage_bytes = padded_stride(row_bytes)
    threads, rows_at_once = _THREADS, _MOST_ROWS_AT_ONCE
    while threads // _LANES * rows_at_once * stage_bytes > _STAGE_BYTES_OF_BLOCK:
        if rows_at_once > 1:
            rows_at_once //= 2
        elif threads > 2 * _LANES:
            threads //= 2
        else:
            return _THREADS, 0
    return threads, rows_at_once


def _texts(constants: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in constants.items())
