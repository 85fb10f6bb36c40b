"""The addressing of a table as explicit constants: everything a hash needs and nothing that derives it.

Recipes (`recipes.py` and its siblings) create specs; files are authoritative. A spec knows no bytes: which codec holds
a row's values is the table's business. `spec_files.py` writes and reads specs, `spec_checks.py` bounds them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.units import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from engram_tables.address.vocabulary import Vocabulary


class Addresses(NamedTuple):
    """Where the rows of each token lie.

    Attributes
    ----------
    rows
        int64 (tokens, layers, columns), row ids global within their layer; columns are order-major, head-minor.
    keys
        uint64 (tokens, layers, orders): what names an n-gram exactly, so that two n-grams of one order with equal keys
        own the same rows under every head. Where keys pass 64 bits each is a record of uint64 words, least significant
        first (`AddressSpec.key_dtype`). `AddressSpec.key_form` says what they hold.
    """

    rows: npt.NDArray[np.int64]
    keys: npt.NDArray[Any]


class Family(StrEnum):
    """How the ids of an n-gram become one number per column, before the modulus."""

    XOR_MULTIPLY = "xor-multiply"
    """Exclusive-or of id times multiplier; every head of an order shares the result (DeepSeek, Qwen, engram-peft)."""
    POLYNOMIAL = "polynomial"
    """Sum of id times base to the power of its look-back (LongCat, Over-Encoding)."""
    SALTED_AFFINE = "salted-affine"
    """Sum of id times a multiplier of its own for every column and look-back (nanochat)."""
    IDENTITY = "identity"
    """The current id itself, order 1 alone (Gemma's per-layer embeddings)."""


class KeyForm(StrEnum):
    """What the keys of a spec hold."""

    MIX = "mix"
    """The number before the modulus, which all heads of the order share."""
    IDS = "ids"
    """The ids that the hash saw, packed newest first into the lowest bits, `AddressSpec.id_bits` each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixRule:
    """How an n-gram's ids are mixed.

    Attributes
    ----------
    word_bits
        64, or 32 where products wrap to a signed 32-bit word before the (non-negative) modulus.
    oldest_first
        Multiplier 0 belongs to the oldest id of the n-gram, rather than to the newest.
    lagged
        The n-gram of order n ends max_order - n tokens before the current one, rather than at it: every order begins
        at the oldest token of the window.
    """

    family: Family = Family.XOR_MULTIPLY
    word_bits: int = 64
    oldest_first: bool = False
    lagged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRule:
    """What a hash sees of the ids before the current one.

    Attributes
    ----------
    fill_id
        Stands where the history is missing, dead, or behind a boundary.
    boundary_ids
        Ascending ids behind which no later token sees (an end of sequence).
    boundary_visible
        Whether the token right after a boundary sees the boundary's own id.
    boundary_closed
        Whether the boundary itself sees nothing of what precedes it.
    replaced
        Half-open ranges of ids, ascending and apart, that are hashed as `replacement`; boundaries are looked for after
        the replacement.
    """

    fill_id: int
    boundary_ids: tuple[int, ...] = ()
    boundary_visible: bool = False
    boundary_closed: bool = False
    replaced: tuple[tuple[int, int], ...] = ()
    replacement: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerAddressing:
    """The constants of one layer's table.

    Attributes
    ----------
    layer_id
        Number of the decoder layer that reads the table, from 0; 0 where it belongs to no single one.
    multipliers
        xor-multiply: one per look-back (`MixRule.oldest_first` says from which end). polynomial: the base alone.
        salted-affine: column by column, one per id of its order, newest first. identity: none.
    moduli
        Per order, per head.
    offsets
        Per column: the row at which that head's rows begin. All 0 where the heads share one table.
    n_rows
        Rows of the layer's table, padding included.
    """

    layer_id: int
    multipliers: tuple[int, ...]
    moduli: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    n_rows: int


class RowSlice(NamedTuple):
    """Which values of every row one decoder layer reads: half-open."""

    layer_id: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class AddressSpec:
    """Which rows an n-gram owns, layer by layer.

    Attributes
    ----------
    name, provenance
        For people: what it addresses and where the constants come from.
    canonical_size
        Ids run from 0 to canonical_size - 1.
    folded
        Whether ids are canonical ids of a vocabulary that folds tokens together; otherwise they are token ids.
    orders
        Ascending; an order is the n of its n-grams.
    row_width
        Values of one row, or None if unknown.
    slices
        Where several decoder layers share each row; empty where its layer takes it whole.
    separate_heads
        Whether releases keep one tensor a head; row ids here run through all of them, head after head.
    reduce
        How a model combines the rows of a token, for people; None if unknown.
    vocab_sha256
        Digest of the vocabulary's map (little-endian int32), or None if the spec does not say.
    """

    name: str
    provenance: str
    canonical_size: int
    history: HistoryRule
    orders: tuple[int, ...]
    layers: tuple[LayerAddressing, ...]
    mix: MixRule = field(default_factory=MixRule)
    folded: bool = True
    row_width: int | None = None
    slices: tuple[RowSlice, ...] = ()
    separate_heads: bool = False
    reduce: str | None = None
    vocab_sha256: str | None = None

    def __post_init__(self) -> None:
        from engram_tables.address.spec_checks import check_spec

        check_spec(self)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Taken once: every call that hashes tokens looks its constants up by their spec."""
        return hash((self.name, self.canonical_size, self.history, self.orders, self.layers, self.mix))

    @property
    def fill_id(self) -> int:
        """The id that stands where the history is missing."""
        return self.history.fill_id

    @property
    def max_order(self) -> int:
        """The longest n-gram: a token's window."""
        return self.orders[-1]

    @cached_property
    def heads(self) -> tuple[int, ...]:
        """Heads per order."""
        return tuple(len(heads) for heads in self.layers[0].moduli)

    @cached_property
    def n_columns(self) -> int:
        """Rows read per token and layer: one per order and head."""
        return sum(self.heads)

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Layer ids in the spec's order."""
        return tuple(layer.layer_id for layer in self.layers)

    @property
    def n_rows(self) -> int:
        """Rows of all layers together."""
        return sum(layer.n_rows for layer in self.layers)

    @property
    def key_form(self) -> KeyForm:
        """What names an n-gram exactly: the mix where an order's heads share one, else the ids."""
        shared = self.mix.family in (Family.XOR_MULTIPLY, Family.IDENTITY)
        return KeyForm.MIX if shared else KeyForm.IDS

    @property
    def id_bits(self) -> int:
        """Bits that hold any id."""
        return max(1, (self.canonical_size - 1).bit_length())

    @cached_property
    def key_words(self) -> int:
        """64-bit words of a key."""
        return 1 if self.key_form is KeyForm.MIX else -(-self.max_order * self.id_bits // 64)

    @cached_property
    def key_dtype(self) -> np.dtype[Any]:
        """uint64, or a record of as many words as a key needs: `word0` is the least significant."""
        import numpy as np

        n_words = self.key_words
        return np.dtype(np.uint64 if n_words == 1 else [(f"word{word}", np.uint64) for word in range(n_words)])

    def layer(self, layer_id: int) -> LayerAddressing:
        """The constants of one layer; InvalidInput if the spec has no such layer."""
        for layer in self.layers:
            if layer.layer_id == layer_id:
                return layer
        raise InvalidInput(f"layer {layer_id}: {self.name} has layers {', '.join(map(str, self.layer_ids))}")

    def lag(self, order: int) -> int:
        """How many tokens before the current one the n-gram of an order ends."""
        return self.max_order - order if self.mix.lagged else 0

    @cached_property
    def columns(self) -> tuple[tuple[int, int], ...]:
        """(order, head) of every column."""
        return tuple((order, head) for order, n in zip(self.orders, self.heads, strict=True) for head in range(n))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the addressing alone, so that every route to one addressing gives one fingerprint.

        Not in it: name, provenance, what a row holds and how rows are reduced, and the vocabulary's digest, which a
        model's config does not state.
        """
        from engram_tables.address.spec_files import addressing_to_json

        return hashlib.sha256(canonical_json(addressing_to_json(self))).hexdigest()

    def address(
        self,
        canonical_ids: npt.ArrayLike,
        dead: npt.ArrayLike | None = None,
        history: npt.ArrayLike | None = None,
        *,
        threads: int | None = None,
    ) -> Addresses:
        """Rows and keys of a run of tokens.

        Parameters
        ----------
        canonical_ids
            Integers (tokens,), each from 0 to canonical_size - 1; what stands at dead positions is not looked at.
        dead
            bool (tokens,): True where the token takes no part (an image span). Its own window and every look-back
            that would pass it are filled.
        history
            Up to max_order - 1 ids before the chunk, oldest first, -1 where dead. Fewer mean that the sequence began
            there, and none that it begins with this chunk. Only the last max_order - 1 are looked at.
        threads
            Worker threads, all usable CPUs by default; the result is the same for any number.

        Raises
        ------
        InvalidInput
            An id out of range, with its position; a mask of another length.
        """
        from engram_tables.address.hashing import hash_tokens

        return hash_tokens(self, canonical_ids, dead=dead, history=history, threads=threads)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise `SpecMismatch` if `vocabulary` is not one whose ids this spec addresses."""
        from engram_tables.address.vocabulary import Rule

        if not self.folded:
            if vocabulary.rule is not Rule.IDENTITY:
                raise SpecMismatch(
                    f"spec {self.name}: hashes token ids as they are, the vocabulary of {vocabulary.source} folds them "
                    f"by rule {vocabulary.rule}; build one with --rule identity"
                )
            if vocabulary.canonical_size > self.canonical_size:
                raise SpecMismatch(
                    f"spec {self.name}: made for {self.canonical_size:,} token ids, the vocabulary of "
                    f"{vocabulary.source} has {vocabulary.canonical_size:,}; use the model's own tokenizer"
                )
        elif self.canonical_size != vocabulary.canonical_size:
            raise SpecMismatch(
                f"spec {self.name}: made for {self.canonical_size:,} canonical ids, the vocabulary of "
                f"{vocabulary.source} has {vocabulary.canonical_size:,}; use the vocabulary that the model was "
                "trained with"
            )
        if self.vocab_sha256 is not None and self.vocab_sha256 != vocabulary.map_sha256:
            raise SpecMismatch(
                f"spec {self.name}: made for the vocabulary of digest {self.vocab_sha256}, the vocabulary of "
                f"{vocabulary.source} has {vocabulary.map_sha256}; equal in size, but every id may mean another token"
            )

    def with_vocabulary(self, vocabulary: Vocabulary) -> AddressSpec:
        """This spec bound to `vocabulary`; SpecMismatch if they do not belong together."""
        self.check_vocabulary(vocabulary)
        return replace(self, vocab_sha256=vocabulary.map_sha256)

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values; integers past 2^53 and all multipliers are decimal strings."""
        from engram_tables.address.spec_files import spec_to_json

        return spec_to_json(self)

    @classmethod
    def from_json(cls, data: Any, *, where: str = "spec") -> AddressSpec:
        """The spec that `to_json` wrote; InvalidInput for anything else."""
        from engram_tables.address.spec_files import spec_from_json

        return spec_from_json(data, where=where)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The spec as named arrays, as an .npz holds them."""
        from engram_tables.address.spec_files import spec_to_arrays

        return spec_to_arrays(self)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], *, where: str = "arrays") -> AddressSpec:
        """The spec whose `arrays` these are; InvalidInput where one is missing or no integer."""
        from engram_tables.address.spec_files import spec_from_arrays

        return spec_from_arrays(arrays, where=where)

    def to_npz(self) -> bytes:
        """`arrays` as an uncompressed .npz; same spec, same bytes."""
        from engram_tables.address.spec_files import spec_to_npz

        return spec_to_npz(self)
