"""Every error the library raises on purpose, and nothing else.

Messages follow one grammar: *where: what was found, what was expected; what to do.*
`OSError` passes through with a note. `TypeError` and `AssertionError` are our own mistakes.
"""

from __future__ import annotations


class EngramError(Exception):
    """Base of all errors below; never raised itself."""


class InvalidInput(EngramError, ValueError):
    """An argument, a file or a stream that the caller gave cannot be used as it is."""


class SpecMismatch(EngramError):
    """Two things that must agree about addressing do not: a spec, a vocabulary, a table, counts."""


class CapacityError(EngramError):
    """The request is larger than this machine or a format can hold."""


class BackendUnavailable(EngramError):
    """An optional engine, package or device is missing or refused by the system."""


class TableError(EngramError):
    """A directory does not open as a table."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class NotATable(TableError):
    """There is no manifest, or the file there is not one."""


class IncompleteTable(TableError):
    """A file that the manifest names is missing or shorter than it must be."""


class UnsupportedTable(TableError):
    """The table is whole, but written by rules that this version does not know."""


class CorruptTable(TableError):
    """Bytes differ from what the manifest promises."""
