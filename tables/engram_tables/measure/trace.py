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
from engram_tables.corpus.traffic.trace import open_trace
from engram_tables.corpus.traffic.trace_contents import Store
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.fetch.table import Table
from engram_tables.units import ProgressHook

TRACE_TEXT_BYTES = 1 << 20
STORED_TOKENS = 262_144
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


def stored_trace(table: Table, path: str | Path, *, n_tokens: int = STORED_TOKENS, seed: int = 0) -> Trace:
    """The lookups of a trace directory: `n_tokens` of them in a row, from a seeded random place.

    Dead positions look nothing up and are left out.

    Raises
    ------
    InvalidInput
        No trace, or none of its tokens looks anything up.
    SpecMismatch
        It was traced with another addressing than the table's.
    """
    with open_trace(path) as stored:
        if stored.spec.fingerprint != table.spec.fingerprint:
            raise SpecMismatch(
                f"{path}: traced with the addressing {stored.spec.fingerprint[:16]}, expected {table.path}'s "
                f"{table.spec.fingerprint[:16]}; trace the tokens with this table's spec"
            )
        start = int(np.random.default_rng(seed).integers(0, max(stored.n_tokens - n_tokens, 0) + 1))
        stop = min(start + n_tokens, stored.n_tokens)
        rows = stored.rows(start, stop)
        holds_keys = stored.store is not Store.ROWS
        keys = stored.keys(start, stop) if holds_keys else no_keys(table.spec, stop - start)
        alive = np.ones(stop - start, np.bool_)
        dead = np.asarray(stored.dead)
        alive[dead[(dead >= start) & (dead < stop)] - start] = False
        if not alive.any():
            raise InvalidInput(f"{path}: found no token that looks a row up in {stop - start}, expected some")
        rows = np.ascontiguousarray(rows[alive])
        starts = np.asarray(stored.document_starts)
        return Trace(
            addresses=Addresses(rows=rows, keys=np.ascontiguousarray(keys[alive])),
            description={
                "kind": "trace",
                "is_real_text": True,
                "paths": [str(path)],
                "trace_sha256": stored.sha256,
                "documents": int(np.searchsorted(starts, stop) - np.searchsorted(starts, start, side="right") + 1),
                "tokens": len(rows),
                "tokens_in_all": stored.n_tokens,
                "first_token": start,
                "seed": seed,
                "unique_row_ratio": unique_ratio(rows),
            },
        )


def no_keys(spec: AddressSpec, n_tokens: int) -> NDArray[Any]:
    """Keys where only rows matter: zeros, (tokens, layers, orders)."""
    return np.zeros((n_tokens, len(spec.layers), len(spec.orders)), spec.key_dtype)


def repeated_trace(spec: AddressSpec, *, n_tokens: int = _UNIFORM_TOKENS, n_ids: int = 4, seed: int = 0) -> Trace:
    """One id over and over, then another: what a cache can do most about. A bound, not real text."""
    ids = np.random.default_rng(seed).integers(0, spec.canonical_size, n_ids)
    found = [spec.address(np.full(-(-n_tokens // n_ids), token_id)) for token_id in ids]
    rows = np.concatenate([part.rows for part in found])
    return Trace(
        addresses=Addresses(rows=rows, keys=np.concatenate([part.keys for part in found])),
        description={
            "kind": "repeated",
            "is_real_text": False,
            "note": "one token repeated: a bound, not real text, which repeats rows less and is slower",
            "tokens": len(rows),
            "seed": seed,
            "unique_row_ratio": unique_ratio(rows),
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
    keys = no_keys(spec, n_tokens)
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
