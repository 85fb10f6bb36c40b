"""Memory in front of an engine, on the host or on a device, as a benchmark asks and counts it. It times nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.gpu.cache import CachedPath
from engram_tables.fetch.gpu.device import Device
from engram_tables.fetch.gpu.device_reader import DevicePath, Shape
from engram_tables.fetch.gpu.paths import StagedPath
from engram_tables.fetch.table import Table
from engram_tables.fetch.tiers.budget import MemoryTier, TierPlan
from engram_tables.fetch.tiers.cache_kernels import WAYS
from engram_tables.fetch.tiers.hot_list import HotList
from engram_tables.fetch.tiers.tiered import TieredEngine, make_tiers
from engram_tables.measure.offload.gpu import fetch_to_device
from engram_tables.measure.offload.lookups import Asked, Fetch, fetcher
from engram_tables.units import format_bytes

_HOT_ROWS_AT_ONCE = 4096

Level = dict[str, Any]
"""One tier as a record has it: what it is, and what it has done since it was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """A way for rows to come: through memory in front of an engine, or by that engine alone.

    Attributes
    ----------
    tier
        Its name; None without memory in front.
    engine
        What a record calls the way.
    fetch
        One batch, as it is timed.
    read
        One batch's records in host memory, uint8 (rows, row_bytes), as they are compared.
    levels
        A snapshot of every tier, the nearest one first; none without memory in front.
    """

    tier: str | None
    engine: str
    fetch: Fetch
    read: Callable[[Asked], NDArray[np.uint8]]
    levels: Callable[[], list[Level]]


def tier_name(tiers: tuple[MemoryTier, ...]) -> str:
    """What a tier, or a chain of them, is called.

    >>> tier_name((MemoryTier(budget_bytes=2 << 30, is_locked=True), MemoryTier(budget_bytes=9 << 30, node=1)))
    '2 GiB locked + 9 GiB on node 1'
    """
    return " + ".join(
        f"{_short(tier.budget_bytes)}{' locked' * tier.is_locked}"
        f"{'' if tier.node is None else f' on node {tier.node}'}{'' if tier.huge_pages else ' plain pages'}"
        for tier in tiers
    )


def _short(n_bytes: int) -> str:
    number, _, unit = format_bytes(n_bytes).partition(" (")[0].rpartition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def host_engine(table: Table, engine: str, threads: int | None) -> Front:
    """An engine alone."""
    return _on_host(table, None, engine, engine, threads, list)


def host_tiers(
    table: Table, engine: str, tiers: tuple[MemoryTier, ...], hot: HotList | None, threads: int | None, stack: ExitStack
) -> Front:
    """Tiers in front of an engine of the table; `stack` closes them."""
    made = _made_tiers(table, engine, tiers, hot, stack)
    return _on_host(table, tier_name(tiers), engine, made, threads, partial(_tier_levels, made))


def _on_host(
    table: Table, tier: str | None, name: str, engine: str | Engine, threads: int | None,
    levels: Callable[[], list[Level]],
) -> Front:  # fmt: skip
    fetch = fetcher(table, engine, threads)

    def read(asked: Asked) -> NDArray[np.uint8]:
        out = np.zeros((asked.n_rows, table.row_bytes), np.uint8)
        fetch(asked, out)
        return out

    return Front(tier=tier, engine=name, fetch=fetch, read=read, levels=levels)


def device_engine(table: Table, engine: str, device: Device, shape: Shape, stack: ExitStack) -> Front:
    """An engine alone, whose rows are copied to the device."""
    return _on_device(table, None, StagedPath(table, device, shape, engine=engine), f"staged, {engine}", stack, list)


def device_tiers(
    table: Table, engine: str, tiers: tuple[MemoryTier, ...], hot: HotList | None, device: Device, shape: Shape,
    stack: ExitStack,
) -> Front:  # fmt: skip
    """Tiers of host memory in front of an engine, whose rows are copied to the device."""
    made = _made_tiers(table, engine, tiers, hot, stack)
    path = StagedPath(table, device, shape, engine=made)
    return _on_device(table, tier_name(tiers), path, f"staged, {engine}", stack, partial(_tier_levels, made))


def device_cache(
    table: Table, engine: str, budget_bytes: int, hot: HotList | None, device: Device, shape: Shape, stack: ExitStack
) -> Front:
    """A cache in the device's memory in front of an engine."""
    hot_rows = () if hot is None else hot_runs(hot)
    path = CachedPath(table, device, shape, budget_bytes=budget_bytes, engine=engine, hot_rows=hot_rows)

    def levels() -> list[Level]:
        counts, n_slots = path.counts, path.directory.n_sets * WAYS
        return [
            {
                "memory": "gpu", "budget_bytes": budget_bytes, "held_bytes": n_slots * path.layout.stride_bytes,
                "slots": n_slots, "node": None, "is_locked": None, "rows_pinned": 0,
                "rows_held": counts.n_stored - counts.n_thrown_out, "hits": counts.n_hits, "misses": counts.n_misses,
                "stored": counts.n_stored, "thrown_out": counts.n_thrown_out, "left_out": counts.n_left_out,
            }
        ]  # fmt: skip

    return _on_device(table, f"GPU {_short(budget_bytes)}", path, f"cached, {engine}", stack, levels)


def _on_device(
    table: Table, tier: str | None, path: DevicePath, name: str, stack: ExitStack, levels: Callable[[], list[Level]]
) -> Front:
    stack.callback(path.close)

    def read(asked: Asked) -> NDArray[np.uint8]:
        assert asked.addresses is not None
        arriving = path.begin(asked.addresses, 0)
        arrived = arriving.finish()
        arriving.wait()
        on_host = arrived.get() if hasattr(arrived, "get") else arrived
        # Copied: the next batch is brought to the same place.
        return np.array(on_host, np.uint8, order="C").reshape(-1, table.row_bytes)

    return Front(tier=tier, engine=name, fetch=partial(fetch_to_device, path), read=read, levels=levels)


def _made_tiers(
    table: Table, engine: str, tiers: tuple[MemoryTier, ...], hot: HotList | None, stack: ExitStack
) -> TieredEngine:
    plan = TierPlan(tiers=tiers, hot_list=hot, behind=engine)
    made = make_tiers(table.stored, table.places, table.engine(engine), plan)
    stack.callback(made.close)
    return made


def _tier_levels(engine: TieredEngine) -> list[Level]:
    levels = []
    for each in engine.tiers():
        counts = each.counts()
        levels.append(
            {
                "memory": "host", "budget_bytes": each.tier.budget_bytes, "held_bytes": each.shape.total_bytes,
                "slots": each.shape.n_slots, "node": each.tier.node, "is_locked": each.tier.is_locked,
                "rows_pinned": each.preloaded.pinned, "rows_held": counts.stored - counts.thrown_out,
                "hits": counts.hits_pinned + counts.hits_cached, "misses": counts.misses, "stored": counts.stored,
                "thrown_out": counts.thrown_out, "left_out": counts.left_out + counts.busy,
            }
        )  # fmt: skip
    return levels


def hot_runs(hot: HotList) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The list as layer ids with rows, hottest first but for the order within some thousands."""
    for start in range(0, len(hot), _HOT_ROWS_AT_ONCE):
        part = slice(start, start + _HOT_ROWS_AT_ONCE)
        layer_ids, rows = hot.layer_ids[part], hot.rows[part]
        for layer_id in np.unique(layer_ids).tolist():
            yield layer_id, rows[layer_ids == layer_id]
