"""From tokens to a trace directory and its traffic: a plan with exact sizes, and its execution."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import hash_tokens
from engram_tables.address.spec import AddressSpec, KeyForm, LayerAddressing
from engram_tables.corpus.outputs import refuse_foreign_output
from engram_tables.corpus.tokens.array_file import HEADER_BYTES, file_digest
from engram_tables.corpus.tokens.token_manifest import content_digest, manifest_bytes
from engram_tables.corpus.traffic import traffic_kernels as kernels
from engram_tables.corpus.traffic.row_hits import HitsSink
from engram_tables.corpus.traffic.row_traffic import (
    MEMORY_BYTES,
    Traffic,
    heads_are_apart,
    measure_traffic,
    plan_traffic,
)
from engram_tables.corpus.traffic.token_addresses import Chunk, KeyMaker, TokenAddresses, see_back
from engram_tables.corpus.traffic.trace import (
    MANIFEST_NAME,
    SCHEMA,
    ArrayForm,
    hits_name,
    is_trace,
    npy_header,
    shard_name,
    shard_tokens,
    trace_arrays,
)
from engram_tables.corpus.traffic.trace_contents import Store
from engram_tables.errors import InvalidInput
from engram_tables.files import new_directory
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.traffic.token_addresses import TokenSource

Stage = Callable[[str, str], AbstractContextManager[ProgressHook]]
"""Called with the name of a stage and its unit; the progress hook it gives lives as long as the stage."""
_I8 = np.dtype("<i8")
_CHUNK_TOKENS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePlan:
    """What a trace would write.

    Attributes
    ----------
    output
        None where only the report is wanted.
    files
        (name, bytes) of every array; the manifest comes on top.
    """

    addresses: TokenAddresses
    vocabulary: Vocabulary | None
    output: Path | None
    store: Store
    hits: bool
    memory_bytes: int
    threads: int | None
    files: tuple[tuple[str, int], ...]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and rows, as stored."""
        return sum(array.token_bytes for array in trace_arrays(self.addresses.spec, self.store))


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedTokens:
    """A finished trace: its traffic, and its manifest as written (None without an output)."""

    traffic: Traffic
    manifest: dict[str, Any] | None


@contextmanager
def _unwatched(_task: str, _unit: str) -> Iterator[ProgressHook]:
    yield lambda _done, _total: None


def plan_trace(
    spec: AddressSpec,
    tokens: TokenSource,
    vocabulary: Vocabulary | None,
    *,
    output: Path | None,
    store: Store | str = Store.KEYS,
    hits: bool = False,
    memory_bytes: int = MEMORY_BYTES,
    threads: int | None = None,
    force: bool = False,
) -> TracePlan:
    """Refuse what cannot work and size every file, before a token is read.

    Raises
    ------
    InvalidInput
        No token; an output that exists and `force` is not set, or that is no trace; nothing to write in it; no output
        for what is to be written; no vocabulary for a spec that needs one.
    SpecMismatch
        Another vocabulary than the spec's.
    CapacityError
        Too little memory.
    """
    wanted = Store(store)
    addresses = TokenAddresses(spec, tokens, vocabulary)
    if tokens.n_tokens == 0:
        raise InvalidInput("tokens: found none, expected some to trace; name a store that holds text")
    writes = wanted is not Store.NONE or hits
    if output is None and writes:
        raise InvalidInput(f"store {wanted.value}: found no output directory, expected one; give -o, or --store none")
    if output is not None:
        if not writes:
            raise InvalidInput(f"{output}: found nothing to write there, expected none; leave out -o, or give --hits")
        refuse_foreign_output(
            output, force=force, what="trace", suggestion="trace", is_ours=is_trace, names=r"trace\.json|.*\.npy"
        )
    plan_traffic(addresses, memory_bytes=memory_bytes, threads=threads)
    files: list[tuple[str, int]] = []
    if writes:
        files += [("starts.npy", HEADER_BYTES + 8 * (tokens.n_documents + 1))]
        files += [("dead.npy", HEADER_BYTES + 8 * tokens.n_dead)]
    arrays = trace_arrays(spec, wanted)
    for shard, n in enumerate(_shard_sizes(tokens.n_tokens, arrays)):
        files += [(shard_name(shard, array.kind), array.file_bytes(n)) for array in arrays]
    if hits:
        for layer in spec.layers:
            n_bytes = HEADER_BYTES + layer.n_rows * hits_dtype(spec, layer, tokens.n_tokens).itemsize
            files.append((hits_name(layer.layer_id), n_bytes))
    return TracePlan(
        addresses=addresses, vocabulary=vocabulary, output=output, store=wanted, hits=hits,
        memory_bytes=memory_bytes, threads=threads, files=tuple(files),
    )  # fmt: skip


def run_trace(plan: TracePlan, *, force: bool = False, stage: Stage = _unwatched) -> TracedTokens:
    """Carry a plan out; the output appears whole or not at all.

    Raises
    ------
    InvalidInput
        A token id that the vocabulary or the spec does not have, or tokens that are not as many as they say.
    """
    if plan.output is None:
        return TracedTokens(traffic=_measure(plan, stage, None, None), manifest=None)
    with new_directory(plan.output, force=force) as target:
        with stage("tracing", "tokens") as progress:
            digests = _write_arrays(plan, target, progress)
        sinks = _HitsFiles(plan, target) if plan.hits else None
        try:
            traffic = _measure(plan, stage, target, sinks)
        finally:
            if sinks is not None:
                sinks.close()
        if sinks is not None:
            digests |= {name: file_digest(target / name) for name in sinks.names}
        manifest = _manifest(plan, digests)
        _write_flushed(target / MANIFEST_NAME, manifest_bytes(manifest))
    return TracedTokens(traffic=traffic, manifest=manifest)


def hits_dtype(spec: AddressSpec, layer: LayerAddressing, n_tokens: int) -> np.dtype[Any]:
    """The narrowest integers that hold any row's hits: where heads share rows, a token may hit one several times."""
    most = n_tokens * (1 if heads_are_apart(layer) else spec.n_columns)
    return np.dtype("<u4" if most < 2**32 else "<u8")


def _measure(plan: TracePlan, stage: Stage, target: Path | None, sinks: _HitsFiles | None) -> Traffic:
    with stage("counting hits", "tokens") as progress:
        return measure_traffic(
            plan.addresses,
            memory_bytes=plan.memory_bytes,
            threads=plan.threads,
            directory=target,
            sink_for=None if sinks is None else sinks.sink,
            progress=progress,
        )


def _shard_sizes(n_tokens: int, arrays: tuple[ArrayForm, ...]) -> list[int]:
    if not arrays:
        return []
    per_shard = shard_tokens(arrays)
    return [min(per_shard, n_tokens - start) for start in range(0, n_tokens, per_shard)]


class _ArrayFile:
    """A .npy that is appended to, of a shape that is known before; its digest is made on the way."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.path = path
        self._dtype = dtype
        self._digest = hashlib.sha256()
        self._file = path.open("xb", buffering=0)
        self._write(memoryview(npy_header(dtype, shape)))

    def append(self, items: npt.NDArray[Any]) -> None:
        """Add items of any integer dtype that hold what the file's dtype can."""
        if items.size:
            self._write(np.ascontiguousarray(items, dtype=self._dtype).reshape(-1).view(np.uint8).data)

    def finish(self) -> str:
        """Flush to the disk; the file's SHA-256."""
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()

    def _write(self, data: memoryview) -> None:
        self._digest.update(data)
        done = 0
        while done < len(data):
            done += self._file.write(data[done:]) or 0


def _write_arrays(plan: TracePlan, target: Path, progress: ProgressHook) -> dict[str, str]:
    """Write starts, dead positions and every shard; digests by name."""
    addresses, tokens = plan.addresses, plan.addresses.tokens
    arrays = trace_arrays(addresses.spec, plan.store)
    n_tokens, per_shard = tokens.n_tokens, shard_tokens(arrays)
    step = min(_CHUNK_TOKENS, per_shard)
    values = _Values(plan, arrays, step)
    digests: dict[str, str] = {}
    n_starts = n_dead = 0
    with ExitStack() as stack:

        def new(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> _ArrayFile:
            file = _ArrayFile(target / name, dtype, shape)
            stack.callback(file.close)
            return file

        starts = new("starts.npy", _I8, (tokens.n_documents + 1,))
        dead = new("dead.npy", _I8, (tokens.n_dead,))
        shards: list[_ArrayFile] = []
        for begin in range(0, n_tokens, step):
            if begin % per_shard == 0 and arrays:
                digests |= _finish(shards)
                n = min(per_shard, n_tokens - begin)
                shards = [
                    new(shard_name(begin // per_shard, array.kind), array.dtype, (n, *array.shape)) for array in arrays
                ]
            chunk = addresses.chunk(begin, min(begin + step, n_tokens), values.buffers)
            here = chunk.kinds != kernels.APART
            dead_here = np.flatnonzero(chunk.kinds[here] == kernels.DEAD_TOKEN) + begin
            starts.append(chunk.starts)
            dead.append(dead_here)
            n_starts, n_dead = n_starts + len(chunk.starts), n_dead + len(dead_here)
            for file, found in zip(shards, values.of(chunk), strict=True):
                file.append(found[here])
            progress(begin + int(here.sum()), n_tokens)
        starts.append(np.array([n_tokens]))
        if (n_starts, n_dead) != (tokens.n_documents, tokens.n_dead):
            raise InvalidInput(
                f"tokens: found {n_starts:,} documents and {n_dead:,} dead positions, expected {tokens.n_documents:,} "
                f"and {tokens.n_dead:,} as the store says; tokenise again"
            )
        return digests | _finish([starts, dead, *shards])


class _Values:
    """What the arrays of a trace hold of every place of a chunk."""

    def __init__(self, plan: TracePlan, arrays: tuple[ArrayForm, ...], n_tokens: int) -> None:
        spec = plan.addresses.spec
        self.buffers = plan.addresses.buffers(n_tokens)
        self._spec, self._threads, self._arrays = spec, plan.threads, arrays
        self._makers: list[list[KeyMaker]] = []
        if {array.kind for array in arrays} == {"keys"} and spec.key_words == 1:
            # Without rows, keys are made an order at a time, which costs a fraction.
            layer_ids = spec.layer_ids if spec.key_form is KeyForm.MIX else (None,)
            self._makers = [[KeyMaker(spec, order, layer_id) for order in spec.orders] for layer_id in layer_ids]

    def of(self, chunk: Chunk) -> list[npt.NDArray[Any]]:
        """One array of (places, …) for each array of the trace."""
        n = len(chunk.ids)
        if self._makers:
            seen = see_back(self._spec, chunk, self.buffers)
            keys = np.empty((n, *self._arrays[0].shape), np.uint64)
            jobs = [(at, place) for at, makers in enumerate(self._makers) for place in range(len(makers))]
            for at, place in jobs:
                keys[:, at, place] = self._makers[at][place].keys(seen, self.buffers)
            return [keys]
        if [array.kind for array in self._arrays] in ([], ["ids"]):
            return [chunk.ids] * len(self._arrays)
        found = hash_tokens(self._spec, chunk.ids, dead=chunk.ids == kernels.DEAD_ID, threads=self._threads)
        keys = found.keys if self._spec.key_form is KeyForm.MIX else found.keys[:, :1]
        words = np.ascontiguousarray(keys).view(np.uint64)
        return [found.rows if array.kind == "rows" else words.reshape(n, *array.shape) for array in self._arrays]


def _finish(files: list[_ArrayFile]) -> dict[str, str]:
    digests = {file.path.name: file.finish() for file in files}
    for file in files:
        file.close()
    return digests


class _HitsFiles:
    """The hits of every layer, written head by head; heads that share rows are added up."""

    def __init__(self, plan: TracePlan, target: Path) -> None:
        self._spec = plan.addresses.spec
        self._lock = threading.Lock()
        self._files: dict[int, Any] = {}
        self._dtypes = {}
        for layer in self._spec.layers:
            dtype = hits_dtype(self._spec, layer, plan.addresses.n_tokens)
            self._dtypes[layer.layer_id] = dtype
            file = (target / hits_name(layer.layer_id)).open("xb+", buffering=0)
            self._files[layer.layer_id] = file
            file.write(npy_header(dtype, (layer.n_rows,)))
            # Rows that nothing hits need not be written: what lies between reads as 0.
            file.truncate(HEADER_BYTES + layer.n_rows * dtype.itemsize)

    @property
    def names(self) -> list[str]:
        """Names of the files, layer by layer."""
        return [hits_name(layer_id) for layer_id in self._files]

    def sink(self, layer_id: int, column: int) -> HitsSink:
        """What takes the hits of one head."""
        layer = self._spec.layer(layer_id)
        fd, dtype = self._files[layer_id].fileno(), self._dtypes[layer_id]
        first_byte = HEADER_BYTES + layer.offsets[column] * dtype.itemsize
        is_shared = not heads_are_apart(layer)

        def write(first_row: int, hits: npt.NDArray[Any]) -> None:
            at = first_byte + first_row * dtype.itemsize
            if not is_shared:
                _pwrite(fd, hits.astype(dtype, copy=False), at)
                return
            with self._lock:
                there = np.empty(len(hits), dtype)
                _pread(fd, there, at)
                _pwrite(fd, there + hits.astype(dtype, copy=False), at)

        return write

    def close(self) -> None:
        """Flush to the disk and close."""
        for file in self._files.values():
            os.fsync(file.fileno())
            file.close()


def _pwrite(fd: int, items: npt.NDArray[Any], at: int) -> None:
    data, done = items.view(np.uint8).data, 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], at + done)


def _pread(fd: int, items: npt.NDArray[Any], at: int) -> None:
    data, done = items.view(np.uint8).data, 0
    while done < len(data):
        got = os.preadv(fd, [data[done:]], at + done)
        if got == 0:
            raise OSError(f"the hits end at byte {at + done:,} before the rows do")
        done += got


def _manifest(plan: TracePlan, digests: dict[str, str]) -> dict[str, Any]:
    spec, tokens = plan.addresses.spec, plan.addresses.tokens
    arrays = trace_arrays(spec, plan.store)
    manifest = {
        "schema": SCHEMA,
        "spec": spec.to_json(),
        "fingerprint": spec.fingerprint,
        "vocab_sha256": None if plan.vocabulary is None else plan.vocabulary.map_sha256,
        "tokens_sha256": getattr(tokens, "sha256", None),
        "n_tokens": tokens.n_tokens,
        "n_documents": tokens.n_documents,
        "n_dead": tokens.n_dead,
        "store": plan.store.value,
        "shard_tokens": shard_tokens(arrays),
        "arrays": [
            {"kind": array.kind, "dtype": array.dtype.str, "token_shape": list(array.shape)} for array in arrays
        ],
        "hits": [
            {"layer_id": layer.layer_id, "dtype": hits_dtype(spec, layer, tokens.n_tokens).str}
            for layer in (spec.layers if plan.hits else ())
        ],
        "files": [{"name": name, "file_bytes": n_bytes, "sha256": digests[name]} for name, n_bytes in plan.files],
    }
    return manifest | {"manifest_sha256": content_digest(manifest)}


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
