"""The same reports from behind a server: one that answers ranges, one that does not, one that fails half-way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_checkpoints import make_deepseek, make_gguf_deepseek
from range_server import RangeServer

from engram_tables.errors import InvalidInput
from engram_tables.inspect.header import inspect_header
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.source import closing


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer() as server:
        yield server


def serve(server: RangeServer, directory: Path) -> str:
    """The URL of a copy of `directory` on the server, without a listing."""
    for path in directory.rglob("*"):
        if path.is_file():
            name = f"/{directory.name}/{path.relative_to(directory)}"
            server.files[name] = path.read_bytes()
            server.tags[name] = f'"{path.name}"'
    return f"{server.url}/{directory.name}/"


def without_place(record: dict[str, Any]) -> dict[str, Any]:
    """A report but for where its files lie and what reading them took."""
    kept = {key: value for key, value in record.items() if key not in ("where", "bytes_read", "n_reads")}
    kept["files"] = [file | {"where": file["where"].rpartition("/")[2]} for file in record["files"]]
    kept["rows"] = [
        row | {"parts": [part | {"file": part["file"].rpartition("/")[2]} for part in row["parts"]]}
        for row in record["rows"]
    ]
    return kept


def test_a_checkpoint_is_the_same_from_its_headers_alone(server: RangeServer, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint", base=1009)
    rows = [(layer_id, len(records) - 1) for layer_id, records in made.records.items()]
    here = inspect_header(made.path, rows=rows)
    there = inspect_header(serve(server, made.path), rows=rows)
    assert without_place(there) == without_place(here)
    # Without a listing the index tells which files there are.
    assert here["bytes_read"] < there["bytes_read"] <= server.n_sent < 5000
    assert sum(file["file_bytes"] for file in there["files"]) > 400_000


def test_a_single_file_too(server: RangeServer, tmp_path: Path) -> None:
    made = make_gguf_deepseek(tmp_path / "checkpoint" / "model.gguf")
    url = serve(server, made.path.parent) + "model.gguf"
    assert without_place(inspect_header(url)) == without_place(inspect_header(made.path))


def test_a_table_of_ours_too(server: RangeServer, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint", base=1009)
    with closing(open_source(made.path)) as source:
        build_table(plan_repack(source, layout="split"), tmp_path / "table", threads=2)
    record = inspect_header(serve(server, tmp_path / "table"), rows=[(3, 77)])
    assert without_place(record) == without_place(inspect_header(tmp_path / "table", rows=[(3, 77)]))
    n_bytes = (tmp_path / "table" / "engram.json").stat().st_size + 4096 * 4
    assert record["bytes_read"] == n_bytes
    assert server.n_sent < n_bytes + 100


def test_a_server_that_ignores_ranges_is_refused_before_its_bodies(server: RangeServer, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    serve(server, made.path)
    name = f"/checkpoint/{made.files[0].name}"
    server.files[name] = server.files[name] + bytes(50_000_000)
    server.knows_ranges = False
    with pytest.raises(InvalidInput, match="ranges"):
        inspect_header(server.url + name)
    # What the two ends of a connection hold is sent before it is closed.
    assert server.n_sent < 20_000_000


def test_a_server_that_fails_half_way_is_asked_again(server: RangeServer, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    url = serve(server, made.path)
    expected = without_place(inspect_header(made.path))
    server.cut_after, server.n_cuts = 20, 3
    assert without_place(inspect_header(url)) == expected
    assert server.n_cuts == 0
    server.waits = [(429, "0"), (503, "0")]
    assert without_place(inspect_header(url)) == expected


def test_a_file_that_is_not_there_is_named(server: RangeServer, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    url = serve(server, made.path)
    with pytest.raises(InvalidInput, match="nothing-here"):
        inspect_header(f"{url}nothing-here.safetensors")
