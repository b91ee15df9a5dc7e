"""Comparisons between any cases of a run, with the interval that fits how they were timed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.report.base.host import steady_run
from tinygemm.report.base.intervals import RESAMPLES, interval_of, median, ratio_of_medians, resample, sample_matrix
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
    """Add value, low, high: a statistic of the samples of the cases that the `operands` columns of `frame` name."""
    frame = frame.reset_index(drop=True)
    values, resamples = resampled(run, frame, operands, statistic)
    low, high = interval_of(resamples) if len(frame) else (values, values)
    return frame.assign(value=values, low=low, high=high)


def resampled(run, frame: pd.DataFrame, operands: list[str], statistic=ratio_of_medians) -> tuple:
    """A statistic for each row of `frame`, and what it would have been in RESAMPLES other runs.

    Cases that were timed in the same rounds are resampled round by round, so that what a whole round shares cancels.
    Cases of different groups (a graph and an eager call) are resampled independently.

    returns: values [rows], resamples [rows, RESAMPLES]; NaN resamples where a case has fewer than two samples
    """
    values, draws = np.full(len(frame), np.nan), np.full((len(frame), RESAMPLES), np.nan)
    if frame.empty:
        return values, draws
    named = run.cases[run.cases["case_id"].isin(pd.unique(frame[operands].to_numpy().ravel()))]
    matrix = sample_matrix(named, run.samples)
    groups = named.assign(problem=problem_of(named)).set_index("case_id")
    groups = groups[[*GROUP, "n_samples"]].astype(str).agg("/".join, axis=1)
    rounds = pd.concat([frame[name].map(matrix.notna().sum(axis=1)) for name in operands], axis=1, keys=operands)
    paired = pd.concat([frame[name].map(groups) for name in operands], axis=1).nunique(axis=1) == 1
    for (together, *lengths), rows in frame.groupby([paired, *(rounds[name] for name in operands)], sort=False):
        samples = [
            matrix.loc[rows[name]].iloc[:, : int(n)].to_numpy() for name, n in zip(operands, lengths, strict=True)
        ]
        values[rows.index] = statistic(*samples)
        if min(lengths) > 1:
            draws[rows.index] = resample(statistic, *samples, paired=together)
    return values, draws


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
    low, high = interval_of(resample(_mean_ratio, left, right)) if rounds > 1 else (np.nan, np.nan)
    return {"value": float(_mean_ratio(left, right)), "low": float(low), "high": float(high)}


# --- statistics beside the ratio of two medians -------------------------------------------------------------------


def best_fp16_over(cublas: np.ndarray, ours: np.ndarray, int4: np.ndarray, axis: int = -1) -> np.ndarray:
    """Speedup over the faster of two FP16 kernels: ratio of medians."""
    return np.minimum(median(cublas, axis), median(ours, axis)) / median(int4, axis)


def log_share(start: np.ndarray, middle: np.ndarray, end: np.ndarray, axis: int = -1) -> np.ndarray:
    """The part of a speedup start / end that its first factor, start / middle, makes up, in logarithms."""
    start, middle, end = (np.log(median(samples, axis)) for samples in (start, middle, end))
    return (start - middle) / (start - end)


def _mean_ratio(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
    """[cases, ..., rounds] twice -> [...]: medians over the rounds, then the geometric mean over the cases."""
    return np.exp(np.log(ratio_of_medians(left, right, axis)).mean(axis=0))
