"""Replays of real lookups through caches: checked against an OrderedDict, then timed beside it.

    python -m benchmarks.simulate [--tokens 2,000,000] [--corpus DIR ...] [--repeats 3] [--threads N] [--record FILE]

DeepSeek-V4.1's row lookups (48 a token) of real text, a token a step, through caches of 2^16 to 2^22 rows, so as many
as there are. Timed: `simulate` for each policy, all sizes at once, from accesses in memory to curves; and its parts,
numbering and the one pass of the exact caches. Beside it, for one size and on a part of the trace, the OrderedDict that
everybody writes. Before that, every policy is compared with its plain-Python twin on the trace's beginning; a hit that
differs ends the run with exit code 6. Compilation, addressing and tokenising are outside. Ceilings of the same run: a
dependent and an independent load from memory, since a replay is at least one load an access.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import sysconfig
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.presets import load_spec
from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary, build_vocabulary, load_vocabulary
from engram_tables.corpus.reading.readers import find_documents
from engram_tables.corpus.tokens.token_stream import tokenize_documents
from engram_tables.measure.caches import lru, reference
from engram_tables.measure.caches.accesses import Accesses, State
from engram_tables.measure.caches.dense import number
from engram_tables.measure.caches.policies import Policy, simulate
from engram_tables.measure.caches.replays import Course, Watch
from engram_tables.measure.ceilings import memory_ceilings
from engram_tables.measure.environment import command_line, describe
from engram_tables.threads import resolve_threads

CHECK_FOUND = 6
CHECKED_TOKENS = 1500
PEER_ACCESSES = 10_000_000
SIZES = tuple(1 << bits for bits in range(16, 23))
CHECKED_SIZES = (500, 8000)


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if a hit differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=lambda text: int(text.replace(",", "")), default=2_000_000)
    parser.add_argument("--corpus", type=Path, nargs="*", default=[Path(sysconfig.get_paths()["stdlib"])])
    parser.add_argument("--glob", default="*.py")
    parser.add_argument("--vocab", type=Path, help="a vocabulary file; built if it is not given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    vocabulary = load_vocabulary(options.vocab) if options.vocab else build_vocabulary("deepseek-v4")
    spec = load_spec("deepseek-v4.1-flash", vocabulary=vocabulary)
    trace = lookups(spec, vocabulary, options.corpus, options.glob, options.tokens)
    threads = resolve_threads(options.threads)
    wrong = differs(trace)
    if wrong is not None:
        print(f"check failed: {wrong}; nothing was timed", file=sys.stderr)
        return CHECK_FOUND
    record: dict[str, Any] = {
        "schema": "engram.benchmark-simulate/1",
        "command": command_line(),
        "environment": describe(),
        "spec": spec.name,
        "n_tokens": trace.n_steps,
        "n_accesses": len(trace),
        "threads": threads,
        "sizes_items": list(SIZES),
        "ceilings": memory_ceilings(threads=threads, region_bytes=1 << 30, repeats=3),
    }
    record |= measured(trace, threads, options.repeats)
    show(record)
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def lookups(spec: AddressSpec, vocabulary: Vocabulary, paths: list[Path], glob: str, n_tokens: int) -> Accesses:
    """The first tokens of a corpus, a token a step; documents one after the other, each addressed on its own."""
    corpus = find_documents(paths, glob=glob, decode_errors="replace")
    stream = tokenize_documents(vocabulary.tokenizer(), corpus.documents())
    ids = vocabulary.canonical(stream.ids)
    n_tokens = min(n_tokens, len(ids))
    first_rows = np.cumsum([0, *(layer.n_rows for layer in spec.layers[:-1])])
    items = np.empty((n_tokens, len(spec.layers), spec.n_columns), np.uint64)
    for start, stop in zip(stream.document_starts[:-1].tolist(), stream.document_starts[1:].tolist(), strict=True):
        stop = min(stop, n_tokens)
        if start < stop:
            items[start:stop] = (spec.address(ids[start:stop]).rows + first_rows[:, None]).astype(np.uint64)
    heads = [len(moduli) for moduli in spec.layers[0].moduli]
    order_idx = np.repeat(np.arange(len(heads)), heads)
    classes = np.empty(items.shape, np.uint8)
    classes[:] = np.arange(len(spec.layers))[:, None] * len(heads) + order_idx
    return Accesses(
        items=items.reshape(-1), classes=classes.reshape(-1),
        step_starts=np.arange(n_tokens + 1, dtype=np.int64) * items[0].size,
        n_items=sum(layer.n_rows for layer in spec.layers), n_classes=len(spec.layers) * len(heads),
    )  # fmt: skip


def beginning(trace: Accesses, n_steps: int) -> Accesses:
    """Its first steps."""
    n_steps = min(n_steps, trace.n_steps)
    stop = int(trace.step_starts[n_steps])
    return Accesses(
        items=trace.items[:stop], classes=trace.classes[:stop], step_starts=trace.step_starts[: n_steps + 1],
        n_items=trace.n_items, n_classes=trace.n_classes,
    )  # fmt: skip


def differs(trace: Accesses) -> str | None:
    """What differs from the twins on the beginning of the trace, if anything does. The bound's is slow: a tenth."""
    part = beginning(trace, CHECKED_TOKENS)
    first = part.n_steps // 2
    for policy in Policy:
        of_policy = beginning(part, CHECKED_TOKENS // 10) if policy is Policy.BELADY else part
        steps = [of_policy.items[k : k + 48].tolist() for k in of_policy.step_starts[:-1].tolist()]
        (curve,) = simulate(
            of_policy, CHECKED_SIZES, policies=[policy], first_steady_step=min(first, of_policy.n_steps)
        )
        for k, size in enumerate(CHECKED_SIZES):
            expected, found = sum(map(sum, twin(policy, steps, size, first))), int(curve.n_hits[:, k].sum())
            if expected != found:
                return f"{policy} of {size} rows: found {found} hits, expected {expected}"
    return None


def twin(policy: Policy, steps: list[list[int]], size: int, first: int) -> reference.Found:
    """What plain Python finds."""
    match policy:
        case Policy.LRU:
            return reference.lru(steps, size)
        case Policy.LRU_16:
            return reference.lru_sets(steps, size)
        case Policy.S3_FIFO:
            return reference.s3_fifo(steps, size)
        case Policy.BELADY:
            return reference.belady(steps, size)
        case Policy.TIERED:
            return reference.tiered(steps, max(1, size // 16))
    counts: dict[int, int] = {}
    for item in (item for step in reference.once_a_step(steps[:first]) for item in step):
        counts[item] = counts.get(item, 0) + 1
    hot = sorted(counts, key=lambda item: -counts[item])
    return [[False] * len(step) for step in steps[:first]] + reference.static(steps[first:], size, hot)


def measured(trace: Accesses, threads: int, repeats: int) -> dict[str, Any]:
    """Seconds of everything, methods interleaved."""
    first = trace.n_steps // 2
    n_peer = min(PEER_ACCESSES, len(trace)) // 48
    course = Course(first_steady_step=first, counts_steps=True, watch=Watch(lambda _done, _total: None, 1))
    dense = number(trace, watch=course.watch)
    sizes = np.array(SIZES)
    cases: dict[str, tuple[int, Callable[[], object]]] = {
        "numbering": (len(trace), lambda: number(trace, watch=course.watch)),
        "exact lru, the pass alone": (len(trace), lambda: lru.replay(dense, sizes, course)),
        "OrderedDict, one size": (n_peer * 48, lambda: ordered_dict(trace.items[: n_peer * 48], SIZES[2])),
    }
    for policy in Policy:
        cases[policy] = (len(trace), lambda policy=policy: run(trace, policy, first, threads))  # type: ignore[misc]
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, (_, function) in cases.items():
            start = time.perf_counter_ns()
            function()
            samples[name].append((time.perf_counter_ns() - start) / 1e9)
    curves = simulate(trace, SIZES, first_steady_step=first, threads=threads)
    median = {name: statistics.median(of_case) for name, of_case in samples.items()}
    peer = cases["OrderedDict, one size"][0] / median["OrderedDict, one size"]
    return {
        "n_distinct_items": dense.n_distinct,
        "times": [
            {
                "what": name,
                "n_accesses": n,
                "n_sizes": len(SIZES) if name not in ("numbering", "OrderedDict, one size") else 1,
                "seconds": samples[name],
                "seconds_median": median[name],
                "million_accesses_a_minute": n / median[name] * 60 / 1e6,
                "accesses_against_ordered_dict": n / median[name] / peer,
            }
            for name, (n, _) in cases.items()
        ],
        "steady_hit_ratios": {curve.policy: curve.hit_ratios(State.STEADY).tolist() for curve in curves},
    }


def run(trace: Accesses, policy: Policy, first: int, threads: int) -> None:
    """One policy, all sizes."""
    simulate(trace, SIZES, policies=[policy], first_steady_step=first, threads=threads)


def ordered_dict(items: NDArray[np.uint64], size: int) -> int:
    """Hits of a cache as everybody writes it, an access at a time."""
    cache: OrderedDict[int, None] = OrderedDict()
    n_hits = 0
    for item in items.tolist():
        if item in cache:
            n_hits += 1
            cache.move_to_end(item)
        else:
            cache[item] = None
            if len(cache) > size:
                cache.popitem(last=False)
    return n_hits


def show(record: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"{record['n_tokens']:,} tokens, {record['n_accesses']:,} lookups of {record['n_distinct_items']:,} rows")
    for case in record["times"]:
        print(
            f"{case['what']:28} {case['n_sizes']} sizes {case['seconds_median']:8.2f} s "
            f"{case['million_accesses_a_minute']:8,.0f} M accesses/min "
            f"{case['accesses_against_ordered_dict']:6.1f} x OrderedDict"
        )
    print("steady hit ratios at", ", ".join(f"{size:,}" for size in record["sizes_items"]))
    for policy, ratios in record["steady_hit_ratios"].items():
        print(f"{policy:10}", " ".join(f"{ratio:7.4f}" for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
