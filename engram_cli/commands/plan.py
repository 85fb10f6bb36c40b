"""`engram plan`: whether a machine can feed a model from a table; `engram plan allocate`: what a budget buys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli import console
from engram_cli.commands.plan_view import show_allocation, show_plan
from engram_cli.options import Eos, Force, JsonFlag, LayerIds, ModelPath, Preset, SpecFile, VocabFile
from engram_cli.outputs import hand_out, refuse_outputs
from engram_cli.spec_source import table_sizes

if TYPE_CHECKING:
    from engram_tables.measure.planning.figures import Figure
    from engram_tables.measure.planning.hit_curve import HitCurve
    from engram_tables.measure.planning.machine import Machine
    from engram_tables.measure.planning.sizes import TableSizes

Size = str | None


def plan(
    context: typer.Context,
    preset: Preset = None,
    spec: SpecFile = None,
    model: ModelPath = None,
    eos: Eos = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    codec: Annotated[
        str | None, typer.Option("--codec", metavar="NAME", help="Of the rows; a preset's release has one of its own.")
    ] = None,
    row_bytes: Annotated[
        int | None, typer.Option("--row-bytes", min=1, metavar="N", help="Of a row, in place of a codec.")
    ] = None,
    machine: Annotated[
        list[Path] | None,
        typer.Option("--machine", metavar="FILE", help="A record of bench-offload or plan: its figures. Repeatable."),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(
            "--probe", metavar="DIR", help="Measure this machine now, and the disk with this table or folder."
        ),
    ] = None,
    dram: Annotated[
        Size, typer.Option("--dram", metavar="SIZE", help="Host memory that rows, or --cache, may take.")
    ] = None,
    gpu_memory: Annotated[
        Size, typer.Option("--gpu-memory", metavar="SIZE", help="The GPU's memory that rows may take.")
    ] = None,
    shm: Annotated[Size, typer.Option("--shm", metavar="SIZE", help="Room in /dev/shm.")] = None,
    cxl: Annotated[Size, typer.Option("--cxl", metavar="SIZE", help="Memory behind CXL that rows may take.")] = None,
    disk: Annotated[Size, typer.Option("--disk", metavar="SIZE", help="Room on the disk.")] = None,
    disk_reads_per_s: Annotated[
        float | None, typer.Option("--disk-reads-per-s", metavar="N", help="Random reads of 4 KiB, many in flight.")
    ] = None,
    disk_latency_us: Annotated[
        float | None, typer.Option("--disk-latency-us", metavar="N", help="One random read of an idle disk.")
    ] = None,
    bus: Annotated[
        float | None, typer.Option("--bus-gb-per-s", metavar="N", help="From host memory to the GPU, 10^9 bytes.")
    ] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option(
            "--figure", metavar="NAME=N", help="Any other figure that the plan lists, by its name. Repeatable."
        ),
    ] = None,
    tokens_per_s: Annotated[
        float | None,
        typer.Option("--tokens-per-s", metavar="N", help="Decoded tokens that are wanted, of all streams together."),
    ] = None,
    streams: Annotated[int, typer.Option("--streams", min=1, help="Sequences decoded at the same time.")] = 1,
    step_ms: Annotated[
        float | None, typer.Option("--step-ms", metavar="N", help="A decoding step of the model without waiting.")
    ] = None,
    compute_tflops: Annotated[
        float | None,
        typer.Option("--compute-tflops", metavar="N", help="In place of --step-ms: what multiplies a model's layers."),
    ] = None,
    model_shape: Annotated[
        str | None, typer.Option("--model-shape", metavar="NAME", help="Whose layers; the table's own if it has some.")
    ] = None,
    model_layers: Annotated[
        int | None, typer.Option("--model-layers", min=1, metavar="N", help="Decoder layers of the model.")
    ] = None,
    prefill_tokens_per_s: Annotated[
        float | None, typer.Option("--prefill-tokens-per-s", metavar="N", help="Prompt tokens beside decoding.")
    ] = None,
    chunk: Annotated[int, typer.Option("--chunk", min=1, help="Prompt tokens that are looked up at once.")] = 512,
    most_loss: Annotated[
        float, typer.Option("--most-loss", metavar="SHARE", help="Of a step's time that may go by waiting for rows.")
    ] = 0.03,
    hit_curve: Annotated[
        Path | None, typer.Option("--hit-curve", metavar="FILE", help="A record of simulate: hits by cache size.")
    ] = None,
    hit_ratio: Annotated[
        float | None, typer.Option("--hit-ratio", metavar="SHARE", help="In place of a curve: what the cache answers.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="NAME", help="Of the curve; tiered if the record has it.")
    ] = None,
    cache: Annotated[
        str,
        typer.Option(
            "--cache", metavar="SIZE", help="Host memory in front of the disk; with --hit-curve or --hit-ratio."
        ),
    ] = "0",
    bundle_budget: Annotated[
        str, typer.Option("--bundle-budget", metavar="SIZE", help="Bytes of bundles beside the rows on disk.")
    ] = "0",
    bundle_reads: Annotated[
        float | None,
        typer.Option(
            "--bundle-reads",
            metavar="N",
            help="Reads a token that reach the disk with these bundles, behind --cache if there is one; a record of "
            "`simulate --bundles` (--hit-curve) tells them.",
        ),
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="host|gpu", help="Whose memory the rows are brought to.")] = "host",
    placement: Annotated[
        list[str] | None, typer.Option("--placement", metavar="NAME", help="Only this one. Repeatable.")
    ] = None,
    force: Force = False,
    as_json: JsonFlag = False,
    record_file: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Write the whole record.")
    ] = None,
) -> None:
    """Judge whether a machine can feed a model from a table: for each placement what it needs, how long rows take, and
    what binds.

    Placements are gpu, pinned, dram, shm, cxl, nvme-planar, nvme-packed, nvme-page and nvme-bundled. Every figure says
    where it comes from: measured (a record, or --probe), given (an option), published, assumed or computed. What is
    given comes before what is measured. --probe reads a table's file, or writes 1 GiB into a folder and removes it; it
    changes no setting. The exit status is 0 whatever the verdicts are: scripts read `best` of --json, null where
    nothing is known to be fine.

    \b
    Examples:
      engram plan --preset deepseek-v4.1-flash --probe /data --tokens-per-s 60
      engram plan --preset deepseek-v4.1-flash --machine bench.json --dram 256GB --tokens-per-s 400 --streams 16
      engram plan --spec spec.json --codec bf16 --disk-reads-per-s 800000 --disk-latency-us 80 --step-ms 12
      engram plan --preset deepseek-v4.1-flash --machine bench.json --hit-curve simulate.json --cache 8GiB --json
      engram plan allocate --total 26.7e9 --active 3.8e9
    """
    if context.invoked_subcommand is not None:
        return
    from engram_tables.measure.planning.load import make_load
    from engram_tables.measure.planning.placements import Placement, Setting
    from engram_tables.measure.planning.plan import make_plan
    from engram_tables.units import parse_bytes

    refuse_outputs({"--record": record_file}, force=force)
    chosen = [_choice("--placement", word, Placement) for word in placement or []] or list(Placement)
    to_gpu = _choice_of("--to", to, ("host", "gpu")) == "gpu"
    table = table_sizes(
        preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocab=vocab, codec=codec, row_bytes=row_bytes
    )
    load = make_load(
        table_name=table.name, tokens_per_s=tokens_per_s, streams=streams, step_ms=step_ms,
        compute_flops=None if compute_tflops is None else compute_tflops * 1e12, shape_name=model_shape,
        model_layers=model_layers, prefill_tokens_per_s=prefill_tokens_per_s, chunk_tokens=chunk, most_loss=most_loss,
    )  # fmt: skip
    curve = _curve(hit_curve, hit_ratio, policy, streams, table)
    probed = None if probe is None else _probe(probe)
    setting = Setting(
        table=table,
        machine=_machine(
            machine or [], probed, dram_bytes=dram, gpu_memory_bytes=gpu_memory, shm_bytes=shm, cxl_bytes=cxl,
            disk_bytes=disk, bus=bus, figures=figure or [], disk_reads_per_s=disk_reads_per_s,
            disk_latency_us=disk_latency_us,
        ),
        curve=curve,
        cache_bytes=parse_bytes(cache),
        bundle_bytes=parse_bytes(bundle_budget),
        bundle_reads=None if bundle_reads is None else _given(bundle_reads, "--bundle-reads"),
        to_gpu=to_gpu,
    )  # fmt: skip
    record = {**make_plan(setting, load, placements=chosen), "probe": probed}
    hand_out(record, show_plan, as_json=as_json, record_file=record_file, force=force)


def allocate(
    parameters: Annotated[
        str | None, typer.Option("--parameters", metavar="N", help="Of the table: 5.7e9, 5.7B or 5700000000.")
    ] = None,
    total: Annotated[
        str | None, typer.Option("--total", metavar="N", help="Of the whole model, its table included.")
    ] = None,
    active: Annotated[
        str | None, typer.Option("--active", metavar="N", help="Of the whole model, what one token uses.")
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option("--share", metavar="SHARE", help="Of total - active for the table. 0.2 and 0.25 by default."),
    ] = None,
    rows_per_head: Annotated[
        int | None,
        typer.Option("--rows-per-head", min=2, metavar="N", help="In place of a budget, as a config has it."),
    ] = None,
    orders: Annotated[str, typer.Option("--orders", metavar="N,N", help="N-gram orders.")] = "2,3",
    heads: Annotated[int, typer.Option("--heads", min=1, help="Heads of each order.")] = 8,
    n_layers: Annotated[int, typer.Option("--n-layers", min=1, help="Layers with a table each.")] = 2,
    row_width: Annotated[int, typer.Option("--row-width", min=1, help="Values of a row.")] = 80,
    codec: Annotated[
        list[str] | None,
        typer.Option("--codec", metavar="NAME", help="Whose bytes to tell. bf16 by default; repeatable."),
    ] = None,
    force: Force = False,
    as_json: JsonFlag = False,
    record_file: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Write the whole record.")
    ] = None,
) -> None:
    """Turn a parameter budget into rows, heads and bytes, beside what the paper says of such budgets.

    The paper gives a table 20 to 25 % of the parameters that a token does not use. Head sizes are primes, as DeepSeek's
    rule takes them; the table is the largest one that the budget holds.

    \b
    Examples:
      engram plan allocate --total 26.7e9 --active 3.8e9
      engram plan allocate --parameters 18.5e9 --orders 2,3 --heads 8 --row-width 80 --codec bf16
      engram plan allocate --rows-per-head 16000000 --orders 2,3,4 --row-width 256 --codec fp8-e4m3-e8m0
    """
    from engram_tables.measure.planning.allocate import CODECS, RULE_SHARES, Budget, TableShape
    from engram_tables.measure.planning.allocate import allocate as allocated
    from engram_tables.units import parse_integers

    refuse_outputs({"--record": record_file}, force=force)
    if rows_per_head is not None and (parameters is not None or total is not None):
        raise typer.BadParameter("--rows-per-head: found a budget too, expected one of them; leave one out")
    if rows_per_head is None and parameters is None and (total is None or active is None):
        raise typer.BadParameter("a budget: found none, expected --total and --active, --parameters or --rows-per-head")
    record = allocated(
        Budget(
            table_parameters=_count("--parameters", parameters),
            total_parameters=_count("--total", total),
            active_parameters=_count("--active", active),
            shares=tuple(share or RULE_SHARES),
        ),
        TableShape(orders=tuple(parse_integers(orders)), heads=heads, n_layers=n_layers, row_width=row_width),
        codecs=codec or CODECS,
        rows_per_head=rows_per_head,
    )
    hand_out(record, show_allocation, as_json=as_json, record_file=record_file, force=force)


def _curve(
    file: Path | None, hit_ratio: float | None, policy: str | None, streams: int, table: TableSizes
) -> HitCurve | None:
    from engram_tables.measure.planning.hit_curve import constant_curve, curve_of_record
    from engram_tables.measure.planning.machine import read_record

    if file is not None and hit_ratio is not None:
        raise typer.BadParameter("--hit-curve, --hit-ratio: found both, expected one of them; leave one out")
    if policy is not None and file is None:
        raise typer.BadParameter(
            "--policy: found no --hit-curve, expected it, whose policy it is; give both or neither"
        )
    if file is not None:
        name, record = read_record(file)
        return curve_of_record(
            name, record, n_streams=streams, policy=policy, fingerprint=table.fingerprint,
            row_bytes=table.row_bytes, rows_per_token=table.rows_per_token,
        )  # fmt: skip
    return None if hit_ratio is None else constant_curve(_given(hit_ratio, "--hit-ratio"))


def _machine(
    files: list[Path], probed: dict[str, Any] | None, *, bus: float | None, figures: list[str],
    disk_reads_per_s: float | None, disk_latency_us: float | None, **sizes: str | None,
) -> Machine:  # fmt: skip
    from engram_tables.measure.planning.machine import make_machine, read_record
    from engram_tables.units import parse_bytes

    records = [read_record(file) for file in files]
    if probed is not None:
        records.append(("--probe", probed))
    rates = dict(_named(text) for text in figures)
    if bus is not None:
        rates["bus_bytes_per_s"] = _given(bus * 1e9, "--bus-gb-per-s")
    options = {"dram_bytes": "--dram", "gpu_memory_bytes": "--gpu-memory", "shm_bytes": "--shm", "cxl_bytes": "--cxl",
               "disk_bytes": "--disk"}  # fmt: skip
    return make_machine(
        records=records,
        spaces={name: _given(parse_bytes(size), options[name]) for name, size in sizes.items() if size is not None},
        rates=rates,
        disk_reads_per_s=None if disk_reads_per_s is None else _given(disk_reads_per_s, "--disk-reads-per-s"),
        disk_latency_us=None if disk_latency_us is None else _given(disk_latency_us, "--disk-latency-us"),
    )


def _probe(path: Path) -> dict[str, Any]:
    from engram_tables.measure.planning.probing import probe

    with console.progress("measuring", "steps") as progress:
        return probe(path, progress=progress)


def _given(value: float, option: str) -> Figure:
    from engram_tables.measure.planning.figures import given

    return given(value, option)


def _named(text: str) -> tuple[str, Figure]:
    from engram_tables.errors import InvalidInput

    name, _, value = text.partition("=")
    try:
        return name.strip(), _given(float(value), f"--figure {name.strip()}")
    except ValueError:
        raise InvalidInput(f"--figure: found {text[:60]!r}, expected NAME=NUMBER; write cxl_slowdown=3") from None


def _count(option: str, text: str | None) -> int | None:
    """A whole number, also as 5.7e9 or 5.7B, exactly."""
    from decimal import Decimal, InvalidOperation

    from engram_tables.errors import InvalidInput

    if text is None:
        return None
    try:
        digits = text.strip().replace(",", "").replace("_", "")
        # As models are named: 30B, 350M.
        power = {"M": 6, "B": 9, "T": 12}.get(digits[-1:].upper(), 0)
        value = Decimal(digits[:-1] if power else digits) * 10**power
        if value == value.to_integral_value() and 0 <= value < 10**18:
            return int(value)
    except InvalidOperation:
        pass
    raise InvalidInput(f"{option}: found {text[:40]!r}, expected a whole number; write 5.7e9, 5.7B or 5700000000")


def _choice(option: str, word: str, choices: Any) -> Any:
    return choices(_choice_of(option, word, tuple(map(str, choices))))


def _choice_of(option: str, word: str, choices: tuple[str, ...]) -> str:
    from engram_tables.errors import InvalidInput

    if word not in choices:
        raise InvalidInput(f"{option}: found {word[:40]!r}, expected one of {', '.join(choices)}; name one")
    return word
