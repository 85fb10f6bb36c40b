"""Tables whose rows hold counted next tokens: the plan, and what makes their records; see `makers.RecordMaker`.

Rows are made a tile at a time: the n-grams of a tile's rows are found in a sorted list, their counts are added as
integers, and the sums are encoded. So neither memory nor threads nor where a build stopped change a byte.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engram_tables.address.spec import AddressSpec
from engram_tables.corpus.counts.counts_manifest import read_manifest
from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.corpus.outputs import refuse_overlap
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.storage.building.blocks import PROCESS_BYTES
from engram_tables.storage.building.makers import RecordWriter
from engram_tables.storage.building.next_token_pairs import FollowedNgrams, write_followed
from engram_tables.storage.building.next_token_windows import Entries, LayerWindows
from engram_tables.storage.building.row_weights import check_counts
from engram_tables.storage.building.writer import MEMORY_BYTES, TablePlan, plan_table
from engram_tables.storage.codecs.codec import Codec
from engram_tables.storage.codecs.fidelity import Fidelity
from engram_tables.storage.next_token.recipe import NextTokenRecipe, check_seed, check_width, n_cells
from engram_tables.storage.next_token.vectors import places_of_order
from engram_tables.storage.table.layout import Layout
from engram_tables.storage.table.manifest import BLOCK_BYTES, Manifest
from engram_tables.units import Stage, format_bytes

_TILE_BYTES = 2**20
_TILE_VALUES = 2**16
"""Values summed at once: 512 KiB of them stay in the second-level cache."""


def plan_next_token(
    spec: AddressSpec,
    counts: Counts,
    *,
    codec: str,
    layout: str,
    seed: int = 0,
    memory_bytes: int = MEMORY_BYTES,
    **options: Any,
) -> TablePlan:
    """The exact table that `build_table` would write, its rows the next tokens of the n-grams in `counts`.

    Parameters
    ----------
    counts
        Made with `--next raw`; open until the table is built.
    seed
        Of the places of tokens in rows.
    memory_bytes
        What the build will be given; never changes a byte.
    options
        As `writer.plan_table` has them: row_width, shard_bytes, vocabulary_file, block_bytes.

    Raises
    ------
    InvalidInput
        Counts without next tokens or without one of the spec's orders; a codec that does not encode; a row too narrow
        for tokens to be told from chance; what `plan_table` refuses.
    SpecMismatch
        Counts of another vocabulary.
    """
    if counts.next is None:
        raise InvalidInput(
            f"{counts.path}: found counts without next tokens, expected them; count again with --next raw"
        )
    check_counts(counts, spec)
    plan = plan_table(spec, codec=codec, layout=layout, init="zeros", **options)
    # A vocabulary bound to the spec by the plan must be that of the counts as well.
    check_counts(counts, plan.manifest.spec)
    recipe = NextTokenRecipe(
        seed=check_seed(seed),
        next_size=counts.subject.next_size,
        counts_sha256=counts.manifest["manifest_sha256"],
    )
    check_width(plan.manifest.spec, plan.manifest.row_width, recipe.next_size)
    manifest = replace(plan.manifest, init=recipe.record())
    maker = NextTokenMaker(counts, recipe, manifest=manifest, memory_bytes=memory_bytes)
    return TablePlan(manifest=manifest, maker=maker, vocabulary_data=plan.vocabulary_data)


class NextTokenMaker:
    """Adds up the next tokens of each row's n-grams; see `RecordMaker`.

    Notes
    -----
    In memory: the (row, n-gram) pairs of two windows of rows, 8 bytes each, and each layer's places of tokens. The
    counts are read once, into mapped files beside the growing table.
    """

    tile_bytes = _TILE_BYTES

    def __init__(self, counts: Counts, recipe: NextTokenRecipe, *, manifest: Manifest, memory_bytes: int) -> None:
        self.recipe = recipe
        self.spec = manifest.spec
        self.width = manifest.row_width
        self.codec: Codec = manifest.get_codec()
        self.layout: Layout = manifest.get_layout()
        self.tile_rows = max(_TILE_VALUES // self.width, 1)
        self.thread_bytes = _TILE_BYTES + self.tile_rows * (self.width * 12 + self.codec.row_bytes(self.width))
        self.windows: LayerWindows | None = None
        self.followed: dict[int, FollowedNgrams] = {}
        self._counts = counts
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._places: dict[tuple[int, int], npt.NDArray[np.int32]] = {}

    def identity(self) -> Mapping[str, Any]:
        """See `RecordMaker`."""
        return {"init": self.recipe.record()}

    def check_output(self, path: Path) -> None:
        """See `RecordMaker`."""
        refuse_overlap(path, [self._counts.path])

    def check_unchanged(self) -> None:
        """See `RecordMaker`."""
        found = read_manifest(self._counts.path)["manifest_sha256"]
        if found != self.recipe.counts_sha256:
            raise InvalidInput(
                f"{self._counts.path}: found other counts ({found}) than when the build began, expected "
                f"{self.recipe.counts_sha256}; build again with --restart"
            )

    def prepare(self, directory: Path, *, threads: int, stage: Stage) -> None:
        """See `RecordMaker`."""
        room_bytes = self._memory_bytes - PROCESS_BYTES - self._fixed_bytes(threads)
        if room_bytes <= 0:
            raise CapacityError(
                f"--memory {format_bytes(self._memory_bytes)}: found too little for {threads} threads and the places "
                f"of {self.recipe.next_size:,} tokens, expected {format_bytes(self._memory_bytes - room_bytes)} and "
                "room for n-grams; give more, or fewer --threads"
            )
        place = directory / "followed"
        place.mkdir(exist_ok=True)
        orders = self.spec.orders
        total, done = sum(self._counts.n_rows(order) for order in orders), 0
        with stage("reading counts", "n-grams") as progress:

            def add(n_rows: int) -> None:
                nonlocal done
                done += n_rows
                progress(done, total)

            for order in orders:
                self.followed[order] = write_followed(self._counts, order, place, add)
        self.windows = LayerWindows(self.spec, self.followed, room_bytes=room_bytes, threads=threads)

    def for_thread(self) -> RecordWriter:
        """See `RecordMaker`."""
        return _SumWriter(self)

    def places(self, layer_id: int, order: int) -> npt.NDArray[np.int32]:
        """int32 (tokens, checks): where tokens land in the rows of an order."""
        with self._lock:
            key = (layer_id, order)
            if key not in self._places:
                while len(self._places) >= 2 * len(self.spec.orders):
                    self._places.pop(next(iter(self._places)))
                self._places[key] = places_of_order(
                    self.recipe.seed,
                    layer_id,
                    order,
                    n_heads=self.spec.heads[self.spec.orders.index(order)],
                    next_size=self.recipe.next_size,
                    width=self.width,
                )
            return self._places[key]

    def _fixed_bytes(self, threads: int) -> int:
        """What threads, and the places of two layers, take."""
        checks = sum(heads * n_cells(heads) for heads in self.spec.heads)
        places = 2 * 4 * self.recipe.next_size * checks
        return threads * (self.thread_bytes + _TILE_BYTES + BLOCK_BYTES) + places


class _SumWriter:
    """One thread's sums of counts and their records."""

    def __init__(self, maker: NextTokenMaker) -> None:
        self._maker = maker
        self._cells = np.empty(maker.tile_rows * maker.width, np.int64)
        self._values = np.empty((maker.tile_rows, maker.width), np.float32)
        self._records = np.empty((maker.tile_rows, maker.codec.row_bytes(maker.width)), np.uint8)

    def begin(self, layer_id: int, rows: range) -> None:
        """Nothing is judged."""

    def fill(self, layer_id: int, part_idx: int | None, first_row: int, out: npt.NDArray[np.uint8]) -> None:
        """See `RecordWriter`."""
        assert self._maker.windows is not None
        done = 0
        while done < len(out):
            row = first_row + done
            window = self._maker.windows.at(layer_id, row)
            n_rows = min(self._maker.tile_rows, len(out) - done, window.stop - row)
            piece = out[done : done + n_rows]
            self._sum(layer_id, window.entries, row - window.start, n_rows)
            if part_idx is None:
                self._encode(layer_id, row, piece)
            else:
                part, records = self._maker.layout.parts[part_idx], self._records[:n_rows]
                self._encode(layer_id, row, records)
                piece[:] = records[:, part.start : part.start + part.n_bytes]
            done += n_rows

    def end(self) -> Fidelity | None:
        """See `RecordWriter`."""
        return None

    def _sum(self, layer_id: int, entries: tuple[Entries, ...], first_row: int, n_rows: int) -> None:
        """Sums of the rows from `first_row` of the window on, into the tile."""
        from engram_tables.storage.next_token.kernels import add_counts

        cells = self._cells[: n_rows * self._maker.width]
        cells[:] = 0
        for mine in entries:
            shift, rows = mine.ngram_bits, mine.rows
            if first_row >= rows.stop or first_row + n_rows <= rows.start:
                continue
            # A mixed pair of integers would be compared as doubles.
            ends = np.array([first_row << shift, ((first_row + n_rows) << shift) - 1], np.uint64)
            begin = int(np.searchsorted(mine.keys, ends[0], side="left"))
            stop = int(np.searchsorted(mine.keys, ends[1], side="right"))
            if begin == stop:
                continue
            followed = self._maker.followed[mine.order]
            places = self._maker.places(layer_id, mine.order)
            checks = n_cells(self._maker.spec.heads[self._maker.spec.orders.index(mine.order)])
            add_counts(
                mine.keys[begin:stop], shift, first_row, followed.starts, followed.next_tokens, followed.counts, places,
                mine.head * checks, checks, self._maker.width, cells,
            )  # fmt: skip
        self._values[:n_rows] = cells.reshape(n_rows, -1)

    def _encode(self, layer_id: int, first_row: int, out: npt.NDArray[np.uint8]) -> None:
        try:
            self._maker.codec.encode(self._values[: len(out)], out=out)
        except InvalidInput as error:
            raise InvalidInput(
                f"layer {layer_id}, of the rows from {first_row} on: {error}; sums of counts need a codec of a wide "
                "range: f32, bf16 or fp8-e4m3-e8m0"
            ) from None
