"""The work directory: whose it is, what is believed of it, and what is left of it after a crash."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables import work_directory
from engram_tables.errors import InvalidInput
from engram_tables.work_directory import (
    PLAN_NAME,
    WorkDirectory,
    publish_record,
    read_record,
    record_digest,
    work_path,
)

PLAN = {"schema": "engram.test-work/1", "inputs": ["a", "b"], "options": {"n": 1}}


def open_work(path: Path, plan: dict[str, Any] = PLAN, *, restart: bool = False) -> WorkDirectory:
    return WorkDirectory.open(path, plan, command="engram test", restart=restart)


def names(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


def test_it_lies_beside_its_output() -> None:
    assert work_path(Path("deep/counts")) == Path("deep/counts.work")
    assert work_path(Path("counts.v1")) == Path("counts.v1.work")


def test_finished_work_is_there_for_the_same_plan(tmp_path: Path) -> None:
    work = open_work(tmp_path / "w")
    publish_record(work, work.path / "one.json", {"n": 1})
    (work.partial / "half").write_text("x")
    work.close()
    again = open_work(tmp_path / "w", dict(reversed(PLAN.items())))
    assert read_record(again.path / "one.json") == {"n": 1}
    assert names(again.path) == sorted(["lock", "one.json", again.partial.name, PLAN_NAME])
    again.drop_partial()
    again.drop_partial()
    assert names(again.path) == ["lock", "one.json", PLAN_NAME]
    again.remove()
    again.close()
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_another_plan_is_refused_and_said_what_differs(tmp_path: Path) -> None:
    open_work(tmp_path / "w").close()
    before = names(tmp_path)
    for plan, message in (
        ({**PLAN, "inputs": ["a"]}, r"inputs: 2 then, 1 now"),
        ({**PLAN, "options": {"n": 2}}, r"n was 1, now 2"),
        ({**PLAN, "options": {"n": 1, "m": 0}}, r"m was None, now 0"),
        ({**PLAN, "more": True}, r"more was None, now True"),
    ):
        with pytest.raises(InvalidInput, match=f"w: found the work of another run .*{message}.*--restart"):
            open_work(tmp_path / "w", plan)
    assert names(tmp_path) == before
    work = open_work(tmp_path / "w", {**PLAN, "inputs": ["a"]}, restart=True)
    work.close()
    open_work(tmp_path / "w", {**PLAN, "inputs": ["a"]}).close()


def test_restart_empties_it(tmp_path: Path) -> None:
    work = open_work(tmp_path / "w")
    (work.path / "deep").mkdir()
    (work.path / "deep" / "file").write_text("x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis").write_text("years of work")
    (work.path / "link").symlink_to(outside)
    work.close()
    work = open_work(tmp_path / "w", restart=True)
    assert names(work.path) == sorted(["lock", work.partial.name, PLAN_NAME])
    assert (outside / "thesis").read_text() == "years of work"
    work.close()


def test_it_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    work = open_work(tmp_path / "w")
    for restart in (False, True):
        with pytest.raises(InvalidInput, match="another `engram test` at work there"):
            open_work(tmp_path / "w", restart=restart)
    program = (
        "import sys; from pathlib import Path; from engram_tables.work_directory import WorkDirectory\n"
        "WorkDirectory.open(Path(sys.argv[1]), {'schema': 'engram.test-work/1'}, command='engram test', restart=True)"
    )
    other = subprocess.run([sys.executable, "-c", program, tmp_path / "w"], capture_output=True, check=False)
    assert other.returncode == 1
    assert b"another `engram test` at work there" in other.stderr
    assert work.partial.is_dir()
    work.close()
    # The lock goes with the process that held it.
    subprocess.run([sys.executable, "-c", program, tmp_path / "w"], check=True)
    open_work(tmp_path / "w", {"schema": "engram.test-work/1"}).close()


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "nowhere").symlink_to("gone")
    for name, plan in (
        ("other", {"schema": "engram.other-work/1"}), ("list", []), ("number", 7), ("none", None)
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / PLAN_NAME).write_text(json.dumps(plan))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / PLAN_NAME).write_text("[" * 100_000)
    before = names(tmp_path)
    for name in ("home", "file", "link", "nowhere", "other", "list", "number", "none", "deep"):
        for restart in (False, True):
            with pytest.raises(InvalidInput, match=f"{name}: found something else than a work directory"):
                open_work(tmp_path / name, restart=restart)
    assert names(tmp_path) == before
    open_work(tmp_path / "empty").close()


@pytest.mark.parametrize("left", [[], ["lock"], ["partial-00"], ["lock", "partial-00", "partial-11"]])
def test_a_run_that_was_killed_before_its_plan_is_in_nobodys_way(tmp_path: Path, left: list[str]) -> None:
    (tmp_path / "w").mkdir()
    for name in left:
        if name == "lock":
            (tmp_path / "w" / name).touch()
        else:
            (tmp_path / "w" / name).mkdir()
            (tmp_path / "w" / name / PLAN_NAME).write_text("{")
    work = open_work(tmp_path / "w")
    assert names(work.path) == sorted(["lock", work.partial.name, PLAN_NAME])
    work.close()


@pytest.mark.parametrize("step", ["fsync", "fsync_directory", "mkdir"])
def test_a_failed_preparation_leaves_the_way_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        if step == "mkdir":
            real = Path.mkdir
            patch.setattr(Path, "mkdir", lambda path, **how: real(path, **how) if path.name == "w" else fail())
        else:
            patch.setattr(work_directory if step == "fsync_directory" else os, step, fail)
        with pytest.raises(OSError, match="no space") as failed:
            open_work(tmp_path / "w")
    assert failed.value.__notes__ == [f"while preparing {tmp_path / 'w'}"]
    # Renamed, but not yet durable: then there is a plan to go on with.
    assert (tmp_path / "w").exists() == (step == "fsync_directory")
    open_work(tmp_path / "w").close()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_damaged_record_is_not_believed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    work = open_work(tmp_path_factory.mktemp("work") / "w")
    record = {"start": 0, "stop": 100, "name": "a run"}
    path = work.path / "run.json"
    publish_record(work, path, record)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]):
        path.write_bytes(damaged)
        assert read_record(path) in (None, record)  # what only an end of line was is no damage
    path.write_bytes(whole)
    assert read_record(path) == record
    work.close()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"7", b"null", b"[" * 100_000, b"\xff", b"{}", b'{"record_sha256": "ab"}', b'{"a": NaN}']
)
def test_a_file_that_is_no_record_is_not_believed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    assert read_record(tmp_path / "r") is None
    assert read_record(tmp_path / "nowhere") is None
    assert read_record(tmp_path) is None


def test_a_record_without_its_digest_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "r").write_text(json.dumps({"a": 1}))
    assert read_record(tmp_path / "r") is None
    (tmp_path / "r").write_text(json.dumps({"a": 1, "record_sha256": record_digest({"a": 1})}))
    assert read_record(tmp_path / "r") == {"a": 1}
