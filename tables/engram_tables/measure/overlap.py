"""Throughput lost to a table that lies elsewhere, while a model-shaped load runs beside its fetches.

Every way for rows to come runs the same steps in turn: prompts in chunks, whose rows are known from the beginning,
then decoding steps, whose rows are known when the step before has ended. In both the rows of a step are submitted as
soon as they are known, and wanted by the blocks that read the table. The timed window holds the products, the fetches,
their waits and decoding; drawing rows and evicting files lie outside of it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from engram_tables.fetch.gpu.records import Layout
from engram_tables.fetch.schedule import Prefetch
from engram_tables.fetch.table import AUTO, ENGINE_NAMES, Table, open_table
from engram_tables.measure.contention import Counters, contention
from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.generated_rows import GeneratedRows, generated_block, generated_spec
from engram_tables.measure.model_shapes import MODEL_SHAPES, Load
from engram_tables.measure.overlap_report import judge
from engram_tables.measure.overlap_report import summary_lines as summary_lines
from engram_tables.measure.overlap_report import table_rows as table_rows
from engram_tables.measure.overlap_rounds import Rounds, run_rounds
from engram_tables.measure.overlap_ways import (
    DRAM,
    NVME,
    Side,
    Sizes,
    Way,
    codec_of,
    describe_blas,
    device_ways,
    expected_records,
    gpu_side,
    host_side,
    host_ways,
)
from engram_tables.measure.slack import SlackMeter
from engram_tables.measure.trace import Trace, stored_trace, text_trace, uniform_trace
from engram_tables.measure.workload import Workload
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from engram_tables.fetch.gpu.paths import Rows

OVERLAP_SCHEMA = "engram.overlap/1"
HOST, GPU = "host", "gpu"
_DEFAULTS = {
    # On a host the model is narrowed and the batch is small: a processor has a thousandth of a GPU's arithmetic.
    HOST: {"width_divisor": 16, "n_sequences": 32, "chunk_tokens": 512, "steps": 4},
    GPU: {"width_divisor": 1, "n_sequences": 512, "chunk_tokens": 16_384, "steps": 32},
}
_VERIFIED_TOKENS = 64
_TRACE_TOKENS = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapPlan:
    """What to measure.

    Attributes
    ----------
    to, source, engine
        Where the model runs (`host`, `gpu`), where its rows lie (`dram`, `nvme`, `auto`), and the engine of the
        offloaded ways if not the best one.
    model
        One of `MODEL_SHAPES`.
    width_divisor, n_sequences, chunk_tokens, steps
        What the model's widths are divided by, sequences under way, most tokens of a prefill step, and steps of each
        kind in a round; None takes 16, 32, 512 and 4 on a host and 1, 512, 16,384 and 32 on a GPU.
    shortest_tokens, longest_tokens
        Of prompts and of answers.
    load_shares
        Shares of the model's blocks, for the loss against the load.
    depth
        Steps fetched ahead.
    repeats, seconds
        Rounds of every way at least, and timed work of each.
    generated_bytes
        Of the rows that are made in memory where there is no table.
    """

    to: str = HOST
    source: str = AUTO
    engine: str | None = None
    model: str = "engram-paper-4b"
    width_divisor: int | None = None
    n_sequences: int | None = None
    shortest_tokens: int = 100
    longest_tokens: int = 1024
    chunk_tokens: int | None = None
    load_shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    depth: int = 1
    repeats: int = 3
    seconds: float = 0.0
    steps: int | None = None
    generated_bytes: int = 1 << 30
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        known = {
            "to": (HOST, GPU),
            "source": (DRAM, NVME, AUTO),
            "engine": (None, *ENGINE_NAMES),
            "model": tuple(MODEL_SHAPES),
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                listed = ", ".join(choice for choice in choices if choice is not None)
                raise InvalidInput(f"{name}: found {getattr(self, name)!r}, expected one of {listed}")
        least = {"depth": 1, "repeats": 1, "width_divisor": 1, "n_sequences": 1, "chunk_tokens": 1, "steps": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InvalidInput(f"{name}: found {value}, expected {smallest} or more")
        if not self.load_shares or not all(0 < share <= 1 for share in self.load_shares):
            raise InvalidInput(f"load shares: found {self.load_shares}, expected some from above 0 to 1")

    def chosen(self, name: str) -> int:
        """An option, or its default for the side."""
        value = getattr(self, name)
        return int(_DEFAULTS[self.to][name] if value is None else value)


def overlap(
    table_path: str | Path | None,
    *,
    plan: OverlapPlan | None = None,
    corpus: Sequence[str | Path] = (),
    glob: str = "*",
    exclude: Sequence[str] = (),
    vocabulary: Vocabulary | None = None,
    trace_path: str | Path | None = None,
    progress: ProgressHook | None = None,
) -> dict[str, Any]:
    """Measure the loss and give the record, `engram.overlap/1`.

    Parameters
    ----------
    table_path
        A table or a checkpoint; None makes rows in memory, which no disk holds.
    corpus, glob, exclude, vocabulary, trace_path
        Text, or a stored trace, whose rows are looked up; without either, rows are uniform and the record says so.
    progress
        Called with (rounds done, rounds in all at least).

    Returns
    -------
    The record. Its `status` is `measured`, `waived` with a `reason` where this machine has no such device or too
    little memory, or `mismatch` where a way's bytes differed from the slow reading: nothing was timed then.

    Raises
    ------
    TableError, InvalidInput
        The table, the corpus or the plan cannot be used.
    """
    plan = plan or OverlapPlan()
    if table_path is None and (plan.source == NVME or corpus or trace_path is not None):
        raise InvalidInput("overlap: found no table, expected one to read from a disk or to look text up in; name it")
    record: dict[str, Any] = {
        "schema": OVERLAP_SCHEMA,
        "command": command_line(),
        "environment": {**describe(None if table_path is None else Path(table_path)), "blas": describe_blas()},
        "to": plan.to,
        "from": plan.source,
    }
    with ExitStack() as stack:
        try:
            side = host_side() if plan.to == HOST else stack.enter_context(gpu_side())
            rows = _open_rows(table_path, plan, stack)
        except (BackendUnavailable, CapacityError) as error:
            return {**record, "status": "waived", "reason": str(error)}
        if isinstance(rows, Table):
            trace = _trace(rows, corpus, glob, exclude, vocabulary, trace_path, plan.seed)
        else:
            trace = uniform_trace(generated_spec(plan.generated_bytes, rows.layout.layer_ids), seed=plan.seed)
        device_path = Path.cwd() if table_path is None else Path(table_path)
        before, start_ns = Counters.now(device_path), time.perf_counter_ns()
        measured = measure(rows, trace, side, plan, progress)
        elapsed_ns = time.perf_counter_ns() - start_ns
        others = contention(before, Counters.now(device_path), elapsed_ns=elapsed_ns)
        return {**record, **measured, "elapsed_ns": elapsed_ns, "contention": others}


def _open_rows(table_path: str | Path | None, plan: OverlapPlan, stack: ExitStack) -> Rows:
    """A table, or on the way to a GPU a block of generated records, which all ways can share."""
    if table_path is not None:
        table = stack.enter_context(open_table(table_path))
        for layer in table.spec.layers:
            if table.stored.owned(layer.layer_id) != ((0, layer.n_rows),):
                raise InvalidInput(
                    f"{table.path}: found a part of the rows of layer {layer.layer_id}, expected all of them, since a "
                    "model's tokens look all of them up; measure a whole table"
                )
        return table
    spec = generated_spec(plan.generated_bytes, MODEL_SHAPES[plan.model].memory_blocks)
    if plan.to == GPU:
        return generated_block(spec, seed=plan.seed, threads=plan.threads)
    return stack.enter_context(Table(GeneratedRows(spec, seed=plan.seed, threads=plan.threads)))


def _trace(
    table: Table, corpus: Sequence[str | Path], glob: str, exclude: Sequence[str], vocabulary: Vocabulary | None,
    trace_path: str | Path | None, seed: int,
) -> Trace:  # fmt: skip
    if trace_path is not None:
        return stored_trace(table, trace_path, seed=seed)
    if corpus:
        return text_trace(table, corpus, vocabulary=vocabulary, glob=glob, exclude=exclude, seed=seed)
    # Enough rows that they are not the same ones in every round, and no more than 200 MB of them.
    n_tokens = min(_TRACE_TOKENS, (25 << 20) // (len(table.spec.layers) * table.spec.n_columns))
    return uniform_trace(table.spec, n_tokens=max(n_tokens, 1), seed=seed)


def measure(
    rows: Rows, trace: Trace, side: Side, plan: OverlapPlan, progress: ProgressHook | None = None
) -> dict[str, Any]:
    """The measured part of the record: `rows` as `device_ways` takes them, or a table alone on the host's side."""
    workload = Workload.draw(
        n_sequences=plan.chosen("n_sequences"), shortest=plan.shortest_tokens, longest=plan.longest_tokens,
        chunk_tokens=plan.chosen("chunk_tokens"), seed=plan.seed,
    )  # fmt: skip
    layout = Layout.of_stored(rows.stored) if isinstance(rows, Table) else rows.layout
    shape = MODEL_SHAPES[plan.model].reading(layout.layer_ids).narrowed(plan.chosen("width_divisor"))
    sizes = Sizes(plan.depth, workload.largest_step, plan.threads)
    if side.device is None:
        assert isinstance(rows, Table)
        ways = host_ways(rows, plan.source, plan.engine, sizes)
    else:
        ways = device_ways(rows, side, plan.source, plan.engine, sizes)
    try:
        wrong = _mismatches(ways, rows, trace, side, plan)
        part = {
            "model": shape.describe(),
            "side": {"name": side.name, "dtype": side.dtype},
            "workload": {**workload.describe(), "sampled_steps": workload.sample(plan.chosen("steps"))},
            "trace": trace.description,
            "rows": _describe_rows(layout),
            "depth": plan.depth,
            "mismatches": wrong,
        }
        if wrong:
            return {**part, "status": "mismatch", "reason": "records differ from the slow reading; nothing was timed"}
        advance = _counted(progress, len(plan.load_shares) * plan.repeats)
        memory_inputs = layout.n_columns * (_row_width(layout) or 0)
        loads = []
        for share in plan.load_shares:
            cut = shape.cut(share)
            load = Load(side.xp, cut, max_tokens=sizes.max_tokens, memory_inputs=memory_inputs, dtype=side.dtype)
            loads.append({"load_share": share, **_beside(load, ways, workload, trace, side, plan, advance)})
        return {**part, "status": "measured", "loads": loads}
    finally:
        for way in ways:
            way.close()


def _row_width(layout: Layout) -> int | None:
    """Values of a row; None where no codec reads it."""
    codec = layout.codec
    return codec.row_width(layout.row_bytes) if codec is not None and codec.can_decode else None


def _describe_rows(layout: Layout) -> dict[str, Any]:
    return {
        "layer_ids": list(layout.layer_ids),
        "columns": layout.n_columns,
        "row_width": _row_width(layout),
        "row_bytes": layout.row_bytes,
        "codec": None if layout.codec is None else layout.codec.name,
        "n_bytes": layout.n_rows * layout.row_bytes,
        "bytes_per_token": len(layout.layer_ids) * layout.n_columns * layout.row_bytes,
    }


def _beside(
    load: Load, ways: Sequence[Way], workload: Workload, trace: Trace, side: Side, plan: OverlapPlan,
    advance: Callable[[], object],
) -> dict[str, Any]:  # fmt: skip
    """Every way beside one load."""
    steps = workload.sample(plan.chosen("steps"))
    runs = {way.name: Rounds(way, load, side, steps, SlackMeter(side.clock)) for way in ways if way.reason is None}
    run_rounds(tuple(runs.values()), trace, repeats=plan.repeats, seconds=plan.seconds, seed=plan.seed, advance=advance)
    return {
        "blocks": load.shape.blocks,
        "memory_blocks": list(load.shape.memory_blocks),
        "flop_per_token": load.shape.flop_per_token,
        "ways": judge(ways, runs, workload, steps),
    }


def _counted(progress: ProgressHook | None, n_rounds: int) -> Callable[[], object]:
    """Called after each round; rounds beyond the planned ones do not count."""
    done = itertools.count(1)

    def advance() -> None:
        if progress is not None:
            progress(min(next(done), n_rounds), n_rounds)

    return advance


def _mismatches(ways: Sequence[Way], rows: Rows, trace: Trace, side: Side, plan: OverlapPlan) -> list[dict[str, Any]]:
    """The ways whose records, or values, of a batch differ from the slow reading's."""
    n_tokens = min(_VERIFIED_TOKENS, plan.chosen("chunk_tokens"), trace.n_tokens)
    addresses = trace.batch(0, n_tokens)
    expected = expected_records(rows, addresses.rows)
    codec = codec_of(rows)
    wrong = []
    for way in ways:
        if way.reader is None:
            continue
        with Prefetch(way.reader, in_background=way.in_background) as prefetch:
            found = prefetch.take(prefetch.submit(addresses))
            side.after_take()
            side.clock.settle()
            given: NDArray[Any] = np.ascontiguousarray(side.to_host(found))
        wanted: NDArray[Any] = expected
        if given.dtype == np.float32:
            assert codec is not None
            wanted = codec.decode(expected)
        if not np.array_equal(given.view(np.uint8), np.ascontiguousarray(wanted).view(np.uint8)):
            wrong.append({"way": way.name, "engine": way.engine})
    return wrong
