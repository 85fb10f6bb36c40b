"""What a table weighs and what a token reads of it, by layout: arithmetic over a spec or a published outline.

It knows no machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from engram_tables.address.presets import PRESETS
from engram_tables.address.recipes import Outline
from engram_tables.address.spec import AddressSpec
from engram_tables.errors import InvalidInput
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.extents import Part
from engram_tables.storage.published import published_tables
from engram_tables.storage.table.layout import PACKED, PAGE, SPLIT, get_layout
from engram_tables.units import PAGE_BYTES

_LINE_BYTES, _SECTOR_BYTES = 64, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCost:
    """One row in one layout.

    Attributes
    ----------
    reads
        Stretches that lie apart: each is a read of its own.
    pages, sectors, lines
        Pages of 4,096 bytes, sectors of 512 and cache lines of 64 that these touch, mean over all rows.
    table_bytes
        Of all rows, spare bytes included; file headers are not.
    """

    layout: str
    reads: int
    pages: float
    sectors: float
    lines: float
    table_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSizes:
    """A table's sizes.

    Attributes
    ----------
    heads
        Per order.
    layer_ids
        Decoder layers that read rows, ascending as they are read; None where they are not certain.
    rows_per_table
        One table a layer, or one for all of them.
    codec
        Of the rows; `opaque-N` where their bytes alone are known.
    """

    name: str
    fingerprint: str | None
    orders: tuple[int, ...]
    heads: tuple[int, ...]
    layer_ids: tuple[int, ...] | None
    rows_per_table: tuple[int, ...]
    codec: str
    row_width: int
    row_bytes: int

    @property
    def n_rows(self) -> int:
        """Of all tables."""
        return sum(self.rows_per_table)

    @property
    def table_bytes(self) -> int:
        """Of all rows, without spare bytes."""
        return self.n_rows * self.row_bytes

    @property
    def rows_per_token(self) -> int:
        """From all tables."""
        return sum(self.heads) * len(self.rows_per_table)

    @property
    def lookups_per_token(self) -> int:
        """N-grams a token: one a layer and order."""
        return len(self.heads) * len(self.rows_per_table)

    def row_cost(self, layout: str) -> RowCost:
        """See `RowCost`; `InvalidInput` where rows of this codec cannot lie so."""
        parts = get_layout(layout, get_codec(self.codec), self.row_width).parts
        table_bytes = sum(
            -(-n_rows // part.cell_rows) * part.cell_bytes for n_rows in self.rows_per_table for part in parts
        )
        return RowCost(
            layout=layout,
            reads=len(parts),
            pages=sum(mean_units(part, PAGE_BYTES) for part in parts),
            sectors=sum(mean_units(part, _SECTOR_BYTES) for part in parts),
            lines=sum(mean_units(part, _LINE_BYTES) for part in parts),
            table_bytes=table_bytes,
        )

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        return {
            "name": self.name,
            "spec_fingerprint": self.fingerprint,
            "orders": list(self.orders),
            "heads": list(self.heads),
            "layer_ids": None if self.layer_ids is None else list(self.layer_ids),
            "rows_per_table": list(self.rows_per_table),
            "n_rows": self.n_rows,
            "codec": self.codec,
            "row_width": self.row_width,
            "row_bytes": self.row_bytes,
            "table_bytes": self.table_bytes,
            "rows_per_token": self.rows_per_token,
            "lookups_per_token": self.lookups_per_token,
            "bytes_per_token": self.rows_per_token * self.row_bytes,
        }


def mean_units(part: Part, unit_bytes: int) -> float:
    """Units of `unit_bytes` bytes that a row's part touches, mean over the rows of a file that begins with a unit.

    Notes
    -----
    Rows of a period are counted: after lcm(cell_bytes, unit_bytes) bytes the same offsets come again.
    """
    n_cells = unit_bytes // gcd(part.cell_bytes, unit_bytes)
    touched = 0
    for row in range(n_cells * part.cell_rows):
        first = part.offset(row)
        touched += (first + part.n_bytes - 1) // unit_bytes - first // unit_bytes + 1
    return touched / (n_cells * part.cell_rows)


def sizes_of_spec(spec: AddressSpec, *, codec: str | None = None, row_bytes: int | None = None) -> TableSizes:
    """Of a spec; the codec is that of the preset of its name where nobody says otherwise.

    Raises
    ------
    InvalidInput
        Neither a codec nor row bytes, and no release of this name that would tell; both; a width that is not known.
    """
    layers = tuple(piece.layer_id for piece in spec.slices) or spec.layer_ids
    rows = tuple(layer.n_rows for layer in spec.layers)
    outline = Outline(
        family=spec.mix.family, orders=spec.orders, heads=spec.heads, layer_ids=layers, rows_per_table=rows,
        row_width=spec.row_width,
    )  # fmt: skip
    return _sizes(spec.name, outline, spec.fingerprint, codec=codec, row_bytes=row_bytes)


def sizes_of_preset(name: str, *, codec: str | None = None, row_bytes: int | None = None) -> TableSizes:
    """Of a preset, whose layer ids need not be certain; see `sizes_of_spec`."""
    if name not in PRESETS:
        raise InvalidInput(f"preset {name!r}: not known; the presets are {', '.join(PRESETS)}")
    return _sizes(name, PRESETS[name].outline(), None, codec=codec, row_bytes=row_bytes)


def _sizes(
    name: str, outline: Outline, fingerprint: str | None, *, codec: str | None, row_bytes: int | None
) -> TableSizes:
    if codec is not None and row_bytes is not None:
        raise InvalidInput("codec, row bytes: found both, expected one of them; leave one out")
    codec = codec or (_released_codecs().get(name) if row_bytes is None else f"opaque-{row_bytes}")
    if codec is None:
        raise InvalidInput(f"{name}: found neither a codec nor the bytes of a row, expected one; give --codec")
    # Rows of an opaque codec are as many bytes at any width.
    width = outline.row_width or (1 if codec.startswith("opaque-") else None)
    if width is None:
        raise InvalidInput(f"{name}: found no row width, expected one; give --row-bytes")
    return TableSizes(
        name=name, fingerprint=fingerprint, orders=outline.orders, heads=outline.heads, layer_ids=outline.layer_ids,
        rows_per_table=outline.rows_per_table, codec=codec, row_width=width,
        row_bytes=get_codec(codec).row_bytes(width),
    )  # fmt: skip


def _released_codecs() -> Mapping[str, str]:
    return {table.name: table.codec for table in published_tables()}


LAYOUTS = (SPLIT, PACKED, PAGE)
"""Rows in parts that lie apart, as releases keep them; one directly after the other; none across a page."""
