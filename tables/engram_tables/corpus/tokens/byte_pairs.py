"""Byte-pair models and added tokens of a tokenizer.json, as the kernels take them.

Knows no pre-tokenizer. Whatever could change a token id and is not understood raises `UnsupportedPattern`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from engram_tables.corpus.tokens.added_kernels import AddedTokens
from engram_tables.corpus.tokens.patterns import UnsupportedPattern
from engram_tables.corpus.tokens.pretoken_kernels import fill_merges, fill_whole
from engram_tables.corpus.tokens.scan_memory import PADDING, Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KNOWN = {"type", "vocab", "merges", "ignore_merges"}
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)


class Added(NamedTuple):
    """Added tokens, and whether they are `simple`: cut out as they stand, without regard to what is around them."""

    tokens: AddedTokens
    simple: bool


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def read_model(parsed: dict[str, Any]) -> Model:
    """The model of a tokenizer.json.

    Raises
    ------
    UnsupportedPattern
        No byte-pair encoding that knows all 256 bytes, or one with an option that is not understood.
    """
    if parsed["type"] != "BPE":
        raise UnsupportedPattern(f"model {parsed['type']}, expected BPE")
    for name, value in parsed.items():
        # An unknown token is never needed where every byte is known, nor is the fusing of several.
        if name not in _KNOWN and name not in ("unk_token", "fuse_unk") and value not in (None, False, 0):
            raise UnsupportedPattern(f"BPE with {name} {value!r}")
    vocab: dict[str, int] = parsed["vocab"]
    characters = byte_characters()
    missing = [byte for byte, character in enumerate(characters) if character not in vocab]
    if missing:
        raise UnsupportedPattern(f"a vocabulary without {len(missing)} of the 256 bytes, the first {missing[0]:#04x}")
    merges, merge_shift = _merge_table(parsed["merges"], vocab)
    return Model(
        np.array([vocab[character] for character in characters], dtype=np.uint32),
        merges,
        merge_shift,
        *_whole_table(vocab if parsed.get("ignore_merges") else {}, characters),
    )


def _merge_table(merges: list[Any], vocab: dict[str, int]) -> tuple[Any, int]:
    by_pair: dict[int, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        by_pair[vocab[left] << 32 | vocab[right]] = rank << 32 | vocab[left + right]
    table, shift = _empty_table(len(by_pair))
    keys = np.fromiter(by_pair.keys(), dtype=np.uint64, count=len(by_pair))
    fill_merges(keys, np.fromiter(by_pair.values(), dtype=np.uint64, count=len(by_pair)), table, shift)
    return table, shift


def _whole_table(vocab: dict[str, int], characters: list[str]) -> tuple[Any, int, Any, Any, Any]:
    byte_of = {character: byte for byte, character in enumerate(characters)}
    pieces = [
        (bytes(map(byte_of.__getitem__, token)), token_id)
        for token, token_id in vocab.items()
        if token and byte_of.keys() >= set(token)
    ]
    stops = np.cumsum([len(piece) for piece, _ in pieces], dtype=np.int64)
    ids = np.array([token_id for _, token_id in pieces], dtype=np.uint32)
    whole_bytes = np.frombuffer(b"".join([*(piece for piece, _ in pieces), bytes(PADDING)]), dtype=np.uint8)
    if not pieces:
        return np.full(2, _EMPTY), 64, stops, ids, whole_bytes
    table, shift = _empty_table(len(pieces))
    fill_whole(whole_bytes, stops, table, shift)
    return table, shift, stops, ids, whole_bytes


def _empty_table(n_entries: int) -> tuple[Any, int]:
    """A table at most half full of so many entries, and 64 less the bits of its slots."""
    bits = max(4, (2 * n_entries).bit_length())
    return np.full(2 << bits, _EMPTY), 64 - bits


def read_added(tokenizer: Tokenizer, parsed: list[dict[str, Any]]) -> Added | None:
    """The added tokens of a tokenizer.json, None if there is none.

    Raises
    ------
    UnsupportedPattern
        A content that the tokenizer's normalizer changes.
    """
    entries: list[tuple[bytes, int, int]] = []
    simple = True
    for token in parsed:
        content = token["content"]
        if not content:
            continue
        if token["normalized"] and tokenizer.normalizer and tokenizer.normalizer.normalize_str(content) != content:
            raise UnsupportedPattern(f"added token {content!r}, which the normalizer changes")
        simple &= not (token["single_word"] or token["lstrip"] or token["rstrip"])
        token_id = tokenizer.token_to_id(content)
        if token_id is None:
            raise UnsupportedPattern(f"added token {content!r} without an id")
        entries.append((content.encode(), token_id, int(token["normalized"])))
    if not entries:
        return None
    return Added(_added_tokens(entries), simple)


def _added_tokens(entries: list[tuple[bytes, int, int]]) -> AddedTokens:
    by_start: dict[int, list[tuple[bytes, int, int]]] = {}
    for entry in sorted(entries, key=lambda entry: -len(entry[0])):
        content = entry[0]
        seconds = range(256) if len(content) == 1 else (content[1],)
        for second in seconds:
            by_start.setdefault(content[0] << 8 | second, []).append(entry)
    bucket_of = np.full(65536, -1, dtype=np.int32)
    bucket_of[list(by_start)] = np.arange(len(by_start))
    flat = [entry for bucket in by_start.values() for entry in bucket]
    stops = np.cumsum([len(content) for content, _, _ in flat], dtype=np.int64)
    first = np.zeros(256, dtype=np.uint8)
    first[[content[0] for content, _, _ in flat]] = 1
    return AddedTokens(
        first=first,
        bucket_of=bucket_of,
        buckets=np.concatenate([[0], np.cumsum([len(bucket) for bucket in by_start.values()])]).astype(np.int64),
        starts=np.concatenate([[0], stops[:-1]]).astype(np.int64),
        stops=stops,
        ids=np.array([token_id for _, token_id, _ in flat], dtype=np.int64),
        rounds=np.array([turn for _, _, turn in flat], dtype=np.int64),
        contents=np.frombuffer(b"".join(content for content, _, _ in flat), dtype=np.uint8),
    )
