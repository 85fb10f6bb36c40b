"""What `engram plan` shows of its records: lines of words, and tables that 80 columns hold."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from engram_cli import console

_COLUMNS = ("placement", "verdict", "room", "reads", "rows", "waiting", "tokens/s")
_LEGEND = (
    "room: the most that is needed of one kind. reads: of the disk, a token, behind the cache. rows: time of fetching "
    "those of one step, one token of every stream. waiting: what of it the step waits for, beyond what passes before a "
    "layer wants them. tokens/s: that remain"
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
        console.show_wrapped(_LEGEND)
        console.show()
    for each in known:
        console.show_wrapped(f"{each['placement']}: {each['summary']}{_speed(each)}")
        console.show_wrapped(
            f"a token's rows: {_time(each['batched_ms_per_token'])} at once, {_time(each['serial_ms_per_token'])} one "
            "after the other",
            head="", indent=4,
        )  # fmt: skip
        for relief in each.get("relief", ()):
            console.show_wrapped(f"would help: {relief}", head="", indent=4)
    unjudged = [each for each in record["placements"] if "needs" not in each]
    for why, of in groupby(unjudged, key=lambda each: each["summary"]):
        console.show_wrapped(f"{', '.join(each['placement'] for each in of)}: not judged; {why}")
    _show_slack(record, known)
    _show_figures(record["machine"])
    console.show()
    _show_verdict(record, known)


def show_allocation(record: dict[str, Any]) -> None:
    """An `engram.plan-allocate/1`."""
    shape = record["shape"]
    console.show_wrapped(
        f"orders {', '.join(map(str, shape['orders']))}, {shape['heads_per_order']} heads each, {shape['n_layers']} "
        f"layers, rows of {shape['row_width']} values: {shape['rows_per_token']} rows a token"
    )
    sparse = record["budget"]["sparse_parameters"]
    if sparse is not None:
        console.show_wrapped(f"sparse parameters (total - active): {sparse:,}")
    rows = [_allocated(table, codec) for table in record["tables"] for codec in table["codecs"]]
    columns = ("share", "parameters", "rows", "rows a head", "codec", "row bytes", "table bytes", "slots", "swept")
    console.show_table("", columns, rows)
    published = record["published"]
    rule, sweep = published["rule"], published["slot_sweep"]
    low, high = rule["best_shares_of_sparse_parameters"]
    console.show_wrapped(
        f"shares ({rule['where']}): {low:.0%} to {high:.0%} of the sparse parameters were best; validation loss "
        f"{rule['loss_without_table']} without a table, {rule['loss_at_best_share']} with it ({rule['note']})"
    )
    console.show_wrapped(
        f"slots ({sweep['where']}): {sweep['fewest_slots']:,} to {sweep['most_slots']:,} slots were swept, a slot "
        f"being an n-gram's rows of all heads and orders; {sweep['note']}. Beyond it nothing is published"
    )


def _show_asked(record: dict[str, Any]) -> None:
    from engram_tables.units import format_bytes

    table, load = record["table"], record["load"]
    console.show_wrapped(
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
    console.show_wrapped(f"wanted: {', '.join(asked)}; {load['most_loss']:.0%} of a step may go by waiting")
    if record["hit_curve"] is not None and not record["cache_bytes"]:
        console.show_wrapped(
            "no cache in front of the disk: the hit curve says what one answers; --cache says how large it is"
        )
    elif record["hit_curve"] is not None:
        curve = record["hit_curve"]
        largest = curve["points"][-1]["cache_bytes"]
        beyond = ""
        # A share by hand holds for any size.
        if 1 < largest < record["cache_bytes"]:
            beyond = (
                f"; beyond the curve's largest size, {format_bytes(largest)}, nothing is known: its figure is taken"
            )
        console.show_wrapped(
            f"cache of {format_bytes(record['cache_bytes'])} in front of the disk "
            f"({curve['origin']}: {curve['where']}){beyond}"
        )
    elif record["cache_bytes"]:
        console.show_wrapped(
            f"cache of {format_bytes(record['cache_bytes'])} in front of the disk: taken to answer nothing, since what "
            "it answers is not known; give --hit-curve or --hit-ratio"
        )


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    needed = max(each["needs"].values())
    reads = each["reads_per_token_behind_cache"]
    return (
        each["placement"],
        each["status"],
        f"{needed / 2**30:,.1f} GiB" if needed >= 2**30 else f"{needed / 2**20:,.1f} MiB",
        "-" if each["hit_ratio"] is None else f"{reads:.3g}",
        _time(each["step_fetch_ms"]),
        _time(each["exposed_ms"]),
        "-" if each["tokens_per_s"] is None else f"{each['tokens_per_s']:,.4g}",
    )


def _show_slack(record: dict[str, Any], known: list[dict[str, Any]]) -> None:
    if not known or record["load"]["step_us"] is None:
        return
    console.show()
    layers, slack = record["load"]["model_layers"], known[0]["slack"]
    if any(each["layer_id"] is None for each in slack):
        console.show_wrapped("which layers read rows is not certain: they are taken to want them as a step begins")
        return
    if layers is None:
        console.show_wrapped(
            "how many layers the model has is not known: rows are taken to be wanted as a step begins; give "
            "--model-layers"
        )
        return
    told = ", ".join(f"layer {each['layer_id']} {_time(each['slack_ms'])}" for each in slack)
    console.show_wrapped(f"from a step's beginning to what reads rows: {told} (of {layers['value']} layers)")


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
            if disk.get(name) is not None
        ]
    console.show()
    console.show("figures, and where they come from")
    for name, value, found in told:
        console.show_wrapped(f"{found['origin']}; {found['where']}", head=f"  {name:28} {value:>13}", indent=46)
    if disk is not None:
        ways = (("bursts", ""), ("planned_bursts", ", planned"))
        for bursts, how in ((disk.get(key, ()), how) for key, how in ways):
            if bursts:
                points = ", ".join(f"{burst['n_reads']}: {burst['us']:.0f}" for burst in bursts)
                what = f"disk: µs of so many reads at once{how}"
                console.show_wrapped(f"{what}: {points}; {disk['origin']}; {disk['where']}", head="", indent=4)


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
    console.show_wrapped(
        f"verdict: fine with {', '.join(fine)}" if fine else "verdict: no placement is known to be fine"
    )
    load = record["load"]
    if load["tokens_per_s"] is None and load["prefill_tokens_per_s"] is None and load["step_us"] is None:
        console.show_wrapped("  room alone was judged: no speed was asked for; give --tokens-per-s")


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
