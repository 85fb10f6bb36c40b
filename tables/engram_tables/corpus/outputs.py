"""Where a result may be written: not over something else, and not over what is read. Knows no content."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from engram_tables.corpus.reading.sources import STANDARD_INPUT, CorpusFile, is_url
from engram_tables.errors import InvalidInput
from engram_tables.files import refuse_existing


def refuse_foreign_output(
    directory: Path, *, force: bool, what: str, suggestion: str, is_ours: Callable[[Path], bool], names: str
) -> None:
    """Raise `InvalidInput` if a result could not be written as `directory`.

    `force` removes what is there, so that must be a directory which is empty or ours.

    Parameters
    ----------
    what, suggestion
        What the directory is, and a name for one, for the messages.
    is_ours
        Whether a directory that is not empty holds such a result, of any version.
    names
        Pattern of the names that such a directory has; one with any other in it is not replaced.
    """
    here = Path.cwd()
    if directory.name in ("", "..") or Path(os.path.realpath(directory)) in (here, *here.parents):
        raise InvalidInput(
            f"{directory}: found the current directory or one that holds it, expected a name for a directory of "
            f"its own; choose one, for instance {suggestion}"
        )
    refuse_existing(directory, force=force)
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise InvalidInput(
            f"{directory}: found no directory of its own but a link or a file, expected a {what} to replace; "
            "remove it yourself or choose another name"
        )
    if directory.is_dir() and any(directory.iterdir()) and not is_ours(directory):
        raise InvalidInput(
            f"{directory}: found something that is no {what}, expected one to replace; remove it yourself or choose "
            "another name"
        )
    if directory.is_dir():
        foreign = sorted(entry.name for entry in directory.iterdir() if not re.fullmatch(names, entry.name))
        if foreign:
            raise InvalidInput(
                f"{directory}: found {foreign[0]!r} in it, which is no part of a {what} and would be removed with it; "
                "move it away or choose another name"
            )


def refuse_overlap(output: Path, inputs: Sequence[str | Path]) -> None:
    """Raise `InvalidInput` if `output` is one of the paths `inputs`, holds one or lies inside one.

    Otherwise a replaced output would take its own input with it, and the next run would read this one's result.
    Links are followed to what they name; links inside the directories are not looked at.
    """
    place = Path(os.path.realpath(output))
    for given in inputs:
        path = str(given).removeprefix("file://")
        if path == STANDARD_INPUT or is_url(path):
            continue
        found = Path(os.path.realpath(path))
        if place == found or place in found.parents or found in place.parents:
            relation = "is" if place == found else "holds" if place in found.parents else "lies inside"
            raise InvalidInput(
                f"{output}: found that this output {relation} {given}, which is read, expected a place apart; "
                "write beside it under another name"
            )


def refuse_found_overlap(output: Path, files: Iterable[CorpusFile]) -> None:
    """As `refuse_overlap`, for the files that patterns and directories came to, links followed."""
    refuse_overlap(output, [file.url or str(file.path) for file in files if not file.is_standard_input])
