"""One token: the time of every call against its bytes, and a whole decode step."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tinygemm.problem import STUDY_SHAPES, GemmProblem
from tinygemm.report.base import style
from tinygemm.report.base.tables import BASELINE, SHAPE, copy_bandwidth_gb_s, empty_node_us, primary
from tinygemm.report.base.words import shape_name, spans
from tinygemm.step_rows import BACKENDS

SHOWN = (BASELINE, "fp16-triton", "int4-static", "int4")
TICKS_US = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
TICKS_MB = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


@style.figure
def time_against_bytes(table: pd.DataFrame, M: int = 1, backends=SHOWN) -> tuple[Figure, str]:
    """Time of one call against the bytes that it must move, all weights of the run, both on logarithmic axes.

    The diagonal is the speed of a copy, the level line an empty node of a graph, the curve their sum: the floor.

    table: report_table(run)
    """
    style.require(table, ["backend", *SHAPE, "bytes_min", "latency_us_p50"], "time_against_bytes")
    rows = primary(table)
    rows = rows[(rows["M"] == M) & rows["backend"].isin(backends)].dropna(subset=["latency_us_p50"])
    copy, empty = copy_bandwidth_gb_s(table), empty_node_us(table)
    if rows.empty or not np.isfinite(copy + empty):
        raise ValueError(f"time_against_bytes needs {', '.join(backends)} at M = {M}, a copy and an empty node")
    rows = rows.assign(mb=rows["bytes_min"] / 1e6)
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    handles = [
        Line2D([], [], color=style.colour(b), marker=style.marker(b), ms=7, lw=0, mec="white", label=style.name(b))
        for b in shown
    ]
    handles.append(Line2D([], [], color=style.IDEAL, lw=1.8, label="floor: bytes at copy speed + empty node"))
    where = style.conditions(rows[rows["backend"] != BASELINE], f"M = {M}")
    fig, ax = style.canvas("Time against bytes", where, legend=handles, legend_columns=2, height=3.9)
    ends = [0.7 * rows["mb"].min(), 1.5 * rows["mb"].max()]
    mb = np.geomspace(*ends, 60)
    ax.plot(mb, mb * 1e3 / copy + empty, color=style.IDEAL, lw=1.8, zorder=2)
    ax.plot(mb, mb * 1e3 / copy, color=style.FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
    ax.axhline(empty, color=style.FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
    for backend in shown:
        mine = rows[rows["backend"] == backend]
        look = {"ms": 6, "mec": "white", "mew": 0.6, "ls": "", "zorder": 3}
        ax.plot(mine["mb"], mine["latency_us_p50"], marker=style.marker(backend), color=style.colour(backend), **look)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=(0.7 * empty, 1.4 * rows["latency_us_p50"].max()))
    small = {"size": 9, "color": style.FAINT, "path_effects": style.HALO}
    ax.text(ends[1] / 1.05, empty * 0.97, f"empty node: {empty:.2f} µs", ha="right", va="top", **small)
    at = float(np.sqrt(ends[0] * ends[1])) * 1.5
    ax.annotate(
        f"copy: {copy / 1e3:.2f} TB/s", (at, at * 1e3 / copy), xytext=(10, -16), textcoords="offset points", **small
    )
    for ticks, axis, unit in ((TICKS_MB, ax.xaxis, ax.get_xlim()), (TICKS_US, ax.yaxis, ax.get_ylim())):
        within = [tick for tick in ticks if unit[0] <= tick <= unit[1]]
        axis.set_ticks(within, [f"{tick:g}" for tick in within])
    ax.minorticks_off()
    ax.set(xlabel="bytes that must move (MB)", ylabel="time of one call (µs)")
    narrow = rows[(rows["K"] == STUDY_SHAPES[0][0]) & (rows["N"] == STUDY_SHAPES[0][1])]
    told = f" At {shape_name(STUDY_SHAPES[0])}: {spans(narrow, 'latency_us_p50', '.1f', ' µs')}." if len(narrow) else ""
    alt = (
        f"Dots of time against bytes for {len(rows)} calls at M = {M}, above a floor of {empty:.2f} µs and the bytes "
        f"at {copy / 1e3:.2f} TB/s.{told}"
    )
    return fig, alt


@style.figure
def layers_only(rows: pd.DataFrame) -> tuple[Figure, str]:
    """The linear layers of one token by projection: stacked bars, one per kernel.

    rows: token.page.by_projection: backend, projection, ms (of all layers), gpu, run_id
    """
    style.require(rows, ["backend", "projection", "ms"], "layers_only")
    wide = rows.pivot(index="backend", columns="projection", values="ms")
    wide = wide.reindex(index=style.in_order(wide.index), columns=list(dict.fromkeys(rows["projection"])))
    colours = dict(zip(wide.columns, ("#56B4E9", "#E69F00", "#0072B2", "#009E73", "#B5568F"), strict=False))
    handles = [Patch(color=colours[name], label=name) for name in wide.columns]
    where = style.conditions(rows, "linear layers only, lm_head not among them", "M = 1", "cold L2", "CUDA graph")
    title = "One token, projection by projection"
    fig, ax = style.canvas(title, where, legend=handles, legend_columns=4, height=0.6 + 0.45 * len(wide))
    left = np.zeros(len(wide))
    for name in wide.columns:
        ax.barh(range(len(wide)), wide[name], 0.66, left=left, color=colours[name], zorder=2)
        left += wide[name].to_numpy()
    for y, total in enumerate(left):
        ax.annotate(f"{total:.2f} ms", (total, y), xytext=(5, 0), textcoords="offset points", va="center", size=9.5)
    ax.set_yticks(range(len(wide)), [style.name(backend) for backend in wide.index])
    ax.set(ylim=(len(wide) - 0.5, -0.5), xlim=(0, 1.18 * left.max()), xlabel="ms per token")
    ax.grid(axis="y", visible=False)
    told = "; ".join(f"{style.name(b)} {total:.2f} ms" for b, total in zip(wide.index, left, strict=True))
    return fig, f"Stacked bars of the linear layers of one token of Llama 3 8B by projection, in all: {told}."


PARTS = {  # of a profiled step, in the order of the bars: the word and the colour of each
    "product": ("products", "#0072B2"), "attention": ("attention", "#E69F00"), "rest": ("the rest", "#9A9A9A"),
}  # fmt: skip


def label(backend: str) -> str:
    """The name of the backend of a step."""
    return "INT4, lm_head too" if backend == "int4-lm-head" else style.name(backend)


def in_order(backends) -> list[str]:
    """Backends of steps in the order in which they are described to whoever measures them."""
    known = set(backends)
    return [backend for backend in BACKENDS if backend in known]


@style.figure
def whole_step(rows: pd.DataFrame) -> tuple[Figure, str]:
    """A whole decode step of one model, a bar per kernel of its linear layers, with Amdahl's limit.

    rows: token.page.whole_steps of one host and batch; a step without a profile is one bar in the backend's colour
    """
    style.require(rows, ["backend", "batch", "context", "ms", *PARTS], "whole_step")
    rows = rows.set_index("backend").reindex(in_order(rows["backend"]))
    sequences = f"{rows['batch'].iloc[0]:.0f} sequence{'s' if rows['batch'].iloc[0] > 1 else ''}"
    where = style.conditions(rows, sequences, f"{rows['context'].iloc[0]:.0f} tokens of context", "CUDA graph")
    handles = [Patch(color=colour, label=word) for word, colour in PARTS.values()]
    limit = _limit(rows)
    if limit is not None:
        handles.append(Line2D([], [], color=style.IDEAL, lw=1.8, ls=(0, (4, 3)), label="Amdahl's limit"))
    height = 0.6 + 0.42 * len(rows)
    title = "One token of Llama 3 8B, the whole step"
    fig, ax = style.canvas(title, where, legend=handles, legend_columns=4, height=height)
    fp16 = rows["ms"].get(BASELINE, np.nan)
    told = []
    for y, (backend, row) in enumerate(rows.iterrows()):
        left, shares = 0.0, row[list(PARTS)].astype(float)
        if shares.isna().all():
            ax.barh(y, row["ms"], 0.66, color=style.colour(backend), zorder=2)
        for part, share in shares.dropna().items():
            ax.barh(y, share * row["ms"], 0.66, left=left, color=PARTS[part][1], zorder=2)
            left += share * row["ms"]
        gain = "" if np.isnan(fp16) else f"  {fp16 / row['ms']:.2f}×"
        text = f"{row['ms']:.2f} ms{gain}"
        ax.annotate(text, (row["ms"], y), xytext=(5, 0), textcoords="offset points", va="center", size=9.5)
        told.append(f"{label(backend)} {text}")
    if limit is not None:
        ax.axvline(limit, color=style.IDEAL, lw=1.8, ls=(0, (4, 3)), zorder=3)
    ax.set_yticks(range(len(rows)), [label(backend) for backend in rows.index])
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1.3 * rows["ms"].max()), xlabel="ms per token")
    ax.grid(axis="y", visible=False)
    end = "" if limit is None else f" Amdahl's limit: {limit:.2f} ms."
    return fig, f"Bars of a whole decode step of Llama 3 8B by the kernel of its linear layers: {'; '.join(told)}.{end}"


def _limit(rows: pd.DataFrame) -> float | None:
    """The ms of the FP16 step, if its products took the share of their time that INT4 leaves of their bytes."""
    if BASELINE not in rows.index or pd.isna(rows.loc[BASELINE, "product"]):
        return None
    ms, product = rows.loc[BASELINE, ["ms", "product"]].astype(float)
    return ms * (1 - product) + ms * product * GemmProblem(1, 128, 128).int4_bits_per_weight() / 16
