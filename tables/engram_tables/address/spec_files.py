"""Specs as JSON and as NumPy arrays: written so that one addressing has one spelling, read without trust."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from engram_tables.address.spec import AddressSpec, Family, HistoryRule, LayerAddressing, MixRule, RowSlice
from engram_tables.byte_files import ByteFile
from engram_tables.errors import InvalidInput
from engram_tables.units import int_from_json, json_int

if TYPE_CHECKING:
    import numpy.typing as npt

SCHEMA = "engram.spec/2"
_MAX_JSON_BYTES = 256 << 20


def addressing_to_json(spec: AddressSpec) -> dict[str, Any]:
    """What decides a row, and nothing else: the value that the fingerprint is taken of."""
    mix, history = spec.mix, spec.history
    return {
        "family": str(mix.family),
        "word_bits": mix.word_bits,
        "oldest_first": mix.oldest_first,
        "lagged": mix.lagged,
        "folded": spec.folded,
        "canonical_size": spec.canonical_size,
        "fill_id": history.fill_id,
        "boundary_ids": list(history.boundary_ids),
        "boundary_visible": history.boundary_visible,
        "boundary_closed": history.boundary_closed,
        "replaced": [list(bounds) for bounds in history.replaced],
        "replacement": history.replacement,
        "orders": list(spec.orders),
        "layers": [
            {
                "layer_id": layer.layer_id,
                # Always strings: the rule of 2^53 would change a constant's type with the vocabulary's size.
                "multipliers": [str(multiplier) for multiplier in layer.multipliers],
                "moduli": [[json_int(modulus) for modulus in heads] for heads in layer.moduli],
                "offsets": [json_int(offset) for offset in layer.offsets],
                "n_rows": json_int(layer.n_rows),
            }
            for layer in spec.layers
        ],
    }


def spec_to_json(spec: AddressSpec) -> dict[str, Any]:
    """The whole spec as JSON values."""
    return {
        "schema": SCHEMA,
        "name": spec.name,
        "provenance": spec.provenance,
        "row_width": spec.row_width,
        "slices": [list(piece) for piece in spec.slices],
        "separate_heads": spec.separate_heads,
        "reduce": spec.reduce,
        "vocab_sha256": spec.vocab_sha256,
        "addressing": addressing_to_json(spec),
        "fingerprint": spec.fingerprint,
    }


def spec_from_json(data: Any, *, where: str = "spec") -> AddressSpec:
    """The spec that `spec_to_json` wrote.

    Raises
    ------
    InvalidInput
        Another schema or family, a missing or wrong value, or a fingerprint that differs from the constants.
    """
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InvalidInput(f"{where}: found schema {found!r}, expected {SCHEMA!r}; write it anew with `engram spec`")
    read = _Reader(data, where)
    try:
        spec = AddressSpec(
            name=read.text("name"),
            provenance=read.text("provenance"),
            row_width=None if data["row_width"] is None else read.integer("row_width"),
            slices=tuple(RowSlice(*piece) for piece in read.tuples("slices", 3)),
            separate_heads=read.flag("separate_heads"),
            reduce=None if data["reduce"] is None else read.text("reduce"),
            vocab_sha256=None if data["vocab_sha256"] is None else read.text("vocab_sha256"),
            **_addressing_from_json(_Reader(data["addressing"], where)),
        )
        stated = read.text("fingerprint")
    except (KeyError, TypeError) as error:
        raise InvalidInput(
            f"{where}: {type(error).__name__} {error}, expected the keys of a spec; export it anew"
        ) from None
    if stated != spec.fingerprint:
        raise InvalidInput(
            f"{where}: its constants have fingerprint {spec.fingerprint}, it states {stated}; "
            "a constant was changed: write it anew from its source"
        )
    return spec


class _Reader:
    """Values of a JSON object by key, each of the type that was asked for."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = data, where

    def _wrong(self, key: str, expected: str) -> InvalidInput:
        return InvalidInput(f"{self.where}: {key} is {self.data[key]!r}, expected {expected}")

    def text(self, key: str) -> str:
        if not isinstance(self.data[key], str):
            raise self._wrong(key, "a string")
        return str(self.data[key])

    def flag(self, key: str) -> bool:
        if not isinstance(self.data[key], bool):
            raise self._wrong(key, "true or false")
        return bool(self.data[key])

    def integer(self, key: str) -> int:
        return int_from_json(self.data[key], f"{self.where}: {key}")

    def integers(self, key: str) -> tuple[int, ...]:
        return self._integers(self.data[key], key)

    def tuples(self, key: str, length: int | None = None) -> tuple[tuple[int, ...], ...]:
        if not isinstance(self.data[key], list):
            raise self._wrong(key, "a list of lists of integers")
        tuples = tuple(self._integers(values, key) for values in self.data[key])
        if length is not None and any(len(values) != length for values in tuples):
            raise self._wrong(key, f"lists of {length} integers")
        return tuples

    def _integers(self, values: Any, key: str) -> tuple[int, ...]:
        if not isinstance(values, list):
            raise self._wrong(key, "a list of integers")
        return tuple(int_from_json(value, f"{self.where}: {key}") for value in values)


def _addressing_from_json(read: _Reader) -> dict[str, Any]:
    layers = [_Reader(layer, read.where) for layer in read.data["layers"]]
    return {
        "mix": MixRule(
            family=_family(read.text("family"), read.where),
            word_bits=read.integer("word_bits"),
            oldest_first=read.flag("oldest_first"),
            lagged=read.flag("lagged"),
        ),
        "folded": read.flag("folded"),
        "canonical_size": read.integer("canonical_size"),
        "history": HistoryRule(
            fill_id=read.integer("fill_id"),
            boundary_ids=read.integers("boundary_ids"),
            boundary_visible=read.flag("boundary_visible"),
            boundary_closed=read.flag("boundary_closed"),
            replaced=tuple((start, stop) for start, stop in read.tuples("replaced", 2)),
            replacement=read.integer("replacement"),
        ),
        "orders": read.integers("orders"),
        "layers": tuple(
            LayerAddressing(
                layer_id=layer.integer("layer_id"),
                multipliers=layer.integers("multipliers"),
                moduli=layer.tuples("moduli"),
                offsets=layer.integers("offsets"),
                n_rows=layer.integer("n_rows"),
            )
            for layer in layers
        ),
    }


def _family(name: str, where: str) -> Family:
    if name not in list(Family):
        raise InvalidInput(f"{where}: found hash family {name!r}, expected one of {', '.join(Family)}")
    return Family(name)


_INTEGER_ARRAYS = (
    "word_bits",
    "oldest_first",
    "lagged",
    "folded",
    "canonical_size",
    "fill_id",
    "boundary_ids",
    "boundary_visible",
    "boundary_closed",
    "replaced",
    "replacement",
    "orders",
    "heads",
    "layer_ids",
    "multipliers",
    "moduli",
    "offsets",
    "n_rows",
    "row_width",
    "slices",
    "separate_heads",
)
_TEXT_ARRAYS = ("family", "name", "reduce", "vocab_sha256")


def spec_to_arrays(spec: AddressSpec) -> dict[str, npt.NDArray[Any]]:
    """The spec as named arrays.

    Returns
    -------
    int64 arrays: `multipliers` (layers, multipliers), `moduli` and `offsets` (layers, columns), `n_rows` and
    `layer_ids` (layers,), `orders` and `heads` (orders,), `boundary_ids`, `replaced` (ranges, 2), `slices` (slices,
    3), the rest scalars, flags as 0 and 1; `row_width` 0 where unknown. Strings: `family`, `name`, `reduce`,
    `vocab_sha256`, empty where unknown.
    """
    import numpy as np

    mix, history = spec.mix, spec.history
    integers: dict[str, Any] = {
        "word_bits": mix.word_bits,
        "oldest_first": mix.oldest_first,
        "lagged": mix.lagged,
        "folded": spec.folded,
        "canonical_size": spec.canonical_size,
        "fill_id": history.fill_id,
        "boundary_ids": history.boundary_ids,
        "boundary_visible": history.boundary_visible,
        "boundary_closed": history.boundary_closed,
        "replaced": np.array(history.replaced, dtype=np.int64).reshape(-1, 2),
        "replacement": history.replacement,
        "orders": spec.orders,
        "heads": spec.heads,
        "layer_ids": spec.layer_ids,
        "multipliers": [layer.multipliers for layer in spec.layers],
        "moduli": [tuple(chain.from_iterable(layer.moduli)) for layer in spec.layers],
        "offsets": [layer.offsets for layer in spec.layers],
        "n_rows": [layer.n_rows for layer in spec.layers],
        "row_width": spec.row_width or 0,
        "slices": np.array(spec.slices, dtype=np.int64).reshape(-1, 3),
        "separate_heads": spec.separate_heads,
    }
    texts = {
        "family": str(mix.family),
        "name": spec.name,
        "reduce": spec.reduce or "",
        "vocab_sha256": spec.vocab_sha256 or "",
    }
    arrays = {name: np.array(integers[name], dtype=np.int64) for name in _INTEGER_ARRAYS}
    return arrays | {name: np.array(texts[name]) for name in _TEXT_ARRAYS}


def spec_from_arrays(arrays: Mapping[str, npt.NDArray[Any]], *, where: str = "arrays") -> AddressSpec:
    """The spec whose `spec_to_arrays` these are."""
    values = {name: _integers_of(arrays, name, where) for name in _INTEGER_ARRAYS}
    texts = {name: _text_of(arrays, name, where) for name in _TEXT_ARRAYS}
    bounds = [0, *accumulate(values["heads"])]
    per_layer = ("layer_ids", "multipliers", "moduli", "offsets", "n_rows")
    try:
        layers = tuple(
            LayerAddressing(
                layer_id=layer_id,
                multipliers=tuple(multipliers),
                moduli=tuple(tuple(moduli[start:stop]) for start, stop in pairwise(bounds)),
                offsets=tuple(offsets),
                n_rows=n_rows,
            )
            for layer_id, multipliers, moduli, offsets, n_rows in zip(
                *(values[name] for name in per_layer), strict=True
            )
        )
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            f"{where}: {', '.join(per_layer)} do not agree in shape ({error}); export them anew"
        ) from None
    return AddressSpec(
        name=texts["name"] or Path(where).name,
        provenance=f"arrays of {Path(where).name}",
        canonical_size=values["canonical_size"],
        folded=bool(values["folded"]),
        mix=MixRule(
            family=_family(texts["family"], where),
            word_bits=values["word_bits"],
            oldest_first=bool(values["oldest_first"]),
            lagged=bool(values["lagged"]),
        ),
        history=HistoryRule(
            fill_id=values["fill_id"],
            boundary_ids=tuple(values["boundary_ids"]),
            boundary_visible=bool(values["boundary_visible"]),
            boundary_closed=bool(values["boundary_closed"]),
            replaced=tuple((start, stop) for start, stop in values["replaced"]),
            replacement=values["replacement"],
        ),
        orders=tuple(values["orders"]),
        layers=layers,
        row_width=values["row_width"] or None,
        slices=tuple(RowSlice(*piece) for piece in values["slices"]),
        separate_heads=bool(values["separate_heads"]),
        reduce=texts["reduce"] or None,
        vocab_sha256=texts["vocab_sha256"] or None,
    )


def _array_of(arrays: Mapping[str, npt.NDArray[Any]], name: str, where: str) -> npt.NDArray[Any]:
    import numpy as np

    if name not in arrays:
        raise InvalidInput(f"{where}: no array {name!r}, expected {', '.join((*_INTEGER_ARRAYS, *_TEXT_ARRAYS))}")
    return np.asarray(arrays[name])


def _integers_of(arrays: Mapping[str, npt.NDArray[Any]], name: str, where: str) -> Any:
    array = _array_of(arrays, name, where)
    if array.dtype.kind not in "iub":
        raise InvalidInput(
            f"{where}: array {name!r} has dtype {array.dtype}, expected integers; "
            "a constant that has been through a float is wrong"
        )
    n_dimensions = {"multipliers": 2, "moduli": 2, "offsets": 2, "replaced": 2, "slices": 2, "boundary_ids": 1,
                    "orders": 1, "heads": 1, "layer_ids": 1, "n_rows": 1}.get(name, 0)  # fmt: skip
    width = {"replaced": 2, "slices": 3}.get(name)
    if array.ndim != n_dimensions or (width is not None and array.shape[1] != width):
        raise InvalidInput(
            f"{where}: array {name!r} has shape {array.shape}, expected {n_dimensions} dimensions"
            + (f", the last of {width}" if width is not None else "")
        )
    return array.astype(object).tolist() if array.dtype.kind == "u" else array.tolist()


def _text_of(arrays: Mapping[str, npt.NDArray[Any]], name: str, where: str) -> str:
    array = _array_of(arrays, name, where)
    if array.dtype.kind != "U" or array.ndim:
        raise InvalidInput(f"{where}: array {name!r} is {array.dtype} {array.shape}, expected one string")
    return str(array)


def spec_to_npz(spec: AddressSpec) -> bytes:
    """`spec_to_arrays` as an uncompressed .npz; same spec, same bytes."""
    import numpy as np

    file = io.BytesIO()
    arrays: dict[str, Any] = spec_to_arrays(spec)
    np.savez(file, **arrays)
    return file.getvalue()


def read_spec(path: Path) -> AddressSpec:
    """The spec in a .json or .npz file."""
    if path.suffix == ".npz":
        import numpy as np

        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return spec_from_arrays(dict(arrays), where=str(path))
        except InvalidInput:
            raise
        except (ValueError, TypeError, EOFError, KeyError, BadZipFile) as error:
            raise InvalidInput(f"{path}: not a whole .npz file ({error}); export the spec anew") from None
    return spec_from_json(read_json(path), where=str(path))


def read_json(path: Path) -> Any:
    """The value of a JSON file; InvalidInput with line and column if it is none, or states a key twice."""
    with path.open("rb") as file:
        return _parse_json(file.read(_MAX_JSON_BYTES + 1), str(path))


def read_json_file(file: ByteFile) -> Any:
    """The same of a file that is open, here or behind a URL."""
    return _parse_json(file.read(0, min(file.file_bytes, _MAX_JSON_BYTES + 1)), file.where)


def _parse_json(data: bytes, where: str) -> Any:
    if len(data) > _MAX_JSON_BYTES:
        raise InvalidInput(f"{where}: found more than {_MAX_JSON_BYTES:,} bytes, expected a config or a spec")
    try:
        return json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not JSON that can be read ({error})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in unique if names.count(name) > 1)
        raise ValueError(f"key {twice!r} is stated twice")
    return unique
