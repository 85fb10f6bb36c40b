"""The reader printed in docs/reference/format.md, run as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_tables import small_spec, small_table

from engram_tables.fetch.table import open_table
from engram_tables.storage.manifest import BLOCK_BYTES, Manifest
from engram_tables.storage.quantiles import MAGNITUDES_SHA256, normal_magnitudes

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "format.md"


@pytest.fixture(scope="module")
def document() -> str:
    return DOCUMENT.read_text()


@pytest.mark.parametrize("layout", ["packed", "page"])
def test_the_printed_reader_reads_what_fetch_reads(tmp_path: Path, document: str, layout: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL)
    (tmp_path / "reader.py").write_text(code)
    path = small_table(tmp_path / "t", small_spec(997), layout=layout, shard_bytes=40_000)
    rows = np.array([0, 1, 63, 64, 500, 995, 996])
    for layer_id in (1, 14):
        command = [sys.executable, "-I", str(tmp_path / "reader.py"), str(path), str(layer_id), *map(str, rows)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        with open_table(path) as table:
            records = table.fetch_rows(layer_id, rows)
            values = table.decode(records)
        assert [json.loads(line)["record"] for line in lines] == [bytes(record).hex() for record in records]
        assert [json.loads(line)["values"] for line in lines] == values.tolist()


def test_every_key_of_a_manifest_is_documented(tmp_path: Path, document: str) -> None:
    path = small_table(tmp_path / "t")
    body = json.loads((path / "engram.json").read_text())
    for key in [*body, *body["shards"][0], *body["init"], "file_bytes", "map_sha256"]:
        assert f"`{key}`" in document or f'"{key}"' in document, key
    header = json.loads((path / body["shards"][0]["path"]).read_bytes()[8:4096])
    for key in header["__metadata__"]:
        assert f"`{key}`" in document, key
    assert f"{BLOCK_BYTES:,}" in document
    assert Manifest.from_bytes((path / "engram.json").read_bytes(), path="t").to_bytes()


def test_magnitudes_are_the_documented_ones(document: str) -> None:
    table = normal_magnitudes()
    assert MAGNITUDES_SHA256 in document
    assert table[0] > 0
    assert (np.diff(table) > 0).all()
    assert 4.00 < table[-1] < 4.01
