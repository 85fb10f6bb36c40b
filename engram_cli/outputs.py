"""Files that a command writes besides what it prints: refused before the work, written once it is shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from engram_cli import console
from engram_tables.errors import InvalidInput


def refuse_outputs(outputs: Mapping[str, Path | None], *, force: bool) -> None:
    """Refuse files that could not be written, before minutes of work are spent on them.

    Parameters
    ----------
    outputs
        By the option that names each; None where it was not given. That of `--plot` ends like a picture's file.

    Raises
    ------
    BadParameter
        Two options name one file.
    InvalidInput
        A file that is there already, without `force`; a directory that is not there or closed to writing; a picture
        that cannot be drawn.
    """
    from engram_tables.files import refuse_existing

    named = {option: path for option, path in outputs.items() if path is not None}
    if len({path.resolve() for path in named.values()}) < len(named):
        raise typer.BadParameter(f"{' and '.join(named)} name one file for two of them; give each its own")
    for option, path in named.items():
        refuse_existing(path, force=force)
        if option == "--plot":
            from engram_tables.measure.offload.plot import check_plot

            check_plot(path, force=force)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise InvalidInput(
                f"{path}: found the directory {path.parent} closed to writing, expected to make a file there; name "
                "another place, or change its permissions"
            )


def hand_out(
    record: dict[str, Any],
    show: Callable[[dict[str, Any]], None],
    *,
    as_json: bool,
    record_file: Path | None,
    force: bool,
) -> None:
    """Show a record, and write it; in this order, so that a disk that is full takes nothing of it away."""
    from engram_tables.files import new_file

    if as_json:
        console.emit(record)
    else:
        show(record)
    if record_file is None:
        return
    try:
        with new_file(record_file, force=force) as file:
            file.write(json.dumps(record, indent=1, allow_nan=False).encode() + b"\n")
    except OSError as error:
        error.add_note(f"while writing the record {record_file}")
        raise
    console.say(f"wrote {record_file}")
