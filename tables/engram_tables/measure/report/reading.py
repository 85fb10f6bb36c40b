"""Records from files: one JSON object, or one a line. Owns what is refused before anything is drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engram_tables.errors import InvalidInput

MOST_RECORD_BYTES = 64 * 2**20
"""Of one file: a record with every sample of a long benchmark has a few MB."""
MOST_RECORDS = 200

_SCHEMA = re.compile(r"engram\.([a-z][a-z-]*)/([0-9]{1,9})")
_SCRIPTS = "engram.benchmark-"
_DEEPEST = 8
_Named = tuple[str, str, dict[str, Any]]
"""A name within its file, empty where it needs none; the schema; the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record on the page.

    Attributes
    ----------
    label
        A letter that names it in every chart: A, B, …
    file
        Name of the file, without its directories, and of the record in it where a script gave it one.
    schema
        What the record says it is; one that can be drawn.
    record
        As it was read; nothing of it is checked yet.
    """

    label: str
    file: str
    schema: str
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """What a reader knows it by."""
        return f"{self.label} · {self.file}"


def read_records(paths: Sequence[Path], *, schemas: Collection[str]) -> list[Entry]:
    """Every record of some files, in their order.

    Parameters
    ----------
    paths
        Files of one record, or of one a line; of a script's record those that it holds are taken.
    schemas
        Those that can be drawn.

    Raises
    ------
    InvalidInput
        No file; a file that is none, is too large, holds no JSON objects, or a record that cannot be drawn.
    """
    if not paths:
        raise InvalidInput("report: found no record, expected one at least; name files that --record wrote")
    found: list[tuple[str, str, dict[str, Any]]] = []
    for path in paths:
        for at, value in enumerate(_values(path)):
            where = str(path) if at == 0 else f"{path}, record {at + 1}"
            found += [
                (f"{path.name}, {name}" if name else path.name, schema, record)
                for name, schema, record in _drawable(where, value, schemas)
            ]
    if len(found) > MOST_RECORDS:
        raise InvalidInput(
            f"report: found {len(found):,} records, expected {MOST_RECORDS} at most; make several reports"
        )
    return [
        Entry(label=_letters(at), file=file, schema=schema, record=record)
        for at, (file, schema, record) in enumerate(found)
    ]


def _values(path: Path) -> list[Any]:
    """The JSON values of a file: one, or one a line."""
    if path.is_dir():
        inside = path / "counts.json"
        if not inside.is_file():
            raise InvalidInput(f"{path}: found a directory without counts.json, expected a record; name a file")
        path = inside
    with path.open("rb") as file:
        data = file.read(MOST_RECORD_BYTES + 1)
    if len(data) > MOST_RECORD_BYTES:
        raise InvalidInput(f"{path}: found more than {MOST_RECORD_BYTES:,} bytes, expected a record; name another file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path}: found bytes that are no UTF-8, expected a JSON record; name another file"
        ) from error
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        # A record over several lines begins with a line that is no value by itself.
        return [_load(line) for line in lines] if len(lines) > 1 and _is_value(lines[0]) else [_load(text)]
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{path}: found no JSON ({str(error)[:120]}), expected a record of --record or --json; name another file"
        ) from error


def _load(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _is_value(line: str) -> bool:
    try:
        _load(line)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _drawable(where: str, value: Any, schemas: Collection[str]) -> list[_Named]:
    """A record, or those that a script's record holds."""
    schema = value.get("schema") if isinstance(value, dict) else None
    if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema):
        found = "no schema" if schema is None else f"schema {str(schema)[:60]!r}"
        raise InvalidInput(
            f'{where}: found {found}, expected a record that says "schema": "engram.…"; name another file'
        )
    if schema in schemas:
        return [("", schema, value)]
    inside = list(_inside(value, schemas, 0)) if schema.startswith(_SCRIPTS) else []
    if not inside:
        _refuse(where, schema, schemas)
    return inside


def _inside(value: Any, schemas: Collection[str], depth: int, name: str = "") -> Iterator[_Named]:
    """Records in a script's record, each with the nearest name around it."""
    if isinstance(value, dict) and value.get("schema") in schemas:
        yield name, value["schema"], value
    elif isinstance(value, dict | list) and depth < _DEEPEST:
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            name = value["name"]
        for each in value.values() if isinstance(value, dict) else value:
            yield from _inside(each, schemas, depth + 1, name)


def _refuse(where: str, schema: str, schemas: Collection[str]) -> NoReturn:
    name, version = schema.rsplit("/", 1)
    same = {other.rsplit("/", 1)[0]: int(other.rsplit("/", 1)[1]) for other in schemas}
    if name not in same:
        drawn = ", ".join(sorted(schemas))
        raise InvalidInput(f"{where}: found {schema}, which has no chart, expected one of {drawn}; leave it out")
    age, remedy = (
        ("an older", "make the record anew")
        if int(version) < same[name]
        else ("a newer", "draw it by a newer engram-tables")
    )
    raise InvalidInput(f"{where}: found {schema} of {age} version, expected {name}/{same[name]}; {remedy}")


def _letters(at: int) -> str:
    """A to Z, then AA."""
    return (_letters(at // 26 - 1) if at >= 26 else "") + chr(ord("A") + at % 26)
