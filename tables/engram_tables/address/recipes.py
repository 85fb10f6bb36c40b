"""Where specs come from: presets, a model's config.json, flags, files.

A recipe derives the constants that no checkpoint holds. Source: DeepSeek's published engram code, held against the
constants that its releases publish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from engram_tables.address.primes import next_prime
from engram_tables.address.random_stream import Pcg64
from engram_tables.address.spec import AddressSpec, LayerAddressing, read_json, read_spec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.units import int_from_json

_LAYER_SEED_STEP = 10007
_INT64_MAX = 2**63 - 1

V4_VOCAB_SHA256 = "c60a86322ec17b4142bfef3c57a8d81fb428550cdf487f88a4320cb59fe46481"
V3_VOCAB_SHA256 = "cd48cb62d9cca1baaf08d9e7795ad3d4c22b6c56f0f070178b9e3a52694ea930"
# Vocabularies whose map is published: in both, raw pad id 2 maps to canonical id 2.
_PUBLISHED_VOCABULARIES = {99_092: V4_VOCAB_SHA256, 98_627: V3_VOCAB_SHA256}
_PUBLISHED_FILL = {2: 2}


@dataclass(frozen=True, kw_only=True)
class DeepSeekRecipe:
    """What the constants of a DeepSeek-style table are derived from.

    Attributes
    ----------
    canonical_size
        Size of the compressed vocabulary; the multipliers depend on it.
    bases
        Per order: the primes of its heads are at least this large.
    layer_ids
        None where they are not certain: sizes can be told, rows cannot.
    n_layers
        Number of layers, known even where their ids are not.
    fill_id
        Canonical id of the padding token.
    """

    name: str
    provenance: str
    canonical_size: int
    orders: tuple[int, ...]
    heads: int
    bases: tuple[int, ...]
    layer_ids: tuple[int, ...] | None
    n_layers: int
    fill_id: int
    row_width: int | None = None
    seed: int = 0
    vocab_sha256: str | None = None

    def __post_init__(self) -> None:
        for found, least, most, what in (
            (self.heads, 1, 2**12, "heads"),
            (self.n_layers, 1, 2**12, "layers"),
            (self.canonical_size, 1, 2**30, "canonical_size"),
            (len(self.orders), 1, 16, "number of orders"),
            (max(self.orders, default=0), 1, 16, "largest order"),
            (self.heads * self.n_layers * len(self.orders), 1, 2**16, "columns of all layers"),
            (min(self.bases, default=0), 2, 2**40, "rows a head"),
            (max(self.bases, default=0), 2, 2**40, "rows a head"),
        ):
            if not least <= found <= most:
                raise InvalidInput(f"{self.name}: {what} is {found}, expected {least} to {most}")
        if len(self.bases) != len(self.orders):
            raise InvalidInput(f"{self.name}: {len(self.bases)} base sizes, expected {len(self.orders)}, one an order")

    def moduli(self) -> list[list[list[int]]]:
        """Primes per layer, order and head: the smallest unused ones from each order's base on."""
        used: set[int] = set()
        layers = []
        for _ in range(self.n_layers):
            layers.append([self._head_primes(base, used) for base in self.bases])
        return layers

    def _head_primes(self, base: int, used: set[int]) -> list[int]:
        primes, last = [], base - 1
        for _ in range(self.heads):
            last = next_prime(last, unless_in=used)
            used.add(last)
            primes.append(last)
        return primes

    def multipliers(self, layer_id: int) -> tuple[int, ...]:
        """Odd multipliers of one layer, one a look-back: no product with a canonical id passes 2^63."""
        bound = max(1, _INT64_MAX // self.canonical_size // 2)
        stream = Pcg64(self.seed + _LAYER_SEED_STEP * layer_id)
        return tuple(2 * stream.integers_below(bound) + 1 for _ in range(max(self.orders)))

    def resolve(self, layer_ids: Sequence[int] | None = None) -> AddressSpec:
        """The spec with every constant derived; InvalidInput where the layer ids are not known."""
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
        layers = []
        for layer_id, moduli in zip(ids, self.moduli(), strict=True):
            flat = [modulus for heads in moduli for modulus in heads]
            ends = list(accumulate(flat))
            layers.append(
                LayerAddressing(
                    layer_id=layer_id,
                    multipliers=self.multipliers(layer_id),
                    moduli=tuple(tuple(heads) for heads in moduli),
                    offsets=(0, *ends[:-1]),
                    n_rows=ends[-1],
                )
            )
        return AddressSpec(
            name=self.name,
            provenance=self.provenance,
            canonical_size=self.canonical_size,
            fill_id=self.fill_id,
            orders=self.orders,
            layers=tuple(layers),
            row_width=self.row_width,
            vocab_sha256=self.vocab_sha256,
        )


def _paper_recipe(name: str, rows_per_head: int) -> DeepSeekRecipe:
    return DeepSeekRecipe(
        name=name,
        provenance="arXiv 2601.07372, Table 5; layer ids uncertain",
        canonical_size=98_627,
        orders=(2, 3),
        heads=8,
        bases=(rows_per_head, rows_per_head),
        layer_ids=None,
        n_layers=2,
        fill_id=2,
        row_width=80,
        vocab_sha256=V3_VOCAB_SHA256,
    )


PRESETS: dict[str, DeepSeekRecipe] = {
    recipe.name: recipe
    for recipe in (
        DeepSeekRecipe(
            name="deepseek-v4.1-flash",
            provenance="config.json of DeepSeek-V4.1-Flash",
            canonical_size=99_092,
            orders=(2, 3, 4),
            heads=8,
            bases=(16_000_000,) * 3,
            layer_ids=(1, 14),
            n_layers=2,
            fill_id=2,
            row_width=256,
            vocab_sha256=V4_VOCAB_SHA256,
        ),
        DeepSeekRecipe(
            name="engram-demo",
            provenance="engram_demo_v1.py of deepseek-ai/Engram",
            canonical_size=98_627,
            orders=(2, 3),
            heads=8,
            bases=(646_400, 646_400),
            layer_ids=(1, 15),
            n_layers=2,
            fill_id=2,
            row_width=64,
            vocab_sha256=V3_VOCAB_SHA256,
        ),
        _paper_recipe("engram-27b", 2_262_400),
        _paper_recipe("engram-40b", 7_239_680),
    )
}


def load_spec(path_or_preset: str | Path, *, layers: Sequence[int] | None = None) -> AddressSpec:
    """The spec of a preset's name, or in a .json or .npz file that `engram spec` wrote.

    Parameters
    ----------
    layers
        Layer ids, for a preset whose ids are not certain.

    Raises
    ------
    InvalidInput
        Neither a preset nor a file, or a file that is no spec.
    """
    if str(path_or_preset) in PRESETS:
        return PRESETS[str(path_or_preset)].resolve(layers)
    path = Path(path_or_preset)
    if not path.is_file():
        raise InvalidInput(f"{path}: neither a file nor a preset; the presets are {', '.join(PRESETS)}")
    if layers is not None:
        raise InvalidInput(f"{path}: a spec file names its layers itself; leave out --layers")
    return read_spec(path)


def spec_from_config(config: Path, *, vocabulary: Vocabulary | None = None) -> AddressSpec:
    """The spec of a model's config.json: the Hugging Face form (under `text_config`) or the flat inference form.

    Parameters
    ----------
    vocabulary
        Maps the config's padding token to its canonical id. Without one, only the two published vocabularies are known.

    Raises
    ------
    InvalidInput
        A key is missing or contradicts another one.
    SpecMismatch
        The derived row counts differ from those the config states.
    """
    data = read_json(config)
    recipe = _recipe_from_config(data, str(config), vocabulary)
    spec = recipe.resolve()
    stated = _config_integers(_engram_section(data, str(config)), "engram_num_embeddings", str(config))
    derived = [layer.n_rows for layer in spec.layers]
    if stated is not None and stated != derived:
        raise SpecMismatch(
            f"{config}: engram_num_embeddings states {stated} rows, its other keys derive {derived}; "
            "one of them was changed"
        )
    return spec if vocabulary is None else spec.with_vocabulary(vocabulary)


def _engram_section(data: Any, where: str) -> Mapping[str, Any]:
    for section in (data, data.get("text_config") if isinstance(data, dict) else None):
        if isinstance(section, dict) and "engram_layer_ids" in section:
            return section
    raise InvalidInput(f"{where}: no engram_layer_ids, at the top or in text_config; is it the config of such a model?")


def _recipe_from_config(data: Any, where: str, vocabulary: Vocabulary | None) -> DeepSeekRecipe:
    section = _engram_section(data, where)

    def integer(*names: str) -> int:
        for name in names:
            if name in section:
                return int_from_json(section[name], f"{where}: {name}")
        raise InvalidInput(f"{where}: no key {' or '.join(names)}, expected an integer")

    layer_ids = _config_integers(section, "engram_layer_ids", where) or []
    max_order = integer("engram_max_ngram_size")
    if not 2 <= max_order <= 16:
        raise InvalidInput(f"{where}: engram_max_ngram_size is {max_order}, expected 2 to 16")
    orders = tuple(range(2, max_order + 1))
    canonical_size = integer("engram_compressed_vocab_size")
    pad_token = integer("engram_pad_token_id", "engram_pad_id")
    return DeepSeekRecipe(
        name=Path(where).name if not isinstance(section.get("_name_or_path"), str) else section["_name_or_path"],
        provenance=f"config {Path(where).name}",
        canonical_size=canonical_size,
        orders=orders,
        heads=integer("engram_n_heads"),
        bases=(integer("engram_vocab_size"),) * len(orders),
        layer_ids=tuple(layer_ids),
        n_layers=len(layer_ids),
        fill_id=canonical_fill(pad_token, canonical_size, vocabulary, where),
        row_width=integer("engram_head_dim"),
        seed=integer("engram_seed") if "engram_seed" in section else 0,
        vocab_sha256=_PUBLISHED_VOCABULARIES.get(canonical_size),
    )


def canonical_fill(pad_token: int, canonical_size: int, vocabulary: Vocabulary | None, where: str) -> int:
    """Canonical id of the padding token, from the vocabulary or from the published ones; never guessed."""
    if vocabulary is not None:
        return int(vocabulary.canonical([pad_token])[0])
    if canonical_size in _PUBLISHED_VOCABULARIES and pad_token in _PUBLISHED_FILL:
        return _PUBLISHED_FILL[pad_token]
    raise InvalidInput(
        f"{where}: padding token {pad_token} is a token id, and the vocabulary of {canonical_size:,} canonical ids is "
        "none of the published ones; give --vocab, so that its canonical id is known"
    )


def _config_integers(section: Mapping[str, Any], key: str, where: str) -> list[int] | None:
    if key not in section:
        return None
    if not isinstance(section[key], list):
        raise InvalidInput(f"{where}: {key} is {section[key]!r}, expected a list of integers")
    return [int_from_json(value, f"{where}: {key}") for value in section[key]]


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
    """A recipe of one's own.

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
        vocab_sha256=vocabulary.map_sha256,
    )


def gguf_key_values(
    spec: AddressSpec, *, arch: str = "deepseek41", vocabulary: Vocabulary | None = None
) -> dict[str, Any]:
    """The GGUF metadata of both public spellings, as {spelling: {key: {"type", "value"}}}.

    Integers past 2^53 and all u64 values are decimal strings, since many writers read JSON numbers as doubles. The
    token map is given with a vocabulary alone.
    """
    for found, expected in (
        (f"orders {spec.orders}", spec.orders == tuple(range(2, spec.max_order + 1)) or "2 up to the largest"),
        (f"heads {spec.heads}", len(set(spec.heads)) == 1 or "as many for each order"),
        (f"row width {spec.row_width}", spec.row_width is not None or "a number"),
        (f"{max(layer.n_rows for layer in spec.layers):,} rows",
         all(layer.n_rows < 2**32 for layer in spec.layers) or "less than 2^32 a layer"),
    ):  # fmt: skip
        if expected is not True:
            raise InvalidInput(
                f"spec {spec.name}: found {found}, expected {expected}: GGUF has no key for it; use JSON"
            )
    prefix = f"{arch}.engram"
    flat = [[modulus for heads in layer.moduli for modulus in heads] for layer in spec.layers]
    multipliers = [str(multiplier) for layer in spec.layers for multiplier in layer.multipliers]
    primes = [modulus for layer in flat for modulus in layer]
    token_map = [] if vocabulary is None else vocabulary.canonical_ids.tolist()

    def typed(**entries: tuple[str, Any]) -> dict[str, Any]:
        return {f"{prefix}.{key}": {"type": kind, "value": value} for key, (kind, value) in entries.items()}

    # The encoding is the only one published, and belongs to rows of 256 values.
    encoding = {"encoding": ("string", "e4m3_e8m0_32_row264")} if spec.row_width == 256 else {}
    ds4 = typed(
        **encoding,
        layer_ids=("u32[]", list(spec.layer_ids)),
        rows=("u32[]", [layer.n_rows for layer in spec.layers]),
        compressed_vocab_size=("u32", spec.canonical_size),
        pad_id=("u32", spec.fill_id),
        primes=("u32[]", primes),
        multipliers=("u64[]", multipliers),
    )
    llama_cpp = typed(
        layer_ids=("u32[]", list(spec.layer_ids)),
        head_count=("u32", spec.heads[0]),
        key_length=("u32", spec.row_width),
        max_ngram_size=("u32", spec.max_order),
        multipliers=("u64[]", multipliers),
        primes=("u64[]", [str(prime) for prime in primes]),
        offsets=("u64[]", [str(offset) for layer in spec.layers for offset in layer.offsets]),
        pad_id=("u32", spec.fill_id),
    )
    if vocabulary is not None:
        ds4 |= typed(token_map=("u32[]", token_map))
        llama_cpp |= typed(token_map=("i32[]", token_map))
    return {"ds4": ds4, "llama.cpp": llama_cpp}
