from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables.errors import InvalidInput
from engram_tables.gguf_file import GgufHeader, read_gguf

MULTIPLIERS = [76632096046245, 2**63 - 1, 2**64 - 1, 4839876093313]
T = GGUFValueType
SCALARS = {
    "x.u8": (T.UINT8, 255, "u8"),
    "x.i8": (T.INT8, -128, "i8"),
    "x.u16": (T.UINT16, 65535, "u16"),
    "x.i16": (T.INT16, -32768, "i16"),
    "x.u32": (T.UINT32, 2**32 - 1, "u32"),
    "x.i32": (T.INT32, -(2**31), "i32"),
    "x.f32": (T.FLOAT32, 0.5, "f32"),
    "x.bool": (T.BOOL, True, "bool"),
    "x.string": (T.STRING, "e4m3 — ä", "string"),
    "x.u64": (T.UINT64, 2**64 - 1, "u64"),
    "x.i64": (T.INT64, -(2**63), "i64"),
    "x.f64": (T.FLOAT64, 1e300, "f64"),
}
ARRAYS: dict[str, tuple[GGUFValueType, list[Any], str]] = {
    "y.u8": (T.UINT8, [0, 255], "u8[]"),
    "y.i16": (T.INT16, [-1, 7], "i16[]"),
    "y.u32": (T.UINT32, [16000057, 2**32 - 1], "u32[]"),
    "y.i32": (T.INT32, [-1, 2**31 - 1], "i32[]"),
    "y.f32": (T.FLOAT32, [0.5, -2.0], "f32[]"),
    "y.bool": (T.BOOL, [True, False], "bool[]"),
    "y.strings": (T.STRING, ["a", "", "ä" * 100], "string[]"),
    "y.u64": (T.UINT64, MULTIPLIERS, "u64[]"),
    "y.i64": (T.INT64, [-(2**63), 2**63 - 1], "i64[]"),
}


def always(_: str) -> bool:
    return True


def never(_: str) -> bool:
    return False


def write(path: Path, fill: Callable[[GGUFWriter], None], **options: Any) -> Path:
    writer = GGUFWriter(path, "deepseek41", **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def everything(writer: GGUFWriter) -> None:
    for key, (kind, value, _) in SCALARS.items():
        writer.add_key_value(key, value, kind)
    for key, (kind, values, _) in ARRAYS.items():
        writer.add_key_value(key, values, T.ARRAY, sub_type=kind)
    writer.add_tensor("blk.1.engram_embd.weight", np.arange(3 * 264, dtype=np.int8).reshape(3, 264))
    writer.add_tensor("norm", np.ones(5, dtype=np.float32))
    writer.add_tensor("table", np.zeros((7, 5 * 34), dtype=np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.gguf"


@pytest.mark.parametrize("alignment", [None, 8, 4096])
def test_every_value_that_another_writer_wrote(alignment: int | None, path: Path) -> None:
    def fill(writer: GGUFWriter) -> None:
        if alignment is not None:
            writer.add_custom_alignment(alignment)
        everything(writer)

    header = read_gguf(write(path, fill), always)
    assert (header.version, header.alignment, header.where) == (3, alignment or 32, str(path))
    assert header.values["general.architecture"].value == "deepseek41"
    for key, (_, scalar, type_name) in SCALARS.items():
        found = header.values[key]
        assert (found.type_name, found.value, type(found.value)) == (type_name, scalar, type(scalar))
    for key, (_, values, type_name) in ARRAYS.items():
        found = header.values[key]
        assert found.type_name == type_name
        as_list = found.value if isinstance(found.value, list) else found.value.tolist()  # type: ignore[union-attr]
        assert as_list == values
    assert header.array_lengths == {}
    assert {name: (tensor.type_name, tensor.dims) for name, tensor in header.tensors.items()} == {
        "blk.1.engram_embd.weight": ("I8", (264, 3)),
        "norm": ("F32", (5,)),
        "table": ("Q8_0", (160, 7)),
    }
    data = path.read_bytes()
    start = header.tensors["blk.1.engram_embd.weight"].offset
    assert start == header.data_offset
    assert data[start : start + 3 * 264] == np.arange(3 * 264, dtype=np.int8).tobytes()
    start = header.tensors["norm"].offset
    assert data[start : start + 20] == np.ones(5, dtype=np.float32).tobytes()
    assert start % header.alignment == 0


def test_what_is_not_wanted_is_stepped_over(path: Path) -> None:
    whole = read_gguf(write(path, everything), always)
    header = read_gguf(path, never)
    assert header.values == {}
    assert header.array_lengths == {key: len(values) for key, (_, values, _) in ARRAYS.items()}
    assert header.tensors == whole.tensors
    some = read_gguf(path, lambda key: key.endswith("u64"))
    assert list(some.values) == ["x.u64", "y.u64"]
    assert "y.u64" not in some.array_lengths


def test_the_alignment_is_kept_where_wanted_alone(path: Path) -> None:
    write(path, lambda writer: writer.add_custom_alignment(64))
    assert read_gguf(path, never).values == {}
    assert read_gguf(path, never).alignment == 64
    assert read_gguf(path, always).values["general.alignment"].value == 64


@pytest.mark.parametrize("n_tokens", [1, 200_003])
def test_strings_of_a_tokenizer_across_windows(n_tokens: int, path: Path) -> None:
    """More than three windows of strings, with one longer than a window among them."""
    tokens = [f"token {nth:010}" for nth in range(n_tokens)]
    if n_tokens > 1:
        tokens[777] = "x" * (2**20 + 5)

    def fill(writer: GGUFWriter) -> None:
        writer.add_key_value("tokenizer.ggml.tokens", tokens, T.ARRAY, sub_type=T.STRING)
        writer.add_uint64("behind", 2**63 + 1)

    write(path, fill)
    header = read_gguf(path, lambda key: key == "behind")
    assert header.array_lengths == {"tokenizer.ggml.tokens": n_tokens}
    assert header.values["behind"].value == 2**63 + 1
    assert read_gguf(path, always).values["tokenizer.ggml.tokens"].value == tokens


def test_big_endian_files_are_refused_by_name(path: Path) -> None:
    write(path, everything, endianess=GGUFEndian.BIG)
    with pytest.raises(InvalidInput, match="version 3 in big-endian order"):
        read_gguf(path, never)


def test_tensor_types_are_those_of_the_other_implementation(path: Path) -> None:
    for kind, (block_values, block_bytes) in GGML_QUANT_SIZES.items():
        dims = (3 * block_values, 2)
        path.write_bytes(made(tensors=[("t", dims, int(kind), 0)], n_data=6 * block_bytes))
        assert read_gguf(path, never).tensors["t"].type_name == kind.name
        path.write_bytes(made(tensors=[("t", dims, int(kind), 0)], n_data=6 * block_bytes - 1))
        assert refusal(path)
        if block_values > 1:
            path.write_bytes(made(tensors=[("t", (block_values + 1, 2), int(kind), 0)], n_data=4096))
            assert "a multiple of" in refusal(path)


# Files made by hand: what no writer writes.


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def scalar(key: str | bytes, type_id: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", type_id) + data


def array(key: str, type_id: int, n_elements: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<IIQ", 9, type_id, n_elements) + data


def made(
    *values: bytes,
    tensors: list[tuple[str, tuple[int, ...], int, int]] | None = None,
    version: int = 3,
    n_data: int = 0,
    n_values: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    tensors = tensors or []
    header = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(values) if n_values is None else n_values,
    )
    header += b"".join(values)
    for name, dims, type_id, offset in tensors:
        header += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)
    return header + bytes(-len(header) % alignment + n_data if tensors else 0)


def refusal(path: Path, wanted: Callable[[str], bool] = never) -> str:
    """The message of the refusal, or '' if the file is read."""
    try:
        read_gguf(path, wanted)
    except InvalidInput as error:
        message = str(error)
    else:
        return ""
    assert str(path) in message
    assert "expected" in message
    assert len(message) < 1000
    return message


U8 = scalar("a", 0, b"\1")
VALID = {
    "nothing in it": made(),
    "version 2": made(U8, version=2),
    "an empty array": made(array("a", 10, 0, b"")),
    "empty strings": made(array("a", 8, 3, bytes(24))),
    "an empty key": made(scalar("", 0, b"\1")),
    "a scalar tensor": made(tensors=[("t", (), 0, 0)], n_data=4),
    "an empty tensor": made(tensors=[("t", (0, 5), 0, 0)]),
    "a tensor of an unknown type": made(tensors=[("t", (160, 5), 139, 0)]),
    "tensors out of order": made(tensors=[("t", (4,), 0, 32), ("u", (4,), 0, 0)], n_data=64),
    "a gap between tensors": made(tensors=[("t", (4,), 0, 0), ("u", (4,), 0, 64)], n_data=128),
    "alignment 1": made(scalar("general.alignment", 4, struct.pack("<I", 1)), tensors=[("t", (3,), 24, 0)],
                        n_data=3, alignment=1),
}  # fmt: skip
INVALID = {
    "magic": (b"GGML" + made()[4:], "b'GGML' at its start"),
    "version 1": (made(version=1), "version 1, expected"),
    "version 4": (made(version=4), "version 4, expected"),
    "version 0": (made(version=0), "version 0"),
    "counts of key-values": (made(n_values=2**63), "9223372036854775808 key-values"),
    "one key-value too many": (made(U8, n_values=2), "2 key-values|a key"),
    "counts of tensors": (made(n_tensors=2**64 - 1), "18446744073709551615 tensors"),
    "key longer than the file": (made(struct.pack("<Q", 2**64 - 1) + bytes(8), n_values=1), "a key of 184467440737095"),
    "key longer than keys are": (made(scalar("k" * 65536, 0, b"\1")), "65535 at most"),
    "key that is no UTF-8": (made(scalar(b"\xff\xfe", 0, b"\1")), "expected UTF-8"),
    "key twice": (made(U8, U8), "'a' twice"),
    "value type": (made(scalar("a", 13, b"\1")), "value type 13"),
    "element type": (made(array("a", 99, 1, bytes(8))), "value type 99"),
    "array of arrays": (made(array("a", 9, 1, bytes(32))), "array of arrays"),
    "array longer than the file": (made(array("a", 10, 2**61, bytes(64))), "18446744073709551616 bytes"),
    "strings more than the file": (made(array("a", 8, 2**61, bytes(64))), "2305843009213693952 strings"),
    "string longer than the file": (made(array("a", 8, 2, text("x") + struct.pack("<Q", 2**63))), "found the value"),
    "string of almost 2^64": (made(array("a", 8, 2, struct.pack("<Q", 2**64 - 8) + bytes(64))), "found the value"),
    "scalar string longer than the file": (made(scalar("a", 8, struct.pack("<Q", 2**62))), "4611686018427387904"),
    "alignment 0": (made(scalar("general.alignment", 4, bytes(4))), "power of two"),
    "alignment 48": (made(scalar("general.alignment", 4, struct.pack("<I", 48))), "48 as u32"),
    "alignment as u64": (made(scalar("general.alignment", 10, struct.pack("<Q", 64))), "64 as u64"),
    "alignment as string": (made(scalar("general.alignment", 8, text("64"))), "'64' as string"),
    "alignment as array": (made(array("general.alignment", 4, 1, struct.pack("<I", 64))), r"u32\[\]"),
    "dimensions": (made(tensors=[("t", (1, 1, 1, 1, 1), 0, 0)], n_data=64), "5 dimensions"),
    "many dimensions": (
        made(n_tensors=1) + text("t") + struct.pack("<I", 2**32 - 1) + bytes(64), "4294967295 dimensions",
    ),
    "dimension past 2^63": (made(tensors=[("t", (2**63,), 0, 0)], n_data=64), "9223372036854775807 at most"),
    "product that wraps to 0": (made(tensors=[("t", (2**32, 2**32), 0, 0)], n_data=64), "to end within"),
    "product that wraps to 4": (made(tensors=[("t", (2**62 + 1, 4), 0, 0)], n_data=64), "to end within"),
    "tensor past the end": (made(tensors=[("t", (16,), 0, 32)], n_data=64), "to end within"),
    "offset past the end": (made(tensors=[("t", (1,), 139, 2**64 - 32)], n_data=64), "to end within"),
    "unaligned tensor": (made(tensors=[("t", (4,), 0, 16)], n_data=64), "a multiple of 32"),
    "tensor twice": (made(tensors=[("t", (4,), 0, 0), ("t", (4,), 0, 32)], n_data=64), "'t' twice"),
    "overlapping tensors": (made(tensors=[("t", (16,), 0, 0), ("u", (4,), 0, 32)], n_data=64), "'u'.*inside 't'"),
    "tensors in one place": (made(tensors=[("t", (4,), 0, 0), ("u", (4,), 0, 0)], n_data=64), "inside"),
    "tensor name that is no UTF-8": (
        made(n_tensors=1) + text(b"\xc3(") + struct.pack("<IIQ", 0, 0, 0) + bytes(64), "expected UTF-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VALID)
def test_what_is_valid_is_read(case: str, path: Path) -> None:
    path.write_bytes(VALID[case])
    assert isinstance(read_gguf(path, never), GgufHeader)
    assert isinstance(read_gguf(path, always), GgufHeader)


@pytest.mark.parametrize("case", INVALID)
def test_what_is_not_is_refused(case: str, path: Path) -> None:
    data, message = INVALID[case]
    path.write_bytes(data)
    for wanted in (never, always):
        with pytest.raises(InvalidInput, match=message):
            read_gguf(path, wanted)
        assert refusal(path, wanted)


def test_wanted_values_are_checked_further(path: Path) -> None:
    for value in (scalar("a", 8, text(b"\xff")), array("a", 8, 1, text(b"\xff")), scalar("a", 7, b"\2"),
                  array("a", 7, 3, b"\0\1\2")):  # fmt: skip
        path.write_bytes(made(value))
        assert refusal(path, never) == ""
        assert "a" in refusal(path, always)


def test_a_sparse_file_of_zeros_is_not_walked_for_hours(path: Path) -> None:
    n_bytes = 2**40
    huge = {
        "strings": array("a", 8, n_bytes // 8 - 100, b""),
        "bytes": array("a", 0, n_bytes - 1000, b""),
        "string": scalar("a", 8, struct.pack("<Q", n_bytes - 1000)),
    }
    for value in huge.values():
        path.write_bytes(made(value))
        os.truncate(path, n_bytes)
        assert "134217728 bytes at most" in refusal(path)
    path.write_bytes(made(n_values=n_bytes // 13 - 10))
    os.truncate(path, n_bytes)
    assert "'' twice" in refusal(path)
    path.write_bytes(made(n_tensors=n_bytes // 24 - 10))
    os.truncate(path, n_bytes)
    assert "'' twice" in refusal(path)


def test_a_large_table_is_not_read(path: Path) -> None:
    """A real table's shape in a sparse file."""
    rows = 320_001_536
    path.write_bytes(made(tensors=[("per_layer_token_embd.weight", (160, rows), 20, 0)]))
    assert "to end within" in refusal(path)
    os.truncate(path, path.stat().st_size + rows * 90)
    assert read_gguf(path, never).tensors["per_layer_token_embd.weight"].dims == (160, rows)


def test_something_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_gguf(tmp_path / "missing.gguf", never)
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", tmp_path):
        assert "no regular file" in refusal(path)


def test_every_truncation_is_refused(path: Path) -> None:
    whole = write(path, everything).read_bytes()
    # The writer pads the file's end; what counts is where the last tensor ends.
    end = read_gguf(path, never).tensors["table"].offset + 7 * 5 * 34
    for n_bytes in reversed(range(end)):
        os.truncate(path, n_bytes)
        assert refusal(path, always)
        assert n_bytes % 5 or refusal(path, never)
    path.write_bytes(whole[:end])
    assert refusal(path, always) == ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int, Path]:
    path = write(tmp_path_factory.mktemp("whole") / "x.gguf", everything)
    return path.read_bytes(), read_gguf(path, never).data_offset, path.with_name("changed.gguf")


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_refused_or_read_within_bounds(data: st.DataObject, whole: tuple[bytes, int, Path]) -> None:
    original, n_header, path = whole
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, n_header - 1))
        if data.draw(st.booleans()):
            changed[position] ^= 1 << data.draw(st.integers(0, 7))
        else:
            values = data.draw(st.sampled_from([b"\0" * 8, b"\xff" * 8, struct.pack("<Q", 2**63), b"\xff" * 4]))
            changed[position : position + len(values)] = values
    path.write_bytes(changed)
    kept, skipped = refusal(path, always), refusal(path, never)
    assert not skipped or kept
    if not kept:
        header = read_gguf(path, always)
        assert header.data_offset <= len(changed) + header.alignment
        assert all(tensor.offset <= len(changed) for tensor in header.tensors.values())


@settings(max_examples=200, deadline=None)
@given(tail=st.binary(max_size=200))
def test_arbitrary_bytes_behind_a_right_beginning(tail: bytes, whole: tuple[bytes, int, Path]) -> None:
    path = whole[2]
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + tail)
    refusal(path, always)
    refusal(path, never)
