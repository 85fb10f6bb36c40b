"""NumPy's SeedSequence and PCG64 in plain Python.

NumPy promises no stable stream, and a multiplier that changed would be a wrong table in silence; so the constants
are derived here and the tests hold this file against NumPy's own. Source: O'Neill's PCG XSL-RR 128/64 and
seed_seq_fe, as numpy.random documents them.
"""

from __future__ import annotations

from engram_tables.errors import InvalidInput

_MASK32 = 2**32 - 1
_MASK64 = 2**64 - 1
_MASK128 = 2**128 - 1
_PCG_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_POOL_WORDS = 4


class Pcg64:
    """The generator behind `numpy.random.default_rng(seed)`, as far as bounded integers need it.

    >>> Pcg64(10007).integers_below(46_539_438_283_891)
    38316048023122
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise InvalidInput(f"seed: found {seed}, expected 0 or more")
        w0, w1, w2, w3 = _seed_words(seed)
        self._increment = ((((w2 << 64) | w3) << 1) | 1) & _MASK128
        self._state = 0
        self._step()
        self._state = (self._state + ((w0 << 64) | w1)) & _MASK128
        self._step()

    def _step(self) -> None:
        self._state = (self._state * _PCG_MULTIPLIER + self._increment) & _MASK128

    def next_word(self) -> int:
        """The next 64 random bits."""
        self._step()
        folded = (self._state >> 64) ^ (self._state & _MASK64)
        turn = self._state >> 122
        return ((folded >> turn) | (folded << (64 - turn))) & _MASK64

    def integers_below(self, bound: int) -> int:
        """`Generator.integers(0, bound)` for bounds past 2^32, by Lemire's 64-bit method.

        NumPy draws 32-bit words for smaller bounds, which no vocabulary below 2^30 ids needs.
        """
        if not 2**32 < bound < 2**63:
            raise InvalidInput(f"bound: found {bound}, expected more than 2^32 and less than 2^63")
        product = self.next_word() * bound
        low = product & _MASK64
        if low < bound:
            threshold = (_MASK64 - (bound - 1)) % bound
            while low < threshold:
                product = self.next_word() * bound
                low = product & _MASK64
        return product >> 64


def _seed_words(seed: int) -> tuple[int, int, int, int]:
    """SeedSequence(seed).generate_state(4, uint64)."""
    entropy = [seed & _MASK32]
    while seed := seed >> 32:
        entropy.append(seed & _MASK32)
    pool = _mixed_pool(entropy)
    hash_constant = 0x8B51F9DD
    words = []
    for index in range(8):
        value = pool[index % _POOL_WORDS] ^ hash_constant
        hash_constant = hash_constant * 0x58F38DED & _MASK32
        value = value * hash_constant & _MASK32
        words.append(value ^ value >> 16)
    w0, w1, w2, w3 = (words[k] | words[k + 1] << 32 for k in range(0, 8, 2))
    return w0, w1, w2, w3


def _mixed_pool(entropy: list[int]) -> list[int]:
    hash_constant = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal hash_constant
        value ^= hash_constant
        hash_constant = hash_constant * 0x931E8875 & _MASK32
        value = value * hash_constant & _MASK32
        return value ^ value >> 16

    def mixed(x: int, y: int) -> int:
        value = (0xCA01F9DD * x - 0x4973F715 * y) & _MASK32
        return value ^ value >> 16

    pool = [hashed(entropy[index] if index < len(entropy) else 0) for index in range(_POOL_WORDS)]
    for source in range(_POOL_WORDS):
        for target in range(_POOL_WORDS):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in entropy[_POOL_WORDS:]:
        for target in range(_POOL_WORDS):
            pool[target] = mixed(pool[target], hashed(word))
    return pool
