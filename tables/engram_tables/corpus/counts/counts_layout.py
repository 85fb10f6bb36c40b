"""Names and columns of the files in a counts directory. Knows neither their rows nor how they are cut."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def column_names(order: int) -> list[str]:
    """The token columns of an order, oldest first.

    >>> column_names(3)
    ['back_2', 'back_1', 'back_0']
    """
    return [f"back_{back}" for back in reversed(range(order))]


def table_schema(order: int, *, has_next: bool) -> pa.Schema:
    """The columns of an order's files."""
    import pyarrow as pa

    fields = [pa.field(name, pa.uint32(), nullable=False) for name in column_names(order)]
    if has_next:
        fields.append(pa.field("next_token", pa.uint32(), nullable=True))
    return pa.schema([*fields, pa.field("count", pa.uint64(), nullable=False)])


def part_name(order: int, part: int) -> str:
    """A file's name inside the counts directory."""
    return f"order-{order}/part-{part:05}.parquet"


def footer_sha256(path: Path) -> str:
    """SHA-256 of a Parquet file's end: its metadata, their length and the magic, which no page's checksum covers."""
    with path.open("rb") as file:
        file_bytes = file.seek(0, 2)
        file.seek(max(file_bytes - 8, 0))
        footer_bytes = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(file_bytes - footer_bytes, 0))
        return hashlib.sha256(file.read()).hexdigest()
