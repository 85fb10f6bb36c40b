"""How far values that were encoded again are from the originals, by layer and column.

Sums are made block by block and merged in the order of the blocks, so neither threads nor an interruption change a
digit of the report. Knows no file and no codec.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.units import int_from_json, json_int

_N_NUMBERS = 8


@dataclass(slots=True, kw_only=True)
class Tally:
    """Sums over rows; in a weighted one a row counts as often as its weight.

    Attributes
    ----------
    n_rows, n_values, n_rows_changed
        A row is changed if one of its values is: 0.0 and -0.0 are the same value.
    largest_error
        Of absolute differences.
    squared_error, squared_value
        Sums over values, of differences and of the originals.
    """

    n_rows: int = 0
    n_values: int = 0
    n_rows_changed: int = 0
    largest_error: float = 0.0
    squared_error: float = 0.0
    squared_value: float = 0.0

    def merge(self, other: Tally) -> None:
        """Add the rows of `other`, which come after those here."""
        self.n_rows += other.n_rows
        self.n_values += other.n_values
        self.n_rows_changed += other.n_rows_changed
        self.largest_error = max(self.largest_error, other.largest_error)
        self.squared_error += other.squared_error
        self.squared_value += other.squared_value

    @property
    def rms_error(self) -> float:
        """Root of the mean squared difference; 0 without rows."""
        return math.sqrt(self.squared_error / self.n_values) if self.n_values else 0.0

    @property
    def relative_rms_error(self) -> float | None:
        """`rms_error` over that of the originals; `None` where all of these are 0."""
        return math.sqrt(self.squared_error / self.squared_value) if self.squared_value else None


@dataclass(slots=True, kw_only=True)
class Fidelity:
    """Sums of each (layer id, column): of all rows, and of rows weighted by how often they are wanted.

    `weighted` stays empty where `add` is given no weights.
    """

    tallies: dict[tuple[int, int], Tally] = field(default_factory=dict)
    weighted: dict[tuple[int, int], Tally] = field(default_factory=dict)

    def add(
        self,
        layer_id: int,
        columns: NDArray[np.int64],
        original: NDArray[np.float32],
        decoded: NDArray[np.float32],
        weights: NDArray[np.uint64] | None = None,
    ) -> None:
        """Add rows of one layer.

        Parameters
        ----------
        columns
            int64 (n,): each row's column, 0 or more; small numbers, since there is an array as long as the largest.
        original, decoded
            Finite float32 (n, width), C-contiguous. That they are finite is not checked.
        weights
            uint64 (n,).
        """
        from engram_tables.storage.codecs.fidelity_kernels import Sums, add_rows

        n_rows = len(original)
        for name, array, dtype, shape in (
            ("original", original, np.float32, original.shape[:2]),
            ("decoded", decoded, np.float32, original.shape),
            ("columns", columns, np.int64, (n_rows,)),
            ("weights", np.zeros(n_rows, np.uint64) if weights is None else weights, np.uint64, (n_rows,)),
        ):
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                raise TypeError(f"{name}: found {array.dtype} {array.shape}, expected C-contiguous {dtype} {shape}")
        if not n_rows:
            return
        if columns.min() < 0:
            raise TypeError(f"columns: found {columns.min()}, expected 0 or more")
        n_columns = int(columns.max()) + 1
        found, weighted = (
            Sums(*(np.zeros(n_columns, dtype) for dtype in (np.uint64, np.uint64, np.float64, np.float64, np.float64)))
            for _ in range(2)
        )
        add_rows(original, decoded, columns, np.zeros(0, np.uint64) if weights is None else weights, found, weighted)
        width = original.shape[1]
        _fold(self.tallies, layer_id, found, width)
        _fold(self.weighted, layer_id, weighted, width)

    def merge(self, other: Fidelity) -> None:
        """Add the rows of `other`, which come after those here."""
        for mine, theirs in ((self.tallies, other.tallies), (self.weighted, other.weighted)):
            for key, tally in theirs.items():
                mine.setdefault(key, Tally()).merge(tally)

    def total(self, *, layer_id: int | None = None, weighted: bool = False) -> Tally:
        """All columns together, of one layer or of all; layers and columns in ascending order."""
        total = Tally()
        for key, tally in sorted((self.weighted if weighted else self.tallies).items()):
            if layer_id in (None, key[0]):
                total.merge(tally)
        return total

    def to_json(self) -> dict[str, list[list[int | str]]]:
        """Exact: floats as hexadecimal text, no float among the values."""
        return {"tallies": _rows_of(self.tallies), "weighted": _rows_of(self.weighted)}

    @classmethod
    def from_json(cls, body: Any, *, where: str) -> Self:
        """What `to_json` gave; `InvalidInput` for anything else, with `where` in its message."""
        if not isinstance(body, dict) or set(body) != {"tallies", "weighted"}:
            raise InvalidInput(f"{where}: found {str(body)[:80]}, expected tallies and weighted; build again")
        return cls(tallies=_read_rows(body["tallies"], where), weighted=_read_rows(body["weighted"], where))


def _fold(tallies: dict[tuple[int, int], Tally], layer_id: int, sums: Any, width: int) -> None:
    for column in np.flatnonzero(sums.n_rows).tolist():
        n_rows = int(sums.n_rows[column])
        tally = Tally(
            n_rows=n_rows,
            n_values=n_rows * width,
            n_rows_changed=int(sums.n_changed[column]),
            largest_error=float(sums.largest[column]),
            squared_error=float(sums.errors[column]),
            squared_value=float(sums.values[column]),
        )
        tallies.setdefault((layer_id, column), Tally()).merge(tally)


def _rows_of(tallies: Mapping[tuple[int, int], Tally]) -> list[list[int | str]]:
    return [
        [
            layer_id,
            column,
            *(json_int(number) for number in (tally.n_rows, tally.n_values, tally.n_rows_changed)),
            *(number.hex() for number in (tally.largest_error, tally.squared_error, tally.squared_value)),
        ]
        for (layer_id, column), tally in sorted(tallies.items())
    ]


def _read_rows(rows: Any, where: str) -> dict[tuple[int, int], Tally]:
    tallies: dict[tuple[int, int], Tally] = {}
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, list) or len(row) != _N_NUMBERS:
            raise InvalidInput(f"{where}: found {str(row)[:80]}, expected {_N_NUMBERS} numbers a column; build again")
        layer_id, column, n_rows, n_values, n_changed = (int_from_json(number, where) for number in row[:5])
        largest, squared_error, squared_value = (_float_from_hex(number, where) for number in row[5:])
        if (layer_id, column) in tallies or min(layer_id, column, n_rows, n_values, n_changed) < 0:
            raise InvalidInput(
                f"{where}: found {row[:5]}, expected no negative number and each column once; build again"
            )
        tallies[layer_id, column] = Tally(
            n_rows=n_rows,
            n_values=n_values,
            n_rows_changed=n_changed,
            largest_error=largest,
            squared_error=squared_error,
            squared_value=squared_value,
        )
    return tallies


def _float_from_hex(text: Any, where: str) -> float:
    try:
        value = float.fromhex(text)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value < math.inf or value.hex() != text:
        raise InvalidInput(
            f"{where}: found {str(text)[:40]!r}, expected a float in hexadecimal, 0 or more; build again"
        )
    return value
