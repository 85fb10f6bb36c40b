"""`engram build-table`: a spec, or a released table, to a table directory."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.commands.build_bundles import (
    BundleOptions,
    bundle_alone,
    bundle_beside,
    plan_beside,
    refuse_several,
)
from engram_cli.commands.build_next_token import (
    FirstValues,
    FromCounts,
    Seed,
    check_next_token,
    next_token_planner,
)
from engram_cli.console import emit, progress, say, show, show_table, spell_vocabulary
from engram_cli.options import (
    DryRun,
    Eos,
    Force,
    JsonFlag,
    Memory,
    ModelPath,
    Opaque,
    Preset,
    RawRows,
    Restart,
    Revision,
    SpecFile,
    Threads,
    VocabFile,
)
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    from engram_tables.address.spec import AddressSpec
    from engram_tables.storage.building.writer import BuildReport, TablePlan
    from engram_tables.storage.codecs.fidelity import Fidelity, Tally
    from engram_tables.storage.sides import Side
    from engram_tables.storage.table.ranks import Rank
    from engram_tables.units import ProgressHook, Stage

_LAYOUT = "packed"
_SHARD_BYTES = "4GiB"


def build_table(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory of the table to be.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="A released table to repack: a checkpoint's directory or file, a .gguf, a table; a path or a URL.",
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec",
            help="How values are stored: f32, f16, bf16, fp8-e4m3-e8m0, int8-row, int4-g32, q8_0 or q4_0. With --from "
            "the source's own by default, whose bytes are copied; another one re-encodes.",
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help="packed: no gaps between records. page: no record crosses 4096 bytes. aligned-N: each record begins "
            "at a multiple of N. split: weights and scales in files of their own.",
        ),
    ] = _LAYOUT,
    preset: Preset = None,
    spec: SpecFile = None,
    model: ModelPath = None,
    eos: Eos = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="IDS",
            help="With --from: take only these layers. Else layer ids for a preset whose ids are not certain: 1,15.",
        ),
    ] = None,
    vocab: VocabFile = None,
    init: FirstValues = None,
    from_counts: FromCounts = None,
    seed: Seed = None,
    std: Annotated[
        str | None,
        typer.Option(
            "--std", metavar="DECIMAL", help="Standard deviation of --init normal; 1/sqrt(row width) if unset."
        ),
    ] = None,
    row_width: Annotated[
        int | None, typer.Option("--row-width", min=1, help="Values of a row, where the spec does not say.")
    ] = None,
    revision: Revision = None,
    raw: RawRows = None,
    opaque: Opaque = False,
    rows: Annotated[
        str | None,
        typer.Option("--rows", metavar="A:B", help="With --from: rows A to B - 1 of each layer; they keep their ids."),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks", metavar="N", min=1, help="With --from: divide among N ranks, as DIR/rank-K-of-N for each K."
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="head|rows|layer", help="Along what --ranks divides; head by default.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="K", min=0, help="With --ranks: this rank's table alone, as DIR.")
    ] = None,
    counts: Annotated[
        Path | None,
        typer.Option(
            "--counts",
            metavar="DIR",
            help="With --from and --codec: n-gram counts of a corpus, by whose lookups rows weigh in the report.",
        ),
    ] = None,
    bundles: Annotated[
        Path | None,
        typer.Option(
            "--bundles",
            metavar="COUNTS",
            help="N-gram counts of a corpus: rows of its hot n-grams are laid together as well, in DIR/bundles, each "
            "of which is then one read.",
        ),
    ] = None,
    bundle_budget: Annotated[
        str | None,
        typer.Option("--bundle-budget", metavar="SIZE", help="With --bundles: bytes of their records and index."),
    ] = None,
    bundles_only: Annotated[
        bool,
        typer.Option(
            "--bundles-only",
            help="With --from and --bundles: make DIR the bundles of a table or checkpoint that stays where it is.",
        ),
    ] = False,
    shard_bytes: Annotated[
        str, typer.Option("--shard-bytes", metavar="SIZE", help="Largest size of one file.")
    ] = _SHARD_BYTES,
    memory: Memory = "1GiB",
    restart: Restart = False,
    dry_run: DryRun = False,
    force: Force = False,
    threads: Threads = None,
    json: JsonFlag = False,
) -> None:
    """Build a table: a fresh one, or one with the rows of a released table, in safetensors shards with a manifest.

    The same inputs give the same bytes on any machine and with any --threads, and a row's bytes do not depend on
    --shard-bytes. The directory appears under its name when it is whole. A run that is stopped leaves what is finished
    in DIR.work, and the same command goes on there. With --vocab the vocabulary is copied into the table, and a spec
    that belongs to another one is refused.

    With --from rows are read where they lie and keep their bytes, unless --codec re-encodes them; then the output says
    how far the new values are from the old ones. The addressing is the source's own; give --preset, --spec or --model
    where it does not state one. A source that changes while it is read is refused.

    With --init next-token each row holds the raw tokens that followed its n-grams in the counted corpus, so that the
    likeliest next tokens can be read back from the rows alone; more rows, heads and values a row keep n-grams apart.

    \b
    Examples:
      engram build-table --preset deepseek-v4.1-flash --codec fp8-e4m3-e8m0 -o flash --dry-run
      engram build-table --spec my.json --vocab v4.vocab.parquet --codec bf16 --layout page -o my-table
      engram build-table --spec my.json --codec f32 --init zeros --row-width 64 --shard-bytes 512MiB -o zeros
      engram build-table --spec my.json --codec bf16 --from-counts followed --init next-token -o knowing
      engram build-table --from DeepSeek-V4.1-Flash --layout page -o flash
      engram build-table --from hf://org/model --revision main --ranks 4 --by head -o ranks
      engram build-table --from Qwen3.8-Flash-Next --codec int4-g32 --counts counts -o small --json | jq .fidelity
      engram build-table --from DeepSeek-V4.1-Flash -o flash --bundles counts --bundle-budget 8GiB
      engram build-table --from flash --bundles-only -o flash/bundles --bundles counts --bundle-budget 8GiB
      engram build-table --from rows.bin --raw codec=bf16,first-byte=4096 --spec my.json -o my-table
    """
    from engram_tables.storage.building.writer import build_tables
    from engram_tables.units import format_bytes, parse_bytes

    fresh_only = {
        "--init": init, "--from-counts": from_counts, "--seed": seed, "--std": std, "--row-width": row_width,
    }  # fmt: skip
    check_next_token(init, from_counts, std)
    source_only = {
        "--revision": revision, "--raw": raw, "--opaque": opaque or None, "--rows": rows, "--ranks": ranks, "--by": by,
        "--rank": rank, "--counts": counts,
    }  # fmt: skip
    for name, value in (source_only if source is None else fresh_only).items():
        if value is not None:
            raise typer.BadParameter(f"{name} goes only {'with' if source is None else 'without'} --from")
    named = _NamedSpec(preset=preset, spec=spec, model=model, eos=eos, vocab=vocab)
    wanted_bundles = _bundle_options(
        bundles, bundle_budget, memory=memory, dry_run=dry_run, force=force, threads=threads, json=json
    )
    if bundles_only:
        others = {"--codec": codec, "--layers": layers, "--vocab": vocab, "--restart": restart or None}
        given = {name for name, value in (source_only | others).items() if value is not None}
        # The only ones with defaults of their own.
        shaped = layout != _LAYOUT or shard_bytes != _SHARD_BYTES
        if source is None or wanted_bundles is None or given or named.is_given or shaped:
            raise typer.BadParameter(
                "--bundles-only goes with --from, --bundles and --bundle-budget, and no choice of rows, codec, layout "
                "or addressing"
            )
        bundle_alone(source, output, wanted_bundles)
        return
    with ExitStack() as stack:
        side = None
        if source is None:
            if not named.is_given:
                raise typer.BadParameter("give --from and a released table, or one of --preset, --spec and --model")
            if codec is None:
                raise typer.BadParameter("give --codec, or --from and a released table")
            shape: dict[str, Any] = {
                "codec": codec, "layout": layout, "seed": seed or 0, "row_width": row_width,
                "shard_bytes": parse_bytes(shard_bytes),
            }  # fmt: skip
            known = None if from_counts is None else next_token_planner(stack, from_counts, parse_bytes(memory))
            plans = {".": _plan_fresh(named, known, layers=layers, init=init or "normal", std=std, **shape)}
        else:
            wanted = _Wanted(
                layout=layout, codec=codec, rows=rows, layers=layers, ranks=ranks, by=by, rank=rank, counts=counts,
                shard_bytes=parse_bytes(shard_bytes),
            )  # fmt: skip
            side = stack.enter_context(_open(source, named, layers=layers, revision=revision, raw=raw, opaque=opaque))
            plans = _plan_repack(stack, side, named, wanted)
            for note in side.source.notes:
                say(f"note: {note}")
        memory_bytes = parse_bytes(memory)
        report = bundle_plan = None
        _note_empty(plans, output)
        if wanted_bundles is not None:
            refuse_several(plans)
            bundle_plan = plan_beside(plans["."].manifest, output, wanted_bundles)

        def show_plans() -> None:
            if not json:
                _print_plans(_records(plans, output, side, None), dry_run=dry_run)

        if dry_run:
            show_plans()
        else:
            report = build_tables(
                plans,
                output,
                force=force,
                restart=restart,
                threads=threads,
                memory_bytes=memory_bytes,
                stage=_after(show_plans),
            )
        records = _records(plans, output, side, report)
    for record in records:
        if json:
            emit(record)
        elif record["fidelity"] is not None:
            _print_fidelity(record["fidelity"])
    if report is not None:
        reused = f", {report.n_blocks_reused:,} blocks of an earlier run" if report.n_blocks_reused else ""
        say(f"wrote {output}, {format_bytes(sum(plan.total_bytes for plan in plans.values()))}{reused}")
    if bundle_plan is not None and wanted_bundles is not None:
        bundle_beside(bundle_plan, output, wanted_bundles)


def _bundle_options(counts: Path | None, budget: str | None, **options: Any) -> BundleOptions | None:
    if (counts is None) != (budget is None):
        raise typer.BadParameter("--bundles and --bundle-budget go together")
    return None if counts is None or budget is None else BundleOptions(counts=counts, budget=budget, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NamedSpec:
    """The options that name an addressing."""

    preset: str | None
    spec: Path | None
    model: str | None
    eos: int | None
    vocab: Path | None

    @property
    def is_given(self) -> bool:
        return any(option is not None for option in (self.preset, self.spec, self.model))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The options that say what of a source is taken, and how it is stored."""

    layout: str
    codec: str | None
    rows: str | None
    layers: str | None
    ranks: int | None
    by: str | None
    rank: int | None
    counts: Path | None
    shard_bytes: int


def _plan_fresh(
    named: _NamedSpec,
    plan_known: Callable[..., TablePlan] | None,
    *,
    layers: str | None,
    init: str,
    std: str | None,
    **options: Any,
) -> TablePlan:
    from engram_cli.spec_source import resolve_spec
    from engram_tables.storage.building.writer import plan_table

    spec = resolve_spec(
        preset=named.preset, spec=named.spec, model=named.model, eos=named.eos, layers=layers, vocab=named.vocab
    )
    if plan_known is not None:
        return plan_known(spec, vocabulary_file=named.vocab, **options)
    return plan_table(spec, vocabulary_file=named.vocab, init=init, std=std, **options)


def _open(
    where: str, named: _NamedSpec, *, layers: str | None, revision: str | None, raw: str | None, opaque: bool
) -> Side:
    """The table or checkpoint, with the addressing that the options name or its own."""
    from engram_cli.raw_rows import parse_raw_rows
    from engram_cli.spec_source import resolve_spec
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.storage.sides import Opening, open_side, side_of
    from engram_tables.storage.sources.opening import open_source
    from engram_tables.storage.table.table_source import find_table
    from engram_tables.units import parse_integers

    spec = None
    if named.is_given:
        eos = named.eos if named.model is not None else None
        spec = resolve_spec(preset=named.preset, spec=named.spec, model=named.model, eos=eos, vocab=named.vocab)
    if find_table(where, revision=revision) is not None:
        side = open_side(where, Opening(revision=revision, is_checked=True))
        if spec is not None and spec.fingerprint != side.spec.fingerprint:
            side.close()
            raise InvalidInput(
                f"{where}: found a table of the fingerprint {side.spec.fingerprint}, expected {spec.fingerprint} as "
                f"spec {spec.name} has; a table names its own addressing: leave out the other one"
            )
        return side
    vocabulary = None if named.vocab is None else load_vocabulary(named.vocab)
    source = open_source(
        where,
        spec=spec,
        vocabulary=None if spec is not None else vocabulary,
        eos=named.eos,
        layers=None if layers is None or raw is not None else parse_integers(layers),
        revision=revision,
        raw=parse_raw_rows(raw),
        opaque=opaque,
    )
    return side_of(source)


def _plan_repack(stack: ExitStack, side: Side, named: _NamedSpec, wanted: _Wanted) -> dict[str, TablePlan]:
    from engram_tables.corpus.counts.counts_store import open_counts
    from engram_tables.storage.building.repack import plan_ranks, plan_repack
    from engram_tables.units import parse_integers

    counts = None if wanted.counts is None else stack.enter_context(open_counts(wanted.counts))
    options: dict[str, Any] = {
        "layout": wanted.layout,
        "codec": wanted.codec,
        "layers": None if wanted.layers is None else parse_integers(wanted.layers),
        "rows": None if wanted.rows is None else _parse_rows(wanted.rows),
        "shard_bytes": wanted.shard_bytes,
        "vocabulary_file": named.vocab,
        "counts": counts,
        "origin": side.manifest,
    }
    if wanted.ranks is None and (wanted.rank is not None or wanted.by is not None):
        raise typer.BadParameter("--rank and --by go only with --ranks")
    by = wanted.by or "head"
    if wanted.ranks is not None and wanted.rank is None:
        return plan_ranks(side.source, by=by, n_ranks=wanted.ranks, **options)
    return {".": plan_repack(side.source, rank=_rank(by, wanted.rank, wanted.ranks), **options)}


def _rank(by: str, rank: int | None, n_ranks: int | None) -> Rank | None:
    from engram_tables.storage.table.ranks import Rank

    return None if rank is None or n_ranks is None else Rank(by=by, rank=rank, n_ranks=n_ranks)


def _parse_rows(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
    if match is None:
        raise InvalidInput(f"--rows: found {text[:50]!r}, expected A:B, the first row and the one after the last")
    return int(match[1]), int(match[2])


def _records(
    plans: dict[str, TablePlan], output: Path, side: Side | None, report: BuildReport | None
) -> list[dict[str, Any]]:
    return [
        _record(plan, output / name, side, report, table_idx) for table_idx, (name, plan) in enumerate(plans.items())
    ]


def _record(
    plan: TablePlan, path: Path, side: Side | None, report: BuildReport | None, table_idx: int
) -> dict[str, Any]:
    from engram_tables.units import json_int

    manifest = plan.manifest
    rank, owned = manifest.rank, manifest.owned
    fidelity = None if report is None else report.fidelity[table_idx]
    return {
        "schema": "engram.build-table/2",
        "path": str(path),
        "dry_run": report is None,
        "spec": manifest.spec.name,
        "fingerprint": manifest.spec.fingerprint,
        "vocab_sha256": manifest.spec.vocab_sha256,
        "has_vocabulary": manifest.vocabulary is not None,
        "codec": manifest.codec,
        "codec_scale": manifest.codec_scale,
        "layout": manifest.layout,
        "row_width": manifest.row_width,
        "row_bytes": manifest.row_bytes,
        "init": None if manifest.init is None else dict(manifest.init),
        "source": None if side is None else _source_record(side),
        "rank": None if rank is None else {"by": rank.by, "rank": rank.rank, "n_ranks": rank.n_ranks},
        "owned": None
        if owned is None
        else [
            {"layer_id": layer_id, "start": json_int(start), "stop": json_int(stop)}
            for layer_id, ranges in owned.items()
            for start, stop in ranges
        ],
        "n_rows": plan.n_rows,
        "total_bytes": plan.total_bytes,
        "n_blocks_reused": None if report is None else report.n_blocks_reused,
        "fidelity": None if fidelity is None else _fidelity_record(fidelity, manifest.spec),
        "files": [{"path": file.path, "file_bytes": file.file_bytes} for file in plan.files],
    }


def _source_record(side: Side) -> dict[str, Any]:
    source = side.source
    return {
        "where": source.where,
        "form": source.form,
        "container": source.container,
        "codec": source.codec.name,
        "row_bytes": source.row_bytes,
        "parts": [part.name for part in source.parts],
        "n_files": len(source.files),
        "n_tensors": len(source.tensors),
        "n_left_out": len(source.left_out),
        "notes": list(source.notes),
    }


def _fidelity_record(fidelity: Fidelity, spec: AddressSpec) -> list[dict[str, Any]]:
    """How far re-encoded values are from the originals, by the head that owns the rows."""
    from engram_tables.storage.row_groups import row_groups

    found = []
    for layer_id in spec.layer_ids:
        for position, group in enumerate(row_groups(spec, layer_id)):
            tally = fidelity.tallies.get((layer_id, position))
            if tally is not None:
                weighted = fidelity.weighted.get((layer_id, position))
                found.append(
                    {
                        "layer_id": layer_id,
                        "order": group.order,
                        "head": group.head,
                        "rows": _tally_record(tally),
                        "lookups": None if weighted is None else _tally_record(weighted),
                    }
                )
    return found


def _tally_record(tally: Tally) -> dict[str, Any]:
    return {
        "n": tally.n_rows,
        "n_changed": tally.n_rows_changed,
        "largest_error": tally.largest_error,
        "rms_error": tally.rms_error,
        "relative_rms_error": tally.relative_rms_error,
    }


def _after(tell: Callable[[], None]) -> Stage:
    """The progress of a build that tells its plan once, when nothing has refused it and before the work."""
    is_told = False

    def stage(task: str, unit: str) -> AbstractContextManager[ProgressHook]:
        nonlocal is_told
        if not is_told:
            is_told = True
            tell()
        return progress(task, unit)

    return stage


def _note_empty(plans: dict[str, TablePlan], output: Path) -> None:
    """Say which ranks have nothing to do: more ranks than there is to divide."""
    empty = [str(output / name) for name, plan in plans.items() if not plan.n_rows]
    if empty:
        say(f"note: no rows in {', '.join(empty)}; fewer ranks, or another --by, leave none empty")


def _print_plans(records: list[dict[str, Any]], *, dry_run: bool) -> None:
    """The plan of a table; of all ranks what they have in common, a line each, and the sum."""
    planned = " (planned, nothing is written)" if dry_run else ""
    if len(records) == 1:
        _print(records[0], planned)
        return
    from engram_tables.units import format_bytes

    _print_stored(records[0], sum(record["n_rows"] for record in records))
    ranks = [
        (record["path"], f"{record['n_rows']:,}", len(record["files"]), f"{record['total_bytes']:,}")
        for record in records
    ]
    show_table(f"Ranks by {records[0]['rank']['by']}{planned}", ("table", "rows", "files", "bytes"), ranks)
    n_files = sum(len(record["files"]) for record in records)
    show(f"in all        {format_bytes(sum(record['total_bytes'] for record in records))} in {n_files} files")


def _print(record: dict[str, Any], planned: str) -> None:
    from engram_tables.units import format_bytes

    show(f"table         {record['path']}{planned}")
    _print_stored(record, record["n_rows"])
    if record["rank"] is not None:
        show("rank          {rank} of {n_ranks} by {by}".format(**record["rank"]))
    for owned in record["owned"] or ():
        show(f"owns          layer {owned['layer_id']}, rows {int(owned['start']):,} to {int(owned['stop']) - 1:,}")
    show(f"in all        {format_bytes(record['total_bytes'])} in {len(record['files'])} files")
    files = [(file["path"], f"{file['file_bytes']:,}") for file in record["files"]]
    show_table("", ("file", "bytes"), files)


def _print_stored(record: dict[str, Any], n_rows: int) -> None:
    show(f"spec          {record['spec']}, fingerprint {record['fingerprint']}")
    show(f"vocabulary    {spell_vocabulary(record)}")
    show(f"rows          {n_rows:,} of {record['row_width']} values, {record['row_bytes']} bytes each")
    scale = "" if record["codec_scale"] is None else f" (scale {record['codec_scale']})"
    show(f"stored        {record['codec']}{scale}, layout {record['layout']}")
    if record["source"] is not None:
        source = record["source"]
        show(
            f"from          {source['where']}: {source['form']}, {source['codec']}, {source['n_tensors']:,} tensors in "
            f"{source['n_files']:,} files"
        )
    if record["init"] is not None:
        show(f"first values  {', '.join(f'{key} {value}' for key, value in record['init'].items())}")


def _print_fidelity(groups: list[dict[str, Any]]) -> None:
    columns = ("re-encoded", "rows", "changed", "largest error", "rms error", "relative", "by lookups")
    lines = []
    for group in groups:
        head = "rows of no single head" if group["order"] is None else f"order {group['order']}, head {group['head']}"
        rows, lookups = group["rows"], group["lookups"]
        lines.append(
            (
                f"layer {group['layer_id']}, {head}",
                f"{rows['n']:,}",
                f"{rows['n_changed']:,}",
                f"{rows['largest_error']:.3g}",
                f"{rows['rms_error']:.3g}",
                _share(rows["relative_rms_error"]),
                "-" if lookups is None else _share(lookups["relative_rms_error"]),
            )
        )
    show_table("", columns, lines)


def _share(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3%}"
