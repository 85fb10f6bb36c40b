"""A table from a source: which rows, in which layout and codec; and how its records are read, and re-encoded if asked.

Rows keep their numbers and, without a codec of its own, their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.byte_files import is_url
from engram_tables.corpus.outputs import refuse_overlap
from engram_tables.errors import InvalidInput
from engram_tables.storage.building.makers import RecordMaker, RecordWriter
from engram_tables.storage.building.row_weights import RowWeights, check_counts
from engram_tables.storage.building.writer import SHARD_BYTES, TablePlan, bind_vocabulary, rank_name
from engram_tables.storage.codecs.codec import Codec, get_codec
from engram_tables.storage.extents import Part, Ranges
from engram_tables.storage.row_groups import row_groups
from engram_tables.storage.sources.reading import read_part, read_records
from engram_tables.storage.sources.record import source_record
from engram_tables.storage.sources.source import Source
from engram_tables.storage.table.layout import VOCABULARY_NAME
from engram_tables.storage.table.manifest import BLOCK_BYTES, Manifest
from engram_tables.storage.table.ranks import Rank, owned_rows
from engram_tables.storage.table.shards import plan_shards
from engram_tables.units import Stage

if TYPE_CHECKING:
    from engram_tables.corpus.counts.counts_store import Counts
    from engram_tables.storage.codecs.fidelity import Fidelity

_TILE_BYTES = 2**20
_TILE_VALUES = 2**18


def plan_repack(
    source: Source,
    *,
    layout: str,
    codec: str | None = None,
    rank: Rank | None = None,
    layers: Sequence[int] | None = None,
    rows: tuple[int, int] | None = None,
    shard_bytes: int = SHARD_BYTES,
    vocabulary_file: Path | None = None,
    counts: Counts | None = None,
    block_bytes: int = BLOCK_BYTES,
    origin: Manifest | None = None,
    maker: RecordMaker | None = None,
) -> TablePlan:
    """The exact table that `build_table` would write from `source`, which stays open until it is written.

    Parameters
    ----------
    codec
        Re-encode to it; the source's own by default, whose bytes are copied.
    rank, layers, rows
        Which rows: a rank's share, of these layers, of this half-open range of each layer. By default all rows, or
        those that `origin` says its table owns.
    shard_bytes
        Upper bound of a shard's file.
    vocabulary_file
        Copied into the table; the spec is bound to it.
    counts
        Of a corpus, open: rows weigh in the report of a re-encoding as often as it looks them up.
    origin
        The manifest of a source that is a table of ours; the new table says of its rows what that one said.
    maker
        Of another plan of the same source and codec: ranks that are built together share one.

    Raises
    ------
    InvalidInput
        A codec that this source cannot be re-encoded to, rows that the source does not hold, shards that are too
        small, counts of other n-grams.
    SpecMismatch
        The vocabulary or the counts are not of the ids that the spec addresses.
    """
    if origin is not None:
        origin.check_writer_features(source.where)
        if origin.vocabulary is not None and vocabulary_file is None and not is_url(source.where):
            vocabulary_file = Path(source.where) / VOCABULARY_NAME
    spec, record, data = bind_vocabulary(source.spec, vocabulary_file)
    width = spec.row_width
    if width is None:
        raise InvalidInput(f"{source.where}: its spec does not say how many values a row has; give the row width")
    wanted = source.codec if codec in (None, source.codec.name) else _new_codec(source, str(codec), width)
    if counts is not None:
        if wanted is source.codec:
            raise InvalidInput(
                f"counts: found {counts.path} for rows whose bytes stay what they are, expected a codec to re-encode "
                "to, whose losses they weigh; drop --counts"
            )
        check_counts(counts, spec)
    owned: Mapping[int, Ranges] | None
    if origin is not None and origin.owned is not None and rank is None and layers is None and rows is None:
        rank, owned = origin.rank, origin.owned
    else:
        owned = _owned(source, rank, layers, rows)
    empty = Manifest(
        spec=spec,
        codec=wanted.name,
        codec_scale_bits=wanted.scale_bits,
        layout=layout,
        row_width=width,
        row_bytes=wanted.row_bytes(width),
        shards=(),
        vocabulary=record,
        init=origin.init if origin is not None and wanted is source.codec else None,
        source=source_record(source) if origin is None else origin.source,
        owned=owned,
        rank=rank,
        block_bytes=block_bytes,
    )
    manifest = replace(empty, shards=tuple(plan_shards(empty, shard_bytes)))
    manifest.check()
    if maker is None:
        maker = SourceMaker(source, codec=wanted, parts=manifest.parts, counts=counts)
    return TablePlan(manifest=manifest, maker=maker, vocabulary_data=data)


def plan_ranks(source: Source, *, by: str, n_ranks: int, **options: Any) -> dict[str, TablePlan]:
    """The tables of all ranks, by the names of their directories; see `plan_repack` for the other options."""
    plans: dict[str, TablePlan] = {}
    maker = None
    for rank in range(n_ranks):
        plan = plan_repack(source, rank=Rank(by=by, rank=rank, n_ranks=n_ranks), maker=maker, **options)
        plans[rank_name(rank, n_ranks)] = plan
        maker = plan.maker
    return plans


def _new_codec(source: Source, name: str, width: int) -> Codec:
    codec = get_codec(name)
    if not source.codec.can_decode:
        raise InvalidInput(
            f"{source.where}: found records of {source.codec.name}, which no codec decodes, expected a known codec "
            f"to re-encode as {name}; leave out --codec and copy the bytes"
        )
    codec.check_can_encode()
    codec.row_bytes(width)
    return codec


def _owned(
    source: Source, rank: Rank | None, layers: Sequence[int] | None, rows: tuple[int, int] | None
) -> Mapping[int, Ranges] | None:
    """The rows that the table holds, each of them in the source; None for all."""
    spec = source.spec
    for layer_id in layers or ():
        spec.layer(layer_id)
    owned: dict[int, Ranges] = {layer.layer_id: ((0, layer.n_rows),) for layer in spec.layers}
    if rank is not None:
        owned = owned_rows(spec, by=rank.by, rank=rank.rank, n_ranks=rank.n_ranks)
    if layers is not None:
        owned = {layer_id: ranges if layer_id in layers else () for layer_id, ranges in owned.items()}
    if rows is not None:
        most = max(layer.n_rows for layer in spec.layers)
        if not 0 <= rows[0] < rows[1] <= most:
            raise InvalidInput(
                f"rows: found {rows[0]}:{rows[1]}, expected a half-open range within 0:{most}, the rows of the longest "
                "layer; mend it"
            )
        owned = {layer_id: _within(ranges, *rows) for layer_id, ranges in owned.items()}
    for layer_id, ranges in owned.items():
        _check_held(source, layer_id, ranges)
    is_whole = all(owned[layer.layer_id] == ((0, layer.n_rows),) for layer in spec.layers)
    return None if is_whole and rank is None else owned


def _within(ranges: Ranges, start: int, stop: int) -> Ranges:
    cut = ((max(start, first), min(stop, last)) for first, last in ranges)
    return tuple((first, last) for first, last in cut if first < last)


def _check_held(source: Source, layer_id: int, ranges: Ranges) -> None:
    held = source.owned(layer_id)
    for start, stop in ranges:
        row = start
        for first, last in held:
            if first <= row < last:
                row = last
        if row < stop:
            there = ", ".join(f"{first} to {last - 1}" for first, last in held[:4]) or "none"
            raise InvalidInput(
                f"{source.where}: found no row {row} of layer {layer_id}, expected rows {start} to {stop - 1} (it "
                f"holds {there}); fetch the files that are missing, or take what is there with --layers or --rows"
            )


class SourceMaker:
    """Reads the records of a source, and re-encodes them where the codec is another; see `RecordMaker`."""

    def __init__(self, source: Source, *, codec: Codec, parts: tuple[Part, ...], counts: Counts | None = None) -> None:
        self.source = source
        self.codec = codec
        self.parts = parts
        self._counts = counts
        self.weights: RowWeights | None = None
        self._began_with = source.identities()
        width = int(source.spec.row_width or 0)
        is_remote = any(is_url(file.where) for file in source.files)
        # Behind a URL each tile is a request or more: a whole block at a time.
        self.tile_bytes = BLOCK_BYTES if is_remote else _TILE_BYTES
        self.tile_rows = max(self.tile_bytes // max(source.row_bytes, codec.row_bytes(width)), 1)
        self.scratch_bytes = self.tile_bytes + max(part.cell_bytes for part in source.parts)
        self.thread_bytes = self.scratch_bytes + self.tile_bytes + source.row_bytes
        if self.is_reencoding:
            self.tile_rows = max(min(self.tile_rows, _TILE_VALUES // width), 1)
            self.thread_bytes += self.tile_rows * (width * 8 + source.row_bytes + codec.row_bytes(width) + 64)

    @property
    def is_reencoding(self) -> bool:
        """Whether records change."""
        return self.codec is not self.source.codec

    def identity(self) -> Mapping[str, Any]:
        """See `RecordMaker`."""
        return {
            "source_codec": [self.source.codec.name, self.source.codec.scale_bits],
            "source_files": [[name, dict(identity)] for name, identity in self._began_with],
            "counts": None if self._counts is None else self._counts.manifest["manifest_sha256"],
        }

    def check_output(self, path: Path) -> None:
        """See `RecordMaker`."""
        refuse_overlap(path, [file.where for file in self.source.files])
        if not is_url(self.source.where):
            refuse_overlap(path, [self.source.where])

    def check_unchanged(self) -> None:
        """See `RecordMaker`."""
        for (name, before), (_, now) in zip(self._began_with, self.source.identities(), strict=True):
            if dict(before) != dict(now):
                differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
                what = ", ".join(f"{key} {now.get(key)}" for key in differing)
                was = ", ".join(f"{key} {before.get(key)}" for key in differing)
                raise InvalidInput(
                    f"{self.source.where}: found {name} changed while it was read ({what}), expected it as it was "
                    f"({was}); let whoever writes it finish, and build again with --restart"
                )

    def prepare(self, directory: Path, *, threads: int, stage: Stage) -> None:
        """See `RecordMaker`."""
        if self._counts is not None:
            self.weights = RowWeights(
                self._counts, self.source.spec, directory / "weights", threads=threads, stage=stage
            )

    def for_thread(self) -> RecordWriter:
        """See `RecordMaker`."""
        return _Reencoder(self) if self.is_reencoding else _Copier(self)


class _Copier:
    """Reads records as they are."""

    def __init__(self, maker: SourceMaker) -> None:
        self._source = maker.source
        self._parts = maker.parts
        self._tile_rows = maker.tile_rows
        self._scratch = np.empty(maker.scratch_bytes, dtype=np.uint8)
        self._same_parts = {
            part_idx: source_idx
            for part_idx, part in enumerate(maker.parts)
            for source_idx, theirs in enumerate(maker.source.parts)
            if (part.start, part.n_bytes) == (theirs.start, theirs.n_bytes)
        }
        is_cut = len(self._same_parts) < len(maker.parts)
        self._records = np.empty((maker.tile_rows if is_cut else 0, maker.source.row_bytes), dtype=np.uint8)

    def begin(self, layer_id: int, rows: range) -> None:
        """Nothing is lost."""

    def fill(self, layer_id: int, part_idx: int | None, first_row: int, out: NDArray[np.uint8]) -> None:
        """See `RecordWriter`."""
        if part_idx is None:
            read_records(self._source, layer_id, first_row, out, scratch=self._scratch)
            return
        if part_idx in self._same_parts:
            read_part(self._source, layer_id, self._same_parts[part_idx], first_row, out)
            return
        part = self._parts[part_idx]
        for begin in range(0, len(out), self._tile_rows):
            records = self._records[: len(out) - begin]
            read_records(self._source, layer_id, first_row + begin, records, scratch=self._scratch)
            out[begin : begin + len(records)] = records[:, part.start : part.start + part.n_bytes]

    def end(self) -> Fidelity | None:
        """See `RecordWriter`."""
        return None


class _Reencoder:
    """Reads records, decodes them, encodes them anew, and keeps how far the new ones decode from the old."""

    def __init__(self, maker: SourceMaker) -> None:
        self._source = maker.source
        self._codec = maker.codec
        self._parts = maker.parts
        self._weights = maker.weights
        spec = maker.source.spec
        width = int(spec.row_width or 0)
        self._scratch = np.empty(maker.scratch_bytes, dtype=np.uint8)
        self._old = np.empty((maker.tile_rows, maker.source.row_bytes), dtype=np.uint8)
        self._new = np.empty((maker.tile_rows, maker.codec.row_bytes(width)), dtype=np.uint8)
        self._values = np.empty((maker.tile_rows, width), dtype=np.float32)
        self._decoded = np.empty((maker.tile_rows, width), dtype=np.float32)
        self._judged = range(0)
        self._fidelity: Fidelity | None = None
        # The columns of the report are the groups of the layer's rows, spare ones among them.
        self._starts = {
            layer_id: np.array([group.start for group in row_groups(spec, layer_id)], np.int64)
            for layer_id in spec.layer_ids
        }

    def begin(self, layer_id: int, rows: range) -> None:
        """See `RecordWriter`."""
        from engram_tables.storage.codecs.fidelity import Fidelity

        self._judged = rows
        self._fidelity = Fidelity() if rows else None

    def fill(self, layer_id: int, part_idx: int | None, first_row: int, out: NDArray[np.uint8]) -> None:
        """See `RecordWriter`."""
        for begin in range(0, len(out), len(self._old)):
            piece = out[begin : begin + len(self._old)]
            rows = range(first_row + begin, first_row + begin + len(piece))
            if part_idx is None:
                self._encode(layer_id, rows, piece)
                continue
            part, records = self._parts[part_idx], self._new[: len(piece)]
            self._encode(layer_id, rows, records)
            piece[:] = records[:, part.start : part.start + part.n_bytes]

    def _encode(self, layer_id: int, rows: range, out: NDArray[np.uint8]) -> None:
        old, values = self._old[: len(rows)], self._values[: len(rows)]
        read_records(self._source, layer_id, rows.start, old, scratch=self._scratch)
        self._source.codec.decode(old, out=values)
        try:
            self._codec.encode(values, out=out)
        except InvalidInput as error:
            raise InvalidInput(
                f"{self._source.where}, layer {layer_id}, of the rows from {rows.start} on: {error}"
            ) from None
        judged = range(max(rows.start, self._judged.start), min(rows.stop, self._judged.stop))
        if self._fidelity is None or not judged:
            return
        mine = slice(judged.start - rows.start, judged.stop - rows.start)
        decoded = self._codec.decode(out[mine], out=self._decoded[: len(judged)])
        weights = None if self._weights is None else self._weights.of(layer_id, judged)
        groups = np.searchsorted(self._starts[layer_id], np.arange(judged.start, judged.stop), side="right") - 1
        self._fidelity.add(layer_id, groups, values[mine], decoded, weights)

    def end(self) -> Fidelity | None:
        """See `RecordWriter`."""
        fidelity, self._fidelity = self._fidelity, None
        return fidelity
