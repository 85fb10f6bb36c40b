"""Specs and tables that are small enough to damage in every place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.storage.building.writer import TablePlan, build_table, plan_table
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.shards import plan_shards, shard_header


def small_spec(
    n_rows: int = 101, *, layer_ids: tuple[int, ...] = (1, 14), row_width: int | None = 32, vocab: str | None = None
) -> AddressSpec:
    """Two heads of one order in each layer."""
    half = n_rows // 2
    layers = tuple(
        LayerAddressing(
            layer_id=layer_id,
            multipliers=(3, 2**52 + 1),
            moduli=((half, n_rows - half),),
            offsets=(0, half),
            n_rows=n_rows,
        )
        for layer_id in layer_ids
    )
    return AddressSpec(
        name="small",
        provenance="made for tests",
        canonical_size=1000,
        history=HistoryRule(fill_id=2),
        orders=(2,),
        layers=layers,
        row_width=row_width,
        vocab_sha256=vocab,
    )


def small_plan(spec: AddressSpec | None = None, **options: object) -> TablePlan:
    """A plan with blocks of one page, so that a few rows make several blocks."""
    chosen = {"codec": "bf16", "layout": "packed", "init": "normal", "seed": 5, "block_bytes": 4096, **options}
    return plan_table(spec or small_spec(), **chosen)  # type: ignore[arg-type]


def small_table(path: Path, spec: AddressSpec | None = None, **options: object) -> Path:
    """A table at `path`."""
    build_table(small_plan(spec, **options), path, threads=2)
    return path


def small_manifest(spec: AddressSpec | None = None, *, scale_bits: int | None = None, **options: Any) -> Manifest:
    """A manifest without shards; rows of no known origin."""
    spec = spec or small_spec()
    chosen = {"codec": "bf16", "layout": "packed", "block_bytes": 4096, **options}
    assert spec.row_width is not None
    row_bytes = get_codec(chosen["codec"], scale_bits=scale_bits).row_bytes(spec.row_width)
    return Manifest(
        spec=spec, row_width=spec.row_width, row_bytes=row_bytes, shards=(), codec_scale_bits=scale_bits, **chosen
    )


def random_records(manifest: Manifest, seed: int = 0) -> dict[int, NDArray[np.uint8]]:
    """uint8 (n_rows, row_bytes) of every layer; of a rank's table too, all rows."""
    rng = np.random.default_rng(seed)
    return {
        layer.layer_id: rng.integers(0, 256, (layer.n_rows, manifest.row_bytes), np.uint8)
        for layer in manifest.spec.layers
    }


def lay_table(
    path: Path, empty: Manifest, records: Mapping[int, NDArray[np.uint8]], *, shard_bytes: int = 8192
) -> Path:
    """A table with these records, written without the writer: file by file, each in one piece."""
    shards = []
    for shard in plan_shards(empty, shard_bytes):
        part = empty.parts[empty.part_idx(shard.part)]
        rows = records[shard.layer_id][shard.first_row : shard.first_row + shard.n_rows]
        data = np.empty(part.data_bytes(shard.n_rows), np.uint8)
        part.place(np.ascontiguousarray(rows[:, part.start : part.start + part.n_bytes]), data)
        header = shard_header(empty, shard)
        content = header + data.tobytes()
        (path / shard.path).parent.mkdir(parents=True, exist_ok=True)
        (path / shard.path).write_bytes(content)
        blocks = (content[k : k + empty.block_bytes] for k in range(0, len(content), empty.block_bytes))
        digests = tuple(hashlib.sha256(block).hexdigest() for block in blocks)
        shards.append(replace(shard, header_sha256=hashlib.sha256(header).hexdigest(), block_sha256=digests))
    path.mkdir(exist_ok=True)
    (path / "engram.json").write_bytes(replace(empty, shards=tuple(shards)).to_bytes())
    return path


def names_in(directory: Path) -> list[str]:
    """Names of what `directory` holds, hidden files included, in order."""
    return sorted(entry.name for entry in directory.iterdir())
