"""`engram.json`: what a table is and what each of its bytes must hash to.

The file is canonical JSON and carries its own digest, so exactly one sequence of bytes is valid for a table and
any flipped bit is refused. Nothing here opens a shard.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn, Self

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import CorruptTable, InvalidInput, NotATable, TableError, UnsupportedTable
from engram_tables.storage.building.initialise import INIT_NAMES, ZEROS, Init
from engram_tables.storage.codecs.codec import Codec, get_codec
from engram_tables.storage.extents import Part, Ranges
from engram_tables.storage.next_token.recipe import NEXT_TOKEN, NextTokenRecipe, check_width
from engram_tables.storage.sources.record import SourceRecord
from engram_tables.storage.table.features import WRITER_WORDS, check_reader_features, feature_words, reader_words
from engram_tables.storage.table.layout import Layout, get_layout
from engram_tables.storage.table.ranks import Rank, owned_rows
from engram_tables.storage.table.shards import ShardRecord, check_shards, need
from engram_tables.units import PAGE_BYTES, canonical_json, int_from_json, json_int

SCHEMA = "engram.table/2"
BLOCK_BYTES = 16 * 2**20

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCALE = re.compile(r"[0-9a-f]{8}")
_COPY_AGAIN = "copy or build the table again"


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyRecord:
    """The copy of the vocabulary file inside the table."""

    file_bytes: int
    sha256: str
    map_sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything in `engram.json`.

    Attributes
    ----------
    codec_scale_bits
        Bits of the one float32 scale of all rows, for a codec that has one.
    row_width, row_bytes
        Values of a row, and bytes of its record in this codec.
    block_bytes
        The unit of `block_sha256`, in bytes of a file.
    init
        How fresh rows came to be: `kind` and its parameters, texts and integers.
    source
        What the rows were made from, as `sources.record.SourceRecord.to_json` gives it.
    owned
        The rows of every layer that the table holds; None for all of them.
    rank
        Whose share `owned` is, or a part of.
    more
        Entries under writer words that are not known here, kept as they are.
    """

    spec: AddressSpec
    codec: str
    codec_scale_bits: int | None = None
    layout: str
    row_width: int
    row_bytes: int
    shards: tuple[ShardRecord, ...]
    vocabulary: VocabularyRecord | None = None
    init: Mapping[str, str | int] | None = None
    source: Mapping[str, Any] | None = None
    owned: Mapping[int, Ranges] | None = None
    rank: Rank | None = None
    block_bytes: int = BLOCK_BYTES
    more: Mapping[str, Any] = field(default_factory=dict)

    def get_codec(self) -> Codec:
        """The codec by its name and scale."""
        return get_codec(self.codec, scale_bits=self.codec_scale_bits)

    def get_layout(self) -> Layout:
        """The layout by its name."""
        return get_layout(self.layout, self.get_codec(), self.row_width)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Which stretches of a record lie apart, and how."""
        return self.get_layout().parts

    def part_idx(self, name: str) -> int:
        """Position of a part in `parts`."""
        return next(part_idx for part_idx, part in enumerate(self.parts) if part.name == name)

    @property
    def codec_scale(self) -> str | None:
        """`codec_scale_bits` as 8 hexadecimal digits."""
        return None if self.codec_scale_bits is None else f"{self.codec_scale_bits:08x}"

    def owned_rows(self, layer_id: int) -> Ranges:
        """The rows of a layer that the table holds; `InvalidInput` for a layer that the spec does not have."""
        layer = self.spec.layer(layer_id)
        return ((0, layer.n_rows),) if self.owned is None else self.owned[layer_id]

    @property
    def reader_features(self) -> tuple[str, ...]:
        """Words that whoever reads a row must know."""
        return reader_words(self.codec, self.layout, is_partial=self.owned is not None)

    @property
    def writer_features(self) -> tuple[str, ...]:
        """Words that whoever makes another table from this one must know: entries that speak of the rows' contents."""
        entries = (self.init, self.source, self.vocabulary)
        known = {word for word, entry in zip(WRITER_WORDS, entries, strict=True) if entry is not None}
        return tuple(sorted(known | set(self.more)))

    def check_writer_features(self, path: str) -> None:
        """`UnsupportedTable` where a table made from this one could say something untrue of its rows."""
        if self.more:
            raise UnsupportedTable(
                f"{path}: found the writer features {', '.join(self.more)}, expected some of "
                f"{', '.join(WRITER_WORDS)}; rows can be read, but make tables from it with a version that knows them",
                path=path,
            )

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        body = self._body()
        body["manifest_sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
        return canonical_json(body)

    def _body(self) -> dict[str, Any]:
        return {
            **self.more,
            "schema": SCHEMA,
            "reader_features": list(self.reader_features),
            "writer_features": list(self.writer_features),
            "spec": self.spec.to_json(),
            "fingerprint": self.spec.fingerprint,
            "codec": self.codec,
            "codec_scale": self.codec_scale,
            "layout": self.layout,
            "row_width": json_int(self.row_width),
            "row_bytes": json_int(self.row_bytes),
            "block_bytes": json_int(self.block_bytes),
            "init": None if self.init is None else {key: _exact(value) for key, value in self.init.items()},
            "source": None if self.source is None else dict(self.source),
            "owned": None if self.owned is None else _owned_to_json(self.owned),
            "rank": None
            if self.rank is None
            else {"by": self.rank.by, "rank": self.rank.rank, "n_ranks": self.rank.n_ranks},
            "vocabulary": None if self.vocabulary is None else _vocabulary_to_json(self.vocabulary),
            "shards": [_shard_to_json(shard) for shard in self.shards],
        }

    @classmethod
    def from_bytes(cls, data: bytes, *, path: str) -> Self:
        """The manifest in the bytes of the file at `path`, which serves messages only.

        Raises
        ------
        NotATable
            The bytes are not JSON, or not of this schema.
        UnsupportedTable
            Another version of the schema, or a reader feature, codec or layout that is not known here.
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
            manifest.check()
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
        check_reader_features(body, path)
        words = set(feature_words(body, "writer_features")) - set(WRITER_WORDS)
        spec = AddressSpec.from_json(body["spec"], where="spec")
        source = body["source"]
        manifest = cls(
            spec=spec,
            codec=body["codec"],
            codec_scale_bits=None if body["codec_scale"] is None else _scale_from_json(body["codec_scale"]),
            layout=body["layout"],
            row_width=int_from_json(body["row_width"], "row_width"),
            row_bytes=int_from_json(body["row_bytes"], "row_bytes"),
            block_bytes=int_from_json(body["block_bytes"], "block_bytes"),
            init=None if body["init"] is None else _init_from_json(body["init"], path),
            source=None if source is None else SourceRecord.from_json(source).to_json(),
            owned=None if body["owned"] is None else _owned_from_json(body["owned"], spec),
            rank=None if body["rank"] is None else _rank_from_json(body["rank"]),
            vocabulary=None if body["vocabulary"] is None else _vocabulary_from_json(body["vocabulary"]),
            shards=tuple(_shards_from_json(body["shards"])),
            more={word: body[word] for word in words},
        )
        if words:
            shadowed = sorted(words & set(replace(manifest, more={})._body()))
            need(not shadowed, "writer_features", f"a known entry's name, {', '.join(shadowed)}", "other words")
        if body["fingerprint"] != manifest.spec.fingerprint:
            raise InvalidInput(
                f"found fingerprint {body['fingerprint']!r}, expected {manifest.spec.fingerprint} as its spec has; "
                f"{_COPY_AGAIN}"
            )
        for key in ("reader_features", "writer_features"):
            need(list(getattr(manifest, key)) == body[key], key, body[key], list(getattr(manifest, key)))
        if manifest._body() != body:
            unknown = sorted(set(body) - set(manifest._body()))
            raise UnsupportedTable(
                f"{path}: found entries that {SCHEMA} does not have ({', '.join(unknown) or 'inside its records'}), "
                "expected none; read it with a version that knows them",
                path=path,
            )
        return manifest

    def check(self) -> None:
        """`InvalidInput` unless all numbers follow from spec, codec, layout, owned rows and each other."""
        row_bytes = self.get_codec().row_bytes(self.row_width)
        need(self.row_bytes == row_bytes, "row_bytes", self.row_bytes, row_bytes)
        need(self.spec.row_width == self.row_width, "row_width", self.row_width, self.spec.row_width)
        block_ok = self.block_bytes >= PAGE_BYTES and self.block_bytes % PAGE_BYTES == 0
        need(block_ok, "block_bytes", self.block_bytes, f"a positive multiple of {PAGE_BYTES}")
        need(self.init is None or self.source is None, "init", "given together with a source", "one of the two")
        if self.init is not None and self.init["kind"] == NEXT_TOKEN:
            check_width(self.spec, self.row_width, int(self.init["next_size"]))
        if self.source is not None:
            source = SourceRecord.from_json(self.source)
            source.check_rows(self.spec)
            as_it_was = (source.codec, source.codec_scale) == (self.codec, self.codec_scale)
            need(not as_it_was or source.row_bytes == row_bytes, "row_bytes of the source", source.row_bytes, row_bytes)
        self._check_owned()
        check_shards(self)

    def _check_owned(self) -> None:
        if self.owned is None:
            need(self.rank is None, "owned", "null with a rank", "the rank's rows")
            return
        everything = {layer.layer_id: ((0, layer.n_rows),) for layer in self.spec.layers}
        for layer in self.spec.layers:
            before = -1
            for start, stop in self.owned[layer.layer_id]:
                holds = before < start < stop <= layer.n_rows and start >= 0
                need(holds, f"owned rows of layer {layer.layer_id}", f"{start} to {stop}", f"a range after {before}")
                before = stop
        if self.rank is None:
            need(self.owned != everything, "owned", "all rows without a rank", "null")
            return
        share = owned_rows(self.spec, by=self.rank.by, rank=self.rank.rank, n_ranks=self.rank.n_ranks)
        for layer_id, ranges in self.owned.items():
            for start, stop in ranges:
                holds = any(first <= start and stop <= last for first, last in share[layer_id])
                need(holds, f"owned rows of layer {layer_id}", f"{start} to {stop}", f"rows of {self.rank}")


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
    is_version = isinstance(schema, str) and schema.startswith("engram.table/")
    kind: type[TableError] = UnsupportedTable if is_version else NotATable
    if schema == "engram.table/1":
        what = "build the table again"
    elif is_version:
        what = "read it with a version that knows it"
    else:
        what = "give the directory of a table"
    raise kind(f"{path}: found schema {schema!r}, expected {SCHEMA!r}; {what}", path=path)


def _exact(value: str | int) -> str | int:
    return json_int(value) if isinstance(value, int) else value


def _scale_from_json(value: Any) -> int:
    if not isinstance(value, str) or _SCALE.fullmatch(value) is None:
        raise InvalidInput(f"codec_scale: found {value!r}, expected 8 hexadecimal digits; {_COPY_AGAIN}")
    return int(value, 16)


def _owned_to_json(owned: Mapping[int, Ranges]) -> dict[str, Any]:
    return {str(layer_id): [list(map(json_int, ends)) for ends in ranges] for layer_id, ranges in owned.items()}


def _owned_from_json(value: Any, spec: AddressSpec) -> dict[int, Ranges]:
    names = {str(layer_id): layer_id for layer_id in spec.layer_ids}
    if not isinstance(value, dict) or set(value) != set(names):
        raise InvalidInput(f"owned: found other layers than {', '.join(names)}; {_COPY_AGAIN}")
    owned: dict[int, Ranges] = {}
    for name, layer_id in names.items():
        pairs = [[int_from_json(end, f"owned rows of layer {name}") for end in ends] for ends in value[name]]
        owned[layer_id] = tuple((start, stop) for start, stop in pairs)
    return owned


def _rank_from_json(value: Any) -> Rank:
    by = value["by"]
    if not isinstance(by, str):
        raise InvalidInput(f"rank: found by {by!r}, expected a text; {_COPY_AGAIN}")
    return Rank(
        by=by, rank=int_from_json(value["rank"], "rank"), n_ranks=int_from_json(value["n_ranks"], "rank: n_ranks")
    )


def _init_from_json(value: Any, path: str) -> dict[str, str | int]:
    """What `Init.record` gives for it, but the seed an integer; entries that it does not have are met later."""
    if not isinstance(value, dict):
        raise InvalidInput(f"init: found {value!r}, expected an object with its kind; {_COPY_AGAIN}")
    kind = value["kind"]
    if kind == NEXT_TOKEN:
        return NextTokenRecipe.from_record(value, where=path).record()
    if kind not in INIT_NAMES:
        raise UnsupportedTable(
            f"{path}: found init {kind!r}, expected one of {', '.join((*INIT_NAMES, NEXT_TOKEN))}; read it with a "
            "version that knows it",
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


def _vocabulary_to_json(vocabulary: VocabularyRecord) -> dict[str, Any]:
    return {
        "file_bytes": json_int(vocabulary.file_bytes),
        "sha256": vocabulary.sha256,
        "map_sha256": vocabulary.map_sha256,
    }


def _vocabulary_from_json(value: Any) -> VocabularyRecord:
    return VocabularyRecord(
        file_bytes=int_from_json(value["file_bytes"], "vocabulary file_bytes"),
        sha256=_digest(value["sha256"], "vocabulary sha256"),
        map_sha256=_digest(value["map_sha256"], "vocabulary map_sha256"),
    )


def _shard_to_json(shard: ShardRecord) -> dict[str, Any]:
    return {
        "path": shard.path,
        "layer_id": shard.layer_id,
        "part": shard.part,
        "first_row": json_int(shard.first_row),
        "n_rows": json_int(shard.n_rows),
        "file_bytes": json_int(shard.file_bytes),
        "data_offset": shard.data_offset,
        "header_sha256": shard.header_sha256,
        "block_sha256": list(shard.block_sha256),
    }


def _shards_from_json(values: Iterable[Any]) -> Iterator[ShardRecord]:
    for value in values:
        where = f"shard {value['path']}"
        yield ShardRecord(
            path=value["path"],
            layer_id=int_from_json(value["layer_id"], f"{where}: layer_id"),
            part=value["part"],
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
