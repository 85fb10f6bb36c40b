"""Tables in GGUF files: DeepSeek's one a layer, Qwen's one. Rows of a type that no codec reads are taken as bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from engram_tables.address.spec import AddressSpec
from engram_tables.byte_files import ByteFile, Folder
from engram_tables.errors import InvalidInput
from engram_tables.gguf_file import GgufHeader, GgufTensor, read_gguf
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.sources.assembling import Container, Stretch, assemble, layer_in
from engram_tables.storage.sources.pieces import listed, looks_like_rows
from engram_tables.storage.sources.row_formats import RowFormat, packed
from engram_tables.storage.sources.source import Source

_TABLE = re.compile(r"^(?:blk\.(?P<layer>[0-9]{1,9})\.engram_embd|per_layer_token_embd)\.weight$")
# Some types come with a scale of their own; the values of such a table are not what its rows alone decode to.
_BESIDE = re.compile(r"^(?:blk\.[0-9]{1,9}\.engram_embd|per_layer_token_embd)\.(?:\w*scales?|\w*bias(?:es)?)$")
_PART = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.gguf$")
_ENGRAM_KEY = re.compile(r"(?:^|\.)engram[._](encoding|storage)$")
_ROW264 = "e4m3_e8m0_32_row264"
_CODECS = {
    "F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8_0", "Q4_0": "q4_0", "IQ4_NL": "iq4_nl",
}  # fmt: skip
# Above this a header's keys are not kept for writing the file again.
_MAX_KEPT_BYTES = 2**21


def gguf_files(place: ByteFile | Folder) -> list[ByteFile]:
    """The .gguf at `place` and the other parts of a split one, the part with the metadata first.

    Raises
    ------
    InvalidInput
        No .gguf there, more than one model, or a part that is missing.
    """
    folder = place if isinstance(place, Folder) else place.folder()
    if isinstance(place, Folder):
        names = [name for name in place.names() if name.endswith(".gguf")]
        stems = {_PART.sub("", name) for name in names}
        if len(stems) != 1:
            raise InvalidInput(
                f"{place.where}: found {len(stems)} models as .gguf ({listed(sorted(stems))}), expected one; name it"
            )
        name = min(names)
    else:
        name = place.name
    part = _PART.search(name)
    if part is None:
        return [place if not isinstance(place, Folder) else folder.open(name)]
    n_parts = int(part[2])
    if not 1 <= n_parts <= 99_999:
        raise InvalidInput(f"{folder.where}: found {name}, expected a split of 1 to 99999 parts; name its first part")
    stem = name[: part.start()]
    return [folder.open(f"{stem}-{number:05d}-of-{part[2]}.gguf") for number in range(1, n_parts + 1)]


def is_gguf_table(name: str) -> bool:
    """Whether a tensor of this name holds rows of a table."""
    return _TABLE.search(name) is not None


def gguf_source(
    where: str, files: Sequence[ByteFile], *, spec: AddressSpec, layers: Sequence[int] | None, opaque: bool
) -> Source:
    """The tables among the tensors of `files`, held against `spec`.

    Raises
    ------
    InvalidInput
        No table, tables of two types, a type that no codec reads, or rows kept in a file of their own.
    SpecMismatch
        Shapes differ from the spec.
    """
    headers = [read_gguf(file, lambda key: _ENGRAM_KEY.search(key) is not None) for file in files]
    texts = _texts(headers)
    if texts.get("storage", "internal") == "external":
        raise InvalidInput(
            f"{where}: its rows are kept in files of their own (engram.storage external), expected them among its "
            "tensors; give such a file's geometry as raw rows"
        )
    form: RowFormat | None = None
    stretches = []
    for header in headers:
        for name, tensor in header.tensors.items():
            if _BESIDE.search(name) is not None:
                raise InvalidInput(
                    f"{header.where}: found {name} {tensor.type_name} {list(tensor.dims)} beside a table, expected "
                    "rows that are their values alone; convert the model again"
                )
            if (match := _TABLE.search(name)) is None:
                continue
            stated = None if match["layer"] is None else int(match["layer"])
            layer_id = layer_in(f"{header.where}: {name}", spec, stated)
            found = _row_format(header, name, tensor, spec, texts.get("encoding"), opaque=opaque)
            if form not in (None, found):
                raise InvalidInput(f"{header.where}: {name} is {tensor.type_name}, expected tables of one type")
            form = found
            n_rows = tensor.dims[1]
            stretches.append(
                Stretch(
                    name=name,
                    dtype=tensor.type_name,
                    shape=tensor.dims,
                    file=header.file,
                    start=tensor.offset,
                    stop=tensor.offset + n_rows * found.row_bytes,
                    layer_id=layer_id,
                    part_idx=0,
                    first_row=0,
                    n_rows=n_rows,
                )
            )
    if form is None:
        raise _no_table(where, headers, spec)
    return assemble(
        where=where,
        form="gguf",
        container="gguf",
        spec=spec,
        row_format=form,
        stretches=stretches,
        containers=[
            Container(
                file=header.file,
                alignment=header.alignment,
                metadata=_kept_keys(header),
                tensor_names=tuple(header.tensors),
            )
            for header in headers
        ],
        layers=layers,
        is_whole=True,
        notes=[f"no codec reads rows of {form.codec.row_bytes(form.row_width)} bytes: they are taken as they are"]
        if form.codec.name.startswith("opaque-")
        else (),
    )


def _texts(headers: Sequence[GgufHeader]) -> dict[str, str]:
    """The keys that say how rows are stored."""
    texts: dict[str, str] = {}
    for header in headers:
        for key, value in header.values.items():
            match = _ENGRAM_KEY.search(key)
            if match is not None and isinstance(value.value, str):
                texts.setdefault(match[1], value.value)
    return texts


def _row_format(
    header: GgufHeader, name: str, tensor: GgufTensor, spec: AddressSpec, encoding: str | None, *, opaque: bool
) -> RowFormat:
    where = f"{header.where}: {name}"
    if len(tensor.dims) != 2 or not all(tensor.dims):
        raise InvalidInput(f"{where} has dimensions {tensor.dims}, expected rows of values; convert the model again")
    width = spec.row_width or (tensor.dims[0] if tensor.type_name != "I8" else None)
    if width is None:
        raise InvalidInput(
            f"{where}: nothing says how many values its rows of {tensor.dims[0]} bytes have; give a spec"
        )
    if tensor.type_name in _CODECS and tensor.dims[0] == width:
        return packed(get_codec(_CODECS[tensor.type_name]), width)
    is_row264 = encoding in (None, _ROW264) and tensor.type_name == "I8" and width % 32 == 0
    if is_row264 and tensor.dims[0] == width + width // 32:
        return packed(get_codec("fp8-e4m3-e8m0"), width)
    row_bytes, remainder = divmod(tensor.n_bytes, tensor.dims[1])
    if not opaque or remainder or not row_bytes:
        raise InvalidInput(
            f"{where} is {tensor.type_name} {list(tensor.dims)}"
            + (f" of encoding {encoding}" if encoding else "")
            + f", expected {width} values a row as {_ROW264} or {', '.join(_CODECS)}; take the rows as opaque bytes "
            "(--opaque)"
        )
    return packed(get_codec(f"opaque-{row_bytes}"), width)


def _kept_keys(header: GgufHeader) -> dict[str, str]:
    """The key-values as they stand in the file, for whoever writes it again."""
    n_bytes = header.key_values_stop - header.key_values_start
    if n_bytes > _MAX_KEPT_BYTES:
        return {}
    data = header.file.read(header.key_values_start, n_bytes)
    return {"version": str(header.version), "n_key_values": str(header.n_key_values), "key_values": data.hex()}


def _no_table(where: str, headers: Sequence[GgufHeader], spec: AddressSpec) -> InvalidInput:
    sizes = [layer.n_rows for layer in spec.layers]
    candidates = [
        f"{name} {tensor.type_name} {list(tensor.dims)}"
        for header in headers
        for name, tensor in header.tensors.items()
        if looks_like_rows(tensor.dims[::-1], sizes)
    ]
    n_tensors = sum(len(header.tensors) for header in headers)
    found = f"{listed(candidates)} with as many rows as a table" if candidates else f"{n_tensors} tensors and no table"
    return InvalidInput(
        f"{where}: found {found}, expected blk.N.engram_embd.weight or per_layer_token_embd.weight; name the file that "
        "holds the table"
    )
