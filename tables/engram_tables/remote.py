"""Files behind a URL, through fsspec, imported here alone. Knows no corpus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, cast

from engram_tables.errors import BackendUnavailable, EngramError, InvalidInput


class RemoteFilesystem(Protocol):
    """What is used of an fsspec filesystem."""

    def info(self, path: str) -> dict[str, Any]:
        """Size and type of one path."""

    def find(self, path: str, *, detail: bool) -> dict[str, dict[str, Any]]:
        """All files below a path."""

    def open(self, path: str, mode: str) -> BinaryIO:
        """A file to read."""

    def unstrip_protocol(self, name: str) -> str:
        """A path as a URL."""


def remote_filesystem(url: str) -> tuple[RemoteFilesystem, str]:
    """The filesystem that opens `url`, and the path in it.

    Raises
    ------
    InvalidInput
        No filesystem is known by this protocol.
    BackendUnavailable
        The package that the protocol needs is missing; the message names it.
    """
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        raise BackendUnavailable(
            f"{url}: the package for {protocol}:// is not installed ({error}); install it, or copy the files here"
        ) from None
    except ValueError as error:
        raise InvalidInput(
            f"{url}: found the protocol {protocol!r} ({error}), expected one that fsspec knows, as s3:// or https://"
        ) from None
    except Exception as error:
        raise _unusable(url, error) from error
    return cast(RemoteFilesystem, filesystem), path


@contextmanager
def remote_noted(url: str, what: str) -> Iterator[None]:
    """Failures of a filesystem as errors of ours: each package has its own classes, which nobody can name here.

    `OSError` passes with a note.
    """
    try:
        yield
    except OSError as error:
        error.add_note(what)
        raise
    except (EngramError, MemoryError):
        raise
    except Exception as error:
        raise _unusable(url, error) from error


def _unusable(url: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{url}: found that it cannot be read ({type(error).__name__}: {error}); check the address and your access"
    )
