"""Recorded decode steps: the newest run that has some, and the table of a user's question: what a token takes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tinygemm import runs
from tinygemm.step_rows import COPY


def latest(
    gpu: str | None = None, root: Path = runs.DATA_ROOT, *, allow_dirty: bool = False, shared: bool = False
) -> runs.Run:
    """The newest run of a GPU that holds decode steps: a run of the report, or one of steps alone in <root>/steps.

    shared: only runs of models that several GPUs shared; False: only runs of models on one GPU
    raises: RunError that says how to record one
    """
    found = [*runs.recorded_runs(gpu, root), *runs.recorded_runs(gpu, root / runs.STEPS)]
    for path in sorted(found, key=lambda path: path.name, reverse=True):
        if (path / "steps.csv").is_file() and (allow_dirty or not path.name.endswith("-dirty")):
            run = runs.load_run(path, allow_dirty=allow_dirty)
            if len(run.steps) and (run.steps["tp"].max() > 1) == shared:
                return run
    raise runs.RunError(
        f"no recorded decode steps of {gpu or 'any GPU'} in {root}; on a machine with that GPU, "
        f"run `tinygemm step --out-dir data/{runs.STEPS}`"
    )


def table(steps: pd.DataFrame, samples: pd.DataFrame, kernels: pd.DataFrame) -> pd.DataFrame:
    """One row per case that was timed, in measured order.

    steps, samples, kernels: tables with the columns of step_rows.Step, StepSample and StepKernel
    returns: case_id, model, host, backend, batch, context, tp, compiled and
        ms, tokens_per_s:        of a step (median), and of all its sequences
        speedup, low, high:      the FP16 library's step over it: median and middle 80 % of the rounds' ratios
        gb_per_s, of_copy:       bytes that a step must read over its time, and as a fraction of the measured copy
        product, attention, allreduce, rest: fractions of the profiled step;  kernels: launches per step
        memory_gb, rel_err, argmax_agreement: as recorded
    """
    timed = steps[steps["status"] == "ok"].set_index("case_id")
    us = samples.groupby("case_id")["step_us"].median().reindex(timed.index)
    ratios = (samples["fp16_us"] / samples["step_us"]).groupby(samples["case_id"])
    read = timed["weight_bytes"] + timed["lm_head_bytes"] + timed["kv_bytes"]
    out = timed[["model", "host", "backend", "batch", "context", "tp", "compiled"]].copy()
    out["ms"] = us / 1000
    out["tokens_per_s"] = timed["batch"] / us * 1e6
    for name, quantile in (("speedup", 0.5), ("low", 0.1), ("high", 0.9)):
        out[name] = ratios.quantile(quantile).reindex(timed.index)
    out["gb_per_s"] = read / us / 1000
    out["of_copy"] = out["gb_per_s"] / out["gb_per_s"].get(COPY, float("nan"))
    added = kernels.pivot_table(index="case_id", columns="kind", values="added_us", aggfunc="sum")
    shares = added.div(added.sum(axis=1), axis=0)
    for kind in ("product", "attention", "allreduce", "rest"):
        out[kind] = shares[kind].reindex(timed.index) if kind in shares else float("nan")
    out["kernels"] = kernels.groupby("case_id")["calls"].sum().reindex(timed.index)
    out["memory_gb"] = timed["memory_bytes"] / 1e9
    out[["rel_err", "argmax_agreement"]] = timed[["rel_err", "argmax_agreement"]]
    return out.drop(index=COPY, errors="ignore").reset_index()
