"""Comparisons between any cases of a run, with the interval that fits how they were timed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from tinygemm.report.intervals import BATCH, CONFIDENCE, RESAMPLES, SEED, median, ratio_of_medians, sample_matrix
from tinygemm.report.tables import GROUP, problem_of

ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


def timed(run, M: int | None = None) -> pd.DataFrame:
    """The cases of a run that were timed on random operands with a cold L2, and the problem of each.

    M: only these tokens; None for all
    """
    cases = run.cases[(run.cases["status"] == "ok") & (run.cases["l2_state"] == "cold")]
    cases = cases[cases["operands"] == "random"]
    return (cases if M is None else cases[cases["M"] == M]).assign(problem=problem_of(cases))


def pairs(cases: pd.DataFrame, ends: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Cases that belong together: one row per problem for which every end was timed.

    cases:   timed(run)
    ends:    name of a column -> (backend, launch)
    returns: problem, M, K, N, and the case id of each end
    """
    frame = cases[["problem", "M", "K", "N"]].drop_duplicates("problem")
    for name, (backend, launch) in ends.items():
        end = cases.loc[(cases["backend"] == backend) & (cases["launch"] == launch), ["problem", "case_id"]]
        frame = frame.merge(end.rename(columns={"case_id": name}), on="problem", validate="one_to_one")
    return frame


def medians(run, cases: pd.DataFrame) -> pd.Series:
    """The median latency of each case in us, by case id."""
    return run.samples[run.samples["case_id"].isin(cases["case_id"])].groupby("case_id")["latency_us"].median()


def contrast(run, frame: pd.DataFrame, operands: list[str], statistic=ratio_of_medians) -> pd.DataFrame:
    """Add value, low, high: a statistic of the samples of the cases that the `operands` columns of `frame` name."""
    frame = frame.reset_index(drop=True)
    values, resamples = resampled(run, frame, operands, statistic)
    low, high = np.quantile(resamples, ENDS, axis=1) if len(frame) else (values, values)
    return frame.assign(value=values, low=low, high=high)


def resampled(run, frame: pd.DataFrame, operands: list[str], statistic=ratio_of_medians) -> tuple:
    """A statistic for each row of `frame`, and what it would have been in RESAMPLES other runs.

    Cases that were timed in the same rounds are resampled round by round, so that what a whole round shares cancels;
    cases of different groups (a graph and an eager call) were not, and are resampled independently.

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
            draws[rows.index] = _bootstrap(statistic, samples, together)
    return values, draws


def best_fp16_over(cublas: np.ndarray, twin: np.ndarray, int4: np.ndarray, axis: int = -1) -> np.ndarray:
    """Speedup over the faster of two FP16 kernels: ratio of medians."""
    return np.minimum(median(cublas, axis), median(twin, axis)) / median(int4, axis)


def log_share(start: np.ndarray, middle: np.ndarray, end: np.ndarray, axis: int = -1) -> np.ndarray:
    """The part of a speedup start / end that its first factor, start / middle, makes up, in logarithms."""
    start, middle, end = (np.log(median(samples, axis)) for samples in (start, middle, end))
    return (start - middle) / (start - end)


def _bootstrap(statistic, samples: list[np.ndarray], paired: bool) -> np.ndarray:
    result = bootstrap(
        samples, statistic, n_resamples=RESAMPLES, batch=BATCH, vectorized=True, paired=bool(paired), axis=-1,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return result.bootstrap_distribution
