"""The plain-Python reference with one rule changed: a program that addresses rows wrongly, in a known way."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from engram_tables.address import reference
from engram_tables.address.golden.cases import GoldenCase
from engram_tables.address.golden.drafts import DEAD
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, LayerAddressing, MixRule

Arithmetic = Callable[[int, int], int]

NOTHING = 2**70
"""Stands for an id past every vocabulary whose term is left out."""


class See(Protocol):
    """The window of a position, newest id first, as `reference.window` gives it."""

    def __call__(self, ids: Sequence[int], position: int, *, max_order: int, history: HistoryRule) -> list[int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A program's rules; `right_port` has those of the spec, and a mistake replaces one of them.

    Attributes
    ----------
    history, mix, layers
        As in the spec, but unchecked: a multiplier may be even here.
    column_orders
        The order of each column.
    dead_as
        The id that is read in the place of a dead one, not negative, or None where dead ones are known.
    recall
        What is kept of a chunk's history.
    pick
        The ids of an order from a window, newest first; `NOTHING` leaves a term out.
    reduces_powers
        polynomial: whether powers of the base are taken modulo the column's modulus.
    product, join, narrow, remainder
        Id times multiplier; two terms to one; the number before the modulus to a machine word; the modulus.
    """

    spec: AddressSpec
    history: HistoryRule
    mix: MixRule
    layers: tuple[LayerAddressing, ...]
    column_orders: tuple[int, ...]
    dead_as: int | None
    recall: Callable[[Sequence[int]], Sequence[int]]
    see: See
    pick: Callable[[list[int], int], list[int]]
    reduces_powers: bool
    product: Arithmetic
    join: Arithmetic
    narrow: Callable[[int], int]
    remainder: Arithmetic


def right_port(spec: AddressSpec) -> Port:
    """The program that follows the spec."""
    return Port(
        spec=spec,
        history=spec.history,
        mix=spec.mix,
        layers=spec.layers,
        column_orders=tuple(order for order, _ in spec.columns),
        dead_as=None,
        recall=tuple,
        see=reference.window,
        pick=lambda seen, order: seen[spec.lag(order) : spec.lag(order) + order],
        reduces_powers=True,
        product=operator.mul,
        join=operator.xor if spec.mix.family is Family.XOR_MULTIPLY else operator.add,
        narrow=signed_word(spec.mix.word_bits),
        remainder=operator.mod,
    )


def port_rows(port: Port, case: GoldenCase, position: int) -> list[list[int]]:
    """Rows (layers × columns) that the program gives for the token at a position of a case."""
    recalled = port.recall(case.history)
    stream = [*recalled, *case.ids]
    if port.dead_as is not None:
        stream = [port.dead_as if token == DEAD else token for token in stream]
    seen = port.see(stream, len(recalled) + position, max_order=port.spec.max_order, history=port.history)
    ngrams = {order: port.pick(seen, order) for order in port.spec.orders}
    rows = []
    for layer in port.layers:
        moduli = chain.from_iterable(layer.moduli)
        places = enumerate(zip(port.column_orders, moduli, layer.offsets, strict=True))
        rows.append(
            [
                port.remainder(_mixed(port, layer, column, ngrams[order], modulus), modulus) + offset
                for column, (order, modulus, offset) in places
            ]
        )
    return rows


def _mixed(port: Port, layer: LayerAddressing, column: int, ngram: list[int], modulus: int) -> int:
    """The number before the modulus, as a machine word."""
    mixed = 0
    for token, coefficient in zip(ngram, coefficients(port, layer, column, len(ngram), modulus), strict=False):
        if token != NOTHING:
            mixed = port.join(mixed, port.product(token, coefficient))
    return port.narrow(mixed)


def coefficients(port: Port, layer: LayerAddressing, column: int, order: int, modulus: int) -> Sequence[int]:
    """What the ids of an n-gram are multiplied by, newest first, in one column."""
    match port.mix.family:
        case Family.XOR_MULTIPLY:
            used = layer.multipliers[:order]
            return used[::-1] if port.mix.oldest_first else used
        case Family.POLYNOMIAL:
            base = layer.multipliers[0]
            return [1, *(pow(base, n, modulus) if port.reduces_powers else base**n for n in range(1, order))]
        case Family.SALTED_AFFINE:
            first = sum(length for length, _ in port.spec.columns[:column])
            return layer.multipliers[first : first + order]
        case Family.IDENTITY:
            return (1,)


def signed_word(bits: int) -> Callable[[int], int]:
    """Wraps integers to signed words."""
    half = 1 << (bits - 1)
    return lambda number: (number + half) % (2 * half) - half


def unsigned_word(bits: int) -> Callable[[int], int]:
    """Wraps integers to unsigned words."""
    return lambda number: number % (1 << bits)


def truncated_remainder(number: int, modulus: int) -> int:
    """The remainder of C, Java and Rust, which takes the number's sign.

    >>> truncated_remainder(-7, 4), -7 % 4
    (-3, 1)
    """
    return number % modulus if number >= 0 else -(-number % modulus)


def as_float64(number: int) -> int:
    """The integer that a double holds in the place of `number`."""
    return int(float(number))


def as_float32(number: int) -> int:
    """The integer that a 32-bit float holds in the place of `number`."""
    import numpy as np

    # From a 64-bit word at once: by way of a double, some integers are rounded twice.
    words = np.array(number, dtype=np.int64 if abs(number) < 2**63 else np.float64)
    return int(words.astype(np.float32))
