"""Released checkpoints made small: every published form, its rows known. Shares no code with what reads them.

The containers are written by the safetensors and gguf packages, the constants derived once more from the published
rules. A `Made` tells what a reader must find.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from made_gguf import make_gguf_deepseek, make_gguf_qwen
from made_parts import (
    Bytes,
    Made,
    Tensor,
    array_tensor,
    bf16_tensor,
    deepseek_primes,
    joined,
    made,
    qwen_constants,
    random_parts,
    row_tensor,
    write_checkpoint,
    write_tensors,
)

__all__ = [
    "MAKERS", "Made", "array_tensor", "bf16_tensor", "make_deepseek", "make_engram_peft", "make_gemma",
    "make_gguf_deepseek", "make_gguf_qwen", "make_longcat", "make_mlx_vlm", "make_mtplx", "make_qwen", "make_raw",
    "write_tensors",
]  # fmt: skip

QWEN_PREFIX = "model.language_model.layers.1.ple.ple_embedding"
QWEN_SCALE_BITS = 0x39510000
"""0.00019931793212890625, the scale of the released table."""


# DeepSeek.

DEEPSEEK_NAMES = {
    "release": ("layers.{}.engram.embed.weight", "layers.{}.engram.embed.scale"),
    "vllm": ("model.layers.{}.engram.embed_tokens.weight", "model.layers.{}.engram.embed_tokens.weight_scale_inv"),
    "language_model": (
        "language_model.model.layers.{}.engram.embed.weight",
        "language_model.model.layers.{}.engram.embed.scale",
    ),
    "mlx": ("layers.{}.engram.embed.weight", "layers.{}.engram.embed.scales", "layers.{}.engram.embed.biases"),
}


def deepseek_config(
    *, layers: Sequence[int] = (1, 3), width: int = 64, base: int = 101, heads: int = 2
) -> dict[str, Any]:
    """The config.json of a model of orders 2 and 3 whose vocabulary is the published one."""
    primes = deepseek_primes(len(layers), 2, heads, base)
    return {
        "model_type": "deepseek_v41",
        "text_config": {
            "engram_layer_ids": list(layers),
            "engram_num_embeddings": [sum(moduli) for moduli in primes],
            "engram_max_ngram_size": 3,
            "engram_vocab_size": base,
            "engram_n_heads": heads,
            "engram_head_dim": width,
            "engram_pad_token_id": 2,
            "engram_compressed_vocab_size": 99_092,
        },
    }


def make_deepseek(
    path: Path,
    *,
    names: str = "release",
    codec: str = "fp8-e4m3-e8m0",
    layers: Sequence[int] = (1, 3),
    width: int = 64,
    base: int = 101,
    seed: int = 0,
    extras: bool = True,
    finite: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Made:
    """V4.1's form: weights and scales of a layer as two tensors in one file, a file a layer.

    Parameters
    ----------
    names
        `release`, `vllm` (scales are U8), `language_model` or, for int4-g32, `mlx`.
    codec
        fp8-e4m3-e8m0, bf16, f32 or int4-g32.
    extras
        Matrices that are no table in every file, and a file without any table.
    """
    config = deepseek_config(layers=layers, width=width, base=base)
    rows, files = {}, []
    for number, layer_id in enumerate(layers):
        n_rows = config["text_config"]["engram_num_embeddings"][number]
        rows[layer_id] = random_parts(codec, n_rows, width, seed=seed + number, finite=finite)
        tensors = {
            name.format(layer_id): row_tensor(codec, part, data)
            for name, (part, data) in zip(DEEPSEEK_NAMES[names], rows[layer_id].items(), strict=False)
        }
        if names == "vllm" and codec == "fp8-e4m3-e8m0":
            scale = DEEPSEEK_NAMES[names][1].format(layer_id)
            tensors[scale] = ("U8", *tensors[scale][1:])
        if extras:
            tensors |= {
                f"layers.{layer_id}.engram.wkv.weight": ("F8_E4M3", (64, 32), np.zeros((64, 32), np.uint8)),
                f"layers.{layer_id}.engram.wkv.scale": ("F8_E8M0", (2, 1), np.zeros((2, 1), np.uint8)),
                f"layers.{layer_id}.engram.q_weight": bf16_tensor(4, 16),
            }
        files.append(tensors)
    if extras:
        files.append({"embed.weight": bf16_tensor(16, 8)})
    written = write_checkpoint(path, files, config, metadata=metadata or {})
    return made(path, written[: len(layers)], codec, width, rows, config=config)


# Qwen.


def qwen_config(
    *, width: int = 64, base: int = 101, heads: int = 2, divisor: int = 8, n_parts: int = 4
) -> dict[str, Any]:
    """The config.json of a model with one table of orders 2 and 3 before its second layer."""
    return {
        "model_type": "qwen4_exp",
        "text_config": {
            "ple_layer_ids": [2],
            "ple_embed_dim": 2 * heads * width,
            "ngram_size": 3,
            "heads_per_ngram": heads,
            "eos_token_id": 7,
            "ngram_vocab_size_base": base,
            "make_ngram_vocab_size_divisible_by": divisor,
            "split_ngram_parts": n_parts,
            "vocab_size": 1000,
            "hidden_size": 2 * heads * width,
        },
    }


def _qwen_rows(config: Mapping[str, Any], codec: str, seed: int, finite: bool) -> tuple[dict[str, Bytes], int]:
    text = config["text_config"]
    width = text["ple_embed_dim"] // (2 * text["heads_per_ngram"])
    n_rows = qwen_constants(
        base=text["ngram_vocab_size_base"],
        heads=text["heads_per_ngram"],
        divisor=text["make_ngram_vocab_size_divisible_by"],
        vocab_size=text["vocab_size"],
    )[3]
    return random_parts(codec, n_rows, width, seed=seed, finite=finite), width


_MLX_SUFFIXES = {"records": "weight", "weights": "weight", "scales": "scales", "biases": "biases"}


def make_qwen(
    path: Path,
    *,
    codec: str = "bf16",
    spelling: str = "shard_",
    width: int = 64,
    base: int = 101,
    n_parts: int = 4,
    n_files: int = 2,
    seed: int = 0,
    arrays: bool = True,
    extras: bool = True,
    finite: bool = True,
    prefix: str = QWEN_PREFIX,
    metadata: Mapping[str, str] | None = None,
) -> Made:
    """Equal shards of rows and a shorter last one, as tensors over some files.

    Parameters
    ----------
    codec
        bf16, fp8-e4m3-scalar (with its `weight_scale`), int4-g32 or nvfp4 as MLX packs them.
    spelling
        `shard_` or `shards.`.
    arrays
        Whether the hash's constants ship with it, as they do in releases.
    """
    config = qwen_config(width=width, base=base, n_parts=n_parts)
    parts, width = _qwen_rows(config, codec, seed, finite)
    n_rows = len(next(iter(parts.values())))
    part_rows = -(-n_rows // n_parts)
    files: list[dict[str, Tensor]] = [{} for _ in range(n_files)]
    for shard in range(n_parts):
        chosen = slice(shard * part_rows, (shard + 1) * part_rows)
        for part, rows in parts.items():
            name = f"{prefix}.ngram_embedding.{spelling}{shard}.{_MLX_SUFFIXES[part]}"
            files[shard * n_files // n_parts][name] = row_tensor(codec, part, rows[chosen])
    scale_bits = None
    if codec == "fp8-e4m3-scalar":
        scale_bits = QWEN_SCALE_BITS
        scale = np.array([scale_bits >> 16], "<u2").view(np.uint8)
        files[0][f"{prefix}.ngram_embedding.weight_scale"] = ("BF16", (1,), scale)
    if arrays:
        multipliers, moduli, offsets, _ = qwen_constants(base=base, heads=2, divisor=8, vocab_size=1000)
        files[-1] |= {
            f"{prefix}.layer_multipliers": array_tensor(multipliers),
            f"{prefix}.ngram_heads_vocab_sizes": array_tensor(moduli),
            f"{prefix}.ngram_heads_offsets": array_tensor(offsets),
        }
    if extras:
        files[0]["model.language_model.layers.1.ple.norm_key.weight"] = bf16_tensor(64)
    written = write_checkpoint(path, files, config, metadata=metadata or {"format": "pt"})
    return made(path, written, codec, width, {1: parts}, scale_bits=scale_bits, config=config)


def make_mtplx(
    path: Path, *, codec: str = "int4-g32", interleaved: bool = False, width: int = 64, seed: int = 0
) -> Made:
    """A sidecar: all rows in one file, `ngram.weight` (bits 0 mean bf16), or one tensor of whole records."""
    config = qwen_config(width=width)
    parts, width = _qwen_rows(config, codec, seed, True)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    n_rows = len(next(iter(parts.values())))
    if interleaved:
        records = joined(parts)
        named = [[f"ngram.{_MLX_SUFFIXES[part]}", {"row_bytes": rows.shape[1]}] for part, rows in parts.items()]
        metadata = {"format": "mtplx_ngram_rows_v1", "source": json.dumps({"size": 1}), "parts": json.dumps(named)}
        file = write_tensors(
            path / "ngram-rows.safetensors", {"ngram.records": ("U8", records.shape, records)}, metadata
        )
        whole = made(path, [file], codec, width, {1: {"records": records}}, config=config)
        return replace(whole, codec=codec)
    metadata = {
        "ngram_bits": "0" if codec == "bf16" else "4",
        "ngram_group_size": "32",
        "rows": str(n_rows),
        "dim": str(width),
    }
    tensors = {f"ngram.{_MLX_SUFFIXES[part]}": row_tensor(codec, part, rows) for part, rows in parts.items()}
    file = write_tensors(path / "ngram-table.safetensors", tensors, metadata)
    return made(path, [file], codec, width, {1: parts}, config=config)


def make_mlx_vlm(
    path: Path, *, layout: str = "safetensors_ranges", codec: str = "int4-g32", n_parts: int = 4, seed: int = 0
) -> Made:
    """A `ple-store.json` that names ranges of files: of the safetensors beside it, or of rows without a container."""
    base = make_qwen(path, codec=codec, n_parts=n_parts, seed=seed)
    parts, width = _qwen_rows(base.config, codec, seed, True)
    n_rows = len(base.records[1])
    part_rows = -(-n_rows // n_parts)
    manifest: dict[str, Any] = {
        "version": 2,
        "source_root": ".",
        "layout": layout,
        "row_width": width,
        "row_count": n_rows,
        "quantization": {"bits": 4, "group_size": 32, "mode": "affine"}
        if codec == "int4-g32"
        else {"bits": 4, "group_size": 16, "mode": "nvfp4"},
        "cache_rows": 1024,
    }
    config = {
        **base.config,
        "text_config": {**base.config["text_config"], "ple_storage": {"manifest": "ple-store.json"}},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "EXTERNAL_PLE.json").write_text(json.dumps({"format": "qwen4_exp_external_ple_v1"}))
    if layout == "interleaved_q4":
        for file in base.files:
            file.unlink()
        (path / "model.safetensors.index.json").unlink()
        rows = path / "ple-q4.rows"
        rows.write_bytes(base.records[1].tobytes())
        manifest |= {"data_file": rows.name, "row_stride": base.row_bytes}
        (path / "ple-store.json").write_text(json.dumps(manifest))
        whole = made(path, [rows], codec, width, {1: {"records": base.records[1]}}, config=config)
        return replace(whole, codec=base.codec)
    manifest["shards"] = []
    for shard in range(n_parts):
        entry: dict[str, Any] = {
            "row_start": shard * part_rows,
            "row_count": min(part_rows, n_rows - shard * part_rows),
        }
        for part in parts:
            entry[_MLX_SUFFIXES[part]] = _place(base.files, f"{QWEN_PREFIX}.ngram_embedding.shard_{shard}", part)
        manifest["shards"].append(entry)
    (path / "ple-store.json").write_text(json.dumps(manifest))
    return replace(base, config=config)


def _place(files: Sequence[Path], prefix: str, part: str) -> dict[str, Any]:
    """Where a tensor's bytes lie, by the eight bytes and the JSON at the start of its file."""
    for file in files:
        with file.open("rb") as stream:
            n_header = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(n_header))
        if (info := header.get(f"{prefix}.{_MLX_SUFFIXES[part]}")) is not None:
            offset = 8 + n_header + info["data_offsets"][0]
            return {"file": file.name, "offset": offset, "dtype": info["dtype"], "shape": info["shape"]}
    raise AssertionError(prefix)


# LongCat, engram-peft, and others.


def make_longcat(
    path: Path, *, spelling: str = "embedders", codec: str = "bf16", splits: int = 2, width: int = 32, seed: int = 0
) -> Made:
    """One tensor a head, orders 2 and 3: `embedders` or `oe` for the names of the later model."""
    n_tables, vocab_size = 2 * splits, 50
    keys = ("emb_neighbor_num", "emb_split_num", "ngram_vocab_size_ratio")
    if spelling == "oe":
        keys = ("oe_neighbor_num", "oe_split_num", "oe_vocab_size_ratio")
    config = {
        **dict(zip(keys, (3, splits, 2.5), strict=True)),
        "vocab_size": vocab_size,
        "hidden_size": n_tables * width,
        "eos_token_id": 2,
    }
    sizes = [int(2.5 * vocab_size + 2 * table + 1) for table in range(n_tables)]
    parts = random_parts(codec, sum(sizes), width, seed=seed)
    bounds = [0, *accumulate(sizes)]
    files: list[dict[str, Tensor]] = [{}, {}]
    for table in range(n_tables):
        name = f"model.ngram_embeddings.embedders.{table}.weight"
        projection = f"model.ngram_embeddings.post_projs.{table}.weight"
        if spelling == "oe":
            name, projection = f"model.oe_embed_tokens{table}.weight", f"model.oe_embed_proj{table}.weight"
        rows = parts["records"][bounds[table] : bounds[table + 1]]
        files[table % 2][name] = row_tensor(codec, "records", rows)
        files[table % 2][projection] = bf16_tensor(8, width)
    written = write_checkpoint(path, files, config, metadata={"format": "pt"})
    return made(path, written, codec, width, {0: parts}, config=config)


def make_engram_peft(
    path: Path, *, codec: str = "f32", layers: Sequence[int] = (1, 3), width: int = 32, base: int = 101, seed: int = 0
) -> Made:
    """An adapter of engram-peft: one file, a table a layer, its offsets, and a config of its own."""
    primes = deepseek_primes(len(layers), 2, 2, base)
    config = {
        "model_type": "engram", "engram_vocab_size_per_ngram": [2 * base, 2 * base], "ngram_sizes": [2, 3],
        "n_head_per_ngram": 2, "embedding_dim": 4 * width, "target_layers": list(layers),
        "enable_tokenizer_compression": True, "compressed_vocab_size": 98_627, "pad_id": 2, "seed": 0, "hc_mult": 4,
    }  # fmt: skip
    rows, tensors = {}, {}
    for number, layer_id in enumerate(layers):
        rows[layer_id] = random_parts(codec, sum(primes[number]), width, seed=seed + number)
        table = f"{layer_id}.multi_head_embedding"
        tensors[f"{table}.embedding.weight"] = row_tensor(codec, "records", rows[layer_id]["records"])
        tensors[f"{table}.offsets"] = array_tensor([0, *accumulate(primes[number][:-1])])
        tensors[f"{layer_id}.gating.w_v.weight"] = bf16_tensor(8, 8)
    path.mkdir(parents=True)
    file = write_tensors(path / "engram_adapters.safetensors", tensors, {"format": "engram-peft"})
    (path / "config.json").write_text(json.dumps(config))
    return made(path, [file], codec, width, rows, config=config)


def make_raw(path: Path, records: Bytes, *, row_stride: int | None = None, first_byte: int = 0) -> Path:
    """Rows without a container: `row_stride` bytes from one to the next, whatever lies between is 0xEE."""
    stride = row_stride or records.shape[1]
    cells = np.full((len(records), stride), 0xEE, np.uint8)
    cells[:, : records.shape[1]] = records
    path.write_bytes(b"\xdd" * first_byte + cells.tobytes())
    return path


def make_gemma(path: Path, *, n_layers: int = 2, slice_width: int = 16, n_rows: int = 300, seed: int = 0) -> Made:
    """Per-layer embeddings: a row a token, a slice of it for each layer."""
    config = {
        "hidden_size_per_layer_input": slice_width, "vocab_size_per_layer_input": n_rows, "vocab_size": n_rows + 20,
        "num_hidden_layers": n_layers,
    }  # fmt: skip
    width = n_layers * slice_width
    parts = random_parts("bf16", n_rows, width, seed=seed)
    name = "model.language_model.embed_tokens_per_layer.weight"
    tensors = {name: row_tensor("bf16", "records", parts["records"]), "lm_head.weight": bf16_tensor(4, 4)}
    written = write_checkpoint(path, [tensors], config, metadata={})
    return made(path, written, "bf16", width, {0: parts}, config=config)


MAKERS = {
    "deepseek": make_deepseek,
    "deepseek-vllm": lambda path: make_deepseek(path, names="vllm"),
    "deepseek-bf16": lambda path: make_deepseek(path, codec="bf16"),
    "deepseek-f32": lambda path: make_deepseek(path, codec="f32"),
    "deepseek-mlx": lambda path: make_deepseek(path, names="mlx", codec="int4-g32"),
    "deepseek-language-model": lambda path: make_deepseek(path, names="language_model"),
    "qwen-bf16": make_qwen,
    "qwen-fp8": lambda path: make_qwen(path, codec="fp8-e4m3-scalar"),
    "qwen-mlx": lambda path: make_qwen(path, codec="int4-g32"),
    "qwen-mlx-shards": lambda path: make_qwen(path, codec="int4-g32", spelling="shards."),
    "qwen-nvfp4": lambda path: make_qwen(path, codec="nvfp4"),
    "mtplx": make_mtplx,
    "mtplx-bf16": lambda path: make_mtplx(path, codec="bf16"),
    "mtplx-interleaved": lambda path: make_mtplx(path, interleaved=True),
    "mlx-vlm-ranges": make_mlx_vlm,
    "mlx-vlm-interleaved": lambda path: make_mlx_vlm(path, layout="interleaved_q4"),
    "longcat": make_longcat,
    "longcat-oe": lambda path: make_longcat(path, spelling="oe"),
    "engram-peft": make_engram_peft,
    "gguf-row264": lambda path: make_gguf_deepseek(path.with_suffix(".gguf")),
    "gguf-q8_0": lambda path: make_gguf_deepseek(path.with_suffix(".gguf"), codec="q8_0"),
    "gguf-q4_0": lambda path: make_gguf_deepseek(path.with_suffix(".gguf"), codec="q4_0"),
    "gguf-f16": lambda path: make_gguf_deepseek(path.with_suffix(".gguf"), codec="f16"),
    "gguf-bf16": lambda path: make_gguf_deepseek(path.with_suffix(".gguf"), codec="bf16"),
    "gguf-f32": lambda path: make_gguf_deepseek(path.with_suffix(".gguf"), codec="f32"),
    "gguf-qwen-iq4_nl": lambda path: make_gguf_qwen(path.with_suffix(".gguf")),
    "gguf-qwen-q8_0": lambda path: make_gguf_qwen(path.with_suffix(".gguf"), codec="q8_0"),
}
"""Every form by a name, each called with the path of a directory that does not exist yet."""
