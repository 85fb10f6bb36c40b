"""What share of a text's lookups a cache of so many bytes answers: a curve of `engram simulate`, read back.

It simulates nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from engram_tables.errors import InvalidInput
from engram_tables.measure.planning.figures import Figure, Origin
from engram_tables.units import format_bytes

SIMULATE_SCHEMA = "engram.simulate/1"
_POLICIES = ("tiered", "lru-16", "s3-fifo", "lru", "static")
"""In the order in which one is taken when nobody names one: the library's own cache first."""

_ANY_SIZE = 1


class Answered(NamedTuple):
    """What a cache does for one token.

    Attributes
    ----------
    hit_ratio
        Of its lookups, mean.
    misses_p99
        Rows of a token that are missing, of a hundred tokens all but the worst one; None if unknown.
    """

    hit_ratio: float
    misses_p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HitCurve:
    """Hit ratios by cache bytes.

    Attributes
    ----------
    points
        (cache bytes, what it answers), ascending in bytes.
    unique_rows
        (tokens of a chunk, share of its rows that are distinct), ascending; empty if unknown.
    bundle_reads
        (bytes of bundles, reads a token), ascending; empty if unknown.
    bundled
        (cache bytes, the same behind such a cache), ascending; empty if unknown.
    """

    points: tuple[tuple[int, Answered], ...]
    unique_rows: tuple[tuple[int, float], ...] = ()
    bundle_reads: tuple[tuple[int, float], ...] = ()
    bundled: tuple[tuple[int, tuple[tuple[int, float], ...]], ...] = ()
    origin: Origin
    where: str

    @property
    def has_sizes(self) -> bool:
        """Whether it says anything of cache sizes: a share by hand holds for any."""
        return self.points[-1][0] > _ANY_SIZE

    def at(self, cache_bytes: float) -> Answered:
        """What a cache of `cache_bytes` bytes answers.

        Notes
        -----
        A straight line between points, and from nothing to the first one; the last point behind it: a larger cache
        answers as much at least.
        """
        if not self.has_sizes:
            return self.points[-1][1]
        if cache_bytes <= 0:
            return Answered(0.0, None)
        # An empty cache misses whatever the first point's tokens miss, and more: its percentile is not known.
        low_bytes, low = 0, Answered(0.0, None)
        for high_bytes, high in self.points:
            if cache_bytes <= high_bytes:
                share = (cache_bytes - low_bytes) / (high_bytes - low_bytes)
                ratio = low.hit_ratio + share * (high.hit_ratio - low.hit_ratio)
                # The percentile of the smaller cache: it cannot be better than that of the next point.
                return high if cache_bytes == high_bytes else Answered(ratio, low.misses_p99)
            low_bytes, low = high_bytes, high
        return low

    def bytes_for(self, hit_ratio: float) -> float | None:
        """The least cache that answers such a share; None where no point does."""
        low_bytes, low = 0, 0.0
        for high_bytes, high in self.points:
            if high.hit_ratio >= hit_ratio:
                if high.hit_ratio == low:
                    return float(low_bytes)
                return low_bytes + (hit_ratio - low) / (high.hit_ratio - low) * (high_bytes - low_bytes)
            low_bytes, low = high_bytes, high.hit_ratio
        return None

    def unique_share(self, n_tokens: int) -> float | None:
        """Share of a chunk's rows that are distinct; None if unknown."""
        return _between(self.unique_rows, n_tokens)

    def reads_with_bundles(self, bundle_bytes: float, cache_bytes: float = 0) -> float | None:
        """Reads a token with so many bytes of bundles, behind a cache of so many; None if unknown.

        Notes
        -----
        A straight line between caches, from none to the first one, and the last one's figure behind it.
        """
        without = _between(self.bundle_reads, bundle_bytes)
        if not cache_bytes:
            return without
        behind = [(n_bytes, _between(points, bundle_bytes)) for n_bytes, points in self.bundled]
        if without is None or not behind:
            return None
        return _between(
            [(0, without), *((n_bytes, reads) for n_bytes, reads in behind if reads is not None)], cache_bytes
        )

    def to_json(self) -> dict[str, Any]:
        """For a record."""
        return {
            "points": [
                {"cache_bytes": n_bytes, "hit_ratio": found.hit_ratio, "misses_a_token_p99": found.misses_p99}
                for n_bytes, found in self.points
            ],
            "origin": str(self.origin),
            "where": self.where,
        }


def constant_curve(hit_ratio: Figure) -> HitCurve:
    """One hit ratio, whatever the cache holds."""
    if not 0 <= hit_ratio.value <= 1:
        raise InvalidInput(f"{hit_ratio.where}: found {hit_ratio.value}, expected 0 to 1; give a share, not per cent")
    return HitCurve(
        points=((_ANY_SIZE, Answered(hit_ratio.value, None)),), origin=hit_ratio.origin, where=hit_ratio.where
    )


def curve_of_record(
    name: str, record: Mapping[str, Any], *, n_streams: int, policy: str | None = None,
    fingerprint: str | None = None, row_bytes: int | None = None, rows_per_token: int | None = None,
) -> HitCurve:  # fmt: skip
    """The curve of rows in the steady state that suits the streams best: as many, else the next larger number of them.

    Parameters
    ----------
    policy
        Of the cache; None takes the first that is there of tiered, lru-16, s3-fifo, lru, static. `belady` is a bound
        that no cache reaches, and taken where it is named alone.
    fingerprint
        Of the table in question; a curve of another table is refused.
    row_bytes, rows_per_token
        Of the table in question, likewise: all that is known of a preset without its vocabulary.

    Raises
    ------
    InvalidInput
        No such record, or no such curve in it.
    """
    if record.get("schema") != SIMULATE_SCHEMA:
        raise InvalidInput(
            f"{name}: found schema {record.get('schema')!r}, expected {SIMULATE_SCHEMA}; give --hit-ratio"
        )
    found = record.get("fingerprint")
    if fingerprint is not None and found is not None and found != fingerprint:
        raise InvalidInput(
            f"{name}: found curves of the table {record.get('spec') or found}, expected those of this table "
            f"({fingerprint}); simulate with the same spec"
        )
    for key, expected in (("row_bytes", row_bytes), ("rows_per_token", rows_per_token)):
        # A cache of so many bytes holds another number of rows, or a token asks for another one.
        if expected is not None and record.get(key, expected) != expected:
            raise InvalidInput(
                f"{name}: found curves of a table with {key} {record[key]}, expected {expected}; simulate this table"
            )
    try:
        return _read(name, record, n_streams, policy)
    except InvalidInput:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InvalidInput(f"{name}: found a record without {error}, expected a whole one; simulate anew") from error


def _read(name: str, record: Mapping[str, Any], n_streams: int, policy: str | None) -> HitCurve:
    # Of a prompt's chunks misses are fewer than of the tokens that streams decode.
    curves = [
        curve
        for curve in record["curves"]
        if (curve["unit"], curve["state"], curve["is_prefill"]) == ("row", "steady", False)
    ]
    policies = [each for each in ((policy,) if policy else _POLICIES) if any(c["policy"] == each for c in curves)]
    if not policies:
        held = sorted({curve["policy"] for curve in curves})
        raise InvalidInput(
            f"{name}: found curves of rows for {held}, expected {policy or 'one of a cache'}; simulate it"
        )
    curves = [curve for curve in curves if curve["policy"] == policies[0]]
    streams = sorted({int(curve["n_streams"]) for curve in curves})
    chosen = next((each for each in streams if each >= n_streams), streams[-1])
    curve = min((each for each in curves if each["n_streams"] == chosen), key=lambda each: int(each["tokens_a_step"]))
    answered = {
        int(p["cache_bytes"]): Answered(
            float(p["hit_ratio"]), None if p.get("misses_a_token_p99") is None else float(p["misses_a_token_p99"])
        )
        for p in curve["points"]
        if p["hit_ratio"] is not None
    }
    if not answered:
        raise InvalidInput(f"{name}: found no steady point of {curve['policy']}, expected some; simulate a longer text")
    _check_answers(name, answered)
    bundles = (record.get("bundles") or {}).get("points", ())
    bundled = {
        int(p["cache_bytes"]): tuple(
            sorted((int(b["budget_bytes"]), _reads(name, b["reads_a_token_most"])) for b in p["bundled"])
        )
        for p in curve["points"]
        if p.get("bundled")
    }
    return HitCurve(
        points=_rising(answered),
        unique_rows=tuple(
            sorted(
                (int(each["chunk_tokens"]), float(each["unique_ratio"]))
                for each in record.get("unique_rows") or ()
                if each["unique_ratio"] is not None
            )
        ),
        bundle_reads=tuple(sorted((int(p["budget_bytes"]), float(p["reads_a_token"])) for p in bundles)),
        bundled=tuple(sorted(bundled.items())),
        origin=Origin.MEASURED,
        where=f"{name}: {curve['policy']}, rows, {chosen} streams, steady, up to {format_bytes(max(answered))}"
        f"{_doubt(record)}",
    )


def _reads(name: str, value: Any) -> float:
    if not 0 <= float(value) < float("inf"):
        raise InvalidInput(f"{name}: found {value} reads a token behind a cache, expected a count; simulate anew")
    return float(value)


def _doubt(record: Mapping[str, Any]) -> str:
    """What `simulate` said against the text, if anything."""
    verdict = (record.get("representative") or {}).get("verdict")
    return "" if verdict in (None, "representative") else f"; of a text that is {str(verdict).replace('-', ' ')}"


def _check_answers(name: str, answered: Mapping[int, Answered]) -> None:
    for cache_bytes, found in answered.items():
        misses = found.misses_p99
        if cache_bytes < 1 or not 0 <= found.hit_ratio <= 1 or not (misses is None or 0 <= misses < float("inf")):
            raise InvalidInput(
                f"{name}: found {found.hit_ratio} of hits and {misses} misses at {cache_bytes} bytes, expected a share "
                "and a count; simulate anew"
            )


def _rising(answered: Mapping[int, Answered]) -> tuple[tuple[int, Answered], ...]:
    """The points by size, none that answers less than a smaller one: whoever has more memory may use less of it."""
    found: list[tuple[int, Answered]] = []
    for cache_bytes, here in sorted(answered.items()):
        before = found[-1][1] if found else here
        found.append((cache_bytes, here if here.hit_ratio >= before.hit_ratio else before))
    return tuple(found)


def _between(points: Sequence[tuple[int, float]], at: float) -> float | None:
    """On a straight line between points, the nearest one beyond them."""
    if not points:
        return None
    for (low, of_low), (high, of_high) in pairwise(points):
        if low <= at <= high:
            return of_low + (at - low) / (high - low) * (of_high - of_low)
    return points[0][1] if at < points[0][0] else points[-1][1]
