"""What only trying shows: reads by every engine, rings and contexts, a GPU's registration of host memory.

Reads alone are tried, of the table's own files; what is opened is closed, and nothing is written or set.
"""

from __future__ import annotations

import time
from functools import cached_property
from importlib.util import find_spec

import numpy as np

from engram_tables.errors import BackendUnavailable, CapacityError, EngramError
from engram_tables.fetch.bundles import Bundles
from engram_tables.fetch.engines.auto import READ_ORDER
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.ladder import Rung, probe
from engram_tables.fetch.engines.queued import DEPTH
from engram_tables.fetch.engines.rings import AioContext, UringRing
from engram_tables.fetch.gpu.host_memory import registered_bytes
from engram_tables.fetch.gpu.runtime import cuda_device, why_no_gpu
from engram_tables.fetch.table import Table
from engram_tables.measure.doctor.system import System
from engram_tables.memory import aligned_bytes
from engram_tables.storage.bundles.bundle_manifest import DIRECTORY_NAME as BUNDLES_NAME
from engram_tables.units import PAGE_BYTES

REGISTERED_BYTES = 64 << 20
STEAL_SECONDS = 0.25
# Without `mapping`, the baseline that nothing falls back to: refused half-way, it keeps the descriptors it has.
_ENGINES = (GatherEngine.name, *READ_ORDER)


class Tries:
    """Each is tried once, when first asked for.

    Parameters
    ----------
    table
        An open one, whose files are read; None where there is none.
    system
        Nothing can be tried where it is a recorded one.
    """

    def __init__(self, table: Table | None, system: System) -> None:
        self.table, self._system = table, system
        self.is_live = system.is_live

    @cached_property
    def rungs(self) -> dict[str, Rung] | None:
        """The engines that `auto` reads with, on the table's own files, by name; None without a table."""
        if not self.is_live or self.table is None or self.why_unread is not None:
            return None
        return {rung.engine: rung for rung in probe(self.table.stored, self.table.engine, _ENGINES)}

    @cached_property
    def why_unread(self) -> str | None:
        """Why the system does not read the files even one after the other; None where it does."""
        if not self.is_live or self.table is None:
            return None
        try:
            # No engine: the plain reading alone, which the others are held against.
            probe(self.table.stored, self.table.engine, ())
        except OSError as error:
            return f"{error} ({'; '.join(getattr(error, '__notes__', ())) or 'read one after the other'})"
        return None

    @cached_property
    def why_no_bundles(self) -> str | None:
        """Why the bundles in the table's directory are refused; None where they are taken, or there are none."""
        if self.table is None or not (place := self.table.path / BUNDLES_NAME).is_dir():
            return None
        try:
            Bundles(self.table.stored, place).close()
        except (EngramError, OSError) as error:
            return str(error)
        return None

    def queue(self, engine: str) -> Rung | None:
        """`uring` or `aio`: on the table's files, or the system's part of it alone; None on a recorded machine."""
        if not self.is_live:
            return None
        return self._alone(engine) if self.rungs is None else self.rungs[engine]

    @cached_property
    def stolen_percent(self) -> float | None:
        """Of all CPUs' time in `STEAL_SECONDS`, what a host gave to others; None where it cannot be watched."""
        before = self._system.cpu_ticks() if self.is_live else None
        if before is None:
            return None
        time.sleep(STEAL_SECONDS)
        after = self._system.cpu_ticks()
        return None if after is None or after[1] <= before[1] else 100 * (after[0] - before[0]) / (after[1] - before[1])

    @cached_property
    def why_no_gpu(self) -> str | None:
        """Why there is none; None where there is one."""
        return "a recorded machine has none to ask" if not self.is_live else why_no_gpu()

    @property
    def has_cupy(self) -> bool:
        """Whether CuPy is installed, usable or not."""
        return find_spec("cupy") is not None

    @cached_property
    def gpu_free_bytes(self) -> int | None:
        """Free memory of the first GPU; None without one."""
        return None if self.why_no_gpu is not None else cuda_device().free_bytes()

    @cached_property
    def why_not_registered(self) -> str | None:
        """Why the first GPU did not take `REGISTERED_BYTES` of host memory; None where it did."""
        device = cuda_device()
        try:
            registered_bytes(REGISTERED_BYTES, device).close()
        except (BackendUnavailable, CapacityError) as error:
            return str(error)
        return None

    def _alone(self, engine: str) -> Rung:
        no_files = np.empty(0, np.int64)
        try:
            if engine == "uring":
                memory = aligned_bytes(DEPTH * PAGE_BYTES, PAGE_BYTES)
                UringRing(n_slots=DEPTH, memory=memory, fds=no_files).close()
            else:
                AioContext(n_slots=DEPTH, fds=no_files).close()
        except BackendUnavailable as error:
            return Rung(engine, False, str(error))
        return Rung(engine, True, None)
