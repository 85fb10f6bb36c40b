"""`engram count`: which n-grams a corpus holds, and how often."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import emit, progress, say, show, show_table
from engram_cli.options import DryRun, Exclude, Force, Glob, JsonFlag, Threads
from engram_tables.corpus.readers import DecodeErrors
from engram_tables.errors import InvalidInput
from engram_tables.units import format_bytes

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.count_corpus import CountedCorpus, CountPlan
    from engram_tables.corpus.counting import NgramCounts


def count(
    corpus: Annotated[
        list[str],
        typer.Argument(
            metavar="CORPUS...", help="Text files, directories, and - for standard input.", show_default=False
        ),
    ],
    vocab: Annotated[
        Path, typer.Option("--vocab", metavar="FILE", help="A vocabulary written by `engram build-vocab`.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The counts directory to write.")],
    orders: Annotated[
        str,
        typer.Option("--orders", metavar="N,N", help="Orders to count: 1 to 4, and 5 for vocabularies below 2^15 ids."),
    ] = "2,3,4",
    glob: Glob = "*",
    exclude: Exclude = None,
    decode_errors: Annotated[
        DecodeErrors,
        typer.Option("--decode-errors", help="Stop at bytes that are not UTF-8, or make each of them U+FFFD."),
    ] = DecodeErrors.STRICT,
    top: Annotated[int, typer.Option("--top", min=0, help="Most frequent n-grams to print for each order.")] = 20,
    threads: Threads = None,
    force: Force = False,
    dry_run: DryRun = False,
    json_lines: JsonFlag = False,
) -> None:
    """Count a corpus's n-grams of canonical ids, exactly, and write them as sorted Parquet.

    One file is one document, and no n-gram crosses from one into the next. Entries of a directory that are left
    out (other names, hidden ones, links to nothing) are counted and reported.

    \b
    Examples:
      engram count book.txt --vocab v4.vocab.parquet -o counts
      engram count /usr/lib/python3 --glob '*.py' --exclude test --vocab v4.vocab.parquet --orders 2,3 -o counts
      zcat dump.gz | engram count - --vocab v4.vocab.parquet -o counts --json | jq .orders
    """
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.corpus.count_corpus import plan_count, refuse_overlap, run_count

    vocabulary = load_vocabulary(vocab)
    plan = plan_count(
        corpus,
        vocabulary=vocabulary,
        orders=_parse_orders(orders),
        output=output,
        glob=glob,
        exclude=exclude or (),
        decode_errors=decode_errors,
        force=force,
    )
    refuse_overlap(output, [vocab])
    _say_skipped(plan)
    if dry_run:
        _show_plan(plan, json_lines=json_lines)
        return
    counted = run_count(plan, threads=threads, force=force, stage=progress)
    if counted.corpus.replaced_files:
        say(
            f"{counted.corpus.replaced_bytes:,} bytes in {counted.corpus.replaced_files:,} files are not UTF-8 and "
            "became U+FFFD"
        )
    if json_lines:
        emit(_record(plan, counted, vocabulary, top))
    else:
        _show(plan, counted, vocabulary, top)


def _parse_orders(text: str) -> list[int]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*-?[0-9]{1,9}\s*", part) for part in parts):
        raise InvalidInput(f"--orders: found {text[:40]!r}, expected numbers with commas between, as 2,3,4")
    return [int(part) for part in parts]


def _say_skipped(plan: CountPlan) -> None:
    for reason, n_entries in sorted(plan.corpus.skipped.items()):
        say(f"left out: {n_entries:,} directory entries, {reason.value}")


def _show_plan(plan: CountPlan, *, json_lines: bool) -> None:
    files = [f"order-{order}/part-*.parquet" for order in plan.orders]
    if json_lines:
        emit(
            {
                "schema": "engram.count-plan/1",
                "n_documents": len(plan.corpus.files),
                "corpus_bytes": plan.corpus.total_bytes,
                "skipped": _skipped(plan),
                "orders": list(plan.orders),
                "vocab_sha256": plan.vocabulary.map_sha256,
                "output": str(plan.output),
                "written_bytes": None,
            }
        )
        return
    show(f"would read  {len(plan.corpus.files):,} documents, {format_bytes(plan.corpus.total_bytes)}")
    show(f"would write {plan.output}: counts.json, {', '.join(files)}")
    show("            bytes unknown until the distinct n-grams are counted")


def _skipped(plan: CountPlan) -> dict[str, int]:
    return {reason.name.lower(): n_entries for reason, n_entries in sorted(plan.corpus.skipped.items())}


def _forms(vocabulary: Vocabulary, ngram: list[int]) -> list[str]:
    return [vocabulary.form(canonical_id) for canonical_id in ngram]


def _top(counts: NgramCounts, vocabulary: Vocabulary, k: int) -> list[dict[str, Any]]:
    found = []
    for position in counts.top(k).tolist():
        ngram = counts.columns[:, position].tolist()
        found.append({"ids": ngram, "forms": _forms(vocabulary, ngram), "count": int(counts.counts[position])})
    return found


def _record(plan: CountPlan, counted: CountedCorpus, vocabulary: Vocabulary, top: int) -> dict[str, Any]:
    corpus = counted.corpus
    return {
        "schema": "engram.count/1",
        "output": str(plan.output),
        "manifest_sha256": counted.manifest["manifest_sha256"],
        "vocab_sha256": vocabulary.map_sha256,
        "n_documents": counted.stream.n_documents,
        "n_tokens": counted.stream.n_tokens,
        "corpus_bytes": corpus.read_bytes,
        "corpus_sha256": corpus.sha256,
        "skipped": _skipped(plan),
        "replaced_files": corpus.replaced_files,
        "replaced_bytes": corpus.replaced_bytes,
        "written_bytes": sum(file["file_bytes"] for file in counted.manifest["files"]),
        "orders": [
            {
                "order": order,
                "n_distinct": found.n_distinct,
                "n_total": found.n_total,
                "top": _top(found, vocabulary, top),
            }
            for order, found in counted.counts.items()
        ],
    }


def _show(plan: CountPlan, counted: CountedCorpus, vocabulary: Vocabulary, top: int) -> None:
    stream, files = counted.stream, counted.manifest["files"]
    show(
        f"{stream.n_documents:,} documents, {format_bytes(counted.corpus.read_bytes)}, {stream.n_tokens:,} tokens "
        f"over {vocabulary.canonical_size:,} canonical ids"
    )
    rows = []
    for order, found in counted.counts.items():
        mean = f"{found.n_total / found.n_distinct:.2f}" if found.n_distinct else "-"
        file_bytes = sum(file["file_bytes"] for file in files if file["order"] == order)
        rows.append([order, f"{found.n_total:,}", f"{found.n_distinct:,}", mean, format_bytes(file_bytes)])
    show_table("", ["order", "n-grams", "distinct", "mean count", "on disk"], rows)
    for order, found in counted.counts.items():
        best = _top(found, vocabulary, top)
        if not best:
            continue
        lines = [
            [
                " ".join(json.dumps(form, ensure_ascii=False) for form in entry["forms"]),
                f"{entry['count']:,}",
                f"{100 * entry['count'] / found.n_total:.3f} %",
            ]
            for entry in best
        ]
        show_table(f"most frequent, order {order}", ["canonical forms", "count", "share"], lines)
    show(f"written: {plan.output}")
