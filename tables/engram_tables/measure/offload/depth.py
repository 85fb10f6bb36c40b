"""How many reads in flight an engine needs: rows a second of a cold table by depth, past saturation."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.reading import DirectReadEngine
from engram_tables.measure.ceilings import sweep_depths
from engram_tables.measure.offload.blocks import engine_at_depth, engines_with_depth
from engram_tables.measure.offload.host import Bench
from engram_tables.measure.offload.lookups import fetcher
from engram_tables.measure.offload.rounds import Case, touched_buffers

_SWEPT_ROWS = 16_384
_REPEATS = 3
_ENOUGH_NS = 500_000_000


def depth_sweeps(bench: Bench) -> list[dict[str, Any]]:
    """For each engine that reads the device by a number of reads in flight: rows a second at each depth.

    Batches are of the trace that the benchmark is about, about 16,384 rows or the longest that is measured, so that
    the deepest sweep still has reads to wait for. Depth is threads for `direct`, and entries of the ring for the
    engines that have one.
    """
    names = (*engines_with_depth(), DirectReadEngine.name)
    wanted = [name for name in names if bench.plan.engine in (None, name)]
    return [_sweep(bench, name) for name in wanted]


def _sweep(bench: Bench, name: str) -> dict[str, Any]:
    lookups = next(iter(bench.lookups.values()))
    usual = max(1, round(_SWEPT_ROWS / lookups.rows_per_token))
    n_tokens = min(usual, max(bench.batches))
    outs = touched_buffers(1, lookups.n_rows(n_tokens), bench.table.row_bytes)

    def measure(depth: int) -> float:
        with ExitStack() as stack:
            engine: str | Engine = name
            if name != DirectReadEngine.name:
                engine = engine_at_depth(name, bench.table.stored, bench.table.places, depth)
                stack.callback(engine.close)
            fetch = fetcher(bench.table, engine, depth if engine == name else None)
            case = Case(bench.path, lookups, fetch, outs, n_tokens=n_tokens, turn=depth, cold_files=bench.files)
            while case.wants_more(_REPEATS, 0.0) and sum(case.noted.round_ns) < _ENOUGH_NS:
                case.round()
        return lookups.n_rows(n_tokens) * 1e9 * case.noted.n_batches / sum(case.noted.round_ns)

    head = {"engine": name, "rows_per_batch": lookups.n_rows(n_tokens)}
    try:
        swept = sweep_depths(measure, bench.plan.depths)
    except (BackendUnavailable, OSError) as error:
        return {**head, "status": "waived", "reason": str(error)}
    rows = {
        "points": [{"depth": point["depth"], "rows_per_s": point["reads_per_s"]} for point in swept["points"]],
        "best_rows_per_s": swept["best_reads_per_s"],
    }
    past = {key: swept[key] for key in ("saturation_depth", "is_past_saturation")}
    return {**head, "status": "measured", **rows, **past}
