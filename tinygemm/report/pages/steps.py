"""What the chapter on how the kernel got fast puts on its page beside its figure."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from tinygemm.report import steps, style
from tinygemm.report.pages.shared import lacks

MISSING = lacks("every step of the ladder at one projection")
RUNGS = {
    "shape": ("K×N", ""),
    "label": ("Step", ""),
    "latency_us": ("µs", ".2f"),
    "interval": ("95 % interval", ""),
    "gain": ("factor", ""),
    "factor_interval": ("95 % interval", ""),
    "of_reads": ("of reads, overlapping", ".0%"),
    "of_reads_serial": ("of reads, one by one", ".0%"),
}
GAINS = {
    "shape": ("K×N", ""),
    "M": ("M", ".0f"),
    **{label: (label, "") for label in list(steps.STEPS.values())[1:]},
    "total": ("together", ".1f"),
}


def rungs(rows: pd.DataFrame, M: int) -> pd.DataFrame:
    """Every step at one M, for pages.table with RUNGS: time, factor to the step before, share of reading alone.

    rows: steps.rungs(run)
    """
    rows = rows[rows["M"] == M]
    return rows.assign(
        shape=_shapes(rows),
        interval=_spans(rows, "latency_us"),
        gain=[_factor(row) for _, row in rows.iterrows()],
        factor_interval=_spans(rows, "factor"),
        of_reads=rows["reads_us"] / rows["latency_us"],
        of_reads_serial=rows["reads_serial_us"] / rows["latency_us"],
    )


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """The factor of every step, one row per problem, for pages.table with GAINS: the largest is bold.

    rows: steps.rungs(run)
    """
    best = set(steps.gains(rows).groupby("problem")["factor"].idxmax())
    words = [f"**{_factor(row)}**" if index in best else _factor(row) for index, row in rows.iterrows()]
    total = steps.totals(rows)
    wide = rows.assign(text=words).pivot(index="problem", columns="label", values="text").reindex(total["problem"])
    return total.assign(shape=_shapes(total)).merge(wide.reset_index(), on="problem", validate="one_to_one")


def whole(rows: pd.DataFrame) -> Markdown:
    """What the steps make together at each M, and how near the last one is to reading alone."""
    if rows.empty:
        return MISSING
    sentences = []
    for M, of in steps.totals(rows).groupby("M"):
        at = {end: of.loc[getattr(of["total"], f"idx{end}")()] for end in ("min", "max")}
        ends = " to ".join(f"{row['total']:.1f} ({style.shape_name((row['K'], row['N']))})" for row in at.values())
        sentence = f"At M = {M} the steps together make the kernel faster by a factor of {ends}"
        near = of["of_reads"].dropna()
        if len(near):
            sentence += f"; the last one reaches {100 * near.min():.0f} % to {100 * near.max():.0f} % "
            sentence += "of the speed of reading alone, calls overlapping"
        sentences.append(f"{sentence}.")
    return Markdown(" ".join(sentences))


def again(rows: pd.DataFrame) -> Markdown:
    """How far apart two times of one kernel are, where the last step of the ladder is none."""
    same = rows[rows["same"]]
    if same.empty:
        return Markdown("In this run the last step is another form of the kernel at every projection.")
    apart = (same["factor"] - 1).abs().max()
    sure = int(((same["factor_low"] > 1) | (same["factor_high"] < 1)).sum())
    sentence = (
        f"In {len(same)} cases the library selects the form of the step before, so the run timed one kernel twice, in "
        f"the same rounds. The two times differ by {100 * apart:.1f} % at most"
    )
    if sure:
        sentence += (
            f", and in {sure} of the cases by more than chance between rounds: no interval here covers what two "
        )
        sentence += "places in a round do to a time"
    return Markdown(f"{sentence}.")


def passes(rows: pd.DataFrame, M: int = 1) -> Markdown:
    """With which step the kernel passes FP16 at each shape."""
    mine = rows[(rows["M"] == M) & rows["fp16_us"].notna()]
    if mine.empty:
        return MISSING
    total = steps.totals(mine)
    total = total.assign(shape=_shapes(total), passes=total["passes"].fillna("none"))
    told = [f"{label} ({', '.join(of['shape'])})" for label, of in total.groupby("passes", sort=False)]
    return Markdown(f"The step with which the kernel passes FP16 (cuBLAS) at M = {M}: {'; '.join(told)}.")


def _factor(row: pd.Series) -> str:
    if row["same"]:
        return "same kernel"
    return "–" if pd.isna(row["factor"]) else f"{row['factor']:.2f}"


def _shapes(rows: pd.DataFrame) -> list[str]:
    return [style.shape_name(shape) for shape in zip(rows["K"], rows["N"], strict=True)]


def _spans(rows: pd.DataFrame, name: str) -> list[str]:
    ends = zip(rows[f"{name}_low"], rows[f"{name}_high"], strict=True)
    return ["–" if pd.isna(low) else f"{low:.2f} to {high:.2f}" for low, high in ends]
