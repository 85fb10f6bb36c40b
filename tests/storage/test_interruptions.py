"""What a build leaves behind when the machine or the user stops it; each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_checkpoints import make_deepseek
from small_tables import names_in, small_spec, small_table

from engram_tables.storage.checking.verify import verify_tables

ENGRAM = [sys.executable, "-c", "from engram_cli.main import main; main()"]


def spec_file(path: Path, n_rows: int, row_width: int = 256) -> Path:
    path.write_text(json.dumps(small_spec(n_rows, row_width=row_width).to_json()))
    return path


def build_command(spec: Path, target: Path | str, *options: str) -> list[str]:
    return [*ENGRAM, "build-table", "--spec", str(spec), "--codec", "f32", "-o", str(target), *options]


@pytest.mark.parametrize(
    ("stop", "replaces"),
    [(signal.SIGINT, False), pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow), (signal.SIGKILL, True)],
)
def test_a_stopped_build_leaves_what_was_there_and_goes_on(
    tmp_path: Path, stop: signal.Signals, replaces: bool
) -> None:
    if shutil.disk_usage(tmp_path).free < 2**30:
        pytest.skip("1 GiB of free disk are needed")
    spec = spec_file(tmp_path / "spec.json", 100_000)
    target = tmp_path / "out" / "t"
    target.parent.mkdir()
    if replaces:
        small_table(target)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    command = build_command(spec, target, "--threads", "1", *(["--force"] if replaces else []))
    journal = target.parent / "t.work" / "journal"
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 1, child)
        child.send_signal(stop)
        out, err = child.communicate(timeout=240)
    finally:
        child.kill()
    # The plan may have been told; that something was written is told on stderr, in the end.
    assert out == "" or out.startswith("table  ")
    assert "wrote" not in err
    if stop is signal.SIGKILL:
        assert child.returncode == -signal.SIGKILL
    else:
        assert child.returncode == 130, err
        assert "interrupted" in err
        assert f"stay in {target.parent / 't.work'}; the same command goes on there" in err
    assert names_in(target.parent) == (["t", "t.work"] if replaces else ["t.work"])
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "blocks of an earlier run" in done.stderr
    assert names_in(target.parent) == ["t"]
    assert verify_tables([target]).is_whole


def wait_for(condition: object, child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():  # type: ignore[operator]
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def in_small_filesystem(options: str, directory: Path, command: list[str]) -> tuple[int, str, list[str]]:
    """Run `command` with a small tmpfs mounted on `directory`, in a mount namespace of its own."""
    probe = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o {options} none {directory}"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs in a private namespace is not permitted here")
    script = f'mount -t tmpfs -o {options} none {directory}; "$@"; echo "rc=$?"; ls -A {directory}'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command], capture_output=True, text=True, check=True, timeout=240
    )
    status, *left = done.stdout.split("rc=")[1].split("\n")
    return int(status), done.stderr, [name for name in left if name]


def test_full_disk_is_seen_before_the_work(tmp_path: Path) -> None:
    spec = spec_file(tmp_path / "spec.json", 10_000)
    (tmp_path / "disk").mkdir()
    command = build_command(spec, tmp_path / "disk" / "t")
    status, err, left = in_small_filesystem("size=1m", tmp_path / "disk", command)
    assert (status, left) == (5, [])
    assert "KiB (1,044,480 B) free, expected 19.5" in err


def test_disk_that_fills_up_in_the_middle(tmp_path: Path) -> None:
    spec = spec_file(tmp_path / "spec.json", 1000)
    (tmp_path / "disk").mkdir()
    for n_inodes in (2, 4, 6, 8):
        command = build_command(spec, tmp_path / "disk" / "t", "--shard-bytes", "300KiB")
        status, err, left = in_small_filesystem(f"size=64m,nr_inodes={n_inodes}", tmp_path / "disk", command)
        assert (status, left) == (5, [])
        assert "No space left" in err
    status, err, left = in_small_filesystem("size=64m", tmp_path / "disk", command)
    assert (status, left) == (0, ["t"])


READER = """
import hashlib, sys
import numpy as np
from engram_tables.storage.table.reader import StoredTable
with StoredTable(sys.argv[1]) as table:
    print("open", flush=True)
    sys.stdin.readline()
    digest = hashlib.sha256()
    for file_idx in range(len(table.files)):
        digest.update(table.mapping(file_idx))
    print(digest.hexdigest(), flush=True)
"""


@pytest.mark.parametrize(
    "way", ["fresh", *(pytest.param(way, marks=pytest.mark.slow) for way in ("repack", "resumed"))]
)
def test_force_over_a_table_that_another_process_reads(tmp_path: Path, way: str) -> None:
    path = small_table(tmp_path / "t", seed=1)
    digest = hashlib.sha256()
    for shard in sorted(path.rglob("*.safetensors")):
        digest.update(shard.read_bytes())
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "open\n"
        if way == "fresh":
            spec = spec_file(tmp_path / "spec.json", 101, 32)
            subprocess.run(build_command(spec, path, "--force"), check=True, capture_output=True)
        else:
            made = make_deepseek(tmp_path / "made")
            command = [*ENGRAM, "build-table", "--from", str(made.path), "--codec", "f32", "-o", str(path), "--force"]
            if way == "resumed":
                # The first flush of a directory comes when all blocks are written.
                stop = "import os; from engram_tables.storage.building import writer; writer.fsync_directory = os._exit"
                killed = [sys.executable, "-c", f"{stop}; from engram_cli.main import main; main()", *command[3:]]
                subprocess.run(killed, check=False, capture_output=True)
                assert (tmp_path / "t.work" / "journal").exists()
            subprocess.run(command, check=True, capture_output=True)
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline().strip() == digest.hexdigest()
    assert json.loads((path / "engram.json").read_text())["codec"] == "f32"
    assert not (tmp_path / "t.work").exists()
