"""From paths to a counts directory: a plan, made before a document is read, and its execution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_tables.corpus.counting import NgramCounts, check_orders, count_ngrams
from engram_tables.corpus.counts_store import CountsProvenance, write_counts
from engram_tables.corpus.readers import Corpus, DecodeErrors, find_documents
from engram_tables.corpus.tokens import TokenStream, tokenize_documents
from engram_tables.files import refuse_existing
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
        As `find_documents` and `check_orders`, or `output` exists and `force` is not set.
    CapacityError
        As `check_orders`.
    """
    wanted = check_orders(orders, vocabulary.canonical_size)
    refuse_existing(output, force=force)
    corpus = find_documents(paths, glob=glob, exclude=exclude, decode_errors=decode_errors)
    return CountPlan(corpus=corpus, orders=wanted, output=output, vocabulary=vocabulary)


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
