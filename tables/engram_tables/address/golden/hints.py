"""What the rows that differ from a golden set have in common, where no known mistake explains them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from engram_tables.address import reference
from engram_tables.address.golden.cases import CaseRows, Golden, GoldenCase
from engram_tables.address.golden.mistakes import Question
from engram_tables.address.golden.port import NOTHING
from engram_tables.address.spec import AddressSpec, KeyForm
from engram_tables.units import EXACT_IN_DOUBLE

_ROWS_PAST_INT32 = 2**31
_CHANCE = 0.01
_FEW = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """What rows that differ have in common, and so many of the others lack that it is hardly chance."""

    name: str
    sentence: str


class Place(NamedTuple):
    """Indices of one row of a golden set."""

    case_idx: int
    position: int
    layer_idx: int
    column: int

    def row(self, rows: Sequence[CaseRows]) -> int:
        """The row at this place."""
        return rows[self.case_idx][self.position][self.layer_idx][self.column]


class _Aspect(NamedTuple):
    name: str
    sentence: str
    holds: Callable[[Place], bool]


def all_places(golden: Golden) -> Iterator[Place]:
    """Every row's place, in order."""
    for case_idx, case in enumerate(golden.cases):
        for position in range(len(case.ids)):
            for layer_idx in range(len(golden.spec.layers)):
                for column in range(golden.spec.n_columns):
                    yield Place(case_idx, position, layer_idx, column)


def find_hints(question: Question, differing: Sequence[Place]) -> list[Hint]:
    """Each aspect that all differing rows share, and that as many rows drawn at random would hardly share."""
    golden = question.golden
    outside, all_differ = _outside(question, differing), _all_differ(golden, differing)
    if all_differ:
        return [*all_differ, *outside]
    aspects = [*_column_aspects(golden, differing[0]), *_window_aspects(golden), *_number_aspects(golden)]
    hints = [
        Hint(name=name, sentence=f"every row that differs {sentence}")
        for name, sentence, holds in aspects
        if all(map(holds, differing))
        and (sum(map(holds, all_places(golden))) / golden.n_rows) ** len(differing) < _CHANCE
    ]
    if {hint.name for hint in hints} & {"dead", "boundary"}:
        hints = [hint for hint in hints if hint.name != "fill"]
    n_of_columns = sum(hint.name in ("layer", "order", "head") for hint in hints)
    found = [*hints[:n_of_columns], *_columns(golden, differing), *hints[n_of_columns:], *outside]
    # Most ids that are not small have such mixes, so that nearly whatever else is wrong has them in common too.
    return [hint for hint in found if hint.name != "large-mix" or len(found) == 1]


def _all_differ(golden: Golden, differing: Sequence[Place]) -> list[Hint]:
    """Whether every row differs, or every one but those that wrong multipliers leave as they are, and a chance few."""
    if len(differing) == golden.n_rows:
        return [Hint(name="all", sentence="every row differs: look at the constants, and at the ids that are hashed")]
    known = set(differing)
    agreeing = [place for place in all_places(golden) if place not in known]
    if sum(not _is_all_zero(golden, place) for place in agreeing) > _FEW * golden.n_rows:
        return []
    sentence = "every row differs, those of id 0 alone and a few aside: look at the multipliers first"
    return [Hint(name="all", sentence=f"{sentence}, then at the ids that are hashed")]


def _is_all_zero(golden: Golden, place: Place) -> bool:
    """Whether an n-gram holds nothing but id 0, for which any multiplier gives the same."""
    spec, case = golden.spec, golden.cases[place.case_idx]
    order, _ = spec.columns[place.column]
    stream, at = [*case.history, *case.ids], len(case.history) + place.position
    seen = reference.window(stream, at, max_order=spec.max_order, history=spec.history)
    return not any(seen[spec.lag(order) : spec.lag(order) + order])


def _columns(golden: Golden, differing: Sequence[Place]) -> list[Hint]:
    """Whether some columns agree everywhere and all others hardly anywhere, as one wrong modulus makes them."""
    spec, n_columns = golden.spec, golden.spec.n_columns
    counts = Counter(place.layer_idx * n_columns + place.column for place in differing)
    first, n_all = min(counts), len(spec.layers) * n_columns
    if first == 0 or len(counts) == n_all or 2 * min(counts.values()) <= golden.n_tokens:
        return []
    layer_idx, column = divmod(first - 1, n_columns)
    order, head = spec.columns[column]
    where = f"layer {spec.layer_ids[layer_idx]}, order {order}, head {head}"
    sentence = f"whole columns differ, and {where} is the last that agrees before them"
    return [Hint(name="columns", sentence=f"{sentence}: look at moduli and offsets from there on")]


def _outside(question: Question, differing: Sequence[Place]) -> list[Hint]:
    """How many rows lie outside of their head's, and whether they look like rows that are counted within each head."""
    spec = question.golden.spec
    n_outside = sum(not _in_its_head(spec, place, place.row(question.answer)) for place in differing)
    if not n_outside:
        return []
    n_local = sum(0 <= place.row(question.answer) < _modulus(spec, place) for place in all_places(question.golden))
    is_local = any(any(layer.offsets) for layer in spec.layers) and 2 * n_local > question.golden.n_rows
    advice = "; if the program counts rows within each head, try --local" if is_local else ""
    sentence = f"{n_outside} of the rows that differ lie outside of their head's{advice}"
    return [Hint(name="outside", sentence=sentence)]


def _column_aspects(golden: Golden, first: Place) -> Iterator[_Aspect]:
    """Layer, order and head of the first row that differs."""
    columns, layer_id = golden.spec.columns, golden.spec.layer_ids[first.layer_idx]
    order, head = columns[first.column]
    yield _Aspect("layer", f"belongs to layer {layer_id}", lambda place: place.layer_idx == first.layer_idx)
    yield _Aspect("order", f"belongs to order {order}", lambda place: columns[place.column][0] == order)
    yield _Aspect("head", f"belongs to head {head} of its order", lambda place: columns[place.column][1] == head)


def _window_aspects(golden: Golden) -> Iterator[_Aspect]:
    spec = golden.spec

    def of_token(holds: Callable[[AddressSpec, GoldenCase, int], bool]) -> Callable[[Place], bool]:
        return lambda place: holds(spec, golden.cases[place.case_idx], place.position)

    yield _Aspect("dead", "has a dead token in its window: look at how it ends the look-back", of_token(_reaches_dead))
    yield _Aspect("boundary", "has a boundary in its window: look at the boundary rule", of_token(_reaches_boundary))
    yield _Aspect("history", "has a history in its window: look at what is kept from chunk to chunk",
                  of_token(_reaches_history))  # fmt: skip
    yield _Aspect("fill", "has a fill in its window: look at the fill id", of_token(_is_filled))


def _number_aspects(golden: Golden) -> Iterator[_Aspect]:
    yield _Aspect("large-row", "is 2^31 or more: look for rows in 32 bits",
                  lambda place: place.row(golden.rows) >= _ROWS_PAST_INT32)  # fmt: skip
    if golden.spec.key_form is KeyForm.MIX:
        yield _Aspect("large-mix", "has a mix above 2^53: look for doubles",
                      lambda place: _mix(golden, place) > EXACT_IN_DOUBLE)  # fmt: skip


def _reached(spec: AddressSpec, case: GoldenCase, position: int) -> list[int]:
    """The ids that stand within a token's window, whether it sees them or not."""
    stream = [*case.history, *case.ids]
    at = len(case.history) + position
    return stream[max(0, at - spec.max_order + 1) : at + 1]


def _reaches_dead(spec: AddressSpec, case: GoldenCase, position: int) -> bool:
    return min(_reached(spec, case, position)) < 0


def _reaches_boundary(spec: AddressSpec, case: GoldenCase, position: int) -> bool:
    seen = (reference.hashed_id(spec.history, token) for token in _reached(spec, case, position))
    return not set(spec.history.boundary_ids).isdisjoint(seen)


def _reaches_history(spec: AddressSpec, case: GoldenCase, position: int) -> bool:
    return bool(case.history) and position < spec.max_order - 1


def _is_filled(spec: AddressSpec, case: GoldenCase, position: int) -> bool:
    history = replace(spec.history, fill_id=NOTHING)
    stream = [*case.history, *case.ids]
    return NOTHING in reference.window(stream, len(case.history) + position, max_order=spec.max_order, history=history)


def _mix(golden: Golden, place: Place) -> int:
    order_idx = golden.spec.orders.index(golden.spec.columns[place.column][0])
    return golden.cases[place.case_idx].keys[place.position][place.layer_idx][order_idx]


def _in_its_head(spec: AddressSpec, place: Place, row: int) -> bool:
    return 0 <= row - spec.layers[place.layer_idx].offsets[place.column] < _modulus(spec, place)


def _modulus(spec: AddressSpec, place: Place) -> int:
    return list(chain.from_iterable(spec.layers[place.layer_idx].moduli))[place.column]
