"""Counting n-grams in memory: checked against an independent count, then timed against NumPy, DuckDB and Polars.

    python benchmarks/count.py --record count.json

Timed window of every method: canonical ids in memory to sorted or grouped n-grams with counts in memory, orders one
after the other for the methods that take one at a time. Reading and tokenising are outside. Methods are interleaved;
each sample has wall and CPU time. Exit code 6 when a count differs from the independent one.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from engram_tables.address.vocabulary import build_vocabulary
from engram_tables.corpus import counting
from engram_tables.corpus.counting import NgramCounts, Workspace, count_ngrams
from engram_tables.corpus.readers import find_documents
from engram_tables.corpus.tokens import tokenize_documents
from engram_tables.threads import resolve_threads

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Sample = dict[str, int]
CHECK_FOUND = 6


class Input:
    """What every method counts."""

    def __init__(self, ids: U32, document_starts: I64, canonical_size: int, threads: int) -> None:
        self.ids = ids
        self.document_starts = document_starts
        self.canonical_size = canonical_size
        self.threads = threads
        present = np.unique(ids)
        # Ranks keep the order of the ids and need fewer bits, so that most corpora pack four of them into 64.
        self.present = present
        self.ranks = np.searchsorted(present, ids).astype(np.uint64)
        self.rank_bits = max(1, len(present).bit_length())

    def windows(self, order: int) -> I64:
        """Positions at which a whole n-gram of `order` starts."""
        whole = np.ones(len(self.ids), dtype=bool)
        for back in range(1, order):
            ends = self.document_starts[1:] - back
            whole[ends[ends >= self.document_starts[:-1]]] = False
        return np.flatnonzero(whole)


def numpy_count(given: Input, order: int) -> tuple[list[U64], I64]:
    """Pack, `np.sort`, find the runs; (packed n-grams as words, counts). Two words and lexsort past 64 bits."""
    starts = given.windows(order)
    if order * given.rank_bits <= 64:
        words = [_pack(given, starts, 0, order)]
        words[0].sort()
    else:
        words = [_pack(given, starts, 0, order // 2), _pack(given, starts, order // 2, order)]
        by_ngram = np.lexsort(words[::-1])
        words = [word[by_ngram] for word in words]
    begins = np.ones(len(starts), dtype=bool)
    begins[1:] = words[0][1:] != words[0][:-1]
    for word in words[1:]:
        begins[1:] |= word[1:] != word[:-1]
    first = np.flatnonzero(begins)
    return [word[first] for word in words], np.diff(np.append(first, len(starts)))


def _pack(given: Input, starts: I64, first: int, stop: int) -> U64:
    packed = np.zeros(len(starts), dtype=np.uint64)
    for place in range(first, stop):
        packed <<= np.uint64(given.rank_bits)
        packed |= given.ranks[starts + place]
    return packed


def agrees(given: Input, found: NgramCounts) -> bool:
    """Whether a count equals the one that NumPy makes by another route."""
    words, counts = numpy_count(given, found.order)
    ranks = [np.searchsorted(given.present, column).astype(np.uint64) for column in found.columns]
    cut = found.order if len(words) == 1 else found.order // 2
    for word, places in zip(words, (ranks[:cut], ranks[cut:]), strict=False):
        packed = np.zeros(found.n_distinct, dtype=np.uint64)
        for rank in places:
            packed = packed << np.uint64(given.rank_bits) | rank
        if not np.array_equal(packed, word):
            return False
    return np.array_equal(found.counts, counts.astype(np.uint64))


def duckdb_count(duckdb: Any, given: Input, order: int) -> int:
    """DuckDB `GROUP BY` over the token columns; the number of groups."""
    import pyarrow as pa

    starts = given.windows(order)
    windows = pa.table({f"t{place}": given.ids[starts + place] for place in range(order)})
    columns = ", ".join(windows.column_names)
    with duckdb.connect() as connection:
        connection.execute(f"SET threads = {given.threads}")
        connection.register("windows", windows)
        arrow = connection.sql(f"SELECT {columns}, count(*) AS n FROM windows GROUP BY {columns}").to_arrow_table()
    return int(arrow.num_rows)


def polars_count(polars: Any, given: Input, order: int) -> int:
    """Polars `group_by` over the token columns; the number of groups."""
    starts = given.windows(order)
    windows = polars.DataFrame({f"t{place}": given.ids[starts + place] for place in range(order)})
    return int(windows.group_by(windows.columns).len().height)


def copy_bandwidth(n_bytes: int, threads: int, repeats: int) -> float:
    """Bytes a second, read and written together, of the best copy by `threads` between warm buffers."""
    n_words = max(n_bytes, 1 << 26) // 8 // threads
    pairs = [(np.ones(n_words, dtype=np.uint64), np.ones(n_words, dtype=np.uint64)) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            started = time.perf_counter_ns()
            list(pool.map(lambda pair: np.copyto(*pair), pairs))
            best = max(best, 16 * n_words * threads / (time.perf_counter_ns() - started) * 1e9)
    return best


def moved_bytes(given: Input, counts: dict[int, NgramCounts]) -> int:
    """The least that must pass through memory: ids twice, keys written, sorted in place, read; results written."""
    results = sum(found.columns.nbytes + found.counts.nbytes for found in counts.values())
    return len(given.ids) * (4 + 4 + 8 + 16 + 8) + results


class StageClock:
    """Wall time of each stage of one count, by wrapping the steps of the library's job: the library has no clock."""

    STAGES = ("histograms", "partition", "scatter", "sort", "emit")

    def __init__(self) -> None:
        self.elapsed_ns: dict[str, int] = {}
        for stage in self.STAGES:
            setattr(counting._Job, stage, self._timed(stage, getattr(counting._Job, stage)))

    def _timed(self, stage: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            started = time.perf_counter_ns()
            result = step(*args)
            self.elapsed_ns[stage] = time.perf_counter_ns() - started
            return result

        return run


def timed(function: Callable[[], object]) -> Sample:
    gc.collect()
    cpu, started = time.process_time_ns(), time.perf_counter_ns()
    result = function()
    sample = {"wall_ns": time.perf_counter_ns() - started, "cpu_ns": time.process_time_ns() - cpu}
    del result
    return sample


def read_input(args: argparse.Namespace) -> tuple[Input, dict[str, Any]]:
    stdlib = sysconfig.get_paths()["stdlib"]
    vocabulary = build_vocabulary(args.tokenizer)
    # Only the library itself: what is installed beside it differs from machine to machine.
    corpus = find_documents([args.corpus or stdlib], glob=args.glob, exclude=("*-packages",), decode_errors="replace")
    started = time.perf_counter_ns()
    stream = tokenize_documents(vocabulary.tokenizer(), corpus.documents())
    tokenise_ns = time.perf_counter_ns() - started
    ids, starts = vocabulary.canonical(stream.ids), stream.document_starts
    if args.tokens:
        starts = np.append(starts[starts < args.tokens], min(args.tokens, len(ids)))
        ids = ids[: starts[-1]]
    about = {
        "corpus": args.corpus or f"Python {platform.python_version()} standard library",
        "corpus_sha256": corpus.sha256,
        "corpus_bytes": corpus.read_bytes,
        "n_documents": len(starts) - 1,
        "n_tokens": len(ids),
        "vocab_sha256": vocabulary.map_sha256,
        "tokenise_ns": tokenise_ns,
        "tokenise_tokens_per_s": stream.n_tokens / tokenise_ns * 1e9,
    }
    return Input(ids, starts, vocabulary.canonical_size, resolve_threads(args.threads)), about


def peers(given: Input, orders: list[int]) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Methods to compare with, and why the missing ones are missing."""
    methods: dict[str, Callable[[], object]] = {
        f"numpy sort, order {order}": lambda order=order: numpy_count(given, order) for order in orders
    }
    waived: dict[str, str] = {}
    for name, count in (("duckdb", duckdb_count), ("polars", polars_count)):
        try:
            module = importlib.import_module(name)
        except ImportError:
            waived[name] = "waived: not installed"
            continue
        methods[f"{name}, orders {'+'.join(map(str, orders))}"] = lambda count=count, module=module: [
            count(module, given, order) for order in orders
        ]
    return methods, waived


def summary(samples: list[Sample]) -> dict[str, float]:
    walls = [sample["wall_ns"] for sample in samples]
    median = statistics.median(walls)
    return {
        "median_ns": median,
        "mad_ns": statistics.median(abs(wall - median) for wall in walls),
        "min_ns": min(walls),
        "max_ns": max(walls),
        "median_cpu_ns": statistics.median(sample["cpu_ns"] for sample in samples),
        "n": len(walls),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="file or directory; the standard library's sources by default")
    parser.add_argument("--glob", default="*.py")
    parser.add_argument("--tokenizer", default="deepseek-v4")
    parser.add_argument("--orders", default="2,3,4")
    parser.add_argument("--tokens", type=int, help="use only the first N tokens")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path, help="write the JSON record, raw samples included, here")
    args = parser.parse_args()
    orders = [int(order) for order in args.orders.split(",")]
    given, about = read_input(args)

    def fused(workspace: Workspace | None = None) -> dict[int, NgramCounts]:
        return count_ngrams(
            given.ids,
            given.document_starts,
            orders=orders,
            canonical_size=given.canonical_size,
            threads=given.threads,
            workspace=workspace,
        )

    compile_sample = timed(lambda: count_ngrams([0], [0, 1], orders=orders, canonical_size=given.canonical_size))
    first_sample = timed(fused)
    counts = fused()
    for order, found in counts.items():
        if not agrees(given, found):
            print(f"check failed: order {order} differs from the independent count", file=sys.stderr)
            return CHECK_FOUND
    distinct = {order: found.n_distinct for order, found in counts.items()}
    least_bytes = moved_bytes(given, counts)
    del counts

    clock, workspace = StageClock(), Workspace()
    together = f"engram, orders {args.orders.replace(',', '+')}"
    methods: dict[str, Callable[[], object]] = {together: lambda: fused(workspace)}
    others, waived = peers(given, orders)
    methods |= others
    samples: dict[str, list[Sample]] = {name: [] for name in methods}
    stages: list[dict[str, int]] = []
    fused(workspace)  # touches the buffer
    for _ in range(args.repeats):
        for name, method in methods.items():
            samples[name].append(timed(method))
            if name == together:
                stages.append(dict(clock.elapsed_ns))
    bandwidth = copy_bandwidth(8 * len(given.ids), given.threads, args.repeats)
    record = {
        "schema": "engram.benchmark-count/1",
        "command": ["python", *sys.argv],
        "environment": environment(given.threads),
        "input": about,
        "orders": orders,
        "n_distinct": distinct,
        "verified": "every order equals an independent count by NumPy (sort of packed ranks)",
        "window": "canonical ids in memory to n-grams and counts in memory; results in fresh memory",
        "compile_or_load_ns": compile_sample["wall_ns"],
        "first_run": first_sample,
        "samples": samples,
        "stages_ns": stages,
        "summary": {name: summary(found) for name, found in samples.items()},
        "bound": {
            "copy_bytes_per_s": bandwidth,
            "least_moved_bytes": least_bytes,
            "bound_ns": least_bytes / bandwidth * 1e9,
        },
        "waived": waived,
    }
    show(record, together, orders)
    if args.record:
        args.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def environment(threads: int) -> dict[str, Any]:
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load_1min": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
    }


def show(record: dict[str, Any], together: str, orders: list[int]) -> None:
    about, found, n_tokens = record["input"], record["summary"], record["input"]["n_tokens"]
    print(f"{about['corpus']}: {about['n_documents']:,} documents, {n_tokens:,} tokens; verified; ", end="")
    print(f"{record['environment']['threads']} threads, load {record['environment']['load_1min']:.2f}")
    print(f"tokenising (outside the window): {about['tokenise_tokens_per_s'] / 1e6:.2f} M tokens/s")
    ours = found[together]["median_ns"]
    titles = ["median ms", "MAD", "min", "max", "CPU ms", "M tokens/s", "ratio"]
    widths = [10, 7, 9, 9, 9, 11, 7]
    print(f"{'method':32}", *(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True)))
    for name, row in found.items():
        print(
            f"{name:32} {row['median_ns'] / 1e6:10.1f} {row['mad_ns'] / 1e6:7.1f} {row['min_ns'] / 1e6:9.1f} "
            f"{row['max_ns'] / 1e6:9.1f} {row['median_cpu_ns'] / 1e6:9.1f} {n_tokens / row['median_ns'] * 1e3:11.1f} "
            f"{row['median_ns'] / ours:7.2f}"
        )
    numpy_ns = sum(found[f"numpy sort, order {order}"]["median_ns"] for order in orders)
    print(f"{'numpy sort, all orders (sum)':32} {numpy_ns / 1e6:10.1f} {'':46} {numpy_ns / ours:7.2f}")
    for name, reason in record["waived"].items():
        print(f"{name:32} {reason}")
    medians = {stage: statistics.median(run[stage] for run in record["stages_ns"]) / 1e6 for stage in StageClock.STAGES}
    print("stages, median ms: " + ", ".join(f"{stage} {elapsed:.1f}" for stage, elapsed in medians.items()))
    print(f"first run, memory fresh: {record['first_run']['wall_ns'] / 1e6:.1f} ms")
    bound = record["bound"]
    print(
        f"bound: {bound['least_moved_bytes'] / 1e6:.0f} MB at {bound['copy_bytes_per_s'] / 1e9:.1f} GB/s copied = "
        f"{bound['bound_ns'] / 1e6:.1f} ms; reached {100 * bound['bound_ns'] / ours:.0f} % of it"
    )


if __name__ == "__main__":
    sys.exit(main())
