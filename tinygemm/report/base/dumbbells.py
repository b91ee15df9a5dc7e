"""Dumbbells: one quantity of several backends under two conditions, for three chapters."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tinygemm.report.base import style, tables
from tinygemm.report.base.tables import BASELINE, LATENCY
from tinygemm.report.base.words import shape_name, spans

LADDER = (BASELINE, "dequant-fp16", "int4-static", "aten-int4mm", "int4")


def _required(table: pd.DataFrame, figure: str) -> pd.DataFrame:
    style.require(table, ["case_id", "backend", "M", "K", "N", "launch", "l2_state", "status", *LATENCY], figure)
    return table


def _dumbbells(table, rows, ends, title, M, shapes, backends, fact) -> tuple[Figure, str]:
    rows = rows[(rows["M"] == M) & rows["backend"].isin(backends)]
    panels = [shape for shape in shapes if ((rows["K"] == shape[0]) & (rows["N"] == shape[1])).any()]
    if not panels:
        wanted = ", ".join(map(shape_name, shapes))
        raise ValueError(f"the table has no case timed both {ends[0]} and {ends[1]} at M = {M}, {wanted}")
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    words = {"graph": "CUDA graph", "eager": "from Python", "hot": "hot L2", "cold": "cold L2"}
    fills = {ends[0]: "white", ends[1]: style.INK}
    handles = [
        Line2D([], [], lw=0, marker="o", ms=8, mfc=fills[end], mec=style.INK, mew=1.6, label=words[end]) for end in ends
    ]
    where = style.conditions(table[["gpu", "run_id"]] if "gpu" in table else rows.iloc[:0], f"M = {M}", fact)
    height = 0.4 + len(panels) * (0.5 + 0.27 * len(shown))
    fig, axes = style.canvas(title, where, legend=handles, height=height, nrows=len(panels), squeeze=False)
    for ax, (K, N) in zip(axes[:, 0], panels, strict=True):
        at_shape = rows[(rows["K"] == K) & (rows["N"] == N)].set_index("backend")
        for y, backend in enumerate(shown):
            if backend not in at_shape.index:
                continue
            left, right = (float(at_shape.loc[backend, f"{end}_us"]) for end in ends)
            ax.plot([left, right], [y, y], color=style.colour(backend), lw=3, zorder=2, solid_capstyle="butt")
            look, reach = {"ms": 9, "mec": style.colour(backend), "mew": 2, "zorder": 3}, max(left, right)
            for end, fill in zip(ends, ("white", style.colour(backend)), strict=True):
                ax.plot(at_shape.loc[backend, f"{end}_us"], y, "o", mfc=fill, **look)
                interval = style.spread(at_shape.loc[[backend]], f"{end}_us")
                reach = max(reach, at_shape.loc[backend, f"{end}_us"] + interval[1].max())
                bar = {"fmt": "none", "ecolor": style.INK, "elinewidth": 1, "capsize": 2, "zorder": 4}
                ax.errorbar(at_shape.loc[backend, f"{end}_us"], y, xerr=interval, **bar)
            text = f"{left:.1f} → {right:.1f}"
            place = {"xytext": (9, 0), "textcoords": "offset points", "va": "center", "size": 9}
            ax.annotate(text, (reach, y), **place)
        ax.set_yticks(range(len(shown)), [style.name(backend) for backend in shown])
        ax.set_title(f"K×N = {shape_name((K, N))}", loc="left", size=10.5, weight="bold", pad=4)
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.margins(x=0.3)
        ax.set_xlim(left=0)
        ax.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel("time per call (µs)")
    there = rows[tables.at_shapes(rows, panels)]
    told = [f"{words[end]}: {spans(there, f'{end}_us', '.1f', ' µs')}" for end in ends]
    alt = f"Pairs of dots, time per call at M = {M}, {', '.join(map(shape_name, panels))}. {'. '.join(told)}."
    return fig, alt
