"""What happens when the world is not as it should be: streams, disks, signals, damaged and hostile files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engram_tables.address.vocabulary import load_vocabulary
from engram_tables.errors import InvalidInput

from .conftest import Engram

MAIN = [sys.executable, "-c", "from engram_cli.main import main; main()"]
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "deepseek-v4.1-flash.json").read_bytes())


def _shell(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    program = " ".join(f"'{part}'" for part in MAIN)
    script = f'engram() {{ {program} "$@"; }}; {script}'
    return subprocess.run(
        ["bash", "-c", script], cwd=cwd, capture_output=True, check=False, env={**os.environ, **environment}
    )


def test_a_reader_that_leaves_neither_stops_the_work_nor_hides_a_failed_check(
    tiny_tokenizer_json: Path, tmp_path: Path
) -> None:
    script = f"engram build-vocab {tiny_tokenizer_json} -o v.parquet | true; exit ${{PIPESTATUS[0]}}"
    assert _shell(script, tmp_path).returncode == 0
    assert load_vocabulary(tmp_path / "v.parquet").token_count == 263
    script = f"engram build-vocab {tiny_tokenizer_json} --expect-size 5 | true; exit ${{PIPESTATUS[0]}}"
    ran = _shell(script, tmp_path)
    assert ran.returncode == 6
    assert b"Traceback" not in ran.stderr


def test_closed_streams_and_narrow_encodings(tiny_vocab_file: Path, tmp_path: Path) -> None:
    ran = _shell("engram spec list >&-", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, b"")
    ran = _shell(f"engram inspect vocab {tiny_vocab_file} --text é", tmp_path, PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert b"\\ufffd" in ran.stdout


def test_a_full_disk_ends_with_5_and_leaves_nothing(tiny_tokenizer_json: Path, tmp_path: Path) -> None:
    mounted = "mount -t tmpfs -o size=64k none full"
    (tmp_path / "full").mkdir()
    if subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted], cwd=tmp_path, capture_output=True, check=False
    ).returncode:
        pytest.skip("no private mount namespace can be made here")
    program = "engram() { " + " ".join(f"'{part}'" for part in MAIN) + ' "$@"; }; '
    fill = "dd if=/dev/zero of=full/most bs=1k 2>/dev/null"
    for command in (
        "hash --preset deepseek-v4.1-flash --canonical --ids 0-999 -o full/rows.npy",
        "spec export --preset engram-27b --layers 1,2 --as gguf -o full/kv.json",
        f"build-vocab {tiny_tokenizer_json} -o full/v.parquet",
    ):
        script = f"{program} {mounted} && {fill}; engram {command} >/dev/null; code=$?; ls -A full; exit $code"
        ran = subprocess.run(["unshare", "-m", "bash", "-c", script], cwd=tmp_path, capture_output=True, check=False)
        assert ran.returncode == 5, ran.stderr
        assert b"No space left" in ran.stderr
        assert ran.stdout.split() == [b"most"]


@pytest.mark.slow  # what a signal meets depends on the moment: one of the kills at random moments
@pytest.mark.parametrize("delay_s", [0.05, 0.6])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_with_130_and_without_a_traceback(number: signal.Signals, delay_s: float, tmp_path: Path) -> None:
    """At any moment from the first on, and however often they come."""
    probe = "import sys; sys.stdout.write('x'); sys.stdout.flush()"
    program = f"{probe}; from engram_cli.main import main; main()"
    hashing = ["hash", "--preset", "deepseek-v4.1-flash", "--canonical", "--ids", "0-9999999"]
    command = [sys.executable, "-c", program, *hashing]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(1)
        time.sleep(delay_s)
        for _ in range(6):
            child.send_signal(number)
            time.sleep(0.01)
        _, err = child.communicate(timeout=240)
    # Before the handlers stand, a few milliseconds after the interpreter's own start, the signal's default holds.
    assert child.returncode in ({130} if delay_s > 0.5 else {130, -number}), err
    assert b"Traceback" not in err or child.returncode == -number


def test_damaged_vocabularies_are_refused_whatever_bit_is_flipped(tiny_vocab_file: Path, tmp_path: Path) -> None:
    whole = tiny_vocab_file.read_bytes()
    expected = load_vocabulary(tiny_vocab_file)
    path = tmp_path / "flipped.parquet"
    rng = np.random.default_rng(0)
    harmless = 0
    for place in rng.choice(len(whole), 400, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = load_vocabulary(path)
        except InvalidInput:
            continue
        # A flip in what Parquet does not read (a codec's own hint, a statistic) may pass; then nothing else differs.
        harmless += 1
        assert found.header() == expected.header()
        assert found.tokens == expected.tokens
        assert found.canonical_ids.tobytes() == expected.canonical_ids.tobytes()
        assert found.tokenizer_json == expected.tokenizer_json
    assert harmless < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engram_max_ngram_size": 10**9}, "expected 2 to 16"),
        ({"engram_n_heads": 10**8}, "heads is 100000000"),
        ({"engram_vocab_size": 10**30}, "rows a head"),
        ({"engram_layer_ids": list(range(5000))}, "layers is 5000"),
    ],
)
def test_hostile_configs_are_refused_at_once(
    engram: Engram, change: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GOLDEN["config"] | change), encoding="utf-8")
    ran = engram("hash", "--config", "config.json", "--canonical", "--ids", "1")
    assert ran.code == 3
    assert message in ran.err


def test_unreadable_numbers_and_files(engram: Engram, tmp_path: Path) -> None:
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04" + b"0" * 64)
    (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04" + b"0" * 64)
    np.save(tmp_path / "plain", np.arange(3))
    (tmp_path / "plain.npy").rename(tmp_path / "plain.npz")
    (tmp_path / "digits.json").write_text('{"schema": ' + "9" * 5000 + "}", encoding="utf-8")
    (tmp_path / "deep.json").write_text("[" * 100_000, encoding="utf-8")
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    preset = ("hash", "--preset", "deepseek-v4.1-flash", "--canonical")
    for arguments in (
        (*preset, "--ids", "9" * 20),
        (*preset, "--ids", "1", "--history", "9" * 20),
        (*preset, "--file", "zip.npy"),
        (*preset, "--file", "huge.npy"),
        ("spec", "show", "--spec", "zip.npz"),
        ("spec", "show", "--spec", "plain.npz"),
        ("spec", "show", "--spec", "digits.json"),
        ("spec", "show", "--spec", "deep.json"),
        ("build-vocab", "deep.json"),
    ):
        ran = engram(*arguments)
        assert ran.code == 3, (arguments, ran)
        assert ran.err.startswith("error: ")


def test_gguf_is_refused_for_what_it_cannot_say(engram: Engram, tiny_vocab_file: Path) -> None:
    make = ("spec", "make", "--vocab", tiny_vocab_file, "--pad-token", "0", "--force", "-o", "s.json")
    for options, message in (
        (("--orders", "2,4"), "2 up to the largest"),
        (("--orders", "2", "--rows-per-head", "3000000000"), "less than 2^32"),
    ):
        assert engram(*make, *options).code == 0
        ran = engram("spec", "export", "--spec", "s.json", "--as", "gguf", "-o", "kv.json")
        assert ran.code == 3
        assert message in ran.err


def test_control_characters_reach_no_terminal(engram: Engram, tiny_table: Path) -> None:
    ran = engram("inspect", "ngram", tiny_table, "\x1b[31mred\u2028", "--orders", "2")
    assert ran.code == 0
    assert "\x1b" not in ran.out
    records = engram("inspect", "ngram", tiny_table, "\u2028", "--orders", "2", "--json")
    assert "\u2028" not in records.out
    assert len(records.records()) >= 1


@pytest.mark.slow
def test_kernels_compile_where_nothing_can_be_cached(tmp_path: Path) -> None:
    """A read-only installation and a home that cannot be made."""
    root = Path(__file__).resolve().parent.parent.parent
    script = f"mount --bind -o ro {root} {root} && engram hash --preset deepseek-v4.1-flash --canonical --ids 1 --json"
    environment = {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none", "TMPDIR": str(tmp_path)}
    program = "engram() { " + " ".join(f"'{part}'" for part in MAIN) + ' "$@"; }; '
    can_mount = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
    if not can_mount:
        pytest.skip("no private mount namespace can be made here")
    ran = subprocess.run(
        ["unshare", "-m", "bash", "-c", program + script],
        cwd=tmp_path, capture_output=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    if b"mount" in ran.stderr:
        pytest.skip("no read-only bind mount can be made here")
    assert ran.returncode == 0, ran.stderr
    assert b'"schema": "engram.hash/1"' in ran.stdout
    assert list(tmp_path.iterdir()) == []
