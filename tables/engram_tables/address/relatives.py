"""Recipes of DeepSeek's relatives: Qwen, LongCat, nanochat and Gemma."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engram_tables.address.primes import is_prime, next_prime
from engram_tables.address.recipes import (
    INT64_MAX,
    LAYER_SEED_STEP,
    MAX_COLUMNS,
    Recipe,
    bind,
    check_range,
    concatenated,
)
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, LayerAddressing, MixRule, RowSlice
from engram_tables.address.spec_checks import MAX_ORDER
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import InvalidInput

QWEN_SEED = 1234
_MASK64 = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class QwenRecipe(Recipe):
    """Consecutive primes from a base on, never used twice; splitmix64 multipliers by the layer's ordinal.

    Source: `Qwen4Exp` code in transformers and vLLM; held against the arrays of the released checkpoint.

    Attributes
    ----------
    layer_ids
        Decoder layers, from 0, ascending (the config counts them from 1).
    eos_token
        Boundary and fill.
    divisor
        Rows are padded to a multiple of it.
    """

    name: str
    provenance: str
    vocab_size: int
    orders: tuple[int, ...]
    heads: int
    base: int
    divisor: int
    layer_ids: tuple[int, ...]
    eos_token: int
    row_width: int | None = None
    seed: int = QWEN_SEED

    def __post_init__(self) -> None:
        for found, least, most, what in (
            (self.heads, 1, 2**12, "heads"),
            (self.vocab_size, 1, 2**30, "vocab_size"),
            (max(self.orders, default=0), 2, MAX_ORDER, "largest order"),
            (self.heads * max(1, len(self.layer_ids)) * len(self.orders), 1, MAX_COLUMNS, "columns of all layers"),
            (self.base, 2, 2**40, "ngram_vocab_size_base"),
            (self.divisor, 1, 2**30, "make_ngram_vocab_size_divisible_by"),
        ):
            check_range(self.name, what, found, least, most)

    def multipliers(self, ordinal: int) -> tuple[int, ...]:
        """Odd multipliers of the layer of that ordinal, one a look-back."""
        return splitmix_multipliers(self.vocab_size, max(self.orders), seed=self.seed + LAYER_SEED_STEP * ordinal)

    def resolve(self, layer_ids: Sequence[int] | None = None, *, vocabulary: Vocabulary | None = None) -> AddressSpec:
        """The spec with every constant derived; see `Recipe.resolve`."""
        _refuse_layers(self.name, layer_ids)
        last, layers = self.base - 1, []
        for ordinal, layer_id in enumerate(self.layer_ids):
            moduli: list[list[int]] = []
            for _ in self.orders:
                moduli.append([])
                for _ in range(self.heads):
                    last = next_prime(last)
                    moduli[-1].append(last)
            layers.append(concatenated(layer_id, self.multipliers(ordinal), moduli, divisor=self.divisor))
        spec = AddressSpec(
            name=self.name,
            provenance=self.provenance,
            canonical_size=self.vocab_size,
            folded=False,
            history=HistoryRule(fill_id=self.eos_token, boundary_ids=(self.eos_token,)),
            orders=self.orders,
            layers=tuple(layers),
            row_width=self.row_width,
            reduce="rows concatenated, column after column",
        )
        return bind(spec, vocabulary)


_GOLDEN = 0x9E3779B97F4A7C15


def splitmix_multipliers(vocab_size: int, n_multipliers: int, *, seed: int) -> tuple[int, ...]:
    """Qwen's odd multipliers from a seed: no product with a token id passes 2^63."""
    half = max(1, INT64_MAX // vocab_size // 2)
    # The increment is added once here and once more inside of splitmix64.
    seeds = (seed + _GOLDEN * (back + 1) & _MASK64 for back in range(n_multipliers))
    return tuple(2 * (_splitmix64(value) % half) + 1 for value in seeds)


def _splitmix64(value: int) -> int:
    """Steele, Lea and Flood's generator, one step from `value`, modulo 2^64."""
    value = value + _GOLDEN & _MASK64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31


@dataclass(frozen=True, kw_only=True)
class LongCatRecipe(Recipe):
    """A polynomial in the vocabulary's size; head i of all has int(ratio · vocabulary + 2 i + 1) rows, prime or not.

    Source: LongCat's modelling code and its copies in vLLM and SGLang.

    Attributes
    ----------
    neighbours
        The largest order (`emb_neighbor_num`).
    splits
        Heads an order (`emb_split_num`).
    ratio
        `ngram_vocab_size_ratio`; its product with the vocabulary's size is taken in double precision, as theirs is.
    special_ranges
        Half-open ranges of special tokens, which hash as 0 and through which no later token sees
        (`ngram_exclude_sp_token`); empty where that rule is off.
    ignored_ids
        Ids that hash as 0 (`oe_ignored_token_ids`).
    """

    name: str
    provenance: str
    vocab_size: int
    hidden_size: int
    neighbours: int
    splits: int
    ratio: float
    eos_token: int
    special_ranges: tuple[tuple[int, int], ...] = ()
    ignored_ids: tuple[int, ...] = ()
    reduce: str | None = None

    def __post_init__(self) -> None:
        for found, least, most, what in (
            (self.neighbours, 2, MAX_ORDER, "emb_neighbor_num"),
            (self.splits, 1, 2**12, "emb_split_num"),
            (self.vocab_size, 1, 2**30, "vocab_size"),
            (self.hidden_size, 1, 2**20, "hidden_size"),
            (self.splits * (self.neighbours - 1), 1, min(MAX_COLUMNS, self.hidden_size), "number of tables"),
        ):
            check_range(self.name, what, found, least, most)
        if not 0 < self.ratio < 2**20:
            raise InvalidInput(f"{self.name}: ngram_vocab_size_ratio is {self.ratio}, expected more than 0")

    def resolve(self, layer_ids: Sequence[int] | None = None, *, vocabulary: Vocabulary | None = None) -> AddressSpec:
        """The spec with every constant derived; see `Recipe.resolve`."""
        _refuse_layers(self.name, layer_ids)
        orders = tuple(range(2, self.neighbours + 1))
        n_tables = self.splits * len(orders)
        sizes = [int(self.ratio * self.vocab_size + table * 2 + 1) for table in range(n_tables)]
        moduli = [sizes[start : start + self.splits] for start in range(0, n_tables, self.splits)]
        spec = AddressSpec(
            name=self.name,
            provenance=self.provenance,
            canonical_size=self.vocab_size,
            folded=False,
            mix=MixRule(family=Family.POLYNOMIAL),
            history=self._history(),
            orders=orders,
            layers=(concatenated(0, (self.vocab_size,), moduli),),
            row_width=self.hidden_size // n_tables,
            separate_heads=True,
            reduce=self.reduce,
        )
        return bind(spec, vocabulary)

    def _history(self) -> HistoryRule:
        if self.special_ranges:
            if not any(start <= self.eos_token < stop for start, stop in self.special_ranges):
                raise InvalidInput(
                    f"{self.name}: end of sequence {self.eos_token} is outside of special_token_scope "
                    f"{self.special_ranges}; whether it ends the history then is not published: make the spec by hand"
                )
            replaced = _merged(self.special_ranges)
            return HistoryRule(fill_id=0, boundary_ids=(0,), boundary_closed=True, replaced=replaced)
        replaced = _merged((token, token + 1) for token in self.ignored_ids)
        # An end of sequence that hashes as 0 is no longer found as a boundary.
        boundaries = () if self.eos_token in self.ignored_ids else (self.eos_token,)
        return HistoryRule(fill_id=0, boundary_ids=boundaries, replaced=replaced)


def _merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Half-open ranges ascending and apart."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(set(ranges)):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return tuple(merged)


@dataclass(frozen=True, kw_only=True)
class NanochatRecipe(Recipe):
    """One table for all orders, hashes and layers; every hash is a salted sum modulo one prime.

    Source: nanochat's pull request 854; the salts stand in its author's port to modded-nanogpt alone.

    Attributes
    ----------
    table_size
        `--engram-table-size`: the rows are the largest prime at most this.
    layer_ids
        Layers that each read their own slice of every row.
    rank
        Values that a layer reads from all rows of a token.
    hashes
        Per order (`--engram-order-weights`).
    """

    name: str
    provenance: str
    vocab_size: int
    table_size: int
    layer_ids: tuple[int, ...]
    rank: int
    orders: tuple[int, ...]
    hashes: tuple[int, ...]

    def __post_init__(self) -> None:
        check_range(self.name, "table_size", self.table_size, 3, 2**40)
        if not self.orders or len(self.hashes) != len(self.orders) or not set(self.orders) <= set(range(1, 5)):
            raise InvalidInput(
                f"{self.name}: orders {self.orders} with hashes {self.hashes}, expected orders of 1 to 4 (no "
                "coefficient of an older token is published) and a number of hashes for each"
            )
        check_range(self.name, "hashes of an order", min(self.hashes), 1, MAX_COLUMNS)
        check_range(self.name, "hashes of all orders", sum(self.hashes), 1, MAX_COLUMNS)
        if not self.layer_ids or self.rank % sum(self.hashes) or self.rank < 1:
            raise InvalidInput(
                f"{self.name}: rank {self.rank} with hashes {self.hashes} and layers {self.layer_ids}, expected a "
                "rank that is a multiple of the hashes together, and one layer or more"
            )

    def resolve(self, layer_ids: Sequence[int] | None = None, *, vocabulary: Vocabulary | None = None) -> AddressSpec:
        """The spec with every constant derived; see `Recipe.resolve`."""
        _refuse_layers(self.name, layer_ids)
        # As published: an even size is raised to the odd number above it first.
        n_rows = self.table_size | 1
        while not is_prime(n_rows):
            n_rows -= 2
        multipliers: list[int] = []
        for order_idx, (order, n_hashes) in enumerate(zip(self.orders, self.hashes, strict=True)):
            for hash_idx in range(n_hashes):
                salt = 1 + 97 * order_idx + 7919 * hash_idx
                multipliers.append(1_000_003 + salt * 2_654_435_761)
                multipliers += (older + salt * 40_503 for older in _NANOCHAT_OLDER[: order - 1])
        slice_width = self.rank // sum(self.hashes)
        layer = LayerAddressing(
            layer_id=0,
            multipliers=tuple(multipliers),
            moduli=tuple((n_rows,) * n_hashes for n_hashes in self.hashes),
            offsets=(0,) * sum(self.hashes),
            n_rows=n_rows,
        )
        spec = AddressSpec(
            name=self.name,
            provenance=self.provenance,
            canonical_size=self.vocab_size,
            folded=False,
            mix=MixRule(family=Family.SALTED_AFFINE),
            history=HistoryRule(fill_id=0),
            orders=self.orders,
            layers=(layer,),
            row_width=slice_width * len(self.layer_ids),
            slices=_slices(self.layer_ids, slice_width),
            reduce="the layer's slices of the rows concatenated, column after column",
        )
        return bind(spec, vocabulary)


_NANOCHAT_OLDER = (998_244_353, 911_382_323, 805_306_457)


@dataclass(frozen=True, kw_only=True)
class GemmaRecipe(Recipe):
    """One row a token, of which every layer reads a slice.

    Source: Gemma 3n and 4 in transformers. Ids past the table read row 0.

    Attributes
    ----------
    vocab_size
        Bound of the ids; may exceed the table's.
    table_size
        Rows (`vocab_size_per_layer_input`).
    slice_width
        Values of one layer (`hidden_size_per_layer_input`).
    """

    name: str
    provenance: str
    vocab_size: int
    table_size: int
    n_layers: int
    slice_width: int

    def __post_init__(self) -> None:
        for found, least, most, what in (
            (self.table_size, 1, 2**30, "vocab_size_per_layer_input"),
            (self.vocab_size, 1, 2**30, "vocab_size"),
            (self.n_layers, 1, 2**12, "num_hidden_layers"),
            (self.slice_width, 1, 2**20 // max(1, self.n_layers), "hidden_size_per_layer_input"),
        ):
            check_range(self.name, what, found, least, most)

    def resolve(self, layer_ids: Sequence[int] | None = None, *, vocabulary: Vocabulary | None = None) -> AddressSpec:
        """The spec with every constant derived; see `Recipe.resolve`."""
        _refuse_layers(self.name, layer_ids)
        spec = AddressSpec(
            name=self.name,
            provenance=self.provenance,
            canonical_size=self.vocab_size,
            folded=False,
            mix=MixRule(family=Family.IDENTITY),
            history=HistoryRule(
                fill_id=0,
                replaced=((self.table_size, self.vocab_size),) if self.vocab_size > self.table_size else (),
            ),
            orders=(1,),
            layers=(concatenated(0, (), [[self.table_size]]),),
            row_width=self.n_layers * self.slice_width,
            slices=_slices(range(self.n_layers), self.slice_width),
            reduce="the layer's slice, times the square root of its width",
        )
        return bind(spec, vocabulary)


def _slices(layer_ids: Iterable[int], width: int) -> tuple[RowSlice, ...]:
    return tuple(RowSlice(layer_id, place * width, (place + 1) * width) for place, layer_id in enumerate(layer_ids))


def _refuse_layers(name: str, layer_ids: Sequence[int] | None) -> None:
    if layer_ids is not None:
        raise InvalidInput(f"{name}: its layers are known; leave out --layers")
