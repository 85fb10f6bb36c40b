"""Small specs of every family and small token runs, with the plain-Python count of their traffic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from engram_tables.address import reference
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, LayerAddressing, MixRule
from engram_tables.corpus.tokens.token_stream import TokenStream

DEAD_ID = 0xFFFFFFFF


class Tokens:
    """Tokens in memory that read as a token store does; `documents` hold -1 where dead."""

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        flat = [token % 2**32 for document in documents for token in document]
        self.documents = documents
        self._ids = np.array(flat, np.uint32)
        self._starts = np.array([0, *accumulate(map(len, documents))], np.int64)

    @property
    def n_tokens(self) -> int:
        return len(self._ids)

    @property
    def n_documents(self) -> int:
        return len(self._starts) - 1

    @property
    def n_dead(self) -> int:
        return int((self._ids == DEAD_ID).sum())

    def read(self, start: int, stop: int) -> TokenStream:
        starts = self._starts[:-1]
        inside = (starts > start) & (starts < stop) | (starts == start) | ((starts == stop) & (stop == self.n_tokens))
        local = starts[inside] - start
        if start < self.n_tokens and not (len(local) and local[0] == 0):
            local = np.append(0, local)
        return TokenStream(ids=self._ids[start:stop].copy(), document_starts=np.append(local, stop - start))


def small_specs(size: int = 12) -> dict[str, AddressSpec]:
    """A spec for each family and each rule that changes what is counted, over `size` ids."""

    def make(
        name: str, mix: MixRule, orders: tuple[int, ...], moduli: list[list[int]], multipliers: list[int],
        history: HistoryRule | None = None, *, layers: int = 2, shared: bool = False, canonical_size: int = size,
    ) -> AddressSpec:  # fmt: skip
        flat = [modulus for heads in moduli for modulus in heads]
        offsets = (0,) * len(flat) if shared else (0, *accumulate(flat[:-1]))
        n_rows = max(flat) if shared else sum(flat) + 3
        made = [
            LayerAddressing(
                layer_id=5 * layer,
                multipliers=tuple(value + 2 * layer for value in multipliers),
                moduli=tuple(map(tuple, moduli)),
                offsets=offsets,
                n_rows=n_rows,
            )
            for layer in range(layers)
        ]
        return AddressSpec(
            name=name,
            provenance="tests",
            canonical_size=canonical_size,
            history=history or HistoryRule(fill_id=2),
            orders=orders,
            layers=tuple(made),
            mix=mix,
            folded=False,
        )

    polynomial, salted = Family.POLYNOMIAL, Family.SALTED_AFFINE
    rules = HistoryRule(
        fill_id=3, boundary_ids=(1, 3), boundary_visible=True, boundary_closed=True, replaced=((2, 5),), replacement=7
    )
    odd = [901, 77_013, 5_551_113]
    return {
        "xor": make("xor", MixRule(), (2, 3), [[11, 70_001], [9001, 17]], odd),
        "xor-fast": make("xor-fast", MixRule(), (2, 3), [[8209, 70_001], [9001]], odd),
        "xor-rules": make("xor-rules", MixRule(oldest_first=True, lagged=True), (1, 3), [[7], [9001, 17]], odd, rules),
        "xor-32": make("xor-32", MixRule(word_bits=32), (2,), [[101, 8209]], [2**31 + 11, 2**30 + 3]),
        "shared": make("shared", MixRule(), (2, 3), [[31, 37], [29, 31]], odd, shared=True),
        "polynomial": make("polynomial", MixRule(family=polynomial), (2, 3), [[101, 9001], [97, 11]], [size], rules),
        "wide": make("wide", MixRule(family=polynomial), (2, 5), [[101], [70_001, 11]], [5], canonical_size=2**17),
        "salted": make("salted", MixRule(family=salted), (2,), [[101, 9001]], [3, 5, 7, 11], rules),
        "identity": make("identity", MixRule(family=Family.IDENTITY), (1,), [[8]], [], layers=1),
    }


def traffic_reference(
    spec: AddressSpec, documents: Sequence[Sequence[int]]
) -> dict[tuple[int, int], tuple[Counter[int], Counter[int], int]]:
    """By layer id and column: hits by row, distinct n-grams by row, and how many distinct n-grams there are."""
    found = {}
    order_of = [spec.orders.index(order) for order, _ in spec.columns]
    for layer in spec.layers:
        hits: list[Counter[int]] = [Counter() for _ in spec.columns]
        owners: list[set[tuple[int, int]]] = [set() for _ in spec.columns]
        for document in documents:
            rows, keys = reference.address(spec, layer, document)
            for position, token in enumerate(document):
                if token < 0:
                    continue
                for column in range(spec.n_columns):
                    row = rows[position][column] - layer.offsets[column]
                    hits[column][row] += 1
                    owners[column].add((keys[position][order_of[column]], row))
        for column in range(spec.n_columns):
            n_grams = Counter(row for _, row in owners[column])
            found[layer.layer_id, column] = (hits[column], n_grams, len(owners[column]))
    return found
