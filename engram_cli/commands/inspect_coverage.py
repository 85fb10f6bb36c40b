"""`engram inspect coverage`: which rows a corpus touches, against a uniform hash."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import check_found, emit, progress, show, show_table, show_wrapped
from engram_cli.corpus_reading import CorpusReading, reads_corpus
from engram_cli.inspected import (
    CountsDir,
    OnlyLayers,
    OnlyOrders,
    SubjectPlace,
    finite,
    join,
    percent,
    plural,
    show_legend,
)
from engram_cli.options import JsonFlag, Threads, VocabFile
from engram_tables.units import parse_bytes, parse_integers

if TYPE_CHECKING:
    from pathlib import Path

    from engram_tables.inspect.coverage import Coverage, HeadCoverage

_LEGEND = {
    "n-grams": "distinct n-grams of the corpus of that order, each of which owns one row of every head",
    "rows hit": "share of the head's rows that at least one of them owns; expected: what a hash that spreads them "
    "evenly would hit",
    "z": "how far the two lie apart, in standard deviations: -3 to 3 is chance, below -6 rows are missed, "
    "above 6 fewer than chance misses; between, a larger text decides",
    "pairs": "pairs of n-grams that share a row, over those that chance makes: 1 as it should be, 2 where a head "
    "reaches half of its rows",
    "verdict": "even: as a uniform hash; confined: only every second, third, … row can be reached; crowded: rows are "
    "missed or overfull; spread: more even than chance; too few: this sample could not tell",
}


@reads_corpus
def inspect_coverage(
    subject: SubjectPlace,
    corpus: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CORPUS]...", help="Text, or tokens of `engram tokenize`; or give --counts."),
    ] = None,
    counts: CountsDir = None,
    vocab: VocabFile = None,
    orders: OnlyOrders = None,
    layers: OnlyLayers = None,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="Bound of the memory used. Never changes a result.")
    ] = "4GiB",
    threads: Threads = None,
    *,
    reading: CorpusReading,
    all_heads: Annotated[bool, typer.Option("--all", help="Print a line for every head.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with 6 if a head does not spread n-grams as it should.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Show which rows a corpus touches, head by head, against a hash that spreads n-grams evenly.

    A wrong multiplier, or a modulus that shares a factor with one, makes a head reach only some of its rows; here such
    a head is named. Whether a sample is large enough to see that is said, too, and which rows that nothing hits may be
    called dead. Only the addressing is looked at; no row is read.

    One line an order, from its most uneven head, or with --all one a head. Of a preset whose layers are not certain,
    --layers names them; else it chooses.

    \b
    Examples:
      engram inspect coverage ./table --counts ./counts
      engram inspect coverage deepseek-v4.1-flash tokens --vocab v4.vocab.parquet
      engram inspect coverage mine.json src --glob '*.py' --vocab v4.vocab.parquet --all
      engram inspect coverage ./table --counts ./counts --json | jq '.heads[] | select(.verdict != "even")'
    """
    from engram_tables.inspect.coverage import coverage_of_counts

    if bool(corpus) == (counts is not None):
        raise typer.BadParameter("give a corpus or --counts, and not both")
    spec, vocabulary, chosen = subject_of(subject, vocab, layers)
    wanted = None if orders is None else parse_integers(orders)
    memory_bytes = parse_bytes(memory)
    if counts is not None:
        from engram_tables.corpus.counts.counts_store import open_counts

        with open_counts(counts) as opened:
            found = coverage_of_counts(
                spec, opened, layer_ids=chosen, orders=wanted, memory_bytes=memory_bytes, threads=threads,
                stage=progress,
            )  # fmt: skip
    else:
        found = _of_corpus(
            spec, vocabulary, corpus or [], reading, memory_bytes=memory_bytes, threads=threads
        ).of(layer_ids=chosen, orders=wanted)  # fmt: skip
    if json:
        emit(_record(spec, found))
    else:
        _show(spec, found, all_heads=all_heads)
    if strict and found.faults:
        check_found(f"{len(found.faults)} of {len(found.heads)} heads do not spread n-grams evenly over their rows")


def subject_of(place: str, vocab: Path | None, layers: str | None) -> tuple[Any, Any, list[int] | None]:
    """Spec, vocabulary, and the layers to look at: of a preset they are the spec's, of anything else a choice."""
    from engram_tables.address.presets import PRESETS
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.inspect.subject import find_subject

    vocabulary = None if vocab is None else load_vocabulary(vocab)
    chosen = None if layers is None else parse_integers(layers)
    uncertain = place in PRESETS and PRESETS[place].outline().layer_ids is None
    subject = find_subject(place, layers=chosen if uncertain else None, vocabulary=vocabulary)
    return subject.spec, subject.vocabulary, chosen


def _of_corpus(
    spec: Any, vocabulary: Any, corpus: list[str], reading: CorpusReading, *, memory_bytes: int, threads: int | None
) -> Coverage:  # fmt: skip
    from engram_tables.corpus.tokens.tokenize_corpus import tokens_of
    from engram_tables.corpus.traffic.token_addresses import TokenAddresses
    from engram_tables.inspect.coverage import coverage_of_tokens

    with tokens_of(
        corpus, vocabulary=vocabulary, **reading.files(), options=reading.options(), workers=threads, stage=progress,
    ) as tokens:  # fmt: skip
        addresses = TokenAddresses(spec, tokens, vocabulary)
        return coverage_of_tokens(addresses, memory_bytes=memory_bytes, threads=threads, stage=progress)


def _record(spec: Any, found: Coverage) -> dict[str, Any]:
    record: dict[str, Any] = finite(
        {
            "schema": "engram.inspect-coverage/1",
            "spec": spec.name,
            "fingerprint": spec.fingerprint,
            "basis": found.basis,
            "n_tokens": found.n_tokens,
            "n_faults": len(found.faults),
            "n_undecided": len(found.undecided),
            "heads": [_head_record(head) for head in found.heads],
        }
    )
    return record


def _head_record(head: HeadCoverage) -> dict[str, Any]:
    traffic = head.traffic
    dispersion = traffic.dispersion
    return {
        "layer_id": traffic.layer_id,
        "order": traffic.order,
        "head": traffic.head,
        "first_row": traffic.first_row,
        "n_rows": traffic.n_rows,
        "n_lookups": traffic.n_lookups,
        "n_ngrams": traffic.n_ngrams,
        "load": traffic.n_ngrams / traffic.n_rows,
        "n_touched": traffic.n_touched,
        "n_touched_expected": traffic.touched_expected.mean,
        "n_touched_z": head.touched_z,
        "n_collisions": head.collisions,
        "n_collisions_expected": head.collisions_expected,
        "dispersion": None if dispersion is None else dispersion.ratio,
        "dispersion_z": None if dispersion is None else dispersion.z_score,
        "stride": head.stride,
        "n_ngrams_needed": traffic.n_ngrams_needed,
        "n_dead_rows": traffic.n_untouched if traffic.shows_dead_rows else None,
        "verdict": head.evenness.value,
    }


def _show(spec: Any, found: Coverage, *, all_heads: bool) -> None:
    what = "the text" if found.basis == "tokens" else "the counted text"
    show_wrapped(
        f"spec {spec.name!r}: {plural(len(found.heads), 'head')}, {found.n_tokens:,} tokens of {what}", indent=2
    )
    if not all_heads:
        show("for each order the head that is least even; --all shows every head")
    heads = found.heads if all_heads else _worst(found.heads)
    columns = ("layer", "order", "head", "rows", "n-grams", "rows hit", "expected", "z", "pairs", "verdict")
    show_table("", columns, [_cells(head) for head in heads])
    if not found.faults:
        judged = len(found.heads) - len(found.undecided)
        show_wrapped(f"no head is uneven, of {judged:,} that this sample can judge" if judged else
                     "no head can be judged by this sample", indent=2)  # fmt: skip
    for head in found.faults:
        show_wrapped(_fault(head), indent=2)
    _warn(found)
    show()
    show_legend(_LEGEND)


def _worst(heads: Iterable[HeadCoverage]) -> list[HeadCoverage]:
    """Of each layer and order the head whose collisions are furthest from what they should be; faults first."""

    def badness(head: HeadCoverage) -> tuple[bool, float]:
        z = head.traffic.dispersion.z_score if head.traffic.dispersion is not None else None
        return head.evenness.value in ("confined", "crowded"), max(abs(z or 0.0), abs(head.touched_z or 0.0))

    grouped = groupby(heads, key=lambda head: (head.traffic.layer_id, head.traffic.order))
    return [max(of_order, key=badness) for _, of_order in grouped]


def _cells(head: HeadCoverage) -> list[str]:
    traffic = head.traffic
    z, expected = head.touched_z, head.collisions_expected
    return [
        str(traffic.layer_id), str(traffic.order), str(traffic.head), f"{traffic.n_rows:,}", f"{traffic.n_ngrams:,}",
        percent(traffic.n_touched / traffic.n_rows, 2), percent(traffic.touched_expected.mean / traffic.n_rows, 2),
        "-" if z is None else f"{z:.1f}", "-" if not expected else f"{head.collisions / expected:.4g}",
        head.evenness.value,
    ]  # fmt: skip


def _fault(head: HeadCoverage) -> str:
    traffic = head.traffic
    name = f"layer {traffic.layer_id}, order {traffic.order}, head {traffic.head}"
    if head.evenness.value == "confined":
        return (
            f"{name} is confined: every row that is hit lies a multiple of {head.stride} rows from the others, so "
            f"that at most {percent(1 / (head.stride or 1))} of its {traffic.n_rows:,} rows can ever be hit; its "
            f"modulus shares the factor {head.stride} with the multipliers, or they are not the released ones"
        )
    pairs = head.collisions / head.collisions_expected if head.collisions_expected else float("inf")
    return (
        f"{name} is crowded: {head.collisions:,} pairs of n-grams share a row where chance makes "
        f"{head.collisions_expected:,.1f} ({pairs:.3g} times as many), and {traffic.n_touched:,} rows are hit instead "
        f"of {traffic.touched_expected.mean:,.0f}; look at its modulus and multipliers"
    )


def _warn(found: Coverage) -> None:
    """Say for which orders the sample is too small, for what."""
    undecided = sorted({head.traffic.order for head in found.undecided})
    if undecided:
        show_wrapped(
            f"order {join(undecided)}: too few n-grams to tell an even head from one that reaches half of its rows; "
            "give more text",
            indent=2,
        )
    for order in sorted({head.traffic.order for head in found.heads}):
        of_order = [h.traffic for h in found.heads if h.traffic.order == order and h.traffic.n_untouched]
        unsure = [traffic for traffic in of_order if not traffic.shows_dead_rows]
        if unsure:
            most = max(unsure, key=lambda traffic: traffic.n_ngrams_needed)
            unhit = percent(1 - most.touched_expected.mean / most.n_rows)
            show_wrapped(
                f"order {order}: chance alone leaves {unhit} of the rows unhit by {most.n_ngrams:,} distinct n-grams, "
                f"so that none can be called dead before {most.n_ngrams_needed:,}",
                indent=2,
            )
