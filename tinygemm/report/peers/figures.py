"""The tuned kernel beside other INT4 kernels, and beside reading its bytes alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import style
from tinygemm.report.base.words import shape_name, span, spans
from tinygemm.report.peers.claims import LEAST_OF_READS, LEAST_OVER_PEERS, MEAN_OVER_PEERS
from tinygemm.report.peers.tables import OVERLAPPING, SERIAL

ROW = 0.215  # inches of one case
LIMIT = {"color": style.IDEAL, "lw": 1.2, "ls": (0, (4, 3)), "zorder": 1}


@style.figure
def peer_times(rows: pd.DataFrame, mean: dict[str, float], origin: pd.DataFrame) -> tuple[Figure, str]:
    """The time of every other INT4 kernel as a multiple of ours, one line per case; quoted times are hollow.

    rows:   peers.contest(run)
    mean:   peers.mean_over_peers, the geometric mean over the best peer of each case
    origin: report_table(run), for the GPU and the run
    """
    style.require(rows, ["backend", "M", "K", "N", "value", "low", "high", "kind"], "peer_times")
    shapes = [shape for shape in STUDY_SHAPES if ((rows["K"] == shape[0]) & (rows["N"] == shape[1])).any()]
    tokens = sorted(set(rows["M"]))
    shown = style.in_order(rows["backend"])
    handles = [_dot(style.colour(b), style.marker(b), style.name(b)) for b in shown]
    if (rows["kind"] == "quoted").any():
        handles.append(_dot(style.INK, "o", "hollow: quoted", hollow=True))
    handles.append(Line2D([], [], color=style.colour("int4"), lw=2, label=f"mean {mean['value']:.2f}×"))
    where = style.conditions(origin[["gpu", "run_id"]].head(1), "groups of 128", "cold L2", "CUDA graph")
    height = 0.5 + len(shapes) * (0.24 + ROW * len(tokens))
    fig, ax = style.canvas("The time of other INT4 kernels over ours", where, legend=handles, height=height)
    ax.axvspan(mean["low"], mean["high"], color=style.colour("int4"), alpha=0.3, lw=0)
    ax.axvline(mean["value"], color=style.colour("int4"), lw=2, zorder=1)
    ax.axvline(1, color=style.colour("int4"), lw=1)
    for bound in (LEAST_OVER_PEERS, MEAN_OVER_PEERS):
        ax.axvline(bound, **LIMIT)
    places, labels = [], []
    for i, (K, N) in enumerate(shapes):
        for j, M in enumerate(tokens):
            y = i * (len(tokens) + 1.1) + j
            places.append(y)
            labels.append(f"{shape_name((K, N)) + ',  ' if j == 0 else ''}M = {M}")
            _dots(ax, rows[(rows["K"] == K) & (rows["N"] == N) & (rows["M"] == M)], y)
    ax.set_yticks(places, labels)
    right = 1.12 * rows["value"].max()
    ticks = [tick for tick in (1, LEAST_OVER_PEERS, MEAN_OVER_PEERS, 2, 3, 4, 6, 8, 12) if tick < right]
    ax.set(xscale="log", xlim=(0.92 * min(1, rows["value"].min()), right), ylim=(places[-1] + 0.8, -0.8))
    ax.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("time of the other / time of the tuned kernel (log scale)")
    ax.grid(axis="y", visible=False)
    alt = (
        f"Dots of the time of other INT4 kernels over ours, M = {', '.join(map(str, tokens))}, "
        f"{', '.join(map(shape_name, shapes))}: {spans(rows, 'value', '.2f', '×')}. The mean over the best of "
        f"each case is {mean['value']:.2f}×."
    )
    return fig, alt


@style.figure
def fraction_of_reads(by_reads: dict[str, pd.DataFrame], origin: pd.DataFrame) -> tuple[Figure, str]:
    """The share of the weight-read bound that the tuned kernel reaches, per shape, with the target.

    by_reads: backend of the reads -> peers.fraction_of_reads(run, backend); empty ones are left out
    origin:   report_table(run), for the GPU and the run
    """
    shown = {reads: rows[rows["M"].isin(LEAST_OF_READS)] for reads, rows in by_reads.items()}
    shown = {reads: rows for reads, rows in shown.items() if len(rows)}
    if not shown:
        raise ValueError(f"fraction_of_reads: the tables have no M of {', '.join(map(str, LEAST_OF_READS))}")
    every = pd.concat(shown.values())
    tokens, shapes = sorted(set(every["M"])), sorted(set(zip(every["K"], every["N"], strict=True)))
    words = {OVERLAPPING: "calls overlap", SERIAL: "one after the other"}
    handles = [_dot(style.colour("int4"), "o", words[reads], reads != OVERLAPPING) for reads in shown]
    where = style.conditions(origin[["gpu", "run_id"]].head(1), "groups of 128", "cold L2", "CUDA graph")
    height = 0.4 + len(tokens) * (0.45 + 0.24 * len(shapes))
    title = "How close the tuned kernel comes to the weight-read bound"
    fig, axes = style.canvas(
        title, where, legend=handles, legend_columns=2, height=height, nrows=len(tokens), sharex=True, squeeze=False
    )
    for ax, M in zip(axes[:, 0], tokens, strict=True):
        for reads, rows in shown.items():
            rows = rows[rows["M"] == M]
            y = [shapes.index(shape) for shape in zip(rows["K"], rows["N"], strict=True)]
            fill = style.colour("int4") if reads == OVERLAPPING else "white"
            interval = 100 * np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]])
            ax.errorbar(
                100 * rows["value"], y, xerr=np.nan_to_num(np.clip(interval, 0, None)), fmt="o", ms=7, mfc=fill,
                mec=style.colour("int4"), mew=1.4, ecolor=style.INK, elinewidth=1, zorder=3,
            )  # fmt: skip
        ax.axvline(100 * LEAST_OF_READS[M], **LIMIT)
        ax.axvline(100, color=style.colour("int4-load-only"), lw=1.4, zorder=1)
        ax.set_yticks(range(len(shapes)), [*map(shape_name, shapes)])
        ax.set_ylim(len(shapes) - 0.5, -0.5)
        ax.set_title(f"M = {M}: target {LEAST_OF_READS[M]:.0%}", loc="left", size=10.5, weight="bold", pad=4)
        ax.set_xlim(0, 100 * max(1.05, 1.05 * every["value"].max()))
    axes[-1, 0].set_xlabel("percent of the weight-read bound")
    told = {words[reads]: span(rows["value"], ".0%") for reads, rows in shown.items()}
    alt = (
        f"Dots of how much of the weight-read bound the tuned kernel reaches, M = {', '.join(map(str, tokens))}: "
        f"{'; '.join(f'{way} {share}' for way, share in told.items())}."
    )
    return fig, alt


def _dot(colour: str, marker: str, label: str, hollow: bool = False) -> Line2D:
    return Line2D(
        [], [], lw=0, marker=marker, ms=7, mfc="white" if hollow else colour, mec=colour, mew=1.4, label=label
    )


def _dots(ax, rows: pd.DataFrame, y: float) -> None:
    for _, row in rows.iterrows():
        colour, quoted = style.colour(row["backend"]), row["kind"] == "quoted"
        interval = np.nan_to_num(np.clip([[row["value"] - row["low"]], [row["high"] - row["value"]]], 0, None))
        ax.errorbar(
            row["value"], y, xerr=interval, fmt=style.marker(row["backend"]), ms=6.5, mfc="white" if quoted else colour,
            mec=colour, mew=1.4, ecolor=style.INK, elinewidth=1, zorder=3,
        )  # fmt: skip
