"""Counting killed, interrupted, on a full disk and in little memory; and a million tokens counted by plain Python."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_tables.address.vocabulary import Vocabulary
from engram_tables.corpus.counts.count_corpus import plan_count, run_count
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.corpus.reading.readers import find_documents
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.corpus.tokens.token_stream import tokenize_documents

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Parts and pieces of text small enough that a few million tokens make several of each.
PROGRAM = (
    "from engram_tables.corpus.counts import count_corpus, counts_writer; "
    "from engram_tables.corpus.tokens import tokenize_corpus; "
    "counts_writer.PART_TOKENS = 1 << 17; count_corpus.PIECE_BYTES = 1 << 19; "
    "from engram_cli.main import main; main()"
)
ENGRAM = [sys.executable, "-c", PROGRAM]
LITTLE_MEMORY = ("--memory", "135MiB", "--threads", "2")
"""Just above the least for two threads over the V4 vocabulary: some 200,000 tokens a run."""


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, v4_vocab_file: Path) -> Path:
    """`text/`, some six million bytes of the standard library, `v4.vocab.parquet`, and `whole`, its counts."""
    place = tmp_path_factory.mktemp("library")
    (place / "text").mkdir()
    n_bytes = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts and n_bytes < 6_000_000:
            content = path.read_bytes()
            (place / "text" / f"{n_bytes:08}.py").write_bytes(content)
            n_bytes += len(content)
    shutil.copy(v4_vocab_file, place / "v4.vocab.parquet")
    record = finish(command_of(place, "whole"), place)
    assert record["n_runs"] >= 5
    assert record["n_reused"] == 0
    assert record["corpus"]["n_tokens"] > 1_300_000
    manifest = json.loads((place / "whole" / "counts.json").read_bytes())
    assert len(manifest["part_starts"]) >= 5
    return place


def command_of(library: Path, output: str) -> list[str]:
    options = ["--glob", "*.py", "--decode-errors", "replace", "--orders", "2,3,4", "--top", "0", "--json"]
    return [
        *ENGRAM, "count", str(library / "text"), "--vocab", str(library / "v4.vocab.parquet"), "-o", output,
        *options, *LITTLE_MEMORY,
    ]  # fmt: skip


def finish(command: list[str], cwd: Path) -> dict[str, Any]:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    record: dict[str, Any] = json.loads(ran.stdout)
    return record


def stop_at(command: list[str], cwd: Path, moment: Callable[[], bool], delay_s: float, how: signal.Signals) -> str:
    """Start the command, and stop it `delay_s` after the moment has come; what it said."""
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        try:
            while not moment():
                assert child.poll() is None, child.stderr.read().decode() if child.stderr else ""
                time.sleep(0.002)
            time.sleep(delay_s)
            child.send_signal(how)
            _, said = child.communicate(timeout=120)
        finally:
            child.kill()
    assert child.returncode == (130 if how is signal.SIGINT else -how), said.decode()
    return said.decode()


def moments_of(work: Path) -> Iterator[Callable[[], bool]]:
    """Moments spread over tokenising, runs and parts, each later than the one before."""
    yield work.is_dir
    yield lambda: any((work / "tokens.work" / "shards").glob("*"))
    yield lambda: len(list((work / "tokens.work" / "shards").glob("*"))) > 3
    yield (work / "tokens" / "tokens.json").is_file
    for n_runs in (1, 3, 5):
        yield lambda n_runs=n_runs: len(list(work.glob("run-*.json"))) >= n_runs
    for n_parts in (1, 3, 5):
        yield lambda n_parts=n_parts: len(list(work.glob("part-*.json"))) >= n_parts


def test_a_count_killed_at_ten_moments_ends_with_the_same_bytes(library: Path, tmp_path: Path) -> None:
    command, work = command_of(library, "counts"), tmp_path / "counts.work"
    delays = random.Random(0)
    for moment in moments_of(work):
        stop_at(command, tmp_path, moment, delays.uniform(0, 0.05), signal.SIGKILL)
        assert not (tmp_path / "counts").exists()
    record = finish(command, tmp_path)
    assert record["n_reused"] >= record["n_runs"] + 5
    assert digests(tmp_path / "counts") == digests(library / "whole")
    # What a killed run left aside under a hidden name is no counts directory and in nobody's way.
    assert not work.exists()


def test_an_interrupted_count_says_how_to_go_on(library: Path, tmp_path: Path) -> None:
    command, work = command_of(library, "counts"), tmp_path / "counts.work"
    delays = random.Random(1)
    for nth, moment in enumerate(moments_of(work)):
        if nth in (2, 5, 8):
            said = stop_at(command, tmp_path, moment, delays.uniform(0, 0.05), signal.SIGINT)
            assert "interrupted" in said
            assert "Traceback" not in said
            assert "counts.work; the same command goes on there" in said
            assert not list(work.glob("partial-*"))
            assert [path.name for path in tmp_path.iterdir()] == ["counts.work"]
    record = finish(command, tmp_path)
    assert record["n_reused"] >= record["n_runs"] + 3
    assert digests(tmp_path / "counts") == digests(library / "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["counts"]


DISK = """
import json, pathlib, shutil, subprocess, sys
place, command, merging = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
token_bytes, told = int(sys.argv[6]), []

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True)

def run(command):
    ran = subprocess.run(command, cwd=place, capture_output=True)
    left = sorted(path.name for path in place.iterdir())
    runs = len(list(place.glob("*.work/run-*.json")))
    told.append([ran.returncode, ran.stdout.decode(), ran.stderr.decode(), left, runs])

mount(f"size={token_bytes + (8 << 20)}")
run(command)
mount(f"remount,size={token_bytes + (16 << 20)}")
run(command)
mount("remount,size=400m")
run(command)
shutil.copytree(place / "counts", sys.argv[4])
held = sum(path.stat().st_blocks * 512 for path in place.rglob("*"))
mount(f"remount,size={held + (16 << 20)}")
run(merging)
mount("remount,size=600m")
run(merging)
shutil.copytree(place / "merged", sys.argv[5])
print(json.dumps(told))
"""


def test_a_full_disk_keeps_finished_runs_and_the_command_goes_on(library: Path, tmp_path: Path) -> None:
    """On a disk of its own: memory that only these processes see mounted, and that goes with them."""
    isolated = ["unshare", "--user", "--map-root-user", "--mount"]
    place = tmp_path / "disk"
    place.mkdir()
    probe = [*isolated, "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no private mounts here")
    token_bytes = 4 * json.loads((library / "whole" / "counts.json").read_bytes())["corpus"]["n_tokens"]
    command = command_of(library, "counts")
    merging = [*ENGRAM, "counts", "merge", str(library / "whole"), "counts", "-o", "merged", "--json"]
    ran = subprocess.run(
        [*isolated, sys.executable, "-c", DISK, str(place), json.dumps(command), json.dumps(merging),
         str(tmp_path / "counts"), str(tmp_path / "merged"), str(token_bytes)],
        capture_output=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr.decode()
    told = json.loads(ran.stdout)
    for code, out, said, left, n_runs in told[:2]:
        assert (code, out) == (5, ""), said
        assert "No space left on device" in said
        assert "counts.work; the same command goes on there" in said
        assert left == ["counts.work"]
        assert n_runs >= 1
    assert told[1][4] > told[0][4]
    assert told[2][0] == 0, told[2][2]
    assert json.loads(told[2][1])["n_reused"] >= told[1][4]
    assert digests(tmp_path / "counts") == digests(library / "whole")
    code, out, said, left, _ = told[3]
    assert (code, out) == (5, ""), said
    assert "No space left on device" in said
    assert "merged" not in left
    assert told[4][0] == 0, told[4][2]
    with open_counts(tmp_path / "merged") as merged, open_counts(library / "whole") as whole:
        assert merged.n_total(4) == 2 * whole.n_total(4)
        assert merged.n_distinct(4) == whole.n_distinct(4)


def peak_anonymous_bytes(command: list[str], cwd: Path) -> tuple[int, dict[str, Any]]:
    """The most private memory that a command held, and its record."""
    peak = 0
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            while child.poll() is None:
                status = Path(f"/proc/{child.pid}/status").read_text()
                found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
                peak = max(peak, *found, 0) if found else peak
                time.sleep(0.01)
            out, said = child.communicate()
        finally:
            child.kill()
    assert child.returncode == 0, said.decode()
    return 1024 * peak, json.loads(out)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc here")
def test_memory_stays_within_its_bound(v4_vocabulary: Vocabulary, v4_vocab_file: Path, tmp_path: Path) -> None:
    memory_bytes, n_tokens = 192 << 20, 12_000_000
    generator = np.random.default_rng(0)
    ids = generator.integers(0, v4_vocabulary.token_count, n_tokens, dtype=np.uint32)
    bounds = sorted({0, n_tokens, *generator.integers(0, n_tokens, 500).tolist()})
    for name, documents in (
        ("many", [ids[a:b] for a, b in itertools.pairwise(bounds)]),
        ("line", [ids[:10]]),
    ):
        write_tokens(
            tmp_path / name, documents, token_size=v4_vocabulary.token_count,
            tokenizer_sha256=v4_vocabulary.tokenizer_sha256,
        )  # fmt: skip

    def command(tokens: str, memory: int) -> list[str]:
        options = ["--memory", str(memory), "--threads", "2", "--top", "0", "--json", "--orders", "2,3,4"]
        main = [sys.executable, "-c", "from engram_cli.main import main; main()", "count"]
        return [*main, tokens, "--vocab", str(v4_vocab_file), "-o", f"{tokens}-{memory}", *options]

    least, _ = peak_anonymous_bytes(command("line", memory_bytes), tmp_path)
    peak, record = peak_anonymous_bytes(command("many", memory_bytes), tmp_path)
    assert record["n_runs"] > 2
    # Its rows would take some times the memory.
    rows_bytes = sum(told["n_rows"] * (4 * told["order"] + 8) for told in record["orders"])
    assert rows_bytes > 3 * memory_bytes
    assert peak - least < 1.25 * memory_bytes, (peak, least)
    record = finish(command("many", 4 << 30), tmp_path)
    assert record["n_runs"] == 1
    assert digests(tmp_path / f"many-{4 << 30}") == digests(tmp_path / f"many-{memory_bytes}")


def test_a_million_tokens_equal_a_plain_python_count(v4_vocabulary: Vocabulary, tmp_path: Path) -> None:
    corpus = find_documents([sysconfig.get_path("stdlib")], glob="*.py", exclude=("*-packages",),
                            decode_errors="replace")  # fmt: skip
    texts = itertools.islice(corpus.documents(), 350)
    stream = tokenize_documents(v4_vocabulary.tokenizer(), texts)
    ends = stream.document_starts.tolist()
    documents = [stream.ids[a:b].tolist() for a, b in itertools.pairwise(ends)]
    top = v4_vocabulary.token_count - 1
    odd: list[list[int]] = [[], [top], [0], [top, top, top, top, top, top], [top, 0] * 40, [top - 1, top, 1], []]
    for nth, document in enumerate(odd):
        documents.insert(nth * len(documents) // len(odd), document)
    assert sum(map(len, documents)) > 1_000_000
    write_tokens(
        tmp_path / "tokens", documents, token_size=v4_vocabulary.token_count,
        tokenizer_sha256=v4_vocabulary.tokenizer_sha256,
    )  # fmt: skip
    plan = plan_count([tmp_path / "tokens"], vocabulary=v4_vocabulary, orders=(2, 3, 4, 5), output=tmp_path / "counts")
    done = run_count(plan, memory_bytes=150 << 20, threads=2)
    assert done.n_runs > 1
    canonical = [v4_vocabulary.canonical(document).tolist() if document else [] for document in documents]
    with open_counts(tmp_path / "counts") as counts:
        assert counts.figures.n_documents == len(documents)
        for order in (1, 2, 3, 4, 5):
            expected: Counter[tuple[int, ...]] = Counter()
            for document in canonical:
                expected.update(zip(*(document[place:] for place in range(order)), strict=False))
            found = counts.load(order)
            assert found.n_total == sum(expected.values())
            assert dict(zip(map(tuple, found.ngrams.tolist()), found.counts.tolist(), strict=True)) == expected
