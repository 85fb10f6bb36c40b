"""Traces: what is written is what the spec says, whole or not at all, and nothing else opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic_specs import Tokens, small_specs, traffic_reference

from engram_tables.address import reference
from engram_tables.address.hashing import exact_keys
from engram_tables.corpus.traffic import trace as trace_module
from engram_tables.corpus.traffic import trace_writer
from engram_tables.corpus.traffic.trace import Trace, open_trace
from engram_tables.corpus.traffic.trace_contents import Store
from engram_tables.corpus.traffic.trace_writer import plan_trace, run_trace
from engram_tables.errors import InvalidInput

SPECS = small_specs()
RUN = [[4, 4, 1, -1, 7, 9, 2], [], [3, 0, 11, 11, 5, -1, -1], [8], []]
documents = st.lists(st.lists(st.integers(-1, 11), max_size=9), max_size=5).filter(lambda run: sum(map(len, run)) > 0)


def written(path: Path, spec_name: str, run: list[list[int]], store: str = "keys", **options: Any) -> Trace:
    plan = plan_trace(SPECS[spec_name], Tokens(run), None, output=path, store=store, **options)
    run_trace(plan)
    sizes = {entry.name: entry.stat().st_size for entry in path.iterdir() if entry.name != "trace.json"}
    assert sizes == dict(plan.files)
    return open_trace(path)


def check(trace: Trace, run: list[list[int]]) -> None:
    spec = trace.spec
    n_tokens = sum(map(len, run))
    expected = [[reference.address(spec, layer, document) for layer in spec.layers] for document in run]
    rows = [
        [of_layer[0][position] for of_layer in of_document]
        for of_document, document in zip(expected, run, strict=True)
        for position in range(len(document))
    ]
    keys = [
        [of_layer[1][position] for of_layer in of_document]
        for of_document, document in zip(expected, run, strict=True)
        for position in range(len(document))
    ]
    assert trace.document_starts.tolist() == np.cumsum([0, *map(len, run)]).tolist()
    assert trace.dead.tolist() == [at for at, token in enumerate(t for d in run for t in d) if token < 0]
    for start, stop in {(0, n_tokens), (n_tokens // 3, n_tokens // 2), (n_tokens, n_tokens), (0, 1)}:
        assert trace.rows(start, stop).tolist() == rows[start:stop]
        if trace.store is not Store.ROWS:
            assert exact_keys(trace.keys(start, stop)) == keys[start:stop]


@pytest.mark.parametrize("spec_name", SPECS)
@settings(deadline=None, max_examples=8)
@given(run=documents, store=st.sampled_from(["ids", "keys", "rows", "both"]))
def test_every_store_gives_the_references_rows_and_keys(
    spec_name: str, run: list[list[int]], store: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("traces") / "trace"
    with written(path, spec_name, run, store) as trace:
        check(trace, run)
        trace.verify()


@pytest.mark.parametrize(("store", "shard_bytes"), [("ids", 40), ("keys", 300), ("both", 300)])
def test_shards_and_chunks_are_seams_that_do_not_show(
    store: str, shard_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(trace_writer, "_CHUNK_TOKENS", 4)
    with written(tmp_path / "trace", "xor", RUN * 3, store) as trace:
        assert len(list((tmp_path / "trace").glob("shard-*"))) > 2
        check(trace, RUN * 3)
    with pytest.raises(InvalidInput, match="expected one inside"):
        trace.rows(3, 2)


@pytest.mark.parametrize("spec_name", ["xor", "shared", "identity"])
def test_hits_are_those_of_the_reference(spec_name: str, tmp_path: Path) -> None:
    trace = written(tmp_path / "trace", spec_name, RUN, "none", hits=True)
    found = traffic_reference(trace.spec, RUN)
    for layer in trace.spec.layers:
        expected = np.zeros(layer.n_rows, np.int64)
        for column in range(trace.spec.n_columns):
            for row, n in found[layer.layer_id, column][0].items():
                expected[layer.offsets[column] + row] += n
        assert trace.hits(layer.layer_id).tolist() == expected.tolist()
    with pytest.raises(InvalidInput, match="hits of layer 99 are not there"):
        trace.hits(99)


def test_threads_change_no_byte(tmp_path: Path) -> None:
    run = [list(np.random.default_rng(at).integers(0, 12, 700)) for at in range(100)]
    for threads in (1, 3):
        written(tmp_path / str(threads), "xor", run, "both", hits=True, threads=threads)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "3" / path.name).read_bytes()


def test_rows_are_stored_in_the_narrowest_integers(tmp_path: Path) -> None:
    written(tmp_path / "wide-rows", "xor", RUN, "rows")
    written(tmp_path / "narrow-rows", "salted", RUN, "rows")
    assert np.load(tmp_path / "wide-rows" / "shard-00000.rows.npy", mmap_mode="r").dtype == np.uint32
    assert np.load(tmp_path / "narrow-rows" / "shard-00000.rows.npy").dtype == np.uint16


def test_rows_alone_have_no_keys(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="keys do not follow"):
        written(tmp_path / "trace", "xor", RUN, "rows").keys(0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": None}, "found no output directory"),
        ({"store": "none"}, "found nothing to write"),
        ({"tokens": Tokens([])}, "found none"),
    ],
)
def test_what_cannot_be_written_is_refused_first(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    given_ = {"tokens": Tokens(RUN), "output": tmp_path / "trace"} | options
    with pytest.raises(InvalidInput, match=message):
        plan_trace(SPECS["xor"], given_.pop("tokens"), None, **given_)


def test_a_wrong_id_leaves_nothing_behind(tmp_path: Path) -> None:
    plan = plan_trace(SPECS["xor"], Tokens([[1, 2], [3, 12]]), None, output=tmp_path / "trace")
    with pytest.raises(InvalidInput, match="position 3: found 12, expected 0 to 11"):
        run_trace(plan)
    assert list(tmp_path.iterdir()) == []


def test_only_a_trace_is_replaced(tmp_path: Path) -> None:
    written(tmp_path / "trace", "xor", RUN, "ids")
    with pytest.raises(InvalidInput, match="exists already"):
        written(tmp_path / "trace", "xor", RUN)
    plan = plan_trace(SPECS["xor"], Tokens(RUN), None, output=tmp_path / "trace", force=True)
    run_trace(plan, force=True)
    assert open_trace(tmp_path / "trace").store is Store.KEYS
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InvalidInput, match="no trace"):
        plan_trace(SPECS["xor"], Tokens(RUN), None, output=tmp_path / "other", force=True)


def test_a_cut_or_missing_file_is_refused(tmp_path: Path) -> None:
    trace = written(tmp_path / "trace", "xor", RUN, "both", hits=True)
    trace.close()
    for path in sorted((tmp_path / "trace").glob("s*.npy")):
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole + b"\0", b"", whole[:127], whole[:20] + b"?" + whole[21:]):
            path.write_bytes(damaged)
            with pytest.raises(InvalidInput, match="damaged"):
                open_trace(tmp_path / "trace")
        path.write_bytes(whole)
    open_trace(tmp_path / "trace").verify()


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    written(tmp_path / "trace", "xor", RUN, "ids").close()
    for path in sorted((tmp_path / "trace").iterdir()):
        whole = path.read_bytes()
        for at in range(0, len(whole), 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(InvalidInput):
                open_trace(tmp_path / "trace").verify()
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "engram.trace/9"}, "found schema"),
        ({"n_tokens": -1}, "n_tokens is -1"),
        ({"n_tokens": 2**60}, "n_tokens is"),
        ({"n_tokens": 2**50}, "damaged|expected"),
        ({"n_dead": True}, "n_dead is True"),
        ({"n_documents": 2**52}, "expected"),
        ({"shard_tokens": 0}, "tokens a shard"),
        ({"store": "all"}, "store is 'all'"),
        ({"hits": [{"layer_id": 0, "dtype": "O"}]}, "hits are no list"),
        ({"files": [{"name": "../x.npy", "file_bytes": 1, "sha256": ""}]}, "files are no list"),
        ({"fingerprint": "0"}, "fingerprint"),
        ({"spec": {}}, "spec|trace.json"),
    ],
)
def test_a_manifest_that_lies_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    written(tmp_path / "trace", "xor", RUN).close()
    path = tmp_path / "trace" / "trace.json"
    manifest = json.loads(path.read_bytes()) | change
    manifest["manifest_sha256"] = trace_module.content_digest(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match=message):
        open_trace(tmp_path / "trace")
