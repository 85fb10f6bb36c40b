"""The reader of our manifest: any bytes give a manifest that says the same bytes again, or an error of ours."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import atheris

with atheris.instrument_imports(include=["engram_tables.storage", "engram_tables.address.spec"]):
    from engram_tables.address.recipes import DeepSeekRecipe
    from engram_tables.errors import TableError
    from engram_tables.storage.codecs.codec import get_codec
    from engram_tables.storage.table.manifest import Manifest
    from engram_tables.storage.table.shards import plan_shards, shard_header
    from engram_tables.units import canonical_json

from fuzz.harness import fuzz


def one_input(data: bytes) -> None:
    """A file as it is, and the same with digests that are right."""
    check(data)
    try:
        body = json.loads(data)
        signed = _signed(body) if isinstance(body, dict) else None
    except (ValueError, TypeError, RecursionError):  # no JSON, or a float in it
        return
    if signed is not None:
        check(signed)


def check(data: bytes) -> None:
    """Read a manifest, plan its shards and make their headers."""
    try:
        manifest = Manifest.from_bytes(data, path="engram.json")
    except TableError:
        return
    assert manifest.to_bytes() == data
    assert manifest.parts
    for shard in manifest.shards[:100]:
        assert shard_header(manifest, shard)
    for layer in manifest.spec.layers:
        assert all(0 <= start < stop <= layer.n_rows for start, stop in manifest.owned_rows(layer.layer_id))


def _signed(body: dict[str, Any]) -> bytes:
    body.pop("manifest_sha256", None)
    spec = body.get("spec")
    if isinstance(spec, dict):
        spec["fingerprint"] = body["fingerprint"] = hashlib.sha256(canonical_json(spec.get("addressing"))).hexdigest()
    body["manifest_sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    return canonical_json(body)


def seeds() -> dict[str, bytes]:
    """Manifests of small tables of every layout."""
    found = {}
    spec = DeepSeekRecipe(
        name="small", provenance="made to be fuzzed", canonical_size=50, orders=(2,), heads=1, bases=(11,),
        layer_ids=(1, 4), n_layers=2, fill_id=1, row_width=32,
    ).resolve()  # fmt: skip
    for codec, layout in (("bf16", "packed"), ("fp8-e4m3-e8m0", "split"), ("f32", "page"), ("q8_0", "aligned-64")):
        row_bytes = get_codec(codec).row_bytes(32)
        empty = Manifest(
            spec=spec, codec=codec, layout=layout, row_width=32, row_bytes=row_bytes, shards=(), block_bytes=4096
        )
        for owned in (None, {1: ((0, 5),), 4: ()}):
            planned = replace(empty, owned=owned)
            found[f"{codec}-{owned is None}"] = replace(planned, shards=tuple(plan_shards(planned, 8192))).to_bytes()
    return found


WORDS = (
    '"owned":', '"rank":', '"shards":', '"codec_scale":"3f800000"', '"reader_features":', '"writer_features":', "null",
    "[]", "{}", "[[0,5]]", "-1", "0", "true", "9007199254740993", '"9223372036854775807"', '"opaque-5"', '"split"',
    '"aligned-4096"', '{"by":"rows","n_ranks":2,"rank":0}',
)  # fmt: skip

if __name__ == "__main__":
    fuzz(one_input, seeds(), WORDS)
