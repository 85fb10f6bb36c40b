"""Collisions and coverage of counted n-grams against dicts and loops, and against planted faults."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from bundle_tables import SPECS, counts_of, made_spec, some_text
from hypothesis import given
from hypothesis import strategies as st
from plain_counts import Plain, plain

from engram_tables.address.spec import AddressSpec, Family
from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.corpus.tokens.token_stream import TokenStream
from engram_tables.corpus.traffic.token_addresses import TokenAddresses
from engram_tables.errors import CapacityError, InvalidInput, SpecMismatch
from engram_tables.inspect.chance import chance_of_so_many
from engram_tables.inspect.collisions import FOREIGN_PERCENTS, HeadCollisions, OrderCollisions, find_collisions
from engram_tables.inspect.coverage import Evenness, coverage_of_counts, coverage_of_tokens
from engram_tables.inspect.owners import Row, find_owners, heads_of_row
from engram_tables.inspect.row_places import ReadCost, Stretch, cost_of, resident_pages
from engram_tables.measure.residency import evict
from engram_tables.storage.row_files import RowFile
from engram_tables.units import PAGE_BYTES

_PLAIN: dict[tuple[str, int, int], Plain] = {}


def plain_of(spec: AddressSpec, counts: Counts, layer_id: int, order: int) -> Plain:
    """`plain`, once for each spec of `SPECS`."""
    key = (spec.fingerprint, layer_id, order)
    if key not in _PLAIN:
        _PLAIN[key] = plain(spec, counts, layer_id, order)
    return _PLAIN[key]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Counts]:
    """Counts of texts of 330 tokens, for each set of orders and bound of ids in `SPECS`."""
    home, found = tmp_path_factory.mktemp("counts"), {}
    for spec in SPECS.values():
        kind = (*spec.orders, spec.canonical_size)
        if kind not in found:
            name = "-".join(map(str, kind))
            found[kind] = counts_of(home / name, [some_text(spec, 1, 250), some_text(spec, 2, 80)], spec)
    return found


def counts_for(spec: AddressSpec, counted: dict[tuple[int, ...], Counts]) -> Counts:
    return counted[(*spec.orders, spec.canonical_size)]


@pytest.mark.parametrize("name", SPECS)
def test_collisions_are_what_loops_count(name: str, counted: dict[tuple[int, ...], Counts]) -> None:
    spec = SPECS[name]
    counts = counts_for(spec, counted)
    found = find_collisions(spec, counts, n_rows=4, threads=2)
    places = [(layer_id, order) for layer_id in spec.layer_ids for order in spec.orders]
    assert [(order.layer_id, order.order) for order in found.orders] == places
    for order in found.orders:
        check_order(order, plain_of(spec, counts, order.layer_id, order.order))
    weights = [row.outweighed_lookups for row in found.rows]
    assert weights == sorted(weights, reverse=True)
    assert (
        weights
        == sorted(
            (
                sum(owners.values()) - max(owners.values())
                for layer_id, order in places
                for head in range(spec.heads[spec.orders.index(order)])
                for owners in plain_of(spec, counts, layer_id, order).owners(head).values()
            ),
            reverse=True,
        )[:4]
    )
    for row in found.rows:
        expected = plain_of(spec, counts, row.layer_id, row.order)
        owners = {ids: n for ids, n in expected.ngrams.items() if expected.rows[ids][row.head] == row.row}
        assert {owner.ids: owner.occurrences for owner in row.owned.owners} == owners
        assert row.n_lookups == sum(owners.values())


def check_order(order: OrderCollisions, expected: Plain) -> None:
    by_key = expected.by_key
    n_of_key = {key: list(expected.keys.values()).count(key) for key in by_key}
    assert (order.n_ngrams, order.n_keys, order.n_lookups) == (len(expected.ngrams), len(by_key), sum(by_key.values()))
    assert order.n_twins == sum(n for n in n_of_key.values() if n > 1)
    assert order.twin_lookups == sum(by_key[key] for key, n in n_of_key.items() if n > 1)
    for head in order.heads:
        check_head(head, expected)
    assert order.n_compared == (len(by_key) if len(order.heads) > 1 else order.n_compared)
    all_pairs = math.comb(len(by_key), 2)
    for pair in order.agreements:
        assert pair.n_both == expected.pairs(*pair.heads)
        alone = [expected.pairs(head) for head in pair.heads]
        assert pair.expected == pytest.approx(alone[0] * alone[1] / all_pairs)
    assert [pair.heads for pair in order.agreements] == list(combinations(range(len(order.heads)), 2))
    if len(order.heads) > 1:
        assert order.n_alike == expected.pairs(*range(len(order.heads)))


def check_head(head: HeadCollisions, expected: Plain) -> None:
    owners = list(expected.owners(head.head).values())
    assert head.n_shared_rows == sum(len(keys) > 1 for keys in owners)
    assert head.n_pairs == expected.pairs(head.head)
    assert head.shared_lookups == sum(sum(keys.values()) for keys in owners if len(keys) > 1)
    assert head.outweighed_lookups == sum(sum(keys.values()) - max(keys.values()) for keys in owners)
    foreign = [
        sum(
            n for keys in owners for n in keys.values() if 100 * (sum(keys.values()) - n) > percent * sum(keys.values())
        )
        for percent in FOREIGN_PERCENTS
    ]
    assert list(head.foreign_lookups) == foreign


@pytest.mark.parametrize("name", SPECS)
def test_coverage_is_what_loops_count(name: str, counted: dict[tuple[int, ...], Counts]) -> None:
    spec = SPECS[name]
    counts = counts_for(spec, counted)
    found = coverage_of_counts(spec, counts, threads=2)
    assert [(head.traffic.layer_id, head.traffic.order, head.traffic.head) for head in found.heads] == [
        (layer_id, order, head) for layer_id in spec.layer_ids for order, head in spec.columns
    ]
    for head in found.heads:
        expected = plain_of(spec, counts, head.traffic.layer_id, head.traffic.order)
        owners = expected.owners(head.traffic.head)
        assert head.traffic.n_ngrams == len(expected.by_key)
        assert head.traffic.n_lookups == sum(expected.ngrams.values())
        assert head.traffic.n_touched == len(owners)
        assert head.collisions == expected.pairs(head.traffic.head)
        rows = sorted(owners)
        assert head.stride == math.gcd(*(row - rows[0] for row in rows))


class Tokens:
    """One document in memory that reads as a token store does."""

    n_documents, n_dead = 1, 0

    def __init__(self, ids: np.ndarray) -> None:
        self.ids, self.n_tokens = ids, len(ids)

    def read(self, start: int, stop: int) -> TokenStream:
        return TokenStream(ids=self.ids[start:stop].copy(), document_starts=np.array([0, stop - start]))


def salted(moduli: tuple[int, ...], multipliers: tuple[int, ...]) -> AddressSpec:
    """One layer of bigrams, whose heads have multipliers of their own, the newest token's first."""
    spec = made_spec((len(moduli),), orders=(2,), size=2000, layer_ids=(1,), family=Family.SALTED_AFFINE)
    offsets = tuple(sum(moduli[:head]) for head in range(len(moduli)))
    layer = replace(spec.layers[0], moduli=(moduli,), multipliers=multipliers, offsets=offsets, n_rows=sum(moduli) + 3)
    return replace(spec, layers=(layer,), folded=False)


def test_planted_heads_are_named(tmp_path: Path) -> None:
    # Sound; even products into an even modulus; one token of two into a multiple of the modulus, which forgets it.
    spec = salted((107, 100, 103), (77_013, 901_331, 8_442, 90_118, 5_551_113, 103 * 99))
    ids = np.random.default_rng(3).integers(0, 2000, 3000).astype(np.uint32)
    ids[1500:] = ids[1500:] // 50 * 50
    counts = counts_of(tmp_path / "counts", [ids], spec)
    by_counts = coverage_of_counts(spec, counts, threads=1)
    by_tokens = coverage_of_tokens(TokenAddresses(spec, Tokens(ids), None), threads=1)
    for found in (by_counts, by_tokens):
        assert [head.evenness for head in found.heads] == [Evenness.EVEN, Evenness.CONFINED, Evenness.CROWDED]
        assert [head.stride for head in found.heads] == [1, 2, 1]
        assert [head.traffic.head for head in found.faults] == [1, 2]
    assert by_tokens.of(layer_ids=[1], orders=[3]).heads == ()
    assert by_tokens.of(layer_ids=[1], orders=[2]) == by_tokens


def test_a_hash_that_forgets_the_order_of_tokens_has_twins(tmp_path: Path) -> None:
    spec = made_spec((3,), orders=(2,), size=2000, layer_ids=(1,))
    spec = replace(spec, layers=(replace(spec.layers[0], multipliers=(1, 1)),))
    counts = counts_of(tmp_path / "counts", [np.array([5, 9, 5, 9, 9, 5, 700], np.uint32)], spec)
    (order,) = find_collisions(spec, counts, n_rows=0).orders
    # 5 9, 9 5, 9 9 and 5 700: the first two are one key.
    assert (order.n_ngrams, order.n_keys, order.n_twins, order.twin_lookups) == (4, 3, 2, 4)


def test_a_head_that_repeats_another_and_one_that_spreads_are_named(tmp_path: Path) -> None:
    spec = made_spec((3,), orders=(1,), size=4000, layer_ids=(1,))
    # Ids below 4000 times 3 stay below 19,997: a third of the rows. Modulo 499 they go around evenly.
    layer = replace(
        spec.layers[0], multipliers=(3,), moduli=((19997, 499, 499),), offsets=(0, 19997, 20496), n_rows=21000
    )
    spec = replace(spec, layers=(layer,))
    counts = counts_of(tmp_path / "counts", [np.arange(4000, dtype=np.uint32)], spec)
    found = coverage_of_counts(spec, counts, threads=1)
    assert [head.evenness for head in found.heads] == [Evenness.CONFINED, Evenness.SPREAD, Evenness.SPREAD]
    assert found.heads[0].stride == 3
    pairs = find_collisions(spec, counts, n_rows=0).dependent
    assert [pair.heads for _, pair in pairs] == [(1, 2)]


def test_a_small_sample_is_called_small(tmp_path: Path) -> None:
    spec = made_spec((2, 2), layer_ids=(1,))
    counts = counts_of(tmp_path / "counts", [np.array([1, 2, 3, 4, 1, 2], np.uint32)], spec)
    found = coverage_of_counts(spec, counts, threads=1)
    assert len(found.undecided) == len(found.heads) == 4
    assert all(head.traffic.n_ngrams_needed > 900 for head in found.heads)


def test_a_sample_of_ngrams_says_so_and_finds_a_repeated_head(tmp_path: Path) -> None:
    spec = made_spec((2, 2), size=2000, layer_ids=(1,))
    layer = replace(spec.layers[0], moduli=((101, 101), (107, 109)))
    spec = replace(spec, layers=(layer,))
    ids = np.random.default_rng(3).integers(0, 2000, 2000).astype(np.uint32)
    counts = counts_of(tmp_path / "counts", [ids], spec)
    found = find_collisions(spec, counts, n_rows=0, sample_ngrams=700)
    assert [order.n_compared for order in found.orders] == [700, 700]
    assert [(order.order, pair.heads) for order, pair in found.dependent] == [(2, (0, 1))]
    assert found == find_collisions(spec, counts, n_rows=0, sample_ngrams=700)
    assert found != find_collisions(spec, counts, n_rows=0, sample_ngrams=700, seed=1)
    none = find_collisions(spec, counts, n_rows=0, sample_ngrams=0)
    assert [(order.n_compared, order.agreements) for order in none.orders] == [(0, ())] * 2


def test_owners_are_what_loops_find(counted: dict[tuple[int, ...], Counts]) -> None:
    for name in ("keys of two words", "boundaries"):
        spec = SPECS[name]
        counts = counts_for(spec, counted)
        layer = spec.layers[1]
        rows = [Row(layer.layer_id, row) for row in range(0, layer.n_rows, 7)]
        search = find_owners(spec, counts, rows)
        assert search.missing_orders == ()
        assert search.n_ngrams == sum(counts.n_distinct(order) for order in spec.orders)
        for row in rows:
            expected = {
                (order, head, ids, n)
                for order, head in spec.columns
                for ids, n in plain_of(spec, counts, layer.layer_id, order).ngrams.items()
                if plain_of(spec, counts, layer.layer_id, order).rows[ids][head] == row.row
            }
            owned = search.rows[row]
            assert {(o.order, o.head, o.ids, o.occurrences) for o in owned.owners} == expected
            assert owned.n_lookups == sum(n for *_, n in expected)
            assert [o.occurrences for o in owned.owners] == sorted((o.occurrences for o in owned.owners), reverse=True)


def test_a_row_of_a_shared_table_has_the_ngrams_of_all_its_heads(counted: dict[tuple[int, ...], Counts]) -> None:
    spec = SPECS["equal heads"]
    shared = replace(spec, layers=tuple(replace(layer, offsets=(0,) * 4, n_rows=110) for layer in spec.layers))
    row = Row(1, 50)
    assert [(home.order, home.head) for home in heads_of_row(shared, row)] == list(spec.columns)
    assert heads_of_row(spec, Row(1, spec.layers[0].n_rows - 1)) == []
    owned = find_owners(shared, counts_for(spec, counted), [row]).rows[row]
    expected = {
        (order, head, ids)
        for order, head in spec.columns
        for ids, rows in plain_of(shared, counts_for(spec, counted), 1, order).rows.items()
        if rows[head] == row.row
    }
    assert {(owner.order, owner.head, owner.ids) for owner in owned.owners} == expected
    assert len({owner.order for owner in owned.owners}) == 2


def test_what_is_not_there_is_refused(counted: dict[tuple[int, ...], Counts]) -> None:
    spec = SPECS["equal heads"]
    counts = counts_for(spec, counted)
    with pytest.raises(InvalidInput, match="order 4: made has orders 2, 3"):
        find_collisions(spec, counts, orders=[4])
    with pytest.raises(InvalidInput, match="layer 9"):
        coverage_of_counts(spec, counts, layer_ids=[9])
    with pytest.raises(InvalidInput, match="expected one of those of made"):
        coverage_of_counts(made_spec((2, 2), orders=(4, 5)), counts)
    with pytest.raises(CapacityError, match=r"found too little for [\d,]+ n-grams"):
        find_collisions(spec, counts, memory_bytes=1000)
    with pytest.raises(SpecMismatch, match="found 50 canonical ids, expected 51"):
        find_collisions(made_spec(size=51), counts)


@given(st.integers(0, 40), st.floats(0.01, 30))
def test_chance_is_poissons(found: int, mean: float) -> None:
    below = math.fsum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(found))
    assert chance_of_so_many(found, mean) == pytest.approx(1 - below, abs=1e-12)


def test_pages_in_memory_are_those_of_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * PAGE_BYTES))
    with path.open("rb") as opened:
        file = RowFile(path=path, file_bytes=64 * PAGE_BYTES, fd=opened.fileno())
        assert resident_pages(file, range(64)) == 64
        one, two = Stretch(file, 10, PAGE_BYTES), Stretch(file, PAGE_BYTES + 50, 8)
        assert cost_of([one, two, one]) == ReadCost(n_reads=2, n_bytes=PAGE_BYTES + 8, n_pages=2, n_resident_pages=2)
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_RANDOM)
        if evict([path]) == 0:
            assert resident_pages(file, range(64)) == 0
            os.pread(file.fd, 8, 40 * PAGE_BYTES)
            assert resident_pages(file, [39, 40, 41]) == 1
