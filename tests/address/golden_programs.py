"""Front ends that answer golden files, right ones and broken ones, and specs for them.

`Program` is written from a golden file alone, as someone would who has no other description: it keeps a running state
where the library looks back. The broken ones change one thing about it. None shares code with the library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables import load_spec
from engram_tables.address.golden.cases import Golden, golden_bytes, make_golden
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, LayerAddressing, MixRule

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Program:
    """Reads the constants out of a golden file and answers its cases, rightly."""

    def __init__(self, data: dict[str, Any]) -> None:
        rule = data["spec"]["addressing"]
        self.cases = data["cases"]
        self.family, self.word_bits = rule["family"], rule["word_bits"]
        self.oldest_first, self.lagged = rule["oldest_first"], rule["lagged"]
        self.size, self.fill, self.boundaries = rule["canonical_size"], rule["fill_id"], rule["boundary_ids"]
        self.visible, self.closed = rule["boundary_visible"], rule["boundary_closed"]
        self.replaced, self.replacement = rule["replaced"], rule["replacement"]
        self.orders, self.reach = rule["orders"], max(rule["orders"])
        self.layers = [
            {
                "multipliers": [int(text) for text in layer["multipliers"]],
                "moduli": [[int(modulus) for modulus in heads] for heads in layer["moduli"]],
                "offsets": [int(offset) for offset in layer["offsets"]],
                "n_rows": int(layer["n_rows"]),
            }
            for layer in rule["layers"]
        ]

    def answer(self) -> Rows:
        """int64 (tokens of all cases, layers, columns)."""
        rows = [self.rows_of_case(case["history"], case["ids"]) for case in self.cases]
        return np.array([token for case in rows for token in case], dtype=np.int64)

    def rows_of_case(self, history: list[int], ids: list[int]) -> list[list[list[int]]]:
        return [[self.rows(layer, window) for layer in self.layers] for window in self.windows(history, ids)]

    def windows(self, history: list[int], ids: list[int]) -> Iterator[list[int]]:
        """Newest first; None in the state is what cannot be seen."""
        state: list[int | None] = [None] * (self.reach - 1)
        for index, token in enumerate([*history, *ids]):
            window, state = self.step(state, token)
            if index >= len(history):
                yield [self.fill if seen is None else seen for seen in window]

    def step(self, state: list[int | None], token: int) -> tuple[list[int | None], list[int | None]]:
        blind: list[int | None] = [None] * (self.reach - 1)
        if token < 0:
            return [None, *blind], blind
        if any(start <= token < stop for start, stop in self.replaced):
            token = self.replacement
        if token not in self.boundaries:
            return [token, *state], [token, *state][: self.reach - 1]
        after = [token if self.visible else None, *blind][: self.reach - 1]
        return [token, *(blind if self.closed else state)], after

    def rows(self, layer: dict[str, Any], window: list[int]) -> list[int]:
        rows: list[int] = []
        for order, moduli in zip(self.orders, layer["moduli"], strict=True):
            skip = self.reach - order if self.lagged else 0
            for modulus in moduli:
                mixed = self.mixed(layer, window[skip : skip + order], len(rows), modulus)
                rows.append(self.remainder(mixed, modulus) + layer["offsets"][len(rows)])
        return rows

    def mixed(self, layer: dict[str, Any], ngram: list[int], column: int, modulus: int) -> int:
        multipliers = layer["multipliers"]
        if self.family == "identity":
            return ngram[0]
        if self.family == "polynomial":
            mixed = 0
            for token in reversed(ngram):
                mixed = (mixed * multipliers[0] + token) % modulus
            return mixed
        if self.family == "salted-affine":
            lengths = [n for n, moduli in zip(self.orders, layer["moduli"], strict=True) for _ in moduli]
            start = sum(lengths[:column])
            return sum(token * multipliers[start + back] for back, token in enumerate(ngram))
        mixed = 0
        for place, token in enumerate(ngram[::-1] if self.oldest_first else ngram):
            mixed ^= token * multipliers[place]
        if self.word_bits == 32:
            mixed = (mixed + 2**31) % 2**32 - 2**31
        return mixed

    def remainder(self, mixed: int, modulus: int) -> int:
        return mixed % modulus


class OneLate(Program):
    """Hashes before it takes in the current token."""

    def windows(self, history: list[int], ids: list[int]) -> Iterator[list[int]]:
        first = [*super().windows([], history)][-1:] or [[self.fill] * self.reach]
        yield from [*first, *super().windows(history, ids)][: len(ids)]


class OneEarly(Program):
    """Hashes after it has taken in the next token."""

    def windows(self, history: list[int], ids: list[int]) -> Iterator[list[int]]:
        yield from [*super().windows(history, [*ids, 0])][1:]


class Fill0(Program):
    fill_used = 0

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.fill = self.fill_used


class FillOutOfTheBlue(Fill0):
    """A fill that no list of usual ones holds; `small` has no such id at all."""

    fill_used = 54_321


class FillAndEndOutOfTheBlue(FillOutOfTheBlue):
    """One constant for both, and a wrong one."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.boundaries = [self.fill]


class OldestFirst(Program):
    def mixed(self, layer: dict[str, Any], ngram: list[int], column: int, modulus: int) -> int:
        return super().mixed(layer, ngram[::-1], column, modulus)


class MultipliersReversed(Program):
    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        for layer in self.layers:
            layer["multipliers"].reverse()


class Local(Program):
    def answer(self) -> Rows:
        return super().answer() - np.array([layer["offsets"] for layer in self.layers])


class OtherRank(Program):
    """Counts from where the second of two ranks' rows begin."""

    def answer(self) -> Rows:
        return super().answer() - np.array([layer["n_rows"] // 2 for layer in self.layers])[:, None]


class RunningLayers(Program):
    def answer(self) -> Rows:
        return super().answer() + np.cumsum([0, *(layer["n_rows"] for layer in self.layers)])[:-1, None]


class Float32Multipliers(Program):
    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        for layer in self.layers:
            layer["multipliers"] = np.array(layer["multipliers"], dtype=np.float32).astype(np.int64).tolist()


class Int32Products(Program):
    """NumPy's own 32-bit arithmetic, which wraps."""

    def mixed(self, layer: dict[str, Any], ngram: list[int], column: int, modulus: int) -> int:
        if self.family == "polynomial":
            powers = [pow(layer["multipliers"][0], back, modulus) for back in range(len(ngram))]
            products = np.array(ngram, dtype=np.int32) * np.array(powers, dtype=np.int32)
            return int(products.sum(dtype=np.int32))
        multipliers = np.array(layer["multipliers"][: len(ngram)], dtype=np.uint64).astype(np.uint32).view(np.int32)
        return int(np.bitwise_xor.reduce(np.array(ngram, dtype=np.int32) * multipliers))


class Int32ProductsInC(Int32Products):
    """The same with the remainder of C: rows may be negative."""

    def remainder(self, mixed: int, modulus: int) -> int:
        return int(math.fmod(mixed, modulus))


class DoubleProducts(Program):
    """Products as JavaScript numbers; the rest is exact."""

    def mixed(self, layer: dict[str, Any], ngram: list[int], column: int, modulus: int) -> int:
        mixed = 0
        for token, multiplier in zip(ngram, layer["multipliers"], strict=False):
            mixed ^= int(float(token) * float(multiplier))
        return mixed


class JavaScriptNumbers(Program):
    """A polynomial as JavaScript computes it without a thought: powers as they come, every number a double."""

    def mixed(self, layer: dict[str, Any], ngram: list[int], column: int, modulus: int) -> Any:
        mixed = 0.0
        for back, token in enumerate(ngram):
            mixed += float(token) * math.pow(float(layer["multipliers"][0]), back)
        return mixed

    def remainder(self, mixed: Any, modulus: int) -> int:
        return int(math.fmod(mixed, float(modulus)))


class RoundedOnce(JavaScriptNumbers):
    """The exact number, made a double at the end."""

    def mixed(self, layer: dict[str, Any], ngram: list[int], column: int, modulus: int) -> Any:
        return float(sum(token * layer["multipliers"][0] ** back for back, token in enumerate(ngram)))


class RoundedProducts(RoundedOnce):
    """Terms are doubles, and added as exact numbers."""

    def mixed(self, layer: dict[str, Any], ngram: list[int], column: int, modulus: int) -> Any:
        return sum(int(float(token) * float(layer["multipliers"][0]) ** back) for back, token in enumerate(ngram))

    def remainder(self, mixed: Any, modulus: int) -> int:
        return int(mixed % modulus)


class Int32Multipliers(Program):
    """As a writer leaves them that keeps integers in 32 bits."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        for layer in self.layers:
            layer["multipliers"] = np.array(layer["multipliers"], dtype=np.int64).astype(np.int32).tolist()


class Forgetful(Program):
    def rows_of_case(self, history: list[int], ids: list[int]) -> list[list[list[int]]]:
        return super().rows_of_case([], ids)


class NoLatch(Program):
    """A dead token hides itself alone."""

    def step(self, state: list[int | None], token: int) -> tuple[list[int | None], list[int | None]]:
        if token < 0:
            return [None] * self.reach, [None, *state][: self.reach - 1]
        return super().step(state, token)


class DeadAsFill(Program):
    """A mask that is never looked at: dead places hold the fill id."""

    def step(self, state: list[int | None], token: int) -> tuple[list[int | None], list[int | None]]:
        return super().step(state, self.fill if token < 0 else token)


class DeadAsTheyCome(Program):
    """An engine without dead tokens: -1 is an id like others, in signed 64-bit words and with C's remainder."""

    word: type[np.signedinteger[Any] | np.unsignedinteger[Any]] = np.int64
    minus_one = -1

    def step(self, state: list[int | None], token: int) -> tuple[list[int | None], list[int | None]]:
        token = self.minus_one if token < 0 else token
        window = [token, *state]
        if token in self.boundaries:
            return window, [None] * (self.reach - 1)
        return window, window[: self.reach - 1]

    def mixed(self, layer: dict[str, Any], ngram: list[int], column: int, modulus: int) -> Any:
        multipliers = np.array(layer["multipliers"][: len(ngram)], dtype=self.word)
        return np.bitwise_xor.reduce(np.array(ngram, dtype=self.word) * multipliers)

    def remainder(self, mixed: Any, modulus: int) -> int:
        return int(np.fmod(mixed, self.word(modulus)))


class DeadAsUint32(DeadAsTheyCome):
    """Ids are read as unsigned 32-bit integers."""

    minus_one = 4_294_967_295


class DeadAsUint32InUint64(DeadAsUint32):
    word = np.uint64


class DeadAsUint64(DeadAsTheyCome):
    word = np.uint64
    minus_one = 2**64 - 1


class NoBoundaries(Program):
    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.boundaries = []


class EndsAt1(Program):
    """Takes the usual end of sequence of another model for its own."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.boundaries = [1]


class VisibleBoundary(Program):
    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.visible = True


class ClosedBoundary(Program):
    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.closed = True


class HeadMajor(Program):
    def answer(self) -> Rows:
        rows = super().answer()
        by_order = rows.reshape(*rows.shape[:2], len(self.orders), -1)
        return by_order.swapaxes(2, 3).reshape(rows.shape)


class LayersExchanged(Program):
    def answer(self) -> Rows:
        return super().answer()[:, ::-1]


class PrimesFromTheStart(Program):
    """Looks for its primes anew in each layer, instead of going on."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        for layer in self.layers:
            layer["moduli"], layer["offsets"] = self.layers[0]["moduli"], self.layers[0]["offsets"]


class PrimesFromTheStartOfOrders(Program):
    """Looks for its primes anew in each order; layers go on where the spec's do."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        for layer, first in zip(self.layers, self.first_orders(), strict=True):
            layer["moduli"] = [first for _ in self.orders]
            layer["offsets"] = [int(end) for end in np.cumsum([0, *first * len(self.orders)])[:-1]]

    def first_orders(self) -> list[list[int]]:
        return [layer["moduli"][0] for layer in self.layers]


class PrimesFromTheStartAlways(PrimesFromTheStartOfOrders):
    """Never remembers that a prime is used."""

    def first_orders(self) -> list[list[int]]:
        return [self.layers[0]["moduli"][0] for _ in self.layers]


class SeededByOrdinal(Program):
    """DeepSeek's multipliers from NumPy itself, seeded by a number of the layer that is not its id."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        for layer, number in zip(self.layers, self.numbers(data), strict=True):
            layer["multipliers"] = self.seeded(number, len(layer["multipliers"]))

    def numbers(self, data: dict[str, Any]) -> list[int]:
        return list(range(len(self.layers)))

    def seeded(self, number: int, n_multipliers: int) -> list[int]:
        bound = (2**63 - 1) // self.size // 2
        drawn = np.random.default_rng(10_007 * number).integers(0, bound, size=n_multipliers, dtype=np.int64)
        return [2 * int(half) + 1 for half in drawn]


class SeededById(SeededByOrdinal):
    def numbers(self, data: dict[str, Any]) -> list[int]:
        return [int(layer["layer_id"]) for layer in data["spec"]["addressing"]["layers"]]


class SeededByIdFromOne(SeededById):
    def numbers(self, data: dict[str, Any]) -> list[int]:
        return [number + 1 for number in super().numbers(data)]


class SplitmixById(SeededById):
    """Qwen's multipliers: splitmix64 from a seed that should have the layer's ordinal in it."""

    def seeded(self, number: int, n_multipliers: int) -> list[int]:
        step, words = 0x9E3779B97F4A7C15, 2**64
        multipliers = []
        for back in range(n_multipliers):
            z = (1234 + 10_007 * number + step * (back + 2)) % words
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % words
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB % words
            multipliers.append((z ^ (z >> 31)) % ((2**63 - 1) // self.size // 2) * 2 + 1)
        return multipliers


class SplitmixByIdFromOne(SplitmixById):
    def numbers(self, data: dict[str, Any]) -> list[int]:
        return [number + 1 for number in super().numbers(data)]


class Late(Program):
    """Every order begins at the oldest token of the window, as in engram-peft."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.lagged = not self.lagged


class FromOldest(Late, OldestFirst):
    """engram-peft's rules for a table of DeepSeek's."""


def qwen_like() -> AddressSpec:
    """One layer, order-major primes, padding at the end; the fill is the boundary."""
    moduli = ((20_000_003, 20_000_023, 20_000_033), (20_000_047, 20_000_059, 20_000_063))
    return AddressSpec(
        name="qwen-like",
        provenance="tests",
        canonical_size=248_320,
        history=HistoryRule(fill_id=248_044, boundary_ids=(248_044,)),
        orders=(2, 3),
        layers=(layer_of(1, (23_703_573_157_769, 20_109_073_645_365, 8_052_911_324_071), moduli, padding=90),),
        folded=False,
    )


def longcat_like() -> AddressSpec:
    """A polynomial in the vocabulary's size, moduli that are no primes, fill 0 and another boundary."""
    moduli = tuple(tuple(10_223_617 + 2 * (order_idx * 4 + head) for head in range(4)) for order_idx in range(3))
    return AddressSpec(
        name="longcat-like",
        provenance="tests",
        canonical_size=131_072,
        history=HistoryRule(fill_id=0, boundary_ids=(2,)),
        orders=(2, 3, 4),
        layers=(layer_of(0, (131_072,), moduli),),
        mix=MixRule(family=Family.POLYNOMIAL),
        folded=False,
    )


def small() -> AddressSpec:
    """Every rule at once over few ids: a file of a few kilobytes."""
    return AddressSpec(
        name="small",
        provenance="tests",
        canonical_size=60,
        history=HistoryRule(fill_id=3, boundary_ids=(7, 11, 12), replaced=((20, 24), (30, 31)), replacement=5),
        orders=(2, 3),
        layers=(
            layer_of(1, (152_999_001, 88_417_395, 99_999_999_999_997), ((1009, 1013), (1019, 1021))),
            layer_of(4, (777_777_777_777, 3_141_592_653, 141_421_356_237), ((1031, 1033), (1039, 1049))),
        ),
    )


def layer_of(
    layer_id: int, multipliers: tuple[int, ...], moduli: tuple[tuple[int, ...], ...], padding: int = 0
) -> LayerAddressing:
    flat = [modulus for heads in moduli for modulus in heads]
    ends = [sum(flat[:n]) for n in range(len(flat) + 1)]
    return LayerAddressing(
        layer_id=layer_id,
        multipliers=multipliers,
        moduli=moduli,
        offsets=tuple(ends[:-1]),
        n_rows=ends[-1] + padding,
    )


SPECS: dict[str, Callable[[], AddressSpec]] = {
    "deepseek-v4.1-flash": lambda: load_spec("deepseek-v4.1-flash"),
    "qwen-like": qwen_like,
    "longcat-like": longcat_like,
    "small": small,
}


@cache
def golden_of(name: str) -> Golden:
    return make_golden(SPECS[name]())


@cache
def file_of(name: str) -> dict[str, Any]:
    return dict(json.loads(golden_bytes(golden_of(name))))


def write_lines(path: Path, golden: Golden, rows: Rows, *, as_text: bool = False) -> None:
    """One line a case, the last case first."""
    ends = np.cumsum([0, *(len(case.ids) for case in golden.cases)])
    lines = []
    for case, (start, stop) in zip(golden.cases, pairwise(ends), strict=True):
        nested = rows[start:stop].astype(str if as_text else np.int64).tolist()
        lines.append(json.dumps({"case": case.name, "rows": nested}) + "\n")
    path.write_text("".join(reversed(lines)))
