"""What every harness shares: a corpus on disk, a bound on memory, and the loop. Arguments are libFuzzer's."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import atheris

from engram_tables.byte_files import Folder
from engram_tables.errors import InvalidInput

_MOST_MEMORY_BYTES = 2 << 30
_ROOT = Path(__file__).resolve().parent.parent


class BytesFile:
    """A file that is bytes in memory; see `ByteFile`. A range outside is an error of ours, as in every other file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.name, self.where, self.file_bytes = data, "fuzzed", "fuzzed", len(data)

    def folder(self) -> Folder:
        """None that has files: nobody asks."""
        raise AssertionError("a parser looked beside its file")

    def identity(self) -> Mapping[str, str | int]:
        """Its length."""
        return {"file_bytes": self.file_bytes}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ByteFile`."""
        buffer[:] = self.read(offset, len(buffer))

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See `ByteFile`."""
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.file_bytes:
            raise InvalidInput(f"{self.where}: asked for {n_bytes} bytes at {offset} of {self.file_bytes}")
        return self.data[offset : offset + n_bytes]

    def close(self) -> None:
        """Nothing is held."""


def fuzz(one_input: Callable[[bytes], None], seeds: Mapping[str, bytes], words: Iterable[str] = ()) -> None:
    """Run libFuzzer on `one_input` from `seeds`, and what it found before.

    `words` are put in whole, since single bytes hardly ever become one.
    An exception that `one_input` lets through is a finding; so is an allocation past 2 GiB.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    # Kept between runs: the next one begins with what this one found. libFuzzer ends the process by itself.
    kept = _ROOT / ".fuzz" / Path(sys.argv[0]).stem
    (kept / "corpus").mkdir(parents=True, exist_ok=True)
    for name, data in seeds.items():
        (kept / "corpus" / name).write_bytes(data)
    (kept / "words").write_text("".join(f"{json.dumps(word)}\n" for word in (*words, "0")), encoding="ascii")
    arguments = [f"-dict={kept / 'words'}", f"-artifact_prefix={kept}/", str(kept / "corpus")]
    atheris.Setup([*sys.argv, *arguments], one_input)
    atheris.Fuzz()
