"""Several counts directories into one, as if all had been counted at once.

Owns the way from an order's rows back to a run. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.count_corpus import CountedCorpus, keep_finished
from engram_tables.corpus.counts.count_work import CountWork
from engram_tables.corpus.counts.counting import Strand, strands
from engram_tables.corpus.counts.counts_manifest import CorpusFigures
from engram_tables.corpus.counts.counts_store import Counts, open_counts, refuse_output
from engram_tables.corpus.counts.ngram_counts import NO_NEXT, NgramCounts
from engram_tables.corpus.counts.runs import new_run
from engram_tables.corpus.counts.windows import WindowForm
from engram_tables.corpus.outputs import refuse_overlap
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.threads import resolve_threads
from engram_tables.units import Stage, unwatched
from engram_tables.work_directory import WorkDirectory, work_path

WORK_SCHEMA = "engram.counts-merge-work/1"
COMMAND = "engram counts merge"


def merge_counts(
    directories: Sequence[Path],
    *,
    output: Path,
    min_count: int = 1,
    threads: int | None = None,
    restart: bool = False,
    force: bool = False,
    stage: Stage = unwatched,
) -> CountedCorpus:
    """Add counts up: the same bytes as counting all the corpora at once, in whatever order and by whatever steps.

    A run that is stopped goes on where it was, as `run_count` does. Memory: some 40 MiB for each thread. Disk: beside
    the output, 16 bytes a row of every input until it is done (24 where a window takes two words).

    Parameters
    ----------
    directories
        Counts of the same vocabulary and orders, counted in the same way; none may have left out rare n-grams.
    min_count
        Leave out n-grams that occur less often in all of them together; order 1 is whole always.

    Raises
    ------
    InvalidInput
        No input, one given twice, one that has left out rare n-grams, or other orders than the first one's.
    SpecMismatch
        Counts of another vocabulary, or counted with other windows.
    """
    n_workers = resolve_threads(threads)
    refuse_output(output, force=force)
    for place in (output, work_path(output)):
        refuse_overlap(place, directories)
    with ExitStack() as held:
        inputs = [held.enter_context(open_counts(path)) for path in directories]
        _refuse_unlike(inputs)
        if not 1 <= min_count < 2**63:
            raise InvalidInput(f"min-count: found {min_count}, expected 1 to 2^63 - 1")
        subject = replace(inputs[0].subject, min_count=min_count)
        plan = {
            "schema": WORK_SCHEMA,
            "inputs": [counts.manifest["manifest_sha256"] for counts in inputs],
            "subject": asdict(subject),
        }
        directory = WorkDirectory.open(work_path(output), plan, command=COMMAND, restart=restart)
        held.callback(directory.close)
        wound = strands(
            inputs[0].orders, canonical_size=subject.canonical_size, next_size=subject.next_size, is_fused=False
        )
        work = CountWork(directory, subject=subject, orders=inputs[0].orders, wound=wound)
        try:
            n_reused = work.take_finished()
            with stage("reading", "n-grams") as progress:
                n_rows = sum(counts.n_rows(order) for counts in inputs for order in counts.orders)
                done = 0
                for nth, counts in enumerate(inputs):
                    if nth >= n_reused:
                        work.add_runs(nth, nth + 1, _saver(counts, wound), _tokens(counts))
                    # Open files are few, and inputs may be many.
                    counts.close()
                    done += sum(counts.n_rows(order) for order in counts.orders)
                    progress(done, n_rows)
            figures = sum((counts.figures for counts in inputs), CorpusFigures())
            manifest = work.publish(output, figures, threads=n_workers, stage=stage, force=force)
        except BaseException as error:
            keep_finished(work, error)
            raise
    return CountedCorpus(manifest=manifest, n_runs=work.n_runs, n_reused=work.n_reused)


def _refuse_unlike(inputs: Sequence[Counts]) -> None:
    if not inputs:
        raise InvalidInput("counts: found none to merge, expected one directory or more")
    first = inputs[0]
    seen: set[Path] = set()
    for counts in inputs:
        place = counts.path.resolve()
        if place in seen:
            raise InvalidInput(f"{counts.path}: found it twice, expected each input once, or its n-grams count double")
        seen.add(place)
        if counts.min_count > 1:
            raise InvalidInput(
                f"{counts.path}: found counts without the n-grams below {counts.min_count}, expected whole ones, since "
                "rare in each part is not rare in all; count again with --min-count 1, and give it to the merge"
            )
        if counts.orders != first.orders:
            raise InvalidInput(
                f"{counts.path}: found orders {counts.orders}, expected those of {first.path}, {first.orders}; count "
                "again with the same --orders"
            )
        mine, wanted = asdict(counts.subject), asdict(first.subject)
        for name, value in mine.items():
            if value != wanted[name]:
                raise SpecMismatch(
                    f"{counts.path}: {name} is {value}, expected that of {first.path}, {wanted[name]}; their n-grams "
                    "are not the same things: count again in the same way"
                )


def _tokens(counts: Counts) -> npt.NDArray[np.int64]:
    """int64 (canonical_size,): occurrences of every id."""
    occurrences = np.zeros(counts.canonical_size, dtype=np.int64)
    for batch in counts.batches(1):
        np.add.at(occurrences, batch.columns[0], batch.counts.astype(np.int64))
    return occurrences


def _saver(counts: Counts, wound: Sequence[Strand]) -> Callable[[int, Path], None]:
    """Writes the rows of a strand's order as a run."""

    def save(number: int, prefix: Path) -> None:
        form, row = wound[number].form, 0
        with new_run(prefix, form, counts.n_rows(form.order)) as run:
            blocks = np.zeros(form.n_blocks, dtype=np.int64)
            for batch in counts.batches(form.order):
                stop = row + len(batch.counts)
                run.keys[row * form.n_words : stop * form.n_words] = pack_rows(batch, form).reshape(-1)
                run.counts[row:stop] = batch.counts
                blocks += np.bincount(batch.columns[0] >> form.free_bits, minlength=form.n_blocks)
                row = stop
            run.block_starts[1:] = np.cumsum(blocks)

    return save


def pack_rows(rows: NgramCounts, form: WindowForm) -> npt.NDArray[np.uint64]:
    """uint64 (n_rows, n_words): the keys of n-grams of the form's order."""
    places = [(column.astype(np.uint64), form.token_bits) for column in rows.columns]
    if rows.next_tokens is not None:
        following = np.where(rows.next_tokens == NO_NEXT, 2**form.next_bits - 1, rows.next_tokens)
        places.append((following.astype(np.uint64), form.next_bits))
    keys: npt.NDArray[Any] = np.zeros((len(rows.counts), 2), dtype=np.uint64)
    for values, bits in places:
        keys[:, 0] = (keys[:, 0] << np.uint64(bits)) | (keys[:, 1] >> np.uint64(64 - bits))
        keys[:, 1] = (keys[:, 1] << np.uint64(bits)) | values
    return keys if form.n_words == 2 else np.ascontiguousarray(keys[:, 1:])
