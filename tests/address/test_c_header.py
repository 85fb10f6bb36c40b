"""The exported C header: compiled by the system's compilers, held against its golden cases and the kernels."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_specs import specs, streams

from engram_tables import load_spec
from engram_tables.address.export.c_header import c_header
from engram_tables.address.golden.cases import golden_cases
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, LayerAddressing, MixRule
from engram_tables.errors import InvalidInput

CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
CXX = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler: cc, gcc or clang")

STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wundef", "-Werror", "-O2")
SANITIZERS = ("-fsanitize=undefined,address", "-fno-sanitize-recover")
PRESETS = (
    "deepseek-v4.1-flash",
    "qwen3.8-flash-next",
    "longcat-flash-lite",
    "longcat-2.0",
    "nanochat-300m",
    "gemma-3n-e2b",
)


def _spec(
    family: Family = Family.XOR_MULTIPLY,
    *,
    name: str,
    size: int = 1000,
    orders: tuple[int, ...] = (2, 3),
    moduli: tuple[int, ...] = (7919, 101),
    multipliers: tuple[int, ...] = (3, 5, 7),
    layer_ids: tuple[int, ...] = (0,),
    mix: MixRule | None = None,
    history: HistoryRule | None = None,
    is_shared: bool = False,
) -> AddressSpec:
    """A spec whose orders have the same moduli, and whose columns share their rows or have rows of their own."""
    flat = moduli * len(orders)
    layers = [
        LayerAddressing(
            layer_id=layer_id,
            multipliers=multipliers,
            moduli=(moduli,) * len(orders),
            offsets=(0,) * len(flat) if is_shared else (0, *accumulate(flat[:-1])),
            n_rows=max(flat) if is_shared else sum(flat),
        )
        for layer_id in layer_ids
    ]
    return AddressSpec(
        name=name,
        provenance="tests",
        canonical_size=size,
        history=history or HistoryRule(fill_id=1),
        orders=orders,
        layers=tuple(layers),
        mix=mix or MixRule(family=family),
    )


def _corner_specs() -> list[AddressSpec]:
    """What no preset has: the largest constants, signed words, every history rule, windows of one id."""
    largest = 2**32 - 1
    scattered = tuple((start, start + 3) for start in range(0, 900, 7))
    return [
        _spec(name="large", size=2**32, orders=(16,), moduli=(2**47 - 115, 2**45), multipliers=(2**31 - 1,) * 16,
              history=HistoryRule(fill_id=largest)),
        _spec(name="signed", size=2**32, orders=(1, 2, 4), moduli=(7919, 2**40, 1),
              multipliers=(2**32 - 1, 2654435761, 40503, 2246822519),
              mix=MixRule(word_bits=32, oldest_first=True, lagged=True)),
        _spec(name="signed-ones", orders=(1,), multipliers=(2**32 - 5,), mix=MixRule(word_bits=32)),
        _spec(name="boundaries", layer_ids=(4, 9),
              history=HistoryRule(fill_id=3, boundary_ids=tuple(range(0, 640, 10)), boundary_visible=True,
                                  boundary_closed=True)),
        _spec(name="closed", history=HistoryRule(fill_id=3, boundary_ids=(5,), boundary_closed=True)),
        _spec(name="replaced", history=HistoryRule(fill_id=3, boundary_ids=(500,), boundary_visible=True,
                                                   replaced=scattered, replacement=500)),
        _spec(Family.POLYNOMIAL, name="polynomial", size=300_000, orders=(1, 2, 5), moduli=(2**40 // 300_000, 1),
              multipliers=(300_000,)),
        _spec(Family.SALTED_AFFINE, name="affine", size=2**32, orders=(1, 6), moduli=(7919, 2**47 - 115),
              multipliers=tuple(range(2**27, 2**27 + 14)), is_shared=True),
        _spec(Family.IDENTITY, name="identity", orders=(1,), moduli=(997,), multipliers=(),
              history=HistoryRule(fill_id=9, replaced=((990, 1000),))),
    ]  # fmt: skip


@cache
def _presets() -> list[AddressSpec]:
    return [load_spec(name) for name in PRESETS]


def _prefix(header: str) -> str:
    found = re.search(r"typedef struct (\w+)_state ", header)
    assert found is not None
    return found[1]


def _compile(*arguments: str | Path, compiler: str | None = CC) -> None:
    assert compiler is not None
    done = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


def _run(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program], capture_output=True, text=True, check=False)


def _program_of_all(folder: Path, given_specs: list[AddressSpec]) -> Path:
    """A source file that includes the headers of several specs and runs all of their self-tests."""
    lines, calls = ["#define ENGRAM_SELF_TEST"], []
    for spec in given_specs:
        header = c_header(spec)
        prefix = _prefix(header)
        (folder / f"{prefix}.h").write_text(header, encoding="ascii")
        # Twice, as translation units do.
        lines += [f'#include "{prefix}.h"', f'#include "{prefix}.h"']
        calls.append(f"{prefix}_self_test()")
    source = folder / "all.c"
    source.write_text("\n".join([*lines, f"int main(void) {{ return ({' + '.join(calls)}) != 0; }}", ""]))
    return source


def _is_able(folder: Path, *flags: str) -> bool:
    """Whether a program that is compiled with `flags` also runs."""
    source = folder / "able.c"
    source.write_text("int main(void) { return 0; }\n")
    assert CC is not None
    compiled = subprocess.run([CC, *flags, source, "-o", folder / "able"], capture_output=True, check=False)
    return compiled.returncode == 0 and _run(folder / "able").returncode == 0


class _Hasher:
    """A compiled header, called through ctypes."""

    def __init__(self, library: ctypes.CDLL, prefix: str, spec: AddressSpec) -> None:
        self._hash = library[f"{prefix}_call"]
        self._hash.restype = ctypes.c_size_t
        self.spec, self.state = spec, np.full(max(1, spec.max_order - 1), -1, dtype=np.int64)

    def hash(self, ids: np.ndarray, rows: np.ndarray | None, keys: np.ndarray | None) -> int:
        pointers = [None if array is None else ctypes.c_void_p(array.ctypes.data) for array in (rows, keys)]
        state, here = (ctypes.c_void_p(array.ctypes.data) for array in (self.state, ids))
        return int(self._hash(state, here, ctypes.c_size_t(len(ids)), *pointers))

    def chunks(self, ids: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Rows and keys of the next ids, hashed by chunks of `sizes` in turn."""
        spec = self.spec
        rows = np.full((len(ids), len(spec.layers), spec.n_columns), -7, dtype=np.int64)
        keys = np.full((len(ids), len(spec.layers), len(spec.orders), spec.key_words), 7, dtype=np.uint64)
        start = turn = 0
        while start < len(ids):
            stop = start + sizes[turn % len(sizes)]
            assert self.hash(ids[start:stop], rows[start:stop], keys[start:stop]) == 0
            start, turn = stop, turn + 1
        return rows, keys


def _hashers(folder: Path, given_specs: list[AddressSpec], *flags: str) -> list[_Hasher]:
    """One shared library of several headers."""
    lines, prefixes = [], []
    for number, spec in enumerate(given_specs):
        prefix = f"spec{number}"
        (folder / f"{prefix}.h").write_text(c_header(spec, prefix=prefix), encoding="ascii")
        lines += [
            f'#include "{prefix}.h"',
            f"size_t {prefix}_call({prefix}_state *s, const int64_t *i, size_t n, int64_t *r, uint64_t *k);",
            f"size_t {prefix}_call({prefix}_state *s, const int64_t *i, size_t n, int64_t *r, uint64_t *k)",
            f"{{ return {prefix}_hash(s, i, n, r, k); }}",
        ]
        prefixes.append(prefix)
    source, library = folder / "library.c", folder / "library.so"
    source.write_text("\n".join([*lines, ""]))
    _compile("-std=c99", *flags, "-shared", "-fPIC", source, "-o", library)
    loaded = ctypes.CDLL(str(library))
    return [_Hasher(loaded, prefix, spec) for prefix, spec in zip(prefixes, given_specs, strict=True)]


def _words(keys: np.ndarray, spec: AddressSpec) -> np.ndarray:
    """Keys as uint64 (tokens, layers, orders, words)."""
    shape = (-1, len(spec.layers), len(spec.orders), spec.key_words)
    return np.ascontiguousarray(keys).view(np.uint64).reshape(shape)


def test_the_header_is_a_program_that_tests_itself(tmp_path: Path) -> None:
    header, program = tmp_path / "engram_hash.h", tmp_path / "test"
    header.write_text(c_header(load_spec("deepseek-v4.1-flash")), encoding="ascii")
    _compile("-x", "c", "-std=c99", *STRICT, "-DENGRAM_SELF_TEST_MAIN", header, "-o", program)
    done = _run(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\d+ rows of \d+ cases agree\n", done.stdout)
    # And nothing is said of functions that nobody calls.
    _compile("-x", "c", "-std=c99", *STRICT, "-c", header, "-o", tmp_path / "unused.o")


@pytest.mark.parametrize("kind", ["presets", "corners"])
def test_c99_without_a_warning(tmp_path: Path, kind: str) -> None:
    source = _program_of_all(tmp_path, _presets() if kind == "presets" else _corner_specs())
    _compile("-std=c99", *STRICT, source, "-o", tmp_path / "all")
    done = _run(tmp_path / "all")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(CXX is None, reason="no C++ compiler: c++, g++ or clang++")
@pytest.mark.parametrize("kind", ["presets", "corners"])
def test_cpp11_without_a_warning(tmp_path: Path, kind: str) -> None:
    source = _program_of_all(tmp_path, _presets() if kind == "presets" else _corner_specs())
    _compile("-x", "c++", "-std=c++11", *STRICT, source, "-o", tmp_path / "all", compiler=CXX)
    done = _run(tmp_path / "all")
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_undefined(tmp_path: Path) -> None:
    if not _is_able(tmp_path, *SANITIZERS):
        pytest.skip(f"programs compiled with {' '.join(SANITIZERS)} do not run here")
    source = _program_of_all(tmp_path, [*_presets(), *_corner_specs()])
    _compile("-std=c99", "-O0", *SANITIZERS, source, "-o", tmp_path / "all")
    done = _run(tmp_path / "all")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("preset", "array", "index"),
    [
        ("qwen3.8-flash-next", "factor", 2),
        ("qwen3.8-flash-next", "modulus", 15),
        ("qwen3.8-flash-next", "offset", 0),
        ("qwen3.8-flash-next", "boundary", 0),
        ("longcat-flash-lite", "factor", 23),
        ("nanochat-300m", "modulus", 0),
        ("gemma-3n-e2b", "start", 0),
    ],
)
def test_one_other_constant_is_found(tmp_path: Path, preset: str, array: str, index: int) -> None:
    text = c_header(load_spec(preset))
    numbers = re.search(rf"uint64_t {array}\[\d+\] = {{((?:\s*UINT64_C\(\d+\),?)+)", text)
    assert numbers is not None
    at = list(re.finditer(r"\d+(?=\))", numbers[1]))[index]
    place = numbers.start(1)
    changed = text[: place + at.start()] + str(int(at[0]) + 2) + text[place + at.end() :]
    header, program = tmp_path / "changed.h", tmp_path / "test"
    header.write_text(changed)
    _compile("-x", "c", "-DENGRAM_SELF_TEST_MAIN", header, "-o", program)
    done = _run(program)
    assert done.returncode == 1
    assert re.fullmatch(r"\d+ rows and keys of \d+ cases differ\n", done.stdout)
    told = (
        r"case [\w-]+, position \d+, layer \d+, (column \d+: expected row \d+|key word \d: expected 0x\w+), found \w+\n"
    )
    assert re.fullmatch(told, done.stderr)


def test_the_first_wrong_row_is_told_in_full(tmp_path: Path) -> None:
    spec = _spec(name="told", layer_ids=(4, 9), multipliers=(3, 5, 7))
    text = c_header(spec)
    at = text.index("_layer_9(")
    header, program = tmp_path / "told.h", tmp_path / "test"
    # The last column's rows begin one further.
    offset = spec.layers[1].offsets[3]
    header.write_text(text[:at] + text[at:].replace(f"UINT64_C({offset})", f"UINT64_C({offset + 1})", 1))
    _compile("-x", "c", "-DENGRAM_SELF_TEST_MAIN", header, "-o", program)
    first = golden_cases(spec)[0]
    done, row = _run(program), first.rows[0][1][3]
    assert done.stderr == f"case {first.name}, position 0, layer 9, column 3: expected row {row}, found {row + 1}\n"
    n_tokens = sum(len(case.ids) for case in golden_cases(spec))
    assert done.stdout.startswith(f"{n_tokens} rows and keys of ")


def test_a_million_tokens_by_uneven_chunks_equal_the_kernels(tmp_path: Path) -> None:
    names = ("deepseek-v4.1-flash", "longcat-2.0", "nanochat-300m")
    given_specs = [load_spec(name) for name in names]
    # The last has no boundaries of its own.
    given_specs[2] = replace(
        given_specs[2], history=HistoryRule(fill_id=0, boundary_ids=(7, 11), boundary_visible=True)
    )
    n_tokens, n_block = 1_000_000, 100_000
    for hasher in _hashers(tmp_path, given_specs, "-O2"):
        spec, rng = hasher.spec, np.random.default_rng(11)
        ids = rng.integers(0, spec.canonical_size, n_tokens)
        for boundary in spec.history.boundary_ids:
            ids[rng.random(n_tokens) < 0.04] = boundary
        for start in rng.integers(0, n_tokens, n_tokens // 100):
            ids[start : start + rng.integers(1, 9)] = -1
        before = np.array([], dtype=np.int64)
        for start in range(0, n_tokens, n_block):
            block = ids[start : start + n_block]
            expected = spec.address(np.maximum(block, 0), dead=block < 0, history=before)
            rows, keys = hasher.chunks(block, [1, 2, 3, 997, 1, 5000])
            assert np.array_equal(rows, expected.rows)
            assert np.array_equal(keys, _words(expected.keys, spec))
            before = block[-(spec.max_order - 1) :]


@given(data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_spec_equals_the_kernels(data: st.DataObject) -> None:
    given_specs = data.draw(st.lists(specs(), min_size=3, max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        for hasher in _hashers(Path(folder), given_specs, "-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror"):
            ids = np.array(data.draw(streams(hasher.spec)), dtype=np.int64)
            expected = hasher.spec.address(np.maximum(ids, 0), dead=ids < 0, threads=1)
            rows, keys = hasher.chunks(ids, data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)))
            np.testing.assert_array_equal(rows, expected.rows)
            np.testing.assert_array_equal(keys, _words(expected.keys, hasher.spec))


def test_corner_specs_equal_the_kernels(tmp_path: Path) -> None:
    for hasher in _hashers(tmp_path, _corner_specs(), "-O1"):
        spec, rng = hasher.spec, np.random.default_rng(5)
        corners = [-1, 0, spec.fill_id, spec.canonical_size - 1, *spec.history.boundary_ids[:3]]
        ids = np.where(rng.random(3000) < 0.4, rng.choice(corners, 3000), rng.integers(0, spec.canonical_size, 3000))
        rows, keys = hasher.chunks(ids, [1, 40, 2, 3])
        expected = spec.address(np.maximum(ids, 0), dead=ids < 0)
        np.testing.assert_array_equal(rows, expected.rows)
        np.testing.assert_array_equal(keys, _words(expected.keys, spec))


def test_results_are_optional_and_ids_out_of_range_are_refused(tmp_path: Path) -> None:
    spec = load_spec("deepseek-v4.1-flash")
    (hasher,) = _hashers(tmp_path, [spec], "-O1")
    ids = np.array([60, 70, -1, 80, 90, 100, 110], dtype=np.int64)
    rows, keys = np.full((7, 2, 24), -7), np.full((7, 2, 3, 1), 7, dtype=np.uint64)
    assert hasher.hash(ids, None, None) == 0
    assert hasher.state.tolist() == [90, 100, 110]
    for wrong in (-2, spec.canonical_size, -(2**63), 2**63 - 1):
        bad = ids.copy()
        bad[3:5] = wrong
        assert hasher.hash(bad, rows, keys) == 4
    assert hasher.hash(ids[:0], rows, keys) == 0
    assert hasher.state.tolist() == [90, 100, 110]
    assert (rows == -7).all()
    assert (keys == 7).all()
    expected = spec.address(np.maximum(ids, 0), dead=ids < 0, history=[90, 100, 110])
    for wanted in ((rows, None), (None, keys), (rows, keys)):
        hasher.state[:] = [90, 100, 110]
        assert hasher.hash(ids, *wanted) == 0
        assert hasher.state.tolist() == [90, 100, 110]
    np.testing.assert_array_equal(rows, expected.rows)
    np.testing.assert_array_equal(keys, _words(expected.keys, spec))


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "use-from-c.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```c\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "engram_v41.h").write_text(c_header(load_spec("deepseek-v4.1-flash"), prefix="v41"))
    (tmp_path / "example.c").write_text(example)
    _compile("-std=c99", *STRICT, tmp_path / "example.c", "-o", tmp_path / "example")
    assert f"`{_run(tmp_path / 'example').stdout.strip()}`" in page


def test_names_for_people_stay_within_their_comment(tmp_path: Path) -> None:
    hostile = 'x */ int broken; /* \\\n??/ " %s \u202e\u2028 /*/ */*/ ' + "long" * 60 + "\\"
    spec = replace(_spec(name=hostile), provenance=hostile, vocab_sha256="0" * 64, reduce="x")
    header = tmp_path / "hostile.h"
    header.write_text(c_header(spec), encoding="ascii")
    text = header.read_text()
    assert not re.search(r"[^\n -~]", text)
    assert max(map(len, text.splitlines())) < 400
    for flags in (("c", "-std=c99"), ("c", "-std=c99", "-trigraphs")):
        _compile("-x", *flags, *STRICT, "-DENGRAM_SELF_TEST_MAIN", header, "-o", tmp_path / "test")
        assert _run(tmp_path / "test").returncode == 0


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("deepseek-v4.1-flash", "engram_deepseek_v4_1_flash"),
        ("engram-27b", "engram_27b"),
        ("", "engram_spec"),
        ("模型", "engram_spec"),
        ("__A--b", "engram_a_b"),
        ("x" * 200, "engram_" + "x" * 53),
    ],
)
def test_the_prefix_is_made_of_the_name(name: str, prefix: str) -> None:
    assert _prefix(c_header(_spec(name=name))) == prefix


def test_a_prefix_may_be_given() -> None:
    text = c_header(_spec(name="ours"), prefix="myEngine2")
    assert "myEngine2_hash(" in text
    assert "#define MYENGINE2_LAYERS 1\n" in text
    for wrong in ("", "2a", "_a", "a_", "a__b", "a-b", "a b", "é", "a\n", "a" * 61):
        with pytest.raises(InvalidInput, match="prefix"):
            c_header(_spec(name="ours"), prefix=wrong)


def test_two_specs_under_one_prefix_do_not_compile(tmp_path: Path) -> None:
    for name, size in (("one", 1000), ("two", 1001)):
        (tmp_path / f"{name}.h").write_text(c_header(_spec(name="same", size=size)))
    source = tmp_path / "both.c"
    source.write_text('#include "one.h"\n#include "two.h"\n')
    assert CC is not None
    done = subprocess.run([CC, "-c", source, "-o", tmp_path / "both.o"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "another spec has this prefix already" in done.stderr


def test_same_spec_same_text() -> None:
    spec = load_spec("longcat-flash-lite")
    assert c_header(spec) == c_header(AddressSpec.from_json(spec.to_json()))
    assert spec.fingerprint in c_header(spec)
