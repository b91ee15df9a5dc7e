"""The source of a chapter's numbers: measured on this machine's GPU now, or read from a recorded run."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from tinygemm import hardware, runs
from tinygemm.runs import Run, RunError, RunWriter
from tinygemm.step.cases import asked_in

SOURCES = ("auto", "live", "recorded")


def open_run(
    source: str = "auto", gpu: str = "auto", run_dir: str = "", data_root: str = "", allow_dirty: bool = False, **sweep
) -> Run:
    """The run that a notebook explains; never another GPU's numbers than those asked for.

    source:      "live" measures on this machine's GPU and records the run; "recorded" reads the newest recorded run;
                 "auto" is live where a CUDA GPU of the wanted kind is present and no run_dir is given, else recorded
    gpu:         key or alias such as "a10g" or "h100"; "auto": this machine's GPU if live, else whatever was
                 recorded last
    run_dir:     folder of one run to read, instead of the newest
    data_root:   folder that holds <gpu>/<run_id>/; "": the project's data/
    allow_dirty: read and record runs of a tree with uncommitted changes
    sweep:       parameters of SweepPlan.from_parameters, and step and step_budget, used only when live
    raises:      ValueError for a parameter that is not of this form; RunError in one sentence that says what to do
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    root = Path(data_root) if data_root else runs.DATA_ROOT
    gpu = hardware.full_key(gpu)
    if run_dir:
        if source == "live":
            raise ValueError("source is live and run_dir names a recorded run; give one of the two")
        return _of_gpu(runs.load_run(run_dir, allow_dirty=allow_dirty), gpu)
    if source == "recorded":  # seconds are spent on asking for a GPU
        return _newest(gpu, root, allow_dirty)
    here = hardware.live_gpu_key()
    if source == "live" or (here is not None and gpu in ("auto", here)):
        return _measure(here, gpu, root, allow_dirty, sweep)
    return _newest(gpu, root, allow_dirty)


def _of_gpu(run: Run, gpu: str) -> Run:
    if gpu not in ("auto", run.gpu["key"]):
        raise RunError(
            f"{run.path} was measured on {run.gpu['key']}, not on {gpu}; set gpu to {run.gpu['key']} or auto"
        )
    return run


def _newest(gpu: str, root: Path, allow_dirty: bool) -> Run:
    if gpu != "auto" and not runs.recorded_runs(gpu, root):
        have = sorted({path.parent.name for path in runs.recorded_runs(root=root)})
        here = hardware.live_gpu_key()
        machine = f"this machine's GPU is {here}" if here else "this machine has no CUDA GPU"
        raise RunError(
            f"no recorded run of {gpu} in {root} (recorded: {', '.join(have) or 'none'}) and {machine}: "
            f"run this on a machine with that GPU to measure it, or set gpu to one that was recorded"
        )
    return _of_gpu(runs.latest_run(None if gpu == "auto" else gpu, root, allow_dirty=allow_dirty), gpu)


def _measure(here: str | None, gpu: str, root: Path, allow_dirty: bool, sweep: dict) -> Run:
    """Record a run, going on with one that was interrupted, and load it."""
    if here is None:
        raise RunError(f"source is live, but {hardware.cuda_unavailable_reason()}; set source to recorded")
    if gpu not in ("auto", here):
        raise RunError(f"gpu is {gpu} and source is live, but this machine's GPU is {here}; set gpu to {here} or auto")
    from tinygemm.harness.sweep import SweepPlan, record

    step_budget = asked_in(sweep)
    plan = SweepPlan.from_parameters(**sweep)
    if not allow_dirty:
        runs.require_clean_tree("set allow_dirty")
    unfinished = RunWriter.unfinished(here, plan.parameters(), root)
    path = record(plan, root, resume=unfinished, command=_command())
    if step_budget is not None:
        from tinygemm.step import suite

        try:
            suite.record(root, step_budget, _command())
        except Exception as error:  # the report shows what the sweep measured
            warnings.warn(f"no decode steps were recorded: {error}", stacklevel=2)
    return runs.load_run(path, allow_dirty=allow_dirty)


def _command() -> str:
    """The command of this measurement; in a notebook, the program that runs it (papermill, jupyter, make report)."""
    if "ipykernel" not in sys.modules:
        return " ".join(sys.argv)
    import psutil  # comes with ipykernel

    for process in psutil.Process().parents():
        line = " ".join(process.cmdline())
        if any(program in line for program in ("papermill", "tinygemm", "jupyter")):
            return f"notebook run by: {line}"
    return "notebook"
