"""Sources of one of the known forms in safetensors files: where each tensor's rows belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engram_tables.address.released.findings import contradiction
from engram_tables.address.released.tensors import find_tables
from engram_tables.address.spec import AddressSpec
from engram_tables.byte_files import ByteFile, Folder
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.safetensors_file import SafetensorsHeader, missing_files
from engram_tables.storage.sources.assembling import (
    Container,
    SmallTensor,
    Stretch,
    assemble,
    check_layers,
    layer_in,
)
from engram_tables.storage.sources.pieces import (
    RECORDS,
    WEIGHTS,
    Found,
    FoundTensor,
    Piece,
    Placing,
    find_pieces,
    is_table_name,
    listed,
    looks_like_rows,
)
from engram_tables.storage.sources.row_formats import RowFormat, row_format
from engram_tables.storage.sources.source import Source

# Of constants that lie beside rows and are kept with them: a hash has some dozens of numbers.
_MAX_SMALL_BYTES = 2**16
_CONSTANTS = (
    "layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets", "multi_head_embedding.offsets",
)  # fmt: skip
_ALIGNMENT = 8


def safetensors_source(
    place: ByteFile | Folder,
    headers: Sequence[SafetensorsHeader],
    *,
    spec: AddressSpec,
    layers: Sequence[int] | None,
    opaque: bool,
) -> Source:
    """The tables among the tensors of `headers`, read at `place` and held against `spec`.

    Raises
    ------
    InvalidInput
        No table, one that is not whole, or rows that no codec reads.
    SpecMismatch
        Shapes or constants differ from the spec.
    """
    where = place.where
    found = find_pieces(where, headers)
    if found is None:
        raise _no_table(place, headers, spec)
    check_findings(place, headers, spec)
    by_layer = _by_layer(where, found, spec)
    if layers is not None:
        wanted = check_layers(where, spec, layers)
        by_layer = {layer_id: pieces for layer_id, pieces in by_layer.items() if layer_id in wanted}
    form = _row_format(where, found, by_layer, spec, opaque=opaque)
    stretches = []
    for layer_id, pieces in by_layer.items():
        for piece, first_row in zip(pieces, _first_rows(where, found, pieces, spec, layer_id), strict=True):
            stretches += stretches_of(piece, layer_id, first_row)
    return assemble(
        where=where,
        form=_form_name(found),
        container="safetensors",
        spec=spec,
        row_format=form,
        stretches=stretches,
        containers=[container_of(header) for header in headers],
        small=_small(found, headers),
        layers=layers,
        is_whole=isinstance(place, Folder),
        notes=_notes(place, found, form, spec),
    )


def is_table_or_constant(name: str) -> bool:
    """Whether a tensor of this name holds rows of a table, or is kept with them."""
    return is_table_name(name) or name.endswith(_CONSTANTS)


def check_findings(place: ByteFile | Folder, headers: Sequence[SafetensorsHeader], spec: AddressSpec) -> None:
    """Raise SpecMismatch where shapes and constants among the tensors contradict `spec`."""
    difference = contradiction(spec, find_tables(place, headers).findings)
    if difference is not None:
        raise SpecMismatch(f"{difference}; they belong to different models, or one of them was changed")


def container_of(header: SafetensorsHeader) -> Container:
    """A safetensors file beside its rows."""
    return Container(
        file=header.file, alignment=_ALIGNMENT, metadata=header.metadata, tensor_names=tuple(header.tensors)
    )


def stretches_of(piece: Piece, layer_id: int, first_row: int) -> list[Stretch]:
    """The parts of a piece, in the order of a record."""
    return [
        Stretch(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            file=tensor.header.file,
            start=tensor.start,
            stop=tensor.stop,
            layer_id=layer_id,
            part_idx=part_idx,
            first_row=first_row,
            n_rows=piece.n_rows,
        )
        for part_idx, tensor in enumerate(piece.in_order())
    ]


def _row_format(
    where: str, found: Found, by_layer: Mapping[int, Sequence[Piece]], spec: AddressSpec, *, opaque: bool
) -> RowFormat:
    """The one format of all pieces that are taken."""
    pieces = [piece for of_layer in by_layer.values() for piece in of_layer]
    if not pieces:
        raise InvalidInput(
            f"{where}: found {listed(piece.stem for piece in found.pieces)} and no table of the layers that were asked "
            "for, expected one; name the file that holds it, or other layers"
        )
    first = pieces[0]
    for piece in pieces:
        if piece.columns() != first.columns():
            raise InvalidInput(
                f"{listed(piece.in_order())}: found beside {listed(first.in_order())}, expected tables and "
                "shards of one format; they belong to different models"
            )
    scalars = [scalar for of_layer in found.scalars.values() for scalar in of_layer]
    scalars = [scalar for scalar in scalars if any(_covers(scalar, piece) for piece in pieces)]
    for piece in pieces:
        if scalars and not any(_covers(scalar, piece) for scalar in scalars):
            raise InvalidInput(
                f"{where}: found {listed(scalars)} and none for {piece.stem}, expected a scale for all rows or for "
                "none; lay the missing file beside it"
            )
    metadata = next(iter(first.tensors.values())).header.metadata
    return row_format(first, row_width=spec.row_width, scalars=scalars, metadata=metadata, opaque=opaque)


def _covers(scalar: FoundTensor, piece: Piece) -> bool:
    """Whether a tensor of one value speaks of a piece's rows: it lies beside the piece, or beside all shards."""
    stem = scalar.name.rpartition(".")[0]
    return piece.stem == stem or piece.stem.startswith(f"{stem}.")


def _by_layer(where: str, found: Found, spec: AddressSpec) -> dict[int, list[Piece]]:
    pieces: dict[int, list[Piece]] = {}
    stems: dict[int, str] = {}
    for piece in found.pieces:
        # Heads of their own are numbered, layers are not.
        stated = None if found.form.placing is Placing.COLUMNS or found.form.name == "gemma" else piece.layer_id
        layer_id = layer_in(f"{where}: {piece.stem}", spec, stated)
        stem = piece.stem.rpartition("ngram_embedding")[0]
        if stems.setdefault(layer_id, stem) != stem and found.form.placing is Placing.SHARDS:
            raise InvalidInput(
                f"{where}: found shards under {stems[layer_id]!r} and under {stem!r}, expected those of one table for "
                f"layer {layer_id}; name the file that holds the one you mean"
            )
        pieces.setdefault(layer_id, []).append(piece)
    return pieces


def _first_rows(where: str, found: Found, pieces: Sequence[Piece], spec: AddressSpec, layer_id: int) -> list[int]:
    """Where the rows of each piece begin in their layer."""
    layer = spec.layer(layer_id)
    match found.form.placing:
        case Placing.SHARDS:
            return _shard_rows(where, pieces, layer.n_rows)
        case Placing.COLUMNS:
            moduli = [modulus for heads in layer.moduli for modulus in heads]
            for piece in pieces:
                if piece.number >= len(moduli) or piece.n_rows != moduli[piece.number]:
                    expected = f"{moduli[piece.number]} rows" if piece.number < len(moduli) else f"{len(moduli)} tables"
                    raise SpecMismatch(
                        f"{where}: {piece.stem} has {piece.n_rows} rows, the spec {spec.name} says {expected}; they "
                        "belong to different models"
                    )
            return [layer.offsets[piece.number] for piece in pieces]
        case _:
            if pieces[0].n_rows != layer.n_rows:
                raise SpecMismatch(
                    f"{where}: {pieces[0].stem} has {pieces[0].n_rows} rows, the spec {spec.name} says {layer.n_rows}; "
                    "they belong to different models"
                )
            return [0]


def _shard_rows(where: str, pieces: Sequence[Piece], n_rows: int) -> list[int]:
    """Shards have equally many rows, but for those at the table's end."""
    shard_rows = max(piece.n_rows for piece in pieces)
    number = pieces[0].number if len(pieces) == 1 else 0
    if number and (n_rows - shard_rows) % number == 0 and n_rows - shard_rows > number * shard_rows:
        raise InvalidInput(
            f"{where}: found the one shard {pieces[0].stem} of {shard_rows} rows, expected another beside it: it may "
            "be a shorter last one, so where it begins is not known; name the directory"
        )
    for piece in pieces:
        expected = max(0, min(shard_rows, n_rows - piece.number * shard_rows))
        if piece.n_rows != expected:
            raise SpecMismatch(
                f"{where}: {piece.stem} has {piece.n_rows} rows, expected {expected}: shards of {shard_rows} rows make "
                f"up the {n_rows} of the spec; a shard is missing, or of another table"
            )
    return [min(piece.number * shard_rows, n_rows) for piece in pieces]


def _form_name(found: Found) -> str:
    first = found.pieces[0].tensors
    is_mlx = WEIGHTS in first and first[WEIGHTS].dtype == "U32"
    return "mlx" if is_mlx and found.form.name in ("deepseek", "qwen", "gemma") else found.form.name


def _small(found: Found, headers: Sequence[SafetensorsHeader]) -> list[SmallTensor]:
    scalars = {scalar.name for of_layer in found.scalars.values() for scalar in of_layer}
    return [
        SmallTensor(name=name, dtype=info.dtype, shape=info.shape, file=header.file, start=info.start, stop=info.stop)
        for header in headers
        for name, info in header.tensors.items()
        if (name in scalars or name.endswith(_CONSTANTS)) and info.stop - info.start <= _MAX_SMALL_BYTES
    ]


def _notes(place: ByteFile | Folder, found: Found, form: RowFormat, spec: AddressSpec) -> list[str]:
    notes = []
    first = found.pieces[0]
    if form.codec.name.startswith("opaque-"):
        notes.append(f"no codec reads {listed(first.in_order())}: rows are taken as {form.codec.name}")
    if RECORDS in first.tensors:
        notes.append("a copy made from another file, which it names; that file was not looked at")
    if not isinstance(place, Folder) and len(found.pieces) < len(spec.layers):
        notes.append(f"{place.name} holds a part of the tables")
    return notes


def _no_table(place: ByteFile | Folder, headers: Sequence[SafetensorsHeader], spec: AddressSpec) -> InvalidInput:
    candidates = [
        FoundTensor(name=name, dtype=info.dtype, shape=info.shape, header=header, start=info.start, stop=info.stop)
        for header in headers
        for name, info in header.tensors.items()
        if looks_like_rows(info.shape, [layer.n_rows for layer in spec.layers])
    ]
    if candidates:
        return InvalidInput(
            f"{place.where}: found no tensor by a known name, and {listed(candidates)} with as many rows as the spec "
            f"{spec.name} says, expected a name of a released form; rename it, or give the file's geometry as raw rows"
        )
    missing = missing_files(place)
    elsewhere = f" ({len(missing)} files of its index are not here, {missing[0]} first)" if missing else ""
    n_tensors = sum(len(header.tensors) for header in headers)
    return InvalidInput(
        f"{place.where}: found {n_tensors} tensors in {len(headers)} files{elsewhere} and no table among them, "
        "expected one by a name of a released form; name the directory that holds it"
    )
