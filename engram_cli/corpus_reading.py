"""The options that say how a corpus is read, the same for every command that takes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from engram_cli.options import Exclude, Glob
from engram_tables.corpus.reading.documents import BinDtype, DecodeErrors, Format, ReadOptions


@dataclass(frozen=True, kw_only=True)
class CorpusReading:
    """What the options were given; a field is an option of its name."""

    glob: Glob = "*"
    exclude: Exclude = None
    format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Format of every file. By default its name decides, else text; .zst and .gz come off first.",
        ),
    ] = None
    field: Annotated[
        str,
        typer.Option(
            "--field",
            metavar="KEY",
            help="JSONL, Parquet: what holds a document's text, or its list of token ids; message.content "
            "looks inside.",
        ),
    ] = "text"
    request_field: Annotated[
        str | None,
        typer.Option(
            "--request-field",
            metavar="KEY",
            help="JSONL, Parquet: a request's id; its lines in a file are one document.",
        ),
    ] = None
    dead_field: Annotated[
        str | None,
        typer.Option(
            "--dead-field",
            metavar="KEY",
            help="JSONL, Parquet: spans [\\[start, stop], ...] of token ids that take no part, such as image tokens.",
        ),
    ] = None
    document_end: Annotated[
        int | None,
        typer.Option(
            "--document-end", metavar="ID", help=".npy, .bin: the token that ends a document, and is part of none."
        ),
    ] = None
    dtype: Annotated[
        BinDtype | None, typer.Option("--dtype", help=".bin: the little-endian integers that such files consist of.")
    ] = None
    decode_errors: Annotated[
        DecodeErrors,
        typer.Option("--decode-errors", help="Stop at bytes that are not UTF-8, or make each of them U+FFFD."),
    ] = DecodeErrors.STRICT
    skip_bad: Annotated[
        int,
        typer.Option(
            "--skip-bad",
            metavar="N",
            min=0,
            help="Malformed lines of the whole corpus to leave out, and count, at most.",
        ),
    ] = 0

    def files(self) -> dict[str, Any]:
        """Which files of a directory are read, as keyword arguments."""
        return {"glob": self.glob, "exclude": self.exclude or ()}

    def options(self) -> ReadOptions:
        """How a file is read."""
        return ReadOptions(
            format=self.format, field=self.field, request_field=self.request_field, dead_field=self.dead_field,
            document_end=self.document_end, bin_dtype=self.dtype, decode_errors=self.decode_errors,
            skip_bad=self.skip_bad,
        )  # fmt: skip


def reads_corpus(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options where its signature has the parameter `reading`."""
    names = [field.name for field in fields(CorpusReading)]

    @wraps(command)
    def with_options(**given: Any) -> None:
        reading = CorpusReading(**{name: given.pop(name) for name in names})
        command(**given, reading=reading)

    parameters = [each for known in _parameters_of(command) for each in _expanded(known)]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_options


def _expanded(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    return _parameters_of(CorpusReading) if parameter.annotation is CorpusReading else [parameter]


def _parameters_of(known: Callable[..., Any]) -> list[inspect.Parameter]:
    """With their annotations evaluated; by name only, as Typer calls."""
    hints = get_type_hints(known, include_extras=True)
    return [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[each.name])
        for each in inspect.signature(known).parameters.values()
    ]
