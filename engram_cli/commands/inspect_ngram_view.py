"""What `engram inspect ngram` shows: n-grams one by one, or those of several texts beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engram_cli.console import show, show_table, show_wrapped
from engram_cli.inspected import (
    join,
    ngram_text,
    pages_text,
    percent,
    plural,
    show_ending_in_words,
    show_legend,
    unbroken,
)

if TYPE_CHECKING:
    from engram_tables.inspect.next_tokens import NextToken, NextView
    from engram_tables.inspect.ngram import NgramsReport, NgramView, RowView
    from engram_tables.inspect.tokens import TokenView

_INDENT = 12
_BESIDE = 3
"""N-grams whose next tokens stand side by side in one table."""
_MOST_TOKENS = 12
_FILL = "‹fill›"
_NOTHING = "none: the rows name no next token, as for an n-gram that was never counted"

_LEGEND = {
    "position": "of the n-gram's last token in the text, from 0 on; order: how many tokens it has",
    _FILL: "stands before the text's first token, or for one that the hash leaves out; what begins before the text is "
    "not counted",
    "key": "the n-gram's hash, from which each head takes a row; n-grams of one key are one to the table",
    "rows say": "how often the token follows, estimated from these rows alone. The codec rounds (fp8 by 6 % at most, "
    "bf16 by 0.4 %), and other n-grams of these rows add to it or, mostly, take from it. Below the likeliest stand "
    "further ones that were counted most",
    "lost": "counted, and not in these rows any more",
    "agree": "share of the token's places in these rows, one or more a head, that speak for it",
    "sure": "yes: chance would hardly give so much to a token that the rows do not hold; guess: it would",
    "counted": "how often it followed in the corpus",
    "‹end›": "of a document: counted, and never in rows",
    "?": "a guess: chance gives as much to a token that the rows do not hold",
    "offset": "the byte of the file that the row begins at; page: the 4096 bytes it lies in",
    "norm": "length (Euclidean) of the row's values",
    "lookups": "times that the corpus looks the row up, for whatever n-gram; its own: this n-gram's part of them; "
    "others: further n-grams that own the row, the first of them: the most frequent, as its tokens fold",
    "its own": "share of its rows' lookups that is the n-gram's own; norm: length of its rows' values; of both the "
    "middle row's (median)",
    "reads": "that fetch all its rows, one by one",
    "bundled": "reads with the table's bundles, which keep rows of frequent n-grams together",
    "pages": "of 4096 bytes that hold the rows / how many of them are in memory now",
}


def _explain(*names: str, said: Sequence[NextToken] = ()) -> None:
    """What words above mean: those that are named, and those that tokens show."""
    shown = {
        *names,
        *(("lost",) if any(_estimate(token) == "lost" for token in said) else ()),
        *(("‹end›",) if any(token.token_id is None for token in said) else ()),
    }
    show_legend({name: text for name, text in _LEGEND.items() if name in shown})


def show_each(report: NgramsReport, *, has_hot_list: bool) -> None:
    """The n-grams of one text: its tokens once, then a block for each n-gram, and what the words mean."""
    ((text, tokens),) = report.texts.items()
    # What the text is too short for is worth a block where it is all that ends here.
    views = [view for view in report.ngrams if not view.n_before_text or view.position == len(tokens) - 1]
    show_wrapped(f"{unbroken(text)}: {plural(len(tokens), 'token')}", indent=2)
    seen = {(token.token_id, token.canonical_id): token for view in views for token in view.tokens}
    indent = max(len(_named_token(token)) for token in seen.values()) + 4
    for token in seen.values():
        _show_token(token, indent)
    n_left_out = len(report.ngrams) - len(views)
    if n_left_out:
        show_wrapped(f"not shown: {plural(n_left_out, 'n-gram')} of earlier positions that begin before the text "
                     "(--json has all)", head="  ", indent=2)  # fmt: skip
    show()
    for view in views:
        _show_ngram(view, n_tokens=len(tokens), has_hot_list=has_hot_list)
    said = [token for view in views for of_layer in view.next_tokens for token in of_layer.tokens]
    _explain(
        "position",
        "key",
        *(("rows say", "agree", "sure") if said else ()),
        *(("counted",) if any(token.counted is not None for token in said) else ()),
        "offset",
        "norm",
        *(("lookups",) if any(_shows_sharers(view) for view in views) else ()),
        said=said,
    )


def _named_token(token: TokenView) -> str:
    return _FILL if token.token_id is None else repr(token.text)


def _show_token(token: TokenView, indent: int) -> None:
    head = f"  {_named_token(token)}"
    if token.token_id is None:
        show_wrapped(f"canonical {token.canonical_id} {_LEGEND[_FILL]}", head=head, indent=indent)
        return
    others = ", ".join(map(unbroken, token.folds_with))
    more = token.n_folded - 1 - len(token.folds_with)
    folds = f"; also {others}{f' and {more} more' if more > 0 else ''}" if others else ""
    text = f"token {token.token_id}, canonical {token.canonical_id} {unbroken(token.form)}{folds}"
    show_wrapped(text, head=head, indent=indent)


def _show_ngram(view: NgramView, *, n_tokens: int, has_hot_list: bool) -> None:
    show(f"position {view.position}, order {view.order}: {_spell(view)}")
    _line("key", ", ".join(f"{key:016x} in layer {layer_id}" for layer_id, key in view.keys.items()))
    if view.occurrences is not None:
        _line("occurs", f"{plural(view.occurrences, 'time')} in the corpus, in any spelling that folds to the same")
    elif view.n_before_text:
        is_short = view.position == n_tokens - 1
        hint = f"; give {n_tokens + view.n_before_text} tokens or more" if is_short else ""
        _line("occurs", f"not counted: it begins before the text{hint}")
    _show_fetch(view)
    for said in view.next_tokens:
        _show_next(said)
    _show_rows(view, has_hot_list=has_hot_list)


def _spell(view: NgramView, *, most: int | None = None) -> str:
    n_filled = sum(token.token_id is None for token in view.tokens)
    if not n_filled:
        return ngram_text([token.text for token in view.tokens], most=most)
    text = " ".join(_FILL if token.token_id is None else repr(token.text) for token in view.tokens)
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def _show_fetch(view: NgramView) -> None:
    cost, bundled = view.fetch.rows, view.fetch.bundled
    if not cost.n_reads:
        _line("to fetch", "nothing: none of its rows is here")
        return
    _line("to fetch", f"{plural(cost.n_reads, 'read')}, {cost.n_bytes:,} bytes in {pages_text(cost)}")
    if bundled is None or view.fetch.bundles is None:
        return
    if view.fetch.bundles:
        _line("bundle", f"of layer {join(view.fetch.bundles)}, so {plural(bundled.n_reads, 'read')}: "
              f"{bundled.n_bytes:,} bytes in {pages_text(bundled)}")  # fmt: skip
    else:
        _line("bundle", "none: this n-gram is not among those whose rows lie together")


def _show_next(said: NextView) -> None:
    if not said.tokens:
        _line("next", _NOTHING)
        return
    has_counts = said.n_distinct is not None
    counted = f"; {plural(said.n_distinct or 0, 'different one')} counted" if has_counts else ""
    _line("next", f"by the rows of layer {said.layer_id}{counted}")
    columns = ("next token", "token id", "rows say", "agree", "sure", *(("counted",) if has_counts else ()))
    show_table("", columns, [_next_cells(token, has_counts=has_counts) for token in said.tokens])


def _next_cells(token: NextToken, *, has_counts: bool) -> list[str]:
    return [
        _next_text(token),
        "" if token.token_id is None else str(token.token_id),
        _estimate(token),
        "" if token.agreement is None else percent(token.agreement, 0),
        "" if token.is_convincing is None else "yes" if token.is_convincing else "guess",
        *([f"{token.counted or 0:,}"] if has_counts else []),
    ]


def _next_text(token: NextToken) -> str:
    return "‹end›" if token.token_id is None else repr(token.text)


def _estimate(token: NextToken) -> str:
    if token.estimate is None:
        return ""
    return (
        f"~{token.estimate:,.0f}" if token.estimate >= 0.5 else f"~{token.estimate:.1g}" if token.estimate else "lost"
    )


def _show_rows(view: NgramView, *, has_hot_list: bool) -> None:
    files = list(dict.fromkeys(part.file for row in view.rows for part in row.parts))
    for number, file in enumerate(files, 1):
        _line("rows in" if number == 1 else "", file if len(files) == 1 else f"{number}: {file}")
    named = files if len(files) > 1 else []
    header = ["layer", "head", "row", *(["file"] if named else []), "offset", "page", "norm",
              *(["hot list"] if has_hot_list else [])]  # fmt: skip
    cells = [cells for row in view.rows for cells in _row_cells(row, named, has_hot_list=has_hot_list)]
    show_table("", header, cells, left=0)
    if _shows_sharers(view):
        show("  who else owns these rows")
        header = ["layer", "head", "lookups", "its own", "others", "the first of them"]
        show_ending_in_words(header, [cells for row in view.rows for cells in _sharer_cells(row)])


def _shows_sharers(view: NgramView) -> bool:
    """What begins before the text owns nothing of a corpus: who else looks its rows up is left to the record."""
    return not view.n_before_text and view.rows[0].n_sharers is not None


def _sharer_cells(row: RowView) -> list[list[str]]:
    """A line for the row, and one more for each sharer after the first."""
    named = [f"{ngram_text(s.forms, most=30)} ({s.occurrences:,}×)" for s in row.sharers] or [""]
    figures = [str(row.layer_id), str(row.head), f"{row.n_lookups or 0:,}", percent(row.own_share),
               f"{row.n_sharers or 0:,}"]  # fmt: skip
    return [[*figures, named[0]], *([*[""] * len(figures), name] for name in named[1:])]


def _row_cells(row: RowView, files: Sequence[str], *, has_hot_list: bool) -> list[list[object]]:
    """A line of the table for each part of the record."""
    places: list[list[str]] = [
        [
            *([str(files.index(part.file) + 1)] if files else []),
            f"{part.offset:,}",
            str(part.first_page) if part.n_pages == 1 else f"{part.first_page}-{part.first_page + part.n_pages - 1}",
        ]
        for part in row.parts
    ] or [[*([""] if files else []), "not here", ""]]
    norm = "" if row.norm is None else f"{row.norm:.4g}"
    hot = ["-" if row.hot is None else f"rank {row.hot.rank:,}"] if has_hot_list else []
    first: list[object] = [row.layer_id, row.head, f"{row.row:,}", *places[0], norm, *hot]
    rest: list[list[object]] = [[*[""] * 3, *place, *[""] * (1 + has_hot_list)] for place in places[1:]]
    return [first, *rest]


def show_beside(report: NgramsReport) -> None:
    """The texts, a line for each n-gram, the next tokens of several beside one another, and what the words mean."""
    views = report.ngrams
    numbers = {text: number for number, text in enumerate(report.texts, 1)}
    for text, tokens in report.texts.items():
        dots = "… " if len(tokens) > _MOST_TOKENS else ""
        spelled = " ".join(map(unbroken, tokens[-_MOST_TOKENS:]))
        show_wrapped(f"{dots}{spelled}", head=f"text {numbers[text]}  ", indent=8)
    has_counts = any(view.occurrences is not None for view in views)
    has_bundles = any(view.fetch.bundles is not None for view in views)
    header = ["text", "n-gram", "order", *(["occurs", "its own"] if has_counts else []), "norm", "reads",
              *(["bundled"] if has_bundles else []), "pages"]  # fmt: skip
    cells = [[str(numbers[view.text]), *_beside_cells(view, has_counts=has_counts, has_bundles=has_bundles)]
             for view in views]  # fmt: skip
    show_table("", header, cells, left=2)
    followed = [view for view in views if view.next_tokens and not view.n_before_text]
    for order in dict.fromkeys(view.order for view in followed):
        _show_next_of_order([view for view in followed if view.order == order], numbers)
    said = [token for view in followed for token in view.next_tokens[0].tokens]
    _explain(
        *((_FILL,) if any(view.n_before_text for view in views) else ()),
        *(("rows say",) if said else ()),
        *(("?",) if any(token.is_convincing is False for token in said) else ()),
        *(("its own",) if has_counts else ("norm",)),
        "reads",
        *(("bundled",) if has_bundles else ()),
        "pages",
        said=said,
    )


def _beside_cells(view: NgramView, *, has_counts: bool, has_bundles: bool) -> list[str]:
    from statistics import median

    cost, bundled = view.fetch.rows, view.fetch.bundled
    norms = [row.norm for row in view.rows if row.norm is not None]
    own = [row.own_share for row in view.rows if row.own_share is not None]
    return [
        _spell(view, most=40),
        str(view.order),
        *([f"{view.occurrences:,}" if view.occurrences is not None else "-", percent(median(own) if own else None)]
          if has_counts else []),
        f"{median(norms):.4g}" if norms else "-",
        f"{cost.n_reads:,}",
        *([f"{bundled.n_reads:,}" if bundled is not None else "-"] if has_bundles else []),
        f"{cost.n_pages:,}/{'?' if cost.n_resident_pages is None else f'{cost.n_resident_pages:,}'}",
    ]  # fmt: skip


def _show_next_of_order(views: Sequence[NgramView], numbers: dict[str, int]) -> None:
    layer_id = views[0].next_tokens[0].layer_id
    has_counts = any(token.counted is not None for view in views for token in view.next_tokens[0].tokens)
    counted = " / how often it was counted" if has_counts else ""
    show_wrapped(f"next tokens, order {views[0].order}, layer {layer_id}: how often the rows say{counted}", indent=2)
    for first in range(0, len(views), _BESIDE):
        beside = views[first : first + _BESIDE]
        columns = [[_short_next(token) for token in view.next_tokens[0].tokens] or ["none"] for view in beside]
        n_lines = max(map(len, columns))
        rows = list(zip(*(column + [""] * (n_lines - len(column)) for column in columns), strict=True))
        # A heading's brackets would be read as markup.
        header = [f"{numbers[view.text]}: {_spell(view, most=24)}".replace("[", r"\[") for view in beside]
        show_table("", header, rows, left=len(header))


def _short_next(token: NextToken) -> str:
    estimate = _estimate(token) + ("?" if token.is_convincing is False else "")
    return f"{_next_text(token)}  {estimate}" + ("" if token.counted is None else f" / {token.counted:,}")


def _line(head: str, text: str) -> None:
    show_wrapped(text, head=f"  {head}", indent=_INDENT)
