"""Specs of models behind a URL: the same as of their files here, for the bytes of their headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from range_server import FileBytes, RangeServer
from released_files import (
    QWEN,
    QWEN_CONFIG,
    QWEN_TENSORS,
    V4,
    V4_CONFIG,
    qwen_arrays,
    qwen_entries,
    qwen_parts,
    v4_part,
    write_gguf,
    write_json,
    write_safetensors,
)

from engram_tables import load_spec
from engram_tables.address.released.models import spec_from_model
from engram_tables.byte_files import open_place
from engram_tables.errors import InvalidInput


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer() as server:
        yield server


def serve(server: RangeServer, directory: Path, *, is_listed: bool = True) -> str:
    """The URL of a directory, with or without a page of its files."""
    names = sorted(path.name for path in directory.iterdir())
    server.files = {f"/m/{name}": FileBytes(directory / name) for name in names}
    if is_listed:
        server.files["/m/"] = "".join(f'<a href="{name}">{name}</a>' for name in names).encode()
    return f"{server.url}/m/"


def header_spans(path: Path) -> list[tuple[int, int]]:
    """What the reader of headers needs."""
    n_header = int.from_bytes(FileBytes(path)[:8], "little")
    return [(0, 8), (8, 8 + n_header)]


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_checkpoint_of_203_gigabytes_for_its_headers(tmp_path: Path, server: RangeServer, is_listed: bool) -> None:
    tables = {"model-00047-of-00048.safetensors": v4_part(1), "model-00048-of-00048.safetensors": v4_part(14)}
    for name, tensors in tables.items():
        write_safetensors(tmp_path / name, tensors)
    assert (tmp_path / "model-00047-of-00048.safetensors").stat().st_size > 2**36
    write_json(tmp_path / "config.json", {"text_config": V4_CONFIG})
    weights = {tensor: name for name, tensors in tables.items() for tensor in tensors}
    write_json(tmp_path / "model.safetensors.index.json", {"metadata": {}, "weight_map": weights})
    url = serve(server, tmp_path, is_listed=is_listed)
    spec = spec_from_model(url)
    assert spec.fingerprint == load_spec(V4).fingerprint
    assert spec.provenance == "config.json, held against the tensors of m"
    for name in tables:
        assert server.spans(f"/m/{name}") == header_spans(tmp_path / name)
    assert server.n_sent < 10_000
    (one,) = (spec_from_model(f"{url}{name}") for name in list(tables)[:1])
    assert one.fingerprint == spec.fingerprint


def test_constants_are_fetched_and_tables_are_not(tmp_path: Path, server: RangeServer) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", qwen_parts())
    write_json(tmp_path / "config.json", QWEN_CONFIG)
    assert spec_from_model(serve(server, tmp_path, is_listed=False)).fingerprint == load_spec(QWEN).fingerprint
    spans = server.spans("/m/model.safetensors")
    assert spans[:2] == header_spans(path)
    arrays = [array.nbytes for array in qwen_arrays().values() if isinstance(array, np.ndarray)]
    assert sorted(stop - start for start, stop in spans[2:]) == sorted(arrays)


def test_a_config_alone_and_what_lies_beside_it(tmp_path: Path, server: RangeServer) -> None:
    write_json(tmp_path / "config.json", V4_CONFIG)
    url = serve(server, tmp_path)
    for where in (url, f"{url}config.json", open_place(url), open_place(f"{url}config.json")):
        spec = spec_from_model(where)
        assert (spec.fingerprint, spec.name) == (load_spec(V4).fingerprint, "m")
    server.files["/m/x.bin"] = b"x"
    with pytest.raises(InvalidInput, match="another suffix"):
        spec_from_model(f"{url}x.bin")
    with pytest.raises(InvalidInput, match="revision: found 'main'"):
        spec_from_model(url, revision="main")


def test_a_split_gguf(tmp_path: Path, server: RangeServer) -> None:
    write_gguf(tmp_path / "x-00001-of-00002.gguf", qwen_entries())
    write_gguf(tmp_path / "x-00002-of-00002.gguf", {}, QWEN_TENSORS)
    url = serve(server, tmp_path, is_listed=False)
    spec = spec_from_model(f"{url}x-00001-of-00002.gguf")
    assert (spec.fingerprint, spec.n_rows) == (load_spec(QWEN).fingerprint, 320_001_536)
    assert server.spans("/m/x-00002-of-00002.gguf") == [(0, 2**20)]


def test_a_folder_with_nothing_in_it(tmp_path: Path, server: RangeServer) -> None:
    with pytest.raises(InvalidInput, match=r"found no \.safetensors file in it"):
        spec_from_model(serve(server, tmp_path, is_listed=False))
