"""The work directory of a run that tokenises: what was planned, and the shards that are finished.

Owns what a later run may believe. Knows no text: a shard is an entry of a manifest here, and files with digests.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

from engram_tables.corpus.array_file import file_digest
from engram_tables.corpus.documents import BadLine, ReadOutcome
from engram_tables.corpus.token_manifest import FILE_KINDS, MANIFEST_NAME, content_digest, manifest_bytes, shard_file
from engram_tables.corpus.token_shards import write_flushed
from engram_tables.errors import InvalidInput
from engram_tables.files import fsync_directory, new_directory

PLAN_NAME = "plan.json"
PLAN_SCHEMA = "engram.tokenize-work/1"
SHARD_SCHEMA = "engram.tokenize-shard/1"
_LOCK_NAME = "lock"
_TOKENIZER_NAME = "tokenizer.json"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


class FinishedShard(NamedTuple):
    """A shard whose files are whole: its entry in the manifest, and what was met while it was read."""

    entry: dict[str, Any]
    outcome: ReadOutcome


def work_path(output: Path) -> Path:
    """Where the work directory of an output lies: beside it, so that finished files need no copying."""
    return output.with_name(output.name + ".work")


class WorkDirectory:
    """An open work directory, held by this run alone until it is closed.

    plan.json says what is made, shards/ has one record for each finished shard, tokens/ their files, and
    tokenizer.json is for the workers. What a run is at lies in partial-<hex>/, which the next one removes: a file
    gets its name in tokens/ when it is on the disk, and its record after it.
    """

    def __init__(self, path: Path, lock: int, plan_sha256: str) -> None:
        self.path = path
        self.tokens = path / "tokens"
        self.partial = path / f"partial-{secrets.token_hex(4)}"
        self.tokenizer_file = path / _TOKENIZER_NAME
        self._records = path / "shards"
        self._lock = lock
        self._plan_sha256 = plan_sha256

    @classmethod
    def open(cls, path: Path, described: Mapping[str, Any], *, restart: bool) -> Self:
        """Make the directory, or go on with one of the same plan.

        Raises
        ------
        InvalidInput
            What is there belongs to another plan and `restart` is not set, is held by another run, or is no work
            directory at all.
        """
        _refuse_foreign(path)
        path.mkdir(exist_ok=True)
        lock = _locked(path)
        try:
            plan: dict[str, Any] = json.loads(json.dumps({"schema": PLAN_SCHEMA, **described}))
            if restart or (_read_json(path / PLAN_NAME) or {}).get("resumable") is False:
                # What was read from a pipe is gone, so nobody can go on with it.
                _empty(path)
            elif (path / PLAN_NAME).exists():
                _refuse_other_plan(path, plan)
            work = cls(path, lock, content_digest(plan))
            work._prepare(plan)
        except BaseException:
            os.close(lock)
            raise
        return work

    def _prepare(self, plan: Mapping[str, Any]) -> None:
        for left in self.path.glob("partial-*"):
            shutil.rmtree(left)
        for directory in (self.tokens, self._records, self.partial):
            directory.mkdir(exist_ok=True)
        if not (self.path / PLAN_NAME).exists():
            self._publish_file(self.path / PLAN_NAME, json.dumps(plan, indent=1, sort_keys=True).encode() + b"\n")

    def provide_tokenizer(self, tokenizer_json: bytes) -> None:
        """Put the tokenizer where workers find it."""
        self._publish_file(self.tokenizer_file, tokenizer_json)

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
        record = _read_json(self._record_path(shard))
        if record is None or record.get("record_sha256") != content_digest(record, key="record_sha256"):
            return None
        if (record["schema"], record["plan_sha256"], record["shard"]) != (SHARD_SCHEMA, self._plan_sha256, shard):
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
            "plan_sha256": self._plan_sha256,
            "shard": shard,
            "entry": finished.entry,
            "outcome": asdict(finished.outcome) | {"bad_lines": [list(line) for line in finished.outcome.bad_lines]},
        }
        record["record_sha256"] = content_digest(record, key="record_sha256")
        self._publish_file(self._record_path(shard), json.dumps(record, sort_keys=True).encode() + b"\n")

    def publish(self, output: Path, manifest: dict[str, Any], *, force: bool) -> None:
        """Make `output` of the finished shards, whole or not at all; they stay here until `remove`."""
        with new_directory(output, force=force) as target:
            for entry in manifest["shards"]:
                for told in _files(entry):
                    _link(self.tokens / told["name"], target / told["name"])
            write_flushed(target / MANIFEST_NAME, manifest_bytes(manifest))

    def drop_partial(self) -> None:
        """Remove what is half done; no worker may be at it."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def remove(self) -> None:
        """Remove the whole directory."""
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Let another run have it."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _record_path(self, shard: int) -> Path:
        return self._records / f"{shard_file(shard, 'json')}"

    def _publish_file(self, path: Path, content: bytes) -> None:
        temporary = self.partial / path.name
        write_flushed(temporary, content)
        temporary.replace(path)
        fsync_directory(path.parent)


def _refuse_foreign(path: Path) -> None:
    """A directory of this name that is not ours is neither written into nor removed."""
    if not path.exists() and not path.is_symlink():
        return
    ours = path.is_dir() and not path.is_symlink()
    if ours and any(path.iterdir()) and _schema(path) != PLAN_SCHEMA:
        # A run that was killed before it wrote its plan leaves a lock and a partial directory.
        ours = all(
            entry.name == _LOCK_NAME or entry.name.startswith("partial-") or _is_empty(entry)
            for entry in path.iterdir()
        )
    if not ours:
        raise InvalidInput(
            f"{path}: found something else than a work directory of `engram tokenize`, which this run needs to put "
            "there; move it away or choose another output"
        )


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _schema(path: Path) -> Any:
    return (_read_json(path / PLAN_NAME) or {}).get("schema")


def _locked(path: Path) -> int:
    """A descriptor that holds the directory's lock, which the system lets go when the process ends."""
    lock = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Where a filesystem knows no locks, two runs at once are the user's to avoid.
            if error.errno not in _NO_LOCKS:
                raise
        held = (path / _LOCK_NAME).exists() and os.path.samestat(os.fstat(lock), (path / _LOCK_NAME).stat())
        if not held:
            raise BlockingIOError
    except BlockingIOError:
        os.close(lock)
        raise InvalidInput(
            f"{path}: found another `engram tokenize` at work there, expected to be alone; let it finish, or choose "
            "another output"
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _empty(path: Path) -> None:
    """Remove everything but the lock, the plan last: what is left of a half-emptied directory is still known."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == PLAN_NAME):
        if entry.name == _LOCK_NAME:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _refuse_other_plan(path: Path, plan: dict[str, Any]) -> None:
    found = _read_json(path / PLAN_NAME)
    if found is None:
        raise InvalidInput(f"{path / PLAN_NAME}: cannot be read as a plan; begin anew with --restart")
    differing = sorted(key for key in {*found, *plan} if found.get(key) != plan.get(key))
    if differing:
        what = "; ".join(_difference(key, found.get(key), plan.get(key)) for key in differing)
        raise InvalidInput(
            f"{path}: found the work of another run ({what}), expected one with the same inputs and options; finish "
            f"that one, remove {path}, or begin anew with --restart"
        )


def _difference(key: str, found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        return ", ".join(f"{name} was {found.get(name)!r}, now {wanted.get(name)!r}" for name in keys)
    if isinstance(found, list) and isinstance(wanted, list):
        changed = [item for item in wanted if item not in found] or [item for item in found if item not in wanted]
        first = f", first {changed[0][0]}" if changed and isinstance(changed[0], list) else ""
        return f"{key}: {len(found):,} then, {len(wanted):,} now{first}"
    return f"{key} was {found!r}, now {wanted!r}"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _outcome(record: dict[str, Any]) -> ReadOutcome:
    return ReadOutcome(**record | {"bad_lines": [BadLine(*line) for line in record["bad_lines"]]})


def _files(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry[kind] for kind in FILE_KINDS if entry[kind]]


def _link(source: Path, target: Path) -> None:
    """A second name, so that the work is still there if this run is killed before the output has its name."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        source.replace(target)
