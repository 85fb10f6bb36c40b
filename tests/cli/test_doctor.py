"""`engram doctor`: its two forms, what it takes, and its exit codes. What it finds is tested beside the checks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engram_tables.fetch.table import open_table
from engram_tables.fetch.tiers.placed_memory import memory_nodes
from engram_tables.measure.doctor.doctor import CHECKS
from engram_tables.measure.doctor.findings import Placement, Severity

from .conftest import Engram

MAIN = [sys.executable, "-c", "from engram_cli.main import main; main()"]
KEYS = {"check", "severity", "found", "limit", "remedy", "command", "found_value", "limit_value", "unit"}


def test_a_table_that_is_here(engram: Engram, tiny_table: Path) -> None:
    ran = engram("doctor", tiny_table, "--json")
    (record,) = ran.records()
    assert ran.code == (6 if record["verdict"] == Severity.WILL_FAIL else 0), ran.err
    assert record["schema"] == "engram.doctor/1"
    assert (record["table"], record["n_files"]) == (str(tiny_table), 2)
    assert record["file_bytes"] == sum(file.stat().st_size for file in tiny_table.rglob("*.safetensors"))
    assert len(record["checks"]) == len(CHECKS) == sum(record["n_checks"].values())
    for check in record["checks"]:
        assert set(check) == KEYS
        assert check["severity"] in set(Severity)
    assert {record["placement"], *(other["placement"] for other in record["other_placements"])} == set(Placement)
    read = next(check for check in record["checks"] if check["check"] == "reads")
    assert read["severity"] == "fine"
    assert "gather" in read["found"]


def test_what_people_read(engram: Engram, tiny_table: Path) -> None:
    ran = engram("doctor", tiny_table, "--placement", "dram")
    assert "placement  dram" in ran.out
    assert "\nFine:\n" in ran.out
    assert "memory-available" in ran.out
    assert "Other placements of the same rows" in ran.out


def test_a_table_that_no_machine_holds(engram: Engram) -> None:
    ran = engram("doctor", "--table-bytes", "1000000TiB", "--placement", "dram")
    assert ran.code == 6
    assert "check failed: placement dram: memory-available" in ran.err
    assert "Will fail:" in ran.out
    assert "build-room" in ran.out.partition("Not applicable:")[2]


def test_a_published_table_is_as_large_as_it_is(engram: Engram, tmp_path: Path) -> None:
    ran = engram("doctor", "--preset", "deepseek-v4.1-flash", "--build-into", tmp_path, "--placement", "dram", "--json")
    (record,) = ran.records()
    assert record["file_bytes"] == 768_022_850 * 264
    assert record["device_bytes"] == 768_022_850 * 272
    assert record["build_into"] == str(tmp_path)
    room = next(check for check in record["checks"] if check["check"] == "build-room")
    fits = shutil.disk_usage(tmp_path).free >= 768_022_850 * 264
    assert (room["severity"] == "fine") is fits


def test_a_spec_is_as_large_as_its_codec_makes_it(engram: Engram, tiny_table: Path) -> None:
    named = ("--spec", tiny_table.parent / "spec.json", "--placement", "dram", "--json")
    with open_table(tiny_table) as table:
        n_rows = sum(layer.n_rows for layer in table.spec.layers)
    for options, row_bytes in ((("--codec", "f32"), 128), (("--codec", "bf16"), 64), (("--row-bytes", 50), 50)):
        (record,) = engram("doctor", *named, *options).records()
        assert record["file_bytes"] == n_rows * row_bytes
    ran = engram("doctor", *named)
    assert (ran.code, "--codec" in ran.err) == (3, True)


@pytest.mark.skipif(any(not node.has_cpus for node in memory_nodes()), reason="this machine has memory without CPUs")
def test_memory_without_cpus_that_is_not_there(engram: Engram) -> None:
    ran = engram("doctor", "--table-bytes", "1MB", "--placement", "cxl", "--json")
    assert ran.code == 6
    found = {check["check"]: check for check in ran.records()[0]["checks"]}
    assert found["numa-nodes"]["severity"] == "will-fail"


def test_without_a_table(engram: Engram) -> None:
    ran = engram("doctor", "--json")
    assert ran.code == 0, ran.err
    (record,) = ran.records()
    assert record["table"] is record["file_bytes"] is record["build_into"] is None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--preset", "engram-27b", "--table-bytes", "1GB"), 2, "--table-bytes"),
        (("--placement", "moon"), 2, "moon"),
        (("--codec", "bf16"), 2, "--codec"),
        (("--preset", "engram-27b", "--codec", "bf16", "--row-bytes", "264"), 2, "--row-bytes"),
        (("--preset", "engram-27b", "--codec", "none-such"), 3, "none-such"),
        (("--table-bytes", "203"), 3, "203GB"),
        (("--preset", "none-such"), 3, "none-such"),
        (("--table-bytes", "many"), 3, "many"),
        (("--table-bytes", "1GB", "--build-into", "nowhere"), 3, "nowhere"),
        (("nowhere",), 4, "nowhere"),
    ],
)
def test_what_cannot_be_asked(engram: Engram, words: tuple[str, ...], code: int, said: str) -> None:
    ran = engram("doctor", *words)
    assert ran.code == code, ran.err
    assert said in ran.err
    assert ran.out == ""


def test_a_small_shared_memory_ends_with_6(tiny_table: Path) -> None:
    """As a container's is, in a mount namespace of its own."""
    mounted = "mount -t tmpfs -o size=64k none /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounted], capture_output=True, check=False).returncode:
        pytest.skip("no private mount namespace can be made here")
    program = " ".join(f"'{part}'" for part in MAIN)
    script = f"{mounted}; {program} doctor '{tiny_table}' --placement shm"
    ran = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 6, ran.stdout + ran.stderr
    assert "shared-memory" in ran.stderr
    assert "--shm-size" in ran.stdout


@pytest.mark.parametrize("wrong", [("https://example.com/table",), ("hf://owner/name",), ("--table-bytes", "0")])
def test_what_is_no_table_of_this_machine_is_refused(engram: Engram, wrong: tuple[str, ...]) -> None:
    ran = engram("doctor", *wrong)
    assert ran.code == 3
    assert "expected" in ran.err
    assert wrong[-1] in ran.err
