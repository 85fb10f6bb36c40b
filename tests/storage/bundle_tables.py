"""Small specs of every kind of key, counts of drawn text, and tables with bundles of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses, AddressSpec, Family, HistoryRule, LayerAddressing, MixRule
from engram_tables.address.vocabulary import Rule, Vocabulary
from engram_tables.corpus.counts.count_corpus import plan_count, run_count
from engram_tables.corpus.counts.counts_store import Counts, open_counts
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.storage.building.writer import build_table, plan_table
from engram_tables.storage.bundles.choosing import choose
from engram_tables.storage.bundles.writing import BundlePlan, RowsToBundle, plan_bundles, write_bundles
from engram_tables.storage.table.reader import StoredTable

WIDTH = 16
COUNTS_SHA256 = "c" * 64
_PRIMES = (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157)


def made_spec(
    heads: Sequence[int] = (2, 2),
    *,
    orders: Sequence[int] = (2, 3),
    size: int = 50,
    layer_ids: Sequence[int] = (1, 14),
    family: Family = Family.XOR_MULTIPLY,
    history: HistoryRule | None = None,
    mix: MixRule | None = None,
) -> AddressSpec:
    """Heads of about a hundred rows each, every one with rows of its own."""
    moduli = np.split(np.array(_PRIMES[: sum(heads)]), np.cumsum(heads)[:-1])
    flat = [int(m) for of in moduli for m in of]
    n_words = {
        Family.XOR_MULTIPLY: orders[-1],
        Family.POLYNOMIAL: 1,
        Family.SALTED_AFFINE: sum(order * n for order, n in zip(orders, heads, strict=True)),
        Family.IDENTITY: 0,
    }[family]
    layers = tuple(
        LayerAddressing(
            layer_id=layer_id,
            multipliers=tuple(2 * (7919 * (layer_id + 1) * (k + 1) % 100_003) + 1 for k in range(n_words)),
            moduli=tuple(tuple(int(m) for m in of) for of in moduli),
            offsets=(0, *accumulate(flat[:-1])),
            n_rows=sum(flat) + 3,
        )
        for layer_id in layer_ids
    )
    return AddressSpec(
        name="made",
        provenance="made for tests",
        canonical_size=size,
        history=history or HistoryRule(fill_id=1),
        orders=tuple(orders),
        layers=layers,
        mix=mix or MixRule(family=family),
        row_width=WIDTH,
    )


SPECS = {
    "equal heads": made_spec(),
    "one layer": made_spec((4,), orders=(2,), layer_ids=(3,)),
    "heads of two lengths": made_spec((2, 4), orders=(2, 4)),
    "lengths that do not divide": made_spec((2, 3), orders=(1, 2)),
    "one head has no bundle": made_spec((1, 3), orders=(1, 3)),
    "keys of two words": made_spec((2, 2), orders=(2, 4), size=2**18, family=Family.POLYNOMIAL),
    "salted": made_spec((3, 3), family=Family.SALTED_AFFINE),
    "narrow and lagged": made_spec(
        (2, 2), mix=MixRule(family=Family.XOR_MULTIPLY, word_bits=32, lagged=True, oldest_first=True)
    ),
    # Many n-grams are one to the hash.
    "boundaries": made_spec(
        (2, 2), history=HistoryRule(fill_id=1, boundary_ids=(0, 4), boundary_visible=True, replaced=((5, 9),))
    ),
}


def some_text(spec: AddressSpec, seed: int, n_tokens: int = 600) -> NDArray[np.uint32]:
    """Ids that come often and seldom."""
    rng = np.random.default_rng(seed)
    ids = np.minimum(rng.zipf(1.5, n_tokens) - 1, min(spec.canonical_size, 60) - 1)
    return ids.astype(np.uint32)


def counts_of(
    path: Path,
    documents: Sequence[NDArray[np.uint32]],
    spec: AddressSpec,
    vocabulary: Vocabulary | None = None,
    **options: Any,
) -> Counts:
    """Counts, at `path`; the documents are canonical ids unless there is a vocabulary."""
    vocabulary = vocabulary or Vocabulary(
        rule=Rule.IDENTITY,
        canonical_ids=np.arange(spec.canonical_size, dtype=np.uint32),
        tokens=[],
        tokenizer_json=b"{}",
        source="a test",
    )
    tokens = path.with_name(path.name + "-tokens")
    write_tokens(
        tokens, documents, token_size=vocabulary.token_count, tokenizer_sha256=vocabulary.tokenizer_sha256,
        shard_documents=3,
    )  # fmt: skip
    run_count(plan_count([tokens], vocabulary=vocabulary, orders=spec.orders, output=path, **options), threads=1)
    return open_counts(path)


def made_table(path: Path, spec: AddressSpec, **options: Any) -> Path:
    """A table of f32 rows that are all different."""
    chosen = {"codec": "f32", "layout": "packed", "init": "normal", "seed": 5, "block_bytes": 4096, **options}
    build_table(plan_table(spec, **chosen), path, threads=1)
    return path


def plan_for(path: Path, counts: Counts, *, budget_bytes: int = 1 << 20, least_count: int = 2) -> BundlePlan:
    """Bundles of the table at `path`, by counts."""
    with StoredTable(path) as table:
        chosen = choose(
            counts, table.spec, row_bytes=table.row_bytes, budget_bytes=budget_bytes, least_count=least_count
        )
        return plan_bundles(chosen, RowsToBundle.of(table), counts_sha256=COUNTS_SHA256, threads=1)


def plain_rows(table: StoredTable, layer_id: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Records one by one, by `locate` alone."""
    out = np.empty((len(rows), table.row_bytes), np.uint8)
    spots = table.locate(layer_id, rows)
    for k, (file_idx, offset) in enumerate(zip(spots.file_idx.tolist(), spots.offsets.tolist(), strict=True)):
        table.files[file_idx].read_into(offset, out[k])
    return out


def add_bundles(path: Path, counts: Counts, *, output: Path | None = None, force: bool = False, **options: Any) -> Path:
    """Bundles beside the rows of the table at `path`, or elsewhere."""
    plan = plan_for(path, counts, **options)
    place = output or path / "bundles"
    with StoredTable(path) as table:

        def read_rows(layer_id: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
            out[:] = plain_rows(table, layer_id, rows)

        write_bundles(plan, place, read_rows, force=force, threads=1)
    return place


def plain_records(table: StoredTable, addresses: Addresses) -> NDArray[np.uint8]:
    """What a fetch must give: uint8 (tokens, layers, columns, row_bytes)."""
    out = np.empty((*addresses.rows.shape, table.row_bytes), np.uint8)
    for layer, layer_id in enumerate(table.layer_ids):
        rows = addresses.rows[:, layer]
        out[:, layer] = plain_rows(table, layer_id, rows.reshape(-1)).reshape(*rows.shape, -1)
    return out
