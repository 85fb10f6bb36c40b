"""What a machine is looked at for: a table that is there, one that is still to be built, or none; and where it is put.

It reads a manifest and opens files; it judges nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engram_tables.errors import InvalidInput
from engram_tables.fetch.gpu.records import STRIDE_UNIT_BYTES, Layout
from engram_tables.fetch.table import Table, open_table
from engram_tables.measure.doctor.findings import Placement
from engram_tables.measure.doctor.system import System
from engram_tables.storage.building.writer import SHARD_BYTES
from engram_tables.storage.bundles.bundle_manifest import DIRECTORY_NAME as BUNDLES_NAME
from engram_tables.storage.extents import n_rows_of
from engram_tables.storage.row_files import RowFiles
from engram_tables.storage.table.layout import MANIFEST_NAME, VOCABULARY_NAME
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.reader import StoredTable
from engram_tables.units import PAGE_BYTES

# What a process takes beside rows: 216 MiB with every engine open (2-core VM, 2026-11), and room to work in.
PROCESS_BYTES = 512 << 20
LEAST_TABLE_BYTES = PAGE_BYTES
"""What a table without a row takes: its headers fill a page. Less is a number whose unit was forgotten."""
MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "hugetlbfs", "devtmpfs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is asked about.

    Attributes
    ----------
    path
        The table or checkpoint; None where there is none yet.
    files
        One file of the table on each filesystem that holds some of them, the first file's first: a checkpoint's path
        may hold links to files elsewhere.
    bundles
        The directory of bundles in the table's; None where there is none.
    file_bytes
        Of all its files; None where nobody said.
    device_bytes
        Of its records at the stride that kernels read them at; None likewise.
    beside_bytes
        What building it takes beside the rows' files: vocabulary, manifest, and a journal of about its length.
    n_files
        Of a table that is not there yet, as many as shards of the default size make. None where nobody said.
    build_into
        A directory in which a table of this size would be built.
    is_locked
        Whether memory that holds rows will be locked.
    why_closed
        Why the table's files did not open, where a limit of the process was the reason.
    """

    path: Path | None = None
    files: tuple[Path, ...] = ()
    bundles: Path | None = None
    file_bytes: int | None = None
    device_bytes: int | None = None
    beside_bytes: int = 0
    n_files: int | None = None
    build_into: Path | None = None
    is_locked: bool = False
    why_closed: str | None = None

    @property
    def place(self) -> Path | None:
        """What lies on the filesystem and the device that are asked about, the first file's where there are several."""
        return next(iter(self.files), None) or self.path or self.build_into

    def is_in_memory(self, system: System) -> bool:
        """Whether all files lie in memory already."""
        places = self.files or (() if self.path is None else (self.path,))
        mounts = [system.mount_of(place) for place in places]
        return bool(mounts) and all(mount is not None and mount.filesystem in MEMORY_FILESYSTEMS for mount in mounts)

    def host_bytes(self, system: System, placement: Placement) -> int | None:
        """Host memory that a placement takes and that is not taken yet, the process's own included."""
        match placement:
            case Placement.NVME | Placement.GPU:
                return PROCESS_BYTES
            case Placement.PINNED:
                rows = self.device_bytes
            case _:
                rows = 0 if self.is_in_memory(system) and placement is not Placement.CXL else self.file_bytes
        return None if rows is None else rows + PROCESS_BYTES


def open_subject(path: Path, *, build_into: Path | None, is_locked: bool) -> tuple[Subject, Table | None]:
    """A table's or checkpoint's sizes, and the table itself, open; None where the process may not open so many files.

    Raises
    ------
    TableError
        Neither a table nor a checkpoint, or a damaged one.
    OSError
        Any other refusal of the system.
    """
    try:
        # Bundles are a check of their own: those of another table would keep this one from opening.
        table = open_table(path, bundles=False)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE) or not (path / MANIFEST_NAME).is_file():
            raise
        return replace(_of_manifest(path, str(error)), build_into=build_into, is_locked=is_locked), None
    return replace(_of_stored(path, table.stored), build_into=build_into, is_locked=is_locked), table


def of_size(
    file_bytes: int | None, *, n_rows: int | None = None, row_bytes: int | None = None, build_into: Path | None,
    is_locked: bool,
) -> Subject:  # fmt: skip
    """A table that is not there yet, by the bytes of its files or its rows. Rows lead where both are given.

    Raises
    ------
    InvalidInput
        Less than the smallest table with digests and headers could be: a size without its unit.
    """
    if file_bytes is not None and file_bytes < LEAST_TABLE_BYTES:
        raise InvalidInput(
            f"table bytes: found {file_bytes:,}, less than any table has ({LEAST_TABLE_BYTES:,}), expected the bytes "
            f"of all rows; name the unit, as {file_bytes}GB"
        )
    device_bytes = file_bytes
    if n_rows is not None and row_bytes is not None:
        file_bytes, device_bytes = n_rows * row_bytes, n_rows * _stride(row_bytes)
    return Subject(
        file_bytes=file_bytes,
        device_bytes=device_bytes,
        n_files=None if file_bytes is None else -(-file_bytes // SHARD_BYTES),
        build_into=build_into,
        is_locked=is_locked,
    )


def _of_stored(path: Path, stored: RowFiles) -> Subject:
    n_rows = n_rows_of({layer_id: stored.owned(layer_id) for layer_id in stored.layer_ids})
    beside = [path / name for name in (MANIFEST_NAME, MANIFEST_NAME, VOCABULARY_NAME)]
    bundles = path / BUNDLES_NAME
    return Subject(
        path=path,
        files=_one_of_each_filesystem([file.path for file in stored.files]),
        bundles=bundles if isinstance(stored, StoredTable) and bundles.is_dir() else None,
        file_bytes=sum(file.file_bytes for file in stored.files),
        device_bytes=n_rows * Layout.of_stored(stored).stride_bytes,
        beside_bytes=sum(file.stat().st_size for file in beside if file.is_file()),
        n_files=len(stored.files),
    )


def _one_of_each_filesystem(files: Sequence[Path]) -> tuple[Path, ...]:
    """The first file on each, in their order."""
    found: dict[int, Path] = {}
    for file in files:
        found.setdefault(file.stat().st_dev, file)
    return tuple(found.values())


def _of_manifest(path: Path, why_closed: str) -> Subject:
    manifest = Manifest.from_bytes((path / MANIFEST_NAME).read_bytes(), path=str(path / MANIFEST_NAME))
    n_rows = sum(shard.n_rows for shard in manifest.shards if manifest.part_idx(shard.part) == 0)
    return Subject(
        path=path,
        file_bytes=sum(shard.file_bytes for shard in manifest.shards),
        device_bytes=n_rows * _stride(manifest.row_bytes),
        n_files=len(manifest.shards),
        why_closed=why_closed,
    )


def _stride(row_bytes: int) -> int:
    return -(-row_bytes // STRIDE_UNIT_BYTES) * STRIDE_UNIT_BYTES
