"""The suite of decode steps: cases in the order of their importance, written one by one, within a budget of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tinygemm import hardware, runs
from tinygemm.harness import timing
from tinygemm.runs import RunWriter
from tinygemm.step import cases, measure
from tinygemm.step.cases import StepCase
from tinygemm.step.ranks import ranks_of_this_machine
from tinygemm.step_rows import COPY, Step, StepKernel, StepSample

LAST = 6  # cases that say how long the next one may take


@dataclass
class Rows:
    """Measured rows of the three tables."""

    steps: list[Step] = field(default_factory=list)
    samples: list[StepSample] = field(default_factory=list)
    kernels: list[StepKernel] = field(default_factory=list)
    not_started: list[StepCase] = field(default_factory=list)
    profile_fault: str = ""


def bench_of_this_gpu(tp: int = 1) -> measure.Bench:
    """The clock and memory of this process's GPU, one of `tp`; raises as ranks_of_this_machine."""
    import torch

    ranks = ranks_of_this_machine(tp)
    torch.cuda.empty_cache()  # what a sweep before this held
    free, _ = torch.cuda.mem_get_info()
    return measure.Bench(timing.CudaClock(), memory_bytes=ranks.same(free), ranks=ranks)


def parameters(wanted: list[StepCase]) -> dict:
    """The terms that decide which steps are measured, as it stands in provenance.json."""
    return {"steps": [case.case_id for case in wanted], "rep": measure.REP}


def open_run(wanted: list[StepCase], root: Path, resume: Path | None, command: str) -> RunWriter:
    """A new run of decode steps, or an unfinished one of the same cases, GPU and commit."""
    gpu, asked = hardware.snapshot(), parameters(wanted)
    resume = resume or RunWriter.unfinished(gpu["key"], asked, root)
    if resume:
        return RunWriter.resume(resume, gpu, asked)
    return RunWriter.create(gpu, asked, runs.without_folders(command), root)


def record(root: Path, budget_s: float, command: str, say: Callable[[str], None] = print) -> Path:
    """Measure the report's decode steps on this machine's GPU and write them as a sealed run.

    root:     folder that holds steps/<gpu>/<run_id>/
    budget_s: as in `run`; what was not started by then is left out
    raises:   whatever stops the suite, with the run left to be resumed
    """
    wanted = cases.matrix()
    writer = open_run(wanted, root / runs.STEPS, None, command)
    say(f"recording decode steps into {writer.path}")
    found = run(bench_of_this_gpu(), wanted, budget_s, writer, lambda step, _: say(f"{step.case_id}: {step.status}"))
    if found.not_started:
        say(f"{len(found.not_started)} decode steps not started within {budget_s:g} s")
    return writer.finish()


def run(
    bench: measure.Bench,
    wanted: list[StepCase],
    budget_s: float = 0,
    writer: RunWriter | None = None,
    seen: Callable[[Step, list[StepSample]], None] = lambda step, samples: None,
) -> Rows:
    """Measure the cases that are not on disk yet, the copy first.

    budget_s: no case is started that would end later than this, if it took as long as the longest of the last few;
              0: no end
    writer:   each case is on disk before the next one starts
    seen:     told of each row
    Of several processes, the first decides what is left and when time is up; it alone needs a writer.
    """
    rows, done = Rows(), bench.ranks.same(writer.done_steps() if writer else set())
    began = bench.now()
    if COPY not in done:
        _keep(rows, writer, seen, [measure.measure_copy(bench)])
    left = [case for case in wanted if case.case_id not in done]
    took: list[float] = []
    for i, case in enumerate(left):
        started = bench.now()
        if bench.ranks.same(budget_s and started - began + max(took[-LAST:], default=0) > budget_s):
            rows.not_started = left[i:]
            break
        _keep(rows, writer, seen, measure.measure(bench, case))
        took.append(bench.now() - started)
    rows.profile_fault = bench.profile_fault
    return rows


def _keep(rows: Rows, writer: RunWriter | None, seen: Callable, measured: Iterable) -> None:
    for each in measured:
        if isinstance(each, list):
            rows.kernels += each
            if writer:
                writer.append_step_kernels(each)
            continue
        step, samples = each
        rows.steps.append(step)
        rows.samples += samples
        if writer:
            writer.append_step(step, samples)
        seen(step, samples)
