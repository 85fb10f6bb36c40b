"""Documents to one stream of token ids. Knows the tokenizer, not the vocabulary's canonical ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.readers import Document
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_BYTES = 1 << 20
"""Text given to the tokenizer at a time: bounds memory, and the wait until Ctrl-C is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStream:
    """Token ids of many documents, one after the other.

    Attributes
    ----------
    ids
        uint32 (n_tokens,).
    document_starts
        int64 (n_documents + 1,): where each document starts in `ids`, then n_tokens.
    """

    ids: npt.NDArray[np.uint32]
    document_starts: npt.NDArray[np.int64]

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents."""
        return len(self.ids)

    @property
    def n_documents(self) -> int:
        """Documents, empty ones counted."""
        return len(self.document_starts) - 1


def tokenize_documents(
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    total_bytes: int = 0,
    progress: ProgressHook | None = None,
) -> TokenStream:
    """Encode every document; no special token is added.

    A document is encoded whole, since a tokenizer need not agree with itself across a cut: the largest one sets the
    memory this takes, some 150 bytes a token while it is encoded. The tokenizer's own threads work
    (RAYON_NUM_THREADS bounds them).

    Parameters
    ----------
    total_bytes
        Bytes of all documents as far as they are known, for `progress` alone.
    progress
        Called with bytes after each batch.
    """
    encoder = _without_limits(tokenizer)
    parts: list[npt.NDArray[np.uint32]] = []
    n_tokens: list[int] = []
    done_bytes = 0
    for batch in _batches(documents):
        encodings = encoder.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
        batch_tokens = [len(encoding) for encoding in encodings]
        each_id = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
        parts.append(np.fromiter(each_id, dtype=np.uint32, count=sum(batch_tokens)))
        n_tokens.extend(batch_tokens)
        done_bytes += sum(document.n_bytes for document in batch)
        if progress is not None:
            progress(done_bytes, max(done_bytes, total_bytes))
    starts = np.zeros(len(n_tokens) + 1, dtype=np.int64)
    np.cumsum(n_tokens, out=starts[1:])
    ids = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)
    return TokenStream(ids=ids, document_starts=starts)


def _without_limits(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, or a copy without its file's truncation and padding: both change counts in silence."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy: Tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    batch_bytes = 0
    for document in documents:
        batch.append(document)
        batch_bytes += document.n_bytes
        if batch_bytes >= BATCH_BYTES:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch
