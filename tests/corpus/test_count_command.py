"""`engram count` from the outside: output, exit codes, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import typer
from tokenizers import Tokenizer
from typer.testing import CliRunner

from engram_cli.commands.count import count
from engram_cli.console import guarded
from engram_tables.address.vocabulary import build_vocabulary, load_vocabulary
from engram_tables.corpus.counts import count_work
from engram_tables.corpus.counts.count_corpus import plan_count, run_count
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.corpus.counts.reference import count_followed_reference, count_ngrams_reference
from engram_tables.corpus.counts.runs import Run
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.errors import InvalidInput

APP = typer.Typer()
APP.command()(guarded(count))
TEXTS = {"a.txt": "the cat sat", "b.txt": "", "c.md": "zzz", ".d.txt": "x"}


@pytest.fixture
def place(tmp_path: Path, letter_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    letter_tokenizer.save("tokenizer.json")
    build_vocabulary("tokenizer.json", rule="identity").save(Path("vocab.parquet"))
    Path("text").mkdir()
    for name, text in TEXTS.items():
        Path("text", name).write_text(text)
    return tmp_path


def run(*arguments: str, stdin: bytes | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(APP, ["--vocab", "vocab.parquet", *arguments], input=stdin)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("place")
def test_the_counts_are_those_of_the_reference() -> None:
    code, out, err = run("text", "--glob", "*.txt", "-o", "counts", "--orders", "3,1", "--json", "--top", "2")
    assert code == 0, err
    record = json.loads(out)
    documents = [
        [max(0, ord(letter) - 96) if letter != " " else 0 for letter in TEXTS[name]] for name in ("a.txt", "b.txt")
    ]
    assert record["schema"] == "engram.count/2"
    corpus = record["corpus"]
    assert (corpus["n_documents"], corpus["n_tokens"], corpus["read_bytes"]) == (2, 11, 11)
    assert [entry["order"] for entry in record["orders"]] == [1, 3]
    assert (record["next"], record["pad_id"], record["min_count"], record["n_reused"]) == (None, None, 1, 0)
    assert record["output"] == "counts"
    assert record["skipped"] == {"hidden": 1, "no_match": 1}
    assert "left out: 1 directory entries, name begins with a dot" in err
    with open_counts("counts") as counts:
        for entry in record["orders"]:
            expected = count_ngrams_reference(documents, entry["order"])
            assert (entry["n_distinct"], entry["n_total"]) == (len(expected), sum(expected.values()))
            best = max(expected.items(), key=lambda item: item[1])
            assert (tuple(entry["top"][0]["ids"]), entry["top"][0]["count"]) == best
            assert counts.lookup(list(expected)).tolist() == list(expected.values())
        counts.check_vocabulary(record["vocab_sha256"])
        counts.check_vocabulary(load_vocabulary("vocab.parquet").map_sha256)
        assert counts.manifest["manifest_sha256"] == record["manifest_sha256"]
    files = [path for path in Path("counts").rglob("*.parquet") if path.is_file()]
    assert record["written_bytes"] == sum(path.stat().st_size for path in files)
    assert not Path("counts.work").exists()


@pytest.mark.usefixtures("place")
def test_the_human_form_names_totals_and_the_most_frequent() -> None:
    code, out, _ = run("text/a.txt", "-o", "counts", "--orders", "2", "--top", "1")
    assert code == 0
    assert "1 documents, 11 B, 11 tokens over 27 canonical ids" in out
    assert '"a" "t"' in out


@pytest.mark.usefixtures("place")
def test_threads_and_the_python_call_change_no_byte() -> None:
    run("text", "-o", "one", "--threads", "1")
    vocabulary = load_vocabulary("vocab.parquet")
    run_count(plan_count(["text"], vocabulary=vocabulary, orders=(2, 3, 4), output=Path("two")), threads=3)
    for path in Path("one").rglob("*.*"):
        assert path.read_bytes() == Path("two", path.relative_to("one")).read_bytes()


@pytest.mark.usefixtures("place")
def test_a_dry_run_writes_nothing() -> None:
    before = sorted(Path().iterdir())
    code, out, _ = run("text", "-o", "counts", "--dry-run", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["schema"] == "engram.count-plan/2"
    assert (record["n_files"], record["corpus_bytes"], record["orders"]) == (3, 14, [1, 2, 3, 4])
    assert (record["output"], record["work"], record["written_bytes"]) == ("counts", "counts.work", None)
    out = run("text", "-o", "counts", "--dry-run")[1]
    assert "would read  3 files, 14 B" in out
    assert "would write counts: counts.json, order-1/part-*.parquet" in out
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 3, "nowhere: no such file"),
        (["text", "--glob", "*.c"], 3, "no file in this directory matches"),
        (["text", "--orders", "2,x"], 3, "expected numbers with commas"),
        (["text", "--orders", "0"], 3, "from 1 to 5"),
        (["text", "--orders", "6"], 3, "found [6], expected distinct numbers from 1 to 5"),
        (["text", "--orders", "2,2"], 3, "distinct numbers"),
        (["text", "--next", "canonical"], 3, "expected raw"),
        (["text", "--min-count", "0"], 2, "--min-count"),
        (["text", "--pad-token", "27"], 3, "27"),
        (["text", "--pad-token", "-1"], 3, "-1"),
        (["text", "--memory", "1MiB", "--threads", "1"], 5, "memory: found 1.00 MiB"),
        (["text", "--memory", "much"], 3, "much"),
        (["text", "--decode-errors", "ignore"], 2, "'ignore'"),
        (["latin"], 3, "--decode-errors replace"),
        (["text", "-o", "text"], 3, "exists already"),
        (["text", "-o", "no/where"], 3, "does not exist"),
        (["text", "--vocab", "text/a.txt"], 3, "not a whole vocabulary"),
    ],
)
@pytest.mark.usefixtures("place")
def test_bad_input_ends_with_its_code_and_leaves_nothing(arguments: list[str], code: int, message: str) -> None:
    Path("latin").write_bytes(b"\xff")
    before = sorted(Path().iterdir())
    output = [] if "-o" in arguments else ["-o", "counts"]
    found, out, err = run(*arguments, *output)
    assert (found, out) == (code, "")
    assert message in err.replace("\n", " ")
    assert sorted(Path().iterdir()) == before


@pytest.mark.usefixtures("place")
def test_replaced_bytes_are_reported() -> None:
    Path("latin").write_bytes(b"caf\xe9")
    code, out, err = run("latin", "text", "--decode-errors", "replace", "-o", "counts", "--json")
    assert code == 0
    assert json.loads(out)["corpus"]["replaced_bytes"] == 1
    assert "1 bytes are not UTF-8" in err


@pytest.mark.usefixtures("place")
def test_standard_input_is_a_corpus() -> None:
    code, out, _ = run("-", "-o", "counts", "--json", "--orders", "1", stdin=b"aab")
    assert code == 0
    assert json.loads(out)["orders"][0]["top"][0] == {"ids": [1], "forms": ["a"], "count": 2}


@pytest.mark.usefixtures("place")
def test_followers_padding_and_rare_ngrams_are_those_of_the_reference() -> None:
    documents = [[max(0, ord(letter) - 96) if letter != " " else 0 for letter in text] for text in TEXTS.values()][:3]
    code, out, err = run(
        "text", "-o", "counts", "--orders", "2", "--next", "raw", "--pad-token", "26", "--min-count", "2", "--json"
    )
    assert code == 0, err
    record = json.loads(out)
    assert (record["next"], record["pad_id"], record["min_count"]) == ("raw", 26, 2)
    expected = count_followed_reference(documents, 2, canonical_ids=range(27), pad_id=26, with_next=True)
    totals: Counter[tuple[int, ...]] = Counter()
    for key, n in expected.items():
        totals[key[:2]] += n
    order = record["orders"][1]
    assert order["order"] == 2
    assert order["n_distinct"] == sum(n > 1 for n in totals.values())
    assert order["dropped_distinct"] == sum(n == 1 for n in totals.values())
    assert order["dropped_total"] == order["dropped_distinct"]
    with open_counts("counts") as counts:
        assert counts.lookup(list(totals)).tolist() == [n if n > 1 else 0 for n in totals.values()]


@pytest.mark.usefixtures("place")
def test_a_token_store_is_a_corpus() -> None:
    vocabulary = load_vocabulary("vocab.parquet")
    documents = [[1, 2, 3], [], [1, 2]]
    write_tokens(
        Path("tokens"), documents, token_size=vocabulary.token_count, tokenizer_sha256=vocabulary.tokenizer_sha256
    )
    code, out, err = run("tokens", "text/c.md", "-o", "counts", "--orders", "2", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert (record["corpus"]["n_documents"], record["corpus"]["n_tokens"]) == (4, 8)
    with open_counts("counts") as counts:
        expected = count_ngrams_reference([*documents, [26, 26, 26]], 2)
        assert counts.lookup(list(expected)).tolist() == list(expected.values())
    other = write_tokens(Path("others"), documents, token_size=27, tokenizer_sha256="ab" * 32)
    assert other is None or Path("others").is_dir()
    before = kept(".")
    code, out, err = run("others", "-o", "new")
    assert (code, out) == (3, "")
    assert "others: " in err
    assert kept(".") == before


@pytest.mark.usefixtures("place")
def test_a_run_that_was_stopped_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["text", "-o", "counts", "--orders", "2,3", "--threads", "1"]
    run(*command[:1], "-o", "whole", *command[3:])
    monkeypatch.setattr(count_work.CountWork, "chunk_tokens", lambda *_: 3)
    real = count_work.save_run

    def stop_at_the_third(one: Run, prefix: Path) -> None:
        if len(list(Path("counts.work").glob("run-*.json"))) == 2:
            raise KeyboardInterrupt
        real(one, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(count_work, "save_run", stop_at_the_third)
        code, out, err = run(*command)
    assert (code, out) == (130, "")
    assert "2 runs" in err
    assert "counts.work; the same command goes on there, and --restart begins anew" in err
    assert not Path("counts").exists()
    before = kept(".")
    code, out, err = run(*command[:3], "--orders", "2", "--threads", "1")
    assert (code, out) == (3, "")
    assert "counts.work: found the work of another run" in err
    assert kept(".") == before
    code, out, err = run(*command, "--json")
    assert code == 0
    assert json.loads(out)["n_reused"] == 2
    assert "went on from 2 runs and parts of an earlier run" in err
    assert [*kept("counts").values()] == [*kept("whole").values()]
    assert not Path("counts.work").exists()


@pytest.mark.usefixtures("place")
def test_restart_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_work.CountWork, "chunk_tokens", lambda *_: 3)
    with monkeypatch.context() as patch:
        patch.setattr(count_work.CountWork, "publish", lambda *_, **__: exec("raise KeyboardInterrupt"))
        assert run("text", "-o", "counts", "--orders", "2,3")[0] == 130
    code, out, _ = run("text", "-o", "counts", "--orders", "2", "--restart", "--json")
    assert code == 0
    assert json.loads(out)["n_reused"] == 0
    assert not Path("counts.work").exists()


@pytest.mark.usefixtures("place")
def test_a_work_directory_that_is_none_is_left_alone() -> None:
    Path("counts.work").mkdir()
    Path("counts.work/thesis").write_text("years of work")
    for more in ([], ["--restart"], ["--force"]):
        code, out, err = run("text", "-o", "counts", *more)
        assert (code, out) == (3, "")
        assert "counts.work: found something else" in err
    assert kept("counts.work") == {"counts.work/thesis": b"years of work"}
    assert not Path("counts").exists()


@pytest.mark.usefixtures("place")
def test_ctrl_c_while_tokenising_leaves_nothing_but_what_goes_on() -> None:
    Path("big").mkdir()
    for at in range(200):
        Path("big", f"{at}.txt").write_text("the cat sat " * 20_000)
    before = sorted(Path().iterdir())
    program = (
        "import typer; from engram_cli.console import guarded; from engram_cli.commands.count import count; "
        "app = typer.Typer(); app.command()(guarded(count)); app()"
    )
    command = [sys.executable, "-c", program, "big", "--vocab", "vocab.parquet", "-o", "counts", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            while not any(link.startswith(os.fsencode(Path.cwd() / "big")) for link in _open_files(process.pid)):
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                time.sleep(0.002)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert b"interrupted" in err
    left = [path.name for path in Path().iterdir() if path not in before]
    assert left in ([], ["counts.work"])
    if left:
        assert b"the same command goes on there" in err
        assert not list(Path("counts.work").rglob("partial-*"))


def _open_files(pid: int) -> list[bytes]:
    found = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            found.append(os.fsencode(os.readlink(link)))  # noqa: PTH115
        except OSError:
            continue
    return found


def kept(directory: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(directory).rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("place")
def test_force_replaces_counts_and_empty_directories_only() -> None:
    Path("empty").mkdir()
    Path("home/deep").mkdir(parents=True)
    Path("home/deep/thesis").write_text("years of work")
    Path("home/counts.json").write_text('{"schema": "other"}')
    Path("table").mkdir()
    Path("table/counts.json").write_text("no JSON")
    Path("file").write_text("x")
    Path("link").symlink_to("empty")
    for target in ("home/deep", "home", "table", "file", "link"):
        before = kept(".")
        for dry in ([], ["--dry-run"]):
            code, out, err = run("text", "-o", target, "--force", *dry)
            assert (code, out) == (3, ""), target
            assert f"{target}: found" in err
            assert "expected" in err
        assert kept(".") == before
    assert run("text", "-o", "empty", "--force")[0] == 0
    assert run("text", "-o", "empty", "--force", "--orders", "1")[0] == 0
    with open_counts("empty") as counts:
        assert counts.orders == (1,)


@pytest.mark.usefixtures("place")
def test_what_became_of_the_output_while_counting_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = load_vocabulary("vocab.parquet")
    plan = plan_count(["text"], vocabulary=vocabulary, orders=(2,), output=Path("counts"), force=True)
    Path("counts").mkdir()
    Path("counts/thesis").write_text("years of work")
    with pytest.raises(InvalidInput, match="counts: found"):
        run_count(plan, force=True)
    assert kept("counts") == {"counts/thesis": b"years of work"}


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.usefixtures("place")
def test_an_output_that_overlaps_what_is_read_is_refused(force: list[str]) -> None:
    Path("old").mkdir()
    run("text", "-o", "old/counts", "--orders", "1")
    Path("old/counts/vocab.parquet").write_bytes(Path("vocab.parquet").read_bytes())
    Path("old/counts/more.txt").write_text("abc")
    Path("way").symlink_to("text")
    before = kept(".")
    for arguments in (
        ["text", "-o", "text"],
        ["text", "-o", "way/../text/"],
        ["text", "-o", "way/new"],
        ["way", "-o", "text/new"],
        [".", "-o", "new"],
        ["text/a.txt", "-o", "text"],
        ["text", "old/counts/more.txt", "-o", "old/counts"],
        ["text", "--vocab", "old/counts/vocab.parquet", "-o", "old/counts"],
    ):
        code, out, err = run(*arguments, *force)
        assert (code, out) == (3, ""), arguments
        assert "Traceback" not in err
    assert kept(".") == before
    assert run("text/a.txt", "-o", "text/new", "--orders", "1", *force)[0] == 0


@pytest.mark.parametrize("output", [".", "/", "..", "./", "text/..", "text/deep/.."])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_output_without_a_name_is_refused(place: Path, output: str, force: list[str]) -> None:
    (place / "text" / "deep").mkdir()
    code, out, err = run("vocab.parquet", "-o", output, *force)
    assert (code, out) == (3, "")
    assert "a name" in err
    if output.startswith("."):
        empty = place / "empty"
        empty.mkdir()
        os.chdir(empty)
        code, out, err = run("../text/a.txt", "--vocab", "../vocab.parquet", "-o", ".", *force)
        assert (code, out) == (3, "")
        assert "a name" in err


@pytest.mark.usefixtures("place")
def test_errors_of_the_system_say_what_was_being_done() -> None:
    resource = pytest.importorskip("resource")
    Path("noise").write_bytes(bytes(97 + at * at % 25 for at in range(9000)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = sorted(Path().iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        code, out, err = run("noise", "-o", "counts")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (5, ""), err
    assert "while preparing counts.work" in err
    assert sorted(Path().iterdir()) == before
