"""Compile kernels in many processes, which share Triton's cache on disk with this one: no measurement waits for it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from tqdm import tqdm

from tinygemm import hardware
from tinygemm.harness import registry
from tinygemm.harness.plan import Group
from tinygemm.harness.variant import Backend
from tinygemm.problem import GemmProblem

FEW = 16  # kernels that this process compiles in the time in which others have only started


@dataclass(frozen=True, order=True)
class Job:
    """One launch that makes one kernel compile: a variant of a backend, named by its source, on a problem."""

    backend: str
    variant: str
    problem: GemmProblem
    symmetric: bool


def ahead(todo: Sequence[Group], gpu: str, symmetric: bool, say: Callable = print) -> None:
    """Compile what a sweep will launch. A kernel that does not compile is found out when its case is measured."""
    jobs = jobs_of(todo, gpu, symmetric)
    if len(jobs) <= FEW:
        return
    try:
        failures = [reason for reason in in_processes(launch, jobs) if reason]
    except BrokenProcessPool as error:
        say(f"compiling ahead stopped ({error}); what is missing is compiled when its turn comes")
        return
    if failures:
        say(f"{len(failures)} of {len(jobs)} kernels did not compile ahead, the first: {failures[0]}")


def jobs_of(
    todo: Iterable[Group], gpu: str, symmetric: bool, backends: Mapping[str, Backend] | None = None
) -> list[Job]:
    """One job for each kernel of our own that the groups launch, on the smallest weight that needs it.

    Kernels that differ only in what Triton does not compile into them (how large N and K are) are one. So are those of
    a package that compiles for itself where Variant.kernel is the same.
    """
    backends = registry.BACKENDS if backends is None else backends
    wanted = dict.fromkeys((group.problem, name) for group in todo if group.problem for name in group.backends)
    jobs: dict[tuple, Job] = {}
    for problem, name in sorted(wanted, key=lambda pair: (pair[0].N * pair[0].K, pair)):
        backend = backends[name]
        if backend.unsupported_reason(problem, symmetric):
            continue
        try:
            variants = backend.variants(problem, gpu, symmetric)
        except ValueError:  # no config fits: the case will say so
            continue
        for variant in variants:
            if variant.config is not None:
                key = (name, variant.layout, variant.config, *_compiled_in(problem, variant.config))
                jobs.setdefault(key, Job(name, variant.source, problem, symmetric))
            elif variant.kernel is not None:
                jobs.setdefault((name, variant.kernel), Job(name, variant.source, problem, symmetric))
    return list(jobs.values())


def launch(job: Job) -> str | None:
    """Launch the kernel of a job once, on this machine's GPU; returns what went wrong."""
    import torch

    try:
        backend = registry.BACKENDS[job.backend]
        if (gpu := hardware.live_gpu_key()) is None:
            return f"{job.backend} {job.problem}: this process sees no GPU"
        variants = backend.variants(job.problem, gpu, job.symmetric)
        variant = {variant.source: variant for variant in variants}[job.variant]
        packed = registry.operands(job.problem, job.symmetric, "cuda", seed=0)
        x = registry.activations(job.problem, "cuda", seed=1).to(getattr(torch, backend.dtype))
        variant.bind(x, variant.build(packed))()
        torch.cuda.synchronize()
    except Exception as error:  # whatever a compiler says about one kernel, the others go on
        return f"{job.backend} {job.problem}: {one_line(error)}"
    return None


def in_processes(work: Callable, items: Sequence, workers: int = 0, desc: str = "compile") -> Iterator:
    """work(item) for every item, in order, with a progress bar.

    work:    a function of a module, since it runs in processes of its own
    workers: 0: one per core less one
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or max(1, (os.cpu_count() or 2) - 1), mp_context=spawn) as pool:
        yield from tqdm(pool.map(work, items, chunksize=4), desc=desc, total=len(items), mininterval=1)


def spills_of(work: Callable) -> int:
    """Registers that the kernels which work() compiles in this process spill to memory."""
    known = set(map(id, _compiled()))
    work()
    return sum(getattr(kernel, "n_spills", None) or 0 for kernel in _compiled() if id(kernel) not in known)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:120]}"


def _compiled_in(problem: GemmProblem, config) -> tuple:
    """The facts about a problem that are compiled into a kernel: its groups, full tiles, and which sizes 16 divides."""
    from tinygemm.kernel.configs import ROUTE
    from tinygemm.kernel.launches import fills_tiles

    blocks = [-(-problem.K // 128)] if config.form in ("static", ROUTE) else []  # the others do not specialise it
    sizes = (problem.N, problem.K, *blocks)
    return (problem.group_size, fills_tiles(problem.N, problem.K, config), *(size % 16 == 0 for size in sizes))


def _compiled() -> list:
    """The compiled kernels of this process."""
    from tinygemm.kernel import fastpath
    from tinygemm.kernel.triton import pipelined, reference, simple, splitk

    modules = (splitk, pipelined, simple, reference)
    return fastpath.compiled(value for module in modules for value in vars(module).values())
