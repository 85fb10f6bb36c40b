"""`engram golden`: golden vectors of a spec, and other programs' answers to them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import check_found, emit, say, show
from engram_cli.options import Eos, Force, JsonFlag, LayerIds, ModelPath, Preset, SpecFile, VocabFile
from engram_cli.spec_source import resolve_spec

if TYPE_CHECKING:
    from engram_tables.address.golden.cases import Golden
    from engram_tables.address.golden.check import GoldenReport


def emit_golden(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    preset: Preset = None,
    spec: SpecFile = None,
    model: ModelPath = None,
    eos: Eos = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    no_dead: Annotated[
        bool, typer.Option("--no-dead", help="Leave out all cases with dead tokens, for engines that have none.")
    ] = False,
    force: Force = False,
) -> None:
    """Write golden vectors: token runs that reach a spec's corners, and the rows of every token.

    A program in any language that answers every case addresses the table as the spec says; the file says how to
    answer. Rows come from the plain-Python reference, and nothing is written unless the kernels agree with it.

    \b
    Examples:
      engram golden emit --preset deepseek-v4.1-flash -o golden.json
      engram golden emit --spec mine.json -o mine.golden.json
      engram golden emit --preset qwen3.8-flash-next --no-dead -o qwen.json
    """
    from engram_tables.address.golden.cases import golden_bytes, make_golden
    from engram_tables.files import new_file, refuse_existing

    refuse_existing(output, force=force)
    resolved = resolve_spec(preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocab=vocab)
    golden = make_golden(resolved, with_dead=not no_dead)
    data = golden_bytes(golden)
    with new_file(output, force=force) as file:
        file.write(data)
    say(
        f"wrote {output}, {len(data):,} bytes: {len(golden.cases)} cases of {golden.n_tokens} tokens, "
        f"{golden.n_rows:,} rows, fingerprint {golden.spec.fingerprint}"
    )


def check_golden(
    golden: Annotated[Path, typer.Argument(help="File written by `engram golden emit`.")],
    rows: Annotated[
        Path,
        typer.Argument(
            help="The answer: a .npy of integers (tokens of all cases, layers, columns), or a .jsonl with an object "
            '{"case": NAME, "rows": [[[...]]]} for each case; - reads such lines from standard input.'
        ),
    ],
    local: Annotated[
        bool, typer.Option("--local", help="The program counts rows within each head: add the offsets first.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Compare another program's rows with golden vectors, and name the mistake where they differ.

    Exit code 6 means that rows differ; the output says where first, and which known mistake gives exactly these rows.

    \b
    Examples:
      engram golden check golden.json rows.npy
      engram golden check golden.json answers.jsonl --json | jq '.causes[].name'
      your-program golden.json | engram golden check golden.json -
    """
    from engram_tables.address.golden.check import check_rows, load_answer, load_lines

    golden_set, is_stream = _read_golden(golden), str(rows) == "-"
    source = "standard input" if is_stream else str(rows)
    answer = load_lines(sys.stdin.buffer, golden_set, where=source) if is_stream else load_answer(rows, golden_set)
    report = check_rows(golden_set, answer, local=local)
    if json:
        emit(_record(golden_set, report, local=local))
    elif report.is_equal:
        show(f"{report.n_rows:,} of {report.n_rows:,} rows agree, in {report.n_cases} cases")
    else:
        _show_report(report)
    if not report.is_equal:
        differing = f"{report.n_rows_differing:,} of {report.n_rows:,} rows differ"
        check_found(f"{source}: {differing} from those of {golden_set.spec.name}")


def _read_golden(path: Path) -> Golden:
    from engram_tables.address.golden.cases import read_golden
    from engram_tables.errors import InvalidInput

    try:
        return read_golden(path)
    except InvalidInput as error:
        if path.suffix in (".npy", ".jsonl"):
            raise InvalidInput(f"{error}; the first argument is the golden file, the second the answer") from None
        raise


def _record(golden: Golden, report: GoldenReport, *, local: bool) -> dict[str, Any]:
    from engram_tables.units import json_int

    first = None if report.first is None else dataclasses.asdict(report.first)
    if first is not None:
        first |= {key: json_int(first[key]) for key in ("expected", "found")}
    return {
        "schema": "engram.golden-check/1",
        "fingerprint": golden.spec.fingerprint,
        "rows_sha256": golden.rows_sha256,
        "local": local,
        "is_equal": report.is_equal,
        "n_rows": report.n_rows,
        "n_rows_differing": report.n_rows_differing,
        "n_cases": report.n_cases,
        "n_cases_differing": report.n_cases_differing,
        "first": first,
        "causes": [
            dataclasses.asdict(cause) | {"values": [json_int(value) for value in cause.values]}
            for cause in report.causes
        ],
        "hints": [dataclasses.asdict(hint) for hint in report.hints],
    }


def _show_report(report: GoldenReport) -> None:
    first = report.first
    show(f"differing  {report.n_rows_differing:,} of {report.n_rows:,} rows, in {report.n_cases_differing} of "
         f"{report.n_cases} cases")  # fmt: skip
    if first is not None:
        show(f"first      case {first.case}, position {first.position}, layer {first.layer_id}, order {first.order}, "
             f"head {first.head}: expected {first.expected}, found {first.found}")  # fmt: skip
    for cause, label in zip(report.causes, ("cause", *["or"] * len(report.causes)), strict=False):
        show(f"{label:<11}{cause.sentence} ({cause.name})")
    for hint in report.hints:
        show(f"hint       {hint.sentence} ({hint.name})")
    if not report.causes and not report.hints:
        show("cause      none of the known mistakes gives these rows")
