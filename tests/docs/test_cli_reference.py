"""docs/reference/cli.md is what the commands print with --help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "cli.md"
HOSTILE = {
    "COLUMNS": "50", "TERMINAL_WIDTH": "60", "FORCE_COLOR": "1", "GITHUB_ACTIONS": "true", "TERM": "xterm-256color",
    "LC_ALL": "C", "PYTHONIOENCODING": "ascii",
}  # fmt: skip


def _printed(**environment: str) -> str:
    command = [sys.executable, str(ROOT / "docs" / "generate_cli.py"), "--print"]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, **environment})
    return done.stdout.decode()


@lru_cache
def _usual() -> str:
    return _printed()


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def _options(text: str) -> list[tuple[str, list[str]]]:
    """Each section's title and the options in it."""
    sections = re.findall(r"^#{2,3} (engram.*?)\n(.*?)(?=^#{2,3} |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    return [(title, re.findall(r"(?<![\w-])--[a-z][\w-]*", body)) for title, body in sections]


def test_the_page_is_what_the_commands_print() -> None:
    printed, page = _usual(), PAGE.read_text(encoding="utf-8")
    message = "docs/reference/cli.md differs from --help; run `make docs`"
    if f"(Typer {metadata.version('typer')})" in page:
        assert _lines(printed) == _lines(page), message
    else:
        # Another Typer lays its pages out in another way, and still has the same options in the same order.
        assert _options(printed) == _options(page), message


@pytest.mark.slow
@pytest.mark.parametrize("changed", [HOSTILE, {"NO_COLOR": "", "TYPER_USE_RICH": "0"}], ids=["terminal", "plain"])
def test_the_page_does_not_depend_on_the_terminal(changed: dict[str, str]) -> None:
    assert _printed(**changed) == _usual()


def test_every_command_has_a_section() -> None:
    titles = [title for title, _ in _options(PAGE.read_text(encoding="utf-8"))]
    assert titles[0] == "engram"
    assert len(titles) == len(set(titles))
    assert {"engram build-vocab", "engram spec export", "engram inspect ngram", "engram bench-offload"} <= set(titles)
