"""A work directory: what a long run has finished, beside the output, so that the same command goes on there.

Owns the plan, the lock and the place of half-done files. Knows nothing of what is made.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from engram_tables.errors import InvalidInput
from engram_tables.files import fsync_directory

PLAN_NAME = "plan.json"
_LOCK_NAME = "lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def work_path(output: Path) -> Path:
    """Where the work directory of an output lies: beside it, so that finished files need no copying."""
    return output.with_name(output.name + ".work")


class WorkDirectory:
    """An open work directory, held by this run alone until it is closed.

    plan.json says what is made. What a run is at lies in partial-<hex>/, which the next one removes: a file gets its
    name when it is on the disk.
    """

    def __init__(self, path: Path, lock: int, plan: Mapping[str, Any]) -> None:
        self.path = path
        self.plan_sha256 = record_digest(plan)
        self.partial = path / f"partial-{secrets.token_hex(4)}"
        self._lock = lock

    @classmethod
    def open(cls, path: Path, plan: Mapping[str, Any], *, command: str, restart: bool) -> Self:
        """Make the directory, or go on with one of the same plan.

        Parameters
        ----------
        plan
            What must be the same for a run to go on, `schema` among it, as JSON values. Where `resumable` is false,
            nobody can go on with it: what was read from a pipe is gone.

        Raises
        ------
        InvalidInput
            What is there belongs to another plan and `restart` is not set, is held by another run, or is no work
            directory at all.
        """
        wanted = json.loads(json.dumps(plan))
        _refuse_foreign(path, wanted["schema"], command)
        path.mkdir(exist_ok=True)
        try:
            work = cls(path, _locked(path, command), wanted)
        except OSError:
            # A disk that is full: an empty directory is nobody's.
            with suppress(OSError):
                path.rmdir()
            raise
        try:
            if restart or _plan_of(path).get("resumable") is False:
                _empty(path)
            elif (path / PLAN_NAME).exists():
                _refuse_other_plan(path, wanted)
            work._prepare(wanted)
        except BaseException as error:
            if isinstance(error, OSError):
                error.add_note(f"while preparing {path}")
            if not (path / PLAN_NAME).exists():
                work.remove()
            work.close()
            raise
        return work

    def _prepare(self, plan: Mapping[str, Any]) -> None:
        for left in self.path.glob("partial-*"):
            shutil.rmtree(left)
        self.partial.mkdir()
        if not (self.path / PLAN_NAME).exists():
            self.publish(self.path / PLAN_NAME, json.dumps(plan, indent=1, sort_keys=True).encode() + b"\n")

    def publish(self, path: Path, content: bytes) -> None:
        """A small file at `path` inside, whole or not at all."""
        temporary = self.partial / path.name
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)

    def drop_partial(self) -> None:
        """Remove what is half done; nobody may be at it."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def remove(self) -> None:
        """Remove the whole directory."""
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Let another run have it."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def read_record(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file that `publish_record` wrote; None if there is no whole one."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.pop("record_sha256", None) != record_digest(record):
        return None
    return record


def publish_record(work: WorkDirectory, path: Path, record: Mapping[str, Any]) -> None:
    """A JSON file with its own digest, so that a damaged one is not believed."""
    sealed = {**record, "record_sha256": record_digest(record)}
    work.publish(path, json.dumps(sealed, sort_keys=True).encode() + b"\n")


def record_digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of the record's JSON."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _refuse_foreign(path: Path, schema: str, command: str) -> None:
    """A directory of this name that is not ours is neither written into nor removed."""
    if not path.exists() and not path.is_symlink():
        return
    ours = path.is_dir() and not path.is_symlink()
    if ours and any(path.iterdir()) and _plan_of(path).get("schema") != schema:
        # A run that was killed before it wrote its plan leaves a lock and a partial directory.
        ours = all(entry.name == _LOCK_NAME or entry.name.startswith("partial-") for entry in path.iterdir())
    if not ours:
        raise InvalidInput(
            f"{path}: found something else than a work directory of `{command}`, which this run needs to put there; "
            "move it away or choose another output"
        )


def _plan_of(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads((path / PLAN_NAME).read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return {}
    return plan if isinstance(plan, dict) else {}


def _locked(path: Path, command: str) -> int:
    """A descriptor that holds the directory's lock, which the system lets go when the process ends."""
    lock = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Where a filesystem knows no locks, two runs at once are the user's to avoid.
            if error.errno not in _NO_LOCKS:
                raise
        if not (path / _LOCK_NAME).exists() or not os.path.samestat(os.fstat(lock), (path / _LOCK_NAME).stat()):
            raise BlockingIOError
    except BlockingIOError:
        os.close(lock)
        raise InvalidInput(
            f"{path}: found another `{command}` at work there, expected to be alone; let it finish, or choose another "
            "output"
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
    found = _plan_of(path)
    if not found:
        raise InvalidInput(f"{path / PLAN_NAME}: cannot be read as a plan; begin anew with --restart")
    differing = sorted(key for key in {*found, *plan} if found.get(key) != plan.get(key))
    # A digest of everything differs with each of its entries, which say more.
    differing = [key for key in differing if not key.endswith("_sha256")] or differing
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
        first = f", first {_changed(changed[0], found)}" if changed and isinstance(changed[0], list) else ""
        return f"{key}: {len(found):,} then, {len(wanted):,} now{first}"
    return f"{key} was {found!r}, now {wanted!r}"


def _changed(item: list[Any], found: list[Any]) -> str:
    """An item's name; and what of it changed, where the earlier run had one of this name."""
    name, facts = item[0], item[-1]
    before = next((other[-1] for other in found if isinstance(other, list) and other[0] == name), None)
    if not isinstance(facts, dict) or not isinstance(before, dict) or before == facts:
        return str(name)
    return f"{name} ({_difference('', before, facts)})"
