"""A released table behind a URL is the same source as one on disk, and no byte around its rows is fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import Made, make_deepseek, make_gguf_deepseek, make_qwen
from range_server import RangeServer

from engram_tables.errors import InvalidInput
from engram_tables.storage.sources.opening import open_rows, open_source
from engram_tables.storage.sources.reading import read_records
from engram_tables.storage.sources.source import Source, closing


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer() as server:
        yield server


def serve(server: RangeServer, directory: Path) -> str:
    """The URL of a directory, with a listing."""
    names = sorted(path.name for path in directory.iterdir())
    for name in names:
        server.files[f"/model/{name}"] = (directory / name).read_bytes()
        server.tags[f"/model/{name}"] = f'"{name}"'
    server.files["/model/"] = "".join(f'<a href="{name}">{name}</a>' for name in names).encode()
    return f"{server.url}/model/"


def check_rows(source: Source, made: Made) -> None:
    for layer_id, records in made.records.items():
        out = np.zeros_like(records)
        read_records(source, layer_id, 0, out)
        assert np.array_equal(out, records)


@pytest.mark.parametrize("make", [make_deepseek, lambda path: make_qwen(path, codec="int4-g32")])
def test_a_remote_checkpoint_gives_the_same_rows(
    make: Callable[[Path], Made], server: RangeServer, tmp_path: Path
) -> None:
    made = make(tmp_path / "model")
    url = serve(server, made.path)
    with closing(open_source(made.path)) as here, closing(open_source(url)) as there:
        assert (there.parts, there.extents, there.tensors) == (here.parts, here.extents, here.tensors)
        assert there.spec.fingerprint == here.spec.fingerprint
        check_rows(there, made)
    with pytest.raises(InvalidInput, match="this machine"):
        open_rows(url)


def test_a_remote_gguf_gives_the_same_rows(server: RangeServer, tmp_path: Path) -> None:
    made = make_gguf_deepseek(tmp_path / "model" / "x.gguf")
    url = serve(server, made.path.parent)
    with closing(open_source(url + "x.gguf")) as source:
        check_rows(source, made)


def test_only_headers_and_the_rows_asked_for_are_fetched(server: RangeServer, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model", base=20_011)
    url = serve(server, made.path)
    with closing(open_source(url)) as source:
        opening_bytes = server.asked_bytes()
        assert opening_bytes < 20_000
        out = np.zeros((1000, source.row_bytes), np.uint8)
        read_records(source, 3, 500, out)
        assert np.array_equal(out, made.records[3][500:1500])
        assert server.asked_bytes() - opening_bytes == 1000 * source.row_bytes
