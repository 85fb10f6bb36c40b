"""`engram plan` and `engram plan allocate`: records, tables, exit codes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engram_cli.console import Exit

from .conftest import Engram

USAGE = 2
V41 = ("plan", "--preset", "deepseek-v4.1-flash")
DISK = ("--disk-reads-per-s", "800000", "--disk-latency-us", "90", "--disk", "1TB")


def test_a_plan_by_hand(engram: Engram) -> None:
    (record,) = engram(
        *V41, *DISK, "--dram", "256GB", "--gpu-memory", "80GB", "--tokens-per-s", "60", "--bundle-reads", "19.9",
        "--json",
    ).records()  # fmt: skip
    assert record["schema"] == "engram.plan/1"
    assert record["table"]["table_bytes"] == 202_758_032_400
    found = {each["placement"]: each for each in record["placements"]}
    assert len(found) == 9
    assert {name: each["status"] for name, each in found.items()} == {
        "gpu": "too-small", "pinned": "fine", "dram": "fine", "shm": "unknown", "cxl": "unknown",
        "nvme-planar": "fine", "nvme-packed": "fine", "nvme-page": "fine", "nvme-bundled": "fine",
    }  # fmt: skip
    assert record["best"] == "pinned"
    assert found["nvme-planar"]["reads_per_token"] == 96
    assert found["nvme-packed"]["reads_per_s"] == 60 * 48
    assert found["nvme-bundled"]["reads_per_token"] == 19.9
    # By hand: the first read after the latency, the others at the rate.
    from_memory = found["dram"]["batched_ms_per_token"]
    assert found["nvme-packed"]["batched_ms_per_token"] - from_memory == pytest.approx((90 + 47 * 1.25) / 1e3)
    assert found["nvme-packed"]["slack"][1]["slack_ms"] == pytest.approx(14 / 40 * 1000 / 60)
    assert record["machine"]["disk"]["reads_per_s"]["origin"] == "given"


def test_what_a_plan_shows(engram: Engram) -> None:
    ran = engram(*V41, *DISK, "--dram", "64GB", "--tokens-per-s", "60", "--step-ms", "12", "--hit-ratio", "0.6",
                 "--cache", "4GiB", "--to", "gpu", "--prefill-tokens-per-s", "2000", "--chunk", "512")  # fmt: skip
    assert ran.code == 0, ran.err
    for expected in (
        "768,022,850 rows of 264 bytes", "nvme-packed: you are fine; nearest is", "host memory holds",
        "4 machines with a part of the rows each", "layer 14", "of 40 layers", "--hit-ratio", "published", "assumed",
        "verdict: fine with nvme-planar, nvme-packed, nvme-page", "one after the other",
        "figures, and where they come from",
    ):  # fmt: skip
        assert expected in " ".join(ran.out.split()), expected


def test_a_record_is_written_and_read_back_as_a_machine(engram: Engram, tmp_path: Path) -> None:
    written = engram(*V41, *DISK, "--tokens-per-s", "9", "--placement", "nvme-page", "--record", "plan.json", "--json")
    assert json.loads((tmp_path / "plan.json").read_text()) == written.records()[0]
    again = engram(*V41, "--machine", "plan.json", "--tokens-per-s", "9", "--placement", "nvme-page", "--json")
    assert again.records()[0]["placements"] == written.records()[0]["placements"]
    refused = engram(*V41, "--record", "plan.json")
    assert (refused.code, "plan.json" in refused.err) == (Exit.INPUT_UNUSABLE, True)


def test_a_spec_of_ones_own(engram: Engram, tiny_table: Path) -> None:
    (record,) = engram("plan", "--spec", tiny_table.parent / "spec.json", "--codec", "f32", *DISK, "--dram", "1GB",
                       "--tokens-per-s", "100", "--model-layers", "4", "--json").records()  # fmt: skip
    assert record["table"]["row_bytes"] == 128
    assert record["best"] == "pinned"
    assert record["table"]["table_bytes"] == record["table"]["n_rows"] * 128
    assert engram("plan", "--spec", tiny_table.parent / "spec.json").code == Exit.INPUT_UNUSABLE


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--hit-ratio", "60"), "expected 0 to 1"),
        (("--placement", "tape"), "expected one of gpu, pinned"),
        (("--to", "tape"), "expected one of host, gpu"),
        (("--figure", "speed=1"), "found the figure 'speed'"),
        (("--figure", "call_us"), "expected NAME=NUMBER"),
        (("--figure", "call_us=nan"), "expected more than 0"),
        (("--dram", "much"), "size 'much'"),
        (("--disk-latency-us", "80"), "a latency is no rate"),
        (("--model-shape", "gpt"), "model shape 'gpt'"),
        (("--codec", "mp3"), "mp3"),
        (("--probe", "nowhere"), "found no directory"),
    ],
)
def test_what_a_plan_refuses(engram: Engram, words: tuple[str, ...], expected: str) -> None:
    ran = engram(*V41, *words)
    assert ran.code == Exit.INPUT_UNUSABLE
    assert expected in ran.err


@pytest.mark.parametrize(
    "words",
    [("--hit-ratio", "0.5", "--hit-curve", "x.json"), ("--policy", "lru"), ("--codec", "f32", "--row-bytes", "9")],
)
def test_options_that_contradict_each_other_are_usage(engram: Engram, words: tuple[str, ...]) -> None:
    assert engram(*V41, *words).code == USAGE


def test_placements_fit_into_80_columns(engram: Engram) -> None:
    ran = engram(*V41, *DISK, "--dram", "256GB", "--tokens-per-s", "123456.7", "--streams", "512")
    lines = ran.out.splitlines()
    start = next(k for k, line in enumerate(lines) if "waiting" in line and "placement" in line)
    table = lines[start : start + 10]
    assert table[-1].split()[0] == "nvme-page"
    assert max(map(len, table)) <= 80


def test_an_allocation(engram: Engram) -> None:
    (record,) = engram("plan", "allocate", "--total", "26.7e9", "--active", "3.8e9", "--json").records()
    assert record["schema"] == "engram.plan-allocate/1"
    assert [table["budget_parameters"] for table in record["tables"]] == [4_580_000_000, 5_725_000_000]
    shown = engram("plan", "allocate", "--rows-per-head", "16000000", "--orders", "2,3,4", "--row-width", "256",
                   "--codec", "fp8-e4m3-e8m0")  # fmt: skip
    assert "202,758,032,400" in shown.out
    assert "arXiv 2601.07372" in shown.out
    for words in (("--parameters", "5.5"), ("--parameters", "many"), ("--total", "1e9"), ("--parameters", "1e9",
                  "--rows-per-head", "100"), ("--total", "3e9"), ()):  # fmt: skip
        is_usage = words[:1] != ("--parameters",) or len(words) > 2
        expected = USAGE if is_usage else Exit.INPUT_UNUSABLE
        assert engram("plan", "allocate", *words).code == expected
