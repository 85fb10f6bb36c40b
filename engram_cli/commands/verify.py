"""`engram verify`: every byte of tables against their manifests, their source and each other."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.console import check_found, emit, progress, say, show, show_table
from engram_cli.options import JsonFlag, Opaque, RawRows, Revision, Threads
from engram_cli.raw_rows import parse_raw_rows
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    from engram_tables.storage.bundles.checking import BundlesReport
    from engram_tables.storage.checking.verify import AgainstReport, RanksReport, TableReport, VerifyReport
    from engram_tables.storage.sources.source import Source


def verify(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="TABLE",
            help="Directories of tables, bundles, token stores or counts; of a table's ranks, all of them or the "
            "directory that holds them.",
            show_default=False,
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="SOURCE", help="Compare every row with what it was made from: a path or a URL."
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, metavar="N", help="Read N blocks and compare N rows of each table, not all."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read everything: the default, but where SOURCE is behind a URL.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the blocks and rows of --sample.")] = 0,
    raw: RawRows = None,
    opaque: Opaque = False,
    revision: Revision = None,
    threads: Threads = None,
    json: JsonFlag = False,
) -> None:
    """Read tables' blocks and compare their SHA-256 with the manifest; token stores and counts are read whole.

    Every byte of every shard is covered: headers, records and the spare bytes of the layouts. With --against, rows are
    compared with their source's bit for bit, or after the same re-encoding where the codecs differ. Several ranks'
    tables are proven to be ranks of one table, disjoint and complete. Bundles in a table's directory are hashed, and
    held against the rows of their n-grams. Exit code 6 means that something was found, and
    the output says in which bytes and rows; 4 that a directory does not open as a table.

    \b
    Examples:
      engram verify my-table
      engram verify my-table --sample 100 --seed 7
      engram verify my-table --against DeepSeek-V4.1-Flash
      engram verify rank-0 rank-1 rank-2 rank-3
      engram verify my-table --json | jq '.tables[].damaged'
      engram verify tokens
      engram verify counts
    """
    from engram_tables.byte_files import is_url
    from engram_tables.storage.table.ranks import with_ranks

    if sample is not None and full:
        raise typer.BadParameter("give --sample or --full, not both")
    if against is None and (revision is not None or raw is not None or opaque):
        raise typer.BadParameter("--revision, --raw and --opaque go only with --against")
    if against is not None and is_url(against) and sample is None and not full:
        raise InvalidInput(f"{against}: found a URL to compare with, expected --sample N or --full as well; choose one")
    tables = with_ranks(tables)
    kinds = [_corpus_kind(path) for path in tables]
    found = []
    for path, kind in zip(tables, kinds, strict=True):
        if kind == "bundles":
            found += _verify_bundles(path, sample=sample, seed=seed, threads=threads, json=json)
        elif kind is not None:
            found += _verify_corpus(path, kind, threads=threads, json=json)
    stored = [path for path, kind in zip(tables, kinds, strict=True) if kind is None]
    if stored:
        with ExitStack() as stack:
            source = None
            if against is not None:
                source = _open_source(stack, against, stored[0], raw, opaque=opaque, revision=revision)
            found += _verify_tables(stored, source, sample=sample, seed=seed, threads=threads, json=json)
    if found:
        check_found("; ".join(found))


def _verify_tables(
    paths: list[Path], source: Source | None, *, sample: int | None, seed: int, threads: int | None, json: bool
) -> list[str]:
    """What was found, for the last line."""
    from engram_tables.storage.checking.verify import verify_tables

    with progress("verifying", "B") as hook:
        report = verify_tables(paths, against=source, sample=sample, seed=seed, threads=threads, progress=hook)
    if json:
        tables = [{**dataclasses.asdict(table), "is_whole": table.is_whole} for table in report.tables]
        ranks = None if report.ranks is None else dataclasses.asdict(report.ranks)
        emit({"schema": "engram.verify/2", "tables": tables, "ranks": ranks, "is_whole": report.is_whole})
    else:
        _show(report)
    return _findings(report)


def _open_source(
    stack: ExitStack, where: str, table: Path, raw: str | None, *, opaque: bool, revision: str | None
) -> Source:
    """What `--against` names, read by the first table's addressing where it is a checkpoint."""
    from engram_tables.storage.sides import Opening, open_side
    from engram_tables.storage.table.reader import StoredTable

    with StoredTable(table) as opened:
        opening = Opening(
            spec=opened.spec,
            raw=parse_raw_rows(raw),
            opaque=opaque or not opened.codec.can_decode,
            revision=revision,
        )
    side = stack.enter_context(open_side(where, opening))
    for note in side.source.notes:
        say(f"note: {note}")
    return side.source


def _show(report: VerifyReport) -> None:
    from engram_tables.units import format_bytes

    for table in report.tables:
        show(f"table    {table.path}")
        if table.rank is not None:
            show(f"rank     {table.rank.rank} of {table.rank.n_ranks} by {table.rank.by}, {table.n_rows:,} rows")
        show(f"read     {table.n_blocks_read:,} of {table.n_blocks:,} blocks, {format_bytes(table.bytes_read)}")
        show(f"damaged  {len(table.damaged):,}")
        if table.against is not None:
            _show_against(table.against)
        _show_damage(table)
        if table.bundles is not None:
            _show_bundles(table.bundles)
    if report.ranks is not None:
        _show_ranks(report.ranks)
    elif any(table.rank is not None for table in report.tables):
        say("give the tables of all ranks together to prove them disjoint and complete")


def _show_against(against: AgainstReport) -> None:
    rows = against.rows
    how = "re-encoded" if rows.measure == "recoded" else "bit for bit"
    show(f"against  {against.where} ({against.form}, {against.codec}), {how}")
    show(f"equal    {rows.n_rows_compared - rows.n_rows_different:,} of {rows.n_rows_compared:,} rows compared")
    for span in against.missing:
        show(f"missing  layer {span.layer_id}, rows {span.start_row:,} to {span.stop_row - 1:,}: not in the source")
    groups = [
        (
            group.layer_id,
            owner(group.order),
            owner(group.head),
            f"{group.n_rows_different:,}",
            f"{group.first_rows[0]:,}",
        )
        for group in rows.groups
        if group.n_rows_different
    ]
    if groups:
        show_table("Rows that differ", ("layer", "order", "head", "rows", "first row"), groups, left=0)
        lines = [
            (
                d.layer_id,
                owner(d.order),
                owner(d.head),
                f"{d.row:,}",
                d.byte,
                d.part,
                f"{d.expected:02x}",
                f"{d.found:02x}",
            )
            for d in rows.first
        ]
        titles = ("layer", "order", "head", "row", "byte", "part", "expected", "found")
        show_table("The first of them, each with its first byte that differs", titles, lines, left=0)


def _show_bundles(report: BundlesReport) -> None:
    compared = (
        "" if report.is_of_table is None else f", {report.n_compared:,} of {report.n_bundles:,} held against rows"
    )
    show(f"bundles  {report.n_blocks_read:,} of {report.n_blocks:,} blocks read{compared}")
    rows = [(b.path, b.block_idx, f"{b.start_byte:,}-{b.stop_byte:,}", b.found[:16]) for b in report.damaged]
    if rows:
        show_table("Damaged blocks of bundles", ("file", "block", "bytes", "found"), rows)
    for unlike in report.unlike:
        first = f", the first of n-gram {list(unlike.first_ngram)}" if unlike.first_ngram else ""
        show(
            f"  layer {unlike.layer_id}, order {unlike.order}: {unlike.n_different:,} bundles are not their rows"
            f"{first}; {unlike.n_unfound:,} are found by no n-gram"
        )


def _bundle_finding(report: BundlesReport) -> str | None:
    if report.is_whole:
        return None
    if report.is_of_table is False:
        return f"{report.path}: found bundles of another table than the one they stand in; build them again"
    n_unlike = sum(unlike.n_different + unlike.n_unfound for unlike in report.unlike)
    return (
        f"{report.path}: {len(report.damaged)} of {report.n_blocks_read} blocks differ from their digests, {n_unlike} "
        f"of {report.n_compared} bundles from the table's rows; build the bundles again"
    )


def _verify_bundles(path: Path, *, sample: int | None, seed: int, threads: int | None, json: bool) -> list[str]:
    """A directory of bundles by itself: its digests."""
    from engram_tables.storage.checking.verify import verify_bundles

    with progress("verifying", "B") as hook:
        report = verify_bundles(path, sample=sample, seed=seed, threads=threads, progress=hook)
    if json:
        emit({"schema": "engram.verify-bundles/1", **dataclasses.asdict(report), "is_whole": report.is_whole})
    else:
        show(f"bundles  {path}")
        _show_bundles(report)
    finding = _bundle_finding(report)
    return [] if finding is None else [finding]


def owner(number: int | None) -> str:
    """An order or a head, or a dash where no single head owns a row."""
    return "-" if number is None else str(number)


def _show_damage(table: TableReport) -> None:
    rows = [
        (b.path, b.block_idx, f"{b.start_byte:,}-{b.stop_byte:,}", f"{b.start_row:,}-{b.stop_row:,}", b.found[:16])
        for b in table.damaged
    ]
    if rows:
        show_table("Damaged blocks (ranges without their end)", ("file", "block", "bytes", "rows", "found"), rows)


def _show_ranks(ranks: RanksReport) -> None:
    if ranks.is_complete:
        show(f"ranks    {ranks.n_tables:,} tables: every row is in exactly one")
        return
    show(f"ranks    {ranks.n_tables:,} tables are not one table's ranks, disjoint and complete")
    for unlike in ranks.unlike:
        show(f"  {unlike.path}: found {unlike.what} {unlike.found}, expected {unlike.expected} as the first table has")
    for span in ranks.rows:
        who = f"in {', '.join(span.paths)}" if span.paths else "in none"
        show(f"  layer {span.layer_id}, rows {span.start_row:,} to {span.stop_row - 1:,}: {who}")


def _findings(report: VerifyReport) -> list[str]:
    found = []
    for table in report.tables:
        if table.damaged:
            found.append(
                f"{table.path}: {len(table.damaged)} of {table.n_blocks_read} blocks differ from their digests; "
                "copy those files again or build the table again"
            )
        if table.bundles is not None and (finding := _bundle_finding(table.bundles)) is not None:
            found.append(finding)
        if table.against is not None and not table.against.is_equal:
            rows = table.against.rows
            n_missing = sum(span.stop_row - span.start_row for span in table.against.missing)
            found.append(
                f"{table.path}: {rows.n_rows_different} of {rows.n_rows_compared} rows differ from those of "
                f"{table.against.where}{f', and {n_missing} are not there' if n_missing else ''}; build the table "
                "again, or name its own source"
            )
    if report.ranks is not None and not report.ranks.is_complete:
        found.append(_rank_finding(report, report.ranks))
    return found


def _rank_finding(report: VerifyReport, ranks: RanksReport) -> str:
    """Which ranks are missing or there twice, where the tables are ranks of one; else what differs."""
    named = [table.rank for table in report.tables if table.rank is not None]
    if not ranks.unlike and len(named) == len(report.tables):
        n_ranks = named[0].n_ranks
        times = Counter(rank.rank for rank in named)
        wrong = [
            f"{what} {', '.join(map(str, which))} of {n_ranks}"
            for what, which in (
                ("no rank", [rank for rank in range(n_ranks) if rank not in times]),
                ("more than once rank", [rank for rank, n_times in sorted(times.items()) if n_times > 1]),
            )
            if which
        ]
        if wrong:
            return f"ranks: found {', '.join(wrong)}, expected each once; give every rank of the table"
    found = [f"{len(ranks.unlike)} entries that differ between the tables"] if ranks.unlike else []
    found += [f"{len(ranks.rows)} ranges of rows in none or in several of them"] if ranks.rows else []
    return f"ranks: found {' and '.join(found)}, expected every row in exactly one; give every rank of one table"


def _corpus_kind(path: Path) -> str | None:
    from engram_tables.corpus.counts.counts_manifest import MANIFEST_NAME
    from engram_tables.corpus.tokens.token_store import is_token_store
    from engram_tables.storage.bundles.bundle_manifest import MANIFEST_NAME as BUNDLES_MANIFEST

    if (path / BUNDLES_MANIFEST).is_file():
        return "bundles"
    return "token store" if is_token_store(path) else "counts" if (path / MANIFEST_NAME).is_file() else None


def _verify_corpus(path: Path, kind: str, *, threads: int | None, json: bool) -> list[str]:
    """Verify a token store or counts; their errors name the damaged file, and are what was found."""
    from engram_tables.corpus.counts.counts_store import open_counts
    from engram_tables.corpus.tokens.token_store import open_tokens

    found = None
    try:
        with progress("verifying", "B") as hook:
            if kind == "counts":
                with open_counts(path) as counts:
                    counts.verify()
            else:
                with open_tokens(path) as tokens:
                    tokens.verify(threads=threads, progress=hook)
    except InvalidInput as error:
        found = str(error)
    if json:
        emit({"schema": "engram.verify-corpus/1", "path": str(path), "kind": kind, "damage": found})
    elif found is None:
        show(f"{kind} {path}: every file equals its digest")
    return [] if found is None else [found]
