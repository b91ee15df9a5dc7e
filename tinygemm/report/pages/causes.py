"""The cards and tables of the chapter on dequantisation, launch and parallelism."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from tinygemm.report import causes
from tinygemm.report.causes import CAUSES, LEFTOVERS, REGIMES
from tinygemm.report.pages.shared import badge
from tinygemm.report.words import shape_names

SPLITS = {
    "int4-no-split": "one warp",
    "int4-splitk": "as selected, in this form",
    "int4": "as selected, in either form",
    "int4-more-split": "twice the programs",
}


def card(regime: str, verdicts: dict) -> Markdown:
    """The answer at one regime: called from Python, and with the launch gone already.

    verdicts: verdicts.causes.of_run(run)
    """
    both = {"Called from Python": verdicts[f"cause_{regime}"], "In a CUDA graph": verdicts[f"cause_{regime}_graph"]}
    answers = [f"{badge(verdict)} *{where}:* {verdict.sentence}" for where, verdict in both.items()]
    shape = "×".join(map(str, REGIMES[regime]))
    title = f"Of the simple forms, naive dequantisation costs INT4 most at the {regime} projection, {shape}, M = 1"
    return Markdown("\n".join([f":::{{admonition}} {title}", ":class: finding", "", "\n\n".join(answers), ":::"]))


def savings(removals: pd.DataFrame) -> pd.DataFrame:
    """What each removal saves at every shape it was timed at, as text with intervals: shape, then one column each.

    removals: causes.removals(run); shapes at which only one of the causes was varied are left out
    """
    varied = removals[removals["cause"] != ""].groupby("problem")["cause"].nunique()
    rows = removals[removals["problem"].isin(varied[varied > 1].index)]
    cells = [f"{row.value:.0%} ({row.low:.0%} to {row.high:.0%})" for row in rows.itertuples()]
    wide = rows.assign(cell=cells).pivot(index=["K", "N", "problem"], columns="removal", values="cell")
    wide = wide.reindex(columns=[*CAUSES, *LEFTOVERS]).reset_index().sort_values(["K", "N"]).rename_axis(columns=None)
    return wide.assign(shape=shape_names(wide))


def saving_columns() -> dict[str, tuple[str, str]]:
    """The columns of `savings` for pages.table."""
    return {"shape": ("K×N", "")} | {name: (name, "") for name in (CAUSES | LEFTOVERS)}


def splits(run) -> pd.DataFrame:
    """The same bytes with K split more or less: one row per shape and split at the four regimes.

    returns: shape, split (in words), split_k, programs_per_sm, num_warps, k_per_warp, latency_us
    """
    table = causes.programs(run)
    table = table[table["backend"].isin(SPLITS) & pd.MultiIndex.from_frame(table[["K", "N"]]).isin(REGIMES.values())]
    both = table.groupby("problem")["backend"].transform("nunique") > 1
    table = table[both].sort_values(["K", "N", "weights_per_warp"], ascending=[True, True, False])
    k_per_warp = table["k_per_program"] / table["num_warps"]
    return table.assign(shape=shape_names(table), split=table["backend"].map(SPLITS), k_per_warp=k_per_warp)
