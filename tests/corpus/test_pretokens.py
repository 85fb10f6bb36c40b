"""Expressions become automata that split as the library's engine does; what is outside the subset is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Sequence, Split

from engram_tables.corpus.tokens.patterns import (
    BYTE_LEVEL_PATTERN,
    UnsupportedPattern,
    folded_literals,
    least_length,
    parse_pattern,
    sources,
)
from engram_tables.corpus.tokens.pretokens import MATCH, STOP, _as_run, _Automaton, _members

ALPHABET = "abAB 1٣\n\u3000é'"
CLASSES = ["a", "b", "B", r"\s", r"\S", r"\p{L}", r"[^a\n]", r"[A-Z1]", ".", r"(?i:a)", r"\p{N}"]


def split(automaton: _Automaton, text: str) -> list[str]:
    """The plain twin of the kernels: one piece after the other, by the automaton's tables."""
    pieces = []
    start, run = 0, 0
    while start < len(text):
        end, after = match(automaton, text, start, run)
        if end == start:
            after = automaton.next_run[run][ALPHABET.index(text[start])]
            end = start + 1
            while end < len(text):
                atom = ALPHABET.index(text[end])
                if automaton.cuts[after][atom] or match(automaton, text, end, after)[0] > end:
                    break
                after, end = automaton.next_run[after][atom], end + 1
        pieces.append(text[start:end])
        start, run = end, after
    return pieces


def match(automaton: _Automaton, text: str, start: int, run: int) -> tuple[int, int]:
    """End of the match at `start` (`start`: none) and the run state there."""
    state, end, after = automaton.start_of[run], start, run
    for at in range(start, len(text) + 1):
        atom = ALPHABET.index(text[at]) if at < len(text) else -1
        step = automaton.steps[state][atom]
        if step & MATCH:
            end, after = at, automaton.states[state][0]
        state = step & (MATCH - 1)
        if state == STOP:
            break
    return end, after


def automaton_of(patterns: list[str]) -> _Automaton:
    trees = [parse_pattern(pattern) for pattern in patterns]
    names = [name for tree in trees for name in sources(tree)]
    members = {name: [bool(_members(name)[ord(character)]) for character in ALPHABET] for name in names}
    return _Automaton([_as_run(tree) for tree in trees[:-1]], trees[-1], members)


def library_split(patterns: list[str], text: str) -> list[str]:
    parts: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in patterns]
    return [piece for piece, _ in Sequence(parts).pre_tokenize_str(text)]


def repeated(body: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    suffixes = st.sampled_from(["", "", "?", "*", "+", "{2}", "{1,3}", "{2,}", "{,2}", "??", "*?", "+?"])
    return st.builds(lambda inner, suffix: inner + suffix, body, suffixes)


def extended(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    chains = st.lists(inner, min_size=1, max_size=3).map("".join)
    choices = st.lists(chains, min_size=2, max_size=3).map("|".join)
    return repeated(st.one_of(chains, choices).map(lambda body: f"(?:{body})"))


LEAVES = repeated(st.sampled_from(CLASSES))
LOOKS = st.builds(lambda look, name: f"({look}{name})", st.sampled_from(["?!", "?="]), st.sampled_from(CLASSES[:-2]))
PATTERNS = st.lists(
    st.lists(
        st.one_of(LEAVES, LEAVES, st.recursive(LEAVES, extended, max_leaves=4), LOOKS), min_size=1, max_size=3
    ).map("".join),
    min_size=1,
    max_size=4,
).map("|".join)
RUNS = st.lists(st.sampled_from([r"\p{N}{1,2}", "a+", r"[^a\n]{1,3}", r"\s", "b{1,1}"]), max_size=2)
TEXTS = st.lists(st.text(st.sampled_from(ALPHABET), max_size=12), min_size=1, max_size=6)


def check(runs: list[str], pattern: str, texts: list[str]) -> None:
    patterns = [*runs, pattern]
    try:
        automaton = automaton_of(patterns)
    except UnsupportedPattern:
        return
    for text in texts:
        assert split(automaton, text) == (library_split(patterns, text) if text else [])


@settings(deadline=None, max_examples=300)
@given(RUNS, PATTERNS, TEXTS)
def test_random_expressions_split_as_the_engine_does(runs: list[str], pattern: str, texts: list[str]) -> None:
    check(runs, pattern, texts)


@pytest.mark.slow
@settings(deadline=None, max_examples=20_000)
@given(RUNS, PATTERNS, TEXTS)
def test_many_random_expressions_split_as_the_engine_does(runs: list[str], pattern: str, texts: list[str]) -> None:
    check(runs, pattern, texts)


@given(RUNS, TEXTS)
@settings(deadline=None)
def test_the_byte_level_expression_behind_runs(runs: list[str], texts: list[str]) -> None:
    check(runs, BYTE_LEVEL_PATTERN, texts)


def test_an_expression_is_read_as_its_leaves() -> None:
    tree = parse_pattern(r"(?i:'s|No)|[^\r\n[ab\]]c]?\p{^L}{1,3}|\x{1F600}\u0041\.(?!\S)")
    assert list(sources(tree)) == [
        *(r"(?i:\x{27})", "(?i:s)", "(?i:N)", "(?i:o)"),
        *(r"[^\r\n[ab\]]c]", r"\p{^L}", r"\x{1F600}", r"\u0041", r"\.", r"\S"),
    ]
    assert least_length(tree) == 1
    assert folded_literals(r"(?i:'s|'ll)|xy") == {"'s", "'l", "ll", "'ll"}


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "a*", "a|", "a**", "a++", "a?+", "a{1,2}?", "a{2,1}", "a{0}", "a{2001}", "(a*)+", "{a", "+a"),
        *("^a", "a$", r"\bx", r"a\z", r"\k", "\\", r"\p{L"),
        *("(?<=a)b", "(?>a)b", "(?i)a", "a(?!bc)", "a(?!b", "(a", "a)", "(?=a)", r"(?:(?!a))+b"),
        *("[a", "[]a]", "[[:alpha:]]", "a]", "(?i:é)", "(?i:[a])", r"(?i:\s)"),
    ],
)
def test_what_is_outside_the_subset_is_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedPattern):
        parse_pattern(pattern)


def test_an_automaton_that_grows_without_measure_is_refused() -> None:
    with pytest.raises(UnsupportedPattern, match="more than 4,000 states"):
        automaton_of([r"(?:a|b)*a(?:a|b){14}"])
