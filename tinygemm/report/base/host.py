"""The speed of the host while each group of a run was timed; an eager time on a slow host supports nothing."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.tables import SHAPE, only
from tinygemm.runs import Run

ALIKE = "int4-load-only"  # asks the same of the host at every shape, and hardly anything of the device
SLOW = 1.25  # times the median: the host was not what it was in most groups


def steadiness(table: pd.DataFrame) -> pd.DataFrame:
    """The eager time, in every group of a run, of a kernel whose work on the host is always alike.

    table:   cases with latency_us_p50, such as tables.report_table(run)
    returns: M, K, N, latency_us (from Python), ratio (to the median of all), slow; only where the device needs less
             than half of it, so that the host sets the time
    """
    rows = table[(table["backend"] == ALIKE) & (table["l2_state"] == "cold") & (table["status"] == "ok")]
    if "operands" in rows:
        rows = rows[rows["operands"] == "random"]
    sides = rows.pivot_table(index=SHAPE, columns="launch", values="latency_us_p50", aggfunc="median")
    sides = sides.reindex(columns=["graph", "eager"]).dropna().reset_index()
    sides = sides[sides["graph"] < sides["eager"] / 2].rename(columns={"eager": "latency_us"})
    ratio = sides["latency_us"] / sides["latency_us"].median()
    return sides.assign(ratio=ratio, slow=ratio > SLOW)[[*SHAPE, "latency_us", "ratio", "slow"]].reset_index(drop=True)


def slow_groups(table: pd.DataFrame) -> set[tuple[int, int, int]]:
    """(M, K, N) of the groups in which the host was slow."""
    rows = steadiness(table)
    return set(rows.loc[rows["slow"], SHAPE].itertuples(index=False, name=None))


def steady(table: pd.DataFrame) -> pd.DataFrame:
    """The cases without the times from Python of slow groups."""
    return table[_keep(table, slow_groups(table))]


def steady_run(run: Run) -> Run:
    """The run without the times from Python of slow groups; do this before its suites are taken apart."""
    alike = run.cases[run.cases["backend"] == ALIKE]
    samples = run.samples[run.samples["case_id"].isin(alike["case_id"])]
    medians = samples.groupby("case_id")["latency_us"].median()
    return only(run, _keep(run.cases, slow_groups(alike.assign(latency_us_p50=alike["case_id"].map(medians)))))


def _keep(cases: pd.DataFrame, slow: set) -> pd.Series:
    return (cases["launch"] != "eager") | ~pd.MultiIndex.from_frame(cases[SHAPE]).isin(list(slow) or [(0, 0, 0)])
