"""The figure of the first screen: the time of one token with each kernel."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tinygemm.report.base import style

# few and large words: on a phone an inch of this figure is 70 pixels
SIZE, SMALL = 12, 10
WIDTH, ROW, ABOVE = 4.6, 0.62, 0.92  # inches: of the figure, of one bar with its line of text, of title and conditions
NAMES = {
    "fp16-cublas": "FP16, cuBLAS",
    "fp16-triton": "FP16, our kernel",
    "aten-int4mm": "INT4, PyTorch",
    "int4-serial": "INT4, ours, no overlap",
    "int4": "INT4, ours, calls overlap",
}


@style.figure
def one_token(rows: pd.DataFrame) -> tuple[Figure, str]:
    """One bar per kernel: the linear layers of a token in ms, lm_head hatched, the bytes at copy speed as a line.

    rows: one_token.times
    """
    style.require(rows, ["backend", "layers_ms", "head_ms", "ms", "speedup", "floor_ms", "predicted"], "one_token")
    height = ABOVE + ROW * len(rows) + 0.75
    fig, ax = plt.subplots(figsize=(WIDTH, height))
    plt.close(fig)  # shown once, where it is returned
    fig.subplots_adjust(left=0.035, right=0.965, top=1 - ABOVE / height, bottom=0.62 / height)
    fig.text(0.035, 1 - 0.06 / height, "One token of Llama 3 8B", va="top", weight="bold", size=SIZE + 1)
    where = [rows["gpu"].iloc[0], f"run {rows['run_id'].iloc[0]}"] if "gpu" in rows else []
    conditions = "\n".join([*where, "M = 1, CUDA graph, cold L2"])
    ax.set_title(conditions, loc="left", size=SMALL, color=style.FAINT, weight="normal", pad=5)
    for y, row in enumerate(rows.itertuples()):
        _bar(ax, y, row)
    ax.set(ylim=(len(rows) - 0.62, -0.62), xlim=(0, 1.02 * np.nanmax([rows["ms"].max(), rows["floor_ms"].max()])))
    ax.set_yticks([])
    ax.set_xlabel("ms per token; line: bytes at copy speed", size=SMALL + 0.5)
    ax.tick_params(axis="x", labelsize=SMALL)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    return fig, _alt(rows)


def _alt(rows: pd.DataFrame) -> str:
    bars = "; ".join(f"{_name(row)}: {_told(row)}" for row in rows.itertuples())
    floors = rows["floor_ms"].dropna()
    ideal = f" The bytes at the speed of a copy: {floors.max():.1f} ms in FP16, {floors.min():.1f} ms in INT4."
    return f"Time of one token of Llama 3 8B, and speedup over cuBLAS. {bars}.{ideal if len(floors) else ''}"


def _bar(ax: Axes, y: int, row) -> None:
    """A bar of layers and lm_head under its line of text."""
    ax.barh(y + 0.14, row.layers_ms, 0.4, color=style.colour(row.backend), zorder=2)
    if not np.isnan(row.head_ms):
        look = {"facecolor": "#E4E6E8", "edgecolor": style.FAINT, "hatch": "////", "lw": 0.8}
        ax.barh(y + 0.14, row.head_ms, 0.4, left=row.layers_ms, zorder=2, **look)
    if not np.isnan(row.floor_ms):
        ax.vlines(row.floor_ms, y - 0.08, y + 0.36, color=style.IDEAL, lw=2.2, zorder=4)
    bold = {"size": SIZE, "weight": "bold" if row.backend == "int4" else "normal", "va": "center"}
    ax.text(0, y - 0.24, _name(row), **bold)
    ax.text(0.98, y - 0.24, _told(row), ha="right", transform=ax.get_yaxis_transform(), **bold)


def _name(row) -> str:
    return NAMES.get(row.backend, style.name(row.backend)) + (" (predicted)" if row.predicted else "")


def _told(row) -> str:
    return f"{row.ms:.1f} ms" + ("" if np.isnan(row.speedup) else f"  {row.speedup:.1f}×")
