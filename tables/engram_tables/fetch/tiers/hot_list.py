"""Which rows to begin with: the hot list and its file. It knows no tier, and reads no record.

The file is Parquet with the columns `layer_id` (int64), `row` (int64) and `weight` (float64), none of them null, in
descending order of weight, each row once; its schema's metadata has `engram.schema`, which is `engram.hot-list/1`,
and `engram.fingerprint`, which is that of the spec by which the rows were computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.files import new_file

SCHEMA = "engram.hot-list/1"
_SCHEMA_KEY, _FINGERPRINT_KEY = b"engram.schema", b"engram.fingerprint"
_COLUMNS = {"layer_id": "int64", "row": "int64", "weight": "double"}
_MEND = "write the list again"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HotList:
    """Rows in descending order of weight.

    Attributes
    ----------
    layer_ids, rows
        int64 (n,)
    weights
        float64 (n,), finite and 0 or more: how often a row is asked for, in any unit.
    fingerprint
        Of the spec that the rows belong to; None if that is not known.
    """

    layer_ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        check(self, where="hot list")

    def __len__(self) -> int:
        return self.rows.size

    @classmethod
    def of(
        cls, layer_ids: ArrayLike, rows: ArrayLike, weights: ArrayLike, *, fingerprint: str | None = None
    ) -> HotList:
        """A list of rows in any order; of equal weights the lower layer id and row come first."""
        of_layers, of_rows = _as_integers("layer ids", layer_ids), _as_integers("rows", rows)
        of_weights = np.asarray(weights, np.float64)
        if not of_layers.shape == of_rows.shape == of_weights.shape or of_rows.ndim != 1:
            shapes = f"{of_layers.shape}, {of_rows.shape} and {of_weights.shape}"
            raise InvalidInput(
                f"hot list: found layer ids, rows and weights of shapes {shapes}, expected (n,) each; mend them"
            )
        order = np.lexsort((of_rows, of_layers, -of_weights))
        return cls(layer_ids=of_layers[order], rows=of_rows[order], weights=of_weights[order], fingerprint=fingerprint)

    def check_against(self, *, layer_ids: tuple[int, ...], n_rows: NDArray[np.int64], fingerprint: str | None) -> None:
        """Hold the list against a table's layers and the rows of each.

        Raises
        ------
        SpecMismatch
            The list was made for another spec.
        InvalidInput
            A layer or a row that the table does not have.
        """
        if self.fingerprint is not None and fingerprint is not None and self.fingerprint != fingerprint:
            raise SpecMismatch(
                f"hot list: made for the spec of fingerprint {self.fingerprint}, the table has {fingerprint}; make "
                "the list with the table's spec"
            )
        limits = np.zeros(len(self), np.int64)
        for layer_id, of_layer in zip(layer_ids, n_rows.tolist(), strict=True):
            limits[self.layer_ids == layer_id] = of_layer
        outside = np.flatnonzero(self.rows >= limits)
        if outside.size:
            k = int(outside[0])
            raise InvalidInput(
                f"hot list: found row {self.rows[k]} of layer {self.layer_ids[k]} at position {k}, expected rows of "
                f"the layers {', '.join(map(str, layer_ids))} that have {', '.join(map(str, n_rows.tolist()))} rows"
            )


def check(hot: HotList, *, where: str) -> None:
    """Raise `InvalidInput` for what is no hot list."""
    shapes = hot.layer_ids.shape, hot.rows.shape, hot.weights.shape
    if len(set(shapes)) != 1 or hot.rows.ndim != 1:
        raise InvalidInput(f"{where}: found columns of shapes {shapes}, expected (n,) each; {_MEND}")
    dtypes = hot.layer_ids.dtype, hot.rows.dtype, hot.weights.dtype
    if dtypes != (np.dtype(np.int64), np.dtype(np.int64), np.dtype(np.float64)):
        found = ", ".join(map(str, dtypes))
        raise InvalidInput(f"{where}: found columns of {found}, expected int64, int64, float64; {_MEND}")
    usable = np.isfinite(hot.weights) & (hot.weights >= 0)
    _refuse(where, ~usable, "weight", hot.weights, "finite numbers of 0 or more")
    _refuse(where, hot.rows < 0, "row", hot.rows, "0 or more")
    rising = np.concatenate(([False], np.diff(hot.weights) > 0))
    _refuse(where, rising, "weight", hot.weights, "descending weights")
    order = np.lexsort((hot.rows, hot.layer_ids))
    again = np.zeros(len(hot), np.bool_)
    again[order[1:]] = (np.diff(hot.rows[order]) == 0) & (np.diff(hot.layer_ids[order]) == 0)
    _refuse(where, again, "row", hot.rows, "each row of a layer once")


def write_hot_list(path: str | Path, hot: HotList, *, force: bool = False) -> None:
    """Write the file; equal lists make equal bytes with one version of Arrow.

    Raises
    ------
    InvalidInput
        `path` exists and `force` is False.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {_SCHEMA_KEY: SCHEMA.encode()}
    if hot.fingerprint is not None:
        metadata[_FINGERPRINT_KEY] = hot.fingerprint.encode()
    kinds = {"int64": pa.int64(), "double": pa.float64()}
    fields = [pa.field(name, kinds[kind], nullable=False) for name, kind in _COLUMNS.items()]
    columns = [pa.array(column) for column in (hot.layer_ids, hot.rows, hot.weights)]
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=metadata))
    with new_file(Path(path), force=force) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_hot_list(path: str | Path) -> HotList:
    """Read and check a file.

    Raises
    ------
    InvalidInput
        No Parquet file, one of another kind or version, or one whose rows break the rules above.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            _check_schema(path, schema)
            table = file.read()
    except (pa.ArrowException, pa.ArrowInvalid) as error:
        raise InvalidInput(f"{path}: found no whole Parquet file ({error}), expected a hot list; {_MEND}") from None
    except OSError as error:
        if error.errno is None:  # Arrow says so of damaged pages
            raise InvalidInput(f"{path}: found damaged pages ({error}), expected a hot list; {_MEND}") from None
        raise
    for name in _COLUMNS:
        if table[name].null_count:
            raise InvalidInput(f"{path}: found {table[name].null_count} nulls in {name}, expected none; {_MEND}")
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in _COLUMNS}
    fingerprint = (schema.metadata or {}).get(_FINGERPRINT_KEY)
    try:
        return HotList(
            layer_ids=columns["layer_id"], rows=columns["row"], weights=columns["weight"],
            fingerprint=None if fingerprint is None else fingerprint.decode("ascii", "replace"),
        )  # fmt: skip
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _as_integers(what: str, given: ArrayLike) -> NDArray[np.int64]:
    found = np.asarray(given)
    is_whole = found.dtype.kind in "iu" or (found.dtype.kind == "f" and bool((np.rint(found) == found).all()))
    if not is_whole or (found.size and not -(2**63) <= found.max() < 2**63):
        raise InvalidInput(
            f"hot list: found {what} of {found.dtype} that are no 64-bit integers, expected such; convert them first"
        )
    return found.astype(np.int64)


def _check_schema(path: str | Path, schema: Any) -> None:
    named = (schema.metadata or {}).get(_SCHEMA_KEY, b"").decode("ascii", "replace")
    if named != SCHEMA:
        raise InvalidInput(f"{path}: found the schema {named!r}, expected {SCHEMA!r}; is it a hot list?")
    found = {field.name: str(field.type) for field in schema}
    # A name that is there twice counts as one here.
    if found != _COLUMNS or len(schema) != len(_COLUMNS):
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        wanted = ", ".join(f"{name} ({kind})" for name, kind in _COLUMNS.items())
        raise InvalidInput(f"{path}: found the columns {listed}, expected {wanted}; {_MEND}")


def _refuse(where: str, wrong: NDArray[np.bool_], what: str, found: NDArray[Any], expected: str) -> None:
    at = np.flatnonzero(wrong)
    if at.size:
        raise InvalidInput(f"{where}: found {what} {found[at[0]]} at position {at[0]}, expected {expected}; {_MEND}")
