"""A table that no disk holds: rows made in memory, for measurements of what fetching costs.

Its one file lies in memory and has no name, so that every engine that reads files reads this one as well.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from engram_tables.measure.environment import read_meminfo
from engram_tables.storage.building.initialise import Init, RowFiller
from engram_tables.storage.codecs.codec import Codec, get_codec
from engram_tables.storage.extents import Extent, Part
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import PAGE_BYTES

if TYPE_CHECKING:
    from engram_tables.fetch.gpu.records import HostRecords

_ORDERS = (2, 3, 4)
_HEADS = 8
_ROW_WIDTH = 256
_CANONICAL_SIZE = 99_092
_CODEC = "fp8-e4m3-e8m0"
_FILL_ROWS = 1 << 16
# What is left of the memory for a copy of the rows and for whoever else is there.
_MOST_OF_FREE = 0.8


def generated_spec(n_bytes: int, layer_ids: tuple[int, ...], *, codec: Codec | None = None) -> AddressSpec:
    """Rows as DeepSeek-V4.1-Flash has them, 24 columns a layer, as many as `n_bytes` hold.

    Raises
    ------
    InvalidInput
        So few bytes that a column has no row.
    """
    n_columns = len(_ORDERS) * _HEADS
    row_bytes = (codec or get_codec(_CODEC)).row_bytes(_ROW_WIDTH)
    per_column = n_bytes // (row_bytes * n_columns * len(layer_ids))
    if per_column < 1:
        least = row_bytes * n_columns * len(layer_ids)
        raise InvalidInput(f"generated rows: found {n_bytes} bytes, expected {least} or more, a row a column")
    layers = tuple(
        LayerAddressing(
            layer_id=layer_id,
            multipliers=(3, 5, 7, 9),
            moduli=((per_column,) * _HEADS,) * len(_ORDERS),
            offsets=tuple(column * per_column for column in range(n_columns)),
            n_rows=n_columns * per_column,
        )
        for layer_id in layer_ids
    )
    return AddressSpec(
        name="generated",
        provenance="rows made in memory in the form of DeepSeek-V4.1-Flash; the moduli are no primes",
        canonical_size=_CANONICAL_SIZE,
        history=HistoryRule(fill_id=2),
        orders=_ORDERS,
        layers=layers,
        row_width=_ROW_WIDTH,
    )


class GeneratedRows(RowFiles):
    """Packed records of seeded normal values in memory, layer after layer.

    Raises
    ------
    CapacityError
        More bytes than the machine has free.
    BackendUnavailable
        The system has no files in memory.
    """

    def __init__(self, spec: AddressSpec, *, seed: int = 0, threads: int | None = None) -> None:
        super().__init__()
        self.path, self.spec, self.codec = Path("generated rows"), spec, get_codec(_CODEC)
        self.row_bytes = self.codec.row_bytes(_ROW_WIDTH)
        record = Part(name="records", start=0, n_bytes=self.row_bytes, cell_rows=1, cell_bytes=self.row_bytes)
        self.parts = (record,)
        starts = np.cumsum([0, *(_whole_pages(layer.n_rows * self.row_bytes) for layer in spec.layers)]).tolist()
        self.extents = tuple(
            Extent(file_idx=0, layer_id=layer.layer_id, part_idx=0, first_row=0, n_rows=layer.n_rows, offset=start)
            for layer, start in zip(spec.layers, starts, strict=False)
        )
        _require_free(starts[-1])
        fd = _memory_file(starts[-1])
        self.files = (RowFile(path=Path(f"/proc/self/fd/{fd}"), file_bytes=starts[-1], fd=fd),)
        try:
            self._fill(seed, threads)
        except BaseException:
            self.close()
            raise

    def _fill(self, seed: int, threads: int | None) -> None:
        file = self.files[0]
        init = Init.make("normal", row_width=_ROW_WIDTH, seed=seed)
        with mmap.mmap(file.fd, file.file_bytes) as mapping:
            whole = np.frombuffer(mapping, np.uint8)
            for extent in self.extents:
                n_bytes = extent.n_rows * self.row_bytes
                rows = whole[extent.offset : extent.offset + n_bytes].reshape(-1, self.row_bytes)
                fill_rows(rows, init, self.codec, extent.layer_id, threads=threads)
                # The mapping cannot be closed under a view of it.
                del rows
            del whole

    def _close_files(self) -> None:
        files, self.files = self.files, ()
        for file in files:
            os.close(file.fd)


def generated_block(spec: AddressSpec, *, seed: int = 0, threads: int | None = None) -> HostRecords:
    """The same rows as a block that a device can read, at its stride, without a file.

    Raises
    ------
    CapacityError
        More bytes than the machine has free.
    """
    from engram_tables.fetch.gpu.records import HostRecords, Layout

    codec = get_codec(_CODEC)
    layout = Layout.of_spec(spec, codec)
    _require_free(layout.n_bytes)
    block = HostRecords(layout)
    init = Init.make("normal", row_width=_ROW_WIDTH, seed=seed)
    for span in layout.spans:
        rows = block.array[span.first_position : span.first_position + span.stop - span.start]
        fill_rows(rows, init, codec, layout.layer_ids[span.layer], threads=threads)
    return block


def fill_rows(rows: NDArray[np.uint8], init: Init, codec: Codec, layer_id: int, *, threads: int | None = None) -> None:
    """All records of a layer into `rows`, uint8 (n, row_bytes or more), in parallel; bytes after a record stay."""
    row_bytes = codec.row_bytes(_ROW_WIDTH)

    def fill(start: int, stop: int) -> None:
        filler = RowFiller(init, codec, _ROW_WIDTH)
        records = np.empty((min(_FILL_ROWS, stop - start), row_bytes), np.uint8)
        for first in range(start, stop, len(records)):
            part = records[: min(len(records), stop - first)]
            filler.fill(layer_id, first, part)
            rows[first : first + len(part), :row_bytes] = part

    run_slices(fill, len(rows), threads=resolve_threads(threads), grain=_FILL_ROWS)


def _whole_pages(n_bytes: int) -> int:
    return -(-n_bytes // PAGE_BYTES) * PAGE_BYTES


def _require_free(n_bytes: int) -> None:
    free = read_meminfo().get("MemAvailable")
    if free is not None and n_bytes > free * _MOST_OF_FREE:
        raise CapacityError(
            f"generated rows: asked for {n_bytes} bytes, expected {int(free * _MOST_OF_FREE)} at most of the {free} "
            "that are free; ask for fewer"
        )


def _memory_file(n_bytes: int) -> int:
    if not hasattr(os, "memfd_create"):
        raise BackendUnavailable("generated rows: this system has no files in memory; measure a table")
    fd = os.memfd_create("engram-rows")
    try:
        os.ftruncate(fd, n_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd
