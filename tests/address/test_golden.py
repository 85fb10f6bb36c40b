"""Golden vectors: what they ask, that right programs pass, and that wrong ones are named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_programs as programs
import numpy as np
import pytest
from golden_programs import Program, file_of, golden_of, layer_of, longcat_like, qwen_like, small, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from random_specs import specs

from engram_tables.address import reference
from engram_tables.address.golden.cases import Golden, GoldenCase, golden_bytes, golden_cases, make_golden, read_golden
from engram_tables.address.golden.check import GoldenReport, check_rows, load_answer
from engram_tables.address.golden.mistakes import MISTAKES, SHIFTED, Question, Variant
from engram_tables.address.golden.port import port_rows, right_port
from engram_tables.address.golden.seeds import other_seeds
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, MixRule

BROKEN = [
    ("deepseek-v4.1-flash", programs.OneLate, "one-late", ()),
    ("deepseek-v4.1-flash", programs.OneEarly, "one-early", ()),
    ("deepseek-v4.1-flash", programs.FillOutOfTheBlue, "wrong-fill", (54_321, 2)),
    ("deepseek-v4.1-flash", programs.OldestFirst, "multiplier-order", ()),
    ("deepseek-v4.1-flash", programs.MultipliersReversed, "multipliers-reversed", ()),
    ("deepseek-v4.1-flash", programs.Local, "local-rows", ()),
    ("deepseek-v4.1-flash", programs.OtherRank, "shifted", (-192_003_084, -192_008_341)),
    ("deepseek-v4.1-flash", programs.RunningLayers, "layer-offsets", ()),
    ("deepseek-v4.1-flash", programs.Float32Multipliers, "multipliers-float32", ()),
    ("deepseek-v4.1-flash", programs.Int32Products, "int32", ()),
    ("deepseek-v4.1-flash", programs.Int32ProductsInC, "int32-truncated", ()),
    ("deepseek-v4.1-flash", programs.DoubleProducts, "float64", ()),
    ("deepseek-v4.1-flash", programs.Int32Multipliers, "multipliers-int32", ()),
    ("deepseek-v4.1-flash", programs.Forgetful, "history-forgotten", ()),
    ("deepseek-v4.1-flash", programs.NoLatch, "dead-not-latched", ()),
    ("deepseek-v4.1-flash", programs.DeadAsFill, "dead-as-token", (2,)),
    ("deepseek-v4.1-flash", programs.DeadAsTheyCome, "dead-as-token", (-1,)),
    ("deepseek-v4.1-flash", programs.DeadAsUint32, "dead-as-token", (4_294_967_295,)),
    ("deepseek-v4.1-flash", programs.DeadAsUint32InUint64, "dead-as-token", (4_294_967_295,)),
    ("deepseek-v4.1-flash", programs.DeadAsUint64, "dead-as-token", (-1,)),
    ("deepseek-v4.1-flash", programs.PrimesFromTheStartOfOrders, "order-moduli", ()),
    ("deepseek-v4.1-flash", programs.PrimesFromTheStartAlways, "order-moduli", ()),
    ("deepseek-v4.1-flash", programs.SeededByOrdinal, "layer-seed", (0, 1)),
    ("deepseek-v4.1-flash", programs.SeededByIdFromOne, "layer-seed", (2, 15)),
    ("deepseek-v4.1-flash", programs.HeadMajor, "head-major", ()),
    ("deepseek-v4.1-flash", programs.LayersExchanged, "other-layers", (14, 1)),
    ("deepseek-v4.1-flash", programs.PrimesFromTheStart, "layer-moduli", (1, 1)),
    ("deepseek-v4.1-flash", programs.Late, "order-lag", ()),
    ("deepseek-v4.1-flash", programs.EndsAt1, "boundary-extra", (1,)),
    ("deepseek-v4.1-flash", programs.FromOldest, "from-oldest", ()),
    ("longcat-like", programs.EndsAt1, "boundary-other", (1, 2)),
    ("small", programs.FillOutOfTheBlue, "wrong-fill", (54_321, 3)),
    ("qwen-like", programs.OneLate, "one-late", ()),
    ("qwen-like", programs.FillOutOfTheBlue, "wrong-fill", (54_321, 248_044)),
    ("qwen-like", programs.FillAndEndOutOfTheBlue, "wrong-end", (54_321, 248_044)),
    ("qwen-like", programs.OldestFirst, "multiplier-order", ()),
    ("qwen-like", programs.Local, "local-rows", ()),
    ("qwen-like", programs.OtherRank, "shifted", (-60_000_159,)),
    ("qwen-like", programs.Float32Multipliers, "multipliers-float32", ()),
    ("qwen-like", programs.Int32Products, "int32", ()),
    ("qwen-like", programs.Forgetful, "history-forgotten", ()),
    ("qwen-like", programs.DeadAsTheyCome, "dead-as-token", (-1,)),
    ("qwen-like", programs.DeadAsUint32, "dead-as-token", (4_294_967_295,)),
    ("qwen-like", programs.DeadAsUint32InUint64, "dead-as-token", (4_294_967_295,)),
    ("qwen-like", programs.DeadAsUint64, "dead-as-token", (-1,)),
    ("qwen-like", programs.PrimesFromTheStartOfOrders, "order-moduli", ()),
    ("qwen-like", programs.SplitmixById, "layer-seed", (1,)),
    ("qwen-like", programs.SplitmixByIdFromOne, "layer-seed", (2,)),
    ("qwen-like", programs.ClosedBoundary, "boundary-closed", ()),
    ("longcat-like", programs.OneLate, "one-late", ()),
    ("longcat-like", programs.FillOutOfTheBlue, "wrong-fill", (54_321, 0)),
    ("longcat-like", programs.OldestFirst, "multiplier-order", ()),
    ("longcat-like", programs.Local, "local-rows", ()),
    ("longcat-like", programs.OtherRank, "shifted", (-61_341_768,)),
    ("longcat-like", programs.Int32Products, "int32", ()),
    ("longcat-like", programs.JavaScriptNumbers, "float64", ()),
    ("longcat-like", programs.RoundedOnce, "float64", ()),
    ("longcat-like", programs.PrimesFromTheStartOfOrders, "order-moduli", ()),
    ("longcat-like", programs.NoBoundaries, "boundaries-ignored", ()),
    ("longcat-like", programs.VisibleBoundary, "boundary-visible", ()),
    ("longcat-like", programs.Late, "order-lag", ()),
]


@pytest.mark.parametrize(
    ("name", "program", "cause", "values"), BROKEN, ids=[f"{name}-{program.__name__}" for name, program, *_ in BROKEN]
)
def test_a_broken_program_is_named(name: str, program: type[Program], cause: str, values: tuple[int, ...]) -> None:
    report = check_rows(golden_of(name), program(file_of(name)).answer())
    assert not report.is_equal
    assert report.n_rows_differing > 0
    assert [(found.name, found.values) for found in report.causes] == [(cause, values)]
    assert all(str(abs(value)) in report.causes[0].sentence for value in values)
    assert report.hints == ()


@pytest.mark.parametrize(
    ("name", "program", "causes"),
    [
        # Id 0 times a multiplier is 0, as if nothing were there.
        ("deepseek-v4.1-flash", programs.Fill0, [("wrong-fill", (0, 2)), ("fill-left-out", (2,))]),
        # Where the boundary is the fill, to see it and to fill its place are one.
        # A dead token closes the look-back as the fill does.
        ("qwen-like", programs.DeadAsFill, [("dead-sees", ()), ("dead-as-token", (248_044,))]),
        ("qwen-like", programs.NoBoundaries, [("boundaries-ignored", ()), ("boundary-not-latched", ())]),
    ],
)
def test_causes_that_no_rows_could_tell_apart_are_all_named(
    name: str, program: type[Program], causes: list[tuple[str, tuple[int, ...]]]
) -> None:
    report = check_rows(golden_of(name), program(file_of(name)).answer())
    assert [(cause.name, cause.values) for cause in report.causes] == causes


@pytest.mark.parametrize("name", programs.SPECS)
def test_a_right_program_passes_however_it_answers(name: str, tmp_path: Path) -> None:
    golden = golden_of(name)
    rows = Program(file_of(name)).answer()
    for answer in (rows, rows.reshape(len(rows), -1), rows.astype(np.uint64), rows.astype(">i8"), rows.tolist()):
        assert check_rows(golden, answer).is_equal
    if rows.max() < 2**31:
        assert check_rows(golden, rows.astype(np.int32)).is_equal
    for file_name, array in (("c.npy", rows), ("fortran.npy", np.asfortranarray(rows))):
        np.save(tmp_path / file_name, array)
        report = check_rows(golden, load_answer(tmp_path / file_name, golden))
        assert report == GoldenReport(n_rows=rows.size, n_rows_differing=0, n_cases=len(golden.cases),
                                      n_cases_differing=0, first=None, causes=(), hints=())  # fmt: skip
    write_lines(tmp_path / "answer.jsonl", golden, rows, as_text=True)
    assert check_rows(golden, load_answer(tmp_path / "answer.jsonl", golden)).is_equal
    local = programs.Local(file_of(name)).answer()
    assert check_rows(golden, local, local=True).is_equal
    assert not check_rows(golden, rows, local=True).is_equal


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_over_random_specs_right_passes_and_one_flipped_row_is_found(data: st.DataObject) -> None:
    spec = data.draw(specs())
    golden = make_golden(spec)
    rows = Program(json.loads(golden_bytes(golden))).answer()
    assert check_rows(golden, rows).is_equal
    token, layer_idx, column = (data.draw(st.integers(0, n - 1)) for n in rows.shape)
    rows[token, layer_idx, column] += data.draw(st.sampled_from([1, -1, 2**31, 2**40]))
    report = check_rows(golden, rows)
    assert (report.n_rows_differing, report.n_cases_differing) == (1, 1)
    starts = np.cumsum([0, *(len(case.ids) for case in golden.cases)])
    case_idx = int(np.searchsorted(starts, token, side="right")) - 1
    first = report.first
    assert first is not None
    assert (first.case, first.position) == (golden.cases[case_idx].name, token - starts[case_idx])
    assert (first.layer_id, (first.order, first.head)) == (spec.layer_ids[layer_idx], spec.columns[column])
    right = golden.cases[case_idx].rows[first.position][layer_idx][column]
    assert (first.expected, first.found) == (right, rows[token, layer_idx, column])


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_over_random_specs_a_port_without_a_change_is_the_reference(data: st.DataObject) -> None:
    spec = data.draw(specs())
    port = right_port(spec)
    for case in golden_cases(spec):
        assert [port_rows(port, case, position) for position in range(len(case.ids))] == case.rows


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_over_random_specs_a_file_is_read_as_written(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spec = data.draw(specs())
    golden = Golden(spec=spec, cases=tuple(golden_cases(spec)))
    path = tmp_path_factory.mktemp("golden") / "golden.json"
    path.write_bytes(golden_bytes(golden))
    assert read_golden(path) == golden
    assert golden_bytes(read_golden(path)) == path.read_bytes()


def _simulated(golden: Golden, variant: Variant) -> list[list[list[list[int]]]]:
    """A mistake's rows, case by case, right ones where it says nothing."""
    return [
        [
            [
                [right if row is None else row for row, right in zip(*pair, strict=True)]
                for pair in zip(variant.simulate(case, position), case.rows[position], strict=True)
            ]
            for position in range(len(case.ids))
        ]
        for case in golden.cases
    ]


def _wide() -> AddressSpec:
    """Rows past 2^31, a word of 32 bits, a visible and closed boundary, products past 2^53."""
    moduli = ((2**31 + 11, 40_009), (40_013, 2**31 + 45), (50_021, 50_023))
    return AddressSpec(
        name="wide",
        provenance="tests",
        canonical_size=99_000,
        history=HistoryRule(fill_id=3, boundary_ids=(7,), boundary_visible=True, boundary_closed=True),
        orders=(1, 2, 4),
        layers=(layer_of(0, (4_000_000_007, 3_999_999_979, 2_654_435_761, 40_503), moduli),),
        mix=MixRule(word_bits=32, lagged=True),
    )


def _big_multipliers() -> AddressSpec:
    """Multipliers that no double holds, over few ids."""
    multipliers = (2**57 + 12_345, 2**57 + 999, 2**56 + 7_777_777)
    return AddressSpec(name="big", provenance="tests", canonical_size=40, history=HistoryRule(fill_id=3), orders=(2, 3),
                       layers=(layer_of(0, multipliers, ((1009, 1013), (1019, 1021))),))  # fmt: skip


def _one_end() -> AddressSpec:
    """Ids that are added up, under an end of sequence that is the fill."""
    return AddressSpec(name="one-end", provenance="tests", canonical_size=300, orders=(2, 3),
                       history=HistoryRule(fill_id=299, boundary_ids=(299,)), mix=MixRule(family=Family.SALTED_AFFINE),
                       layers=(layer_of(0, (11, 7_001, 5, 8_009, 600_011), ((1009,), (1013,))),))  # fmt: skip


def test_every_mistake_is_found_by_its_name() -> None:
    """The first form of each that changes a row of one of these specs; and every one changes some."""
    found: set[str] = set()
    for spec in (small(), _wide(), _big_multipliers(), _one_end(), longcat_like(), qwen_like()):
        golden = make_golden(spec)
        for mistake in (mistake for mistake in MISTAKES if mistake.name not in found):
            variants = mistake.variants(Question(golden, golden.rows))
            wrong = next((rows for rows in (_simulated(golden, v) for v in variants) if rows != golden.rows), None)
            if wrong is not None:
                report = check_rows(golden, [token for rows in wrong for token in rows])
                assert mistake.name in [cause.name for cause in report.causes], (spec.name, mistake.name)
                found.add(mistake.name)
    assert found == {mistake.name for mistake in MISTAKES}


def test_cases_hold_what_they_are_for() -> None:
    golden = golden_of("small")
    names = [case.name for case in golden.cases]
    assert len(set(names)) == len(names)
    assert len({(case.history, case.ids) for case in golden.cases}) == len(golden.cases)
    by_name = {case.name: case for case in golden.cases}
    assert [len(by_name[f"length-{n}"].ids) for n in (1, 2)] == [1, 2]
    run = by_name["run"].ids
    chunks = [case for case in golden.cases if case.name.startswith("run-")]
    assert tuple(token for case in chunks for token in case.ids) == run
    assert [case.history for case in chunks] == [
        run[max(0, start - 2) : start] for start in np.cumsum([0, *(len(case.ids) for case in chunks)])[:-1]
    ]
    # A chunk with its history gives the rows of the whole.
    assert [row for case in chunks for row in case.rows] == by_name["run"].rows
    assert set(by_name["dead-all"].ids) == {-1}
    assert by_name["largest"].ids == (59,) * 5
    for boundary in golden.spec.history.boundary_ids:
        assert by_name[f"boundary-{boundary}-history"].history[-1] == boundary
        assert by_name[f"boundary-{boundary}-twice"].ids.count(boundary) == 2
    assert {19, 20, 23, 24} <= set(by_name["replaced-20-24"].ids)
    assert max(len(case.ids) for case in golden.cases) <= 24


def test_cases_reach_numbers_that_doubles_and_32_bits_do_not_hold() -> None:
    keys = [key for case in golden_of("deepseek-v4.1-flash").cases if case.name == "largest"
            for token in case.keys for layer in token for key in layer]  # fmt: skip
    assert any(key != int(float(key)) for key in keys)
    about = {case.name: case.about for case in golden_of("small").cases}
    assert "a double holds them" in about["largest"]
    wide = {case.name: case for case in golden_cases(_wide())}
    assert np.max(wide["large-rows"].rows) >= 2**31
    assert "large-rows" not in {case.name for case in golden_of("small").cases}


def test_a_golden_set_is_fixed() -> None:
    """Another stream of ids would be another question to every port that was checked with the old one."""
    golden = golden_of("deepseek-v4.1-flash")
    rows = np.array([token for case in golden.cases for token in case.rows], dtype="<i8")
    assert golden.rows_sha256 == hashlib.sha256(rows.tobytes()).hexdigest()
    assert golden.rows_sha256 == "a56072026972863052db1f5f3cb7fd38b0b82d326c69f16ef4662e517e203cb0"
    assert len(golden_bytes(golden)) < 200_000


def test_nothing_is_made_where_kernels_and_reference_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference.row
    monkeypatch.setattr(reference, "row", lambda *arguments: max(0, right(*arguments) - 1))
    with pytest.raises(AssertionError, match="case start: the kernels differ"):
        make_golden(small())


def _positions(golden: Golden, holds: Callable[[GoldenCase, int], bool]) -> list[bool]:
    return [holds(case, position) for case in golden.cases for position in range(len(case.ids))]


def _hints(name: str, where: Callable[[Golden], Any]) -> list[str]:
    """Hints for rows that are right but for noise in some places."""
    golden, rows = golden_of(name), Program(file_of(name)).answer()
    noise = np.random.default_rng(7).integers(1, 1000, rows.shape)
    rows[where(golden)] += noise[where(golden)]
    report = check_rows(golden, rows)
    assert report.causes == ()
    assert report.n_rows_differing == noise[where(golden)].size
    return [hint.name for hint in report.hints]


def test_where_no_mistake_fits_it_is_told_what_the_rows_share() -> None:
    deepseek = "deepseek-v4.1-flash"
    assert _hints(deepseek, lambda golden: np.s_[:, 1])[:1] == ["layer"]
    assert _hints(deepseek, lambda golden: np.s_[:, :, 8:16])[:1] == ["order"]
    assert _hints(deepseek, lambda golden: np.s_[:, :, 3::8])[:1] == ["head"]
    assert _hints(deepseek, lambda golden: _positions(golden, lambda case, p: case.ids[p] < 0))[:1] == ["dead"]
    assert "history" in _hints(
        deepseek, lambda golden: _positions(golden, lambda case, p: bool(case.history) and p < 1)
    )
    assert "fill" in _hints(deepseek, lambda golden: _positions(golden, lambda case, p: not case.history and p < 1))
    assert "boundary" in _hints("longcat-like", lambda golden: _positions(golden, lambda case, p: case.ids[p] == 2))
    assert _hints(deepseek, lambda golden: np.s_[:])[:1] == ["all"]


def test_products_in_doubles_alone_are_named_where_powers_are_no_powers_of_two() -> None:
    """A base of 131,072 leaves every product exact."""
    spec = dataclasses.replace(longcat_like(), canonical_size=130_001, layers=(
        dataclasses.replace(longcat_like().layers[0], multipliers=(130_001,)),))  # fmt: skip
    golden = make_golden(spec)
    for program in (programs.RoundedProducts, programs.RoundedOnce, programs.JavaScriptNumbers):
        report = check_rows(golden, program(json.loads(golden_bytes(golden))).answer())
        assert [cause.name for cause in report.causes] == ["float64"], program


def test_layer_seeds_are_recognised_as_published_ones_alone() -> None:
    """A multiplier of another making, and no seed is spoken of."""
    assert programs.SeededById(file_of("deepseek-v4.1-flash")).layers == Program(file_of("deepseek-v4.1-flash")).layers
    assert [seeds for seeds, _ in other_seeds(golden_of("deepseek-v4.1-flash").spec)] == [(0, 1), (2, 15), (1, 2)]
    assert [seeds for seeds, _ in other_seeds(golden_of("qwen-like").spec)] == [(1,), (2,)]
    for name in ("small", "longcat-like"):
        assert list(other_seeds(golden_of(name).spec)) == []
    for canonical_size in (1, 2**30 - 1, 2**30, 2**31 + 1, 2**32):
        layer = layer_of(3, (3, 5), ((1009,), (1013,)))
        spec = dataclasses.replace(small(), canonical_size=canonical_size, layers=(layer,), orders=(1, 2),
                                   history=HistoryRule(fill_id=0))  # fmt: skip
        assert list(other_seeds(spec)) == []


def test_cases_without_dead_tokens_are_the_others_of_the_whole_set(tmp_path: Path) -> None:
    whole, golden = golden_of("small"), make_golden(small(), with_dead=False)
    assert golden.cases == tuple(case for case in whole.cases if -1 not in (*case.history, *case.ids))
    assert 0 < len(golden.cases) < len(whole.cases)
    path = tmp_path / "golden.json"
    path.write_bytes(golden_bytes(golden))
    assert read_golden(path) == golden
    data = json.loads(path.read_bytes())
    assert check_rows(golden, Program(data).answer()).is_equal
    assert check_rows(golden, programs.NoLatch(data).answer()).is_equal
    report = check_rows(golden, programs.FillOutOfTheBlue(data).answer())
    assert [(cause.name, cause.values) for cause in report.causes] == [("wrong-fill", (54_321, 3))]


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_over_random_specs_no_dead_leaves_cases_and_no_dead_token(data: st.DataObject) -> None:
    cases = golden_cases(data.draw(specs()), with_dead=False)
    assert cases
    assert all(-1 not in (*case.history, *case.ids) for case in cases)


class _OtherMultipliers(Program):
    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        for layer in self.layers:
            layer["multipliers"] = [multiplier - 2 for multiplier in layer["multipliers"]]


class _OneWrongPrime(Program):
    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        layer, flat = self.layers[1], [modulus for heads in self.layers[1]["moduli"] for modulus in heads]
        flat[10] += 2
        layer["moduli"] = [flat[:8], flat[8:16], flat[16:]]
        layer["offsets"] = [sum(flat[:n]) for n in range(len(flat))]


def _hints_of(name: str, rows: Any) -> dict[str, str]:
    report = check_rows(golden_of(name), rows)
    assert report.causes == ()
    return {hint.name: hint.sentence for hint in report.hints}


@pytest.mark.parametrize("name", ["deepseek-v4.1-flash", "qwen-like"])
def test_wrong_multipliers_are_looked_for_though_they_leave_id_0_alone(name: str) -> None:
    rows = _OtherMultipliers(file_of(name)).answer()
    assert (rows == Program(file_of(name)).answer()).any()
    hints = _hints_of(name, rows)
    assert list(hints) == ["all"]
    assert "look at the multipliers first" in hints["all"]
    local = rows - np.array([layer.offsets for layer in golden_of(name).spec.layers])
    hints = _hints_of(name, local)
    assert list(hints) == ["all", "outside"]
    assert hints["outside"].endswith("; if the program counts rows within each head, try --local")


def test_one_wrong_prime_is_placed_behind_the_last_column_that_agrees() -> None:
    hints = _hints_of("deepseek-v4.1-flash", _OneWrongPrime(file_of("deepseek-v4.1-flash")).answer())
    assert hints["columns"] == (
        "whole columns differ, and layer 14, order 3, head 1 is the last that agrees before them: look at moduli and "
        "offsets from there on"
    )
    assert "large-mix" not in hints


def test_large_mixes_are_spoken_of_where_nothing_else_is() -> None:
    golden = golden_of("deepseek-v4.1-flash")
    rows = Program(file_of("deepseek-v4.1-flash")).answer()
    keys = np.array([token for case in golden.cases for token in case.keys], dtype=np.int64)
    noise = np.random.default_rng(7).integers(1, 1000, rows.shape)
    is_large = (keys > 2**62).repeat(8, axis=2)
    assert list(_hints_of("deepseek-v4.1-flash", np.where(is_large, rows + noise, rows))) == ["large-mix"]
    is_large[:, 0] = False
    hints = _hints_of("deepseek-v4.1-flash", np.where(is_large, rows + noise, rows))
    assert list(hints) == ["layer"]


def test_one_row_is_no_pattern_and_a_row_outside_of_its_head_is_told() -> None:
    golden, rows = golden_of("small"), Program(file_of("small")).answer()
    rows[3, 0, 1] = golden.spec.layers[0].offsets[1]
    report = check_rows(golden, rows)
    assert (report.n_rows_differing, report.causes, report.hints) == (1, (), ())
    rows[3, 0, 1] -= 1
    (hint,) = check_rows(golden, rows).hints
    assert (hint.name, hint.sentence) == ("outside", "1 of the rows that differ lie outside of their head's")


def test_every_mistake_and_hint_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "golden.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", page, flags=re.MULTILINE)
    mistakes = [mistake.name for mistake in (*MISTAKES, SHIFTED)]
    assert [name for name in listed if name in mistakes] == mistakes
    hints = [
        "all",
        "layer",
        "order",
        "head",
        "columns",
        "dead",
        "boundary",
        "history",
        "fill",
        "large-row",
        "large-mix",
        "outside",
    ]
    assert listed[-len(hints) :] == hints
