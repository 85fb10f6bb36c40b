"""How a window of ids is packed into words that sort as the n-grams do.

Owns the places of the bits. Knows no text, no file and no loop over tokens.

A *window* is what stands at one position of a text: `order` canonical ids, oldest first, and, where asked, the raw id
of the token after them. Its *key* holds the oldest token in the most significant place. What lies past the end of the
document is the sentinel, the largest value of its place, which no id has.

A key of one word is kept modulo 2^64: the bits of the leading token that do not fit are those of its *block*, and
keys are only ever compared within one block. A longer window takes two words and needs no blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_ORDER = 5
MAX_CANONICAL_SIZE = 2**20
_LEAST_FREE_BITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowForm:
    """The layout of one kind of window.

    Attributes
    ----------
    order
        Canonical ids in a window, 1 to 5.
    canonical_size
        Bound of the ids, at most 2^20.
    next_size
        Bound of the raw token that follows, at most 2^20; 0 where it is not part of the window.
    """

    order: int
    canonical_size: int
    next_size: int = 0

    @property
    def token_bits(self) -> int:
        """Bits of one canonical id and the sentinel."""
        return self.canonical_size.bit_length()

    @property
    def next_bits(self) -> int:
        """Bits of the following raw token and its sentinel, "the document ends here"."""
        return self.next_size.bit_length()

    @property
    def key_bits(self) -> int:
        """Bits of the whole window, the leading token's that a key of one word drops included."""
        return self.order * self.token_bits + self.next_bits

    @property
    def n_words(self) -> int:
        """64-bit words of a key: 1 if it leaves a few bits for the leading token, so that blocks are not too many."""
        return 1 if self.key_bits - self.token_bits <= 64 - _LEAST_FREE_BITS else 2

    @property
    def free_bits(self) -> int:
        """Bits of the leading token that a key holds."""
        if self.n_words == 2:
            return self.token_bits
        return min(64 - (self.key_bits - self.token_bits), self.token_bits)

    @property
    def n_blocks(self) -> int:
        """Number of blocks of leading tokens whose keys may be equal without being the same window."""
        return (max(self.canonical_size, 1) - 1 >> self.free_bits) + 1

    def shift(self, order: int) -> int:
        """Bits to the right of the first `order` ids, which is what is shifted out to count that order."""
        return (self.order - order) * self.token_bits

    def first_key(self, token: int) -> tuple[int, int]:
        """Words (high, low) below no key whose leading token is `token` or, within its block, a later one."""
        value = token << (self.key_bits - self.token_bits)
        return (value >> 64, value % 2**64) if self.n_words == 2 else (0, value % 2**64)
