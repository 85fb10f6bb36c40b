"""What `engram evaluate` shows of its record: accuracy by heads and by order, beside exact back-off."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any

from engram_cli import console
from engram_cli.inspected import percent, plural, show_legend

_WIDTH = min(100, shutil.get_terminal_size((100, 24)).columns)
_TOPS = ("top_1", "top_5")
_ALONE = ("knows something", "top-1", "known", "heads agree")
"""What is shown without counts."""
_LEGEND = {
    "knows something": "share of the positions with an n-gram, of any order, that the counts hold, or that the "
    "table's rows give more evidence for than chance. Where they give less it guesses, and may be right. One or two "
    "heads of eight never give enough; a few are taken in by chance more often than all",
    "top-1": "share of the positions at which the token that follows is named first; top-5: among the first five",
    "of exact": "that share over the one of exact back-off, on the same positions",
    "seen": "the counts hold the n-gram with a token after it",
    "known": "the table says that its rows hold the n-gram",
    "known of unseen": "known, of the n-grams that were not seen: wrongly; unknown of seen: not known, of those that "
    "were",
    "exact": "top-1 or top-5 of the counts, beside the table's, for this order alone; ratio: of the two",
    "same first": "share of these n-grams at which table and counts name the same token first",
    "heads agree": "share of the heads that hold the token that the table names first",
}


def warn_of_evaluation(record: dict[str, Any]) -> None:
    """Say on stderr what makes the figures worth less than they look."""
    overlap, counts = record["overlap"], record["counts"]
    if overlap is not None and overlap["verdict"] == "counted":
        console.say(
            f"warning: this text was counted: {percent(overlap['goes_on_as_counted'], 0)} of its "
            f"{overlap['order']}-grams go on as counted. These figures say what the table remembers, not what it "
            "predicts; judge it on other text"
        )
    elif overlap is not None and overlap["verdict"] == "partly-counted":
        console.say(
            f"warning: of {overlap['n_documents_looked_at']:,} documents with enough positions, "
            f"{overlap['n_documents_as_counted']:,} go on exactly as counted: they, or copies of them, were counted, "
            "and flatter these figures"
        )
    if counts is not None and counts["is_source_of_table"] is False:
        console.say(f"warning: the table was made of other counts than {counts['path']}, so that ratios mean little")


def show_evaluation(record: dict[str, Any]) -> None:
    """An `engram.evaluate/1`."""
    table, corpus, sample = record["table"], record["corpus"], record["sample"]
    heads = "/".join(str(n) for n in dict.fromkeys(table["heads"]))
    _line(
        f"{table['path']}: next tokens after {_orders(table['orders'])} tokens, {heads} heads an order, rows of "
        f"{table['row_width']} values in {table['codec']}, layer {table['layer_id']}"
    )
    drawn = "all" if sample["n_positions"] == sample["n_judged"] else f"{sample['n_positions']:,} drawn"
    _line(
        f"{', '.join(corpus['paths'])}: {sample['n_tokens']:,} tokens, {corpus['n_documents']:,} documents; "
        f"{sample['n_judged']:,} positions that a token follows, {drawn} (seed {sample['seed']})"
    )
    if record["overlap"] is not None:
        _show_overlap(record["overlap"])
    console.show()
    _show_accuracy(record, "raw", "the very token that follows")
    _show_accuracy(record, "canonical", "a token that folds to the same canonical id")
    _show_orders(record)
    show_legend({name: text for name, text in _LEGEND.items() if name in _ALONE or record["exact"] is not None})


def _show_overlap(overlap: dict[str, Any]) -> None:
    share = overlap["goes_on_as_counted"]
    if share is not None:
        _line(
            f"{overlap['verdict']}: {percent(share)} of its {overlap['order']}-grams go on as counted; wholly so "
            f"{overlap['n_documents_as_counted']:,} of {overlap['n_documents_looked_at']:,} documents (those with "
            "enough positions)"
        )


def _show_accuracy(record: dict[str, Any], way: str, meaning: str) -> None:
    rows = []
    exact = record["exact"]
    if exact is not None:
        cells = [cell for top in _TOPS for cell in (_percent(exact[top][way]), "1")]
        rows.append(["exact back-off", _percent(exact["seen"]), *cells])
    for of_heads in reversed(record["heads"]):
        ratio = of_heads["ratio_to_exact"]
        cells = [
            cell
            for top in _TOPS
            for cell in (_percent(of_heads[top][way]), "-" if ratio is None else _plain(ratio[top][way]))
        ]
        n_heads = of_heads["n_heads"]
        known = _percent(of_heads["known"]) if of_heads["known"]["value"] else "only guesses"
        rows.append([f"table, {plural(n_heads, 'head')}", known, *cells])
    console.show(f"right, {way}: {meaning}")
    console.show_table("", ["", "knows something", "top-1", "of exact", "top-5", "of exact"], rows)


def _show_orders(record: dict[str, Any]) -> None:
    """Each order alone, all heads."""
    found = record["heads"][-1]
    if record["exact"] is None:
        console.show(f"each order alone, {found['n_heads']} heads: where the table says that it knows the n-gram")
        rows = [
            [str(of["order"]), _percent(of["known"]), *(_percent(of["of_known"][top]["raw"]) for top in _TOPS),
             _percent(of["heads_agreement"])]
            for of in found["orders"]
        ]  # fmt: skip
        console.show_table("", ["order", "known", "top-1", "top-5", "heads agree"], rows)
        return
    console.show(f"what the table knows, {found['n_heads']} heads: shares of the positions with such an n-gram")
    rows = [
        [str(of["order"]), _percent(exact["seen"]), _percent(of["known"]), _percent(of["false_known"]),
         _percent(of["false_unknown"])]
        for of, exact in zip(found["orders"], record["exact"]["orders"], strict=True)
    ]  # fmt: skip
    console.show_table("", ["order", "seen", "known", "known of unseen", "unknown of seen"], rows)
    console.show("each order alone, where its n-gram was seen: right, raw")
    rows = [
        [str(of["order"]),
         *(cell for top in _TOPS for cell in (
             _share(of["of_seen"][top]["raw"]), _share(exact["of_seen"][top]["raw"]),
             _plain(of["of_seen_ratio_to_exact"][top]["raw"]))),
         _share(of["same_first_as_exact"]), _share(of["heads_agreement"])]
        for of, exact in zip(found["orders"], record["exact"]["orders"], strict=True)
    ]  # fmt: skip
    columns = ["order", "top-1", "exact", "ratio", "top-5", "exact", "ratio", "same first", "heads agree"]
    console.show_table("", columns, rows)


def _orders(orders: list[int]) -> str:
    named = [str(order) for order in sorted(orders)]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _percent(figure: dict[str, float | None]) -> str:
    value, high = figure["value"], figure["high"]
    if value is None:
        return "-"
    return f"{100 * value:.2f}{'' if high is None else f' ±{100 * (high - value):.2f}'} %"


def _share(figure: dict[str, float | None]) -> str:
    return "-" if figure["value"] is None else f"{100 * figure['value']:.2f} %"


def _plain(figure: dict[str, float | None]) -> str:
    value, high = figure["value"], figure["high"]
    if value is None:
        return "-"
    return f"{value:.4f}{'' if high is None else f' ±{high - value:.4f}'}"


def _line(text: str) -> None:
    """A line, broken at spaces where it is longer than the page."""
    for line in textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_long_words=False) or [""]:
        console.show(line)
