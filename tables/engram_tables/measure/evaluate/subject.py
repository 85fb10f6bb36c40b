"""What one position's judgement needs of the text: canonical n-grams for the counts, rows for the table.

Owns the way from raw ids to both. Knows neither what rows mean nor what was counted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import hash_ngrams, hash_tokens
from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.corpus.tokens.token_store import DEAD
from engram_tables.measure.evaluate.positions import Positions

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


def canonical_ngrams(positions: Positions, vocabulary: Vocabulary, *, pad_id: int | None) -> U32:
    """uint32 (n, reach): the canonical ids that end at each position, oldest first; `pad_id` or 0 where none is."""
    is_none = positions.contexts == DEAD
    found = vocabulary.canonical_ids[np.where(is_none, 0, positions.contexts)]
    found[is_none] = pad_id or 0
    return found


def rows_of(positions: Positions, spec: AddressSpec, vocabulary: Vocabulary, layer: int) -> I64:
    """int64 (n, columns): the rows of one layer, by its place in the spec; every order's n-gram ends at the position.

    Notes
    -----
    Each position is hashed as a sequence of its own, since those that were drawn are no neighbours: `reach` + 1
    places instead of one, which is still far less than reading a row back.
    """
    n, reach = positions.contexts.shape
    is_none = positions.contexts == DEAD
    ids = positions.contexts
    if spec.folded:
        ids = vocabulary.canonical_ids[np.where(is_none, 0, ids)]
    if spec.mix.lagged:
        # A model of such a spec looks a shorter n-gram up some tokens late, when what followed it is known.
        ids = np.where(is_none, spec.history.fill_id, ids).astype(np.uint32)
        layer_id = spec.layer_ids[layer]
        found_of = [hash_ngrams(spec, layer_id, order, ids[:, -order:], threads=1)[1] for order in spec.orders]
        return np.concatenate(found_of, axis=1)
    # A dead place before each keeps them apart.
    laid = np.zeros((n, reach + 1), dtype=np.uint32)
    laid[:, 1:] = ids
    dead = np.ones((n, reach + 1), dtype=bool)
    dead[:, 1:] = is_none
    found = hash_tokens(spec, laid.reshape(-1), dead=dead.reshape(-1), threads=1)
    rows: I64 = np.ascontiguousarray(found.rows.reshape(n, reach + 1, len(spec.layers), -1)[:, -1, layer])
    return rows
