"""One spec from the options that name one: --preset, --spec or --model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from engram_tables.units import parse_integers

if TYPE_CHECKING:
    from engram_tables.address.spec import AddressSpec
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.measure.planning.sizes import TableSizes


def resolve_spec(
    *,
    preset: str | None = None,
    spec: Path | None = None,
    model: str | Path | None = None,
    eos: int | None = None,
    layers: str | None = None,
    vocab: Path | None = None,
) -> AddressSpec:
    """The spec that exactly one of preset, spec and model names, held against the vocabulary where one is given."""
    from engram_tables.address.vocabulary import load_vocabulary

    vocabulary = None if vocab is None else load_vocabulary(vocab)
    return resolve_with_vocabulary(preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocabulary=vocabulary)


def table_sizes(
    *, preset: str | None, spec: Path | None, model: str | None, eos: int | None, layers: str | None,
    vocab: Path | None, codec: str | None, row_bytes: int | None,
) -> TableSizes:  # fmt: skip
    """What a table of that spec weighs; a preset's sizes are known even where its layers or its vocabulary are not."""
    from engram_tables.measure.planning.sizes import sizes_of_preset, sizes_of_spec

    if codec is not None and row_bytes is not None:
        raise typer.BadParameter("give --codec or --row-bytes, not both")
    if preset is not None and (spec, model, eos, layers, vocab) == (None,) * 5:
        return sizes_of_preset(preset, codec=codec, row_bytes=row_bytes)
    resolved = resolve_spec(preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocab=vocab)
    return sizes_of_spec(resolved, codec=codec, row_bytes=row_bytes)


def resolve_with_vocabulary(
    *,
    preset: str | None,
    spec: Path | None,
    model: str | Path | None,
    eos: int | None,
    layers: str | None,
    vocabulary: Vocabulary | None,
) -> AddressSpec:
    """The same with a vocabulary that is loaded already."""
    from engram_tables.address.presets import PRESETS, load_spec
    from engram_tables.address.released.models import spec_from_model
    from engram_tables.errors import InvalidInput

    if sum(source is not None for source in (preset, spec, model)) != 1:
        raise typer.BadParameter("give exactly one of --preset, --spec and --model")
    if eos is not None and model is None:
        raise typer.BadParameter("--eos goes only with --model: presets and specs name their boundaries")
    layer_ids = None if layers is None else parse_integers(layers)
    if model is not None:
        if layer_ids is not None:
            raise typer.BadParameter("--layers goes only with --preset: a model names its layers")
        return spec_from_model(model, vocabulary=vocabulary, eos=eos)
    if preset is not None and preset not in PRESETS:
        raise InvalidInput(f"preset {preset!r}: not known; the presets are {', '.join(PRESETS)}")
    return load_spec(preset if preset is not None else Path(str(spec)), layers=layer_ids, vocabulary=vocabulary)
