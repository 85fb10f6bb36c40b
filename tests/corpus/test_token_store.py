"""Token stores: slices against a plain list, bytes as documented, and files that were tampered with."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_tables.corpus.tokens import token_store
from engram_tables.corpus.tokens.array_file import HEADER_BYTES, npy_header
from engram_tables.corpus.tokens.token_manifest import content_digest, ids_dtype
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.corpus.tokens.token_store import DEAD, TokenStore, is_token_store, open_tokens
from engram_tables.errors import CapacityError, InvalidInput, SpecMismatch

DOCUMENTS = [[1, 2, 3], [], [DEAD, 5], [6], [7, DEAD, DEAD, 0, 9]]
NAMES = ["a", None, "c", "c", ""]
WIDE = 100_000


@pytest.fixture(params=[10, WIDE], ids=["uint16", "uint32"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_tokens(
        tmp_path / "tokens", DOCUMENTS, token_size=request.param, names=NAMES, shard_documents=2, tokenizer_sha256="ab"
    )
    return tmp_path / "tokens"


def slice_of(documents: list[list[int]], start: int, stop: int) -> tuple[list[int], list[int]]:
    """The plain twin of `TokenStore.read`."""
    flat = [token for document in documents for token in document]
    begins, position = [], 0
    for document in documents:
        begins.append(position)
        position += len(document)
    at_end = stop == len(flat)
    starts = [begin - start for begin in begins if start <= begin < stop or (at_end and begin == stop)]
    if start < stop and 0 not in starts:
        starts.insert(0, 0)
    return flat[start:stop], [*starts, stop - start]


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[list[int]], int, int]:
    token_size = draw(st.sampled_from([1, 7, 65_533, 65_534, 65_535, 65_536, 2**32 - 1]))
    tokens = st.one_of(st.integers(0, token_size - 1), st.just(token_size - 1), st.just(DEAD))
    documents = draw(st.lists(st.lists(tokens, max_size=9), max_size=9))
    return documents, token_size, draw(st.integers(1, 4))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corpus=corpora(), widen=st.sampled_from([1, 3, 64]), data=st.data())
def test_slices_are_those_of_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: tuple[Any, int, int], widen: int, data: st.DataObject
) -> None:
    documents, token_size, shard_documents = corpus
    monkeypatch.setattr(token_store, "_WIDEN_TOKENS", widen)
    monkeypatch.setattr(token_store, "_SLICE_TOKENS", 5)
    path = tmp_path / "tokens"
    shutil.rmtree(path, ignore_errors=True)
    write_tokens(path, documents, token_size=token_size, shard_documents=shard_documents)
    n_tokens = sum(map(len, documents))
    with open_tokens(path) as tokens:
        assert (tokens.n_tokens, tokens.n_documents, tokens.token_size) == (n_tokens, len(documents), token_size)
        assert tokens.n_dead == sum(document.count(DEAD) for document in documents)
        assert [ids.tolist() for ids in tokens.documents()] == documents
        assert list(tokens.names()) == [None] * len(documents)
        tokens.verify()
        for _ in range(4):
            start = data.draw(st.integers(0, n_tokens))
            stop = data.draw(st.integers(start, n_tokens))
            into = np.empty(n_tokens + 2, dtype=np.uint32) if data.draw(st.booleans()) else None
            found = tokens.read(start, stop, into=into, threads=data.draw(st.sampled_from([1, 3])))
            assert (found.ids.tolist(), found.document_starts.tolist()) == slice_of(documents, start, stop)
            assert (found.ids.dtype, found.document_starts.dtype) == (np.uint32, np.int64)
            assert into is None or np.shares_memory(found.ids, into) or not len(found.ids)
        whole = tokens.read(0, n_tokens)
        assert (whole.ids.tolist(), whole.document_starts.tolist()) == slice_of(documents, 0, n_tokens)


def test_slices_and_buffers_that_cannot_be_are_refused(store: Path) -> None:
    with open_tokens(store) as tokens:
        for start, stop in ((-1, 2), (3, 2), (0, 12), (12, 12)):
            with pytest.raises(InvalidInput, match=r"expected one inside \[0, 11\)"):
                tokens.read(start, stop)
        for into in (np.empty(3, np.uint32), np.empty(20, np.int32), np.empty(40, np.uint32)[::2]):
            with pytest.raises(InvalidInput, match="expected contiguous uint32"):
                tokens.read(0, 11, into=into)


def test_names_are_kept_where_there_are_any(store: Path) -> None:
    with open_tokens(store) as tokens:
        assert list(tokens.names()) == NAMES
        assert [told["names"] is None for told in tokens.manifest["shards"]] == [False, False, False]
    write_tokens(store.with_name("some"), [[1], [2], [3]], token_size=9, names=[None, "x", None], shard_documents=1)
    with open_tokens(store.with_name("some")) as tokens:
        assert list(tokens.names()) == [None, "x", None]
        assert [told["names"] is None for told in tokens.manifest["shards"]] == [True, False, True]


def test_the_bytes_are_as_documented_and_numpy_reads_them(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [[1, 2], [DEAD]], token_size=10)
    ids = (tmp_path / "tokens" / "shard-00000.ids.npy").read_bytes()
    text = b"{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }"
    assert ids == b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(117) + b"\n" + bytes.fromhex("01000200ffff")
    assert np.load(tmp_path / "tokens" / "shard-00000.ids.npy").tolist() == [1, 2, 65_535]
    starts = np.load(tmp_path / "tokens" / "shard-00000.starts.npy")
    assert (starts.dtype.str, starts.tolist()) == ("<i8", [0, 2, 3])
    manifest = json.loads((tmp_path / "tokens" / "tokens.json").read_bytes())
    assert manifest["shards"][0]["ids"] == {
        "name": "shard-00000.ids.npy",
        "file_bytes": len(ids),
        "sha256": hashlib.sha256(ids).hexdigest(),
    }
    write_tokens(tmp_path / "again", [[1, 2], [DEAD]], token_size=10)
    assert (tmp_path / "again" / "tokens.json").read_bytes() == (tmp_path / "tokens" / "tokens.json").read_bytes()


@pytest.mark.parametrize("n_items", [0, 1, 2**40, 2**62])
def test_every_header_has_the_same_length(n_items: int) -> None:
    assert len(npy_header("<u4", n_items)) == HEADER_BYTES


@pytest.mark.parametrize("token_size", [0, 2**32])
def test_a_size_that_no_dtype_holds_is_refused(token_size: int) -> None:
    with pytest.raises(CapacityError, match="token size"):
        ids_dtype(token_size)


@pytest.mark.parametrize("documents", [[[10]], [[-1]], [[0.5]], [[2**32]], [[[1]]]])
def test_ids_outside_the_tokenizer_are_not_written(tmp_path: Path, documents: list[Any]) -> None:
    with pytest.raises(InvalidInput, match="document 0"):
        write_tokens(tmp_path / "tokens", documents, token_size=10)
    assert not any(tmp_path.iterdir())


def test_deleting_an_open_store_does_no_harm(store: Path) -> None:
    with open_tokens(store) as tokens:
        shutil.rmtree(store)
        assert [ids.tolist() for ids in tokens.documents()] == DOCUMENTS
        assert list(tokens.names()) == NAMES
        kept = tokens.read(0, 3).ids
        with pytest.raises(InvalidInput, match="the file is missing"):
            tokens.verify()
    assert kept.tolist() == [1, 2, 3]
    for use in (lambda: tokens.read(0, 3), lambda: list(tokens.documents()), lambda: list(tokens.names())):
        with pytest.raises(InvalidInput, match="closed"):
            use()
    assert str(store) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_store_of_many_shards_takes_no_descriptors(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [[at] for at in range(100)], token_size=100, shard_documents=1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 20, limits[1]))
    try:
        with open_tokens(tmp_path / "tokens") as tokens:
            assert tokens.read(0, 100).ids.tolist() == list(range(100))
            tokens.verify(threads=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_another_tokenizer_is_refused(store: Path, tmp_path: Path) -> None:
    with open_tokens(store) as tokens:
        tokens.check_tokenizer("ab")
        with pytest.raises(SpecMismatch, match="belong to the tokenizer ab, the one in use is cd"):
            tokens.check_tokenizer("cd")
    write_tokens(tmp_path / "unknown", [], token_size=10)
    with open_tokens(tmp_path / "unknown") as tokens:
        tokens.check_tokenizer("cd")
        assert tokens.tokenizer_sha256 is None


def test_what_is_a_token_store(store: Path) -> None:
    assert is_token_store(store)
    assert is_token_store(str(store))
    for path in (store / "tokens.json", store.parent, store / "nowhere"):
        assert not is_token_store(path)
    (store / "tokens.json").write_text('{"schema": "engram.tokens/2"}')
    assert is_token_store(store)
    with pytest.raises(InvalidInput, match=r"'engram.tokens/2', expected 'engram.tokens/1'"):
        open_tokens(store)
    with pytest.raises(InvalidInput, match="this is no token store; make one with `engram tokenize`"):
        open_tokens(store.parent)


def damaged_copies(store: Path, name: str) -> Iterator[Path]:
    """The store again and again, with the file `name` free to be overwritten."""
    whole = (store / name).read_bytes()
    while True:
        (store / name).write_bytes(whole)
        yield store / name


@pytest.mark.parametrize("name", ["shard-00000.ids.npy", "shard-00001.starts.npy"])
def test_a_file_cut_at_any_byte_is_refused(store: Path, name: str) -> None:
    for path in damaged_copies(store, name):
        n_bytes = path.stat().st_size
        for kept in range(n_bytes - 1, -1, -1):
            os.truncate(path, kept)
            with pytest.raises(InvalidInput, match=f"{name}: {kept:,} bytes, expected {n_bytes}"):
                open_tokens(store)
        break


@pytest.mark.parametrize("name", ["shard-00000.ids.npy", "shard-00001.starts.npy"])
def test_a_header_with_any_flipped_bit_is_refused(store: Path, name: str) -> None:
    whole = bytearray((store / name).read_bytes())
    for at in range(HEADER_BYTES):
        whole[at] ^= 1 << at % 8
        (store / name).write_bytes(whole)
        whole[at] ^= 1 << at % 8
        with pytest.raises(InvalidInput, match=rf"{name}: header .*, expected"):
            open_tokens(store)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3, dtype=">u2"),
        np.arange(6, dtype=np.uint8),
        np.asfortranarray(np.zeros((3, 1), dtype=np.uint16)),
        np.array([1, "two", None], dtype=object),
    ],
    ids=["big-endian", "uint8", "fortran", "pickled"],
)
def test_another_array_is_refused(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    write_tokens(tmp_path / "tokens", [[1, 2, 3]], token_size=10)
    path = tmp_path / "tokens" / "shard-00000.ids.npy"
    n_bytes = path.stat().st_size
    np.save(path, array, allow_pickle=True)
    with pytest.raises(InvalidInput, match=r"ids.npy: \d+ bytes, expected|ids.npy: header"):
        open_tokens(tmp_path / "tokens")
    path.write_bytes(path.read_bytes().ljust(n_bytes, b"\0")[:n_bytes])
    with pytest.raises(InvalidInput, match=r"ids.npy: header"):
        open_tokens(tmp_path / "tokens")


def forge(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest changed by someone who knows how its digest is made."""
    path = store / "tokens.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    manifest["manifest_sha256"] = content_digest(manifest)
    path.write_text(json.dumps(manifest))


def rewrite(store: Path, name: str, payload: bytes) -> None:
    """A file with another content under the same header, and a manifest that agrees."""
    path = store / name
    path.write_bytes(path.read_bytes()[: -len(payload)] + payload)

    def agree(manifest: dict[str, Any]) -> None:
        for told in manifest["shards"]:
            for kind in ("ids", "starts"):
                if told[kind]["name"] == name:
                    told[kind]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    forge(store, agree)


def test_starts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = tmp_path / "tokens"
    write_tokens(store, [[1, 2, 3], [4], [5]], token_size=10)
    name = "shard-00000.starts.npy"
    for ends in ([1, 3, 4, 5], [0, 3, 4, 6], [0, 3, 4, -5], [2**63 - 1, 0, 0, 5]):
        rewrite(store, name, np.array(ends, dtype="<i8").tobytes())
        with pytest.raises(InvalidInput, match=r"starts.npy: runs from .* expected 0 to 5"):
            open_tokens(store)
    for inner in ([0, 4, 3, 5], [0, -(2**63), 4, 5], [0, 2**63 - 1, 4, 5], [0, 3, 6, 5]):
        rewrite(store, name, np.array(inner, dtype="<i8").tobytes())
        uses: list[Callable[[TokenStore], object]] = [
            lambda tokens: tokens.read(0, 5),
            lambda tokens: list(tokens.documents()),
            lambda tokens: tokens.verify(),
        ]
        for use in uses:
            with open_tokens(store) as tokens, pytest.raises(InvalidInput, match="expected starts that do not fall"):
                use(tokens)


def test_verify_finds_what_opening_cannot(store: Path) -> None:
    with open_tokens(store) as tokens:
        seen: list[tuple[int, int]] = []
        tokens.verify(threads=2, progress=lambda done, total: seen.append((done, total)))
        assert seen[-1] == (tokens.file_bytes, tokens.file_bytes)
    for path in sorted(store.glob("shard-*")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        if path.suffix == ".parquet" or path.name != "shard-00000.starts.npy":
            with pytest.raises(InvalidInput, match=rf"{path.name}: "), open_tokens(store) as tokens:
                tokens.verify()
        path.write_bytes(whole)


def test_verify_holds_ids_against_the_tokenizer(tmp_path: Path) -> None:
    store = tmp_path / "tokens"
    write_tokens(store, [[1, 2], [DEAD]], token_size=10)
    rewrite(store, "shard-00000.ids.npy", np.array([1, 10, 0xFFFF], dtype="<u2").tobytes())
    with open_tokens(store) as tokens, pytest.raises(InvalidInput, match="position 1 holds token id 10, expected ids"):
        tokens.verify()
    rewrite(store, "shard-00000.ids.npy", np.array([1, 0xFFFF, 0xFFFF], dtype="<u2").tobytes())
    with open_tokens(store) as tokens, pytest.raises(InvalidInput, match="2 dead positions, expected 1"):
        tokens.verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_size": 0}, "token_size is 0"),
        ({"token_size": 2**32}, "token_size is 4294967296"),
        ({"token_size": "10"}, "token_size is '10'"),
        ({"dtype": "uint64"}, "dtype is 'uint64'"),
        ({"tokenizer_sha256": 5}, "tokenizer_sha256 is 5"),
        ({"n_tokens": 12}, "n_tokens is 12, expected 11"),
        ({"n_tokens": True}, "n_tokens is True"),
        ({"shards": {}}, "shards is no list"),
        ({"shards": [1]}, "shards is no list"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(store: Path, change: dict[str, Any], message: str) -> None:
    forge(store, lambda manifest: manifest.update(change))
    with pytest.raises(InvalidInput, match=message):
        open_tokens(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_tokens": -1}, "shard 1: n_tokens is -1"),
        ({"n_tokens": 2**62}, "shard 1: n_tokens"),
        ({"n_documents": 2**60}, "shard 1: shard-00001.starts.npy has"),
        ({"ids": {"name": "../../x", "file_bytes": 1, "sha256": ""}}, "expected name shard-00001.ids.npy"),
        ({"ids": {"name": "shard-00001.ids.npy", "file_bytes": 1, "sha256": ""}}, "has 1 bytes, expected 1[34]"),
        ({"starts": None}, "starts is None"),
        ({"names": 5}, "names is 5"),
        ({"names": {"name": "shard-00001.names.parquet", "file_bytes": 0, "sha256": ""}}, "expected 1 or more"),
    ],
)
def test_a_shard_that_contradicts_itself_is_refused(store: Path, change: dict[str, Any], message: str) -> None:
    forge(store, lambda manifest: manifest["shards"][1].update(change))
    with pytest.raises(InvalidInput, match=message):
        open_tokens(store)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"schema": 1}', b"[" * 100_000])
def test_another_manifest_is_refused(store: Path, content: bytes) -> None:
    (store / "tokens.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"tokens.json: "):
        open_tokens(store)
    manifest = {"schema": "engram.tokens/1", "token_size": 1.5}
    (store / "tokens.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match="it was changed or damaged"):
        open_tokens(store)
