"""`engram count`: which n-grams a corpus holds, and how often."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.console import emit, progress, say, show
from engram_cli.corpus_reading import CorpusReading, reads_corpus
from engram_cli.counted import counted_record, narrate_counted, show_counted, top_of
from engram_cli.options import (
    CorpusPaths,
    DryRun,
    Force,
    JsonFlag,
    Memory,
    Restart,
    Threads,
)
from engram_tables.errors import InvalidInput
from engram_tables.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from engram_tables.corpus.counts.count_corpus import CountPlan


@reads_corpus
def count(
    corpus: CorpusPaths,
    vocab: Annotated[
        Path, typer.Option("--vocab", metavar="FILE", help="A vocabulary written by `engram build-vocab`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The counts directory to write.")],
    orders: Annotated[
        str, typer.Option("--orders", metavar="N,N", help="Orders to count, 1 to 5; order 1 is always counted.")
    ] = "2,3,4",
    next_token: Annotated[
        str | None,
        typer.Option("--next", metavar="raw", help="Tell n-grams apart by the raw token that follows as well."),
    ] = None,
    pad_token: Annotated[
        int | None,
        typer.Option(
            "--pad-token",
            metavar="ID",
            help="Count the windows that begin before a document too, with this token id in the missing places.",
        ),
    ] = None,
    min_count: Annotated[
        int, typer.Option("--min-count", min=1, help="Leave out n-grams that occur less often, order 1 excepted.")
    ] = 1,
    memory: Memory = "2GiB",
    threads: Threads = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="What counts: local (threads) or ray (tasks on a cluster).")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="ADDRESS",
            envvar="RAY_ADDRESS",
            help="A running Ray cluster: HOST:PORT or auto; a local one is started without.",
        ),
    ] = None,
    *,
    reading: CorpusReading,
    top: Annotated[int, typer.Option("--top", min=0, help="Most frequent n-grams to print for each order.")] = 20,
    restart: Restart = False,
    force: Force = False,
    dry_run: DryRun = False,
    json_lines: JsonFlag = False,
) -> None:
    """Count a corpus's n-grams of canonical ids, exactly, and write them as sorted Parquet.

    CORPUS is text, JSONL, Parquet or tokens, or what `engram tokenize` wrote, which is read as it is. No n-gram
    crosses from one document into the next, or a dead position. The result has the same bytes for any memory, threads
    and division of the corpus into files. A run that is stopped leaves what is finished in DIR.work, and the same
    command goes on there.

    \b
    Examples:
      engram count book.txt --vocab v4.vocab.parquet -o counts
      engram count tokens --vocab v4.vocab.parquet --orders 2,3,4,5 --memory 8GiB -o counts
      engram count 'dump/*.jsonl.zst' --field content --vocab v4.vocab.parquet --min-count 2 -o counts
      engram count tokens --vocab v4.vocab.parquet --orders 1,2,3 --next raw -o followed
      engram count tokens --vocab v4.vocab.parquet --engine ray --ray-address head:6379 -o counts
      zcat dump.gz | engram count - --vocab v4.vocab.parquet -o counts --json | jq .orders
    """
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.corpus.counts.count_corpus import Engine, plan_count, run_count
    from engram_tables.corpus.outputs import refuse_overlap

    if engine not in ("local", "ray"):
        raise InvalidInput(f"--engine: found {engine!r}, expected local or ray")
    if ray_address is not None and engine != "ray":
        raise InvalidInput(
            f"--ray-address: found {ray_address!r} for the engine {engine}, expected --engine ray with it"
        )
    if next_token not in (None, "raw"):
        raise InvalidInput(f"--next: found {next_token!r}, expected raw; canonical ids alone are counted without it")
    vocabulary = load_vocabulary(vocab)
    memory_bytes = parse_bytes(memory)
    plan = plan_count(
        corpus,
        vocabulary=vocabulary,
        orders=_parse_orders(orders),
        output=output,
        **reading.files(),
        options=reading.options(),
        next_raw=next_token is not None,
        pad_token=pad_token,
        min_count=min_count,
        force=force,
    )
    refuse_overlap(output, [vocab])
    _say_skipped(plan)
    if dry_run:
        _show_plan(plan, json_lines=json_lines)
        return
    counted = run_count(
        plan,
        memory_bytes=memory_bytes,
        threads=threads,
        engine=Engine(engine),
        ray_address=ray_address,
        restart=restart,
        force=force,
        stage=progress,
    )
    narrate_counted(counted)
    best = top_of(output, vocabulary, top)
    if json_lines:
        emit(counted_record("engram.count/2", output, counted, best) | {"skipped": _skipped(plan)})
    else:
        show_counted(output, counted, best)


def _parse_orders(text: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*-?[0-9]{1,9}\s*", part) for part in parts):
        raise InvalidInput(f"--orders: found {text[:40]!r}, expected numbers with commas between, as 2,3,4")
    return [int(part) for part in parts]


def _say_skipped(plan: CountPlan) -> None:
    if plan.text is not None:
        for reason, n_entries in sorted(plan.text.corpus.skipped.items()):
            say(f"left out: {n_entries:,} directory entries, {reason.value}")


def _show_plan(plan: CountPlan, *, json_lines: bool) -> None:
    n_files = len(plan.text.corpus.files) if plan.text else 0
    corpus_bytes = plan.text.corpus.total_bytes if plan.text else 0
    if json_lines:
        emit(
            {
                "schema": "engram.count-plan/2",
                "token_stores": [str(path) for path in plan.stores],
                "n_files": n_files,
                "corpus_bytes": corpus_bytes,
                "skipped": _skipped(plan),
                "orders": list(plan.orders),
                "next": "raw" if plan.subject.next_size else None,
                "pad_id": plan.subject.pad_id,
                "min_count": plan.subject.min_count,
                "vocab_sha256": plan.subject.vocab_sha256,
                "output": str(plan.output),
                "work": str(plan.work),
                "written_bytes": None,
            }
        )
        return
    if plan.text:
        show(f"would read  {n_files:,} files, {format_bytes(corpus_bytes)}")
    for path in plan.stores:
        show(f"would read  {path}, tokens")
    files = [f"order-{order}/part-*.parquet" for order in plan.orders]
    show(f"would write {plan.output}: counts.json, {', '.join(files)}")
    show("            bytes unknown until the distinct n-grams are counted")


def _skipped(plan: CountPlan) -> dict[str, int]:
    if plan.text is None:
        return {}
    return {reason.name.lower(): n_entries for reason, n_entries in sorted(plan.text.corpus.skipped.items())}
