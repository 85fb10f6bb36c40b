"""Bundles of drawn specs, budgets and texts, asked with keys that are right, wrong in some bits, or of other rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_tables import add_bundles, counts_of, made_spec, made_table, plain_records, some_text
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables.address.spec import Addresses, AddressSpec, Family, HistoryRule
from engram_tables.fetch.bundles import BundledTable
from engram_tables.fetch.table import open_table
from engram_tables.storage.bundles.files import BundleDirectory
from engram_tables.storage.checking.verify import verify_table
from engram_tables.storage.table.reader import StoredTable


@st.composite
def specs(draw: st.DrawFn) -> AddressSpec:
    orders = sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=3)))
    heads = draw(st.lists(st.integers(1, 4), min_size=len(orders), max_size=len(orders)).filter(lambda h: max(h) > 1))
    family = draw(st.sampled_from([Family.XOR_MULTIPLY, Family.POLYNOMIAL, Family.SALTED_AFFINE]))
    size = draw(st.sampled_from([3, 50, 2**17]))
    boundary = draw(st.sampled_from([(), (0,), (0, 4)])) if orders[-1] > 1 and size > 4 else ()
    return made_spec(
        heads,
        orders=orders,
        size=size,
        layer_ids=sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=3))),
        family=family,
        history=HistoryRule(fill_id=1, boundary_ids=boundary),
    )


@pytest.mark.slow
@given(data=st.data(), spec=specs(), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_rows_are_the_tables_whatever_keys_say(
    data: st.DataObject, spec: AddressSpec, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root: Path = tmp_path_factory.mktemp("any")
    layout = data.draw(st.sampled_from(["packed", "page", "aligned-512"]))
    table = made_table(root / "table", spec, layout=layout)
    counts = counts_of(root / "counts", [some_text(spec, seed, 200), some_text(spec, seed + 1, 200)], spec)
    add_bundles(table, counts, budget_bytes=data.draw(st.sampled_from([5_000, 20_000, 1 << 62])))
    addresses = spec.address(some_text(spec, seed + data.draw(st.integers(0, 1)), 60))
    with StoredTable(table) as stored, BundleDirectory(table / "bundles") as bundles:
        expected = plain_records(stored, addresses)
        n_bundles = sum(map(sum, bundles.manifest.n_bundles))
    rng = np.random.default_rng(seed)
    keys = addresses.keys.copy()
    words = keys.view(np.uint64).reshape(-1)
    for place in rng.integers(0, words.size, data.draw(st.sampled_from([0, 1, 50]))).tolist():
        words[place] ^= np.uint64(1) << np.uint64(rng.integers(64))
    if data.draw(st.booleans()):
        keys = np.ascontiguousarray(keys[rng.permutation(len(keys))])
    with open_table(table) as opened:
        assert isinstance(opened, BundledTable)
        for engine in ("pread", "auto"):
            assert (opened.fetch(addresses, None, engine) == expected).all()
            assert (opened.fetch(Addresses(addresses.rows, keys), None, engine) == expected).all()
    report = verify_table(table, threads=1)
    assert report.is_whole
    assert report.bundles is not None
    assert report.bundles.n_compared == report.bundles.n_bundles == n_bundles > 0
