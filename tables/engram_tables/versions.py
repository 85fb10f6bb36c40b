"""What is installed: the versions that a report of a fault needs, and the formats that this release writes.

Everything comes from packages' metadata, so that asking imports none of them. It knows no room, and no terminal.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from engram_tables import __version__

SCHEMA = "engram.version/1"
FORMATS = (
    "engram.vocabulary/1",
    "engram.spec/2",
    "engram.golden/1",
    "engram.tokens/1",
    "engram.counts/2",
    "engram.trace/1",
    "engram.table/2",
    "engram.bundles/1",
    "engram.hot-list/1",
)
"""Schemas of the files that outlive a command. Their owners have them too, in modules that load NumPy or pyarrow; a
test compares."""

_DISTRIBUTION = "engram-tables"
_FOR_CHECKOUTS = {"dev", "fuzz"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


def versions() -> dict[str, Any]:
    """The record `engram.version/1`.

    Returns
    -------
    dict
        `packages` holds what the package needs, `extras` what each of its extras asks for; a version is None where a
        package is not installed. Both are empty where the sources run without having been installed, since the names
        are those of the installed metadata.

    Notes
    -----
    Reads metadata files alone, about a millisecond for each package.
    """
    packages: dict[str, str | None] = {}
    extras: dict[str, dict[str, str | None]] = {}
    for extra, name in _requirements():
        if extra is None:
            packages[name] = _installed(name)
        elif extra not in _FOR_CHECKOUTS:
            extras.setdefault(extra, {})[name] = _installed(name)
    return {
        "schema": SCHEMA,
        "engram_tables": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": packages,
        "extras": [{"extra": extra, "packages": needed} for extra, needed in extras.items()],
        "formats": list(FORMATS),
    }


def _requirements() -> Iterator[tuple[str | None, str]]:
    """(extra or None, package) of each requirement, in the order of the metadata."""
    try:
        requirements = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in requirements:
        name, extra = _NAME.match(requirement), _EXTRA.search(requirement)
        if name:
            yield (extra[1] if extra else None), name[0]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
