"""Timing, residency and the benchmark's record."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.address.vocabulary import build_vocabulary
from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.mapping import MappingEngine
from engram_tables.fetch.table import open_table
from engram_tables.measure import bench as bench_module
from engram_tables.measure.bench import bench_offload
from engram_tables.measure.ceilings import fio_random_reads, memory_ceilings
from engram_tables.measure.environment import describe, device_reads
from engram_tables.measure.lookups import BenchPlan
from engram_tables.measure.residency import evict, huge_page_bytes, preload, resident_bytes
from engram_tables.measure.timing import Case, interleave, summarise
from engram_tables.measure.trace import text_trace, uniform_trace, unique_ratio
from engram_tables.memory import anonymous_bytes
from engram_tables.storage.building.writer import build_table, plan_table

SPEC = AddressSpec(
    name="small",
    provenance="made for a test",
    canonical_size=1000,
    history=HistoryRule(fill_id=0),
    orders=(2, 3),
    layers=tuple(
        LayerAddressing(
            layer_id=layer_id,
            multipliers=(3, 5, 7),
            moduli=((4001, 4003), (4007, 4013)),
            offsets=(0, 4001, 8004, 12_011),
            n_rows=16_024,
        )
        for layer_id in (1, 2)
    ),
    row_width=64,
)


@pytest.fixture(scope="module")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "table"
    plan = plan_table(SPEC, codec="fp8-e4m3-e8m0", layout="packed", init="normal", shard_bytes=1 << 20)
    build_table(plan, path)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> BenchPlan:
    """Ceilings in a moment: their figures are not what is tested."""
    monkeypatch.setattr(
        bench_module, "memory_ceilings", lambda threads: memory_ceilings(region_bytes=64 << 20, repeats=1)
    )
    disk_ceilings = bench_module.disk_ceilings
    monkeypatch.setattr(bench_module, "disk_ceilings", lambda path, seconds: disk_ceilings(path, seconds=0.01))
    monkeypatch.setattr("engram_tables.measure.ceilings.shutil.which", lambda program: None)
    return BenchPlan(rows_per_batch=(8, 100), repeats=2, seconds=0.0)


def test_summaries() -> None:
    assert summarise([5, 1, 3, 100]) == {"median_ns": 4, "mad_ns": 2, "min_ns": 1, "max_ns": 100, "n": 4}


def test_cases_take_turns_and_preparation_is_not_timed() -> None:
    order: list[str] = []

    def case(name: str) -> Case:
        return Case(
            prepare=lambda: order.append(f"prepare {name}") or name, run=lambda given: order.append(f"run {given}")
        )

    found = interleave({"a": case("a"), "b": case("b")}, repeats=3, warm_ups=1)
    assert order == ["prepare a", "run a", "prepare b", "run b"] * 4
    assert {name: len(samples.elapsed_ns) for name, samples in found.items()} == {"a": 3, "b": 3}
    assert set(found["a"].summary()) >= {"median_ns", "mad_ns", "min_ns", "max_ns", "n", "p99_ns", "samples_ns"}


def test_rounds_end_at_the_most() -> None:
    found = interleave({"a": Case(prepare=lambda: None, run=lambda _: None)}, repeats=1, seconds=1e9, most=7)
    assert len(found["a"].elapsed_ns) == 7


def test_eviction_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(8 << 20))
    preload([path])
    assert resident_bytes([path]) == 8 << 20
    left = evict([path])
    assert left == resident_bytes([path])
    assert left < 8 << 20
    (tmp_path / "empty").write_bytes(b"")
    assert resident_bytes([tmp_path / "empty"]) == 0


def test_mincore_agrees_with_cachestat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom((5 << 20) + 123))
    by_cachestat = resident_bytes([path])
    monkeypatch.setattr("engram_tables.measure.residency._cachestat_pages", lambda fd: None)
    assert resident_bytes([path]) == by_cachestat >= 5 << 20


def test_huge_pages_are_counted_in_the_ranges_asked_for() -> None:
    small = anonymous_bytes(8 << 20, huge_pages=False)
    small.fill(1)
    assert small.ctypes.data % (2 << 20) == 0
    assert huge_page_bytes([small]) in (0, None)
    large = anonymous_bytes(64 << 20, huge_pages=True)
    large.fill(1)
    if describe()["transparent_huge_pages"] in ("always", "madvise"):
        assert huge_page_bytes([large]) > 0


def test_the_environment_can_be_written_down(tmp_path: Path) -> None:
    described = describe(tmp_path)
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["storage"]["filesystem"]
    assert described["packages"]["numpy"] == np.__version__
    before = device_reads(tmp_path)
    assert before is None or len(before) == 2


def test_without_fio_its_figure_is_waived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engram_tables.measure.ceilings.shutil.which", lambda program: None)
    assert fio_random_reads(tmp_path, seconds=1) == {"status": "waived", "reason": "fio is not installed"}


def test_uniform_rows_stay_in_their_columns() -> None:
    trace = uniform_trace(SPEC, n_tokens=500)
    assert trace.description["is_real_text"] is False
    rows = trace.addresses.rows
    for column, (offset, modulus) in enumerate(zip(SPEC.layers[0].offsets, (4001, 4003, 4007, 4013), strict=True)):
        assert ((rows[:, :, column] >= offset) & (rows[:, :, column] < offset + modulus)).all()
    assert unique_ratio(np.zeros((10, 2, 4), np.int64)) == pytest.approx(2 / 80)


def test_the_record(table_path: Path, quick: BenchPlan) -> None:
    calls: list[tuple[int, int]] = []
    record = bench_offload(table_path, plan=quick, progress=lambda done, total: calls.append((done, total)))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["schema"] == "engram.bench-offload/1"
    assert record["mismatches"] == []
    assert record["gpu"]["status"] == "waived"
    assert record["trace"]["kind"] == "uniform"
    assert record["dram"]["status"] == "measured"
    assert record["dram"]["state"]["resident_bytes_before"] >= record["dram"]["state"]["file_bytes"]
    engines_seen = [point["engine"] for point in record["dram"]["points"]]
    assert engines_seen[:3] == ["mapping", "gather, 1 thread", "gather, all threads"]
    for point in record["dram"]["points"]:
        assert point["rows_per_batch"] in (8, 96, 104)
        assert point["n"] == len(point["samples_ns"]) >= 2
        assert point["us_per_row"] * point["rows_per_s"] == pytest.approx(1e6)
        assert 1 <= point["pages_per_row"] <= 2
    if record["disk"]["status"] == "measured":
        names = {point["engine"] for point in record["disk"]["points"]}
        assert names == {"direct", "pread", "mapping, default advice", "mapping, MADV_RANDOM"}
    assert calls[-1][0] == calls[-1][1]


def test_an_engine_with_wrong_bytes_is_not_timed(
    table_path: Path, quick: BenchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = MappingEngine.read

    def wrong(self: Any, batch: Any, out: Any, threads: Any) -> None:
        read(self, batch, out, threads)
        out[-1, 5] ^= 1

    monkeypatch.setattr(MappingEngine, "read", wrong)
    record = bench_offload(table_path, plan=BenchPlan(rows_per_batch=(8,), sources=("dram",), repeats=1, seconds=0.0))
    assert "mapping" not in [point["engine"] for point in record["dram"]["points"]]
    assert record["mismatches"][0] == {
        "source": "dram", "engine": "mapping", "records": 1, "first": {"token": 0, "layer_idx": 1, "column": 3}
    }  # fmt: skip


def test_a_disk_that_cannot_be_measured_is_waived(
    table_path: Path, quick: BenchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(paths: Any) -> int:
        raise BackendUnavailable("no such advice")

    monkeypatch.setattr(bench_module, "evict", refuse)
    record = bench_offload(table_path, plan=BenchPlan(rows_per_batch=(8,), sources=("disk",), repeats=1, seconds=0.0))
    assert record["disk"] == {"status": "waived", "reason": "no such advice"}


def test_a_table_larger_than_memory_is_waived(
    table_path: Path, quick: BenchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "read_meminfo", lambda: {"MemAvailable": 1000})
    monkeypatch.setattr(bench_module, "resident_bytes", lambda paths: 0)
    record = bench_offload(table_path, plan=BenchPlan(rows_per_batch=(8,), sources=("dram",), repeats=1, seconds=0.0))
    assert record["dram"]["status"] == "waived"
    assert "1000 bytes of memory" in record["dram"]["reason"]


def test_unusable_plans(table_path: Path) -> None:
    for wrong in ({"rows_per_batch": ()}, {"rows_per_batch": (0,)}, {"sources": ("tape",)}, {"repeats": 0}):
        with pytest.raises(InvalidInput):
            BenchPlan(**wrong)
    with pytest.raises(InvalidInput, match="give more text"):
        bench_offload(table_path, plan=BenchPlan(rows_per_batch=(10**9,)))
    with pytest.raises(InvalidInput, match="holds no vocabulary"):
        bench_offload(table_path, corpus=[table_path])


def test_the_top_of_the_package_opens_tables(table_path: Path) -> None:
    with open_table(table_path) as table:
        records = table.fetch_rows(1, [0, 16_023])
        assert records.shape == (2, table.row_bytes)
        assert table.decode(records).shape == (2, 64)


def text_table(root: Path) -> Path:
    """A table with the vocabulary of a tokenizer of three hundred words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"word{k}": k for k in range(300)}
    tokenizer = Tokenizer(models.WordLevel({**words, "?": 300}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (root / "tokenizer.json").write_text(tokenizer.to_str())
    vocabulary = build_vocabulary(root / "tokenizer.json", rule="identity")
    vocabulary.save(root / "vocab.parquet")
    spec = replace(SPEC, canonical_size=vocabulary.canonical_size, vocab_sha256=None)
    plan = plan_table(spec, codec="fp8-e4m3-e8m0", layout="page", init="normal", vocabulary_file=root / "vocab.parquet")
    build_table(plan, root / "table")
    return root / "table"


def test_traces_of_text_respect_documents(tmp_path: Path) -> None:
    path = text_table(tmp_path)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("word1 word2 word3")
    (corpus / "b.txt").write_text("word1 word2")
    (corpus / "c.py").write_text("word9")
    with open_table(path) as table:
        trace = text_trace(table, [corpus], glob="*.txt")
        by_document = [
            table.spec.address(table.vocabulary.canonical(np.array(ids))).rows for ids in ([1, 2, 3], [1, 2])
        ]
        found = trace.addresses.rows
        assert any(np.array_equal(found, np.concatenate(order)) for order in (by_document, by_document[::-1]))
        assert (trace.description["documents"], trace.description["tokens"]) == (2, 5)
        assert trace.description["is_real_text"] is True
        cut = text_trace(table, [corpus], glob="a.txt", text_bytes=12)
        assert (cut.n_tokens, cut.description["text_bytes"]) == (2, 12)
        with pytest.raises(InvalidInput, match="found no token"):
            text_trace(table, [corpus], text_bytes=0)


def test_the_command(tmp_path: Path, quick: BenchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer
    from typer.testing import CliRunner

    from engram_cli import console
    from engram_cli.commands.bench_offload import bench_offload as command

    app = typer.Typer()
    app.command()(console.guarded(command))
    path = text_table(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(f"word{k % 7}" for k in range(2000)))
    quickly = [str(path), "--rows-per-batch", "8,40", "--repeats", "1", "--seconds", "0"]
    ran = CliRunner().invoke(
        app, [*quickly, "--corpus", str(tmp_path / "text.txt"), "--json", "--record", str(tmp_path / "record.json")]
    )
    assert ran.exit_code == 0, ran.output
    record = json.loads(ran.stdout)
    assert record["trace"]["tokens"] == 2000
    assert json.loads((tmp_path / "record.json").read_text()) == record
    ran = CliRunner().invoke(app, [*quickly, "--from", "dram"])
    assert ran.exit_code == 0, ran.output
    assert "a bound, not real text" in ran.stdout
    assert "rows/s" in ran.stdout
    for wrong in (
        ["--from", "tape"], ["--rows-per-batch", "4,x"], ["--rows-per-batch", "²"],
        ["--rows-per-batch", "٣"], ["--rows-per-batch", ""], ["--rows-per-batch", "9" * 5000],
        ["--rows-per-batch", "9" * 400], ["--record", str(tmp_path / "record.json")],
        ["--corpus", str(tmp_path / "nothing")],
    ):  # fmt: skip
        assert CliRunner().invoke(app, [*quickly, *wrong]).exit_code == 3
    assert CliRunner().invoke(app, [str(tmp_path)]).exit_code == 4
    read = GatherEngine.read

    def wrong_bytes(self: Any, batch: Any, out: Any, threads: Any) -> None:
        read(self, batch, out, threads)
        out[0] ^= 1

    monkeypatch.setattr(GatherEngine, "read", wrong_bytes)
    assert CliRunner().invoke(app, [*quickly, "--from", "dram"]).exit_code == 6
