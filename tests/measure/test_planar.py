"""Checkpoints whose rows lie in two places: measured and inspected as they are, and said to have no digests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import MAKERS, Made, make_deepseek
from typer.testing import CliRunner

from engram_cli.app import app
from engram_tables.errors import InvalidInput
from engram_tables.fetch.table import open_table
from engram_tables.inspect.table import inspect_table
from engram_tables.measure import bench as bench_module
from engram_tables.measure.bench import bench_offload
from engram_tables.measure.ceilings import memory_ceilings
from engram_tables.measure.offload.lookups import Asked, batch_facts
from engram_tables.measure.offload.plan import BenchPlan
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.source import closing
from engram_tables.storage.table.ranks import Rank


@pytest.fixture(scope="module")
def planar(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_deepseek(tmp_path_factory.mktemp("planar") / "checkpoint")


def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bench_module, "memory_ceilings", lambda threads: memory_ceilings(region_bytes=64 << 20, repeats=1)
    )
    disk_ceilings = bench_module.disk_ceilings
    monkeypatch.setattr(
        bench_module, "disk_ceilings", lambda path, seconds, depths: disk_ceilings(path, seconds=0.01, depths=(1, 2))
    )
    monkeypatch.setattr(bench_module, "_SWEEP_SECONDS", 0.005)
    monkeypatch.setattr("engram_tables.measure.ceilings.shutil.which", lambda program: None)


def test_a_checkpoint_is_measured(planar: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    _quick(monkeypatch)
    record = bench_offload(planar.path, plan=BenchPlan(rows_per_batch=(48,), repeats=1, seconds=0.0, depths=(1, 2)))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["mismatches"] == []
    assert (record["table"]["layout"], record["table"]["has_digests"]) == (None, False)
    assert record["table"]["parts"] == ["weights", "scales"]
    assert record["sections"][0]["status"] == "measured"
    for point in record["sections"][0]["points"]:
        assert 2 <= point["pages_per_row"] < 2.5


def test_both_places_are_counted(planar: Made) -> None:
    with open_table(planar.path) as table:
        spec, stored = table.spec, table.stored
        rows = np.stack([np.arange(spec.n_columns) * 7 + layer for layer in range(len(spec.layers))])[None]
        rows = np.concatenate([rows, rows])
        by_layer = [(layer_id, rows[:, layer].reshape(-1)) for layer, layer_id in enumerate(spec.layer_ids)]
        facts = batch_facts(table, Asked(tuple(by_layer), None))
        pages, n_parts_pages, n_lines = set(), 0, 0
        for layer, layer_id in enumerate(spec.layer_ids):
            for part_idx, part in enumerate(stored.parts):
                spots = stored.locate(layer_id, rows[0, layer], part_idx)
                for file_idx, offset in zip(spots.file_idx.tolist(), spots.offsets.tolist(), strict=True):
                    touched = range(offset // 4096, (offset + part.n_bytes - 1) // 4096 + 1)
                    pages |= {(file_idx, page) for page in touched}
                    n_parts_pages += len(touched)
                    n_lines += (offset + part.n_bytes - 1) // 64 - offset // 64 + 1
        n_rows = rows[0].size
        assert facts["unique_ratio"] == 0.5
        assert facts["unique_bytes"] == n_rows * table.row_bytes
        assert facts["unique_pages"] == len(pages)
        assert facts["pages_per_row"] == pytest.approx(n_parts_pages / n_rows)
        assert facts["line_bytes"] == 2 * 64 * n_lines


def test_a_checkpoint_is_inspected(planar: Made) -> None:
    with open_table(planar.path) as table:
        facts = inspect_table(table)
    assert (facts["form"], facts["layout"], facts["has_digests"]) == ("deepseek", None, False)
    assert [part["name"] for part in facts["parts"]] == ["weights", "scales"]
    assert facts["n_rows_here"] == facts["n_rows"]
    for layer in facts["layers"]:
        for shard in layer["shards"]:
            part = next(part for part in facts["parts"] if part["name"] == shard["part"])
            start = shard["offset"]
            content = (planar.path / shard["path"]).read_bytes()[start : start + shard["n_rows"] * part["n_bytes"]]
            rows = planar.records[layer["layer_id"]][shard["first_row"] : shard["first_row"] + shard["n_rows"]]
            assert content == rows[:, part["start"] : part["start"] + part["n_bytes"]].tobytes()
    shown = CliRunner().invoke(app, ["inspect", "table", str(planar.path)])
    assert shown.exit_code == 0, shown.output
    assert "digests         none" in shown.stdout
    assert "lying apart     weights (64 bytes), scales (2 bytes)" in shown.stdout


def test_ngrams_of_a_checkpoint_lie_in_two_places(planar: Made, v4_vocab_file: Path) -> None:
    arguments = ["inspect", "ngram", str(planar.path), "import numpy as", "--vocab", str(v4_vocab_file), "--last"]
    ran = CliRunner().invoke(app, [*arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    rows = [row for line in ran.stdout.splitlines() for row in json.loads(line)["rows"]]
    with open_table(planar.path) as table:
        for row in rows:
            record = b""
            for part in row["parts"]:
                content = (planar.path / part["file"]).read_bytes()
                record += content[part["offset"] : part["offset"] + part["n_bytes"]]
                assert part["first_page"] == part["offset"] // 4096
            assert [part["part"] for part in row["parts"]] == ["weights", "scales"]
            assert record == table.fetch_rows(row["layer_id"], [row["row"]]).tobytes()
    shown = CliRunner().invoke(app, arguments)
    files = [
        {part["file"] for row in json.loads(line)["rows"] for part in row["parts"]} for line in ran.stdout.splitlines()
    ]
    assert shown.stdout.count(".safetensors") == sum(map(len, files))
    assert all(f" {part['offset']:,} " in shown.stdout for row in rows for part in row["parts"])


def test_text_is_looked_up_in_a_checkpoint(
    planar: Made, v4_vocab_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(monkeypatch)
    (tmp_path / "text.txt").write_text("import numpy as np\n" * 200)
    arguments = ["bench-offload", str(planar.path), "--corpus", str(tmp_path / "text.txt"), "--from", "dram"]
    quickly = ["--rows-per-batch", "8", "--repeats", "1", "--seconds", "0"]
    ran = CliRunner().invoke(app, [*arguments, *quickly])
    assert (ran.exit_code, "give --vocab" in ran.output) == (3, True)
    ran = CliRunner().invoke(app, [*arguments, *quickly, "--vocab", str(v4_vocab_file)])
    assert ran.exit_code == 0, ran.output
    assert "a row lies in 2 places: weights, scales" in ran.stdout
    assert "no digests" in ran.stdout


def test_ngrams_of_a_rank_are_shown_as_far_as_they_are_here(planar: Made, v4_vocab_file: Path, tmp_path: Path) -> None:
    with closing(open_source(planar.path)) as source:
        rank = Rank(by="head", rank=0, n_ranks=2)
        build_table(plan_repack(source, layout="page", rank=rank), tmp_path / "table", threads=1)
    arguments = ["inspect", "ngram", str(tmp_path / "table"), "import numpy", "--vocab", str(v4_vocab_file), "--last"]
    ran = CliRunner().invoke(app, [*arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    rows = [row for line in ran.stdout.splitlines() for row in json.loads(line)["rows"]]
    assert {bool(row["parts"]) for row in rows} == {True, False}
    for row in rows:
        assert (row["norm"] is None) == (row["parts"] == [])
    shown = CliRunner().invoke(app, arguments)
    assert shown.stdout.count("not here") == sum(not row["parts"] for row in rows)
    facts = CliRunner().invoke(app, ["inspect", "table", str(tmp_path / "table")])
    assert "(rank 0 of 2 by head)" in facts.stdout


def test_rows_that_no_codec_reads_are_inspected(tmp_path: Path) -> None:
    made = MAKERS["qwen-nvfp4"](tmp_path / "checkpoint")
    with open_table(made.path) as table:
        assert inspect_table(table)["codec"] == made.codec


def test_a_url_is_no_place_to_read_rows_from() -> None:
    with pytest.raises(InvalidInput, match=r"^https://host/model: found a URL"):
        open_table("https://host/model")
