"""Why: the roofline, the share of each peak, and the cost of dequantising."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tinygemm.hardware import GPUS, gpu_key
from tinygemm.problem import STUDY_SHAPES
from tinygemm.report import style
from tinygemm.report.limiters import BOUND
from tinygemm.report.tables import BASELINE, SHAPE, at_shapes, copy_bandwidth_gb_s, primary
from tinygemm.report.words import spans

NARROW, SQUARE, WIDE, TALL = STUDY_SHAPES
COUNTERS = {
    "frac_dram": "DRAM bandwidth",
    "frac_sm": "SM throughput",
    "frac_issue": "issue slots",
    "frac_warps": "warps resident",
}
PARTS = {
    "fp16_us": BASELINE,
    "dequant_only_us": "dequant-only",
    "dequant_fp16_us": "dequant-fp16",
    "fused_us": "int4",
    "no_dequant_us": "int4-no-dequant",
    "load_only_us": "int4-load-only",
}


@style.figure
def roofline(table: pd.DataFrame, shape=WIDE, backends=(BASELINE, "int4")) -> tuple[Figure, str]:
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
        Line2D([], [], color=style.colour(b), marker=style.marker(b), ms=8, lw=0, mec="white", label=style.name(b))
        for b in backends
    ]
    tokens = ", ".join(str(M) for M in sorted(set(rows["M"])))
    where = style.conditions(rows[rows["backend"] != BASELINE], style.shape_name(shape), f"M = {tokens}")
    fig, ax = style.canvas("Decode under the roofline", where, legend=handles, height=3.6)
    peak = spec.fp16_tflop_s if spec else 10 * rows["tflop_s"].max()
    ridge = peak * 1e3 / copy
    ax.set(xscale="log", yscale="log", xlim=(0.5, 8 * ridge), ylim=(0.2 * copy / 1e3, 4 * peak))
    ax.plot([0.5, ridge], [0.5 * copy / 1e3, peak], color=style.IDEAL, lw=1.6, zorder=1)
    if spec:
        ax.plot([ridge, 8 * ridge], [peak, peak], color=style.IDEAL, lw=1.6, zorder=1)
        ax.text(7 * ridge, 1.15 * peak, f"FP16 tensor peak: {peak:,.0f} TFLOP/s (datasheet)", ha="right", size=9.5)
    _along_roof(ax, 0.5 * ridge, copy, f"copy bandwidth: {copy / 1e3:.2f} TB/s (measured)")
    for backend in backends:
        mine = rows[rows["backend"] == backend]
        rates(ax, mine, backend, ms=8, lw=1.2)
        # both ends of the lowest curve, which has room; the points of the others follow in the same order
        for _, row in mine.iloc[[0, -1] if backend == backends[-1] else [0]].iterrows():
            place = {"xytext": (8, -3), "textcoords": "offset points", "size": 9, "va": "top"}
            text = ax.annotate(f"M = {row['M']:.0f}", (row["intensity"], row["tflop_s"]), **place)
            text.set(color=style.colour(backend), path_effects=style.HALO)
    ax.set(xlabel="arithmetic intensity (FLOP per byte that must move)", ylabel="arithmetic rate (TFLOP/s)")
    alt = (
        f"Arithmetic rate against intensity for {style.shape_name(shape)}, under the roof of the copy bandwidth, "
        f"{copy / 1e3:.2f} TB/s. {spans(rows, 'tflop_s', '.1f', ' TFLOP/s')}, at {spans(rows, 'intensity', '.1f')} "
        f"FLOP per byte, for M = {tokens}."
    )
    return fig, alt


def rates(ax: Axes, rows: pd.DataFrame, backend: str, **look) -> None:
    """The rate of one backend against its intensity, with intervals.

    rows: with tflop_s, intensity, flops, latency_us_low and _high
    look: of ax.errorbar
    """
    ends = {end: rows["flops"] / rows[f"latency_us_{end}"] / 1e6 for end in ("low", "high")}
    interval = [rows["tflop_s"] - ends["high"], ends["low"] - rows["tflop_s"]]  # a longer time is a lower rate
    ax.errorbar(
        rows["intensity"], rows["tflop_s"], np.nan_to_num(np.clip(interval, 0, None)), color=style.colour(backend),
        marker=style.marker(backend), mec="white", elinewidth=1, zorder=3, **look,
    )  # fmt: skip


def _along_roof(ax: Axes, x: float, copy_gb_s: float, text: str) -> None:
    """Write along the memory roof up to x; on log axes its direction in data space is (x, y) itself."""
    y = 1.18 * x * copy_gb_s / 1e3
    angle = np.degrees(np.arctan2(y, x))
    ax.text(x, y, text, rotation=angle, rotation_mode="anchor", transform_rotates_text=True, ha="right", size=9.5)


@style.figure
def percent_of_peak(
    counters: pd.DataFrame, M: int = 1, shapes=(WIDE, NARROW), backends=(BASELINE, "int4-static", "int4")
) -> tuple[Figure, str]:
    """Finding B: how busy DRAM, SMs, issue slots and warps were, one panel per projection that was profiled.

    counters: counters_table(run), or any table with backend and frac_dram, frac_sm, ... in 0..1, where M, K and N are
              left out if all rows are of one problem
    shapes:   (K, N); where the table has none of them, the first four that it has
    """
    style.require(counters, ["backend", "frac_dram", "frac_sm"], "percent_of_peak")
    one_problem = not set(SHAPE) <= set(counters.columns)
    rows = counters.assign(M=M, K=0, N=0) if one_problem else counters[counters["M"] == M]
    rows = rows[rows["backend"].isin(backends)]
    if rows.empty:
        raise ValueError(f"percent_of_peak: the table has no counters of {', '.join(backends)} at M = {M}")
    panels = style.shapes_present(rows, shapes)
    measures = [column for column in COUNTERS if column in rows and rows[column].notna().any()]
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    handles = [Patch(color=style.colour(backend), label=style.name(backend)) for backend in shown]
    origin = rows[[column for column in ("gpu", "run_id") if column in rows]]
    where = style.conditions(origin, "" if one_problem else f"M = {M}", "counters from Nsight Compute")
    height = 0.4 + len(panels) * (0.45 + 0.21 * len(shown) * len(measures))
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
                ax.bar_label(bars, [f"{value:.0f} %" for value in values], padding=3, size=9, path_effects=style.HALO)
        ax.axvline(100 * BOUND, color=style.IDEAL, lw=1.2, ls=(0, (4, 3)), zorder=1)
        ax.set_yticks(range(len(measures)), [COUNTERS[column] for column in measures])
        if not one_problem:
            ax.set_title(f"K×N = {K}×{N}", loc="left", size=10.5, weight="bold", pad=4)
        ax.set(ylim=(len(measures) - 0.5, -0.5), xlim=(0, 100))
        ax.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel(f"percent of peak (where all stay below {100 * BOUND:.0f}, latency is the limit)")
    alt = f"Bars of how busy DRAM and SMs are, in percent of peak. DRAM: {spans(rows, 'frac_dram', '.0%')}. " + (
        f"SM: {spans(rows, 'frac_sm', '.0%')}."
    )
    return fig, alt


@style.figure
def dequant_breakdown(table: pd.DataFrame, M: int = 1, shapes=(NARROW, WIDE)) -> tuple[Figure, str]:
    """Finding C: what dequantisation costs on its own, before a matmul, and inside the fused kernel.

    Below the tuned kernel stand its twins: without dequantisation, and without any arithmetic.

    table:  report_table(run), the CSV of `tinygemm bench`, or that of `tinygemm breakdown` (one row per problem)
    shapes: (K, N), a panel each; where the table has none of them, the first four that it has
    """
    table = _parts_as_cases(table) if PARTS.keys() <= set(table.columns) else table
    columns = ["backend", *SHAPE, "launch", "l2_state", "status", "latency_us_p50", "latency_us_low", "latency_us_high"]
    style.require(table, columns, "dequant_breakdown")
    bars = (BASELINE, "dequant-only", "dequant-fp16", "int4-static", "int4", "int4-no-dequant", "int4-load-only")
    rows = primary(table)
    rows = rows[(rows["M"] == M) & rows["backend"].isin(bars)].dropna(subset=["latency_us_p50"])
    if rows.empty:
        raise ValueError(f"dequant_breakdown: the table has no {', '.join(bars)} at M = {M}, graph, cold L2")
    panels = style.shapes_present(rows, shapes)
    where = style.conditions(rows[rows["backend"] != BASELINE], f"M = {M}")
    height = 0.4 + 2.1 * len(panels)
    title = "What dequantisation costs, alone and inside a kernel"
    fig, axes = style.canvas(title, where, height=height, nrows=len(panels), squeeze=False)
    for ax, (K, N) in zip(axes[:, 0], panels, strict=True):
        at_shape = rows[(rows["K"] == K) & (rows["N"] == N)].drop_duplicates("backend").set_index("backend")
        _breakdown_bars(ax, at_shape, [backend for backend in bars if backend in at_shape.index])
        ax.set_title(f"K×N = {K}×{N}", loc="left", size=10.5, weight="bold", pad=4)
    axes[-1, 0].set_xlabel("latency (µs)")
    shown = rows[at_shapes(rows, panels)]
    times = spans(shown, "latency_us_p50", ".1f", " µs")
    alt = f"Bars of the time of one call at M = {M}, {', '.join(map(style.shape_name, panels))}: {times}."
    return fig, alt


def _parts_as_cases(parts: pd.DataFrame) -> pd.DataFrame:
    """tables.breakdown(run) as one row per backend and problem, like cases."""
    rows = parts.melt(id_vars=["problem", *SHAPE], value_vars=list(PARTS), var_name="part", value_name="latency_us_p50")
    known = {"backend": rows["part"].map(PARTS), "launch": "graph", "l2_state": "cold", "status": "ok"}
    known |= {"operands": "random", "case_id": "breakdown/" + rows["problem"]}
    return rows.assign(**known, latency_us_low=np.nan, latency_us_high=np.nan)


def _breakdown_bars(ax: Axes, rows: pd.DataFrame, bars) -> None:
    for y, backend in enumerate(bars):
        row = rows.loc[[backend]]
        total = float(row["latency_us_p50"].iloc[0])
        ax.barh(y, total, 0.72, color=style.colour(backend), zorder=2)
        interval = style.spread(row, "latency_us_p50")
        ax.errorbar(total, y, xerr=interval, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2, zorder=3)
        ax.annotate(f"{total:.1f}", (total, y), xytext=(6, 0), textcoords="offset points", va="center", size=9)
    names = {
        BASELINE: "FP16 matmul",
        "dequant-only": "dequantise to memory",
        "dequant-fp16": "… then FP16 matmul",
        "int4-no-dequant": "… not dequantised",
        "int4-load-only": "… weight-read bound",
    }
    ax.set_yticks(range(len(bars)), [names.get(backend, style.name(backend)) for backend in bars])
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.margins(x=0.16)
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
