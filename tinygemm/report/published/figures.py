"""Published speedups beside ours: quoted are diamonds, measured are filled, projected are hollow with a dashed band."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tinygemm.report.base import style
from tinygemm.report.base.tables import SHAPE
from tinygemm.report.base.words import shape_name, span
from tinygemm.report.published.tables import MEASURED, OURS, PROJECTED, PUBLISHED, of_ours

PRINTED, READ_OFF = style.INK, "#9AA0A6"
NAMES = {
    "aten-int4mm": "PyTorch (aten)", "gemlite": "GemLite", "marlin": "Marlin", "exllamav2": "ExLlamaV2", "awq": "AWQ",
    "tiny-gemm": "earlier study", "int4": "ours",
}  # fmt: skip
DASHED = (0, (3, 2))
ROW, HEADER = 0.185, 1.35  # inches of a row; rows that a header takes


@style.figure
def published_speedups(rows: pd.DataFrame, M: int = 1, most_shapes: int = 4) -> tuple[Figure, str]:
    """One row per published speedup at this M, with ours in the same row; then what this run measured itself.

    rows:        literature.beside(table, model, published)
    most_shapes: of one source and GPU, the first few in the order of the file
    """
    style.require(
        rows,
        ["gpu_name", *SHAPE, "backend", "kind", "value", "low", "high", "digitised", "run_id"],
        "published_speedups",
    )
    rows = rows[rows["M"] == M]
    ideal = 16 / (4 + 16 / 128)
    groups = _groups(rows, most_shapes)
    height = ROW * sum(len(lines) + HEADER for _, lines in groups) + 0.6
    origin = rows[["run_id"]].assign(gpu=rows["run_gpu"])
    where = style.conditions(origin, f"M = {M}", "each over the FP16 of its own source", "ours: CUDA graph, cold L2")
    fig, ax = style.canvas(
        "INT4 over FP16: published, and ours", where, legend=_legend(rows), legend_columns=2, height=height
    )
    y, ticks = 0.0, []
    for heading, lines in groups:
        y += HEADER
        ax.text(0.0, y - 0.95, heading, transform=ax.get_yaxis_transform(), va="center", size=9, weight="bold",
                path_effects=style.HALO)  # fmt: skip
        for label, marks in lines:
            ticks.append((y, label))
            ax.axhline(y, color="#EEF0F1", lw=0.8, zorder=0)
            for mark in marks:
                _mark(ax, y, mark)
            y += 1
    ax.axvline(1, color=style.colour("fp16-cublas"), lw=1.4, zorder=1)
    ax.axvline(ideal, color=style.IDEAL, lw=1.2, ls=(0, (4, 3)), zorder=1)
    ax.text(ideal - 0.04, -0.05, f"ideal {ideal:.2f}×", ha="right", va="center", size=9, path_effects=style.HALO)
    ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks], size=9)
    ax.set(ylim=(y - 0.4, -0.5), xlabel="speedup over FP16")
    ax.set_xlim(0, max(4.6, rows["high"].max() * 1.03))
    ax.set_xticks(range(5), ["0", "1×", "2×", "3×", "4×"])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    of = {kind: span(rows.loc[rows["kind"] == kind, "value"], ".2f", "×") for kind in dict.fromkeys(rows["kind"])}
    alt = f"Speedups of INT4 over FP16 at M = {M}, source by source, with ours in the same row: " + (
        "; ".join(f"{kind} {value}" for kind, value in of.items()) + f". The ideal is {ideal:.2f}×."
    )
    if (rows["value"] > ideal).any():
        alt += " A speedup beyond it is over an FP16 kernel that moves its bytes more slowly than the INT4 kernel does."
    return fig, alt


def _groups(rows: pd.DataFrame, most_shapes: int) -> list[tuple[str, list]]:
    """Headings, each with its lines: a label and the marks in it."""
    groups = []
    ours = of_ours(rows).set_index(["gpu", *SHAPE])
    for (_, gpu), quoted in rows[rows["kind"] == PUBLISHED].groupby(["source_key", "gpu"], sort=False):
        shapes = list(dict.fromkeys(zip(quoted["K"], quoted["N"], strict=True)))[:most_shapes]
        several = len(shapes) > 1
        lines = []
        for row in quoted.itertuples():
            if (row.K, row.N) in shapes:
                key = (row.gpu, row.M, row.K, row.N)
                beside = [ours.loc[key]] if key in ours.index else []
                clock = ", base clock" if "base clock" in row.method else ""
                label = shape_name((row.K, row.N)) if several else _name(row.backend) + clock
                lines.append((label, [row, *beside]))
        name = (quoted["gpu_name"].iloc[0] or gpu).removeprefix("NVIDIA ").removeprefix("GeForce ")
        what = _name(quoted["backend"].iloc[0]) if several else shape_name(shapes[0])
        groups.append((f"{name}, {what}", lines))
    timed = rows[rows["kind"] == MEASURED]
    for (gpu, K, N), mine in timed.groupby(["gpu_name", "K", "N"], sort=False):
        if (K, N) in {(4096, 4096)} or len(timed[["K", "N"]].drop_duplicates()) == 1:
            lines = [(_name(row.backend), [row]) for row in mine.itertuples()]
            groups.append((f"{gpu.removeprefix('NVIDIA ')}, {shape_name((K, N))}, this run", lines))
    return groups


def _mark(ax, y: float, row) -> None:
    if row.kind == PUBLISHED:
        ax.plot(row.value, y, "D", color=READ_OFF if row.digitised else PRINTED, ms=6.5, zorder=4)
        return
    colour, dashed = style.colour(row.backend), row.kind == PROJECTED
    ax.plot([row.low, row.high], [y, y], color=colour, lw=1.3, ls=DASHED if dashed else "-", zorder=2)
    ax.plot(row.value, y, "o", mfc="white" if dashed else colour, mec=colour, mew=1.4, ms=7, zorder=3)


def _legend(rows: pd.DataFrame) -> list[Line2D]:
    """Only what is shown."""
    kinds, look = set(rows["kind"]), {"ls": "none", "ms": 7}
    ours = {"marker": "o", "color": style.colour(OURS), "lw": 1.3, "ms": 7}
    entries = [
        (PUBLISHED, Line2D([], [], marker="D", color=PRINTED, label="published, printed", **look)),
        (PUBLISHED, Line2D([], [], marker="D", color=READ_OFF, label="published, read off a figure", **look)),
        (
            PROJECTED,
            Line2D([], [], mfc="white", ls=DASHED, label="ours, projected", **ours),
        ),
        (MEASURED, Line2D([], [], label="measured in this run", **ours)),
    ]
    return [handle for kind, handle in entries if kind in kinds]


def _name(backend: str) -> str:
    return NAMES.get(backend, style.name(backend))
