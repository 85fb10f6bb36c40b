"""docs/man/engram.1 is what its generator makes of the commands, and is a page that groff sets without a warning."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "man" / "engram.1"
REFERENCE = ROOT / "docs" / "reference" / "cli.md"


@cache
def _generated() -> str:
    command = [sys.executable, str(ROOT / "docs" / "generate_man.py"), "--print"]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode("ascii")


def _tags(page: str) -> list[str]:
    """Sections, and what stands before each description, without types: another Typer may spell those differently."""
    return [line.split("<")[0].strip() for line in page.splitlines() if line.startswith((".S", ".B "))]


def test_the_page_is_what_the_generator_makes() -> None:
    message = "docs/man/engram.1 differs from the commands; run `make docs`"
    page = PAGE.read_text(encoding="ascii")
    if f"(Typer {metadata.version('typer')})" in page:
        assert _generated() == page, message
    else:
        assert _tags(_generated()) == _tags(page), message


def test_every_command_has_a_section_with_its_options() -> None:
    page = PAGE.read_text(encoding="ascii").replace("\\-", "-")
    sections = dict(re.findall(r'^\.SS "(.*?)"\n(.*?)(?=^\.S|\Z)', page, flags=re.DOTALL | re.MULTILINE))
    reference = REFERENCE.read_text(encoding="utf-8")
    titles = re.findall(r"^#{2,3} (engram .+)$", reference, flags=re.MULTILINE)
    assert list(sections) == titles
    assert "--vocab FILE" in sections["engram count"]
    assert "engram count book.txt" in sections["engram count"]


def test_every_exit_code_stands_there() -> None:
    page = PAGE.read_text(encoding="ascii")
    status = page[page.index(".SH EXIT STATUS") : page.index(".SH ENVIRONMENT")]
    assert re.findall(r"^\.B (\d+)$", status, flags=re.MULTILINE) == ["0", "1", "2", "3", "4", "5", "6", "130"]


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_sets_it_without_a_warning() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-c", str(PAGE)], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stderr == ""
    assert "engram inspect ngram ./table" in done.stdout
