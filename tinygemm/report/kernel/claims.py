"""Claims about a run: every step of the ladder makes the kernel faster, and one gains most."""

from __future__ import annotations

import dataclasses

import pandas as pd

from tinygemm.report.base.bounds import at_least, case_name, listed
from tinygemm.report.base.claims import UNDECIDED, Verdict, for_all
from tinygemm.report.kernel import tables as steps

MISSING = "This run did not time the steps of the ladder."


def of_steps(rows: pd.DataFrame) -> dict[str, Verdict]:
    """The verdicts of the chapter: steps, first.

    rows: steps.rungs(run)
    """
    return {"steps": every_step_gains(rows), "first": first_step_gains_most(rows)}


def every_step_gains(rows: pd.DataFrame) -> Verdict:
    """No step makes the kernel slower anywhere; where the kernel stays what it was, there is no step."""
    claim = "No step of the ladder makes the kernel slower at any projection"
    found = steps.gains(rows)
    names = {"factor": "value", "factor_low": "low", "factor_high": "high"}
    found = found[["M", "K", "N", "label", *names]].rename(columns=names)
    found = found.assign(name=[f"{case_name(row)} ({row['label']})" for _, row in found.iterrows()])
    verdict = at_least(claim, found, 1.0, MISSING)
    if same := int(rows["same"].sum()):
        note = f" Left out: {same} cases in which a step changes nothing, as the library or the GPU has it."
        verdict = dataclasses.replace(verdict, sentence=verdict.sentence + note)
    return verdict


def first_step_gains_most(rows: pd.DataFrame) -> Verdict:
    """At every problem the first step has the largest factor of all."""
    label = list(steps.STEPS.values())[1]
    claim = f"The first step ({label}) gains most at every projection"
    found = steps.gains(rows)
    if found.empty:
        return Verdict(claim, UNDECIDED, MISSING, {})
    first = found[found["step"] == 1].set_index("problem")
    others = found[found["step"] > 1].groupby("problem")[["factor_low", "factor_high"]].max().reindex(first.index)
    confirmed, refuted = first["factor_low"] > others["factor_high"], others["factor_low"] > first["factor_high"]
    best = found.loc[found.groupby("problem", sort=False)["factor"].idxmax()]
    told = []
    for name in (name for name in steps.STEPS.values() if name in set(best["label"])):
        mine = best[best["label"] == name].sort_values("factor", ascending=False)
        places = [f"{row['factor']:.2f}× at {case_name(row)}" for _, row in mine.iterrows()]
        told.append(f"{name}: {listed(places)}.")
    numbers = {"n": len(first), "n_first": int(confirmed.sum()), "largest": best["factor"].max()}
    return Verdict(
        claim, for_all(confirmed, refuted), f"The largest step is {' '.join(told)}",
        {name: float(value) for name, value in numbers.items()},
    )  # fmt: skip
