"""The six steps on the page of the kernel: the stairs, their factors, and every time."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from tinygemm.report.base.page import folded, lacks, table
from tinygemm.report.base.words import interval_texts, shape_name, shape_names
from tinygemm.report.kernel import figures
from tinygemm.report.kernel import tables as steps

MISSING = lacks("every step of the ladder at one projection")
RUNGS = {
    "shape": ("K×N", ""),
    "label": ("Step", ""),
    "latency_us": ("µs", ".2f"),
    "interval": ("95 % interval", ""),
    "gain": ("factor", ""),
    "factor_interval": ("95 % interval", ""),
    "starts": ("starts", ""),
    "of_reads": ("share of reads that start so", ".0%"),
}
GAINS = {
    "shape": ("K×N", ""),
    "M": ("M", ".0f"),
    **{label: (label, "") for label in list(steps.STEPS.values())[1:]},
    "total": ("together", ".1f"),
}


def stairs(rows: pd.DataFrame) -> Figure | Markdown:
    """The time of every step at M = 1."""
    return figures.ladder(rows) if (rows["M"] == 1).any() else MISSING


def gain_table(rows: pd.DataFrame) -> Markdown:
    """The factor of every step at M = 1, the largest of a projection in bold."""
    if not (rows["M"] == 1).any():
        return MISSING
    columns = {name: heading for name, heading in GAINS.items() if name != "M"}
    caption = "The factor of every step at M = 1, the largest of a projection in bold, and all of them together"
    return table(gains(rows[rows["M"] == 1]), columns, "tab-gains", caption)


def every_step(rows: pd.DataFrame, M: int) -> Markdown:
    """The time, factor and share of the weight-read bound of every step at one M, folded."""
    caption = f"Every step at M = {M}: its time, the factor to the step before, and its share of the weight-read bound"
    return folded(f"Every step at M = {M}", rungs(rows, M), RUNGS, f"tab-rungs-{M}", caption)


def extremes(rows: pd.DataFrame, M: int = 1) -> dict[str, float]:
    """Numbers of the prose: the least and the largest factor of all steps together at one M."""
    total = steps.totals(rows)
    total = total.loc[total["M"] == M, "total"]
    return {"least": total.min(), "most": total.max()}


def rungs(rows: pd.DataFrame, M: int) -> pd.DataFrame:
    """Every step at one M, for pages.table with RUNGS: time, factor to the step before, share of the weight-read bound.

    rows: steps.rungs(run)
    """
    rows = rows[rows["M"] == M]
    return rows.assign(
        shape=shape_names(rows),
        interval=interval_texts(rows, ends=("latency_us_low", "latency_us_high")),
        gain=[_factor(row) for _, row in rows.iterrows()],
        factor_interval=interval_texts(rows, ends=("factor_low", "factor_high")),
        starts=rows["backend"].isin(steps.EARLY).map({True: "early", False: "after the one before"}),
    )


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """The factor of every step, one row per problem, for pages.table with GAINS: the largest is bold.

    rows: steps.rungs(run)
    """
    best = set(steps.gains(rows).groupby("problem")["factor"].idxmax())
    words = [f"**{_factor(row)}**" if index in best else _factor(row) for index, row in rows.iterrows()]
    total = steps.totals(rows)
    wide = rows.assign(text=words).pivot(index="problem", columns="label", values="text").reindex(total["problem"])
    return total.assign(shape=shape_names(total)).merge(wide.reset_index(), on="problem", validate="one_to_one")


def whole(rows: pd.DataFrame) -> Markdown:
    """All steps together at each M, the last one against the weight-read bound, and the step that passes FP16."""
    if rows.empty:
        return MISSING
    sentences = []
    for M, of in steps.totals(rows).groupby("M"):
        ends = [of.loc[index] for index in (of["total"].idxmin(), of["total"].idxmax())]
        factors = " to ".join(f"{row['total']:.1f} ({shape_name((row['K'], row['N']))})" for row in ends)
        sentences.append(f"At M = {M} the steps together make the kernel faster by a factor of {factors}.")
        if len(near := of["of_reads"].dropna()):
            reached = f"{100 * near.min():.0f} % to {100 * near.max():.0f} %"
            sentences.append(f"The last one reaches {reached} of the weight-read bound, calls overlapping.")
        if rows.loc[rows["M"] == M, "fp16_us"].notna().any():
            first = of.assign(shape=shape_names(of), passes=of["passes"].fillna("none")).groupby("passes", sort=False)
            told = [f"{label} ({', '.join(there['shape'])})" for label, there in first]
            sentences.append(f"FP16 (cuBLAS) is passed with the step {'; '.join(told)}.")
    return Markdown(" ".join(sentences))


def again(rows: pd.DataFrame) -> Markdown:
    """The distance of two times of one kernel, where a step of the ladder is none."""
    if rows.empty:
        return MISSING
    same = rows[rows["same"]]
    if same.empty:
        return Markdown("In this run every step is another kernel at every projection.")
    apart = (same["factor"] - 1).abs().max()
    sure = int(((same["factor_low"] > 1) | (same["factor_high"] < 1)).sum())
    sentence = (
        f"In {len(same)} cases a step changes nothing here, so the run timed one kernel twice, in the same rounds. "
        f"The two times differ by {100 * apart:.1f} % at most"
    )
    if sure:
        sentence += (
            f", and in {sure} of the cases by more than chance between rounds: no interval here covers what two "
        )
        sentence += "places in a round do to a time"
    return Markdown(f"{sentence}.")


def _factor(row: pd.Series) -> str:
    if row["same"]:
        return "same kernel"
    return "–" if pd.isna(row["factor"]) else f"{row['factor']:.2f}"
