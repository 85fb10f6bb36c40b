"""Heads of a next-token table held against the counts it was made of: does each hold the rows of its n-grams?

A row does not know its own number, but counts know what each n-gram's row must say. Judges one head at a time, by
n-grams whose counts stand out, and finds where the rows of a wrong head lie. Knows no figures of `stats_tally`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import chain
from math import sqrt
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.hashing import hash_ngrams
from engram_tables.corpus.counts.ngram_counts import NO_NEXT
from engram_tables.errors import SpecMismatch
from engram_tables.inspect.stats_against import MOST_MOVED
from engram_tables.inspect.stats_findings import Finding, Place, Severity, name_places
from engram_tables.inspect.stats_sample import scattered
from engram_tables.measure.evaluate.guessing import next_token_reader
from engram_tables.storage.next_token.reading import NextTokenReader
from engram_tables.storage.next_token.recipe import n_cells
from engram_tables.storage.next_token.vectors import places_of_head
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from engram_tables.corpus.counts.counts_store import Counts
    from engram_tables.fetch.table import Table

N_NGRAMS = 2048
"""N-grams of each order that are looked up."""
_POOL_PAIRS = 8 * N_NGRAMS
_TRIED_NGRAMS = 512
_LEAST_NGRAMS = 16
_FIRST_STREAM = 1 << 32
_N_SIGMA = 4.0
_MOST_AT_RANDOM = 0.4
_LEAST_LACK = 0.05

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Verdict(StrEnum):
    """What counts say of a head."""

    HOLDS = "holds"
    SHIFTED = "shifted"
    """The rows of its n-grams lie `moved_by` ids further."""
    OTHER_HEAD = "other-head"
    """It is filled as the head `other_head` of its order should be."""
    UNLIKE = "unlike"
    """Its rows, or part of them, are not those of its n-grams, and nothing that was tried explains them."""
    CROWDED = "crowded"
    """Random rows say nearly as much: there are too many n-grams a row, or too few to look up, to tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedHead:
    """One head beside the counts.

    Attributes
    ----------
    n_ngrams
        N-grams that were looked up: of the sample, with their row of this head here.
    n_held
        Those whose row says at least half of what was counted of a next token.
    n_held_at_random
        As many random rows of the head were read as well: how many of them say so.
    moved_by, other_head
        Where the rows lie, where that was found.
    n_tried, n_explained
        N-grams that were looked up there, and those held there.
    first_rows
        Of n-grams that are not held.
    """

    layer_id: int
    order: int
    head: int
    n_ngrams: int
    n_held: int
    n_held_at_random: int
    verdict: Verdict
    moved_by: int | None = None
    other_head: int | None = None
    n_tried: int = 0
    n_explained: int = 0
    first_rows: tuple[int, ...] = ()

    @property
    def share(self) -> float:
        """Of the n-grams, those held."""
        return self.n_held / max(self.n_ngrams, 1)

    @property
    def share_at_random(self) -> float:
        """What a head of other rows would show."""
        return self.n_held_at_random / max(self.n_ngrams, 1)

    def sigma(self, share: float) -> float:
        """Standard deviation of such a share of the n-grams; never 0."""
        n = max(self.n_ngrams, 2)
        share = min(max(share, 1 / n), 1 - 1 / n)
        return sqrt(share * (1 - share) / n)


class Pairs(NamedTuple):
    """N-grams of one order, uint32 (n, order); a raw token that follows each, int64; how often, float64."""

    ngrams: NDArray[np.uint32]
    tokens: I64
    counts: NDArray[np.float64]

    def of(self, chosen: Any) -> Pairs:
        """Those that are chosen."""
        return Pairs(self.ngrams[chosen], self.tokens[chosen], self.counts[chosen])


def compare_with_counts(
    table: Table, counts: Counts, *, seed: int = 0, progress: ProgressHook | None = None
) -> tuple[CountedHead, ...]:
    """Every head of a next-token table that has rows here, beside the counts that the table was made of.

    Parameters
    ----------
    seed
        Draws `N_NGRAMS` of the most frequent n-grams of each order.
    progress
        Called with rows of the counts.

    Raises
    ------
    InvalidInput
        Rows of another origin than counts, or of none that the manifest knows.
    SpecMismatch
        Other counts than those that the table was made of.

    Notes
    -----
    A row of the right head says the count, and more or less what other n-grams of the row add; since the signs of
    tokens are random, that spoils as many estimates of a right head as it makes of random rows. So a head is right
    where the share of held n-grams is near 1 - q, and wrong where it is near q, with q the share at random rows.

    Cost: every order of the counts is read once; 2 * `N_NGRAMS` rows of each head, and of a head that fails some 23
    times 512 more.
    """
    reader = next_token_reader(table)
    found, expected = counts.manifest["manifest_sha256"], reader.recipe.counts_sha256
    if found != expected:
        raise SpecMismatch(
            f"{counts.path}: found other counts ({found}) than {table.path} was made of, expected {expected}; "
            "name those, or leave out --counts"
        )
    done, total = 0, sum(counts.n_rows(order) for order in table.spec.orders)
    heads: list[CountedHead] = []
    for order in table.spec.orders:
        base = done

        def advance(n_rows: int, base: int = base) -> None:
            if progress is not None:
                progress(base + n_rows, total)

        pairs = draw_pairs(counts, order, seed=seed, advance=advance)
        done += counts.n_rows(order)
        for layer_id in table.stored.layer_ids:
            heads += _OrderLook(table, reader, layer_id, order, pairs, seed=seed).heads()
    return tuple(sorted(_in_part(heads), key=lambda head: (head.layer_id, head.order, head.head)))


def draw_pairs(counts: Counts, order: int, *, seed: int, advance: Any = lambda _rows: None) -> Pairs:
    """Up to `N_NGRAMS` of an order's most frequent n-grams, each with the raw token that follows it most often."""
    pool = Pairs(np.empty((0, order), np.uint32), np.empty(0, np.int64), np.empty(0, np.float64))
    n_rows, least = 0, 0.0
    for batch in counts.batches(order):
        n_rows += len(batch.counts)
        advance(n_rows)
        assert batch.next_tokens is not None
        chosen = np.flatnonzero((batch.next_tokens != NO_NEXT) & (batch.counts > least))
        new = Pairs(batch.ngrams[chosen], batch.next_tokens[chosen], batch.counts[chosen].astype(np.float64))
        pool = Pairs(
            np.concatenate((pool.ngrams, new.ngrams)),
            np.concatenate((pool.tokens, new.tokens)),
            np.concatenate((pool.counts, new.counts)),
        )
        # The largest first; of equal ones the n-gram that sorts first.
        pool = pool.of(np.argsort(-pool.counts, kind="stable")[:_POOL_PAIRS])
        least = pool.counts[-1] if len(pool.counts) == _POOL_PAIRS else 0.0
    if len(pool.tokens):
        pool = pool.of(np.sort(np.unique(pool.ngrams, axis=0, return_index=True)[1]))
    if len(pool.tokens) > N_NGRAMS:
        drawn = np.random.default_rng((seed % 2**64, order)).choice(len(pool.tokens), N_NGRAMS, replace=False)
        pool = pool.of(np.sort(drawn))
    return pool


class _OrderLook:
    """The heads of one order in one layer, and n-grams whose rows they should hold."""

    def __init__(
        self, table: Table, reader: NextTokenReader, layer_id: int, order: int, pairs: Pairs, *, seed: int
    ) -> None:
        spec = table.spec
        layer = spec.layer(layer_id)
        columns = [k for k, (of, _) in enumerate(spec.columns) if of == order]
        moduli = list(chain.from_iterable(layer.moduli))
        self._table, self._reader, self._seed = table, reader, seed
        self._layer_id, self._order, self._pairs, self._columns = layer_id, order, pairs, columns
        self._starts = [layer.offsets[k] for k in columns]
        self._sizes = [moduli[k] for k in columns]
        # By head, n-grams' rows counted from the head's first one.
        self._local = hash_ngrams(spec, layer_id, order, pairs.ngrams)[1].T - np.array(self._starts)[:, None]
        self._ranges = np.array(table.stored.owned(layer_id), np.int64).reshape(-1, 2)
        self._places = lru_cache(maxsize=None)(self._places_of)

    def heads(self) -> Iterator[CountedHead]:
        """What is found of each head."""
        for head in range(len(self._columns)):
            found = self._judged(head)
            if found is None:
                continue
            yield self._explained(found) if found.verdict is Verdict.UNLIKE else found

    def _judged(self, head: int) -> CountedHead | None:
        """None where no row of the head is here."""
        held, is_here = self._held(head, self._local[head], head)
        stream = _FIRST_STREAM + self._columns[head]
        at_random, also_here = self._held(
            head, scattered(self._seed, stream, len(held), self._sizes[head]), head, only=is_here
        )
        usable = is_here & also_here
        if not is_here.any():
            return None
        failed = (self._local[head] + self._starts[head])[usable & ~held]
        found = CountedHead(
            layer_id=self._layer_id,
            order=self._order,
            head=head,
            n_ngrams=int(usable.sum()),
            n_held=int(held[usable].sum()),
            n_held_at_random=int(at_random[usable].sum()),
            verdict=Verdict.HOLDS,
            first_rows=tuple(failed[:8].tolist()),
        )
        at_random_share = found.share_at_random
        room = 0.5 - at_random_share - _N_SIGMA * found.sigma(at_random_share)
        if usable.sum() < _LEAST_NGRAMS or room < 0 or at_random_share > _MOST_AT_RANDOM:
            return replace(found, verdict=Verdict.CROWDED)
        return found if found.share >= 0.5 else replace(found, verdict=Verdict.UNLIKE)

    def _explained(self, found: CountedHead) -> CountedHead:
        """The head with where its rows lie, if they lie anywhere near or where another head's should."""
        tries = list(self._tries(found.head))
        best = max(tries, key=lambda tried: tried.share, default=None)
        if best is None or best.share < max(0.5, found.share + 2 * _LEAST_LACK):
            return found
        return replace(
            found,
            verdict=Verdict.SHIFTED if best.moved_by else Verdict.OTHER_HEAD,
            moved_by=best.moved_by,
            other_head=best.other_head,
            n_tried=best.n_tried,
            n_explained=best.n_held,
        )

    def _tries(self, head: int) -> Iterator[_Tried]:
        some = np.zeros(len(self._pairs.tokens), np.bool_)
        some[:: max(1, len(some) // _TRIED_NGRAMS)] = True
        for move in sorted(range(-MOST_MOVED, MOST_MOVED + 1), key=lambda by: (abs(by), -by))[1:]:
            moved = (self._local[head] + move) % self._sizes[head]
            yield from self._tried(head, moved, head, some, moved_by=move)
        for other in range(len(self._columns)):
            if other == head:
                continue
            # Filled with the other head's rows; filled by its numbers alone; or with tokens where that head has them.
            for local, places in ((other, other), (other, head), (head, other)):
                yield from self._tried(head, self._local[local], places, some, other_head=other)

    def _tried(self, head: int, local: I64, places: int, some: Mask, **where: int) -> Iterator[_Tried]:
        held, is_here = self._held(head, local, places, only=some)
        if is_here.sum() >= _LEAST_NGRAMS:
            yield _Tried(n_held=int(held.sum()), n_tried=int(is_here.sum()), **where)

    def _held(self, head: int, local: I64, places: int, *, only: Mask | None = None) -> tuple[Mask, Mask]:
        """Of each n-gram, bool (n,) twice: whether that row of `head` says half of the count, and whether it is here.

        Parameters
        ----------
        local
            int64 (n,): rows, counted from the head's first one; those past its end are not here.
        places
            The head whose places of tokens are read.
        """
        rows = local + self._starts[head]
        is_here = (local < self._sizes[head]) & self._is_owned(rows)
        if only is not None:
            is_here &= only
        held = np.zeros(len(rows), np.bool_)
        if is_here.any():
            values = self._table.decode(self._table.fetch_rows(self._layer_id, rows[is_here]))
            estimates = _estimates(values, self._places(places)[is_here])
            held[is_here] = estimates >= self._pairs.counts[is_here] / 2
        return held, is_here

    def _is_owned(self, rows: I64) -> Mask:
        if not len(self._ranges):
            return np.zeros(len(rows), np.bool_)
        nth = np.searchsorted(self._ranges[:, 0], rows, side="right") - 1
        owned: Mask = (nth >= 0) & (rows < self._ranges[nth, 1])
        return owned

    def _places_of(self, head: int) -> NDArray[np.int32]:
        """int32 (n-grams, cells): where the head's rows hold the token that follows each."""
        every = places_of_head(
            self._reader.recipe.seed,
            self._layer_id,
            self._order,
            head,
            next_size=self._reader.recipe.next_size,
            width=self._reader.width,
            cells=n_cells(len(self._columns)),
        )
        found: NDArray[np.int32] = every[self._pairs.tokens]
        return found


class _Tried(NamedTuple):
    """One place where a head's rows might lie."""

    n_held: int
    n_tried: int
    moved_by: int | None = None
    other_head: int | None = None

    @property
    def share(self) -> float:
        return self.n_held / self.n_tried


def _estimates(values: F32, places: NDArray[np.int32]) -> F32:
    """float32 (n,): the median of a token's cells in one row, signs put right; NaN counts as large."""
    signs = np.float32(1) - 2 * (places & 1).astype(np.float32)
    cells = np.sort(np.take_along_axis(values, (places >> 1).astype(np.int64), axis=1) * signs, axis=1)
    n = cells.shape[1]
    with np.errstate(invalid="ignore"):
        middle: F32 = (cells[:, (n - 1) // 2] + cells[:, n // 2]) / 2
    return middle


def _in_part(heads: Sequence[CountedHead]) -> Iterator[CountedHead]:
    """The heads, those that hold fewer n-grams than all others of their order let expect as unlike."""
    shares: dict[int, list[float]] = {}
    for head in heads:
        if head.verdict is Verdict.HOLDS:
            shares.setdefault(head.order, []).append(head.share)
    for head in heads:
        if head.verdict is not Verdict.HOLDS or len(shares[head.order]) < 2:
            yield head
            continue
        expected = min(median(shares[head.order]), 1 - head.share_at_random)
        lack = expected - head.share
        # Frequent tokens on one cell spoil many estimates of a head together, the more so the fuller its rows are.
        usual = _LEAST_LACK + head.share_at_random / 2
        is_less = lack > usual + _N_SIGMA * (head.sigma(expected) + head.sigma(head.share))
        yield replace(head, verdict=Verdict.UNLIKE) if is_less else head


def findings_beside_counts(heads: Sequence[CountedHead]) -> list[Finding]:
    """Heads that do not hold the rows of their n-grams; one finding for all that are moved alike."""
    shifted = [head for head in heads if head.verdict is Verdict.SHIFTED]
    found = [
        _shifted([head for head in shifted if head.moved_by == by], by)
        for by in sorted({head.moved_by for head in shifted if head.moved_by is not None})
    ]
    found += _other_heads({(head.layer_id, head.order, head.head): head for head in heads})
    unlike = [head for head in heads if head.verdict is Verdict.UNLIKE]
    whole, part = [head for head in unlike if head.share < 0.5], [head for head in unlike if head.share >= 0.5]
    return found + [_unlike(some) for some in (whole, part) if some]


_EXPECTED = "the row of an n-gram to hold it: to say at least half of what was counted of its most frequent next token"
_REMEDY = (
    "the rows were written, or are addressed, at other places than the spec's: build the table again, and check its "
    "spec with `engram golden check`"
)


def _shifted(heads: Sequence[CountedHead], by: int) -> Finding:
    places = [_place(head) for head in heads]
    far = "one id" if abs(by) == 1 else f"{abs(by)} ids"
    return Finding(
        check="shifted-head",
        severity=Severity.FAULT,
        where=name_places(places),
        found=f"shifted by {far.removesuffix(' id').removesuffix(' ids')}: the rows of {_its(heads)} n-grams lie "
        f"{far} {'further' if by > 0 else 'before'}: {_explained(heads)} are held there, {_held(heads)}",
        expected=_EXPECTED,
        remedy=_REMEDY,
        places=tuple(places),
    )


def _unlike(heads: Sequence[CountedHead]) -> Finding:
    """Heads of other rows throughout, or heads of which a part is."""
    places = [_place(head) for head in heads]
    part = "a part of " if heads[0].share >= 0.5 else ""
    more = "" if part else f"; neither rows up to {MOST_MOVED} ids away nor other heads' places explain more"
    return Finding(
        check="unlike-counts",
        severity=Severity.FAULT,
        where=name_places(places),
        found=f"{part}{_its(heads)} rows {'is' if part else 'are'} not those of {_its(heads)} n-grams: "
        f"{_held(heads, ' n-grams are held')}{more}",
        expected=_EXPECTED,
        remedy="the rows were damaged, or written by another addressing: build the table again from its counts",
        places=tuple(places),
    )


def _other_heads(heads: Mapping[tuple[int, int, int], CountedHead]) -> Iterator[Finding]:
    """Heads that are swapped, each pair once; then heads that are filled as another one."""
    wrong = [head for head in heads.values() if head.verdict is Verdict.OTHER_HEAD]
    for head in wrong:
        assert head.other_head is not None
        other = heads.get((head.layer_id, head.order, head.other_head))
        both = [head]
        check, words = "filled-as-other-head", f"filled as head {head.other_head}"
        if other is not None and other.other_head == head.head:
            if other.head < head.head:
                continue
            both, check = [head, other], "swapped-heads"
            words = f"heads {head.head} and {other.head} are swapped"
        places = tuple(_place(one) for one in both)
        yield Finding(
            check=check,
            severity=Severity.FAULT,
            where=" and ".join(name_places([place]) for place in places),
            found=f"{words}: {_explained(both)} are held there, {_held(both)}",
            expected=_EXPECTED,
            remedy=_REMEDY,
            places=places,
        )


def _place(head: CountedHead) -> Place:
    n_missed = head.n_ngrams - head.n_held
    return Place(head.layer_id, head.order, head.head, n_missed, head.n_ngrams, head.first_rows)


def _its(heads: Sequence[CountedHead]) -> str:
    return "its" if len(heads) == 1 else "their"


def _explained(heads: Sequence[CountedHead]) -> str:
    return f"{sum(head.n_explained for head in heads):,} of {sum(head.n_tried for head in heads):,} n-grams"


def _held(heads: Sequence[CountedHead], words: str = "") -> str:
    return (
        f"{sum(head.n_held for head in heads):,} of {sum(head.n_ngrams for head in heads):,}{words} at their own rows, "
        f"{sum(head.n_held_at_random for head in heads):,} at random ones"
    )
