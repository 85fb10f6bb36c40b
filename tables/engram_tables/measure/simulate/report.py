"""Curves of a text over sizes, policies, streams and steps, and the record of them: `engram.simulate/1`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.fetch.tiers.budget import MemoryTier
from engram_tables.fetch.tiers.hot_list import HotList
from engram_tables.measure.caches.accesses import Accesses, State
from engram_tables.measure.caches.curves import Curve
from engram_tables.measure.caches.dense import number
from engram_tables.measure.caches.policies import Policy, simulate
from engram_tables.measure.caches.replays import Watch
from engram_tables.measure.caches.sampling import N_SLICES
from engram_tables.measure.caches.tiered import tier_shape
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.simulate.bundle_sweep import BundleSweep
from engram_tables.measure.simulate.hot_rows import items_of
from engram_tables.measure.simulate.opening import Text
from engram_tables.measure.simulate.representative import repetition_of
from engram_tables.measure.simulate.streams import SCHEDULE_BYTES, Lookups, Schedule, Turns, accesses_of, schedule
from engram_tables.measure.simulate.streams import classes_of as classes_of_spec
from engram_tables.measure.simulate.unique_rows import CHUNKS, unique_rows
from engram_tables.measure.simulate.units import PAGE, ROW, RowBytes, Unit, unit_of
from engram_tables.units import ProgressHook, Stage, unwatched

SCHEMA = "engram.simulate/1"
MEMORY_BYTES = 2 << 30
ACCESS_BYTES = 48
"""What an access takes while its caches are simulated, at most: by which the sample is chosen."""
_LEAST_BYTES = 64 << 20
_STATES = {State.COLD: "cold", State.STEADY: "steady"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatePlan:
    """What is simulated.

    Attributes
    ----------
    sizes_bytes
        Of the caches, ascending: rows or pages alone; only `tiered` counts its headers and slots too.
    turns
        Ways of fetching, each simulated by itself.
    units, layout
        `row`, `page`, or both; the layout that pages are of.
    warm_up
        The share of the text before the steady part.
    memory_bytes
        Of the accesses and what simulating them takes; a text that needs more is sampled.
    """

    sizes_bytes: tuple[int, ...]
    policies: tuple[Policy, ...] = tuple(Policy)
    turns: tuple[Turns, ...] = (Turns(),)
    units: tuple[str, ...] = (ROW,)
    layout: str | None = None
    warm_up: float = 0.5
    memory_bytes: int = MEMORY_BYTES
    chunks: tuple[int, ...] = CHUNKS
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.sizes_bytes or any(b <= a for a, b in zip(self.sizes_bytes, self.sizes_bytes[1:], strict=False)):
            raise InvalidInput(f"sizes: found {self.sizes_bytes}, expected one or more that ascend; order them")
        if not 0 < self.warm_up < 1:
            raise InvalidInput(f"warm-up: found {self.warm_up}, expected a share between 0 and 1; choose one as 0.5")
        if min(self.chunks, default=1) < 1:
            raise InvalidInput(f"chunks: found {min(self.chunks)} tokens, expected 1 or more; leave it out")
        if not self.policies or not self.turns or not self.units:
            raise InvalidInput("plan: found no policy, no streams or no unit, expected some of each; name them")


class _Run(NamedTuple):
    """One unit and one way of fetching."""

    unit: Unit
    turns: Turns
    planned: Schedule
    first_steady_step: int


def simulate_text(
    text: Text,
    rows: RowBytes,
    plan: SimulatePlan,
    *,
    hot_list: HotList | None = None,
    bundles: BundleSweep | None = None,
    stage: Stage = unwatched,
) -> dict[str, Any]:
    """Simulate caches on a text; the record.

    Parameters
    ----------
    hot_list
        What `static` holds and `tiered` begins with. Without one `static` takes the rows that the warm-up looks up
        most, and `tiered` begins empty.
    bundles
        Of this text: what caches of rows leave to read is told for each budget, too.

    Raises
    ------
    InvalidInput
        A size that does not hold one item, a layout that the rows cannot have, or a hot list with others' rows.
    SpecMismatch
        A hot list of another spec.

    Notes
    -----
    Time goes with the accesses: tokens times rows a token times the share that is sampled, for each policy but `lru`
    times the sizes.
    """
    lookups = text.lookups
    units = [unit_of(name, lookups.spec, rows, layout=plan.layout if name == PAGE else None) for name in plan.units]
    hot = None if hot_list is None else items_of(hot_list, lookups)
    _check_sizes(plan, units)
    with stage("looking for repetition", "passes") as progress:
        repetition = repetition_of(lookups)
        progress(1, 2)
        unique = unique_rows(lookups, plan.chunks)
        progress(2, 2)
    curves: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for turns in plan.turns:
        planned = schedule(lookups, turns)
        for unit in units:
            run = _Run(unit, turns, planned, planned.first_step_from(plan.warm_up))
            done = _Simulating(run, lookups, rows, plan, hot, bundles, stage)
            curves += done.curves()
            runs.append(done.description)
            left_out += done.left_out
    return {
        "schema": SCHEMA,
        "command": command_line(),
        "environment": describe(),
        "spec": lookups.spec.name,
        "fingerprint": lookups.spec.fingerprint,
        "row_bytes": rows.n_bytes,
        "row_bytes_source": rows.source,
        "codec": rows.codec,
        "rows_per_token": len(lookups.spec.layers) * lookups.spec.n_columns,
        "corpus": text.description,
        "representative": repetition.describe(),
        "unique_rows": [asdict(of_length) for of_length in unique],
        "warm_up_share": plan.warm_up,
        "memory_bytes": plan.memory_bytes,
        "runs": runs,
        "curves": curves,
        "left_out": left_out,
        "hot_list": None,
        "bundles": None if bundles is None else bundles.record,
    }


class _Simulating:
    """One run: its accesses are made, replayed and given back."""

    def __init__(
        self, run: _Run, lookups: Lookups, rows: RowBytes, plan: SimulatePlan, hot: NDArray[np.uint64] | None,
        bundles: BundleSweep | None, stage: Stage,
    ) -> None:  # fmt: skip
        self.run, self.plan, self.left_out = run, plan, list[dict[str, Any]]()
        self._lookups, self._rows, self._hot = lookups, rows, hot
        # A page holds rows of many n-grams, and is in no bundle.
        self._bundles = bundles if run.unit.name == ROW else None
        unit, turns = run.unit, run.turns
        name = f"{unit.name}s, {turns.n_streams} stream{'s' if turns.n_streams > 1 else ''}"
        if turns.is_prefill:
            name += f", chunks of {turns.tokens_a_turn:,}"
        rate = self._rate()
        self._check_sample(rate)
        with stage(f"looking up ({name})", "tokens") as progress:
            self._accesses = accesses_of(
                lookups, run.planned, unit, rate=rate, first_steady_step=run.first_steady_step,
                groups=None if self._bundles is None else self._bundles.groups, threads=plan.threads, progress=progress,
            )  # fmt: skip
        self._n_distinct_cold = self._count_cold(self._accesses)
        with stage(f"simulating ({name})", "accesses") as progress:
            self._curves = self._simulate(self._accesses, progress)

    @property
    def description(self) -> dict[str, Any]:
        """The run, for the record."""
        run, accesses = self.run, self._accesses
        return run.unit.describe() | {
            "n_streams": run.turns.n_streams,
            "tokens_a_step": run.turns.tokens_a_step,
            "is_prefill": run.turns.is_prefill,
            "n_steps": run.planned.n_steps,
            "first_steady_step": run.first_steady_step,
            "n_accesses": len(accesses),
            "sample_rate": accesses.sample_rate,
            "n_distinct_cold": self._n_distinct_cold,
        }

    def curves(self) -> Iterator[dict[str, Any]]:
        """Each policy's curves, cold and steady."""
        for curve in self._curves:
            for state in State:
                yield self._described(curve, state)

    def _rate(self) -> float:
        """The share of items that the memory holds: all, or one in a whole number."""
        most = self.run.planned.order.size * len(self._lookups.spec.layers) * self._lookups.spec.n_columns
        beside_bytes = SCHEDULE_BYTES + (0 if self._bundles is None else len(self._lookups.spec.orders))
        for_accesses = self.plan.memory_bytes - beside_bytes * self._lookups.n_tokens
        return 1 / max(1, -(-most * ACCESS_BYTES // max(for_accesses, _LEAST_BYTES)))

    def _check_sample(self, rate: float) -> None:
        """Refuse a size of which a slice of the sample would hold nothing, before the text is gone through."""
        least = ceil(N_SLICES / rate * 1.001) * self.run.unit.item_bytes
        if rate < 1 and self.plan.sizes_bytes[0] < least:
            raise InvalidInput(
                f"sizes: found {self.plan.sizes_bytes[0]} bytes, expected {least} or more where one in "
                f"{round(1 / rate):,} {self.run.unit.name}s is sampled; leave it out, or raise --memory"
            )

    def _simulate(self, accesses: Accesses, progress: ProgressHook) -> list[Curve]:
        """A policy after the other, so that what each needs is given back before the next."""
        plan, run = self.plan, self.run
        sizes = [min(size // run.unit.item_bytes, run.unit.n_items) for size in plan.sizes_bytes]
        watch = _Parts(progress, len(plan.policies))
        curves = []
        for policy in plan.policies:
            if policy is Policy.TIERED:
                curves += self._tiered(accesses, watch.next())
            else:
                curves += simulate(
                    accesses, sizes, policies=[policy], hot=self._hot, first_steady_step=run.first_steady_step,
                    threads=plan.threads, progress=watch.next(),
                )  # fmt: skip
        return curves

    def _count_cold(self, accesses: Accesses) -> int:
        """Distinct items of the cold part, of the whole text: their numbers are given as they come."""
        trace = number(accesses, watch=Watch(lambda _done, _total: None, len(accesses)))
        ids = trace.ids[: trace.step_starts[self.run.first_steady_step]]
        return round((int(ids.max()) + 1) / accesses.sample_rate) if ids.size else 0

    def _tiered(self, accesses: Accesses, progress: ProgressHook) -> list[Curve]:
        """The reader's own policy, at the sizes and in the unit that it can have."""
        if self.run.unit.name != ROW:
            self._leave_out(None, "the tiered reader keeps rows, not pages")
            return []
        shapes, sizes = [], []
        n_rows = [layer.n_rows for layer in self._lookups.spec.layers]
        for size in self.plan.sizes_bytes:
            tier = MemoryTier(budget_bytes=size)
            try:
                shapes.append(
                    tier_shape(tier, n_rows=n_rows, row_bytes=self._rows.n_bytes, has_hot_list=self._hot is not None)
                )
                sizes.append(size)
            except InvalidInput as error:
                self._leave_out(size, str(error))
        if not shapes:
            return []
        self._tiered_sizes = sizes
        return simulate(
            accesses, [shape.n_slots for shape in shapes], policies=[Policy.TIERED], hot=self._hot,
            tier_shapes=shapes, first_steady_step=self.run.first_steady_step, threads=self.plan.threads,
            progress=progress,
        )  # fmt: skip

    def _leave_out(self, size_bytes: int | None, reason: str) -> None:
        self.left_out.append(
            {"policy": Policy.TIERED.value, "unit": self.run.unit.name, "cache_bytes": size_bytes, "reason": reason}
        )

    def _described(self, curve: Curve, state: State) -> dict[str, Any]:
        turns, unit = self.run.turns, self.run.unit
        sizes = self._tiered_sizes if curve.policy == Policy.TIERED else list(self.plan.sizes_bytes)
        ratios, misses = curve.hit_ratios(state), curve.step_misses
        n_hits, n_accesses = self._by_class(curve, state)
        left = self._reads_left(n_accesses, n_hits, state)
        points = [
            {
                "cache_bytes": size,
                "cache_items": int(curve.sizes_items[at]),
                "hit_ratio": _known(ratios[at]),
                "error": None if curve.error is None else _known(curve.error[state, at]),
                "is_full": self._n_distinct_cold >= int(curve.sizes_items[at]),
                "misses_a_token_p50": None if misses is None else _counted(misses.p50[state, at]),
                "misses_a_token_p99": None if misses is None else _counted(misses.p99[state, at]),
                "bundled": left[at],
            }
            for at, size in enumerate(sizes)
        ]
        _, named = classes_of_spec(self._lookups.spec)
        return {
            "policy": curve.policy,
            "unit": unit.name,
            "layout": unit.layout,
            "n_streams": turns.n_streams,
            "tokens_a_step": turns.tokens_a_step,
            "is_prefill": turns.is_prefill,
            "state": _STATES[state],
            "n_accesses": int(curve.n_accesses[state].sum()),
            "n_slices": curve.n_slices,
            "basis": curve.basis,
            "points": points,
            "classes": [
                {
                    "layer_id": layer_id,
                    "order": order,
                    "hit_ratios": [_known(ratio) for ratio in _ratios(n_hits[:, nth].sum(axis=1), n_accesses[nth])],
                }
                for nth, (layer_id, order) in enumerate(named)
            ],
        }

    def _by_class(self, curve: Curve, state: State) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Hits (sizes, classes, groups) and accesses (classes, groups); one group without bundles."""
        n_groups = 1 if self._bundles is None else self._bundles.groups.n_groups
        n_hits, n_accesses = curve.n_hits[state], curve.n_accesses[state]
        return n_hits.reshape(len(n_hits), -1, n_groups), n_accesses.reshape(-1, n_groups)

    def _reads_left(
        self, n_accesses: NDArray[np.int64], n_hits: NDArray[np.int64], state: State
    ) -> list[list[dict[str, Any]] | None]:
        """Of each size what bundles of each budget leave to read; None without bundles or a token."""
        planned, spec = self.run.planned, self._lookups.spec
        n_cold = int(planned.step_starts[self.run.first_steady_step])
        n_tokens = n_cold if state is State.COLD else planned.order.size - n_cold
        if self._bundles is None or not n_tokens:
            return [None] * len(n_hits)
        return [
            self._bundles.reads_left(
                n_accesses - of_size, n_accesses, heads=spec.heads * len(spec.layers),
                n_tokens=n_tokens * self._accesses.sample_rate,
            )
            for of_size in n_hits
        ]  # fmt: skip


class _Parts:
    """Several simulations of the same accesses as one progress."""

    def __init__(self, progress: ProgressHook, n_parts: int) -> None:
        self._progress, self._n_parts, self._at = progress, n_parts, -1

    def next(self) -> ProgressHook:
        """The progress of the part that begins now."""
        self._at += 1
        return lambda done, total: self._progress(self._at * total + done, self._n_parts * total)


def _check_sizes(plan: SimulatePlan, units: Sequence[Unit]) -> None:
    for unit in units:
        if plan.sizes_bytes[0] < unit.item_bytes:
            raise InvalidInput(
                f"sizes: found {plan.sizes_bytes[0]} bytes, expected {unit.item_bytes} or more for one {unit.name}; "
                "leave it out"
            )


def _counted(a_token: np.float64) -> float | None:
    """Misses of a token, of the steps' one at a rank; None where there is no step."""
    return None if a_token < 0 else float(a_token)


def _ratios(n_hits: NDArray[np.int64], n_accesses: NDArray[np.int64]) -> NDArray[np.float64]:
    n_all = int(n_accesses.sum())
    return n_hits / n_all if n_all else np.full(n_hits.shape, np.nan)


def _known(ratio: Any) -> float | None:
    return None if np.isnan(ratio) else float(ratio)
