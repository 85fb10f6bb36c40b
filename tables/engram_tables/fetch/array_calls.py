"""Compiled functions as Python objects, which the interpreter calls without anything in between.

It knows how CPython and NumPy lay out an array, looks whether they still do, and knows nothing of rows.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch import kernels

_FASTCALL = 0x80


class _MethodDef(ctypes.Structure):
    """PyMethodDef, of Python's stable interface."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class Plan(np.ndarray[Any, np.dtype[np.int64]]):
    """An array that keeps what its addresses point at."""

    kept: object = None


@cache
def knows_arrays() -> bool:
    """Whether this interpreter's array objects have the words that kernels read (`kernels.ARRAY_DATA` and so on)."""
    if sys.implementation.name != "cpython" or np.ndarray.__basicsize__ < 8 * kernels.ARRAY_WORDS:
        return False
    for probe in (np.empty((3, 5, 7), np.int64)[1:], np.empty(9, np.uint8)):
        probe.flags.writeable = probe.ndim == 3
        words = _words(id(probe), kernels.ARRAY_WORDS)
        expected = (
            (kernels.OBJECT_TYPE, id(np.ndarray)),
            (kernels.ARRAY_DATA, probe.ctypes.data),
            (kernels.ARRAY_DTYPE, id(np.dtype(probe.dtype.type))),
        )
        if any(words[word] != value for word, value in expected):
            return False
        if words[kernels.ARRAY_N_DIMS] & 0xFFFFFFFF != probe.ndim:
            return False
        if words[kernels.ARRAY_FLAGS] & 0xFFFFFFFF != probe.flags.num:
            return False
        # NumPy keeps shape and strides in one piece: only where that is so is the address looked at.
        shape_at = words[kernels.ARRAY_SHAPE]
        if words[kernels.ARRAY_SHAPE + 1] != shape_at + 8 * probe.ndim:
            return False
        if tuple(_words(shape_at, probe.ndim)) != probe.shape:
            return False
    return True


def as_object(compiled: Any, plan: NDArray[np.int64], kept: object) -> Callable[..., int]:
    """A function of Python that is the C function `compiled`, a `numba.cfunc` (object, arguments, their number) →
    object, with an array of `plan`'s words for its object. It keeps `kept` as long as it lives."""
    own = plan.view(Plan)
    own.kept = kept
    definition = _MethodDef(b"fetch", compiled.address, _FASTCALL, None)
    # The interpreter wants it as long as the function is there, and the compiled code with it.
    own.kept = kept, plan, definition, compiled
    function: Callable[..., int] = _new_function(ctypes.byref(definition), own, None)
    return function


def _words(address: int, n_words: int) -> list[int]:
    return list((ctypes.c_int64 * n_words).from_address(address))


_new_function = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
    ("PyCFunction_NewEx", ctypes.pythonapi)
)
