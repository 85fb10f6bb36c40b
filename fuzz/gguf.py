"""The reader of GGUF headers: any bytes give tensors that lie in the file, or `InvalidInput`."""

from __future__ import annotations

import struct

import atheris

with atheris.instrument_imports(include=["engram_tables"]):
    from engram_tables.errors import InvalidInput
    from engram_tables.gguf_file import GgufHeader, read_gguf

from fuzz.harness import BytesFile, fuzz


def one_input(data: bytes) -> None:
    """Read a header with no value kept, with those of even length, and with all."""
    found: list[GgufHeader | None] = []
    for kept in (lambda key: False, lambda key: len(key) % 2 == 0, lambda key: True):
        try:
            found.append(read_gguf(BytesFile(data), kept))
        except InvalidInput:
            found.append(None)
    if found[2] is None:
        return
    # What is right when every value is looked at is right when none is.
    assert found[0] is not None
    assert found[0].tensors == found[2].tensors
    assert found[2].key_values_stop <= len(data)
    end = 0
    for tensor in sorted(found[2].tensors.values(), key=lambda tensor: (tensor.offset, tensor.n_bytes)):
        assert found[2].data_offset <= tensor.offset
        assert end <= tensor.offset <= tensor.offset + tensor.n_bytes <= len(data)
        end = tensor.offset + tensor.n_bytes


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _tensor(name: bytes, dims: tuple[int, ...], type_id: int, offset: int) -> bytes:
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def seeds() -> dict[str, bytes]:
    """Small valid files of both versions with every kind of value."""
    values = {
        b"general.alignment": struct.pack("<II", 4, 32),
        b"general.name": struct.pack("<I", 8) + _text(b"a"),
        b"tokenizer.ggml.tokens": struct.pack("<IIQ", 9, 8, 3) + _text(b"") + _text(b"b") + _text("ä".encode()),
        b"engram.multipliers": struct.pack("<IIQ2Q", 9, 10, 2, 1, 2**64 - 1),
        b"flags": struct.pack("<IIQ2B", 9, 7, 2, 0, 1),
        b"f32": struct.pack("<If", 6, 0.5),
    }
    tensors = [_tensor(b"t", (32, 2), 8, 0), _tensor(b"i", (4,), 24, 96), _tensor(b"new", (1,), 99, 128)]

    def file(version: int, chosen: dict[bytes, bytes], described: list[bytes]) -> bytes:
        header = b"GGUF" + struct.pack("<IQQ", version, len(described), len(chosen))
        header += b"".join(_text(key) + value for key, value in chosen.items()) + b"".join(described)
        return header + bytes(-len(header) % 32 + 160)

    return {
        "whole": file(3, values, tensors),
        "older": file(2, values, tensors[:1]),
        "values": file(3, values, []),
        "tensors": file(3, {}, tensors),
        "swapped": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    }


if __name__ == "__main__":
    fuzz(one_input, seeds())
