"""What two tables, or a table and a checkpoint, do not have in common: headers first, then rows.

Rows are compared by their ids, where both sides hold them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from engram_tables.address.spec import AddressSpec
from engram_tables.byte_files import is_url
from engram_tables.errors import InvalidInput
from engram_tables.storage.checking.compare_reports import Measure, RowsReport, common_rows, rows_without
from engram_tables.storage.checking.compare_rows import compare_rows
from engram_tables.storage.extents import Ranges, n_rows_of
from engram_tables.storage.sides import AS_IT_IS, Opening, Side, open_side, side_of
from engram_tables.storage.sources.source import Source
from engram_tables.storage.table.table_source import find_table
from engram_tables.units import ProgressHook, json_int

TABLE, CHECKPOINT = "table", "checkpoint"
_FORMAT = ("layout", "parts")
"""What may differ between two sides with the same rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideReport:
    """What one side's headers say.

    Attributes
    ----------
    kind
        `table` or `checkpoint`.
    form
        Which reader knew a checkpoint; `table` for a table.
    states_spec
        False where a checkpoint leaves its addressing open and was read by that of the other side.
    layout
        A table's; None for a checkpoint.
    n_rows
        Rows that are here, of all layers.
    notes
        What a user should know of a checkpoint.
    """

    where: str
    kind: str
    form: str
    name: str
    states_spec: bool
    fingerprint: str
    vocab_sha256: str | None
    codec: str
    codec_scale: str | None
    layout: str | None
    row_width: int | None
    row_bytes: int
    n_rows: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderDifference:
    """Something that both sides state, and differently.

    Attributes
    ----------
    what
        `fingerprint`, `codec`, `codec_scale`, `layout`, `parts`, `row_width`, `row_bytes`, `layers`, `vocab_sha256`,
        or a constant of the addressing, as `layer 1: moduli`.
    matters
        Whether it makes rows or their addresses differ: layout and parts do not.
    """

    what: str
    a: str
    b: str
    matters: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OneSided:
    """Rows of a layer that only one side holds; half-open. `side` is `a` or `b`."""

    side: str
    layer_id: int
    start_row: int
    stop_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport:
    """What differs.

    Attributes
    ----------
    one_sided
        Rows that only one side holds, which were not compared.
    rows
        What was compared; None where no row was.
    not_compared
        Why no row was compared, or None.
    """

    a: SideReport
    b: SideReport
    headers: tuple[HeaderDifference, ...]
    one_sided: tuple[OneSided, ...]
    rows: RowsReport | None
    not_compared: str | None

    @property
    def is_equal(self) -> bool:
        """Whether nothing was found: no row that differs, no header that makes rows differ, nothing one-sided."""
        rows_differ = self.rows is not None and self.rows.n_rows_different > 0
        return not rows_differ and not self.one_sided and not any(found.matters for found in self.headers)


def diff_tables(
    a: str | Path | Source,
    b: str | Path | Source,
    *,
    opening: Opening = AS_IT_IS,
    sample: int | None = None,
    full: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: ProgressHook | None = None,
) -> DiffReport:
    """Compare headers, then rows by layer, order and head.

    Parameters
    ----------
    a, b
        A table or a checkpoint: a path, a URL, or a source that is open and stays so.
    opening
        How checkpoints are opened. One that leaves its addressing open is read by that of the other side, and one
        beside a table of opaque rows as opaque.
    sample, full
        How many rows to compare, chosen by `seed`; or all. By default all, but none where a side is behind a URL.
    progress
        Called with bytes, of both sides together.

    Raises
    ------
    TableError, InvalidInput
        A side does not open; `sample` is less than 1, or comes with `full`.

    Notes
    -----
    Rows in the same codec are equal if their bytes are; in different codecs, if their values are. Those that differ
    are decoded, to say how far apart they are.
    """
    if sample is not None and (sample < 1 or full):
        raise InvalidInput(f"sample: found {sample}, expected 1 row or more, and not all of them as well; choose one")
    with ExitStack() as stack:
        sides = _open_both((a, b), stack, opening)
        reports = [_side_report(side) for side in sides]
        headers = _header_differences(*sides)
        common, one_sided = _divide(*sides)
        reason = _why_not(sides, common, wants_rows=full or sample is not None)
        rows = None
        if reason is None:
            left, right = (side.source for side in sides)
            is_same = left.codec == right.codec
            rows = compare_rows(
                left,
                right,
                common,
                measure=Measure.BYTES if is_same else Measure.VALUES,
                distances=left.codec.can_decode and right.codec.can_decode,
                sample=sample,
                seed=seed,
                threads=threads,
                progress=progress,
            )
    return DiffReport(a=reports[0], b=reports[1], headers=headers, one_sided=one_sided, rows=rows, not_compared=reason)


def _open_both(
    both: tuple[str | Path | Source, str | Path | Source], stack: ExitStack, opening: Opening
) -> tuple[Side, Side]:
    """Tables first: a checkpoint may need to know what they hold."""
    sides: dict[int, Side] = {}
    openings = [opening if is_url(str(where)) else replace(opening, revision=None) for where in both]
    for k, where in enumerate(both):
        if isinstance(where, Source):
            sides[k] = side_of(where)
        elif find_table(where, revision=openings[k].revision) is not None:
            sides[k] = stack.enter_context(open_side(where, openings[k]))
    for k, where in enumerate(both):
        if k not in sides and not isinstance(where, Source):
            sides[k] = stack.enter_context(_open_checkpoint(where, openings[k], sides.get(1 - k)))
    return sides[0], sides[1]


def _open_checkpoint(where: str | Path, opening: Opening, other: Side | None) -> Side:
    if other is not None and not other.source.codec.can_decode:
        opening = replace(opening, opaque=True)
    try:
        return open_side(where, opening)
    except InvalidInput:
        if opening.spec is not None or other is None:
            raise
    side = open_side(where, replace(opening, spec=other.spec))
    return replace(side, states_spec=False)


def _side_report(side: Side) -> SideReport:
    source, manifest = side.source, side.manifest
    return SideReport(
        where=side.where,
        kind=CHECKPOINT if manifest is None else TABLE,
        form=source.form,
        name=source.spec.name,
        states_spec=side.states_spec,
        fingerprint=source.spec.fingerprint,
        vocab_sha256=source.spec.vocab_sha256,
        codec=source.codec.name,
        codec_scale=_scale(source),
        layout=None if manifest is None else manifest.layout,
        row_width=source.spec.row_width,
        row_bytes=source.row_bytes,
        n_rows=n_rows_of(_owned(side)),
        notes=source.notes,
    )


def _scale(source: Source) -> str | None:
    return None if source.codec.scale_bits is None else f"{source.codec.scale_bits:08x}"


def _owned(side: Side) -> dict[int, Ranges]:
    return {layer_id: side.owned(layer_id) for layer_id in side.spec.layer_ids}


def _header_differences(a: Side, b: Side) -> tuple[HeaderDifference, ...]:
    both = [(_stated(a), _stated(b))]
    if a.spec.fingerprint != b.spec.fingerprint:
        both.append((_constants(a.spec), _constants(b.spec)))
    return tuple(
        HeaderDifference(what=what, a=ours, b=theirs[what], matters=what not in _FORMAT)
        for mine, theirs in both
        for what, ours in mine.items()
        if what in theirs and ours != theirs[what]
    )


def _stated(side: Side) -> dict[str, str]:
    """What its headers say, but for what they leave open."""
    source, manifest = side.source, side.manifest
    stated = {
        "fingerprint": source.spec.fingerprint,
        "layers": ", ".join(f"{layer.layer_id}: {layer.n_rows}" for layer in source.spec.layers),
        "codec": source.codec.name,
        "codec_scale": _scale(source),
        "row_width": None if source.spec.row_width is None else str(source.spec.row_width),
        "row_bytes": str(source.row_bytes),
        "layout": None if manifest is None else manifest.layout,
        "parts": ", ".join(part.name for part in source.parts),
        "vocab_sha256": source.spec.vocab_sha256,
    }
    return {what: value for what, value in stated.items() if value is not None}


def _constants(spec: AddressSpec) -> dict[str, str]:
    """The constants behind a fingerprint, as texts."""
    constants = {
        "canonical_size": str(spec.canonical_size),
        "orders": ", ".join(map(str, spec.orders)),
        "heads": ", ".join(map(str, spec.heads)),
        "mix": str(spec.mix),
        "history": str(spec.history),
    }
    for layer in spec.layers:
        where = f"layer {layer.layer_id}"
        constants[f"{where}: multipliers"] = _listed(layer.multipliers)
        constants[f"{where}: moduli"] = "; ".join(map(_listed, layer.moduli))
        constants[f"{where}: offsets"] = _listed(layer.offsets)
    return constants


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(json_int(number)) for number in numbers)


def _divide(a: Side, b: Side) -> tuple[Mapping[int, Ranges], tuple[OneSided, ...]]:
    """The rows that both hold, and those that one does."""
    owned_a, owned_b = _owned(a), _owned(b)
    common = {
        layer_id: common_rows(ranges, owned_b[layer_id]) for layer_id, ranges in owned_a.items() if layer_id in owned_b
    }
    one_sided = (
        OneSided(side=side, layer_id=layer_id, start_row=start, stop_row=stop)
        for side, mine, others in (("a", owned_a, owned_b), ("b", owned_b, owned_a))
        for layer_id, ranges in mine.items()
        for start, stop in rows_without(ranges, others.get(layer_id, ()))
    )
    return common, tuple(one_sided)


def _why_not(sides: Sequence[Side], common: Mapping[int, Ranges], *, wants_rows: bool) -> str | None:
    """Why no row can be, or is to be, compared."""
    left, right = (side.source for side in sides)
    if not n_rows_of(common):
        return "no row is held by both sides"
    if left.codec != right.codec or left.row_bytes != right.row_bytes:
        if left.spec.row_width != right.spec.row_width:
            return f"rows of {left.spec.row_width} and of {right.spec.row_width} values"
        for source in (left, right):
            if not source.codec.can_decode:
                return f"codec {source.codec.name} of {source.where} has no values to compare with another codec's"
    if not wants_rows and any(side.is_remote for side in sides):
        return "a side is remote: only headers were read; ask for a sample or for all rows (--sample, --full)"
    return None
