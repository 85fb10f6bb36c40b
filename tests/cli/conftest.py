"""Running the command: its exit code and its two streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from typer.testing import CliRunner

from engram_cli.app import app


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Engram(Protocol):
    def __call__(self, *arguments: object, stdin: str | None = None) -> Ran: ...


def _run(*arguments: object, stdin: str | None = None) -> Ran:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def engram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engram:
    """Run `engram` in an empty directory, in this process: a process each would cost a second each."""
    monkeypatch.chdir(tmp_path)
    return _run


@pytest.fixture(scope="session")
def tiny_table(tiny_vocab_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small table over the tiny vocabulary, made by the commands; its spec stands beside it."""
    home = tmp_path_factory.mktemp("table")
    for arguments in (
        ("spec", "make", "--vocab", tiny_vocab_file, "--rows-per-head", "97", "--heads", "2", "--row-width", "32",
         "--pad-token", "0", "--layers", "1,3", "-o", home / "spec.json"),
        ("build-table", "--spec", home / "spec.json", "--vocab", tiny_vocab_file, "--codec", "f32",
         "-o", home / "table"),
    ):  # fmt: skip
        ran = _run(*arguments)
        assert ran.code == 0, ran.err
    return home / "table"
