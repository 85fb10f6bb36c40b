"""The kernels' own sources under the readers: queued on a device of host memory, run on this machine's processor."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processor import ProcessorLauncher
from small_tables import lay_table, random_records, small_manifest, small_spec

from engram_tables.address.spec import Addresses
from engram_tables.fetch.gpu.cache import CachedPath
from engram_tables.fetch.gpu.device_reader import Shape
from engram_tables.fetch.gpu.host_device import HostDevice, HostStream
from engram_tables.fetch.gpu.kernels import Kernels
from engram_tables.fetch.gpu.paths import ResidentPath, StagedPath, ZeroCopyPath
from engram_tables.fetch.gpu.programs import Program
from engram_tables.fetch.table import open_table


class Queued:
    """A `Launcher` that runs a launch when its stream has come that far, on the memory that the device has given."""

    multiprocessors = 2

    def __init__(self, processor: ProcessorLauncher, device: ProcessorDevice) -> None:
        self._processor, self._device = processor, device

    def address_of(self, array: Any) -> int:
        return self._processor.address_of(array)

    def prepare(self, program: Program) -> None:
        self._processor.prepare(program)

    def launch(
        self, program: Program, kernel: str, *, blocks: int, arguments: Sequence[np.generic], stream: HostStream
    ) -> None:
        registered = [
            np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(address), np.uint8)
            for address, n_bytes in self._device.registered.items()
        ]

        def run() -> None:
            with self._processor.shown(read=registered, written=self._device.given):
                self._processor.launch(program, kernel, blocks=blocks, arguments=arguments, stream=None)

        stream.put(run)


class ProcessorDevice(HostDevice):
    """Host memory with the kernels' own sources."""

    def __init__(self, processor: ProcessorLauncher) -> None:
        super().__init__()
        self.given: list[Any] = []
        self._launcher = Queued(processor, self)

    def empty(self, shape: Any, dtype: Any) -> Any:
        self.given.append(super().empty(shape, dtype))
        return self.given[-1]

    def kernels(self, codec: Any, row_bytes: int, stride_bytes: int) -> Any:
        return Kernels(codec, row_bytes=row_bytes, stride_bytes=stride_bytes, launcher=self._launcher)


@pytest.mark.parametrize("way", [ResidentPath, ZeroCopyPath, StagedPath, CachedPath])
def test_readers_and_kernels_fit_together(way: Any, tmp_path: Path, launcher: ProcessorLauncher) -> None:
    manifest = small_manifest(small_spec(300, row_width=256), codec="fp8-e4m3-e8m0")
    options = {"budget_bytes": 64 * 272} if way is CachedPath else {}
    rng = np.random.default_rng(1)
    with open_table(lay_table(tmp_path / "t", manifest, random_records(manifest), shard_bytes=2**15)) as table:
        for output in ("records", "float32"):
            shape = Shape(n_slots=2, max_tokens=9, output=output)
            with way(table, ProcessorDevice(launcher), shape, **options) as path:
                for step in range(6):
                    rows = rng.integers(0, 300, (1 + step, 2, 2)) % (300 if step % 2 else 20)
                    addresses = Addresses(rows=rows, keys=np.zeros((1 + step, 2, 1), np.uint64))
                    found = np.array(path.begin(addresses, step % 2).finish())
                    records = table.fetch(addresses)
                    wanted = records if output == "records" else table.decode(records)
                    assert np.array_equal(found, wanted, equal_nan=output != "records")
