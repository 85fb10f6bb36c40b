"""What `engram plan` shows of its records: the same content as the record's, in lines of 100 columns and tables."""

from __future__ import annotations

import textwrap
from typing import Any

from engram_cli import console

_WIDTH = 100
_COLUMNS = ("placement", "verdict", "bytes", "reads/token", "serial", "batched", "step's rows", "waiting", "tokens/s")


def show_plan(record: dict[str, Any]) -> None:
    """An `engram.plan/1`."""
    _show_asked(record)
    console.show()
    known = [each for each in record["placements"] if "needs" in each]
    console.show_table("", _COLUMNS, [_row(each) for each in known], left=2)
    for each in record["placements"]:
        _line(f"{each['placement']}: {each['summary']}")
        for relief in each.get("relief", ()):
            _line(f"  would help: {relief}")
    console.show()
    _show_slack(record, known)
    _show_figures(record["machine"])
    best = record["best"]
    console.show(f"verdict: {best} is fine" if best else "verdict: no placement is known to be fine")


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
    columns = ("share", "parameters", "rows", "rows a head", "codec", "row bytes", "table bytes", "slots", "the sweep")
    console.show_table("", columns, rows)
    published = record["published"]
    rule, sweep = published["rule"], published["slot_sweep"]
    low, high = rule["best_shares_of_sparse_parameters"]
    _line(
        f"published ({rule['where']}): {low:.0%} to {high:.0%} of the sparse parameters were best; validation loss "
        f"{rule['loss_without_table']} without a table, {rule['loss_at_best_share']} with it. {rule['note']}"
    )
    _line(
        f"published ({sweep['where']}): {sweep['fewest_slots']:,} to {sweep['most_slots']:,} slots were swept, a slot "
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
    if record["hit_curve"] is not None:
        curve = record["hit_curve"]
        _line(f"cache of {record['cache_bytes']:,} bytes in front of the disk ({curve['origin']}: {curve['where']})")


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
    layers = record["load"]["model_layers"]
    told = [
        f"{'a layer' if each['layer_id'] is None else 'layer ' + str(each['layer_id'])} {_time(each['slack_ms'])}"
        for each in known[0]["slack"]
    ]
    of = "the number of layers is not known; give --model-layers" if layers is None else f"of {layers['value']} layers"
    _line(f"from a step's beginning to what reads rows: {', '.join(told)} ({of})")


def _show_figures(machine: dict[str, Any]) -> None:
    figures = {**machine["spaces"], **machine["rates"]}
    disk = machine["disk"]
    if disk is not None:
        figures |= {
            f"disk, {name}": disk[name]
            for name in ("reads_per_s", "serial_read_us", "sequential_bytes_per_s")
            if disk[name] is not None
        }
    rows = [(name, f"{found['value']:,.4g}", found["origin"], found["where"]) for name, found in figures.items()]
    if disk is not None:
        told = ", ".join(f"{burst['n_reads']}: {burst['us']:.0f}" for burst in disk["bursts"])
        rows.append(("disk, µs of a burst of reads", told, disk["origin"], disk["where"]))
    console.show_table("Figures", ("figure", "value", "origin", "where"), rows, left=4)


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


def _line(text: str) -> None:
    for line in textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_long_words=False) or [""]:
        console.show(line)
