"""The size of each error of the method, and the distance of two runs of the same cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tinygemm.problem import WIDE
from tinygemm.report.base import style
from tinygemm.report.base.dumbbells import LADDER
from tinygemm.report.base.tables import BASELINE
from tinygemm.report.base.words import shape_name, span, spans
from tinygemm.runs import Run

WORDS = {
    "hot L2": "hot L2",
    "warm L2": "warm L2 (1.5 × its size)",
    "zeros": "zeros as data",
    "do_bench": "do_bench",
    "eager": "from Python",
    "primed": "after a dependent launch",
}
LINEAR = 0.05  # errors within it are drawn to scale, larger ones in logarithms
TICKS = (0.5, 0.9, 1, 1.1, 1.5, 3, 9)


@style.figure
def method_errors(
    mean: pd.DataFrame, rows: pd.DataFrame, repeats: dict[str, pd.DataFrame], origin
) -> tuple[Figure, str]:
    """Every other way to time a call over the primary number, a bar per error; and how far repeats lie apart.

    mean:    evidence.mean_errors: the bars with their intervals
    rows:    evidence.errors: a small mark for each shape
    repeats: name -> evidence.halves or evidence.agreement: the range of 95 of 100 cases
    origin:  report_table(run), for the GPU and the run
    """
    ways = [way for way in WORDS if way in set(mean["way"])]
    repeats = {name: frame for name, frame in repeats.items() if len(frame)}
    if not ways and not repeats:
        raise ValueError("method_errors: the run timed nothing in another way, and there is no second measurement")
    backends = style.in_order(mean["backend"])
    handles = [Patch(color=style.colour(b), label=style.name(b)) for b in backends]
    handles.append(Line2D([], [], lw=0, marker="o", ms=5, mfc="white", mec=style.INK, label="one shape"))
    if repeats:
        handles.append(Line2D([], [], color=style.INK, lw=2, marker="|", ms=8, label="95 of 100 cases"))
    where = style.conditions(origin[["gpu", "run_id"]].head(1), "M = 1", "primary: CUDA graph, cold L2, random data")
    places = np.arange(len(ways) + len(repeats))
    fig, ax = style.canvas("The size of every measuring error", where, legend=handles, height=0.6 + 0.5 * len(places))
    thickness = 0.76 / max(1, len(backends))
    for y, way in enumerate(ways):
        for i, backend in enumerate(backends):
            at = y + (i - (len(backends) - 1) / 2) * thickness
            _bar(ax, mean, rows, way, backend, at, thickness)
    for y, frame in enumerate(repeats.values(), start=len(ways)):
        low, middle, high = frame["ratio"].quantile([0.025, 0.5, 0.975])
        ax.plot([low - 1, high - 1], [y, y], color=style.INK, lw=2, marker="|", ms=10, zorder=3)
        ax.annotate(f"{middle:.3f}×", (high - 1, y), xytext=(8, 0), textcoords="offset points", va="center", size=9)
    ax.axvline(0, color=style.IDEAL, lw=1.4, zorder=1)
    ax.set_yticks(places, [*(WORDS[way] for way in ways), *repeats])
    shown = pd.concat([rows["value"], mean["value"], *(frame["ratio"] for frame in repeats.values())]) - 1
    left, right = 1.4 * min(shown.min(), -LINEAR), 2.2 * max(shown.max(), LINEAR)
    ax.set_xscale("symlog", linthresh=LINEAR, linscale=0.4)
    ticks = [tick for tick in TICKS if left < tick - 1 < right]
    ax.set_xticks([tick - 1 for tick in ticks], [f"{tick:g}×" for tick in ticks])
    ax.minorticks_off()
    ax.set(
        xlim=(left, right),
        ylim=(len(places) - 0.5, -0.5),
        xlabel="time over the primary number (linear near 1, then logarithmic)",
    )
    ax.grid(axis="y", visible=False)
    of = {way: span(mean.loc[mean["way"] == way, "value"], ".2f", "×") for way in ways}
    apart = {name: span(frame["ratio"].quantile([0.025, 0.975]), ".2f", "×") for name, frame in repeats.items()}
    alt = "Bars of time measured in another way over the primary number: " + (
        "; ".join([*(f"{WORDS[way]} {value}" for way, value in of.items()),
                   *(f"{name}, 95 of 100 cases {value}" for name, value in apart.items())]) + "."
    )  # fmt: skip
    return fig, alt


@style.figure
def run_to_run(rows: pd.DataFrame, newer: Run, older: Run) -> tuple[Figure, str]:
    """Every case that two runs share, by backend: how many percent the newer run is off the older one.

    rows:         evidence.agreement
    newer, older: the runs, for their GPU and ids
    """
    style.require(rows, ["backend", "ratio", "unchanged"], "run_to_run")
    shown = [b for b in style.in_order(rows["backend"]) if b in set(rows["backend"])]
    where = f"{newer.gpu['name']} · run {newer.run_id} over run {older.run_id} · cases that both timed"
    handles = [_dot(style.INK, "like with like"), _dot("white", "code, config or launch may differ")]
    fig, ax = style.canvas("The same cases in another run", where, legend=handles, height=0.7 + 0.3 * len(shown))
    for y, backend in enumerate(shown):
        mine = rows[rows["backend"] == backend]
        off = 100 * (mine["ratio"] - 1)
        same = mine["unchanged"].to_numpy()
        jitter = y + 0.22 * np.sin(np.arange(len(mine)) * 2.4)  # apart, and the same in every build
        for chosen, fill in ((~same, "white"), (same, style.colour(backend))):
            look = {"ms": 4.5, "mfc": fill, "mec": style.colour(backend), "mew": 1, "alpha": 0.8, "zorder": 2}
            ax.plot(off[chosen], jitter[chosen], "o", **look)
        ax.vlines(off.median(), y - 0.38, y + 0.38, color=style.INK, lw=1.6, zorder=3)
    ax.axvline(0, color=style.IDEAL, lw=1, zorder=1)
    ax.set_xscale("symlog", linthresh=1)
    reach = max(2, 100 * (rows["ratio"] - 1).abs().max())
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 30, 100) if tick <= reach]
    ticks = [*(-tick for tick in reversed(ticks)), 0, *ticks]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(shown)), [style.name(backend) for backend in shown])
    ax.set(xlim=(-1.3 * reach, 1.3 * reach), ylim=(len(shown) - 0.5, -0.5))
    ax.set_xlabel("percent that the newer run is off (linear within 1 %)")
    ax.grid(axis="y", visible=False)
    off = spans(rows.assign(off=100 * (rows["ratio"] - 1)), "off", "+.1f", " %")
    alt = f"Dots of how far each case of a newer run is off the same case of an older one, by backend: {off}."
    return fig, alt


def _bar(ax, mean, rows, way, backend, at, thickness) -> None:
    found = mean[(mean["way"] == way) & (mean["backend"] == backend)]
    if found.empty:
        return
    row, colour = found.iloc[0], style.colour(backend)
    ax.barh(at, row["value"] - 1, 0.86 * thickness, color=colour, zorder=2)
    interval = np.nan_to_num(np.clip([[row["value"] - row["low"]], [row["high"] - row["value"]]], 0, None))
    ax.errorbar(row["value"] - 1, at, xerr=interval, fmt="none", ecolor=style.INK, elinewidth=1.2, capsize=2, zorder=4)
    single = rows.loc[(rows["way"] == way) & (rows["backend"] == backend), "value"]
    ax.plot(single - 1, np.full(len(single), at), "o", ms=4.5, mfc="white", mec=style.INK, mew=0.8, zorder=3)
    end = max(single.max(), row["value"], 1)
    place = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "size": 9, "path_effects": style.HALO}
    ax.annotate(f"{row['value']:.2f}×", (end - 1, at), **place)


def _dot(fill: str, label: str) -> Line2D:
    return Line2D([], [], lw=0, marker="o", ms=5, mfc=fill, mec=style.INK, label=label)


@style.figure
def samples_spread(
    table: pd.DataFrame, samples: pd.DataFrame, M: int = 1, shape=WIDE, backends=LADDER
) -> tuple[Figure, str]:
    """The samples of one group, round by round, each backend relative to its own median.

    Where all of them move together, the GPU moved (its clock), and that cancels in a speedup.

    table:   report_table(run)
    samples: run.samples
    """
    style.require(
        table, ["case_id", "backend", "M", "K", "N", "launch", "l2_state", "status", "latency_us_p50"], "samples_spread"
    )
    style.require(samples, ["case_id", "sample", "latency_us"], "samples_spread")
    rows = table[(table["M"] == M) & (table["K"] == shape[0]) & (table["N"] == shape[1]) & (table["status"] == "ok")]
    rows = rows[(rows["launch"] == "graph") & (rows["l2_state"] == "cold") & rows["backend"].isin(backends)]
    if rows.empty:
        raise ValueError(f"samples_spread: the table has no {', '.join(backends)} at M = {M}, {shape_name(shape)}")
    shown = [backend for backend in backends if backend in set(rows["backend"])]
    handles = [
        Line2D([], [], color=style.colour(b), marker=style.marker(b), ms=5, lw=1.4, label=style.name(b)) for b in shown
    ]
    where = style.conditions(rows[rows["backend"] != BASELINE], f"M = {M}", shape_name(shape))
    fig, ax = style.canvas("The samples of one group, round by round", where, legend=handles, height=3.3)
    furthest = {}
    for backend in shown:
        case = rows[rows["backend"] == backend].iloc[0]
        mine = samples[samples["case_id"] == case["case_id"]].sort_values("sample")
        relative = 100 * (mine["latency_us"] / case["latency_us_p50"] - 1)
        furthest[backend] = relative.abs().max()
        ax.plot(mine["sample"], relative, color=style.colour(backend), marker=style.marker(backend), ms=4, lw=1.2)
    ax.axhline(0, color=style.IDEAL, lw=1)
    ax.set(xlabel="round", ylabel="latency, % off its median")
    ax.xaxis.get_major_locator().set_params(integer=True)
    told = "; ".join(f"{style.name(backend)} {percent:.1f} %" for backend, percent in furthest.items())
    alt = f"Lines of latency, round by round, M = {M}, {shape_name(shape)}. Furthest off its own median: {told}."
    return fig, alt
