"""A server on this machine that answers ranges, with every fault that a test asks for."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# A proxy of the environment does not know this machine's servers.
os.environ["no_proxy"] = "127.0.0.1"


@dataclass(frozen=True)
class Request:
    """One request as it came; `span` is the half-open range that it asked for."""

    method: str
    path: str
    span: tuple[int, int] | None
    headers: dict[str, str]


class FileBytes:
    """A file's bytes without holding them, so that a sparse file of any size can be served."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return self.path.stat().st_size

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(len(self))
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


@dataclass
class RangeServer:
    """Files by path, and faults; both may change while it runs.

    Attributes
    ----------
    tags, times
        Entity tags and Last-Modified by path; a path without is answered without.
    checks_conditions
        Whether If-Match and If-Unmodified-Since are heeded.
    knows_ranges, states_length
        Whether it answers ranges, and with a length.
    cut_after
        Bodies of ranges end after so many bytes, `n_cuts` times in all.
    waits
        Status and Retry-After of the next answers, one after another, before it answers at all.
    redirects
        From path to URL.
    change_headers
        Changes the headers of an answer with a range.
    extra
        Bytes sent behind what was asked for.
    delay_s
        Before each body.
    """

    files: dict[str, bytes | FileBytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    checks_conditions: bool = True
    knows_ranges: bool = True
    states_length: bool = True
    cut_after: int = 0
    n_cuts: int = 0
    waits: list[tuple[int, str | None]] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    change_headers: Callable[[dict[str, str]], None] = lambda headers: None
    extra: bytes = b""
    delay_s: float = 0.0
    requests: list[Request] = field(default_factory=list)
    n_sent: int = 0
    n_at_once: int = 0
    most_at_once: int = 0

    def __enter__(self) -> Self:
        server = self
        self.lock, self.released = threading.Lock(), threading.Event()

        class Handler(_Handler):
            place = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def spans(self, path: str) -> list[tuple[int, int]]:
        """The ranges asked for of one path, without the byte that is asked for when it is opened."""
        return [
            request.span for request in self.requests if request.path == path and request.span not in (None, (0, 1))
        ]  # type: ignore[misc]

    def asked_bytes(self) -> int:
        """Bytes of all ranges asked for, that byte included."""
        return sum(request.span[1] - request.span[0] for request in self.requests if request.span is not None)


class _Handler(BaseHTTPRequestHandler):
    place: RangeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Requests until the other side has gone, however it went."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """A question of an interface: answered with JSON."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        """Any file, or any fault."""
        place = self.place
        span = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("Range", ""))
        asked = (int(span[1]), int(span[2]) + 1) if span else None
        path = self.path.partition("?")[0]
        with place.lock:
            place.requests.append(
                Request(self.command, path, asked, {key.lower(): self.headers[key] for key in self.headers})
            )
            place.n_at_once += 1
            place.most_at_once = max(place.most_at_once, place.n_at_once)
            wait = place.waits.pop(0) if place.waits else None
        try:
            if place.delay_s:
                place.released.wait(place.delay_s)
            self._answer(path, asked, wait)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with place.lock:
                place.n_at_once -= 1

    def _answer(self, path: str, asked: tuple[int, int] | None, wait: tuple[int, str | None] | None) -> None:
        place = self.place
        if wait is not None:
            self._send(wait[0], {} if wait[1] is None else {"Retry-After": wait[1]}, b"later")
        elif path in place.redirects:
            self._send(302, {"Location": place.redirects[path]}, b"")
        elif path in place.answers:
            self._send(200, {"Content-Type": "application/json"}, json.dumps(place.answers[path]).encode())
        elif path not in place.files:
            self._send(404, {}, b"nothing")
        elif self._is_changed(path):
            self._send(412, self._tags(path), b"")
        else:
            self._file(path, place.files[path], asked)

    def _tags(self, path: str) -> dict[str, str]:
        tags = {"ETag": self.place.tags[path]} if path in self.place.tags else {}
        return tags | (
            {"Last-Modified": formatdate(self.place.times[path], usegmt=True)} if path in self.place.times else {}
        )

    def _is_changed(self, path: str) -> bool:
        if not self.place.checks_conditions:
            return False
        wanted, since = self.headers.get("If-Match"), self.headers.get("If-Unmodified-Since")
        tags = self._tags(path)
        return (wanted is not None and wanted != tags.get("ETag")) or (
            since is not None and since != tags["Last-Modified"]
        )

    def _file(self, path: str, data: bytes | FileBytes, asked: tuple[int, int] | None) -> None:
        place = self.place
        headers = self._tags(path)
        if path.endswith("/"):
            headers["Content-Type"] = "text/html; charset=utf-8"
        if asked is None or not place.knows_ranges:
            self._send(200, headers, data)
            return
        if asked[0] >= len(data):
            self._send(416, headers | {"Content-Range": f"bytes */{len(data)}"}, b"")
            return
        start, stop = asked[0], min(asked[1], len(data))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        place.change_headers(headers)
        self._send(206, headers, data[start:stop] + place.extra)

    def _send(self, status: int, headers: dict[str, str], body: bytes | FileBytes) -> None:
        place, is_cut = self.place, False
        if status == 206:
            with place.lock:
                is_cut = place.n_cuts > 0 and len(body) > 1
                place.n_cuts -= is_cut
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if place.states_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        for first in range(0, place.cut_after if is_cut else len(body), 1 << 16):
            piece = body[first : min(first + (1 << 16), place.cut_after if is_cut else len(body))]
            with place.lock:
                place.n_sent += len(piece)
            self.wfile.write(piece)
        if is_cut:
            self.close_connection = True


def wait_until(is_so: Callable[[], bool], most_s: float = 10.0) -> None:
    """Return when `is_so`; fail after `most_s`."""
    last = time.monotonic() + most_s
    while not is_so():
        assert time.monotonic() < last
        time.sleep(0.005)
