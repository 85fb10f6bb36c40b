from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables.errors import InvalidInput
from engram_tables.storage.building.initialise import Init, RowFiller, layer_state, mix
from engram_tables.storage.codecs import reference
from engram_tables.storage.codecs.codec import FRESH_CODEC_NAMES, get_codec


def rows_of(codec: str, width: int, init: Init, layer_id: int, first_row: int, n_rows: int) -> np.ndarray:
    out = np.empty((n_rows, get_codec(codec).row_bytes(width)), dtype=np.uint8)
    RowFiller(init, get_codec(codec), width).fill(layer_id, first_row, out)
    return out


def test_published_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 1234567, as its authors print them.
    gamma, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    assert [mix((1234567 + k * gamma) & mask) for k in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@settings(max_examples=30)
@given(
    codec=st.sampled_from(FRESH_CODEC_NAMES),
    groups=st.integers(1, 3),
    seed=st.integers(0, 2**64 - 1),
    layer_id=st.integers(0, 2**31 - 1),
    row=st.integers(0, 2**48 - 3),
    std=st.sampled_from(["0.02", "1.0", "1e-30", "0.0625"]),
)
def test_rows_are_those_of_the_reference(codec: str, groups: int, seed: int, layer_id: int, row: int, std: str) -> None:
    width = 32 * groups
    init = Init.make("normal", row_width=width, seed=seed, std=std)
    records = rows_of(codec, width, init, layer_id, row, 2)
    for k in range(2):
        values = [
            reference.normal_value(seed, layer_id, row + k, column, row_width=width, std=std) for column in range(width)
        ]
        assert bytes(records[k]) == reference.encode_row(codec, values)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 80, 160])
def test_widths_that_fill_no_word(width: int) -> None:
    init = Init.make("normal", row_width=width, seed=9)
    values = rows_of("f32", width, init, 3, 11, 4).view(np.float32)
    expected = [
        [reference.normal_value(9, 3, row, column, row_width=width, std=str(init.std)) for column in range(width)]
        for row in range(11, 15)
    ]
    assert values.tolist() == expected


def test_a_row_does_not_depend_on_where_filling_began() -> None:
    init = Init.make("normal", row_width=32, seed=1)
    whole = rows_of("f32", 32, init, 1, 0, 5000)
    assert np.array_equal(rows_of("f32", 32, init, 1, 4321, 100), whole[4321:4421])
    assert len(np.unique(whole.view(np.uint64))) > 0.99 * whole.size // 8


@pytest.mark.parametrize("codec", [name for name in FRESH_CODEC_NAMES if name not in ("f32", "bf16")])
def test_every_codec_encodes_the_same_values(codec: str) -> None:
    init = Init.make("normal", row_width=32, seed=1)
    values = rows_of("f32", 32, init, 1, 0, 5000).view(np.float32)
    assert np.array_equal(rows_of(codec, 32, init, 1, 0, 5000), get_codec(codec).encode(values))


@pytest.mark.parametrize(("codec", "std"), [("f16", "17000"), ("q4_0", "1.5e5"), ("iq4_nl", "1"), ("opaque-9", "1")])
def test_codecs_that_cannot_hold_the_values_are_refused(codec: str, std: str) -> None:
    with pytest.raises(InvalidInput, match=codec):
        RowFiller(Init.make("normal", row_width=32, std=std), get_codec(codec), 32)


def test_golden_bytes() -> None:
    init = Init.make("normal", row_width=256, seed=0)
    assert init.record() == {"kind": "normal", "seed": 0, "std": "0.0625"}
    records = rows_of("fp8-e4m3-e8m0", 256, init, 14, 384_016_681, 1)
    assert hashlib.sha256(records.tobytes()).hexdigest() == (
        "64fd5067f5e588bc7ac92780e156d72679bae5d56af4325350965487f6d74307"
    )


def test_values_are_normal_and_uncorrelated() -> None:
    init = Init.make("normal", row_width=256, seed=2, std="1")
    values = rows_of("f32", 256, init, 1, 0, 4096).view(np.float32).astype(np.float64)
    n = values.size
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 8 / np.sqrt(n)
    assert abs((values**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / n) + 0.001
    flat = values.reshape(-1)
    for lag in (1, 2, 3, 4, 64, 256):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 5 / np.sqrt(n)
    other = rows_of("f32", 256, init, 2, 0, 4096).view(np.float32)
    assert abs((values * other).mean()) < 5 / np.sqrt(n)
    assert layer_state(2, 1) != layer_state(1, 2)


def test_zeros() -> None:
    init = Init.make("zeros", row_width=32)
    assert init.record() == {"kind": "zeros"}
    for codec in FRESH_CODEC_NAMES:
        assert not get_codec(codec).decode(rows_of(codec, 32, init, 1, 7, 3)).any()


@pytest.mark.parametrize("std", ["0", "-1", "nan", "inf", "1e31", "a", "1e-60", ""])
def test_standard_deviations_that_are_refused(std: str) -> None:
    with pytest.raises(InvalidInput, match="std"):
        Init.make("normal", row_width=32, std=std)


def test_other_refusals_and_one_spelling() -> None:
    for seed in (-1, 2**64):
        with pytest.raises(InvalidInput, match="seed"):
            Init.make("normal", row_width=32, seed=seed)
    with pytest.raises(InvalidInput, match="ones"):
        Init.make("ones", row_width=32)
    with pytest.raises(InvalidInput, match="zeros"):
        Init.make("zeros", row_width=32, std="1")
    assert Init.make("normal", row_width=32, std="0.020") == Init.make("normal", row_width=32, std="2e-2")
    assert Init.make("normal", row_width=32, seed=2**53).record()["seed"] == str(2**53)
