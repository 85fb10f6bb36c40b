"""The published tables by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engram_tables.address.recipes import DeepSeekRecipe, Recipe
from engram_tables.address.relatives import GemmaRecipe, LongCatRecipe, NanochatRecipe, QwenRecipe
from engram_tables.address.spec import AddressSpec, MixRule
from engram_tables.address.spec_files import read_spec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import InvalidInput

V4_VOCAB_SHA256 = "c60a86322ec17b4142bfef3c57a8d81fb428550cdf487f88a4320cb59fe46481"
V3_VOCAB_SHA256 = "cd48cb62d9cca1baaf08d9e7795ad3d4c22b6c56f0f070178b9e3a52694ea930"


def _paper_recipe(name: str, rows_per_head: int) -> DeepSeekRecipe:
    return DeepSeekRecipe(
        name=name,
        provenance="arXiv 2601.07372, Table 5; layer ids uncertain",
        canonical_size=98_627,
        orders=(2, 3),
        heads=8,
        bases=(rows_per_head, rows_per_head),
        layer_ids=None,
        n_layers=2,
        fill_id=2,
        row_width=80,
        vocab_sha256=V3_VOCAB_SHA256,
    )


def _gemma_recipe(name: str, n_layers: int) -> GemmaRecipe:
    return GemmaRecipe(
        name=name,
        provenance=f"config.json of {name}, in transformers",
        vocab_size=262_400,
        table_size=262_144,
        n_layers=n_layers,
        slice_width=256,
    )


PRESETS: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        DeepSeekRecipe(
            name="deepseek-v4.1-flash",
            provenance="config.json of DeepSeek-V4.1-Flash",
            canonical_size=99_092,
            orders=(2, 3, 4),
            heads=8,
            bases=(16_000_000,) * 3,
            layer_ids=(1, 14),
            n_layers=2,
            fill_id=2,
            row_width=256,
            vocab_sha256=V4_VOCAB_SHA256,
        ),
        DeepSeekRecipe(
            name="engram-demo",
            provenance="engram_demo_v1.py of deepseek-ai/Engram",
            canonical_size=98_627,
            orders=(2, 3),
            heads=8,
            bases=(646_400, 646_400),
            layer_ids=(1, 15),
            n_layers=2,
            fill_id=2,
            row_width=64,
            vocab_sha256=V3_VOCAB_SHA256,
        ),
        _paper_recipe("engram-27b", 2_262_400),
        _paper_recipe("engram-40b", 7_239_680),
        DeepSeekRecipe(
            name="engram-peft",
            provenance="defaults of engram-peft 1.2.7, lag and multiplier order included; padding token 2",
            canonical_size=None,
            orders=(2, 3),
            heads=8,
            # The package divides an order's total among the heads.
            bases=(1_131_200 // 8,) * 2,
            layer_ids=(1, 14),
            n_layers=2,
            fill_id=None,
            pad_token=2,
            row_width=80,
            mix=MixRule(oldest_first=True, lagged=True),
        ),
        QwenRecipe(
            name="qwen3.8-flash-next",
            provenance="config.json and arrays of Qwen3.8-Flash-Next",
            vocab_size=248_320,
            orders=(2, 3),
            heads=8,
            base=20_000_000,
            divisor=128,
            layer_ids=(1,),
            eos_token=248_044,
            row_width=160,
        ),
        LongCatRecipe(
            name="longcat-flash-lite",
            provenance="config.json of LongCat-Flash-Lite",
            vocab_size=131_072,
            hidden_size=3072,
            neighbours=4,
            splits=4,
            ratio=78,
            eos_token=2,
            reduce="the token embedding and the projected rows, summed and divided by 13",
        ),
        LongCatRecipe(
            name="longcat-2.0",
            provenance="sizes of LongCat-2.0; that its end of sequence alone ends the history is not certain",
            vocab_size=163_840,
            hidden_size=8192,
            neighbours=5,
            splits=4,
            ratio=100.567,
            eos_token=2,
        ),
        NanochatRecipe(
            name="nanochat-300m",
            provenance="nanochat pull request 854; salts as in its author's port, not certain",
            vocab_size=65_536,
            table_size=300_000_000,
            layer_ids=(3, 7, 11, 15),
            rank=128,
            orders=(2, 3),
            hashes=(2, 2),
        ),
        _gemma_recipe("gemma-3n-e2b", 30),
        _gemma_recipe("gemma-3n-e4b", 35),
    )
}


def load_spec(
    path_or_preset: str | Path, *, layers: Sequence[int] | None = None, vocabulary: Vocabulary | None = None
) -> AddressSpec:
    """The spec of a preset's name, or in a .json or .npz file that `engram spec` wrote.

    Parameters
    ----------
    layers
        Layer ids, for a preset whose ids are not certain.
    vocabulary
        Bound to the spec; needed for a preset that leaves the vocabulary open.

    Raises
    ------
    InvalidInput
        Neither a preset nor a file, or a file that is no spec.
    SpecMismatch
        The vocabulary is another one.
    """
    if str(path_or_preset) in PRESETS:
        return PRESETS[str(path_or_preset)].resolve(layers, vocabulary=vocabulary)
    path = Path(path_or_preset)
    if not path.is_file():
        raise InvalidInput(f"{path}: neither a file nor a preset; the presets are {', '.join(PRESETS)}")
    if layers is not None:
        raise InvalidInput(f"{path}: a spec file names its layers itself; leave out --layers")
    spec = read_spec(path)
    return spec if vocabulary is None else spec.with_vocabulary(vocabulary)
