"""`engram tokenize` from the outside: one result for any number of workers, and nothing lost when it is stopped."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from tokenizers import Tokenizer
from typer.testing import CliRunner

from engram_cli.commands.tokenize import tokenize
from engram_cli.console import guarded
from engram_tables.address.vocabulary import build_vocabulary, load_vocabulary
from engram_tables.corpus.tokens import tokenize_corpus
from engram_tables.corpus.tokens.token_store import DEAD, is_token_store, open_tokens
from engram_tables.corpus.tokens.tokenize_corpus import plan_tokenize, run_tokenize
from engram_tables.corpus.tokens.tokenize_work import TokenizeWork
from engram_tables.corpus.tokens.worker_pool import WorkerPool
from engram_tables.errors import CapacityError, InvalidInput

APP = typer.Typer()
APP.command()(guarded(tokenize))
TEXTS = {"a.txt": "the cat sat", "b.txt": "", "c.md": "zzz", ".d.txt": "x"}
PIECE_BYTES = 20_000
N_PIECES = 9
PROGRAM = """
import os, sys, typer
os.fsync = lambda file: None
from engram_cli.main import _interrupt, _SIGNALS
import signal
for number in _SIGNALS: signal.signal(number, _interrupt)
from engram_cli.console import guarded
from engram_cli.commands.tokenize import tokenize
from engram_tables.corpus.tokens import tokenize_corpus
tokenize_corpus.PIECE_BYTES = int(sys.argv.pop(1))
tokenize_corpus.SMALL_CORPUS_BYTES = 0
app = typer.Typer()
app.command()(guarded(tokenize))
app()
"""


@pytest.fixture
def place(tmp_path: Path, letter_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    letter_tokenizer.save("tokenizer.json")
    build_vocabulary("tokenizer.json", rule="identity").save(Path("vocab.parquet"))
    Path("text").mkdir()
    for name, text in TEXTS.items():
        Path("text", name).write_text(text)
    return tmp_path


@pytest.fixture
def many(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of `N_PIECES` pieces in four files, and no waiting for disks."""
    monkeypatch.setattr(os, "fsync", lambda _file: None)
    monkeypatch.setattr(tokenize_corpus, "PIECE_BYTES", PIECE_BYTES)
    Path("many").mkdir()
    chance = random.Random(5)
    for number, n_bytes in enumerate((1_000, 2_000, 6 * PIECE_BYTES)):
        with Path("many", f"{number}.jsonl").open("w") as file:
            while file.tell() < n_bytes:
                letters = "".join(chance.choices("abcxyz ", k=chance.randrange(300)))
                file.write(json.dumps({"text": letters, "id": f"r{chance.randrange(9)}"}) + "\n")
    Path("many", "z.txt").write_text("once upon a time " * 2_000)
    return place


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little there is to do, it is done by processes."""
    monkeypatch.setattr(tokenize_corpus, "SMALL_CORPUS_BYTES", 0)


def run(*arguments: str, stdin: bytes | None = None, vocab: Sequence[str] = ("--vocab", "vocab.parquet")) -> tuple:
    result = CliRunner().invoke(APP, [*vocab, *arguments], input=stdin)
    return result.exit_code, result.stdout, result.stderr.replace("\n", " ")


def letters(text: str) -> list[int]:
    return [max(0, ord(letter) - 96) if letter.isalpha() else 0 for letter in text]


def documents(path: str | Path) -> list[list[int]]:
    with open_tokens(path) as tokens:
        tokens.verify()
        return [ids.tolist() for ids in tokens.documents()]


def written(path: str | Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


def everything() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


@pytest.mark.usefixtures("place")
def test_text_becomes_the_tokenizers_ids() -> None:
    code, out, err = run("text", "--glob", "*.txt", "-o", "tokens", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["schema"] == "engram.tokenize/1"
    assert (record["n_documents"], record["n_tokens"], record["n_dead"], record["dtype"]) == (2, 11, 0, "uint16")
    assert record["skipped"] == {"hidden": 1, "no_match": 1}
    assert record["corpus"]["read_bytes"] == 11
    assert "left out: 1 directory entries, name begins with a dot" in err
    assert documents("tokens") == [letters("the cat sat"), []]
    with open_tokens("tokens") as tokens:
        assert tokens.tokenizer_sha256 == load_vocabulary("vocab.parquet").tokenizer_sha256
        assert (tokens.token_size, tokens.sha256) == (27, record["manifest_sha256"])
    assert record["written_bytes"] == sum(len(data) for name, data in written("tokens").items() if name[0] == "s")
    assert run("text", "--glob", "*.txt", "-o", "again", "--json", vocab=("--tokenizer", "tokenizer.json"))[0] == 0
    assert written("again") == written("tokens")


@pytest.mark.usefixtures("place")
def test_the_human_form_names_tokens_and_digests() -> None:
    code, out, _ = run("text/a.txt", "-o", "tokens")
    assert code == 0
    assert "11 in 1 documents, 0 dead" in out
    assert "written: tokens" in out


@pytest.mark.usefixtures("many", "processes")
def test_workers_change_no_byte() -> None:
    plan = plan_tokenize(["many"], vocabulary=load_vocabulary("vocab.parquet"), output=Path("by1"))
    seen: list[tuple[int, int]] = []
    done = run_tokenize(plan, workers=1, progress=lambda *at: seen.append(at))
    assert (len(plan.pieces), done.n_workers) == (N_PIECES, 1)
    for workers in (2, 3):
        seen.append((0, 0))
        done = run_tokenize(
            replace(plan, output=Path(f"by{workers}")), workers=workers, progress=lambda *at: seen.append(at)
        )
        assert done.n_workers == workers
        assert seen[-1] == (plan.corpus.total_bytes, plan.corpus.total_bytes)
    assert done.outcome.read_bytes == plan.corpus.total_bytes
    assert written("by2") == written("by1")
    assert written("by3") == written("by1")
    lines = "".join(Path(f"many/{at}.jsonl").read_text() for at in range(3)).splitlines()
    expected = [letters(json.loads(line)["text"]) for line in lines]
    assert documents("by1") == [*expected, letters(Path("many/z.txt").read_text())]
    assert not list(Path().glob("*.work"))


@pytest.mark.usefixtures("place")
def test_ids_are_stored_as_they_are() -> None:
    np.save("ids.npy", np.array([1, 2, 0, 3, 0, 0, 26], dtype=np.int64))
    assert run("ids.npy", "--document-end", "0", "-o", "npy")[0] == 0
    assert documents("npy") == [[1, 2], [3], [], [26]]
    Path("requests.jsonl").write_text(
        '{"ids": [1, 2, 3], "dead": [[1, 2]], "who": "x"}\n{"ids": [], "who": "y"}\n{"ids": [4], "who": "x"}\n'
    )
    fields = ["--field", "ids", "--dead-field", "dead", "--request-field", "who"]
    code, out, err = run("requests.jsonl", *fields, "-o", "tokens", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert (record["n_dead"], record["encoder"], record["corpus"]["n_lines"]) == (1, None, 3)
    assert documents("tokens") == [[1, DEAD, 3, 4], []]
    with open_tokens("tokens") as tokens:
        assert list(tokens.names()) == ["x", "y"]


@pytest.mark.usefixtures("place")
def test_ids_that_the_tokenizer_does_not_have_are_refused() -> None:
    Path("ids.jsonl").write_text('{"ids": [1, 2]}\n{"ids": [3, 4, 27]}\n')
    before = everything()
    code, out, err = run("ids.jsonl", "--field", "ids", "-o", "tokens")
    assert (code, out) == (3, "")
    assert "ids.jsonl: document 2, position 2: found token id 27, expected 0 to 26" in err
    assert everything() == before


@pytest.mark.usefixtures("many", "processes")
def test_malformed_lines_are_counted_over_all_pieces_and_named_in_order() -> None:
    lines = Path("many/2.jsonl").read_text().splitlines()
    for at in (3, len(lines) // 2, len(lines) - 2):
        lines[at] = "{broken"
    Path("many/2.jsonl").write_text("\n".join(lines) + "\n")
    code, _, err = run("many", "-o", "tokens", "--workers", "2", "--skip-bad", "2")
    assert code == 3
    first, *others = [err.find(f"2.jsonl: line {at + 1:,}: no JSON") for at in (3, len(lines) // 2)]
    assert 0 < first < others[0]
    assert "found 3 malformed lines" in err
    code, out, err = run("many", "-o", "tokens", "--workers", "1", "--skip-bad", "3", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["n_shards_reused"] > 0
    assert record["corpus"]["n_bad_lines"] == 3
    assert [line["line"] for line in record["bad_lines"]] == [4, len(lines) // 2 + 1, len(lines) - 1]
    assert "left out: many/2.jsonl: line 4: no JSON" in err


@pytest.mark.usefixtures("many")
def test_text_and_ids_in_one_corpus_are_refused_across_pieces() -> None:
    np.save("many/y.npy", np.zeros(PIECE_BYTES, dtype=np.uint8))
    code, _, err = run("many", "-o", "tokens")
    assert code == 3
    assert "expected one kind throughout" in err


@pytest.mark.usefixtures("place")
def test_standard_input_is_a_corpus_that_cannot_be_resumed() -> None:
    code, _, err = run("-", "-o", "tokens", "--json", stdin=b"aab")
    assert code == 0, err
    assert documents("tokens") == [[1, 1, 2]]
    code, _, err = run("-", "text", "-o", "more", stdin=b"\xff")
    assert code == 3
    assert not Path("more.work").exists()
    work = TokenizeWork.begin(Path("more.work"), {"resumable": False}, restart=False)
    work.close()
    assert run("-", "text", "-o", "more", stdin=b"a")[0] == 0


@pytest.mark.usefixtures("place")
def test_a_pipe_is_read_once() -> None:
    os.mkfifo("pipe")
    with subprocess.Popen([sys.executable, "-c", "open('pipe', 'w').write('cab')"]):
        code, _, err = run("pipe", "text/c.md", "-o", "tokens", "--workers", "2")
    assert code == 0, err
    assert documents("tokens") == [[3, 1, 2], [26, 26, 26]]


@pytest.mark.usefixtures("many")
def test_a_dry_run_writes_nothing() -> None:
    before = everything()
    code, out, _ = run("many", "-o", "tokens", "--dry-run", "--json")
    assert code == 0
    record = json.loads(out)
    assert record["schema"] == "engram.tokenize-plan/1"
    assert (record["n_files"], record["n_shards"], record["work_exists"]) == (4, N_PIECES, False)
    Path("tokens.work").mkdir()
    assert "would read  4 files" in run("many", "-o", "tokens", "--dry-run")[1]
    Path("tokens.work").rmdir()
    assert everything() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 3, "nowhere: no such file"),
        (["text", "--workers", "0"], 2, "--workers"),
        (["text", "--tokenizer", "tokenizer.json"], 2, "exactly one"),
        (["text", "-o", "text"], 3, "exists already"),
        (["text", "-o", "no/where"], 3, "does not exist"),
        (["text", "-o", "text/tokens"], 3, "lies inside text"),
        (["text", "-o", "."], 3, "a name"),
        (["taken.work", "-o", "taken"], 3, "taken.work: found that this output is taken.work"),
        (["text", "-o", "taken"], 3, "taken.work: found something else than a work directory"),
        (["text", "-o", "taken", "--restart"], 3, "taken.work: found something else than a work directory"),
        (["text", "-o", "full", "--force"], 3, "full: found something that is no token store"),
        (["latin"], 3, "--decode-errors replace"),
        (["text", "--document-end", "3"], 3, "--document-end"),
    ],
)
@pytest.mark.usefixtures("place")
def test_bad_input_ends_with_its_code_and_leaves_nothing(arguments: list[str], code: int, message: str) -> None:
    Path("latin").write_bytes(b"\xff")
    for name in ("full", "taken.work"):
        Path(name).mkdir()
        Path(name, "thesis").write_text("years of work")
    before = everything()
    output = [] if "-o" in arguments else ["-o", "tokens"]
    found, out, err = run(*arguments, *output)
    assert (found, out) == (code, "")
    assert message in err
    assert everything() == before


@pytest.mark.usefixtures("place")
def test_force_replaces_a_token_store_in_one_step() -> None:
    assert run("text", "-o", "tokens")[0] == 0
    assert run("text", "-o", "tokens")[0] == 3
    with open_tokens("tokens") as old:
        assert run("text/c.md", "-o", "tokens", "--force")[0] == 0
        assert old.read(0, 3).ids.tolist() == letters("the")
    assert documents("tokens") == [[26, 26, 26]]
    assert not list(Path().glob("*.work"))


def stopped_after(n_shards: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> pytest.ExceptionInfo[Any]:
    """A run that fails when it has finished `n_shards` shards."""
    accept = TokenizeWork.accept
    n_accepted = 0

    def fail(work: TokenizeWork, *arguments: Any) -> None:
        nonlocal n_accepted
        if n_accepted == n_shards:
            raise KeyboardInterrupt
        n_accepted += 1
        accept(work, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizeWork, "accept", fail)
        plan = plan_tokenize(["many"], vocabulary=load_vocabulary("vocab.parquet"), output=Path("tokens"))
        with pytest.raises(KeyboardInterrupt) as stopped:
            run_tokenize(plan, workers=1, **options)
    return stopped


@pytest.mark.usefixtures("many")
def test_a_stopped_run_goes_on_with_what_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = stopped_after(0, monkeypatch)
    assert not Path("tokens.work").exists()
    assert not hasattr(stopped.value, "__notes__")
    stopped = stopped_after(4, monkeypatch)
    assert stopped.value.__notes__ == [
        f"4 of {N_PIECES} shards are finished and stay in tokens.work; the same command goes on there, and --restart "
        "begins anew"
    ]
    assert not list(Path("tokens.work").glob("partial-*"))
    assert not Path("tokens").exists()
    damaged = Path("tokens.work/tokens/shard-00001.ids.npy")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    Path("tokens.work/tokens/shard-00002.starts.npy").unlink()
    record = Path("tokens.work/shards/shard-00003.json")
    record.write_text(record.read_text().replace('"n_dead": 0', '"n_dead": 1'))
    code, out, err = run("many", "-o", "tokens", "--json")
    assert code == 0, err
    assert json.loads(out)["n_shards_reused"] == 1
    assert "1 shards were finished by an earlier run" in err
    assert not Path("tokens.work").exists()
    assert run("many", "-o", "whole")[0] == 0
    assert written("tokens") == written("whole")


@pytest.mark.usefixtures("many")
def test_work_of_another_plan_is_refused_until_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(2, monkeypatch)
    before = written("tokens.work/tokens")
    for arguments, message in (
        (["many", "text"], "inputs: 4 then, 7 now"),
        (["many", "--field", "id"], "field was 'text', now 'id'"),
        (["many", "--glob", "*.jsonl"], "inputs"),
    ):
        code, _, err = run(*arguments, "-o", "tokens")
        assert code == 3
        assert message in err
        assert "begin anew with --restart" in err
    os.utime("many/1.jsonl", ns=(1, 1))
    code, _, err = run("many", "-o", "tokens")
    assert (code, written("tokens.work/tokens")) == (3, before)
    assert "inputs: 4 then, 4 now" in err
    code, out, err = run("many", "-o", "tokens", "--restart", "--json")
    assert code == 0, err
    assert json.loads(out)["n_shards_reused"] == 0
    assert is_token_store("tokens")


@pytest.mark.usefixtures("many")
def test_two_runs_cannot_share_the_work() -> None:
    work = TokenizeWork.begin(Path("tokens.work"), {}, restart=False)
    try:
        code, _, err = run("many", "-o", "tokens", "--restart")
    finally:
        work.close()
    assert code == 3
    assert "another `engram tokenize` at work there" in err


@pytest.mark.usefixtures("many")
def test_a_file_that_changes_while_it_is_read_is_refused() -> None:
    plan = plan_tokenize(["many"], vocabulary=load_vocabulary("vocab.parquet"), output=Path("tokens"))
    os.utime("many/0.jsonl", ns=(1, 1))
    with pytest.raises(InvalidInput, match=r"0.jsonl: found that it changed while it was read"):
        run_tokenize(plan, workers=1)
    assert not Path("tokens").exists()


@pytest.mark.usefixtures("many", "processes")
def test_a_killed_worker_is_an_error_that_names_its_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    run_jobs = WorkerPool.run

    def run_and_kill(pool: WorkerPool, jobs: Any) -> Iterator[Any]:
        for nth, event in enumerate(run_jobs(pool, jobs)):
            if nth == 3:
                for worker in pool._workers:
                    worker._process.kill()
            yield event

    monkeypatch.setattr(WorkerPool, "run", run_and_kill)
    plan = plan_tokenize(["many"], vocabulary=load_vocabulary("vocab.parquet"), output=Path("tokens"))
    with pytest.raises(CapacityError, match=rf"piece \d of {N_PIECES} \(many/.*\): its worker .*SIGKILL.*--workers"):
        run_tokenize(plan, workers=2)
    assert not Path("tokens").exists()


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", PROGRAM, str(PIECE_BYTES), *arguments, "--vocab", "vocab.parquet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_shards(process: subprocess.Popen[bytes], n_shards: int) -> None:
    while len(list(Path("tokens.work/shards").glob("*.json"))) < n_shards:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.002)


def workers_of(process: subprocess.Popen[bytes]) -> list[Path]:
    """Directories in /proc of the processes in this one's session, itself left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = int(stat.read_text().rpartition(")")[2].split()[3])
        except OSError:
            continue
        if session == process.pid and stat.parent.name != str(process.pid):
            found.append(stat.parent)
    return found


def wait_until_gone(workers: list[Path]) -> None:
    deadline = time.monotonic() + 60
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < deadline, workers
        time.sleep(0.01)


@pytest.fixture
def long(many: Path) -> Path:
    """The same with more to do, so that a run can be stopped in the middle."""
    text = Path("many/2.jsonl").read_text()
    Path("many", "3.jsonl").write_text(text * 3)
    return many


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("long")
def test_a_signal_leaves_what_the_next_run_finishes(number: signal.Signals) -> None:
    with started("many", "-o", "tokens", "--workers", "2") as process:
        wait_for_shards(process, 3)
        workers = workers_of(process)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: workers get it too
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=240)
    wait_until_gone(workers)
    assert workers
    assert not Path("tokens").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130, err
        assert b"shards are finished and stay in tokens.work; the same command goes on there" in err
        assert b"Traceback" not in err
        assert not list(Path("tokens.work").glob("partial-*"))
    assert run("many", "-o", "whole", "--workers", "1")[0] == 0
    code, out, err = run("many", "-o", "tokens", "--workers", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["n_shards_reused"] >= 3
    assert written("tokens") == written("whole")
    assert [path.name for path in Path().glob("*tokens*")] == ["tokens"]


@pytest.mark.slow
@pytest.mark.usefixtures("long", "processes")
def test_ten_kills_at_random_moments_change_no_byte() -> None:
    chance = random.Random(11)
    assert run("many", "-o", "whole", "--workers", "1")[0] == 0
    finished = -1
    for kill in range(10):
        with started("many", "-o", "tokens", "--workers", str(1 + kill % 3)) as process:
            wait_for_shards(process, min(kill * 2, 8))
            time.sleep(chance.random() / 4)
            workers = workers_of(process)
            process.kill()
            process.communicate(timeout=240)
        wait_until_gone(workers)
        if Path("tokens").exists():
            break
        records = len(list(Path("tokens.work/shards").glob("*.json")))
        assert records >= finished
        finished = records
    if not Path("tokens").exists():
        assert run("many", "-o", "tokens", "--workers", "2")[0] == 0
    assert written("tokens") == written("whole")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("many", "processes")
def test_a_full_disk_is_said_and_finished_shards_survive(workers: int) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The last shard, of one text, is the largest file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        code, out, err = run("many", "-o", "tokens", "--workers", str(workers))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (5, ""), err
    assert "while tokenising to tokens" in err
    assert "shards are finished and stay in tokens.work" in err
    assert not Path("tokens").exists()
    code, out, err = run("many", "-o", "tokens", "--json")
    assert code == 0, err
    assert json.loads(out)["n_shards_reused"] > 0
    assert documents("tokens")[-1] == letters(Path("many/z.txt").read_text())


def test_a_work_directory_that_was_hardly_begun_is_taken_over(place: Path) -> None:
    for name in ("lock", "partial-12345678/plan.json"):
        (place / "tokens.work" / name).parent.mkdir(exist_ok=True, parents=True)
        (place / "tokens.work" / name).touch()
    assert run("text", "-o", "tokens")[0] == 0
    assert not (place / "tokens.work").exists()


@pytest.mark.usefixtures("many")
def test_a_run_killed_after_its_end_leaves_work_that_is_still_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TokenizeWork, "remove", lambda _work: None)
        assert run("many", "-o", "tokens")[0] == 0
    whole = written("tokens")
    assert Path("tokens.work").exists()
    shutil.rmtree("tokens")
    code, out, err = run("many", "-o", "tokens", "--json")
    assert code == 0, err
    assert json.loads(out)["n_shards_reused"] == N_PIECES
    assert written("tokens") == whole
    assert not Path("tokens.work").exists()


@pytest.mark.usefixtures("many")
def test_a_filesystem_without_links_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    assert run("many", "-o", "linked")[0] == 0
    monkeypatch.setattr(os, "link", refuse)
    assert run("many", "-o", "moved")[0] == 0
    assert written("moved") == written("linked")
    assert not list(Path().glob("*.work"))
