"""Token runs and n-grams to rows and keys: validates, then calls the kernels on slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.address import kernels, vectors
from engram_tables.address.spec import Addresses, AddressSpec, Family, KeyForm, LayerAddressing
from engram_tables.errors import InvalidInput
from engram_tables.memory import CACHE_LINE_BYTES, aligned_bytes
from engram_tables.threads import resolve_threads, run_slices

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary

DEAD = -1
# Waking a thread takes about as long as hashing this many tokens.
_GRAIN_TOKENS = 8192


# Results larger than this leave the caches anyway, so they are stored past them where that is possible.
_CACHED_RESULT_BYTES = 4 << 20


class _Prepared(NamedTuple):
    constants: kernels.HashConstants
    form: int


class HashedTokens(NamedTuple):
    """A run of tokens and where its rows lie.

    Attributes
    ----------
    token_ids
        int64 (tokens,), or None where canonical ids were given.
    canonical_ids
        int64 (tokens,); what stands at dead positions means nothing.
    dead
        bool (tokens,).
    """

    token_ids: npt.NDArray[np.int64] | None
    canonical_ids: npt.NDArray[np.int64]
    dead: npt.NDArray[np.bool_]
    addresses: Addresses


def hash_source(
    spec: AddressSpec,
    *,
    vocabulary: Vocabulary | None = None,
    text: str | None = None,
    ids: Sequence[int] | None = None,
    file: Path | None = None,
    canonical: bool = False,
    dead_positions: Sequence[int] = (),
    history: Sequence[int] = (),
    threads: int | None = None,
) -> HashedTokens:
    """Hash a text, a list of ids or a file of either: exactly one of `text`, `ids` and `file`.

    Parameters
    ----------
    vocabulary
        Maps token ids to canonical ids. Needed for text, and for ids unless they are `canonical` or the spec hashes
        token ids as they are.
    file
        Integers (tokens,) in a .npy, UTF-8 text otherwise.
    canonical
        The ids, those of `history` as well, are canonical already.
    dead_positions
        Positions that take no part, beside those of id -1; what stands there is not looked at.
    history
        Ids before the chunk, oldest first, -1 where dead.
    """
    if canonical and vocabulary is not None:
        raise InvalidInput(
            f"spec {spec.name}: canonical ids were given, and a vocabulary beside them; leave out one of the two"
        )
    is_text = text is not None or (file is not None and file.suffix != ".npy")
    if vocabulary is None and (is_text or (spec.folded and not canonical)):
        raise InvalidInput(
            f"spec {spec.name}: {'text needs' if is_text else 'token ids need'} the vocabulary (--vocab)"
            + ("; canonical ids need --canonical" if spec.folded else "; token ids are hashed as they are")
        )
    if file is not None and file.suffix == ".npy":
        given = _load_ids(file)
    elif ids is not None:
        given = np.array(ids, dtype=np.int64)
    else:
        given = np.array(_encode(vocabulary, _read_text(file) if file is not None else text or ""), dtype=np.int64)
    dead = np.zeros(len(given), dtype=np.bool_)
    dead |= given == DEAD
    for position in dead_positions:
        if not 0 <= position < len(given):
            raise InvalidInput(f"dead position {position}: expected 0 to {len(given) - 1}")
        dead[position] = True
    before = np.array(history, dtype=np.int64)
    canonical_ids = given
    if vocabulary is not None and spec.folded:
        canonical_ids = np.full(len(given), DEAD)
        canonical_ids[~dead] = vocabulary.canonical(given[~dead])
        before[before != DEAD] = vocabulary.canonical(before[before != DEAD])
    addresses = hash_tokens(spec, canonical_ids, dead=dead, history=before, threads=threads)
    are_tokens = vocabulary is not None or not spec.folded
    return HashedTokens(given if are_tokens else None, canonical_ids, dead, addresses)


def _encode(vocabulary: Vocabulary | None, text: str) -> list[int]:
    if vocabulary is None:
        raise InvalidInput("a text needs a vocabulary: it holds the tokenizer")
    return vocabulary.encode(text)


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{file}: not UTF-8 at byte {error.start} ({error.reason}); give UTF-8 text or a .npy"
        ) from None


def _load_ids(file: Path) -> npt.NDArray[np.int64]:
    try:
        # Mapped, so that a header cannot ask for more memory than the file has bytes.
        ids = np.lib.format.open_memmap(file, mode="r")
    except (ValueError, EOFError, TypeError, SyntaxError, OverflowError, TokenError) as error:
        raise InvalidInput(f"{file}: not a whole .npy of integers ({error})") from None
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        found = f"{ids.dtype} {ids.shape}" if isinstance(ids, np.ndarray) else "an archive"
        raise InvalidInput(f"{file}: found {found}, expected integers (tokens,)")
    if ids.dtype == np.uint64 and ids.size and int(ids.max()) > np.iinfo(np.int64).max:
        raise InvalidInput(f"{file}: an id of {int(ids.max())}, expected less than 2^63")
    return ids.astype(np.int64)


def hash_tokens(
    spec: AddressSpec,
    canonical_ids: npt.ArrayLike,
    *,
    dead: npt.ArrayLike | None = None,
    history: npt.ArrayLike | None = None,
    threads: int | None = None,
    out: Addresses | None = None,
) -> Addresses:
    """Rows and keys of a run of tokens; `AddressSpec.address` says what the arguments mean.

    Parameters
    ----------
    out
        Arrays to fill, C-contiguous and of the exact shapes, instead of new ones: fresh memory costs more than hashing.

    Notes
    -----
    Bound by writing 8 bytes a column; `benchmarks/hashing.py` measures it against that.
    """
    ids, mask = _tokens(spec, canonical_ids, dead)
    before = _history(spec, history)
    n_tokens = len(ids)
    shape = (n_tokens, len(spec.layers))
    rows_shape, keys_shape = (*shape, spec.n_columns), (*shape, len(spec.orders))
    if out is None:
        keys = _empty((*keys_shape, spec.key_words)).view(spec.key_dtype)
        out = Addresses(_empty(rows_shape).view(np.int64), keys.reshape(keys_shape))
    _check_out("rows", out.rows, rows_shape, np.dtype(np.int64))
    _check_out("keys", out.keys, keys_shape, spec.key_dtype)
    hash_blocks = _block_hasher(spec, ids, mask, before, out)
    n_blocks = -(-n_tokens // vectors.BLOCK)
    run_slices(hash_blocks, n_blocks, threads=resolve_threads(threads), grain=_GRAIN_TOKENS // vectors.BLOCK)
    return out


def _block_hasher(
    spec: AddressSpec,
    ids: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_],
    before: npt.NDArray[np.int64],
    out: Addresses,
) -> Callable[[int, int], None]:
    """What hashes the blocks start … stop of a run of tokens."""
    rows, keys = out.rows.reshape(-1), out.keys.reshape(-1).view(np.uint64)
    history, layer = spec.history, spec.layers[0]
    bare = spec.mix.family is Family.IDENTITY and len(spec.layers) == spec.n_columns == 1
    if bare and len(history.replaced) <= 1:
        low, high = history.replaced[0] if history.replaced else (0, 0)
        modulus, offset = layer.moduli[0][0], layer.offsets[0]

        def hash_bare(start: int, stop: int) -> None:
            first, last = start * vectors.BLOCK, min(stop * vectors.BLOCK, len(ids))
            kernels.hash_ids(
                ids, mask, first, last, spec.fill_id, low, high, history.replacement, modulus, offset, rows, keys
            )

        return hash_bare
    constants, form = _prepare(spec)
    if form == kernels.REDUCE and _can_pass_cache(constants, out):
        form = kernels.REDUCE_PAST_CACHE

    def hash_windows(start: int, stop: int) -> None:
        first, last = start * vectors.BLOCK, min(stop * vectors.BLOCK, len(ids))
        kernels.hash_tokens(ids, mask, before, first, last, constants, spec.n_columns, form, rows, keys)

    return hash_windows


def exact_keys(keys: npt.NDArray[Any]) -> Any:
    """Keys as Python integers, in nested lists of the shape of `keys`, whatever number of words they have.

    >>> exact_keys(np.array([(5, 1)], dtype=[("word0", np.uint64), ("word1", np.uint64)]))
    [18446744073709551621]
    """
    n_words = keys.dtype.itemsize // 8
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(*keys.shape, n_words).astype(object)
    joined = sum(words[..., word] << (64 * word) for word in range(n_words))
    return joined.tolist() if isinstance(joined, np.ndarray) else joined


def hash_ngrams(
    spec: AddressSpec, layer_id: int, order: int, ngrams: npt.ArrayLike, *, threads: int | None = None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Keys and rows of n-grams that stand by themselves.

    Parameters
    ----------
    ngrams
        Ids (n, order), oldest token first. The spec's replacements and boundaries hold inside of each.

    Returns
    -------
    (n,) keys of `AddressSpec.key_dtype`, and int64 (n, heads) rows, global within the layer.

    Raises
    ------
    InvalidInput
        An order or layer the spec lacks, another shape, an id out of range.
    """
    if order not in spec.orders:
        raise InvalidInput(f"order {order}: spec {spec.name} has orders {', '.join(map(str, spec.orders))}")
    windows = np.asarray(ngrams)
    if windows.ndim != 2 or windows.shape[1] != order:
        raise InvalidInput(f"n-grams: found shape {windows.shape}, expected (n, {order})")
    _check_ids(spec, windows.reshape(-1), None)
    windows = np.ascontiguousarray(windows, dtype=np.uint32)
    constants, form = _prepare(spec, layer_id, order)
    n_heads = int(constants.group_valid.sum())
    keys = np.empty(len(windows), dtype=spec.key_dtype)
    rows = np.empty((len(windows), n_heads), dtype=np.int64)
    flat_rows, flat_keys = rows.reshape(-1), keys.view(np.uint64)

    def hash_slice(start: int, stop: int) -> None:
        kernels.hash_ngrams(windows, start, stop, constants, n_heads, form, flat_rows, flat_keys)

    run_slices(hash_slice, len(windows), threads=resolve_threads(threads), grain=_GRAIN_TOKENS)
    return keys, rows


def _tokens(
    spec: AddressSpec, canonical_ids: npt.ArrayLike, dead: npt.ArrayLike | None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Ids as the kernels take them, uint32 or int64 (tokens,), and the mask, empty where nothing is dead."""
    ids = np.asarray(canonical_ids)
    if ids.ndim != 1:
        raise InvalidInput(f"canonical ids: found shape {ids.shape}, expected (tokens,)")
    mask = None
    if dead is not None:
        mask = np.ascontiguousarray(dead, dtype=np.bool_ if ids.size == 0 else None)
        if mask.dtype != np.bool_ or mask.shape != ids.shape:
            raise InvalidInput(f"dead: found {mask.dtype} {mask.shape}, expected bool {ids.shape}, one a token")
    _check_ids(spec, ids, mask)
    ids = np.ascontiguousarray(ids, dtype=ids.dtype if ids.dtype == np.uint32 else np.int64)
    return ids, np.empty(0, dtype=np.bool_) if mask is None else mask


def _history(spec: AddressSpec, history: npt.ArrayLike | None) -> npt.NDArray[np.int64]:
    """int64 (max_order - 1,): the end of the history, `DEAD` where dead or before the sequence."""
    given = np.asarray([] if history is None else history)
    if given.ndim != 1:
        raise InvalidInput(f"history: found shape {given.shape}, expected (tokens before the chunk,)")
    length = spec.max_order - 1
    given = given[max(0, len(given) - length) :]
    _check_ids(spec, given, given == DEAD, name="history")
    before = np.full(length, DEAD, dtype=np.int64)
    before[length - len(given) :] = given
    return before


def _check_ids(
    spec: AddressSpec,
    ids: npt.NDArray[Any],
    skip: npt.NDArray[np.bool_] | None,
    *,
    name: str | None = None,
) -> None:
    name = name or ("canonical id" if spec.folded else "token id")
    if ids.size == 0:
        return
    if ids.dtype.kind not in "iu":
        raise InvalidInput(f"{name}: found dtype {ids.dtype}, expected integers")
    if skip is None and int(ids.min()) >= 0 and int(ids.max()) < spec.canonical_size:
        return
    outside = (ids < 0) | (ids >= spec.canonical_size)
    if skip is not None:
        outside &= ~skip
    if outside.any():
        position = int(np.flatnonzero(outside)[0])
        advice = "map token ids through the vocabulary first, and " if spec.folded else ""
        raise InvalidInput(
            f"{name} at position {position}: found {ids[position]}, expected 0 to {spec.canonical_size - 1:,} for "
            f"{spec.name}; {advice}mark positions that take no part as dead"
        )


def _check_out(name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous or not array.flags.writeable:
        raise InvalidInput(
            f"out.{name}: found {array.dtype} {array.shape}, expected {dtype} {shape}, C-contiguous and writable"
        )


@lru_cache(maxsize=64)
def _prepare(spec: AddressSpec, layer_id: int | None = None, order: int | None = None) -> _Prepared:
    """Kernel arrays of a spec, or of one layer and order by itself, columns padded to groups of eight."""
    layers = spec.layers if layer_id is None else (spec.layer(layer_id),)
    orders = spec.orders if order is None else (order,)
    columns = [column for column, (length, _) in enumerate(spec.columns) if length in orders]
    shares_mix = spec.key_form is KeyForm.MIX
    groups = _groups([spec.columns[column][0] for column in columns], orders, shares_mix=shares_mix)
    shape = (len(layers), len(groups), vectors.LANES)
    moduli, offsets = np.ones(shape, dtype=np.uint64), np.zeros(shape, dtype=np.int64)
    max_order = max(orders)
    sums = np.zeros((*shape[:2], max_order, vectors.LANES), dtype=np.uint64)
    for layer_idx, layer in enumerate(layers):
        flat = list(chain.from_iterable(layer.moduli))
        for group, (_, start, n_valid) in enumerate(groups):
            for lane, column in enumerate(columns[start : start + n_valid]):
                moduli[layer_idx, group, lane] = flat[column]
                offsets[layer_idx, group, lane] = layer.offsets[column]
                if not shares_mix:
                    terms = _sum_terms(spec, layer, column)
                    sums[layer_idx, group, : len(terms), lane] = terms
    history = spec.history
    spans = [_span(spec, length, alone=order is not None) for length in orders]
    shared = np.zeros((len(layers), len(orders), max_order), dtype=np.uint64)
    if shares_mix:
        for layer_idx, layer in enumerate(layers):
            for place, (length, span) in enumerate(zip(orders, spans, strict=True)):
                shared[layer_idx, place, span.start : span.stop] = _shared_terms(spec, layer, length)
    additions = [_addition(shared[:, place - 1 : place + 1], spans[place - 1 : place + 1])
                 if place else (spans[0], False) for place in range(len(orders))]  # fmt: skip
    constants = kernels.HashConstants(
        fill=np.uint64(history.fill_id),
        boundaries=np.array(history.boundary_ids, dtype=np.int64),
        visible=np.int64(history.boundary_visible),
        closed=np.int64(history.boundary_closed),
        replaced=np.array(history.replaced, dtype=np.int64).reshape(-1, 2),
        replacement=np.int64(history.replacement),
        max_order=np.int64(max_order),
        multipliers=shared,
        first_back=np.array([span.start for span, _ in additions]),
        stop_back=np.array([span.stop for span, _ in additions]),
        extends=np.array([extends for _, extends in additions]),
        word_mask=np.uint64(2**spec.mix.word_bits - 1),
        coefficients=np.empty(0, dtype=np.uint64) if shares_mix else sums.reshape(-1),
        narrow=np.bool_(int(sums.max(initial=0)) < 2**32),
        id_bits=np.int64(spec.id_bits),
        key_words=np.int64(spec.key_words),
        orders=np.array(orders),
        group_order=np.array([place for place, _, _ in groups]),
        group_column=np.array([start for _, start, _ in groups]),
        group_valid=np.array([n_valid for _, _, n_valid in groups]),
        moduli=moduli.reshape(-1),
        reciprocals=1.0 / moduli.reshape(-1),
        offsets=offsets.reshape(-1),
    )
    return _Prepared(constants, _form(spec))


def _groups(lengths: Sequence[int], orders: Sequence[int], *, shares_mix: bool) -> list[tuple[int, int, int]]:
    """(place of the order, first column, columns) of each group; `lengths` is the order of every column."""
    lanes = vectors.LANES
    if not shares_mix:
        return [(0, start, min(lanes, len(lengths) - start)) for start in range(0, len(lengths), lanes)]
    groups = []
    for place, length in enumerate(orders):
        first, n_heads = lengths.index(length), lengths.count(length)
        groups += [(place, first + start, min(lanes, n_heads - start)) for start in range(0, n_heads, lanes)]
    return groups


def _span(spec: AddressSpec, order: int, *, alone: bool) -> range:
    """The look-backs of an order's n-gram."""
    lag = 0 if alone else spec.lag(order)
    return range(lag, lag + order)


def _shared_terms(spec: AddressSpec, layer: LayerAddressing, order: int) -> list[int]:
    """Multipliers of an order's ids, newest first."""
    if spec.mix.family is Family.IDENTITY:
        return [1]
    return list(layer.multipliers[:order][:: -1 if spec.mix.oldest_first else 1])


def _sum_terms(spec: AddressSpec, layer: LayerAddressing, column: int) -> list[int]:
    """Coefficients of a column's ids, newest first."""
    order = spec.columns[column][0]
    if spec.mix.family is Family.POLYNOMIAL:
        modulus = list(chain.from_iterable(layer.moduli))[column]
        # The current id is not reduced, and its coefficient is 1 even under the modulus 1.
        return [1, *(pow(layer.multipliers[0], back, modulus) for back in range(1, order))]
    first = sum(length for length, _ in spec.columns[:column])
    return list(layer.multipliers[first : first + order])


def _addition(multipliers: npt.NDArray[np.uint64], spans: Sequence[range]) -> tuple[range, bool]:
    """The look-backs that an order adds, and whether to the mix of the order before it.

    Parameters
    ----------
    multipliers
        uint64 (layers, 2, max_order): of the order before and of this one.
    """
    before, here = spans
    same = bool((multipliers[:, 0, before.start : before.stop] == multipliers[:, 1, before.start : before.stop]).all())
    if same and before.start == here.start:
        return range(before.stop, here.stop), True
    if same and before.stop == here.stop:
        return range(here.start, before.start), True
    return here, False


def _form(spec: AddressSpec) -> int:
    used = [modulus for layer in spec.layers for heads in layer.moduli for modulus in heads]
    if spec.mix.word_bits == 32:
        return kernels.DIVIDE_SIGNED
    fast = min(used) >= vectors.SMALLEST_FAST_MODULUS and max(used) <= vectors.LARGEST_FAST_MODULUS
    return kernels.REDUCE if fast else kernels.DIVIDE


def _empty(shape: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """uint64 of `shape`, uninitialised, on a cache line."""
    return aligned_bytes(8 * prod(shape), CACHE_LINE_BYTES).view(np.uint64).reshape(shape)


def _can_pass_cache(constants: kernels.HashConstants, out: Addresses) -> bool:
    aligned = out.rows.ctypes.data % CACHE_LINE_BYTES == out.keys.ctypes.data % CACHE_LINE_BYTES == 0
    full = bool((constants.group_valid == vectors.LANES).all()) and bool(constants.narrow)
    return aligned and full and out.rows.nbytes > _CACHED_RESULT_BYTES
