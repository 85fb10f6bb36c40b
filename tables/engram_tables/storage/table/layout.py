"""How a table lays records into files, and how its files are called.

A layout says which parts of a record lie apart and how each part's stretches follow each other. No file is opened
here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engram_tables.errors import InvalidInput
from engram_tables.storage.codecs.codec import RECORDS, Codec
from engram_tables.storage.extents import Part
from engram_tables.units import PAGE_BYTES

PACKED = "packed"
PAGE = "page"
SPLIT = "split"
ALIGNED_BYTES = tuple(2**k for k in range(3, 13))
LAYOUT_NAMES = (PACKED, PAGE, *(f"aligned-{n}" for n in ALIGNED_BYTES), SPLIT)
MANIFEST_NAME = "engram.json"
VOCABULARY_NAME = "vocab.parquet"

_ALIGNED = re.compile(r"aligned-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How records of `row_bytes` bytes lie in a table's files; every part has files of its own.

    Attributes
    ----------
    parts
        In the order of their bytes in the record.

    Notes
    -----
    `packed` has one record directly after the other. In `page` a cell is a page of 4096 bytes with as many records as
    it holds whole, so that none crosses a page. In `aligned-N` every record begins at a multiple of N bytes. These
    have one part, `records`; `split` keeps each section of the codec apart, packed, so that weights and scales can be
    handed to a kernel as two dense arrays. Spare bytes are zero.
    """

    name: str
    row_bytes: int
    parts: tuple[Part, ...]


def get_layout(name: str, codec: Codec, row_width: int) -> Layout:
    """The layout called `name` for rows of `row_width` values in `codec`.

    Raises
    ------
    InvalidInput
        An unknown name; `page` for records longer than a page; `split` for a codec that has nothing to split.
    """
    if name not in LAYOUT_NAMES:
        raise InvalidInput(f"layout {name!r}: not known, expected one of {', '.join(LAYOUT_NAMES)}; choose one of them")
    row_bytes = codec.row_bytes(row_width)
    if name == SPLIT:
        return Layout(name=name, row_bytes=row_bytes, parts=_split(codec, row_width))
    cell_rows, cell_bytes = 1, row_bytes
    if name == PAGE:
        if row_bytes > PAGE_BYTES:
            raise InvalidInput(
                f"layout page: found records of {row_bytes} bytes, expected {PAGE_BYTES} or fewer; "
                f"use the layout packed or aligned-{PAGE_BYTES}"
            )
        cell_rows, cell_bytes = PAGE_BYTES // row_bytes, PAGE_BYTES
    elif (aligned := _ALIGNED.fullmatch(name)) is not None:
        cell_bytes = -(-row_bytes // int(aligned[1])) * int(aligned[1])
    part = Part(name=RECORDS, start=0, n_bytes=row_bytes, cell_rows=cell_rows, cell_bytes=cell_bytes)
    return Layout(name=name, row_bytes=row_bytes, parts=(part,))


def shard_path(layer_id: int, part: str, shard_idx: int, n_shards: int) -> str:
    """Path of the `shard_idx`-th shard of a layer's part inside the table; counted from 1, as checkpoints do."""
    stem = "rows" if part == RECORDS else part
    return f"layer-{layer_id:02d}/{stem}-{shard_idx + 1:05d}-of-{n_shards:05d}.safetensors"


def _split(codec: Codec, row_width: int) -> tuple[Part, ...]:
    sections = codec.sections(row_width)
    if len(sections) == 1:
        raise InvalidInput(
            f"layout split: found codec {codec.name}, whose records are of one piece, expected one that keeps scales; "
            "use the layout packed"
        )
    return tuple(
        Part(name=section.name, start=section.start, n_bytes=section.n_bytes, cell_rows=1, cell_bytes=section.n_bytes)
        for section in sections
    )
