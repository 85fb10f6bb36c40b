"""A filter that refuses system calls to this process and its children, as containers do."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
# From the kernel's tables; io_uring has one number everywhere.
NUMBERS = {
    "io_uring_setup": {"x86_64": 425, "aarch64": 425},
    "io_setup": {"x86_64": 206, "aarch64": 0},
    "mincore": {"x86_64": 27, "aarch64": 232},
    "cachestat": {"x86_64": 451, "aarch64": 451},
    "mbind": {"x86_64": 237, "aarch64": 235},
}


def refuse(*names: str, code: int) -> None:
    """From now on each of these calls fails with `code`. It cannot be taken back."""
    numbers = [NUMBERS[name][platform.machine()] for name in names]
    steps = [(_LOAD_NUMBER, 0, 0, 0)]
    for nth, number in enumerate(numbers):
        steps.append((_JUMP_IF_EQUAL, len(numbers) - nth, 0, number))
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | code)]
    program = b"".join(struct.pack("<HBBI", *step) for step in steps)
    filter_bytes = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(filter_bytes))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0)):
        words = [word if isinstance(word, bytes) else ctypes.c_ulong(word) for word in arguments]
        if libc.prctl(*words) != 0:
            failed = ctypes.get_errno()
            raise OSError(failed, os.strerror(failed), "prctl")
