"""Whether a text was part of what was counted, which would flatter every figure.

Counts name no source, so that the text itself must tell: of a document that was counted, every n-gram goes on as
counted. Held-out documents that are copies of counted ones do the same, and flatter as much.
"""

from __future__ import annotations

from typing import Any

from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.measure.evaluate.judging import Truth
from engram_tables.measure.evaluate.tallies import Tallies

COUNTED_SHARE = 0.9
"""Of the positions; code and prose that were not counted go on as counted at about half of them, at order 4."""
COPIED_SHARE = 0.05
"""Of the documents that are looked at."""
LEAST_POSITIONS = 20
"""Of a document, before it is looked at by itself."""
_ALL, _SAME = ("overlap", "n-grams"), ("overlap", "goes on as counted")


def add_overlap(tallies: Tallies, truth: Truth) -> None:
    """Sum up how often the longest order goes on as counted."""
    if truth.exact is None:
        return
    longest = truth.orders[0]
    n_true = truth.exact[longest].n_true
    assert n_true is not None
    tallies.add(_ALL, truth.clusters, truth.has_ngram[longest])
    tallies.add(_SAME, truth.clusters, n_true > 0)


def described_overlap(tallies: Tallies, order: int, counts: Counts) -> dict[str, Any]:
    """What the record says of it.

    Notes
    -----
    The verdict is `counted`, `partly-counted` or `held-out`; with n-grams left out for a least count above 1 it may
    miss a text that was counted.
    """
    every, same = tallies.sums(_ALL), tallies.sums(_SAME)
    looked_at = every >= LEAST_POSITIONS
    n_looked_at, n_copied = int(looked_at.sum()), int((looked_at & (same == every)).sum())
    share = float(same.sum() / every.sum()) if every.sum() else None
    verdict = "held-out"
    if share is not None and share >= COUNTED_SHARE:
        verdict = "counted"
    elif n_copied > COPIED_SHARE * n_looked_at:
        verdict = "partly-counted"
    return {
        "order": order,
        "goes_on_as_counted": share,
        "n_documents_looked_at": n_looked_at,
        "n_documents_as_counted": n_copied,
        "min_count": counts.min_count,
        "verdict": verdict,
    }
