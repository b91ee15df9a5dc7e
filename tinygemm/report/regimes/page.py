"""The tables of the regime map: what good engineering reclaims, every point of the map, and the crossovers."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.words import shape_names
from tinygemm.report.regimes import tables as regimes


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
    cells = [f"{row.value:.2f} ({row.low:.2f}–{row.high:.2f})" for row in at.itertuples()]
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
