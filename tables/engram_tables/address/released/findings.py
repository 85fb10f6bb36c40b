"""What a released file says of a spec's constants, one array or shape at a time, and whether a spec agrees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

from engram_tables.address.spec import AddressSpec, LayerAddressing

_SHOWN = 4


class Fact(StrEnum):
    """Which constants of a layer a finding is about."""

    MULTIPLIERS = "multipliers"
    MODULI = "moduli"
    OFFSETS = "offsets"
    ROWS = "rows"
    ROWS_AT_LEAST = "rows or more"
    """Of a table that is not whole: some of its shards may lie elsewhere."""
    ROW_WIDTH = "values a row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact as a file states it.

    Attributes
    ----------
    where
        File, and key or tensor.
    layer_id
        None where the name does not say; then the spec's only layer is meant.
    values
        As many as the fact has: multipliers, moduli and offsets in the order of the spec, one number otherwise.
    column
        The one column that the values belong to; None for all of them.
    """

    where: str
    fact: Fact
    values: tuple[int, ...]
    layer_id: int | None = None
    column: int | None = None


def contradiction(spec: AddressSpec, findings: Iterable[Finding]) -> str | None:
    """The first finding that `spec` contradicts, told with both values; None if it agrees with all."""
    for finding in findings:
        if (difference := _difference(spec, finding)) is not None:
            return difference
    return None


def _difference(spec: AddressSpec, finding: Finding) -> str | None:
    layer = _layer(spec, finding.layer_id)
    if layer is None:
        found = "a layer without a number" if finding.layer_id is None else f"layer {finding.layer_id}"
        return f"{finding.where}: found {found}, the spec {spec.name} has layers {', '.join(map(str, spec.layer_ids))}"
    expected = _expected(spec, layer, finding)
    if expected is None or finding.values == expected:
        return None
    if finding.fact is Fact.ROWS_AT_LEAST and finding.values <= expected:
        return None
    found, other = _shown(finding.values, expected)
    return f"{finding.where}: found {finding.fact} {found}, the spec {spec.name} says {other}"


def _layer(spec: AddressSpec, layer_id: int | None) -> LayerAddressing | None:
    if layer_id is None:
        return spec.layers[0] if len(spec.layers) == 1 else None
    return spec.layer(layer_id) if layer_id in spec.layer_ids else None


def _expected(spec: AddressSpec, layer: LayerAddressing, finding: Finding) -> tuple[int, ...] | None:
    """What `spec` says of the same; None where it says nothing."""
    match finding.fact:
        case Fact.MULTIPLIERS:
            return layer.multipliers
        case Fact.MODULI:
            moduli = tuple(chain.from_iterable(layer.moduli))
            return moduli if finding.column is None else moduli[finding.column : finding.column + 1]
        case Fact.OFFSETS:
            return layer.offsets
        case Fact.ROWS | Fact.ROWS_AT_LEAST:
            return (layer.n_rows,)
        case Fact.ROW_WIDTH:
            return None if spec.row_width is None else (spec.row_width,)


def _shown(found: tuple[int, ...], expected: tuple[int, ...]) -> tuple[str, str]:
    """Both, whole where they are short, else from the first difference on."""
    if max(len(found), len(expected)) <= _SHOWN:
        return ", ".join(map(str, found)) or "none", ", ".join(map(str, expected)) or "none"
    if len(found) != len(expected):
        return f"of {len(found)} values", f"{len(expected)} values"
    place = next(idx for idx, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
    return f"{found[place]} as number {place} (from 0) of {len(found)}", str(expected[place])
