"""Every bound of a spec that hashing relies on; the kernels check nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    from engram_tables.address.spec import AddressSpec, LayerAddressing

MAX_ORDER = 16
_MAX_BOUNDARIES = 64
_MAX_RANGES = 4096
_MAX_REDUCE_CHARACTERS = 300
_INT64_MAX = 2**63 - 1


def check_spec(spec: AddressSpec) -> None:
    """Raise `InvalidInput` for the first constant that hashing could not use."""
    size = spec.canonical_size
    _need(spec, 1 <= size <= 2**32, f"canonical_size is {size}", "1 to 2^32")
    ascending = bool(spec.orders) and list(spec.orders) == sorted(set(spec.orders))
    _need(
        spec,
        ascending and spec.orders[0] >= 1 and spec.orders[-1] <= MAX_ORDER,
        f"orders are {spec.orders}",
        f"different, ascending, 1 to {MAX_ORDER}",
    )
    _check_history(spec)
    _check_mix(spec)
    _need(spec, bool(spec.layers), "there is no layer", "one or more")
    _need(spec, len(set(spec.layer_ids)) == len(spec.layers), f"layer ids are {spec.layer_ids}", "different ones")
    for layer in spec.layers:
        _check_layer(spec, layer)
    _check_row(spec)


def _need(spec: AddressSpec, holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise InvalidInput(f"spec {spec.name}: {found}, expected {expected}; take the constants from their source")


def _check_history(spec: AddressSpec) -> None:
    history, size = spec.history, spec.canonical_size
    in_range = f"0 to {size - 1}"
    _need(spec, 0 <= history.fill_id < size, f"fill_id is {history.fill_id}", in_range)
    boundaries = history.boundary_ids
    _need(
        spec,
        list(boundaries) == sorted(set(boundaries)) and len(boundaries) <= _MAX_BOUNDARIES,
        f"boundary_ids are {boundaries}",
        f"different, ascending, at most {_MAX_BOUNDARIES}",
    )
    for boundary in boundaries:
        _need(spec, 0 <= boundary < size, f"a boundary id is {boundary}", in_range)
    # One spelling for one addressing: a rule without effect has no say in the fingerprint.
    _need(
        spec,
        not history.boundary_visible or any(boundary != history.fill_id for boundary in boundaries),
        "boundary_visible is true",
        "false where no boundary differs from the fill",
    )
    _need(spec, not history.boundary_closed or bool(boundaries), "boundary_closed is true", "false without boundaries")
    _need(
        spec,
        not boundaries or spec.max_order > 1,
        f"boundary_ids are {boundaries}",
        "none where the only order is 1",
    )
    ranges = history.replaced
    _need(
        spec,
        len(ranges) <= _MAX_RANGES
        and all(0 <= start < stop <= size for start, stop in ranges)
        and all(before[1] < after[0] for before, after in pairwise(ranges)),
        f"replaced ranges are {ranges}",
        f"half-open, within 0 to {size}, ascending and apart, at most {_MAX_RANGES}",
    )
    _need(
        spec,
        history.replacement == 0 or bool(ranges),
        f"the replacement is {history.replacement}",
        "0 where nothing is replaced",
    )
    _need(spec, 0 <= history.replacement < size, f"the replacement is {history.replacement}", in_range)


def _check_mix(spec: AddressSpec) -> None:
    from engram_tables.address.spec import Family

    mix = spec.mix
    _need(spec, mix.word_bits in (32, 64), f"word_bits is {mix.word_bits}", "32 or 64")
    if mix.family is not Family.XOR_MULTIPLY:
        _need(
            spec,
            mix.word_bits == 64 and not mix.oldest_first and not mix.lagged,
            f"a {mix.family} mix of {mix.word_bits} bits, oldest first {mix.oldest_first}, lagged {mix.lagged}",
            "64 bits and neither: those are rules of xor-multiply",
        )
    if mix.family is Family.IDENTITY:
        _need(spec, spec.orders == (1,), f"orders are {spec.orders}", "order 1 alone for an identity mix")
    _need(
        spec,
        not mix.lagged or len(spec.orders) > 1,
        "lagged is true",
        "false where there is one order",
    )
    _need(spec, not mix.oldest_first or spec.max_order > 1, "oldest_first is true", "false where the only order is 1")


def _check_layer(spec: AddressSpec, layer: LayerAddressing) -> None:
    where = f"layer {layer.layer_id}: "
    _need(spec, 0 <= layer.layer_id < 2**31, f"layer id is {layer.layer_id}", "0 to 2^31 - 1")
    heads = tuple(len(moduli) for moduli in layer.moduli)
    _need(
        spec,
        heads == spec.heads and len(heads) == len(spec.orders) and all(heads),
        f"{where}heads per order {heads}",
        "one or more for each order, as in the first layer",
    )
    _need(spec, len(layer.offsets) == spec.n_columns, f"{where}{len(layer.offsets)} offsets", f"{spec.n_columns}")
    _need(spec, 0 < layer.n_rows < 2**48, f"{where}{layer.n_rows} rows", "1 to 2^48 - 1")
    for modulus, offset in zip(chain.from_iterable(layer.moduli), layer.offsets, strict=True):
        _need(
            spec,
            modulus >= 1 and offset >= 0 and offset + modulus <= layer.n_rows,
            f"{where}a head of modulus {modulus} at row {offset}",
            f"a modulus of 1 or more, and rows within 0 to {layer.n_rows - 1}",
        )
    _check_multipliers(spec, layer, where)


def _check_multipliers(spec: AddressSpec, layer: LayerAddressing, where: str) -> None:
    from engram_tables.address.spec import Family

    multipliers, largest_id = layer.multipliers, spec.canonical_size - 1
    match spec.mix.family:
        case Family.XOR_MULTIPLY:
            n_expected, meaning = spec.max_order, "one a look-back"
        case Family.POLYNOMIAL:
            n_expected, meaning = 1, "the base"
        case Family.SALTED_AFFINE:
            n_expected, meaning = sum(order for order, _ in spec.columns), "one for each id of each column"
        case Family.IDENTITY:
            n_expected, meaning = 0, "for an identity mix"
    found = f"{where}{len(multipliers)} multipliers"
    _need(spec, len(multipliers) == n_expected, found, f"{n_expected}, {meaning}")
    if spec.mix.family is Family.XOR_MULTIPLY:
        largest = 2**32 - 1 if spec.mix.word_bits == 32 else _INT64_MAX // spec.canonical_size
        for multiplier in multipliers:
            _need(
                spec,
                0 < multiplier <= largest and multiplier % 2 == 1,
                f"{where}multiplier {multiplier}",
                f"an odd number of at most {largest}, so that no product passes its word (even: it has been rounded, "
                "by a float perhaps)",
            )
        return
    _need(spec, all(multiplier > 0 for multiplier in multipliers), f"{where}multipliers {multipliers}", "positive ones")
    largest_sum = largest_id * max(_coefficient_sums(spec, layer))
    _need(
        spec,
        largest_sum <= _INT64_MAX,
        f"{where}a mix of up to {largest_sum}",
        f"at most {_INT64_MAX}, so that no sum passes its word",
    )


def _coefficient_sums(spec: AddressSpec, layer: LayerAddressing) -> Sequence[int]:
    """For each column, an upper bound of its mix over the largest id."""
    from engram_tables.address.spec import Family

    if spec.mix.family is Family.IDENTITY:
        return [1]
    columns = list(zip(spec.columns, chain.from_iterable(layer.moduli), strict=True))
    if spec.mix.family is Family.POLYNOMIAL:
        # Powers of the base are taken modulo the column's modulus before they multiply an id.
        return [1 + (order - 1) * (modulus - 1) for (order, _), modulus in columns]
    sums, first = [], 0
    for (order, _), _ in columns:
        sums.append(sum(layer.multipliers[first : first + order]))
        first += order
    return sums


def _check_row(spec: AddressSpec) -> None:
    digest = spec.vocab_sha256
    is_digest = digest is None or (len(digest) == 64 and set(digest) <= set("0123456789abcdef"))
    _need(spec, is_digest, f"vocab_sha256 is {str(digest)[:80]!r}", "64 hexadecimal digits")
    width = spec.row_width
    _need(spec, width is None or 1 <= width <= 2**20, f"row_width is {width}", "1 to 2^20")
    _need(spec, len({piece.layer_id for piece in spec.slices}) == len(spec.slices),
          f"slices are {spec.slices}", "one a layer")  # fmt: skip
    for piece in spec.slices:
        _need(
            spec,
            width is not None and 0 <= piece.start < piece.stop <= width and 0 <= piece.layer_id < 2**31,
            f"a slice is {tuple(piece)}",
            f"(layer id, start, stop) within a row of {width} values",
        )
    _need(
        spec,
        spec.reduce is None or 0 < len(spec.reduce) <= _MAX_REDUCE_CHARACTERS,
        "the reduce rule is a text of another length",
        f"1 to {_MAX_REDUCE_CHARACTERS} characters",
    )
