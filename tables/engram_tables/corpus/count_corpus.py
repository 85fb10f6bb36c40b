"""From paths to a counts directory: a plan, made before a document is read, and its execution."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_tables.corpus.counting import NgramCounts, check_orders, count_ngrams
from engram_tables.corpus.counts_store import CountsProvenance, refuse_output, write_counts
from engram_tables.corpus.readers import STANDARD_INPUT, Corpus, DecodeErrors, find_documents
from engram_tables.corpus.tokens import TokenStream, tokenize_documents
from engram_tables.errors import InvalidInput
from engram_tables.threads import resolve_threads
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary

Stage = Callable[[str, str], AbstractContextManager[ProgressHook]]
"""Called with the name of a stage and its unit; the progress hook it gives lives as long as the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountPlan:
    """What a count would read and write; made without reading a document."""

    corpus: Corpus
    orders: tuple[int, ...]
    output: Path
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedCorpus:
    """A finished count: the corpus as it was met, its tokens, the counts, and the manifest as written."""

    corpus: Corpus
    stream: TokenStream
    counts: dict[int, NgramCounts]
    manifest: dict[str, Any]


@contextmanager
def _unwatched(_task: str, _unit: str) -> Iterator[ProgressHook]:
    yield lambda _done, _total: None


def plan_count(
    paths: Sequence[str | Path],
    *,
    vocabulary: Vocabulary,
    orders: Sequence[int],
    output: Path,
    glob: str = "*",
    exclude: Sequence[str] = (),
    decode_errors: DecodeErrors | str = DecodeErrors.STRICT,
    force: bool = False,
) -> CountPlan:
    """Find the files and refuse what cannot work, before anything is read.

    Raises
    ------
    InvalidInput
        As `find_documents` and `check_orders`; `output` exists and `force` is not set, or it holds something
        else than counts; it overlaps what is read.
    CapacityError
        As `check_orders`.
    """
    wanted = check_orders(orders, vocabulary.canonical_size)
    refuse_output(output, force=force)
    refuse_overlap(output, paths)
    corpus = find_documents(paths, glob=glob, exclude=exclude, decode_errors=decode_errors)
    return CountPlan(corpus=corpus, orders=wanted, output=output, vocabulary=vocabulary)


def refuse_overlap(output: Path, inputs: Sequence[str | Path]) -> None:
    """Raise `InvalidInput` if `output` is one of the paths `inputs`, holds one or lies inside one.

    Otherwise a replaced output would take its own input with it, and the next count would count this one's result.
    Links are followed to what they name; links inside the directories are not looked at.
    """
    place = Path(os.path.realpath(output))
    for given in inputs:
        if str(given) == STANDARD_INPUT:
            continue
        found = Path(os.path.realpath(given))
        if place == found or place in found.parents or found in place.parents:
            relation = "is" if place == found else "holds" if place in found.parents else "lies inside"
            raise InvalidInput(
                f"{output}: found that this output {relation} {given}, which is read, expected a place apart; "
                "write beside it under another name"
            )


def run_count(
    plan: CountPlan, *, threads: int | None = None, force: bool = False, stage: Stage = _unwatched
) -> CountedCorpus:
    """Carry a plan out; the output appears whole or not at all.

    Raises
    ------
    InvalidInput
        Text that is not UTF-8, or token ids that the vocabulary does not have.
    """
    vocabulary, corpus = plan.vocabulary, plan.corpus
    with stage("tokenising", "B") as progress:
        stream = tokenize_documents(
            vocabulary.tokenizer(), corpus.documents(), total_bytes=corpus.total_bytes, progress=progress
        )
    with stage("counting", "tokens") as progress:
        counts = count_ngrams(
            vocabulary.canonical(stream.ids),
            stream.document_starts,
            orders=plan.orders,
            canonical_size=vocabulary.canonical_size,
            threads=threads,
            progress=progress,
        )
    provenance = CountsProvenance(
        vocab_sha256=vocabulary.map_sha256,
        canonical_size=vocabulary.canonical_size,
        tokenizer_sha256=vocabulary.tokenizer_sha256,
        n_tokens=stream.n_tokens,
        n_documents=stream.n_documents,
        corpus_bytes=corpus.read_bytes,
        corpus_sha256=corpus.sha256,
        replaced_files=corpus.replaced_files,
        replaced_bytes=corpus.replaced_bytes,
    )
    with stage("writing", "n-grams") as progress:
        manifest = write_counts(
            plan.output,
            counts,
            provenance=provenance,
            threads=resolve_threads(threads),
            progress=progress,
            force=force,
        )
    return CountedCorpus(corpus=corpus, stream=stream, counts=counts, manifest=manifest)
