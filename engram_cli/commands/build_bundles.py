"""The bundles of `engram build-table`: beside the table that it builds, or alone for one that is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_cli.console import emit, progress, say, show, show_table
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    from engram_tables.storage.bundles.writing import BundlePlan, RowsToBundle
    from engram_tables.storage.table.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleOptions:
    """What is asked for."""

    counts: Path
    budget: str
    memory: str
    dry_run: bool
    force: bool
    threads: int | None
    json: bool


def bundle_alone(source: str, output: Path, options: BundleOptions) -> None:
    """Bundles as the directory `output`, for the table or checkpoint at `source`, which stays as it is."""
    from engram_tables.fetch.bundling import write_table_bundles
    from engram_tables.fetch.table import open_table
    from engram_tables.storage.bundles.writing import RowsToBundle, refuse_taken

    # A plan replaces nothing, so it may be asked for while there are bundles.
    refuse_taken(output, force=options.force or options.dry_run)
    with open_table(source, bundles=False) as table:
        plan = _plan(RowsToBundle.of(table.stored), options)
        _tell(plan, str(table.path), output, options)
        if not options.dry_run:
            write_table_bundles(plan, table, output, force=options.force, threads=options.threads, stage=progress)
            _say_written(plan, output)


def plan_beside(manifest: Manifest, output: Path, options: BundleOptions) -> BundlePlan:
    """The bundles of a table that is yet to be built as `output`, so that what cannot work is refused before."""
    from engram_tables.storage.bundles.writing import RowsToBundle

    return _plan(RowsToBundle.planned(manifest, str(output)), options)


def bundle_beside(plan: BundlePlan, output: Path, options: BundleOptions) -> None:
    """Print the plan, and write it into the table that is there by now."""
    from engram_tables.fetch.bundling import write_table_bundles
    from engram_tables.fetch.table import open_table
    from engram_tables.storage.bundles.bundle_manifest import DIRECTORY_NAME
    from engram_tables.storage.bundles.writing import rows_of

    place = output / DIRECTORY_NAME
    if options.dry_run:
        _tell(plan, str(output), place, options)
        return
    try:
        with open_table(output, bundles=False) as table:
            plan = plan.of_rows(rows_of(table.stored))
            _tell(plan, str(output), place, options)
            write_table_bundles(plan, table, place, threads=options.threads, stage=progress)
    except BaseException as error:
        error.add_note(f"the table {output} is whole; add its bundles by --bundles-only --from {output} -o {place}")
        raise
    _say_written(plan, place)


def _plan(rows: RowsToBundle, options: BundleOptions) -> BundlePlan:
    from engram_tables.corpus.counts.counts_store import open_counts
    from engram_tables.fetch.bundling import plan_table_bundles
    from engram_tables.units import parse_bytes

    with open_counts(options.counts) as counts:
        return plan_table_bundles(
            rows,
            counts,
            budget_bytes=parse_bytes(options.budget),
            memory_bytes=parse_bytes(options.memory),
            threads=options.threads,
            stage=progress,
        )


def _say_written(plan: BundlePlan, place: Path) -> None:
    from engram_tables.units import format_bytes

    say(f"wrote {place}, {format_bytes(plan.manifest.total_bytes)}")


def _tell(plan: BundlePlan, table: str, place: Path, options: BundleOptions) -> None:
    record = _record(plan, table, place, options)
    if options.json:
        emit(record)
    else:
        _print(record)


def _record(plan: BundlePlan, table: str, place: Path, options: BundleOptions) -> dict[str, Any]:
    from engram_tables.units import json_int

    manifest, chosen = plan.manifest, plan.chosen
    orders = list(zip(manifest.orders, manifest.heads, manifest.n_ngrams, strict=True))
    without = len(manifest.layer_ids) * sum(chosen.lookups[order] * n_heads for order, n_heads, _ in orders)
    heads = dict(zip(manifest.orders, manifest.heads, strict=True))
    saved = sum(n_found * (heads[order] - 1) for (_, order), n_found in plan.n_found.items())
    return {
        "schema": "engram.build-bundles/1",
        "path": str(place),
        "dry_run": options.dry_run,
        "table": table,
        "fingerprint": manifest.fingerprint,
        "counts": str(options.counts),
        "counts_sha256": manifest.counts_sha256,
        "budget_bytes": json_int(manifest.budget_bytes),
        "least_count": manifest.least_count,
        "row_bytes": manifest.row_bytes,
        "n_ngrams": len(chosen.orders),
        "n_bundles": plan.n_bundles,
        "orders": [
            {
                "order": order,
                "heads": n_heads,
                "n_ngrams": n_ngrams,
                "bundle_bytes": n_heads * manifest.row_bytes,
                "n_lookups": chosen.lookups[order],
                "n_found": chosen.found(order),
            }
            for order, n_heads, n_ngrams in orders
        ],
        "layers": [
            {"layer_id": layer_id, "n_bundles": list(n_bundles)}
            for layer_id, n_bundles in zip(manifest.layer_ids, manifest.n_bundles, strict=True)
        ],
        "counted_reads": without,
        "counted_reads_with_bundles": without - saved,
        "record_bytes": manifest.record_bytes,
        "total_bytes": manifest.total_bytes,
        "files": [{"path": file.path, "file_bytes": file.file_bytes} for file in manifest.files],
    }


def _print(record: dict[str, Any]) -> None:
    from engram_tables.units import format_bytes

    planned = " (planned, nothing is written)" if record["dry_run"] else ""
    show(f"bundles       {record['path']}{planned}")
    show(f"of table      {record['table']}, fingerprint {record['fingerprint']}")
    show(f"counts        {record['counts']}, n-grams seen {record['least_count']} times or more")
    show(f"budget        {format_bytes(int(record['budget_bytes']))} of records and index")
    layers = len(record["layers"])
    show(f"bundles of    {record['n_ngrams']:,} n-grams in {layers} layers: {record['n_bundles']:,}")
    show(f"in all        {format_bytes(record['total_bytes'])} in {len(record['files'])} files")
    rows = [
        (
            order["order"],
            f"{order['n_ngrams']:,}",
            f"{order['bundle_bytes']:,}",
            f"{order['n_found'] / order['n_lookups']:.1%}" if order["n_lookups"] else "-",
        )
        for order in record["orders"]
    ]
    show_table("", ("order", "n-grams", "bytes each", "of the counted lookups"), rows, left=0)
    if record["counted_reads"]:
        share = record["counted_reads_with_bundles"] / record["counted_reads"]
        show(f"reads of the counted text: {share:.1%} of those without bundles; other text saves less")


def refuse_several(plans: dict[str, Any]) -> None:
    """Bundles belong to one table."""
    if len(plans) > 1:
        raise InvalidInput(
            f"--bundles: found {len(plans)} tables, expected one; build the ranks first, then bundle each with "
            "--bundles-only"
        )
