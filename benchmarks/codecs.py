"""Encoding and decoding rows, every codec, one thread: against NumPy, the gguf package, ml_dtypes and a plain copy.

    python -m benchmarks.codecs [--width 256] [--mib 1,64] [--repeats 7] [--record FILE]

Timed: `Codec.encode` and `Codec.decode` into buffers that have been written before, checks of every value included,
and the peers as their users call them, which make their own results. A plain copy that reads and writes as many bytes
as the codec does, half of them each, is the ceiling. Working sets of 1 MiB stay in the cache, those of 64 MiB do not.
Checked before anything is timed: sampled rows against the plain-Python reference, and every byte against each peer
that follows the same rule; a difference ends the run with 6.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engram_tables.measure.environment import command_line, describe
from engram_tables.measure.timing import Case, interleave
from engram_tables.storage.codecs import reference
from engram_tables.storage.codecs.codec import CODEC_NAMES, FP8_SCALAR, Codec, get_codec
from engram_tables.storage.codecs.fidelity import Fidelity

N_CHECKED_ROWS = 8
# The scale of a published table: 209 * 2**-20.
SCALE = np.float32(209 * 2.0**-20)
GGUF_TYPES = {"q8_0": "Q8_0", "q4_0": "Q4_0", "iq4_nl": "IQ4_NL", "bf16": "BF16"}
Peers = dict[str, Callable[[], Any]]
E4M3 = np.array([reference.e4m3_value(code) for code in range(256)], np.float32)
E8M0 = np.array([reference.e8m0_value(code) for code in range(256)], np.float32)


def main(arguments: list[str] | None = None) -> int:
    """Run and print; 0, or 6 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="values of a row, a multiple of 32")
    parser.add_argument("--mib", default="1,64", help="MiB of float32 values, one working set each")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {
        "schema": "engram.benchmark-codecs/1",
        "command": command_line(),
        "environment": describe(),
        "row_width": options.width,
        "waived": {name: "not installed" for name in ("gguf", "ml_dtypes") if importlib.util.find_spec(name) is None},
        "points": [],
    }
    for mib in options.mib.split(","):
        n_rows = max(N_CHECKED_ROWS, int(float(mib) * 2**20) // (4 * options.width))
        for name in CODEC_NAMES:
            for point in measure(name, n_rows, options.width, options.repeats):
                if "wrong" in point:
                    print(f"check failed: {name}: {point['wrong']}; nothing was timed", file=sys.stderr)
                    return 6
                record["points"].append(point)
                show(point)
        record["points"].append(measure_fidelity(n_rows, options.width, options.repeats))
        show(record["points"][-1])
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def measure(name: str, n_rows: int, width: int, repeats: int) -> list[dict[str, Any]]:
    """Encode and decode; a point with `wrong` where a result is not what it must be."""
    codec = get_codec(name, scale_bits=int(SCALE.view(np.uint32)) if name == FP8_SCALAR else None)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((n_rows, width), np.float32) * np.float32(0.01)
    records = np.ones((n_rows, codec.row_bytes(width)), np.uint8)
    if codec.can_encode:
        codec.encode(values, records)
    else:
        records = rng.integers(0, 256, records.shape, np.uint8)
        # Of the scale of each block, the exponents that would make it infinite or NaN are left out.
        records.reshape(-1, 18)[:, 1] &= 0xBF
    decoded = codec.decode(records, np.ones_like(values))
    for row in range(0, n_rows, n_rows // N_CHECKED_ROWS):
        if codec.can_encode:
            expected = reference.encode_row(name, values[row].tolist(), scale=float(codec.scale))
            if bytes(records[row]) != expected:
                return [{"wrong": f"row {row} is not encoded as the reference does"}]
        if decoded[row].tolist() != reference.decode_row(name, bytes(records[row]), scale=float(codec.scale)):
            return [{"wrong": f"row {row} is not decoded as the reference does"}]
    points = []
    for direction, ours, peers, result in (
        ("encode", lambda: codec.encode(values, records), encoders(codec, values), records),
        ("decode", lambda: codec.decode(records, decoded), decoders(codec, records), decoded),
    ):
        if direction == "encode" and not codec.can_encode:
            continue
        for peer, run in peers.items():
            if np.ascontiguousarray(run()).tobytes() != result.tobytes():
                return [{"wrong": f"{peer} gives another result when it is asked to {direction}"}]
        points.append(
            timed({"ours": ours, **peers}, values.nbytes + records.nbytes, values.size, repeats)
            | {"codec": name, "direction": direction, "row_bytes": records.shape[1], "n_rows": n_rows}
        )
    return points


def measure_fidelity(n_rows: int, width: int, repeats: int) -> dict[str, Any]:
    """The sums of the error report, which reads originals and decoded values."""
    original = np.random.default_rng(1).standard_normal((n_rows, width), np.float32)
    decoded = original + np.float32(0.001)
    columns = np.zeros(n_rows, np.int64)

    def with_numpy() -> Any:
        errors = np.abs(original.astype(np.float64) - decoded)
        return errors.max(), (errors**2).sum(), (original.astype(np.float64) ** 2).sum(), errors.any(axis=1).sum()

    cases: Peers = {"ours": lambda: Fidelity().add(1, columns, original, decoded), "numpy": with_numpy}
    found = timed(cases, 2 * original.nbytes, original.size, repeats)
    return found | {"codec": "", "direction": "compare", "row_bytes": 0, "n_rows": n_rows}


def timed(cases: Peers, moved_bytes: int, n_values: int, repeats: int) -> dict[str, Any]:
    """Medians of interleaved runs, with a copy that moves as many bytes."""
    source = np.ones(moved_bytes // 2, np.uint8)
    target = np.ones_like(source)
    cases = cases | {"memcpy": lambda: np.copyto(target, source)}

    def case(run: Callable[[], Any]) -> Case:
        # Run once outside the window as well: what the case before has left in the caches is not this one's business.
        return Case(prepare=run, run=lambda _: run())

    samples = interleave({key: case(run) for key, run in cases.items()}, repeats=repeats, warm_ups=2)
    ours_ns = samples["ours"].median_ns
    return {
        "moved_bytes": moved_bytes,
        "n_values": n_values,
        "share_of_memcpy": samples["memcpy"].median_ns / ours_ns,
        "ratios": {key: found.median_ns / ours_ns for key, found in samples.items() if key not in ("ours", "memcpy")},
        "cases": {
            key: {
                "bytes_per_s": moved_bytes * 1e9 / found.median_ns,
                "values_per_s": n_values * 1e9 / found.median_ns,
                **found.summary(),
            }
            for key, found in samples.items()
        },
    }


def encoders(codec: Codec, values: Any) -> Peers:
    """Peers that write the same records."""
    width, peers = values.shape[1], gguf_peer(codec, "quantize", values)
    match codec.name:
        case "f32":
            peers["numpy"] = lambda: values.copy()
        case "f16":
            peers["numpy"] = lambda: values.astype(np.float16)
        case "int8-row":
            halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)

            def rows() -> Any:
                scales = halves[np.searchsorted(halves, np.abs(values).max(axis=1) / np.float32(127))][:, None]
                codes = np.rint(values / scales).astype(np.int8)
                return np.concatenate([codes.view(np.uint8), scales.astype(np.float16).view(np.uint8)], axis=1)

            peers["numpy"] = rows
        case "int4-g32":

            def affine() -> Any:
                groups = values.reshape(-1, 32)
                bias = rounded_to_bf16(groups.min(axis=1))
                scale = rounded_to_bf16((groups.max(axis=1) - bias) / np.float32(15))
                codes = np.rint((groups - bias[:, None]) / scale[:, None]).clip(0, 15).astype(np.uint8)
                pairs = codes[:, ::2] | codes[:, 1::2] << 4
                halves = [(part.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8) for part in (scale, bias)]
                return np.concatenate([part.reshape(len(values), -1) for part in (pairs, *halves)], axis=1)

            peers["numpy"] = affine
        case "bf16" | "fp8-e4m3-scalar" if importlib.util.find_spec("ml_dtypes"):
            import ml_dtypes

            if codec.name == "bf16":
                peers["ml_dtypes"] = lambda: values.astype(ml_dtypes.bfloat16)
            else:
                peers["ml_dtypes"] = lambda: (values / codec.scale).astype(ml_dtypes.float8_e4m3fn)
        case "fp8-e4m3-e8m0" if importlib.util.find_spec("ml_dtypes"):
            import ml_dtypes

            def shared() -> Any:
                groups = values.reshape(-1, 32)
                fraction, exponent = np.frexp(np.abs(groups).max(axis=1))
                exponent = exponent - 9 + (fraction > 0.875)
                codes = np.ldexp(groups, -exponent[:, None]).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
                scales = (exponent + 127).astype(np.uint8).reshape(len(values), -1)
                return np.concatenate([codes.reshape(len(values), width), scales], axis=1)

            peers["ml_dtypes"] = shared
    return peers


def decoders(codec: Codec, records: Any) -> Peers:
    """Peers that read the same values."""
    peers = gguf_peer(codec, "dequantize", records)
    match codec.name:
        case "f32":
            peers["numpy"] = lambda: records.view(np.float32).copy()
        case "f16":
            peers["numpy"] = lambda: records.view(np.float16).astype(np.float32)
        case "bf16":
            peers["numpy"] = lambda: (records.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        case "fp8-e4m3-e8m0":

            def shared() -> Any:
                width = records.shape[1] // 33 * 32
                scales = E8M0[records[:, width:]].repeat(32, axis=1)
                return rounded_to_bf16(E4M3[records[:, :width]] * scales)

            peers["numpy"] = shared
        case "fp8-e4m3-scalar":
            peers["numpy"] = lambda: E4M3[records] * codec.scale
        case "int8-row":
            peers["numpy"] = lambda: (
                records[:, :-2].view(np.int8).astype(np.float32)
                * np.ascontiguousarray(records[:, -2:]).view(np.float16).astype(np.float32)
            )
        case "int4-g32":

            def affine() -> Any:
                n_groups = records.shape[1] // 20
                pairs = records[:, : 16 * n_groups].reshape(-1, 16)
                codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(-1, 32).astype(np.float32)
                halves = np.ascontiguousarray(records[:, 16 * n_groups :]).view(np.uint16).astype(np.uint32) << 16
                scales, biases = (part.reshape(-1, 1) for part in np.split(halves.view(np.float32), 2, axis=1))
                return codes * scales + biases

            peers["numpy"] = affine
    return peers


def gguf_peer(codec: Codec, verb: str, array: Any) -> Peers:
    """The gguf package, for the formats that it has."""
    if codec.name not in GGUF_TYPES or importlib.util.find_spec("gguf") is None:
        return {}
    from gguf import GGMLQuantizationType, quants

    found = GGMLQuantizationType[GGUF_TYPES[codec.name]]
    return {"gguf": lambda: getattr(quants, verb)(array, found)}


def rounded_to_bf16(values: Any) -> Any:
    """Finite float32 values rounded to bfloat16, as float32."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def show(point: dict[str, Any]) -> None:
    """One codec and direction on a terminal."""
    ours = point["cases"]["ours"]
    what = f"{point['codec']} {point['direction']}".strip()
    peers = ", ".join(f"{ratio:.1f} × {peer}" for peer, ratio in point["ratios"].items()) or "no peer here"
    print(
        f"{point['n_values'] / 2**18:4.0f} MiB  {what:23} {ours['values_per_s'] / 1e9:5.2f} G values/s  "
        f"{ours['bytes_per_s'] / 1e9:5.1f} GB/s  {point['share_of_memcpy']:4.0%} of memcpy  {peers}  "
        f"(MAD {ours['mad_ns'] / ours['median_ns']:.1%}, n {ours['n']})",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
