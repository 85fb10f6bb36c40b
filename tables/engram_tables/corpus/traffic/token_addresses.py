"""A stored run of tokens as the hash wants it, chunk by chunk: canonical ids in which documents stand apart.

A dead position ends every look-back exactly as the beginning of a sequence does. So one dead place put between two
documents keeps them apart, and a chunk of any number of documents is hashed by one call, under every history rule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import hash_tokens
from engram_tables.address.spec import AddressSpec, Family, KeyForm, LayerAddressing, MixRule
from engram_tables.address.vectors import SMALLEST_FAST_MODULUS
from engram_tables.corpus.tokens.token_stream import TokenStream
from engram_tables.corpus.traffic import traffic_kernels as kernels
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary

CHUNK_TOKENS = 1 << 14
"""Tokens hashed at a time: their keys stay in the second-level cache."""


class TokenSource(Protocol):
    """What is read: a token store, or anything that gives token ids by position."""

    @property
    def n_tokens(self) -> int:
        """Tokens, dead ones counted."""

    @property
    def n_documents(self) -> int:
        """Documents, empty ones counted."""

    @property
    def n_dead(self) -> int:
        """Dead tokens."""

    def read(self, start: int, stop: int) -> TokenStream:
        """Tokens start … stop - 1, 0xFFFFFFFF where dead; a document cut by either end is simply cut."""


class Chunk(NamedTuple):
    """Tokens laid out for the hash.

    Attributes
    ----------
    ids, kinds
        uint32, uint8 (places,): what is hashed (0xFFFFFFFF in dead places), and which of LIVE, DEAD_TOKEN and APART
        stands there.
    starts
        int64: where documents start in the whole run, of those that start in the chunk; equal where one is empty.
    """

    ids: npt.NDArray[np.uint32]
    kinds: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]


class TokenAddresses:
    """A run of tokens read through a spec and its vocabulary.

    Raises
    ------
    InvalidInput
        The spec hashes canonical ids and there is no vocabulary.
    SpecMismatch
        The vocabulary is another one.
    """

    def __init__(self, spec: AddressSpec, tokens: TokenSource, vocabulary: Vocabulary | None) -> None:
        if vocabulary is not None:
            spec.check_vocabulary(vocabulary)
        elif spec.folded:
            raise InvalidInput(f"spec {spec.name}: hashes canonical ids; token ids need the vocabulary (--vocab)")
        self.spec = spec
        self.tokens = tokens
        self.n_tokens = tokens.n_tokens
        self._lookup = np.empty(0, np.uint32)
        self._bound = spec.canonical_size
        if vocabulary is not None and spec.folded:
            self._lookup, self._bound = vocabulary.canonical_ids, vocabulary.token_count
        self._n_lead = max(1, spec.max_order - 1)

    def buffers(self, n_tokens: int = CHUNK_TOKENS) -> ChunkBuffers:
        """Memory for one chunk of `n_tokens` after the other."""
        return ChunkBuffers(n_tokens + self._n_lead)

    def chunk(self, start: int, stop: int, buffers: ChunkBuffers) -> Chunk:
        """Tokens start … stop - 1 with what they look back to, in `buffers`, until those are used again."""
        before = min(start, self._n_lead)
        stream = self.tokens.read(start - before, stop)
        ids, kinds = buffers.ids, buffers.kinds
        n = kernels.lay_out(stream.ids, stream.document_starts, self._lookup, self._bound, before, ids, kinds)
        if n < 0:
            at = int(np.argmax((stream.ids >= self._bound) & (stream.ids != kernels.DEAD_ID)))
            raise InvalidInput(
                f"token id at position {start - before + at:,}: found {stream.ids[at]:,}, expected 0 to "
                f"{self._bound - 1:,} for {self.spec.name}; were the tokens made with another tokenizer?"
            )
        # A cut document begins the slice without beginning there; with a token before it nothing else can.
        local = stream.document_starts[:-1]
        is_last = stop == self.n_tokens
        local = local[(local >= before) & ((local < stop - start + before) | is_last)]
        return Chunk(ids[:n], kinds[:n], local + (start - before))


class ChunkBuffers:
    """Memory for a chunk of `n_tokens`, look-back included: twice as many places, should each be a document."""

    def __init__(self, n_tokens: int) -> None:
        self.ids = np.empty(2 * n_tokens, np.uint32)
        self.kinds = np.empty(2 * n_tokens, np.uint8)
        self.seen = np.empty(2 * n_tokens, np.uint8)
        self.keys = np.empty(2 * n_tokens, np.uint64)


class KeyMaker:
    """Keys alone, order by order: without rows they cost a tenth.

    Where a key is one word it is an exclusive-or of products, ids packed into a word as well. Wider keys are made by
    the hash itself, from a spec with one small head.
    """

    def __init__(self, spec: AddressSpec, order: int, layer_id: int | None) -> None:
        alone = key_spec(spec, order, layer_id)
        self.n_words = alone.key_words
        self._spec = alone
        self._place, self._n_orders = alone.orders.index(order), len(alone.orders)
        self._word_mask = np.uint64(2**spec.mix.word_bits - 1)
        self._lag = spec.lag(order)
        self._fill = np.uint64(spec.fill_id)
        multipliers = _key_multipliers(spec, order, alone.layers[0])
        self._multipliers = np.array(multipliers if self.n_words == 1 else [], np.uint64)

    def keys(self, chunk: Chunk, buffers: ChunkBuffers) -> npt.NDArray[np.uint64]:
        """uint64 (places * words,); `see_back` gave the chunk. Valid until `buffers` are used again."""
        if self.n_words > 1:
            found = hash_tokens(self._spec, chunk.ids, dead=chunk.ids == kernels.DEAD_ID, threads=1).keys
            words = found.view(np.uint64).reshape(len(chunk.ids), self._n_orders, self.n_words)
            return np.ascontiguousarray(words[:, self._place]).reshape(-1)
        n = len(chunk.ids)
        keys = buffers.keys[:n]
        kernels.mix_keys(chunk.ids, buffers.seen[:n], self._multipliers, self._lag, self._fill, self._word_mask, keys)
        return keys


def see_back(spec: AddressSpec, chunk: Chunk, buffers: ChunkBuffers) -> Chunk:
    """`chunk` with the spec's replacements made, and how far each place sees in `buffers`."""
    history = spec.history
    ids = chunk.ids
    if history.replaced:
        ids = ids.copy()
        for start, stop in history.replaced:
            inside = (chunk.ids >= start) & (chunk.ids < stop) & (chunk.ids != kernels.DEAD_ID)
            ids[inside] = history.replacement
    boundaries = np.array(history.boundary_ids, np.int64)
    visible, closed = int(history.boundary_visible), int(history.boundary_closed)
    kernels.see_back(ids, boundaries, visible, closed, buffers.seen[: len(ids)])
    return chunk._replace(ids=ids)


def key_spec(spec: AddressSpec, order: int, layer_id: int | None = None) -> AddressSpec:
    """A spec with the keys of one order of `spec`, and with one small head.

    Parameters
    ----------
    order
        Orders beside it are left out where that changes none of its keys.
    layer_id
        The layer. Keys that hold ids are the same for every layer, and then it may be None.
    """
    orders = spec.orders if spec.mix.lagged else (order,)
    layer = spec.layers[0] if layer_id is None else spec.layer(layer_id)
    mix, history = spec.mix, spec.history
    if spec.key_form is KeyForm.IDS:
        mix = MixRule(family=Family.POLYNOMIAL)
    if orders == (1,):
        # Nothing lies before a single id, so that no rule about what does is left.
        history = replace(history, boundary_ids=(), boundary_visible=False, boundary_closed=False)
        mix = replace(mix, oldest_first=False)
    multipliers = {Family.POLYNOMIAL: (1,), Family.IDENTITY: ()}.get(mix.family, layer.multipliers[: orders[-1]])
    alone = LayerAddressing(
        layer_id=layer.layer_id,
        multipliers=multipliers,
        moduli=((SMALLEST_FAST_MODULUS,),) * len(orders),
        offsets=(0,) * len(orders),
        n_rows=SMALLEST_FAST_MODULUS,
    )
    return AddressSpec(
        name=spec.name,
        provenance="keys alone",
        canonical_size=spec.canonical_size,
        history=history,
        orders=orders,
        layers=(alone,),
        mix=mix,
        folded=spec.folded,
    )


def _key_multipliers(spec: AddressSpec, order: int, layer: LayerAddressing) -> list[int]:
    """What each id of a one-word key is multiplied by, newest first."""
    match spec.mix.family:
        case Family.XOR_MULTIPLY:
            return list(layer.multipliers[:order][:: -1 if spec.mix.oldest_first else 1])
        case Family.IDENTITY:
            return [1]
        case _:
            return [1 << back * spec.id_bits for back in range(order) if back * spec.id_bits < 64]


def unpack_ids(keys: npt.NDArray[Any], order: int, id_bits: int) -> npt.NDArray[np.uint32]:
    """The n-grams, oldest id first, uint32 (n, order), behind keys of form `KeyForm.IDS`.

    >>> unpack_ids(np.array([[0b110_101]], np.uint64), 2, 3)
    array([[6, 5]], dtype=uint32)

    Parameters
    ----------
    keys
        uint64 (n, words), least significant word first.
    """
    ngrams = np.empty((len(keys), order), np.uint32)
    mask = np.uint64(2**id_bits - 1)
    for back in range(order):
        word, shift = divmod(back * id_bits, 64)
        ids = keys[:, word] >> np.uint64(shift)
        if shift + id_bits > 64:
            ids |= keys[:, word + 1] << np.uint64(64 - shift)
        ngrams[:, order - 1 - back] = ids & mask
    return ngrams
