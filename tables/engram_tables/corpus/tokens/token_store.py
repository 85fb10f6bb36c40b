"""Tokens on disk: a directory of shards, each an array of ids and one of document starts, and a manifest.

Owns the directory's layout and reading it. Knows no text: a tokenizer is a digest and a size here.
`token_shards` writes these directories.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.tokens.array_file import damaged, file_digest, map_array, map_file
from engram_tables.corpus.tokens.token_manifest import (
    DEAD,
    FILE_KINDS,
    STARTS_DTYPE,
    has_manifest,
    ids_dtype,
    names_schema,
    read_manifest,
)
from engram_tables.corpus.tokens.token_stream import TokenStream
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import ProgressHook

__all__ = ["DEAD", "TokenStore", "is_token_store", "open_tokens"]

_WIDEN_TOKENS = 1 << 14
"""Tokens widened at a time: source, scratch and result stay in a core's own cache."""
_SLICE_TOKENS = 1 << 20

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


def is_token_store(path: str | Path) -> bool:
    """Whether `path` is a directory with the manifest of a token store of any version; `open_tokens` says more."""
    return has_manifest(Path(path))


def open_tokens(path: str | Path) -> TokenStore:
    """Open a token store: manifest, length and header of every file are checked, then all files are mapped.

    The files may be deleted afterwards; the store keeps reading them. Content is checked by `TokenStore.verify`.

    Raises
    ------
    InvalidInput
        Not a token store, an unknown version, or a file that is missing, cut, or has another header.
    """
    return TokenStore(Path(path))


class TokenStore:
    """An open token store; see `open_tokens`.

    Positions are counted over the whole store: documents in corpus order, one after the other, dead positions too.

    Attributes
    ----------
    path, manifest
        Where it was opened, and what its manifest says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        dtype = ids_dtype(self.token_size)
        self._mapped: list[_Shard] | None = [
            _Shard(path, number, told, dtype) for number, told in enumerate(self.manifest["shards"])
        ]
        self._firsts = np.zeros(len(self._shards) + 1, dtype=np.int64)
        np.cumsum([shard.n_tokens for shard in self._shards], out=self._firsts[1:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the mappings; reading afterwards is an `InvalidInput`. Arrays that were read stay valid."""
        shards, self._mapped = self._mapped, None
        for shard in shards or ():
            shard.release()

    @property
    def n_tokens(self) -> int:
        """Positions of all documents, dead ones included."""
        return int(self.manifest["n_tokens"])

    @property
    def n_documents(self) -> int:
        """Documents, empty ones counted."""
        return int(self.manifest["n_documents"])

    @property
    def n_dead(self) -> int:
        """Positions that are dead."""
        return int(self.manifest["n_dead"])

    @property
    def token_size(self) -> int:
        """Bound of the token ids."""
        return int(self.manifest["token_size"])

    @property
    def tokenizer_sha256(self) -> str | None:
        """Digest of the tokenizer.json that the ids belong to; None where nobody said."""
        found: str | None = self.manifest["tokenizer_sha256"]
        return found

    @property
    def sha256(self) -> str:
        """Digest of the manifest, which holds those of all files: what names this store."""
        return str(self.manifest["manifest_sha256"])

    @property
    def file_bytes(self) -> int:
        """Bytes of all shards' files."""
        return sum(
            entry["file_bytes"] for told in self.manifest["shards"] for entry in map(told.get, FILE_KINDS) if entry
        )

    def check_tokenizer(self, tokenizer_sha256: str) -> None:
        """Raise `SpecMismatch` if these ids were made with a tokenizer of another digest."""
        if self.tokenizer_sha256 not in (None, tokenizer_sha256):
            raise SpecMismatch(
                f"{self.path}: its ids belong to the tokenizer {self.tokenizer_sha256}, the one in use is "
                f"{tokenizer_sha256}; ids of one mean nothing in the other: tokenise again with this one, or use the "
                "vocabulary of the first"
            )

    def read(self, start: int, stop: int, *, into: U32 | None = None, threads: int | None = None) -> TokenStream:
        """Positions [start, stop), DEAD where dead, and the documents they lie in.

        A document that `start` or `stop` cuts is simply cut. A document without positions belongs to the slice if it
        lies at or after `start` and before `stop`; those at the store's end belong to a slice that ends there.

        Parameters
        ----------
        into
            uint32 (stop - start or more,), contiguous: takes the ids; fresh memory if None.
        threads
            That copy long slices; all usable CPUs by default.

        Returns
        -------
        `ids` uint32 (stop - start,); `document_starts` int64, local to the slice: the first is 0, the last
        stop - start. Ids are not compared with `token_size`: see `verify`.

        Raises
        ------
        InvalidInput
            A slice outside the store, or document starts that do not ascend.
        """
        self._check_slice(start, stop)
        n_tokens = stop - start
        if into is None:
            into = np.empty(n_tokens, dtype=np.uint32)
        elif into.dtype != np.uint32 or into.ndim != 1 or len(into) < n_tokens or not into.flags.c_contiguous:
            raise InvalidInput(
                f"into: found {into.dtype} {into.shape}, expected contiguous uint32 ({n_tokens:,} or more,)"
            )
        ids = into[:n_tokens]
        run_slices(
            lambda low, high: self._copy(start + low, start + high, ids[low:high]),
            n_tokens,
            threads=resolve_threads(threads),
            grain=_SLICE_TOKENS,
        )
        return TokenStream(ids=ids, document_starts=self._document_starts(start, stop))

    def documents(self) -> Iterator[U32]:
        """Every document's ids, uint32 (n,), DEAD where dead; for small uses, `read` is the fast way."""
        for shard in self._shards:
            starts = shard.checked_starts()
            for at in range(shard.n_documents):
                ids = np.empty(int(starts[at + 1] - starts[at]), dtype=np.uint32)
                _widen(shard.ids[starts[at] : starts[at + 1]], ids)
                yield ids

    def names(self) -> Iterator[str | None]:
        """Every document's request id, None where it has none."""
        for shard in self._shards:
            if shard.names_data is None:
                yield from (None for _ in range(shard.n_documents))
            else:
                yield from shard.read_names()

    def verify(self, *, threads: int | None = None, progress: ProgressHook | None = None) -> None:
        """Read every byte and hold it against the manifest: digests, starts, ids below `token_size`, dead positions.

        Parameters
        ----------
        progress
            Called with bytes.

        Raises
        ------
        InvalidInput
            The first damaged file in the order of the shards, by name, and what is wrong with it.
        """
        done_bytes = 0
        with ThreadPoolExecutor(resolve_threads(threads), thread_name_prefix="engram-verify") as pool:
            checks = [pool.submit(shard.verify, self.token_size) for shard in self._shards]
            try:
                for check in checks:
                    done_bytes += check.result()
                    if progress is not None:
                        progress(done_bytes, self.file_bytes)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    @property
    def _shards(self) -> list[_Shard]:
        if self._mapped is None:
            raise InvalidInput(f"{self.path}: the token store is closed, expected an open one; open it again")
        return self._mapped

    def _check_slice(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_tokens:
            raise InvalidInput(f"{self.path}: slice [{start:,}, {stop:,}), expected one inside [0, {self.n_tokens:,})")

    def _copy(self, start: int, stop: int, ids: U32) -> None:
        number = int(np.searchsorted(self._firsts, start, side="right")) - 1
        done = 0
        while done < len(ids):
            shard, first = self._shards[number], int(self._firsts[number])
            begin, end = start + done - first, min(stop - first, shard.n_tokens)
            _widen(shard.ids[begin:end], ids[done : done + end - begin])
            done += end - begin
            number += 1

    def _document_starts(self, start: int, stop: int) -> I64:
        """See `read`."""
        # Shards that touch the slice, empty ones at its ends too: they may hold documents without positions.
        low = int(np.searchsorted(self._firsts[1:], start))
        high = int(np.searchsorted(self._firsts[:-1], stop, side="right"))
        parts = []
        for number in range(low, high):
            begins = self._shards[number].checked_starts()[:-1]
            first = int(self._firsts[number])
            until = np.searchsorted(begins, stop - first, side="right" if stop == self.n_tokens else "left")
            parts.append(begins[np.searchsorted(begins, start - first) : until] + np.int64(first - start))
        found = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        cut = np.zeros(int(start < stop and not (len(found) and found[0] == 0)), dtype=np.int64)
        return np.concatenate([cut, found, np.array([stop - start], dtype=np.int64)])


class _Shard:
    """One shard's mapped files."""

    def __init__(self, directory: Path, number: int, told: dict[str, Any], dtype: np.dtype[Any]) -> None:
        self.n_tokens: int = told["n_tokens"]
        self.n_documents: int = told["n_documents"]
        self.told = told
        self._paths = {kind: directory / told[kind]["name"] for kind in FILE_KINDS if told[kind]}
        self.ids = map_array(self._paths["ids"], dtype, self.n_tokens)
        self.starts: I64 = map_array(self._paths["starts"], STARTS_DTYPE, self.n_documents + 1)
        if self.starts[0] != 0 or self.starts[-1] != self.n_tokens:
            raise damaged(
                self._paths["starts"],
                f"runs from {self.starts[0]:,} to {self.starts[-1]:,}, expected 0 to {self.n_tokens:,}",
            )
        self.names_data: npt.NDArray[np.uint8] | None = None
        if told["names"]:
            self.names_data = map_file(self._paths["names"], told["names"]["file_bytes"])
        self._starts_checked = False

    def release(self) -> None:
        """Let go of the files, even if the traceback of an error keeps this shard."""
        del self.ids, self.starts, self.names_data

    def checked_starts(self) -> I64:
        """The starts, once they are known to ascend: looked at on first use, since they may be many."""
        if not self._starts_checked:
            steps = np.diff(self.starts)
            if (steps < 0).any():
                at = int(np.flatnonzero(steps < 0)[0])
                raise damaged(
                    self._paths["starts"],
                    f"document {at:,} starts at {self.starts[at]:,}, the next one at {self.starts[at + 1]:,}, "
                    "expected starts that do not fall",
                )
            self._starts_checked = True
        return self.starts

    def read_names(self) -> list[str | None]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._paths["names"]
        try:
            with pq.ParquetFile(pa.py_buffer(self.names_data), page_checksum_verification=True) as file:
                if file.metadata.num_rows != self.n_documents or not file.schema_arrow.equals(names_schema()):
                    found = f"{file.metadata.num_rows:,} rows of {', '.join(file.schema_arrow.names)}"
                    raise damaged(path, f"{found}, expected {self.n_documents:,} of name")
                names: list[str | None] = file.read(use_threads=False)["name"].to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise damaged(path, f"not a whole Parquet file ({reason})") from None
        return names

    def verify(self, token_size: int) -> int:
        """Bytes looked at."""
        n_bytes = 0
        for kind, path in self._paths.items():
            try:
                digest = file_digest(path)
            except FileNotFoundError:
                raise damaged(path, "the file is missing") from None
            if digest != self.told[kind]["sha256"]:
                raise damaged(path, f"SHA-256 is {digest}, expected {self.told[kind]['sha256']}")
            n_bytes += self.told[kind]["file_bytes"]
        self.checked_starts()
        self._verify_ids(token_size)
        if self.names_data is not None:
            self.read_names()
        return n_bytes

    def _verify_ids(self, token_size: int) -> None:
        dead_on_disk = np.iinfo(self.ids.dtype).max
        n_dead = 0
        for start in range(0, self.n_tokens, _SLICE_TOKENS):
            ids = self.ids[start : start + _SLICE_TOKENS]
            dead = ids == dead_on_disk
            n_dead += int(dead.sum())
            outside = (ids >= token_size) & ~dead
            if outside.any():
                at = int(np.flatnonzero(outside)[0])
                raise damaged(
                    self._paths["ids"],
                    f"position {start + at:,} holds token id {ids[at]:,}, expected ids below {token_size:,}",
                )
        if n_dead != self.told["n_dead"]:
            raise damaged(self._paths["ids"], f"{n_dead:,} dead positions, expected {self.told['n_dead']:,}")


def _widen(stored: npt.NDArray[Any], ids: U32) -> None:
    """`stored`, uint16 or uint32 (n,), as uint32 into `ids` (n,); the largest value of either dtype becomes DEAD."""
    if stored.dtype.itemsize == 4:
        np.copyto(ids, stored)
        return
    scratch = np.empty(min(len(ids), _WIDEN_TOKENS), dtype=np.uint16)
    for start in range(0, len(ids), _WIDEN_TOKENS):
        part, widened = stored[start : start + _WIDEN_TOKENS], ids[start : start + _WIDEN_TOKENS]
        # One more in 16 bits, one less in 32: 65,535 wraps to 0 and then to DEAD, every other id is itself again.
        # Three passes in cache; a subtraction of mixed widths in one call takes twice as long.
        np.add(part, np.uint16(1), out=scratch[: len(part)])
        np.copyto(widened, scratch[: len(part)])
        np.subtract(widened, np.uint32(1), out=widened)
