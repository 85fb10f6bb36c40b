"""GGUF key-values by the end of their keys, each of the type that was asked for.

Prefixes are not looked at: early files carry that of another architecture. Spellings differ in names alone, so a value
is asked for under all its names, and a file that states it twice must state it alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from engram_tables.address.released.findings import Fact, Finding
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.gguf_file import GgufHeader, GgufValue

_INTEGERS = {"u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"}
_SHOWN = 4


class GgufKeys:
    """Those of a header's values whose key `pattern` finds; its first group is the name that is asked for."""

    def __init__(self, header: GgufHeader, pattern: re.Pattern[str]) -> None:
        self.header, self.name, self.file_where = header, header.name, header.where
        self._keys: dict[str, list[str]] = {}
        for key in header.values:
            if (match := pattern.search(key)) is not None:
                self._keys.setdefault(match[1], []).append(key)

    def has(self, names: Iterable[str]) -> bool:
        """Whether a key has one of the names."""
        return any(name in self._keys for name in names)

    def where(self, names: Iterable[str]) -> str:
        """File and keys, for messages."""
        names = tuple(names)
        return f"{self.name}: {' and '.join(self._with(names) or names)}"

    def missing(self, names: Iterable[str], expected: str, *, advice: str) -> InvalidInput:
        """The error that says that no key has one of the names."""
        return InvalidInput(f"{self.file_where}: found no key {' or '.join(names)}, expected {expected}; {advice}")

    def integers(self, names: Iterable[str]) -> tuple[int, ...] | None:
        """The values of an array of integers; None where no key has one of the names."""
        values = self._agreed(names, lambda key, value: self._integers(key, value, is_array=True))
        return None if values is None else tuple(values)

    def integer(self, names: Iterable[str], *, default: int | None = None) -> int | None:
        """One integer; `default` where no key has one of the names."""
        values = self._agreed(names, lambda key, value: self._integers(key, value, is_array=False))
        return default if values is None else values[0]

    def text(self, names: Iterable[str]) -> str | None:
        """A string; None where no key has one of the names."""
        texts = self._agreed(names, self._text)
        return None if texts is None else texts[0]

    def per_layer(self, names: Iterable[str], fact: Fact, layer_ids: tuple[int, ...]) -> list[Finding]:
        """An array that holds equally many values for each layer, as one finding a layer."""
        names = tuple(names)
        values = self.integers(names)
        if values is None:
            return []
        n_values, remainder = divmod(len(values), len(layer_ids))
        if remainder:
            raise InvalidInput(
                f"{self.where(names)}: found {len(values)} values, expected as many for each of {len(layer_ids)} "
                "layers; is the file whole?"
            )
        return [
            Finding(
                where=self.where(names),
                fact=fact,
                values=values[idx * n_values : (idx + 1) * n_values],
                layer_id=layer_id,
            )
            for idx, layer_id in enumerate(layer_ids)
        ]

    def _with(self, names: Iterable[str]) -> list[str]:
        return [key for name in names for key in self._keys.get(name, [])]

    def _agreed(self, names: Iterable[str], read: Callable[[str, GgufValue], list[Any]]) -> list[Any] | None:
        """What every key of these names says alike."""
        keys = self._with(names)
        values = [read(key, self.header.values[key]) for key in keys]
        for key, value in zip(keys, values, strict=True):
            if value != values[0]:
                raise SpecMismatch(
                    f"{self.file_where}: {keys[0]} is {_brief(values[0])} and {key} is {_brief(value)}, expected one "
                    "value under both spellings; one of them was changed"
                )
        return values[0] if values else None

    def _integers(self, key: str, value: GgufValue, *, is_array: bool) -> list[int]:
        element = value.type_name.removesuffix("[]")
        if element not in _INTEGERS or value.type_name.endswith("[]") != is_array:
            raise InvalidInput(
                f"{self.file_where}: {key} is stored as {value.type_name}, expected an {'array of ' * is_array}integer"
                f"{'s' * is_array}; "
                + (
                    "a constant that has been through a float is wrong: convert the model again"
                    if element in ("f32", "f64")
                    else "convert the model again"
                )
            )
        if isinstance(value.value, np.ndarray):
            return [int(number) for number in value.value.tolist()]
        return [value.value] if isinstance(value.value, int) else []

    def _text(self, key: str, value: GgufValue) -> list[str]:
        if not isinstance(value.value, str):
            raise InvalidInput(
                f"{self.file_where}: {key} is stored as {value.type_name}, expected string; convert it again"
            )
        return [value.value]


def _brief(values: list[Any]) -> str:
    shown = ", ".join(str(value)[:60] for value in values[:_SHOWN])
    return f"{shown}, … ({len(values)} values)" if len(values) > _SHOWN else shown
