"""Two calls in a row on one time axis: the library, our kernel without overlap, and with it."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tinygemm.problem import NARROW
from tinygemm.report.base import style
from tinygemm.report.base.tables import BASELINE, copy_bandwidth_gb_s, empty_node_us, primary
from tinygemm.report.base.words import shape_name

LANES = {
    BASELINE: "FP16, library",
    "int4-serial": "INT4, no overlap",
    "int4": "INT4, overlap",
}
SERIAL = "int4-serial"
PARTS = {"start": "#C4C7CA", "bytes": "#0072B2", "rest": "#E69F00"}
WORDS = {
    "start": "start (an empty node)", "bytes": "its bytes at copy speed",
    "rest": "the rest: fill, wait, multiply, add, store",
}  # fmt: skip


def lanes(table: pd.DataFrame, M: int = 1, shape=NARROW) -> pd.DataFrame:
    """The rows of the figure, one per lane that was timed.

    table:   report_table(run)
    returns: backend, period_us (measured: one call in a row of calls), start_us (an empty node), bytes_us (at the speed
             of a copy), call_us (one call from start to end: of overlapping calls, that of the same kernel without
             overlap), gpu, run_id; no rows unless all three lanes, a copy and an empty node were timed
    """
    rows = primary(table)
    rows = rows[(rows["M"] == M) & (rows["K"] == shape[0]) & (rows["N"] == shape[1]) & rows["backend"].isin(LANES)]
    rows = rows.drop_duplicates("backend").set_index("backend").reindex(list(LANES)).dropna(subset=["latency_us_p50"])
    start, speed = empty_node_us(table), copy_bandwidth_gb_s(table)
    if len(rows) < len(LANES) or pd.isna(start) or pd.isna(speed):
        return rows.iloc[:0].reset_index()
    call = rows["latency_us_p50"].copy()
    call["int4"] = max(call[SERIAL], call["int4"])
    found = rows.assign(
        period_us=rows["latency_us_p50"], start_us=start, bytes_us=rows["bytes_min"] / (speed * 1e3), call_us=call
    )
    return found.reset_index()


@style.figure
def timeline(rows: pd.DataFrame, shape=NARROW) -> tuple[Figure, str]:
    """Two calls of each lane, one below the other: the distance of their starts is measured, what fills them is not.

    rows: lanes(table)
    """
    style.require(rows, ["backend", "period_us", "start_us", "bytes_us", "call_us"], "timeline")
    handles = [Patch(facecolor=colour, hatch="////", edgecolor="white", label=WORDS[part])
               for part, colour in PARTS.items()]  # fmt: skip
    where = style.conditions(rows, shape_name(shape), "M = 1", "distances measured, hatched parts schematic")
    fig, axes = style.canvas(
        "Two calls in a row", where, legend=handles, legend_columns=2, height=0.35 + 1.05 * len(rows),
        nrows=len(rows), sharex=True, squeeze=False,
    )  # fmt: skip
    for ax, row in zip(axes[:, 0], rows.itertuples(), strict=True):
        _lane(ax, row)
        title = f"{LANES[row.backend]}: {row.period_us:.2f} µs from call to call"
        ax.set_title(title, loc="left", size=10.5, weight="bold", pad=4)
    axes[-1, 0].set(xlim=(0, 1.03 * (rows["period_us"] + rows["call_us"]).max()), xlabel="time (µs)")
    told = "; ".join(f"{LANES[row.backend]} {row.period_us:.2f} µs" for row in rows.itertuples())
    return fig, f"Two calls in a row at {shape_name(shape)}, a lane each. From one start to the next: {told}."


def _lane(ax: Axes, row) -> None:
    """Both calls of a lane, the second one line lower, and the measured distance of their starts."""
    parts = {"start": row.start_us, "bytes": min(row.bytes_us, row.call_us - row.start_us)}
    parts["rest"] = row.call_us - sum(parts.values())
    for call in range(2):
        left = call * row.period_us
        for part, length in parts.items():
            look = {"color": PARTS[part], "hatch": "////", "edgecolor": "white", "lw": 0.6, "zorder": 2}
            ax.barh(call, length, 0.72, left=left, **look)
            left += length
    ax.vlines(row.period_us, -0.45, 1.45, color=style.IDEAL, lw=1.6, zorder=4)
    ax.set_yticks([0, 1], ["call 1", "call 2"])
    ax.set_ylim(1.55, -0.55)
    ax.grid(axis="y", visible=False)
