"""A table with bundles as `engram bench-offload` measures it: with and without, by turns, and what a record says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_tables import add_bundles, counts_of
from test_measure import text_table
from test_offload_tiers import _quick_ceilings
from typer.testing import CliRunner

from engram_cli.app import app
from engram_tables.errors import BackendUnavailable, NotATable
from engram_tables.fetch.bundles import BundledTable
from engram_tables.fetch.table import open_table
from engram_tables.measure import bench as bench_module
from engram_tables.measure.bench import bench_offload
from engram_tables.measure.offload import bundled
from engram_tables.measure.offload.plan import BenchPlan, Source, State

__all__ = ["_quick_ceilings"]
WORDS = " ".join(f"word{k % 7}" for k in range(2000))
QUICK = BenchPlan(tokens=(1, 5), repeats=2, seconds=0.0, depths=(1, 2), bounds=False, sources=(Source.NVME,))


class Made:
    """A table of a vocabulary with bundles in it, the same bundles elsewhere, and a text that they are of."""

    def __init__(self, root: Path) -> None:
        self.path, self.text = text_table(root), root / "text.txt"
        self.text.write_text(WORDS)
        with open_table(self.path) as table:
            vocabulary = table.vocabulary
            assert vocabulary is not None
            ids = np.array(vocabulary.tokenizer().encode(WORDS).ids, np.uint32)
            counts = counts_of(root / "counts", [ids], table.spec, vocabulary)
        add_bundles(self.path, counts, budget_bytes=1 << 20)
        self.elsewhere = add_bundles(self.path, counts, output=root / "elsewhere", budget_bytes=1 << 20)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("bundles"))


def _measured(record: dict[str, Any]) -> dict[str, Any]:
    (section,) = record["sections"]
    if section["status"] == "waived":
        pytest.skip(section["reason"])
    found: dict[str, Any] = section["bundles"]
    assert found["status"] == "measured", found
    return found


def test_with_and_without_stand_beside_each_other(made: Made) -> None:
    record = bench_offload(made.path, corpus=[made.text], plan=replace(QUICK, streams=(1, 2)))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["mismatches"] == []
    found = _measured(record)
    assert [(each["tokens_per_batch"], each["streams"], each["has_bundles"]) for each in found["points"]] == [
        (n_tokens, streams, has) for n_tokens in (1, 5) for streams in (1, 2) for has in (False, True)
    ]
    for without, with_bundles in zip(found["points"][::2], found["points"][1::2], strict=True):
        assert without["reads_per_token"] == record["table"]["rows_per_token"]
        assert [each["share"] for each in without["found"]] == [0.0] * len(without["found"])
        # Seven words that follow each other: every n-gram but those of the first tokens is known.
        assert all(each["share"] > 0.8 for each in with_bundles["found"])
        shares = {each["order"]: each["share"] for each in with_bundles["found"]}
        expected = sum(
            record["table"]["layers"] * (shares[each["order"]] + (1 - shares[each["order"]]) * each["heads"])
            for each in record["table"]["bundles"]["orders"]
        )
        assert with_bundles["reads_per_token"] == pytest.approx(expected)
        assert with_bundles["bytes_per_token"] == without["bytes_per_token"]
        assert without["rows_per_s_over_without"] == 1.0
        assert with_bundles["ms_per_token"] == pytest.approx(1e3 / with_bundles["tokens_per_s"])
    described = record["table"]["bundles"]
    assert described["path"] == str(made.path / "bundles")
    assert described["budget_bytes"] == 1 << 20
    assert sum(each["n_ngrams"] for each in described["orders"]) > 0


@pytest.mark.slow
def test_another_directory_and_none(made: Made) -> None:
    record = bench_offload(made.path, corpus=[made.text], plan=replace(QUICK, tokens=(1,), bundles=made.elsewhere))
    assert record["table"]["bundles"]["path"] == record["plan"]["bundles"] == str(made.elsewhere)
    assert len(_measured(record)["points"]) == 2
    record = bench_offload(made.path, corpus=[made.text], plan=replace(QUICK, tokens=(1,), bundles=False))
    assert record["table"]["bundles"] is None
    assert "bundles" not in record["sections"][0]
    with pytest.raises(NotATable):
        bench_offload(made.path, corpus=[made.text], plan=replace(QUICK, bundles=made.path.parent / "no"))


def test_memory_has_none(made: Made) -> None:
    plan = replace(QUICK, tokens=(1,), sources=(Source.DRAM,), state=State.WARM, engine="gather")
    record = bench_offload(made.path, corpus=[made.text], plan=plan)
    assert "bundles" not in record["sections"][0]


def test_as_it_is(made: Made) -> None:
    plan = replace(QUICK, tokens=(1,), sources=(Source.AUTO,), state=State.AS_IS)
    found = _measured(bench_offload(made.path, corpus=[made.text], plan=plan))
    assert found["engine"] == "auto"
    assert len(found["points"]) == 2


def test_wrong_bytes_out_of_bundles_are_found(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = BundledTable.fetch

    def wrong(self: BundledTable, *given: Any, **options: Any) -> Any:
        records = fetch(self, *given, **options)
        records[..., 0] ^= 1
        return records

    monkeypatch.setattr(bench_module, "measure_section", lambda bench, section: {"status": "measured"})
    monkeypatch.setattr(BundledTable, "fetch", wrong)
    record = bench_offload(made.path, corpus=[made.text], plan=QUICK)
    assert record["sections"][0]["bundles"]["points"] == []
    assert record["mismatches"][0]["engine"].endswith("with bundles")


def test_no_engine_is_a_reason(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> str:
        raise BackendUnavailable("engine uring: not here")

    monkeypatch.setattr(bench_module, "measure_section", lambda bench, section: {"status": "measured"})
    monkeypatch.setattr(bundled, "_engine", refuse)
    record = bench_offload(made.path, corpus=[made.text], plan=QUICK)
    assert record["sections"][0]["bundles"] == {"status": "waived", "reason": "engine uring: not here"}


def test_every_key_is_documented(made: Made) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "records.md").read_text(encoding="utf-8")
    part = page[page.index("## `engram.bench-offload/2`") : page.index("## `engram.overlap/1`")]
    record = bench_offload(made.path, corpus=[made.text], plan=replace(QUICK, tokens=(1,)))
    found = _measured(record)
    keys = {*found, *record["plan"], *record["table"], *record["table"]["bundles"]}
    keys |= set(record["table"]["bundles"]["orders"][0])
    keys |= {key for point in found["points"] for each in (point, *point["found"]) for key in each}
    assert [key for key in sorted(keys) if f"`{key}`" not in part] == []


@pytest.mark.slow
def test_the_command(made: Made) -> None:
    quickly = [
        "bench-offload", str(made.path), "--corpus", str(made.text), "--tokens", "1", "--repeats", "1",
        "--seconds", "0", "--depths", "1,2", "--no-bounds", "--from", "nvme",
    ]  # fmt: skip
    ran = CliRunner().invoke(app, [*quickly, "--bundles", str(made.elsewhere)])
    assert ran.exit_code == 0, ran.output
    assert "Bundles, by " in ran.stdout
    assert max(map(len, ran.stdout.replace(str(made.path.parent), "").splitlines())) <= 100
    ran = CliRunner().invoke(app, [*quickly, "--no-bundles", "--json"])
    assert json.loads(ran.stdout)["table"]["bundles"] is None
    ran = CliRunner().invoke(app, [*quickly, "--no-bundles", "--bundles", str(made.elsewhere)])
    assert ran.exit_code == 2
    assert "give --bundles or --no-bundles" in ran.stderr
