"""What a table says of positions: its rows fetched, decoded and read back, for each number of heads.

Owns the way from positions to guesses. What a row holds, and how far to back off, is `storage.next_token`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import InvalidInput
from engram_tables.fetch.table import Table
from engram_tables.measure.evaluate.exact import NONE
from engram_tables.measure.evaluate.judging import Guess, Guesses, K
from engram_tables.measure.evaluate.positions import Positions
from engram_tables.measure.evaluate.subject import rows_of
from engram_tables.storage.extents import Ranges
from engram_tables.storage.next_token.reading import NextTokenReader, TopTokens, back_off, reader_of
from engram_tables.storage.table.reader import StoredTable

BLOCK_POSITIONS = 1024
"""Positions that are read back together: rows of all orders take some ten megabytes in each thread, and neighbours in
a text often share an n-gram, which is then read once."""

Bools = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def next_token_reader(table: Table) -> NextTokenReader:
    """What reads a table's rows back.

    Raises
    ------
    InvalidInput
        A checkpoint, or a table whose rows hold no next tokens.
    """
    if not isinstance(table.stored, StoredTable):
        raise InvalidInput(
            f"{table.path}: found a checkpoint, expected a next-token table; build one with `engram build-table "
            "--from-counts COUNTS --init next-token`"
        )
    return reader_of(table.stored)


class _Held(NamedTuple):
    """What rows hold of some positions' n-grams of one order.

    Attributes
    ----------
    places
        int64 (m,): positions that have such an n-gram.
    number
        int64 (m,): which of the distinct ones each is.
    values
        float32 (distinct, heads, width).
    """

    places: I64
    number: I64
    values: F32


class Guesser:
    """Reads what one layer of a next-token table says of positions; safe to use from several threads.

    Attributes
    ----------
    orders
        Of the table, the longest first.
    head_counts
        So many of an order's first heads are read, each by itself; ascending, the last is all of them.
    layer_id
        The layer whose rows are read.
    counts_sha256
        Digest of the counts that the table was made of.

    Raises
    ------
    InvalidInput
        As `next_token_reader`; a layer that the table does not have, or of which it holds a part; a vocabulary of
        another size than the counts'.
    SpecMismatch
        Another vocabulary than the table's addressing has.
    """

    def __init__(
        self, table: Table, vocabulary: Vocabulary, *, layer_id: int | None, head_counts: Sequence[int], engine: str
    ) -> None:
        self._table, self._vocabulary, self._engine = table, vocabulary, engine
        self._reader = next_token_reader(table)
        spec = table.spec
        spec.check_vocabulary(vocabulary)
        if self._reader.recipe.next_size != vocabulary.token_count:
            raise InvalidInput(
                f"{table.path}: its rows hold {self._reader.recipe.next_size:,} tokens, the vocabulary has "
                f"{vocabulary.token_count:,}; give the one that the counts were made with (--vocab)"
            )
        self.layer_id = _whole_layer(table, layer_id)
        self._layer = spec.layer_ids.index(self.layer_id)
        self.orders = tuple(sorted(spec.orders, reverse=True))
        most = max(spec.heads)
        self.head_counts = tuple(sorted({n for n in head_counts if n < most} | {most}))
        self.counts_sha256 = self._reader.recipe.counts_sha256

    def guesses(self, positions: Positions, has_ngram: Mapping[int, Bools]) -> dict[int, Guesses]:
        """By number of heads, what the rows of each position say.

        Parameters
        ----------
        has_ngram
            By order, bool (n,): where there is an n-gram; nothing is said of the others.
        """
        rows = rows_of(positions, self._table.spec, self._vocabulary, self._layer)
        held = {order: self._held(order, rows, has_ngram[order]) for order in self.orders}
        return {n_heads: self._guess(held, n_heads, len(positions)) for n_heads in self.head_counts}

    def describe(self) -> dict[str, Any]:
        """What a record says of the table."""
        table, stored = self._table, self._table.stored
        recipe = self._reader.recipe
        return {
            "path": str(table.path),
            "spec": table.spec.name,
            "fingerprint": table.spec.fingerprint,
            "codec": stored.codec.name,
            "row_bytes": table.row_bytes,
            "row_width": self._reader.width,
            "orders": list(table.spec.orders),
            "heads": list(table.spec.heads),
            "n_rows": table.spec.n_rows,
            "layer_id": self.layer_id,
            "sketch": recipe.sketch,
            "seed": str(recipe.seed),
            "counts_sha256": recipe.counts_sha256,
        }

    def _held(self, order: int, rows: I64, has_ngram: Bools) -> _Held:
        """The rows of an order's n-grams; the same n-gram is read once, and what is no n-gram not at all."""
        columns = np.array([of == order for of, _ in self._table.spec.columns])
        distinct, number = np.unique(rows[has_ngram][:, columns], axis=0, return_inverse=True)
        records = self._table.fetch_rows(self.layer_id, distinct.reshape(-1), engine=self._engine, threads=1)
        values = self._table.decode(records).reshape(*distinct.shape, self._reader.width)
        return _Held(np.flatnonzero(has_ngram), number.reshape(-1), values)

    def _guess(self, held: Mapping[int, _Held], n_heads: int, n_positions: int) -> Guesses:
        tops = {}
        for order, of in held.items():
            top = self._reader.top(of.values[:, :n_heads], order=order, layer=self.layer_id, k=K, threads=1)
            tops[order] = _spread(top, of, n_positions)
        predicted = back_off(tops, K)
        return Guesses(
            of_order={order: _guess_of(top, min(n_heads, self._reader.heads(order))) for order, top in tops.items()},
            backed_off=predicted.ids,
            is_known=predicted.convincing[:, 0],
        )


def _whole_layer(table: Table, layer_id: int | None) -> int:
    """The layer that is asked for, or the first of which all rows are here."""
    spec, owned = table.spec, table.stored.owned
    whole = [layer.layer_id for layer in spec.layers if _n_rows(owned(layer.layer_id)) == layer.n_rows]
    chosen = layer_id if layer_id is not None else [*whole, spec.layer_ids[0]][0]
    n_rows = spec.layer(chosen).n_rows
    if chosen not in whole:
        raise InvalidInput(
            f"{table.path}: found {_n_rows(owned(chosen)):,} of the {n_rows:,} rows of layer {chosen}, expected all; "
            "give the whole table" + (f", or --layer {whole[0]}" if whole else "")
        )
    return chosen


def _n_rows(ranges: Ranges) -> int:
    return sum(stop - start for start, stop in ranges)


def _spread(top: TopTokens, held: _Held, n_positions: int) -> TopTokens:
    """What was found of distinct n-grams, position by position; nothing where there is no n-gram."""

    def spread(found: npt.NDArray[Any], nothing: int) -> Any:
        every = np.full((n_positions, found.shape[1]), nothing, dtype=found.dtype)
        every[held.places] = found[held.number]
        return every

    return replace(
        top, ids=spread(top.ids, NONE), estimates=spread(top.estimates, 0), agreement=spread(top.agreement, 0),
        evidence=spread(top.evidence, 0),
    )  # fmt: skip


def _guess_of(top: TopTokens, n_heads: int) -> Guess:
    # Agreement is a share of checks, of which heads may have several: rounded to heads, it sums up exactly.
    agreeing = np.rint(top.agreement[:, 0] * n_heads).astype(np.int64)
    return Guess(tokens=top.ids, agreeing=agreeing, n_heads=n_heads, is_known=top.known)
