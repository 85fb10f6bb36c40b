"""`engram diff`: what two tables, or a table and a checkpoint, do not have in common."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.commands.verify import owner
from engram_cli.console import check_found, emit, progress, say, show, show_table
from engram_cli.options import JsonFlag, Opaque, Preset, RawRows, Revision, SpecFile, Threads, VocabFile
from engram_cli.raw_rows import parse_raw_rows
from engram_cli.spec_source import resolve_with_vocabulary

if TYPE_CHECKING:
    from engram_tables.storage.checking.compare import DiffReport
    from engram_tables.storage.checking.compare_reports import RowsReport
    from engram_tables.storage.sides import Opening

_SHOWN_SPANS = 12


def diff(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A table or a checkpoint: a path or a URL.", show_default=False)
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="What it is compared with.", show_default=False)],
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, metavar="N", help="Compare N rows, chosen at random.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Compare all rows: the default, but where A or B is behind a URL.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the rows of --sample.")] = 0,
    preset: Preset = None,
    spec: SpecFile = None,
    vocab: VocabFile = None,
    raw: RawRows = None,
    opaque: Opaque = False,
    revision: Revision = None,
    threads: Threads = None,
    json: JsonFlag = False,
) -> None:
    """Compare the headers of two tables or checkpoints, then the rows that both hold.

    Rows in one codec are compared by their bytes, in two codecs by their values; those that differ are decoded, to say
    how far apart they are. A checkpoint that does not state its whole addressing gets --preset or --spec, or else that
    of the other side. Layouts may differ; exit code 6 means that anything else does.

    \b
    Examples:
      engram diff my-table another-table
      engram diff my-table DeepSeek-V4.1-Flash --sample 10000
      engram diff my-table hf://deepseek-ai/DeepSeek-V4.1-Flash
      engram diff packed page --json | jq .rows.n_rows_different
    """
    from engram_tables.storage.checking.compare import diff_tables

    if sample is not None and full:
        raise typer.BadParameter("give --sample or --full, not both")
    opening = _opening(preset, spec, vocab, raw, opaque=opaque, revision=revision)
    with progress("comparing", "B") as hook:
        report = diff_tables(
            a,
            b,
            opening=opening,
            sample=sample,
            full=full,
            seed=seed,
            threads=threads,
            progress=hook,
        )
    if json:
        emit({"schema": "engram.diff/1", **dataclasses.asdict(report), "is_equal": report.is_equal})
    else:
        _show(report)
    if not report.is_equal:
        _stop(report)


def _opening(
    preset: str | None,
    spec: Path | None,
    vocab: Path | None,
    raw: str | None,
    *,
    opaque: bool,
    revision: str | None,
) -> Opening:
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.storage.sides import Opening

    vocabulary = None if vocab is None else load_vocabulary(vocab)
    chosen = None
    if preset is not None or spec is not None:
        chosen = resolve_with_vocabulary(
            preset=preset, spec=spec, model=None, eos=None, layers=None, vocabulary=vocabulary
        )
    return Opening(spec=chosen, vocabulary=vocabulary, raw=parse_raw_rows(raw), opaque=opaque, revision=revision)


def _stop(report: DiffReport) -> None:
    n_headers = sum(found.matters for found in report.headers)
    n_rows, n_compared = (0, 0) if report.rows is None else (report.rows.n_rows_different, report.rows.n_rows_compared)
    n_one_sided = sum(span.stop_row - span.start_row for span in report.one_sided)
    found = [f"{n_headers} header entries that differ"] if n_headers else []
    found += [f"{n_rows} of {n_compared} rows compared that differ"] if n_rows else []
    found += [f"{n_one_sided} rows on one side only"] if n_one_sided else []
    check_found(
        f"{report.a.where} and {report.b.where}: found {', '.join(found)}, expected equal tables; was one of them "
        "changed or re-encoded?"
    )


def _show(report: DiffReport) -> None:
    for name, side in (("A", report.a), ("B", report.b)):
        borrowed = "" if side.states_spec else "; addressing taken from the other side"
        for note in side.notes:
            say(f"note: {note}")
        kind = side.kind if side.kind == side.form else f"{side.kind}, {side.form}"
        show(f"{name}  {side.where} ({kind}, {side.codec}, {side.n_rows:,} rows{borrowed})")
    if report.headers:
        lines = [(found.what, _short(found.a), _short(found.b)) for found in report.headers]
        of_rows = any(found.matters for found in report.headers)
        show_table(
            "Headers that differ" if of_rows else "Stored otherwise",
            ("entry", "A", "B"),
            lines,
            left=3,
        )
    else:
        show("headers  equal")
    for span in report.one_sided[:_SHOWN_SPANS]:
        show(f"only {span.side.upper()}   layer {span.layer_id}, rows {span.start_row:,} to {span.stop_row - 1:,}")
    if len(report.one_sided) > _SHOWN_SPANS:
        show(f"       and {len(report.one_sided) - _SHOWN_SPANS:,} more ranges; --json has them all")
    if report.rows is None:
        show(f"rows     not compared: {report.not_compared}")
    else:
        _show_rows(report.rows)


def _show_rows(rows: RowsReport) -> None:
    n_equal = rows.n_rows_compared - rows.n_rows_different
    show(f"rows     {n_equal:,} of {rows.n_rows_compared:,} compared are equal; {rows.n_rows:,} are on both sides")
    lines = [
        (
            group.layer_id,
            owner(group.order),
            owner(group.head),
            f"{group.n_rows_different:,} of {group.n_rows_compared:,}",
            ", ".join(f"{row:,}" for row in group.first_rows[:4]),
            " ".join(f"{part.part} {part.n_rows_different:,}" for part in group.parts),
            _figure(group.max_abs),
            _figure(group.relative_rms),
        )
        for group in rows.groups
        if group.n_rows_different
    ]
    if lines:
        titles = ("layer", "order", "head", "rows", "first rows", "in part", "largest distance", "relative RMS")
        show_table("Rows that differ", titles, lines, left=0)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _short(text: str) -> str:
    return text if len(text) <= 64 else f"{text[:61]}..."
