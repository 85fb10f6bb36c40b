"""The files that a table was made from, planned from what its manifest remembers of them.

Where these held nothing but the table they come out byte for byte; tensors that were left out then are left out again,
and bytes between rows are zero.
"""

from __future__ import annotations

from engram_tables.address.export.gguf_metadata import gguf_key_values
from engram_tables.errors import InvalidInput
from engram_tables.storage.export.gguf_bytes import key_value_bytes, place_gguf
from engram_tables.storage.export.placed_files import ExportTensor, PlacedFile, PlacedTensor, Stretch
from engram_tables.storage.export.safetensors_bytes import place_safetensors
from engram_tables.storage.export.targets import QWEN_TABLE, Rows, index_file
from engram_tables.storage.sources.record import RecordedScale, RecordedTensor, SourceRecord

TABLE_FORM = "table"
_MOST_ALIGNMENT = 2**20
SAFETENSORS, GGUF, RAW = "safetensors", "gguf", "raw"


def source_files(record: SourceRecord, rows: Rows) -> list[PlacedFile]:
    """The files of `record` with rows in them, and an index where they are several safetensors.

    Raises
    ------
    InvalidInput
        A container that nothing writes, or a source that was a table of ours.
    """
    if record.form == TABLE_FORM or record.container not in (SAFETENSORS, GGUF, RAW):
        raise InvalidInput(
            f"{rows.where}: found that it was made from a {record.form} in {record.container}, expected {SAFETENSORS}, "
            f"{GGUF} or {RAW} files of others; name a form with --to, or repack it with `engram build-table --from`"
        )
    files: list[PlacedFile] = []
    weight_map: dict[str, str] = {}
    for file_idx, file in enumerate(record.files):
        placed = _placed(record, rows, file_idx)
        files.append(placed)
        weight_map |= {tensor.name: file.name for tensor, _ in placed.tensors}
    if record.container == SAFETENSORS and len(files) > 1:
        files.append(index_file(weight_map, files))
    return files


def _placed(record: SourceRecord, rows: Rows, file_idx: int) -> PlacedFile:
    file = record.files[file_idx]
    found = [(tensor.start, _row_tensor(record, tensor, rows)) for tensor in record.tensors if tensor.file == file_idx]
    found += [(scale.start, _small_tensor(scale)) for scale in record.scale_tensors if scale.file == file_idx]
    found.sort(key=lambda item: item[0])
    tensors = [tensor for _, tensor in found]
    if not 1 <= file.alignment <= _MOST_ALIGNMENT:
        raise InvalidInput(
            f"{rows.where}: found that its source's file {file.name} was aligned to {file.alignment} bytes, expected 1 "
            f"to {_MOST_ALIGNMENT}; name a form with --to"
        )
    if record.container == SAFETENSORS:
        return place_safetensors(file.name, tensors, metadata=file.metadata, alignment=file.alignment)
    if record.container == RAW:
        end = max((start + tensor.n_bytes for start, tensor in found), default=0)
        placed = tuple(PlacedTensor(tensor, start) for start, tensor in found)
        return PlacedFile(name=file.name, head=b"", tensors=placed, file_bytes=end)
    key_values, n_key_values = _key_values(record, rows, file_idx) or _derived_key_values(rows, tensors, file.alignment)
    return place_gguf(
        file.name,
        tensors,
        key_values=key_values,
        n_key_values=n_key_values,
        alignment=file.alignment,
        version=2 if ("version", "2") in file.metadata else 3,
    )


def _row_tensor(record: SourceRecord, tensor: RecordedTensor, rows: Rows) -> ExportTensor:
    part = record.parts[tensor.part]
    content = Stretch(
        layer_id=tensor.layer_id,
        first_row=tensor.first_row,
        n_rows=tensor.n_rows,
        start=part.start,
        n_bytes=part.n_bytes,
        stride=part.cell_bytes,
    )
    return ExportTensor(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, content=content)


def _small_tensor(scale: RecordedScale) -> ExportTensor:
    return ExportTensor(name=scale.name, dtype=scale.dtype, shape=scale.shape, content=bytes.fromhex(scale.data))


def _key_values(record: SourceRecord, rows: Rows, file_idx: int) -> tuple[bytes, int] | None:
    """The source's own key-values and their number, where they were few enough to remember."""
    file = record.files[file_idx]
    metadata = dict(file.metadata)
    if "key_values" not in metadata:
        return None
    try:
        data, n_key_values = bytes.fromhex(metadata["key_values"]), int(metadata["n_key_values"])
    except (KeyError, ValueError) as error:
        raise InvalidInput(
            f"{rows.where}: found no key-values of its source's file {file.name} ({error}), expected hexadecimal text "
            "and their number; name a form with --to"
        ) from None
    return data, min(n_key_values, len(data))


def _derived_key_values(rows: Rows, tensors: list[ExportTensor], alignment: int) -> tuple[bytes, int]:
    """The published keys, where the source's own were too many to remember."""
    spellings = gguf_key_values(rows.spec, vocabulary=rows.vocabulary)
    is_qwen = any(tensor.name == QWEN_TABLE for tensor in tensors)
    is_ds4 = any(tensor.dtype == "I8" for tensor in tensors)
    spelling = "qwen4exp" if is_qwen else "ds4" if is_ds4 else "llama.cpp"
    if spelling not in spellings:
        raise InvalidInput(
            f"{rows.where}: found no {spelling} keys for the addressing {rows.spec.name}, which its GGUF file needs; "
            "name a form with --to"
        )
    entries = {
        "general.architecture": {"type": "string", "value": "qwen4exp" if is_qwen else "deepseek41"},
        "general.alignment": {"type": "u32", "value": alignment},
        **spellings[spelling],
    }
    return key_value_bytes(entries), len(entries)
