"""`engram count`: which n-grams a corpus holds, and how often."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import emit, progress, say, show, show_table
from engram_cli.options import (
    CorpusFormat,
    CorpusPaths,
    DeadField,
    DecodeErrorsChoice,
    DocumentEnd,
    DryRun,
    Exclude,
    Field,
    Force,
    Glob,
    JsonFlag,
    Memory,
    RequestField,
    Restart,
    SkipBad,
    Threads,
    TokenDtype,
)
from engram_tables.corpus.documents import DecodeErrors, ReadOptions
from engram_tables.errors import InvalidInput
from engram_tables.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.count_corpus import CountedCorpus, CountPlan
    from engram_tables.corpus.counts_query import CountedNgram


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
    glob: Glob = "*",
    exclude: Exclude = None,
    format: CorpusFormat = None,
    field: Field = "text",
    request_field: RequestField = None,
    dead_field: DeadField = None,
    document_end: DocumentEnd = None,
    dtype: TokenDtype = None,
    decode_errors: DecodeErrorsChoice = DecodeErrors.STRICT,
    skip_bad: SkipBad = 0,
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
      zcat dump.gz | engram count - --vocab v4.vocab.parquet -o counts --json | jq .orders
    """
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.corpus.count_corpus import plan_count, refuse_overlap, run_count

    if next_token not in (None, "raw"):
        raise InvalidInput(f"--next: found {next_token!r}, expected raw; canonical ids alone are counted without it")
    vocabulary = load_vocabulary(vocab)
    memory_bytes = parse_bytes(memory)
    plan = plan_count(
        corpus,
        vocabulary=vocabulary,
        orders=_parse_orders(orders),
        output=output,
        glob=glob,
        exclude=exclude or (),
        options=ReadOptions(
            format=format,
            field=field,
            request_field=request_field,
            dead_field=dead_field,
            document_end=document_end,
            bin_dtype=dtype,
            decode_errors=decode_errors,
            skip_bad=skip_bad,
        ),
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
    counted = run_count(plan, memory_bytes=memory_bytes, threads=threads, restart=restart, force=force, stage=progress)
    _narrate(counted)
    best = _top(plan, vocabulary, top)
    if json_lines:
        emit(_record(plan, counted, best))
    else:
        _show(plan, counted, best)


def _parse_orders(text: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*-?[0-9]{1,9}\s*", part) for part in parts):
        raise InvalidInput(f"--orders: found {text[:40]!r}, expected numbers with commas between, as 2,3,4")
    return [int(part) for part in parts]


def _say_skipped(plan: CountPlan) -> None:
    if plan.text is not None:
        for reason, n_entries in sorted(plan.text.corpus.skipped.items()):
            say(f"left out: {n_entries:,} directory entries, {reason.value}")


def _narrate(counted: CountedCorpus) -> None:
    figures = counted.manifest["corpus"]
    if figures["replaced_bytes"]:
        say(f"{figures['replaced_bytes']:,} bytes are not UTF-8 and became U+FFFD")
    if figures["n_bad_lines"]:
        say(f"left out: {figures['n_bad_lines']:,} malformed lines")
    if counted.n_reused:
        say(f"went on from {counted.n_reused:,} runs and parts of an earlier run")


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


def _top(plan: CountPlan, vocabulary: Vocabulary, k: int) -> dict[int, list[CountedNgram]]:
    from engram_tables.corpus.counts_query import top_ngrams
    from engram_tables.corpus.counts_store import open_counts

    with open_counts(plan.output) as counts:
        return dict(top_ngrams(counts, k, vocabulary=vocabulary)) if k else {order: [] for order in counts.orders}


def _record(plan: CountPlan, counted: CountedCorpus, best: dict[int, list[CountedNgram]]) -> dict[str, Any]:
    manifest = counted.manifest
    return {
        "schema": "engram.count/2",
        "output": str(plan.output),
        "manifest_sha256": manifest["manifest_sha256"],
        "vocab_sha256": plan.subject.vocab_sha256,
        "corpus": manifest["corpus"],
        "skipped": _skipped(plan),
        "next": manifest["next"],
        "pad_id": manifest["pad_id"],
        "min_count": manifest["min_count"],
        "n_runs": counted.n_runs,
        "n_reused": counted.n_reused,
        "written_bytes": sum(file["file_bytes"] for file in manifest["files"]),
        "orders": [
            {
                "order": int(order),
                **figures,
                "top": [
                    {"ids": list(ngram.ids), "forms": list(ngram.forms or ()), "count": ngram.count}
                    for ngram in best[int(order)]
                ],
            }
            for order, figures in sorted(manifest["orders"].items())
        ],
    }


def _show(plan: CountPlan, counted: CountedCorpus, best: dict[int, list[CountedNgram]]) -> None:
    manifest = counted.manifest
    corpus, files = manifest["corpus"], manifest["files"]
    show(
        f"{corpus['n_documents']:,} documents, {format_bytes(corpus['read_bytes'])}, {corpus['n_tokens']:,} tokens "
        f"over {plan.subject.canonical_size:,} canonical ids"
    )
    rows = []
    for order, told in sorted(manifest["orders"].items()):
        mean = f"{told['n_total'] / told['n_distinct']:.2f}" if told["n_distinct"] else "-"
        file_bytes = sum(file["file_bytes"] for file in files if file["order"] == int(order))
        row = [order, f"{told['n_total']:,}", f"{told['n_distinct']:,}", mean, format_bytes(file_bytes)]
        rows.append([*row, f"{told['dropped_distinct']:,}"] if plan.subject.min_count > 1 else row)
    titles = ["order", "n-grams", "distinct", "mean count", "on disk"]
    if plan.subject.min_count > 1:
        titles.append(f"below {plan.subject.min_count}")
    show_table("", titles, rows)
    for order, ngrams in best.items():
        if not ngrams:
            continue
        lines = [
            [
                " ".join(json.dumps(form, ensure_ascii=False) for form in ngram.forms or ()),
                f"{ngram.count:,}",
                f"{100 * (ngram.share or 0):.3f} %",
            ]
            for ngram in ngrams
        ]
        show_table(f"most frequent, order {order}", ["canonical forms", "count", "share"], lines)
    show(f"written: {plan.output}")
