"""Known mistakes of programs that address rows, each as the rows that it gives to the tokens of a golden set.

Most are the reference with one rule changed (`port.py`); the others rearrange the right rows. Whether one of
them explains an answer is the business of `check.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain, permutations
from typing import Any, NamedTuple

from engram_tables.address import reference
from engram_tables.address.golden.cases import CaseRows, Golden, GoldenCase
from engram_tables.address.golden.drafts import DEAD
from engram_tables.address.golden.port import (
    NOTHING,
    Port,
    as_float32,
    as_float64,
    coefficients,
    port_rows,
    right_port,
    signed_word,
    truncated_remainder,
    unsigned_word,
)
from engram_tables.address.golden.seeds import other_seeds
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, LayerAddressing

Simulation = Callable[[GoldenCase, int], Sequence[Sequence[int | None]]]
"""Rows (layers × columns) of the token at a position; None where a mistake says nothing about them."""
Changes = dict[str, Any]
"""What a port does otherwise, by the names of its rules."""

# A token that is told from all others until it is replaced, and -1 as a 64-bit and a 32-bit word.
_BLANK = 2**71
_MINUS_ONE = 2**64 - 1
_MINUS_ONE_IN_32 = 2**32 - 1
_FILLS_TRIED = 2**18
_MOST_FILLS = 64
_MOST_LAYERS_PERMUTED = 4


class Question(NamedTuple):
    """A golden set, and what another program answers to each of its cases."""

    golden: Golden
    answer: Sequence[CaseRows]


class Variant(NamedTuple):
    """One form of a mistake; `values` are the numbers that tell it from other forms."""

    values: tuple[int, ...]
    simulate: Simulation


Variants = Callable[[Question], Iterable[Variant]]


class Mistake(NamedTuple):
    """A mistake, a sentence that takes the values of its forms, and those forms, likeliest first.

    A form that changes nothing for some spec is tried in vain: it gives the right rows.
    """

    name: str
    sentence: str
    variants: Variants


def _port(change: Callable[[Port], Changes]) -> Variants:
    """The mistake of a program that follows the spec but for one change."""

    def variants(question: Question) -> Iterator[Variant]:
        port = right_port(question.golden.spec)
        yield _changed(port, **change(port))

    return variants


def _changed(port: Port, *values: int, **changes: Any) -> Variant:
    return Variant(values, partial(port_rows, replace(port, **changes)))


def _rearranged(change: Callable[[AddressSpec, int, int, int], int]) -> Variants:
    """Every right row through `change(spec, layer index, column, row)`."""

    def variants(question: Question) -> Iterator[Variant]:
        def simulated(case: GoldenCase, position: int) -> list[list[int]]:
            return [
                [change(question.golden.spec, layer_idx, column, row) for column, row in enumerate(rows)]
                for layer_idx, rows in enumerate(case.rows[position])
            ]

        yield Variant((), simulated)

    return variants


# Rows that are right, but told otherwise.


def _local_row(spec: AddressSpec, layer_idx: int, column: int, row: int) -> int:
    return row - spec.layers[layer_idx].offsets[column]


def _running_row(spec: AddressSpec, layer_idx: int, column: int, row: int) -> int:
    return row + sum(layer.n_rows for layer in spec.layers[:layer_idx])


def _shifted(question: Question) -> Iterator[Variant]:
    """The constants are read off the first token, whose first rows they then fit by themselves."""
    expected, found = question.golden.cases[0].rows[0], question.answer[0][0]
    shifts = tuple(theirs[0] - right[0] for theirs, right in zip(found, expected, strict=True))
    for variant in _rearranged(lambda spec, layer_idx, column, row: row + shifts[layer_idx])(question):
        yield Variant(shifts, variant.simulate)


def _neighbours(step: int) -> Variants:
    """Nothing is said about the end of a case, whose neighbour is not in it."""

    def simulated(case: GoldenCase, position: int) -> Sequence[Sequence[int | None]]:
        if 0 <= position + step < len(case.rows):
            return case.rows[position + step]
        return [[None] * len(rows) for rows in case.rows[position]]

    return lambda question: [Variant((), simulated)]


def _other_layers(question: Question) -> Iterator[Variant]:
    layer_ids = question.golden.spec.layer_ids
    for source in _layer_sources(len(layer_ids)):
        yield Variant(tuple(layer_ids[layer_idx] for layer_idx in source), partial(_layers_of, source))


def _layers_of(source: Sequence[int], case: GoldenCase, position: int) -> list[list[int]]:
    return [case.rows[position][layer_idx] for layer_idx in source]


def _layer_sources(n_layers: int) -> Iterator[tuple[int, ...]]:
    """Which layer stands in the place of each: one everywhere, or all in another order."""
    identity = tuple(range(n_layers))
    yield from ((layer_idx,) * n_layers for layer_idx in identity)
    yield from permutations(identity) if n_layers <= _MOST_LAYERS_PERMUTED else iter([identity[::-1]])


def _head_major(question: Question) -> Iterator[Variant]:
    source = _head_major_columns(question.golden.spec)
    yield Variant((), lambda case, position: [[rows[column] for column in source] for rows in case.rows[position]])


def _head_major_columns(spec: AddressSpec) -> list[int]:
    """The order-major place of each column of a head-major program: first heads first, as far as an order has them."""
    columns = spec.columns
    return sorted(range(len(columns)), key=lambda column: (columns[column][1], columns[column][0]))


# What a window sees.


def _history_short(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    for n_kept in range(port.spec.max_order - 2, 0, -1):
        yield _changed(port, n_kept, recall=partial(_last, n_kept))


def _last(n_kept: int, history: Sequence[int]) -> Sequence[int]:
    return history[-n_kept:]


def _history_dead_lost(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    fill = port.history.fill_id
    yield _changed(port, recall=lambda history: [token for token in history if token != DEAD])
    yield _changed(port, recall=lambda history: [fill if token == DEAD else token for token in history])


def _bounded(history: HistoryRule, boundary_ids: Iterable[int]) -> HistoryRule:
    return replace(history, boundary_ids=tuple(sorted(set(boundary_ids))))


def _boundary_missing(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    for missing in port.history.boundary_ids if len(port.history.boundary_ids) > 1 else ():
        yield _changed(port, missing, history=_bounded(port.history, {*port.history.boundary_ids} - {missing}))


def _boundary_alone(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    for kept in port.history.boundary_ids if len(port.history.boundary_ids) > 2 else ():
        yield _changed(port, kept, history=_bounded(port.history, {kept}))


def _boundary_extra(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    history, largest = port.history, port.spec.canonical_size - 1
    for extra in dict.fromkeys((history.fill_id, 0, 1, 2, largest, history.replacement)):
        yield _changed(port, extra, history=_bounded(history, {extra, *history.boundary_ids}))


def _boundary_other(question: Question) -> Iterator[Variant]:
    """Another id in the place of the only boundary; where the fill is the boundary, `_wrong_end` asks for more."""
    port = right_port(question.golden.spec)
    if len(port.history.boundary_ids) == 1:
        right = port.history.boundary_ids[0]
        for other in dict.fromkeys((0, 1, 2, 3, port.spec.canonical_size - 1)):
            if other != right:
                yield _changed(port, other, right, history=_bounded(port.history, {other}))


def _past_boundaries(ids: Sequence[int], position: int, *, max_order: int, history: HistoryRule) -> list[int]:
    """Boundaries are filled, and what lies behind them is seen."""
    seen = reference.window(ids, position, max_order=max_order, history=_bounded(history, ()))
    return seen[:1] + [history.fill_id if token in history.boundary_ids else token for token in seen[1:]]


def _dead_as_token(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    for token in dict.fromkeys((port.history.fill_id, 0, 1, port.spec.canonical_size - 1)):
        yield _changed(port, token, dead_as=token)
    # No rule forbids their products to pass the word, and then the kind of word and of remainder tells.
    for value, word in ((DEAD, _MINUS_ONE), (_MINUS_ONE_IN_32, _MINUS_ONE_IN_32)):
        for narrow, remainder in _words_and_remainders(port):
            yield _changed(port, value, dead_as=word, narrow=narrow, remainder=remainder)


def _words_and_remainders(port: Port) -> Iterator[tuple[Callable[[int], int], Callable[[int, int], int]]]:
    """The spec's word and an unsigned one; the remainders of Python and of C, which agree where nothing is negative."""
    yield port.narrow, operator.mod
    yield port.narrow, truncated_remainder
    yield unsigned_word(port.mix.word_bits), operator.mod


def _past_dead(ids: Sequence[int], position: int, *, max_order: int, history: HistoryRule) -> list[int]:
    """A dead token is filled, and what lies before it is seen by later ones."""
    if ids[position] < 0:
        return [history.fill_id] * max_order
    blanked = [_BLANK if token < 0 else token for token in ids]
    return _filled(reference.window(blanked, position, max_order=max_order, history=history), history)


def _dead_with_past(ids: Sequence[int], position: int, *, max_order: int, history: HistoryRule) -> list[int]:
    """A dead token is filled in its own window, which sees what lies before it."""
    own = [*ids[:position], ids[position] if ids[position] >= 0 else _BLANK]
    return _filled(reference.window(own, position, max_order=max_order, history=history), history)


def _filled(seen: list[int], history: HistoryRule) -> list[int]:
    return [history.fill_id if token == _BLANK else token for token in seen]


def _over_dead(ids: Sequence[int], position: int, *, max_order: int, history: HistoryRule) -> list[int]:
    """Windows are made of the living tokens alone."""
    if ids[position] < 0:
        return [history.fill_id] * max_order
    living = [token for token in ids[: position + 1] if token >= 0]
    return reference.window(living, len(living) - 1, max_order=max_order, history=history)


def _wrong_fill(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    for fill in _fills(question):
        yield _changed(port, fill, port.history.fill_id, history=replace(port.history, fill_id=fill))


def _wrong_end(question: Question) -> Iterator[Variant]:
    """Where the fill is the boundary, one wrong constant is both."""
    port = right_port(question.golden.spec)
    if port.history.boundary_ids == (port.history.fill_id,):
        for fill in _fills(question):
            history = replace(port.history, fill_id=fill, boundary_ids=(fill,))
            yield _changed(port, fill, port.history.fill_id, history=history)


def _fill_left_out(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    yield _changed(port, port.history.fill_id, history=replace(port.history, fill_id=NOTHING))


def _fills(question: Question) -> Iterator[int]:
    """Fills worth a trial: the usual ones, those that occur, and all that explain a first token."""
    spec = question.golden.spec
    occurring = chain.from_iterable(case.ids for case in question.golden.cases)
    usual = (0, 1, 2, spec.canonical_size - 1, *spec.history.boundary_ids, *occurring)
    tried = {fill: None for fill in usual if 0 <= fill < spec.canonical_size}
    yield from tried
    yield from (fill for fill in _fills_of_first_token(question) if fill not in tried)


def _fills_of_first_token(question: Question) -> list[int]:
    """The ids that, as the whole history of a sequence's first token, give the answer's rows of the largest order."""
    spec = question.golden.spec
    columns = [column for column, (length, _) in enumerate(spec.columns) if length == spec.max_order]
    for case, answer in zip(question.golden.cases, question.answer, strict=True):
        rows = {column: answer[0][0][column] for column in columns}
        if case.history or case.ids[0] == DEAD:
            continue
        if all(row == case.rows[0][0][column] for column, row in rows.items()):
            return []
        return _fills_with(spec, reference.hashed_id(spec.history, case.ids[0]), rows)
    return []


def _fills_with(spec: AddressSpec, token: int, rows: dict[int, int]) -> list[int]:
    """The fills behind a token that give these rows, by column, in the first layer."""
    import numpy as np

    port, layer, order = right_port(spec), spec.layers[0], spec.max_order
    moduli = list(chain.from_iterable(layer.moduli))
    # Past the vocabulary too: a token id that was never mapped to its canonical id is a likely one.
    fills = np.arange(_FILLS_TRIED, dtype=np.uint64)
    fits = np.ones(len(fills), dtype=np.bool_)
    join = np.bitwise_xor if port.join is operator.xor else np.add
    for column, row in rows.items():
        newest, *older = coefficients(port, layer, column, order, moduli[column])
        mixed = np.full(len(fills), token * newest, dtype=np.uint64)
        for coefficient in older:
            mixed = join(mixed, fills * np.uint64(coefficient))
        words = mixed.view(np.int64) if spec.mix.word_bits == 64 else mixed.astype(np.uint32).view(np.int32)
        fits &= words.astype(np.int64) % moduli[column] == row - layer.offsets[column]
    return [int(fill) for fill in fills[fits][:_MOST_FILLS]]


# Constants and arithmetic.


def _multiplied(port: Port, change: Callable[[Sequence[int]], Iterable[int]]) -> tuple[LayerAddressing, ...]:
    return tuple(replace(layer, multipliers=tuple(change(layer.multipliers))) for layer in port.layers)


def _multipliers_reversed(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    if port.mix.family is Family.XOR_MULTIPLY:
        yield _changed(port, layers=_multiplied(port, reversed))


def _of_other_layers(*constants: str) -> Variants:
    """Some constants of each layer are those of another."""

    def variants(question: Question) -> Iterator[Variant]:
        port = right_port(question.golden.spec)
        for source in _layer_sources(len(port.layers)):
            layers = tuple(
                replace(layer, **{name: getattr(port.layers[layer_idx], name) for name in constants})
                for layer, layer_idx in zip(port.layers, source, strict=True)
            )
            yield _changed(port, *(port.layers[layer_idx].layer_id for layer_idx in source), layers=layers)

    return variants


def _layer_seed(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    for seeds, multipliers in other_seeds(port.spec):
        layers = (replace(layer, multipliers=own) for layer, own in zip(port.layers, multipliers, strict=True))
        yield _changed(port, *seeds, layers=tuple(layers))


def _order_moduli(question: Question) -> Iterator[Variant]:
    """Primes that begin anew in each order: while layers go on, in each layer too, or one order's further on."""
    port = right_port(question.golden.spec)
    if len(port.spec.orders) == 1 or len(set(port.spec.heads)) > 1:
        return
    blocks = [heads for layer in port.layers for heads in layer.moduli]
    firsts = [layer.moduli[0] for layer in port.layers]
    for chosen in (firsts, [firsts[0]] * len(firsts), blocks[: len(firsts)]):
        pairs = zip(port.layers, chosen, strict=True)
        yield _changed(port, layers=tuple(_with_moduli(layer, (heads,) * len(layer.moduli)) for layer, heads in pairs))


def _with_moduli(layer: LayerAddressing, moduli: tuple[tuple[int, ...], ...]) -> LayerAddressing:
    """The layer with other moduli, and offsets that follow from them unless its heads share one table."""
    ends = accumulate(chain.from_iterable((*moduli[:-1], moduli[-1][:-1])), initial=0)
    return replace(layer, moduli=moduli, offsets=tuple(ends) if any(layer.offsets) else layer.offsets)


def _multipliers_as(change: Callable[[int], int]) -> Variants:
    """Changed multipliers may pass the word, and then the kind of word and of remainder tells."""

    def variants(question: Question) -> Iterator[Variant]:
        port = right_port(question.golden.spec)
        layers = _multiplied(port, lambda multipliers: map(change, multipliers))
        for narrow in (port.narrow, unsigned_word(64)):
            for remainder in (operator.mod, truncated_remainder):
                yield _changed(port, layers=layers, narrow=narrow, remainder=remainder)

    return variants


def _numbers_as(change: Callable[[int], int]) -> Variants:
    """Products, the number before the modulus, both, or every sum as well, held in a float."""

    def variants(question: Question) -> Iterator[Variant]:
        port = right_port(question.golden.spec)

        def product(token: int, multiplier: int) -> int:
            return change(change(token) * change(multiplier))

        def narrow(number: int) -> int:
            return port.narrow(change(number))

        yield _changed(port, product=product)
        yield _changed(port, narrow=narrow)
        yield _changed(port, product=product, narrow=narrow)
        if port.join is operator.add:
            yield _changed(port, product=product, join=lambda one, other: change(one + other))

    return variants


def _float64(question: Question) -> Iterator[Variant]:
    """The same, and numbers that no word ever holds, as in JavaScript: powers are as they come."""
    yield from _numbers_as(as_float64)(question)
    port = right_port(question.golden.spec)
    if port.join is not operator.add:
        return

    def product(token: int, multiplier: int) -> int:
        return as_float64(token * as_float64(multiplier))

    for reduces_powers in (False, True):
        endless = replace(port, reduces_powers=reduces_powers, narrow=int)
        yield _changed(endless, product=product, join=lambda one, other: as_float64(one + other))
        yield _changed(endless, product=product)
        yield _changed(endless, narrow=as_float64)


def _words(narrow: Callable[[int], int], remainder: Callable[[int, int], int] = operator.mod) -> Variants:
    def variants(question: Question) -> Iterator[Variant]:
        port = right_port(question.golden.spec)
        for reduces_powers in (True, False):
            yield _changed(port, narrow=narrow, remainder=remainder, reduces_powers=reduces_powers)

    return variants


def _other_join(question: Question) -> Iterator[Variant]:
    port = right_port(question.golden.spec)
    join = operator.add if port.join is operator.xor else operator.xor
    for narrow in (port.narrow, unsigned_word(64)):
        yield _changed(port, join=join, narrow=narrow)


# Which ids make up an order.


def _other_lag(port: Port) -> Changes:
    largest, is_lagged = port.spec.max_order, port.mix.lagged
    return {"pick": lambda seen, order: seen[:order] if is_lagged else seen[largest - order :]}


def _from_oldest(port: Port) -> Changes:
    """Both rules in which engram-peft differs from DeepSeek's demo."""
    pick = _other_lag(port)["pick"]
    return {"pick": lambda seen, order: pick(seen, order)[::-1]}


def _not_cumulative(question: Question) -> Iterator[Variant]:
    """An order takes what it adds to the order before it, its oldest id alone, or its two ends."""
    port = right_port(question.golden.spec)
    before = dict(zip(port.spec.orders, (0, *port.spec.orders), strict=False))

    def only(kept: Callable[[int, int], bool]) -> Variant:
        def pick(seen: list[int], order: int) -> list[int]:
            return [token if kept(back, order) else NOTHING for back, token in enumerate(port.pick(seen, order))]

        return _changed(port, pick=pick)

    yield only(lambda back, order: back >= before[order])
    yield only(lambda back, order: back == order - 1)
    yield only(lambda back, order: back in (0, order - 1))


def _descending(port: Port) -> Changes:
    blocks = zip(reversed(port.spec.orders), reversed(port.spec.heads), strict=True)
    return {"column_orders": tuple(order for order, n_heads in blocks for _ in range(n_heads))}


def _moduli_head_major(port: Port) -> Changes:
    return {"column_orders": tuple(port.column_orders[column] for column in _head_major_columns(port.spec))}


def _signed_row(spec: AddressSpec, layer_idx: int, column: int, row: int) -> int:
    return signed_word(32)(row)


def _float_row(spec: AddressSpec, layer_idx: int, column: int, row: int) -> int:
    return as_float32(row)


_NUMBERS = "numbers before the modulus"
_SIGN = "the remainder takes their sign"
# The most specific first: what rearranges right rows, then windows, then constants and arithmetic, then orders.
MISTAKES = (
    Mistake("local-rows", "rows are counted within each head: its offset is not added", _rearranged(_local_row)),
    Mistake("layer-offsets", "row ids run on from layer to layer, expected from 0 in each", _rearranged(_running_row)),
    Mistake("rows-int32", "rows of 2^31 and more are wrapped to signed 32-bit integers", _rearranged(_signed_row)),
    Mistake("rows-float32", "rows have been through a 32-bit float", _rearranged(_float_row)),
    Mistake("other-layers", "the rows are those of layers {all}", _other_layers),
    Mistake("head-major", "columns are head-major, expected order-major", _head_major),
    Mistake("one-late", "each token has the rows of the token before it", _neighbours(-1)),
    Mistake("one-early", "each token has the rows of the token after it", _neighbours(1)),
    Mistake("history-forgotten", "the history of the previous chunk is not seen",
            _port(lambda port: {"recall": lambda history: ()})),
    Mistake("history-short", "only the last ids of the history are seen, {0} of them", _history_short),
    Mistake("history-reversed", "the history is read newest first, expected oldest first",
            _port(lambda port: {"recall": lambda history: history[::-1]})),
    Mistake("history-dead-lost", "dead tokens of the history do not end the look-back", _history_dead_lost),
    Mistake("boundaries-ignored", "boundary ids do not end the look-back",
            _port(lambda port: {"history": _bounded(port.history, ())})),
    Mistake("boundary-visible", "the token after a boundary sees the boundary's id, expected the fill",
            _port(lambda port: {"history": replace(port.history, boundary_visible=True)})),
    Mistake("boundary-hidden", "the token after a boundary sees the fill, expected the boundary's id",
            _port(lambda port: {"history": replace(port.history, boundary_visible=False)})),
    Mistake("boundary-closed", "a boundary does not see what precedes it",
            _port(lambda port: {"history": replace(port.history, boundary_closed=True)})),
    Mistake("boundary-open", "a boundary sees what precedes it",
            _port(lambda port: {"history": replace(port.history, boundary_closed=False)})),
    Mistake("boundary-not-latched", "a boundary is filled, and longer look-backs pass it",
            _port(lambda port: {"see": _past_boundaries})),
    Mistake("boundary-missing", "id {0} is not taken for a boundary", _boundary_missing),
    Mistake("boundary-alone", "no id but {0} is taken for a boundary", _boundary_alone),
    Mistake("boundary-other", "id {0} is taken for the boundary, expected {1}", _boundary_other),
    Mistake("boundary-extra", "id {0} is taken for a boundary", _boundary_extra),
    Mistake("dead-not-latched", "a dead token is filled, and longer look-backs pass it",
            _port(lambda port: {"see": _past_dead})),
    Mistake("dead-sees", "a dead token's own window sees what precedes it",
            _port(lambda port: {"see": _dead_with_past})),
    Mistake("dead-skipped", "dead tokens are left out, as if the living ones stood next to each other",
            _port(lambda port: {"see": _over_dead})),
    Mistake("dead-as-token", "dead tokens are hashed as an ordinary id, {0}", _dead_as_token),
    Mistake("wrong-fill", "a missing history is filled with id {0}, expected {1}", _wrong_fill),
    Mistake("wrong-end", "id {0} is the fill and the boundary, expected {1}", _wrong_end),
    Mistake("fill-left-out", "a missing history contributes nothing, expected fill id {0}", _fill_left_out),
    Mistake("replacement-ignored", "replaced ids are hashed as they are",
            _port(lambda port: {"history": replace(port.history, replaced=())})),
    Mistake("replacement-ends", "the id after each replaced range is replaced too",
            _port(lambda port: {
                "history": replace(port.history, replaced=tuple((a, b + 1) for a, b in port.history.replaced))})),
    Mistake("multiplier-order", "multipliers run along the n-gram from the wrong end",
            _port(lambda port: {"pick": lambda seen, order: port.pick(seen, order)[::-1]})),
    Mistake("multipliers-reversed", "the list of multipliers is reversed", _multipliers_reversed),
    Mistake("layer-multipliers", "the multipliers are those of layers {all}", _of_other_layers("multipliers")),
    Mistake("layer-moduli", "the moduli are those of layers {all}", _of_other_layers("moduli", "offsets")),
    Mistake("layer-seed", "the multipliers are seeded with the layer numbers {all}", _layer_seed),
    Mistake("order-moduli", "all orders have the moduli of the first: primes begin anew in each", _order_moduli),
    Mistake("multipliers-float32", "multipliers are rounded to 32-bit floats", _multipliers_as(as_float32)),
    Mistake("multipliers-float64", "multipliers are rounded to doubles", _multipliers_as(as_float64)),
    Mistake("multipliers-int32", "multipliers are cut to signed 32 bits", _multipliers_as(signed_word(32))),
    Mistake("multipliers-uint32", "multipliers are cut to unsigned 32 bits", _multipliers_as(unsigned_word(32))),
    Mistake("float64", f"{_NUMBERS} are held in doubles", _float64),
    Mistake("float32", f"{_NUMBERS} are held in 32-bit floats", _numbers_as(as_float32)),
    Mistake("int32", f"{_NUMBERS} wrap to signed 32 bits", _words(signed_word(32))),
    Mistake("int32-truncated", f"{_NUMBERS} wrap to signed 32 bits, and {_SIGN}",
            _words(signed_word(32), truncated_remainder)),
    Mistake("uint32", f"{_NUMBERS} wrap to unsigned 32 bits", _words(unsigned_word(32))),
    Mistake("int64", f"{_NUMBERS} wrap to signed 64 bits", _words(signed_word(64))),
    Mistake("int64-truncated", f"{_NUMBERS} wrap to signed 64 bits, and {_SIGN}",
            _words(signed_word(64), truncated_remainder)),
    Mistake("uint64", f"{_NUMBERS} wrap to unsigned 64 bits", _words(unsigned_word(64))),
    Mistake("other-join", "terms are added where they are XORed, or XORed where they are added", _other_join),
    Mistake("order-lag", "n-grams of the smaller orders end at another token of the window", _port(_other_lag)),
    Mistake("from-oldest", "orders and multipliers both begin at the other end of the window", _port(_from_oldest)),
    Mistake("not-cumulative", "n-grams of the larger orders lack some of their ids", _not_cumulative),
    Mistake("orders-short", "n-grams are one id shorter than their order",
            _port(lambda port: {"pick": lambda seen, order: port.pick(seen, order)[: max(1, order - 1)]})),
    Mistake("orders-descending", "the largest order comes first", _port(_descending)),
    Mistake("moduli-head-major", "moduli are taken head by head, expected order by order", _port(_moduli_head_major)),
)  # fmt: skip
SHIFTED = Mistake(
    "shifted",
    "rows of each layer are shifted by a constant, {all}: another rank's offset, or rows that count from 1",
    _shifted,
)
"""Fits whatever adds a constant, so it is tried where nothing else fits."""
