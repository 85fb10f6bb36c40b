"""A filesystem whose reads fail where a test wants them to: the FUSE protocol spoken to the kernel, without a library.

It shows the files of one directory, read-only. Run by `fault_scenarios.py` in a process and a mount namespace of its
own. The messages are those of the kernel's <linux/fuse.h>, protocol 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT, OPENDIR, RELEASEDIR, BATCH_FORGET = (
    1, 2, 3, 14, 15, 17, 18, 25, 26, 27, 29, 42,
)  # fmt: skip
_HEADER = struct.Struct("<IIQQIIII")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
_BUFFER_BYTES = (1 << 20) + 4096
_ROOT = 1
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 1 << 14, 1 << 18
CLONE_NEWNS = 0x20000
FOPEN_DIRECT_IO, PR_SET_PDEATHSIG = 1, 1

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to reads that touch bytes `start` to `stop` of any file: an errno, or at most `short_bytes`.

    Short answers need files that the kernel does not cache: of others it takes one for the file's end.
    """

    start: int
    stop: int
    code: int = 0
    short_bytes: int | None = None


def own_mounts() -> None:
    """Leave the system's mounts: what is mounted from now on is seen by this process and its children alone."""
    _call(_libc.unshare(CLONE_NEWNS))
    mount("none", Path("/"), None, MS_REC | MS_PRIVATE)


def mount(source: str, target: Path, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    """mount(2)."""
    words = [None if word is None else word.encode() for word in (source, str(target), kind, options)]
    _call(_libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]))


def serve(directory: Path, mountpoint: Path, fault: Fault) -> int:
    """Mount and answer from a child process, whose id is returned; end it with a signal."""
    device = os.open("/dev/fuse", os.O_RDWR)
    mount("faulty", mountpoint, "fuse", MS_NOSUID | MS_NODEV, f"fd={device},rootmode=40000,user_id=0,group_id=0")
    pid = os.fork()
    if pid == 0:
        _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        try:
            _answer(device, directory, fault)
        finally:
            os._exit(1)
    os.close(device)
    return pid


def _answer(device: int, directory: Path, fault: Fault) -> None:
    files = dict(enumerate(sorted(path for path in directory.iterdir() if path.is_file()), start=_ROOT + 1))
    names = {path.name: node for node, path in files.items()}
    fds = {node: os.open(path, os.O_RDONLY) for node, path in files.items()}
    while True:
        request = os.read(device, _BUFFER_BYTES)
        _, opcode, unique, node, *_ = _HEADER.unpack_from(request)
        body = request[_HEADER.size :]
        code, answer = 0, b""
        if opcode == INIT:
            # No capability beyond reading: 128 KiB at a time, written by nobody.
            answer = struct.pack("<IIIIHHIIHHI7I", 7, 31, 1 << 17, 0, 12, 9, 4096, 1, 32, 0, 0, *[0] * 7)
        elif opcode == LOOKUP:
            found = names.get(body.rstrip(b"\0").decode())
            if found is None:
                code = errno.ENOENT
            else:
                answer = struct.pack("<QQQQII", found, 0, 3600, 3600, 0, 0) + _attributes(found, fds)
        elif opcode == GETATTR:
            answer = struct.pack("<QII", 3600, 0, 0) + _attributes(node, fds)
        elif opcode in (OPEN, OPENDIR):
            answer = struct.pack("<QII", 0, 0 if fault.short_bytes is None else FOPEN_DIRECT_IO, 0)
        elif opcode == READ:
            _, offset, n_bytes = struct.unpack_from("<QQI", body)
            if offset < fault.stop and offset + n_bytes > fault.start:
                code = fault.code
                n_bytes = n_bytes if fault.short_bytes is None else min(n_bytes, fault.short_bytes)
            answer = b"" if code else os.pread(fds[node], n_bytes, offset)
        elif opcode == STATFS:
            answer = struct.pack("<QQQQQIIII6I", 0, 0, 0, 0, 0, 4096, 255, 4096, 0, *[0] * 6)
        elif opcode in (FORGET, BATCH_FORGET):
            continue
        elif opcode not in (RELEASE, RELEASEDIR, FLUSH):
            code = errno.ENOSYS
        os.write(device, struct.pack("<IiQ", 16 + len(answer), -code, unique) + answer)


def _attributes(node: int, fds: dict[int, int]) -> bytes:
    n_bytes = 0 if node == _ROOT else os.fstat(fds[node]).st_size
    mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o444
    blocks = -(-n_bytes // 512)
    return _ATTRIBUTES.pack(node, n_bytes, blocks, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _call(status: int) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
