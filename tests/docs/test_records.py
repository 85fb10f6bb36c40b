"""docs/reference/records.md and docs/reference/errors.md name what the code has, and nothing that it lacks."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import engram_tables.measure.bench as bench_module
from engram_cli.app import app
from engram_cli.console import Exit
from engram_tables import errors
from engram_tables.address.golden.cases import read_golden
from engram_tables.corpus.reading.readers import Skipped
from engram_tables.fetch.gpu.host_device import HostDevice
from engram_tables.measure.ceilings import memory_ceilings
from engram_tables.measure.doctor.doctor import diagnose
from engram_tables.measure.offload.plan import BenchPlan, Source, Target
from engram_tables.measure.planning.probing import probe
from engram_tables.measure.report.page import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
_SCHEMA = re.compile(r"engram\.[a-z][a-z-]*/\d+")


def _strings_in_code() -> Iterator[str]:
    for folder in ("engram_cli", "tables"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and _SCHEMA.fullmatch(node.value):
                    yield node.value


@pytest.fixture(scope="module")
def page() -> str:
    return (REFERENCE / "records.md").read_text(encoding="utf-8")


def _section(page: str, schema: str) -> str:
    """A record's own section, whose heading names it."""
    for heading, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE):
        if f"`{schema}`" in heading:
            return str(body)
    raise AssertionError(f"records.md has no section for {schema}")


def test_every_schema_is_documented_and_every_documented_one_exists(page: str) -> None:
    assert set(_SCHEMA.findall(page)) == set(_strings_in_code())
    for schema in set(_strings_in_code()):
        assert _section(page, schema)
        assert re.search(rf"^\| \[`{re.escape(schema)}`\]", page, flags=re.MULTILINE), f"{schema} is not in the list"


def _run(*words: object, code: int = 0) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def _keys(value: Any) -> set[str]:
    """Every key at any depth, but for those that are data themselves: layer ids, orders, exponents, package names."""
    if isinstance(value, list):
        return set().union(*map(_keys, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    own = {key for key in value if not key.removeprefix("-").isdigit()} - {"packages"}
    return own.union(*(_keys(item) for key, item in value.items() if key != "packages"))


def _check(page: str, record: dict[str, Any]) -> None:
    body = _section(page, record["schema"])
    # Records inside have sections of their own, and an environment stands with the benchmark's.
    inside = {key: value for key, value in record.items() if isinstance(value, dict) and "schema" in value}
    for value in inside.values():
        _check(page, value)
    left = {key: value for key, value in record.items() if key not in inside}
    if "as in `engram.bench-offload/2`" in body and "environment" in left:
        benchmark = _section(page, "engram.bench-offload/2")
        for key in _keys(left.pop("environment")):
            assert f"`{key}`" in benchmark, f"{record['schema']}: {key} is not documented"
    for key in (_keys(left) | set(inside)) - {"schema"}:
        assert f"`{key}`" in body, f"{record['schema']}: {key} is not documented"


@pytest.fixture(scope="module")
def made(tiny_vocab_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec, a table and counts, made by the commands."""
    home = tmp_path_factory.mktemp("records")
    (home / "text.txt").write_text("The cat sat. The cat sat on the cat.\n" * 40)
    (home / "lines.jsonl").write_text('{"text": "The cat sat."}\n{"text": 1}\n')
    _run("spec", "make", "--vocab", tiny_vocab_file, "--rows-per-head", "97", "--heads", "2", "--row-width", "32",
         "--pad-token", "0", "--layers", "1,3", "-o", home / "spec.json")  # fmt: skip
    _run("build-table", "--spec", home / "spec.json", "--vocab", tiny_vocab_file, "--codec", "f32",
         "-o", home / "table")  # fmt: skip
    _run("tokenize", home / "text.txt", "--vocab", tiny_vocab_file, "-o", home / "tokens")
    _run("count", home / "tokens", "--vocab", tiny_vocab_file, "-o", home / "counts")
    _run("count", home / "tokens", "--vocab", tiny_vocab_file, "--orders", "1,2,3,4", "--next", "raw",
         "-o", home / "followed")  # fmt: skip
    _run("build-table", "--spec", home / "spec.json", "--vocab", tiny_vocab_file, "--codec", "f32",
         "--from-counts", home / "followed", "--init", "next-token", "-o", home / "knowing")  # fmt: skip
    _run("golden", "emit", "--spec", home / "spec.json", "-o", home / "golden.json")
    # A checkpoint's form of the table, tables that are made from it, and one row that differs.
    _run("build-table", "--spec", home / "spec.json", "--codec", "fp8-e4m3-e8m0", "-o", home / "fresh")
    _run("export", home / "fresh", "--to", "deepseek", "-o", home / "checkpoint")
    source = ("build-table", "--from", home / "checkpoint", "--spec", home / "spec.json")
    _run(*source, "--ranks", "2", "-o", home / "ranks")
    _run(*source, "-o", home / "changed")
    shard = home / "changed" / "layer-01" / "rows-00001-of-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    np.save(
        home / "golden.npy", np.concatenate([np.array(case.rows) for case in read_golden(home / "golden.json").cases])
    )
    return home


def test_every_key_that_is_printed_is_documented(page: str, made: Path, tiny_vocab_file: Path) -> None:
    spec, table = made / "spec.json", made / "table"
    vocabulary = ("--vocab", tiny_vocab_file)
    source = ("--from", made / "checkpoint", "--spec", spec)
    counts, recoded = made / "counts", made / "recoded"
    records = [
        *_run("--version", "--json"),
        *_run("build-vocab", "--json", _tokenizer(made, tiny_vocab_file)),
        *_run("spec", "list", "--json"),
        *_run("spec", "show", "--spec", spec, "--json"),
        *_run("hash", "--spec", spec, *vocabulary, "--text", "the cat", "--json"),
        *_run("golden", "check", made / "golden.json", made / "golden.npy", "--json"),
        *_run("tokenize", made / "lines.jsonl", *vocabulary, "--skip-bad", "1", "-o", made / "lines", "--json"),
        *_run("tokenize", made / "text.txt", *vocabulary, "-o", made / "never", "--dry-run", "--json"),
        json.loads((made / "tokens" / "tokens.json").read_bytes()),
        *_run("count", made, "--glob", "text.txt", *vocabulary, "-o", made.with_name("again"), "--json"),
        *_run("count", made / "text.txt", *vocabulary, "-o", made / "never", "--dry-run", "--json"),
        json.loads((made / "counts" / "counts.json").read_bytes()),
        *_run("counts", "top", made / "followed", "--by-next", "-k", "2", *vocabulary, "--json"),
        *_run("counts", "get", made / "followed", "the cat", *vocabulary, "--json"),
        *_run("counts", "stats", made / "counts", "--json"),
        *_run("counts", "merge", made / "counts", "-o", made / "merged", "--top", "1", "--json"),
        *_run("trace", made / "tokens", "--spec", spec, *vocabulary, "--hits", "-o", made / "trace", "--json"),
        *_run("trace", made / "tokens", "--spec", spec, *vocabulary, "-o", made / "never", "--dry-run", "--json"),
        json.loads((made / "trace" / "trace.json").read_bytes()),
        *_run("build-table", "--spec", spec, "--codec", "bf16", "-o", made / "never", "--dry-run", "--json"),
        *_run("build-table", *source, "--rows", "0:9", "--codec", "bf16", "--counts", counts, "-o", recoded, "--json"),
        *_run("verify", table, "--json"),
        *_run("verify", made / "ranks" / "rank-0-of-2", recoded, "--json", code=6),
        *_run("verify", made / "changed", "--against", made / "checkpoint", "--json", code=6),
        *_run("diff", made / "changed", made / "checkpoint", "--json", code=6),
        *_run("diff", recoded, made / "fresh", "--json", code=6),
        *_run("export", made / "fresh", "--to", "raw", "-o", made / "never", "--dry-run", "--json"),
        *_run("inspect", "header", made / "fresh", "--row", "1:5", "--json"),
        *_run("inspect", "header", made / "checkpoint", "--json"),
        *_run("verify", made / "counts", "--json"),
        *_run("inspect", "table", table, "--json"),
        *_run("inspect", "table", made / "ranks" / "rank-1-of-2", "--json"),
        *_run("inspect", "vocab", tiny_vocab_file, "--json"),
        *_run("inspect", "vocab", tiny_vocab_file, "--search", "the", "--why", "--json"),
        *_run("inspect", "ngram", table, "the cat", "--counts", made / "counts", "--json"),
        *_run("inspect", "ngram", made / "knowing", "the cat", "--counts", made / "followed", "--json"),
        *_run("inspect", "row", table, "1", "5", "--counts", made / "counts", "--json"),
        *_run("inspect", "stats", made / "changed", "--against", made / "knowing", "--json", code=6),
        *_run("inspect", "stats", made / "knowing", "--counts", made / "followed", "--json"),
        *_run("inspect", "coverage", table, "--counts", made / "counts", "--json"),
        *_run("inspect", "collisions", table, "--counts", made / "counts", "--json"),
        *_run("evaluate", made / "knowing", made / "text.txt", "--counts", made / "followed", "--json"),
        *_run("build-table", "--from", made / "fresh", "--bundles-only", "--bundles", counts, "--bundle-budget", "9KiB",
              "-o", made / "fresh" / "bundles", "--json"),
        *_run("verify", made / "fresh", made / "fresh" / "bundles", "--json"),
        *_run("inspect", "table", made / "fresh", "--json"),
        *_run("simulate", made / "trace", "--row-bytes", "33", "--sizes", "5KB,9KB", "--unit", "row,page",
              "--hot-list", made / "hot.parquet", "--json"),
        *_run("simulate", made / "tokens", "--spec", spec, *vocabulary, "--row-bytes", "33", "--policy", "lru",
              "--sizes", "1KB", "--bundles", counts, "--bundle-budgets", "9KiB", "--json"),
        *_run("plan", "--preset", "engram-demo", "--disk-reads-per-s", "1e5", "--tokens-per-s", "9", "--hit-ratio",
              "0.5", "--cache", "1MB", "--json"),
        *_run("plan", "allocate", "--total", "1e9", "--active", "1e8", "--json"),
        probe(made, seconds=0.01, burst_repeats=1, file_bytes=1 << 20, region_bytes=16 << 20),
        json.loads(json.dumps(diagnose(table))),
    ]  # fmt: skip
    for record in records:
        _check(page, record)
    _draw(records, made)
    unseen = set(_strings_in_code()) - {record["schema"] for record in records}
    assert unseen == {
        "engram.table/1", "engram.table/2", "engram.rows/2", "engram.hot-list/1", "engram.bench-offload/2",
        "engram.overlap/1", "engram.golden/1", "engram.build-work/1", "engram.count-work/1",
        "engram.counts-merge-work/1", "engram.tokenize-work/1", "engram.tokenize-shard/1", "engram.bundles/1",
        "engram.bundle-file/1",
    }  # fmt: skip


def _draw(records: list[dict[str, Any]], home: Path) -> None:
    """Every record that `engram report` knows is drawn as the commands made it."""
    drawable = [record for record in records if record["schema"] in SCHEMAS]
    assert set(SCHEMAS) - {record["schema"] for record in drawable} == {"engram.bench-offload/2", "engram.overlap/1"}
    (home / "drawable.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in drawable))
    _run("report", home / "drawable.jsonl", "-o", home / "report.html")
    page = (home / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure>") >= len(SCHEMAS)


def _tokenizer(home: Path, vocab_file: Path) -> Path:
    from engram_tables import load_vocabulary

    path = home / "tokenizer.json"
    path.write_bytes(load_vocabulary(vocab_file).tokenizer_json)
    return path


@pytest.mark.slow
def test_every_key_of_a_benchmark_is_documented(page: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_ceilings = bench_module.disk_ceilings
    monkeypatch.setattr(
        bench_module, "memory_ceilings", lambda threads: memory_ceilings(region_bytes=16 << 20, repeats=1)
    )
    monkeypatch.setattr(
        bench_module, "disk_ceilings", lambda path, seconds, depths: disk_ceilings(path, seconds=0.01, depths=depths)
    )
    monkeypatch.setattr(bench_module, "_SWEEP_SECONDS", 0.005)
    monkeypatch.setattr("engram_tables.measure.ceilings._MOST_DEPTH", 4)
    monkeypatch.setattr("engram_tables.measure.ceilings.shutil.which", lambda program: None)
    quick = ("--tokens", "1,2", "--repeats", "1", "--seconds", "0", "--depths", "1,2", "--json")
    slow = ("--batch-seconds", "0")
    _check(page, _run("bench-offload", made / "table", "--corpus", made / "text.txt", *quick, *slow)[0])
    _check(page, _run("bench-offload", made / "table", "--from", "dram", "--to", "gpu", *quick)[0])
    on_host = bench_module.bench_offload(
        made / "ranks" / "rank-0-of-2",
        plan=BenchPlan(tokens=(1,), repeats=1, seconds=0.0, sources=(Source.DRAM,), engine="gather"),
    )
    _check(page, on_host)
    plan = BenchPlan(tokens=(1,), repeats=1, seconds=0.0, sources=(Source.DRAM,), to=Target.GPU)
    _check(page, bench_module.bench_offload(made / "table", plan=plan, device=HostDevice))


def test_every_reason_to_skip_is_documented(page: str) -> None:
    for reason in Skipped:
        for schema in ("engram.count/2", "engram.tokenize/1"):
            assert f"`{reason.name.lower()}`" in _section(page, schema)


def test_every_error_and_exit_code_is_documented() -> None:
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    listed = set(re.findall(r"^\| `(\w+)` \| `", text, flags=re.MULTILINE))
    assert listed == classes
    for name in listed - {"EngramError"}:
        base = getattr(errors, name).__bases__[0].__name__
        assert re.search(rf"^\| `{name}` \| `{base}`", text, flags=re.MULTILINE), name
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)}
    assert codes == {*map(int, Exit), 1, 2}
