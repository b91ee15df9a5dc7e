"""Figures of the method: what a cold L2 changes."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from tinygemm.problem import NARROW, WIDE
from tinygemm.report.base import style, tables
from tinygemm.report.base.dumbbells import LADDER, _dumbbells, _required


@style.figure
def cold_vs_hot(table: pd.DataFrame, M: int = 1, shapes=(NARROW, WIDE), backends=LADDER) -> tuple[Figure, str]:
    """The time that a weight in L2 saves: the same call with a hot and with a cold cache.

    table: report_table(run), or the CSV of `tinygemm bench` with both cache states
    """
    rows = tables.cold_vs_hot(_required(table, "cold_vs_hot"))
    title = "What a weight that is still in L2 saves"
    return _dumbbells(table, rows[rows["launch"] == "graph"], ("hot", "cold"), title, M, shapes, backends, "CUDA graph")
