"""The plain-Python twin of the counting kernels: obviously right, and slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

END = -1
"""Follows the last n-gram of a sequence."""


def count_ngrams_reference(documents: Sequence[Sequence[int]], order: int) -> dict[tuple[int, ...], int]:
    """Counts of the n-grams of one order, oldest token first, sorted; none crosses from document to document.

    >>> count_ngrams_reference([[7, 7, 7], [7]], 2)
    {(7, 7): 2}
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for document in documents:
        counts.update(tuple(document[start : start + order]) for start in range(len(document) - order + 1))
    return dict(sorted(counts.items()))


def count_followed_reference(
    documents: Sequence[Sequence[int | None]],
    order: int,
    *,
    canonical_ids: Sequence[int],
    pad_id: int | None = None,
    with_next: bool = False,
) -> dict[tuple[int, ...], int]:
    """Counts over raw ids, None where dead: canonical n-grams, with the raw token after them if asked.

    A dead position ends a sequence, and the next living one begins another, which `pad_id` is not put before. The
    end of a sequence sorts behind every token.

    >>> count_followed_reference([[3, None, 3, 4]], 1, canonical_ids=[0, 0, 0, 1, 1], with_next=True)
    {(1, 4): 1, (1, -1): 2}
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for document in documents:
        sequences: list[list[int]] = [[]]
        for token in document:
            if token is None:
                sequences.append([])
            else:
                sequences[-1].append(token)
        for nth, raw in enumerate(sequences):
            ids = [canonical_ids[token] for token in raw]
            n_pads = order - 1 if pad_id is not None and nth == 0 and raw else 0
            ids = [pad_id or 0] * n_pads + ids
            for start in range(len(ids) - order + 1):
                after = start + order - n_pads
                followed = (raw[after] if after < len(raw) else END,) if with_next else ()
                counts[(*ids[start : start + order], *followed)] += 1
    return dict(sorted(counts.items(), key=lambda item: [token if token != END else 2**32 for token in item[0]]))
