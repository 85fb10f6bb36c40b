"""`engram trace` from the outside: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from typer.testing import CliRunner

from engram_cli.commands.trace import trace
from engram_cli.console import guarded
from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.address.vocabulary import build_vocabulary, load_vocabulary
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.corpus.tokens.token_store import DEAD
from engram_tables.corpus.traffic.trace import open_trace

APP = typer.Typer()
APP.command()(guarded(trace))
DOCUMENTS = [[20, 8, 5, 0, 3, 1, 20], [], [DEAD, 19, 1, 20, 5], [7]]


@pytest.fixture
def place(tmp_path: Path, letter_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    letter_tokenizer.save("tokenizer.json")
    vocabulary = build_vocabulary("tokenizer.json", rule="deepseek")
    vocabulary.save(Path("vocab.parquet"))
    spec = DeepSeekRecipe(
        name="small", provenance="tests", canonical_size=vocabulary.canonical_size, orders=(2, 3), heads=2,
        bases=(11, 11), layer_ids=(1, 4), n_layers=2, fill_id=2, row_width=8,
    ).resolve(None, vocabulary=vocabulary)  # fmt: skip
    Path("spec.json").write_text(json.dumps(spec.to_json()))
    write_tokens(Path("tokens"), DOCUMENTS, token_size=27, tokenizer_sha256=vocabulary.tokenizer_sha256)
    return tmp_path


def run(*arguments: str) -> tuple[int, str, str]:
    words = arguments if "--vocab" in arguments else ("--vocab", "vocab.parquet", *arguments)
    result = CliRunner().invoke(APP, ["--spec", "spec.json", *words])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("place")
def test_a_trace_is_written_and_reported() -> None:
    code, out, err = run("tokens", "-o", "trace", "--hits", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["schema"] == "engram.traffic/1"
    assert (record["n_documents"], record["n_tokens"], record["n_dead_tokens"]) == (4, 13, 1)
    assert len(record["heads"]) == 8
    assert "the sample is too small to call a row dead" in err
    with open_trace("trace") as opened:
        assert record["manifest_sha256"] == opened.sha256
        vocabulary = load_vocabulary("vocab.parquet")
        expected = opened.spec.address(vocabulary.canonical(DOCUMENTS[0])).rows
        assert np.array_equal(opened.rows(0, 7), expected)
        for head in record["heads"]:
            hits = opened.hits(head["layer_id"])[head["first_row"] : head["first_row"] + head["n_rows"]]
            assert (hits.sum(), (hits > 0).sum(), hits.max()) == (12, head["n_touched"], head["most_hits"])
            assert head["n_lookups"] == 12
            assert head["n_dead_rows"] is None
            assert sum(entry["n_rows"] for entry in head["sharing"]) == head["n_rows"]
    names = {path.name for path in Path("trace").iterdir()}
    assert names == {
        "trace.json", "starts.npy", "dead.npy", "shard-00000.keys.npy", "hits-layer-01.npy", "hits-layer-04.npy",
    }  # fmt: skip


@pytest.mark.usefixtures("place")
def test_the_human_form_has_a_line_a_head_and_no_output_is_needed() -> None:
    code, out, _ = run("tokens", "--store", "none")
    assert code == 0
    assert "4 documents, 13 tokens, 1 of them dead" in out
    assert "unknown" in out
    assert not Path("trace").exists()


@pytest.mark.usefixtures("place")
def test_a_dry_run_names_the_very_bytes() -> None:
    arguments = ("tokens", "-o", "trace", "--store", "both", "--hits")
    planned = json.loads(run(*arguments, "--dry-run", "--json")[1])
    assert planned["schema"] == "engram.trace-plan/1"
    assert "would write trace" in run(*arguments, "--dry-run")[1]
    assert not Path("trace").exists()
    assert run(*arguments)[0] == 0
    written = {path.name: path.stat().st_size for path in Path("trace").iterdir() if path.suffix == ".npy"}
    assert written == {file["name"]: file["file_bytes"] for file in planned["files"]}
    assert sum(written.values()) == planned["written_bytes"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "-o", "trace"], 3, "nowhere"),
        (["tokens", "tokens", "-o", "trace"], 3, "tokens: found a token store"),
        (["tokens"], 3, "found no output directory"),
        (["tokens", "-o", "tokens", "--force"], 3, "which is read"),
        (["tokens", "-o", "trace", "--memory", "1MiB"], 5, "found too little"),
        (["tokens", "-o", "trace", "--memory", "lots"], 3, "size 'lots'"),
        (["tokens", "-o", "trace", "--vocab", "other.parquet"], 3, "vocabulary"),
    ],
)
@pytest.mark.usefixtures("place")
def test_what_cannot_be_done_ends_with_its_code(arguments: list[str], code: int, message: str) -> None:
    other = Tokenizer(WordLevel({"?": 0, "b": 1, "a": 2}, unk_token="?"))
    other.save("other.json")
    build_vocabulary("other.json", rule="identity").save(Path("other.parquet"))
    before = sorted(Path().iterdir())
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert message in err.replace("\n", " ")
    assert sorted(Path().iterdir()) == before


@pytest.mark.usefixtures("place")
def test_ctrl_c_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engram_tables.corpus.traffic.trace_writer.measure_traffic", interrupt)
    assert run("tokens", "-o", "trace")[0] == 130
    assert not [path for path in Path().iterdir() if "trace" in path.name]
