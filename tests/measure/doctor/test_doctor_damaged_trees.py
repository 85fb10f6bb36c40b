"""Recorded trees with a file that is missing, empty or full of something else: the doctor cannot look, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded_machines import GB, TREES, lay, look, write

from engram_tables.measure.doctor.findings import Placement, Severity
from engram_tables.measure.doctor.system import System, numbers

WRONG = (Severity.WILL_FAIL, Severity.WILL_BE_SLOW)
GARBAGE = ("", "garbage\n", "\u00b2\n", "9" * 5000, "a: b c\nd e f: g\n", "cpu  x y z a b c d e\n", None)
# A group without such a file has no limit of its own: as the root of all groups has none.
NO_LIMIT_WITHOUT = ("memory.max", "cpu.max", "cpu.cfs_quota_us")


@pytest.mark.slow
@pytest.mark.parametrize("tree", ["vm", "container", "server"])
def test_what_cannot_be_read_is_neither_an_alarm_nor_fine(tree: str, tmp_path: Path) -> None:
    files = json.loads((TREES / f"{tree}.json").read_text(encoding="utf-8"))["files"]
    root = lay(tree, tmp_path).root
    asked = {"n_files": 50, "is_locked": True}
    before = {where: look(System(root), where, 1000 * GB, **asked) for where in Placement}
    for path, text in files.items():
        for garbage in GARBAGE:
            if garbage is None:
                (root / path.lstrip("/")).unlink()
            else:
                write(root, path, garbage)
            for where, sane in before.items():
                for name, finding in look(System(root), where, 1000 * GB, **asked).items():
                    what = (path, garbage and garbage[:20], where, finding)
                    assert finding.severity not in WRONG or sane[name].severity in WRONG, what
                    if garbage is None and path.endswith(NO_LIMIT_WITHOUT):
                        continue
                    assert finding.severity is not Severity.FINE or sane[name].severity not in WRONG, what
        write(root, path, text)


def test_a_limit_of_no_number_is_no_limit_that_is_known(tmp_path: Path) -> None:
    write(tmp_path, "/proc/self/limits", "Limit\nMax open files            many                 many         files\n")
    assert "Max open files" not in System(tmp_path).limits


def test_lists_of_nodes_are_short() -> None:
    assert numbers("0-1,3,9-99999999999999999,5-2,\u00b2,x") == [0, 1, 3]
