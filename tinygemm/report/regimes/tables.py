"""Speedups over a grid of K and N, and the number of tokens at which the fused kernel stops paying."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import contrasts
from tinygemm.report.base.intervals import best_fp16_over, selected_over_better
from tinygemm.report.base.tables import BASELINE, at_shapes, in_mode, origin

KERNELS = ("int4-static", "int4")
AGAINST = ("cuBLAS", "best FP16")  # the faster of cuBLAS and our FP16 kernel
FEWEST = 3  # values of K and of N below which a map is no map
CONTENDERS = (BASELINE, "dequant-fp16", "int4-fused", "int4")
LEEWAY = 1.10  # how much slower than the better of two paths the selected one may be


def speedups(run) -> pd.DataFrame:
    """The speedup of each INT4 kernel over FP16, one row per problem, kernel and baseline.

    returns: problem, M, K, N, kernel (of KERNELS), against (of AGAINST), value, low, high (paired 95 % interval), gpu,
             run_id; no rows for what was not timed
    """
    cases = contrasts.timed(run)
    found = []
    for kernel in KERNELS:
        ends = {"cublas": (BASELINE, "graph"), "int4": (kernel, "graph")}
        rows = contrasts.contrast(run, contrasts.pairs(cases, ends), list(ends))
        found.append(rows.assign(kernel=kernel, against="cuBLAS"))
        ends = {"cublas": (BASELINE, "graph"), "twin": ("fp16-triton", "graph"), "int4": (kernel, "graph")}
        rows = contrasts.contrast(run, contrasts.pairs(cases, ends), list(ends), best_fp16_over)
        found.append(rows.assign(kernel=kernel, against="best FP16"))
    columns = ["problem", "M", "K", "N", "kernel", "against", "value", "low", "high"]
    return pd.concat(found, ignore_index=True)[columns].assign(**origin(run))


def grid(rows: pd.DataFrame, M: int) -> pd.DataFrame:
    """The rows of one M that lie on a grid, at points where every kernel of the run was timed.

    A run also times shapes of models, each with a K and an N of its own; they would leave a map full of holes. So a K
    stays if it was combined with at least half as many N as the K with most of them, and an N likewise.

    returns: some rows of `speedups`, one per K, N, kernel and baseline; empty with fewer than three K or N
    """
    rows = rows[rows["M"] == M].drop_duplicates(["K", "N", "kernel", "against"])
    everywhere = rows.groupby(["K", "N"])["kernel"].transform("nunique") == rows["kernel"].nunique()
    rows = rows[everywhere]
    for _ in range(2):  # a K that leaves takes its N with it
        for one, other in (("K", "N"), ("N", "K")):
            partners = rows.groupby(one)[other].nunique()
            rows = rows[rows[one].isin(partners[partners >= max(FEWEST, partners.max() / 2)].index)]
    return rows if rows["K"].nunique() >= FEWEST and rows["N"].nunique() >= FEWEST else rows.iloc[:0]


def reclaimed(rows: pd.DataFrame) -> pd.DataFrame:
    """The points of a grid by what good engineering makes of them, one row per baseline.

    rows:    grid(speedups(run), M)
    returns: against, points, simple_wins, tuned_wins, reclaimed (the simple kernel loses and the tuned one wins), lost
             (the tuned one loses too); by the medians
    """
    wide = rows.pivot(index=["against", "K", "N"], columns="kernel", values="value").reindex(columns=list(KERNELS))
    simple, tuned = (wide[kernel] > 1 for kernel in KERNELS)
    flags = pd.DataFrame({"points": True, "simple_wins": simple, "tuned_wins": tuned, "reclaimed": tuned & ~simple,
                          "lost": ~tuned})  # fmt: skip
    flags = flags[wide.notna().all(axis=1)]
    return flags.groupby("against", sort=False).sum().reset_index()


def by_tokens(table: pd.DataFrame, shapes=STUDY_SHAPES) -> pd.DataFrame:
    """The ways to multiply by a quantised weight against M, at the problems where `int4-fused` was timed.

    table:   report_table(run)
    returns: its rows of CONTENDERS, in a graph with a cold L2
    """
    rows = table[(table["status"] == "ok") & in_mode(table)]
    rows = rows[rows["backend"].isin(CONTENDERS) & at_shapes(rows, shapes)]
    fused = rows.loc[rows["backend"] == "int4-fused", "problem"]
    rows = rows[rows["problem"].isin(fused)].drop_duplicates(["backend", "M", "K", "N"])
    return rows.sort_values(["K", "N", "M"])


def crossings(rows: pd.DataFrame) -> pd.DataFrame:
    """The M from which the fused kernel no longer pays, one row per shape.

    rows:    by_tokens(table)
    returns: K, N, m_dequant (as slow as dequantising to memory first), m_fp16 (as slow as FP16): the last crossing,
             interpolated between the M that were timed in logarithms of both; NaN where there is none; m_most (timed)
    """
    found = []
    for (K, N), of in rows.groupby(["K", "N"], sort=False):
        wide = of.pivot(index="M", columns="backend", values="latency_us_p50").reindex(columns=list(CONTENDERS))
        found.append({
            "K": K, "N": N, "m_most": wide.index.max(),
            "m_dequant": crossing(wide["dequant-fp16"] / wide["int4-fused"]),
            "m_fp16": crossing(wide[BASELINE] / wide["int4-fused"]),
        })  # fmt: skip
    return pd.DataFrame(found, columns=["K", "N", "m_most", "m_dequant", "m_fp16"])


def selection(run, shapes=STUDY_SHAPES) -> pd.DataFrame:
    """The time of `int4` over that of the better of its two paths, one row per problem that was timed on both.

    returns: problem, M, K, N, value (1 = as fast), low, high (paired 95 % interval)
    """
    ends = {"fused": ("int4-fused", "graph"), "dequant": ("dequant-fp16", "graph"), "int4": ("int4", "graph")}
    rows = contrasts.pairs(contrasts.timed(run), ends)
    rows = rows[at_shapes(rows, shapes)]
    return contrasts.contrast(run, rows, list(ends), selected_over_better).drop(columns=list(ends))


def crossing(advantage: pd.Series) -> float:
    """The M at which an advantage last falls through 1."""
    advantage = advantage.dropna().sort_index()
    logs, tokens = np.log(advantage.to_numpy()), np.log(advantage.index.to_numpy(dtype=float))
    falls = np.flatnonzero((logs[:-1] > 0) & (logs[1:] <= 0))
    if not falls.size:
        return np.nan
    i = falls[-1]
    return float(np.exp(tokens[i] + (tokens[i + 1] - tokens[i]) * logs[i] / (logs[i] - logs[i + 1])))
