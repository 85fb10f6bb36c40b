"""The ways that a model's rows may come while it runs: resident, or from elsewhere, in the pass or ahead of it.

It makes readers for the ways that this machine has and says why it has not the others. It times nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable, CapacityError
from engram_tables.fetch.engines.copying import MemoryEngine
from engram_tables.fetch.engines.ladder import first_usable
from engram_tables.fetch.readers import HostReader, RecordReader
from engram_tables.fetch.reference import read_batch
from engram_tables.fetch.table import AUTO, Table
from engram_tables.measure.environment import read_meminfo
from engram_tables.measure.generated_rows import GeneratedRows
from engram_tables.measure.residency import evict, preload
from engram_tables.measure.slack import Clock, DeviceClock, HostClock
from engram_tables.storage.codecs.codec import Codec

if TYPE_CHECKING:
    from engram_tables.fetch.gpu.paths import Rows

NO_TABLE, RESIDENT = "no table", "resident"
DRAM, NVME = "dram", "nvme"
# Engines for rows that are not in memory, the one that costs the processor least first.
_DISK_ENGINES = ("uring", "aio", "direct", "willneed", "pread")
_COPY_SHARE = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Where the model runs.

    Attributes
    ----------
    xp, dtype
        NumPy or CuPy, and what products are made of.
    to_host
        An array of `xp` as NumPy's.
    after_take
        Makes this thread see what the consumer's stream sees; on a GPU the products are in that stream themselves.
    """

    name: str
    xp: Any
    dtype: str
    clock: Clock
    to_host: Callable[[Any], NDArray[Any]]
    device: Any = None
    after_take: Callable[[], None] = lambda: None


class Sizes(NamedTuple):
    """What a reader has room for."""

    depth: int
    max_tokens: int
    threads: int | None


@dataclass(slots=True, kw_only=True)
class Way:
    """One way for rows to come, or why there is none.

    Attributes
    ----------
    values
        One layer's records, as they were taken, into what the model multiplies: (tokens, columns x row_width); None
        where no codec reads the rows.
    before_round
        Brings the files into the state that the way is named for; the bytes of them in memory afterwards, or None.
    """

    name: str
    reason: str | None = None
    engine: str | None = None
    reader: RecordReader | None = None
    depth: int = 0
    in_background: bool = False
    values: Callable[[Any], Any] | None = None
    before_round: Callable[[], int | None] = lambda: None
    release: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Give the reader and what was made for it back."""
        if self.reader is not None:
            self.reader.close()
        self.release()


def host_side() -> Side:
    """Products by NumPy's BLAS, which uses every processor that the fetch uses too."""
    return Side(name="host", xp=np, dtype="float32", clock=HostClock(), to_host=np.asarray)


@contextmanager
def gpu_side(device_id: int = 0) -> Iterator[Side]:
    """Products by CuPy in float16, in a stream of its own; CuPy has no bfloat16, which is as fast.

    Raises
    ------
    BackendUnavailable
        There is no GPU, with the reason.
    """
    from engram_tables.fetch.gpu.runtime import cuda_device, require_cupy

    cupy = require_cupy()
    device = cuda_device(device_id)
    with cupy.cuda.Device(device_id), cupy.cuda.Stream(non_blocking=True):
        yield Side(
            name=device.name, xp=cupy, dtype="float16", clock=DeviceClock(cupy), to_host=cupy.asnumpy, device=device
        )


def describe_blas() -> dict[str, Any]:
    """The library behind NumPy's products."""
    found = np.show_config(mode="dicts")
    blas = found.get("Build Dependencies", {}).get("blas", {}) if isinstance(found, dict) else {}
    return {"name": blas.get("name"), "version": blas.get("version")}


# In host memory.


def host_ways(table: Table, source: str, engine: str | None, sizes: Sizes) -> list[Way]:
    """Without a table; resident in huge pages; and the engine, in the pass and ahead."""
    chosen, reason = _engine_name(table, source, engine)
    ways = [Way(name=NO_TABLE), _resident_way(table, sizes)]
    if reason is not None:
        return [*ways, *_both(chosen, None, sizes, engine=chosen, reason=reason)]
    reader = HostReader(
        table, n_slots=sizes.depth + 1, max_tokens=sizes.max_tokens, engine=chosen, threads=sizes.threads
    )
    values, prepare = _decoder(table.stored.codec), partial(_prepare, table, source)
    offloaded = _both(chosen, reader, sizes, engine=chosen, values=values, before_round=prepare)
    # A thread of its own reads ahead, since engines block while they read.
    offloaded[1].in_background = True
    return [*ways, *offloaded]


def _both(name: str, reader: RecordReader | None, sizes: Sizes, **of_both: Any) -> list[Way]:
    """One reader's records in the pass and ahead of it; a table is held, or registered, once for both."""
    return [
        Way(name=f"{name}, {when}", reader=reader, depth=depth, **of_both)
        for when, depth in (("in pass", 0), ("ahead", sizes.depth))
    ]


def _resident_way(table: Table, sizes: Sizes) -> Way:
    n_bytes = sum(file.file_bytes for file in table.stored.files)
    free = read_meminfo().get("MemAvailable")
    if free is not None and n_bytes > free * _COPY_SHARE:
        return Way(name=RESIDENT, reason=f"a copy of {n_bytes} bytes does not fit into the {free} bytes that are free")
    memory = MemoryEngine(table.stored, table.places)
    reader = HostReader(table, n_slots=1, max_tokens=sizes.max_tokens, engine=memory, threads=sizes.threads)
    values = _decoder(table.stored.codec)
    return Way(name=RESIDENT, engine=memory.name, reader=reader, values=values, release=memory.close)


def _engine_name(table: Table, source: str, engine: str | None) -> tuple[str, str | None]:
    """The engine of the offloaded ways, and why it cannot work here."""
    if engine is None and source != NVME:
        return (AUTO if source == AUTO else "gather"), None
    names = (engine,) if engine is not None else _DISK_ENGINES
    if names == (AUTO,):
        return AUTO, None
    rungs = first_usable(table.stored, table.engine, names)
    usable = next((rung for rung in rungs if rung.is_usable), None)
    if usable is not None:
        return usable.engine, None
    return names[0], "; ".join(f"{rung.engine}: {rung.reason}" for rung in rungs)


def _prepare(table: Table, source: str) -> int | None:
    """Files in memory, or out of it; as they are for `auto`. What was made in memory is there."""
    files = table.stored.files
    if isinstance(table.stored, GeneratedRows):
        return None
    if source == NVME:
        return evict(files)
    if source == DRAM:
        preload(files)
    return None


def _decoder(codec: Codec) -> Callable[[Any], Any] | None:
    if not codec.can_decode:
        return None

    def decode(records: NDArray[np.uint8]) -> NDArray[np.float32]:
        return codec.decode(records).reshape(len(records), -1)

    return decode


# On a device.


def device_ways(rows: Rows, side: Side, source: str, engine: str | None, sizes: Sizes) -> list[Way]:
    """Without a table; resident on the device; zero-copy and staged, each in the pass and ahead.

    `rows` is a table, or a block of records in host memory, which all ways share.
    """
    from engram_tables.fetch.gpu.paths import ResidentPath, StagedPath, ZeroCopyPath

    codec = codec_of(rows)
    values = _flat if codec is not None and codec.can_decode else None
    make = partial(_device_reader, rows, side, sizes, values is not None)
    resident, why_not = make(ResidentPath)
    zero_copy, why_no_copy = make(ZeroCopyPath)
    ways = [
        Way(name=NO_TABLE),
        Way(name=RESIDENT, reader=resident, values=values, reason=why_not),
        *_both("zero-copy", zero_copy, sizes, values=values, reason=why_no_copy),
    ]
    if not isinstance(rows, Table):
        staged, why_not = make(StagedPath)
        return [*ways, *_both("staged", staged, sizes, values=values, reason=why_not)]
    chosen, why_not = _engine_name(rows, source, engine)
    staged = None
    if why_not is None:
        staged, why_not = make(partial(StagedPath, engine=chosen))
    prepare, name = partial(_prepare, rows, source), f"staged ({chosen})"
    both = _both(name, staged, sizes, engine=chosen, values=values, reason=why_not, before_round=prepare)
    return [*ways, *both]


def _device_reader(
    rows: Rows, side: Side, sizes: Sizes, is_decoded: bool, path: Callable[..., RecordReader]
) -> tuple[RecordReader | None, str | None]:
    """A reader, or why there is none."""
    from engram_tables.fetch.gpu.device_reader import Shape

    output = "float32" if is_decoded else "records"
    shape = Shape(n_slots=sizes.depth + 1, max_tokens=sizes.max_tokens, output=output)
    try:
        return path(rows, side.device, shape, threads=sizes.threads), None
    except (BackendUnavailable, CapacityError) as error:
        return None, str(error)


def _flat(values: Any) -> Any:
    return values.reshape(len(values), -1)


def codec_of(rows: Rows) -> Codec | None:
    """What reads the records, if anything does."""
    return rows.stored.codec if isinstance(rows, Table) else rows.layout.codec


def expected_records(rows: Rows, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The slow reading of int64 (tokens, layers, columns): a table's by its files, a block's row after row."""
    if isinstance(rows, Table):
        return read_batch(rows.stored, wanted)
    layout = rows.layout
    out = np.empty((*wanted.shape, layout.row_bytes), np.uint8)
    firsts = {span.layer: span.first_position for span in reversed(layout.spans)}
    for token, layer, column in np.ndindex(wanted.shape):
        position = firsts[layer] + int(wanted[token, layer, column])
        out[token, layer, column] = rows.array[position, : layout.row_bytes]
    return out
