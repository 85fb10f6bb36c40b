"""What `--force` may remove for an export: an earlier one, and never a model that holds more than its tables."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from engram_tables.byte_files import LocalFile
from engram_tables.errors import InvalidInput
from engram_tables.gguf_file import read_gguf
from engram_tables.safetensors_file import INDEX_NAME, read_safetensors_header
from engram_tables.storage.sources.gguf import is_gguf_table
from engram_tables.storage.sources.safetensors_tables import is_table_or_constant

_OURS = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors|engram_adapters\.safetensors|layer-\d{2,}\.rows")


def check_directory(output: Path, names: Collection[str]) -> None:
    """Raise InvalidInput unless the directory `output` holds an export alone.

    Parameters
    ----------
    names
        Of the files that this export writes; those of every other form are known.
    """
    for entry in sorted(output.iterdir()):
        is_named = entry.name == INDEX_NAME or entry.name in names or _OURS.fullmatch(entry.name) is not None
        if not is_named or entry.is_symlink() or not entry.is_file():
            raise InvalidInput(
                f"{entry}: found in the directory that --force would remove, expected an export alone; remove it "
                "yourself or choose another name"
            )
        check_file(entry)


def check_file(path: Path) -> None:
    """Raise InvalidInput where a checkpoint's file has tensors that no export writes: they would be lost."""
    kept = _other_tensors(path)
    if kept:
        raise InvalidInput(
            f"{path}: found {len(kept):,} tensors that are no tables, {kept[0]} among them, and --force would remove "
            "them, expected an export alone; remove it yourself or choose another name"
        )


def _other_tensors(path: Path) -> list[str]:
    """Names; none for a file that is no checkpoint's, or is damaged."""
    if path.suffix not in (".safetensors", ".gguf"):
        return []
    file = LocalFile(path)
    try:
        if path.suffix == ".gguf":
            return [name for name in read_gguf(file, lambda _: False).tensors if not is_gguf_table(name)]
        return [name for name in read_safetensors_header(file).tensors if not is_table_or_constant(name)]
    except InvalidInput:
        return []
    finally:
        file.close()
