"""What an n-gram is to a table: its tokens, key, rows, where their bytes lie, and who else owns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import exact_keys, hash_ngrams
from engram_tables.address.reference import window
from engram_tables.errors import InvalidInput
from engram_tables.inspect.table import file_name
from engram_tables.units import PAGE_BYTES

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.counts.counts_store import Counts
    from engram_tables.corpus.counts.ngram_counts import NgramCounts
    from engram_tables.fetch.table import Table

# Corpus n-grams hashed at a time when rows are searched for: bounds the memory of the search.
_SEARCH_BLOCK = 1 << 20
_FILTER_BITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """One token of an n-gram.

    Attributes
    ----------
    token_id
        None where the history is missing and the fill id stands in.
    text
        What the token says in the text; empty for the fill.
    form
        The form it folds to.
    folds_with
        Texts of other tokens with the same canonical id, the first few.
    n_folded
        Number of tokens that share the canonical id, this one included.
    """

    token_id: int | None
    canonical_id: int
    text: str
    form: str
    folds_with: tuple[str, ...]
    n_folded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharer:
    """A corpus n-gram that owns the same row as another one."""

    canonical_ids: tuple[int, ...]
    forms: tuple[str, ...]
    occurrences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartView:
    """Where one part of a record lies; a record in one piece has one, `records`.

    Attributes
    ----------
    file
        Its name within the table's or checkpoint's directory.
    offset
        Byte offset from the start of that file.
    first_page, n_pages
        The 4096-byte pages of the file that hold it.
    """

    part: str
    file: str
    offset: int
    n_bytes: int
    first_page: int
    n_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """One row an n-gram owns.

    Attributes
    ----------
    parts
        Where its record lies; empty where another rank holds it.
    norm
        Euclidean norm of the row's values; None where the row is not here, or no codec decodes it.
    n_sharers, sharers
        Corpus n-grams that own the same row, and the most frequent of them; None without counts.
    """

    layer_id: int
    head: int
    row: int
    parts: tuple[PartView, ...]
    norm: float | None
    n_sharers: int | None
    sharers: tuple[Sharer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramView:
    """An n-gram that ends at a position of the text.

    Attributes
    ----------
    tokens
        Oldest first.
    keys
        The mix before the modulus, by layer id.
    occurrences
        How often the corpus holds it; None without counts, and for n-grams that begin before the text.
    """

    position: int
    order: int
    tokens: tuple[TokenView, ...]
    keys: dict[int, int]
    occurrences: int | None
    rows: tuple[RowView, ...]


def inspect_ngrams(
    table: Table,
    text: str,
    *,
    counts: Counts | None = None,
    vocabulary: Vocabulary | None = None,
    orders: Sequence[int] | None = None,
    last_only: bool = False,
    n_sharers: int = 3,
) -> list[NgramView]:
    """Every n-gram that ends at each position of a text.

    Parameters
    ----------
    counts
        Counts over the table's vocabulary: gives occurrences and the corpus n-grams that share a row.
    vocabulary
        The table's own by default.
    orders
        Only these; all of the table's by default.
    last_only
        Only the n-grams that end with the text.
    n_sharers
        The most frequent sharers to name per row.

    Raises
    ------
    InvalidInput
        A text without a token, an order that the table lacks, a table without vocabulary where none is given.
    SpecMismatch
        Counts or vocabulary that are not the table's.

    Notes
    -----
    Cost: a few records read; with counts, one pass over the corpus n-grams of each order asked for and each
    layer.
    """
    vocabulary = _table_vocabulary(table, vocabulary)
    if counts is not None:
        counts.check_vocabulary(vocabulary.map_sha256)
    orders = _known_orders(table, orders)
    token_ids = np.array(vocabulary.encode(text), dtype=np.int64)
    if not len(token_ids):
        raise InvalidInput("the text holds no token; give one word or more")
    positions = range(len(token_ids) - 1, len(token_ids)) if last_only else range(len(token_ids))
    canonical_ids = vocabulary.canonical(token_ids)
    spec = table.spec
    addresses = spec.address(canonical_ids)
    views = _RowViews(table, addresses.rows, list(positions))
    sharing = {
        order: _Sharing(table, counts.load(order).whole(), views.rows_of(order), order, n_sharers, vocabulary)
        for order in orders
        if counts is not None and order in counts.orders
    }
    found = []
    for position in positions:
        for order in orders:
            seen = window(canonical_ids.tolist(), position, max_order=spec.max_order, history=spec.history)
            places = [(position - back, seen[back]) for back in range(spec.lag(order), spec.lag(order) + order)][::-1]
            tokens = tuple(
                _token_view(vocabulary, int(token_ids[place]) if place >= 0 else None, canonical_id)
                for place, canonical_id in places
            )
            ids = tuple(canonical_id for _, canonical_id in places)
            whole = places[0][0] >= 0
            keys = exact_keys(addresses.keys[position, :, spec.orders.index(order)])
            found.append(
                NgramView(
                    position=position,
                    order=order,
                    tokens=tokens,
                    keys=dict(zip(spec.layer_ids, keys, strict=True)),
                    occurrences=sharing[order].occurrences(ids) if order in sharing and whole else None,
                    rows=views.of(position, order, sharing.get(order), keys),
                )
            )
    return found


def _table_vocabulary(table: Table, vocabulary: Vocabulary | None) -> Vocabulary:
    chosen = vocabulary if vocabulary is not None else table.vocabulary
    if chosen is None:
        raise InvalidInput(f"{table.path}: the table holds no vocabulary; give --vocab")
    table.spec.check_vocabulary(chosen)
    return chosen


def _known_orders(table: Table, orders: Sequence[int] | None) -> tuple[int, ...]:
    if orders is None:
        return table.spec.orders
    for order in orders:
        if order not in table.spec.orders:
            raise InvalidInput(f"order {order}: {table.path} has orders {', '.join(map(str, table.spec.orders))}")
    return tuple(sorted(set(orders)))


def _token_view(vocabulary: Vocabulary, token_id: int | None, canonical_id: int, n_shown: int = 6) -> TokenView:
    """A token as the hash saw it: nothing but the fill where it is out of sight."""
    if canonical_id >= vocabulary.canonical_size:
        # A fill or a replacement beyond the tokenizer's own ids.
        return TokenView(token_id=None, canonical_id=canonical_id, text="", form="", folds_with=(), n_folded=0)
    if token_id is not None and int(vocabulary.canonical([token_id])[0]) != canonical_id:
        token_id = None
    members = vocabulary.members(canonical_id)
    others = [vocabulary.text(member) for member in members if member != token_id]
    return TokenView(
        token_id=token_id,
        canonical_id=canonical_id,
        text="" if token_id is None else vocabulary.text(token_id),
        form=vocabulary.form(canonical_id),
        folds_with=tuple(others[:n_shown]) if token_id is not None else (),
        n_folded=len(members),
    )


class _RowViews:
    """The rows of some positions, located and read once."""

    def __init__(self, table: Table, rows: npt.NDArray[np.int64], positions: Sequence[int]) -> None:
        self._table, self._rows, self._positions = table, rows, positions
        self._columns = table.spec.columns

    def rows_of(self, order: int) -> dict[int, npt.NDArray[np.int64]]:
        """int64 (positions, heads) by layer id."""
        columns = [column for column, (o, _) in enumerate(self._columns) if o == order]
        return {
            layer_id: self._rows[np.ix_(self._positions, [layer_idx], columns)][:, 0]
            for layer_idx, layer_id in enumerate(self._table.spec.layer_ids)
        }

    def of(self, position: int, order: int, sharing: _Sharing | None, keys: list[int]) -> tuple[RowView, ...]:
        views = []
        for layer_idx, layer_id in enumerate(self._table.spec.layer_ids):
            columns = [column for column, (o, _) in enumerate(self._columns) if o == order]
            rows = self._rows[position, layer_idx, columns]
            norms = self._norms(layer_id, rows)
            for head, row in enumerate(rows.tolist()):
                owners = None if sharing is None else sharing.of(layer_id, head, row, keys[layer_idx])
                views.append(
                    RowView(
                        layer_id=layer_id,
                        head=head,
                        row=row,
                        parts=self._parts(layer_id, row),
                        norm=norms[head],
                        n_sharers=None if owners is None else owners[0],
                        sharers=() if owners is None else owners[1],
                    )
                )
        return tuple(views)

    def _is_here(self, layer_id: int, row: int) -> bool:
        return any(start <= row < stop for start, stop in self._table.stored.owned(layer_id))

    def _norms(self, layer_id: int, rows: npt.NDArray[np.int64]) -> list[float | None]:
        here = [self._is_here(layer_id, row) for row in rows.tolist()]
        if not self._table.stored.codec.can_decode:
            return [None] * len(rows)
        norms = iter(np.linalg.norm(self._table.decode(self._table.fetch_rows(layer_id, rows[here])), axis=1).tolist())
        return [next(norms) if is_here else None for is_here in here]

    def _parts(self, layer_id: int, row: int) -> tuple[PartView, ...]:
        stored = self._table.stored
        if not self._is_here(layer_id, row):
            return ()
        views = []
        for part_idx, part in enumerate(stored.parts):
            spots = stored.locate(layer_id, np.array([row]), part_idx)
            offset = int(spots.offsets[0])
            first_page = offset // PAGE_BYTES
            views.append(
                PartView(
                    part=part.name,
                    file=file_name(stored, int(spots.file_idx[0])),
                    offset=offset,
                    n_bytes=part.n_bytes,
                    first_page=first_page,
                    n_pages=(offset + part.n_bytes - 1) // PAGE_BYTES - first_page + 1,
                )
            )
        return tuple(views)


class _Sharing:
    """Which corpus n-grams of one order own some wanted rows: one pass over them, when it is made."""

    def __init__(
        self,
        table: Table,
        ngrams: NgramCounts,
        wanted: dict[int, npt.NDArray[np.int64]],
        order: int,
        n_named: int,
        vocabulary: Vocabulary,
    ) -> None:
        self._ngrams, self._n_named, self._vocabulary = ngrams, n_named, vocabulary
        self._owners: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for layer_id, rows in wanted.items():
            self._search(table, layer_id, order, rows)

    def _search(self, table: Table, layer_id: int, order: int, wanted: npt.NDArray[np.int64]) -> None:
        mask = (1 << _FILTER_BITS) - 1
        maybe = np.zeros(1 << _FILTER_BITS, dtype=np.bool_)
        maybe[wanted & mask] = True
        for start in range(0, self._ngrams.n_distinct, _SEARCH_BLOCK):
            block = np.ascontiguousarray(self._ngrams.ngrams[start : start + _SEARCH_BLOCK])
            keys, rows = hash_ngrams(table.spec, layer_id, order, block)
            # A small filter first: exact membership is then asked of few rows.
            places, heads = np.nonzero(maybe[rows & mask])
            exact = (rows[places, heads][:, None] == wanted[:, heads].T).any(axis=1)
            for place, head in zip(places[exact].tolist(), heads[exact].tolist(), strict=True):
                owner = (start + place, exact_keys(keys[place]))
                self._owners.setdefault((layer_id, head, int(rows[place, head])), []).append(owner)

    def of(self, layer_id: int, head: int, row: int, key: int) -> tuple[int, tuple[Sharer, ...]]:
        """How many corpus n-grams of another key own the row, and the most frequent ones."""
        others = [place for place, owner in self._owners.get((layer_id, head, row), []) if owner != key]
        others.sort(key=lambda place: (-int(self._ngrams.counts[place]), place))
        return len(others), tuple(self._sharer(place) for place in others[: self._n_named])

    def _sharer(self, place: int) -> Sharer:
        ids = tuple(self._ngrams.ngrams[place].tolist())
        forms = tuple(self._vocabulary.form(canonical_id) for canonical_id in ids)
        return Sharer(canonical_ids=ids, forms=forms, occurrences=int(self._ngrams.counts[place]))

    def occurrences(self, ids: tuple[int, ...]) -> int:
        """How often the corpus holds an n-gram: a binary search by one column after the other."""
        start, stop = 0, self._ngrams.n_distinct
        for column, canonical_id in zip(self._ngrams.columns, ids, strict=True):
            part = column[start:stop]
            low, high = np.searchsorted(part, [canonical_id, canonical_id + 1])
            start, stop = start + int(low), start + int(high)
        return int(self._ngrams.counts[start]) if start < stop else 0
