"""What comes next in each of many sequences, as addresses: prompts in chunks, decoded tokens, drafts.

It keeps the few ids of each sequence that a later n-gram still sees. It reads no records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_tables.address.spec import Addresses, AddressSpec
from engram_tables.errors import InvalidInput


class ComingTokens:
    """The ends of sequences under way, by a number of the caller's, for one spec. One thread at a time.

    Every call takes canonical ids by sequence, integers (tokens,), -1 where a token takes no part, and gives the
    addresses of all of them in the order of the mapping, sequence after sequence: one step's batch.
    """

    def __init__(self, spec: AddressSpec) -> None:
        self._spec = spec
        self._n_seen = spec.max_order - 1
        self._seen: dict[int, NDArray[np.int64]] = {}
        self._drafted: dict[int, NDArray[np.int64]] = {}

    def extend(self, ids: Mapping[int, ArrayLike]) -> Addresses:
        """Tokens that are certain: a prompt, a chunk of one, or a decoded token. A sequence begins with its first
        call; drafts that were not accepted are forgotten."""
        addresses, checked = self._address(ids, after_drafts=False)
        for sequence, of_sequence in checked.items():
            self._drafted.pop(sequence, None)
            self._append(sequence, of_sequence)
        return addresses

    def draft(self, ids: Mapping[int, ArrayLike]) -> Addresses:
        """Tokens that may come after those drafted already; what is certain stays as it is."""
        addresses, checked = self._address(ids, after_drafts=True)
        for sequence, of_sequence in checked.items():
            self._drafted[sequence] = np.concatenate([self._drafted_of(sequence), of_sequence])
        return addresses

    def accept(self, sequence: int, n_tokens: int) -> None:
        """The first `n_tokens` that were drafted for a sequence are certain now, the others forgotten."""
        drafted = self._drafted_of(sequence)
        if not 0 <= n_tokens <= len(drafted):
            raise InvalidInput(
                f"sequence {sequence}: accepted {n_tokens} tokens, expected 0 to {len(drafted)}, as drafted"
            )
        self._drafted.pop(sequence, None)
        self._append(sequence, drafted[:n_tokens])

    def end(self, sequence: int) -> None:
        """Forget a sequence; its number may be used again."""
        self._seen.pop(sequence, None)
        self._drafted.pop(sequence, None)

    def _append(self, sequence: int, ids: NDArray[np.int64]) -> None:
        seen = np.concatenate([self._seen_of(sequence), ids])
        self._seen[sequence] = seen[max(0, len(seen) - self._n_seen) :]

    def _address(
        self, ids: Mapping[int, ArrayLike], *, after_drafts: bool
    ) -> tuple[Addresses, dict[int, NDArray[np.int64]]]:
        checked = {sequence: _as_ids(sequence, of_sequence) for sequence, of_sequence in ids.items()}
        parts = []
        for sequence, of_sequence in checked.items():
            before = self._seen_of(sequence)
            if after_drafts:
                before = np.concatenate([before, self._drafted_of(sequence)])
            is_dead = of_sequence < 0
            # One thread: a decoded token's rows are computed sooner than another thread wakes.
            parts.append(self._spec.address(of_sequence, dead=is_dead, history=before, threads=1))
        if not parts:
            return self._spec.address(np.empty(0, np.int64)), checked
        rows = np.concatenate([part.rows for part in parts])
        return Addresses(rows=rows, keys=np.concatenate([part.keys for part in parts])), checked

    def _seen_of(self, sequence: int) -> NDArray[np.int64]:
        return self._seen.get(sequence, np.empty(0, np.int64))

    def _drafted_of(self, sequence: int) -> NDArray[np.int64]:
        return self._drafted.get(sequence, np.empty(0, np.int64))


def chunks(addresses: Addresses, max_tokens: int) -> Iterator[Addresses]:
    """A prompt's addresses as steps of `max_tokens` tokens and a shorter last one."""
    if max_tokens < 1:
        raise InvalidInput(f"chunk: found {max_tokens} tokens, expected 1 or more")
    for start in range(0, len(addresses.rows), max_tokens):
        part = slice(start, start + max_tokens)
        yield Addresses(rows=addresses.rows[part], keys=addresses.keys[part])


def _as_ids(sequence: int, ids: ArrayLike) -> NDArray[np.int64]:
    given = np.asarray(ids)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InvalidInput(f"sequence {sequence}: found {given.dtype} {given.shape}, expected integer ids (tokens,)")
    if given.dtype == np.uint64 and given.size and int(given.max()) >= 2**63:
        raise InvalidInput(f"sequence {sequence}: found id {int(given.max())}, expected at most {2**63 - 1}")
    return given.astype(np.int64)
