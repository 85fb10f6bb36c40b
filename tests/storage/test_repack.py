"""Tables made from released ones: the same records in every layout, by ranks, re-encoded, and from what may change."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_checkpoints import MAKERS, make_deepseek, make_qwen, make_raw
from numpy.typing import NDArray
from range_server import RangeServer
from small_tables import lay_table, names_in, small_manifest, small_spec

from engram_tables.address.vocabulary import Rule, Vocabulary
from engram_tables.corpus.counts.count_corpus import plan_count, run_count
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.errors import CapacityError, CorruptTable, InvalidInput, NotATable
from engram_tables.storage.building.repack import plan_ranks, plan_repack
from engram_tables.storage.building.writer import build_table, build_tables
from engram_tables.storage.checking.verify import verify_tables
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.export.exporting import export_table, plan_export
from engram_tables.storage.sides import Opening, open_side
from engram_tables.storage.sources.opening import RawGeometry, open_source
from engram_tables.storage.sources.source import Source, closing
from engram_tables.storage.table.ranks import Rank, check_ranks, with_ranks
from engram_tables.storage.table.reader import StoredTable
from engram_tables.units import ProgressHook

SMALL = {"block_bytes": 4096, "shard_bytes": 24 * 1024}


def records_of(table: StoredTable, layer_id: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    pieces = []
    for part_idx, part in enumerate(table.parts):
        spots = zip(*table.locate(layer_id, rows, part_idx), strict=True)
        pieces.append([table.mapping(file)[at : at + part.n_bytes] for file, at in spots])
    return np.concatenate([np.stack(stretches) for stretches in pieces], axis=1)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("form", MAKERS)
def test_every_form_comes_through_with_its_bytes(tmp_path: Path, form: str) -> None:
    made = MAKERS[form](tmp_path / "made")
    with closing(open_source(made.path, opaque=True)) as source:
        for layout in ("packed", "page", "aligned-64", "split"):
            if layout == "split" and len(source.codec.sections(made.row_width)) == 1:
                continue
            path = tmp_path / layout
            build_table(plan_repack(source, layout=layout, **SMALL), path, threads=3)
            with StoredTable(path) as table:
                assert table.manifest.codec == made.codec
                assert table.manifest.codec_scale_bits == made.scale_bits
                assert table.spec.fingerprint == source.spec.fingerprint
                for layer_id, records in made.records.items():
                    np.testing.assert_array_equal(records_of(table, layer_id, np.arange(len(records))), records)
            assert verify_tables([path], against=source).is_whole


def test_a_table_is_a_source_too(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        build_table(plan_repack(source, layout="page", **SMALL), tmp_path / "page")
        build_table(plan_repack(source, layout="split", **SMALL), tmp_path / "split")
    with open_side(tmp_path / "page") as side:
        build_table(plan_repack(side.source, origin=side.manifest, layout="split", **SMALL), tmp_path / "again")
        plan = plan_repack(side.source, origin=side.manifest, layout="split")
        with pytest.raises(InvalidInput, match="lies inside"):
            build_table(plan, tmp_path / "page" / "inside")
    assert tree(tmp_path / "again") == tree(tmp_path / "split")


def test_what_a_fresh_table_says_of_its_rows_is_said_again_unless_they_change(tmp_path: Path) -> None:
    empty = small_manifest(init={"kind": "zeros"})
    path = lay_table(tmp_path / "t", empty, {layer: np.zeros((101, 64), np.uint8) for layer in (1, 14)})
    with open_side(path) as side:
        assert plan_repack(side.source, origin=side.manifest, layout="page").manifest.init == {"kind": "zeros"}
        changed = plan_repack(side.source, origin=side.manifest, layout="page", codec="q8_0").manifest
        assert (changed.init, changed.source) == (None, None)


@pytest.mark.parametrize("by", ["head", "rows", "layer"])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])
def test_ranks_hold_every_row_once(tmp_path: Path, by: str, n_ranks: int) -> None:
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        plans = plan_ranks(source, by=by, n_ranks=n_ranks, layout="packed", **SMALL)
        build_tables(plans, tmp_path / "out", threads=2)
        assert names_in(tmp_path / "out") == [f"rank-{rank}-of-{n_ranks}" for rank in range(n_ranks)]
        alone = plan_repack(source, rank=Rank(by=by, rank=n_ranks - 1, n_ranks=n_ranks), layout="packed", **SMALL)
        build_table(alone, tmp_path / "alone")
    assert tree(tmp_path / "alone") == tree(tmp_path / "out" / f"rank-{n_ranks - 1}-of-{n_ranks}")
    owned = []
    for name in plans:
        with StoredTable(tmp_path / "out" / name) as table:
            owned.append({layer_id: table.owned(layer_id) for layer_id in table.layer_ids})
            assert table.manifest.rank is not None
            for layer_id, records in made.records.items():
                rows = [row for start, stop in table.owned(layer_id) for row in range(start, stop)]
                if rows:
                    found = records_of(table, layer_id, np.array(rows))
                    np.testing.assert_array_equal(found, records[rows])
    assert check_ranks(source.spec, owned) == []


def test_layers_and_rows_alone(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        build_table(plan_repack(source, layout="page", layers=[3], rows=(7, 300), **SMALL), tmp_path / "t")
        assert len(made.records[1]) > 300
        for rows in ((5, 5), (9, 3), (0, 10**6)):
            with pytest.raises(InvalidInput, match="half-open range"):
                plan_repack(source, layout="page", rows=rows)
        with pytest.raises(InvalidInput, match="layer 4"):
            plan_repack(source, layout="page", layers=[4])
    with StoredTable(tmp_path / "t") as table:
        assert (table.owned(1), table.owned(3)) == ((), ((7, 300),))
        np.testing.assert_array_equal(records_of(table, 3, np.arange(7, 300)), made.records[3][7:300])


def test_rows_that_a_source_does_not_hold(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "made", n_parts=4, n_files=2)
    spec = open_source(made.path).spec
    with closing(open_source(made.files[0], spec=spec)) as source:
        ((start, stop),) = source.owned(1)[:1]
        with pytest.raises(InvalidInput, match=f"found no row {stop}.*fetch the files"):
            plan_repack(source, layout="packed")
        build_table(plan_repack(source, layout="packed", rows=(start, stop)), tmp_path / "t")


def test_a_source_that_changes_is_refused(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    source = open_source(made.path)
    plan = plan_repack(source, layout="packed", **SMALL)
    status = made.files[0].stat()
    os.utime(made.files[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(InvalidInput, match=f"{made.files[0].name} changed while it was read.*mtime_ns"):
        build_table(plan, tmp_path / "t")
    assert names_in(tmp_path) == ["made"]
    source.close()


def stop_in_the_middle(plan: Any, path: Path, at_write: int = 12) -> None:
    calls, pwrite = [], os.pwrite

    def failing(*arguments: Any) -> int:
        calls.append(1)
        if len(calls) == at_write:
            raise OSError(5, "made to fail")
        return pwrite(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(OSError, match="made to fail"):
            build_table(plan, path, threads=1)


def test_a_source_that_changed_in_between_or_in_the_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        stop_in_the_middle(plan_repack(source, layout="packed", **SMALL), tmp_path / "t")
    assert names_in(tmp_path) == ["made", "t.work"]
    os.utime(made.files[0])
    with closing(open_source(made.path)) as source:
        plan = plan_repack(source, layout="packed", **SMALL)
        with pytest.raises(InvalidInput, match=f"first {made.files[0].name} .mtime_ns was"):
            build_table(plan, tmp_path / "t")
        assert names_in(tmp_path) == ["made", "t.work"]

        def touching(*arguments: Any) -> int:
            os.utime(made.files[1])
            return pwrite(*arguments)

        pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", touching)
        with pytest.raises(InvalidInput, match="changed while it was read"):
            build_table(plan, tmp_path / "t", restart=True)
        monkeypatch.undo()
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("codec", [None, "q8_0"])
@pytest.mark.parametrize("layout", ["page", "split"])
def test_a_resumed_repack_gives_the_same_bytes_and_the_same_report(
    tmp_path: Path, layout: str, codec: str | None
) -> None:
    made = make_deepseek(tmp_path / "made")
    codec = "int8-row" if codec is not None and layout == "split" else codec
    with closing(open_source(made.path)) as source:
        plan = plan_repack(source, layout=layout, codec=codec, **SMALL)
        whole = build_table(plan, tmp_path / "whole", threads=3)
        stop_in_the_middle(plan, tmp_path / "t")
        resumed = build_table(plan, tmp_path / "t", threads=2)
    assert resumed.n_blocks_reused > 5
    assert tree(tmp_path / "t") == tree(tmp_path / "whole")
    assert resumed.manifests == whole.manifests
    assert resumed.fidelity == whole.fidelity
    assert (whole.fidelity[0] is None) == (codec is None)


@pytest.mark.parametrize("layout", ["packed", "page", "split"])
@pytest.mark.parametrize("codec", ["int4-g32", "bf16", "f32", "int8-row", "q4_0"])
def test_rows_are_encoded_again_and_judged_once(tmp_path: Path, codec: str, layout: str) -> None:
    if layout == "split" and codec not in ("int4-g32", "int8-row"):
        pytest.skip("nothing to split")
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        (report,) = build_table(plan_repack(source, layout=layout, codec=codec, **SMALL), tmp_path / "t").fidelity
        assert verify_tables([tmp_path / "t"], against=source).is_whole
        with pytest.raises(InvalidInput):
            plan_repack(source, layout=layout, codec="iq4_nl")
    assert report is not None
    for layer_id, records in made.records.items():
        values = get_codec(made.codec).decode(records)
        with StoredTable(tmp_path / "t") as table:
            found = records_of(table, layer_id, np.arange(len(records)))
        np.testing.assert_array_equal(found, get_codec(codec).encode(values))
        errors = get_codec(codec).decode(found).astype(np.float64) - values
        total = report.total(layer_id=layer_id)
        assert (total.n_rows, total.n_values) == (len(records), values.size)
        assert total.n_rows_changed == int((errors != 0).any(axis=1).sum())
        assert total.largest_error == np.abs(errors).max()
        assert total.squared_error == pytest.approx((errors**2).sum())
        assert {key for key in report.tallies if key[0] == layer_id} == {(layer_id, head) for head in range(4)}
    assert report.weighted == {}


def test_bytes_that_nobody_decodes_are_copied_and_not_encoded(tmp_path: Path) -> None:
    made = MAKERS["qwen-nvfp4"](tmp_path / "made")
    with (
        closing(open_source(made.path, opaque=True)) as source,
        pytest.raises(InvalidInput, match="which no codec decodes"),
    ):
        plan_repack(source, layout="packed", codec="bf16")


def test_values_that_the_new_codec_cannot_hold_are_named(tmp_path: Path) -> None:
    spec = small_spec(layer_ids=(1,))
    values = np.zeros((101, 32), np.float32)
    values[77, 5] = 1e30
    raw = make_raw(tmp_path / "rows.bin", values.view(np.uint8))
    with closing(open_source(raw, spec=spec, raw=RawGeometry(codec="f32"))) as source:
        plan = plan_repack(source, layout="packed", codec="f16")
        with pytest.raises(InvalidInput, match="layer 1, of the rows from 0 on: row 77, column 5"):
            build_table(plan, tmp_path / "t")
    assert names_in(tmp_path) == ["rows.bin"]


@pytest.mark.parametrize("place", ["made", "made/t", "."])
def test_the_output_is_apart_from_the_source(tmp_path: Path, place: str) -> None:
    made = make_deepseek(tmp_path / "made")
    before = tree(tmp_path)
    with closing(open_source(made.path)) as source:
        plan = plan_repack(source, layout="packed")
        with pytest.raises(InvalidInput, match=r"exists already|lies inside|is no table|which is read"):
            build_table(plan, tmp_path / place, force=place != "made/t")
    assert tree(tmp_path) == before


def test_too_little_memory_is_named(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        plan = plan_repack(source, layout="packed")
        with pytest.raises(CapacityError, match="too little for one thread, expected 19"):
            build_table(plan, tmp_path / "t", memory_bytes=2**20)
    assert names_in(tmp_path) == ["made"]


@pytest.fixture
def counted(tmp_path: Path) -> tuple[Path, list[list[int]]]:
    """Counts of a few documents of ids below 1000, and the documents."""
    vocabulary = Vocabulary(
        rule=Rule.IDENTITY,
        canonical_ids=np.arange(1000, dtype=np.uint32),
        tokens=[],
        tokenizer_json=b"{}",
        source="a test",
    )
    rng = np.random.default_rng(0)
    documents = [rng.zipf(1.3, n).clip(0, 999).tolist() for n in (0, 1, 2, 700, 2000)]
    write_tokens(
        tmp_path / "tokens", documents, token_size=1000, tokenizer_sha256=vocabulary.tokenizer_sha256, shard_documents=2
    )
    plan = plan_count([tmp_path / "tokens"], vocabulary=vocabulary, orders=[2], output=tmp_path / "counts")
    run_count(plan)
    return tmp_path / "counts", documents


def raw_source(tmp_path: Path, spec: Any) -> tuple[Source, NDArray[np.float32]]:
    values = np.random.default_rng(1).normal(size=(spec.layers[0].n_rows, 32)).astype(np.float32)
    raw = make_raw(tmp_path / "rows.bin", values.view(np.uint8))
    return open_source(raw, spec=spec, raw=RawGeometry(codec="f32")), values


def test_rows_weigh_as_often_as_a_corpus_looks_them_up(tmp_path: Path, counted: tuple[Path, list[list[int]]]) -> None:
    path, documents = counted
    spec = small_spec(layer_ids=(1,))
    source, values = raw_source(tmp_path, spec)
    with closing(source), open_counts(path) as counts:
        plan = plan_repack(source, layout="packed", codec="q8_0", counts=counts, **SMALL)
        stop_in_the_middle(plan, tmp_path / "t", at_write=3)
        (report,) = build_table(plan, tmp_path / "t").fidelity
        with pytest.raises(InvalidInput, match="drop --counts"):
            plan_repack(source, layout="packed", counts=counts)
    assert report is not None
    lookups: Counter[int] = Counter()
    for document in documents:
        if len(document) > 1:
            rows = spec.address(document).rows[1:, 0]
            lookups.update(rows.reshape(-1).tolist())
    errors = (get_codec("q8_0").decode(get_codec("q8_0").encode(values)).astype(np.float64) - values) ** 2
    total = report.total(weighted=True)
    assert total.n_rows == sum(lookups.values()) == 2 * 2699
    assert total.squared_error == pytest.approx(sum(n * errors[row].sum() for row, n in lookups.items()))
    assert names_in(tmp_path) == ["counts", "rows.bin", "t", "tokens"]


def test_counts_of_other_ngrams_are_refused(tmp_path: Path, counted: tuple[Path, list[list[int]]]) -> None:
    spec = small_spec(layer_ids=(1,))
    object.__setattr__(spec, "canonical_size", 999)
    source, _ = raw_source(tmp_path, spec)
    with (
        closing(source),
        open_counts(counted[0]) as counts,
        pytest.raises(InvalidInput, match="1,000 canonical ids, expected 999"),
    ):
        plan_repack(source, layout="packed", codec="q8_0", counts=counts)


def test_a_source_behind_a_url_is_resumed_block_by_block(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    name = made.files[0].name
    with closing(open_source(made.files[0], spec=open_source(made.path).spec)) as source:
        spec = source.spec
        build_table(plan_repack(source, layout="page", layers=[1], **SMALL), tmp_path / "local")
    with RangeServer(files={f"/{name}": made.files[0].read_bytes()}, tags={f"/{name}": '"one"'}) as server:
        url = f"{server.url}/{name}"
        with closing(open_source(url, spec=spec)) as source:
            stop_in_the_middle(plan_repack(source, layout="page", layers=[1], **SMALL), tmp_path / "t", at_write=8)
        before = server.asked_bytes()
        with closing(open_source(url, spec=spec)) as source:
            report = build_table(plan_repack(source, layout="page", layers=[1], **SMALL), tmp_path / "t", threads=2)
        table_bytes = made.records[1].nbytes
        assert report.n_blocks_reused >= 7
        assert server.asked_bytes() - before < table_bytes
        with closing(open_source(url, spec=spec)) as source:
            plan = plan_repack(source, layout="page", layers=[1], **SMALL)
            server.tags[f"/{name}"] = '"two"'
            with pytest.raises(InvalidInput):
                build_table(plan, tmp_path / "changed")
    assert tree(tmp_path / "t") == tree(tmp_path / "local")
    assert names_in(tmp_path) == ["local", "made", "t"]


def test_damage_is_not_vouched_for_by_new_digests(tmp_path: Path) -> None:
    """A table that is made from a damaged one would look whole for ever after."""
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        build_table(plan_repack(source, layout="packed", **SMALL), tmp_path / "table")
    shard = tmp_path / "table" / "layer-03" / "rows-00002-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-9000] ^= 4
    shard.write_bytes(data)
    block = (len(data) - 9000) // 4096
    checked = Opening(is_checked=True)
    with open_side(tmp_path / "table", checked) as side:
        plan = plan_repack(side.source, layout="page", origin=side.manifest, **SMALL)
        with pytest.raises(CorruptTable, match=rf"layer-03/rows-00002.*bytes {block * 4096} to {block * 4096 + 4095}"):
            build_table(plan, tmp_path / "again")
        # Blocks that are not read are not looked at.
        plan = plan_repack(side.source, layout="page", layers=[1], origin=side.manifest, **SMALL)
        build_table(plan, tmp_path / "first")
    with StoredTable(tmp_path / "table") as table, pytest.raises(CorruptTable, match="the table is damaged"):
        export_table(plan_export([table]), tmp_path / "exported")
    assert sorted(names_in(tmp_path)) == ["again.work", "first", "made", "table"]


def test_a_part_of_a_table_is_repacked_as_that_part(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        build_table(plan_repack(source, layout="packed", rank=Rank(by="head", rank=1, n_ranks=3)), tmp_path / "rank")
        build_table(plan_repack(source, layout="packed", layers=[3], rows=(5, 50)), tmp_path / "rows")
    for name in ("rank", "rows"):
        with open_side(tmp_path / name) as side:
            build_table(plan_repack(side.source, layout="page", origin=side.manifest), tmp_path / f"{name}-page")
            with pytest.raises(InvalidInput, match="found no row"):
                plan_repack(side.source, layout="page", rank=Rank(by="head", rank=0, n_ranks=3), origin=side.manifest)
        with StoredTable(tmp_path / name) as old, StoredTable(tmp_path / f"{name}-page") as new:
            assert new.manifest.owned == old.manifest.owned
            assert new.manifest.rank == old.manifest.rank
        assert verify_tables([tmp_path / f"{name}-page"]).is_whole


def test_links_in_a_work_directory_are_not_followed(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        plan = plan_repack(source, layout="packed", **SMALL)
        (tmp_path / "elsewhere").mkdir()
        work = tmp_path / "table.work"

        def stop(_done: int, _total: int) -> None:
            raise KeyboardInterrupt

        @contextmanager
        def stage(_name: str, _unit: str) -> Iterator[ProgressHook]:
            yield stop

        with pytest.raises(KeyboardInterrupt):
            build_table(plan, tmp_path / "table", threads=1, stage=stage)
        shutil.rmtree(work / "table" / "layer-01")
        (work / "table" / "layer-01").symlink_to(tmp_path / "elsewhere")
        build_table(plan, tmp_path / "table")
    assert names_in(tmp_path / "elsewhere") == []
    assert verify_tables([tmp_path / "table"]).is_whole


def test_what_differs_from_a_stopped_run_is_told_in_words(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        stop_in_the_middle(plan_repack(source, layout="packed", **SMALL), tmp_path / "t")
        with pytest.raises(
            InvalidInput, match=r"another run \(codec was 'fp8-e4m3-e8m0', now 'int4-g32'; n_files was 5"
        ):
            build_table(plan_repack(source, layout="packed", codec="int4-g32", **SMALL), tmp_path / "t")
        with pytest.raises(InvalidInput, match="for the whole table, expected the one of a source"):
            plan_repack(source, layout="packed", codec="fp8-e4m3-scalar")


def test_a_directory_of_ranks_is_no_table_and_says_what_it_holds(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        build_tables(plan_ranks(source, by="head", n_ranks=3, layout="packed"), tmp_path / "ranks")
    found = r"found the tables of 3 ranks in it \(rank-0-of-3 to rank-2-of-3\).*ranks/rank-\*"
    with pytest.raises(NotATable, match=found):
        StoredTable(tmp_path / "ranks")
    with pytest.raises(InvalidInput, match=found):
        open_source(tmp_path / "ranks")
    each = [tmp_path / "ranks" / f"rank-{rank}-of-3" for rank in range(3)]
    assert with_ranks([tmp_path / "ranks", each[1], tmp_path / "none"]) == [*each, each[1], tmp_path / "none"]
