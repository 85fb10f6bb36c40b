"""What a record says of one timed case: rates, percentiles, bytes, share of its ceiling, and what casts doubt on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engram_tables.measure.offload.plan import Section, State
from engram_tables.measure.offload.rounds import Case
from engram_tables.measure.timing import summarise

_COLD_RESIDENT_SHARE = 0.01
_OTHERS_SHARE = 0.1
_MARGIN = 1.05
_FROM_DEVICE_SHARE = 0.1
# A percentile is told where one sample in so many lies beyond it.
_PERCENTILES = {"batch_p99_us": (99.0, 100), "batch_p999_us": (99.9, 1000)}


def make_point(
    case: Case, *, section: Section, engine: str, threads: int | None, trace: str, row_bytes: int, n_rows: int
) -> dict[str, Any]:
    """Everything that needs no ceiling.

    `rows_per_s` is from the median batch of one stream, and from all rows over all time of several.
    """
    noted = case.noted
    summary = summarise(noted.batch_ns)
    n_rounds = len(noted.round_ns)
    per_s = n_rows * 1e9 / summary["median_ns"]
    if case.n_streams > 1:
        per_s = noted.n_batches * n_rows * 1e9 / sum(noted.round_ns)
    return {
        "source": section.source,
        "state": section.state,
        "engine": engine,
        "threads": threads,
        "streams": case.n_streams,
        "trace": trace,
        "tokens_per_batch": case.n_tokens,
        "rows_per_batch": n_rows,
        "rows_per_s": per_s,
        "us_per_row": 1e6 / per_s,
        "tokens_per_s": per_s * case.n_tokens / n_rows,
        "pages_per_row": noted.mean("pages_per_row"),
        "unique_row_ratio": noted.mean("unique_ratio"),
        "batch_p50_us": summary["median_ns"] / 1e3,
        **{key: _percentile_us(noted.batch_ns, *rule) for key, rule in _PERCENTILES.items()},
        "cpu_us_per_row": noted.cpu_ns / noted.n_batches / n_rows / 1e3,
        "useful_bytes_per_batch": n_rows * row_bytes,
        "unique_bytes_per_batch": noted.mean("unique_bytes"),
        "useful_bytes_per_s": per_s * row_bytes,
        "line_bytes_per_batch": noted.mean("line_bytes"),
        "device_bytes_per_batch": _per_batch(noted.read_bytes, noted.n_batches),
        "device_reads_per_batch": _per_batch(noted.reads, noted.n_batches),
        "own_device_bytes_per_batch": _per_batch(noted.own_read_bytes, noted.n_batches),
        "resident_bytes_before_batch_max": max(noted.resident_before, default=None),
        "flags": [],
        "n_rounds": n_rounds,
        "cpu_ns_total": noted.cpu_ns,
        **summary,
        "round_ns_total": sum(noted.round_ns),
        "samples_ns": list(noted.batch_ns),
    }


def hold_against(
    point: dict[str, Any], case: Case, ceilings: Mapping[str, Any], *, section: Section, file_bytes: int
) -> None:
    """Add the point's ceiling, its share, and the flags.

    A point from the device is held against random reads in distinct pages a second, since a row that is asked for
    twice is read once, and rows that share a page share a read; one from memory against copies.
    """
    name = f"{section}, {point['engine']}, {point['rows_per_batch']} rows ({point['trace']})"
    if _is_from_device(point, section):
        _hold_against_device(point, case, ceilings.get("disk") or {}, name)
    else:
        _hold_against_memory(point, ceilings.get("memory") or {}, name)
    resident = point["resident_bytes_before_batch_max"]
    if section.state is State.COLD and resident is not None and resident > _COLD_RESIDENT_SHARE * file_bytes:
        point["flags"].append(f"{name}: not cold, up to {resident} of {file_bytes} bytes were in memory")
    others = _others(point)
    if "pages_per_s" in point and others is not None and others > _OTHERS_SHARE:
        point["flags"].append(f"{name}: {others:.0%} of what the device read was for other processes")


def _is_from_device(point: Mapping[str, Any], section: Section) -> bool:
    if section.state is State.AS_IS:
        device = point["own_device_bytes_per_batch"] or point["device_bytes_per_batch"]
        return device is not None and device > _FROM_DEVICE_SHARE * point["unique_bytes_per_batch"]
    return section.state is State.COLD


def _hold_against_memory(point: dict[str, Any], ceilings: Mapping[str, Any], name: str) -> None:
    if ceilings.get("status") != "measured":
        point["ceiling"], point["share_of_ceiling"] = None, None
        return
    one = point["threads"] == 1
    link = ceilings["memcpy_1_thread_bytes_per_s" if one else "memcpy_all_threads_bytes_per_s"]
    point["ceiling"] = {"name": "memcpy, 1 thread" if one else "memcpy, all threads", "bytes_per_s": link}
    point["share_of_ceiling"] = point["useful_bytes_per_s"] / link
    if point["useful_bytes_per_s"] > _MARGIN * link:
        point["flags"].append(
            f"{name}: {point['useful_bytes_per_s'] / 1e9:.2f} GB/s is more than memory's {link / 1e9:.2f} GB/s; the "
            "rows came from the CPU's caches"
        )


def _hold_against_device(point: dict[str, Any], case: Case, ceilings: Mapping[str, Any], name: str) -> None:
    batches_per_s = point["rows_per_s"] / point["rows_per_batch"]
    point["pages_per_s"] = case.noted.mean("unique_pages") * batches_per_s
    device, unique = point["device_bytes_per_batch"], point["unique_bytes_per_batch"]
    # Streams that begin together may ask for one page each, and the cache gives it to all but one.
    is_cold = point["state"] == State.COLD
    if device is not None and device < 0.9 * unique and case.n_streams == 1 and is_cold:
        point["flags"].append(
            f"{name}: the device read {device:.0f} bytes a batch for {unique:.0f} bytes of distinct rows; the rest "
            "came from a cache"
        )
    if ceilings.get("status") != "measured":
        point["ceiling"], point["share_of_ceiling"] = None, None
        return
    point["ceiling"] = {"name": "random 4 KiB direct reads", "reads_per_s": ceilings["best_reads_per_s"]}
    point["share_of_ceiling"] = point["pages_per_s"] / ceilings["best_reads_per_s"]
    if point["share_of_ceiling"] > _MARGIN:
        why = (
            "neighbouring pages were read together, or the device was busier when the ceiling was measured"
            if is_cold
            else "part of the rows was in memory"
        )
        point["flags"].append(
            f"{name}: {point['pages_per_s']:.0f} pages a second are more than the ceiling's "
            f"{ceilings['best_reads_per_s']:.0f} reads; {why}"
        )
    per_s = unique * batches_per_s
    if is_cold and per_s > _MARGIN * ceilings["sequential_bytes_per_s"]:
        point["flags"].append(
            f"{name}: {per_s / 1e9:.2f} GB/s is more than the device's sequential "
            f"{ceilings['sequential_bytes_per_s'] / 1e9:.2f} GB/s; it was not the device that answered"
        )


def _others(point: Mapping[str, Any]) -> float | None:
    """Share of the device's bytes that this process was not charged for."""
    device, own = point["device_bytes_per_batch"], point["own_device_bytes_per_batch"]
    return None if not device or own is None else max(0.0, 1 - own / device)


def _per_batch(total: int | None, n_batches: int) -> float | None:
    return None if total is None else total / n_batches


def _percentile_us(samples_ns: Sequence[int], percent: float, fewest: int) -> float | None:
    """The percentile, None of too few samples to tell it."""
    if len(samples_ns) < fewest:
        return None
    return float(np.percentile(samples_ns, percent, method="higher")) / 1e3
