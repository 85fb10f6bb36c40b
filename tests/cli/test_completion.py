"""Shell completion: each shell's script is printed, and what it calls answers with commands, options and names."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from engram_cli.app import app
from engram_tables.address.presets import PRESETS

SHELLS = ["bash", "zsh", "fish"]
Ask = Callable[..., str]


@cache
def _engram() -> Any:
    """The command, made once: it takes longer than what is asked of it here."""
    return get_command(app)


def _inspect_commands() -> list[str]:
    return list(_engram().commands["inspect"].commands)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """What `engram` prints when a shell's script calls it, or asks for that script."""

    def answer(shell: str, action: str, **environment: str) -> str:
        for name, value in {"_ENGRAM_COMPLETE": f"{action}_{shell}", **environment}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            _engram().main(args=[], prog_name="engram")
        assert ended.value.code == 0
        return capsys.readouterr().out

    return answer


def _completions(ask: Ask, shell: str, line: str) -> str:
    """What the shell's script is told when Tab is pressed at the end of `line`."""
    if shell == "bash":
        words = line.split(" ")
        return ask(shell, "complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    return ask(shell, "complete", _TYPER_COMPLETE_ARGS=line, _TYPER_COMPLETE_FISH_ACTION="get-args")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_calls_engram(shell: str, ask: Ask, tmp_path: Path) -> None:
    script = ask(shell, "source")
    assert f"complete_{shell}" in script
    assert "engram" in script
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(script)
        subprocess.run([shell, "-n", str(path)], check=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_subcommands_options_and_presets_are_completed(shell: str, ask: Ask) -> None:
    for name in _inspect_commands():
        assert name in _completions(ask, shell, "engram inspect ")
    assert "coverage" in _completions(ask, shell, "engram inspect co")
    assert "header" not in _completions(ask, shell, "engram inspect co")
    assert "--preset" in _completions(ask, shell, "engram hash --pre")
    assert "longcat-flash-lite" in _completions(ask, shell, "engram hash --preset long")
    assert "qwen" not in _completions(ask, shell, "engram hash --preset long")
    assert [name for name in PRESETS if name not in _completions(ask, shell, "engram hash --preset ")] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_in_earnest(ask: Ask, tmp_path: Path) -> None:
    script, program = tmp_path / "script", tmp_path / "engram"
    script.write_text(ask("bash", "source"))
    code = "import sys; sys.argv[0] = 'engram'; from engram_cli.main import main; main()"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
    program.chmod(0o755)
    lines = [
        f"source {shlex.quote(str(script))}",
        "COMP_WORDS=(engram inspect '') COMP_CWORD=2",
        f'_engram_completion {shlex.quote(str(program))}; printf "%s\\n" "${{COMPREPLY[@]}}"',
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == _inspect_commands()


def test_the_current_shells_script_can_be_shown_and_installed() -> None:
    shown = CliRunner().invoke(app, ["--help"], prog_name="engram").stdout
    assert "--show-completion" in shown
    assert "--install-completion" in shown
