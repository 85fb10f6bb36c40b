"""The kernels' very sources, compiled for this machine's processor and run on NumPy arrays, every access checked."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables.fetch.gpu.programs import Program, source_text

COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
# As NVRTC is told: no fused operations, and none that assume that there is no NaN, no infinity, no -0.
OPTIONS = (
    "-std=c++17",
    "-O0",
    "-w",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-strict-aliasing",
)
KERNELS = {
    "moving.cu": ("gather", "scatter"),
    "decoding.cu": ("decode_float32", "decode_bfloat16"),
    "gates.cu": ("gate_release", "gate_paper", "inverse_norms", "convolve"),
}


class _Launch(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.c_uint),
        ("threads", ctypes.c_uint),
        ("seed", ctypes.c_uint64),
        ("ranges", ctypes.c_void_p),
        ("n_ranges", ctypes.c_uint64),
    )


class ProcessorLauncher:
    """A `Launcher` whose device is this process: arrays are NumPy's, and only those that were `shown` may be used."""

    def __init__(self, folder: Path, *, seed: int = 1, multiprocessors: int = 3) -> None:
        self.seed, self.multiprocessors = seed, multiprocessors
        self.launches: list[tuple[str, int]] = []
        self._folder = folder
        self._libraries: dict[Program, ctypes.CDLL] = {}
        self._ranges: list[tuple[int, int, int]] = []

    @contextmanager
    def shown(self, *, read: Sequence[Any] = (), written: Sequence[Any] = ()) -> Iterator[None]:
        """Let kernels read the memory of some arrays and write that of others."""
        self._ranges = [(each.ctypes.data, each.ctypes.data + _span(each), 0) for each in read]
        self._ranges += [(each.ctypes.data, each.ctypes.data + _span(each), 1) for each in written]
        try:
            yield
        finally:
            self._ranges = []

    def address_of(self, array: Any) -> int:
        """See `Launcher`."""
        return int(array.ctypes.data)

    def prepare(self, program: Program) -> None:
        """See `Launcher`."""
        if program not in self._libraries:
            self._libraries[program] = ctypes.CDLL(str(compile_for_processor(program, self._folder)))

    def use(self, program: Program, library: Path) -> None:
        """Take `library` for `program`."""
        self._libraries[program] = ctypes.CDLL(str(library))

    def launch(
        self, program: Program, kernel: str, *, blocks: int, arguments: Sequence[np.generic], stream: Any
    ) -> None:
        """See `Launcher`; raises `AssertionError` where a thread does what a device would not survive."""
        assert stream is None
        self.prepare(program)
        self.launches.append((kernel, blocks))
        held = [np.array(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(held))(*(each.ctypes.data for each in held))
        ranges = np.array(self._ranges, np.uint64).reshape(-1, 3)
        function = getattr(self._libraries[program], f"launch_{kernel}")
        function.restype = ctypes.c_char_p
        launch = _Launch(blocks, program.threads, self.seed, ranges.ctypes.data, len(ranges))
        message = function(ctypes.byref(launch), pointers)
        assert message is None, f"{kernel}: {message.decode()}"


def compile_for_processor(program: Program, folder: Path, *, source: str | None = None) -> Path:
    """A shared library of the program's kernels; `source` in place of the program's own file."""
    assert COMPILER is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("machine.cuh", "numbers.cuh", "codecs.cuh"):
        (folder / name).write_text(source_text(name))
    text = source_text(program.file) if source is None else source
    entries = "".join(f"LAUNCHABLE({kernel})\n" for kernel in KERNELS[program.file])
    stem = f"{program.file.split('.')[0]}-{abs(hash((program, source))):016x}"
    unit, library = folder / f"{stem}.cpp", folder / f"{stem}.so"
    shim = Path(__file__).with_name("processor.hpp")
    unit.write_text(f'#include "{shim}"\n{program.definitions}namespace {{\n{text}\n}}\n{entries}')
    done = subprocess.run(
        [COMPILER, *OPTIONS, f"-I{folder}", "-o", library, unit], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return library


def _span(array: Any) -> int:
    """Bytes from an array's first element to the end of its last."""
    if array.size == 0:
        return 0
    return sum((n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)) + array.itemsize
