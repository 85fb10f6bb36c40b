"""What a tier costs and saves: hits against a gather from memory, and rows/s at several hit ratios in front of a disk.

    python -m benchmarks.tiers [--gib 1] [--repeats 9] [--directory DIR] [--record FILE]

Three parts. (1) Hits: batches of 48, 4,096 and 65,536 rows that all lie in the tier, against `gather` on the
same rows in memory of the same page size, one thread, interleaved, rows drawn anew for each. (2) Misses: taking
records in, nanoseconds a row. (3) A skewed stream through budgets of several sizes in front of `direct` (no page
cache): rows/s and hit ratio, with the ratio that the plain-Python policy predicts for the same stream; after it a
scan, and the hit ratio of the stream that follows. Bytes are compared before anything is timed. Timed: the engine's
`read`, without the check of row ids; for the gather its kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from engram_tables.fetch.engines.copying import MemoryEngine
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.reading import DirectReadEngine
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.fetch.tiers.budget import MemoryTier, shape_for
from engram_tables.fetch.tiers.reference import ReferenceCache
from engram_tables.fetch.tiers.tiered import TieredEngine
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.timing import Case, interleave
from engram_tables.memory import anonymous_bytes
from engram_tables.storage.extents import Extent, Part
from engram_tables.storage.row_files import RowFile, RowFiles

ROW_BYTES = 264
BATCHES = (48, 4096, 65_536)
SHARES = (0.01, 0.05, 0.2)
STREAM_BATCH = 4096


class OneFile(RowFiles):
    """One layer of packed records in one file; its bytes are written here."""

    def __init__(self, path: Path, n_rows: int) -> None:
        super().__init__()
        layer = SimpleNamespace(layer_id=1, n_rows=n_rows)
        spec: Any = SimpleNamespace(layers=(layer,), layer_ids=(1,), n_columns=1, layer=lambda _: layer)
        self.path, self.spec, self.row_bytes = path, spec, ROW_BYTES
        self.parts = (Part(name="records", start=0, n_bytes=ROW_BYTES, cell_rows=1, cell_bytes=ROW_BYTES),)
        self.files = [RowFile(path=path, file_bytes=n_rows * ROW_BYTES, fd=os.open(path, os.O_RDONLY))]
        self.extents = (Extent(file_idx=0, layer_id=1, part_idx=0, first_row=0, n_rows=n_rows, offset=0),)

    def _close_files(self) -> None:
        os.close(self.files[0].fd)


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if any byte is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="GiB of rows, in memory and in the file")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--stream-rows", type=int, default=400_000)
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    n_rows = int(options.gib * 2**30) // ROW_BYTES
    block = filled(n_rows)
    record: dict[str, Any] = {
        "schema": "engram.benchmark-tiers/1",
        "command": command_line(),
        "environment": describe(),
        "row_bytes": ROW_BYTES,
        "n_rows": n_rows,
        "hits": [],
        "streams": [],
    }
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        path = Path(scratch) / "rows"
        block.tofile(path)
        table = OneFile(path, n_rows)
        try:
            places = Placements(table)
            memory = MemoryEngine(table, places)
            for huge_pages in (True, False):
                found = measure_hits(table, places, memory, block, huge_pages=huge_pages, repeats=options.repeats)
                if found is None:
                    return failed()
                record["hits"].append(found)
                show_hits(found)
            for share in SHARES:
                stream = measure_stream(table, places, block, share=share, n_stream=options.stream_rows)
                if stream is None:
                    return failed()
                record["streams"].append(stream)
                show_stream(stream)
        finally:
            table.close()
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def failed() -> int:
    """Say that bytes are wrong."""
    print("check failed: a tier's bytes differ from the rows; nothing more was timed", file=sys.stderr)
    return 6


def filled(n_rows: int) -> Any:
    """uint8 (n_rows, 264) in huge pages, each row with its own number in front."""
    rng = np.random.default_rng(0)
    rows = anonymous_bytes(n_rows * ROW_BYTES, huge_pages=True).reshape(n_rows, ROW_BYTES)
    for start in range(0, n_rows, 1 << 18):
        part = rows[start : start + (1 << 18)]
        part[:] = rng.integers(0, 256, ROW_BYTES, np.uint8)
        part[:, :8] = np.arange(start, start + len(part)).view(np.uint8).reshape(-1, 8)
    return rows


def measure_hits(
    table: RowFiles, places: Placements, memory: Engine, block: Any, *, huge_pages: bool, repeats: int
) -> dict[str, Any] | None:
    """Batches that all hit, and taking them in; None if a byte is wrong. The gather copies from huge pages."""
    rng = np.random.default_rng(1)
    n_rows = len(block)
    tier = MemoryTier(budget_bytes=2 * block.nbytes, huge_pages=huge_pages)
    points = []
    with TieredEngine(table, places, memory, tier) as engine:
        for start in range(0, n_rows, 65_536):
            rows = np.arange(start, min(start + 65_536, n_rows))
            engine.read(Batch(rows, rows.size, 0, 1), np.empty((rows.size, ROW_BYTES), np.uint8), 1)
        n_misses = engine.counts().misses
        for n in BATCHES:
            out = np.full((n, ROW_BYTES), 1, np.uint8)

            def draw(n: int = n) -> Batch:
                return Batch(rng.integers(0, n_rows, n), n, 0, 1)

            def hit(batch: Batch, out: Any = out) -> None:
                engine.read(batch, out, 1)

            def gather(batch: Batch, out: Any = out) -> None:
                memory.read(batch, out, 1)

            batch = draw()
            hit(batch)
            if not np.array_equal(out, block[batch.rows]):
                return None
            cases = {"gather": Case(prepare=draw, run=gather), "hits": Case(prepare=draw, run=hit)}
            samples = interleave(cases, repeats=repeats * (20 if n < 1000 else 1), warm_ups=3)
            of_gather, of_hits = samples["gather"].median_ns / n, samples["hits"].median_ns / n
            points.append(
                {
                    "rows_per_batch": n,
                    "gather_ns_per_row": of_gather,
                    "hit_ns_per_row": of_hits,
                    "share_of_gather": of_gather / of_hits,
                    "samples": {name: found.summary() for name, found in samples.items()},
                }
            )
        if engine.counts().misses != n_misses:
            return None
    small = MemoryTier(budget_bytes=block.nbytes // 8, huge_pages=huge_pages)
    with TieredEngine(table, places, memory, small) as engine:
        out = np.full((65_536, ROW_BYTES), 1, np.uint8)

        def draw_many() -> Batch:
            return Batch(rng.integers(0, n_rows, 65_536), 65_536, 0, 1)

        cases = {
            "gather": Case(prepare=draw_many, run=lambda batch: memory.read(batch, out, 1)),
            "tier": Case(prepare=draw_many, run=lambda batch: engine.read(batch, out, 1)),
        }
        samples = interleave(cases, repeats=repeats, warm_ups=12)
        batch = draw_many()
        engine.read(batch, out, 1)
        if not np.array_equal(out, block[batch.rows]):
            return None
        per_miss = (samples["tier"].median_ns - samples["gather"].median_ns) / 65_536
    return {"huge_pages": huge_pages, "points": points, "uniform_extra_ns_per_row": per_miss}


def measure_stream(
    table: RowFiles, places: Placements, block: Any, *, share: float, n_stream: int
) -> dict[str, Any] | None:
    """A Zipf stream (exponent 1) through a budget of a share of the rows; None if a byte is wrong."""
    rng = np.random.default_rng(2)
    n_rows = len(block)
    ranks = np.cumsum(1.0 / np.arange(1, n_rows + 1))
    of_rank = rng.permutation(n_rows)

    def zipf(n: int) -> Any:
        return of_rank[np.searchsorted(ranks, rng.random(n) * ranks[-1], side="right")]

    budget_bytes = int(share * block.nbytes)
    twin = ReferenceCache(n_sets=shape_for(budget_bytes, n_rows=[n_rows], row_bytes=ROW_BYTES).n_sets, n_rows=[n_rows])
    phases = {
        "warm-up": zipf(n_stream),
        "steady": zipf(n_stream),
        "scan": rng.permutation(n_rows)[: n_stream // 2],
        "after the scan": zipf(n_stream // 4),
    }
    found: dict[str, Any] = {"share": share, "budget_bytes": budget_bytes, "phases": {}}
    behind = DirectReadEngine(table, places)
    tier = MemoryTier(budget_bytes=budget_bytes)
    with TieredEngine(table, places, behind, tier, owns_behind=True) as engine:
        out = np.full((STREAM_BATCH, ROW_BYTES), 1, np.uint8)
        for name, rows in phases.items():
            before, n_twin = engine.counts(), 0
            batches = [rows[k : k + STREAM_BATCH] for k in range(0, rows.size - STREAM_BATCH + 1, STREAM_BATCH)]
            waiting = iter(batches)

            def read(of_batch: Any) -> None:
                # One thread takes records in, so that the same rows stay as in the twin.
                engine.read(Batch(of_batch, STREAM_BATCH, 0, 1), out)

            cases = {"tier": Case(prepare=lambda waiting=waiting: next(waiting), run=read)}
            samples = interleave(cases, repeats=len(batches), warm_ups=0)["tier"]
            after = engine.counts()
            if not np.array_equal(out, block[batches[-1]]):
                return None
            for of_batch in batches:
                n_twin += sum(twin.fetch((0, row) for row in of_batch.tolist()))
            n_asked = len(batches) * STREAM_BATCH
            found["phases"][name] = {
                "hit_ratio": 1 - (after.misses - before.misses) / n_asked,
                "predicted_hit_ratio": n_twin / n_asked,
                "rows_per_s": n_asked * 1e9 / sum(samples.elapsed_ns),
                "batch": samples.summary(),
            }
    return found


def show_hits(found: dict[str, Any]) -> None:
    """One page size on a terminal."""
    print(f"tier in {'huge' if found['huge_pages'] else '4 KiB'} pages, gather from huge pages; one thread")
    for point in found["points"]:
        print(
            f"  {point['rows_per_batch']:6,} rows a batch: hit {point['hit_ns_per_row']:6.1f} ns a row, gather "
            f"{point['gather_ns_per_row']:6.1f}; {point['share_of_gather']:.2f} of the gather"
        )
    print(
        f"  uniform rows, an eighth fits: {found['uniform_extra_ns_per_row']:.0f} ns a row more than the gather alone"
    )


def show_stream(found: dict[str, Any]) -> None:
    """One budget on a terminal."""
    print(f"Zipf 1.0 in front of direct reads, a budget of {found['share']:.0%} of the rows")
    for name, phase in found["phases"].items():
        print(
            f"  {name:15} hit ratio {phase['hit_ratio']:6.1%} (predicted {phase['predicted_hit_ratio']:6.1%}), "
            f"{phase['rows_per_s'] / 1e3:8.0f} k rows/s"
        )


if __name__ == "__main__":
    sys.exit(main())
