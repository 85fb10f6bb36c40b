"""Checkpoints that are well formed and would be read wrongly by whoever looks at one tensor alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_checkpoints import (
    Made,
    make_deepseek,
    make_gguf_deepseek,
    make_gguf_qwen,
    make_mlx_vlm,
    make_mtplx,
    make_qwen,
    write_tensors,
)
from made_parts import Tensor

from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.source import closing

Tensors = dict[str, Tensor]
HALF = ("F32", (1,), np.frombuffer(struct.pack("<f", 0.5), np.uint8))
QUARTER = ("F32", (1,), np.frombuffer(struct.pack("<f", 0.25), np.uint8))


def change_tensors(made: Made, change: Callable[[Tensors], Tensors]) -> Made:
    """Write every file of a checkpoint again with other tensors."""
    for path in sorted(made.path.glob("*.safetensors")):
        data = path.read_bytes()
        (n_bytes,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + n_bytes])
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for name, info in header.items():
            start, stop = (8 + n_bytes + offset for offset in info["data_offsets"])
            tensors[name] = (info["dtype"], tuple(info["shape"]), np.frombuffer(data[start:stop], np.uint8))
        write_tensors(path, change(tensors), metadata)
    (made.path / "model.safetensors.index.json").unlink(missing_ok=True)
    return made


def beside(end: str, name: str, value: Tensor) -> Callable[[Tensors], Tensors]:
    """Adds a tensor beside every one whose name ends so."""

    def change(tensors: Tensors) -> Tensors:
        stems = {found.removesuffix(end) for found in tensors if found.endswith(end)}
        return tensors | {f"{stem}{name}": value for stem in stems}

    return change


def scales_as_scalars(values: dict[str, Tensor]) -> Callable[[Tensors], Tensors]:
    """Instead of V4.1's scales one value a layer; none where `values` has none."""

    def change(tensors: Tensors) -> Tensors:
        kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("engram.embed.scale")}
        return kept | {name: values[name] for name in tensors.keys() & values.keys()}

    return change


@pytest.mark.parametrize("codec", ["bf16", "f32", "fp8-e4m3-e8m0"])
def test_a_scale_for_all_rows_beside_rows_that_have_none_is_refused(codec: str, tmp_path: Path) -> None:
    """Its values are not those that the rows alone decode to."""
    made = change_tensors(
        make_deepseek(tmp_path / "made", codec=codec), beside("engram.embed.weight", "engram.embed.weight_scale", HALF)
    )
    with pytest.raises(InvalidInput, match="a format of 64 values a row that a codec reads"):
        open_source(made.path)


def test_a_scale_of_one_shard_is_not_taken_for_the_others(tmp_path: Path) -> None:
    made = change_tensors(
        make_qwen(tmp_path / "made", codec="fp8-e4m3-scalar"),
        lambda tensors: {
            name.replace("ngram_embedding.weight_scale", "ngram_embedding.shard_0.weight_scale"): tensor
            for name, tensor in tensors.items()
        },
    )
    with pytest.raises(InvalidInput, match=r"shard_0\.weight_scale .* and none for .*shard_1"):
        open_source(made.path)


def test_a_scale_of_one_layer_is_not_taken_for_another(tmp_path: Path) -> None:
    made = change_tensors(make_deepseek(tmp_path / "made"), scales_as_scalars({"layers.1.engram.embed.scale": HALF}))
    with pytest.raises(InvalidInput, match=r"none for layers\.3\.engram\.embed, expected a scale for all rows"):
        open_source(made.path)


def test_layers_of_different_scales_are_read_one_by_one(tmp_path: Path) -> None:
    """As the message of the refusal advises."""
    scales = {"layers.1.engram.embed.scale": HALF, "layers.3.engram.embed.scale": QUARTER}
    made = change_tensors(make_deepseek(tmp_path / "made"), scales_as_scalars(scales))
    with pytest.raises(InvalidInput, match="scales of 2 values, expected one"):
        open_source(made.path)
    for layer_id, bits in ((1, 0x3F000000), (3, 0x3E800000)):
        with closing(open_source(made.path, layers=[layer_id])) as source:
            assert source.codec.scale_bits == bits
            assert source.owned(4 - layer_id) == ()


def test_a_layer_that_is_not_here_is_named(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    with pytest.raises(InvalidInput, match="no table of the layers that were asked for"):
        open_source(made.files[0], layers=[3])
    with closing(open_source(made.files[0], layers=[1, 3])) as source:
        assert source.owned(3) == ()


def test_a_given_spec_of_another_model_of_the_same_size_is_refused(tmp_path: Path) -> None:
    """Shapes are equal, the rows would be looked up elsewhere."""
    for made in (
        make_gguf_deepseek(tmp_path / "d.gguf"),
        make_gguf_qwen(tmp_path / "q.gguf"),
        make_deepseek(tmp_path / "deepseek"),
        make_mlx_vlm(tmp_path / "mlx-vlm"),
        make_mtplx(tmp_path / "mtplx"),
    ):
        with closing(open_source(made.path)) as source:
            spec = source.spec
        with closing(open_source(made.path, spec=replace(spec, name="the same"))) as source:
            assert source.notes == ()
        (first, second, *heads), *orders = (list(heads) for heads in spec.layers[0].moduli)
        moduli = ((second, first, *heads), *map(tuple, orders))
        offsets = tuple(accumulate((0, *(modulus for heads in moduli for modulus in heads))))[:-1]
        changes: list[dict[str, Any]] = [
            {"layers": (replace(spec.layers[0], moduli=moduli, offsets=offsets), *spec.layers[1:])},
            {"canonical_size": spec.canonical_size + 1},
            {"history": replace(spec.history, fill_id=1, boundary_ids=tuple(1 for _ in spec.history.boundary_ids))},
        ]
        for change in changes:
            with pytest.raises(SpecMismatch, match="belong to different models"):
                open_source(made.path, spec=replace(spec, **change))


def test_a_given_spec_serves_where_the_source_states_none(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    with closing(open_source(made.path)) as source:
        spec = source.spec
    (made.path / "config.json").write_text('{"model_type": "of another recipe"}')
    with pytest.raises(InvalidInput):
        open_source(made.path)
    with closing(open_source(made.path, spec=spec)) as source:
        assert "own addressing is not known" in source.notes[0]
    (made.path / "config.json").unlink()
    with closing(open_source(made.path, spec=spec)) as source:
        assert source.notes == ()


def test_scales_beside_a_table_of_gguf_are_refused(tmp_path: Path) -> None:
    made = make_gguf_deepseek(tmp_path / "made.gguf", codec="f16")
    data = made.path.read_bytes()
    made.path.write_bytes(data.replace(b"blk.3.engram_embd.weight", b"blk.3.engram_embd.scales"))
    with pytest.raises(InvalidInput, match=r"engram_embd\.scales F16"):
        open_source(made.path)
