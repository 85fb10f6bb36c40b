"""Does every byte of a table still hash to what its manifest says?

Opening a table checks manifest, headers and vocabulary; this reads the rows as well and says where damage lies.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engram_tables.errors import InvalidInput
from engram_tables.storage.reader import StoredTable
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import ProgressHook


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedBlock:
    """A block whose bytes differ from its digest, or cannot be read.

    Attributes
    ----------
    path
        The shard, below the table's directory.
    start_byte, stop_byte
        Half-open, from the start of the file.
    start_row, stop_row
        Half-open, numbered within the layer: the rows with a byte in this block.
    found
        The digest of the bytes, or the system's message where they could not be read.
    """

    path: str
    layer_id: int
    block_idx: int
    start_byte: int
    stop_byte: int
    start_row: int
    stop_row: int
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was read and what was found; `damaged` is in the order of the table's files."""

    path: str
    n_blocks: int
    n_blocks_read: int
    table_bytes: int
    bytes_read: int
    damaged: tuple[DamagedBlock, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was found; for a sample, nothing in the sample."""
        return not self.damaged


def verify_table(
    path: str | Path,
    *,
    sample: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: ProgressHook | None = None,
) -> VerifyReport:
    """Hash the blocks of every shard, or `sample` of them chosen by `seed`.

    Spare bytes and headers belong to blocks and are covered. `progress` is called with bytes.

    Raises
    ------
    TableError
        It does not open as a table.
    InvalidInput
        `sample` is less than 1.
    """
    if sample is not None and sample < 1:
        raise InvalidInput(f"sample: found {sample}, expected 1 block or more; leave it out to read every block")
    n_threads = resolve_threads(threads)
    with StoredTable(path) as table:
        blocks = _blocks(table)
        chosen: Sequence[tuple[int, int]] = blocks
        if sample is not None and sample < len(blocks):
            chosen = [blocks[k] for k in sorted(random.Random(seed).sample(range(len(blocks)), sample))]
        check = _Check(table, chosen, progress)
        check.run(n_threads)
        return VerifyReport(
            path=str(path),
            n_blocks=len(blocks),
            n_blocks_read=len(chosen),
            table_bytes=sum(shard.file_bytes for shard in table.shards),
            bytes_read=check.total_bytes,
            damaged=tuple(block for block in check.found if block is not None),
        )


def _blocks(table: StoredTable) -> list[tuple[int, int]]:
    """(position of the shard, number of the block) of every block."""
    records = table.manifest.shards
    return [(idx, block_idx) for idx, record in enumerate(records) for block_idx in range(len(record.block_sha256))]


class _Check:
    """One pass over the chosen blocks; workers take the next one, so that reading stays near sequential."""

    def __init__(self, table: StoredTable, chosen: Sequence[tuple[int, int]], progress: ProgressHook | None) -> None:
        self._table = table
        self._chosen = chosen
        self._progress = progress
        self._block_bytes = table.manifest.block_bytes
        self._lock = threading.Lock()
        self._next = 0
        self._done_bytes = 0
        self.found: list[DamagedBlock | None] = [None] * len(chosen)
        self.total_bytes = sum(stop - start for start, stop in (self._range(*block) for block in chosen))

    def run(self, n_threads: int) -> None:
        """Read everything."""
        n_workers = min(n_threads, len(self._chosen))
        run_slices(lambda _start, _stop: self._work(), n_workers, threads=n_workers, grain=1)

    def _work(self) -> None:
        buffer = np.empty(min(self._block_bytes, max(shard.file_bytes for shard in self._table.shards)), dtype=np.uint8)
        try:
            while (k := self._take()) is not None:
                self.found[k] = self._check(*self._chosen[k], memoryview(buffer))  # type: ignore[arg-type]
        except BaseException:
            # Ctrl-C reaches one thread only: the others find nothing left to take.
            self._next = len(self._chosen)
            raise

    def _take(self) -> int | None:
        with self._lock:
            if self._next >= len(self._chosen):
                return None
            self._next += 1
            return self._next - 1

    def _range(self, shard_idx: int, block_idx: int) -> tuple[int, int]:
        start = block_idx * self._block_bytes
        return start, min(start + self._block_bytes, self._table.shards[shard_idx].file_bytes)

    def _check(self, shard_idx: int, block_idx: int, buffer: memoryview) -> DamagedBlock | None:
        shard, record = self._table.shards[shard_idx], self._table.manifest.shards[shard_idx]
        start, stop = self._range(shard_idx, block_idx)
        try:
            found = hashlib.sha256(_read(shard.fd, buffer[: stop - start], start)).hexdigest()
        except OSError as error:
            found = f"unreadable ({error.strerror})"
        with self._lock:
            self._done_bytes += stop - start
            if self._progress is not None:
                self._progress(self._done_bytes, self.total_bytes)
        if found == record.block_sha256[block_idx]:
            return None
        first, last = (max(offset - shard.data_offset, 0) for offset in (start, stop))
        start_row, stop_row = self._table.layout.touched_rows(first, last, shard.n_rows)
        return DamagedBlock(
            path=record.path,
            layer_id=shard.layer_id,
            block_idx=block_idx,
            start_byte=start,
            stop_byte=stop,
            start_row=shard.first_row + start_row,
            stop_row=shard.first_row + stop_row,
            expected=record.block_sha256[block_idx],
            found=found,
        )


def _read(fd: int, buffer: memoryview, offset: int) -> memoryview:
    """Fill `buffer` from the file; shorter if the file was cut in the meantime."""
    done = 0
    while done < len(buffer):
        n_bytes = os.preadv(fd, [buffer[done:]], offset + done)
        if n_bytes == 0:
            break
        done += n_bytes
    return buffer[:done]
