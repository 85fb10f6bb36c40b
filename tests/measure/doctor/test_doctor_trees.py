"""Checks on recorded machines (see `recorded_machines`): nothing is tried there, so only what is read is judged."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded_machines import GB, TREES, lay, look, write

from engram_tables.measure.doctor.case import Case
from engram_tables.measure.doctor.checks_processors import without_gpu
from engram_tables.measure.doctor.doctor import CHECKS, record_of
from engram_tables.measure.doctor.findings import Placement, Severity, worst
from engram_tables.measure.doctor.subject import PROCESS_BYTES, Subject
from engram_tables.measure.doctor.system import System, numbers
from engram_tables.measure.doctor.tries import Tries

MACHINES = sorted(path.stem for path in TREES.glob("*.json"))
FAILS, SLOW, FINE, UNSEEN, NO_MATTER = (
    Severity.WILL_FAIL, Severity.WILL_BE_SLOW, Severity.FINE, Severity.COULD_NOT_LOOK, Severity.NOT_APPLICABLE,
)  # fmt: skip
_GRAVITY = [FINE, SLOW, FAILS]
GIB = 1 << 30


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> System:
    return lay(request.param, tmp_path)


EXPECTED = [
    # A virtual machine of 24 GB and one disk, as it was read.
    ("vm", "dram", 10 * GB, "memory-available", FINE),
    ("vm", "dram", 203 * GB, "memory-available", FAILS),
    ("vm", "dram", 203 * GB, "memory-overcommit", FAILS),
    ("vm", "dram", 10 * GB, "memory-cgroup", FINE),
    ("vm", "dram", 10 * GB, "memory-huge-pages", FINE),
    ("vm", "shm", 10 * GB, "shared-memory", FINE),
    ("vm", "shm", 203 * GB, "shared-memory", FAILS),
    ("vm", "shm", 10 * GB, "memory-huge-pages", SLOW),
    ("vm", "cxl", 10 * GB, "numa-nodes", FAILS),
    ("vm", "nvme", 203 * GB, "memory-available", FINE),
    ("vm", "nvme", 203 * GB, "filesystem", FINE),
    ("vm", "nvme", 203 * GB, "read-ahead", UNSEEN),
    ("vm", "nvme", 203 * GB, "rotational", UNSEEN),
    ("vm", "nvme", 203 * GB, "scheduler", FINE),
    ("vm", "nvme", 203 * GB, "queue-depth", FINE),
    ("vm", "nvme", 203 * GB, "io-uring", UNSEEN),
    ("vm", "nvme", 203 * GB, "locked-memory", FINE),
    ("vm", "nvme", 203 * GB, "cpu-governor", NO_MATTER),
    ("vm", "nvme", 203 * GB, "cpu-steal", SLOW),
    ("vm", "nvme", 203 * GB, "cpu-quota", FINE),
    ("vm", "pinned", GB, "gpu", UNSEEN),
    ("vm", "pinned", GB, "host-registration", UNSEEN),
    # A container with the usual limits.
    ("container", "shm", GB, "shared-memory", FAILS),
    ("container", "dram", GB, "memory-cgroup", FINE),
    ("container", "dram", 31 * GIB, "memory-cgroup", FAILS),
    ("container", "dram", 31 * GIB, "memory-available", FINE),
    ("container", "dram", GB, "memory-huge-pages", SLOW),
    ("container", "shm", GB, "memory-huge-pages", SLOW),
    ("container", "dram", 240 * GIB, "memory-overcommit", FAILS),
    ("container", "dram", 100 * GIB, "memory-overcommit", FINE),
    ("container", "dram", 100 * GIB, "numa-nodes", FINE),
    ("container", "dram", 300 * GIB, "numa-nodes", SLOW),
    ("container", "nvme", GB, "filesystem", FINE),
    ("container", "nvme", GB, "scheduler", UNSEEN),
    ("container", "nvme", GB, "io-uring", SLOW),
    ("container", "nvme", GB, "libaio", UNSEEN),
    ("container", "nvme", GB, "locked-memory", SLOW),
    ("container", "nvme", GB, "cpu-quota", SLOW),
    # A server with memory without CPUs, a turning disk and a service's limits.
    ("server", "cxl", 50 * GIB, "numa-nodes", FINE),
    ("server", "cxl", 100 * GIB, "numa-nodes", FAILS),
    ("server", "dram", 50 * GIB, "numa-nodes", FINE),
    ("server", "dram", 70 * GIB, "numa-nodes", SLOW),
    ("server", "dram", 190 * GIB, "numa-nodes", FAILS),
    ("server", "dram", 190 * GIB, "memory-available", FAILS),
    ("server", "dram", 85 * GIB, "memory-cgroup", FINE),
    ("server", "dram", 95 * GIB, "memory-cgroup", FAILS),
    ("server", "dram", 160 * GIB, "memory-swap", SLOW),
    ("server", "dram", 100 * GIB, "memory-swap", FINE),
    ("server", "dram", 100 * GIB, "memory-overcommit", FINE),
    ("server", "shm", 100 * GIB, "memory-huge-pages", FINE),
    ("server", "shm", 270 * GIB, "shared-memory", FINE),
    ("server", "shm", 290 * GIB, "shared-memory", FAILS),
    ("server", "nvme", GB, "numa-zone-reclaim", SLOW),
    ("server", "nvme", GB, "filesystem", FINE),
    ("server", "nvme", GB, "scheduler", SLOW),
    ("server", "nvme", GB, "queue-depth", SLOW),
    ("server", "nvme", GB, "rotational", SLOW),
    ("server", "nvme", GB, "cpu-governor", SLOW),
    ("server", "nvme", GB, "cpu-steal", SLOW),
    ("server", "nvme", GB, "cpu-quota", SLOW),
]


@pytest.mark.parametrize(("tree", "placement", "n_bytes", "check", "severity"), EXPECTED)
def test_what_is_found(tree: str, placement: str, n_bytes: int, check: str, severity: Severity, tmp_path: Path) -> None:
    found = look(lay(tree, tmp_path), placement, n_bytes)[check]
    assert found.severity is severity, found


@pytest.mark.parametrize(
    ("files", "severity"), [(1, FINE), (400, FINE), (600, SLOW), (992, SLOW), (993, FAILS), (40_000, FAILS)]
)
def test_files_against_their_limit(files: int, severity: Severity, tmp_path: Path) -> None:
    found = look(lay("container", tmp_path), "nvme", GB, n_files=files)
    assert found["open-files"].severity is severity, found["open-files"]
    # 300 mappings are in use, 400 are allowed, and a file takes three.
    assert found["mappings"].severity is (FINE if files <= 33 else FAILS)


@pytest.mark.parametrize(
    ("place", "filesystem", "severity", "read_ahead"),
    [
        ("/", "ext4 of /dev/nvme0n1p2 on /", FINE, 8),
        ("/home/models", "ext4 of /dev/nvme0n1p2 on /", FINE, 8),
        ("/data/models", "xfs of /dev/sda1 on /data", FINE, 128),
        ("/database", "ext4 of /dev/nvme0n1p2 on /", FINE, 8),
        ("/pool/x", "btrfs of /dev/nvme0n1p2 on /pool", SLOW, 8),
        ("/net share/x", "nfs4 of server:/export on /net share", SLOW, None),
        ("/dev/shm/x", "tmpfs of tmpfs on /dev/shm", FINE, None),
    ],
)
def test_the_mount_and_the_device_of_a_place(
    place: str, filesystem: str, severity: Severity, read_ahead: int | None, tmp_path: Path
) -> None:
    found = look(lay("server", tmp_path), "nvme", GB, path=Path(place))
    assert found["filesystem"].found.startswith(filesystem)
    assert found["filesystem"].severity is severity
    assert found["read-ahead"].found_value == read_ahead


def test_a_table_in_memory_takes_none_again(tmp_path: Path) -> None:
    system = lay("server", tmp_path)
    subject = Subject(path=Path("/dev/shm/table"), file_bytes=250 * GIB, device_bytes=260 * GIB, n_files=50)
    assert subject.host_bytes(system, Placement.SHM) == subject.host_bytes(system, Placement.DRAM) == PROCESS_BYTES
    assert subject.host_bytes(system, Placement.PINNED) == 260 * GIB + PROCESS_BYTES
    assert record_of(system, subject, None, Tries(None, system), {})["placement"] is Placement.SHM
    assert look(system, "shm", 250 * GIB, path=Path("/dev/shm/table"))["shared-memory"].severity is FINE


def test_locked_memory_by_limit_and_capability(tmp_path: Path) -> None:
    system = lay("server", tmp_path)
    for n_bytes, severity in ((8 << 20, FINE), ((8 << 20) + 1, FAILS)):
        assert look(system, "dram", n_bytes, is_locked=True)["locked-memory"].severity is severity
    assert "engram.service" in str(look(system, "dram", GB, is_locked=True)["locked-memory"].command)
    assert look(system, "dram", GB)["locked-memory"].severity is NO_MATTER
    write(tmp_path, "/proc/self/status", "CapEff:\t0000000000004000\n")
    assert look(system, "dram", GB, is_locked=True)["locked-memory"].severity is FINE


def test_huge_pages_that_are_set_aside_are_named(tmp_path: Path) -> None:
    system = lay("server", tmp_path)
    assert look(system, "dram", 190 * GIB)["memory-available"].command == "sysctl -w vm.nr_hugepages=0"
    assert look(system, "dram", 300 * GIB)["memory-available"].command is None


def test_a_cpuset_bars_nodes(tmp_path: Path) -> None:
    system = lay("server", tmp_path)
    write(tmp_path, "/proc/self/status", "Mems_allowed_list:\t0\n")
    assert look(system, "cxl", GB)["numa-nodes"].severity is FAILS
    assert look(system, "dram", 59 * GIB)["numa-nodes"].severity is FINE
    assert look(system, "dram", 60 * GIB)["numa-nodes"].severity is FAILS


def test_a_container_that_sees_its_group_by_its_outer_name(tmp_path: Path) -> None:
    """Without a namespace of its own: the mount begins at the group, and its name is the host's."""
    system = lay("server", tmp_path)
    outer, group = "/docker/abc", "/sys/fs/cgroup/memory"
    write(tmp_path, "/proc/self/cgroup", f"9:memory:{outer}\n")
    mounts = (tmp_path / "proc/self/mountinfo").read_text().replace(f"/ {group}", f"{outer} {group}")
    write(tmp_path, "/proc/self/mountinfo", mounts)
    write(tmp_path, f"{group}/memory.limit_in_bytes", f"{4 * GIB}\n")
    (limit,) = System(tmp_path).cgroup_memory
    assert (limit.path, limit.room_bytes) == (f"{group}/memory.limit_in_bytes", 4 * GIB)
    assert look(system, "dram", 4 * GIB)["memory-cgroup"].severity is FAILS


def test_a_soft_limit_slows_down_and_a_hard_one_ends(tmp_path: Path) -> None:
    system = lay("container", tmp_path)
    write(tmp_path, "/sys/fs/cgroup/memory.high", f"{10 * GIB}\n")
    for n_bytes, severity in ((8 * GIB, FINE), (9 * GIB, SLOW), (31 * GIB, FAILS)):
        assert look(system, "dram", n_bytes)["memory-cgroup"].severity is severity


@given(limits=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**38)), min_size=1,
                       max_size=5))  # fmt: skip
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_narrowest_of_nested_groups(
    limits: list[tuple[int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("groups")
    base, names = "/sys/fs/cgroup", [f"g{k}" for k in range(len(limits))]
    write(root, "/proc/self/mountinfo", f"1 0 0:28 / {base} rw - cgroup2 cgroup rw\n")
    write(root, "/proc/self/cgroup", f"0::/{'/'.join(names)}\n")
    for depth, (limit, used, files) in enumerate(limits, start=1):
        group = "/".join([base, *names[:depth]])
        write(root, f"{group}/memory.max", f"{limit}\n")
        write(root, f"{group}/memory.current", f"{used}\n")
        write(root, f"{group}/memory.stat", f"inactive_file {files}\nactive_file 0\n")
    found = System(root).cgroup_memory
    assert len(found) == len(limits)
    expected = min(max(limit - max(used - files, 0), 0) for limit, used, files in limits)
    assert min(group.room_bytes for group in found) == expected


@given(st.sets(st.integers(0, 300)))
@settings(deadline=None)
def test_lists_of_numbers(chosen: set[int]) -> None:
    stretches, words = sorted(chosen), []
    while stretches:
        first = last = stretches.pop(0)
        while stretches and stretches[0] == last + 1:
            last = stretches.pop(0)
        words.append(str(first) if first == last else f"{first}-{last}")
    assert numbers(",".join(words) + "\n") == sorted(chosen)


def test_larger_tables_are_never_better_off(machine: System) -> None:
    for placement in Placement:
        sizes = [0, 10**6, GB, 20 * GIB, 30 * GIB, 65 * GIB, 150 * GIB, 203 * GB, 500 * GIB, 10**15]
        severities = [
            {check: found.severity for check, found in look(machine, placement, n, n_files=1 + n // (4 * GIB)).items()}
            for n in sizes
        ]
        for smaller, larger in pairwise(severities):
            for check, severity in smaller.items():
                if severity in _GRAVITY:
                    assert _GRAVITY.index(larger[check]) >= _GRAVITY.index(severity), (placement, check)


def test_every_answer_can_be_acted_on(machine: System) -> None:
    for placement in Placement:
        for n_bytes in (None, GB, 10**15):
            found = look(machine, placement, n_bytes)
            assert len(found) == len(CHECKS)
            for finding in found.values():
                assert finding.found
                if finding.severity in (FAILS, SLOW):
                    assert finding.limit, finding
                    assert finding.remedy, finding
                if finding.severity is FINE:
                    assert finding.remedy is finding.command is None, finding
            assert worst(found.values()) is max(
                (f.severity for f in found.values() if f.severity in _GRAVITY), key=_GRAVITY.index
            )


def test_without_a_size_nothing_that_depends_on_it_fails(machine: System) -> None:
    assert worst(look(machine, "dram", None, build_into=None).values()) is not FAILS


def test_nothing_to_read_is_no_answer_and_no_error(tmp_path: Path) -> None:
    for placement in Placement:
        for finding in look(System(tmp_path), placement, GB).values():
            if finding.check in ("shared-memory", "numa-nodes") and finding.severity is FAILS:
                assert placement in (Placement.SHM, Placement.CXL)
            else:
                assert finding.severity in (UNSEEN, NO_MATTER, FINE), finding


@pytest.mark.parametrize("tree", MACHINES)
def test_files_that_are_cut_or_strange_are_no_error(tree: str, tmp_path: Path) -> None:
    lay(tree, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    seen = set()
    for path in files:
        if "/cpu/cpu" in str(path) and path.name in seen:
            continue
        seen.add(path.name)
        text = path.read_text()
        for other in (
            "",
            "strange\n",
            text[: len(text) // 2],
            "é: " + text,
            text.replace(" ", "\n"),
        ):
            path.write_text(other, encoding="utf-8")
            for placement in Placement if other == "strange\n" else (Placement.NVME,):
                look(System(tmp_path), placement, GB, n_files=3)
        path.write_text(text)


@pytest.mark.parametrize(
    ("filesystem", "options", "severity"),
    [("tmpfs", "rw,huge=always", FINE), ("tmpfs", "rw", SLOW), ("ramfs", "rw", SLOW), ("hugetlbfs", "rw", FINE)],
)
def test_pages_are_those_of_the_mount_that_has_the_table(
    filesystem: str, options: str, severity: Severity, tmp_path: Path
) -> None:
    """A table in memory need not lie in /dev/shm, whose pages say nothing of it then."""
    system = lay("vm", tmp_path)
    mounts = system.text("/proc/self/mountinfo")
    line = f"999 1 0:99 / /memory rw - {filesystem} none {options}"
    write(tmp_path, "/proc/self/mountinfo", f"{mounts}{line}\n")
    found = look(system, "shm", GB, path=Path("/memory/table"))["memory-huge-pages"]
    assert found.severity is severity
    assert "/memory" in found.found


def test_every_filesystem_of_the_files_is_looked_at(tmp_path: Path) -> None:
    system = lay("server", tmp_path)
    files = (Path("/home/models/1"), Path("/data/models/2"), Path("/net share/3"))
    found = look(system, "nvme", GB, path=Path("/home/models"), files=files)
    assert found["filesystem"].severity is SLOW
    for words in ("/home/models/1: ext4 of", "/data/models/2: xfs of", "/net share/3: nfs4 of"):
        assert words in found["filesystem"].found
    alone = look(system, "nvme", GB, path=Path("/data/models"))["scheduler"]
    assert found["scheduler"].severity is alone.severity is SLOW
    assert found["scheduler"].command == alone.command
    # One that cannot be looked at does not hide another that is slow, and is told beside one that is fine.
    assert "/net share/3: nfs4 on /net share shows no block device" in found["scheduler"].found
    assert look(system, "nvme", GB, files=files[::2])["queue-depth"].severity is UNSEEN


def test_files_are_in_memory_where_all_are(tmp_path: Path) -> None:
    system = lay("server", tmp_path)
    memory, disk = Path("/dev/shm/1"), Path("/data/2")
    for files, is_in_memory in (((memory,), True), ((memory, disk), False), ((disk, memory), False)):
        subject = Subject(path=Path("/table"), files=files, file_bytes=GB, device_bytes=GB)
        assert subject.is_in_memory(system) is is_in_memory
        assert subject.host_bytes(system, Placement.DRAM) == PROCESS_BYTES + (0 if is_in_memory else GB)


@pytest.mark.parametrize("has_driver", [False, True])
def test_the_remedy_is_for_what_is_missing(has_driver: bool, tmp_path: Path) -> None:
    system = lay("vm", tmp_path)
    if has_driver:
        write(tmp_path, "/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86\n")
    tries = Tries(None, system)
    case = Case(system=system, subject=Subject(), placement=Placement.GPU, tries=tries)
    remedy, command = without_gpu(case)
    assert ("load the NVIDIA driver" in remedy) is not has_driver
    assert command.startswith("pip install") is (has_driver and not tries.has_cupy)
    assert tries.has_cupy is (find_spec("cupy") is not None)
