"""Token runs that reach a spec's corners: what a golden set asks.

The runs depend on the spec alone: ordinary ids come from a stream of fixed seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from engram_tables.address import reference
from engram_tables.address.random_stream import Pcg64
from engram_tables.address.spec import AddressSpec
from engram_tables.units import EXACT_IN_DOUBLE

DEAD = -1

_SEED = 20260719
_MAX_RANGES = 3
_ROWS_PAST_INT32 = 2**31


class Draft(NamedTuple):
    """One chunk of a sequence: what it is for, its ids, and all that precedes it, oldest first; -1 where dead."""

    name: str
    about: str
    ids: Sequence[int]
    history: Sequence[int] = ()


def drafts(spec: AddressSpec) -> Iterator[Draft]:
    """Token runs by theme. The stream of ordinary ids is consumed in this order, so that the cases are fixed."""
    tokens = _Ordinary(spec)
    yield from _plain(spec, tokens)
    yield from _dead(spec, tokens)
    yield from _fills(spec, tokens)
    yield from _extremes(spec, tokens)
    yield from _boundaries(spec, tokens)
    yield from _replacements(spec, tokens)
    yield from _large_rows(spec, tokens)
    yield from _special_elsewhere(spec, tokens)


class _Ordinary:
    """Pseudo-random ids that have no part in the spec's rules, as long as the vocabulary has enough of them."""

    def __init__(self, spec: AddressSpec) -> None:
        self._stream, self._canonical_size = Pcg64(_SEED), spec.canonical_size
        history = spec.history
        self._special = {history.fill_id, history.replacement, 0, spec.canonical_size - 1, *history.boundary_ids}
        self._replaced = history.replaced

    def take(self, n_ids: int) -> list[int]:
        return [self._one() for _ in range(n_ids)]

    def _one(self) -> int:
        token = 0
        for _ in range(32):
            token = self._stream.next_word() % self._canonical_size
            is_replaced = any(start <= token < stop for start, stop in self._replaced)
            if token not in self._special and not is_replaced:
                break
        return token


def _plain(spec: AddressSpec, tokens: _Ordinary) -> Iterator[Draft]:
    yield Draft("start", "an ordinary sequence from its first token on", tokens.take(8))
    for n_ids in range(1, max(2, spec.max_order)):
        yield Draft(
            f"length-{n_ids}", f"a whole sequence of length {n_ids}, largest order {spec.max_order}", tokens.take(n_ids)
        )
    run = tokens.take(max(20, spec.max_order + 6))
    yield Draft("run", "a longer ordinary sequence", run)
    borders = (1, 3, 2 + max(2, spec.max_order), len(run) - 2)
    yield from _chunks("run", "the case `run` in chunks", run, borders)


def _chunks(name: str, about: str, ids: Sequence[int], borders: Sequence[int]) -> Iterator[Draft]:
    for start, stop in pairwise((0, *borders, len(ids))):
        yield Draft(f"{name}-{start}-{stop}", f"{about}: tokens {start} to {stop - 1}", ids[start:stop], ids[:start])


def _dead(spec: AddressSpec, tokens: _Ordinary) -> Iterator[Draft]:
    back = spec.max_order - 1
    span = [*tokens.take(4), DEAD, DEAD, *tokens.take(back + 2)]
    yield Draft("dead-middle", "two dead tokens in the middle: no window reaches past them", span)
    yield from _chunks("dead-middle", "the case `dead-middle`, cut within the dead span", span, (5,))
    yield Draft("dead-one", "one dead token, and the windows after it", [*tokens.take(3), DEAD, *tokens.take(back + 1)])
    yield Draft("dead-first", "the sequence begins with a dead token", [DEAD, *tokens.take(back + 1)])
    yield Draft("dead-all", "nothing but dead tokens", [DEAD] * 3)
    yield Draft("dead-all-after-history", "dead tokens behind live ones", [DEAD] * 3, tokens.take(back))
    yield Draft("dead-history", "a history of dead tokens alone", tokens.take(back + 1), [DEAD] * back)
    if back > 1:
        history = tokens.take(back)
        yield Draft("dead-history-last", "the last id of the history is dead", tokens.take(back + 1),
                    [*history[:-1], DEAD])  # fmt: skip
        yield Draft("dead-history-oldest", "the oldest id of the history is dead", tokens.take(back + 1),
                    [DEAD, *history[1:]])  # fmt: skip


def _fills(spec: AddressSpec, tokens: _Ordinary) -> Iterator[Draft]:
    fill, back = spec.fill_id, spec.max_order - 1
    yield Draft("fill-start", "the fill id as the first token", [fill, *tokens.take(back + 1)])
    yield Draft("fill-middle", "the fill id as an ordinary token", [*tokens.take(3), fill, *tokens.take(back + 1)])
    yield Draft("fill-repeated", "the fill id several times in a row", [*tokens.take(2), *[fill] * (back + 1),
                                                                        *tokens.take(2)])  # fmt: skip
    yield Draft("fill-history", "the fill id as the last of the history", tokens.take(back + 1),
                 [*tokens.take(back), fill])  # fmt: skip


def _extremes(spec: AddressSpec, tokens: _Ordinary) -> Iterator[Draft]:
    largest, n_ids = spec.canonical_size - 1, spec.max_order + 2
    high = [largest - token % min(spec.canonical_size, 64) for token in tokens.take(n_ids)]
    for name, about, ids in (
        ("zeros", "id 0, repeated", [0] * n_ids),
        ("largest", "the largest id, repeated", [largest] * n_ids),
        ("zero-and-largest", "id 0 and the largest id in turn", [0, largest] * (n_ids // 2 + 1)),
        ("high", "ids next to the largest", high),
    ):
        yield Draft(name, f"{about}; {_mixes_told(spec, ids)}", ids)


def _mixes_told(spec: AddressSpec, ids: Sequence[int]) -> str:
    mixes = [
        reference.mix(spec, layer, column, seen[spec.lag(order) : spec.lag(order) + order])
        for position in range(len(ids))
        for seen in [reference.window(ids, position, max_order=spec.max_order, history=spec.history)]
        for layer in spec.layers
        for column, (order, _) in enumerate(spec.columns)
    ]
    n_bits = max(mixes).bit_length()
    if max(mixes) > EXACT_IN_DOUBLE:
        return f"numbers before the modulus have up to {n_bits} bits, and a double holds 53"
    return f"numbers before the modulus have up to {n_bits} bits here, and a double holds them"


def _special_elsewhere(spec: AddressSpec, tokens: _Ordinary) -> Iterator[Draft]:
    """Ids that are special tokens of many models, and no more than ids where the spec does not say otherwise."""
    back = max(1, spec.max_order - 1)
    usual = (0, 1, 2, 3, spec.canonical_size - 1)
    ids = [token for special in usual if special < spec.canonical_size for token in (*tokens.take(back), special)]
    yield Draft("usual-specials", "ids 0 to 3 and the largest among ordinary ones", [*ids, *tokens.take(back)])


def _boundaries(spec: AddressSpec, tokens: _Ordinary) -> Iterator[Draft]:
    back = spec.max_order - 1
    for boundary in spec.history.boundary_ids:
        name, what = f"boundary-{boundary}", f"boundary id {boundary}"
        middle = [*tokens.take(3), boundary, *tokens.take(back + 1)]
        yield Draft(name, f"{what} in the middle", middle)
        yield from _chunks(name, f"the case `{name}`, cut behind the boundary", middle, (4,))
        yield Draft(f"{name}-start", f"{what} as the first token", [boundary, *tokens.take(back + 1)])
        twice = [*tokens.take(2), boundary, boundary, *tokens.take(back + 1)]
        yield Draft(f"{name}-twice", f"{what} twice in a row", twice)
        yield from _chunks(f"{name}-twice", f"the case `{name}-twice`, cut between the two", twice, (3,))
        yield Draft(f"{name}-history", f"{what} as the last of a full history", tokens.take(back + 1),
                    [*tokens.take(back), boundary])  # fmt: skip


def _replacements(spec: AddressSpec, tokens: _Ordinary) -> Iterator[Draft]:
    for start, stop in spec.history.replaced[:_MAX_RANGES]:
        edges = [edge for edge in (start - 1, start, stop - 1, stop) if 0 <= edge < spec.canonical_size]
        ids = [token for edge in edges for token in (edge, *tokens.take(1))]
        what = f"ids {start} to {stop - 1}, which are hashed as {spec.history.replacement}"
        yield Draft(f"replaced-{start}-{stop}", f"the edges of {what}", ids)
        yield Draft(f"replaced-{start}-{stop}-history", f"the history ends with the first of {what}",
                    tokens.take(spec.max_order), [*tokens.take(spec.max_order - 1), start])  # fmt: skip


def _large_rows(spec: AddressSpec, tokens: _Ordinary) -> Iterator[Draft]:
    """A run with rows that a signed 32-bit integer does not hold, where the table has and the ids reach some."""
    if all(layer.n_rows <= _ROWS_PAST_INT32 for layer in spec.layers):
        return
    for _ in range(16):
        ids = tokens.take(8)
        rows = [row for layer in spec.layers for row in reference.address(spec, layer, ids)[0]]
        if max(chain.from_iterable(rows)) >= _ROWS_PAST_INT32:
            yield Draft("large-rows", "rows of 2^31 and more, which no signed 32-bit integer holds", ids)
            return
