"""The short way to records that lie in memory: one compiled call, or none. It knows no engines and no files."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch import kernels
from engram_tables.fetch.array_calls import as_object, knows_arrays
from engram_tables.fetch.kernels import copy_kernel, fetch_kernel, object_fetch
from engram_tables.fetch.leases import Leases
from engram_tables.fetch.placement import Placements

# Beyond it a second thread is worth its waking, and a first one the few microseconds of being asked.
WARM_ROWS = 8191
_NO_END = 1 << 62

ShortTokens = Callable[[Any, Any], int]
"""See `WarmPath.fetch_tokens`."""
ShortRows = Callable[[int, Any, Any], int]
"""See `WarmPath.fetch_rows`."""


class ShortWay(Protocol):
    """Fetches small batches in one compiled call, or declines: an engine's `warm`. `WarmPath` does so out of memory."""

    @property
    def fetch_tokens(self) -> ShortTokens:
        """See `WarmPath.fetch_tokens`."""

    @property
    def fetch_rows(self) -> ShortRows:
        """See `WarmPath.fetch_rows`."""


class WarmPath:
    """Fetches batches of up to `WARM_ROWS` records out of memory, or declines before a byte is written.

    It declines whatever is unusual, wrong or not known to be resident; why is found by who goes the long way. Safe from
    many threads and after a fork; it holds the engine's lease (its gate) while it copies.

    Parameters
    ----------
    places, bases
        Records in one part; extent k's first row is at address `bases[k]`, uint64 (extents,).
    leases
        Of the engine whose memory it is.
    n_columns
        Of the table's spec.
    pages, region_start
        uint8, a bit a page of the memory from address `region_start` on (bit `p & 7` of byte `p >> 3`), written by
        others meanwhile as they like: batches with a page that has none are declined. None takes all as resident.
    is_all
        uint8 (1,), written by others as they like: while it is not 0 every page has its bit, and none is looked at.
    rows_a_check
        Every so many rows one record is looked up in the page cache before the batch is copied; 0 is never.
    """

    def __init__(
        self, places: Placements, bases: NDArray[np.uint64], leases: Leases, n_columns: int, *,
        pages: NDArray[np.uint8] | None = None, is_all: NDArray[np.uint8] | None = None, region_start: int = 0,
        rows_a_check: int = 0,
    ) -> None:  # fmt: skip
        (part,) = places.parts
        gate = leases.gate()
        head = np.zeros(kernels.PLAN_HEAD, np.int64)
        for word, value in (
            (kernels.BUDGET, _NO_END),
            (kernels.GATE, gate.ctypes.data),
            (kernels.ROWS_A_CHECK, rows_a_check),
            (kernels.MOST_ROWS, WARM_ROWS),
            (kernels.N_LAYERS, len(places.n_rows)),
            (kernels.N_COLUMNS, n_columns),
            (kernels.N_EXTENTS, len(bases)),
            (kernels.IS_WHOLE, places.is_whole),
            (kernels.ROW_BYTES, part.n_bytes),
            (kernels.CELL_ROWS, part.cell_rows),
            (kernels.CELL_BYTES, part.cell_bytes),
            (kernels.PAGES, 0 if pages is None else pages.ctypes.data),
            (kernels.WHOLE, 0 if is_all is None else is_all.ctypes.data),
            (kernels.REGION_START, region_start),
            (kernels.ARRAY_TYPE, id(np.ndarray)),
            (kernels.INT64_TYPE, id(np.dtype(np.int64))),
            (kernels.UINT8_TYPE, id(np.dtype(np.uint8))),
            (kernels.PAGE_SHIFT, mmap.PAGESIZE.bit_length() - 1),
        ):
            head[word] = value
        self._plan = np.concatenate([head, places.extent_words(bases)])
        self._row_bytes = part.n_bytes
        self._gate, self._pages, self._is_all = gate, pages, is_all

    # Both are called for every token: no word of Python stands between them and the kernel.

    @cached_property
    def fetch_tokens(self) -> ShortTokens:
        """(rows, out) → `kernels.DONE`, and `out` is filled; or another answer, and nothing has happened.

        `rows` is int64 (tokens, layers, columns), of all layers and in C order, `out` uint8 of that shape and
        (row_bytes,), to write to. MISFIT or TypeError for arrays of another kind.
        """
        return self._call(3)

    @cached_property
    def fetch_rows(self) -> ShortRows:
        """(layer, rows, out) → as `fetch_tokens`, for `rows` int64 (n,) of the `layer`-th layer."""
        return self._call(1)

    def _call(self, n_dims: int) -> Callable[..., int]:
        # The call names addresses: what lies there stays as long as it may be under way.
        copy = copy_kernel(self._row_bytes, self._row_bytes)
        self._plan[kernels.COPY] = copy.address
        kept = self._plan, self._gate, self._pages, self._is_all, copy
        if knows_arrays():
            return as_object(object_fetch(n_dims), self._plan, kept)
        plan_at, kernel = self._plan.ctypes.data, fetch_kernel(n_dims)
        call = partial(kernel, plan_at, 0) if n_dims == 3 else partial(kernel, plan_at)
        call.kept = kept  # type: ignore[attr-defined]
        return call

    @property
    def n_contradicted(self) -> int:
        """Batches declined because a record that was taken as resident was not."""
        return int(self._plan[kernels.CONTRADICTIONS])

    def budget(self, n_rows: int) -> None:
        """Decline everything after `n_rows` more rows, or so (threads may pass it together)."""
        self._plan[kernels.BUDGET] = n_rows
