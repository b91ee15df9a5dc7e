"""The limits of a kernel: every counter of every profiled case, what its warps wait for, and what it executes."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tinygemm.hardware import GPUS, gpu_key
from tinygemm.problem import NARROW, STUDY_SHAPES, WIDE
from tinygemm.report.base import style
from tinygemm.report.base.roofline import rates
from tinygemm.report.base.tables import BASELINE, SHAPE, copy_bandwidth_gb_s, primary, usual
from tinygemm.report.base.words import shape_name, spans
from tinygemm.report.bottleneck.tables import BOUND, NOT_A_STALL, ROUTE, STALLS, marked

READINGS = {
    "dram": "DRAM",
    "l2": "L2",
    "sm": "SM",
    "tensor": "tensor\ncores",
    "issue": "issue\nslots",
    "warps": "warps",
}
REGIMES = ("narrow", "square", "wide", "tall")
SHADES = mpl.colors.LinearSegmentedColormap.from_list("busy", ["#FFFFFF", "#F6C9A8", "#D55E00"])
ROW, HEADING = 0.27, 0.95  # inches of one case; and rows kept free above each problem, for its name
PIPES = {  # what ncu calls the pipes and operations
    "alu": "integer and logic",
    "fma": "FP32 and integer multiply",
    "fp16": "FP16",
    "fp32": "FP32",
    "integer": "integer",
    "bit": "logic",
    "conversion": "conversions",
    "xu": "conversions",
    "memory": "loads and stores",
    "lsu": "loads and stores",
    "uniform": "uniform",
    "control": "branches",
    "cbu": "branches",
}
MOST_STALLS = 6  # reasons with a colour of their own
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#B5568F", "#56B4E9", "#8C6D00", "#7A4FBF", "#44796B")
REST = "#D5D8DB"


@style.figure
def limits(rows: pd.DataFrame) -> tuple[Figure, str]:
    """Every profiled case: how busy each part of the GPU was, and what that makes the limit by the rule.

    rows: limiters.readings(run); (?) marks an answer that no claim rests on
    """
    style.require(rows, ["backend", *SHAPE, *READINGS, "limiter", "sure"], "limits")
    shown = [name for name in READINGS if rows[name].notna().any()]
    y = _places(rows)
    where = style.conditions(rows[["gpu", "run_id"]], "percent of peak, from Nsight Compute")
    fig, ax = style.canvas("What limits a call alone", where, height=0.5 + ROW * (y[-1] + 1))
    for x, name in enumerate(shown):
        for at, value in zip(y, rows[name].astype(float), strict=True):
            if not np.isnan(value):
                ax.add_patch(
                    mpl.patches.Rectangle((x - 0.48, at - 0.46), 0.96, 0.92, color=SHADES(min(value, 1)), lw=0)
                )
                look = {"weight": "bold" if value >= BOUND else "normal"}
                ax.text(x, at, f"{100 * value:.0f}", ha="center", va="center", size=9.5, **look)
    for at, text in zip(y, marked(rows), strict=True):
        ax.text(len(shown) - 0.35, at, _wrapped(text), va="center", size=8.5, linespacing=0.95)
    _name_cases(ax, rows, y)
    ax.set_xticks(range(len(shown)), [READINGS[name] for name in shown])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.xaxis.set_label_position("bottom")
    ax.set_xlabel(f"percent of peak; what is busiest limits, from {BOUND:.0%} on")
    ax.set_xlim(-0.5, len(shown) + 2.7)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    count = rows["limiter"].str.partition(":")[0].value_counts()
    alt = (
        f"A grid of {len(rows)} profiled cases: how busy each part of the GPU was, and the limit by the "
        f"rule: {', '.join(f'{name} {times} times' for name, times in count.items())}. DRAM is busy: "
        f"{spans(rows, 'dram', '.0%')}."
    )
    return fig, alt


@style.figure
def stalls(rows: pd.DataFrame) -> tuple[Figure, str]:
    """The time of the resident warps of each profiled case, by what they do.

    rows: limiters.readings(run), with columns stall_<reason>
    """
    reasons = [column for column in rows.columns if column.startswith("stall_")]
    if not reasons:
        raise ValueError("stalls: the run did not collect the reasons for which warps wait")
    shares = rows[reasons].rename(columns=lambda name: name.removeprefix("stall_")).fillna(0)
    told = shares.T.groupby([_reason(name) for name in shares.columns], sort=False).sum().T
    fixed = [name for name in ("issuing", "ready to issue") if name in told]
    waits = told.drop(columns=fixed).mean().sort_values(ascending=False).index[:MOST_STALLS]
    parts = pd.concat([told[fixed], told[list(waits)]], axis=1)
    colours = dict(zip(waits, PALETTE, strict=False)) | {"issuing": style.INK, "ready to issue": style.FAINT}
    rest = 1 - parts.sum(axis=1)
    if (rest > 0.005).any():
        parts, colours = parts.assign(other=rest.clip(lower=0)), colours | {"other": REST}
    where = style.conditions(rows[["gpu", "run_id"]], "counters from Nsight Compute")
    fig = _stack("What the warps wait for", where, rows, 100 * parts, colours, "percent of the time of a resident warp")
    told = ", ".join(f"{name} {share:.0%}" for name, share in parts.mean().items())
    return fig, f"Stacked bars of what resident warps wait for in {len(rows)} profiled cases; on average {told}."


@style.figure
def instruction_mix(rows: pd.DataFrame) -> tuple[Figure, str]:
    """Thread instructions per weight, by what executes them, and the range that the machine code allows.

    rows: limiters.with_static(readings, file), with per_weight, pipe_<name>, static_low and static_high
    """
    rows = rows[rows["per_weight"].notna() | rows["static_low"].notna()].reset_index(drop=True)
    if rows.empty:
        raise ValueError("instruction_mix: no case has counted instructions, executed or in machine code")
    pipes = [column for column in rows.columns if column.startswith("pipe_") and rows[column].notna().any()]
    parts = rows[pipes].fillna(0)
    parts = parts.T.groupby([_pipe(name.removeprefix("pipe_")) for name in pipes], sort=False).sum().T
    names = parts.mean().sort_values(ascending=False).index[: len(PALETTE)]
    parts = parts[list(names)]
    colours = dict(zip(names, PALETTE, strict=False))
    rest = (rows["per_weight"] - parts.sum(axis=1)).clip(lower=0).fillna(0)
    if (rest > 0.005).any():
        parts, colours = parts.assign(other=rest), colours | {"other": REST}
    where = style.conditions(rows[["gpu", "run_id"]], "executed: Nsight Compute", "machine code: compiled for this GPU")
    marks = [Line2D([], [], color=style.INK, lw=2, marker="|", ms=9, label="machine code: loop to whole")]
    fig = _stack("Instructions per weight", where, rows, parts, colours, "thread instructions per weight", marks)
    (ax,) = fig.axes
    for at, (_, row) in zip(_places(rows), rows.iterrows(), strict=True):
        if not np.isnan(row["static_low"]):
            ax.plot(
                [row["static_low"], row["static_high"]], [at, at], color=style.INK, lw=1.6, marker="|", ms=9, zorder=4
            )
    ax.set_xlim(0, 1.06 * np.nanmax([rows["per_weight"].max(), rows["static_high"].max(), parts.sum(axis=1).max()]))
    executed = spans(rows, "per_weight", ".2f")
    alt = f"Stacked bars of thread instructions per weight in {len(rows)} cases, by what executes them: {executed}."
    return fig, alt


@style.figure
def roofline_regimes(
    table: pd.DataFrame, shapes=STUDY_SHAPES, backends=(BASELINE, "int4-static", "int4")
) -> tuple[Figure, str]:
    """Every regime under the roofs, a line over M for each kernel, up to the largest M that was timed.

    table: report_table(run); the memory roof is the copy bandwidth of the run, the compute roof the published FP16 peak
    """
    style.require(table, [*SHAPE, "backend", "flops", "bytes_min", "tflop_s"], "roofline_regimes")
    rows = primary(usual(table))
    rows = rows[rows["backend"].isin(backends)]
    panels = style.shapes_present(rows, shapes)
    rows = rows[pd.MultiIndex.from_frame(rows[["K", "N"]]).isin(panels)].drop_duplicates(["backend", *SHAPE])
    copy = copy_bandwidth_gb_s(table)
    if rows.empty or not np.isfinite(copy):
        raise ValueError(f"roofline_regimes needs {', '.join(backends)} at one of its shapes and the copy bandwidth")
    rows = rows.assign(intensity=rows["flops"] / rows["bytes_min"]).sort_values("M")
    spec = GPUS.get(gpu_key(table["gpu"].iloc[0])) if "gpu" in table else None
    peak = spec.fp16_tflop_s if spec else 10 * rows["tflop_s"].max()
    ridge = peak * 1e3 / copy
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    handles = [
        Line2D([], [], color=style.colour(b), marker=style.marker(b), ms=6, lw=1.4, mec="white", label=style.name(b))
        for b in shown
    ]
    tokens = f"M = {rows['M'].min():.0f} to {rows['M'].max():.0f}"
    roofs = "roofs: copy bandwidth, measured" + (", and FP16 tensor peak, datasheet" if spec else "")
    where = style.conditions(rows[["gpu", "run_id", "launch", "l2_state"]], tokens, roofs)
    height = 0.5 + 2.1 * -(-len(panels) // 2)
    grid = {
        "nrows": -(-len(panels) // 2),
        "ncols": min(2, len(panels)),
        "sharex": True,
        "sharey": True,
        "squeeze": False,
    }
    fig, axes = style.canvas("Every regime under the roofs", where, legend=handles, height=height, **grid)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, shape in zip(axes.flat, panels, strict=False):
        ax.set(xscale="log", yscale="log", xlim=(0.6, 6 * ridge), ylim=(0.3 * rows["tflop_s"].min(), 2.5 * peak))
        ax.plot([0.6, ridge], [0.6 * copy / 1e3, peak], color=style.IDEAL, lw=1.4, zorder=1)
        if spec:
            ax.plot([ridge, 6 * ridge], [peak, peak], color=style.IDEAL, lw=1.4, zorder=1)
        mine = rows[(rows["K"] == shape[0]) & (rows["N"] == shape[1])]
        for backend in shown:
            rates(ax, mine[mine["backend"] == backend], backend, ms=6, lw=1.3)
        regime = f"{REGIMES[STUDY_SHAPES.index(shape)]}: " if shape in STUDY_SHAPES else ""
        ax.set_title(f"{regime}{shape_name(shape)}", loc="left", size=10.5, weight="bold", pad=4)
    for ax in axes[:, 0]:
        ax.set_ylabel("TFLOP/s")
    for ax in axes[-1]:
        ax.set_xlabel("FLOP per byte")
    alt = (
        f"Arithmetic rate against intensity for {', '.join(map(shape_name, panels))}, {tokens}, below the "
        f"roof of the copy bandwidth, {copy / 1e3:.2f} TB/s: {spans(rows, 'tflop_s', '.1f', ' TFLOP/s')}."
    )
    return fig, alt


def _stack(title, where, rows, parts: pd.DataFrame, colours: dict, label: str, marks=()) -> Figure:
    handles = [*(Patch(color=colours[name], label=name) for name in parts.columns), *marks]
    y = _places(rows)
    fig, ax = style.canvas(title, where, legend=handles, legend_columns=2, height=0.5 + ROW * (y[-1] + 1))
    left = np.zeros(len(rows))
    for name in parts.columns:
        ax.barh(y, parts[name], 0.74, left=left, color=colours[name], zorder=2)
        left += parts[name].to_numpy()
    _name_cases(ax, rows, y)
    ax.set(xlabel=label, xlim=(0, 1.04 * left.max() if left.max() > 0 else 1))
    ax.grid(axis="y", visible=False)
    return fig


def _places(rows: pd.DataFrame) -> np.ndarray:
    """The place of each case: one below the other, with room for a heading above each problem."""
    problem = rows[SHAPE].astype(str).agg("-".join, axis=1)
    return np.arange(len(rows)) + HEADING * (problem != problem.shift()).cumsum().to_numpy()


def _name_cases(ax: Axes, rows: pd.DataFrame, y: np.ndarray) -> None:
    """Kernels as tick labels, and above those of each problem its regime, shape and M."""
    names = rows["backend"].map(style.short_name)
    if "form" in rows:
        names = names.where(rows["form"] != ROUTE, "dequantise first")
    ax.set_yticks(y, names, size=9.5)
    ax.set_ylim(y[-1] + 0.6, -0.3)
    first = ~rows[SHAPE].astype(str).agg("-".join, axis=1).duplicated().to_numpy()
    for at, (_, row) in zip(y[first], rows[first].iterrows(), strict=True):
        shape = (int(row["K"]), int(row["N"]))
        regime = f"{REGIMES[STUDY_SHAPES.index(shape)]}: " if shape in STUDY_SHAPES else ""
        text = f"{regime}{shape_name(shape)}, M = {int(row['M'])}"
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (3, 0)}
        ax.annotate(text, (0, at - 0.86), va="center", size=9.5, weight="bold", **place)


def _pipe(name: str) -> str:
    return "tensor cores" if name.startswith("tensor") else PIPES.get(name, name.replace("_", " "))


def _reason(name: str) -> str:
    known = dict(zip(NOT_A_STALL, ("issuing", "ready to issue"), strict=True))
    return known.get(name) or STALLS.get(name, name.replace("_", " "))


def _wrapped(text: str, width: int = 30) -> str:
    if len(text) <= width:
        return text
    head, _, tail = text.rpartition(", ")
    return f"{head},\n{tail}" if head else text


COUNTERS = {
    "frac_dram": "DRAM bandwidth",
    "frac_sm": "SM throughput",
    "frac_issue": "issue slots",
    "frac_warps": "warps resident",
}


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
            ax.set_title(f"K×N = {shape_name((K, N))}", loc="left", size=10.5, weight="bold", pad=4)
        ax.set(ylim=(len(measures) - 0.5, -0.5), xlim=(0, 100))
        ax.grid(axis="y", visible=False)
    axes[-1, 0].set_xlabel(f"percent of peak (where all stay below {100 * BOUND:.0f}, latency is the limit)")
    alt = f"Bars of how busy DRAM and SMs are, in percent of peak. DRAM: {spans(rows, 'frac_dram', '.0%')}. " + (
        f"SM: {spans(rows, 'frac_sm', '.0%')}."
    )
    return fig, alt
