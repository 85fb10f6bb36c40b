"""What one row is: the head it belongs to, where its bytes lie, its values, who hits it, and what holds it ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engram_tables.errors import InvalidInput
from engram_tables.inspect.counted_keys import check_ids
from engram_tables.inspect.membership import BundleIndex, HotView, hot_rows_of
from engram_tables.inspect.next_tokens import RowToken, next_token_reader_of, tokens_of_row, tokens_per_value
from engram_tables.inspect.owners import Owned, Owner, Row, RowHead, find_owners, heads_of_row, spell
from engram_tables.inspect.record_values import scales_of
from engram_tables.inspect.row_places import PartView, ReadCost, cost_of, is_here, part_views, stretches_of
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.counts.counts_store import Counts
    from engram_tables.fetch.table import Table
    from engram_tables.fetch.tiers.hot_list import HotList
    from engram_tables.storage.next_token.reading import NextTokenReader

N_VALUES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuesView:
    """What a row holds.

    Attributes
    ----------
    width
        Values of the row.
    norm, largest
        Euclidean norm and largest magnitude; NaN or infinite where a value is.
    n_zero, n_not_finite
        Values that are zero, and that are NaN or infinite.
    first
        The first few.
    scales
        Those that the record carries, group by group, biases behind them; empty for a codec without.
    """

    width: int
    norm: float
    largest: float
    n_zero: int
    n_not_finite: int
    first: tuple[float, ...]
    scales: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerView:
    """A corpus n-gram that hits a row.

    Attributes
    ----------
    share
        Of the lookups of the row.
    in_bundle
        Whether a bundle holds the n-gram; None where the table has none.
    """

    order: int
    head: int
    canonical_ids: tuple[int, ...]
    forms: tuple[str, ...]
    occurrences: int
    share: float
    in_bundle: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReport:
    """One row.

    Attributes
    ----------
    heads
        Those whose rows it is among: one, several where heads share a table, none where it is padding.
    parts
        Where its record lies; empty where another rank holds it.
    cost
        What reading it costs, before it was read here; None where it is not here.
    values
        None where the row is not here, or no codec decodes it.
    n_lookups, n_owners
        Times that the corpus looks it up, and n-grams that do; None without counts.
    owners
        The most frequent of them.
    tokens_per_value
        Of a next-token table: tokens that each value counts, on average, so that one row alone names none of them.
    next_tokens
        Of a next-token table whose followers were counted: the likeliest tokens after the owners that are named.
    hot
        Its place in the hot list; None where it is not in it or no list was given.
    """

    layer_id: int
    row: int
    heads: tuple[RowHead, ...]
    parts: tuple[PartView, ...]
    cost: ReadCost | None
    values: ValuesView | None
    n_lookups: int | None
    n_owners: int | None
    owners: tuple[OwnerView, ...]
    tokens_per_value: float | None
    next_tokens: tuple[RowToken, ...]
    hot: HotView | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsReport:
    """Some rows of a layer, and what finding them out cost.

    Attributes
    ----------
    bytes_read
        Of records.
    n_ngrams_searched, counts_bytes
        Counted n-grams that were hashed, and bytes of the files of counts that were read.
    missing_orders
        Orders of these rows that were not counted.
    """

    rows: tuple[RowReport, ...]
    bytes_read: int
    n_ngrams_searched: int
    counts_bytes: int
    missing_orders: tuple[int, ...]
    has_bundles: bool
    has_hot_list: bool


def inspect_rows(
    table: Table,
    layer_id: int,
    rows: Sequence[int],
    *,
    counts: Counts | None = None,
    vocabulary: Vocabulary | None = None,
    hot_list: HotList | None = None,
    n_owners: int = 10,
    progress: ProgressHook | None = None,
) -> RowsReport:
    """What some rows of a layer are, and who hits them.

    Parameters
    ----------
    rows
        Ids, global within the layer.
    counts
        Of a corpus, over the table's vocabulary: says which n-grams own the rows.
    vocabulary
        For the n-grams' forms; the table's own by default, their canonical ids without one.
    n_owners
        The most frequent n-grams to name.

    Raises
    ------
    InvalidInput
        A layer or a row that the table does not have.
    SpecMismatch
        Counts, vocabulary or hot list that are not the table's.

    Notes
    -----
    Cost: the records of the rows, and with counts one pass over the counted n-grams of the orders that own them.
    """
    wanted = [_checked(table, layer_id, row) for row in rows]
    vocabulary = table.vocabulary if vocabulary is None else vocabulary
    if vocabulary is not None:
        table.spec.check_vocabulary(vocabulary)
    hot = hot_rows_of(table, hot_list)
    search = None
    if counts is not None:
        if vocabulary is not None:
            counts.check_vocabulary(vocabulary.map_sha256)
        check_ids(table.spec, counts)
        search = find_owners(table.spec, counts, set(wanted), progress=progress)
    bundles = BundleIndex(table)
    reader = next_token_reader_of(table)
    reports, bytes_read = [], 0
    for row in wanted:
        heads = tuple(heads_of_row(table.spec, row))
        # Before the row is read: afterwards its pages are in memory.
        stretches = stretches_of(table.stored, layer_id, row.row)
        cost = cost_of(stretches) if stretches else None
        record = _record(table, row)
        values = None if record is None else table.decode(record)[0]
        bytes_read += 0 if record is None else table.row_bytes
        owned = None if search is None else search.rows[row]
        reports.append(
            RowReport(
                layer_id=layer_id,
                row=row.row,
                heads=heads,
                parts=part_views(table.stored, layer_id, row.row),
                cost=cost,
                values=None if record is None or values is None else _values(table, record, values),
                n_lookups=None if owned is None else owned.n_lookups,
                n_owners=None if owned is None else len(owned.owners),
                owners=() if owned is None else _owner_views(table, row, owned, bundles, vocabulary, n_owners),
                tokens_per_value=tokens_per_value(reader, heads[0].order) if reader and len(heads) == 1 else None,
                next_tokens=_next_tokens(reader, counts, vocabulary, row, heads, values, owned, n_owners),
                hot=None if hot is None else hot.find(layer_id, row.row),
            )
        )
    return RowsReport(
        rows=tuple(reports),
        bytes_read=bytes_read,
        n_ngrams_searched=0 if search is None else search.n_ngrams,
        counts_bytes=0 if search is None else search.counts_bytes,
        missing_orders=() if search is None else search.missing_orders,
        has_bundles=bundles.is_there,
        has_hot_list=hot is not None,
    )


def _checked(table: Table, layer_id: int, row: int) -> Row:
    n_rows = table.spec.layer(layer_id).n_rows
    if not 0 <= row < n_rows:
        raise InvalidInput(f"row {row}: layer {layer_id} of {table.path} has rows 0 to {n_rows - 1:,}")
    return Row(layer_id, row)


def _record(table: Table, row: Row) -> npt.NDArray[np.uint8] | None:
    """uint8 (1, row_bytes); None where the row is not here or nothing decodes it."""
    if not is_here(table.stored, *row) or not table.stored.codec.can_decode:
        return None
    return table.fetch_rows(row.layer_id, np.array([row.row], np.int64))


def _next_tokens(
    reader: NextTokenReader | None,
    counts: Counts | None,
    vocabulary: Vocabulary | None,
    row: Row,
    heads: Sequence[RowHead],
    values: npt.NDArray[np.float32] | None,
    owned: Owned | None,
    n_owners: int,
) -> tuple[RowToken, ...]:
    if reader is None or counts is None or not counts.next or vocabulary is None or values is None:
        return ()
    if owned is None or len(heads) != 1:
        return ()
    return tokens_of_row(
        reader, counts, vocabulary, layer_id=row.layer_id, order=heads[0].order, head=heads[0].head, values=values,
        ngrams=[owner.ids for owner in owned.owners[:n_owners]],
    )  # fmt: skip


def _values(table: Table, record: npt.NDArray[np.uint8], values: npt.NDArray[np.float32]) -> ValuesView:
    with np.errstate(invalid="ignore"):
        norm, largest = float(np.linalg.norm(values.astype(np.float64))), float(np.abs(values).max())
    scales = scales_of(table.stored.codec, record)
    return ValuesView(
        width=len(values),
        norm=norm,
        largest=largest,
        n_zero=int((values == 0).sum()),
        n_not_finite=int((~np.isfinite(values)).sum()),
        first=tuple(values[:N_VALUES].tolist()),
        scales=() if scales is None else tuple(scales[0].tolist()),
    )


def _owner_views(
    table: Table, row: Row, owned: Owned, bundles: BundleIndex, vocabulary: Vocabulary | None, n_owners: int
) -> tuple[OwnerView, ...]:
    return tuple(
        OwnerView(
            order=owner.order,
            head=owner.head,
            canonical_ids=owner.ids,
            forms=spell(vocabulary, owner.ids),
            occurrences=owner.occurrences,
            share=owner.occurrences / owned.n_lookups,
            in_bundle=in_bundle(bundles, row.layer_id, owner, table.spec.key_dtype),
        )
        for owner in owned.owners[:n_owners]
    )


def in_bundle(bundles: BundleIndex, layer_id: int, owner: Owner, key_dtype: npt.DTypeLike) -> bool | None:
    """Whether a bundle holds an n-gram; None where there are none."""
    if not bundles.is_there:
        return None
    n_words = np.dtype(key_dtype).itemsize // 8
    words = np.array([owner.key >> (64 * word) & (2**64 - 1) for word in range(n_words)], np.uint64)
    return bool(bundles.find(layer_id, owner.order, words.view(key_dtype))[0] >= 0)
