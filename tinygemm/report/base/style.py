"""The look of every figure: one colour and name per backend, title and conditions above, files that do not vary."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tinygemm.backends import BACKENDS

INK, FAINT, IDEAL, OTHER = "#202124", "#6B7075", "#111111", "#999999"

WIDTH = 6.4  # inches; with 11-point text a figure stays legible at 375 pixels
TITLE, CONDITIONS_LINE, LEGEND_ROW = 0.36, 0.18, 0.235  # inches kept free above the axes
CONDITIONS_WIDTH = 94  # characters of the small line
STYLE = {
    **sns.axes_style("whitegrid"),
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.edgecolor": "#C4C7CA",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "grid.color": "#E4E6E8",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",  # also in a dark page
    "figure.dpi": 110,
    "hatch.linewidth": 0.8,
}
DPI = 200
NO_BREAK = "\N{NO-BREAK SPACE}"
LAUNCH_WORDS = {
    "graph": "CUDA graph",
    "primed": "CUDA graph after a dependent launch",
    "eager": "launched from Python",
    "do_bench": "do_bench",
}
HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]  # keeps a number legible over a line


def colour(backend: str) -> str:
    return BACKENDS[backend].colour if backend in BACKENDS else OTHER


def name(backend: str) -> str:
    return BACKENDS[backend].name if backend in BACKENDS else backend


def short_name(backend: str) -> str:
    return BACKENDS[backend].short or name(backend) if backend in BACKENDS else backend


def marker(backend: str) -> str:
    return BACKENDS[backend].marker if backend in BACKENDS else "o"


def in_order(backends) -> list[str]:
    """Backends in the order of their descriptions, unknown ones last."""
    known = {backend: i for i, backend in enumerate(BACKENDS)}
    return sorted(set(backends), key=lambda backend: (known.get(backend, len(known)), backend))


def figure(draw: Callable[..., tuple[Figure, str]]) -> Callable[..., Figure]:
    """Decorator of a function that draws: applies the style and fixes the layout, which would creep with each save.

    draw:    returns the figure and its alt text: one or two sentences that say what is seen to who does not see it,
             with numbers from the same table (`return fig, f"INT4 is {low:.1f} to {high:.1f} times as fast …"`)
    returns: a function that returns the figure alone; its alt text is `fig.get_label()`, and a notebook that displays
             the figure hands it on to the page
    """

    @functools.wraps(draw)
    def styled(*args, **kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            fig, alt = draw(*args, **kwargs)
            fig.draw_without_rendering()
        fig.set_layout_engine("none")
        fig.set_label(alt)
        fig._repr_mimebundle_ = functools.partial(_output_metadata, alt)  # IPython asks for it beside the image
        return fig

    return styled


def _output_metadata(alt: str, include=None, exclude=None) -> tuple[dict, dict]:
    """No data of its own, and the alt text for each kind of image; book/_ext/report_pages.py puts it on the page."""
    return {}, {kind: {"alt": alt} for kind in ("image/svg+xml", "image/png")}


def canvas(
    title: str, conditions: str, *, legend=(), legend_columns: int = 3, height: float = 3.2, **subplots
) -> tuple[Figure, Axes]:
    """A figure with its title, the lines of conditions and the legend above the axes, where they cover no data.

    legend:   handles with labels
    height:   of the axes, in inches
    subplots: for plt.subplots
    returns:  the figure, which pyplot no longer holds, and its axes
    """
    small = [line.strip(" ·") for line in textwrap.wrap(conditions, CONDITIONS_WIDTH, break_on_hyphens=False)]
    above = TITLE + CONDITIONS_LINE * len(small)
    top = above + LEGEND_ROW * -(-len(legend) // legend_columns)
    full = top + height
    fig, axes = plt.subplots(figsize=(WIDTH, full), **subplots)
    plt.close(fig)  # shown once, where it is returned
    fig.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 1 - top / full - 0.01), h_pad=0.05, hspace=0.04)
    fig.text(0.015, 1 - 0.08 / full, title, va="top", weight="bold", size=12.5)
    fig.text(0.015, 1 - TITLE / full, "\n".join(small), va="top", size=8.5, color=FAINT, linespacing=1.3)
    if legend:
        fig.legend(
            handles=legend, loc="upper left", bbox_to_anchor=(0.005, 1 - (above - 0.06) / full), ncols=legend_columns,
            borderpad=0.2, columnspacing=1.2, handlelength=1.4, handletextpad=0.5, labelspacing=0.35,
        )  # fmt: skip
    return fig, axes


def conditions(table: pd.DataFrame, *facts: str) -> str:
    """The small line under a title: the GPU and run where the table knows them, then what the numbers are of.

    table: rows shown; columns gpu, run_id, launch, l2_state and group_size are used where present
    facts: more of them, such as "M = 1"
    """
    parts = [_only(table, "gpu"), *facts]
    sizes = sorted({int(size) for size in table.get("group_size", []) if size != 0})
    if len(sizes) == 1:
        parts.append("one group per row" if sizes[0] == -1 else f"groups of {sizes[0]}")
    if (l2_state := _only(table, "l2_state")) is not None:
        parts.append(f"{l2_state} L2")
    if (launch := _only(table, "launch")) is not None:
        parts.append(LAUNCH_WORDS[launch])
    if (run_id := _only(table, "run_id")) is not None:
        parts.append(f"run {run_id}")
    return " · ".join(part.replace(" ", NO_BREAK) for part in parts if part)


def _only(table: pd.DataFrame, column: str):
    """The one value of a column; None if it is absent or varies."""
    values = table[column].dropna().unique() if column in table else []
    return values[0] if len(values) == 1 else None


def save(fig: Figure, path: Path | str) -> Path:
    """Write a figure as PNG or SVG, by the ending of `path`; the same figure gives the same bytes.

    raises: ValueError for another ending
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"a figure is written as .png or .svg, not {path.suffix or 'without an ending'!r}: {path}")
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "tinygemm", "svg.fonttype": "path"}):
        fig.savefig(path, format=kind, dpi=DPI, metadata=metadata)
    return path


def shapes_present(rows: pd.DataFrame, wanted, most: int = 4) -> list[tuple[int, int]]:
    """Those of the wanted (K, N) that the rows have; where they have none, the first few that they do have."""
    present = list(dict.fromkeys(zip(rows["K"], rows["N"], strict=True)))
    return [shape for shape in wanted if shape in present] or sorted(present)[:most]


def require(table: pd.DataFrame, columns, figure: str) -> None:
    """Raise ValueError naming the columns that a figure needs and the table lacks, or that there are no rows."""
    if missing := [column for column in columns if column not in table.columns]:
        raise ValueError(
            f"{figure} needs the columns {', '.join(missing)}; the table has {', '.join(map(str, table.columns))}"
        )
    if table.empty:
        raise ValueError(f"{figure}: the table has no rows")


def spread(rows: pd.DataFrame, value: str) -> np.ndarray:
    """Lengths of the error bars [2, rows] below and above a median, from the columns `<value>_low` and `<value>_high`;
    latency_us_p50 has latency_us_low and latency_us_high. Zero where an interval is missing."""
    stem = value.removesuffix("_p50")
    low, high = (rows[f"{stem}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
    middle = rows[value].to_numpy(dtype=float)
    return np.nan_to_num(np.clip([middle - low, high - middle], 0, None))
