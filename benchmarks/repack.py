"""Repacking V4.1's planar layout against a plain copy of the same file to the same disk.

    python -m benchmarks.repack [--directory DIR] [--bytes 2GiB] [--layout packed] [--repeats 5] [--record FILE]

The source is one .safetensors with two tensors, 256 bytes of weights and 8 of scales for each row. Timed: `repack`,
`build_table` from its call to its return, which reads both planes, interleaves, hashes and writes every block, flushes
the files and renames the directory; `copy`, one thread that reads the source in pieces of 16 MiB, writes them to a new
file and flushes it; `copy threads`, the same with as many threads as the repack. Not timed: removing what the run
before left, and waiting until the disk is idle. How much of the source the page cache holds is measured before every
run. Before anything is timed one table is built, every block is verified, and every row is compared with the planes.
The memory is that of the command in a process of its own, watched from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import processes
from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.residency import resident_bytes
from engram_tables.measure.timing import Case, interleave
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.checking.verify import verify_tables
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.source import Source
from engram_tables.storage.table.layout import LAYOUT_NAMES
from engram_tables.storage.table.reader import StoredTable
from engram_tables.threads import resolve_threads
from engram_tables.units import format_bytes, parse_bytes

LAYER_ID = 1
WEIGHT_BYTES, SCALE_BYTES = 256, 8
PIECE_BYTES = 16 * 2**20
CHECKED_ROWS = 2**16


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if the table is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk to read from and write to")
    parser.add_argument("--bytes", type=parse_bytes, default=2 * 2**30, help="size of the source")
    parser.add_argument("--layout", choices=LAYOUT_NAMES, default="packed")
    parser.add_argument("--memory", type=parse_bytes, default=512 * 2**20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    n_threads = resolve_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-repack-") as directory:
        root = Path(directory)
        n_rows = options.bytes // (WEIGHT_BYTES + SCALE_BYTES)
        checkpoint, spec = root / "model.safetensors", make_spec(n_rows)
        write_checkpoint(checkpoint, n_rows)
        source = open_source(checkpoint, spec=spec)
        plan = plan_repack(source, layout=options.layout)
        target = root / "table"
        build_table(plan, target, threads=n_threads)
        wrong = find_fault(checkpoint, target)
        if wrong is not None:
            print(f"check failed: {wrong}; nothing was timed", file=sys.stderr)
            return 6
        resident: list[float] = []
        samples = interleave(
            cases(source, checkpoint, target, resident, layout=options.layout, n_threads=n_threads),
            repeats=options.repeats,
            warm_ups=1,
        )
        source.close()
        (root / "spec.json").write_text(json.dumps(spec.to_json()))
        memory = measure_memory(root, options.layout, options.memory, n_threads)
        source_bytes = checkpoint.stat().st_size
        environment = describe(root)
    bytes_of = {"repack": plan.total_bytes, "copy": source_bytes, "copy threads": source_bytes}
    record = {
        "schema": "engram.benchmark-repack/1",
        "command": command_line(),
        "environment": environment,
        "threads": n_threads,
        "layout": options.layout,
        "n_rows": n_rows,
        "source_bytes": source_bytes,
        "total_bytes": plan.total_bytes,
        "source_resident_share": {"min": min(resident), "max": max(resident)},
        "memory": memory,
        "ratio_to_copy": rounds_ratio(samples["repack"].elapsed_ns, samples["copy"].elapsed_ns),
        "cases": {
            name: {"bytes_per_s": bytes_of[name] * 1e9 / found.median_ns, **found.summary()}
            for name, found in samples.items()
        },
    }
    show(record)
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def make_spec(n_rows: int) -> AddressSpec:
    """Addressing of one layer with one head, which has all rows."""
    layer = LayerAddressing(layer_id=LAYER_ID, multipliers=(1, 3), moduli=((n_rows,),), offsets=(0,), n_rows=n_rows)
    return AddressSpec(
        name="bench", provenance="benchmark", canonical_size=1000, history=HistoryRule(fill_id=2), orders=(2,),
        layers=(layer,), row_width=WEIGHT_BYTES,
    )  # fmt: skip


def write_checkpoint(path: Path, n_rows: int) -> None:
    """Two planes of pseudo-random bytes behind a header."""
    names = (f"layers.{LAYER_ID}.engram.embed.weight", f"layers.{LAYER_ID}.engram.embed.scale")
    shapes = ((n_rows, WEIGHT_BYTES), (n_rows, SCALE_BYTES))
    middle, end = n_rows * WEIGHT_BYTES, n_rows * (WEIGHT_BYTES + SCALE_BYTES)
    header = json.dumps(
        {
            names[0]: {"dtype": "F8_E4M3", "shape": shapes[0], "data_offsets": (0, middle)},
            names[1]: {"dtype": "F8_E8M0", "shape": shapes[1], "data_offsets": (middle, end)},
        }
    ).encode()
    header = header.ljust(-(-(len(header) + 8) // 8) * 8 - 8)
    rng = np.random.default_rng(0)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        left = end
        while left:
            n_bytes = min(left, PIECE_BYTES)
            file.write(rng.bytes(n_bytes))
            left -= n_bytes
        file.flush()
        os.fsync(file.fileno())


def find_fault(checkpoint: Path, target: Path) -> str | None:
    """What is wrong with the table, if anything."""
    if not verify_tables([target]).is_whole:
        return "blocks differ from their digests"
    first = 8 + int.from_bytes(checkpoint.open("rb").read(8), "little")
    with StoredTable(target) as table:
        n_rows = table.spec.layer(LAYER_ID).n_rows
        planes = np.memmap(checkpoint, np.uint8, mode="r")[first:]
        weights = planes[: n_rows * WEIGHT_BYTES].reshape(-1, WEIGHT_BYTES)
        scales = planes[n_rows * WEIGHT_BYTES :].reshape(-1, SCALE_BYTES)
        for begin in range(0, n_rows, CHECKED_ROWS):
            rows = np.arange(begin, min(begin + CHECKED_ROWS, n_rows))
            pieces = [_stretches(table, rows, part_idx) for part_idx in range(len(table.parts))]
            wanted = np.concatenate([weights[rows], scales[rows]], axis=1)
            if not np.array_equal(np.concatenate(pieces, axis=1), wanted):
                return f"a row from {begin} on differs from the two planes"
    return None


def _stretches(table: StoredTable, rows: Any, part_idx: int) -> Any:
    """uint8 (n, part bytes) of consecutive rows."""
    spots = table.locate(LAYER_ID, rows, part_idx)
    found = np.empty((len(rows), table.parts[part_idx].n_bytes), np.uint8)
    for file_idx in np.unique(spots.file_idx):
        mine = spots.file_idx == file_idx
        columns = np.arange(found.shape[1])
        found[mine] = table.mapping(int(file_idx))[spots.offsets[mine][:, None] + columns]
    return found


def cases(
    source: Source, checkpoint: Path, target: Path, resident: list[float], *, layout: str, n_threads: int
) -> dict[str, Case]:
    """The repack and what it is compared with."""
    aside = target.with_name("copy")
    source_bytes = checkpoint.stat().st_size

    def clear() -> None:
        shutil.rmtree(target, ignore_errors=True)
        aside.unlink(missing_ok=True)
        # What an earlier run left to be written would be paid for by this one.
        os.sync()
        resident.append(resident_bytes([checkpoint]) / source_bytes)

    def repack(_: object) -> None:
        build_table(plan_repack(source, layout=layout), target, threads=n_threads)

    def copy(_: object) -> None:
        buffer = memoryview(bytearray(PIECE_BYTES))
        with checkpoint.open("rb", buffering=0) as file, aside.open("xb", buffering=0) as copied:
            while n_bytes := file.readinto(buffer):
                copied.write(buffer[:n_bytes])
            os.fsync(copied.fileno())

    def copy_by_threads(_: object) -> None:
        with checkpoint.open("rb", buffering=0) as file, aside.open("xb", buffering=0) as copied:

            def some(thread: int) -> None:
                buffer = memoryview(bytearray(PIECE_BYTES))
                for begin in range(thread * PIECE_BYTES, source_bytes, n_threads * PIECE_BYTES):
                    n_bytes = os.preadv(file.fileno(), [buffer], begin)
                    os.pwrite(copied.fileno(), buffer[:n_bytes], begin)

            with ThreadPoolExecutor(n_threads) as pool:
                list(pool.map(some, range(n_threads)))
            os.fsync(copied.fileno())

    return {
        "repack": Case(prepare=clear, run=repack),
        "copy": Case(prepare=clear, run=copy),
        "copy threads": Case(prepare=clear, run=copy_by_threads),
    }


def rounds_ratio(repack_ns: list[int], copy_ns: list[int]) -> dict[str, Any]:
    """How fast the repack was for the copy of the same round: above 1 where it was faster."""
    ratios = [copied / repacked for repacked, copied in zip(repack_ns, copy_ns, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "samples": ratios}


def measure_memory(root: Path, layout: str, memory_bytes: int, n_threads: int) -> dict[str, Any]:
    """Peak memory of the command in a process of its own."""
    command = [
        sys.executable, "-c", "from engram_cli.main import main; main()", "build-table", "--from",
        str(root / "model.safetensors"), "--spec", str(root / "spec.json"), "--layout", layout, "--memory",
        str(memory_bytes), "--threads", str(n_threads), "-o", str(root / "measured"),
    ]  # fmt: skip
    done = processes.run(command, timeout_s=600)
    return {
        "memory_bytes": memory_bytes,
        "peak_anonymous_bytes": done.peak_anonymous_bytes,
        "peak_rss_bytes": done.peak_rss_bytes,
        "failure": done.failure,
    }


def show(record: dict[str, Any]) -> None:
    """The result on a terminal."""
    found, ratio, memory = record["cases"], record["ratio_to_copy"], record["memory"]
    print(
        f"{record['n_rows']:,} rows, {format_bytes(record['source_bytes'])}, {record['layout']}, "
        f"{record['threads']} threads"
    )
    labels = {"repack": "build_table --from", "copy": "copy, one thread", "copy threads": "copy, as many threads"}
    for name, label in labels.items():
        case = found[name]
        print(
            f"  {label:22} {case['bytes_per_s'] / 1e9:6.2f} GB/s  (MAD {case['mad_ns'] / case['median_ns']:.1%}, "
            f"n {case['n']}, CPU {case['cpu_ns_total'] / sum(case['samples_ns']):.2f})"
        )
    share = record["source_resident_share"]
    print(f"  of the source, in the page cache before a run: {share['min']:.0%} to {share['max']:.0%}")
    print(f"  repack to copy, by rounds: median {ratio['median']:.2f}, {ratio['min']:.2f} to {ratio['max']:.2f}")
    overall = found["repack"]["bytes_per_s"] / found["copy"]["bytes_per_s"]
    print(f"  repack to copy, by medians: {overall:.2f}; target 0.8")
    peak = memory["peak_anonymous_bytes"]
    told = memory["failure"] or (format_bytes(peak) if peak is not None else "not told by this system")
    print(f"  anonymous memory at most: {told}, with --memory {format_bytes(memory['memory_bytes'])}")


if __name__ == "__main__":
    sys.exit(main())
