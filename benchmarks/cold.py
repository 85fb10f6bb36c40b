"""Cold reads of 264-byte rows: what a row costs planar, packed and page; and how fast each engine reads them.

    python -m benchmarks.cold [--size 4GiB] [--repeats 5] [--seconds 2] [--tokens 200] [--directory DIR] [--record FILE]

A checkpoint in the form of a release (all weights, then all scales, in one safetensors file) is written and repacked
into a packed table of four shards and a page table. Three measurements follow, each after its bytes were compared with
a slow reading:

1. Reads and bytes a row, by the counters of the block device around one `Table.fetch_rows` of rows of which no two
   share a page in any layout, files evicted before. Through the page cache (engine pread) the device gives whole
   pages, which are held against the bars; the direct engines read in units of the device. What other processes read
   meanwhile counts as well; beside it stands what the system has charged to this process alone.
2. Rows a second and CPU a row of every engine on the packed table, beside fio's io_uring at depth 64 on the same files
   and EngramDB on the same rows in four files of its own, in turn. Timed: `Table.fetch_rows` of 65,536 uniform rows
   into a buffer that has been written before. Files are evicted before each batch of what reads through the page
   cache, and what was left in memory is in the record.
3. The time of a batch of 48 rows, beside one thread that reads them from a mapping advised MADV_RANDOM: in runs of
   batches that follow each other at once, and after pauses of 10 ms, as a decode loop makes them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cold_speed import SHARDS, measure_latency, measure_speed, own_read_bytes, show_speed
from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import Table, open_table
from engram_tables.measure.environment import command_line, describe, device_reads
from engram_tables.measure.residency import evict
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.sources.opening import SourceRows, open_source
from engram_tables.storage.sources.source import closing
from engram_tables.units import PAGE_BYTES, parse_bytes

WEIGHT_BYTES, SCALE_BYTES = 256, 8
ROW_BYTES = WEIGHT_BYTES + SCALE_BYTES
COUNTED_ROWS = 4096
# Two pages of scales: rows this far apart share no page in any layout.
_ROWS_APART = 2 * PAGE_BYTES // SCALE_BYTES
# Pages a row from the device, as a row of 264 bytes has them: a page for each place, and one more where it crosses.
BARS = {"planar": (2.0, 2.1), "packed": (1.05, 1.08), "page": (1.0, 1.02)}
ENGINES = ("pread", "direct", "uring", "aio")


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, 5 where no engine reads, or 6 if bytes are wrong or a layout costs other pages than its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_bytes, default=parse_bytes("4GiB"), help="bytes of rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each fio run")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where files are made; a disk, no tmpfs")
    parser.add_argument("--tokens", type=int, default=200, help="batches of 48 rows, of each kind")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    spec = one_layer(options.size // ROW_BYTES // SHARDS * SHARDS)
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch, ExitStack() as stack:
        checkpoint = write_planar(Path(scratch) / "model.safetensors", spec.n_rows)
        tables = {"planar": Table(SourceRows(open_source(checkpoint, spec=spec)))}
        for layout in ("packed", "page"):
            with closing(open_source(checkpoint, spec=spec)) as source:
                shard_bytes = (
                    2 * options.size if layout == "page" else spec.n_rows // SHARDS * ROW_BYTES + 2 * PAGE_BYTES
                )
                build_table(plan_repack(source, layout=layout, shard_bytes=shard_bytes), Path(scratch) / layout)
            tables[layout] = open_table(Path(scratch) / layout)
        for table in tables.values():
            stack.enter_context(table)
        record: dict[str, Any] = {
            "schema": "engram.benchmark-cold/4",
            "command": command_line(),
            "environment": describe(checkpoint),
            "layouts": count_pages(tables, options),
            "speed": measure_speed(tables["packed"], Path(scratch), options),
            "latency": measure_latency(tables["packed"], options),
        }
    show(record)
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    if "mismatch" in (record[name]["status"] for name in ("layouts", "speed", "latency")):
        return 6
    if not all(point["is_within_bar"] is not False for point in record["layouts"].get("points", ())):
        print("check failed: a layout costs other pages than it should", file=sys.stderr)
        return 6
    return 0 if record["speed"]["status"] == "measured" else 5


def one_layer(n_rows: int) -> AddressSpec:
    """A spec of one order and one head with `n_rows` rows of 256 values."""
    layer = LayerAddressing(layer_id=0, multipliers=(1, 3), moduli=((n_rows,),), offsets=(0,), n_rows=n_rows)
    return AddressSpec(
        name="cold-benchmark", provenance="benchmarks/cold.py", canonical_size=1 << 20,
        history=HistoryRule(fill_id=0), orders=(2,),
        layers=(layer,), row_width=WEIGHT_BYTES,
    )  # fmt: skip


def write_planar(path: Path, n_rows: int) -> Path:
    """Random rows as V4.1's checkpoint holds them: a header padded to 8 bytes, all weights, all scales."""
    stop = n_rows * WEIGHT_BYTES
    tensors = {
        "weight": ("F8_E4M3", WEIGHT_BYTES, 0, stop),
        "scale": ("F8_E8M0", SCALE_BYTES, stop, stop + n_rows * SCALE_BYTES),
    }
    entries = {
        f"layers.0.engram.embed.{name}": {"dtype": dtype, "shape": [n_rows, width], "data_offsets": [start, end]}
        for name, (dtype, width, start, end) in tensors.items()
    }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    rng = np.random.default_rng(0)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, n_rows * ROW_BYTES, 1 << 26):
            file.write(rng.bytes(min(1 << 26, n_rows * ROW_BYTES - start)))
    return path


# What a row costs.


def count_pages(tables: dict[str, Table], options: argparse.Namespace) -> dict[str, Any]:
    """Device reads and bytes a row of each layout through each engine, in turn."""
    files = {layout: [file.path for file in table.stored.files] for layout, table in tables.items()}
    n_rows = tables["packed"].spec.n_rows
    n_batch = min(COUNTED_ROWS, n_rows // (2 * _ROWS_APART))
    if n_batch == 0 or device_reads(files["packed"][0]) is None:
        reason = f"{n_rows} rows are too few" if n_batch == 0 else "the block device under the files has no counters"
        return {"status": "waived", "reason": reason}
    rng = np.random.default_rng()
    rows = _rows_apart(rng, n_rows, n_batch)
    expected = {layout: read_rows(table.stored, 0, rows) for layout, table in tables.items()}
    engines, waived = [], {}
    for engine in ENGINES:
        try:
            for layout, table in tables.items():
                found = table.fetch_rows(0, rows, engine=engine)
                if not (np.array_equal(found, expected[layout]) and np.array_equal(found, expected["planar"])):
                    return {"status": "mismatch", "reason": f"{layout}, {engine}: bytes differ from a slow reading"}
            engines.append(engine)
        except BackendUnavailable as error:
            waived[engine] = str(error)
    out = np.full((n_batch, ROW_BYTES), 1, np.uint8)
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    for repeat in range(options.repeats + 1):
        for engine in engines:
            for layout, table in tables.items():
                rows = _rows_apart(rng, n_rows, n_batch)
                sample: dict[str, float] = {"resident_bytes_before": evict(files[layout])}
                before, own_before = device_reads(files[layout][0]), own_read_bytes()
                start_ns = time.perf_counter_ns()
                table.fetch_rows(0, rows, out, engine=engine)
                sample["elapsed_ns"] = time.perf_counter_ns() - start_ns
                after, own_after = device_reads(files[layout][0]), own_read_bytes()
                assert before is not None
                assert after is not None
                sample["reads_per_row"] = (after[0] - before[0]) / n_batch
                sample["bytes_per_row"] = (after[1] - before[1]) / n_batch
                if own_before is not None and own_after is not None:
                    sample["own_bytes_per_row"] = (own_after - own_before) / n_batch
                sample["touched_pages_per_row"] = _touched_pages(table, rows) / n_batch
                # The first round reads the filesystem's own maps of the files as well.
                if repeat:
                    samples.setdefault((layout, engine), []).append(sample)
    points = [_point(layout, engine, n_batch, found) for (layout, engine), found in samples.items()]
    if not any(point["reads_per_row"] for point in points):
        return {"status": "waived", "reason": "the device's counters do not move: something else answers the reads"}
    return {"status": "measured", "rows_per_batch": n_batch, "waived_engines": waived, "points": points}


def _rows_apart(rng: np.random.Generator, n_rows: int, n_batch: int) -> Any:
    """One row of each of `n_batch` equal ranges, in random order, none near the next range."""
    step = n_rows // n_batch
    return rng.permutation(np.arange(n_batch) * step + rng.integers(0, step - _ROWS_APART, n_batch))


def _touched_pages(table: Table, rows: Any) -> int:
    """Pages that hold the parts of these records, by arithmetic."""
    n_pages = 0
    for part_idx, part in enumerate(table.stored.parts):
        offsets = table.stored.locate(0, rows, part_idx).offsets
        n_pages += int(((offsets + part.n_bytes - 1) // PAGE_BYTES - offsets // PAGE_BYTES + 1).sum())
    return n_pages


def _point(layout: str, engine: str, n_batch: int, samples: list[dict[str, float]]) -> dict[str, Any]:
    middle = {name: float(np.median([sample[name] for sample in samples])) for name in samples[0]}
    pages_per_row = middle["bytes_per_row"] / PAGE_BYTES
    bar = BARS[layout] if engine == "pread" else None
    return {
        "layout": layout,
        "engine": engine,
        **middle,
        "pages_per_row": pages_per_row,
        "rows_per_s": n_batch * 1e9 / middle["elapsed_ns"],
        "bar": bar,
        "is_within_bar": None if bar is None else bool(bar[0] <= round(pages_per_row, 2) <= bar[1]),
        "samples": samples,
    }


def show(record: dict[str, Any]) -> None:
    """The record on a terminal."""
    layouts = record["layouts"]
    if layouts["status"] != "measured":
        print(f"reads a row: {layouts['status']}: {layouts['reason']}")
    for point in layouts.get("points", ()):
        bar = "" if point["bar"] is None else f"; the bar is {point['bar'][0]} to {point['bar'][1]}"
        own = f"{point['own_bytes_per_row'] / PAGE_BYTES:.3f}" if "own_bytes_per_row" in point else "not said"
        print(
            f"{point['layout']:7} {point['engine']:7} {point['reads_per_row']:5.2f} reads a row, "
            f"{point['bytes_per_row']:6.0f} bytes ({point['pages_per_row']:.3f} pages{bar}); this process "
            f"{own}, by arithmetic {point['touched_pages_per_row']:.3f}; "
            f"{point['rows_per_s']:,.0f} rows/s"
        )
    show_speed(record["speed"], record["latency"])


if __name__ == "__main__":
    sys.exit(main())
