"""Bundles of a table or checkpoint, from counts: what the writer of `storage.bundles` needs, read by an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.errors import SpecMismatch
from engram_tables.fetch.table import Table
from engram_tables.storage.bundles.choosing import DEFAULT_MEMORY_BYTES, LEAST_COUNT, choose
from engram_tables.storage.bundles.writing import (
    BundlePlan,
    RowsToBundle,
    WrittenBundles,
    plan_bundles,
    rows_of,
    write_bundles,
)
from engram_tables.storage.table.shards import NO_DIGEST
from engram_tables.units import Stage, unwatched


def plan_table_bundles(
    rows: RowsToBundle,
    counts: Counts,
    *,
    budget_bytes: int,
    least_count: int = LEAST_COUNT,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int | None = None,
    stage: Stage = unwatched,
) -> BundlePlan:
    """Choose n-grams for a table by counts; no row is read. Raises as `choose` and `plan_bundles`."""
    chosen = choose(
        counts,
        rows.spec,
        row_bytes=rows.row_bytes,
        budget_bytes=budget_bytes,
        least_count=least_count,
        memory_bytes=memory_bytes,
        stage=stage,
    )
    digest = str(counts.manifest["manifest_sha256"])
    return plan_bundles(chosen, rows, counts_sha256=digest, threads=threads, stage=stage)


def write_table_bundles(
    plan: BundlePlan,
    table: Table,
    path: Path,
    *,
    force: bool = False,
    threads: int | None = None,
    stage: Stage = unwatched,
) -> WrittenBundles:
    """Write a plan's bundles, whose rows are read through `table`; raises as `write_bundles`.

    Raises
    ------
    SpecMismatch
        The plan was made for another table.
    """
    found = rows_of(table.stored)
    if plan.manifest.rows_of.sha256 == NO_DIGEST:
        plan = plan.of_rows(found)
    if plan.manifest.rows_of != found or plan.manifest.fingerprint != table.spec.fingerprint:
        raise SpecMismatch(
            f"{table.path}: found the {found.form} {found.sha256}, expected {plan.manifest.rows_of.sha256}, which the "
            "bundles were planned for; plan them again"
        )

    def read_rows(layer_id: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        table.fetch_rows(layer_id, rows, out)

    return write_bundles(plan, path, read_rows, force=force, threads=threads, stage=stage)
