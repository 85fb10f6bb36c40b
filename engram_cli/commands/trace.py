"""`engram trace`: which keys and rows a corpus looks up, and how that traffic falls on the rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import emit, progress, say, show, show_table
from engram_cli.corpus_reading import CorpusReading, reads_corpus
from engram_cli.options import (
    CorpusPaths,
    DryRun,
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
from engram_cli.spec_source import resolve_with_vocabulary
from engram_tables.corpus.traffic.trace_contents import Store
from engram_tables.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from engram_tables.corpus.traffic.row_traffic import HeadTraffic, Traffic
    from engram_tables.corpus.traffic.trace_writer import TracedTokens, TracePlan


@reads_corpus
def trace(
    corpus: CorpusPaths,
    preset: Preset = None,
    spec: SpecFile = None,
    model: ModelPath = None,
    eos: Eos = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The trace directory to write.")
    ] = None,
    store: Annotated[
        Store,
        typer.Option("--store", help="What to keep of each token; whatever else a trace is asked for, it derives."),
    ] = Store.KEYS,
    hits: Annotated[bool, typer.Option("--hits", help="Write how often each row is hit, a file a layer.")] = False,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="Bound of the memory used. Never changes a result.")
    ] = "1GiB",
    threads: Threads = None,
    *,
    reading: CorpusReading,
    force: Force = False,
    dry_run: DryRun = False,
    json_lines: JsonFlag = False,
) -> None:
    """Write the keys and row ids of a token stream, and report the traffic on the rows.

    CORPUS is what `engram tokenize` wrote, read as it is, or anything that it reads.

    For every layer, order and head: how many rows are touched, how evenly, and how many n-grams share a row, beside
    what a uniform hash of as many distinct n-grams would give. A row that the sample left untouched is called dead only
    where the sample is large enough for that.

    \b
    Examples:
      engram trace tokens --preset deepseek-v4.1-flash --vocab v4.vocab.parquet -o trace
      engram trace tokens --preset deepseek-v4.1-flash --vocab v4.vocab.parquet --store none --memory 4GiB
      engram trace tokens --spec mine.json --vocab v4.vocab.parquet -o trace --store both --hits --json | jq .heads
    """
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.corpus.outputs import refuse_overlap
    from engram_tables.corpus.tokens.tokenize_corpus import tokens_of
    from engram_tables.corpus.traffic.trace_writer import plan_trace, run_trace

    vocabulary = None if vocab is None else load_vocabulary(vocab)
    resolved = resolve_with_vocabulary(
        preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocabulary=vocabulary
    )
    if output is not None:
        refuse_overlap(output, [*corpus, *(file for file in (vocab, spec, model) if file is not None)])
    with (
        tokens_of(
            corpus,
            vocabulary=vocabulary,
            **reading.files(),
            options=reading.options(),
            workers=threads,
            stage=progress,
        ) as source,
    ):
        plan = plan_trace(
            resolved,
            source,
            vocabulary,
            output=output,
            store=store,
            hits=hits,
            memory_bytes=parse_bytes(memory),
            threads=threads,
            force=force,
        )
        if dry_run:
            _show_plan(plan, json_lines=json_lines)
            return
        traced = run_trace(plan, force=force, stage=progress)
    _warn(traced.traffic)
    if json_lines:
        emit(_record(plan, traced))
    else:
        _show(plan, traced)


def _show_plan(plan: TracePlan, *, json_lines: bool) -> None:
    tokens = plan.addresses.tokens
    written_bytes = sum(n_bytes for _, n_bytes in plan.files)
    if json_lines:
        emit(
            {
                "schema": "engram.trace-plan/1",
                "output": None if plan.output is None else str(plan.output),
                "fingerprint": plan.addresses.spec.fingerprint,
                "store": plan.store.value,
                "n_tokens": tokens.n_tokens,
                "n_documents": tokens.n_documents,
                "token_bytes": plan.token_bytes,
                "files": [{"name": name, "file_bytes": n_bytes} for name, n_bytes in plan.files],
                "written_bytes": written_bytes,
            }
        )
        return
    show(f"would read  {tokens.n_documents:,} documents, {tokens.n_tokens:,} tokens")
    if plan.output is None:
        show("would write nothing but the report")
        return
    show(f"would write {plan.output}: {format_bytes(written_bytes)} and trace.json, {plan.token_bytes:,} B a token")
    for name, n_bytes in plan.files:
        show(f"            {name}  {n_bytes:,} B")


def _warn(traffic: Traffic) -> None:
    """Say for which orders untouched rows mean nothing."""
    by_order: dict[int, list[HeadTraffic]] = {}
    for head in traffic.undecided:
        by_order.setdefault(head.order, []).append(head)
    for order, heads in by_order.items():
        head = max(heads, key=lambda each: each.n_ngrams_needed)
        by_chance = head.n_rows - head.touched_expected.mean
        say(
            f"order {order}: the sample is too small to call a row dead: {head.n_ngrams:,} distinct n-grams leave "
            f"{100 * by_chance / head.n_rows:.1f} % of {head.n_rows:,} rows untouched by chance; "
            f"{head.n_ngrams_needed:,} are needed"
        )


def _record(plan: TracePlan, traced: TracedTokens) -> dict[str, Any]:
    traffic = traced.traffic
    return {
        "schema": "engram.traffic/1",
        "output": None if plan.output is None else str(plan.output),
        "manifest_sha256": None if traced.manifest is None else traced.manifest["manifest_sha256"],
        "spec": traffic.spec.name,
        "fingerprint": traffic.spec.fingerprint,
        "vocab_sha256": None if plan.vocabulary is None else plan.vocabulary.map_sha256,
        "tokens_sha256": getattr(plan.addresses.tokens, "sha256", None),
        "n_tokens": traffic.n_tokens,
        "n_documents": traffic.n_documents,
        "n_dead_tokens": traffic.n_dead,
        "store": plan.store.value,
        "token_bytes": plan.token_bytes,
        "written_bytes": sum(n_bytes for _, n_bytes in plan.files),
        "memory_bytes": traffic.plan.memory_bytes,
        "n_passes": traffic.n_passes,
        "heads": [_head_record(head) for head in traffic.heads],
    }


def _head_record(head: HeadTraffic) -> dict[str, Any]:
    from engram_tables.corpus.traffic.row_traffic import HOTTEST

    touched, dispersion = head.touched_expected, head.dispersion
    return {
        "layer_id": head.layer_id,
        "order": head.order,
        "head": head.head,
        "first_row": head.first_row,
        "n_rows": head.n_rows,
        "n_lookups": head.n_lookups,
        "n_ngrams": head.n_ngrams,
        "load": head.n_ngrams / head.n_rows,
        "n_touched": head.n_touched,
        "n_touched_expected": touched.mean,
        "n_touched_deviation": touched.deviation,
        "n_touched_z": touched.z_score(head.n_touched),
        "most_hits": head.most_hits,
        "gini": head.gini,
        "hottest": [
            {"rows_share": rows, "lookups_share": share} for rows, share in zip(HOTTEST, head.hottest, strict=True)
        ],
        "sharing": [
            {"n_ngrams": n, "n_rows": rows, "n_rows_expected": expected} for n, rows, expected in head.sharing()
        ],
        "shared_ngrams_share_expected": head.shared_expected,
        "shared_lookups_share": head.shared_lookups / head.n_lookups if head.n_lookups else None,
        "dispersion": None if dispersion is None else dispersion.ratio,
        "dispersion_z": None if dispersion is None else dispersion.z_score,
        "n_untouched_by_chance": head.n_rows - touched.mean,
        "n_ngrams_needed": head.n_ngrams_needed,
        "n_dead_rows": head.n_untouched if head.shows_dead_rows else None,
    }


def _show(plan: TracePlan, traced: TracedTokens) -> None:
    traffic = traced.traffic
    show(
        f"{traffic.n_documents:,} documents, {traffic.n_tokens:,} tokens, {traffic.n_dead:,} of them dead; "
        f"{traffic.spec.name}"
    )
    show_table("rows touched, and how evenly they are hit", _TOUCHED, [_touched(head) for head in traffic.heads])
    show_table("distinct n-grams a row", _SHARED, [_shared(head) for head in traffic.heads])
    if plan.output is not None:
        written_bytes = sum(n_bytes for _, n_bytes in plan.files)
        show(f"written: {plan.output}, {format_bytes(written_bytes)}, {plan.token_bytes:,} B a token")


_HEAD = ["layer", "order", "head"]
_TOUCHED = [*_HEAD, "rows", "distinct n-grams", "touched", "share", "uniform", "z", "hottest 0.1 %", "1 %", "10 %",
            "most hits", "Gini", "dead"]  # fmt: skip
_SHARED = [*_HEAD, "load", "0", "uniform", "1", "uniform", "2", "uniform", "3 and more", "uniform", "lookups shared",
           "dispersion", "z"]  # fmt: skip


def _touched(head: HeadTraffic) -> list[str]:
    expected = head.touched_expected
    return [
        str(head.layer_id), str(head.order), str(head.head), f"{head.n_rows:,}", f"{head.n_ngrams:,}",
        f"{head.n_touched:,}", _percent(head.n_touched / head.n_rows), _percent(expected.mean / head.n_rows),
        _figure(expected.z_score(head.n_touched)), *(_percent(share) for share in head.hottest),
        f"{head.most_hits:,}", _figure(head.gini, 3), f"{head.n_untouched:,}" if head.shows_dead_rows else "unknown",
    ]  # fmt: skip


def _shared(head: HeadTraffic) -> list[str]:
    sharing = [(rows / head.n_rows, expected / head.n_rows) for _, rows, expected in head.sharing()]
    sharing += [(0.0, 0.0)] * (3 - len(sharing))
    few = [part for pair in sharing[:3] for part in pair]
    more = [sum(pair[which] for pair in sharing[3:]) for which in (0, 1)]
    dispersion = head.dispersion
    return [
        str(head.layer_id), str(head.order), str(head.head), f"{head.n_ngrams / head.n_rows:.4f}",
        *(_percent(share) for share in (*few, *more)),
        _percent(head.shared_lookups / head.n_lookups if head.n_lookups else None),
        _figure(None if dispersion is None else dispersion.ratio, 4),
        _figure(None if dispersion is None else dispersion.z_score),
    ]  # fmt: skip


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
