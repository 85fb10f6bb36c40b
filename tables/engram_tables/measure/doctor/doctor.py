"""All checks of one machine for one table and one placement, as a record. It changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from engram_tables.errors import InvalidInput
from engram_tables.fetch.table import Table
from engram_tables.measure.doctor import checks_files, checks_limits, checks_memory, checks_nodes, checks_processors
from engram_tables.measure.doctor.case import Case
from engram_tables.measure.doctor.findings import Finding, Placement, Severity, worst
from engram_tables.measure.doctor.subject import Subject, of_size, open_subject
from engram_tables.measure.doctor.system import System
from engram_tables.measure.doctor.tries import Tries
from engram_tables.measure.environment import command_line, describe

CHECKS: tuple[Callable[[Case], Finding], ...] = (
    checks_memory.available_memory,
    checks_memory.cgroup_memory,
    checks_memory.swap,
    checks_memory.overcommit,
    checks_memory.transparent_huge_pages,
    checks_nodes.shared_memory,
    checks_nodes.memory_nodes,
    checks_nodes.zone_reclaim,
    checks_limits.locked_memory,
    checks_limits.open_files,
    checks_memory.mappings,
    checks_limits.address_space,
    checks_files.filesystem,
    checks_files.bundles,
    checks_files.any_reads,
    checks_files.direct_reads,
    checks_files.io_uring,
    checks_files.libaio,
    checks_files.read_ahead,
    checks_files.scheduler,
    checks_files.queue_depth,
    checks_files.rotational,
    checks_processors.governor,
    checks_processors.stolen_time,
    checks_processors.cpu_quota,
    checks_processors.gpu,
    checks_processors.gpu_memory,
    checks_processors.host_registration,
    checks_limits.build_room,
)


def examine(system: System, subject: Subject, placement: Placement, tries: Tries) -> list[Finding]:
    """The findings of every check, in their order."""
    case = Case(system=system, subject=subject, placement=placement, tries=tries)
    return [check(case) for check in CHECKS]


def diagnose(
    path: Path | None = None,
    *,
    placement: Placement | None = None,
    table_bytes: int | None = None,
    n_rows: int | None = None,
    row_bytes: int | None = None,
    build_into: Path | None = None,
    is_locked: bool = False,
) -> dict[str, Any]:
    """What of this machine will fail or slow down a table in a placement.

    Parameters
    ----------
    path
        A table or a checkpoint; its files are opened and a record of each is read.
    placement
        Where rows are put. None: `shm` where the files lie in memory already, `nvme` otherwise.
    table_bytes
        Of a table that is not there yet; or `n_rows` and `row_bytes`.
    build_into
        A directory in which a table of this size would be built.
    is_locked
        Whether memory for rows will be locked (`MemoryTier.is_locked`).

    Returns
    -------
    A record `engram.doctor/1`.

    Raises
    ------
    InvalidInput
        `build_into` is no directory.
    TableError
        `path` is neither a table nor a checkpoint, or a damaged one.
    OSError
        Its files cannot be opened, but for a limit on open files, which is a finding.

    Notes
    -----
    Nothing is written or set. Time: opening the table, one record of each file by each engine that `auto` reads with,
    and a quarter of a second in which stolen time is watched.
    """
    if build_into is not None and not build_into.is_dir():
        raise InvalidInput(
            f"{build_into}: found no directory, expected one in which a table would be built; name another"
        )
    system = System()
    system.look()
    environment = describe()
    table: Table | None = None
    if path is None:
        subject = of_size(table_bytes, n_rows=n_rows, row_bytes=row_bytes, build_into=build_into, is_locked=is_locked)
    else:
        subject, table = open_subject(path, build_into=build_into, is_locked=is_locked)
    with table or nullcontext():
        return record_of(system, subject, placement, Tries(table, system), environment)


def record_of(
    system: System, subject: Subject, placement: Placement | None, tries: Tries, environment: dict[str, Any]
) -> dict[str, Any]:
    """The record of one placement's findings, and what the others would come to; `environment` as `describe` has it."""
    if placement is None:
        placement = Placement.SHM if subject.is_in_memory(system) else Placement.NVME
    findings = examine(system, subject, placement, tries)
    counted = Counter(finding.severity for finding in findings)
    return {
        "schema": "engram.doctor/1",
        "command": command_line(),
        "environment": environment,
        "table": None if subject.path is None else str(subject.path),
        "file_bytes": subject.file_bytes,
        "device_bytes": subject.device_bytes,
        "n_files": subject.n_files,
        "build_into": None if subject.build_into is None else str(subject.build_into),
        "is_locked": subject.is_locked,
        "placement": placement,
        "host_bytes": subject.host_bytes(system, placement),
        "verdict": worst(findings),
        "n_checks": {severity: counted.get(severity, 0) for severity in Severity},
        "checks": [asdict(finding) for finding in findings],
        "other_placements": [_outlook(system, subject, other, tries) for other in Placement if other is not placement],
    }


def _outlook(system: System, subject: Subject, placement: Placement, tries: Tries) -> dict[str, Any]:
    findings = examine(system, replace(subject, build_into=None), placement, tries)
    verdict = worst(findings)
    checks = [finding.check for finding in findings if finding.severity is verdict is not Severity.FINE]
    return {"placement": placement, "verdict": verdict, "because": checks}
