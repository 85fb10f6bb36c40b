"""The `engram` script: prepares the process, then loads the application, so that Ctrl-C is answered from the start."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_INTERRUPTED = 130
_was_interrupted = False


def main() -> None:
    """Entry point."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        _repair_streams()
        _provide_kernel_cache()
        from engram_cli.app import app

        app()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception:
        # A package that is being imported when the signal comes may make another exception of it.
        if not _was_interrupted:
            raise
        sys.exit(_INTERRUPTED)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    """Any of the signals cleans up as Ctrl-C does; further ones wait until that is done."""
    global _was_interrupted
    _was_interrupted = True
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _repair_streams() -> None:
    """Closed streams swallow what is written; narrow encodings get escapes instead of an error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (it lives as long as we)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _provide_kernel_cache() -> None:
    """Compiled kernels are kept beside the package or in the user's cache; where neither can be written, in a
    directory that ends with the process."""
    package = Path(__file__).resolve().parent.parent
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    if "NUMBA_CACHE_DIR" in os.environ or os.access(package, os.W_OK) or _can_write(cache):
        return
    directory = tempfile.mkdtemp(prefix="engram-kernels-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = directory


def _can_write(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
