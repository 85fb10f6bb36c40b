"""Is every byte of a table what it should be? Against its manifest, against its source, and among its ranks.

Opening a table checks manifest, headers and vocabulary; this reads the rows as well and says where damage lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.storage.bundles.checking import BundleCheck, BundlesReport, find_bundles
from engram_tables.storage.bundles.files import BundleDirectory
from engram_tables.storage.checking.compare_reports import Measure, RowsReport, common_rows, rows_without
from engram_tables.storage.checking.compare_rows import compare_rows
from engram_tables.storage.checking.verify_blocks import BlockCheck, DamagedBlock
from engram_tables.storage.extents import n_rows_of
from engram_tables.storage.sources.source import Source
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.ranks import Rank, check_ranks
from engram_tables.storage.table.reader import StoredTable
from engram_tables.storage.table.table_source import table_source
from engram_tables.threads import resolve_threads
from engram_tables.units import ProgressHook, canonical_json


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRange:
    """Half-open, numbered within the layer."""

    layer_id: int
    start_row: int
    stop_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstReport:
    """A table's rows held against a source.

    Attributes
    ----------
    where, form, codec
        Of the source.
    rows
        Left is the source, right the table.
    missing
        Rows of the table that the source does not have, and that nothing was held against.
    """

    where: str
    form: str
    codec: str
    rows: RowsReport
    missing: tuple[RowRange, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every row, or every row of the sample, is the source's."""
        return not self.rows.n_rows_different and not self.missing


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReport:
    """One table; `damaged` is in the order of its files, `rank` None for a table of all rows, `bundles` None where it
    has none."""

    path: str
    rank: Rank | None
    n_rows: int
    n_blocks: int
    n_blocks_read: int
    table_bytes: int
    bytes_read: int
    damaged: tuple[DamagedBlock, ...]
    against: AgainstReport | None
    bundles: BundlesReport | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing was found; for a sample, nothing in the sample."""
        are_bundles_whole = self.bundles is None or self.bundles.is_whole
        return not self.damaged and are_bundles_whole and (self.against is None or self.against.is_equal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlike:
    """Something of a rank's table that differs from the first one's: they are ranks of different tables."""

    path: str
    what: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotOwnedOnce:
    """Rows that no table of the set holds, or more than one; half-open, numbered within the layer."""

    layer_id: int
    start_row: int
    stop_row: int
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksReport:
    """Ranks' tables as a set; `rows` speaks of the tables whose spec is the first one's."""

    n_tables: int
    unlike: tuple[Unlike, ...]
    rows: tuple[NotOwnedOnce, ...]

    @property
    def is_complete(self) -> bool:
        """Whether they are ranks of one table, and every row belongs to exactly one."""
        return not self.unlike and not self.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """Tables in the order they were given; `ranks` is None unless several were given and one is a rank's."""

    tables: tuple[TableReport, ...]
    ranks: RanksReport | None

    @property
    def is_whole(self) -> bool:
        """Whether nothing was found; for a sample, nothing in the sample."""
        return all(table.is_whole for table in self.tables) and (self.ranks is None or self.ranks.is_complete)


def verify_table(
    path: str | Path,
    *,
    sample: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: ProgressHook | None = None,
) -> TableReport:
    """`verify_tables` of one table, against its manifest alone."""
    return verify_tables([path], sample=sample, seed=seed, threads=threads, progress=progress).tables[0]


def verify_tables(
    paths: Sequence[str | Path],
    *,
    against: Source | None = None,
    sample: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: ProgressHook | None = None,
) -> VerifyReport:
    """Hash the blocks of every shard; prove ranks disjoint and complete; hold rows against their source.

    Parameters
    ----------
    paths
        Directories of tables. Where one of several is a rank's, all are held together to be the ranks of one table.
    against
        What the tables were made from, or should be equal to; a table as well, by `table_source`. Rows are compared
        by their bytes: as they are where the codecs are the same, else after decoding by the source's codec and
        encoding by the table's.
    sample
        How many blocks of each table to hash, and how many of its rows to compare, chosen by `seed`; all by default.
    progress
        Called with bytes, of tables and source together.

    Raises
    ------
    TableError
        A path does not open as a table.
    SpecMismatch
        The source addresses other rows than a table.
    InvalidInput
        `sample` is less than 1; the source's rows cannot be encoded in a table's codec.

    Notes
    -----
    Spare bytes and headers belong to blocks and are covered by their digests. Bundles in a table's directory are hashed
    too, and held against the rows of their n-grams.
    """
    if sample is not None and sample < 1:
        raise InvalidInput(f"sample: found {sample}, expected 1 block or more; leave it out to read every block")
    n_threads = resolve_threads(threads)
    with ExitStack() as stack:
        tables = [stack.enter_context(StoredTable(path)) for path in paths]
        measures = [None if against is None else _measure(against, table) for table in tables]
        checks = [BlockCheck(table, sample=sample, seed=seed) for table in tables]
        compared = [0 if against is None else _bytes_to_compare(against, table, sample) for table in tables]
        bundles = [_bundle_check(stack, table, sample, seed) for table in tables]
        total_bytes = sum(check.total_bytes for check in checks) + sum(compared)
        total_bytes += sum(check.total_bytes for check in bundles if check is not None)
        steps = _Steps(total_bytes, progress)
        reports = []
        for table, check, bundled, measure, n_bytes in zip(tables, checks, bundles, measures, compared, strict=True):
            check.run(threads=n_threads, progress=steps.next(check.total_bytes))
            held = None
            if against is not None and measure is not None:
                hook = steps.next(n_bytes)
                held = _hold_against(against, table, measure, sample, seed, n_threads, hook)
            found = None
            if bundled is not None:
                found = bundled.run(threads=n_threads, progress=steps.next(bundled.total_bytes))
            reports.append(_table_report(table, check, held, found))
        return VerifyReport(tables=tuple(reports), ranks=_ranks_report(tables))


class _Steps:
    """Several passes as one progress."""

    def __init__(self, total_bytes: int, progress: ProgressHook | None) -> None:
        self._total_bytes, self._progress = total_bytes, progress
        self._done_bytes = 0

    def next(self, step_bytes: int) -> Callable[[int, int], None] | None:
        """The hook of the next pass, of `step_bytes`."""
        before, progress = self._done_bytes, self._progress
        self._done_bytes += step_bytes
        if progress is None:
            return None
        return lambda done, _total: progress(before + done, self._total_bytes)


def _bundle_check(stack: ExitStack, table: StoredTable, sample: int | None, seed: int) -> BundleCheck | None:
    """The check of the bundles in the table's directory, if there are some."""
    found = find_bundles(table)
    return None if found is None else BundleCheck(stack.enter_context(found), table, sample=sample, seed=seed)


def verify_bundles(
    path: str | Path,
    *,
    sample: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: ProgressHook | None = None,
) -> BundlesReport:
    """Hash the blocks of a directory of bundles by itself; raises as `BundleDirectory`."""
    with BundleDirectory(path) as bundles:
        check = BundleCheck(bundles, None, sample=sample, seed=seed)
        return check.run(threads=resolve_threads(threads), progress=progress)


def _table_report(
    table: StoredTable, check: BlockCheck, against: AgainstReport | None, bundles: BundlesReport | None
) -> TableReport:
    return TableReport(
        path=str(table.path),
        rank=table.manifest.rank,
        n_rows=n_rows_of({layer_id: table.owned(layer_id) for layer_id in table.layer_ids}),
        n_blocks=check.n_blocks,
        n_blocks_read=check.n_blocks_read,
        table_bytes=sum(shard.file_bytes for shard in table.manifest.shards),
        bytes_read=check.total_bytes,
        damaged=check.damaged,
        against=against,
        bundles=bundles,
    )


def _measure(against: Source, table: StoredTable) -> Measure:
    """How rows are compared; raises where they cannot be."""
    if against.spec.fingerprint != table.spec.fingerprint:
        raise SpecMismatch(
            f"{table.path}: found the addressing {table.spec.fingerprint}, expected {against.spec.fingerprint} as "
            f"{against.where} has; hold the table against what it was made from"
        )
    if against.codec == table.codec and against.row_bytes == table.row_bytes:
        return Measure.BYTES
    same_width = against.spec.row_width == table.spec.row_width
    if not (same_width and against.codec.can_decode and table.codec.can_encode):
        raise InvalidInput(
            f"{table.path}: found rows of {table.row_bytes} bytes in codec {table.codec.name}, expected what rows of "
            f"{against.row_bytes} bytes in codec {against.codec.name} of {against.where} can become; hold the table "
            "against what it was made from"
        )
    return Measure.RECODED


def _bytes_to_compare(against: Source, table: StoredTable, sample: int | None) -> int:
    n_rows = sum(
        n_rows_of({layer_id: common_rows(table.owned(layer_id), against.owned(layer_id))})
        for layer_id in table.layer_ids
    )
    return min(n_rows, sample or n_rows) * (against.row_bytes + table.row_bytes)


def _hold_against(
    against: Source,
    table: StoredTable,
    measure: Measure,
    sample: int | None,
    seed: int,
    threads: int,
    progress: ProgressHook | None,
) -> AgainstReport:
    owned = {layer_id: (table.owned(layer_id), against.owned(layer_id)) for layer_id in table.layer_ids}
    rows = compare_rows(
        against,
        table_source(table),
        {layer_id: common_rows(*both) for layer_id, both in owned.items()},
        measure=measure,
        sample=sample,
        seed=seed,
        threads=threads,
        progress=progress,
    )
    missing = (
        RowRange(layer_id=layer_id, start_row=start, stop_row=stop)
        for layer_id, both in owned.items()
        for start, stop in rows_without(*both)
    )
    return AgainstReport(
        where=against.where, form=against.form, codec=against.codec.name, rows=rows, missing=tuple(missing)
    )


def _ranks_report(tables: Sequence[StoredTable]) -> RanksReport | None:
    if len(tables) < 2 or all(table.manifest.owned is None for table in tables):
        return None
    expected = _identity(tables[0].manifest)
    unlike = [
        Unlike(path=str(table.path), what=what, expected=expected[what], found=found)
        for table in tables[1:]
        for what, found in _identity(table.manifest).items()
        if found != expected[what]
    ]
    same = [table for table in tables if table.spec.fingerprint == tables[0].spec.fingerprint]
    owned = [{layer_id: table.owned(layer_id) for layer_id in table.layer_ids} for table in same]
    rows = (
        NotOwnedOnce(
            layer_id=gap.layer_id,
            start_row=gap.start,
            stop_row=gap.stop,
            paths=tuple(str(same[k].path) for k in gap.owners),
        )
        for gap in check_ranks(tables[0].spec, owned)
    )
    return RanksReport(n_tables=len(tables), unlike=tuple(unlike), rows=tuple(rows))


def _identity(manifest: Manifest) -> dict[str, str]:
    """What all ranks of a table share, as texts."""
    rank = manifest.rank
    return {
        "fingerprint": manifest.spec.fingerprint,
        "codec": manifest.codec,
        "codec_scale": str(manifest.codec_scale),
        "layout": manifest.layout,
        "row_width": str(manifest.row_width),
        "divided": "not at all" if rank is None else f"by {rank.by} into {rank.n_ranks}",
        "vocabulary": "none" if manifest.vocabulary is None else manifest.vocabulary.map_sha256,
        "init": _digest(manifest.init),
        "source": _digest(manifest.source),
    }


def _digest(entry: Mapping[str, Any] | None) -> str:
    """A short text for an entry that may be long."""
    return "none" if entry is None else hashlib.sha256(canonical_json(dict(entry))).hexdigest()
