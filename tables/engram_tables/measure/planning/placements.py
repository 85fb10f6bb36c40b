"""Where a table may lie, what it needs there, and how long its rows then take: the arithmetic of a plan.

It judges nothing; `verdict` does. All times are of one fetch of all layers' rows, as `Table.fetch` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from engram_tables.errors import InvalidInput
from engram_tables.fetch.engines.queued import SHORT_ROWS
from engram_tables.measure.planning.disk import Disk
from engram_tables.measure.planning.figures import Figure
from engram_tables.measure.planning.hit_curve import Answered, HitCurve
from engram_tables.measure.planning.machine import Machine
from engram_tables.measure.planning.sizes import RowCost, TableSizes
from engram_tables.storage.table.layout import PACKED, PAGE, SPLIT

# Fewer rows are copied by one thread: waking another one up takes longer.
_ROWS_A_THREAD = 4096


class Placement(StrEnum):
    """Where the rows lie."""

    GPU = "gpu"
    """In the GPU's own memory."""
    PINNED = "pinned"
    """In pinned host memory, read by kernels over the bus."""
    DRAM = "dram"
    """In host memory in huge pages, copied by the CPU."""
    SHM = "shm"
    """In /dev/shm, which has 4 KiB pages unless it is mounted otherwise."""
    CXL = "cxl"
    """In memory behind CXL: a NUMA node without CPUs."""
    NVME_PLANAR = "nvme-planar"
    """On disk as releases keep them: weights and scales apart."""
    NVME_PACKED = "nvme-packed"
    NVME_PAGE = "nvme-page"
    NVME_BUNDLED = "nvme-bundled"
    """On disk, packed, with bundles of hot n-grams beside them."""


DISK_LAYOUTS: Mapping[Placement, str] = {
    Placement.NVME_PLANAR: SPLIT,
    Placement.NVME_PACKED: PACKED,
    Placement.NVME_PAGE: PAGE,
    Placement.NVME_BUNDLED: PACKED,
}
_SPACES = {
    Placement.GPU: "gpu_memory_bytes",
    Placement.PINNED: "dram_bytes",
    Placement.DRAM: "dram_bytes",
    Placement.SHM: "shm_bytes",
    Placement.CXL: "cxl_bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all placements share.

    Attributes
    ----------
    cache_bytes
        Host memory in front of a disk; what it answers is the curve's to say.
    bundle_bytes, bundle_reads
        Bytes of bundles on disk, and reads a token with them, behind the cache where there is one; the reads come from
        the curve's record where None.
    to_gpu
        Whether rows that the CPU gathers go over the bus afterwards.
    """

    table: TableSizes
    machine: Machine
    curve: HitCurve | None = None
    cache_bytes: int = 0
    bundle_bytes: int = 0
    bundle_reads: Figure | None = None
    to_gpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A table in a place.

    Attributes
    ----------
    needs
        Bytes by name of the machine's space.
    reads_per_token
        Of the disk, without a cache and with it; 0 where there is none.
    bytes_per_read
        That a read of the disk moves, mean, in whole sectors.
    """

    placement: Placement
    setting: Setting
    cost: RowCost
    needs: Mapping[str, int]
    disk: Disk | None = None
    answered: Answered = field(default=Answered(0.0, None))
    reads_per_token: float = 0.0
    bytes_per_read: float = 0.0

    def rows_us(self, n_rows: float) -> float:
        """Of a batch of rows that all lie in memory, wherever that is.

        Notes
        -----
        By the CPU: one call, and of each row 1 / random lines a second for its first cache line, `next_line_ns` for
        each further one (both slowed down by 4 KiB pages or CXL), and bytes / (2 memcpy) for writing it: memcpy reads
        and writes. From 8,192 rows on divided by what several threads copy over one. By kernels over the bus, or of the
        GPU's own memory: one call and bytes / rate. Rows that go on to the GPU take a call and bytes / bus more.
        """
        machine, table = self.setting.machine, self.setting.table
        n_bytes = n_rows * table.row_bytes
        if self.placement in (Placement.GPU, Placement.PINNED):
            rate = machine.rate("gpu_bytes_per_s" if self.placement is Placement.GPU else "bus_bytes_per_s")
            return machine.rate("gpu_call_us") + n_bytes / rate * 1e6
        together = machine.rate("copy_scaling") if n_rows >= 2 * _ROWS_A_THREAD else 1.0
        host_us = machine.rate("call_us") + n_rows * self._row_us(1e9 / machine.rate("random_lines_per_s")) / together
        return host_us + (self._upload_us(n_bytes) if self.setting.to_gpu else 0.0)

    def fetch_us(self, n_tokens: float, *, unique: float = 1.0, misses_per_token: float | None = None) -> float:
        """Of one fetch of `n_tokens` tokens.

        Parameters
        ----------
        unique
            Share of the batch's rows that are distinct: an engine reads the others once.
        misses_per_token
            Rows that the cache does not hold; the curve's mean by default.

        Notes
        -----
        From a disk: the rows of the batch as from memory, since all are copied in the end, and the disk's burst of
        what the cache does not answer; planned, where there are more than `SHORT_ROWS` rows or a row has two parts.
        """
        n_rows = n_tokens * self.setting.table.rows_per_token
        if self.disk is None:
            return self.rows_us(n_rows)
        reads = n_tokens * self.reads_per_token * unique
        if misses_per_token is None:
            reads *= 1 - self.answered.hit_ratio
        else:
            reads *= misses_per_token / self.setting.table.rows_per_token
        return self.rows_us(n_rows * unique) + self.disk.burst_us(
            reads, is_planned=n_rows * unique > SHORT_ROWS or self.cost.reads > 1
        )

    def serial_us(self) -> float:
        """Of one token whose rows wait for each other, as a loop over rows would have it."""
        machine, n_rows = self.setting.machine, self.setting.table.rows_per_token
        if self.placement in (Placement.GPU, Placement.PINNED):
            return n_rows * machine.rate("gpu_call_us")
        row_us = self._row_us(machine.rate("dependent_load_ns"))
        if self.disk is None:
            return n_rows * row_us
        return n_rows * row_us + self.disk.serial_us(self.misses_reads())

    def misses_reads(self) -> float:
        """Reads of the disk a token, behind the cache, mean."""
        return self.reads_per_token * (1 - self.answered.hit_ratio)

    def tokens_per_s_at_most(self, *, unique: float = 1.0) -> tuple[str, float]:
        """What limits the rate when enough tokens are asked for at once, and that rate: a name and tokens a second.

        Notes
        -----
        A disk gives rate(bytes_per_read) reads; memory gives what a batch of 65,536 rows takes.
        """
        if self.disk is not None:
            reads = self.misses_reads() * unique
            if reads:
                return "disk reads", self.disk.rate(self.bytes_per_read) / reads
        n_tokens = max(1.0, 65_536 / self.setting.table.rows_per_token)
        name = {Placement.GPU: "GPU memory", Placement.PINNED: "bus"}.get(self.placement, "host memory")
        if self.setting.to_gpu and name == "host memory":
            n_bytes = n_tokens * self.setting.table.rows_per_token * self.setting.table.row_bytes
            if 2 * self._upload_us(n_bytes) > self.rows_us(n_tokens * self.setting.table.rows_per_token):
                name = "bus"
        return name, n_tokens * 1e6 / self.rows_us(n_tokens * self.setting.table.rows_per_token)

    def _row_us(self, first_line_ns: float) -> float:
        """One row by the CPU, whose first line takes so long."""
        machine = self.setting.machine
        read_ns = (first_line_ns + (self.cost.lines - 1) * machine.rate("next_line_ns")) * self._slowdown()
        return read_ns / 1e3 + self.setting.table.row_bytes / (2 * machine.rate("copy_bytes_per_s")) * 1e6

    def _slowdown(self) -> float:
        name = {Placement.SHM: "small_page_slowdown", Placement.CXL: "cxl_slowdown"}.get(self.placement)
        return 1.0 if name is None else self.setting.machine.rate(name)

    def _upload_us(self, n_bytes: float) -> float:
        machine = self.setting.machine
        return machine.rate("gpu_call_us") + n_bytes / machine.rate("bus_bytes_per_s") * 1e6


def place(setting: Setting, placement: Placement) -> Placed:
    """The table in one place.

    Raises
    ------
    InvalidInput
        The rows cannot lie so, or what the times depend on is not known: no disk, no reads with bundles.
    """
    if placement in _SPACES:
        cost = setting.table.row_cost(PACKED)
        return Placed(
            placement=placement, setting=setting, cost=cost, needs={_SPACES[placement]: setting.table.table_bytes}
        )
    cost = setting.table.row_cost(DISK_LAYOUTS[placement])
    if setting.machine.disk is None:
        raise InvalidInput(
            "disk: found no figures, expected some; give --machine RECORD, --probe DIR or --disk-reads-per-s"
        )
    is_bundled = placement is Placement.NVME_BUNDLED
    cache_bytes = setting.cache_bytes
    if is_bundled and not _is_behind_cache(setting):
        # What the cache would answer of what bundles leave is not known: nothing, then.
        cache_bytes = 0
    reads, reads_bytes = _reads(setting, cost, cache_bytes, is_bundled=is_bundled)
    needs = {"disk_bytes": cost.table_bytes + (setting.bundle_bytes if is_bundled else 0)}
    if cache_bytes:
        needs["dram_bytes"] = cache_bytes
    answered = Answered(0.0, None)
    if setting.curve is not None and not is_bundled:
        answered = setting.curve.at(cache_bytes)
    return Placed(
        placement=placement, setting=setting, cost=cost, needs=needs, disk=setting.machine.disk, answered=answered,
        reads_per_token=reads, bytes_per_read=reads_bytes,
    )  # fmt: skip


def _is_behind_cache(setting: Setting) -> bool:
    """Whether the reads with bundles are those that the cache leaves."""
    if setting.bundle_reads is not None or not setting.cache_bytes:
        return True
    curve = setting.curve
    return curve is not None and curve.reads_with_bundles(setting.bundle_bytes, setting.cache_bytes) is not None


def _reads(setting: Setting, cost: RowCost, cache_bytes: int, *, is_bundled: bool) -> tuple[float, float]:
    """Reads a token, and the bytes that one moves, in sectors of 512 bytes."""
    table = setting.table
    row_read_bytes = cost.sectors * 512 / cost.reads
    if not is_bundled:
        return table.rows_per_token * cost.reads, row_read_bytes
    reads = setting.bundle_reads
    with_bundles = None if reads is None else reads.value
    if with_bundles is None and setting.curve is not None:
        with_bundles = setting.curve.reads_with_bundles(setting.bundle_bytes, cache_bytes)
    if with_bundles is None:
        raise InvalidInput(
            "bundles: found no figure for the reads of a token, expected one; give a record of simulate --bundles, or "
            "--bundle-reads"
        )
    # Without a cache every lookup costs one read at least.
    least = 0 if cache_bytes else table.lookups_per_token
    if not least <= with_bundles <= table.rows_per_token:
        raise InvalidInput(
            f"bundles: found {with_bundles:g} reads a token, expected {least} to {table.rows_per_token}; correct it"
        )
    # A found lookup brings all heads at once: the bytes of a token stay, its reads get fewer and longer.
    rows_a_read = max(table.heads) if not with_bundles else min(max(table.heads), table.rows_per_token / with_bundles)
    return with_bundles, row_read_bytes * rows_a_read
