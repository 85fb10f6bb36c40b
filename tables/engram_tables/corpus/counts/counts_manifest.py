"""The manifest of a counts directory, `counts.json`: what was counted, how much, and in which files.

Owns its keys and what they must fulfil. Knows no Parquet.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.counts_layout import part_name
from engram_tables.corpus.counts.windows import MAX_CANONICAL_SIZE, MAX_ORDER
from engram_tables.errors import InvalidInput
from engram_tables.units import canonical_json

SCHEMA = "engram.counts/2"
MANIFEST_NAME = "counts.json"
ANY_VERSION = "engram.counts/"
_MAX_MANIFEST_BYTES = 1 << 28

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountsSubject:
    """What was counted, and how: the same for every part of one count, and what two counts must share to be merged.

    Attributes
    ----------
    vocab_sha256, canonical_size, tokenizer_sha256
        The vocabulary: the digest of its map, the bound of its canonical ids, and its tokenizer's digest.
    next_size
        Bound of the raw token that follows, where it was counted; 0 otherwise.
    pad_id
        Canonical id that stands before a document, where the windows that reach there were counted.
    min_count
        N-grams that occur less often were left out; order 1 is whole always.
    """

    vocab_sha256: str
    canonical_size: int
    tokenizer_sha256: str | None = None
    next_size: int = 0
    pad_id: int | None = None
    min_count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFigures:
    """How much was counted: sums over documents, so that any division of a corpus gives the same."""

    n_tokens: int = 0
    n_documents: int = 0
    n_dead: int = 0
    read_bytes: int = 0
    n_bad_lines: int = 0
    replaced_bytes: int = 0

    def __add__(self, other: CorpusFigures) -> CorpusFigures:
        mine, theirs = asdict(self), asdict(other)
        return CorpusFigures(**{name: mine[name] + theirs[name] for name in mine})


def build_manifest(
    subject: CountsSubject, figures: CorpusFigures, starts: I64, files: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The manifest of finished files.

    Parameters
    ----------
    starts
        int64 (n_parts,): the first leading token of each part.
    files
        Entries as `RowWriter.close` gives them, with their `part`.
    """
    entries = sorted(files, key=lambda entry: (entry["order"], entry["part"]))
    orders: dict[str, dict[str, int]] = {}
    for entry in entries:
        totals = orders.setdefault(str(entry["order"]), dict.fromkeys(_SUMS, 0))
        for name in _SUMS:
            totals[name] += entry.get(name, 0)
    manifest = {
        "schema": SCHEMA,
        "vocabulary": {
            "map_sha256": subject.vocab_sha256,
            "canonical_size": subject.canonical_size,
            "tokenizer_sha256": subject.tokenizer_sha256,
        },
        "corpus": asdict(figures),
        "next": "raw" if subject.next_size else None,
        "next_size": subject.next_size,
        "pad_id": subject.pad_id,
        "min_count": subject.min_count,
        "part_starts": starts.tolist(),
        "orders": orders,
        "files": [
            {
                "name": part_name(entry["order"], entry["part"]),
                "order": entry["order"],
                "part": entry["part"],
                "n_rows": entry["n_rows"],
                "file_bytes": entry["file_bytes"],
                "sha256": entry["sha256"],
                "footer_sha256": entry["footer_sha256"],
            }
            for entry in entries
        ],
    }
    return manifest | {"manifest_sha256": _manifest_digest(manifest)}


_SUMS = ("n_rows", "n_distinct", "n_total", "dropped_distinct", "dropped_total")


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The content of counts.json."""
    return json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n"


def schema_of(path: Path) -> str:
    """The schema that a manifest states, or "" where nothing can be made out."""
    try:
        manifest = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_MANIFEST_BYTES else None
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return ""
    return str(manifest.get("schema")) if isinstance(manifest, dict) else ""


def _manifest_digest(manifest: dict[str, Any]) -> str:
    body = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(canonical_json(body)).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a counts directory, every value of which is of its kind and fits the others.

    Raises
    ------
    InvalidInput
        No manifest, another version, a damaged one, or one that contradicts itself.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise InvalidInput(
            f"{directory}: no {MANIFEST_NAME} there, so this is no counts directory; make one with `engram count`"
        )
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise InvalidInput(f"{path}: {path.stat().st_size:,} bytes, expected a manifest of a few thousand")
    try:
        manifest: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{path}: not JSON ({error}), expected the manifest of `engram count`; count again"
        ) from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or schema != SCHEMA:
        raise InvalidInput(f"{path}: found schema {schema!r}, expected {SCHEMA!r}; count again with this version")
    try:
        digest = _manifest_digest(manifest)
    except (TypeError, RecursionError):
        digest = "undefined"
    if manifest.get("manifest_sha256") != digest:
        raise InvalidInput(
            f"{path}: its content has SHA-256 {digest}, it says {manifest.get('manifest_sha256')!r}; "
            "it was changed or damaged: copy it again or count again"
        )
    try:
        _check(manifest)
    except _Contradiction as found:
        raise InvalidInput(f"{path}: {found}; it was not written by `engram count`: count again") from None
    return manifest


class _Contradiction(Exception):
    """What a manifest says that cannot be."""


_TOP_KEYS = {
    "schema", "vocabulary", "corpus", "next", "next_size", "pad_id", "min_count", "part_starts", "orders", "files",
    "manifest_sha256",
}  # fmt: skip
_FILE_KEYS = {"name", "order", "part", "n_rows", "file_bytes", "sha256", "footer_sha256"}
_MOST = 2**63 - 1


def _check(manifest: dict[str, Any]) -> None:
    _need_keys(manifest, _TOP_KEYS, "the manifest")
    vocabulary, corpus = manifest["vocabulary"], manifest["corpus"]
    _need_keys(vocabulary, {"map_sha256", "canonical_size", "tokenizer_sha256"}, "vocabulary")
    _need(_is_digest(vocabulary["map_sha256"]), "vocabulary.map_sha256", vocabulary["map_sha256"])
    tokenizer = vocabulary["tokenizer_sha256"]
    _need(tokenizer is None or _is_digest(tokenizer), "vocabulary.tokenizer_sha256", tokenizer)
    size = vocabulary["canonical_size"]
    _need(_is_count(size, least=1, most=MAX_CANONICAL_SIZE), "vocabulary.canonical_size", size)
    _need_keys(corpus, {field.name for field in fields(CorpusFigures)}, "corpus")
    for name, figure in corpus.items():
        _need(_is_count(figure), f"corpus.{name}", figure)
    next_size, pad_id = manifest["next_size"], manifest["pad_id"]
    _need(_is_count(next_size, most=MAX_CANONICAL_SIZE), "next_size", next_size)
    _need(manifest["next"] == ("raw" if next_size else None), "next", manifest["next"])
    _need(pad_id is None or _is_count(pad_id, most=size - 1), "pad_id", pad_id)
    _need(_is_count(manifest["min_count"], least=1), "min_count", manifest["min_count"])
    starts = manifest["part_starts"]
    _need(isinstance(starts, list) and starts[:1] == [0], "part_starts", starts)
    _need(all(_is_count(start, most=size - 1) for start in starts), "part_starts", starts)
    _need(all(one < other for one, other in pairwise(starts)), "part_starts", starts)
    _check_files(manifest, n_parts=len(starts))


def _check_files(manifest: dict[str, Any], *, n_parts: int) -> None:
    orders, files = manifest["orders"], manifest["files"]
    _need(isinstance(orders, dict) and "1" in orders, "orders", orders)
    _need(all(order in map(str, range(1, MAX_ORDER + 1)) for order in orders), "orders", list(orders))
    _need(isinstance(files, list) and len(files) == len(orders) * n_parts, "files", files)
    n_rows = dict.fromkeys(orders, 0)
    for at, entry in enumerate(files):
        where = f"files[{at}]"
        _need_keys(entry, _FILE_KEYS, where)
        # Orders ascend, and the parts of each.
        order, part = sorted(orders)[at // n_parts], at % n_parts
        _need(entry["order"] == int(order) and entry["part"] == part, where, entry)
        _need(entry["name"] == part_name(int(order), part), f"{where}.name", entry["name"])
        for name in ("n_rows", "file_bytes"):
            _need(_is_count(entry[name]), f"{where}.{name}", entry[name])
        for name in ("sha256", "footer_sha256"):
            _need(_is_digest(entry[name]), f"{where}.{name}", entry[name])
        n_rows[order] += entry["n_rows"]
    for order, told in orders.items():
        _need_keys(told, set(_SUMS), f"orders.{order}")
        for name, figure in told.items():
            _need(_is_count(figure), f"orders.{order}.{name}", figure)
        _need(told["n_rows"] == n_rows[order], f"orders.{order}.n_rows", told["n_rows"])


def _need_keys(value: Any, keys: set[str], where: str) -> None:
    if not isinstance(value, dict) or set(value) != keys:
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise _Contradiction(f"{where}: found {found}, expected the keys {', '.join(sorted(keys))}")


def _need(fits: bool, where: str, value: Any) -> None:
    if not fits:
        raise _Contradiction(f"{where}: found {str(value)[:80]}, which cannot be beside the rest")


def _is_count(value: Any, *, least: int = 0, most: int = _MOST) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_digest(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
