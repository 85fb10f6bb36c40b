"""What a manifest says of a next-token table, and the numbers that follow from it.

Owns the record and the constants of the sketch. Knows no row, no file and no count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import InvalidInput, UnsupportedTable
from engram_tables.units import int_from_json, json_int

NEXT_TOKEN = "next-token"
SKETCH = "count-sketch-8"
LEAST_CHECKS = 8
"""Cells that speak for a token in one row of every head, at least: eight of 7 bits each name one of 2^17 tokens."""

_LARGEST_SEED = 2**64 - 1
_LARGEST_WIDTH = 2**30
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NextTokenRecipe:
    """How the rows of a next-token table came to be.

    Attributes
    ----------
    seed
        Of the places of tokens in rows, 0 to 2^64 - 1.
    next_size
        Bound of the raw token ids.
    counts_sha256
        Digest of the manifest of the counts that the rows hold.
    sketch
        Name of the map from tokens to cells.
    """

    seed: int
    next_size: int
    counts_sha256: str
    sketch: str = SKETCH

    @property
    def least_evidence(self) -> float:
        """Nats of evidence from which on a token is taken to be in a row: fewer than one token is by chance."""
        return math.log(self.next_size)

    def record(self) -> dict[str, str | int]:
        """The entry `init` of the manifest."""
        return {
            "kind": NEXT_TOKEN,
            "seed": json_int(self.seed),
            "sketch": self.sketch,
            "next_size": self.next_size,
            "counts_sha256": self.counts_sha256,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], *, where: str) -> Self:
        """The recipe that a manifest's `init` states.

        Raises
        ------
        UnsupportedTable
            Another sketch.
        InvalidInput
            Something else is wrong with it.
        """
        if record["sketch"] != SKETCH:
            raise UnsupportedTable(
                f"{where}: found the sketch {record['sketch']!r} of next tokens, expected {SKETCH!r}; read it with a "
                "version that knows it",
                path=where,
            )
        digest = record["counts_sha256"]
        if not isinstance(digest, str) or _SHA256.fullmatch(digest) is None:
            raise InvalidInput(f"init: found counts_sha256 {digest!r}, expected 64 hexadecimal digits; build it again")
        next_size = record["next_size"]
        if type(next_size) is not int or not 1 <= next_size <= 2**20:
            raise InvalidInput(f"init: found next_size {next_size!r}, expected 1 to {2**20:,}; build it again")
        return cls(
            seed=check_seed(int_from_json(record["seed"], "init: seed")), next_size=next_size, counts_sha256=digest
        )


def check_seed(seed: int) -> int:
    """The seed; `InvalidInput` unless it has 64 bits."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise InvalidInput(f"seed: found {seed}, expected 0 to {_LARGEST_SEED}; choose another")
    return seed


def n_cells(n_heads: int) -> int:
    """Cells of a row that a token is added to, for an order with so many heads.

    >>> n_cells(8), n_cells(16), n_cells(3), n_cells(1)
    (1, 1, 3, 8)
    """
    return -(-LEAST_CHECKS // n_heads)


def n_misses(n_checks: int) -> int:
    """How many of a token's checks may be spoilt without its estimate being spoilt.

    >>> n_misses(8), n_misses(9), n_misses(16)
    (1, 1, 2)
    """
    return n_checks // LEAST_CHECKS


def check_width(spec: AddressSpec, width: int, next_size: int) -> None:
    """`InvalidInput` where a row is too narrow for any token to be told from chance, or for the map at all."""
    for order, n_heads in zip(spec.orders, spec.heads, strict=True):
        n_checks = n_heads * n_cells(n_heads)
        chances = math.log(math.comb(n_checks, n_misses(n_checks)))
        need = math.exp((math.log(next_size) + chances) / (n_checks - n_misses(n_checks))) / 2
        least = max(math.ceil(need), n_cells(n_heads))
        if not least <= width <= _LARGEST_WIDTH:
            raise InvalidInput(
                f"row width: found {width} values, expected {least} to {_LARGEST_WIDTH:,} for the {n_heads} heads of "
                f"order {order} and {next_size:,} tokens, so that a token can be told from chance; choose another "
                "spec or --row-width"
            )
