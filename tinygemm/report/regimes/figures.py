"""Speedup maps over K and N with their break-even line, and the crossover in tokens."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import style
from tinygemm.report.base.words import shape_name
from tinygemm.report.regimes import tables as regimes

# orange for a loss, blue for a gain, white at 1: told apart with the common colour-vision deficiencies, and in grey by
# the break-even line
DIVERGING = mpl.colors.LinearSegmentedColormap.from_list(
    "loss to gain", ["#7A3D00", "#E69F00", "#FBE9C6", "#FFFFFF", "#CFE3F2", "#0072B2", "#002F4D"]
)
OCTAVES = 2  # the scale ends at 1/4 and 4 times, a little above what 4 bits allow
NOT_TIMED = "#D5D8DB"


@style.figure
def best_map(rows: pd.DataFrame) -> tuple[Figure, str]:
    """The speedup of one kernel over FP16 on a grid of K and N, with its number in each cell.

    rows: K, N, M, value, against; one per point
    """
    style.require(rows, ["M", "K", "N", "value", "against"], "best_map")
    heights, widths = sorted(set(rows["K"])), sorted(set(rows["N"]))
    values = _log2(rows, heights, widths)
    where = style.conditions(
        rows,
        f"M = {rows['M'].iloc[0]}",
        "cold L2",
        "CUDA graph",
        "white is 1×",
        *["line: break-even"] * _has_both(values),
    )
    fig, ax = style.canvas(f"INT4 over FP16 ({rows['against'].iloc[0]})", where, height=0.5 + 0.36 * len(heights))
    shown = _map(ax, values)
    for y, x in np.argwhere(np.isfinite(values)):
        ink = _ink(shown.to_rgba(values[y, x]))
        ax.text(x + 0.5, y + 0.5, f"{2 ** values[y, x]:.1f}", ha="center", va="center", size=8.5, color=ink)
    ax.set(xlabel="N, output features (1k = 1024)", ylabel="K, input features")
    _lattice_ticks(ax, heights, widths)
    bar = fig.colorbar(shown, ax=ax, orientation="vertical", shrink=0.9, aspect=25, extend="both", pad=0.02)
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["¼×", "½×", "1×", "2×", "4×"])
    worst, best = rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()]
    alt = (
        f"A map over K and N of the speedup of tuned INT4 over FP16 ({rows['against'].iloc[0]}), {len(rows)} points: "
        f"from {worst['value']:.2f}× at {shape_name(worst)} to {best['value']:.2f}× at {shape_name(best)}."
    )
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
    handles.append(Line2D([], [], color=style.INK, lw=1.2, ls=(0, (3, 2)), label="dequantising wins"))
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
    alt = f"Curves of latency against the tokens in flight. Fused INT4 is as slow as dequantising first: {stops}."
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
    if _has_both(values):
        centres = [np.arange(size) + 0.5 for size in values.shape]
        ax.contour(centres[1], centres[0], np.ma.masked_invalid(values), levels=[0], colors=style.INK, linewidths=2)
    return shown


def _has_both(values: np.ndarray) -> bool:
    """Tell whether the map has gains and losses, between which the break-even line runs."""
    return bool((values > 0).any() and (values < 0).any())


def _ink(ground) -> str:
    """White or the ink of the figures, whichever has the higher contrast to an RGB colour."""
    light, ink = _luminance(ground) + 0.05, _luminance(style.INK) + 0.05
    return "white" if 1.05 / light > light / ink else style.INK


def _luminance(colour) -> float:
    """Relative luminance, 0 to 1, as the guidelines for web content define it."""
    parts = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _lattice_ticks(ax: Axes, heights, widths) -> None:
    names = [
        [f"{value / 1024:.3g}k" if value >= 1024 else str(value) for value in values] for values in (heights, widths)
    ]
    ax.set_yticks(np.arange(len(heights)) + 0.5, names[0])
    ax.set_xticks(np.arange(len(widths)) + 0.5, names[1], size=8.5)
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
