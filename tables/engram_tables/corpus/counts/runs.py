"""Runs: sorted distinct windows with their counts, in memory or on disk, and their merging.

Owns a run's files and the way through many runs at once. Knows no order but the window's own, and no Parquet.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from engram_tables.corpus.counts import merge_kernels
from engram_tables.corpus.counts.counting import SortedWindows
from engram_tables.corpus.counts.windows import WindowForm
from engram_tables.corpus.tokens.array_file import map_file
from engram_tables.errors import InvalidInput

SLICE_WINDOWS = 32_768
"""Windows that are merged at a time, of all runs together: with their counts and the copy, 1 MiB."""
RUN_FILES = ("keys", "counts", "blocks")

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Counts = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Sorted distinct windows of one form.

    Attributes
    ----------
    keys
        uint64 (n_windows * form.n_words,).
    counts
        uint32 or uint64 (n_windows,).
    block_starts
        int64 (form.n_blocks + 1,): where each block of leading tokens starts in `counts`.
    """

    form: WindowForm
    keys: U64
    counts: Counts
    block_starts: I64

    @property
    def n_windows(self) -> int:
        """Distinct windows."""
        return len(self.counts)

    def cut(self, token: int) -> int:
        """Position of the first window whose leading token is not below `token`."""
        block = token >> self.form.free_bits
        if block >= self.form.n_blocks:
            return self.n_windows
        start, stop = self.block_starts[block : block + 2].tolist()
        high, low = self.form.first_key(token)
        return int(
            merge_kernels.lower_bound(
                np.uint64(self.keys.ctypes.data), start, stop, np.uint64(high), np.uint64(low), self.form.n_words
            )
        )


def run_of(windows: SortedWindows) -> Run:
    """The run of sorted windows; their memory is used, and the gaps between partitions are closed in place."""
    form, n_words = windows.form, windows.form.n_words
    stops = np.cumsum(windows.n_windows)
    kept = zip(windows.key_starts[:-1].tolist(), stops.tolist(), windows.n_windows.tolist(), strict=True)
    for start, stop, n_windows in kept:
        place = stop - n_windows
        if place != start:
            _move(windows.keys, place * n_words, start * n_words, n_windows * n_words)
            _move(windows.counts, place, start, n_windows)
    total = int(stops[-1]) if len(stops) else 0
    blocks = np.searchsorted(windows.leading >> form.free_bits, np.arange(form.n_blocks + 1))
    return Run(
        form=form,
        keys=windows.keys[: total * n_words],
        counts=windows.counts[:total],
        block_starts=np.concatenate([[0], stops])[blocks].astype(np.int64),
    )


def _move(array: npt.NDArray[Any], target: int, source: int, n_items: int) -> None:
    array[target : target + n_items] = array[source : source + n_items]


def save_run(run: Run, prefix: Path) -> None:
    """Write a run's three .npy files, flushed; `prefix` takes a suffix for each."""
    for kind, array in zip(RUN_FILES, (run.keys, run.counts, run.block_starts), strict=True):
        with run_file(prefix, kind).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            view = array.view(np.uint8)
            for start in range(0, len(view), _WRITE_BYTES):
                file.write(view[start : start + _WRITE_BYTES].data)
            file.flush()
            os.fsync(file.fileno())


_WRITE_BYTES = 1 << 24
"""Written at a time, so that Ctrl-C does not wait for gigabytes."""


@contextmanager
def new_run(prefix: Path, form: WindowForm, n_windows: int) -> Iterator[Run]:
    """A run on disk of known length, filled in the block and flushed when it ends; memory is the page cache's."""
    shapes = {"keys": (n_windows * form.n_words,), "counts": (n_windows,), "blocks": (form.n_blocks + 1,)}
    dtypes = {"keys": np.uint64, "counts": np.uint64, "blocks": np.int64}
    maps: list[npt.NDArray[Any]] = []
    for kind in RUN_FILES:
        if n_windows or kind == "blocks":
            maps.append(open_memmap(run_file(prefix, kind), mode="w+", dtype=dtypes[kind], shape=shapes[kind]))
            _take_room(run_file(prefix, kind))
        else:
            # An empty file cannot be mapped.
            maps.append(np.empty(0, dtype=dtypes[kind]))
            np.save(run_file(prefix, kind), maps[-1])
    yield Run(form=form, keys=maps[0], counts=maps[1], block_starts=maps[2])
    for kind, mapped in zip(RUN_FILES, maps, strict=True):
        if isinstance(mapped, np.memmap):
            mapped.flush()
        with run_file(prefix, kind).open("rb") as file:
            os.fsync(file.fileno())


def _take_room(path: Path) -> None:
    """A full disk is an error here; where a mapped file has holes, it would end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def run_file(prefix: Path, kind: str) -> Path:
    """The file of one of RUN_FILES."""
    return prefix.with_name(f"{prefix.name}.{kind}.npy")


def open_run(prefix: Path, form: WindowForm) -> Run:
    """Map a run's files.

    Raises
    ------
    InvalidInput
        The files are not those of one run of this form.
    """
    try:
        keys, counts, blocks = (_mapped(run_file(prefix, kind)) for kind in RUN_FILES)
    except (ValueError, EOFError) as error:
        raise InvalidInput(f"{prefix}: not a whole run ({error}); remove the work directory and count again") from None
    kinds = [str(array.dtype) if array.ndim == 1 else f"shape {array.shape}" for array in (keys, counts, blocks)]
    if kinds not in (["uint64", "uint32", "int64"], ["uint64", "uint64", "int64"]):
        # Merging reads by address: shorter items would be read past the end of their file.
        raise InvalidInput(
            f"{prefix}: found arrays of {kinds}, expected a run; remove the work directory and count again"
        )
    run = Run(form=form, keys=keys, counts=counts, block_starts=np.array(blocks))
    is_whole = len(keys) == len(counts) * form.n_words and len(blocks) == form.n_blocks + 1
    if not is_whole or blocks[0] != 0 or blocks[-1] != len(counts) or (np.diff(blocks) < 0).any():
        raise InvalidInput(
            f"{prefix}: found {len(keys):,} words and {len(counts):,} counts in {len(blocks) - 1:,} blocks, expected a "
            f"run of {form.n_words} words a key in {form.n_blocks:,}; remove the work directory and count again"
        )
    return run


def _mapped(path: Path) -> npt.NDArray[Any]:
    """A .npy file of one dimension, mapped without a descriptor: hundreds of runs are open at once."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        data = map_file(path, path.stat().st_size)[file.tell() :]
    if len(shape) != 1 or dtype.hasobject or len(data) != shape[0] * dtype.itemsize:
        raise ValueError(f"{len(data):,} bytes of {dtype} in shape {shape}")
    return data.view(dtype)


class Stretch(NamedTuple):
    """Windows in ascending order, distinct over all stretches of one block; they hold until the next stretch."""

    windows: U64
    counts: Counts
    leading: int
    """The bits of the leading token that the keys of the block do not hold."""


def merge_runs(runs: Sequence[Run], first_token: int, stop_token: int) -> Iterator[Iterable[Stretch]]:
    """The windows of several runs of one form, by block, whose leading token is in [first_token, stop_token).

    Memory: 2 MiB, or 32 bytes for each run if they are more than SLICE_WINDOWS.
    """
    form = runs[0].form
    merger = _Merger(runs) if len(runs) > 1 else None
    first_block, last_block = first_token >> form.free_bits, (stop_token - 1) >> form.free_bits
    sizes = sum(np.diff(run.block_starts[first_block : last_block + 2]) for run in runs)
    for block in (first_block + np.flatnonzero(sizes)).tolist():
        start = max(first_token, block << form.free_bits)
        stop = min(stop_token, (block + 1) << form.free_bits)
        cursors = [run.cut(start) for run in runs]
        stops = [run.cut(stop) if stop >> form.free_bits == block else int(run.block_starts[block + 1]) for run in runs]
        leading = block << form.free_bits if form.n_words == 1 else 0
        if merger is None:
            yield _slices(runs[0], cursors[0], stops[0], leading)
        else:
            yield merger.slices(cursors, stops, leading)


def _slices(run: Run, start: int, stop: int, leading: int) -> Iterator[Stretch]:
    for first in range(start, stop, SLICE_WINDOWS):
        last = min(first + SLICE_WINDOWS, stop)
        yield Stretch(_keys(run.keys, run.form, first, last), run.counts[first:last], leading)


def _keys(words: U64, form: WindowForm, start: int, stop: int) -> U64:
    keys = words[start * form.n_words : stop * form.n_words]
    return keys if form.n_words == 1 else keys.reshape(-1, 2)


def slice_room(n_runs: int) -> int:
    """The most windows of one stretch."""
    return max(SLICE_WINDOWS, n_runs)


class _Merger:
    """Many runs, and the memory to merge them slice by slice."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._form = runs[0].form
        self._runs = runs
        self._keys = np.array([run.keys.ctypes.data for run in runs], dtype=np.uint64)
        self._counts = np.array([run.counts.ctypes.data for run in runs], dtype=np.uint64)
        self._count_bytes = np.array([run.counts.itemsize for run in runs], dtype=np.int64)
        self._share = max(1, SLICE_WINDOWS // len(runs))
        room = self._share * len(runs)
        self._bounds = np.empty(len(runs) + 1, dtype=np.int64)
        self._words = [np.empty(room * self._form.n_words, dtype=np.uint64) for _ in range(2)]
        self._totals = [np.empty(room, dtype=np.uint64) for _ in range(2)]

    def slices(self, cursors: list[int], stops: list[int], leading: int) -> Iterator[Stretch]:
        at, ends = np.array(cursors, dtype=np.int64), np.array(stops, dtype=np.int64)
        while (at < ends).any():
            n_windows, is_spare = merge_kernels.merge_slice(
                self._keys, self._counts, self._count_bytes, at, ends, self._share, self._form.n_words, self._bounds,
                self._words[0], self._totals[0], self._words[1], self._totals[1],
            )  # fmt: skip
            words, totals = self._words[int(is_spare)], self._totals[int(is_spare)]
            yield Stretch(_keys(words, self._form, 0, int(n_windows)), totals[:n_windows], leading)


def merge_to_run(runs: Sequence[Run]) -> Run:
    """One run of several of the same form, in memory: 16 or 24 bytes a distinct window."""
    form = runs[0].form
    room = sum(run.n_windows for run in runs)
    keys = np.empty(room * form.n_words, dtype=np.uint64)
    counts = np.empty(room, dtype=np.uint64)
    sizes = np.zeros(form.n_blocks + 1, dtype=np.int64)
    place = 0
    for block in merge_runs(runs, 0, form.canonical_size):
        for windows, totals, leading in block:
            keys[place * form.n_words : (place + len(totals)) * form.n_words] = windows.reshape(-1)
            counts[place : place + len(totals)] = totals
            place += len(totals)
            sizes[(leading >> form.free_bits) + 1] += len(totals)
    return Run(form=form, keys=keys[: place * form.n_words], counts=counts[:place], block_starts=np.cumsum(sizes))
