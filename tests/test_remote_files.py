"""Files behind URLs: what is fetched, what is asked again, what is refused."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from range_server import RangeServer, wait_until

from engram_tables.byte_files import ByteFile, Folder, LocalFile, LocalFolder, open_place
from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.http_client import Patience
from engram_tables.http_files import HttpFile, HttpFolder, open_http
from engram_tables.remote import http_client

DATA = np.random.default_rng(1).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
QUICK = Patience(most_attempts=4, first_wait_s=0.001, longest_wait_s=0.01, most_wait_s=1.0)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer(files={"/a/x.bin": DATA}, tags={"/a/x.bin": '"one"'}) as server:
        yield server


def opened(server: RangeServer, path: str = "/a/x.bin", patience: Patience = QUICK) -> HttpFile:
    file = open_http(http_client(server.url, patience=patience), server.url + path)
    assert isinstance(file, HttpFile)
    return file


def test_what_is_asked_for_is_what_is_read(server: RangeServer) -> None:
    file = open_place(f"{server.url}/a/x.bin?token=secret")
    assert not isinstance(file, Folder)
    assert (file.name, file.where, file.file_bytes) == ("x.bin", f"{server.url}/a/x.bin", len(DATA))
    assert file.identity() == {"file_bytes": len(DATA), "etag": '"one"'}
    buffer = bytearray(1000)
    file.read_into(5, memoryview(buffer))
    assert buffer == DATA[5:1005]
    assert file.read(len(DATA) - 3, 3) == DATA[-3:]
    assert file.read(7, 0) == b""
    assert server.spans("/a/x.bin") == [(5, 1005), (len(DATA) - 3, len(DATA))]
    assert server.asked_bytes() == 1003 + 2
    assert server.n_sent == 1003 + 2
    assert all(request.headers.get("if-match") == '"one"' for request in server.requests[2:])
    for start, n_bytes in ((-1, 2), (0, -1), (0, len(DATA) + 1), (len(DATA), 1), (2**63, 2**63)):
        with pytest.raises(InvalidInput, match="expected a range within its 300000 bytes"):
            file.read(start, n_bytes)
    file.close()
    for act in (lambda: file.read(0, 1), file.identity):
        with pytest.raises(InvalidInput, match="closed already"):
            act()


def test_many_threads_few_requests_at_once(server: RangeServer) -> None:
    server.delay_s = 0.005
    file = opened(server)
    spans = [(start, min(start + 7001, len(DATA))) for start in range(0, len(DATA), 7001)]
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda span: file.read(span[0], span[1] - span[0]), spans))
    assert b"".join(parts) == DATA
    assert sorted(server.spans("/a/x.bin")) == spans
    assert 2 <= server.most_at_once <= 4


def test_a_server_without_ranges_is_refused_before_it_has_sent_the_file(server: RangeServer) -> None:
    server.knows_ranges = False
    server.files["/big.bin"] = bytes(64 << 20)
    server.files["/config.json"] = b"{}"
    file = opened(server, "/big.bin")
    with pytest.raises(InvalidInput, match=r"/big.bin: asked for bytes 8 to 108, found status 200 with the whole file"):
        file.read(8, 100)
    wait_until(lambda: server.n_at_once == 0)
    assert server.n_sent < 32 << 20  # what fits into the sockets' buffers
    assert opened(server, "/config.json").read(0, 2) == b"{}"  # the whole was asked for
    server.states_length = False
    with pytest.raises(InvalidInput, match="found no length in the answer with status 200"):
        opened(server)


@pytest.mark.parametrize("cut_after", [1, 1000, 65_536])
def test_a_body_that_breaks_off_goes_on_where_it_stopped(server: RangeServer, cut_after: int) -> None:
    server.cut_after, server.n_cuts = cut_after, 9
    assert opened(server).read(100, 250_000)[-50_000:] == DATA[200_100:250_100]
    spans = server.spans("/a/x.bin")
    assert all(stop == 250_100 for _, stop in spans)
    assert [start for start, _ in spans] == [100 + nth * cut_after for nth in range(len(spans))]
    assert len(spans) == min(10, -(-250_000 // cut_after))


def test_bodies_without_a_byte_are_given_up(server: RangeServer) -> None:
    file = opened(server)
    server.cut_after, server.n_cuts = 0, 3
    assert file.read(0, 10) == DATA[:10]
    server.n_cuts = 10**6
    with pytest.raises(ConnectionError, match=r"x.bin: bytes 3 to 13: found a body.*and 4 failed attempts, expected"):
        file.read(3, 10)
    assert len(server.spans("/a/x.bin")) == 4 + 4


@pytest.mark.parametrize("status", [429, pytest.param(503, marks=pytest.mark.slow)])
def test_a_server_that_asks_to_wait_is_waited_for(server: RangeServer, status: int) -> None:
    file = opened(server, patience=Patience(most_attempts=2, first_wait_s=0.001, most_wait_s=30))
    past, soon = "Thu, 01 Jan 1970 00:00:00 GMT", formatdate(time.time() + 2, usegmt=True)
    for stated, least_s, most_s in ((soon, 0.5, 4.0), ("0", 0.0, 0.9), ("1", 0.9, 3.0), (past, 0.0, 0.9)):
        server.waits = [(status, stated)]
        start = time.monotonic()
        assert file.read(9, 9) == DATA[9:18]
        assert least_s <= time.monotonic() - start <= most_s, stated
    server.waits = [(status, "0")] * 20  # named by the server: no failures of an attempt
    assert file.read(9, 9) == DATA[9:18]
    for unnamed in (None, "soon", "-1"):
        server.waits = [(status, unnamed)]
        assert file.read(9, 9) == DATA[9:18]
    server.waits = [(status, "3600")]
    with pytest.raises(ConnectionError, match=rf"bytes 9 to 18: found status {status} .* asks to wait 3600 s more"):
        file.read(9, 9)
    server.waits = [(status, None)] * 2
    with pytest.raises(ConnectionError, match=rf"found status {status}.*2 failed attempts"):
        file.read(9, 9)


def test_when_one_request_waits_all_do(server: RangeServer) -> None:
    file = opened(server, patience=Patience())
    server.waits = [(429, "1")]
    first = threading.Thread(target=file.read, args=(0, 5))
    first.start()
    wait_until(lambda: not server.waits)
    time.sleep(0.05)
    start = time.monotonic()
    assert file.read(10, 5) == DATA[10:15]
    assert time.monotonic() - start > 0.7
    first.join()


def test_passing_failures_are_asked_again_and_others_are_not(server: RangeServer) -> None:
    file = opened(server)
    server.waits = [(500, None), (502, None), (504, None)]
    assert file.read(0, 4) == DATA[:4]
    for status in (400, 401, 403, 404, 418):
        server.waits, before = [(status, None)], len(server.requests)
        with pytest.raises(InvalidInput, match=rf"x.bin: asked for bytes 1 to 5, found status {status}"):
            file.read(1, 4)
        assert len(server.requests) == before + 1
        server.waits = [(status, None)]
        with pytest.raises(InvalidInput, match=rf"x.bin: asked for its first byte, found status {status}"):
            opened(server)


@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize("kind", ["tag", "weak", "time"])
def test_a_file_that_changed_is_refused_with_both_values(server: RangeServer, kind: str, checks: bool) -> None:
    server.checks_conditions = checks
    old, new = ("1000000000", "1000000060") if kind == "time" else ('"one"', '"two"')
    if kind == "weak":
        old, new = f"W/{old}", f"W/{new}"
    if kind == "time":
        server.tags.clear()
        server.times["/a/x.bin"] = float(old)
        old, new = (formatdate(float(at), usegmt=True) for at in (old, new))
    else:
        server.tags["/a/x.bin"] = old
    file = opened(server)
    before = file.identity()
    assert file.read(1, 4) == DATA[1:5]
    if kind == "time":
        server.times["/a/x.bin"] = 1_000_000_060.0
    else:
        server.tags["/a/x.bin"] = new
    server.files["/a/x.bin"] = DATA[::-1]
    with pytest.raises(InvalidInput) as caught:
        file.read(1, 4)
    message = str(caught.value)
    assert old in message
    assert new in message
    assert "asked for bytes 1 to 5" in message
    assert file.identity() != before


def test_another_length_is_a_change_even_without_a_tag(server: RangeServer) -> None:
    server.tags.clear()
    file = opened(server)
    assert file.identity() == {"file_bytes": len(DATA)}
    server.files["/a/x.bin"] = DATA + b"more"
    with pytest.raises(InvalidInput, match="found 300004 bytes, expected the 300000 that it had"):
        file.read(0, 10)
    server.files["/a/x.bin"] = DATA[:100]
    with pytest.raises(InvalidInput, match="found 100 bytes, expected the 300000"):
        file.read(200, 10)
    assert file.identity() == {"file_bytes": 100}
    del server.files["/a/x.bin"]
    for act in (lambda: file.read(0, 10), file.identity):
        with pytest.raises(InvalidInput, match="found status 404"):
            act()


def test_a_change_while_a_broken_read_goes_on(server: RangeServer) -> None:
    file = opened(server)

    def change(headers: dict[str, str]) -> None:
        server.tags["/a/x.bin"] = '"two"'

    server.cut_after, server.n_cuts, server.change_headers = 500, 1, change
    with pytest.raises(InvalidInput, match=r'bytes 500 to 1000, found status 412 and ETag "two", expected ETag "one"'):
        file.read(0, 1000)


WRONG = {
    "another place": lambda headers: headers.update({"Content-Range": "bytes 11-20/300000"}),
    "more than asked": lambda headers: headers.update({"Content-Range": "bytes 10-299999/300000"}),
    "no range": lambda headers: headers.pop("Content-Range"),
    "no bytes": lambda headers: headers.update({"Content-Range": "bytes */300000"}),
    "not a range": lambda headers: headers.update({"Content-Range": "bytes=10-19"}),
    "a huge range": lambda headers: headers.update({"Content-Range": f"bytes 10-{'9' * 5000}/300000"}),
    "backwards": lambda headers: headers.update({"Content-Range": "bytes 10-5/300000"}),
    "several": lambda headers: (
        headers.update({"Content-Type": "multipart/byteranges; boundary=x"}) or headers.pop("Content-Range")
    ),
    "packed": lambda headers: headers.update({"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("case", WRONG)
def test_answers_that_are_no_answer(server: RangeServer, case: str) -> None:
    file = opened(server)
    server.change_headers = WRONG[case]
    with pytest.raises(InvalidInput, match=r"x.bin: asked for bytes 10 to 20, found .*, expected"):
        file.read(10, 10)


def test_bodies_of_another_length_than_stated(server: RangeServer) -> None:
    file = opened(server)
    server.extra = b"!"
    with pytest.raises(InvalidInput, match="found 11 bytes or more in the answer, expected 10"):
        file.read(10, 10)
    server.extra, server.states_length = b"", False
    assert file.read(10, 10) == DATA[10:20]  # the range says how long it is

    def shorten(headers: dict[str, str]) -> None:
        headers["Content-Range"] = headers["Content-Range"].replace("-1009/", "-509/")

    server.change_headers = shorten
    with pytest.raises(InvalidInput, match="found 1000 bytes or more in the answer, expected 500"):
        file.read(10, 1000)


def test_redirects_are_followed(server: RangeServer) -> None:
    server.redirects = {"/model/x.bin": "/hop", "/hop": server.url + "/a/x.bin", "/loop": "/loop"}
    file = opened(server, "/model/x.bin")
    assert (file.name, file.where) == ("x.bin", server.url + "/model/x.bin")
    assert file.read(3, 3) == DATA[3:6]
    # The first server does not know the last one's tag.
    assert not any("if-match" in request.headers for request in server.requests)
    server.tags["/a/x.bin"] = '"two"'
    with pytest.raises(InvalidInput, match='found ETag "two", expected ETag "one"'):
        file.read(3, 3)
    with pytest.raises(InvalidInput, match=r"/loop: .*TooManyRedirects"):
        opened(server, "/loop")


def test_an_empty_file(server: RangeServer) -> None:
    server.files["/empty"] = b""
    file = opened(server, "/empty")
    assert file.file_bytes == 0
    assert file.read(0, 0) == b""


def test_folders(server: RangeServer) -> None:
    links = [
        "x.bin",
        "b%20c.bin",
        "/a/y.bin",
        "sub/",
        "sub/z.bin",
        "../up.bin",
        "https://elsewhere.test/a/o.bin",
        "?C=N",
        "http://[",
    ]
    page = "".join(f'<li><a href="{link}">{link}</a>' for link in links)
    server.files |= {"/a/": f"<html><a name=q>{page}".encode(), "/a/b%20c.bin": b"bc", "/a/sub/z.bin": b"z"}
    server.redirects = {"/a": "/a/", "/a/sub": "/a/sub/"}
    for url in (f"{server.url}/a/", f"{server.url}/a"):
        folder = open_place(url)
        assert isinstance(folder, HttpFolder)
        assert folder.names() == ["b c.bin", "x.bin", "y.bin"]
        assert folder.where.startswith(f"{server.url}/a")
    assert folder.name == "a"
    assert folder.open("b c.bin").read(0, 2) == b"bc"
    assert folder.open("sub/z.bin").folder().where == f"{server.url}/a/sub/"
    assert folder.find("missing") is None
    server.files["/a/sub/"] = b"<html>"
    assert folder.find("sub") is None
    with pytest.raises(InvalidInput, match=r"/a/missing: found no such file"):
        folder.open("missing")
    server.files["/data/x.bin"] = b"x"
    with pytest.raises(InvalidInput, match=r"found status 404.*expected a page that lists files"):
        open_place(f"{server.url}/data/").names()  # type: ignore[union-attr]
    server.files["/huge/"] = b"<a href=x>" * 2**20
    with pytest.raises(InvalidInput, match="a page of more than"):
        open_place(f"{server.url}/huge/").names()  # type: ignore[union-attr]


def test_nobody_answers() -> None:
    with RangeServer() as server:
        url = server.url
    with pytest.raises(ConnectionError, match=r"x: its first byte: found no answer .*4 failed attempts"):
        open_http(http_client(url, patience=QUICK), f"{url}/x")
    with pytest.raises(InvalidInput, match="cannot be"):
        open_place("http://")


def test_ctrl_c_ends_every_read(server: RangeServer) -> None:
    file, ended = opened(server), []
    server.delay_s = 60

    def read() -> None:
        try:
            file.read(0, 10)
        except BaseException as error:
            ended.append(type(error).__name__)

    other = threading.Thread(target=read)
    other.start()
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        file.read(20, 10)
    other.join(5)
    timer.join()
    assert time.monotonic() - start < 5
    assert ended == ["InvalidInput"]
    server.released.set()
    server.delay_s = 0
    assert file.read(20, 10) == DATA[20:30]


def test_a_file_that_is_closed_waits_for_nothing(server: RangeServer) -> None:
    file, other = (open_http(http_client(server.url), f"{server.url}/a/x.bin") for _ in range(2))
    assert isinstance(file, HttpFile)
    server.waits = [(503, "600")]
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(file.read, 0, 10)
        wait_until(lambda: not server.waits)
        time.sleep(0.05)
        file.close()
        with pytest.raises(InvalidInput, match="closed while it was read"):
            read.result(5)
    assert isinstance(other, HttpFile)
    assert other.read(0, 10) == DATA[:10]


COMMIT = "c0ffee" * 6 + "abcd"


def hub(server: RangeServer) -> None:
    """What the hub answers for one repository with two files, the large one behind a redirect."""
    api = "/api/models/some/model"
    info = {"id": "some/model", "sha": COMMIT, "siblings": []}
    entries = [
        {"type": "file", "path": "config.json", "size": 2, "oid": "1"},
        {"type": "file", "path": "x.bin", "size": len(DATA), "oid": "2"},
        {"type": "directory", "path": "sub", "oid": "4"},
    ]  # fmt: skip
    server.answers |= {
        api: info,
        f"{api}/revision/main": info,
        f"{api}/revision/{COMMIT}": info,
        f"{api}/tree/{COMMIT}": entries,
    }
    server.answers[f"{api}/paths-info/{COMMIT}"] = entries[1:2]
    server.files |= {f"/some/model/resolve/{COMMIT}/config.json": b"{}"}
    server.redirects[f"/some/model/resolve/{COMMIT}/x.bin"] = "/a/x.bin?signature=1"


def test_a_repository_is_read_at_one_commit(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(server)
    monkeypatch.setitem(
        fsspec.config.conf, "hf", {"endpoint": server.url, "token": "hf_secret", "skip_instance_cache": True}
    )
    folder = open_place("hf://some/model")
    assert isinstance(folder, HttpFolder)
    assert folder.names() == ["config.json", "x.bin"]
    assert folder.open("config.json").read(0, 2) == b"{}"
    assert folder.find("y.bin") is None
    for file in (
        folder.open("x.bin"),
        open_place("hf://some/model@main/x.bin"),
        open_place("hf://some/model/x.bin", revision="main"),
    ):
        assert not isinstance(file, Folder)
        assert (file.name, file.file_bytes) == ("x.bin", len(DATA))
        assert file.identity() == {"file_bytes": len(DATA), "revision": COMMIT}
        server.tags["/a/x.bin"] = f'"{len(server.requests)}"'  # another cache's tag for the bytes of one commit
        assert file.read(1, 9) == DATA[1:10]
        assert file.folder().names() == ["config.json", "x.bin"]
    assert {request.headers.get("authorization") for request in server.requests if "resolve" in request.path} == {
        "Bearer hf_secret"
    }
    assert not any(request.path.startswith("/some/model/resolve/main") for request in server.requests)
    for missing in ("hf://some/other/x.bin", "hf://some/model@branch/x.bin"):
        with pytest.raises(InvalidInput, match="found no such repository or revision"):
            open_place(missing)
    server.answers[f"/api/models/some/model/paths-info/{COMMIT}"] = []
    with pytest.raises(InvalidInput, match=rf"found nothing there at commit {COMMIT}"):
        open_place("hf://some/model/nothing.bin")


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe({"/b/d/x.bin": DATA, "/b/d/config.json": b"{}", "/b/d/sub/y": b"y"})
    yield filesystem
    filesystem.rm("/b", recursive=True)


def test_any_filesystem(memory: Any) -> None:
    folder = open_place("memory://b/d")
    assert isinstance(folder, Folder)
    assert (folder.name, folder.names()) == ("d", ["config.json", "x.bin"])
    assert folder.open("sub/y").read(0, 1) == b"y"
    assert folder.find("sub") is None
    assert folder.find("z") is None
    with pytest.raises(InvalidInput, match="d/z: found no such file"):
        folder.open("z")
    file = folder.open("x.bin")
    assert (file.name, file.where, file.file_bytes) == ("x.bin", "memory:///b/d/x.bin", len(DATA))
    assert file.folder().names() == folder.names()
    before = file.identity()
    assert before == file.identity()
    buffer = bytearray(10)
    file.read_into(7, memoryview(buffer))
    assert buffer == DATA[7:17]
    assert file.read(0, 0) == b""
    with pytest.raises(InvalidInput, match="expected a range within"):
        file.read(len(DATA) - 1, 2)
    memory.pipe("/b/d/x.bin", DATA[:100])
    assert file.identity() != before
    with pytest.raises(InvalidInput, match="bytes 95 to 105: found 5 bytes, expected 10"):
        file.read(95, 10)
    memory.rm("/b/d/x.bin")
    with pytest.raises(InvalidInput, match="it is gone"):
        file.read(0, 10)
    with pytest.raises(InvalidInput, match="found nothing there"):
        file.identity()
    file.close()
    with pytest.raises(InvalidInput, match="closed already"):
        file.read(0, 1)


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a b.bin"
    path.write_bytes(DATA)
    for where, kind in ((path, LocalFile), (str(path), LocalFile), (path.as_uri(), LocalFile), (tmp_path, LocalFolder)):
        assert type(open_place(where)) is kind
    file: ByteFile = LocalFile(path)
    assert file.folder().open("a b.bin").read(1, 2) == DATA[1:3]
    for where in ("nothing", "memory://nothing/there", (tmp_path / "nothing").as_uri()):
        with pytest.raises(InvalidInput, match="nothing"):
            open_place(where)
    for where in (path, "https://example.test/x"):
        with pytest.raises(InvalidInput, match="revision: found 'main'"):
            open_place(where, revision="main")
    with pytest.raises(InvalidInput, match="found the protocol 'bogus'"):
        open_place("bogus://x")
    for name in ("aiohttp", "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    with pytest.raises(BackendUnavailable, match=r"https:// is not installed .*engram-tables\[http\]"):
        open_place("https://example.test/x")


def test_one_module_knows_fsspec_and_one_the_client() -> None:
    library = Path(__file__).resolve().parent.parent / "tables" / "engram_tables"
    owners = {"fsspec": ["remote.py"], "huggingface_hub": ["remote.py"], "aiohttp": ["http_client.py", "http_files.py"]}
    for package, expected in owners.items():
        pattern = rf"(?m)^\s*(import|from) {package}\b"
        assert sorted(path.name for path in library.rglob("*.py") if re.search(pattern, path.read_text())) == expected
