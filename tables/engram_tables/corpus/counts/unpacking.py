"""Reading the orders off sorted windows: columns of ids and their counts.

Knows no file and no partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts import kernels, wide_kernels
from engram_tables.corpus.counts.ngram_counts import NO_NEXT, NgramCounts
from engram_tables.corpus.counts.windows import WindowForm

STRETCH = 32_768
"""Windows that go through all orders before the next ones, while they stay in the cache."""

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


@dataclass(slots=True)
class RowSink:
    """Where the rows of one order go: `columns` uint32 (n_columns, capacity), `totals` uint64 (capacity,)."""

    columns: U32
    totals: U64
    row: int = 0
    dropped: I64 = field(default_factory=lambda: np.zeros(2, dtype=np.int64))
    """int64 (2,): n-grams, and their occurrences, that were rarer than the least count."""


class Unpacker:
    """Reads the orders off sorted distinct windows that come in any number of stretches, longest order first: what
    is left of a window for a shorter order is what is left of the order before."""

    def __init__(
        self, form: WindowForm, orders: Sequence[int], sinks: dict[int, RowSink], *, min_count: int = 1
    ) -> None:
        self.sinks = sinks
        self._form = form
        self._orders = sorted(orders, reverse=True)
        self._min_count = min_count
        self._open = {n: np.zeros(2 + form.n_words, dtype=np.uint64) for n in self._orders}
        shape = (STRETCH + 1,) if form.n_words == 1 else (STRETCH + 1, 2)
        self._keys = {n: np.empty(shape, dtype=np.uint64) for n in self._orders}
        self._totals = {n: np.empty(STRETCH + 1, dtype=np.uint64) for n in self._orders}
        self._block = np.empty((2, kernels.BLOCK_KEYS + 1), dtype=np.uint64)
        self._leading = 0

    def add(self, windows: U64, counts: npt.NDArray[np.unsignedinteger[Any]], *, leading: int) -> None:
        """Take windows, each above all that were added since `close`, with the bits of `leading` that they share."""
        self._leading = leading
        for start in range(0, len(counts), STRETCH):
            self._pass_down(0, windows[start : start + STRETCH], counts[start : start + STRETCH])

    def close(self) -> None:
        """End the runs that further windows might have gone on with."""
        for level, n in enumerate(self._orders):
            run = self._open[n]
            if run[-1]:
                keys = run[:1] if self._form.n_words == 1 else run[None, :2]
                run[-1] = 0
                self._write(n, keys.copy(), run[-2:-1].copy())
                self._pass_down(level + 1, keys.copy(), run[-2:-1].copy())

    def _pass_down(self, level: int, keys: U64, totals: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        """Shorten the runs of one order to those of the next ones; the orders below get what has ended."""
        for at in range(level, len(self._orders)):
            n = self._orders[at]
            drop = (self._form.order if at == 0 else self._orders[at - 1]) - n
            if drop:
                n_runs = kernels_of(self._form).shorten_runs(
                    keys, totals, len(totals), drop * self._form.token_bits, self._open[n], self._keys[n],
                    self._totals[n],
                )  # fmt: skip
                keys, totals = self._keys[n][:n_runs], self._totals[n][:n_runs]
            self._write(n, keys, totals)

    def _write(self, n: int, keys: U64, totals: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        form, sink = self._form, self.sinks[n]
        if form.n_words == 1:
            row = kernels.unpack_rows(
                keys, totals, len(totals), self._leading, n, form.token_bits, form.next_bits, self._min_count,
                sink.columns, sink.totals, sink.row, sink.dropped, self._block,
            )  # fmt: skip
        else:
            row = wide_kernels.unpack_rows(
                keys, totals, len(totals), n, form.token_bits, form.next_bits, self._min_count,
                sink.columns, sink.totals, sink.row, sink.dropped,
            )  # fmt: skip
        sink.row = int(row)


def kernels_of(form: WindowForm) -> Any:
    """The module of the loops for a form's keys."""
    return kernels if form.n_words == 1 else wide_kernels


def named_columns(order: int, columns: U32, totals: U64, next_size: int) -> NgramCounts:
    """Columns as `emit_rows` leaves them: with followers, the last one holds them and the sentinel for the end."""
    if not next_size:
        return NgramCounts(order=order, columns=columns, counts=totals)
    following = columns[order].astype(np.int64)
    following[following == 2 ** next_size.bit_length() - 1] = NO_NEXT
    return NgramCounts(order=order, columns=columns[:order], counts=totals, next_tokens=following)
