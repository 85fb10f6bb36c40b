"""Row traffic of DeepSeek-V4.1's tables: checked against np.bincount, then timed beside plain scatters.

    python -m benchmarks.traffic --record traffic.json

Timed window: token ids in memory to the hits of all 384 million rows of each of both layers. `engram` also counts the
distinct n-grams of every row and makes the whole report; the scatters make hits alone. Reading and tokenising are
outside. Methods are interleaved; each sample has wall and CPU time. Exit code 6 when a hit differs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import hash_tokens
from engram_tables.address.presets import load_spec
from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary, build_vocabulary
from engram_tables.corpus.reading.readers import find_documents
from engram_tables.corpus.tokens.token_stream import TokenStream, tokenize_documents
from engram_tables.corpus.traffic.row_traffic import Traffic, measure_traffic
from engram_tables.corpus.traffic.token_addresses import KeyMaker, TokenAddresses, see_back
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import format_bytes, parse_bytes

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Sample = dict[str, int]
CHECK_FOUND = 6
_CHUNK_TOKENS = 1 << 16
_SORTED_KEYS = 1 << 15
OURS, SCATTER, BINCOUNT, SORT = "engram", "numba scatter", "np.bincount, one head", "np.sort of the keys (a part)"


class Tokens:
    """Token ids that read as a token store does: in memory, or in .npy files that are read and not mapped."""

    def __init__(self, ids: U32 | Path, starts: I64) -> None:
        self._starts = starts
        self._ids = ids
        self.n_tokens = int(starts[-1])
        self.n_documents = len(starts) - 1
        self.n_dead = 0
        if isinstance(ids, Path):
            self._offset = np.load(ids, mmap_mode="r").offset  # type: ignore[union-attr]
            self._fd = os.open(ids, os.O_RDONLY)

    def read(self, start: int, stop: int) -> TokenStream:
        if isinstance(self._ids, Path):
            ids = np.empty(stop - start, np.uint32)
            if os.preadv(self._fd, [ids.data], self._offset + 4 * start) != ids.nbytes:
                raise OSError("the token ids end too early")
        else:
            ids = self._ids[start:stop]
        first, last = np.searchsorted(self._starts, [start + 1, stop])
        local = np.concatenate([[0], self._starts[first:last] - start, [stop - start]])
        return TokenStream(ids=ids, document_starts=local)


@numba.njit(cache=True, nogil=True)
def scatter_columns(rows: I64, layer: int, first: int, stop: int, hits: U32) -> None:
    """hits[row] += 1 for some columns of every position."""
    for position in range(rows.shape[0]):
        for column in range(first, stop):
            hits[rows[position, layer, column]] += 1


def numba_scatter(spec: AddressSpec, parted: U32, threads: int, hits: U32) -> None:
    """The plain way: hash, then add 1 to each row; threads share out the columns, so that none waits for another."""
    for layer_idx in range(len(spec.layers)):
        hits[:] = 0
        for start in range(0, len(parted), _CHUNK_TOKENS):
            lead = min(start, spec.max_order - 1)
            ids = parted[start - lead : start + _CHUNK_TOKENS]
            rows = hash_tokens(spec, ids, dead=ids == 0xFFFFFFFF, threads=threads).rows[lead:]
            live = rows[ids[lead:] != 0xFFFFFFFF]
            run_slices(
                lambda first, stop, live=live, layer=layer_idx: scatter_columns(live, layer, first, stop, hits),
                spec.n_columns,
                threads=threads,
                grain=1,
            )


def bincount(keys: U64, modulus: int) -> I64:
    """Hits of one head by NumPy."""
    return np.bincount((keys % np.uint64(modulus)).astype(np.int64), minlength=modulus)


def sort_slices(keys: U64, n_sources: int, threads: int) -> None:
    """Sort as many keys as a count does, slice by slice in cache: it cannot take less while it sorts them."""
    scratch = np.empty_like(keys)

    def sort(first: int, stop: int) -> None:
        for at in range(first * _SORTED_KEYS, min(stop * _SORTED_KEYS, len(keys)), _SORTED_KEYS):
            mine = scratch[at : at + _SORTED_KEYS]
            mine[:] = keys[at : at + _SORTED_KEYS]
            mine.sort()

    for _ in range(n_sources):
        run_slices(sort, -(-len(keys) // _SORTED_KEYS), threads=threads, grain=1)


def keys_of(addresses: TokenAddresses, order: int, layer_id: int) -> U64:
    """The keys of all tokens, for the check."""
    maker, buffers, parts = KeyMaker(addresses.spec, order, layer_id), addresses.buffers(), []
    for start in range(0, addresses.n_tokens, 1 << 14):
        chunk = addresses.chunk(start, min(start + (1 << 14), addresses.n_tokens), buffers)
        parts.append(maker.keys(see_back(addresses.spec, chunk, buffers), buffers)[chunk.kinds == 0])
    return np.concatenate(parts)


def check(addresses: TokenAddresses, memory_bytes: int, threads: int, columns: list[tuple[int, int]]) -> Traffic | None:
    """Whether the hits of some heads are those of NumPy; the traffic, or None."""
    spec = addresses.spec
    found: dict[tuple[int, int], U32] = {}

    def sink_for(layer_id: int, column: int) -> Callable[[int, npt.NDArray[Any]], None]:
        if (layer_id, column) not in columns:
            return lambda _first, _hits: None
        modulus = [m for heads in spec.layer(layer_id).moduli for m in heads][column]
        hits = found.setdefault((layer_id, column), np.zeros(modulus, np.uint32))

        def take(first: int, part: npt.NDArray[Any]) -> None:
            hits[first : first + len(part)] = part

        return take

    traffic = measure_traffic(addresses, memory_bytes=memory_bytes, threads=threads, sink_for=sink_for)
    for (layer_id, column), hits in found.items():
        keys = keys_of(addresses, spec.columns[column][0], layer_id)
        head = next(h for h in traffic.heads if h.layer_id == layer_id and (h.order, h.head) == spec.columns[column])
        if not np.array_equal(bincount(keys, len(hits)), hits) or len(np.unique(keys)) != head.n_ngrams:
            return None
    return traffic


def timed(function: Callable[[], object]) -> Sample:
    gc.collect()
    cpu, started = time.process_time_ns(), time.perf_counter_ns()
    result = function()
    sample = {"wall_ns": time.perf_counter_ns() - started, "cpu_ns": time.process_time_ns() - cpu}
    del result
    return sample


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


def read_input(args: argparse.Namespace, vocabulary: Vocabulary) -> tuple[U32, I64, str]:
    if args.ids:
        ids, starts, name = np.load(args.ids), np.load(args.starts).astype(np.int64), args.ids.name
    else:
        # Only the library itself: what is installed beside it differs from machine to machine.
        corpus = find_documents(
            [sysconfig.get_paths()["stdlib"]], glob="*.py", exclude=("*-packages",), decode_errors="replace"
        )
        stream = tokenize_documents(vocabulary.tokenizer(), corpus.documents())
        ids, starts, name = stream.ids, stream.document_starts, f"Python {platform.python_version()} standard library"
    if args.tokens:
        starts = np.append(starts[starts < args.tokens], min(args.tokens, len(ids)))
    return ids[: starts[-1]], starts, name


def apart(ids: U32, starts: I64) -> U32:
    """Canonical ids with a dead place before each document."""
    inner = np.unique(starts[1:-1])
    return np.insert(ids, inner, np.uint32(0xFFFFFFFF))


def peak_bytes() -> int | None:
    """The most memory this process had, files it mapped included; None where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def run_child(args: argparse.Namespace) -> int:
    """One count in a process of its own, from files, to see what memory it takes."""
    addresses = TokenAddresses(
        load_spec(args.preset), Tokens(args.ids, np.load(args.starts)), build_vocabulary(args.tokenizer)
    )
    started = time.perf_counter_ns()
    traffic = measure_traffic(addresses, memory_bytes=parse_bytes(args.memory), threads=args.threads)
    elapsed_ns = time.perf_counter_ns() - started
    print(json.dumps({"peak_bytes": peak_bytes(), "n_passes": traffic.n_passes, "elapsed_ns": elapsed_ns}))
    return 0


def measure_peak(args: argparse.Namespace, ids: U32, starts: I64, memory: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch, "ids.npy"), ids)
        np.save(Path(scratch, "starts.npy"), starts)
        command = [sys.executable, "-m", "benchmarks.traffic", "--child", "--memory", memory, "--preset", args.preset]
        command += ["--ids", f"{scratch}/ids.npy", "--starts", f"{scratch}/starts.npy", "--tokenizer", args.tokenizer]
        command += ["--threads", str(resolve_threads(args.threads))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"memory_bytes": parse_bytes(memory), **json.loads(done.stdout)}


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


def show(record: dict[str, Any]) -> None:
    about, found = record["input"], record["summary"]
    print(f"{about['corpus']}: {about['n_documents']:,} documents, {about['n_tokens']:,} tokens; {record['verified']}")
    print(f"{record['environment']['threads']} threads, load {record['environment']['load_1min']:.2f}")
    ours = found[OURS]
    print(f"{'method':30} {'median s':>9} {'MAD':>7} {'CPU s':>8} {'M tokens/s a layer':>19} {'ratio':>7} {'CPU':>7}")
    for name, row in found.items():
        per_s = about["n_tokens"] * record["n_layers"] / row["median_ns"] * 1e3
        print(
            f"{name:30} {row['median_ns'] / 1e9:9.2f} {row['mad_ns'] / 1e9:7.2f} {row['median_cpu_ns'] / 1e9:8.2f} "
            f"{per_s:19.1f} {row['median_ns'] / ours['median_ns']:7.2f} "
            f"{row['median_cpu_ns'] / ours['median_cpu_ns']:7.2f}"
        )
    for peak in record["peaks"]:
        print(
            f"--memory {format_bytes(peak['memory_bytes'])}: peak {format_bytes(peak['peak_bytes'] or 0)} of the whole "
            f"process, {peak['n_passes']} passes, {peak['elapsed_ns'] / 1e9:.1f} s"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=Path, help="uint32 .npy of token ids instead of the standard library's sources")
    parser.add_argument("--starts", type=Path, help="int64 .npy of document starts, with --ids")
    parser.add_argument("--tokenizer", default="deepseek-v4")
    parser.add_argument("--preset", default="deepseek-v4.1-flash")
    parser.add_argument("--tokens", type=int, help="use only the first N tokens")
    parser.add_argument("--memory", default="8GiB", help="of the timed count")
    parser.add_argument("--peaks", default="1GiB", help="memory bounds of which the peak is measured, with commas")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path, help="write the JSON record, raw samples included, here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return run_child(args)
    threads = resolve_threads(args.threads)
    vocabulary, spec = build_vocabulary(args.tokenizer), load_spec(args.preset)
    ids, starts, name = read_input(args, vocabulary)
    addresses = TokenAddresses(spec, Tokens(ids, starts), vocabulary)
    memory_bytes = parse_bytes(args.memory)
    layer_id = spec.layer_ids[0]
    compile_sample = timed(lambda: measure_traffic(addresses_of(spec, vocabulary), memory_bytes=memory_bytes))
    checked = [(spec.layer_ids[-1], 0), (layer_id, spec.n_columns - 1)]
    traffic = check(addresses, memory_bytes, threads, checked)
    if traffic is None:
        print(f"check failed: hits of {checked} differ from np.bincount", file=sys.stderr)
        return CHECK_FOUND

    parted = apart(vocabulary.canonical(ids), starts)
    keys = keys_of(addresses, spec.orders[0], layer_id)
    modulus = spec.layers[0].moduli[0][0]
    hits = np.zeros(max(layer.n_rows for layer in spec.layers), np.uint32)
    n_sources = len(spec.layers) * len(spec.orders)
    methods: dict[str, Callable[[], object]] = {
        OURS: lambda: measure_traffic(addresses, memory_bytes=memory_bytes, threads=threads),
        SCATTER: lambda: numba_scatter(spec, parted, threads, hits),
        BINCOUNT: lambda: bincount(keys, modulus),
        SORT: lambda: sort_slices(keys, n_sources, threads),
    }
    numba_scatter(spec, parted[:1000], threads, hits)
    samples: dict[str, list[Sample]] = {method: [] for method in methods}
    for _ in range(args.repeats):
        for method, function in methods.items():
            samples[method].append(timed(function))
    record = {
        "schema": "engram.benchmark-traffic/1",
        "command": ["python", *sys.argv],
        "environment": environment(threads),
        "input": {
            "corpus": name,
            "n_documents": len(starts) - 1,
            "n_tokens": len(ids),
            "vocab_sha256": vocabulary.map_sha256,
        },
        "spec": {"name": spec.name, "fingerprint": spec.fingerprint, "n_rows": [x.n_rows for x in spec.layers]},
        "n_layers": len(spec.layers),
        "verified": f"hits and distinct n-grams of {len(checked)} heads equal np.bincount's and np.unique's",
        "window": "token ids in memory to hits of all rows of all layers; engram makes the whole report",
        "memory_bytes": memory_bytes,
        "n_passes": traffic.n_passes,
        "n_ngrams": {str(head.order): head.n_ngrams for head in traffic.heads if head.layer_id == layer_id},
        "compile_or_load_ns": compile_sample["wall_ns"],
        "samples": samples,
        "summary": {method: summary(found) for method, found in samples.items()},
        "notes": {
            BINCOUNT: f"one of {len(spec.layers) * spec.n_columns} heads, its keys made before",
            SORT: f"{n_sources} times the keys of one order, in slices of {_SORTED_KEYS:,}: a bound for any count that "
            "sorts",
        },
        "peaks": [measure_peak(args, ids, starts, memory) for memory in args.peaks.split(",") if memory],
    }
    show(record)
    if args.record:
        args.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def addresses_of(spec: AddressSpec, vocabulary: Vocabulary) -> TokenAddresses:
    """A few tokens, to compile with."""
    return TokenAddresses(spec, Tokens(np.arange(100, dtype=np.uint32), np.array([0, 50, 100])), vocabulary)


if __name__ == "__main__":
    sys.exit(main())
