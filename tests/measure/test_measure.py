"""Timing, residency and the benchmark's record."""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.address.vocabulary import build_vocabulary
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.corpus.tokens.token_store import open_tokens
from engram_tables.corpus.traffic.trace_contents import Store
from engram_tables.corpus.traffic.trace_writer import plan_trace, run_trace
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.fetch.table import open_table
from engram_tables.measure.bench import bench_offload
from engram_tables.measure.ceilings import bus_ceilings, fio_random_reads, sweep_depths
from engram_tables.measure.environment import describe, device_reads
from engram_tables.measure.offload.plan import BenchPlan, Section, Source, State
from engram_tables.measure.residency import evict, huge_page_bytes, preload, resident_bytes
from engram_tables.measure.timing import Case, interleave, summarise
from engram_tables.measure.trace import repeated_trace, stored_trace, text_trace, uniform_trace, unique_ratio
from engram_tables.memory import anonymous_bytes
from engram_tables.storage.building.writer import build_table, plan_table
from engram_tables.storage.row_files import RowFile

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


def test_summaries() -> None:
    assert summarise([5, 1, 3, 100]) == {"median_ns": 4, "mad_ns": 2, "min_ns": 1, "max_ns": 100, "n": 4}


def test_cases_take_turns_and_preparation_is_not_timed() -> None:
    order: list[str] = []

    def case(name: str) -> Case:
        return Case(
            prepare=lambda: order.append(f"prepare {name}") or name, run=lambda given: order.append(f"run {given}")
        )

    found = interleave({"a": case("a"), "b": case("b")}, repeats=9, warm_ups=1)
    rounds = {tuple(order[k : k + 4]) for k in range(0, len(order), 4)}
    assert len(order) == 40
    # Each round has all cases, and not always in the same order.
    assert rounds == {
        ("prepare a", "run a", "prepare b", "run b"), ("prepare b", "run b", "prepare a", "run a")
    }  # fmt: skip
    assert {name: len(samples.elapsed_ns) for name, samples in found.items()} == {"a": 9, "b": 9}
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


def test_nvbandwidth_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bus_ceilings() == {"status": "waived", "reason": "nvbandwidth is not installed"}
    program = tmp_path / "nvbandwidth"
    for printed, expected in (
        ('echo "no device" >&2; exit 1', {"status": "waived", "reason": "nvbandwidth ended with status 1: no device"}),
        (
            'echo \'noise {"nvbandwidth": {"testcases": [{"name": "host_to_device_memcpy_ce", "status": "Passed", '
            '"sum": 52.5}, {"name": "host_to_device_memcpy_sm", "status": "Waived"}]}}\'',
            {"host_to_device_memcpy_ce_bytes_per_s": 52.5e9},
        ),
    ):
        program.write_text(f"#!/bin/sh\n{printed}\n")
        program.chmod(0o755)
        found = bus_ceilings()
        assert {key: found[key] for key in expected} == expected
        assert "host_to_device_memcpy_sm_bytes_per_s" not in found


def test_a_sweep_goes_on_past_saturation() -> None:
    asked: list[int] = []

    def measure(depth: int) -> float:
        asked.append(depth)
        return 100.0 * min(depth, 40)

    swept = sweep_depths(measure, (4, 1, 2))
    assert asked == [1, 2, 4, 8, 16, 32, 64, 128]
    assert (swept["best_reads_per_s"], swept["saturation_depth"], swept["is_past_saturation"]) == (4000.0, 64, True)
    flat = sweep_depths(lambda depth: 7.0, (1, 2))
    assert (flat["saturation_depth"], [point["depth"] for point in flat["points"]]) == (1, [1, 2])
    endless = sweep_depths(float, (512,))
    assert (endless["saturation_depth"], endless["is_past_saturation"]) == (512, False)
    assert sweep_depths(float, (256, 512))["points"][-1]["depth"] == 1024


def test_sections_follow_sources_and_state() -> None:
    def sections(**plan: object) -> list[str]:
        return [str(section) for section in BenchPlan(**plan).sections]

    assert sections() == ["dram, warm", "auto, warm", "nvme, cold", "auto, cold"]
    assert sections(sources=(Source.AUTO,)) == ["auto, warm", "auto, cold"]
    assert sections(state=State.COLD) == ["nvme, cold", "auto, cold"]
    assert sections(state=State.WARM) == ["dram, warm", "auto, warm"]
    assert sections(state=State.AS_IS, sources=(Source.NVME,)) == ["nvme, as-is"]
    assert Section(source=Source.DRAM, state=State.WARM) in BenchPlan().sections


def test_files_that_are_mapped_here_are_evicted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(4 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        content = bytes(mapping)
        assert resident_bytes([path]) == 4 << 20
        assert evict([path]) < 4 << 20
        assert bytes(mapping) == content


def test_repeated_rows_are_few_and_traces_are_taken_in_a_row(tmp_path: Path) -> None:
    repeated = repeated_trace(SPEC, n_tokens=400, n_ids=4)
    assert repeated.description["is_real_text"] is False
    assert all(len(np.unique(repeated.addresses.rows[start + 5 : start + 100], axis=0)) == 1 for start in (0, 100, 200))
    ids = np.random.default_rng(0).integers(0, 1000, 60)
    unfolded = replace(SPEC, folded=False)
    write_tokens(tmp_path / "tokens", [ids[:40], ids[40:]], token_size=1000)
    tokens = open_tokens(tmp_path / "tokens")
    run_trace(plan_trace(unfolded, tokens, None, output=tmp_path / "trace", store=Store.ROWS))
    expected = np.concatenate([SPEC.address(part).rows for part in (ids[:40], ids[40:])])
    build_table(plan_table(unfolded, codec="f32", layout="packed", init="zeros"), tmp_path / "table")
    with open_table(tmp_path / "table") as table:
        trace = stored_trace(table, tmp_path / "trace")
        assert np.array_equal(trace.addresses.rows, expected)
        assert (trace.description["kind"], trace.description["documents"]) == ("trace", 2)
        part = stored_trace(table, tmp_path / "trace", n_tokens=7)
        start = part.description["first_token"]
        assert np.array_equal(part.addresses.rows, expected[start : start + 7])
    other = replace(unfolded, history=HistoryRule(fill_id=1))
    run_trace(plan_trace(other, tokens, None, output=tmp_path / "other", store=Store.KEYS))
    with (
        open_table(tmp_path / "table") as table,
        pytest.raises(SpecMismatch, match="trace the tokens with this table's spec"),
    ):
        stored_trace(table, tmp_path / "other")


def test_uniform_rows_stay_in_their_columns() -> None:
    trace = uniform_trace(SPEC, n_tokens=500)
    assert trace.description["is_real_text"] is False
    rows = trace.addresses.rows
    for column, (offset, modulus) in enumerate(zip(SPEC.layers[0].offsets, (4001, 4003, 4007, 4013), strict=True)):
        assert ((rows[:, :, column] >= offset) & (rows[:, :, column] < offset + modulus)).all()
    assert unique_ratio(np.zeros((10, 2, 4), np.int64)) == pytest.approx(2 / 80)


def test_unusable_plans(table_path: Path) -> None:
    for wrong in (
        {"tokens": ()}, {"tokens": (0,)}, {"rows_per_batch": (0,)}, {"streams": ()}, {"streams": (0, 1)},
        {"depths": ()}, {"depths": (10**9,)}, {"repeats": 0},
        {"sources": (Source.DRAM,), "state": State.COLD}, {"sources": (Source.NVME,), "state": State.WARM},
    ):  # fmt: skip
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


def test_a_replaced_file_is_not_mistaken_for_the_one_that_is_read(tmp_path: Path) -> None:
    path, other = tmp_path / "rows", tmp_path / "new"
    for file in (path, other):
        file.write_bytes(os.urandom(4 << 20))
    with path.open("rb") as opened:
        of_table = RowFile(path=path, file_bytes=4 << 20, fd=opened.fileno())
        with mmap.mmap(of_table.fd, 0, prot=mmap.PROT_READ) as mapping:
            preload([of_table, other])
            other.replace(path)
            assert mapping[0] == os.pread(of_table.fd, 1, 0)[0]
            assert resident_bytes([of_table]) == 4 << 20
            if evict([of_table]) == 4 << 20:
                pytest.skip("the filesystem does not evict files")
            assert resident_bytes([of_table]) < 4 << 20
            assert resident_bytes([path]) == 4 << 20
