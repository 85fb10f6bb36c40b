"""The examples of the documentation, run as they stand: `pycon` blocks as one doctest a page."""

from __future__ import annotations

import doctest
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engram_cli.app import app
from engram_tables import load_spec
from engram_tables.address.export.gguf_metadata import gguf_key_values
from engram_tables.address.released.models import spec_from_model

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def _blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def _with(pages: list[Path], *languages: str) -> list[Path]:
    return [page for page in pages if _blocks(page, *languages)]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", _with(PAGES, "pycon"), ids=_name)
def test_python_examples_print_what_they_say(
    page: Path, tiny_tokenizer_json: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tiny_tokenizer_json, tmp_path / "tokenizer.json")
    monkeypatch.chdir(tmp_path)
    text = "\n".join(_blocks(page, "pycon"))
    test = doctest.DocTestParser().get_doctest(text, {}, _name(page), str(page), 0)
    assert test.examples
    printed: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=printed.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)


def test_the_gguf_example_writes_what_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = _blocks(ROOT / "docs" / "how-to" / "address-a-released-model.md", "python")
    spec = load_spec("qwen3.8-flash-next")
    monkeypatch.chdir(tmp_path)
    Path("kv.json").write_text(json.dumps(gguf_key_values(spec)), encoding="utf-8")
    exec(compile(example, "example", "exec"), {})
    assert spec_from_model(Path("constants.gguf")).fingerprint == spec.fingerprint


def _commands(page: Path) -> list[list[str]]:
    """The words after `engram` of every command in the page's shell blocks, continued lines joined."""
    found = []
    for block in _blocks(page, "sh", "console", "shell", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s[|&]{1,2}\s|;\s", line.removeprefix("$ ")):
                if part.startswith("engram "):
                    found.append(shlex.split(part, comments=True)[1:])
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if _commands(page)], ids=_name)
def test_shell_examples_use_options_that_exist(page: Path) -> None:
    reference = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    sections = {
        title: set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", body))
        for title, body in re.findall(r"^#{2,3} (engram.*?)\n(.*?)(?=^#{2,3} |\Z)", reference, re.DOTALL | re.MULTILINE)
    }
    for words in _commands(page):
        while words and words[0].startswith("-"):
            assert words.pop(0) in sections["engram"], (page, words)
        title = next((t for t in (" ".join(("engram", *words[:n])) for n in (2, 1)) if t in sections), None)
        assert title is not None, f"{page}: engram {' '.join(words)}"
        for word in words:
            if word.startswith("-") and len(word) > 1:
                assert word.partition("=")[0] in sections[title], f"{page}: {title} has no {word}"


def test_errors_are_the_printed_ones(v4_vocab_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the examples in errors.md those that need no table; the sizes of a disk differ everywhere."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(v4_vocab_file, "v4.vocab.parquet")
    Path("broken.json").write_text("{\n")
    Path("bad.txt").write_bytes(b"\xff")
    Path("book.txt").write_text("the cat sat")
    page = ROOT / "docs" / "reference" / "errors.md"
    n_run = 0
    for block in _blocks(page, "console"):
        command, first, *_ = block.splitlines()
        words = shlex.split(command.removeprefix("$ "))[1:]
        if words[0] in ("build-vocab", "hash", "count") or words == ["inspect", "table", "."]:
            printed = CliRunner().invoke(app, words).stderr.splitlines()
            assert printed[0] == first, command
            n_run += 1
    assert n_run >= 6
