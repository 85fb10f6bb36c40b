"""GGUF headers, read without trust: the key-values asked for, and where the tensors lie.

Knows the container and no model. The header is walked through a window; values that nobody asked for are stepped over
without an object for each, and tensor data are never touched. Versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engram_tables.byte_files import ByteFile, as_file
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    import numpy.typing as npt

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_WINDOW_BYTES = 2**20
# A tokenizer's strings take about ten million bytes. The bound keeps a hostile file from being walked for hours.
_MAX_HEADER_BYTES = 2**27
_MAX_NAME_BYTES = 2**16 - 1
_MAX_DIMENSIONS = 4
# Of arrays that are kept: a token map has one value a token id.
_MAX_WANTED_ELEMENTS = 2**22
_DEFAULT_ALIGNMENT = 32
_ALIGNMENT_KEY = "general.alignment"
_INT64_MAX = 2**63 - 1

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING, _ARRAY, _BOOL = 8, 9, 7


class _Scalar(NamedTuple):
    name: str
    n_bytes: int
    dtype: str


_SCALARS = {
    0: _Scalar("u8", 1, "<u1"),
    1: _Scalar("i8", 1, "<i1"),
    2: _Scalar("u16", 2, "<u2"),
    3: _Scalar("i16", 2, "<i2"),
    4: _Scalar("u32", 4, "<u4"),
    5: _Scalar("i32", 4, "<i4"),
    6: _Scalar("f32", 4, "<f4"),
    7: _Scalar("bool", 1, "<u1"),
    10: _Scalar("u64", 8, "<u8"),
    11: _Scalar("i64", 8, "<i8"),
    12: _Scalar("f64", 8, "<f8"),
}


class _TensorType(NamedTuple):
    name: str
    block_values: int
    block_bytes: int


_TENSOR_TYPES = {
    type_id: _TensorType(*fields)
    for type_id, fields in {
        0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
        20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
        24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufValue:
    """A value and the type that it is stored as.

    Attributes
    ----------
    type_name
        `u8` to `i64`, `f32`, `f64`, `bool` or `string`, with `[]` behind it for an array.
    value
        A scalar is an exact int, a float, a bool or a str. An array of strings is a list, any other a NumPy array of
        the stored dtype (bool for `bool[]`).
    """

    type_name: str
    value: int | float | bool | str | list[str] | npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor's place: dimensions with the fastest first, and its offset from the start of the file.

    `type_name` is `type-<id>` where the type is not known; then nothing is known of its length, and `n_bytes` is 0.
    """

    type_id: int
    type_name: str
    dims: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a file says of itself.

    Attributes
    ----------
    file
        Open, for whoever reads the tensors.
    alignment
        Tensor data begin at multiples of so many bytes.
    data_offset
        Bytes from the start of the file to the data section.
    values
        The key-values that were wanted.
    array_lengths
        Lengths of the arrays that were not, by key.
    tensors
        By name, in the header's order.
    n_key_values, key_values_start, key_values_stop
        How many there are, and the half-open bytes from the start of the file where they lie as they were written.
    """

    file: ByteFile
    version: int
    alignment: int
    data_offset: int
    values: dict[str, GgufValue]
    array_lengths: dict[str, int]
    tensors: dict[str, GgufTensor]
    n_key_values: int
    key_values_start: int
    key_values_stop: int

    @property
    def name(self) -> str:
        """Of the file, without directories."""
        return self.file.name

    @property
    def where(self) -> str:
        """The file's path or URL, for messages."""
        return self.file.where


def read_gguf(file: ByteFile | Path, wanted: Callable[[str], bool]) -> GgufHeader:
    """The header of one file, checked against the file's length.

    Parameters
    ----------
    wanted
        Says of a key whether its value is kept. Of other arrays the length is kept, of other scalars nothing.

    Raises
    ------
    InvalidInput
        No regular file, another magic, version or byte order, a header that is cut short or passes 128 MiB, an unknown
        value type, an array of arrays, a name or wanted string that is not UTF-8, a name twice, or tensors outside
        the file or one in another.
    OSError
        The file cannot be read.

    Notes
    -----
    Cost: one pass over the header, about 0.1 us a string that is stepped over. Not checked: strings that were not
    wanted, and where a tensor of an unknown type ends.
    """
    walk = _Walk(as_file(file))
    version = _read_version(walk)
    n_tensors = walk.count("tensors", 8 + 4 + 4 + 8)
    n_values = walk.count("key-values", 8 + 4 + 1)
    values_start = walk.position
    values, array_lengths = _read_values(walk, n_values, wanted)
    values_stop = walk.position
    alignment = _take_alignment(walk, values, wanted)
    relative = _read_tensors(walk, n_tensors)
    data_offset = -(-walk.position // alignment) * alignment
    tensors = {name: replace(tensor, offset=data_offset + tensor.offset) for name, tensor in relative.items()}
    _check_places(walk, tensors, alignment)
    return GgufHeader(
        file=walk.file,
        version=version,
        alignment=alignment,
        data_offset=data_offset,
        values=values,
        array_lengths=array_lengths,
        tensors=tensors,
        n_key_values=n_values,
        key_values_start=values_start,
        key_values_stop=values_stop,
    )


class _Walk:
    """Reads a header from front to back through a window of the file; refuses whatever passes the file's end."""

    def __init__(self, file: ByteFile) -> None:
        self.file, self.where, self.file_bytes = file, file.where, file.file_bytes
        self.window, self.window_start, self.position = b"", 0, 0

    def invalid(self, found: str, expected: str) -> InvalidInput:
        return InvalidInput(f"{self.where}: found {found}, expected {expected}; is it a whole GGUF file? copy it again")

    def skip(self, n_bytes: int, what: str) -> None:
        """Step over bytes that the file must have."""
        end = self.position + n_bytes
        if end > self.file_bytes:
            raise self.invalid(
                f"{what} of {n_bytes} bytes at byte {self.position}", f"it to end within the {self.file_bytes} bytes"
            )
        if end > _MAX_HEADER_BYTES:
            raise self.invalid(f"a header that passes byte {end}", f"{_MAX_HEADER_BYTES} bytes at most")
        self.position = end

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next bytes."""
        start = self.position
        self.skip(n_bytes, what)
        if self.position > self.window_start + len(self.window) or start < self.window_start:
            self._fill(start, n_bytes)
        first = start - self.window_start
        return self.window[first : first + n_bytes]

    def _fill(self, start: int, n_bytes: int) -> None:
        """Make the window begin at `start` and hold `n_bytes` or more."""
        n_bytes = min(max(n_bytes, _WINDOW_BYTES), self.file_bytes - start)
        self.window, self.window_start = self.file.read(start, n_bytes), start

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def count(self, what: str, least_bytes: int) -> int:
        """A number of things of which each takes `least_bytes` or more in what is left of the file."""
        found = self.u64(f"the number of {what}")
        most = (self.file_bytes - self.position) // least_bytes
        if found > most:
            raise self.invalid(f"{found} {what} at byte {self.position}", f"{most} at most in the rest of the file")
        return found

    def text(self, what: str, most_bytes: int = _MAX_HEADER_BYTES) -> str:
        n_bytes = self.u64(f"the length of {what}")
        if n_bytes > most_bytes:
            raise self.invalid(f"{what} of {n_bytes} bytes at byte {self.position}", f"{most_bytes} at most")
        data = self.take(n_bytes, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.invalid(f"{what} before byte {self.position} ({error})", "UTF-8") from None

    def skip_texts(self, n_texts: int, what: str) -> None:
        """Step over strings, one unpacking and one addition each."""
        unpack = _U64.unpack_from
        while n_texts:
            self.take(8, what)
            window, first = self.window, self.position - 8 - self.window_start
            last = len(window) - 8
            while n_texts and first <= last:
                first += 8 + unpack(window, first)[0]
                n_texts -= 1
            self.position = self.window_start
            self.skip(first, what)


def _read_version(walk: _Walk) -> int:
    magic = walk.take(4, "the magic number")
    if magic != _MAGIC:
        raise InvalidInput(f"{walk.where}: found {magic!r} at its start, expected {_MAGIC!r}; name a .gguf file")
    data = walk.take(4, "the version")
    version, swapped = (int.from_bytes(data, order) for order in ("little", "big"))
    if version not in _VERSIONS:
        found = f"version {swapped} in big-endian order" if swapped <= max(_VERSIONS) else f"version {version}"
        raise InvalidInput(
            f"{walk.where}: found GGUF {found}, expected version {' or '.join(map(str, _VERSIONS))} in little-endian "
            "order; convert it anew"
        )
    return version


def _read_values(
    walk: _Walk, n_values: int, wanted: Callable[[str], bool]
) -> tuple[dict[str, GgufValue], dict[str, int]]:
    """What is kept of the key-values, and the lengths of the other arrays."""
    seen: set[str] = set()
    values: dict[str, GgufValue] = {}
    array_lengths: dict[str, int] = {}
    for _ in range(n_values):
        key = walk.text("a key", _MAX_NAME_BYTES)
        if key in seen:
            raise walk.invalid(f"key {key!r} twice", "each key once")
        seen.add(key)
        type_id = walk.u32(f"the type of {key!r}")
        is_kept = key == _ALIGNMENT_KEY or wanted(key)
        if type_id == _ARRAY:
            element_id, n_elements = walk.u32(f"the element type of {key!r}"), walk.u64(f"the length of {key!r}")
            if is_kept:
                values[key] = _read_array(walk, key, element_id, n_elements)
            else:
                _skip_array(walk, key, element_id, n_elements)
                array_lengths[key] = n_elements
        elif is_kept:
            values[key] = _read_scalar(walk, key, type_id)
        else:
            _skip_scalar(walk, key, type_id)
    return values, array_lengths


def _scalar(walk: _Walk, key: str, type_id: int) -> _Scalar:
    if type_id == _ARRAY:
        raise walk.invalid(f"an array of arrays under {key!r}", "an array of scalars or strings")
    if type_id not in _SCALARS:
        raise walk.invalid(f"value type {type_id} under {key!r}", "0 to 12")
    return _SCALARS[type_id]


def _read_scalar(walk: _Walk, key: str, type_id: int) -> GgufValue:
    if type_id == _STRING:
        return GgufValue(type_name="string", value=walk.text(f"the value of {key!r}"))
    values = _read_numbers(walk, key, type_id, 1)
    return GgufValue(type_name=_SCALARS[type_id].name, value=values[0].item())


def _skip_scalar(walk: _Walk, key: str, type_id: int) -> None:
    if type_id == _STRING:
        walk.skip(walk.u64(f"the length of {key!r}"), f"the value of {key!r}")
    else:
        walk.skip(_scalar(walk, key, type_id).n_bytes, f"the value of {key!r}")


def _read_array(walk: _Walk, key: str, element_id: int, n_elements: int) -> GgufValue:
    if element_id == _STRING:
        _check_texts(walk, key, n_elements)
        texts = [walk.text(f"the value of {key!r}") for _ in range(n_elements)]
        return GgufValue(type_name="string[]", value=texts)
    values = _read_numbers(walk, key, element_id, n_elements)
    return GgufValue(type_name=f"{_SCALARS[element_id].name}[]", value=values)


def _read_numbers(walk: _Walk, key: str, type_id: int, n_values: int) -> npt.NDArray[Any]:
    import numpy as np

    scalar = _scalar(walk, key, type_id)
    if _MAX_WANTED_ELEMENTS < n_values <= walk.file_bytes:
        raise walk.invalid(f"{n_values} values under {key!r}", f"{_MAX_WANTED_ELEMENTS} at most")
    data = walk.take(n_values * scalar.n_bytes, f"the value of {key!r}")
    values = np.frombuffer(data, dtype=scalar.dtype)
    if type_id != _BOOL:
        return values
    if values.size and values.max() > 1:
        raise walk.invalid(f"a bool of {values.max()} under {key!r}", "0 or 1")
    return values.astype(np.bool_)


def _skip_array(walk: _Walk, key: str, element_id: int, n_elements: int) -> None:
    what = f"the value of {key!r}"
    if element_id == _STRING:
        _check_texts(walk, key, n_elements)
        walk.skip_texts(n_elements, what)
    else:
        walk.skip(n_elements * _scalar(walk, key, element_id).n_bytes, what)


def _check_texts(walk: _Walk, key: str, n_elements: int) -> None:
    most = (walk.file_bytes - walk.position) // 8
    if n_elements > most:
        raise walk.invalid(f"{n_elements} strings under {key!r}", f"{most} at most in the rest of the file")


def _take_alignment(walk: _Walk, values: dict[str, GgufValue], wanted: Callable[[str], bool]) -> int:
    stored = values.get(_ALIGNMENT_KEY)
    if stored is None:
        return _DEFAULT_ALIGNMENT
    alignment = stored.value
    if stored.type_name != "u32" or not isinstance(alignment, int) or alignment.bit_count() != 1:
        raise walk.invalid(f"{_ALIGNMENT_KEY} {alignment!r} as {stored.type_name}", "a power of two as u32")
    if not wanted(_ALIGNMENT_KEY):
        del values[_ALIGNMENT_KEY]
    return alignment


def _read_tensors(walk: _Walk, n_tensors: int) -> dict[str, GgufTensor]:
    """The tensors, their offsets as the header has them: from the start of the data section."""
    tensors: dict[str, GgufTensor] = {}
    for _ in range(n_tensors):
        name = walk.text("a tensor's name", _MAX_NAME_BYTES)
        if name in tensors:
            raise walk.invalid(f"tensor {name!r} twice", "each name once")
        n_dims = walk.u32(f"the number of dimensions of {name!r}")
        if n_dims > _MAX_DIMENSIONS:
            raise walk.invalid(f"tensor {name!r} of {n_dims} dimensions", f"{_MAX_DIMENSIONS} at most")
        dims = tuple(walk.u64(f"a dimension of {name!r}") for _ in range(n_dims))
        if max(dims, default=0) > _INT64_MAX:
            raise walk.invalid(f"tensor {name!r} of {dims}", f"dimensions of {_INT64_MAX} at most")
        type_id, offset = walk.u32(f"the type of {name!r}"), walk.u64(f"the offset of {name!r}")
        type_name = _TENSOR_TYPES[type_id].name if type_id in _TENSOR_TYPES else f"type-{type_id}"
        n_bytes = _tensor_bytes(walk, name, type_id, dims)
        tensors[name] = GgufTensor(type_id=type_id, type_name=type_name, dims=dims, offset=offset, n_bytes=n_bytes)
    return tensors


def _tensor_bytes(walk: _Walk, name: str, type_id: int, dims: tuple[int, ...]) -> int:
    """Length of a tensor's data, 0 where its type is not known."""
    if type_id not in _TENSOR_TYPES:
        return 0
    type_name, block_values, block_bytes = _TENSOR_TYPES[type_id]
    row_values, *others = dims or (1,)
    if row_values % block_values:
        raise walk.invalid(
            f"tensor {name!r} of {type_name} with rows of {row_values} values", f"a multiple of {block_values}"
        )
    return math.prod(others) * (row_values // block_values) * block_bytes


def _check_places(walk: _Walk, tensors: dict[str, GgufTensor], alignment: int) -> None:
    """Tensors lie aligned, within the file, and apart."""
    places = sorted((tensor.offset, tensor.n_bytes, name) for name, tensor in tensors.items())
    end, before = 0, ""
    for start, n_bytes, name in places:
        if start % alignment:
            raise walk.invalid(f"tensor {name!r} at byte {start}", f"a multiple of {alignment}, the alignment")
        if start < end:
            raise walk.invalid(f"tensor {name!r} at byte {start}, inside {before!r}", f"it at byte {end} or later")
        end, before = start + n_bytes, name
        if end > walk.file_bytes:
            raise walk.invalid(
                f"tensor {name!r} from byte {start} to {end}", f"it to end within the {walk.file_bytes} bytes"
            )
