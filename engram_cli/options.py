"""Options that several commands share, so that they are spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output, in one step.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with exact sizes and write nothing.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Worker threads; all usable CPUs by default. Never changes a result."),
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="A published model's addressing; `engram spec list` has the names."),
]
SpecFile = Annotated[
    Path | None,
    typer.Option("--spec", metavar="FILE", help="A spec written by `engram spec make` or `export`."),
]
ModelPath = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "--config",
        metavar="PATH",
        help="What you hold of a model: its config.json, its directory, one .safetensors, or a .gguf.",
    ),
]
Eos = Annotated[
    int | None,
    typer.Option("--eos", metavar="ID", help="The end of sequence that the hash uses, where a config lists several."),
]
LayerIds = Annotated[
    str | None,
    typer.Option("--layers", metavar="IDS", help="Layer ids, for a preset whose ids are not certain: 1,15."),
]
VocabFile = Annotated[
    Path | None, typer.Option("--vocab", metavar="FILE", help="A vocabulary written by `engram build-vocab`.")
]
Glob = Annotated[
    str, typer.Option("--glob", metavar="PATTERN", help="What a file's name inside a directory must match: '*.py'.")
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Names inside a directory to leave out; may be repeated."),
]
