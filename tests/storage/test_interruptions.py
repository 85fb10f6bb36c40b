"""What a build leaves behind when the machine or the user stops it; each in a process of its own."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_tables import names_in, small_spec, small_table

ENGRAM = [sys.executable, "-c", "from engram_cli.main import main; main()"]


def spec_file(path: Path, n_rows: int, row_width: int = 256) -> Path:
    path.write_text(json.dumps(small_spec(n_rows, row_width=row_width).to_json()))
    return path


def build_command(spec: Path, target: Path | str, *options: str) -> list[str]:
    return [*ENGRAM, "build-table", "--spec", str(spec), "--codec", "f32", "-o", str(target), *options]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("replaces", [False, True])
def test_stopping_a_build_leaves_what_was_there(tmp_path: Path, stop: signal.Signals, replaces: bool) -> None:
    if shutil.disk_usage(tmp_path).free < 3 * 2**30:
        pytest.skip("3 GiB of free disk are needed")
    spec = spec_file(tmp_path / "spec.json", 1_000_000)
    target = tmp_path / "out" / "t"
    target.parent.mkdir()
    if replaces:
        small_table(target)
    before = sorted(target.rglob("*"))
    command = build_command(spec, target, "--threads", "2", *(["--force"] if replaces else []))
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: any(path.suffix == ".partial" for path in target.parent.iterdir()), child)
        time.sleep(0.3)
        assert child.poll() is None, "the build ended before it could be stopped"
        child.send_signal(stop)
        out, err = child.communicate(timeout=240)
    finally:
        child.kill()
    assert child.returncode == 130, err
    assert "interrupted" in err
    assert out == ""
    assert names_in(target.parent) == (["t"] if replaces else [])
    assert sorted(target.rglob("*")) == before


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
    assert "1.00 MiB (1,048,576 B) free, expected 19.5" in err


def test_disk_that_fills_up_in_the_middle(tmp_path: Path) -> None:
    spec = spec_file(tmp_path / "spec.json", 1000)
    (tmp_path / "disk").mkdir()
    for n_inodes in range(2, 8):
        command = build_command(spec, tmp_path / "disk" / "t", "--shard-bytes", "300KiB")
        status, err, left = in_small_filesystem(f"size=64m,nr_inodes={n_inodes}", tmp_path / "disk", command)
        assert (status, left) == (5, [])
        assert "No space left" in err
    status, err, left = in_small_filesystem("size=64m", tmp_path / "disk", command)
    assert (status, left) == (0, ["t"])


READER = """
import hashlib, sys
import numpy as np
from engram_tables.storage.reader import StoredTable
with StoredTable(sys.argv[1]) as table:
    print("open", flush=True)
    sys.stdin.readline()
    digest = hashlib.sha256()
    for shard_idx in range(len(table.shards)):
        digest.update(table.mapping(shard_idx))
    print(digest.hexdigest(), flush=True)
"""


def test_force_over_a_table_that_another_process_reads(tmp_path: Path) -> None:
    import hashlib

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
        spec = spec_file(tmp_path / "spec.json", 101, 32)
        subprocess.run(build_command(spec, path, "--force"), check=True, capture_output=True)
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline().strip() == digest.hexdigest()
    assert json.loads((path / "engram.json").read_text())["codec"] == "f32"
