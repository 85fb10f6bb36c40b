"""Every hash family: kernels against the plain-Python reference over random specs, whole and in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_specs import specs, streams

from engram_tables import load_spec
from engram_tables.address import reference
from engram_tables.address.hashing import exact_keys, hash_ngrams, hash_tokens
from engram_tables.address.spec import AddressSpec


def _reference(spec: AddressSpec, ids: list[int]) -> tuple[np.ndarray[Any, Any], list[Any]]:
    """Rows (tokens, layers, columns) and keys (tokens, layers, orders) by the plain-Python reference."""
    per_layer = [reference.address(spec, layer, ids) for layer in spec.layers]
    rows = np.array([rows for rows, _ in per_layer], dtype=np.int64).reshape(len(spec.layers), len(ids), spec.n_columns)
    return rows.swapaxes(0, 1), [[keys[position] for _, keys in per_layer] for position in range(len(ids))]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_kernels_equal_the_reference(data: st.DataObject) -> None:
    spec = data.draw(specs())
    ids = data.draw(streams(spec))
    cut = data.draw(st.integers(0, len(ids)))
    rows, keys = _reference(spec, ids)
    given_ids = np.array(ids, dtype=np.int64)
    whole = spec.address(given_ids, dead=given_ids < 0)
    np.testing.assert_array_equal(whole.rows, rows)
    assert exact_keys(whole.keys) == keys
    chunk = given_ids[cut:]
    after = spec.address(chunk, dead=chunk < 0, history=given_ids[max(0, cut - spec.max_order + 1) : cut])
    np.testing.assert_array_equal(after.rows, rows[cut:])
    assert exact_keys(after.keys) == keys[cut:]


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_ngrams_by_themselves_equal_the_reference(data: st.DataObject) -> None:
    spec = data.draw(specs())
    order = data.draw(st.sampled_from(spec.orders))
    layer = data.draw(st.sampled_from(spec.layers))
    ids = [max(0, token) for token in data.draw(streams(spec))]
    ngrams = [ids[start : start + order] for start in range(len(ids) - order + 1)]
    keys, rows = hash_ngrams(spec, layer.layer_id, order, np.array(ngrams, dtype=np.int64).reshape(-1, order))
    columns = [column for column, (length, _) in enumerate(spec.columns) if length == order]
    seen = [reference.ngram_window(ngram, spec.history) for ngram in ngrams]
    assert rows.tolist() == [[reference.row(spec, layer, column, ids) for column in columns] for ids in seen]
    assert exact_keys(keys) == [reference.key(spec, layer, ids) for ids in seen]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_equal_keys_own_equal_rows_and_only_they_are_one_entry(data: st.DataObject) -> None:
    """A key is exact: it decides every row of its order."""
    spec = data.draw(specs())
    ids = data.draw(streams(spec))
    rows, keys = _reference(spec, ids)
    for order_idx, order in enumerate(spec.orders):
        columns = [column for column, (length, _) in enumerate(spec.columns) if length == order]
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


@pytest.mark.parametrize("name", ["longcat-flash-lite", "longcat-2.0", "nanochat-300m", "gemma-3n-e2b"])
def test_long_runs_equal_the_reference_where_they_begin_and_end(name: str) -> None:
    """Results larger than the caches take a form of their own, and threads split them."""
    spec = load_spec(name)
    rng = np.random.default_rng(1)
    ids, dead = rng.integers(0, spec.canonical_size, 70_001), rng.random(70_001) < 0.01
    ids[rng.integers(0, len(ids), 500)] = 2
    whole = hash_tokens(spec, ids, dead=dead, threads=3)
    marked = np.where(dead, -1, ids)
    for start in (0, 34_900, len(ids) - 200):
        rows, keys = _reference(spec, marked[max(0, start - 8) : start + 200].tolist())
        skipped = min(start, 8)
        np.testing.assert_array_equal(whole.rows[start : start + 200], rows[skipped:])
        assert exact_keys(whole.keys[start : start + 200]) == keys[skipped:]


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_json_and_arrays_keep_every_rule(data: st.DataObject) -> None:
    spec = data.draw(specs())
    assert AddressSpec.from_json(spec.to_json()) == spec
    assert AddressSpec.from_arrays(spec.arrays()).fingerprint == spec.fingerprint
