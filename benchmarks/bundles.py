"""Bundles: reads a token by budget on unseen text, and what a token costs cold with and without them.

    python -m benchmarks.bundles --counts DIR --unseen STORE --vocab FILE [--preset NAME] [--table 8GiB]
        [--on-disk 1MiB,64MiB,1GiB] [--tokens 200] [--chunk 512] [--directory DIR] [--record FILE]

`--counts` are of one text (`engram count --orders 2,3,4`), `--unseen` is a token store of other text of the same kind.
Two parts.

1. For the published addressing and row size: lookups found, reads a token and bytes a token of the unseen text, for
   budgets from 1 MiB to 32 GiB, all from one choice; and what the same choice says of the counted text itself.
2. A table of `--table` bytes with the same keys (fewer rows a head, so that it fits this disk) is built, and bundles of
   the budgets `--on-disk` for it. Batches of one token and of `--chunk` tokens of the unseen text are fetched with each
   of them and without, in turn, by the engine that `auto` takes for what is not in memory, past the page cache. Bytes
   are compared before anything is timed. Timed: `Table.fetch` into a buffer that has been written before. The smallest
   budget whose median token is faster than without bundles is the crossover of this device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables.address.hashing import hash_tokens
from engram_tables.address.presets import load_spec
from engram_tables.address.spec import Addresses, AddressSpec
from engram_tables.address.vocabulary import Vocabulary, load_vocabulary
from engram_tables.corpus.counts.counts_store import Counts, open_counts
from engram_tables.corpus.tokens.token_store import open_tokens
from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.bundles import BundledTable
from engram_tables.fetch.bundling import plan_table_bundles, write_table_bundles
from engram_tables.fetch.table import Table, open_table
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.residency import evict
from engram_tables.measure.timing import Case, interleave
from engram_tables.storage.building.writer import build_table, plan_table
from engram_tables.storage.bundles.choosing import Chosen, ChosenIndex, choose
from engram_tables.storage.bundles.writing import RowsToBundle
from engram_tables.units import parse_bytes

CODEC, ROW_BYTES = "fp8-e4m3-e8m0", 264
BUDGETS = tuple(2**k for k in range(20, 36))
BAR_BUDGET, BAR_RATIO = 8 * 2**30, 2.4
ENGINES = ("uring", "aio", "direct")
MEMORY_BYTES = 4 * 2**30


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if bytes are wrong or the reads saved are fewer than the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=Path, required=True)
    parser.add_argument("--unseen", type=Path, required=True)
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--preset", default="deepseek-v4.1-flash")
    parser.add_argument("--table", type=parse_bytes, default=parse_bytes("8GiB"), help="bytes of rows on this disk")
    parser.add_argument("--on-disk", default="1MiB,8MiB,64MiB,512MiB,2GiB", help="budgets of part 2")
    parser.add_argument("--tokens", type=int, default=300, help="batches of one token, of each case")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=20, help="batches of a chunk, of each case")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where files are made; a disk, no tmpfs")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    vocabulary = load_vocabulary(options.vocab)
    spec = load_spec(options.preset, vocabulary=vocabulary)
    documents = list(read_documents(options.unseen, vocabulary))
    record: dict[str, Any] = {
        "schema": "engram.benchmark-bundles/1",
        "command": command_line(),
        "environment": describe(options.directory),
        "spec": spec.name,
        "row_bytes": ROW_BYTES,
    }
    with open_counts(options.counts) as counts:
        record["counted_tokens"] = counts.total_tokens
        record["unseen_tokens"] = sum(map(len, documents))
        record["budgets"] = sweep(spec, counts, documents)
        show_sweep(record)
        with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
            record["cold"] = measure_cold(spec, counts, documents, Path(scratch), options)
    show_cold(record["cold"])
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return verdict(record)


def read_documents(path: Path, vocabulary: Vocabulary) -> Iterator[Any]:
    """Canonical ids of every document of a token store."""
    with open_tokens(path) as tokens:
        stream = tokens.read(0, tokens.n_tokens)
    ids = vocabulary.canonical(stream.ids)
    for start, stop in zip(stream.document_starts[:-1], stream.document_starts[1:], strict=True):
        if start < stop:
            yield ids[start:stop]


# Reads a token, by the choice alone.


def sweep(spec: AddressSpec, counts: Counts, documents: list[Any]) -> list[dict[str, Any]]:
    """What every budget finds of the unseen text, from one choice for the largest."""
    chosen = choose(counts, spec, row_bytes=ROW_BYTES, budget_bytes=BUDGETS[-1], memory_bytes=MEMORY_BYTES)
    index = ChosenIndex(chosen, spec, layer_id=spec.layer_ids[0])
    ranks = np.concatenate([index.ranks(hash_tokens(spec, ids).keys[:, 0]) for ids in documents])
    found = []
    for budget in BUDGETS:
        n_ngrams = chosen.n_within(budget)
        if not n_ngrams:
            continue
        shares = ((ranks >= 0) & (ranks < n_ngrams)).mean(axis=0)
        found.append(
            {
                "budget_bytes": budget,
                "n_ngrams": n_ngrams,
                "bundle_bytes": int(chosen.bytes_upto[n_ngrams - 1]),
                "found": {str(order): float(share) for order, share in zip(spec.orders, shares, strict=True)},
                "reads_a_token": reads_a_token(spec, shares),
                "reads_a_counted_token": reads_a_token(spec, counted_shares(chosen, n_ngrams, spec)),
                "bytes_a_token": spec.n_columns * len(spec.layers) * ROW_BYTES,
            }
        )
    return found


def reads_a_token(spec: AddressSpec, shares: Any) -> float:
    """Reads where a share of each order's lookups is found."""
    per_layer = sum(
        share + (1 - share) * n_heads for share, n_heads in zip(np.asarray(shares).tolist(), spec.heads, strict=True)
    )
    return float(len(spec.layers) * per_layer)


def counted_shares(chosen: Chosen, n_ngrams: int, spec: AddressSpec) -> list[float]:
    """Of the counted text's own lookups, the share that a prefix holds, by order."""
    orders, times = chosen.orders[:n_ngrams], chosen.counts[:n_ngrams]
    return [int(times[orders == order].sum()) / max(chosen.lookups[order], 1) for order in spec.orders]


# What a token costs.


def smaller(spec: AddressSpec, table_bytes: int) -> AddressSpec:
    """The same keys with fewer rows a head."""
    n_rows = table_bytes // ROW_BYTES // (len(spec.layers) * spec.n_columns)
    layers = []
    for layer in spec.layers:
        # Different moduli, as the published ones are.
        flat = [n_rows - column for column in range(spec.n_columns)]
        per_order = np.split(np.array(flat), np.cumsum(spec.heads)[:-1])
        layers.append(
            replace(
                layer,
                moduli=tuple(tuple(int(m) for m in of) for of in per_order),
                offsets=(0, *accumulate(flat[:-1])),
                n_rows=sum(flat),
            )
        )
    return replace(spec, name="bundles-benchmark", layers=tuple(layers), row_width=256)


def measure_cold(
    spec: AddressSpec, counts: Counts, documents: list[Any], scratch: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Tables with bundles of several budgets and one without, in turn."""
    spec = smaller(spec, options.table)
    path = scratch / "table"
    build_table(plan_table(spec, codec=CODEC, layout="packed", init="normal"), path)
    with ExitStack() as stack:
        plain = stack.enter_context(open_table(path, bundles=False))
        tables: dict[str, Table] = {"rows": plain}
        built = []
        for budget in map(parse_bytes, options.on_disk.split(",")):
            plan = plan_table_bundles(RowsToBundle.of(plain.stored), counts, budget_bytes=budget)
            place = scratch / f"bundles-{budget}"
            write_table_bundles(plan, plain, place)
            tables[str(budget)] = stack.enter_context(open_table(path, bundles=place))
            built.append(
                {"budget_bytes": budget, "total_bytes": plan.manifest.total_bytes, "n_bundles": plan.n_bundles}
            )
        engine = next((name for name in ENGINES if is_usable(plain, name)), None)
        if engine is None:
            return {"status": "waived", "reason": "no engine reads past the page cache here"}
        evict([file for file in scratch.rglob("*.safetensors") if file.name != "index.safetensors"])
        points = []
        for n_tokens, n_batches in ((1, options.tokens), (options.chunk, options.chunks)):
            point = measure_batches(tables, spec, documents, engine, n_tokens, n_batches)
            if point is None:
                return {"status": "mismatch", "reason": f"{n_tokens} tokens: bytes differ from the rows"}
            points.append(point)
    return {"status": "measured", "engine": engine, "table_bytes": options.table, "bundles": built, "points": points}


def is_usable(table: Table, name: str) -> bool:
    """Whether an engine works here."""
    try:
        table.engine(name)
    except BackendUnavailable:
        return False
    return True


def measure_batches(
    tables: dict[str, Table], spec: AddressSpec, documents: list[Any], engine: str, n_tokens: int, n_batches: int
) -> dict[str, Any] | None:
    """Batches of one length, drawn anew for every sample; None if a byte is wrong."""
    rng = np.random.default_rng(n_tokens)
    long = [ids for ids in documents if len(ids) >= n_tokens + spec.max_order]
    out = np.full((n_tokens, len(spec.layers), spec.n_columns, ROW_BYTES), 1, np.uint8)

    def draw() -> Addresses:
        ids = long[int(rng.integers(len(long)))]
        start = int(rng.integers(spec.max_order - 1, len(ids) - n_tokens + 1))
        return hash_tokens(spec, ids[start : start + n_tokens], history=ids[start - spec.max_order + 1 : start])

    for _ in range(5):
        addresses = draw()
        expected = tables["rows"].fetch(addresses, None, "pread")
        for table in tables.values():
            out[:] = 1
            if not np.array_equal(table.fetch(addresses, out, engine), expected):
                return None
    before = {name: counts_of(table) for name, table in tables.items()}

    def case(table: Table) -> Case:
        return Case(prepare=draw, run=lambda addresses: table.fetch(addresses, out, engine))

    samples = interleave(
        {name: case(table) for name, table in tables.items()}, repeats=n_batches, most=n_batches, warm_ups=5
    )
    cases = []
    for name, table in tables.items():
        n_lookups, n_found = (after - start for after, start in zip(counts_of(table), before[name], strict=True))
        share = n_found / n_lookups if n_lookups else 0.0
        cases.append(
            {
                "budget_bytes": None if name == "rows" else int(name),
                "found": share,
                "reads_a_token": reads_a_token(spec, [share] * len(spec.orders)),
                "ms_a_token": samples[name].median_ns / 1e6 / n_tokens,
                "ratio": samples["rows"].median_ns / samples[name].median_ns,
                "samples": samples[name].summary(),
            }
        )
    return {"tokens_a_batch": n_tokens, "cases": cases, "crossover_bytes": crossover(cases)}


def counts_of(table: Table) -> tuple[int, int]:
    """Lookups and how many were found so far."""
    if not isinstance(table, BundledTable):
        return 0, 0
    counts = table.bundles.counts()
    return counts.n_lookups, counts.n_found


def crossover(cases: list[dict[str, Any]]) -> int | None:
    """The smallest budget from which on bundles are faster; None if none is."""
    smallest = None
    for case in reversed(cases):
        if case["budget_bytes"] is None or case["ratio"] <= 1:
            break
        smallest = case["budget_bytes"]
    return smallest


def verdict(record: dict[str, Any]) -> int:
    """6 where bytes differ, or the reads are cut less than the bar has it; 0."""
    if record["cold"]["status"] == "mismatch":
        print(f"check failed: {record['cold']['reason']}", file=sys.stderr)
        return 6
    at_bar = next((b for b in record["budgets"] if b["budget_bytes"] == BAR_BUDGET), None)
    plain = record["budgets"][0]["bytes_a_token"] / record["row_bytes"]
    if at_bar is not None and plain / at_bar["reads_a_token"] < BAR_RATIO:
        print(f"check failed: reads are cut {plain / at_bar['reads_a_token']:.2f} times, expected {BAR_RATIO}")
        return 6
    return 0


def show_sweep(record: dict[str, Any]) -> None:
    """The budgets on a terminal."""
    plain = record["budgets"][0]["bytes_a_token"] / record["row_bytes"]
    print(
        f"{record['counted_tokens']:,} tokens counted, {record['unseen_tokens']:,} unseen; {plain:.0f} reads of "
        f"{record['row_bytes']} bytes a token without bundles"
    )
    for budget in record["budgets"]:
        shares = "  ".join(f"order {order} {share:5.1%}" for order, share in budget["found"].items())
        print(
            f"  {budget['budget_bytes'] / 2**20:8,.0f} MiB  {budget['n_ngrams']:10,} n-grams  {shares}  "
            f"{budget['reads_a_token']:5.1f} reads a token ({plain / budget['reads_a_token']:.2f} times fewer), "
            f"counted text {budget['reads_a_counted_token']:5.1f}"
        )


def show_cold(cold: dict[str, Any]) -> None:
    """Times on a terminal."""
    if cold["status"] != "measured":
        print(f"cold: {cold['status']}, {cold['reason']}")
        return
    for point in cold["points"]:
        print(f"cold, engine {cold['engine']}, batches of {point['tokens_a_batch']} tokens")
        for case in point["cases"]:
            name = "rows" if case["budget_bytes"] is None else f"{case['budget_bytes'] / 2**20:,.0f} MiB"
            print(
                f"  {name:>10}  {case['reads_a_token']:5.1f} reads a token  {case['ms_a_token'] * 1e3:8.1f} us a token "
                f"({case['ratio']:.2f} times as fast)"
            )
        if point["crossover_bytes"] is None:
            print("  no budget pays")
        else:
            print(f"  bundles pay from {point['crossover_bytes'] / 2**20:,.0f} MiB on")


if __name__ == "__main__":
    sys.exit(main())
