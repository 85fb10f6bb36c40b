"""`engram spec`: show, list, make and export the constants that address a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.console import emit, say, show, show_table
from engram_cli.options import ConfigFile, Force, JsonFlag, LayerIds, Preset, SpecFile, VocabFile
from engram_cli.spec_source import resolve_spec

if TYPE_CHECKING:
    from engram_tables.address.spec import AddressSpec

Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")]


def list_presets(json: JsonFlag = False) -> None:
    """List the presets with their sizes.

    \b
    Examples:
      engram spec list
      engram spec list --json | jq .rows
    """
    from engram_tables.address.recipes import PRESETS

    rows = []
    for recipe in PRESETS.values():
        table_rows = sum(modulus for layer in recipe.moduli() for heads in layer for modulus in heads)
        columns = recipe.heads * len(recipe.orders)
        record = {
            "schema": "engram.preset/1",
            "name": recipe.name,
            "orders": list(recipe.orders),
            "heads": recipe.heads,
            "layers": None if recipe.layer_ids is None else list(recipe.layer_ids),
            "n_layers": recipe.n_layers,
            "row_width": recipe.row_width,
            "rows": table_rows,
            "values": table_rows * (recipe.row_width or 0),
            "rows_per_token": columns * recipe.n_layers,
            "provenance": recipe.provenance,
        }
        if json:
            emit(record)
        layers = "not certain" if recipe.layer_ids is None else ", ".join(map(str, recipe.layer_ids))
        rows.append(
            (recipe.name, ", ".join(map(str, recipe.orders)), layers, recipe.heads, recipe.row_width,
             f"{table_rows:,}", f"{table_rows * (recipe.row_width or 0):,}", columns * recipe.n_layers)
        )  # fmt: skip
    if not json:
        header = ("preset", "orders", "layers", "heads", "width", "rows", "values", "rows a token")
        show_table("", header, rows, left=3)


def show_spec(
    preset: Preset = None,
    spec: SpecFile = None,
    config: ConfigFile = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    json: JsonFlag = False,
) -> None:
    """Print every constant of a spec: primes, offsets, multipliers, fill and fingerprint.

    \b
    Examples:
      engram spec show --preset deepseek-v4.1-flash
      engram spec show --config ./model/config.json --json | jq .fingerprint
      engram spec show --preset engram-27b --layers 2,15
    """
    resolved = resolve_spec(preset=preset, spec=spec, config=config, layers=layers, vocab=vocab)
    if json:
        emit(resolved.to_json())
    else:
        _show_constants(resolved)


def _show_constants(spec: AddressSpec) -> None:
    show(f"name            {spec.name}")
    show(f"from            {spec.provenance}")
    show(f"fingerprint     {spec.fingerprint}")
    show(f"vocabulary      {spec.canonical_size:,} canonical ids, map SHA-256 {spec.vocab_sha256 or 'not stated'}")
    show(f"fill            canonical id {spec.fill_id} where the history is missing")
    show(f"orders          {', '.join(map(str, spec.orders))}, heads {', '.join(map(str, spec.heads))}")
    show(f"row width       {spec.row_width or 'not stated'}")
    for layer in spec.layers:
        show()
        show(f"layer {layer.layer_id}: {layer.n_rows:,} rows")
        show(f"  multipliers, newest token first: {' '.join(map(str, layer.multipliers))}")
        moduli = [modulus for heads in layer.moduli for modulus in heads]
        rows = [
            (order, head, f"{modulus:,}", f"{offset:,}")
            for (order, head), modulus, offset in zip(spec.columns(), moduli, layer.offsets, strict=True)
        ]
        show_table("", ("order", "head", "modulus", "offset"), rows, left=0)


def make_spec(
    output: Output,
    vocab: Annotated[Path, typer.Option("--vocab", metavar="FILE", help="The vocabulary to address.")],
    orders: Annotated[str, typer.Option("--orders", help="Orders, ascending.")] = "2,3,4",
    heads: Annotated[int, typer.Option("--heads", min=1, help="Heads per order.")] = 8,
    rows_per_head: Annotated[
        str, typer.Option("--rows-per-head", help="Smallest modulus of a head: one number, or one per order.")
    ] = "1000000",
    layers: Annotated[str, typer.Option("--layers", help="Layer ids; the multipliers depend on them.")] = "1",
    row_width: Annotated[int, typer.Option("--row-width", min=1, help="Values of one row.")] = 256,
    pad_token: Annotated[int, typer.Option("--pad-token", help="Token id that fills a missing history.")] = 2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the multipliers.")] = 0,
    name: Annotated[str | None, typer.Option("--name", help="A name for people; the file's by default.")] = None,
    force: Force = False,
) -> None:
    """Make a spec of your own by DeepSeek's recipe: unused primes from a base on, seeded odd multipliers.

    \b
    Examples:
      engram spec make --vocab v4.vocab.parquet --orders 2,3 --rows-per-head 500000 -o mine.json
      engram spec make --vocab v4.vocab.parquet --layers 1,14 --rows-per-head 16000000 -o v41.json
    """
    import json as json_module

    from engram_tables.address.recipes import make_recipe
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.files import new_file
    from engram_tables.units import parse_integers

    recipe = make_recipe(
        load_vocabulary(vocab),
        name=name or output.stem,
        orders=parse_integers(orders),
        heads=heads,
        rows_per_head=parse_integers(rows_per_head),
        layer_ids=parse_integers(layers),
        row_width=row_width,
        pad_token=pad_token,
        seed=seed,
    )
    resolved = recipe.resolve()
    with new_file(output, force=force) as file:
        file.write(json_module.dumps(resolved.to_json(), indent=1).encode() + b"\n")
    say(
        f"wrote {output}: {resolved.n_rows:,} rows in {len(resolved.layers)} layers, fingerprint {resolved.fingerprint}"
    )


def export_spec(
    output: Output,
    form: Annotated[
        str, typer.Option("--as", help="json, npz, or gguf (key-values of both public spellings, as JSON).")
    ] = "json",
    preset: Preset = None,
    spec: SpecFile = None,
    config: ConfigFile = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    force: Force = False,
) -> None:
    """Write a spec's constants as JSON, as NumPy arrays, or as GGUF metadata.

    GGUF metadata holds the token map if --vocab is given. Multipliers are decimal strings wherever JSON is written:
    a double does not hold them all.

    \b
    Examples:
      engram spec export --preset deepseek-v4.1-flash --as npz -o v41.npz
      engram spec export --config config.json --vocab v4.vocab.parquet --as gguf -o kv.json
    """
    import json as json_module

    from engram_tables.address.recipes import gguf_key_values
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.files import new_file

    if form not in ("json", "npz", "gguf"):
        raise typer.BadParameter(f"{form!r}; choose json, npz or gguf", param_hint="--as")
    resolved = resolve_spec(preset=preset, spec=spec, config=config, layers=layers, vocab=vocab)
    if form == "npz":
        data = resolved.to_npz()
    else:
        vocabulary = None if vocab is None else load_vocabulary(vocab)
        value = resolved.to_json() if form == "json" else gguf_key_values(resolved, vocabulary=vocabulary)
        data = json_module.dumps(value, indent=1).encode() + b"\n"
    with new_file(output, force=force) as file:
        file.write(data)
    say(f"wrote {output}, {len(data):,} bytes, fingerprint {resolved.fingerprint}")
