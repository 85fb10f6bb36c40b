"""Documents to one stream of token ids. Knows the tokenizer, not the vocabulary's canonical ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.reading.documents import Document
from engram_tables.corpus.tokens.encoders import Encoder, make_encoder
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_BYTES = 1 << 20
"""Text encoded at a time: bounds memory, and the wait until Ctrl-C is answered."""
LIBRARY_BYTES = 1 << 21
"""Text that the tokenizers library encodes in less time than it takes to make a faster encoder."""


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
    memory this takes, some 10 bytes a byte of text while it is encoded, or 150 bytes a token where
    `corpus.encoders` leaves the work to the tokenizers library.

    Parameters
    ----------
    total_bytes
        Bytes of all documents as far as they are known, for `progress` alone.
    progress
        Called with bytes after each batch.
    """
    encoder: Encoder = make_encoder(tokenizer, fast=False)
    parts: list[npt.NDArray[np.uint32]] = []
    n_tokens: list[npt.NDArray[np.int64]] = []
    done_bytes, tried = 0, False
    for batch in _batches(documents):
        if not tried and done_bytes >= LIBRARY_BYTES:
            encoder, tried = make_encoder(tokenizer), True
        ids, batch_tokens = encoder.encode([document.text for document in batch])
        parts.append(ids)
        n_tokens.append(batch_tokens)
        done_bytes += sum(document.n_bytes for document in batch)
        if progress is not None:
            progress(done_bytes, max(done_bytes, total_bytes))
    each_tokens = np.concatenate([np.empty(0, dtype=np.int64), *n_tokens])
    starts = np.zeros(len(each_tokens) + 1, dtype=np.int64)
    np.cumsum(each_tokens, out=starts[1:])
    return TokenStream(ids=np.concatenate([np.empty(0, dtype=np.uint32), *parts]), document_starts=starts)


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
