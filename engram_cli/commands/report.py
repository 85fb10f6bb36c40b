"""`engram report`: records as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engram_cli import console
from engram_cli.options import Force


def report(
    records: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECORD...",
            help="Files that --record wrote, or --json (one record a line); a directory of counts, or its counts.json.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page: .html.")],
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="The page's heading.")] = "Engram report",
    force: Force = False,
) -> None:
    """Draw records as one page that works offline.

    Of counts: distinct n-grams by order. Of simulate: hit curves. Of plan: the limits of every placement. Of
    bench-offload: rates, latency distributions, shares of ceilings. Of evaluate: accuracy by heads and by order. Of
    inspect stats and coverage: norms, and rows touched. Several records of a kind stand side by side, on the same
    axes. Every chart has a table of its figures, and every record its command and environment.

    The page is one file without a script: it fetches nothing, and follows the reader's light or dark setting.

    \b
    Examples:
      engram report code.json prose.json -o caches.html
      engram report counts simulate.json plan.json bench.json evaluate.json -o report.html --title 'My table'
    """
    from engram_tables.measure.report.page import write_report

    drawn = write_report(output, records, title=title, force=force)
    for entry in drawn:
        console.detail(f"{entry.label}: {entry.file} ({entry.schema})")
    n_bytes = output.stat().st_size
    console.say(f"wrote {output}, {n_bytes:,} bytes, {len(drawn)} record{'s' if len(drawn) > 1 else ''}")
