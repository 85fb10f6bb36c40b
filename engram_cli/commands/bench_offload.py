"""`engram bench-offload`: lookups from memory and from disk, against the ceilings of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from engram_cli import console
from engram_cli.options import Exclude, Force, Glob, JsonFlag, Threads, VocabFile


def bench_offload(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table, or a checkpoint read where it lies.")],
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus",
            metavar="PATH",
            help="Text whose n-grams are looked up: a file, a directory, or -; may be repeated. "
            "Without it rows are uniform, which is a bound and not real text.",
        ),
    ] = None,
    vocab: VocabFile = None,
    glob: Glob = "*",
    exclude: Exclude = None,
    rows_per_batch: Annotated[
        str,
        typer.Option("--rows-per-batch", metavar="N,N", help="Rows of a batch; the nearest whole number of tokens."),
    ] = "48,4096,65536",
    source: Annotated[str, typer.Option("--from", metavar="dram|disk|both", help="Where rows are read.")] = "both",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Fewest timed batches a point.")] = 5,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="Timed work a point, at least.")] = 0.4,
    threads: Threads = None,
    read_threads: Annotated[
        int | None, typer.Option("--read-threads", min=1, help="Threads that read from disk; 64 by default.")
    ] = None,
    force: Force = False,
    as_json: JsonFlag = False,
    record_file: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Write the whole record, raw samples and all.")
    ] = None,
) -> None:
    """Measure lookups in a table, from memory and from disk, against this machine's ceilings.

    Every engine's bytes are compared with a slow reading before it is timed;
    a difference ends with exit code 6. Files are evicted from the page cache
    for the disk part, and what was in memory is measured, not assumed. No
    system setting is changed.

    \b
    Examples:
      engram bench-offload my-table --corpus /usr/share/doc --glob copyright
      engram bench-offload my-table --corpus notes.txt --from disk
      engram bench-offload my-table --corpus notes.txt --record run.json
    """
    from engram_tables import load_vocabulary
    from engram_tables.errors import InvalidInput
    from engram_tables.files import new_file, refuse_existing
    from engram_tables.measure.bench import bench_offload as bench
    from engram_tables.measure.lookups import DISK, DRAM, BenchPlan

    sources = {"dram": (DRAM,), "disk": (DISK,), "both": (DRAM, DISK)}
    if source not in sources:
        raise InvalidInput(f"--from: found {source!r}, expected dram, disk or both")
    if record_file is not None:
        refuse_existing(record_file, force=force)
    plan = BenchPlan(
        rows_per_batch=_batch_rows(rows_per_batch),
        sources=sources[source],
        repeats=repeats,
        seconds=seconds,
        threads=threads,
        read_threads=read_threads,
    )
    with console.progress("measuring", "points") as progress:
        record = bench(
            table,
            corpus=corpus or (),
            glob=glob,
            exclude=exclude or (),
            vocabulary=None if vocab is None else load_vocabulary(vocab),
            plan=plan,
            progress=progress,
        )
    if record_file is not None:
        try:
            with new_file(record_file, force=force) as file:
                file.write(json.dumps(record, indent=1, allow_nan=False).encode() + b"\n")
        except OSError as error:
            error.add_note(f"while writing the record {record_file}")
            raise
    if as_json:
        console.emit(record)
    else:
        _show(record)
    if record["mismatches"]:
        first = record["mismatches"][0]
        console.check_found(
            f"{first['source']}, engine {first['engine']}: {first['records']} records differ from the bytes in the "
            f"files, the first at {first['first']}; the engine was not timed"
        )


def _batch_rows(text: str) -> tuple[int, ...]:
    from engram_tables.errors import InvalidInput

    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[0-9]{1,15}\s*", part) for part in parts):
        raise InvalidInput(f"--rows-per-batch: found {text[:40]!r}, expected whole numbers with commas, as 48,4096")
    return tuple(int(part) for part in parts)


def _show(record: dict[str, Any]) -> None:
    table, trace = record["table"], record["trace"]
    console.show(
        f"{table['path']}: {table['n_rows']:,} rows of {table['row_bytes']} bytes ({table['codec']}, "
        f"{table['layout'] or 'as released'}), {table['rows_per_token']} rows a token"
    )
    if len(table["parts"]) > 1:
        console.show(f"a row lies in {len(table['parts'])} places: {', '.join(table['parts'])}")
    if not table["has_digests"]:
        console.show("note: the rows have no digests, so what was read is not known to be what was released")
    if trace["is_real_text"]:
        console.show(
            f"rows of real text: {trace['tokens']:,} tokens of {trace['documents']:,} documents, "
            f"{trace['unique_row_ratio']:.0%} of the rows distinct"
        )
        if trace["replaced_bytes"]:
            console.show(
                f"note: {trace['replaced_bytes']:,} bytes in {trace['replaced_files']:,} files are not UTF-8; were "
                "these files text? choose them with --glob"
            )
    else:
        console.show("uniform random rows: a bound, not real text (give --corpus for that)")
    for source, title in (("dram", "from memory"), ("disk", "from disk")):
        if source in record:
            _show_part(title, record[source])
    console.show(f"GPU: {record['gpu']['status']}: {record['gpu']['reason']}")
    for flag in record["flags"]:
        console.show(f"note: {flag}")


def _show_part(title: str, part: dict[str, Any]) -> None:
    if part["status"] != "measured":
        console.show()
        console.show(f"{title}: {part['status']}: {part['reason']}")
        return
    console.show()
    console.show(f"{title}: {_state(part)}")
    columns = (
        "engine", "rows a batch", "rows/s", "µs a row", "pages a row", "batch p50 µs", "batch p99 µs", "CPU µs a row",
        "GB/s", "of ceiling",
    )  # fmt: skip
    rows = [
        (
            point["engine"],
            f"{point['rows_per_batch']:,}",
            f"{point['rows_per_s']:,.0f}",
            f"{point['us_per_row']:.3f}",
            f"{point['pages_per_row']:.2f}",
            f"{point['batch_p50_us']:,.0f}",
            f"{point['batch_p99_us']:,.0f}",
            f"{point['cpu_us_per_row']:.2f}",
            f"{point['useful_bytes_per_s'] / 1e9:.3f}",
            f"{point['share_of_ceiling']:.0%}",
        )
        for point in part["points"]
    ]
    console.show_table("", columns, rows)


def _state(part: dict[str, Any]) -> str:
    state, ceilings = part["state"], part["ceilings"]
    if "resident_bytes_before" in state:
        share = min(state["resident_bytes_before"], state["resident_bytes_after"]) / state["file_bytes"]
        huge = state["huge_page_bytes"]
        pages = "" if huge is None else f" ({huge / state['file_bytes']:.0%} mapped by huge pages)"
        return (
            f"{share:.0%} of the files in the page cache{pages}; ceiling memcpy "
            f"{ceilings['memcpy_1_thread_bytes_per_s'] / 1e9:.1f} GB/s by 1 thread, "
            f"{ceilings['memcpy_all_threads_bytes_per_s'] / 1e9:.1f} by {ceilings['threads']}; "
            f"a dependent load {ceilings['dependent_load_ns']:.0f} ns"
        )
    share = state["resident_bytes_after_first_eviction"] / state["file_bytes"]
    fio = ceilings["fio"]
    by_fio = f"fio {fio['reads_per_s']:,.0f}" if fio["status"] == "measured" else f"no fio figure: {fio['reason']}"
    return (
        f"{share:.0%} of the files in the page cache after eviction; ceiling "
        f"{ceilings['best_reads_per_s']:,.0f} random 4 KiB reads/s ({by_fio})"
    )
