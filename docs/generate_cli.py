"""Writes docs/reference/cli.md from what every command prints with --help.

    python docs/generate_cli.py            writes the page
    python docs/generate_cli.py --print    prints it and writes nothing

The page depends on Typer's version, which it names, and on no terminal: Typer reads the variables below while it is
imported, so they are set first, and the test runs this file in a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

WIDTH = 120
PAGE = Path(__file__).parent / "reference" / "cli.md"

for _name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TYPER_USE_RICH"):
    os.environ.pop(_name, None)
os.environ |= {"TERMINAL_WIDTH": str(WIDTH), "COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}

import typer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from engram_cli.app import app  # noqa: E402

_HEAD = """\
# The command line

What `engram` and each of its commands print with `--help`, written by `docs/generate_cli.py` (Typer {version}); a
test compares this page with the commands. Exit codes and messages are in [errors.md](errors.md), what `--json` prints
in [records.md](records.md).

`--quiet`, `--verbose` and `--version` stand before the command: `engram -q count …`. Results go to stdout, narration,
progress and errors to stderr. `NO_COLOR` is honoured; nothing asks a question.

The first line of `--version` is `engram X.Y.Z`; Python, packages, extras and file formats follow. A report of a fault
needs all of it.
"""


def page() -> str:
    """The page's text, without trailing space on any line."""
    parts = [_HEAD.format(version=metadata.version("typer"))]
    for words in command_words(typer.main.get_command(app)):
        parts.append(f"\n{'#' * min(2 + max(len(words) - 1, 0), 3)} {' '.join(('engram', *words))}\n")
        parts.append(f"\n```text\n{help_text(words)}\n```\n")
    return "".join(parts)


def command_words(command: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group, `engram` itself first."""
    yield before
    for name, child in getattr(command, "commands", {}).items():
        yield from command_words(child, (*before, name))


def help_text(words: tuple[str, ...]) -> str:
    """What one command prints with --help."""
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="engram")
    if result.exit_code != 0:
        raise RuntimeError(f"engram {' '.join(words)} --help ended with exit code {result.exit_code}: {result.output}")
    return "\n".join(line.rstrip() for line in result.stdout.splitlines()).strip("\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.buffer.write(page().encode())
    elif sys.argv[1:]:
        raise SystemExit(f"{sys.argv[0]}: found {' '.join(sys.argv[1:])}, expected --print or nothing")
    else:
        PAGE.write_text(page(), encoding="utf-8")
