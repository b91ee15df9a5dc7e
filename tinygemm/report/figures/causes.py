"""Why: the roofline, the share of each peak, the cost of dequantising, and the factors a speedup is made of."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tinygemm.hardware import GPUS, gpu_key
from tinygemm.problem import STUDY_SHAPES
from tinygemm.report import style
from tinygemm.report.tables import BASELINE, SHAPE, copy_bandwidth_gb_s, primary
from tinygemm.report.verdicts import BOUND_FRACTION

NARROW, SQUARE, WIDE, TALL = STUDY_SHAPES
COUNTERS = {
    "frac_dram": "DRAM bandwidth",
    "frac_sm": "SM throughput",
    "frac_issue": "issue slots",
    "frac_warps": "warps resident",
}
FACTORS = {
    "kernel and traffic": "#6B7075",
    "kernel": style.COLOURS["fp16-triton"],
    "traffic": style.COLOURS["int4-load-only"],
    "dequantisation": style.COLOURS["int4"],
}


@mpl.rc_context(style.STYLE)
def roofline(table: pd.DataFrame, shape=WIDE, backends=(BASELINE, "int4")) -> Figure:
    """Decode under the roofs: arithmetic rate against arithmetic intensity, one point per M, for one projection (K, N).

    table: report_table(run); the memory roof is the copy bandwidth of the run, the compute roof the published FP16 peak
    """
    style.require(table, [*SHAPE, "backend", "flops", "bytes_min", "tflop_s", "achieved_gb_s"], "roofline")
    rows = primary(table)
    rows = rows[(rows["K"] == shape[0]) & (rows["N"] == shape[1]) & rows["backend"].isin(backends)]
    copy = copy_bandwidth_gb_s(table)
    if rows.empty or not np.isfinite(copy):
        raise ValueError(f"roofline needs {' and '.join(backends)} at {shape[0]}×{shape[1]} and the copy bandwidth")
    rows = rows.assign(intensity=rows["flops"] / rows["bytes_min"]).sort_values("M")
    spec = GPUS.get(gpu_key(table["gpu"].iloc[0])) if "gpu" in table else None

    handles = [
        Line2D([], [], color=style.colour(b), marker=style.marker(b), ms=7, lw=0, mec="white", label=style.name(b))
        for b in backends
    ]
    where = style.conditions(rows[rows["backend"] != BASELINE], f"K×N = {shape[0]}×{shape[1]}")
    fig, ax = style.canvas("Decode GEMMs sit under the memory roof", where, legend=handles, height=4.4)
    left, right = 0.5, 2000 if spec else 200
    x = np.array([left, right])
    ax.set(xscale="log", yscale="log", xlim=(left, right))
    roof = x * copy / 1e3
    if spec:
        ridge = spec.fp16_tflop_s * 1e3 / copy
        ax.plot(
            [left, ridge, right], [left * copy / 1e3, *2 * [spec.fp16_tflop_s]], color=style.IDEAL, lw=1.6, zorder=1
        )
        label = f"FP16 tensor peak, {spec.fp16_tflop_s:,.0f} TFLOP/s (datasheet)"
        ax.text(right * 0.9, spec.fp16_tflop_s * 1.15, label, ha="right", va="bottom", size=9.5)
        ax.set_ylim(left * copy / 1e3 / 6, spec.fp16_tflop_s * 4)
    else:
        ax.plot(x, roof, color=style.IDEAL, lw=1.6, zorder=1)
    angle_at = np.array([[1.1, 1.1 * copy / 1e3 * 1.45]])
    ax.text(
        *angle_at[0], f"copy bandwidth, {copy / 1e3:.2f} TB/s (measured)", rotation=_angle(ax), rotation_mode="anchor",
        transform_rotates_text=True, size=9.5,
    )  # fmt: skip
    for backend in backends:
        mine = rows[rows["backend"] == backend]
        ax.plot(
            mine["intensity"], mine["tflop_s"], color=style.colour(backend), marker=style.marker(backend), ms=8,
            mec="white", lw=1.2, zorder=3,
        )  # fmt: skip
        for _, row in mine.iterrows():
            place = {"xytext": (7, -4), "textcoords": "offset points", "size": 8.5, "va": "top"}
            ax.annotate(f"M={row['M']:.0f}", (row["intensity"], row["tflop_s"]), color=style.colour(backend), **place)
    ax.set(xlabel="arithmetic intensity (FLOP per byte that must move)", ylabel="arithmetic rate (TFLOP/s)")
    return fig


@mpl.rc_context(style.STYLE)
def percent_of_peak(
    counters: pd.DataFrame, M: int = 1, shapes=(WIDE, NARROW), backends=(BASELINE, "int4-static", "int4")
) -> Figure:
    """Finding B: how busy DRAM, SMs, issue slots and warps were, one panel per projection that was profiled.

    counters: counters_table(run), or any table with backend, M, K, N and frac_dram, frac_sm, ... in 0..1
    """
    style.require(counters, ["backend", *SHAPE, "frac_dram", "frac_sm"], "percent_of_peak")
    measures = [column for column in COUNTERS if column in counters and counters[column].notna().any()]
    rows = counters[(counters["M"] == M) & counters["backend"].isin(backends)]
    panels = [shape for shape in shapes if ((rows["K"] == shape[0]) & (rows["N"] == shape[1])).any()]
    if not panels:
        wanted = ", ".join(f"{K}×{N}" for K, N in shapes)
        raise ValueError(f"percent_of_peak: no counters of {', '.join(backends)} at M = {M}, {wanted}")
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    handles = [Patch(color=style.colour(backend), label=style.name(backend)) for backend in shown]
    where = style.conditions(
        rows[[c for c in ("gpu", "run_id") if c in rows]], f"M = {M}", "counters from Nsight Compute"
    )
    height = 1.3 + len(panels) * (0.5 + 0.22 * len(shown) * len(measures))
    fig, axes = style.canvas(
        "What is busy: percent of each peak", where, legend=handles, height=height, nrows=len(panels), sharex=True,
        squeeze=False,
    )  # fmt: skip
    for ax, (K, N) in zip(axes[:, 0], panels, strict=True):
        at_shape = rows[(rows["K"] == K) & (rows["N"] == N)].drop_duplicates("backend").set_index("backend")
        thickness = 0.84 / len(shown)
        for i, backend in enumerate(shown):
            if backend in at_shape.index:
                y = np.arange(len(measures)) + (i - (len(shown) - 1) / 2) * thickness
                values = 100 * at_shape.loc[backend, measures].astype("float64")
                bars = ax.barh(y, values, 0.9 * thickness, color=style.colour(backend), zorder=2)
                ax.bar_label(bars, [f"{value:.0f} %" for value in values], padding=3, size=9)
        ax.axvline(100 * BOUND_FRACTION, color=style.IDEAL, lw=1.2, ls=(0, (4, 3)), zorder=1)
        ax.set_yticks(range(len(measures)), [COUNTERS[column] for column in measures])
        ax.set_title(f"K×N = {K}×{N}", loc="left", size=10.5, weight="bold", pad=4)
        ax.set(ylim=(len(measures) - 0.5, -0.5), xlim=(0, 100))
        ax.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel(f"percent of peak (below {BOUND_FRACTION:.0%} of all, latency is the limit)")
    return fig


@mpl.rc_context(style.STYLE)
def dequant_breakdown(table: pd.DataFrame, M: int = 1, shapes=(NARROW, WIDE)) -> Figure:
    """Finding C: what dequantisation costs on its own, before a matmul, and inside the fused kernel.

    The tuned kernel is split in two: the time of `int4-load-only`, which reads the same bytes, and the rest.

    table: report_table(run), or the CSV of `tinygemm breakdown`
    """
    columns = ["backend", *SHAPE, "launch", "l2_state", "status", "latency_us_p50", "latency_us_low", "latency_us_high"]
    style.require(table, columns, "dequant_breakdown")
    bars = (BASELINE, "dequant-only", "dequant-fp16", "int4-static", "int4")
    rows = primary(table)
    rows = rows[(rows["M"] == M) & rows["backend"].isin([*bars, "int4-load-only"])]
    panels = [shape for shape in shapes if ((rows["K"] == shape[0]) & (rows["N"] == shape[1])).any()]
    if not panels:
        wanted = ", ".join(f"{K}×{N}" for K, N in shapes)
        raise ValueError(f"dequant_breakdown: the table has no timing at M = {M}, {wanted}, graph, cold L2")
    handles = [
        Patch(color=style.COLOURS["int4-load-only"], label="reading the INT4 bytes"),
        Patch(color=style.COLOURS["int4"], label="dequantising them, inside the kernel"),
    ]
    where = style.conditions(rows[rows["backend"] != BASELINE], f"M = {M}")
    height = 1.35 + 1.75 * len(panels)
    fig, axes = style.canvas(
        "Where the time of dequantisation goes", where, legend=handles, height=height, nrows=len(panels), squeeze=False
    )
    for ax, (K, N) in zip(axes[:, 0], panels, strict=True):
        at_shape = rows[(rows["K"] == K) & (rows["N"] == N)].drop_duplicates("backend").set_index("backend")
        _breakdown_bars(ax, at_shape, [backend for backend in bars if backend in at_shape.index])
        ax.set_title(f"K×N = {K}×{N}", loc="left", size=10.5, weight="bold", pad=4)
    axes[-1, 0].set_xlabel("latency (µs)")
    return fig


def _breakdown_bars(ax: Axes, rows: pd.DataFrame, bars) -> None:
    for y, backend in enumerate(bars):
        row = rows.loc[[backend]]
        total = float(row["latency_us_p50"].iloc[0])
        ax.barh(y, total, 0.72, color=style.colour(backend), zorder=2)
        label = f"{total:.1f}"
        if backend == "int4" and "int4-load-only" in rows.index:
            reads = float(rows.loc["int4-load-only", "latency_us_p50"])
            ax.barh(y, min(reads, total), 0.72, color=style.COLOURS["int4-load-only"], zorder=2)
            label += f"  ({reads:.1f} + {total - reads:.1f})"
        interval = style.spread(row, "latency_us_p50")
        ax.errorbar(total, y, xerr=interval, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2, zorder=3)
        ax.annotate(label, (total, y), xytext=(6, 0), textcoords="offset points", va="center", size=9)
    names = {BASELINE: "FP16 matmul", "dequant-only": "dequantise to memory", "dequant-fp16": "… then FP16 matmul"}
    ax.set_yticks(range(len(bars)), [names.get(backend, style.name(backend)) for backend in bars])
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.margins(x=0.16)
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)


@mpl.rc_context(style.STYLE)
def ladder(steps: pd.DataFrame, M: int = 1, shapes=STUDY_SHAPES) -> Figure:
    """What the speedup of the tuned kernel is made of: factors on a log axis, end to end, so that lengths add up.

    steps: tables.ladder(run)
    """
    style.require(steps, ["problem", *SHAPE, "factor", "value"], "ladder")
    rows = steps[(steps["M"] == M) & pd.MultiIndex.from_frame(steps[["K", "N"]]).isin(list(shapes))]
    if rows.empty:
        raise ValueError(f"ladder: no factors at M = {M} for {', '.join(f'{K}×{N}' for K, N in shapes)}")
    factors = [factor for factor in FACTORS if factor in set(rows["factor"])]
    handles = [Patch(color=FACTORS[factor], label=factor) for factor in factors]
    where = style.conditions(rows, f"M = {M}", "total = product of the factors")
    panels = [shape for shape in shapes if ((rows["K"] == shape[0]) & (rows["N"] == shape[1])).any()]
    fig, ax = style.canvas("What the speedup is made of", where, legend=handles, height=1.6 + 0.75 * len(panels))
    for y, (K, N) in enumerate(panels):
        values = rows[(rows["K"] == K) & (rows["N"] == N)].set_index("factor")["value"]
        reached = 1.0
        for level, factor in enumerate(factors):
            if factor in values:
                top = y - 0.36 + level * 0.24
                ax.barh(
                    top + 0.12, reached * values[factor] - reached, 0.22, left=reached, color=FACTORS[factor], zorder=2
                )
                end = max(reached, reached * values[factor])
                ax.annotate(
                    f"×{values[factor]:.2f}",
                    (end, top + 0.12),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    size=8.5,
                )
                reached *= values[factor]
        ax.vlines(values["total"], y - 0.4, y + 0.4, color=style.IDEAL, lw=2, zorder=3)
        ax.annotate(
            f"{values['total']:.2f}×", (values["total"], y + 0.4), xytext=(0, -1), textcoords="offset points",
            ha="center", va="top", size=9.5, weight="bold",
        )  # fmt: skip
    ax.axvline(1, color=style.COLOURS[BASELINE], lw=1.4)
    ax.set_xscale("log")
    ticks = [0.5, 0.75, 1, 1.5, 2, 3, 4]
    ax.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(panels)), [f"{K}×{N}" for K, N in panels])
    ax.set(ylim=(len(panels) - 0.35, -0.5), xlabel="speedup over FP16 (cuBLAS), log scale", ylabel="K×N")
    ax.grid(axis="y", visible=False)
    return fig


def _angle(ax: Axes) -> float:
    """45 degrees in data space: with transform_rotates_text the label follows a line of slope one on log axes."""
    return 45.0
