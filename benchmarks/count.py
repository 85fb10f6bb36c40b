"""Counting n-grams in memory: every method checked against an independent count, then timed against the others.

    python -m benchmarks.count --record count.json
    python -m benchmarks.count --tokens STORE --vocab FILE --growth 10,100,500 --record count.json

Each sample is a process of its own that lays its input into the form its method wants (outside the clock), counts all
orders once in fresh memory (the first run) and again `--warm` times in the same process. Processes of different
methods take turns. The window: ids or prepared columns in memory to n-grams and counts in memory. The record is
written after every process. A method that fails is recorded with the reason. Exit code 6 when a count differs from the
independent one; a method that differs is not timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks import count_input, processes
from benchmarks.processes import Sample, say

CHECK_FOUND = 6
OURS = "engram"
MACHINE = "machine"
TOUCHED_BYTES = 1 << 30


class StageClock:
    """Wall time of each stage of one count, by wrapping the library's steps: the library has no clock.

    `STEPS` names functions of `corpus.counts.counting`; a step that is not there has no time in the record.
    """

    STEPS: ClassVar = {
        "check": "_check_stream",
        "histograms": "_histograms",
        "partition": "_partition",
        "scatter": "_scatter",
        "sort": "sort_windows",
        "emit": "SortedWindows.unpack",
    }
    INSIDE_SORT = ("histograms", "partition", "scatter")

    def __init__(self) -> None:
        from engram_tables.corpus.counts import counting

        self.elapsed_ns: dict[str, int] = {}
        for stage, name in self.STEPS.items():
            *owners, step = name.split(".")
            owner: Any = counting
            for part in owners:
                owner = getattr(owner, part, None)
            if hasattr(owner, step):
                setattr(owner, step, self._timed(stage, getattr(owner, step)))

    def _timed(self, stage: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            started = time.perf_counter_ns()
            result = step(*args, **named)
            self.elapsed_ns[stage] = self.elapsed_ns.get(stage, 0) + time.perf_counter_ns() - started
            return result

        return run

    def stages(self) -> dict[str, int]:
        """Times since `restart`, each without the stages inside it."""
        found = dict(self.elapsed_ns)
        if "sort" in found:
            found["sort"] -= sum(found.get(stage, 0) for stage in self.INSIDE_SORT)
        return found

    def restart(self) -> None:
        self.elapsed_ns = {}


def stage_bytes(n_tokens: int, n_windows: int, result_bytes: int) -> dict[str, int]:
    """The least that each stage moves through memory; `n_windows` distinct n-grams of the longest order."""
    return {
        "check": 4 * n_tokens,  # ids read
        "histograms": 4 * n_tokens,  # ids read
        "partition": 0,
        "scatter": 12 * n_tokens,  # ids read, keys written
        "sort": 16 * n_tokens + 12 * n_windows,  # keys read and written; distinct ones and their counts written
        "emit": 12 * n_windows + result_bytes,
    }


# A sample, in its own process.


def child(args: argparse.Namespace, orders: list[int]) -> dict[str, Any]:
    """Count with one method; what its process has to tell."""
    processes.prefer_for_killing()
    if args.child == MACHINE:
        return machine(args.threads)
    os.environ["POLARS_MAX_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(args.threads)
    from benchmarks.count_peers import METHODS

    clock = StageClock() if args.child == OURS else None
    given, _ = count_input.read_input(args.input)
    method = METHODS[args.child](given, orders, args.threads)
    try:
        prepared = processes.timed(method.prepare)
    except ImportError as error:
        return {"waived": f"not installed ({error})"}
    runs = []
    for _ in range(1 + args.warm):
        method.forget()
        gc.collect()
        if clock:
            clock.restart()
        sample = processes.timed(method.run)
        runs.append(sample | ({"stages_ns": clock.stages()} if clock else {}))
    told: dict[str, Any] = {"prepare_ns": prepared["wall_ns"], "runs": runs, "n_distinct": {}}
    told["peak_rss_bytes"] = processes.own_peak_bytes()
    if not args.verify:
        return told
    method.close()
    started = time.perf_counter_ns()
    for order in orders:
        columns, counts = method.result(order)
        told["n_distinct"][order] = len(counts)
        differs = count_input.difference(given, columns, counts, ascending=method.ascending)
        if differs:
            return told | {"differs": differs}
    return told | {"check_ns": time.perf_counter_ns() - started}


def machine(threads: int) -> dict[str, Any]:
    """Copy bandwidth between warm buffers, and what the first touch of a GiB costs."""
    n_words = TOUCHED_BYTES // 8 // threads
    with ThreadPoolExecutor(threads) as pool:

        def best_ns(run: Callable[[Any], Any], items: list[Any]) -> int:
            elapsed = []
            for _ in range(5):
                started = time.perf_counter_ns()
                list(pool.map(run, items))
                elapsed.append(time.perf_counter_ns() - started)
            return min(elapsed)

        pairs = [(np.ones(n_words, dtype=np.uint64), np.ones(n_words, dtype=np.uint64)) for _ in range(threads)]
        copy_ns = best_ns(lambda pair: np.copyto(*pair), pairs)
        del pairs
        touch_ns = [_first_touch(pool.map, threads) for _ in range(3)]
        alone_ns = [_first_touch(map, 1) for _ in range(3)]
    return {
        "copy_bytes_per_s": 2 * 8 * n_words * threads / copy_ns * 1e9,
        "first_touch_ns_per_gib": statistics.median(touch_ns),
        "first_touch_ns_per_gib_one_thread": statistics.median(alone_ns),
    }


def _first_touch(spread: Callable[..., Any], threads: int) -> int:
    memory = np.empty(TOUCHED_BYTES, dtype=np.uint8)
    slices = np.array_split(memory, threads)

    def touch(part: Any) -> None:
        part[::4096] = 1

    started = time.perf_counter_ns()
    list(spread(touch, slices))
    return time.perf_counter_ns() - started


# The run: processes in turn, the record as it grows.


class Run:
    """Samples of every method, kept on disk as they come."""

    def __init__(self, args: argparse.Namespace, orders: list[int], record: dict[str, Any]) -> None:
        self.args, self.orders, self.record = args, orders, record
        self.found_difference = False

    def sample(self, name: str, source: Path, *, verify: bool, warm: int) -> dict[str, Any]:
        """One process of a method; its word, or the reason why there is none."""
        command = [sys.executable, "-m", "benchmarks.count", "--child", name, "--input", str(source)]
        command += ["--orders", self.args.orders, "--threads", str(self.args.threads), "--warm", str(warm)]
        finished = processes.run(command + ["--verify"] * verify, timeout_s=self.args.timeout_s)
        if finished.failure:
            return {"failed": finished.failure, "process_ns": finished.wall_ns}
        told: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
        return told | {"process_ns": finished.wall_ns}

    def take(self, entry: dict[str, Any], name: str, source: Path, warm: int) -> None:
        """One more process of a method into its entry of the record."""
        told = self.sample(name, source, verify=not entry["processes"], warm=warm)
        reason = next((f"{word}: {told[word]}" for word in ("waived", "failed", "differs") if word in told), None)
        if reason:
            entry["status"] = reason
            self.found_difference |= "differs" in told
            say(f"  {name}: {reason.splitlines()[-1]}")
        else:
            entry["processes"].append(told)
            seconds = [f"{sample['wall_ns'] / 1e9:.2f}" for sample in told["runs"]]
            say(f"  {name}: {', '.join(seconds)} s (process {told['process_ns'] / 1e9:.0f} s)")
        self.save()

    def save(self) -> None:
        summarise(self.record)
        if self.args.record:
            beside = self.args.record.with_name(self.args.record.name + ".part")
            beside.write_text(json.dumps(self.record, indent=1) + "\n")
            beside.replace(self.args.record)


def compare(run: Run, full: Path, few: Path, names: list[str]) -> None:
    """All methods in turn: `--repeats` processes each, fewer of those that take longer than the budget."""
    from benchmarks.count_peers import METHODS

    args, entries = run.args, run.record["methods"]
    for turn in range(args.repeats):
        say(f"turn {turn + 1} of {args.repeats}")
        run.record["machine"].append(run.sample(MACHINE, full, verify=False, warm=0))
        for name in names:
            slow = METHODS[name].slow
            source = few if slow else full
            about = json.loads((source / "about.json").read_text())
            entry = entries.setdefault(
                name,
                {"about": METHODS[name].about, "status": "ok", "n_tokens": about["n_tokens"], "processes": []},
            )
            if entry["status"] == "ok" and turn < turns_of(run, name):
                run.take(entry, name, source, warm=0 if slow else args.warm)
            if name == OURS and run.found_difference:
                return


def turns_of(run: Run, name: str) -> int:
    """Processes that a method gets: all of them where it decides a ratio, else what the budget allows, at least one."""
    entry = run.record["methods"][name]
    if not entry["processes"] or name in (OURS, "duckdb", run.record.get("quickest_duckdb")):
        return int(run.args.repeats)
    first = entry["processes"][0]
    each_ns = first["process_ns"] - first["check_ns"]
    return max(1, min(int(run.args.repeats), int(run.args.budget_s * 1e9 / each_ns)))


def grow(run: Run, full: Path, scratch: Path, names: list[str]) -> None:
    """The same count at other sizes."""
    from benchmarks.count_peers import METHODS

    for millions in (int(size) for size in run.args.growth.split(",")):
        source = count_input.resized(full, scratch / f"growth-{millions}", millions * 1_000_000)
        about = json.loads((source / "about.json").read_text())
        say(f"growth: {about['n_tokens']:,} tokens" + (f", {about['tiled']} tiles" if about["tiled"] else ""))
        for name in names:
            entry = {"name": name, "about": METHODS[name].about, "status": "ok", "tiled": about["tiled"]}
            entry |= {"n_tokens": about["n_tokens"], "processes": []}
            run.record["growth"].append(entry)
            for _ in range(run.args.growth_repeats):
                if entry["status"] == "ok":
                    run.take(entry, name, source, warm=run.args.warm)
        for file in source.iterdir():
            file.unlink()


def summary(samples: list[Sample]) -> dict[str, float]:
    walls = [sample["wall_ns"] for sample in samples]
    median = statistics.median(walls)
    return {
        "median_ns": median,
        "mad_ns": statistics.median(abs(wall - median) for wall in walls),
        "min_ns": min(walls),
        "max_ns": max(walls),
        "median_user_ns": statistics.median(sample["user_ns"] for sample in samples),
        "median_system_ns": statistics.median(sample["system_ns"] for sample in samples),
        "median_page_faults": statistics.median(sample["page_faults"] for sample in samples),
        "n": len(walls),
    }


def summarise(record: dict[str, Any]) -> None:
    """Medians and ratios from the raw samples so far."""
    for entry in [*record["methods"].values(), *record["growth"]]:
        runs = [told["runs"] for told in entry["processes"]]
        if runs:
            entry["first_run"] = summary([samples[0] for samples in runs])
            warm = [sample for samples in runs for sample in samples[1:]]
            entry["warm"] = summary(warm) if warm else None
            entry["n_distinct"] = entry["processes"][0]["n_distinct"]
    timed = {name: entry for name, entry in record["methods"].items() if entry.get("warm")}
    duckdbs = [name for name in timed if name.startswith("duckdb")]
    if duckdbs:
        record["quickest_duckdb"] = min(duckdbs, key=lambda name: timed[name]["warm"]["median_ns"])
    if OURS not in timed:
        return
    for entry in record["methods"].values():
        if entry.get("first_run"):
            for window in ("first_run", "warm"):
                entry[f"{window}_ratio"] = ratio(entry, record["methods"][OURS], window)
    record["stages"] = stages(record, timed[OURS])


def ratio(entry: dict[str, Any], ours: dict[str, Any], window: str) -> float | None:
    """Time a token, in times of ours; null where the method has no such run."""
    if not entry.get(window):
        return None
    return float(entry[window]["median_ns"] / entry["n_tokens"] / (ours[window]["median_ns"] / ours["n_tokens"]))


def stages(record: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Each stage's median beside the time that its bytes take at the copy bandwidth of this run."""
    bandwidths = [told["copy_bytes_per_s"] for told in record["machine"] if "copy_bytes_per_s" in told]
    results = sum((4 * int(order) + 8) * rows for order, rows in ours["n_distinct"].items())
    longest = max(ours["n_distinct"], key=int)
    moved = stage_bytes(ours["n_tokens"], ours["n_distinct"][longest], results)
    warm = [sample["stages_ns"] for told in ours["processes"] for sample in told["runs"][1:]]
    found = {}
    for stage, least in moved.items():
        elapsed = [sample[stage] for sample in warm if stage in sample]
        bound_ns = least / max(bandwidths) * 1e9 if bandwidths else None
        median_ns = statistics.median(elapsed) if elapsed else None
        share = bound_ns / median_ns if median_ns and bound_ns is not None else None
        found[stage] = {"median_ns": median_ns, "least_bytes": least, "bound_ns": bound_ns, "share_of_bound": share}
    whole = sum(moved.values())
    bound_ns = whole / max(bandwidths) * 1e9 if bandwidths else None
    median_ns = ours["warm"]["median_ns"]
    share = bound_ns / median_ns if bound_ns else None
    found["all"] = {"median_ns": median_ns, "least_bytes": whole, "bound_ns": bound_ns, "share_of_bound": share}
    return found


def environment(threads: int) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    found: dict[str, Any] = {
        "cpu": model or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_1min": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    packages = ("numpy", "numba", "pyarrow", "duckdb", "polars", "datafusion", "chdb", "rustling", "scikit-learn")
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def lines(record: dict[str, Any]) -> Iterator[str]:
    """The record for people."""
    about = record["input"]
    yield (
        f"{about['corpus']}: {about['n_documents']:,} documents, {about['n_tokens']:,} tokens, "
        f"{record['threads']} threads"
    )
    titles = {"warm ms": 10, "MAD": 7, "first ms": 10, "user ms": 9, "M tok/s": 8, "× warm": 7, "× first": 7}
    yield f"{'method':18} " + " ".join(f"{title:>{width}}" for title, width in titles.items()) + "    GiB  n"
    for name, entry in record["methods"].items():
        if not entry["processes"]:
            yield f"{name:18} {entry['status'].splitlines()[-1]}"
            continue
        first, warm = entry["first_run"], entry.get("warm") or entry["first_run"]
        peak = max(told["peak_rss_bytes"] or 0 for told in entry["processes"]) / 2**30
        warm_ratio, first_ratio = entry.get("warm_ratio"), entry.get("first_run_ratio")
        yield (
            f"{name:18} {warm['median_ns'] / 1e6:10.1f} {warm['mad_ns'] / 1e6:7.1f} {first['median_ns'] / 1e6:10.1f} "
            f"{warm['median_user_ns'] / 1e6:9.0f} {entry['n_tokens'] / warm['median_ns'] * 1e3:8.2f} "
            f"{f'{warm_ratio:.2f}' if warm_ratio else '-':>7} {f'{first_ratio:.2f}' if first_ratio else '-':>7} "
            f"{peak:6.2f} {len(entry['processes']):2}"
            + ("" if entry["n_tokens"] == about["n_tokens"] else f"  {entry['n_tokens']:,} tokens, ratios a token")
            + ("" if entry["status"] == "ok" else f"  then {entry['status'].splitlines()[-1]}")
        )
    for entry in record["growth"]:
        if entry["processes"]:
            first, warm, n_tokens = entry["first_run"], entry["warm"] or entry["first_run"], entry["n_tokens"]
            yield (
                f"growth, {entry['name']}, {n_tokens:,} tokens{' (tiled)' if entry['tiled'] else ''}: warm "
                f"{warm['median_ns'] / 1e9:.3f} s, {n_tokens / warm['median_ns'] * 1e3:.1f} M tokens/s; "
                f"first {first['median_ns'] / 1e9:.3f} s"
            )
        else:
            yield f"growth, {entry['name']}, {entry['n_tokens']:,} tokens: {entry['status']}"
    for stage, found in record.get("stages", {}).items():
        if found["median_ns"] and found["share_of_bound"] is not None:
            share = f"{100 * found['share_of_bound']:.0f} % of its copy bound"
            yield f"stage {stage}: {found['median_ns'] / 1e6:.1f} ms, {share}"
    for told in record["machine"][:1]:
        if "copy_bytes_per_s" in told:
            touch = told["first_touch_ns_per_gib"], told["first_touch_ns_per_gib_one_thread"]
            yield (
                f"copy {told['copy_bytes_per_s'] / 1e9:.1f} GB/s; first touch of a GiB {touch[0] / 1e6:.0f} ms, "
                f"{touch[1] / 1e6:.0f} ms by one thread"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count_input.add_arguments(parser)
    parser.add_argument("--orders", default="2,3,4")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5, help="processes of each method")
    parser.add_argument("--warm", type=int, default=2, help="runs after the first in each process")
    parser.add_argument("--budget-s", type=float, default=15, help="seconds for a method that decides no ratio")
    parser.add_argument("--timeout-s", type=float, default=1800, help="longest life of one process")
    parser.add_argument("--slow-tokens", type=int, default=2_000_000, help="tokens for methods in plain Python")
    parser.add_argument("--only", help="methods, with commas between; --only list names them all")
    parser.add_argument("--growth", default="", help="further sizes in millions of tokens, as 10,100,500")
    parser.add_argument("--growth-methods", default=OURS)
    parser.add_argument("--growth-repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="directory for the prepared inputs")
    parser.add_argument("--record", type=Path, help="write the JSON record, raw samples included, here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--verify", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    orders = sorted(int(order) for order in args.orders.split(","))
    if args.child:
        print(json.dumps(child(args, orders)))
        return 0
    from benchmarks.count_peers import METHODS

    if args.only == "list":
        print("\n".join(f"{name:18} {method.about}" for name, method in METHODS.items()))
        return 0
    names = args.only.split(",") if args.only else list(METHODS)
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="count-") as kept:
        scratch = Path(kept)
        say("preparing the input")
        full = count_input.prepare(args, scratch / "full")
        about = json.loads((full / "about.json").read_text())
        few = count_input.resized(full, scratch / "few", min(args.slow_tokens, about["n_tokens"]))
        record: dict[str, Any] = {
            "schema": "engram.benchmark-count/2",
            "command": ["python", "-m", "benchmarks.count", *sys.argv[1:]],
            "environment": environment(args.threads),
            "input": about,
            "threads": args.threads,
            "orders": orders,
            "window": "ids or prepared columns in memory to n-grams and counts of all orders in memory",
            "verified": "the last result of each method's first process equals an independent count by NumPy",
            "machine": [],
            "methods": {},
            "growth": [],
        }
        run = Run(args, orders, record)
        compare(run, full, few, names)
        if args.growth and not run.found_difference:
            grow(run, full, scratch, args.growth_methods.split(","))
    run.save()
    print("\n".join(lines(record)))
    return CHECK_FOUND if run.found_difference else 0


if __name__ == "__main__":
    sys.exit(main())
