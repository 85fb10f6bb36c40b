"""The gates: the NumPy reference against plain formulas, the kernels' sources against the reference, bit for bit."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from processor import ProcessorLauncher, compile_for_processor

from engram_tables.errors import InvalidInput
from engram_tables.fetch import fusing
from engram_tables.fetch.gpu.gates import GateKernels
from engram_tables.fetch.gpu.programs import gates_program, source_text
from engram_tables.storage.codecs import reference

RULES = {"fuse_release": 1e-20, "fuse_paper": fusing.PAPER_EPS}


class Operands:
    """What a gate takes: keys and value are cut out of one projection's output, as V4.1 makes them."""

    def __init__(self, n_tokens: int, n_branches: int, width: int, *, bfloat16: bool = False, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.shape = n_tokens, n_branches, width
        self.hidden = elements(rng.standard_normal(self.shape), bfloat16)
        self.projected = elements(rng.standard_normal((n_tokens, (n_branches + 1) * width)), bfloat16)
        self.key = self.projected[:, : n_branches * width].reshape(self.shape)
        assert np.shares_memory(self.key, self.projected) or not self.key.size or n_tokens == 1
        self.value = self.projected[:, n_branches * width :]
        self.query_weight, self.key_weight = rng.standard_normal((2, n_branches, width)).astype(np.float32)
        self.dead = rng.random(n_tokens) < 0.2

    @property
    def all(self) -> tuple[Any, ...]:
        return self.hidden, self.key, self.value, self.query_weight, self.key_weight


def elements(values: NDArray, bfloat16: bool) -> NDArray:
    singles = values.astype(np.float32)
    return fusing.bfloat16_bits(singles) if bfloat16 else singles


def as_bits(values: NDArray) -> NDArray:
    """Bits, with every NaN alike."""
    if values.dtype == np.uint16:
        return np.where(np.isnan(fusing.bfloat16_values(values)), np.uint16(0x7FC0), values)
    return np.where(np.isnan(values), np.uint32(0x7FC00000), np.ascontiguousarray(values).view(np.uint32))


def run_gate(launcher: ProcessorLauncher, rule: str, operands: Operands, *, dead: bool) -> tuple[NDArray, NDArray]:
    n_tokens, n_branches, width = operands.shape
    out, gates = np.full_like(operands.hidden, 3), np.full((n_tokens, n_branches), 3, np.float32)
    mask = operands.dead if dead else None
    read = [*operands.all[:1], operands.projected, *operands.all[3:], operands.dead]
    kernels = GateKernels(n_branches=n_branches, width=width, launcher=launcher)
    with launcher.shown(read=read, written=[out, gates]):
        getattr(kernels, rule)(*operands.all, out, eps=RULES[rule], gates=gates, dead=mask)
    return out, gates


def plain_gate(rule: str, h: NDArray, k: NDArray, wq: NDArray, wk: NDArray) -> float:
    """One branch's gate in double precision, as the sources write it."""
    eps, width = RULES[rule], len(h)
    h, k, wq, wk = (array.astype(np.float64) for array in (h, k, wq, wk))
    of_h, of_k = (1 / math.sqrt(np.mean(array**2) + eps) for array in (h, k))
    dot = float(np.sum(k * of_k * wk * h * of_h * wq)) / math.sqrt(width)
    root = math.copysign(math.sqrt(max(abs(dot), 1e-6)), dot)
    return 1 / (1 + math.exp(-root))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [1, 7, 256, 1024])
def test_the_reference_is_the_published_formula(rule: str, width: int) -> None:
    operands = Operands(4, 2, width, seed=width)
    fused, gates = getattr(fusing, rule)(*operands.all, eps=RULES[rule])
    for token in range(4):
        for branch in range(2):
            h, k = operands.hidden[token, branch], operands.key[token, branch]
            gate = plain_gate(rule, h, k, operands.query_weight[branch], operands.key_weight[branch])
            assert gates[token, branch] == pytest.approx(gate, rel=2e-4)
            expected = gate * operands.value[token] + (h if rule == "fuse_release" else 0)
            np.testing.assert_allclose(fused[token, branch], expected, rtol=1e-3, atol=1e-4)


def test_a_gate_worked_out_by_hand() -> None:
    # h = 1, 1 and k = 3, 3 are 1, 1 after their norms; their product's sum 2 / sqrt 2, weighted by 2 * 1/8.
    h, k, v = np.ones((1, 1, 2)), np.full((1, 1, 2), 3), np.full((1, 2), 8)
    weights = np.full((1, 2), 2), np.full((1, 2), 0.125)
    h, k, v, wq, wk = (np.asarray(each, np.float32) for each in (h, k, v, *weights))
    gate = 1 / (1 + math.exp(-math.sqrt(math.sqrt(2) / 4)))
    fused, gates = fusing.fuse_release(h, k, v, wq, wk, eps=1e-20)
    assert gates[0, 0] == pytest.approx(gate, rel=1e-6)
    assert fused[0, 0].tolist() == pytest.approx([1 + 8 * gate] * 2, rel=1e-6)
    fused, gates = fusing.fuse_paper(h, k, v, wq, wk)
    assert gates[0, 0] == pytest.approx(gate, rel=1e-6)
    assert fused[0, 0].tolist() == pytest.approx([8 * gate] * 2, rel=1e-6)


def test_a_sum_of_zero_is_one_half_in_the_paper_and_has_a_sign_in_the_release() -> None:
    h, k = np.array([[[1, 1]]], np.float32), np.array([[[1, -1]]], np.float32)
    v, ones = np.ones((1, 2), np.float32), np.ones((1, 2), np.float32)
    assert fusing.fuse_paper(h, k, v, ones, ones)[1] == 0.5
    assert fusing.fuse_release(h, k, v, ones, ones, eps=1e-20)[1] == np.float32(1 / (1 + math.exp(-1e-3)))
    # The least number below 0 keeps its sign.
    tiny = np.array([[-1e-45, 0]], np.float32)
    assert fusing.fuse_release(h, k, v, tiny, ones, eps=1e-20)[1] == np.float32(1 / (1 + math.exp(1e-3)))


def test_sigmoid_is_the_rounded_true_value_or_its_neighbour() -> None:
    rng = np.random.default_rng(1)
    arguments = np.concatenate(
        [rng.normal(scale=scale, size=120) for scale in (1e-3, 1, 10, 60)] + [[0.0, -0.0, 17, 88.8, -88, -103.9, 1e30]]
    ).astype(np.float32)
    found = fusing.sigmoid(arguments)
    with localcontext() as context:
        context.prec = 60
        true = [1 / (1 + (-Decimal(float(x))).exp()) for x in np.clip(arguments, -1e3, 1e3)]
    rounded = np.array([float(value) for value in true]).astype(np.float32)
    steps = np.abs(found.view(np.int32).astype(np.int64) - rounded.view(np.int32))
    assert steps.max() <= 1
    assert (steps == 0).mean() > 0.99
    assert np.isnan(fusing.sigmoid(np.float32([np.nan]))).all()
    assert fusing.sigmoid(np.float32([np.inf, -np.inf, 0])).tolist() == [1.0, 0.0, 0.5]


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
@settings(deadline=None)
def test_bfloat16_is_rounded_as_the_plain_codec_does(values: list[float]) -> None:
    singles = np.array(values, np.float32)
    found = fusing.bfloat16_values(fusing.bfloat16_bits(singles))
    expected = np.array([reference.to_bf16(float(value)) for value in singles], np.float32)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(singles))


@pytest.mark.parametrize("width", [1, 255, 256, 257, 1000])
def test_the_ordered_sum_is_its_definition(width: int) -> None:
    values = np.random.default_rng(width).standard_normal(width).astype(np.float32)
    sums = [np.float32(0)] * 256
    for k, value in enumerate(values):
        sums[k % 256] = sums[k % 256] + value
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums[: len(sums) // 2], sums[len(sums) // 2 :], strict=True)]
    assert fusing.ordered_sum(values) == sums[0]


def test_dead_tokens_take_nothing() -> None:
    operands = Operands(6, 2, 8)
    operands.value[:] = np.inf
    dead = np.array([False, True, False, False, True, True])
    fused, gates = fusing.fuse_release(*operands.all, eps=1e-6, dead=dead)
    assert np.array_equal(fused[dead], operands.hidden[dead])
    assert np.isinf(fused[~dead]).all()
    assert (gates[dead] == 0).all()
    fused, gates = fusing.fuse_paper(*operands.all, dead=dead)
    assert (fused[dead] == 0).all()
    assert (gates[dead] == 0).all()


@pytest.mark.parametrize("dilation", [1, 3])
def test_the_convolution_is_its_loops(dilation: int) -> None:
    rng = np.random.default_rng(dilation)
    values = rng.standard_normal((11, 2, 5)).astype(np.float32)
    norm, taps = rng.standard_normal((2, 5)).astype(np.float32), rng.standard_normal((2, 5, 4)).astype(np.float32)
    found = fusing.short_convolution(values, norm, taps, dilation=dilation)
    roots = np.sqrt(np.mean(values.astype(np.float64) ** 2, axis=-1) + 1e-5)
    for token, branch, channel in np.ndindex(values.shape):
        total = 0.0
        for tap in range(4):
            earlier = token - (3 - tap) * dilation
            if earlier >= 0:
                normed = float(values[earlier, branch, channel]) / roots[earlier, branch] * norm[branch, channel]
                total += normed * taps[branch, channel, tap]
        expected = values[token, branch, channel] + total / (1 + math.exp(-total))
        assert found[token, branch, channel] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for n_history in (0, 3 * dilation, 11):
        later = fusing.short_convolution(values, norm, taps, dilation=dilation, n_history=n_history)
        assert np.array_equal(later, found[n_history:])
    # A step of decoding with enough history is the last row of the whole.
    step = fusing.short_convolution(values[-1 - 3 * dilation :], norm, taps, dilation=dilation, n_history=3 * dilation)
    assert np.array_equal(step[-1], found[-1])


def test_a_projection_is_a_matrix_product() -> None:
    rows, weight, bias = np.eye(3, dtype=np.float32), np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([10, 20])
    assert np.array_equal(fusing.project(rows, weight, bias), weight.T + bias)
    assert np.array_equal(fusing.project(rows, weight), weight.T)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 4, 5120), (9, 4, 2560), (1, 1, 1), (2, 3, 255), (30, 2, 257), (5, 1, 64)])
def test_gate_kernels_are_the_reference(
    launcher: ProcessorLauncher, rule: str, bfloat16: bool, shape: tuple[int, int, int]
) -> None:
    operands = Operands(*shape, bfloat16=bfloat16, seed=sum(shape))
    for dead in (False, True):
        mask = operands.dead if dead else None
        expected, expected_gates = getattr(fusing, rule)(*operands.all, eps=RULES[rule], dead=mask)
        out, gates = run_gate(launcher, rule, operands, dead=dead)
        assert np.array_equal(as_bits(out), as_bits(expected))
        assert np.array_equal(as_bits(gates), as_bits(expected_gates))


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_gate_kernels_are_the_reference_for_any_numbers(
    launcher: ProcessorLauncher, rule: str, data: st.DataObject
) -> None:
    n_tokens, n_branches, width = (data.draw(st.integers(1, most)) for most in (3, 2, 5))
    operands = Operands(n_tokens, n_branches, width, bfloat16=data.draw(st.booleans()))
    for array in (operands.hidden, operands.projected, operands.query_weight):
        drawn = data.draw(st.lists(st.floats(width=32), min_size=array.size, max_size=array.size))
        singles = np.array(drawn, np.float32).reshape(array.shape)
        array[:] = fusing.bfloat16_bits(singles) if array.dtype == np.uint16 else singles
    expected, expected_gates = getattr(fusing, rule)(*operands.all, eps=RULES[rule])
    out, gates = run_gate(launcher, rule, operands, dead=False)
    assert np.array_equal(as_bits(gates), as_bits(expected_gates))
    assert np.array_equal(as_bits(out), as_bits(expected))


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("n_tokens", "n_history", "dilation"), [(17, 0, 3), (1, 9, 3), (2, 1, 1), (5, 9, 4)])
def test_convolution_kernels_are_the_reference(
    launcher: ProcessorLauncher, bfloat16: bool, n_tokens: int, n_history: int, dilation: int
) -> None:
    rng = np.random.default_rng(n_tokens)
    shape = n_history + n_tokens, 2, 300
    values = elements(rng.standard_normal(shape), bfloat16)
    norm, taps = rng.standard_normal((2, 300)).astype(np.float32), rng.standard_normal((2, 300, 4)).astype(np.float32)
    out, inverse = np.full((n_tokens, 2, 300), 3, values.dtype), np.empty(shape[:2], np.float32)
    kernels = GateKernels(n_branches=2, width=300, launcher=launcher)
    with launcher.shown(read=[values, norm, taps], written=[out, inverse]):
        kernels.short_convolution(values, norm, taps, inverse, out, dilation=dilation, n_history=n_history)
    expected = fusing.short_convolution(values, norm, taps, dilation=dilation, n_history=n_history)
    assert np.array_equal(as_bits(out), as_bits(expected))


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_the_order_of_threads_makes_no_difference(
    processor_folder: Path, launcher: ProcessorLauncher, seed: int
) -> None:
    other = ProcessorLauncher(processor_folder, seed=seed, multiprocessors=1)
    other._libraries = launcher._libraries
    operands = Operands(9, 2, 600, seed=seed)
    for rule in RULES:
        expected, _ = getattr(fusing, rule)(*operands.all, eps=RULES[rule], dead=operands.dead)
        out, _ = run_gate(other, rule, operands, dead=True)
        assert np.array_equal(as_bits(out), as_bits(expected))


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("        __syncthreads();\n    }\n    for", "    }\n    for"),
        ("    __syncthreads();\n    return gate;", "    return gate;"),
        ("    // The next call writes where others may not have read yet.\n", ""),
    ],
    ids=["in-the-sum", "before-the-gate", "all-there"],
)
def test_a_missing_barrier_is_seen(processor_folder: Path, line: str, instead: str) -> None:
    program, text = gates_program(bfloat16=False), source_text("gates.cu")
    assert line in text
    library = compile_for_processor(program, processor_folder, source=text.replace(line, instead, 1))
    right = []
    for rule in RULES:
        launcher = ProcessorLauncher(processor_folder, seed=7, multiprocessors=1)
        launcher.use(program, library)
        operands = Operands(12, 2, 600)
        expected, _ = getattr(fusing, rule)(*operands.all, eps=RULES[rule])
        out, _ = run_gate(launcher, rule, operands, dead=False)
        right.append(np.array_equal(as_bits(out), as_bits(expected)))
    assert right == [line.startswith("    //")] * 2


def test_unusable_arguments_are_refused(launcher: ProcessorLauncher) -> None:
    operands, kernels = Operands(3, 2, 8), GateKernels(n_branches=2, width=8, launcher=launcher)
    hidden, key, value, query_weight, key_weight = operands.all
    out, before = np.empty_like(hidden), len(launcher.launches)

    def refuse(message: str, *arguments: Any, **others: Any) -> None:
        with pytest.raises(InvalidInput, match=message):
            kernels.fuse_release(*arguments, eps=1e-6, **others)

    refuse("found float64", hidden.astype(np.float64), key, value, query_weight, key_weight, out)
    refuse(r"key: found float32 \(2, 2, 8\)", hidden, key[:2], value, query_weight, key_weight, out)
    refuse("key: found uint16", hidden, key.astype(np.uint16), value, query_weight, key_weight, out)
    refuse("value: .* with strides", hidden, key, value[:, ::-1], query_weight, key_weight, out)
    refuse("query_weight: found float64", hidden, key, value, query_weight.astype(np.float64), key_weight, out)
    refuse("out: .* not in C order", hidden, key, value, query_weight, key_weight, np.asfortranarray(out))
    refuse(r"gates: found float32 \(3,\)", *operands.all, out, gates=np.empty(3, np.float32))
    refuse("dead: found int64", *operands.all, out, dead=np.zeros(3, np.int64))
    with pytest.raises(InvalidInput, match="found 4 tokens of history among 3"):
        kernels.short_convolution(
            hidden,
            query_weight,
            np.empty((2, 8, 4), np.float32),
            np.empty((3, 2), np.float32),
            out,
            dilation=3,
            n_history=4,
        )
    with pytest.raises(InvalidInput, match="found 0 branches"):
        GateKernels(n_branches=0, width=8, launcher=launcher)
    assert len(launcher.launches) == before
    for reference_rule in (fusing.fuse_release, fusing.fuse_paper):
        with pytest.raises(InvalidInput, match=r"value: found float32 \(2, 8\), expected float32 \(3, 8\)"):
            reference_rule(hidden, key, value[:2], query_weight, key_weight, eps=1e-6)


def test_hidden_states_are_replaced_in_place(launcher: ProcessorLauncher) -> None:
    operands = Operands(5, 2, 300)
    expected, _ = fusing.fuse_release(*operands.all, eps=1e-20, dead=operands.dead)
    kernels = GateKernels(n_branches=2, width=300, launcher=launcher)
    read = [operands.projected, *operands.all[3:], operands.dead]
    with launcher.shown(read=read, written=[operands.hidden]):
        kernels.fuse_release(*operands.all, operands.hidden, eps=1e-20, dead=operands.dead)
    assert np.array_equal(as_bits(operands.hidden), as_bits(expected))


def test_no_tokens_launch_nothing(launcher: ProcessorLauncher) -> None:
    operands, before = Operands(0, 2, 8), len(launcher.launches)
    out, gates = run_gate(launcher, "fuse_release", operands, dead=False)
    assert out.shape == (0, 2, 8)
    assert gates.shape == (0, 2)
    assert len(launcher.launches) == before
