"""The lookups that a benchmark replays: rows of real text, or uniform rows that are called a bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses, AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.corpus.reading.readers import Corpus, Document, find_documents
from engram_tables.corpus.tokens.token_stream import tokenize_documents
from engram_tables.errors import InvalidInput
from engram_tables.fetch.table import Table
from engram_tables.units import ProgressHook

TRACE_TEXT_BYTES = 1 << 20
_UNIFORM_TOKENS = 131_072


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Addresses of many tokens in text order, and where they come from."""

    addresses: Addresses
    description: dict[str, Any]

    @property
    def n_tokens(self) -> int:
        """Tokens of the trace."""
        return len(self.addresses.rows)

    def batch(self, start: int, n_tokens: int) -> Addresses:
        """The addresses of `n_tokens` tokens in a row."""
        part = slice(start, start + n_tokens)
        return Addresses(rows=self.addresses.rows[part], keys=self.addresses.keys[part])


def text_trace(
    table: Table,
    paths: Sequence[str | Path],
    *,
    vocabulary: Vocabulary | None = None,
    glob: str = "*",
    exclude: Sequence[str] = (),
    text_bytes: int = TRACE_TEXT_BYTES,
    seed: int = 0,
    progress: ProgressHook | None = None,
) -> Trace:
    """The lookups of real text, each document addressed on its own.

    Files are taken in a seeded random order until there are `text_bytes`; of a longer document its beginning. Bytes
    that are not UTF-8 become U+FFFD and are counted in the description.

    Parameters
    ----------
    vocabulary
        The table's own by default; a checkpoint has none.

    Raises
    ------
    InvalidInput
        There is no vocabulary, or the corpus cannot be read.
    SpecMismatch
        The vocabulary is not the one that the table addresses.
    """
    vocabulary = vocabulary or table.vocabulary
    if vocabulary is None:
        raise InvalidInput(
            f"{table.path}: the table holds no vocabulary, which turns text into rows; "
            "give --vocab, or run without --corpus"
        )
    table.spec.check_vocabulary(vocabulary)
    corpus = _some_files(find_documents(paths, glob=glob, exclude=exclude, decode_errors="replace"), text_bytes, seed)
    beginnings = _Beginnings(corpus, text_bytes)
    stream = tokenize_documents(
        vocabulary.tokenizer(), beginnings, total_bytes=min(corpus.total_bytes, text_bytes), progress=progress
    )
    if stream.n_tokens == 0:
        raise InvalidInput("corpus: found no token in the text, expected some; name files that hold text")
    canonical = vocabulary.canonical(stream.ids)
    bounds = [int(start) for start in stream.document_starts]
    spans = [(start, stop) for start, stop in pairwise(bounds) if stop > start]
    parts = [table.spec.address(canonical[start:stop]) for start, stop in spans]
    addresses = Addresses(
        rows=np.concatenate([part.rows for part in parts]), keys=np.concatenate([part.keys for part in parts])
    )
    return Trace(
        addresses=addresses,
        description={
            "kind": "text",
            "is_real_text": True,
            "paths": [str(path) for path in paths],
            "glob": glob,
            "exclude": list(exclude),
            "documents": len(spans),
            "text_bytes": beginnings.n_bytes,
            "replaced_bytes": corpus.replaced_bytes,
            "replaced_files": corpus.replaced_files,
            "tokens": stream.n_tokens,
            "seed": seed,
            "unique_row_ratio": unique_ratio(addresses.rows),
        },
    )


def uniform_trace(spec: AddressSpec, *, n_tokens: int = _UNIFORM_TOKENS, seed: int = 0) -> Trace:
    """Rows drawn evenly from each column's own range: what a cache can do least about. A bound, not real
    text."""
    rng = np.random.default_rng(seed)
    rows = np.empty((n_tokens, len(spec.layers), spec.n_columns), np.int64)
    for layer_idx, layer in enumerate(spec.layers):
        moduli = [modulus for heads in layer.moduli for modulus in heads]
        for column, (offset, modulus) in enumerate(zip(layer.offsets, moduli, strict=True)):
            rows[:, layer_idx, column] = rng.integers(offset, offset + modulus, n_tokens)
    keys = np.zeros((n_tokens, len(spec.layers), len(spec.orders)), spec.key_dtype)
    description = {
        "kind": "uniform",
        "is_real_text": False,
        "note": "uniform random rows: a bound, not real text, which repeats rows and is faster",
        "tokens": n_tokens,
        "seed": seed,
        "unique_row_ratio": unique_ratio(rows),
    }
    return Trace(addresses=Addresses(rows=rows, keys=keys), description=description)


def unique_ratio(rows: NDArray[np.int64]) -> float:
    """Distinct (layer, row) pairs over all of int64 (tokens, layers, columns)."""
    distinct = sum(np.unique(rows[:, layer]).size for layer in range(rows.shape[1]))
    return distinct / rows.size


class _Beginnings:
    """A corpus's documents until `text_bytes` have been given out; the last one is cut."""

    def __init__(self, corpus: Corpus, text_bytes: int) -> None:
        self._corpus = corpus
        self._text_bytes = text_bytes
        self.n_bytes = 0

    def __iter__(self) -> Iterator[Document]:
        for document in self._corpus.documents():
            left = self._text_bytes - self.n_bytes
            if left <= 0:
                return
            if document.n_bytes > left:
                text = document.text.encode()[:left].decode(errors="ignore")
                document = Document(document.source, text, len(text.encode()))
            self.n_bytes += document.n_bytes
            yield document


def _some_files(corpus: Corpus, text_bytes: int, seed: int) -> Corpus:
    order = np.random.default_rng(seed).permutation(len(corpus.files))
    chosen, n_bytes = [], 0
    for nth in order:
        if n_bytes >= text_bytes:
            break
        chosen.append(corpus.files[nth])
        n_bytes += corpus.files[nth].file_bytes
    return replace(corpus, files=tuple(chosen))
