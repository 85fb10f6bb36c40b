"""Files behind a URL, through fsspec, imported here alone. Knows no corpus and no format."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast
from urllib.parse import quote, unquote, urlsplit

from engram_tables.byte_files import ByteFile, Folder, open_place
from engram_tables.errors import BackendUnavailable, EngramError, InvalidInput

if TYPE_CHECKING:
    from engram_tables.http_client import HttpClient

_HTTP = ("http", "https")
_MOST_IN_FLIGHT = 4
_MOST_ATTEMPTS, _FIRST_WAIT_S = 5, 0.5
# What filesystems call the things that change with a file's bytes.
_VALIDATORS = (
    "ETag",
    "etag",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
    "version_id",
    "generation",
    "checksum",
)


class RemoteFilesystem(Protocol):
    """What is used of an fsspec filesystem."""

    def info(self, path: str) -> dict[str, Any]:
        """Size and type of one path."""

    def find(self, path: str, *, detail: bool) -> dict[str, dict[str, Any]]:
        """All files below a path."""

    def ls(self, path: str, *, detail: bool) -> list[dict[str, Any]]:
        """What lies directly in a directory."""

    def isfile(self, path: str) -> bool:
        """Whether there is a file."""

    def cat_file(self, path: str, *, start: int, end: int) -> bytes:
        """A range of bytes of a file."""

    def invalidate_cache(self, path: str) -> None:
        """Forget what is known of a directory."""

    def open(self, path: str, mode: str) -> BinaryIO:
        """A file to read."""

    def unstrip_protocol(self, name: str) -> str:
        """A path as a URL."""


def remote_filesystem(url: str, **options: Any) -> tuple[RemoteFilesystem, str]:
    """The filesystem that opens `url`, and the path in it; `options` are its own.

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
        filesystem, path = url_to_fs(url, **options)
    except ImportError as error:
        install = "pip install 'engram-tables[http]'" if protocol in (*_HTTP, "hf") else "install it"
        raise BackendUnavailable(
            f"{url}: the package for {protocol}:// is not installed ({error}); {install}, or copy the files here"
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


def open_remote(url: str, *, revision: str | None = None) -> ByteFile | Folder:
    """The file or folder at a URL, of which only the ranges that are read are fetched; see `open_place`.

    Parameters
    ----------
    url
        `https://…` and `http://…`: a folder ends with `/`. `hf://NAMESPACE/NAME[@REVISION][/PATH]`: read at the commit
        that the revision stands for when it is opened. Others as fsspec knows them.
    revision
        A branch, tag or commit, of `hf://` alone.

    Raises
    ------
    InvalidInput
        Nothing is there, no filesystem is known by this protocol, or a revision where there is none.
    BackendUnavailable
        The package that the protocol needs is missing; the message names it.
    ConnectionError
        No answer, within the patience for one.
    """
    protocol = url.partition("://")[0]
    if revision is not None and protocol != "hf":
        raise InvalidInput(f"revision: found {revision!r} for {url}, expected a URL that begins with hf://; drop it")
    if protocol in ("file", "local"):
        return open_place(Path(unquote(urlsplit(url).path)))
    if protocol in _HTTP:
        client = http_client(url)
        from engram_tables.http_files import open_http

        return open_http(client, url)
    filesystem, path = remote_filesystem(url)
    if protocol == "hf":
        found = _open_repository(url, filesystem, path, revision)
        if found is not None:
            return found
    with remote_noted(url, f"{url}: looking it up"):
        info = _info(filesystem, path, url)
    return RemoteFolder(filesystem, path) if info["type"] == "directory" else RemoteFile(filesystem, path)


def http_client(url: str, **of_place: Any) -> HttpClient:
    """A client with the settings that fsspec was given for the protocol."""
    from fsspec.config import conf

    # Proxies of the environment hold, as for other programs.
    settings = {"trust_env": True, **conf.get(urlsplit(url).scheme, {}).get("client_kwargs", {})}
    filesystem: Any = remote_filesystem(url, client_kwargs=settings)[0]
    with remote_noted(url, f"{url}: opening a session"):
        from fsspec.asyn import sync

        from engram_tables.http_client import HttpClient

        session = sync(filesystem.loop, filesystem.set_session)
        return HttpClient(session=session, loop=filesystem.loop, options=filesystem.kwargs, **of_place)


def _open_repository(url: str, filesystem: Any, path: str, revision: str | None) -> ByteFile | Folder | None:
    """A place in a repository, at the commit that its revision stands for now; None for what is in no repository."""
    with _hub_noted(url, f"{url}: looking up its revision"):
        from huggingface_hub import HfApi, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        resolved = filesystem.resolve_path(path, revision=revision)
        if not hasattr(resolved, "repo_id"):
            return None
        api = HfApi(endpoint=filesystem.endpoint, token=filesystem.token)
        repository = {"repo_id": resolved.repo_id, "repo_type": resolved.repo_type}
        commit = api.repo_info(**repository, revision=resolved.revision).sha
        if commit is None:
            raise InvalidInput(f"{url}: found no commit for {resolved.revision!r}, expected one; name another revision")
        inside = resolved.path_in_repo.strip("/")
        entries = api.get_paths_info(**repository, paths=[inside], revision=commit) if inside else []
        if inside and not entries:
            raise InvalidInput(
                f"{url}: found nothing there at commit {commit}, expected a file or a folder; mend the URL"
            )
        is_folder = not inside or not hasattr(entries[0], "size")

    root = hf_hub_url(**repository, filename="-", revision=commit, endpoint=filesystem.endpoint)[:-1]

    def list_names(folder_url: str) -> list[str]:
        below = unquote(urlsplit(folder_url).path.removeprefix(urlsplit(root).path)).strip("/")
        with _hub_noted(url, f"{url}: listing {below or 'its files'}"):
            listed = api.list_repo_tree(**repository, path_in_repo=below or None, revision=commit)
            return sorted(entry.path.rpartition("/")[2] for entry in listed if hasattr(entry, "size"))

    client = http_client(root, headers=build_hf_headers(token=filesystem.token), revision=commit, list_names=list_names)
    from engram_tables.http_files import HttpFile, HttpFolder

    return HttpFolder(client, root + quote(inside)) if is_folder else HttpFile(client, root + quote(inside))


@contextmanager
def _hub_noted(url: str, what: str) -> Iterator[None]:
    """As `remote_noted`, and what the hub does not hold or show is an input that cannot be used."""
    with remote_noted(url, what):
        try:
            yield
        except OSError as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if not isinstance(error, FileNotFoundError) and status not in (401, 403, 404):
                raise
            first_line = next(iter(str(error).split("\n")), "")
            raise InvalidInput(
                f"{url}: found no such repository or revision ({first_line}), expected one that you may read; check "
                "the name and your access"
            ) from None


class RemoteFile:
    """A file that a filesystem of fsspec reads in ranges; see `ByteFile`.

    What changes with its bytes is looked up when it is opened and when its identity is asked for; a read in between
    notices a change by its length alone.
    """

    def __init__(self, filesystem: RemoteFilesystem, path: str) -> None:
        self.filesystem, self.path = filesystem, path
        self.where, self.name = _shown(filesystem, path), path.rstrip("/").rpartition("/")[2]
        self._in_flight = threading.BoundedSemaphore(_MOST_IN_FLIGHT)
        self._is_closed = False
        n_bytes = self.identity()["file_bytes"]
        self.file_bytes = int(n_bytes)

    def folder(self) -> RemoteFolder:
        """See `ByteFile`."""
        return RemoteFolder(self.filesystem, self.path.rpartition("/")[0])

    def identity(self) -> Mapping[str, str | int]:
        """See `ByteFile`."""
        self._check_open()
        with remote_noted(self.where, f"{self.where}: looking it up"):
            found = _info(self.filesystem, self.path, self.where)
        n_bytes = found.get("size")
        if type(n_bytes) is not int or n_bytes < 0:
            raise InvalidInput(f"{self.where}: found no length ({n_bytes!r}), expected one; copy the file here")
        stated = {key: str(found[key]) for key in _VALIDATORS if found.get(key) is not None}
        return {"file_bytes": n_bytes, **stated}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ByteFile`."""
        buffer[:] = self.read(offset, len(buffer))

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See `ByteFile`."""
        self._check_open()
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.file_bytes:
            raise InvalidInput(
                f"{self.where}: asked for bytes {offset} to {offset + n_bytes}, expected a range within its "
                f"{self.file_bytes} bytes; is it a whole file? copy it again"
            )
        if n_bytes == 0:
            return b""
        what = f"{self.where}: reading bytes {offset} to {offset + n_bytes}"
        with remote_noted(self.where, what), self._in_flight:
            data = self._fetch(offset, offset + n_bytes)
        if len(data) != n_bytes:
            raise InvalidInput(
                f"{what}: found {len(data)} bytes, expected {n_bytes}; it was changed while it was being read: "
                "begin again"
            )
        return data

    def _fetch(self, start: int, stop: int) -> bytes:
        """One range, asked for again where the connection fails."""
        for nth in range(_MOST_ATTEMPTS):
            try:
                return self.filesystem.cat_file(self.path, start=start, end=stop)
            except (FileNotFoundError, PermissionError) as error:
                raise InvalidInput(
                    f"{self.where}: found that it is gone ({type(error).__name__}), expected the file that was opened; "
                    "begin again"
                ) from None
            except (OSError, TimeoutError):
                if nth == _MOST_ATTEMPTS - 1:
                    raise
                time.sleep(_FIRST_WAIT_S * 2**nth)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """See `ByteFile`."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise InvalidInput(f"{self.where}: closed already, expected an open file; open it again")


class RemoteFolder:
    """A directory of a filesystem of fsspec; see `Folder`."""

    def __init__(self, filesystem: RemoteFilesystem, path: str) -> None:
        self.filesystem, self.path = filesystem, path.rstrip("/")
        self.where, self.name = _shown(filesystem, path), self.path.rpartition("/")[2]
        self.local_path: Path | None = None

    def names(self) -> list[str]:
        """See `Folder`."""
        with remote_noted(self.where, f"{self.where}: listing it"):
            entries = self.filesystem.ls(self.path, detail=True)
        return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

    def find(self, name: str) -> RemoteFile | None:
        """See `Folder`."""
        path = f"{self.path}/{name}"
        with remote_noted(self.where, f"{self.where}: looking up {name}"):
            return RemoteFile(self.filesystem, path) if self.filesystem.isfile(path) else None

    def open(self, name: str) -> RemoteFile:
        """See `Folder`."""
        file = self.find(name)
        if file is None:
            raise InvalidInput(f"{self.where}/{name}: found no such file, expected one; is the directory whole?")
        return file


def _info(filesystem: RemoteFilesystem, path: str, where: str) -> dict[str, Any]:
    """What a filesystem says of a path now."""
    filesystem.invalidate_cache(path.rpartition("/")[0])
    filesystem.invalidate_cache(path)
    try:
        return filesystem.info(path)
    except FileNotFoundError:
        raise InvalidInput(f"{where}: found nothing there, expected a file or a directory; mend the URL") from None


def _shown(filesystem: RemoteFilesystem, path: str) -> str:
    return filesystem.unstrip_protocol(path)
