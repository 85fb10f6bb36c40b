"""Every hash family: kernels against the plain-Python reference over random specs, whole and in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from random_specs import specs, streams

from engram_tables.address import reference
from engram_tables.address.hashing import hash_ngrams, hash_tokens
from engram_tables.address.spec import AddressSpec


def _join(keys: np.ndarray[Any, Any]) -> list[Any]:
    """Keys as exact integers: words joined, least significant first."""
    return sum(keys[..., word].astype(object) << (64 * word) for word in range(keys.shape[-1])).tolist()


def _reference(spec: AddressSpec, ids: list[int]) -> tuple[np.ndarray[Any, Any], list[Any]]:
    """Rows (tokens, layers, columns) and keys (tokens, layers, orders) by the plain-Python reference."""
    per_layer = [reference.address(spec, layer, ids) for layer in spec.layers]
    rows = np.array([rows for rows, _ in per_layer], dtype=np.int64).reshape(len(spec.layers), len(ids), spec.n_columns)
    return rows.swapaxes(0, 1), [[keys[position] for _, keys in per_layer] for position in range(len(ids))]


@given(data=st.data())
@settings(max_examples=500, deadline=None)
def test_kernels_equal_the_reference(data: st.DataObject) -> None:
    spec = data.draw(specs())
    ids = data.draw(streams(spec))
    cut = data.draw(st.integers(0, len(ids)))
    rows, keys = _reference(spec, ids)
    given_ids = np.array(ids, dtype=np.int64)
    whole = spec.address(given_ids, dead=given_ids < 0)
    np.testing.assert_array_equal(whole.rows, rows)
    assert _join(whole.keys) == keys
    chunk = given_ids[cut:]
    after = spec.address(chunk, dead=chunk < 0, history=given_ids[max(0, cut - spec.max_order + 1) : cut])
    np.testing.assert_array_equal(after.rows, rows[cut:])
    assert _join(after.keys) == keys[cut:]


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_ngrams_by_themselves_equal_the_reference(data: st.DataObject) -> None:
    spec = data.draw(specs())
    order = data.draw(st.sampled_from(spec.orders))
    layer = data.draw(st.sampled_from(spec.layers))
    ids = [max(0, token) for token in data.draw(streams(spec))]
    ngrams = [ids[start : start + order] for start in range(len(ids) - order + 1)]
    keys, rows = hash_ngrams(spec, layer.layer_id, order, np.array(ngrams, dtype=np.int64).reshape(-1, order))
    columns = [column for column, (length, _) in enumerate(spec.columns()) if length == order]
    seen = [reference.ngram_window(ngram, spec.history) for ngram in ngrams]
    assert rows.tolist() == [[reference.row(spec, layer, column, ids) for column in columns] for ids in seen]
    assert _join(keys) == [reference.key(spec, layer, ids) for ids in seen]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_equal_keys_own_equal_rows_and_only_they_are_one_entry(data: st.DataObject) -> None:
    """A key is exact: it decides every row of its order."""
    spec = data.draw(specs())
    ids = data.draw(streams(spec))
    rows, keys = _reference(spec, ids)
    for order_idx, order in enumerate(spec.orders):
        columns = [column for column, (length, _) in enumerate(spec.columns()) if length == order]
        for layer_idx in range(len(spec.layers)):
            owned: dict[int, list[int]] = {}
            for position in range(len(ids)):
                here = rows[position, layer_idx, columns].tolist()
                assert owned.setdefault(keys[position][layer_idx][order_idx], here) == here


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_thread_count_gives_the_same_bits(data: st.DataObject) -> None:
    spec = data.draw(specs())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    pool = np.array([max(0, token) for token in data.draw(streams(spec))] + [0])
    ids, dead = rng.choice(pool, 20_000), rng.random(20_000) < 0.05
    one, three = (hash_tokens(spec, ids, dead=dead, threads=threads) for threads in (1, 3))
    assert one.rows.tobytes() == three.rows.tobytes()
    assert one.keys.tobytes() == three.keys.tobytes()


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_json_and_arrays_keep_every_rule(data: st.DataObject) -> None:
    spec = data.draw(specs())
    assert AddressSpec.from_json(spec.to_json()) == spec
    assert AddressSpec.from_arrays(spec.arrays()).fingerprint == spec.fingerprint
