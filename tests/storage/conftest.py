from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import settings

from engram_tables.address.vocabulary import build_vocabulary

# A first call compiles its kernel, which takes seconds.
settings.register_profile("kernels", deadline=None)
settings.load_profile("kernels")


@pytest.fixture(scope="session")
def vocabulary_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of a word-level tokenizer of a few hundred tokens."""
    from tokenizers import Tokenizer, models

    directory = tmp_path_factory.mktemp("vocabulary")
    tokens = [f"{prefix}{k}" for k in range(150) for prefix in ("a", "A")]
    tokenizer = Tokenizer(models.WordLevel({token: k for k, token in enumerate(tokens)}, unk_token=tokens[0]))
    (directory / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str())))
    vocabulary = build_vocabulary(directory / "tokenizer.json")
    vocabulary.save(directory / "v.parquet")
    return directory / "v.parquet"
