"""One released table, found and understood: which bytes of which file hold its rows, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from engram_tables.address.spec import AddressSpec
from engram_tables.byte_files import ByteFile
from engram_tables.storage.codecs.codec import Codec
from engram_tables.storage.extents import Extent, Part, Ranges, ranges_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTensor:
    """A tensor of a container, or a whole file without one, that holds a part of rows.

    Attributes
    ----------
    name, dtype, shape
        As the container states them; the name is empty for a file without a container.
    file_idx
        In the source's `files`.
    start, stop
        Half-open bytes from the start of the file.
    layer_id, part_idx, first_row, n_rows
        What it holds, rows numbered within the layer.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file_idx: int
    start: int
    stop: int
    layer_id: int
    part_idx: int
    first_row: int
    n_rows: int


class ScaleTensor(NamedTuple):
    """A small tensor with a parameter of the codec; `data` are its bytes in hexadecimal, `start` counts from byte 0."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: str
    file_idx: int
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows in files that are not ours.

    Attributes
    ----------
    where
        The path or URL that it was opened by, for messages.
    form
        Which reader knew it: `deepseek`, `qwen`, `longcat`, `engram-peft`, `mlx`, `mtplx`, `mlx-vlm`, `gguf`, `raw`.
    container
        `safetensors`, `gguf` or `raw`.
    files
        Open; only those with rows.
    metadata
        For each file the texts of its safetensors `__metadata__`; empty for others.
    alignments
        For each file the unit that its container pads to, in bytes: 8 for most safetensors, GGUF's own; 1 for raw.
    spec
        With the row width filled in.
    row_bytes, parts, extents
        As for `RowFiles`.
    tensors
        What is read, in the order of files and offsets.
    left_out
        Names of tensors in these files that hold no rows and were looked at by nobody.
    scale_tensors
        Small tensors that the codec's parameters were taken from.
    """

    where: str
    form: str
    container: str
    files: tuple[ByteFile, ...]
    metadata: tuple[Mapping[str, str], ...]
    alignments: tuple[int, ...]
    spec: AddressSpec
    codec: Codec
    row_bytes: int
    parts: tuple[Part, ...]
    extents: tuple[Extent, ...]
    tensors: tuple[SourceTensor, ...]
    left_out: tuple[str, ...] = ()
    scale_tensors: tuple[ScaleTensor, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """What a user should know: an unusual spelling, an edge rule, a file that is not here."""

    def owned(self, layer_id: int) -> Ranges:
        """The rows of a layer that are here."""
        return ranges_of(self.extents, layer_id)

    def identities(self) -> list[tuple[str, Mapping[str, str | int]]]:
        """Name and identity of every file, looked up anew."""
        return [(file.name, file.identity()) for file in self.files]

    def close(self) -> None:
        """Close every file."""
        for file in self.files:
            file.close()


@contextmanager
def closing(source: Source) -> Iterator[Source]:
    """`source`, closed at the end of the block."""
    try:
        yield source
    finally:
        source.close()
