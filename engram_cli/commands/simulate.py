"""`engram simulate`: what a cache of any size would do for a text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli import console
from engram_cli.corpus_reading import CorpusReading, reads_corpus
from engram_cli.options import (
    Eos,
    Force,
    JsonFlag,
    LayerIds,
    ModelPath,
    Preset,
    SpecFile,
    Threads,
    VocabFile,
)
from engram_cli.outputs import hand_out, refuse_outputs
from engram_cli.spec_source import resolve_with_vocabulary
from engram_tables.errors import InvalidInput
from engram_tables.units import parse_bytes

if TYPE_CHECKING:
    from engram_tables.address.spec import AddressSpec
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.measure.simulate.report import SimulatePlan

_SIZES = "512MB,1GB,2GB,4GB,8GB,16GB,32GB,64GB"
_BUDGETS = "128MiB,512MiB,2GiB,8GiB"
_POLICIES = "lru,lru-16,static,tiered,s3-fifo,belady"


@reads_corpus
def simulate(
    text: Annotated[
        list[str],
        typer.Argument(
            metavar="TRACE|CORPUS",
            help="A directory of `engram trace` or `engram tokenize`, or files, directories, patterns, URLs, and -.",
            show_default=False,
        ),
    ],
    preset: Preset = None,
    spec: SpecFile = None,
    model: ModelPath = None,
    eos: Eos = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    sizes: Annotated[
        str,
        typer.Option("--sizes", metavar="SIZE,SIZE", help="Bytes of the caches, of rows or pages alone: 1GB or 4GiB."),
    ] = _SIZES,
    policy: Annotated[
        str,
        typer.Option(
            "--policy", metavar="NAME,NAME", help="Which policies; belady is the bound of those that begin empty."
        ),
    ] = _POLICIES,
    unit: Annotated[str, typer.Option("--unit", metavar="row,page", help="What a cache holds; or both.")] = "row",
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="NAME",
            help="Of the pages: packed by default, page, aligned-N, planar.",
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec",
            metavar="NAME",
            help="Of the rows; a preset's release has one, and `inspect table` tells a table's.",
        ),
    ] = None,
    row_bytes: Annotated[
        int | None, typer.Option("--row-bytes", min=1, metavar="N", help="Of a row, in place of a codec.")
    ] = None,
    streams: Annotated[
        str, typer.Option("--streams", metavar="N,N", help="Sequences under way at once, to which documents are dealt.")
    ] = "1",
    batch: Annotated[
        str, typer.Option("--batch", metavar="N,N", help="Tokens of every stream that a decoding step fetches.")
    ] = "1",
    chunk: Annotated[
        str | None,
        typer.Option("--chunk", metavar="N,N", help="Instead: prompts, in steps of N tokens of a stream at a time."),
    ] = None,
    warm_up: Annotated[
        float,
        typer.Option("--warm-up", metavar="SHARE", help="Of the text, before what counts as steady: 0.5 is half."),
    ] = 0.5,
    memory: Annotated[
        str,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="To work in; a text that needs more is sampled, by row; a row looked up takes 48 bytes.",
        ),
    ] = "2GiB",
    preload: Annotated[
        Path | None,
        typer.Option("--preload", metavar="FILE", help="A hot list that static holds and tiered begins with."),
    ] = None,
    hot_list: Annotated[
        Path | None,
        typer.Option("--hot-list", metavar="FILE", help="Write the rows that the text looks up most, for tiers."),
    ] = None,
    hot_bytes: Annotated[
        str, typer.Option("--hot-bytes", metavar="SIZE", help="With --hot-list: bytes of the rows in it, at most.")
    ] = "1GiB",
    bundles: Annotated[
        Path | None,
        typer.Option(
            "--bundles",
            metavar="COUNTS",
            help="Also the reads a token with n-grams of these counts in bundles, alone and behind caches of rows.",
        ),
    ] = None,
    bundle_budgets: Annotated[
        str, typer.Option("--bundle-budgets", metavar="SIZE,SIZE", help="With --bundles: bytes of all bundles.")
    ] = _BUDGETS,
    threads: Threads = None,
    *,
    reading: CorpusReading,
    force: Force = False,
    as_json: JsonFlag = False,
    record_file: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Write the whole record, every class and point.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw hit ratios by size: .svg, .png or .pdf.")
    ] = None,
) -> None:
    """Say what hit ratio a text gives caches of every size, for several policies and numbers of streams.

    A trace brings its own addressing; a corpus needs --preset, --spec or --model, and the vocabulary. The text is
    replayed exactly; where that would pass --memory, all lookups of a share of the rows are, and error bars say what
    that costs. The first part of the text, from an empty cache on, is the cold state, the rest the steady one. A text
    that repeats itself more than code and prose do is called so, since it flatters every cache.

    --plot needs pip install 'engram-tables\\[report]'.

    \b
    Examples:
      engram simulate trace --sizes 1GB,4GB --streams 1,16
      engram simulate src --glob '*.py' --preset deepseek-v4.1-flash --vocab v4.vocab.parquet --record code.json
      engram simulate trace --unit page --layout planar --policy lru,belady --plot pages.svg
      engram simulate trace --chunk 512,4096 --hot-list hot.parquet --hot-bytes 4GiB
      engram simulate unseen --bundles counts --bundle-budgets 1GiB,8GiB --policy lru
    """
    from engram_cli.commands.simulate_view import show_simulation
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.fetch.tiers.hot_list import read_hot_list, write_hot_list
    from engram_tables.measure.simulate.bundle_sweep import sweep_bundles
    from engram_tables.measure.simulate.hot_rows import hot_rows
    from engram_tables.measure.simulate.opening import open_text
    from engram_tables.measure.simulate.report import simulate_text
    from engram_tables.measure.simulate.units import row_bytes_of

    if codec is not None and row_bytes is not None:
        raise typer.BadParameter("give --codec or --row-bytes, not both")
    plan = _plan(
        sizes=sizes, policy=policy, unit=unit, layout=layout, streams=streams, batch=batch, chunk=chunk,
        warm_up=warm_up, memory=memory, threads=threads,
    )  # fmt: skip
    budget_bytes = parse_bytes(hot_bytes)
    budgets = tuple(sorted({parse_bytes(word) for word in bundle_budgets.split(",")}))
    refuse_outputs({"--record": record_file, "--plot": plot, "--hot-list": hot_list}, force=force)
    begin_with = None if preload is None else read_hot_list(preload)
    vocabulary = None if vocab is None else load_vocabulary(vocab)
    resolved = _resolve(preset, spec, model, eos, layers, vocabulary)
    options = reading.options()
    with open_text(
        text, spec=resolved, vocabulary=vocabulary, **reading.files(), options=options, threads=threads,
        stage=console.progress,
    ) as opened:  # fmt: skip
        rows = row_bytes_of(opened.lookups.spec, row_bytes, codec=codec)
        # Before the caches, which take longer: so that counts of something else are refused at once.
        sweep = None
        if bundles is not None:
            sweep = sweep_bundles(
                opened.lookups, bundles, rows, budgets_bytes=budgets, memory_bytes=plan.memory_bytes, threads=threads,
                stage=console.progress,
            )  # fmt: skip
        record = simulate_text(opened, rows, plan, hot_list=begin_with, bundles=sweep, stage=console.progress)
        if hot_list is not None:
            with console.progress("counting rows", "tokens") as progress:
                found = hot_rows(
                    opened.lookups, most_rows=budget_bytes // rows.n_bytes, memory_bytes=plan.memory_bytes,
                    threads=threads, progress=progress,
                )  # fmt: skip
            write_hot_list(hot_list, found, force=force)
            record["hot_list"] = {"path": str(hot_list), "n_rows": len(found), "row_bytes": rows.n_bytes * len(found)}
    hand_out(record, show_simulation, as_json=as_json, record_file=record_file, force=force)
    if plot is not None:
        from engram_tables.measure.simulate.plot import write_plot

        write_plot(plot, record, force=force)
        console.say(f"wrote {plot}")


def _plan(
    *, sizes: str, policy: str, unit: str, layout: str | None, streams: str, batch: str, chunk: str | None,
    warm_up: float, memory: str, threads: int | None,
) -> SimulatePlan:  # fmt: skip
    from engram_tables.measure.caches.policies import Policy
    from engram_tables.measure.simulate.report import SimulatePlan
    from engram_tables.measure.simulate.streams import Turns
    from engram_tables.measure.simulate.units import PAGE, UNITS

    units = tuple(_choice("--unit", word, UNITS) for word in unit.split(","))
    if layout is not None and PAGE not in units:
        raise typer.BadParameter(f"--layout {layout} goes only with --unit page")
    if chunk is not None and batch != "1":
        raise typer.BadParameter("give --batch or --chunk, not both")
    turns = tuple(
        Turns(n_streams=n, tokens_a_turn=tokens, is_prefill=chunk is not None)
        for tokens in _numbers("--batch" if chunk is None else "--chunk", batch if chunk is None else chunk)
        for n in _numbers("--streams", streams)
    )
    return SimulatePlan(
        sizes_bytes=tuple(sorted({parse_bytes(word) for word in sizes.split(",")})),
        policies=tuple(dict.fromkeys(Policy(_choice("--policy", word, tuple(Policy))) for word in policy.split(","))),
        turns=turns,
        units=tuple(dict.fromkeys(units)),
        layout=layout,
        warm_up=warm_up,
        memory_bytes=parse_bytes(memory),
        threads=threads,
    )


def _resolve(
    preset: str | None, spec: Path | None, model: str | None, eos: int | None, layers: str | None,
    vocabulary: Vocabulary | None,
) -> AddressSpec | None:  # fmt: skip
    """The spec that is named; None where none is, as for a trace."""
    if preset is None and spec is None and model is None:
        if eos is not None or layers is not None:
            raise typer.BadParameter("--eos and --layers go only with --model and --preset")
        return None
    return resolve_with_vocabulary(preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocabulary=vocabulary)


def _choice(option: str, word: str, choices: tuple[str, ...]) -> str:
    if word.strip() not in choices:
        raise InvalidInput(f"{option}: found {word[:40]!r}, expected some of {', '.join(choices)}; name them")
    return word.strip()


def _numbers(option: str, words: str) -> tuple[int, ...]:
    parts = words.split(",")
    if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", part) for part in parts):
        raise InvalidInput(f"{option}: found {words[:40]!r}, expected whole numbers with commas; write them as 1,4,16")
    return tuple(dict.fromkeys(int(part) for part in parts))
