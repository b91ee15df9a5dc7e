"""Bootstrap intervals over rounds: how far a median, or a number made of two medians, would move in another run."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.report.base.cache import remembered

CONFIDENCE = 0.95
RESAMPLES = 999  # the ends of a 95 % interval then rest on about 25 resamples each
SEED = 0  # a report built twice shows the same intervals
BATCH = 20  # resamples at a time: 2,000 cases x 30 rounds x 20 are 10 MB


def median(samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """The median over the last axis; sorting many short rows is several times faster than np.median."""
    if axis != -1:
        raise ValueError(f"axis must be -1, got {axis}")
    rounds = samples.shape[-1]
    ordered = np.sort(samples, axis=-1)
    return (ordered[..., (rounds - 1) // 2] + ordered[..., rounds // 2]) / 2


def ratio_of_medians(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
    return median(left, axis) / median(right, axis)


def difference_of_medians(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
    return median(left, axis) - median(right, axis)


def mean_ratio(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
    """[cases, ..., rounds] twice -> [...]: ratios of medians over the rounds, their geometric mean over the cases."""
    return np.exp(np.log(ratio_of_medians(left, right, axis)).mean(axis=0))


def best_fp16_over(cublas: np.ndarray, ours: np.ndarray, int4: np.ndarray, axis: int = -1) -> np.ndarray:
    """Speedup over the faster of two FP16 kernels: ratio of medians."""
    return np.minimum(median(cublas, axis), median(ours, axis)) / median(int4, axis)


def selected_over_better(fused: np.ndarray, dequant: np.ndarray, selected: np.ndarray, axis: int = -1) -> np.ndarray:
    """The time of the selected path in units of the better of the two: ratio of medians."""
    return median(selected, axis) / np.minimum(median(fused, axis), median(dequant, axis))


def saved(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
    """The share of the time `left` that `right` saves; below zero it takes longer."""
    return 1 - median(right, axis) / median(left, axis)


def log_share(start: np.ndarray, middle: np.ndarray, end: np.ndarray, axis: int = -1) -> np.ndarray:
    """The part of a speedup start / end that its first factor, start / middle, makes up, in logarithms."""
    start, middle, end = (np.log(median(samples, axis)) for samples in (start, middle, end))
    return (start - middle) / (start - end)


@remembered
def bootstrap_interval(statistic, *samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile interval of `statistic`, rounds drawn with replacement.

    The same rounds are drawn for every case and operand, so what a whole round shares (a clock that moved) cancels in a
    ratio of two backends of that round.

    statistic: one of this module, or a change of it would not be noticed where the interval is remembered
    samples:   one array [cases, rounds] per operand of the statistic; column i was measured in round i
    returns:   low [cases], high [cases]; NaN where there are fewer than two rounds
    raises:    ValueError for a statistic of another module
    """
    return _interval(statistic, samples, paired=True)


@remembered
def independent_interval(statistic, *samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for operands that were timed apart, which may differ in rounds: each draws rounds of its own."""
    return _interval(statistic, samples, paired=False)


def _interval(statistic, samples: tuple[np.ndarray, ...], paired: bool) -> tuple[np.ndarray, np.ndarray]:
    if statistic.__module__ != __name__:
        raise ValueError(f"{statistic.__qualname__} must be a statistic of {__name__}, whose changes are noticed")
    if samples[0].size == 0 or min(part.shape[-1] for part in samples) < 2:
        shape = np.shape(statistic(*samples))
        return np.full(shape, np.nan), np.full(shape, np.nan)
    return interval_of(resample(statistic, *samples, paired=paired))


def resample(statistic, *samples: np.ndarray, paired: bool = True) -> np.ndarray:
    """The values of `statistic` in RESAMPLES other runs, along the last axis.

    samples: one array [..., rounds] per operand, of at least two rounds
    paired:  draw the same rounds for every operand; else each operand has rounds of its own
    """
    from scipy.stats import bootstrap  # half a second, not needed where the result is remembered

    result = bootstrap(
        samples, statistic, n_resamples=RESAMPLES, batch=BATCH, vectorized=True, paired=bool(paired), axis=-1,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return result.bootstrap_distribution


def interval_of(resamples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the 95 % percentile interval of resamples along the last axis."""
    return tuple(np.quantile(resamples, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=-1))


def sample_matrix(cases: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Latencies as [case_id, round]; raises ValueError where a case does not have the samples it claims."""
    matrix = samples[samples["case_id"].isin(cases["case_id"])].pivot(
        index="case_id", columns="sample", values="latency_us"
    )
    if (twice := cases.loc[cases["case_id"].duplicated(), "case_id"]).size:
        raise ValueError(f"{twice.iloc[0]} is listed twice in cases.csv")
    claimed = cases.set_index("case_id")["n_samples"]
    found = matrix.notna().sum(axis=1).reindex(claimed.index, fill_value=0)
    if (wrong := claimed[claimed != found]).size:
        case = wrong.index[0]
        raise ValueError(f"{case}: cases.csv says {wrong.iloc[0]} samples, samples.csv has {found[case]}")
    return matrix


def interval_table(frame: pd.DataFrame, matrix: pd.DataFrame, statistic, operands: list[str]) -> pd.DataFrame:
    """Add value, low, high to each row of `frame`, whose `operands` columns name rows of the sample matrix."""
    lengths = matrix.notna().sum(axis=1)
    rounds = pd.concat([frame[operand].map(lengths) for operand in operands], axis=1)
    if (uneven := rounds[rounds.nunique(axis=1) > 1]).size:
        names = " and ".join(frame.loc[uneven.index[0], operands])
        raise ValueError(f"{names} were not timed in the same rounds: {uneven.iloc[0].tolist()} samples")
    parts = []
    for n, rows in frame.groupby(rounds.iloc[:, 0] if len(frame) else [], sort=False):
        values = [matrix.loc[rows[operand]].iloc[:, : int(n)].to_numpy() for operand in operands]
        low, high = bootstrap_interval(statistic, *values)
        parts.append(rows.assign(value=statistic(*values), low=low, high=high))
    if not parts:
        return frame.assign(value=np.nan, low=np.nan, high=np.nan)
    return pd.concat(parts).sort_index()
