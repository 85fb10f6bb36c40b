"""The words by which a manifest says what must be known to read a table, and to make another one from it.

Within a version of the format new codecs, layouts and entries come with new words: a program that does not know one
refuses by name what it would get wrong, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engram_tables.errors import InvalidInput, UnsupportedTable
from engram_tables.storage.codecs.codec import CODEC_NAMES
from engram_tables.storage.table.layout import LAYOUT_NAMES

OWNED = "owned"
WRITER_WORDS = ("init", "source", "vocabulary")
"""Names of the entries that say something of the rows' contents."""

_OPAQUE = re.compile(r"opaque-[1-9][0-9]{0,8}")
_WORD = re.compile(r"[a-z][a-z0-9_:.-]{0,63}")


def reader_words(codec: str, layout: str, *, is_partial: bool) -> tuple[str, ...]:
    """The reader features of a table: its codec, its layout, and whether rows are missing from it."""
    words = {f"codec:{_kind(codec)}", f"layout:{_kind(layout)}"}
    return tuple(sorted(words | ({OWNED} if is_partial else set())))


def feature_words(body: Mapping[str, Any], key: str) -> list[str]:
    """The list of words at `key` of a manifest; `InvalidInput` if it is none."""
    words = body[key]
    if not isinstance(words, list) or not all(isinstance(word, str) and _WORD.fullmatch(word) for word in words):
        raise InvalidInput(f"{key}: found {words!r}, expected a list of words; copy or build the table again")
    return words


def check_reader_features(body: Mapping[str, Any], path: str) -> None:
    """`UnsupportedTable` where a manifest asks for what is not known here, by its name."""
    known = {f"codec:{name}" for name in (*CODEC_NAMES, "opaque")} | {f"layout:{_kind(name)}" for name in LAYOUT_NAMES}
    unknown = [word for word in feature_words(body, "reader_features") if word not in known | {OWNED}]
    if unknown:
        raise UnsupportedTable(
            f"{path}: found the reader features {', '.join(unknown)}, expected some of {OWNED}, "
            f"{', '.join(sorted(known))}; read it with a version that knows them",
            path=path,
        )
    codec, layout = body["codec"], body["layout"]
    is_opaque = isinstance(codec, str) and _OPAQUE.fullmatch(codec) is not None
    for key, holds, names in (
        ("codec", is_opaque or codec in CODEC_NAMES, (*CODEC_NAMES, "opaque-N")),
        ("layout", layout in LAYOUT_NAMES, LAYOUT_NAMES),
    ):
        if not holds:
            raise UnsupportedTable(
                f"{path}: found {key} {body[key]!r}, expected one of {', '.join(names)}; "
                "read it with a version that knows it",
                path=path,
            )


def _kind(name: str) -> str:
    """A name without the number that parametrises it: `aligned` of `aligned-64`."""
    stem = name.rpartition("-")[0]
    return stem if stem in ("aligned", "opaque") else name
