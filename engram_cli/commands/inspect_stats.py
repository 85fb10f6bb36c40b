"""`engram inspect stats`: figures about a table's rows, head by head, and what is wrong with them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_cli.console import check_found, progress, say, show, show_table, show_wrapped
from engram_cli.inspected import counts_if, percent, show_legend
from engram_cli.options import Force, JsonFlag, Threads
from engram_cli.outputs import hand_out, refuse_outputs

if TYPE_CHECKING:
    from engram_tables.fetch.table import Table

_INDENT = 11
_WIDTH = 110


def inspect_stats(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="A table's directory, or a checkpoint read where it lies.")
    ],
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            min=64,
            metavar="N",
            help="Rows to read of each head, half of them neighbours. [default: 4096]",
            show_default=False,
        ),
    ] = None,
    all_rows: Annotated[bool, typer.Option("--all", help="Read every row instead of a sample.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the rows of the sample.")] = 0,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="TABLE", help="A table or checkpoint that is right: shows heads moved by some rows."
        ),
    ] = None,
    counts: Annotated[
        Path | None,
        typer.Option(
            "--counts",
            metavar="DIR",
            help="The counts that a next-token table was made of: shows heads that do not hold the rows of their "
            "n-grams, and where those rows lie.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="KIND",
            help="What the rows were made as (normal, zeros, next-token), where the manifest "
            "of a repacked table does not say.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with 6 for what is only suspect, too.")] = False,
    record_file: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Write the whole record, every head.")
    ] = None,
    force: Force = False,
    threads: Threads = None,
    json: JsonFlag = False,
) -> None:
    """Read a sample of a table's rows, or all of them: norms, zeros, repetitions, NaN, and what is wrong.

    Findings come first, each with where, what was found, what was expected and what to do. A fault is what no sound
    table holds; what is suspect may have a good reason. Then how small a fault may be and still show in this sample,
    how the bytes compress, and a line for every head: zero rows, rows of one value, rows that are not finite, rows
    that stand twice in the sample, norms (the row at 1 %, in the middle and at 99 %), and the mean cosine of
    neighbouring and of random rows. Rows that are not here (a rank's table) are left alone. Exit code 6 means that
    there is a fault, 0 that there is none in this sample.

    A row does not know its own number: a head whose rows are all moved by one is seen only beside the right rows, with
    --against, or where its ends betray it. Of a next-token table the counts say what each row should hold: with
    --counts, frequent n-grams are looked up in every head by itself, and heads that are moved, swapped or filled with
    something else are named.

    \b
    Examples:
      engram inspect stats my-table
      engram inspect stats my-table --sample 65536 --seed 1
      engram inspect stats my-table --all --record stats.json
      engram inspect stats repacked --against DeepSeek-V4.1-Flash
      engram inspect stats next-token-table --counts counts
      engram inspect stats my-table --json | jq '.findings[] | {check, where}'
    """
    from engram_tables import open_table
    from engram_tables.inspect.stats import DEFAULT_SAMPLE, table_stats
    from engram_tables.inspect.stats_record import stats_record

    if sample is not None and all_rows:
        raise typer.BadParameter("give --sample or --all, not both")
    refuse_outputs({"--record": record_file}, force=force)
    n_sampled = None if all_rows else sample or DEFAULT_SAMPLE
    with (
        open_table(table, bundles=False) as opened,
        _table_if(against) as reference,
        counts_if(counts) as counted,
    ):
        report = table_stats(
            opened,
            sample=n_sampled,
            seed=seed,
            against=reference,
            counts=counted,
            init=init,
            threads=threads,
            stage=progress,
        )
    record = stats_record(report)
    hand_out(record, _show, as_json=json, record_file=record_file, force=force)
    named = [finding["check"] for finding in record["findings"] if strict or finding["severity"] == "fault"]
    if named:
        check_found(f"{table}: found {', '.join(dict.fromkeys(named))}; what each means stands with the findings")


@contextmanager
def _table_if(path: Path | None) -> Iterator[Table | None]:
    """Open the reference for a block, or none."""
    from engram_tables import open_table

    if path is None:
        yield None
        return
    with open_table(path, bundles=False) as table:
        yield table


def _show(record: dict[str, Any]) -> None:
    show(f"table      {record['path']}, codec {record['codec']}, {record['row_bytes']} bytes a row")
    show(f"read       {_read(record)}")
    _show_findings(record["findings"])
    _show_limits(record)
    if record["counted"] is not None:
        show(f"counts     {_beside_counts(record['counted'])}")
    sections = [
        (
            section["section"],
            f"{section['entropy_bits_per_byte']:.3f}",
            f"{section['zstd_bytes']:,}",
            f"{section['zstd_ratio']:.3f}",
        )
        for section in record["sections"]
    ]
    show()
    show_table("Bytes", ("section", "entropy, bits a byte", "bytes given to zstd", "times smaller"), sections)
    if record["scales"] is not None:
        _show_scales(record["scales"])
    show_table("Heads (rows of the sample)", _COLUMNS, [_head_cells(group) for group in record["groups"]], left=0)
    if record["against"] is not None:
        rows = [
            (h["layer_id"], _owner(h["order"]), _owner(h["head"]), f"{h['n_rows']:,}", f"{h['n_equal']:,}",
             f"{h['moved_by']:+d}" if h["n_moved"] else "-", f"{h['n_moved']:,}")
            for h in record["against"]
        ]  # fmt: skip
        titles = ("layer", "order", "head", "rows compared", "equal", "moved by", "of these")
        show_table("Beside the reference", titles, rows, left=0)
    if record["counted"] is not None:
        titles = ("layer", "order", "head", "n-grams", "held", "held at random rows", "found")
        show_table("Beside the counts", titles, [_counted_cells(head) for head in record["counted"]], left=0)
    show_legend(_LEGEND | (_NEXT_TOKEN_LEGEND if record["init"] == "next-token" else {}))


def _beside_counts(heads: list[dict[str, Any]]) -> str:
    n_right = sum(head["verdict"] == "holds" for head in heads)
    n_crowded = sum(head["verdict"] == "crowded" for head in heads)
    text = f"{n_right:,} of {len(heads):,} heads hold the rows of their n-grams"
    return f"{text}; {n_crowded:,} too crowded to tell, or with too few n-grams" if n_crowded else text


def _counted_cells(head: dict[str, Any]) -> tuple[object, ...]:
    words = {
        "holds": "its rows",
        "shifted": f"shifted {head['moved_by'] or 0:+d}",
        "other-head": f"filled as head {head['other_head']}",
        "unlike": "in part other rows" if 2 * head["n_held"] >= head["n_ngrams"] else "other rows",
        "crowded": "too crowded",
    }
    n_ngrams = max(head["n_ngrams"], 1)
    return (
        head["layer_id"], head["order"], head["head"], f"{head['n_ngrams']:,}", f"{head['n_held'] / n_ngrams:.1%}",
        f"{head['n_held_at_random'] / n_ngrams:.1%}", words[head["verdict"]],
    )  # fmt: skip


def _read(record: dict[str, Any]) -> str:
    from engram_tables.units import format_bytes

    pages = "" if record["page_bytes"] is None else f" in pages of {format_bytes(record['page_bytes'])}"
    device = "" if record["device_bytes"] is None else f"; {format_bytes(record['device_bytes'])} came from storage"
    return (
        f"{record['n_rows_read']:,} of {record['n_rows_here']:,} rows, {format_bytes(record['requested_bytes'])}"
        f"{pages}{device}"
    )


def _show_findings(findings: list[dict[str, Any]]) -> None:
    if not findings:
        show("findings   none")
        return
    show(f"findings   {len(findings)}")
    for finding in findings:
        show("")
        show(f"{finding['severity']}: {finding['check']}")
        for name, text in (
            ("where", finding["where"]),
            ("found", finding["found"]),
            ("expected", finding["expected"]),
            ("do", finding["remedy"]),
        ):
            lines = textwrap.wrap(text, _WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False)
            show(f"  {name:<{_INDENT - 2}}{lines[0]}")
            for line in lines[1:]:
                show(" " * _INDENT + line)
    show("")


def _show_limits(record: dict[str, Any]) -> None:
    """Of the head that is worst off."""
    found = [group["limits"] for group in record["groups"] if not group["is_padding"]]
    if not found:
        return
    worst = {
        name: None if any(limits[name] is None for limits in found) else max(limits[name] for limits in found)
        for name in ("rows", "neighbours", "repeated")
    }
    if not any(share is None or share > 0 for share in worst.values()):
        show("limits     every row was read")
        return
    show_wrapped(
        "a fault is nearly sure to show (19 samples of 20) if it has this share of a head's rows or more: "
        f"{_limit(worst['rows'])} where a row shows it by itself, {_limit(worst['neighbours'])} of rows equal to the "
        f"one before, {_limit(worst['repeated'])} of rows with one copy elsewhere in the head",
        head="limits", indent=_INDENT,
    )  # fmt: skip
    if worst["repeated"] is None:
        say("a larger --sample sees rarer copies: twice the rows, a quarter of the share")


def _limit(share: float | None) -> str:
    return "no share" if share is None else percent(share, 2)


def _show_scales(scales: dict[str, Any]) -> None:
    n_all = max(1, sum(scales["by_power_of_two"].values()))
    rows = [
        (f"2^{exponent}", f"{n_scales:,}", percent(n_scales / n_all, 2))
        for exponent, n_scales in scales["by_power_of_two"].items()
    ]
    others = [("0", scales["n_zero"]), ("not finite", scales["n_not_finite"]), ("below 0", scales["n_negative"])]
    rows += [(name, f"{n_scales:,}", "") for name, n_scales in others if n_scales]
    show_table("Scales", ("from, to twice it", "scales", "share"), rows)


_COLUMNS = (
    "layer", "order", "head", "rows", "zero", "constant", "not finite", "repeated", "norm 1 %", "middle", "99 %",
    "neighbours", "random", "bits a byte",
)  # fmt: skip

_LEGEND = {
    "zero": "rows of zeros; constant: rows of one value; not finite: rows with NaN or infinities",
    "repeated": "rows, zeros apart, that stand in the head's sample before",
    "norm": "length (Euclidean) of the row at 1 %, in the middle and at 99 %, sorted by length",
    "neighbours": "mean cosine of rows and the next ones; random: of random pairs; near 0 where rows are unlike",
    "bits a byte": "entropy of the bytes: 8 if all are as likely, less the better they compress",
}
_NEXT_TOKEN_LEGEND = {
    "zero": "rows of zeros: in a next-token table those of no counted n-gram. Chance leaves 37 % of a head's rows so "
    "with as many n-grams as rows, 14 % with twice as many. Constant: rows of one value; not finite: rows with NaN or "
    "infinities",
    "repeated": "rows, zeros apart, that stand in the head's sample before: here those with the same next tokens",
}


def _head_cells(group: dict[str, Any]) -> tuple[object, ...]:
    norms = group["norms"] or {}
    n_not_finite = group["n_nan"] + group["n_infinite"] + group["n_bad_scale"]
    first = next(iter(group["entropy_bits_per_byte"].values()), None)
    return (
        group["layer_id"],
        _owner(group["order"]),
        _owner(group["head"]),
        f"{group['n_rows_read']:,}",
        f"{group['n_zero']:,}",
        f"{group['n_constant']:,}",
        f"{n_not_finite:,}",
        f"{max(group['n_repeated'], group['n_equal_neighbours']):,}",
        *(f"{norms[name]:.4g}" if name in norms else "-" for name in ("p1", "p50", "p99")),
        *("-" if group[name] is None else f"{group[name]:+.3f}" for name in ("neighbour_cosine", "random_cosine")),
        "-" if first is None else f"{first:.3f}",
    )


def _owner(number: int | None) -> str:
    return "-" if number is None else str(number)
