"""Damaged, contradictory and hostile checkpoints: one of our errors, or the rows of the undamaged file."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_checkpoints import (
    QWEN_PREFIX,
    Made,
    array_tensor,
    bf16_tensor,
    make_deepseek,
    make_engram_peft,
    make_gguf_deepseek,
    make_gguf_qwen,
    make_longcat,
    make_mlx_vlm,
    make_mtplx,
    make_qwen,
    write_tensors,
)

from engram_tables.errors import EngramError, InvalidInput, SpecMismatch
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.reading import read_records
from engram_tables.storage.sources.source import closing

Header = dict[str, Any]


def change_header(path: Path, change: Callable[[Header], Header | None]) -> None:
    """Rewrite the JSON at the start of a file, its data left as they are."""
    data = path.read_bytes()
    (n_bytes,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n_bytes])
    encoded = json.dumps(change(header) or header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + n_bytes :])


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def check_refused_or_whole(made: Made, path: Path | None = None) -> bool:
    """Whether `made` is refused by an error of ours; else its rows must be the true ones."""
    try:
        source = open_source(path or made.path)
    except EngramError:
        return True
    with closing(source):
        for layer_id, records in made.records.items():
            for start, stop in source.owned(layer_id):
                out = np.zeros((stop - start, source.row_bytes), np.uint8)
                read_records(source, layer_id, start, out)
                assert source.codec.name == made.codec
                assert np.array_equal(out, records[start:stop])
    return False


# Safetensors.


def test_swapped_tensors_are_refused(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")

    def swap(header: Header) -> None:
        weight, scale = "layers.1.engram.embed.weight", "layers.1.engram.embed.scale"
        header[weight], header[scale] = header[scale], header[weight]

    change_header(made.files[0], swap)
    with pytest.raises(InvalidInput, match=r"embed\.weight"):
        open_source(made.path)


def test_scales_of_the_other_layer_are_refused(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    change_header(made.files[0], lambda h: _rename(h, "layers.1.engram.embed.scale", "layers.3.engram.embed.scale"))
    with pytest.raises(InvalidInput, match="expected it once"):
        open_source(made.path)


def _rename(header: Header, old: str, new: str) -> Header:
    return {new if name == old else name: info for name, info in header.items()}


def test_renamed_layers_contradict_the_recipe(tmp_path: Path) -> None:
    """Both layers' names exchanged: nothing in the container tells, the row counts do."""
    made = make_deepseek(tmp_path / "model")
    change_header(made.files[0], lambda h: {name.replace("layers.1.", "layers.3."): info for name, info in h.items()})
    change_header(made.files[1], lambda h: {name.replace("layers.3.", "layers.1."): info for name, info in h.items()})
    with pytest.raises(SpecMismatch, match="rows"):
        open_source(made.path)


def test_missing_scales_are_named(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    for file in made.files:
        change_header(file, lambda h: {name.replace("embed.scale", "gate.zero"): info for name, info in h.items()})
    with pytest.raises(InvalidInput, match=r"layers\.1\.engram\.embed\.scale \[4\d\d, 2\]"):
        open_source(made.path)


def test_missing_biases_are_named(tmp_path: Path) -> None:
    made = make_mtplx(tmp_path / "model")
    change_header(made.files[0], lambda h: _rename(h, "ngram.biases", "other.biases"))
    with pytest.raises(InvalidInput, match=r"ngram\.biases"):
        open_source(made.path)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_missing_file_is_told_by_its_rows(kept: int, tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model")
    made.files[1 - kept].unlink()
    with pytest.raises((InvalidInput, SpecMismatch), match=r"missing|rows"):
        open_source(made.path)
    deepseek = make_deepseek(tmp_path / "deepseek")
    deepseek.files[1 - kept].unlink()
    with pytest.raises(InvalidInput, match=r"no row of layer"):
        open_source(deepseek.path)


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model")
    name = f"{QWEN_PREFIX}.ngram_embedding.shard_1.weight"
    change_header(made.files[0], lambda h: _rename(h, name, "some.other.weight"))
    with pytest.raises((InvalidInput, SpecMismatch), match=r"rows 106 to 211 of layer 1 are missing"):
        open_source(made.path)


def test_a_missing_head_is_told(tmp_path: Path) -> None:
    made = make_longcat(tmp_path / "model")
    name = "model.ngram_embeddings.embedders.2.weight"
    change_header(made.files[0], lambda h: _rename(h, name, "some.other.weight"))
    with pytest.raises(InvalidInput, match=r"are missing"):
        open_source(made.path)


def test_heads_that_were_exchanged_contradict_the_recipe(tmp_path: Path) -> None:
    made = make_longcat(tmp_path / "model")

    def exchange(header: Header) -> Header:
        stem = "model.ngram_embeddings.embedders."
        swap = {f"{stem}0.weight": f"{stem}2.weight", f"{stem}2.weight": f"{stem}0.weight"}
        return {swap.get(name, name): info for name, info in header.items()}

    change_header(made.files[0], exchange)
    with pytest.raises(SpecMismatch, match=r"embedders"):
        open_source(made.path)


def test_the_same_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    (made.path / "again.safetensors").write_bytes(made.files[0].read_bytes())
    with pytest.raises(InvalidInput, match="expected it once"):
        open_source(made.path)


def test_shards_of_another_table_are_refused(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model")
    for number, (change, files) in enumerate(
        [
            ({"codec": "int4-g32"}, 1),
            ({"base": 211}, 1),
            ({"width": 32}, 1),
            ({"prefix": "language_model.layers.1.ple.ple_embedding"}, 1),
            ({"prefix": "model.layers.9.ple.ple_embedding"}, 1),
        ]
    ):
        other = make_qwen(tmp_path / f"other-{number}", **change)
        mixed = tmp_path / f"mixed-{number}"
        mixed.mkdir()
        os.link(made.path / "config.json", mixed / "config.json")
        os.link(made.files[0], mixed / made.files[0].name)
        os.link(other.files[files], mixed / other.files[files].name)
        with pytest.raises((InvalidInput, SpecMismatch)):
            open_source(mixed)


@pytest.mark.parametrize("constant", ["layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets"])
def test_flipped_constants_contradict_the_recipe(constant: str, tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model")
    with closing(open_source(made.path)) as source:
        tensor = next(tensor for tensor in source.scale_tensors if tensor.name.endswith(constant))
        path = made.files[tensor.file_idx]
    for bit in (0, 9, 40, 63):
        data = bytearray(path.read_bytes())
        data[tensor.start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises((SpecMismatch, InvalidInput), match=constant):
            open_source(made.path)
        data[tensor.start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
    with closing(open_source(made.path)):
        pass


@pytest.mark.parametrize("bits", [0, 0x7F80, 0xFF80, 0x7FC0, 0xB951])
def test_a_scale_that_is_no_positive_number_is_refused(bits: int, tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model", codec="fp8-e4m3-scalar")
    with closing(open_source(made.path)) as source:
        scale = source.scale_tensors[0]
    with made.files[scale.file_idx].open("r+b") as file:
        file.seek(scale.start)
        file.write(struct.pack("<H", bits))
    with pytest.raises(InvalidInput, match="scale of"):
        open_source(made.path)


def test_offsets_of_an_adapter_contradict_its_config(tmp_path: Path) -> None:
    made = make_engram_peft(tmp_path / "model")
    change_json(made.path / "config.json", lambda config: {**config, "seed": 1})
    with closing(open_source(made.path)):
        pass  # a seed shows in no tensor: the package saves no multipliers
    change_json(made.path / "config.json", lambda config: {**config, "engram_vocab_size_per_ngram": [206, 206]})
    with pytest.raises(SpecMismatch, match=r"offsets|rows"):
        open_source(made.path)


def test_tables_of_two_forms_are_refused(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model")
    other = make_mtplx(tmp_path / "other")
    os.link(other.files[0], made.path / other.files[0].name)
    with pytest.raises((InvalidInput, SpecMismatch)):
        open_source(made.path)


def test_an_unknown_name_with_as_many_rows_is_named(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    with closing(open_source(made.path)) as source:
        spec = source.spec
    n_rows = len(made.records[1])
    write_tensors(tmp_path / "x.safetensors", {"blocks.1.memory": bf16_tensor(n_rows, 64), "n": array_tensor([1])})
    with pytest.raises(InvalidInput, match=r"blocks\.1\.memory BF16 \[4\d\d, 64\]"):
        open_source(tmp_path / "x.safetensors", spec=spec)


@pytest.mark.parametrize(
    "shape", [[418], [418, 8, 8], [0, 64], [418, 0], [2**63 - 1, 64], [2**63, 64], [-1, 64], [418.0, 64], ["418", 64]]
)
def test_shapes_that_lie_are_refused(shape: list[Any], tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    name = "layers.1.engram.embed.weight"
    change_header(made.files[0], lambda h: h[name].update(shape=shape))
    with pytest.raises((InvalidInput, SpecMismatch)):
        open_source(made.path)


SMALL_MAKERS = [
    lambda path: make_deepseek(path, extras=False, width=32, base=5),
    lambda path: make_qwen(path, codec="fp8-e4m3-scalar", extras=False, width=32, base=5, n_files=1, n_parts=2),
    lambda path: make_mtplx(path, interleaved=True, width=32),
    lambda path: make_longcat(path, width=8),
]


@pytest.mark.parametrize("step", [41, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", SMALL_MAKERS)
def test_no_flipped_bit_or_cut_of_a_header_gives_wrong_rows(
    make: Callable[[Path], Made], step: int, tmp_path: Path
) -> None:
    """Flips that change a name, the metadata or nothing leave the rows as they are; all others are refused."""
    made = make(tmp_path / "model")
    path = made.files[0]
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    refused = 0
    for bit in range(0, 8 * end, step):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        refused += check_refused_or_whole(made)
    assert refused > 3 * end // step
    for cut in [*range(0, end, step), end + 1, len(data) - 1]:
        path.write_bytes(data[:cut])
        assert check_refused_or_whole(made)
    path.write_bytes(data)
    assert not check_refused_or_whole(made)


# Links.


def test_links_within_the_directory_are_followed(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    (made.path / "store").mkdir()
    for file in made.files:
        file.rename(made.path / "store" / file.name)
        file.symlink_to(Path("store") / file.name)
    assert not check_refused_or_whole(made)
    (tmp_path / "named").symlink_to(made.path)
    assert not check_refused_or_whole(made, tmp_path / "named")


def test_a_snapshot_of_a_cache_is_made_of_links(tmp_path: Path) -> None:
    """models--x/snapshots/<revision>/file -> ../../blobs/<digest>"""
    made = make_qwen(tmp_path / "made")
    cache = tmp_path / "models--x"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, entry in enumerate(sorted(made.path.iterdir())):
        entry.rename(cache / "blobs" / str(number))
        (snapshot / entry.name).symlink_to(Path("../../blobs") / str(number))
    assert not check_refused_or_whole(made, snapshot)
    outside = tmp_path / "outside.safetensors"
    (cache / "blobs" / "0").rename(outside)
    link = snapshot / sorted(entry.name for entry in snapshot.iterdir())[0]
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(InvalidInput, match="found a link to"):
        open_source(snapshot)


@pytest.mark.parametrize("name", ["model-00001-of-00003.safetensors", "config.json", "model.safetensors.index.json"])
def test_links_out_of_the_directory_are_refused(name: str, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    (made.path / name).rename(tmp_path / "elsewhere")
    (made.path / name).symlink_to("../elsewhere")
    with pytest.raises(InvalidInput, match="found a link to"):
        open_source(made.path)


def test_links_that_lead_nowhere_or_in_a_circle_are_refused(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    link = made.path / "other.safetensors"
    for target in ("nothing", link.name):
        link.symlink_to(target)
        with pytest.raises(InvalidInput, match="leads to no file"):
            open_source(made.path)
        link.unlink()


# ple-store.json.


def _shard(store: Header, number: int = 1) -> Header:
    return store["shards"][number]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(version=1),
        lambda s: s.update(layout="diagonal"),
        lambda s: s.update(row_count=s["row_count"] + 1),
        lambda s: s.update(row_count=2**63),
        lambda s: s.update(row_width=32),
        lambda s: s.update(row_width=-64),
        lambda s: s.update(row_width=64.0),
        lambda s: s.update(quantization={"bits": 4, "group_size": 64, "mode": "affine"}),
        lambda s: s.update(source_root="nowhere"),
        lambda s: s.update(source_root=3),
        lambda s: s.update(shards=[]),
        lambda s: s.update(shards={}),
        lambda s: s["shards"].pop(),
        lambda s: s["shards"].pop(1),
        lambda s: s["shards"].reverse(),
        lambda s: s["shards"].append(s["shards"][0]),
        lambda s: s["shards"].__setitem__(1, 5),
        lambda s: _shard(s).pop("biases"),
        lambda s: _shard(s).pop("weight"),
        lambda s: _shard(s).update(row_start=0),
        lambda s: _shard(s).update(row_count=2**64),
        lambda s: _shard(s)["weight"].update(offset=_shard(s, 0)["weight"]["offset"]),
        lambda s: _shard(s)["weight"].update(offset=_shard(s)["weight"]["offset"] + 1),
        lambda s: _shard(s)["weight"].update(offset=-8),
        lambda s: _shard(s)["weight"].update(offset=2**63),
        lambda s: _shard(s)["weight"].update(offset=2**64 + _shard(s)["weight"]["offset"]),
        lambda s: _shard(s)["weight"].update(dtype="F32"),
        lambda s: _shard(s)["weight"].update(shape=[1, 8]),
        lambda s: _shard(s)["weight"].update(shape="x"),
        lambda s: _shard(s)["weight"].update(file="../x.safetensors"),
        lambda s: _shard(s)["weight"].update(file="/etc/passwd"),
        lambda s: _shard(s)["weight"].update(file="a\0b"),
        lambda s: _shard(s)["weight"].update(file=".."),
        lambda s: _shard(s)["weight"].update(file="nothing.safetensors"),
        lambda s: _shard(s)["weight"].update(file="config.json"),
        lambda s: _shard(s).update(scales=dict(_shard(s)["biases"])),
        lambda s: _shard(s).update(weight=[]),
    ],
)
def test_a_store_that_lies_is_refused(change: Callable[[Header], Any], tmp_path: Path) -> None:
    made = make_mlx_vlm(tmp_path / "model")
    assert not check_refused_or_whole(made)
    store = made.path / "ple-store.json"
    value = json.loads(store.read_text())
    change(value)
    store.write_text(json.dumps(value))
    with pytest.raises((InvalidInput, SpecMismatch)):
        open_source(made.path)


def test_scales_and_biases_exchanged_in_a_store_are_refused(tmp_path: Path) -> None:
    """Their dtypes and shapes are the same: the tensors' own names tell them apart."""
    made = make_mlx_vlm(tmp_path / "model")

    def exchange(store: Header) -> None:
        for entry in store["shards"]:
            entry["scales"], entry["biases"] = entry["biases"], entry["scales"]

    change_json(made.path / "ple-store.json", exchange)
    with pytest.raises(InvalidInput, match="biases"):
        open_source(made.path)


def test_shards_exchanged_in_a_store_are_refused(tmp_path: Path) -> None:
    made = make_mlx_vlm(tmp_path / "model")

    def exchange(store: Header) -> None:
        first, second = store["shards"][:2]
        for part in ("weight", "scales", "biases"):
            first[part], second[part] = second[part], first[part]

    change_json(made.path / "ple-store.json", exchange)
    with pytest.raises(InvalidInput, match="shard"):
        open_source(made.path)


@pytest.mark.parametrize(
    "text", ["", "[]", "nul", "[" * 100_000, '{"version":2,"version":2}', "\xff", "{}", "7" * 5000]
)
def test_a_store_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    made = make_mlx_vlm(tmp_path / "model")
    (made.path / "ple-store.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInput):
        open_source(made.path)


@pytest.mark.parametrize("change", [{"row_stride": 41}, {"row_stride": 0}, {"data_file": "../x"}, {"data_file": None},
                                    {"row_count": 423}, {"quantization": {}}])  # fmt: skip
def test_an_interleaved_store_that_lies_is_refused(change: Header, tmp_path: Path) -> None:
    made = make_mlx_vlm(tmp_path / "model", layout="interleaved_q4")
    assert not check_refused_or_whole(made)
    change_json(made.path / "ple-store.json", lambda store: {**store, **change})
    with pytest.raises((InvalidInput, SpecMismatch)):
        open_source(made.path)


def test_a_store_may_name_the_checkpoint_it_was_made_from(tmp_path: Path) -> None:
    made = make_mlx_vlm(tmp_path / "model")
    view = tmp_path / "view"
    view.mkdir()
    for name in ("config.json", "ple-store.json"):
        (made.path / name).rename(view / name)
    change_json(view / "ple-store.json", lambda store: {**store, "source_root": "../model"})
    assert not check_refused_or_whole(made, view)
    change_json(view / "ple-store.json", lambda store: {**store, "source_root": str(made.path)})
    assert not check_refused_or_whole(made, view)


# GGUF.


@pytest.mark.parametrize("step", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_no_flipped_bit_or_cut_of_gguf_gives_wrong_rows(step: int, tmp_path: Path) -> None:
    made = make_gguf_qwen(tmp_path / "model.gguf", base=5, width=32)
    data = made.path.read_bytes()
    with closing(open_source(made.path)) as source:
        end = source.tensors[0].start
    for bit in range(0, 8 * end, step):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        made.path.write_bytes(changed)
        check_refused_or_whole(made)
    for cut in range(0, len(data) - 32, 7 * step):
        made.path.write_bytes(data[:cut])
        assert check_refused_or_whole(made)


def test_gguf_of_another_type_or_width_is_refused(tmp_path: Path) -> None:
    made = make_gguf_deepseek(tmp_path / "model.gguf", extras=False)
    data = made.path.read_bytes()
    encoding = b"e4m3_e8m0_32_row264"
    for other in (b"e4m3_e8m0_32_row265", b"lloyd4_e5m3_32_r136"):
        made.path.write_bytes(data.replace(encoding, other))
        with pytest.raises((InvalidInput, SpecMismatch), match=r"256|encoding|I8|264"):
            open_source(made.path)
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"\.gguf"):
        open_source(tmp_path / "empty.gguf")
