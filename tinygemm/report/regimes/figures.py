"""Speedup maps over K and N with their break-even line, and the crossover in tokens."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import style
from tinygemm.report.base.words import shape_name, span
from tinygemm.report.regimes import tables as regimes

# orange for a loss, blue for a gain, white at 1: told apart with the common colour-vision deficiencies, and in grey by
# the break-even line
DIVERGING = mpl.colors.LinearSegmentedColormap.from_list(
    "loss to gain", ["#7A3D00", "#E69F00", "#FBE9C6", "#FFFFFF", "#CFE3F2", "#0072B2", "#002F4D"]
)
OCTAVES = 2  # the scale ends at 1/4 and 4 times, a little above what 4 bits allow
KERNEL_NAMES = {"int4-static": "simple kernel", "int4": "tuned kernel"}
NOT_TIMED = "#D5D8DB"


@style.figure
def speedup_map(rows: pd.DataFrame, against: str = "cuBLAS", m_list=(1, 8)) -> tuple[Figure, str]:
    """Speedup of the simple and the tuned INT4 kernel over FP16 on a grid of K and N, a row of panels per M.

    rows:    regimes.speedups(run)
    against: "cuBLAS" or "best FP16"
    """
    style.require(rows, ["M", "K", "N", "kernel", "against", "value"], "speedup_map")
    grids = {M: at for M in m_list if len(at := regimes.grid(rows[rows["against"] == against], M))}
    if not grids:
        raise ValueError(f"speedup_map: no grid of at least {regimes.FEWEST} K and N at M = {m_list} against {against}")
    handles = [
        Line2D([], [], color=style.INK, lw=2, label="break-even"),
        Patch(facecolor="white", edgecolor=style.INK, hatch="////", lw=0, label="reclaimed by the tuned kernel"),
        Patch(facecolor=NOT_TIMED, label="not timed"),
    ]
    where = style.conditions(rows, "cold L2", "CUDA graph", f"FP16: {against}", "white is 1×")
    fig, axes = style.canvas(
        "Where INT4 is faster than FP16", where, legend=handles, height=2.9 * len(grids) + 0.5, nrows=len(grids),
        ncols=2, sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    # one lattice for all panels, which share their axes
    lattice = [sorted(set().union(*(at[axis] for at in grids.values()))) for axis in ("K", "N")]
    for line, (M, at) in zip(axes, grids.items(), strict=True):
        maps = {kernel: _log2(at[at["kernel"] == kernel], *lattice) for kernel in regimes.KERNELS}
        for ax, (kernel, values) in zip(line, maps.items(), strict=True):
            shown = _map(ax, values)
            ax.set_title(f"{KERNEL_NAMES[kernel]}, M = {M}", loc="left", size=10.5, weight="bold", pad=4)
        _hatch(line[1], (maps["int4"] > 0) & (maps["int4-static"] <= 0))
        line[0].set_ylabel("K, input features")
    for ax in axes[-1]:
        ax.set_xlabel("N, output features (1k = 1024)")
    _lattice_ticks(axes[0, 0], *lattice)
    bar = fig.colorbar(shown, ax=axes, orientation="horizontal", shrink=0.7, aspect=40, extend="both", pad=0.02)
    ticks = np.array([0.25, 0.5, 0.71, 1, 1.41, 2, 4])
    bar.set_ticks(np.log2(ticks), labels=["¼×", "½×", "0.7×", "1×", "1.4×", "2×", "4×"])
    bar.ax.set_title("speedup over FP16", loc="left", size=10.5, pad=4)
    shown = rows[(rows["against"] == against) & rows["M"].isin(grids)]
    told = "; ".join(
        f"{KERNEL_NAMES[kernel]}, M = {M}: {span(mine['value'], '.2f', '×')}"
        for (M, kernel), mine in shown.groupby(["M", "kernel"], sort=False)
        if kernel in KERNEL_NAMES
    )
    alt = f"Maps over K and N of the speedup of INT4 over FP16 ({against}). {told}."
    return fig, alt


@style.figure
def crossover(rows: pd.DataFrame) -> tuple[Figure, str]:
    """Latency against the tokens in flight, a panel per projection, and where the fused kernel stops paying.

    rows: regimes.by_tokens(report_table(run))
    """
    style.require(rows, ["backend", "M", "K", "N", "latency_us_p50", "latency_us_low", "latency_us_high"], "crossover")
    panels = style.shapes_present(rows, STUDY_SHAPES)
    shown = [backend for backend in regimes.CONTENDERS if backend in set(rows["backend"])]
    handles = [Line2D([], [], label=style.name(backend), **_look(backend)) for backend in shown]
    handles.append(Line2D([], [], color=style.INK, lw=1.2, ls=(0, (3, 2)), label="fused stops paying"))
    lines = -(-len(panels) // 2)
    where = style.conditions(rows[rows["backend"] != regimes.BASELINE])
    fig, axes = style.canvas(
        "From few tokens to many", where, legend=handles, height=2.3 * lines + 0.3, nrows=lines, ncols=2, sharex=True,
        squeeze=False,
    )  # fmt: skip
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    crossings = regimes.crossings(rows).set_index(["K", "N"])["m_dequant"]
    for ax, shape in zip(axes.flat, panels, strict=False):
        here = rows[(rows["K"] == shape[0]) & (rows["N"] == shape[1])]
        for backend in shown:
            mine = here[here["backend"] == backend].sort_values("M")
            spread = style.spread(mine, "latency_us_p50")
            ax.errorbar(mine["M"], mine["latency_us_p50"], spread, capsize=2, elinewidth=1, **_look(backend))
        if np.isfinite(at := crossings[shape]):
            ax.axvline(at, color=style.INK, lw=1.2, ls=(0, (3, 2)), zorder=1)
        where = f"M ≈ {at:.0f}" if np.isfinite(at) else "no crossing"
        ax.set_title(f"{shape_name(shape)}: {where}", loc="left", size=10.5, weight="bold", pad=4)
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        ticks = [tick for tick in (2, 3, 5, 10, 20, 30, 50, 100, 200, 500) if low <= tick <= high]
        ax.set_yticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
    tokens = sorted(set(rows["M"]))
    for ax in axes.flat[: len(panels)]:
        ax.set_xscale("log", base=2)
        ax.set_xticks(tokens[::2], [str(M) for M in tokens[::2]])
        ax.minorticks_off()
    for ax in axes[-1]:
        ax.set_xlabel("M, tokens in flight")
    for ax in axes[:, 0]:
        ax.set_ylabel("time (µs)")
    stops = "; ".join(
        f"{shape_name(shape)} " + (f"at M ≈ {at:.0f}" if np.isfinite(at) else "nowhere")
        for shape, at in crossings.reindex(panels).items()
    )
    alt = f"Curves of latency against the tokens in flight. The fused INT4 kernel stops paying: {stops}."
    return fig, alt


def _log2(rows: pd.DataFrame, heights, widths) -> np.ndarray:
    """The speedups as octaves [K, N]; NaN where a point was not timed."""
    values = rows.pivot(index="K", columns="N", values="value").reindex(index=heights, columns=widths)
    return np.log2(values.to_numpy(dtype=float))


def _map(ax: Axes, values: np.ndarray):
    ax.set_facecolor(NOT_TIMED)
    ax.grid(visible=False)
    shown = ax.pcolormesh(
        np.ma.masked_invalid(values), cmap=DIVERGING, vmin=-OCTAVES, vmax=OCTAVES, edgecolors="white", linewidth=0.4
    )
    if (values > 0).any() and (values < 0).any():
        centres = [np.arange(size) + 0.5 for size in values.shape]
        ax.contour(centres[1], centres[0], np.ma.masked_invalid(values), levels=[0], colors=style.INK, linewidths=2)
    return shown


def _hatch(ax: Axes, cells: np.ndarray) -> None:
    for y, x in np.argwhere(cells):
        ax.add_patch(Rectangle((x, y), 1, 1, fill=False, hatch="////", lw=0, ec=style.INK, alpha=0.45))


def _lattice_ticks(ax: Axes, heights, widths) -> None:
    """Every other N is named, so that the names fit half a figure."""
    names = [
        [f"{value / 1024:.3g}k" if value >= 1024 else str(value) for value in values] for values in (heights, widths)
    ]
    ax.set_yticks(np.arange(len(heights)) + 0.5, names[0])
    ax.set_xticks(np.arange(len(widths))[::2] + 0.5, names[1][::2])
    ax.tick_params(length=0)


def _look(backend: str) -> dict:
    look = {
        "color": style.colour(backend),
        "marker": style.marker(backend),
        "ms": 5,
        "lw": 1.8,
        "mec": "white",
        "mew": 0.6,
    }
    return look | ({"lw": 3.4, "ms": 0, "alpha": 0.9} if backend == "int4-fused" else {})
