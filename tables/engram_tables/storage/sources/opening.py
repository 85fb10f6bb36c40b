"""One door to every form of a released table: what lies at a path or URL, read where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.byte_files import ByteFile, Folder, LocalFile, is_url, open_place
from engram_tables.errors import InvalidInput
from engram_tables.safetensors_file import checkpoint_headers, checkpoint_names
from engram_tables.storage.extents import Part
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.storage.sources.addressing import (
    agreed_spec,
    findings_of_gguf,
    has_config,
    spec_of_config,
    spec_of_gguf,
    spec_of_tensors,
)
from engram_tables.storage.sources.gguf import gguf_files, gguf_source
from engram_tables.storage.sources.links import check_links
from engram_tables.storage.sources.mlx_vlm import STORE_NAME, mlx_vlm_source
from engram_tables.storage.sources.raw import RawGeometry, raw_source
from engram_tables.storage.sources.safetensors_tables import safetensors_source
from engram_tables.storage.sources.source import Source
from engram_tables.storage.table.ranks import refuse_ranks

__all__ = ["RawGeometry", "SourceRows", "open_rows", "open_source"]


def open_source(
    where: str | Path | ByteFile | Folder,
    *,
    spec: AddressSpec | None = None,
    config: Path | None = None,
    vocabulary: Vocabulary | None = None,
    eos: int | None = None,
    layers: Sequence[int] | None = None,
    revision: str | None = None,
    raw: RawGeometry | None = None,
    opaque: bool = False,
) -> Source:
    """The released table at `where`, understood and held against its addressing; no row is read.

    Parameters
    ----------
    where
        A checkpoint's directory or one of its .safetensors, a .gguf, a directory with a `ple-store.json`, a file of
        raw rows; as a path, a URL or opened already. A directory must hold every row; a file that is named may hold a
        part of them.
    spec
        The addressing; by default what the source's own config, arrays and metadata say, which a given one must not
        contradict.
    config, vocabulary, eos
        As for `spec_from_checkpoint`.
    layers
        Those to take; all by default.
    revision
        Of a URL's repository; see `open_place`.
    raw
        The geometry of a file without a container; needs `spec`.
    opaque
        Take rows that no codec reads as bytes.

    Raises
    ------
    InvalidInput
        Nothing that is known, a damaged file, rows that are missing or there twice, a row format that no codec reads,
        a symbolic link out of the directory.
    SpecMismatch
        Shapes or constants differ from the spec.
    """
    place = open_place(where, revision=revision) if isinstance(where, str | Path) else where
    with ExitStack() as stack:
        opened: list[ByteFile] = []
        stack.callback(lambda: _close_all(opened, {id(where)}))
        if not isinstance(place, Folder):
            opened.append(place)
        if isinstance(place, Folder) and place.local_path is not None:
            refuse_ranks(place.local_path)
            check_links(place.local_path)
        notes: tuple[str, ...] = ()
        if raw is not None:
            source = _raw(place, raw, spec, layers)
        elif _is_gguf(place):
            files = gguf_files(place)
            opened += files
            spec, notes = agreed_spec(
                place.where,
                spec,
                lambda: spec_of_gguf(files[0], vocabulary, eos),
                findings=lambda: findings_of_gguf(files[0], vocabulary),
            )
            source = gguf_source(place.where, files, spec=spec, layers=layers, opaque=opaque)
        elif isinstance(place, Folder) and _has_store(place):
            folder = place
            spec, notes = agreed_spec(
                place.where,
                spec,
                lambda: spec_of_config(folder, config, vocabulary, eos),
                is_stated=has_config(place, config),
            )
            source = mlx_vlm_source(place, spec=spec, layers=layers, opaque=opaque, opened=opened)
        else:
            headers = checkpoint_headers(place)
            opened += [header.file for header in headers]
            spec, notes = agreed_spec(
                place.where,
                spec,
                lambda: spec_of_tensors(place, headers, config, vocabulary, eos),
                is_stated=has_config(place, config),
            )
            source = safetensors_source(place, headers, spec=spec, layers=layers, opaque=opaque)
        stack.pop_all()
    _close_all(opened, {id(where), *map(id, source.files)})
    return replace(source, notes=(*source.notes, *notes)) if notes else source


class SourceRows(RowFiles):
    """A checkpoint of this machine as files with rows in them; closing it closes the source.

    Attributes
    ----------
    source
        What it was made of.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        files = []
        for file in source.files:
            if not isinstance(file, LocalFile):
                raise InvalidInput(
                    f"{file.where}: found a file behind a URL, expected one of this machine; build a table from it"
                )
            files.append(RowFile(path=file.path, file_bytes=file.file_bytes, fd=file.fd))
        self.source = source
        self.path = Path(source.where)
        self.spec, self.codec, self.row_bytes = source.spec, source.codec, source.row_bytes
        self.parts: tuple[Part, ...] = source.parts
        self.files, self.extents = tuple(files), source.extents

    def _close_files(self) -> None:
        self.source.close()


def open_rows(path: str | Path, *, opaque: bool = False) -> SourceRows:
    """The rows of a checkpoint of this machine, read where they lie; raises as `open_source`."""
    if is_url(str(path)):
        raise InvalidInput(f"{path}: found a URL, expected a checkpoint of this machine; build a table from it")
    source = open_source(path, opaque=opaque)
    try:
        return SourceRows(source)
    except BaseException:
        source.close()
        raise


def _close_all(files: Sequence[ByteFile], kept: set[int]) -> None:
    """Close all but those whose identities are in `kept`: what the caller opened stays the caller's."""
    for file in files:
        if id(file) not in kept:
            file.close()


def _has_store(folder: Folder) -> bool:
    store = folder.find(STORE_NAME)
    if store is not None:
        store.close()
    return store is not None


def _is_gguf(place: ByteFile | Folder) -> bool:
    if not isinstance(place, Folder):
        return place.name.endswith(".gguf")
    return not checkpoint_names(place) and any(name.endswith(".gguf") for name in place.names())


def _raw(place: ByteFile | Folder, raw: RawGeometry, spec: AddressSpec | None, layers: Sequence[int] | None) -> Source:
    if isinstance(place, Folder):
        raise InvalidInput(f"{place.where}: found a directory, expected a file of rows; name the file")
    if spec is None:
        raise InvalidInput(
            f"{place.where}: found rows without a container, expected the spec that addresses them; give it"
        )
    if layers is not None:
        raise InvalidInput(
            f"{place.where}: found layers {list(layers)}, expected the one of the geometry; leave them out"
        )
    return raw_source(place, raw, spec)
