"""Another program's rows against a golden set: which differ, and what mistake would make them so."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

from engram_tables.address.golden.cases import CaseRows, Golden, nested_integers
from engram_tables.address.golden.hints import Hint, Place, all_places, find_hints
from engram_tables.address.golden.mistakes import MISTAKES, SHIFTED, Mistake, Question, Simulation
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    import numpy.typing as npt

_MOST_OF_A_MISTAKE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One row that differs.

    Attributes
    ----------
    case, position
        Name of the case, and the token's position in its ids.
    layer_id, order, head
        The column.
    expected, found
        Row ids, global within their layer.
    """

    case: str
    position: int
    layer_id: int
    order: int
    head: int
    expected: int
    found: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A mistake that gives exactly the rows of the answer, the end of a chunk aside where it is one of neighbours.

    Attributes
    ----------
    name, sentence
        `docs/reference/golden.md` lists them.
    values
        The numbers in the sentence, in its order.
    """

    name: str
    sentence: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenReport:
    """What a comparison found.

    Attributes
    ----------
    n_rows, n_cases
        Compared.
    n_rows_differing, n_cases_differing
        Those that differ, and cases that hold one.
    first
        The first row that differs, in the order of the golden set.
    causes
        Every known mistake that explains all of the answer, the most specific first.
    hints
        Where no mistake does.
    """

    n_rows: int
    n_rows_differing: int
    n_cases: int
    n_cases_differing: int
    first: Difference | None
    causes: tuple[Cause, ...]
    hints: tuple[Hint, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every row agrees."""
        return self.n_rows_differing == 0


def check_rows(golden: Golden, answer: npt.ArrayLike, *, local: bool = False) -> GoldenReport:
    """Compare another program's rows with those of a golden set.

    Parameters
    ----------
    answer
        Integers (tokens of all cases, layers, columns), an array or nested lists.
    local
        Rows are counted within each head: offsets are added before the comparison.

    Raises
    ------
    InvalidInput
        Another shape, or what is no integer.

    Notes
    -----
    A comparison costs little; the causes of differing rows are found by simulating some fifty mistakes in plain Python,
    which takes up to seconds.
    """
    rows: CaseRows = _as_rows(golden, answer, "answer")
    if local:
        offsets = [layer.offsets for layer in golden.spec.layers]
        rows = [
            [[row + offset for row, offset in zip(*pair, strict=True)] for pair in zip(token, offsets, strict=True)]
            for token in rows
        ]
    tokens = iter(rows)
    question = Question(golden, [[next(tokens) for _ in case.ids] for case in golden.cases])
    expected = golden.rows
    differing = [place for place in all_places(golden) if place.row(question.answer) != place.row(expected)]
    causes = _causes(question) if differing else []
    return GoldenReport(
        n_rows=golden.n_rows,
        n_rows_differing=len(differing),
        n_cases=len(golden.cases),
        n_cases_differing=len({place.case_idx for place in differing}),
        first=_difference(question, differing[0]) if differing else None,
        causes=tuple(causes),
        hints=() if causes or not differing else tuple(find_hints(question, differing)),
    )


def load_answer(path: Path, golden: Golden) -> CaseRows:
    """Rows (tokens of all cases × layers × columns) in a .npy or .jsonl file, in the order of the golden set.

    Raises
    ------
    InvalidInput
        A file of neither kind, floats, another shape, a case that is missing, unknown or given twice: with the place.
    """
    match path.suffix:
        case ".npy":
            return _as_rows(golden, _load_array(path), str(path))
        case ".jsonl":
            with path.open("rb") as file:
                return load_lines(file, golden, where=str(path))
    raise InvalidInput(f"{path}: found a name that ends in {path.suffix!r}, expected .npy or .jsonl; rename or convert")


def load_lines(lines: Iterable[bytes], golden: Golden, *, where: str) -> CaseRows:
    """The rows of `load_answer` from lines of JSON, one a case; InvalidInput begins with `where` and the line."""
    by_case = _rows_by_case(lines, golden, where)
    return list(chain.from_iterable(by_case[case.name] for case in golden.cases))


def _load_array(path: Path) -> npt.NDArray[Any]:
    import numpy as np

    try:
        # Mapped, so that a header cannot ask for more memory than the file has bytes.
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, TypeError, SyntaxError, OverflowError, TokenError) as error:
        raise InvalidInput(f"{path}: not a whole .npy of integers ({error}); write it anew") from None
    file_bytes = path.stat().st_size
    if array.offset + array.nbytes != file_bytes:
        raise InvalidInput(
            f"{path}: found {file_bytes} bytes, expected {array.offset + array.nbytes} by its header; write it anew"
        )
    return array


def _rows_by_case(lines: Iterable[bytes], golden: Golden, source: str) -> dict[str, CaseRows]:
    """Rows by the case's name, every case once."""
    expected = {case.name: len(case.ids) for case in golden.cases}
    found: dict[str, CaseRows] = {}
    for number, line in enumerate(lines, 1):
        where = f"{source} line {number}"
        if not line.strip():
            continue
        name, rows = _read_line(line, expected, where)
        if name in found:
            raise InvalidInput(f"{where}: found case {name} for the second time, expected each once")
        shape = (expected[name], len(golden.spec.layers), golden.spec.n_columns)
        found[name] = nested_integers(rows, shape, f"{where} (case {name}): rows")
    missing = [name for name in expected if name not in found]
    if missing:
        told = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise InvalidInput(
            f"{source}: found {len(found)} of {len(expected)} cases, expected all; add a line for each of {told}"
        )
    return found


def _read_line(line: bytes, names: Collection[str], where: str) -> tuple[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not JSON that can be read ({error}); write it anew") from None
    if not isinstance(data, dict) or data.keys() != {"case", "rows"}:
        found = f"the keys {', '.join(map(repr, sorted(data)))}" if isinstance(data, dict) else type(data).__name__
        raise InvalidInput(f"{where}: found {found}, expected an object of 'case' and 'rows'")
    name = data["case"]
    if not isinstance(name, str) or name not in names:
        raise InvalidInput(f"{where}: found case {name!r}, expected a name of the golden set: {', '.join(names)}")
    return name, data["rows"]


def _as_rows(golden: Golden, answer: Any, where: str) -> CaseRows:
    """Tokens × layers × columns as exact integers; InvalidInput for another shape or kind."""
    n_layers, n_columns = len(golden.spec.layers), golden.spec.n_columns
    shape = (golden.n_tokens, n_layers, n_columns)
    if isinstance(answer, list | tuple):
        rows: CaseRows = nested_integers(answer, shape, where)
        return rows
    import numpy as np

    array = np.asarray(answer)
    if array.dtype.kind not in "iu":
        raise InvalidInput(
            f"{where}: found dtype {array.dtype}, expected int32, uint32, int64 or uint64; a row that has been through "
            "a float may be another row: keep integers from the hash on"
        )
    if array.shape not in (shape, (golden.n_tokens, n_layers * n_columns)):
        raise InvalidInput(
            f"{where}: found shape {array.shape}, expected {shape}: (tokens of all cases one after another, layers, "
            f"columns), or {(golden.n_tokens, n_layers * n_columns)}"
        )
    flat: CaseRows = array.reshape(shape).tolist()
    return flat


def _difference(question: Question, place: Place) -> Difference:
    golden = question.golden
    order, head = golden.spec.columns[place.column]
    return Difference(
        case=golden.cases[place.case_idx].name,
        position=place.position,
        layer_id=golden.spec.layer_ids[place.layer_idx],
        order=order,
        head=head,
        expected=place.row(golden.rows),
        found=place.row(question.answer),
    )


def _causes(question: Question) -> list[Cause]:
    """Every mistake that gives exactly the answer; a constant shift only where nothing else does."""
    tokens = [(case_idx, p) for case_idx, case in enumerate(question.golden.cases) for p in range(len(case.ids))]
    # Tokens that differ come first: most guesses fail at them.
    tokens.sort(key=lambda token: _token(question.golden, token) == question.answer[token[0]][token[1]])
    causes = [cause for mistake in MISTAKES for cause in _fitting(mistake, question, tokens)]
    return causes or _fitting(SHIFTED, question, tokens)


def _token(golden: Golden, token: tuple[int, int]) -> list[list[int]]:
    return golden.cases[token[0]].rows[token[1]]


def _fitting(mistake: Mistake, question: Question, tokens: Sequence[tuple[int, int]]) -> list[Cause]:
    found: dict[tuple[int, ...], Cause] = {}
    for values, simulate in mistake.variants(question):
        if len(found) < _MOST_OF_A_MISTAKE and values not in found and _fits(question, simulate, tokens):
            sentence = mistake.sentence.format(*values, all=", ".join(map(str, values)))
            found[values] = Cause(name=mistake.name, sentence=sentence, values=values)
    return list(found.values())


def _fits(question: Question, simulate: Simulation, tokens: Sequence[tuple[int, int]]) -> bool:
    """Whether the simulated rows are those of the answer, and explain one that differs."""
    explains = False
    for token in tokens:
        case, found = question.golden.cases[token[0]], question.answer[token[0]][token[1]]
        for simulated, theirs, expected in zip(simulate(case, token[1]), found, case.rows[token[1]], strict=True):
            for row, their, right in zip(simulated, theirs, expected, strict=True):
                if row is not None and row != their:
                    return False
                explains = explains or (row is not None and row != right)
    return explains
