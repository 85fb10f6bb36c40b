"""A recipe from a model's config.json, whatever its family. Keys that contradict each other are refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from engram_tables.address.presets import V3_VOCAB_SHA256, V4_VOCAB_SHA256
from engram_tables.address.recipes import DeepSeekRecipe, Recipe
from engram_tables.address.relatives import GemmaRecipe, LongCatRecipe, NanochatRecipe, QwenRecipe
from engram_tables.address.spec import AddressSpec, MixRule
from engram_tables.address.spec_files import read_json_file
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.byte_files import ByteFile, as_file
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.units import int_from_json

# Vocabularies whose map is published: in both, raw pad id 2 maps to canonical id 2.
_PUBLISHED_VOCABULARIES = {99_092: V4_VOCAB_SHA256, 98_627: V3_VOCAB_SHA256}
_PUBLISHED_FILL = {2: 2}
_MAX_SPECIAL_RANGES = 4096
_SMALL_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")


class _Asked(NamedTuple):
    """What the caller knows beside the config."""

    vocabulary: Vocabulary | None
    eos: int | None


class _Section:
    """The part of a config that holds a family's keys, and which of them were asked for."""

    def __init__(self, values: Mapping[str, Any], file: ByteFile) -> None:
        self.values, self.file, self.where = values, file, file.where
        self.asked = {"eos_token_id", "special_token_scope", "engine", "table_spec"}

    def __contains__(self, key: str) -> bool:
        self.asked.add(key)
        return self.values.get(key) is not None

    def _find(self, keys: tuple[str, ...], expected: str) -> tuple[str, Any]:
        present = [key for key in keys if key in self]
        if not present:
            raise InvalidInput(f"{self.where}: no key {' or '.join(keys)}, expected {expected}")
        found = {key: self.values[key] for key in present}
        if len({repr(value) for value in found.values()}) > 1:
            raise SpecMismatch(f"{self.where}: {found} are spellings of one value and differ; one of them was changed")
        return present[0], found[present[0]]

    def integer(self, *keys: str, default: int | None = None) -> int:
        if default is not None and not any(key in self for key in keys):
            return default
        key, value = self._find(keys, "an integer")
        return int_from_json(value, f"{self.where}: {key}")

    def integers(self, *keys: str) -> list[int]:
        key, values = self._find(keys, "a list of integers")
        if not isinstance(values, list):
            raise InvalidInput(f"{self.where}: {key} is {values!r}, expected a list of integers")
        return [int_from_json(value, f"{self.where}: {key}") for value in values]

    def number(self, *keys: str) -> float:
        key, value = self._find(keys, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInput(f"{self.where}: {key} is {value!r}, expected a number")
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        if key in self and not isinstance(self.values[key], bool):
            raise InvalidInput(f"{self.where}: {key} is {self.values[key]!r}, expected true or false")
        return bool(self.values[key]) if key in self else default

    def name(self) -> str:
        """What the config calls the model, or the directory that it lies in."""
        stated = self.values.get("_name_or_path")
        if isinstance(stated, str) and stated:
            return stated
        return self.file.folder().name if self.file.name == "config.json" else PurePosixPath(self.file.name).stem

    def provenance(self) -> str:
        return self.file.name

    def eos(self, asked: _Asked, parent: Mapping[str, Any]) -> int:
        """The end of sequence that the hash uses; a list is a question for the caller, never for a guess."""
        holder = self.values if self.values.get("eos_token_id") is not None else parent
        stated = holder.get("eos_token_id")
        if isinstance(stated, list):
            ids = [int_from_json(value, f"{self.where}: eos_token_id") for value in stated]
            if asked.eos is None and len(set(ids)) == 1:
                return ids[0]
            if asked.eos is None:
                raise InvalidInput(
                    f"{self.where}: eos_token_id is {ids}, expected one id: transformers hashes with the first of a "
                    "list, the llama.cpp converter with the last; ask who trained the model, and name it with --eos"
                )
            if asked.eos not in ids:
                raise SpecMismatch(f"{self.where}: --eos {asked.eos} is none of its eos_token_id {ids}")
            return asked.eos
        if stated is None:
            if asked.eos is None:
                raise InvalidInput(
                    f"{self.where}: no eos_token_id, where the hash ends its history; name it with --eos"
                )
            return asked.eos
        one = int_from_json(stated, f"{self.where}: eos_token_id")
        if asked.eos not in (None, one):
            raise SpecMismatch(f"{self.where}: eos_token_id is {one}, --eos says {asked.eos}; leave out --eos")
        return one


def spec_from_config(
    config: ByteFile | Path, *, vocabulary: Vocabulary | None = None, eos: int | None = None
) -> AddressSpec:
    """The spec of a model's config.json, its keys at the top or in `text_config`.

    Parameters
    ----------
    config
        Of DeepSeek-V4.1 (Hugging Face or inference form), Qwen (PLE), LongCat, Gemma 3n and 4, engram-peft (with the
        `compression_config.json` beside it) or nanochat's launch flags as JSON.
    vocabulary
        Maps a padding token to its canonical id. Without one, only the two published vocabularies are known.
    eos
        The end of sequence, where the config holds a list or none.

    Raises
    ------
    InvalidInput
        No family that is known; a key is missing or of another type; an end of sequence that would have to be guessed.
    SpecMismatch
        Keys contradict each other or the vocabulary.
    """
    file = as_file(config)
    data = read_json_file(file)
    if not isinstance(data, dict):
        raise InvalidInput(f"{file.where}: found {type(data).__name__}, expected a JSON object")
    nested = data.get("text_config")
    sections = [data, *([nested] if isinstance(nested, dict) else [])]
    found = [
        (family, values) for family in _FAMILIES for values in sections if any(key in values for key in family.keys)
    ]
    if found:
        family, *holders = _only_one(found, file.where)
        section = _Section(holders[0], file)
        recipe = family.read(section, data, _Asked(vocabulary, eos))
        for other in holders[1:]:
            _check_other_section(section, other)
        spec = recipe.resolve(vocabulary=vocabulary)
        _check_stated_rows(section, spec)
        return spec
    known = "; ".join(f"{family.name} ({', '.join(family.keys)})" for family in _FAMILIES)
    stated = f"model_type {data['model_type']!r}" if "model_type" in data else "no model_type"
    raise InvalidInput(
        f"{file.where}: found {stated} and no key of a family that is known, expected one of {known}; is it the config "
        "of a model with such tables?"
    )


def _only_one(
    found: Sequence[tuple[_FamilyReader, Mapping[str, Any]]], where: str
) -> tuple[_FamilyReader, *tuple[Mapping[str, Any], ...]]:
    """The family that a config's keys name, and the sections that hold them; SpecMismatch where they name two."""
    stated = [entry for entry in found if any(entry[1].get(key) is not None for key in entry[0].keys)] or found
    names = list(dict.fromkeys(family.name for family, _ in stated))
    if len(names) > 1:
        raise SpecMismatch(f"{where}: it holds keys of {' and of '.join(names)}, expected those of one family")
    return (stated[0][0], *(values for _, values in stated))


def _check_other_section(section: _Section, inner: Mapping[str, Any]) -> None:
    """What was read at the top must stand alike in `text_config`; keys that nothing asked for may differ."""
    for key in sorted(section.asked & section.values.keys() & inner.keys()):
        if section.values[key] != inner[key]:
            raise SpecMismatch(
                f"{section.where}: {key} is {section.values[key]!r} at the top and {inner[key]!r} in text_config, "
                "expected one value; one of them was changed"
            )


def _check_stated_rows(section: _Section, spec: AddressSpec) -> None:
    if "engram_num_embeddings" not in section:
        return
    stated, derived = section.integers("engram_num_embeddings"), [layer.n_rows for layer in spec.layers]
    if stated != derived:
        raise SpecMismatch(
            f"{section.where}: engram_num_embeddings states {stated} rows, its other keys derive {derived}; "
            "one of them was changed"
        )


def _deepseek(section: _Section, parent: Mapping[str, Any], asked: _Asked) -> Recipe:
    layer_ids = section.integers("engram_layer_ids")
    max_order = section.integer("engram_max_ngram_size")
    if not 2 <= max_order <= 16:
        raise InvalidInput(f"{section.where}: engram_max_ngram_size is {max_order}, expected 2 to 16")
    orders = tuple(range(2, max_order + 1))
    canonical_size = section.integer("engram_compressed_vocab_size")
    pad_token = section.integer("engram_pad_token_id", "engram_pad_id")
    return DeepSeekRecipe(
        name=section.name(),
        provenance=section.provenance(),
        canonical_size=canonical_size,
        orders=orders,
        heads=section.integer("engram_n_heads"),
        bases=(section.integer("engram_vocab_size"),) * len(orders),
        layer_ids=tuple(layer_ids),
        n_layers=len(layer_ids),
        fill_id=canonical_fill(pad_token, canonical_size, asked.vocabulary, section.where),
        row_width=section.integer("engram_head_dim"),
        seed=section.integer("engram_seed", default=0),
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


def _qwen(section: _Section, parent: Mapping[str, Any], asked: _Asked) -> Recipe:
    one_based = sorted(set(section.integers("ple_layer_ids")))
    if not one_based or one_based[0] < 1:
        raise InvalidInput(f"{section.where}: ple_layer_ids is {one_based}, expected layers counted from 1")
    max_order = section.integer("ngram_size", default=3)
    heads = section.integer("heads_per_ngram", default=8)
    width = section.integer("ple_embed_dim" if "ple_embed_dim" in section else "hidden_size")
    n_columns = (max_order - 1) * heads
    if not 2 <= max_order <= 16 or heads < 1 or width % n_columns:
        raise InvalidInput(
            f"{section.where}: ngram_size {max_order}, heads_per_ngram {heads}, ple_embed_dim {width}, expected 2 to "
            "16, 1 or more, and a width that the heads of all orders divide"
        )
    return QwenRecipe(
        name=section.name(),
        provenance=section.provenance(),
        vocab_size=section.integer("vocab_size"),
        orders=tuple(range(2, max_order + 1)),
        heads=heads,
        base=section.integer("ngram_vocab_size_base", default=20_000_000),
        divisor=section.integer("make_ngram_vocab_size_divisible_by", default=128),
        layer_ids=tuple(layer - 1 for layer in one_based),
        eos_token=section.eos(asked, parent),
        row_width=width // n_columns,
        seed=section.integer("seed", default=1234),
    )


def _longcat(section: _Section, parent: Mapping[str, Any], asked: _Asked) -> Recipe:
    vocab_size = section.integer("vocab_size")
    if section.integer("text_vocab_size", default=vocab_size) != vocab_size:
        raise InvalidInput(
            f"{section.where}: text_vocab_size differs from vocab_size {vocab_size}: how ids of other media are hashed "
            "is not published; export a spec of another model and change its constants by hand"
        )
    exclude = section.flag("ngram_exclude_sp_token")
    if exclude and section.values.get("oe_ignored_token_ids"):
        raise InvalidInput(
            f"{section.where}: ngram_exclude_sp_token and oe_ignored_token_ids are both set, expected one of them: how "
            "the two go together is not published; make the spec by hand"
        )
    splits, neighbours = (
        section.integer("emb_split_num", "oe_split_num"),
        section.integer("emb_neighbor_num", "oe_neighbor_num"),
    )
    n_vectors = 1 + splits * (neighbours - 1)
    divided = f"the square root of {n_vectors}" if section.flag("ngram_fix_normalize_factor") else str(n_vectors)
    return LongCatRecipe(
        name=section.name(),
        provenance=section.provenance(),
        vocab_size=vocab_size,
        hidden_size=section.integer("hidden_size"),
        neighbours=neighbours,
        splits=splits,
        ratio=section.number("ngram_vocab_size_ratio", "oe_vocab_size_ratio"),
        eos_token=section.eos(asked, parent),
        special_ranges=_special_ranges(section) if exclude else (),
        ignored_ids=()
        if exclude or "oe_ignored_token_ids" not in section
        else tuple(section.integers("oe_ignored_token_ids")),
        # The `oe_` spellings belong to models whose rule of reduction is not published.
        reduce=f"the token embedding and the projected rows, summed and divided by {divided}"
        if "emb_neighbor_num" in section
        else None,
    )


def _special_ranges(section: _Section) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of `special_token_scope`, a text like "0:4,36:55"."""
    scope = section.values.get("special_token_scope")
    parts = scope.split(",") if isinstance(scope, str) and scope else []
    bounds = [part.strip().split(":") for part in parts]
    if not parts or any(len(pair) != 2 or not all(_SMALL_NUMBER.fullmatch(end) for end in pair) for pair in bounds):
        raise InvalidInput(
            f"{section.where}: special_token_scope is {scope!r}, expected half-open ranges such as '0:4,36:55' beside "
            "ngram_exclude_sp_token"
        )
    ranges = sorted((int(start), int(stop)) for start, stop in bounds)
    if any(start >= stop for start, stop in ranges) or len(ranges) > _MAX_SPECIAL_RANGES:
        raise InvalidInput(f"{section.where}: special_token_scope is {scope!r}, expected ranges that hold an id each")
    return tuple(ranges)


def _gemma(section: _Section, parent: Mapping[str, Any], asked: _Asked) -> Recipe:
    slice_width = section.integer("hidden_size_per_layer_input")
    if slice_width == 0:
        raise InvalidInput(
            f"{section.where}: hidden_size_per_layer_input is 0: this model has no per-layer embeddings, so no table"
        )
    table_size = section.integer("vocab_size_per_layer_input")
    return GemmaRecipe(
        name=section.name(),
        provenance=section.provenance(),
        vocab_size=section.integer("vocab_size", default=table_size),
        table_size=table_size,
        n_layers=section.integer("num_hidden_layers"),
        slice_width=slice_width,
    )


def _nanochat(section: _Section, parent: Mapping[str, Any], asked: _Asked) -> Recipe:
    orders = section.integers("engram_orders")
    return NanochatRecipe(
        name=section.name(),
        provenance=section.provenance(),
        vocab_size=section.integer("vocab_size"),
        table_size=section.integer("engram_table_size"),
        layer_ids=tuple(section.integers("engram_layers")),
        rank=section.integer("engram_rank"),
        orders=tuple(orders),
        hashes=tuple(section.integers("engram_order_weights")),
    )


def _engram_peft(section: _Section, parent: Mapping[str, Any], asked: _Asked) -> Recipe:
    engine, table = section.values.get("engine") or "deepseek", section.values.get("table_spec")
    if engine not in ("deepseek", "qwen_ple") or table not in (None, "ENG_DEEPSEEK_V1", "PLE_QWEN_V1"):
        raise InvalidInput(
            f"{section.where}: engine {engine!r} and table_spec {table!r}, expected those of engram-peft 1.2.7: "
            "deepseek or qwen_ple, ENG_DEEPSEEK_V1 or PLE_QWEN_V1"
        )
    if "prime_sizes" in section:
        raise InvalidInput(
            f"{section.where}: prime_sizes are stated, expected the primes that the package derives; make a spec with "
            "these moduli by hand"
        )
    if engine == "qwen_ple" or table == "PLE_QWEN_V1":
        return _engram_peft_qwen(section)
    orders = tuple(section.integers("ngram_sizes"))
    heads = section.integer("n_head_per_ngram")
    totals = section.integers("engram_vocab_size_per_ngram")
    width, n_columns = section.integer("embedding_dim"), heads * len(orders)
    if heads < 1 or not orders or len(totals) != len(orders) or width % n_columns:
        raise InvalidInput(
            f"{section.where}: ngram_sizes {orders}, n_head_per_ngram {heads}, engram_vocab_size_per_ngram {totals}, "
            f"embedding_dim {width}, expected one total an order, and a width that all heads divide"
        )
    if list(orders) != sorted(set(orders)):
        raise InvalidInput(f"{section.where}: ngram_sizes is {orders}, expected ascending orders")
    layer_ids = tuple(sorted(section.integers("target_layers")))
    folded = section.flag("enable_tokenizer_compression", default=True)
    canonical_size, fill_id, digest = _peft_vocabulary(section, asked, folded=folded)
    return DeepSeekRecipe(
        name=section.name(),
        provenance=section.provenance(),
        canonical_size=canonical_size,
        orders=orders,
        heads=heads,
        bases=tuple(total // heads for total in totals),
        layer_ids=layer_ids,
        n_layers=len(layer_ids),
        fill_id=fill_id,
        row_width=width // n_columns,
        seed=section.integer("seed", default=0),
        folded=folded,
        vocab_sha256=digest,
        mix=MixRule(oldest_first=max(orders) > 1, lagged=len(orders) > 1),
    )


def _peft_vocabulary(section: _Section, asked: _Asked, *, folded: bool) -> tuple[int, int, str | None]:
    """Canonical size, fill and digest of the map: from the map saved beside the config, else from a vocabulary."""
    canonical_size, pad = section.integer("compressed_vocab_size"), section.integer("pad_id")
    if not folded:
        return canonical_size, pad, None
    saved = section.file.folder().find("compression_config.json")
    if saved is None:
        return canonical_size, canonical_fill(pad, canonical_size, asked.vocabulary, section.where), None
    token_map = _saved_map(saved)
    if int(token_map.max(initial=-1)) + 1 != canonical_size:
        raise SpecMismatch(
            f"{section.where}: compressed_vocab_size is {canonical_size}, {saved.name} beside it maps to "
            f"{int(token_map.max(initial=-1)) + 1} canonical ids; the two belong to different adapters"
        )
    # As the package does: an id past the map passes through as it is.
    fill_id = int(token_map[pad]) if 0 <= pad < len(token_map) else pad
    return canonical_size, fill_id, map_digest(token_map)


def map_digest(token_map: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    """SHA-256 of canonical ids by token id as little-endian int32, hexadecimal: what names a vocabulary."""
    return hashlib.sha256(token_map.astype("<i4").tobytes()).hexdigest()


def _saved_map(file: ByteFile) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64 (tokens,): the map of a `compression_config.json`."""
    data = read_json_file(file)
    mapping = data.get("mapping") if isinstance(data, dict) else None
    if not isinstance(mapping, dict) or not all(_SMALL_NUMBER.fullmatch(key) for key in mapping):
        raise InvalidInput(f"{file.where}: no mapping of token ids, expected the file that engram-peft saves")
    ids = {int(key): int_from_json(value, f"{file.where}: token {key}") for key, value in mapping.items()}
    if sorted(ids) != list(range(len(ids))) or sorted(set(ids.values())) != list(range(len(set(ids.values())))):
        raise InvalidInput(
            f"{file.where}: its mapping has gaps, expected every token id and every canonical id from 0 on; save it "
            "anew"
        )
    for key, n_found in (("vocab_size", len(ids)), ("compressed_vocab_size", len(set(ids.values())))):
        if data.get(key, n_found) != n_found:
            raise SpecMismatch(
                f"{file.where}: {key} is {data[key]!r}, its mapping has {n_found}; one of them was changed"
            )
    return np.array([ids[token] for token in range(len(ids))], dtype=np.int64)


def _engram_peft_qwen(section: _Section) -> Recipe:
    """The package's other engine, whose constants are those of Qwen's release."""
    from engram_tables.address.presets import PRESETS

    layers: Sequence[int] = section.integers("target_layers")
    preset = PRESETS["qwen3.8-flash-next"]
    if not isinstance(preset, QwenRecipe):
        raise AssertionError("the preset of Qwen is no recipe of Qwen")
    shape = section.integers("ngram_sizes"), section.integer("n_head_per_ngram"), len(layers)
    if shape != ([*preset.orders], preset.heads, 1):
        raise InvalidInput(
            f"{section.where}: engine qwen_ple with ngram_sizes {shape[0]}, n_head_per_ngram {shape[1]} and layers "
            f"{layers}, expected {[*preset.orders]}, {preset.heads} and one layer, as the package has them"
        )
    width = section.integer("embedding_dim")
    if width % (preset.heads * len(preset.orders)):
        raise InvalidInput(f"{section.where}: embedding_dim is {width}, expected a width that all heads divide")
    return QwenRecipe(
        name=section.name(),
        provenance=section.provenance(),
        vocab_size=preset.vocab_size,
        orders=preset.orders,
        heads=preset.heads,
        base=preset.base,
        # The package keeps no padding rows.
        divisor=1,
        layer_ids=(layers[0],),
        eos_token=preset.eos_token,
        row_width=width // (preset.heads * len(preset.orders)),
    )


class _FamilyReader(NamedTuple):
    name: str
    keys: tuple[str, ...]
    read: Callable[[_Section, Mapping[str, Any], _Asked], Recipe]


# Any of a family's keys names it; the order decides where a config holds keys of two.
_FAMILIES = (
    _FamilyReader("engram-peft", ("engram_vocab_size_per_ngram",), _engram_peft),
    _FamilyReader("DeepSeek", ("engram_layer_ids",), _deepseek),
    _FamilyReader("nanochat", ("engram_table_size",), _nanochat),
    _FamilyReader("Qwen", ("ple_layer_ids",), _qwen),
    _FamilyReader("LongCat", ("emb_neighbor_num", "oe_neighbor_num"), _longcat),
    _FamilyReader("Gemma", ("hidden_size_per_layer_input",), _gemma),
)
