"""What a trace may hold of each token: a name apart from the arrays, so that a command line can offer it cheaply."""

from __future__ import annotations

from enum import StrEnum


class Store(StrEnum):
    """What a trace holds of every token; whatever else is asked for is derived, exactly."""

    IDS = "ids"
    """The ids that are hashed: the smallest, keys and rows at the speed of hashing."""
    KEYS = "keys"
    """What names each n-gram; rows are one remainder away."""
    ROWS = "rows"
    """Row ids, in the narrowest integers; keys do not follow from them."""
    BOTH = "both"
    """Keys and row ids."""
    NONE = "none"
    """Nothing: only the report is wanted."""
