"""What is wrong with a table's rows, by name: each fault that the figures show, where, and what to do about it.

Judges sums and equal hashes; reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import sqrt
from statistics import median
from typing import Any, NamedTuple

from engram_tables.address.spec import Family
from engram_tables.inspect.stats_duplicates import Copies, SharedRows
from engram_tables.inspect.stats_sample import BLOCK_ROWS, HeadRows
from engram_tables.inspect.stats_tally import N_FIRST, Marked, Tally, norm_quantiles
from engram_tables.storage.row_files import RowFiles
from engram_tables.storage.row_groups import RowGroup
from engram_tables.storage.table.reader import StoredTable

NEXT_TOKEN = "next-token"
_MORE_ALIKE = 0.1
_NORM_RATIO = 8.0
_MOST_COPIES_NAMED = 8
_APART_RATIO = 4
_HOLD_AGAINST = "hold it against its source with `engram diff SOURCE TABLE`, and build or copy it again"
_HOLD_ROWS = (
    f"{_HOLD_AGAINST}; without a source, `engram verify` says whether these are the bytes that were once written"
)


class Severity(StrEnum):
    """What a finding means."""

    FAULT = "fault"
    """No sound table holds this."""
    SUSPECT = "suspect"
    """A sound table may hold this, and a broken one does."""


class Place(NamedTuple):
    """Rows of one group that a finding is about: how many of the sample, and the first of them."""

    layer_id: int
    order: int | None
    head: int | None
    n_rows: int
    n_rows_read: int
    first_rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault, in all heads that have it.

    Attributes
    ----------
    check
        Its name.
    where, found, expected, remedy
        In words.
    places
        Head by head.
    """

    check: str
    severity: Severity
    where: str
    found: str
    expected: str
    remedy: str
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is judged: groups and what they say, position by position.

    Attributes
    ----------
    init
        What the rows were made as, by the manifest; None where they come from elsewhere.
    chance_equal
        How likely two rows of a group are equal by chance.
    family
        Of the addressing: only a hash that scatters makes neighbours strangers.
    """

    init: str | None
    family: Family
    heads: Sequence[HeadRows]
    tallies: Sequence[Tally]
    copies: Sequence[Copies]
    chance_equal: Sequence[float]
    shared: Sequence[SharedRows] = field(default=())

    def siblings(self, position: int) -> list[int]:
        """The groups of the same layer and order, this one left out."""
        group = self.heads[position].group
        return [
            k
            for k, head in enumerate(self.heads)
            if k != position and head.group[:2] == group[:2] and not head.is_padding
        ]


def init_kind(stored: RowFiles) -> str | None:
    """What the rows were made as: `normal`, `zeros`, `next-token`; None where the manifest does not say."""
    if not isinstance(stored, StoredTable) or stored.manifest.init is None:
        return None
    return str(stored.manifest.init["kind"])


def findings_of(subject: Subject) -> list[Finding]:
    """Everything that is wrong, faults first."""
    found = [*_unusable_values(subject), *_zeros(subject), *_repeated(subject), *_copied_heads(subject)]
    found += [*_uneven_norms(subject), *_alike_neighbours(subject)]
    return sorted(found, key=lambda finding: finding.severity is not Severity.FAULT)


def name_places(places: Sequence[Place]) -> str:
    """In words: the head, or how many of which layers."""
    first = RowGroup(*places[0][:3], 0, 0).label
    if len(places) == 1:
        return first
    return f"{len(places)} heads ({first}; … {RowGroup(*places[-1][:3], 0, 0).label})"


def _marked(subject: Subject, what: str, positions: Iterable[int]) -> list[Place]:
    """The groups among `positions` with rows that their tally marks as `what`."""
    found = []
    for position in positions:
        tally = subject.tallies[position]
        marked: Marked = getattr(tally, what)
        if marked.n_rows:
            found.append(_place(subject.heads[position].group, marked, tally))
    return found


def _place(group: RowGroup, marked: Marked, tally: Tally) -> Place:
    return Place(group.layer_id, group.order, group.head, marked.n_rows, tally.n_rows, tuple(marked.first))


def _share(places: Sequence[Place]) -> str:
    n_rows, n_read = sum(place.n_rows for place in places), sum(place.n_rows_read for place in places)
    return f"{n_rows:,} of the {n_read:,} rows read there ({n_rows / n_read:.2%}), the first row {_first(places)}"


def _first(places: Sequence[Place]) -> str:
    return f"{places[0].first_rows[0]:,} of layer {places[0].layer_id}"


def _unusable_values(subject: Subject) -> list[Finding]:
    found = []
    for check, what, words in (
        ("nan-codes", "nan", "NaN codes"),
        ("infinite-values", "infinite", "infinities"),
        ("bad-scales", "bad_scale", "scales that are NaN or infinite"),
    ):
        for is_padding in (False, True):
            these = [k for k, head in enumerate(subject.heads) if head.is_padding is is_padding]
            places = _marked(subject, what, these)
            if places:
                found.append(
                    Finding(
                        check=check,
                        severity=Severity.SUSPECT if is_padding else Severity.FAULT,
                        where=name_places(places) + (" (padding that no n-gram owns)" if is_padding else ""),
                        found=f"{words} in {_share(places)}",
                        expected="finite values: one NaN makes a whole step of the model NaN",
                        remedy=_HOLD_ROWS,
                        places=tuple(places),
                    )
                )
    return found


def _zeros(subject: Subject) -> list[Finding]:
    if subject.init == "zeros":
        return []
    whole = [k for k, tally in enumerate(subject.tallies) if tally.zero.n_rows == tally.n_rows]
    owned = [k for k, head in enumerate(subject.heads) if not head.is_padding]
    found = []
    empty = [k for k in whole if not subject.heads[k].is_padding]
    if empty:
        places = _marked(subject, "zero", empty)
        is_table = len(empty) == len(owned)
        found.append(
            Finding(
                check="zero-table" if is_table else "zero-head",
                severity=Severity.FAULT,
                where="every head" if is_table else name_places(places),
                found=f"nothing but zeros in all {sum(place.n_rows_read for place in places):,} rows read there",
                expected="rows with values" if is_table else "rows with values, as the other heads have",
                remedy=f"the rows were never written, or lost: {_HOLD_ROWS}",
                places=tuple(places),
            )
        )
    stretches = [k for k in owned if k not in empty and _has_stretch(subject.tallies[k])]
    places = _marked(subject, "zero_runs", stretches)
    if places:
        found.append(
            Finding(
                check="zero-stretch",
                severity=Severity.FAULT,
                where=name_places(places),
                found=f"{BLOCK_ROWS} or more zero rows one after the other: {_share(places)}",
                expected="zero rows, if any, scattered by the hash",
                remedy=f"a stretch of the files was never written or copied: {_HOLD_ROWS}",
                places=tuple(places),
            )
        )
    rest = [k for k in owned if k not in empty and k not in stretches]
    found += [*_some_zeros(subject, rest), *_constants(subject, owned)]
    return found


def _has_stretch(tally: Tally) -> bool:
    """Whether zero rows lie together more than their share lets expect."""
    share = (tally.zero.n_rows - tally.zero_runs.n_rows) / max(tally.n_rows - tally.zero_runs.n_rows, 1)
    return tally.zero_runs.n_rows > 0 and tally.n_rows * share**BLOCK_ROWS < 0.01


def _some_zeros(subject: Subject, rest: Sequence[int]) -> list[Finding]:
    found = []
    if subject.init == NEXT_TOKEN:
        rest = [k for k in rest if _is_unlike_siblings(subject, k)]
        expected = "as many zero rows, which no counted n-gram owns, as the other heads of the order have"
    else:
        expected = "none, or as many as training never touched"
    places = _marked(subject, "zero", rest)
    if places:
        found.append(
            Finding(
                check="zero-rows",
                severity=Severity.FAULT if subject.init == "normal" else Severity.SUSPECT,
                where=name_places(places),
                found=f"rows of zeros: {_share(places)}",
                expected="none: the manifest says that all were drawn" if subject.init == "normal" else expected,
                remedy=_HOLD_AGAINST,
                places=tuple(places),
            )
        )
    return found


def _constants(subject: Subject, owned: Sequence[int]) -> list[Finding]:
    places = _marked(subject, "constant", owned)
    if not places:
        return []
    return [
        Finding(
            check="constant-rows",
            severity=Severity.FAULT if subject.init == "normal" else Severity.SUSPECT,
            where=name_places(places),
            found=f"rows of one value throughout: {_share(places)}",
            expected="none: nothing that is trained or drawn looks so",
            remedy=_HOLD_AGAINST,
            places=tuple(places),
        )
    ]


def _is_unlike_siblings(subject: Subject, position: int) -> bool:
    def share(k: int) -> float:
        return subject.tallies[k].zero.n_rows / subject.tallies[k].n_rows

    siblings = [share(k) for k in subject.siblings(position)]
    if not siblings:
        return False
    usual, n_rows = median(siblings), subject.tallies[position].n_rows
    return abs(share(position) - usual) > 0.05 + 5 * sqrt(usual * (1 - usual) / n_rows)


def _repeated(subject: Subject) -> list[Finding]:
    """Rows that stand twice within a head. In a next-token table equal continuations make equal rows."""
    if subject.init == NEXT_TOKEN:
        return []
    found = []
    moved: list[int] = []
    near: list[int] = []
    for k, (head, tally) in enumerate(zip(subject.heads, subject.tallies, strict=True)):
        same = tally.equal_neighbours
        expected = tally.n_neighbours * subject.chance_equal[k]
        # Rows repeated in places of no order stand side by side now and then.
        is_by_chance = subject.copies[k].n_apart > _APART_RATIO * same.n_rows
        if head.is_padding or same.n_rows <= 10 * expected or is_by_chance:
            continue
        group = head.group
        ends = {group.start + 1, group.stop - 1} & {same.first[0], same.last}
        (moved if ends and same.n_rows <= 2 and tally.n_neighbours > 2 else near).append(k)
    for check, positions, what, wanted in (
        ("edge-repeated", moved, "the head's first or last row stands twice", "no row twice: a head whose rows were "
         "moved by one, without its neighbours', looks so"),
        ("repeated-neighbours", near, "rows equal to the row before them", "no row twice"),
    ):  # fmt: skip
        places = _marked(subject, "equal_neighbours", positions)
        if places:
            found.append(
                Finding(
                    check=check,
                    severity=Severity.FAULT,
                    where=name_places(places),
                    found=f"{what}: {_share(places)}",
                    expected=wanted,
                    remedy=_HOLD_AGAINST,
                    places=tuple(places),
                )
            )
    return [*found, *_repeated_apart(subject)]


def _repeated_apart(subject: Subject) -> list[Finding]:
    places = []
    for k, (head, tally, copies) in enumerate(zip(subject.heads, subject.tallies, subject.copies, strict=True)):
        expected = tally.n_rows * (tally.n_rows - 1) / 2 * subject.chance_equal[k]
        if head.is_padding or copies.n_apart <= 10 * expected:
            continue
        rows = sorted({row for pair in copies.first for row in pair if pair[1] - pair[0] > 1})[:N_FIRST]
        places.append(_place(head.group, Marked(copies.n_apart, rows), tally))
    if not places:
        return []
    return [
        Finding(
            check="repeated-rows",
            severity=Severity.FAULT,
            where=name_places(places),
            found=f"rows that stand elsewhere in the head too: {_share(places)}",
            expected="no row twice: what stands twice in a small sample stands in many places of the table",
            remedy=_HOLD_AGAINST,
            places=tuple(places),
        )
    ]


def _copied_heads(subject: Subject) -> list[Finding]:
    if subject.init == NEXT_TOKEN:
        usable = [shared for shared in subject.shared if shared.is_copy]
    else:
        usable = list(subject.shared)
    copied = [shared for shared in usable if shared.is_copy]
    found = [_copied(subject, shared) for shared in copied[:_MOST_COPIES_NAMED]]
    if len(copied) > _MOST_COPIES_NAMED:
        rest = copied[_MOST_COPIES_NAMED:]
        more = _copied(subject, rest[0])
        where = f"{len(rest)} more pairs of heads"
        found.append(Finding(**{**_fields(more), "where": where, "places": ()}))
    rows = [found for found in usable if not found.is_copy and found.n_pairs > 10 * _expected_pairs(subject, found)]
    if rows:
        first = rows[0]
        left, right = subject.heads[first.left].group, subject.heads[first.right].group
        n_pairs = sum(shared.n_pairs for shared in rows)
        found.append(
            Finding(
                check="rows-in-two-heads",
                severity=Severity.FAULT,
                where=f"{left.label} and {right.label}" if len(rows) == 1 else f"{len(rows)} pairs of heads",
                found=f"{n_pairs:,} pairs of equal rows in different heads, such as row {first.first[0][0]:,} of layer "
                f"{left.layer_id} and row {first.first[0][1]:,} of layer {right.layer_id}",
                expected="no row of one head in another",
                remedy=_HOLD_AGAINST,
            )
        )
    return found


def _expected_pairs(subject: Subject, shared: SharedRows) -> float:
    n_pairs = subject.tallies[shared.left].n_rows * subject.tallies[shared.right].n_rows
    return n_pairs * max(subject.chance_equal[shared.left], subject.chance_equal[shared.right])


def _copied(subject: Subject, shared: SharedRows) -> Finding:
    left, right = subject.heads[shared.left].group, subject.heads[shared.right].group
    counted = "the layers'" if shared.is_of_layers else "the heads'"
    by = f" moved by {shared.shift:+,} row{'s' if abs(shared.shift) != 1 else ''}, counted from {counted} first rows"
    return Finding(
        check="shifted-copy" if shared.shift else "copied-head",
        severity=Severity.FAULT,
        where=f"{right.label}",
        found=f"the rows of {left.label}{by if shared.shift else ''}: {shared.n_shifted:,} of the "
        f"{shared.n_comparable:,} pairs that both lie in the sample are equal, such as row {shared.first[0][0]:,} "
        f"there and row {shared.first[0][1]:,} here",
        expected="rows of its own",
        remedy=_HOLD_AGAINST,
        places=(
            Place(right.layer_id, right.order, right.head, shared.n_shifted, subject.tallies[shared.right].n_rows,
                  tuple(pair[1] for pair in shared.first)),
        ),
    )  # fmt: skip


def _fields(finding: Finding) -> Mapping[str, Any]:
    return {name: getattr(finding, name) for name in Finding.__slots__}


def _uneven_norms(subject: Subject) -> list[Finding]:
    medians = [(norm_quantiles(tally.norms, (0.5,)) or [0.0])[0] for tally in subject.tallies]
    places = []
    for k, (head, tally) in enumerate(zip(subject.heads, subject.tallies, strict=True)):
        usual = [medians[s] for s in subject.siblings(k) if medians[s] > 0]
        if head.is_padding or head.group.order is None or not usual or not medians[k]:
            continue
        ratio = medians[k] / median(usual)
        if not 1 / _NORM_RATIO < ratio < _NORM_RATIO:
            places.append((ratio, _place(head.group, Marked(tally.n_rows, [head.ranges[0][0]]), tally)))
    if not places:
        return []
    ratio, first = places[0]
    return [
        Finding(
            check="norms-out-of-line",
            severity=Severity.SUSPECT,
            where=name_places([place for _, place in places]),
            found=f"a median norm {ratio:.3g} times that of the other heads of the order"
            + ("" if len(places) == 1 else f" in {RowGroup(*first[:3], 0, 0).label}"),
            expected=f"heads of one order to be alike, within a factor of {_NORM_RATIO:g}",
            remedy=f"scales may be missing, or taken from elsewhere: {_HOLD_AGAINST}",
            places=tuple(place for _, place in places),
        )
    ]


def _alike_neighbours(subject: Subject) -> list[Finding]:
    """Only a hash that scatters makes neighbours strangers; equal neighbours are named already."""
    if subject.family is not Family.XOR_MULTIPLY:
        return []
    places = []
    for head, tally in zip(subject.heads, subject.tallies, strict=True):
        near, far = tally.neighbour_cosines, tally.random_cosines
        if head.is_padding or near.mean is None or far.mean is None or tally.equal_neighbours.n_rows:
            continue
        more = near.mean - far.mean
        if more > _MORE_ALIKE and more > 6 * sqrt(near.mean_error**2 + far.mean_error**2):
            places.append((more, _place(head.group, Marked(near.n_pairs, [head.ranges[0][0]]), tally)))
    if not places:
        return []
    return [
        Finding(
            check="alike-neighbours",
            severity=Severity.SUSPECT,
            where=name_places([place for _, place in places]),
            found=f"neighbouring rows alike: their cosine is {places[0][0]:.3f} above that of random pairs",
            expected="neighbours no more alike than any two rows, since the hash scatters n-grams",
            remedy=f"records may be cut at a wrong length or place: {_HOLD_AGAINST}",
            places=tuple(place for _, place in places),
        )
    ]
