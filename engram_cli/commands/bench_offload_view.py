"""What `engram bench-offload` shows of its records: lines of a page's width, the same content as the record's."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from engram_cli import console

_TITLES = {
    ("dram", "warm"): "From memory (warm)",
    ("dram", "as-is"): "From memory, as it was found",
    ("nvme", "cold"): "From the device (cold)",
    ("nvme", "as-is"): "From files, as they were found",
    ("auto", "warm"): "Engine auto, all rows in memory (warm)",
    ("auto", "cold"): "Engine auto, no row in memory (cold)",
    ("auto", "as-is"): "Engine auto, as memory was found",
}
_COLUMNS = ("engine", "rows/s", "µs/row", "CPU µs", "p50", "p99", "p99.9", "of ceiling")
_DEVICE_COLUMNS = (*_COLUMNS[:-1], "read ×", "of ceiling")
_TIER_COLUMNS = ("in front", "held", "hits", "rows/s", "× alone", "CPU µs", "p50", "p99", "read ×")
_BUNDLE_COLUMNS = ("bundles", "found", "reads/token", "bytes/token", "ms/token", "×", "CPU µs", "p50", "p99")
_OTHERS = "of what the device read was for other processes"
_NAME_COLUMNS = 22


def show_bench(record: dict[str, Any]) -> None:
    """An `engram.bench-offload/2`."""
    _show_table(record["table"])
    _show_traces(record["traces"])
    _show_ceilings(record["ceilings"])
    for section in record["sections"]:
        _show_section(section, record)
    for sweep in record["depths"]:
        _show_sweep(sweep)
    _show_summary(record)
    busy = [flag for flag in record["flags"] if _OTHERS in flag]
    for flag in record["flags"]:
        if flag not in busy:
            console.show_wrapped(f"note: {flag}")
    if busy:
        console.show_wrapped(f"note: others read the device during {len(busy)} of the points; the first: {busy[0]}")


def show_overlap(record: dict[str, Any]) -> None:
    """An `engram.overlap/1`."""
    from engram_tables.measure.overlap import summary_lines, table_rows

    for line in summary_lines(record):
        console.show_wrapped(line)
    if record["status"] == "measured":
        columns, rows = table_rows(record)
        console.show_table("", columns, rows)
    else:
        console.show_wrapped(f"overlap: {record['status']}: {record['reason']}")


def _show_table(table: dict[str, Any]) -> None:
    console.show_wrapped(
        f"{table['path']}: {table['n_rows']:,} rows of {table['row_bytes']} bytes ({table['codec']}, "
        f"{table['layout'] or 'as released'}), {table['rows_per_token']} rows a token"
    )
    if table["n_rows_here"] != table["n_rows"]:
        console.show_wrapped(f"{table['n_rows_here']:,} of these rows are here, and lookups of the others are left out")
    if len(table["parts"]) > 1:
        console.show_wrapped(f"a row lies in {len(table['parts'])} places: {', '.join(table['parts'])}")
    if not table["has_digests"]:
        console.show_wrapped("note: the rows have no digests, so what was read is not known to be what was released")


def _show_traces(traces: list[dict[str, Any]]) -> None:
    main, *bounds = traces
    distinct = f"{main['unique_row_ratio']:.0%} of the rows distinct"
    if main["kind"] == "text":
        console.show_wrapped(
            f"rows of real text: {main['tokens']:,} tokens of {main['documents']:,} documents, {distinct}"
        )
        if main["replaced_bytes"]:
            console.show_wrapped(
                f"note: {main['replaced_bytes']:,} bytes in {main['replaced_files']:,} files are not UTF-8; were these "
                "files text? choose them with --glob"
            )
    elif main["kind"] == "trace":
        console.show_wrapped(f"rows of the trace {main['paths'][0]}: {main['tokens']:,} tokens in a row, {distinct}")
    else:
        console.show_wrapped("uniform random rows: a bound, not real text (give --corpus or --trace for that)")
    if bounds:
        console.show_wrapped(f"bounds, the quickest engine alone: {', '.join(bound['name'] for bound in bounds)}")


def _show_ceilings(ceilings: dict[str, Any]) -> None:
    memory, disk = ceilings.get("memory"), ceilings.get("disk")
    if memory is not None:
        console.show_wrapped(
            f"memory's ceiling: memcpy {memory['memcpy_1_thread_bytes_per_s'] / 1e9:.1f} GB/s by 1 thread, "
            f"{memory['memcpy_all_threads_bytes_per_s'] / 1e9:.1f} by {memory['threads']}; a dependent load "
            f"{memory['dependent_load_ns']:.0f} ns"
        )
    if disk is not None:
        console.show_wrapped(_disk_line(disk))
    for name, figure in (("nvbandwidth", ceilings.get("bus")), ("link", ceilings.get("upload"))):
        if figure is not None and "bytes_per_s" in figure:
            console.show_wrapped(f"{name}: copies of pinned memory to the GPU {figure['bytes_per_s'] / 1e9:.1f} GB/s")
        elif figure is not None and figure["status"] == "waived":
            console.show_wrapped(f"no figure by {name}: {figure['reason']}")


def _disk_line(disk: dict[str, Any]) -> str:
    if disk["status"] != "measured":
        return f"no ceiling of the device: {disk['reason']}"
    fio = disk["fio"]
    sweeps = {"threads": disk["threads"], **{sweep["engine"]: sweep for sweep in disk["engines"]}}
    found = [
        f"{name} {_rate(sweep['best_reads_per_s'])} (saturated at {sweep['saturation_depth']})"
        for name, sweep in sweeps.items()
        if "best_reads_per_s" in sweep
    ]
    found += [f"none by {name}: {sweep['reason']}" for name, sweep in sweeps.items() if "reason" in sweep]
    if fio["status"] == "measured":
        found.append(f"fio {_rate(fio['reads_per_s'])} (depth {fio['depth']})")
    else:
        found.append(f"no figure by fio: {fio['reason']}")
    return f"the device's ceiling: random 4 KiB reads/s by {', '.join(found)}"


def _show_section(section: dict[str, Any], record: dict[str, Any]) -> None:
    console.show()
    title = _TITLES[section["source"], section["state"]]
    if record["plan"]["to"] == "gpu":
        title += ", to the GPU"
    if section["status"] != "measured":
        console.show_wrapped(f"{title}: {section['status']}: {section['reason']}")
        return
    residency = section["residency"]
    file_bytes = residency["file_bytes"]
    before, after = (residency[f"resident_bytes_{when}"] / file_bytes for when in ("before", "after"))
    changed = "; it changed meanwhile" if section["state"] == "as-is" else "; NOT as asked"
    checked = "" if residency["is_as_asked"] else changed
    huge = residency.get("huge_page_bytes")
    pages = "" if huge is None else f", {huge / file_bytes:.0%} mapped by huge pages"
    console.show_wrapped(f"{title}: {before:.0%} of the files in memory before, {after:.0%} after{pages}{checked}")
    _show_refused(section)
    console.show()
    for (n_tokens, n_streams), group in groupby(
        section["points"], key=lambda point: (point["tokens_per_batch"], point["streams"])
    ):
        _show_points(list(group), n_tokens, n_streams, record["traces"][0]["name"])
    if not section["points"]:
        console.show_wrapped("nothing was measured here: no engine was left")
    _show_left_out(section["left_out"])
    if "tiers" in section:
        if section["left_out"]:
            console.show()
        _show_tiers(section["tiers"])
    if "bundles" in section:
        _show_bundles(section["bundles"])


def _show_bundles(bundles: dict[str, Any]) -> None:
    """A table with bundles, and the same without."""
    if bundles["status"] != "measured":
        console.show_wrapped(f"Bundles: {bundles['status']}: {bundles['reason']}")
        return
    console.show_wrapped(f"Bundles, by {bundles['engine']}")
    for (n_rows, n_tokens, n_streams), group in groupby(bundles["points"], key=_shape):
        streams = "" if n_streams == 1 else f", {n_streams} streams at once"
        console.show_wrapped(f"{n_tokens:,} token{'s' * (n_tokens > 1)} a batch: {n_rows:,} rows{streams}")
        console.show_table("", _BUNDLE_COLUMNS, [_bundle_row(point) for point in group])


def _bundle_row(point: dict[str, Any]) -> tuple[str, ...]:
    found = ", ".join(f"{each['share']:.0%}" for each in point["found"])
    device_bytes = point["device_bytes_per_token"]
    return (
        "with" if point["has_bundles"] else "without",
        found if point["has_bundles"] else "-",
        f"{point['reads_per_token']:.1f}",
        "-" if device_bytes is None else _size(int(device_bytes)),
        f"{point['ms_per_token']:.3g}",
        f"{point['rows_per_s_over_without']:.3g}",
        _figure(point["cpu_us_per_row"]),
        _time(point["batch_p50_us"]),
        _time(point["batch_p99_us"]),
    )


def _show_tiers(tiers: dict[str, Any]) -> None:
    """Memory in front of an engine, and that engine alone."""
    if tiers["status"] != "measured":
        console.show_wrapped(f"Memory in front: {tiers['status']}: {tiers['reason']}")
        return
    console.show_wrapped(f"Memory in front of {tiers['behind']}, filled {_spell_fill(tiers['fill'])}")
    # A chain of tiers has a long name, and the page 100 columns.
    names = dict.fromkeys(point["tier"] for point in tiers["points"] if len(point["tier"] or "") > _NAME_COLUMNS)
    named = {name: f"chain {nth}" for nth, name in enumerate(names, 1)}
    for name, short in named.items():
        console.show_wrapped(f"{short}: {name}")
    for left in tiers["left_out"]:
        sizes = "" if left["rows_per_batch"] is None else f" at {left['rows_per_batch']:,} rows a batch"
        console.show_wrapped(f"left out: {left['tier'] or 'all'}{sizes}: {left['reason']}")
    for (n_rows, n_tokens, n_streams), group in groupby(tiers["points"], key=_shape):
        streams = "" if n_streams == 1 else f", {n_streams} streams at once"
        console.show_wrapped(f"{n_tokens:,} token{'s' * (n_tokens > 1)} a batch: {n_rows:,} rows{streams}")
        console.show_table("", _TIER_COLUMNS, [_tier_row(point, named) for point in group])
    if tiers["points"]:
        console.show_wrapped(
            "hits are of batches from all over the text; `engram simulate` has those of a text read in order"
        )


def _shape(point: dict[str, Any]) -> tuple[int, int, int]:
    return point["rows_per_batch"], point["tokens_per_batch"], point["streams"]


def _spell_fill(fill: dict[str, Any]) -> str:
    ways = []
    if fill["hot_list_rows"]:
        ways.append(f"from a hot list of {fill['hot_list_rows']:,} rows")
    if fill["tokens"]:
        ways.append(
            f"by a first pass of {fill['batches']:,} batch{'es' * (fill['batches'] > 1)}, {fill['tokens']:,} tokens of "
            "the trace's first half"
        )
    return f"{' and '.join(ways) or 'by nothing: empty at the start'}; batches are of its second half"


def _tier_row(point: dict[str, Any], named: dict[str, str]) -> tuple[str, ...]:
    tier = point["tier"]
    return (
        f"none: {point['engine']}" if tier is None else named.get(tier, tier),
        "-" if tier is None else _size(point["held_bytes"]),
        "-" if point["hit_ratio"] is None else f"{point['hit_ratio']:.1%}",
        _rate(point["rows_per_s"]),
        f"{point['rows_per_s_over_alone']:.3g}",
        _figure(point["cpu_us_per_row"]),
        _time(point["batch_p50_us"]),
        _time(point["batch_p99_us"]),
        _read(point),
    )


def _size(n_bytes: int) -> str:
    from engram_tables.units import format_bytes

    return format_bytes(n_bytes).partition(" (")[0]


def _show_refused(section: dict[str, Any]) -> None:
    for rung in section.get("ladder", ()):
        if not rung["is_usable"]:
            console.show_wrapped(f"  not {rung['engine']}: {rung['reason']}")
    contention = section["contention"]
    others = contention["others_read_bytes"]
    if others and section["source"] != "dram" and others > 0.1 * max(1, contention["device_read_bytes"] or 0):
        console.show_wrapped(f"  note: others read {others:,} bytes from the device meanwhile")
    if contention["stolen_ns"] and contention["stolen_ns"] > 0.05 * contention["elapsed_ns"]:
        console.show_wrapped(
            f"  note: {contention['stolen_ns'] / contention['elapsed_ns']:.0%} of a CPU was stolen by the host"
        )


def _show_points(points: list[dict[str, Any]], n_tokens: int, n_streams: int, main: str) -> None:
    first = points[0]
    is_from_device = any("pages_per_s" in point for point in points)
    streams = "" if n_streams == 1 else f", {n_streams} streams at once"
    console.show_wrapped(
        f"{n_tokens:,} token{'s' if n_tokens > 1 else ''} a batch: {first['rows_per_batch']:,} rows, "
        f"{first['unique_row_ratio']:.0%} distinct, {first['pages_per_row']:.2f} pages a row{streams}"
    )
    rows = [(*_row(point, main), *([_read(point)] if is_from_device else []), _share(point)) for point in points]
    console.show_table("", _DEVICE_COLUMNS if is_from_device else _COLUMNS, rows)


def _row(point: dict[str, Any], main: str) -> tuple[str, ...]:
    return (
        point["engine"]
        if point["trace"] == main
        else f"  {point['trace']}: {point['engine'].removesuffix(' threads')}",
        _rate(point["rows_per_s"]),
        _figure(point["us_per_row"]),
        _figure(point["cpu_us_per_row"]),
        _time(point["batch_p50_us"]),
        _time(point["batch_p99_us"]),
        _time(point["batch_p999_us"]),
    )


def _read(point: dict[str, Any]) -> str:
    """Bytes read for a byte asked for: this process's own, or all of the device's where nobody tells them apart."""
    own, device = point["own_device_bytes_per_batch"], point["device_bytes_per_batch"]
    read = device if own is None else own
    return "-" if read is None else _figure(read / point["useful_bytes_per_batch"])


def _share(point: dict[str, Any]) -> str:
    share = point["share_of_ceiling"]
    return "-" if share is None else f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _show_left_out(left_out: list[dict[str, Any]]) -> None:
    for engine, entries in groupby(left_out, key=lambda entry: entry["engine"]):
        listed = list(entries)
        sizes = " and ".join(f"{entry['rows_per_batch']:,}" for entry in listed)
        console.show_wrapped(f"left out: {engine} at {sizes} rows a batch: {listed[0]['reason']}")


def _show_sweep(sweep: dict[str, Any]) -> None:
    console.show()
    title = f"Depth sweep of {sweep['engine']}, {sweep['rows_per_batch']:,} rows a batch, cold"
    if sweep["status"] != "measured":
        console.show_wrapped(f"{title}: {sweep['status']}: {sweep['reason']}")
        return
    console.show_wrapped(f"{title}: 95 % of the best at depth {sweep['saturation_depth']}")
    console.show_wrapped(
        ", ".join(f"{point['depth']}: {_rate(point['rows_per_s'])}" for point in sweep["points"]) + " rows/s"
    )


def _show_summary(record: dict[str, Any]) -> None:
    """The best of each section in tokens a second, since that is what a model asks for."""
    console.show()
    main = record["traces"][0]["name"]
    for section in record["sections"]:
        points = [point for point in section.get("points", ()) if point["trace"] == main]
        if not points:
            continue
        best = max(points, key=lambda point: float(point["rows_per_s"]))
        quick = min(
            (point for point in points if point["tokens_per_batch"] == points[0]["tokens_per_batch"]),
            key=lambda point: float(point["batch_p50_us"]),
        )
        console.show_wrapped(
            f"{section['source']}, {section['state']}: {_rate(best['tokens_per_s'])} tokens/s at best "
            f"({best['engine']}, {best['tokens_per_batch']:,} a batch"
            f"{', ' + str(best['streams']) + ' streams' if best['streams'] > 1 else ''}); "
            f"{quick['tokens_per_batch']:,} token{'s' if quick['tokens_per_batch'] > 1 else ''} in "
            f"{_time(quick['batch_p50_us'])} ({quick['engine']})"
        )


def _rate(per_s: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if per_s >= unit:
            return f"{per_s / unit:.3g}{name}" if per_s < 999.5 * unit else f"{per_s / unit:,.0f}{name}"
    return f"{per_s:.3g}"


def _time(us: float | None) -> str:
    if us is None:
        return "-"
    if us < 1000:
        return f"{us:.3g} µs"
    return f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"
