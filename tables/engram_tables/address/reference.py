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

# Unicode White_Space: what Rust's `char::is_whitespace` strips. Python's `str.strip` also strips U+001C to U+001F.
WHITE_SPACE = "".join(map(chr, (*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)))) + (
    "\u2028\u2029\u202f\u205f\u3000"
)


def normalise(text: str) -> str:
    """NFKC, NFD, accents off, lower case a code point at a time, white space collapsed, ends stripped."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    text = "".join(c for c in text if not unicodedata.category(c).startswith("M"))
    text = re.sub(r"[ \t\r\n]+", " ", "".join(c.lower() for c in text))
    return text if text == " " else text.strip(WHITE_SPACE)


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


def window(ids: Sequence[int], position: int, *, max_order: int, fill: int) -> list[int]:
    """What the hash sees at `position`, newest first: once a look-back is blocked, every longer one is `fill`.

    A negative id takes no part; so does whatever stands before the sequence.
    """
    seen, blocked = [], False
    for back in range(max_order):
        blocked = blocked or position < back or ids[position - back] < 0
        seen.append(fill if blocked else ids[position - back])
    return seen


def mixes(ids_newest_first: Sequence[int], multipliers: Sequence[int], orders: Sequence[int]) -> list[int]:
    """The running exclusive-or of id times multiplier, read off at each order."""
    running, by_length = 0, {}
    for length, (token, multiplier) in enumerate(zip(ids_newest_first, multipliers, strict=True), start=1):
        running ^= token * multiplier
        by_length[length] = running
    return [by_length[order] for order in orders]


def address(
    ids: Sequence[int],
    *,
    orders: Sequence[int],
    multipliers: Sequence[int],
    moduli: Sequence[Sequence[int]],
    offsets: Sequence[int],
    fill: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """Rows (tokens × columns) and keys (tokens × orders) of one layer; `moduli` is per order, per head."""
    rows, keys = [], []
    for position in range(len(ids)):
        seen = window(ids, position, max_order=len(multipliers), fill=fill)
        mixed = mixes(seen, multipliers, orders)
        local = [mix % modulus for mix, heads in zip(mixed, moduli, strict=True) for modulus in heads]
        rows.append([row + offset for row, offset in zip(local, offsets, strict=True)])
        keys.append(mixed)
    return rows, keys
