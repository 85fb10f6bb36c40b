"""The work of a count: runs, chunk by chunk, then parts, merged from all runs side by side.

Owns the work directory's content and what of it a later run may believe. Knows token streams, and no text.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.chunks import TokenSource, read_chunk
from engram_tables.corpus.counts.counting import (
    Strand,
    Workspace,
    count_tokens,
    pad_sequences,
    single_tokens,
    sort_windows,
)
from engram_tables.corpus.counts.counts_layout import part_name
from engram_tables.corpus.counts.counts_manifest import (
    MANIFEST_NAME,
    CorpusFigures,
    CountsSubject,
    build_manifest,
    manifest_bytes,
)
from engram_tables.corpus.counts.counts_writer import ROW_GROUP_ROWS, RowWriter, order_files, part_starts
from engram_tables.corpus.counts.runs import (
    RUN_FILES,
    Run,
    merge_runs,
    open_run,
    run_file,
    run_of,
    save_run,
    slice_room,
)
from engram_tables.corpus.counts.unpacking import Unpacker
from engram_tables.corpus.tokens.array_file import file_digest
from engram_tables.errors import CapacityError
from engram_tables.files import fsync_directory, give_second_name, new_directory
from engram_tables.threads import run_all
from engram_tables.units import format_bytes
from engram_tables.work_directory import WorkDirectory, publish_record, read_record

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.units import ProgressHook

    Stage = Callable[[str, str], AbstractContextManager[ProgressHook]]

BASE_BYTES = 48 << 20
THREAD_BYTES = 40 << 20
"""What counting takes besides its chunk, in all and for each thread: scratch, and the row groups of a part."""
LEAST_CHUNK_TOKENS = 1 << 16

I64 = npt.NDArray[np.int64]


def count_positions(
    source: TokenSource,
    start: int,
    stop: int,
    *,
    vocabulary: Vocabulary,
    subject: CountsSubject,
    wound: Sequence[Strand],
    workspace: Workspace,
    threads: int,
) -> tuple[I64, Iterator[Run]]:
    """Count the windows that begin at positions [start, stop).

    Returns
    -------
    int64 (canonical_size,), the occurrences of every id, and one run for each strand in turn, which lies in
    `workspace` until the next one is taken.
    """
    chunk = read_chunk(
        source, start, stop, vocabulary=vocabulary, ahead=max((strand.form.order for strand in wound), default=0),
        has_following=subject.next_size > 0, workspace=workspace, threads=threads,
    )  # fmt: skip
    occurrences = count_tokens(chunk.sequences, subject.canonical_size, threads=threads)

    def runs() -> Iterator[Run]:
        for strand in wound:
            sequences = chunk.sequences
            if subject.pad_id is not None:
                sequences = pad_sequences(
                    sequences, order=strand.form.order, pad_id=subject.pad_id, is_start=chunk.is_start
                )
            yield run_of(sort_windows(sequences, strand.form, threads=threads, workspace=workspace))

    return occurrences, runs()


class CountWork:
    """A count under way in its work directory.

    Attributes
    ----------
    subject, strands
        What is counted, and the windows that are sorted for it.
    n_runs
        Runs that are merged.
    n_reused
        Runs and parts that an earlier run had finished.
    """

    def __init__(
        self, directory: WorkDirectory, *, subject: CountsSubject, orders: Sequence[int], wound: Sequence[Strand]
    ) -> None:
        self.directory = directory
        self.n_runs = 0
        self.n_reused = 0
        self.subject = subject
        self._orders = tuple(orders)
        self.strands = tuple(wound)
        self._runs: list[list[Run]] = [[] for _ in self.strands]
        self._occurrences = np.zeros(subject.canonical_size, dtype=np.int64)

    def what_is_kept(self) -> str:
        """What a later run finds finished, in words; empty if nothing."""
        kept = [
            (len(list(self.directory.path.glob("run-*.json"))), "runs"),
            (len(list(self.directory.path.glob("part-*.json"))), "parts"),
            (len(list(self.directory.path.glob("tokens*/tokens.json"))), "token stores"),
            (len(list(self.directory.path.glob("tokens.work/shards/*"))), "shards of tokens"),
        ]
        return ", ".join(f"{n:,} {what}" for n, what in kept if n)

    def chunk_tokens(self, memory_bytes: int, threads: int) -> int:
        """Tokens that are counted at a time within `memory_bytes`."""
        n_words = max((strand.form.n_words for strand in self.strands), default=1)
        # Ids, keys, counts; a copy of the ids where followers or padding need one; a second set of wide keys.
        per_token = 4 + 8 * n_words + 4
        per_token += (4 if self.subject.next_size else 0) + (16 if n_words == 2 else 0)
        if self.subject.pad_id is not None:
            per_token += 4 + (4 if self.subject.next_size else 0) + 8
        histograms = 8 * self.subject.canonical_size * (threads + 2)
        left = memory_bytes - BASE_BYTES - THREAD_BYTES * threads - histograms
        if left < LEAST_CHUNK_TOKENS * per_token:
            least = memory_bytes - left + LEAST_CHUNK_TOKENS * per_token
            raise CapacityError(
                f"memory: found {format_bytes(memory_bytes)}, expected {format_bytes(least)} or more for {threads} "
                "threads over this vocabulary; give more memory or fewer threads"
            )
        return min(left // per_token, 2**32 - 1)

    def count(
        self, source: TokenSource, vocabulary: Vocabulary, *, memory_bytes: int, threads: int, stage: Stage
    ) -> None:
        """Make the runs of the whole stream, those that are finished already left alone."""
        chunk_tokens = self.chunk_tokens(memory_bytes, threads)
        position = self.take_finished()
        with stage("counting", "tokens") as progress:
            workspace = Workspace()
            while position < source.n_tokens:
                stop = min(position + chunk_tokens, source.n_tokens)
                in_memory = position == 0 and stop == source.n_tokens and len(self.strands) <= 1
                occurrences, runs = count_positions(
                    source, position, stop, vocabulary=vocabulary, subject=self.subject, wound=self.strands,
                    workspace=workspace, threads=threads,
                )  # fmt: skip
                if in_memory:
                    self.add(list(runs), occurrences)
                else:
                    self.add_runs(position, stop, _saver(runs), occurrences)
                position = stop
                progress(position, source.n_tokens)

    def take_finished(self) -> int:
        """Open the runs that earlier runs made; the position up to which they reach."""
        position = 0
        found = sorted(self.directory.path.glob("run-*.json"), key=lambda path: int(path.name.split("-")[1]))
        for path in found:
            record = read_record(path)
            if record is None or record.get("start") != position or not self._is_whole_run(path, record):
                continue
            runs = [open_run(_prefix(path, number), strand.form) for number, strand in enumerate(self.strands)]
            self.add(runs, np.load(_occurrences_file(path)))
            position = int(record["stop"])
        self.n_reused = self.n_runs
        return position

    def add(self, runs: Sequence[Run], occurrences: I64) -> None:
        """Take one run for each strand, and int64 (canonical_size,): how often each id occurs in what they count."""
        for mine, run in zip(self._runs, runs, strict=True):
            mine.append(run)
        self._occurrences += occurrences
        self.n_runs += 1

    def add_runs(self, start: int, stop: int, save: Callable[[int, Path], None], occurrences: I64) -> None:
        """Take the runs of positions [start, stop), which `save` writes for each strand's number, as finished."""
        record = self.directory.path / f"run-{start}-{stop}.json"
        for number in range(len(self.strands)):
            save(number, _prefix(record, number))
        with _occurrences_file(record).open("wb") as file:
            np.save(file, occurrences)
            file.flush()
            os.fsync(file.fileno())
        digests = {path.name: file_digest(path) for path in self._run_files(record)}
        publish_record(self.directory, record, {"start": start, "stop": stop, "files": digests})
        runs = [open_run(_prefix(record, number), strand.form) for number, strand in enumerate(self.strands)]
        self.add(runs, occurrences)

    def _run_files(self, record: Path) -> list[Path]:
        prefixes = [_prefix(record, number) for number in range(len(self.strands))]
        return [_occurrences_file(record), *(run_file(prefix, kind) for prefix in prefixes for kind in RUN_FILES)]

    def _is_whole_run(self, path: Path, record: dict[str, Any]) -> bool:
        """Whether the files of a finished run are as they were written."""
        try:
            return bool(record["files"] == {file.name: file_digest(file) for file in self._run_files(path)})
        except FileNotFoundError:
            return False

    def publish(
        self, output: Path, figures: CorpusFigures, *, threads: int, stage: Stage, force: bool
    ) -> dict[str, Any]:
        """Merge the runs to the parts, and make `output` of them; returns its manifest."""
        starts = part_starts(self._occurrences)
        stops = np.append(starts[1:], self.subject.canonical_size)
        before = np.concatenate([[0], np.cumsum(self._occurrences)])
        n_tokens = int(before[-1])
        entries: list[dict[str, Any]] = []
        with stage("writing", "tokens") as progress:
            done = [0]

            def make(part: int) -> None:
                entries.extend(self._part(part, int(starts[part]), int(stops[part])))
                done[0] += int(before[stops[part]] - before[starts[part]])
                progress(done[0], n_tokens)

            by_size = np.argsort(-(before[stops] - before[starts]), kind="stable").tolist()
            run_all(make, by_size, threads=threads)
            manifest = build_manifest(self.subject, figures, starts, entries)
            self._publish_files(output, manifest, force=force)
        self.directory.remove()
        return manifest

    def _publish_files(self, output: Path, manifest: dict[str, Any], *, force: bool) -> None:
        with new_directory(output, force=force) as target:
            for order in self._orders:
                (target / f"order-{order}").mkdir()
            for entry in manifest["files"]:
                give_second_name(self._part_file(entry["order"], entry["part"]), target / entry["name"])
            for order in self._orders:
                fsync_directory(target / f"order-{order}")
            self.directory.publish(target / MANIFEST_NAME, manifest_bytes(manifest))

    def _part_file(self, order: int, part: int) -> Path:
        return self.directory.path / part_name(order, part).replace("/", "-")

    def _part(self, part: int, first_token: int, stop_token: int) -> list[dict[str, Any]]:
        """The files of one part; their entries in the manifest."""
        record = self.directory.path / f"part-{part:05}.json"
        finished = read_record(record)
        bounds = {"first_token": first_token, "stop_token": stop_token}
        if finished is not None and bounds.items() <= finished.items() and self._is_whole(part, finished["files"]):
            self.n_reused += 1
            return list(finished["files"])
        place = self.directory.partial / record.stem
        place.mkdir()
        entries = []
        if not self.subject.next_size:
            entries.append(self._write_tokens(place, first_token, stop_token))
        for number, strand in enumerate(self.strands):
            entries.extend(self._write_strand(place, strand, self._runs[number], first_token, stop_token))
        entries = [{**entry, "part": part} for entry in entries]
        for entry in entries:
            (place / f"order-{entry['order']}.parquet").replace(self._part_file(entry["order"], part))
        shutil.rmtree(place)
        publish_record(self.directory, record, {**bounds, "files": entries})
        return entries

    def _is_whole(self, part: int, files: list[dict[str, Any]]) -> bool:
        paths = [(self._part_file(entry["order"], part), entry["sha256"]) for entry in files]
        return all(path.is_file() and file_digest(path) == sha256 for path, sha256 in paths)

    def _write_tokens(self, place: Path, first_token: int, stop_token: int) -> dict[str, Any]:
        """Order 1, whole: where parts are cut follows from it."""
        rows = single_tokens(self._occurrences[first_token:stop_token])
        rows.columns[0] += np.uint32(first_token)
        writer = RowWriter(place / "order-1.parquet", 1, has_next=False)
        try:
            for start in range(0, len(rows.counts), ROW_GROUP_ROWS):
                writer.write(rows.rows(start, start + ROW_GROUP_ROWS))
        except BaseException:
            writer.abandon()
            raise
        return writer.close()

    def _write_strand(
        self, place: Path, strand: Strand, runs: list[Run], first_token: int, stop_token: int
    ) -> Iterator[dict[str, Any]]:
        form, orders = strand
        least = 1 if orders == (1,) else self.subject.min_count
        # Followed n-grams have several rows, so that the files decide; otherwise rare ones are not even unpacked.
        least_total, least = (least, 1) if form.next_size else (1, least)
        with order_files(
            place, orders, next_size=form.next_size, least_total=least_total, room=slice_room(len(runs)) + 8
        ) as files:
            if runs:
                unpacker = Unpacker(form, orders, {n: file.sink for n, file in files.items()}, min_count=least)
                for block in merge_runs(runs, first_token, stop_token):
                    for windows, counts, leading in block:
                        unpacker.add(windows, counts, leading=leading)
                        for file in files.values():
                            file.flush()
                    unpacker.close()
            entries = [file.close() for file in files.values()]
        yield from entries


def _saver(runs: Iterator[Run]) -> Callable[[int, Path], None]:
    return lambda _number, prefix: save_run(next(runs), prefix)


def _prefix(record: Path, strand: int) -> Path:
    return record.with_name(f"{record.stem}.{strand}")


def _occurrences_file(record: Path) -> Path:
    return record.with_name(f"{record.stem}.tokens.npy")
