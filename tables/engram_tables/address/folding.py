"""Which tokens are the same to a table? The keys under which a rule folds tokens together.

The DeepSeek rule, after the published `CompressedTokenizer`: decode a token on its own; where the bytes are no
whole UTF-8 text the token string itself is the key; otherwise the normalised text is, or the text as it stands
where nothing is left of it. `reference.py` holds the same rule in plain Python.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

REPLACEMENT = "\ufffd"
_LONE_SPACE = "\ue000"


class Folding(NamedTuple):
    """How one rule makes a token's key.

    Attributes
    ----------
    white_space
        Regular expression of what collapses to one space.
    broken_apart
        Whether tokens that are no whole UTF-8 text fold with nothing, or with a form that reads like their string.
    """

    white_space: str
    broken_apart: bool


DEEPSEEK = Folding(white_space=r"[ \t\r\n]+", broken_apart=False)
# modded-nanogpt's map: these two differences give the 32,980 classes published for the vocabulary of GPT-2.
MIN_ID = Folding(white_space=r"\s+", broken_apart=True)


def normaliser(folding: Folding = DEEPSEEK) -> Normalizer:
    """The published chain; the sentinel keeps a text that is one space from being stripped to nothing."""
    from tokenizers import Regex, normalizers

    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(folding.white_space), " "),
            normalizers.Replace(Regex(r"^ $"), _LONE_SPACE),
            normalizers.Strip(),
            normalizers.Replace(_LONE_SPACE, " "),
        ]
    )


def fold_keys(texts: Iterable[str], tokens: Iterable[str], folding: Folding = DEEPSEEK) -> list[str]:
    """The key of every token: equal keys fold together.

    Parameters
    ----------
    texts
        What each token decodes to by itself, special tokens kept.
    tokens
        The token strings, in the same order.
    """
    normalise = normaliser(folding).normalize_str
    # No form that was normalised from a whole text begins with U+FFFD.
    apart = REPLACEMENT if folding.broken_apart else ""
    return [
        apart + token if REPLACEMENT in text else normalise(text) or text
        for text, token in zip(texts, tokens, strict=True)
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
