"""Launching a kernel: the workspace it needs, Triton's own way, and a short one for calls that were seen before."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton

ALIGNED = 16  # bytes: what a torch allocation always is, and what Triton compiles wide accesses for


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch: kernel[grid](*inputs, out, [partial, counter,] *numbers, **constants, **options).

    numbers:   run-time integers, in the order of the signature
    constants: compile-time constants by name, in the order of the signature
    workspace: float32 partial sums and arrival counters that it needs, (0, 0) where one program walks the whole K;
               None: the kernel has no such parameters
    first, count: the rows of the first input, and of `out`, that it takes; count 0: all
    """

    kernel: triton.JITFunction
    grid: tuple[int, int, int]
    numbers: tuple[int, ...]
    constants: dict
    options: dict
    workspace: tuple[int, int] | None = None
    first: int = 0
    count: int = 0


@dataclass(frozen=True, eq=False)
class Work:
    """A call: what it returns and what it launches.

    shape, dtype: of `out`
    copy:         the rows of the first input do not lie at equal distances; it is made contiguous first
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    launches: tuple[Launch, ...]
    copy: bool = False


class Plan(NamedTuple):
    """A call that ran once, by what is the same whenever its key is: all but addresses and the stream.

    launch:    the function of Triton's driver that starts a kernel, given grid, stream, *fixed, then the arguments
    as_tuple:  it takes the kernel's arguments as one tuple (Triton 3.7), not one by one (3.6)
    workspace: (partial sums, counters) of the largest launch, as in Launch; None where no launch needs any
    pieces:    for each launch: grid, byte offsets into the first input and `out`, the arguments behind `out`, or behind
               the workspace where there is one
    """

    device: torch.device
    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    copy: bool
    launch: Callable
    as_tuple: bool
    fixed: tuple
    workspace: tuple[int, int] | None
    pieces: tuple[tuple[tuple, int, int, tuple], ...]


MAX_PLANS = 4096
_plans: dict[tuple, Plan] = {}
_runtime = triton.knobs.runtime
_version = tuple(triton.__version__.split(".")[:2])


def call(key: tuple, inputs: tuple[torch.Tensor | None, ...], describe: Callable[..., Work], *arguments):
    """Allocate the output and launch; returns it.

    key:      everything that `describe` looks at, and the strides and devices of the inputs; first the caller's name
    inputs:   the tensors of the kernel
    describe: describe(*arguments) is the Work; it is asked only where the key has not been seen
    """
    out = replay(key, inputs)
    return start(key, inputs, describe(*arguments)) if out is None else out


def replay(key: tuple, inputs: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
    """Repeat a call that ran before, with the least that Python can do; None where it must `start` the ordinary way.

    Triton looks at every argument of every call to find the binary that fits. Here the key stands for all that decides
    about the binary but the alignment of the pointers, which is checked. Pointers are passed as integers, so Triton
    does not ask the driver whose memory they are: it did when the call ran first, on tensors of the same devices.
    """
    plan = _plans.get(key)
    if plan is None or _hooked():
        return None
    device, index, shape, dtype, copy, start_kernel, as_tuple, fixed, needs, pieces = plan
    if index != torch._C._cuda_getDevice():  # what torch.cuda.current_device wraps
        with torch.cuda.device(device):
            return replay(key, inputs)
    if copy:
        inputs = (inputs[0].contiguous(), *inputs[1:])
    pointers, bits = [], 0
    for tensor in inputs:
        if tensor is None:
            pointers.append(None)
        else:
            pointers.append(pointer := tensor.data_ptr())
            bits |= pointer
    if bits % ALIGNED:
        return None
    address, *others = pointers
    # new_empty takes half as long as torch.empty, which has a dtype and a device to read; sizes one by one, no tuple
    like = inputs[0]
    out = (like if like.dtype is dtype else like.new_empty(0, dtype=dtype)).new_empty(*shape)
    target, stream = out.data_ptr(), torch._C._cuda_getCurrentRawStream(index)
    space = () if needs is None else workspace(*needs, device).addresses
    for grid, offset, out_offset, rest in pieces:
        first, last = address + offset, target + out_offset
        if as_tuple:
            start_kernel(*grid, stream, *fixed, (first, *others, last, *space, *rest))
        else:
            start_kernel(*grid, stream, *fixed, first, *others, last, *space, *rest)
    return out


def start(key: tuple, inputs: tuple[torch.Tensor | None, ...], work: Work) -> torch.Tensor:
    """Launch the way Triton does it, and remember what that came to for `replay`."""
    with torch.cuda.device_of(inputs[0]):
        return _start(key, inputs, work)


def _start(key, inputs, work) -> torch.Tensor:
    first = inputs[0].contiguous() if work.copy else inputs[0]
    out = torch.empty(work.shape, dtype=work.dtype, device=first.device)
    pieces, binaries = [], []
    for launch in work.launches:
        rows, target = first, out
        if launch.count:
            rows = first.reshape(-1, first.shape[-1])[launch.first : launch.first + launch.count]
            target = out.view(-1, out.shape[-1])[launch.first : launch.first + launch.count]
        space = NO_PARAMETERS if launch.workspace is None else workspace(*launch.workspace, first.device)
        arguments = (rows, *inputs[1:], target, *space.tensors, *launch.numbers)
        binaries.append(launch.kernel[launch.grid](*arguments, **launch.constants, **launch.options))
        offsets = rows.data_ptr() - first.data_ptr(), target.data_ptr() - out.data_ptr()
        pieces.append((launch.grid, *offsets, (*launch.numbers, *launch.constants.values())))
    binary = binaries[0]
    places = [tensor.data_ptr() for tensor in (first, *inputs[1:]) if tensor is not None]
    places += [offset for piece in pieces for offset in piece[1:3]]
    if binary is None or any(other is not binary for other in binaries) or any(place % ALIGNED for place in places):
        return out  # the interpreter has no binary
    if (fixed := _fixed_arguments(binary)) is not None:
        space = max((launch.workspace for launch in work.launches if launch.workspace), default=None)
        if space == (0, 0):  # parameters of the kernel all the same
            pieces = [(*where, (*NOT_NEEDED.addresses, *rest)) for *where, rest in pieces]
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        _plans[key] = Plan(
            first.device, first.device.index, work.shape, work.dtype, work.copy, binary.run.launch,
            _version == ("3", "7"), fixed, None if space == (0, 0) else space, tuple(pieces),
        )  # fmt: skip
    return out


def _fixed_arguments(binary) -> tuple | None:
    """What Triton 3.6 and 3.7 hand their driver's launch function between the stream and the kernel's arguments.

    Read off `CudaLauncher.__call__` and `CompiledKernel.__getitem__` of both. None for a launcher of another shape and
    for a kernel that needs scratch memory: those go Triton's own way, every time.
    """
    run = binary.run
    known = ("launch", "launch_cooperative_grid", "launch_pdl", "global_scratch_size", "profile_scratch_size")
    if not type(run).__module__.endswith("nvidia.driver") or not all(hasattr(run, name) for name in known):
        return None
    if run.global_scratch_size or run.profile_scratch_size:
        return None
    head = (binary.function, run.launch_cooperative_grid, run.launch_pdl)
    no_hooks, no_scratch = (None, None, None), (None, None)  # what hooks are told and both hooks; two kinds of scratch
    if _version == ("3", "6"):
        return (*head, *no_scratch, binary.packed_metadata, *no_hooks)
    if _version == ("3", "7") and hasattr(run, "arg_annotations") and hasattr(run, "kernel_signature"):
        return (*head, binary.packed_metadata, *no_hooks, *no_scratch, run.arg_annotations, run.kernel_signature)
    return None


def _hooked() -> bool:
    """Whether somebody, a profiler say, asked Triton to be told of every launch."""
    before, after = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    return bool(getattr(before, "calls", before) or getattr(after, "calls", after))


# --- partial sums and arrival counters --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Workspace:
    """Partial sums float32 and arrival counters int32, as tensors and by their addresses; None where not needed."""

    tensors: tuple[torch.Tensor | None, ...]
    addresses: tuple[int | None, ...]


NO_PARAMETERS = Workspace((), ())  # of a kernel that never splits K
NOT_NEEDED = Workspace((None, None), (None, None))
POOL_COUNTERS = 1 << 20  # 4 MB: a thousand graphs, however many calls each captures
POOL_RESERVE = 1 << 17  # with less than this left, the next eager call starts another pool
_stream_workspaces: dict[tuple[int, int], Workspace] = {}
_pools: dict[int, list[torch.Tensor]] = {}  # device -> what is left of its pool, then the pools that are used up
_captures: dict[tuple[int, int], tuple[int, torch.Tensor]] = {}  # (device, stream) -> its last capture, its counters


def workspace(partials: int, counters: int, device: torch.device) -> Workspace:
    """Room for partial sums, and arrival counters that are zero now and that the kernel leaves at zero.

    Never shared by calls that may overlap. Eager calls on one stream run one after the other and share a workspace that
    grows to what the largest of them needs. Captured calls take their partial sums from their graph's memory. Their
    counters come out of a pool for good, since the graph may be replayed at any time beside anything else; but calls of
    one capture on one stream run one after the other and share them. Eager calls refill the pool. Where there is none
    yet (the first call of all is a captured one), the graph zeroes its counters itself: one node more.
    """
    if not partials:
        return NOT_NEEDED
    if device.type != "cuda":
        return _new_workspace(partials, _zeros(counters, device))
    counters += -counters % 4  # every set starts 16-byte aligned: another alignment would be another compiled kernel
    key = (device.index, torch._C._cuda_getCurrentRawStream(device.index))  # what torch.cuda.current_stream wraps
    if torch.cuda.is_current_stream_capturing():
        return _new_workspace(partials, _captured_counters(key, counters, device))
    pool = _pools.setdefault(device.index, [])
    if not pool or pool[0].numel() < POOL_RESERVE:
        pool.insert(0, _zeros(POOL_COUNTERS, device))
        torch.cuda.synchronize(device)  # once in a thousand graphs: every stream must see the zeros
    held = _stream_workspaces.get(key)
    sizes = (0, 4096) if held is None else [tensor.numel() for tensor in held.tensors]
    if sizes[0] >= partials and sizes[1] >= counters:
        return held
    held = _new_workspace(max(partials, sizes[0]), _zeros(max(counters, sizes[1]), device))
    _stream_workspaces[key] = held
    return held


def forget_captured_counters() -> None:
    """Start new pools of counters, with the next eager call on each GPU.

    For a caller who knows that no graph captured so far will be replayed again.
    """
    _pools.clear()
    _captures.clear()


def _captured_counters(stream: tuple[int, int], count: int, device: torch.device) -> torch.Tensor:
    """Counters for a call that is being captured: those of the calls before it in the same capture and stream."""
    capture = _capture_id(stream[1])
    known, held = _captures.get(stream, (None, None))
    if held is not None and known == capture and held.numel() >= count:
        return held
    pool = _pools.get(device.index)
    if not pool or pool[0].numel() < count:
        held = _zeros(count, device)  # of the graph's memory; kept, for later calls of the capture rely on its zeros
    else:
        held, pool[0] = pool[0][:count], pool[0][count:]
    if capture is not None:
        _captures[stream] = (capture, held)
    return held


def _capture_id(stream: int) -> int | None:
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


def _new_workspace(partials: int, counters: torch.Tensor) -> Workspace:
    sums = torch.empty(partials, dtype=torch.float32, device=counters.device)
    return Workspace((sums, counters), (sums.data_ptr(), counters.data_ptr()))


def _zeros(count: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)
