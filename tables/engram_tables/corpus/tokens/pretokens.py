"""Pre-tokenizers as one automaton that walks over a text once and says where each piece ends.

Owns the reading of a tokenizer.json's `pre_tokenizer`, the classes of characters and the automaton's tables. Knows no
vocabulary and no token. Which characters a class holds is asked of the tokenizers library's own engine, since Unicode
tables differ between versions.

The automaton steps from character to character, by *atom*: characters that no class of the expressions tells apart
share one. Its states are ordered lists of the places of the expression at which a match may stand, best first, so
that it finds the very match that the library's backtracking engine finds. A match is noticed one character late, when
the next one is known: that is how `(?!\\S)` and the end of a piece are settled.

Splits before the last one must be runs of one class (`\\p{N}{1,3}`): where those cut is known from the character before
and the one after, so the state carries the length of each run, and a cut looks like the end of the text to the last
expression. The library, too, lets each expression of a sequence see nothing but the piece that the one before left.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.tokens.patterns import (
    BYTE_LEVEL_PATTERN,
    Ahead,
    Chain,
    Choice,
    Node,
    One,
    Repeat,
    UnsupportedPattern,
    folded_literals,
    parse_literal,
    parse_pattern,
    sources,
)

N_CODE_POINTS = 0x110000
PAGE_BITS = 6
MATCH = 1 << 31
"""Bit of a step: a match ends before the character that was read."""
SKIPS = 1 << 30
"""Bit of a step: it leads to a state in which each of the letters a to z ends a match and leads back."""
STOP = 0
"""The state in which no longer match is possible."""
_MAX_STATES = 4000
_MAX_ATOMS = 250
_END = -1

Bools = npt.NDArray[np.bool_]


class Scanner(NamedTuple):
    """Tables of one pre-tokenizer, as the kernels take them; the atom one past the last is the end of a piece.

    Attributes
    ----------
    ascii_atoms
        uint8 (128,).
    page_of
        uint16 (17,408,): page of the atoms of code points 64 k to 64 k + 63.
    pages
        uint8 (n_pages × 64,).
    n_atoms, shift
        Atoms, and the bits that hold one atom more: a state's number is a multiple of 2 to the power `shift`.
    steps
        uint32 (n_states << shift,): at state + atom the next state, with `MATCH` and `SKIPS`.
    run_of
        uint16 (n_states,): run state, which says what a state knows of the splits before the last.
    start_of
        uint32 (n_runs,): state in which a piece starts.
    next_run
        uint16 (n_runs × n_atoms,): run state after a character.
    cuts
        bool (n_runs × n_atoms,): whether one of the splits before the last cuts before that character.
    """

    ascii_atoms: npt.NDArray[np.uint8]
    page_of: npt.NDArray[np.uint16]
    pages: npt.NDArray[np.uint8]
    n_atoms: int
    shift: int
    steps: npt.NDArray[np.uint32]
    run_of: npt.NDArray[np.uint16]
    start_of: npt.NDArray[np.uint32]
    next_run: npt.NDArray[np.uint16]
    cuts: Bools


class _Run(NamedTuple):
    """A split at runs of one class, `most` characters each (0: without bound)."""

    source: str
    most: int


def read_pre_tokenizer(parsed: dict[str, Any] | None) -> Scanner:
    """The automaton of a `pre_tokenizer` of a tokenizer.json.

    Takes some 0.1 s for each class of characters that no earlier call of this process has met.

    Raises
    ------
    UnsupportedPattern
        Anything in it that is not understood; the message says what.
    """
    runs, last = _stages(parsed)
    names = list(dict.fromkeys([run.source for run in runs] + list(sources(last))))
    atom_of, members = _atoms(names)
    automaton = _Automaton(runs, last, members)
    pages, page_of = _paged(atom_of)
    n_atoms = automaton.n_atoms
    shift = n_atoms.bit_length()
    return Scanner(
        ascii_atoms=atom_of[:128].copy(),
        page_of=page_of,
        pages=pages,
        n_atoms=n_atoms,
        shift=shift,
        steps=_flat_steps(automaton, shift, sorted({*atom_of[ord("a") : ord("z") + 1].tolist()})),
        run_of=np.array([run for run, _, _ in automaton.states], dtype=np.uint16),
        start_of=np.array([state << shift for state in automaton.start_of], dtype=np.uint32),
        next_run=np.array(automaton.next_run, dtype=np.uint16).reshape(-1),
        cuts=np.array(automaton.cuts, dtype=bool).reshape(-1),
    )


def _paged(atom_of: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Equal pages once, one after the other; and the page of every 64 code points."""
    numbers: dict[bytes, int] = {}
    size = 1 << PAGE_BITS
    page_of = [
        numbers.setdefault(atom_of[start : start + size].tobytes(), len(numbers))
        for start in range(0, N_CODE_POINTS, size)
    ]
    return np.frombuffer(b"".join(numbers), dtype=np.uint8), np.array(page_of, dtype=np.uint16)


def _flat_steps(automaton: _Automaton, shift: int, small_letters: list[int]) -> npt.NDArray[np.uint32]:
    """The steps as kernels take them."""
    steps = np.array(automaton.steps, dtype=np.int64)
    matches = steps & MATCH
    after = steps & (MATCH - 1)
    numbers = np.arange(len(steps))
    leads_back = (matches[:, small_letters] > 0) & (after[:, small_letters] == numbers[:, None])
    skips = leads_back.all(axis=1) & (numbers != STOP)
    flat = np.zeros((len(steps), 1 << shift), dtype=np.uint32)
    flat[:, : steps.shape[1]] = matches | np.where(skips[after], SKIPS, 0) | after << shift
    return flat.reshape(-1)


def _stages(parsed: dict[str, Any] | None) -> tuple[list[_Run], Node]:
    """The splits at runs, and the last expression."""
    found: list[Node] = []
    byte_level = False
    parts = [] if parsed is None else parsed["pretokenizers"] if parsed["type"] == "Sequence" else [parsed]
    for part in parts:
        if byte_level:
            raise UnsupportedPattern(f"a pre-tokenizer {part['type']} after ByteLevel")
        match part["type"]:
            case "Split":
                found.append(_split(part))
            case "ByteLevel":
                if part.get("add_prefix_space", True):
                    raise UnsupportedPattern("ByteLevel with add_prefix_space")
                byte_level = True
                if part.get("use_regex", True):
                    found.append(parse_pattern(BYTE_LEVEL_PATTERN))
            case other:
                raise UnsupportedPattern(f"pre-tokenizer {other}, expected Split or ByteLevel")
    if not byte_level:
        raise UnsupportedPattern("a pre-tokenizer without ByteLevel")
    if not found:
        raise UnsupportedPattern("a pre-tokenizer that never splits")
    return [_as_run(node) for node in found[:-1]], found[-1]


def _split(part: dict[str, Any]) -> Node:
    if part["behavior"] != "Isolated" or part["invert"]:
        raise UnsupportedPattern(f"Split with behavior {part['behavior']}, invert {part['invert']}")
    match part["pattern"]:
        case {"Regex": pattern}:
            node = parse_pattern(pattern)
            _refuse_one_for_many(sorted(folded_literals(pattern)))
            return node
        case {"String": text}:
            return parse_literal(text)
        case other:
            raise UnsupportedPattern(f"Split at {other}")


def _as_run(node: Node) -> _Run:
    match node:
        case One(source):
            return _Run(source, 1)
        case Repeat(One(source), 1, most, False):
            return _Run(source, most or 0)
    raise UnsupportedPattern("a Split before the last one that is no run of one class of characters")


@cache
def _every_character() -> str:
    points = np.concatenate([np.arange(0xD800), np.arange(0xE000, N_CODE_POINTS)]).astype("<u4")
    return points.tobytes().decode("utf-32-le")


@cache
def _members(source: str) -> Bools:
    """bool (0x110000,): the characters that the library's engine finds for a class; surrogates are none."""
    from tokenizers import Regex, decoders

    # The Replace decoder searches with the pre-tokenizers' engine and keeps no offsets: thirty times faster than Split.
    try:
        left = decoders.Replace(Regex(f"(?:{source})+"), "").decode([_every_character()])
    except Exception as error:  # the library raises bare Exception
        raise UnsupportedPattern(f"the class {source!r}: {error}") from None
    found = np.ones(N_CODE_POINTS, dtype=bool)
    found[0xD800:0xE000] = False
    found[np.frombuffer(left.encode("utf-32-le"), dtype="<u4")] = False
    found.setflags(write=False)
    return found


def _refuse_one_for_many(literals: list[str]) -> None:
    """Raise if the engine, ignoring case, lets one character match several of a literal, as "ß" matches "ss"."""
    from tokenizers import Regex, decoders

    if literals:
        apart = "\0".join(_every_character())
        pattern = "|".join(re.escape(literal) for literal in literals)
        if decoders.Replace(Regex(f"(?i:{pattern})"), "").decode([apart]) != apart:
            raise UnsupportedPattern(f"one character that matches several of {literals} when case is ignored")


def _atoms(names: list[str]) -> tuple[npt.NDArray[np.uint8], dict[str, list[bool]]]:
    """Atom by code point, and for each class whether it holds each atom."""
    if len(names) > 60:
        raise UnsupportedPattern(f"{len(names)} classes of characters, expected at most 60")
    signature = np.zeros(N_CODE_POINTS, dtype=np.uint64)
    for bit, name in enumerate(names):
        signature |= _members(name).astype(np.uint64) << np.uint64(bit)
    kinds, atom_of = np.unique(signature, return_inverse=True)
    if len(kinds) > _MAX_ATOMS:
        raise UnsupportedPattern(f"{len(kinds)} kinds of characters, expected at most {_MAX_ATOMS}")
    members = {name: (kinds >> np.uint64(bit) & np.uint64(1)).astype(bool).tolist() for bit, name in enumerate(names)}
    return atom_of.astype(np.uint8), members


class _Place(NamedTuple):
    """One place of the expression: a character to read, a condition on the next one, a fork, or the end."""

    kind: str
    source: str
    exits: list[int]


class _Automaton:
    """All states reachable from the start of a piece, and what each atom does in them."""

    def __init__(self, runs: list[_Run], last: Node, members: dict[str, list[bool]]) -> None:
        self.members = members
        self.n_atoms = len(next(iter(members.values())))
        self.places: list[_Place] = [_Place("end", "", [])]
        first = self._build(last, 0)
        self._number_runs(runs)
        self.states: list[tuple[int, tuple[int, ...], bool]] = [(0, (), False)]
        self.number = {self.states[0]: STOP}
        self.start_of = [self._state((run, self._reach([first]), True)) for run in range(len(self.next_run))]
        self.steps: list[list[int]] = []
        while len(self.steps) < len(self.states):
            self.steps.append([self._step(len(self.steps), atom) for atom in [*range(self.n_atoms), _END]])

    def _place(self, kind: str, source: str, exits: list[int]) -> int:
        self.places.append(_Place(kind, source, exits))
        if len(self.places) > 8 * _MAX_STATES:
            raise UnsupportedPattern("an expression of too many places")
        return len(self.places) - 1

    def _build(self, node: Node, then: int) -> int:
        """Add the places of `node`, which goes on at `then`; its first place."""
        match node:
            case One(source):
                return self._place("read", source, [then])
            case Ahead(source, negative):
                return self._place("unless" if negative else "if", source, [then])
            case Chain(parts):
                for part in reversed(parts):
                    then = self._build(part, then)
                return then
            case Choice(options):
                return self._place("fork", "", [self._build(option, then) for option in options])
        return self._build_repeat(node, then)

    def _build_repeat(self, node: Repeat, then: int) -> int:
        if node.most is None:
            fork = self._place("fork", "", [])
            exits = [self._build(node.body, fork), then]
            self.places[fork].exits.extend(exits[::-1] if node.lazy else exits)
            then = fork
        else:
            end = then
            for _ in range(node.most - node.least):
                exits = [self._build(node.body, then), end]
                then = self._place("fork", "", exits[::-1] if node.lazy else exits)
        for _ in range(node.least):
            then = self._build(node.body, then)
        return then

    def _reach(self, places: list[int]) -> tuple[int, ...]:
        """The places reached without reading or looking, best first."""
        reached: dict[int, None] = {}
        forks: set[int] = set()
        open_places = places[::-1]
        while open_places:
            place = open_places.pop()
            if self.places[place].kind != "fork":
                reached.setdefault(place)
            elif place not in forks:
                forks.add(place)
                open_places.extend(self.places[place].exits[::-1])
        return tuple(reached)

    def _number_runs(self, runs: list[_Run]) -> None:
        """Every combination of run lengths (-1: nothing read yet) that can occur, and its successors."""
        start = (-1,) * len(runs)
        numbers = {start: 0}
        self.next_run: list[list[int]] = []
        self.cuts: list[list[bool]] = []
        pending = [start]
        for lengths in pending:
            row, cut_row = [], []
            for atom in range(self.n_atoms):
                after, cut = self._lengthen(runs, lengths, atom)
                if after not in numbers:
                    numbers[after] = len(numbers)
                    pending.append(after)
                    if len(numbers) > _MAX_STATES:
                        raise UnsupportedPattern("splits at too long runs")
                row.append(numbers[after])
                cut_row.append(cut)
            self.next_run.append(row)
            self.cuts.append(cut_row)

    def _lengthen(self, runs: list[_Run], lengths: tuple[int, ...], atom: int) -> tuple[tuple[int, ...], bool]:
        after = []
        cut = False
        for run, before in zip(runs, lengths, strict=True):
            inside = self.members[run.source][atom]
            fresh = cut or before < 0
            if not fresh:
                cut = inside != (before > 0) or (inside and before == run.most)
                fresh = cut
            grown = 1 if fresh or not run.most else before + 1
            after.append(grown if inside else 0)
        return tuple(after), cut

    def _state(self, state: tuple[int, tuple[int, ...], bool]) -> int:
        if state not in self.number:
            if len(self.states) >= _MAX_STATES:
                raise UnsupportedPattern(f"an automaton of more than {_MAX_STATES:,} states")
            self.number[state] = len(self.states)
            self.states.append(state)
        return self.number[state]

    def _step(self, state: int, atom: int) -> int:
        run, places, fresh = self.states[state]
        seen = _END if atom != _END and not fresh and self.cuts[run][atom] else atom
        following, matched = self._read(places, seen)
        after = self._state((self.next_run[run][atom], following, False)) if following else STOP
        return after | (MATCH if matched else 0)

    def _read(self, places: tuple[int, ...], atom: int) -> tuple[tuple[int, ...], bool]:
        """Where the next character leads, and whether a match ends before it; worse places than the match are cut."""
        following: list[int] = []
        visited: set[int] = set()
        open_places = list(places[::-1])
        while open_places:
            number = open_places.pop()
            if number in visited:
                continue
            visited.add(number)
            place = self.places[number]
            inside = atom != _END and place.source != "" and self.members[place.source][atom]
            match place.kind:
                case "end":
                    return self._reach(following), True
                case "read" if inside:
                    following.extend(place.exits)
                case "if" | "unless" if inside == (place.kind == "if"):
                    open_places.extend(self._reach(place.exits)[::-1])
        return self._reach(following), False
