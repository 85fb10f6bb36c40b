"""`bundles.json`: whose rows a directory of bundles holds, which n-grams', and what each byte must hash to.

Owns its keys, the files that follow from them, and their headers. No file is opened here. Like a table's manifest it is
canonical JSON with its own digest in it, so that exactly one sequence of bytes is valid.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any, NoReturn, Self

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import CorruptTable, InvalidInput, NotATable, SpecMismatch, UnsupportedTable
from engram_tables.storage.bundles.index import MAX_BUNDLES, n_slots_of
from engram_tables.storage.table.shards import NO_DIGEST, need
from engram_tables.units import PAGE_BYTES, canonical_json, int_from_json, json_int

SCHEMA = "engram.bundles/1"
MANIFEST_NAME = "bundles.json"
DIRECTORY_NAME = "bundles"
INDEX_NAME = "index.safetensors"
NGRAMS_NAME = "ngrams.safetensors"
RECORDS = "bundles"
BLOCK_BYTES = 16 * 2**20

_FILE_SCHEMA = "engram.bundle-file/1"
_DTYPE_BYTES = {"U8": 1, "U32": 4, "U64": 8}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BUILD_AGAIN = "build the bundles again"
_MOST_LAYERS = 4096
_MOST_ROW_BYTES = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor of a file, C-contiguous."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return _DTYPE_BYTES[self.dtype] * prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFile:
    """One file of the directory.

    Attributes
    ----------
    path
        Below the directory, with `/`.
    tensors
        One directly after the other, the first at `data_offset`.
    layer_id, order
        Whose records it holds; None for the index and the list of n-grams.
    data_offset
        A multiple of 4096.
    header_sha256, block_sha256
        As a table's shards have them; `NO_DIGEST` and nothing where the file is only planned.
    """

    path: str
    tensors: tuple[Tensor, ...]
    layer_id: int | None
    order: int | None
    file_bytes: int
    data_offset: int
    header_sha256: str = NO_DIGEST
    block_sha256: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsOf:
    """What the rows were copied from: a table, by its manifest's digest, or a checkpoint, by its headers' outline.

    `sha256` of a checkpoint is that of `SourceRecord` as canonical JSON: it names no byte of a row.
    """

    form: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BundleManifest:
    """Everything in `bundles.json`.

    Attributes
    ----------
    fingerprint, row_bytes, codec, codec_scale
        Of the table whose rows are bundled.
    orders, heads, layer_ids
        Of its spec.
    key_words
        64-bit words of a key.
    rows_of
        The table or checkpoint.
    counts_sha256
        Digest of the manifest of the counts that the n-grams were chosen by.
    budget_bytes, least_count
        As they were asked for.
    n_ngrams
        Chosen n-grams, by order.
    n_bundles
        By layer and order: fewer than chosen where rows are not here, or where two n-grams are one to the hash.
    files
        Records layer by layer and order by order, then the index and the list of n-grams.
    """

    fingerprint: str
    codec: str
    codec_scale: str | None
    row_bytes: int
    orders: tuple[int, ...]
    heads: tuple[int, ...]
    layer_ids: tuple[int, ...]
    key_words: int
    rows_of: RowsOf
    counts_sha256: str
    budget_bytes: int
    least_count: int
    n_ngrams: tuple[int, ...]
    n_bundles: tuple[tuple[int, ...], ...]
    block_bytes: int = BLOCK_BYTES
    files: tuple[BundleFile, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(file.file_bytes for file in self.files)

    @property
    def record_bytes(self) -> int:
        """Bytes of the bundled records of all layers."""
        per_order = [n_heads * self.row_bytes for n_heads in self.heads]
        return sum(n * n_bytes for of in self.n_bundles for n, n_bytes in zip(of, per_order, strict=True))

    def check_spec(self, spec: AddressSpec, *, row_bytes: int, codec: str, path: str) -> None:
        """`SpecMismatch` unless rows of this spec and codec are bundled; `CorruptTable` if shapes are not its own."""
        found = self.fingerprint, self.row_bytes, self.codec
        expected = spec.fingerprint, row_bytes, codec
        if found != expected:
            raise SpecMismatch(
                f"{path}: found bundles of addressing {found[0]}, rows of {found[1]} bytes in codec {found[2]}, "
                f"expected {expected[0]}, {expected[1]} bytes and {expected[2]} as the table has; {_BUILD_AGAIN}, or "
                "move that directory away"
            )
        shapes = {
            "orders": (self.orders, spec.orders),
            "heads": (self.heads, spec.heads),
            "layer_ids": (self.layer_ids, spec.layer_ids),
            "key_words": (self.key_words, spec.key_words),
        }
        for name, (has, wanted) in shapes.items():
            if has != wanted:
                raise CorruptTable(
                    f"{path}: found {name} {has}, expected {wanted} as its addressing has them; {_BUILD_AGAIN}",
                    path=path,
                )

    def with_files(self) -> Self:
        """This manifest with the files that follow from it, still without digests."""
        return replace(self, files=tuple(self._expected_files()))

    def header(self, file: BundleFile) -> bytes:
        """The bytes before `file.data_offset`; its own may still be 0."""
        # Each name is there so that a file in another one's place is noticed without a look at its blocks.
        metadata = {
            "schema": _FILE_SCHEMA,
            "fingerprint": self.fingerprint,
            "rows_of": self.rows_of.sha256,
            "counts": self.counts_sha256,
            "path": file.path,
        }
        ends = list(accumulate((tensor.n_bytes for tensor in file.tensors), initial=0))
        tensors = {
            tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
            for tensor, start, stop in zip(file.tensors, ends, ends[1:], strict=False)
        }
        text = canonical_json({"__metadata__": metadata, **tensors})
        n_header = -(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES
        return (n_header - 8).to_bytes(8, "little") + text.ljust(n_header - 8, b" ")

    def _expected_files(self) -> list[BundleFile]:
        files, slots = [], []
        for layer_id, n_bundles in zip(self.layer_ids, self.n_bundles, strict=True):
            for order, n_heads, n in zip(self.orders, self.heads, n_bundles, strict=True):
                slots.append(
                    Tensor(
                        name=f"layer-{layer_id:02d}.order-{order}",
                        dtype="U64",
                        shape=(n_slots_of(n), self.key_words + 1),
                    )
                )
                if n:
                    records = Tensor(name=RECORDS, dtype="U8", shape=(n, n_heads * self.row_bytes))
                    path = f"layer-{layer_id:02d}/order-{order}.safetensors"
                    files.append(self._file(path, (records,), layer_id, order))
        # Counts first, so that every tensor lies at a multiple of its numbers.
        listed = zip(self.orders, self.n_ngrams, strict=True)
        counts, ngrams = [], []
        for order, n in listed:
            counts.append(Tensor(name=f"order-{order}.counts", dtype="U64", shape=(n,)))
            ngrams.append(Tensor(name=f"order-{order}.ngrams", dtype="U32", shape=(n, order)))
        return [
            *files,
            self._file(INDEX_NAME, tuple(slots)),
            self._file(NGRAMS_NAME, (*counts, *ngrams)),
        ]

    def _file(
        self, path: str, tensors: tuple[Tensor, ...], layer_id: int | None = None, order: int | None = None
    ) -> BundleFile:
        file = BundleFile(path=path, tensors=tensors, layer_id=layer_id, order=order, file_bytes=0, data_offset=0)
        data_offset = len(self.header(file))
        file_bytes = data_offset + sum(tensor.n_bytes for tensor in tensors)
        return replace(file, data_offset=data_offset, file_bytes=file_bytes)

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        body = self._body()
        return canonical_json(body | {"manifest_sha256": _digest_of(body)})

    @property
    def sha256(self) -> str:
        """The digest that stands in the manifest."""
        return _digest_of(self._body())

    def _body(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "codec": self.codec,
            "codec_scale": self.codec_scale,
            "row_bytes": self.row_bytes,
            "orders": list(self.orders),
            "heads": list(self.heads),
            "layer_ids": list(self.layer_ids),
            "key_words": self.key_words,
            "rows_of": {"form": self.rows_of.form, "sha256": self.rows_of.sha256},
            "counts_sha256": self.counts_sha256,
            "budget_bytes": json_int(self.budget_bytes),
            "least_count": json_int(self.least_count),
            "n_ngrams": list(self.n_ngrams),
            "n_bundles": [list(of) for of in self.n_bundles],
            "block_bytes": self.block_bytes,
            "files": [
                {
                    "path": file.path,
                    "file_bytes": json_int(file.file_bytes),
                    "data_offset": file.data_offset,
                    "header_sha256": file.header_sha256,
                    "block_sha256": list(file.block_sha256),
                }
                for file in self.files
            ],
        }

    @classmethod
    def from_bytes(cls, data: bytes, *, path: str) -> Self:
        """The manifest in a file's bytes; `path` serves messages.

        Raises
        ------
        NotATable
            Not JSON, or of another schema.
        UnsupportedTable
            Another version of the schema.
        CorruptTable
            Not the canonical form of what it says, or numbers that contradict each other.
        """
        body = _parse(data, path)
        stated = body.pop("manifest_sha256", None)
        try:
            is_whole = stated == _digest_of(body) and canonical_json(body | {"manifest_sha256": stated}) == data
        except (RecursionError, TypeError):
            is_whole = False
        if not is_whole:
            raise CorruptTable(
                f"{path}: its contents do not hash to {stated}, expected them to, and no byte besides; it was changed "
                f"or damaged: copy it again, or {_BUILD_AGAIN}",
                path=path,
            )
        try:
            manifest = cls._from_body(body)
        except InvalidInput as error:
            raise CorruptTable(f"{path}: {error}", path=path) from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CorruptTable(
                f"{path}: {type(error).__name__} {error}, expected the keys of {SCHEMA}; {_BUILD_AGAIN}", path=path
            ) from None
        if manifest._body() != body:
            raise UnsupportedTable(
                f"{path}: found entries that {SCHEMA} does not have, expected none; read it with a version that knows "
                "them",
                path=path,
            )
        return manifest

    @classmethod
    def _from_body(cls, body: Mapping[str, Any]) -> Self:
        rows_of, scale = body["rows_of"], body["codec_scale"]
        orders, heads, layer_ids = (_ints(body[name], name) for name in ("orders", "heads", "layer_ids"))
        n_ngrams = _ints(body["n_ngrams"], "n_ngrams")
        n_bundles = tuple(_ints(of, "n_bundles") for of in body["n_bundles"])
        manifest = cls(
            fingerprint=_sha256(body["fingerprint"], "fingerprint"),
            codec=str(body["codec"]),
            codec_scale=None if scale is None else str(scale),
            row_bytes=int_from_json(body["row_bytes"], "row_bytes"),
            orders=orders,
            heads=heads,
            layer_ids=layer_ids,
            key_words=int_from_json(body["key_words"], "key_words"),
            rows_of=RowsOf(form=str(rows_of["form"]), sha256=_sha256(rows_of["sha256"], "rows_of")),
            counts_sha256=_sha256(body["counts_sha256"], "counts_sha256"),
            budget_bytes=int_from_json(body["budget_bytes"], "budget_bytes"),
            least_count=int_from_json(body["least_count"], "least_count"),
            n_ngrams=n_ngrams,
            n_bundles=n_bundles,
            block_bytes=int_from_json(body["block_bytes"], "block_bytes"),
        )
        manifest._check()
        return replace(manifest, files=manifest._stated_files(body["files"]))

    def _check(self) -> None:
        need(0 < self.row_bytes <= _MOST_ROW_BYTES, "row_bytes", self.row_bytes, f"1 to {_MOST_ROW_BYTES}")
        need(1 <= self.key_words <= 8, "key_words", self.key_words, "1 to 8")
        need(self.budget_bytes >= 0, "budget_bytes", self.budget_bytes, "0 or more")
        need(self.least_count >= 1, "least_count", self.least_count, "1 or more")
        block_ok = self.block_bytes >= PAGE_BYTES and self.block_bytes % PAGE_BYTES == 0
        need(block_ok, "block_bytes", self.block_bytes, f"a positive multiple of {PAGE_BYTES}")
        ascending = list(self.orders) == sorted(set(self.orders)) and bool(self.orders) and self.orders[0] >= 1
        need(ascending and self.orders[-1] <= 16, "orders", self.orders, "ascending ones, 1 to 16")
        heads_ok = len(self.heads) == len(self.orders) and all(1 <= n <= 2**16 for n in self.heads)
        need(heads_ok, "heads", self.heads, "as many as orders, each 1 or more")
        layers_ok = 0 < len(set(self.layer_ids)) == len(self.layer_ids) <= _MOST_LAYERS
        need(layers_ok and min(self.layer_ids) >= 0, "layer_ids", self.layer_ids, "different ones")
        need(len(self.n_ngrams) == len(self.orders), "n_ngrams", self.n_ngrams, "one an order")
        shape_ok = len(self.n_bundles) == len(self.layer_ids) and all(
            len(of) == len(self.orders) for of in self.n_bundles
        )
        need(shape_ok, "n_bundles", self.n_bundles, "one a layer and order")
        for of in self.n_bundles:
            for n, most in zip(of, self.n_ngrams, strict=True):
                need(0 <= n <= most < MAX_BUNDLES, "n_bundles", n, f"0 to {most}, of fewer than {MAX_BUNDLES}")

    def _stated_files(self, stated: Any) -> tuple[BundleFile, ...]:
        expected = self._expected_files()
        need(len(stated) == len(expected), "files", len(stated), len(expected))
        files = []
        for file, entry in zip(expected, stated, strict=True):
            need(entry["path"] == file.path, "the path of a file", repr(entry["path"]), repr(file.path))
            for name in ("file_bytes", "data_offset"):
                found = int_from_json(entry[name], f"{file.path}: {name}")
                need(found == getattr(file, name), f"{file.path}: {name}", found, getattr(file, name))
            blocks = tuple(_sha256(digest, f"{file.path}: block_sha256") for digest in entry["block_sha256"])
            n_blocks = -(-file.file_bytes // self.block_bytes)
            need(len(blocks) == n_blocks, f"{file.path}: blocks", len(blocks), n_blocks)
            header = _sha256(entry["header_sha256"], f"{file.path}: header_sha256")
            files.append(replace(file, header_sha256=header, block_sha256=blocks))
        return tuple(files)


def _parse(data: bytes, path: str) -> dict[str, Any]:
    def refuse(text: str) -> NoReturn:
        raise ValueError(f"the number {text}, which no manifest holds")

    try:
        body = json.loads(data.decode("ascii"), parse_float=refuse, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise NotATable(
            f"{path}: not the JSON of a manifest ({error}), expected {SCHEMA}; {_BUILD_AGAIN}", path=path
        ) from None
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema == SCHEMA:
        return dict(body)
    kind = UnsupportedTable if isinstance(schema, str) and schema.startswith("engram.bundles/") else NotATable
    raise kind(f"{path}: found schema {schema!r}, expected {SCHEMA!r}; {_BUILD_AGAIN} with this version", path=path)


def _digest_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(dict(body))).hexdigest()


def _ints(values: Any, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > _MOST_LAYERS:
        raise InvalidInput(f"{where}: found no list of integers, expected one; {_BUILD_AGAIN}")
    return tuple(int_from_json(value, where) for value in values)


def _sha256(value: Any, where: str) -> str:
    if not isinstance(value, str) or _SHA256.fullmatch(value) is None:
        raise InvalidInput(f"{where}: found {value!r}, expected 64 hexadecimal digits; {_BUILD_AGAIN}")
    return value
