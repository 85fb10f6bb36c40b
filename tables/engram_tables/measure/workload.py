"""The steps that a serving engine makes of many requests: prompts in chunks, then one token of each sequence a step.

As in the throughput measurement of the paper: so many sequences at once, prompts and answers of lengths drawn evenly
from a range. It draws lengths and rows; it runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses
from engram_tables.errors import InvalidInput
from engram_tables.measure.trace import Trace


class StepKind(StrEnum):
    """What a step's tokens are."""

    PREFILL = "prefill"
    """A chunk of prompts; all of them are known from the beginning."""
    DECODE = "decode"
    """One token of each sequence under way; known when the step before has ended."""


Step = tuple[StepKind, int]
"""What a step's tokens are, and how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Steps of all requests, in order.

    Attributes
    ----------
    prefill_tokens, decode_tokens
        int64 (steps,): tokens of each step of the kind.
    prompt_lengths, answer_lengths
        int64 (sequences,).
    """

    prefill_tokens: NDArray[np.int64]
    decode_tokens: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]
    answer_lengths: NDArray[np.int64]

    @classmethod
    def draw(cls, *, n_sequences: int, shortest: int, longest: int, chunk_tokens: int, seed: int) -> Workload:
        """Prompts are cut where a chunk is full; an answer's first token comes out of its prompt's last step.

        Raises
        ------
        InvalidInput
            No sequences, lengths that are no range, or chunks of no token.
        """
        if n_sequences < 1 or not 1 <= shortest <= longest or chunk_tokens < 1:
            raise InvalidInput(
                f"workload: found {n_sequences} sequences of {shortest} to {longest} tokens in chunks of "
                f"{chunk_tokens}, expected 1 or more, and a range"
            )
        rng = np.random.default_rng(seed)
        prompts, answers = rng.integers(shortest, longest + 1, (2, n_sequences))
        whole, rest = divmod(int(prompts.sum()), chunk_tokens)
        prefill = np.array([chunk_tokens] * whole + [rest] * (rest > 0), np.int64)
        # Step k decodes the (k + 2)-th token of those answers that have one.
        decode = (answers[:, None] > np.arange(1, int(answers.max()))[None, :]).sum(axis=0).astype(np.int64)
        return cls(prefill_tokens=prefill, decode_tokens=decode, prompt_lengths=prompts, answer_lengths=answers)

    def sample(self, n_steps: int) -> list[Step]:
        """Up to `n_steps` steps of each kind, evenly chosen: kind and tokens, prompts before answers."""
        return [
            *((StepKind.PREFILL, int(n)) for n in _evenly(self.prefill_tokens, n_steps)),
            *((StepKind.DECODE, int(n)) for n in _evenly(self.decode_tokens, n_steps)),
        ]

    def whole_ns(self, steps: Sequence[Step], elapsed_ns: Mapping[StepKind, int]) -> float:
        """Time of all steps, from the time of sampled ones: prefill by tokens, decode by steps.

        A chunk's products take time by its tokens; a decoding step's read the same weights for few tokens or many.
        """
        prefilled = sum(n for kind, n in steps if kind is StepKind.PREFILL)
        decoded = sum(kind is StepKind.DECODE for kind, _ in steps)
        whole = 0.0
        if prefilled:
            whole += elapsed_ns[StepKind.PREFILL] / prefilled * int(self.prefill_tokens.sum())
        if decoded:
            whole += elapsed_ns[StepKind.DECODE] / decoded * len(self.decode_tokens)
        return whole

    def describe(self) -> dict[str, Any]:
        """For a record."""
        return {
            "sequences": len(self.prompt_lengths),
            "prompt_tokens": int(self.prompt_lengths.sum()),
            "answer_tokens": int(self.answer_lengths.sum()),
            "shortest_tokens": int(min(self.prompt_lengths.min(), self.answer_lengths.min())),
            "longest_tokens": int(max(self.prompt_lengths.max(), self.answer_lengths.max())),
            "prefill_steps": len(self.prefill_tokens),
            "decode_steps": len(self.decode_tokens),
            "largest_step_tokens": self.largest_step,
        }

    @property
    def largest_step(self) -> int:
        """Most tokens of a step."""
        return int(max(self.prefill_tokens.max(), self.decode_tokens.max(initial=0)))


def draw_rows(trace: Trace, steps: Sequence[Step], rng: np.random.Generator) -> list[Addresses]:
    """Addresses of each step: runs of text for chunks, single tokens of everywhere for decoding steps."""
    drawn = []
    for kind, n_tokens in steps:
        if kind is StepKind.PREFILL:
            start = int(rng.integers(0, trace.n_tokens))
            positions = np.arange(start, start + n_tokens) % trace.n_tokens
        else:
            positions = rng.integers(0, trace.n_tokens, n_tokens)
        drawn.append(Addresses(rows=trace.addresses.rows[positions], keys=trace.addresses.keys[positions]))
    return drawn


def _evenly(tokens: NDArray[np.int64], n_steps: int) -> NDArray[np.int64]:
    """The middle ones of `n_steps` equal stretches, or all where there are no more."""
    if len(tokens) <= n_steps:
        return tokens
    middles = (np.arange(n_steps) + 0.5) * len(tokens) / n_steps
    return tokens[middles.astype(np.int64)]
