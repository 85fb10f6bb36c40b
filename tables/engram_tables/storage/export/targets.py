"""What each form of file asks of a table: codec, addressing, and the tensors that hold its rows.

Names and shapes are those that the form's own programs read; where these may choose, the spelling of the release.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np

from engram_tables.address.export.gguf_metadata import gguf_key_values
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, LayerAddressing, MixRule
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.errors import InvalidInput
from engram_tables.safetensors_file import INDEX_NAME
from engram_tables.storage.codecs.codec import BF16, F16, F32, FP8, FP8_SCALAR, INT4_G32, Q8_0, Codec
from engram_tables.storage.export.gguf_bytes import key_value_bytes, place_gguf
from engram_tables.storage.export.placed_files import ExportTensor, PlacedFile, PlacedTensor, Stretch
from engram_tables.storage.export.safetensors_bytes import package_order, place_safetensors

_VALUE_DTYPES = {BF16: "BF16", F16: "F16", F32: "F32", FP8_SCALAR: "F8_E4M3"}
_ROW264_WIDTH = 256
QWEN_TABLE = "per_layer_token_embd.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is exported: the rows of all layers of a spec, as records of one codec.

    Attributes
    ----------
    where
        For messages.
    vocabulary
        Of the table, where it holds one; GGUF metadata carry its map.
    """

    where: str
    spec: AddressSpec
    codec: Codec
    row_width: int
    vocabulary: Vocabulary | None = None

    def sections(self, layer: LayerAddressing, first_row: int, n_rows: int) -> list[Stretch]:
        """The codec's sections of some rows of a layer, each by itself."""
        return [
            Stretch(
                layer_id=layer.layer_id,
                first_row=first_row,
                n_rows=n_rows,
                start=section.start,
                n_bytes=section.n_bytes,
                stride=section.n_bytes,
            )
            for section in self.codec.sections(self.row_width)
        ]

    def whole(self, layer: LayerAddressing, first_row: int, n_rows: int, *, stride: int | None = None) -> Stretch:
        """Whole records of some rows of a layer."""
        n_bytes = self.codec.row_bytes(self.row_width)
        return Stretch(
            layer_id=layer.layer_id,
            first_row=first_row,
            n_rows=n_rows,
            start=0,
            n_bytes=n_bytes,
            stride=stride or n_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a user may choose about the files.

    Attributes
    ----------
    n_parts
        Tensors that a table in Qwen's form is cut into.
    file_bytes
        Files are kept below this where their tensors allow it.
    row_stride
        Raw rows: from one to the next; None for none between them.
    """

    n_parts: int = 128
    file_bytes: int = 5 * 10**9
    row_stride: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A form of file.

    Attributes
    ----------
    codecs
        Those that it can hold, the commonest first; empty for any.
    is_file
        Whether the output is one file, rather than a directory.
    """

    name: str
    codecs: tuple[str, ...]
    is_file: bool
    files: Callable[[Rows, Form], list[PlacedFile]]


def files_of(target: Target, rows: Rows, form: Form) -> list[PlacedFile]:
    """The files of a table in a target's form.

    Raises
    ------
    InvalidInput
        The codec does not fit, or the form cannot say the addressing.
    """
    if target.codecs and rows.codec.name not in target.codecs:
        fitting = " or ".join(target.codecs)
        raise InvalidInput(
            f"{rows.where}: found rows in {rows.codec.name}, expected {fitting} for --to {target.name}; re-encode them "
            f"with --codec {target.codecs[0]}, or choose another form"
        )
    return target.files(rows, form)


def _deepseek(rows: Rows, form: Form) -> list[PlacedFile]:
    _need_plain_hash(rows, "deepseek")
    groups = []
    for layer in rows.spec.layers:
        prefix = f"layers.{layer.layer_id}.engram.embed"
        if rows.codec.name == FP8:
            weights, scales = rows.sections(layer, 0, layer.n_rows)
            tensors = [
                _tensor(f"{prefix}.weight", "F8_E4M3", 1, weights),
                _tensor(f"{prefix}.scale", "F8_E8M0", 1, scales),
            ]
        else:
            tensors = [_values(f"{prefix}.weight", rows, rows.whole(layer, 0, layer.n_rows))]
        groups.append(tensors)
    return _checkpoint(groups, form)


def _qwen(rows: Rows, form: Form) -> list[PlacedFile]:
    _need_qwen_hash(rows, "qwen")
    groups = [_qwen_constants(rows)]
    for layer in rows.spec.layers:
        prefix = f"{_qwen_prefix(layer)}.ngram_embedding"
        for part, first_row, n_rows in _cut(layer.n_rows, form.n_parts):
            groups.append([_values(f"{prefix}.shard_{part}.weight", rows, rows.whole(layer, first_row, n_rows))])
    return _checkpoint(groups, form, metadata=(("format", "pt"),))


def _mlx(rows: Rows, form: Form) -> list[PlacedFile]:
    metadata = (("format", "mlx"),)
    if not _is_qwen_hash(rows.spec):
        _need_plain_hash(rows, "mlx")
        groups = [
            _affine(f"layers.{layer.layer_id}.engram.embed", rows.sections(layer, 0, layer.n_rows))
            for layer in rows.spec.layers
        ]
        return _checkpoint(groups, form, metadata=metadata)
    groups = [_qwen_constants(rows)]
    for layer in rows.spec.layers:
        prefix = f"{_qwen_prefix(layer)}.ngram_embedding"
        for part, first_row, n_rows in _cut(layer.n_rows, form.n_parts):
            groups.append(_affine(f"{prefix}.shards.{part}", rows.sections(layer, first_row, n_rows)))
    return _checkpoint(groups, form, metadata=metadata)


def _longcat(rows: Rows, form: Form) -> list[PlacedFile]:
    layer = rows.spec.layers[0]
    sizes = list(chain.from_iterable(layer.moduli))
    starts = [0, *accumulate(sizes)]
    if (rows.spec.mix.family, len(rows.spec.layers)) != (Family.POLYNOMIAL, 1) or [
        *layer.offsets,
        layer.n_rows,
    ] != starts:
        raise _other_hash(rows, "longcat", "the polynomial hash of LongCat with a table a head")
    groups = [
        [_values(f"model.ngram_embeddings.embedders.{column}.weight", rows, rows.whole(layer, starts[column], n_rows))]
        for column, n_rows in enumerate(sizes)
    ]
    return _checkpoint(groups, form, metadata=(("format", "pt"),))


def _engram_peft(rows: Rows, _form: Form) -> list[PlacedFile]:
    if rows.spec.mix.family is not Family.XOR_MULTIPLY or rows.spec.history.boundary_ids:
        raise _other_hash(rows, "engram-peft", "the hash of engram-peft or of the paper's demo")
    tensors = []
    for layer in rows.spec.layers:
        table = f"{layer.layer_id}.multi_head_embedding"
        tensors.append(_values(f"{table}.embedding.weight", rows, rows.whole(layer, 0, layer.n_rows)))
        tensors.append(_integers(f"{table}.offsets", layer.offsets))
    metadata = (("format", "engram-peft"),)
    return [place_safetensors("engram_adapters.safetensors", package_order(tensors), metadata=metadata)]


def _raw(rows: Rows, form: Form) -> list[PlacedFile]:
    row_bytes = rows.codec.row_bytes(rows.row_width)
    if form.row_stride is not None and form.row_stride < row_bytes:
        raise InvalidInput(
            f"row stride: found {form.row_stride}, expected {row_bytes} or more, as many bytes as a record has; "
            "choose a larger one"
        )
    files = []
    for layer in rows.spec.layers:
        stretch = rows.whole(layer, 0, layer.n_rows, stride=form.row_stride)
        rows_alone = PlacedTensor(ExportTensor(name="", dtype="", shape=(), content=stretch), 0)
        name = f"layer-{layer.layer_id:02d}.rows"
        files.append(PlacedFile(name=name, head=b"", tensors=(rows_alone,), file_bytes=stretch.total_bytes))
    return files


def _gguf_row264(rows: Rows, _form: Form) -> list[PlacedFile]:
    if rows.row_width != _ROW264_WIDTH:
        raise InvalidInput(
            f"{rows.where}: found rows of {rows.row_width} values, expected {_ROW264_WIDTH} for --to gguf-row264, "
            "whose encoding is of 264 bytes; export raw rows or gguf-q8_0"
        )
    _need_plain_hash(rows, "gguf-row264")
    entries = gguf_key_values(rows.spec, vocabulary=rows.vocabulary)["ds4"]
    return [_gguf(rows, "deepseek41", entries, "I8", rows.codec.row_bytes(rows.row_width))]


def _gguf_q8_0(rows: Rows, _form: Form) -> list[PlacedFile]:
    spellings = gguf_key_values(rows.spec, vocabulary=rows.vocabulary)
    if "qwen4exp" in spellings:
        return [_gguf(rows, "qwen4exp", spellings["qwen4exp"], "Q8_0", rows.row_width)]
    # llama.cpp's spelling leaves out the number of canonical ids, without which a map alone tells it.
    size = {"deepseek41.engram.compressed_vocab_size": {"type": "u32", "value": rows.spec.canonical_size}}
    return [_gguf(rows, "deepseek41", spellings["llama.cpp"] | size, "Q8_0", rows.row_width)]


def _gguf(rows: Rows, architecture: str, entries: dict[str, Any], dtype: str, width: int) -> PlacedFile:
    entries = {
        "general.architecture": {"type": "string", "value": architecture},
        "general.name": {"type": "string", "value": rows.spec.name},
        **entries,
    }
    tensors = []
    for layer in rows.spec.layers:
        name = QWEN_TABLE if architecture == "qwen4exp" else f"blk.{layer.layer_id}.engram_embd.weight"
        content = rows.whole(layer, 0, layer.n_rows)
        tensors.append(ExportTensor(name=name, dtype=dtype, shape=(width, layer.n_rows), content=content))
    return place_gguf("model.gguf", tensors, key_values=key_value_bytes(entries), n_key_values=len(entries))


TARGETS = {
    target.name: target
    for target in (
        Target(name="deepseek", codecs=(FP8, BF16, F16, F32), is_file=False, files=_deepseek),
        Target(name="qwen", codecs=(BF16, FP8_SCALAR, F16, F32), is_file=False, files=_qwen),
        Target(name="mlx", codecs=(INT4_G32,), is_file=False, files=_mlx),
        Target(name="longcat", codecs=(BF16, F16, F32), is_file=False, files=_longcat),
        Target(name="engram-peft", codecs=(F32, BF16, F16), is_file=False, files=_engram_peft),
        Target(name="raw", codecs=(), is_file=False, files=_raw),
        Target(name="gguf-row264", codecs=(FP8,), is_file=True, files=_gguf_row264),
        Target(name="gguf-q8_0", codecs=(Q8_0,), is_file=True, files=_gguf_q8_0),
    )
}


# Addressing.


def _is_qwen_hash(spec: AddressSpec) -> bool:
    ends = (spec.fill_id,)
    return spec.mix == MixRule() and spec.history == HistoryRule(fill_id=spec.fill_id, boundary_ids=ends)


def _need_qwen_hash(rows: Rows, target: str) -> None:
    if not _is_qwen_hash(rows.spec):
        raise _other_hash(rows, target, "Qwen's hash, whose boundary is its fill")


def _need_plain_hash(rows: Rows, target: str) -> None:
    if rows.spec.mix != MixRule() or rows.spec.history != HistoryRule(fill_id=rows.spec.fill_id):
        raise _other_hash(rows, target, "DeepSeek's hash without boundaries")


def _other_hash(rows: Rows, target: str, expected: str) -> InvalidInput:
    return InvalidInput(
        f"{rows.where}: found the addressing {rows.spec.name} ({rows.spec.mix.family}), expected {expected} for --to "
        f"{target}: its readers would look every row up in another place; export raw rows"
    )


# Tensors.


def _tensor(name: str, dtype: str, value_bytes: int, content: Stretch) -> ExportTensor:
    return ExportTensor(name=name, dtype=dtype, shape=(content.n_rows, content.n_bytes // value_bytes), content=content)


def _values(name: str, rows: Rows, content: Stretch) -> ExportTensor:
    """Rows of plain values, one number each."""
    return ExportTensor(
        name=name, dtype=_VALUE_DTYPES[rows.codec.name], shape=(content.n_rows, rows.row_width), content=content
    )


def _affine(prefix: str, sections: Sequence[Stretch]) -> list[ExportTensor]:
    """Codes, scales and biases as MLX spells them."""
    codes, scales, biases = sections
    return [
        _tensor(f"{prefix}.weight", "U32", 4, codes),
        _tensor(f"{prefix}.scales", "BF16", 2, scales),
        _tensor(f"{prefix}.biases", "BF16", 2, biases),
    ]


def _integers(name: str, values: Sequence[int]) -> ExportTensor:
    data = np.array(values, dtype="<i8")
    return ExportTensor(name=name, dtype="I64", shape=data.shape, content=data.tobytes())


def _qwen_prefix(layer: LayerAddressing) -> str:
    return f"model.language_model.layers.{layer.layer_id}.ple.ple_embedding"


def _qwen_constants(rows: Rows) -> list[ExportTensor]:
    """The arrays that the hash reads, and the table's one scale where its codec has one."""
    tensors = []
    for layer in rows.spec.layers:
        prefix = _qwen_prefix(layer)
        tensors += [
            _integers(f"{prefix}.layer_multipliers", layer.multipliers),
            _integers(f"{prefix}.ngram_heads_vocab_sizes", list(chain.from_iterable(layer.moduli))),
            _integers(f"{prefix}.ngram_heads_offsets", layer.offsets),
        ]
        if rows.codec.scale_bits is not None:
            tensors.append(_scale(f"{prefix}.ngram_embedding.weight_scale", rows.codec.scale_bits))
    return tensors


def _scale(name: str, scale_bits: int) -> ExportTensor:
    """One value: BF16, as in the release, wherever it is exact."""
    data = scale_bits.to_bytes(4, "little")
    exact = data[:2] == b"\0\0"
    return ExportTensor(name=name, dtype="BF16" if exact else "F32", shape=(1,), content=data[2:] if exact else data)


def _cut(n_rows: int, n_parts: int) -> Iterable[tuple[int, int, int]]:
    """Equal parts as (number, first row, rows), a shorter last, none empty."""
    part_rows = -(-n_rows // n_parts)
    for part, first_row in enumerate(range(0, n_rows, part_rows)):
        yield part, first_row, min(part_rows, n_rows - first_row)


# Files.


def _checkpoint(
    groups: Sequence[Sequence[ExportTensor]], form: Form, *, metadata: Sequence[tuple[str, str]] = ()
) -> list[PlacedFile]:
    """Groups of tensors that stay together, over files with an index, or as one file without."""
    files: list[list[ExportTensor]] = [[]]
    for group in groups:
        n_bytes = sum(tensor.n_bytes for tensor in group)
        if files[-1] and sum(tensor.n_bytes for tensor in files[-1]) + n_bytes > form.file_bytes:
            files.append([])
        files[-1].extend(group)
    if len(files) == 1:
        return [place_safetensors("model.safetensors", package_order(files[0]), metadata=metadata)]
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    placed = [
        place_safetensors(name, package_order(tensors), metadata=metadata)
        for name, tensors in zip(names, files, strict=True)
    ]
    return [*placed, index_file({t.name: n for n, tensors in zip(names, files, strict=True) for t in tensors}, placed)]


def index_file(weight_map: dict[str, str], files: Sequence[PlacedFile]) -> PlacedFile:
    """The index of a checkpoint of several files, as Hugging Face's libraries write it."""
    total = sum(tensor.n_bytes for file in files for tensor, _ in file.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    head = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    return PlacedFile(name=INDEX_NAME, head=head, tensors=(), file_bytes=len(head))
