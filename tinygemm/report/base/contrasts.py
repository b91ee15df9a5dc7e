"""Comparisons between any cases of a run, with the interval that fits how they were timed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.report.base.host import steady_run
from tinygemm.report.base.intervals import (
    bootstrap_interval,
    independent_interval,
    mean_ratio,
    ratio_of_medians,
    sample_matrix,
)
from tinygemm.report.base.tables import GROUP, SHAPE, in_mode, problem_of

# --- which cases --------------------------------------------------------------------------------------------------


def timed_cases(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases that have samples."""
    return cases[cases["status"] == "ok"]


def primary_cases(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases of the primary number: timed as a CUDA graph, L2 cold, random data."""
    timed = timed_cases(cases)
    return timed[in_mode(timed)]


def timed(run, M: int | None = None) -> pd.DataFrame:
    """The cases of a run that were timed on random operands with a cold L2, and the problem of each; without the times
    from Python of groups in which the host was slow.

    M: only these tokens; None for all
    """
    cases = timed_cases(steady_run(run).cases)
    cases = cases[(cases["l2_state"] == "cold") & (cases["operands"] == "random")]
    return (cases if M is None else cases[cases["M"] == M]).assign(problem=problem_of(cases))


def pairs(cases: pd.DataFrame, ends: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Cases that belong together: one row per problem for which every end was timed.

    cases:   timed(run)
    ends:    name of a column -> (backend, launch)
    returns: problem, M, K, N, and the case id of each end
    """
    frame = cases[["problem", *SHAPE]].drop_duplicates("problem")
    for name, (backend, launch) in ends.items():
        end = cases.loc[(cases["backend"] == backend) & (cases["launch"] == launch), ["problem", "case_id"]]
        frame = frame.merge(end.rename(columns={"case_id": name}), on="problem", validate="one_to_one")
    return frame


# --- what they say ------------------------------------------------------------------------------------------------


def changes(run, cases: pd.DataFrame, ends: dict[str, tuple], name: str, statistic=ratio_of_medians) -> pd.DataFrame:
    """The effect of each of several changes on the time, one row per problem and change.

    cases:   timed(run)
    ends:    change -> (before, after), each (backend, launch)
    name:    of the column that holds the change
    returns: problem, M, K, N, <name>, value, low, high, left_us, right_us (medians before and after); no row for a
             change of which an end was not timed
    """
    found = [pairs(cases, {"left": left, "right": right}).assign(**{name: change})
             for change, (left, right) in ends.items()]  # fmt: skip
    frame = contrast(run, pd.concat(found, ignore_index=True), ["left", "right"], statistic)
    latency = medians(run, cases)
    frame = frame.assign(left_us=frame["left"].map(latency), right_us=frame["right"].map(latency))
    return frame.drop(columns=["left", "right"])


def compare(run, left: pd.DataFrame, right: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """left / right in latency wherever both have a case with equal columns `on`.

    left, right: rows of run.cases, each case at most once per `on`
    returns:     the columns `on`, left_id, right_id, then value, low, high, left_us, right_us (medians)
    """
    sides = [rows[[*on, "case_id"]].rename(columns={"case_id": f"{name}_id"})
             for name, rows in (("left", left), ("right", right))]  # fmt: skip
    frame = sides[0].merge(sides[1], on=on, validate="one_to_one")
    frame = contrast(run, frame, ["left_id", "right_id"])
    latency = medians(run, pd.concat([left, right]))
    return frame.assign(left_us=frame["left_id"].map(latency), right_us=frame["right_id"].map(latency))


def medians(run, cases: pd.DataFrame) -> pd.Series:
    """The median latency of each case in us, by case id."""
    return run.samples[run.samples["case_id"].isin(cases["case_id"])].groupby("case_id")["latency_us"].median()


def contrast(run, frame: pd.DataFrame, operands: list[str], statistic=ratio_of_medians) -> pd.DataFrame:
    """Add value, low, high: a statistic of the samples of the cases that the `operands` columns of `frame` name.

    Cases that were timed in the same rounds are resampled round by round, so that what a whole round shares cancels.
    Cases of different groups (a graph and an eager call) are resampled independently.

    returns: frame with a fresh index and the three columns; NaN ends where a case has fewer than two samples
    """
    frame = frame.reset_index(drop=True).assign(value=np.nan, low=np.nan, high=np.nan)
    if frame.empty:
        return frame
    named = run.cases[run.cases["case_id"].isin(pd.unique(frame[operands].to_numpy().ravel()))]
    matrix = sample_matrix(named, run.samples)
    groups = named.assign(problem=problem_of(named)).set_index("case_id")
    groups = groups.groupby([*GROUP, "n_samples"], dropna=False).ngroup()
    lengths = matrix.notna().sum(axis=1)
    rounds = [frame[name].map(lengths).rename(name) for name in operands]
    paired = pd.concat([frame[name].map(groups) for name in operands], axis=1).nunique(axis=1) == 1
    for (together, *lengths), rows in frame.groupby([paired, *rounds], sort=False):
        samples = [
            matrix.loc[rows[name]].iloc[:, : int(n)].to_numpy() for name, n in zip(operands, lengths, strict=True)
        ]
        low, high = (bootstrap_interval if together else independent_interval)(statistic, *samples)
        frame.loc[rows.index, ["value", "low", "high"]] = np.transpose([statistic(*samples), low, high])
    return frame


def geometric_mean(pairs: pd.DataFrame, matrix: pd.DataFrame) -> dict[str, float]:
    """The geometric mean of left / right over all pairs, with its interval; as many rounds as every case has.

    pairs:   left_id, right_id: rows of `matrix`, which is intervals.sample_matrix
    returns: value, low and high; NaN without pairs
    """
    if pairs.empty:
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    ids = pd.concat([pairs["left_id"], pairs["right_id"]])
    rounds = int(matrix.notna().sum(axis=1).loc[ids].min())
    left, right = (matrix.loc[pairs[side]].iloc[:, :rounds].to_numpy() for side in ("left_id", "right_id"))
    low, high = bootstrap_interval(mean_ratio, left, right)
    return {"value": float(mean_ratio(left, right)), "low": float(low), "high": float(high)}
