"""The block codecs against the `gguf` package, which shares nothing with ours."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engram_tables.storage.codecs import reference
from engram_tables.storage.codecs.codec import get_codec

TYPES = {
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "iq4_nl": gguf.GGMLQuantizationType.IQ4_NL,
    "bf16": gguf.GGMLQuantizationType.BF16,
}
BLOCKS = ("q8_0", "q4_0")


def theirs(values: np.ndarray, name: str) -> np.ndarray:
    return gguf.quants.quantize(values, TYPES[name])


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "iq4_nl"])
def test_every_code_and_scale_decodes_as_theirs(name: str) -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    codes = np.arange(256, dtype=np.uint8).reshape(-1, 32 if name == "q8_0" else 16)
    for k, block in enumerate(codes):
        scales = halves[k :: len(codes)]
        records = np.concatenate([scales, np.tile(block, (len(scales), 1))], axis=1)
        decoded = get_codec(name).decode(records)
        with np.errstate(invalid="ignore"):
            assert np.array_equal(decoded, gguf.quants.dequantize(records, TYPES[name]), equal_nan=True)
        for row in range(0, len(records), 1021):
            plain = np.array(reference.decode_row(name, bytes(records[row])), dtype=np.float32)
            assert np.array_equal(decoded[row], plain, equal_nan=True)


@pytest.mark.parametrize("name", ["q4_0", "iq4_nl"])
def test_every_pair_of_nibbles_decodes_as_theirs(name: str) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(-1, 16)
    scales = np.tile(np.array([0x3555], dtype=np.uint16).view(np.uint8), (16, 1))
    records = np.concatenate([scales, codes], axis=1)
    assert np.array_equal(get_codec(name).decode(records), gguf.quants.dequantize(records, TYPES[name]))


@pytest.mark.parametrize("name", [*BLOCKS, "bf16"])
@pytest.mark.parametrize("scale", [1e-7, 0.02, 1.0, 30000.0])
def test_normal_values_encode_as_theirs(name: str, scale: float) -> None:
    values = (np.random.default_rng(5).standard_normal((2000, 160)) * scale).astype(np.float32)
    assert get_codec(name).encode(values).tobytes() == theirs(values, name).tobytes()


@pytest.mark.parametrize("name", BLOCKS)
@given(data=st.data())
@settings(max_examples=60)
def test_values_on_and_beside_a_tie_encode_as_theirs(name: str, data: st.DataObject) -> None:
    # Multiples of half a step, moved by a few units in the last place.
    halves = data.draw(hnp.arrays(np.int32, (2, 64), elements=st.integers(-254, 254)))
    step = np.float32(data.draw(st.floats(2.0**-20, 2.0**10, width=32)))
    moves = data.draw(hnp.arrays(np.int32, (2, 64), elements=st.integers(-2, 2)))
    values = ((halves.astype(np.float32) * step).view(np.int32) + moves * (halves != 0)).view(np.float32)
    assert get_codec(name).encode(values).tobytes() == theirs(values, name).tobytes()


@pytest.mark.parametrize("name", BLOCKS)
def test_the_sign_of_the_largest_is_that_of_the_first(name: str) -> None:
    for sign in (1, -1):
        values = np.zeros((1, 32), dtype=np.float32)
        values[0, [4, 9, 20]] = [3.0 * sign, -3.0 * sign, 3.0]
        assert get_codec(name).encode(values).tobytes() == theirs(values, name).tobytes()


@pytest.mark.parametrize("name", BLOCKS)
def test_zeros_and_what_vanishes(name: str) -> None:
    values = np.zeros((3, 32), dtype=np.float32)
    values[1, 3] = -0.0
    assert get_codec(name).encode(values).tobytes() == theirs(values, name).tobytes()
    # ggml takes the same d for a block of zeros whatever their signs; the inverse of the last d is infinite.
    values[:] = -0.0
    values[2, 7] = 2.0**-140
    assert (get_codec(name).decode(get_codec(name).encode(values)) == 0).all()
    for row, record in zip(values, get_codec(name).encode(values), strict=True):
        assert bytes(record) == reference.encode_row(name, row.tolist())
