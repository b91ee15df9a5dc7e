"""How it was measured: launch cost, cache state, correctness, and the samples themselves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report import style, tables
from tinygemm.report.host import steady
from tinygemm.report.tables import BASELINE, LATENCY, NO_PRODUCT
from tinygemm.report.words import span, spans

NARROW, _, WIDE, _ = STUDY_SHAPES
LADDER = (BASELINE, "dequant-fp16", "int4-static", "aten-int4mm", "int4")
# the bounds every case must stay below to be timed at all; tinygemm.harness.verify has them, a test keeps both equal
MAX_ERR_BOUND = {"float16": 2e-2, "bfloat16": 6e-2}


@style.figure
def launch_cost(table: pd.DataFrame, M: int = 1, shapes=(NARROW, WIDE), backends=LADDER) -> tuple[Figure, str]:
    """What Python adds to each call: device time in a CUDA graph, and launched one by one.

    table: report_table(run), or the CSV of `tinygemm bench` with both launch modes
    """
    rows = tables.launch_cost(steady(_required(table, "launch_cost")))
    title = "What launching from Python adds to a call"
    return _dumbbells(
        table, rows[rows["l2_state"] == "cold"], ("graph", "eager"), title, M, shapes, backends, "cold L2"
    )


@style.figure
def cold_vs_hot(table: pd.DataFrame, M: int = 1, shapes=(NARROW, WIDE), backends=LADDER) -> tuple[Figure, str]:
    """What a weight that is still in L2 saves: the same call with a hot and with a cold cache.

    table: report_table(run), or the CSV of `tinygemm bench` with both cache states
    """
    rows = tables.cold_vs_hot(_required(table, "cold_vs_hot"))
    title = "What a weight that is still in L2 saves"
    return _dumbbells(table, rows[rows["launch"] == "graph"], ("hot", "cold"), title, M, shapes, backends, "CUDA graph")


def _required(table: pd.DataFrame, figure: str) -> pd.DataFrame:
    style.require(table, ["case_id", "backend", "M", "K", "N", "launch", "l2_state", "status", *LATENCY], figure)
    return table


def _dumbbells(table, rows, ends, title, M, shapes, backends, fact) -> tuple[Figure, str]:
    rows = rows[(rows["M"] == M) & rows["backend"].isin(backends)]
    panels = [shape for shape in shapes if ((rows["K"] == shape[0]) & (rows["N"] == shape[1])).any()]
    if not panels:
        wanted = ", ".join(f"{K}×{N}" for K, N in shapes)
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
        ax.set_title(f"K×N = {K}×{N}", loc="left", size=10.5, weight="bold", pad=4)
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.margins(x=0.3)
        ax.set_xlim(left=0)
        ax.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel("time per call (µs)")
    there = rows[tables.at_shapes(rows, panels)]
    told = [f"{words[end]}: {spans(there, f'{end}_us', '.1f', ' µs')}" for end in ends]
    alt = f"Pairs of dots, time per call at M = {M}, {', '.join(map(style.shape_name, panels))}. {'. '.join(told)}."
    return fig, alt


@style.figure
def correctness(table: pd.DataFrame) -> tuple[Figure, str]:
    """The errors of every verified case against the float64 reference, and the bound each had to stay below.

    table: report_table(run), or cases.csv: max_err and rms_err in units of the RMS of the reference
    """
    style.require(table, ["backend", "dtype", "launch", "l2_state", "max_err", "rms_err"], "correctness")
    rows = table[(table["launch"] == "graph") & (table["l2_state"] == "cold") & ~table["backend"].isin(NO_PRODUCT)]
    rows = rows.dropna(subset=["max_err", "rms_err"])
    if rows.empty:
        raise ValueError("correctness: the table has no case with max_err and rms_err")
    shown = style.in_order(rows["backend"])
    handles = [
        Line2D([], [], lw=0, marker="o", ms=7, mfc="white", mec=style.INK, mew=1.4, label="RMS error"),
        Line2D([], [], lw=0, marker="o", ms=7, color=style.INK, label="largest error"),
        Line2D([], [], lw=2, color=style.IDEAL, label="bound of the largest error"),
    ]
    where = style.conditions(
        rows[[c for c in ("gpu", "run_id") if c in rows]], f"{len(rows)} cases, each checked first"
    )
    fig, ax = style.canvas(
        "Every case against the float64 reference", where, legend=handles, height=1.7 + 0.33 * len(shown)
    )
    for y, backend in enumerate(shown):
        mine = rows[rows["backend"] == backend]
        for column, fill in (("rms_err", "white"), ("max_err", style.colour(backend))):
            ax.plot(
                mine[column], np.full(len(mine), y), "o", ms=6, mfc=fill, mec=style.colour(backend), mew=1.2, alpha=0.8
            )
        bound = MAX_ERR_BOUND[mine["dtype"].iloc[0]]
        ax.vlines(bound, y - 0.36, y + 0.36, color=style.IDEAL, lw=2)
    ax.set_yticks(range(len(shown)), [style.name(backend) for backend in shown])
    ax.set(
        xscale="log", xlabel="error, in units of the RMS of the reference (log scale)", ylim=(len(shown) - 0.5, -0.5)
    )
    alt = (
        f"Errors of {len(rows)} cases against the float64 reference, in units of its RMS: largest error "
        f"{span(rows['max_err'], '.1e')}, RMS error {span(rows['rms_err'], '.1e')}; the bound of the largest is "
        f"{span(rows['dtype'].map(MAX_ERR_BOUND), '.2g')}."
    )
    return fig, alt


@style.figure
def samples_spread(
    table: pd.DataFrame, samples: pd.DataFrame, M: int = 1, shape=WIDE, backends=LADDER
) -> tuple[Figure, str]:
    """The samples of one group, round by round, each backend relative to its own median.

    Where all of them move together, the GPU moved (its clock), and that cancels in a speedup.

    table:   report_table(run)
    samples: run.samples
    """
    style.require(
        table, ["case_id", "backend", "M", "K", "N", "launch", "l2_state", "status", "latency_us_p50"], "samples_spread"
    )
    style.require(samples, ["case_id", "sample", "latency_us"], "samples_spread")
    rows = table[(table["M"] == M) & (table["K"] == shape[0]) & (table["N"] == shape[1]) & (table["status"] == "ok")]
    rows = rows[(rows["launch"] == "graph") & (rows["l2_state"] == "cold") & rows["backend"].isin(backends)]
    if rows.empty:
        raise ValueError(f"samples_spread: the table has no {', '.join(backends)} at M = {M}, {shape[0]}×{shape[1]}")
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    handles = [
        Line2D([], [], color=style.colour(b), marker=style.marker(b), ms=5, lw=1.4, label=style.name(b)) for b in shown
    ]
    where = style.conditions(rows[rows["backend"] != BASELINE], f"M = {M}", style.shape_name(shape))
    fig, ax = style.canvas("The samples of one group, round by round", where, legend=handles, height=3.3)
    furthest = {}
    for backend in shown:
        case = rows[rows["backend"] == backend].iloc[0]
        mine = samples[samples["case_id"] == case["case_id"]].sort_values("sample")
        relative = 100 * (mine["latency_us"] / case["latency_us_p50"] - 1)
        furthest[backend] = relative.abs().max()
        ax.plot(mine["sample"], relative, color=style.colour(backend), marker=style.marker(backend), ms=4, lw=1.2)
    ax.axhline(0, color=style.IDEAL, lw=1)
    ax.set(xlabel="round", ylabel="latency, % off its median")
    ax.xaxis.get_major_locator().set_params(integer=True)
    told = "; ".join(f"{style.name(backend)} {percent:.1f} %" for backend, percent in furthest.items())
    alt = f"Lines of latency, round by round, M = {M}, {style.shape_name(shape)}. Furthest off its own median: {told}."
    return fig, alt
