"""The journal of a build: which blocks are on their way to the disk, each with its digest.

Lines are believed one by one, by a check sum; what a killed process left half written is ignored. Whoever goes on reads
each claimed block back, so a line that came to the disk before its block does no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple, Self

_SUM_DIGITS = 16


class BlockKey(NamedTuple):
    """A block of a build: position of its table, of the shard in the table's manifest, of the block in the shard."""

    table_idx: int
    shard_idx: int
    block_idx: int


class FinishedBlock(NamedTuple):
    """What a block's bytes hash to, and what its re-encoding lost, as `Fidelity.to_json` gives it."""

    sha256: str
    fidelity: Any = None


class BuildJournal:
    """Open for appending; safe from many threads.

    Attributes
    ----------
    finished
        The blocks that the lines claim; the last line of a block counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        data = path.read_bytes() if path.exists() else b""
        self.finished = dict(filter(None, map(_parse, data.split(b"\n"))))
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        # A line that was cut short must not swallow the next one.
        self._lead = b"" if data.endswith(b"\n") or not data else b"\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, key: BlockKey, block: FinishedBlock) -> None:
        """Claim a block whose bytes have been written."""
        text = json.dumps([*key, *block], sort_keys=True, separators=(",", ":")).encode()
        with self._lock:
            line = self._lead + _sum(text) + b" " + text + b"\n"
            self._lead = b"\n"
            done = 0
            while done < len(line):
                done += os.write(self._fd, line[done:])
            self._lead = b""
            self.finished[key] = block

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _sum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_SUM_DIGITS].encode()


def _parse(line: bytes) -> tuple[BlockKey, FinishedBlock] | None:
    stated, _, text = line.partition(b" ")
    if stated != _sum(text):
        return None
    table_idx, shard_idx, block_idx, sha256, fidelity = json.loads(text)
    return BlockKey(table_idx, shard_idx, block_idx), FinishedBlock(sha256, fidelity)
