"""The manifest of a token store, `tokens.json`: what it says, how it is named, and what in one cannot be.

Owns names and figures. Reads no token: `token_store` holds the manifest against the files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from engram_tables.corpus.tokens.array_file import HEADER_BYTES
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.units import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = "engram.tokens/1"
MANIFEST_NAME = "tokens.json"
DEAD = 0xFFFFFFFF
"""In memory: a position that takes no part, and that no n-gram crosses. On disk the largest value of the dtype."""
MAX_TOKEN_SIZE = DEAD
SIXTEEN_BITS = 0xFFFF
"""Tokenizers with fewer ids than this are stored in uint16."""
STARTS_DTYPE = np.dtype("<i8")
FILE_KINDS = {"ids": "ids.npy", "starts": "starts.npy", "names": "names.parquet"}
"""What a shard consists of, and how those files' names end; names are there only where documents have request ids."""
CORPUS_FIGURES = ("read_bytes", "n_lines", "n_blank_lines", "n_bad_lines", "replaced_files", "replaced_bytes")
"""What a manifest says of the corpus."""
_ANY_VERSION = "engram.tokens/"
_MAX_MANIFEST_BYTES = 1 << 28


def ids_dtype(token_size: int) -> np.dtype[Any]:
    """The dtype on disk for ids below `token_size`, DEAD included.

    >>> ids_dtype(50_257).str, ids_dtype(129_280).str
    ('<u2', '<u4')
    """
    if not 1 <= token_size <= MAX_TOKEN_SIZE:
        raise CapacityError(f"token size: found {token_size:,}, expected 1 to {MAX_TOKEN_SIZE:,} token ids")
    return np.dtype("<u2" if token_size < SIXTEEN_BITS else "<u4")


def shard_file(shard: int, kind: str) -> str:
    """Name of a shard's file; `kind` is ids.npy, starts.npy or names.parquet.

    >>> shard_file(7, "ids.npy")
    'shard-00007.ids.npy'
    """
    return f"shard-{shard:05}.{kind}"


def names_schema() -> pa.Schema:
    """The one column of a shard's names: a document's request id, null where it has none."""
    import pyarrow as pa

    return pa.schema([pa.field("name", pa.string())])


def build_manifest(
    shards: list[dict[str, Any]], *, token_size: int, tokenizer_sha256: str | None, corpus: dict[str, int]
) -> dict[str, Any]:
    """The manifest of a store with these shards (entries as `token_shards` makes them), its own digest included."""
    manifest = {
        "schema": SCHEMA,
        "dtype": ids_dtype(token_size).name,
        "token_size": token_size,
        "tokenizer_sha256": tokenizer_sha256,
        **{key: sum(shard[key] for shard in shards) for key in ("n_tokens", "n_documents", "n_dead")},
        "corpus": corpus,
        "shards": shards,
    }
    return manifest | {"manifest_sha256": content_digest(manifest)}


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """What stands in the file: the same for one manifest everywhere."""
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"


def content_digest(record: dict[str, Any], *, key: str = "manifest_sha256") -> str:
    """SHA-256 of the canonical JSON of `record` without `key`."""
    return hashlib.sha256(canonical_json({k: v for k, v in record.items() if k != key})).hexdigest()


def has_manifest(directory: Path) -> bool:
    """Whether `directory` holds the manifest of a token store, of any version and in any state of its files."""
    path = directory / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_MANIFEST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and str(manifest.get("schema")).startswith(_ANY_VERSION)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of the token store `directory`, every figure in it checked against the others."""
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise InvalidInput(
            f"{directory}: no {MANIFEST_NAME} there, so this is no token store; make one with `engram tokenize`"
        )
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise InvalidInput(
            f"{path}: {path.stat().st_size:,} bytes, expected a manifest of {_MAX_MANIFEST_BYTES:,} at most"
        )
    try:
        manifest: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{path}: not JSON ({error}), expected the manifest of `engram tokenize`; tokenise again"
        ) from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or schema != SCHEMA:
        raise InvalidInput(f"{path}: found schema {schema!r}, expected {SCHEMA!r}; tokenise again with this version")
    try:
        digest = content_digest(manifest)
    except (TypeError, RecursionError):
        digest = "undefined"
    if manifest.get("manifest_sha256") != digest:
        raise InvalidInput(
            f"{path}: its content has SHA-256 {digest}, it says {manifest.get('manifest_sha256')!r}; "
            "it was changed or damaged: copy it again or tokenise again"
        )
    wrong = _contradiction(manifest)
    if wrong is not None:
        raise InvalidInput(f"{path}: {wrong}; no version of `engram tokenize` wrote this: tokenise again")
    return manifest


def _contradiction(manifest: dict[str, Any]) -> str | None:
    """What in a manifest cannot be, in words; the digest does not help against one that was made by hand."""
    token_size, shards = manifest.get("token_size"), manifest.get("shards")
    if not _is_count(token_size) or not 1 <= token_size <= MAX_TOKEN_SIZE:
        return f"token_size is {token_size!r}, expected 1 to {MAX_TOKEN_SIZE:,}"
    dtype = ids_dtype(token_size)
    if manifest.get("dtype") != dtype.name:
        return f"dtype is {manifest.get('dtype')!r}, expected {dtype.name} for {token_size:,} token ids"
    digest = manifest.get("tokenizer_sha256", 0)
    if digest is not None and not isinstance(digest, str):
        return f"tokenizer_sha256 is {digest!r}, expected a digest or null"
    if not isinstance(shards, list) or not all(isinstance(told, dict) for told in shards):
        return "shards is no list of objects"
    for number, told in enumerate(shards):
        wrong = _shard_contradiction(number, told, dtype.itemsize)
        if wrong is not None:
            return f"shard {number}: {wrong}"
    for key in ("n_tokens", "n_documents", "n_dead"):
        total = sum(told[key] for told in shards)
        if not _is_count(manifest.get(key)) or manifest[key] != total:
            return f"{key} is {manifest.get(key)!r}, expected {total}, the sum over the shards"
    return None


def _shard_contradiction(number: int, told: dict[str, Any], id_bytes: int) -> str | None:
    for key in ("n_tokens", "n_documents", "n_dead"):
        if not _is_count(told.get(key)):
            return f"{key} is {told.get(key)!r}, expected a number of things"
    expected_bytes = {
        "ids": HEADER_BYTES + told["n_tokens"] * id_bytes,
        "starts": HEADER_BYTES + (told["n_documents"] + 1) * STARTS_DTYPE.itemsize,
    }
    for kind, suffix in FILE_KINDS.items():
        entry = told.get(kind, 0)
        if kind == "names" and entry is None:
            continue
        name = shard_file(number, suffix)
        if not isinstance(entry, dict) or entry.get("name") != name or not isinstance(entry.get("sha256"), str):
            return f"{kind} is {str(entry)[:200]}, expected name {name} and sha256"
        if not _is_count(entry.get("file_bytes")) or entry["file_bytes"] < 1:
            return f"{name} has {entry.get('file_bytes')!r} bytes, expected 1 or more"
        if entry["file_bytes"] != expected_bytes.get(kind, entry["file_bytes"]):
            return f"{name} has {entry['file_bytes']} bytes, expected {expected_bytes[kind]}"
    return None


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
