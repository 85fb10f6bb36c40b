"""`engram inspect collisions`: rows that n-grams share, what that weighs, and whether heads collide independently."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.commands.inspect_coverage import subject_of
from engram_cli.console import emit, progress, say, show, show_table, show_wrapped
from engram_cli.inspected import (
    CountsDir,
    OnlyLayers,
    OnlyOrders,
    SubjectPlace,
    ngram_text,
    percent,
    plural,
    show_legend,
)
from engram_cli.options import JsonFlag, Threads, VocabFile
from engram_tables.errors import InvalidInput
from engram_tables.units import parse_bytes, parse_integers

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.inspect.collisions import Collisions, HeadCollisions, OrderCollisions, SharedRow

_LEGEND = {
    "shared": "share of all lookups of the corpus that go to a row which another n-gram owns too; expected: what a "
    "uniform hash gives",
    "outweighed": "share of all lookups whose own n-gram is not the most frequent one of its row: there the row is "
    "mostly another's",
    ">10 %": "share of all lookups of whose row more than so much goes to other n-grams; likewise >50 %, >90 %",
    "share both": "pairs of n-grams that share a row under two heads at once, summed over pairs of heads; expected: "
    "if heads are independent of each other",
}


def inspect_collisions(
    subject: SubjectPlace,
    counts: CountsDir = None,
    vocab: VocabFile = None,
    orders: OnlyOrders = None,
    layers: OnlyLayers = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Heaviest shared rows to show.")] = 10,
    sample: Annotated[
        int,
        typer.Option(
            "--sample", min=0, metavar="N",
            help="Most n-grams of an order whose heads are compared two by two, drawn by --seed; 0 compares none.",
        ),
    ] = 1 << 22,
    seed: Annotated[int, typer.Option("--seed", help="Draws the sample.")] = 0,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="Bound of the memory used. Never changes a result.")
    ] = "4GiB",
    threads: Threads = None,
    all_heads: Annotated[bool, typer.Option("--all", help="Print a line for every head.")] = False,
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """Show which rows several n-grams share, how much that weighs, and whether heads collide independently.

    A row belongs to every n-gram whose hash leads to it. That costs little where one of them has nearly all lookups,
    and much where they are alike. A model reads several heads of an n-gram, each with a hash of its own, so that two
    n-grams which share a row under one head rarely do so under another; whether that holds is counted here, pair of
    heads by pair of heads, against independence.

    Only the addressing is looked at; no row is read.

    \b
    Examples:
      engram inspect collisions ./table --counts ./counts
      engram inspect collisions deepseek-v4.1-flash --counts ./counts --vocab v4.vocab.parquet --orders 3
      engram inspect collisions ./table --counts ./counts --json | jq '.rows[0]'
    """
    from engram_tables.corpus.counts.counts_store import open_counts
    from engram_tables.inspect.collisions import find_collisions

    if counts is None:
        raise InvalidInput("inspect collisions: found no counts; give --counts DIR, made by `engram count`")
    spec, vocabulary, chosen = subject_of(subject, vocab, layers)
    began = time.monotonic()
    with open_counts(counts) as opened:
        if vocabulary is not None:
            opened.check_vocabulary(vocabulary.map_sha256)
        found = find_collisions(
            spec, opened, layer_ids=chosen, orders=None if orders is None else parse_integers(orders), n_rows=rows,
            sample_ngrams=sample, seed=seed, memory_bytes=parse_bytes(memory), threads=threads, stage=progress,
        )  # fmt: skip
    if json:
        emit(_record(spec, found, vocabulary))
        return
    _show(found, vocabulary, all_heads=all_heads)
    n_ngrams = sum(order.n_ngrams for order in found.orders)
    say(f"compared {n_ngrams:,} n-grams of all orders and layers in {time.monotonic() - began:.1f} s")


def _record(spec: Any, found: Collisions, vocabulary: Vocabulary | None) -> dict[str, Any]:
    return {
        "schema": "engram.inspect-collisions/1",
        "spec": spec.name,
        "fingerprint": spec.fingerprint,
        "n_dependent": len(found.dependent),
        "orders": [_order_record(order) for order in found.orders],
        "rows": [_row_record(row, vocabulary) for row in found.rows],
    }


def _order_record(order: OrderCollisions) -> dict[str, Any]:
    return {
        "layer_id": order.layer_id,
        "order": order.order,
        "n_ngrams": order.n_ngrams,
        "n_keys": order.n_keys,
        "n_lookups": order.n_lookups,
        "n_twins": order.n_twins,
        "twin_lookups": order.twin_lookups,
        "heads": [_head_record(head) for head in order.heads],
        "n_compared": order.n_compared,
        "n_alike": order.n_alike,
        "agreements": [
            {
                "heads": list(pair.heads),
                "n_both": pair.n_both,
                "n_both_expected": pair.expected,
                "chance": pair.chance,
                "is_independent": pair.is_independent,
            }
            for pair in order.agreements
        ],
    }


def _head_record(head: HeadCollisions) -> dict[str, Any]:
    from engram_tables.inspect.collisions import FOREIGN_PERCENTS

    return {
        "head": head.head,
        "n_rows": head.n_rows,
        "n_shared_rows": head.n_shared_rows,
        "n_pairs": head.n_pairs,
        "n_pairs_expected": head.n_pairs_expected,
        "shared_lookups": head.shared_lookups,
        "shared_share_expected": head.shared_expected,
        "outweighed_lookups": head.outweighed_lookups,
        "foreign": [
            {"others_percent": percents, "lookups": lookups}
            for percents, lookups in zip(FOREIGN_PERCENTS, head.foreign_lookups, strict=True)
        ],
    }


def _row_record(row: SharedRow, vocabulary: Vocabulary | None) -> dict[str, Any]:
    from engram_tables.inspect.owners import spell

    return {
        "layer_id": row.layer_id,
        "order": row.order,
        "head": row.head,
        "row": row.row,
        "n_lookups": row.n_lookups,
        "outweighed_lookups": row.outweighed_lookups,
        "n_ngrams": row.n_ngrams,
        "ngrams": [
            {
                "canonical_ids": list(owner.ids),
                "forms": None if vocabulary is None else list(spell(vocabulary, owner.ids)),
                "occurrences": owner.occurrences,
                "share": owner.occurrences / row.n_lookups,
            }
            for owner in row.owned.owners[:_NAMED]
        ],
    }


_NAMED = 10
"""N-grams of a shared row that a record names; the lines for people name three."""


def _show(found: Collisions, vocabulary: Vocabulary | None, *, all_heads: bool) -> None:
    columns = ("layer", "order", "head", "shared", "expected", "outweighed", ">10 %", ">50 %", ">90 %")
    lines = [cells for order in found.orders for cells in (_heads_cells(order) if all_heads else [_mean_cells(order)])]
    show("what collisions weigh: shares of the lookups of the corpus")
    show_table("", columns, lines)
    pairs = ("layer", "order", "n-grams", "compared", "pairs of heads", "share both", "expected", "verdict")
    show("do heads collide independently?")
    show_table("", pairs, [_agreement_cells(order) for order in found.orders])
    for order, pair in found.dependent:
        show_wrapped(
            f"layer {order.layer_id}, order {order.order}: heads {pair.heads[0]} and {pair.heads[1]} are not "
            f"independent: {pair.n_both:,} pairs of n-grams share a row under both, where independence makes "
            f"{pair.expected:,.2f}; what collides under one mostly collides under the other",
            indent=2,
        )
    for order in found.orders:
        if order.n_twins:
            show_wrapped(
                f"layer {order.layer_id}, order {order.order}: {order.n_twins:,} of {order.n_ngrams:,} n-grams "
                f"({percent(order.twin_lookups / order.n_lookups)} of the lookups) have the very key of another one: "
                "no head tells them apart",
                indent=2,
            )
        if order.n_alike:
            show_wrapped(
                f"layer {order.layer_id}, order {order.order}: {order.n_alike:,} pairs of n-grams with different keys "
                "share their row under every head",
                indent=2,
            )
    if not any(order.n_twins for order in found.orders):
        show(
            "no two n-grams have the same key, and none share their row under every head"
            if not any(order.n_alike for order in found.orders)
            else "no two n-grams have the same key"
        )
    _show_rows(found, vocabulary)
    show()
    show_legend(_LEGEND)
    show()


def _heads_cells(order: OrderCollisions) -> list[list[str]]:
    return [[str(order.layer_id), str(order.order), str(head.head), *_shares(order, [head])] for head in order.heads]


def _mean_cells(order: OrderCollisions) -> list[str]:
    return [str(order.layer_id), str(order.order), f"all {len(order.heads)}", *_shares(order, list(order.heads))]


def _shares(order: OrderCollisions, heads: list[HeadCollisions]) -> list[str]:
    lookups = order.n_lookups * len(heads)
    foreign = zip(*(head.foreign_lookups for head in heads), strict=True)
    sums = [sum(head.outweighed_lookups for head in heads), *(sum(of_heads) for of_heads in foreign)]
    shared = sum(head.shared_lookups for head in heads)
    expected = sum(head.shared_expected for head in heads) / len(heads)
    return [
        percent(shared / lookups if lookups else None),
        percent(expected),
        *(percent(part / lookups if lookups else None, 2) for part in sums),
    ]


def _agreement_cells(order: OrderCollisions) -> list[str]:
    pairs = order.agreements
    if not pairs:
        return [str(order.layer_id), str(order.order), f"{order.n_keys:,}", f"{order.n_compared:,}", "0", "-", "-", "-"]
    compared = "all" if order.n_compared == order.n_keys else f"{order.n_compared:,}"
    dependent = sum(not pair.is_independent for pair in pairs)
    return [
        str(order.layer_id), str(order.order), f"{order.n_keys:,}", compared, f"{len(pairs):,}",
        f"{sum(pair.n_both for pair in pairs):,}", f"{sum(pair.expected for pair in pairs):,.2f}",
        f"{dependent} dependent" if dependent else "independent",
    ]  # fmt: skip


def _show_rows(found: Collisions, vocabulary: Vocabulary | None) -> None:
    if not found.rows:
        return
    from engram_tables.inspect.owners import spell

    show()
    show("the heaviest shared rows, by the lookups of all their n-grams but the most frequent")
    for row in found.rows:
        show(
            f"  layer {row.layer_id}, order {row.order}, head {row.head}, row {row.row:,}: "
            f"{row.n_lookups:,} lookups by {plural(row.n_ngrams, 'n-gram')}"
        )
        for owner in row.owned.owners[:3]:
            text = ngram_text(spell(vocabulary, owner.ids), most=60)
            show(f"    {owner.occurrences:>9,}  {percent(owner.occurrences / row.n_lookups):>7}  {text}")
        if row.n_ngrams > 3:
            rest = sum(owner.occurrences for owner in row.owned.owners[3:])
            show(f"    {rest:>9,}  {percent(rest / row.n_lookups):>7}  {row.n_ngrams - 3:,} more")
