"""Safetensors headers, read without trust: what tensors a file holds, and where their bytes lie.

Knows the container and no model. Tensor data are not touched, but for the small integer arrays asked for by name.
Accepted is what the format's own reader accepts, less duplicate keys.
"""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engram_tables.byte_files import ByteFile, Folder, as_file, as_place
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

INDEX_NAME = "model.safetensors.index.json"
_SINGLE_NAME = "model.safetensors"

_MAX_HEADER_BYTES = 100_000_000
_MAX_INDEX_BYTES = 2**28
_MAX_ARRAY_BYTES = 2**20
_MAX_ARRAY_DIMENSIONS = 8
_INT64_MAX = 2**63 - 1
_DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_INTEGER_DTYPES = {
    "I8": "<i1", "U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor: the format's name of its dtype, its shape, and its half-open bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """What a file says of itself.

    Attributes
    ----------
    file
        Open, for whoever reads the tensors.
    data_offset
        Bytes from the start of the file to the first tensor's data.
    metadata
        The strings under `__metadata__`; empty where there are none.
    tensors
        By name, in the header's order.
    """

    file: ByteFile
    data_offset: int
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]

    @property
    def name(self) -> str:
        """Of the file, without directories."""
        return self.file.name

    @property
    def where(self) -> str:
        """The file's path or URL, for messages."""
        return self.file.where


def read_safetensors_header(file: ByteFile | Path) -> SafetensorsHeader:
    """The header of one file, checked against the file's length.

    Raises
    ------
    InvalidInput
        No regular file, a header that does not fit into it or passes 100 MB, no JSON object of tensors, a duplicate
        key, a dtype that the format does not know, or byte ranges that differ from the shapes, overlap, leave holes
        or do not end where the file ends.
    OSError
        The file cannot be read.
    """
    file = as_file(file)
    where, data = file.where, _read_header(file)
    try:
        header = _parse_json(data)
    except (ValueError, RecursionError) as error:
        raise _invalid(where, f"its header is no JSON ({error})", "an object of tensors") from None
    if not isinstance(header, dict):
        raise _invalid(where, f"its header is a JSON {type(header).__name__}", "an object of tensors")
    metadata = _metadata(where, header.pop("__metadata__", None))
    data_offset = 8 + len(data)
    tensors = {name: _tensor_info(where, name, value, data_offset) for name, value in header.items()}
    _check_ranges(where, tensors, data_offset, file.file_bytes)
    return SafetensorsHeader(file=file, data_offset=data_offset, metadata=metadata, tensors=tensors)


def read_integers(header: SafetensorsHeader, name: str) -> npt.NDArray[np.int64]:
    """The values of a small integer tensor, int64 of its shape.

    Raises
    ------
    InvalidInput
        No such tensor, another dtype (floats above all: they do not hold 64-bit constants), no values or more than
        1 MiB of them, a value past 2^63 - 1, or a file that was cut short since its header was read.
    """
    import numpy as np

    if name not in header.tensors:
        raise _invalid(header.where, f"no tensor {name!r} among {len(header.tensors)}", "that name")
    info = header.tensors[name]
    where = f"{header.where}: tensor {name!r} is {info.dtype} {reprlib.repr(info.shape)}"
    if info.dtype not in _INTEGER_DTYPES:
        raise InvalidInput(
            f"{where}, expected one of {', '.join(_INTEGER_DTYPES)}; a constant that has been through a float "
            "is wrong: take it from its source"
        )
    n_bytes = info.stop - info.start
    if not 0 < n_bytes <= _MAX_ARRAY_BYTES or len(info.shape) > _MAX_ARRAY_DIMENSIONS:
        raise InvalidInput(
            f"{where} of {n_bytes} bytes, expected 1 to {_MAX_ARRAY_BYTES} bytes in at most "
            f"{_MAX_ARRAY_DIMENSIONS} dimensions, as an array of constants has; name another tensor"
        )
    data = header.file.read(info.start, n_bytes)
    values = np.frombuffer(data, dtype=_INTEGER_DTYPES[info.dtype]).reshape(info.shape)
    if info.dtype == "U64" and int(values.max()) > _INT64_MAX:
        raise InvalidInput(
            f"{header.where}: tensor {name!r} holds {int(values.max())}, expected at most {_INT64_MAX}; "
            "take the constants from their source"
        )
    return values.astype(np.int64)


def checkpoint_headers(place: ByteFile | Folder | Path) -> list[SafetensorsHeader]:
    """The headers of one .safetensors file, or of all in a folder, in the order of their names.

    An index beside them is needed only where a server lists no names; `missing_files` says which files it names in
    vain.

    Raises
    ------
    InvalidInput
        No .safetensors file there, or one whose header is damaged.
    """
    place = as_place(place)
    if not isinstance(place, Folder):
        return [read_safetensors_header(place)]
    names = checkpoint_names(place)
    if not names:
        raise InvalidInput(
            f"{place.where}: found no .safetensors file in it, expected one or more; name the directory of the "
            "checkpoint"
        )
    return [read_safetensors_header(place.open(name)) for name in names]


def missing_files(place: ByteFile | Folder | Path) -> list[str]:
    """Names of the files that a checkpoint's index lists and that are not in its folder, sorted; [] without index.

    For a message about what was not found. The index is not needed to read what is there.

    Raises
    ------
    InvalidInput
        The index is none.
    """
    place = as_place(place)
    folder = place if isinstance(place, Folder) else place.folder()
    indexed = _indexed_files(folder)
    if not indexed:
        return []
    here = set(_listed(folder))
    # Names with a path or a zero byte in them are no file of this directory.
    return sorted({name for name in indexed if "\0" in name or Path(name).name not in here})


def checkpoint_names(folder: Folder) -> list[str]:
    """Names of the .safetensors files in a folder, sorted; where a server lists none, those that its index names."""
    return [name for name in _listed(folder) if name.endswith(".safetensors")]


def _listed(folder: Folder) -> list[str]:
    """The names in a folder, or where a server lists none those in its index, or the one that needs no index."""
    try:
        return folder.names()
    except InvalidInput:
        named = {name for name in _indexed_files(folder) if "/" not in name and "\0" not in name}
        return sorted(named) or [name for name in (_SINGLE_NAME,) if folder.find(name) is not None]


def _indexed_files(folder: Folder) -> set[str]:
    """The file names in a checkpoint's index; none without index."""
    index = folder.find(INDEX_NAME)
    if index is None:
        return set()
    if index.file_bytes > _MAX_INDEX_BYTES:
        raise _invalid(index.where, f"{index.file_bytes} bytes", f"at most {_MAX_INDEX_BYTES}")
    try:
        value = _parse_json(index.read(0, index.file_bytes))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise _invalid(index.where, f"no JSON ({error})", "an object with a weight_map") from None
    files = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise _invalid(index.where, "no weight_map of tensors to files", "one")
    return set(files.values())


def _invalid(where: str, found: str, expected: str) -> InvalidInput:
    return InvalidInput(f"{where}: found {found}, expected {expected}; is it a whole safetensors file? copy it again")


def _read_header(file: ByteFile) -> bytes:
    """The header's bytes."""
    first = file.read(0, min(8, file.file_bytes))
    n_header = int.from_bytes(first, "little")
    if first == b"version ":
        raise InvalidInput(
            f"{file.where}: found a Git LFS pointer, expected the file itself; fetch it with git lfs pull"
        )
    if len(first) < 8 or not 2 <= n_header <= file.file_bytes - 8:
        if len(first) == 8 and n_header <= _MAX_HEADER_BYTES:
            found = f"a header of {n_header} bytes in a file of {file.file_bytes}"
            raise _invalid(file.where, found, f"2 to {max(file.file_bytes - 8, 2)}")
        raise InvalidInput(
            f"{file.where}: found no safetensors header at its start ({first!r} would be a header of {n_header} bytes "
            f"in a file of {file.file_bytes}), expected its length; name a .safetensors or .gguf, the directory of the "
            "checkpoint, or the geometry of raw rows"
        )
    if n_header > _MAX_HEADER_BYTES:
        raise _invalid(file.where, f"a header of {n_header} bytes", f"{_MAX_HEADER_BYTES} at most")
    return file.read(8, n_header)


def _parse_json(data: bytes) -> Any:
    # Decoded here: json.loads would guess UTF-16 and UTF-32 too.
    return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    "".join(unique).encode()  # half a surrogate pair, which JSON can escape, is a ValueError here
    if len(unique) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} twice")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the constant {name}")


def _metadata(where: str, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _invalid(where, f"__metadata__ {reprlib.repr(value)}", "strings by name")
    return value


def _tensor_info(where: str, name: str, value: Any, data_offset: int) -> TensorInfo:
    """One entry of the header, its dtype known and its shape as many bytes as its range."""
    tensor = f"tensor {name!r}"
    if not isinstance(value, dict) or not value.keys() >= {"dtype", "shape", "data_offsets"}:
        raise _invalid(where, f"{tensor} as {reprlib.repr(value)}", "its dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise _invalid(where, f"{tensor} of dtype {reprlib.repr(dtype)}", f"one of {', '.join(_DTYPE_BITS)}")
    if not _are_sizes(shape):
        raise _invalid(where, f"{tensor} of shape {reprlib.repr(shape)}", "a list of integers, none negative")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _invalid(where, f"{tensor} at {reprlib.repr(offsets)}", "two ascending byte offsets")
    start, stop = offsets
    if not _fills(shape, _DTYPE_BITS[dtype], 8 * (stop - start)):
        raise _invalid(
            where,
            f"{tensor} of {dtype} {reprlib.repr(shape)} in {stop - start} bytes",
            "as many bytes as the shape has",
        )
    return TensorInfo(dtype=dtype, shape=tuple(shape), start=data_offset + start, stop=data_offset + stop)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _INT64_MAX for size in value)


def _fills(shape: list[int], value_bits: int, available_bits: int) -> bool:
    """Whether a shape takes exactly so many bits; stops before the product of a hostile shape grows."""
    n_bits = 0 if 0 in shape else value_bits
    for size in shape:
        n_bits *= size
        if n_bits > available_bits:
            return False
    return n_bits == available_bits


def _check_ranges(where: str, tensors: dict[str, TensorInfo], data_offset: int, file_bytes: int) -> None:
    """Every byte behind the header belongs to one tensor."""
    end, before = data_offset, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != end:
            what = "overlaps" if info.start < end else "leaves a hole behind"
            raise _invalid(
                where, f"tensor {name!r} from byte {info.start} on, which {what} {before!r}", f"it to begin at {end}"
            )
        end, before = info.stop, name
    if end != file_bytes:
        raise _invalid(where, f"a file of {file_bytes} bytes", f"{end}, where its last tensor ends")
