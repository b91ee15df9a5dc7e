"""The page of the chapter on regimes: the map of K and N, every point of it, and where more tokens stop the gain."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from tinygemm.report.answer import tables as one_token
from tinygemm.report.answer.words import LATER
from tinygemm.report.base.contrasts import primary_cases
from tinygemm.report.base.page import folded, lacks, shown, table
from tinygemm.report.base.tables import BASELINE, problem_of
from tinygemm.report.base.words import bracket, shape_name, shape_names
from tinygemm.report.regimes import figures
from tinygemm.report.regimes import tables as regimes

NONE = pd.Series(dtype=float)
CROSSINGS = {
    "shape": ("K×N", ""),
    "fp16": ("As slow as FP16 (cuBLAS)", ""),
    "dequant": ("As slow as dequantising first", ""),
}
RECLAIMED = {
    "M": ("M", ".0f"),
    "against": ("FP16", ""),
    "points": ("Points", ".0f"),
    "simple_wins": ("Simple kernel wins", ".0f"),
    "tuned_wins": ("Tuned kernel wins", ".0f"),
    "reclaimed": ("Reclaimed", ".0f"),
    "lost": ("Tuned kernel loses", ".0f"),
}


def has_map(rows: pd.DataFrame, m_list=(1, 8)) -> bool:
    """Tell whether the run timed a grid of K and N at any of these tokens.

    rows: regimes.speedups(run)
    """
    return any(len(regimes.grid(rows, M)) for M in m_list)


def reclaimed(rows: pd.DataFrame, m_list=(1, 8)) -> pd.DataFrame:
    """Points of the map that each kernel wins: M, against, points, simple_wins, tuned_wins, reclaimed, lost.

    rows: regimes.speedups(run)
    """
    found = [regimes.reclaimed(regimes.grid(rows, M)).assign(M=M) for M in m_list]
    return pd.concat(found, ignore_index=True)


def points(rows: pd.DataFrame, M: int) -> pd.DataFrame:
    """Every point of the map at one M: shape, then a speedup with its interval for each kernel and baseline.

    rows: regimes.speedups(run)
    """
    at = regimes.grid(rows, M)
    cells = [f"{row.value:.2f}{bracket(row.low, row.high)}" for row in at.itertuples()]
    at = at.assign(cell=cells, column=at["kernel"] + " " + at["against"])
    wide = at.pivot(index=["K", "N"], columns="column", values="cell").reset_index().rename_axis(columns=None)
    wide = wide.reindex(columns=["K", "N", *(f"{k} {a}" for k in regimes.KERNELS for a in regimes.AGAINST)])
    return wide.assign(shape=shape_names(wide))


def point_columns() -> dict[str, tuple[str, str]]:
    """The columns of `points` for pages.table."""
    names = {"int4-static": "simple", "int4": "tuned"}
    return {"shape": ("K×N", "")} | {
        f"{kernel} {against}": (f"{names[kernel]} over {against}", "")
        for kernel in regimes.KERNELS
        for against in regimes.AGAINST
    }


def crossings(rows: pd.DataFrame) -> pd.DataFrame:
    """The token count at which the fused kernel stops paying, in words: shape, fp16, dequant.

    rows: regimes.by_tokens(report_table(run))
    """
    found = regimes.crossings(rows)
    none = "none up to " + found["m_most"].astype(str)
    words = {
        column: found[f"m_{column}"].map("M ≈ {:.0f}".format).where(found[f"m_{column}"].notna(), none)
        for column in ("fp16", "dequant")
    }
    return found.assign(shape=shape_names(found), **words)


def best_map(rows: pd.DataFrame) -> Figure | Markdown:
    """The map of the tuned kernel against the faster FP16 kernel of each cell, at one token.

    rows: regimes.speedups(run)
    """
    grid = regimes.grid(rows[rows["against"] == "best FP16"], 1)
    return shown(figures.best_map, grid[grid["kernel"] == "int4"], lacking="a grid of K and N")


def least_point(run, rows: pd.DataFrame, M: int = 1) -> dict[str, str]:
    """The point of the map with the least gain over the best FP16, in words for the prose: ratio, shape, its config.

    rows: regimes.speedups(run)
    """
    grid = regimes.grid(rows[rows["against"] == "best FP16"], M)
    grid = grid[grid["kernel"] == "int4"]
    if grid.empty:
        return {"least": "no point"}
    least = grid.loc[grid["value"].idxmin()]
    cases = primary_cases(run.cases)
    cases = cases[(cases["backend"] == "int4") & (problem_of(cases) == least["problem"])]
    searched = cases["config_source"].str.startswith("table").any()
    source = "searched config" if searched else "config not searched"
    return {"least": f"{shape_name(least)}, {least['value']:.2f}× ({source})"}


def more_tokens(tokens: pd.DataFrame) -> Figure | Markdown:
    """Latency against the tokens in flight.

    tokens: regimes.by_tokens(report_table(run))
    """
    return shown(figures.crossover, tokens, lacking="the fused kernel at many tokens")


def crossing_table(tokens: pd.DataFrame) -> Markdown:
    """The tokens from which the fused kernel no longer pays, at four projections."""
    if tokens.empty:
        return lacks("the fused kernel at many tokens")
    caption = "Tokens in flight at which the fused kernel is as slow as another, interpolated"
    return table(crossings(tokens), CROSSINGS, "tab-crossings", caption)


def reclaimed_table(rows: pd.DataFrame) -> Markdown:
    """The number of points of the map that each kernel wins."""
    if not has_map(rows):
        return lacks("a grid of K and N")
    caption = "Points of the map at which each kernel is faster than FP16, by medians"
    return table(reclaimed(rows), RECLAIMED, "tab-reclaimed", caption)


def point_table(rows: pd.DataFrame, M: int) -> Markdown:
    """Every point of the map at one M, folded."""
    at = points(rows, M) if has_map(rows) else rows.iloc[:0]
    return folded(f"All points of the map at M = {M}", at, point_columns(), f"tab-points-{M}",
                  f"Speedups of the two INT4 kernels, M = {M}")  # fmt: skip


def stops(tokens: pd.DataFrame) -> dict[str, float]:
    """Numbers of the prose, by projection; NaN where there is none.

    tokens:  regimes.by_tokens(report_table(run))
    returns: least and most tokens from which FP16 in the library is as fast as the fused kernel; later_least and
             later_most, the speedups of the fused kernel at LATER tokens
    """
    found = regimes.crossings(tokens)["m_fp16"]
    later = tokens[tokens["M"] == LATER].pivot(index=["K", "N"], columns="backend", values="latency_us_p50")
    gain = later.get(BASELINE, NONE) / later.get("int4-fused", NONE)
    return {"least": found.min(), "most": found.max(), "later_least": gain.min(), "later_most": gain.max()}


def of_a_token(tokens: pd.DataFrame) -> dict[str, float]:
    """Numbers of the first page: up to about how many tokens INT4 pays over a token's layers, and the gain at LATER.

    tokens: regimes.by_tokens(report_table(run))
    """
    gains = one_token.gains(tokens)
    m_pays, _ = one_token.most_tokens(gains)
    return {"pays": one_token.about(m_pays) if np.isfinite(m_pays) else np.nan, "later": gains.get(LATER, np.nan)}
