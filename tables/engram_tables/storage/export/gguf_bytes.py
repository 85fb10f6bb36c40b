"""GGUF files of version 3 as the gguf package writes them, to the byte, planned from names and shapes alone."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from engram_tables.errors import InvalidInput
from engram_tables.storage.export.placed_files import ExportTensor, PlacedFile, PlacedTensor

ALIGNMENT = 32
_VERSION = 3
_STRING, _ARRAY = 8, 9
_SCALARS = {
    "u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"),
    "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"),
}  # fmt: skip
# Id, values and bytes of a block.
_TENSOR_TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "IQ4_NL": (20, 32, 18),
    "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4), "I64": (27, 1, 8), "BF16": (30, 1, 2),
}  # fmt: skip


def key_value_bytes(entries: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The key-value section of entries {key: {"type", "value"}}, as `gguf_key_values` gives them."""
    data = bytearray()
    for key, entry in entries.items():
        data += _text(key)
        kind, value = entry["type"], entry["value"]
        if kind == "string":
            data += struct.pack("<I", _STRING) + _text(value)
        elif kind.endswith("[]"):
            type_id, code = _SCALARS[kind.removesuffix("[]")]
            data += struct.pack(f"<IIQ{len(value)}{code}", _ARRAY, type_id, len(value), *map(int, value))
        else:
            type_id, code = _SCALARS[kind]
            data += struct.pack(f"<I{code}", type_id, int(value))
    return bytes(data)


def place_gguf(
    name: str,
    tensors: Sequence[ExportTensor],
    *,
    key_values: bytes,
    n_key_values: int,
    alignment: int = ALIGNMENT,
    version: int = _VERSION,
) -> PlacedFile:
    """The file with `tensors` in their order, each padded with zeros to the alignment.

    Raises
    ------
    InvalidInput
        A name twice, a dtype that is no tensor type of GGUF, or a shape of other bytes than the tensor has.
    """
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise InvalidInput(
            f"{name}: found one name for two of its tensors, expected {len(tensors)} names; export raw rows"
        )
    infos, relative, end = bytearray(), [], 0
    for tensor in tensors:
        type_id = _checked_type(name, tensor)
        infos += _text(tensor.name) + struct.pack(
            f"<I{len(tensor.shape)}QIQ", len(tensor.shape), *tensor.shape, type_id, end
        )
        relative.append(end)
        end += _padded(tensor.n_bytes, alignment)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), n_key_values) + key_values + bytes(infos)
    data_offset = _padded(len(head), alignment)
    placed = tuple(PlacedTensor(tensor, data_offset + start) for tensor, start in zip(tensors, relative, strict=True))
    return PlacedFile(name=name, head=head, tensors=placed, file_bytes=data_offset + end)


def _checked_type(where: str, tensor: ExportTensor) -> int:
    type_id, block_values, block_bytes = _TENSOR_TYPES.get(tensor.dtype, (-1, 1, 0))
    n_values = math.prod(tensor.shape)
    holds = len(tensor.shape) > 0 and tensor.shape[0] % block_values == 0
    if not holds or n_values // block_values * block_bytes != tensor.n_bytes:
        raise InvalidInput(
            f"{where}: found {tensor.name!r} of {tensor.dtype} {tensor.shape} with {tensor.n_bytes} bytes, expected as "
            f"many as the shape has of one of {', '.join(_TENSOR_TYPES)}; export safetensors or raw rows"
        )
    return type_id


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
