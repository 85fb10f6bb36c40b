"""The work directory of a run that tokenises: what was planned, and the shards that are finished.

Owns what a later run may believe. Knows no text: a shard is an entry of a manifest here, and files with digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

from engram_tables.corpus.reading.documents import BadLine, ReadOutcome
from engram_tables.corpus.tokens.array_file import file_digest
from engram_tables.corpus.tokens.token_manifest import FILE_KINDS, MANIFEST_NAME, manifest_bytes, shard_file
from engram_tables.corpus.tokens.token_shards import write_flushed
from engram_tables.files import fsync_directory, give_second_name, new_directory
from engram_tables.work_directory import WorkDirectory, publish_record, read_record

PLAN_SCHEMA = "engram.tokenize-work/1"
SHARD_SCHEMA = "engram.tokenize-shard/1"


class FinishedShard(NamedTuple):
    """A shard whose files are whole: its entry in the manifest, and what was met while it was read."""

    entry: dict[str, Any]
    outcome: ReadOutcome


class TokenizeWork(WorkDirectory):
    """The work directory of one output: shards/ has one record for each finished shard, tokens/ their files, and
    tokenizer.json is for the workers."""

    def __init__(self, path: Path, lock: int, plan: Mapping[str, Any]) -> None:
        super().__init__(path, lock, plan)
        self.tokens = path / "tokens"
        self.tokenizer_file = path / "tokenizer.json"
        self._records = path / "shards"

    @classmethod
    def begin(cls, path: Path, described: Mapping[str, Any], *, restart: bool) -> Self:
        """As `open`, for what a plan describes."""
        work = cls.open(path, {"schema": PLAN_SCHEMA, **described}, command="engram tokenize", restart=restart)
        for directory in (work.tokens, work._records):
            directory.mkdir(exist_ok=True)
        return work

    def provide_tokenizer(self, tokenizer_json: bytes) -> None:
        """Put the tokenizer where workers find it."""
        self.publish(self.tokenizer_file, tokenizer_json)

    def finished(self, n_shards: int, *, threads: int) -> dict[int, FinishedShard]:
        """The shards that earlier runs finished, by number; every byte of them is held against its digest."""
        with ThreadPoolExecutor(threads, thread_name_prefix="engram-check") as pool:
            checks = [pool.submit(self._believed, shard) for shard in range(n_shards)]
            try:
                found = {shard: check.result() for shard, check in enumerate(checks)}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return {shard: finished for shard, finished in found.items() if finished is not None}

    def _believed(self, shard: int) -> FinishedShard | None:
        record = read_record(self._record_path(shard))
        if record is None:
            return None
        if (record["schema"], record["plan_sha256"], record["shard"]) != (SHARD_SCHEMA, self.plan_sha256, shard):
            return None
        for kind in FILE_KINDS:
            told, path = record["entry"][kind], self.tokens / shard_file(shard, FILE_KINDS[kind])
            try:
                whole = told is None or (
                    path.stat().st_size == told["file_bytes"] and file_digest(path) == told["sha256"]
                )
            except FileNotFoundError:
                whole = False
            if not whole:
                return None
        return FinishedShard(record["entry"], _outcome(record["outcome"]))

    def accept(self, shard: int, finished: FinishedShard) -> None:
        """Take over a shard's files from `partial`, flushed as they are, and note that it is finished."""
        for told in _files(finished.entry):
            (self.partial / told["name"]).replace(self.tokens / told["name"])
        fsync_directory(self.tokens)
        record = {
            "schema": SHARD_SCHEMA,
            "plan_sha256": self.plan_sha256,
            "shard": shard,
            "entry": finished.entry,
            "outcome": asdict(finished.outcome) | {"bad_lines": [list(line) for line in finished.outcome.bad_lines]},
        }
        publish_record(self, self._record_path(shard), record)

    def publish_tokens(self, output: Path, manifest: dict[str, Any], *, force: bool) -> None:
        """Make `output` of the finished shards, whole or not at all; they stay here until `remove`."""
        with new_directory(output, force=force) as target:
            for entry in manifest["shards"]:
                for told in _files(entry):
                    give_second_name(self.tokens / told["name"], target / told["name"])
            write_flushed(target / MANIFEST_NAME, manifest_bytes(manifest))

    def _record_path(self, shard: int) -> Path:
        return self._records / f"{shard_file(shard, 'json')}"


def _outcome(record: dict[str, Any]) -> ReadOutcome:
    return ReadOutcome(**record | {"bad_lines": [BadLine(*line) for line in record["bad_lines"]]})


def _files(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry[kind] for kind in FILE_KINDS if entry[kind]]
