from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from engram_tables.errors import InvalidInput
from engram_tables.safetensors_file import (
    checkpoint_headers,
    missing_files,
    read_integers,
    read_safetensors_header,
)

PAIR = {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}
INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def other_reader_opens(path: Path) -> bool:
    try:
        with safe_open(path, "np"):
            return True
    except SafetensorError:
        return False


def this_reader_opens(path: Path) -> bool:
    try:
        read_safetensors_header(path)
    except InvalidInput as error:
        message = str(error)
    else:
        return True
    assert str(path) in message
    assert "expected" in message
    assert len(message) < 1000
    return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


@settings(max_examples=40, deadline=None)
@given(
    arrays=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.sampled_from(INTEGERS), st.lists(st.integers(0, 4), max_size=4)),
        max_size=6,
    ),
    metadata=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.text(max_size=5), max_size=3),
)
def test_what_another_writer_wrote(
    arrays: dict[str, tuple[type, list[int]]], metadata: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    made = {}
    for name, (dtype, shape) in arrays.items():
        largest = min(np.iinfo(dtype).max, 2**63 - 1)
        made[name] = np.array([largest - nth for nth in range(math.prod(shape))], dtype=dtype).reshape(shape)
    save_file(made, path, metadata=metadata or None)  # {} for both would be written as no JSON at all
    header = read_safetensors_header(path)
    assert header.metadata == metadata
    assert header.tensors.keys() == made.keys()
    data = path.read_bytes()
    for name, array in made.items():
        info = header.tensors[name]
        assert info.shape == array.shape
        assert data[info.start : info.stop] == array.tobytes()
        if array.size:
            found = read_integers(header, name)
            assert found.dtype == np.int64
            np.testing.assert_array_equal(found, array.astype(np.int64))


def test_every_dtype_is_held_to_its_bytes(path: Path) -> None:
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
            "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
            "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}  # fmt: skip
    for dtype, n_bits in bits.items():
        for n_bytes in (n_bits, n_bits + 1):
            write(path, {"a": {"dtype": dtype, "shape": [4, 2], "data_offsets": [0, n_bytes]}}, bytes(n_bytes))
            assert this_reader_opens(path) == other_reader_opens(path) == (n_bytes == n_bits)
    write(path, {"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, bytes(2))
    assert not this_reader_opens(path)
    assert not other_reader_opens(path)


ODD_HEADERS = {
    "no tensor": (b"{}", b"", True),
    "spaces behind": (json.dumps({"a": PAIR}).encode() + b"   \n", bytes(16), True),
    "an unknown key in a tensor": ({"a": {**PAIR, "more": 1}}, bytes(16), True),
    "metadata null": ({"__metadata__": None}, b"", True),
    "empty tensors between": (
        {"z": {"dtype": "F32", "shape": [0, 3], "data_offsets": [16, 16]}, "b": {**PAIR},
         "a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, bytes(16), True,
    ),
    "bytes behind a zero": (json.dumps({"a": PAIR}).encode() + b"\0", bytes(16), False),
    "a list": (b"[]", b"", False),
    "not JSON": (b"{'a'}", b"", False),
    "UTF-16": ('{"__metadata__":{}}'.encode("utf-16"), b"", False),
    "half a surrogate pair": (b'{"\\ud800":' + json.dumps(PAIR).encode() + b"}", bytes(16), False),
    "not a number": (b'{"__metadata__":{},"a":NaN}', b"", False),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", False),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 16]}}, bytes(16), False),
    "an unknown dtype": ({"a": {**PAIR, "dtype": "I65"}}, bytes(16), False),
    "a dtype that is a list": ({"a": {**PAIR, "dtype": ["I64"]}}, bytes(16), False),
    "a float shape": ({"a": {**PAIR, "shape": [2.0]}}, bytes(16), False),
    "a bool shape": ({"a": {**PAIR, "shape": [True, 2]}}, bytes(16), False),
    "a negative shape": ({"a": {**PAIR, "shape": [-2]}}, bytes(16), False),
    "a shape that wraps to the right size": ({"a": {**PAIR, "shape": [2**61 + 2]}}, bytes(16), False),
    "a product that wraps": ({"a": {**PAIR, "shape": [2**33, 2**31, 2]}}, bytes(16), False),
    "a shape past 2^63": ({"a": {**PAIR, "shape": [2**64 + 2]}}, bytes(16), False),
    "offsets backwards": ({"a": {**PAIR, "data_offsets": [16, 0]}}, bytes(16), False),
    "three offsets": ({"a": {**PAIR, "data_offsets": [0, 16, 16]}}, bytes(16), False),
    "a range too short": ({"a": {**PAIR, "data_offsets": [0, 8]}}, bytes(8), False),
    "a hole in front": ({"a": {**PAIR, "data_offsets": [8, 24]}}, bytes(24), False),
    "a hole between": ({"a": PAIR, "b": {**PAIR, "data_offsets": [24, 40]}}, bytes(40), False),
    "two that overlap": ({"a": PAIR, "b": {**PAIR, "data_offsets": [8, 24]}}, bytes(24), False),
    "two in one place": ({"a": PAIR, "b": PAIR}, bytes(16), False),
    "an empty one far away": ({"a": {"dtype": "F32", "shape": [0], "data_offsets": [9, 9]}}, b"", False),
    "data cut short": ({"a": PAIR}, bytes(15), False),
    "data past the last tensor": ({"a": PAIR}, bytes(17), False),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD_HEADERS)
def test_headers_that_this_and_the_other_reader_agree_on(case: str, path: Path) -> None:
    header, data, is_valid = ODD_HEADERS[case]
    write(path, header, data)
    assert this_reader_opens(path) == is_valid
    assert other_reader_opens(path) == is_valid


def test_what_this_reader_alone_refuses(path: Path) -> None:
    pair = json.dumps(PAIR).encode()
    write(path, b'{"a":' + pair + b',"a":' + pair + b"}", bytes(16))
    assert other_reader_opens(path)
    with pytest.raises(InvalidInput, match="'a' twice"):
        read_safetensors_header(path)
    write(path, b'{"a":{"shape":[2],"shape":[2],"dtype":"I64","data_offsets":[0,16]}}', bytes(16))
    with pytest.raises(InvalidInput, match="'shape' twice"):
        read_safetensors_header(path)


@pytest.mark.parametrize("n_header", [0, 1, 17, 2**31, 2**63, 2**64 - 1])
def test_a_length_that_the_file_does_not_have(n_header: int, path: Path) -> None:
    path.write_bytes(n_header.to_bytes(8, "little") + b"{}" + bytes(14))
    with pytest.raises(InvalidInput, match=f"header of {n_header} bytes in a file of 24"):
        read_safetensors_header(path)


def test_a_header_past_the_limit_of_the_format(path: Path) -> None:
    path.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(path, 2**30)
    with pytest.raises(InvalidInput, match="100000001 bytes, expected 100000000 at most"):
        read_safetensors_header(path)


@pytest.mark.parametrize("header", [b"[" * 200_000, b'{"a":' * 200_000, b'{"a":' + b"9" * 5000 + b"}"])
def test_json_made_to_exhaust_its_reader(header: bytes, path: Path) -> None:
    assert not this_reader_opens(write(path, header))


def test_a_shape_made_to_exhaust_its_reader(path: Path) -> None:
    for shape in ([2**62] * 200_000, [1] * 200_000 + [3], [0] + [2**62] * 200_000):
        assert not this_reader_opens(write(path, {"a": {**PAIR, "shape": shape}}, bytes(16)))


def test_something_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_safetensors_header(tmp_path / "missing.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", tmp_path):
        with pytest.raises(InvalidInput, match="no regular file"):
            read_safetensors_header(path)


def small_file(path: Path) -> bytes:
    arrays = {"b.multipliers": np.array([3, 2**62 + 1]), "a.weight": np.zeros((3, 2), dtype=np.float16)}
    save_file(arrays, path, metadata={"format": "pt"})
    return path.read_bytes()


def test_every_truncation_is_refused(path: Path) -> None:
    whole = small_file(path)
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        assert not this_reader_opens(path)


def has_a_duplicate_key(header: bytes) -> bool:
    keys: list[list[str]] = []
    json.loads(header, object_pairs_hook=lambda pairs: keys.append([key for key, _ in pairs]))
    return any(len(set(names)) < len(names) for names in keys)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bits_are_refused_or_read_as_the_other_reader_does(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "x.safetensors"
    whole = bytearray(small_file(path))
    n_header = int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, 8 + n_header - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    if not this_reader_opens(path):
        assert not other_reader_opens(path) or has_a_duplicate_key(bytes(whole[8 : 8 + n_header]))
        return
    assert other_reader_opens(path)
    header = read_safetensors_header(path)
    for name, info in header.tensors.items():
        assert header.data_offset <= info.start <= info.stop <= len(whole)
        if info.dtype.startswith(("I", "U")):
            assert read_integers(header, name).shape == info.shape


def test_integers_are_refused_where_they_are_none(path: Path) -> None:
    arrays = {
        "float": np.ones(3),
        "half": np.ones(3, dtype=np.float16),
        "flag": np.ones(3, dtype=np.bool_),
        "empty": np.zeros((0, 3), dtype=np.int64),
        "deep": np.ones((1,) * 9, dtype=np.int64),
        "large": np.zeros(2**17 + 1, dtype=np.int64),
        "most": np.zeros(2**17, dtype=np.int64),
        "past": np.array([1, 2**63], dtype=np.uint64),
        "last": np.array([1, 2**63 - 1], dtype=np.uint64),
        "scalar": np.array(5, dtype=np.int32),
    }
    save_file(arrays, path)
    header = read_safetensors_header(path)
    for name in ("float", "half"):
        with pytest.raises(InvalidInput, match=f"{name}.*been through a float is wrong"):
            read_integers(header, name)
    for name in ("flag", "empty", "deep", "large", "past"):
        with pytest.raises(InvalidInput, match=f"{name}.*expected"):
            read_integers(header, name)
    with pytest.raises(InvalidInput, match="no tensor 'other' among 10"):
        read_integers(header, "other")
    assert read_integers(header, "most").shape == (2**17,)
    assert read_integers(header, "last").tolist() == [1, 2**63 - 1]
    assert read_integers(header, "scalar").shape == ()


def test_a_file_cut_after_its_header_was_read(path: Path) -> None:
    save_file({"a": np.arange(4)}, path)
    header = read_safetensors_header(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InvalidInput, match=r"ends at byte \d+, expected \d+; it was cut short"):
        read_integers(header, "a")


def test_a_large_file_is_not_read(path: Path) -> None:
    """A real table's shape in a sparse file of 51 GB."""
    rows = 320_001_536
    header = {"t": {"dtype": "F8_E4M3", "shape": [rows, 160], "data_offsets": [0, rows * 160]}}
    write(path, header)
    os.truncate(path, path.stat().st_size + rows * 160)
    assert read_safetensors_header(path).tensors["t"].shape == (rows, 160)


def test_a_checkpoint_is_a_file_or_a_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no \.safetensors file"):
        checkpoint_headers(tmp_path)
    for nth in (2, 1, 3):
        save_file({f"t{nth}": np.arange(nth)}, tmp_path / f"model-{nth}.safetensors")
    (tmp_path / "model.bin").write_bytes(b"other")
    headers = checkpoint_headers(tmp_path)
    assert [list(header.tensors) for header in headers] == [["t1"], ["t2"], ["t3"]]
    (alone,) = checkpoint_headers(tmp_path / "model-2.safetensors")
    assert (alone.name, alone.where, alone.tensors) == ("model-2.safetensors", headers[1].where, headers[1].tensors)
    (tmp_path / "model-0.safetensors").write_bytes(b"cut")
    with pytest.raises(InvalidInput, match="model-0"):
        checkpoint_headers(tmp_path)


def test_files_that_the_index_names_in_vain(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    assert missing_files(tmp_path) == []
    save_file({"a": np.arange(2)}, tmp_path / "a.safetensors")
    names = {"a": "a.safetensors", "b": "c.safetensors", "c": "b.safetensors", "d": "c.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert missing_files(tmp_path) == ["b.safetensors", "c.safetensors"]
    assert missing_files(tmp_path / "a.safetensors") == ["b.safetensors", "c.safetensors"]
    for wrong in ("{", "[]", '{"weight_map":[]}', '{"weight_map":{"a":1}}', "[" * 200_000):
        index.write_text(wrong)
        with pytest.raises(InvalidInput, match="index"):
            missing_files(tmp_path)
