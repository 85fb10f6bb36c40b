"""`engram hash`: which rows a text or a run of ids owns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_cli.console import emit, say, show_table
from engram_cli.options import Eos, Force, JsonFlag, LayerIds, ModelPath, Preset, SpecFile, Threads, VocabFile
from engram_cli.spec_source import resolve_with_vocabulary

if TYPE_CHECKING:
    from engram_tables.address.hashing import HashedTokens
    from engram_tables.address.spec import AddressSpec


def hash_ids(
    preset: Preset = None,
    spec: SpecFile = None,
    model: ModelPath = None,
    eos: Eos = None,
    layers: LayerIds = None,
    vocab: VocabFile = None,
    text: Annotated[str | None, typer.Option("--text", help="Text to tokenise and hash.")] = None,
    ids: Annotated[str | None, typer.Option("--ids", help="Token ids: 0,3,15; -1 where dead.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Integers (tokens,) in a .npy, or UTF-8 text otherwise."),
    ] = None,
    canonical: Annotated[bool, typer.Option("--canonical", help="The ids are canonical already.")] = False,
    dead: Annotated[str | None, typer.Option("--dead", help="Positions that take no part: 3,7-9.")] = None,
    history: Annotated[
        str | None,
        typer.Option(
            "--history",
            help="Ids that stand before this chunk, oldest first, -1 where dead; none: it begins here.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.npy", help="Write rows as int64 (tokens, layers, columns)."),
    ] = None,
    threads: Threads = None,
    force: Force = False,
    json: JsonFlag = False,
) -> None:
    """Print or write the rows that each token's n-grams own.

    Row ids are global within their layer; columns are order-major, head-minor. Keys are the mixes before the modulus.
    Token ids go through --vocab; ids given with --canonical do not. In a shell, write --ids=-1,3 for a list that
    begins with a minus.

    \b
    Examples:
      engram hash --preset deepseek-v4.1-flash --vocab v4.vocab.parquet --text "the cat sat"
      engram hash --preset deepseek-v4.1-flash --canonical --ids 0,3,15 --json
      engram hash --spec mine.json --vocab v4.vocab.parquet --file ids.npy -o rows.npy
      engram hash --preset deepseek-v4.1-flash --canonical --ids 15 --history 0,3
    """
    from engram_tables.address.hashing import hash_source
    from engram_tables.address.vocabulary import load_vocabulary
    from engram_tables.files import new_file, refuse_existing
    from engram_tables.units import parse_integers

    if sum(source is not None for source in (text, ids, file)) != 1:
        raise typer.BadParameter("give exactly one of --text, --ids and --file")
    if output is not None:
        refuse_existing(output, force=force)
    vocabulary = None if vocab is None else load_vocabulary(vocab)
    resolved = resolve_with_vocabulary(
        preset=preset, spec=spec, model=model, eos=eos, layers=layers, vocabulary=vocabulary
    )
    hashed = hash_source(
        resolved,
        vocabulary=vocabulary,
        text=text,
        ids=None if ids is None else parse_integers(ids),
        file=file,
        canonical=canonical,
        dead_positions=() if dead is None else parse_integers(dead),
        history=() if history is None else parse_integers(history),
        threads=threads,
    )
    if vocabulary is not None and vocabulary.canonical_size < resolved.canonical_size:
        say(
            f"note: the vocabulary of {vocabulary.source} has {vocabulary.canonical_size:,} ids, {resolved.name} knows "
            f"{resolved.canonical_size:,}: is it the model's own?"
        )
    if output is not None:
        import numpy as np

        with new_file(output, force=force) as out:
            # Not np.save: it writes past the file object, and a full disk then has no error number.
            np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(hashed.addresses.rows))
            out.write(hashed.addresses.rows.reshape(-1).view(np.uint8).data)
        say(f"wrote {output}: int64 {hashed.addresses.rows.shape} (tokens, layers, columns)")
    elif json:
        for position in range(len(hashed.canonical_ids)):
            emit(_record(hashed, resolved, position))
    else:
        _show_rows(hashed, resolved)


def _record(hashed: HashedTokens, spec: AddressSpec, position: int) -> dict[str, object]:
    from engram_tables.address.hashing import exact_keys

    rows, keys = hashed.addresses
    token_ids = hashed.token_ids
    return {
        "schema": "engram.hash/1",
        "position": position,
        "token_id": None if token_ids is None else int(token_ids[position]),
        "canonical_id": None if hashed.dead[position] else int(hashed.canonical_ids[position]),
        "dead": bool(hashed.dead[position]),
        "layer_ids": list(spec.layer_ids),
        "orders": list(spec.orders),
        "rows": rows[position].tolist(),
        "keys": [[str(key) for key in layer] for layer in exact_keys(keys[position])],
    }


def _show_rows(hashed: HashedTokens, spec: AddressSpec) -> None:
    from engram_tables.address.hashing import exact_keys

    table = []
    for position, canonical_id in enumerate(hashed.canonical_ids.tolist()):
        for layer_idx, layer_id in enumerate(spec.layer_ids):
            column = 0
            for order_idx, (order, n_heads) in enumerate(zip(spec.orders, spec.heads, strict=True)):
                rows = hashed.addresses.rows[position, layer_idx, column : column + n_heads]
                key = exact_keys(hashed.addresses.keys[position, layer_idx, order_idx])
                seen = "dead" if hashed.dead[position] else canonical_id
                table.append((position, seen, layer_id, order, f"{key:016x}", " ".join(map(str, rows.tolist()))))
                column += n_heads
    show_table(
        "",
        ("position", "canonical id" if spec.folded else "token id", "layer", "order", "key", "rows, head by head"),
        table,
        left=0,
    )
