"""Tables that know what follows: built from counts against plain writes and memory, and read on held-out files.

    python -m benchmarks.next_token --vocab FILE [--corpus DIR] [--directory DIR] [--bytes 1GB] [--orders 2,3]
        [--positions 5000] [--repeats 5] [--sweep] [--plot FILE] [--record FILE]

The corpus is every .py file below DIR, the standard library's by default; files whose name's SHA-256 begins with a
byte below 26 are held out. Timed: `build_table` from its call to its return, counts on the disk and files flushed;
the ceilings are a plain write of as many bytes, by turns with the builds, and the memory's speed, in the same run.
Checked before anything is timed: sampled rows of an f32 table against the plain reference. Accuracy: shares of
held-out positions whose next token is the first, or among the first five, beside exact back-off counts over the same
n-grams, and beside dense random signs in as many values, which are told which n-grams were seen because they cannot
tell. `--sweep` adds points over rows, heads and width; `--plot` draws them (the `report` extra).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import hash_ngrams
from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary, load_vocabulary
from engram_tables.corpus.counts.counts_store import Counts, open_counts
from engram_tables.corpus.counts.ngram_counts import NO_NEXT
from engram_tables.corpus.tokens.token_store import open_tokens
from engram_tables.fetch.table import open_table
from engram_tables.measure.ceilings import memory_ceilings
from engram_tables.measure.environment import command_line, describe
from engram_tables.storage.building.next_token import plan_next_token
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.next_token import reference
from engram_tables.storage.next_token.reading import reader_of
from engram_tables.storage.table.reader import StoredTable
from engram_tables.units import parse_bytes

ENGRAM = [sys.executable, "-c", "from engram_cli.main import main; main()"]
HELD_OUT = 26
N_CHECKED_ROWS = 40
CODECS = ("fp8-e4m3-e8m0", "bf16", "f32")
SWEEP = {
    "rows": [(8, 64, rows) for rows in (20_000, 60_000, 200_000, 600_000)],
    "heads": [(heads, 64, 200_000) for heads in (1, 2, 4, 8, 16)],
    "width": [(8, width, 200_000) for width in (16, 32, 64, 128)],
}
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Held-out positions: int64 (n, most order) canonical ids before each, and int64 (n,) the raw token there."""

    before: I64
    tokens: I64

    def ngrams(self, order: int) -> npt.NDArray[np.uint32]:
        """uint32 (n, order): what ends right before each position."""
        return np.ascontiguousarray(self.before[:, -order:], dtype=np.uint32)


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if a row is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk to write to")
    parser.add_argument("--bytes", type=parse_bytes, default=10**9)
    parser.add_argument("--orders", default="2,3")
    parser.add_argument("--positions", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    orders = tuple(int(order) for order in options.orders.split(","))
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-next-token-") as place:
        directory = Path(place)
        vocabulary = load_vocabulary(options.vocab)
        with open_counts(prepare(directory, options.corpus, options.vocab, options.orders)) as counts:
            held = held_positions(directory / "held", vocabulary, max(orders), options.positions)
            bench = Bench(directory, vocabulary, counts, held, orders)
            wrong = bench.find_fault()
            if wrong is not None:
                print(f"check failed: {wrong}; nothing was timed", file=sys.stderr)
                return 6
            record = run(bench, options)
    if options.plot is not None:
        plot(record, options.plot)
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def prepare(directory: Path, corpus: Path, vocab: Path, orders: str) -> Path:
    """Tokenise both shares of the corpus and count the larger one; the counts' directory."""
    shares: dict[str, list[str]] = {"counted": [], "held": []}
    for path in sorted(corpus.rglob("*.py")):
        name = path.relative_to(corpus).as_posix()
        if path.is_file() and "site-packages" not in name:
            is_held = hashlib.sha256(name.encode()).digest()[0] < HELD_OUT
            shares["held" if is_held else "counted"].append(path.read_text(errors="replace"))
    for share, texts in shares.items():
        (directory / f"{share}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        engram("tokenize", directory / f"{share}.jsonl", "--vocab", vocab, "-o", directory / share)
    engram("count", directory / "counted", "--vocab", vocab, "--orders", orders, "--next", "raw", "-o",
           directory / "counts")  # fmt: skip
    return directory / "counts"


def engram(*arguments: object) -> None:
    """Run a command; its narration goes where ours does."""
    subprocess.run([*ENGRAM, "-q", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def held_positions(tokens: Path, vocabulary: Vocabulary, most: int, n: int) -> Held:
    """`n` positions drawn from those with `most` tokens of their document before them."""
    with open_tokens(tokens) as store:
        stream = store.read(0, store.n_tokens)
    raw = stream.ids.astype(np.int64)
    starts = np.repeat(stream.document_starts[:-1], np.diff(stream.document_starts))
    places = np.flatnonzero(np.arange(len(raw)) - starts >= most)
    places = np.sort(np.random.default_rng(0).choice(places, min(n, len(places)), replace=False))
    canonical = vocabulary.canonical(raw)
    return Held(before=np.stack([canonical[places - back] for back in range(most, 0, -1)], axis=1), tokens=raw[places])


class Bench:
    """Counts, held-out positions, and what exact back-off says of them."""

    def __init__(
        self, directory: Path, vocabulary: Vocabulary, counts: Counts, held: Held, orders: tuple[int, ...]
    ) -> None:
        self.directory = directory
        self.vocabulary = vocabulary
        self.counts = counts
        self.held = held
        self.orders = orders
        self.exact = {order: self._exact(order) for order in orders}

    def spec(self, heads: int, width: int, rows: int) -> AddressSpec:
        """DeepSeek's addressing in one layer."""
        recipe = DeepSeekRecipe(
            name="bench", provenance="benchmark", canonical_size=self.vocabulary.canonical_size, orders=self.orders,
            heads=heads, bases=(rows,) * len(self.orders), layer_ids=(1,), n_layers=1, fill_id=2, row_width=width,
        )  # fmt: skip
        return recipe.resolve(vocabulary=self.vocabulary)

    def build(self, spec: AddressSpec, codec: str) -> tuple[Path, int, int]:
        """A table; its directory, nanoseconds and bytes."""
        plan = plan_next_token(spec, self.counts, codec=codec, layout="packed", memory_bytes=2**31)
        start = time.perf_counter_ns()
        build_table(plan, self.directory / "table", force=True, restart=True, memory_bytes=2**31)
        return self.directory / "table", time.perf_counter_ns() - start, plan.total_bytes

    def find_fault(self) -> str | None:
        """What is wrong with a small f32 table, if anything."""
        spec = self.spec(4, 32, 20_000)
        path, _, _ = self.build(spec, "f32")
        with open_table(path) as table:
            for order in self.orders:
                ngrams = self.held.ngrams(order)
                rows = hash_ngrams(spec, 1, order, ngrams)[1]
                found = {int(row): np.zeros(32) for row in rows[:N_CHECKED_ROWS, 0]}
                for batch in self.counts.batches(order):
                    assert batch.next_tokens is not None
                    owned = hash_ngrams(spec, 1, order, batch.ngrams)[1][:, 0]
                    for at in np.flatnonzero(np.isin(owned, list(found)) & (batch.next_tokens != NO_NEXT)):
                        one = {int(batch.next_tokens[at]): int(batch.counts[at])}
                        found[int(owned[at])] += reference.sketch_row(0, 1, order, 0, 4, one, 32)
                got = table.decode(table.fetch_rows(1, np.array(list(found))))
                if not (got == np.array(list(found.values()))).all():
                    return f"rows of order {order} differ from the reference"
        return None

    def _exact(self, order: int) -> tuple[I64, npt.NDArray[np.bool_]]:
        """The five most frequent next tokens, ties by id, and whether the n-gram was counted."""
        wanted, which = np.unique(self.held.ngrams(order), axis=0, return_inverse=True)
        tops, seen = np.full((len(wanted), 5), -1), np.zeros(len(wanted), np.bool_)
        for at, ngram in enumerate(wanted):
            tokens, times = self.counts.following(ngram)
            tokens, times = tokens[tokens != NO_NEXT], times[tokens != NO_NEXT]
            best = tokens[np.lexsort((tokens, -times.astype(np.int64)))][:5]
            tops[at, : len(best)], seen[at] = best, len(best) > 0
        return tops[which.reshape(-1)], seen[which.reshape(-1)]

    def exact_backed_off(self) -> I64:
        """int64 (n, 5): exact counts, the longest order first."""
        return backed_off([self.exact[order][0] for order in sorted(self.orders, reverse=True)])

    def read(self, path: Path, codecs: tuple[str, ...]) -> dict[str, Any]:
        """Accuracy of the table's rows, and of the same rows in other codecs."""
        with StoredTable(path) as stored:
            reader = reader_of(stored)
        rows, n = {}, len(self.held.tokens)
        with open_table(path) as table:
            for order in self.orders:
                ids = hash_ngrams(table.spec, 1, order, self.held.ngrams(order))[1].reshape(-1)
                rows[order] = table.decode(table.fetch_rows(1, ids)).reshape(n, reader.heads(order), reader.width)
        points = {}
        for name in codecs:
            codec = get_codec(name)
            given = {
                order: codec.decode(codec.encode(of.reshape(-1, reader.width))).reshape(of.shape)
                for order, of in rows.items()
            }
            start = time.perf_counter_ns()
            predicted = reader.predict(given, layer=1, k=5, threads=None)
            elapsed_ns = time.perf_counter_ns() - start
            points[name] = self.accuracy(predicted.ids) | {"positions_per_s": n * 1e9 / elapsed_ns}
        return points

    def dense(self, spec: AddressSpec, width: int) -> dict[str, Any]:
        """The peer in NumPy: dense random signs, heads weighted by the inverse square of their rows' norms."""
        tops = []
        for order in sorted(self.orders, reverse=True):
            loaded, ngrams = self.counts.load(order), self.held.ngrams(order)
            assert loaded.next_tokens is not None
            keep = loaded.next_tokens != NO_NEXT
            owned = hash_ngrams(spec, 1, order, loaded.ngrams[keep])[1]
            wanted = hash_ngrams(spec, 1, order, ngrams)[1]
            tokens, times = loaded.next_tokens[keep], loaded.counts[keep].astype(np.float32)
            total: Any = 0
            for head in range(owned.shape[1]):
                rng = np.random.default_rng([order, head])
                signs = rng.choice(np.array([-1, 1], np.float32), (self.counts.subject.next_size, width))
                distinct, which = np.unique(wanted[:, head], return_inverse=True)
                at = np.minimum(np.searchsorted(distinct, owned[:, head]), len(distinct) - 1)
                hits = np.flatnonzero(distinct[at] == owned[:, head])
                rows = np.zeros((len(distinct), width), np.float32)
                for begin in range(0, len(hits), 1 << 18):
                    some = hits[begin : begin + (1 << 18)]
                    np.add.at(rows, at[some], signs[tokens[some]] * times[some, None])
                mine = rows[which.reshape(-1)]
                total = total + mine / np.maximum((mine**2).sum(axis=1), 1)[:, None] @ signs.T
            best = np.argpartition(-total, 5, axis=1)[:, :5]
            best = np.take_along_axis(best, np.argsort(-np.take_along_axis(total, best, 1), axis=1), 1)
            tops.append(np.where(self.exact[order][1][:, None], best, -1))
        return self.accuracy(backed_off(tops))

    def accuracy(self, ids: I64) -> dict[str, Any]:
        """Shares of positions, and ratios to exact back-off."""
        found = dict(zip(("top_1", "top_5"), shares(ids, self.held.tokens), strict=True))
        exact = dict(zip(("top_1", "top_5"), shares(self.exact_backed_off(), self.held.tokens), strict=True))
        return found | {f"{name}_of_exact": found[name] / exact[name] for name in exact}


def shares(ids: I64, tokens: I64) -> tuple[float, float]:
    """Positions whose token comes first, and is there at all."""
    hits = ids == tokens[:, None]
    return float(hits[:, 0].mean()), float(hits.any(axis=1).mean())


def backed_off(tops: list[I64]) -> I64:
    """The first five distinct tokens of several lists, in their order."""
    found = np.full((len(tops[0]), 5), -1)
    for at, lists in enumerate(zip(*tops, strict=True)):
        best = list(dict.fromkeys(int(token) for tokens in lists for token in tokens if token >= 0))[:5]
        found[at, : len(best)] = best
    return found


def run(bench: Bench, options: Any) -> dict[str, Any]:
    """Everything after the check."""
    n_columns, row_bytes = 8 * len(bench.orders), get_codec(CODECS[0]).row_bytes(64)
    spec = bench.spec(8, 64, options.bytes // row_bytes // n_columns)
    # Code and files are cold.
    _, _, total_bytes = bench.build(spec, CODECS[0])
    samples, written = [], []
    for _ in range(options.repeats):
        samples.append(bench.build(spec, CODECS[0])[1])
        written.append(plain_write_ns(bench.directory / "plain", total_bytes))
    median_ns = float(np.median(samples))
    path, _, _ = bench.build(spec, "f32")
    memory = memory_ceilings()
    n_cells = 64 * sum(sum(heads) for heads in spec.layers[0].moduli)
    record: dict[str, Any] = {
        "schema": "engram.benchmark-next-token/1",
        "command": command_line(),
        "environment": describe(bench.directory),
        "n_tokens": bench.counts.total_tokens,
        "n_positions": len(bench.held.tokens),
        "orders": list(bench.orders),
        "total_bytes": total_bytes,
        "build": {
            "samples_ns": samples,
            "median_ns": median_ns,
            "bytes_per_s": total_bytes * 1e9 / median_ns,
            "summed_bytes_per_s": 8 * n_cells * 1e9 / median_ns,
            "plain_write_samples_ns": written,
            "share_of_plain_write": float(np.median(np.array(written) / np.array(samples))),
        },
        "memory": memory,
        "exact": dict(zip(("top_1", "top_5"), shares(bench.exact_backed_off(), bench.held.tokens), strict=True)),
        "rows": bench.read(path, CODECS),
        "dense": bench.dense(spec, 64),
        "sweep": {},
    }
    show(record)
    if options.sweep or options.plot is not None:
        for name, points in SWEEP.items():
            record["sweep"][name] = [sweep_point(bench, *point) for point in points]
    return record


def sweep_point(bench: Bench, heads: int, width: int, rows: int) -> dict[str, Any]:
    """Accuracy of one geometry, bf16."""
    path, _, total_bytes = bench.build(bench.spec(heads, width, rows), "bf16")
    found = bench.read(path, ("bf16",))["bf16"]
    print(f"{heads:2} heads of {rows:,} rows, width {width}: {found['top_1']:.4f} {found['top_5']:.4f}", flush=True)
    return {"heads": heads, "width": width, "rows": rows, "total_bytes": total_bytes, **found}


def plain_write_ns(path: Path, n_bytes: int) -> int:
    """Write and flush as many bytes."""
    block = np.ones(2**24, np.uint8)
    start = time.perf_counter_ns()
    with path.open("wb") as file:
        for begin in range(0, n_bytes, len(block)):
            file.write(block[: n_bytes - begin].data)
        file.flush()
        os.fsync(file.fileno())
    elapsed_ns = time.perf_counter_ns() - start
    path.unlink()
    return elapsed_ns


def show(record: dict[str, Any]) -> None:
    """The record on a terminal."""
    build, exact = record["build"], record["exact"]
    print(
        f"build  {record['total_bytes']:,} B from {record['n_tokens']:,} tokens in {build['median_ns'] / 1e9:.1f} s: "
        f"{build['bytes_per_s'] / 1e9:.2f} GB/s of records, {build['summed_bytes_per_s'] / 1e9:.2f} GB/s of sums, "
        f"{build['share_of_plain_write']:.0%} of a plain write"
    )
    print(f"exact back-off             {exact['top_1']:.4f} {exact['top_5']:.4f}")
    for name, found in (*record["rows"].items(), ("dense signs, told", record["dense"])):
        print(
            f"{name:26} {found['top_1']:.4f} {found['top_5']:.4f}   "
            f"{found['top_1_of_exact']:.3f} {found['top_5_of_exact']:.3f} of exact",
            flush=True,
        )


def plot(record: dict[str, Any], path: Path) -> None:
    """Accuracy against rows, heads and width, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SWEEP), figsize=(12, 4), sharey=True, layout="constrained")
    for axis, (name, points) in zip(axes, record["sweep"].items(), strict=True):
        for key, marker in (("top_1", "o"), ("top_5", "s")):
            lines = axis.plot([point[name] for point in points], [point[key] for point in points], marker, ls="-")
            lines[0].set_label(f"rows, {key.replace('_', '-')}")
            axis.axhline(record["exact"][key], color=lines[0].get_color(), ls=":", label="exact back-off")
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks([point[name] for point in points], [f"{point[name]:,}" for point in points])
        axis.set_xlabel({"rows": "rows a head", "heads": "heads an order", "width": "values a row"}[name])
    axes[0].set_ylabel("share of held-out positions")
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    sys.exit(main())
