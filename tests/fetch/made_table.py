"""Small tables and checkpoints with random bytes, written here by the rules of the format, without a manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from engram_tables.fetch.table import Table
from engram_tables.storage.extents import Extent, Part
from engram_tables.storage.row_files import RowFile, RowFiles

PAGE_BYTES = 4096
Cuts = Sequence[tuple[int, int]]


class MadeFiles(RowFiles):
    """Files that were opened here."""

    def __init__(
        self, path: Path, *, n_rows: Sequence[int], n_columns: int, parts: tuple[Part, ...], files: list[RowFile],
        extents: tuple[Extent, ...],
    ) -> None:  # fmt: skip
        super().__init__()
        layers = {k: SimpleNamespace(layer_id=k, n_rows=n) for k, n in enumerate(n_rows, start=1)}
        self.path, self.codec = path, None  # type: ignore[assignment]
        spec: Any = SimpleNamespace(
            name="made", layers=tuple(layers.values()), layer_ids=tuple(layers), n_columns=n_columns,
            layer=layers.__getitem__,
        )  # fmt: skip
        self.spec, self.parts, self.files, self.extents = spec, parts, files, extents
        self.row_bytes = sum(part.n_bytes for part in parts)

    def close(self) -> None:
        assert not self._is_closed
        super().close()

    def _close_files(self) -> None:
        for file in self.files:
            os.close(file.fd)


def one_part(layout: str, row_bytes: int) -> tuple[Part, ...]:
    """The part of a layout that keeps records in one piece."""
    cell_rows, cell_bytes = 1, row_bytes
    if layout == "page":
        cell_rows, cell_bytes = PAGE_BYTES // row_bytes, PAGE_BYTES
    elif layout.startswith("aligned-"):
        unit = int(layout.removeprefix("aligned-"))
        cell_bytes = -(-row_bytes // unit) * unit
    return (Part(name="records", start=0, n_bytes=row_bytes, cell_rows=cell_rows, cell_bytes=cell_bytes),)


def apart(*lengths: int, spare: int = 0) -> tuple[Part, ...]:
    """Parts of these lengths, each one's stretches `spare` bytes from each other."""
    starts = np.cumsum((0, *lengths)).tolist()
    return tuple(
        Part(name=f"part-{k}", start=starts[k], n_bytes=n, cell_rows=1, cell_bytes=n + spare)
        for k, n in enumerate(lengths)
    )


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
    cuts = [[(k, min(rows_per_shard, n - k)) for k in range(0, n, rows_per_shard)] for n in n_rows]
    return make_files(
        root,
        n_rows=n_rows,
        parts=one_part(layout, row_bytes),
        cuts=[[of_layer] for of_layer in cuts],
        n_columns=n_columns,
        data_offset=data_offset,
        seed=seed,
    )


def make_files(
    root: Path,
    *,
    n_rows: Sequence[int],
    parts: tuple[Part, ...],
    cuts: Sequence[Sequence[Cuts]],
    n_columns: int = 3,
    data_offset: int = 4096,
    extents_per_file: int = 1,
    seed: int = 0,
) -> Table:
    """Rows in any geometry.

    `cuts[layer][part]` lists the extents as (first row, rows). As many as `extents_per_file` follow each other in a
    file, `data_offset` bytes before each, and no file holds a byte after its last row.
    """
    rng = np.random.default_rng(seed)
    extents: list[Extent] = []
    contents: list[bytes] = []
    for layer_id, of_layer in enumerate(cuts, start=1):
        for part_idx, of_part in enumerate(of_layer):
            for first_row, n in of_part:
                if len(extents) % extents_per_file == 0:
                    contents.append(b"")
                part = parts[part_idx]
                last_cell, in_cell = divmod(n - 1, part.cell_rows)
                n_bytes = last_cell * part.cell_bytes + (in_cell + 1) * part.n_bytes
                offset = len(contents[-1]) + data_offset
                contents[-1] += rng.integers(0, 256, data_offset + n_bytes, np.uint8).tobytes()
                extents.append(
                    Extent(
                        file_idx=len(contents) - 1, layer_id=layer_id, part_idx=part_idx, first_row=first_row,
                        n_rows=n, offset=offset,
                    )
                )  # fmt: skip
    files = []
    for nth, content in enumerate(contents):
        path = root / f"file-{nth}"
        path.write_bytes(content)
        files.append(RowFile(path=path, file_bytes=len(content), fd=os.open(path, os.O_RDONLY)))
    return Table(MadeFiles(root, n_rows=n_rows, n_columns=n_columns, parts=parts, files=files, extents=tuple(extents)))
