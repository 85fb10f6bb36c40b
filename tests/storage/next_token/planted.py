"""Small counts with planted next tokens, and a spec for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from small_tables import small_spec

from engram_tables.address.spec import AddressSpec
from engram_tables.corpus.counts.counts_layout import part_name
from engram_tables.corpus.counts.counts_manifest import (
    MANIFEST_NAME,
    CorpusFigures,
    CountsSubject,
    build_manifest,
    manifest_bytes,
)
from engram_tables.corpus.counts.counts_writer import RowWriter
from engram_tables.corpus.counts.ngram_counts import NO_NEXT, NgramCounts

NEXT_SIZE = 300
Planted = dict[tuple[int, ...], dict[int, int]]
"""Counts of the raw tokens that follow each n-gram; -1 is the end of a document."""


def planted_counts(
    directory: Path, planted: Planted, *, parts: int = 2, next_size: int = NEXT_SIZE, group_rows: int = 7
) -> Path:
    """Counts of order 2, and of order 1 without n-grams, in small row groups that cut n-grams in two."""
    subject = CountsSubject(vocab_sha256="0" * 64, canonical_size=1000, next_size=next_size)
    starts = np.arange(parts, dtype=np.int64) * 400
    files = []
    for order in (1, 2):
        (directory / f"order-{order}").mkdir(parents=True)
        for part in range(parts):
            mine = {
                ngram: following
                for ngram, following in planted.items()
                if order == 2 and np.searchsorted(starts, ngram[0], side="right") - 1 == part
            }
            path = directory / part_name(order, part)
            files.append({**_write_part(path, order, mine, group_rows, has_next=next_size > 0), "part": part})
    figures = CorpusFigures(n_tokens=1, n_documents=1)
    manifest = build_manifest(subject, figures, starts, files)
    (directory / MANIFEST_NAME).write_bytes(manifest_bytes(manifest))
    return directory


def _write_part(path: Path, order: int, planted: Planted, group_rows: int, *, has_next: bool) -> dict[str, Any]:
    writer = RowWriter(path, order, has_next=has_next)
    # Ends of documents come last.
    rows = [
        (ngram, token, following[token])
        for ngram, following in sorted(planted.items())
        for token in sorted(following, key=lambda token: (token == NO_NEXT, token))
    ]
    for first in range(0, len(rows), group_rows):
        some = rows[first : first + group_rows]
        writer.write(
            NgramCounts(
                order=order,
                columns=np.ascontiguousarray(np.array([row[0] for row in some], np.uint32).T),
                counts=np.array([row[2] for row in some], np.uint64),
                next_tokens=np.array([row[1] for row in some], np.int64) if has_next else None,
            )
        )
    return writer.close()


def planted_spec(n_rows: int = 101, *, row_width: int | None = 32, layer_ids: Sequence[int] = (1, 14)) -> AddressSpec:
    """Two heads of order 2 in each layer, which hold each token four times."""
    return small_spec(n_rows, row_width=row_width, layer_ids=tuple(layer_ids))


def random_counts(n_ngrams: int, *, seed: int = 0) -> Planted:
    """N-grams with one to six next tokens each, some of which end a document as well."""
    rng = np.random.default_rng(seed)
    planted: Planted = {}
    for first, second in rng.integers(0, 1000, (n_ngrams, 2)).tolist():
        tokens = rng.choice(NEXT_SIZE, rng.integers(1, 7), replace=False).tolist()
        planted[first, second] = {token: int(rng.integers(1, 1000)) for token in tokens}
        if rng.random() < 0.2:
            planted[first, second][NO_NEXT] = 3
    return planted
