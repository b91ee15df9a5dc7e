"""Everything that is private to Triton and torch: the names that they may change, and the fallback for each.

Nothing else in the package looks at a private name. tests/test_fastpath.py says which of them is gone.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

try:
    import triton
except ModuleNotFoundError:  # macOS and Windows have none: no kernel is ever launched
    triton = None

VERSIONS = ((3, 6), (3, 9))  # of Triton: the first and the last whose launch call is known
_version = triton and tuple(int(part) for part in triton.__version__.split(".")[:2])
_runtime, _compilation = triton and triton.knobs.runtime, triton and triton.knobs.compilation


# --- Triton: starting a compiled kernel -------------------------------------------------------------------------------


class Driver(NamedTuple):
    """The start of a compiled kernel without Triton's launcher.

    launch:   the driver's function; it takes grid, stream, *fixed, then the kernel's arguments
    as_tuple: it takes these as one tuple (Triton 3.7 to 3.9), not one by one (3.6)
    """

    launch: Callable
    as_tuple: bool
    fixed: tuple


def driver_of(binary) -> Driver | None:
    """The driver's launch call for a compiled kernel; None where Triton's launcher must make it, every time.

    Read off `CudaLauncher.__call__` and `CompiledKernel.__getitem__` of Triton 3.6 to 3.9. Scratch memory and a
    sanitizer need what only Triton's launcher prepares. An unknown version or launcher is warned of once.
    """
    run = binary.run
    known: tuple[str, ...] = (
        "launch",
        "launch_cooperative_grid",
        "launch_pdl",
        "global_scratch_size",
        "profile_scratch_size",
    )
    if _version > VERSIONS[0]:
        known += ("arg_annotations", "kernel_signature")
    of_nvidia = type(run).__module__.endswith("nvidia.driver")
    if not (VERSIONS[0] <= _version <= VERSIONS[1] and of_nvidia and all(hasattr(run, name) for name in known)):
        _warn_of_an_unknown_launcher()
        return None
    if run.global_scratch_size or run.profile_scratch_size or getattr(run, "gsan_enabled", False):
        return None
    head = (binary.function, run.launch_cooperative_grid, run.launch_pdl)
    no_hooks, no_scratch = (None, None, None), (None, None)  # what hooks are told and both hooks; two kinds of scratch
    if _version == VERSIONS[0]:
        return Driver(run.launch, False, (*head, *no_scratch, binary.packed_metadata, *no_hooks))
    described = (run.arg_annotations, run.kernel_signature)
    return Driver(run.launch, True, (*head, binary.packed_metadata, *no_hooks, *no_scratch, *described))


def hooked() -> bool:
    """Tell whether somebody, a profiler say, listens to every launch or changes how kernels compile."""
    before, after = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    listeners = getattr(before, "calls", before) or getattr(after, "calls", after)
    return bool(listeners or getattr(_runtime, "add_stages_inspection_hook", None))


def knobs() -> tuple:
    """The part of Triton's own cache key that is neither an argument nor an option of a launch."""
    return _runtime.debug, getattr(_compilation, "instrumentation_mode", "")


def compiled(values: Iterable) -> list:
    """The compiled kernels of this process among those of the functions in `values`; other values have none."""
    functions = {id(value): value for value in values if hasattr(value, "device_caches")}
    caches = [cache for function in functions.values() for cache, *_ in function.device_caches.values()]
    return [kernel for cache in caches for kernel in cache.values()]


@functools.cache
def _warn_of_an_unknown_launcher() -> None:
    first, last = (".".join(map(str, version)) for version in VERSIONS)
    warnings.warn(
        f"the launcher of Triton {triton.__version__} is not known to tinygemm, which knows that of NVIDIA GPUs in "
        f"{first} to {last}: results are the same, but every call from Python takes Triton's own, slower way",
        RuntimeWarning,
        stacklevel=2,
    )


# --- torch: the current device and stream, without what their public wrappers look up each time -----------------------

current_device = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)
current_stream = getattr(
    torch._C, "_cuda_getCurrentRawStream", lambda index: torch.cuda.current_stream(index).cuda_stream
)


def spin(cycles: int) -> None:
    """Keep the current stream busy for as many cycles of the GPU's clock; the caller does not wait."""
    torch.cuda._sleep(cycles)


def capture_id(stream: int) -> int | None:
    """The number that the driver gave to the capture under way on a stream; None where it does not say.

    torch does not tell captures apart: one stream captures many graphs, and these may be replayed side by side.
    """
    ask = _ask_for_capture()
    status, number = ctypes.c_int(), ctypes.c_uint64()
    if ask is None or ask(ctypes.c_void_p(stream), ctypes.byref(status), ctypes.byref(number)) != 0:
        return None
    return number.value


@functools.cache
def _ask_for_capture() -> Callable | None:
    """`cuStreamGetCaptureInfo(stream, &status, &id)` of the CUDA driver API."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuStreamGetCaptureInfo
    except (OSError, AttributeError):
        return None


# --- torch: whether it computes, records or transforms ----------------------------------------------------------------
#
# Bound once, since every call asks. Where a name is gone, the stand-in says yes, and the call goes the general way.


def _bound(path: str, otherwise: Callable) -> Callable:
    """A function of torch by its path, or a stand-in, of which it warns."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    if found is None:
        gone = f"torch {torch.__version__} no longer has torch.{path}: calls of tinygemm take a slower way"
        warnings.warn(gone, RuntimeWarning, stacklevel=2)
    return found or otherwise


_REAL_TENSORS = (torch.Tensor, torch.nn.Parameter)
_dispatch_modes = _bound("_C._len_torch_dispatch_stack", lambda: 1)
_tracing_state = _bound("_C._get_tracing_state", lambda: True)
_transforms = _bound("_C._functorch.peek_interpreter_stack", lambda: True)
any_autocast = _bound("_C._is_any_autocast_enabled", lambda: True)


def traced(x: torch.Tensor) -> bool:
    """Tell whether torch records or transforms instead of computing: x has no address of its own then."""
    return (
        type(x) not in _REAL_TENSORS
        or _dispatch_modes() > 0
        or _tracing_state() is not None
        or _transforms() is not None
    )


def has_tangent(x: torch.Tensor) -> bool:
    """Tell whether torch follows x for a derivative in forward mode."""
    return getattr(forward_ad, "_current_level", 0) >= 0 and forward_ad.unpack_dual(x).tangent is not None


# --- torch: its compiler ----------------------------------------------------------------------------------------------


def compiler_options(overlap: bool) -> dict[str, bool]:
    """Options of `torch.compile`; overlap: dependent launch in the compiler's own kernels.

    Many models compile in one process, one layer each, and torch would give up after eight: its limit is lifted.
    """
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
    return {"triton.enable_pdl": True} if overlap else {}
