"""Processes of a benchmark: one method in a process of its own, its memory watched from outside.

Owns starting, watching and ending them. Knows no method. A process that dies or takes too long is a result, not an
error: the reason is returned.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

POLL_S = 0.02
KEPT_CHARACTERS = 600


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A process that has ended. Memory is null where the system does not tell it."""

    wall_ns: int
    user_ns: int
    system_ns: int
    peak_rss_bytes: int | None
    """The largest resident set of the process or of one that it started, pages of mapped files included."""
    peak_anonymous_bytes: int | None
    """The largest sum of anonymous resident memory over the process and those it started, sampled."""
    stdout: str
    failure: str | None


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    stdin: Path | None = None,
    stdout: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Finished:
    """Run `command` to its end, its output kept or written to `stdout`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile() as kept, tempfile.TemporaryFile() as told:
        source: Any = stdin.open("rb") if stdin else subprocess.DEVNULL
        target: Any = stdout.open("wb") if stdout else kept
        started = time.perf_counter_ns()
        try:
            process = subprocess.Popen(
                command, stdin=source, stdout=target, stderr=told, env=os.environ | (environment or {})
            )
            late, peak, anonymous = _watch(process, started + int(timeout_s * 1e9))
            wall_ns = time.perf_counter_ns() - started
        finally:
            for file in (source, target):
                if file is not kept and not isinstance(file, int):
                    file.close()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        failure = None
        if late:
            failure = f"stopped after {timeout_s:,.0f} s"
        elif process.returncode:
            failure = f"exit code {process.returncode}: {_end(told)}"
        return Finished(
            wall_ns=wall_ns,
            user_ns=int((after.ru_utime - before.ru_utime) * 1e9),
            system_ns=int((after.ru_stime - before.ru_stime) * 1e9),
            peak_rss_bytes=peak,
            peak_anonymous_bytes=anonymous,
            stdout="" if stdout else _text(kept),
            failure=failure,
        )


def _watch(process: subprocess.Popen[bytes], deadline_ns: int) -> tuple[bool, int | None, int | None]:
    peak = anonymous = 0
    try:
        while True:
            family = [_status(pid) for pid in _family(process.pid)]
            peak = max([peak, *(status.get("VmHWM", 0) for status in family)])
            anonymous = max(anonymous, sum(status.get("RssAnon", 0) for status in family))
            try:
                process.wait(POLL_S)
                return False, peak or None, anonymous or None
            except subprocess.TimeoutExpired:
                if time.perf_counter_ns() > deadline_ns:
                    return True, peak or None, anonymous or None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:  # ended meanwhile
                continue
    return found


def _status(pid: int | str) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    named = (line.split(":", 1) for line in lines if line.startswith(("VmHWM", "RssAnon")))
    return {name: int(value.split()[0]) * 1024 for name, value in named}


def own_peak_bytes() -> int | None:
    """The largest resident set that this process has had so far."""
    return _status("self").get("VmHWM")


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _end(file: IO[bytes]) -> str:
    return _text(file).strip()[-KEPT_CHARACTERS:]


def prefer_for_killing() -> None:
    """Where memory runs out, the system ends this process and not the run that started it."""
    path = Path("/proc/self/oom_score_adj")
    if path.exists():
        path.write_text("1000")


Sample = dict[str, Any]


def timed(function: Callable[[], object]) -> Sample:
    """Wall, user and system time of one call in this process, and the pages it touched first."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter_ns()
    function()
    wall_ns = time.perf_counter_ns() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall_ns": wall_ns,
        "user_ns": int((after.ru_utime - before.ru_utime) * 1e9),
        "system_ns": int((after.ru_stime - before.ru_stime) * 1e9),
        "page_faults": after.ru_minflt - before.ru_minflt,
    }


def say(message: str) -> None:
    """Progress, for the one who waits."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
