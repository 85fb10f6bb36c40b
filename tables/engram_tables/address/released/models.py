"""A spec from whatever somebody holds of a model."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.byte_files import ByteFile, Folder, is_url, open_place
from engram_tables.errors import InvalidInput
from engram_tables.safetensors_file import checkpoint_names

_EXPECTED = "a config.json, a directory, a .safetensors or a .gguf"
_CONFIG_NAME = "config.json"
_SUFFIXES = (".json", ".safetensors", ".gguf")


def spec_from_model(
    where: Path | str | ByteFile | Folder,
    *,
    vocabulary: Vocabulary | None = None,
    eos: int | None = None,
    revision: str | None = None,
) -> AddressSpec:
    """The spec of a model, held against everything that is said of it there.

    Parameters
    ----------
    where
        Path or URL, or the opened place, of a config.json; of a checkpoint's directory or one of its .safetensors
        (the config beside it is read too); of a .gguf. Of the large files only headers and the small integer arrays
        are read. A directory without .safetensors is its config.json.
    eos
        The end of sequence, where a config holds a list or none.
    revision
        Of a URL's repository; see `open_place`.

    Raises
    ------
    InvalidInput
        Something is missing, unreadable, or would have to be guessed.
    SpecMismatch
        What the file's arrays say and what its config derives differ.
    """
    if isinstance(where, str | Path):
        path = None if is_url(str(where)) else Path(where)
        if path is not None and not path.exists():
            raise InvalidInput(f"{where}: nothing there, expected {_EXPECTED}")
        if path is not None and not path.is_dir() and path.suffix not in _SUFFIXES:
            raise InvalidInput(f"{where}: expected {_EXPECTED}")
        where = open_place(where, revision=revision)
    return _spec_of_place(where, vocabulary, eos)


def _spec_of_place(place: ByteFile | Folder, vocabulary: Vocabulary | None, eos: int | None) -> AddressSpec:
    from engram_tables.address.released.checkpoints import spec_from_checkpoint, spec_from_gguf
    from engram_tables.address.released.configs import spec_from_config

    if isinstance(place, Folder):
        config = None if checkpoint_names(place) else place.find(_CONFIG_NAME)
        if config is None:
            return spec_from_checkpoint(place, vocabulary=vocabulary, eos=eos)
        return spec_from_config(config, vocabulary=vocabulary, eos=eos)
    match PurePosixPath(place.name).suffix:
        case ".safetensors":
            return spec_from_checkpoint(place, vocabulary=vocabulary, eos=eos)
        case ".gguf":
            return spec_from_gguf(place, vocabulary=vocabulary, eos=eos)
        case ".json":
            return spec_from_config(place, vocabulary=vocabulary, eos=eos)
    raise InvalidInput(f"{place.where}: found another suffix, expected {_EXPECTED}; name one of these")
