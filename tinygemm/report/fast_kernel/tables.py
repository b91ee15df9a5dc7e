"""The way to the fast kernel: the steps from the simple kernel to the tuned one, each with all those before it."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base import contrasts
from tinygemm.report.base.intervals import median
from tinygemm.report.base.tables import BASELINE, LAUNCH_CONFIG, SHAPE, origin
from tinygemm.report.peers.tables import OVERLAPPING, SERIAL

# backend -> what it adds to the one above it
STEPS = {
    "int4-static": "simple kernel",
    "int4-step-naive": "K split, flat loads",
    "int4-step-lop3": "lop3 dequantisation",
    "int4-step-early": "overlap",
    "int4-splitk": "one barrier",
    "int4": "better of two forms",
}
EARLY = tuple(STEPS)[3:]  # these start before the call before has finished; the others only then
EARLY_FROM = 9.0  # compute capability with programmatic dependent launch
BESIDE = {BASELINE: "fp16_us", OVERLAPPING: "reads_us", SERIAL: "reads_serial_us"}


def rungs(run) -> pd.DataFrame:
    """Every step of the ladder at every problem at which all of them were timed: one row per problem and step.

    returns: problem, M, K, N, step (0, 1, ...), backend, label (of STEPS), latency_us, _low, _high; factor = time of
             the step before / time of this one, with _low and _high (NaN at the first); same: the kernel of the step
             before in the same launch config, as the library selects it or the GPU has no dependent launch; fp16_us,
             reads_us and reads_serial_us (the weight-read bound, with overlap and without), NaN where not timed;
             of_reads = time of those reads that start as this step does / time of the step; gpu, run_id
    """
    cases = contrasts.timed(run)
    whole = contrasts.pairs(cases, {backend: (backend, "graph") for backend in STEPS}).sort_values(SHAPE)
    found = []
    for step, backend in enumerate(STEPS):
        before = whole[list(STEPS)[step - 1]] if step else None
        rows = whole[["problem", *SHAPE]].assign(step=step, backend=backend, label=STEPS[backend])
        found.append(rows.assign(case=whole[backend], before=before))
    rows = pd.concat(found, ignore_index=True).sort_values([*SHAPE, "step"], ignore_index=True)
    names = {"value": "latency_us", "low": "latency_us_low", "high": "latency_us_high"}
    rows = contrasts.contrast(run, rows, ["case"], median).rename(columns=names)
    later = rows["step"] > 0
    names = {"value": "factor", "low": "factor_low", "high": "factor_high"}
    factors = contrasts.contrast(run, rows.loc[later, ["case", "before"]], ["before", "case"]).rename(columns=names)
    rows = rows.merge(factors, on=["case", "before"], how="left", validate="one_to_one")
    configs = cases.set_index("case_id")[LAUNCH_CONFIG].map(str).agg("/".join, axis=1)
    same = (rows["backend"] == "int4") & (rows["case"].map(configs) == rows["before"].map(configs))
    if float(run.gpu["compute_capability"]) < EARLY_FROM:
        same |= rows["backend"] == "int4-step-early"
    rows = rows.assign(same=same)
    graphs = cases[cases["launch"] == "graph"]
    latency = contrasts.medians(run, graphs)
    for backend, name in BESIDE.items():
        beside = graphs[graphs["backend"] == backend].set_index("problem")["case_id"].map(latency)
        rows = rows.assign(**{name: rows["problem"].map(beside)})
    alike = rows["reads_us"].where(rows["backend"].isin(EARLY), rows["reads_serial_us"])
    return rows.drop(columns=["case", "before"]).assign(of_reads=alike / rows["latency_us"], **origin(run))


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `rungs` that are a step: neither the first kernel, nor the same one again."""
    return rows[(rows["step"] > 0) & ~rows["same"]]


def totals(rows: pd.DataFrame) -> pd.DataFrame:
    """The product of all steps, one row per problem.

    rows:    rungs(run)
    returns: problem, M, K, N, total = first time / last time, of_reads of the last step, passes (label of the first
             step that is faster than FP16; missing where none is, or FP16 was not timed)
    """
    found = []
    for _, of in rows.groupby("problem", sort=False):
        first, last = of.iloc[0], of.iloc[-1]
        faster = of.loc[of["latency_us"] < of["fp16_us"], "label"]
        found.append(last[["problem", *SHAPE]].to_dict() | {
            "total": first["latency_us"] / last["latency_us"],
            "of_reads": last["of_reads"],
            "passes": faster.iloc[0] if len(faster) else None,
        })  # fmt: skip
    columns = ["problem", *SHAPE, "total", "of_reads", "passes"]
    return pd.DataFrame(found, columns=columns)
