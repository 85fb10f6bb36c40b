"""What `engram simulate` shows of its record: a table of hit ratios for each way of fetching."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from engram_cli import console

_VERDICTS = {
    "representative": "repeats itself as code and prose do",
    "too-repetitive": "repeats itself MORE than code and prose do: these hit ratios flatter",
    "too-varied": "repeats itself LESS than code and prose do: these hit ratios are too low",
    "too-short": "is too short to tell whether it repeats itself as text does",
}


def show_simulation(record: dict[str, Any]) -> None:
    """An `engram.simulate/1`."""
    corpus = record["corpus"]
    console.show_wrapped(
        f"{record['spec']}, rows of {record['row_bytes']} bytes, {record['rows_per_token']} a token; "
        f"{corpus['n_documents']:,} documents, {corpus['n_tokens']:,} tokens, {corpus['n_dead']:,} of them dead"
    )
    _show_repetition(record["representative"])
    _show_unique(record["unique_rows"])
    for run in record["runs"]:
        _show_run(run, record)
    told = []
    for entry in record["left_out"]:
        size = "" if entry["cache_bytes"] is None else f" of {_size(entry['cache_bytes'])}"
        told.append(f"left out: {entry['policy']}{size}, {entry['unit']}s: {entry['reason']}")
    # The same reason is recorded for every way of fetching.
    for line in dict.fromkeys(told):
        console.show_wrapped(line)
    if record["bundles"] is not None:
        _show_bundles(record["bundles"])
        for run in record["runs"]:
            _show_behind_caches(run, record)
    if record["hot_list"] is not None:
        hot = record["hot_list"]
        console.show_wrapped(
            f"wrote {hot['path']}: {hot['n_rows']:,} rows, {_size(hot['row_bytes'])} of them; judge it by "
            f"--preload {hot['path']} on another text"
        )


def _show_repetition(found: dict[str, Any]) -> None:
    verdict = _VERDICTS[found["verdict"]]
    if found["seen_share"] is None:
        console.show_wrapped(f"the text {verdict} ({found['window_tokens']:,} tokens are needed)")
        return
    console.show_wrapped(
        f"the text {verdict}: {found['seen_share']:.0%} of the {found['order']}-grams in {found['window_tokens']:,} "
        f"tokens stood there before, and twice the text has {2 ** found['growth']:.2f} times as many different ones "
        f"(seen_share {found['seen_share']:.2f}, growth {found['growth']:.2f}, the logarithm of those times; "
        f"{found['rule']})"
    )


def _show_unique(lengths: list[dict[str, Any]]) -> None:
    told = [f"{of['chunk_tokens']:,}: {of['unique_ratio']:.0%}" for of in lengths if of["unique_ratio"] is not None]
    if told:
        console.show_wrapped(f"distinct rows among the lookups of a chunk of so many tokens: {', '.join(told)}")


def _show_run(run: dict[str, Any], record: dict[str, Any]) -> None:
    console.show()
    unit = run["unit"] if run["layout"] is None else f"{run['unit']} ({run['layout']})"
    tokens = f"{run['tokens_a_step']:,} token{'s' if run['tokens_a_step'] > 1 else ''}"
    how = f"chunks of {tokens}" if run["is_prefill"] else f"steps of {tokens}"
    sample = "" if run["sample_rate"] == 1 else f", a sample of {run['sample_rate']:.3g} of the {run['unit']}s"
    console.show_wrapped(f"By {unit}, {run['n_streams']} stream{'s' if run['n_streams'] > 1 else ''}, {how}{sample}")
    curves = _curves_of(run, record)
    for state, of_state in groupby(sorted(curves, key=lambda curve: str(curve["state"])), key=lambda c: c["state"]):
        _show_state(state, list(of_state), run, record)


def _curves_of(run: dict[str, Any], record: dict[str, Any]) -> list[dict[str, Any]]:
    same = ("unit", "layout", "n_streams", "tokens_a_step", "is_prefill")
    return [curve for curve in record["curves"] if all(curve[key] == run[key] for key in same)]


def _show_state(state: str, curves: list[dict[str, Any]], run: dict[str, Any], record: dict[str, Any]) -> None:
    sizes = sorted({point["cache_bytes"] for curve in curves for point in curve["points"]})
    points = [{point["cache_bytes"]: point for point in curve["points"]} for curve in curves]
    rows = [[_size(size), *(_ratio(of.get(size)) for of in points)] for size in sizes]
    share = record["warm_up_share"]
    of_what = f"the first {share:.0%} of the text" if state == "cold" else "the rest of it"
    # Not the table's title, which a table narrower than it would break.
    console.show(f"hit ratio, {state}: {of_what}{', from an empty cache on' if state == 'cold' else ''}")
    console.show_table("", ["cache", *(curve["policy"] for curve in curves)], rows)
    if state == "steady":
        _show_unfilled(points, run, record)
        _show_misses(next((curve for curve in curves if curve["policy"] == "lru"), curves[0]), run)


def _show_unfilled(points: list[dict[int, dict[str, Any]]], run: dict[str, Any], record: dict[str, Any]) -> None:
    """What the asterisks mean, and how much text would do without them, at the rate of new rows so far."""
    open_sizes = sorted({size for of in points for size, point in of.items() if point["is_full"] is False})
    if not open_sizes:
        return
    n_distinct, n_tokens = run["n_distinct_cold"], record["corpus"]["n_tokens"]
    told = f"whose {n_distinct:,} distinct {run['unit']}s take {_size(n_distinct * run['item_bytes'])}"
    longer = ""
    if n_distinct:
        n_wanted = n_tokens * open_sizes[0] / (n_distinct * run["item_bytes"])
        longer = f": about {n_wanted / 1e6:,.2g} million tokens fill {_size(open_sizes[0])}"
    console.show_wrapped(f"*: not full after the cold part, {told}; a longer text may raise it{longer}")


def _show_misses(curve: dict[str, Any], run: dict[str, Any]) -> None:
    if not curve["points"]:
        return
    if curve["points"][0]["misses_a_token_p50"] is None:
        if run["sample_rate"] < 1:
            console.show_wrapped(
                "misses of single tokens cannot be told from a sample; more --memory, or less text, tells them"
            )
        return
    told = ", ".join(
        f"{_size(point['cache_bytes'])}: {point['misses_a_token_p50']:.3g} and {point['misses_a_token_p99']:.3g}"
        for point in curve["points"]
    )
    console.show_wrapped(
        f"misses a token with {curve['policy']}, at most in half of the steps, and in 99 of 100: {told}"
    )


def _show_bundles(sweep: dict[str, Any]) -> None:
    console.show()
    orders = [of["order"] for of in sweep["points"][0]["found"]]
    rows = [
        [
            _size(point["budget_bytes"]) if point["budget_bytes"] else "none",
            f"{point['n_bundles']:,}",
            f"{point['reads_a_token']:.2f}",
            f"{point['page_bytes_a_token']:,.0f}",
            *(f"{of['share']:.1%}" for of in point["found"]),
        ]
        for point in sweep["points"]
    ]
    console.show_wrapped(
        f"with bundles of the n-grams of {sweep['counts']}, and no cache; {sweep['payload_bytes_a_token']:,} bytes of "
        "rows a token. Counts of the very text that is replayed flatter"
    )
    console.show_table(
        "",
        ["budget", "n-grams", "reads a token", "page bytes a token", *(f"found, order {order}" for order in orders)],
        rows,
    )


def _show_behind_caches(run: dict[str, Any], record: dict[str, Any]) -> None:
    """Reads that the reader's cache, or the first one that was simulated, leaves to rows and bundles."""
    curves = [curve for curve in _curves_of(run, record) if curve["state"] == "steady" and _is_bundled(curve)]
    if not curves:
        return
    curve = next((curve for curve in curves if curve["policy"] == "tiered"), curves[0])
    budgets = [of["budget_bytes"] for of in curve["points"][0]["bundled"]]
    rows = [[_size(point["cache_bytes"]), *map(_reads, point["bundled"])] for point in curve["points"]]
    console.show_wrapped(
        f"reads a token with bundles behind a cache ({curve['policy']}, {run['n_streams']} "
        f"stream{'s' if run['n_streams'] > 1 else ''}, steady), which is asked first: the fewest, where an n-gram's "
        "rows are missing all at once, to the most"
    )
    console.show_table(
        "", ["cache", *(f"bundles of {_size(budget)}" if budget else "no bundles" for budget in budgets)], rows
    )


def _is_bundled(curve: dict[str, Any]) -> bool:
    return bool(curve["points"]) and curve["points"][0]["bundled"] is not None


def _reads(of: dict[str, Any]) -> str:
    least, most = f"{of['reads_a_token_least']:.2f}", f"{of['reads_a_token_most']:.2f}"
    return least if least == most else f"{least} to {most}"


def _ratio(point: dict[str, Any] | None) -> str:
    if point is None or point["hit_ratio"] is None:
        return "-"
    error = "" if point["error"] is None else f" ±{100 * point['error']:.2f}"
    return f"{100 * point['hit_ratio']:.2f}{error} %{'' if point['is_full'] else '*'}"


def _size(n_bytes: int) -> str:
    """As one would ask for it: 8 MiB where that is exact, else 33.5 MB."""
    for scale, name in ((2**30, "GiB"), (2**20, "MiB")):
        if n_bytes >= scale and n_bytes % scale == 0:
            return f"{n_bytes // scale:,} {name}"
    for scale, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.4g} {name}"
    return f"{n_bytes} B"
