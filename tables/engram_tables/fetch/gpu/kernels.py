"""The record kernels of one codec and geometry: arguments checked, grids chosen, launches made.

How a launch is made is a `Launcher`'s matter: CuPy's is here, and anything that runs the same sources elsewhere takes
its place. Nothing here allocates on the device, copies or waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from engram_tables.errors import InvalidInput
from engram_tables.fetch.gpu.programs import (
    ALIGNMENT_BYTES,
    Program,
    compile_program,
    decoding_program,
    moving_program,
)
from engram_tables.storage.codecs.codec import Codec

# The dtype of results chooses: bfloat16 are uint16 here, by their bits.
_KERNELS_BY_DTYPE = {"float32": "decode_float32", "uint16": "decode_bfloat16"}
_BLOCKS_A_MULTIPROCESSOR = 4
_NOWHERE = np.uint64(0)


class Launcher(Protocol):
    """Runs kernels of a `Program` on one device."""

    @property
    def multiprocessors(self) -> int:
        """How many blocks run side by side at least."""

    def address_of(self, array: Any) -> int:
        """Where an array of this device starts."""

    def prepare(self, program: Program) -> None:
        """Compile and load the program, which the first launch does otherwise."""

    def launch(
        self, program: Program, kernel: str, *, blocks: int, arguments: Sequence[np.generic], stream: Any
    ) -> None:
        """Put one launch into `stream`; None is the current one. Arguments are scalars, arrays as uint64 addresses."""


class CudaLauncher:
    """The CUDA device that was current when it was made. From one thread at a time, with that device current.

    Raises
    ------
    BackendUnavailable
        There is no CuPy, driver or device.
    """

    def __init__(self) -> None:
        from engram_tables.fetch.gpu.runtime import require_cupy

        self._cupy = require_cupy()
        device = self._cupy.cuda.Device()
        self._architecture = int(device.compute_capability)
        self._multiprocessors = int(device.attributes["MultiProcessorCount"])
        self._modules: dict[Program, Any] = {}
        self._functions: dict[tuple[Program, str], Any] = {}

    @property
    def multiprocessors(self) -> int:
        """See `Launcher`."""
        return self._multiprocessors

    def address_of(self, array: Any) -> int:
        """See `Launcher`."""
        return int(array.data.ptr)

    def prepare(self, program: Program) -> None:
        """See `Launcher`."""
        if program not in self._modules:
            module = self._cupy.cuda.function.Module()
            module.load(compile_program(program, self._architecture))
            self._modules[program] = module

    def launch(
        self, program: Program, kernel: str, *, blocks: int, arguments: Sequence[np.generic], stream: Any
    ) -> None:
        """See `Launcher`."""
        function = self._functions.get((program, kernel))
        if function is None:
            self.prepare(program)
            function = self._modules[program].get_function(kernel)
            self._functions[program, kernel] = function
        function((blocks,), (program.threads,), tuple(arguments), stream=stream)


class Kernels:
    """Kernels of records of `row_bytes` that lie `stride_bytes` apart in memory that the device reads.

    Parameters
    ----------
    codec
        Of the records; `opaque-N` is only moved.
    stride_bytes
        A multiple of 16; `programs.padded_stride` gives the least.

    Raises
    ------
    InvalidInput
        A stride that is none, or records of a length that the codec does not have.

    Notes
    -----
    `base_address` is an address on the device, a multiple of 16, of `n_rows` records; `positions` are int64 (n,).
    Where a position is negative nothing happens, so two sources can fill one `out`. A position of `n_rows` or more is
    never read either; if `refused`, uint32 (1,), is given, it is increased by one for each. Arrays lie on the device,
    in C order, and stay as they are until the stream has come that far. `blocks` bounds the grid: over a bus, about
    one a multiprocessor, and half as many beside other work; by default four a multiprocessor.
    """

    def __init__(self, codec: Codec, *, row_bytes: int, stride_bytes: int, launcher: Launcher) -> None:
        self.codec, self.row_bytes, self.stride_bytes = codec, row_bytes, stride_bytes
        self._launcher = launcher
        self._moving = moving_program(row_bytes=row_bytes, stride_bytes=stride_bytes)
        self._row_width = codec.row_width(row_bytes) if codec.can_decode else None
        self._scale = codec.scale
        self._decoding: dict[tuple[int, int], Program] = {}

    @property
    def row_width(self) -> int:
        """Values of a row; `InvalidInput` for `opaque-N`."""
        return self.codec.row_width(self.row_bytes) if self._row_width is None else self._row_width

    def prepare(self) -> None:
        """Compile all that the calls with `base_address` need."""
        self._launcher.prepare(self._moving)
        if self._row_width is not None:
            self._launcher.prepare(self._decoder(self.stride_bytes, ALIGNMENT_BYTES))

    def gather(
        self, base_address: int, positions: Any, out: Any, *, n_rows: int, stream: Any = None,
        blocks: int | None = None, refused: Any = None,
    ) -> None:  # fmt: skip
        """Copy records at `positions` into `out` uint8 (n, stride_bytes), padding with the rows."""
        n_items = self._check_positions(positions)
        arguments = (self._base(base_address), np.uint64(n_rows), self._address(positions), np.uint64(n_items),
                     self._records(out, n_items), self._refused(refused))  # fmt: skip
        self._launch(self._moving, "gather", n_items, arguments, stream, blocks)

    def scatter(
        self, records: Any, positions: Any, base_address: int, *, n_rows: int, stream: Any = None,
        blocks: int | None = None, refused: Any = None,
    ) -> None:  # fmt: skip
        """Copy `records` uint8 (n, stride_bytes) to `positions`, among which equal ones have no defined winner."""
        n_items = self._check_positions(positions)
        arguments = (self._records(records, n_items), self._address(positions), np.uint64(n_items),
                     self._base(base_address), np.uint64(n_rows), self._refused(refused))  # fmt: skip
        self._launch(self._moving, "scatter", n_items, arguments, stream, blocks)

    def gather_decode(
        self, base_address: int, positions: Any, out: Any, *, n_rows: int, stream: Any = None,
        blocks: int | None = None, refused: Any = None,
    ) -> None:  # fmt: skip
        """The values of records at `positions` into `out` (n, row_width): float32, or uint16, which are bfloat16.

        Bits are those of `Codec.decode`, rounded to nearest even for bfloat16; a NaN of arithmetic is 0x7FC00000.
        """
        n_items = self._check_positions(positions)
        arguments = (self._base(base_address), np.uint64(n_rows), self._address(positions), np.uint64(n_items),
                     self._values(out, n_items), self._scale, self._refused(refused))  # fmt: skip
        program = self._decoder(self.stride_bytes, ALIGNMENT_BYTES)
        self._launch(program, _KERNELS_BY_DTYPE[str(out.dtype)], n_items, arguments, stream, blocks)

    def decode(self, records: Any, out: Any, *, stream: Any = None, blocks: int | None = None) -> None:
        """The values of `records` uint8 (n, k), k at least `row_bytes`, into `out` as in `gather_decode`.

        Records may be packed, at any address; it costs narrower loads.
        """
        if len(records.shape) != 2 or records.dtype != np.uint8 or records.shape[1] < self.row_bytes:
            raise InvalidInput(
                f"records: found {records.dtype} {records.shape}, expected uint8 (n, {self.row_bytes} or more); "
                "give records as they were fetched"
            )
        _check_contiguous("records", records)
        n_items, stride_bytes = records.shape
        values = self._values(out, n_items)
        address = self._launcher.address_of(records)
        program = self._decoder(stride_bytes, _common_alignment(address, stride_bytes))
        arguments = (
            np.uint64(address),
            np.uint64(n_items),
            _NOWHERE,
            np.uint64(n_items),
            values,
            self._scale,
            _NOWHERE,
        )
        self._launch(program, _KERNELS_BY_DTYPE[str(out.dtype)], n_items, arguments, stream, blocks)

    def _decoder(self, stride_bytes: int, load_bytes: int) -> Program:
        key = stride_bytes, load_bytes
        if key not in self._decoding:
            self._decoding[key] = decoding_program(
                self.codec, row_bytes=self.row_bytes, stride_bytes=stride_bytes, load_bytes=load_bytes
            )
        return self._decoding[key]

    def _launch(
        self, program: Program, kernel: str, n_items: int, arguments: Sequence[np.generic], stream: Any,
        blocks: int | None,
    ) -> None:  # fmt: skip
        if n_items == 0:
            return
        most = _BLOCKS_A_MULTIPROCESSOR * self._launcher.multiprocessors if blocks is None else blocks
        if most < 1:
            raise InvalidInput(f"blocks: found {blocks}, expected 1 or more; leave it out for the default")
        # Where there are few rows, a worker each is sooner done than a few workers with several.
        workers_of_block = program.threads // 16
        needed = -(-n_items // workers_of_block)
        self._launcher.launch(program, kernel, blocks=min(most, needed), arguments=arguments, stream=stream)

    def _address(self, array: Any) -> np.uint64:
        return np.uint64(self._launcher.address_of(array))

    def _base(self, address: int) -> np.uint64:
        if address % ALIGNMENT_BYTES:
            raise InvalidInput(
                f"records on the device: found address {address:#x}, expected a multiple of {ALIGNMENT_BYTES}; "
                "allocate them so"
            )
        return np.uint64(address)

    def _check_positions(self, positions: Any) -> int:
        if len(positions.shape) != 1 or positions.dtype != np.int64:
            raise InvalidInput(
                f"positions: found {positions.dtype} {positions.shape}, expected int64 (n,); convert and flatten them"
            )
        _check_contiguous("positions", positions)
        return int(positions.shape[0])

    def _records(self, records: Any, n_items: int) -> np.uint64:
        expected = (n_items, self.stride_bytes)
        if tuple(records.shape) != expected or records.dtype != np.uint8:
            raise InvalidInput(
                f"records: found {records.dtype} {tuple(records.shape)}, expected uint8 {expected}; one for each "
                "position, at this stride"
            )
        return self._aligned("records", records)

    def _values(self, out: Any, n_items: int) -> np.uint64:
        expected = (n_items, self.row_width)
        if tuple(out.shape) != expected or str(out.dtype) not in _KERNELS_BY_DTYPE:
            raise InvalidInput(
                f"out: found {out.dtype} {tuple(out.shape)}, expected {expected} of float32, or of uint16 for "
                "bfloat16; make it so"
            )
        return self._aligned("out", out)

    def _aligned(self, name: str, array: Any) -> np.uint64:
        _check_contiguous(name, array)
        address = self._launcher.address_of(array)
        if array.size and address % ALIGNMENT_BYTES:
            raise InvalidInput(
                f"{name}: found address {address:#x}, expected a multiple of {ALIGNMENT_BYTES}; do not cut it out of "
                "the middle of another array"
            )
        return np.uint64(address)

    def _refused(self, refused: Any) -> np.uint64:
        if refused is None:
            return _NOWHERE
        if tuple(refused.shape) != (1,) or refused.dtype != np.uint32:
            raise InvalidInput(f"refused: found {refused.dtype} {tuple(refused.shape)}, expected uint32 (1,)")
        return self._address(refused)


def _check_contiguous(name: str, array: Any) -> None:
    if not array.flags.c_contiguous:
        raise InvalidInput(f"{name}: found an array that is not in C order, expected one that is; copy it first")


def _common_alignment(address: int, stride_bytes: int) -> int:
    """The widest load, up to 16 bytes, that no record starts in the middle of."""
    both = address | stride_bytes | ALIGNMENT_BYTES
    return both & -both
