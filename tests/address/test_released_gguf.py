"""Specs from GGUF files: every spelling gives one fingerprint, and whatever disagrees is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from released_files import (
    QWEN,
    QWEN_TENSORS,
    SMALL,
    TOKEN_MAP,
    V4,
    Entries,
    entries_of,
    qwen_entries,
    third_entries,
    v4_tensors,
    write_gguf,
)

from engram_tables import load_spec
from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.address.released.checkpoints import spec_from_gguf
from engram_tables.address.released.configs import map_digest
from engram_tables.address.released.models import spec_from_model
from engram_tables.address.vocabulary import build_vocabulary
from engram_tables.errors import InvalidInput, SpecMismatch


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
