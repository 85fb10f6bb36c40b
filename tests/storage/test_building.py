from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_tables import lay_table, names_in, small_manifest, small_plan, small_spec, small_table

from engram_tables import files
from engram_tables.address.vocabulary import load_vocabulary
from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput, SpecMismatch
from engram_tables.storage.building import blocks
from engram_tables.storage.building.writer import build_table, plan_table
from engram_tables.storage.codecs.codec import FRESH_CODEC_NAMES
from engram_tables.storage.table.reader import StoredTable
from engram_tables.units import ProgressHook


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def records_of(path: Path) -> dict[int, np.ndarray]:
    with StoredTable(path) as table:
        found = {}
        for layer_id in table.layer_ids:
            rows = np.arange(table.spec.layer(layer_id).n_rows)
            pieces = []
            for part_idx, part in enumerate(table.parts):
                spots = table.locate(layer_id, rows, part_idx)
                starts = zip(*spots, strict=True)
                pieces.append(np.stack([table.mapping(file)[at : at + part.n_bytes] for file, at in starts]))
            found[layer_id] = np.concatenate(pieces, axis=1)
        return found


@pytest.mark.parametrize("codec", FRESH_CODEC_NAMES)
@pytest.mark.parametrize("layout", ["packed", "page"])
@pytest.mark.parametrize("init", ["normal", "zeros"])
def test_planned_bytes_are_written_bytes(tmp_path: Path, codec: str, layout: str, init: str) -> None:
    plan = small_plan(codec=codec, layout=layout, init=init, shard_bytes=9000)
    build_table(plan, tmp_path / "t")
    found = {name: len(data) for name, data in tree(tmp_path / "t").items()}
    assert found == {file.path: file.file_bytes for file in plan.files}
    assert sum(found.values()) == plan.total_bytes
    assert names_in(tmp_path) == ["t"]


@pytest.mark.parametrize("layout", ["packed", "page"])
def test_same_rows_for_any_shard_size_and_same_files_for_any_threads(tmp_path: Path, layout: str) -> None:
    expected = records_of(small_table(tmp_path / "one", layout=layout, shard_bytes=2**30))
    assert expected[1].shape == (101, 64)
    for shard_bytes in (8192, 9000, 12288):
        found = records_of(small_table(tmp_path / f"s{shard_bytes}", layout=layout, shard_bytes=shard_bytes))
        assert all(np.array_equal(found[layer_id], expected[layer_id]) for layer_id in expected)
    plan = small_plan(layout=layout, shard_bytes=9000)
    for threads in (1, 3, 8):
        build_table(plan, tmp_path / f"t{threads}", threads=threads)
    assert tree(tmp_path / "t1") == tree(tmp_path / "t3") == tree(tmp_path / "t8")


@pytest.mark.parametrize("layout", ["packed", "page"])
@pytest.mark.parametrize("block_bytes", [4096, 8192, 2**24])
def test_same_rows_for_any_block_size(tmp_path: Path, layout: str, block_bytes: int) -> None:
    spec = small_spec(997, layer_ids=(1,), row_width=96)
    one = records_of(small_table(tmp_path / "a", spec, codec="fp8-e4m3-e8m0", layout=layout, block_bytes=block_bytes))
    two = records_of(small_table(tmp_path / "b", spec, codec="fp8-e4m3-e8m0", layout="packed", block_bytes=2**20))
    assert np.array_equal(one[1], two[1])


LAYOUTS = ["packed", "page", "aligned-8", "aligned-512", "aligned-4096", "split"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shard_bytes", [2**13 + 2**12, 2**30])
def test_the_files_are_those_that_lie_there_when_each_is_made_in_one_piece(
    tmp_path: Path, layout: str, shard_bytes: int
) -> None:
    spec = small_spec(997, row_width=96)
    plan = small_plan(spec, codec="fp8-e4m3-e8m0", layout=layout, shard_bytes=shard_bytes)
    build_table(plan, tmp_path / "built", threads=3)
    one = records_of(small_table(tmp_path / "one", spec, codec="fp8-e4m3-e8m0", block_bytes=2**24))
    empty = small_manifest(plan.manifest.spec, codec="fp8-e4m3-e8m0", layout=layout, init=plan.manifest.init)
    lay_table(tmp_path / "laid", empty, one, shard_bytes=shard_bytes)
    assert tree(tmp_path / "built") == tree(tmp_path / "laid")


@pytest.mark.parametrize("layout", ["packed", "page"])
def test_the_safetensors_package_reads_the_same_records(tmp_path: Path, layout: str) -> None:
    path = small_table(tmp_path / "t", layout=layout, shard_bytes=8192 + 4096)
    expected = records_of(path)
    with StoredTable(path) as table:
        for shard in table.manifest.shards:
            tensors = load_file(path / shard.path)
            assert list(tensors) == ["records"]
            cells = tensors["records"]
            records = cells[:, : 4096 // 64 * 64].reshape(-1, 64) if layout == "page" else cells
            wanted = expected[shard.layer_id][shard.first_row : shard.first_row + shard.n_rows]
            assert np.array_equal(records[: shard.n_rows], wanted)


def test_manifest_says_everything_about_the_files(tmp_path: Path) -> None:
    path = small_table(tmp_path / "t", shard_bytes=9000)
    body = json.loads((path / "engram.json").read_text())
    assert body["schema"] == "engram.table/2"
    assert "e+" not in (path / "engram.json").read_text()
    assert str(tmp_path) not in (path / "engram.json").read_text()
    for shard in body["shards"]:
        data = (path / shard["path"]).read_bytes()
        assert len(data) == shard["file_bytes"]
        assert shard["data_offset"] % 4096 == 0
        assert hashlib.sha256(data[: shard["data_offset"]]).hexdigest() == shard["header_sha256"]
        blocks = [data[k : k + 4096] for k in range(0, len(data), 4096)]
        assert [hashlib.sha256(block).hexdigest() for block in blocks] == shard["block_sha256"]


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    @contextmanager
    def stage(task: str, unit: str) -> Iterator[ProgressHook]:
        assert (task, unit) == ("building", "B")
        yield lambda done, total: seen.append((done, total))

    build_table(small_plan(), tmp_path / "t", threads=1, stage=stage)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_bytes": 4096}, "4096 bytes, expected 4160"),
        ({"codec": "q8"}, "q8"),
        ({"codec": "iq4_nl"}, "decode only"),
        ({"codec": "fp8-e4m3-scalar"}, "scale"),
        ({"codec": "f16", "std": "1e9"}, "smaller std"),
        ({"layout": "split"}, "split"),
        ({"layout": "planar"}, "planar"),
        ({"row_width": 64}, "found 64, expected 32"),
        ({"codec": "fp8-e4m3-e8m0", "spec": small_spec(row_width=40)}, "40 values"),
        ({"spec": small_spec(row_width=None)}, "row-width"),
        ({"layout": "page", "codec": "f32", "spec": small_spec(row_width=1025)}, "4100 bytes"),
        ({"shard_bytes": 8192, "spec": small_spec(10**8)}, "99999"),
    ],
)
def test_plans_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        small_plan(**options)


def test_row_width_may_come_from_the_caller(tmp_path: Path) -> None:
    path = small_table(tmp_path / "t", small_spec(row_width=None), row_width=16)
    with StoredTable(path) as table:
        assert (table.spec.row_width, table.row_bytes) == (16, 32)


def test_names_that_are_taken(tmp_path: Path) -> None:
    plan = small_plan()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    (tmp_path / "link").symlink_to(tmp_path / "t")
    for name in ("t", "file", "link"):
        with pytest.raises(InvalidInput, match="exists already"):
            build_table(plan, tmp_path / name)
        with pytest.raises(InvalidInput, match="no table"):
            build_table(plan, tmp_path / name, force=True)
    with pytest.raises(InvalidInput, match="does not exist"):
        build_table(plan, tmp_path / "no" / "t")
    assert names_in(tmp_path) == ["file", "link", "t"]
    assert (tmp_path / "t" / "mine.txt").read_text() == "dear"


def test_force_replaces_in_one_step_and_an_open_table_keeps_its_bytes(tmp_path: Path) -> None:
    path = small_table(tmp_path / "t", seed=1)
    old = records_of(path)
    with StoredTable(path) as table:
        build_table(small_plan(seed=2), path, force=True)
        assert names_in(tmp_path) == ["t"]
        shard, file = table.manifest.shards[0], table.files[0]
        data = os.pread(file.fd, file.file_bytes, 0)
        assert np.array_equal(np.frombuffer(data, np.uint8)[shard.data_offset :].reshape(-1, 64), old[1])
        assert np.array_equal(table.mapping(0)[shard.data_offset :].reshape(-1, 64), old[1])
    assert not np.array_equal(records_of(path)[1], old[1])


def test_too_little_room_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    plan = small_plan(small_spec(2**41, layer_ids=(1,)), shard_bytes=2**40, block_bytes=2**30)
    with pytest.raises(CapacityError, match="free, expected 128"):
        build_table(plan, tmp_path / "t")
    assert names_in(tmp_path) == []


def test_vocabulary_is_copied_and_bound(tmp_path: Path, vocabulary_file: Path) -> None:
    vocabulary = load_vocabulary(vocabulary_file)
    spec = small_spec()
    object.__setattr__(spec, "canonical_size", vocabulary.canonical_size)
    path = small_table(tmp_path / "t", spec, vocabulary_file=vocabulary_file)
    assert (path / "vocab.parquet").read_bytes() == vocabulary_file.read_bytes()
    with StoredTable(path) as table:
        assert table.spec.vocab_sha256 == vocabulary.map_sha256
        own = table.vocabulary()
        assert own is not None
        assert np.array_equal(own.canonical_ids, vocabulary.canonical_ids)


def test_vocabulary_of_another_spec_is_refused(vocabulary_file: Path) -> None:
    vocabulary = load_vocabulary(vocabulary_file)
    with pytest.raises(SpecMismatch, match="1,000"):
        small_plan(vocabulary_file=vocabulary_file)
    spec = small_spec(vocab="a" * 64)
    object.__setattr__(spec, "canonical_size", vocabulary.canonical_size)
    with pytest.raises(SpecMismatch, match=f"{'a' * 64}.*{vocabulary.map_sha256}"):
        small_plan(spec, vocabulary_file=vocabulary_file)


class Failure:
    """Raises in the k-th call of the functions it stands for; counts them all."""

    def __init__(self, fail_at: int, error: type[BaseException] = OSError) -> None:
        self.calls = 0
        self.fail_at = fail_at
        self.error = error

    def wrap(self, function):
        def called(*args, **kwargs):
            self.calls += 1
            if self.calls - 1 == self.fail_at:
                raise self.error(5, "made to fail")
            return function(*args, **kwargs)

        return called

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("pwrite", "write", "fsync", "posix_fallocate", "ftruncate", "rename", "replace", "mkdir"):
            patch.setattr(os, name, self.wrap(getattr(os, name)))
        patch.setattr(files, "_rename", self.wrap(files._rename))


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("force", [False, True])
def test_a_failure_at_any_step_leaves_all_or_nothing(tmp_path: Path, force: bool, error: type[BaseException]) -> None:
    plan = small_plan(shard_bytes=9000)
    target = tmp_path / "t"
    new = tree(small_table(tmp_path / "wanted", shard_bytes=9000))
    small_table(tmp_path / "before", seed=77)
    before = tree(tmp_path / "before")
    n_resumed = 0
    for fail_at in range(1000):
        if force:
            shutil.copytree(tmp_path / "before", target)
        failure = Failure(fail_at, error)
        with pytest.MonkeyPatch.context() as patch:
            failure.install(patch)
            try:
                build_table(plan, target, threads=1, force=force)
            except (error, BackendUnavailable):
                has_failed = True
            else:
                has_failed = False
        found = tree(target) if target.exists() else None
        assert found in ([before, new] if force else [None, new])
        assert has_failed or found == new
        if failure.calls <= fail_at:
            break
        if found != new:
            n_resumed += build_table(plan, target, threads=1, force=force).n_blocks_reused > 0
            assert tree(target) == new
            assert names_in(tmp_path) == ["before", "t", "wanted"]
        shutil.rmtree(target)
        shutil.rmtree(tmp_path / "t.work", ignore_errors=True)
    assert fail_at > 40
    assert n_resumed > 10


def test_a_stopped_build_goes_on_where_it_was(tmp_path: Path) -> None:
    plan = small_plan(small_spec(20_000))
    new = tree(small_table(tmp_path / "wanted", small_spec(20_000)))
    with pytest.MonkeyPatch.context() as patch:
        failure = Failure(400)
        patch.setattr(os, "pwrite", failure.wrap(os.pwrite))
        with pytest.raises(OSError, match="made to fail") as caught:
            build_table(plan, tmp_path / "t", threads=2)
    assert f"of 628 blocks are finished and stay in {tmp_path / 't.work'}" in "".join(caught.value.__notes__)
    with pytest.raises(InvalidInput, match="work of another run"):
        build_table(small_plan(small_spec(20_000), seed=6), tmp_path / "t")
    with pytest.raises(CapacityError, match="too little for one thread"):
        build_table(plan, tmp_path / "t", memory_bytes=2**20)
    report = build_table(plan, tmp_path / "t", threads=3)
    assert 300 < report.n_blocks_reused < report.n_blocks == 628
    assert tree(tmp_path / "t") == new
    assert names_in(tmp_path) == ["t", "wanted"]


def stopped_build(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", Failure(8).wrap(os.pwrite))
        with pytest.raises(OSError, match="made to fail"):
            build_table(small_plan(shard_bytes=9000), path, threads=1)


@pytest.mark.parametrize(
    "damage",
    ["block", "journal-cut", "journal-flip", "shorter", "longer", "missing", "directory", "manifest", "restart"],
)
def test_what_is_left_is_not_believed_but_looked_at(tmp_path: Path, damage: str) -> None:
    new = tree(small_table(tmp_path / "wanted", shard_bytes=9000))
    stopped_build(tmp_path / "t")
    work = tmp_path / "t.work"
    shard, journal = next(work.rglob("*.safetensors")), work / "journal"
    data, lines = bytearray(shard.read_bytes()), journal.read_bytes()
    match damage:
        case "block":
            data[5000] ^= 1
            shard.write_bytes(data)
        case "journal-cut":
            journal.write_bytes(lines[:-30])
        case "journal-flip":
            journal.write_bytes(bytes(byte ^ (at % 97 == 5) for at, byte in enumerate(lines)))
        case "shorter":
            shard.write_bytes(data[:5000])
        case "longer":
            shard.write_bytes(data + b"more")
        case "missing":
            shard.unlink()
        case "directory":
            shutil.rmtree(work / "table")
        case "manifest":
            (work / "table" / "engram.json").write_text("{}")
    build_table(small_plan(shard_bytes=9000), tmp_path / "t", restart=damage == "restart")
    assert tree(tmp_path / "t") == new
    assert names_in(tmp_path) == ["t", "wanted"]


def test_a_failed_flush_leaves_nothing_to_be_believed(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        real, failed = os.fsync, []

        def fsync(fd: int) -> None:
            name = str(Path(f"/proc/self/fd/{fd}").readlink())
            if name.endswith("rows-00002-of-00002.safetensors") and not failed:
                failed.append(name)
                raise OSError(5, "made to fail")
            real(fd)

        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="made to fail"):
            build_table(small_plan(shard_bytes=9000), tmp_path / "t", threads=1)
    assert not Path(failed[0]).exists()
    build_table(small_plan(shard_bytes=9000), tmp_path / "t")
    assert tree(tmp_path / "t") == tree(small_table(tmp_path / "wanted", shard_bytes=9000))


def test_an_error_in_a_worker_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(small_spec(20_000))
    made = []

    def fail(*_: object) -> memoryview:
        made.append(1)
        raise RuntimeError("worker")

    monkeypatch.setattr(blocks._BlockMaker, "make", fail)
    with pytest.raises(RuntimeError, match="worker"):
        build_table(plan, tmp_path / "t", threads=4)
    assert len(made) <= 8
    assert names_in(tmp_path) == []


def test_published_sizes() -> None:
    from engram_tables.address.presets import load_spec

    spec = load_spec("deepseek-v4.1-flash")
    plan = plan_table(spec, codec="fp8-e4m3-e8m0", layout="packed", init="normal")
    assert plan.n_rows == 768_022_850
    data = sum(s.file_bytes - s.data_offset for s in plan.manifest.shards)
    assert data == 202_758_032_400


@pytest.mark.parametrize("name", ["letter.txt", "layer-01/letter.txt", "layer-01/model.safetensors", "photos/a.jpg"])
def test_force_removes_nothing_that_is_not_the_tables_own(name: str, tmp_path: Path) -> None:
    path = tmp_path / "table"
    build_table(small_plan(), path)
    letter = path / name
    letter.parent.mkdir(exist_ok=True)
    letter.write_bytes(b"dear")
    with pytest.raises(InvalidInput, match="expected its own files alone"):
        build_table(small_plan(seed=2), path, force=True)
    assert letter.read_bytes() == b"dear"
