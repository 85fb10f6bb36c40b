"""Checks of the table's files: the filesystem, what really reads them, and the device's queue."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import PurePosixPath

from engram_tables.fetch.engines.ladder import Rung
from engram_tables.fetch.engines.queued import DEPTH
from engram_tables.measure.doctor.case import Case
from engram_tables.measure.doctor.findings import (
    Finding,
    Placement,
    Severity,
    could_not_look,
    gravest,
    not_applicable,
)
from engram_tables.measure.doctor.subject import MEMORY_FILESYSTEMS

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs",
                      "afs", "orangefs"})  # fmt: skip
_COMPRESSED = frozenset({"squashfs", "erofs", "cramfs"})
_SCHEDULERS = frozenset({"none", "noop", "mq-deadline", "deadline", "kyber", "bfq", "cfq"})
_ROW_READ_KIB = 4
# Reading one row of 264 bytes should not read more than a page of it; the usual 128 KiB already reads 32.
_MOST_READ_AHEAD_KIB = 16
_NOT_TRIED = "; whether the files are read past the page cache, where it does not matter, was not tried"
_NOT_READ = "rows are read from files once, to fill memory"
_OWN_BUNDLES = "bundles that were built from these very rows"
_Check = Callable[[Case], Finding]


def _of_all_files(check: _Check) -> _Check:
    """A check of one filesystem or device as one of all that hold files of the table: what is gravest of them."""

    @functools.wraps(check)
    def of_each(case: Case) -> Finding:
        cases = case.of_each_place()
        return check(case) if len(cases) == 1 else gravest((str(one.subject.place), check(one)) for one in cases)

    return of_each


@_of_all_files
def filesystem(case: Case) -> Finding:
    """What kind of filesystem holds the files, and what that costs a read of one row."""
    name, mount, place = "filesystem", case.mount, case.subject.place
    if place is None:
        return not_applicable(name, "no table", "name one, or a directory with --build-into")
    if mount is None:
        return could_not_look(name, f"{place}: no line of /proc/self/mountinfo is above it")
    found = f"{mount.filesystem} of {mount.source} on {mount.point}"
    slow, remedy = _why_slow(mount.filesystem, mount.options)
    if not case.is_for(Placement.NVME):
        return not_applicable(name, found, _NOT_READ)
    limit = "a local filesystem that keeps files as they are, such as ext4 or xfs"
    if slow is None:
        return Finding(check=name, severity=Severity.FINE, found=found, limit=limit)
    return Finding(
        check=name, severity=Severity.WILL_BE_SLOW, found=f"{found}: {slow}", limit=limit, remedy=remedy,
        command=f"cp -rL {case.subject.path or place} /path/on/local/nvme",
    )  # fmt: skip


def bundles(case: Case) -> Finding:
    """Whether bundles in the table's directory are of its rows: with others it does not open."""
    name, place = "bundles", case.subject.bundles
    if place is None:
        return not_applicable(name, "no bundles in the table", "hot n-grams by one read each are a choice")
    if case.tries.why_no_bundles is None:
        return Finding(check=name, severity=Severity.FINE, found=f"{place}: of this table", limit=_OWN_BUNDLES)
    return Finding(
        check=name, severity=Severity.WILL_FAIL, found=case.tries.why_no_bundles, limit=_OWN_BUNDLES,
        remedy="build them again, or move them out of the table; without them its rows are all there",
        command=f"mv {place} {case.subject.path}.bundles",
    )  # fmt: skip


def any_reads(case: Case) -> Finding:
    """Whether a record of each file can be read at all, by any engine, with the right bytes."""
    rungs = case.tries.rungs
    if case.tries.why_unread is not None:
        return Finding(
            check="reads", severity=Severity.WILL_FAIL, found=case.tries.why_unread, limit="files that can be read",
            remedy="look at the device's health and the kernel's log, and copy the table anew",
            command="dmesg -T | tail",
        )  # fmt: skip
    if rungs is None:
        return _no_tries(case, "reads")
    usable = [rung.engine for rung in rungs.values() if rung.is_usable]
    refused = "; ".join(str(rung.reason) for rung in rungs.values() if not rung.is_usable)
    return Finding(
        check="reads",
        severity=Severity.FINE if usable else Severity.WILL_FAIL,
        found=f"read by {', '.join(usable)}" if usable else refused,
        limit="one engine or more that reads a record of each file as a plain reading does",
        remedy=None if usable else "copy the table anew, and look at it with `engram verify`",
        command=None if usable else f"engram verify {case.subject.path}",
        found_value=len(usable),
        limit_value=1,
    )


def direct_reads(case: Case) -> Finding:
    """Whether files can be read past the page cache (O_DIRECT), really tried."""
    rungs = case.tries.rungs
    if rungs is None:
        return _no_tries(case, "direct-reads")
    rung = rungs["direct"]
    in_memory = case.subject.is_in_memory(case.system)
    found = "read past the page cache" if rung.is_usable else str(rung.reason)
    if not case.is_for(Placement.NVME):
        return not_applicable("direct-reads", found, _NOT_READ)
    if not rung.is_usable and in_memory:
        return Finding(check="direct-reads", severity=Severity.FINE, found=f"{found}; the files are in memory anyway")
    return Finding(
        check="direct-reads",
        severity=Severity.FINE if rung.is_usable else Severity.WILL_BE_SLOW,
        found=found,
        limit="O_DIRECT, so that a row costs one read of its page and leaves memory to what is used again",
        remedy=None if rung.is_usable else "copy the table to a local ext4 or xfs",
        command=None if rung.is_usable else f"cp -rL {case.subject.path} /path/on/local/nvme",
    )


def io_uring(case: Case) -> Finding:
    """Whether reads can be asked for by io_uring, really tried; and what forbids it."""
    setting = case.system.integer("/proc/sys/kernel/io_uring_disabled")
    is_filtered = case.system.status.get("Seccomp") == "2"
    said = f"kernel.io_uring_disabled is {'not there' if setting is None else setting}"
    if is_filtered:
        said += ", and system calls of this process are filtered"
    rung = case.tries.queue("uring")
    if rung is None:
        if setting != 2:
            return could_not_look("io-uring", f"{said}; whether a ring is given was not tried")
        rung = Rung("uring", False, said)
    if rung.is_usable or not case.is_for(Placement.NVME):
        severity = Severity.FINE if case.is_for(Placement.NVME) else Severity.NOT_APPLICABLE
        return Finding(
            check="io-uring", severity=severity, found=f"{'works' if rung.is_usable else rung.reason}; {said}"
        )
    if case.subject.is_in_memory(case.system):
        return Finding(check="io-uring", severity=Severity.FINE, found=f"{rung.reason}; the files are in memory anyway")
    remedy, command = "read with aio or direct, as `auto` does by itself, at more CPU a row", None
    if setting in (1, 2):
        remedy, command = "let processes use io_uring", "sysctl -w kernel.io_uring_disabled=0"
    elif is_filtered:
        remedy = "give the container a filter that lets io_uring_setup, io_uring_enter and io_uring_register through"
        command = "docker run --security-opt seccomp=PROFILE.json"
    return Finding(
        check="io-uring", severity=Severity.WILL_BE_SLOW, found=f"{rung.reason}; {said}", limit="a ring of 128 reads",
        remedy=remedy, command=command,
    )  # fmt: skip


def libaio(case: Case) -> Finding:
    """Whether reads can be asked for by libaio, which matters where io_uring is not."""
    used, most = case.system.integer("/proc/sys/fs/aio-nr"), case.system.integer("/proc/sys/fs/aio-max-nr")
    said = "fs.aio-max-nr is not there" if most is None else f"{used or 0:,} of fs.aio-max-nr {most:,} in use"
    rung = case.tries.queue("aio")
    if rung is None:
        return could_not_look("libaio", f"{said}; whether a context is given was not tried")
    if rung.is_usable or not case.is_for(Placement.NVME):
        severity = Severity.FINE if case.is_for(Placement.NVME) else Severity.NOT_APPLICABLE
        return Finding(check="libaio", severity=severity, found=f"{'works' if rung.is_usable else rung.reason}; {said}")
    uring = case.tries.queue("uring")
    if case.subject.is_in_memory(case.system) or (uring is not None and uring.is_usable):
        return Finding(
            check="libaio", severity=Severity.FINE, found=f"{rung.reason}; io_uring or memory serves instead"
        )
    is_full = most is not None and (used or 0) + DEPTH > most
    return Finding(
        check="libaio",
        severity=Severity.WILL_BE_SLOW,
        found=f"{rung.reason}; {said}",
        limit=f"a context of {DEPTH} reads, where io_uring is refused",
        remedy="raise it" if is_full else "read with direct, as `auto` does by itself, at 2.5 times the CPU a row",
        command=f"sysctl -w fs.aio-max-nr={max(1 << 20, 2 * (most or 0))}" if is_full else None,
    )


@_of_all_files
def read_ahead(case: Case) -> Finding:
    """How much the kernel reads beside one row where rows are read through the page cache."""
    queue = _queue(case, "read-ahead")
    if isinstance(queue, Finding):
        return queue
    found = case.system.integer(f"{queue}/read_ahead_kb")
    if found is None:
        return could_not_look("read-ahead", f"{queue}/read_ahead_kb cannot be read")
    rungs = case.tries.rungs
    direct = rungs is not None and any(rungs[engine].is_usable for engine in ("uring", "aio", "direct"))
    is_fine = found <= _MOST_READ_AHEAD_KIB or direct
    severity = Severity.FINE if is_fine else Severity.COULD_NOT_LOOK if rungs is None else Severity.WILL_BE_SLOW
    words = f"{found:,} KiB around every row that is read through a mapping with default advice"
    return Finding(
        check="read-ahead",
        severity=severity,
        found=words + ("; the engines here read past it" if direct else _NOT_TRIED if rungs is None else ""),
        limit=f"{_MOST_READ_AHEAD_KIB} KiB, where rows are not read past the page cache",
        remedy=None if is_fine else "make it small for the table's device, and large again for other uses",
        command=None if is_fine else f"echo {_ROW_READ_KIB} > {queue}/read_ahead_kb",
        found_value=found,
        limit_value=_MOST_READ_AHEAD_KIB,
        unit="KiB",
    )


@_of_all_files
def scheduler(case: Case) -> Finding:
    """Whether the device's scheduler spends time on every read."""
    queue = _queue(case, "scheduler")
    if isinstance(queue, Finding):
        return queue
    found = case.system.chosen(f"{queue}/scheduler") or (case.system.text(f"{queue}/scheduler") or "").strip()
    if found not in _SCHEDULERS:
        return could_not_look("scheduler", f"{queue}/scheduler does not say which of the known ones it is")
    is_fine = found not in ("bfq", "cfq")
    return Finding(
        check="scheduler",
        severity=Severity.FINE if is_fine else Severity.WILL_BE_SLOW,
        found=found,
        limit="none, mq-deadline or kyber",
        remedy=None if is_fine else "let reads go to the device as they come",
        command=None if is_fine else f"echo none > {queue}/scheduler",
    )


@_of_all_files
def queue_depth(case: Case) -> Finding:
    """Whether the device's queue takes as many reads as one thread keeps in flight."""
    queue = _queue(case, "queue-depth")
    if isinstance(queue, Finding):
        return queue
    found = case.system.integer(f"{queue}/nr_requests")
    if found is None:
        return could_not_look("queue-depth", f"{queue}/nr_requests cannot be read")
    is_fine = found >= DEPTH
    return Finding(
        check="queue-depth",
        severity=Severity.FINE if is_fine else Severity.WILL_BE_SLOW,
        found=f"{found:,} reads wait at most",
        limit=f"{DEPTH} or more",
        remedy=None if is_fine else "let more reads wait, where the device takes them",
        command=None if is_fine else f"echo {2 * DEPTH} > {queue}/nr_requests",
        found_value=found,
        limit_value=DEPTH,
        unit="requests",
    )


@_of_all_files
def rotational(case: Case) -> Finding:
    """Whether the device turns: a hundred rows a second, not a hundred thousand."""
    queue = _queue(case, "rotational")
    if isinstance(queue, Finding):
        return queue
    found = case.system.integer(f"{queue}/rotational")
    if found is None:
        return could_not_look("rotational", f"{queue}/rotational cannot be read")
    disk = PurePosixPath(queue).parent.name
    if found and disk.startswith(("vd", "xvd", "sd", "dm-")) and _is_virtual(case, queue):
        why = f"{disk} says that it turns, as virtual disks do whatever is behind them"
        return could_not_look("rotational", why, "measure it: `engram bench-offload TABLE --from nvme`")
    return Finding(
        check="rotational",
        severity=Severity.WILL_BE_SLOW if found else Severity.FINE,
        found=f"{disk} {'turns' if found else 'does not turn'}",
        limit="a device without moving parts",
        remedy="copy the table to an NVMe or SATA solid-state disk" if found else None,
        command=f"cp -rL {case.subject.path or case.subject.place} /path/on/local/nvme" if found else None,
    )


def _why_slow(filesystem: str, options: frozenset[str]) -> tuple[str | None, str | None]:
    if filesystem in _NETWORK:
        return "every row is a journey over a network", "copy the table to a local disk"
    if filesystem.startswith("fuse") and filesystem != "fuseblk":
        return "every read goes through a program, and io_uring is refused", "copy the table to a local disk"
    if filesystem in _COMPRESSED:
        return "every read unpacks a block", "copy the table out of the image"
    packed = [o for o in options if o == "compress" or o.startswith(("compress=", "compress-force"))]
    if packed:
        return f"files are packed ({packed[0]}), and every row unpacks 128 KiB", (
            "copy the table to a directory without it: `chattr +m DIR`, or `btrfs property set DIR compression none`"
        )
    if filesystem == "zfs":
        return "every row reads a whole record of 128 KiB by default", "copy it to a dataset with recordsize=4k"
    return None, None


def _no_tries(case: Case, name: str) -> Finding:
    if not case.tries.is_live:
        return could_not_look(name, "a recorded machine reads nothing")
    if case.subject.path is None:
        return could_not_look(name, "no table is there to be read", "name one once it is built")
    return could_not_look(name, f"the files are not read: {case.subject.why_closed or case.tries.why_unread}")


def _queue(case: Case, name: str) -> str | Finding:
    """The queue's directory, or why it is not looked at."""
    mount = case.mount
    if not case.is_for(Placement.NVME):
        return not_applicable(name, "the device of the files", _NOT_READ)
    if case.subject.place is None:
        return not_applicable(name, "no table", "name one, or a directory with --build-into")
    if mount is None:
        return could_not_look(name, f"{case.subject.place}: no mount is known above it")
    if mount.filesystem in MEMORY_FILESYSTEMS:
        return not_applicable(name, f"{mount.filesystem} has no device", "the files are in memory")
    queue = case.system.queue_of(mount)
    if queue is None:
        why = f"{mount.filesystem} on {mount.point} shows no block device (number {mount.device})"
        return could_not_look(name, why, "look on the host, or name the table by a path on its own disk")
    return queue


def _is_virtual(case: Case, queue: str) -> bool:
    """Whether the disk belongs to a virtual machine, by its driver's place or its vendor."""
    disk = str(PurePosixPath(queue).parent)
    vendor = (case.system.text(f"{disk}/device/vendor") or "").strip()
    return "/virtio" in disk or PurePosixPath(disk).name.startswith(("vd", "xvd")) or vendor in (
        "QEMU", "VMware", "Msft", "Google", "VBOX"
    )  # fmt: skip
