"""The way to the fast kernel: a staircase of times per projection, down to the weight-read bound."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import style
from tinygemm.report.base.tables import BASELINE
from tinygemm.report.base.words import shape_name
from tinygemm.report.peers.tables import OVERLAPPING, SERIAL

LOSS = style.colour("aten-int4mm")
TICKS_US = (1, 3, 10, 30, 100, 300, 1000)
LINES = {
    "fp16_us": (BASELINE, "FP16 (cuBLAS)", (0, (1, 1.2))),
    "reads_us": (OVERLAPPING, "weight-read bound", "-"),
    "reads_serial_us": (SERIAL, "… without overlap", (0, (4, 2))),
}


@style.figure
def ladder(rows: pd.DataFrame, M: int = 1, shapes=STUDY_SHAPES) -> tuple[Figure, str]:
    """The time of each step of the ladder, one panel per projection; on the logarithmic axis lengths are factors.

    rows:   steps.rungs(run)
    shapes: (K, N); where the run has none of them, the first four that it has
    """
    style.require(rows, ["M", "K", "N", "label", "latency_us", "factor", "same", *LINES], "ladder")
    rows = rows[rows["M"] == M]
    if rows.empty:
        raise ValueError(f"ladder: the table has no step at M = {M}")
    shapes = style.shapes_present(rows, shapes)
    known = [name for name in LINES if rows[name].notna().any()]
    handles = [Line2D([], [], color=style.colour(LINES[name][0]), lw=2, ls=LINES[name][2], label=LINES[name][1])
               for name in known]  # fmt: skip
    if ((rows["factor"] < 1) & ~rows["same"]).any():
        handles.append(Patch(color=LOSS, label="a step that loses"))
    where = style.conditions(rows, f"M = {M}", "groups of 128", "cold L2", "CUDA graph", "lines are 95 % intervals")
    steps, columns = rows["step"].nunique(), min(2, len(shapes))
    panels = -(-len(shapes) // columns)
    height = 0.45 + panels * (0.3 + 0.3 * steps)
    fig, axes = style.canvas(
        "How the kernel got fast, one step at a time", where, legend=handles, height=height,
        nrows=panels, ncols=columns, sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    times = rows[["latency_us", *known]].to_numpy(dtype=float)
    low, high = 0.75 * np.nanmin(times), 3.2 * np.nanmax(times)  # room for the factors
    ticks = [tick for tick in TICKS_US if low < tick < high]
    totals = {}
    for ax, shape in zip(axes.flat, shapes, strict=False):
        mine = rows[(rows["K"] == shape[0]) & (rows["N"] == shape[1])].sort_values("step")
        _stairs(ax, mine)
        for name in known:
            ax.axvline(mine[name].iloc[0], color=style.colour(LINES[name][0]), lw=1.8, ls=LINES[name][2], zorder=1)
        totals[shape] = mine["latency_us"].iloc[[0, -1]]
        total = totals[shape].iloc[0] / totals[shape].iloc[-1]
        ax.set_title(f"{shape_name(shape)}: {total:.1f}× faster", loc="left", size=10.5, weight="bold", pad=4)
        ax.set(xscale="log", xlim=(low, high))
        ax.set_xticks(ticks, [f"{tick}" for tick in ticks])
        ax.minorticks_off()
        ax.set_yticks(range(steps), mine["label"])
        ax.set_ylim(steps - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
    for ax in axes.flat[len(shapes) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("µs per call, log scale")
    ends = [f"{shape_name(shape)} {first:.1f} to {last:.1f} µs" for shape, (first, last) in totals.items()]
    alt = f"Stairs of the time of each step from the simple to the tuned kernel at M = {M}: {'; '.join(ends)}."
    return fig, alt


def _stairs(ax: Axes, rows: pd.DataFrame) -> None:
    """One bar per step from the time before it to its own, with its factor; the first and last time in µs."""
    before, ours = rows["latency_us"].iloc[0], style.colour("int4")
    for y, (_, row) in enumerate(rows.iterrows()):
        time = row["latency_us"]
        if y:
            if not row["same"]:
                ax.barh(y, time - before, 0.62, left=before, color=LOSS if time > before else ours, zorder=2)
            ax.vlines(before, y - 0.7, y - 0.3, color=style.FAINT, lw=0.8, zorder=1)
        colour = style.colour("int4-static") if y == 0 else ours
        spread = style.spread(row.to_frame().T.infer_objects(), "latency_us")
        ax.errorbar(time, y, xerr=spread, fmt="o", ms=5.5, color=colour, mec="white", ecolor=style.INK, zorder=3)
        text = "same kernel" if row["same"] else f"÷{row['factor']:.2f}"
        if y in (0, len(rows) - 1):
            text = f"{time:.1f} µs" if y == 0 else f"{text}, {time:.1f} µs"
        ax.annotate(
            text, (max(time, before), y), xytext=(7, 0), textcoords="offset points", va="center", size=9,
            bbox={"fc": "white", "ec": "none", "pad": 0.6}, zorder=4,
            weight="bold" if y in (0, len(rows) - 1) else "normal",
        )  # fmt: skip
        before = time
