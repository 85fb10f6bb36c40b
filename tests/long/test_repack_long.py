"""Repacks that take longer than `make test` may: kills at random moments, millions of rows, true row counts."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engram_tables.address.presets import load_spec
from engram_tables.address.spec import AddressSpec, HistoryRule, LayerAddressing
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.checking.verify import verify_tables
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.source import closing
from engram_tables.storage.table.reader import StoredTable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ENGRAM = [sys.executable, "-c", "from engram_cli.main import main; main()"]
WEIGHT_BYTES, SCALE_BYTES = 256, 8


def one_layer(n_rows: int) -> AddressSpec:
    layer = LayerAddressing(layer_id=1, multipliers=(1, 3), moduli=((n_rows,),), offsets=(0,), n_rows=n_rows)
    return AddressSpec(
        name="long",
        provenance="made for tests",
        canonical_size=1000,
        history=HistoryRule(fill_id=2),
        orders=(2,),
        layers=(layer,),
        row_width=WEIGHT_BYTES,
    )


def write_planes(path: Path, n_rows: int, *, is_sparse: bool = False) -> int:
    """Weights and scales of layer 1 in one file; bytes before the weights. A sparse file has zeros everywhere."""
    middle, end = n_rows * WEIGHT_BYTES, n_rows * (WEIGHT_BYTES + SCALE_BYTES)
    header = json.dumps(
        {
            "layers.1.engram.embed.weight": {
                "dtype": "F8_E4M3", "shape": [n_rows, WEIGHT_BYTES], "data_offsets": [0, middle]
            },
            "layers.1.engram.embed.scale": {
                "dtype": "F8_E8M0", "shape": [n_rows, SCALE_BYTES], "data_offsets": [middle, end]
            },
        }
    ).encode()  # fmt: skip
    header = header.ljust(-(-(len(header) + 8) // 8) * 8 - 8)
    rng = np.random.default_rng(0)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        first = file.tell()
        if is_sparse:
            file.truncate(first + end)
        else:
            for begin in range(0, end, 2**24):
                file.write(rng.bytes(min(2**24, end - begin)))
    return first


@pytest.mark.parametrize("options", [["--layout", "page"], ["--layout", "split", "--codec", "int8-row"]])
def test_a_repack_killed_at_twenty_moments_gives_the_same_bytes(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(one_layer(1_000_000).to_json()))
    first = write_planes(tmp_path / "model.safetensors", 1_000_000)
    # Random scales would pass what a half can hold.
    planes = np.memmap(tmp_path / "model.safetensors", np.uint8, mode="r+")[first:]
    planes[: WEIGHT_BYTES * 1_000_000] &= 0xBF
    planes[WEIGHT_BYTES * 1_000_000 :] = 120
    common = ["--from", "model.safetensors", "--spec", "spec.json", "--shard-bytes", "100MiB", *options]
    command = [*ENGRAM, "build-table", *common, "-o", "table"]
    # The first run compiles the kernels: the second says how long the runs to kill take.
    for name in ("warm", "whole"):
        started = time.monotonic()
        subprocess.run([*command[:-1], name], cwd=tmp_path, check=True, capture_output=True)
        whole_s = time.monotonic() - started
    expected = (tmp_path / "whole" / "engram.json").read_bytes()
    moments, n_left = random.Random(0), 0
    for _ in range(20):
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            time.sleep(moments.uniform(0.1, 1.1) * whole_s)
            child.send_signal(signal.SIGKILL)
        n_left += (tmp_path / "table.work").exists()
        if (tmp_path / "table").exists():
            assert (tmp_path / "table" / "engram.json").read_bytes() == expected
            assert verify_tables([tmp_path / "table"]).is_whole
            shutil.rmtree(tmp_path / "table")
    assert n_left > 3
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "table" / "engram.json").read_bytes() == expected
    assert verify_tables([tmp_path / "table"]).is_whole
    assert not (tmp_path / "table.work").exists()


def test_twenty_million_rows(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 16 * 2**30:
        pytest.skip("16 GiB of free disk are needed")
    n_rows = 20_000_003
    first = write_planes(tmp_path / "model.safetensors", n_rows)
    with closing(open_source(tmp_path / "model.safetensors", spec=one_layer(n_rows))) as source:
        build_table(plan_repack(source, layout="packed"), tmp_path / "t")
    assert verify_tables([tmp_path / "t"]).is_whole
    planes = np.memmap(tmp_path / "model.safetensors", np.uint8, mode="r")[first:]
    weights = planes[: n_rows * WEIGHT_BYTES].reshape(-1, WEIGHT_BYTES)
    scales = planes[n_rows * WEIGHT_BYTES :].reshape(-1, SCALE_BYTES)
    with StoredTable(tmp_path / "t") as table:
        for shard_idx, shard in enumerate(table.manifest.shards):
            records = table.mapping(shard_idx)[shard.data_offset :].reshape(-1, WEIGHT_BYTES + SCALE_BYTES)
            for begin in range(0, shard.n_rows, 2**18):
                stop = min(begin + 2**18, shard.n_rows)
                mine = slice(shard.first_row + begin, shard.first_row + stop)
                assert np.array_equal(records[begin:stop, :WEIGHT_BYTES], weights[mine])
                assert np.array_equal(records[begin:stop, WEIGHT_BYTES:], scales[mine])


@pytest.mark.parametrize("layout", ["packed", "page", "split"])
def test_true_row_counts_in_a_sparse_file(tmp_path: Path, layout: str) -> None:
    """Rows whose weights lie past 2^36 bytes and whose scales lie 98 GB behind them."""
    spec = load_spec("deepseek-v4.1-flash")
    layer = spec.layers[0]
    first = write_planes(tmp_path / "model.safetensors", layer.n_rows, is_sparse=True)
    around = [2**32 // WEIGHT_BYTES, 2**36 // WEIGHT_BYTES, 2**28, layer.n_rows - 1]
    rows = sorted({row + step for row in around for step in (-2, -1, 0, 1, 2) if row + step < layer.n_rows})
    rng = np.random.default_rng(3)
    records = {row: rng.integers(1, 256, WEIGHT_BYTES + SCALE_BYTES, np.uint8) for row in rows}
    with (tmp_path / "model.safetensors").open("r+b") as file:
        for row, record in records.items():
            file.seek(first + row * WEIGHT_BYTES)
            file.write(record[:WEIGHT_BYTES].tobytes())
            file.seek(first + layer.n_rows * WEIGHT_BYTES + row * SCALE_BYTES)
            file.write(record[WEIGHT_BYTES:].tobytes())
    with closing(open_source(tmp_path / "model.safetensors", spec=spec, layers=[layer.layer_id])) as source:
        whole = plan_repack(source, layout=layout, layers=[layer.layer_id])
        assert whole.n_rows == layer.n_rows == 384_006_168
        for nth, row in enumerate(around):
            wanted = (row - 50_000, min(row + 50_000, layer.n_rows))
            plan = plan_repack(source, layout=layout, layers=[layer.layer_id], rows=wanted, shard_bytes=2**24)
            build_table(plan, tmp_path / f"t{nth}")
            with StoredTable(tmp_path / f"t{nth}") as table:
                here = np.array([found for found in rows if wanted[0] <= found < wanted[1]])
                for part_idx, part in enumerate(table.parts):
                    for found, file_idx, offset in zip(here, *table.locate(1, here, part_idx), strict=True):
                        stretch = table.mapping(int(file_idx))[offset : offset + part.n_bytes]
                        expected = records[int(found)][part.start : part.start + part.n_bytes]
                        np.testing.assert_array_equal(stretch, expected)
