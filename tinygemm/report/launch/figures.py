"""The effect of launching: the gain with and without it, and the floor that the host puts under every call."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tinygemm.problem import NARROW, WIDE
from tinygemm.report.base import style, tables
from tinygemm.report.base.dumbbells import LADDER, _dumbbells, _required
from tinygemm.report.base.host import slow_groups, steady
from tinygemm.report.base.tables import BASELINE, LATENCY, usual
from tinygemm.report.base.words import shape_names, span, spans
from tinygemm.report.launch.tables import gains

LOST = "#C5221F"
HOST_LINES = (BASELINE, "aten-int4mm", "int4")


@style.figure
def launch_gain(table: pd.DataFrame, M: int = 1) -> tuple[Figure, str]:
    """The speedup of the tuned kernel over FP16, both as graphs and both launched from Python, one line per shape.

    table: report_table(run)
    """
    rows = gains(table, M)
    if rows.empty:
        raise ValueError(f"launch_gain: the table has no shape timed both as a graph and from Python at M = {M}")
    colour = style.colour("int4")
    handles = [_mark(colour, "white", "both from Python"), _mark(colour, colour, "both in a CUDA graph")]
    handles.append(Line2D([], [], color=LOST, lw=2.5, label="gain lost"))
    slow = sum(of[0] == M for of in slow_groups(table))
    where = style.conditions(rows, f"M = {M}", "cold L2", f"without {slow} timed on a slow host" if slow else "")
    fig, ax = style.canvas("What launching leaves of the gain", where, legend=handles, height=0.7 + 0.31 * len(rows))
    for y, (_, row) in enumerate(rows.iterrows()):
        lost = row["eager_high"] < 1 < row["graph_low"]
        ax.plot([row["eager"], row["graph"]], [y, y], color=LOST if lost else colour, lw=2.5, zorder=2)
        for mode, fill in (("eager", "white"), ("graph", colour)):
            interval = np.clip([[row[mode] - row[f"{mode}_low"]], [row[f"{mode}_high"] - row[mode]]], 0, None)
            ax.errorbar(
                row[mode], y, xerr=np.nan_to_num(interval), fmt="o", ms=8, mfc=fill, mec=colour, mew=1.8,
                ecolor=style.INK, elinewidth=1, zorder=3,
            )  # fmt: skip
            place = {"textcoords": "offset points", "va": "center", "size": 9, "path_effects": style.HALO, "zorder": 4}
            right = row[mode] == max(row["eager"], row["graph"])
            side = {"xytext": (8, 0), "ha": "left"} if right else {"xytext": (-8, 0), "ha": "right"}
            end = row[f"{mode}_high" if right else f"{mode}_low"]
            ax.annotate(f"{row[mode]:.2f}×", (row[mode] if pd.isna(end) else end, y), **side, **place)
    ax.axvline(1, color=style.colour(BASELINE), lw=1.4, zorder=1)
    ends = [rows[["eager", "graph"]].min(axis=None), rows[["eager", "graph"]].max(axis=None)]
    left, right = 0.75 * min(ends[0], 1), 1.35 * max(ends[1], 1)
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 3, 4) if left < tick < right]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(rows)), shape_names(rows))
    ax.set(
        xlim=(left, right), ylim=(len(rows) - 0.5, -0.5), xlabel="speedup of INT4 over FP16 (log scale)", ylabel="K×N"
    )
    ax.grid(axis="y", visible=False)
    alt = (
        f"Speedup of tuned INT4 over FP16 for {len(rows)} weights at M = {M}: in a graph "
        f"{span(rows['graph'], '.2f', '×')}, from Python {span(rows['eager'], '.2f', '×')}."
    )
    return fig, alt


@style.figure
def host_floor(table: pd.DataFrame, K: int = 4096, M: int = 1, backends=HOST_LINES) -> tuple[Figure, str]:
    """Time per call against N, from Python and in a graph: where the dashed line is flat, the host sets it.

    table: report_table(run)
    """
    style.require(table, ["backend", "M", "K", "N", "launch", "l2_state", *LATENCY], "host_floor")
    rows = usual(steady(table))
    rows = rows[(rows["K"] == K) & (rows["M"] == M) & (rows["l2_state"] == "cold") & rows["backend"].isin(backends)]
    rows = rows.drop_duplicates(["backend", "launch", "N"]).sort_values("N")
    if not {"eager", "graph"} <= set(rows["launch"]):
        raise ValueError(f"host_floor: the table has no case timed both as a graph and from Python at K = {K}, M = {M}")
    rows = rows[rows["N"].isin(rows.loc[rows["launch"] == "eager", "N"])]
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    handles = [
        Line2D([], [], color=style.colour(b), marker=style.marker(b), ms=6, mec="white", lw=1.6, label=style.name(b))
        for b in shown
    ]
    handles += [
        Line2D([], [], color=style.INK, lw=1.6, ls=(0, (4, 2)), label="from Python"),
        Line2D([], [], color=style.INK, lw=1.6, label="in a CUDA graph"),
    ]
    where = style.conditions(rows[["gpu", "run_id"]], f"K = {K}", f"M = {M}", "cold L2")
    fig, ax = style.canvas("The floor that the host puts under a call", where, legend=handles, height=3.4)
    for backend in shown:
        for mode, line in (("eager", (0, (4, 2))), ("graph", "-")):
            mine = rows[(rows["backend"] == backend) & (rows["launch"] == mode)]
            ax.errorbar(
                mine["N"], mine["latency_us_p50"], style.spread(mine, "latency_us_p50"), color=style.colour(backend),
                ls=line, marker=style.marker(backend), ms=6, mec="white", lw=1.6, elinewidth=1, zorder=3,
            )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="output features N", ylabel="time per call (µs)")
    sizes = []
    for N in sorted(set(rows["N"])):
        sizes += [N] if not sizes or N >= 1.9 * sizes[-1] else []  # nearer labels would touch
    ax.set_xticks(sizes, [f"{N}" for N in sizes])
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if ax.get_ylim()[0] < tick < ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{tick}" for tick in ticks])
    ax.minorticks_off()
    of = {mode: spans(rows[rows["launch"] == mode], "latency_us_p50", ".1f", " µs") for mode in ("eager", "graph")}
    alt = (
        f"Curves of time per call against N at K = {K}, M = {M}. {of['eager']}, from Python. {of['graph']}, in a graph."
    )
    return fig, alt


def _mark(edge: str, fill: str, label: str) -> Line2D:
    return Line2D([], [], lw=0, marker="o", ms=8, mfc=fill, mec=edge, mew=1.8, label=label)


@style.figure
def launch_cost(table: pd.DataFrame, M: int = 1, shapes=(NARROW, WIDE), backends=LADDER) -> tuple[Figure, str]:
    """The time that Python adds to each call: device time in a CUDA graph, and launched one by one.

    table: report_table(run), or the CSV of `tinygemm bench` with both launch modes
    """
    rows = tables.launch_cost(steady(_required(table, "launch_cost")))
    title = "What launching from Python adds to a call"
    return _dumbbells(
        table, rows[rows["l2_state"] == "cold"], ("graph", "eager"), title, M, shapes, backends, "cold L2"
    )
