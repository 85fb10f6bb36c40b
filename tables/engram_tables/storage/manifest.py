"""`engram.json`: what a table is and what each of its bytes must hash to.

The file is canonical JSON and carries its own digest, so exactly one sequence of bytes is valid for a table and
any flipped bit is refused. Nothing here opens a shard.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import CorruptTable, InvalidInput, NotATable, TableError, UnsupportedTable
from engram_tables.storage.codecs import CODEC_NAMES, Codec, get_codec
from engram_tables.storage.initialise import INIT_NAMES, ZEROS, Init
from engram_tables.storage.layout import LAYOUT_NAMES, Layout, get_layout, shard_path
from engram_tables.units import PAGE_BYTES, canonical_json, int_from_json, json_int

SCHEMA = "engram.table/1"
ROWS_SCHEMA = "engram.rows/1"
BLOCK_BYTES = 16 * 2**20
TENSOR_NAME = "records"
NO_DIGEST = "0" * 64

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_HEADER_BYTES = 16 * PAGE_BYTES
_COPY_AGAIN = "copy or build the table again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One file of rows.

    Attributes
    ----------
    path
        Below the table's directory, with `/`.
    first_row, n_rows
        The rows it holds, numbered within the layer.
    data_offset
        Bytes from the start of the file to the first record; a multiple of 4096.
    header_sha256
        Digest of the bytes before `data_offset`.
    block_sha256
        Digest of each `block_bytes` of the file, header included; the last block may be shorter.
    """

    path: str
    layer_id: int
    first_row: int
    n_rows: int
    file_bytes: int
    data_offset: int
    header_sha256: str = NO_DIGEST
    block_sha256: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyRecord:
    """The copy of the vocabulary file inside the table."""

    file_bytes: int
    sha256: str
    map_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything in `engram.json`.

    Attributes
    ----------
    row_width, row_bytes
        Values of a row, and bytes of its record in this codec.
    block_bytes
        The unit of `block_sha256`, in bytes of a file.
    init
        How the rows came to be: `kind` and its parameters, texts and integers.
    """

    spec: AddressSpec
    codec: str
    layout: str
    row_width: int
    row_bytes: int
    shards: tuple[ShardRecord, ...]
    vocabulary: VocabularyRecord | None = None
    init: Mapping[str, str | int] = field(default_factory=dict)
    block_bytes: int = BLOCK_BYTES

    def get_codec(self) -> Codec:
        """The codec by its name."""
        return get_codec(self.codec)

    def get_layout(self) -> Layout:
        """The layout by its name."""
        return get_layout(self.layout, self.row_bytes)

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        body = self._body()
        body["manifest_sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
        return canonical_json(body)

    def _body(self) -> dict[str, Any]:
        vocabulary = self.vocabulary
        return {
            "schema": SCHEMA,
            "spec": self.spec.to_json(),
            "fingerprint": self.spec.fingerprint,
            "codec": self.codec,
            "layout": self.layout,
            "row_width": self.row_width,
            "row_bytes": self.row_bytes,
            "block_bytes": json_int(self.block_bytes),
            "init": {key: json_int(value) if isinstance(value, int) else value for key, value in self.init.items()},
            "vocabulary": None
            if vocabulary is None
            else {
                "file_bytes": json_int(vocabulary.file_bytes),
                "sha256": vocabulary.sha256,
                "map_sha256": vocabulary.map_sha256,
            },
            "shards": [
                {
                    "path": shard.path,
                    "layer_id": shard.layer_id,
                    "first_row": json_int(shard.first_row),
                    "n_rows": json_int(shard.n_rows),
                    "file_bytes": json_int(shard.file_bytes),
                    "data_offset": shard.data_offset,
                    "header_sha256": shard.header_sha256,
                    "block_sha256": list(shard.block_sha256),
                }
                for shard in self.shards
            ],
        }

    @classmethod
    def from_bytes(cls, data: bytes, *, path: str) -> Self:
        """The manifest in the bytes of the file at `path`, which serves messages only.

        Raises
        ------
        NotATable
            The bytes are not JSON, or not of this schema.
        UnsupportedTable
            A later schema, or a codec or layout that is not known here.
        CorruptTable
            The bytes are not the canonical form of what they say, or its numbers contradict each other.
        """
        body = _parse(data, path)
        try:
            whole = canonical_json(body)
            stated = body.pop("manifest_sha256", None)
            found = hashlib.sha256(canonical_json(body)).hexdigest()
        except RecursionError:
            raise CorruptTable(f"{path}: nested deeper than a manifest is; {_COPY_AGAIN}", path=path) from None
        if stated != found or whole != data:
            raise CorruptTable(
                f"{path}: its contents hash to {found}, expected {stated} and no byte besides; "
                f"the manifest was changed or damaged: {_COPY_AGAIN}",
                path=path,
            )
        try:
            manifest = cls._from_body(body, path)
            manifest.check(path)
        except InvalidInput as error:
            raise CorruptTable(f"{path}: {error}", path=path) from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CorruptTable(
                f"{path}: {type(error).__name__} {error}, expected the keys of {SCHEMA}; {_COPY_AGAIN}",
                path=path,
            ) from None
        return manifest

    @classmethod
    def _from_body(cls, body: dict[str, Any], path: str) -> Self:
        for key, names in (("codec", CODEC_NAMES), ("layout", LAYOUT_NAMES)):
            if body[key] not in names:
                raise UnsupportedTable(
                    f"{path}: found {key} {body[key]!r}, expected one of {', '.join(names)}; "
                    "read it with a version that knows it",
                    path=path,
                )
        manifest = cls(
            spec=AddressSpec.from_json(body["spec"], where="spec"),
            codec=body["codec"],
            layout=body["layout"],
            row_width=int_from_json(body["row_width"], "row_width"),
            row_bytes=int_from_json(body["row_bytes"], "row_bytes"),
            block_bytes=int_from_json(body["block_bytes"], "block_bytes"),
            init=_init_from_json(body["init"], path),
            vocabulary=None if body["vocabulary"] is None else _vocabulary_from_json(body["vocabulary"]),
            shards=tuple(_shards_from_json(body["shards"])),
        )
        if body["fingerprint"] != manifest.spec.fingerprint:
            raise InvalidInput(
                f"found fingerprint {body['fingerprint']!r}, expected {manifest.spec.fingerprint} as its spec has; "
                f"{_COPY_AGAIN}"
            )
        if manifest._body() != body:
            unknown = sorted(set(body) - set(manifest._body()))
            raise UnsupportedTable(
                f"{path}: found entries that {SCHEMA} does not have ({', '.join(unknown) or 'inside its records'}), "
                "expected none; read it with a version that knows them",
                path=path,
            )
        return manifest

    def check(self, path: str) -> None:
        """Raise unless all numbers follow from spec, codec, layout and each other."""

        def need(holds: bool, what: str, found: object, expected: object) -> None:
            if not holds:
                raise CorruptTable(f"{path}: {what} is {found}, expected {expected}; {_COPY_AGAIN}", path=path)

        row_bytes = self.get_codec().row_bytes(self.row_width)
        need(self.row_bytes == row_bytes, "row_bytes", self.row_bytes, row_bytes)
        need(self.spec.row_width == self.row_width, "row_width", self.row_width, self.spec.row_width)
        block_ok = self.block_bytes >= PAGE_BYTES and self.block_bytes % PAGE_BYTES == 0
        need(block_ok, "block_bytes", self.block_bytes, f"a positive multiple of {PAGE_BYTES}")
        layout = self.get_layout()
        n_known = 0
        for layer in self.spec.layers:
            shards = [shard for shard in self.shards if shard.layer_id == layer.layer_id]
            need(self.shards[n_known : n_known + len(shards)] == tuple(shards),
                 f"the order of the shards of layer {layer.layer_id}", "mixed", "one run per layer")  # fmt: skip
            n_known += len(shards)
            first_row = 0
            for shard_idx, shard in enumerate(shards):
                name = shard_path(layer.layer_id, shard_idx, len(shards))
                need(shard.path == name, "the path of a shard", repr(shard.path), repr(name))
                need(shard.first_row == first_row, f"{name}: first_row", shard.first_row, first_row)
                need(
                    0 < shard.n_rows <= shards[0].n_rows,
                    f"{name}: n_rows",
                    shard.n_rows,
                    "1 or more, none past the first",
                )
                is_last = shard_idx == len(shards) - 1
                need(
                    is_last or shard.n_rows == shards[0].n_rows,
                    f"{name}: n_rows",
                    shard.n_rows,
                    shards[0].n_rows,
                )
                offset_ok = 0 < shard.data_offset <= _MAX_HEADER_BYTES and shard.data_offset % PAGE_BYTES == 0
                need(offset_ok, f"{name}: data_offset", shard.data_offset, f"a multiple of {PAGE_BYTES}")
                file_bytes = shard.data_offset + layout.data_bytes(shard.n_rows)
                need(shard.file_bytes == file_bytes, f"{name}: file_bytes", shard.file_bytes, file_bytes)
                n_blocks = -(-file_bytes // self.block_bytes)
                need(len(shard.block_sha256) == n_blocks, f"{name}: blocks", len(shard.block_sha256), n_blocks)
                first_row += shard.n_rows
            need(first_row == layer.n_rows, f"rows of layer {layer.layer_id}", first_row, layer.n_rows)
        need(n_known == len(self.shards), "shards", len(self.shards), n_known)


def shard_header(manifest: Manifest, shard: ShardRecord) -> bytes:
    """The bytes before `shard.data_offset`: a safetensors header of one U8 tensor, padded with spaces.

    `shard` may still have a `data_offset` of 0; the result's length is then the one it needs.
    """
    layout = manifest.get_layout()
    data_bytes = layout.data_bytes(shard.n_rows)
    metadata = {
        "schema": ROWS_SCHEMA,
        "fingerprint": manifest.spec.fingerprint,
        "codec": manifest.codec,
        "layout": manifest.layout,
        "row_width": str(manifest.row_width),
        "row_bytes": str(manifest.row_bytes),
        "layer_id": str(shard.layer_id),
        "first_row": str(shard.first_row),
        "n_rows": str(shard.n_rows),
    }
    tensor = {
        "dtype": "U8",
        "shape": [layout.n_cells(shard.n_rows), layout.cell_bytes],
        "data_offsets": [0, data_bytes],
    }
    text = canonical_json({"__metadata__": metadata, TENSOR_NAME: tensor})
    n_header = -(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES
    return (n_header - 8).to_bytes(8, "little") + text.ljust(n_header - 8, b" ")


def _parse(data: bytes, path: str) -> dict[str, Any]:
    def refuse(text: str) -> NoReturn:
        raise ValueError(f"the number {text}, which no manifest holds")

    try:
        body = json.loads(data.decode("ascii"), parse_float=refuse, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise NotATable(
            f"{path}: not the JSON of a manifest ({error}), expected {SCHEMA}; "
            f"it is damaged or another program's: {_COPY_AGAIN}",
            path=path,
        ) from None
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema == SCHEMA:
        return dict(body)
    later = isinstance(schema, str) and schema.startswith("engram.table/")
    kind: type[TableError] = UnsupportedTable if later else NotATable
    raise kind(
        f"{path}: found schema {schema!r}, expected {SCHEMA!r}; "
        + ("read it with a version that knows it" if later else "give the directory of a table"),
        path=path,
    )


def _init_from_json(value: Any, path: str) -> dict[str, str | int]:
    """What `Init.record` gives for it, but the seed an integer; entries that it does not have are met later."""
    if not isinstance(value, dict):
        raise InvalidInput(f"init: found {value!r}, expected an object with its kind; {_COPY_AGAIN}")
    kind = value["kind"]
    if kind not in INIT_NAMES:
        raise UnsupportedTable(
            f"{path}: found init {kind!r}, expected one of {', '.join(INIT_NAMES)}; read it with a version that "
            "knows it",
            path=path,
        )
    if kind == ZEROS:
        return {"kind": kind}
    seed, std = int_from_json(value["seed"], "init: seed"), value["std"]
    if not isinstance(std, str):
        raise InvalidInput(f"init: found std {std!r}, expected a decimal number as a text; {_COPY_AGAIN}")
    init = Init.make(kind, row_width=1, seed=seed, std=std)
    if init.std != std:
        raise InvalidInput(f"init: found std {std!r}, expected {init.std!r} for this number; {_COPY_AGAIN}")
    return {"kind": kind, "seed": seed, "std": std}


def _vocabulary_from_json(value: Any) -> VocabularyRecord:
    return VocabularyRecord(
        file_bytes=int_from_json(value["file_bytes"], "vocabulary file_bytes"),
        sha256=_digest(value["sha256"], "vocabulary sha256"),
        map_sha256=_digest(value["map_sha256"], "vocabulary map_sha256"),
    )


def _shards_from_json(values: Iterable[Any]) -> Iterator[ShardRecord]:
    for value in values:
        where = f"shard {value['path']}"
        yield ShardRecord(
            path=value["path"],
            layer_id=int_from_json(value["layer_id"], f"{where}: layer_id"),
            first_row=int_from_json(value["first_row"], f"{where}: first_row"),
            n_rows=int_from_json(value["n_rows"], f"{where}: n_rows"),
            file_bytes=int_from_json(value["file_bytes"], f"{where}: file_bytes"),
            data_offset=int_from_json(value["data_offset"], f"{where}: data_offset"),
            header_sha256=_digest(value["header_sha256"], f"{where}: header_sha256"),
            block_sha256=tuple(_digest(digest, f"{where}: block_sha256") for digest in value["block_sha256"]),
        )


def _digest(value: Any, where: str) -> str:
    if not isinstance(value, str) or _SHA256.fullmatch(value) is None:
        raise InvalidInput(f"{where}: found {value!r}, expected 64 hexadecimal digits; {_COPY_AGAIN}")
    return value
