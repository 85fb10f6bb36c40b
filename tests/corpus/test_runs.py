"""Runs and their merging against a plain dict; run files that are cut, missing or another form's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables.corpus.counts import merge_kernels, runs
from engram_tables.corpus.counts.counting import Sequences as Stream
from engram_tables.corpus.counts.counting import Workspace, sort_windows
from engram_tables.corpus.counts.runs import (
    RUN_FILES,
    Run,
    merge_runs,
    merge_to_run,
    new_run,
    open_run,
    run_file,
    save_run,
)
from engram_tables.corpus.counts.windows import WindowForm
from engram_tables.errors import InvalidInput

Key = tuple[int, int]
EDGES = [0, 1, 2**32, 2**63, 2**64 - 2, 2**64 - 1]
FORMS = [
    WindowForm(order=2, canonical_size=9),  # one word, one block
    WindowForm(order=4, canonical_size=2**17),  # one word, blocks of leading tokens
    WindowForm(order=3, canonical_size=2**16, next_size=2**20),  # one word, a follower
    WindowForm(order=4, canonical_size=2**17 - 1, next_size=2**17),  # two words, a follower
    WindowForm(order=5, canonical_size=2**20),  # two words
]


def array_of(keys: Sequence[Key], n_words: int) -> np.ndarray:
    words = [word for high, low in keys for word in ((high, low) if n_words == 2 else (low,))]
    return np.array(words, dtype=np.uint64)


@st.composite
def many_runs(draw: st.DrawFn) -> tuple[int, list[list[tuple[Key, int]]], list[int]]:
    """Number of words; each run's distinct sorted keys with counts; bytes of each run's counts."""
    n_words = draw(st.sampled_from([1, 2]))
    word = st.sampled_from(EDGES) | st.integers(0, 2**64 - 1)
    pool = draw(st.lists(st.tuples(word if n_words == 2 else st.just(0), word), min_size=1, max_size=12, unique=True))
    shared = draw(st.lists(st.sampled_from(pool), max_size=4))
    found, widths = [], []
    for _ in range(draw(st.integers(1, 9))):
        keys = draw(st.sets(st.sampled_from(pool), max_size=len(pool)))
        keys = sorted({*keys, *shared}) if draw(st.booleans()) else sorted(keys)
        n_bytes = draw(st.sampled_from([4, 8]))
        top = 2**32 - 1 if n_bytes == 4 else 2**60
        found.append([(key, draw(st.integers(1, 3) | st.just(top))) for key in keys])
        widths.append(n_bytes)
    return n_words, found, widths


def added_up(all_runs: Sequence[Sequence[tuple[Key, int]]]) -> list[tuple[Key, int]]:
    totals: Counter[Key] = Counter()
    for run in all_runs:
        for key, n in run:
            totals[key] += n
    return sorted(totals.items())


@given(many_runs(), st.sampled_from([1, 2, 3, 100]))
@settings(deadline=None, max_examples=100)
def test_slices_of_runs_add_up_to_the_dict(
    made: tuple[int, list[list[tuple[Key, int]]], list[int]], share: int
) -> None:
    n_words, all_runs, widths = made
    keys = [array_of([key for key, _ in run], n_words) for run in all_runs]
    counts = [
        np.array([n for _, n in run], dtype=np.uint32 if n_bytes == 4 else np.uint64)
        for run, n_bytes in zip(all_runs, widths, strict=True)
    ]
    room = share * len(all_runs)
    cursors = np.zeros(len(all_runs), dtype=np.int64)
    stops = np.array([len(run) for run in all_runs], dtype=np.int64)
    words = np.empty((2, room * n_words), dtype=np.uint64)
    totals = np.empty((2, room), dtype=np.uint64)
    found: list[tuple[Key, int]] = []
    while (cursors < stops).any():
        before = cursors.copy()
        n_keys, is_spare = merge_kernels.merge_slice(
            np.array([array.ctypes.data for array in keys], dtype=np.uint64),
            np.array([array.ctypes.data for array in counts], dtype=np.uint64),
            np.array(widths, dtype=np.int64),
            cursors, stops, share, n_words, np.empty(len(all_runs) + 1, dtype=np.int64),
            words[0], totals[0], words[1], totals[1],
        )  # fmt: skip
        assert 1 <= n_keys <= room
        assert (cursors >= before).all()
        assert (cursors - before <= share).all()
        assert (cursors <= stops).all()
        merged = words[int(is_spare)][: n_keys * n_words].reshape(-1, n_words).tolist()
        found += zip([(0, *key)[-2:] for key in merged], totals[int(is_spare)][:n_keys].tolist(), strict=True)
    assert found == added_up(all_runs)


@given(st.lists(st.sampled_from(EDGES) | st.integers(0, 2**64 - 1), max_size=20), st.sampled_from(EDGES), st.booleans())
@settings(deadline=None, max_examples=60)
def test_lower_bound_is_that_of_the_sorted_keys(values: list[int], wanted: int, is_wide: bool) -> None:
    keys = sorted({(value % 3, value) if is_wide else (0, value) for value in values})
    words = array_of(keys, 2 if is_wide else 1)
    for high in (0, 1, 2, 2**64 - 1) if is_wide else (0,):
        found = merge_kernels.lower_bound(
            np.uint64(words.ctypes.data), 0, len(keys), np.uint64(high), np.uint64(wanted), 2 if is_wide else 1
        )
        assert found == sum(key < (high, wanted) for key in keys)


def value_of(window: Sequence[int], form: WindowForm) -> int:
    """The whole key as one number: ids, then the follower's place."""
    value = 0
    for token in window[: form.order]:
        value = value << form.token_bits | token
    return value << form.next_bits | (window[form.order] if form.next_bits else 0)


def run_from(windows: dict[tuple[int, ...], int], form: WindowForm, dtype: Any) -> Run:
    """The twin of sorting: whole keys as numbers, the leading token's high bits cut off where a word is too short."""
    values = sorted((value_of(window, form), window[0], n) for window, n in windows.items())
    sizes = np.bincount([(leading >> form.free_bits) + 1 for _, leading, _ in values], minlength=form.n_blocks + 1)
    blocks = np.cumsum(sizes).astype(np.int64)
    keys = array_of([(value >> 64, value % 2**64) for value, _, _ in values], form.n_words)
    return Run(form=form, keys=keys, counts=np.array([n for _, _, n in values], dtype=dtype), block_starts=blocks)


def windows_of(run: Run) -> list[tuple[int, int]]:
    """(whole key, count) of every window, ascending."""
    found = []
    for block in merge_runs([run], 0, run.form.canonical_size):
        for windows, counts, leading in block:
            found += zip(numbers(windows, leading, run.form), counts.tolist(), strict=True)
    return found


def numbers(windows: np.ndarray, leading: int, form: WindowForm) -> list[int]:
    if form.n_words == 2:
        return [high << 64 | low for high, low in windows.tolist()]
    # A key of one word lacks the high bits of its leading token.
    return [key | leading << (form.key_bits - form.token_bits) for key in windows.tolist()]


@st.composite
def window_sets(draw: st.DrawFn) -> tuple[WindowForm, list[dict[tuple[int, ...], int]]]:
    form = draw(st.sampled_from(FORMS))
    top = form.canonical_size - 1
    sentinel = 2**form.token_bits - 1
    token = st.sampled_from([0, 1, top, top - 1, top // 2, top // 2 + 1])
    later = token | st.just(sentinel)
    places = [token] + [later] * (form.order - 1)
    if form.next_bits:
        places.append(st.sampled_from([0, form.next_size - 1, 2**form.next_bits - 1]))
    windows = st.dictionaries(st.tuples(*places), st.integers(1, 5) | st.just(2**32 - 1), max_size=12)
    return form, draw(st.lists(windows, min_size=1, max_size=6))


@given(window_sets(), st.sampled_from([1, 2, 5, 32_768]), st.lists(st.booleans(), min_size=6, max_size=6), st.data())
@settings(deadline=None, max_examples=100)
def test_merged_runs_are_the_sum_in_every_range_of_tokens(
    made: tuple[WindowForm, list[dict[tuple[int, ...], int]]],
    slice_windows: int,
    is_wide_count: list[bool],
    data: st.DataObject,
) -> None:
    form, sets = made
    all_runs = [
        run_from(windows, form, np.uint64 if wide else np.uint32)
        for windows, wide in zip(sets, is_wide_count, strict=False)
    ]
    totals: Counter[tuple[int, ...]] = Counter()
    for windows in sets:
        totals.update(windows)
    expected = sorted((value_of(window, form), window[0], n) for window, n in totals.items())
    tops = sorted({data.draw(st.integers(1, form.canonical_size)), form.canonical_size // 2, form.canonical_size} - {0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "SLICE_WINDOWS", slice_windows)
        for start, stop in [(0, form.canonical_size), *zip([0, *tops], tops, strict=False)]:
            found = []
            for block in merge_runs(all_runs, start, stop):
                for stretch in block:
                    assert 1 <= len(stretch.counts) <= max(slice_windows, len(all_runs))
                    found += zip(numbers(stretch.windows, stretch.leading, form), stretch.counts.tolist(), strict=True)
            assert found == [(value, n) for value, leading, n in expected if start <= leading < stop]
        merged = merge_to_run(all_runs)
        assert windows_of(merged) == [(value, n) for value, _, n in expected]
        again = merge_to_run([merged, all_runs[0]])
        assert merged.block_starts.tolist() == run_from(dict(totals), form, np.uint64).block_starts.tolist()
        assert again.block_starts.tolist() == merged.block_starts.tolist()
    for token in {0, *tops, form.canonical_size - 1}:
        assert merged.cut(token) == sum(leading < token for _, leading, _ in expected)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_sum_of_a_thousand_runs_is_that_of_one(form: WindowForm) -> None:
    """More runs than a slice has windows: each gives one at a time."""
    window = (form.canonical_size - 1,) * form.order + ((0,) if form.next_bits else ())
    one = run_from({window: 2**32 - 1}, form, np.uint32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "SLICE_WINDOWS", 64)
        merged = merge_to_run([one] * 1000)
    assert windows_of(merged) == [(value_of(window, form), 1000 * (2**32 - 1))]


@pytest.mark.parametrize("form", FORMS[:2] + FORMS[4:], ids=str)
def test_a_sorted_stream_is_the_run_of_its_windows(form: WindowForm) -> None:
    generator = np.random.default_rng(2)
    top = form.canonical_size - 1
    ids = generator.choice([0, 1, top, top // 2, top // 2 + 1], 3000).astype(np.uint32)
    stream = Stream(ids=ids, starts=np.array([0, 7, 7, 3000]), n_windows=2500)
    run = runs.run_of(sort_windows(stream, form, threads=2, workspace=Workspace()))
    sentinel = 2**form.token_bits - 1
    windows = Counter(
        tuple(
            ids[place].item() if place < (7 if at < 7 else 3000) else sentinel for place in range(at, at + form.order)
        )
        for at in range(2500)
    )
    twin = run_from(dict(windows), form, np.uint32)
    for mine, wanted in ((run.keys, twin.keys), (run.counts, twin.counts), (run.block_starts, twin.block_starts)):
        np.testing.assert_array_equal(mine, wanted)


def saved(path: Path, form: WindowForm, n_windows: int = 40) -> Run:
    generator = np.random.default_rng(3)
    windows = {
        tuple(generator.integers(0, min(form.canonical_size, 9), form.order + bool(form.next_bits)).tolist()): at + 1
        for at in range(n_windows)
    }
    run = run_from(windows, form, np.uint32)
    save_run(run, path)
    return run


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("n_windows", [0, 1, 40])
def test_a_run_is_read_back(tmp_path: Path, form: WindowForm, n_windows: int) -> None:
    run = saved(tmp_path / "run", form, n_windows)
    again = open_run(tmp_path / "run", form)
    assert windows_of(again) == windows_of(run)
    with new_run(tmp_path / "new", form, run.n_windows) as filled:
        filled.keys[:], filled.counts[:], filled.block_starts[:] = run.keys, run.counts, run.block_starts
    assert windows_of(open_run(tmp_path / "new", form)) == windows_of(run)
    assert windows_of(merge_to_run([again, open_run(tmp_path / "new", form)])) == [
        (value, 2 * n) for value, n in windows_of(run)
    ]


@pytest.mark.parametrize("kind", RUN_FILES)
def test_a_cut_run_is_refused_at_every_length(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "run", FORMS[0])
    path = run_file(tmp_path / "run", kind)
    whole = path.read_bytes()
    for n_bytes in [*range(0, 140), len(whole) // 2, len(whole) - 9, len(whole) - 1]:
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(InvalidInput, match=r"run: not a whole run .*count again"):
            open_run(tmp_path / "run", FORMS[0])
    path.unlink()
    with pytest.raises(FileNotFoundError):
        open_run(tmp_path / "run", FORMS[0])


def test_a_run_of_another_form_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "run", FORMS[0])
    for form in FORMS[1:]:
        with pytest.raises(InvalidInput, match=r"run: found .*expected a run of"):
            open_run(tmp_path / "run", form)


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        ("counts", np.ones(40, dtype=np.uint8)),
        ("counts", np.ones(40, dtype=np.uint16)),
        ("counts", np.ones(40, dtype=np.float64)),
        ("counts", np.ones((40, 2), dtype=np.uint64)),
        ("keys", np.ones(40, dtype=np.uint32)),
        ("keys", np.ones(40, dtype=">u8")),
        ("blocks", np.array([0, 40], dtype=np.float64)),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, kind: str, array: np.ndarray) -> None:
    """Merging reads by address, so that a shorter item would be read past the end of its file."""
    form = WindowForm(order=1, canonical_size=300)
    save_run(run_from({(at,): 1 for at in range(40)}, form, np.uint32), tmp_path / "run")
    np.save(run_file(tmp_path / "run", kind), array)
    with pytest.raises(InvalidInput, match=r"run: (found arrays of|not a whole run)"):
        open_run(tmp_path / "run", form)
