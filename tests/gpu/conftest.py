"""Kernels on this machine's processor, where it has a compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
from processor import COMPILER, ProcessorLauncher


@pytest.fixture(scope="session")
def processor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C++ compiler here: the kernels' sources are compiled with one to run on the processor")
    return tmp_path_factory.mktemp("processor")


@pytest.fixture(scope="session")
def launcher(processor_folder: Path) -> ProcessorLauncher:
    return ProcessorLauncher(processor_folder)
