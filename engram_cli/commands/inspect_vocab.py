"""`engram inspect vocab`: what folds together in a vocabulary, why, and which tokens hold a string."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from unicodedata import combining

import typer

from engram_cli.console import emit, say, show, show_table
from engram_cli.inspected import plural
from engram_cli.options import JsonFlag
from engram_tables.units import parse_integers

_MOST_MEMBERS = 12
_LONGEST = 32


def inspect_vocab(
    vocab: Annotated[Path, typer.Argument(metavar="VOCAB", help="A vocabulary file, or a table that holds one.")],
    text: Annotated[str | None, typer.Option("--text", help="Show every token of this text.")] = None,
    token_id: Annotated[str | None, typer.Option("--token-id", help="Show these token ids.")] = None,
    canonical_id: Annotated[str | None, typer.Option("--canonical-id", help="Show these canonical ids.")] = None,
    search: Annotated[
        str | None,
        typer.Option("--search", metavar="STRING", help="Show tokens that hold this, as it stands or after folding."),
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, metavar="N", help="Tokens of --search to show.")] = 20,
    why: Annotated[
        bool, typer.Option("--why", help="Show what each step of the folding makes of every token that folds together.")
    ] = False,
    groups: Annotated[
        int, typer.Option("--groups", min=0, help="Largest merged groups, if nothing is asked for.")
    ] = 20,
    json: JsonFlag = False,
) -> None:
    """Show what folds together in a vocabulary, and why.

    A token is folded to a form by the vocabulary's rule, and tokens of one form share a canonical id, which is what a
    table is addressed by. With --why every token goes through the steps of that rule one by one, and those that
    changed it are shown with the text after them. --search looks for a string in what tokens say and, folded like
    them, in their forms.

    \b
    Examples:
      engram inspect vocab v4.vocab.parquet --text "The THE the"
      engram inspect vocab ./table --canonical-id 237 --why
      engram inspect vocab v4.vocab.parquet --search numpy
    """
    from engram_tables import load_vocabulary
    from engram_tables.inspect.vocabulary import inspect_vocabulary, search_vocabulary
    from engram_tables.storage.table.layout import VOCABULARY_NAME

    vocabulary = load_vocabulary(vocab / VOCABULARY_NAME if vocab.is_dir() else vocab)
    canonical_ids = [] if canonical_id is None else parse_integers(canonical_id)
    token_ids = [] if token_id is None else parse_integers(token_id)
    if text is None and search is None and not token_ids and not canonical_ids:
        canonical_ids = [group.canonical_id for group in vocabulary.largest_groups(groups)]
        if json:
            emit(vocabulary.header())
        else:
            show(f"{vocabulary.source}, rule {vocabulary.rule}: {vocabulary.token_count:,} token ids, "
                 f"{vocabulary.n_classes:,} canonical ids, map SHA-256 {vocabulary.map_sha256}")  # fmt: skip
    records = inspect_vocabulary(vocabulary, text=text, token_ids=token_ids, canonical_ids=canonical_ids, why=why)
    if search is not None:
        found = search_vocabulary(vocabulary, search, n_most=most, why=why)
        say(
            f"{plural(found.n_tokens, 'token')}: {found.n_raw:,} with {search!r} as it stands, {found.n_folded:,} with "
            f"{found.folded!r} after folding"
            + (f"; the first {most:,} are shown, --most shows more" if found.n_tokens > most else "")
        )
        records += found.records
    if json:
        for record in records:
            emit(record)
    elif not records:
        return
    elif why:
        _show_why(records)
    else:
        _show(records, is_search=search is not None)


def _show(records: list[dict[str, Any]], *, is_search: bool) -> None:
    rows = [
        (
            "" if record["token_id"] is None else f"{record['token_id']} {record['text']!r}",
            *((record["matched"] or "",) if is_search else ()),
            record["canonical_id"],
            repr(record["form"]),
            len(record["members"]),
            " ".join(repr(member[1]) for member in record["members"][:_MOST_MEMBERS]),
        )
        for record in records
    ]
    columns = ("token", *(("holds it",) if is_search else ()), "canonical id", "form", "tokens", "some of them")
    show_table("", columns, rows, left=len(columns))


def _show_why(records: list[dict[str, Any]]) -> None:
    """A table for each canonical id, once."""
    shown = set()
    for record in records:
        if record["canonical_id"] in shown:
            continue
        shown.add(record["canonical_id"])
        show(
            f"canonical id {record['canonical_id']}, form {record['form']!r}: {plural(len(record['members']), 'token')}"
        )
        rows = []
        for token in record["why"]:
            cells = (str(token["token_id"]), _spell(token["text"]))
            steps = [(step["step"], _spell(step["text"])) for step in token["steps"]] or [("as it stands", "")]
            rows += [(*(cells if nth == 0 else ("", "")), *step) for nth, step in enumerate(steps)]
        show_table("", ("token", "text", "step that changed it", "text after it"), rows, left=4)


def _spell(text: str) -> str:
    """In quotes, marks that join the letter before them as escapes, and cut where it is long."""
    spelled = "".join(c.encode("unicode_escape").decode() if combining(c) else c for c in repr(text))
    if len(spelled) <= _LONGEST:
        return spelled
    return f"{spelled[:_LONGEST]}… ({len(text)} characters)"
