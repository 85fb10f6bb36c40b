"""Changes to a manifest that keep its digest right: what a careless or hostile writer could make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engram_tables.units import canonical_json

NONSENSE = ("abc", "٣", "1" * 40, -1, 2**70, True, None, [], {}, [[]], {"kind": 1}, "\0", "\ud800")


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and give it a right digest again."""
    body = json.loads((path / "engram.json").read_text())
    del body["manifest_sha256"]
    change(body)
    body["manifest_sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    (path / "engram.json").write_bytes(canonical_json(body))


def leaves(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to everything inside `value`; of a list to its first two items."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(min(len(value), 2)):
            yield from leaves(value[key], *path, key)
