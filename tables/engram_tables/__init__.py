"""Hashed n-gram tables: address, count, build, verify, fetch and inspect.

Each name below is loaded when it is first used; importing the package loads neither numba nor pyarrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engram_tables.address.presets import load_spec
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.fetch.table import open_table

__version__ = "0.1.0"
__all__ = ["__version__", "load_spec", "load_vocabulary", "open_table"]

_HOME = {
    "load_spec": "engram_tables.address.presets",
    "load_vocabulary": "engram_tables.address.vocabulary",
    "open_table": "engram_tables.fetch.table",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
