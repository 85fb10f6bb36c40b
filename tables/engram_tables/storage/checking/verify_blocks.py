"""Does every block of a table's files still hash to what the manifest says?"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engram_tables.files import read_at
from engram_tables.storage.table.reader import StoredTable
from engram_tables.threads import run_all
from engram_tables.units import ProgressHook


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedBlock:
    """A block whose bytes differ from its digest, or cannot be read.

    Attributes
    ----------
    path
        The shard, below the table's directory.
    part
        Which part of the records the shard holds.
    start_byte, stop_byte
        Half-open, from the start of the file.
    start_row, stop_row
        Half-open, numbered within the layer: the rows with a byte in this block.
    found
        The digest of the bytes, or the system's message where they could not be read.
    """

    path: str
    layer_id: int
    part: str
    block_idx: int
    start_byte: int
    stop_byte: int
    start_row: int
    stop_row: int
    expected: str
    found: str


class BlockCheck:
    """One pass over the chosen blocks of a table; workers take the next one, so that reading stays near sequential.

    Attributes
    ----------
    n_blocks, n_blocks_read
        Of the table, and those that were chosen.
    total_bytes
        Of the chosen blocks.
    damaged
        After `run`, in the order of the table's files.
    """

    def __init__(self, table: StoredTable, *, sample: int | None, seed: int) -> None:
        self._table = table
        self._block_bytes = table.manifest.block_bytes
        blocks = [
            (shard_idx, block_idx)
            for shard_idx, shard in enumerate(table.manifest.shards)
            for block_idx in range(len(shard.block_sha256))
        ]
        self._chosen: Sequence[tuple[int, int]] = blocks
        if sample is not None and sample < len(blocks):
            self._chosen = [blocks[k] for k in sorted(random.Random(seed).sample(range(len(blocks)), sample))]
        self.n_blocks, self.n_blocks_read = len(blocks), len(self._chosen)
        self.total_bytes = sum(stop - start for start, stop in (self._range(*block) for block in self._chosen))
        self._found: list[DamagedBlock | None] = [None] * len(self._chosen)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._done_bytes = 0

    @property
    def damaged(self) -> tuple[DamagedBlock, ...]:
        """What was found."""
        return tuple(block for block in self._found if block is not None)

    def run(self, *, threads: int, progress: ProgressHook | None) -> None:
        """Read the blocks; `progress` is called with bytes."""

        def check(k: int) -> None:
            self._found[k] = self._check(*self._chosen[k])
            with self._lock:
                start, stop = self._range(*self._chosen[k])
                self._done_bytes += stop - start
                if progress is not None:
                    progress(self._done_bytes, self.total_bytes)

        run_all(check, range(len(self._chosen)), threads=max(1, min(threads, len(self._chosen))))

    def _range(self, shard_idx: int, block_idx: int) -> tuple[int, int]:
        start = block_idx * self._block_bytes
        return start, min(start + self._block_bytes, self._table.manifest.shards[shard_idx].file_bytes)

    def _buffer(self) -> memoryview:
        if not hasattr(self._local, "buffer"):
            longest = max(shard.file_bytes for shard in self._table.manifest.shards)
            self._local.buffer = np.empty(min(self._block_bytes, longest), dtype=np.uint8).data
        buffer: memoryview = self._local.buffer
        return buffer

    def _check(self, shard_idx: int, block_idx: int) -> DamagedBlock | None:
        shard = self._table.manifest.shards[shard_idx]
        start, stop = self._range(shard_idx, block_idx)
        try:
            data = read_at(self._table.files[shard_idx].fd, self._buffer()[: stop - start], start)
            found = hashlib.sha256(data).hexdigest()
        except OSError as error:
            found = f"unreadable ({error.strerror})"
        if found == shard.block_sha256[block_idx]:
            return None
        part = self._table.parts[self._table.manifest.part_idx(shard.part)]
        first, last = (max(offset - shard.data_offset, 0) for offset in (start, stop))
        start_row, stop_row = part.touched_rows(first, last, shard.n_rows)
        return DamagedBlock(
            path=shard.path,
            layer_id=shard.layer_id,
            part=shard.part,
            block_idx=block_idx,
            start_byte=start,
            stop_byte=stop,
            start_row=shard.first_row + start_row,
            stop_row=shard.first_row + stop_row,
            expected=shard.block_sha256[block_idx],
            found=found,
        )
