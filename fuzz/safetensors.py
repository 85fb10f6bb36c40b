"""The reader of safetensors headers: any bytes give a header whose ranges lie in the file, or `InvalidInput`."""

from __future__ import annotations

import json

import atheris

with atheris.instrument_imports(include=["engram_tables", "json"]):
    from engram_tables.errors import InvalidInput
    from engram_tables.safetensors_file import read_integers, read_safetensors_header

from fuzz.harness import BytesFile, fuzz


def one_input(data: bytes) -> None:
    """A file as it is, and the same as a header whose length is right."""
    check(data)
    check(len(data[1:]).to_bytes(8, "little") + data[1:] + bytes(data[0] if data else 0))


def check(data: bytes) -> None:
    """Read a header, and every integer tensor in it."""
    try:
        header = read_safetensors_header(BytesFile(data))
    except InvalidInput:
        return
    end = header.data_offset
    for name, info in sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        assert end == info.start <= info.stop <= len(data)
        end = info.stop
        try:
            values = read_integers(header, name)
        except InvalidInput:
            continue
        assert values.shape == info.shape
        assert values.nbytes <= 8 * (info.stop - info.start)
    assert end == len(data)


def seeds() -> dict[str, bytes]:
    """Small valid files, and some that are nearly."""
    pair = {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}
    tables = {
        "layers.1.engram.embed.weight": {"dtype": "F8_E4M3", "shape": [3, 4], "data_offsets": [0, 12]},
        "layers.1.engram.embed.scale": {"dtype": "F8_E8M0", "shape": [3, 1], "data_offsets": [12, 15]},
        "half": {"dtype": "F4", "shape": [2], "data_offsets": [15, 16]},
    }
    headers = [
        {},
        {"a": pair},
        {"a": pair, "__metadata__": {"format": "pt"}},
        tables,
        {"a": {**pair, "shape": [2**61 + 2]}},
        {"a": {**pair, "data_offsets": [8, 24]}},
    ]
    encoded = [json.dumps(header).encode() for header in headers]
    encoded += [b'{"a":1,"a":2}', b'{"\\ud800":{}}', b"[" * 50, encoded[1] + b"   "]
    files = {f"file-{nth}": len(text).to_bytes(8, "little") + text + bytes(16) for nth, text in enumerate(encoded)}
    return files | {f"header-{nth}": bytes([16]) + text for nth, text in enumerate(encoded)}


WORDS = (
    '"dtype":', '"shape":', '"data_offsets":', '"__metadata__":', "[0,16]", "[2]", "[]", "null", "{", "}", '"a":',
    "1e400", "9223372036854775807", "18446744073709551616", "-1", "NaN", '"I64"', '"U8"', '"F4"', '"F8_E8M0"',
    "\\\\ud800",
)  # fmt: skip


if __name__ == "__main__":
    fuzz(one_input, seeds(), WORDS)
