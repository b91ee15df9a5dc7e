"""The page of the chapter on the gain: steps, curves, two calls, launching, more tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from tinygemm.problem import NARROW, STUDY_SHAPES, WIDE
from tinygemm.report.base import page, tables
from tinygemm.report.base.claims import Verdict
from tinygemm.report.base.tables import BASELINE, at_shapes
from tinygemm.report.base.words import shape_names
from tinygemm.report.gains import figures, ladder, ladder_figures, launch, launch_figures, launch_page, timeline_figures

OVERLAP = {name: launch_page.OVERLAPS[name] for name in ("shape", "left_us", "right_us", "value")}


def facts(run, table: pd.DataFrame) -> dict[str, float]:
    """Numbers of the prose: at the narrow and the wide projection the factors of the steps, and how near the library
    comes to its own floor; NaN where the run lacks one.

    table: report_table(run)
    """
    steps, found = ladder.three_steps(run), {}
    for name, shape in (("narrow", NARROW), ("wide", WIDE)):
        here = steps[(steps["K"] == shape[0]) & (steps["N"] == shape[1])]
        bits = here.loc[here["step"] == "bits", "value"]
        rest = here.loc[(here["order"] == "bits last") & (here["step"] != "bits"), "value"]
        last = here.loc[(here["order"] == "overlap last") & (here["step"] == "overlap"), "value"]
        found |= {f"{name}_bits": bits.max(), f"{name}_rest": rest.prod() if len(rest) else float("nan")}
        found |= {f"{name}_overlap": last.max()}
        share = np.log(found[f"{name}_bits"]) / np.log(found[f"{name}_bits"] * found[f"{name}_rest"])
        share = np.clip(share, 0, 1)  # beyond, one of the two loses time
        found |= {f"{name}_bits_share": share, f"{name}_rest_share": 1 - share}
        rows = tables.primary(table)
        rows = rows[(rows["backend"] == BASELINE) & (rows["M"] == 1) & at_shapes(rows, [shape])]
        found[f"{name}_library"] = rows["frac_floor"].max()
    serial = launch.overlaps(run)
    serial = serial[(serial["backend"] == "int4") & at_shapes(serial, STUDY_SHAPES)]
    return found | {"overlap_least": serial["value"].min(), "overlap_most": serial["value"].max()}


def from_python(verdict: Verdict) -> Markdown:
    """The card on the gain that launching from Python leaves. verdict: launch_claims.of_launch(...)["hides"]"""
    some = "at some weights" if verdict.numbers.get("n_kept", 0) < verdict.numbers.get("n", 0) else "everywhere"
    return page.card(verdict, f"Launched from Python, INT4 is still faster {some}")


def steps(run) -> Figure | Markdown:
    """Kernel, overlap and bits at the four projections."""
    return page.shown(ladder_figures.three_steps, ladder.three_steps(run), lacking="the steps from FP16 to INT4")


def along_n(table: pd.DataFrame) -> Figure | Markdown:
    """Speedup against N."""
    rows = tables.primary(table)
    timed = rows["backend"].isin(figures.CONTENDERS) & rows["speedup_vs_fp16"].notna()
    return page.shown(figures.speedup_vs_n, table if timed.any() else rows.iloc[:0], lacking="INT4 beside FP16")


def two_calls(table: pd.DataFrame) -> Figure | Markdown:
    """Two calls in a row: library, no overlap, overlap."""
    lacking = "the library, and our kernel with and without overlap, at the narrow projection"
    return page.shown(timeline_figures.timeline, timeline_figures.lanes(table), lacking=lacking)


def overlap(run) -> Markdown:
    """The tuned kernel without and with overlap at the four projections."""
    rows = launch_page.overlaps(run)
    rows = rows[(rows["backend"] == "int4") & at_shapes(rows, STUDY_SHAPES)]
    if rows.empty:
        return page.lacks("the tuned kernel without overlap")
    return page.table(rows, OVERLAP, "tab-overlap", "The tuned kernel without and with overlap, M = 1")


def launched(table: pd.DataFrame) -> Figure | Markdown:
    """The gain in a graph and from Python."""
    if launch.gains(table).empty:
        return page.lacks("any weight both in a graph and, on a steady host, from Python")
    return launch_figures.launch_gain(table)


def host_floor(table: pd.DataFrame) -> Figure | Markdown:
    """Time per call against N, from Python and in a graph."""
    if launch.gains(table).empty:
        return page.lacks("any weight both in a graph and, on a steady host, from Python")
    return launch_figures.host_floor(table)


def tokens(table: pd.DataFrame) -> Markdown:
    """Speedup of the tuned kernel at the four projections, by tokens in flight."""
    columns = {"shape": ("K×N", ""), **{f"M{M}": (f"M = {M}", ".2f") for M in token_counts(table)}}
    caption = "Speedup of the tuned INT4 kernel over FP16, by tokens in flight"
    return page.table(by_tokens(table), columns, "tab-tokens", caption)


def token_counts(table: pd.DataFrame) -> list[int]:
    """The values of M that the tuned kernel was timed at."""
    return sorted(int(M) for M in table.loc[table["backend"] == "int4", "M"].unique())


def by_tokens(table: pd.DataFrame, backend: str = "int4") -> pd.DataFrame:
    """Speedup over FP16, one row per projection of the earlier study and one column per M: shape, M1, M2, ..."""
    rows = tables.primary(table)
    rows = rows[(rows["backend"] == backend) & tables.at_shapes(rows, STUDY_SHAPES)]
    wide = rows.pivot(index=["K", "N"], columns="M", values="speedup_vs_fp16").add_prefix("M").reset_index()
    return wide.assign(shape=shape_names(wide)).rename_axis(columns=None)


def token_sum(table: pd.DataFrame) -> Markdown:
    """The time of all products of a token, from Python and in graphs."""
    return launch_page.token(launch.decode_step(table))
