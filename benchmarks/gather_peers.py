"""What warm fetches are held against: a loop in C, compiled here, and EngramDB; and one file of rows that all read."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.storage.extents import Extent, Part
from engram_tables.storage.row_files import RowFile, RowFiles

ROW_BYTES = 264
LAYERS, COLUMNS = 2, 8
_SOURCE = Path(__file__).with_name("gather.c")
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")

CGather = Callable[[int, int, int, int, int], None]
"""(address of row 0, address of the row ids, start, stop, address of the output)"""


class RawRows(RowFiles):
    """Rows of all layers in one file without a header, layer after layer; EngramDB takes the same file for one shard
    of a store."""

    def __init__(self, path: Path, n_rows: int) -> None:
        super().__init__()
        layers = tuple(
            LayerAddressing(
                layer_id=k, multipliers=(1, 3), moduli=((n_rows,) * COLUMNS,), offsets=(0,) * COLUMNS, n_rows=n_rows
            )
            for k in range(LAYERS)
        )
        self.path, self.row_bytes = path, ROW_BYTES
        self.spec = AddressSpec(
            name="gather-benchmark", provenance="benchmarks/gather.py", canonical_size=1 << 20,
            history=HistoryRule(fill_id=0), orders=(2,), layers=layers, row_width=ROW_BYTES - 8,
        )  # fmt: skip
        self.parts = (Part(name="records", start=0, n_bytes=ROW_BYTES, cell_rows=1, cell_bytes=ROW_BYTES),)
        self.files = [RowFile(path=path, file_bytes=path.stat().st_size, fd=os.open(path, os.O_RDONLY))]
        self.extents = tuple(
            Extent(file_idx=0, layer_id=k, part_idx=0, first_row=0, n_rows=n_rows, offset=k * n_rows * ROW_BYTES)
            for k in range(LAYERS)
        )

    def _close_files(self) -> None:
        while self.files:
            os.close(self.files.pop().fd)  # type: ignore[attr-defined]


def write_rows(path: Path, n_rows: int) -> None:
    """`n_rows` records, each with its own number in front, so that one from a wrong row is seen."""
    rng = np.random.default_rng(0)
    body = rng.integers(0, 256, (1 << 16, ROW_BYTES), np.uint8)
    with path.open("xb") as file:
        for start in range(0, n_rows, len(body)):
            part = body[: n_rows - start]
            part[:, :8] = np.arange(start, start + len(part)).view(np.uint8).reshape(-1, 8)
            file.write(part.tobytes())


def compile_c(scratch: Path) -> tuple[CGather, str] | str:
    """The loop in C and the command that compiled it; or why there is none."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        return "no C compiler on this machine (cc, gcc, clang)"
    command = [compiler, *_FLAGS, f"-DROW_BYTES={ROW_BYTES}", "-o", str(scratch / "gather.so"), str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{compiler} ended with {done.returncode}: {done.stderr.strip()[:200]}"
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    gather = ctypes.CDLL(str(scratch / "gather.so")).gather
    gather.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    gather.restype = None
    return gather, " ".join([*(version[:1] or [compiler]), *_FLAGS])


def open_engramdb(directory: Path, n_rows: int) -> Callable[[Any], bytes] | str:
    """EngramDB's fetch of the file `shard_000.bin`; or why there is none."""
    try:
        module = importlib.import_module("engramdb")
    except ImportError as error:
        return f"engramdb-python is not installed ({error})"
    fetch: Callable[[Any], bytes] = module.Store(str(directory), 1, n_rows, ROW_BYTES).fetch
    return fetch


def flat_rows(rows: NDArray[np.int64], n_rows: int) -> NDArray[np.int64]:
    """Positions in the file of row ids (tokens, layers, columns)."""
    return (rows + np.arange(LAYERS)[:, None] * n_rows).reshape(-1)
