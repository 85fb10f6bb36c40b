"""What `engram plan` shows of its records: the same content as the record's, in lines of 100 columns and tables."""

from __future__ import annotations

import shutil
import textwrap
from itertools import groupby
from typing import Any

from engram_cli import console

_WIDTH = min(100, shutil.get_terminal_size((100, 24)).columns)
_COLUMNS = ("placement", "verdict", "bytes", "reads/token", "serial", "batched", "step's rows", "waiting", "tokens/s")
_LEGEND = (
    "a token's rows one after the other (serial) and at once (batched); a step's rows, of one token of every stream; "
    "how long the step waits for them beyond what passes before a layer wants them; tokens/s that remain"
)
# Of a figure's name, what it is divided by here, the digits after the point, and what that is called.
_UNITS = (
    ("_bytes_per_s", 1e9, 2, "GB/s"),
    ("_bytes", 1e9, 2, "GB"),
    ("_per_s", 1, 0, "/s"),
    ("_us", 1, 2, "µs"),
    ("_ns", 1, 2, "ns"),
)


def show_plan(record: dict[str, Any]) -> None:
    """An `engram.plan/1`."""
    _show_asked(record)
    console.show()
    known = [each for each in record["placements"] if "needs" in each]
    if known:
        console.show_table("", _COLUMNS, [_row(each) for each in known], left=2)
        _line(_LEGEND)
        console.show()
    for each in known:
        _line(f"{each['placement']}: {each['summary']}{_speed(each)}")
        for relief in each.get("relief", ()):
            _line(f"  would help: {relief}")
    unjudged = [each for each in record["placements"] if "needs" not in each]
    for why, of in groupby(unjudged, key=lambda each: each["summary"]):
        _line(f"{', '.join(each['placement'] for each in of)}: not judged; {why}")
    _show_slack(record, known)
    _show_figures(record["machine"])
    console.show()
    _show_verdict(record, known)


def show_allocation(record: dict[str, Any]) -> None:
    """An `engram.plan-allocate/1`."""
    shape = record["shape"]
    _line(
        f"orders {', '.join(map(str, shape['orders']))}, {shape['heads_per_order']} heads each, {shape['n_layers']} "
        f"layers, rows of {shape['row_width']} values: {shape['rows_per_token']} rows a token"
    )
    sparse = record["budget"]["sparse_parameters"]
    if sparse is not None:
        _line(f"sparse parameters (total - active): {sparse:,}")
    rows = [_allocated(table, codec) for table in record["tables"] for codec in table["codecs"]]
    columns = ("share", "parameters", "rows", "rows a head", "codec", "row bytes", "table bytes", "slots", "swept")
    console.show_table("", columns, rows)
    published = record["published"]
    rule, sweep = published["rule"], published["slot_sweep"]
    low, high = rule["best_shares_of_sparse_parameters"]
    _line(
        f"shares ({rule['where']}): {low:.0%} to {high:.0%} of the sparse parameters were best; validation loss "
        f"{rule['loss_without_table']} without a table, {rule['loss_at_best_share']} with it ({rule['note']})"
    )
    _line(
        f"slots ({sweep['where']}): {sweep['fewest_slots']:,} to {sweep['most_slots']:,} slots were swept, a slot "
        f"being an n-gram's rows of all heads and orders; {sweep['note']}. Beyond it nothing is published"
    )


def _show_asked(record: dict[str, Any]) -> None:
    table, load = record["table"], record["load"]
    _line(
        f"{table['name']}: {table['n_rows']:,} rows of {table['row_bytes']} bytes ({table['codec']}), "
        f"{table['table_bytes']:,} bytes; {table['rows_per_token']} rows and {table['bytes_per_token']:,} bytes a token"
    )
    asked = [f"{load['streams']} stream{'s' if load['streams'] > 1 else ''}"]
    if load["tokens_per_s"] is not None:
        asked.insert(0, f"{load['tokens_per_s']:g} tokens/s")
    if load["prefill_tokens_per_s"] is not None:
        asked.append(f"{load['prefill_tokens_per_s']:g} prompt tokens/s in chunks of {load['chunk_tokens']:,}")
    if load["step_us"] is not None:
        step = load["step_us"]
        asked.append(f"a step of {step['value'] / 1e3:.3g} ms ({step['origin']}: {step['where']})")
    _line(f"wanted: {', '.join(asked)}; {load['most_loss']:.0%} of a step may go by waiting")
    if record["hit_curve"] is not None and not record["cache_bytes"]:
        _line("no cache in front of the disk: the hit curve says what one answers; --cache says how large it is")
    elif record["hit_curve"] is not None:
        curve = record["hit_curve"]
        _line(f"cache of {record['cache_bytes']:,} bytes in front of the disk ({curve['origin']}: {curve['where']})")
    elif record["cache_bytes"]:
        _line(
            f"cache of {record['cache_bytes']:,} bytes in front of the disk: taken to answer nothing, since what it "
            "answers is not known; give --hit-curve or --hit-ratio"
        )


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    needed = max(each["needs"].values())
    reads = each["reads_per_token_behind_cache"]
    return (
        each["placement"],
        each["status"],
        f"{needed:,}",
        "-" if each["hit_ratio"] is None else f"{reads:.3g}",
        _time(each["serial_ms_per_token"]),
        _time(each["batched_ms_per_token"]),
        _time(each["step_fetch_ms"]),
        _time(each["exposed_ms"]),
        "-" if each["tokens_per_s"] is None else f"{each['tokens_per_s']:,.4g}",
    )


def _show_slack(record: dict[str, Any], known: list[dict[str, Any]]) -> None:
    if not known or record["load"]["step_us"] is None:
        return
    console.show()
    layers = record["load"]["model_layers"]
    told = [
        f"{'a layer' if each['layer_id'] is None else 'layer ' + str(each['layer_id'])} {_time(each['slack_ms'])}"
        for each in known[0]["slack"]
    ]
    of = "the number of layers is not known; give --model-layers" if layers is None else f"of {layers['value']} layers"
    _line(f"from a step's beginning to what reads rows: {', '.join(told)} ({of})")


def _show_figures(machine: dict[str, Any]) -> None:
    """Each figure by the name that --figure knows, its value, and where that comes from."""
    disk = machine["disk"]
    told = [
        (name, _figure(name, found["value"]), found)
        for name, found in {**machine["spaces"], **machine["rates"]}.items()
    ]
    if disk is not None:
        told += [
            (f"disk: {name}", _figure(f"_{name}", disk[name]["value"]), disk[name])
            for name in ("reads_per_s", "serial_read_us", "sequential_bytes_per_s")
            if disk[name] is not None
        ]
    console.show()
    console.show("figures, and where they come from")
    for name, value, found in told:
        _line(f"  {name:30} {value:>15}   {found['origin']}; {found['where']}", indent=" " * 51)
    if disk is not None:
        bursts = ", ".join(f"{burst['n_reads']}: {burst['us']:.0f}" for burst in disk["bursts"])
        _line(f"  disk: µs of so many reads at once   {bursts}; {disk['origin']}; {disk['where']}")


def _figure(name: str, value: float) -> str:
    for ending, scale, digits, unit in _UNITS:
        if name.endswith(ending):
            return f"{value / scale:,.{digits}f} {unit}"
    return f"{value:,.4g}"


def _speed(each: dict[str, Any]) -> str:
    """Of a table that does not fit: whether it would be quick enough if it did."""
    rates = [limit for limit in each["limits"] if limit["unit"] != "bytes"]
    if each["status"] != "too-small" or not rates or any(limit["holds"] is None for limit in rates):
        return ""
    return "; it would be quick enough" if all(limit["holds"] for limit in rates) else "; it would be too slow as well"


def _show_verdict(record: dict[str, Any], known: list[dict[str, Any]]) -> None:
    fine = [each["placement"] for each in known if each["status"] == "fine"]
    _line(f"verdict: fine with {', '.join(fine)}" if fine else "verdict: no placement is known to be fine")
    load = record["load"]
    if load["tokens_per_s"] is None and load["prefill_tokens_per_s"] is None and load["step_us"] is None:
        _line("  room alone was judged: no speed was asked for; give --tokens-per-s")


def _allocated(table: dict[str, Any], codec: dict[str, Any]) -> tuple[str, ...]:
    share = table["share_of_sparse_parameters"]
    return (
        "-" if share is None else f"{share:.1%}",
        f"{table['parameters']:,}",
        f"{table['n_rows']:,}",
        f"{table['rows_per_head']:,}",
        codec["codec"],
        f"{codec['row_bytes']:,}",
        f"{codec['table_bytes']:,}",
        f"{table['slots']:,}",
        table["slots_against_sweep"],
    )


def _time(ms: float | None) -> str:
    if ms is None:
        return "-"
    if ms == 0:
        return "0"
    return f"{ms * 1e3:.3g} µs" if ms < 1 else f"{ms:.3g} ms" if ms < 1e3 else f"{ms / 1e3:.3g} s"


def _line(text: str, indent: str = "    ") -> None:
    for line in textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False) or [""]:
        console.show(line)
