"""What a Ray worker does: count the windows of a range of positions, or merge what several such tasks counted.

Owns the form in which partial counts travel, and the check that a worker reads the same tokens as everybody. Knows no
Ray: the functions run in any process.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engram_tables.address.vocabulary import Vocabulary
from engram_tables.corpus.counts.chunks import TokenSource
from engram_tables.corpus.counts.count_work import count_positions
from engram_tables.corpus.counts.counting import Strand, Workspace
from engram_tables.corpus.counts.counts_manifest import CountsSubject
from engram_tables.corpus.counts.runs import Run, merge_to_run
from engram_tables.corpus.tokens.token_store import TokenStore, is_token_store, open_tokens
from engram_tables.errors import InvalidInput

I64 = npt.NDArray[np.int64]
RunArrays = tuple[npt.NDArray[np.uint64], npt.NDArray[np.unsignedinteger], I64]
"""Keys, counts and block starts of a `Run`, whose form both sides know."""
Part = I64 | RunArrays | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountJob:
    """What all tasks of one count have in common.

    Attributes
    ----------
    stores
        Absolute path and SHA-256 of every token store, in order.
    vocabulary
        Without its tokenizer, which no task needs.
    """

    stores: tuple[tuple[str, str], ...]
    vocabulary: Vocabulary
    subject: CountsSubject
    wound: tuple[Strand, ...]

    @classmethod
    def pickled(
        cls, source: TokenSource, vocabulary: Vocabulary, subject: CountsSubject, wound: Sequence[Strand]
    ) -> bytes:
        """The job as bytes, so that a worker looks at its version before it unpacks anything of ours."""
        job = cls(
            stores=tuple((str(store.path.absolute()), store.sha256) for store in source.stores),
            vocabulary=Vocabulary(
                rule=vocabulary.rule,
                canonical_ids=vocabulary.canonical_ids,
                tokens=[],
                tokenizer_json=b"",
                source=vocabulary.source,
            ),
            subject=subject,
            wound=tuple(wound),
        )
        return pickle.dumps(job)


def count_range(node: str, pickled_job: bytes, start: int, stop: int) -> Iterator[Part]:
    """Count the windows that begin at positions [start, stop), with one thread.

    Returns
    -------
    int64 (canonical_size,), the occurrences of every id; the arrays of one run for each strand, which hold until the
    next one is taken; the runs' numbers of windows.

    Raises
    ------
    InvalidInput
        A token store is missing on this node, or is another one; what `count_positions` refuses.
    """
    job: CountJob = pickle.loads(pickled_job)
    with ExitStack() as held:
        source = TokenSource([held.enter_context(_open_same(node, *store)) for store in job.stores])
        occurrences, runs = count_positions(
            source, start, stop, vocabulary=job.vocabulary, subject=job.subject, wound=job.wound,
            workspace=Workspace(), threads=1,
        )  # fmt: skip
        yield occurrences
        yield from _travelling(runs)


def merge_parts(_node: str, pickled_job: bytes, *parts: Part) -> Iterator[Part]:
    """Add up what `count_range` or this function gave, parts without their last item, one after the other.

    Memory: one merged run at a time, 16 or 24 bytes for each window of those it is made of.
    """
    job: CountJob = pickle.loads(pickled_job)
    n_each = 1 + len(job.wound)
    yield np.sum(np.stack(parts[::n_each]), axis=0)
    yield from _travelling(
        merge_to_run([arrived(strand, arrays) for arrays in parts[number::n_each]])
        for number, strand in enumerate(job.wound, start=1)
    )


def arrived(strand: Strand, arrays: Part) -> Run:
    """The run of one strand that `count_range` or `merge_parts` sent."""
    keys, counts, block_starts = arrays
    return Run(form=strand.form, keys=keys, counts=counts, block_starts=block_starts)  # type: ignore[arg-type]


def _travelling(runs: Iterator[Run]) -> Iterator[Part]:
    n_windows = []
    for run in runs:
        n_windows.append(run.n_windows)
        yield run.keys, run.counts, run.block_starts
    yield tuple(n_windows)


def _open_same(node: str, path: str, sha256: str) -> TokenStore:
    if not is_token_store(path):
        raise InvalidInput(
            f"{path}: found no token store on the node {node}, expected the one that the count was started on; every "
            "node of the cluster must see it at this path, as on a shared filesystem"
        )
    store = open_tokens(Path(path))
    if store.sha256 != sha256:
        found = store.sha256
        store.close()
        raise InvalidInput(
            f"{path}: found the token store {found} on the node {node}, expected {sha256}, which the count was "
            "started on; copy that one there, or put it on a shared filesystem"
        )
    return store
