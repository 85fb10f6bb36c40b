"""Which published rule a spec's multipliers were derived by, and what it gives for other layers' seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from engram_tables.address.recipes import LAYER_SEED_STEP, pcg64_multipliers
from engram_tables.address.relatives import QWEN_SEED, splitmix_multipliers
from engram_tables.address.spec import AddressSpec, Family

Rule = Callable[[int], tuple[int, ...]]
"""The multipliers of the layer whose number goes into the seed."""

# NumPy draws bounds of 32 bits by another method, which larger vocabularies would need.
_SIZES_END = 2**30


def other_seeds(spec: AddressSpec) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Layer numbers that a program may take for the seeds' own, and the multipliers of every layer that come of them.

    Nothing where the multipliers are those of neither published rule: DeepSeek's, seeded by layer id from seed 0, and
    Qwen's, by ordinal from seed 1234.
    """
    if spec.mix.family is not Family.XOR_MULTIPLY or spec.canonical_size >= _SIZES_END:
        return
    right = [layer.multipliers for layer in spec.layers]
    ids, ordinals = spec.layer_ids, tuple(range(len(spec.layers)))
    for own, rule in ((ids, _deepseek(spec)), (ordinals, _qwen(spec))):
        if _multipliers(rule, own) == right:
            for seeds in dict.fromkeys((ordinals, ids, _next(ids), _next(ordinals))):
                if seeds != own:
                    yield seeds, _multipliers(rule, seeds)


def _deepseek(spec: AddressSpec) -> Rule:
    n_multipliers = len(spec.layers[0].multipliers)
    return lambda layer: pcg64_multipliers(spec.canonical_size, n_multipliers, seed=LAYER_SEED_STEP * layer)


def _qwen(spec: AddressSpec) -> Rule:
    n_multipliers = len(spec.layers[0].multipliers)
    return lambda layer: splitmix_multipliers(
        spec.canonical_size, n_multipliers, seed=QWEN_SEED + LAYER_SEED_STEP * layer
    )


def _multipliers(rule: Rule, seeds: Sequence[int]) -> list[tuple[int, ...]]:
    return [rule(layer) for layer in seeds]


def _next(layers: Sequence[int]) -> tuple[int, ...]:
    return tuple(layer + 1 for layer in layers)
