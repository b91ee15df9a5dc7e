"""A sweep: every group verified, timed and written before the next one starts; a run that is killed can be resumed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd

from tinygemm import hardware, runs
from tinygemm.harness import choose, compile, ncu, registry, timing
from tinygemm.harness.choose import SweepStoppedError
from tinygemm.harness.measure import measure_ceiling, measure_group
from tinygemm.harness.plan import Group, SweepPlan, groups
from tinygemm.rows import columns_of
from tinygemm.runs import Case, Sample

__all__ = ["SweepPlan", "SweepStoppedError", "bench", "measure", "record"]


def record(
    plan: SweepPlan,
    root: Path = runs.DATA_ROOT,
    *,
    resume: Path | None = None,
    command: str = "",
    say: Callable = print,
) -> Path:
    """Measure a plan on this machine's GPU and write it as a sealed run.

    root:    folder that holds <gpu>/<run_id>/
    resume:  an unfinished run to go on with; its GPU, commit and plan must be these
    command: what the user typed, for the provenance
    returns: the run's folder
    raises:  RuntimeError without a GPU; RunError; SweepStoppedError, with the run left to be resumed
    """
    if not plan.verify:
        raise ValueError("a recorded run verifies every case; verify=False is for `tinygemm bench` only")
    gpu = hardware.snapshot()
    if resume is None:
        writer = runs.RunWriter.create(gpu, plan.parameters(), runs.without_folders(command), root)
    else:
        writer = runs.RunWriter.resume(resume, gpu, plan.parameters())
    say(f"recording into {writer.path}")
    if gpu["key"] not in hardware.GPUS:
        say(f"the peaks of {gpu['name']} are not known here: none are drawn, and configs are of another GPU's table")
    todo = unfinished_groups(plan, writer)
    compile.ahead(todo, gpu["key"], plan.symmetric, say)
    try:
        for cases, samples in _with_progress(measure(bench_of_this_gpu(plan, gpu), todo), len(todo)):
            writer.append(cases, samples)
        if plan.counters:
            _record_counters(plan, writer, say)
    except (SweepStoppedError, KeyboardInterrupt):
        say(f"stopped; go on with: tinygemm record --resume {writer.path}")
        raise
    return writer.finish()


def bench(plan: SweepPlan) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure a plan without recording it: the tables of cases.csv and samples.csv."""
    gpu, todo = hardware.snapshot(), groups(plan)
    cases, samples = [], []
    for group_cases, group_samples in _with_progress(measure(bench_of_this_gpu(plan, gpu), todo), len(todo)):
        cases += group_cases
        samples += group_samples
    return _frame(cases, Case), _frame(samples, Sample)


def bench_of_this_gpu(plan: SweepPlan, gpu: dict) -> choose.Bench:
    return choose.Bench(plan, gpu, timing.CudaClock())


def unfinished_groups(plan: SweepPlan, writer: runs.RunWriter) -> list[Group]:
    """Groups that are not wholly on disk; their rows there are dropped, so that backends are timed together."""
    done = writer.done()
    todo = [group for group in groups(plan) if not done.issuperset(group.case_ids)]
    if partly := done.intersection(case_id for group in todo for case_id in group.case_ids):
        writer.drop(partly)
    return todo


def measure(bench: choose.Bench, todo: Iterable[Group]) -> Iterator[tuple[list[Case], list[Sample]]]:
    """Measure groups; yields the rows of one group at a time.

    todo:   groups in the order of plan.groups, so that equal weights stand side by side and are made once
    raises: SweepStoppedError when the GPU no longer answers
    """
    for weight, of_weight in itertools.groupby(todo, key=lambda group: group.weight):
        if weight is None:
            yield from (measure_ceiling(bench, group) for group in of_weight)
            continue
        weights, ready = None, {}  # let go of the last ones before the memory is given back
        bench.clock.release_memory()
        for _, same in itertools.groupby(of_weight, key=lambda group: group.problem):
            of_problem = list(same)
            weights = weights or choose.make_weights(bench, of_problem[0])
            ready = choose.make_ready(bench, of_problem, weights)
            for group in of_problem:
                registry.forget_graphs()
                yield measure_group(bench, group, ready, weights)


def _with_progress(results: Iterator, total: int) -> Iterator:
    from tqdm import tqdm

    return tqdm(results, total=total, unit="group", mininterval=1)


def _record_counters(plan: SweepPlan, writer: runs.RunWriter, say: Callable) -> None:
    """Profile the plan's cases that were timed; where that fails, say so: the measured times are worth keeping."""
    timed = runs.read_table(writer.path / "cases.csv").set_index("case_id")
    timed = timed[timed["status"] == "ok"]
    targets = [
        ncu.Target(case_id, name, each, plan.symmetric, timed.loc[case_id, "config_source"])
        for each in plan.counter_problems
        for name in plan.counter_backends
        if (case_id := runs.case_id(name, each, "graph", "cold")) in timed.index
    ]
    try:
        rows, raw = ncu.collect(targets, say=say)
    except (ncu.CountersUnavailableError, ncu.CounterFileError) as error:
        say(f"this run has no counters: {error}")
        return
    writer.write_counters(rows, raw)


def _frame(rows: list, row_type: type) -> pd.DataFrame:
    return pd.DataFrame([dataclasses.astuple(row) for row in rows], columns=columns_of(row_type))
