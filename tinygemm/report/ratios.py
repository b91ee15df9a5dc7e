"""Ratios of two timed cases with their 95 % intervals, whether or not both were timed in the same rounds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from tinygemm.report.intervals import BATCH, CONFIDENCE, RESAMPLES, SEED, median, ratio_of_medians, sample_matrix
from tinygemm.report.tables import in_mode

GROUP_SIZE = 128  # of the decode cases; other sizes are a suite of their own


def timed_cases(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases that have samples."""
    return cases[cases["status"] == "ok"]


def primary_cases(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases of the primary number: timed as a CUDA graph, L2 cold, random data."""
    timed = timed_cases(cases)
    return timed[in_mode(timed)]


def usual(cases: pd.DataFrame) -> pd.DataFrame:
    """The timed cases on random data, with a scale per 128 weights where they are quantised: one per contender, problem
    and mode, so that a table by K, N and M has one number in each place."""
    timed = timed_cases(cases)
    return timed[(timed["operands"] == "random") & timed["group_size"].isin((0, GROUP_SIZE))]


def compare(left: pd.DataFrame, right: pd.DataFrame, samples: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """left / right in latency wherever both have a case with equal columns `on`.

    left, right: rows of cases.csv, each case at most once per `on`
    samples:     samples.csv, of one run or of several with distinct case_ids
    returns:     the columns `on`, left_id, right_id, then left_us, right_us (medians), value, low, high
    """
    sides = [rows[[*on, "case_id"]].rename(columns={"case_id": f"{name}_id"})
             for name, rows in (("left", left), ("right", right))]  # fmt: skip
    pairs = sides[0].merge(sides[1], on=on, validate="one_to_one")
    ids = set(pairs["left_id"]) | set(pairs["right_id"])
    both = pd.concat([left, right]).drop_duplicates("case_id")
    return ratios(pairs, sample_matrix(both[both["case_id"].isin(ids)], samples))


def ratios(pairs: pd.DataFrame, matrix: pd.DataFrame) -> pd.DataFrame:
    """Add left_us, right_us, value = left_us / right_us, low and high to each pair.

    Rounds are drawn together for two contenders of one group, so that what they share cancels; for any other two they
    are drawn apart.

    pairs:  left_id, right_id: rows of `matrix`, which is intervals.sample_matrix
    """
    if pairs.empty:
        return pairs.assign(left_us=np.nan, right_us=np.nan, value=np.nan, low=np.nan, high=np.nan)
    lengths = matrix.notna().sum(axis=1)
    sizes = [pairs["left_id"].map(lengths), pairs["right_id"].map(lengths)]
    together = (_group(pairs["left_id"]) == _group(pairs["right_id"])) & (sizes[0] == sizes[1])
    parts = []
    for (n_left, n_right, same), rows in pairs.groupby([sizes[0], sizes[1], together], sort=False):
        left = matrix.loc[rows["left_id"]].iloc[:, : int(n_left)].to_numpy()
        right = matrix.loc[rows["right_id"]].iloc[:, : int(n_right)].to_numpy()
        low, high = _interval(ratio_of_medians, left, right, paired=bool(same))
        medians = {"left_us": median(left), "right_us": median(right)}
        parts.append(rows.assign(**medians, value=ratio_of_medians(left, right), low=low, high=high))
    return pd.concat(parts).sort_index()


def geometric_mean(pairs: pd.DataFrame, matrix: pd.DataFrame) -> dict[str, float]:
    """The geometric mean of left / right over all pairs, with its interval; as many rounds as every case has.

    pairs, matrix: as for `ratios`; value, low and high are NaN without pairs
    """
    if pairs.empty:
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    ids = pd.concat([pairs["left_id"], pairs["right_id"]])
    rounds = int(matrix.notna().sum(axis=1).loc[ids].min())
    left, right = (matrix.loc[pairs[side]].iloc[:, :rounds].to_numpy() for side in ("left_id", "right_id"))
    low, high = _interval(_mean_ratio, left, right, paired=True)
    return {"value": float(_mean_ratio(left, right)), "low": float(low), "high": float(high)}


def _mean_ratio(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
    """[cases, ..., rounds] twice -> [...]: medians over the rounds, then the geometric mean over the cases."""
    return np.exp(np.log(ratio_of_medians(left, right, axis)).mean(axis=0))


def _interval(statistic, left: np.ndarray, right: np.ndarray, paired: bool):
    if min(left.shape[-1], right.shape[-1]) < 2:
        return np.nan, np.nan
    interval = bootstrap(
        (left, right), statistic, n_resamples=RESAMPLES, batch=BATCH, vectorized=True, paired=paired, axis=-1,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(SEED),
    ).confidence_interval  # fmt: skip
    return interval.low, interval.high


def _group(case_ids: pd.Series) -> pd.Series:
    """What contenders that were timed in the same rounds share: all of the id but the backend."""
    return case_ids.str.split("/", n=1).str[1]
