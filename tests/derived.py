"""Runs with cases that `synthetic` cannot plant: copies of its cases under another name, made faster or slower."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from tinygemm.runs import Counter, Run


def also(run: Run, chosen: pd.Series, factor: float = 1.0, keep: int | None = None, **changes) -> Run:
    """The run with copies of some of its primary cases.

    chosen:  one boolean per row of run.cases
    factor:  multiplies every sample, with a scatter of its own of 0.1 %
    keep:    how many samples a copy has; None: as many as the original
    changes: columns of cases.csv that differ: backend, launch, l2_state, operands, group_size, ...
    """
    cases = run.cases if "operands" in run.cases else run.cases.assign(operands="random")
    old = cases[chosen]
    new = old.assign(**changes)
    new["case_id"] = [_identity(row) for _, row in new.iterrows()]
    names = dict(zip(old["case_id"], new["case_id"], strict=True))
    samples = run.samples[run.samples["case_id"].isin(names)]
    if keep is not None:
        samples = samples[samples["sample"] < keep]
        new = new.assign(n_samples=keep)
    scatter = 1 + 1e-3 * np.random.default_rng(len(run.cases)).standard_normal(len(samples))
    samples = samples.assign(case_id=samples["case_id"].map(names), latency_us=samples["latency_us"] * factor * scatter)
    return dataclasses.replace(
        run,
        cases=pd.concat([cases, new], ignore_index=True),
        samples=pd.concat([run.samples, samples], ignore_index=True),
    )


def slowed(run: Run, chosen: pd.Series, factor: float) -> Run:
    """The run in which some of its cases took longer."""
    mine = run.samples["case_id"].isin(run.cases.loc[chosen, "case_id"])
    latency = run.samples["latency_us"].where(~mine, factor * run.samples["latency_us"])
    return dataclasses.replace(run, samples=run.samples.assign(latency_us=latency))


def primary(run: Run, backend: str) -> pd.Series:
    """Which cases are those of a backend as a graph with a cold L2."""
    cases = run.cases
    operands = cases.get("operands", pd.Series("random", cases.index))
    at = (cases["launch"] == "graph") & (cases["l2_state"] == "cold") & (operands == "random")
    return at & (cases["backend"] == backend)


def counted(run: Run, metrics: dict[str, dict[str, tuple[float, str]]]) -> Run:
    """The run with more metrics in its counters: backend -> metric -> (value of each kernel, unit)."""
    kernels = run.counters.drop_duplicates(["case_id", "launch"])
    rows = [
        Counter(row["case_id"], row["launch"], row["call"], row["kernel_name"], metric, *value)
        for _, row in kernels.iterrows()
        for metric, value in metrics.get(row["case_id"].split("/")[0], {}).items()
    ]
    more = pd.DataFrame(rows, columns=run.counters.columns)
    return dataclasses.replace(run, counters=pd.concat([run.counters, more], ignore_index=True))


def _identity(row: pd.Series) -> str:
    problem = row["case_id"].split("/")[1]
    if row["M"] > 0 and row["group_size"] != 0:
        problem = f"M{row['M']}-K{row['K']}-N{row['N']}-g{row['group_size']}"
    zeros = "-zeros" if row.get("operands", "random") == "zeros" else ""
    return f"{row['backend']}/{problem}/{row['launch']}-{row['l2_state']}{zeros}"
