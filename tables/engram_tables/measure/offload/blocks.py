"""A file seen as rows of 4 KiB, so that an engine can show what the device gives it at each depth, rows apart.

It holds the engines' own reads against the ceilings that other programs find; whose rows the file holds it does not
know.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.engines.queued import QueueEngine
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.measure.ceilings import sweep_depths
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.extents import Extent, Part
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.units import PAGE_BYTES

_BATCH_BLOCKS = 4096


class BlockFiles(RowFiles):
    """One open file of `PAGE_BYTES` or more as a layer of blocks; the descriptor stays its owner's."""

    def __init__(self, file: RowFile) -> None:
        super().__init__()
        n_blocks = file.file_bytes // PAGE_BYTES
        if n_blocks < 2:
            raise BackendUnavailable(f"{file.path}: found {file.file_bytes} bytes, too few to measure its device by")
        layer = LayerAddressing(layer_id=0, multipliers=(1, 1), moduli=((n_blocks,),), offsets=(0,), n_rows=n_blocks)
        self.path = file.path
        self.spec = AddressSpec(
            name="blocks", provenance="a file's own blocks", canonical_size=2, history=HistoryRule(fill_id=0),
            orders=(2,), layers=(layer,),
        )  # fmt: skip
        self.codec = get_codec(f"opaque-{PAGE_BYTES}")
        self.row_bytes = PAGE_BYTES
        self.parts = (Part(name="blocks", start=0, n_bytes=PAGE_BYTES, cell_rows=1, cell_bytes=PAGE_BYTES),)
        self.files = (file,)
        self.extents = (Extent(file_idx=0, layer_id=0, part_idx=0, first_row=0, n_rows=n_blocks, offset=0),)
        self.n_blocks = n_blocks

    def _close_files(self) -> None:
        """The file is not this object's."""


def engines_with_depth() -> tuple[str, ...]:
    """The engines that are told how many reads to keep in flight when they are made."""
    return tuple(name for name, make in ENGINES.items() if isinstance(make, type) and issubclass(make, QueueEngine))


def engine_at_depth(name: str, table: RowFiles, places: Placements, depth: int) -> Engine:
    """An engine of `engines_with_depth` that keeps `depth` reads in flight; the caller closes it."""
    make: Any = ENGINES[name]
    made: Engine = make(table, places, depth=depth)
    return made


def block_reads(path: Path, name: str, *, depths: Sequence[int], seconds: float) -> dict[str, Any]:
    """Random 4 KiB reads a second of an engine by depth: a record's `status`, and the sweep or the `reason`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        file = RowFile(path=path, file_bytes=os.fstat(fd).st_size, fd=fd)
        return {"status": "measured", **_sweep(BlockFiles(file), name, depths, seconds)}
    except (BackendUnavailable, InvalidInput) as error:
        return {"status": "waived", "reason": str(error)}
    finally:
        os.close(fd)


def _sweep(files: BlockFiles, name: str, depths: Sequence[int], seconds: float) -> dict[str, Any]:
    places, rng = Placements(files), np.random.default_rng()
    out = np.full((_BATCH_BLOCKS, PAGE_BYTES), 1, np.uint8)

    def measure(depth: int) -> float:
        n_blocks = min(_BATCH_BLOCKS, 32 * depth)
        with closing(engine_at_depth(name, files, places, depth)) as engine:
            n_read = spent_ns = 0
            while spent_ns < seconds * 1e9:
                rows = np.unique(rng.integers(0, files.n_blocks, n_blocks))
                batch = Batch(rows=rng.permutation(rows), n_columns=rows.size, first_layer=0, n_layers=1)
                start = time.perf_counter_ns()
                engine.read(batch, out[: rows.size])
                spent_ns += time.perf_counter_ns() - start
                n_read += rows.size
        return n_read * 1e9 / spent_ns

    return sweep_depths(measure, depths)
