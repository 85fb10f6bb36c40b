"""Safetensors files as the format's own package writes them, to the byte, planned from names and shapes alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

from engram_tables.errors import InvalidInput
from engram_tables.storage.export.placed_files import ExportTensor, PlacedFile, PlacedTensor

ALIGNMENT = 8
_METADATA = "__metadata__"
# Bytes of a value, in the order that the package puts tensors in; within a dtype they follow by name.
_DTYPE_BYTES = {
    "U64": 8, "I64": 8, "F64": 8, "C64": 8, "F32": 4, "U32": 4, "I32": 4, "BF16": 2, "F16": 2, "U16": 2, "I16": 2,
    "F8_E5M2FNUZ": 1, "F8_E4M3FNUZ": 1, "F8_E8M0": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_DTYPE_ORDER = tuple(_DTYPE_BYTES)


def package_order(tensors: Iterable[ExportTensor]) -> list[ExportTensor]:
    """Tensors as the package orders them: wide dtypes first, then by name."""
    return sorted(tensors, key=lambda tensor: (_DTYPE_ORDER.index(tensor.dtype), tensor.name.encode()))


def place_safetensors(
    name: str,
    tensors: Sequence[ExportTensor],
    *,
    metadata: Sequence[tuple[str, str]] = (),
    alignment: int = ALIGNMENT,
) -> PlacedFile:
    """The file with `tensors` one directly after the other, in their order.

    Parameters
    ----------
    metadata
        In its order, which the package does not promise; no `__metadata__` at all where there is none.
    alignment
        Bytes that the data's beginning is a multiple of.

    Raises
    ------
    InvalidInput
        A name twice, a dtype that the package does not write, or a shape of other bytes than the tensor has.
    """
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    if len({_METADATA, *(tensor.name for tensor in tensors)}) != len(tensors) + 1:
        raise InvalidInput(
            f"{name}: found one name for two of its tensors, expected {len(tensors)} names; export raw rows"
        )
    end = 0
    for tensor in tensors:
        n_bytes = math.prod(tensor.shape) * _DTYPE_BYTES.get(tensor.dtype, 0)
        if n_bytes != tensor.n_bytes or tensor.dtype not in _DTYPE_BYTES:
            raise InvalidInput(
                f"{name}: found tensor {tensor.name!r} of {tensor.dtype} {tensor.shape} with {tensor.n_bytes} bytes, "
                f"expected {n_bytes} bytes of one of {', '.join(_DTYPE_BYTES)}; export raw rows"
            )
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.n_bytes],
        }
        end += tensor.n_bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    data_offset = -(-(8 + len(text)) // alignment) * alignment
    head = (data_offset - 8).to_bytes(8, "little") + text.ljust(data_offset - 8, b" ")
    placed, end = [], data_offset
    for tensor in tensors:
        placed.append(PlacedTensor(tensor, end))
        end += tensor.n_bytes
    return PlacedFile(name=name, head=head, tensors=tuple(placed), file_bytes=end)
