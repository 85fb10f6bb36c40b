"""What the doctor says before a thing fails, and whether it then does; each scenario in a process of its own.

    python doctor_scenarios.py DIRECTORY

Prints a line for each: its name, and 0 where the doctor was right, 77 where the system does not let it be provoked;
then what the process said, as JSON. Mounts are in namespaces of the processes' own, limits theirs alone.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "faults"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fetch"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "storage"))

import pytest
from fault_scenarios import CANNOT, faulty, may_not_lock
from faulty_files import Fault, mount, own_mounts
from refused_calls import refuse
from small_tables import small_plan, small_spec, small_table

from engram_tables.errors import BackendUnavailable, CapacityError
from engram_tables.fetch.table import open_table
from engram_tables.fetch.tiers.placed_memory import PlacedMemory
from engram_tables.measure.doctor import tries
from engram_tables.measure.doctor.doctor import diagnose, record_of
from engram_tables.measure.doctor.findings import Placement, Severity
from engram_tables.measure.doctor.subject import Subject
from engram_tables.measure.doctor.system import System
from engram_tables.measure.doctor.tries import Tries
from engram_tables.memory import anonymous_bytes
from engram_tables.storage.building.writer import build_table

MS_RDONLY, MS_REMOUNT = 1, 32
FAILS, SLOW, FINE, NO_MATTER = (
    Severity.WILL_FAIL, Severity.WILL_BE_SLOW, Severity.FINE, Severity.NOT_APPLICABLE,
)  # fmt: skip
N_ROWS = 20_000


def small_shared_memory(directory: Path) -> None:
    """A container's /dev/shm: the copy ends in the middle; in a larger one it is whole, and found to be there."""
    table = made(directory)
    own_mounts()
    mount("none", Path("/dev/shm"), "tmpfs", options="size=1m")
    check(ask(table, "shm"), "shared-memory", FAILS)
    with pytest.raises(shutil.Error, match="No space left"):
        shutil.copytree(table, "/dev/shm/table")
    mount("none", Path("/dev/shm"), "tmpfs", options="size=64m,huge=never")
    check(ask(table, "shm"), "shared-memory", FINE)
    check(ask(table, "shm"), "memory-huge-pages", SLOW)
    copied = Path(shutil.copytree(table, "/dev/shm/table"))
    record = diagnose(copied)
    assert record["placement"] is Placement.SHM
    check(record, "shared-memory", FINE)


def locked_memory(directory: Path) -> None:
    """Too little may be locked: a locked tier is refused; reads only cost more."""
    table = made(directory)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
    # Whoever has the capability may lock in spite of the limit.
    check(ask(table, "dram", is_locked=True), "locked-memory", FINE)
    PlacedMemory(1 << 20, is_locked=True).close()
    may_not_lock()
    record = check(ask(table, "dram", is_locked=True), "locked-memory", FAILS)
    assert "ulimit -l" in record["command"] or "MEMLOCK" in record["command"], record
    with pytest.raises(BackendUnavailable, match="lock"):
        PlacedMemory(1 << 20, is_locked=True)
    check(ask(table, "dram"), "locked-memory", NO_MATTER)
    check(ask(table, "nvme"), "locked-memory", SLOW)


def open_files(directory: Path) -> None:
    """More shards than files may be open: the table does not open; with a few more, direct reads are refused."""
    table = made(directory, shard_bytes=16 << 10)
    n_files = ask(table, "nvme")["n_files"]
    assert n_files > 60
    limit_files(n_files // 2)
    record = ask(table, "nvme")
    assert "Too many open files" in check(record, "open-files", FAILS)["found"]
    assert record["n_files"] == n_files
    assert record["verdict"] is FAILS
    with pytest.raises(OSError, match="Too many open files"):
        open_table(table)
    limit_files(n_files * 3 // 2)
    record = ask(table, "nvme")
    check(record, "open-files", SLOW)
    # Of the engines that read past the page cache, none finds a descriptor for every file.
    assert "Too many open files" in check(record, "direct-reads", SLOW)["found"]
    # Whatever is left once the table is open, the limit was read before.
    in_use = len([*Path("/proc/self/fd").iterdir()]) - 1
    for spare in range(4):
        limit_files(in_use + n_files + spare)
        record = ask(table, "nvme")
        assert check(record, "open-files", FAILS)["found_value"] == in_use + n_files + spare
    limit_files(n_files * 8)
    for name in ("open-files", "direct-reads"):
        check(ask(table, "nvme"), name, FINE)


def no_direct_reads(directory: Path) -> None:
    """A ramfs knows no O_DIRECT, and needs none."""
    made(directory)
    own_mounts()
    (directory / "ramfs").mkdir()
    mount("none", directory / "ramfs", "ramfs")
    table = Path(shutil.copytree(directory / "made", directory / "ramfs" / "table"))
    record = ask(table, "nvme")
    assert "O_DIRECT" in check(record, "direct-reads", FINE)["found"]
    assert "ramfs" in check(record, "filesystem", FINE)["found"]
    check(record, "reads", FINE)
    check(record, "scheduler", NO_MATTER)
    with open_table(table) as opened, pytest.raises(BackendUnavailable, match="O_DIRECT"):
        opened.engine("direct")


def files_on_two_filesystems(directory: Path) -> None:
    """A layer's files lie in memory, the others on the disk: both are named, and it is no table in memory."""
    table = made(directory)
    one, other = sorted(path for path in table.iterdir() if path.is_dir())
    shutil.copytree(other, directory / "copied")
    own_mounts()
    mount("none", other, "tmpfs", options="size=64m")
    shutil.copytree(directory / "copied", other, dirs_exist_ok=True)
    record = diagnose(table)
    assert record["placement"] is Placement.NVME
    found = check(record, "filesystem", FINE)["found"]
    assert str(one) in found, found
    assert f"{other}/" in found, found
    assert "tmpfs of" in found, found


def files_in_user_space(directory: Path) -> None:
    """FUSE: every read goes through a program, and io_uring is refused."""
    with faulty(directory, Fault(start=0, stop=0)) as (table, _):
        system = System()
        subject = Subject(path=table.path, file_bytes=1 << 20, device_bytes=1 << 20, n_files=2)
        record = record_of(system, subject, Placement.NVME, Tries(table, system), {})
        assert "fuse" in check(record, "filesystem", SLOW)["found"]
        assert "FUSE" in check(record, "io-uring", SLOW)["found"]
        check(record, "reads", FINE)


def broken_device(directory: Path) -> None:
    """The device gives errors in place of bytes."""
    with faulty(directory, Fault(start=0, stop=1 << 40, code=errno.EIO)) as (table, _):
        system = System()
        subject = Subject(path=table.path, file_bytes=1 << 20, device_bytes=1 << 20, n_files=2)
        record = record_of(system, subject, Placement.NVME, Tries(table, system), {})
        assert "Input/output error" in check(record, "reads", FAILS)["found"]
        with pytest.raises(OSError, match="Input/output error"):
            table.fetch_rows(1, [3], engine="pread")


def full_disk(directory: Path) -> None:
    """Too little room: the build is refused; with room for the very bytes it ends well, with half of it not."""
    own_mounts()
    place = directory / "disk"
    place.mkdir()
    mount("none", place, "tmpfs", options="size=1m")
    table = made(directory)
    check(ask(table, "nvme", build_into=place), "build-room", FAILS)
    with pytest.raises(CapacityError, match="free"):
        build_table(plan(), place / "table", threads=1)
    n_bytes = sum(file.stat().st_size for file in table.rglob("*") if file.is_file())
    # A journal grows beside the table, with a digest of every block as the manifest has.
    n_bytes += (table / "engram.json").stat().st_size
    n_pages = -(-n_bytes // 4096)
    mount("none", place, "tmpfs", options=f"size={n_pages // 2 * 4096}")
    check(ask(table, "nvme", build_into=place), "build-room", FAILS)
    with pytest.raises(CapacityError, match="free"):
        build_table(plan(), place / "table", threads=1)
    mount("none", place, "tmpfs", options=f"size={(n_pages + 8) * 4096}")
    check(ask(table, "nvme", build_into=place), "build-room", FINE)
    build_table(plan(), place / "table", threads=1)


def read_only_disk(directory: Path) -> None:
    """A place that is mounted read-only."""
    own_mounts()
    place = directory / "disk"
    place.mkdir()
    mount("none", place, "tmpfs", options="size=16m")
    mount("none", place, None, MS_REMOUNT | MS_RDONLY)
    table = made(directory)
    assert "read-only" in check(ask(table, "nvme", build_into=place), "build-room", FAILS)["found"]
    with pytest.raises(OSError, match="Read-only"):
        build_table(plan(), place / "table", threads=1)


def short_files(directory: Path) -> None:
    """No file may be as long as a shard."""
    table = made(directory)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
    assert "ulimit -f" in check(ask(table, "nvme", build_into=directory), "build-room", FAILS)["found"]
    with pytest.raises(OSError, match="File too large"):
        build_table(plan(), directory / "another", threads=1)


def no_io_uring(directory: Path) -> None:
    """A container's filter: io_uring is refused, then libaio too; direct reads with threads are left."""
    table = made(directory)
    for name in ("io-uring", "libaio"):
        check(ask(table, "nvme"), name, FINE)
    refuse("io_uring_setup", code=errno.EPERM)
    record = ask(table, "nvme")
    assert "not permitted" in check(record, "io-uring", SLOW)["found"]
    assert "filtered" in check(record, "io-uring", SLOW)["found"]
    check(record, "libaio", FINE)
    check(diagnose(table_bytes=1 << 20), "io-uring", SLOW)
    with open_table(table) as opened, pytest.raises(BackendUnavailable, match="io_uring"):
        opened.engine("uring")
    refuse("io_setup", code=errno.ENOSYS)
    record = ask(table, "nvme")
    check(record, "libaio", SLOW)
    assert "direct" in check(record, "reads", FINE)["found"]
    assert record["verdict"] is SLOW


def few_addresses(directory: Path) -> None:
    """A limit on addresses that a private copy of the rows would pass."""
    del directory
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
    for n_bytes, severity in ((100 << 20, FINE), (2 << 30, FAILS)):
        check(diagnose(table_bytes=n_bytes, placement=Placement.DRAM), "address-space", severity)
    anonymous_bytes(100 << 20, huge_pages=False)
    with pytest.raises(CapacityError, match="ulimit -v"):
        anonymous_bytes(2 << 30, huge_pages=False)


def nothing_is_written(directory: Path) -> None:
    """No file is opened for writing, made or removed, for any placement."""
    table = made(directory)
    ask(table, "nvme")
    written: list[object] = []
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def watch(event: str, words: tuple[Any, ...]) -> None:
        is_write = event == "open" and isinstance(words[2], int) and words[2] & changing
        if is_write or event in ("os.mkdir", "os.remove", "os.rename", "os.truncate", "os.chmod", "subprocess.Popen"):
            written.append((event, words))

    sys.addaudithook(watch)
    for placement in Placement:
        diagnose(table, placement=placement, build_into=directory)
    assert not written, written
    (directory / "seen").write_text("the hook works")
    assert written


SCENARIOS: dict[str, Callable[[Path], None]] = {
    scenario.__name__: scenario
    for scenario in (
        small_shared_memory, locked_memory, open_files, no_direct_reads, files_on_two_filesystems,
        files_in_user_space, broken_device, full_disk,
        read_only_disk, short_files, no_io_uring, few_addresses, nothing_is_written,
    )
}  # fmt: skip


def plan(**options: Any) -> Any:
    """Of a table of 2.6 MB."""
    return small_plan(small_spec(N_ROWS), **options)


def made(directory: Path, **options: Any) -> Path:
    """A table of this plan."""
    return small_table(directory / "made", small_spec(N_ROWS), **options)


def ask(table: Path, placement: str, **options: Any) -> dict[str, Any]:
    """The record of a table and a placement."""
    return diagnose(table, placement=Placement(placement), **options)


def check(record: dict[str, Any], name: str, severity: Severity) -> dict[str, Any]:
    """One of its checks, of this severity."""
    (found,) = [check for check in record["checks"] if check["check"] == name]
    assert found["severity"] is severity, found
    assert severity is not FAILS or record["verdict"] is FAILS
    return dict(found)


def limit_files(n_files: int) -> None:
    """How many this process may have open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def main() -> None:
    """Run all scenarios, one after the other."""
    directory = Path(sys.argv[1])
    (directory / "loaded").mkdir()
    # Long enough to be watched, too short to be waited for thirty times.
    tries.STEAL_SECONDS = 0.02
    # What is compiled and imported is there before anything is taken away, and once for all.
    diagnose(made(directory / "loaded"), placement=Placement.PINNED)
    for name, scenario in SCENARIOS.items():
        own = directory / name
        own.mkdir()
        pid = os.fork()
        if pid == 0:
            run_and_leave(scenario, own, directory / f"{name}.said")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = (directory / f"{name}.said").read_text()
        sys.stdout.write(json.dumps([name, status, said]) + "\n")
        sys.stdout.flush()


def run_and_leave(scenario: Callable[[Path], None], directory: Path, said_file: Path) -> NoReturn:
    """Run one scenario in a process that was forked for it."""
    status = 1
    # A scenario that hangs ends with a signal.
    signal.alarm(60)
    said = os.open(said_file, os.O_CREAT | os.O_WRONLY)
    try:
        scenario(directory)
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
