"""`engram bench-offload`: what reading rows costs here, from memory, from the device, to host and GPU memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from engram_cli import console
from engram_cli.commands.bench_offload_view import show_bench, show_overlap
from engram_cli.options import Exclude, Force, Glob, JsonFlag, Threads, VocabFile
from engram_cli.outputs import hand_out, refuse_outputs

if TYPE_CHECKING:
    from engram_tables.fetch.tiers.budget import MemoryTier
    from engram_tables.measure.offload.plan import BenchPlan


_MODEL = "engram-paper-4b"
# Options of a benchmark without --overlap, as they are when nobody gives them.
_ALONE: dict[str, object] = {
    "plot": None, "state": None, "tokens": None, "rows_per_batch": None, "streams": "1", "depths": None, "bounds": True,
    "repeats": 5, "seconds": 0.4, "batch_seconds": 3.0, "read_threads": None, "tier": None, "gpu_cache": None,
    "hot_list": None, "fill_tokens": None, "bundles": None, "no_bundles": False,
}  # fmt: skip


class _Text(NamedTuple):
    """Where the rows to look up come from."""

    corpus: list[str]
    trace: Path | None
    vocab: Path | None
    glob: str
    exclude: list[str]


def bench_offload(
    table: Annotated[
        str | None,
        typer.Argument(metavar="TABLE", help="A table, or a checkpoint read where it lies. --overlap can do without."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCES",
            help="dram, nvme, auto (wherever the rows are), or several with commas. All of them by default.",
        ),
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="host|gpu", help="Whose memory the rows are brought to.")] = "host",
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="cold|warm|as-is",
            help="What is in memory before a batch, brought about and checked. By default warm for dram, cold for "
            "nvme, both for auto.",
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="NAME", help="Measure this engine alone; `auto` is one as well.")
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus",
            metavar="PATH",
            help="Text whose n-grams are looked up: a file, a directory, or -; may be repeated. "
            "Without it rows are uniform, which is a bound and not real text.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="DIR", help="Lookups that `engram trace` wrote, in place of a corpus."),
    ] = None,
    vocab: VocabFile = None,
    glob: Glob = "*",
    exclude: Exclude = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", metavar="N,N", help="Tokens of a batch: decoding and chunks of a prompt. 1,8,512,8192 usually."
        ),
    ] = None,
    rows_per_batch: Annotated[
        str | None,
        typer.Option(
            "--rows-per-batch", metavar="N,N", help="Rows of a batch, in place of --tokens; the nearest whole tokens."
        ),
    ] = None,
    streams: Annotated[
        str, typer.Option("--streams", metavar="N,N", help="Batches asked for at the same time, by a thread each.")
    ] = "1",
    depths: Annotated[
        str | None,
        typer.Option("--depths", metavar="N,N", help="Reads in flight of the sweeps, which go on past saturation."),
    ] = None,
    bounds: Annotated[
        bool,
        typer.Option("--bounds/--no-bounds", help="Also the best engine on uniform rows and on one repeated token."),
    ] = True,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Fewest timed batches a point.")] = 5,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="Timed work a point, at least.")] = 0.4,
    batch_seconds: Annotated[
        float,
        typer.Option("--batch-seconds", min=0.0, help="Leave out batches that would take longer, and say so."),
    ] = 3.0,
    threads: Threads = None,
    read_threads: Annotated[
        int | None, typer.Option("--read-threads", min=1, help="Threads that read from disk; 64 by default.")
    ] = None,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            "--tier",
            metavar="SIZE[:locked][:node=N]",
            help="Measure also with so much host memory in front, beside the engine without it: 2GiB. Several with "
            "commas or by repeating; 2GiB+64GiB:node=1 is one behind the other.",
        ),
    ] = None,
    gpu_cache: Annotated[
        list[str] | None,
        typer.Option("--gpu-cache", metavar="SIZE", help="With --to gpu: so much of its memory in front, as --tier."),
    ] = None,
    hot_list: Annotated[
        Path | None, typer.Option("--hot-list", metavar="FILE", help="Rows that --tier and --gpu-cache begin with.")
    ] = None,
    fill_tokens: Annotated[
        int | None,
        typer.Option(
            "--fill-tokens",
            metavar="N",
            min=0,
            help="Tokens looked up first, to fill --tier and --gpu-cache: 16384, and 0 with a hot list or --state "
            "as-is.",
        ),
    ] = None,
    bundles: Annotated[
        Path | None,
        typer.Option(
            "--bundles",
            metavar="DIR",
            help="Bundles of the table's rows, to be measured beside the rows alone; by default those in the table.",
        ),
    ] = None,
    no_bundles: Annotated[bool, typer.Option("--no-bundles", help="Leave the table's bundles out.")] = False,
    overlap: Annotated[
        bool,
        typer.Option("--overlap", help="Instead: what an offloaded table costs a model that runs at the same time."),
    ] = False,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="With --overlap: whose layers are multiplied.")
    ] = _MODEL,
    force: Force = False,
    as_json: JsonFlag = False,
    record_file: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Write the whole record, raw samples and all.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw rates, latencies and depth sweeps: .svg, .png or .pdf."),
    ] = None,
) -> None:
    """Measure what reading rows of a table costs on this machine, against ceilings of the same run.

    Every engine's bytes are compared with a slow reading before it is timed; a difference ends with exit code 6. What
    is in memory before and after is measured, not assumed: files are evicted or read first, one by one, and no system
    setting is changed. Engines that the machine refuses are listed with the reason, and what cannot run here is
    `waived` with its own, as --to gpu without a GPU.

    --tier and --gpu-cache fill memory with the first half of the text, or from a hot list, and measure the second half
    with and without it by turns: hits, rates, latencies, and bytes held. Batches come from all over the text, so fewer
    rows are found than in a text read in order; simulate has those.

    A table with bundles is measured with and without them by turns: reads, bytes and milliseconds a token.

    --overlap runs matrix products of a named model's layers beside the fetches, and reports how much slower they get.
    --plot needs pip install 'engram-tables\\[report]'.

    \b
    Examples:
      engram bench-offload my-table --corpus /usr/share/doc --glob copyright
      engram bench-offload my-table --corpus notes.txt --from nvme --tokens 1,2,4,8 --streams 1,4
      engram bench-offload my-table --trace trace --from auto --state as-is
      engram bench-offload my-table --corpus notes.txt --record run.json --plot run.svg
      engram bench-offload my-table --corpus /usr/share/doc --from nvme --tier 64MiB,1GiB
      engram bench-offload my-table --trace trace --to gpu
      engram bench-offload --overlap --model engram-paper-4b --from dram
    """
    text = _Text(corpus or [], trace, vocab, glob, exclude or [])
    if table is None and not overlap:
        raise typer.BadParameter("give TABLE, or --overlap, which can generate its rows")
    if overlap:
        _refuse_with_overlap(
            plot=plot, state=state, tokens=tokens, rows_per_batch=rows_per_batch, streams=streams, depths=depths,
            bounds=bounds, repeats=repeats, seconds=seconds, batch_seconds=batch_seconds, read_threads=read_threads,
            tier=tier, gpu_cache=gpu_cache, hot_list=hot_list, fill_tokens=fill_tokens, bundles=bundles,
            no_bundles=no_bundles,
        )  # fmt: skip
    elif model != _MODEL:
        raise typer.BadParameter("--model goes only with --overlap, whose load the model is")
    if bundles is not None and no_bundles:
        raise typer.BadParameter("give --bundles or --no-bundles, not both")
    refuse_outputs({"--record": record_file, "--plot": plot}, force=force)
    if overlap:
        record = _overlap(table, text, source=source, to=to, engine=engine, model=model, threads=threads)
    else:
        plan = _plan(
            source=source, to=to, state=state, engine=engine, tokens=tokens, rows_per_batch=rows_per_batch,
            streams=streams, depths=depths, bounds=bounds, repeats=repeats, seconds=seconds,
            batch_seconds=batch_seconds, threads=threads, read_threads=read_threads,
            tier=tier or [], gpu_cache=gpu_cache or [], hot_list=hot_list, fill_tokens=fill_tokens,
            bundles=False if no_bundles else bundles,
        )  # fmt: skip
        record = _bench(str(table), text, plan)
    hand_out(record, show_overlap if overlap else show_bench, as_json=as_json, record_file=record_file, force=force)
    if plot is not None:
        from engram_tables.measure.offload.plot import write_plot

        write_plot(plot, record, force=force)
        console.say(f"wrote {plot}")
    _fail_on_mismatch(record)


def _refuse_with_overlap(**given: Any) -> None:
    """Wrong usage for an option that --overlap would not look at."""
    for name, value in given.items():
        if value != _ALONE[name]:
            option = {"bounds": "--no-bounds"}.get(name, f"--{name.replace('_', '-')}")
            raise typer.BadParameter(f"{option} goes only without --overlap, which has steps of its own and no picture")


def _plan(*, tokens: str | None, rows_per_batch: str | None, streams: str, depths: str | None, source: str | None,
          to: str, state: str | None, tier: list[str], gpu_cache: list[str], **others: Any) -> BenchPlan:  # fmt: skip
    from engram_tables.measure.offload.plan import BATCH_TOKENS, DEPTHS, BenchPlan, Source, State, Target
    from engram_tables.units import parse_bytes

    if gpu_cache and to.strip() != "gpu":
        raise typer.BadParameter("--gpu-cache goes only with --to gpu; host memory in front is --tier")
    if (others["hot_list"] is not None or others["fill_tokens"] is not None) and not tier and not gpu_cache:
        option = "--fill-tokens" if others["hot_list"] is None else "--hot-list"
        raise typer.BadParameter(f"{option} goes only with --tier or --gpu-cache, which it fills")
    if tokens is not None and rows_per_batch is not None:
        raise typer.BadParameter("give --tokens or --rows-per-batch, not both")
    return BenchPlan(
        sources=None if source is None else tuple(_choice("--from", word, Source) for word in source.split(",")),
        to=_choice("--to", to, Target),
        state=None if state is None else _choice("--state", state, State),
        tokens=BATCH_TOKENS if tokens is None else _numbers("--tokens", tokens),
        rows_per_batch=() if rows_per_batch is None else _numbers("--rows-per-batch", rows_per_batch),
        streams=_numbers("--streams", streams),
        depths=DEPTHS if depths is None else _numbers("--depths", depths),
        tiers=tuple(_tiers(word) for words in tier for word in words.split(",")),
        gpu_caches=tuple(parse_bytes(word.strip()) for words in gpu_cache for word in words.split(",")),
        **others,
    )


def _tiers(text: str) -> tuple[MemoryTier, ...]:
    """`2GiB:locked+64GiB:node=1`: tiers one behind the other, the nearest first."""
    from engram_tables.errors import InvalidInput
    from engram_tables.fetch.tiers.budget import MemoryTier
    from engram_tables.units import parse_bytes

    tiers = []
    for word in text.split("+"):
        size, *traits = word.strip().split(":")
        options: dict[str, Any] = {}
        for trait in traits:
            node = re.fullmatch(r"node=([0-9]{1,6})", trait)
            if trait != "locked" and node is None:
                raise InvalidInput(
                    f"--tier {text[:40]!r}: found {trait[:40]!r}, expected locked or node=N after a size; write it as "
                    "2GiB:locked:node=1"
                )
            options |= {"is_locked": True} if node is None else {"node": int(node[1])}
        tiers.append(MemoryTier(budget_bytes=parse_bytes(size), **options))
    return tuple(tiers)


def _bench(table: str, text: _Text, plan: BenchPlan) -> dict[str, Any]:
    from engram_tables import load_vocabulary
    from engram_tables.measure.bench import bench_offload as bench

    with console.progress("measuring", "points") as progress:
        return bench(
            table,
            corpus=text.corpus,
            trace=text.trace,
            glob=text.glob,
            exclude=text.exclude,
            vocabulary=None if text.vocab is None else load_vocabulary(text.vocab),
            plan=plan,
            progress=progress,
        )


def _overlap(
    table: str | None, text: _Text, *, source: str | None, to: str, engine: str | None, model: str, threads: int | None
) -> dict[str, Any]:
    from engram_tables import load_vocabulary
    from engram_tables.measure.overlap import OverlapPlan
    from engram_tables.measure.overlap import overlap as measure

    plan = OverlapPlan(to=to, source=source or "auto", engine=engine, model=model, threads=threads)
    with console.narrated("measuring beside a load", "rounds") as progress:
        return measure(
            table,
            plan=plan,
            corpus=text.corpus,
            trace_path=text.trace,
            glob=text.glob,
            exclude=text.exclude,
            vocabulary=None if text.vocab is None else load_vocabulary(text.vocab),
            progress=progress,
        )


def _fail_on_mismatch(record: dict[str, Any]) -> None:
    if record.get("status") == "mismatch":
        console.check_found(f"overlap: {record.get('reason') or 'records differ from the bytes in the files'}")
    if record.get("mismatches"):
        first = record["mismatches"][0]
        console.check_found(
            f"{first['section']}, engine {first['engine']}: {first['n_records']} records differ from the bytes in the "
            f"files, the first at position {first['first_position']} of the batch; the engine was not timed"
        )


def _choice(option: str, word: str, choices: Any) -> Any:
    from engram_tables.errors import InvalidInput

    try:
        return choices(word.strip())
    except ValueError:
        raise InvalidInput(f"{option}: found {word[:40]!r}, expected one of {', '.join(choices)}; name one") from None


def _numbers(option: str, text: str) -> tuple[int, ...]:
    from engram_tables.errors import InvalidInput

    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[0-9]{1,15}\s*", part) for part in parts):
        raise InvalidInput(f"{option}: found {text[:40]!r}, expected whole numbers with commas; write them as 1,8,512")
    return tuple(int(part) for part in parts)
