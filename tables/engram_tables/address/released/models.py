"""A spec from whatever somebody holds of a model."""

from __future__ import annotations

from pathlib import Path

from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import InvalidInput


def spec_from_model(path: Path, *, vocabulary: Vocabulary | None = None, eos: int | None = None) -> AddressSpec:
    """The spec of a model, held against everything that `path` says of it.

    Parameters
    ----------
    path
        A config.json; a checkpoint's directory or one of its .safetensors (the config beside it is read too); a .gguf.
        Of the large files only headers and the small integer arrays are read. A directory without .safetensors is its
        config.json.
    eos
        The end of sequence, where a config holds a list or none.

    Raises
    ------
    InvalidInput
        Something is missing, unreadable, or would have to be guessed.
    SpecMismatch
        What the file's arrays say and what its config derives differ.
    """
    if not path.exists():
        raise InvalidInput(f"{path}: nothing there, expected a config.json, a directory, a .safetensors or a .gguf")
    if path.is_dir() and not any(path.glob("*.safetensors")) and (path / "config.json").is_file():
        path = path / "config.json"
    if path.is_dir() or path.suffix == ".safetensors":
        from engram_tables.address.released.checkpoints import spec_from_checkpoint

        return spec_from_checkpoint(path, vocabulary=vocabulary, eos=eos)
    if path.suffix == ".gguf":
        from engram_tables.address.released.checkpoints import spec_from_gguf

        return spec_from_gguf(path, vocabulary=vocabulary, eos=eos)
    if path.suffix != ".json":
        raise InvalidInput(f"{path}: expected a config.json, a directory, a .safetensors or a .gguf")
    from engram_tables.address.released.configs import spec_from_config

    return spec_from_config(path, vocabulary=vocabulary, eos=eos)
