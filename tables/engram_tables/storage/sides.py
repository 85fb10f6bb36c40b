"""A table or a checkpoint's table, beside us or behind a URL, opened to be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.byte_files import LocalFolder, is_url
from engram_tables.storage.extents import Ranges
from engram_tables.storage.sources.opening import RawGeometry, open_source
from engram_tables.storage.sources.source import Source
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.reader import StoredTable
from engram_tables.storage.table.table_source import find_table, open_remote_table, table_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a checkpoint does not say itself; a table needs `revision` alone.

    Attributes
    ----------
    spec
        By default what the checkpoint's own config, arrays and metadata say.
    vocabulary
        For a config that leaves open how many canonical ids there are.
    raw
        Where rows lie in a file without a container.
    opaque
        Whether rows may be opened as bytes where no codec reads them.
    revision
        Of a repository behind a URL.
    is_checked
        Whether rows of a table of this machine are held against its digests as they are read; those of others have
        none, and a table behind a URL would be fetched twice.
    """

    spec: AddressSpec | None = None
    vocabulary: Vocabulary | None = None
    raw: RawGeometry | None = None
    opaque: bool = False
    revision: str | None = None
    is_checked: bool = False


AS_IT_IS = Opening()


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What is compared.

    Attributes
    ----------
    manifest
        A table's; None for a checkpoint.
    is_remote
        Whether reading rows costs a network.
    states_spec
        Whether the addressing is its own, rather than one that it was read by.
    """

    source: Source
    manifest: Manifest | None
    is_remote: bool
    close: Callable[[], None]
    states_spec: bool = True

    @property
    def where(self) -> str:
        """The path or URL, for messages."""
        return self.source.where

    @property
    def spec(self) -> AddressSpec:
        """Addressing."""
        return self.source.spec

    def owned(self, layer_id: int) -> Ranges:
        """The rows of a layer that are here; none of a layer that it does not have."""
        return self.source.owned(layer_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_side(where: str | Path, opening: Opening = AS_IT_IS) -> Side:
    """The table or checkpoint at a path or URL.

    Raises
    ------
    TableError
        It is a table that does not open.
    InvalidInput
        It is neither a table nor a checkpoint that is known.
    """
    folder = find_table(where, revision=opening.revision)
    if folder is None:
        source = open_source(
            where,
            spec=opening.spec,
            vocabulary=opening.vocabulary,
            raw=opening.raw,
            opaque=opening.opaque,
            revision=opening.revision,
        )
        return side_of(source)
    if isinstance(folder, LocalFolder):
        table = StoredTable(folder.path)
        return Side(
            source=table_source(table, is_checked=opening.is_checked),
            manifest=table.manifest,
            is_remote=False,
            close=table.close,
        )
    manifest, source = open_remote_table(folder)
    if opening.is_checked:
        note = "rows of a table behind a URL are not held against its digests: copy it here and verify it to be sure"
        source = replace(source, notes=(*source.notes, note))
    return Side(source=source, manifest=manifest, is_remote=True, close=source.close)


def side_of(source: Source) -> Side:
    """An open source as a side; closing the side closes it."""
    return Side(source=source, manifest=None, is_remote=is_url(source.where), close=source.close)
