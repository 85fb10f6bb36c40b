"""`engram spec`: show, list, make and export the constants that address a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.console import emit, say, show, show_table
from engram_cli.options import Eos, Force, JsonFlag, LayerIds, ModelPath, Preset, SpecFile, VocabFile
from engram_cli.spec_source import resolve_spec

if TYPE_CHECKING:
    from engram_tables.address.spec import AddressSpec

Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")]


def list_presets(json: JsonFlag = False) -> None:
    """List the presets with their sizes: heads per order, width in values, bytes in the codec of each release.

    \b
    Examples:
      engram spec list
      engram spec list --json | jq '[.name, .table_bytes]'
    """
    from engram_tables.storage.published import published_tables

    rows = []
    for table in published_tables():
        outline = table.outline
        if json:
            emit(
                {
                    "schema": "engram.preset/2",
                    "name": table.name,
                    "family": str(outline.family),
                    "orders": list(outline.orders),
                    "heads": list(outline.heads),
                    "layers": None if outline.layer_ids is None else list(outline.layer_ids),
                    "rows_per_table": list(outline.rows_per_table),
                    "rows": outline.n_rows,
                    "row_width": outline.row_width,
                    "values": outline.n_rows * (outline.row_width or 0),
                    "codec": table.codec,
                    "row_bytes": table.row_bytes,
                    "rows_per_token": outline.rows_per_token,
                    "bytes_per_token": table.bytes_per_token,
                    "table_bytes": table.table_bytes,
                    "provenance": table.provenance,
                }
            )
        rows.append(
            (table.name, _range(outline.orders), _uniform(outline.heads), outline.row_width, f"{outline.n_rows:,}",
             f"{table.row_bytes:,}", outline.rows_per_token, f"{table.bytes_per_token:,}", f"{table.table_bytes:,}")
        )  # fmt: skip
    if not json:
        header = ("preset", "orders", "heads", "width", "rows", "bytes a row", "rows a token", "bytes a token", "bytes")
        show_table("", header, rows)


def _range(orders: tuple[int, ...]) -> str:
    return str(orders[0]) if len(orders) == 1 else f"{orders[0]}-{orders[-1]}"


def _uniform(heads: tuple[int, ...]) -> str:
    return str(heads[0]) if len(set(heads)) == 1 else ", ".join(map(str, heads))


def show_spec(
    preset: Preset = None,
    spec: SpecFile = None,
    model: ModelPath = None,
    eos: Eos = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    json: JsonFlag = False,
) -> None:
    """Print every constant of a spec: primes, offsets, multipliers, fill and fingerprint.

    \b
    Examples:
      engram spec show --preset deepseek-v4.1-flash
      engram spec show --model ./LongCat-Flash-Lite
      engram spec show --model ./model/config.json --json | jq .fingerprint
      engram spec show --preset engram-27b --layers 2,15
    """
    resolved = resolve_spec(preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocab=vocab)
    if json:
        emit(resolved.to_json())
    else:
        _show_constants(resolved)


def _show_constants(spec: AddressSpec) -> None:
    ids = "canonical ids" if spec.folded else "token ids, hashed as they are"
    show(f"name            {spec.name}")
    show(f"from            {spec.provenance}")
    show(f"fingerprint     {spec.fingerprint}")
    show(f"ids             {spec.canonical_size:,} {ids}")
    if spec.folded or spec.vocab_sha256:
        show(f"map SHA-256     {spec.vocab_sha256 or 'not stated'}")
    show(f"hash            {_hash_words(spec)}")
    for label, line in _history_words(spec):
        show(f"{label:15} {line}")
    show(f"orders          {', '.join(map(str, spec.orders))}, heads {', '.join(map(str, spec.heads))}")
    show(f"row width       {spec.row_width or 'not stated'}")
    if spec.slices:
        show(f"slices          values start-stop of each row, by layer: {_slice_words(spec)}")
    if spec.separate_heads:
        show("tensors         one a head in releases; row ids here run through all of them, head after head")
    show(f"reduced         {spec.reduce or 'not stated'}")
    for layer in spec.layers:
        show()
        show(f"layer {layer.layer_id}: {layer.n_rows:,} rows")
        if layer.multipliers:
            show(f"  {_multiplier_words(spec)}: {' '.join(map(str, layer.multipliers))}")
        moduli = [modulus for heads in layer.moduli for modulus in heads]
        rows = [
            (order, head, f"{modulus:,}", f"{offset:,}")
            for (order, head), modulus, offset in zip(spec.columns, moduli, layer.offsets, strict=True)
        ]
        show_table("", ("order", "head", "modulus", "offset"), rows, left=0)


def _hash_words(spec: AddressSpec) -> str:
    rules = [str(spec.mix.family)]
    rules += [f"{spec.mix.word_bits}-bit words"] if spec.mix.family == "xor-multiply" else []
    rules += ["exact integers, reduced by each modulus"] if spec.mix.family == "polynomial" else []
    rules += ["every order begins at the oldest token of the window"] if spec.mix.lagged else []
    return ", ".join(rules)


def _history_words(spec: AddressSpec) -> list[tuple[str, str]]:
    history = spec.history
    lines = [("fill", f"id {history.fill_id}, where the history is missing or dead")]
    if history.boundary_ids:
        names = ", ".join(map(str, history.boundary_ids))
        seen = "sees it" if history.boundary_visible else f"sees id {history.fill_id}"
        own = "nothing" if history.boundary_closed else "its past"
        lines.append(("boundary", f"id {names}; the next token {seen}, the boundary itself {own}"))
    if history.replaced:
        ranges = ", ".join(f"{start}-{stop - 1}" for start, stop in history.replaced)
        lines.append(("replaced", f"ids {ranges} are hashed as {history.replacement}"))
    return lines


def _slice_words(spec: AddressSpec) -> str:
    return ", ".join(f"{piece.layer_id}: {piece.start}-{piece.stop}" for piece in spec.slices)


def _multiplier_words(spec: AddressSpec) -> str:
    match spec.mix.family:
        case "polynomial":
            return "base"
        case "salted-affine":
            return "multipliers, column by column, newest token first"
        case _:
            return f"multipliers, {'oldest' if spec.mix.oldest_first else 'newest'} token first"


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
        str,
        typer.Option("--as", help="json, npz, gguf (key-values of the public spellings, as JSON), or c (a header)."),
    ] = "json",
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="With --as c: what every name begins with; the spec's name if unset.")
    ] = None,
    preset: Preset = None,
    spec: SpecFile = None,
    model: ModelPath = None,
    eos: Eos = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    force: Force = False,
) -> None:
    """Write a spec's constants as JSON, as NumPy arrays, as GGUF metadata, or as a C header.

    GGUF metadata holds the token map if --vocab is given. Multipliers are decimal strings wherever JSON is written:
    a double does not hold them all.

    \b
    Examples:
      engram spec export --preset deepseek-v4.1-flash --as npz -o v41.npz
      engram spec export --preset qwen3.8-flash-next --as c --prefix qwen -o qwen_rows.h
      engram spec export --model config.json --vocab v4.vocab.parquet --as gguf -o kv.json
    """
    import json as json_module

    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.files import new_file

    resolved = resolve_spec(preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocab=vocab)
    match form:
        case "npz":
            data = resolved.to_npz()
        case "json":
            data = json_module.dumps(resolved.to_json(), indent=1).encode() + b"\n"
        case "gguf":
            from engram_tables.address.export.gguf_metadata import gguf_key_values

            vocabulary = None if vocab is None else load_vocabulary(vocab)
            data = json_module.dumps(gguf_key_values(resolved, vocabulary=vocabulary), indent=1).encode() + b"\n"
        case "c":
            from engram_tables.address.export.c_header import c_header

            data = c_header(resolved, prefix=prefix).encode("ascii")
        case _:
            raise typer.BadParameter(f"{form!r}; choose json, npz, gguf or c", param_hint="--as")
    with new_file(output, force=force) as file:
        file.write(data)
    say(f"wrote {output}, {len(data):,} bytes, fingerprint {resolved.fingerprint}")
