"""`engram doctor`: what of this machine will fail or slow a table down, before it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from engram_cli.console import check_found, emit, show, show_table, show_wrapped
from engram_cli.options import Eos, JsonFlag, LayerIds, ModelPath, Preset, SpecFile, VocabFile
from engram_cli.spec_source import table_sizes
from engram_tables.errors import InvalidInput
from engram_tables.measure.doctor.findings import Placement, Severity
from engram_tables.units import format_bytes, parse_bytes

_TITLES = {
    Severity.WILL_FAIL: "Will fail",
    Severity.WILL_BE_SLOW: "Will be slow",
    Severity.COULD_NOT_LOOK: "Could not look",
    Severity.FINE: "Fine",
    Severity.NOT_APPLICABLE: "Not applicable",
}
_INDENT = 21
_EXACT = re.compile(r" \([0-9,]+ B\)")


def doctor(
    table: Annotated[
        str | None,
        typer.Argument(metavar="TABLE", help="A table, or a checkpoint read where it lies.", show_default=False),
    ] = None,
    placement: Annotated[
        Placement | None,
        typer.Option(
            "--placement",
            help="Where rows are put: GPU memory, pinned host memory, /dev/shm, host memory, files, or memory without "
            "CPUs. By default where the table lies: shm or nvme.",
        ),
    ] = None,
    preset: Preset = None,
    spec: SpecFile = None,
    model: ModelPath = None,
    eos: Eos = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    codec: Annotated[
        str | None,
        typer.Option("--codec", metavar="NAME", help="Of the rows; a preset's release has one of its own."),
    ] = None,
    row_bytes: Annotated[
        int | None, typer.Option("--row-bytes", min=1, metavar="N", help="Of a row, in place of a codec.")
    ] = None,
    table_bytes: Annotated[
        str | None, typer.Option("--table-bytes", metavar="SIZE", help="Of a table that is not here, as 203GB.")
    ] = None,
    build_into: Annotated[
        Path | None,
        typer.Option(
            "--build-into",
            metavar="DIR",
            help="Where a table of this size would be built. Without TABLE, the current directory for nvme.",
        ),
    ] = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Memory for rows will be locked, as a tier with is_locked is.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Look for what will fail or be slow on this machine, for a table and a placement.

    Each check says what was found, what it has to be, and what would change it, as a command to judge and run:
    nothing is set or written here. Limits are those of this process; a service or a container has its own, so run it
    there. Reads of the table's files by every engine, io_uring, libaio and the GPU are really tried. Exit code 6
    means that something will fail.

    \b
    Examples:
      engram doctor my-table
      engram doctor my-table --placement shm
      engram doctor --preset deepseek-v4.1-flash --build-into /data
      engram doctor --spec spec.json --codec bf16 --placement dram
      engram doctor --table-bytes 203GB --placement pinned
      engram doctor my-table --json | jq '.checks[] | select(.severity == "will-fail")'
    """
    from engram_tables.measure.doctor.doctor import diagnose

    named = [given is not None for given in (table, preset, spec, model, table_bytes)]
    if sum(named) > 1:
        raise typer.BadParameter(
            "give one of TABLE, --preset, --spec, --model and --table-bytes: each says how large the table is"
        )
    has_spec = any(named[1:4])
    if not has_spec and any(given is not None for given in (eos, layers, vocab, codec, row_bytes)):
        raise typer.BadParameter(
            "--eos, --layers, --vocab, --codec and --row-bytes go only with --preset, --spec or --model"
        )
    if table is not None and "://" in table:
        raise InvalidInput(
            f"{table}: found a URL, expected a table on this machine; give --model or --preset for what is elsewhere"
        )
    n_bytes = None if table_bytes is None else _table_bytes(table_bytes)
    sizes = None
    if has_spec:
        sizes = table_sizes(
            preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocab=vocab, codec=codec,
            row_bytes=row_bytes,
        )  # fmt: skip
    if (has_spec or n_bytes is not None) and build_into is None and placement in (None, Placement.NVME):
        build_into = Path.cwd()
    record = diagnose(
        None if table is None else Path(table),
        placement=placement,
        table_bytes=n_bytes,
        n_rows=None if sizes is None else sizes.n_rows,
        row_bytes=None if sizes is None else sizes.row_bytes,
        build_into=build_into,
        is_locked=locked,
    )
    if json:
        emit(record)
    else:
        _show(record)
    failing = [check["check"] for check in record["checks"] if check["severity"] == Severity.WILL_FAIL]
    if failing:
        check_found(f"placement {record['placement']}: {', '.join(failing)} will fail; the remedies are told above")


def _table_bytes(text: str) -> int:
    n_bytes = parse_bytes(text)
    if n_bytes < 1:
        raise InvalidInput("--table-bytes: found 0, expected 1 or more; leave it out")
    return n_bytes


def _show(record: dict[str, Any]) -> None:
    what = record["table"] or "no table yet"
    n_bytes = record["file_bytes"]
    show(f"table      {what}{'' if n_bytes is None else f', {format_bytes(n_bytes)}'}")
    show(f"placement  {record['placement']}")
    if record["host_bytes"] is not None:
        show(f"memory     {format_bytes(record['host_bytes'])} of the host's, still to be taken")
    for severity, title in _TITLES.items():
        checks = [check for check in record["checks"] if check["severity"] == severity]
        if not checks:
            continue
        show()
        show(f"{title}:")
        for check in checks:
            _show_check(check)
    others = [(o["placement"], o["verdict"], ", ".join(o["because"]) or "-") for o in record["other_placements"]]
    show()
    show_table("Other placements of the same rows", ("placement", "verdict", "because of"), others, left=3)


def _show_check(check: dict[str, Any]) -> None:
    why = check["severity"] == Severity.NOT_APPLICABLE
    limit = "" if check["limit"] is None else f"; {check['limit']}" if why else f"; expected: {check['limit']}"
    # Exact bytes are the record's; here they would double most lines.
    show_wrapped(_EXACT.sub("", f"{check['found']}{limit}"), head=f"  {check['check']}", indent=_INDENT)
    if check["remedy"] is not None:
        show_wrapped(check["remedy"], head="", indent=_INDENT)
    if check["command"] is not None:
        # In one piece, to be copied.
        show(f"{'':{_INDENT}}$ {check['command']}")
