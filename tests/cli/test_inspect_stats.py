"""`engram inspect stats` and `inspect vocab` as commands: exit codes, both streams, records."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from planted_faults import constant_rows, lay, not_a_number, sound_records
from small_tables import small_manifest

from engram_tables import load_spec
from engram_tables.storage.table.shards import plan_shards, shard_header

from .conftest import Engram


def test_a_sound_table(engram: Engram, tiny_table: Path) -> None:
    ran = engram("inspect", "stats", tiny_table)
    assert ran.code == 0
    assert "findings   none" in ran.out
    assert "every row was read" in ran.out
    (record,) = engram("inspect", "stats", tiny_table, "--json", "--record", "stats.json").records()
    assert record["schema"] == "engram.inspect-stats/1"
    assert record["is_sound"] is True
    assert {**json.loads(Path("stats.json").read_text()), "device_bytes": 0} == {**record, "device_bytes": 0}
    assert engram("inspect", "stats", tiny_table, "--record", "stats.json").code == 3
    assert engram("inspect", "stats", tiny_table, "--all", "--sample", 100).code == 2
    assert engram("inspect", "stats", tiny_table, "--against", tiny_table).code == 0
    assert engram("inspect", "stats", "nothing").code == 4


def test_faults_end_with_6_and_suspicions_only_where_strict(engram: Engram, tmp_path: Path) -> None:
    for name, fault in (("faulty", not_a_number), ("suspect", constant_rows)):
        records = sound_records("bf16")
        fault("bf16", records)
        lay(tmp_path / name, "bf16", records)
    ran = engram("inspect", "stats", "faulty", "--sample", 1024)
    assert ran.code == 6
    assert "fault: nan-codes" in ran.out
    assert "layer 14, order 2, head 0" in ran.out
    assert "found nan-codes" in ran.err
    ran = engram("inspect", "stats", "suspect", "--sample", 1024)
    assert ran.code == 0
    assert "suspect: constant-rows" in ran.out
    assert engram("inspect", "stats", "suspect", "--sample", 1024, "--strict").code == 6


def test_a_table_of_true_size_is_answered_from_a_sample(engram: Engram, tmp_path: Path) -> None:
    """203 GB of holes with the addressing of V4.1; no more is asked for than the sample."""
    path = tmp_path / "v41"
    empty = small_manifest(load_spec("deepseek-v4.1-flash"), codec="fp8-e4m3-e8m0", layout="packed", block_bytes=2**30)
    shards = []
    for shard in plan_shards(empty, 2**40):
        header = shard_header(empty, shard)
        (path / shard.path).parent.mkdir(parents=True, exist_ok=True)
        with (path / shard.path).open("wb") as file:
            file.write(header)
            file.truncate(shard.file_bytes)
        shards.append(replace(shard, header_sha256=hashlib.sha256(header).hexdigest()))
    (path / "engram.json").write_bytes(replace(empty, shards=tuple(shards)).to_bytes())
    ran = engram("inspect", "stats", path, "--sample", 64, "--json")
    assert ran.code == 6
    (record,) = ran.records()
    assert record["n_rows_here"] == 768_022_850
    assert record["requested_bytes"] == 264 * record["n_rows_read"] < 2_000_000
    assert record["page_bytes"] < 30_000_000
    assert [(finding["check"], finding["where"]) for finding in record["findings"]] == [("zero-table", "every head")]
    assert [group["limits"]["repeated"] for group in record["groups"]] == [None] * 48


@pytest.mark.parametrize("why", [(), ("--why",)])
def test_a_string_is_searched_for(engram: Engram, tiny_vocab_file: Path, why: tuple[str, ...]) -> None:
    ran = engram("inspect", "vocab", tiny_vocab_file, "--search", "The", *why)
    assert ran.code == 0
    assert "with 'The' as it stands" not in ran.out
    assert "with 'The' as it stands" in ran.err
    assert "' the'" in ran.out
    assert ("lower case" in ran.out) is bool(why)
    none = engram("inspect", "vocab", tiny_vocab_file, "--search", "zq", *why)
    assert (none.code, none.out) == (0, "")
    assert "0 tokens: 0 with 'zq'" in none.err
    records = engram("inspect", "vocab", tiny_vocab_file, "--search", "The", "--most", 1, "--json", *why).records()
    assert [(record["text"], record["matched"]) for record in records] == [("The", "both")]
    assert (records[0]["why"] is not None) is bool(why)
