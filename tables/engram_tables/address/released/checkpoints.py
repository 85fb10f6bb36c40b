"""Specs of released models from the files that hold them: safetensors checkpoints and GGUF.

What a file states is held against what the recipe derives; they agree or there is no spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engram_tables.address.presets import PRESETS
from engram_tables.address.recipes import DeepSeekRecipe, Recipe
from engram_tables.address.released.configs import spec_from_config
from engram_tables.address.released.findings import Fact, contradiction
from engram_tables.address.released.gguf import read_model
from engram_tables.address.released.tensors import FoundTables, find_tables
from engram_tables.address.spec import AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.byte_files import ByteFile, Folder, as_file, as_place
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.safetensors_file import SafetensorsHeader, checkpoint_headers

CONFIG_NAME = "config.json"


def spec_from_checkpoint(
    place: ByteFile | Folder | Path,
    *,
    config: ByteFile | Path | None = None,
    vocabulary: Vocabulary | None = None,
    eos: int | None = None,
) -> AddressSpec:
    """The spec of a checkpoint, its config held against the shapes and constants in its tensors.

    Parameters
    ----------
    place
        A directory with .safetensors files, or one of them. A file may hold a part of the tables: what it holds is
        checked.
    config
        The model's config; by default the config.json beside the tensors, where there is one. Without any, tensors
        that equal the constants of a preset take the rest from it.
    vocabulary
        As for `spec_from_config`.
    eos
        The end of sequence, where the config holds a list or none.

    Raises
    ------
    InvalidInput
        No table there, a damaged header, or no config where the tensors are those of no preset.
    SpecMismatch
        What the tensors say and what the config derives differ.
    """
    place = as_place(place)
    return spec_from_headers(place, checkpoint_headers(place), config=config, vocabulary=vocabulary, eos=eos)


def spec_from_headers(
    place: ByteFile | Folder,
    headers: Sequence[SafetensorsHeader],
    *,
    config: ByteFile | Path | None = None,
    vocabulary: Vocabulary | None = None,
    eos: int | None = None,
) -> AddressSpec:
    """The same from headers that were read at `place` already; what only they say is not asked again."""
    tables = find_tables(place, headers)
    if config is None:
        config = (place if isinstance(place, Folder) else place.folder()).find(CONFIG_NAME)
    if config is None:
        return _spec_from_preset(place, tables, vocabulary, eos)
    spec = spec_from_config(config, vocabulary=vocabulary, eos=eos)
    if (difference := contradiction(spec, tables.findings)) is not None:
        raise SpecMismatch(f"{difference}; they belong to different models, or one of them was changed")
    return replace(spec, provenance=f"{spec.provenance}, held against the tensors of {place.name}")


def _spec_from_preset(
    place: ByteFile | Folder, tables: FoundTables, vocabulary: Vocabulary | None, eos: int | None
) -> AddressSpec:
    is_evidence = any(finding.fact not in (Fact.ROWS_AT_LEAST, Fact.ROW_WIDTH) for finding in tables.findings)
    for name in tables.presets if is_evidence else ():
        recipe = PRESETS[name]
        columns = {finding.column for finding in tables.findings if finding.column is not None}
        if columns and len(columns) != sum(recipe.outline().heads):
            continue
        if contradiction(_sizes_of(recipe), tables.findings) is None:
            spec = recipe.resolve(vocabulary=vocabulary)
            if eos is not None and eos not in spec.history.boundary_ids:
                raise SpecMismatch(
                    f"{place.where}: its arrays are those of the preset {name}, whose history ends at "
                    f"{spec.history.boundary_ids}, --eos says {eos}; lay the model's config.json beside them"
                )
            return replace(spec, provenance=f"preset {name}, whose constants {place.name} holds")
    compared = f"the preset {' or '.join(tables.presets)}" if tables.presets else "any preset"
    raise InvalidInput(
        f"{place.where}: found tables of {tables.family} and no {CONFIG_NAME} beside them, and they are not known to "
        f"be those of {compared}; lay the model's config.json beside them"
    )


def _sizes_of(recipe: Recipe) -> AddressSpec:
    """The recipe's spec as far as tensors tell it: moduli, offsets and rows need no vocabulary."""
    if isinstance(recipe, DeepSeekRecipe) and recipe.canonical_size is None:
        recipe = replace(recipe, canonical_size=1, fill_id=0)
    return recipe.resolve()


def spec_from_gguf(
    file: ByteFile | Path, *, vocabulary: Vocabulary | None = None, eos: int | None = None
) -> AddressSpec:
    """The spec in a GGUF file's metadata, under any spelling that is published for DeepSeek's or Qwen's tables.

    Parameters
    ----------
    file
        A .gguf; of one that is split, the part with the metadata, which is the first.
    vocabulary
        Bound to the spec; gives the compressed vocabulary's size and the padding's canonical id where the file does
        not.
    eos
        Held against the file's own.

    Raises
    ------
    InvalidInput
        No such metadata, a key that is missing or stored as floats, or a damaged header.
    SpecMismatch
        Keys contradict each other, the shape of a table, the vocabulary, or what the recipe derives from them.
    """
    model = read_model(as_file(file), vocabulary=vocabulary, eos=eos)
    if (difference := contradiction(model.spec, model.findings)) is not None:
        raise SpecMismatch(
            f"{difference}; the file was changed or converted wrongly, or its model follows another recipe: then give "
            "its constants as a spec file"
        )
    return model.spec if vocabulary is None else model.spec.with_vocabulary(vocabulary)
