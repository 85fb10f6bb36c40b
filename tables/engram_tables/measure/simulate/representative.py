"""Whether a text repeats itself as text does: figures of its longest n-grams, and bands of real text to hold them
against.

A benchmark's prompt of one repeated token, or a corpus with its documents many times over, makes every cache look
good. Two figures tell: how much of a window of fixed length was seen before in it (fixed, since the share grows with
the length), and how quickly new n-grams come as the text goes on, which duplicates far apart slow down as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.measure.simulate import stream_kernels as kernels
from engram_tables.measure.simulate.streams import CHUNK_TOKENS, Lookups

WINDOW_TOKENS = 1 << 16
MOST_WINDOWS = 16
MOST_GROWTH_TOKENS = 1 << 22


class Verdict(StrEnum):
    """What the figures say."""

    REPRESENTATIVE = "representative"
    """Both lie in the band of real text."""
    TOO_REPETITIVE = "too-repetitive"
    """Seen before more often than real text, or new n-grams come more slowly: hit ratios flatter."""
    TOO_VARIED = "too-varied"
    """Seen before less often than real text, as random tokens are: hit ratios are too low."""
    TOO_SHORT = "too-short"
    """Fewer tokens than a window: nothing can be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Bounds that the code and the prose of `BAND` lie between, with room."""

    least_seen: float
    most_seen: float
    least_growth: float


BAND = Band(least_seen=0.10, most_seen=0.65, least_growth=0.65)
"""From order-4 n-grams of the DeepSeek V4 tokenizer. Inside: Python's standard library (seen 0.34, growth 1.27), the
Python sources of 60 packages (0.43, 0.90), README files and plain-text documentation (0.23 and 0.30, 0.86 and 0.93), a
shuffled mixture of code, manuals and documentation (0.51, 0.97 over 3 million tokens, 0.83 over 8). Outside: licence
files (0.72, 0.67), generated HTML (0.78, 0.56), manual pages in many languages (0.73, 0.35), JSON (0.55, 0.44), any
text twice over (growth 0.00), one repeated token (1.00, 0.00), shuffled or random tokens (0.00, 1.00)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """How a text repeats itself.

    Attributes
    ----------
    order
        Of the n-grams that are looked at: the spec's longest.
    n_windows
        Windows of `WINDOW_TOKENS` tokens, spread evenly over the text.
    seen_share
        Of a window's lookups, those whose n-gram stands before in the window; median of the windows. None: too short.
    growth
        log2(distinct n-grams of the text / of its first half): 1 where all are new, 0 where none is. None: too short.
    growth_tokens
        Tokens that the growth was measured over.
    """

    order: int
    n_windows: int
    seen_share: float | None
    growth: float | None
    growth_tokens: int

    @property
    def verdict(self) -> Verdict:
        """The rule that the record names."""
        if self.seen_share is None or self.growth is None:
            return Verdict.TOO_SHORT
        if self.seen_share > BAND.most_seen or self.growth < BAND.least_growth:
            return Verdict.TOO_REPETITIVE
        return Verdict.TOO_VARIED if self.seen_share < BAND.least_seen else Verdict.REPRESENTATIVE

    def describe(self) -> dict[str, Any]:
        """For a record."""
        return {
            "verdict": self.verdict.value,
            "order": self.order,
            "seen_share": self.seen_share,
            "growth": self.growth,
            "growth_tokens": self.growth_tokens,
            "window_tokens": WINDOW_TOKENS,
            "n_windows": self.n_windows,
            "rule": (
                f"representative: seen_share {BAND.least_seen} to {BAND.most_seen}, growth {BAND.least_growth} or more"
            ),
        }


def repetition_of(lookups: Lookups) -> Repetition:
    """Measure a text; reads at most `MOST_GROWTH_TOKENS` + `MOST_WINDOWS` windows of tokens."""
    order = lookups.spec.max_order
    n_windows = min(MOST_WINDOWS, lookups.n_tokens // WINDOW_TOKENS)
    if not n_windows:
        return Repetition(order=order, n_windows=0, seen_share=None, growth=None, growth_tokens=0)
    starts = np.linspace(0, lookups.n_tokens - WINDOW_TOKENS, n_windows).astype(np.int64)
    shares = [_seen_share(_names(lookups, int(start), int(start) + WINDOW_TOKENS)) for start in starts]
    known = [share for share in shares if share is not None]
    names = _names(lookups, 0, min(lookups.n_tokens, MOST_GROWTH_TOKENS))
    return Repetition(
        order=order, n_windows=n_windows, seen_share=float(np.median(known)) if known else None,
        growth=_growth(names), growth_tokens=names.size,
    )  # fmt: skip


def _seen_share(names: NDArray[np.uint64]) -> float | None:
    return 1 - np.unique(names).size / names.size if names.size else None


def _growth(names: NDArray[np.uint64]) -> float | None:
    n_half = np.unique(names[: names.size // 2]).size
    return float(np.log2(np.unique(names).size / n_half)) if n_half else None


def _names(lookups: Lookups, start: int, stop: int) -> NDArray[np.uint64]:
    """A number for the longest n-gram of each live token."""
    columns = np.array([at for at, (n, _) in enumerate(lookups.spec.columns) if n == lookups.spec.max_order], np.int64)
    parts = []
    for begin in range(start, stop, CHUNK_TOKENS):
        end = min(begin + CHUNK_TOKENS, stop)
        names = np.empty(end - begin, np.uint64)
        kernels.name_ngrams(lookups.rows(begin, end), columns, names)
        first, last = np.searchsorted(lookups.dead, (begin, end))
        parts.append(np.delete(names, lookups.dead[first:last] - begin))
    return np.concatenate([np.empty(0, np.uint64), *parts])
