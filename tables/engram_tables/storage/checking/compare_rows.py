"""Rows of two sources held against each other, block by block, on many threads.

Knows neither tables nor headers: `verify` and `compare` say which rows, and by which codecs.
"""

from __future__ import annotations

import random
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.storage.checking.compare_kernels import add_distances, mark_unequal_bytes, mark_unequal_values
from engram_tables.storage.checking.compare_reports import (
    GroupDifference,
    Measure,
    PartDifference,
    RowDifference,
    RowsReport,
)
from engram_tables.storage.codecs.codec import Section
from engram_tables.storage.extents import Part, Ranges, n_rows_of
from engram_tables.storage.row_groups import RowGroup, row_groups, split_by_group
from engram_tables.storage.sources.reading import read_records
from engram_tables.storage.sources.source import Source
from engram_tables.threads import resolve_threads, run_all
from engram_tables.units import ProgressHook

BLOCK_BYTES = 4 * 2**20
N_FIRST_ROWS = 8
N_FIRST_DIFFERENCES = 16
_DECODED_ROWS = 2048


def compare_rows(
    left: Source,
    right: Source,
    wanted: Mapping[int, Ranges],
    *,
    measure: Measure,
    distances: bool = False,
    sample: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: ProgressHook | None = None,
) -> RowsReport:
    """Compare the rows of `wanted`, or `sample` of them chosen by `seed`.

    Parameters
    ----------
    wanted
        Rows that both have, by layer id.
    distances
        Whether rows that differ are decoded, to say how far apart they are.
    progress
        Called with bytes, of both sides together.

    Raises
    ------
    InvalidInput
        A row of the left side cannot be encoded, or a file was cut short or changed meanwhile.
    """
    work = _Work(left, right, wanted, measure, distances)
    before = _identities(left, right)
    blocks = work.blocks() if sample is None or sample >= n_rows_of(wanted) else work.chosen(sample, seed)
    work.run(blocks, min(sample or work.n_rows, work.n_rows), resolve_threads(threads), progress)
    for (where, was), (_, found) in zip(before, _identities(left, right), strict=True):
        if was != found:
            raise InvalidInput(
                f"{where}: found {dict(found)}, expected {dict(was)} as when the comparison began; it was changed "
                "meanwhile: compare again"
            )
    return work.report()


def _identities(*sources: Source) -> list[tuple[str, Mapping[str, str | int]]]:
    """Where each file lies, and what must stay the same of it."""
    return [(file.where, file.identity()) for source in sources for file in source.files]


class _Block(NamedTuple):
    idx: int
    group_idx: int
    layer_id: int
    start: int
    stop: int


@dataclass(slots=True)
class _Found:
    """What one block, or all blocks of a group so far, gave."""

    n_rows: int = 0
    n_different: int = 0
    first_rows: list[int] = field(default_factory=list)
    by_part: list[int] = field(default_factory=list)
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    n_not_finite: int = 0
    first: list[RowDifference] = field(default_factory=list)

    def add(self, more: _Found) -> None:
        """Blocks are added in row order, so that sums are the same for any number of threads."""
        self.n_rows += more.n_rows
        self.n_different += more.n_different
        self.first_rows = (self.first_rows + more.first_rows)[:N_FIRST_ROWS]
        self.by_part = [a + b for a, b in zip(self.by_part, more.by_part, strict=True)]
        self.sums[0] = max(self.sums[0], more.sums[0])
        self.sums[1:] += more.sums[1:]
        self.n_not_finite += more.n_not_finite


class _Work:
    """One pass over two sources."""

    def __init__(
        self, left: Source, right: Source, wanted: Mapping[int, Ranges], measure: Measure, distances: bool
    ) -> None:
        self._left, self._right = left, right
        self._wanted = {layer_id: ranges for layer_id, ranges in wanted.items() if ranges}
        self._measure, self._distances = measure, distances
        self._groups: list[RowGroup] = []
        self._first_group: dict[int, int] = {}
        for layer_id in self._wanted:
            self._first_group[layer_id] = len(self._groups)
            self._groups.extend(row_groups(left.spec, layer_id))
        self._sections = _sections(left, right)
        self._pair_bytes = left.row_bytes + right.row_bytes
        self._rows_per_block = max(1, BLOCK_BYTES // max(left.row_bytes, right.row_bytes))
        self.n_rows = n_rows_of(self._wanted)
        self._found = [self._nothing() for _ in self._groups]
        self._first: list[RowDifference] = []
        self._local = threading.local()
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[int, _Found]] = {}
        self._next = 0
        self._n_rows_done = 0

    def _nothing(self) -> _Found:
        return _Found(by_part=[0] * len(self._sections))

    def blocks(self) -> Iterator[_Block]:
        """Every row."""
        idx = 0
        for layer_id, ranges in self._wanted.items():
            for start, stop in ranges:
                for first in range(start, stop, self._rows_per_block):
                    for piece in self._pieces(layer_id, first, min(first + self._rows_per_block, stop)):
                        yield _Block(idx, *piece)
                        idx += 1

    def chosen(self, n_chosen: int, seed: int) -> Iterator[_Block]:
        """Rows chosen at random, in row order, neighbours together."""
        ranges = [(layer_id, *bounds) for layer_id, layer in self._wanted.items() for bounds in layer]
        begins = list(accumulate((stop - start for _, start, stop in ranges), initial=0))
        numbers = sorted(random.Random(seed).sample(range(begins[-1]), n_chosen))
        for idx, number in enumerate(numbers):
            nth = bisect_right(begins, number) - 1
            layer_id, start, _ = ranges[nth]
            row = start + number - begins[nth]
            (piece,) = self._pieces(layer_id, row, row + 1)
            yield _Block(idx, *piece)

    def _pieces(self, layer_id: int, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        first = self._first_group[layer_id]
        groups = tuple(group for group in self._groups[first:] if group.layer_id == layer_id)
        for position, piece_start, piece_stop in split_by_group(groups, start, stop):
            yield first + position, layer_id, piece_start, piece_stop

    def run(self, blocks: Iterator[_Block], n_rows: int, n_threads: int, progress: ProgressHook | None) -> None:
        """Compare `blocks`, of `n_rows` rows together."""

        def work(block: _Block) -> None:
            found = self._compare(block)
            with self._lock:
                self._merge(block, found)
                self._n_rows_done += found.n_rows
                if progress is not None:
                    progress(self._n_rows_done * self._pair_bytes, n_rows * self._pair_bytes)

        run_all(work, blocks, threads=max(1, min(n_threads, n_rows)))

    def _merge(self, block: _Block, found: _Found) -> None:
        self._waiting[block.idx] = (block.group_idx, found)
        while self._next in self._waiting:
            group_idx, ready = self._waiting.pop(self._next)
            self._found[group_idx].add(ready)
            self._first = (self._first + ready.first)[:N_FIRST_DIFFERENCES]
            self._next += 1

    def _compare(self, block: _Block) -> _Found:
        scratch = self._scratch()
        n_rows = block.stop - block.start
        found = self._nothing()
        found.n_rows = n_rows
        left, right, unequal = scratch.left[:n_rows], scratch.right[:n_rows], scratch.unequal[:n_rows]
        read_records(self._left, block.layer_id, block.start, left, scratch=scratch.reading)
        read_records(self._right, block.layer_id, block.start, right, scratch=scratch.reading)
        if self._measure is Measure.VALUES:
            self._compare_values(left, right, unequal, found)
        else:
            if self._measure is Measure.RECODED:
                left = self._recoded(left, block)
            found.n_different = mark_unequal_bytes(left, right, 0, right.shape[1], unequal)
        if found.n_different:
            self._describe(block, left, right, unequal, found)
        return found

    def _scratch(self) -> _Scratch:
        if not hasattr(self._local, "scratch"):
            self._local.scratch = _Scratch(min(self._rows_per_block, self.n_rows), self._left, self._right)
        scratch: _Scratch = self._local.scratch
        return scratch

    def _recoded(self, left: NDArray[np.uint8], block: _Block) -> NDArray[np.uint8]:
        out = np.empty((len(left), self._right.row_bytes), np.uint8)
        for start in range(0, len(left), _DECODED_ROWS):
            values = self._left.codec.decode(left[start : start + _DECODED_ROWS])
            try:
                self._right.codec.encode(values, out[start : start + _DECODED_ROWS])
            except InvalidInput as error:
                error.add_note(f"{self._left.where}: counted from row {block.start + start} of layer {block.layer_id}")
                raise
        return out

    def _compare_values(
        self, left: NDArray[np.uint8], right: NDArray[np.uint8], unequal: NDArray[np.uint8], found: _Found
    ) -> None:
        for start in range(0, len(left), _DECODED_ROWS):
            part = slice(start, start + _DECODED_ROWS)
            values = self._left.codec.decode(left[part]), self._right.codec.decode(right[part])
            found.n_different += mark_unequal_values(*values, unequal[part])

    def _describe(
        self,
        block: _Block,
        left: NDArray[np.uint8],
        right: NDArray[np.uint8],
        unequal: NDArray[np.uint8],
        found: _Found,
    ) -> None:
        rows = np.flatnonzero(unequal)
        found.first_rows = [block.start + int(row) for row in rows[:N_FIRST_ROWS]]
        if self._distances:
            for start in range(0, len(rows), _DECODED_ROWS):
                these = rows[start : start + _DECODED_ROWS]
                values = self._left.codec.decode(left[these]), self._right.codec.decode(right[these])
                found.n_not_finite += add_distances(*values, found.sums)
        if self._measure is Measure.VALUES:
            return
        flags = np.empty(len(unequal), np.uint8)
        for nth, section in enumerate(self._sections):
            found.by_part[nth] = mark_unequal_bytes(left, right, section.start, section.start + section.n_bytes, flags)
        for row in rows[:N_FIRST_DIFFERENCES]:
            found.first.append(self._difference(block, int(row), left[row], right[row]))

    def _difference(self, block: _Block, row: int, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> RowDifference:
        byte = int(np.flatnonzero(left != right)[0])
        group = self._groups[block.group_idx]
        return RowDifference(
            layer_id=block.layer_id,
            order=group.order,
            head=group.head,
            row=block.start + row,
            byte=byte,
            part=next(s.name for s in self._sections if s.start <= byte < s.start + s.n_bytes),
            expected=int(left[byte]),
            found=int(right[byte]),
        )

    def report(self) -> RowsReport:
        """After `run`."""
        compared = [(group, found) for group, found in zip(self._groups, self._found, strict=True) if found.n_rows]
        n_compared = sum(found.n_rows for _, found in compared)
        return RowsReport(
            measure=self._measure,
            n_rows=self.n_rows,
            n_rows_compared=n_compared,
            n_rows_different=sum(found.n_different for _, found in compared),
            bytes_read=n_compared * self._pair_bytes,
            groups=tuple(self._group_difference(group, found) for group, found in compared),
            first=tuple(self._first),
        )

    def _group_difference(self, group: RowGroup, found: _Found) -> GroupDifference:
        largest, squared_error, squared = map(float, found.sums)
        is_measured = self._distances and found.n_different > 0
        by_part = (
            PartDifference(part=section.name, n_rows_different=n_rows)
            for section, n_rows in zip(self._sections, found.by_part, strict=True)
        )
        return GroupDifference(
            layer_id=group.layer_id,
            order=group.order,
            head=group.head,
            n_rows_compared=found.n_rows,
            n_rows_different=found.n_different,
            first_rows=tuple(found.first_rows),
            parts=() if self._measure is Measure.VALUES else tuple(by_part),
            max_abs=largest if is_measured else None,
            relative_rms=sqrt(squared_error / squared) if is_measured and squared else None,
            n_values_not_finite=found.n_not_finite,
        )


class _Scratch:
    """One thread's buffers."""

    def __init__(self, n_rows: int, left: Source, right: Source) -> None:
        self.left = np.empty((n_rows, left.row_bytes), np.uint8)
        self.right = np.empty((n_rows, right.row_bytes), np.uint8)
        self.unequal = np.empty(n_rows, np.uint8)
        cells = (part.cell_bytes for source in (left, right) for part in source.parts)
        self.reading = np.empty(max(BLOCK_BYTES, *cells), np.uint8)


def _sections(left: Source, right: Source) -> Sequence[Section | Part]:
    """The stretches of the right side's records that reports tell apart: as its codec does, or as files do."""
    width = right.spec.row_width
    sections = () if width is None else right.codec.sections(width)
    if len(sections) > 1 or left.codec != right.codec:
        return sections or right.parts
    return max((right.parts, left.parts), key=len)
