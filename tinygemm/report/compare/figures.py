"""The speedup over FP16 of one kernel on several GPUs, by projection."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tinygemm.report.base import style
from tinygemm.report.base.words import shape_name, span

MARKERS = "osD^v"


@style.figure
def several_gpus(rows: pd.DataFrame, backend: str = "int4") -> tuple[Figure, str]:
    """The speedup of a kernel over FP16 by cuBLAS on several GPUs, a line per projection.

    rows: compared.speedups(runs), of `backend`
    """
    style.require(rows, ["name", "run_id", "M", "K", "N", "speedup"], "several_gpus")
    names = list(dict.fromkeys(rows["name"]))
    ink = style.colour(backend)
    looks = {
        name: {"marker": MARKERS[place % len(MARKERS)], "mfc": "white" if place else ink, "mec": ink, "mew": 2, "ms": 8}
        for place, name in enumerate(names)
    }
    shapes = list(dict.fromkeys(zip(rows["K"], rows["N"], strict=True)))
    handles = [Line2D([], [], lw=0, label=name, **look) for name, look in looks.items()]
    facts = [f"M = {int(rows['M'].iloc[0])}", style.name(backend), "CUDA graph", "cold L2"]
    runs = [f"run {run_id}" for run_id in dict.fromkeys(rows["run_id"])]
    where = style.conditions(rows[["name"]], *facts, *runs)
    height = 0.7 + 0.34 * len(shapes)
    fig, ax = style.canvas("The same kernel on several GPUs", where, legend=handles, height=height, legend_columns=2)
    for y, (K, N) in enumerate(shapes):
        here = rows[(rows["K"] == K) & (rows["N"] == N)]
        ax.plot([here["speedup"].min(), here["speedup"].max()], [y, y], color=ink, lw=3, zorder=2)
        for row in here.itertuples():
            ax.plot(row.speedup, y, lw=0, zorder=3, **looks[row.name])
    ax.axvline(1, color=style.INK, lw=1)
    ax.set_yticks(range(len(shapes)), list(map(shape_name, shapes)))
    ax.set_ylim(len(shapes) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("speedup over FP16 by cuBLAS")
    told = [f"{name} {span(rows.loc[rows['name'] == name, 'speedup'], '.1f', '×')}" for name in names]
    return fig, f"Dots for each of {len(shapes)} projections, speedup over FP16: {'; '.join(told)}."
