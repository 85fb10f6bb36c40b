"""The one place that imports CuPy: whether there is a GPU and why not, and one GPU as a `Device`.

It knows no rows. CuPy is imported when a GPU is first asked for, never with the package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from numpy.typing import DTypeLike, NDArray

from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from engram_tables.fetch.gpu.device import DeviceArray
from engram_tables.storage.codecs.codec import Codec

if TYPE_CHECKING:
    from engram_tables.fetch.gpu.kernels import Kernels

# cudaHostRegister: usable from every context, and with an address on the device. CuPy has no names for them.
_PORTABLE_AND_MAPPED = 1 | 2
# cudaErrorMemoryAllocation, and CUDA_ERROR_OUT_OF_MEMORY as well.
_OUT_OF_MEMORY = 2
_WITHOUT_GPU = "read with `--to host`, or run where `nvidia-smi` lists a GPU"


def require_cupy() -> Any:
    """The module `cupy`, with a driver and a device behind it.

    Raises
    ------
    BackendUnavailable
        CuPy is not installed or does not load, there is no usable driver, or no device.
    """
    try:
        import cupy
    except ImportError as error:
        raise BackendUnavailable(
            f"GPU: found no usable CuPy ({error}), expected cupy-cuda12x or cupy-cuda13x; install the extra "
            "gpu-cuda12 or gpu-cuda13, as the driver's version asks for"
        ) from error
    try:
        n_devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendUnavailable(
            f"GPU: found CuPy {cupy.__version__} without a usable driver ({error}), expected an NVIDIA driver and a "
            f"device; {_WITHOUT_GPU}"
        ) from error
    if n_devices < 1:
        raise BackendUnavailable(f"GPU: found a driver and 0 devices, expected 1 or more; {_WITHOUT_GPU}")
    return cupy


def why_no_gpu() -> str | None:
    """The reason that `require_cupy` would give, or None where there is a GPU."""
    try:
        require_cupy()
    except BackendUnavailable as error:
        return str(error)
    return None


def cuda_device(device_id: int = 0) -> CudaDevice:
    """One GPU, by CUDA's number.

    Raises
    ------
    BackendUnavailable
        As `require_cupy`; or there is no device of this number.
    """
    cupy = require_cupy()
    n_devices = cupy.cuda.runtime.getDeviceCount()
    if not 0 <= device_id < n_devices:
        raise BackendUnavailable(
            f"GPU {device_id}: found {n_devices} devices, expected a number from 0 to {n_devices - 1}; choose another"
        )
    return CudaDevice(cupy, device_id)


class CudaDevice:
    """See `Device`. Streams, events and arrays are CuPy's.

    Not usable in a child of `fork`: CUDA is not.
    """

    def __init__(self, cupy: Any, device_id: int) -> None:
        self._cupy, self.device_id = cupy, device_id
        self._runtime = cupy.cuda.runtime
        self._pid = os.getpid()

    @cached_property
    def name(self) -> str:
        """See `Device`."""
        return f"GPU {self.device_id} ({self._runtime.getDeviceProperties(self.device_id)['name'].decode()})"

    @cached_property
    def n_processors(self) -> int:
        """Multiprocessors."""
        return int(self._runtime.deviceGetAttribute(self._runtime.cudaDevAttrMultiProcessorCount, self.device_id))

    @contextmanager
    def active(self) -> Iterator[None]:
        """See `Device`."""
        if os.getpid() != self._pid:
            raise BackendUnavailable(
                f"GPU {self.device_id}: found a process that was forked from the one that opened it, expected the same "
                "process; open the device again in a process that is spawned"
            )
        cupy = self._cupy
        try:
            with cupy.cuda.Device(self.device_id):
                yield
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise self._spent(error) from error
        except (self._runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as error:
            if error.status == _OUT_OF_MEMORY:
                raise self._spent(error) from error
            raise BackendUnavailable(
                f"GPU {self.device_id}: found {error}, expected success; look at `nvidia-smi` and the kernel's log"
            ) from error

    def _spent(self, error: Exception) -> CapacityError:
        return CapacityError(
            f"GPU {self.device_id}: found {error}, expected as much memory to be free; take a smaller budget, or fetch "
            "with zero-copy or staged"
        )

    def free_bytes(self) -> int:
        """See `Device`."""
        return int(self._runtime.memGetInfo()[0])

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """See `Device`. Not out of CuPy's pool: it rounds sizes up, and keeps what is given back."""
        cupy = self._cupy
        with cupy.cuda.using_allocator(_unpooled(cupy)):
            return cupy.empty(tuple(shape), dtype)

    def stream(self) -> Any:
        """See `Device`."""
        return self._cupy.cuda.Stream(non_blocking=True)

    def end(self, stream: Any) -> None:
        """See `Device`. CuPy destroys the stream with its last reference."""
        stream.synchronize()

    def consumer(self) -> Any:
        """See `Device`: CuPy's current stream of this thread and device."""
        return self._cupy.cuda.get_current_stream()

    def event(self, *, sleeps: bool = False) -> Any:
        """See `Device`."""
        return self._cupy.cuda.Event(block=sleeps, disable_timing=True)

    def upload(self, target: DeviceArray, source: NDArray[Any], stream: Any) -> None:
        """See `Device`."""
        _check_bytes(target, source)
        kind = self._runtime.memcpyHostToDevice
        self._runtime.memcpyAsync(target.data.ptr, source.ctypes.data, source.nbytes, kind, stream.ptr)

    def copy_columns(self, target: DeviceArray, source: DeviceArray, stream: Any) -> None:
        """See `Device`."""
        n_rows, n_bytes = source.shape
        if target.shape != source.shape or (n_bytes > 1 and (target.strides[1], source.strides[1]) != (1, 1)):
            raise TypeError(f"copy: found {source.shape} to {target.shape}, expected equal rows of adjacent bytes")
        if source.size:
            self._runtime.memcpy2DAsync(
                target.data.ptr, target.strides[0], source.data.ptr, source.strides[0], n_bytes, n_rows,
                self._runtime.memcpyDeviceToDevice, stream.ptr,
            )  # fmt: skip

    def copy_from(self, other: Any, target: DeviceArray, source: DeviceArray, stream: Any) -> None:
        """See `Device`. Works without peer access too: the driver goes through host memory then."""
        _check_bytes(target, source)
        if source.nbytes:
            self._runtime.memcpyPeerAsync(
                target.data.ptr, self.device_id, source.data.ptr, other.device_id, source.nbytes, stream.ptr
            )

    def address(self, array: DeviceArray) -> int:
        """See `Device`."""
        return int(array.data.ptr)

    def register(self, address: int, n_bytes: int) -> int:
        """See `Device`. A refusal leaves no error behind: CuPy clears it when it raises."""
        self._runtime.hostRegister(address, n_bytes, _PORTABLE_AND_MAPPED)
        # cudaHostGetDevicePointer by another name, which is the one that CuPy has.
        mapped = int(self._runtime.pointerGetAttributes(address).devicePointer)
        if mapped == 0:
            self._runtime.hostUnregister(address)
            raise BackendUnavailable(
                f"{self.name}: found no address on the device for registered host memory, expected one; fetch with "
                "staged"
            )
        return mapped

    def unregister(self, address: int) -> None:
        """See `Device`."""
        self._runtime.hostUnregister(address)

    @cached_property
    def _launcher(self) -> Any:
        from engram_tables.fetch.gpu.kernels import CudaLauncher

        return CudaLauncher()

    def kernels(self, codec: Codec | None, row_bytes: int, stride_bytes: int) -> Kernels:
        """See `Device`. Modules are compiled once a device, and when first launched."""
        from engram_tables.fetch.gpu.kernels import Kernels

        if codec is None:
            raise InvalidInput(f"{self.name}: found records without a codec, expected one; give the table's codec")
        return Kernels(codec, row_bytes=row_bytes, stride_bytes=stride_bytes, launcher=self._launcher)


def _unpooled(cupy: Any) -> Any:
    def allocate(n_bytes: int) -> Any:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(n_bytes), 0)

    return allocate


def _check_bytes(target: Any, source: Any) -> None:
    contiguous = target.flags.c_contiguous and source.flags.c_contiguous
    if target.nbytes != source.nbytes or not contiguous:
        raise TypeError(f"copy: found {source.nbytes} bytes to {target.nbytes}, expected as many, in C order")
