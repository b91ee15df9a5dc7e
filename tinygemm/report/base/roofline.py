"""The roofline: arithmetic rate against arithmetic intensity, for two chapters."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tinygemm.hardware import GPUS, gpu_key
from tinygemm.problem import WIDE
from tinygemm.report.base import style
from tinygemm.report.base.tables import BASELINE, SHAPE, copy_bandwidth_gb_s, primary
from tinygemm.report.base.words import shape_name, spans


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
        raise ValueError(f"roofline needs {' and '.join(backends)} at {shape_name(shape)} and the copy bandwidth")
    rows = rows.assign(intensity=rows["flops"] / rows["bytes_min"]).sort_values("M")
    spec = GPUS.get(gpu_key(table["gpu"].iloc[0])) if "gpu" in table else None

    handles = [
        Line2D([], [], color=style.colour(b), marker=style.marker(b), ms=8, lw=0, mec="white", label=style.name(b))
        for b in backends
    ]
    tokens = ", ".join(str(M) for M in sorted(set(rows["M"])))
    where = style.conditions(rows[rows["backend"] != BASELINE], shape_name(shape), f"M = {tokens}")
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
        f"Arithmetic rate against intensity for {shape_name(shape)}, under the roof of the copy bandwidth, "
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
