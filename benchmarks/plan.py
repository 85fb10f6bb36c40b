"""What `engram plan` predicts beside what `engram bench-offload` measures: milliseconds a token in four placements.

    python -m benchmarks.plan [--gib 1] [--rounds 3] [--tokens 1,8,64] [--directory DIR] [--record FILE]

Tables of V4.1's rows (264 bytes, 48 a token) are written packed, in page layout and with weights and scales apart. For
each placement a round measures what a plan measures (`--probe`: memory, one call, bursts of 4 KiB reads of blocks of a
file), predicts one fetch of so many tokens, and then runs the benchmark: warm from memory (engine `auto`), cold from
the device (the engine that the probe used), rows uniform and distinct. No point that is predicted is measured before
it is. Each prediction is made right before its measurement, so that both see the same minute of a shared machine;
medians of the rounds are compared, and each round's figures are kept. Bytes are compared before anything is timed; a
difference ends with 6.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.address.spec import AddressSpec
from engram_tables.measure.bench import bench_offload
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.offload.plan import BenchPlan, Source, State
from engram_tables.measure.planning.machine import make_machine
from engram_tables.measure.planning.placements import DISK_LAYOUTS, Placement, Setting, place
from engram_tables.measure.planning.probing import probe
from engram_tables.measure.planning.sizes import sizes_of_spec
from engram_tables.storage.building.writer import build_table, plan_table

CODEC = "fp8-e4m3-e8m0"
PLACEMENTS = (Placement.DRAM, Placement.NVME_PACKED, Placement.NVME_PAGE, Placement.NVME_PLANAR)
GOAL = 0.2
PROBE_SECONDS, PROBE_BYTES = 0.1, 256 << 20


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if any byte is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="GiB of rows of each table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=0.5, help="timed work of each point")
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    tokens = tuple(int(word) for word in options.tokens.split(","))
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        spec = v41_spec(options.gib)
        tables = written(spec, Path(scratch))
        rounds = []
        for nth in range(options.rounds):
            found = measured_round(spec, tables, tokens, options.seconds)
            if found is None:
                print("check failed: an engine's bytes differ from the rows; nothing more was timed", file=sys.stderr)
                return 6
            rounds.append(found)
            print(f"round {nth + 1} of {options.rounds}: done", file=sys.stderr)
    points = [summed_up(placement, n, rounds) for placement in PLACEMENTS for n in tokens]
    show(points)
    record = {
        "schema": "engram.benchmark-plan/1",
        "command": command_line(),
        "environment": describe(options.directory),
        "row_bytes": 264,
        "rows_per_token": 48,
        "n_rows": spec.n_rows,
        "goal": {"relative_error": GOAL, "placements": 3},
        "points": points,
        "rounds": rounds,
    }
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def v41_spec(gib: float) -> AddressSpec:
    """V4.1's orders, heads and layers over fewer rows."""
    return DeepSeekRecipe(
        name="plan-benchmark", provenance="sizes of DeepSeek-V4.1-Flash over fewer rows", canonical_size=99_092,
        orders=(2, 3, 4), heads=8, bases=(int(gib * 2**30) // 264 // 48,) * 3, layer_ids=(1, 14), n_layers=2,
        fill_id=2, row_width=256,
    ).resolve()  # fmt: skip


def written(spec: AddressSpec, home: Path) -> dict[Placement, Path]:
    """A table for each placement; memory shares the packed one."""
    tables: dict[Placement, Path] = {}
    for placement, layout in DISK_LAYOUTS.items():
        if placement is not Placement.NVME_BUNDLED:
            tables[placement] = home / layout
            build_table(plan_table(spec, codec=CODEC, layout=layout, init="normal"), home / layout)
    return {**tables, Placement.DRAM: tables[Placement.NVME_PACKED]}


def measured_round(
    spec: AddressSpec, tables: dict[Placement, Path], tokens: tuple[int, ...], seconds: float
) -> dict[str, Any] | None:
    """Predictions of a probe, then the benchmark's figures, in microseconds of a fetch; None if a byte is wrong."""
    sizes = sizes_of_spec(spec, codec=CODEC)
    probes: dict[str, Any] = {}
    predicted: dict[str, dict[int, float]] = {}
    found: dict[str, dict[int, float]] = {}
    for placement in PLACEMENTS:
        probed = probes[str(placement)] = probe(
            tables[Placement.NVME_PACKED], seconds=PROBE_SECONDS, region_bytes=PROBE_BYTES
        )
        setting = Setting(table=sizes, machine=make_machine(records=[("the probe", probed)]))
        predicted[str(placement)] = {n: place(setting, placement).fetch_us(n) for n in tokens}
        is_cold = placement is not Placement.DRAM
        # One engine alone: of several that take turns with the same batches, all but the first find warm caches.
        plan = BenchPlan(
            sources=(Source.NVME if is_cold else Source.AUTO,), state=State.COLD if is_cold else State.WARM,
            engine=probed["disk"]["engine"] if is_cold else None, tokens=tokens, seconds=seconds, depths=(1, 2),
            bounds=False, repeats=20,
        )  # fmt: skip
        record = bench_offload(tables[placement], plan=plan)
        if record["mismatches"]:
            return None
        (section,) = record["sections"]
        if section["status"] != "measured":
            raise SystemExit(f"{placement}: {section['reason']}")
        found[str(placement)] = {point["tokens_per_batch"]: point["median_ns"] / 1e3 for point in section["points"]}
    # A record's keys are words.
    return {
        "probes": probes,
        "predicted_us": {name: {str(n): us for n, us in each.items()} for name, each in predicted.items()},
        "measured_us": {name: {str(n): us for n, us in each.items()} for name, each in found.items()},
    }


def summed_up(placement: Placement, n_tokens: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds, in milliseconds a token, and their ratio."""
    predicted = float(np.median([each["predicted_us"][placement][str(n_tokens)] for each in rounds]))
    measured = float(np.median([each["measured_us"][placement][str(n_tokens)] for each in rounds]))
    ratio = predicted / measured
    return {
        "placement": str(placement),
        "tokens_per_batch": n_tokens,
        "predicted_ms_per_token": predicted / n_tokens / 1e3,
        "measured_ms_per_token": measured / n_tokens / 1e3,
        "predicted_over_measured": ratio,
        "is_within_goal": abs(ratio - 1) <= GOAL,
    }


def show(points: list[dict[str, Any]]) -> None:
    """All points on a terminal."""
    print(f"{'placement':14}{'tokens':>8}{'predicted, ms a token':>24}{'measured':>12}{'ratio':>8}")
    for point in points:
        print(
            f"{point['placement']:14}{point['tokens_per_batch']:8}{point['predicted_ms_per_token']:24.4f}"
            f"{point['measured_ms_per_token']:12.4f}{point['predicted_over_measured']:8.2f}"
            f"{'' if point['is_within_goal'] else '  more than 20 % off'}"
        )


if __name__ == "__main__":
    sys.exit(main())
