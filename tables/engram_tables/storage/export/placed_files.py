"""A file to be: its first bytes, and where the rows of a table go in it. Knows no container."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The same bytes of consecutive records of one layer, one directly after the other.

    Attributes
    ----------
    first_row, n_rows
        Numbered within the layer.
    start, n_bytes
        Which bytes of each record.
    stride
        From one row to the next; what is left of it is zero.
    """

    layer_id: int
    first_row: int
    n_rows: int
    start: int
    n_bytes: int
    stride: int

    @property
    def total_bytes(self) -> int:
        """Bytes in the file."""
        return self.n_rows * self.stride


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTensor:
    """A tensor to be written: rows of a table, or a few bytes that are known already.

    Attributes
    ----------
    dtype, shape
        As the container spells them; a GGUF shape has its fastest dimension first.
    content
        The rows, or the bytes themselves.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: Stretch | bytes

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.total_bytes


class PlacedTensor(NamedTuple):
    """A tensor, and the byte of the file that its data begin at."""

    tensor: ExportTensor
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedFile:
    """A file to be.

    Attributes
    ----------
    name
        Without directories.
    head
        Its first bytes. What neither it nor a tensor covers is zero.
    """

    name: str
    head: bytes
    tensors: tuple[PlacedTensor, ...]
    file_bytes: int
