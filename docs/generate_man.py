"""Writes docs/man/engram.1, the manual page, from the same commands as the command-line reference.

    python docs/generate_man.py            writes the page
    python docs/generate_man.py --print    prints it and writes nothing

The wheel carries the page as share/man/man1/engram.1. Its text is ASCII roff with the macros of man(7); exit codes come
from docs/reference/errors.md, so that they are told once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

# First: it prepares the environment that Typer reads while it is imported.
from generate_cli import app, command_words, typer

from engram_tables import __version__

PAGE = Path(__file__).parent / "man" / "engram.1"
_ERRORS = Path(__file__).parent / "reference" / "errors.md"
_TO_RUN_WITH = {
    "NO_COLOR": "Set to anything: no colours.",
    "COLUMNS": "Width of help pages and of lines of words, where no terminal tells it.",
    "NUMBA_CACHE_DIR": "Where compiled kernels are kept; beside the package, or in the user's cache, by default.",
    "XDG_CACHE_HOME": "The user's cache; ~/.cache by default.",
    "RAY_ADDRESS": "A running Ray cluster, where --ray-address names none.",
}


def page() -> str:
    """The page's roff."""
    root = typer.main.get_command(app)
    lines = [
        f'.\\" Written by docs/generate_man.py (Typer {metadata.version("typer")}).',
        f'.TH ENGRAM 1 "" "Engram Tables {__version__}" "User Commands"',
        ".SH NAME",
        _escaped(f"engram - {root.help[0].lower()}{root.help[1:].rstrip('.')}"),
        ".SH SYNOPSIS",
        *_usage(root, ()),
        ".SH DESCRIPTION",
        _escaped(
            "Results go to stdout; narration, progress and errors go to stderr. Options of engram itself stand before "
            "the command. Nothing asks a question."
        ),
        ".SH OPTIONS",
        *_parameters(root, ()),
        ".SH COMMANDS",
    ]
    for words in command_words(root):
        if words:
            lines += _command(_find(root, words), words)
    lines += [".SH EXIT STATUS", *_exit_codes(), ".SH ENVIRONMENT"]
    for name, meaning in _TO_RUN_WITH.items():
        lines += _tagged(name, meaning)
    return "\n".join(lines) + "\n"


def _find(command: Any, words: tuple[str, ...]) -> Any:
    for word in words:
        command = command.commands[word]
    return command


def _command(command: Any, words: tuple[str, ...]) -> Iterator[str]:
    """A command's section: how it is called, what it does, its arguments and options."""
    yield f'.SS "{_escaped(" ".join(("engram", *words)))}"'
    yield from _usage(command, words)
    yield from _prose(command.help or "")
    yield from _parameters(command, words)


def _usage(command: Any, words: tuple[str, ...]) -> Iterator[str]:
    pieces = command.collect_usage_pieces(typer.Context(command, info_name=words[-1] if words else "engram"))
    # Typer sets an argument in braces, with its dots within and without.
    plain = [re.sub(r"\{(.*?)(\.\.\.)?\}", r"\1", piece) for piece in pieces]
    yield f".B {_escaped(' '.join(('engram', *words)))}"
    yield _escaped(" ".join(plain))


def _prose(text: str) -> Iterator[str]:
    r"""Paragraphs; one that begins with \b keeps its lines, under its first."""
    for paragraph in text.split("\n\n"):
        yield ".PP"
        if not paragraph.startswith("\b"):
            yield _escaped(" ".join(paragraph.split()))
            continue
        title, *rest = paragraph.removeprefix("\b").strip("\n").splitlines()
        yield from (_escaped(title), ".EX", *map(_escaped, rest), ".EE")


def _parameters(command: Any, words: tuple[str, ...]) -> Iterator[str]:
    context = typer.Context(command, info_name=words[-1] if words else "engram")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from _tagged(*record)


def _tagged(tag: str, text: str) -> tuple[str, ...]:
    # What Rich reads as markup is escaped in help texts; two blanks stand before [default: …].
    return ".TP", f".B {_escaped(tag)}", _escaped(" ".join(text.replace("\\[", "[").split()))


def _exit_codes() -> Iterator[str]:
    rows = re.findall(r"^\| (\d+) \| (.*?) \| ", _ERRORS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for code, meaning in rows:
        yield from _tagged(code, meaning.replace("`", "").replace("\\|", "|"))


def _escaped(text: str) -> str:
    """`text` as roff sets it letter by letter: hyphens that can be copied, ASCII alone, no line that is a request."""
    letters = {"\\": "\\e", "-": "\\-", '"': "\\(dq", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}
    spelled = "".join(letters.get(c, c) if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return f"\\&{spelled}" if spelled.startswith((".", "\\(aq")) else spelled


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.buffer.write(page().encode("ascii"))
    elif sys.argv[1:]:
        raise SystemExit(f"{sys.argv[0]}: found {' '.join(sys.argv[1:])}, expected --print or nothing")
    else:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="ascii")
