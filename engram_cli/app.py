"""The `engram` command: one Typer application, every command guarded so that errors become exit codes."""

from __future__ import annotations

from typing import Annotated

import typer

from engram_cli.commands import (
    bench_offload,
    build_table,
    build_vocab,
    count,
    counts,
    diff,
    doctor,
    evaluate,
    export,
    golden,
    hash,
    inspect,
    inspect_collisions,
    inspect_coverage,
    inspect_ngram,
    inspect_row,
    inspect_stats,
    inspect_vocab,
    plan,
    report,
    simulate,
    spec,
    tokenize,
    trace,
    verify,
    version,
)
from engram_cli.console import guarded, set_verbosity

app = typer.Typer(
    name="engram",
    help="Build, address, verify, inspect and measure hashed n-gram tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
spec_app = typer.Typer(name="spec", help="The constants that address a table.", no_args_is_help=True)
counts_app = typer.Typer(name="counts", help="What counts hold, and their sums.", no_args_is_help=True)
golden_app = typer.Typer(name="golden", help="Golden vectors for other programs.", no_args_is_help=True)
inspect_app = typer.Typer(name="inspect", help="Look inside tables and vocabularies.", no_args_is_help=True)
plan_app = typer.Typer(name="plan", invoke_without_command=True, callback=guarded(plan.plan))

app.command("build-vocab")(guarded(build_vocab.build_vocab))
app.command("hash")(guarded(hash.hash_ids))
app.command("tokenize")(guarded(tokenize.tokenize))
app.command("count")(guarded(count.count))
app.command("trace")(guarded(trace.trace))
app.command("build-table")(guarded(build_table.build_table))
app.command("verify")(guarded(verify.verify))
app.command("diff")(guarded(diff.diff))
app.command("export")(guarded(export.export))
app.command("simulate")(guarded(simulate.simulate))
app.command("evaluate")(guarded(evaluate.evaluate))
app.command("doctor")(guarded(doctor.doctor))
app.command("bench-offload")(guarded(bench_offload.bench_offload))
app.command("report")(guarded(report.report))
plan_app.command("allocate")(guarded(plan.allocate))
spec_app.command("list")(guarded(spec.list_presets))
spec_app.command("show")(guarded(spec.show_spec))
spec_app.command("make")(guarded(spec.make_spec))
spec_app.command("export")(guarded(spec.export_spec))
counts_app.command("top")(guarded(counts.top))
counts_app.command("get")(guarded(counts.get))
counts_app.command("stats")(guarded(counts.stats))
counts_app.command("merge")(guarded(counts.merge))
golden_app.command("emit")(guarded(golden.emit_golden))
golden_app.command("check")(guarded(golden.check_golden))
inspect_app.command("ngram")(guarded(inspect_ngram.inspect_ngram))
inspect_app.command("header")(guarded(inspect.inspect_header))
inspect_app.command("coverage")(guarded(inspect_coverage.inspect_coverage))
inspect_app.command("collisions")(guarded(inspect_collisions.inspect_collisions))
inspect_app.command("row")(guarded(inspect_row.inspect_row))
inspect_app.command("table")(guarded(inspect.inspect_table))
inspect_app.command("stats")(guarded(inspect_stats.inspect_stats))
inspect_app.command("vocab")(guarded(inspect_vocab.inspect_vocab))
app.add_typer(spec_app)
app.add_typer(counts_app)
app.add_typer(golden_app)
app.add_typer(inspect_app)
app.add_typer(plan_app)


@app.callback(invoke_without_command=True)
def configure(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No narration and no progress on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More narration, and tracebacks of errors.")] = False,
    wants_version: Annotated[
        bool, typer.Option("--version", help="Print the version, and those of packages and file formats.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: as one JSON record.")] = False,
) -> None:
    """Set what holds for every command."""
    set_verbosity(quiet=quiet, verbose=verbose)
    if wants_version:
        version.show_versions(as_json=as_json)
        raise typer.Exit
    if as_json:
        raise typer.BadParameter("stands behind the command, or beside --version", param_hint="--json")
    if context.invoked_subcommand is None:
        context.fail("Missing command.")
