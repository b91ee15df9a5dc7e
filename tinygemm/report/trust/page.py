"""Text and tables of the chapter on the method's errors: every error in a table, and how runs agree."""

from __future__ import annotations

from datetime import datetime

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure

from tinygemm.report.base import page, style
from tinygemm.report.base.words import NARROW, interval_texts, shape_names
from tinygemm.report.trust import figures
from tinygemm.report.trust import tables as evidence
from tinygemm.report.trust import ways as all_ways

ERRORS = {
    "way": ("Timed so", ""),
    "name": ("Backend", ""),
    "shape": ("K×N", ""),
    "left_us": ("µs", ".2f"),
    "right_us": ("primary, µs", ".2f"),
    "value": ("ratio", ".3f"),
    "interval": ("95 % interval", ""),
}
BESIDE = {
    "name": ("Backend", ""),
    "shape": ("K×N", ""),
    "n": ("Groups", ".0f"),
    "right_us": ("least, µs", ".2f"),
    "right_contenders": ("backends in that group", ".0f"),
    "left_us": ("most, µs", ".2f"),
    "left_contenders": ("backends in this one", ".0f"),
    "apart_us": ("apart, µs", ".2f"),
    "value": ("ratio", ".3f"),
}
REPEATS = {
    "pair": ("Compared", ""),
    "days": ("Days apart", ".1f"),
    "n": ("Cases", ".0f"),
    "inside": ("Median inside", ".0%"),
    "overlap": ("Intervals overlap", ".0%"),
    "shift": ("Shift of all", "+.2%"),
    "typical": ("Differ by, median", ".2%"),
    "worst": ("95th percentile", ".2%"),
    "beyond": ("Spread left out", ".2%"),
}
CHANGED = {
    "name": ("Backend", ""),
    "code": ("Comparable", ""),
    "n": ("Cases", ".0f"),
    "middle": ("new / old, median", ".3f"),
    "low": ("least", ".3f"),
    "high": ("most", ".3f"),
    "inside": ("Median inside", ".0%"),
}


def errors(rows: pd.DataFrame) -> pd.DataFrame:
    """evidence.errors with names, shapes and intervals in words."""
    name, shape = rows["backend"].map(style.name), shape_names(rows)
    return rows.assign(name=name, shape=shape, interval=interval_texts(rows, ".3f"))


def beside(rows: pd.DataFrame) -> pd.DataFrame:
    """evidence.beside_others with names and shapes in words, the largest difference first."""
    rows = rows.sort_values("value", ascending=False)
    return rows.assign(name=rows["backend"].map(style.name), shape=shape_names(rows))


def launched_before(run) -> Markdown:
    """In which state the run's graphs were timed."""
    if run.settled:
        return Markdown(
            "Before every round of this run kernels without the attribute were launched in the streams that are used "
            "for timing: its graphs are in the *settled* state, that of a process that has launched nothing with the "
            "attribute. It was chosen because it can be restored and does not depend on the backends of a group, "
            "not because it is everybody's: our kernels are launched with the attribute, so a process that has just "
            "called them from the host may be in the other one, *primed*."
        )
    return Markdown(
        f"This run is of schema {run.provenance['schema_version']}, recorded before the effect was known: if its GPU "
        "has two states, in which of them a graph was timed was not recorded, and depended on the backends that were "
        "captured last."
    )


def primed(table: pd.DataFrame) -> Markdown:
    """The speedups over FP16 in both states.

    table: tables.report_table of the whole run
    """
    words = evidence.primed_words(table)
    return Markdown(words or "*This run did not time FP16 and INT4 after a dependent launch.*")


def orders(run) -> Markdown:
    """The effect of the order of a round."""
    rows = evidence.orders(run)
    if rows.empty:
        return Markdown("*This run has no group with enough samples to tell what the order of a round matters.*")
    order, time = rows["by_order"] - 1, rows["by_time"] - 1
    return Markdown(
        f"In groups of up to {rows['contenders'].max()} backends every order of a round has samples enough to be "
        f"told from the others. Medians of one case in rounds of different orders lie up to {order.median():.1%} apart "
        f"in half of {len(rows)} cases, {order.quantile(0.95):.1%} in 95 of 100 and {order.max():.0%} at most; those "
        f"of as many stretches of consecutive rounds {time.median():.1%}, {time.quantile(0.95):.1%} and "
        f"{time.max():.0%}."
    )


def beside_scope(run, rows: pd.DataFrame) -> Markdown:
    """The groups that the comparison beside other backends reaches.

    rows: evidence.beside_others(run)
    """
    if rows.empty:
        return Markdown("*This run timed no kernel without x in several groups.*")
    fewest = rows[["left_contenders", "right_contenders"]].min(axis=None)
    sizes = evidence.group_sizes(run)
    return Markdown(
        f"These groups have {fewest} backends or more. Of the {len(sizes)} groups of cold graphs "
        f"{(sizes < fewest).sum()} have fewer, of which this says nothing."
    )


def no_likeness(older: list, between: list[pd.DataFrame]) -> Markdown:
    """The older runs that have no comparable case.

    older:   evidence.older_runs(run)
    between: evidence.agreement of each
    """
    without = [other.run_id for other, rows in zip(older, between, strict=True) if not rows["unchanged"].any()]
    if not without:
        return Markdown("Every older run of this GPU has comparable cases.")
    return Markdown(f"Without a comparable case: {', '.join(f'`{name}`' for name in without)}.")


def repeats(run, within: pd.DataFrame, older: list, between: list[pd.DataFrame]) -> pd.DataFrame:
    """One row per second measurement: the halves of this run, then each older run, with unchanged code only.

    older:   evidence.older_runs(run)
    between: evidence.agreement of each
    """
    rows = [{"pair": "the two halves of this run", "days": float("nan")} | evidence.spread(within)]
    for other, frame in zip(older, between, strict=True):
        days = (_time(run) - _time(other)).total_seconds() / 86400
        for l2_state, same in frame[frame["unchanged"]].groupby("l2_state"):
            pair = f"run {other.run_id}, comparable, {l2_state} L2"
            rows.append({"pair": pair, "days": days} | evidence.spread(same))
    return pd.DataFrame(rows)


def by_backend(rows: pd.DataFrame) -> pd.DataFrame:
    """evidence.agreement by backend: how many cases compare like with like, and how far those lie apart, else all.

    Graphs only: calls from Python time the host.
    """
    rows = rows[rows["launch"] == "graph"]
    counts = rows.groupby("backend", sort=False)["unchanged"].agg(n="size", unchanged="sum")
    comparable = rows["unchanged"] | ~rows["backend"].map(counts["unchanged"] > 0)
    table = rows[comparable].groupby("backend", sort=False).agg(
        middle=("ratio", "median"), low=("ratio", "min"), high=("ratio", "max"), inside=("inside", "mean")
    )  # fmt: skip
    table = table.join(counts)
    table = table.reindex(style.in_order(table.index)).reset_index()
    code = [_share(row.unchanged, row.n) for row in table.itertuples()]
    return table.assign(name=table["backend"].map(style.name), code=code)


def clocks(run) -> Markdown:
    """The GPU's clocks, power and temperature while cases were timed."""
    found = evidence.clocks(run)
    parts = {
        "SM clock": (found["sm_low"], found["sm_high"], "MHz"),
        "power": (found["power_low"], found["power_high"], "W"),
        "temperature": (found["temp_low"], found["temp_high"], "°C"),
    }
    told = [
        f"{name} {low:,.0f} {unit}" if low == high else f"{name} {low:,.0f} to {high:,.0f} {unit}"
        for name, (low, high, unit) in parts.items()
        if low == low and high == high
    ]
    if not told:
        return Markdown("*This run could not read clocks, power and temperature.*")
    most = found["max_sm"]
    limit = f" The clock may reach {most:,.0f} MHz." if most == most else ""
    return Markdown(f"While cases were timed: {', '.join(told)}.{limit} Each is the median during one group of cases.")


def no_older_run() -> Markdown:
    """The sentence in place of a comparison of two runs, while there is one."""
    return Markdown("*No older run of this GPU is recorded to compare with.*")


def _share(some: int, of: int) -> str:
    return {0: "no case", of: "every case"}.get(some, f"{some} cases")


def _time(run) -> datetime:
    return datetime.fromisoformat(run.provenance["started"])


def ways(rows: pd.DataFrame) -> Figure | Markdown:
    """One pair of kernels in every way that the run timed it.

    rows: trust.ways.speedups(run)
    """
    return page.shown(figures.ways, rows, lacking="the four projections")


def extremes(rows: pd.DataFrame) -> dict[str, float]:
    """Numbers of the prose: the least and the largest speedup of all ways, and how many ways there are."""
    of = all_ways.spans(rows)
    return {"least": of["low"].min(), "most": of["high"].max(), "ways": len(of)}


def rule(run, within: pd.DataFrame, between: pd.DataFrame) -> Markdown:
    """The one rule by which to read every time of the report, computed from this run and the last one.

    within:  evidence.halves(run)        between: evidence.agreement with an older run, or no rows
    """
    half = (within["new_high"] - within["new_low"]) / (within["new_high"] + within["new_low"])
    if half.empty:
        return page.lacks("cases with samples enough for a rule")
    told = f"**Read every time as ±{half.quantile(0.95):.1%} within its group of backends"
    same = between[between["unchanged"]] if len(between) else between
    if same.empty:
        return Markdown(
            f"{told}.** No second run of the same code says how far runs lie apart; groups of one run differ by more "
            "({doc}`J_repeats`)."
        )
    apart = (same["ratio"] - 1).abs().quantile(0.95)
    ours = int((same["backend"] == "int4").sum())
    mine = "" if ours else " The tuned kernel is not among them: no two runs of one version of it are recorded."
    return Markdown(
        f"{told}, ±{apart:.1%} between runs.** In 95 of 100 cases half of the interval is no wider than the first, "
        f"and another run of the same code no farther off than the second ({len(same):,} cases).{mine} An interval "
        f"within ±{NARROW:.1%} is not printed."
    )


def method_errors(run, errors: pd.DataFrame, halves: pd.DataFrame, last: pd.DataFrame, origin: pd.DataFrame):
    """The size of every measuring error, and how far repeats lie apart.

    errors: evidence.errors(run)        halves, last: evidence.halves, evidence.agreement with the last run
    """
    repeats = {"second half / first": halves, "this run / last run": last[last["unchanged"]] if len(last) else last}
    if errors.empty and not any(map(len, repeats.values())):
        return page.lacks("anything in another way, or twice")
    return figures.method_errors(evidence.mean_errors(run, errors), errors, repeats, origin)


def error_table(rows: pd.DataFrame) -> Markdown:
    """Every case timed in another way, folded."""
    caption = "The same call timed in another way, against the primary number, M = 1"
    return page.folded("Every case timed in another way", errors(rows), ERRORS, "tab-timed-otherwise", caption)


def repeat_table(run, within: pd.DataFrame, older: list, between: list[pd.DataFrame]) -> Markdown:
    caption = "Second measurements of the same cases; of older runs only comparable cases"
    return page.table(repeats(run, within, older, between), REPEATS, "tab-repeats", caption)


def runs_figure(run, older: list, between: list[pd.DataFrame]) -> Figure | Markdown:
    """Every case that this run and the one before it share."""
    return figures.run_to_run(between[0], run, older[0]) if between and len(between[0]) else no_older_run()


def runs_table(between: list[pd.DataFrame]) -> Markdown:
    """This run over the one before it, by backend, folded."""
    if not between or between[0].empty:
        return no_older_run()
    caption = "This run over the last one, by backend: of comparable cases, where there are any, else of all graphs"
    return page.folded("This run over the last one, by backend", by_backend(between[0]), CHANGED, "tab-runs", caption)


def beside_table(rows: pd.DataFrame) -> Markdown:
    """Every kernel that was timed in several groups, folded."""
    caption = "One kernel on one weight in several groups: its least and its largest median"
    return page.folded("Every kernel timed in several groups", beside(rows), BESIDE, "tab-beside", caption)
