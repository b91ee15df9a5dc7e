"""The tables of the chapter on where the speedup comes from: factors with their intervals, and shares of the gain."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from tinygemm.report.base.page import lacks
from tinygemm.report.base.words import shape_names
from tinygemm.report.decomposition import tables as decomposition

FACTORS = {
    "launch": "launch",
    "kernel": "kernel",
    "weight-read bound": "weight-read bound",
    "multiply, wait": "multiply, wait",
    "dequantise": "dequantise",
    "total": "between graphs",
    "total with launch": "eager FP16 to graph INT4",
}
BESIDE = {
    "weight-read bound": "weight-read bound",
    "weight-read bound, serial": "weight-read bound, one call after the other",
    "dequantise, multiply": "dequantise and multiply",
    "dequantise, multiply, serial": "the same, one call after the other",
    "fewer bits": "bits: all three",
    "launch of INT4": "launch of INT4",
    "eager total": "between eager calls",
}


def factors(steps: pd.DataFrame, columns: dict[str, str] = FACTORS) -> pd.DataFrame:
    """Each decode case of a run and its factors, as text with intervals: shape, M, then one column per step.

    steps: decomposition.steps(run); problems without a path from FP16 to INT4 are left out
    """
    complete = [problem for problem, rows in steps.groupby("problem", sort=False) if len(decomposition.path(rows))]
    rows = steps[steps["problem"].isin(complete) & steps["step"].isin(columns)]
    cells = [f"{row.value:.2f} ({row.low:.2f}–{row.high:.2f})" for row in rows.itertuples()]
    wide = rows.assign(cell=cells).pivot(index=["problem", "K", "N", "M"], columns="step", values="cell")
    wide = wide.reindex(columns=list(columns)).reset_index().sort_values(["K", "N", "M"]).rename_axis(columns=None)
    return wide.assign(shape=shape_names(wide))


def factor_columns(columns: dict[str, str] = FACTORS) -> dict[str, tuple[str, str]]:
    """The columns of `factors` for pages.table."""
    return {"shape": ("K×N", ""), "M": ("M", "d")} | {step: (heading, "") for step, heading in columns.items()}


def slower_without(steps: pd.DataFrame) -> Markdown:
    """In how many cases the kernel without dequantisation is the slower one, so that two factors mean little."""
    rows = steps[steps["step"] == "dequantise"].dropna(subset=["low"])
    if rows.empty:
        return lacks("the kernel without its dequantisation")
    slower = rows[rows["low"] > 1].sort_values("value", ascending=False)
    if slower.empty:
        return Markdown(f"In none of {len(rows)} cases is the kernel clearly slower without its dequantisation.")
    worst = slower.iloc[0]
    return Markdown(
        f"In {len(slower)} of {len(rows)} cases the kernel is clearly slower *without* its dequantisation, at most "
        f"{worst['value']:.2f} times as slow ({shape_names(slower.head(1)).iloc[0]}, M = {worst['M']:.0f}): there the "
        "last two factors mean little one by one, only their product does."
    )


def which_reads(steps: pd.DataFrame) -> Markdown:
    """The reads that the path of the figures goes over: such as overlap the call before, or such as wait for it.

    steps: decomposition.steps(run)
    """
    paths = [rows for _, rows in steps.groupby("problem", sort=False) if len(decomposition.path(rows))]
    serial = sum("weight-read bound, serial" in set(rows["step"]) for rows in paths)
    if not serial:
        return Markdown("The figures go over reads that overlap the call before.")
    where = "in all cases" if serial == len(paths) else f"in {serial} of {len(paths)} cases"
    return Markdown(
        f"The figures go, {where}, over reads that start only when the call before has finished "
        "(`int4-load-only-serial`). So *multiply, wait* may come out as a gain there: the kernel overlaps the call "
        "before it, and those reads do not."
    )


def has_path(steps: pd.DataFrame, M: int) -> bool:
    """Tell whether any problem of these tokens was timed all the way from FP16 to INT4."""
    return any(len(decomposition.path(rows)) for _, rows in steps[steps["M"] == M].groupby("problem"))


def no_path() -> Markdown:
    """The sentence in place of the figure, for a run without such a problem."""
    return lacks("every step from FP16 to INT4 at any projection of these tokens")
