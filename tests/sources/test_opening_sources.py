"""Every released form is opened for what it is, and every row read back as it was written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import (
    MAKERS,
    Made,
    make_deepseek,
    make_gemma,
    make_gguf_deepseek,
    make_mtplx,
    make_qwen,
    make_raw,
    write_tensors,
)

from engram_tables import load_spec
from engram_tables.byte_files import LocalFile, LocalFolder
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.storage.sources.opening import RawGeometry, open_rows, open_source
from engram_tables.storage.sources.reading import read_part, read_records
from engram_tables.storage.sources.source import Source, closing


def records_of(source: Source, layer_id: int) -> np.ndarray:
    """All records of a layer that a source holds."""
    (start, stop), *_ = source.owned(layer_id)
    out = np.full((stop - start, source.row_bytes), 0xAA, np.uint8)
    read_records(source, layer_id, start, out)
    return out


def check_source(source: Source, made: Made) -> None:
    assert (source.codec.name, source.codec.scale_bits) == (made.codec, made.scale_bits)
    assert tuple((part.name, part.n_bytes) for part in source.parts) == made.parts
    assert source.spec.row_width == made.row_width
    assert [file.name for file in source.files] == [path.name for path in made.files]
    assert source.spec.layer_ids == tuple(made.records)
    for layer_id, records in made.records.items():
        assert source.owned(layer_id) == ((0, len(records)),)
        assert np.array_equal(records_of(source, layer_id), records)


@pytest.mark.parametrize("name", MAKERS)
def test_every_form_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    made = MAKERS[name](tmp_path / name)
    with closing(open_source(made.path, opaque=made.codec.startswith("opaque"))) as source:
        check_source(source, made)
        for tensor in source.tensors:
            assert tensor.stop - tensor.start == tensor.n_rows * source.parts[tensor.part_idx].n_bytes


@pytest.mark.parametrize("name", MAKERS)
def test_rows_are_located_where_they_lie(name: str, tmp_path: Path) -> None:
    made = MAKERS[name](tmp_path / name)
    table = open_rows(made.path, opaque=made.codec.startswith("opaque"))
    for layer_id, records in made.records.items():
        rows = np.array([0, len(records) - 1, len(records) // 2])
        for part_idx, part in enumerate(table.parts):
            spots = table.locate(layer_id, rows, part_idx)
            for row, file_idx, offset in zip(rows, *spots, strict=True):
                found = table.mapping(int(file_idx))[offset : offset + part.n_bytes]
                assert np.array_equal(found, records[row, part.start : part.start + part.n_bytes])
    table.close()
    with pytest.raises(InvalidInput, match="closed already"):
        table.mapping(0)


@pytest.mark.parametrize(("name", "form"), [("qwen-mlx", "mlx"), ("deepseek-mlx", "mlx"), ("deepseek-vllm", "deepseek"),
                                            ("mtplx-interleaved", "mtplx"), ("mlx-vlm-ranges", "mlx-vlm"),
                                            ("longcat-oe", "longcat"), ("gguf-q8_0", "gguf")])  # fmt: skip
def test_forms_are_named(name: str, form: str, tmp_path: Path) -> None:
    with closing(open_source(MAKERS[name](tmp_path / name).path)) as source:
        assert source.form == form


def test_small_tensors_and_what_is_left_out_are_told(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "qwen", codec="fp8-e4m3-scalar")
    with closing(open_source(made.path)) as source:
        scale, *constants = source.scale_tensors
        assert scale.name.endswith("ngram_embedding.weight_scale")
        assert (scale.dtype, scale.shape, scale.data) == ("BF16", (1,), "5139")
        assert [tensor.name.rpartition(".")[2] for tensor in constants] == [
            "layer_multipliers", "ngram_heads_offsets", "ngram_heads_vocab_sizes",
        ]  # fmt: skip
        assert source.left_out == ("model.language_model.layers.1.ple.norm_key.weight",)
        assert [dict(metadata) for metadata in source.metadata] == [{"format": "pt"}] * 2
        assert float(np.array([source.codec.scale_bits], np.uint32).view(np.float32)[0]) == 209 * 2.0**-20


def test_keys_of_gguf_are_kept_and_its_alignment(tmp_path: Path) -> None:
    made = make_gguf_deepseek(tmp_path / "model.gguf", alignment=256)
    with closing(open_source(made.path)) as source:
        check_source(source, made)
        assert source.alignments == (256,)
        kept = source.metadata[0]
        start = made.path.read_bytes().index(bytes.fromhex(kept["key_values"]))
        assert start == 24
        assert int(kept["n_key_values"]) > 8


def test_one_file_of_a_checkpoint_holds_its_layer(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    with closing(open_source(made.files[1])) as source:
        assert (source.owned(1), source.owned(3)) == ((), ((0, len(made.records[3])),))
        assert np.array_equal(records_of(source, 3), made.records[3])
        assert source.notes


def test_layers_are_chosen(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    with closing(open_source(made.path, layers=[3])) as source:
        assert [file.name for file in source.files] == [made.files[1].name]
        assert source.owned(1) == ()
    with pytest.raises(InvalidInput, match="layers: found 2, expected some of 1, 3"):
        open_source(made.path, layers=[2])


def test_one_file_of_shards_holds_their_rows(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model", n_parts=4, n_files=2)
    (start, stop) = (2 * 106, len(made.records[1]))
    with closing(open_source(made.files[1])) as source:
        assert source.owned(1) == ((start, stop),)
        assert np.array_equal(records_of(source, 1), made.records[1][start:stop])


def test_a_lone_last_shard_is_ambiguous(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model", base=103, n_parts=5, n_files=5)
    with closing(open_source(made.files[0])) as source:
        assert source.owned(1)[0][0] == 0
    with pytest.raises(InvalidInput, match="name the directory"):
        open_source(made.files[4])


def test_an_opened_place_is_taken_and_stays_open(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    with closing(open_source(LocalFolder(made.path))) as source:
        check_source(source, made)
    file = LocalFile(made.files[0])
    with closing(open_source(file, layers=[1])):
        pass


def test_a_split_gguf_is_read_from_its_parts(tmp_path: Path) -> None:
    made = make_gguf_deepseek(tmp_path / "model-00001-of-00001.gguf")
    with closing(open_source(made.path)) as source:
        check_source(source, made)
    with closing(open_source(tmp_path)) as source:
        check_source(source, made)
    shutil.copy(made.path, tmp_path / "other.gguf")
    with pytest.raises(InvalidInput, match="2 models"):
        open_source(tmp_path)
    made.path.rename(tmp_path / "model-00001-of-00002.gguf")
    with pytest.raises(InvalidInput, match=r"00002-of-00002"):
        open_source(tmp_path / "model-00001-of-00002.gguf")


def test_a_format_without_codec_is_named_and_may_be_taken_as_bytes(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model", codec="nvfp4")
    with pytest.raises(InvalidInput, match=r"shard_0\.weight U32 .*shard_0\.scales U8 .*opaque"):
        open_source(made.path)
    with closing(open_source(made.path, opaque=True)) as source:
        check_source(source, made)
        assert "opaque-36" in source.notes[0]


def test_a_given_spec_is_held_against_the_tensors(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    with closing(open_source(made.path)) as source:
        spec = source.spec
    (made.path / "config.json").unlink()
    with pytest.raises(InvalidInput, match=r"no config\.json"):
        open_source(made.path)
    with closing(open_source(made.path, spec=spec)) as source:
        check_source(source, made)
    with closing(open_source(made.path, spec=replace(spec, row_width=None))) as source:
        assert source.spec.row_width == made.row_width
    with pytest.raises(SpecMismatch, match="rows 420"):
        open_source(made.path, spec=load_spec("qwen3.8-flash-next", layers=None))
    with pytest.raises(SpecMismatch, match="512"):
        open_source(made.path, spec=replace(spec, row_width=512))


def test_a_sidecar_whose_width_was_changed_is_refused(tmp_path: Path) -> None:
    made = make_mtplx(tmp_path / "model")
    path = made.files[0]
    path.write_bytes(path.read_bytes().replace(b'"dim":"64"', b'"dim":"65"'))
    with pytest.raises(SpecMismatch, match="65"):
        open_source(made.path)


@pytest.mark.parametrize("stride", [66, 72, 128])
@pytest.mark.parametrize("first_byte", [0, 4096, 1])
def test_raw_rows_are_read_by_their_geometry(stride: int, first_byte: int, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    with closing(open_source(made.path)) as source:
        spec = source.spec
    path = make_raw(tmp_path / "rows", made.records[3], row_stride=stride, first_byte=first_byte)
    geometry = RawGeometry(codec="fp8-e4m3-e8m0", row_stride=stride, first_byte=first_byte, layer_id=3)
    with closing(open_source(path, spec=spec, raw=geometry)) as source:
        assert (source.form, source.container, source.files[0].name) == ("raw", "raw", "rows")
        assert np.array_equal(records_of(source, 3), made.records[3])
        assert source.owned(1) == ()
    part = replace(geometry, first_row=7, n_rows=5)
    with closing(open_source(path, spec=spec, raw=part)) as source:
        assert source.owned(3) == ((7, 12),)
        assert np.array_equal(records_of(source, 3), made.records[3][:5])
    opaque = replace(geometry, codec=None, row_bytes=66)
    with closing(open_source(path, spec=spec, raw=opaque)) as source:
        assert source.codec.name == "opaque-66"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_stride": 65}, "row_stride is 65"),
        ({"row_stride": 67}, "67 from one to the next"),
        ({"first_byte": -1}, "first_byte is -1"),
        ({"first_byte": 2**63}, "first_byte"),
        ({"first_byte": 10**6}, "expected records"),
        ({"first_row": 1}, "each once"),
        ({"first_row": -1}, "first_row is -1"),
        ({"first_row": 2**64}, "first_row"),
        ({"n_rows": 2**62}, "which the file holds"),
        ({"n_rows": 0}, "which the file holds"),
        ({"row_bytes": 65}, "correct one of them"),
        ({"codec": None}, "without codec"),
        ({"codec": "e5m2"}, "e5m2"),
        ({"layer_id": None}, "a geometry without a layer, expected one of 1, 3"),
        ({"layer_id": 2}, "layer 2"),
        ({"row_stride": 2**70}, "row_stride"),
    ],
)
def test_a_wrong_geometry_is_refused(change: dict[str, int | None], message: str, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    with closing(open_source(made.path)) as source:
        spec = source.spec
    path = make_raw(tmp_path / "rows", made.records[3])
    geometry = RawGeometry(**{"codec": "fp8-e4m3-e8m0", "layer_id": 3, **change})
    with pytest.raises((InvalidInput, SpecMismatch), match=message):
        open_source(path, spec=spec, raw=geometry)


def test_raw_rows_need_a_spec_and_a_file(tmp_path: Path) -> None:
    path = make_raw(tmp_path / "rows", np.zeros((3, 8), np.uint8))
    with pytest.raises(InvalidInput, match="the spec"):
        open_source(path, raw=RawGeometry(row_bytes=8))
    with pytest.raises(InvalidInput, match="a directory"):
        open_source(tmp_path, raw=RawGeometry(row_bytes=8))


def test_parts_are_read_alone_and_rows_that_are_not_here_are_refused(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    with closing(open_source(made.path)) as source:
        for part_idx, part in enumerate(source.parts):
            out = np.zeros((11, part.n_bytes), np.uint8)
            read_part(source, 1, part_idx, 5, out)
            assert np.array_equal(out, made.records[1][5:16, part.start : part.start + part.n_bytes])
        n_rows = len(made.records[1])
        for first_row in (-1, n_rows - 1, n_rows, 2**63):
            with pytest.raises(InvalidInput, match="found no row"):
                read_records(source, 1, first_row, np.zeros((2, source.row_bytes), np.uint8))
        with pytest.raises(TypeError, match="expected"):
            read_records(source, 1, 0, np.zeros((2, 3), np.uint8))
        identities = source.identities()
    assert [name for name, _ in identities] == [path.name for path in made.files]


def test_open_files_are_closed_when_opening_fails(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    config = json.loads((made.path / "config.json").read_text())
    config["text_config"]["engram_head_dim"] = 32
    (made.path / "config.json").write_text(json.dumps(config))
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(3):
        with pytest.raises(SpecMismatch, match="32"):
            open_source(made.path)
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_gemma_is_a_table_too(tmp_path: Path) -> None:
    made = make_gemma(tmp_path / "model")
    with closing(open_source(made.path)) as source:
        check_source(source, made)
        assert source.form == "gemma"


@pytest.mark.parametrize(
    ("weights", "scales", "codec"),
    [
        (("F8_E4M3", 64), ("U8", 2), "fp8-e4m3-e8m0"),
        (("U8", 64), ("F8_E8M0", 2), "fp8-e4m3-e8m0"),
        (("U8", 64), ("U8", 2), "fp8-e4m3-e8m0"),
        (("U32", 16), ("U8", 2), "fp8-e4m3-e8m0"),
        (("U32", 16), ("BF16", 1), None),
        (("U32", 8), ("U8", 2), None),
        (("F8_E4M3", 64), ("BF16", 1), None),
        (("F8_E4M3", 64), ("F8_E8M0", 1), None),
        (("F32", 16), ("U8", 2), None),
        (("U8", 64), ("F16", 1), None),
    ],
)
def test_codes_and_scales_have_several_spellings(
    weights: tuple[str, int], scales: tuple[str, int], codec: str | None, tmp_path: Path
) -> None:
    """Other dtypes of the same bytes, as other packages save them; whatever else there is is named."""
    made = make_deepseek(tmp_path / "model", layers=(1,))
    n_rows = len(made.records[1])
    bytes_of = {"U32": 4, "F32": 4, "BF16": 2, "F16": 2}
    tensors = {}
    for name, (dtype, n_elements), start in (("weight", weights, 0), ("scales", scales, 64)):
        stop = start + n_elements * bytes_of.get(dtype, 1)
        tensors[f"layers.1.engram.embed.{name}"] = (dtype, (n_rows, n_elements), made.records[1][:, start:stop])
    write_tensors(made.files[0], tensors)
    if codec is None:
        with pytest.raises((InvalidInput, SpecMismatch), match=f"{weights[0]}.*{scales[0]}|found values a row 16"):
            open_source(made.path)
        return
    with closing(open_source(made.path)) as source:
        check_source(source, made)


def test_rows_of_integers_and_their_scale(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model", layers=(1,))
    codes = np.arange(len(made.records[1]) * 64, dtype=np.uint8).reshape(-1, 64)
    scales = np.full((len(codes), 1), 0.5, "<f2").view(np.uint8)
    stem = "layers.1.engram.embed"
    tensors = {f"{stem}.weight": ("I8", codes.shape, codes), f"{stem}.scale": ("F16", (len(codes), 1), scales)}
    write_tensors(made.files[0], tensors)
    with closing(open_source(made.path)) as source:
        assert source.codec.name == "int8-row"
        assert np.array_equal(records_of(source, 1), np.concatenate([codes, scales], axis=1))


@pytest.mark.parametrize(("dtype", "shape", "data"), [("F32", (), "00005139"), ("BF16", (1, 1), "5139"),
                                                      ("F16", (1,), "880a")])  # fmt: skip
def test_the_one_scale_has_several_dtypes(dtype: str, shape: tuple[int, ...], data: str, tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model", codec="fp8-e4m3-scalar", n_files=1, arrays=False, extras=False)
    stem = "model.language_model.layers.1.ple.ple_embedding.ngram_embedding"
    tensors = {
        f"{stem}.shard_{number}.weight": ("F8_E4M3", rows.shape, rows)
        for number, rows in enumerate(np.split(made.records[1], 4))
    }
    scale = np.frombuffer(bytes.fromhex(data), np.uint8)
    write_tensors(made.files[0], {**tensors, f"{stem}.weight_scale": (dtype, shape, scale)})
    with closing(open_source(made.path)) as source:
        assert np.array_equal(records_of(source, 1), made.records[1])
        assert source.codec.scale_bits is not None
        found = np.array([source.codec.scale_bits], np.uint32).view(np.float32)[0]
        assert abs(float(found) - 209 * 2.0**-20) < 2.0**-22


def test_a_table_of_one_tensor(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "model", n_files=1)
    stem = "language_model.model.layers.1.ple.ple_embedding.ngram_embedding"
    records = made.records[1]
    for name in (f"{stem}.weight", f"{stem}.shard_0.weight", f"{stem}.shards.0.weight"):
        write_tensors(made.files[0], {name: ("BF16", (len(records), 64), records)})
        with closing(open_source(made.path)) as source:
            check_source(source, made)
