"""A trace on disk: which keys and rows a run of tokens looks up, in the order of the tokens.

Owns the directory's layout. Arrays are .npy files that any reader maps; `trace.json`, written last, holds the whole
spec, so that a trace says by itself what its numbers mean. Knows no table, and no tokenizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import hash_tokens
from engram_tables.address.spec import AddressSpec, KeyForm
from engram_tables.address.vectors import LARGEST_FAST_MODULUS, SMALLEST_FAST_MODULUS
from engram_tables.corpus.tokens.array_file import HEADER_BYTES, file_digest, map_file
from engram_tables.corpus.tokens.token_manifest import content_digest
from engram_tables.corpus.traffic import traffic_kernels as kernels
from engram_tables.corpus.traffic.row_hits import Head
from engram_tables.corpus.traffic.token_addresses import KeyMaker
from engram_tables.corpus.traffic.trace_contents import Store
from engram_tables.errors import InvalidInput
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import EXACT_IN_DOUBLE, ProgressHook

SCHEMA = "engram.trace/1"
MANIFEST_NAME = "trace.json"
_ANY_VERSION = "engram.trace/"
_MAX_MANIFEST_BYTES = 1 << 26
SHARD_BYTES = 1 << 30
"""Bound of one file; the tokens of a shard follow from it, whatever the threads."""
_NPY_MAGIC = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayForm:
    """One array of a trace: what each token has in it.

    Attributes
    ----------
    shape
        Of one token.
    """

    kind: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def token_bytes(self) -> int:
        """Bytes a token."""
        return self.dtype.itemsize * math.prod(self.shape)

    def header(self, n_tokens: int) -> bytes:
        """The first 128 bytes of a .npy with this array of `n_tokens`."""
        return npy_header(self.dtype, (n_tokens, *self.shape))

    def file_bytes(self, n_tokens: int) -> int:
        """Bytes of such a file."""
        return HEADER_BYTES + n_tokens * self.token_bytes


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """A .npy header of version 1.0 and `HEADER_BYTES`, always spelled alike."""
    spelled = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    body_bytes = HEADER_BYTES - len(_NPY_MAGIC) - 2
    return _NPY_MAGIC + body_bytes.to_bytes(2, "little") + spelled.ljust(body_bytes - 1).encode() + b"\n"


def trace_arrays(spec: AddressSpec, store: Store) -> tuple[ArrayForm, ...]:
    """The arrays of a trace.

    Keys have one layer where they are the same in every layer, and a last axis of words, least significant first, where
    they pass 64 bits.
    """
    most_rows = max(layer.n_rows for layer in spec.layers)
    row_dtype = next(dtype for dtype in ("<u2", "<u4", "<u8") if most_rows <= 2 ** (8 * np.dtype(dtype).itemsize))
    n_key_layers = len(spec.layers) if spec.key_form is KeyForm.MIX else 1
    words = () if spec.key_words == 1 else (spec.key_words,)
    ids = ArrayForm(kind="ids", dtype=np.dtype("<u4"), shape=())
    keys = ArrayForm(kind="keys", dtype=np.dtype("<u8"), shape=(n_key_layers, len(spec.orders), *words))
    rows = ArrayForm(kind="rows", dtype=np.dtype(row_dtype), shape=(len(spec.layers), spec.n_columns))
    return {
        Store.IDS: (ids,),
        Store.KEYS: (keys,),
        Store.ROWS: (rows,),
        Store.BOTH: (keys, rows),
        Store.NONE: (),
    }[store]


def shard_tokens(arrays: tuple[ArrayForm, ...]) -> int:
    """Tokens of every shard but the last: a power of two, so that no file passes `SHARD_BYTES` by its items."""
    most = max((array.token_bytes for array in arrays), default=1)
    return 1 << max(0, (SHARD_BYTES // most).bit_length() - 1)


def shard_name(shard: int, kind: str) -> str:
    """The name of one file of a shard.

    >>> shard_name(3, "keys")
    'shard-00003.keys.npy'
    """
    return f"shard-{shard:05}.{kind}.npy"


def hits_name(layer_id: int) -> str:
    """The name of a layer's hits.

    >>> hits_name(1)
    'hits-layer-01.npy'
    """
    return f"hits-layer-{layer_id:02}.npy"


def is_trace(directory: str | Path) -> bool:
    """Whether a directory holds the manifest of a trace, of any version and in any state of its files."""
    path = Path(directory) / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_MANIFEST_BYTES else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and str(manifest.get("schema")).startswith(_ANY_VERSION)


def open_trace(path: str | Path) -> Trace:
    """Open a trace: its manifest is checked, every file's length and header too, no token is read.

    Raises
    ------
    InvalidInput
        No trace, an unknown version, a file that is missing, cut or another one.
    """
    return Trace(Path(path))


class Trace:
    """An open trace; see `open_trace`.

    Attributes
    ----------
    document_starts
        int64 (n_documents + 1,): where each document starts, then n_tokens. Mapped.
    dead
        int64 (n_dead,): positions that look nothing up, ascending; what stands there in rows and keys is the spec's
        answer for a dead position. Mapped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_manifest(path)
        self.spec = AddressSpec.from_json(self.manifest["spec"], where=str(path / MANIFEST_NAME))
        self.store = Store(self.manifest["store"])
        self.n_tokens: int = self.manifest["n_tokens"]
        self.n_documents: int = self.manifest["n_documents"]
        self._arrays = trace_arrays(self.spec, self.store)
        self._check()
        self.document_starts = self._map("starts.npy", np.dtype("<i8"), (self.n_documents + 1,))
        self.dead = self._map("dead.npy", np.dtype("<i8"), (self.manifest["n_dead"],))
        self._check_positions()
        self._shards = {array.kind: self._map_shards(array) for array in self._arrays}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the mappings; arrays that were read stay valid."""
        self._shards = {}

    @property
    def sha256(self) -> str:
        """Digest of the manifest, which holds those of all files."""
        return str(self.manifest["manifest_sha256"])

    def rows(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Row ids of tokens start … stop - 1: int64 (tokens, layers, columns), global within their layer."""
        self._check_slice(start, stop)
        if "rows" in self._shards:
            return self._read("rows", start, stop).astype(np.int64)
        if "keys" not in self._shards:
            return self._hash(start, stop)[0]
        keys = self._read("keys", start, stop)
        if self._constants is not None:
            return self._reduce(np.ascontiguousarray(keys).reshape(-1), stop - start)
        keys = keys.reshape(*keys.shape[:3], self.spec.key_words)
        rows = np.empty((stop - start, len(self.spec.layers), self.spec.n_columns), np.int64)
        found = np.empty(stop - start, np.int64)
        for layer_idx, heads in enumerate(self._heads):
            for head, rows_of, n_words in heads:
                key_layer = layer_idx if self.spec.key_form is KeyForm.MIX else 0
                own = keys[:, key_layer, self.spec.orders.index(head.order), :n_words]
                rows_of(np.ascontiguousarray(own), found)
                rows[:, layer_idx, head.column] = found + head.layer.offsets[head.column]
        return rows

    def keys(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Keys of tokens start … stop - 1: (tokens, layers, orders) of `AddressSpec.key_dtype`.

        Raises
        ------
        InvalidInput
            The trace holds rows alone.
        """
        self._check_slice(start, stop)
        shape = (stop - start, len(self.spec.layers), len(self.spec.orders))
        if "keys" in self._shards:
            stored = np.ascontiguousarray(self._read("keys", start, stop))
            keys = stored.view(self.spec.key_dtype).reshape(stored.shape[:3])
            return np.broadcast_to(keys, shape)
        if self.store is Store.ROWS:
            raise InvalidInput(
                f"{self.path}: holds rows alone, and keys do not follow from them; trace again with --store both"
            )
        return self._hash(start, stop)[1]

    def hits(self, layer_id: int) -> npt.NDArray[Any]:
        """How often each row of a layer is looked up: uint32 or uint64 (rows,), mapped.

        Raises
        ------
        InvalidInput
            The trace was made without --hits, or has no such layer.
        """
        for told in self.manifest["hits"]:
            if told["layer_id"] == layer_id:
                return self._map(hits_name(layer_id), np.dtype(told["dtype"]), (self.spec.layer(layer_id).n_rows,))
        held = ", ".join(str(told["layer_id"]) for told in self.manifest["hits"]) or "none"
        raise InvalidInput(f"{self.path}: hits of layer {layer_id} are not there, only of {held}; trace with --hits")

    def verify(self, progress: ProgressHook | None = None) -> None:
        """Read every byte and hold it against the manifest's digests; InvalidInput names the file."""
        files = self.manifest["files"]
        done, total = 0, sum(told["file_bytes"] for told in files)
        for told in files:
            found = file_digest(self.path / told["name"])
            if found != told["sha256"]:
                raise _damaged(self.path / told["name"], f"SHA-256 is {found}, expected {told['sha256']}")
            done += told["file_bytes"]
            if progress is not None:
                progress(done, total)

    @cached_property
    def _heads(self) -> list[list[tuple[Head, Callable[[Any, Any], None], int]]]:
        """For each layer its heads, what turns keys into their rows, and the words of such a key."""
        return [
            [
                (head := Head(spec=self.spec, layer=layer, column=column), head.rows_of(), words[head.order])
                for column in range(self.spec.n_columns)
            ]
            for layer in self.spec.layers
            for words in [{order: KeyMaker(self.spec, order, None).n_words for order in self.spec.orders}]
        ]

    @cached_property
    def _constants(self) -> tuple[npt.NDArray[Any], ...] | None:
        """What `rows_of_keys` takes, where it can be used."""
        spec = self.spec
        moduli = [modulus for layer in spec.layers for heads in layer.moduli for modulus in heads]
        is_fast = min(moduli) >= SMALLEST_FAST_MODULUS and max(moduli) <= LARGEST_FAST_MODULUS
        if spec.key_form is not KeyForm.MIX or spec.mix.word_bits != 64 or not is_fast:
            return None
        first_column = np.cumsum([0, *(n_heads for _ in spec.layers for n_heads in spec.heads)])
        offsets = np.array([offset for layer in spec.layers for offset in layer.offsets], np.int64)
        return first_column, np.array(moduli, np.int64), 1.0 / np.array(moduli), offsets

    def _reduce(self, keys: npt.NDArray[np.uint64], n_tokens: int) -> npt.NDArray[np.int64]:
        """Rows of all columns from keys (tokens * layers * orders,)."""
        assert self._constants is not None
        first_column, moduli, reciprocals, offsets = self._constants
        rows = np.empty((n_tokens, len(self.spec.layers), self.spec.n_columns), np.int64)
        flat = rows.reshape(-1)
        run_slices(
            lambda first, last: kernels.rows_of_keys(
                keys, first_column, moduli, reciprocals, offsets, first, last, flat
            ),
            n_tokens,
            threads=resolve_threads(None),
            grain=1 << 13,
        )
        return rows

    def _hash(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Rows and keys from ids: the documents of the slice apart, with what they look back to."""
        before = min(start, self.spec.max_order - 1)
        ids = self._read("ids", start - before, stop)
        inner = self.document_starts[np.searchsorted(self.document_starts, start - before, side="right") :]
        inner = np.unique(inner[: np.searchsorted(inner, stop)]) - (start - before)
        # A dead position keeps apart what stands on its two sides.
        parted = np.insert(ids, inner, np.uint32(0xFFFFFFFF))
        found = hash_tokens(self.spec, parted, dead=parted == 0xFFFFFFFF)
        kept = np.ones(len(parted), np.bool_)
        kept[inner + np.arange(len(inner))] = False
        return found.rows[kept][before:], found.keys[kept][before:]

    def _read(self, kind: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens of one array; a copy only where they lie in several shards."""
        if kind not in self._shards:
            raise InvalidInput(f"{self.path}: holds {self.store.value}, expected {kind}; trace again with --store")
        per_shard = self.manifest["shard_tokens"]
        first, last = start // per_shard, max(start, stop - 1) // per_shard
        shards = self._shards[kind]
        parts = [
            shards[at][max(0, start - at * per_shard) : stop - at * per_shard] for at in range(first, last + 1)
            if at < len(shards)
        ]  # fmt: skip
        if len(parts) == 1:
            return parts[0]
        array = next(array for array in self._arrays if array.kind == kind)
        return np.concatenate(parts) if parts else np.empty((0, *array.shape), array.dtype)

    def _check_slice(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_tokens:
            raise InvalidInput(f"{self.path}: slice [{start:,}, {stop:,}), expected one inside [0, {self.n_tokens:,})")

    def _map_shards(self, array: ArrayForm) -> list[npt.NDArray[Any]]:
        per_shard = self.manifest["shard_tokens"]
        return [
            self._map(
                shard_name(at, array.kind), array.dtype, (min(per_shard, self.n_tokens - at * per_shard), *array.shape)
            )
            for at in range(-(-self.n_tokens // per_shard))
        ]

    def _map(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        path = self.path / name
        n_bytes = HEADER_BYTES + dtype.itemsize * math.prod(shape)
        if not path.is_file() or path.stat().st_size != n_bytes:
            found = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
            raise _damaged(path, f"{found}, expected {n_bytes:,} bytes")
        data = map_file(path, n_bytes)
        if data[:HEADER_BYTES].tobytes() != npy_header(dtype, shape):
            raise _damaged(path, f"another header than that of {dtype} {shape}")
        return data[HEADER_BYTES:].view(dtype).reshape(shape)

    def _check(self) -> None:
        manifest, spec = self.manifest, self.spec
        if manifest["fingerprint"] != spec.fingerprint:
            raise _damaged(
                self.path / MANIFEST_NAME, f"fingerprint {manifest['fingerprint']}, its spec has {spec.fingerprint}"
            )
        if self.store is not Store.NONE and manifest["shard_tokens"] != shard_tokens(self._arrays):
            raise _damaged(
                self.path / MANIFEST_NAME, f"{manifest['shard_tokens']} tokens a shard, expected "
                f"{shard_tokens(self._arrays)}",
            )  # fmt: skip

    def _check_positions(self) -> None:
        starts, dead = self.document_starts, self.dead
        if starts[0] != 0 or starts[-1] != self.n_tokens or (np.diff(starts) < 0).any():
            raise _damaged(self.path / "starts.npy", f"no ascending positions from 0 to {self.n_tokens:,}")
        if len(dead) and (dead[0] < 0 or dead[-1] >= self.n_tokens or (np.diff(dead) <= 0).any()):
            raise _damaged(self.path / "dead.npy", f"no ascending positions below {self.n_tokens:,}")


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise InvalidInput(f"{directory}: no {MANIFEST_NAME} there, so this is no trace; make one with `engram trace`")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise InvalidInput(f"{path}: {path.stat().st_size:,} bytes, expected {_MAX_MANIFEST_BYTES:,} at most")
    try:
        manifest: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: not JSON ({error}), expected the manifest of `engram trace`") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or schema != SCHEMA:
        raise InvalidInput(f"{path}: found schema {schema!r}, expected {SCHEMA!r}; trace again with this version")
    try:
        digest = content_digest(manifest)
    except (TypeError, RecursionError):
        digest = "undefined"
    if manifest.get("manifest_sha256") != digest:
        raise InvalidInput(
            f"{path}: its content has SHA-256 {digest}, it says {manifest.get('manifest_sha256')!r}; it was changed or "
            "damaged: copy it again or trace again"
        )
    wrong = _contradiction(manifest)
    if wrong is not None:
        raise InvalidInput(f"{path}: {wrong}; no version of `engram trace` wrote this: trace again")
    return manifest


def _contradiction(manifest: dict[str, Any]) -> str | None:
    """What in a manifest cannot be, or None; the figures are bounded before anything is allocated by them."""
    for name in ("n_tokens", "n_documents", "n_dead", "shard_tokens"):
        value = manifest.get(name)
        if type(value) is not int or not 0 <= value < EXACT_IN_DOUBLE:
            return f"{name} is {value!r}, expected 0 to 2^53"
    if manifest["shard_tokens"] < 1 or manifest["n_dead"] > manifest["n_tokens"]:
        return f"{manifest['shard_tokens']} tokens a shard and {manifest['n_dead']} dead of {manifest['n_tokens']}"
    if manifest.get("store") not in list(Store):
        return f"store is {manifest.get('store')!r}, expected one of {', '.join(Store)}"
    hits = manifest.get("hits")
    if not isinstance(hits, list) or not all(isinstance(told, dict) and _is_hits(told) for told in hits):
        return "hits are no list of layers"
    files = manifest.get("files")
    if not isinstance(files, list) or not all(isinstance(told, dict) and _is_file(told) for told in files):
        return "files are no list of names, lengths and digests"
    return None


def _is_hits(told: dict[str, Any]) -> bool:
    return set(told) == {"layer_id", "dtype"} and type(told["layer_id"]) is int and told["dtype"] in ("<u4", "<u8")


def _is_file(told: dict[str, Any]) -> bool:
    name = told.get("name")
    is_plain = isinstance(name, str) and Path(name).name == name and name.endswith(".npy")
    return is_plain and type(told.get("file_bytes")) is int and isinstance(told.get("sha256"), str)


def _damaged(path: Path, found: str) -> InvalidInput:
    return InvalidInput(f"{path}: {found}; the trace is damaged: copy it again or trace again")
