"""A table that answers: addresses in, records into the caller's buffer. The engines know how to read."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_tables.address.spec import Addresses, AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.byte_files import is_url
from engram_tables.errors import InvalidInput, NotATable, SpecMismatch
from engram_tables.fetch.engines.auto import AutoEngine
from engram_tables.fetch.engines.engine import DONE, Engine, Pending
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.kernels import DONE as WARM_DONE
from engram_tables.fetch.leases import Leases
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.fetch.warm import ShortRows, ShortTokens, ShortWay
from engram_tables.storage.bundles.bundle_manifest import DIRECTORY_NAME as BUNDLES_NAME
from engram_tables.storage.row_files import RowFiles
from engram_tables.storage.table.reader import StoredTable

if TYPE_CHECKING:
    from engram_tables.fetch.tiers.budget import TierPlan
    from engram_tables.fetch.tiers.tiered import TieredEngine

AUTO = AutoEngine.name
ENGINE_NAMES = (AUTO, *ENGINES)


def open_table(path: str | Path, *, tiers: TierPlan | None = None, bundles: str | Path | bool | None = None) -> Table:
    """Open a table directory for reading, or a released checkpoint whose rows are read where they lie.

    Parameters
    ----------
    path
        A table's directory; or a local directory or file that `storage.sources` knows. Rows that no codec reads are
        taken as bytes.
    tiers
        Memory that keeps rows in front of an engine: what `fetch` uses then, unless another engine is named.
    bundles
        A directory of bundles of this table's rows, which `fetch` takes hot n-grams from. None or True: the one that
        the table's directory holds, which with None need not be there. False: none.

    Raises
    ------
    TableError
        The directory is no table and no checkpoint, or not a whole table, or not one that this version reads.
    InvalidInput
        A URL.
    SpecMismatch
        A checkpoint's tensors contradict its own addressing; bundles are of other rows than the table's.

    Notes
    -----
    A checkpoint has no digests: its bytes are served as they are.
    """
    if is_url(str(path)):
        raise InvalidInput(
            f"{path}: found a URL, expected a table or a checkpoint of this machine; look at its headers with `engram "
            "inspect header`, or build a table from it"
        )
    stored = _open_stored(Path(path))
    try:
        place = _bundles_of(stored, bundles)
        if place is None:
            table = Table(stored)
        else:
            from engram_tables.fetch.bundles import BundledTable

            table = BundledTable(stored, place)
    except BaseException:
        stored.close()
        raise
    try:
        if tiers is not None:
            table.add_tiers(tiers)
    except BaseException:
        table.close()
        raise
    return table


def _bundles_of(stored: RowFiles, bundles: str | Path | bool | None) -> Path | None:
    """The directory of bundles that a table is opened with; whether it is one is found when it is opened."""
    if bundles is False:
        return None
    if isinstance(bundles, str | Path):
        return Path(bundles)
    beside = stored.path / BUNDLES_NAME
    is_there = isinstance(stored, StoredTable) and beside.is_dir()
    return beside if is_there or bundles else None


def _open_stored(path: Path) -> RowFiles:
    try:
        return StoredTable(path)
    except NotATable as error:
        if not path.exists():
            raise
        from engram_tables.storage.sources.opening import open_rows

        try:
            return open_rows(path, opaque=True)
        except InvalidInput as why:
            error.add_note(f"and as a released checkpoint: {why}")
            raise error from None


class Table:
    """An open table. Close it, or use it as a context manager. Safe from many threads, and after a fork.

    Attributes
    ----------
    stored : RowFiles
        Its files: a `StoredTable`, or those of a checkpoint.
    places : Placements
        Where its records lie, for engines that are made beside those of the table.

    Notes
    -----
    Engines, by name, are those of `fetch.engines.ladder`, and `auto`, which looks where the rows are. What is not
    checked when reading: the records' bytes against the manifest's digests; `engram verify` does that.

    A record whose parts lie apart, as weights and scales do in a checkpoint, is put together: the engines that read
    files ask for all parts of a batch at once. A rank's table refuses the rows that it does not hold.
    """

    def __init__(self, stored: RowFiles) -> None:
        self.stored = stored
        self.places = Placements(stored)
        self._leases = Leases(f"table {stored.path}")
        self._engines: dict[str, Engine] = {}
        # The short ways of engines that are read by name; those of a closed engine decline everything.
        self._short_tokens: dict[str, ShortTokens] = {}
        self._short_rows: dict[str, ShortRows] = {}
        self._default: str | Engine = AUTO
        self._closing, self._is_closed = threading.Lock(), False
        self._layers = {layer_id: layer for layer, layer_id in enumerate(stored.layer_ids)}

    @property
    def path(self) -> Path:
        """The table's directory, or the checkpoint's directory or file."""
        return self.stored.path

    @property
    def spec(self) -> AddressSpec:
        """The addressing of the table."""
        return self.stored.spec

    @property
    def row_bytes(self) -> int:
        """Bytes of a record."""
        return self.stored.row_bytes

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The table's own copy of its vocabulary, or None."""
        return self.stored.vocabulary() if isinstance(self.stored, StoredTable) else None

    def fetch(
        self,
        addresses: Addresses,
        out: NDArray[np.uint8] | None = None,
        engine: str | Engine | None = None,
        *,
        threads: int | None = None,
    ) -> NDArray[np.uint8]:
        """The records of all layers of a batch.

        Parameters
        ----------
        addresses
            What `spec.address` gave; `.rows` is int64 (tokens, layers, columns). They are checked once and then used:
            a thread that changes them during the call can end the process.
        out
            uint8 (tokens, layers, columns, row_bytes) in C order to fill; made if None.
        engine
            One of `ENGINE_NAMES`, or an engine that was made for this table. None: the table's tiers if it has some,
            otherwise `auto`.
        threads
            None is the engine's default: usable CPUs for `gather`, 64 for `pread` and `direct`; for `uring` and `aio`
            one, and more where the device waits for it.

        Returns
        -------
        uint8 (tokens, layers, columns, row_bytes), which is `out` if it was given.

        Raises
        ------
        SpecMismatch
            The addresses have another number of layers or columns than the table's spec.
        InvalidInput
            A row that the layer does not have or that is not here, an unusable `out`, an unknown engine, or a
            closed table. Nothing has been written to `out` then.
        BackendUnavailable
            The engine was asked for by name and cannot work here.
        OSError
            A read failed; a note names file and offset. `out` holds no meaningful bytes then.
        """
        engine = self._default if engine is None else engine
        # A token is copied in 5 us: nothing is asked here that a kernel looks at anyway. Whatever it declines (a
        # closed table among it) or what there is no short way for goes the long way below, which has the errors.
        short: ShortTokens | None = None
        if type(engine) is str:
            short = self._short_tokens.get(engine)
        elif getattr(engine, "stored", None) is self.stored and engine.warm is not None:  # type: ignore[union-attr]
            short = engine.warm.fetch_tokens  # type: ignore[union-attr]
        if short is not None and (threads is None or threads == 1):
            if out is None:
                out = self._room(addresses.rows)
            # Arrays of other types or orders than the kernel's are declined by a TypeError of its dispatcher.
            try:
                if short(addresses.rows, out) == WARM_DONE:
                    return out
            except TypeError:
                pass
        rows = self._checked_rows(addresses)
        batch, records = self._prepare(rows, rows.shape[2], 0, out)
        if rows.size:
            if (warm := self._warm_of_used(engine)) is not None:
                self._short_tokens[engine] = warm.fetch_tokens  # type: ignore[index]
            # The engine's own lease keeps its files until it has read.
            self._engine(engine).read(batch, records.reshape(-1, self.row_bytes), threads)
        return records

    def begin(
        self,
        addresses: Addresses,
        out: NDArray[np.uint8],
        engine: str | Engine | None = None,
        *,
        threads: int | None = None,
    ) -> Pending:
        """As `fetch`, but return as soon as the reads are under way: `finish` what is returned, exactly once, before
        `out` is used or the table closed. `addresses` and `out` must stay as they are until then."""
        engine = self._default if engine is None else engine
        rows = self._checked_rows(addresses)
        batch, records = self._prepare(rows, rows.shape[2], 0, out)
        return self._engine(engine).begin(batch, records.reshape(-1, self.row_bytes), threads) if rows.size else DONE

    def fetch_rows(
        self,
        layer_id: int,
        rows: ArrayLike,
        out: NDArray[np.uint8] | None = None,
        engine: str | Engine | None = None,
        *,
        threads: int | None = None,
    ) -> NDArray[np.uint8]:
        """The records of one layer's rows: integers (n,) in, uint8 (n, row_bytes) out; otherwise as
        `fetch`."""
        engine = self._default if engine is None else engine
        layer = self._layers.get(layer_id, -1)
        if layer < 0:
            self.spec.layer(layer_id)  # raises
        short: ShortRows | None = None
        if type(engine) is str:
            short = self._short_rows.get(engine)
        elif getattr(engine, "stored", None) is self.stored and engine.warm is not None:  # type: ignore[union-attr]
            short = engine.warm.fetch_rows  # type: ignore[union-attr]
        if short is not None and (threads is None or threads == 1) and type(rows) is np.ndarray:
            if out is None:
                out = self._room(rows)
            try:
                if short(layer, rows, out) == WARM_DONE:
                    return out
            except TypeError:
                pass
        checked = _as_rows(rows)
        if checked.ndim != 1:
            raise InvalidInput(f"rows: found shape {checked.shape}, expected (n,); flatten them first")
        batch, records = self._prepare(checked, max(checked.size, 1), layer, out)
        if checked.size:
            if (warm := self._warm_of_used(engine)) is not None:
                self._short_rows[engine] = warm.fetch_rows  # type: ignore[index]
            self._engine(engine).read(batch, records, threads)
        return records

    def decode(self, records: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The values of records: uint8 (..., row_bytes) in, float32 (..., row_width) out.

        Raises
        ------
        InvalidInput
            Something else than bytes, or records of another length than this table's.
        """
        if records.ndim < 1 or records.shape[-1] != self.row_bytes:
            raise InvalidInput(
                f"records: found {records.dtype} {records.shape}, expected uint8 (..., {self.row_bytes}); "
                "give records as this table's fetch returns them"
            )
        return self.stored.codec.decode(records)

    def engine(self, name: str) -> Engine:
        """The engine called `name`, made when first asked for; the table closes it.

        Raises
        ------
        InvalidInput
            An unknown name, or a closed table.
        BackendUnavailable
            The engine cannot work here.
        """
        self._leases.check()
        if name not in ENGINE_NAMES:
            raise InvalidInput(f"engine {name!r}: not known, expected one of {', '.join(ENGINE_NAMES)}")
        if name not in self._engines:
            with self._leases:
                auto = name == AUTO
                made = AutoEngine(self.stored, self.engine) if auto else ENGINES[name](self.stored, self.places)
                # Two threads may have made one each: the first to arrive is kept.
                if self._engines.setdefault(name, made) is not made:
                    made.close()
        return self._engines[name]

    def add_tiers(self, plan: TierPlan) -> TieredEngine:
        """Put memory in front of an engine, and use it where none is named; the table closes it. Once at most.

        Raises as `fetch.tiers.tiered.make_tiers`.
        """
        from engram_tables.fetch.tiers.tiered import make_tiers

        if self._default != AUTO:
            raise InvalidInput(f"table {self.path}: has tiers already, expected none; name all of them in one plan")
        made = make_tiers(self.stored, self.places, self.engine(plan.behind), plan)
        self._default = made
        return made

    def close(self) -> None:
        """Wait for the reads in flight, then close files and mappings. Later calls raise `InvalidInput`."""
        self._leases.close()
        # Tiers and `auto` read through the others.
        readers = [self._default, self._engines.get(AUTO), *self._engines.values()]
        for engine in readers:
            if isinstance(engine, Engine):
                engine.close()
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                self.stored.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked_rows(self, addresses: Addresses) -> NDArray[np.int64]:
        rows = addresses.rows
        expected = len(self.spec.layers), self.spec.n_columns
        if rows.ndim != 3 or rows.shape[1:] != expected:
            raise SpecMismatch(
                f"addresses: found rows of shape {rows.shape}, expected "
                f"(tokens, {expected[0]} layers, {expected[1]} columns) as {self.spec.name} has; "
                "compute them with this table's spec"
            )
        return _as_rows(rows)

    def _room(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.empty((*rows.shape, self.row_bytes), np.uint8)

    def _prepare(
        self, rows: NDArray[np.int64], n_columns: int, layer: int, out: NDArray[np.uint8] | None
    ) -> tuple[Batch, NDArray[np.uint8]]:
        self._leases.check()
        expected = (*rows.shape, self.row_bytes)
        n_layers = rows.shape[1] if rows.ndim == 3 else 1
        # Row ids that lie in `out` would be written over before they are used.
        if isinstance(out, np.ndarray) and np.may_share_memory(rows, out):
            rows = rows.copy()
        batch = self.places.check(rows, n_columns=n_columns, first_layer=layer, n_layers=n_layers)
        return batch, np.empty(expected, np.uint8) if out is None else _checked_out(out, expected)

    def _warm_of_used(self, engine: str | Engine) -> ShortWay | None:
        """The short way of an engine that is there by name: what is read once only need not be compiled for."""
        made = self._engines.get(engine) if isinstance(engine, str) else None
        return None if made is None else made.warm

    def _engine(self, engine: str | Engine) -> Engine:
        if not isinstance(engine, Engine):
            return self.engine(engine)
        if engine.stored is not self.stored:
            raise InvalidInput(
                f"engine {engine.name}: found one of table {engine.stored.path}, expected one that was made for table "
                f"{self.path}; name the engine, and this table makes it"
            )
        return engine


def _as_rows(rows: ArrayLike) -> NDArray[np.int64]:
    given = np.asarray(rows)
    if given.size and given.dtype.kind not in "iu":
        raise InvalidInput(f"rows: found {given.dtype}, expected integers; convert them first")
    if given.dtype == np.uint64 and given.size and int(given.max()) >= 2**63:
        raise InvalidInput(f"rows: found row {int(given.max())}, expected at most {2**63 - 1}")
    return np.ascontiguousarray(given, dtype=np.int64).reshape(given.shape)


def _checked_out(out: NDArray[np.uint8], expected: tuple[int, ...]) -> NDArray[np.uint8]:
    if not isinstance(out, np.ndarray) or out.dtype != np.uint8 or out.shape != expected:
        found = f"{getattr(out, 'dtype', type(out).__name__)} {getattr(out, 'shape', '')}"
        raise InvalidInput(f"out: found {found}, expected uint8 {expected}; make it with np.empty")
    if not (out.flags.c_contiguous and out.flags.writeable):
        state = "in another order" if out.flags.writeable else "read-only"
        raise InvalidInput(f"out: found an array {state}, expected one in C order to write to; make it with np.empty")
    return out
