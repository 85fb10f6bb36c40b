"""A tokenizer that every test can read: one token a character, 26 letters, the rest unknown."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split


@pytest.fixture
def letter_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({"?": 0} | {chr(97 + at): at + 1 for at in range(26)}, unk_token="?"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    return tokenizer
