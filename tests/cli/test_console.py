"""Lines of words and of narration, as commands print them."""

from __future__ import annotations

import pytest

from engram_cli import console


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")


def test_words_are_broken_at_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    text = "the reads that are left behind a cache of rows, asked first"
    console.show_wrapped(text)
    first, second = capsys.readouterr().out.splitlines()
    assert max(len(first), len(second)) <= 40
    assert second.startswith("    ")
    assert f"{first} {second.strip()}" == text


def test_a_label_stands_in_front_and_a_path_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a/very/long/path-with-hyphens/" + "x" * 40
    console.show_wrapped(f"found in {path}", head="  check", indent=10)
    console.show_wrapped("", head="  none", indent=10)
    first, second, last = capsys.readouterr().out.splitlines()
    assert (first, second, last) == ("  check   found in", " " * 10 + path, "  none")


def test_escapes_are_shown_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_wrapped("red\x1b[31m")
    assert capsys.readouterr().out == "red\\x1b[31m\n"


@pytest.mark.parametrize("is_quiet", [False, True])
def test_a_long_command_without_a_terminal_tells_each_tenth(is_quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    console.set_verbosity(quiet=is_quiet, verbose=False)
    try:
        with console.narrated("measuring", "rounds") as hook:
            for done in range(1, 101):
                hook(done, 100)
    finally:
        console.set_verbosity(quiet=False, verbose=False)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == (0 if is_quiet else 12)
    assert is_quiet or lines[-1].startswith("measuring: 100 of 100 rounds, ")


def test_what_a_hard_blank_joins_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    items = [f"'item {number}'".replace(" ", console.HARD_BLANK) for number in range(12)]
    console.show_wrapped(", ".join(items) + ", 100 %", indent=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    assert all(line.count("'") % 2 == 0 for line in lines)
    assert " ".join(map(str.strip, lines)) == ", ".join(f"'item {number}'" for number in range(12)) + ", 100 %"
    assert console.HARD_BLANK not in "".join(lines)
