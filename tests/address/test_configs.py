"""Specs from config.json of each family: one fingerprint by every route, and contradictions refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_tables import load_spec
from engram_tables.address.released.configs import map_digest, spec_from_config
from engram_tables.address.released.models import spec_from_model
from engram_tables.address.spec import HistoryRule
from engram_tables.errors import InvalidInput, SpecMismatch

QWEN = {
    "model_type": "qwen4_exp_text", "ple_layer_ids": [2], "ple_embed_dim": 2560, "ngram_size": 3, "heads_per_ngram": 8,
    "ngram_vocab_size_base": 20_000_000, "make_ngram_vocab_size_divisible_by": 128, "split_ngram_parts": 128,
    "eos_token_id": 248_044, "vocab_size": 248_320, "hidden_size": 2560,
}  # fmt: skip
LONGCAT = {
    "vocab_size": 131_072, "hidden_size": 3072, "emb_neighbor_num": 4, "emb_split_num": 4,
    "ngram_vocab_size_ratio": 78, "eos_token_id": 2,
}  # fmt: skip
LONGCAT_2 = {
    "vocab_size": 163_840, "hidden_size": 8192, "oe_neighbor_num": 5, "oe_split_num": 4,
    "oe_vocab_size_ratio": 100.567, "eos_token_id": 2,
}  # fmt: skip
GEMMA = {
    "vocab_size": 262_400, "vocab_size_per_layer_input": 262_144, "hidden_size_per_layer_input": 256,
    "num_hidden_layers": 30,
}  # fmt: skip
NANOCHAT = {
    "vocab_size": 65_536, "engram_table_size": 300_000_000, "engram_layers": [3, 7, 11, 15], "engram_rank": 128,
    "engram_orders": [2, 3], "engram_order_weights": [2, 2],
}  # fmt: skip
PEFT = {
    "model_type": "engram", "engram_vocab_size_per_ngram": [1_131_200, 1_131_200], "ngram_sizes": [2, 3],
    "n_head_per_ngram": 8, "embedding_dim": 1280, "target_layers": [14, 1], "enable_tokenizer_compression": True,
    "compressed_vocab_size": 99_092, "pad_id": 2, "seed": 0, "engine": "deepseek",
}  # fmt: skip


def _write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("preset", "config"),
    [
        ("qwen3.8-flash-next", QWEN),
        ("longcat-flash-lite", LONGCAT),
        ("longcat-2.0", LONGCAT_2),
        ("gemma-3n-e2b", GEMMA),
        ("gemma-3n-e4b", GEMMA | {"num_hidden_layers": 35}),
        ("nanochat-300m", NANOCHAT),
    ],
)
def test_a_config_gives_the_fingerprint_of_its_preset(preset: str, config: dict[str, Any], tmp_path: Path) -> None:
    spec = load_spec(preset)
    flat = spec_from_config(_write(tmp_path / "flat.json", config))
    nested = spec_from_config(_write(tmp_path / "nested.json", {"architectures": ["X"], "text_config": config}))
    assert flat.fingerprint == nested.fingerprint == spec.fingerprint
    assert (flat.row_width, flat.slices, flat.separate_heads) == (spec.row_width, spec.slices, spec.separate_heads)


def test_a_directory_without_tensors_is_its_config(tmp_path: Path) -> None:
    _write(tmp_path / "config.json", LONGCAT)
    spec = spec_from_model(tmp_path)
    assert (spec.fingerprint, spec.name) == (load_spec("longcat-flash-lite").fingerprint, tmp_path.name)
    with pytest.raises(InvalidInput, match="nothing there"):
        spec_from_model(tmp_path / "missing.json")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InvalidInput, match="Git LFS pointer"):
        spec_from_model(tmp_path)


def test_keys_in_both_places_must_agree_where_they_are_read(tmp_path: Path) -> None:
    both = QWEN | {"model_type": "qwen4_exp", "num_hidden_layers": 1, "text_config": QWEN}
    spec = spec_from_config(_write(tmp_path / "config.json", both))
    assert spec.fingerprint == load_spec("qwen3.8-flash-next").fingerprint
    with pytest.raises(SpecMismatch, match=r"eos_token_id is 5 at the top and 248044 in text_config"):
        spec_from_config(_write(tmp_path / "config.json", both | {"eos_token_id": 5}))


def test_code_defaults_stand_where_a_config_is_silent(tmp_path: Path) -> None:
    silent = {key: QWEN[key] for key in ("ple_layer_ids", "eos_token_id", "vocab_size", "hidden_size")}
    spec = spec_from_config(_write(tmp_path / "config.json", silent))
    assert spec.fingerprint == load_spec("qwen3.8-flash-next").fingerprint


def test_engram_peft_with_the_map_saved_beside_it(tmp_path: Path) -> None:
    # Three tokens of one class, then one by one: token 2 maps to canonical 0.
    token_map = np.array([0, 0, 0, *range(1, 50)])
    config = _write(tmp_path / "config.json", PEFT | {"compressed_vocab_size": 50})
    with pytest.raises(InvalidInput, match="give --vocab"):
        spec_from_config(config)
    mapping = {str(token): int(canonical) for token, canonical in enumerate(token_map)}
    saved = {"compressed_vocab_size": 50, "vocab_size": 52, "mapping": mapping}
    _write(tmp_path / "compression_config.json", saved)
    spec = spec_from_config(config)
    assert (spec.canonical_size, spec.fill_id, spec.vocab_sha256) == (50, 0, map_digest(token_map))
    assert spec.layer_ids == (1, 14)
    assert [layer.n_rows for layer in spec.layers] == [2_264_076, 2_266_756]
    assert spec.row_width == 80
    assert (spec.mix.lagged, spec.mix.oldest_first) == (True, True)
    _write(tmp_path / "config.json", PEFT | {"compressed_vocab_size": 51})
    with pytest.raises(SpecMismatch, match=r"51.*maps to 50"):
        spec_from_config(config)
    mapping.pop("7")
    _write(tmp_path / "compression_config.json", saved)
    with pytest.raises(InvalidInput, match="gaps"):
        spec_from_config(config)


def test_engram_peft_without_compression_hashes_token_ids(tmp_path: Path) -> None:
    config = PEFT | {"enable_tokenizer_compression": False, "compressed_vocab_size": 32_000, "pad_id": 7}
    spec = spec_from_config(_write(tmp_path / "config.json", config))
    assert (spec.folded, spec.canonical_size, spec.fill_id) == (False, 32_000, 7)


def test_engram_peft_of_the_qwen_engine(tmp_path: Path) -> None:
    config = PEFT | {"engine": "qwen_ple", "target_layers": [1]}
    spec = spec_from_config(_write(tmp_path / "config.json", config))
    qwen = load_spec("qwen3.8-flash-next")
    ids = [5, 248_044, 9, 1, 2]
    np.testing.assert_array_equal(spec.address(ids).rows, qwen.address(ids).rows)
    assert spec.n_rows == 320_001_446


def test_a_list_of_ends_of_sequence_is_asked_about(tmp_path: Path) -> None:
    config = _write(tmp_path / "config.json", QWEN | {"eos_token_id": [248_044, 248_046]})
    with pytest.raises(InvalidInput, match=r"first of a list.*last.*--eos"):
        spec_from_config(config)
    assert spec_from_config(config, eos=248_044).fingerprint == load_spec("qwen3.8-flash-next").fingerprint
    assert spec_from_config(config, eos=248_046).fill_id == 248_046
    with pytest.raises(SpecMismatch, match="none of its eos_token_id"):
        spec_from_config(config, eos=5)
    # A scalar beside the family's own keys comes before a list at the top.
    nested = {"eos_token_id": [1, 2], "text_config": QWEN}
    assert spec_from_config(_write(tmp_path / "nested.json", nested)).fill_id == 248_044
    missing = {key: value for key, value in LONGCAT.items() if key != "eos_token_id"}
    with pytest.raises(InvalidInput, match="name it with --eos"):
        spec_from_config(_write(tmp_path / "missing.json", missing))
    with pytest.raises(SpecMismatch, match="leave out --eos"):
        spec_from_config(_write(tmp_path / "scalar.json", QWEN), eos=3)


def test_longcat_special_tokens(tmp_path: Path) -> None:
    variant = LONGCAT | {"ngram_exclude_sp_token": True, "special_token_scope": "36:55,0:4"}
    spec = spec_from_config(_write(tmp_path / "config.json", variant | {"ngram_fix_normalize_factor": True}))
    assert spec.history == HistoryRule(
        fill_id=0, boundary_ids=(0,), boundary_closed=True, replaced=((0, 4), (36, 55)), replacement=0
    )
    assert spec.reduce is not None
    assert "square root of 13" in spec.reduce
    # By the rule: a special token hashes as 0 and sees nothing; who follows it sees itself alone.
    local = spec.address([100, 40, 200, 300]).rows[:, 0] - np.array(spec.layers[0].offsets)
    assert local[1].tolist() == [0] * 12
    assert local[2].tolist() == [200] * 12
    assert local[3, 0] == (300 + 200 * 131_072) % 10_223_617
    with pytest.raises(InvalidInput, match="special_token_scope is None"):
        spec_from_config(_write(tmp_path / "none.json", LONGCAT | {"ngram_exclude_sp_token": True}))
    for scope in ("4:0", "a:b", "1", "1:2:3", "", 5):
        with pytest.raises(InvalidInput, match="special_token_scope"):
            spec_from_config(_write(tmp_path / "bad.json", variant | {"special_token_scope": scope}))
    with pytest.raises(InvalidInput, match="outside of special_token_scope"):
        spec_from_config(_write(tmp_path / "eos.json", variant | {"eos_token_id": 9}))


def test_longcat_ignored_ids_hash_as_0(tmp_path: Path) -> None:
    spec = spec_from_config(_write(tmp_path / "config.json", LONGCAT | {"oe_ignored_token_ids": [7, 8, 20]}))
    assert spec.history == HistoryRule(fill_id=0, boundary_ids=(2,), replaced=((7, 9), (20, 21)))
    local = spec.address([100, 8, 200]).rows[:, 0] - np.array(spec.layers[0].offsets)
    assert local[1, 0] == 100 * 131_072 % 10_223_617
    assert local[2, 4] == (200 + 100 * 131_072**2) % 10_223_625
    assert spec_from_config(
        _write(tmp_path / "e.json", LONGCAT | {"oe_ignored_token_ids": [2]})
    ).history == HistoryRule(fill_id=0, replaced=((2, 3),))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama", "hidden_size": 1}, "model_type 'llama'.*DeepSeek.*Qwen.*LongCat.*Gemma"),
        ({}, "no model_type"),
        ([], "expected a JSON object"),
        (QWEN | {"ple_layer_ids": [0]}, "counted from 1"),
        (QWEN | {"ple_embed_dim": 2561}, "divide"),
        (QWEN | {"vocab_size": 248_320.0}, "float"),
        (QWEN | {"ngram_vocab_size_base": "many"}, "many"),
        (QWEN | {"make_ngram_vocab_size_divisible_by": 0}, "is 0, expected 1"),
        (QWEN | {"eos_token_id": 248_320}, "fill_id is 248320"),
        (LONGCAT | {"ngram_vocab_size_ratio": -1}, "expected more than 0"),
        (LONGCAT | {"ngram_vocab_size_ratio": "78"}, "expected a number"),
        (LONGCAT | {"text_vocab_size": 5}, "text_vocab_size"),
        (LONGCAT | {"oe_split_num": 5}, "differ"),
        (LONGCAT | {"emb_neighbor_num": 1}, "emb_neighbor_num is 1"),
        (LONGCAT | {"ngram_exclude_sp_token": 1}, "expected true or false"),
        (GEMMA | {"hidden_size_per_layer_input": 0}, "no per-layer embeddings"),
        (NANOCHAT | {"engram_rank": 30}, "rank 30"),
        (NANOCHAT | {"engram_orders": [2, 5]}, "no coefficient"),
        (PEFT | {"embedding_dim": 1281}, "a width that all heads divide"),
        (PEFT | {"ngram_sizes": [3, 2]}, "ascending"),
        (PEFT | {"engine": "qwen_ple"}, "8 and one layer"),
        (PEFT | {"engine": "qwen_ple", "target_layers": [1], "n_head_per_ngram": 3}, "n_head_per_ngram 3"),
        (PEFT | {"engine": "other"}, "engine 'other'"),
        (PEFT | {"prime_sizes": [3]}, "prime_sizes"),
        (PEFT | {"enable_tokenizer_compression": 0}, "true or false"),
        (NANOCHAT | {"engram_order_weights": [1, -1]}, "hashes of an order is -1"),
        (
            NANOCHAT | {"engram_order_weights": [2 * 10**8, 10**8], "engram_rank": 3 * 10**8},
            "hashes of an order|all orders",
        ),
        (LONGCAT | {"emb_neighbor_num": 10**4000, "emb_split_num": 10**4000}, "integer of 13288 bits"),
        (LONGCAT | {"hidden_size": 5}, "number of tables"),
        (
            LONGCAT | {"ngram_exclude_sp_token": True, "special_token_scope": "0:4", "oe_ignored_token_ids": [9]},
            "both set",
        ),
        (QWEN | LONGCAT, "of Qwen and of LongCat"),
        (QWEN | {"text_config": QWEN | {"ngram_size": 4}}, "ngram_size is 3 at the top and 4 in text_config"),
        (PEFT | {"compressed_vocab_size": None}, "no key compressed_vocab_size"),
    ],
)
def test_configs_that_contradict_or_lack_something(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidInput, SpecMismatch), match=message):
        spec_from_config(_write(tmp_path / "config.json", config))
