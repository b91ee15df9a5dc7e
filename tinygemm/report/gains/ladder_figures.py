"""Figures of the parts of the speedup: kernel, overlap and bits as three steps, in two orders."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import style
from tinygemm.report.base.words import shape_name

COLOURS = {
    "kernel": "#009E73", "kernel and overlap": "#44796B", "kernel and bits": "#7A4FBF", "overlap": "#56B4E9",
    "bits": "#0072B2",
}  # fmt: skip
TICKS_US = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)


@style.figure
def three_steps(rows: pd.DataFrame, shapes=STUDY_SHAPES) -> tuple[Figure, str]:
    """The way from the library's FP16 to INT4, one line per order; on the logarithmic axis lengths are factors.

    rows:   ladder.three_steps(run)
    shapes: (K, N); where the run has none of them, the first four that it has
    """
    style.require(rows, ["order", "step", "M", "K", "N", "left_us", "right_us", "value"], "three_steps")
    shapes = style.shapes_present(rows, shapes)
    rows = rows[pd.MultiIndex.from_frame(rows[["K", "N"]]).isin(shapes)]
    shown = [step for step in COLOURS if step in set(rows["step"])]
    handles = [Patch(color=COLOURS[step], label=step) for step in shown]
    where = style.conditions(rows, f"M = {rows['M'].iloc[0]}", "cold L2", "CUDA graph")
    fig, axes = style.canvas(
        "From FP16 in the library to INT4", where, legend=handles, height=0.4 + 0.95 * len(shapes),
        nrows=len(shapes), sharex=True, squeeze=False,
    )  # fmt: skip
    low, high = 0.8 * rows["right_us"].min(), 1.25 * rows["left_us"].max()
    ticks = [tick for tick in TICKS_US if low < tick < high]
    axes[-1, 0].set(xscale="log", xlim=(high, low), xlabel="µs per call (log scale, faster to the right)")
    axes[-1, 0].set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes[-1, 0].minorticks_off()
    told = []
    for ax, shape in zip(axes[:, 0], shapes, strict=True):
        mine = rows[(rows["K"] == shape[0]) & (rows["N"] == shape[1])]
        lines = [(order, of) for order, of in mine.groupby("order", sort=False)]
        for y, (_, of) in enumerate(lines):
            _line(ax, y, of)
        first = lines[0][1]
        ends = first["left_us"].iloc[0], first["right_us"].iloc[-1]
        title = f"{shape_name(shape)}: {ends[0]:.1f} → {ends[1]:.1f} µs, {ends[0] / ends[1]:.2f}×"
        ax.set_title(title, loc="left", size=10.5, weight="bold", pad=4)
        ax.set_yticks(range(len(lines)), [order for order, _ in lines])
        ax.set_ylim(len(lines) - 0.45, -0.55)
        ax.grid(axis="y", visible=False)
        told.append(f"{shape_name(shape)}: " + ", ".join(f"{row.step} {row.value:.2f}" for row in first.itertuples()))
    return fig, f"Steps from FP16 in the library to INT4, as factors. {'; '.join(told)}."


def _line(ax: Axes, y: int, steps: pd.DataFrame) -> None:
    """One bar per step, end to end, a thin one where the step loses; their factors beside them, in the same order."""
    for row in steps.itertuples():
        height, above = (0.7, 2) if row.value >= 1 else (0.3, 3)
        ax.barh(y, row.right_us - row.left_us, height, left=row.left_us, color=COLOURS[row.step], zorder=above)
    factors = " × ".join(f"{value:.2f}" for value in steps["value"])
    slow, fast = steps["left_us"].max(), steps["right_us"].min()
    low, high = sorted(ax.get_xlim())
    room_left, room_right = high / slow, fast / low
    x, side, gap = (slow, "right", -6) if room_left > room_right else (fast, "left", 6)
    place = {"xytext": (gap, 0), "textcoords": "offset points", "ha": side, "va": "center"}
    ax.annotate(factors, (x, y), size=9.5, zorder=4, path_effects=style.HALO, **place)
