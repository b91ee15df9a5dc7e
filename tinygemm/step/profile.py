"""Which kernels a step is made of, and what each adds to it, from a profile of its CUDA graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tinygemm.step_rows import StepKernel

REPLAYS = 4
KINDS = (
    ("allreduce", r"nccl|all_?reduce|all_?gather"),
    ("attention", r"decode_attention|fmha|flash|sdpa|attention"),
    ("product", r"gemm|gemv|nvjet|cutlass|splitkreduce|cijk|matmul|marlin"),
)


@dataclass(frozen=True)
class Launch:
    """One kernel on the GPU: its name, when it started and ended, in us."""

    name: str
    start_us: float
    end_us: float


def kind_of(kernel: str) -> str:
    """Say by its name what a kernel is for. A matmul inside attention by the equations counts as a product."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, kernel.lower())), "rest")


def kernels_of(case_id: str, launches: Iterable[Launch], replays: int) -> list[StepKernel]:
    """The kernels of a step, the costliest first.

    A kernel adds the time by which it moves the end of all before it: where two overlap, or one waits for another, no
    time counts twice, and the sum is the span of the profile.
    """
    added: dict[str, float] = {}
    calls: dict[str, int] = {}
    end = None
    for launch in sorted(launches, key=lambda launch: launch.end_us):
        before = launch.start_us if end is None else end
        added[launch.name] = added.get(launch.name, 0.0) + max(0.0, launch.end_us - before)
        calls[launch.name] = calls.get(launch.name, 0) + 1
        end = launch.end_us
    rows = [StepKernel(case_id, name, kind_of(name), calls[name] / replays, us / replays) for name, us in added.items()]
    return sorted(rows, key=lambda row: -row.added_us)


def profiled(replay: Callable[[], object]) -> list[Launch]:
    """The kernels of REPLAYS replays; raises RuntimeError where the profiler saw none."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:  # without it, torch warns
        for _ in range(REPLAYS):
            replay()
        torch.cuda.synchronize()
    found = [
        Launch(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA
    ]
    if not found:
        raise RuntimeError("the profiler saw no kernels: does this machine let torch.profiler read CUPTI?")
    return found
