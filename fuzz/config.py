"""The reader of a model's config.json: any text gives a spec that reads back as itself, or an error of ours."""

from __future__ import annotations

import json

import atheris

with atheris.instrument_imports(include=["engram_tables.address.released.configs", "engram_tables.address.spec"]):
    from engram_tables.address.released.configs import spec_from_config
    from engram_tables.address.spec import AddressSpec
    from engram_tables.errors import EngramError

from fuzz.harness import BytesFile, fuzz


def one_input(data: bytes) -> None:
    """A config as it is."""
    try:
        spec = spec_from_config(BytesFile(data))
    except EngramError:
        return
    assert AddressSpec.from_json(spec.to_json()).fingerprint == spec.fingerprint


def seeds() -> dict[str, bytes]:
    """A model of each family."""
    configs = {
        "deepseek": {
            "architectures": ["DeepseekV41ForCausalLM"],
            "text_config": {
                "engram_layer_ids": [1, 14], "engram_num_embeddings": [384006168, 384016682],
                "engram_max_ngram_size": 4, "engram_vocab_size": 16000000, "engram_n_heads": 8, "engram_head_dim": 256,
                "engram_pad_token_id": 2, "engram_compressed_vocab_size": 99092, "vocab_size": 129280,
            },
        },
        "qwen": {
            "model_type": "qwen4_exp",
            "text_config": {
                "ple_layer_ids": [2], "ple_embed_dim": 128, "ngram_size": 3, "heads_per_ngram": 2,
                "ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 4,
                "seed": 1234, "eos_token_id": 7, "vocab_size": 100, "hidden_size": 128,
            },
        },
        "longcat": {
            "model_type": "longcat_flash", "vocab_size": 100, "emb_neighbor_num": 3, "emb_split_num": 2,
            "ngram_vocab_size_ratio": 7.5, "eos_token_id": 2, "hidden_size": 64,
        },
    }  # fmt: skip
    return {name: json.dumps(config).encode() for name, config in configs.items()}


WORDS = (
    '"engram_seed":', '"engram_pad_id":', '"oe_vocab_size_ratio":', '"ple_layer_ids":', "null", "true", "-1", "1e308",
    "9223372036854775808", "[]", "{}", '"text_config":', "[1,1]", "0.5", "NaN",
)  # fmt: skip

if __name__ == "__main__":
    fuzz(one_input, seeds(), WORDS)
