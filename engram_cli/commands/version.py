"""What `engram --version` prints."""

from __future__ import annotations

from typing import Any

from engram_cli.console import emit, show, show_wrapped

_INDENT = 13


def show_versions(*, as_json: bool) -> None:
    """The version, and those of what lies below: the first line alone is `engram X.Y.Z`, for programs to read."""
    from engram_tables.versions import versions

    record = versions()
    if as_json:
        emit(record)
        return
    show(f"engram {record['engram_tables']}")
    show()
    _line("python", f"{record['python']} ({record['implementation']} on {record['system']} {record['machine']})")
    for name, version in record["packages"].items():
        _line(name, version or "not installed, and needed")
    if record["extras"]:
        show()
    for extra in record["extras"]:
        _line(f"[{extra['extra']}]", _spell(extra["packages"]))
    show()
    _line("formats", ", ".join(record["formats"]))


def _spell(packages: dict[str, Any]) -> str:
    """The packages of an extra that are there, or that none is."""
    there = [f"{name} {version}" for name, version in packages.items() if version]
    absent = [name for name, version in packages.items() if not version]
    if not there:
        return "not installed"
    return ", ".join(there) + (f"; without {', '.join(absent)}" if absent else "")


def _line(name: str, text: str) -> None:
    show_wrapped(text, head=f"{name} ".ljust(_INDENT), indent=_INDENT)
