"""Hash kernels against golden rows, the plain-Python reference, and themselves in chunks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables import load_spec
from engram_tables.address import hashing, kernels, reference, vectors
from engram_tables.address.hashing import hash_ngrams, hash_tokens
from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.errors import InvalidInput

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "deepseek-v4.1-flash.json").read_bytes())
V41 = load_spec("deepseek-v4.1-flash")


def _spec(
    *,
    canonical_size: int = 99_092,
    orders: tuple[int, ...] = (2, 3, 4),
    heads: tuple[int, ...] = (8, 8, 8),
    base: int = 16_000_000,
    n_layers: int = 2,
    fill_id: int = 0,
) -> AddressSpec:
    """A spec with the largest multipliers allowed, and consecutive moduli from `base`: they need not be prime."""
    largest = (2**63 - 1) // canonical_size
    largest -= 1 - largest % 2
    layers = []
    for layer_id in range(n_layers):
        starts = np.cumsum((0, *heads))
        moduli = tuple(tuple(base + int(s) + h for h in range(n)) for s, n in zip(starts, heads, strict=False))
        flat = [m for per_order in moduli for m in per_order]
        offsets = np.cumsum([0, *flat])
        layers.append(
            LayerAddressing(
                layer_id=layer_id,
                multipliers=tuple(largest - 2 * (7 * layer_id + back) for back in range(orders[-1])),
                moduli=moduli,
                offsets=tuple(offsets[:-1].tolist()),
                n_rows=int(offsets[-1]),
            )
        )
    return AddressSpec(
        name="t",
        provenance="test",
        canonical_size=canonical_size,
        history=HistoryRule(fill_id=fill_id),
        orders=orders,
        layers=tuple(layers),
    )


def _reference(spec: AddressSpec, ids: list[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows and keys by the plain-Python reference; -1 where dead."""
    per_layer = [reference.address(spec, layer, ids) for layer in spec.layers]
    rows = np.array([rows for rows, _ in per_layer], dtype=np.int64).reshape(len(spec.layers), len(ids), spec.n_columns)
    keys = np.array([keys for _, keys in per_layer], dtype=np.uint64)
    return rows.swapaxes(0, 1), keys.reshape(len(spec.layers), len(ids), len(spec.orders)).swapaxes(0, 1)


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_golden_rows(name: str) -> None:
    case = GOLDEN["cases"][name]
    ids = np.array(case["compressed_ids"])
    rows = V41.address(np.maximum(ids, 0), dead=ids < 0).rows
    assert rows.tolist() == case["rows[pos][layer][col]"]
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == case["sha256_le_i64"]


def test_published_decode_step_with_history() -> None:
    rows = V41.address([15], history=[0, 3]).rows
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    assert digest == "09c32d336e7a23d61ff9ac94674cb30039857eeeb3df82cf475157685d76c530"


def test_published_demo_rows() -> None:
    demo = load_spec("engram-demo")
    ids = [0, 1134, 15695, 237, 2049, 1260, 85761, 237, 12071, 36, 9745, 20232, 290, 16]
    offsets = np.array([layer.offsets for layer in demo.layers])
    local = demo.address(ids).rows - offsets
    assert local[0, 0].tolist() == [525894, 395172, 559165, 204669, 374248, 80933, 214739, 170590,
                                    167317, 190172, 226935, 49676, 513067, 151339, 66287, 605785]  # fmt: skip
    assert local[13, 1].tolist() == [149934, 204005, 403124, 497355, 612033, 636975, 605409, 193125,
                                     526632, 370177, 555343, 228907, 329503, 58611, 587793, 554141]  # fmt: skip


def test_latch_cases_from_the_public_tests() -> None:
    pad = 2
    rule = HistoryRule(fill_id=pad)
    assert reference.window([100, 200, -1, 400], 3, max_order=4, history=rule) == [
        400,
        pad,
        pad,
        pad,
    ]
    assert reference.window([-1, 200, 300, 400], 3, max_order=4, history=rule) == [
        400,
        300,
        200,
        pad,
    ]
    assert reference.window([100, -1, 300], 1, max_order=4, history=rule) == [pad] * 4
    # The kernels latch alike: a dead token equals the start of a sequence for whatever follows it.
    ids, dead = [100, 200, 7, 400], [False, False, True, False]
    np.testing.assert_array_equal(V41.address(ids, dead=dead).rows[3], V41.address([400]).rows[0])


@st.composite
def _streams(draw: st.DrawFn, canonical_size: int) -> list[int]:
    top = canonical_size - 1
    token = st.one_of(st.just(-1), st.just(0), st.just(top), st.integers(0, top))
    return draw(st.lists(token, max_size=40))


SPECS = {
    "v4.1": V41,
    "demo": load_spec("engram-demo"),
    "one order": _spec(orders=(1,), heads=(3,), n_layers=1),
    "gap and uneven heads": _spec(orders=(1, 3, 6), heads=(1, 9, 17), n_layers=3, fill_id=5),
    "smallest fast modulus": _spec(base=vectors.SMALLEST_FAST_MODULUS),
    "too small a modulus": _spec(base=1),
    "largest fast modulus": _spec(base=vectors.LARGEST_FAST_MODULUS - 23),
    "too large a modulus": _spec(base=2**31 - 1),
    "wide ids": _spec(canonical_size=2**32, fill_id=2**32 - 1),
    "one id": _spec(canonical_size=1),
}


@pytest.mark.parametrize("name", SPECS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_kernels_equal_the_reference(name: str, data: st.DataObject) -> None:
    spec = SPECS[name]
    ids = data.draw(_streams(spec.canonical_size))
    cut = data.draw(st.integers(0, len(ids)))
    rows, keys = _reference(spec, ids)
    given_ids = np.array(ids, dtype=np.int64)
    whole = spec.address(given_ids, dead=given_ids < 0)
    np.testing.assert_array_equal(whole.rows, rows)
    np.testing.assert_array_equal(whole.keys, keys)
    # A chunk with its history equals the same positions of the whole, dead spans across the border included.
    chunk = given_ids[cut:]
    after = spec.address(chunk, dead=chunk < 0, history=given_ids[max(0, cut - spec.max_order + 1) : cut])
    np.testing.assert_array_equal(after.rows, rows[cut:])
    np.testing.assert_array_equal(after.keys, keys[cut:])


def _adversarial_mixes(modulus: int, rng: np.random.Generator) -> list[int]:
    """Mixes on both sides of multiples of a modulus, the largest ones included."""
    largest = (2**63 - 1) // modulus
    quotients = [0, 1, 2, largest - 1, largest, *(int(q) for q in rng.integers(0, largest, 300, endpoint=True))]
    near = [q * modulus + step for q in quotients for step in (-2, -1, 0, 1, 2, modulus // 2, modulus - 1)]
    return [mix for mix in near if 0 <= mix < 2**63]


ALL_V41_PRIMES = [prime for layer in GOLDEN["primes"] for heads in layer for prime in heads]


@pytest.mark.parametrize("modulus", [8193, 8209, 16384, 65_537, 646_403, *ALL_V41_PRIMES, 2**30 + 3, 2**31 - 1])
def test_reduction_is_exact_near_every_multiple(modulus: int) -> None:
    """An id times the multiplier 1 is its own mix, so any mix below 2^32 can be fed in; two tokens reach the rest."""
    rng = np.random.default_rng(modulus)
    mixes = _adversarial_mixes(modulus, rng)
    spec = AddressSpec(
        name="t", provenance="test", canonical_size=2, history=HistoryRule(fill_id=0), orders=(1,),
        layers=(
            LayerAddressing(
                layer_id=0, multipliers=(1,), moduli=((modulus,) * 8,), offsets=tuple(range(8)), n_rows=modulus + 8
            ),
        ),
    )  # fmt: skip
    # Past the checks: they would refuse ids above 2^32.
    constants, form = hashing._prepare(spec)
    assert form == kernels.REDUCE
    stream = np.array(mixes, dtype=np.int64)
    rows, keys = np.empty((len(mixes), 8), dtype=np.int64), np.empty(len(mixes), dtype=np.uint64)
    none_dead, history = np.empty(0, dtype=np.bool_), np.empty(0, dtype=np.int64)
    kernels.hash_tokens(stream, none_dead, history, 0, len(mixes), constants, 8, kernels.REDUCE, rows.reshape(-1), keys)
    assert keys.tolist() == mixes
    for lane in range(8):
        assert rows[:, lane].tolist() == [mix % modulus + lane for mix in mixes]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("n_tokens", [0, 1, 255, 256, 257, 4096, 40_011])  # the last one is stored past the cache
def test_any_thread_count_gives_the_same_bits(threads: int, n_tokens: int) -> None:
    rng = np.random.default_rng(n_tokens)
    ids, dead = rng.integers(0, 99_092, n_tokens), rng.random(n_tokens) < 0.05
    one = hash_tokens(V41, ids, dead=dead, threads=1)
    many = hash_tokens(V41, ids, dead=dead, threads=threads)
    assert one.rows.tobytes() == many.rows.tobytes()
    assert one.keys.tobytes() == many.keys.tobytes()
    head, head_rows, _ = ids[:200], *_reference(V41, np.where(dead, -1, ids)[:200].tolist())
    np.testing.assert_array_equal(one.rows[: len(head)], head_rows)
    # Memory that lies on no cache line takes the other form, and gives the same bits.
    shifted = np.empty(one.rows.size + 1, dtype=np.int64)[1:].reshape(one.rows.shape)
    hash_tokens(V41, ids, dead=dead, threads=threads, out=one._replace(rows=shifted))
    assert shifted.tobytes() == one.rows.tobytes()


@pytest.mark.parametrize("name", ["v4.1", "gap and uneven heads", "too small a modulus"])
def test_ngrams_by_themselves_equal_windows_of_a_stream(name: str) -> None:
    spec = SPECS[name]
    ids = np.random.default_rng(7).integers(0, spec.canonical_size, 700)
    stream = spec.address(ids)
    columns = spec.columns
    for order_idx, order in enumerate(spec.orders):
        windows = np.lib.stride_tricks.sliding_window_view(ids, order).astype(np.uint32)
        here = [column for column, (o, _) in enumerate(columns) if o == order]
        for layer_idx, layer_id in enumerate(spec.layer_ids):
            keys, rows = hash_ngrams(spec, layer_id, order, windows)
            np.testing.assert_array_equal(rows, stream.rows[order - 1 :, layer_idx, here])
            np.testing.assert_array_equal(keys, stream.keys[order - 1 :, layer_idx, order_idx])


def test_bad_input_is_refused_with_its_position() -> None:
    for ids, message in (
        ([0, 99_092], "position 1: found 99092"),
        ([-1], "position 0: found -1"),
        ([[1]], "shape"),
        ([0.5], "float64"),
    ):
        with pytest.raises(InvalidInput, match=message):
            V41.address(ids)
    with pytest.raises(InvalidInput, match="one a token"):
        V41.address([1, 2], dead=[True])
    with pytest.raises(InvalidInput, match="one a token"):
        V41.address([1, 2], dead=[0, 1])
    with pytest.raises(InvalidInput, match="history at position 0: found -2"):
        V41.address([1], history=[-2])
    with pytest.raises(InvalidInput, match="layers 1, 14"):
        hash_ngrams(V41, 2, 2, [[1, 2]])
    with pytest.raises(InvalidInput, match="orders 2, 3, 4"):
        hash_ngrams(V41, 1, 5, [[1, 2]])
    with pytest.raises(InvalidInput, match=r"expected \(n, 2\)"):
        hash_ngrams(V41, 1, 2, [1, 2])
    out = V41.address([1, 2, 3])
    with pytest.raises(InvalidInput, match="C-contiguous"):
        hash_tokens(V41, [1, 2], out=out)


def test_whatever_stands_at_a_dead_position_is_not_looked_at() -> None:
    one = V41.address([5, 10**12, 7], dead=[False, True, False])
    two = V41.address([5, -1, 7], dead=[False, True, False])
    assert one.rows.tobytes() == two.rows.tobytes()
    assert one.keys.tobytes() == two.keys.tobytes()
