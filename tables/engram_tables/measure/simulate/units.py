"""What a cache holds: rows, or the 4 KiB pages that they lie in. Knows no tokens and no cache."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import InvalidInput
from engram_tables.measure.simulate.stream_kernels import UnitArrays
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.extents import Part
from engram_tables.storage.published import published_tables
from engram_tables.storage.table.layout import SPLIT, Layout, get_layout
from engram_tables.units import PAGE_BYTES

ROW, PAGE = "row", "page"
UNITS = (ROW, PAGE)
PLANAR = "planar"
"""As released: each section of a record in a tensor of its own, which a table calls `split`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBytes:
    """How long a row is, and who says so.

    Attributes
    ----------
    codec, row_width
        Whose sections a planar file keeps apart; `opaque-N` where only the length is known.
    source
        `published`, `given`, or `codec`: by the spec's width.
    """

    codec: str
    row_width: int
    n_bytes: int
    source: str

    def layout(self, name: str) -> Layout:
        """The layout called `name`, `planar` included; InvalidInput where these rows cannot have it."""
        return get_layout(SPLIT if name == PLANAR else name, get_codec(self.codec), self.row_width)


def row_bytes_of(spec: AddressSpec, given: int | None, *, codec: str | None = None) -> RowBytes:
    """The length of a row: as given, as the codec makes it, else as the preset of the spec's name is published.

    Raises
    ------
    InvalidInput
        Nothing given, and no preset of that name; bytes and a codec; no such codec, or a spec without a row width.
    """
    if codec is not None:
        return _coded(spec, given, codec)
    published = {table.name: table for table in published_tables()}.get(spec.name)
    if published is not None and given in (None, published.row_bytes):
        width = published.outline.row_width
        assert width is not None
        source = "published" if given is None else "given"
        return RowBytes(codec=published.codec, row_width=width, n_bytes=published.row_bytes, source=source)
    if given is None:
        raise InvalidInput(
            f"spec {spec.name}: found no published row length, expected a codec or the bytes of a row; give --codec, "
            "as bf16 or fp8-e4m3-e8m0, or --row-bytes"
        )
    return RowBytes(codec=f"opaque-{given}", row_width=1, n_bytes=given, source="given")


def _coded(spec: AddressSpec, given: int | None, codec: str) -> RowBytes:
    if given is not None:
        raise InvalidInput(f"row bytes: found {given} and the codec {codec}, expected one of them; leave one out")
    # Rows of an opaque codec are as many bytes at any width.
    width = spec.row_width or (1 if codec.startswith("opaque-") else None)
    if width is None:
        raise InvalidInput(f"spec {spec.name}: found no row width, expected one for {codec}; give --row-bytes")
    return RowBytes(codec=codec, row_width=width, n_bytes=get_codec(codec).row_bytes(width), source="codec")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """What a cache holds.

    Attributes
    ----------
    name, layout
        `row`, whose layout is None, or `page`.
    item_bytes
        Of one item in the cache; nothing else that a cache keeps is counted.
    n_items
        Of the whole table.
    most_items_a_row
        Items that one row may touch.
    """

    name: str
    layout: str | None
    item_bytes: int
    n_items: int
    most_items_a_row: int
    arrays: UnitArrays

    def describe(self) -> dict[str, Any]:
        """For a record."""
        return {"unit": self.name, "layout": self.layout, "item_bytes": self.item_bytes, "n_items": self.n_items}


def unit_of(name: str, spec: AddressSpec, rows: RowBytes, *, layout: str | None = None) -> Unit:
    """Rows, or pages of a layout.

    Raises
    ------
    InvalidInput
        An unknown unit or layout, a layout that these rows cannot have, or one given for rows.

    Notes
    -----
    Rows are numbered through the layers. Pages are numbered through the parts of a layout, layer by layer in each, as
    if a part of a layer were one file that begins with a page: a cut into shards moves at most one page a shard.
    """
    if name == ROW and layout is None:
        return _rows(spec, rows)
    if name == PAGE:
        chosen = layout or "packed"
        return _pages(spec, rows.layout(chosen), chosen)
    raise InvalidInput(
        f"unit: found {name!r}{'' if layout is None else f' with the layout {layout}'}, expected row without a layout, "
        "or page; choose one of them"
    )


def _rows(spec: AddressSpec, rows: RowBytes) -> Unit:
    firsts = [0, *accumulate(layer.n_rows for layer in spec.layers)]
    none = np.zeros(1, np.int64)
    arrays = UnitArrays(False, np.array([firsts[:-1]], np.int64), none, none, none)
    return Unit(name=ROW, layout=None, item_bytes=rows.n_bytes, n_items=firsts[-1], most_items_a_row=1, arrays=arrays)


def _pages(spec: AddressSpec, layout: Layout, name: str) -> Unit:
    n_pages = [[-(-part.data_bytes(layer.n_rows) // PAGE_BYTES) for layer in spec.layers] for part in layout.parts]
    firsts = np.cumsum([0, *(n for of_part in n_pages for n in of_part)])
    fields = ("n_bytes", "cell_rows", "cell_bytes")
    sizes = [np.array([getattr(part, field) for part in layout.parts], np.int64) for field in fields]
    arrays = UnitArrays(
        True, firsts[:-1].astype(np.int64).reshape(len(layout.parts), len(spec.layers)), sizes[0], sizes[1], sizes[2]
    )
    return Unit(
        name=PAGE, layout=name, item_bytes=PAGE_BYTES, n_items=int(firsts[-1]),
        most_items_a_row=sum(_most_pages(part) for part in layout.parts), arrays=arrays,
    )  # fmt: skip


def _most_pages(part: Part) -> int:
    """Pages that a row's stretch of a part may touch: more than it needs only where it may begin anywhere."""
    whole = -(-part.n_bytes // PAGE_BYTES)
    never_crosses = part.cell_bytes % PAGE_BYTES == 0 and part.cell_rows * part.n_bytes <= PAGE_BYTES
    divides = part.cell_rows == 1 and PAGE_BYTES % part.cell_bytes == 0
    return whole if never_crosses or divides else whole + 1
