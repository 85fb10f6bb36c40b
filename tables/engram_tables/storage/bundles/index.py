"""The key index of one layer and order: which bundle holds an n-gram's rows. It knows slots, and not where they lie."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engram_tables.errors import CapacityError
from engram_tables.storage.bundles import index_kernels as kernels

MAX_BUNDLES = 2**31
"""Of one layer and order; homes are found with 32 bits."""

I64 = npt.NDArray[np.int64]


def n_slots_of(n_bundles: int) -> int:
    """Slots for so many keys: three for two, and one that stays free."""
    return n_bundles + n_bundles // 2 + 1


def slot_bytes(key_words: int) -> int:
    """Bytes of a slot: the key, and a word that holds number and check."""
    return 8 * (key_words + 1)


class KeyIndex:
    """Slots and what they answer. Reading is safe from many threads, entering is not.

    Parameters
    ----------
    slots
        uint64 (slots, words of a key + 1), as `index_kernels` describes them; a mapped file or memory.
    n_bundles
        Keys that are entered.
    """

    def __init__(self, slots: npt.NDArray[np.uint64], *, n_bundles: int) -> None:
        self.slots = slots
        self.n_bundles = n_bundles

    @classmethod
    def empty(cls, n_keys: int, key_words: int) -> Self:
        """One with room for so many keys; `CapacityError` beyond `MAX_BUNDLES`."""
        if n_keys >= MAX_BUNDLES:
            raise CapacityError(
                f"bundles: found {n_keys:,} n-grams of one order, expected {MAX_BUNDLES - 1:,} at most; give a "
                "smaller budget"
            )
        return cls(np.zeros((n_slots_of(n_keys), key_words + 1), np.uint64), n_bundles=0)

    def insert(self, keys: npt.NDArray[Any], rows: I64) -> I64:
        """Enter the keys of n-grams, the most frequent first.

        Parameters
        ----------
        keys
            (n,) of the spec's `key_dtype`.
        rows
            int64 (n, heads): the rows that each owns.

        Returns
        -------
        int64 (n,): the number of each one's bundle, or -1 for a key that is here already.
        """
        numbers = np.empty(len(keys), np.int64)
        words, flat = np.ascontiguousarray(keys).view(np.uint64).reshape(-1), np.ascontiguousarray(rows).reshape(-1)
        self.n_bundles = int(kernels.insert(words, flat, rows.shape[1], self.n_bundles, self.slots, numbers))
        return numbers

    def find(self, keys: npt.NDArray[Any]) -> I64:
        """int64 (n,): the number of each key's bundle, or -1; `keys` (n,) of the spec's `key_dtype`."""
        numbers = np.empty(len(keys), np.int64)
        words = np.ascontiguousarray(keys).view(np.uint64).reshape(-1)
        kernels.find(words, self.slots, self.n_bundles, numbers)
        return numbers
