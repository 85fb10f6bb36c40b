"""The addressing of a table as explicit arrays: everything a hash needs and nothing that derives it.

Recipes (`recipes.py`) create specs; files are authoritative. A spec knows no bytes: which codec holds a row's
values is the table's business.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from zipfile import BadZipFile

from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.units import canonical_json, int_from_json, json_int

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from engram_tables.address.vocabulary import Vocabulary

SCHEMA = "engram.spec/1"
XOR_MULTIPLY = "xor-multiply"
_MAX_ORDER = 16
_INT64_MAX = 2**63 - 1


class Addresses(NamedTuple):
    """Where the rows of each token lie.

    Attributes
    ----------
    rows
        int64 (tokens, layers, columns), row ids global within their layer; columns are order-major, head-minor.
    keys
        uint64 (tokens, layers, orders): the mix before the modulus, which names an n-gram exactly: two n-grams of one
        order with equal keys own the same rows under every head.
    """

    rows: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class LayerAddressing:
    """The constants of one layer.

    Attributes
    ----------
    multipliers
        One per look-back, newest token first.
    moduli
        Per order, per head.
    offsets
        Per column: the row at which that head's rows begin.
    n_rows
        Rows of the layer's table.
    """

    layer_id: int
    multipliers: tuple[int, ...]
    moduli: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    n_rows: int


@dataclass(frozen=True, kw_only=True)
class AddressSpec:
    """Which rows an n-gram owns, layer by layer.

    Attributes
    ----------
    name, provenance
        For people: what it addresses and where the constants come from.
    canonical_size
        Canonical ids run from 0 to canonical_size - 1.
    fill_id
        Canonical id that stands where the history is missing or dead.
    orders
        Ascending; an order is the n of its n-grams.
    row_width
        Values of one row, or None if unknown.
    vocab_sha256
        Digest of the vocabulary's map (little-endian int32), or None if the spec does not say.
    """

    name: str
    provenance: str
    canonical_size: int
    fill_id: int
    orders: tuple[int, ...]
    layers: tuple[LayerAddressing, ...]
    row_width: int | None = None
    vocab_sha256: str | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def max_order(self) -> int:
        """The longest n-gram, and the number of multipliers a layer has."""
        return self.orders[-1]

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads per order."""
        return tuple(len(heads) for heads in self.layers[0].moduli)

    @property
    def n_columns(self) -> int:
        """Rows read per token and layer: one per order and head."""
        return sum(self.heads)

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Layer ids in the spec's order."""
        return tuple(layer.layer_id for layer in self.layers)

    @property
    def n_rows(self) -> int:
        """Rows of all layers together."""
        return sum(layer.n_rows for layer in self.layers)

    def layer(self, layer_id: int) -> LayerAddressing:
        """The constants of one layer; InvalidInput if the spec has no such layer."""
        for layer in self.layers:
            if layer.layer_id == layer_id:
                return layer
        raise InvalidInput(f"layer {layer_id}: {self.name} has layers {', '.join(map(str, self.layer_ids))}")

    def columns(self) -> list[tuple[int, int]]:
        """(order, head) of every column."""
        return [(order, head) for order, n in zip(self.orders, self.heads, strict=True) for head in range(n)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the addressing alone, so that every route to one addressing gives one fingerprint.

        Not in it: name, provenance, row width, and the vocabulary's digest, which a model's config does not state.
        """
        return hashlib.sha256(canonical_json(self._addressing())).hexdigest()

    def address(
        self,
        canonical_ids: npt.ArrayLike,
        dead: npt.ArrayLike | None = None,
        history: npt.ArrayLike | None = None,
        *,
        threads: int | None = None,
    ) -> Addresses:
        """Rows and keys of a run of tokens.

        Parameters
        ----------
        canonical_ids
            Integers (tokens,), each from 0 to canonical_size - 1; what stands at dead positions is not looked at.
        dead
            bool (tokens,): True where the token takes no part (an image span). Its own window and every look-back
            that would pass it are filled.
        history
            Up to max_order - 1 canonical ids before the chunk, oldest first, -1 where dead. Fewer mean that the
            sequence began there, and none that it begins with this chunk. Only the last max_order - 1 are looked at.
        threads
            Worker threads, all usable CPUs by default; the result is the same for any number.

        Raises
        ------
        InvalidInput
            An id out of range, with its position; a mask of another length.
        """
        from engram_tables.address.hashing import hash_tokens

        return hash_tokens(self, canonical_ids, dead=dead, history=history, threads=threads)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise `SpecMismatch` if `vocabulary` is not the one this spec addresses."""
        if self.canonical_size != vocabulary.canonical_size:
            raise SpecMismatch(
                f"spec {self.name}: made for {self.canonical_size:,} canonical ids, the vocabulary of "
                f"{vocabulary.source} has {vocabulary.canonical_size:,}; use the vocabulary that the model was "
                "trained with"
            )
        if self.vocab_sha256 is not None and self.vocab_sha256 != vocabulary.map_sha256:
            raise SpecMismatch(
                f"spec {self.name}: made for the vocabulary of digest {self.vocab_sha256}, the vocabulary of "
                f"{vocabulary.source} has {vocabulary.map_sha256}; equal in size, but every id may mean another token"
            )

    def with_vocabulary(self, vocabulary: Vocabulary) -> AddressSpec:
        """This spec bound to `vocabulary`; SpecMismatch if they do not belong together."""
        self.check_vocabulary(vocabulary)
        return replace(self, vocab_sha256=vocabulary.map_sha256)

    def _addressing(self) -> dict[str, Any]:
        return {
            "family": XOR_MULTIPLY,
            "canonical_size": self.canonical_size,
            "fill_id": self.fill_id,
            "orders": list(self.orders),
            "layers": [
                {
                    "layer_id": layer.layer_id,
                    # Always strings: the rule of 2^53 would change a constant's type with the vocabulary's size.
                    "multipliers": [str(multiplier) for multiplier in layer.multipliers],
                    "moduli": [[json_int(modulus) for modulus in heads] for heads in layer.moduli],
                    "offsets": [json_int(offset) for offset in layer.offsets],
                    "n_rows": json_int(layer.n_rows),
                }
                for layer in self.layers
            ],
        }

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; integers past 2^53 and all multipliers are decimal strings."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "provenance": self.provenance,
            "row_width": self.row_width,
            "vocab_sha256": self.vocab_sha256,
            "addressing": self._addressing(),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_json(cls, data: Any, *, where: str = "spec") -> Self:
        """The spec that `to_json` wrote.

        Raises
        ------
        InvalidInput
            Another schema or family, a missing or wrong value, or a fingerprint that differs from the constants.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise InvalidInput(f"{where}: found schema {found!r}, expected {SCHEMA!r}; see `engram spec make --help`")
        try:
            spec = cls(
                name=_text(data, "name", where),
                provenance=_text(data, "provenance", where),
                row_width=None
                if data["row_width"] is None
                else int_from_json(data["row_width"], f"{where}: row_width"),
                vocab_sha256=None if data["vocab_sha256"] is None else _text(data, "vocab_sha256", where),
                **_addressing_from_json(data["addressing"], where),
            )
            stated = _text(data, "fingerprint", where)
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

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The addressing as named arrays: int64, moduli and offsets (layers, columns)."""
        import numpy as np

        return {
            "canonical_size": np.array(self.canonical_size, dtype=np.int64),
            "fill_id": np.array(self.fill_id, dtype=np.int64),
            "orders": np.array(self.orders, dtype=np.int64),
            "heads": np.array(self.heads, dtype=np.int64),
            "layer_ids": np.array(self.layer_ids, dtype=np.int64),
            "multipliers": np.array([layer.multipliers for layer in self.layers], dtype=np.int64),
            "moduli": np.array([sum(layer.moduli, ()) for layer in self.layers], dtype=np.int64),
            "offsets": np.array([layer.offsets for layer in self.layers], dtype=np.int64),
            "n_rows": np.array([layer.n_rows for layer in self.layers], dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], *, where: str = "arrays") -> Self:
        """The spec whose `arrays` these are; `row_width` (0: unknown), `name` and `vocab_sha256` may stand beside."""
        import numpy as np

        names = (
            "canonical_size",
            "fill_id",
            "orders",
            "heads",
            "layer_ids",
            "multipliers",
            "moduli",
            "offsets",
            "n_rows",
        )
        for name in names:
            if name not in arrays:
                raise InvalidInput(f"{where}: no array {name!r}, expected {', '.join(names)}")
            if arrays[name].dtype.kind not in "iu":
                raise InvalidInput(
                    f"{where}: array {name!r} has dtype {arrays[name].dtype}, expected integers; "
                    "a constant that has been through a float is wrong"
                )
        values = {name: np.asarray(arrays[name]).tolist() for name in names}
        bounds = [0, *accumulate(values["heads"])]
        layers = tuple(
            LayerAddressing(
                layer_id=layer_id,
                multipliers=tuple(multipliers),
                moduli=tuple(tuple(moduli[a:b]) for a, b in pairwise(bounds)),
                offsets=tuple(offsets),
                n_rows=n_rows,
            )
            for layer_id, multipliers, moduli, offsets, n_rows in zip(
                *(values[name] for name in ("layer_ids", "multipliers", "moduli", "offsets", "n_rows")),
                strict=True,
            )
        )
        extra = {name: str(arrays[name]) for name in ("name", "vocab_sha256") if name in arrays and str(arrays[name])}
        return cls(
            name=extra.get("name", Path(where).name),
            provenance=f"arrays of {Path(where).name}",
            canonical_size=values["canonical_size"],
            fill_id=values["fill_id"],
            orders=tuple(values["orders"]),
            layers=layers,
            row_width=int(arrays["row_width"]) or None if "row_width" in arrays else None,
            vocab_sha256=extra.get("vocab_sha256"),
        )

    def to_npz(self) -> bytes:
        """`arrays` with name, row width and vocabulary digest as an uncompressed .npz; same spec, same bytes."""
        import numpy as np

        file = io.BytesIO()
        arrays: dict[str, Any] = {
            **self.arrays(),
            "name": np.array(self.name),
            "row_width": np.array(self.row_width or 0),
            "vocab_sha256": np.array(self.vocab_sha256 or ""),
        }
        np.savez(file, **arrays)
        return file.getvalue()


def read_spec(path: Path) -> AddressSpec:
    """The spec in a .json or .npz file."""
    if path.suffix == ".npz":
        import numpy as np

        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return AddressSpec.from_arrays(dict(arrays), where=str(path))
        except InvalidInput:
            raise
        except (ValueError, TypeError, EOFError, KeyError, BadZipFile) as error:
            raise InvalidInput(f"{path}: not a whole .npz file ({error}); export the spec anew") from None
    return AddressSpec.from_json(read_json(path), where=str(path))


def read_json(path: Path) -> Any:
    """The value of a JSON file; InvalidInput with line and column if it is none."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: not JSON that can be read ({error})") from None


def _addressing_from_json(data: Any, where: str) -> dict[str, Any]:
    family = data["family"]
    if family != XOR_MULTIPLY:
        raise InvalidInput(f"{where}: found hash family {family!r}, expected {XOR_MULTIPLY!r}; no other is known yet")

    def integer(value: Any, name: str) -> int:
        return int_from_json(value, f"{where}: {name}")

    def integers(values: Any, name: str) -> tuple[int, ...]:
        if not isinstance(values, list):
            raise InvalidInput(f"{where}: {name} is {values!r}, expected a list of integers")
        return tuple(integer(value, name) for value in values)

    return {
        "canonical_size": integer(data["canonical_size"], "canonical_size"),
        "fill_id": integer(data["fill_id"], "fill_id"),
        "orders": integers(data["orders"], "orders"),
        "layers": tuple(
            LayerAddressing(
                layer_id=integer(layer["layer_id"], "layer_id"),
                multipliers=integers(layer["multipliers"], "multipliers"),
                moduli=tuple(integers(heads, "moduli") for heads in layer["moduli"]),
                offsets=integers(layer["offsets"], "offsets"),
                n_rows=integer(layer["n_rows"], "n_rows"),
            )
            for layer in data["layers"]
        ),
    }


def _text(data: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(data[key], str):
        raise InvalidInput(f"{where}: {key} is {data[key]!r}, expected a string")
    return str(data[key])


def _check(spec: AddressSpec) -> None:
    """Every bound that hashing relies on; the kernels check nothing."""

    def need(condition: bool, found: str, expected: str) -> None:
        if not condition:
            raise InvalidInput(f"spec {spec.name}: {found}, expected {expected}; take the constants from their source")

    need(1 <= spec.canonical_size <= 2**32, f"canonical_size is {spec.canonical_size}", "1 to 2^32")
    need(
        0 <= spec.fill_id < spec.canonical_size,
        f"fill_id is {spec.fill_id}",
        f"0 to {spec.canonical_size - 1}",
    )
    ascending = bool(spec.orders) and list(spec.orders) == sorted(set(spec.orders))
    need(
        ascending and spec.orders[0] >= 1 and spec.orders[-1] <= _MAX_ORDER,
        f"orders are {spec.orders}",
        f"different, ascending, 1 to {_MAX_ORDER}",
    )
    need(bool(spec.layers), "there is no layer", "one or more")
    need(len(set(spec.layer_ids)) == len(spec.layers), f"layer ids are {spec.layer_ids}", "different ones")
    need(spec.row_width is None or 1 <= spec.row_width <= 2**20, f"row_width is {spec.row_width}", "1 to 2^20")
    for layer in spec.layers:
        where = f"layer {layer.layer_id}: "
        need(0 <= layer.layer_id < 2**31, f"layer id is {layer.layer_id}", "0 to 2^31 - 1")
        need(
            len(layer.multipliers) == spec.max_order,
            f"{where}{len(layer.multipliers)} multipliers",
            f"{spec.max_order}, one a look-back",
        )
        largest = _INT64_MAX // spec.canonical_size
        for multiplier in layer.multipliers:
            need(
                0 < multiplier <= largest and multiplier % 2 == 1,
                f"{where}multiplier {multiplier}",
                f"an odd number of at most {largest}, so that no product passes 2^63",
            )
        need(
            tuple(len(heads) for heads in layer.moduli) == spec.heads
            and len(layer.moduli) == len(spec.orders)
            and all(spec.heads),
            f"{where}heads per order {tuple(len(heads) for heads in layer.moduli)}",
            "one or more for each order, as in the first layer",
        )
        need(len(layer.offsets) == spec.n_columns, f"{where}{len(layer.offsets)} offsets", f"{spec.n_columns}")
        need(0 < layer.n_rows < 2**48, f"{where}{layer.n_rows} rows", "1 to 2^48 - 1")
        moduli: Sequence[int] = sum(layer.moduli, ())
        for modulus, offset in zip(moduli, layer.offsets, strict=True):
            need(
                modulus >= 1 and offset >= 0 and offset + modulus <= layer.n_rows,
                f"{where}a head of modulus {modulus} at row {offset}",
                f"rows within 0 to {layer.n_rows - 1}",
            )
