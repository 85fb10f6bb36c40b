"""What a wheel and a source archive hold, and what they say of themselves."""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest

from engram_tables import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS: dict[str, Any] = PROJECT["tool"]["hatch"]["build"]["targets"]
PACKAGES = [ROOT / package for package in TARGETS["wheel"]["packages"]]
AT_THE_ROOT = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "Makefile", "pyproject.toml"}


def test_one_version() -> None:
    assert PROJECT["project"]["version"] == __version__
    first = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert first is not None
    assert __version__ in first[1]


def test_packages_are_typed_and_say_so() -> None:
    assert [package.name for package in PACKAGES] == ["engram_cli", "engram_tables"]
    for package in PACKAGES:
        assert (package / "py.typed").read_bytes() == b""
        assert not [path for path in package.rglob("*") if path.name.startswith(("test_", "conftest"))]
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


def test_every_extra_is_explained() -> None:
    page = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    table = "".join(line for line in page.splitlines() if line.startswith("| `"))
    for extra in PROJECT["project"]["optional-dependencies"]:
        assert f"`{extra}`" in table, extra


def test_what_is_to_be_shipped_is_there() -> None:
    for path in [*TARGETS["sdist"]["include"], *TARGETS["wheel"]["shared-data"], *PROJECT["project"]["license-files"]]:
        assert (ROOT / path).exists(), path


@pytest.fixture(scope="module")
def backend() -> Any:
    return pytest.importorskip("hatchling.build", reason="hatchling is not installed")


def test_a_wheel_holds_the_packages_alone(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / backend.build_wheel(str(tmp_path))) as wheel:
        names = wheel.namelist()
        said = HeaderParser().parsestr(wheel.read(f"engram_tables-{__version__}.dist-info/METADATA").decode())
        scripts = wheel.read(f"engram_tables-{__version__}.dist-info/entry_points.txt").decode()
    own = {path.relative_to(package.parent).as_posix() for package in PACKAGES for path in _files(package)}
    assert {name for name in names if ".dist-info/" not in name and ".data/" not in name} == own
    assert {"engram_cli/py.typed", "engram_tables/py.typed"} <= own
    assert f"engram_tables-{__version__}.data/data/share/man/man1/engram.1" in names
    assert f"engram_tables-{__version__}.dist-info/licenses/LICENSE" in names
    assert "engram = engram_cli.main:main" in scripts
    assert said["License-Expression"] == "MIT"
    assert said["Version"] == __version__
    assert set(said.get_all("Provides-Extra", [])) == set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.slow
def test_a_source_archive_can_be_tested(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / backend.build_sdist(str(tmp_path))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= AT_THE_ROOT
    for folder in ("tests", "docs", "fuzz", "benchmarks", *TARGETS["wheel"]["packages"]):
        left_out = {path.relative_to(ROOT).as_posix() for path in _files(ROOT / folder)} - names
        assert not left_out


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    ]
