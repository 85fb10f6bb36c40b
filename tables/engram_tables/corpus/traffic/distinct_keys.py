"""The distinct keys of a long run of tokens, each with how often it occurs, within a bound of memory.

Keys are partitioned by a hash, so that a partition sorts in cache and equal keys meet in it. What does not fit in
memory at once is made in passes: each hashes the tokens again, which costs less than writing keys and reading them.
Distinct keys that do not fit go to a temporary file. Knows keys, and neither rows nor heads.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from engram_tables.address.spec import AddressSpec, KeyForm
from engram_tables.corpus.traffic import traffic_kernels as kernels
from engram_tables.corpus.traffic.token_addresses import (
    CHUNK_TOKENS,
    Chunk,
    ChunkBuffers,
    KeyMaker,
    TokenAddresses,
    see_back,
)
from engram_tables.errors import CapacityError
from engram_tables.memory import CACHE_LINE_BYTES, aligned_bytes
from engram_tables.threads import run_all

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

PARTITION_KEYS = 1 << 15
"""Keys of a partition on the mean: they are sorted in the second-level cache."""
_MOST_PARTITION_BITS = 14
BLOCK_KEYS = 1 << 15
"""Distinct keys read at a time."""
_LEAST_KEYS = 64
_Item = TypeVar("_Item")


class KeySource(NamedTuple):
    """Which keys: those of one order, in one layer; `layer_id` is None where keys are the same in every layer."""

    order: int
    layer_id: int | None


class Block(NamedTuple):
    """Distinct keys and their counts.

    Attributes
    ----------
    keys
        uint64 (n, words), least significant word first.
    counts
        uint32, or uint64 where there may be 2^32 tokens, (n,).
    """

    keys: U64
    counts: npt.NDArray[Any]


class DistinctKeys:
    """Distinct keys of one source: in memory, in the place where they were counted, or in a temporary file."""

    def __init__(self, n_words: int, counts_dtype: np.dtype[Any]) -> None:
        self.n_words = n_words
        self.n_distinct = 0
        self.n_total = 0
        self.file: Any = None
        self._dtype = counts_dtype
        self._segments: list[tuple[int, int]] = []
        self._keys = np.empty(0, np.uint64)
        self._counts = np.empty(0, counts_dtype)

    def hold(self, keys: U64, counts: npt.NDArray[Any], segments: Sequence[tuple[int, int]]) -> None:
        """Take the keys first … first + n - 1 of each segment (first, n) as they lie."""
        self._keys, self._counts, self._segments = keys, counts, list(segments)
        self.n_distinct += sum(n for _, n in segments)

    def spill(self, file: Any, keys: U64, counts: npt.NDArray[Any], segments: Sequence[tuple[int, int]]) -> None:
        """Append them to `file`, keys of a segment first."""
        self.file = file
        for first, n in segments:
            for at in range(first, first + n, BLOCK_KEYS):
                stop = min(at + BLOCK_KEYS, first + n)
                self._segments.append((file.tell(), stop - at))
                file.write(keys[at * self.n_words : stop * self.n_words].data)
                file.write(counts[at:stop].data)
        file.flush()
        self.n_distinct += sum(n for _, n in segments)

    def blocks(self) -> list[tuple[int, int]]:
        """What `read` takes, in parts of `BLOCK_KEYS` keys at most."""
        if self.file is not None:
            return self._segments
        return [
            (at, min(BLOCK_KEYS, first + n - at))
            for first, n in self._segments
            for at in range(first, first + n, BLOCK_KEYS)
        ]

    def read(self, block: tuple[int, int], scratch: npt.NDArray[np.uint8]) -> Block:
        """The keys of one of `blocks`; `scratch` of `scratch_bytes` holds them if they come from the file."""
        first, n = block
        if self.file is None:
            words = self._keys[first * self.n_words : (first + n) * self.n_words]
            return Block(words.reshape(n, self.n_words), self._counts[first : first + n])
        n_bytes = n * (8 * self.n_words + self._dtype.itemsize)
        view, done = scratch[:n_bytes], 0
        while done < n_bytes:
            got = os.preadv(self.file.fileno(), [view[done:].data], first + done)
            if got == 0:
                raise OSError(f"{self.file.name}: the temporary file ends at byte {first + done:,}; was it cut?")
            done += got
        keys = view[: 8 * n * self.n_words].view(np.uint64).reshape(n, self.n_words)
        return Block(keys, view[8 * n * self.n_words :].view(self._dtype))

    def scratch(self) -> npt.NDArray[np.uint8]:
        """Memory for `read`."""
        n_bytes = 0 if self.file is None else BLOCK_KEYS * (8 * self.n_words + self._dtype.itemsize)
        return aligned_bytes(n_bytes, CACHE_LINE_BYTES)


class KeyCounter:
    """Counts the keys of one source after the other, in memory that is allocated once.

    Parameters
    ----------
    room_keys
        Single-word keys that are sorted at once; every other array here is small beside them.
    hold
        Whether the distinct keys of a source that is counted in one pass may stay where they are; otherwise they go to
        a file and `spare` is free.
    directory
        Where that file is.
    add_progress
        Called with tokens as they are hashed, from any thread.
    """

    def __init__(
        self,
        addresses: TokenAddresses,
        *,
        room_keys: int,
        threads: int,
        hold: bool = True,
        directory: Path | None = None,
        add_progress: Callable[[int], None] = lambda _tokens: None,
    ) -> None:
        self.addresses = addresses
        self.threads = threads
        n_tokens = addresses.n_tokens
        self.room_keys = max(_LEAST_KEYS, min(room_keys, room_for_all(addresses.spec, n_tokens)))
        self.counts_dtype = np.dtype(np.uint32 if n_tokens < 2**32 else np.uint64)
        self.hold = hold
        self.directory = directory
        self.add_progress = add_progress
        bits = max(1, (n_tokens // PARTITION_KEYS).bit_length())
        self.shift = 64 - min(bits, _MOST_PARTITION_BITS)
        self.n_partitions = 1 << (64 - self.shift)
        self._keys = aligned_bytes(8 * self.room_keys, CACHE_LINE_BYTES).view(np.uint64)
        self._counts = np.empty(self.room_keys, self.counts_dtype)
        # Each thread hashes one slice of the tokens, so that it knows its own place in every partition.
        n_slices = max(1, min(threads, n_tokens // CHUNK_TOKENS))
        bounds = [n_tokens * k // n_slices for k in range(n_slices + 1)]
        self.slices = list(enumerate(pairwise(bounds)))
        self._sizes: dict[KeySource, I64] = {}

    @property
    def spare(self) -> U64:
        """The memory for keys, free for other use while distinct keys lie in a file."""
        return self._keys

    @staticmethod
    def n_bytes(addresses: TokenAddresses, threads: int) -> int:
        """Bytes of everything but `room_keys`: chunks, lines and histograms of every thread."""
        spec = addresses.spec
        n_lines = 3 * 64 << _MOST_PARTITION_BITS
        n_histograms = 8 * len(spec.layers) * len(spec.orders) << _MOST_PARTITION_BITS
        chunk = (2 * 14 + 4) * CHUNK_TOKENS * (1 if spec.key_words == 1 else 4)
        return threads * (n_lines + n_histograms + chunk)

    def sources(self) -> list[KeySource]:
        """Every source of the spec, order by order."""
        spec = self.addresses.spec
        layers = spec.layer_ids if spec.key_form is KeyForm.MIX else (None,)
        return [KeySource(order, layer_id) for layer_id in layers for order in spec.orders]

    def size_partitions(self) -> None:
        """Hash all tokens once and learn how many keys each partition of each source has."""
        sources = self.sources()
        makers = [self._maker(source) for source in sources]
        sizes = np.zeros((len(self.slices), len(sources), self.n_partitions), np.int64)

        def count(item: tuple[int, tuple[int, int]]) -> None:
            which, (start, stop) = item
            buffers = self.addresses.buffers()
            for chunk in self._chunks(start, stop, buffers):
                for maker, found in zip(makers, sizes[which], strict=True):
                    keys = maker.keys(chunk, buffers)
                    kernels.count_partitions(keys, maker.n_words, chunk.kinds, self.shift, found)

        run_all(count, self.slices, threads=self.threads)
        self._sizes = {source: sizes[:, at] for at, source in enumerate(sources)}

    def _maker(self, source: KeySource) -> KeyMaker:
        return KeyMaker(self.addresses.spec, source.order, source.layer_id)

    @contextmanager
    def count(self, source: KeySource) -> Iterator[DistinctKeys]:
        """The distinct keys of a source; they are gone when the block ends, or another source is counted."""
        maker = self._maker(source)
        n_words = maker.n_words
        found = DistinctKeys(n_words, self.counts_dtype)
        with tempfile.TemporaryFile(dir=self.directory, buffering=1 << 20) as file:
            passes = self.passes(source)
            for first, stop in passes:
                n_keys = self._sizes[source][:, first:stop].sum(axis=0)
                if n_words > 1 or n_keys.sum() > self.room_keys:
                    segments = self._count_by_gathering(maker, first, stop)
                else:
                    segments = self._count_by_scattering(maker, self._sizes[source][:, first:stop], first)
                found.n_total += int(n_keys.sum())
                if self.hold and len(passes) == 1:
                    found.hold(self._keys, self._counts, segments)
                else:
                    found.spill(file, self._keys, self._counts, segments)
            yield found

    def passes(self, source: KeySource) -> list[tuple[int, int]]:
        """Ranges of partitions, each as many as fit at once; one too large for that stands alone."""
        n_words = self._maker(source).n_words
        room = self.room_keys if n_words == 1 else _sorted_at_once(self.room_keys, n_words)
        ranges, first, n_keys = [], 0, 0
        for partition, size in enumerate(self._sizes[source].sum(axis=0).tolist()):
            if n_keys and n_keys + size > room:
                ranges.append((first, partition))
                first, n_keys = partition, 0
            n_keys += size
        return [*ranges, (first, self.n_partitions)]

    def _chunks(self, start: int, stop: int, buffers: ChunkBuffers) -> Iterator[Chunk]:
        """The tokens start … stop - 1, ready for makers of keys."""
        for begin in range(start, stop, CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, stop)
            yield see_back(self.addresses.spec, self.addresses.chunk(begin, end, buffers), buffers)
            self.add_progress(end - begin)

    def _count_by_scattering(self, maker: KeyMaker, sizes: I64, first: int) -> list[tuple[int, int]]:
        """Scatter the keys of some partitions to their places, sort each partition, leave each key once.

        Parameters
        ----------
        sizes
            int64 (slices, partitions): keys of each, from partition `first` on.
        """
        n_partitions = sizes.shape[1]
        starts = np.zeros(n_partitions + 1, np.int64)
        np.cumsum(sizes.sum(axis=0), out=starts[1:])
        first_places = (np.cumsum(sizes, axis=0) - sizes + starts[:-1]).astype(np.uint64)

        def scatter(item: tuple[int, tuple[int, int]]) -> None:
            which, (begin, end) = item
            buffers = self.addresses.buffers()
            mine, cursors = first_places[which], first_places[which].copy()
            lines = aligned_bytes(64 * n_partitions, CACHE_LINE_BYTES).view(np.uint64)
            for chunk in self._chunks(begin, end, buffers):
                keys = maker.keys(chunk, buffers)
                kernels.scatter_keys(keys, chunk.kinds, self.shift, first, mine, cursors, lines, self._keys)
            kernels.flush_keys(mine, cursors, lines, self._keys)

        run_all(scatter, self.slices, threads=self.threads)
        n_distinct = np.zeros(n_partitions, np.int64)

        def compact(partition: int) -> None:
            begin, end = int(starts[partition]), int(starts[partition + 1])
            if begin < end:
                keys = self._keys[begin:end]
                keys.sort()
                n_distinct[partition] = kernels.compact_runs(keys, self._counts[begin:end])

        run_all(compact, range(n_partitions), threads=self.threads)
        return [(begin, n) for begin, n in zip(starts[:-1].tolist(), n_distinct.tolist(), strict=True) if n]

    def _count_by_gathering(self, maker: KeyMaker, first: int, stop: int) -> list[tuple[int, int]]:
        """The same with one thread, for keys of several words and for more keys than there is room for.

        More come from a few keys that occur very often: part after part is sorted and added to what there is.
        """
        n_words = maker.n_words
        room = _sorted_at_once(self.room_keys, n_words)
        gathered = np.empty(room * n_words, np.uint64)
        n_gathered, n_keys = 0, 0
        buffers = self.addresses.buffers()
        for chunk in self._chunks(0, self.addresses.n_tokens, buffers):
            keys, begin = maker.keys(chunk, buffers), 0
            while begin < len(chunk.kinds):
                begin, n_gathered = kernels.gather_keys(
                    keys, n_words, chunk.kinds, self.shift, first, stop, begin, gathered, n_gathered
                )
                if begin < len(chunk.kinds):
                    n_keys = self._add(gathered, n_gathered, n_keys, n_words)
                    n_gathered = 0
        n_keys = self._add(gathered, n_gathered, n_keys, n_words)
        return [(0, n_keys)] if n_keys else []

    def _add(self, gathered: U64, n_gathered: int, n_keys: int, n_words: int) -> int:
        """Add gathered keys to the `n_keys` distinct ones that lie in front; how many there are now."""
        new = gathered[: n_gathered * n_words].reshape(-1, n_words)
        keys = np.concatenate([self._keys[: n_keys * n_words].reshape(-1, n_words), new])
        counts = np.concatenate([self._counts[:n_keys], np.ones(len(new), self.counts_dtype)])
        if len(keys) == 0:
            return 0
        by_key = np.lexsort(keys.T)
        keys, counts = keys[by_key], counts[by_key]
        begins = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]).any(axis=1)))
        if len(begins) * n_words > self.room_keys:
            raise CapacityError(
                f"keys of {n_words} words: found {len(begins):,} distinct ones in one partition of "
                f"{self.n_partitions:,}, expected {self.room_keys // n_words:,} at most; give more --memory"
            )
        self._keys[: len(begins) * n_words] = keys[begins].reshape(-1)
        self._counts[: len(begins)] = np.add.reduceat(counts, begins, dtype=self.counts_dtype)
        return len(begins)


def room_for_all(spec: AddressSpec, n_tokens: int) -> int:
    """`room_keys` with which every source of the spec is counted in one pass."""
    n_words = spec.key_words
    return n_tokens if n_words == 1 else 2 * (3 * n_words + 1) * n_tokens


def _sorted_at_once(room_keys: int, n_words: int) -> int:
    """Keys that are sorted through an index, with three copies of themselves, in half the room that is kept for keys.

    >>> _sorted_at_once(1400, 2)
    100
    """
    room = max(1, room_keys // (2 * (3 * n_words + 1)))
    # Single words are sorted so only where a few keys occur very often, and then a small part does.
    return min(room, 1 << 20) if n_words == 1 else room
