"""Who else used the machine while something was measured: stalls, stolen time, load, and others' reads of a device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engram_tables.measure.environment import device_counters, read_text

_PRESSURES = ("cpu", "io", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Counters of the machine at one moment; what it does not tell is None.

    Attributes
    ----------
    stalled_us
        By resource, microseconds in which some task waited for it.
    """

    stalled_us: dict[str, int | None]
    stolen_ns: int | None
    device_read_bytes: int | None
    device_written_bytes: int | None
    own_read_bytes: int | None
    involuntary_switches: int | None

    @classmethod
    def now(cls, path: Path) -> Self:
        """Read them; `path` names the device."""
        device = device_counters(path)
        return cls(
            stalled_us={name: _stalled_us(name) for name in _PRESSURES},
            stolen_ns=_stolen_ns(),
            device_read_bytes=None if device is None else device.read_bytes,
            device_written_bytes=None if device is None else device.written_bytes,
            own_read_bytes=own_read_bytes(),
            involuntary_switches=_involuntary_switches(),
        )


def contention(before: Counters, after: Counters, *, elapsed_ns: int) -> dict[str, Any]:
    """What happened between two moments, as a record."""
    device = _difference(before.device_read_bytes, after.device_read_bytes)
    own = _difference(before.own_read_bytes, after.own_read_bytes)
    stalled = {
        f"{name}_stalled_us": _difference(before.stalled_us[name], after.stalled_us[name]) for name in _PRESSURES
    }
    return {
        "elapsed_ns": elapsed_ns,
        **stalled,
        "stolen_ns": _difference(before.stolen_ns, after.stolen_ns),
        "involuntary_switches": _difference(before.involuntary_switches, after.involuntary_switches),
        "device_read_bytes": device,
        "own_read_bytes": own,
        "others_read_bytes": None if device is None or own is None else max(0, device - own),
        "device_written_bytes": _difference(before.device_written_bytes, after.device_written_bytes),
        "load_average_1_minute": round(os.getloadavg()[0], 2),
    }


def own_read_bytes() -> int | None:
    """Bytes that the system charged to this process as read from storage; None where it does not say."""
    for line in (read_text("/proc/self/io") or "").splitlines():
        name, _, value = line.partition(": ")
        if name == "read_bytes":
            return int(value)
    return None


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _stalled_us(resource: str) -> int | None:
    for line in (read_text(f"/proc/pressure/{resource}") or "").splitlines():
        words = line.split()
        if words[0] == "some" and words[-1].startswith("total="):
            return int(words[-1].removeprefix("total="))
    return None


def _stolen_ns() -> int | None:
    words = (read_text("/proc/stat") or "").splitlines()[:1]
    figures = words[0].split() if words else []
    return int(figures[8]) * 10**9 // os.sysconf("SC_CLK_TCK") if len(figures) > 8 else None


def _involuntary_switches() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
