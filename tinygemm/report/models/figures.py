"""The figure for a user with a model: every projection against the best FP16."""

from __future__ import annotations

import math

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tinygemm.report.base import style
from tinygemm.report.base.words import span
from tinygemm.report.models.tables import FASTER, NOT_QUANTISABLE, NOT_TIMED, SLOWER, TIE

LOSS, GAIN = style.colour("aten-int4mm"), style.colour("int4")
RANGE = (0.5, 1.0, 4.0)  # speedups at the ends and the middle of the colours; 4 bits allow less than 4×
UNKNOWN = "#ECEEEF"
GAP = 0.35  # between models and between degrees, in cells


@style.figure
def never_slower(table: pd.DataFrame) -> tuple[Figure, str]:
    """A map of all cases: one row per projection of a model, one column per degree and M, the speedup in each cell.

    table: projections.every_projection(run)
    """
    style.require(table, ["model", "tp", "layer", "M", "state", "speedup", "gpu", "run_id"], "never_slower")
    layers = list(dict.fromkeys(zip(table["model"], table["layer"], strict=True)))
    models = list(dict.fromkeys(table["model"]))
    columns = sorted(set(zip(table["tp"], table["M"], strict=True)))
    degrees = sorted(set(table["tp"]))
    x = {column: i + GAP * degrees.index(column[0]) for i, column in enumerate(columns)}
    y = {row: i + (1 + GAP) * (models.index(row[0]) + 1) for i, row in enumerate(layers)}
    shades = mpl.colors.LinearSegmentedColormap.from_list("gain", [LOSS, "#FFFFFF", GAIN])
    scale = mpl.colors.TwoSlopeNorm(vcenter=0, vmin=_log(RANGE[0]), vmax=_log(RANGE[2]))
    origin = table[["gpu", "run_id"]].assign(l2_state="cold", launch="graph")
    where = style.conditions(origin, "speedup over the best FP16")
    fig, ax = style.canvas(
        "Every projection of every model: INT4 against FP16", where, legend=_legend(table, shades, scale),
        legend_columns=4, height=0.165 * (max(y.values()) + 3.5),
    )  # fmt: skip
    for row in table.itertuples():
        _cell(ax, x[row.tp, row.M], y[row.model, row.layer], row, shades, scale)
    for model in models:
        top = min(at for (name, _), at in y.items() if name == model)
        ax.text(-0.5, top - 1, model, va="center", size=9.5, weight="bold")
    for tp in degrees:
        middle = sum(x[column] for column in columns if column[0] == tp) / sum(column[0] == tp for column in columns)
        ax.text(middle, -1.2, f"{tp} GPU{'s' if tp > 1 else ''}", ha="center", va="center", size=9.5, weight="bold")
    ax.set_yticks(list(y.values()), [layer.removesuffix("_proj") for _, layer in y], size=9)
    ax.set_xticks(list(x.values()), [str(M) for _, M in columns], size=9)
    ax.set(xlim=(-0.6, max(x.values()) + 0.6), ylim=(max(y.values()) + 0.6, -1.8), xlabel="M, tokens in flight")
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    states = table["state"].value_counts()
    told = ", ".join(f"{state} {count}" for state, count in states.items())
    alt = (
        f"A map of {len(table)} cases: projections of {len(models)} models, by GPUs and tokens in flight. INT4 against "
        f"the best FP16: {told}. Speedups are {span(table['speedup'], '.2f', '×')}."
    )
    return fig, alt


def _cell(ax: Axes, x: float, y: float, row, shades, scale) -> None:
    """One case: its colour and number; a frame where FP16 is faster, a mark where nothing was timed."""
    known = row.state in (FASTER, TIE, SLOWER)
    face = shades(scale(_log(row.speedup))) if known else UNKNOWN
    frame = {"edgecolor": style.INK, "linewidth": 1.6, "zorder": 3} if row.state == SLOWER else {"edgecolor": "white"}
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=face, **frame))
    text = {NOT_TIMED: "", NOT_QUANTISABLE: "×"}.get(row.state) if not known else f"{row.speedup:.1f}"
    if row.state in (SLOWER, TIE):
        text = f"{row.speedup:.2f}".removeprefix("0")
    light = known and sum(face[:3]) < 1.6
    weight = "bold" if row.state == SLOWER else "normal"
    ax.text(
        x, y, text, ha="center", va="center", size=8.4, weight=weight, color="white" if light else style.INK, zorder=4
    )


def _legend(table: pd.DataFrame, shades, scale) -> list[Patch]:
    """Only what the map shows."""
    present = set(table["state"])
    entries = {
        FASTER: Patch(facecolor=shades(scale(_log(3))), label="INT4 faster"),
        TIE: Patch(facecolor="white", edgecolor="#C4C7CA", label="tie"),
        SLOWER: Patch(facecolor=shades(scale(_log(0.8))), edgecolor=style.INK, linewidth=1.4, label="FP16 faster"),
        NOT_TIMED: Patch(facecolor=UNKNOWN, label="not timed"),
        NOT_QUANTISABLE: Patch(facecolor=UNKNOWN, hatch="xx", edgecolor="#9AA0A6", label="× K fits no group"),
    }
    return [patch for state, patch in entries.items() if state in present]


def _log(speedup: float) -> float:
    return math.log2(min(max(speedup, RANGE[0]), RANGE[2]))
