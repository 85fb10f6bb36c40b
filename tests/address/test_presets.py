"""The published tables: their constants, their rows, and their sizes, against published and hand-worked values."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_tables import load_spec
from engram_tables.address.presets import PRESETS
from engram_tables.address.relatives import QwenRecipe
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, KeyForm, LayerAddressing, MixRule
from engram_tables.address.vocabulary import Vocabulary, build_vocabulary
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.storage.published import published_tables

GOLDEN = Path(__file__).parent.parent / "golden"


def _golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_bytes())


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("deepseek-v4.1-flash", (384_006_168, 384_016_682)),
        ("engram-peft", (2_264_076, 2_266_756)),
        ("qwen3.8-flash-next", (320_001_536,)),
        ("longcat-flash-lite", (122_683_536,)),
        ("longcat-2.0", (263_630_608,)),
        ("nanochat-300m", (299_999_977,)),
        ("gemma-3n-e2b", (262_144,)),
        ("gemma-3n-e4b", (262_144,)),
    ],
)
def test_published_row_counts(name: str, rows: tuple[int, ...]) -> None:
    assert PRESETS[name].outline().rows_per_table == rows


def test_published_bytes() -> None:
    tables = {table.name: table for table in published_tables()}
    assert set(tables) == set(PRESETS)
    for name, row_bytes, bytes_per_token, table_bytes in (
        ("deepseek-v4.1-flash", 264, 12_672, 202_758_032_400),
        ("qwen3.8-flash-next", 320, 5120, 102_400_491_520),
        ("longcat-flash-lite", 512, 6144, 62_813_970_432),
        ("longcat-2.0", 1024, 16_384, 269_957_742_592),
        ("nanochat-300m", 256, 1024, 76_799_994_112),
        ("gemma-3n-e2b", 15_360, 15_360, 4_026_531_840),
        ("gemma-3n-e4b", 17_920, 17_920, 4_697_620_480),
    ):
        table = tables[name]
        assert (table.row_bytes, table.bytes_per_token, table.table_bytes) == (row_bytes, bytes_per_token, table_bytes)


def test_qwen_constants_and_rows_are_the_published_ones() -> None:
    golden, spec = _golden("qwen3.8-flash-next"), load_spec("qwen3.8-flash-next")
    layer = spec.layers[0]
    assert layer.layer_id == 1
    assert [str(multiplier) for multiplier in layer.multipliers] == golden["multipliers"]
    assert layer.multipliers == (23703573157769, 20109073645365, 8052911324071)
    assert list(chain.from_iterable(layer.moduli)) == golden["primes"]
    assert list(layer.offsets) == golden["offsets"]
    assert (sum(golden["primes"]), layer.n_rows) == (golden["total"], golden["rows"])
    assert spec.address(golden["tokens"]).rows[:, 0].tolist() == golden["row_ids"]


def test_a_second_qwen_layer_goes_on_with_the_primes() -> None:
    """The published count of a third layer's rows: primes go on through layers, and the seed is the ordinal."""
    recipe = PRESETS["qwen3.8-flash-next"]
    assert isinstance(recipe, QwenRecipe)
    spec = replace(recipe, layer_ids=(1, 4, 9)).resolve()
    assert spec.layers[2].n_rows == 320_009_088
    primes = [modulus for layer in spec.layers for modulus in chain.from_iterable(layer.moduli)]
    assert primes == sorted(set(primes))
    assert len({layer.multipliers for layer in spec.layers}) == 3


def test_longcat_rows_are_the_published_ones() -> None:
    golden, spec = _golden("longcat-flash-lite"), load_spec("longcat-flash-lite")
    assert list(chain.from_iterable(spec.layers[0].moduli)) == golden["M"]
    assert spec.n_rows == golden["rows_total"]
    local = spec.address(golden["tokens"]).rows[:, 0] - np.array(spec.layers[0].offsets)
    assert local.tolist() == golden["local_ids"]
    assert spec.key_form is KeyForm.IDS
    assert spec.key_words == 2


def test_longcat_2_moduli_are_even_and_its_token_after_a_boundary_is_itself() -> None:
    spec = load_spec("longcat-2.0")
    moduli = list(chain.from_iterable(spec.layers[0].moduli))
    assert moduli == list(range(16_476_898, 16_476_930, 2))
    local = spec.address([7, 9, 2, 400]).rows[:, 0] - np.array(spec.layers[0].offsets)
    assert local[3].tolist() == [400] * 16
    assert local[0].tolist() == [7] * 16


def test_nanochat_rows_by_hand() -> None:
    """`C + s · 40503` and `1000003 + s · 2654435761` with salts 1, 7920, 98 and 8017, summed, modulo one prime."""
    spec = load_spec("nanochat-300m")
    newest, older, oldest = 11, 65_535, 300
    expected = []
    for order, salt in ((2, 1), (2, 7920), (3, 98), (3, 8017)):
        total = newest * (1_000_003 + salt * 2_654_435_761) + older * (998_244_353 + salt * 40_503)
        total += oldest * (911_382_323 + salt * 40_503) if order == 3 else 0
        expected.append(total % 299_999_977)
    assert spec.address([oldest, older, newest]).rows[2, 0].tolist() == expected
    # The history before the start is 0, and a document boundary is nothing special.
    assert spec.address([newest]).rows[0, 0, 0] == newest * (1_000_003 + 2_654_435_761) % 299_999_977
    assert [tuple(piece) for piece in spec.slices] == [(3, 0, 32), (7, 32, 64), (11, 64, 96), (15, 96, 128)]


def test_gemma_reads_row_0_for_ids_past_its_table() -> None:
    spec = load_spec("gemma-3n-e4b")
    rows = spec.address([0, 5, 262_143, 262_144, 262_399, 9], dead=[False, False, False, False, False, True]).rows
    assert rows[:, 0, 0].tolist() == [0, 5, 262_143, 0, 0, 0]
    assert spec.mix.family is Family.IDENTITY
    assert len(spec.slices) == 35
    assert spec.row_width == 35 * 256


def test_engram_peft_by_hand() -> None:
    """Multipliers 3, 5, 7 on the oldest token first; the bigram stands one token late; padding 2.

    At the third of the tokens 4, 9, 1 the window from the oldest is 4, 9, 1: the bigram is (4, 9), so
    4 · 3 ^ 9 · 5 = 12 ^ 45 = 33, and the trigram 33 ^ 1 · 7 = 38. Before, at the first token, both see padding: 2 · 3 ^
    2 · 5 = 12 for the bigram (2, 2), and 12 ^ 4 · 7 = 16 for the trigram (2, 2, 4).
    """
    layer = LayerAddressing(layer_id=1, multipliers=(3, 5, 7), moduli=((11,), (13,)), offsets=(0, 11), n_rows=24)
    spec = AddressSpec(
        name="by hand", provenance="test", canonical_size=10, history=HistoryRule(fill_id=2), orders=(2, 3),
        layers=(layer,), mix=MixRule(oldest_first=True, lagged=True),
    )  # fmt: skip
    addresses = spec.address([4, 9, 1])
    # Second token: (2, 4) gives 6 ^ 20 = 18, and (2, 4, 9) gives 18 ^ 63 = 45.
    assert addresses.keys[:, 0].tolist() == [[12, 16], [18, 45], [33, 38]]
    assert addresses.rows[:, 0].tolist() == [[12 % 11, 11 + 16 % 13], [18 % 11, 11 + 45 % 13], [33 % 11, 11 + 38 % 13]]


def test_engram_peft_defaults(v4_vocabulary: Vocabulary) -> None:
    with pytest.raises(InvalidInput, match="give --vocab"):
        load_spec("engram-peft")
    spec = load_spec("engram-peft", vocabulary=v4_vocabulary)
    # Primes of the second layer follow on those of the first: by itself it would begin at 141403 too.
    assert [layer.moduli[0][0] for layer in spec.layers] == [141_403, 141_619]
    deepseek = load_spec("deepseek-v4.1-flash")
    # Same seed rule and vocabulary, so the same multipliers for layer 1, of which it draws one less.
    assert spec.layers[0].multipliers == deepseek.layers[0].multipliers[:3]
    assert (spec.mix.oldest_first, spec.mix.lagged, spec.fill_id) == (True, True, 2)
    # Rule (a) and (b) of the package, written out: windows of the padded run, oldest token first.
    ids = np.random.default_rng(3).integers(0, spec.canonical_size, 500)
    padded = np.concatenate([[spec.fill_id] * 2, ids])
    rows = spec.address(ids).rows
    for layer_idx, layer in enumerate(spec.layers):
        column = 0
        for order, primes in zip(spec.orders, layer.moduli, strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(padded, order)[: len(ids)]
            mix = np.bitwise_xor.reduce(windows * np.array(layer.multipliers[:order]), axis=1)
            for prime in primes:
                np.testing.assert_array_equal(rows[:, layer_idx, column], mix % prime + layer.offsets[column])
                column += 1


def test_specs_of_token_ids_want_an_identity_vocabulary(v4_vocabulary: Vocabulary, v4_tokenizer_json: Path) -> None:
    spec = load_spec("longcat-flash-lite")
    with pytest.raises(SpecMismatch, match="--rule identity"):
        spec.check_vocabulary(v4_vocabulary)
    identity = build_vocabulary(v4_tokenizer_json, rule="identity")
    assert spec.with_vocabulary(identity).vocab_sha256 == identity.map_sha256
    with pytest.raises(SpecMismatch, match="65,536 token ids"):
        load_spec("nanochat-300m").check_vocabulary(identity)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("engram-27b", "engram-40b", "engram-peft")])
def test_an_outline_says_what_the_spec_is(name: str) -> None:
    outline, spec = PRESETS[name].outline(), load_spec(name)
    assert (outline.orders, outline.heads, outline.n_rows) == (spec.orders, spec.heads, spec.n_rows)
    assert outline.rows_per_token == spec.n_columns * len(spec.layers)
    with pytest.raises(InvalidInput, match="layers"):
        load_spec(name, layers=[77])
