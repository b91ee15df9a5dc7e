"""Text and tables of the chapter on limits: the rule that names a limiter, and every counter in a table."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from tinygemm import runs
from tinygemm.problem import STUDY_SHAPES
from tinygemm.report.base import page, style
from tinygemm.report.base.claims import Verdict
from tinygemm.report.base.tables import primary
from tinygemm.report.base.words import shape_name, shape_names
from tinygemm.report.gains import figures as gains_figures
from tinygemm.report.limits import claims, figures
from tinygemm.report.limits import tables as limiters
from tinygemm.report.limits.tables import (
    BOUND,
    COPY_FRACTION,
    FEW_PROGRAMS,
    FEW_WARPS,
    MARGIN,
    PASSED_ON,
    REREAD,
    ROUTE,
    limited_by_bytes,
    marked,
)
from tinygemm.report.peers.tables import OVERLAPPING

COUNTERS = {
    "name": ("Kernel", ""),
    "limit": ("Limit, alone", ""),
    "in_a_row": ("In a row, of a copy", ""),
    "shape": ("K×N", ""),
    "M": ("M", ".0f"),
    "busy": ("DRAM, L2, SM, %", ""),
    "inside": ("Tensor, issue, %", ""),
    "resident": ("Warps, % (at most)", ""),
    "programs_per_sm": ("Programs per SM", ".2f"),
    "traffic_ratio": ("Bytes / least", ".2f"),
}
QUESTIONS = {"question": ("Question", ""), "fp16-cublas": ("FP16", ""), "int4-static": ("simple INT4", ""),
             "int4": ("tuned INT4", "")}  # fmt: skip
INSTRUCTIONS = {
    "name": ("Kernel", ""),
    "shape": ("K×N", ""),
    "M": ("M", ".0f"),
    "per_weight": ("Executed", ".2f"),
    "static_low": ("Main loop", ".2f"),
    "static_high": ("With all the rest once", ".2f"),
    "agreement": ("Agree", ""),
}


def rule() -> Markdown:
    """The rule by which limiters.limiter decides, with its numbers."""
    return Markdown(
        f"1. Of DRAM, L2 and SM, the busiest limits the call if it is busy for at least {BOUND:.0%} of the time. "
        f"If that is the SM, it is its tensor cores or its issue slots, where they are that busy, too. What DRAM sends "
        f"passes L2, so L2 is asked only where it is at least {PASSED_ON * 100:.0f} points busier than DRAM.\n"
        f"2. Otherwise *latency* limits it. The reason is that there are fewer than {FEW_PROGRAMS:g} programs for each "
        f"SM, or else what its warps wait for most. *Few warps* is added where less than {FEW_WARPS:.0%} of the "
        f"warps that an SM can hold are resident.\n\n"
        f"DRAM, L2 and SM are shares of the whole call; tensor cores, issue slots and warps are of the time in which "
        f"an SM is active. Where a counter is within {MARGIN * 100:.0f} points of naming another unit, or none, the "
        f"answer carries a question mark, and no claim rests on it.\n\n"
        f"This is about one call alone. Of calls in a row, the bytes are the limit where they move at "
        f"{COPY_FRACTION:.0%} of the speed of a copy or faster; {{doc}}`02_models` goes by the same rule. The rate "
        f"counts the least bytes. A call that moved more than {REREAD:g} times those is not judged: a dash stands "
        f"there."
    )


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """limiters.with_static(limiters.in_a_row(readings, table)) in words: name, shape, limit (with its question mark),
    in_a_row, busy, inside, resident and agreement."""
    words = rows["agrees"].map({True: "yes", False: "no"}).fillna("–")
    name = rows["backend"].map(style.short_name)
    name = name.where(rows["form"] != ROUTE, "dequantise first (as selected)")
    rate = rows["rate"].map("{:.0%}, ".format).where(rows["rate"].notna(), "–")
    return rows.assign(
        name=name,
        shape=shape_names(rows),
        limit=marked(rows),
        in_a_row=rate + rows["row_limiter"],
        busy=_percents(rows, "dram", "l2", "sm"),
        inside=_percents(rows, "tensor", "issue"),
        resident=_percents(rows, "warps") + f"{style.NO_BREAK}(" + _percents(rows, "occupancy") + ")",
        agreement=words,
    )


def four_numbers(cases: pd.DataFrame, table: pd.DataFrame, M: int = 1, shape=STUDY_SHAPES[2]) -> pd.DataFrame:
    """Each question about DRAM at one shape, and its one number for each kernel: question, then a column per backend.

    cases: limiters.readings(profiled)   table: tables.report_table(run), which may be of another GPU: then it is named
    """
    timed = primary(table)
    elsewhere = f" (on an {cases['gpu'].iloc[0]})" if len(cases) and set(cases["gpu"]) != set(table["gpu"]) else ""
    reads = timed.loc[timed["backend"] == OVERLAPPING]
    found = []
    for rows, column, question in (
        (cases, "dram", f"Profiled alone{elsewhere}: how busy is DRAM?"),
        (timed, "frac_peak_bw", "In a row: how fast do the bytes move, of a copy? (this decides)"),
        (timed, "frac_floor", "In a row: how near is the floor, bytes and an empty node?"),
        (timed, "of_reads", "In a row: how near is the weight-read bound of INT4?"),
    ):
        if len(rows) and column == "of_reads":
            best = reads.loc[_at(reads, M, shape), "latency_us_p50"].min()
            rows = rows.assign(of_reads=(best / rows["latency_us_p50"]).where(rows["backend"] == "int4"))
        here = rows[_at(rows, M, shape)].drop_duplicates("backend").set_index("backend") if len(rows) else rows
        values = {name: here[column].get(name) if column in here else None for name in list(QUESTIONS)[1:]}
        found.append({"question": question} | {name: "–" if pd.isna(v) else f"{v:.0%}" for name, v in values.items()})
    return pd.DataFrame(found)


def _at(rows: pd.DataFrame, M: int, shape) -> pd.Series:
    return (rows["M"] == M) & (rows["K"] == shape[0]) & (rows["N"] == shape[1])


def _percents(rows: pd.DataFrame, *columns: str) -> pd.Series:
    """`57 · 31 · 44` for each row; a dash for what was not collected."""
    texts = [rows[column].map(lambda v: "–" if pd.isna(v) else f"{100 * v:.0f}") for column in columns]
    return pd.concat(texts, axis=1).agg(f"{style.NO_BREAK}·{style.NO_BREAK}".join, axis=1)


def no_counters() -> Markdown:
    """The sentence in place of the counters, for a run that has none."""
    return Markdown("*This run has no hardware counters: Nsight Compute was missing, or was not allowed to read them.*")


def not_collected(what: str) -> Markdown:
    """The sentence in place of a figure of counters, for a run whose profiler did not collect them."""
    return Markdown(f"*The counters of this run do not say: {what}.*")


def counted(run):
    """The run whose counters a page shows: this one if it was profiled, else the newest beside it that was."""
    if len(run.counters):
        return run
    clean = (path for path in runs.recorded_runs(root=run.path.parents[1]) if not path.name.endswith("-dirty"))
    profiled = [path for path in clean if (path / "counters.csv").is_file()]
    return runs.load_run(profiled[-1]) if profiled else run


def whose_counters(run, profiled) -> Markdown | None:
    """Tell whose counters stand on the page, where they are not this run's.

    profiled: counted(run)
    """
    if profiled is run:
        return None
    return Markdown(
        f"*Nsight Compute did not profile this run. The counters on this page are those of an {profiled.gpu['name']}, "
        f"run {profiled.run_id}.*"
    )


def cases_of(run, table: pd.DataFrame) -> pd.DataFrame:
    """Every profiled case of a run, beside its machine code and what the clock says of it in a row of calls.

    table: tables.report_table(run)
    """
    cases = limiters.with_static(limiters.readings(run), limiters.static_file(run.gpu["key"]))
    return limiters.in_a_row(cases, table) if len(cases) else cases


def answer(shift: Verdict) -> str:
    """The answer of the chapter in one sentence. shift: gains.claims.of_run(run)["B"]"""
    rate = shift.numbers.get("int4_rate")
    if rate is None:
        return "Of calls in a row this run did not time what decides; one call alone is another question."
    limit = "bandwidth" if limited_by_bytes(rate) else "something other than bandwidth"
    return (
        f"At the wide projection {limit} limits INT4 when calls follow each other. One call alone is another question."
    )


def alone(cases: pd.DataFrame) -> Markdown:
    """The number of profiled shapes at which a lone INT4 call waits, and on which GPU."""
    numbers = claims.latency_limits(cases).numbers
    if not numbers:
        return Markdown("*No lone INT4 call was profiled.*")
    where = f"on an {cases['gpu'].iloc[0]}"
    return Markdown(
        f"At {numbers['n_latency']:.0f} of {numbers['n']:.0f} shapes, {where}, a lone INT4 call waits: it has too "
        "few bytes in flight for too short a time. A decode step is no lone call. Whether the next call may fill the "
        "gap is a matter of {term}`overlap`, and {doc}`03_gains` says what that is worth."
    )


def takeaway(shift: Verdict) -> Markdown:
    """The rates of FP16 and INT4, and whether bytes limit them. shift: gains.claims.of_run(run)["B"]"""
    numbers = shift.numbers
    if "int4_rate" not in numbers:
        return page.takeaway(shift.sentence)
    rates = {"INT4": numbers["int4_rate"], "FP16": numbers["fp16_rate"]}
    limited = [name for name, rate in rates.items() if limited_by_bytes(rate)]
    verdict = {0: "Bytes limit neither.", 1: f"Bytes limit {limited[0] if limited else ''} alone.",
               2: "Bytes limit both. Nothing has shifted."}[len(limited)]  # fmt: skip
    return page.takeaway(
        f"At the wide projection in a row of calls, INT4 moves its bytes at **{rates['INT4']:.0%}** of the speed of a "
        f"copy and FP16 at **{rates['FP16']:.0%}**. {verdict}"
    )


def four_table(cases: pd.DataFrame, table: pd.DataFrame) -> Markdown:
    """Four questions about one case, and one number for each."""
    caption = f"Four questions about one case, {shape_name(STUDY_SHAPES[2])} at M = 1, and one number for each"
    return page.table(four_numbers(cases, table), QUESTIONS, "tab-four-numbers", caption)


def busy(cases: pd.DataFrame, M: int = 1) -> Figure | Markdown:
    """The share of time in which each part of the GPU was busy during one call alone."""
    few = cases[cases["M"] == M] if len(cases) else cases
    return figures.limits(few.reset_index(drop=True)) if len(few) else no_counters()


def near_floor(table: pd.DataFrame) -> Figure | Markdown:
    """The distance of each kernel from its own floor, against N."""
    rows = primary(table)
    there = rows[(rows["K"] == STUDY_SHAPES[0][0]) & (rows["M"] == 1) & rows["frac_floor"].notna()]
    return page.shown(gains_figures.frac_of_floor, table if len(there) else there, lacking="M = 1 at K = 4096")


def waits(cases: pd.DataFrame, most_tokens: int = 16) -> Figure | Markdown:
    """The reasons for which warps wait, for few tokens."""
    if not any(name.startswith("stall_") for name in cases):
        return not_collected("why warps wait")
    return figures.stalls(cases[cases["M"] <= most_tokens].reset_index(drop=True))


def instructions(cases: pd.DataFrame, most_tokens: int = 16) -> Figure | Markdown:
    """Instructions per weight, executed and in machine code, for few tokens."""
    if cases.empty or not cases[["per_weight", "static_low"]].notna().any(axis=None):
        return not_collected("instructions")
    return figures.instruction_mix(cases[cases["M"] <= most_tokens].reset_index(drop=True))


def counter_table(cases: pd.DataFrame) -> Markdown:
    """Every counter of every profiled case, folded."""
    if cases.empty:
        return no_counters()
    caption = "Counters of one call; kernels of one call are combined, percentages weighted by duration"
    return page.folded("Every profiled case", table(cases), COUNTERS, "tab-counters", caption)


def instruction_table(cases: pd.DataFrame) -> Markdown:
    """Instructions per weight of every profiled case, folded."""
    if cases.empty:
        return not_collected("instructions")
    caption = "Thread instructions per weight, executed (Nsight Compute) and in machine code (compiled for this GPU)"
    return page.folded("Instructions per weight", table(cases), INSTRUCTIONS, "tab-instructions", caption)
