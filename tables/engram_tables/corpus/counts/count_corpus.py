"""From a corpus to a counts directory: a plan, made before a document is read, and its execution.

Owns the order of things within a memory budget: text becomes tokens on disk, tokens become sorted runs chunk by
chunk, and runs become the parts of the result. Whatever is finished stays in a work directory beside the output until
all is, so that a run which was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_tables.corpus.counts.chunks import TokenSource
from engram_tables.corpus.counts.count_work import CountWork
from engram_tables.corpus.counts.counting import check_orders, strands
from engram_tables.corpus.counts.counts_manifest import CorpusFigures, CountsSubject
from engram_tables.corpus.counts.counts_store import refuse_output
from engram_tables.corpus.counts.windows import MAX_CANONICAL_SIZE
from engram_tables.corpus.outputs import refuse_found_overlap, refuse_overlap
from engram_tables.corpus.reading.documents import ReadOptions
from engram_tables.corpus.reading.readers import STANDARD_INPUT, find_documents
from engram_tables.corpus.tokens.token_store import TokenStore, is_token_store, open_tokens
from engram_tables.corpus.tokens.tokenize_corpus import PIECE_BYTES, TokenizePlan, run_tokenize
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.threads import resolve_threads
from engram_tables.units import Stage, unwatched
from engram_tables.work_directory import WorkDirectory, work_path

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary

DEFAULT_MEMORY_BYTES = 1 << 31


class Engine(StrEnum):
    """What counts the tokens."""

    LOCAL = "local"
    """This process's threads."""
    RAY = "ray"
    """Tasks on a Ray cluster."""


WORK_SCHEMA = "engram.count-work/1"
COMMAND = "engram count"


@dataclass(frozen=True, slots=True, kw_only=True)
class CountPlan:
    """What a count would read and write; made without reading a document.

    Attributes
    ----------
    stores
        Token stores among the inputs.
    text
        How the other inputs become a token store first; None if there are none.
    orders
        Ascending; order 1 is always there, since it decides where files are cut.
    subject
        What is counted, and how.
    """

    stores: tuple[Path, ...]
    text: TokenizePlan | None
    orders: tuple[int, ...]
    subject: CountsSubject
    output: Path
    vocabulary: Vocabulary

    @property
    def work(self) -> Path:
        """Where finished parts of the work lie until all are."""
        return work_path(self.output)

    def describe(self, stores: Sequence[TokenStore]) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        text = None if self.text is None else self.text.describe()
        return {
            "schema": WORK_SCHEMA,
            "tokens": [store.sha256 for store in stores],
            "text": text,
            "orders": list(self.orders),
            "subject": asdict(self.subject),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedCorpus:
    """A finished count: the manifest as written, and how it was reached.

    Attributes
    ----------
    n_runs
        Sorted runs that were merged; 1 if all was counted at once.
    n_reused
        Runs and parts that an earlier run had finished.
    """

    manifest: dict[str, Any]
    n_runs: int
    n_reused: int


def plan_count(
    paths: Sequence[str | Path],
    *,
    vocabulary: Vocabulary,
    orders: Sequence[int],
    output: Path,
    glob: str = "*",
    exclude: Sequence[str] = (),
    options: ReadOptions | None = None,
    next_raw: bool = False,
    pad_token: int | None = None,
    min_count: int = 1,
    force: bool = False,
) -> CountPlan:
    """Find the files and refuse what cannot work, before anything is read.

    Parameters
    ----------
    paths
        Token stores, and whatever `find_documents` takes.
    next_raw
        Tell n-grams apart by the raw token that follows.
    pad_token
        Token id that stands before a document's first token, if the windows that reach there are counted.
    min_count
        Leave out n-grams that occur less often; order 1 is whole always.

    Raises
    ------
    InvalidInput
        As `find_documents` and `check_orders`; `output` exists and `force` is not set, or it holds something else
        than counts; it overlaps what is read.
    SpecMismatch
        A token store of another tokenizer.
    CapacityError
        As `check_orders`.
    """
    wanted = tuple(sorted({1, *check_orders(orders, vocabulary.canonical_size)}))
    if not 1 <= min_count < 2**63:
        raise InvalidInput(f"min-count: found {min_count}, expected 1 to 2^63 - 1")
    if next_raw and vocabulary.token_count > MAX_CANONICAL_SIZE:
        raise CapacityError(
            f"raw tokens: found {vocabulary.token_count:,}, expected {MAX_CANONICAL_SIZE:,} at most to tell "
            "n-grams apart by them"
        )
    refuse_output(output, force=force)
    for place in (output, work_path(output)):
        refuse_overlap(place, paths)
    stores = tuple(Path(path) for path in paths if str(path) != STANDARD_INPUT and is_token_store(path))
    for path in stores:
        if [store.resolve() for store in stores].count(path.resolve()) > 1:
            raise InvalidInput(f"{path}: found it twice, expected each input once, or its n-grams count double")
    others = [path for path in paths if str(path) == STANDARD_INPUT or not is_token_store(path)]
    text = None
    if others or not stores:
        corpus = find_documents(others, glob=glob, exclude=exclude, options=options)
        for place in (output, work_path(output)):
            refuse_found_overlap(place, corpus.files)
        text = TokenizePlan(
            corpus=corpus,
            pieces=tuple(corpus.pieces(PIECE_BYTES)),
            output=work_path(output) / "tokens",
            vocabulary=vocabulary,
        )
    subject = CountsSubject(
        vocab_sha256=vocabulary.map_sha256,
        canonical_size=vocabulary.canonical_size,
        tokenizer_sha256=vocabulary.tokenizer_sha256,
        next_size=vocabulary.token_count if next_raw else 0,
        pad_id=None if pad_token is None else int(vocabulary.canonical([pad_token])[0]),
        min_count=min_count,
    )
    return CountPlan(stores=stores, text=text, orders=wanted, subject=subject, output=output, vocabulary=vocabulary)


def run_count(
    plan: CountPlan,
    *,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int | None = None,
    engine: Engine = Engine.LOCAL,
    ray_address: str | None = None,
    restart: bool = False,
    force: bool = False,
    stage: Stage = unwatched,
) -> CountedCorpus:
    """Carry a plan out; the output appears whole or not at all, with the same bytes for any memory and threads.

    Whatever stops the run, Ctrl-C and a full disk included, what is finished stays in `plan.work`, and a note on the
    exception says so; the same plan goes on there.

    Parameters
    ----------
    memory_bytes
        Bound of the memory that counting takes for itself. Files it writes and maps are not part of it.
    engine
        Never changes a byte of the result.
    ray_address
        A running cluster's address, for the engine ray; a local one is started and ended if None.
    restart
        Remove the work of an earlier run first.

    Raises
    ------
    InvalidInput
        What the readers refuse; token ids that the vocabulary does not have; work of another plan.
    CapacityError
        `memory_bytes` is too little to work in.
    OSError
        Of the filesystem.
    """
    n_workers = resolve_threads(threads)
    refuse_output(plan.output, force=force)
    with ExitStack() as held:
        stores = [held.enter_context(open_tokens(path)) for path in plan.stores]
        directory = WorkDirectory.open(plan.work, plan.describe(stores), command=COMMAND, restart=restart)
        held.callback(directory.close)
        wound = strands(
            plan.orders,
            canonical_size=plan.subject.canonical_size,
            next_size=plan.subject.next_size,
            is_fused=plan.subject.pad_id is None,
        )
        work = CountWork(directory, subject=plan.subject, orders=plan.orders, wound=wound)
        try:
            if engine is Engine.LOCAL:
                # Too little memory is refused before the text is tokenised, not after.
                work.chunk_tokens(memory_bytes, n_workers)
            if plan.text is not None:
                stores.append(held.enter_context(_tokens_of(plan.text, threads=threads, stage=stage)))
            source = TokenSource(stores)
            source.check_vocabulary(plan.vocabulary)
            with stage("checking", "B") as progress:
                source.verify(threads=n_workers, progress=progress)
            if engine is Engine.RAY:
                from engram_tables.corpus.counts.ray_engine import count_on_ray

                count_on_ray(
                    work, source, plan.vocabulary, address=ray_address, memory_bytes=memory_bytes, threads=threads,
                    stage=stage,
                )  # fmt: skip
            else:
                work.count(source, plan.vocabulary, memory_bytes=memory_bytes, threads=n_workers, stage=stage)
            manifest = work.publish(plan.output, _figures(stores), threads=n_workers, stage=stage, force=force)
        except BaseException as error:
            keep_finished(work, error)
            raise
    return CountedCorpus(manifest=manifest, n_runs=work.n_runs, n_reused=work.n_reused)


def keep_finished(work: CountWork, error: BaseException) -> None:
    """Leave what a later run can use, or nothing, and say which in a note on `error`."""
    if isinstance(error, OSError):
        error.add_note(f"while writing the counts below {work.directory.path}")
    kept = work.what_is_kept()
    if not kept:
        work.directory.remove()
        return
    work.directory.drop_partial()
    error.add_note(
        f"{kept} finished and stay in {work.directory.path}; the same command goes on there, and --restart begins anew"
    )


def _tokens_of(plan: TokenizePlan, *, threads: int | None, stage: Stage) -> TokenStore:
    if not is_token_store(plan.output):
        with stage("tokenising", "B") as progress:
            run_tokenize(plan, workers=threads, progress=progress)
    return open_tokens(plan.output)


def _figures(stores: Sequence[TokenStore]) -> CorpusFigures:
    figures = CorpusFigures()
    for store in stores:
        told = store.manifest["corpus"]
        figures += CorpusFigures(
            n_tokens=store.n_tokens,
            n_documents=store.n_documents,
            n_dead=store.n_dead,
            read_bytes=told["read_bytes"],
            n_bad_lines=told["n_bad_lines"],
            replaced_bytes=told["replaced_bytes"],
        )
    return figures
