"""Golden vectors: token runs that reach a spec's corners, and the rows that each of their tokens owns.

A program in any language that answers every case rightly addresses the table as the spec says. Rows and keys come from
the plain-Python reference; `check.py` compares another program's answer.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from engram_tables.address import reference
from engram_tables.address.golden.drafts import DEAD, drafts
from engram_tables.address.spec import AddressSpec
from engram_tables.address.spec_files import read_json, spec_from_json
from engram_tables.errors import InvalidInput
from engram_tables.units import int_from_json, json_int

CaseRows = list[list[list[int]]]
"""Tokens × layers × columns, global within the layer."""

SCHEMA = "engram.golden/1"
HOW_TO_ANSWER = (
    "Each case is one chunk of a sequence. `ids` are its tokens; -1 takes no part. `history` are the ids right before "
    "it, oldest first, -1 where dead; where it holds fewer than the largest order less one, the sequence began there. "
    "For an engine without dead tokens, write the file with `engram golden emit --no-dead`. "
    "Ids are hashed as they stand: no vocabulary is applied. Answer `rows` of every token, layer and column: rows are "
    "global within their layer, layers are in the order of the spec, columns order-major and head-minor. Write all "
    "cases one after another as one .npy of integers (tokens, layers, columns), or a line of JSON for each case: "
    '{"case": NAME, "rows": [[[...]]]}. Compare with `engram golden check`. `keys` need no answer: per order they hold '
    "the number before the modulus, or the ids, packed newest first into the lowest bits; as decimal strings."
)

_MAX_NAME_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCase:
    """One chunk of a sequence and its answer.

    Attributes
    ----------
    name, about
        The name is unique within its file; `about` says what the case is for.
    history
        Ids before the chunk, oldest first, -1 where dead; fewer than max_order - 1 where the sequence begins there.
    ids
        The chunk, -1 where dead.
    rows
        Tokens × layers × columns, global within the layer.
    keys
        Tokens × layers × orders, exact integers.
    """

    name: str
    about: str
    history: tuple[int, ...]
    ids: tuple[int, ...]
    rows: list[list[list[int]]]
    keys: list[list[list[int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A spec and its cases, in the order of their answers."""

    spec: AddressSpec
    cases: tuple[GoldenCase, ...]

    @property
    def rows(self) -> list[CaseRows]:
        """Rows case by case."""
        return [case.rows for case in self.cases]

    @property
    def n_tokens(self) -> int:
        """Tokens of all cases."""
        return sum(len(case.ids) for case in self.cases)

    @property
    def n_rows(self) -> int:
        """Rows of all cases: one per token, layer and column."""
        return self.n_tokens * len(self.spec.layers) * self.spec.n_columns

    @property
    def rows_sha256(self) -> str:
        """SHA-256 of all rows of all cases in order, as little-endian int64."""
        digest = hashlib.sha256()
        for row in chain.from_iterable(chain.from_iterable(case.rows for case in self.cases)):
            digest.update(struct.pack(f"<{len(row)}q", *row))
        return digest.hexdigest()


def make_golden(spec: AddressSpec, *, with_dead: bool = True) -> Golden:
    """The golden cases of a spec, after the kernels have given the same rows and keys; same spec, same cases.

    Parameters
    ----------
    with_dead
        Whether cases may hold dead tokens; the other cases are the same without them.
    """
    cases = golden_cases(spec, with_dead=with_dead)
    for case in cases:
        _hold_kernels(spec, case)
    return Golden(spec=spec, cases=tuple(cases))


def golden_cases(spec: AddressSpec, *, with_dead: bool = True) -> list[GoldenCase]:
    """The cases of a spec, answered by the plain-Python reference; same spec, same cases.

    `with_dead` is that of `make_golden`. Drafts that coincide (chunks of a spec that looks at one token alone) are
    given once.
    """
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    cases = []
    for draft in drafts(spec):
        keep = min(len(draft.history), spec.max_order - 1)
        history, ids = tuple(draft.history[len(draft.history) - keep :]), tuple(draft.ids)
        is_asked = with_dead or DEAD not in (*history, *ids)
        if ids and is_asked and (history, ids) not in seen:
            seen.add((history, ids))
            rows, keys = answer_case(spec, history, ids)
            cases.append(GoldenCase(name=draft.name, about=draft.about, history=history, ids=ids, rows=rows, keys=keys))
    return cases


def answer_case(
    spec: AddressSpec, history: Sequence[int], ids: Sequence[int]
) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
    """Rows (tokens × layers × columns) and keys (tokens × layers × orders) of a chunk, by the reference."""
    stream = [*history, *ids]
    per_layer = [reference.address(spec, layer, stream) for layer in spec.layers]
    positions = range(len(history), len(stream))
    rows = [[rows[position] for rows, _ in per_layer] for position in positions]
    keys = [[keys[position] for _, keys in per_layer] for position in positions]
    return rows, keys


def golden_bytes(golden: Golden) -> bytes:
    """The file of a golden set: JSON with one case a line; same set, same bytes."""
    head = {
        "schema": SCHEMA,
        "how_to_answer": HOW_TO_ANSWER,
        "spec": golden.spec.to_json(),
        "shape": [golden.n_tokens, len(golden.spec.layers), golden.spec.n_columns],
        "rows_sha256": golden.rows_sha256,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    cases = ",\n".join(json.dumps(_case_to_json(case), separators=(",", ":")) for case in golden.cases)
    return ("{\n" + ",\n".join(lines) + ',\n"cases": [\n' + cases + "\n]\n}\n").encode()


def read_golden(path: Path) -> Golden:
    """The golden set in a file.

    Raises
    ------
    InvalidInput
        No golden file, an id or a shape that its spec does not allow, or rows and keys that are not those of its spec:
        the file was changed.
    """
    data, where = read_json(path), str(path)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InvalidInput(f"{where}: found schema {found!r}, expected {SCHEMA!r}; write it with `engram golden emit`")
    spec = spec_from_json(data.get("spec"), where=f"{where}: spec")
    listed = data.get("cases")
    if not isinstance(listed, list) or not listed:
        raise InvalidInput(f"{where}: cases are {_kind(listed)}, expected a list of one or more; write it anew")
    cases = tuple(_case_from_json(spec, case, f"{where}: case {number}") for number, case in enumerate(listed))
    names = [case.name for case in cases]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(
            f"{where}: two cases are named {twice!r}, expected a name of its own for each; write it anew"
        )
    golden = Golden(spec=spec, cases=cases)
    shape = [golden.n_tokens, len(spec.layers), spec.n_columns]
    for key, expected in (("shape", shape), ("rows_sha256", golden.rows_sha256)):
        if data.get(key) != expected:
            raise InvalidInput(
                f"{where}: {key} is {data.get(key)!r}, its cases have {expected!r}: the file was changed; write it anew"
            )
    return golden


def _case_to_json(case: GoldenCase) -> dict[str, Any]:
    return {
        "name": case.name,
        "about": case.about,
        "history": list(case.history),
        "ids": list(case.ids),
        "rows": [[[json_int(row) for row in layer] for layer in token] for token in case.rows],
        # Always strings: the rule of 2^53 would change a key's type from token to token.
        "keys": [[[str(key) for key in layer] for layer in token] for token in case.keys],
    }


def _case_from_json(spec: AddressSpec, data: Any, where: str) -> GoldenCase:
    if not isinstance(data, dict):
        raise InvalidInput(f"{where}: found {_kind(data)}, expected an object; write the file anew")
    for key in ("name", "about"):
        if not isinstance(data.get(key), str):
            raise InvalidInput(f"{where}: {key} is {_kind(data.get(key))}, expected a text; write the file anew")
    name = data["name"]
    if not 0 < len(name) <= _MAX_NAME_CHARACTERS:
        raise InvalidInput(f"{where}: a name of {len(name)} characters, expected 1 to {_MAX_NAME_CHARACTERS}")
    where = f"{where} ({name})"
    history = _ids_from_json(spec, data.get("history"), f"{where}: history", least=0, most=spec.max_order - 1)
    ids = _ids_from_json(spec, data.get("ids"), f"{where}: ids", least=1, most=None)
    rows, keys = answer_case(spec, history, ids)
    for key, expected in (("rows", rows), ("keys", keys)):
        found = nested_integers(data.get(key), (len(ids), len(spec.layers), len(expected[0][0])), f"{where}: {key}")
        if found != expected:
            raise InvalidInput(
                f"{where}: {key} differ from those that its spec gives ({_first_difference(found, expected)}): the "
                "file was changed; write it anew with `engram golden emit`"
            )
    return GoldenCase(name=name, about=data["about"], history=history, ids=ids, rows=rows, keys=keys)


def _ids_from_json(spec: AddressSpec, data: Any, where: str, *, least: int, most: int | None) -> tuple[int, ...]:
    if not isinstance(data, list) or len(data) < least or (most is not None and len(data) > most):
        expected = f"{least} to {most} ids" if most is not None else f"a list of {least} or more ids"
        raise InvalidInput(f"{where}: found {_kind(data)}, expected {expected}")
    ids = tuple(int_from_json(token, f"{where}[{position}]") for position, token in enumerate(data))
    for position, token in enumerate(ids):
        if not DEAD <= token < spec.canonical_size:
            raise InvalidInput(
                f"{where}[{position}]: found {token}, expected 0 to {spec.canonical_size - 1:,}, or {DEAD} where dead"
            )
    return ids


def nested_integers(data: Any, shape: Sequence[int], where: str) -> Any:
    """`data` as nested lists of exact integers of a shape; InvalidInput with the place of what is none."""
    if not shape:
        if isinstance(data, float):
            raise InvalidInput(
                f"{where}: found {data!r}, a float, expected an integer or its decimal string; a row that has been "
                "through a float may be another row: keep integers from the hash on"
            )
        return int_from_json(data, where)
    if not isinstance(data, list) or len(data) != shape[0]:
        raise InvalidInput(f"{where}: found {_kind(data)}, expected a list of {shape[0]}")
    return [nested_integers(item, shape[1:], f"{where}[{index}]") for index, item in enumerate(data)]


def _kind(data: Any) -> str:
    if isinstance(data, list):
        return f"a list of {len(data)}"
    return "nothing" if data is None else f"{str(data)[:40]!r} ({type(data).__name__})"


def _first_difference(found: list[list[list[int]]], expected: list[list[list[int]]]) -> str:
    for position, (here, there) in enumerate(zip(found, expected, strict=True)):
        for layer_idx, (mine, right) in enumerate(zip(here, there, strict=True)):
            for place, (one, other) in enumerate(zip(mine, right, strict=True)):
                if one != other:
                    return f"at [{position}][{layer_idx}][{place}] {one}, expected {other}"
    raise AssertionError("equal lists were compared")


def _hold_kernels(spec: AddressSpec, case: GoldenCase) -> None:
    """Raise AssertionError where the kernels and the reference disagree: a bug of ours, and no file is written."""
    import numpy as np

    from engram_tables.address.hashing import exact_keys

    ids = np.array(case.ids, dtype=np.int64)
    rows, keys = spec.address(ids, dead=ids == DEAD, history=case.history, threads=1)
    if rows.tolist() != case.rows or exact_keys(keys) != case.keys:
        raise AssertionError(f"spec {spec.name}, case {case.name}: the kernels differ from the reference")
