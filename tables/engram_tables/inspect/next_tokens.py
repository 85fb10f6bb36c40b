"""What the rows of a next-token table say comes next, beside what was counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.ngram_counts import NO_NEXT
from engram_tables.storage.next_token.reading import NextTokenReader, reader_of
from engram_tables.storage.next_token.recipe import NEXT_TOKEN, n_cells
from engram_tables.storage.next_token.vectors import places_of_head
from engram_tables.storage.table.reader import StoredTable

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.counts.counts_store import Counts
    from engram_tables.fetch.table import Table

_Figures = tuple[float | None, float | None, bool | None]
_N_JUDGED = 64
_NOT_SAID: _Figures = (None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """A raw token that may come next.

    Attributes
    ----------
    token_id
        None for the end of the document, which rows do not say and counts do.
    estimate
        How often the rows say it follows; 0 where they do not give it, None for the end of the document.
    agreement
        Share of the token's cells, over the rows of all heads, that speak for it; None where the token is not among
        the likeliest 64 of the rows.
    is_convincing
        Whether rows that do not hold the token would hardly say so by chance; None like `agreement`.
    counted
        How often it followed in the corpus; None without such counts.
    """

    token_id: int | None
    text: str
    estimate: float | None
    agreement: float | None
    is_convincing: bool | None
    counted: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NextView:
    """What one layer's rows of an n-gram say.

    Attributes
    ----------
    tokens
        The likeliest that the rows say, best first; then the likeliest counted ones that are not among them.
    n_counted, n_distinct
        Occurrences of the n-gram that something followed, and distinct tokens that did; None without such counts, and
        for an n-gram that begins before its text.
    """

    layer_id: int
    tokens: tuple[NextToken, ...]
    n_counted: int | None
    n_distinct: int | None


def next_token_reader_of(table: Table) -> NextTokenReader | None:
    """What reads the rows; None for a table of other rows."""
    stored = table.stored
    if not isinstance(stored, StoredTable) or stored.manifest.init is None:
        return None
    return reader_of(stored) if stored.manifest.init["kind"] == NEXT_TOKEN else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowToken:
    """A raw token that was counted after n-grams of one row.

    Attributes
    ----------
    counted
        Its occurrences after them.
    value
        What the row holds at the token's places, sign put right: their mean where there are several.
    """

    token_id: int
    text: str
    counted: int
    value: float


def tokens_per_value(reader: NextTokenReader, order: int) -> float:
    """Tokens that each value of a row counts, on average: one row alone cannot tell them apart."""
    return reader.recipe.next_size * n_cells(reader.heads(order)) / reader.width


def tokens_of_row(
    reader: NextTokenReader,
    counts: Counts,
    vocabulary: Vocabulary,
    *,
    layer_id: int,
    order: int,
    head: int,
    values: npt.NDArray[np.float32],
    ngrams: Sequence[tuple[int, ...]],
    k: int = 5,
) -> tuple[RowToken, ...]:
    """The tokens that followed a row's n-grams most often, beside what the row, float32 (width,), holds for them."""
    total: Counter[int] = Counter()
    for ids in ngrams:
        tokens, followed = counts.following(ids)
        total.update(dict(zip(tokens.tolist(), followed.tolist(), strict=True)))
    del total[NO_NEXT]
    places = places_of_head(
        reader.recipe.seed, layer_id, order, head, next_size=reader.recipe.next_size, width=reader.width,
        cells=n_cells(reader.heads(order)),
    )  # fmt: skip
    signed = values[places >> 1] * (1 - 2 * (places & 1))
    return tuple(
        RowToken(token_id=token, text=vocabulary.text(token), counted=times, value=float(signed[token].mean()))
        for token, times in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:k]
    )


class NextTokens:
    """Reads what rows say of next tokens; says nothing of tables that hold something else.

    Parameters
    ----------
    counts
        Counts made with `--next raw` say what followed in the corpus; of others nothing is asked.
    k
        Likeliest tokens of an n-gram, of those that rows say and of those that were counted.
    """

    def __init__(self, table: Table, counts: Counts | None, vocabulary: Vocabulary, k: int) -> None:
        self._reader = next_token_reader_of(table)
        self._counts = counts if counts is not None and counts.next is not None else None
        self._vocabulary, self._k = vocabulary, k

    def of(
        self, layer_id: int, order: int, ids: tuple[int, ...] | None, rows: npt.NDArray[np.float32] | None
    ) -> NextView | None:
        """What an n-gram's rows say; None for other tables, where rows are not here, and where no token is asked for.

        Parameters
        ----------
        ids
            Canonical, as counted; None for an n-gram that begins before its text.
        rows
            float32 (heads, width).
        """
        if self._reader is None or rows is None or not self._k:
            return None
        found = self._reader.top(rows[None], order=order, layer=layer_id, k=max(self._k, _N_JUDGED))
        columns = (found.ids, found.estimates, found.agreement, found.convincing)
        judged: dict[int, _Figures] = {
            token_id: (estimate, agreement, is_convincing)
            for token_id, estimate, agreement, is_convincing in zip(*(of[0].tolist() for of in columns), strict=True)
        }
        judged.pop(-1, None)
        shown = list(judged)[: self._k]
        counted = None if ids is None else self._following(order, ids)
        if counted is not None:
            ranked = sorted(counted, key=lambda token_id: (-counted[token_id], token_id))
            shown += [token_id for token_id in ranked[: self._k] if token_id not in shown]
            unjudged = [token_id for token_id in shown if token_id not in judged and token_id != NO_NEXT]
            if unjudged:
                scores = self._reader.scores(rows[None], order=order, layer=layer_id)[0]
                judged |= {token_id: (max(float(scores[token_id]), 0.0), None, None) for token_id in unjudged}
        return NextView(
            layer_id=layer_id,
            tokens=tuple(self._token(token_id, judged.get(token_id, _NOT_SAID), counted) for token_id in shown),
            n_counted=None if counted is None else sum(counted.values()),
            n_distinct=None if counted is None else len(counted),
        )

    def _following(self, order: int, ids: tuple[int, ...]) -> dict[int, int] | None:
        if self._counts is None or order not in self._counts.orders:
            return None
        tokens, counts = self._counts.following(ids)
        return dict(zip(tokens.tolist(), counts.tolist(), strict=True))

    def _token(self, token_id: int, figures: _Figures, counted: dict[int, int] | None) -> NextToken:
        is_end = token_id == NO_NEXT
        estimate, agreement, is_convincing = figures
        return NextToken(
            token_id=None if is_end else token_id,
            text="" if is_end else self._vocabulary.text(token_id),
            estimate=estimate,
            agreement=agreement,
            is_convincing=is_convincing,
            counted=None if counted is None else counted.get(token_id, 0),
        )
