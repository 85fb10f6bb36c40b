"""Each command on a small real input: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engram_tables import load_spec, load_vocabulary, open_table

from .conftest import Engram

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "deepseek-v4.1-flash.json").read_bytes())
COMMANDS = [
    ("build-vocab",), ("hash",), ("count",), ("build-table",), ("verify",), ("diff",), ("export",), ("bench-offload",),
    ("spec", "list"), ("spec", "show"), ("spec", "make"), ("spec", "export"),
    ("inspect", "ngram"), ("inspect", "table"), ("inspect", "vocab"), ("inspect", "header"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_examples_that_name_the_command(engram: Engram, command: tuple[str, ...]) -> None:
    ran = engram(*command, "--help")
    assert ran.code == 0
    assert "Examples:" in ran.out
    assert f"engram {' '.join(command)}" in ran.out


def test_version_and_usage(engram: Engram) -> None:
    assert engram("--version").out.startswith("engram 0.")
    assert engram("no-such-command").code == 2
    assert engram("hash", "--no-such-option").code == 2
    assert engram("hash", "--preset", "deepseek-v4.1-flash").code == 2
    assert engram("hash", "--canonical", "--ids", "0").code == 2


def test_build_vocab_and_its_expectations(engram: Engram, tiny_tokenizer_json: Path, tmp_path: Path) -> None:
    ran = engram("build-vocab", tiny_tokenizer_json, "-o", "v.parquet", "--json")
    assert ran.code == 0
    (record,) = ran.records()
    assert record["schema"] == "engram.vocabulary/1"
    vocabulary = load_vocabulary(tmp_path / "v.parquet")
    assert record["canonical_size"] == vocabulary.canonical_size
    assert record["map_sha256_le_i32"] == vocabulary.map_sha256
    # An existing file is an error; --force replaces it; a failed expectation writes nothing.
    assert engram("build-vocab", tiny_tokenizer_json, "-o", "v.parquet").code == 3
    size, digest = vocabulary.n_classes, vocabulary.map_sha256_i64
    good = engram("build-vocab", tiny_tokenizer_json, "-o", "v.parquet", "--force", "--expect-size", size,
                  "--expect-sha256", digest)  # fmt: skip
    assert good.code == 0
    for flag, value in (("--expect-size", size + 1), ("--expect-sha256", "0" * 64)):
        ran = engram("build-vocab", tiny_tokenizer_json, "-o", "other.parquet", flag, value)
        assert ran.code == 6
        assert "expected" in ran.err
        assert not (tmp_path / "other.parquet").exists()
    assert engram("build-vocab", tiny_tokenizer_json, "--rule", "nonsense").code == 2


def test_hash_of_the_published_case(engram: Engram, tmp_path: Path) -> None:
    ran = engram("hash", "--preset", "deepseek-v4.1-flash", "--canonical", "--ids", "0,3", "--json")
    expected = GOLDEN["cases"]["0,3 (published digest f5a64799..)"]["rows[pos][layer][col]"]
    assert [record["rows"] for record in ran.records()] == expected
    # Chunked with its history, into a file, equals the whole.
    arguments = ("hash", "--preset", "deepseek-v4.1-flash", "--canonical", "--ids", "3", "--history", "0")
    assert engram(*arguments, "-o", "rows.npy").code == 0
    rows = np.load(tmp_path / "rows.npy")
    assert rows.dtype == np.int64
    assert rows.tolist() == expected[1:]
    assert engram(*arguments, "-o", "rows.npy").code == 3


def test_hash_from_text_ids_and_files_agree(
    engram: Engram, tiny_table: Path, tiny_vocab_file: Path, tmp_path: Path
) -> None:
    spec = tiny_table.with_name("spec.json")
    source = ("hash", "--spec", spec, "--vocab", tiny_vocab_file, "--json")
    ids = load_vocabulary(tiny_vocab_file).encode(" the cat")
    (tmp_path / "text.txt").write_text(" the cat", encoding="utf-8")
    np.save(tmp_path / "ids.npy", np.array(ids, dtype=np.uint16))
    outputs = {
        engram(*source, "--text", " the cat").out,
        engram(*source, "--ids", ",".join(map(str, ids))).out,
        engram(*source, "--file", "text.txt").out,
        engram(*source, "--file", "ids.npy").out,
    }
    assert len(outputs) == 1
    records = [json.loads(line) for line in outputs.pop().splitlines()]
    assert [record["token_id"] for record in records] == ids
    table = engram("hash", "--spec", spec, "--vocab", tiny_vocab_file, "--text", " the cat").out
    assert str(records[0]["rows"][0][0]) in table


def test_dead_positions(engram: Engram) -> None:
    arguments = ("hash", "--preset", "deepseek-v4.1-flash", "--canonical", "--json")
    ran = engram(*arguments, "--ids", "100,200,300,400", "--dead", "2")
    records = ran.records()
    assert [record["dead"] for record in records] == [False, False, True, False]
    assert records[2]["canonical_id"] is None
    assert records[2]["rows"] == GOLDEN["cases"]["all dead"]["rows[pos][layer][col]"][0]
    assert records[3]["rows"] == engram(*arguments, "--ids", "400").records()[0]["rows"]
    assert engram(*arguments, "--ids", "1,2", "--dead", "2").code == 3


def test_spec_list_show_and_export(engram: Engram, tmp_path: Path, tiny_table: Path) -> None:
    presets = {record["name"]: record for record in engram("spec", "list", "--json").records()}
    assert presets["deepseek-v4.1-flash"]["rows"] == 768_022_850
    assert presets["engram-27b"]["values"] == 5_792_338_560
    assert presets["engram-27b"]["layers"] is None
    shown = engram("spec", "show", "--preset", "deepseek-v4.1-flash")
    assert "76632096046245" in shown.out
    assert "16,000,463" in shown.out
    fingerprint = load_spec("deepseek-v4.1-flash").fingerprint
    for form, name in (("json", "s.json"), ("npz", "s.npz"), ("gguf", "kv.json")):
        ran = engram("spec", "export", "--preset", "deepseek-v4.1-flash", "--as", form, "-o", name)
        assert ran.code == 0
        assert fingerprint in ran.err
    for name in ("s.json", "s.npz"):
        (record,) = engram("spec", "show", "--spec", name, "--json").records()
        assert record["fingerprint"] == fingerprint
    keys = json.loads((tmp_path / "kv.json").read_bytes())
    assert keys["ds4"]["deepseek41.engram.multipliers"]["value"][0] == "76632096046245"


@pytest.mark.parametrize(
    "command", [("hash", "--canonical", "--ids", "1"), ("build-table", "--codec", "f32", "-o", "t")]
)
def test_presets_of_uncertain_layers_are_refused(engram: Engram, command: tuple[str, ...], tmp_path: Path) -> None:
    ran = engram(*command, "--preset", "engram-27b")
    assert ran.code == 3
    assert "--layers 1,15" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_inspect_ngram(engram: Engram, tiny_table: Path, tiny_vocab_file: Path, tmp_path: Path) -> None:
    letters = "".join(np.random.default_rng(0).choice(list("abcdefghijk"), 2000))
    (tmp_path / "corpus.txt").write_text(" the cat sat\nThe cat sat\n" * 50 + letters, encoding="utf-8")
    counted = engram("count", "corpus.txt", "--vocab", tiny_vocab_file, "--orders", "2,3,4", "-o", "counts")
    assert counted.code == 0, counted.err
    ran = engram("inspect", "ngram", tiny_table, " the cat", "--counts", "counts", "--json")
    assert ran.code == 0, ran.err
    views = ran.records()
    n_tokens = len(load_vocabulary(tiny_vocab_file).encode(" the cat"))
    assert [(v["position"], v["order"]) for v in views] == [(p, o) for p in range(n_tokens) for o in (2, 3, 4)]
    last = next(v for v in views if v["position"] == n_tokens - 1 and v["order"] == 2)
    assert [token["form"] for token in last["tokens"]] == ["the", "cat"]
    assert "The" in last["tokens"][0]["folds_with"]
    assert last["occurrences"] == 100
    with open_table(tiny_table) as table:
        addresses = table.spec.address(load_vocabulary(tiny_vocab_file).canonical(_ids(tiny_vocab_file)))
        for row in last["rows"]:
            layer_idx = table.spec.layer_ids.index(row["layer_id"])
            assert row["row"] == addresses.rows[-1, layer_idx, row["head"]]
            assert int(last["keys"][str(row["layer_id"])]) == addresses.keys[-1, layer_idx, 0]
            (part,) = row["parts"]
            assert (part["part"], part["n_bytes"]) == ("records", table.row_bytes)
            raw = (tiny_table / part["file"]).read_bytes()[part["offset"] : part["offset"] + table.row_bytes]
            record = np.frombuffer(raw, dtype=np.uint8)
            assert record.tobytes() == table.fetch_rows(row["layer_id"], [row["row"]]).tobytes()
            assert row["norm"] == pytest.approx(float(np.linalg.norm(table.decode(record))))
            assert part["first_page"] == part["offset"] // 4096
    # With 97 rows a head and many distinct n-grams, some rows are shared; each sharer owns the row it is named for.
    sharers = [(row, s) for v in views for row in v["rows"] for s in row["sharers"] if v["order"] == 2]
    assert sharers
    with open_table(tiny_table) as table:
        for row, sharer in sharers:
            rows = table.spec.address(sharer["canonical_ids"]).rows
            assert rows[-1, table.spec.layer_ids.index(row["layer_id"]), row["head"]] == row["row"]
    human = engram("inspect", "ngram", tiny_table, " the cat", "--last", "--counts", "counts")
    assert "occurs    100 times" in human.out
    assert "position 0" not in human.out


def _ids(vocab_file: Path) -> list[int]:
    return load_vocabulary(vocab_file).encode(" the cat")


def test_inspect_table_and_vocab(engram: Engram, tiny_table: Path, tiny_vocab_file: Path) -> None:
    (facts,) = engram("inspect", "table", tiny_table, "--json").records()
    assert facts["rows_per_token"] == 12
    assert facts["layers"][1]["layer_id"] == 3
    assert "a token reads" in engram("inspect", "table", tiny_table).out
    for source in (tiny_vocab_file, tiny_table):
        (record,) = engram("inspect", "vocab", source, "--text", "The", "--json").records()
        assert record["form"] == "the"
        assert " the" in [text for _, text in record["members"]]
    assert "canonical ids" in engram("inspect", "vocab", tiny_vocab_file).out
    assert engram("inspect", "vocab", tiny_vocab_file, "--token-id", "100000").code == 3


def test_errors_have_codes_and_messages(
    engram: Engram, tiny_table: Path, tiny_vocab_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    spec = tiny_table.with_name("spec.json")
    for arguments, code, message in (
        (("build-vocab", "broken.json", "-o", "v.parquet"), 3, "not JSON"),
        (("build-vocab", "missing.json"), 3, "no such file"),
        (("hash", "--preset", "nonsense", "--canonical", "--ids", "1"), 3, "the presets are"),
        (("hash", "--spec", "missing.json", "--canonical", "--ids", "1"), 3, "neither a file nor a preset"),
        (("hash", "--config", "broken.json", "--canonical", "--ids", "1"), 3, "not JSON"),
        (("hash", "--preset", "deepseek-v4.1-flash", "--canonical", "--ids", "1,99092"), 3, "position 1: found 99092"),
        (("hash", "--preset", "deepseek-v4.1-flash", "--canonical", "--ids", "x"), 3, "found 'x'"),
        (("hash", "--preset", "deepseek-v4.1-flash", "--ids", "1"), 3, "need the vocabulary"),
        (("hash", "--preset", "deepseek-v4.1-flash", "--vocab", tiny_vocab_file, "--ids", "1"), 3, "99,092"),
        (("hash", "--spec", spec, "--vocab", tiny_vocab_file, "--ids", "100000"), 3, "found 100000"),
        (("inspect", "table", tmp_path), 4, "engram.json"),
        (("inspect", "ngram", tiny_table, ""), 3, "no token"),
        (("inspect", "ngram", tiny_table, "a", "--orders", "7"), 3, "orders 2, 3, 4"),
    ):
        ran = engram(*arguments)
        assert ran.code == code, (arguments, ran)
        assert message in ran.err, (arguments, ran.err)
        assert ran.err.startswith("error: ")
        assert "Traceback" not in ran.err
        assert ran.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json"]


def test_a_closed_pipe_is_no_error(tiny_table: Path) -> None:
    import subprocess
    import sys

    program = "from engram_cli.main import main; main()"
    command = [sys.executable, "-c", program, "inspect", "ngram", str(tiny_table), "a cat sat on a mat " * 5]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() in (0, 1)
