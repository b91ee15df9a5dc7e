"""The cards and tables of the chapter on dequantisation, launch and parallelism."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from tinygemm.problem import STUDY_SHAPES, WIDE
from tinygemm.report.base import page, tables
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED
from tinygemm.report.base.page import badge, shown
from tinygemm.report.base.words import bracket, number, shape_name, shape_names
from tinygemm.report.dequantisation import figures
from tinygemm.report.dequantisation import tables as causes
from tinygemm.report.dequantisation.tables import CAUSES, LEFTOVERS, REGIMES

TWINS = {
    "shape": ("K×N", ""),
    "int4-load-only": ("weight-read bound, µs", ".2f"),
    "int4-no-dequant": ("and multiplies, µs", ".2f"),
    "int4": ("and dequantises, µs", ".2f"),
    "dequant_share": ("dequantisation", ".0%"),
}
SPLIT_COLUMNS = {
    "shape": ("K×N", ""),
    "split": ("Split of K", ""),
    "split_k": ("Programs per tile", ".0f"),
    "num_warps": ("Warps of each", ".0f"),
    "programs_per_sm": ("Programs per SM", ".1f"),
    "k_per_warp": ("K per warp", ",.0f"),
    "latency_us": ("Time, µs", ".2f"),
}
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
    both = {"In a CUDA graph": verdicts[f"cause_{regime}_graph"], "Called from Python": verdicts[f"cause_{regime}"]}
    answers = [
        f"{where}, the claim that it is: {badge(verdict)}. {verdict.sentence}" for where, verdict in both.items()
    ]
    shape = "×".join(map(str, REGIMES[regime]))
    costs = {HOLDS: "is the largest cost", FAILS: "is not the largest cost", UNDECIDED: "may be the largest cost"}
    state = both["In a CUDA graph"].state
    title = f"At the {regime} projection, {shape}, naive dequantisation {costs[state]}"
    return Markdown("\n".join([f":::{{admonition}} {title}", ":class: finding", "", "\n\n".join(answers), ":::"]))


def largest(verdicts: dict) -> Markdown:
    """The projections at which naive dequantisation is the largest cost, and those at which it is not.

    verdicts: verdicts.causes.of_run(run)
    """
    found = {regime: verdicts[f"cause_{regime}_graph"] for regime in REGIMES}
    named = {
        state: [f"{regime} ({'×'.join(map(str, REGIMES[regime]))})" for regime in found if found[regime].state == state]
        for state in (HOLDS, FAILS, UNDECIDED)
    }
    told = []
    if named[HOLDS]:
        told.append(f"naive dequantisation is the largest cost at the projections {', '.join(named[HOLDS])}")
    if named[FAILS]:
        told.append(f"another cost is larger at {', '.join(named[FAILS])}")
    if named[UNDECIDED]:
        told.append(f"it is open at {', '.join(named[UNDECIDED])}")
    exists = bool(named[HOLDS]) and found["narrow"].state == FAILS
    mechanism = " So the study's mechanism exists, but it does not decide at the narrow projection." if exists else ""
    return Markdown(f"In a CUDA graph, {'; '.join(told)}.{mechanism}")


def savings(removals: pd.DataFrame) -> pd.DataFrame:
    """The saving of each removal at every shape it was timed at, as text with intervals: shape, then one column each.

    removals: causes.removals(run); shapes at which only one of the causes was varied are left out
    """
    varied = removals[removals["cause"] != ""].groupby("problem")["cause"].nunique()
    rows = removals[removals["problem"].isin(varied[varied > 1].index)]
    cells = [f"{number(row.value, '.0%')}{bracket(row.low, row.high, '.0%')}" for row in rows.itertuples()]
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


def serial_walk(table: pd.DataFrame, M: int = 1) -> Markdown:
    """The time of the simple kernel against N and K: the experiment on the cause of its slowness."""
    rows = tables.primary(table)
    rows = rows[(rows["M"] == M) & (rows["backend"] == "int4-static")]
    latency = rows.set_index(["K", "N"])["latency_us_p50"].dropna()
    few, many, deep = (4096, 512), (4096, 8192), (14336, 4096)
    if not {few, many, deep} <= set(latency.index):
        return Markdown("*This run did not time `int4-static` at the shapes of this comparison.*")
    at_k = latency[latency.index.get_level_values("K") == few[0]]
    between = at_k[at_k.index.get_level_values("N") <= many[1]]
    return Markdown(
        f"With K at {few[0]}, the simple kernel takes {between.min():.1f} to {between.max():.1f} µs from N = {few[1]} "
        f"to {many[1]}, {many[1] // few[1]} times the weights. With K at {deep[0]}, {deep[0] / few[0]:.1f} times as "
        f"deep, {shape_name(deep)} takes {latency[deep]:.1f} µs."
    )


def twins(table: pd.DataFrame, M: int = 1) -> pd.DataFrame:
    """The tuned kernel and its ablations, in us, at the projections of the earlier study.

    returns: shape, int4-load-only, int4-no-dequant, int4, and dequant_share = 1 - int4-no-dequant / int4
    """
    names = ["int4-load-only", "int4-no-dequant", "int4"]
    rows = tables.primary(table)
    rows = rows[(rows["M"] == M) & rows["backend"].isin(names)]
    wide = rows.pivot(index=["K", "N"], columns="backend", values="latency_us_p50").reindex(
        index=pd.MultiIndex.from_tuples(STUDY_SHAPES, names=["K", "N"]), columns=names
    )
    wide = wide.reset_index().rename_axis(columns=None)
    shape = shape_names(wide)
    return wide.assign(shape=shape, dequant_share=1 - wide["int4-no-dequant"] / wide["int4"])


def dequantisation(parts: pd.DataFrame, M: int = 1) -> dict[str, float]:
    """At the wide shape: dequant_only_us, to memory and without a product, and fused_us, the whole tuned kernel.

    parts: tables.breakdown(run)
    """
    K, N = WIDE
    row = parts[(parts["M"] == M) & (parts["K"] == K) & (parts["N"] == N)].iloc[0]
    return {name: row[name] for name in ("dequant_only_us", "fused_us")}


def alone(table: pd.DataFrame) -> Figure | Markdown:
    """The cost of dequantisation on its own, before a product, and inside the fused kernel."""
    rows = tables.primary(table)
    return shown(figures.dequant_breakdown, table if len(rows) else rows, lacking="any kernel in a graph")


def removed(removals: pd.DataFrame) -> Figure | Markdown:
    """The share of the time that each removal saves at the four projections."""
    return shown(figures.cause_removed, removals, lacking="any kernel with one cause varied")


def along(removals: pd.DataFrame) -> Figure | Markdown:
    """The same share against N and against K."""
    varied = removals[removals["cause"] != ""]
    return shown(figures.cause_along, varied, lacking="any kernel with one cause varied")


def twin_table(table: pd.DataFrame) -> Markdown:
    """The tuned kernel, without its dequantisation, and its weight-read bound."""
    caption = "The tuned kernel and two ablations at M = 1; the last column is what leaving dequantisation out saves"
    return page.table(twins(table), TWINS, "tab-twins", caption)


def saving_table(removals: pd.DataFrame) -> Markdown:
    """The saving by each removal, shape by shape, folded."""
    caption = "Share of the time saved at M = 1"
    return page.folded(
        "What each removal saves, shape by shape", savings(removals), saving_columns(), "tab-savings", caption
    )


def split_table(run) -> Markdown:
    """The same bytes with K split more or less, folded."""
    caption = "How many programs and warps share K, and the time it takes, M = 1"
    return page.folded("The same bytes with K split more or less", splits(run), SPLIT_COLUMNS, "tab-splits", caption)
