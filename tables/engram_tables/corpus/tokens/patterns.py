"""Regular expressions of pre-tokenizers, read into trees whose leaves match exactly one character.

Owns the subset that is understood and nothing of what a class of characters holds: a leaf keeps its source text,
and the tokenizers library's own engine says later which characters it matches. Whatever is outside the subset raises
`UnsupportedPattern`; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

BYTE_LEVEL_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The expression built into the library's ByteLevel pre-tokenizer (`use_regex`), which is GPT-2's."""

_QUANTIFIER = re.compile(r"\{(\d*)(,?)(\d*)\}")
_ESCAPE = re.compile(
    r"\\(?:[pP]\{\^?[A-Za-z_]+\}|[sSdDwW]|[rnt]|u[0-9A-Fa-f]{4}|x\{[0-9A-Fa-f]{1,6}\}|[!-/:-@\[-`{-~])"
)
_MAX_REPEAT = 1000


class UnsupportedPattern(Exception):
    """An expression outside the subset; the message says why."""


@dataclass(frozen=True, slots=True)
class One:
    """Exactly one character of the class that the engine reads in `source`."""

    source: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """Nothing, if the next character is of the class (`negative`: is not, or the piece ends)."""

    source: str
    negative: bool


@dataclass(frozen=True, slots=True)
class Chain:
    """All parts, one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The first option that lets the rest match."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`least` to `most` times (None: without bound), as often as possible unless `lazy`."""

    body: Node
    least: int
    most: int | None
    lazy: bool


Node = One | Ahead | Chain | Choice | Repeat


def parse_pattern(pattern: str) -> Node:
    """The tree of an expression.

    Raises
    ------
    UnsupportedPattern
        A construct outside the subset, an expression that can match nothing, or one that may loop on nothing.
    """
    reader = _Reader(pattern)
    node = reader.choice(ignore_case=False)
    if reader.at < len(pattern):
        raise UnsupportedPattern(f"unmatched ')' at character {reader.at} of {pattern!r}")
    if least_length(node) == 0:
        raise UnsupportedPattern(f"{pattern!r} can match the empty string")
    return node


def parse_literal(text: str) -> Node:
    """The tree of a fixed string."""
    if not text:
        raise UnsupportedPattern("an empty string to split at")
    return Chain(tuple(One(_literal(character)) for character in text))


def least_length(node: Node) -> int:
    """Characters of the shortest match."""
    match node:
        case One():
            return 1
        case Ahead():
            return 0
        case Chain(parts):
            return sum(map(least_length, parts))
        case Choice(options):
            return min(map(least_length, options))
        case Repeat(body, least):
            return least * least_length(body)


def sources(node: Node) -> Iterator[str]:
    """Class sources of every leaf, in order, with repetitions."""
    match node:
        case One(source) | Ahead(source):
            yield source
        case Chain(parts) | Choice(parts):
            for part in parts:
                yield from sources(part)
        case Repeat(body):
            yield from sources(body)


def folded_literals(pattern: str) -> set[str]:
    """Parts of two letters and more of each string inside `(?i:…)`.

    An engine may let one character match several of a pattern's when case is ignored ("ß" and "ss"). The leaves here
    match one each, so the caller must ask the engine whether it does so for any of these.
    """
    reader = _Reader(pattern)
    reader.choice(ignore_case=False)
    parts: set[str] = set()
    for literal in reader.folded:
        for start in range(len(literal)):
            parts |= {literal[start:stop] for stop in range(start + 2, len(literal) + 1)}
    return parts


def _literal(character: str) -> str:
    return character if character.isalnum() and character.isascii() else f"\\x{{{ord(character):X}}}"


class _Reader:
    """Recursive descent over one expression."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.folded: list[str] = []

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _refuse(self, what: str) -> UnsupportedPattern:
        return UnsupportedPattern(f"{what} at character {self.at} of {self.pattern!r}")

    def choice(self, *, ignore_case: bool) -> Node:
        options = [self._chain(ignore_case)]
        while self._peek() == "|":
            self.at += 1
            options.append(self._chain(ignore_case))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _chain(self, ignore_case: bool) -> Node:
        parts: list[Node] = []
        literal = ""
        while self._peek() not in ("", "|", ")"):
            plain = self._peek()
            atom = self._atom(ignore_case)
            part = self._quantified(atom)
            literal += plain if ignore_case and isinstance(atom, One) else ""
            parts.append(part)
        if ignore_case and len(literal) > 1:
            self.folded.append(literal)
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def _atom(self, ignore_case: bool) -> Node:
        character = self._peek()
        if character == "(":
            return self._group(ignore_case)
        if character == "[":
            source = self._bracket()
        elif character == "\\":
            found = _ESCAPE.match(self.pattern, self.at)
            if found is None:
                raise self._refuse(f"escape {self.pattern[self.at : self.at + 3]!r}")
            source = found.group()
            self.at = found.end()
        elif character in "^$*+?{}]":
            raise self._refuse(f"{character!r}")
        else:
            source = character if character == "." else _literal(character)
            self.at += 1
        if ignore_case:
            if not (character.isascii() and character not in "\\["):
                raise self._refuse(f"{source!r} with case ignored")
            return One(f"(?i:{source})")
        return One(source)

    def _group(self, ignore_case: bool) -> Node:
        rest = self.pattern[self.at :]
        opening = next((text for text in ("(?:", "(?i:", "(?!", "(?=") if rest.startswith(text)), "(")
        if opening == "(" and rest.startswith("(?"):
            raise self._refuse(f"group {rest[:4]!r}")
        self.at += len(opening)
        node = self.choice(ignore_case=ignore_case or opening == "(?i:")
        if self._peek() != ")":
            raise self._refuse("a group without its end")
        self.at += 1
        if opening in ("(?!", "(?="):
            if not isinstance(node, One):
                raise self._refuse("a look ahead at more than one character, ending")
            return Ahead(node.source, negative=opening == "(?!")
        return node

    def _bracket(self) -> str:
        """Source of a bracket expression; only its end is looked for, the engine reads what is inside."""
        start, depth = self.at, 0
        while True:
            character = self._peek()
            if character == "":
                raise self._refuse("a bracket without its end")
            if character == "\\":
                found = _ESCAPE.match(self.pattern, self.at)
                if found is None:
                    raise self._refuse(f"escape {self.pattern[self.at : self.at + 3]!r}")
                self.at = found.end()
                continue
            if character == "[":
                if self.pattern[self.at : self.at + 2] == "[:":
                    raise self._refuse("a named class in brackets")
                depth += 1
                self.at += 2 if self.pattern[self.at + 1 : self.at + 2] == "^" else 1
                if self._peek() == "]":
                    raise self._refuse("']' first in brackets")
                continue
            self.at += 1
            if character == "]":
                depth -= 1
                if depth == 0:
                    return self.pattern[start : self.at]

    def _quantified(self, atom: Node) -> Node:
        character = self._peek()
        least, most = {"?": (0, 1), "*": (0, None), "+": (1, None)}.get(character, (1, 1))
        counted = False
        if character == "{":
            found = _QUANTIFIER.match(self.pattern, self.at)
            if found is None or not (found[1] or found[3]):
                raise self._refuse("'{'")
            least = int(found[1] or 0)
            most = (int(found[3]) if found[3] else None) if found[2] else least
            counted = True
            self.at = found.end()
        elif character and character in "?*+":
            self.at += 1
        else:
            return atom
        lazy = self._peek() == "?"
        self.at += lazy
        if (lazy and counted) or self._peek() in ("?", "*", "+", "{"):
            raise self._refuse("a possessive, nested or lazy counted repetition")
        if least_length(atom) == 0:
            raise self._refuse("a repetition of what can be empty")
        if max(least, most or 0) > _MAX_REPEAT or (most is not None and not 0 < most >= least):
            raise self._refuse(f"a repetition of {least} to {most}, expected at most {_MAX_REPEAT}")
        return Repeat(atom, least, most, bool(lazy))
