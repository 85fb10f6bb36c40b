"""What the published tables weigh: their outlines with the codec that each release keeps its rows in."""

from __future__ import annotations

from dataclasses import dataclass

from engram_tables.address.presets import PRESETS
from engram_tables.address.recipes import Outline
from engram_tables.storage.codecs.codec import BF16, F32, FP8, get_codec

# The demo has no release; its module holds float32.
_CODECS = {
    "deepseek-v4.1-flash": FP8,
    "engram-demo": F32,
    "engram-27b": BF16,
    "engram-40b": BF16,
    "engram-peft": BF16,
    "qwen3.8-flash-next": BF16,
    "longcat-flash-lite": BF16,
    "longcat-2.0": BF16,
    "nanochat-300m": BF16,
    "gemma-3n-e2b": BF16,
    "gemma-3n-e4b": BF16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTable:
    """One preset and its sizes.

    Attributes
    ----------
    row_bytes
        In `codec`, the one of the release.
    bytes_per_token
        Of all rows that one token reads, from all layers' tables.
    table_bytes
        Of all rows of all tables.
    """

    name: str
    provenance: str
    outline: Outline
    codec: str
    row_bytes: int

    @property
    def bytes_per_token(self) -> int:
        return self.outline.rows_per_token * self.row_bytes

    @property
    def table_bytes(self) -> int:
        return self.outline.n_rows * self.row_bytes


def published_tables() -> list[PublishedTable]:
    """Every preset, in the order of `PRESETS`."""
    tables = []
    for recipe in PRESETS.values():
        outline = recipe.outline()
        codec = get_codec(_CODECS[recipe.name])
        if outline.row_width is None:
            raise AssertionError(f"preset {recipe.name} has no row width")
        tables.append(
            PublishedTable(
                name=recipe.name,
                provenance=recipe.provenance,
                outline=outline,
                codec=codec.name,
                row_bytes=codec.row_bytes(outline.row_width),
            )
        )
    return tables
