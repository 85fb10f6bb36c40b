from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import NONSENSE, leaves, rewrite
from small_tables import names_in, small_spec, small_table

from engram_tables.errors import (
    CorruptTable,
    IncompleteTable,
    InvalidInput,
    NotATable,
    TableError,
    UnsupportedTable,
)
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.reader import StoredTable
from engram_tables.units import canonical_json


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return small_table(tmp_path / "t", shard_bytes=8192)


def smallest_table(path: Path) -> Path:
    """One layer in one shard, to be opened thousands of times."""
    return small_table(path, small_spec(7, layer_ids=(1,)))


def reopen(path: Path) -> None:
    with StoredTable(path):
        pass


def test_a_whole_table_opens_and_closes(table: Path) -> None:
    n_open = len(names_in(Path("/proc/self/fd")))
    with StoredTable(table) as opened:
        assert opened.layer_ids == (1, 14)
        assert (opened.codec.name, opened.layout.name, opened.row_bytes) == ("bf16", "packed", 64)
        assert [(e.file_idx, e.layer_id, e.part_idx, e.first_row, e.n_rows, e.offset) for e in opened.extents] == [
            (0, 1, 0, 0, 64, 4096), (1, 1, 0, 64, 37, 4096), (2, 14, 0, 0, 64, 4096), (3, 14, 0, 64, 37, 4096),
        ]  # fmt: skip
        assert [opened.owned(layer_id) for layer_id in (1, 14)] == [((0, 101),)] * 2
        mapping = opened.mapping(1)
        assert mapping.shape == (opened.files[1].file_bytes,)
        assert not mapping.flags.writeable
        assert opened.mapping(1) is mapping
        assert opened.vocabulary() is None
    assert mapping[:8].tobytes() == (4096 - 8).to_bytes(8, "little")
    del mapping
    assert len(names_in(Path("/proc/self/fd"))) == n_open


def test_locate(table: Path) -> None:
    with StoredTable(table) as opened:
        shard_idx, offset = opened.locate(14, np.array([0, 63, 64, 100]))
        assert shard_idx.tolist() == [2, 2, 3, 3]
        assert offset.tolist() == [4096, 4096 + 63 * 64, 4096, 4096 + 36 * 64]
        assert opened.locate(1, np.array([], dtype=np.int64))[0].shape == (0,)
        for rows in (np.array([0, 101]), np.array([0, -1]), np.array([5, 2**64 - 1], dtype=np.uint64)):
            with pytest.raises(InvalidInput, match="position 1, expected 0 to 100"):
                opened.locate(1, rows)
        with pytest.raises(InvalidInput, match="layer 2"):
            opened.locate(2, np.array([0]))
        with pytest.raises(InvalidInput, match="float64"):
            opened.locate(1, np.array([0.0]))


def test_manifest_cut_at_every_byte_is_refused(table: Path) -> None:
    data = (table / "engram.json").read_bytes()
    for n_bytes in range(len(data)):
        with pytest.raises(NotATable):
            Manifest.from_bytes(data[:n_bytes], path="t")
    for n_bytes in (0, 1, len(data) // 2, len(data) - 1):
        (table / "engram.json").write_bytes(data[:n_bytes])
        with pytest.raises(NotATable):
            StoredTable(table)
    (table / "engram.json").write_bytes(data)
    reopen(table)


def test_every_flipped_bit_of_the_manifest_is_refused(tmp_path: Path) -> None:
    data = (smallest_table(tmp_path / "t") / "engram.json").read_bytes()
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(TableError):
                Manifest.from_bytes(bytes(damaged), path="t")
    assert Manifest.from_bytes(data, path="t").to_bytes() == data


def test_every_flipped_bit_of_a_shard_header_is_refused(tmp_path: Path) -> None:
    table = smallest_table(tmp_path / "t")
    with StoredTable(table) as opened:
        (shard,) = opened.files
    data = shard.path.read_bytes()
    text = data[:4096].rstrip(b" ")
    # Every bit of length and text; of the padding, which one digest covers too, a bit of every eighth byte.
    places = [(byte, bit) for byte in range(len(text)) for bit in range(8)]
    places += [(byte, byte // 8 % 8) for byte in range(len(text), 4096, 8)]
    with shard.path.open("r+b", buffering=0) as file:
        for position, bit in places:
            file.seek(position)
            file.write(bytes([data[position] ^ 1 << bit]))
            with pytest.raises(CorruptTable, match="header"):
                StoredTable(table)
            file.seek(position)
            file.write(data[position : position + 1])
    reopen(table)


@pytest.mark.slow
def test_shard_of_any_other_length_is_refused(tmp_path: Path) -> None:
    table = smallest_table(tmp_path / "t")
    with StoredTable(table) as opened:
        (shard,) = opened.files
    data = shard.path.read_bytes()
    for n_bytes in range(len(data)):
        os.truncate(shard.path, n_bytes)
        with pytest.raises(IncompleteTable, match=f"found {n_bytes} bytes, expected {len(data)}"):
            StoredTable(table)
    shard.path.write_bytes(data + b"\0")
    with pytest.raises(CorruptTable, match=f"found {len(data) + 1} bytes"):
        StoredTable(table)
    shard.path.unlink()
    with pytest.raises(IncompleteTable, match="no such file"):
        StoredTable(table)


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(NotATable, match="found nothing"):
        StoredTable(tmp_path / "absent")
    with pytest.raises(NotATable, match=r"no engram\.json"):
        StoredTable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotATable, match="found a file"):
        StoredTable(tmp_path / "file")
    manifest = tmp_path / "engram.json"
    for text in ("", "[]", "{}", "[" * 100_000, '{"schema": 1}', '{"schema": "other/1"}', "1e999", "9" * 5000, "NaN"):
        manifest.write_text(text)
        with pytest.raises(NotATable):
            StoredTable(tmp_path)
    manifest.write_bytes(b"\xff\xfe")
    with pytest.raises(NotATable):
        StoredTable(tmp_path)
    for version, advice in ((1, "build the table again"), (3, "with a version that knows it")):
        manifest.write_text(f'{{"schema": "engram.table/{version}"}}')
        with pytest.raises(UnsupportedTable, match=rf"engram\.table/{version}.*{advice}"):
            StoredTable(tmp_path)


def set_shard(key: str, value: object, idx: int = 0) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["shards"][idx].update({key: value})


def set_init(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["init"].update({key: value})


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (set_shard("path", "../t/layer-01/rows-00001-of-00002.safetensors"), CorruptTable),
        (set_shard("path", "/etc/passwd"), CorruptTable),
        (set_shard("path", ["x"]), CorruptTable),
        (set_shard("first_row", 1), CorruptTable),
        (set_shard("n_rows", 63), CorruptTable),
        (set_shard("n_rows", -1), CorruptTable),
        (set_shard("n_rows", str(2**64 + 64)), CorruptTable),
        (set_shard("n_rows", True), CorruptTable),
        (set_shard("n_rows", None), CorruptTable),
        (set_shard("file_bytes", 8193), CorruptTable),
        (set_shard("file_bytes", str(2**63)), CorruptTable),
        (set_shard("data_offset", 0), CorruptTable),
        (set_shard("data_offset", 4097), CorruptTable),
        (set_shard("data_offset", 2**40), CorruptTable),
        (set_shard("block_sha256", []), CorruptTable),
        (set_shard("block_sha256", ["0" * 63, "0" * 64]), CorruptTable),
        (set_shard("header_sha256", "0" * 64), CorruptTable),
        (set_shard("layer_id", 14), CorruptTable),
        (set_shard("extra", 1), UnsupportedTable),
        (lambda body: body.update(extra=1), UnsupportedTable),
        (lambda body: body.pop("row_bytes"), CorruptTable),
        (lambda body: body.update(row_bytes=65), CorruptTable),
        (lambda body: body.update(row_width=64), CorruptTable),
        (lambda body: body.update(block_bytes=0), CorruptTable),
        (lambda body: body.update(block_bytes=4095), CorruptTable),
        (lambda body: body.update(codec="q9"), UnsupportedTable),
        (lambda body: body.update(codec=["q9"]), UnsupportedTable),
        (lambda body: body.update(layout="planar"), UnsupportedTable),
        (lambda body: body.update(layout="page"), CorruptTable),
        (lambda body: body.update(fingerprint="0" * 64), CorruptTable),
        (lambda body: body.update(shards=[]), CorruptTable),
        (lambda body: body.update(shards=None), CorruptTable),
        (lambda body: body.update(shards=body["shards"] * 2), CorruptTable),
        (lambda body: body.update(shards=body["shards"][::-1]), CorruptTable),
        (lambda body: body.update(shards=body["shards"][:3]), CorruptTable),
        (lambda body: body.update(spec={}), CorruptTable),
        (lambda body: body["spec"]["addressing"].update(fill_id=3), CorruptTable),
        (lambda body: body.update(init=[]), CorruptTable),
        (lambda body: body.update(init={}), CorruptTable),
        (lambda body: body.update(init={"kind": "uniform"}), UnsupportedTable),
        (lambda body: body.update(init={"kind": ["zeros"]}), UnsupportedTable),
        (lambda body: body.update(init={"kind": "zeros", "seed": 1}), UnsupportedTable),
        (set_init("seed", "abc"), CorruptTable),
        (set_init("seed", "-1"), CorruptTable),
        (set_init("seed", "٣"), CorruptTable),
        (set_init("seed", str(2**64)), CorruptTable),
        (set_init("seed", "5"), UnsupportedTable),
        (set_init("seed", True), CorruptTable),
        (set_init("std", "abc"), CorruptTable),
        (set_init("std", "nan"), CorruptTable),
        (set_init("std", "-1.0"), CorruptTable),
        (set_init("std", "1_0.0"), CorruptTable),
        (set_init("std", 1), CorruptTable),
        (set_init("std", ["1.0"]), CorruptTable),
        (set_init("more", 1), UnsupportedTable),
        (lambda body: body.update(vocabulary={}), CorruptTable),
    ],
)
def test_manifests_that_contradict_themselves(
    table: Path, change: Callable[[dict[str, Any]], None], kind: type[TableError]
) -> None:
    rewrite(table, change)
    with pytest.raises(kind):
        StoredTable(table)


def test_nonsense_in_any_place_of_the_manifest_is_the_tables_fault(table: Path) -> None:
    body = json.loads((table / "engram.json").read_text())
    del body["manifest_sha256"]
    text = json.dumps(body)
    places = list(leaves(body))
    assert ("init", "seed") in places
    for place in places:
        for nonsense in NONSENSE:
            changed = json.loads(text)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = nonsense
            changed["manifest_sha256"] = hashlib.sha256(canonical_json(changed)).hexdigest()
            # Free text and digests may say anything of their form: then it is the old table in other words.
            with contextlib.suppress(TableError):
                Manifest.from_bytes(canonical_json(changed), path="t")


def test_a_manifest_nested_too_deeply_is_refused(table: Path) -> None:
    for depth in (200, 900, 5000, 100_000):
        (table / "engram.json").write_text('{"schema":"engram.table/2","spec":' + "[" * depth + "]" * depth + "}")
        with pytest.raises(TableError):
            StoredTable(table)


def test_rewriting_nothing_opens(table: Path) -> None:
    rewrite(table, lambda body: None)
    reopen(table)


def test_a_header_that_contradicts_a_consistent_manifest(table: Path) -> None:
    with StoredTable(table) as opened:
        shard = opened.files[0]
    data = bytearray(shard.path.read_bytes())
    data[:4096] = bytes(data[:4096]).replace(b'"U8"', b'"I8"')
    shard.path.write_bytes(data)
    rewrite(table, set_shard("header_sha256", hashlib.sha256(data[:4096]).hexdigest()))
    with pytest.raises(CorruptTable, match="contradicts"):
        StoredTable(table)


def test_nothing_inside_may_be_a_link_or_a_pipe(table: Path, tmp_path: Path) -> None:
    shard = table / "layer-01" / "rows-00001-of-00002.safetensors"
    shutil.copytree(table / "layer-01", tmp_path / "aside")
    shard.unlink()
    shard.symlink_to(tmp_path / "aside" / shard.name)
    with pytest.raises(UnsupportedTable, match="symbolic link"):
        StoredTable(table)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(UnsupportedTable, match="regular file"):
        StoredTable(table)
    shutil.rmtree(table / "layer-01")
    (table / "layer-01").symlink_to(tmp_path / "aside")
    with pytest.raises(UnsupportedTable, match="symbolic link"):
        StoredTable(table)


def test_the_table_itself_may_be_a_link(table: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(table)
    reopen(tmp_path / "link")


def test_vocabulary_that_was_changed(tmp_path: Path, vocabulary_file: Path) -> None:
    from engram_tables.address.vocabulary import load_vocabulary

    spec = small_spec()
    object.__setattr__(spec, "canonical_size", load_vocabulary(vocabulary_file).canonical_size)
    path = small_table(tmp_path / "t", spec, vocabulary_file=vocabulary_file)
    reopen(path)
    data = (path / "vocab.parquet").read_bytes()
    for position in range(0, len(data), 211):
        damaged = bytearray(data)
        damaged[position] ^= 16
        (path / "vocab.parquet").write_bytes(damaged)
        with pytest.raises(CorruptTable, match=r"vocab\.parquet"):
            StoredTable(path)
    (path / "vocab.parquet").write_bytes(data[:-1])
    with pytest.raises(IncompleteTable, match=r"vocab\.parquet"):
        StoredTable(path)
    (path / "vocab.parquet").unlink()
    with pytest.raises(IncompleteTable, match=r"vocab\.parquet"):
        StoredTable(path)
    (path / "vocab.parquet").write_bytes(data)
    rewrite(path, lambda body: body["spec"].update(vocab_sha256="b" * 64))
    with pytest.raises(CorruptTable, match="b" * 64):
        StoredTable(path)


def test_opening_follows_an_exchange(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = small_table(tmp_path / "other", seed=9, shard_bytes=2**20)
    read = Manifest.from_bytes
    calls = []

    def exchange_first(data: bytes, *, path: str) -> Manifest:
        if not calls:
            table.rename(tmp_path / "gone")
            other.rename(table)
            shutil.rmtree(tmp_path / "gone")
        calls.append(1)
        return read(data, path=path)

    monkeypatch.setattr(Manifest, "from_bytes", exchange_first)
    with StoredTable(table) as opened:
        assert len(opened.files) == 2
    assert len(calls) == 2


@pytest.fixture
def table_with_vocabulary(tmp_path: Path, vocabulary_file: Path) -> Path:
    from engram_tables.address.vocabulary import load_vocabulary

    spec = small_spec()
    object.__setattr__(spec, "canonical_size", load_vocabulary(vocabulary_file).canonical_size)
    return small_table(tmp_path / "v", spec, vocabulary_file=vocabulary_file)


def test_the_vocabulary_is_the_one_that_was_opened(table_with_vocabulary: Path, table: Path) -> None:
    path = table_with_vocabulary
    with StoredTable(path) as opened:
        digest = opened.vocabulary().map_sha256  # type: ignore[union-attr]
        shutil.rmtree(path)
        table.rename(path)
        (path / "vocab.parquet").write_bytes(b"another file")
        for _ in range(2):
            own = opened.vocabulary()
            assert own is not None
            assert own.map_sha256 == digest


def test_a_vocabulary_changed_in_place_after_opening_is_refused(table_with_vocabulary: Path) -> None:
    with StoredTable(table_with_vocabulary) as opened:
        with (table_with_vocabulary / "vocab.parquet").open("r+b") as file:
            file.seek(100)
            file.write(b"????")
        with pytest.raises(CorruptTable, match=r"vocab\.parquet: hashes to"):
            opened.vocabulary()


def test_what_is_no_vocabulary_is_the_tables_fault(table_with_vocabulary: Path) -> None:
    data = b"no Parquet"
    (table_with_vocabulary / "vocab.parquet").write_bytes(data)
    rewrite(
        table_with_vocabulary,
        lambda body: body["vocabulary"].update(sha256=hashlib.sha256(data).hexdigest(), file_bytes=len(data)),
    )
    with StoredTable(table_with_vocabulary) as opened, pytest.raises(CorruptTable, match=r"vocab\.parquet"):
        opened.vocabulary()


def test_a_closed_table_opens_nothing_more(table_with_vocabulary: Path) -> None:
    opened = StoredTable(table_with_vocabulary)
    opened.close()
    opened.close()
    for use in (opened.vocabulary, lambda: opened.mapping(0)):
        with pytest.raises(InvalidInput, match="closed already"):
            use()


def test_errors_of_the_system_say_what_was_being_done(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise PermissionError(13, "made to fail")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(PermissionError) as caught:
        StoredTable(table)
    assert caught.value.__notes__ == [f"while opening the table {table}"]
