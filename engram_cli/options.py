"""Options that several commands share, so that they are spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _preset_names() -> list[str]:
    """For shells that complete the name."""
    from engram_tables.address.presets import PRESETS

    return list(PRESETS)


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line, instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output, in one step.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with exact sizes and write nothing.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Worker threads; all usable CPUs by default. Never changes a result."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="A published model's addressing; `engram spec list` has the names.",
        autocompletion=_preset_names,
    ),
]
SpecFile = Annotated[
    Path | None,
    typer.Option("--spec", metavar="FILE", help="A spec written by `engram spec make` or `export`."),
]
ModelPath = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--config",
        metavar="PATH|URL",
        help="What you hold of a model: its config.json, its directory, one .safetensors, a .gguf, or a URL of one.",
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
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="NAME", help="Of a repository behind a URL: a branch, a tag or a commit."),
]
Opaque = Annotated[
    bool, typer.Option("--opaque", help="Take rows that no codec reads as bytes, and do not look into them.")
]
RawRows = Annotated[
    str | None,
    typer.Option(
        "--raw",
        metavar="KEY=VALUE,...",
        help="Rows without a container: codec=NAME or row-bytes=N, and where they are not the usual ones row-stride=N, "
        "first-byte=N, layer=ID, first-row=N, rows=N.",
    ),
]
Glob = Annotated[
    str, typer.Option("--glob", metavar="PATTERN", help="What a file's name inside a directory must match: '*.py'.")
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Names inside a directory to leave out; may be repeated."),
]
CorpusPaths = Annotated[
    list[str],
    typer.Argument(
        metavar="CORPUS",
        help="Files, directories, patterns ('data/**/*.jsonl'), URLs, and - for standard input.",
        show_default=False,
    ),
]
Memory = Annotated[
    str,
    typer.Option("--memory", metavar="SIZE", help="Memory to work in, as 512MiB or 8GiB; never changes the result."),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Remove what an earlier run left in DIR.work, and begin anew.")
]
