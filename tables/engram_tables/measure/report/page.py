"""One page of all records: a section for each kind, and where every record comes from.

Owns the order of the page and what each kind of record is called. Nothing on it is fetched, and no script runs: the
page's own policy forbids both.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from engram_tables.errors import InvalidInput
from engram_tables.files import new_file, refuse_existing
from engram_tables.measure.report import counted, judged, looked_into, measured, overlapped, planned, simulated
from engram_tables.measure.report.charts import Charts
from engram_tables.measure.report.elements import Child, spelled, table, tag
from engram_tables.measure.report.figures import MISSING, words
from engram_tables.measure.report.reading import Entry, read_records
from engram_tables.measure.report.style import STYLE


class Kind(NamedTuple):
    """Records that share a section.

    Attributes
    ----------
    anchor, title, lead
        Of the section.
    schemas
        What such records say that they are.
    draw
        Makes the section's content.
    """

    anchor: str
    title: str
    lead: str
    schemas: tuple[str, ...]
    draw: Callable[[Sequence[Entry], Charts], list[Child]]


KINDS = (
    Kind("counts", "Counts", "Which n-grams a text holds, and how often they occur.",
         ("engram.count/2", "engram.counts/2", "engram.counts-merge/1", "engram.counts-stats/1"), counted.draw),
    Kind("caches", "Caches", "What share of a text's lookups caches of every size answer, as simulated.",
         ("engram.simulate/1",), simulated.draw),
    Kind("plans", "Plans", "Where a table could lie, and what its fetches would cost, as computed.",
         ("engram.plan/1",), planned.draw),
    Kind("fetching", "Fetching rows", "What reading rows costs, as measured, beside the machine's own limits.",
         ("engram.bench-offload/2",), measured.draw),
    Kind("overlap", "Fetching beside a model", "What is left of the cost of fetching while a model computes.",
         ("engram.overlap/1",), overlapped.draw),
    Kind("accuracy", "Accuracy", "How often the rows of a next-token table name the token that follows.",
         ("engram.evaluate/1",), judged.draw),
    Kind("inside", "Inside tables", "What rows look like, and which of them a text reaches.",
         ("engram.inspect-stats/1", "engram.inspect-coverage/1"), looked_into.draw),
)  # fmt: skip
SCHEMAS = tuple(schema for kind in KINDS for schema in kind.schemas)
"""Of the records that can be drawn."""

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, OverflowError)


def write_report(
    path: Path, records: Sequence[Path], *, title: str = "Engram report", force: bool = False
) -> list[Entry]:
    """Draw records as one HTML file that needs no other, no network and no script.

    Parameters
    ----------
    path
        The page; equal records give equal bytes.
    records
        Files of `--record`, of `--json` (one record a line), manifests of counts or directories of counts, and records
        of the scripts that hold such ones.

    Returns
    -------
    list of Entry
        What was drawn, in the page's letters.

    Raises
    ------
    InvalidInput
        `path` is taken and `force` is not set or it cannot be written; or no record, or one that cannot be drawn.
    """
    if path.suffix not in (".html", ".htm"):
        raise InvalidInput(f"{path}: found the ending {path.suffix!r}, expected .html; name a page by it")
    refuse_existing(path, force=force)
    if any(path.resolve() == record.resolve() for record in records):
        raise InvalidInput(f"{path}: found the page's name among the records, expected another; name a new file")
    entries = read_records(records, schemas=SCHEMAS)
    page = draw_page(entries, title=title)
    with new_file(path, force=force) as file:
        file.write(page.encode("utf-8"))
    return entries


def draw_page(entries: Sequence[Entry], *, title: str) -> str:
    """The page's text.

    Raises
    ------
    InvalidInput
        A record lacks what its schema promises.
    """
    for entry in entries:
        _check(entry)
    charts = Charts()
    held = [(kind, [entry for entry in entries if entry.schema in kind.schemas]) for kind in KINDS]
    held = [(kind, own) for kind, own in held if own]
    links = [(kind.anchor, kind.title) for kind, _ in held] + [("sources", "Where the records come from")]
    body = tag(
        "body", tag("a", "To the content", href="#content", class_="skip"),
        tag("header", tag("h1", title), *_named(entries)),
        tag("nav", tag("ul", *(tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name in links)),
            aria_label="Sections"),
        tag("main", *(_section(kind, own, charts) for kind, own in held), _sources(entries), id="content"),
    )  # fmt: skip
    return spelled(tag("html", _head(title), body, lang="en"))


def _check(entry: Entry) -> None:
    """Draw a record alone, so that one that is not whole is named."""
    kind = next(kind for kind in KINDS if entry.schema in kind.schemas)
    try:
        kind.draw([entry], Charts())
        list(_environment(entry))
        _command(entry)
    except _MALFORMED as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)[:160]
        raise InvalidInput(
            f"{entry.file}: found {entry.schema} that is not whole ({found}), expected what its schema promises; make "
            "the record anew"
        ) from error


def _head(title: str) -> Element:
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return tag(
        "head", tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        # An empty picture: a browser would ask the page's server for one otherwise.
        tag("link", rel="icon", href="data:,"),
        tag("style", STYLE),
    )  # fmt: skip


def _named(entries: Sequence[Entry]) -> list[Element]:
    """What each letter stands for."""
    n_records = f"{len(entries)} records, named by their letters in every chart:" if len(entries) > 1 else "One record:"
    files = tag("ul", *(tag("li", entry.name) for entry in entries), class_="files")
    return [tag("p", n_records, class_="lead"), files]


def _section(kind: Kind, entries: Sequence[Entry], charts: Charts) -> Element:
    name = f"{kind.anchor}-title"
    try:
        content = kind.draw(entries, charts)
    except _MALFORMED as error:
        files = ", ".join(entry.file for entry in entries)
        raise InvalidInput(
            f"{files}: found records that do not go together ({str(error)[:160]}), expected figures of one kind; "
            "draw them one by one"
        ) from error
    return tag(
        "section", tag("h2", kind.title, id=name), tag("p", kind.lead, class_="lead"), *content, id=kind.anchor,
        aria_labelledby=name,
    )  # fmt: skip


def _sources(entries: Sequence[Entry]) -> Element:
    content: list[Child] = [tag("h2", "Where the records come from", id="sources-title"), _environments(entries)]
    unnamed = [entry.name for entry in entries if not _command(entry)]
    for entry in entries:
        command = _command(entry)
        if command:
            content.append(tag("h3", f"{entry.name} ({entry.schema})"))
            # A word stays whole where a line can hold it: what is copied is one command again.
            spaced = [child for word in command for child in (tag("span", word, class_="word"), " ")]
            content.append(tag("pre", *spaced[:-1]))
    if unnamed:
        content.append(tag("p", f"Without a command of their own: {'; '.join(unnamed)}.", class_="note"))
    return tag("section", *content, id="sources", aria_labelledby="sources-title")


def _command(entry: Entry) -> list[str]:
    """Words as a shell takes them; none where a record names no command."""
    command = entry.record.get("command")
    if command is None:
        return []
    if not isinstance(command, list):
        raise TypeError("command is no list of words")
    return [shlex.quote(words(word)) for word in command]


def _environments(entries: Sequence[Entry]) -> Element | None:
    """Machines and versions beside one another; what differs between records says so in words."""
    told = [(entry, dict(_environment(entry))) for entry in entries]
    told = [(entry, found) for entry, found in told if found]
    if not told:
        return None
    rows: list[list[Child]] = []
    for key in dict.fromkeys(key for _, found in told for key in found):
        values = [found.get(key, MISSING) for _, found in told]
        rows.append([f"{key} (differs)" if len({*values} - {MISSING}) > 1 else key, *values])
    return table(
        ["", *(entry.name for entry, _ in told)], rows, caption="Environment of each run", n_left=len(told) + 1
    )


def _environment(entry: Entry) -> Iterator[tuple[str, str]]:
    """What a record, or the probe in it, says of the machine, in one level of keys."""
    found = entry.record.get("environment") or (entry.record.get("probe") or {}).get("environment") or {}
    for key, value in found.items():
        if isinstance(value, dict):
            for inner, each in value.items():
                yield f"{key}: {inner}", _value(f"{key}_{inner}", each)
        else:
            yield key, _value(key, value)


def _value(key: str, value: Any) -> str:
    return str(value) if isinstance(value, int) and not key.endswith("_bytes") else words(value)
