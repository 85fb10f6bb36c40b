"""Hot lists, unique rows and repetition equal plain counts, and tell text from what is none."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "corpus"))
from traffic_specs import Tokens, small_specs

from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.fetch.tiers.hot_list import HotList, read_hot_list, write_hot_list
from engram_tables.measure.simulate import hot_rows as hot_module
from engram_tables.measure.simulate import representative
from engram_tables.measure.simulate.hot_rows import hot_rows, items_of
from engram_tables.measure.simulate.representative import Verdict, repetition_of
from engram_tables.measure.simulate.streams import TokenLookups
from engram_tables.measure.simulate.unique_rows import unique_rows

SPECS = small_specs()
DOCUMENTS = st.lists(st.lists(st.integers(-1, 11), max_size=9), max_size=9)


def plain_counts(lookups: TokenLookups) -> Counter[tuple[int, int]]:
    counts: Counter[tuple[int, int]] = Counter()
    for token in range(lookups.n_tokens):
        if token not in lookups.dead:
            for layer, of_layer in zip(lookups.spec.layers, lookups.rows(token, token + 1)[0], strict=True):
                counts.update((layer.layer_id, row) for row in of_layer.tolist())
    return counts


@given(documents=DOCUMENTS, most=st.integers(1, 60), counters=st.sampled_from([1000, 7919, 1 << 30]),
       name=st.sampled_from(["xor", "shared"]))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_hot_list_is_the_rows_of_most_lookups(documents, most, counters, name):
    lookups = TokenLookups(SPECS[name], Tokens(documents), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hot_module, "_LEAST_COUNTERS", 1000)
        found = hot_rows(lookups, most_rows=most, memory_bytes=4 * counters, threads=2)
    counted = [(-n, layer, row) for (layer, row), n in plain_counts(lookups).items() if n > 1]
    wanted = sorted(counted)[:most]
    weights = (-found.weights).astype(int).tolist()
    assert list(zip(weights, found.layer_ids.tolist(), found.rows.tolist(), strict=True)) == wanted
    assert found.fingerprint == SPECS[name].fingerprint
    firsts = np.cumsum([0, *(layer.n_rows for layer in SPECS[name].layers)])
    places = {layer.layer_id: int(first) for layer, first in zip(SPECS[name].layers, firsts, strict=False)}
    assert items_of(found, lookups).tolist() == [places[layer] + row for _, layer, row in wanted]


def test_a_hot_list_survives_its_file(tmp_path):
    lookups = TokenLookups(SPECS["xor"], Tokens([[1, 2, 3, 1, 2, 3]]), None)
    hot = hot_rows(lookups, most_rows=5)
    write_hot_list(tmp_path / "hot.parquet", hot)
    assert items_of(read_hot_list(tmp_path / "hot.parquet"), lookups).tolist() == items_of(hot, lookups).tolist()


def test_hot_lists_of_others_are_refused():
    lookups = TokenLookups(SPECS["xor"], Tokens([[1, 2]]), None)
    with pytest.raises(SpecMismatch, match="hot list"):
        items_of(HotList.of([0], [1], [1.0], fingerprint="0" * 64), lookups)
    with pytest.raises(InvalidInput, match="hot list"):
        items_of(HotList.of([3], [1], [1.0]), lookups)
    with pytest.raises(InvalidInput, match="hot list"):
        hot_rows(lookups, most_rows=0)


@given(documents=DOCUMENTS, chunk=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_unique_rows_are_distinct_rows(documents, chunk):
    lookups = TokenLookups(SPECS["xor"], Tokens(documents), None)
    (found,) = unique_rows(lookups, [chunk])
    distinct, looked_up = [], 0
    for start in range(0, lookups.n_tokens // chunk * chunk, chunk):
        live = [token for token in range(start, start + chunk) if token not in lookups.dead]
        rows = [(layer, row) for token in live for layer, of in enumerate(lookups.rows(token, token + 1)[0].tolist())
                for row in of]  # fmt: skip
        distinct.append(len(set(rows)))
        looked_up += len(rows)
    if not looked_up:
        assert (found.n_chunks, found.unique_ratio, found.p50, found.p99) == (0, None, None, None)
        return
    assert found.n_chunks == len(distinct)
    assert found.unique_ratio == pytest.approx(sum(distinct) / looked_up)
    ordered = sorted(distinct)
    assert (found.p50, found.p99) == (ordered[-(-len(ordered) // 2) - 1], ordered[-1])


def _verdict(ids: np.ndarray) -> Verdict:
    spec = SPECS["wide"]
    return repetition_of(TokenLookups(spec, Tokens([ids.tolist()]), None)).verdict


def test_repetition_tells_text_from_what_is_none(monkeypatch):
    monkeypatch.setattr(representative, "WINDOW_TOKENS", 1 << 10)
    random = np.random.default_rng(3)
    # Sentences of a small stock, and words between them that are new: half of a window stands in it before.
    stock = [random.integers(0, 50_000, 12) for _ in range(40_000)]
    skewed = np.minimum(random.zipf(1.25, 4_000) - 1, len(stock) - 1)
    text = np.concatenate([stock[at] for at in skewed])
    assert _verdict(text) is Verdict.REPRESENTATIVE
    assert _verdict(np.tile(text[: text.size // 8], 8)) is Verdict.TOO_REPETITIVE
    assert _verdict(np.full(text.size, 7)) is Verdict.TOO_REPETITIVE
    assert _verdict(random.permutation(text.size)) is Verdict.TOO_VARIED
    assert _verdict(text[:1000]) is Verdict.TOO_SHORT


def test_repetition_says_its_rule():
    told = repetition_of(TokenLookups(SPECS["xor"], Tokens([[1, 2]]), None)).describe()
    assert (told["verdict"], told["seen_share"], told["growth"], told["n_windows"]) == ("too-short", None, None, 0)
    assert "seen_share 0.1 to 0.65" in told["rule"]
