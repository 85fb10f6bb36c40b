"""The reader of `ple-store.json`: any text gives the rows of the undamaged file, or an error of ours."""

from __future__ import annotations

import atexit
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["engram_tables.storage.sources"]):
    from engram_tables.address.released.models import spec_from_model
    from engram_tables.errors import EngramError
    from engram_tables.storage.sources.opening import open_source
    from engram_tables.storage.sources.reading import read_records

import numpy as np

from fuzz.harness import fuzz

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "sources"))
from made_checkpoints import make_mlx_vlm

_PLACE = tempfile.TemporaryDirectory()
atexit.register(_PLACE.cleanup)
_MADE = [make_mlx_vlm(Path(_PLACE.name) / layout, layout=layout) for layout in ("safetensors_ranges", "interleaved_q4")]
_STORES = [made.path / "ple-store.json" for made in _MADE]
_SEEDS = [store.read_bytes() for store in _STORES]
_SPECS = [spec_from_model(made.path / "config.json") for made in _MADE]


def one_input(data: bytes) -> None:
    """The store before the files of each layout."""
    for made, store, spec in zip(_MADE, _STORES, _SPECS, strict=True):
        store.write_bytes(data)
        try:
            source = open_source(made.path, spec=spec, opaque=True)
        except EngramError:
            continue
        records = np.empty((1, source.row_bytes), dtype=np.uint8)
        for row in (0, spec.layers[0].n_rows - 1):
            read_records(source, spec.layer_ids[0], row, records)
            assert records.tobytes() == made.records[spec.layer_ids[0]][row].tobytes()
        source.close()


WORDS = (
    '"row_start":', '"row_count":', '"row_stride":', '"data_file":"ple-q4.rows"', '"source_root":".."', '"offset":',
    '"shape":', '"dtype":"U32"', '"shards":[]', "-1", "9223372036854775807", "1e9", "null", "true", "[]", "{}",
)  # fmt: skip

if __name__ == "__main__":
    fuzz(one_input, {made.path.name: seed for made, seed in zip(_MADE, _SEEDS, strict=True)}, WORDS)
