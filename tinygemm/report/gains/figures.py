"""Speedups, latencies and their distance from the ideal, per projection and against N."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import style
from tinygemm.report.base.tables import BASELINE, primary
from tinygemm.report.base.words import shape_name, spans

CASE = ["backend", "M", "K", "N", "launch", "l2_state", "status"]
SPEEDUP = ["speedup_vs_fp16", "speedup_vs_fp16_low", "speedup_vs_fp16_high"]
LATENCY = ["latency_us_p50", "latency_us_low", "latency_us_high"]
CONTENDERS = ("int4-static", "aten-int4mm", "int4")
LAYER_NAMES = {
    (4096, 1024): "KV",
    (4096, 4096): "Q",
    (4096, 6144): "QKV",
    (4096, 14336): "FFN up",
    (4096, 28672): "FFN gate+up",
    (14336, 4096): "FFN down",
}


@style.figure
def speedup_vs_n(table: pd.DataFrame, K: int | None = None, m_list=(1, 8), backends=CONTENDERS) -> tuple[Figure, str]:
    """Finding A: the speedup over FP16 against N at one K, one panel per M.

    table:  report_table(run), or the CSV of `tinygemm bench`
    K:      None takes that of the study, 4096, or else the K with most values of N
    m_list: those of them that the table has are shown; all of the table's if it has none
    """
    style.require(table, [*CASE, *SPEEDUP, "bits_per_weight"], "speedup_vs_n")
    rows = primary(table)
    rows = rows[rows["backend"].isin(backends)].dropna(subset=["speedup_vs_fp16"])
    if K is None and len(rows):
        counts = rows.groupby("K")["N"].nunique()
        K = STUDY_SHAPES[0][0] if counts.get(STUDY_SHAPES[0][0], 0) > 1 else counts.idxmax()
    rows = rows[rows["K"] == K]
    if rows.empty:
        raise ValueError(
            f"speedup_vs_n: the table has no speedup of {', '.join(backends)} timed as a graph with a cold L2"
            f"{f' at K = {K}' if K else ''}; time them together with {BASELINE}"
        )
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    panels = [M for M in m_list if M in set(rows["M"])] or sorted(set(rows["M"]))
    where = style.conditions(rows, f"K = {K}")
    fig, axes = style.canvas(
        "Speedup of INT4 over FP16 against N", where, legend=_line_handles(shown), height=0.4 + 2.1 * len(panels),
        nrows=len(panels), sharex=True, squeeze=False,
    )  # fmt: skip
    for ax, M in zip(axes[:, 0], panels, strict=True):
        at_m = rows[rows["M"] == M]
        _lines(ax, at_m, shown, "speedup_vs_fp16")
        _speedup_axis(ax, at_m, "ideal {ideal:.2f}×")
        ax.set_title(f"M = {M}", loc="left", size=10.5, weight="bold", pad=4)
        ax.set_ylabel("speedup")
    _n_axis(axes[-1, 0], sorted(set(rows["N"])))
    at_ends = [rows[rows["N"] == end] for end in (rows["N"].min(), rows["N"].max())]
    ends = [f"At N = {at['N'].iloc[0]}: {spans(at, 'speedup_vs_fp16', '.2f', '×')}" for at in at_ends]
    alt = f"Curves of speedup over FP16 against N at K = {K}, M = {_listed(panels)}. {'. '.join(ends)}."
    return fig, alt


@style.figure
def decode_latency(
    table: pd.DataFrame, M: int = 1, backends=(BASELINE, *CONTENDERS), shapes=STUDY_SHAPES
) -> tuple[Figure, str]:
    """Latency of one call per projection, and where the table knows it the floor: every byte once at copy bandwidth.

    table:  report_table(run), or the CSV of `tinygemm bench`
    shapes: (K, N); where the table has none of them, the first four that it has
    """
    style.require(table, [*CASE, *LATENCY], "decode_latency")
    rows, shapes = _at(table, M, backends, shapes, "decode_latency")
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    handles = [Patch(color=style.colour(backend), label=style.name(backend)) for backend in shown]
    floors = "floor_us" in rows and rows["floor_us"].notna().any()
    if floors:
        handles.append(Line2D([], [], color=style.IDEAL, lw=2, label="bytes at copy speed + empty node"))
    quantised = rows[rows["backend"] != BASELINE]
    where = style.conditions(quantised if len(quantised) else rows, f"M = {M}")
    fig, ax = style.canvas("Latency of one decode GEMM", where, legend=handles, height=3.5)
    _bars(ax, rows, shown, shapes, "latency_us_p50", _us, floors=floors)
    _name_shapes(ax, shapes)
    ax.set(ylabel="latency (µs)", xlim=(-0.5, len(shapes) - 0.5))
    ax.margins(y=0.1)
    ax.grid(axis="x", visible=False)
    times = spans(rows, "latency_us_p50", ".1f", " µs")
    alt = f"Bars of the latency of one call at M = {M}, {_listed(shapes)}, some with a line for their floor: {times}."
    return fig, alt


@style.figure
def frac_of_floor(
    table: pd.DataFrame, K: int = 4096, M: int = 1, backends=(BASELINE, *CONTENDERS)
) -> tuple[Figure, str]:
    """Distance of each backend from its own floor (its bytes at copy bandwidth, plus one empty graph node), against N.

    table: report_table(run)
    """
    fig, ax, rows = _against_n(
        table, K, M, backends, "frac_floor", "How near the floor each kernel comes", "frac_of_floor"
    )
    ax.axhline(1, color=style.IDEAL, lw=1.2, ls=(0, (4, 3)))
    label = "floor: its bytes at copy speed, plus an empty node"
    _on_line(ax, 1, label)
    ax.set(ylabel="floor / latency", ylim=(0, 1.12))
    ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    near = spans(rows, "frac_floor", ".0%")
    alt = f"Curves of floor over latency against N at K = {K}, M = {M}; 100 % is the floor itself. {near}."
    return fig, alt


def _against_n(table, K, M, backends, column, title, figure):
    style.require(table, [*CASE, *LATENCY, column], figure)
    rows = primary(table)
    rows = rows[(rows["K"] == K) & (rows["M"] == M) & rows["backend"].isin(backends)].dropna(subset=[column])
    if rows.empty:
        raise ValueError(f"{figure}: the table has no {column} of {', '.join(backends)} at M = {M}, K = {K}")
    # both are proportional to 1 / latency, so the slow end of the interval is the low one
    rates = {f"{column}_{end}": rows[column] * rows["latency_us_p50"] / rows[f"latency_us_{other}"]
             for end, other in (("low", "high"), ("high", "low"))}  # fmt: skip
    rows = rows.assign(**rates)
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    where = style.conditions(rows[rows["backend"] != BASELINE], f"M = {M}", f"K = {K}")
    fig, ax = style.canvas(title, where, legend=_line_handles(shown), legend_columns=2, height=3.5)
    _lines(ax, rows, shown, column)
    _n_axis(ax, sorted(set(rows["N"])))
    return fig, ax, rows


def _at(table: pd.DataFrame, M: int, backends, shapes, figure: str) -> tuple[pd.DataFrame, list[tuple[int, int]]]:
    """The rows of one M and of the shapes that are there, and these shapes."""
    rows = primary(table)
    rows = rows[(rows["M"] == M) & rows["backend"].isin(backends)]
    if rows.empty:
        raise ValueError(
            f"{figure}: the table has no {', '.join(backends)} at M = {M}, timed as a graph with a cold L2"
        )
    shapes = style.shapes_present(rows, shapes)
    return rows[pd.MultiIndex.from_frame(rows[["K", "N"]]).isin(shapes)], shapes


def _bars(ax: Axes, rows: pd.DataFrame, backends, shapes, value: str, write, floors=False) -> None:
    """Bars in groups of one shape, each with its interval and its number.

    write:  a number -> what stands at the bar
    floors: draw the floor of each bar
    """
    width = 0.84 / len(backends)
    for i, backend in enumerate(backends):
        mine = rows[rows["backend"] == backend].set_index(["K", "N"]).reindex(shapes)
        x = np.arange(len(shapes)) + (i - (len(backends) - 1) / 2) * width
        ax.bar(x, mine[value], 0.92 * width, color=style.colour(backend), zorder=2)
        spread = style.spread(mine, value)
        ax.errorbar(x, mine[value], spread, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2, zorder=3)
        look = {"size": 9.5 if len(backends) < 4 else 8.5, "weight": "bold" if backend == "int4" else "normal"}
        for at, height in zip(x[mine[value].notna()], mine[value].dropna(), strict=True):
            place = {"xytext": (0, 4), "va": "bottom"}
            ax.annotate(write(height), (at, height), textcoords="offset points", ha="center", **place, **look)
        if floors:
            ax.hlines(mine["floor_us"], x - 0.46 * width, x + 0.46 * width, color=style.IDEAL, lw=2, zorder=4)


def _listed(values) -> str:
    """`1, 8` or `4096×1024, 4096×4096`."""
    return ", ".join(shape_name(value) if isinstance(value, tuple) else str(value) for value in values)


def _us(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _lines(ax: Axes, rows: pd.DataFrame, backends, column: str) -> None:
    for backend in backends:
        mine = rows[rows["backend"] == backend].sort_values("N")
        look = _line_look(backend) | {"capsize": 2, "elinewidth": 1}
        ax.errorbar(mine["N"], mine[column], style.spread(mine, column), **look)


def _line_handles(backends) -> list[Line2D]:
    return [Line2D([], [], label=style.name(backend), **_line_look(backend)) for backend in backends]


def _line_look(backend: str) -> dict:
    look = {"ms": 7, "lw": 2, "mec": "white", "mew": 0.8}
    return look | {"color": style.colour(backend), "marker": style.marker(backend)}


def _name_shapes(ax: Axes, shapes) -> None:
    labels = [f"{LAYER_NAMES.get(shape, '')}\n{shape_name(shape)}".strip() for shape in shapes]
    ax.set_xticks(range(len(shapes)), labels)
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel("projection, K×N")


def _ideal(rows: pd.DataFrame) -> float:
    """The speedup that fewer bits alone allow: 16 bits over those stored per quantised weight."""
    quantised = rows.loc[rows["bits_per_weight"].between(0, 16, inclusive="neither"), "bits_per_weight"]
    return 16 / quantised.min()


def _n_axis(ax: Axes, values) -> None:
    """A logarithmic axis that names each N but those too near to the one before, whose names would run together."""
    named = list(values[:1])
    for value in values[1:]:
        if value >= 1.3 * named[-1]:
            named.append(value)
    ax.set_xscale("log", base=2)
    ax.set_xticks(named, [f"{N / 1024:.3g}k" if N >= 1024 else str(N) for N in named])
    ax.minorticks_off()
    ax.set_xlabel("N, output features (1k = 1024)")


def _speedup_axis(ax: Axes, rows: pd.DataFrame, text: str) -> None:
    """Lines at FP16 and at the ideal, named at the edge of the axes; ticks leave room for the ideal."""
    ideal = _ideal(rows)
    ax.axhline(1, color=style.colour(BASELINE), lw=1.4, zorder=1)
    ax.axhline(ideal, color=style.IDEAL, lw=1.2, ls=(0, (4, 3)), zorder=1)
    _on_line(ax, ideal, text.format(bits=16 / ideal, ideal=ideal), right=True)
    top = max(ideal, rows["speedup_vs_fp16"].max())
    ax.set_ylim(0, top * 1.14)
    ax.set_yticks(range(int(top + 0.7)), ["0", "FP16", *(f"{tick}×" for tick in range(2, int(top + 0.7)))])


def _on_line(ax: Axes, y: float, text: str, right: bool = False) -> None:
    """right: at that end, where the first marker of a curve could lie at the other"""
    x, ha = (0.99, "right") if right else (0.01, "left")
    ax.text(x, y, text, transform=ax.get_yaxis_transform(), ha=ha, va="bottom", size=9.5, path_effects=style.HALO)
