"""The size of every error of the method: the same calls timed in other ways, and the same cases in another run."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from tinygemm.backends import BOUND, CEILING, PART, PEER, of_family
from tinygemm.digest import same_code
from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base.contrasts import compare, geometric_mean, primary_cases, timed_cases
from tinygemm.report.base.host import steady_run
from tinygemm.report.base.intervals import sample_matrix
from tinygemm.report.base.tables import (
    BASELINE,
    GROUP_SIZE,
    LAUNCH_CONFIG,
    SHAPE,
    at_shapes,
    problem_of,
    summarize,
    usual,
)
from tinygemm.report.base.words import shape_names
from tinygemm.runs import Run, load_run, recorded_runs

BACKENDS = (BASELINE, "int4")
# the primary number is a graph with no recent PDL launch, cold, random; each way changes one of these, do_bench two
WAYS = {
    "hot L2": {"l2_state": "hot"},
    "warm L2": {"l2_state": "warm"},
    "zeros": {"operands": "zeros"},
    "do_bench": {"launch": "do_bench"},
    "eager": {"launch": "eager"},
    "primed": {"launch": "primed"},
}
PRIMARY = {"launch": "graph", "l2_state": "cold", "operands": "random"}
# code that this project does not change from run to run: libraries, and the references
UNCHANGED = (BASELINE, *of_family(PEER, CEILING))
WITHOUT_X = of_family(PART, BOUND)
# Two medians of one distribution differ by less than the half-width of one's 95 % interval with this probability:
# their difference has sqrt(2) times the standard error, and P(|z| < 1.96 / sqrt(2)) = 0.834.
EXPECTED_INSIDE = 0.834
FEWEST_SAMPLES = 8  # the bootstrap interval of a median of fewer is too narrow to be tested
CONFIG = [*LAUNCH_CONFIG, "config_source"]


def errors(run, M: int = 1) -> pd.DataFrame:
    """The same call timed in another way over the primary number, at the projections of the earlier study.

    returns: way, backend, M, K, N, left_us (the other way), right_us (primary), value = left / right, low, high,
             left_id, right_id; no rows for a way that was not timed, or from Python on a slow host
    """
    cases = timed_cases(steady_run(run).cases)
    shapes = at_shapes(cases, STUDY_SHAPES)
    cases = cases[shapes & (cases["M"] == M) & cases["backend"].isin(BACKENDS)]
    cases = cases[cases["group_size"].isin((0, GROUP_SIZE))].assign(problem=problem_of(cases))
    primary = primary_cases(cases)
    parts = []
    for way, change in WAYS.items():
        wanted = PRIMARY | change
        mine = cases[(cases[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        parts.append(compare(run, mine, primary, ["backend", "problem", *SHAPE]).assign(way=way))
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def mean_errors(run, rows: pd.DataFrame) -> pd.DataFrame:
    """The geometric mean of each error over the shapes: way, backend, value, low, high, n (shapes).

    rows: errors(run)
    """
    matrix = sample_matrix(run.cases[run.cases["case_id"].isin({*rows["left_id"], *rows["right_id"]})], run.samples)
    found = [
        {"way": way, "backend": backend, "n": len(group)} | geometric_mean(group, matrix)
        for (way, backend), group in rows.groupby(["way", "backend"], sort=False)
    ]
    return pd.DataFrame(found, columns=["way", "backend", "n", "value", "low", "high"])


def halves(run) -> pd.DataFrame:
    """The second half of the samples of every primary case, if it has enough, over the first: how steady the run was.

    returns: the columns of `agreement`
    """
    cases = primary_cases(run.cases)
    cases = cases[cases["n_samples"] >= 2 * FEWEST_SAMPLES]
    position = run.samples.groupby("case_id")["sample"].transform("rank", method="first")
    size = run.samples.groupby("case_id")["sample"].transform("size")
    parts = [run.samples[position <= size // 2], run.samples[position > size - size // 2]]
    sides = [_summary(cases.assign(n_samples=cases["n_samples"] // 2), _renumbered(part)) for part in parts]
    return _joined(*sides).assign(unchanged=True)


def beside_others(run) -> pd.DataFrame:
    """One kernel timed in several groups of backends: the largest time over the smallest, for kernels that read no x
    and so do the same work at every M.

    returns: backend, K, N, n (groups), right_us and left_us (least and most), right_contenders and left_contenders
             (timed in these groups), value = left / right, low, high (from the intervals of both; that they are the
             extremes of n is not in them), apart_us = left - right
    """
    cases = primary_cases(run.cases)
    contenders = group_sizes(run)
    table = _summary(cases[cases["backend"].isin(WITHOUT_X)], run.samples)
    rows = []
    keys = ["backend", "K", "N", "group_size", _config(table, LAUNCH_CONFIG)]
    for (backend, K, N, *_), same in table.groupby(keys, sort=False):
        if len(same) > 1:
            least, most = (same.loc[getattr(same["latency_us_p50"], end)()] for end in ("idxmin", "idxmax"))
            rows.append({
                "backend": backend, "K": K, "N": N, "n": len(same),
                "right_us": least["latency_us_p50"], "left_us": most["latency_us_p50"],
                "right_contenders": contenders[least["problem"]], "left_contenders": contenders[most["problem"]],
                "low": most["latency_us_low"] / least["latency_us_high"],
                "high": most["latency_us_high"] / least["latency_us_low"],
            })  # fmt: skip
    sides = [f"{side}_{what}" for what in ("us", "contenders") for side in ("right", "left")]
    rows = pd.DataFrame(rows, columns=["backend", "K", "N", "n", *sides, "low", "high"])
    return rows.assign(value=rows["left_us"] / rows["right_us"], apart_us=rows["left_us"] - rows["right_us"])


def primed_speedups(table: pd.DataFrame, M: int = 1) -> pd.DataFrame:
    """The speedup of the tuned kernel over FP16 in both states, at the projections of the earlier study.

    table:   tables.report_table(run)
    returns: K, N, graph, primed; no rows where the run did not time graphs after a dependent launch
    """
    rows = usual(table)
    rows = rows[(rows["backend"] == "int4") & (rows["M"] == M) & (rows["l2_state"] == "cold")]
    rows = rows[at_shapes(rows, STUDY_SHAPES) & rows["launch"].isin(("graph", "primed"))]
    wide = rows.pivot_table(index=["K", "N"], columns="launch", values="speedup_vs_fp16")
    return wide.reindex(columns=["graph", "primed"]).dropna().rename_axis(columns=None).reset_index()


def primed_words(table: pd.DataFrame) -> str:
    """The speedups over FP16 in both states, in a sentence; empty where the run did not time both.

    table: tables.report_table(run)
    """
    rows = primed_speedups(table)
    if rows.empty:
        return ""
    least = shape_names(rows.loc[[rows["primed"].idxmin()]]).iloc[0]
    return (
        f"The tuned kernel over FP16 by cuBLAS, M = 1, {len(rows)} projections. In a fresh process the speedup is "
        f"{rows['graph'].min():.2f}× to {rows['graph'].max():.2f}×. After a kernel with programmatic dependent launch "
        f"it is {rows['primed'].min():.2f}× to {rows['primed'].max():.2f}×, least at {least}."
    )


def group_sizes(run: Run) -> pd.Series:
    """The number of backends that were timed in each group of the primary mode, by problem."""
    return problem_of(primary_cases(run.cases)).value_counts()


def orders(run: Run) -> pd.DataFrame:
    """The effect of the order of a round: in a group of n backends, rounds have n orders, and take turns.

    returns: backend, problem, contenders, and how far the medians of n kinds of samples lie apart, largest over
             smallest: by_order (a kind is an order of the round), by_time (a stretch of consecutive rounds: what chance
             and drift make of as many samples); cold graphs, groups of which every kind has two samples
    """
    cases = primary_cases(run.cases)
    sizes = problem_of(cases).map(group_sizes(run))
    cases = cases.assign(problem=problem_of(cases), contenders=sizes)[["case_id", "backend", "problem", "contenders"]]
    samples = run.samples.merge(cases[cases["contenders"] > 1], on="case_id")
    count = samples.groupby("case_id")["sample"].transform("size")
    samples = samples[count >= 2 * samples["contenders"]]
    kinds = {
        "by_order": samples["sample"] % samples["contenders"],
        "by_time": samples["sample"] * samples["contenders"] // count,
    }
    for name, kind in kinds.items():
        medians = samples.groupby(["case_id", kind.rename("kind")])["latency_us"].median().groupby("case_id")
        cases = cases.merge((medians.max() / medians.min()).rename(name), left_on="case_id", right_index=True)
    return cases.drop(columns="case_id").reset_index(drop=True)


def older_runs(run: Run) -> list[Run]:
    """The runs of the same GPU that were recorded before this one, in the same folder, newest first."""
    folders = recorded_runs(run.gpu["key"], run.path.resolve().parent.parent)
    earlier = [path for path in folders if path.name < run.run_id and not path.name.endswith("-dirty")]
    return [load_run(path) for path in reversed(earlier)]


def agreement(newer: Run, older: Run) -> pd.DataFrame:
    """Every case that two runs share, the newer one over the older one.

    returns: case_id, backend, problem, M, K, N, launch, l2_state, new_us, old_us, each with _low and _high, ratio =
             new / old, inside (0, 0.5 or 1: how many of the two medians lie in the interval of the other), overlap (the
             intervals do), unchanged (the same code in the same launch config or variant, timed in a graph in the same
             way: called one by one, the host is part of what is timed, and before schema 3 it depended on what was
             launched before)
    """
    rows = _joined(*(_summary(timed_cases(run.cases), run.samples) for run in (older, newer)))
    unchanged = rows["backend"].isin(UNCHANGED) | same_code(older.provenance, newer.provenance)
    same_way = (rows["launch"] == "graph") & (older.settled == newer.settled)
    return rows.assign(unchanged=unchanged & same_way & rows["same_config"])


def spread(rows: pd.DataFrame) -> dict[str, float]:
    """The difference of two runs: n, inside and overlap (fractions), typical and worst (relative differences: median
    and 95th percentile), shift (the median of new / old, less 1), beyond: the relative standard deviation that each
    side would need on top of the scatter of its samples to explain the differences, and inside_error: the standard
    error of `inside`, whose cases are not independent where they share a problem.

    rows: `agreement` or `halves`; all NaN without rows
    """
    names = ("inside", "overlap", "typical", "worst", "shift", "beyond", "inside_error")
    if rows.empty:
        return {"n": 0.0} | dict.fromkeys(names, float("nan"))
    log = np.log(rows["ratio"])
    stated = sum(((rows[f"{side}_high"] - rows[f"{side}_low"]) / (2 * 1.96 * rows[f"{side}_us"])) ** 2
                 for side in ("new", "old"))  # fmt: skip
    # robust: a few cases that ran another algorithm must not speak for all
    observed = (1.4826 * (log - log.median()).abs().median()) ** 2
    difference = (rows["ratio"] - 1).abs()
    of_problems = (rows["inside"] - rows["inside"].mean()).groupby(rows["problem"]).sum()
    values = (
        rows["inside"].mean(), rows["overlap"].mean(), difference.median(), difference.quantile(0.95),
        np.exp(log.median()) - 1, np.sqrt(max(0.0, observed - stated.median()) / 2),
        np.sqrt((of_problems**2).sum()) / len(rows),
    )  # fmt: skip
    return {"n": float(len(rows))} | {name: float(value) for name, value in zip(names, values, strict=True)}


def wide(table: pd.DataFrame, M: int = 1) -> tuple[int, int]:
    """The wide projection of the study as (K, N), or the largest weight that was timed at M."""
    rows = table[(table["M"] == M) & (table["backend"] == BASELINE)]
    shapes = list(zip(rows["K"], rows["N"], strict=True))
    return STUDY_SHAPES[2] if STUDY_SHAPES[2] in shapes else max(shapes, key=math.prod)


def clocks(run) -> dict[str, float]:
    """The GPU while timing: sm_low, sm_high (MHz), power_low, power_high (W), temp_low, temp_high (degrees C),
    max_sm (MHz, what it may do); NaN where it was not read."""
    timed = run.cases[run.cases["status"] == "ok"]
    columns = {"sm": "sm_clock_mhz", "power": "power_w", "temp": "temp_c"}
    ends = {f"{name}_{end}": float(getattr(timed[column], kind)())
            for name, column in columns.items() for end, kind in (("low", "min"), ("high", "max"))}  # fmt: skip
    return ends | {"max_sm": float(run.gpu.get("max_sm_clock_mhz") or float("nan"))}


def _summary(cases: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    return summarize(cases, samples[samples["case_id"].isin(cases["case_id"])])


def _renumbered(samples: pd.DataFrame) -> pd.DataFrame:
    return samples.assign(sample=samples.groupby("case_id").cumcount())


def _config(table: pd.DataFrame, columns=CONFIG) -> pd.Series:
    """The launch config of each case, or the variant that won, as one word."""
    return table[columns].apply(lambda row: "/".join(map(str, row)), axis=1)


def _joined(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    names = ["latency_us_p50", "latency_us_low", "latency_us_high"]
    keys = ["case_id", "backend", "problem", *SHAPE, "launch", "l2_state"]
    sides = [
        table[[*keys, *names]]
        .rename(columns=dict(zip(names, (f"{s}_us", f"{s}_low", f"{s}_high"), strict=True)))
        .assign(**{f"{s}_config": _config(table)})
        for s, table in (("old", old), ("new", new))
    ]
    both = sides[0].merge(sides[1], on=keys, validate="one_to_one")
    medians = [
        both[f"{name}_us"].between(both[f"{other}_low"], both[f"{other}_high"])
        for name, other in (("new", "old"), ("old", "new"))
    ]
    inside = (medians[0].astype(float) + medians[1]) / 2
    overlap = (both["new_low"] <= both["old_high"]) & (both["old_low"] <= both["new_high"])
    same_config = both["new_config"] == both["old_config"]
    return both.assign(ratio=both["new_us"] / both["old_us"], inside=inside, overlap=overlap, same_config=same_config)
