"""Next tokens read back out of a table's rows: estimated counts, how sure they are, and predictions by back-off.

Owns the reading. Knows no fetch: rows come decoded, and the table serves its manifest alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import InvalidInput
from engram_tables.storage.next_token.recipe import NEXT_TOKEN, NextTokenRecipe, n_misses
from engram_tables.storage.next_token.vectors import places_of_order
from engram_tables.threads import resolve_threads, run_slices

if TYPE_CHECKING:
    from engram_tables.storage.table.manifest import Manifest

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
_GRAIN_NGRAMS = 64


class HasManifest(Protocol):
    """A table, open or not."""

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopTokens:
    """The likeliest next tokens of some n-grams, best first; -1 and zeros where there is no further one.

    Attributes
    ----------
    ids
        int64 (n, k): raw tokens.
    estimates
        float32 (n, k): estimated counts, above 0.
    agreement
        float32 (n, k), in [0, 1]: share of the token's cells, one in each head's row where an order has 8 heads or
        more, whose sign speaks for it.
    evidence
        float32 (n, k): nats against chance: minus the logarithm of the odds that the rows give some token such an
        estimate although they do not hold it.
    least_evidence
        ln(tokens): with less evidence, one token or more of the vocabulary is expected to do as well by chance.
    """

    ids: I64
    estimates: F32
    agreement: F32
    evidence: F32
    least_evidence: float

    @property
    def convincing(self) -> npt.NDArray[np.bool_]:
        """bool (n, k): the tokens with evidence enough."""
        enough: npt.NDArray[np.bool_] = np.logical_and(self.ids >= 0, self.evidence >= self.least_evidence)
        return enough

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """bool (n,): whether the rows hold a token for the n-gram.

        Of one that was not counted the rows are other n-grams': they hold what follows all of these, so that with
        many n-grams a row, or one head alone, this may be True without the n-gram having been seen.
        """
        known: npt.NDArray[np.bool_] = np.any(self.convincing, axis=1)
        return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Next tokens of some positions, best first.

    Attributes
    ----------
    ids
        int64 (n, k): raw tokens, -1 where there is none.
    orders
        int64 (n, k): the order whose rows gave each; 0 where there is none.
    convincing
        bool (n, k): whether those rows had evidence enough for it, or it is a guess.
    """

    ids: I64
    orders: I64
    convincing: npt.NDArray[np.bool_]


class _Map(NamedTuple):
    """Places of all tokens in one order's rows, and the tokens of each place."""

    places: npt.NDArray[np.int32]
    listed: npt.NDArray[np.int32]
    list_starts: I64


def reader_of(table: HasManifest) -> NextTokenReader:
    """What reads next tokens out of the rows of `table`.

    Raises
    ------
    InvalidInput
        Its rows are of another origin.
    """
    manifest = table.manifest
    where = str(getattr(table, "path", "this table"))
    kind = None if manifest.init is None else manifest.init["kind"]
    if manifest.init is None or kind != NEXT_TOKEN:
        found = f"init {kind}" if kind else "rows taken from a source"
        raise InvalidInput(
            f"{where}: found {found}, expected a next-token table; build one with `engram build-table --from-counts "
            "COUNTS --init next-token`"
        )
    return NextTokenReader(
        spec=manifest.spec,
        width=manifest.row_width,
        recipe=NextTokenRecipe.from_record(manifest.init, where=where),
    )


class NextTokenReader:
    """Reads next tokens out of rows of one table; safe to use from several threads.

    Attributes
    ----------
    spec, width
        The table's addressing, and values of a row.
    recipe
        What its manifest says of the rows.
    """

    def __init__(self, *, spec: AddressSpec, width: int, recipe: NextTokenRecipe) -> None:
        self.spec = spec
        self.width = width
        self.recipe = recipe
        # A map of 129,280 tokens and 8 checks is 8 MB; all of a model's are a few.
        self._map_of = lru_cache(maxsize=8)(self._make_map)
        # Maps of fewer heads are parts of those, copied so that a token's checks lie side by side.
        self._first_heads = lru_cache(maxsize=32)(self._make_first_heads)

    @property
    def orders(self) -> tuple[int, ...]:
        """Orders whose rows can be read."""
        return self.spec.orders

    def heads(self, order: int) -> int:
        """Rows of one n-gram of the order in each layer."""
        if order not in self.spec.orders:
            raise InvalidInput(f"order {order}: expected one of {', '.join(map(str, self.spec.orders))}")
        return self.spec.heads[self.spec.orders.index(order)]

    def scores(self, rows: npt.ArrayLike, *, order: int, layer: int) -> F32:
        """float32 (n, tokens): the estimated count of every raw token after each n-gram.

        Parameters
        ----------
        rows
            float32 (n, heads, width), decoded: the first heads of the order, all of them or fewer.
        layer
            Layer id that they lie in.

        Notes
        -----
        A token's estimate is the (m + 1)-th smallest of its checks, sign put right, with m an eighth of them: 0 or
        less where the rows do not hold it. Takes some 10 ms an n-gram; `top` is made for many.
        """
        values = self._checked(rows, order)
        places = self._first_heads(order, layer, values.shape[1]).places
        n_checks = places.shape[1]
        heads = np.arange(n_checks) // (n_checks // values.shape[1])
        cells, signs = places >> 1, np.float32(1) - 2 * (places & 1).astype(np.float32)
        found = np.empty((len(values), len(places)), np.float32)
        for at, row in enumerate(values):
            found[at] = np.partition(row[heads, cells] * signs, n_misses(n_checks), axis=1)[:, n_misses(n_checks)]
        return found

    def top(self, rows: npt.ArrayLike, *, order: int, layer: int, k: int = 10, threads: int | None = 1) -> TopTokens:
        """The `k` likeliest next tokens of each n-gram, read from its rows alone.

        Parameters
        ----------
        rows
            float32 (n, heads, width), decoded: the first heads of the order, all of them or fewer. Rows of zeros, for
            a position without such an n-gram, give nothing.
        layer
            Layer id that they lie in.
        """
        from engram_tables.storage.next_token import kernels

        values = self._checked(rows, order)
        tokens = self._first_heads(order, layer, values.shape[1])
        shape = (len(values), k)
        ids, numbers = np.empty(shape, np.int64), [np.empty(shape, np.float32) for _ in range(3)]

        def find(start: int, stop: int) -> None:
            misses = n_misses(tokens.places.shape[1])
            kernels.find_top(
                values, tokens.places, tokens.listed, tokens.list_starts, misses, start, stop, ids, *numbers
            )

        if k > 0:
            run_slices(find, len(values), threads=resolve_threads(threads), grain=_GRAIN_NGRAMS)
        estimates, agreement, evidence = numbers
        return TopTokens(
            ids=ids,
            estimates=estimates,
            agreement=agreement,
            evidence=evidence,
            least_evidence=self.recipe.least_evidence,
        )

    def predict(
        self, rows_of_orders: Mapping[int, npt.ArrayLike], *, layer: int, k: int = 5, threads: int | None = 1
    ) -> Prediction:
        """The `k` likeliest next tokens of positions, backing off from longer n-grams to shorter ones.

        Parameters
        ----------
        rows_of_orders
            For each order, float32 (n, heads, width): the rows of the n-gram that ends at each position, zeros where
            there is none.

        Notes
        -----
        First come the tokens that the longest order has evidence for, by their estimates, then those of the next
        shorter one, and so on; then what the orders hold without evidence enough, from the shortest order on.
        """
        tops = {
            order: self.top(rows, order=order, layer=layer, k=k, threads=threads)
            for order, rows in rows_of_orders.items()
        }
        return back_off(tops, k)

    def _checked(self, rows: npt.ArrayLike, order: int) -> F32:
        values: F32 = np.ascontiguousarray(rows, dtype=np.float32)
        heads = self.heads(order)
        if values.ndim != 3 or not 1 <= values.shape[1] <= heads or values.shape[2] != self.width:
            raise InvalidInput(
                f"rows of order {order}: found shape {values.shape}, expected (n, 1 to {heads}, {self.width}): "
                "n-grams, heads, decoded values"
            )
        return values

    def _make_first_heads(self, order: int, layer: int, n_heads: int) -> _Map:
        whole = self._map_of(order, layer)
        n_checks = whole.places.shape[1] // self.heads(order) * n_heads
        return _Map(
            np.ascontiguousarray(whole.places[:, :n_checks]), whole.listed[:n_checks], whole.list_starts[:n_checks]
        )

    def _make_map(self, order: int, layer: int) -> _Map:
        self.spec.layer(layer)
        places = places_of_order(
            self.recipe.seed,
            layer,
            order,
            n_heads=self.heads(order),
            next_size=self.recipe.next_size,
            width=self.width,
        )
        by_place: Any = np.argsort(places.T, axis=1, kind="stable")
        bounds = np.arange(2 * self.width + 1)
        starts = [np.searchsorted(column[order_], bounds) for column, order_ in zip(places.T, by_place, strict=True)]
        return _Map(places, by_place.astype(np.int32), np.array(starts, np.int64))


def back_off(tops: Mapping[int, TopTokens], k: int) -> Prediction:
    """What `NextTokenReader.predict` gives, from the tokens that each order's rows were found to hold."""
    longest_first = sorted(tops, reverse=True)
    n = len(next(iter(tops.values())).ids) if tops else 0
    ids, orders = np.full((n, k), -1, np.int64), np.zeros((n, k), np.int64)
    convincing, filled = np.zeros((n, k), np.bool_), np.zeros(n, np.int64)
    turns = [(order, True) for order in longest_first] + [(order, False) for order in reversed(longest_first)]
    for order, is_convincing in turns:
        top = tops[order]
        offered = (top.ids >= 0) & (top.convincing == is_convincing)
        for rank in range(k):
            token = top.ids[:, rank]
            is_new = offered[:, rank] & (filled < k) & ~(ids == token[:, None]).any(axis=1)
            at = np.flatnonzero(is_new)
            ids[at, filled[at]], orders[at, filled[at]] = token[at], order
            convincing[at, filled[at]] = is_convincing
            filled[at] += 1
    return Prediction(ids=ids, orders=orders, convincing=convincing)
