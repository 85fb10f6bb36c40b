"""Which tokens are the same to a table? The keys under which a rule folds tokens together.

The DeepSeek rule, after the published `CompressedTokenizer`: decode a token on its own; where the bytes are no
whole UTF-8 text the token string itself is the key; otherwise the normalised text is, or the text as it stands
where nothing is left of it. `reference.py` holds the same rule in plain Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer

REPLACEMENT = "\ufffd"
_LONE_SPACE = "\ue000"


def normaliser() -> Normalizer:
    """The published chain; the sentinel keeps a text that is one space from being stripped to nothing."""
    from tokenizers import Regex, normalizers

    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
            normalizers.Replace(Regex(r"^ $"), _LONE_SPACE),
            normalizers.Strip(),
            normalizers.Replace(_LONE_SPACE, " "),
        ]
    )


def fold_keys(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[str]:
    """The key of every token id, in order: equal keys fold together.

    Parameters
    ----------
    tokenizer
        Decodes single ids, special tokens kept.
    tokens
        Token strings by id, 0 to n - 1.
    """
    normalise = normaliser().normalize_str
    texts = tokenizer.decode_batch([[token_id] for token_id in range(len(tokens))], skip_special_tokens=False)
    return [
        token if REPLACEMENT in text else normalise(text) or text for token, text in zip(tokens, texts, strict=True)
    ]


def dense_ids(keys: Iterable[str]) -> list[int]:
    """Ids 0, 1, 2, … in order of each key's first appearance.

    >>> dense_ids(["the", " ", "the"])
    [0, 1, 0]
    """
    seen: dict[str, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def minimum_ids(keys: Iterable[str]) -> list[int]:
    """The smallest position that holds each key: ids keep their range, and gaps remain.

    >>> minimum_ids(["the", " ", "the"])
    [0, 1, 0]
    """
    first: dict[str, int] = {}
    return [first.setdefault(key, position) for position, key in enumerate(keys)]
