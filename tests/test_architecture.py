"""The house holds: imports point one way, the library is silent, and starting is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "tables" / "engram_tables"
# Each room may import those before it; the names without a folder stand below all of them.
ROOMS = ["address", "corpus", "storage", "fetch", "measure", "inspect"]
SOURCES = sorted([*LIBRARY.rglob("*.py"), *(ROOT / "engram_cli").rglob("*.py")])
FOREIGN = {"torch", "transformers"}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def _imports(path: Path) -> set[str]:
    """Every module a file names in an import, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _room(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0]


def test_imports_point_one_way() -> None:
    for path in sorted(LIBRARY.rglob("*.py")):
        _check_imports(path)


def _check_imports(path: Path) -> None:
    room = _room(path)
    allowed = set(ROOMS[: ROOMS.index(room) + 1]) if room in ROOMS else set()
    if path == LIBRARY / "__init__.py":
        allowed = set(ROOMS)  # for type checkers alone: it imports nothing when it runs
    for name in _imports(path):
        parts = name.split(".")
        assert parts[0] not in {"engram_cli", "typer", "rich", *FOREIGN}, f"{path} imports {name}"
        if parts[0] == "engram_tables" and len(parts) > 1 and parts[1] in ROOMS:
            assert parts[1] in allowed, f"{path} imports {name}"


def test_no_file_prints_or_grows_too_long() -> None:
    for path in SOURCES:
        tree = _tree(path)
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        called = {function.id for function in calls if isinstance(function, ast.Name)}
        assert "print" not in called or path.name == "console.py", f"{path}: prints"
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, f"{path}: too long"
        assert ast.get_docstring(tree), f"{path}: no module docstring"


def test_fetch_holds_no_clock() -> None:
    for path in (LIBRARY / "fetch").rglob("*.py"):
        assert not {"time", "datetime"} & _imports(path), path


def test_nothing_installs_a_top_level_tables() -> None:
    assert not (ROOT / "tables" / "__init__.py").exists()


def test_no_test_or_benchmark_uses_another_framework() -> None:
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        assert not {name.split(".")[0] for name in _imports(path)} & FOREIGN, path


@pytest.mark.parametrize(
    ("program", "heavy"),
    [
        ("import engram_tables", {"numpy", "numba", "pyarrow", "tokenizers"}),
        ("import engram_cli.app", {"numpy", "numba", "pyarrow", "tokenizers", "rich.progress"}),
        ("from engram_tables import load_spec; load_spec('deepseek-v4.1-flash')", {"numba", "pyarrow"}),
    ],
)
def test_starting_loads_nothing_heavy(program: str, heavy: set[str]) -> None:
    check = f"{program}\nimport sys\nprint(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
