from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engram_tables.errors import InvalidInput
from engram_tables.storage.codecs import reference
from engram_tables.storage.codecs.codec import CODEC_NAMES, FRESH_CODEC_NAMES, Codec, get_codec

FP8 = "fp8-e4m3-e8m0"
SCALAR = "fp8-e4m3-scalar"
# The scale of Qwen's release, 209 * 2**-20, and the ends of the range.
SCALES = (209 * 2.0**-20, 1.0, 2.0**-126, 2.0**119, 0.3)
ENCODERS = (*FRESH_CODEC_NAMES, SCALAR)


def scale_bits(scale: float) -> int:
    return int(np.float32(scale).view(np.uint32))


def codec_of(name: str, scale: float = SCALES[0]) -> Codec:
    return get_codec(name, scale_bits=scale_bits(scale) if name == SCALAR else None)


def floats(codec: Codec) -> st.SearchStrategy[float]:
    largest = np.uint32(codec.limit_bits - 1).view(np.float32).item()
    return st.floats(-largest, largest, width=32)


def groups(codec: str, width: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, (2, width), elements=floats(codec_of(codec)))


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


def test_every_bf16_code_survives_a_round_trip() -> None:
    codes = np.arange(65536, dtype=np.uint16)
    finite = codes[(codes & 0x7F80) != 0x7F80]
    records = finite.view(np.uint8).reshape(-1, 2)
    assert np.array_equal(get_codec("bf16").encode(get_codec("bf16").decode(records)), records)


@pytest.mark.parametrize("name", ENCODERS)
@given(data=st.data())
@settings(max_examples=50)
def test_encoding_and_decoding_agree_with_the_reference(name: str, data: st.DataObject) -> None:
    scale = data.draw(st.sampled_from(SCALES)) if name == SCALAR else SCALES[0]
    codec, single = codec_of(name, scale), np.float32(scale).item()
    values = data.draw(hnp.arrays(np.float32, (1, 64), elements=floats(codec)))
    # Values of one magnitude reach codes that the rounding of a far larger neighbour would leave at zero.
    near = data.draw(hnp.arrays(np.float32, (1, 64), elements=st.floats(-1, 1, width=32)))
    exponent = data.draw(st.integers(-149, int(np.log2(floats_end(codec))) - 1))
    for rows in (values, np.ldexp(near, exponent).astype(np.float32)):
        records = codec.encode(rows)
        for row, record in zip(rows, records, strict=True):
            assert bytes(record) == reference.encode_row(name, row.tolist(), scale=single)
        decoded = codec.decode(records)
        assert np.isfinite(decoded).all()
        assert decoded.tolist() == [reference.decode_row(name, bytes(record), scale=single) for record in records]


def floats_end(codec: Codec) -> float:
    return np.uint32(codec.limit_bits - 1).view(np.float32).item()


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "int4-g32"])
@given(data=st.data())
@settings(max_examples=30)
def test_encoding_what_was_decoded_changes_no_value(name: str, data: st.DataObject) -> None:
    codec = codec_of(name)
    values = data.draw(groups(name, 32))
    if name == "int8-row":
        # Its scales lose bits below the smallest normal half.
        values[:, 0] = np.maximum(np.abs(values[:, 0]), np.float32(127 * 2.0**-14))
    decoded = codec.decode(codec.encode(values))
    assert np.array_equal(codec.decode(codec.encode(decoded)), decoded)


@given(values=hnp.arrays(np.float32, (4, 32), elements=st.floats(-8, 8, width=32)))
def test_how_far_int4_and_int8_are_from_the_original(values: np.ndarray) -> None:
    least, greatest, largest = values.min(1), values.max(1), np.abs(values).max(1)
    # Half a step, and what bf16 takes from bias and scale.
    bound = (greatest - least) / 30 * (1 + 2.0**-7) + np.abs(least) * 2.0**-7 + (greatest - least) * 2.0**-7
    codec = codec_of("int4-g32")
    assert (np.abs(codec.decode(codec.encode(values)) - values).max(1) <= bound + 1e-37).all()
    codec = codec_of("int8-row")
    steps = np.maximum(largest / 127 * (1 + 2.0**-10), 2.0**-24)
    assert (np.abs(codec.decode(codec.encode(values)) - values).max(1) <= steps * 0.5001).all()


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


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_with_its_place(name: str, bad: float) -> None:
    values = np.ones((5, 64), dtype=np.float32)
    values[3, 40] = bad
    with pytest.raises(InvalidInput, match="row 3, column 40"):
        codec_of(name, 1.0).encode(values)


LIMITS = {
    "f32": 0x7F800000,
    "f16": 65520.0,
    "bf16": 0x7F7F8000,
    FP8: 0x7F780000,
    # Above 464, from where rounding leaves the largest code, times the scale.
    SCALAR: np.nextafter(np.float32(464 * SCALES[0]), np.float32(1)).item(),
    "int8-row": np.nextafter(np.float32(127 * 65504.0), np.float32(1e9)).item(),
    "int4-g32": 2.0**126,
    "q8_0": 127 * 65520.0,
    "q4_0": 8 * 65520.0,
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_would_come_back_infinite_is_refused(name: str, sign: int) -> None:
    codec, limit = codec_of(name), LIMITS[name]
    limit_bits = limit if isinstance(limit, int) else scale_bits(limit)
    values = np.zeros((1, 32), dtype=np.float32)
    values[0, 31] = sign * np.uint32(limit_bits - 1).view(np.float32)
    assert np.isfinite(codec.decode(codec.encode(values))).all()
    values[0, 31] = sign * np.uint32(limit_bits).view(np.float32)
    with pytest.raises(InvalidInput, match="column 31"):
        codec.encode(values)


def test_row_bytes() -> None:
    codecs = [codec_of(name) for name in CODEC_NAMES]
    assert [codec.row_bytes(256) for codec in codecs] == [1024, 512, 512, 264, 256, 258, 160, 272, 144, 144]
    assert [codec.row_bytes(160) for codec in codecs] == [640, 320, 320, 165, 160, 162, 100, 170, 90, 90]
    assert [codec.row_width(codec.row_bytes(96)) for codec in codecs] == [96] * 10
    for codec in codecs:
        widths = (0, -32, 31, 33) if codec.group_values == 32 else (0, -32)
        for width in widths:
            with pytest.raises(InvalidInput, match=str(width)):
                codec.row_bytes(width)
            with pytest.raises(InvalidInput, match=str(width)):
                codec.sections(width)
    with pytest.raises(InvalidInput, match="fp9"):
        get_codec("fp9")
    with pytest.raises(InvalidInput, match="2 bytes"):
        codec_of("int8-row").row_width(2)


def test_sections_are_the_record() -> None:
    assert get_codec(FP8).sections(256) == (("weights", 0, 256), ("scales", 256, 8))
    assert get_codec("int8-row").sections(160) == (("weights", 0, 160), ("scales", 160, 2))
    assert get_codec("int4-g32").sections(160) == (("weights", 0, 80), ("scales", 80, 10), ("biases", 90, 10))
    assert get_codec("opaque-7").sections(160) == (("records", 0, 7),)
    for name in set(CODEC_NAMES) - {FP8, "int8-row", "int4-g32"}:
        assert codec_of(name).sections(64) == (("records", 0, codec_of(name).row_bytes(64)),)


def test_opaque_records_are_only_counted() -> None:
    codec = get_codec("opaque-90")
    assert [codec.row_bytes(width) for width in (1, 160, 161)] == [90, 90, 90]
    for attempt in (
        lambda: codec.encode(np.zeros((1, 160), dtype=np.float32)),
        lambda: codec.decode(np.zeros((1, 90), dtype=np.uint8)),
        lambda: codec.row_width(90),
    ):
        with pytest.raises(InvalidInput, match="opaque-90"):
            attempt()
    for name in ("opaque-0", "opaque-", "opaque-01", "opaque--1", "opaque-1000000000", "opaque-9\n"):
        with pytest.raises(InvalidInput, match="not known"):
            get_codec(name)


def test_what_is_only_read_is_not_written() -> None:
    with pytest.raises(InvalidInput, match="iq4_nl"):
        get_codec("iq4_nl").encode(np.zeros((1, 32), dtype=np.float32))


def test_the_scale_of_a_whole_table() -> None:
    assert codec_of(SCALAR).scale == np.float32(0.00019931793212890625)
    with pytest.raises(InvalidInput, match="no scale"):
        get_codec(SCALAR)
    with pytest.raises(InvalidInput, match="0x3f800000"):
        get_codec("bf16", scale_bits=scale_bits(1.0))
    for scale in (0.0, -1.0, math.inf, math.nan, 2.0**-127, 2.0**120):
        with pytest.raises(InvalidInput, match="scale"):
            get_codec(SCALAR, scale_bits=scale_bits(scale))
    with pytest.raises(InvalidInput, match="scale"):
        get_codec(SCALAR, scale_bits=2**63)


@pytest.mark.parametrize("scale", SCALES)
def test_every_code_of_fp8_with_one_scale(scale: float) -> None:
    codec = codec_of(SCALAR, scale)
    codes = np.arange(256, dtype=np.uint8)[None]
    decoded = codec.decode(codes)
    expected = reference.decode_row(SCALAR, bytes(codes[0]), scale=np.float32(scale).item())
    assert decoded.view(np.uint32)[0].tolist()[:127] == np.array(expected, np.float32).view(np.uint32).tolist()[:127]
    assert np.array_equal(decoded[0], np.array(expected, np.float32), equal_nan=True)
    assert np.flatnonzero(np.isnan(decoded[0])).tolist() == [127, 255]
    finite = codes[:, (codes[0] & 127) != 127]
    assert np.array_equal(codec.encode(codec.decode(finite)), finite)


def test_every_half() -> None:
    codes = np.arange(65536, dtype=np.uint16)
    decoded = get_codec("f16").decode(codes.view(np.uint8).reshape(-1, 2))[:, 0]
    expected = np.array(reference.decode_row("f16", codes.tobytes()), dtype=np.float32)
    is_nan = np.isnan(expected)
    assert np.array_equal(decoded.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])
    assert np.isnan(decoded[is_nan]).all()
    finite = np.isfinite(decoded)
    assert np.array_equal(get_codec("f16").encode(decoded[finite, None]).view(np.uint16)[:, 0], codes[finite])
    # Half way between neighbours, and one float32 to either side.
    middle = (decoded[:0x7BFF] + decoded[1:0x7C00]) / 2
    for values in (middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))):
        assert get_codec("f16").encode(values[:, None]).tobytes() == values.astype(np.float16).tobytes()


def test_every_code_and_scale_of_int8_rows() -> None:
    halves = np.arange(65536, dtype=np.uint16)
    for codes in np.arange(256, dtype=np.uint8).reshape(4, 64):
        records = np.concatenate([np.tile(codes, (65536, 1)), halves.view(np.uint8).reshape(-1, 2)], axis=1)
        decoded = get_codec("int8-row").decode(records)
        with np.errstate(invalid="ignore"):
            expected = codes.view(np.int8).astype(np.float32) * halves.view(np.float16).astype(np.float32)[:, None]
        assert np.array_equal(decoded, expected, equal_nan=True)
        for k in range(0, 65536, 4099):
            plain = np.array(reference.decode_row("int8-row", bytes(records[k])), dtype=np.float32)
            assert np.array_equal(decoded[k], plain, equal_nan=True)


def test_every_code_and_many_scales_and_biases_of_int4() -> None:
    codes = np.array([low | high << 4 for low, high in zip(range(0, 16, 2), range(1, 16, 2), strict=True)], np.uint8)
    every = np.arange(65536, dtype=np.uint16)
    # 0, 1, -1, the largest, the smallest, infinities, NaN.
    others = np.array([0, 0x3F80, 0xBF80, 0x7F7F, 0x0001, 0x8001, 0x7F80, 0xFF80, 0x7FC1], dtype=np.uint16)
    for other in others:
        for scales, biases in ((every, np.full_like(every, other)), (np.full_like(every, other), every)):
            weights = np.tile(codes, (65536, 2))
            records = np.concatenate([weights, *(part.view(np.uint8).reshape(-1, 2) for part in (scales, biases))], 1)
            decoded = get_codec("int4-g32").decode(records)
            scale, bias = ((part.astype(np.uint32) << 16).view(np.float32)[:, None] for part in (scales, biases))
            with np.errstate(invalid="ignore", over="ignore"):
                expected = np.tile(np.arange(16, dtype=np.float32), 2) * scale + bias
            assert np.array_equal(decoded, expected, equal_nan=True)
            for k in range(0, 65536, 8191):
                plain = np.array(reference.decode_row("int4-g32", bytes(records[k])), dtype=np.float32)
                assert np.array_equal(decoded[k], plain, equal_nan=True)


def test_where_the_nibbles_of_int4_stand() -> None:
    record = bytes([0x10, 0x32]) + bytes(14) + bytes([0x80, 0x3F]) + bytes([0x00, 0x40])
    decoded = get_codec("int4-g32").decode(np.frombuffer(record, dtype=np.uint8))
    assert decoded[:5].tolist() == [2.0, 3.0, 4.0, 5.0, 2.0]


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


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_records_of_any_shape_place_and_protection(name: str) -> None:
    codec = codec_of(name)
    row_bytes = codec.row_bytes(64)
    memory = np.zeros(6 * row_bytes + 1, dtype=np.uint8)
    records = memory[1:].reshape(2, 3, row_bytes)
    if codec.can_encode:
        values = np.random.default_rng(1).standard_normal((6, 64)).astype(np.float32) / 64
        codec.encode(values, records.reshape(6, row_bytes))
        assert codec.encode(values).tobytes() == records.tobytes()
        assert codec.encode(values[:0]).shape == (0, row_bytes)
    decoded = codec.decode(records)
    assert decoded.shape == (2, 3, 64)
    assert records.flags.writeable
    records.flags.writeable = False
    assert np.array_equal(codec.decode(records[1, 2]), decoded[1, 2])
    assert codec.decode(records[:0]).shape == (0, 3, 64)
