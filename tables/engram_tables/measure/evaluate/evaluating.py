"""A next-token table on held-out text, beside the exact counts that it was made of: the record `engram.evaluate/1`.

Owns the order of things and the memory. What a row means is `storage.next_token`'s, what counts hold is `exact`'s,
and what is called right is `judging`'s.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engram_tables.address.vocabulary import Vocabulary
from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.corpus.tokens.token_store import TokenStore
from engram_tables.errors import InvalidInput
from engram_tables.fetch.table import Table
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.evaluate import judging
from engram_tables.measure.evaluate.exact import QUERY_BYTES, Followers, check_followers, followers_of
from engram_tables.measure.evaluate.guessing import BLOCK_POSITIONS, Guesser
from engram_tables.measure.evaluate.judging import K, Truth
from engram_tables.measure.evaluate.overlap import add_overlap, described_overlap
from engram_tables.measure.evaluate.positions import JudgedText, Positions
from engram_tables.measure.evaluate.subject import canonical_ngrams
from engram_tables.measure.evaluate.tallies import CONFIDENCE, Tallies
from engram_tables.threads import resolve_threads, run_all
from engram_tables.units import Stage, json_int, unwatched

SCHEMA = "engram.evaluate/1"
MEMORY_BYTES = 2 << 30
SAMPLE_POSITIONS = 10_000
HEAD_COUNTS = (1, 2, 4, 8)
_LEAST_BYTES = 64 << 20
_LEAST_POSITIONS = 1 << 12

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatePlan:
    """How a table is judged.

    Attributes
    ----------
    n_positions
        Drawn at random, each as likely as any; all if None.
    seed
        Of the draw.
    n_tokens
        Of the text, from its beginning on; all if None.
    head_counts
        So many of the first heads are read, each by itself; all heads are always among them.
    layer_id
        The layer whose rows are read; the first that the table holds whole if None.
    engine
        By which rows are read.
    memory_bytes
        To work in, beside what a block of rows takes in each thread; never changes the result.
    """

    n_positions: int | None = SAMPLE_POSITIONS
    seed: int = 0
    n_tokens: int | None = None
    head_counts: tuple[int, ...] = HEAD_COUNTS
    layer_id: int | None = None
    engine: str = "auto"
    memory_bytes: int = MEMORY_BYTES
    threads: int | None = None

    def __post_init__(self) -> None:
        if min(self.head_counts, default=0) < 1:
            raise InvalidInput(f"heads: found {list(self.head_counts)}, expected numbers from 1 up; name them as 1,2,4")
        for name, number in (("sample", self.n_positions), ("tokens", self.n_tokens)):
            if number is not None and number < 1:
                raise InvalidInput(f"{name}: found {number}, expected 1 or more; leave it out for all")
        if self.memory_bytes < _LEAST_BYTES:
            raise InvalidInput(f"memory: found {self.memory_bytes} bytes, expected {_LEAST_BYTES} or more; raise it")


def evaluate_table(
    table: Table,
    tokens: TokenStore,
    vocabulary: Vocabulary,
    *,
    paths: Sequence[str],
    plan: EvaluatePlan,
    counts: Counts | None = None,
    stage: Stage = unwatched,
) -> dict[str, Any]:
    """Judge a table on a text; the record.

    Parameters
    ----------
    tokens
        The held-out text.
    vocabulary
        The table's.
    paths
        What the text was read from, for the record.
    counts
        The exact peer: what the table was made of, or else other counts with next tokens of the same vocabulary.

    Raises
    ------
    UnsupportedTable, InvalidInput
        A table whose rows hold no next tokens; counts without next tokens or without the table's orders; a layer that
        the table does not have; a text in which no token follows another.
    SpecMismatch
        Another vocabulary or tokenizer than the table's.

    Notes
    -----
    The counts' files of the table's orders are read once for each block of positions, of which there is one unless
    all of a large text are judged. Reading rows back is what takes time: about a millisecond for each position and
    order, and that again for each number of heads.
    """
    guesser = Guesser(table, vocabulary, layer_id=plan.layer_id, head_counts=plan.head_counts, engine=plan.engine)
    _check_peer(guesser, vocabulary, tokens, counts)
    with stage("looking over", "tokens") as progress:
        text = JudgedText(
            tokens, reach=max(guesser.orders[0], table.spec.max_order), token_size=vocabulary.token_count,
            n_tokens=plan.n_tokens, progress=progress,
        )  # fmt: skip
    if not text.n_judged:
        raise InvalidInput(
            f"{', '.join(paths)}: found {text.n_tokens:,} tokens of which none follows another in its document, "
            "expected some to predict; give text"
        )
    chosen = text.draw(plan.n_positions, seed=plan.seed)
    evaluation = _Evaluation(guesser, text, chosen, vocabulary, counts, plan, tallies=Tallies(tokens.n_documents))
    evaluation.run(stage)
    return evaluation.record(tokens, paths)


def _check_peer(guesser: Guesser, vocabulary: Vocabulary, tokens: TokenStore, counts: Counts | None) -> None:
    """Refuse what cannot be judged together, before anything is read."""
    tokens.check_tokenizer(vocabulary.tokenizer_sha256)
    if counts is not None:
        counts.check_vocabulary(vocabulary.map_sha256)
        check_followers(counts, guesser.orders)


class _Evaluation:
    """One run: blocks of positions are looked up in the counts, and then judged a few at a time."""

    def __init__(
        self, guesser: Guesser, text: JudgedText, chosen: I64, vocabulary: Vocabulary, counts: Counts | None,
        plan: EvaluatePlan, *, tallies: Tallies,
    ) -> None:  # fmt: skip
        self._guesser, self._text, self._chosen, self._vocabulary = guesser, text, chosen, vocabulary
        self._counts, self._plan, self._tallies = counts, plan, tallies
        self._n_judged, self._adding = 0, threading.Lock()
        self._pad_id = None if counts is None else counts.subject.pad_id

    def run(self, stage: Stage) -> None:
        """Judge every position that was drawn."""
        for positions in self._text.blocks(self._chosen, self._block_positions()):
            truth = self._truth(positions, stage)
            judging.add_exact(self._tallies, truth)
            add_overlap(self._tallies, truth)
            self._judge(positions, truth, stage)

    def record(self, tokens: TokenStore, paths: Sequence[str]) -> dict[str, Any]:
        """What is found."""
        tallies, orders, has_exact = self._tallies, sorted(self._guesser.orders), self._counts is not None
        clusters = tallies.n_clusters_with("positions")
        return {
            "schema": SCHEMA,
            "command": command_line(),
            "environment": describe(),
            "table": self._guesser.describe(),
            "counts": None if self._counts is None else self._described_counts(self._counts),
            "corpus": {
                "paths": [str(path) for path in paths],
                "sha256": tokens.sha256,
                "n_tokens": tokens.n_tokens,
                "n_documents": tokens.n_documents,
                "n_dead": tokens.n_dead,
            },
            "sample": {
                "n_tokens": self._text.n_tokens,
                "n_judged": self._text.n_judged,
                "n_positions": len(self._chosen),
                "n_clusters": clusters,
                "seed": json_int(self._plan.seed),
                "confidence": CONFIDENCE,
            },
            "overlap": described_overlap(tallies, orders[-1], self._counts) if self._counts is not None else None,
            "exact": judging.described_exact(tallies, orders) if has_exact else None,
            "heads": [
                judging.described_table(tallies, n_heads, orders, has_exact=has_exact)
                for n_heads in self._guesser.head_counts
            ],
        }

    def _block_positions(self) -> int:
        """Positions whose n-grams are looked up together."""
        n_orders = len(self._guesser.orders)
        each = 4 * self._text.reach + 21 + 8 * self._text.reach + (n_orders + 3) * (8 * K + 24) + QUERY_BYTES
        return max(self._plan.memory_bytes // each, _LEAST_POSITIONS)

    def _truth(self, positions: Positions, stage: Stage) -> Truth:
        is_padded = self._pad_id is not None
        has_ngram = {order: positions.has_ngram(order, is_padded=is_padded) for order in self._guesser.orders}
        exact: dict[int, Followers] | None = None
        if self._counts is not None:
            exact = {}
            ngrams = canonical_ngrams(positions, self._vocabulary, pad_id=self._pad_id)
            for order, has in has_ngram.items():
                with stage(f"looking up order {order} in the counts", "rows") as progress:
                    exact[order] = followers_of(
                        self._counts, ngrams[:, -order:], K, is_asked=has,
                        true_tokens=positions.following if order == self._guesser.orders[0] else None,
                        progress=progress,
                    )  # fmt: skip
        return Truth(
            following=positions.following.astype(np.int64),
            clusters=self._tallies.clusters(positions.documents),
            has_ngram=has_ngram,
            exact=exact,
            canonical_ids=self._vocabulary.canonical_ids,
        )

    def _judge(self, positions: Positions, truth: Truth, stage: Stage) -> None:
        starts = range(0, len(positions), BLOCK_POSITIONS)
        with stage("reading rows back", "positions") as progress:

            def judge(start: int) -> None:
                stop = min(start + BLOCK_POSITIONS, len(positions))
                here, mine = positions.part(start, stop), truth.part(start, stop)
                guessed = self._guesser.guesses(here, mine.has_ngram)
                with self._adding:
                    for n_heads, guesses in guessed.items():
                        judging.add_table(self._tallies, n_heads, mine, guesses)
                    self._n_judged += stop - start
                    progress(self._n_judged, len(self._chosen))

            run_all(judge, starts, threads=resolve_threads(self._plan.threads))

    def _described_counts(self, counts: Counts) -> dict[str, Any]:
        sha256 = counts.manifest["manifest_sha256"]
        return {
            "path": str(counts.path),
            "manifest_sha256": sha256,
            "n_tokens": counts.figures.n_tokens,
            "n_documents": counts.figures.n_documents,
            "min_count": counts.min_count,
            "pad_id": counts.subject.pad_id,
            "is_source_of_table": self._guesser.counts_sha256 == sha256,
        }
