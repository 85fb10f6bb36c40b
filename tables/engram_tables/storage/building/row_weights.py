"""How often a corpus looks each row up, from its n-gram counts: the weights of an error report.

Kept in sparse files that are mapped, so that the rows of a large table need no memory of their own. Knows no table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import AddressSpec
from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.errors import InvalidInput
from engram_tables.units import Stage

_BATCH_NGRAMS = 2**16


def check_counts(counts: Counts, spec: AddressSpec) -> None:
    """Raise unless `counts` are of the n-grams that `spec` hashes.

    Raises
    ------
    InvalidInput
        An order was not counted, or ids have another bound.
    SpecMismatch
        Another vocabulary.
    """
    missing = [order for order in spec.orders if order not in counts.orders]
    if missing:
        raise InvalidInput(
            f"{counts.path}: found orders {', '.join(map(str, counts.orders))}, expected {missing[0]} among them as "
            f"spec {spec.name} has it; count again with --orders {','.join(map(str, spec.orders))}"
        )
    # A spec that hashes token ids as they are may have room for more than the tokenizer has.
    found, expected = counts.canonical_size, spec.canonical_size
    if found > expected or (spec.folded and found != expected):
        raise InvalidInput(
            f"{counts.path}: found {found:,} canonical ids, expected {expected:,} as spec "
            f"{spec.name} has; count with the vocabulary that belongs to it"
        )
    if spec.vocab_sha256 is not None:
        counts.check_vocabulary(spec.vocab_sha256)


class RowWeights:
    """Lookups of every row of every layer in the corpus of `counts`; made once, in files below `directory`.

    N-grams that begin before their document does are in it only if they were counted (`--pad-token`).
    """

    def __init__(self, counts: Counts, spec: AddressSpec, directory: Path, *, threads: int, stage: Stage) -> None:
        directory.mkdir(exist_ok=True)
        # No row has more lookups than n-grams of all orders, whose heads may share it.
        most = sum(counts.n_total(order) * n for order, n in zip(spec.orders, spec.heads, strict=True))
        self._dtype = np.dtype(np.uint32 if most < 2**32 else np.uint64)
        self._of = {
            layer.layer_id: np.memmap(
                directory / f"weights-{layer.layer_id}", self._dtype, mode="w+", shape=(layer.n_rows,)
            )
            for layer in spec.layers
        }
        total = sum(counts.n_rows(order) for order in spec.orders) * len(spec.layers)
        done = 0
        with stage("weighing rows", "n-grams") as progress:
            for order in spec.orders:
                for batch in counts.batches(order):
                    done = self._add(spec, order, batch.ngrams, batch.counts, threads, done)
                    progress(done, total)

    def of(self, layer_id: int, rows: range) -> NDArray[np.uint64]:
        """uint64 (n,): lookups of consecutive rows."""
        return self._of[layer_id][rows.start : rows.stop].astype(np.uint64)

    def _add(
        self, spec: AddressSpec, order: int, ngrams: NDArray[Any], counts: NDArray[Any], threads: int, done: int
    ) -> int:
        from engram_tables.address.hashing import hash_ngrams

        for begin in range(0, len(counts), _BATCH_NGRAMS):
            some = np.ascontiguousarray(ngrams[begin : begin + _BATCH_NGRAMS])
            times = counts[begin : begin + _BATCH_NGRAMS].astype(self._dtype)
            for layer_id, weights in self._of.items():
                rows = hash_ngrams(spec, layer_id, order, some, threads=threads)[1]
                for head in range(rows.shape[1]):
                    np.add.at(weights, rows[:, head], times)
                done += len(some)
        return done
