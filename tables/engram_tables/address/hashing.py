"""Token runs and n-grams to rows and keys: validates, then calls the kernels on slices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.address import kernels
from engram_tables.address.spec import Addresses, AddressSpec, LayerAddressing
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
        Maps token ids to canonical ids; needed unless `canonical`.
    file
        Integers (tokens,) in a .npy, UTF-8 text otherwise.
    canonical
        The ids, those of `history` as well, are canonical already.
    dead_positions
        Positions that take no part; what stands there is not looked at.
    history
        Ids before the chunk, oldest first, -1 where dead.
    """
    if (vocabulary is None) != canonical:
        raise InvalidInput(
            f"spec {spec.name}: canonical ids were given, and a vocabulary beside them; leave out one of the two"
            if canonical
            else f"spec {spec.name}: text and token ids need the vocabulary (--vocab); canonical ids need --canonical"
        )
    if file is not None and file.suffix == ".npy":
        given = _load_ids(file)
    elif ids is not None:
        given = np.array(ids, dtype=np.int64)
    else:
        given = np.array(_encode(vocabulary, _read_text(file) if file is not None else text or ""), dtype=np.int64)
    dead = np.zeros(len(given), dtype=np.bool_)
    for position in dead_positions:
        if not 0 <= position < len(given):
            raise InvalidInput(f"dead position {position}: expected 0 to {len(given) - 1}")
        dead[position] = True
    before = np.array(history, dtype=np.int64)
    canonical_ids = given
    if vocabulary is not None:
        canonical_ids = np.full(len(given), DEAD)
        canonical_ids[~dead] = vocabulary.canonical(given[~dead])
        before[before != DEAD] = vocabulary.canonical(before[before != DEAD])
    addresses = hash_tokens(spec, canonical_ids, dead=dead, history=before, threads=threads)
    return HashedTokens(None if vocabulary is None else given, canonical_ids, dead, addresses)


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
    except (ValueError, EOFError) as error:
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
        out = Addresses(_empty(rows_shape).view(np.int64), _empty(keys_shape))
    _check_out("rows", out.rows, rows_shape, np.dtype(np.int64))
    _check_out("keys", out.keys, keys_shape, np.dtype(np.uint64))
    constants, form = _prepare(spec, spec.layers, spec.orders)
    if form == kernels.REDUCE and _can_pass_cache(constants, out):
        form = kernels.REDUCE_PAST_CACHE
    flat_rows, flat_keys = out.rows.reshape(-1), out.keys.reshape(-1)

    def hash_blocks(start: int, stop: int) -> None:
        first, last = start * kernels.BLOCK, min(stop * kernels.BLOCK, n_tokens)
        kernels.hash_tokens(ids, mask, before, first, last, constants, spec.n_columns, form, flat_rows, flat_keys)

    n_blocks = -(-n_tokens // kernels.BLOCK)
    run_slices(hash_blocks, n_blocks, threads=resolve_threads(threads), grain=_GRAIN_TOKENS // kernels.BLOCK)
    return out


def hash_ngrams(
    spec: AddressSpec, layer_id: int, order: int, ngrams: npt.ArrayLike, *, threads: int | None = None
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Keys and rows of n-grams that stand by themselves.

    Parameters
    ----------
    ngrams
        Canonical ids (n, order), oldest token first.

    Returns
    -------
    uint64 (n,) keys and int64 (n, heads) rows, global within the layer.

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
    constants, form = _prepare(spec, (spec.layer(layer_id),), (order,))
    n_heads = int(constants.group_valid.sum())
    keys = np.empty(len(windows), dtype=np.uint64)
    rows = np.empty((len(windows), n_heads), dtype=np.int64)

    def hash_slice(start: int, stop: int) -> None:
        kernels.hash_ngrams(windows, start, stop, constants, n_heads, form, rows.reshape(-1), keys)

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
    name: str = "canonical id",
) -> None:
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
        raise InvalidInput(
            f"{name} at position {position}: found {ids[position]}, expected 0 to {spec.canonical_size - 1:,} for "
            f"{spec.name}; map token ids through the vocabulary first, and mark positions that take no part as dead"
        )


def _check_out(name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous or not array.flags.writeable:
        raise InvalidInput(
            f"out.{name}: found {array.dtype} {array.shape}, expected {dtype} {shape}, C-contiguous and writable"
        )


@lru_cache(maxsize=64)
def _prepare(spec: AddressSpec, layers: tuple[LayerAddressing, ...], orders: tuple[int, ...]) -> _Prepared:
    """Kernel arrays for some layers and orders of a spec, columns padded to groups of eight."""
    lanes = kernels.LANES
    order_idxs = [spec.orders.index(order) for order in orders]
    first_column = np.cumsum((0, *(spec.heads[order_idx] for order_idx in order_idxs)))
    groups = [
        (place, start, min(lanes, spec.heads[order_idx] - start))
        for place, order_idx in enumerate(order_idxs)
        for start in range(0, spec.heads[order_idx], lanes)
    ]
    shape = (len(layers), len(groups), lanes)
    moduli, offsets = np.ones(shape, dtype=np.uint64), np.zeros(shape, dtype=np.int64)
    for layer_idx, layer in enumerate(layers):
        for group, (place, start, valid) in enumerate(groups):
            order_idx = order_idxs[place]
            column = sum(spec.heads[:order_idx]) + start
            moduli[layer_idx, group, :valid] = layer.moduli[order_idx][start : start + valid]
            offsets[layer_idx, group, :valid] = layer.offsets[column : column + valid]
    constants = kernels.HashConstants(
        fill=np.uint64(spec.fill_id),
        multipliers=np.array([layer.multipliers for layer in layers], dtype=np.uint64),
        orders=np.array(orders),
        group_order=np.array([place for place, _, _ in groups]),
        group_column=np.array([first_column[place] + start for place, start, _ in groups]),
        group_valid=np.array([valid for _, _, valid in groups]),
        moduli=moduli.reshape(-1),
        reciprocals=1.0 / moduli.reshape(-1),
        offsets=offsets.reshape(-1),
    )
    used = [modulus for layer in layers for heads in layer.moduli for modulus in heads]
    fast = min(used) >= kernels.SMALLEST_FAST_MODULUS and max(used) <= kernels.LARGEST_FAST_MODULUS
    return _Prepared(constants, kernels.REDUCE if fast else kernels.DIVIDE)


def _empty(shape: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """uint64 of `shape`, uninitialised, on a cache line."""
    return aligned_bytes(8 * prod(shape), CACHE_LINE_BYTES).view(np.uint64).reshape(shape)


def _can_pass_cache(constants: kernels.HashConstants, out: Addresses) -> bool:
    aligned = out.rows.ctypes.data % CACHE_LINE_BYTES == out.keys.ctypes.data % CACHE_LINE_BYTES == 0
    return aligned and out.rows.nbytes > _CACHED_RESULT_BYTES and bool((constants.group_valid == kernels.LANES).all())
