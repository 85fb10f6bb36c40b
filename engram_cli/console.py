"""Everything that reaches a terminal: data on stdout, narration on stderr, errors as exit codes."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import shutil
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn

import typer

from engram_tables import errors
from engram_tables.units import ProgressHook


class Exit(IntEnum):
    """Exit codes of every command; 1 is a bug of ours and 2 wrong usage."""

    DONE = 0
    INPUT_UNUSABLE = 3
    TABLE_UNUSABLE = 4
    MACHINE_CANNOT = 5
    CHECK_FOUND = 6
    INTERRUPTED = 130


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG)
_RATE_SECONDS = 10.0
_MOST_COLUMNS, _FEWEST_COLUMNS = 100, 30
HARD_BLANK = "\N{NO-BREAK SPACE}"
"""Shown as a blank that no line is broken at."""
_quiet = False
_verbose = False


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Set once by the application's callback."""
    global _quiet, _verbose
    _quiet, _verbose = quiet, verbose


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the house's errors turned into a message on stderr and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except errors.TableError as error:
            _stop(error, Exit.TABLE_UNUSABLE)
        except (errors.CapacityError, errors.BackendUnavailable) as error:
            _stop(error, Exit.MACHINE_CANNOT)
        except errors.EngramError as error:
            _stop(error, Exit.INPUT_UNUSABLE)
        except OSError as error:
            _stop(error, Exit.MACHINE_CANNOT if error.errno in _NO_SPACE else Exit.INPUT_UNUSABLE)
        except MemoryError as error:
            _stop(error, Exit.MACHINE_CANNOT)
        except KeyboardInterrupt as error:
            notes = getattr(error, "__notes__", ())
            print("interrupted" if notes else "interrupted: temporary files are removed", file=sys.stderr)
            for note in notes:
                print(f"  {note}", file=sys.stderr)
            raise typer.Exit(Exit.INTERRUPTED) from None
        finally:
            _to_stdout(None)

    run.__doc__ = _unwrapped(inspect.getdoc(command) or "")
    return run


def _unwrapped(text: str) -> str:
    """A docstring whose paragraphs are one line each, as help pages need them; those that begin with \\b stay."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(p if p.startswith("\b") else " ".join(p.split()) for p in paragraphs)


def _stop(error: BaseException, code: Exit) -> NoReturn:
    if _verbose:
        import traceback

        traceback.print_exception(error)
    print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr)
    raise typer.Exit(code) from None


def check_found(message: str) -> NoReturn:
    """End with exit code 6: a check ran to its end and found something."""
    print(f"check failed: {message}", file=sys.stderr)
    raise typer.Exit(Exit.CHECK_FOUND)


def emit(record: dict[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    _to_stdout(json.dumps(record, allow_nan=False))
    _to_stdout(None)


def say(text: str = "") -> None:
    """A line of narration on stderr, unless `-q`."""
    if not _quiet:
        print(text, file=sys.stderr)


def detail(text: str) -> None:
    """A line of narration that only `-v` shows."""
    if _verbose:
        print(text, file=sys.stderr)


def show(text: str = "") -> None:
    """A line of the human form of a command's result, on stdout; control characters as escapes."""
    _to_stdout(_printable(text))


def page_columns() -> int:
    """Columns that lines of words are broken at: the terminal's, 100 at most, and 100 without one."""
    return min(_MOST_COLUMNS, shutil.get_terminal_size((_MOST_COLUMNS, 24)).columns)


def show_wrapped(text: str, *, head: str | None = None, indent: int = 4) -> None:
    """Words on stdout, broken at spaces where they are longer than the page.

    Parameters
    ----------
    head
        A label, padded to `indent`, that the first line begins with; without one, that line begins with the text.
    indent
        Blanks before the lines that follow.

    Notes
    -----
    A word that is longer than a line, such as a path, is never cut. What HARD_BLANK joins is one word.
    """
    room = max(page_columns(), indent + _FEWEST_COLUMNS)
    first = "" if head is None else f"{_printable(head):{indent}}"
    words = HARD_BLANK.join(map(_printable, text.replace(" %", f"{HARD_BLANK}%").split(HARD_BLANK)))
    lines = textwrap.wrap(
        words, room, initial_indent=first, subsequent_indent=" " * indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    for line in lines or [first.rstrip()]:
        _to_stdout(line.replace(HARD_BLANK, " "))


def _printable(text: str) -> str:
    """`text` without what would move a terminal's cursor or change its colours."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def _to_stdout(line: str | None) -> None:
    """Print a line, or flush for None; once a reader has gone (`| head`), nothing more can be said there."""
    try:
        if line is None:
            sys.stdout.flush()
        else:
            print(line)
    except BrokenPipeError:
        # Not an error, and no reason to leave the work or a check's exit code behind.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def spell_vocabulary(record: dict[str, Any]) -> str:
    """The vocabulary that a table's addressing belongs to, and whether the table holds it."""
    digest = record["vocab_sha256"]
    if digest is None:
        return "none stated, none inside"
    return f"{digest} ({'inside' if record['has_vocabulary'] else 'not inside; build-table --vocab puts it there'})"


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> None:
    """A table on stdout: the first `left` columns flush left, the others (figures) flush right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(str(cell))) for cell in row))
    # Cells are never folded, not even on a narrow terminal, whose own wrapping keeps a line's text together.
    console = Console()
    console.width = max(console.width, _width(columns, rows))
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        _to_stdout(line.rstrip())


def _width(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    from rich.cells import cell_len

    widths = [max(cell_len(str(row[column])) for row in (columns, *rows)) for column in range(len(columns))]
    return sum(widths) + 3 * len(columns) + 2


@contextmanager
def progress(task: str, unit: str) -> Iterator[ProgressHook]:
    """A progress line with rate and time left on stderr, if stderr is a terminal and not `-q`."""
    if _quiet or not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(task, total=None, amount="")
        # The rate is that of the last seconds: what an earlier run left is there at once, and says nothing of it.
        seen = deque([(time.monotonic(), 0)])

        def update(done: int, total: int) -> None:
            now = time.monotonic()
            seen.append((now, done))
            while now - seen[0][0] > _RATE_SECONDS and len(seen) > 2:
                seen.popleft()
            per_s = (done - seen[0][1]) / max(now - seen[0][0], 1e-9)
            amount = f"{_short(done, unit)} of {_short(total, unit)}, {_short(per_s, unit)}/s"
            bars.update(bar, completed=done, total=total, amount=amount)

        yield update


@contextmanager
def narrated(task: str, unit: str) -> Iterator[ProgressHook]:
    """As `progress`, and without a terminal a line at the beginning and at each tenth: for what lasts minutes."""
    if _quiet or sys.stderr.isatty():
        with progress(task, unit) as hook:
            yield hook
        return
    begin, told = time.monotonic(), -1
    say(f"{task}: this takes minutes")

    def update(done: int, total: int) -> None:
        nonlocal told
        tenth = 10 * done // max(total, 1)
        if tenth > told:
            told = tenth
            say(f"{task}: {done:,} of {total:,} {unit}, {time.monotonic() - begin:.0f} s")

    yield update


def _ignore(done: int, total: int) -> None:
    """The progress hook of a run that nobody watches."""


def _short(figure: float, unit: str) -> str:
    """A figure of three digits or so: 1.2 MB, but 1.2 M tokens."""
    gap = "" if unit == "B" else " "
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if figure >= scale:
            return f"{figure / scale:.1f} {prefix}{gap}{unit}"
    return f"{figure:.0f} {unit}"
