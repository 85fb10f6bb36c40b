from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engram_tables.errors import InvalidInput
from engram_tables.storage import reference
from engram_tables.storage.codecs import CODEC_NAMES, get_codec

FP8 = "fp8-e4m3-e8m0"


def floats(codec: str) -> st.SearchStrategy[float]:
    largest = np.uint32(get_codec(codec).limit_bits - 1).view(np.float32).item()
    return st.floats(-largest, largest, width=32)


def groups(codec: str, width: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, (2, width), elements=floats(codec))


def test_every_code_and_scale_decodes_as_the_reference_does() -> None:
    codes, scales = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    records = np.zeros((65536, 33), dtype=np.uint8)
    records[:, :32] = codes.reshape(-1, 1)
    records[:, 32] = scales.reshape(-1)
    decoded = get_codec(FP8).decode(records)
    expected = np.array(
        [[reference.decode_fp8_pair(code, scale) for scale in range(256)] for code in range(256)], dtype=np.float32
    ).reshape(-1)
    for column in (0, 17, 31):
        assert np.array_equal(decoded[:, column], expected, equal_nan=True)
        signs_of = ~np.isnan(expected)
        assert np.array_equal(np.signbit(decoded[signs_of, column]), np.signbit(expected[signs_of]))
    assert np.isnan(expected).sum() == 2 * 256 + 254


def test_decode_edges() -> None:
    codec = get_codec(FP8)
    record = np.zeros((1, 33), dtype=np.uint8)
    record[0, :4] = [0x38, 0x7E, 0x01, 0x80]
    assert codec.decode(record)[0, :4].tolist() == [2.0**-127, 448 * 2.0**-127, 0.0, 0.0]
    record[0, 32] = 127
    assert codec.decode(record)[0, :4].tolist() == [1.0, 448.0, 2.0**-9, -0.0]
    record[0, 32] = 255
    assert np.isnan(codec.decode(record)).all()


@given(values=groups(FP8, 64))
def test_fp8_encodes_as_the_reference_does(values: np.ndarray) -> None:
    records = get_codec(FP8).encode(values)
    for row, record in zip(values, records, strict=True):
        assert bytes(record) == reference.encode_row(FP8, [float(value) for value in row])


@given(values=hnp.arrays(np.float32, (1, 32), elements=st.floats(-4, 4, width=32)), exponent=st.integers(-140, 100))
def test_fp8_encodes_groups_of_one_magnitude_as_the_reference_does(values: np.ndarray, exponent: int) -> None:
    values = np.ldexp(values, exponent).astype(np.float32)
    assert bytes(get_codec(FP8).encode(values)[0]) == reference.encode_row(FP8, [float(value) for value in values[0]])


@given(values=groups("bf16", 5))
def test_bf16_encodes_as_the_reference_does(values: np.ndarray) -> None:
    for row, record in zip(values, get_codec("bf16").encode(values), strict=True):
        assert bytes(record) == reference.encode_row("bf16", [float(value) for value in row])


def test_every_bf16_code_survives_a_round_trip() -> None:
    codes = np.arange(65536, dtype=np.uint16)
    finite = codes[(codes & 0x7F80) != 0x7F80]
    records = finite.view(np.uint8).reshape(-1, 2)
    assert np.array_equal(get_codec("bf16").encode(get_codec("bf16").decode(records)), records)


@pytest.mark.parametrize("name", CODEC_NAMES)
@given(data=st.data())
@settings(max_examples=50)
def test_decoding_agrees_with_the_reference_and_encoding_again_changes_nothing(name: str, data: st.DataObject) -> None:
    codec = get_codec(name)
    values = data.draw(groups(name, 32))
    records = codec.encode(values)
    decoded = codec.decode(records)
    expected = [reference.decode_row(name, bytes(record)) for record in records]
    assert np.array_equal(decoded, np.array(expected, dtype=np.float32))
    assert np.array_equal(codec.decode(codec.encode(decoded)), decoded)


@pytest.mark.parametrize("mantissa", [0x000000, 0x5FFFFF, 0x600000, 0x600001, 0x7FFFFF])
@pytest.mark.parametrize("exponent", [0, 1, 7, 8, 9, 127, 253])
def test_fp8_scale_never_saturates(mantissa: int, exponent: int) -> None:
    values = np.zeros((1, 32), dtype=np.float32)
    values[0, 7] = np.uint32(exponent << 23 | mantissa).view(np.float32)
    record = get_codec(FP8).encode(values)[0]
    assert bytes(record) == reference.encode_row(FP8, [float(value) for value in values[0]])
    assert 1 <= record[32] <= 247
    if values[0, 7] >= 2.0**-115:
        assert math.isclose(get_codec(FP8).decode(record[None])[0, 7], values[0, 7], rel_tol=2.0**-4)


def test_zeros_keep_their_sign_and_take_scale_127() -> None:
    values = np.zeros((1, 32), dtype=np.float32)
    values[0, 3] = -0.0
    record = get_codec(FP8).encode(values)[0]
    assert record[32] == 127
    assert record[:5].tolist() == [0, 0, 0, 0x80, 0]


@pytest.mark.parametrize("name", CODEC_NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_with_its_place(name: str, bad: float) -> None:
    values = np.ones((5, 64), dtype=np.float32)
    values[3, 40] = bad
    with pytest.raises(InvalidInput, match="row 3, column 40"):
        get_codec(name).encode(values)


@pytest.mark.parametrize(("name", "limit"), [("bf16", 0x7F7F8000), (FP8, 0x7F780000)])
def test_what_would_round_to_infinity_is_refused(name: str, limit: int) -> None:
    values = np.zeros((1, 32), dtype=np.float32)
    values[0, 31] = np.uint32(limit - 1).view(np.float32)
    assert np.isfinite(get_codec(name).decode(get_codec(name).encode(values))).all()
    values[0, 31] = np.uint32(limit).view(np.float32)
    with pytest.raises(InvalidInput, match="column 31"):
        get_codec(name).encode(values)


def test_row_bytes() -> None:
    assert [get_codec(name).row_bytes(256) for name in CODEC_NAMES] == [1024, 512, 264]
    assert [get_codec(name).row_width(get_codec(name).row_bytes(96)) for name in CODEC_NAMES] == [96] * 3
    for width in (0, -32, 31, 33):
        with pytest.raises(InvalidInput, match=str(width)):
            get_codec(FP8).row_bytes(width)
    with pytest.raises(InvalidInput, match="fp9"):
        get_codec("fp9")


def test_shapes_and_buffers() -> None:
    codec = get_codec("bf16")
    assert codec.encode(np.zeros((0, 32), dtype=np.float32)).shape == (0, 64)
    assert codec.decode(np.zeros((2, 3, 4, 64), dtype=np.uint8)).shape == (2, 3, 4, 32)
    out = np.empty((2, 64), dtype=np.uint8)
    assert codec.encode(np.ones((2, 32), dtype=np.float32), out) is out
    with pytest.raises(TypeError):
        codec.encode(np.ones((2, 32), dtype=np.float32), out[:, :32])
    with pytest.raises(InvalidInput, match="63"):
        codec.decode(np.zeros((1, 63), dtype=np.uint8))
    strided = np.ones((2, 64), dtype=np.float32)[:, ::2]
    assert np.array_equal(codec.encode(strided), codec.encode(np.ones((2, 32), dtype=np.float32)))
