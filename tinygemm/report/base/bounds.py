"""Claims that a ratio stays on one side of a bound in every case, and the sentence that names the cases where not."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict, for_all
from tinygemm.report.base.words import shape_name

NAMED = 6  # counterexamples that a sentence names; the table of the page has them all


def at_least(claim: str, rows: pd.DataFrame, bound: float, missing: str) -> Verdict:
    """Holds where the whole interval of every row is at or above the bound; one row wholly below it refutes.

    rows:    name (of the case), value, low, high; a value without an interval stands for itself
    missing: the sentence of a run that has no such rows
    """
    return _bounded(claim, rows, bound, missing, sign=1)


def at_most(claim: str, rows: pd.DataFrame, bound: float, missing: str) -> Verdict:
    """As `at_least`, with the interval at or below the bound."""
    return _bounded(claim, rows, bound, missing, sign=-1)


def case_name(row) -> str:
    return f"{shape_name(row)}, M = {int(row['M'])}"


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the name of each case."""
    return rows.assign(name=[case_name(row) for _, row in rows.iterrows()])


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    return "; ".join(names[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def _bounded(claim: str, rows: pd.DataFrame, bound: float, missing: str, sign: int) -> Verdict:
    rows = rows.dropna(subset=["value"])
    if rows.empty:
        return Verdict(claim, UNDECIDED, missing, {})
    near, far = ("low", "high") if sign > 0 else ("high", "low")
    rows = rows.assign(near=rows[near].fillna(rows["value"]), far=rows[far].fillna(rows["value"]))
    rows = rows.sort_values("value", ascending=sign > 0)  # the worst first
    confirmed, refuted = sign * (rows["near"] - bound) >= 0, sign * (rows["far"] - bound) < 0
    state = for_all(confirmed, refuted)
    shown = [f"{row['value']:.2f} at {row['name']}" for _, row in rows.iterrows()]
    worst, best = rows.iloc[0], rows.iloc[-1]
    open_ = [text for text, sure in zip(shown, confirmed, strict=True) if not sure]
    failed = [text for text, wrong in zip(shown, refuted, strict=True) if wrong]
    sentence = {
        HOLDS: f"So in all {len(rows)} cases: from {worst['value']:.2f} ({worst['name']}) to {best['value']:.2f}.",
        FAILS: f"Not so in {len(failed)} of {len(rows)} cases: {listed(failed)}.",
        UNDECIDED: f"The interval covers the bound in {len(open_)} of {len(rows)} cases: {listed(open_)}.",
    }[state]
    numbers = {"worst": worst["value"], "best": best["value"], "bound": bound, "n": len(rows), "n_failed": len(failed)}
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})
