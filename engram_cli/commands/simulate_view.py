"""What `engram simulate` shows of its record: a table of hit ratios for each way of fetching."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import Any

from engram_cli import console

_WIDTH = 100
_VERDICTS = {
    "representative": "repeats itself as code and prose do",
    "too-repetitive": "repeats itself MORE than code and prose do: these hit ratios flatter",
    "too-varied": "repeats itself LESS than code and prose do: these hit ratios are too low",
    "too-short": "is too short to tell whether it repeats itself as text does",
}


def show_simulation(record: dict[str, Any]) -> None:
    """An `engram.simulate/1`."""
    corpus = record["corpus"]
    _line(
        f"{record['spec']}, rows of {record['row_bytes']} bytes, {record['rows_per_token']} a token; "
        f"{corpus['n_documents']:,} documents, {corpus['n_tokens']:,} tokens, {corpus['n_dead']:,} of them dead"
    )
    _show_repetition(record["representative"])
    _show_unique(record["unique_rows"])
    for run in record["runs"]:
        _show_run(run, record)
    for entry in record["left_out"]:
        size = "" if entry["cache_bytes"] is None else f" of {_size(entry['cache_bytes'])}"
        _line(f"left out: {entry['policy']}{size}, {entry['unit']}s: {entry['reason']}")
    if record["bundles"] is not None:
        _show_bundles(record["bundles"])
    if record["hot_list"] is not None:
        hot = record["hot_list"]
        _line(f"wrote {hot['path']}: {hot['n_rows']:,} rows, {hot['row_bytes']:,} bytes of them")


def _show_repetition(found: dict[str, Any]) -> None:
    verdict = _VERDICTS[found["verdict"]]
    if found["seen_share"] is None:
        _line(f"the text {verdict} ({found['window_tokens']:,} tokens are needed)")
        return
    _line(
        f"the text {verdict}: {found['seen_share']:.0%} of a window's {found['order']}-grams stood in it before, new "
        f"ones grow by 2^{found['growth']:.2f} as the text doubles ({found['rule']})"
    )


def _show_unique(lengths: list[dict[str, Any]]) -> None:
    told = [f"{of['chunk_tokens']:,}: {of['unique_ratio']:.0%}" for of in lengths if of["unique_ratio"] is not None]
    if told:
        _line(f"distinct rows of a chunk's lookups, by its tokens: {', '.join(told)}")


def _show_run(run: dict[str, Any], record: dict[str, Any]) -> None:
    console.show()
    unit = run["unit"] if run["layout"] is None else f"{run['unit']} ({run['layout']})"
    how = f"chunks of {run['tokens_a_step']:,} tokens" if run["is_prefill"] else f"{run['tokens_a_step']:,} a step"
    sample = "" if run["sample_rate"] == 1 else f", a sample of {run['sample_rate']:.3g} of the {run['unit']}s"
    _line(f"By {unit}, {run['n_streams']} stream{'s' if run['n_streams'] > 1 else ''}, {how}{sample}")
    same = ("unit", "layout", "n_streams", "tokens_a_step", "is_prefill")
    curves = [curve for curve in record["curves"] if all(curve[key] == run[key] for key in same)]
    for state, of_state in groupby(sorted(curves, key=lambda curve: str(curve["state"])), key=lambda c: c["state"]):
        _show_state(state, list(of_state), run)


def _show_state(state: str, curves: list[dict[str, Any]], run: dict[str, Any]) -> None:
    sizes = sorted({point["cache_bytes"] for curve in curves for point in curve["points"]})
    points = [{point["cache_bytes"]: point for point in curve["points"]} for curve in curves]
    rows = [[_size(size), *(_ratio(of.get(size)) for of in points)] for size in sizes]
    title = "cold: from an empty cache on" if state == "cold" else "steady: the rest"
    console.show_table(f"hit ratio, {title}", ["cache", *(curve["policy"] for curve in curves)], rows)
    if any(point["is_full"] is False for of in points for point in of.values()) and state == "steady":
        _line(f"*: not yet full after the cold part, which has {run['n_distinct_cold']:,} distinct {run['unit']}s")
    lru = next((curve for curve in curves if curve["policy"] == "lru"), curves[0])
    if state == "steady" and lru["points"] and lru["points"][0]["misses_a_token_p50"] is not None:
        told = ", ".join(
            f"{_size(point['cache_bytes'])} {point['misses_a_token_p50']:g} and {point['misses_a_token_p99']:g}"
            for point in lru["points"]
        )
        _line(f"misses a token with {lru['policy']}, p50 and p99: {told}")


def _show_bundles(sweep: dict[str, Any]) -> None:
    console.show()
    orders = [of["order"] for of in sweep["points"][0]["found"]]
    rows = [
        [
            _size(point["budget_bytes"]), f"{point['n_bundles']:,}", f"{point['reads_a_token']:.2f}",
            f"{point['page_bytes_a_token']:,.0f}", *(f"{of['share']:.1%}" for of in point["found"]),
        ]
        for point in sweep["points"]
    ]  # fmt: skip
    console.show_table(
        f"bundles of the n-grams of {sweep['counts']}; {sweep['payload_bytes_a_token']:,} bytes of rows a token",
        ["budget", "bundles", "reads a token", "page bytes a token", *(f"found, order {order}" for order in orders)],
        rows,
    )


def _ratio(point: dict[str, Any] | None) -> str:
    if point is None or point["hit_ratio"] is None:
        return "-"
    error = "" if point["error"] is None else f" ±{100 * point['error']:.2f}"
    return f"{100 * point['hit_ratio']:.2f}{error} %{'' if point['is_full'] else '*'}"


def _size(n_bytes: int) -> str:
    for scale, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.4g} {name}"
    return f"{n_bytes} B"


def _line(text: str) -> None:
    """A line, broken at spaces where it is longer than the page."""
    for line in textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_long_words=False) or [""]:
        console.show(line)
