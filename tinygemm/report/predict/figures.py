"""The latency model at work: its error at unseen shapes, its terms, and projections, which look unlike measurements.

A projected value is hollow, dashed or hatched everywhere, and the word stands beside it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from tinygemm.hardware import gpu_spec
from tinygemm.problem import NARROW, WIDE
from tinygemm.report.base import style
from tinygemm.report.base.tables import BASELINE, SHAPE, at_shapes
from tinygemm.report.base.words import shape_name, span, spans
from tinygemm.report.predict.against_published import HIT
from tinygemm.report.predict.terms import device_us, parts_us

PROJECTED = {"facecolor": "white", "ls": (0, (3, 2)), "lw": 1.3}
TERM_STYLE = {  # of the lines; the colour is the term's, not a backend's
    "start": ("launch, fill and drain", "#8A8F94", (0, (1, 1.5))),
    "serial": ("serial walk over K", "#D55E00", (0, (5, 2))),
    "memory": ("bytes from DRAM", "#009E73", (0, (3, 1, 1, 1))),
    "unpack": ("instructions per weight", "#B5568F", (0, (2, 1.2))),
    "multiply": ("… per weight and tile of M", "#56B4E9", (0, (4, 1, 1, 1, 1, 1))),
}
WITHIN, WITHIN_WORST = 0.10, 0.25


@style.figure
def predicted_vs_measured(left_out: pd.DataFrame, launch: str = "graph") -> tuple[Figure, str]:
    """Every case against its prediction by a fit that never saw its shape, log-log, with bands of 10 and 25 %.

    left_out: costmodel.leave_one_out(run)
    """
    style.require(left_out, ["backend", "launch", "measured_us", "predicted_us"], "predicted_vs_measured")
    rows = left_out[left_out["launch"] == launch]
    if rows.empty:
        raise ValueError(f"predicted_vs_measured: nothing was left out with launch {launch!r}")
    shown = style.in_order(rows["backend"])
    handles = [_hollow(backend) for backend in shown]
    tokens = ", ".join(str(M) for M in sorted(set(rows["M"])))
    conditions = style.conditions(rows, f"M = {tokens}", "cold L2")
    fig, ax = style.canvas(
        "Predicted without having seen the shape", conditions, legend=handles, legend_columns=2, height=4.4
    )
    low, high = (
        rows[["measured_us", "predicted_us"]].min().min() / 1.3,
        rows[["measured_us", "predicted_us"]].max().max(),
    )
    line = np.array([low, 1.3 * high])
    for share, colour in ((WITHIN_WORST, "#EEF0F2"), (WITHIN, "#DDE1E4")):
        ax.fill_between(line, line * (1 - share), line * (1 + share), color=colour, lw=0, zorder=0)
    ax.plot(line, line, color=style.IDEAL, lw=1, zorder=1)
    for backend in shown:
        mine = rows[rows["backend"] == backend]
        look = {"marker": style.marker(backend), "facecolors": "none", "edgecolors": style.colour(backend)}
        ax.scatter(mine["measured_us"], mine["predicted_us"], s=26, lw=1, zorder=2, **look)
    where = {"xy": (0.98, 0.04), "xycoords": "axes fraction", "ha": "right", "size": 9.5, "color": style.FAINT}
    ax.annotate(f"bands: within {WITHIN:.0%} and {WITHIN_WORST:.0%}\nhollow: predicted", **where)
    ax.set(xscale="log", yscale="log", xlim=tuple(line), ylim=tuple(line))
    ax.set(xlabel="measured latency (µs)", ylabel="predicted latency (µs)")
    _plain_ticks(ax.xaxis), _plain_ticks(ax.yaxis)
    off = (rows["predicted_us"] / rows["measured_us"] - 1).abs()
    alt = (
        f"Predicted against measured latency of {len(rows)} cases, each predicted without its shape: "
        f"{(off <= WITHIN).mean():.0%} lie within {WITHIN:.0%} and {(off <= WITHIN_WORST).mean():.1%} within "
        f"{WITHIN_WORST:.0%}; the worst is {off.max():.0%} off."
    )
    return fig, alt


@style.figure
def terms_vs_n(model, K: int = 4096, M: int = 1, backends=(BASELINE, "int4-static", "int4")) -> tuple[Figure, str]:
    """The terms that decide: those of the model over N, one panel per backend, and what was measured.

    model: costmodel.fit(run)
    """
    shown = [backend for backend in backends if backend in model.backends]
    rows = model.observations
    rows = rows[(rows["launch"] == "graph") & (rows["K"] == K) & (rows["M"] == M)]
    if not shown or rows.empty:
        raise ValueError(f"terms_vs_n: the model has none of {', '.join(backends)} at K = {K}, M = {M}")
    handles = [Line2D([], [], color=colour, ls=ls, lw=1.6, label=label) for label, colour, ls in TERM_STYLE.values()]
    handles += [Line2D([], [], color=style.INK, lw=1.4, ls=(0, (3, 2)), label="model, all terms"),
                Line2D([], [], color=style.INK, marker="o", lw=0, label="measured")]  # fmt: skip
    conditions = style.conditions(_from(model.spec.name, model.run_id), f"K = {K}", f"M = {M}", "cold L2", "CUDA graph")
    fig, axes = style.canvas(
        "Which term decides, and where", conditions, legend=handles, legend_columns=2, height=1.75 * len(shown) + 0.5,
        nrows=len(shown), sharex=True, squeeze=False,
    )  # fmt: skip
    N = np.geomspace(rows["N"].min(), rows["N"].max(), 200)
    for ax, backend in zip(axes[:, 0], shown, strict=True):
        fitted = model.backends[backend]
        mine = rows[rows["backend"] == backend]
        parts = parts_us(fitted, M, K, N, fitted.bits, model.spec)
        for name, (_, colour, ls) in TERM_STYLE.items():
            ax.plot(N, np.broadcast_to(parts[name], N.shape), color=colour, ls=ls, lw=1.6)
        ax.plot(N, device_us(fitted, M, K, N, fitted.bits, model.spec), color=style.INK, lw=1.4, ls=(0, (3, 2)))
        ax.plot(mine["N"], mine["latency_us"], color=style.colour(backend), marker=style.marker(backend), lw=0, ms=6)
        ax.set_title(style.name(backend), loc="left", size=10.5, weight="bold", pad=4)
        ax.set(xscale="log", yscale="log", ylabel="µs", ylim=(0.2, 2 * mine["latency_us"].max()))
        _plain_ticks(ax.yaxis)
    axes[-1, 0].set_xlabel(f"N (output features, K = {K})")
    ticks = [tick for tick in (256, 512, 1024, 2048, 4096, 8192, 14336, 28672, 57344) if tick in set(mine["N"])]
    axes[-1, 0].set_xticks(ticks, [f"{tick:.0f}" for tick in ticks], rotation=45)
    axes[-1, 0].minorticks_off()
    there = rows[rows["backend"].isin(shown)]
    alt = (
        f"Curves of the terms of the latency model against N at K = {K}, M = {M}, a panel per kernel, with what was "
        f"measured: {spans(there, 'latency_us', '.1f', ' µs')}."
    )
    return fig, alt


@style.figure
def projected_speedups(speedups: pd.DataFrame, shapes=(NARROW, WIDE)) -> tuple[Figure, str]:
    """INT4 over FP16 on GPUs, one panel per projection: filled where measured, hollow and dashed where projected.

    speedups: pages.predict.speedups(model, specs)
    """
    style.require(speedups, ["gpu", "K", "N", "speedup", "low", "high", "kind"], "projected_speedups")
    panels = style.shapes_present(speedups, shapes)
    gpus = list(dict.fromkeys(speedups["gpu"]))
    colour = style.colour("int4")
    handles = [
        Patch(facecolor=colour, edgecolor=colour, label="measured"),
        Patch(facecolor="white", edgecolor=colour, ls=(0, (3, 2)), hatch="////", label="projected, with its band"),
    ]
    base, run_id = speedups[["base", "run_id"]].iloc[0]
    facts = (f"M = {speedups['M'].iloc[0]}", "cold L2", "CUDA graph", f"projected from {base}")
    conditions = style.conditions(_from(None, run_id), *facts)
    fig, axes = style.canvas(
        "INT4 over FP16, measured and projected", conditions, legend=handles, legend_columns=2,
        height=len(panels) * (0.42 + 0.25 * len(gpus)) + 0.3, nrows=len(panels), sharex=True, squeeze=False,
    )  # fmt: skip
    for ax, (K, N) in zip(axes[:, 0], panels, strict=True):
        mine = speedups[(speedups["K"] == K) & (speedups["N"] == N)].set_index("gpu")
        for y, gpu in enumerate(gpus):
            if gpu in mine.index:
                _speedup_bar(ax, y, mine.loc[gpu], colour)
        ax.axvline(1, color=style.colour(BASELINE), lw=1.4, zorder=1)
        ax.set_yticks(range(len(gpus)), [gpu.removeprefix("NVIDIA ").removeprefix("GeForce ") for gpu in gpus])
        ax.set_ylim(len(gpus) - 0.4, -0.6)
        ax.set_title(f"K×N = {shape_name((K, N))}", loc="left", size=10.5, weight="bold", pad=4)
        ax.grid(axis="y", visible=False)
    axes[-1, 0].set_xlim(0, 1.12 * speedups["high"].max())
    axes[-1, 0].set_xlabel("speedup of INT4 over FP16 (cuBLAS)")
    there = speedups[at_shapes(speedups, panels)]
    told = [f"{shape_name(shape)} {_by_gpu(there, shape)}" for shape in panels]
    alt = f"Bars of the speedup of INT4 over FP16 per GPU, measured on one and projected for others: {'; '.join(told)}."
    return fig, alt


def _by_gpu(rows: pd.DataFrame, shape) -> str:
    mine = rows[(rows["K"] == shape[0]) & (rows["N"] == shape[1])]
    return ", ".join(f"{row.gpu.removeprefix('NVIDIA ')} {row.speedup:.1f}×" for row in mine.itertuples())


def _speedup_bar(ax: Axes, y: int, row: pd.Series, colour: str) -> None:
    if row["kind"] == "measured":
        ax.barh(y, row["speedup"], 0.62, color=colour, zorder=2)
    else:
        ax.barh(y, row["speedup"], 0.62, edgecolor=colour, hatch="////", zorder=2, **PROJECTED)
    ends = [[max(row["speedup"] - row["low"], 0)], [max(row["high"] - row["speedup"], 0)]]
    ax.errorbar(row["speedup"], y, xerr=ends, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2, zorder=3)
    place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "size": 9, "path_effects": style.HALO}
    ax.annotate(f"{row['speedup']:.1f}×", (row["high"], y), **place)


@style.figure
def published_vs_projected(compared: pd.DataFrame) -> tuple[Figure, str]:
    """Projections as a share of what others published, with their bands: a hit covers 1.

    compared: against_published.compare(model, published), of one kind: backends that the run timed, or stand-ins
    """
    style.require(compared, ["source_key", "gpu", "backend", *SHAPE, "value", "predicted", "low", "high"], "published")
    groups = list(compared.groupby(["gpu", "backend", "quantity", "source_key", "method"], sort=False))
    handles = [
        Line2D(
            [],
            [],
            color=style.INK,
            marker="o",
            mfc="white",
            lw=1,
            ls=(0, (3, 2)),
            label="projected: the band covers it",
        ),
        Line2D([], [], color="#C5221F", marker="X", mfc="white", lw=1, ls=(0, (3, 2)), label="projected, misses it"),
    ]
    base, run_id = compared[["base", "run_id"]].iloc[0]
    conditions = style.conditions(_from(None, run_id), "one mark per published value", f"projected from {base}")
    fig, ax = style.canvas(
        "Projected against published", conditions, legend=handles, legend_columns=2,
        height=0.7 + 0.16 * len(compared) + 0.3 * len(groups),
    )  # fmt: skip
    ax.axvspan(0.9, 1.1, color="#EEF0F2", lw=0, zorder=0)
    ax.axvline(1, color=style.IDEAL, lw=1.2, zorder=1)
    y, ticks = 0.0, []
    for (gpu, backend, quantity, _, method), rows in groups:
        first, by_m = y, rows["M"].nunique() > 1
        for row in rows.sort_values(["M", "K", "N"]).itertuples():
            hit = row.result == HIT
            look = {"color": style.INK if hit else "#C5221F", "marker": "o" if hit else "X"}
            ax.plot([row.low / row.value, row.high / row.value], [y, y], color=look["color"], lw=1, ls=(0, (3, 2)))
            ax.plot(row.predicted / row.value, y, mfc="white", ms=5.5, mew=1.2, zorder=3, **look)
            case = f"M = {row.M}" if by_m else shape_name((row.K, row.N))
            ax.annotate(
                case, (row.high / row.value, y), xytext=(5, 0), textcoords="offset points", va="center", size=8.5
            )
            y += 1
        clock = ", base clock" if "base clock" in method else ""
        what = "speedup" if quantity == "speedup" else "µs"
        name = gpu_spec(gpu).name.removeprefix("NVIDIA ").removeprefix("GeForce ")
        ticks.append(((first + y - 1) / 2, f"{name}{clock}\n{style.name(backend)}, {what}"))
        y += 1.6
    ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks], size=9)
    ax.set_ylim(y - 1, -1)
    ax.set_xscale("log")
    left, right = (compared["low"] / compared["value"]).min() / 1.1, (compared["high"] / compared["value"]).max() * 1.35
    marks = [mark for mark in (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 8) if left < mark < right]
    ax.set_xticks(marks, [f"{mark:g}" for mark in marks])
    ax.minorticks_off()
    ax.set(xlim=(left, right), xlabel="projected / published")
    ax.grid(axis="y", visible=False)
    ratio = compared["predicted"] / compared["value"]
    alt = (
        f"Dots of projected over published, {len(compared)} values of {compared['source_key'].nunique()} sources: "
        f"{span(ratio, '.2f')}; the band covers {(compared['result'] == HIT).sum()} of them."
    )
    return fig, alt


def _from(gpu: str | None, run_id: str) -> pd.DataFrame:
    """The source of the numbers, as style.conditions reads it."""
    return pd.DataFrame({"gpu": [gpu], "run_id": [run_id or None]})


def _hollow(backend: str) -> Line2D:
    look = {"color": style.colour(backend), "marker": style.marker(backend), "mfc": "none"}
    return Line2D([], [], lw=0, ms=6, label=style.name(backend), **look)


def _plain_ticks(axis) -> None:
    low, high = axis.get_view_interval()
    ticks = [t for e in range(-2, 5) for t in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if low <= t <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())
