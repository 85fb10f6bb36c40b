"""Hypothesis strategies: specs of every family with every rule, and token runs that reach their corners."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import strategies as st

from engram_tables.address.spec import AddressSpec, Family, HistoryRule, LayerAddressing, MixRule

_INT64_MAX = 2**63 - 1


@st.composite
def specs(draw: st.DrawFn) -> AddressSpec:
    """Any spec that the checks let pass."""
    family = draw(st.sampled_from(list(Family)))
    size = draw(st.one_of(st.integers(1, 40), st.integers(2, 300_000), st.sampled_from([2**17, 2**18, 2**32])))
    orders = (1,) if family is Family.IDENTITY else draw(_orders())
    if family is Family.POLYNOMIAL and size > 300_000:
        size = 131_072
    word_bits = draw(st.sampled_from([64, 64, 32])) if family is Family.XOR_MULTIPLY else 64
    mixes_freely = family is Family.XOR_MULTIPLY
    mix = MixRule(
        family=family,
        word_bits=word_bits,
        oldest_first=mixes_freely and orders[-1] > 1 and draw(st.booleans()),
        lagged=mixes_freely and len(orders) > 1 and draw(st.booleans()),
    )
    heads = tuple(draw(st.integers(1, 10)) for _ in orders)
    layers = tuple(draw(_layers(layer_id, mix, size, orders, heads)) for layer_id in range(draw(st.integers(1, 3))))
    return AddressSpec(
        name="random",
        provenance="tests",
        canonical_size=size,
        history=draw(_histories(size, orders[-1])),
        orders=orders,
        layers=layers,
        mix=mix,
        folded=draw(st.booleans()),
    )


@st.composite
def _orders(draw: st.DrawFn) -> tuple[int, ...]:
    return tuple(sorted(draw(st.sets(st.integers(1, 6), min_size=1, max_size=4))))


@st.composite
def _histories(draw: st.DrawFn, size: int, max_order: int) -> HistoryRule:
    token = st.one_of(st.just(0), st.just(size - 1), st.integers(0, size - 1))
    fill_id = draw(token)
    boundaries = tuple(sorted(draw(st.sets(token, max_size=3)))) if max_order > 1 else ()
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=4)))
    replaced = tuple(zip(cuts[::2], cuts[1::2], strict=False))
    return HistoryRule(
        fill_id=fill_id,
        boundary_ids=boundaries,
        boundary_visible=any(boundary != fill_id for boundary in boundaries) and draw(st.booleans()),
        boundary_closed=bool(boundaries) and draw(st.booleans()),
        replaced=replaced,
        replacement=draw(token) if replaced else 0,
    )


@st.composite
def _layers(
    draw: st.DrawFn, layer_id: int, mix: MixRule, size: int, orders: tuple[int, ...], heads: tuple[int, ...]
) -> LayerAddressing:
    small = st.integers(1, 20_000)
    modulus = st.one_of(small, st.integers(8193, 2**31 - 1), st.integers(2**31, 2**36))
    if mix.family is Family.POLYNOMIAL:
        modulus = st.one_of(small, st.integers(8193, 20_000_000))
    fast = st.integers(8193, 20_000_000)
    kind = draw(st.sampled_from([modulus, fast, fast]))
    moduli = tuple(tuple(draw(kind) for _ in range(n)) for n in heads)
    flat = [m for per_order in moduli for m in per_order]
    is_shared = draw(st.booleans())
    offsets = (0,) * len(flat) if is_shared else (0, *accumulate(flat[:-1]))
    end = max(flat) if is_shared else sum(flat)
    return LayerAddressing(
        layer_id=layer_id,
        multipliers=draw(_multipliers(mix, size, orders, heads)),
        moduli=moduli,
        offsets=offsets,
        n_rows=end + draw(st.integers(0, 200)),
    )


@st.composite
def _multipliers(
    draw: st.DrawFn, mix: MixRule, size: int, orders: tuple[int, ...], heads: tuple[int, ...]
) -> tuple[int, ...]:
    if mix.family is Family.IDENTITY:
        return ()
    if mix.family is Family.POLYNOMIAL:
        return (draw(st.sampled_from([1, size, size + 1])),)
    if mix.family is Family.XOR_MULTIPLY:
        largest = 2**32 - 1 if mix.word_bits == 32 else _INT64_MAX // size
        odd = st.integers(0, (largest - 1) // 2).map(lambda half: 2 * half + 1)
        return tuple(draw(st.one_of(odd, st.just(largest - 1 + largest % 2))) for _ in range(orders[-1]))
    n_terms = [order for order, n in zip(orders, heads, strict=True) for _ in range(n)]
    return tuple(
        draw(st.integers(1, max(1, _INT64_MAX // max(1, size - 1) // order))) for order in n_terms for _ in range(order)
    )


@st.composite
def streams(draw: st.DrawFn, spec: AddressSpec) -> list[int]:
    """Ids, -1 where dead, that favour the spec's own corners: fill, boundaries, edges of what is replaced."""
    history, size = spec.history, spec.canonical_size
    corners = {0, size - 1, history.fill_id, history.replacement, *history.boundary_ids}
    corners |= {edge for bounds in history.replaced for edge in (bounds[0] - 1, bounds[0], bounds[1] - 1, bounds[1])}
    corner = st.sampled_from(sorted(token for token in corners if 0 <= token < size))
    token = st.one_of(st.just(-1), corner, corner, st.integers(0, size - 1))
    return draw(st.lists(token, max_size=40))
