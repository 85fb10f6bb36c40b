"""Counting n-grams from disk to disk under a memory limit: every method checked, then timed against the others.

    python -m benchmarks.count_disk --tokens STORE --vocab FILE --kenlm count_ngrams --record count-disk.json

The window: a process from its start to its end, tokens read from files in the page cache, counts of all orders written
as Parquet sorted by n-gram (KenLM and Colibri Core: in their own formats). Every process has the same memory limit as
far as it takes one; what it really held is measured. Two floors stand beside: reading the tokens, and writing the same
sorted rows from memory. `engram count` and the floor flush their files to the disk, the peers do not. The record is
written after every process. Exit code 6 when a count differs from the independent one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import count_input, processes
from benchmarks.count import CHECK_FOUND, environment
from benchmarks.processes import Finished, say

SPARE = 2**32 - 1
"""In windows.parquet: past the end of the document."""
ROW_GROUP_ROWS = 131_072
PREPARED_ROWS = 1 << 22
UNTIMED = ("prepare", "text", "check")
UNTIMED_TIMEOUT_S = 7200.0
KENLM_WAIVED = (
    "waived: not built; unpack the source distribution of `kenlm` from PyPI, then `cmake -S kenlm-* -B build && make "
    "-C build count_ngrams` with Boost's headers, program_options, system, thread and test libraries, and name "
    "build/bin/count_ngrams with --kenlm"
)
COLIBRI_WAIVED = (
    "waived: not built; unpack the source distribution of `colibricore` from PyPI, compile src/classencode.cpp and "
    "src/patternmodeller.cpp with the other sources there and -lbz2, and name the directory with --colibri"
)
LEFT_OUT = {
    "infini-gram": "builds a suffix array that counts one n-gram a query; it lists no counts",
    "SRILM": "its licence forbids fetching it freely",
    "tongrams": "not on PyPI",
}


# What runs in a child.


def duckdb_sql(order: int, form: str, source: Path, rank_bits: int) -> str:
    """The query of one order: `windows` are given shifted columns, `ids` make them, `packed` packs the given ones."""
    places = [f"t{place}" for place in range(order)]
    listed = ", ".join(places)
    given = f"(SELECT {listed} FROM read_parquet('{source / 'windows.parquet'}') WHERE {places[-1]} <> {SPARE})"
    if form == "ids":
        shifted = [f"lead(id, {place}) OVER () AS t{place}" for place in range(1, order)]
        shifted += [f"lead(document, {order - 1}) OVER () AS last"]
        tokens = f"read_parquet('{source / 'tokens.parquet'}')"
        given = f"(SELECT id AS t0, document, {', '.join(shifted)} FROM {tokens}) WHERE document = last"
    if form != "packed":
        return f"SELECT {listed}, count(*) AS count FROM {given} GROUP BY {listed} ORDER BY {listed}"
    in_word = min(order, 64 // rank_bits)
    alone, packed = places[: order - in_word], places[order - in_word :]
    word = " | ".join(f"({name}::UBIGINT << {rank_bits * (in_word - 1 - at)})" for at, name in enumerate(packed))
    mask = (1 << rank_bits) - 1
    apart = [f"(k >> {rank_bits * (in_word - 1 - at)} & {mask})::UINTEGER AS {name}" for at, name in enumerate(packed)]
    keys = ", ".join([*alone, "k"])
    return (
        f"SELECT {', '.join([*alone, *apart])}, count FROM (SELECT {keys}, count(*) AS count FROM "
        f"(SELECT {', '.join([*alone, f'{word} AS k'])} FROM {given}) GROUP BY {keys} ORDER BY {keys})"
    )


def child_duckdb(args: argparse.Namespace, orders: list[int], form: str) -> None:
    import duckdb

    about = json.loads((args.input / "about.json").read_text())
    connection = duckdb.connect()
    connection.execute(f"SET threads = {args.threads}")
    connection.execute(f"SET memory_limit = '{args.memory_bytes // 2**20}MiB'")
    connection.execute(f"SET temp_directory = '{args.output / 'spill'}'")
    for order in orders:
        query = duckdb_sql(order, form, args.input, about["canonical_size"].bit_length())
        connection.execute(
            f"COPY ({query}) TO '{args.output / f'order-{order}.parquet'}' "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"
        )


def child_polars(args: argparse.Namespace, orders: list[int]) -> None:
    os.environ["POLARS_MAX_THREADS"] = str(args.threads)
    import polars

    for order in orders:
        places = [f"t{place}" for place in range(order)]
        windows = polars.scan_parquet(args.input / "windows.parquet").select(places)
        counted = windows.filter(polars.col(places[-1]) != SPARE).group_by(places).agg(polars.len().alias("count"))
        counted.sort(places).sink_parquet(
            args.output / f"order-{order}.parquet", compression="zstd", row_group_size=ROW_GROUP_ROWS
        )


def child_read_floor(args: argparse.Namespace) -> dict[str, Any]:
    """Read the tokens into fresh memory."""
    return {"read_ns": processes.timed(lambda: np.load(args.input / "ids.npy"))["wall_ns"]}


def child_write_floor(args: argparse.Namespace, orders: list[int]) -> dict[str, Any]:
    """Write the rows of the kept result again, from memory, in one part a thread; flushing is timed apart."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    total = {"write_ns": 0, "flush_ns": 0, "written_bytes": 0, "n_rows": 0}
    for order in orders:
        columns, counts = parquet_columns(args.kept, order)
        names = [f"t{place}" for place in range(order)] + ["count"]
        table = pa.table([*columns, counts], names)
        bounds = [table.num_rows * part // args.threads for part in range(args.threads + 1)]
        paths = [args.output / f"order-{order}-{part}.parquet" for part in range(args.threads)]

        def write(part: int, table: Any = table, bounds: list[int] = bounds, paths: list[Path] = paths) -> None:
            pq.write_table(
                table.slice(bounds[part], bounds[part + 1] - bounds[part]),
                paths[part],
                compression="zstd",
                use_dictionary=False,
                row_group_size=ROW_GROUP_ROWS,
                write_statistics=True,
                write_page_checksum=True,
            )

        with ThreadPoolExecutor(args.threads) as pool:
            total["write_ns"] += processes.timed(lambda: list(pool.map(write, range(args.threads))))["wall_ns"]
        total["flush_ns"] += processes.timed(lambda paths=paths: list(map(flush, paths)))["wall_ns"]
        total["written_bytes"] += sum(path.stat().st_size for path in paths)
        total["n_rows"] += table.num_rows
        for path in paths:
            path.unlink()
    return total


def flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def parquet_columns(directory: Path, order: int) -> tuple[list[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Ids of each place and counts, from the file of an order or from its directory of parts."""
    import pyarrow.parquet as pq

    whole = directory / f"order-{order}.parquet"
    paths = [whole] if whole.exists() else sorted((directory / f"order-{order}").glob("*.parquet"))
    tables = [pq.read_table(path) for path in paths]
    if not tables:
        raise FileNotFoundError(f"{directory}: no Parquet of order {order}")
    names = [*tables[0].column_names[:order], "count"]
    columns = [np.concatenate([table[name].to_numpy() for table in tables]) for name in names]
    return columns[:-1], columns[-1]


def kenlm_columns(directory: Path, order: int) -> tuple[list[npt.NDArray[Any]], npt.NDArray[Any]]:
    """KenLM's records as ids; those that hold its marks of a document's ends are left out."""
    words = (directory / f"order-{order}.vocab").read_bytes().split(b"\0")[:-1]
    ids = np.array([int(word) if word.isdigit() else -1 for word in words], dtype=np.int64)
    record = np.dtype([("words", "<u4", (order,)), ("count", "<u8")])
    found = np.fromfile(directory / f"order-{order}.bin", dtype=record)
    ngrams = ids[found["words"]]
    inside = (ngrams >= 0).all(axis=1)
    return [column.astype(np.uint32) for column in ngrams[inside].T], found["count"][inside]


def colibri_columns(directory: Path, order: int) -> tuple[list[npt.NDArray[Any]], npt.NDArray[Any]]:
    """Colibri Core's printed patterns of one order as ids."""
    ngrams, counts = [], []
    for line in (directory / "printed.txt").read_text().splitlines():
        fields = line.split("\t")
        tokens = fields[0].split(" ")
        if len(tokens) == order and all(token.isdigit() for token in tokens):
            ngrams.append([int(token) for token in tokens])
            counts.append(int(fields[1]))
    return list(np.array(ngrams, dtype=np.uint32).reshape(-1, order).T), np.array(counts, dtype=np.uint64)


READERS = {"kenlm": kenlm_columns, "colibri": colibri_columns}


def child_check(args: argparse.Namespace, orders: list[int]) -> dict[str, Any]:
    """Hold a result on disk against NumPy's count; Parquet must ascend besides."""
    given, _ = count_input.read_input(args.input)
    told: dict[str, Any] = {"n_distinct": {}}
    for order in orders:
        columns, counts = READERS.get(args.method, parquet_columns)(args.output, order)
        told["n_distinct"][order] = len(counts)
        differs = count_input.difference(given, columns, counts, ascending=args.method not in READERS)
        if differs:
            return told | {"differs": differs}
    return told


def child(args: argparse.Namespace, orders: list[int]) -> dict[str, Any]:
    processes.prefer_for_killing()
    match args.child.split("-", 1):
        case ["duckdb", form]:
            child_duckdb(args, orders, form)
        case ["polars"]:
            child_polars(args, orders)
        case ["read", "floor"]:
            return child_read_floor(args)
        case ["write", "floor"]:
            return child_write_floor(args, orders)
        case ["check"]:
            return child_check(args, orders)
        case ["prepare"]:
            prepare_peers(args.input)
        case ["text"]:
            write_text(args.input)
    return {}


# The run.


def prepare_peers(source: Path) -> None:
    """The forms that the peers read, laid beside the ids: outside every window."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    given, _ = count_input.read_input(source)
    lengths = np.diff(given.document_starts)
    document = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    places = [given.ids]
    for place in range(1, 4):
        column = np.full(len(given.ids), SPARE, dtype=np.uint32)
        whole = given.whole(place + 1)[: len(given.ids) - place]
        np.copyto(column[: len(whole)], given.ids[place:], where=whole)
        places.append(column)
    pq.write_table(pa.table({"id": given.ids, "document": document}), source / "tokens.parquet")
    windows = pa.table({f"t{place}": column for place, column in enumerate(places)})
    pq.write_table(windows, source / "windows.parquet", row_group_size=ROW_GROUP_ROWS)


def write_text(source: Path) -> None:
    """Ids as words, one document a line."""
    given, _ = count_input.read_input(source)
    words = [str(token) for token in range(given.canonical_size)]
    with (source / "text.txt").open("w") as file:
        for start, stop in zip(given.document_starts[:-1], given.document_starts[1:], strict=True):
            for begin in range(start, stop, PREPARED_ROWS):
                end = min(begin + PREPARED_ROWS, stop)
                file.write(" ".join([words[token] for token in given.ids[begin:end].tolist()]))
                file.write(" " if end < stop else "")
            file.write("\n")


class DiskRun:
    """Processes of every method in turn, and the record as it grows."""

    def __init__(self, args: argparse.Namespace, orders: list[int], full: Path, few: Path, scratch: Path) -> None:
        self.args, self.orders, self.scratch = args, orders, scratch
        self.full, self.few = full, few
        self.kept: Path | None = None
        self.found_difference = False
        self.record: dict[str, Any] = {}
        self.methods: dict[str, Callable[[Path], Finished]] = {
            "engram": self.ours_disk_to_disk,
            **{
                name: (lambda output, name=name: self.in_child(name, output, full))
                for name in ("duckdb-windows", "duckdb-ids", "duckdb-packed", "polars", "read-floor")
            },
            "write-floor": lambda output: self.in_child("write-floor", output, full, "--kept", str(self.kept)),
            "kenlm": self.kenlm,
            "colibri": self.colibri,
        }

    def waived(self, name: str) -> str | None:
        """Why a method cannot run here, if it cannot."""
        if name == "engram" and not (self.full / "tokens").exists():
            return "waived: canonical ids without a --vocab are no token store"
        if name == "kenlm" and not self.args.kenlm:
            return KENLM_WAIVED
        if name == "colibri" and not self.args.colibri:
            return COLIBRI_WAIVED
        if name == "write-floor" and self.kept is None:
            return "waived: no result to write again"
        return None

    def ours_disk_to_disk(self, output: Path) -> Finished:
        """`engram count` on the token store, as a user runs it; the interpreter's start and imports included."""
        command = [sys.executable, "-c", "from engram_cli.main import main; main()", "count", str(self.full / "tokens")]
        command += ["--vocab", str(self.full / "vocab.parquet"), "--memory", str(self.args.memory_bytes)]
        command += ["--orders", self.args.orders, "--threads", str(self.args.threads), "-o", str(output / "counts")]
        finished = processes.run([*command, "--json", "--top", "0"], timeout_s=self.args.timeout_s)
        for part in (output / "counts").glob("order-*"):  # where the check looks
            part.rename(output / part.name)
        return finished

    def in_child(self, name: str, output: Path, source: Path, *further: str) -> Finished:
        command = [sys.executable, "-m", "benchmarks.count_disk", "--child", name, "--input", str(source)]
        command += ["--output", str(output), "--orders", self.args.orders, "--threads", str(self.args.threads)]
        command += ["--memory-bytes", str(self.args.memory_bytes), *further]
        timed = name not in UNTIMED
        return processes.run(command, timeout_s=self.args.timeout_s if timed else UNTIMED_TIMEOUT_S)

    def prepare_text(self, source: Path) -> None:
        if not (source / "text.txt").exists():
            self.in_child("text", source, source)

    def kenlm(self, output: Path) -> Finished:
        """One process an order: KenLM counts one at a time, from text."""
        self.prepare_text(self.full)
        done = []
        for order in self.orders:
            command = [str(self.args.kenlm), "-o", str(order), "-S", f"{self.args.memory_bytes // 2**20}M"]
            command += ["-T", str(output / "spill"), "--write_vocab_list", str(output / f"order-{order}.vocab")]
            done.append(
                processes.run(
                    command,
                    timeout_s=self.args.timeout_s,
                    stdin=self.full / "text.txt",
                    stdout=output / f"order-{order}.bin",
                )
            )
        return together(done)

    def colibri(self, output: Path) -> Finished:
        """All orders in memory from its own encoding, which is made outside the window."""
        self.prepare_text(self.few)
        tool = str(self.args.colibri / "colibri-patternmodeller")
        encode = [str(self.args.colibri / "colibri-classencode"), "-d", f"{output}/", "-o", "text"]
        processes.run([*encode, str(self.few / "text.txt")], timeout_s=self.args.timeout_s)
        data, classes = output / "text.colibri.dat", output / "text.colibri.cls"
        model = str(output / "model")
        spans = ["-t", "1", "-u", "-m", str(min(self.orders)), "-l", str(max(self.orders))]
        finished = processes.run([tool, "-f", str(data), "-o", model, *spans], timeout_s=self.args.timeout_s)
        printed = [tool, "-i", model, "-c", str(classes), "-P", *spans]
        processes.run(printed, timeout_s=self.args.timeout_s, stdout=output / "printed.txt")
        return finished

    def take(self, name: str, entry: dict[str, Any]) -> None:
        """One process of a method into its entry; the first result is checked."""
        entry["status"] = self.waived(name) or "ok"
        if entry["status"] != "ok":
            say(f"  {name}: {entry['status']}")
            return self.save()
        output = Path(tempfile.mkdtemp(dir=self.scratch, prefix=f"{name}-"))
        try:
            finished = self.methods[name](output)
            found = {key: getattr(finished, key) for key in ("wall_ns", "user_ns", "system_ns")}
            found |= {key: getattr(finished, key) for key in ("peak_rss_bytes", "peak_anonymous_bytes")}
            found["written_bytes"] = written_bytes(output)
            if finished.failure:
                entry["status"] = f"failed: {finished.failure}"
            elif name.endswith("-floor"):
                found |= json.loads(finished.stdout.splitlines()[-1])
            elif not entry["processes"]:
                self.check(name, entry, output)
            if entry["status"] == "ok":
                entry["processes"].append(found)
                anonymous = (found["peak_anonymous_bytes"] or 0) / 2**30
                say(f"  {name}: {found['wall_ns'] / 1e9:.2f} s, {anonymous:.2f} GiB anonymous at its peak")
            else:
                say(f"  {name}: {entry['status'].splitlines()[-1]}")
        finally:
            if output != self.kept:
                shutil.rmtree(output)
        return self.save()

    def check(self, name: str, entry: dict[str, Any], output: Path) -> None:
        source = self.few if name == "colibri" else self.full
        finished = self.in_child("check", output, source, "--method", name)
        told = {} if finished.failure else json.loads(finished.stdout.splitlines()[-1])
        entry["n_distinct"] = told.get("n_distinct")
        if finished.failure:
            entry["status"] = f"failed: its result could not be checked: {finished.failure}"
        elif "differs" in told:
            entry["status"] = f"differs: {told['differs']}"
            self.found_difference = True
        elif self.kept is None and name not in READERS:
            self.kept = output

    def save(self) -> None:
        for entry in self.record["methods"].values():
            walls = [found["wall_ns"] for found in entry["processes"]]
            if walls:
                median = statistics.median(walls)
                anonymous = [found["peak_anonymous_bytes"] or 0 for found in entry["processes"]]
                entry["summary"] = {
                    "median_ns": median,
                    "mad_ns": statistics.median(abs(wall - median) for wall in walls),
                    "min_ns": min(walls),
                    "max_ns": max(walls),
                    "median_user_ns": statistics.median(found["user_ns"] for found in entry["processes"]),
                    "median_system_ns": statistics.median(found["system_ns"] for found in entry["processes"]),
                    "peak_anonymous_bytes": max(anonymous),
                    "peak_rss_bytes": max(found["peak_rss_bytes"] or 0 for found in entry["processes"]),
                    "within_memory": max(anonymous) <= self.args.memory_bytes,
                    "n": len(walls),
                }
        if self.args.record:
            beside = self.args.record.with_name(self.args.record.name + ".part")
            beside.write_text(json.dumps(self.record, indent=1) + "\n")
            beside.replace(self.args.record)

    def all(self, names: list[str]) -> None:
        """`--repeats` processes of each method in turn, fewer of those that take longer than the budget."""
        for turn in range(self.args.repeats):
            say(f"turn {turn + 1} of {self.args.repeats}")
            for name in names:
                source = self.few if name == "colibri" else self.full
                n_tokens = json.loads((source / "about.json").read_text())["n_tokens"]
                empty = {"status": "ok", "n_tokens": n_tokens, "processes": []}
                entry = self.record["methods"].setdefault(name, empty)
                taken = entry["processes"]
                quick = not taken or (turn + 1) * taken[0]["wall_ns"] <= self.args.budget_s * 1e9
                if entry["status"] == "ok" and (quick or name in self.args.always.split(",")):
                    self.take(name, entry)


def written_bytes(output: Path) -> int:
    """Bytes of a result, without what a method was given beside it or prints for the check."""
    files = [path for path in output.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if not path.name.startswith(("text.", "printed.")))


def together(done: list[Finished]) -> Finished:
    """Processes one after the other, as one."""
    return Finished(
        wall_ns=sum(one.wall_ns for one in done),
        user_ns=sum(one.user_ns for one in done),
        system_ns=sum(one.system_ns for one in done),
        peak_rss_bytes=max(one.peak_rss_bytes or 0 for one in done),
        peak_anonymous_bytes=max(one.peak_anonymous_bytes or 0 for one in done),
        stdout="",
        failure=next((one.failure for one in done if one.failure), None),
    )


def lines(record: dict[str, Any]) -> Iterator[str]:
    """The record for people."""
    about = record["input"]
    yield f"{about['corpus']}: {about['n_documents']:,} documents, {about['n_tokens']:,} tokens"
    titles = {"median s": 9, "MAD": 6, "CPU s": 7, "M tok/s": 8, "anon GiB": 8, "RSS GiB": 7, "n": 2}
    yield f"{'method':16} " + " ".join(f"{title:>{width}}" for title, width in titles.items())
    for name, entry in record["methods"].items():
        found = entry.get("summary")
        if not found:
            yield f"{name:16} {entry['status'].splitlines()[-1]}"
            continue
        if name.endswith("-floor"):
            yield f"{name:16} {floor(entry)}"
            continue
        cpu_ns = found["median_user_ns"] + found["median_system_ns"]
        yield (
            f"{name:16} {found['median_ns'] / 1e9:9.2f} {found['mad_ns'] / 1e9:6.2f} {cpu_ns / 1e9:7.2f} "
            f"{entry['n_tokens'] / found['median_ns'] * 1e3:8.2f} {found['peak_anonymous_bytes'] / 2**30:8.2f} "
            f"{found['peak_rss_bytes'] / 2**30:7.2f} {found['n']:2}"
            + ("" if entry["n_tokens"] == about["n_tokens"] else f"  {entry['n_tokens']:,} tokens")
            + ("" if found["within_memory"] else "  past the memory limit")
        )


def floor(entry: dict[str, Any]) -> str:
    """Medians of a floor's own clocks: the process around them is no part of it."""
    told = {
        key: [one[key] for one in entry["processes"]]
        for key in ("read_ns", "write_ns", "flush_ns")
        if key in entry["processes"][0]
    }
    return ", ".join(f"{key.removesuffix('_ns')} {statistics.median(found) / 1e9:.2f} s" for key, found in told.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count_input.add_arguments(parser)
    parser.add_argument("--orders", default="2,3,4")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--memory-bytes", type=int, default=2 * 2**30)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each method")
    parser.add_argument("--budget-s", type=float, default=600, help="seconds for a method not named by --always")
    parser.add_argument("--always", default="engram", help="methods that get all their processes")
    parser.add_argument("--timeout-s", type=float, default=3600, help="longest life of one process")
    parser.add_argument("--slow-tokens", type=int, default=2_000_000, help="tokens for Colibri Core")
    parser.add_argument("--only", help="methods, with commas between")
    parser.add_argument("--kenlm", type=Path, default=os.environ.get("KENLM_COUNT_NGRAMS"), help="its count_ngrams")
    parser.add_argument("--colibri", type=Path, default=os.environ.get("COLIBRI_CORE"), help="directory of its tools")
    parser.add_argument("--scratch", type=Path, help="directory for inputs, spills and results")
    parser.add_argument("--record", type=Path, help="write the JSON record, raw samples included, here")
    for hidden in ("--child", "--method"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--input", "--output", "--kept"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    orders = sorted(int(order) for order in args.orders.split(","))
    if args.child:
        print(json.dumps(child(args, orders)))
        return 0
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="count-disk-") as kept:
        scratch = Path(kept)
        say("preparing the input")
        full = count_input.prepare(args, scratch / "full", with_store=True)
        about = json.loads((full / "about.json").read_text())
        few = count_input.resized(full, scratch / "few", min(args.slow_tokens, about["n_tokens"]))
        run = DiskRun(args, orders, full, few, scratch)
        say("preparing the peers' input")
        prepared = run.in_child("prepare", full, full)  # in a process of its own: its memory goes back
        if prepared.failure:
            raise SystemExit(f"the peers' input could not be prepared: {prepared.failure}")
        run.record = {
            "schema": "engram.benchmark-count-disk/1",
            "command": ["python", "-m", "benchmarks.count_disk", *sys.argv[1:]],
            "environment": environment(args.threads),
            "input": about,
            "memory_bytes": args.memory_bytes,
            "orders": orders,
            "window": "processes from start to end: tokens in files (page cache) to counts of all orders on disk",
            "verified": "each method's first result equals an independent count by NumPy; Parquet ascends",
            "methods": {},
            "left_out": LEFT_OUT,
        }
        run.all(args.only.split(",") if args.only else list(run.methods))
        run.save()
    print("\n".join(lines(run.record)))
    return CHECK_FOUND if run.found_difference else 0


if __name__ == "__main__":
    sys.exit(main())
