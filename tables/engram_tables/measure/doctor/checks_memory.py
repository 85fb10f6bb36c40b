"""Checks of memory: how much there is, who limits it, what it consists of."""

from __future__ import annotations

from engram_tables.measure.doctor.case import Case
from engram_tables.measure.doctor.findings import (
    Finding,
    Placement,
    Severity,
    at_least_bytes,
    could_not_look,
    not_applicable,
)
from engram_tables.measure.doctor.system import Mount
from engram_tables.units import format_bytes

_THP = "/sys/kernel/mm/transparent_hugepage"
_STRICT = 2
# Below this share of the machine's memory left free, the kernel begins to swap and to give up pages of files.
_MARGIN = 0.1
# By batch: every engine maps each file once, and a view of it again where it asks what is in memory.
_MAPPINGS_A_FILE = 3
_HOLDS_ROWS = (Placement.PINNED, Placement.SHM, Placement.DRAM, Placement.CXL)
_NOT_ROWS = "rows stay in files"


def available_memory(case: Case) -> Finding:
    """Whether the rows fit into what programs may still take."""
    found = case.system.memory.get("MemAvailable")
    if found is None:
        return could_not_look("memory-available", "/proc/meminfo does not say what is available")
    spare, needed = _spare_bytes(case), case.host_bytes
    remedy = "end other programs, take a machine with more, split the table over ranks, or leave rows on nvme"
    command = None
    if needed is not None and found < needed <= found + spare:
        remedy = f"give back {format_bytes(spare)} that are set aside as huge pages, which rows do not use"
        command = "sysctl -w vm.nr_hugepages=0"
    return at_least_bytes("memory-available", found, needed, "available", remedy=remedy, command=command)


def cgroup_memory(case: Case) -> Finding:
    """Whether the control groups around this process let it take as much."""
    limits = case.system.cgroup_memory
    if limits is None:
        return could_not_look("memory-cgroup", "the control groups of this process or their limits cannot be read")
    if not limits:
        return Finding(check="memory-cgroup", severity=Severity.FINE, found="no control group limits memory")
    needed = case.host_bytes
    hard = min((limit for limit in limits if limit.is_hard), key=lambda limit: limit.room_bytes, default=None)
    soft = min((limit for limit in limits if not limit.is_hard), key=lambda limit: limit.room_bytes, default=None)
    short = soft if hard is None or (soft is not None and needed is not None and hard.room_bytes >= needed) else hard
    assert short is not None
    what = f"left of {format_bytes(short.limit_bytes)} that {short.path} allows"
    remedy = "raise the limit where the group is made: `docker run --memory`, a pod's resources.limits.memory"
    command = None
    if case.system.service is not None:
        remedy = f"raise the limit of the service {case.system.service}"
        command = f"systemctl set-property {case.system.service} MemoryMax=infinity MemoryHigh=infinity"
    return at_least_bytes(
        "memory-cgroup", short.room_bytes, needed, what, remedy=remedy, command=command,
        otherwise=Severity.WILL_FAIL if short.is_hard else Severity.WILL_BE_SLOW,
    )  # fmt: skip


def swap(case: Case) -> Finding:
    """Whether rows in memory may end up on disk."""
    memory = case.system.memory
    total, needed = memory.get("SwapTotal"), case.host_bytes
    if total is None:
        return could_not_look("memory-swap", "/proc/meminfo does not say whether there is swap")
    found = f"{format_bytes(total)} of swap, {format_bytes(total - memory.get('SwapFree', 0))} used"
    if not case.is_for(*_HOLDS_ROWS) or needed is None:
        return not_applicable("memory-swap", found, _NOT_ROWS if needed is not None else "no size to hold it against")
    if "MemAvailable" not in memory or "MemTotal" not in memory:
        return could_not_look("memory-swap", f"{found}; /proc/meminfo does not say what is left beside rows")
    left = memory["MemAvailable"] - needed
    margin = int(memory["MemTotal"] * _MARGIN)
    is_tight = total > 0 and left < margin and not case.subject.is_locked
    return Finding(
        check="memory-swap",
        severity=Severity.WILL_BE_SLOW if is_tight else Severity.FINE,
        found=f"{found}; {format_bytes(max(left, 0))} of memory left beside the rows",
        limit=f"no swap, locked memory, or {format_bytes(margin)} left",
        remedy="lock the tier (`is_locked`), leave more memory free, or turn swap off" if is_tight else None,
        command="swapoff -a" if is_tight else None,
        found_value=max(left, 0),
        limit_value=margin,
        unit="B",
    )


def overcommit(case: Case) -> Finding:
    """Whether the system promises as much memory in one piece."""
    mode = case.system.integer("/proc/sys/vm/overcommit_memory")
    memory, needed = case.system.memory, case.host_bytes
    if mode is None:
        return could_not_look("memory-overcommit", "vm.overcommit_memory cannot be read")
    if mode == 1:
        return Finding(check="memory-overcommit", severity=Severity.FINE, found="vm.overcommit_memory is 1: no limit")
    wanted = ("CommitLimit", "Committed_AS") if mode == _STRICT else ("MemTotal",)
    if any(name not in memory for name in wanted):
        return could_not_look("memory-overcommit", f"/proc/meminfo does not say {' and '.join(wanted)}")
    if mode == _STRICT:
        room = max(memory["CommitLimit"] - memory["Committed_AS"], 0)
        what = "left that may be promised, with vm.overcommit_memory 2"
        remedy, command = (
            "let the system promise more, or raise vm.overcommit_ratio",
            "sysctl -w vm.overcommit_memory=0",
        )
    else:
        room = memory["MemTotal"] + memory.get("SwapTotal", 0)
        what = "in all, the most that vm.overcommit_memory 0 promises at once"
        remedy, command = "take a machine with more memory, or split the table over ranks", None
    return at_least_bytes("memory-overcommit", room, needed, what, remedy=remedy, command=command)


def transparent_huge_pages(case: Case) -> Finding:
    """Whether memory for rows gets huge pages: 1.5 to 2.2 times as many rows a second (measured)."""
    name = "memory-huge-pages"
    if case.is_for(Placement.SHM):
        return _shared_huge_pages(case, name)
    found = case.system.chosen(f"{_THP}/enabled")
    if not case.is_for(Placement.PINNED, Placement.DRAM, Placement.CXL):
        return not_applicable(name, f"transparent huge pages: {found or 'not told'}", _NOT_ROWS)
    if found is None:
        return could_not_look(name, f"{_THP}/enabled cannot be read: this kernel may have none")
    is_off = found == "never"
    spare = _spare_bytes(case)
    return Finding(
        check=name,
        severity=Severity.WILL_BE_SLOW if is_off else Severity.FINE,
        found=f"transparent huge pages: {found}"
        + (f"; {format_bytes(spare)} set aside as huge pages of their own, which rows do not use" if spare else ""),
        limit="madvise or always",
        remedy="let programs ask for huge pages; rows are read half as fast without" if is_off else None,
        command=f"echo madvise > {_THP}/enabled" if is_off else None,
    )


def mappings(case: Case) -> Finding:
    """Whether the table's files may all be mapped."""
    limit, present = case.system.integer("/proc/sys/vm/max_map_count"), case.system.n_mappings
    if limit is None or present is None:
        return could_not_look("mappings", "vm.max_map_count or /proc/self/maps cannot be read")
    found = f"vm.max_map_count {limit:,}, {present:,} mappings in use"
    n_files = case.subject.n_files
    if n_files is None:
        return not_applicable("mappings", found, "no table whose files would be mapped")
    needed = present + n_files * _MAPPINGS_A_FILE
    is_enough = needed <= limit
    return Finding(
        check="mappings",
        severity=Severity.FINE if is_enough else Severity.WILL_FAIL,
        found=found,
        limit=f"{needed:,} for {n_files:,} files",
        remedy=None if is_enough else "raise it, or build the table with larger shards",
        command=None if is_enough else f"sysctl -w vm.max_map_count={needed * 2}",
        found_value=limit,
        limit_value=needed,
        unit="mappings",
    )


def _spare_bytes(case: Case) -> int:
    """Memory that was set aside as huge pages (hugetlb) and that nobody uses."""
    return case.system.memory.get("HugePages_Free", 0) * case.system.memory.get("Hugepagesize", 0)


def _shared_huge_pages(case: Case, name: str) -> Finding:
    """Of the tmpfs that the table lies in, else of /dev/shm: the mount's own choice, but for the two words that
    overrule every mount."""
    overruling = case.system.chosen(f"{_THP}/shmem_enabled")
    is_there = case.subject.path is not None and case.subject.is_in_memory(case.system)
    mount = case.mount if is_there else case.system.mount_of("/dev/shm")
    if is_there and mount is not None and mount.filesystem != "tmpfs":
        return _of_other_memory(mount, name)
    if mount is None or mount.filesystem != "tmpfs":
        return could_not_look(name, "/dev/shm is no tmpfs here")
    chosen = next((o.removeprefix("huge=") for o in mount.options if o.startswith("huge=")), "never")
    if overruling in ("deny", "force"):
        chosen = {"deny": "never", "force": "always"}[overruling]
    is_off = chosen == "never"
    remedy = command = None
    if is_off:
        remedy = "mount it with huge pages before the table is copied there; rows are read half as fast without"
        command = f"mount -o remount,huge=always {mount.point}"
        if overruling == "deny":
            command = f"echo advise > {_THP}/shmem_enabled && {command}"
    return Finding(
        check=name,
        severity=Severity.WILL_BE_SLOW if is_off else Severity.FINE,
        found=f"{mount.point}: huge={chosen}" + (f", shmem_enabled is {overruling}" if overruling else ""),
        limit="huge=always, within_size or advise",
        remedy=remedy,
        command=command,
    )


def _of_other_memory(mount: Mount, name: str) -> Finding:
    """hugetlbfs has nothing but huge pages, ramfs and the rest none."""
    is_huge, found = mount.filesystem == "hugetlbfs", f"{mount.point} is {mount.filesystem}"
    return Finding(
        check=name,
        severity=Severity.FINE if is_huge else Severity.WILL_BE_SLOW,
        found=f"{found}, whose pages are {'huge' if is_huge else 'small ones alone'}",
        limit="a tmpfs with huge=always, within_size or advise",
        remedy=None if is_huge else "copy the table to such a tmpfs; rows are read half as fast without",
        command=None if is_huge else "mount -t tmpfs -o huge=always tmpfs DIR",
    )
