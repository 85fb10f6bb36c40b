"""What the system says of itself in /proc and /sys, below any root, so that a recorded machine can be looked at too.

It reads text and judges nothing. What has to be tried (opening a ring, asking a filesystem for its room) is only done
where the root is this machine's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from math import inf
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_UNLIMITED_V1 = 2**62
_CAP_IPC_LOCK = 14
_MOST_NODES = 1 << 16
_NO_LIMIT = "unlimited"
_NUMBER, _HEX = re.compile(r"-?[0-9]{1,20}"), re.compile(r"[0-9a-fA-F]{1,32}")
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ", re.MULTILINE)
_OCTAL = ("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")


class Mount(NamedTuple):
    """A line of mountinfo."""

    device: str
    """`major:minor`"""
    root: str
    """The directory of the filesystem that is mounted"""
    point: str
    options: frozenset[str]
    """Of the mount and of its filesystem"""
    filesystem: str
    source: str


class Limit(NamedTuple):
    """A limit of this process; None is no limit."""

    soft: int | None
    hard: int | None


class CgroupMemory(NamedTuple):
    """A memory limit of a control group that this process is in."""

    path: str
    limit_bytes: int
    used_bytes: int
    """Without the pages of files that the system may give up"""
    is_hard: bool
    """Past it the kernel kills; past the other kind it slows the group down"""

    @property
    def room_bytes(self) -> int:
        """What may still be taken."""
        return max(self.limit_bytes - self.used_bytes, 0)


class Room(NamedTuple):
    """What a filesystem has."""

    total_bytes: int
    free_bytes: int
    """For this process"""
    free_files: int | None
    """Files that may still be made; None where the filesystem has no such limit"""


class Node(NamedTuple):
    """A NUMA node with memory."""

    number: int
    total_bytes: int
    free_bytes: int
    """Free pages and pages of files, which the system gives up: an estimate"""
    has_cpus: bool


class System:
    """A machine's /proc and /sys.

    Parameters
    ----------
    root
        The directory that holds `proc` and `sys`; this machine's own by default.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.is_live = root == Path("/")

    def look(self) -> None:
        """Read now what is kept: a table's files may leave no descriptor to read with later."""
        for name in ("memory", "status", "limits", "n_mappings", "mounts", "cgroup_memory", "cgroup_cpus", "nodes"):
            getattr(self, name)

    def text(self, path: str) -> str | None:
        """A small file; None where it is not there or not ours to read."""
        try:
            return self._below(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def text_or(self, path: str, otherwise: str) -> str:
        """The same, and other words where there is no such file."""
        found = self.text(path)
        return otherwise if found is None else found

    def names(self, directory: str, pattern: str) -> list[str]:
        """Names in a directory that match, sorted."""
        try:
            return sorted(entry.name for entry in self._below(directory).glob(pattern))
        except OSError:
            return []

    def real(self, path: str) -> str:
        """`path` with the links resolved that lie below the root."""
        return "/" + str(self._below(path).resolve().relative_to(self.root.resolve()))

    def integer(self, path: str) -> int | None:
        """The integer that a file holds."""
        text = (self.text(path) or "").strip()
        return _whole(text)

    def chosen(self, path: str) -> str | None:
        """The word in brackets of a choice."""
        text = self.text(path) or ""
        return text.partition("[")[2].partition("]")[0] or None

    @cached_property
    def memory(self) -> dict[str, int]:
        """/proc/meminfo, bytes; counts of huge pages as they are."""
        return _figures(self.text("/proc/meminfo") or "", 0)

    @cached_property
    def status(self) -> dict[str, str]:
        """/proc/self/status."""
        lines = (self.text("/proc/self/status") or "").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @cached_property
    def limits(self) -> dict[str, Limit]:
        """/proc/self/limits by the kernel's names, such as `Max open files`."""
        found = {}
        for line in (self.text("/proc/self/limits") or "").splitlines()[1:]:
            # Columns of a fixed width: the name, which has blanks in it, then soft, hard and unit.
            soft, hard = [*line[26:].split(), "", ""][:2]
            # What is neither a number nor "unlimited" says nothing; it must not pass for no limit.
            if all(word == _NO_LIMIT or _whole(word) is not None for word in (soft, hard)):
                found[line[:26].strip()] = Limit(_whole(soft), _whole(hard))
        return found

    @property
    def may_lock_any(self) -> bool | None:
        """Whether this process has the capability that stands above the limit on locked memory; None if not told."""
        return self._may(_CAP_IPC_LOCK)

    @property
    def used_addresses(self) -> int | None:
        """Bytes of addresses that this process uses."""
        n_kib = _whole((self.status.get("VmSize", "").split() or [""])[0])
        return None if n_kib is None else n_kib * 1024

    @cached_property
    def n_mappings(self) -> int | None:
        """Mappings of this process."""
        return len(_MAPPING.findall(self.text("/proc/self/maps") or "")) or None

    @cached_property
    def mounts(self) -> tuple[Mount, ...]:
        """Every mount that this process sees, in the order in which they were made."""
        lines = (self.text("/proc/self/mountinfo") or "").splitlines()
        return tuple(filter(None, map(_mount, lines)))

    def mount_of(self, path: Path | str) -> Mount | None:
        """The mount that holds `path`: of those with the longest name above it, the last."""
        place = PurePosixPath(Path(path).resolve() if self.is_live else path)
        directories = {str(place), *map(str, place.parents)}
        above = [mount for mount in self.mounts if mount.point in directories]
        longest = max((len(mount.point) for mount in above), default=0)
        return next((mount for mount in reversed(above) if len(mount.point) == longest), None)

    def queue_of(self, mount: Mount) -> str | None:
        """The queue directory of the block device under a mount; None where there is none, as below overlays."""
        devices = [f"/sys/dev/block/{mount.device}"]
        if mount.source.startswith("/dev/"):
            # btrfs and others have a device number of their own, and name the device all the same.
            devices.append(f"/sys/class/block/{PurePosixPath(mount.source).name}")
        for device in devices:
            place = self.real(device)
            # A partition has no queue of its own; its disk, the directory above, has.
            for directory in (place, str(PurePosixPath(place).parent)):
                if self.text(f"{directory}/queue/read_ahead_kb") is not None:
                    return f"{directory}/queue"
        return None

    def room(self, path: Path | str) -> Room | None:
        """What the filesystem of `path` has; None on a recorded machine."""
        if not self.is_live:
            return None
        try:
            found = os.statvfs(path)
        except OSError:
            return None
        free_files = found.f_favail if found.f_files else None
        return Room(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, free_files)

    def cpu_ticks(self) -> tuple[int, int] | None:
        """Ticks of all CPUs since boot that a host gave to others, and ticks in all; read anew at every call."""
        words = (self.text("/proc/stat") or "").partition("\n")[0].split()
        if len(words) < 9 or words[0] != "cpu":
            return None
        # Time of guests is in user time already.
        ticks = [_whole(word) for word in words[1:9]]
        known = [tick for tick in ticks if tick is not None]
        return (known[7], sum(known)) if len(known) == len(ticks) else None

    @cached_property
    def cgroup_memory(self) -> tuple[CgroupMemory, ...] | None:
        """Memory limits of this process's control groups and of those around them, innermost first; None where the
        groups or a limit of theirs cannot be read."""
        found: list[CgroupMemory] = []
        directories = self._cgroups("memory")
        for directory, is_v2 in directories or ():
            of_group = self._v2_memory(directory) if is_v2 else self._v1_memory(directory)
            if of_group is None:
                return None
            found += of_group
        return None if directories is None else tuple(found)

    @cached_property
    def cgroup_cpus(self) -> float | None:
        """CPUs that the control groups let this process use at a time, by the narrowest quota: infinity without one;
        None where the groups or a quota of theirs cannot be read."""
        directories, quotas = self._cgroups("cpu"), [inf]
        if directories is None:
            return None
        for directory, is_v2 in directories:
            if is_v2:
                words = self.text_or(f"{directory}/cpu.max", "max 100000").split()
                quota, period = [*words, "", ""][:2]
            else:
                quota = self.text_or(f"{directory}/cpu.cfs_quota_us", "-1").strip()
                period = self.text_or(f"{directory}/cpu.cfs_period_us", "100000").strip()
            n_us, of_us = _whole(quota), _whole(period)
            if not of_us or (n_us is None and quota != "max"):
                return None
            quotas.append(n_us / of_us if n_us is not None and n_us >= 0 else inf)
        return min(quotas)

    @property
    def service(self) -> str | None:
        """The systemd service that this process runs in, by its control group; None outside one."""
        for line in (self.text("/proc/self/cgroup") or "").splitlines():
            for name in reversed(line.rpartition(":")[2].split("/")):
                if name.endswith(".service") and not name.startswith("user@"):
                    return name
        return None

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """NUMA nodes with memory; none where the system does not say."""
        base = "/sys/devices/system/node"
        with_cpus = set(numbers(self.text(f"{base}/has_cpu") or ""))
        found = []
        for number in numbers(self.text(f"{base}/has_memory") or ""):
            figures = _figures(self.text(f"{base}/node{number}/meminfo") or "", 2)
            if "MemTotal" not in figures or not with_cpus:
                # Some node has CPUs and every node a size: half of what there is would mislead.
                return ()
            free = sum(figures.get(name, 0) for name in ("MemFree", "Active(file)", "Inactive(file)"))
            found.append(Node(number, figures["MemTotal"], free, number in with_cpus))
        return tuple(found)

    @cached_property
    def allowed_nodes(self) -> frozenset[int]:
        """NUMA nodes whose memory this process may have; empty where the system does not say."""
        return frozenset(numbers(self.status.get("Mems_allowed_list", "")))

    def _below(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _may(self, capability: int) -> bool | None:
        effective = self.status.get("CapEff", "")
        return bool(int(effective, 16) >> capability & 1) if _HEX.fullmatch(effective) else None

    def _cgroups(self, controller: str) -> list[tuple[str, bool]] | None:
        """Directories of this process's group and those around it, innermost first, and whether each is of version 2;
        None where there is no telling, or where a group that may hold the controller is mounted nowhere here."""
        lines = [line.split(":", 2) for line in (self.text("/proc/self/cgroup") or "").splitlines()]
        groups = [
            (hierarchy == "0" and not controllers, controllers, group)
            for hierarchy, controllers, group in (line for line in lines if len(line) == 3 and line[0].isdigit())
        ]
        wanted = [(is_v2, group) for is_v2, names, group in groups if is_v2 or controller in names.split(",")]
        found = [
            (directory, is_v2) for is_v2, group in wanted for directory in self._directories(group, controller, is_v2)
        ]
        return None if not groups or (wanted and not found) else found

    def _directories(self, group: str, controller: str, is_v2: bool) -> Iterator[str]:
        """A group's directory and those around it, below its first mount."""
        kind: Callable[[Mount], bool] = (
            (lambda mount: mount.filesystem == "cgroup2")
            if is_v2
            else (lambda mount: mount.filesystem == "cgroup" and controller in mount.options)
        )
        for mount in filter(kind, self.mounts):
            # A container may see its group as the root of the mount, and still read the outer name.
            inside = PurePosixPath(group)
            inside = inside.relative_to(mount.root) if inside.is_relative_to(mount.root) else PurePosixPath()
            parts = [part for part in inside.parts if part not in ("/", "..")]
            for n_parts in range(len(parts), -1, -1):
                yield "/".join([mount.point.rstrip("/"), *parts[:n_parts]])
            return

    def _v2_memory(self, directory: str) -> list[CgroupMemory] | None:
        used = self.integer(f"{directory}/memory.current") or 0
        files = _flat(self.text(f"{directory}/memory.stat") or "")
        used -= files.get("active_file", 0) + files.get("inactive_file", 0)
        found = []
        for name, is_hard in (("memory.max", True), ("memory.high", False)):
            text = self.text(f"{directory}/{name}")
            limit = self.integer(f"{directory}/{name}")
            # The root of all groups has no such file, and "max" is no limit.
            if limit is None and text is not None and text.strip() != "max":
                return None
            if limit is not None:
                found.append(CgroupMemory(f"{directory}/{name}", limit, max(used, 0), is_hard))
        return found

    def _v1_memory(self, directory: str) -> list[CgroupMemory] | None:
        limit = self.integer(f"{directory}/memory.limit_in_bytes")
        if limit is None:
            return [] if self.text(f"{directory}/memory.limit_in_bytes") is None else None
        if limit >= _UNLIMITED_V1:
            return []
        used = self.integer(f"{directory}/memory.usage_in_bytes") or 0
        files = _flat(self.text(f"{directory}/memory.stat") or "")
        used -= files.get("total_active_file", 0) + files.get("total_inactive_file", 0)
        return [CgroupMemory(f"{directory}/memory.limit_in_bytes", limit, max(used, 0), True)]


def numbers(text: str) -> list[int]:
    """The numbers of a list.

    >>> numbers("0-2,5")
    [0, 1, 2, 5]
    """
    found: list[int] = []
    for stretch in filter(None, text.strip().split(",")):
        first, _, last = stretch.partition("-")
        start, stop = _whole(first), _whole(last or first)
        if start is not None and stop is not None and 0 <= start <= stop < _MOST_NODES:
            found += range(start, stop + 1)
    return found


def _figures(text: str, n_before: int) -> dict[str, int]:
    """Lines `Name: 12 kB`, after `n_before` words that all of them begin with."""
    found = {}
    for line in text.splitlines():
        words = line.split()[n_before:]
        number = _whole(words[1]) if len(words) >= 2 else None
        if number is not None:
            found[words[0].rstrip(":")] = number * (1024 if words[2:] == ["kB"] else 1)
    return found


def _flat(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    found = {pair[0]: _whole(pair[1]) for pair in pairs if len(pair) == 2}
    return {name: number for name, number in found.items() if number is not None}


def _whole(word: str) -> int | None:
    """A number as the kernel writes one; None for anything else, digits of other scripts and endless ones too."""
    return int(word) if _NUMBER.fullmatch(word) else None


def _mount(line: str) -> Mount | None:
    left, separator, right = line.partition(" - ")
    before, after = left.split(), right.split()
    if not separator or len(before) < 6 or len(after) < 2:
        return None
    options = {*before[5].split(","), *(after[2].split(",") if len(after) > 2 else ())}
    return Mount(before[2], _plain(before[3]), _plain(before[4]), frozenset(options), after[0], _plain(after[1]))


def _plain(word: str) -> str:
    """Blanks and backslashes stand in mountinfo as octal numbers."""
    for octal, character in _OCTAL:
        word = word.replace(octal, character)
    return word
