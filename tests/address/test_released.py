"""Specs from checkpoints: one fingerprint by every route, and whatever disagrees is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released_files import (
    QWEN,
    QWEN_CONFIG,
    QWEN_TENSORS,
    SMALL,
    TOKEN_MAP,
    V4,
    V4_CONFIG,
    entries_of,
    qwen_arrays,
    qwen_entries,
    qwen_parts,
    v4_part,
    write_gguf,
    write_json,
    write_safetensors,
)

from engram_tables import load_spec
from engram_tables.address.released.checkpoints import spec_from_checkpoint, spec_from_gguf
from engram_tables.address.released.configs import spec_from_config
from engram_tables.address.released.models import spec_from_model
from engram_tables.address.spec import AddressSpec
from engram_tables.address.spec_files import read_spec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import EngramError, InvalidInput, SpecMismatch


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
        ({"ple_layer_ids": [3]}, {}, "found layer 1, the spec .* has layers 2"),
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
    with pytest.raises(InvalidInput, match=r"lay the model's config\.json beside them"):
        spec_from_checkpoint(path)


def test_gemma(tmp_path: Path) -> None:
    name = "model.language_model.embed_tokens_per_layer.weight"
    path = write_safetensors(tmp_path / "model.safetensors", {name: ("BF16", (262_144, 7680))})
    with pytest.raises(InvalidInput, match=r"tables of Gemma.*any preset.*config\.json beside them"):
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
        with pytest.raises(InvalidInput, match=r"flash-next; lay the model's config\.json beside them"):
            spec_from_checkpoint(path)
    shard = {"layers.1.ple.ngram_embedding.shard_0.weight": ("BF16", (2_500_012, 160))}
    with pytest.raises(InvalidInput, match=r"config\.json beside them"):
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
