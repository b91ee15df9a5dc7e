"""Launching a kernel: Triton's own way, and a short one for calls that were seen before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton

from tinygemm.kernel import fastpath, workspace

Inputs = tuple[torch.Tensor, *tuple[torch.Tensor | None, ...]]  # of a kernel: one a call cannot do without, then others
ALIGNED = 16  # bytes: what a torch allocation always is, and what Triton compiles wide accesses for


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch, described: kernel[grid](*inputs, out, [partial, counter,] *numbers, **constants, **options).

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
    """A call that has not run yet: what it returns and what it launches. It lives from `describe` to `start`.

    shape, dtype: of `out`
    copy:         the rows of the first input do not lie at equal distances; it is made contiguous first
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    launches: tuple[Launch, ...]
    copy: bool = False


class Plan(NamedTuple):
    """Everything needed to repeat a call that ran: all arguments but tensor addresses and the stream.

    launch, as_tuple, fixed: as in fastpath.Driver
    workspace: (partial sums, counters) of the largest launch, as in Launch; None where no launch needs any
    pieces:    for each launch: grid, byte offsets into the first input and `out`, the arguments behind `out`, or behind
               the workspace where there is one
    """

    device: torch.device
    device_index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    copy: bool
    launch: Callable
    as_tuple: bool
    fixed: tuple
    workspace: tuple[int, int] | None
    pieces: tuple[tuple[tuple, int, int, tuple], ...]


MAX_PLANS = 4096
_plans: dict[tuple, Plan] = {}  # by the key of a call and what else Triton would look at


def call(key: tuple, inputs: Inputs, describe: Callable[..., Work], *arguments):
    """Allocate the output and launch; returns it.

    key:      everything that `describe` looks at, and the strides and devices of the inputs; first the caller's name
    inputs:   the tensors of the kernel
    describe: describe(*arguments) is the Work; it is asked only where the key has not been seen
    """
    out = replay(key, inputs)
    return start(key, inputs, describe(*arguments)) if out is None else out


def replay(key: tuple, inputs: Inputs) -> torch.Tensor | None:
    """Repeat a call that ran before, with the least that Python can do; None where it must `start` the ordinary way.

    Triton looks at every argument of every call to find the binary that fits. Here the key stands for all that decides
    about the binary but the alignment of the pointers, which is checked. Pointers are passed as integers, so Triton
    does not ask the driver whose memory they are: it did when the call ran first, on tensors of the same devices.
    """
    plan = _plans.get((key, fastpath.knobs()))
    if plan is None or fastpath.hooked():
        return None
    device, index, shape, dtype, copy, start_kernel, as_tuple, fixed, needs, pieces = plan
    if index != fastpath.current_device():
        with torch.cuda.device(device):
            return replay(key, inputs)
    if copy:
        inputs = (inputs[0].contiguous(), *inputs[1:])
    like, *optional = inputs
    address = bits = like.data_ptr()
    others: list[int | None] = []
    for tensor in optional:
        if tensor is None:
            others.append(None)
        else:
            others.append(pointer := tensor.data_ptr())
            bits |= pointer
    if bits % ALIGNED:
        return None
    # new_empty takes half as long as torch.empty, which has a dtype and a device to read; sizes one by one, no tuple
    out = (like if like.dtype is dtype else like.new_empty(0, dtype=dtype)).new_empty(*shape)
    target, stream = out.data_ptr(), fastpath.current_stream(index)
    space = () if needs is None else workspace.reserve(*needs, device).addresses
    for grid, offset, out_offset, rest in pieces:
        first, last = address + offset, target + out_offset
        if as_tuple:
            start_kernel(*grid, stream, *fixed, (first, *others, last, *space, *rest))
        else:
            start_kernel(*grid, stream, *fixed, first, *others, last, *space, *rest)
    return out


def start(key: tuple, inputs: Inputs, work: Work) -> torch.Tensor:
    """Launch the way Triton does it, and remember what that came to for `replay`."""
    with torch.cuda.device_of(inputs[0]):
        return _start(key, inputs, work)


def _start(key: tuple, inputs: Inputs, work: Work) -> torch.Tensor:
    first = inputs[0].contiguous() if work.copy else inputs[0]
    out = torch.empty(work.shape, dtype=work.dtype, device=first.device)
    pieces, binaries = [], []
    for launch in work.launches:
        rows, target = first, out
        if launch.count:
            rows = first.reshape(-1, first.shape[-1])[launch.first : launch.first + launch.count]
            target = out.view(-1, out.shape[-1])[launch.first : launch.first + launch.count]
        space = () if launch.workspace is None else workspace.reserve(*launch.workspace, first.device).tensors
        arguments = (rows, *inputs[1:], target, *space, *launch.numbers)
        binaries.append(launch.kernel[launch.grid](*arguments, **launch.constants, **launch.options))
        offsets = rows.data_ptr() - first.data_ptr(), target.data_ptr() - out.data_ptr()
        pieces.append((launch.grid, *offsets, (*launch.numbers, *launch.constants.values())))
    binary = binaries[0]
    places = [tensor.data_ptr() for tensor in (first, *inputs[1:]) if tensor is not None]
    places += [offset for piece in pieces for offset in piece[1:3]]
    if binary is None or any(other is not binary for other in binaries) or any(place % ALIGNED for place in places):
        return out  # the interpreter has no binary
    if (driver := fastpath.driver_of(binary)) is not None:
        needs = max((launch.workspace for launch in work.launches if launch.workspace), default=None)
        if needs == (0, 0):  # parameters of the kernel all the same
            unused = workspace.NOT_NEEDED.addresses
            pieces = [(grid, at, out_at, (*unused, *rest)) for grid, at, out_at, rest in pieces]
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        _plans[key, fastpath.knobs()] = Plan(
            first.device, first.device.index, work.shape, work.dtype, work.copy, *driver,
            None if needs == (0, 0) else needs, tuple(pieces),
        )  # fmt: skip
    return out
