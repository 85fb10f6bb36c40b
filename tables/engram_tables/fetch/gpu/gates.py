"""The gate kernels with their arguments checked: what `fusing` does in NumPy, on the device and with the same bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from engram_tables.errors import InvalidInput
from engram_tables.fetch.fusing import CONVOLUTION_EPS, PAPER_EPS
from engram_tables.fetch.gpu.kernels import Launcher
from engram_tables.fetch.gpu.programs import Program, gates_program

_BLOCKS_A_MULTIPROCESSOR = 8


class GateKernels:
    """The gates of `fusing.fuse_release` and `fusing.fuse_paper` and the short convolution, for one shape.

    Arrays lie on the launcher's device. `hidden` is (tokens, branches, width) in C order, of float32 or of uint16,
    which are bfloat16; `key` (tokens, branches, width) and `value` (tokens, width) are of the same dtype and may be
    cut out of one projection's output: within a token they are contiguous. Weights are float32 in C order, `dead` is
    uint8 or bool (tokens,), results go into the caller's arrays. Nothing is allocated, copied or waited for.
    """

    def __init__(self, *, n_branches: int, width: int, launcher: Launcher) -> None:
        if n_branches < 1 or width < 1:
            raise InvalidInput(f"gates: found {n_branches} branches of width {width}, expected 1 or more of each")
        self._n_branches, self._width, self._launcher = n_branches, width, launcher

    def fuse_release(
        self, hidden: Any, key: Any, value: Any, query_weight: Any, key_weight: Any, out: Any, *, eps: float,
        gates: Any = None, dead: Any = None, stream: Any = None,
    ) -> None:  # fmt: skip
        """As `fusing.fuse_release`, into `out`, which may be `hidden`, and `gates` float32 (tokens, branches)."""
        scale = np.float32(self._width**-0.5)
        operands = hidden, key, value, query_weight, key_weight, dead, out, gates
        self._gate("gate_release", operands, np.float32(eps), scale, stream)

    def fuse_paper(
        self, hidden: Any, key: Any, value: Any, query_weight: Any, key_weight: Any, out: Any, *,
        eps: float = PAPER_EPS, gates: Any = None, dead: Any = None, stream: Any = None,
    ) -> None:  # fmt: skip
        """As `fusing.fuse_paper`, into `out` and `gates`."""
        scale = np.float32(math.sqrt(self._width))
        operands = hidden, key, value, query_weight, key_weight, dead, out, gates
        self._gate("gate_paper", operands, np.float32(eps), scale, stream)

    def short_convolution(
        self, values: Any, norm_weight: Any, taps: Any, inverse: Any, out: Any, *, dilation: int, n_history: int = 0,
        eps: float = CONVOLUTION_EPS, stream: Any = None,
    ) -> None:  # fmt: skip
        """As `fusing.short_convolution`, into `out` (tokens, branches, width).

        `inverse`, float32 (n_history + tokens, branches), is working memory. `out` must not be `values`.
        """
        n_all, n_taps = int(values.shape[0]), int(taps.shape[-1])
        n_tokens, row = n_all - n_history, (self._n_branches, self._width)
        if not 0 <= n_history <= n_all or dilation < 1:
            raise InvalidInput(
                f"convolution: found {n_history} tokens of history among {n_all} and a dilation of {dilation}, "
                "expected 0 to all of them, and 1 or more; give the history that stands at the front of values"
            )
        program = self._program(values)
        self._expect("values", values, (n_all, *row), values.dtype)
        self._expect("norm_weight", norm_weight, row, np.float32)
        self._expect("taps", taps, (*row, n_taps), np.float32)
        self._expect("inverse", inverse, (n_all, self._n_branches), np.float32)
        self._expect("out", out, (n_tokens, *row), values.dtype)
        if n_tokens == 0:
            return
        n_pairs, width = n_all * self._n_branches, np.uint32(self._width)
        norms = (self._at(values), self._at(inverse), np.uint64(n_pairs), width, np.float32(eps))
        self._launch(program, "inverse_norms", n_pairs, norms, stream)
        arguments = (self._at(values), self._at(inverse), self._at(norm_weight), self._at(taps), self._at(out),
                     np.uint64(n_history), np.uint64(n_tokens), np.uint32(self._n_branches), width,
                     np.uint32(n_taps), np.uint32(dilation))  # fmt: skip
        n_values = n_tokens * self._n_branches * self._width
        self._launch(program, "convolve", -(-n_values // program.threads), arguments, stream)

    def _gate(self, kernel: str, operands: Sequence[Any], eps: np.float32, scale: np.float32, stream: Any) -> None:
        hidden, key, value, query_weight, key_weight, dead, out, gates = operands
        program, n_tokens = self._program(hidden), int(hidden.shape[0])
        row = self._n_branches, self._width
        for name, array in (("hidden", hidden), ("out", out)):
            self._expect(name, array, (n_tokens, *row), hidden.dtype)
        for name, array in (("query_weight", query_weight), ("key_weight", key_weight)):
            self._expect(name, array, row, np.float32)
        if gates is not None:
            self._expect("gates", gates, (n_tokens, self._n_branches), np.float32)
        if dead is not None:
            self._expect("dead", dead, (n_tokens,), np.bool_ if dead.dtype == np.bool_ else np.uint8)
        key_step = self._token_step("key", key, (n_tokens, *row), hidden.dtype)
        value_step = self._token_step("value", value, (n_tokens, self._width), hidden.dtype)
        if n_tokens == 0:
            return
        n_pairs = n_tokens * self._n_branches
        arguments = (self._at(hidden), self._at(key), self._at(value), self._at(query_weight), self._at(key_weight),
                     self._at(dead), self._at(out), self._at(gates), np.uint64(n_pairs), np.uint32(self._n_branches),
                     np.uint32(self._width), np.uint64(key_step), np.uint64(value_step), eps, scale)  # fmt: skip
        self._launch(program, kernel, n_pairs, arguments, stream)

    def _launch(
        self, program: Program, kernel: str, n_items: int, arguments: Sequence[np.generic], stream: Any
    ) -> None:
        blocks = min(n_items, _BLOCKS_A_MULTIPROCESSOR * self._launcher.multiprocessors)
        self._launcher.launch(program, kernel, blocks=blocks, arguments=arguments, stream=stream)

    def _at(self, array: Any) -> np.uint64:
        return np.uint64(0 if array is None else self._launcher.address_of(array))

    def _program(self, elements: Any) -> Program:
        if elements.dtype not in (np.float32, np.uint16) or len(elements.shape) != 3:
            raise InvalidInput(
                f"hidden or values: found {elements.dtype} {tuple(elements.shape)}, expected (tokens, branches, width) "
                "of float32, or of uint16 for bfloat16; convert it"
            )
        return gates_program(bfloat16=elements.dtype == np.uint16)

    def _expect(self, name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
        if tuple(array.shape) != shape or array.dtype != dtype or not array.flags.c_contiguous:
            order = "" if array.flags.c_contiguous else " not in C order"
            raise InvalidInput(
                f"{name}: found {array.dtype} {tuple(array.shape)}{order}, expected {np.dtype(dtype)} {shape} in C "
                "order; reshape, convert or copy it"
            )

    def _token_step(self, name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> int:
        """Elements from one token to the next of an array whose tokens are contiguous."""
        found = tuple(array.shape) == shape and array.dtype == dtype
        if not found or (array.size and not array[0].flags.c_contiguous) or array.strides[0] < 0:
            raise InvalidInput(
                f"{name}: found {array.dtype} {tuple(array.shape)} with strides {tuple(array.strides)}, expected "
                f"{np.dtype(dtype)} {shape}, each token in C order; reshape, convert or copy it"
            )
        return int(array.strides[0] // np.dtype(dtype).itemsize)
