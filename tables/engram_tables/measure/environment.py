"""What a measurement ran on: everything a reader needs to judge whether a figure would hold elsewhere."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from engram_tables import __version__
from engram_tables.threads import resolve_threads

_PACKAGES = ("numpy", "numba", "llvmlite", "pyarrow", "tokenizers")


def describe(path: Path | None = None) -> dict[str, Any]:
    """The machine and, given a path, the filesystem and block device that hold it. What cannot be read is
    None."""
    memory = read_meminfo()
    described: dict[str, Any] = {
        "cpu_model": _cpu_model(),
        "usable_cpus": resolve_threads(None),
        "machine": platform.machine(),
        "memory_bytes": memory.get("MemTotal"),
        "memory_available_bytes": memory.get("MemAvailable"),
        "transparent_huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "transparent_huge_page_defrag": _chosen("/sys/kernel/mm/transparent_hugepage/defrag"),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        "engram_tables": __version__,
        "packages": {name: _package(name) for name in _PACKAGES},
        "load_average_1_minute": round(os.getloadavg()[0], 2),
        "numa_nodes": _numa_nodes(),
        "cgroup_cpu_max": (read_text("/sys/fs/cgroup/cpu.max") or "").strip() or None,
        "clock_source": (read_text("/sys/devices/system/clocksource/clocksource0/current_clocksource") or "").strip()
        or None,
    }
    return described if path is None else {**described, "storage": describe_storage(path)}


def describe_storage(path: Path) -> dict[str, Any]:
    """Filesystem type, mount options and block queue of the device under `path`."""
    device = device_number(path)
    mount = _mount_of(path)
    queue = _queue_directory(device)
    return {
        "device": device,
        "filesystem": mount[0] if mount else None,
        "mount_options": mount[1] if mount else None,
        "read_ahead_kb": _integer(queue / "read_ahead_kb") if queue else None,
        "logical_block_bytes": _integer(queue / "logical_block_size") if queue else None,
        "rotational": _integer(queue / "rotational") if queue else None,
        "scheduler": _chosen(str(queue / "scheduler")) if queue else None,
        "model": (read_text(str(queue.parent / "device" / "model")) or "").strip() or None if queue else None,
        "nr_requests": _integer(queue / "nr_requests") if queue else None,
    }


def read_meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    text = read_text("/proc/meminfo") or ""
    fields = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields if words[2:] == ["kB"]}


def device_number(path: Path) -> str:
    """`major:minor` of the device that holds `path`."""
    device = path.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


class DeviceCounters(NamedTuple):
    """What a block device has done since boot, for whoever asked."""

    reads: int
    read_bytes: int
    writes: int
    written_bytes: int


def device_counters(path: Path) -> DeviceCounters | None:
    """Counters of the block device under `path`; None where there are none."""
    text = read_text(f"/sys/dev/block/{device_number(path)}/stat")
    if text is None:
        return None
    words = [int(word) for word in text.split()]
    return DeviceCounters(words[0], words[2] * 512, words[4], words[6] * 512)


def device_reads(path: Path) -> tuple[int, int] | None:
    """(reads completed, bytes read) by the block device under `path` since boot; None where no counter is
    found."""
    found = device_counters(path)
    return None if found is None else (found.reads, found.read_bytes)


def command_line() -> list[str]:
    """The command that is running, for a record."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _cpu_model() -> str | None:
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def _numa_nodes() -> int | None:
    nodes = Path("/sys/devices/system/node")
    return sum(1 for node in nodes.glob("node[0-9]*")) or None if nodes.is_dir() else None


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _mount_of(path: Path) -> tuple[str, str] | None:
    device = device_number(path)
    for line in (read_text("/proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == device:
            return right.split()[0], left.split()[5]
    return None


def _queue_directory(device: str) -> Path | None:
    # A partition has no queue of its own; its disk, the directory above, has.
    place = Path(f"/sys/dev/block/{device}").resolve()
    for directory in (place / "queue", place.parent / "queue"):
        if directory.is_dir():
            return directory
    return None


def read_text(path: str) -> str | None:
    """A small file of the system's; None where it is not there or not ours to read."""
    try:
        return Path(path).read_text()
    except OSError:
        return None


def _integer(path: Path) -> int | None:
    text = read_text(str(path))
    return int(text) if text is not None and text.strip().isdigit() else None


def _chosen(path: str) -> str | None:
    """The word in brackets of a sysfs choice."""
    text = read_text(path)
    if text is None:
        return None
    return text.partition("[")[2].partition("]")[0] or text.strip()
