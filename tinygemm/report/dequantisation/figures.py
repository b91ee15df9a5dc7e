"""Finding C: what removing one cause saves, along N and K and in each regime."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tinygemm.problem import NARROW, WIDE
from tinygemm.report.base import style
from tinygemm.report.base.tables import BASELINE, LATENCY, SHAPE, at_shapes, in_mode, primary
from tinygemm.report.base.words import shape_name, span, spans
from tinygemm.report.dequantisation.tables import CAUSES, LEFTOVERS, REGIMES

CAUSE_COLOURS = {
    "dequantisation": style.colour("dequant-fp16"),
    "too little parallelism": style.colour("int4-static"),
    "launch": style.colour("fp16-cublas"),
}
CAUSE_MARKERS = {"dequantisation": "s", "too little parallelism": "o", "launch": "D"}
SHORT = {
    "naive instead of lop3 dequantisation": "naive → lop3",
    "the lop3 dequantisation": "lop3 → none",
    "K split over twice the programs": "twice the programs",
    "all but the reads": "all but the reads",
}
SWEPT = (("N", "K", 4096), ("K", "N", 4096))  # what varies, what stays, and at which value
SWEPT_BACKENDS = (BASELINE, "int4-static", "int4")


@style.figure
def cause_removed(removals: pd.DataFrame, M: int = 1) -> tuple[Figure, str]:
    """The effect of one cause removed: the share of the time it saves, a panel per regime.

    removals: causes.removals(run, M)
    """
    style.require(removals, ["removal", "cause", "M", "K", "N", "value", "low", "high"], "cause_removed")
    rows = removals[removals["M"] == M]
    panels = {name: at for name, shape in REGIMES.items() if len(at := _at(rows, shape))}
    if not panels:
        raise ValueError(f"cause_removed: no cause was varied at M = {M} at a shape of {', '.join(REGIMES)}")
    shown = [name for name in (CAUSES | LEFTOVERS) if name in set(pd.concat(panels.values())["removal"])]
    where = style.conditions(rows, f"M = {M}", "cold L2", "everything else as in the tuned kernel", "95 % intervals")
    lines = -(-len(panels) // 2)
    fig, axes = style.canvas(
        "What happens when one cause is removed", where, height=lines * (0.55 + 0.27 * len(shown)), nrows=lines,
        ncols=2, sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (name, at) in zip(axes.flat, panels.items(), strict=False):
        at = at.set_index("removal").reindex(shown)
        for y, (removal, row) in enumerate(at.iterrows()):
            _saved_bar(ax, y, row, CAUSE_COLOURS.get(removal, "#C4C7CA"))
        ax.axvline(0, color=style.INK, lw=1, zorder=4)
        ax.set_title(f"{name}, {shape_name(REGIMES[name])}", loc="left", size=10.5, weight="bold", pad=4)
        ax.set_yticks(range(len(shown)), [SHORT.get(removal, removal) for removal in shown])
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
    rows = pd.concat(panels.values())
    least, most = min(0, 100 * rows["low"].min()), max(10, 100 * rows["high"].max())
    span = most - least  # the numbers beside the bars take a good quarter of half a figure
    axes[0, 0].set_xlim(least - (0.35 if least < 0 else 0.03) * span, most + 0.35 * span)
    for ax in axes[-1]:
        ax.set_xlabel("time saved (%)")
    saved = {
        f"{name}, {shape_name(REGIMES[name])}": ", ".join(
            f"{SHORT.get(row.removal, row.removal)} {100 * row.value:.0f} %"
            for row in at.itertuples()
            if row.cause and row.value == row.value
        )
        for name, at in panels.items()
    }
    told = "; ".join(f"{panel}: {shares or 'nothing measured'}" for panel, shares in saved.items())
    alt = f"Bars of the time saved when one cause is removed, M = {M}. {told}."
    return fig, alt


def _at(rows: pd.DataFrame, shape) -> pd.DataFrame:
    return rows[(rows["K"] == shape[0]) & (rows["N"] == shape[1])].drop_duplicates("removal")


def _saved_bar(ax: Axes, y: int, row: pd.Series, colour: str) -> None:
    if pd.isna(row["value"]):
        return
    value, low, high = (100 * row[name] for name in ("value", "low", "high"))
    ax.barh(y, value, 0.66, color=colour, zorder=2)
    spread = np.nan_to_num(np.clip([[value - low], [high - value]], 0, None))
    ax.errorbar(value, y, xerr=spread, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2, zorder=3)
    at, side = (np.nanmax([value, high]), 1) if value >= 0 else (np.nanmin([value, low]), -1)
    place = {"xytext": (4 * side, 0), "textcoords": "offset points", "va": "center", "size": 9}
    ax.annotate(f"{value:.0f} %", (at, y), ha="left" if side > 0 else "right", path_effects=style.HALO, **place)


@style.figure
def cause_along(removals: pd.DataFrame, M: int = 1) -> tuple[Figure, str]:
    """The causes over N and K: the share that each removal saves against N at one K, and against K at one N.

    removals: causes.removals(run, M)
    """
    style.require(removals, ["cause", "M", "K", "N", "value", "low", "high"], "cause_along")
    rows = removals[(removals["M"] == M) & (removals["cause"] != "")]
    if rows.empty:
        raise ValueError(f"cause_along: no cause was varied at M = {M}")
    causes = [cause for cause in CAUSES if cause in set(rows["cause"])]
    handles = [
        Line2D([], [], color=CAUSE_COLOURS[c], marker=CAUSE_MARKERS[c], ms=6, lw=2, mec="white", label=c)
        for c in causes
    ]
    where = style.conditions(rows, f"M = {M}", "cold L2", "lines on the points are 95 % intervals")
    fig, axes = style.canvas(
        "Which cause moves the time where", where, legend=handles, height=3.2, ncols=2, sharey=True
    )
    for ax, (axis, fixed, at) in zip(axes, SWEPT, strict=True):
        for cause in causes:
            mine = rows[(rows["cause"] == cause) & (rows[fixed] == at)].drop_duplicates(axis).sort_values(axis)
            value = 100 * mine["value"]
            spread = np.nan_to_num(np.clip([value - 100 * mine["low"], 100 * mine["high"] - value], 0, None))
            ax.errorbar(
                mine[axis], value, spread, color=CAUSE_COLOURS[cause], marker=CAUSE_MARKERS[cause], ms=6, lw=2,
                mec="white", mew=0.8, capsize=2, elinewidth=1,
            )  # fmt: skip
        ax.axhline(0, color=style.INK, lw=1)
        ax.set_title(f"along {axis}", loc="left", size=10.5, weight="bold", pad=4)
        _size_axis(ax, rows.loc[rows[fixed] == at, axis], f"{axis}, with {fixed} = {at}")
    axes[0].set_ylabel("time saved by removing it (%)")
    told = {cause: span(100 * rows.loc[rows["cause"] == cause, "value"], ".0f", " %") for cause in causes}
    alt = f"Curves of the time saved by removing one cause, against N and against K at M = {M}: " + (
        "; ".join(f"{cause} {share}" for cause, share in told.items()) + "."
    )
    return fig, alt


@style.figure
def time_along(table: pd.DataFrame, M: int = 1, backends=SWEPT_BACKENDS) -> tuple[Figure, str]:
    """The time of one product against N at one K, and against K at one N, in a graph and launched from Python.

    table: report_table(run)
    """
    style.require(
        table, ["problem", "backend", "M", "K", "N", "launch", "l2_state", "status", "floor_us", *LATENCY], "time_along"
    )
    rows = table[(table["M"] == M) & (table["status"] == "ok") & (in_mode(table) | in_mode(table, "eager"))]
    rows = rows[(rows["K"] == 4096) | (rows["N"] == 4096)]
    # a weight may have been timed at other group sizes, too, but not beside FP16
    rows = rows[rows["problem"].isin(rows.loc[rows["backend"] == BASELINE, "problem"])]
    rows = rows[rows["backend"].isin(backends)].dropna(subset=["latency_us_p50"])
    if rows.empty:
        raise ValueError(f"time_along: the table has no {', '.join(backends)} at M = {M} with K or N of 4096")
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    look = {"ms": 5, "lw": 1.8, "mec": "white", "mew": 0.6}
    handles = [
        Line2D([], [], color=style.colour(b), marker=style.marker(b), label=style.name(b), **look) for b in shown
    ]
    handles += [
        Line2D([], [], color=style.INK, lw=1.6, label="CUDA graph"),
        Line2D([], [], color=style.INK, lw=1.6, ls=(0, (2, 1.5)), label="from Python"),
        Line2D([], [], color=style.IDEAL, lw=1.2, ls=(0, (6, 3)), label="INT4 bytes + empty node"),
    ]
    where = style.conditions(rows[["gpu", "run_id"]] if "gpu" in rows else rows.iloc[:0], f"M = {M}", "cold L2")
    fig, axes = style.canvas("What the time follows", where, legend=handles, height=3.6, ncols=2, sharey=True)
    for ax, (axis, fixed, at) in zip(axes, SWEPT, strict=True):
        there = rows[rows[fixed] == at]
        for backend in shown:
            for launch, dashes in (("graph", "-"), ("eager", (0, (2, 1.5)))):
                mine = there[(there["backend"] == backend) & (there["launch"] == launch)]
                mine = mine.drop_duplicates(axis).sort_values(axis)
                ax.errorbar(
                    mine[axis], mine["latency_us_p50"], style.spread(mine, "latency_us_p50"), ls=dashes,
                    color=style.colour(backend), marker=style.marker(backend), capsize=2, elinewidth=1, **look,
                )  # fmt: skip
        floor = (
            there[(there["backend"] == "int4") & (there["launch"] == "graph")].drop_duplicates(axis).sort_values(axis)
        )
        ax.set_title(f"along {axis}", loc="left", size=10.5, weight="bold", pad=4)
        ax.plot(floor[axis], floor["floor_us"], color=style.IDEAL, lw=1.2, ls=(0, (6, 3)), zorder=1)
        _size_axis(ax, there[axis], f"{axis}, with {fixed} = {at}")
        ax.set_yscale("log")
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if ax.get_ylim()[0] <= tick <= ax.get_ylim()[1]]
        ax.set_yticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
    axes[0].set_ylabel("time of one call (µs, log scale)")
    graphs = rows[rows["launch"] == "graph"]
    alt = (
        f"Curves of the time of one call against N at K = 4096 and against K at N = 4096, M = {M}, in a graph and from "
        f"Python. In a graph: {spans(graphs, 'latency_us_p50', '.1f', ' µs')}."
    )
    return fig, alt


def _size_axis(ax: Axes, values: pd.Series, label: str) -> None:
    """A logarithmic axis of N or K with few enough ticks for half a figure."""
    ticks = [tick for tick in (256, 1024, 4096, 14336, 57344) if values.min() <= tick <= values.max()]
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{tick / 1024:.3g}k" if tick >= 1024 else str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel(label)


PARTS = {
    "fp16_us": BASELINE,
    "dequant_only_us": "dequant-only",
    "dequant_fp16_us": "dequant-fp16",
    "fused_us": "int4",
    "no_dequant_us": "int4-no-dequant",
    "load_only_us": "int4-load-only",
}


@style.figure
def dequant_breakdown(table: pd.DataFrame, M: int = 1, shapes=(NARROW, WIDE)) -> tuple[Figure, str]:
    """Finding C: what dequantisation costs on its own, before a matmul, and inside the fused kernel.

    Below the tuned kernel stand its ablations: without dequantisation, and without any arithmetic.

    table:  report_table(run), the CSV of `tinygemm bench`, or that of `tinygemm breakdown` (one row per problem)
    shapes: (K, N), a panel each; where the table has none of them, the first four that it has
    """
    table = _parts_as_cases(table) if PARTS.keys() <= set(table.columns) else table
    columns = ["backend", *SHAPE, "launch", "l2_state", "status", "latency_us_p50", "latency_us_low", "latency_us_high"]
    style.require(table, columns, "dequant_breakdown")
    bars = (BASELINE, "dequant-only", "dequant-fp16", "int4-static", "int4", "int4-no-dequant", "int4-load-only")
    rows = primary(table)
    rows = rows[(rows["M"] == M) & rows["backend"].isin(bars)].dropna(subset=["latency_us_p50"])
    if rows.empty:
        raise ValueError(f"dequant_breakdown: the table has no {', '.join(bars)} at M = {M}, graph, cold L2")
    panels = style.shapes_present(rows, shapes)
    where = style.conditions(rows[rows["backend"] != BASELINE], f"M = {M}")
    height = 0.4 + 2.1 * len(panels)
    title = "What dequantisation costs, alone and inside a kernel"
    fig, axes = style.canvas(title, where, height=height, nrows=len(panels), squeeze=False)
    for ax, (K, N) in zip(axes[:, 0], panels, strict=True):
        at_shape = rows[(rows["K"] == K) & (rows["N"] == N)].drop_duplicates("backend").set_index("backend")
        _breakdown_bars(ax, at_shape, [backend for backend in bars if backend in at_shape.index])
        ax.set_title(f"K×N = {shape_name((K, N))}", loc="left", size=10.5, weight="bold", pad=4)
    axes[-1, 0].set_xlabel("latency (µs)")
    shown = rows[at_shapes(rows, panels)]
    times = spans(shown, "latency_us_p50", ".1f", " µs")
    alt = f"Bars of the time of one call at M = {M}, {', '.join(map(shape_name, panels))}: {times}."
    return fig, alt


def _parts_as_cases(parts: pd.DataFrame) -> pd.DataFrame:
    """tables.breakdown(run) as one row per backend and problem, like cases."""
    rows = parts.melt(id_vars=["problem", *SHAPE], value_vars=list(PARTS), var_name="part", value_name="latency_us_p50")
    known = {"backend": rows["part"].map(PARTS), "launch": "graph", "l2_state": "cold", "status": "ok"}
    known |= {"operands": "random", "case_id": "breakdown/" + rows["problem"]}
    return rows.assign(**known, latency_us_low=np.nan, latency_us_high=np.nan)


def _breakdown_bars(ax: Axes, rows: pd.DataFrame, bars) -> None:
    for y, backend in enumerate(bars):
        row = rows.loc[[backend]]
        total = float(row["latency_us_p50"].iloc[0])
        ax.barh(y, total, 0.72, color=style.colour(backend), zorder=2)
        interval = style.spread(row, "latency_us_p50")
        ax.errorbar(total, y, xerr=interval, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2, zorder=3)
        ax.annotate(f"{total:.1f}", (total, y), xytext=(6, 0), textcoords="offset points", va="center", size=9)
    names = {
        BASELINE: "FP16 matmul",
        "dequant-only": "dequantise to memory",
        "dequant-fp16": "… then FP16 matmul",
        "int4-no-dequant": "… not dequantised",
        "int4-load-only": "… weight-read bound",
    }
    ax.set_yticks(range(len(bars)), [names.get(backend, style.name(backend)) for backend in bars])
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.margins(x=0.16)
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
