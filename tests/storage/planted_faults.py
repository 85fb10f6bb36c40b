"""Small tables with one fault each, laid from records that are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from small_tables import lay_table, small_manifest, small_spec

from engram_tables.storage.codecs.codec import get_codec

N_ROWS = 4002
HEAD_ROWS = N_ROWS // 2
Records = dict[int, NDArray[np.uint8]]


def sound_records(codec: str, *, seed: int = 0) -> Records:
    """Normal values of two layers of two heads, width 32."""
    rng = np.random.default_rng(seed)
    return {
        layer_id: get_codec(codec).encode(rng.normal(0, 0.2, (N_ROWS, 32)).astype(np.float32)) for layer_id in (1, 14)
    }


def lay(path: Path, codec: str, records: Records) -> Path:
    """A table of these records, of no known origin."""
    empty = small_manifest(small_spec(N_ROWS), codec=codec)
    return lay_table(path, empty, records, shard_bytes=100_000)


def zeroed_head(codec: str, records: Records) -> None:
    zero = get_codec(codec).encode(np.zeros((1, 32), np.float32))
    records[14][HEAD_ROWS:] = zero


def repeated_rows(_codec: str, records: Records) -> None:
    """A tenth of a head stands in it ten times, in places of no order."""
    head = records[1][:HEAD_ROWS]
    chooser = np.random.default_rng(1)
    head[chooser.permutation(HEAD_ROWS)[:2000]] = np.tile(head[:200].copy(), (10, 1))


def repeated_neighbours(_codec: str, records: Records) -> None:
    head = records[1][HEAD_ROWS:]
    head[1::2] = head[0:-1:2]


def head_of_another_shifted(_codec: str, records: Records) -> None:
    """The second head holds the rows of the first, one later."""
    records[1][HEAD_ROWS + 1 :] = records[1][: HEAD_ROWS - 1]


def copied_layer(_codec: str, records: Records) -> None:
    records[14][:] = records[1]


def moved_without_wrap(_codec: str, records: Records) -> None:
    records[1][1:HEAD_ROWS] = records[1][: HEAD_ROWS - 1].copy()


def unwritten_stretch(codec: str, records: Records) -> None:
    records[1][500:1200] = get_codec(codec).encode(np.zeros((1, 32), np.float32))


def constant_rows(codec: str, records: Records) -> None:
    records[14][10:HEAD_ROWS:11] = get_codec(codec).encode(np.full((1, 32), 0.5, np.float32))


def scattered_zeros(codec: str, records: Records) -> None:
    records[14][10:HEAD_ROWS:11] = get_codec(codec).encode(np.zeros((1, 32), np.float32))


def not_a_number(codec: str, records: Records) -> None:
    """In every twentieth row of a head: a code of NaN where the codec has one, else a scale that is."""
    rows = records[14][5:HEAD_ROWS:20]
    match codec:
        case "bf16":
            rows[:, 6:8] = (0xC0, 0x7F)
        case "f32":
            rows[:, 8:12] = (0, 0, 0xC0, 0x7F)
        case "fp8-e4m3-e8m0" | "f8":
            rows[:, 3] = 0x7F
        case "int8-row":
            rows[:, 32:34] = (0, 0x7E)
        case "int4-g32":
            rows[:, 16:18] = (0xC0, 0x7F)
        case "q8_0":
            rows[:, 0:2] = (0, 0x7E)


def larger_head(codec: str, records: Records) -> None:
    values = get_codec(codec).decode(records[1][HEAD_ROWS:]) * np.float32(64)
    records[1][HEAD_ROWS:] = get_codec(codec).encode(values)


def alike_neighbours(codec: str, records: Records) -> None:
    values = get_codec(codec).decode(records[1][:HEAD_ROWS])
    values[1:] += values[:-1].copy()
    records[1][:HEAD_ROWS] = get_codec(codec).encode(values)


Fault = Callable[[str, Records], None]
FIRST, SECOND = "layer 1, order 2, head 0", "layer 1, order 2, head 1"
FAULTS: list[tuple[Fault, str, str]] = [
    (zeroed_head, "zero-head", "layer 14, order 2, head 1"),
    (repeated_rows, "repeated-rows", FIRST),
    (repeated_neighbours, "repeated-neighbours", SECOND),
    (head_of_another_shifted, "shifted-copy", SECOND),
    (copied_layer, "copied-head", "layer 14, order 2, head 0"),
    (moved_without_wrap, "edge-repeated", FIRST),
    (unwritten_stretch, "zero-stretch", FIRST),
    (constant_rows, "constant-rows", "layer 14, order 2, head 0"),
    (scattered_zeros, "zero-rows", "layer 14, order 2, head 0"),
    (not_a_number, "", "layer 14, order 2, head 0"),
    (larger_head, "norms-out-of-line", "2 heads (layer 1"),
    (alike_neighbours, "alike-neighbours", FIRST),
]
