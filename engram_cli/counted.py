"""What `engram count` and `engram counts merge` say of the counts that they have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_cli.console import say, show, show_table
from engram_tables.units import format_bytes

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.counts.count_corpus import CountedCorpus
    from engram_tables.corpus.counts.counts_query import CountedNgram


def top_of(output: Path, vocabulary: Vocabulary | None, k: int) -> dict[int, list[CountedNgram]]:
    """The most frequent n-grams of each order."""
    from engram_tables.corpus.counts.counts_query import top_ngrams
    from engram_tables.corpus.counts.counts_store import open_counts

    with open_counts(output) as counts:
        return dict(top_ngrams(counts, k, vocabulary=vocabulary)) if k else {order: [] for order in counts.orders}


def narrate_counted(counted: CountedCorpus) -> None:
    """What a reader of the result should know of how it came about, on stderr."""
    figures = counted.manifest["corpus"]
    if figures["replaced_bytes"]:
        say(f"{figures['replaced_bytes']:,} bytes are not UTF-8 and became U+FFFD")
    if figures["n_bad_lines"]:
        say(f"left out: {figures['n_bad_lines']:,} malformed lines")
    if counted.n_reused:
        say(f"went on from {counted.n_reused:,} runs and parts of an earlier run")


def counted_record(
    schema: str, output: Path, counted: CountedCorpus, best: dict[int, list[CountedNgram]]
) -> dict[str, Any]:
    """The JSON record of a finished count."""
    manifest = counted.manifest
    return {
        "schema": schema,
        "output": str(output),
        "manifest_sha256": manifest["manifest_sha256"],
        "vocab_sha256": manifest["vocabulary"]["map_sha256"],
        "corpus": manifest["corpus"],
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


def show_counted(output: Path, counted: CountedCorpus, best: dict[int, list[CountedNgram]]) -> None:
    """The human form of a finished count."""
    manifest = counted.manifest
    corpus, files = manifest["corpus"], manifest["files"]
    show(
        f"{corpus['n_documents']:,} documents, {format_bytes(corpus['read_bytes'])}, {corpus['n_tokens']:,} tokens "
        f"over {manifest['vocabulary']['canonical_size']:,} canonical ids"
    )
    rows = []
    for order, told in sorted(manifest["orders"].items()):
        mean = f"{told['n_total'] / told['n_distinct']:.2f}" if told["n_distinct"] else "-"
        file_bytes = sum(file["file_bytes"] for file in files if file["order"] == int(order))
        row = [order, f"{told['n_total']:,}", f"{told['n_distinct']:,}", mean, format_bytes(file_bytes)]
        rows.append([*row, f"{told['dropped_distinct']:,}"] if manifest["min_count"] > 1 else row)
    titles = ["order", "n-grams", "distinct", "mean count", "on disk"]
    if manifest["min_count"] > 1:
        titles.append(f"below {manifest['min_count']}")
    show_table("", titles, rows)
    for order, ngrams in best.items():
        if not ngrams:
            continue
        lines = [
            [
                " ".join(json.dumps(form, ensure_ascii=False) for form in ngram.forms or ngram.ids),
                f"{ngram.count:,}",
                f"{100 * (ngram.share or 0):.3f} %",
            ]
            for ngram in ngrams
        ]
        show_table(f"most frequent, order {order}", ["n-gram", "count", "share"], lines)
    show(f"written: {output}")
