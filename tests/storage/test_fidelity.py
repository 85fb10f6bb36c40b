from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engram_tables.errors import InvalidInput
from engram_tables.storage.codecs import reference
from engram_tables.storage.codecs.fidelity import Fidelity, Tally

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def rows(seed: int, n_rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_rows, width)).astype(np.float32)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 64])
@given(data=st.data())
@settings(max_examples=20)
def test_sums_are_those_of_the_reference(width: int, data: st.DataObject) -> None:
    original = data.draw(hnp.arrays(np.float32, (3, width), elements=FINITE))
    decoded = data.draw(hnp.arrays(np.float32, (3, width), elements=FINITE))
    decoded[2] = original[2]
    weights = np.array([5, 0, 7], dtype=np.uint64)
    found = Fidelity()
    found.add(9, ints(0, 4, 4), original, decoded, weights)
    plain = [reference.distance(a, b) for a, b in zip(original.tolist(), decoded.tolist(), strict=True)]
    changed = [int(largest > 0) for largest, _, _ in plain]
    assert found.tallies == {
        (9, 0): tally(1, width, changed[0], *plain[0]),
        (9, 4): tally(
            2, width, changed[1], plain[1][0], *(a + b for a, b in zip(plain[1][1:], plain[2][1:], strict=True))
        ),
    }
    assert found.weighted == {
        (9, 0): tally(5, width, 5 * changed[0], plain[0][0], 5 * plain[0][1], 5 * plain[0][2]),
        (9, 4): tally(7, width, 0, 0.0, 0.0, 7 * plain[2][2]),
    }


def tally(n_rows: int, width: int, n_changed: int, largest: float, error: float, value: float) -> Tally:
    return Tally(
        n_rows=n_rows,
        n_values=n_rows * width,
        n_rows_changed=n_changed,
        largest_error=largest,
        squared_error=error,
        squared_value=value,
    )


def test_merging_in_order_is_exact_through_json() -> None:
    def block(seed: int) -> Fidelity:
        found = Fidelity()
        columns = np.sort(np.random.default_rng(seed).integers(0, 5, 40))
        weights = np.random.default_rng(seed).integers(0, 2**60, 40).astype(np.uint64)
        found.add(seed % 2, columns, rows(seed, 40, 32), rows(seed + 100, 40, 32), weights)
        return found

    straight, resumed = Fidelity(), Fidelity()
    for seed in range(6):
        straight.merge(block(seed))
        resumed.merge(Fidelity.from_json(json.loads(json.dumps(block(seed).to_json())), where="journal"))
        resumed = Fidelity.from_json(resumed.to_json(), where="journal")
    assert straight == resumed
    assert straight.to_json() == resumed.to_json()
    total = straight.total()
    assert total.n_rows == 240
    assert total.n_values == 240 * 32
    assert straight.total(layer_id=0).n_rows == straight.total(layer_id=1).n_rows == 120
    assert straight.total(weighted=True).n_rows > 2**60


def test_what_the_report_divides() -> None:
    found = Fidelity()
    original = np.full((2, 4), 2.0, dtype=np.float32)
    found.add(1, ints(0, 0), original, original - np.float32(0.5))
    total = found.total()
    assert (total.rms_error, total.relative_rms_error, total.largest_error) == (0.5, 0.25, 0.5)
    assert found.weighted == {}
    assert math.isclose(Tally().rms_error, 0.0)
    assert Tally().relative_rms_error is None


def test_zero_of_either_sign_is_no_change() -> None:
    found = Fidelity()
    found.add(1, ints(0), np.zeros((1, 32), np.float32), np.full((1, 32), -0.0, np.float32))
    assert found.total() == tally(1, 32, 0, 0.0, 0.0, 0.0)
    found.add(1, ints(), np.zeros((0, 32), np.float32), np.zeros((0, 32), np.float32))
    assert found.total().n_rows == 1


@pytest.mark.parametrize("damage", ["", None, 0, [], "0x1", 1.5, "nan", "inf", "-0x1.0p+0", "0x1.0p+99999", -1, True])
def test_damaged_json_is_refused(damage: object) -> None:
    found = Fidelity()
    found.add(1, ints(0), rows(1, 1, 32), rows(2, 1, 32))
    body = found.to_json()
    with pytest.raises(InvalidInput, match="journal"):
        Fidelity.from_json({"tallies": damage, "weighted": []}, where="journal") if damage else Fidelity.from_json(
            damage, where="journal"
        )
    for k in range(8):
        row = list(body["tallies"][0])
        row[k] = damage  # type: ignore[call-overload]
        if damage == 0 and k < 5:
            continue
        with pytest.raises(InvalidInput, match="journal"):
            Fidelity.from_json({"tallies": [row], "weighted": []}, where="journal")
    with pytest.raises(InvalidInput, match="once"):
        Fidelity.from_json({"tallies": body["tallies"] * 2, "weighted": []}, where="journal")


def test_arrays_of_other_shapes_are_refused() -> None:
    good = rows(1, 2, 32)
    for arguments in (
        (ints(0, -1), good, good),
        (ints(0), good, good),
        (ints(0, 0), good, good[:1]),
        (ints(0, 0), good.astype(np.float64), good),
        (ints(0, 0), good, good, np.ones(2, np.int64)),
    ):
        with pytest.raises(TypeError):
            Fidelity().add(1, *arguments)
