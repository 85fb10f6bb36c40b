"""Addressing as GGUF files spell it: DeepSeek's tables under `engram`, Qwen's under `ple`.

The constants in a file are findings; what they are held against is derived from the few keys that a recipe needs.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engram_tables.address.presets import PRESETS
from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.address.relatives import QwenRecipe
from engram_tables.address.released.configs import canonical_fill, map_digest
from engram_tables.address.released.findings import Fact, Finding
from engram_tables.address.released.gguf_keys import GgufKeys
from engram_tables.address.spec import AddressSpec
from engram_tables.address.spec_checks import MAX_ORDER
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.byte_files import ByteFile
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.gguf_file import GgufHeader, GgufTensor, read_gguf

_ENGRAM = re.compile(r"(?:^|\.)engram[._](\w+)$")
_PLE = re.compile(r"(?:^|\.)ple\.(\w+)$")
_MODEL = re.compile(r"^\w+\.(vocab_size|embedding_length_per_layer_input)$")
_GENERAL = re.compile(r"^general\.(name)$")
_TOKENS_KEY = "tokenizer.ggml.tokens"
_PART = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.gguf$")
_QWEN_TABLE = "per_layer_token_embd.weight"
_QWEN_SEED, _QWEN_DIVISOR = 1234, 128
# Values and bytes of a row by the name of its encoding: ds4's own, and those of its forks.
_ENCODINGS = {"e4m3_e8m0_32_row264": (256, 264), "lloyd4_e5m3_32_r136": (256, 136), "q4_k_row144": (256, 144)}
# No converter is known to pad rows to a larger multiple.
_MOST_PADDING_ROWS = 4096
_MOST_PARTS = 1000
_GIVE_CONFIG = "name the model's config.json instead"

# Every name that a value has in some converter's output: ds4, llama.cpp and its forks.
_LAYERS = ("layer_ids", "layers")
_ORDER = ("max_ngram_size", "ngram_size")
_HEADS = ("head_count", "n_heads")
_WIDTH = ("key_length", "head_dim")
_CANONICAL_SIZE = ("compressed_vocab_size",)
_TOKEN_MAP = ("token_map",)
_BASE = ("vocab_size",)
_FILL = ("pad_id", "pad_id_compressed")
_PAD_TOKEN = ("pad_token_id",)
_ROWS = ("rows", "num_embeddings", "embedding_counts")
_PRIMES = ("primes", "hash_primes", "head_bucket_sizes")
_OFFSETS = ("offsets", "hash_offsets", "head_offsets")
_MULTIPLIERS = ("multipliers", "hash_multipliers")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """What a recipe derives from a file's keys, and what the file states to hold it against."""

    spec: AddressSpec
    findings: tuple[Finding, ...]


def read_model(file: ByteFile, *, vocabulary: Vocabulary | None, eos: int | None) -> GgufModel:
    """The addressing in the metadata of `file`, derived and stated; see `released.spec_from_gguf`."""
    header = read_gguf(file, _is_wanted)
    engram, ple = GgufKeys(header, _ENGRAM), GgufKeys(header, _PLE)
    name = GgufKeys(header, _GENERAL).text(("name",)) or file.name
    tensors = _tensors(header)
    if engram.has(_LAYERS):
        return _DeepSeek(engram, tensors, vocabulary).model(name)
    if ple.has(_LAYERS):
        return _Qwen(ple, GgufKeys(header, _MODEL), tensors).model(name, eos)
    raise InvalidInput(
        f"{file.where}: found neither engram.layer_ids nor ple.layers among its keys, expected the metadata of a model "
        f"with such tables (the first part of a split file holds it); {_GIVE_CONFIG}"
    )


def _is_wanted(key: str) -> bool:
    return any(pattern.search(key) for pattern in (_ENGRAM, _PLE, _MODEL, _GENERAL))


def _tensors(header: GgufHeader) -> dict[str, GgufTensor]:
    """The tensors of the file, and of its other parts where it is split and they lie beside it."""
    tensors, part = dict(header.tensors), _PART.search(header.name)
    if part is not None:
        if int(part[2]) > _MOST_PARTS:
            raise InvalidInput(f"{header.where}: found {part[2]} parts by its name, expected {_MOST_PARTS} at most")
        folder = header.file.folder()
        for nth in range(1, 1 + int(part[2])):
            name = f"{header.name[: part.start()]}-{nth:05}-of-{part[2]}.gguf"
            other = folder.find(name) if name != header.name else None
            if other is not None:
                tensors |= read_gguf(other, lambda _: False).tensors
                other.close()
    return tensors


def _rows_of(keys: GgufKeys, name: str, table: GgufTensor, layer_id: int) -> Finding:
    if len(table.dims) != 2:
        raise InvalidInput(
            f"{keys.file_where}: tensor {name} has dimensions {table.dims}, expected rows of values; convert anew"
        )
    return Finding(where=f"{keys.name}: {name}", fact=Fact.ROWS, values=(table.dims[1],), layer_id=layer_id)


class _DeepSeek:
    """The `engram` keys of one file. What they leave out is a preset's, where the sizes are its own."""

    def __init__(self, keys: GgufKeys, tensors: dict[str, GgufTensor], vocabulary: Vocabulary | None) -> None:
        self.keys, self.where, self.vocabulary = keys, keys.file_where, vocabulary
        self.layer_ids = keys.integers(_LAYERS) or ()
        if not self.layer_ids or not all(0 <= layer_id < 2**31 for layer_id in self.layer_ids):
            raise InvalidInput(
                f"{keys.where(_LAYERS)}: found {reprlib.repr(self.layer_ids)}, expected one layer or more"
            )
        self.primes, self.multipliers = keys.integers(_PRIMES), keys.integers(_MULTIPLIERS)
        self.token_map = self._read_token_map()
        names = {layer_id: f"blk.{layer_id}.engram_embd.weight" for layer_id in self.layer_ids}
        self.tables = {layer_id: (name, tensors[name]) for layer_id, name in names.items() if name in tensors}
        self.orders, self.heads = self._shape()

    def model(self, name: str) -> GgufModel:
        recipe = replace(self._recipe(), name=name, row_width=self._row_width())
        if self.token_map is not None:
            # Ids that a map leaves as they are, are token ids.
            folded = not np.array_equal(self.token_map, np.arange(len(self.token_map)))
            recipe = replace(recipe, folded=folded, vocab_sha256=map_digest(self.token_map))
        findings = [
            finding
            for names, fact in (
                (_MULTIPLIERS, Fact.MULTIPLIERS),
                (_PRIMES, Fact.MODULI),
                (_OFFSETS, Fact.OFFSETS),
                (_ROWS, Fact.ROWS),
            )
            for finding in self.keys.per_layer(names, fact, self.layer_ids)
        ]
        for layer_id, (tensor, table) in self.tables.items():
            rows = _rows_of(self.keys, tensor, table, layer_id)
            findings.append(rows)
            if (width := self._width_of(table)) is not None:
                findings.append(replace(rows, fact=Fact.ROW_WIDTH, values=(width,)))
        return GgufModel(spec=recipe.resolve(), findings=tuple(findings))

    def _read_token_map(self) -> npt.NDArray[np.int64] | None:
        """int64 (tokens,): canonical ids."""
        values = self.keys.integers(_TOKEN_MAP)
        if values is None:
            return None
        if not values or min(values) < 0 or max(values) >= 2**31:
            raise InvalidInput(
                f"{self.keys.where(_TOKEN_MAP)}: found {len(values)} ids, from {min(values, default=None)} to "
                f"{max(values, default=None)}, expected some from 0 to 2^31 - 1; convert the model again"
            )
        return np.array(values, dtype=np.int64)

    def _shape(self) -> tuple[tuple[int, ...], int]:
        """Orders and heads an order, from the keys that state them or from the lengths of the arrays."""
        n_layers = len(self.layer_ids)
        from_array = None if self.multipliers is None else len(self.multipliers) // n_layers
        max_order = self.keys.integer(_ORDER, default=from_array)
        if max_order is None:
            raise self.keys.missing(_ORDER, "the longest n-gram", advice=_GIVE_CONFIG)
        if not 2 <= max_order <= MAX_ORDER:
            raise InvalidInput(f"{self.where}: found n-grams of up to {max_order} tokens, expected 2 to {MAX_ORDER}")
        from_array = None if self.primes is None else len(self.primes) // n_layers // (max_order - 1)
        heads = self.keys.integer(_HEADS, default=from_array)
        if heads is None:
            raise self.keys.missing(_HEADS, "the heads of an order", advice=_GIVE_CONFIG)
        if heads < 1:
            raise InvalidInput(
                f"{self.where}: found {heads} heads an order, expected 1 or more; convert the model again"
            )
        return tuple(range(2, max_order + 1)), heads

    def _recipe(self) -> DeepSeekRecipe:
        bases, canonical_size, preset = self._bases(), self._canonical_size(), None
        if bases is None or canonical_size is None:
            preset = self._preset()
            if preset is None and bases is None:
                raise self.keys.missing((*_PRIMES, *_BASE), "the rows of a head", advice=_GIVE_CONFIG)
            if preset is None:
                advice = f"give --vocab, or {_GIVE_CONFIG}"
                raise self.keys.missing((*_TOKEN_MAP, *_CANONICAL_SIZE), "the number of canonical ids", advice=advice)
            bases = bases or preset.bases
            canonical_size = canonical_size or preset.canonical_size
        return DeepSeekRecipe(
            name=self.keys.name,
            provenance=f"GGUF {self.keys.name}" + (f", completed from the preset {preset.name}" if preset else ""),
            canonical_size=canonical_size,
            orders=self.orders,
            heads=self.heads,
            bases=bases,
            layer_ids=self.layer_ids,
            n_layers=len(self.layer_ids),
            fill_id=self._fill(canonical_size or 0, preset),
            seed=self.keys.integer(("seed",), default=0) or 0,
        )

    def _bases(self) -> tuple[int, ...] | None:
        """Where the primes of each order begin: stated, or the first one of the first layer, from where on the recipe
        finds the same."""
        base = self.keys.integer(_BASE)
        if base is not None:
            return (base,) * len(self.orders)
        if self.primes is None or len(self.primes) < len(self.orders) * self.heads:
            return None
        return self.primes[: len(self.orders) * self.heads : self.heads]

    def _canonical_size(self) -> int | None:
        stated = self.keys.integer(_CANONICAL_SIZE)
        if self.token_map is None:
            return stated if stated is not None or self.vocabulary is None else self.vocabulary.canonical_size
        reached = int(self.token_map.max()) + 1
        if len(np.unique(self.token_map)) != reached:
            raise InvalidInput(
                f"{self.keys.where(_TOKEN_MAP)}: found {len(np.unique(self.token_map))} canonical ids up to "
                f"{reached - 1}, expected each of them; convert the model again"
            )
        if stated not in (None, reached):
            raise SpecMismatch(
                f"{self.keys.where(_CANONICAL_SIZE)} is {stated}, {self.keys.where(_TOKEN_MAP)} reaches {reached} "
                "canonical ids; they belong to different vocabularies"
            )
        return reached

    def _preset(self) -> DeepSeekRecipe | None:
        """The preset whose layers, orders, heads and rows are those of the file."""
        rows = self.keys.integers(_ROWS) or tuple(table.dims[-1] for _, table in self.tables.values() if table.dims)
        if not rows and self.primes is not None:
            n_columns = len(self.orders) * self.heads
            rows = tuple(sum(self.primes[first : first + n_columns]) for first in range(0, len(self.primes), n_columns))
        for preset in PRESETS.values():
            if (
                isinstance(preset, DeepSeekRecipe)
                and preset.canonical_size is not None
                and (preset.layer_ids, preset.orders, preset.heads) == (self.layer_ids, self.orders, self.heads)
                and preset.outline().rows_per_table == rows
            ):
                return preset
        return None

    def _fill(self, canonical_size: int, preset: DeepSeekRecipe | None) -> int:
        """Canonical id of the padding: stated as such, or mapped from the token id that is stated."""
        stated, pad_token = self.keys.integer(_FILL), self.keys.integer(_PAD_TOKEN)
        if pad_token is None:
            known = preset.fill_id if stated is None and preset is not None else stated
            if known is None:
                raise self.keys.missing((*_FILL, *_PAD_TOKEN), "the padding's id", advice=_GIVE_CONFIG)
            return known
        if self.token_map is None:
            mapped = canonical_fill(pad_token, canonical_size, self.vocabulary, self.where)
        elif 0 <= pad_token < len(self.token_map):
            mapped = int(self.token_map[pad_token])
        else:
            raise InvalidInput(
                f"{self.keys.where(_PAD_TOKEN)}: found token {pad_token}, expected one of the {len(self.token_map)} in "
                "the token map; convert the model again"
            )
        if stated not in (None, mapped):
            raise SpecMismatch(
                f"{self.keys.where(_FILL)} is {stated}, token {pad_token} under {self.keys.where(_PAD_TOKEN)} has "
                f"canonical id {mapped}; one of them was changed"
            )
        return mapped

    def _width_of(self, table: GgufTensor) -> int | None:
        """Values of a table's row; of rows of bytes, as many as their encoding makes of them, if it is known."""
        if table.type_name != "I8":
            return table.dims[0]
        values, row_bytes = _ENCODINGS.get(self.keys.text(("encoding",)) or "", (None, table.dims[0]))
        return values if table.dims[0] == row_bytes else table.dims[0]

    def _row_width(self) -> int | None:
        stated = self.keys.integer(_WIDTH)
        if stated is not None:
            return stated
        encoding = self.keys.text(("encoding",))
        if encoding is not None:
            return _ENCODINGS.get(encoding, (None, None))[0]
        # Rows of bytes have as many as their encoding takes.
        widths = {table.dims[0] for _, table in self.tables.values() if table.dims and table.type_name != "I8"}
        return widths.pop() if len(widths) == 1 else None


class _Qwen:
    """The `ple` keys of one file."""

    def __init__(self, keys: GgufKeys, model: GgufKeys, tensors: dict[str, GgufTensor]) -> None:
        self.keys, self.model_keys = keys, model
        self.table = tensors.get(_QWEN_TABLE)
        layer_ids = keys.integers(_LAYERS) or ()
        if len(layer_ids) != 1:
            raise InvalidInput(
                f"{keys.where(_LAYERS)}: found layers {reprlib.repr(layer_ids)}, expected the one that has the table"
            )
        self.layer_ids = layer_ids

    def model(self, name: str, eos: int | None) -> GgufModel:
        moduli = self.keys.integers(("head_vocab_sizes",))
        recipe = QwenRecipe(
            name=name,
            provenance=f"GGUF {self.keys.name}",
            vocab_size=self._vocab_size(),
            orders=tuple(range(2, 1 + self._needed("ngram_size", most=MAX_ORDER))),
            heads=self._needed("heads_per_ngram"),
            base=moduli[0] if moduli else self._needed("vocab_base"),
            divisor=self.keys.integer(("vocab_divisor",), default=_QWEN_DIVISOR) or 0,
            layer_ids=self.layer_ids,
            eos_token=self._eos(eos),
            row_width=self._stated_width(),
            seed=self.keys.integer(("seed",), default=_QWEN_SEED) or 0,
        )
        findings = [
            finding
            for key, fact in (
                ("layer_multipliers", Fact.MULTIPLIERS),
                ("head_vocab_sizes", Fact.MODULI),
                ("head_offsets", Fact.OFFSETS),
            )
            for finding in self.keys.per_layer((key,), fact, self.layer_ids)
        ]
        stated = self.keys.integer(("row_count",))
        if stated is not None:
            where = self.keys.where(("row_count",))
            findings.append(Finding(where=where, fact=Fact.ROWS, values=(stated,), layer_id=self.layer_ids[0]))
        return self._with_table(recipe.resolve(), findings)

    def _with_table(self, spec: AddressSpec, findings: list[Finding]) -> GgufModel:
        """The table's shape, which has the last word on padding: no key of every converter tells the multiple."""
        if self.table is not None:
            rows = _rows_of(self.keys, _QWEN_TABLE, self.table, self.layer_ids[0])
            width = replace(rows, fact=Fact.ROW_WIDTH, values=(self.table.dims[0],))
            findings = [*findings, rows, width]
            layer = spec.layers[0]
            used = layer.offsets[-1] + layer.moduli[-1][-1]
            spec = replace(spec, row_width=spec.row_width or self.table.dims[0])
            if used <= rows.values[0] < used + _MOST_PADDING_ROWS and not self.keys.has(("vocab_divisor", "row_count")):
                spec = replace(spec, layers=(replace(layer, n_rows=rows.values[0]),))
        return GgufModel(spec=spec, findings=tuple(findings))

    def _needed(self, name: str, *, most: int = 2**40) -> int:
        value = self.keys.integer((name,))
        if value is None:
            raise self.keys.missing((f"ple.{name}",), "a number that decides rows", advice=_GIVE_CONFIG)
        if not 1 <= value <= most:
            raise InvalidInput(f"{self.keys.where((name,))}: found {value}, expected 1 to {most}; convert it again")
        return value

    def _vocab_size(self) -> int:
        """Stated, or as many as the tokenizer has tokens; the multipliers depend on it, so a wrong one shows."""
        n_tokens = self.keys.header.array_lengths.get(_TOKENS_KEY)
        size = self.model_keys.integer(("vocab_size",), default=n_tokens)
        if size is None:
            raise self.keys.missing(("vocab_size", _TOKENS_KEY), "the number of token ids", advice=_GIVE_CONFIG)
        return size

    def _stated_width(self) -> int | None:
        width = self.model_keys.integer(("embedding_length_per_layer_input",))
        return self.keys.integer(("row_dimension",), default=width)

    def _eos(self, eos: int | None) -> int:
        stated = self.keys.integer(("eos_token_id",), default=eos)
        if stated is None:
            raise self.keys.missing(("ple.eos_token_id",), "where the history ends", advice="name it with --eos")
        if eos not in (None, stated):
            raise SpecMismatch(f"{self.keys.where(('eos_token_id',))} is {stated}, --eos says {eos}; leave out --eos")
        return stated
