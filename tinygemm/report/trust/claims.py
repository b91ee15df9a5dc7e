"""Claims about a run: the choices of the method that change a number, and the agreement of another run."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.bounds import at_most, listed
from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.base.words import shape_name
from tinygemm.report.trust.tables import EXPECTED_INSIDE, spread

MATTERS = 0.05  # relative: an error below this would not change what the report says
BESIDE_OTHERS = 0.02  # relative: more than repetition within one group shows
CHANCE = 3  # standard errors that the share of medians inside may lie below EXPECTED_INSIDE by chance
FEWEST_CASES = 10
LEAST_SHOWN = 1e-4  # a relative spread below this would be printed as nothing
CLAIMS = {
    "hot L2": "Timing with the weight still in L2 changes a latency by more than {most}",
    "warm L2": "Rotating over 1.5 times the L2 instead of several times changes a latency by more than {most}",
    "zeros": "Timing on zeros instead of random data changes a latency by more than {most}",
    "do_bench": "`triton.testing.do_bench` differs from a CUDA graph by more than {most}",
    "eager": "Launching from Python changes a latency by more than {most}",
    "primed": "A dependent launch before a graph changes a latency by more than {most}",
}
SHORT = {"fp16-cublas": "FP16", "int4": "INT4"}


def of_evidence(
    rows: pd.DataFrame, within: pd.DataFrame, between: pd.DataFrame, beside: pd.DataFrame
) -> dict[str, Verdict]:
    """The verdicts of the chapter: one per way of timing, under its name; steady (within the run); beside (in other
    groups of backends); repeated (between runs).

    rows:    evidence.errors(run)
    within:  evidence.halves(run)
    between: evidence.agreement with an older run, or no rows
    beside:  evidence.beside_others(run)
    """
    found = {way: matters(rows, way) for way in CLAIMS}
    unchanged = between[between["unchanged"]] if len(between) else between
    return found | {
        "beside": same_beside_others(beside),
        "steady": agrees("Both halves of the run agree within their stated intervals", within, "each half"),
        "repeated": agrees(
            "Another run of the same GPU model agrees within the stated intervals, where code and config are the same",
            unchanged, "each run",
        ),
    }  # fmt: skip


def matters(rows: pd.DataFrame, way: str) -> Verdict:
    """Holds if one case is clearly more than 5 % off the primary number, fails if every case is clearly nearer."""
    claim = CLAIMS[way].format(most=f"{MATTERS:.0%}")
    mine = rows[rows["way"] == way].dropna(subset=["low"]) if len(rows) else rows
    if mine.empty:
        return Verdict(claim, UNDECIDED, "This run did not time it so.", {})
    off = (mine["low"] > 1 + MATTERS) | (mine["high"] < 1 - MATTERS)
    near = (mine["low"] > 1 - MATTERS) & (mine["high"] < 1 + MATTERS)
    state = HOLDS if off.any() else FAILS if near.all() else UNDECIDED
    told = [
        f"{row['value']:.2f} times at {shape_name(row)} in {SHORT.get(row['backend'], row['backend'])}"
        for _, row in mine.loc[(mine["value"] - 1).abs().sort_values(ascending=False).index].iterrows()
    ]
    numbers = {"lowest": mine["value"].min(), "highest": mine["value"].max(), "n": len(mine), "n_off": off.sum()}
    sentence = f"Beside the primary number: {listed(told)}."
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})


def same_beside_others(rows: pd.DataFrame) -> Verdict:
    """rows: evidence.beside_others(run)"""
    claim = f"One kernel takes the same time in every group of backends, within {BESIDE_OTHERS:.0%}"
    names = [f"{shape_name(row)} ({row['backend']}, {row['apart_us']:.2f} µs)" for _, row in rows.iterrows()]
    rows = rows.assign(name=names)
    return at_most(claim, rows, 1 + BESIDE_OTHERS, "This run timed no kernel without x in several groups.")


def agrees(claim: str, rows: pd.DataFrame, each: str) -> Verdict:
    """Holds if as many medians lie in the other's interval as the scatter within a run lets expect, but for chance."""
    numbers = spread(rows)
    if numbers["n"] < FEWEST_CASES:
        return Verdict(claim, UNDECIDED, "There is no second measurement to compare with.", {})
    independent = (EXPECTED_INSIDE * (1 - EXPECTED_INSIDE) / numbers["n"]) ** 0.5
    least = EXPECTED_INSIDE - CHANCE * max(independent, numbers["inside_error"])
    state = HOLDS if numbers["inside"] >= least else FAILS
    sentence = (
        f"Of {numbers['n']:.0f} cases, {numbers['inside']:.1%} of the medians of {each} lie in the interval of the "
        f"other; if the scatter of samples were all, {EXPECTED_INSIDE:.0%} would, and but for chance no fewer than "
        f"{least:.0%}. "
        f"They differ by {numbers['typical']:.2%} in the median, and by less than {numbers['worst']:.1%} in 95 of 100 "
        f"cases."
    )
    if numbers["beyond"] >= LEAST_SHOWN:
        sentence += f" A further standard deviation of {numbers['beyond']:.2%} for {each} explains the rest."
    return Verdict(claim, state, sentence, numbers)
