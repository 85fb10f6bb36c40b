"""Specs and tables that are small enough to damage in every place."""

from __future__ import annotations

from pathlib import Path

from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.storage.writer import TablePlan, build_table, plan_table


def small_spec(
    n_rows: int = 101, *, layer_ids: tuple[int, ...] = (1, 14), row_width: int | None = 32, vocab: str | None = None
) -> AddressSpec:
    """Two heads of one order in each layer."""
    half = n_rows // 2
    layers = tuple(
        LayerAddressing(
            layer_id=layer_id,
            multipliers=(3, 2**52 + 1),
            moduli=((half, n_rows - half),),
            offsets=(0, half),
            n_rows=n_rows,
        )
        for layer_id in layer_ids
    )
    return AddressSpec(
        name="small",
        provenance="made for tests",
        canonical_size=1000,
        history=HistoryRule(fill_id=2),
        orders=(2,),
        layers=layers,
        row_width=row_width,
        vocab_sha256=vocab,
    )


def small_plan(spec: AddressSpec | None = None, **options: object) -> TablePlan:
    """A plan with blocks of one page, so that a few rows make several blocks."""
    chosen = {"codec": "bf16", "layout": "packed", "init": "normal", "seed": 5, "block_bytes": 4096, **options}
    return plan_table(spec or small_spec(), **chosen)  # type: ignore[arg-type]


def small_table(path: Path, spec: AddressSpec | None = None, **options: object) -> Path:
    """A table at `path`."""
    build_table(small_plan(spec, **options), path, threads=2)
    return path


def names_in(directory: Path) -> list[str]:
    """Names of what `directory` holds, hidden files included, in order."""
    return sorted(entry.name for entry in directory.iterdir())
