"""Machines as the files of /proc and /sys that the checks read.

`trees/vm.json` was read from a virtual machine by this program, its mounts and its control group shortened; the others
are written after the kernel's documentation (proc(5), cgroup v1 and v2, the ABI of sysfs) for what that machine is not.

    python recorded_machines.py FILE.json

writes the machine that it runs on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from engram_tables.measure.doctor.doctor import examine
from engram_tables.measure.doctor.findings import Finding, Placement
from engram_tables.measure.doctor.subject import Subject
from engram_tables.measure.doctor.system import System
from engram_tables.measure.doctor.tries import Tries

TREES = Path(__file__).with_name("trees")
GB = 10**9


class Noting(System):
    """This machine, and a note of everything that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: dict[str, Any] = {"files": {}, "links": {}, "directories": []}

    def text(self, path: str) -> str | None:
        found = super().text(path)
        if found is not None:
            self.noted["files"][path] = found
        return found

    def names(self, directory: str, pattern: str) -> list[str]:
        found = super().names(directory, pattern)
        self.noted["directories"] += [f"{directory}/{name}" for name in found]
        return found

    def real(self, path: str) -> str:
        found = super().real(path)
        if found != path and os.path.exists(path):  # noqa: PTH110
            self.noted["links"][path] = found
        return found


def lay(tree: str, root: Path) -> System:
    """The machine of a tree, its files laid out below `root`."""
    noted = json.loads((TREES / f"{tree}.json").read_text(encoding="utf-8"))
    for path in noted["directories"]:
        (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for path, text in noted["files"].items():
        write(root, path, text)
    for path, target in noted["links"].items():
        link = root / path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        # Relative, as sysfs has them.
        link.symlink_to(os.path.relpath(root / target.lstrip("/"), link.parent))
    return System(root)


def write(root: Path, path: str, text: str) -> None:
    """One of its files, made or replaced."""
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding="utf-8")


def look(system: System, placement: str, n_bytes: int | None = None, **subject: Any) -> dict[str, Finding]:
    """The findings about a table of so many bytes in the machine's /data, by their checks."""
    asked = {"file_bytes": n_bytes, "device_bytes": n_bytes, "build_into": Path("/data"), **subject}
    tries = Tries(None, system)
    found = examine(System(system.root), Subject(**asked), Placement(placement), tries)
    return {finding.check: finding for finding in found}


def main() -> None:
    """Write this machine."""
    system = Noting()
    for placement in Placement:
        subject = Subject(file_bytes=GB, device_bytes=GB, n_files=1, build_into=Path("/"))
        examine(system, subject, placement, Tries(None, system))
    noted = {**system.noted, "directories": sorted(set(system.noted["directories"]))}
    Path(sys.argv[1]).write_text(json.dumps(noted, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
