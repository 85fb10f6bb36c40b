"""Files behind http and https as ranges of bytes: asked for alone, held against what was opened, asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

import aiohttp

from engram_tables.errors import InvalidInput
from engram_tables.http_client import (
    Absent,
    Answer,
    HttpClient,
    Passing,
    Trial,
    brief,
    read_answer,
    receive,
    refusal,
    shown,
    validator_name,
    validator_of,
)

_MOST_IN_FLIGHT = 4
_MOST_PAGE_BYTES = 8 << 20


class HttpFile:
    """A file behind a URL that is answered in ranges; see `ByteFile`.

    Attributes
    ----------
    is_page
        Whether the URL leads to one that ends with `/`: a folder's page.
    """

    def __init__(self, client: HttpClient, url: str) -> None:
        self.client, self.url = client, url
        self.where, self.name = shown(url), _name(url)
        self._in_flight = asyncio.Semaphore(_MOST_IN_FLIGHT)
        self._is_closed = False
        probed = client.run(self._probe(), self.url)
        self.is_page = urlsplit(probed.url).path.endswith("/")
        if probed.file_bytes is None and not self.is_page:
            raise InvalidInput(
                f"{self.where}: found no length in the answer with status {probed.status}, expected one; copy the file "
                "here"
            )
        self.file_bytes = probed.file_bytes or 0
        self._validator = probed.validator
        # An answer through a redirect has another server's tag, which the first one need not know.
        self._is_direct = not probed.is_redirected

    def folder(self) -> HttpFolder:
        """See `ByteFile`."""
        parts = urlsplit(self.url)
        return HttpFolder(self.client, urlunsplit(parts._replace(path=parts.path.rpartition("/")[0] + "/")))

    def identity(self) -> Mapping[str, str | int]:
        """See `ByteFile`."""
        self._check_open()
        if self.client.revision is not None:
            return {"file_bytes": self.file_bytes, "revision": self.client.revision}
        probed = self.client.run(self._probe(), self.url)
        identity: dict[str, str | int] = {"file_bytes": probed.file_bytes or 0}
        if probed.validator is not None:
            identity[probed.validator[0]] = probed.validator[1]
        return identity

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ByteFile`."""
        self._check(offset, len(buffer))
        if len(buffer):
            self.client.run(self._fill(offset, buffer.cast("B")), self.url)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See `ByteFile`."""
        self._check(offset, n_bytes)
        buffer = bytearray(n_bytes)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def close(self) -> None:
        """See `ByteFile`; reads that are under way or wait are ended. The client is shared, and stays."""
        if not self._is_closed:
            self._is_closed = True
            self.client.cancel(self.url)

    def _check(self, offset: int, n_bytes: int) -> None:
        self._check_open()
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.file_bytes:
            raise InvalidInput(
                f"{self.where}: asked for bytes {offset} to {offset + n_bytes}, expected a range within its "
                f"{self.file_bytes} bytes; is it a whole file? copy it again"
            )

    def _check_open(self) -> None:
        if self._is_closed:
            raise InvalidInput(f"{self.where}: closed already, expected an open file; open it again")

    async def _probe(self) -> Answer:
        """What the server says of the file now; one byte is asked for."""
        trial = Trial()
        while True:
            try:
                async with self._in_flight, self.client.get(self.url, {"Range": "bytes=0-0"}) as response:
                    if response.status not in (200, 206, 416):
                        raise refusal(response, self.where, "its first byte")
                    return read_answer(response, self.where, "its first byte")
            except Passing as failure:
                await self.client.pause(trial, failure, f"{self.where}: its first byte")

    async def _fill(self, offset: int, buffer: memoryview) -> None:
        done, trial = 0, Trial()
        while done < len(buffer):
            try:
                async with self._in_flight:
                    done += await self._fetch(offset + done, buffer[done:])
                trial = Trial()
            except Passing as failure:
                what = f"{self.where}: bytes {offset + done} to {offset + len(buffer)}"
                await self.client.pause(trial, failure, what)

    async def _fetch(self, start: int, buffer: memoryview) -> int:
        """Ask once for what fills the buffer; how many bytes came before the connection ended, one or more."""
        stop = start + len(buffer)
        what = f"bytes {start} to {stop}"
        headers = {"Range": f"bytes={start}-{stop - 1}", **self._conditions()}
        async with self.client.get(self.url, headers) as response:
            if response.status in (412, 416):
                raise await self._changed(response, what)
            if response.status not in (200, 206):
                raise refusal(response, self.where, what)
            answer = read_answer(response, self.where, what)
            self._check_same(answer, what)
            if answer.status == 200 and (start, stop) != (0, self.file_bytes):
                raise InvalidInput(
                    f"{self.where}: asked for {what}, found status 200 with the whole file of {answer.file_bytes} "
                    "bytes, expected status 206 with the range; this server knows no ranges: copy the file here"
                )
            if answer.first != start or not start < answer.stop <= stop:
                raise InvalidInput(
                    f"{self.where}: asked for {what}, found bytes {answer.first} to {answer.stop} in the answer, "
                    "expected those asked for; copy the file here"
                )
            return await receive(response, buffer[: answer.stop - start], f"{self.where}: {what}")

    def _conditions(self) -> dict[str, str]:
        if self._validator is None or self.client.revision is not None or not self._is_direct:
            return {}
        kind, value = self._validator
        if kind == "last_modified":
            return {"If-Unmodified-Since": value}
        # A weak tag never meets the condition, whatever the file.
        return {} if value.startswith("W/") else {"If-Match": value}

    def _check_same(self, answer: Answer, what: str) -> None:
        if answer.file_bytes not in (None, self.file_bytes):
            raise self._changed_error(what, f"{answer.file_bytes} bytes", f"the {self.file_bytes}")
        if self.client.revision is None and answer.validator != self._validator:
            raise self._changed_error(what, validator_name(answer.validator), validator_name(self._validator))

    async def _changed(self, response: aiohttp.ClientResponse, what: str) -> InvalidInput:
        """The error for an answer that the condition or the range is met no more."""
        status, stated = response.status, validator_of(response)
        response.close()
        if stated is None or stated == self._validator:
            async with self.client.get(self.url, {"Range": "bytes=0-0"}) as second:
                answer = read_answer(second, self.where, what) if second.status in (200, 206, 416) else None
            if answer is not None and answer.file_bytes not in (None, self.file_bytes):
                return self._changed_error(what, f"{answer.file_bytes} bytes", f"the {self.file_bytes}")
            stated = answer.validator if answer is not None else None
        return self._changed_error(
            what, f"status {status} and {validator_name(stated)}", validator_name(self._validator)
        )

    def _changed_error(self, what: str, found: str, expected: str) -> InvalidInput:
        return InvalidInput(
            f"{self.where}: asked for {what}, found {found}, expected {expected} that it had when it was opened; it "
            "was changed: begin again with the new file"
        )


class HttpFolder:
    """What lies below a URL that ends with `/`; see `Folder`."""

    def __init__(self, client: HttpClient, url: str) -> None:
        self.client = client
        parts = urlsplit(url)
        self.url = urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/", fragment=""))
        self.where, self.name = shown(self.url), _name(self.url.rstrip("/"))
        self.local_path: Path | None = None

    def names(self) -> list[str]:
        """See `Folder`: those that its page links to, where the server makes one."""
        if self.client.list_names is not None:
            return self.client.list_names(self.url)
        return self.client.run(self._linked(), self.url)

    def find(self, name: str) -> HttpFile | None:
        """See `Folder`; a name that a server forbids is not there, since stores forbid those that they do not hold."""
        parts = urlsplit(self.url)
        try:
            file = HttpFile(self.client, urlunsplit(parts._replace(path=parts.path + quote(name))))
        except Absent:
            return None
        return None if file.is_page else file

    def open(self, name: str) -> HttpFile:
        """See `Folder`."""
        file = self.find(name)
        if file is None:
            raise InvalidInput(f"{self.where}{name}: found no such file, expected one; is the directory whole?")
        return file

    async def _linked(self) -> list[str]:
        trial = Trial()
        while True:
            try:
                async with self.client.get(self.url, {}) as response:
                    if response.status != 200 or response.content_type != "text/html":
                        raise InvalidInput(
                            f"{self.where}: found status {response.status} with {response.content_type}, expected a "
                            "page that lists files; name the files themselves"
                        )
                    page = await response.content.read(_MOST_PAGE_BYTES)
                    while more := await response.content.read(_MOST_PAGE_BYTES):
                        page += more
                        if len(page) > _MOST_PAGE_BYTES:
                            raise InvalidInput(
                                f"{self.where}: found a page of more than {_MOST_PAGE_BYTES} bytes, expected a list of "
                                "files; name the files themselves"
                            )
                    return _names_on(page.decode("utf-8", "replace"), self.url)
            except Passing as failure:
                await self.client.pause(trial, failure, self.where)
            except (aiohttp.ClientError, TimeoutError) as error:
                await self.client.pause(trial, Passing(f"a page cut short ({brief(error)})"), self.where)


def open_http(client: HttpClient, url: str) -> HttpFile | HttpFolder:
    """The file at a URL, or the folder where it ends with `/` or leads to one that does."""
    if urlsplit(url).path.endswith("/"):
        return HttpFolder(client, url)
    try:
        file = HttpFile(client, url)
    except Absent as error:
        raise InvalidInput(f"{error} (the URL of a folder ends with /)") from None
    return HttpFolder(client, url) if file.is_page else file


def _name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if tag == "a" and key == "href" and value]


def _names_on(page: str, url: str) -> list[str]:
    """The files directly below `url` that a page links to."""
    links, below = _Links(), urlsplit(url)
    links.feed(page)
    names = set()
    for link in links.found:
        try:
            parts = urlsplit(urljoin(url, link))
        except ValueError:
            continue
        name = parts.path.removeprefix(below.path)
        if parts.netloc == below.netloc and parts.path.startswith(below.path) and name and "/" not in name:
            names.add(unquote(name))
    return sorted(names)
