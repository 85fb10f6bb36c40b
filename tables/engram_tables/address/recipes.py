"""How the constants of each family are derived: what no checkpoint holds, or what its arrays are checked against.

Every recipe states where its rule was read. `presets.py` names the published ones, `configs.py` reads them from a
model's config.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil

from engram_tables.address.primes import next_prime
from engram_tables.address.random_stream import Pcg64
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, LayerAddressing, MixRule
from engram_tables.address.spec_checks import MAX_ORDER
from engram_tables.address.vocabulary import Rule, Vocabulary
from engram_tables.errors import InvalidInput

LAYER_SEED_STEP = 10007
INT64_MAX = 2**63 - 1
MAX_COLUMNS = 2**13


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """The sizes of a spec, known even where its constants are not.

    Attributes
    ----------
    heads
        Per order.
    layer_ids
        Decoder layers that read rows; None where they are not certain.
    rows_per_table
        One table a layer, or one for all of them.
    """

    family: Family
    orders: tuple[int, ...]
    heads: tuple[int, ...]
    layer_ids: tuple[int, ...] | None
    rows_per_table: tuple[int, ...]
    row_width: int | None

    @property
    def n_rows(self) -> int:
        """Rows of all tables."""
        return sum(self.rows_per_table)

    @property
    def rows_per_token(self) -> int:
        """Rows read for one token from all tables."""
        return sum(self.heads) * len(self.rows_per_table)


class Recipe(ABC):
    """What the constants of a spec are derived from."""

    name: str
    provenance: str

    @abstractmethod
    def resolve(self, layer_ids: Sequence[int] | None = None, *, vocabulary: Vocabulary | None = None) -> AddressSpec:
        """The spec with every constant derived.

        Parameters
        ----------
        layer_ids
            For recipes whose layers are not certain.
        vocabulary
            Bound to the spec; gives the vocabulary's size where the recipe does not know it.

        Raises
        ------
        InvalidInput
            What is needed to derive a constant is not known, or no such table can be.
        """

    def outline(self) -> Outline:
        """Sizes alone; cheaper than `resolve`, and possible where that is not."""
        spec = self.resolve()
        return Outline(
            family=spec.mix.family,
            orders=spec.orders,
            heads=spec.heads,
            layer_ids=tuple(piece.layer_id for piece in spec.slices) or spec.layer_ids,
            rows_per_table=tuple(layer.n_rows for layer in spec.layers),
            row_width=spec.row_width,
        )


def check_range(name: str, what: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        raise InvalidInput(f"{name}: {what} is {found}, expected {least:,} to {most:,}; correct it at its source")


def concatenated(
    layer_id: int, multipliers: Sequence[int], moduli: Sequence[Sequence[int]], *, divisor: int = 1
) -> LayerAddressing:
    """A layer whose heads follow one another, padded to a multiple of `divisor` rows."""
    ends = list(accumulate(modulus for heads in moduli for modulus in heads))
    return LayerAddressing(
        layer_id=layer_id,
        multipliers=tuple(multipliers),
        moduli=tuple(tuple(heads) for heads in moduli),
        offsets=(0, *ends[:-1]),
        n_rows=ceil(ends[-1] / divisor) * divisor if divisor > 1 else ends[-1],
    )


def pcg64_multipliers(canonical_size: int, n_multipliers: int, *, seed: int) -> tuple[int, ...]:
    """DeepSeek's odd multipliers from NumPy's generator of a seed: no product with a canonical id passes 2^63."""
    bound = max(1, INT64_MAX // canonical_size // 2)
    stream = Pcg64(seed)
    return tuple(2 * stream.integers_below(bound) + 1 for _ in range(n_multipliers))


def bind(spec: AddressSpec, vocabulary: Vocabulary | None) -> AddressSpec:
    return spec if vocabulary is None else spec.with_vocabulary(vocabulary)


@dataclass(frozen=True, kw_only=True)
class DeepSeekRecipe(Recipe):
    """Unused primes from a base on, restarted for each order; seeded odd multipliers by layer id.

    Source: DeepSeek's engram demo and V4.1's reference code; engram-peft, which mixes oldest token first with a lag.

    Attributes
    ----------
    canonical_size
        Size of the compressed vocabulary, on which the multipliers depend; None where a vocabulary must tell it and
        the fill.
    bases
        Per order: the primes of its heads are at least this large.
    layer_ids
        In the order in which they take their primes; None where they are not certain.
    n_layers
        Number of layers, known even where their ids are not.
    fill_id
        Canonical id of the padding token; None where a vocabulary must map `pad_token`, a token id.
    """

    name: str
    provenance: str
    canonical_size: int | None
    orders: tuple[int, ...]
    heads: int
    bases: tuple[int, ...]
    layer_ids: tuple[int, ...] | None
    n_layers: int
    fill_id: int | None
    pad_token: int | None = None
    row_width: int | None = None
    seed: int = 0
    folded: bool = True
    vocab_sha256: str | None = None
    mix: MixRule = field(default_factory=MixRule)

    def __post_init__(self) -> None:
        for found, least, most, what in (
            (self.heads, 1, 2**12, "heads"),
            (self.n_layers, 1, 2**12, "layers"),
            (1 if self.canonical_size is None else self.canonical_size, 1, 2**30, "canonical_size"),
            (len(self.orders), 1, MAX_ORDER, "number of orders"),
            (max(self.orders, default=0), 1, MAX_ORDER, "largest order"),
            (self.heads * self.n_layers * len(self.orders), 1, MAX_COLUMNS, "columns of all layers"),
            (min(self.bases, default=0), 2, 2**40, "rows a head"),
            (max(self.bases, default=0), 2, 2**40, "rows a head"),
        ):
            check_range(self.name, what, found, least, most)
        if len(self.bases) != len(self.orders):
            raise InvalidInput(f"{self.name}: {len(self.bases)} base sizes, expected {len(self.orders)}, one an order")

    def outline(self) -> Outline:
        return Outline(
            family=Family.XOR_MULTIPLY,
            orders=self.orders,
            heads=(self.heads,) * len(self.orders),
            layer_ids=self.layer_ids,
            rows_per_table=tuple(sum(map(sum, layer)) for layer in self.moduli()),
            row_width=self.row_width,
        )

    def moduli(self) -> list[list[list[int]]]:
        """Primes per layer, order and head: the smallest unused ones from each order's base on."""
        used: set[int] = set()
        # Every prime from a base to the last one found from it is used.
        last = {base: base - 1 for base in self.bases}
        layers = []
        for _ in range(self.n_layers):
            orders = []
            for base in self.bases:
                primes = []
                for _ in range(self.heads):
                    last[base] = next_prime(last[base], unless_in=used)
                    used.add(last[base])
                    primes.append(last[base])
                orders.append(primes)
            layers.append(orders)
        return layers

    def multipliers(self, layer_id: int, canonical_size: int) -> tuple[int, ...]:
        """Odd multipliers of one layer, one a look-back."""
        return pcg64_multipliers(canonical_size, max(self.orders), seed=self.seed + LAYER_SEED_STEP * layer_id)

    def resolve(self, layer_ids: Sequence[int] | None = None, *, vocabulary: Vocabulary | None = None) -> AddressSpec:
        """The spec with every constant derived; see `Recipe.resolve`."""
        ids = self._certain_layers(layer_ids)
        canonical_size, fill_id = self._size_and_fill(vocabulary)
        layers = (
            concatenated(layer_id, self.multipliers(layer_id, canonical_size), moduli)
            for layer_id, moduli in zip(ids, self.moduli(), strict=True)
        )
        spec = AddressSpec(
            name=self.name,
            provenance=self.provenance,
            canonical_size=canonical_size,
            folded=self.folded,
            mix=self.mix,
            history=HistoryRule(fill_id=fill_id),
            orders=self.orders,
            layers=tuple(layers),
            row_width=self.row_width,
            reduce="rows concatenated, column after column",
            vocab_sha256=self.vocab_sha256,
        )
        return bind(spec, vocabulary)

    def _size_and_fill(self, vocabulary: Vocabulary | None) -> tuple[int, int]:
        if self.canonical_size is not None and self.fill_id is not None:
            return self.canonical_size, self.fill_id
        if vocabulary is None or self.pad_token is None:
            raise InvalidInput(
                f"{self.name}: its multipliers depend on the size of the model's own compressed vocabulary, and its "
                "fill on the map; give --vocab, or the config that was saved with the adapter"
            )
        return vocabulary.canonical_size, int(vocabulary.canonical([self.pad_token])[0])

    def _certain_layers(self, layer_ids: Sequence[int] | None) -> tuple[int, ...]:
        ids = tuple(layer_ids) if layer_ids is not None else self.layer_ids
        if ids is None:
            raise InvalidInput(
                f"{self.name}: its layer ids are not certain (the paper says 2 and 15, its demo 1 and 15), and the "
                "multipliers depend on them; name them, for instance --layers 1,15"
            )
        if self.layer_ids is not None and ids != self.layer_ids:
            raise InvalidInput(f"{self.name}: found layers {ids}, expected {self.layer_ids}: these are published")
        if len(ids) != self.n_layers:
            raise InvalidInput(f"{self.name}: found {len(ids)} layer ids, expected {self.n_layers}")
        return ids


def make_recipe(
    vocabulary: Vocabulary,
    *,
    name: str,
    orders: Sequence[int],
    heads: int,
    rows_per_head: Sequence[int],
    layer_ids: Sequence[int],
    row_width: int,
    pad_token: int,
    seed: int = 0,
) -> DeepSeekRecipe:
    """A recipe of one's own, by DeepSeek's rules.

    Parameters
    ----------
    rows_per_head
        Smallest modulus of a head: one number, or one per order.
    pad_token
        Token id, mapped through the vocabulary.
    """
    bases = tuple(rows_per_head) if len(rows_per_head) != 1 else tuple(rows_per_head) * len(orders)
    return DeepSeekRecipe(
        name=name,
        provenance="made by engram spec make",
        canonical_size=vocabulary.canonical_size,
        orders=tuple(orders),
        heads=heads,
        bases=bases,
        layer_ids=tuple(layer_ids),
        n_layers=len(layer_ids),
        fill_id=int(vocabulary.canonical([pad_token])[0]),
        row_width=row_width,
        seed=seed,
        folded=vocabulary.rule is not Rule.IDENTITY,
        vocab_sha256=vocabulary.map_sha256,
    )
