"""What an n-gram is to a table: its tokens, key and rows, what these say and cost to read, and who else owns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import exact_keys
from engram_tables.address.reference import window
from engram_tables.errors import InvalidInput
from engram_tables.inspect.membership import BundleIndex, HotRows, HotView, hot_rows_of
from engram_tables.inspect.next_tokens import NextTokens, NextView
from engram_tables.inspect.owners import Row, Search, find_owners, spell
from engram_tables.inspect.row_places import PartView, ReadCost, Stretch, cost_of, is_here, part_views, stretches_of
from engram_tables.inspect.tokens import TokenView, token_view
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from engram_tables.address.spec import Addresses
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.counts.counts_store import Counts
    from engram_tables.fetch.table import Table
    from engram_tables.fetch.tiers.hot_list import HotList


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharer:
    """A corpus n-gram that owns the same row as another one; `share` is its part of the row's lookups."""

    canonical_ids: tuple[int, ...]
    forms: tuple[str, ...]
    occurrences: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """One row an n-gram owns.

    Attributes
    ----------
    parts
        Where its record lies; empty where another rank holds it.
    norm
        Euclidean norm of the row's values; None where the row is not here, or no codec decodes it.
    n_lookups, own_share
        Times that the corpus looks the row up, and the part of that which is this n-gram's own (None where there is no
        lookup, or it begins before the text); None without counts.
    n_sharers, sharers
        Corpus n-grams of another key that own the same row, and the most frequent of them; None without counts.
    hot
        Its place in the hot list; None where it is not in it or no list was given.
    """

    layer_id: int
    head: int
    row: int
    parts: tuple[PartView, ...]
    norm: float | None
    n_lookups: int | None
    own_share: float | None
    n_sharers: int | None
    sharers: tuple[Sharer, ...]
    hot: HotView | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchView:
    """What fetching all rows of an n-gram costs now, before they were read here.

    Attributes
    ----------
    rows
        Row by row. Rows that are not here are not in it.
    bundles
        Layers whose rows of the n-gram lie together as one bundle; None for a table without bundles.
    bundled
        With those bundles; None for a table without.
    """

    rows: ReadCost
    bundles: tuple[int, ...] | None
    bundled: ReadCost | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramView:
    """An n-gram that ends at a position of a text.

    Attributes
    ----------
    text
        In which it was asked for.
    n_before_text
        Tokens that it needs before the text's first: 0 for one that lies in its text. Others are never counted.
    tokens
        Oldest first.
    keys
        The mix before the modulus, by layer id.
    occurrences
        How often the corpus holds it; None without counts, and for n-grams that begin before the text.
    next_tokens
        Of a next-token table, by layer: which tokens its rows say come next; empty for other tables.
    """

    text: str
    position: int
    order: int
    n_before_text: int
    tokens: tuple[TokenView, ...]
    keys: dict[int, int]
    occurrences: int | None
    rows: tuple[RowView, ...]
    fetch: FetchView
    next_tokens: tuple[NextView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramsReport:
    """N-grams of some texts, and what finding them out cost.

    Attributes
    ----------
    texts
        The tokens of each text, as it spells them.
    n_rows_read, bytes_read
        Records that were read, each once, and their bytes.
    n_ngrams_searched, counts_bytes
        Counted n-grams that were hashed to find who shares a row, and bytes of the files that hold them.
    """

    ngrams: tuple[NgramView, ...]
    texts: dict[str, tuple[str, ...]]
    n_rows_read: int
    bytes_read: int
    n_ngrams_searched: int
    counts_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to look at and to show.

    Attributes
    ----------
    orders
        Only these; all of the table's if None.
    last_only
        Only the n-grams that end with a text.
    n_sharers, n_next
        The most frequent sharers of a row, and the likeliest next tokens of an n-gram, to name.
    """

    orders: Sequence[int] | None = None
    last_only: bool = False
    n_sharers: int = 3
    n_next: int = 5


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
    """Every n-gram that ends at each position of a text: `inspect_texts` of one text."""
    asked = Asked(orders=orders, last_only=last_only, n_sharers=n_sharers)
    return list(inspect_texts(table, [text], counts=counts, vocabulary=vocabulary, asked=asked).ngrams)


def inspect_texts(
    table: Table,
    texts: Sequence[str],
    *,
    counts: Counts | None = None,
    vocabulary: Vocabulary | None = None,
    hot_list: HotList | None = None,
    asked: Asked | None = None,
    progress: ProgressHook | None = None,
) -> NgramsReport:
    """Every n-gram that ends at each position of each text, text by text.

    Parameters
    ----------
    counts
        Counts over the table's vocabulary: occurrences, the corpus n-grams that share a row, and for a next-token
        table what was counted next (`count --next raw`).
    vocabulary
        The table's own by default.
    progress
        Called with counted n-grams that were searched.

    Raises
    ------
    InvalidInput
        A text without a token, an order that the table lacks, a table without vocabulary where none is given.
    SpecMismatch
        Counts, vocabulary or hot list that are not the table's.

    Notes
    -----
    Cost: one fetch of the records a layer, each read once; with counts, one pass over the corpus n-grams of each order
    asked for, whatever the number of texts.
    """
    asked = asked or Asked()
    vocabulary = _table_vocabulary(table, vocabulary)
    if counts is not None:
        counts.check_vocabulary(vocabulary.map_sha256)
    orders = _known_orders(table, asked.orders)
    hot = hot_rows_of(table, hot_list)
    found = [
        ngram for text in texts for ngram in _ngrams_of(table, text, vocabulary, orders, last_only=asked.last_only)
    ]
    rows = {Row(layer_id, row) for ngram in found for layer_id, of in ngram.rows.items() for row in of}
    search = None if counts is None else find_owners(table.spec, counts, rows, progress=progress)
    # Before rows are read: afterwards their pages are in memory.
    bundles = BundleIndex(table)
    fetches = [_fetch_view(table, ngram, bundles) for ngram in found]
    values = _Values(table, rows)
    sharing = _Sharing(counts, search, found, vocabulary, asked.n_sharers)
    following = NextTokens(table, counts, vocabulary, asked.n_next)
    return NgramsReport(
        ngrams=tuple(
            _view(table, ngram, fetch, values, sharing, following, hot)
            for ngram, fetch in zip(found, fetches, strict=True)
        ),
        texts={text: tuple(map(vocabulary.text, vocabulary.encode(text))) for text in texts},
        n_rows_read=values.n_rows,
        bytes_read=values.n_rows * table.row_bytes,
        n_ngrams_searched=0 if search is None else search.n_ngrams,
        counts_bytes=0 if search is None else search.counts_bytes,
    )


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


class _Ngram(NamedTuple):
    """An n-gram before anything is read.

    Attributes
    ----------
    ids
        Canonical ids as they are counted, oldest first: those of the text, whatever the hash sees in their place.
    n_before_text
        Tokens that it needs before the text's first.
    keys, raw_keys
        By layer id: as integers, and (1,) of the spec's `key_dtype`.
    rows
        By layer id, head by head.
    """

    text: str
    position: int
    order: int
    tokens: tuple[TokenView, ...]
    ids: tuple[int, ...]
    n_before_text: int
    keys: dict[int, int]
    raw_keys: dict[int, npt.NDArray[np.generic]]
    rows: dict[int, list[int]]


def _ngrams_of(
    table: Table, text: str, vocabulary: Vocabulary, orders: Sequence[int], *, last_only: bool
) -> list[_Ngram]:
    token_ids = np.array(vocabulary.encode(text), dtype=np.int64)
    if not len(token_ids):
        raise InvalidInput(f"the text {text!r} holds no token; give one word or more")
    canonical_ids = vocabulary.canonical(token_ids)
    addresses = table.spec.address(canonical_ids)
    positions = range(len(token_ids) - 1, len(token_ids)) if last_only else range(len(token_ids))
    return [
        _ngram(table, text, position, order, token_ids, canonical_ids, addresses, vocabulary)
        for position in positions
        for order in orders
    ]


def _ngram(
    table: Table,
    text: str,
    position: int,
    order: int,
    token_ids: npt.NDArray[np.int64],
    canonical_ids: npt.NDArray[np.uint32],
    addresses: Addresses,
    vocabulary: Vocabulary,
) -> _Ngram:
    spec = table.spec
    seen = window(canonical_ids.tolist(), position, max_order=spec.max_order, history=spec.history)
    places = [(position - back, seen[back]) for back in range(spec.lag(order), spec.lag(order) + order)][::-1]
    columns = [column for column, (o, _) in enumerate(spec.columns) if o == order]
    keys = addresses.keys[position, :, spec.orders.index(order)]
    return _Ngram(
        text=text,
        position=position,
        order=order,
        tokens=tuple(
            token_view(vocabulary, int(token_ids[place]) if place >= 0 else None, canonical_id)
            for place, canonical_id in places
        ),
        ids=tuple(int(canonical_ids[place]) if place >= 0 else canonical_id for place, canonical_id in places),
        n_before_text=max(0, -places[0][0]),
        keys=dict(zip(spec.layer_ids, exact_keys(keys), strict=True)),
        raw_keys={layer_id: keys[at : at + 1] for at, layer_id in enumerate(spec.layer_ids)},
        rows={layer_id: addresses.rows[position, at, columns].tolist() for at, layer_id in enumerate(spec.layer_ids)},
    )


def _fetch_view(table: Table, ngram: _Ngram, bundles: BundleIndex) -> FetchView:
    apart: list[Stretch] = []
    bundled: list[Stretch] = []
    layers = []
    for layer_id, rows in ngram.rows.items():
        stretches = [stretch for row in rows for stretch in stretches_of(table.stored, layer_id, row)]
        apart += stretches
        number = int(bundles.find(layer_id, ngram.order, ngram.raw_keys[layer_id])[0])
        if number >= 0:
            layers.append(layer_id)
            stretches = [bundles.stretch(layer_id, ngram.order, number)]
        bundled += stretches
    return FetchView(
        rows=cost_of(apart),
        bundles=tuple(layers) if bundles.is_there else None,
        bundled=cost_of(bundled) if bundles.is_there else None,
    )


class _Values:
    """The values of some rows, each record read once; none where no codec decodes them."""

    def __init__(self, table: Table, rows: set[Row]) -> None:
        self.n_rows = 0
        self._values: dict[Row, npt.NDArray[np.float32]] = {}
        if not table.stored.codec.can_decode:
            return
        for layer_id in table.spec.layer_ids:
            here = sorted(row for row in rows if row.layer_id == layer_id and is_here(table.stored, *row))
            records = table.fetch_rows(layer_id, np.array([row.row for row in here], np.int64))
            self._values.update(zip(here, table.decode(records), strict=True))
            self.n_rows += len(here)

    def norm(self, row: Row) -> float | None:
        """Euclidean norm; None for a row that was not read."""
        if row not in self._values:
            return None
        # In float32 the squares of values that it holds would pass its range; what is not finite stays so.
        with np.errstate(invalid="ignore"):
            return float(np.linalg.norm(self._values[row].astype(np.float64)))

    def of(self, layer_id: int, rows: Sequence[int]) -> npt.NDArray[np.float32] | None:
        """float32 (rows, width); None unless all of them were read."""
        found = [self._values.get(Row(layer_id, row)) for row in rows]
        return None if any(values is None for values in found) else np.stack([v for v in found if v is not None])


class _Sharing:
    """Who else owns rows, and how often n-grams occur; nothing without counts."""

    def __init__(
        self, counts: Counts | None, search: Search | None, ngrams: list[_Ngram], vocabulary: Vocabulary, n_named: int
    ) -> None:
        self._search, self._vocabulary, self._n_named = search, vocabulary, n_named
        self._occurrences: dict[tuple[int, ...], int] = {}
        if counts is not None:
            for order in {ngram.order for ngram in ngrams} & set(counts.orders):
                whole = sorted({ngram.ids for ngram in ngrams if ngram.order == order and not ngram.n_before_text})
                found = counts.lookup(np.array(whole, np.uint32).reshape(-1, order))
                self._occurrences.update(zip(whole, found.tolist(), strict=True))

    def occurrences(self, ngram: _Ngram) -> int | None:
        """How often the corpus holds an n-gram."""
        return None if ngram.n_before_text else self._occurrences.get(ngram.ids)

    def of(self, ngram: _Ngram, row: Row) -> tuple[int | None, float | None, int | None, tuple[Sharer, ...]]:
        """Lookups of the row, the n-gram's own share of them, n-grams of another key, and the first of these."""
        if self._search is None or ngram.order in self._search.missing_orders:
            return None, None, None, ()
        owned = self._search.rows[row]
        others = owned.others(ngram.keys[row.layer_id], ngram.order)
        foreign = sum(owner.occurrences for owner in others)
        sharers = tuple(
            Sharer(
                canonical_ids=owner.ids,
                forms=spell(self._vocabulary, owner.ids),
                occurrences=owner.occurrences,
                share=owner.occurrences / owned.n_lookups,
            )
            for owner in others[: self._n_named]
        )
        # An n-gram that begins before the text is not counted: what is its own is not known.
        is_known = bool(owned.n_lookups) and self.occurrences(ngram) is not None
        own_share = 1 - foreign / owned.n_lookups if is_known else None
        return owned.n_lookups, own_share, len(others), sharers


def _view(
    table: Table,
    ngram: _Ngram,
    fetch: FetchView,
    values: _Values,
    sharing: _Sharing,
    following: NextTokens,
    hot: HotRows | None,
) -> NgramView:
    views = []
    for layer_id, rows in ngram.rows.items():
        for head, row in enumerate(rows):
            n_lookups, own_share, n_sharers, sharers = sharing.of(ngram, Row(layer_id, row))
            views.append(
                RowView(
                    layer_id=layer_id,
                    head=head,
                    row=row,
                    parts=part_views(table.stored, layer_id, row),
                    norm=values.norm(Row(layer_id, row)),
                    n_lookups=n_lookups,
                    own_share=own_share,
                    n_sharers=n_sharers,
                    sharers=sharers,
                    hot=None if hot is None else hot.find(layer_id, row),
                )
            )
    said = [
        following.of(layer_id, ngram.order, None if ngram.n_before_text else ngram.ids, values.of(layer_id, of))
        for layer_id, of in ngram.rows.items()
    ]
    return NgramView(
        text=ngram.text,
        position=ngram.position,
        order=ngram.order,
        n_before_text=ngram.n_before_text,
        tokens=ngram.tokens,
        keys=ngram.keys,
        occurrences=sharing.occurrences(ngram),
        rows=tuple(views),
        fetch=fetch,
        next_tokens=tuple(view for view in said if view is not None),
    )
