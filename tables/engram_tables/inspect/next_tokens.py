"""What the rows of a next-token table say comes next, beside what was counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.ngram_counts import NO_NEXT
from engram_tables.storage.next_token.reading import NextTokenReader, reader_of
from engram_tables.storage.next_token.recipe import NEXT_TOKEN
from engram_tables.storage.table.reader import StoredTable

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.counts.counts_store import Counts
    from engram_tables.fetch.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """A raw token that may come next.

    Attributes
    ----------
    token_id
        None for the end of the document, which rows do not say and counts do.
    estimate
        How often the rows say it follows; None where it is not among the likeliest that they say.
    agreement
        Share of the token's cells, over the rows of all heads, that speak for it; None like `estimate`.
    is_convincing
        Whether rows that do not hold the token would hardly say so by chance; None like `estimate`.
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
        Occurrences of the n-gram that something followed, and distinct tokens that did; None without such counts.
    """

    layer_id: int
    tokens: tuple[NextToken, ...]
    n_counted: int | None
    n_distinct: int | None


def _reader_of(table: Table) -> NextTokenReader | None:
    """What reads the rows; None for a table of other rows."""
    stored = table.stored
    if not isinstance(stored, StoredTable) or stored.manifest.init is None:
        return None
    return reader_of(stored) if stored.manifest.init["kind"] == NEXT_TOKEN else None


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
        self._reader = _reader_of(table)
        self._counts = counts if counts is not None and counts.next is not None else None
        self._vocabulary, self._k = vocabulary, k

    def of(
        self, layer_id: int, order: int, ids: tuple[int, ...], rows: npt.NDArray[np.float32] | None
    ) -> NextView | None:
        """What an n-gram's rows say, float32 (heads, width); None for other tables, or where rows are not here."""
        if self._reader is None or rows is None:
            return None
        found = self._reader.top(rows[None], order=order, layer=layer_id, k=self._k)
        said = found.ids[0][found.ids[0] >= 0].tolist()
        figures = zip(
            found.estimates[0].tolist(), found.agreement[0].tolist(), found.convincing[0].tolist(), strict=True
        )
        counted = self._following(order, ids)
        tokens = [self._token(token_id, figure, counted) for token_id, figure in zip(said, figures, strict=False)]
        if counted is not None:
            ranked = sorted(counted, key=lambda token_id: (-counted[token_id], token_id))
            missed = [token_id for token_id in ranked[: self._k] if token_id not in said]
            tokens += [self._token(token_id, (None, None, None), counted) for token_id in missed]
        return NextView(
            layer_id=layer_id,
            tokens=tuple(tokens),
            n_counted=None if counted is None else sum(counted.values()),
            n_distinct=None if counted is None else len(counted),
        )

    def _following(self, order: int, ids: tuple[int, ...]) -> dict[int, int] | None:
        if self._counts is None or order not in self._counts.orders:
            return None
        tokens, counts = self._counts.following(ids)
        return dict(zip(tokens.tolist(), counts.tolist(), strict=True))

    def _token(
        self,
        token_id: int,
        figures: tuple[float | None, float | None, bool | None],
        counted: dict[int, int] | None,
    ) -> NextToken:
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
