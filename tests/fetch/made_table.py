"""Small tables with random bytes, written here by the rules of the format and opened without a manifest."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from engram_tables.fetch.table import Table
from engram_tables.storage.layout import get_layout
from engram_tables.storage.reader import Shard


@dataclass
class MadeTable:
    """What `fetch` uses of a StoredTable."""

    path: Path
    spec: Any
    layout: Any
    row_bytes: int
    shards: list[Shard]
    codec: Any = None
    closed: bool = False
    _mappings: dict[int, Any] = field(default_factory=dict)

    @property
    def layer_ids(self) -> tuple[int, ...]:
        return self.spec.layer_ids

    def layer_shards(self, layer_id: int) -> range:
        owned = [k for k, shard in enumerate(self.shards) if shard.layer_id == layer_id]
        return range(owned[0], owned[-1] + 1)

    def mapping(self, shard_idx: int) -> Any:
        if shard_idx not in self._mappings:
            shard = self.shards[shard_idx]
            self._mappings[shard_idx] = np.frombuffer(
                mmap.mmap(shard.fd, shard.file_bytes, prot=mmap.PROT_READ), np.uint8
            )
        return self._mappings[shard_idx]

    def vocabulary(self) -> None:
        return None

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self._mappings.clear()
        for shard in self.shards:
            os.close(shard.fd)


def make_table(
    root: Path,
    *,
    layout: str = "packed",
    row_bytes: int = 264,
    n_rows: tuple[int, ...] = (1000, 777),
    rows_per_shard: int = 10**9,
    n_columns: int = 3,
    data_offset: int = 4096,
    seed: int = 0,
) -> Table:
    """A table of one layer for each number in `n_rows`, its layers called 1, 2, ..."""
    rng = np.random.default_rng(seed)
    how = get_layout(layout, row_bytes)
    shards = []
    for layer_id, of_layer in enumerate(n_rows, start=1):
        for first_row in range(0, of_layer, rows_per_shard):
            n = min(rows_per_shard, of_layer - first_row)
            path = root / f"{layer_id}-{first_row}"
            content = rng.integers(0, 256, data_offset + how.data_bytes(n), np.uint8).tobytes()
            path.write_bytes(content)
            fd = os.open(path, os.O_RDONLY)
            shards.append(
                Shard(
                    path=path, layer_id=layer_id, first_row=first_row, n_rows=n, data_offset=data_offset,
                    file_bytes=len(content), fd=fd,
                )
            )  # fmt: skip
    layers = {k: SimpleNamespace(layer_id=k, n_rows=n) for k, n in enumerate(n_rows, start=1)}
    spec = SimpleNamespace(
        name="made", layers=tuple(layers.values()), layer_ids=tuple(layers), n_columns=n_columns,
        layer=layers.__getitem__,
    )  # fmt: skip
    stored: Any = MadeTable(path=root, spec=spec, layout=how, row_bytes=row_bytes, shards=shards)
    return Table(stored)
