"""What the rows of a table look like, head by head, from a sample or from all of them; and what is wrong with them.

Rows are read through the table's own engines; what they say is summed by `stats_tally`, held against each other by
`stats_duplicates` and judged by `stats_findings`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.inspect.record_values import sections_of
from engram_tables.inspect.stats_against import AgainstHead, compare_with
from engram_tables.inspect.stats_duplicates import Copies, HashedRows, SharedRows, chance_of_equals, find_copies
from engram_tables.inspect.stats_findings import NEXT_TOKEN, Finding, Severity, Subject, findings_of, init_kind
from engram_tables.inspect.stats_sample import HeadRows, choose_rows
from engram_tables.inspect.stats_tally import Tally, tally_rows
from engram_tables.measure.contention import own_read_bytes
from engram_tables.storage.building.initialise import INIT_NAMES
from engram_tables.storage.row_files import RowFiles
from engram_tables.storage.sources.opening import SourceRows
from engram_tables.storage.sources.reading import read_records
from engram_tables.storage.table.reader import StoredTable
from engram_tables.storage.table.table_source import table_source
from engram_tables.threads import resolve_threads, run_all
from engram_tables.units import PAGE_BYTES, ProgressHook, Stage, unwatched

if TYPE_CHECKING:
    from engram_tables.corpus.counts.counts_store import Counts
    from engram_tables.fetch.table import Table
    from engram_tables.inspect.stats_counts import CountedHead
    from engram_tables.storage.sources.source import Source

DEFAULT_SAMPLE = 4096
_CHUNK_ROWS = 4096
_CHUNK_VALUES = 2**20
_KEPT_BYTES = 8 * 2**20
_MOST_HASHES = 2**24
_ZSTD_LEVEL = 3
_MOST_COUNTED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """How small zstd, at its level 3, makes a section of some records.

    Attributes
    ----------
    ratio
        Bytes in over bytes out.
    """

    section: str
    n_bytes: int
    compressed_bytes: int

    @property
    def ratio(self) -> float:
        """Bytes in over bytes out."""
        return self.n_bytes / self.compressed_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsReport:
    """What was read, what it says, and what is wrong with it.

    Attributes
    ----------
    init
        What the manifest says that the rows were made as; None where it says nothing.
    sample, seed
        Rows a head that were asked for, None for all of them.
    heads, tallies, copies
        By group of rows, those that are not here left out.
    content_shift
        Of all records one in 2**content_shift was looked for elsewhere, chosen by content; 0 is every one.
    total
        All groups together.
    compressed
        By section; the first is the whole record.
    requested_bytes
        Of the records that were read.
    page_bytes
        Of the pages of 4,096 bytes they lie in; None where everything was read.
    device_bytes
        What the system charged to this process as read from storage meanwhile; None where it does not say.
    against, counted
        Heads beside a reference, and beside counts, where there is one.
    """

    path: str
    codec: str
    row_bytes: int
    init: str | None
    sample: int | None
    seed: int
    heads: tuple[HeadRows, ...]
    tallies: tuple[Tally, ...]
    copies: tuple[Copies, ...]
    shared: tuple[SharedRows, ...]
    content_shift: int
    total: Tally
    compressed: tuple[Compressed, ...]
    requested_bytes: int
    page_bytes: int | None
    device_bytes: int | None
    against: tuple[AgainstHead, ...] | None
    counted: tuple[CountedHead, ...] | None
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether there is no fault; there may be something suspect."""
        return not any(finding.severity is Severity.FAULT for finding in self.findings)


def table_stats(
    table: Table,
    *,
    sample: int | None = DEFAULT_SAMPLE,
    seed: int = 0,
    against: Table | None = None,
    counts: Counts | None = None,
    init: str | None = None,
    threads: int | None = None,
    stage: Stage = unwatched,
) -> StatsReport:
    """Figures about a table's rows, and what is wrong with them.

    Parameters
    ----------
    sample
        Rows to read of each head, about half of them at random and half in blocks of neighbours; None reads all.
    seed
        Chooses rows and pairs.
    against
        A table of the same addressing that is known to be right: heads that are its own moved by up to
        `stats_against.MOST_MOVED` rows are named.
    counts
        The counts that a next-token table was made of: heads that do not hold the rows of their n-grams are named, and
        where those rows lie.
    init
        What the rows were made as (`normal`, `zeros`, `next-token`), where the manifest does not say; the table may
        have been repacked since.
    stage
        Entered for the rows of the counts, and for the bytes of the sample's records.

    Raises
    ------
    InvalidInput
        An unknown `init`, or another one than the manifest's; a sample that is too small; or two tables of which one's
        records cannot be held against the other's; counts for a table that was not made of any.
    SpecMismatch
        `against` has another addressing; other counts than the table's.

    Notes
    -----
    Rows that are not here are never touched. Memory: a few MiB a thread, and 16 bytes for every record that is looked
    for elsewhere, 256 MiB at most.
    """
    stored = table.stored
    kind = _kind(stored, init)
    # What may be refused comes first.
    counted = None if counts is None else _beside_counts(table, counts, seed, stage)
    owned = {layer_id: stored.owned(layer_id) for layer_id in stored.layer_ids}
    heads = choose_rows(stored.spec, owned, sample=sample, seed=seed)
    before = own_read_bytes()
    look = _Look(table, heads, seed=seed)
    with stage("reading rows", "B") as progress:
        look.run(resolve_threads(threads), progress)
    held = None if against is None else tuple(compare_with(table, against, heads))
    after = own_read_bytes()
    tallies = look.tallies
    copies, shared = _copies(table, heads, tallies)
    subject = Subject(
        init=kind,
        family=stored.spec.mix.family,
        heads=heads,
        tallies=tallies,
        copies=copies,
        chance_equal=[chance_of_equals(_kept(tally, stored.row_bytes)[:_MOST_COUNTED]) for tally in tallies],
        shared=shared,
    )
    findings = findings_of(subject)
    if held is not None and against is not None:
        findings = _with_reference(held, str(against.path), findings)
    if counted is not None:
        findings = _with_counts(counted, findings)
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return StatsReport(
        path=str(table.path),
        codec=stored.codec.name,
        row_bytes=stored.row_bytes,
        init=subject.init,
        sample=sample,
        seed=seed,
        heads=tuple(heads),
        tallies=tuple(tallies),
        copies=tuple(copies),
        shared=tuple(shared),
        content_shift=look.content_shift,
        total=total,
        compressed=tuple(_compress(table, _kept(total, stored.row_bytes))),
        requested_bytes=total.n_rows * stored.row_bytes,
        page_bytes=look.page_bytes if all(head.rows is not None for head in heads) else None,
        device_bytes=None if before is None or after is None else after - before,
        against=held,
        counted=counted,
        findings=tuple(findings),
    )


def _kind(stored: RowFiles, given: str | None) -> str | None:
    stated = init_kind(stored)
    if given is None:
        return stated
    if given not in (*INIT_NAMES, NEXT_TOKEN):
        raise InvalidInput(f"init {given!r}: not known, expected one of {', '.join((*INIT_NAMES, NEXT_TOKEN))}")
    if stated not in (None, given):
        raise InvalidInput(
            f"{stored.path}: found init {given!r}, expected {stated!r} as its manifest says; leave it out"
        )
    return given


def _with_reference(held: Sequence[AgainstHead], where: str, findings: list[Finding]) -> list[Finding]:
    from engram_tables.inspect.stats_against import findings_against

    found = [*findings_against(held, where), *findings]
    return sorted(found, key=lambda finding: finding.severity is not Severity.FAULT)


def _beside_counts(table: Table, counts: Counts, seed: int, stage: Stage) -> tuple[CountedHead, ...]:
    from engram_tables.inspect.stats_counts import compare_with_counts

    with stage("reading counts", "n-grams") as progress:
        return compare_with_counts(table, counts, seed=seed, progress=progress)


def _with_counts(counted: Sequence[CountedHead], findings: list[Finding]) -> list[Finding]:
    from engram_tables.inspect.stats_counts import findings_beside_counts

    found = [*findings_beside_counts(counted), *findings]
    return sorted(found, key=lambda finding: finding.severity is not Severity.FAULT)


class _Chunk(NamedTuple):
    """Rows of one group that are looked at together: some, or the range from `start` to `stop`."""

    idx: int
    head_idx: int
    rows: NDArray[np.int64]
    is_range: bool


class _Look:
    """One pass over the chosen rows, chunk by chunk on many threads."""

    def __init__(self, table: Table, heads: Sequence[HeadRows], *, seed: int) -> None:
        self._table, self._heads, self._seed = table, heads, seed
        self._stored = table.stored
        self._source = _source_of(self._stored)
        width = self._stored.spec.row_width or self._stored.row_bytes
        self._chunk_rows = max(64, min(_CHUNK_ROWS, _CHUNK_VALUES // width))
        self._n_rows = sum(head.n_read for head in heads)
        self.content_shift = max(0, ceil(log2(max(self._n_rows, 1) / _MOST_HASHES)))
        kept_a_head = max(16, _KEPT_BYTES // self._stored.row_bytes // max(len(heads), 1))
        self._kept_every = [max(1, head.n_read // kept_a_head) for head in heads]
        self.tallies = [Tally() for _ in heads]
        self.page_bytes = 0
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[_Chunk, Tally]] = {}
        self._next = 0
        self._n_done = 0

    def run(self, n_threads: int, progress: ProgressHook) -> None:
        """Look at everything."""

        def work(chunk: _Chunk) -> None:
            tally, n_pages = self._examine(chunk)
            with self._lock:
                self._merge(chunk, tally)
                self.page_bytes += n_pages * PAGE_BYTES
                self._n_done += len(chunk.rows)
                progress(self._n_done * self._stored.row_bytes, self._n_rows * self._stored.row_bytes)

        run_all(work, self._chunks(), threads=n_threads)

    def _chunks(self) -> Iterator[_Chunk]:
        idx = 0
        for head_idx, head in enumerate(self._heads):
            if head.rows is not None:
                for begin in range(0, len(head.rows), self._chunk_rows):
                    yield _Chunk(idx, head_idx, head.rows[begin : begin + self._chunk_rows], False)
                    idx += 1
                continue
            for start, stop in head.ranges:
                for first in range(start, stop, self._chunk_rows):
                    rows = np.arange(first, min(first + self._chunk_rows, stop), dtype=np.int64)
                    yield _Chunk(idx, head_idx, rows, True)
                    idx += 1

    def _examine(self, chunk: _Chunk) -> tuple[Tally, int]:
        layer_id, n_pages = self._heads[chunk.head_idx].group.layer_id, 0
        if chunk.is_range:
            records = np.empty((len(chunk.rows), self._stored.row_bytes), np.uint8)
            read_records(self._source, layer_id, int(chunk.rows[0]), records)
        else:
            records = self._table.fetch_rows(layer_id, chunk.rows)
            n_pages = _n_pages(self._stored, layer_id, chunk.rows)
        tally = tally_rows(
            records,
            chunk.rows,
            self._stored.codec,
            hash_shift=self.content_shift,
            kept_every=self._kept_every[chunk.head_idx],
            seed=self._seed,
        )
        return tally, n_pages

    def _merge(self, chunk: _Chunk, tally: Tally) -> None:
        self._waiting[chunk.idx] = chunk, tally
        while self._next in self._waiting:
            ready, sums = self._waiting.pop(self._next)
            self.tallies[ready.head_idx].add(sums)
            self._next += 1


def _source_of(stored: RowFiles) -> Source:
    """The rows for whoever reads them one after the other."""
    if isinstance(stored, SourceRows):
        return stored.source
    assert isinstance(stored, StoredTable), type(stored)
    return table_source(stored)


def _n_pages(stored: RowFiles, layer_id: int, rows: NDArray[np.int64]) -> int:
    """Distinct pages of 4,096 bytes that hold a byte of these records."""
    n_pages = 0
    for part_idx, part in enumerate(stored.parts):
        spots = stored.locate(layer_id, rows, part_idx)
        first, last = spots.offsets // PAGE_BYTES, (spots.offsets + part.n_bytes - 1) // PAGE_BYTES
        for file_idx in np.unique(spots.file_idx):
            mine = spots.file_idx == file_idx
            # Rows ascend, and so do their pages: a page is counted by the first row that touches it.
            before = np.concatenate(([-1], last[mine][:-1]))
            n_pages += int((last[mine] - np.maximum(first[mine], before + 1) + 1).sum())
    return n_pages


def _kept(tally: Tally, row_bytes: int) -> NDArray[np.uint8]:
    return np.concatenate(tally.kept) if tally.kept else np.empty((0, row_bytes), np.uint8)


def _compress(table: Table, kept: NDArray[np.uint8]) -> Iterator[Compressed]:
    """The whole records, then each of their sections apart where they have several."""
    import zstandard

    if not len(kept):
        return
    sections = sections_of(table.stored.codec, kept)
    named = {"records": kept, **(sections if len(sections) > 1 else {})}
    for name, section in named.items():
        data = np.ascontiguousarray(section).data
        packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data)
        yield Compressed(section=name, n_bytes=section.size, compressed_bytes=len(packed))


def _copies(table: Table, heads: Sequence[HeadRows], tallies: Sequence[Tally]) -> tuple[list[Copies], list[SharedRows]]:
    """Rows that stand twice; those that would be named are compared byte for byte first."""
    if not heads:
        return [], []
    hashed = [
        HashedRows(
            group=head.group,
            hashes=np.concatenate(tally.hashes or [np.empty(0, np.uint64)]),
            rows=np.concatenate(tally.hashed_rows or [np.empty(0, np.int64)]),
        )
        for head, tally in zip(heads, tallies, strict=True)
    ]
    copies, shared = find_copies(hashed)
    for tally in tallies:
        tally.hashes, tally.hashed_rows = [], []
    layer_of = [head.group.layer_id for head in heads]
    is_same = _compare(table)
    sure = [
        found if all(is_same(layer, layer, pair) for pair in found.first) else Copies()
        for found, layer in zip(copies, layer_of, strict=True)
    ]
    between = [
        pairs
        for pairs in shared
        if all(is_same(layer_of[pairs.left], layer_of[pairs.right], pair) for pair in pairs.first)
    ]
    return sure, between


def _compare(table: Table) -> Callable[[int, int, tuple[int, int]], bool]:
    def is_same(layer: int, other_layer: int, pair: tuple[int, int]) -> bool:
        left = table.fetch_rows(layer, np.array([pair[0]]))
        return bool((left == table.fetch_rows(other_layer, np.array([pair[1]]))).all())

    return is_same
