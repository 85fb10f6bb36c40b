"""Released files made small or sparse: GGUF metadata under every spelling, safetensors of the published shapes."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from engram_tables import load_spec
from engram_tables.address.export.gguf_metadata import gguf_key_values
from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.address.spec import AddressSpec

Entries = dict[str, tuple[str, Any]]
V4 = "deepseek-v4.1-flash"
QWEN = "qwen3.8-flash-next"
V4_CONFIG = {
    "engram_layer_ids": [1, 14], "engram_num_embeddings": [384_006_168, 384_016_682], "engram_max_ngram_size": 4,
    "engram_vocab_size": 16_000_000, "engram_n_heads": 8, "engram_head_dim": 256, "engram_pad_token_id": 2,
    "engram_compressed_vocab_size": 99_092,
}  # fmt: skip
QWEN_CONFIG = {
    "ple_layer_ids": [2], "ple_embed_dim": 2560, "ngram_size": 3, "heads_per_ngram": 8, "eos_token_id": 248_044,
    "ngram_vocab_size_base": 20_000_000, "make_ngram_vocab_size_divisible_by": 128, "split_ngram_parts": 128,
    "vocab_size": 248_320, "hidden_size": 2560,
}  # fmt: skip
TOKEN_MAP = [token // 2 for token in range(100)]
SMALL = DeepSeekRecipe(
    name="small", provenance="test", canonical_size=50, orders=(2, 3), heads=2, bases=(101, 101), layer_ids=(3, 5),
    n_layers=2, fill_id=1, row_width=16,
).resolve()  # fmt: skip
TYPES = {kind.name.lower().replace("uint", "u").replace("int", "i").replace("float", "f"): kind
         for kind in GGUFValueType}  # fmt: skip


# GGUF files.


def write_gguf(
    path: Path, entries: Mapping[str, tuple[str, Any]], tensors: Mapping[str, tuple[tuple[int, ...], Any]] | None = None
) -> Path:
    """A file of typed key-values, and of tensors that are holes: shapes as NumPy has them, slowest first."""
    writer = GGUFWriter(path, "deepseek41")
    for key, (kind, value) in entries.items():
        element = TYPES[kind.removesuffix("[]")]
        if kind.endswith("[]"):
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=element)
        else:
            writer.add_key_value(key, value, element)
    n_data = 0
    for name, (shape, raw_dtype) in (tensors or {}).items():
        size = math.prod(shape) if raw_dtype is None else math.prod(shape) // 32 * 34
        byte_shape = shape if raw_dtype is None else (*shape[:-1], shape[-1] // 32 * 34)
        dtype = np.dtype(np.int8 if raw_dtype is None else np.uint8)
        writer.add_tensor_info(name, byte_shape, dtype, size, raw_dtype=raw_dtype)
        n_data += size + 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + n_data)
    return path


def entries_of(spec: AddressSpec, spelling: str, token_map: list[int] | None = None) -> Entries:
    """The metadata that this package writes, as values."""
    entries: Entries = {}
    for key, entry in gguf_key_values(spec if spelling == "qwen4exp" else replace(spec, folded=True))[spelling].items():
        value = entry["value"]
        exact = [int(number) for number in value] if isinstance(value, list) else value
        entries[key] = (entry["type"], exact)
    if token_map is not None:
        entries["deepseek41.engram.token_map"] = ("u32[]" if spelling == "ds4" else "i32[]", token_map)
    return entries


def third_entries(spec: AddressSpec, base: int, *, arrays: bool) -> Entries:
    """The spelling that takes its names from the config, with or without arrays."""
    entries: Entries = {
        "deepseek41.engram.layer_ids": ("i32[]", list(spec.layer_ids)),
        "deepseek41.engram.num_embeddings": ("u64[]", [layer.n_rows for layer in spec.layers]),
        "deepseek41.engram.head_dim": ("u32", spec.row_width),
        "deepseek41.engram.n_heads": ("u32", spec.heads[0]),
        "deepseek41.engram.max_ngram_size": ("u32", spec.max_order),
        "deepseek41.engram.compressed_vocab_size": ("u32", spec.canonical_size),
        "deepseek41.engram.pad_token_id": ("u32", 2),
    }
    if not arrays:
        return entries | {"deepseek41.engram.vocab_size": ("u32", base)}
    moduli = [modulus for layer in spec.layers for modulus in chain.from_iterable(layer.moduli)]
    return entries | {
        "deepseek41.engram.hash_primes": ("u32[]", moduli),
        "deepseek41.engram.hash_offsets": ("u64[]", [offset for layer in spec.layers for offset in layer.offsets]),
        "deepseek41.engram.hash_multipliers": ("u64[]", [m for layer in spec.layers for m in layer.multipliers]),
    }


def qwen_entries(**changes: tuple[str, Any]) -> Entries:
    entries = entries_of(load_spec(QWEN), "qwen4exp") | {"general.name": ("string", "Qwen")}
    return entries | {f"qwen4exp.{key.replace('__', '.')}": value for key, value in changes.items()}


def v4_tensors(width: int, raw_dtype: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    return {f"blk.{layer.layer_id}.engram_embd.weight": ((layer.n_rows, width), raw_dtype)
            for layer in load_spec(V4).layers}  # fmt: skip


QWEN_TENSORS = {"per_layer_token_embd.weight": ((320_001_536, 160), GGMLQuantizationType.Q8_0)}


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]] | np.ndarray[Any, Any]]) -> Path:
    """Arrays with their values, and shapes as holes."""
    bits = {"F8_E4M3": 8, "F8_E8M0": 8, "BF16": 16, "U32": 32, "U8": 8, "F32": 32}
    header: dict[str, Any] = {}
    arrays, end = [], 0
    # Values first, so that what follows them may be a hole.
    for name, tensor in sorted(tensors.items(), key=lambda item: isinstance(item[1], tuple)):
        if isinstance(tensor, tuple):
            dtype, shape = tensor
            n_bytes = math.prod(shape) * bits[dtype] // 8
        else:
            dtype, shape, n_bytes = "I64", tensor.shape, tensor.nbytes
            arrays.append(tensor.astype("<i8").tobytes())
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"".join(arrays))
    os.truncate(path, 8 + len(encoded) + end)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def v4_part(layer_id: int, **changes: Any) -> dict[str, Any]:
    n_rows = load_spec(V4).layer(layer_id).n_rows
    prefix = f"layers.{layer_id}.engram"
    return {
        f"{prefix}.embed.weight": ("F8_E4M3", (n_rows, 256)),
        f"{prefix}.embed.scale": ("F8_E8M0", (n_rows, 8)),
        f"{prefix}.wkv.weight": ("F8_E4M3", (25_600, 6144)),
    } | changes


def qwen_parts(n_parts: int = 128, *, dtype: str = "BF16", width: int = 160) -> dict[str, Any]:
    prefix = "model.language_model.layers.1.ple.ple_embedding"
    rows = -(-320_001_536 // n_parts)
    shards = {
        f"{prefix}.ngram_embedding.shard_{part}.weight": (dtype, (max(0, min(rows, 320_001_536 - part * rows)), width))
        for part in range(n_parts)
    }
    return shards | qwen_arrays(prefix)


def qwen_arrays(prefix: str = "model.language_model.layers.1.ple.ple_embedding") -> dict[str, Any]:
    layer = load_spec(QWEN).layers[0]
    return {
        f"{prefix}.layer_multipliers": np.array(layer.multipliers),
        f"{prefix}.ngram_heads_vocab_sizes": np.array(list(chain.from_iterable(layer.moduli))),
        f"{prefix}.ngram_heads_offsets": np.array(layer.offsets),
        "model.language_model.layers.1.ple.norm_key.weight": ("BF16", (10_240,)),
    }
