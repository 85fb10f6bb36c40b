"""A client of http and https, and what its answers say; knows no file.

Requests go through fsspec's session and loop, but not through its own reading: that takes a whole body where a server
ignores the range, and does not go on where a body broke off.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import aiohttp

from engram_tables.errors import InvalidInput

_T = TypeVar("_T")
_TIMES_OUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
_CONTENT_RANGE = re.compile(r"bytes\s+(?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19}|\*)", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,9}")
# Object stores answer 403 for a name that they do not hold, to those who may not list.
_ABSENT = (403, 404, 410)
_WAITING = (429, 503)
_PASSING = (408, 425, 500, 502, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a read that does not go on is tried.

    Attributes
    ----------
    most_attempts
        Failures one after another that brought no byte.
    first_wait_s, longest_wait_s
        Waits double from the one to the other, unless the server names its own.
    most_wait_s
        All waits together that brought no byte; a server that asks for more is given up at once.
    """

    most_attempts: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    most_wait_s: float = 900.0


@dataclass(slots=True)
class Trial:
    """What a read has met since its last byte."""

    n_failures: int = 0
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the headers of an answer with a part of a file say."""

    status: int
    first: int
    stop: int
    file_bytes: int | None
    validator: tuple[str, str] | None
    url: str
    is_redirected: bool


class Passing(Exception):
    """A failure that may pass."""

    def __init__(self, found: str, *, wait_s: float | None = None) -> None:
        super().__init__(found)
        self.wait_s = wait_s


class Absent(InvalidInput):
    """Nothing is there."""


@dataclass(kw_only=True)
class HttpClient:
    """One session and its loop, shared by the files of a place.

    Attributes
    ----------
    options
        Keyword arguments of every request.
    headers
        Of every request; a client leaves `Authorization` out where a redirect leads to another host.
    revision
        The commit that all URLs name, where they name one: then bytes cannot change, and entity tags, which differ
        between the caches of a network, are not compared.
    list_names
        What gives the names in the folder of a URL, where something better than its page does.
    """

    session: aiohttp.ClientSession
    loop: asyncio.AbstractEventLoop
    options: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    patience: Patience = field(default_factory=Patience)
    revision: str | None = None
    list_names: Callable[[str], list[str]] | None = None

    def __post_init__(self) -> None:
        self._running: dict[asyncio.Task[Any], str] = {}
        # When a server asks one request to wait, all of them do.
        self._not_before = 0.0

    def run(self, work: Coroutine[Any, Any, _T], url: str) -> _T:
        """The result of `work` on a URL, done by the loop; Ctrl-C ends this work and all other of this client."""
        future = asyncio.run_coroutine_threadsafe(self._noted(work, url), self.loop)
        try:
            return future.result()
        except CancelledError:
            raise InvalidInput(
                f"{shown(url)}: found that it was closed while it was read, expected an open file; open it again"
            ) from None
        except KeyboardInterrupt:
            self.cancel()
            raise

    def cancel(self, url: str | None = None) -> None:
        """End all work, or all on one URL, whatever it waits for."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._cancel, url)

    def _cancel(self, url: str | None) -> None:
        for task, of_task in tuple(self._running.items()):
            if url in (None, of_task):
                task.cancel()

    async def _noted(self, work: Coroutine[Any, Any, _T], url: str) -> _T:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a coroutine outside a task")
        self._running[task] = url
        try:
            return await work
        finally:
            del self._running[task]

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to one request; what is left of its body is never read."""
        await self._wait_until_asked()
        kept = {**self.options.get("headers", {}), **self.headers, "Accept-Encoding": "identity", **headers}
        try:
            response = await self.session.get(url, **{"timeout": _TIMES_OUT, **self.options, "headers": kept})
        except (aiohttp.InvalidURL, aiohttp.TooManyRedirects, aiohttp.ClientSSLError) as error:
            raise InvalidInput(
                f"{shown(url)}: found that it cannot be asked for ({type(error).__name__}), expected a URL that "
                "answers; check the address"
            ) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Passing(f"no answer ({brief(error)})") from None
        try:
            yield response
        finally:
            response.close()

    async def _wait_until_asked(self) -> None:
        while (left_s := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left_s)

    async def pause(self, trial: Trial, failure: Passing, where: str) -> None:
        """Wait before the next attempt; ConnectionError where patience ends."""
        patience = self.patience
        if failure.wait_s is None:
            wait_s = min(patience.first_wait_s * 2**trial.n_failures, patience.longest_wait_s)
            trial.n_failures += 1
        else:
            wait_s = max(failure.wait_s, patience.first_wait_s)
        if trial.n_failures >= patience.most_attempts or trial.waited_s + wait_s > patience.most_wait_s:
            asked = "" if failure.wait_s is None else f" that asks to wait {wait_s:.0f} s more"
            raise ConnectionError(
                f"{where}: found {failure}{asked}, after {trial.waited_s:.0f} s of waiting and {trial.n_failures} "
                f"failed attempts, expected an answer within {patience.most_wait_s:.0f} s and {patience.most_attempts} "
                "attempts; try again later"
            )
        trial.waited_s += wait_s
        if failure.wait_s is not None:
            self._not_before = max(self._not_before, time.monotonic() + wait_s)
        await asyncio.sleep(wait_s)


def read_answer(response: aiohttp.ClientResponse, where: str, what: str) -> Answer:
    """The headers of an answer with status 200, 206 or 416."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise InvalidInput(
            f"{where}: asked for {what}, found an answer encoded as {encoding}, expected the bytes themselves; copy "
            "the file here"
        )
    validator = validator_of(response)
    if response.status == 200:
        n_bytes = response.content_length
        return Answer(
            status=200, first=0, stop=n_bytes or 0, file_bytes=n_bytes, validator=validator,
            url=str(response.url), is_redirected=bool(response.history),
        )  # fmt: skip
    stated = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(stated.strip())
    if match is None or (response.status == 206 and match[1] is None):
        raise InvalidInput(
            f"{where}: asked for {what}, found status {response.status} with Content-Range {stated!r}, expected "
            "'bytes FIRST-LAST/LENGTH'; copy the file here"
        )
    first, stop = (0, 0) if match[1] is None else (int(match[1]), int(match[2]) + 1)
    file_bytes = None if match[3] == "*" else int(match[3])
    return Answer(
        status=response.status, first=first, stop=stop, file_bytes=file_bytes, validator=validator,
        url=str(response.url), is_redirected=bool(response.history),
    )  # fmt: skip


def validator_of(response: aiohttp.ClientResponse) -> tuple[str, str] | None:
    for key, header in (("etag", "ETag"), ("last_modified", "Last-Modified")):
        if response.headers.get(header):
            return key, response.headers[header]
    return None


def validator_name(validator: tuple[str, str] | None) -> str:
    if validator is None:
        return "no ETag and no Last-Modified"
    return f"{'ETag' if validator[0] == 'etag' else 'Last-Modified'} {validator[1]}"


def refusal(response: aiohttp.ClientResponse, where: str, what: str) -> Exception:
    """The error for an answer that is no success."""
    status = f"status {response.status}" + (f" {response.reason}" if response.reason else "")
    if response.status in _WAITING:
        return Passing(status, wait_s=_retry_after_s(response.headers.get("Retry-After")))
    if response.status in _PASSING:
        return Passing(status)
    kind = Absent if response.status in _ABSENT else InvalidInput
    return kind(f"{where}: asked for {what}, found {status}, expected 206; check the address and your access")


def _retry_after_s(stated: str | None) -> float | None:
    """Seconds to wait as a server says it, in seconds or as a date; None where it does not."""
    if stated is None:
        return None
    if _SECONDS.fullmatch(stated.strip()):
        return float(stated)
    try:
        return max(0.0, parsedate_to_datetime(stated).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


async def receive(response: aiohttp.ClientResponse, buffer: memoryview, where: str) -> int:
    """Fill the buffer from the body; how many bytes came before it ended, however it did; one or more."""
    done = 0
    try:
        async for chunk in response.content.iter_any():
            if done + len(chunk) > len(buffer):
                raise InvalidInput(
                    f"{where}: found {done + len(chunk)} bytes or more in the answer, expected {len(buffer)}; copy the "
                    "file here"
                )
            buffer[done : done + len(chunk)] = chunk
            done += len(chunk)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        if done == 0:
            raise Passing(f"a body that broke off ({brief(error)})") from None
    if done == 0:
        raise Passing("a body without a byte")
    return done


def brief(error: BaseException) -> str:
    """An error without the URL, which may hold a secret."""
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None)
    return type(error).__name__ + (f": {reason}" if number is not None and reason else "")


def shown(url: str) -> str:
    """A URL for messages: without what may be a secret, its user and its query."""
    parts = urlsplit(url)
    return urlunsplit(SplitResult(parts.scheme, parts.netloc.rpartition("@")[2], unquote(parts.path), "", ""))
