"""Symbolic links in a checkpoint: followed where they stay in it, refused where they lead elsewhere.

A link may lead to a file below the directory that was named. Where that directory is a snapshot of a Hugging Face
cache, which is made of links, it may also lead below the `blobs` of the same model. Whoever wants another file names
it.
"""

from __future__ import annotations

from pathlib import Path

from engram_tables.errors import InvalidInput

_SUFFIXES = (".safetensors", ".gguf", ".json", ".rows")


def check_links(directory: Path) -> None:
    """Raise InvalidInput for the first link directly in `directory` that leads out; other kinds of files are passed."""
    for entry in sorted(directory.iterdir()):
        if entry.suffix in _SUFFIXES:
            check_link(directory, entry)


def check_link(directory: Path, path: Path) -> None:
    """Raise InvalidInput if `path` is a link that leads out of `directory`."""
    if not path.is_symlink():
        return
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InvalidInput(
            f"{path}: found a link that leads to no file ({error}), expected one; fetch the file again"
        ) from None
    if not any(target.is_relative_to(root) for root in _roots(directory)):
        raise InvalidInput(
            f"{path}: found a link to {target}, expected a file below {directory}; copy the file there, or name it "
            "itself"
        )


def _roots(directory: Path) -> list[Path]:
    """Where links of a directory may lead."""
    root = directory.resolve()
    snapshots = [parent.parent for parent in (root, *root.parents) if parent.parent.name == "snapshots"]
    return [root, *(snapshot.parent / "blobs" for snapshot in snapshots)]
