"""What a table does when the system refuses, fails or takes something away; each scenario in a process of its own.

    python fault_scenarios.py DIRECTORY

Prints a line for each: scenario, engine, and 0 where the bytes were right or the error was the one expected, 77 where
the system does not let the fault be provoked; then what the process said, as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "fetch"))

import numpy as np
import pytest
from faulty_files import Fault, mount, own_mounts, serve
from made_table import MadeFiles, make_table
from refused_calls import refuse

from engram_tables.errors import BackendUnavailable, CapacityError
from engram_tables.fetch.engines.copying import MemoryEngine
from engram_tables.fetch.engines.ladder import ENGINES, probe
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import Table
from engram_tables.storage.row_files import RowFile

CANNOT = 77
N_ROWS = 20_000
DATA_OFFSET = 4096
BAD_ROW = 9000
BAD_BYTE = DATA_OFFSET + BAD_ROW * 264
READERS = ("pread", "direct", "uring", "aio")


def refused_calls(engine: str, directory: Path) -> None:
    """A container's filter: `engine` is refused by name, the ladder says why, and auto answers all the same."""
    calls = {"uring": "io_uring_setup", "aio": "io_setup"}
    with made(directory) as (table, expected):
        refuse(calls[engine], code=errno.EPERM)
        said = refused(lambda: table.fetch_rows(1, [3], engine=engine))
        assert "Operation not permitted" in said or "EPERM" in said, said
        assert engine in said, said
        (rung,) = [rung for rung in probe(table.stored, table.engine) if rung.engine == engine]
        assert not rung.is_usable
        assert rung.reason == said, (rung.reason, said)
        check(table, expected, "auto")


def no_residency(engine: str, directory: Path) -> None:
    """The system does not say what is in memory: auto reads all the same."""
    with made(directory) as (table, expected):
        refuse("mincore", "cachestat", code=errno.EPERM)
        check(table, expected, engine)


def no_direct_reads(engine: str, directory: Path) -> None:
    """A filesystem without O_DIRECT: engines that need it say so, the others read."""
    own_mounts()
    mount("none", directory, "ramfs")
    with made(directory) as (table, expected):
        if engine in ("direct", "uring", "aio"):
            said = refused(lambda: table.fetch_rows(1, [3], engine=engine))
            assert "O_DIRECT" in said, said
        else:
            check(table, expected, engine)


def input_output_error(engine: str, directory: Path) -> None:
    """The device cannot read a page: an error that names file and place, and right bytes beside it."""
    with faulty(directory, Fault(start=BAD_BYTE, stop=BAD_BYTE + 10, code=errno.EIO)) as (table, expected):
        check(table, expected, engine, np.arange(4000))
        with pytest.raises(OSError, match="file-0") as caught:
            table.fetch_rows(1, np.arange(BAD_ROW - 500, BAD_ROW + 500), engine=engine)
        assert caught.value.errno == errno.EIO
        assert any("at byte" in note and engine in note for note in caught.value.__notes__), caught.value.__notes__
        check(table, expected, engine, np.arange(4000))


def short_reads(engine: str, directory: Path) -> None:
    """Reads that give less than was asked for are gone on with."""
    fault = Fault(start=0, stop=1 << 40, short_bytes=512 if engine != "pread" else 100)
    with faulty(directory, fault) as (table, expected):
        check(table, expected, engine)


def user_space_files(engine: str, directory: Path) -> None:
    """io_uring goes on after a short answer by itself, wrongly: files in user space are refused to it."""
    with faulty(directory, Fault(start=0, stop=1 << 40, short_bytes=512)) as (table, expected):
        said = refused(lambda: table.fetch_rows(1, [3], engine=engine))
        assert "FUSE" in said, said
        check(table, expected, "auto")


def locked_memory(engine: str, directory: Path) -> None:
    """No byte may be locked, and the process has no privilege: right bytes, or the limit is named."""
    with made(directory) as (table, expected):
        may_not_lock()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        try:
            check(table, expected, engine)
        except BackendUnavailable as error:
            said = str(error)
            check(table, expected, "auto")
        else:
            return
        assert "lock" in said, said


def few_descriptors(engine: str, directory: Path) -> None:
    """No descriptor is left: an error of the system, or right bytes; and a later call reads."""
    with made(directory) as (table, expected):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/proc/self/fd").iterdir()]) - 1, limit[1]))
        codes = set()
        try:
            check(table, expected, engine)
        except OSError as error:
            codes.add(error.errno)
        assert codes <= {errno.EMFILE}, codes
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        check(table, expected, engine)


def deleted_shard(engine: str, directory: Path) -> None:
    """A shard is deleted under the reader, which goes on with the bytes it opened."""
    with made(directory) as (table, expected):
        for file in table.stored.files:
            file.path.unlink()
        check(table, expected, engine)


def little_memory(engine: str, directory: Path) -> None:
    """Memory for a private copy is refused: a clear error, and the table goes on."""
    with made(directory) as (table, expected):
        check(table, expected, engine)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), limit[1]))
        with pytest.raises(CapacityError, match="memory"):
            MemoryEngine(table.stored, table.places)
        resource.setrlimit(resource.RLIMIT_AS, limit)
        check(table, expected, engine)


@contextmanager
def made(directory: Path) -> Iterator[tuple[Table, Any]]:
    """A table of two layers, and all records of the first."""
    with make_table(directory, n_rows=(N_ROWS, 500)) as table:
        yield table, read_rows(table.stored, 1, np.arange(N_ROWS))


@contextmanager
def faulty(directory: Path, fault: Fault) -> Iterator[tuple[Table, Any]]:
    """The same, read through a filesystem with `fault`."""
    behind, mountpoint = directory / "behind", directory / "mounted"
    behind.mkdir()
    mountpoint.mkdir()
    with made(behind) as (table, expected):
        own_mounts()
        pid = serve(behind, mountpoint, fault)
        try:
            stored = table.stored
            files = [
                RowFile(path=mountpoint / f.path.name, file_bytes=f.file_bytes, fd=os.open(mountpoint / f.path.name, 0))
                for f in stored.files
            ]
            through = MadeFiles(
                mountpoint, n_rows=(N_ROWS, 500), n_columns=3, parts=stored.parts, files=files, extents=stored.extents
            )
            with Table(through) as mounted:
                yield mounted, expected
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def check(table: Table, expected: Any, engine: str, rows: Any = None) -> None:
    """A few, many and all records are right, in an order of their own."""
    rng = np.random.default_rng(0)
    everything = np.arange(N_ROWS) if rows is None else rows
    for n in (1, 48, everything.size):
        chosen = rng.permutation(everything)[:n]
        found = table.fetch_rows(1, chosen, engine=engine)
        assert np.array_equal(found, expected[chosen]), f"{engine}: wrong bytes among {n} records"


def refused(call: Callable[[], object]) -> str:
    """What the engine said when it was refused."""
    with pytest.raises(BackendUnavailable) as caught:
        call()
    return str(caught.value)


def may_not_lock() -> None:
    """Give up the privilege (CAP_IPC_LOCK) that lifts the limit of locked memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = struct.pack("<Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    words = list(struct.unpack("<6I", sets.raw))
    for low in range(3):
        words[low] &= ~(1 << 14)
    assert libc.capset(header, struct.pack("<6I", *words)) == 0, os.strerror(ctypes.get_errno())


SCENARIOS: dict[str, tuple[Callable[[str, Path], None], tuple[str, ...]]] = {
    "refused_calls": (refused_calls, ("uring", "aio")),
    "no_residency": (no_residency, ("auto", "gather", "willneed")),
    "no_direct_reads": (no_direct_reads, (*ENGINES, "auto")),
    "input_output_error": (input_output_error, ("pread", "direct", "aio")),
    "short_reads": (short_reads, ("pread", "direct", "aio")),
    "user_space_files": (user_space_files, ("uring",)),
    "locked_memory": (locked_memory, (*READERS, "auto")),
    "few_descriptors": (few_descriptors, (*READERS, "auto")),
    "deleted_shard": (deleted_shard, (*ENGINES, "auto")),
    "little_memory": (little_memory, ("auto",)),
}


def main() -> None:
    """Run all scenarios, one after the other."""
    directory = Path(sys.argv[1])
    load_everything(directory)
    for name, (scenario, engines) in SCENARIOS.items():
        for engine in engines:
            own = directory / f"{name}-{engine}"
            own.mkdir()
            pid = os.fork()
            if pid == 0:
                run_and_leave(scenario, engine, own)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said = (own / "said").read_text()
            sys.stdout.write(json.dumps([name, engine, status, said]) + "\n")
            sys.stdout.flush()


def load_everything(directory: Path) -> None:
    """What is compiled is loaded before anything is taken away, and once for all scenarios."""
    own = directory / "loaded"
    own.mkdir()
    with made(own) as (table, expected):
        for engine in (*ENGINES, "auto"):
            with suppress(BackendUnavailable):
                check(table, expected, engine)


def run_and_leave(scenario: Callable[[str, Path], None], engine: str, directory: Path) -> NoReturn:
    """Run one scenario in a process that was forked for it."""
    status = 1
    # A scenario that hangs ends with a signal.
    signal.alarm(60)
    said = os.open(directory / "said", os.O_CREAT | os.O_WRONLY)
    try:
        scenario(engine, directory)
        status = 0
    except PermissionError as error:
        os.write(said, f"{error}\n{traceback.format_exc()}".encode())
        # Without a name it was a call of the scenario's own.
        status = CANNOT if error.filename is None else 1
    except BaseException:
        os.write(said, traceback.format_exc().encode())
    os._exit(status)


if __name__ == "__main__":
    main()
