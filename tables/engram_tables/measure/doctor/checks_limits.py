"""Checks of what this process may do: lock memory, open files, use addresses, write large files."""

from __future__ import annotations

import os
from pathlib import Path

from engram_tables.measure.doctor.case import Case
from engram_tables.measure.doctor.findings import Finding, Placement, Severity, could_not_look, not_applicable
from engram_tables.measure.doctor.system import Limit, Mount
from engram_tables.storage.building.writer import SHARD_BYTES
from engram_tables.units import format_bytes

# What the engines that ask the system for many reads at once would like to lock: 128 slots of 8 KiB, for each CPU.
_QUEUE_BYTES = 1 << 20
# Beside the table's files: streams, rings, the interpreter's own.
_OTHER_FILES = 32
_ENOUGH = "unlimited"


def locked_memory(case: Case) -> Finding:
    """Whether memory for rows may be locked; registered memory of io_uring counts too."""
    name, limit = "locked-memory", case.system.limits.get("Max locked memory")
    if limit is None:
        return could_not_look(name, "/proc/self/limits does not say how much may be locked")
    found = f"ulimit -l: {_bytes(limit.soft)} (hard {_bytes(limit.hard)})"
    if case.system.may_lock_any:
        found += ", and CAP_IPC_LOCK, which stands above it"
    must_lock = case.subject.is_locked and case.is_for(Placement.DRAM, Placement.CXL)
    if not must_lock and not case.is_for(Placement.NVME):
        return not_applicable(name, found, "nothing is locked: pinned memory is registered with the driver instead")
    needed = case.subject.file_bytes if must_lock else _QUEUE_BYTES
    if needed is None:
        return not_applicable(name, found, "no size to hold it against; name a table, a preset or --table-bytes")
    is_enough = case.system.may_lock_any or limit.soft is None or limit.soft >= needed
    if not is_enough and case.system.may_lock_any is None:
        return could_not_look(name, f"{found}; /proc/self/status does not say whether CAP_IPC_LOCK stands above it")
    severity = Severity.WILL_FAIL if must_lock else Severity.WILL_BE_SLOW
    remedy, command = _raise_lock(case, limit, needed)
    return Finding(
        check=name,
        severity=Severity.FINE if is_enough else severity,
        found=found,
        limit=f"at least {format_bytes(needed)}"
        + ("" if must_lock else " for a queue of reads; without it they cost more"),
        remedy=None if is_enough else remedy,
        command=None if is_enough else command,
        found_value=limit.soft,
        limit_value=needed,
        unit="B",
    )


def open_files(case: Case) -> Finding:
    """Whether every file of the table may be open twice: once by the table, once by the engine that reads past the
    page cache."""
    name, limit = "open-files", case.system.limits.get("Max open files")
    if limit is None:
        return could_not_look(name, "/proc/self/limits does not say how many files may be open")
    found = f"ulimit -n: {_count(limit.soft)} (hard {_count(limit.hard)})"
    n_files = case.subject.n_files
    if n_files is None:
        return not_applicable(name, found, "no table whose files would be opened")
    least, enough = n_files + _OTHER_FILES, 2 * n_files + _OTHER_FILES
    severity = Severity.FINE
    if case.subject.why_closed is not None or (limit.soft is not None and limit.soft < least):
        severity = Severity.WILL_FAIL
        found += f"; {case.subject.why_closed}" if case.subject.why_closed else ""
    elif limit.soft is not None and limit.soft < enough:
        severity = Severity.WILL_BE_SLOW
    is_fine = severity is Severity.FINE
    wanted = 2 * enough
    hard_too = limit.hard is not None and limit.hard < wanted
    service = case.system.service
    return Finding(
        check=name,
        severity=severity,
        found=found,
        limit=f"{enough:,} for {n_files:,} files; {least:,} open the table, and reads past the page cache need as many "
        "again",
        remedy=None if is_fine else "raise it before the process starts" + (", its hard limit too" if hard_too else "")
        + ", or build the table with larger shards",
        command=None if is_fine else _service_or(service, f"LimitNOFILE={wanted}", f"ulimit -n {wanted}"),
        found_value=limit.soft,
        limit_value=enough,
        unit="files",
    )  # fmt: skip


def address_space(case: Case) -> Finding:
    """Whether the table's files may be mapped, by the limit on addresses."""
    name, limit = "address-space", case.system.limits.get("Max address space")
    if limit is None:
        return could_not_look(name, "/proc/self/limits does not say how many addresses may be used")
    if limit.soft is None:
        return Finding(check=name, severity=Severity.FINE, found="ulimit -v: unlimited")
    used = case.system.used_addresses
    if used is None:
        found = f"ulimit -v: {format_bytes(limit.soft)}"
        return could_not_look(name, f"{found}; /proc/self/status does not say how many of them are used")
    room = max(limit.soft - used, 0)
    found = f"ulimit -v: {format_bytes(limit.soft)}, {format_bytes(room)} left"
    needed = case.subject.file_bytes
    if needed is None:
        return not_applicable(name, found, "no size to hold it against; name a table, a preset or --table-bytes")
    if case.is_for(Placement.PINNED, Placement.DRAM, Placement.CXL):
        # The files are mapped, and memory of one's own is beside them.
        needed *= 2
    is_enough = room >= needed
    # Rows that cannot be mapped are read instead; memory that cannot be had is an error.
    severity = Severity.WILL_BE_SLOW if case.is_for(Placement.NVME) else Severity.WILL_FAIL
    return Finding(
        check=name,
        severity=Severity.FINE if is_enough else severity,
        found=found,
        limit=f"at least {format_bytes(needed)}",
        remedy=None if is_enough else "lift it where the process is started",
        command=None if is_enough else "ulimit -v unlimited",
        found_value=room,
        limit_value=needed,
        unit="B",
    )


def build_room(case: Case) -> Finding:
    """Whether a table of this size may be built in a directory: room, files, and the limit on a file's length."""
    name, place = "build-room", case.subject.build_into
    if place is None:
        return not_applicable(name, "nothing is to be built", "name a directory with --build-into")
    room = case.system.room(place)
    if room is None:
        return could_not_look(name, f"{place}: its filesystem does not say how much is free")
    if not os.access(place, os.W_OK):
        return _not_writable(name, place, case.system.mount_of(place))
    needed = case.subject.file_bytes
    found = f"{format_bytes(room.free_bytes)} free in {place}"
    if needed is None:
        return not_applicable(name, found, "no size to hold it against; name a table, a preset or --table-bytes")
    needed += case.subject.beside_bytes
    files = "" if room.free_files is None else f", room for {room.free_files:,} files"
    is_enough = room.free_bytes >= needed and (room.free_files is None or room.free_files > (case.subject.n_files or 1))
    longest = case.system.limits.get("Max file size", Limit(None, None)).soft
    if longest is not None and longest < min(needed, SHARD_BYTES):
        return _short_files(name, longest, min(needed, SHARD_BYTES))
    return Finding(
        check=name,
        severity=Severity.FINE if is_enough else Severity.WILL_FAIL,
        found=found + files,
        limit=f"at least {format_bytes(needed)} for the shards, beside the source if it lies there too",
        remedy=None if is_enough else "remove files, build on another disk, or build one rank's table at a time",
        command=None if is_enough else f"df -h {place}",
        found_value=room.free_bytes,
        limit_value=needed,
        unit="B",
    )


def _not_writable(name: str, place: Path, mount: Mount | None) -> Finding:
    is_sealed = mount is not None and "ro" in mount.options
    return Finding(
        check=name,
        severity=Severity.WILL_FAIL,
        found=f"{place} is {'mounted read-only' if is_sealed else 'not for this user to write to'}",
        limit="a directory to write to",
        remedy="build elsewhere, or make it writable",
        command=f"mount -o remount,rw {mount.point}" if mount is not None and is_sealed else f"ls -ld {place}",
    )


def _short_files(name: str, longest_bytes: int, shard_bytes: int) -> Finding:
    return Finding(
        check=name,
        severity=Severity.WILL_FAIL,
        found=f"ulimit -f: no file longer than {format_bytes(longest_bytes)}",
        limit=f"shards of {format_bytes(shard_bytes)}",
        remedy="lift it where the process is started, or build with smaller shards (--shard-bytes)",
        command="ulimit -f unlimited",
        found_value=longest_bytes,
        limit_value=shard_bytes,
        unit="B",
    )


def _raise_lock(case: Case, limit: Limit, needed: int) -> tuple[str, str]:
    command = _service_or(case.system.service, "LimitMEMLOCK=infinity", "ulimit -l unlimited")
    if case.system.service is None and (limit.hard is None or limit.hard >= needed):
        return "raise the soft limit up to the hard one", f"ulimit -l {-(-needed // 1024)}"
    return (
        "raise the hard limit too: in /etc/security/limits.conf for a login, LimitMEMLOCK= for a service, --ulimit "
        "memlock=-1 for a container; a service does not inherit a shell's limits",
        command,
    )


def _service_or(service: str | None, setting: str, otherwise: str) -> str:
    return otherwise if service is None else f"systemctl edit {service}  # [Service] {setting}"


def _bytes(value: int | None) -> str:
    return _ENOUGH if value is None else format_bytes(value)


def _count(value: int | None) -> str:
    return _ENOUGH if value is None else f"{value:,}"
