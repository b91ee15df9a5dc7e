"""The sources of the speedup: the path from FP16 to INT4 as a waterfall of factors."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import style
from tinygemm.report.base.tables import SHAPE, primary
from tinygemm.report.base.words import shape_name, span
from tinygemm.report.decomposition import tables as decomposition

TICKS_US = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)


@style.figure
def waterfall(steps: pd.DataFrame, table: pd.DataFrame, M: int = 1, shapes=STUDY_SHAPES) -> tuple[Figure, str]:
    """The time of one product, step by step, from FP16 launched from Python to INT4 in a graph; a panel per projection.

    On the logarithmic axis the length of a bar is its factor, so that lengths add up to the speedup.

    steps:  decomposition.steps(run)
    table:  report_table(run), for the floor of the INT4 kernel
    shapes: (K, N); where the run has none of them, the first four that it has
    """
    style.require(steps, ["problem", *SHAPE, "step", "left_us", "right_us", "value", "low", "high"], "waterfall")
    rows = steps[steps["M"] == M]
    found = [decomposition.path(of) for _, of in rows.groupby("problem", sort=False)]
    paths = {(path["K"].iloc[0], path["N"].iloc[0]): path for path in found if len(path)}
    shapes = [shape for shape in shapes if shape in paths] or sorted(paths)[:4]
    if not shapes:
        raise ValueError(f"waterfall: the run has no complete path from FP16 to INT4 at M = {M}")
    handles = [
        Patch(color=style.colour("int4"), label="a gain"),
        Patch(color=style.colour("aten-int4mm"), label="a cost"),
        Line2D([], [], color=style.IDEAL, lw=2, label="INT4 bytes at copy speed + empty node"),
    ]
    where = style.conditions(rows, f"M = {M}", "groups of 128", "cold L2", "lengths are factors, lines 95 % intervals")
    height = 0.5 + sum(0.42 + 0.27 * (len(paths[shape]) + 1) for shape in shapes)
    fig, axes = style.canvas(
        "From FP16 to INT4, one change at a time", where, legend=handles, height=height, nrows=len(shapes), sharex=True,
        squeeze=False, gridspec_kw={"height_ratios": [len(paths[shape]) + 1 for shape in shapes]},
    )  # fmt: skip
    floors = primary(table)
    floors = floors[(floors["backend"] == "int4") & (floors["M"] == M)].set_index("problem")["floor_us"]
    for ax, shape in zip(axes[:, 0], shapes, strict=True):
        _path(ax, paths[shape])
        floor = floors.get(paths[shape]["problem"].iloc[0], np.nan)
        ax.axvline(floor, color=style.IDEAL, lw=2, zorder=4)
        between = paths[shape].drop(index="launch", errors="ignore")["value"].prod()
        title = f"{shape_name(shape)}: {between:.2f}×{_kernel_and_bits(paths[shape])}"
        ax.set_title(title, loc="left", size=10.5, weight="bold", pad=4)
    shown = pd.concat(paths[shape] for shape in shapes)
    times = np.concatenate([floors.reindex(shown["problem"]), shown["left_us"], shown["right_us"]])
    low, high = 0.8 * np.nanmin(times), 1.5 * np.nanmax(times)
    ticks = [tick for tick in TICKS_US if low < tick < high]
    axes[-1, 0].set(xscale="log", xlim=(low, high), xlabel="time of one call (µs, log scale)")
    axes[-1, 0].set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes[-1, 0].minorticks_off()
    factors = {step: span(of["value"], ".2f") for step, of in shown.groupby("label", sort=False)}
    alt = (
        f"Steps from the time of FP16 to that of INT4 at M = {M}, {', '.join(map(shape_name, shapes))}; their "
        f"factors are: {'; '.join(f'{step} {factor}' for step, factor in factors.items())}."
    )
    return fig, alt


def _kernel_and_bits(path: pd.DataFrame) -> str:
    """` = kernel 2.10 · bits 1.85`, the factors that the cards name: bits are every step after the kernel's."""
    values = path.set_index("label")["value"]
    return f" = kernel {values['kernel']:.2f} · bits {values.drop(['launch', 'kernel'], errors='ignore').prod():.2f}"


def _path(ax: Axes, path: pd.DataFrame) -> None:
    """One bar per step from the time before it to the time after, its factor beside it, the last time below."""
    for y, (_, row) in enumerate(path.iterrows()):
        gain = row["value"] >= 1
        ax.barh(
            y, row["right_us"] - row["left_us"], 0.62, left=row["left_us"],
            color=style.colour("int4" if gain else "aten-int4mm"), zorder=2,
        )  # fmt: skip
        # the interval of the factor, from the time before the step
        ends = row["left_us"] / row["high"], row["left_us"] / row["low"]
        spread = np.nan_to_num(np.clip([[row["right_us"] - ends[0]], [ends[1] - row["right_us"]]], 0, None))
        ax.errorbar(row["right_us"], y, xerr=spread, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2, zorder=3)
        if y:
            ax.vlines(row["left_us"], y - 0.7, y - 0.3, color=style.FAINT, lw=0.8, zorder=1)
        right = max(row["left_us"], row["right_us"], ends[1])
        place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "size": 9}
        ax.annotate(f"×{row['value']:.2f}", (right, y), path_effects=style.HALO, zorder=5, **place)
    last = path.iloc[-1]["right_us"]
    ax.plot(last, len(path), "D", color=style.colour("int4"), ms=6, zorder=3)
    ax.annotate(
        f"{path.iloc[0]['left_us']:.1f} → {last:.1f} µs", (last, len(path)), xytext=(8, 0), textcoords="offset points",
        va="center", size=9, weight="bold", path_effects=style.HALO,
    )  # fmt: skip
    ax.set_yticks(range(len(path) + 1), [*path["label"], "INT4"])
    ax.set_ylim(len(path) + 0.5, -0.6)
    ax.grid(axis="y", visible=False)
