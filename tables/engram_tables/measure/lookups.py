"""One benchmark under way: batches drawn from a trace, engines called alike, verified, and summed up as points.

It evicts files where a batch must be cold, and measures nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses
from engram_tables.errors import InvalidInput
from engram_tables.fetch.engines.copying import CopyEngine
from engram_tables.fetch.reference import read_batch
from engram_tables.fetch.table import Table
from engram_tables.measure.environment import device_reads
from engram_tables.measure.residency import evict
from engram_tables.measure.timing import Case, Samples
from engram_tables.measure.trace import Trace
from engram_tables.units import PAGE_BYTES

DRAM, DISK = "dram", "disk"
BATCH_ROWS = (48, 4096, 65_536)
_CACHE_LINE_BYTES = 64
_DESCRIBED_BATCHES = 16

Fetch = Callable[[Addresses, NDArray[np.uint8]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What to measure.

    Attributes
    ----------
    rows_per_batch
        Rows wanted in a batch; a batch is whole tokens, so it holds the nearest number that is.
    sources
        `dram`, `disk`, or both.
    repeats
        Fewest timed batches a point; more follow until `seconds` of timed work.
    threads
        Threads of the threaded gather; None means all usable CPUs.
    read_threads
        Threads of the engines that read files; None means their default, 64.
    """

    rows_per_batch: tuple[int, ...] = BATCH_ROWS
    sources: tuple[str, ...] = (DRAM, DISK)
    repeats: int = 5
    seconds: float = 0.4
    threads: int | None = None
    read_threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rows_per_batch or min(self.rows_per_batch) < 1:
            raise InvalidInput(f"rows per batch: found {self.rows_per_batch}, expected numbers from 1 up")
        if not self.sources or not set(self.sources) <= {DRAM, DISK}:
            raise InvalidInput(f"sources: found {self.sources}, expected {DRAM}, {DISK} or both")
        if self.repeats < 1:
            raise InvalidInput(f"repeats: found {self.repeats}, expected 1 or more")


@dataclass(slots=True)
class Run:
    """One benchmark under way."""

    path: Path
    table: Table
    trace: Trace
    plan: BenchPlan
    progress: Callable[[], None]
    rng: np.random.Generator
    mismatches: list[dict[str, Any]] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        return [file.path for file in self.table.stored.files]

    @property
    def file_bytes(self) -> int:
        return sum(file.file_bytes for file in self.table.stored.files)

    def n_tokens(self, n_rows: int) -> int:
        """Tokens of a batch of about `n_rows`."""
        rows_per_token = int(self.trace.addresses.rows[0].size)
        wanted = max(1, round(n_rows / rows_per_token))
        if wanted > self.trace.n_tokens:
            raise InvalidInput(
                f"trace: found {self.trace.n_tokens} tokens, expected {wanted} or more for a batch of "
                f"{n_rows} rows; give more text, or smaller batches (--rows-per-batch)"
            )
        return wanted

    def start_over(self) -> None:
        """Draw the same batches once more, for another engine."""
        self.rng = np.random.default_rng(self.plan.seed)

    def draw(self, n_tokens: int) -> Addresses:
        """A run of tokens from a random place of the trace."""
        start = int(self.rng.integers(0, self.trace.n_tokens - n_tokens + 1))
        return self.trace.batch(start, n_tokens)


@dataclass(frozen=True, slots=True)
class Fetcher:
    """An engine by name, or one made here, called as the table calls it."""

    table: Table
    engine: str | CopyEngine
    threads: int | None

    def __call__(self, addresses: Addresses, out: NDArray[np.uint8]) -> None:
        if isinstance(self.engine, str):
            self.table.fetch(addresses, out, self.engine, threads=self.threads)
            return
        _, n_layers, n_columns = addresses.rows.shape
        batch = self.table.places.check(addresses.rows, n_columns=n_columns, first_layer=0, n_layers=n_layers)
        self.engine.read(batch, out.reshape(-1, out.shape[-1]), self.threads)


class Drawn:
    """What was true of the batches of one case, and the device's counters around them."""

    def __init__(self, cold_files: list[Path] | None = None) -> None:
        self._cold_files = cold_files
        self._facts: list[dict[str, float]] = []
        self._device: list[tuple[int, int] | None] = []
        self.resident_before: list[int] = []

    def prepare(self, run: Run, n_tokens: int) -> Addresses:
        """A fresh batch; for cold cases everything is evicted first, and what stayed is written down."""
        addresses = run.draw(n_tokens)
        if len(self._facts) < _DESCRIBED_BATCHES:
            self._facts.append(batch_facts(run.table, addresses))
        if self._cold_files is not None:
            self.count_device(run.path)
            self.resident_before.append(evict(self._cold_files))
            self._device.append(device_reads(run.path))
        return addresses

    def count_device(self, path: Path) -> None:
        """Note the device's counters at the end of a batch."""
        if len(self._device) % 2:
            self._device.append(device_reads(path))

    def device_bytes(self, n_batches: int) -> float | None:
        """Mean bytes a batch that the device read; None without counters. Other processes' reads count as
        well."""
        total = 0
        for before, after in zip(self._device[::2], self._device[1::2], strict=True):
            if before is None or after is None:
                return None
            total += after[1] - before[1]
        return total / n_batches

    def mean(self, fact: str) -> float:
        """Mean of a fact of the batches drawn first."""
        return float(np.mean([facts[fact] for facts in self._facts]))


def make_case(run: Run, n_tokens: int, fetcher: Fetch, out: NDArray[np.uint8], drawn: Drawn) -> Case:
    return Case(prepare=partial(drawn.prepare, run, n_tokens), run=lambda addresses: fetcher(addresses, out))


def batch_facts(table: Table, addresses: Addresses) -> dict[str, float]:
    """Distinct rows, and the pages and cache lines that the parts of the records touch."""
    _, n_layers, n_columns = addresses.rows.shape
    batch = table.places.check(addresses.rows, n_columns=n_columns, first_layer=0, n_layers=n_layers)
    placed = table.places.in_files(table.places.file_spots())
    pages_per_row = line_bytes = 0.0
    pages = []
    for of_part, part in zip(placed.addresses(batch).astype(np.int64), table.stored.parts, strict=True):
        distinct, times = np.unique(of_part, return_counts=True)
        last = distinct + part.n_bytes - 1
        pages_a_part = last // PAGE_BYTES - distinct // PAGE_BYTES + 1
        steps = np.arange(int(pages_a_part.max()))
        pages.append(np.minimum(distinct[:, None] // PAGE_BYTES + steps, last[:, None] // PAGE_BYTES).reshape(-1))
        lines = last // _CACHE_LINE_BYTES - distinct // _CACHE_LINE_BYTES + 1
        pages_per_row += float(pages_a_part @ times) / of_part.size
        line_bytes += float(lines @ times) * _CACHE_LINE_BYTES
    n_rows = int(batch.rows.size)
    return {
        "unique_ratio": distinct.size / n_rows,
        "unique_bytes": float(distinct.size * table.row_bytes),
        "unique_pages": float(np.unique(np.concatenate(pages)).size),
        "pages_per_row": pages_per_row,
        "line_bytes": line_bytes,
    }


def make_point(run: Run, name: str, n_rows_asked: int, drawn: Drawn, samples: Samples) -> dict[str, Any]:
    n_rows = run.n_tokens(n_rows_asked) * run.trace.addresses.rows[0].size
    summary = samples.summary()
    median_ns = summary["median_ns"]
    n_all = n_rows * len(samples.elapsed_ns)
    return {
        "engine": name,
        "rows_per_batch": n_rows,
        "rows_per_batch_asked": n_rows_asked,
        "rows_per_s": n_rows * 1e9 / median_ns,
        "us_per_row": median_ns / n_rows / 1e3,
        "pages_per_row": drawn.mean("pages_per_row"),
        "unique_row_ratio": drawn.mean("unique_ratio"),
        "batch_p50_us": median_ns / 1e3,
        "batch_p99_us": summary["p99_ns"] / 1e3,
        "cpu_us_per_row": summary["cpu_ns_total"] / n_all / 1e3,
        "useful_bytes_per_batch": n_rows * run.table.row_bytes,
        "useful_bytes_per_s": n_rows * run.table.row_bytes * 1e9 / median_ns,
        "flags": [],
        **summary,
    }


def verified(run: Run, fetchers: Mapping[str, Fetch], addresses: Addresses, source: str) -> dict[str, Fetch]:
    """The fetchers whose bytes for this batch are those of the slow reading; the others are reported."""
    expected = read_batch(run.table.stored, addresses.rows)
    sound = {}
    for name, fetcher in fetchers.items():
        found = np.zeros_like(expected)
        fetcher(addresses, found)
        wrong = np.argwhere((found != expected).any(axis=-1))
        if wrong.size:
            token, layer, column = (int(k) for k in wrong[0])
            run.mismatches.append(
                {
                    "source": source,
                    "engine": name,
                    "records": len(wrong),
                    "first": {"token": token, "layer_idx": layer, "column": column},
                }
            )
        else:
            sound[name] = fetcher
    return sound


def touched_buffer(run: Run, n_tokens: int) -> NDArray[np.uint8]:
    """An output buffer that has been touched, so that its page faults are not timed."""
    shape = n_tokens, *run.trace.addresses.rows.shape[1:], run.table.row_bytes
    return np.full(shape, 1, np.uint8)
