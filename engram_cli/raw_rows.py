"""`--raw`: where rows lie in a file that has no container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engram_tables.errors import InvalidInput
from engram_tables.units import parse_bytes

if TYPE_CHECKING:
    from engram_tables.storage.sources.opening import RawGeometry

_KEYS = {
    "codec": "codec",
    "row-bytes": "row_bytes",
    "row-stride": "row_stride",
    "first-byte": "first_byte",
    "layer": "layer_id",
    "first-row": "first_row",
    "rows": "n_rows",
}


def parse_raw_rows(text: str | None) -> RawGeometry | None:
    """The geometry in `codec=NAME,row-stride=N,...`; None for none."""
    if text is None:
        return None
    from engram_tables.storage.sources.opening import RawGeometry

    given: dict[str, Any] = {}
    for item in text.split(","):
        key, is_pair, value = item.strip().partition("=")
        if key not in _KEYS or not is_pair or _KEYS[key] in given:
            raise InvalidInput(
                f"--raw {text!r}: found {item.strip()!r}, expected each of {', '.join(_KEYS)} at most once, as "
                "row-bytes=264; mend it"
            )
        given[_KEYS[key]] = value if key == "codec" else parse_bytes(value)
    return RawGeometry(**given)
