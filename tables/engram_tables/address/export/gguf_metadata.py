"""A spec's constants as GGUF metadata, under each spelling that is published for its family."""

from __future__ import annotations

from itertools import chain
from typing import Any

from engram_tables.address.spec import AddressSpec, HistoryRule, MixRule
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import InvalidInput


def gguf_key_values(spec: AddressSpec, *, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """The GGUF metadata of a spec as {spelling: {key: {"type", "value"}}}.

    DeepSeek's tables have two public spellings, `ds4` and `llama.cpp`, Qwen's one, `qwen4exp`. All u64 values are
    decimal strings, since many writers read JSON numbers as doubles. The token map is given with a vocabulary alone.

    Raises
    ------
    InvalidInput
        A family or a shape that no public key can say.
    """
    if spec.mix != MixRule():
        raise InvalidInput(
            f"spec {spec.name}: found a {spec.mix.family} mix of its own order, expected DeepSeek's or Qwen's: no GGUF "
            "key is published for another; use JSON"
        )
    for found, expected in (
        (f"orders {spec.orders}", spec.orders == tuple(range(2, spec.max_order + 1)) or "2 up to the largest"),
        (f"heads {spec.heads}", len(set(spec.heads)) == 1 or "as many for each order"),
        (f"row width {spec.row_width}", spec.row_width is not None or "a number"),
        (f"{max(layer.n_rows for layer in spec.layers):,} rows",
         all(layer.n_rows < 2**32 for layer in spec.layers) or "less than 2^32 a layer"),
    ):  # fmt: skip
        if expected is not True:
            raise InvalidInput(
                f"spec {spec.name}: found {found}, expected {expected}: GGUF has no key for it; use JSON"
            )
    if spec.history == HistoryRule(fill_id=spec.fill_id) and (spec.folded or vocabulary is not None):
        return _deepseek(spec, vocabulary)
    is_qwen = spec.history == HistoryRule(fill_id=spec.fill_id, boundary_ids=(spec.fill_id,)) and not spec.folded
    if is_qwen and len(spec.layers) == 1:
        return {"qwen4exp": _qwen(spec)}
    raise InvalidInput(
        f"spec {spec.name}: found {spec.history}, {'canonical' if spec.folded else 'token'} ids and {len(spec.layers)} "
        "layers, expected canonical ids without boundary (DeepSeek), or token ids and one layer whose boundary is its "
        "fill (Qwen): GGUF has no key for it; use JSON"
    )


def _typed(prefix: str, **entries: tuple[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": {"type": kind, "value": value} for key, (kind, value) in entries.items()}


def _deepseek(spec: AddressSpec, vocabulary: Vocabulary | None) -> dict[str, Any]:
    prefix = "deepseek41.engram"
    multipliers = [str(multiplier) for layer in spec.layers for multiplier in layer.multipliers]
    primes = [modulus for layer in spec.layers for modulus in chain.from_iterable(layer.moduli)]
    # The encoding is the only one published, and belongs to rows of 256 values.
    encoding = {"encoding": ("string", "e4m3_e8m0_32_row264")} if spec.row_width == 256 else {}
    ds4 = _typed(
        prefix,
        **encoding,
        layer_ids=("u32[]", list(spec.layer_ids)),
        rows=("u32[]", [layer.n_rows for layer in spec.layers]),
        compressed_vocab_size=("u32", spec.canonical_size),
        pad_id=("u32", spec.fill_id),
        primes=("u32[]", primes),
        multipliers=("u64[]", multipliers),
    )
    llama_cpp = _typed(
        prefix,
        layer_ids=("u32[]", list(spec.layer_ids)),
        head_count=("u32", spec.heads[0]),
        key_length=("u32", spec.row_width),
        max_ngram_size=("u32", spec.max_order),
        multipliers=("u64[]", multipliers),
        primes=("u64[]", [str(prime) for prime in primes]),
        offsets=("u64[]", [str(offset) for layer in spec.layers for offset in layer.offsets]),
        pad_id=("u32", spec.fill_id),
    )
    if vocabulary is not None:
        token_map = vocabulary.canonical_ids.tolist()
        ds4 |= _typed(prefix, token_map=("u32[]", token_map))
        llama_cpp |= _typed(prefix, token_map=("i32[]", token_map))
    return {"ds4": ds4, "llama.cpp": llama_cpp}


def _qwen(spec: AddressSpec) -> dict[str, Any]:
    layer = spec.layers[0]
    return _typed(
        "qwen4exp",
        **{
            "ple.layers": ("u32[]", [layer.layer_id]),
            "ple.ngram_size": ("u32", spec.max_order),
            "ple.heads_per_ngram": ("u32", spec.heads[0]),
            "ple.layer_multipliers": ("u64[]", [str(multiplier) for multiplier in layer.multipliers]),
            "ple.head_offsets": ("u64[]", [str(offset) for offset in layer.offsets]),
            "ple.head_vocab_sizes": ("u64[]", [str(modulus) for modulus in chain.from_iterable(layer.moduli)]),
            "ple.row_count": ("u32", layer.n_rows),
            "ple.eos_token_id": ("u32", spec.fill_id),
            "vocab_size": ("u32", spec.canonical_size),
            "embedding_length_per_layer_input": ("u32", spec.row_width),
        },
    )
