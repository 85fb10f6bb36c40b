"""What a look at a table's rows found, as a record; and how small a fault the sample would still have shown."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from engram_tables.inspect.stats import StatsReport
from engram_tables.inspect.stats_counts import CountedHead
from engram_tables.inspect.stats_duplicates import Copies
from engram_tables.inspect.stats_sample import HeadRows
from engram_tables.inspect.stats_tally import Tally, entropy_bits, norm_quantiles, scale_histogram

NORM_SHARES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
# Of a Poisson variable with this mean, one case in twenty gives nothing.
_SURE = 3.0


class Limits(NamedTuple):
    """Shares of a head's rows that a fault must have to be in the sample in 19 of 20 cases; None if none is enough.

    Attributes
    ----------
    rows
        Rows that show by themselves: zeros, NaN and the like.
    neighbours
        Rows equal to the row before them.
    repeated
        Rows with one copy anywhere else in the head: both must be in the sample, so that with n of R rows
        3 = share * n**2 / (2 * R).
    """

    rows: float | None
    neighbours: float | None
    repeated: float | None


def limits_of(head: HeadRows, tally: Tally, *, content_shift: int = 0) -> Limits:
    """The detection limits of one group."""
    if tally.n_rows >= head.n_here:
        whole = _share(_SURE * 2**content_shift, head.n_here) if content_shift else 0.0
        return Limits(0.0, 0.0, whole)
    return Limits(
        _share(_SURE, tally.n_rows),
        _share(_SURE, tally.n_neighbours),
        _share(2 * _SURE * head.n_here * 2**content_shift, tally.n_rows**2),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if part <= whole else None


def stats_record(report: StatsReport) -> dict[str, Any]:
    """The record `engram.inspect-stats/1`."""
    groups = zip(report.heads, report.tallies, report.copies, strict=True)
    return {
        "schema": "engram.inspect-stats/1",
        "path": report.path,
        "codec": report.codec,
        "row_bytes": report.row_bytes,
        "init": report.init,
        "sample": report.sample,
        "seed": report.seed,
        "n_rows_here": sum(head.n_here for head in report.heads),
        "n_rows_read": report.total.n_rows,
        "requested_bytes": report.requested_bytes,
        "page_bytes": report.page_bytes,
        "device_bytes": report.device_bytes,
        "content_share": 2.0**-report.content_shift,
        "sections": _sections(report),
        "scales": _scales(report.total),
        "groups": [_group(*group, content_shift=report.content_shift) for group in groups],
        "against": None
        if report.against is None
        else [
            {
                "layer_id": head.group.layer_id,
                "order": head.group.order,
                "head": head.group.head,
                "n_rows": head.n_rows,
                "n_equal": head.n_equal,
                "moved_by": head.moved_by,
                "n_moved": head.n_moved,
            }
            for head in report.against
        ],
        "counted": None if report.counted is None else [_counted(head) for head in report.counted],
        "findings": [
            {**asdict(finding), "places": [place._asdict() for place in finding.places]} for finding in report.findings
        ],
        "is_sound": report.is_sound,
    }


def _counted(head: CountedHead) -> dict[str, Any]:
    left_out = ("first_rows",)
    return {name: value for name, value in asdict(head).items() if name not in left_out}


def _sections(report: StatsReport) -> list[dict[str, Any]]:
    """Entropy and compressibility; the whole record first."""
    entropies = {name: entropy_bits(counts) for name, counts in report.total.section_bytes.items()}
    if "records" not in entropies and entropies:
        entropies["records"] = entropy_bits(np.sum(list(report.total.section_bytes.values()), axis=0))
    return [
        {
            "section": packed.section,
            "entropy_bits_per_byte": entropies[packed.section],
            "zstd_bytes": packed.n_bytes,
            "zstd_compressed_bytes": packed.compressed_bytes,
            "zstd_ratio": packed.ratio,
        }
        for packed in report.compressed
    ]


def _scales(total: Tally) -> dict[str, Any] | None:
    histogram = scale_histogram(total.scale_exponents)
    if histogram is None:
        return None
    return {
        "n_zero": total.n_zero_scales,
        "n_negative": total.n_negative_scales,
        "n_not_finite": total.n_bad_scales,
        "by_power_of_two": {str(exponent): n_scales for exponent, n_scales in histogram.items()},
    }


def _group(head: HeadRows, tally: Tally, copies: Copies, *, content_shift: int) -> dict[str, Any]:
    quantiles = norm_quantiles(tally.norms, NORM_SHARES)
    return {
        "layer_id": head.group.layer_id,
        "order": head.group.order,
        "head": head.group.head,
        "is_padding": head.is_padding,
        "first_row": head.group.start,
        "n_rows": head.group.stop - head.group.start,
        "n_rows_here": head.n_here,
        "n_rows_read": tally.n_rows,
        "norms": None
        if quantiles is None
        else {f"p{share * 100:g}": norm for share, norm in zip(NORM_SHARES, quantiles, strict=True)},
        "n_zero": tally.zero.n_rows,
        "n_in_zero_runs": tally.zero_runs.n_rows,
        "n_constant": tally.constant.n_rows,
        "n_nan": tally.nan.n_rows,
        "n_infinite": tally.infinite.n_rows,
        "n_bad_scale": tally.bad_scale.n_rows,
        "n_neighbours": tally.n_neighbours,
        "n_equal_neighbours": tally.equal_neighbours.n_rows,
        "n_repeated": copies.n_rows,
        "neighbour_cosine": tally.neighbour_cosines.mean,
        "random_cosine": tally.random_cosines.mean,
        "entropy_bits_per_byte": {name: entropy_bits(counts) for name, counts in tally.section_bytes.items()},
        "limits": limits_of(head, tally, content_shift=content_shift)._asdict(),
    }
