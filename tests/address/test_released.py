"""Specs from checkpoints and GGUF files: one fingerprint by every route, and whatever disagrees is refused."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables import load_spec
from engram_tables.address.export.gguf_metadata import gguf_key_values
from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.address.released.checkpoints import spec_from_checkpoint, spec_from_gguf
from engram_tables.address.released.configs import map_digest, spec_from_config
from engram_tables.address.released.models import spec_from_model
from engram_tables.address.spec import AddressSpec
from engram_tables.address.spec_files import read_spec
from engram_tables.address.vocabulary import Vocabulary, build_vocabulary
from engram_tables.errors import EngramError, InvalidInput, SpecMismatch

Entries = dict[str, tuple[str, Any]]
V4 = "deepseek-v4.1-flash"
QWEN = "qwen3.8-flash-next"
V4_CONFIG = {
    "engram_layer_ids": [1, 14], "engram_num_embeddings": [384_006_168, 384_016_682], "engram_max_ngram_size": 4,
    "engram_vocab_size": 16_000_000, "engram_n_heads": 8, "engram_head_dim": 256, "engram_pad_token_id": 2,
    "engram_compressed_vocab_size": 99_092,
}  # fmt: skip
QWEN_CONFIG = {
    "ple_layer_ids": [2], "ple_embed_dim": 2560, "ngram_size": 3, "heads_per_ngram": 8, "eos_token_id": 248_044,
    "ngram_vocab_size_base": 20_000_000, "make_ngram_vocab_size_divisible_by": 128, "split_ngram_parts": 128,
    "vocab_size": 248_320, "hidden_size": 2560,
}  # fmt: skip
TOKEN_MAP = [token // 2 for token in range(100)]
SMALL = DeepSeekRecipe(
    name="small", provenance="test", canonical_size=50, orders=(2, 3), heads=2, bases=(101, 101), layer_ids=(3, 5),
    n_layers=2, fill_id=1, row_width=16,
).resolve()  # fmt: skip
TYPES = {kind.name.lower().replace("uint", "u").replace("int", "i").replace("float", "f"): kind
         for kind in GGUFValueType}  # fmt: skip


# GGUF files.


def write_gguf(
    path: Path, entries: Mapping[str, tuple[str, Any]], tensors: Mapping[str, tuple[tuple[int, ...], Any]] | None = None
) -> Path:
    """A file of typed key-values, and of tensors that are holes: shapes as NumPy has them, slowest first."""
    writer = GGUFWriter(path, "deepseek41")
    for key, (kind, value) in entries.items():
        element = TYPES[kind.removesuffix("[]")]
        if kind.endswith("[]"):
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=element)
        else:
            writer.add_key_value(key, value, element)
    n_data = 0
    for name, (shape, raw_dtype) in (tensors or {}).items():
        size = math.prod(shape) if raw_dtype is None else math.prod(shape) // 32 * 34
        byte_shape = shape if raw_dtype is None else (*shape[:-1], shape[-1] // 32 * 34)
        dtype = np.dtype(np.int8 if raw_dtype is None else np.uint8)
        writer.add_tensor_info(name, byte_shape, dtype, size, raw_dtype=raw_dtype)
        n_data += size + 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + n_data)
    return path


def entries_of(spec: AddressSpec, spelling: str, token_map: list[int] | None = None) -> Entries:
    """The metadata that this package writes, as values."""
    entries: Entries = {}
    for key, entry in gguf_key_values(spec if spelling == "qwen4exp" else replace(spec, folded=True))[spelling].items():
        value = entry["value"]
        exact = [int(number) for number in value] if isinstance(value, list) else value
        entries[key] = (entry["type"], exact)
    if token_map is not None:
        entries["deepseek41.engram.token_map"] = ("u32[]" if spelling == "ds4" else "i32[]", token_map)
    return entries


def third_entries(spec: AddressSpec, base: int, *, arrays: bool) -> Entries:
    """The spelling that takes its names from the config, with or without arrays."""
    entries: Entries = {
        "deepseek41.engram.layer_ids": ("i32[]", list(spec.layer_ids)),
        "deepseek41.engram.num_embeddings": ("u64[]", [layer.n_rows for layer in spec.layers]),
        "deepseek41.engram.head_dim": ("u32", spec.row_width),
        "deepseek41.engram.n_heads": ("u32", spec.heads[0]),
        "deepseek41.engram.max_ngram_size": ("u32", spec.max_order),
        "deepseek41.engram.compressed_vocab_size": ("u32", spec.canonical_size),
        "deepseek41.engram.pad_token_id": ("u32", 2),
    }
    if not arrays:
        return entries | {"deepseek41.engram.vocab_size": ("u32", base)}
    moduli = [modulus for layer in spec.layers for modulus in chain.from_iterable(layer.moduli)]
    return entries | {
        "deepseek41.engram.hash_primes": ("u32[]", moduli),
        "deepseek41.engram.hash_offsets": ("u64[]", [offset for layer in spec.layers for offset in layer.offsets]),
        "deepseek41.engram.hash_multipliers": ("u64[]", [m for layer in spec.layers for m in layer.multipliers]),
    }


def qwen_entries(**changes: tuple[str, Any]) -> Entries:
    entries = entries_of(load_spec(QWEN), "qwen4exp") | {"general.name": ("string", "Qwen")}
    return entries | {f"qwen4exp.{key.replace('__', '.')}": value for key, value in changes.items()}


def v4_tensors(width: int, raw_dtype: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    return {f"blk.{layer.layer_id}.engram_embd.weight": ((layer.n_rows, width), raw_dtype)
            for layer in load_spec(V4).layers}  # fmt: skip


QWEN_TENSORS = {"per_layer_token_embd.weight": ((320_001_536, 160), GGMLQuantizationType.Q8_0)}


def test_every_spelling_of_deepseek_gives_the_preset(tmp_path: Path) -> None:
    preset = load_spec(V4)
    files = {
        "ds4": (entries_of(preset, "ds4"), v4_tensors(264, None)),
        "llama.cpp": (
            entries_of(preset, "llama.cpp") | {"deepseek41.engram.compressed_vocab_size": ("u32", 99_092)},
            v4_tensors(256, GGMLQuantizationType.Q8_0),
        ),
        "third": (third_entries(preset, 16_000_000, arrays=True), {}),
        "third without arrays": (third_entries(preset, 16_000_000, arrays=False), v4_tensors(264, None)),
    }
    for name, (entries, tensors) in files.items():
        spec = spec_from_gguf(write_gguf(tmp_path / f"{name}.gguf", entries, tensors))
        assert spec.fingerprint == preset.fingerprint
        assert spec.row_width == 256
        assert spec.name == spec_from_gguf(tmp_path / f"{name}.gguf").name == f"{name}.gguf"
        assert spec_from_model(tmp_path / f"{name}.gguf") == spec


def test_early_files_of_another_prefix_and_without_constants(tmp_path: Path) -> None:
    """They hold sizes alone, which are those of the preset."""
    entries: Entries = {
        "deepseek4.engram.layer_ids": ("i32[]", [1, 14]),
        "deepseek4.engram.head_count": ("i32", 8),
        "deepseek4.engram.key_length": ("i32", 256),
        "deepseek4.engram.max_ngram_size": ("i32", 4),
    }
    path = write_gguf(tmp_path / "early.gguf", entries, v4_tensors(256, GGMLQuantizationType.Q8_0))
    spec = spec_from_gguf(path)
    assert spec.fingerprint == load_spec(V4).fingerprint
    assert "completed from the preset deepseek-v4.1-flash" in spec.provenance
    with pytest.raises(InvalidInput, match=r"primes.*vocab_size.*config\.json"):
        spec_from_gguf(write_gguf(tmp_path / "no-table.gguf", entries))


def test_the_token_map_names_the_vocabulary(tmp_path: Path) -> None:
    for spelling in ("ds4", "llama.cpp"):
        spec = spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries_of(SMALL, spelling, TOKEN_MAP)))
        assert spec.fingerprint == SMALL.fingerprint
        assert spec.vocab_sha256 == map_digest(np.array(TOKEN_MAP))
        assert spec.row_width == (16 if spelling == "llama.cpp" else None)
    # A map that folds nothing leaves token ids.
    entries = entries_of(replace(SMALL, folded=False), "ds4", list(range(50)))
    assert (
        spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries)).fingerprint == replace(SMALL, folded=False).fingerprint
    )
    # The fill is given as a token, and the map has the canonical id.
    third = third_entries(SMALL, 101, arrays=False) | {"deepseek41.engram.token_map": ("i32[]", TOKEN_MAP)}
    assert spec_from_gguf(write_gguf(tmp_path / "x.gguf", third)).fingerprint == SMALL.fingerprint
    del third["deepseek41.engram.token_map"]
    with pytest.raises(InvalidInput, match=r"padding token 2 is a token id.*give --vocab"):
        spec_from_gguf(write_gguf(tmp_path / "x.gguf", third))


def test_a_vocabulary_tells_what_the_file_does_not(tmp_path: Path, tiny_tokenizer_json: Path) -> None:
    vocabulary = build_vocabulary(tiny_tokenizer_json)
    recipe = DeepSeekRecipe(
        name="tiny", provenance="test", canonical_size=vocabulary.canonical_size, orders=(2, 3), heads=2,
        bases=(101, 101), layer_ids=(3,), n_layers=1, fill_id=int(vocabulary.canonical([2])[0]), row_width=16,
    )  # fmt: skip
    entries = entries_of(recipe.resolve(), "llama.cpp")
    path = write_gguf(tmp_path / "x.gguf", entries)
    with pytest.raises(InvalidInput, match=r"token_map or compressed_vocab_size.*--vocab"):
        spec_from_gguf(path)
    spec = spec_from_gguf(path, vocabulary=vocabulary)
    assert spec.fingerprint == recipe.resolve().fingerprint
    assert spec.vocab_sha256 == vocabulary.map_sha256
    third = third_entries(recipe.resolve(), 101, arrays=False)
    third_path = write_gguf(tmp_path / "third.gguf", third)
    assert spec_from_gguf(third_path, vocabulary=vocabulary).fingerprint == spec.fingerprint
    other = entries_of(recipe.resolve(), "ds4", [token // 2 for token in range(2 * vocabulary.canonical_size)])
    with pytest.raises(SpecMismatch, match="every id may mean another token"):
        spec_from_gguf(write_gguf(tmp_path / "other.gguf", other), vocabulary=vocabulary)


def test_a_value_under_two_keys_must_be_one(tmp_path: Path) -> None:
    entries = entries_of(SMALL, "ds4", TOKEN_MAP)
    twice = {key.replace("deepseek41", "deepseek4"): value for key, value in entries.items()}
    assert spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries | twice)).fingerprint == SMALL.fingerprint
    for extra in (
        {"deepseek4.engram.pad_id": ("u32", 2)},
        {"deepseek41.engram.num_embeddings": ("u32[]", [1, 2])},
        {"deepseek41.engram.pad_token_id": ("u32", 9)},
        {"deepseek41.engram.hash_multipliers": ("u64[]", [1] * 6)},
    ):
        with pytest.raises(SpecMismatch, match="one of them was changed"):
            spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries | extra))


@pytest.mark.parametrize("spelling", ["ds4", "llama.cpp"])
def test_an_array_that_differs_in_one_number_is_shown(spelling: str, tmp_path: Path) -> None:
    entries = entries_of(SMALL, spelling, TOKEN_MAP)
    arrays = [key for key in entries if key.split(".")[-1] in ("multipliers", "primes", "offsets", "rows")]
    assert len(arrays) == 3
    for key in arrays:
        kind, values = entries[key]
        changed = [*values[:-1], values[-1] + 2]
        with pytest.raises(SpecMismatch) as caught:
            spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries | {key: (kind, changed)}))
        for shown in (key, str(values[-1]), str(changed[-1])):
            assert shown in str(caught.value)


def test_constants_stored_as_floats_are_refused(tmp_path: Path) -> None:
    entries = entries_of(SMALL, "ds4", TOKEN_MAP)
    for key in ("multipliers", "primes", "layer_ids", "rows", "token_map"):
        changed = entries | {f"deepseek41.engram.{key}": ("f32[]", [1.0] * 8)}
        with pytest.raises(InvalidInput, match=rf"{key} is stored as f32\[\].*been through a float is wrong"):
            spec_from_gguf(write_gguf(tmp_path / "x.gguf", changed))
    changed = entries | {"deepseek41.engram.pad_id": ("f64", 1.0)}
    with pytest.raises(InvalidInput, match="pad_id is stored as f64"):
        spec_from_gguf(write_gguf(tmp_path / "x.gguf", changed))
    changed = qwen_entries(ple__layer_multipliers=("f32[]", [1.0, 2.0, 3.0]))
    with pytest.raises(InvalidInput, match="through a float"):
        spec_from_gguf(write_gguf(tmp_path / "x.gguf", changed))
    for other in (("string", "1"), ("bool", True), ("u32[]", [1])):
        with pytest.raises(InvalidInput, match="expected an integer"):
            spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries | {"deepseek41.engram.pad_id": other}))


def test_a_table_of_other_rows_is_refused(tmp_path: Path) -> None:
    entries = entries_of(SMALL, "ds4", TOKEN_MAP)
    good = {f"blk.{layer.layer_id}.engram_embd.weight": ((layer.n_rows, 264), None) for layer in SMALL.layers}
    assert spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries, good)).fingerprint == SMALL.fingerprint
    bad = good | {"blk.5.engram_embd.weight": ((SMALL.layers[1].n_rows + 1, 264), None)}
    with pytest.raises(SpecMismatch, match=r"blk\.5\.engram_embd\.weight: found rows"):
        spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries, bad))
    flat = good | {"blk.5.engram_embd.weight": ((264,), None)}
    with pytest.raises(InvalidInput, match="rows of values"):
        spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries, flat))


def test_qwen(tmp_path: Path) -> None:
    preset = load_spec(QWEN)
    spec = spec_from_gguf(write_gguf(tmp_path / "x.gguf", qwen_entries(), QWEN_TENSORS))
    assert spec.fingerprint == preset.fingerprint
    assert (spec.name, spec.row_width) == ("Qwen", 160)
    # The vocabulary's size may stand in the tokenizer's length alone, and the width in the table's.
    entries = qwen_entries()
    del entries["qwen4exp.vocab_size"], entries["qwen4exp.embedding_length_per_layer_input"]
    with pytest.raises(InvalidInput, match=r"vocab_size or tokenizer\.ggml\.tokens"):
        spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries, QWEN_TENSORS))
    entries["tokenizer.ggml.tokens"] = ("string[]", [str(token) for token in range(248_320)])
    spec = spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries, QWEN_TENSORS), eos=248_044)
    assert (spec.fingerprint, spec.row_width) == (preset.fingerprint, 160)


def test_qwen_split_into_parts(tmp_path: Path) -> None:
    padded = {"per_layer_token_embd.weight": ((320_002_048, 160), GGMLQuantizationType.Q8_0)}
    entries = qwen_entries()
    del entries["qwen4exp.ple.row_count"]
    first = write_gguf(tmp_path / "x-00001-of-00002.gguf", entries)
    assert spec_from_gguf(first).n_rows == 320_001_536
    write_gguf(tmp_path / "x-00002-of-00002.gguf", {}, padded)
    write_gguf(tmp_path / "y-00002-of-00002.gguf", {}, QWEN_TENSORS)
    assert spec_from_gguf(first).n_rows == 320_002_048
    with pytest.raises(InvalidInput, match="first part"):
        spec_from_gguf(tmp_path / "x-00002-of-00002.gguf")


@pytest.mark.parametrize(
    ("changes", "tensors", "message"),
    [
        ({"ple__layer_multipliers": ("u64[]", [23703573157769, 20109073645365, 8052911324073])}, {},
         "8052911324073.*8052911324071"),
        ({"vocab_size": ("u32", 248_319)}, {}, "multipliers 23703573157769"),
        ({"ple__head_offsets": ("u64[]", [0] * 16)}, {}, "0 as number 1 .* says 20000003"),
        ({"ple__head_vocab_sizes": ("u64[]", [20_000_003] * 16)}, {}, "20000003 as number 1 .* says 20000023"),
        ({"ple__heads_per_ngram": ("u32", 4)}, {}, "16 values.* says 8 values"),
        ({}, {"per_layer_token_embd.weight": ((320_001_445, 160), None)}, "320001445.*320001536"),
        ({}, {"per_layer_token_embd.weight": ((320_001_536, 80), None)}, "values a row 80.*160"),
    ],
)  # fmt: skip
def test_qwen_files_that_contradict_themselves(
    changes: dict[str, Any], tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "x.gguf", qwen_entries(**changes), tensors)
    with pytest.raises(SpecMismatch, match=message):
        spec_from_gguf(path)


def test_the_end_of_sequence_is_held_against_the_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", qwen_entries())
    with pytest.raises(SpecMismatch, match="248044, --eos says 7"):
        spec_from_gguf(path, eos=7)
    entries = qwen_entries()
    del entries["qwen4exp.ple.eos_token_id"]
    write_gguf(path, entries)
    with pytest.raises(InvalidInput, match="--eos"):
        spec_from_gguf(path)
    assert spec_from_gguf(path, eos=248_044).fingerprint == load_spec(QWEN).fingerprint


def test_a_gguf_without_such_a_table(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"llama.vocab_size": ("u32", 5)})
    with pytest.raises(InvalidInput, match=r"neither engram\.layer_ids nor ple\.layers"):
        spec_from_gguf(path)


@pytest.mark.parametrize("route", ["ds4", "llama.cpp", "third", "qwen4exp"])
def test_each_key_left_out_is_derived_or_asked_for(route: str, tmp_path: Path) -> None:
    if route == "qwen4exp":
        entries, expected = qwen_entries(), load_spec(QWEN)
    elif route == "third":
        entries, expected = third_entries(SMALL, 101, arrays=True), SMALL
        entries["deepseek41.engram.token_map"] = ("i32[]", TOKEN_MAP)
    else:
        entries, expected = entries_of(SMALL, route, TOKEN_MAP), SMALL
    assert spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries)).fingerprint == expected.fingerprint
    n_derived = 0
    for key in entries:
        rest = {other: value for other, value in entries.items() if other != key}
        try:
            spec = spec_from_gguf(write_gguf(tmp_path / "x.gguf", rest))
        except InvalidInput:
            continue
        n_derived += 1
        assert spec.fingerprint == expected.fingerprint
    assert n_derived >= 3


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_changed_metadata_is_refused_or_means_the_same(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spelling = data.draw(st.sampled_from(["ds4", "llama.cpp"]))
    entries = entries_of(SMALL, spelling, TOKEN_MAP)
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted(entries)))
        kind, value = entries[key]
        numbers = st.integers(0, 2**31 - 1) | st.integers(0, 3)
        if isinstance(value, list):
            changed = data.draw(st.sampled_from([value[:-1], value[1:], value[::-1], [], value * 2]) | st.just(value))
            if changed:
                changed = list(changed)
                changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(numbers)
        else:
            changed = "other" if kind == "string" else data.draw(numbers)
        entries[key] = (kind, changed)
    path = tmp_path_factory.mktemp("changed") / "x.gguf"
    try:
        spec = spec_from_gguf(write_gguf(path, {key: value for key, value in entries.items() if value[1] != []}))
    except (InvalidInput, SpecMismatch):
        return
    if "deepseek41.engram.multipliers" in entries and entries["deepseek41.engram.multipliers"][1]:
        # No array proves the fill; everything else that decides a row is proved by one.
        assert replace(spec, history=SMALL.history).fingerprint == SMALL.fingerprint


# Checkpoints.


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]] | np.ndarray[Any, Any]]) -> Path:
    """Arrays with their values, and shapes as holes."""
    bits = {"F8_E4M3": 8, "F8_E8M0": 8, "BF16": 16, "U32": 32, "U8": 8, "F32": 32}
    header: dict[str, Any] = {}
    arrays, end = [], 0
    # Values first, so that what follows them may be a hole.
    for name, tensor in sorted(tensors.items(), key=lambda item: isinstance(item[1], tuple)):
        if isinstance(tensor, tuple):
            dtype, shape = tensor
            n_bytes = math.prod(shape) * bits[dtype] // 8
        else:
            dtype, shape, n_bytes = "I64", tensor.shape, tensor.nbytes
            arrays.append(tensor.astype("<i8").tobytes())
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"".join(arrays))
    os.truncate(path, 8 + len(encoded) + end)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def v4_part(layer_id: int, **changes: Any) -> dict[str, Any]:
    n_rows = load_spec(V4).layer(layer_id).n_rows
    prefix = f"layers.{layer_id}.engram"
    return {
        f"{prefix}.embed.weight": ("F8_E4M3", (n_rows, 256)),
        f"{prefix}.embed.scale": ("F8_E8M0", (n_rows, 8)),
        f"{prefix}.wkv.weight": ("F8_E4M3", (25_600, 6144)),
    } | changes


def qwen_parts(n_parts: int = 128, *, dtype: str = "BF16", width: int = 160) -> dict[str, Any]:
    prefix = "model.language_model.layers.1.ple.ple_embedding"
    rows = -(-320_001_536 // n_parts)
    shards = {
        f"{prefix}.ngram_embedding.shard_{part}.weight": (dtype, (max(0, min(rows, 320_001_536 - part * rows)), width))
        for part in range(n_parts)
    }
    return shards | qwen_arrays(prefix)


def qwen_arrays(prefix: str = "model.language_model.layers.1.ple.ple_embedding") -> dict[str, Any]:
    layer = load_spec(QWEN).layers[0]
    return {
        f"{prefix}.layer_multipliers": np.array(layer.multipliers),
        f"{prefix}.ngram_heads_vocab_sizes": np.array(list(chain.from_iterable(layer.moduli))),
        f"{prefix}.ngram_heads_offsets": np.array(layer.offsets),
        "model.language_model.layers.1.ple.norm_key.weight": ("BF16", (10_240,)),
    }


def test_every_route_to_deepseek_gives_one_fingerprint(tmp_path: Path) -> None:
    preset = load_spec(V4)
    for number, layer_id in ((47, 1), (48, 14)):
        write_safetensors(tmp_path / f"model-000{number}-of-00048.safetensors", v4_part(layer_id))
    write_json(tmp_path / "config.json", {"text_config": V4_CONFIG})
    (tmp_path / "alone").mkdir()
    alone = write_safetensors(tmp_path / "alone" / "model.safetensors", v4_part(1) | v4_part(14))
    part = write_safetensors(tmp_path / "alone" / "part.safetensors", v4_part(14))
    (tmp_path / "spec.npz").write_bytes(preset.to_npz())
    write_json(tmp_path / "spec.json", preset.to_json())
    routes = {
        "config": spec_from_config(tmp_path / "config.json"),
        "checkpoint": spec_from_checkpoint(tmp_path),
        "one file of it": spec_from_checkpoint(tmp_path / "model-00047-of-00048.safetensors"),
        "config elsewhere": spec_from_checkpoint(alone, config=tmp_path / "config.json"),
        "no config": spec_from_checkpoint(alone),
        "no config, one layer": spec_from_checkpoint(part),
        "GGUF": spec_from_gguf(write_gguf(tmp_path / "x.gguf", entries_of(preset, "ds4"))),
        "arrays": read_spec(tmp_path / "spec.npz"),
        "JSON": read_spec(tmp_path / "spec.json"),
        "model": spec_from_model(tmp_path),
    }
    assert {name: spec.fingerprint for name, spec in routes.items()} == dict.fromkeys(routes, preset.fingerprint)
    assert "preset deepseek-v4.1-flash" in routes["no config"].provenance
    assert routes["checkpoint"].provenance == f"config.json, held against the tensors of {tmp_path.name}"


def test_every_route_to_qwen_gives_one_fingerprint(tmp_path: Path) -> None:
    preset = load_spec(QWEN)
    write_safetensors(tmp_path / "model-00001-of-00001.safetensors", qwen_parts())
    alone = tmp_path / "alone"
    alone.mkdir()
    constants = write_safetensors(alone / "constants.safetensors", qwen_arrays())
    bare = {name.removeprefix("model.language_model.layers.1.ple.ple_embedding."): value
            for name, value in qwen_arrays().items()}  # fmt: skip
    packed = {f"language_model.model.layers.1.ple.ngram_embedding.shards.{part}.weight": ("U32", (2_500_012, 20))
              for part in range(128)}  # fmt: skip
    routes = {
        "no config": spec_from_checkpoint(tmp_path),
        "constants alone": spec_from_checkpoint(constants),
        "names alone": spec_from_checkpoint(write_safetensors(alone / "bare.safetensors", bare)),
        "config": spec_from_checkpoint(tmp_path, config=write_json(tmp_path / "config.json", QWEN_CONFIG)),
        "model": spec_from_model(tmp_path),
        "packed": spec_from_checkpoint(
            write_safetensors(alone / "packed.safetensors", packed), config=tmp_path / "config.json"
        ),
        "GGUF": spec_from_gguf(write_gguf(tmp_path / "x.gguf", qwen_entries(), QWEN_TENSORS)),
    }
    assert {name: spec.fingerprint for name, spec in routes.items()} == dict.fromkeys(routes, preset.fingerprint)
    assert spec_from_checkpoint(constants, eos=248_044).fingerprint == preset.fingerprint
    with pytest.raises(SpecMismatch, match="--eos says 5"):
        spec_from_checkpoint(constants, eos=5)


def changed_array(suffix: str, place: int) -> dict[str, Any]:
    name = next(name for name in qwen_arrays() if name.endswith(suffix))
    array = qwen_arrays()[name].copy()
    array[place] += 2
    return {name: array}


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({}, changed_array("layer_multipliers", 2), "8052911324073.*8052911324071"),
        ({}, changed_array("vocab_sizes", 15), "20000173 as number 15 .* 20000171"),
        ({}, changed_array("offsets", 0), "2 as number 0 .* 0"),
        ({"seed": 1235}, {}, "multipliers 23703573157769"),
        ({"vocab_size": 248_321}, {}, "multipliers 23703573157769"),
        ({"ngram_vocab_size_base": 20_000_004}, {}, "20000003 as number 0 .* 20000023"),
        ({"ple_layer_ids": [3]}, {}, "layer 1, config.json has layers 2"),
        ({"make_ngram_vocab_size_divisible_by": 131_072}, {}, "rows 320001536, .* says 320077824"),
        ({"ple_embed_dim": 5120}, {}, "values a row 160, .* says 320"),
    ],
)  # fmt: skip
def test_arrays_that_contradict_the_config(
    config: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_json(tmp_path / "config.json", QWEN_CONFIG | config)
    write_safetensors(tmp_path / "model.safetensors", qwen_parts() | changes)
    with pytest.raises(SpecMismatch, match=message):
        spec_from_checkpoint(tmp_path)


def test_shards_that_are_missing(tmp_path: Path) -> None:
    """A part of a table is no contradiction where the rest may lie elsewhere."""
    write_json(tmp_path / "config.json", QWEN_CONFIG)
    parts = qwen_parts()
    last = next(name for name in parts if "shard_127." in name)
    middle = next(name for name in parts if "shard_5." in name)
    path = tmp_path / "model-00001-of-00002.safetensors"
    write_safetensors(path, {name: value for name, value in parts.items() if name != middle})
    assert spec_from_checkpoint(tmp_path).n_rows == 320_001_536
    write_safetensors(path, {name: value for name, value in parts.items() if name != last})
    assert spec_from_checkpoint(path).n_rows == 320_001_536
    with pytest.raises(SpecMismatch, match=r"127 shards .*rows 317501524"):
        spec_from_checkpoint(tmp_path)
    index = {"weight_map": {last: "model-00002-of-00002.safetensors", middle: path.name}}
    write_json(tmp_path / "model.safetensors.index.json", index)
    assert spec_from_checkpoint(tmp_path).n_rows == 320_001_536
    write_safetensors(path, parts | {last: ("BF16", (2_500_013, 160))})
    with pytest.raises(InvalidInput, match="expected equal ones and a shorter last"):
        spec_from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("preset", "template", "config"),
    [
        ("longcat-flash-lite", "model.ngram_embeddings.embedders.{}.weight",
         {"vocab_size": 131_072, "hidden_size": 3072, "emb_neighbor_num": 4, "emb_split_num": 4,
          "ngram_vocab_size_ratio": 78, "eos_token_id": 2}),
        ("longcat-2.0", "model.oe_embed_tokens{}.weight",
         {"vocab_size": 163_840, "hidden_size": 8192, "oe_neighbor_num": 5, "oe_split_num": 4,
          "oe_vocab_size_ratio": 100.567, "eos_token_id": 2}),
    ],
)  # fmt: skip
def test_longcat(preset: str, template: str, config: dict[str, Any], tmp_path: Path) -> None:
    spec = load_spec(preset)
    rows = list(chain.from_iterable(spec.layers[0].moduli))
    tables = {template.format(idx): ("BF16", (n_rows, spec.row_width)) for idx, n_rows in enumerate(rows)}
    path = write_safetensors(tmp_path / "model.safetensors", tables)
    assert spec_from_checkpoint(path).fingerprint == spec.fingerprint
    write_json(tmp_path / "config.json", config)
    assert spec_from_checkpoint(tmp_path).fingerprint == spec.fingerprint
    assert spec_from_checkpoint(path).provenance == "config.json, held against the tensors of model.safetensors"
    for name, wrong, message in (
        (template.format(7), (rows[7] + 2, spec.row_width), f"{rows[7] + 2}, .* says {rows[7]}"),
        (template.format(len(rows)), (rows[0], spec.row_width), "says none"),
        (template.format(3), (rows[3], 128), "values a row 128"),
    ):
        write_safetensors(path, tables | {name: ("BF16", wrong)})
        with pytest.raises(SpecMismatch, match=message):
            spec_from_checkpoint(tmp_path)
    # The same tables under the other name belong to a model whose rules are not known.
    other = "oe_embed_tokens{}.weight" if "embedders" in template else "ngram_embeddings.embedders.{}.weight"
    (tmp_path / "config.json").unlink()
    write_safetensors(path, {other.format(idx): value for idx, value in enumerate(tables.values())})
    with pytest.raises(InvalidInput, match="give the model's --config"):
        spec_from_checkpoint(path)


def test_gemma(tmp_path: Path) -> None:
    name = "model.language_model.embed_tokens_per_layer.weight"
    path = write_safetensors(tmp_path / "model.safetensors", {name: ("BF16", (262_144, 7680))})
    with pytest.raises(InvalidInput, match=r"tables of Gemma and no config\.json.*any preset.*--config"):
        spec_from_checkpoint(path)
    config = {"vocab_size": 262_400, "vocab_size_per_layer_input": 262_144, "hidden_size_per_layer_input": 256}
    write_json(tmp_path / "config.json", config | {"num_hidden_layers": 30})
    assert spec_from_checkpoint(path).fingerprint == load_spec("gemma-3n-e2b").fingerprint
    write_json(tmp_path / "config.json", config | {"num_hidden_layers": 35})
    with pytest.raises(SpecMismatch, match=r"values a row 7680, .* says 8960"):
        spec_from_checkpoint(path)


def heads_tensors(spec: AddressSpec, template: str = "{}.multi_head_embedding") -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for layer in spec.layers:
        prefix = template.format(layer.layer_id)
        tensors[f"{prefix}.embedding.weight"] = ("F32", (layer.n_rows, spec.row_width))
        tensors[f"{prefix}.offsets"] = np.array(layer.offsets)
    return tensors


def test_engram_peft(tmp_path: Path, v4_vocabulary: Vocabulary) -> None:
    spec = load_spec("engram-peft", vocabulary=v4_vocabulary)
    path = write_safetensors(tmp_path / "engram_adapters.safetensors", heads_tensors(spec))
    with pytest.raises(InvalidInput, match="--vocab"):
        spec_from_checkpoint(path)
    assert spec_from_checkpoint(path, vocabulary=v4_vocabulary).fingerprint == spec.fingerprint
    config = {
        "model_type": "engram", "engram_vocab_size_per_ngram": [1_131_200, 1_131_200], "ngram_sizes": [2, 3],
        "n_head_per_ngram": 8, "embedding_dim": 1280, "target_layers": [1, 14], "compressed_vocab_size": 99_092,
        "enable_tokenizer_compression": True, "pad_id": 2, "seed": 0,
    }  # fmt: skip
    write_json(tmp_path / "config.json", config)
    assert spec_from_checkpoint(tmp_path).fingerprint == spec.fingerprint
    write_json(tmp_path / "config.json", config | {"target_layers": [1, 15]})
    with pytest.raises(SpecMismatch, match="layer 14"):
        spec_from_checkpoint(tmp_path)
    # Layer 14 trained alone has other primes, so other rows.
    alone = spec_from_config(write_json(tmp_path / "config.json", config | {"target_layers": [14]}))
    assert alone.n_rows != spec.layer(14).n_rows
    write_safetensors(path, {name: value for name, value in heads_tensors(spec).items() if name.startswith("14.")})
    with pytest.raises(SpecMismatch, match=r"14\.multi_head_embedding"):
        spec_from_checkpoint(tmp_path)


def test_the_demo(tmp_path: Path) -> None:
    spec = load_spec("engram-demo")
    tensors = heads_tensors(spec, "layers.{}.engram.multi_head_embedding")
    path = write_safetensors(tmp_path / "model.safetensors", tensors)
    assert spec_from_checkpoint(path).fingerprint == spec.fingerprint


def test_checkpoints_without_a_table_or_with_two(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", {"lm_head.weight": ("BF16", (5, 5))})
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model-3.safetensors"}}
    write_json(tmp_path / "model.safetensors.index.json", index)
    with pytest.raises(InvalidInput, match=r"1 tensors in 1 files \(2 files of its index are not here, model-2"):
        spec_from_checkpoint(path)
    write_safetensors(path, qwen_arrays() | v4_part(1))
    with pytest.raises(InvalidInput, match="tables of Qwen and of DeepSeek"):
        spec_from_checkpoint(path)
    write_safetensors(path, {"layers.1.engram.embed.weight": ("F8_E4M3", (384_006_168,))})
    with pytest.raises(InvalidInput, match="expected rows of values"):
        spec_from_checkpoint(path)
    name = next(name for name in qwen_arrays() if name.endswith("layer_multipliers"))
    write_safetensors(path, {name: ("F32", (3,))})
    with pytest.raises(InvalidInput, match="been through a float is wrong"):
        spec_from_checkpoint(path)


def test_tensors_of_no_preset_ask_for_the_config(tmp_path: Path) -> None:
    for changes in (changed_array("layer_multipliers", 0), changed_array("vocab_sizes", 3)):
        path = write_safetensors(tmp_path / "x.safetensors", qwen_arrays() | changes)
        with pytest.raises(InvalidInput, match=r"of the preset qwen3\.8-flash-next; give the model's --config"):
            spec_from_checkpoint(path)
    shard = {"layers.1.ple.ngram_embedding.shard_0.weight": ("BF16", (2_500_012, 160))}
    with pytest.raises(InvalidInput, match="--config"):
        spec_from_checkpoint(write_safetensors(tmp_path / "x.safetensors", shard))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_nothing_else(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    readers: dict[Path, Callable[[Path], AddressSpec]] = {
        write_safetensors(directory / "x.safetensors", qwen_arrays()): spec_from_checkpoint,
        write_gguf(directory / "x.gguf", entries_of(SMALL, "llama.cpp", TOKEN_MAP)): spec_from_gguf,
    }
    for path, read in readers.items():
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, min(len(content), 2000) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            read(path)
        except EngramError as error:
            assert isinstance(error, InvalidInput | SpecMismatch)  # noqa: PT017
