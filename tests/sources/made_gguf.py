"""GGUF files with tables, made small by the gguf package; see `made_checkpoints`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from made_parts import (
    SECTIONS,
    Bytes,
    Made,
    deepseek_multipliers,
    deepseek_primes,
    joined,
    made,
    qwen_constants,
    random_parts,
)

GGUF_TYPES = {
    "fp8-e4m3-e8m0": GGMLQuantizationType.I8, "q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0,
    "iq4_nl": GGMLQuantizationType.IQ4_NL, "f32": GGMLQuantizationType.F32, "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
}  # fmt: skip


def random_blocks(codec: str, n_rows: int, width: int, *, seed: int) -> Bytes:
    """Rows of a GGUF type, uint8 (n_rows, row bytes), every value a number of ordinary size."""
    if codec in SECTIONS:
        return joined(random_parts(codec, n_rows, width, seed=seed))
    rng = np.random.default_rng(seed)
    block_bytes = {"q8_0": 34, "q4_0": 18, "iq4_nl": 18}[codec]
    blocks = rng.integers(0, 256, (n_rows, width // 32, block_bytes), dtype=np.uint8)
    scales = rng.uniform(-2, 2, (n_rows, width // 32, 1)).astype("<f2")
    blocks[:, :, :2] = scales.view(np.uint8)
    return np.ascontiguousarray(blocks.reshape(n_rows, -1))


def _add_rows(writer: GGUFWriter, name: str, codec: str, records: Bytes) -> None:
    match codec:
        case "fp8-e4m3-e8m0":
            writer.add_tensor(name, records.view(np.int8))
        case "f32" | "f16":
            writer.add_tensor(name, records.view("<f4" if codec == "f32" else "<f2"))
        case _:
            writer.add_tensor(name, records, raw_dtype=GGUF_TYPES[codec])


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_gguf_deepseek(
    path: Path,
    *,
    codec: str = "fp8-e4m3-e8m0",
    layers: Sequence[int] = (1, 3),
    base: int = 101,
    alignment: int = 32,
    seed: int = 0,
    extras: bool = True,
) -> Made:
    """Rows of 256 values in one .gguf; ds4's keys for rows of 264 bytes (I8), llama.cpp's for other types."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, canonical_size = 256, 1000
    primes = deepseek_primes(len(layers), 2, 2, base)
    multipliers = [number for layer_id in layers for number in deepseek_multipliers(canonical_size, 3, layer_id)]
    token_map = [token % canonical_size for token in range(1200)]
    writer = GGUFWriter(path, "deepseek41")
    writer.add_custom_alignment(alignment)
    key = "deepseek41.engram."
    writer.add_array(key + "layer_ids", list(layers))
    flat = [modulus for moduli in primes for modulus in moduli]
    if codec == "fp8-e4m3-e8m0":
        writer.add_string(key + "encoding", "e4m3_e8m0_32_row264")
        _add_integers(writer, key + "rows", "u32", [sum(moduli) for moduli in primes])
        writer.add_uint32(key + "compressed_vocab_size", canonical_size)
        _add_integers(writer, key + "primes", "u32", flat)
    else:
        writer.add_uint32(key + "head_count", 2)
        writer.add_uint32(key + "key_length", width)
        writer.add_uint32(key + "max_ngram_size", 3)
        _add_integers(writer, key + "primes", "u64", flat)
        offsets = [offset for moduli in primes for offset in (0, *accumulate(moduli[:-1]))]
        _add_integers(writer, key + "offsets", "u64", offsets)
    _add_integers(writer, key + "token_map", "u32", token_map)
    writer.add_uint32(key + "pad_id", 2)
    _add_integers(writer, key + "multipliers", "u64", multipliers)
    if extras:
        writer.add_tensor("token_embd.weight", np.zeros((5, 32), np.float32))
    rows = {}
    for number, layer_id in enumerate(layers):
        rows[layer_id] = {"records": random_blocks(codec, sum(primes[number]), width, seed=seed + number)}
        _add_rows(writer, f"blk.{layer_id}.engram_embd.weight", codec, rows[layer_id]["records"])
    _finish(writer)
    return made(path, [path], codec, width, rows, config={})


def make_gguf_qwen(path: Path, *, codec: str = "iq4_nl", base: int = 101, width: int = 64, seed: int = 0) -> Made:
    """The table of one layer as `per_layer_token_embd.weight`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    multipliers, moduli, offsets, n_rows = qwen_constants(base=base, heads=2, divisor=128, vocab_size=1000)
    writer = GGUFWriter(path, "qwen4exp")
    writer.add_array("qwen4exp.ple.layers", [1])
    writer.add_uint32("qwen4exp.ple.ngram_size", 3)
    writer.add_uint32("qwen4exp.ple.heads_per_ngram", 2)
    _add_integers(writer, "qwen4exp.ple.layer_multipliers", "u64", multipliers)
    _add_integers(writer, "qwen4exp.ple.head_offsets", "u64", offsets)
    _add_integers(writer, "qwen4exp.ple.head_vocab_sizes", "u64", moduli)
    writer.add_uint32("qwen4exp.ple.eos_token_id", 7)
    writer.add_uint32("qwen4exp.vocab_size", 1000)
    writer.add_uint32("qwen4exp.embedding_length_per_layer_input", width)
    records = random_blocks(codec, n_rows, width, seed=seed)
    _add_rows(writer, "per_layer_token_embd.weight", codec, records)
    _finish(writer)
    return made(path, [path], codec, width, {1: {"records": records}}, config={})


def _add_integers(writer: GGUFWriter, key: str, kind: str, values: Sequence[int]) -> None:
    element = GGUFValueType.UINT32 if kind == "u32" else GGUFValueType.UINT64
    writer.add_key_value(key, list(values), GGUFValueType.ARRAY, sub_type=element)
