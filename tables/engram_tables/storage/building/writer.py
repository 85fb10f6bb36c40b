"""Plans a table to the byte and writes it, fresh or from a source: in a work directory, and renamed when it is whole.

Whatever stops a build, what it has finished stays in the work directory beside the output, and the same plan goes on
there. The output itself appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.files import check_exchange, fsync_directory, refuse_existing, rename_directory
from engram_tables.storage.building.blocks import BlockRun, TableJob, reserve, threads_within, write_file
from engram_tables.storage.building.initialise import Init
from engram_tables.storage.building.journal import BlockKey, BuildJournal, FinishedBlock
from engram_tables.storage.building.makers import InitMaker, RecordMaker
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.table.layout import MANIFEST_NAME, VOCABULARY_NAME
from engram_tables.storage.table.manifest import BLOCK_BYTES, Manifest, VocabularyRecord
from engram_tables.storage.table.ranks import RANK_NAME
from engram_tables.storage.table.shards import plan_shards
from engram_tables.threads import resolve_threads
from engram_tables.units import Stage, format_bytes, unwatched
from engram_tables.work_directory import PLAN_NAME, WorkDirectory, work_path

if TYPE_CHECKING:
    from engram_tables.storage.codecs.fidelity import Fidelity

SHARD_BYTES = 4 * 2**30
MEMORY_BYTES = 2**30
WORK_SCHEMA = "engram.build-work/1"
COMMAND = "engram build-table"
_JOURNAL_NAME = "journal"
_GROWING_NAME = "table"
# What lies in a table of any version; `--force` removes nothing else.
_OURS = re.compile(
    rf"{re.escape(MANIFEST_NAME)}|{re.escape(VOCABULARY_NAME)}|layer-\d+(/[\w-]+-\d+-of-\d+\.safetensors)?"
    r"|bundles(/(bundles\.json|(index|ngrams)\.safetensors|layer-\d+(/order-\d+\.safetensors)?))?"
)


def rank_name(rank: int, n_ranks: int) -> str:
    """Name of a rank's directory where all ranks are written together."""
    return f"rank-{rank}-of-{n_ranks}"


class PlannedFile(NamedTuple):
    """A file of the table to be, by its path inside it."""

    path: str
    file_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """A table to be: its manifest with empty digests, and what makes its rows."""

    manifest: Manifest
    maker: RecordMaker
    vocabulary_data: bytes | None

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """Every file with its exact length."""
        files = [PlannedFile(shard.path, shard.file_bytes) for shard in self.manifest.shards]
        if self.vocabulary_data is not None:
            files.append(PlannedFile(VOCABULARY_NAME, len(self.vocabulary_data)))
        return (*files, PlannedFile(MANIFEST_NAME, len(self.manifest.to_bytes())))

    @property
    def n_rows(self) -> int:
        """Rows of all layers that the table holds."""
        owned = (self.manifest.owned_rows(layer_id) for layer_id in self.manifest.spec.layer_ids)
        return sum(stop - start for ranges in owned for start, stop in ranges)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.file_bytes for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """A finished build.

    Attributes
    ----------
    manifests
        Of every table, in the order of the plans.
    fidelity
        For each table, how far its values are from the source's; None where rows were not re-encoded.
    n_blocks, n_blocks_reused
        Of all tables; those that an earlier run had written.
    """

    manifests: tuple[Manifest, ...]
    fidelity: tuple[Fidelity | None, ...]
    n_blocks: int
    n_blocks_reused: int


def plan_table(
    spec: AddressSpec,
    *,
    codec: str,
    layout: str,
    init: str,
    seed: int = 0,
    std: str | None = None,
    row_width: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    vocabulary_file: Path | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> TablePlan:
    """The exact table that `build_table` would write, with first values.

    Parameters
    ----------
    init, seed, std
        See `initialise.Init`.
    row_width
        Values of a row, for a spec that does not say.
    shard_bytes
        Upper bound of a shard's file.
    vocabulary_file
        Copied into the table; the spec is bound to it.

    Raises
    ------
    InvalidInput
        A row width that is missing, contradicts the spec or does not suit the codec; shards that are too small.
    SpecMismatch
        The vocabulary is not the one that the spec addresses.
    """
    width = _row_width(spec, row_width)
    spec = replace(spec, row_width=width)
    row_bytes = get_codec(codec).row_bytes(width)
    spec, record, data = bind_vocabulary(spec, vocabulary_file)
    chosen = Init.make(init, row_width=width, seed=seed, std=std)
    empty = Manifest(
        spec=spec,
        codec=codec,
        layout=layout,
        row_width=width,
        row_bytes=row_bytes,
        shards=(),
        vocabulary=record,
        init=chosen.record(),
        block_bytes=block_bytes,
    )
    manifest = replace(empty, shards=tuple(plan_shards(empty, shard_bytes)))
    maker = InitMaker(chosen, codec=manifest.get_codec(), layout=manifest.get_layout(), row_width=width)
    return TablePlan(manifest=manifest, maker=maker, vocabulary_data=data)


def bind_vocabulary(spec: AddressSpec, file: Path | None) -> tuple[AddressSpec, VocabularyRecord | None, bytes | None]:
    """The spec bound to the vocabulary in `file`, what a manifest says of it, and the file's bytes.

    Raises
    ------
    SpecMismatch
        The vocabulary is not the one that the spec addresses.
    """
    if file is None:
        return spec, None, None
    from engram_tables.address.vocabulary import load_vocabulary

    vocabulary = load_vocabulary(file)
    data = file.read_bytes()
    record = VocabularyRecord(
        file_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), map_sha256=vocabulary.map_sha256
    )
    return spec.with_vocabulary(vocabulary), record, data


def build_table(
    plan: TablePlan,
    path: Path,
    *,
    force: bool = False,
    restart: bool = False,
    threads: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    stage: Stage = unwatched,
) -> BuildReport:
    """Write the table of `plan` as the directory `path`; see `build_tables`."""
    return build_tables(
        {".": plan}, path, force=force, restart=restart, threads=threads, memory_bytes=memory_bytes, stage=stage
    )


def build_tables(
    plans: Mapping[str, TablePlan],
    path: Path,
    *,
    force: bool = False,
    restart: bool = False,
    threads: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    stage: Stage = unwatched,
) -> BuildReport:
    """Write the tables of `plans` into the directory `path`, which takes its name when all are whole.

    Whatever stops the run, Ctrl-C and a full disk included, finished blocks stay in `path`.work, and a note on the
    exception says so; the same plans go on there.

    Parameters
    ----------
    plans
        By the names of their directories in `path`; `.` for a table that is `path` itself.
    force
        Replace a table that is there, in one step; one that a process has open keeps its old bytes.
    restart
        Remove the work of an earlier run first.
    threads
        Worker threads, all usable CPUs by default, fewer where `memory_bytes` asks for it; never changes a byte.
    memory_bytes
        Bound of the process's memory; files that it writes and maps are not part of it.
    stage
        Shows progress in bytes, and in n-grams while the weights of a report are made.

    Raises
    ------
    InvalidInput
        `path` is taken, or with `force` by something that is no table, or lies in a source; work of another plan; a
        source that changed since its plan was made.
    CapacityError
        The filesystem has too little room, or there is too little memory; nothing was written.
    BackendUnavailable
        With `force`, a filesystem that cannot exchange two directories.
    OSError
        Of the filesystem.
    """
    n_threads = resolve_threads(threads)
    path = Path.cwd() / path
    try:
        refuse_existing(path, force=force)
        _refuse_foreign(path)
        for maker in _makers(plans):
            for place in (path, work_path(path)):
                maker.check_output(place)
            maker.check_unchanged()
        work = WorkDirectory.open(work_path(path), _describe(plans), command=COMMAND, restart=restart)
        try:
            return _Build(plans, path, work, force=force).run(n_threads, memory_bytes, stage)
        finally:
            work.close()
    except OSError as error:
        error.add_note(f"while building the table {path}")
        raise


def _describe(plans: Mapping[str, TablePlan]) -> dict[str, Any]:
    """What must be the same for a build to go on in a work directory."""
    first = next(iter(plans.values()))
    return {
        "schema": WORK_SCHEMA,
        "fingerprint": first.manifest.spec.fingerprint,
        "codec": first.manifest.codec,
        "layout": first.manifest.layout,
        **first.maker.identity(),
        "n_tables": len(plans),
        "n_rows": sum(plan.n_rows for plan in plans.values()),
        "total_bytes": sum(plan.total_bytes for plan in plans.values()),
        "n_files": sum(len(plan.files) for plan in plans.values()),
        "tables_sha256": hashlib.sha256(
            b"".join(name.encode() + b"\0" + plan.manifest.to_bytes() for name, plan in plans.items())
        ).hexdigest(),
    }


class _Build:
    """One build inside its work directory."""

    def __init__(self, plans: Mapping[str, TablePlan], path: Path, work: WorkDirectory, *, force: bool) -> None:
        self._plans = plans
        self._path = path
        self._work = work
        self._force = force
        self._growing = work.path / _GROWING_NAME
        self._journal_path = work.path / _JOURNAL_NAME
        self._finished: Mapping[BlockKey, FinishedBlock] = {}
        self._jobs = [TableJob(plan.manifest, plan.maker, self._growing / name) for name, plan in plans.items()]
        self._n_blocks = sum(len(shard.block_sha256) for job in self._jobs for shard in job.manifest.shards)

    def run(self, n_threads: int, memory_bytes: int, stage: Stage) -> BuildReport:
        """Carry it out; the work directory is gone afterwards, or holds what is finished."""
        try:
            if not self._growing.exists():
                self._journal_path.unlink(missing_ok=True)
            with BuildJournal(self._journal_path) as journal:
                self._finished = journal.finished
                if self._force and self._path.exists():
                    check_exchange(self._work.partial, self._path)
                self._check_room()
                n_threads = threads_within(self._jobs, memory_bytes, n_threads)
                self._make_room()
                report = self._write(journal, n_threads, stage)
            self._give_name()
        except BaseException as error:
            self._keep_finished(error)
            raise
        fsync_directory(self._path.parent)
        self._clear_up()
        return report

    def _write(self, journal: BuildJournal, n_threads: int, stage: Stage) -> BuildReport:
        for maker in _makers(self._plans):
            maker.prepare(self._work.partial, threads=n_threads, stage=stage)
        with stage("building", "B") as progress:
            blocks = BlockRun(self._jobs, journal, progress)
            shards_of = blocks.run(n_threads)
        for maker in _makers(self._plans):
            maker.check_unchanged()
        manifests = tuple(
            replace(job.manifest, shards=shards) for job, shards in zip(self._jobs, shards_of, strict=True)
        )
        for plan, job, manifest in zip(self._plans.values(), self._jobs, manifests, strict=True):
            if plan.vocabulary_data is not None:
                write_file(job.directory / VOCABULARY_NAME, plan.vocabulary_data)
            for directory in _directories(job):
                fsync_directory(directory)
            write_file(job.directory / MANIFEST_NAME, manifest.to_bytes())
            fsync_directory(job.directory)
        fsync_directory(self._growing)
        return BuildReport(
            manifests=manifests,
            fidelity=tuple(blocks.fidelity(table_idx) for table_idx in range(len(self._jobs))),
            n_blocks=self._n_blocks,
            n_blocks_reused=blocks.n_reused,
        )

    def _check_room(self) -> None:
        status = os.statvfs(self._work.path)
        free_bytes = status.f_bavail * status.f_frsize
        there = (path.stat() for path in self._growing.rglob("*") if path.is_file())
        needed_bytes = sum(plan.total_bytes for plan in self._plans.values()) - sum(s.st_blocks * 512 for s in there)
        if needed_bytes > free_bytes:
            raise CapacityError(
                f"{self._path.parent}: found {format_bytes(free_bytes)} free, expected {format_bytes(needed_bytes)} "
                "for this table; free some space, choose another disk or a smaller codec"
            )

    def _make_room(self) -> None:
        """Directories and files of their whole length; those that an earlier run made stay."""
        self._growing.mkdir(exist_ok=True)
        for job in self._jobs:
            for directory in (job.directory, *_directories(job)):
                if directory.is_symlink():
                    # Nothing of ours: its blocks would be written elsewhere.
                    directory.unlink()
                directory.mkdir(exist_ok=True)
            for name in (MANIFEST_NAME, VOCABULARY_NAME):
                (job.directory / name).unlink(missing_ok=True)
            for shard in job.manifest.shards:
                reserve(job.directory / shard.path, shard.file_bytes)

    def _give_name(self) -> None:
        # Under the place of half-done files first: what an exchange leaves there is removed by whoever comes, and
        # never taken for the growing table and written into.
        aside = self._work.partial / _GROWING_NAME
        self._growing.rename(aside)
        inode = aside.stat().st_ino
        try:
            rename_directory(aside, self._path, force=self._force)
        except BaseException:
            if not self._path.exists() or self._path.stat().st_ino != inode:
                aside.rename(self._growing)
                raise
            # The signal came after the exchange.
            self._clear_up()
            raise

    def _clear_up(self) -> None:
        """Remove the work directory; what a killed process leaves of it is in nobody's way."""
        for name in (_JOURNAL_NAME, PLAN_NAME):
            with suppress(OSError):
                (self._work.path / name).unlink(missing_ok=True)
        self._work.remove()

    def _keep_finished(self, error: BaseException) -> None:
        """Leave what a later run can use, or nothing, and say which in a note on `error`."""
        if not self._work.path.exists():
            return
        if not self._finished or not self._growing.exists():
            self._work.remove()
            return
        self._work.drop_partial()
        error.add_note(
            f"{len(self._finished):,} of {self._n_blocks:,} blocks are finished and stay in {self._work.path}; the "
            "same command goes on there, and --restart begins anew"
        )


def _makers(plans: Mapping[str, TablePlan]) -> list[RecordMaker]:
    """Each maker once: ranks share one."""
    return list({id(plan.maker): plan.maker for plan in plans.values()}.values())


def _directories(job: TableJob) -> list[Path]:
    return sorted({(job.directory / shard.path).parent for shard in job.manifest.shards})


def _row_width(spec: AddressSpec, row_width: int | None) -> int:
    if spec.row_width is None and row_width is None:
        raise InvalidInput(
            f"spec {spec.name}: it does not say how many values a row has; give the row width (--row-width)"
        )
    if None not in (spec.row_width, row_width) and spec.row_width != row_width:
        raise InvalidInput(
            f"row width: found {row_width}, expected {spec.row_width} as in spec {spec.name}; drop the option"
        )
    width = row_width if spec.row_width is None else spec.row_width
    return int(width or 0)


def _refuse_foreign(path: Path) -> None:
    """`force` removes what is at `path`: let that be a table, a directory of ranks' tables, or an empty directory."""
    if not path.exists() and not path.is_symlink():
        return
    is_directory = path.is_dir() and not path.is_symlink()
    if not is_directory or not (_is_table(path) or all(_is_rank(entry) for entry in path.iterdir())):
        raise InvalidInput(
            f"{path}: found something that is no table ({MANIFEST_NAME} is not in it), expected one to replace; "
            "remove it yourself or choose another name"
        )
    for table in (path,) if _is_table(path) else sorted(path.iterdir()):
        for entry in sorted(table.rglob("*")):
            if _OURS.fullmatch(str(entry.relative_to(table))) is None or entry.is_symlink():
                raise InvalidInput(
                    f"{entry}: found in the table that would be replaced, expected its own files alone; move it away, "
                    "or choose another name"
                )


def _is_table(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and (path / MANIFEST_NAME).is_file()


def _is_rank(path: Path) -> bool:
    return RANK_NAME.fullmatch(path.name) is not None and _is_table(path)
