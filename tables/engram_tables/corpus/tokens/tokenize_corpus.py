"""From paths to a token store: a plan, made before a document is read, and its execution by one process or many.

Owns the order of things: pieces are read side by side, shards lie in corpus order, and a run that was stopped goes on
where it was. Knows no format of text and no byte of a shard.
"""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_tables.corpus.outputs import refuse_found_overlap, refuse_overlap
from engram_tables.corpus.reading.documents import ReadOptions, ReadOutcome
from engram_tables.corpus.reading.pieces import Piece
from engram_tables.corpus.reading.readers import Corpus, find_documents
from engram_tables.corpus.reading.sources import STANDARD_INPUT, CorpusFile
from engram_tables.corpus.tokens.token_manifest import build_manifest, ids_dtype
from engram_tables.corpus.tokens.token_shards import refuse_output
from engram_tables.corpus.tokens.token_store import TokenStore, is_token_store, open_tokens
from engram_tables.corpus.tokens.tokenize_piece import EncoderChoice, Numbered, PieceResult, PieceTask, Step
from engram_tables.corpus.tokens.tokenize_work import FinishedShard, TokenizeWork
from engram_tables.corpus.tokens.worker_pool import Finished, JobFailed, Reported, WorkerLost, WorkerPool
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.threads import resolve_threads
from engram_tables.units import ProgressHook, Stage, unwatched
from engram_tables.work_directory import work_path

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary

PIECE_BYTES = 1 << 26
"""Stored bytes of a piece: what a stopped run does twice at most, for each worker."""
SMALL_CORPUS_BYTES = 1 << 27
"""Below this one process, whose encoder has threads of its own, is done before others have prepared theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizePlan:
    """What a run would read and write; made without reading a document.

    Attributes
    ----------
    pieces
        In corpus order; each becomes a shard.
    vocabulary
        Whose tokenizer encodes text, and whose size bounds the ids.
    """

    corpus: Corpus
    pieces: tuple[Piece, ...]
    output: Path
    vocabulary: Vocabulary

    @property
    def token_size(self) -> int:
        """Bound of the ids."""
        return self.vocabulary.token_count

    @property
    def dtype(self) -> str:
        """How ids are stored."""
        return str(ids_dtype(self.token_size).name)

    @property
    def is_resumable(self) -> bool:
        """Whether all of the corpus can be read again, by any process: no pipe and no other stream is part of it."""
        return not any(_is_stream(file) for file in self.corpus.files)

    @property
    def work(self) -> Path:
        """Where finished shards lie until all are."""
        return work_path(self.output)

    def describe(self) -> dict[str, Any]:
        """What must not change between a run and its continuation.

        `skip_bad` may: it decides whether a run ends well, not what a shard holds.
        """
        options = asdict(self.corpus.options)
        del options["skip_bad"]
        return {
            "inputs": [
                [file.source if file.path is None else os.path.abspath(file.path), file.file_bytes, file.modified_ns]  # noqa: PTH100
                for file in self.corpus.files
            ],
            "options": options,
            "tokenizer": {"sha256": self.vocabulary.tokenizer_sha256, "token_size": self.token_size},
            "shards": {"n_pieces": len(self.pieces), "piece_bytes": PIECE_BYTES},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedCorpus:
    """A finished run.

    Attributes
    ----------
    manifest
        As written.
    outcome
        What was met in the corpus.
    n_reused
        Shards that an earlier run had finished.
    n_workers
        Processes that worked, 1 for this one alone.
    encoder
        What made ids of text; None where the corpus held ids, or an earlier run had encoded all.
    """

    manifest: dict[str, Any]
    outcome: ReadOutcome
    n_reused: int
    n_workers: int
    encoder: EncoderChoice | None


def plan_tokenize(
    paths: Sequence[str | Path],
    *,
    vocabulary: Vocabulary,
    output: Path,
    glob: str = "*",
    exclude: Sequence[str] = (),
    options: ReadOptions | None = None,
    also_read: Sequence[Path] = (),
    force: bool = False,
) -> TokenizePlan:
    """Find the files, cut them into pieces, and refuse what cannot work before anything is read.

    Parameters
    ----------
    also_read
        Files that the caller has read, and that the output must not replace either.

    Raises
    ------
    InvalidInput
        As `find_documents`; `output` exists and `force` is not set, or it holds something else than tokens; it, or
        its work directory, overlaps what is read.
    """
    for path in paths:
        if str(path) != STANDARD_INPUT and is_token_store(path):
            raise InvalidInput(
                f"{path}: found a token store, which is tokenised already, expected text or token ids; give it to "
                "`engram count` or `engram trace` alone"
            )
    refuse_output(output, force=force)
    for place in (output, work_path(output)):
        refuse_overlap(place, [*paths, *also_read])
    corpus = find_documents(paths, glob=glob, exclude=exclude, options=options)
    for place in (output, work_path(output)):
        refuse_found_overlap(place, corpus.files)
    return TokenizePlan(corpus=corpus, pieces=tuple(corpus.pieces(PIECE_BYTES)), output=output, vocabulary=vocabulary)


def run_tokenize(
    plan: TokenizePlan,
    *,
    workers: int | None = None,
    force: bool = False,
    restart: bool = False,
    progress: ProgressHook | None = None,
) -> TokenizedCorpus:
    """Carry a plan out; the output appears whole or not at all, with the same bytes for any number of workers.

    Whatever stops the run, Ctrl-C and a full disk included, the shards that are finished stay in `plan.work`, and a
    note on the exception says so; the same plan goes on there. Without a finished shard nothing stays.

    Parameters
    ----------
    workers
        Processes; all usable CPUs by default. A small corpus, and one that is not resumable, is read by this one.
    restart
        Remove the work of an earlier run first.
    progress
        Called with stored bytes of the corpus.

    Raises
    ------
    InvalidInput
        What the readers refuse; ids that the tokenizer does not have; malformed lines beyond `skip_bad`; work of
        another plan; a file that changed while it was read.
    CapacityError
        A worker was killed.
    OSError
        Of the filesystem.
    """
    n_workers = resolve_threads(workers)
    refuse_output(plan.output, force=force)
    run: _Run | None = None
    try:
        work = TokenizeWork.begin(plan.work, plan.describe() | {"resumable": plan.is_resumable}, restart=restart)
        try:
            run = _Run(plan=plan, work=work, progress=progress)
            done = run.carry_out(n_workers, force=force)
        except BaseException as error:
            _keep_finished(plan, work, len(run.finished) if run else 0, error)
            raise
        else:
            work.remove()
            return done
        finally:
            work.close()
    except OSError as error:
        error.add_note(f"while tokenising to {plan.output}")
        raise


@contextmanager
def tokens_of(
    paths: Sequence[str | Path],
    *,
    vocabulary: Vocabulary | None,
    glob: str = "*",
    exclude: Sequence[str] = (),
    options: ReadOptions | None = None,
    workers: int | None = None,
    stage: Stage = unwatched,
) -> Iterator[TokenStore]:
    """The tokens of one token store as they lie, or of any corpus in a temporary one that ends with the block.

    Raises
    ------
    InvalidInput
        As `plan_tokenize` and `run_tokenize`; a corpus that is no token store, without a vocabulary.
    SpecMismatch
        A token store of another tokenizer.
    """
    if len(paths) == 1 and str(paths[0]) != STANDARD_INPUT and is_token_store(paths[0]):
        with open_tokens(paths[0]) as store:
            if vocabulary is not None:
                store.check_tokenizer(vocabulary.tokenizer_sha256)
            with stage("checking", "B") as progress:
                store.verify(threads=workers, progress=progress)
            yield store
        return
    if vocabulary is None:
        raise InvalidInput(
            f"{paths[0] if paths else 'corpus'}: found no token store, expected one or a vocabulary whose tokenizer "
            "makes one; give --vocab"
        )
    with tempfile.TemporaryDirectory(prefix="engram-tokens-") as place:
        plan = plan_tokenize(
            paths, vocabulary=vocabulary, output=Path(place) / "tokens", glob=glob, exclude=exclude, options=options
        )
        with stage("tokenising", "B") as progress:
            run_tokenize(plan, workers=workers, progress=progress)
        with open_tokens(plan.output) as store:
            yield store


def _keep_finished(plan: TokenizePlan, work: TokenizeWork, n_finished: int, error: BaseException) -> None:
    """Leave what a later run can use, or nothing, and say which."""
    if not n_finished or not plan.is_resumable:
        work.remove()
        return
    work.drop_partial()
    error.add_note(
        f"{n_finished:,} of {len(plan.pieces):,} shards are finished and stay in {plan.work}; the same command goes on "
        "there, and --restart begins anew"
    )


@dataclass(slots=True, kw_only=True)
class _Run:
    """One run: what is finished so far, and how far it is."""

    plan: TokenizePlan
    work: TokenizeWork
    progress: ProgressHook | None
    finished: dict[int, FinishedShard] = field(default_factory=dict)
    done_bytes: int = 0
    n_bad_lines: int = 0
    kinds: set[str] = field(default_factory=set)
    encoder: EncoderChoice | None = None

    def carry_out(self, n_workers: int, *, force: bool) -> TokenizedCorpus:
        plan = self.plan
        self.finished = self.work.finished(len(plan.pieces), threads=resolve_threads(None))
        self.done_bytes = sum(plan.pieces[shard].n_bytes for shard in self.finished)
        n_reused = len(self.finished)
        for finished in self.finished.values():
            self._check(finished.outcome)
        to_do = [Numbered(shard, piece) for shard, piece in enumerate(plan.pieces) if shard not in self.finished]
        n_workers = self._useful_workers(n_workers, to_do)
        self.work.provide_tokenizer(plan.vocabulary.tokenizer_json)
        task = PieceTask(
            tokenizer_file=self.work.tokenizer_file,
            token_size=plan.token_size,
            options=plan.corpus.options,
            directory=self.work.partial,
            threads=max(1, resolve_threads(None) // n_workers),
        )
        if n_workers > 1:
            self._in_workers(task, to_do, n_workers)
        else:
            self._here(task, to_do)
        self._refuse_changed_inputs()
        outcome = self._outcome()
        manifest = build_manifest(
            [self.finished[shard].entry for shard in range(len(plan.pieces))],
            token_size=plan.token_size,
            tokenizer_sha256=plan.vocabulary.tokenizer_sha256,
            corpus=_corpus_figures(outcome),
        )
        self.work.publish_tokens(plan.output, manifest, force=force)
        return TokenizedCorpus(
            manifest=manifest, outcome=outcome, n_reused=n_reused, n_workers=n_workers, encoder=self.encoder
        )

    def _useful_workers(self, n_workers: int, to_do: Sequence[Numbered]) -> int:
        small = sum(job.piece.n_bytes for job in to_do) < SMALL_CORPUS_BYTES
        return 1 if small or not self.plan.is_resumable else max(1, min(n_workers, len(to_do)))

    def _here(self, task: PieceTask, to_do: Sequence[Numbered]) -> None:
        tokenize = task.start() if to_do else None
        for job in to_do:
            assert tokenize is not None
            self._take(job.shard, tokenize(job, self._step))

    def _in_workers(self, task: PieceTask, to_do: Sequence[Numbered], n_workers: int) -> None:
        environment = {"RAYON_NUM_THREADS": str(task.threads), "NUMBA_NUM_THREADS": str(task.threads)}
        try:
            with WorkerPool(task, n_workers, environment=environment) as pool:
                for event in pool.run((job.shard, job) for job in to_do):
                    match event:
                        case Reported(_, step):
                            self._step(step)
                        case Finished(shard, result):
                            self._take(shard, result)
        except JobFailed as failed:
            if isinstance(failed.error, OSError):
                failed.error.add_note(f"in {self._named(failed.key)}")
            raise failed.error from None
        except WorkerLost as lost:
            raise _lost_worker(lost, self._named(lost.key)) from None

    def _named(self, shard: int) -> str:
        parts = self.plan.pieces[shard].parts
        first, last = parts[0], parts[-1]
        files = first.file.source if first.file == last.file else f"{first.file.source} to {last.file.source}"
        cut = f", from {first.start:,} to {first.stop:,}" if first.stop is not None else ""
        return f"piece {shard + 1:,} of {len(self.plan.pieces):,} ({files}{cut})"

    def _step(self, step: Step) -> None:
        self.done_bytes += step.n_bytes
        if self.progress is not None:
            self.progress(self.done_bytes, max(self.done_bytes, self.plan.corpus.total_bytes))

    def _take(self, shard: int, result: PieceResult) -> None:
        """A piece's result: what is wrong with the corpus is said as soon as it is known."""
        if result.entry is None:
            self._outcome({shard: result.outcome}).check(self.plan.corpus.options.skip_bad)
            raise AssertionError(f"piece {shard} ended early without a reason")
        finished = FinishedShard(result.entry, result.outcome)
        self.work.accept(shard, finished)
        self.finished[shard] = finished
        self.encoder = result.encoder or self.encoder
        self._check(result.outcome)

    def _check(self, outcome: ReadOutcome) -> None:
        """Add to the sums, and refuse what they must not reach; which lines come first is only asked then."""
        self.n_bad_lines += len(outcome.bad_lines)
        self.kinds |= set(outcome.kinds)
        if self.n_bad_lines > self.plan.corpus.options.skip_bad or len(self.kinds) > 1:
            self._outcome().check(self.plan.corpus.options.skip_bad)

    def _outcome(self, unfinished: dict[int, ReadOutcome] | None = None) -> ReadOutcome:
        """What was met in all pieces so far, in corpus order."""
        outcomes = {shard: finished.outcome for shard, finished in self.finished.items()} | (unfinished or {})
        total = ReadOutcome()
        for shard in sorted(outcomes):
            total.add(outcomes[shard])
        return total

    def _refuse_changed_inputs(self) -> None:
        for file in self.plan.corpus.files:
            if file.path is None or _is_stream(file):
                continue
            status = file.path.stat()
            if (status.st_size, status.st_mtime_ns) != (file.file_bytes, file.modified_ns):
                raise InvalidInput(
                    f"{file.source}: found that it changed while it was read ({file.file_bytes:,} bytes before, "
                    f"{status.st_size:,} now), expected files that stay as they are; begin anew with --restart"
                )


def _corpus_figures(outcome: ReadOutcome) -> dict[str, int]:
    return {
        "read_bytes": outcome.read_bytes,
        "n_lines": outcome.n_lines,
        "n_blank_lines": outcome.n_blank_lines,
        "n_bad_lines": len(outcome.bad_lines),
        "replaced_files": outcome.replaced_files,
        "replaced_bytes": outcome.replaced_bytes,
    }


def _lost_worker(lost: WorkerLost, where: str) -> Exception:
    message = f"{where}: its worker process {lost.how}, expected it to finish"
    if lost.status == -signal.SIGKILL:
        return CapacityError(f"{message}; if the system was out of memory, fewer --workers need less of it")
    if lost.status < 0:
        return CapacityError(f"{message}; run again, and with --workers 1 if it happens again")
    return RuntimeError(message)


def _is_stream(file: CorpusFile) -> bool:
    """Whether a file can be read but once, or by this process alone."""
    if file.is_standard_input:
        return True
    if file.path is None:
        return False
    # /dev/fd/3 may be a plain file's name here, and another's, or nobody's, in any other process.
    if str(file.path).startswith(("/dev/fd/", "/dev/stdin", "/proc/")):
        return True
    try:
        return file.file_bytes == 0 and not stat.S_ISREG(file.path.stat().st_mode)
    except OSError:
        return False
