"""Derived constants against published ones, and every route to one addressing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_tables import load_spec
from engram_tables.address.export.gguf_metadata import gguf_key_values
from engram_tables.address.presets import PRESETS
from engram_tables.address.primes import is_prime, next_prime
from engram_tables.address.random_stream import Pcg64
from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.address.released.configs import spec_from_config
from engram_tables.address.spec import AddressSpec
from engram_tables.address.spec_files import read_spec
from engram_tables.address.vocabulary import Vocabulary, build_vocabulary
from engram_tables.errors import InvalidInput, SpecMismatch

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "deepseek-v4.1-flash.json").read_bytes())


@pytest.fixture(scope="module")
def v41() -> AddressSpec:
    return load_spec("deepseek-v4.1-flash")


def _mini(**changes: Any) -> DeepSeekRecipe:
    settings: dict[str, Any] = {
        "name": "mini", "provenance": "test", "canonical_size": 50, "orders": (2, 3, 4), "heads": 2, "bases": (5, 5, 5),
        "layer_ids": (0, 1), "n_layers": 2, "fill_id": 2,
    }  # fmt: skip
    return DeepSeekRecipe(**settings | changes)


def test_v41_constants_are_the_published_ones(v41: AddressSpec) -> None:
    assert [layer.n_rows for layer in v41.layers] == [384_006_168, 384_016_682]
    assert [[list(heads) for heads in layer.moduli] for layer in v41.layers] == GOLDEN["primes"]
    assert [list(layer.offsets) for layer in v41.layers] == GOLDEN["offsets"]
    assert [[str(m) for m in layer.multipliers] for layer in v41.layers] == GOLDEN["multipliers"]


def test_demo_constants_are_the_published_ones() -> None:
    demo = load_spec("engram-demo")
    assert demo.layers[0].n_rows == 10_344_164
    assert demo.layers[0].moduli[0] == (646403, 646411, 646421, 646423, 646433, 646453, 646519, 646523)
    assert demo.layers[0].moduli[1] == (646537, 646543, 646549, 646571, 646573, 646577, 646609, 646619)


def test_published_mini_layout() -> None:
    moduli = _mini().moduli()
    assert moduli == [[[5, 7], [11, 13], [17, 19]], [[23, 29], [31, 37], [41, 43]]]
    assert [sum(map(sum, layer)) for layer in moduli] == [72, 204]


def test_bases_that_differ_restart_the_search() -> None:
    assert _mini(bases=(11, 5, 7)).moduli()[0] == [[11, 13], [5, 7], [17, 19]]


@pytest.mark.parametrize(("name", "rows"), [("engram-27b", 72_404_232), ("engram-40b", 231_678_892)])
def test_paper_sizes_are_known_and_rows_are_not(name: str, rows: int) -> None:
    assert PRESETS[name].outline().n_rows == rows
    with pytest.raises(InvalidInput, match="--layers 1,15"):
        load_spec(name)
    assert load_spec(name, layers=[2, 15]).layer_ids == (2, 15)
    assert load_spec(name, layers=[2, 15]).n_rows == rows
    with pytest.raises(InvalidInput, match="found 1 layer ids, expected 2"):
        load_spec(name, layers=[2])


def test_layers_of_a_certain_preset_cannot_be_changed() -> None:
    with pytest.raises(InvalidInput, match="published"):
        load_spec("deepseek-v4.1-flash", layers=[1, 15])


@given(seed=st.integers(0, 2**200), bound=st.integers(2**32 + 1, 2**63 - 1))
def test_random_stream_equals_numpys(seed: int, bound: int) -> None:
    ours, theirs = Pcg64(seed), np.random.default_rng(seed)
    # Several draws: the rejection step of one shifts all that follow.
    expected = theirs.integers(low=0, high=bound, size=8, dtype=np.int64).tolist()
    assert [ours.integers_below(bound) for _ in range(8)] == expected


@pytest.mark.parametrize("canonical_size", [1, 2, 5, 98_627, 99_092, 129_280, 2**20, 2**29])
@pytest.mark.parametrize("layer_id", [0, 1, 14, 15, 60])
def test_multipliers_equal_the_published_numpy_expression(canonical_size: int, layer_id: int) -> None:
    half = max(1, ((2**63 - 1) // canonical_size) // 2)
    drawn = np.random.default_rng(10007 * layer_id).integers(low=0, high=half, size=(4,), dtype=np.int64)
    recipe = _mini(canonical_size=canonical_size, fill_id=0)
    assert list(recipe.multipliers(layer_id, canonical_size)) == [int(r) * 2 + 1 for r in drawn]


@given(st.integers(0, 200_000))
def test_primality_equals_trial_division(n: int) -> None:
    assert is_prime(n) == (n >= 2 and all(n % d for d in range(2, int(n**0.5) + 1)))


def test_primality_of_hard_numbers() -> None:
    # Carmichael numbers and strong pseudoprimes to many bases, and a Mersenne prime.
    for composite in (561, 3215031751, 3825123056546413051, 318665857834031151167461):
        assert not is_prime(composite)
    assert is_prime(2**61 - 1)
    assert next_prime(13, unless_in={17}) == 19


def _config(**changes: Any) -> dict[str, Any]:
    return GOLDEN["config"] | changes


def _write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_every_route_gives_one_fingerprint(v41: AddressSpec, tmp_path: Path, v4_vocabulary: Vocabulary) -> None:
    nested = _write(tmp_path / "nested.json", {"architectures": ["X"], "text_config": _config()})
    flat = {k: v for k, v in _config().items() if k != "engram_pad_token_id"} | {"engram_pad_id": 2}
    inference = _write(tmp_path / "flat.json", flat)
    (tmp_path / "v41.npz").write_bytes(v41.to_npz())
    exported = _write(tmp_path / "v41.json", v41.to_json())
    routes = [
        v41,
        spec_from_config(nested),
        spec_from_config(inference),
        spec_from_config(nested, vocabulary=v4_vocabulary),
        read_spec(tmp_path / "v41.npz"),
        read_spec(exported),
        AddressSpec.from_arrays(v41.arrays()),
    ]
    assert {spec.fingerprint for spec in routes} == {v41.fingerprint}
    assert read_spec(exported) == v41
    assert read_spec(tmp_path / "v41.npz").row_width == 256
    assert v41.to_npz() == v41.to_npz()


def test_fingerprint_changes_with_any_constant(v41: AddressSpec) -> None:
    arrays = v41.arrays()
    seen = {v41.fingerprint}
    for name, delta in (("multipliers", 2), ("offsets", -1), ("layer_ids", 1), ("moduli", -1), ("fill_id", 1)):
        changed = {key: array.copy() for key, array in arrays.items()}
        changed[name].reshape(-1)[-1] += delta
        seen.add(AddressSpec.from_arrays(changed).fingerprint)
    assert len(seen) == 6


def test_spec_json_keeps_multipliers_from_doubles(v41: AddressSpec) -> None:
    for layer in v41.to_json()["addressing"]["layers"]:
        assert all(isinstance(multiplier, str) for multiplier in layer["multipliers"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engram_num_embeddings": [384_006_168, 384_016_683]}, r"states \[384006168, 384016683\] rows"),
        ({"engram_vocab_size": 16_000_001.0}, "float"),
        ({"engram_n_heads": "eight"}, "eight"),
        ({"engram_layer_ids": 1}, "expected a list"),
        ({"engram_compressed_vocab_size": 99_091}, "give --vocab"),
        ({"engram_pad_token_id": 3}, "give --vocab"),
        ({"engram_n_heads": 0}, "heads is 0"),
    ],
)
def test_configs_that_contradict_or_lack_something(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidInput, SpecMismatch), match=message):
        spec_from_config(_write(tmp_path / "config.json", _config(**change)))


def test_config_without_engram_or_without_json(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no key of a family that is known"):
        spec_from_config(_write(tmp_path / "config.json", {"hidden_size": 1}))
    (tmp_path / "broken.json").write_bytes(b"{")
    with pytest.raises(InvalidInput, match="not JSON"):
        spec_from_config(tmp_path / "broken.json")
    for key in ("engram_max_ngram_size", "engram_vocab_size", "engram_head_dim"):
        config = {k: v for k, v in _config().items() if k != key}
        with pytest.raises(InvalidInput, match=key):
            spec_from_config(_write(tmp_path / "config.json", config))


def test_a_vocabulary_of_another_map_is_refused(
    v41: AddressSpec, v4_vocabulary: Vocabulary, v4_tokenizer_json: Path
) -> None:
    swapped = v4_vocabulary.canonical_ids.copy()
    swapped[[10, 11]] = swapped[[11, 10]]
    other = Vocabulary(
        rule=v4_vocabulary.rule,
        canonical_ids=swapped,
        tokens=v4_vocabulary.tokens,
        tokenizer_json=v4_vocabulary.tokenizer_json,
        source="swapped",
    )
    with pytest.raises(SpecMismatch, match=other.map_sha256):
        v41.check_vocabulary(other)
    with pytest.raises(SpecMismatch, match="129,280"):
        v41.check_vocabulary(build_vocabulary(v4_tokenizer_json, rule="identity"))
    v41.check_vocabulary(v4_vocabulary)


def test_specs_that_contradict_themselves_are_refused(v41: AddressSpec) -> None:
    def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
        data: Any = json.loads(json.dumps(v41.to_json()))
        place = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return dict(data)

    layer = ("addressing", "layers", 0)
    for path, value, message in (
        (("schema",), "engram.spec/9", "schema"),
        (("addressing", "family"), "crc", "crc"),
        (("addressing", "fill_id"), 99_092, "fill_id"),
        (("addressing", "orders"), [2, 2, 4], "orders"),
        (("addressing", "orders"), [], "orders"),
        (("addressing", "canonical_size"), 0, "canonical_size"),
        (("addressing", "layers"), [], "no layer"),
        ((*layer, "multipliers", 0), 76632096046245.0, "float"),
        ((*layer, "multipliers", 0), "76632096046246", "odd"),
        ((*layer, "multipliers", 0), str(2**62 + 1), "odd number of at most"),
        ((*layer, "multipliers"), ["1"], "1 multipliers"),
        ((*layer, "moduli", 0, 0), 0, "modulus 0"),
        ((*layer, "offsets", 0), -1, "row -1"),
        ((*layer, "n_rows"), 5, "rows within"),
        ((*layer, "n_rows"), 2**60, "rows, expected"),
        ((*layer, "offsets"), [0], "1 offsets"),
        (("fingerprint",), "0" * 64, "fingerprint"),
        (("row_width",), "wide", "wide"),
    ):
        with pytest.raises(InvalidInput, match=message):
            AddressSpec.from_json(changed(path, value))
    for key in ("name", "addressing", "fingerprint"):
        with pytest.raises(InvalidInput):
            AddressSpec.from_json({k: v for k, v in v41.to_json().items() if k != key})


def test_gguf_metadata_of_both_spellings(v41: AddressSpec, v4_vocabulary: Vocabulary) -> None:
    spellings = gguf_key_values(v41, vocabulary=v4_vocabulary)
    ds4, llama = spellings["ds4"], spellings["llama.cpp"]
    assert ds4["deepseek41.engram.rows"] == {"type": "u32[]", "value": [384_006_168, 384_016_682]}
    assert ds4["deepseek41.engram.multipliers"]["value"] == [m for layer in GOLDEN["multipliers"] for m in layer]
    assert len(ds4["deepseek41.engram.primes"]["value"]) == 48
    assert ds4["deepseek41.engram.token_map"]["value"][270] == 237
    assert llama["deepseek41.engram.offsets"]["value"][25] == str(GOLDEN["offsets"][1][1])
    assert llama["deepseek41.engram.key_length"] == {"type": "u32", "value": 256}
    assert "deepseek41.engram.token_map" not in gguf_key_values(v41)["ds4"]
