"""Checks of shared memory and of NUMA nodes."""

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
from engram_tables.measure.doctor.system import Mount, Node
from engram_tables.units import format_bytes

_SHM = "/dev/shm"
_SUFFIXES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def shared_memory(case: Case) -> Finding:
    """Whether /dev/shm holds the table: containers give it 64 MiB."""
    name, mount = "shared-memory", case.system.mount_of(_SHM)
    if mount is None:
        return could_not_look(name, f"{_SHM}: /proc/self/mountinfo has no line above it")
    if mount.filesystem != "tmpfs":
        what = f"{_SHM} is no tmpfs here"
        if not case.is_for(Placement.SHM):
            return not_applicable(name, what, "rows are not put there")
        return Finding(
            check=name, severity=Severity.WILL_FAIL, found=what, limit="a tmpfs that holds the table",
            remedy="mount one", command=f"mount -t tmpfs -o size={_mount_size(case)} tmpfs {_SHM}",
        )  # fmt: skip
    room = case.system.room(mount.point)
    free = _declared_bytes(mount) if room is None else room.free_bytes
    if free is None:
        return could_not_look(name, f"{mount.point}: does not say how large it is")
    what = f"free in {mount.point}" if room is not None else f"is the size of {mount.point}"
    if not case.is_for(Placement.SHM):
        return not_applicable(name, f"{format_bytes(free)} {what}", "rows are not put there")
    if case.subject.path is not None and case.subject.is_in_memory(case.system):
        return Finding(
            check=name, severity=Severity.FINE, found=f"the table is in memory already; {format_bytes(free)} {what}"
        )
    return at_least_bytes(
        name, free, case.subject.file_bytes, what,
        remedy="make it larger: `docker run --shm-size`, a pod's emptyDir with medium Memory and a sizeLimit, or mount "
        "it anew; it takes memory only as it fills",
        command=f"mount -o remount,size={_mount_size(case)} {mount.point}",
    )  # fmt: skip


def memory_nodes(case: Case) -> Finding:
    """Whether the nodes that this process may use hold the rows, and whether one alone does."""
    name, nodes = "numa-nodes", case.system.nodes
    if nodes and case.is_for(Placement.CXL):
        return _attached_memory(case, name)
    if not nodes:
        return could_not_look(name, "the system does not say which NUMA nodes have memory")
    allowed = [node for node in nodes if not case.system.allowed_nodes or node.number in case.system.allowed_nodes]
    found = ", ".join(map(_words, nodes))
    needed = case.host_bytes
    if case.is_for(Placement.NVME, Placement.GPU) or needed is None:
        return not_applicable(name, found, "rows are not in host memory" if needed else "no size to hold it against")
    if len(nodes) == 1:
        return Finding(check=name, severity=Severity.FINE, found=found, limit="one node: nothing is far away")
    total, largest = sum(node.free_bytes for node in allowed), max(allowed, key=lambda node: node.free_bytes)
    if total < needed:
        short = f"{format_bytes(total)} free on the nodes that this process may use ({_listed(allowed)})"
        return Finding(
            check=name, severity=Severity.WILL_FAIL, found=f"{short}; {found}",
            limit=format_bytes(needed), found_value=total, limit_value=needed, unit="B",
            remedy="let the process use other nodes too (cpuset, numactl), or end what fills these",
            command=f"numactl --membind={_listed(list(nodes))} COMMAND",
        )  # fmt: skip
    fits = largest.free_bytes >= needed
    return Finding(
        check=name,
        severity=Severity.FINE if fits else Severity.WILL_BE_SLOW,
        found=found,
        limit=f"{format_bytes(needed)} on one node, so that no row is far away",
        remedy=None if fits else "spread rows evenly over the nodes, or give each node a rank's table",
        command=None if fits else f"numactl --interleave={_listed(allowed)} COMMAND",
        found_value=largest.free_bytes,
        limit_value=needed,
        unit="B",
    )


def zone_reclaim(case: Case) -> Finding:
    """Whether the kernel drops pages of files on one node while another has free memory."""
    name, mode = "numa-zone-reclaim", case.system.integer("/proc/sys/vm/zone_reclaim_mode")
    if mode is None:
        return not_applicable(name, "vm.zone_reclaim_mode is not there", "this kernel knows no NUMA")
    if len(case.system.nodes) < 2:
        return not_applicable(name, f"vm.zone_reclaim_mode is {mode}", "one node")
    is_on = bool(mode & 1) and not case.is_for(Placement.GPU)
    return Finding(
        check=name,
        severity=Severity.WILL_BE_SLOW if is_on else Severity.FINE,
        found=f"vm.zone_reclaim_mode is {mode}",
        limit="0",
        remedy="let pages of the table stay on other nodes" if is_on else None,
        command="sysctl -w vm.zone_reclaim_mode=0" if is_on else None,
        found_value=mode,
        limit_value=0,
    )


def _attached_memory(case: Case, name: str) -> Finding:
    """CXL memory is a node without CPUs."""
    apart = [node for node in case.system.nodes if not node.has_cpus]
    if not apart:
        return Finding(
            check=name,
            severity=Severity.WILL_FAIL,
            found=f"no memory node without CPUs; {', '.join(map(_words, case.system.nodes))}",
            limit="a node without CPUs, which is how CXL memory shows",
            remedy="bring the memory online as a node of its own, which is a DAX device before, or choose dram",
            command="daxctl reconfigure-device --mode=system-ram dax0.0",
        )
    barred = [node for node in apart if case.system.allowed_nodes and node.number not in case.system.allowed_nodes]
    best = max(apart, key=lambda node: (node not in barred, node.free_bytes))
    if best in barred:
        return Finding(
            check=name, severity=Severity.WILL_FAIL, found=f"{_words(best)}, which this process may not use",
            limit=f"node {best.number} among the allowed ones ({case.system.status.get('Mems_allowed_list')})",
            remedy="let the process use it: cpuset.mems of its control group, or `docker run --cpuset-mems`",
        )  # fmt: skip
    return at_least_bytes(
        name, best.free_bytes, case.subject.file_bytes, f"free on node {best.number}, which has no CPUs",
        remedy="give the node fewer rows (a tier's budget), or split the table over ranks",
    )  # fmt: skip


def _words(node: Node) -> str:
    cpus = "" if node.has_cpus else ", without CPUs"
    return f"node {node.number}: {format_bytes(node.free_bytes)} free of {format_bytes(node.total_bytes)}{cpus}"


def _listed(nodes: list[Node]) -> str:
    return ",".join(str(node.number) for node in nodes)


def _mount_size(case: Case) -> str:
    """A size as mount takes it, a tenth above the table's."""
    return "100%" if case.subject.file_bytes is None else str(case.subject.file_bytes * 11 // 10)


def _declared_bytes(mount: Mount) -> int | None:
    """What a tmpfs was mounted with; None where it says it otherwise than in bytes."""
    option = next((o.removeprefix("size=") for o in mount.options if o.startswith("size=")), "")
    figure = option.rstrip("kmgKMG")
    if not figure.isdigit():
        return None
    return int(figure) * _SUFFIXES.get(option[len(figure) :].lower(), 1)
