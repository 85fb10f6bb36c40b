"""Plans a table to the byte and writes it: blocks made, hashed and written by several threads, manifest last.

The directory appears whole or not at all; whatever goes wrong, nothing is left behind.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.files import fsync_directory, new_directory, refuse_existing
from engram_tables.storage.codecs import get_codec
from engram_tables.storage.initialise import Init, RowFiller
from engram_tables.storage.layout import MANIFEST_NAME, VOCABULARY_NAME, Layout, get_layout, shard_path
from engram_tables.storage.manifest import (
    BLOCK_BYTES,
    NO_DIGEST,
    Manifest,
    ShardRecord,
    VocabularyRecord,
    shard_header,
)
from engram_tables.threads import resolve_threads
from engram_tables.units import ProgressHook, format_bytes

SHARD_BYTES = 4 * 2**30
_MAX_SHARDS = 99_999
_TILE_BYTES = 2**20
_SYNC_FILE_RANGE_WRITE = 2
_LIBC = ctypes.CDLL(None)


class PlannedFile(NamedTuple):
    """A file of the table to be, by its path inside it."""

    path: str
    file_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """A table to be: its manifest with empty digests, and its first contents."""

    manifest: Manifest
    init: Init
    vocabulary_data: bytes | None

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """Every file with its exact length."""
        files = [PlannedFile(shard.path, shard.file_bytes) for shard in self.manifest.shards]
        if self.vocabulary_data is not None:
            files.append(PlannedFile(VOCABULARY_NAME, len(self.vocabulary_data)))
        return (*files, PlannedFile(MANIFEST_NAME, len(self.manifest.to_bytes())))

    @property
    def n_rows(self) -> int:
        """Rows of all layers."""
        return sum(shard.n_rows for shard in self.manifest.shards)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.file_bytes for file in self.files)


def plan_table(
    spec: AddressSpec,
    *,
    codec: str,
    layout: str,
    init: str,
    seed: int = 0,
    std: str | None = None,
    row_width: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    vocabulary_file: Path | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> TablePlan:
    """The exact table that `build_table` would write.

    Parameters
    ----------
    init, seed, std
        See `initialise.Init`.
    row_width
        Values of a row, for a spec that does not say.
    shard_bytes
        Upper bound of a shard's file.
    vocabulary_file
        Copied into the table; the spec is bound to it.

    Raises
    ------
    InvalidInput
        A row width that is missing, contradicts the spec or does not suit the codec; shards that are too small.
    SpecMismatch
        The vocabulary is not the one that the spec addresses.
    """
    width = _row_width(spec, row_width)
    spec = replace(spec, row_width=width)
    row_bytes = get_codec(codec).row_bytes(width)
    record, data = None, None
    if vocabulary_file is not None:
        spec, record, data = _bind_vocabulary(spec, vocabulary_file)
    chosen = Init.make(init, row_width=width, seed=seed, std=std)
    empty = Manifest(
        spec=spec,
        codec=codec,
        layout=layout,
        row_width=width,
        row_bytes=row_bytes,
        shards=(),
        vocabulary=record,
        init=chosen.record(),
        block_bytes=block_bytes,
    )
    shards = tuple(_plan_shards(empty, shard_bytes))
    return TablePlan(manifest=replace(empty, shards=shards), init=chosen, vocabulary_data=data)


def build_table(
    plan: TablePlan,
    path: Path,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressHook | None = None,
) -> Manifest:
    """Write the table of `plan` as the directory `path`.

    Parameters
    ----------
    force
        Replace a table that is there, in one step; one that a process has open keeps its old bytes.
    threads
        Worker threads, all usable CPUs by default; never changes a byte. Each holds one block in memory.
    progress
        Called with bytes.

    Raises
    ------
    InvalidInput
        `path` is taken, or with `force` by something that is no table.
    CapacityError
        The filesystem has too little room; nothing was written.
    BackendUnavailable
        With `force`, a filesystem that cannot exchange two directories.
    OSError
        Of the filesystem; nothing is left behind.
    """
    n_threads = resolve_threads(threads)
    path = Path.cwd() / path
    try:
        refuse_existing(path, force=force)
        _refuse_foreign(path)
        _check_room(plan, path.parent)
        return _write_table(plan, path, force=force, n_threads=n_threads, progress=progress)
    except OSError as error:
        error.add_note(f"while building the table {path}")
        raise


def _write_table(
    plan: TablePlan, path: Path, *, force: bool, n_threads: int, progress: ProgressHook | None
) -> Manifest:
    with new_directory(path, force=force) as directory:
        for name in sorted({str(Path(shard.path).parent) for shard in plan.manifest.shards}):
            (directory / name).mkdir()
        for shard in plan.manifest.shards:
            _reserve(directory / shard.path, shard.file_bytes)
        shards = _Build(plan, directory, progress).run(n_threads)
        manifest = replace(plan.manifest, shards=shards)
        if plan.vocabulary_data is not None:
            _write_file(directory / VOCABULARY_NAME, plan.vocabulary_data)
        for name in sorted({str(Path(shard.path).parent) for shard in shards}):
            fsync_directory(directory / name)
        _write_file(directory / MANIFEST_NAME, manifest.to_bytes())
    return manifest


class _Block(NamedTuple):
    shard_idx: int
    block_idx: int
    start: int
    stop: int


class _Build:
    """One run over all blocks of all shards; workers take the next block as they become free."""

    def __init__(self, plan: TablePlan, directory: Path, progress: ProgressHook | None) -> None:
        self._plan = plan
        self._manifest = plan.manifest
        self._directory = directory
        self._progress = progress
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._blocks = self._next_blocks()
        self._digests = [[NO_DIGEST] * len(shard.block_sha256) for shard in self._manifest.shards]
        self._to_do = [len(shard.block_sha256) for shard in self._manifest.shards]
        self._headers = [shard_header(self._manifest, shard) for shard in self._manifest.shards]
        self._total_bytes = sum(shard.file_bytes for shard in self._manifest.shards)
        self._done_bytes = 0

    def run(self, n_threads: int) -> tuple[ShardRecord, ...]:
        """Write everything; the shards with their digests."""
        with ThreadPoolExecutor(n_threads, thread_name_prefix="engram-build") as pool:
            workers = [pool.submit(self._work) for _ in range(n_threads)]
            try:
                wait(workers, return_when=FIRST_EXCEPTION)
            finally:
                # Also after Ctrl-C: leaving the pool waits for the workers, each at most one block.
                self._stopped.set()
            for worker in workers:
                worker.result()
        return tuple(
            replace(shard, header_sha256=hashlib.sha256(header).hexdigest(), block_sha256=tuple(digests))
            for shard, header, digests in zip(self._manifest.shards, self._headers, self._digests, strict=True)
        )

    def _next_blocks(self) -> Iterator[_Block]:
        block_bytes = self._manifest.block_bytes
        for shard_idx, shard in enumerate(self._manifest.shards):
            for block_idx, start in enumerate(range(0, shard.file_bytes, block_bytes)):
                yield _Block(shard_idx, block_idx, start, min(start + block_bytes, shard.file_bytes))

    def _work(self) -> None:
        filler = RowFiller(self._plan.init, self._manifest.get_codec(), self._manifest.row_width)
        layout = self._manifest.get_layout()
        largest = min(self._manifest.block_bytes, max(shard.file_bytes for shard in self._manifest.shards))
        buffer = np.empty(largest + 2 * layout.cell_bytes, dtype=np.uint8)
        while True:
            with self._lock:
                block = None if self._stopped.is_set() else next(self._blocks, None)
            if block is None:
                return
            data = self._make(block, filler, layout, buffer)
            self._digests[block.shard_idx][block.block_idx] = hashlib.sha256(data).hexdigest()
            self._write(block, data)

    def _make(self, block: _Block, filler: RowFiller, layout: Layout, buffer: NDArray[np.uint8]) -> memoryview:
        """The block's bytes, inside `buffer`."""
        shard = self._manifest.shards[block.shard_idx]
        head = np.frombuffer(self._headers[block.shard_idx], dtype=np.uint8)[block.start : block.stop]
        buffer[: len(head)] = head
        first = max(block.start - shard.data_offset, 0)
        last = max(block.stop - shard.data_offset, 0)
        first_cell, stop_cell = first // layout.cell_bytes, -(-last // layout.cell_bytes)
        rows = range(first_cell * layout.cell_rows, min(stop_cell * layout.cell_rows, shard.n_rows))
        cells = buffer[len(head) : len(head) + (stop_cell - first_cell) * layout.cell_bytes]
        _fill_cells(filler, layout, shard, rows, cells)
        skipped = first - first_cell * layout.cell_bytes
        # Only a block without a header can begin inside a cell.
        return memoryview(buffer[skipped : skipped + block.stop - block.start])  # type: ignore[arg-type]

    def _write(self, block: _Block, data: memoryview) -> None:
        path = self._directory / self._manifest.shards[block.shard_idx].path
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            _write_all(fd, data, block.start)
            _start_writeback(fd, block.start, len(data))
            with self._lock:
                self._to_do[block.shard_idx] -= 1
                is_last = self._to_do[block.shard_idx] == 0
            if is_last:
                os.fsync(fd)
        finally:
            os.close(fd)
        with self._lock:
            self._done_bytes += len(data)
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes)


def _fill_cells(filler: RowFiller, layout: Layout, shard: ShardRecord, rows: range, cells: NDArray[np.uint8]) -> None:
    """Records of `rows` of `shard`, which begin at a cell, laid into `cells`."""
    first_row = shard.first_row + rows.start
    if layout.cell_bytes == layout.row_bytes:
        filler.fill(shard.layer_id, first_row, cells.reshape(len(rows), layout.row_bytes))
        return
    tile_cells = max(_TILE_BYTES // layout.cell_bytes, 1)
    scratch = np.empty((tile_cells * layout.cell_rows, layout.row_bytes), dtype=np.uint8)
    for begin in range(0, len(rows), len(scratch)):
        records = scratch[: len(rows) - begin]
        filler.fill(shard.layer_id, first_row + begin, records)
        start = layout.record_offset(begin)
        layout.place(records, cells[start : start + layout.data_bytes(len(records))])


def _row_width(spec: AddressSpec, row_width: int | None) -> int:
    if spec.row_width is None and row_width is None:
        raise InvalidInput(
            f"spec {spec.name}: it does not say how many values a row has; give the row width (--row-width)"
        )
    if None not in (spec.row_width, row_width) and spec.row_width != row_width:
        raise InvalidInput(
            f"row width: found {row_width}, expected {spec.row_width} as in spec {spec.name}; drop the option"
        )
    width = row_width if spec.row_width is None else spec.row_width
    return int(width or 0)


def _bind_vocabulary(spec: AddressSpec, file: Path) -> tuple[AddressSpec, VocabularyRecord, bytes]:
    from engram_tables.address.vocabulary import load_vocabulary

    vocabulary = load_vocabulary(file)
    data = file.read_bytes()
    record = VocabularyRecord(
        file_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), map_sha256=vocabulary.map_sha256
    )
    return spec.with_vocabulary(vocabulary), record, data


def _plan_shards(empty: Manifest, shard_bytes: int) -> Iterator[ShardRecord]:
    layout = get_layout(empty.layout, empty.row_bytes)
    for layer in empty.spec.layers:
        whole = ShardRecord(
            path="", layer_id=layer.layer_id, first_row=0, n_rows=layer.n_rows, file_bytes=0, data_offset=0
        )
        data_offset = len(shard_header(empty, whole))
        rows_per_shard = max(shard_bytes - data_offset, 0) // layout.cell_bytes * layout.cell_rows
        if rows_per_shard < 1:
            raise InvalidInput(
                f"shard size: found {shard_bytes} bytes, expected {data_offset + layout.cell_bytes} or more, "
                "a header and one row; choose a larger one"
            )
        n_shards = -(-layer.n_rows // rows_per_shard)
        if n_shards > _MAX_SHARDS:
            raise InvalidInput(
                f"shard size: {shard_bytes} bytes make {n_shards} shards of layer {layer.layer_id}, expected "
                f"{_MAX_SHARDS} at most; choose a larger one"
            )
        for shard_idx in range(n_shards):
            first_row = shard_idx * rows_per_shard
            n_rows = min(rows_per_shard, layer.n_rows - first_row)
            file_bytes = data_offset + layout.data_bytes(n_rows)
            yield replace(
                whole,
                path=shard_path(layer.layer_id, shard_idx, n_shards),
                first_row=first_row,
                n_rows=n_rows,
                file_bytes=file_bytes,
                data_offset=data_offset,
                block_sha256=(NO_DIGEST,) * -(-file_bytes // empty.block_bytes),
            )


def _refuse_foreign(path: Path) -> None:
    """`force` removes what is at `path`: let that be a table, or an empty directory."""
    if not path.exists() and not path.is_symlink():
        return
    is_directory = path.is_dir() and not path.is_symlink()
    if not is_directory or not ((path / MANIFEST_NAME).is_file() or not any(path.iterdir())):
        raise InvalidInput(
            f"{path}: found something that is no table ({MANIFEST_NAME} is not in it), expected one to replace; "
            "remove it yourself or choose another name"
        )


def _check_room(plan: TablePlan, parent: Path) -> None:
    status = os.statvfs(parent)
    free_bytes = status.f_bavail * status.f_frsize
    if plan.total_bytes > free_bytes:
        raise CapacityError(
            f"{parent}: found {format_bytes(free_bytes)} free, expected {format_bytes(plan.total_bytes)} for this "
            "table; free some space, choose another disk or a smaller codec"
        )


def _reserve(path: Path, file_bytes: int) -> None:
    """Create the file with its blocks allocated, so that a full disk is met before the work."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(fd, 0, file_bytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    error.add_note(f"reserving {format_bytes(file_bytes)} for {path.name}")
                    raise
        os.ftruncate(fd, file_bytes)
    finally:
        os.close(fd)


def _write_file(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write_all(fd, memoryview(data), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _start_writeback(fd: int, offset: int, n_bytes: int) -> None:
    """Ask Linux to send these bytes to the disk now, so that the fsync at a shard's end finds little left."""
    sync_file_range = getattr(_LIBC, "sync_file_range", None)
    if sync_file_range is not None:
        # A hint: what it says is not looked at, fsync decides.
        sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(n_bytes), _SYNC_FILE_RANGE_WRITE)
