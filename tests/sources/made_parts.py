"""What synthetic checkpoints are made of: the published rules once more, random rows, and the containers.

Shares no code with what reads them; the safetensors package writes the files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file

Bytes = NDArray[np.uint8]
Tensor = tuple[str, tuple[int, ...], Bytes]
"""dtype as Hugging Face's files name it, shape, bytes."""

DTYPES = {
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E8M0": ("float8_e8m0fnu", 1), "BF16": ("bfloat16", 2), "F16": ("float16", 2),
    "F32": ("float32", 4), "U8": ("uint8", 1), "I8": ("int8", 1), "U32": ("uint32", 4), "I64": ("int64", 8),
}  # fmt: skip
SECTIONS: dict[str, list[tuple[str, str, int, int]]] = {
    # Part, dtype, bytes of one element, values that one element stands for.
    "fp8-e4m3-e8m0": [("weights", "F8_E4M3", 1, 1), ("scales", "F8_E8M0", 1, 32)],
    "int4-g32": [("weights", "U32", 4, 8), ("scales", "BF16", 2, 32), ("biases", "BF16", 2, 32)],
    "bf16": [("records", "BF16", 2, 1)],
    "f16": [("records", "F16", 2, 1)],
    "f32": [("records", "F32", 4, 1)],
    "fp8-e4m3-scalar": [("records", "F8_E4M3", 1, 1)],
    # Four-bit floats with a scale of eight bits for sixteen: no codec of ours.
    "nvfp4": [("weights", "U32", 4, 8), ("scales", "U8", 1, 16)],
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was written.

    Attributes
    ----------
    path
        What to open: a directory or a file.
    files
        Those that hold rows, sorted.
    codec, scale_bits
        `opaque-N` where no codec reads the rows.
    parts
        Names and bytes of the parts of a record, in its order.
    records
        uint8 (n_rows, row_bytes) by layer id.
    config
        What stands in config.json; empty where the container itself says it.
    """

    path: Path
    files: tuple[Path, ...]
    codec: str
    row_width: int
    parts: tuple[tuple[str, int], ...]
    records: dict[int, Bytes]
    scale_bits: int | None = None
    config: Mapping[str, Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of a record."""
        return sum(n_bytes for _, n_bytes in self.parts)


# The published rules, once more.


def primes_from(base: int, used: set[int]) -> int:
    """The smallest prime from `base` on that is not in `used`, which it joins."""
    number = base
    while number in used or any(number % factor == 0 for factor in range(2, math.isqrt(number) + 1)):
        number += 1
    used.add(number)
    return number


def deepseek_primes(n_layers: int, n_orders: int, heads: int, base: int) -> list[list[int]]:
    """By layer, the rows of each column: unused primes, the search restarted for each order."""
    used: set[int] = set()
    return [[primes_from(base, used) for _ in range(n_orders * heads)] for _ in range(n_layers)]


def deepseek_multipliers(canonical_size: int, n_multipliers: int, layer_id: int) -> list[int]:
    """As the reference draws them."""
    bound = (2**63 - 1) // canonical_size // 2
    drawn = np.random.default_rng(10007 * layer_id).integers(0, bound, n_multipliers, dtype=np.int64)
    return [2 * int(number) + 1 for number in drawn]


def qwen_multipliers(vocab_size: int, n_multipliers: int) -> list[int]:
    """Those of the first table."""
    mask, gamma, half = 2**64 - 1, 0x9E3779B97F4A7C15, (2**63 - 1) // vocab_size // 2
    found = []
    for back in range(n_multipliers):
        word = (1234 + gamma * (back + 1) + gamma) & mask
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & mask
        word = (word ^ word >> 27) * 0x94D049BB133111EB & mask
        found.append(2 * ((word ^ word >> 31) % half) + 1)
    return found


def qwen_constants(
    *, base: int, heads: int, divisor: int, vocab_size: int
) -> tuple[list[int], list[int], list[int], int]:
    """Multipliers, moduli, offsets and rows of a table of orders 2 and 3."""
    used: set[int] = set()
    moduli = [primes_from(base, used) for _ in range(2 * heads)]
    offsets = [0, *accumulate(moduli[:-1])]
    return qwen_multipliers(vocab_size, 3), moduli, offsets, -(-sum(moduli) // divisor) * divisor


# Rows.


def random_parts(codec: str, n_rows: int, width: int, *, seed: int, finite: bool = True) -> dict[str, Bytes]:
    """Each part of random records, uint8 (n_rows, bytes); every value a number of ordinary size if `finite`."""
    rng = np.random.default_rng(seed)
    parts = {
        name: rng.integers(0, 256, (n_rows, width // values * n_bytes), dtype=np.uint8)
        for name, _, n_bytes, values in SECTIONS[codec]
    }
    if not finite:
        return parts
    for name, dtype, _, _ in SECTIONS[codec]:
        data = parts[name]
        if dtype == "F8_E4M3":
            data[(data & 0x7F) == 0x7F] = 0x40
        elif dtype == "F8_E8M0":
            data[:] = 110 + data % 20
        elif dtype == "BF16":
            data.view("<u2")[:] = (rng.standard_normal(data.size // 2).astype("<f4").view("<u4") >> 16).reshape(
                n_rows, -1
            )
        elif dtype in ("F16", "F32"):
            values = rng.standard_normal(data.size // DTYPES[dtype][1]).astype("<f2" if dtype == "F16" else "<f4")
            data[:] = values.view(np.uint8).reshape(data.shape)
    return parts


def joined(parts: Mapping[str, Bytes]) -> Bytes:
    """Records whose parts follow each other."""
    return np.ascontiguousarray(np.concatenate(list(parts.values()), axis=1))


def row_tensor(codec: str, part: str, rows: Bytes) -> Tensor:
    """A part of rows as a tensor of a checkpoint."""
    dtype = next(dtype for name, dtype, _, _ in SECTIONS[codec] if name == part)
    return dtype, (len(rows), rows.shape[1] // DTYPES[dtype][1]), rows


def array_tensor(values: Sequence[int]) -> Tensor:
    """Integers as a tensor."""
    array = np.array(values, dtype="<i8")
    return "I64", array.shape, array.view(np.uint8)


def bf16_tensor(*shape: int) -> Tensor:
    """A matrix that is no table."""
    return "BF16", shape, np.zeros(2 * math.prod(shape), np.uint8)


# Containers.


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """A file written by the safetensors package."""
    kept = {name: np.ascontiguousarray(data) for name, (_, _, data) in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=DTYPES[dtype][0], shape=shape, data_ptr=kept[name].ctypes.data, data_len=kept[name].nbytes
        )
        for name, (dtype, shape, _) in tensors.items()
    }
    serialize_file(specs, path, metadata=dict(metadata) if metadata else None)
    return path


def write_checkpoint(
    path: Path, files: Sequence[Mapping[str, Tensor]], config: Mapping[str, Any], *, metadata: Mapping[str, str]
) -> tuple[Path, ...]:
    """A directory of numbered files with an index and a config, as Hugging Face lays them."""
    path.mkdir(parents=True)
    names = [f"model-{number + 1:05d}-of-{len(files):05d}.safetensors" for number in range(len(files))]
    written = tuple(write_tensors(path / name, tensors, metadata) for name, tensors in zip(names, files, strict=True))
    weight_map = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
    n_bytes = sum(len(data.reshape(-1)) for tensors in files for _, _, data in tensors.values())
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": n_bytes}, "weight_map": weight_map})
    )
    if config:
        (path / "config.json").write_text(json.dumps(config))
    return written


def codec_of(codec: str, parts: Mapping[str, Bytes]) -> str:
    """The library's name for rows of a codec here."""
    return f"opaque-{sum(rows.shape[1] for rows in parts.values())}" if codec == "nvfp4" else codec


def made(
    path: Path, files: Sequence[Path], codec: str, width: int, rows: Mapping[int, Mapping[str, Bytes]], **more: Any
) -> Made:
    """The `Made` of rows by layer and part."""
    first = next(iter(rows.values()))
    return Made(
        path=path,
        files=tuple(sorted(files)),
        codec=codec_of(codec, first),
        row_width=width,
        parts=tuple((name, data.shape[1]) for name, data in first.items()),
        records={layer_id: joined(parts) for layer_id, parts in rows.items()},
        **more,
    )
