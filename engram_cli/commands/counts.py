"""`engram counts`: what a counts directory holds, without counting again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import detail, emit, progress, say, show, show_table
from engram_cli.counted import counted_record, narrate_counted, show_counted, top_of
from engram_cli.options import Force, JsonFlag, Restart, Threads, VocabFile
from engram_tables.errors import InvalidInput
from engram_tables.units import parse_integers

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.counts.counts_query import CountedNgram, LookedUp, NextToken
    from engram_tables.corpus.counts.counts_stats import OrderStatistics
    from engram_tables.corpus.counts.counts_store import Counts

CountsPath = Annotated[
    Path, typer.Argument(metavar="COUNTS", help="A counts directory of `engram count`.", show_default=False)
]
Orders = Annotated[
    str | None, typer.Option("--orders", metavar="N,N", help="Orders to look at; all that were counted by default.")
]

_COUNTS_SHOWN = 5
"""Counts of counts in the human form: n-grams that occur once, twice, …"""

# --- top ---------------------------------------------------------------------------------------------------------


def top(
    counts: CountsPath,
    order: Annotated[
        int | None,
        typer.Option("--order", metavar="N", help="One order alone; all that were counted by default."),
    ] = None,
    k: Annotated[int, typer.Option("--number", "-k", min=0, help="N-grams of each order.")] = 20,
    vocab: VocabFile = None,
    by_next: Annotated[
        bool,
        typer.Option("--by-next", help="Rank n-grams with each next token apart (counts of `count --next raw`)."),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Print the most frequent n-grams: their forms with --vocab, their canonical ids without.

    Equal counts stand in the order of their n-grams. Reads every row group once and keeps one of them in memory.

    \b
    Examples:
      engram counts top counts --vocab v4.vocab.parquet
      engram counts top counts --order 3 -k 100 --json | jq -r '[.count, (.ids | join(" "))] | @tsv'
      engram counts top counts --order 2 --by-next --vocab v4.vocab.parquet
    """
    from engram_tables.corpus.counts.counts_query import top_ngrams
    from engram_tables.corpus.counts.counts_store import open_counts

    vocabulary = _vocabulary(vocab)
    with open_counts(counts) as opened, progress("reading", "rows") as watch:
        orders = None if order is None else [order]
        found = top_ngrams(opened, k, orders=orders, vocabulary=vocabulary, by_next=by_next, progress=watch)
        ranked = list(found)
        _say_pruned(opened, "n-grams that occur less often stand in no list")
    for of_order, best in ranked:
        if json:
            for rank, ngram in enumerate(best, start=1):
                following = _next(ngram.next_tokens[0]) if ngram.next_tokens else None
                emit({"schema": "engram.counts-top/1", "rank": rank, **_ngram(ngram), "next": following})
            continue
        title = f"most frequent, order {of_order}" + (", with the next token" if by_next else "")
        columns = ["canonical forms" if vocabulary else "canonical ids", *(["next token"] if by_next else [])]
        rows = [
            [_spell(ngram), *([_spell_next(ngram.next_tokens[0])] if ngram.next_tokens else []), *_figures(ngram)]
            for ngram in best
        ]
        show_table(title, [*columns, "count", "share"], rows, left=len(columns))


# --- get ---------------------------------------------------------------------------------------------------------


def get(
    counts: CountsPath,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to look up.")] = None,
    vocab: VocabFile = None,
    ids: Annotated[
        list[str] | None,
        typer.Option("--ids", metavar="ID,ID", help="Canonical ids instead of a text: 3,15; may be repeated."),
    ] = None,
    orders: Orders = None,
    k: Annotated[
        int, typer.Option("--number", "-k", min=0, help="Likeliest next tokens of each n-gram, if they were counted.")
    ] = 10,
    json: JsonFlag = False,
) -> None:
    """Look up how often n-grams occur, and what follows them. Reads the row groups that may hold them, no others.

    A text is the n-gram of all its tokens if that order was counted, otherwise every window of the counted orders
    (--orders asks for windows of these). It is split twice, as at a document's beginning and as after a space; where
    both fold to the same canonical ids they are one n-gram.

    A count of 0 is an answer: the exit code is 0.

    \b
    Examples:
      engram counts get counts "of the" --vocab v4.vocab.parquet
      engram counts get counts "in the beginning was the word" --orders 2,3 --vocab v4.vocab.parquet
      engram counts get counts --ids 3,15 --ids 15,3 --json | jq .ngrams[].count
    """
    from engram_tables.corpus.counts.counts_query import look_up_ids, look_up_texts
    from engram_tables.corpus.counts.counts_store import open_counts

    if bool(texts) == bool(ids):
        raise typer.BadParameter("give texts or --ids, and not both")
    vocabulary = _vocabulary(vocab)
    wanted = None if orders is None else parse_integers(orders)
    with open_counts(counts) as opened:
        if ids:
            runs = [parse_integers(run) for run in ids]
            found = look_up_ids(opened, runs, vocabulary=vocabulary, orders=wanted, k_next=k)
        elif vocabulary is None:
            raise InvalidInput(
                f"text {(texts or [''])[0]!r}: needs the vocabulary (--vocab), which holds the tokenizer"
            )
        else:
            found = look_up_texts(opened, texts or [], vocabulary, orders=wanted, k_next=k)
        _say_pruned(opened, f"0 stands for anything below {opened.min_count}")
        detail(f"read {opened.row_groups_read:,} row groups")
        row_groups_read = opened.row_groups_read
    for looked_up in found:
        if json:
            emit(_looked_up(looked_up, row_groups_read))
        else:
            _show_looked_up(looked_up)


def _looked_up(looked_up: LookedUp, row_groups_read: int) -> dict[str, Any]:
    return {
        "schema": "engram.counts-get/1",
        "text": looked_up.text,
        "row_groups_read": row_groups_read,
        "readings": [
            {
                "after_space": reading.after_space,
                "token_ids": list(reading.token_ids),
                "tokens": list(reading.tokens),
                "canonical_ids": list(reading.canonical_ids),
            }
            for reading in looked_up.readings
        ],
        "ngrams": [
            {
                **_ngram(ngram),
                "n_next": ngram.n_next,
                "next": None if ngram.next_tokens is None else [_next(token) for token in ngram.next_tokens],
            }
            for ngram in looked_up.ngrams
        ],
    }


def _show_looked_up(looked_up: LookedUp) -> None:
    if looked_up.text is not None:
        show(f"{looked_up.text!r}")
    for reading in looked_up.readings:
        place = "after a space" if reading.after_space else "as it stands "
        split = " ".join(repr(token) for token in reading.tokens)
        show(f"  {place}  {split}  tokens {_join(reading.token_ids)}, canonical {_join(reading.canonical_ids)}")
    if len(looked_up.readings) > 1:
        same = looked_up.readings[0].canonical_ids == looked_up.readings[1].canonical_ids
        show("  both fold to the same canonical ids" if same else "  the two differ, and both are looked up")
    rows = [[ngram.order, _spell(ngram), _join(ngram.ids), *_figures(ngram)] for ngram in looked_up.ngrams]
    show_table("", ["order", "n-gram", "canonical ids", "count", "share"], rows, left=3)
    for ngram in looked_up.ngrams:
        if not ngram.next_tokens:
            continue
        following = [
            [_spell_next(token), "-" if token.token_id is None else token.token_id, f"{token.count:,}",
             f"{100 * token.count / ngram.count:.3f} %"]
            for token in ngram.next_tokens
        ]  # fmt: skip
        title = f"after {_spell(ngram)}: {len(following):,} of {ngram.n_next or 0:,} next tokens"
        show_table(title, ["next token", "token id", "count", "share"], following)


# --- stats -------------------------------------------------------------------------------------------------------


def stats(
    counts: CountsPath,
    orders: Orders = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw rank and frequency and counts of counts: .svg or .html."),
    ] = None,
    force: Force = False,
    json: JsonFlag = False,
) -> None:
    """Show how often n-grams occur: counts of counts, unseen mass, coverage, and Zipf's law.

    The unseen mass is Good's and Turing's n1 / N: the probability that the next n-gram of such a text is a new one.
    Coverage says how many n-grams, the most frequent first, hold a share of all occurrences. The law is a discrete
    power law fitted by maximum likelihood from the count on that suits it best (Clauset, Shalizi and Newman); s is
    the exponent of a count over its rank, alpha that of the counts of counts, and s = 1 / (alpha - 1).

    Exact, from one pass over the counts. --plot needs pip install 'engram-tables\\[report]'.

    \b
    Examples:
      engram counts stats counts
      engram counts stats counts --orders 2,3 --plot zipf.svg
      engram counts stats counts --json | jq '{order, unseen_mass, s: .power_law.rank_exponent}'
    """
    from engram_tables.corpus.counts.counts_stats import count_statistics
    from engram_tables.corpus.counts.counts_store import open_counts

    if plot is not None:
        from engram_tables.corpus.counts.counts_plot import check_plot

        check_plot(plot, force=force)
    with open_counts(counts) as opened, progress("reading", "rows") as watch:
        wanted = None if orders is None else parse_integers(orders)
        found = list(count_statistics(opened, orders=wanted, progress=watch))
        _say_pruned(
            opened, "lower counts are missing: no singletons, no unseen mass, and a law at most from that count on"
        )
    if plot is not None:
        from engram_tables.corpus.counts.counts_plot import write_plot

        write_plot(plot, found, title=f"{counts.resolve().name}: how often n-grams occur", force=force)
    if json:
        for order in found:
            emit(_statistics(order))
    else:
        _show_statistics(found)
    if plot is not None:
        say(f"wrote {plot}")


def _statistics(order: OrderStatistics) -> dict[str, Any]:
    law, tally = order.power_law, order.counts_of_counts
    return {
        "schema": "engram.counts-stats/1",
        "order": order.order,
        "min_count": order.min_count,
        "n_distinct": order.n_distinct,
        "n_total": order.n_total,
        "dropped_distinct": order.dropped_distinct,
        "dropped_total": order.dropped_total,
        "mean_count": order.mean_count,
        "max_count": order.max_count,
        "n_singletons": order.n_singletons,
        "singleton_share": order.singleton_share,
        "unseen_mass": order.unseen_mass,
        "coverage": [{"percent": c.percent, "n_ngrams": c.n_ngrams} for c in order.coverage],
        "power_law": None
        if law is None
        else {
            "alpha": law.alpha,
            "alpha_stderr": law.alpha_stderr,
            "rank_exponent": law.rank_exponent,
            "xmin": law.xmin,
            "ks_distance": law.ks_distance,
            "ks_chance": law.ks_chance,
            "n_tail": law.n_tail,
            "tail_occurrences": law.tail_occurrences,
            "verdict": law.verdict.value,
        },
        "counts_of_counts": [list(pair) for pair in zip(tally.counts.tolist(), tally.n_ngrams.tolist(), strict=True)],
    }


def _show_statistics(found: Sequence[OrderStatistics]) -> None:
    rows = [
        [
            order.order,
            f"{order.n_total:,}",
            f"{order.n_distinct:,}",
            _or_dash(order.mean_count, ".2f"),
            f"{order.max_count:,}",
            _percent(order.singleton_share),
            _percent(order.unseen_mass),
        ]
        for order in found
    ]
    columns = ["order", "n-grams", "distinct", "mean count", "largest", "singletons", "unseen mass"]
    show_table("", columns, rows)
    dropped = [order for order in found if order.dropped_distinct]
    for order in dropped:
        show(
            f"order {order.order}: {order.dropped_distinct:,} more n-grams with {order.dropped_total:,} occurrences "
            f"were left out for occurring less than {order.min_count:,} times"
        )
    shown = range(1, _COUNTS_SHOWN + 1)
    show_table(
        "n-grams that occur so often",
        ["order", *(f"{count}×" for count in shown), "more"],
        [
            [
                order.order,
                *("-" if count < order.min_count else f"{order.counts_of_counts.n_with(count):,}" for count in shown),
                f"{order.n_distinct - sum(order.counts_of_counts.n_with(count) for count in shown):,}",
            ]
            for order in found
        ],
    )
    show_table(
        "coverage: most frequent n-grams",
        ["order", *(f"hold {coverage.percent} %" for coverage in found[0].coverage)],
        [[order.order, *(_or_dash(coverage.n_ngrams, ",") for coverage in order.coverage)] for order in found],
    )
    laws = [(order, order.power_law) for order in found if order.power_law is not None]
    show_table(
        "power law",
        ["order", "s", "alpha", "from count", "of n-grams", "of occurrences", "distance", "by chance", "fit"],
        [
            [
                order.order,
                f"{law.rank_exponent:.3f}",
                f"{law.alpha:.3f} ± {law.alpha_stderr:.3f}",
                f"{law.xmin:,}",
                f"{100 * law.n_tail / order.n_distinct:.1f} %",
                f"{100 * law.tail_occurrences / order.n_total:.1f} %",
                f"{law.ks_distance:.4f}",
                f"{law.ks_chance:.4f}",
                law.verdict.value,
            ]
            for order, law in laws
        ],
    )
    for order in found:
        if order.power_law is None:
            show(f"order {order.order}: too few n-grams or too few different counts for a power law")
        elif order.power_law.verdict == "poor":
            show(f"order {order.order}: a power law fits poorly; do not extrapolate from it")


# --- merge -------------------------------------------------------------------------------------------------------


def merge(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="COUNTS", help="Counts directories of one vocabulary.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The counts directory to write.")],
    min_count: Annotated[
        int, typer.Option("--min-count", min=1, help="Leave out n-grams that occur less often, order 1 excepted.")
    ] = 1,
    top: Annotated[int, typer.Option("--top", min=0, help="Most frequent n-grams to print for each order.")] = 0,
    vocab: VocabFile = None,
    threads: Threads = None,
    restart: Restart = False,
    force: Force = False,
    json: JsonFlag = False,
) -> None:
    """Add counts up: the same bytes as counting all of their corpora at once, in any order and by any steps.

    Inputs must hold the same orders, counted in the same way, rare n-grams included. A run that is stopped leaves
    what is finished in DIR.work, and the same command goes on there.

    \b
    Examples:
      engram counts merge monday tuesday wednesday -o week
      engram counts merge part-*/ --min-count 3 --top 10 --vocab v4.vocab.parquet -o counts
    """
    from engram_tables.corpus.counts.counts_merge import merge_counts

    merged = merge_counts(
        inputs, output=output, min_count=min_count, threads=threads, restart=restart, force=force, stage=progress
    )
    narrate_counted(merged)
    best = top_of(output, _vocabulary(vocab), top)
    if json:
        emit(counted_record("engram.counts-merge/1", output, merged, best))
    else:
        show_counted(output, merged, best)


# --- what the commands share -----------------------------------------------------------------------------------------


def _vocabulary(vocab: Path | None) -> Vocabulary | None:
    from engram_tables.address.vocabulary import load_vocabulary

    return None if vocab is None else load_vocabulary(vocab)


def _say_pruned(counts: Counts, consequence: str) -> None:
    if counts.min_count > 1:
        say(f"note: counted with --min-count {counts.min_count} above order 1; {consequence}")


def _ngram(ngram: CountedNgram) -> dict[str, Any]:
    return {
        "order": ngram.order,
        "ids": list(ngram.ids),
        "forms": None if ngram.forms is None else list(ngram.forms),
        "count": ngram.count,
        "min_count": ngram.min_count,
        "share": ngram.share,
    }


def _next(token: NextToken) -> dict[str, Any]:
    return {"token_id": token.token_id, "text": token.text, "count": token.count}


def _figures(ngram: CountedNgram) -> list[str]:
    if not ngram.count and ngram.min_count > 1:
        return [f"< {ngram.min_count:,}", "-"]
    # Significant digits: most n-grams are far below a thousandth of a percent.
    return [f"{ngram.count:,}", "-" if ngram.share is None else f"{100 * ngram.share:.3g} %"]


def _spell(ngram: CountedNgram) -> str:
    if ngram.forms is None:
        return _join(ngram.ids)
    return " ".join(_quoted(form) for form in ngram.forms)


def _spell_next(token: NextToken) -> str:
    if token.token_id is None:
        return "(end of the document)"
    return str(token.token_id) if token.text is None else _quoted(token.text)


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)


def _join(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3f} %"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
