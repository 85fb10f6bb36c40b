"""Texts to token ids: the scan checked against the tokenizers library on the same texts, then timed against it.

    python benchmarks/tokens.py --record tokens.json

Timed window of every method: a list of str in memory to token ids in NumPy arrays, batch by batch. Reading is outside;
what happens once (reading the tokenizer, compiling) has lines of its own. Methods are interleaved; each sample has wall
and CPU time. The library runs with as many threads as the scan (RAYON_NUM_THREADS is set before it is loaded) and gets
`--library-bytes` of the text only, for it would take too long; rates are compared. Exit code 6 when an id differs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from engram_tables.corpus.reading.readers import find_documents
from engram_tables.corpus.tokens import added_kernels, pretoken_kernels
from engram_tables.corpus.tokens.encoders import Encoder, ScanEncoder, make_encoder
from engram_tables.corpus.tokens.scan_memory import PADDING
from engram_tables.threads import resolve_threads, run_slices

CHECK_FOUND = 6
Sample = dict[str, int]
Batches = list[list[str]]


@numba.njit(cache=True, nogil=True)
def sum_bytes(text: npt.NDArray[np.uint8]) -> int:
    """Touch every byte and do next to nothing."""
    total = 0
    for byte in text:
        total += byte
    return total


def read_texts(args: argparse.Namespace) -> list[str]:
    """Documents of the corpus, up to `--bytes` of them."""
    stdlib = sysconfig.get_paths()["stdlib"]
    corpus = find_documents([args.corpus or stdlib], glob=args.glob, exclude=("*-packages",), decode_errors="replace")
    texts, n_bytes = [], 0
    for document in corpus.documents():
        texts.append(document.text)
        n_bytes += document.n_bytes
        if n_bytes >= args.bytes:
            break
    return texts


def in_batches(texts: list[str], batch_bytes: int) -> Batches:
    batches: Batches = [[]]
    n_bytes = 0
    for text in texts:
        if n_bytes >= batch_bytes:
            batches.append([])
            n_bytes = 0
        batches[-1].append(text)
        n_bytes += len(text.encode())
    return batches


def first_bytes(batches: Batches, n_bytes: int) -> Batches:
    """The first texts, so many bytes of them and the rest of the last one."""
    few: list[str] = []
    for text in (text for batch in batches for text in batch):
        few.append(text)
        n_bytes -= len(text.encode())
        if n_bytes <= 0:
            break
    return in_batches(few, 1 << 20)


def byte_count(batches: Batches) -> int:
    return sum(len(text.encode()) for batch in batches for text in batch)


def encode_all(encoder: Encoder, batches: Batches) -> int:
    return sum(len(encoder.encode(batch)[0]) for batch in batches)


def library_call(tokenizer: Any, batches: Batches) -> int:
    """The library's batch call alone: ids stay in its own objects, nothing is copied out."""
    n_tokens = 0
    for batch in batches:
        n_tokens += sum(map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False)))
    return n_tokens


def differing_batch(scan: Encoder, library: Encoder, batches: Batches) -> int | None:
    for number, batch in enumerate(batches):
        for found, expected in zip(scan.encode(batch), library.encode(batch), strict=True):
            if not np.array_equal(found, expected):
                return number
    return None


def timed(function: Callable[[], object]) -> Sample:
    cpu, started = time.process_time_ns(), time.perf_counter_ns()
    function()
    return {"wall_ns": time.perf_counter_ns() - started, "cpu_ns": time.process_time_ns() - cpu}


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


def stages(encoder: ScanEncoder, batches: Batches) -> dict[str, int]:
    """CPU time of one thread's pass by stage: the kernels are wrapped for it, since the library has no clock."""
    spent = {"scan": 0, "added_tokens": 0}

    def wrapped(kernel: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.thread_time_ns()
            result = kernel(*arguments)
            spent[stage] += time.thread_time_ns() - started
            return result

        return run

    kernels = pretoken_kernels.encode_segments, added_kernels.count_added
    pretoken_kernels.encode_segments = wrapped(kernels[0], "scan")
    added_kernels.count_added = wrapped(kernels[1], "added_tokens")
    pieces, misses = encoder.n_pieces, encoder.n_misses
    started = time.thread_time_ns()
    encode_all(encoder, batches)
    total = time.thread_time_ns() - started
    pretoken_kernels.encode_segments, added_kernels.count_added = kernels
    return {
        "total_ns": total,
        "scan_and_caches_ns": spent["scan"],
        "added_tokens_ns": spent["added_tokens"],
        "texts_and_arrays_ns": total - sum(spent.values()),
        "n_pieces": encoder.n_pieces - pieces,
        "n_misses": encoder.n_misses - misses,
    }


@pretoken_kernels._kernel
def count_pieces(text: Any, n_bytes: Any, scanner: Any) -> Any:
    """Find the pieces of a text and do nothing with them."""
    at, run, n_pieces = np.uint64(0), np.uint64(0), 0
    while at < n_bytes:
        end, end_run = pretoken_kernels._match_at(text, at, n_bytes, run, scanner)
        if end == at:
            end, end_run = pretoken_kernels._next_gap(text, at, n_bytes, run, scanner)
        at, run = end, end_run
        n_pieces += 1
    return n_pieces


def pieces_alone(encoder: ScanEncoder, batches: Batches, repeats: int) -> dict[str, int]:
    """Least CPU time of one thread for finding the pieces: what is left of the scan is caches and merging."""
    joined = b"".join(text.encode() for batch in batches for text in batch)
    text = np.frombuffer(joined + bytes(PADDING), dtype=np.uint8)
    spent, n_pieces = [], 0
    for _ in range(repeats + 1):
        started = time.thread_time_ns()
        n_pieces = count_pieces(text, np.uint64(len(joined)), encoder._scanner)
        spent.append(time.thread_time_ns() - started)
    return {"elapsed_ns": min(spent), "n_pieces": int(n_pieces)}


def byte_bound(batches: Batches, threads: int, repeats: int) -> float:
    """Bytes a second of a loop that does nothing but read the text."""
    text = np.frombuffer(b"".join(text.encode() for batch in batches for text in batch), dtype=np.uint8)
    best = 0.0
    for _ in range(repeats + 1):
        started = time.perf_counter_ns()
        run_slices(lambda start, stop: sum_bytes(text[start:stop]) and None, len(text), threads=threads, grain=1 << 16)
        best = max(best, len(text) / (time.perf_counter_ns() - started) * 1e9)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="file or directory; the standard library's sources by default")
    parser.add_argument("--glob", default="*.py")
    parser.add_argument(
        "--tokenizer", default="deepseek-v4", help="a tokenizer.json, its directory, or a packaged name"
    )
    parser.add_argument("--bytes", type=int, default=1 << 26, help="use only so much text")
    parser.add_argument("--library-bytes", type=int, default=1 << 22)
    parser.add_argument("--check-all", action="store_true", help="check all of the text, not only the library's part")
    parser.add_argument("--batch-bytes", type=int, default=1 << 22)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path, help="write the JSON record, raw samples included, here")
    args = parser.parse_args()
    threads = resolve_threads(args.threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    from engram_tables.address.vocabulary import build_vocabulary

    tokenizer = build_vocabulary(args.tokenizer).tokenizer()
    batches = in_batches(read_texts(args), args.batch_bytes)
    few = first_bytes(batches, args.library_bytes)
    # The first scan of a machine compiles its kernels or loads them; the second one is what each process pays.
    once = {"first_encoder": timed(lambda: make_encoder(tokenizer, threads=1))}
    once["second_encoder"] = timed(lambda: make_encoder(tokenizer, threads=1))
    one, all_threads = make_encoder(tokenizer, threads=1), make_encoder(tokenizer, threads=threads)
    library = make_encoder(tokenizer, fast=False)
    if not isinstance(one, ScanEncoder):
        print(f"nothing to compare: the library encodes for {args.tokenizer} ({one.reason})", file=sys.stderr)
        return 2
    once["empty_caches"] = timed(lambda: encode_all(one, few))
    checked = batches if args.check_all else few
    wrong = differing_batch(all_threads, library, checked)
    if wrong is not None:
        print(f"check failed: batch {wrong} differs from the library", file=sys.stderr)
        return CHECK_FOUND

    sizes = {"all": measure_input(batches, encode_all(all_threads, batches)), "few": measure_input(few, 0)}
    sizes["few"]["n_tokens"] = encode_all(one, few)
    methods: dict[str, tuple[str, Callable[[], object]]] = {
        "scan, 1 thread": ("all", lambda: encode_all(one, batches)),
        f"scan, {threads} threads": ("all", lambda: encode_all(all_threads, batches)),
        f"scan, {threads} threads, the library's text": ("few", lambda: encode_all(all_threads, few)),
        f"library, {threads} threads": ("few", lambda: library_call(tokenizer, few)),
    }
    encode_all(one, batches)
    samples: dict[str, list[Sample]] = {name: [] for name in methods}
    for _ in range(args.repeats):
        for name, (_, method) in methods.items():
            samples[name].append(timed(method))
    record = {
        "schema": "engram.benchmark-tokens/1",
        "command": ["python", *sys.argv],
        "environment": environment(threads),
        "input": {"corpus": args.corpus or f"Python {platform.python_version()} standard library", **sizes},
        "tokenizer": args.tokenizer,
        "verified_bytes": byte_count(checked),
        "window": "texts as str to ids in NumPy arrays, in batches; the library's ids stay in its own objects",
        "batch_bytes": args.batch_bytes,
        "once": once,
        "samples": samples,
        "summary": {name: summary(found) for name, found in samples.items()},
        "of": {name: which for name, (which, _) in methods.items()},
        "stages": stages(one, batches),
        "pieces_alone": pieces_alone(one, batches, args.repeats),
        "bound": {
            "read_bytes_per_s_1": byte_bound(batches, 1, args.repeats),
            "read_bytes_per_s": byte_bound(batches, threads, args.repeats),
        },
    }
    show(record)
    if args.record:
        args.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def measure_input(batches: Batches, n_tokens: int) -> dict[str, int]:
    return {"n_bytes": byte_count(batches), "n_texts": sum(map(len, batches)), "n_tokens": n_tokens}


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
        "tokenizers": importlib.metadata.version("tokenizers"),
    }


def show(record: dict[str, Any]) -> None:
    about, environ = record["input"], record["environment"]
    print(f"{about['corpus']}: {about['all']['n_texts']:,} texts, {about['all']['n_bytes'] / 1e6:.1f} MB, ", end="")
    print(f"{about['all']['n_tokens']:,} tokens of {record['tokenizer']}; ", end="")
    print(f"{record['verified_bytes'] / 1e6:.1f} MB verified; load {environ['load_1min']:.2f}")
    print(f"{'method':42} {'median ms':>10} {'MAD':>7} {'CPU ms':>9} {'M tokens/s':>11} {'per CPU-s':>10} {'MB/s':>7}")
    rates = {}
    for name, row in record["summary"].items():
        size = about[record["of"][name]]
        rates[name] = size["n_tokens"] / row["median_ns"] * 1e3, size["n_tokens"] / row["median_cpu_ns"] * 1e3
        print(
            f"{name:42} {row['median_ns'] / 1e6:10.1f} {row['mad_ns'] / 1e6:7.1f} {row['median_cpu_ns'] / 1e6:9.1f} "
            f"{rates[name][0]:11.2f} {rates[name][1]:10.2f} {size['n_bytes'] / row['median_ns'] * 1e3:7.1f}"
        )
    *_, ours, theirs = rates.values()
    print(f"ratio on the same text and cores: {ours[0] / theirs[0]:.1f} by wall time, {ours[1] / theirs[1]:.1f} by CPU")
    spent, alone = record["stages"], record["pieces_alone"]
    shares = {name: value / spent["total_ns"] for name, value in spent.items() if name.endswith("_ns")}
    shares["pieces_alone_ns"] = alone["elapsed_ns"] / spent["total_ns"]
    print(
        f"one thread's time: finding pieces {shares['pieces_alone_ns']:.0%}, caches and merging "
        f"{shares['scan_and_caches_ns'] - shares['pieces_alone_ns']:.0%}, looking for added tokens "
        f"{shares['added_tokens_ns']:.0%}, str to bytes and arrays {shares['texts_and_arrays_ns']:.0%}; "
        f"{spent['n_misses'] / spent['n_pieces']:.2%} of {spent['n_pieces']:,} pieces in no cache"
    )
    print("once: " + ", ".join(f"{name} {row['wall_ns'] / 1e6:.0f} ms" for name, row in record["once"].items()))
    bound, size = record["bound"], about["all"]
    reached = size["n_bytes"] / record["summary"]["scan, 1 thread"]["median_ns"] * 1e9
    print(
        f"bound, one thread that only reads the text: {bound['read_bytes_per_s_1'] / 1e9:.1f} GB/s; the scan reaches "
        f"{reached / bound['read_bytes_per_s_1']:.1%} of it: steps that depend on each other and mispredicted ends of "
        "pieces set its time, not memory"
    )


if __name__ == "__main__":
    sys.exit(main())
