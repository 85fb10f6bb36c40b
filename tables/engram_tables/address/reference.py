"""Addressing in plain Python: slow, obviously right, and in need of neither tokenizers nor numpy.

The tests hold the library against these functions; so can a port in any language.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engram_tables.address.folding import REPLACEMENT, dense_ids
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, KeyForm, LayerAddressing

# Unicode White_Space: what Rust's `char::is_whitespace` strips. Python's `str.strip` also strips U+001C to U+001F.
WHITE_SPACE = "".join(map(chr, (*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)))) + (
    "\u2028\u2029\u202f\u205f\u3000"
)


def normalise(text: str) -> str:
    """NFKC, NFD, accents off, lower case a code point at a time, white space collapsed, ends stripped."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    text = "".join(c for c in text if not unicodedata.category(c).startswith("M"))
    text = re.sub(r"[ \t\r\n]+", " ", "".join(c.lower() for c in text))
    # A lone space survives the strip as U+E000, which becomes a space again wherever it came from.
    return ("\ue000" if text == " " else text.strip(WHITE_SPACE)).replace("\ue000", " ")


def byte_alphabet() -> dict[str, int]:
    """The GPT-2 table from printable characters to the bytes they stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def token_text(token: str, alphabet: dict[str, int]) -> str:
    """The text of one byte-level token; added tokens that leave the alphabet stand for themselves."""
    known = all(c in alphabet for c in token)
    raw = bytes(alphabet[c] for c in token) if known else token.encode()
    return raw.decode("utf-8", errors="replace")


def fold_key(token: str, alphabet: dict[str, int]) -> str:
    """The key of one token under the DeepSeek rule."""
    text = token_text(token, alphabet)
    return token if REPLACEMENT in text else normalise(text) or text


def deepseek_map(tokenizer_json: Path) -> list[int]:
    """Canonical id of every token id, from a byte-level tokenizer.json alone."""
    data: dict[str, Any] = json.loads(tokenizer_json.read_bytes())
    by_id = {token_id: token for token, token_id in data["model"]["vocab"].items()}
    by_id |= {added["id"]: added["content"] for added in data["added_tokens"]}
    alphabet = byte_alphabet()
    return dense_ids(fold_key(by_id[token_id], alphabet) for token_id in range(len(by_id)))


def map_sha256(canonical_ids: Sequence[int], *, item_bytes: int = 4) -> str:
    """SHA-256 of the ids as little-endian int32 or int64."""
    item = {4: "i", 8: "q"}[item_bytes]
    return hashlib.sha256(struct.pack(f"<{len(canonical_ids)}{item}", *canonical_ids)).hexdigest()


def hashed_id(history: HistoryRule, token: int) -> int:
    """The id that is hashed in the place of `token`."""
    replaced = any(start <= token < stop for start, stop in history.replaced)
    return history.replacement if replaced else token


def window(ids: Sequence[int], position: int, *, max_order: int, history: HistoryRule) -> list[int]:
    """What the hash sees at `position`, newest first: once a look-back is blocked, every longer one is the fill.

    A negative id takes no part: its own window is all fill. What stands before the sequence, a dead id, and whatever
    lies behind a boundary block.
    """
    if ids[position] < 0:
        return [history.fill_id] * max_order
    seen = [hashed_id(history, ids[position])]
    is_open = not (history.boundary_closed and seen[0] in history.boundary_ids)
    for back in range(1, max_order):
        is_open = is_open and position >= back and ids[position - back] >= 0
        if not is_open:
            seen.append(history.fill_id)
            continue
        older = hashed_id(history, ids[position - back])
        is_boundary = older in history.boundary_ids
        seen.append(history.fill_id if is_boundary and not history.boundary_visible else older)
        is_open = not is_boundary
    return seen


def mix(spec: AddressSpec, layer: LayerAddressing, column: int, ngram: Sequence[int]) -> int:
    """The number before the modulus of one column; `ngram` are the ids of its order, newest first."""
    order = len(ngram)
    match spec.mix.family:
        case Family.XOR_MULTIPLY:
            aligned = ngram[::-1] if spec.mix.oldest_first else ngram
            word, running = 2**spec.mix.word_bits, 0
            for token, multiplier in zip(aligned, layer.multipliers, strict=False):
                running ^= token * multiplier % word
            return running
        case Family.POLYNOMIAL:
            return sum(token * layer.multipliers[0] ** back for back, token in enumerate(ngram))
        case Family.SALTED_AFFINE:
            first = sum(length for length, _ in spec.columns[:column])
            salted = layer.multipliers[first : first + order]
            return sum(token * multiplier for token, multiplier in zip(ngram, salted, strict=True))
        case Family.IDENTITY:
            return ngram[0]


def row(spec: AddressSpec, layer: LayerAddressing, column: int, ngram: Sequence[int]) -> int:
    """The row that an n-gram, newest id first, owns under one column: global within the layer."""
    order, head = spec.columns[column]
    mixed = mix(spec, layer, column, ngram)
    if spec.mix.word_bits == 32 and mixed >= 2**31:
        mixed -= 2**32
    return mixed % layer.moduli[spec.orders.index(order)][head] + layer.offsets[column]


def key(spec: AddressSpec, layer: LayerAddressing, ngram: Sequence[int]) -> int:
    """What names an n-gram, newest id first, exactly."""
    if spec.key_form is KeyForm.IDS:
        return sum(token << spec.id_bits * back for back, token in enumerate(ngram))
    order_idx = spec.orders.index(len(ngram))
    return mix(spec, layer, sum(spec.heads[:order_idx]), ngram)


def address(spec: AddressSpec, layer: LayerAddressing, ids: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Rows (tokens × columns) and keys (tokens × orders) of one layer; a negative id is dead."""
    rows, keys = [], []
    for position in range(len(ids)):
        seen = window(ids, position, max_order=spec.max_order, history=spec.history)
        ngrams = {order: seen[spec.lag(order) : spec.lag(order) + order] for order in spec.orders}
        rows.append([row(spec, layer, column, ngrams[order]) for column, (order, _) in enumerate(spec.columns)])
        keys.append([key(spec, layer, ngrams[order]) for order in spec.orders])
    return rows, keys


def ngram_window(ngram: Sequence[int], history: HistoryRule) -> list[int]:
    """What the hash sees of an n-gram that stands by itself, given oldest first: newest first."""
    return window(ngram, len(ngram) - 1, max_order=len(ngram), history=history)
