"""Claims about the latency model: shapes left out of the fit, and GPUs that others, or other runs, measured."""

from __future__ import annotations

import pandas as pd

from tinygemm.report.base.claims import FAILS, HOLDS, UNDECIDED, Verdict
from tinygemm.report.base.words import shape_name
from tinygemm.report.predict.against_published import HIT
from tinygemm.report.predict.model import COVERED

MEDIAN_ERROR, WORST_ERROR = 0.10, 0.25
ENOUGH_VALUES = 5
MODES = {"graph": "as a CUDA graph", "eager": "launched from Python"}


def predicts(left_out: pd.DataFrame, launch: str = "graph") -> Verdict:
    """The model predicts shapes it never saw: median error within 10 %, worst within 25 %, every backend.

    left_out: costmodel.leave_one_out(run)
    """
    claim = f"A few physical terms predict the latency of shapes that were never seen, {MODES[launch]}"
    rows = left_out[left_out["launch"] == launch]
    if rows.empty:
        return Verdict(claim, UNDECIDED, f"The run timed too few shapes {MODES[launch]} to leave one out.", {})
    sizes = rows["error"].abs()
    by_backend = sizes.groupby(rows["backend"]).agg(["median", "max"])
    worst = rows.loc[sizes.idxmax()]
    state = HOLDS if (by_backend["median"] <= MEDIAN_ERROR).all() and sizes.max() <= WORST_ERROR else FAILS
    poorest = by_backend["median"].idxmax()
    sentence = (
        f"Over {len(rows):,} cases of {rows[['K', 'N']].drop_duplicates().shape[0]} shapes, each predicted by a fit "
        f"without its shape, the median error is {sizes.median():.1%} (largest for {poorest}: "
        f"{by_backend.loc[poorest, 'median']:.1%}) and the worst {sizes.max():.0%} ({worst['backend']}, M = "
        f"{worst['M']:.0f}, {shape_name(worst)}); {(sizes <= WORST_ERROR).mean():.1%} are within "
        f"{WORST_ERROR:.0%}."
    )
    numbers = {
        "median": sizes.median(), "worst": sizes.max(), "within_10": (sizes <= MEDIAN_ERROR).mean(),
        "within_25": (sizes <= WORST_ERROR).mean(), "cases": len(rows),
    }  # fmt: skip
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})


def projects(compared: pd.DataFrame) -> Verdict:
    """The projection to other GPUs covers nine in ten of the published values of backends that the run timed.

    compared: against_published.compare(model, published)
    """
    claim = "Projected to other GPUs, the bands cover what others published"
    rows = compared[compared["stand_in"] == ""]
    if len(rows) < ENOUGH_VALUES:
        sentence = f"Only {len(rows)} published values are of backends that this run timed."
        return Verdict(claim, UNDECIDED, sentence, {"cases": float(len(rows))})
    share, worst = (rows["result"] == HIT).mean(), rows.loc[rows["off"].abs().idxmax()]
    sentence = (
        f"Of {len(rows)} published values of backends that the run timed, {(rows['result'] == HIT).sum()} lie within "
        f"their band; the median projection is off by {rows['off'].abs().median():.0%}, the worst by "
        f"{worst['off']:+.0%} ({worst['backend']} on {worst['gpu']}, M = {worst['M']}, {shape_name(worst)}). "
        f"The claim asks for {COVERED:.0%}; the median band reaches from its lower end to "
        f"{(rows['high'] / rows['low']).median():.1f} times that."
    )
    numbers = {"cases": len(rows), "share": share, "median_off": rows["off"].abs().median(), "worst_off": worst["off"]}
    state = HOLDS if share >= COVERED else FAILS
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})


def projects_to_runs(compared: pd.DataFrame) -> Verdict:
    """The projection covers nine in ten of what runs of other GPUs recorded of libraries and unchanged kernels.

    compared: against_runs.compare
    """
    claim = "Projected to another GPU of which a run is recorded, the bands cover what that run measured"
    if len(compared) < ENOUGH_VALUES:
        sentence = "No run of another GPU is recorded that timed the same libraries or kernels at enough shapes."
        return Verdict(claim, UNDECIDED, sentence, {"cases": float(len(compared))})
    hits, worst = compared["result"] == HIT, compared.loc[compared["off"].abs().idxmax()]
    sentence = (
        f"Of {len(compared)} cases on {' and '.join(compared['gpu'].unique())}, {hits.sum()} lie within their band; "
        f"the median projection is off by {compared['off'].abs().median():.1%}, the worst by {worst['off']:+.0%} "
        f"({worst['backend']}, M = {worst['M']}, {shape_name(worst)}). The claim asks for {COVERED:.0%}; the "
        f"median band reaches from its lower end to {(compared['high'] / compared['low']).median():.1f} times "
        f"that."
    )
    numbers = {"cases": len(compared), "share": hits.mean(), "median_off": compared["off"].abs().median()}
    state = HOLDS if hits.mean() >= COVERED else FAILS
    return Verdict(claim, state, sentence, {name: float(value) for name, value in numbers.items()})
